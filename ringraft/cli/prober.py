"""Writes at a steady pace, to see for how long none is acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise

from ringraft.client import Client, ClientError

PROBES_PER_S = 50
PROBE_TIMEOUT_S = 10.0
IN_FLIGHT_MAX = 500
"""Ten seconds without any answer: then the gap is long enough to be told."""
PROBE_TYPE = "probe"
"""A work type that no worker runs, so that probes change nothing that is measured."""
SETTLE_S = 1.0


class Prober:
    """Adds tiny items, one each 20 ms whether or not the last was answered, and notes when each is acknowledged.

    The write a failover hits is repeated by the client with its key, as any client's would be.
    """

    def __init__(self, client: Client, group: str) -> None:
        self.client = client
        self.group = group
        self.acknowledged_s: list[float] = []
        """Monotonic times of the acknowledgements, in order."""
        self.failed = 0
        self._in_flight: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Probe until cancelled; what is in flight then is dropped."""
        due_s = time.monotonic()
        try:
            while True:
                if len(self._in_flight) < IN_FLIGHT_MAX:
                    task = asyncio.create_task(self._probe())
                    self._in_flight.add(task)
                    task.add_done_callback(self._in_flight.discard)
                due_s = max(due_s + 1 / PROBES_PER_S, time.monotonic() - 1)
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        finally:
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)

    async def _probe(self) -> None:
        body = {"work_type": PROBE_TYPE, "group": self.group, "priority": 0}
        try:
            await self.client.post("/work/add", body, deadline_s=PROBE_TIMEOUT_S)
            self.acknowledged_s.append(time.monotonic())
        except ClientError:
            self.failed += 1

    async def tidy(self) -> None:
        """Cancel the probes."""
        await self.client.post("/work/cancel", {"group": self.group})

    def gap_s(self, from_s: float, to_s: float) -> float | None:
        """The longest time without an acknowledgement that touches the span; None when there was nothing to see."""
        return longest_gap_s(self.acknowledged_s, from_s, to_s)


def longest_gap_s(times_s: Sequence[float], from_s: float, to_s: float) -> float | None:
    """The longest distance between neighbours in ``times_s`` that overlaps ``from_s`` to ``to_s``."""
    return max((b - a for a, b in pairwise(times_s) if b >= from_s and a <= to_s), default=None)
