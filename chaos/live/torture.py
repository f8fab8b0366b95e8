"""Torture real voters, then judge everything their clients saw.

    python -m chaos.live.torture --nodes 3 --seconds 60

Clients add, claim, renew, complete, fail, cancel and read through any voter, and lose answers; voters
are killed, paused and stopped. Then all heals, every item is brought to its end, and the checkers of
``chaos.checkers`` judge the history and what each voter holds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from chaos.checkers.history import FinalState, History
from chaos.checkers.report import report
from chaos.checkers.run import Run
from chaos.disk.cluster import PAGE_ITEMS, SETTLE_S, STANDING
from chaos.disk.nodes import NotReady, Nursery, Voters
from chaos.disk.record import Figures
from chaos.disk.run import watched
from chaos.disk.votes import Votes
from chaos.live.callers import Scene, Submitter, Worker
from chaos.live.nemesis import Nemesis
from chaos.mutants.catalogue import MUTANTS
from ringraft.client import Client, ClientError

SETTINGS = {"raft.snapshot_entries": "50", "raft.segment_bytes": "65536"}
RATE_MAX = 1.001
"""All processes run on one machine's clock."""
RETENTION_S, KEY_GRACE_S = 3600.0, 120.0
"""The defaults of ``queue.retention_s`` and ``queue.key_grace_s``."""
DRAIN_S = 90.0
POLL_S = 0.1
FINAL = ("COMPLETED", "FAILED", "CANCELLED")


class Torture:
    """One cluster, its clients and its troubles."""

    def __init__(self, folder: Path, nursery: Nursery, nodes: int, seed: int, figures: Figures) -> None:
        self._rng = random.Random(seed)
        self._voters = Voters.plan(folder, nodes, nursery, SETTINGS)
        self._figures = figures
        self._votes = Votes()

    async def run(self, seconds: float) -> None:
        """Troubles for so long, then healing, draining and judgement."""
        await self._voters.start()
        urls = {name: node.url for name, node in self._voters.nodes.items()}
        connector = aiohttp.TCPConnector(limit=0)
        try:
            await self._voters.ready()
            async with aiohttp.ClientSession(connector=connector) as session, Client(urls.values()) as client:
                await self._run(Scene(urls, session, self._rng), client, seconds)
        except (NotReady, ClientError, TimeoutError) as fault:
            self._figures.violations.append(f"{type(fault).__name__}: {fault}")
        finally:
            await self._voters.kill()

    async def _run(self, scene: Scene, client: Client, seconds: float) -> None:
        callers: list[Submitter | Worker] = [Submitter(scene, f"s{number}") for number in range(3)]
        callers += [Worker(scene, f"w{number}") for number in range(4)]
        tasks = [asyncio.create_task(caller.run()) for caller in callers]
        nemesis = Nemesis(self._voters, client, self._rng)
        try:
            await nemesis.run(asyncio.get_running_loop().time() + seconds)
            self._figures.kinds = dict(nemesis.counts)
            self._figures.strikes = sum(nemesis.counts.values())
            self._figures.violations += nemesis.faults
            scene.is_submitting = False
            await self._voters.ready()
            await self._drain(client)
            scene.is_over = True
            await asyncio.gather(*tasks)
            await self._judge(scene, client)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, client: Client) -> None:
        """Every item comes to its end. Raises NotReady."""
        end_s = asyncio.get_running_loop().time() + DRAIN_S
        while True:
            counts: dict[str, int] = (await client.get("/work/status", deadline_s=SETTLE_S))["by_status"]
            left = {state: count for state, count in counts.items() if state not in FINAL and count}
            if not left:
                return
            if asyncio.get_running_loop().time() > end_s:
                raise NotReady(f"{left} items are not finished {DRAIN_S:g} s after healing")
            await asyncio.sleep(POLL_S)

    async def _judge(self, scene: Scene, client: Client) -> None:
        finals = await self._finals(client)
        run = Run(retention_s=RETENTION_S / RATE_MAX, key_grace_s=KEY_GRACE_S / RATE_MAX)
        judged = report(History(scene.ops), finals, run, rate_max=RATE_MAX, drained=True)
        self._figures.acknowledged = judged.acknowledged
        self._figures.lost = sum(violation.rule == "lost_add" for violation in judged.violations)
        self._figures.violations += [str(violation) for violation in judged.violations] + scene.faults
        self._figures.kinds["operations"] = len(scene.ops)
        self._figures.kinds["histories"] = judged.histories
        for name, node in self._voters.nodes.items():
            self._figures.violations += self._votes.read_log(name, node.log)

    async def _finals(self, client: Client) -> list[FinalState]:
        """What each voter holds, once all stand together. TimeoutError when they do not."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                statuses = [await client.get("/raft/status", address=url) for url in self._voters.urls]
                digests = [await client.get("/raft/digest", address=url) for url in self._voters.urls]
                if len({tuple(status[key] for key in STANDING) for status in statuses}) == 1:
                    if len({digest["index"] for digest in digests}) == 1:
                        break
                await asyncio.sleep(POLL_S)
        return [
            FinalState(name, digest["index"], digest["sha256"], await held(client, node.url), {})
            for (name, node), digest in zip(self._voters.nodes.items(), digests, strict=True)
        ]


async def held(client: Client, url: str) -> dict[str, dict[str, Any]]:
    """Every item that a voter holds, by lower-case id."""
    found: dict[str, dict[str, Any]] = {}
    cursor = None
    while True:
        params = {"limit": PAGE_ITEMS} | ({"cursor": cursor} if cursor else {})
        page = await client.get("/work/items", params=params, address=url)
        found |= {item["work_id"].lower(): item for item in page["items"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def main() -> int:
    """0 when nothing was wrong, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m chaos.live.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=3, help="voters (3)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long there is trouble (60)")
    parser.add_argument("--seed", type=int, default=None, help="of what is drawn (random)")
    parser.add_argument("--record", type=Path, default=None, metavar="FILE", help="append a line with the figures")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), default=None, help="plant a bug; it must be noticed")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)

    async def torture(path: Path) -> Figures:
        figures = Figures()
        async with Nursery(options.mutant) as nursery:
            await Torture(path, nursery, options.nodes, seed, figures).run(options.seconds)
        return figures

    def run(path: Path, _show: Callable[[Figures], None]) -> Figures:
        return asyncio.run(torture(path))

    return watched(
        "chaos.live.torture",
        run,
        total=None,
        record=options.record,
        nodes=options.nodes,
        seed=seed,
        mutant=options.mutant,
    )


if __name__ == "__main__":
    sys.exit(main())
