"""Reads at a follower: an index asked of the leader, then waited for here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ringraft.consensus.base import NotLeader, Unavailable
from ringraft.consensus.replog.codec import AskIndex, encode
from ringraft.consensus.replog.syncobj import RaftLog


class FollowerReads:
    """Reads that wait for the leader's answer, or for this node to apply as much."""

    def __init__(self, *, log: RaftLog, first_number: int, send: Callable[[str, bytes], None]) -> None:
        """``first_number`` differs from one start to the next, so that an old answer fits no question."""
        self._log = log
        self._send = send
        self._number = first_number
        self._asked: dict[int, asyncio.Future[int]] = {}
        self._waiting: list[tuple[int, asyncio.Future[int]]] = []

    async def barrier(self, *, deadline_s: float) -> int:
        """The index of a commit that the leader began after this call; applied here. NotLeader, Unavailable."""
        leader_id = self._log.leader_id()
        if leader_id is None or not self._log.is_linked(leader_id):
            raise NotLeader(leader_id)
        loop = asyncio.get_running_loop()
        self._number += 1
        number, asked = self._number, loop.create_future()
        self._asked[number] = asked
        try:
            async with asyncio.timeout(deadline_s):
                self._send(leader_id, encode(AskIndex(self._log.term(), number)))
                index: int = await asked
                if self._log.applied_index() < index:
                    applied: asyncio.Future[int] = loop.create_future()
                    self._waiting.append((index, applied))
                    await applied
        except TimeoutError:
            raise Unavailable("no_quorum", "no majority confirmed the read before the deadline; try again") from None
        finally:
            self._asked.pop(number, None)
        return index

    def answered(self, number: int, index: int) -> None:
        """The leader's answer; 0: it could not confirm that it leads."""
        asked = self._asked.pop(number, None)
        if asked is None or asked.done():
            return
        if index:
            asked.set_result(index)
        else:
            asked.set_exception(NotLeader(self._log.leader_id()))

    def leader_changed(self) -> None:
        """Whoever was asked may no longer lead: ask anew."""
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(NotLeader(self._log.leader_id()))

    def applied(self) -> None:
        """Wake those whose index is applied by now."""
        if not self._waiting:
            return
        applied_index = self._log.applied_index()
        waiting, self._waiting = self._waiting, []
        for index, future in waiting:
            if future.done():
                continue
            if index <= applied_index:
                future.set_result(index)
            else:
                self._waiting.append((index, future))

    def give_up(self, error: Unavailable) -> None:
        """This node stops."""
        for future in [*self._asked.values(), *(future for _, future in self._waiting)]:
            if not future.done():
                future.set_exception(error)
        self._asked.clear()
        self._waiting.clear()
