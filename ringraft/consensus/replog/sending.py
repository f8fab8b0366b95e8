"""Snapshots on their way to followers: read in a thread, sent in chunks, a few ahead of the answers.

A slow follower so holds memory for a few chunks only, and a slow disk holds up nobody but the follower
that waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from ringraft.clock import Clock
from ringraft.consensus.replog.codec import Chunk, ChunkTaken, encode
from ringraft.consensus.replog.snapshot import Snapshot
from ringraft.consensus.replog.syncobj import RaftLog

logger = logging.getLogger(__name__)

CHUNKS_IN_FLIGHT_MAX = 4
PATIENCE_S = 5.0
"""A transfer that does not move for so long is begun again; a follower that has it by then says so."""


@dataclass(slots=True, eq=False)
class Sending:
    """One follower's transfer."""

    peer_id: str
    snapshot: Snapshot
    term: int
    moved_s: float
    """When it began, or either side last got on."""
    taken: int = -1
    """Number of the last chunk that the follower has taken."""
    is_reading: bool = False
    """This node's own disk is waited for."""
    room: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Senders:
    """The transfers that a leader has under way, one a follower at most."""

    def __init__(
        self,
        *,
        log: RaftLog,
        clock: Clock,
        thread: Executor,
        send: Callable[[str, bytes], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._log = log
        self._clock = clock
        self._thread = thread
        self._send = send
        self._fail = on_failure
        self._sending: dict[str, Sending] = {}

    @property
    def oldest_index(self) -> int | None:
        """A follower goes on in the log from the snapshot it is sent."""
        return min((sending.snapshot.index for sending in self._sending.values()), default=None)

    def begin(self, peer_id: str, snapshot: Snapshot) -> None:
        """Send it from its beginning, instead of what is under way to this follower."""
        self.stop(peer_id)
        sending = Sending(peer_id, snapshot, self._log.term(), self._clock.monotonic_s())
        self._sending[peer_id] = sending
        sending.task = asyncio.get_running_loop().create_task(self._run(sending))
        logger.info(
            "sending a snapshot action=snapshot_send node=%s to=%s index=%d", self._log.node_id, peer_id, snapshot.index
        )

    def stalled(self) -> list[str]:
        """To whom nothing moves."""
        now_s = self._clock.monotonic_s()
        return [
            peer_id
            for peer_id, sending in self._sending.items()
            if not sending.is_reading and now_s - sending.moved_s > PATIENCE_S
        ]

    def stop(self, peer_id: str | None = None) -> None:
        """Forget a transfer, or all: the link broke, or this node no longer leads."""
        for sending in [s for s in self._sending.values() if peer_id is None or s.peer_id == peer_id]:
            del self._sending[sending.peer_id]
            if sending.task is not None:
                sending.task.cancel()

    def taken(self, peer_id: str, answer: ChunkTaken) -> bool:
        """A follower has taken chunks; True when it stands at the snapshot it was being sent."""
        sending = self._sending.get(peer_id)
        if sending is None or sending.snapshot.index != answer.end_index:
            return False
        if answer.installed:
            self.stop(peer_id)
            return True
        sending.taken = max(sending.taken, answer.number)
        sending.moved_s = self._clock.monotonic_s()
        sending.room.set()
        return False

    async def _run(self, sending: Sending) -> None:
        try:
            await self._send_all(sending)
        except Exception as error:  # noqa: BLE001 - a task's top: told, and the node stops
            self._fail(error)

    async def _send_all(self, sending: Sending) -> None:
        loop, base = asyncio.get_running_loop(), sending.snapshot.base
        chunks = sending.snapshot.chunks()
        number, data, last = 0, base.command, False
        while True:
            while number - sending.taken > CHUNKS_IN_FLIGHT_MAX:
                sending.room.clear()
                await sending.room.wait()
            if not self._log.is_leader() or self._log.term() != sending.term:
                return
            chunk = Chunk(sending.term, base.index, base.term, base.prev_term, number, last, data)
            self._send(sending.peer_id, encode(chunk))
            if last:
                return
            sending.is_reading = True
            data = await loop.run_in_executor(self._thread, next, chunks, b"")
            sending.is_reading = False
            sending.moved_s = self._clock.monotonic_s()
            number, last = number + 1, not data
