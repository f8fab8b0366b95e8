"""Power cuts of real voters under load: of all disks at once, or of some.

The voters on them are killed at the same instant. What a disk kept of its voter's vote is looked at
before the voter starts again: no older than what it said before, not changed within a term, and
after a cut of all a majority still carries the votes of each leader that is known.
"""

from __future__ import annotations

import asyncio

from chaos.disk.cluster import Cluster
from ringraft.consensus.replog.vote import VOTE_NAME, Vote, decode_vote

EARLY_SHARE = 0.12
EARLY_S_MAX = 0.8


class PowerCut:
    """A disaster that takes all disks in ``all_share`` of the cases, else one or more but not all."""

    def __init__(self, all_share: float) -> None:
        self._all_share = all_share

    async def strike(self, cluster: Cluster) -> None:
        """Cut, start again, and now and then cut again before anything is ready."""
        await self._cut(cluster)
        while cluster.rng.random() < EARLY_SHARE:
            # In the replay, in the election, in the middle of a repair.
            await asyncio.sleep(cluster.rng.uniform(0, EARLY_S_MAX))
            await self._cut(cluster)

    async def _cut(self, cluster: Cluster) -> None:
        names = cluster.names
        if len(names) > 1 and cluster.rng.random() >= self._all_share:
            names = cluster.rng.sample(names, cluster.rng.randint(1, len(names) - 1))
        is_all = len(names) == len(cluster.names)
        cluster.figures.strikes += 1
        cluster.figures.count("cuts_of_all" if is_all else "cuts_of_some")
        for name in names:
            cluster.voters.nodes[name].kill()
        for name in names:
            cluster.volumes[name].cut()
        await cluster.voters.kill(names)
        for name in names:
            cluster.volumes[name].unmount()
            cluster.volumes[name].mount()
            cluster.report(cluster.votes.found(name, kept_vote(cluster, name)))
        for name, node in cluster.voters.nodes.items():
            cluster.report(cluster.votes.read_log(name, node.log))
        if is_all and len(names) > 1:
            # One alone elects itself before its vote is on disk: nobody else hears of it until it is.
            cluster.report(cluster.votes.unelected(names))
        await cluster.voters.start(names)


def kept_vote(cluster: Cluster, name: str) -> Vote:
    """The vote on a voter's disk. Raises Unreadable."""
    path = cluster.voters.nodes[name].directory / "log" / VOTE_NAME
    return decode_vote(path.read_bytes()) if path.exists() else Vote(0, None)
