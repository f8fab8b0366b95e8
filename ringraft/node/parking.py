"""Claims that found nothing and wait for something.

Waking everyone for each new item would make a crowd of idle workers claim in vain; waking nobody
until a poll would cost them seconds. So each thing that became ready is worth one credit, a credit
wakes the longest-waiting claim that could get something, and a claim that got its share passes on a
credit while there is more for its like. A wake-up is only a hint: the claim asks the log again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ringraft.state.commands import Claim
from ringraft.state.model import Applied

READYING_EVENTS = frozenset(
    {"WORK_ADDED", "WORK_RELEASED", "WORK_EXPIRED", "WORK_RETRIED", "WORK_UNBLOCKED", "HOST_ONLINE"}
)
"""After one of these a parked claim may get something."""

TIMER_CREDITS = 8
"""What fired timers are worth: how many items they readied is not known here. Claims that get
something pass credits on, so a low guess only spreads the claims over more entries."""

RECLAIM_PAUSE_S = 0.02
"""How long a claim that came back empty although it had a chance waits before the next try."""


class Ready(Protocol):
    """What parking asks of the state machine."""

    def could_claim(self, op: Claim) -> bool: ...


class Spot:
    """One parked claim."""

    __slots__ = ("_wake", "op")

    def __init__(self, op: Claim) -> None:
        self.op = op
        self._wake: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()

    @property
    def is_asleep(self) -> bool:
        """Nobody has woken it and it does not claim."""
        return self._wake is not None and not self._wake.done()

    @property
    def was_woken(self) -> bool:
        """It holds a credit that it has not used."""
        return self._wake is not None and self._wake.done() and not self._wake.cancelled()

    def wake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def woken(self, wait_s: float) -> bool:
        """Whether it was woken within ``wait_s`` seconds."""
        if self._wake is None:
            self._wake = asyncio.get_running_loop().create_future()
        if wait_s > 0:
            await asyncio.wait({self._wake}, timeout=wait_s)
        return self._wake.done()

    def claiming(self) -> None:
        """The wake-up is used: the claim asks the log now."""
        self._wake = None


class ParkedClaims:
    """All parked claims, in order of arrival."""

    def __init__(self) -> None:
        self._spots: dict[int, Spot] = {}
        self._arrivals = 0

    @property
    def any(self) -> bool:
        return bool(self._spots)

    def __len__(self) -> int:
        return len(self._spots)

    @contextmanager
    def park(self, op: Claim) -> Iterator[Spot]:
        """A spot while the block runs; a wake-up that it leaves unused goes to the next."""
        self._arrivals += 1
        number = self._arrivals
        spot = Spot(op)
        self._spots[number] = spot
        try:
            yield spot
        finally:
            del self._spots[number]
            if spot.was_woken:
                self._wake_next()

    def applied(self, machine: Ready, applied: Applied, *, timers_fired: bool) -> None:
        """Wake as many as an applied entry could serve."""
        credits = TIMER_CREDITS if timers_fired else 0
        for event in applied.events:
            if event.type in READYING_EVENTS:
                credits += 1
        if credits:
            self.sweep(machine, credits)

    def pass_on(self, machine: Ready, op: Claim) -> None:
        """A claim got something: when there is more for its like, another may be woken."""
        if self._spots and machine.could_claim(op):
            self.sweep(machine, 1)

    def sweep(self, machine: Ready, credits: int) -> None:
        """Wake up to ``credits`` claims that could get something, the longest-waiting first.

        Left-over credits are dropped: whoever still sleeps could get nothing.
        """
        for spot in self._spots.values():
            if credits <= 0:
                break
            if spot.is_asleep and machine.could_claim(spot.op):
                spot.wake()
                credits -= 1

    def wake_all(self) -> None:
        """Everyone asks again."""
        for spot in self._spots.values():
            spot.wake()

    def _wake_next(self) -> None:
        for spot in self._spots.values():
            if spot.is_asleep:
                spot.wake()
                return
