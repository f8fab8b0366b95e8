"""What the history of a finished world shows, beside what was watched while it ran."""

from __future__ import annotations

from collections import defaultdict
from math import prod
from typing import TYPE_CHECKING

from chaos.checkers.history import History
from chaos.checkers.report import Report, report
from chaos.checkers.run import Run
from chaos.sim.plan import Plan

if TYPE_CHECKING:
    from chaos.sim.world import World

ROUNDING = 1.01
"""Leases are of whole milliseconds and of a few hundred at least."""


def fastest_clock(plan: Plan) -> float:
    """How much faster than the world's time any node's clock may have run at most."""
    of_faults: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for fault in plan.faults:
        if fault.kind == "clock_rate":
            of_faults[fault.nodes].append(max(1.0, fault.args["rate"]))
    return max([1.0, *plan.clock_rates]) * max([1.0, *map(prod, of_faults.values())]) * ROUNDING


def judge(world: World) -> Report:
    """Every rule over the whole history; the world has come to rest."""
    rate_max = fastest_clock(world.plan)
    run = Run(
        retention_s=world.limits.retention_ms / 1000 / rate_max,
        key_grace_s=world.limits.key_grace_ms / 1000 / rate_max,
    )
    return report(History(world.ops), world.finals(), run, rate_max=rate_max, drained=True)
