"""All checkers over one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chaos.checkers import conservation, convergence, items, leases, unique
from chaos.checkers.history import FinalState, History, Violation
from chaos.checkers.run import WHOLE, Run


@dataclass(frozen=True, slots=True)
class Report:
    """What a run's history shows."""

    violations: tuple[Violation, ...]
    histories: int
    """Item and unique-key histories that were judged linearizable or not."""
    undecided: int
    """Of them those that took more work than the bound: neither good nor bad."""
    acknowledged: int
    recovered: int
    """Items whose add was never answered and that are there."""

    @property
    def is_clean(self) -> bool:
        return not self.violations

    def __str__(self) -> str:
        books = (
            f"{self.histories} histories, {self.undecided} undecided; {self.acknowledged} adds acknowledged, "
            f"{self.recovered} more found; {len(self.violations)} violations"
        )
        return "\n".join((books, *(str(one) for one in self.violations)))


def report(
    history: History, finals: Sequence[FinalState], run: Run = WHOLE, *, rate_max: float = 1.0, drained: bool = True
) -> Report:
    """Judge a run by every rule. ``drained``: it ended healed, with time enough to finish all items.

    ``rate_max``: how much faster than the driver's clock a node's may run.
    """
    totals = conservation.judge(history, finals, run)
    by_item = items.judge(history, finals, run)
    by_key = unique.judge(history)
    violations = [
        *totals.violations,
        *by_item.violations,
        *by_key.violations,
        *leases.exclusive_in_real_time(history, rate_max),
        *(convergence.check(history, finals) if drained else convergence.same_digest(finals)),
    ]
    return Report(
        tuple(violations),
        by_item.histories + by_key.histories,
        by_item.undecided + by_key.undecided,
        totals.acknowledged,
        len(totals.recovered),
    )
