"""Handing changes to whoever watches, without waiting for a slow one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable

from ringraft.membership.base import MemberChange

BEHIND_MAX = 4096
"""Changes kept for one watcher; beyond it the oldest go."""


class Watchers:
    """Every watcher gets the changes from its first ``watch`` on."""

    def __init__(self) -> None:
        self._queues: list[tuple[deque[MemberChange], asyncio.Event]] = []

    def tell(self, changes: Iterable[MemberChange]) -> None:
        found = tuple(changes)
        if not found:
            return
        for queue, arrived in self._queues:
            queue.extend(found)
            arrived.set()

    async def watch(self) -> AsyncIterator[MemberChange]:
        watcher: tuple[deque[MemberChange], asyncio.Event] = (deque(maxlen=BEHIND_MAX), asyncio.Event())
        queue, arrived = watcher
        self._queues.append(watcher)
        try:
            while True:
                await arrived.wait()
                arrived.clear()
                while queue:
                    yield queue.popleft()
        finally:
            self._queues.remove(watcher)
