"""The background syncs of a journal: one at a time, begun as soon as there is something to sync.

What is noted while one runs is covered by the next, so under load a sync covers many entries (group
commit), and an idle log waits for one sync only. The event loop never waits for the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ringraft.clock import Clock


class Syncable(Protocol):
    """A journal, as far as it is synced here."""

    @property
    def written(self) -> int: ...

    @property
    def synced(self) -> int: ...

    def sync(self) -> int: ...


class Syncer:
    """Runs ``store.sync`` in a thread of its own, and tells on the loop when it is done or has failed."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        store: Syncable,
        clock: Clock,
        on_synced: Callable[[float], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        """``on_synced`` is told how many seconds the sync took, ``on_failed`` why nothing is synced any more."""
        self._loop = loop
        self._store = store
        self._clock = clock
        self._on_synced = on_synced
        self._on_failed = on_failed
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raft-sync")
        self._running: asyncio.Future[float] | None = None
        self._is_stopped = False

    def soon(self) -> None:
        """Begin a sync if there is something to sync and none runs."""
        if self._running is None and not self._is_stopped and self._store.written > self._store.synced:
            self._running = self._loop.run_in_executor(self._thread, self._sync)
            self._running.add_done_callback(self._done)

    def halt(self) -> None:
        """Begin no more, and tell nothing more."""
        self._is_stopped = True

    async def stop(self) -> None:
        """Begin no more, and return when the one that runs has ended."""
        self.halt()
        if self._running is not None:
            await asyncio.wait([self._running])
        self._thread.shutdown()

    def _sync(self) -> float:
        began_s = self._clock.monotonic_s()
        self._store.sync()
        return self._clock.monotonic_s() - began_s

    def _done(self, running: asyncio.Future[float]) -> None:
        self._running = None
        error = None if running.cancelled() else running.exception()
        if self._is_stopped or running.cancelled():
            return
        if error is not None:
            self.halt()
            self._on_failed(error)
            return
        self._on_synced(running.result())
        self.soon()
