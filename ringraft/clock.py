"""Time as something that is passed in, so that a test can turn it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two kinds of time: one that only moves forward, and one that people read."""

    def monotonic_s(self) -> float:
        """Seconds since an unspecified start; never goes back. Time-outs and log time use it."""
        ...

    def monotonic_ms(self) -> int:
        """The same in whole milliseconds."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC; may jump, so nothing ends because of it."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class TurnableClock:
    """A clock that stands still until somebody turns it."""

    def __init__(self, *, monotonic_s: float = 0.0, wall_ms: int = 1_700_000_000_000) -> None:
        self._monotonic_s = monotonic_s
        self._wall_ms = wall_ms

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def monotonic_ms(self) -> int:
        return round(self._monotonic_s * 1000)

    def wall_ms(self) -> int:
        return self._wall_ms

    def advance_ms(self, ms: float) -> None:
        """Let ``ms`` milliseconds pass on both clocks."""
        assert ms >= 0, f"time does not go back: {ms} ms"
        self._monotonic_s += ms / 1000
        self._wall_ms += round(ms)

    def set_wall_ms(self, wall_ms: int) -> None:
        """Let the wall clock jump, forward or back."""
        self._wall_ms = wall_ms
