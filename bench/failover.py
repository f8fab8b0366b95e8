"""How long writes stand still when the leader is killed with -9.

    python -m bench.failover                 30 kills
    python -m bench.failover --kills 5 --json

Three voter processes on loopback; adds at 50 per second, each with a key of its own, spread over
the nodes that stay alive. The gap of a kill is the longest time between two acknowledgements around
it. The killed node is started again before the next kill. At the end every acknowledged add is read
back from the new leader: a lost one fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
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


async def one_kill(cluster: Cluster, writer: Writer) -> float:
    """Kill the leader under load and return the gap in seconds; the node is back afterwards."""
    leader = await cluster.wait_leader()
    await cluster.wait_caught_up()
    writer.urls = [cluster.url(node) for node in cluster.voters if node != leader]
    load = asyncio.create_task(writer.run(BEFORE_S + AFTER_S))
    await asyncio.sleep(BEFORE_S)
    killed_at = time.monotonic()
    cluster.kill(leader)
    await load
    gap_s = longest_gap_s(list(writer.acknowledged.values()), killed_at)
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


async def run(kills: int) -> dict[str, object]:
    async with (
        Cluster(voters=3) as cluster,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(REQUEST_TIMEOUT_S + 1)) as session,
    ):
        writer = Writer(session, [])
        gaps_s: list[float] = []
        for number in range(kills):
            gaps_s.append(await one_kill(cluster, writer))
            print(f"kill {number + 1}/{kills}: {gaps_s[-1]:.3f} s", file=sys.stderr)
        missing = await lost(cluster, writer)
    gaps_s.sort()
    return {
        "kills": kills,
        "gap_p50_s": round(statistics.median(gaps_s), 3),
        "gap_p99_s": round(gaps_s[min(kills - 1, int(kills * 0.99))], 3),
        "gap_max_s": round(gaps_s[-1], 3),
        "acknowledged": len(writer.acknowledged),
        "refused": writer.refused,
        "unknown": writer.unknown,
        "lost": missing,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="how often the leader is killed (30)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = asyncio.run(run(options.kills))
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
