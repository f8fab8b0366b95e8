"""A leader's snapshot, taken in and installed beside everything else that a follower does.

Chunks are written in a thread, in order, and answered once they are with the operating system. The
last one makes the snapshot durable, which changes nothing yet: the log goes on as it was, takes
entries, answers, even applies, and the state serves stale reads. Beside it the state of the snapshot
is built in slices. When it is whole, log and state change over to it in one step of the event loop:

- until then a death leaves a durable snapshot that the journal does not know. That is a state which
  ``recovery.align`` decides, whatever the journal took meanwhile: its three cases are about any log and
  any snapshot of committed entries, not about the log as it was when the snapshot came;
- a log that has meanwhile applied as far as the snapshot (a new leader still had the entries) has
  nothing to change over to: the snapshot is one of the two newest then, and that is all;
- no other snapshot is taken until this one is done. Whoever sends one stalls, and begins it again.
  The sender of this one is told that it is still being worked on, so that it waits;
- the leader's messages are heard all the while, so this node stands for no election.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from typing import Any

from ringraft.clock import Clock
from ringraft.consensus.base import Rebuilding, Replicated
from ringraft.consensus.replog.codec import Chunk, ChunkTaken
from ringraft.consensus.replog.sending import CHUNKS_IN_FLIGHT_MAX
from ringraft.consensus.replog.snapshot import Snapshot, SnapshotStore, SnapshotWriter
from ringraft.consensus.replog.syncobj import RaftLog

logger = logging.getLogger(__name__)

SLICE_MS = 8
"""How long building the state holds the loop at a time."""
TELL_S = 1.0
"""How often the sender is told that its snapshot is being worked on; well below its patience."""
WAITING_MAX = 2 * CHUNKS_IN_FLIGHT_MAX
"""Chunks that wait to be written. A sender that is further ahead does not keep to its bound: they are dropped."""


class Taking:
    """What arrives at this node. ``on_installed`` is called in the step in which the state changes.

    ``log_kept`` waits until the log, term and vote are durable as far as they are now.
    """

    def __init__(
        self,
        *,
        store: SnapshotStore,
        log: RaftLog,
        replicated: Replicated,
        clock: Clock,
        thread: Executor,
        log_kept: Callable[[], Awaitable[None]],
        on_kept: Callable[[Snapshot], None],
        on_installed: Callable[[int], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._store = store
        self._log = log
        self._replicated = replicated
        self._clock = clock
        self._thread = thread
        self._log_kept = log_kept
        self._on_kept = on_kept
        self._on_installed = on_installed
        self._fail = on_failure
        self._waiting: deque[tuple[str, Chunk]] = deque()
        self._expected: tuple[str, int, int] | None = None
        """(sender, index, number) of the chunk that may come next, a first one aside."""
        self._is_whole = False
        """The last chunk came: nothing else is taken until it is installed."""
        self._writer: SnapshotWriter | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Something was taken that is not dealt with yet."""
        return self._task is not None and not self._task.done()

    def take(self, peer_id: str, chunk: Chunk) -> None:
        """Take a chunk from the leader; it is written, or installed, soon after."""
        if not self._log.hear_leader(peer_id, chunk.term) or self._is_whole:
            return
        if chunk.end_index <= self._log.applied_index():
            self._answer(peer_id, chunk, installed=True)
            return
        if chunk.number == 0:
            self._waiting.clear()
            self._expected = (peer_id, chunk.end_index, 0)
        if self._expected != (peer_id, chunk.end_index, chunk.number) or len(self._waiting) >= WAITING_MAX:
            return
        self._expected = (peer_id, chunk.end_index, chunk.number + 1)
        self._is_whole = chunk.last
        self._waiting.append((peer_id, chunk))
        if not self.is_busy:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Take nothing more. An unfinished file is removed at the next start."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._deal_with(*self._waiting.popleft())
        except Exception as error:  # noqa: BLE001 - a task's top: told, and the node stops
            self._fail(error)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _deal_with(self, peer_id: str, chunk: Chunk) -> None:
        if chunk.number == 0:
            if self._writer is not None:
                await self._in_thread(self._writer.abort)
            self._writer = await self._in_thread(self._receive, chunk)
        elif not chunk.last:
            assert self._writer is not None, "a first chunk came before"
            await self._in_thread(self._writer.write, chunk.data)
        else:
            assert self._writer is not None, "a first chunk came before"
            writer, self._writer = self._writer, None
            # The snapshot may be of a term that this node has only just heard of. A power cut must not
            # leave it beside an older vote: nobody could tell that from two directories mixed.
            await self._log_kept()
            snapshot = await self._in_thread(writer.commit)
            await self._install(peer_id, chunk, snapshot)
            return
        self._answer(peer_id, chunk, installed=False)

    def _receive(self, chunk: Chunk) -> SnapshotWriter:
        return self._store.receive(chunk.end_index, chunk.end_term, chunk.prev_term, b"", command=chunk.data)

    async def _install(self, peer_id: str, chunk: Chunk, snapshot: Snapshot) -> None:
        built = await self._build(peer_id, chunk, snapshot)
        rubble: Iterator[None] = iter(())
        # Nothing is waited for from this look at the log until log and state have both changed over.
        if built is not None and snapshot.index > self._log.applied_index():
            self._log.stand_at(snapshot.base)
            rubble = built.replace()
            self._on_installed(snapshot.index)
            logger.info(
                "installed a snapshot action=snapshot_installed node=%s from=%s index=%d",
                self._log.node_id, peer_id, snapshot.index,
            )  # fmt: skip
        self._on_kept(snapshot)
        self._is_whole = False
        self._answer(peer_id, chunk, installed=True)
        await self._in_slices(rubble)

    async def _build(self, peer_id: str, chunk: Chunk, snapshot: Snapshot) -> Rebuilding | None:
        """The snapshot's state; None when the log came as far by itself meanwhile."""
        building, chunks = self._replicated.rebuild(), snapshot.chunks()
        told_s = self._clock.monotonic_s()
        while data := await self._in_thread(next, chunks, b""):
            await self._in_slices(building.take(data))
            if self._log.applied_index() >= snapshot.index:
                return None
            if self._clock.monotonic_s() - told_s >= TELL_S:
                told_s = self._clock.monotonic_s()
                self._answer(peer_id, chunk, installed=False)
        building.end()
        return building

    async def _in_slices(self, steps: Iterator[None]) -> None:
        """Take small steps, and let everything else run now and then."""
        until_s = self._clock.monotonic_s() + SLICE_MS / 1000
        for _ in steps:
            if self._clock.monotonic_s() >= until_s:
                await asyncio.sleep(0)
                until_s = self._clock.monotonic_s() + SLICE_MS / 1000

    def _answer(self, peer_id: str, chunk: Chunk, *, installed: bool) -> None:
        self._log.promise(peer_id, ChunkTaken(chunk.term, chunk.end_index, chunk.number, installed))
