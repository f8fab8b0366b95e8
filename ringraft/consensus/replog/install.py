"""Snapshots on their way: made beside running traffic, sent in chunks, taken and installed.

Making is cooperative: the image is fixed when it begins (records are immutable), encoded and
written in slices between which the loop runs, and synced in a thread. Sending keeps a few chunks
under way and no more, so that a slow follower holds memory for a few chunks only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from threading import Lock

from ringraft.clock import Clock
from ringraft.consensus.base import Replicated
from ringraft.consensus.replog.codec import Chunk, ChunkTaken, encode
from ringraft.consensus.replog.snapshot import Base, Snapshot, SnapshotStore, SnapshotWriter
from ringraft.consensus.replog.syncobj import RaftLog

logger = logging.getLogger(__name__)

SLICE_MS = 8
"""How long making a snapshot holds the loop at a time."""
PAUSE_MS = 4
"""And how long it leaves the loop alone in between."""
CHUNKS_IN_FLIGHT_MAX = 4
PATIENCE_S = 5.0
"""A transfer that does not move for so long is begun again; a follower that has it by then says so."""
TRAILING_SHARE = 4
"""A quarter of the entries between snapshots stays in the log for followers that are a little behind."""


@dataclass(slots=True)
class Sending:
    """One follower's transfer."""

    snapshot: Snapshot
    chunks: Iterator[bytes]
    sent: int = -1
    """Number of the last chunk sent."""
    taken: int = -1
    moved_s: float = 0.0
    """When it began, or the follower last took something."""
    is_complete: bool = False


@dataclass(slots=True)
class Taking:
    """What arrives from the leader."""

    peer_id: str
    base: Base
    writer: SnapshotWriter
    next_number: int = 1


