"""Background loops: one owner that starts, counts and stops them, and says how they do.

A loop's body is a coroutine. One that is *periodic* is called again and again; one that is
*standing* runs until it is cancelled. A fault that a body does not handle stops that loop: it is
logged, shows in ``/status`` and ``/health``, and when the loop is vital the node ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ringraft.clock import Clock

log = logging.getLogger(__name__)

STOP_S = 2.0
"""How long cancelled loops may take to end."""


@dataclass(slots=True)
class LoopStats:
    """How one loop does. Counted in place, by its own task only."""

    name: str
    every_s: float | None
    vital: bool
    state: str = "running"
    runs: int = 0
    last_started_s: float | None = None
    last_duration_s: float | None = None
    longest_s: float = 0.0
    fault: str | None = None


class Loops:
    """All background loops of a node."""

    def __init__(self, clock: Clock, on_vital_fault: Callable[[str], None]) -> None:
        self._clock = clock
        self._on_vital_fault = on_vital_fault
        self._stats: dict[str, LoopStats] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def every(self, name: str, every_s: float, body: Callable[[], Awaitable[None]], *, vital: bool = False) -> None:
        """Call ``body`` now and ``every_s`` seconds after each end of it."""
        stats = self._add(name, every_s, vital)
        self._tasks[name] = asyncio.create_task(self._guard(stats, self._repeat(stats, every_s, body)), name=name)

    def standing(self, name: str, body: Callable[[], Awaitable[None]], *, vital: bool = False) -> None:
        """Run ``body`` until the node stops."""
        stats = self._add(name, None, vital)
        self._tasks[name] = asyncio.create_task(self._guard(stats, self._once(stats, body)), name=name)

    async def stop(self, name: str | None = None) -> None:
        """End one loop, or all; waits at most ``STOP_S`` seconds for them."""
        names = list(self._tasks) if name is None else [name] if name in self._tasks else []
        tasks = [self._tasks.pop(each) for each in names]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)

    def stats(self) -> dict[str, dict[str, Any]]:
        """For ``/status``: by name."""
        now_s = self._clock.monotonic_s()
        return {
            stats.name: {
                "state": stats.state,
                "every_s": stats.every_s,
                "runs": stats.runs,
                "last_run_s": None if stats.last_started_s is None else round(now_s - stats.last_started_s, 3),
                "last_duration_s": stats.last_duration_s,
                "longest_s": stats.longest_s,
                "fault": stats.fault,
            }
            for stats in self._stats.values()
        }

    def faults(self) -> list[str]:
        """One sentence for each loop that a fault stopped."""
        return [f"loop {stats.name} stopped: {stats.fault}" for stats in self._stats.values() if stats.fault]

    def _add(self, name: str, every_s: float | None, vital: bool) -> LoopStats:
        assert name not in self._tasks, f"loop {name} runs already"
        stats = LoopStats(name, every_s, vital)
        self._stats[name] = stats
        return stats

    async def _repeat(self, stats: LoopStats, every_s: float, body: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._once(stats, body)
            await asyncio.sleep(every_s)

    async def _once(self, stats: LoopStats, body: Callable[[], Awaitable[None]]) -> None:
        started_s = self._clock.monotonic_s()
        stats.last_started_s = started_s
        await body()
        stats.runs += 1
        stats.last_duration_s = round(self._clock.monotonic_s() - started_s, 6)
        stats.longest_s = max(stats.longest_s, stats.last_duration_s)

    async def _guard(self, stats: LoopStats, run: Awaitable[None]) -> None:
        try:
            await run
        except asyncio.CancelledError:
            stats.state = "stopped"
            raise
        except Exception as fault:
            stats.state = "failed"
            stats.fault = f"{type(fault).__name__}: {fault}"
            log.exception("loop failed action=loop_failed loop=%s vital=%s", stats.name, stats.vital)
            if stats.vital:
                self._on_vital_fault(f"loop {stats.name} failed: {stats.fault}")
        else:
            stats.state = "ended"
