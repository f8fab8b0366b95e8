"""Waiting until somebody leads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOK_S = 0.02
"""How often the consensus is looked at while somebody waits; also the pause between two tries."""


class LeaderWait:
    """Wakes requests that found no leader. One timer serves all of them, and only while there are some."""

    def __init__(self, leads: Callable[[], bool]) -> None:
        self._leads = leads
        self._waiting: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def chance(self, wait_s: float) -> None:
        """Return when there is a leader to try, after at least one pause, or when ``wait_s`` is over."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._waiting.append(woken)
        if self._timer is None:
            self._timer = loop.call_later(LOOK_S, self._look)
        try:
            await asyncio.wait({woken}, timeout=wait_s)
        finally:
            # Also when the client is gone: nobody else takes it off the list while nobody leads.
            woken.cancel()

    def _look(self) -> None:
        self._timer = None
        self._waiting = [w for w in self._waiting if not w.done()]
        if not self._waiting:
            return
        if self._leads():
            for woken in self._waiting:
                woken.set_result(None)
            self._waiting.clear()
            return
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
