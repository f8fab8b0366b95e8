"""The last elections, for people: who won, when, and how long nobody led."""

from __future__ import annotations

from collections import deque
from typing import Any

from ringraft.clock import Clock
from ringraft.state.model import Applied
from ringraft.state.view import rfc3339

KEPT = 16


class Elections:
    """Read from ``LEADER_ELECTED`` events; the gaps are what this node saw."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._past: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._without_since_s: float | None = None

    def leader_is(self, leader_id: str | None) -> None:
        """The consensus names another leader, or none."""
        if leader_id is None:
            if self._without_since_s is None:
                self._without_since_s = self._clock.monotonic_s()
            return
        if self._without_since_s is not None and self._past and self._past[0]["winner"] == leader_id:
            self._past[0]["duration_s"] = round(self._clock.monotonic_s() - self._without_since_s, 3)
        self._without_since_s = None

    def applied(self, applied: Applied) -> None:
        """Called in apply: neither blocks nor raises."""
        for event in applied.events:
            if event.type == "LEADER_ELECTED":
                self._past.appendleft(
                    {
                        "at": rfc3339(event.at_wall_ms),
                        "reason": "leader_elected",
                        "duration_s": None,
                        "winner": event.data["leader_id"],
                    }
                )

    def views(self) -> list[dict[str, Any]]:
        """The newest first."""
        return [dict(past) for past in self._past]
