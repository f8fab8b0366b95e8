"""Nothing is told before it is durable: slow disks, failed ones, power cuts that keep parts of what was not synced."""

import asyncio
import contextlib
import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringraft.consensus.base import Indeterminate, NotLeader, Unavailable
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog.codec import Append, Appended, ChunkTaken, RequestVote, Vote
from ringraft.state.model import Done
from tests.consensus.raft_kit import Cluster, cluster, note, run
from tests.consensus.test_raft import virtual
from tests.consensus.test_raft_faults import Watchdog

SLOW = (40.0, 60.0)


@virtual
async def test_entries_are_acknowledged_once_they_are_durable() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader = await c.leader()
        followers = [name for name in c.names if name != leader]
        for name in followers:
            c.disk_ms[name] = SLOW
        began_s = c.loop.time()
        await c.write("b")
        assert 0.04 < c.loop.time() - began_s < 0.2


@virtual
async def test_a_leader_with_a_slow_disk_does_not_stall_the_others() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader = await c.leader()
        c.disk_ms[leader] = (400.0, 450.0)
        await asyncio.sleep(0.5)
        began_s = c.loop.time()
        for number in range(20):
            await c.write(f"w{number}")
        assert c.loop.time() - began_s < 0.2
        assert await c.leader() == leader
        c.cut_power(leader)
        await c.write("last")
        assert (await c.converged())[-2:] == ["w19", "last"]


@virtual
async def test_a_single_voter_acknowledges_what_is_synced() -> None:
    async with cluster(1) as c:
        await c.write("a")
        c.disk_ms["n1"] = SLOW
        await asyncio.sleep(0.2)
        began_s = c.loop.time()
        pending = c.nodes["n1"].propose(note("b"), deadline_s=1)
        await asyncio.sleep(0.03)
        assert not pending.done()
        assert "b" not in c.states["n1"].notes
        assert isinstance(await pending, Done)
        assert c.loop.time() - began_s >= 0.04
        c.cut_power("n1")
        await c.start("n1")
        await c.write("c")
        assert await c.converged() == ["a", "b", "c"]


@virtual
async def test_votes_and_requests_for_votes_wait_for_their_sync() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader = await c.leader()
        followers = [name for name in c.names if name != leader]
        for name in followers:
            c.disk_ms[name] = SLOW
        c.kill(leader)
        c.network.sent.clear()
        c.network.keep_sent = True
        await c.until(lambda: any(isinstance(m, Vote) for _, _, m in c.network.sent))
        candidate = next(s for s, _, m in c.network.sent if isinstance(m, RequestVote))
        voter = next(s for s, _, m in c.network.sent if isinstance(m, Vote))
        for name in (candidate, voter):
            disk = c.disks[name].after_power_cut()
            vote = next(inode.data for path, inode in disk.inodes.items() if path.name == "vote")
            assert candidate.encode() in bytes(vote)


@virtual
async def test_a_heartbeat_is_answered_however_slow_the_disk_is() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader = await c.leader()
        term = c.nodes[leader].status().epoch.number
        for name in c.names:
            c.disk_ms[name] = (900.0, 1000.0)
        acknowledged = await asyncio.gather(*(c.write(f"w{n}", deadline_s=9) for n in range(5)))
        assert len(acknowledged) == 5
        assert c.nodes[leader].status().epoch.number == term


@virtual
async def test_a_mismatch_is_told_at_once() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader = await c.leader()
        follower = next(name for name in c.names if name != leader)
        c.disk_ms[follower] = (900.0, 1000.0)
        status = c.nodes[follower].status()
        c.network.sent.clear()
        c.network.keep_sent = True
        term, last = status.epoch.number, status.last_index
        c.nodes[follower].on_messages(leader, [Append(term, last + 9, term, 0, ((term, b"\x00x"),))])
        refusals = [m for s, _, m in c.network.sent if s == follower and isinstance(m, Appended) and not m.matched]
        assert len(refusals) == 1


