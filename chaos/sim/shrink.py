"""The shortest schedule of faults that still breaks the same promise.

Delta debugging over the plan's faults: leave out halves, quarters, ... single ones, then shorten what is
left. A run with other faults takes other turns, so a smaller schedule is kept only when it was seen to
break the very rule that the first run broke.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from chaos.sim.plan import Fault, Plan
from chaos.sim.world import World

AFTER_S = 1.0
"""Faults go on this long after the violation at most."""
SHORTEST_S = 0.01


@dataclass(slots=True)
class Shrunk:
    """The smallest plan found."""

    plan: Plan
    rule: str
    told: str
    runs: int


def breaks(plan: Plan) -> tuple[str, str, float] | None:
    """(rule, what happened, when) of the promise that this plan breaks."""
    result = World(plan).run()
    if result.violation is None or result.violated_s is None:
        return None
    return result.violation.rule, result.violation.told, result.violated_s


def shrink(plan: Plan, *, runs_max: int, told: Callable[[str], None] = lambda _line: None) -> Shrunk | None:
    """The shortest plan found in ``runs_max`` runs; None when ``plan`` breaks nothing."""
    first = breaks(plan)
    if first is None:
        return None
    search = _Search(Shrunk(plan, first[0], first[1], 1), runs_max, told)
    search.cut_after(first[2])
    search.leave_out()
    search.shorten()
    search.leave_out()
    return search.best


class _Search:
    def __init__(self, best: Shrunk, runs_max: int, told: Callable[[str], None]) -> None:
        self.best = best
        self._runs_max = runs_max
        self._told = told

    def cut_after(self, violated_s: float) -> None:
        """Without what came after the violation; with nothing to wait for where it came before healing."""
        faults = tuple(fault for fault in self.best.plan.faults if fault.at_s < violated_s)
        self._try(self.best.plan.with_faults(faults))
        if violated_s < self.best.plan.fault_s:
            self._try(replace(self.best.plan, fault_s=violated_s + AFTER_S))

    def leave_out(self) -> None:
        parts = 2
        while self.best.plan.faults and self._has_runs():
            faults = self.best.plan.faults
            size = math.ceil(len(faults) / parts)
            for start in range(0, len(faults), size):
                if self._try(self.best.plan.with_faults(faults[:start] + faults[start + size :])):
                    parts = max(2, parts - 1)
                    break
            else:
                if size == 1:
                    return
                parts = min(len(faults), 2 * parts)

    def shorten(self) -> None:
        for place in range(len(self.best.plan.faults)):
            for fault in _shorter(self.best.plan.faults[place]):
                faults = list(self.best.plan.faults)
                faults[place] = fault
                if not self._has_runs() or not self._try(self.best.plan.with_faults(tuple(faults))):
                    break

    def _has_runs(self) -> bool:
        return self.best.runs < self._runs_max

    def _try(self, plan: Plan) -> bool:
        if plan == self.best.plan or not self._has_runs():
            return False
        self.best.runs += 1
        broken = breaks(plan)
        if broken is None or broken[0] != self.best.rule:
            return False
        self.best = replace(self.best, plan=plan, told=broken[1])
        self._told(f"run {self.best.runs}: {len(plan.faults)} faults in {plan.fault_s:.1f} s")
        return True


def _shorter(fault: Fault) -> Iterator[Fault]:
    """The same for ever shorter times."""
    for_s = fault.for_s / 2
    while for_s > SHORTEST_S:
        yield replace(fault, for_s=round(for_s, 4))
        for_s /= 2
