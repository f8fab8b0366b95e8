"""The newest events of the log, kept in memory for ``/events``.

Events are derived from applied entries, so every node has the same ones with the same numbers. The
ring holds the newest ``size``; a reader that asks for older ones is told that it lost some.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from ringraft.state.model import EVENTS_PER_ENTRY, Event


@dataclass(frozen=True, slots=True)
class EventPage:
    """What followed a sequence number. ``next`` is the number to ask with next time."""

    events: tuple[Event, ...]
    next: int
    lost: bool
    """Events between the number asked with and the first one here are gone from this node."""


class EventRing:
    """The newest ``size`` events, by sequence number."""

    def __init__(self, size: int) -> None:
        assert size > 0
        self._size = size
        # A list with its oldest part cut off now and then: appends and binary search stay cheap,
        # and cutting costs O(1) an event.
        self._events: list[Event] = []
        self._lost_through = 0
        self._changed: asyncio.Future[None] | None = None

    @property
    def newest_seq(self) -> int:
        """The number of the newest event, or of the newest lost one when none is held."""
        return self._events[-1].seq if self._events else self._lost_through

    @property
    def lost_through(self) -> int:
        """Events up to this number are gone; 0 when none is."""
        return self._lost_through

    def __len__(self) -> int:
        return min(len(self._events), self._size)

    def append(self, events: Sequence[Event]) -> None:
        """Take the events of one applied entry, in order; neither blocks nor raises."""
        if not events:
            return
        self._events.extend(events)
        if len(self._events) > 2 * self._size:
            cut = len(self._events) - self._size
            self._lost_through = self._events[cut - 1].seq
            del self._events[:cut]
        self._wake()

    def restart_after(self, index: int) -> None:
        """Forget everything: the state was replaced by an image as of ``index``."""
        self._events.clear()
        self._lost_through = (index + 1) * EVENTS_PER_ENTRY - 1
        self._wake()

    def since(self, seq: int, limit: int) -> EventPage:
        """At most ``limit`` events with a number above ``seq``, oldest first."""
        start = bisect.bisect_right(self._events, seq, key=lambda event: event.seq)
        # What lies beyond ``size`` is as good as cut: how much a reader gets must not depend on when.
        oldest = max(0, len(self._events) - self._size)
        lost = seq < (self._events[oldest - 1].seq if oldest else self._lost_through)
        page = tuple(self._events[max(start, oldest) : max(start, oldest) + limit])
        following = page[-1].seq if page else max(seq, self._lost_through)
        return EventPage(events=page, next=following, lost=lost)

    async def wait(self, seq: int, wait_s: float) -> bool:
        """Whether there is an event above ``seq``, waiting at most ``wait_s`` seconds for one."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while self.newest_seq <= seq:
            remaining = deadline - loop.time()
            if remaining <= 0:
                return False
            if self._changed is None:
                self._changed = loop.create_future()
            await asyncio.wait({self._changed}, timeout=remaining)
        return True

    def _wake(self) -> None:
        if self._changed is not None:
            changed, self._changed = self._changed, None
            if not changed.done():
                changed.set_result(None)
