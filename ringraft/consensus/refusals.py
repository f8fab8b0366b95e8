"""The hint that a leader's process is gone: a redial of its port was refused.

Only a hint, and only votes elect: a wrong one costs an election at most. It counts once for each
leadership, and still when another's request for a vote was faster than the refusal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

HINT_DELAY_MS = 10
"""A follower whose redial of the leader is refused stands for election this much later …"""
HINT_STAGGER_MS = 40
"""… and each further voter in the order of names this much later still, so that votes do not split."""


class Refusals:
    """What refused redials mean to one node."""

    def __init__(self, node_id: str, voters: Callable[[], Sequence[str]], rng: random.Random) -> None:
        self._node_id = node_id
        self._voters = voters
        self._rng = rng
        self._leader_id: str | None = None
        """Who led last."""
        self._is_taken = False

    def follow(self, leader_id: str | None) -> None:
        """The leadership changed; None: nobody leads, and the last leader is still the one to be gone."""
        if leader_id is not None:
            self._leader_id, self._is_taken = leader_id, False

    def delay_s(self, peer_id: str) -> float | None:
        """In how many seconds to stand for election, since ``peer_id`` refused a redial; None: it means nothing."""
        voters = [voter for voter in self._voters() if voter != peer_id]
        if peer_id != self._leader_id or self._is_taken or self._node_id not in voters:
            return None
        self._is_taken = True
        rank = voters.index(self._node_id)
        return (HINT_DELAY_MS + rank * HINT_STAGGER_MS + self._rng.uniform(0, HINT_DELAY_MS)) / 1000
