"""Who leads, told to whoever watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ringraft.consensus.base import Leadership

CHANGES_MAX = 256
"""A watcher that is further behind than this misses the oldest changes."""


class LeadershipFeed:
    """The present leadership and its changes."""

    def __init__(self, present: Leadership) -> None:
        self.present = present
        # In order of arrival, so that who is woken first does not depend on where a queue lies in memory.
        self._watchers: dict[asyncio.Queue[Leadership], None] = {}

    def tell(self, present: Leadership) -> None:
        """It is so from now on."""
        self.present = present
        for changes in self._watchers:
            if changes.full():
                changes.get_nowait()
            changes.put_nowait(present)

    async def watch(self) -> AsyncIterator[Leadership]:
        """The present leadership, then every change."""
        changes: asyncio.Queue[Leadership] = asyncio.Queue(CHANGES_MAX)
        changes.put_nowait(self.present)
        self._watchers[changes] = None
        try:
            while True:
                yield await changes.get()
        finally:
            del self._watchers[changes]
