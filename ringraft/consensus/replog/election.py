"""When a node may stand for election, and when it has a leader that it will not desert.

- *Pre-vote* (Raft dissertation, 9.6). Before it raises its term, a node asks whether a majority would
  vote for it. So a node that was cut off comes back in the term it left with, and deposes nobody.
- *Stickiness* (4.2.3). Who has heard a live leader within the least election time-out grants no
  pre-vote and drops requests for votes without taking up their term. A candidate that the leader
  itself has asked to take over says so, and is let through.
- *A hint.* Who saw the leader's own port refuse a connection counts it as gone. That only opens the way
  to an election: votes still elect.

A pre-vote promises nothing and changes nothing, so it waits for no sync. One that a live leader stands
against is kept, and answered when the leader is found gone or has not been heard for long enough: the
two of a majority hardly ever notice at the same instant, and the candidate would wait a whole time-out.
"""

from __future__ import annotations

import math
from typing import Protocol

from ringraft.clock import Clock
from ringraft.consensus.replog.codec import PreVote, PreVoted, encode
from ringraft.consensus.replog.filter import quorum_size
from ringraft.consensus.replog.library import Electorate, LogHost


class Candidate(Protocol):
    """The log of the node whose elections these are."""

    node_id: str

    def term(self) -> int: ...

    def last_entry(self) -> tuple[int, int]:
        """(term, index)"""
        ...

    def leader_id(self) -> str | None: ...

    def is_leader(self) -> bool: ...

    def is_vote_kept(self) -> bool: ...

    def has_live_leader(self) -> bool: ...

    def stand_now(self) -> None: ...

    def step_down(self, term: int) -> None: ...


class Election:
    """One node's part in elections, but for the vote itself."""

    def __init__(self, *, log: Candidate, electorate: Electorate, host: LogHost, clock: Clock, live_s: float) -> None:
        """``live_s``: a leader not heard for so long may be deserted."""
        self.heard_s: float | None = None
        """When a leader was last heard."""
        self._log = log
        self._electorate = electorate
        self._host = host
        self._clock = clock
        self._live_s = live_s
        self._gone: str | None = None
        self._refused: dict[str, PreVote] = {}
        """The newest pre-vote of each peer that only a live leader stood against."""
        self._term = 0
        """The term for which pre-votes are asked."""
        self._granted: set[str] = set()
        self._may_stand_in = 0
        self._asked_to_stand_in = 0
        """The term in which a leader asked this node to take over."""

    # The leader

    def hear(self) -> None:
        """The leader was heard: nobody has reason to stand."""
        self.heard_s = self._clock.monotonic_s()
        self._gone = None
        self._term = 0
        # Who was asked to take over goes on, whatever the old leader still says.
        self._may_stand_in = self._asked_to_stand_in
        self._refused.clear()

    def gone(self, leader_id: str) -> None:
        """The leader's port refused a connection of this node: its process is gone."""
        self._gone = leader_id

    def is_live(self, leader_id: str | None) -> bool:
        """Whether ``leader_id`` is a leader not to be deserted."""
        return leader_id not in (None, self._gone) and self._clock.monotonic_s() < self._live_until_s()

    def next_deadline_s(self) -> float:
        """When a pre-vote that was refused may be granted."""
        return self._live_until_s() if self._refused else math.inf

    def _live_until_s(self) -> float:
        return 0.0 if self.heard_s is None else self.heard_s + self._live_s

    # Standing

    def may_stand(self, term: int) -> bool:
        """A majority would vote for this node in ``term``, or the leader asked it to take over."""
        return term == self._may_stand_in

    def take_over(self, term: int) -> None:
        """The leader asks this node to stand in ``term``."""
        self._may_stand_in = self._asked_to_stand_in = term

    def is_asked_to(self, term: int) -> bool:
        """Whether the leader asked this node to stand in ``term``."""
        return term == self._asked_to_stand_in

    def ask(self) -> None:
        """The election time-out has passed: would a majority vote for this node?"""
        log = self._log
        # What was granted or asked before is over: this node has waited since, or was linked to nobody.
        self._may_stand_in = self._asked_to_stand_in = 0
        self._term, self._granted = log.term() + 1, set()
        last_term, last_index = log.last_entry()
        frame = encode(PreVote(self._term, last_index, last_term))
        for voter in self._electorate.voters():
            if voter != log.node_id:
                self._host.send(voter, frame)
        self._count()

    def answered(self, peer_id: str, answer: PreVoted) -> None:
        """A voter says whether it would vote for this node."""
        log = self._log
        if answer.term > log.term():
            # It is behind the others, who may need its log: it stands in a newer term the next time.
            log.step_down(answer.term)
        elif answer.granted and answer.asked_term == self._term == log.term() + 1 and not log.is_leader():
            if self._electorate.counts(peer_id) and not log.has_live_leader():
                self._granted.add(peer_id)
                self._count()

    def _count(self) -> None:
        if len(self._granted) + 1 >= quorum_size(self._electorate.voters()):
            self._may_stand_in = self._term
            self._log.stand_now()

    # Being asked

    def asked(self, peer_id: str, asked: PreVote) -> None:
        """A peer asks whether it would get this node's vote."""
        log = self._log
        granted = asked.term > log.term() and (asked.last_term, asked.last_index) >= log.last_entry()
        # A vote that waits for this node's disk may yet elect: nobody is told to go on to the next term.
        granted = granted and log.is_vote_kept()
        if granted and log.has_live_leader():
            granted = False
            if not log.is_leader():
                self._refused[peer_id] = asked
        self._host.send(peer_id, encode(PreVoted(log.term(), asked.term, granted)))

    def answer_refused(self) -> None:
        """Answer the refused anew once the leader that stood against them is not live any more."""
        if not self._refused or self._log.has_live_leader():
            return
        refused = sorted(self._refused.items())
        self._refused.clear()
        for peer_id, asked in refused:
            self.asked(peer_id, asked)
