"""How fast work moves: events of the last minute, counted by the second."""

from __future__ import annotations

from collections import Counter, deque
from operator import attrgetter

from ringraft.clock import Clock
from ringraft.state.model import Applied

WINDOW_S = 60
TYPE = attrgetter("type")

COUNTED = {
    "WORK_ADDED": "added",
    "WORK_CLAIMED": "claimed",
    "WORK_COMPLETED": "completed",
    "WORK_FAILED": "failed",
    "WORK_EXPIRED": "expired",
}


class Rates:
    """Counts what entries did here; ``WINDOW_S`` counters at most."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self._seconds: deque[tuple[int, Counter[str]]] = deque(maxlen=WINDOW_S)

    def applied(self, applied: Applied) -> None:
        """Called in apply: neither blocks nor raises."""
        counted = Counter(map(TYPE, applied.events)) if applied.events else {}
        if counted.keys().isdisjoint(COUNTED):
            return
        second = int(self._clock.monotonic_s())
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append((second, Counter()))
        for kind, count in counted.items():
            if kind in COUNTED:
                self._seconds[-1][1][COUNTED[kind]] += count

    def per_minute(self) -> dict[str, float]:
        """``{added_per_minute, …}`` over the last minute, or since the start when that is less."""
        now_s = self._clock.monotonic_s()
        total: Counter[str] = Counter()
        for second, counts in self._seconds:
            if second > now_s - WINDOW_S:
                total += counts
        span_s = min(WINDOW_S, max(1.0, now_s - self._started_s))
        return {f"{name}_per_minute": round(total[name] * 60 / span_s, 2) for name in COUNTED.values()}
