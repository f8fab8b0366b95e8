"""Snapshots on their way: made beside running traffic, sent in chunks, taken and installed.

Making is cooperative: the image is fixed when it begins, encoded in slices between which the loop
runs, and written and synced in a thread. ``sending.py`` and ``taking.py`` are the two ends of a transfer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from ringraft.clock import Clock
from ringraft.consensus.base import Replicated
from ringraft.consensus.replog.codec import Chunk, ChunkTaken
from ringraft.consensus.replog.filter import trailing
from ringraft.consensus.replog.sending import Senders
from ringraft.consensus.replog.snapshot import Snapshot, SnapshotStore
from ringraft.consensus.replog.syncobj import RaftLog
from ringraft.consensus.replog.taking import Taking

logger = logging.getLogger(__name__)

SLICE_MS = 4
"""After making chunks for so long (one of 256 KiB takes about as long) …"""
PAUSE_MS = 4
"""… the loop is left alone for so long."""
LOG_BYTES_MAX = 64 * 1024 * 1024
"""A log this long is worth a snapshot, however few entries it has: it is held in memory, and replayed at start."""
IMAGE_SHARE = 8
"""A snapshot is made when the log has grown by an eighth of the image at least: an image of a million items takes
5 s of CPU. Two snapshots and the logs behind both so stay below 2.5 images on disk."""
RELEASE_BYTES = 4 * 1024 * 1024
TRAILING_SHARE = 4
"""A quarter of the entries between snapshots stays in the log for followers that are a little behind …"""
TRAILING_BYTES_MAX = 16 * 1024 * 1024
"""… or what makes so many bytes."""


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
        thread: Executor,
        send: Callable[[str, bytes], None],
        on_installed: Callable[[int], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """``thread`` does all that touches the disk, one thing after the other."""
        self._store = store
        self._newest = newest
        self._log = log
        self._replicated = replicated
        self._entries_between = entries_between
        self._clock = clock
        self._log_bytes_before = log.log_bytes()
        """The log's size on disk after the newest snapshot, or when it was opened."""
        self._thread = thread
        self._senders = Senders(log=log, clock=clock, thread=thread, send=send, on_failure=on_failure)
        self._taking = Taking(
            store=store,
            log=log,
            replicated=replicated,
            clock=clock,
            thread=thread,
            log_kept=self._log_kept,
            on_kept=self._kept,
            on_installed=on_installed,
            on_failure=on_failure,
        )

    @property
    def index(self) -> int:
        return self._newest.index if self._newest is not None else 0

    def halt(self) -> None:
        """Send and take nothing more; whoever makes a snapshot is to be cancelled by its owner."""
        self._senders.stop()
        self._taking.stop()

    # Making

    @property
    def newest_bytes(self) -> int:
        """How large the newest snapshot's image is."""
        return self._newest.chunks_bytes if self._newest is not None else 0

    def is_due(self) -> bool:
        """The log behind the newest snapshot is long, in entries or in bytes, and worth an image of this size."""
        size = self._log.log_bytes()
        # Old segments are removed a while after the log was told to forget them.
        self._log_bytes_before = min(self._log_bytes_before, size)
        grown = size - self._log_bytes_before
        if grown * IMAGE_SHARE < self.newest_bytes:
            return False
        return grown >= LOG_BYTES_MAX or self._log.applied_index() - self.index >= self._entries_between

    async def make(self) -> None:
        """Write a snapshot of the present state, then let the log forget what it covers."""
        started_s = self._clock.monotonic_s()
        base = self._log.base_at_applied()
        # The first chunk is asked for before anything else can be applied: the image is as of now.
        chunks = self._replicated.snapshot()
        chunk = next(chunks, None)
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._thread)
        begin = partial(self._store.begin, base.index, base.term, base.prev_term, b"", command=base.command)
        # When this task is cancelled the process ends: an unfinished file is removed at the next start.
        writer = await in_thread(begin)
        slice_end_s = started_s + SLICE_MS / 1000
        while chunk is not None:
            await in_thread(writer.write, chunk)
            if self._clock.monotonic_s() >= slice_end_s:
                await asyncio.sleep(PAUSE_MS / 1000)
                slice_end_s = self._clock.monotonic_s() + SLICE_MS / 1000
            if self.index >= base.index:
                # A leader's snapshot was installed meanwhile, and the state that this one is of is gone.
                await in_thread(writer.abort)
                return
            chunk = next(chunks, None)
        await self._log_kept()
        snapshot = await in_thread(writer.commit)
        self._kept(snapshot)
        await self._forget()
        logger.info(
            "made a snapshot action=snapshot_made node=%s index=%d chunks=%d took_ms=%d",
            self._log.node_id, base.index, snapshot.chunks_count,
            round((self._clock.monotonic_s() - started_s) * 1000),
        )  # fmt: skip

    async def _log_kept(self) -> None:
        """Wait until this node's own log is durable as far as it is now.

        The state may have applied entries that a majority holds and this disk does not yet. A snapshot
        of them before the log would be found, after a power cut, beside entries that it contradicts.
        """
        kept = asyncio.get_running_loop().create_future()
        self._log.when_kept(lambda: None if kept.done() else kept.set_result(None))
        await kept

    async def _forget(self) -> None:
        oldest = max(self._log.first_index(), self.index - self._entries_between // TRAILING_SHARE)
        keep_from = trailing(self._log.entries(oldest, self.index - oldest + 1), TRAILING_BYTES_MAX)
        # A follower that is being sent a snapshot goes on from there in the log.
        if self._senders.oldest_index is not None:
            keep_from = min(keep_from, self._senders.oldest_index)
        if keep_from > self._log.first_index():
            dropped = self._log.forget_before(keep_from)
            self._log_bytes_before = self._log.log_bytes()
            # Their memory goes back in steps: 300 MiB at once take 200 ms.
            while dropped:
                size = 0
                while dropped and size < RELEASE_BYTES:
                    size += len(dropped.pop()[0])
                await asyncio.sleep(0)

    # Sending, as the leader

    def send_to(self, peer_id: str) -> bool:
        """Begin to send the newest snapshot; False if there is none."""
        if self._newest is None:
            return False
        self._senders.begin(peer_id, self._newest)
        return True

    def begin_stalled_again(self) -> None:
        """Begin transfers again that do not move."""
        for peer_id in self._senders.stalled():
            self.send_to(peer_id)

    def stop_sending(self, peer_id: str | None = None) -> None:
        """Forget a transfer, or all: the link broke, or this node no longer leads."""
        self._senders.stop(peer_id)

    def taken(self, peer_id: str, answer: ChunkTaken) -> None:
        """A follower has taken chunks, or stands at the snapshot."""
        if self._senders.taken(peer_id, answer):
            self._log.installed(peer_id, answer.end_index)

    # Taking, as a follower

    def take(self, peer_id: str, chunk: Chunk) -> None:
        """Take a chunk from the leader."""
        self._taking.take(peer_id, chunk)

    def _kept(self, snapshot: Snapshot) -> None:
        if snapshot.index > self.index:
            self._newest = snapshot