@virtual
async def test_an_installed_snapshot_is_told_once_the_log_follows_it() -> None:
    async with cluster(3, config=RaftConfig(snapshot_entries=30)) as c:
        await c.write("a")
        away = next(name for name in c.names if name != c.leader_now())
        c.kill(away)
        for number in range(120):
            await c.write(f"w{number}")
        c.disk_ms[away] = SLOW
        c.network.keep_sent = True
        await c.start(away)
        await c.until(lambda: any(isinstance(m, ChunkTaken) and m.installed for _, _, m in c.network.sent))
        index = next(m.end_index for _, _, m in c.network.sent if isinstance(m, ChunkTaken) and m.installed)
        c.cut_power(away)
        del c.disk_ms[away]
        await c.start(away)
        assert c.nodes[away].status().snapshot_index >= index
        await c.converged()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("whose", ["leader", "follower"])
def test_a_node_whose_sync_fails_says_so_once_and_stops(
    code: int, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster(3) as c:
            c.expected_failures = True
            await c.write("a")
            leader = await c.leader()
            victim = leader if whose == "leader" else next(name for name in c.names if name != leader)
            disk = c.disks[victim]
            disk.fail_at, disk.fail_errno = disk.operations + 1, code
            while victim not in c.failures:
                with contextlib.suppress(Indeterminate):
                    await c.write("again")
            node = c.nodes.pop(victim)
            c.states.pop(victim)
            operations = disk.operations
            await c.write("c")
            await c.converged()
            with pytest.raises(Unavailable, match="does not take part"):
                await node.propose(note("d"), deadline_s=1)
            assert disk.operations == operations, "nothing is tried again on a disk that failed"

    run(scenario())
    assert len([record for record in caplog.records if record.levelname == "CRITICAL"]) == 1


@virtual
async def test_all_lose_power_at_once_and_nothing_acknowledged_is_lost() -> None:
    async with cluster(3, seed=4) as c:
        for name in c.names:
            c.disk_ms[name] = (0.1, 12.0)
        kept = []
        for round_number in range(8):
            for number in range(6):
                await c.write(f"r{round_number}w{number}")
                kept.append(f"r{round_number}w{number}")
            doomed = [c.nodes[await c.leader()].propose(note("unsure" * 300), deadline_s=1) for _ in range(3)]
            await asyncio.sleep(c.rng.uniform(0, 0.01))
            c.cut_power()
            await asyncio.gather(*doomed, return_exceptions=True)
            await c.start()
        await c.write("last")
        assert [text for text in await c.converged() if not text.startswith("unsure")] == [*kept, "last"]


FAULTS = st.one_of(
    st.tuples(st.just("power"), st.integers(1, 31)),
    st.tuples(st.just("kill"), st.integers(1, 31)),
    st.tuples(st.just("cut"), st.integers(1, 31)),
    st.tuples(st.just("one way"), st.integers(0, 19)),
    st.tuples(st.just("heal"), st.just(0)),
    st.tuples(st.just("start"), st.just(0)),
    st.tuples(st.just("slow"), st.integers(1, 31)),
    st.tuples(st.just("transfer"), st.integers(0, 4)),
)
"""(what, whom: a bit for each node)."""


async def act(c: Cluster, what: str, whom: int) -> None:
    chosen = [name for bit, name in enumerate(c.names) if whom >> bit & 1]
    match what:
        case "power":
            c.cut_power(*chosen)
        case "kill":
            for name in chosen:
                if name in c.nodes:
                    c.kill(name)
        case "cut":
            c.network.partition(chosen, [name for name in c.names if name not in chosen])
        case "one way":
            pairs = [(a, b) for a in c.names for b in c.names if a != b]
            c.network.cut = {pairs[whom % len(pairs)]} if pairs else set()
            c.network.refresh()
        case "heal":
            c.network.heal()
        case "start":
            await c.start()
        case "slow":
            for name in c.names:
                c.disk_ms[name] = (5.0, 120.0) if name in chosen else (0.05, 3.0)
        case "transfer":
            leader = c.leader_now()
            if leader is not None:
                with_whom = c.names[whom % len(c.names)]
                with contextlib.suppress(NotLeader, Unavailable):
                    await c.nodes[leader].transfer(with_whom, deadline_s=0.5)


async def survive(count: int, seed: int, schedule: list[tuple[tuple[str, int], float]]) -> None:
    acknowledged: list[str] = []
    async with cluster(count, seed=seed, config=RaftConfig(snapshot_entries=50, segment_bytes=4096)) as c:
        rng = random.Random(seed)
        c.may_tell_late = True
        for name in c.names:
            c.disk_ms[name] = (0.05, 3.0)

        async def write_all_the_time() -> None:
            for number in range(1_000_000):
                if c.nodes:
                    node = c.nodes[rng.choice(sorted(c.nodes))]
                    text = f"w{number}" + "x" * rng.choice([0, 0, 700])
                    try:
                        async with asyncio.timeout(1.001):
                            assert isinstance(await node.propose(note(text), deadline_s=1.0), Done)
                        acknowledged.append(text)
                    except (NotLeader, Unavailable, Indeterminate):
                        pass
                await asyncio.sleep(rng.uniform(0.0005, 0.01))

        tasks = [asyncio.create_task(Watchdog(c).watch()), asyncio.create_task(write_all_the_time())]
        for (what, whom), pause_s in schedule:
            await act(c, what, whom)
            done, _ = await asyncio.wait(tasks, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            assert not done, [task.exception() for task in done]
        tasks[1].cancel()
        c.disk_ms.clear()
        await c.start()
        c.network.heal()
        await c.write("last")
        notes = await c.converged()
        assert not tasks[0].done(), tasks[0].exception()
        tasks[0].cancel()
        assert [text for text in notes if text in set(acknowledged)] == acknowledged
        assert len(notes) == len(set(notes))


@settings(max_examples=25, deadline=None)
@given(
    count=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 2**32),
    schedule=st.lists(st.tuples(FAULTS, st.floats(0.01, 0.8)), min_size=1, max_size=14),
)
def test_whatever_faults_come_what_was_acknowledged_stays(
    count: int, seed: int, schedule: list[tuple[tuple[str, int], float]]
) -> None:
    run(survive(count, seed, schedule))


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_power_comes_and_goes_and_what_was_acknowledged_stays(count: int, seed: int) -> None:
    rng = random.Random(f"{count} {seed}")
    everybody = 2**count - 1
    schedule: list[tuple[tuple[str, int], float]] = []
    for _ in range(12):
        schedule.append((("slow", rng.randint(0, everybody)), rng.uniform(0.2, 0.9)))
        schedule.append(
            (("power", everybody if rng.random() < 0.7 else rng.randint(1, everybody)), rng.uniform(0, 0.3))
        )
        schedule.append((("start", 0), rng.uniform(0.1, 1.0)))
    run(survive(count, seed, schedule))


class Times:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.syncs: list[float] = []
        self.commits: list[float] = []
        self.applies: list[float] = []

    def synced(self, seconds: float) -> None:
        self.syncs.append(seconds)

    def committed(self, seconds: float) -> None:
        self.commits.append(seconds)

    def took_apply(self, seconds: float) -> None:
        self.applies.append(seconds)


@virtual
async def test_how_long_syncs_commits_and_applies_take_is_told() -> None:
    async with cluster(3) as c:
        await c.write("a")
        for name in c.names:
            c.disk_ms[name] = SLOW
        leader = await c.leader()
        times = Times()
        c.nodes[leader].meter.tell(times)
        for number in range(5):
            await c.write(f"w{number}")
        assert len(times.commits) == len(times.applies) == 5
        assert min(times.commits) >= 0.04
        assert len(times.syncs) >= 4


@pytest.mark.parametrize("seed", range(6))
def test_disks_slower_than_the_election_time_out_delay_an_election_and_do_not_prevent_it(seed: int) -> None:
    """Nobody goes on to the next term while its own disk still has the one before to keep."""
    sync_ms = 3 * RaftConfig().election_max_ms

    async def scenario() -> None:
        async with cluster(3, seed=seed) as c:
            await c.write("a")
            c.disk_ms = dict.fromkeys(c.names, (0.9 * sync_ms, 1.1 * sync_ms))
            old, began_s = await c.leader(), c.loop.time()
            c.kill(old)
            await c.until(lambda: c.leader_now() not in (None, old), 60)
            assert c.loop.time() - began_s < 4 * sync_ms / 1000

    run(scenario())
