"""Power cuts of real voters under load, and what has to hold after each.

A cut takes all disks at once, one or two. The voters on them are killed at the same instant, the
disks come back with what was synced, the voters start again, and before the load goes on:

- every acknowledged add is there exactly once, every acknowledged completion counted once;
- all voters stand at the same index with the same digest;
- no voter's term or vote is older than what it said before, no vote changed within a term, no term
  had two leaders, and after a cut of all a majority still carries the votes of each known leader.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.disk.load import Ledger, Load
from chaos.disk.nodes import NotReady, Nursery, Voters
from chaos.disk.volume import Volume
from ringraft.client import Client, ClientError
from ringraft.consensus.replog.segment import Unreadable
from ringraft.consensus.replog.vote import VOTE_NAME, Vote, decode_vote

SETTINGS = {"raft.snapshot_entries": "60", "raft.segment_bytes": "65536"}
"""Small, so that snapshots, compaction and new segments are under way at most cuts."""
CUTS_PER_CLUSTER = 25
"""Then a new cluster begins with empty disks."""
LOAD_S_MAX = 1.0
EARLY_SHARE = 0.12
EARLY_S_MAX = 0.8
SETTLE_S = 30.0
POLL_S = 0.02
VIEW = ("node_id", "role", "leader_id", "term", "commit_index", "applied_index", "last_index")
PAGE_ITEMS = 1000
LEADERSHIP = re.compile(r"action=leadership node=(\S+) leader=(\S+) term=(\d+) role=leader")


@dataclass(slots=True)
class ClusterCuts:
    """The figures of a run."""

    cuts: int = 0
    cuts_of_all: int = 0
    acknowledged: int = 0
    lost: int = 0
    violations: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Votes:
    """What the voters said and kept about terms, over all their lives."""

    leaders: dict[int, str] = field(default_factory=dict)
    kept: dict[str, Vote] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    _read_to: dict[str, int] = field(default_factory=dict)

    def read_log(self, name: str, log: Path) -> list[str]:
        """Learn who led from a voter's own words; what contradicts others' words is returned."""
        wrong = []
        with log.open("rb") as file:
            file.seek(self._read_to.get(name, 0))
            text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self._read_to[name] = self._read_to.get(name, 0) + len(text)
        for node, leader, term in LEADERSHIP.findall(text.decode("utf-8", "replace")):
            if node == leader and self.leaders.setdefault(int(term), node) != node:
                wrong.append(f"{node} and {self.leaders[int(term)]} both led term {term}")
        return wrong

    def hear(self, name: str, term: int) -> list[str]:
        """A voter said that it is in this term."""
        before = self.told.get(name, 0)
        self.told[name] = max(before, term)
        return [f"{name} was in term {before} and then in {term}"] if term < before else []

    def found(self, name: str, vote: Vote) -> list[str]:
        """What a disk holds after a cut, before its voter starts."""
        wrong = []
        before = self.kept.get(name, Vote(0, None))
        self.kept[name] = vote
        if vote.term < max(before.term, self.told.get(name, 0)):
            wrong.append(f"{name} was in term {max(before.term, self.told.get(name, 0))} and kept only {vote.term}")
        if vote.term == before.term and before.voted_for not in (None, vote.voted_for):
            wrong.append(f"{name} voted for {before.voted_for} and for {vote.voted_for} in term {vote.term}")
        return wrong

    def unelected(self, names: list[str]) -> list[str]:
        """Leaders whose votes no majority of these disks carries; each read after one cut of all."""
        wrong = []
        for term, leader in self.leaders.items():
            for_it = [name for name in names if self._may_have_voted(name, term, leader)]
            if len(for_it) <= len(names) // 2:
                wrong.append(f"{leader} led term {term} and only {for_it} of {names} kept that or a newer vote")
        return wrong

    def _may_have_voted(self, name: str, term: int, leader: str) -> bool:
        vote = self.kept.get(name, Vote(0, None))
        return vote.term > term or (vote.term == term and vote.voted_for == leader)


class Cluster:
    """One cluster from its first start to its last check."""

    def __init__(self, folder: Path, nursery: Nursery, count: int, rng: random.Random, done: ClusterCuts) -> None:
        self._rng = rng
        self._done = done
        self._voters = Voters.plan(folder, count, nursery, SETTINGS)
        self._volumes = {name: Volume(folder, name) for name in self._voters.nodes}
        self._votes = Votes()
        self.ledger = Ledger()

    async def run(self, cuts: int, all_share: float, on_cut: Callable[[ClusterCuts], None]) -> None:
        """Cut power ``cuts`` times, or until something is wrong."""
        for volume in self._volumes.values():
            volume.make()
        try:
            await self._voters.start()
            async with Client(self._voters.urls, rng=self._rng) as client:
                load = Load(client, self.ledger, self._rng)
                try:
                    await self._run(client, load, cuts, all_share, on_cut)
                finally:
                    await load.stop()
        except (NotReady, TimeoutError, ClientError, Unreadable) as fault:
            self._fault(f"{type(fault).__name__}: {fault}")
        finally:
            await self._voters.kill()
            for volume in self._volumes.values():
                volume.unmount()
            self._done.acknowledged += self.ledger.acknowledged

    def _fault(self, text: str) -> None:
        self._done.violations.append(f"cut {self._done.cuts}: {text}")

    async def _run(
        self, client: Client, load: Load, cuts: int, all_share: float, on_cut: Callable[[ClusterCuts], None]
    ) -> None:
        await self._voters.ready()
        load.go()
        for _ in range(cuts):
            await asyncio.sleep(self._rng.uniform(0, LOAD_S_MAX))
            await self._cut(all_share)
            while self._rng.random() < EARLY_SHARE:
                # Again, while they start: in the replay, in the election, before anything is ready.
                await asyncio.sleep(self._rng.uniform(0, EARLY_S_MAX))
                await self._cut(all_share)
            await self._voters.ready()
            await self._check(client, load)
            on_cut(self._done)
            if self._done.violations:
                return
            load.go()

    async def _cut(self, all_share: float) -> None:
        names = list(self._voters.nodes)
        if self._rng.random() >= all_share and len(names) > 1:
            names = self._rng.sample(names, self._rng.randint(1, len(names) - 1))
        is_all = len(names) == len(self._voters.nodes)
        self._done.cuts += 1
        self._done.cuts_of_all += is_all
        for name in names:
            self._voters.nodes[name].kill()
        for name in names:
            self._volumes[name].cut()
        await self._voters.kill(names)
        for name in names:
            self._volumes[name].unmount()
            self._volumes[name].mount()
            self._look_at_vote(name)
        for name in self._voters.nodes:
            self._report(self._votes.read_log(name, self._voters.nodes[name].log))
        if is_all:
            self._report(self._votes.unelected(names))
        await self._voters.start(names)

    def _look_at_vote(self, name: str) -> None:
        path = self._voters.nodes[name].directory / "log" / VOTE_NAME
        vote = decode_vote(path.read_bytes()) if path.exists() else Vote(0, None)
        self._report(self._votes.found(name, vote))

    def _report(self, faults: list[str]) -> None:
        for fault in faults:
            self._fault(fault)

    async def _check(self, client: Client, load: Load) -> None:
        await load.hold(SETTLE_S)
        statuses = await self._settled(client)
        for status in statuses:
            self._report(self._votes.hear(status["node_id"], status["term"]))
        digests = [await client.get("/raft/digest", address=url) for url in self._voters.urls]
        if len({digest["sha256"] for digest in digests}) != 1:
            self._fault(f"digests differ: {digests}")
        url = self._rng.choice(self._voters.urls)
        held = await self._held(client, url)
        faults = self.ledger.faults(held)
        self._done.lost += sum("is lost" in fault or "not_found" in fault for fault in faults)
        self._report(faults)
        completed = sum(item["state"] == "COMPLETED" for item in held)
        counted = (await client.get("/work/status", address=url))["by_status"].get("COMPLETED", 0)
        if counted != completed:
            self._fault(f"{completed} items are completed and {counted} are counted so")

    async def _settled(self, client: Client) -> list[dict[str, Any]]:
        """The voters' views, once all stand at the same index under one leader. Raises NotReady."""
        statuses: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(SETTLE_S):
                return await self._poll_until_settled(client, statuses)
        except TimeoutError:
            views = [{key: status[key] for key in VIEW} for status in statuses]
            raise NotReady(f"the voters did not come to stand together in {SETTLE_S:g} s: {views}") from None

    async def _poll_until_settled(self, client: Client, statuses: list[dict[str, Any]]) -> list[dict[str, Any]]:
        while True:
            statuses.clear()
            for url in self._voters.urls:
                with contextlib.suppress(ClientError):
                    statuses.append(await client.get("/raft/status", address=url, deadline_s=1.0))
            standing = {(s["leader_id"], s["applied_index"], s["commit_index"], s["last_index"]) for s in statuses}
            if len(statuses) == len(self._voters.urls) and len(standing) == 1:
                leader, applied, commit, last = standing.pop()
                if leader is not None and applied == commit == last:
                    return statuses
            await asyncio.sleep(POLL_S)

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


async def cut_cluster(
    folder: Path,
    *,
    nodes: int,
    cuts: int,
    all_share: float,
    seed: int,
    without_sync: bool,
    on_cut: Callable[[ClusterCuts], None],
) -> ClusterCuts:
    """Cut power at least ``cuts`` times, over as many clusters as that takes; ends at the first violation."""
    done = ClusterCuts()
    rng = random.Random(seed)
    async with Nursery(without_sync=without_sync) as nursery:
        while done.cuts < cuts and not done.violations:
            number = done.cuts
            place = folder / f"cluster-{number}"
            place.mkdir()
            cluster = Cluster(place, nursery, nodes, rng, done)
            await cluster.run(min(CUTS_PER_CLUSTER, cuts - done.cuts), all_share, on_cut)
    return done
