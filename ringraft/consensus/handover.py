"""Leadership handed to another voter, and an answer whether it arrived."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from ringraft.consensus.base import NotLeader, Unavailable
from ringraft.consensus.replog.syncobj import RaftLog
from ringraft.consensus.roll import Roll

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Transfer:
    """Leadership on its way to ``to``."""

    to: str
    until_s: float
    future: asyncio.Future[str]
    is_asked: bool = False
    """``to`` has all entries and was told to stand for election."""


class Handover:
    """At most one transfer at a time. While one is under way no entry is made, so that ``to`` catches up."""

    def __init__(self, *, log: RaftLog, roll: Roll, patience_s: float) -> None:
        self._log = log
        self._roll = roll
        self._patience_s = patience_s
        self._transfer: Transfer | None = None

    @property
    def is_under_way(self) -> bool:
        return self._transfer is not None

    def until_s(self) -> float | None:
        """When the transfer under way has failed."""
        return self._transfer.until_s if self._transfer is not None else None

    def begin(self, to: str | None, *, now_s: float, deadline_s: float) -> asyncio.Future[str]:
        """Begin a transfer; raises NotLeader, or Unavailable when it cannot even begin."""
        log = self._log
        if not log.is_leader():
            raise NotLeader(log.leader_id())
        if self._transfer is not None:
            raise Unavailable("conflict", f"a transfer to {self._transfer.to} is under way")
        voters = self._roll.voters()
        if to is not None and to not in voters:
            raise Unavailable("conflict", f"{to} is not one of the voters {', '.join(voters)}")
        linked = [voter for voter in voters if self._roll.counts(voter) and log.is_linked(voter)]
        if to is None and linked:
            to = max(linked, key=lambda voter: log.progress[voter].match_index)
        if to is None or to not in linked:
            raise Unavailable(
                "no_quorum", f"{to or 'no other voter'} is not connected or not admitted; leadership stays here"
            )
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._transfer = Transfer(to, now_s + min(deadline_s, self._patience_s), future)
        return future

    def drive(self, now_s: float) -> None:
        """Take the next step of the transfer, or see how it ended."""
        transfer, log = self._transfer, self._log
        if transfer is None:
            return
        leader_id = log.leader_id()
        if not log.is_leader():
            if leader_id == transfer.to:
                self._end(None)
            elif leader_id is not None:
                self._end(Unavailable("conflict", f"{leader_id} leads now, not {transfer.to}"))
        elif transfer.to not in log.progress:
            self._end(Unavailable("conflict", f"{transfer.to} was removed meanwhile; {leader_id} leads"))
        elif not transfer.is_asked and log.progress[transfer.to].match_index == log.last_index():
            transfer.is_asked = True
            log.hand_over(transfer.to)
        if self._transfer is not None and now_s >= transfer.until_s:
            stays = f"{leader_id} leads" if leader_id is not None else "nobody leads yet"
            self._end(Unavailable("conflict", f"{transfer.to} did not take over in time; {stays}"))

    def give_up(self, error: Unavailable) -> None:
        """This node stops."""
        self._end(error)

    def _end(self, error: Unavailable | None) -> None:
        transfer, self._transfer = self._transfer, None
        if transfer is None or transfer.future.done():
            return
        if error is None:
            logger.info("handed over action=transfer node=%s to=%s", self._log.node_id, transfer.to)
            transfer.future.set_result(transfer.to)
        else:
            transfer.future.set_exception(error)
