"""How long the log's steps take, for whoever counts it."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ringraft.clock import Clock


class Timings(Protocol):
    """Who is told how long things took. Called on the event loop: neither blocks nor raises."""

    def synced(self, seconds: float) -> None:
        """One write and sync of the journal."""
        ...

    def committed(self, seconds: float) -> None:
        """One entry, from its append at the leader to the majority's."""
        ...

    def took_apply(self, seconds: float) -> None:
        """Applying one entry."""
        ...


class Meter:
    """Measures on the node's own clock; measures nothing until somebody wants to know."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._timings: Timings | None = None
        self._appended: deque[tuple[int, float]] = deque()
        """(index, when) of the entries appended here as the leader and not committed yet."""

    def tell(self, timings: Timings) -> None:
        """Tell what is measured from now on."""
        self._timings = timings

    def now_s(self) -> float:
        return self._clock.monotonic_s()

    def appended(self, index: int) -> None:
        """An entry is in the leader's log."""
        if self._timings is not None:
            self._appended.append((index, self.now_s()))

    def committed(self, index: int) -> None:
        """Entries up to here are committed."""
        while self._appended and self._appended[0][0] <= index:
            _, since_s = self._appended.popleft()
            if self._timings is not None:
                self._timings.committed(self.now_s() - since_s)

    def follows(self) -> None:
        """This node does not lead: what it had appended may never be committed."""
        self._appended.clear()

    def synced(self, seconds: float) -> None:
        if self._timings is not None:
            self._timings.synced(seconds)

    def applied(self, since_s: float) -> None:
        """An entry was applied, begun at ``since_s``."""
        if self._timings is not None:
            self._timings.took_apply(self.now_s() - since_s)
