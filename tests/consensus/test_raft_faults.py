"""Faults drawn from a seed: kills, cuts, duplicates. Never two leaders in a term, never an acknowledged write lost."""

import asyncio
import random

import pytest

from ringraft.consensus.base import Indeterminate, NotLeader, Role, Unavailable
from ringraft.consensus.raft_config import RaftConfig
from ringraft.state.model import Done
from tests.consensus.raft_kit import Cluster, cluster, note, run

RUN_S = 20.0


class Watchdog:
    """Looks at every node all the time."""

    def __init__(self, c: Cluster) -> None:
        self.c = c
        self.leaders: dict[int, str] = {}
        self.terms: dict[str, int] = {}

    async def watch(self) -> None:
        while True:
            for name, node in self.c.nodes.items():
                status = node.status()
                term = status.epoch.number
                assert term >= self.terms.get(name, 0), f"the term of {name} went back"
                journal = node._log._journal
                if journal.synced == journal.written:
                    # Until then nobody has heard of it, and a node that dies may forget it.
                    self.terms[name] = term
                if status.role is Role.LEADER:
                    assert self.leaders.setdefault(term, name) == name, f"two leaders in term {term}"
                assert status.applied_index <= status.commit_index <= status.last_index
            await asyncio.sleep(0.002)


async def write_all_the_time(c: Cluster, acknowledged: list[str], ended: list[str], rng: random.Random) -> None:
    number = 0
    while True:
        number += 1
        text = f"w{number}"
        if c.nodes:
            node = c.nodes[rng.choice(sorted(c.nodes))]
            try:
                async with asyncio.timeout(1.001):
                    outcome = await node.propose(note(text), deadline_s=1.0)
                assert isinstance(outcome, Done)
                acknowledged.append(text)
            except (NotLeader, Unavailable, Indeterminate) as ending:
                ended.append(type(ending).__name__)
        await asyncio.sleep(rng.uniform(0.001, 0.02))


async def disturb(c: Cluster, rng: random.Random) -> None:
    while True:
        await asyncio.sleep(rng.uniform(0.1, 1.5))
        match rng.choice(["kill", "kill all", "cut", "one way", "heal", "start", "start", "noise"]):
            case "kill" if c.nodes:
                c.kill(rng.choice(sorted(c.nodes)), refuses=rng.random() < 0.5)
            case "kill all":
                for name in sorted(c.nodes):
                    c.kill(name)
            case "cut":
                alone = rng.choice(c.names)
                c.network.partition([alone], [name for name in c.names if name != alone])
            case "one way":
                pair = rng.sample(c.names, 2)
                c.network.cut = {(pair[0], pair[1])}
                c.network.refresh()
            case "heal":
                c.network.heal()
            case "noise":
                c.network.duplicate = rng.choice([0.0, 0.3])
                c.network.reorder = rng.random() < 0.3
                c.network.delay_ms = rng.choice([(0.2, 0.8), (0.1, 20.0)])
            case _:
                await c.start()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [3, 5])
def test_nothing_acknowledged_is_lost(seed: int, count: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        acknowledged: list[str] = []
        ended: list[str] = []
        async with cluster(count, seed=seed, config=RaftConfig(snapshot_entries=60, segment_bytes=8192)) as c:
            watchdog = Watchdog(c)
            tasks = [
                asyncio.create_task(watchdog.watch()),
                asyncio.create_task(write_all_the_time(c, acknowledged, ended, rng)),
                asyncio.create_task(disturb(c, rng)),
            ]
            await asyncio.wait(tasks, timeout=RUN_S, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks[1:]:
                task.cancel()
            for outcome in await asyncio.gather(*tasks[1:], return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), repr(outcome)
            assert not tasks[0].done(), tasks[0].exception()
            c.network.duplicate, c.network.reorder, c.network.delay_ms = 0.0, False, (0.2, 0.8)
            await c.start()
            c.network.heal()
            await c.write("last")
            notes = await c.converged()
            tasks[0].cancel()
            assert not c.failures, c.failures
            assert set(acknowledged) <= set(notes)
            assert len(notes) == len(set(notes))
            in_order = [text for text in notes if text in set(acknowledged)]
            assert in_order == acknowledged
            assert len(acknowledged) > 100

    run(scenario())
