"""When a snapshot is made, and who waits for one: one at a time, when it is due or somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ringraft.clock import Clock
from ringraft.consensus.base import Made, Unavailable
from ringraft.consensus.replog.install import Images
from ringraft.consensus.replog.syncobj import RaftLog


class Imaging:
    """The task that makes a node's snapshots."""

    def __init__(
        self, *, log: RaftLog, images: Images, clock: Clock, on_failure: Callable[[BaseException], None]
    ) -> None:
        self._log = log
        self._images = images
        self._clock = clock
        self._fail = on_failure
        self._task: asyncio.Task[None] | None = None
        self._is_halted = False

    def begin_if_due(self) -> None:
        if self._images.is_due():
            self._begin()

    async def ask(self) -> Made:
        """Make a snapshot now, unless the newest is as of now. Raises Unavailable."""
        started_s = self._clock.monotonic_s()
        index = self._log.applied_index()
        if index < 2:
            raise Unavailable("starting", "nothing is applied yet that a snapshot could hold")
        while not self._is_halted and self._images.index < index:
            await asyncio.wait({self._begin()})
        if self._is_halted:
            raise Unavailable("shutting_down", "this node stopped before the snapshot was whole")
        took_ms = round((self._clock.monotonic_s() - started_s) * 1000)
        return Made(self._images.index, self._images.newest_bytes, took_ms)

    def halt(self) -> None:
        """Begin no more, and give up the one under way."""
        self._is_halted = True
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        self.halt()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self) -> asyncio.Task[None]:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._make())
        return self._task

    async def _make(self) -> None:
        try:
            await self._images.make()
        except Exception as error:  # noqa: BLE001 - a task's top: logged, and the node stops
            self._fail(error)
