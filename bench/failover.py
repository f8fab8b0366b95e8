"""How long writes stand still when the leader goes.

    python -m bench.failover                          30 times kill -9
    python -m bench.failover --fault stop             SIGSTOP: its port still answers, and nobody behind it
    python -m bench.failover --fault graceful         SIGTERM: it hands over first
    python -m bench.failover --times 5 --json

Three voter processes on loopback; adds at 50 per second, each with a key of its own, spread over
the nodes that stay. The gap of a fault is the longest time between two acknowledgements around it.
The node comes back before the next one. At the end every acknowledged add is read back from the new
leader: a lost one fails the run. (A leader that is cut off needs a network of its own: see ``chaos``.)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp

from bench.cluster import Cluster
from bench.machine import machine_line

WRITES_PER_S = 50
BEFORE_S = 1.0
AFTER_S = 3.0
REQUEST_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Writer:
    """Adds items at a fixed rate, whatever the answers do, and notes when each was acknowledged."""

    session: aiohttp.ClientSession
    urls: list[str]
    acknowledged: dict[str, float] = field(default_factory=dict)
    refused: int = 0
    unknown: int = 0
    _number: int = 0

    async def run(self, seconds: float) -> None:
        """Issue adds for ``seconds`` and wait for their answers."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for step in range(int(seconds * WRITES_PER_S)):
                await asyncio.sleep(max(0.0, began + step / WRITES_PER_S - time.monotonic()))
                group.create_task(self._add())

    async def _add(self) -> None:
        self._number += 1
        work_id = f"failover-{self._number}"
        url = self.urls[self._number % len(self.urls)]
        try:
            async with self.session.post(
                f"{url}/work/add",
                params={"timeout_s": REQUEST_TIMEOUT_S},
                json={"work_id": work_id, "work_type": "bench"},
                headers={"Idempotency-Key": work_id},
            ) as answer:
                if answer.status == 200:
                    self.acknowledged[work_id] = time.monotonic()
                else:
                    self.refused += 1
        except (aiohttp.ClientError, TimeoutError):
            self.unknown += 1


def longest_gap_s(times: list[float], since: float) -> float:
    """The longest time between two acknowledgements of which the later one came after ``since``."""
    ordered = sorted(times)
    return max(later - earlier for earlier, later in pairwise(ordered) if later >= since)


FAULTS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "graceful": signal.SIGTERM}


async def one_fault(cluster: Cluster, writer: Writer, fault: str) -> float:
    """Let the leader go under load and return the gap in seconds; the node is back afterwards."""
    leader = await cluster.wait_leader()
    await cluster.wait_caught_up()
    writer.urls = [cluster.url(node) for node in cluster.voters if node != leader]
    load = asyncio.create_task(writer.run(BEFORE_S + AFTER_S))
    await asyncio.sleep(BEFORE_S)
    gone_at = time.monotonic()
    cluster.signal(leader, FAULTS[fault])
    await load
    gap_s = longest_gap_s(list(writer.acknowledged.values()), gone_at)
    if fault == "stop":
        cluster.signal(leader, signal.SIGCONT)
    else:
        await cluster.restart(leader)
    return gap_s


async def lost(cluster: Cluster, writer: Writer) -> int:
    """How many acknowledged adds the cluster does not know any more."""
    leader = await cluster.wait_leader()
    missing = 0
    for work_id in writer.acknowledged:
        async with writer.session.get(f"{cluster.url(leader)}/work/item/{work_id}?consistency=leader") as answer:
            missing += answer.status != 200
    return missing


async def run(fault: str, times: int) -> dict[str, object]:
    async with (
        Cluster(voters=3) as cluster,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(REQUEST_TIMEOUT_S + 1)) as session,
    ):
        writer = Writer(session, [])
        gaps_s: list[float] = []
        for number in range(times):
            gaps_s.append(await one_fault(cluster, writer, fault))
            print(f"{fault} {number + 1}/{times}: {gaps_s[-1]:.3f} s", file=sys.stderr)
        missing = await lost(cluster, writer)
    gaps_s.sort()
    return {
        "fault": fault,
        "times": times,
        "gap_p50_s": round(statistics.median(gaps_s), 3),
        "gap_p99_s": round(gaps_s[min(times - 1, int(times * 0.99))], 3),
        "gap_max_s": round(gaps_s[-1], 3),
        "acknowledged": len(writer.acknowledged),
        "refused": writer.refused,
        "unknown": writer.unknown,
        "lost": missing,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=FAULTS, default="kill", help="how the leader goes (kill)")
    parser.add_argument("--times", type=int, default=30, help="how often it goes (30)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = asyncio.run(run(options.fault, options.times))
    if options.json:
        print(json.dumps({"machine": machine_line(), **figures}, indent=2))
    else:
        print(machine_line())
        print("| " + " | ".join(figures) + " |")
        print("|" + "---|" * len(figures))
        print("| " + " | ".join(str(value) for value in figures.values()) + " |")
    return 1 if figures["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
