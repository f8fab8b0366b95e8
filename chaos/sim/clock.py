"""The clocks of one machine: a monotonic one with a rate and a beginning of its own, and a wall clock that jumps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaos.sim.loop import EventQueue, NodeLoop

WALL_EPOCH_MS = 1_700_000_000_000


class NodeClock:
    """``Clock`` on true time. ``loop`` is the process that reads it, whose blocking it counts."""

    def __init__(
        self, queue: EventQueue, *, rate: float = 1.0, began_s: float = 1000.0, wall_ahead_ms: int = 0
    ) -> None:
        self._queue = queue
        self._rate = rate
        self._true_s = queue.now_s
        self._local_s = began_s
        self.wall_ahead_ms = wall_ahead_ms
        """How far the wall clock is off; jumps are added to it."""
        self.loop: NodeLoop | None = None

    @property
    def rate(self) -> float:
        """Seconds of this machine in a true second."""
        return self._rate

    def set_rate(self, rate: float) -> None:
        """Run at another rate from now on; time neither jumps nor goes back."""
        self._local_s = self._local(self._queue.now_s)
        self._true_s = self._queue.now_s
        self._rate = rate
        if self.loop is not None:
            self._queue.shift(self.loop)

    def monotonic_s(self) -> float:
        local_s = self._local_s + (self._queue.now_s - self._true_s) * self._rate
        return local_s if self.loop is None else local_s + self.loop.ahead_s

    def monotonic_ms(self) -> int:
        return int(self.monotonic_s() * 1000)

    def wall_ms(self) -> int:
        return WALL_EPOCH_MS + int(self._local(self._queue.now_s) * 1000) + self.wall_ahead_ms

    def true_s(self, local_s: float) -> float:
        """When this machine will read ``local_s``."""
        return self._true_s + (local_s - self._local_s) / self._rate

    def _local(self, true_s: float) -> float:
        return self._local_s + (true_s - self._true_s) * self._rate