class Images:
    """The snapshots of one node. ``index`` is that of the newest."""

    def __init__(
        self,
        *,
        store: SnapshotStore,
        newest: Snapshot | None,
        log: RaftLog,
        replicated: Replicated,
        entries_between: int,
        clock: Clock,
        syncer: Executor,
        send: Callable[[str, bytes], None],
        on_installed: Callable[[int], None],
    ) -> None:
        self._store = store
        self._newest = newest
        self._log = log
        self._replicated = replicated
        self._entries_between = entries_between
        self._clock = clock
        self._syncer = syncer
        self._send = send
        self._on_installed = on_installed
        self._sending: dict[str, Sending] = {}
        self._taking: Taking | None = None
        # The store lists and removes old files when it commits; one commit at a time.
        self._commit_turn = Lock()

    @property
    def index(self) -> int:
        return self._newest.index if self._newest is not None else 0

    # Making

    @property
    def newest_bytes(self) -> int:
        """How large the newest snapshot's image is."""
        return self._newest.chunks_bytes if self._newest is not None else 0

    def is_due(self) -> bool:
        return self._log.applied_index() - self.index >= self._entries_between

    async def make(self) -> None:
        """Write a snapshot of the present state, then let the log forget what it covers."""
        started_s = self._clock.monotonic_s()
        base = self._log.base_at_applied()
        # The first chunk is asked for before anything can be applied: the image is as of now.
        chunks = self._replicated.snapshot()
        chunk = next(chunks, None)
        writer = self._store.begin(base.index, base.term, base.prev_term, b"", command=base.command)
        try:
            slice_end_s = started_s + SLICE_MS / 1000
            while chunk is not None:
                writer.write(chunk)
                if self._clock.monotonic_s() >= slice_end_s:
                    await asyncio.sleep(PAUSE_MS / 1000)
                    slice_end_s = self._clock.monotonic_s() + SLICE_MS / 1000
                chunk = next(chunks, None)
            snapshot = await asyncio.get_running_loop().run_in_executor(self._syncer, self._commit, writer)
        except asyncio.CancelledError:
            # A thread may be syncing it; an unfinished file is removed at the next start.
            raise
        if snapshot.index > self.index:
            self._newest = snapshot
        self._forget()
        logger.info(
            "made a snapshot action=snapshot_made node=%s index=%d chunks=%d took_ms=%d",
            self._log.node_id, base.index, snapshot.chunks_count,
            round((self._clock.monotonic_s() - started_s) * 1000),
        )  # fmt: skip

    def _commit(self, writer: SnapshotWriter) -> Snapshot:
        with self._commit_turn:
            return writer.commit()

    def _forget(self) -> None:
        keep_from = self.index - self._entries_between // TRAILING_SHARE
        # A follower that is being sent a snapshot goes on from there in the log.
        keep_from = min([keep_from, *(sending.snapshot.index for sending in self._sending.values())])
        if keep_from > self._log.first_index():
            self._log.forget_before(keep_from)

    # Sending, as the leader

    def send_to(self, peer_id: str) -> bool:
        """Begin to send the newest snapshot; False if there is none."""
        if self._newest is None:
            return False
        snapshot = self._newest
        now_s = self._clock.monotonic_s()
        self._sending[peer_id] = sending = Sending(snapshot, snapshot.chunks(), moved_s=now_s)
        logger.info(
            "sending a snapshot action=snapshot_send node=%s to=%s index=%d", self._log.node_id, peer_id, snapshot.index
        )
        self._pump(peer_id, sending)
        return True

    def begin_stalled_again(self) -> None:
        """Begin transfers again that do not move."""
        now_s = self._clock.monotonic_s()
        for peer_id in [peer for peer, sending in self._sending.items() if now_s - sending.moved_s > PATIENCE_S]:
            self.send_to(peer_id)

    def stop_sending(self, peer_id: str | None = None) -> None:
        """Forget a transfer, or all: the link broke, or this node no longer leads."""
        if peer_id is None:
            self._sending.clear()
        else:
            self._sending.pop(peer_id, None)

    def taken(self, peer_id: str, answer: ChunkTaken) -> None:
        """A follower has taken chunks, or stands at the snapshot."""
        sending = self._sending.get(peer_id)
        if sending is None or sending.snapshot.index != answer.end_index:
            return
        if answer.installed:
            del self._sending[peer_id]
            self._log.installed(peer_id, answer.end_index)
            return
        sending.taken = max(sending.taken, answer.number)
        sending.moved_s = self._clock.monotonic_s()
        self._pump(peer_id, sending)

    def _pump(self, peer_id: str, sending: Sending) -> None:
        base = sending.snapshot.base
        while not sending.is_complete and sending.sent - sending.taken < CHUNKS_IN_FLIGHT_MAX:
            sending.sent += 1
            data = base.command if sending.sent == 0 else next(sending.chunks, b"")
            sending.is_complete = not data
            chunk = Chunk(
                self._log.term(), base.index, base.term, base.prev_term, sending.sent, sending.is_complete, data
            )
            self._send(peer_id, encode(chunk))

    # Taking, as a follower

    def take(self, peer_id: str, chunk: Chunk) -> None:
        """Take a chunk from the leader; the last one installs the snapshot, which blocks while it restores."""
        if not self._log.hear_leader(peer_id, chunk.term):
            return
        if chunk.end_index <= self._log.applied_index():
            self._answer(peer_id, chunk, installed=True)
            return
        if chunk.number == 0:
            self._begin_taking(peer_id, chunk)
        else:
            taking = self._taking
            if taking is None or taking.peer_id != peer_id or taking.base.index != chunk.end_index:
                return
            if chunk.number != taking.next_number:
                return
            taking.next_number += 1
            if not chunk.last:
                taking.writer.write(chunk.data)
            else:
                self._taking = None
                self._install(taking)
        self._answer(peer_id, chunk, installed=chunk.last)

    def abandon(self) -> None:
        """Drop what has arrived of an unfinished snapshot."""
        if self._taking is not None:
            self._taking.writer.abort()
            self._taking = None

    def _begin_taking(self, peer_id: str, chunk: Chunk) -> None:
        self.abandon()
        base = Base(chunk.end_index, chunk.end_term, chunk.prev_term, chunk.data, received=True)
        writer = self._store.receive(base.index, base.term, base.prev_term, b"", command=base.command)
        self._taking = Taking(peer_id, base, writer)

    def _install(self, taking: Taking) -> None:
        snapshot = self._commit(taking.writer)
        self._newest = snapshot
        self._log.stand_at(snapshot.base)
        self._replicated.restore(snapshot.chunks())
        self._on_installed(snapshot.index)
        logger.info(
            "installed a snapshot action=snapshot_installed node=%s from=%s index=%d",
            self._log.node_id, taking.peer_id, snapshot.index,
        )  # fmt: skip

    def _answer(self, peer_id: str, chunk: Chunk, *, installed: bool) -> None:
        self._log.promise(peer_id, ChunkTaken(chunk.term, chunk.end_index, chunk.number, installed))
