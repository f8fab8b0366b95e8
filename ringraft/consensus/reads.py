"""Linearizable reads without an entry: the leader proves that it still leads, once for all reads that wait.

The leader notes its commit index and begins a round: a heartbeat with a number, which followers of this
term repeat in their answers. When a majority has answered a round begun after a read came, no other
leader can have committed anything before the round began, so a state that has applied the index noted
then is fresh enough. That holds once the leader has applied the first entry of its term: before, its
commit index may lag behind what earlier leaders committed.

A follower asks the leader for such an index, one question at a time for all reads that wait here. A
question or an answer that was lost is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ringraft.clock import Clock
from ringraft.consensus.base import NotLeader, Unavailable
from ringraft.consensus.replog.codec import AskIndex, ReadIndex, encode
from ringraft.consensus.replog.syncobj import RaftLog

WAITING_MAX = 65_536
"""Reads that wait here for the leader to be confirmed; more means that it cannot be."""

Told = Callable[[int | Exception], None]
"""Told the index that the read must have applied, or why there is none."""


@dataclass(slots=True)
class Question:
    """What is being confirmed: as the leader a round, as a follower a question to the leader."""

    number: int
    index: int
    """As the leader: the commit index when the round began."""
    asked_s: float
    reads: list[Told]


class Reads:
    """Reads that wait for a confirmation, and those that then wait for this node to apply as much."""

    def __init__(
        self, *, log: RaftLog, clock: Clock, first_number: int, patience_s: float, send: Callable[[str, bytes], None]
    ) -> None:
        """``first_number`` differs from one start to the next, so that an old answer fits no question.

        A follower's question without an answer for ``patience_s`` is asked again.
        """
        self._log = log
        self._clock = clock
        self._number = first_number
        self._patience_s = patience_s
        self._send = send
        self._waiting: list[Told] = []
        self._question: Question | None = None
        self._applying: list[tuple[int, asyncio.Future[int]]] = []

    async def barrier(self, *, deadline_s: float) -> int:
        """The index that a read begun now must have applied; applied here. Raises NotLeader, Unavailable."""
        log = self._log
        leader_id = log.leader_id()
        if leader_id is None or not (log.is_leader() or log.is_linked(leader_id)):
            raise NotLeader(leader_id)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def told(result: int | Exception) -> None:
            if future.done():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            elif result <= log.applied_index():
                future.set_result(result)
            else:
                self._applying.append((result, future))

        self._add(told)
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            raise Unavailable("no_quorum", "no majority confirmed the read before the deadline; try again") from None

    def asked_by(self, peer_id: str, request: int) -> None:
        """A follower's reads: answer with the index, or with 0 when this node cannot confirm that it leads."""

        def told(result: int | Exception) -> None:
            index = 0 if isinstance(result, Exception) else result
            self._send(peer_id, encode(ReadIndex(self._log.term(), request, index)))

        if self._log.is_leader():
            self._add(told)
        else:
            told(NotLeader(self._log.leader_id()))

    def answered(self, number: int, index: int) -> None:
        """The leader's answer; 0: it could not confirm that it leads."""
        question = self._question
        if question is None or question.number != number or self._log.is_leader():
            return
        self._question = None
        _tell(question.reads, index or NotLeader(self._log.leader_id()))

    def drive(self) -> None:
        """See what is confirmed and applied by now, and begin the next question if somebody waits."""
        log, question = self._log, self._question
        if question is not None and log.is_leader() and log.confirmed_round() >= question.number:
            self._question = None
            _tell(question.reads, question.index)
        elif question is not None and not log.is_leader():
            if self._clock.monotonic_s() - question.asked_s > self._patience_s:
                self._ask_again()
        if self._waiting and self._question is None:
            self._begin()
        if self._applying:
            applied, self._applying = self._applying, []
            for index, future in applied:
                if index > log.applied_index() and not future.done():
                    self._applying.append((index, future))
                elif not future.done():
                    future.set_result(index)

    def leader_changed(self) -> None:
        """Whoever was asked may no longer lead: ask anew, and let followers do the same."""
        self._ask_again()

    def link_changed(self, peer_id: str) -> None:
        """A question that was on its way to the leader may be lost."""
        if peer_id == self._log.leader_id():
            self._ask_again()

    def give_up(self, error: Unavailable) -> None:
        """This node stops."""
        self._ask_again()
        waiting, self._waiting = self._waiting, []
        _tell(waiting, error)
        for _, future in self._applying:
            if not future.done():
                future.set_exception(error)
        self._applying.clear()

    def _add(self, told: Told) -> None:
        if len(self._waiting) >= WAITING_MAX:
            told(Unavailable("no_quorum", f"{WAITING_MAX} reads wait already and the leader is not confirmed"))
        else:
            self._waiting.append(told)

    def _ask_again(self) -> None:
        question, self._question = self._question, None
        if question is not None:
            self._waiting = [*question.reads, *self._waiting]

    def _begin(self) -> None:
        log, now_s = self._log, self._clock.monotonic_s()
        if log.is_leader():
            if log.term_begun():
                reads, self._waiting = self._waiting, []
                index = log.commit_index()
                self._question = Question(log.begin_round(), index, now_s, reads)
                if log.confirmed_round() >= self._question.number:
                    # The only voter is a majority by itself.
                    self._question = None
                    _tell(reads, index)
            return
        leader_id = log.leader_id()
        if leader_id is not None and log.is_linked(leader_id):
            reads, self._waiting = self._waiting, []
            self._number += 1
            self._question = Question(self._number, 0, now_s, reads)
            self._send(leader_id, encode(AskIndex(log.term(), self._number)))


def _tell(reads: list[Told], result: int | Exception) -> None:
    for told in reads:
        told(result)
