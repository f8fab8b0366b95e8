"""Per item, all answers are those of one work item that does one thing at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from chaos.checkers.history import FinalState, History, Op, Violation
from chaos.checkers.item_model import Event, ItemState, by_itself, fits
from chaos.checkers.life import Life, UntoldGrants, lives
from chaos.checkers.linearizability import VISITS_MAX, Model, Verdict, check, first_misfit
from chaos.checkers.run import WHOLE, Run

OPS_SHOWN = 12
"""Operations shown before the one that does not fit."""


@dataclass(slots=True)
class Judgement:
    """What a checker found, and how much it looked at."""

    violations: list[Violation] = field(default_factory=list)
    histories: int = 0
    """Objects whose history was judged."""
    undecided: int = 0
    """Of them those that took more work than the bound, or whose item's fields nobody ever saw."""


def model_of(life: Life, untold: UntoldGrants) -> Model:
    """How this item may behave. A claim that does not tell all it did may have granted it."""
    spec = life.spec
    return Model(
        ItemState(),
        lambda at, event: fits(at, event, spec),
        lambda at, since_s, until_s: by_itself(at, spec, untold.may_be_between(since_s, until_s)),
    )


def judge(
    history: History, finals: Iterable[FinalState] = (), run: Run = WHOLE, visits_max: int = VISITS_MAX
) -> Judgement:
    """Whether the history of each item is linearizable, final reads included."""
    found = Judgement()
    by_id, untold = lives(history, finals, run)
    for life in by_id.values():
        found.histories += 1
        if not life.is_known:
            found.undecided += 1
            continue
        model = model_of(life, untold)
        verdict = check(model, life.events, visits_max)
        if verdict is Verdict.UNDECIDED:
            found.undecided += 1
        elif verdict is Verdict.BROKEN:
            found.violations.append(_told(life, model, visits_max))
    return found


def _told(life: Life, model: Model, visits_max: int) -> Violation:
    misfit, before = first_misfit(model, life.events, _doubted, visits_max)
    source: Op = misfit.source
    others = sorted(
        {id(event.source): event.source for event in before if event.source is not source}.values(),
        key=lambda op: op.invoked_s,
    )
    until = "at the end" if misfit.returned_s == inf else f"until {misfit.returned_s:.3f} s"
    told = (
        f"the answers about work item {life.work_id} {until} fit no order of its operations: whatever came first, "
        f"{source.client}#{source.number} ({source.verb}) cannot have been answered so"
    )
    return Violation("not_linearizable", told, (*others[-OPS_SHOWN:], source))


def _doubted(event: Event) -> Event:
    """The operation as it looks while its answer is still to come."""
    if event.verb in ("read", "hold"):
        return event._replace(is_certain=False, returned_s=inf)
    return event._replace(is_certain=False, returned_s=inf, answers=None)
