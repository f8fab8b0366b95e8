"""Whether the answers about one object fit any order of the operations on it.

The search of Wing and Gong (1993) with Lowe's (2017) memory of what was visited: take, one after the
other, an operation that no other one had to precede, as long as the model gives the answer that was
given; step back when nothing fits. An operation without an answer may be taken at any time after its
call, or never. What was visited is (operations taken, state of the model), so each is looked at once.
The work is bounded: beyond the bound the answer is "undecided", which callers count and show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from math import inf
from typing import Any, NamedTuple, Protocol, TypeVar

VISITS_MAX = 200_000
"""Configurations looked at for one object; some 2 s. Histories of 60 operations take a few hundred."""


class Timed(Protocol):
    """What the search has to know of an operation."""

    @property
    def invoked_s(self) -> float: ...
    @property
    def returned_s(self) -> float: ...
    @property
    def is_certain(self) -> bool: ...


E = TypeVar("E", bound=Timed)
S = TypeVar("S")


class Model(NamedTuple):
    """How an object behaves: ``fits(state, operation)`` and ``by_itself(state, since_s, until_s)`` give next states.

    ``since_s`` and ``until_s`` are the earliest and the latest time that the present moment can be.
    """

    start: Any
    fits: Callable[[Any, Any], Iterable[Any]]
    by_itself: Callable[[Any, float, float], Iterable[Any]]


class Verdict(StrEnum):
    LINEARIZABLE = "linearizable"
    BROKEN = "broken"
    UNDECIDED = "undecided"


def check(model: Model, events: Sequence[E], visits_max: int = VISITS_MAX) -> Verdict:
    """Whether some order of ``events`` that respects their times is one of the model's."""
    ordered = sorted(events, key=lambda event: (event.invoked_s, event.returned_s))
    certain = sum(1 << number for number, event in enumerate(ordered) if event.is_certain)
    first = (0, model.start)
    seen = {first}
    stack = [first]
    while stack:
        taken, state = stack.pop()
        if taken & certain == certain:
            return Verdict.LINEARIZABLE
        for following in _next(model, ordered, certain, taken, state):
            if following not in seen:
                seen.add(following)
                stack.append(following)
        if len(seen) > visits_max:
            return Verdict.UNDECIDED
    return Verdict.BROKEN


def _next(model: Model, ordered: Sequence[E], certain: int, taken: int, state: Any) -> list[tuple[int, Any]]:
    """Where one step leads, the most likely last, because the stack takes it first."""
    until_s = inf
    for number, event in enumerate(ordered):
        if event.invoked_s > until_s:
            break
        if certain >> number & 1 and not taken >> number & 1:
            until_s = min(until_s, event.returned_s)
    # They lie in the order of their calls, so of what was taken the last one was called last.
    since_s = ordered[taken.bit_length() - 1].invoked_s if taken else -inf
    likely: list[tuple[int, Any]] = []
    doubtful: list[tuple[int, Any]] = [(taken, after) for after in model.by_itself(state, since_s, until_s)]
    for number, event in enumerate(ordered):
        if event.invoked_s > until_s:
            break
        bit = 1 << number
        if taken & bit:
            continue
        for after in model.fits(state, event):
            if certain & bit:
                likely.append((taken | bit, after))
            elif after != state:
                # What may be left out is taken only for what it changes.
                doubtful.append((taken | bit, after))
    likely.reverse()
    return doubtful + likely


def first_misfit(
    model: Model, events: Sequence[E], doubted: Callable[[E], E], visits_max: int = VISITS_MAX
) -> tuple[E, list[E]]:
    """The operation whose answer is the first that fits no order, and what was called before that answer.

    ``events`` are broken. ``doubted`` gives an operation as it looks before its answer came.
    Broken stays broken when more is added, so the end of the shortest broken beginning is searched by halves.
    """
    ends = sorted((event for event in events if event.is_certain), key=lambda event: event.returned_s)
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if check(model, _beginning(events, ends[middle].returned_s, doubted), visits_max) is Verdict.BROKEN:
            high = middle
        else:
            low = middle + 1
    return ends[low], _beginning(events, ends[low].returned_s, doubted)


def _beginning(events: Sequence[E], until_s: float, doubted: Callable[[E], E]) -> list[E]:
    called = [event for event in events if event.invoked_s <= until_s]
    return [event if event.returned_s <= until_s else doubted(event) for event in called]
