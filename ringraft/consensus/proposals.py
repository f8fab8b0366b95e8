"""Proposals on their way into the log: group commit, deadlines, and one ending for each.

A proposal waits until an entry is made, then travels in it with all others that waited (group
commit). It ends exactly once: with an outcome, as not applied, or as unknown. Until it is in an
entry it can only end as applied-never; from then on only what is applied at that entry's index
tells, and at the deadline without that, nobody knows.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from ringraft.consensus.base import Indeterminate, NotLeader, Unavailable
from ringraft.state.commands import weight
from ringraft.state.model import Command, Entry, Outcome

WEIGHT_MAX = 1000
"""Items that the commands of one entry may touch together. An entry is applied in one piece, so that nobody ever
reads half of one, and at 25 to 40 µs an item with a million of them that piece stays below 50 ms."""
WAITING_MAX = 65_536
"""Proposals that wait for an entry; more means that nothing is being committed."""


@dataclass(slots=True, eq=False)
class Proposal:
    """One command on its way."""

    command: Command
    future: asyncio.Future[Outcome] | None
    """None once it has ended."""
    deadline_s: float
    index: int = 0
    """The entry it travels in; 0 while it waits."""

    def end(self, result: Outcome) -> None:
        future, self.future = self.future, None
        if future is not None and not future.done():
            future.set_result(result)

    def fail(self, error: Exception) -> None:
        future, self.future = self.future, None
        if future is not None and not future.done():
            future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Made:
    """An entry this node made, until something is applied at its index."""

    term: int
    entry: Entry
    proposals: tuple[Proposal, ...]
    """In the order of ``entry.commands``, after the leader's own."""
    own_commands: int
    """How many of the entry's first commands nobody proposed: the Begin of a term."""


class Proposals:
    """All proposals of one node that have not ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Proposal] = deque()
        self._taken: list[Proposal] = []
        """Neither waiting nor in an entry: between ``take`` and ``made``."""
        # More than one at an index only when this node led, lost its entry, and leads again.
        self._made: dict[int, list[Made]] = {}
        self._deadlines: list[tuple[float, int, Proposal]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, command: Command, deadline_s: float) -> asyncio.Future[Outcome]:
        """Let it wait for the next entry; ``deadline_s`` is on the monotonic clock."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        proposal = Proposal(command, future, deadline_s)
        if len(self._waiting) >= WAITING_MAX:
            proposal.fail(
                Unavailable("no_quorum", f"{WAITING_MAX} proposals wait already and none is committed; try again later")
            )
            return future
        self._waiting.append(proposal)
        heapq.heappush(self._deadlines, (deadline_s, next(self._order), proposal))
        return future

    def take(self, count_max: int) -> list[Proposal]:
        """The oldest that still wait, in order, up to ``WEIGHT_MAX``, but one at least; those whose caller has
        gone are dropped."""
        taken: list[Proposal] = []
        room = WEIGHT_MAX
        while self._waiting and len(taken) < count_max:
            proposal = self._waiting[0]
            if proposal.future is not None and not proposal.future.done():
                room -= weight(proposal.command.op)
                if room < 0 and taken:
                    break
                taken.append(proposal)
            self._waiting.popleft()
        self._taken = taken
        return taken

    def put_back(self, proposals: Iterable[Proposal]) -> None:
        """They did not fit; they are the oldest again."""
        self._waiting.extendleft(reversed(list(proposals)))
        self._taken = []

    def made(self, index: int, made: Made) -> None:
        """The entry is in this node's log: from now on its fate is the log's."""
        self._made.setdefault(index, []).append(made)
        self._taken = []
        for proposal in made.proposals:
            proposal.index = index

    def entry_at(self, index: int, term: int) -> Entry | None:
        """The entry made here, if it is the one that was committed there: it need not be decoded."""
        for made in self._made.get(index, ()):
            if made.term == term:
                return made.entry
        return None

    def applied(self, index: int, term: int, outcomes: tuple[Outcome, ...], leader_id: str | None) -> None:
        """Something was applied at ``index``: whoever travelled there has ended, one way or the other."""
        for made in self._made.pop(index, ()):
            if made.term == term:
                _hand_out(made, outcomes)
            else:
                for proposal in made.proposals:
                    proposal.fail(NotLeader(leader_id))

    def skipped_to(self, index: int) -> None:
        """The state jumped to ``index``: what was applied on the way is not known here."""
        for passed in [at for at in self._made if at <= index]:
            for made in self._made.pop(passed):
                _end_unknown(made)

    def refuse_waiting(self, error: NotLeader | Unavailable) -> None:
        """Nothing that waits will be proposed here."""
        waiting, self._waiting = self._waiting, deque()
        for proposal in waiting:
            proposal.fail(error)

    def give_up(self) -> None:
        """This node stops: nobody will tell how those on the way ended."""
        self.refuse_waiting(Unavailable("shutting_down", "this node stops; nothing was proposed"))
        for made in itertools.chain.from_iterable(self._made.values()):
            _end_unknown(made)
        for proposal in self._taken:
            proposal.fail(_unknown(proposal))
        self._taken = []
        self._made.clear()
        self._deadlines.clear()

    def next_deadline_s(self) -> float | None:
        """The earliest deadline of a proposal that has not ended."""
        while self._deadlines and self._deadlines[0][2].future is None:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self, now_s: float) -> None:
        """End those whose deadline has come."""
        while self._deadlines and (self._deadlines[0][0] <= now_s or self._deadlines[0][2].future is None):
            _, _, proposal = heapq.heappop(self._deadlines)
            if proposal.index:
                proposal.fail(_unknown(proposal))
            else:
                proposal.fail(
                    Unavailable("no_quorum", "no majority took it before the deadline; it was not proposed, try again")
                )


def _hand_out(made: Made, outcomes: tuple[Outcome, ...]) -> None:
    for proposal, outcome in zip(made.proposals, outcomes[made.own_commands :], strict=True):
        proposal.end(outcome)


def _end_unknown(made: Made) -> None:
    for proposal in made.proposals:
        proposal.fail(_unknown(proposal))


def _unknown(proposal: Proposal) -> Exception:
    return Indeterminate(
        f"entry {proposal.index} holds it, and whether that was committed is not known; repeat with the same key"
    )
