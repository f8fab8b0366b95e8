"""The last elections, for people: who won, when, and how long nobody led."""

from __future__ import annotations

from collections import deque
from typing import Any

from ringraft.clock import Clock
from ringraft.state.model import Applied
from ringraft.state.view import rfc3339

KEPT = 16


class Elections:
    """Read from ``LEADER_ELECTED`` events; reasons and gaps are what this node saw of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._past: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._leader_id: str | None = None
        self._without_since_s: float | None = None
        self._seen: tuple[str, str, float] | None = None
        """(winner, reason, seconds) of a change whose event may still come."""

    def leader_is(self, leader_id: str | None) -> None:
        """The consensus names another leader, or none."""
        before, self._leader_id = self._leader_id, leader_id
        if leader_id is None:
            if self._without_since_s is None:
                self._without_since_s = self._clock.monotonic_s()
            return
        if self._without_since_s is not None:
            gap_s = self._clock.monotonic_s() - self._without_since_s
            self._seen = (leader_id, "no_leader", round(gap_s, 3))
        elif before is not None and before != leader_id:
            self._seen = (leader_id, "handed_over", 0.0)
        self._without_since_s = None
        self._match()

    def applied(self, applied: Applied) -> None:
        """Called in apply: neither blocks nor raises."""
        for event in applied.events:
            if event.type == "LEADER_ELECTED":
                winner = event.data["leader_id"]
                at = rfc3339(event.at_wall_ms)
                self._past.appendleft({"at": at, "reason": None, "duration_s": None, "winner": winner})
                self._match()

    def views(self) -> list[dict[str, Any]]:
        """The newest first."""
        return [dict(past) for past in self._past]

    def _match(self) -> None:
        """Event and change of leader arrive in either order."""
        if self._seen is None or not self._past:
            return
        newest, (winner, reason, duration_s) = self._past[0], self._seen
        if newest["winner"] == winner and newest["reason"] is None:
            newest["reason"], newest["duration_s"] = reason, duration_s
            self._seen = None
