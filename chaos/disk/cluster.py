"""Real voters under load whose disks or processes come to harm, and what has to hold after each disaster.

The voters run on volumes of their own. After a disaster all are started again, and before the load
goes on:

- every acknowledged add is there exactly once, every acknowledged completion counted once;
- all voters stand at the same index with the same digest;
- no voter's term is older than what it said before, and no term had two leaders.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from chaos.disk.load import Ledger, Load
from chaos.disk.nodes import NotReady, Nursery, Voters
from chaos.disk.record import Figures
from chaos.disk.volume import Volume
from chaos.disk.votes import Votes
from ringraft.client import Client, ClientError
from ringraft.consensus.replog.segment import Unreadable

SETTINGS = {"raft.snapshot_entries": "60", "raft.segment_bytes": "65536"}
"""Small, so that snapshots, compaction and new segments are under way at most disasters."""
STRIKES_PER_CLUSTER = 25
"""Then a new cluster begins with empty disks."""
LOAD_S_MAX = 1.0
SETTLE_S = 30.0
POLL_S = 0.02
VIEW = ("node_id", "role", "leader_id", "term", "commit_index", "applied_index", "last_index")
STANDING = ("leader_id", "applied_index", "commit_index", "last_index")
PAGE_ITEMS = 1000
Show = Callable[[Figures], None]


class Disaster(Protocol):
    """What befalls a cluster."""

    async def strike(self, cluster: Cluster) -> None:
        """Do harm while the load goes on, then see that every voter is started again."""
        ...


class Cluster:
    """One cluster from its first start to its last check."""

    def __init__(self, folder: Path, nursery: Nursery, count: int, rng: random.Random, figures: Figures) -> None:
        self.rng = rng
        self.figures = figures
        self.voters = Voters.plan(folder, count, nursery, SETTINGS)
        self.volumes = {name: Volume(folder, name) for name in self.voters.nodes}
        self.votes = Votes()
        self.ledger = Ledger()

    @property
    def names(self) -> list[str]:
        return list(self.voters.nodes)

    async def run(self, disaster: Disaster, strikes: int, show: Show) -> None:
        """So many strikes, or until something is wrong."""
        for volume in self.volumes.values():
            volume.make()
        try:
            await self.voters.start()
            async with Client(self.voters.urls, rng=self.rng) as client:
                load = Load(client, self.ledger, self.rng)
                try:
                    await self._run(client, load, disaster, strikes, show)
                finally:
                    await load.stop()
        except (NotReady, TimeoutError, ClientError, Unreadable) as fault:
            self.report([f"{type(fault).__name__}: {fault}"])
        finally:
            await self.voters.kill()
            for volume in self.volumes.values():
                volume.unmount()
            self.figures.acknowledged += self.ledger.acknowledged

    def report(self, faults: list[str]) -> None:
        """What is wrong, as far as it is."""
        self.figures.violations += [f"strike {self.figures.strikes}: {fault}" for fault in faults]

    async def _run(self, client: Client, load: Load, disaster: Disaster, strikes: int, show: Show) -> None:
        await self.voters.ready()
        load.go()
        for _ in range(strikes):
            await asyncio.sleep(self.rng.uniform(0, LOAD_S_MAX))
            await disaster.strike(self)
            await self.voters.ready()
            await self._check(client, load)
            show(self.figures)
            if self.figures.violations:
                return
            load.go()

    async def _check(self, client: Client, load: Load) -> None:
        for name, node in self.voters.nodes.items():
            self.report(self.votes.read_log(name, node.log))
        try:
            await load.hold(SETTLE_S)
        except TimeoutError:
            raise NotReady(f"calls are not answered in {SETTLE_S:g} s: {await self._views(client)}") from None
        statuses = await self._settled(client)
        for status in statuses:
            self.report(self.votes.hear(status["node_id"], status["term"]))
        digests = await self._digests(client)
        if len({digest["sha256"] for digest in digests}) != 1:
            self.report([f"digests differ: {digests}"])
        url = self.rng.choice(self.voters.urls)
        held = await self._held(client, url)
        faults = self.ledger.faults(held)
        self.figures.lost += sum("is lost" in fault or "not_found" in fault for fault in faults)
        self.report(faults)
        completed = sum(item["state"] == "COMPLETED" for item in held)
        counted = (await client.get("/work/status", address=url))["by_status"].get("COMPLETED", 0)
        if counted != completed:
            self.report([f"{completed} items are completed and {counted} are counted so"])

    async def _settled(self, client: Client) -> list[dict[str, Any]]:
        """The voters' views, once all stand at the same index under one leader. Raises NotReady."""
        try:
            async with asyncio.timeout(SETTLE_S):
                while True:
                    statuses = await self._views(client)
                    standing = {tuple(status[key] for key in STANDING) for status in statuses}
                    if len(statuses) == len(self.names) and len(standing) == 1:
                        leader, applied, commit, last = standing.pop()
                        if leader is not None and applied == commit == last:
                            return statuses
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            views = await self._views(client)
            raise NotReady(f"the voters did not come to stand together in {SETTLE_S:g} s: {views}") from None

    async def _digests(self, client: Client) -> list[dict[str, Any]]:
        """Of all voters at the same index, which a new term or a duty may move once more. TimeoutError."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                digests = [await client.get("/raft/digest", address=url) for url in self.voters.urls]
                if len({digest["index"] for digest in digests}) == 1:
                    return digests
                await asyncio.sleep(POLL_S)

    async def _views(self, client: Client) -> list[dict[str, Any]]:
        """How each voter that answers sees the log."""
        found = []
        for url in self.voters.urls:
            with contextlib.suppress(ClientError):
                found.append(await client.get("/raft/status", address=url, deadline_s=1.0))
        return [{key: status[key] for key in VIEW} for status in found]

    async def _held(self, client: Client, url: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            params = {"limit": PAGE_ITEMS} | ({"cursor": cursor} if cursor else {})
            page = await client.get("/work/items", params=params, address=url)
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return found


async def strike_clusters(
    folder: Path,
    disaster: Disaster,
    *,
    nodes: int,
    strikes: int,
    seed: int,
    show: Show,
    mutant: str | None = None,
) -> Figures:
    """At least so many strikes, over as many clusters as that takes; ends at the first violation."""
    figures = Figures()
    rng = random.Random(seed)
    async with Nursery(mutant) as nursery:
        while figures.strikes < strikes and not figures.violations:
            place = folder / f"cluster-{figures.strikes}"
            place.mkdir()
            cluster = Cluster(place, nursery, nodes, rng, figures)
            await cluster.run(disaster, min(STRIKES_PER_CLUSTER, strikes - figures.strikes), show)
    return figures
