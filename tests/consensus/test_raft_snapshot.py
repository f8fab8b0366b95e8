"""Snapshots: made beside traffic, the log behind them dropped, sent to whom the log no longer reaches."""

import asyncio
from collections.abc import Iterator

import msgpack
import pytest

from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog.codec import Chunk, Message
from tests.consensus.raft_kit import DIRECTORY, Cluster, LoopClock, Notes, Rebuilding, cluster, run

CONFIG = RaftConfig(snapshot_entries=40, segment_bytes=4096)


async def leave_behind(c: Cluster, count: int = 200) -> str:
    """Kill a follower and write so much that the log no longer reaches it."""
    await c.write("a")
    away = next(name for name in c.names if name != c.leader_now())
    c.kill(away)
    for number in range(count):
        await c.write(f"w{number}")
    return away


EXPECTED = ["a", *(f"w{number}" for number in range(200))]


def test_the_log_stays_short_and_a_restart_begins_at_the_snapshot() -> None:
    async def scenario() -> None:
        async with cluster(1, config=CONFIG) as c:
            for number in range(500):
                await c.write(f"w{number}")
            status = c.nodes["n1"].status()
            assert status.snapshot_index > 400
            assert len(c.nodes["n1"]._log._journal) <= 60
            c.kill("n1")
            await c.start("n1")
            await c.write("last")
            assert await c.converged() == [*(f"w{number}" for number in range(500)), "last"]
            assert c.states["n1"].restored == 1

    run(scenario())


def test_a_follower_that_the_log_no_longer_reaches_is_sent_a_snapshot() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c)
            await c.start(away)
            assert await c.converged() == EXPECTED
            assert c.states[away].restored == 1
            c.kill(away)
            await c.start(away)
            assert await c.converged() == EXPECTED

    run(scenario())


def test_an_installation_that_takes_long_deposes_nobody() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c)
            term = c.nodes[await c.leader()].status().epoch.number
            await c.start(away)
            state, clock = c.states[away], c.nodes[away]._clock
            assert isinstance(clock, LoopClock)

            class Slow(Rebuilding):
                def replace(self) -> Iterator[None]:
                    clock.ahead_s += 2
                    return super().replace()

            state.rebuild = lambda: Slow(state)  # type: ignore[method-assign]
            assert await c.converged() == EXPECTED
            await asyncio.sleep(1)
            assert state.restored == 1
            assert {node.status().epoch.number for node in c.nodes.values()} == {term}

    run(scenario())


def test_what_an_installed_node_was_sent_it_can_send_on() -> None:
    async def scenario() -> None:
        async with cluster(5, config=CONFIG) as c:
            first = await leave_behind(c, 0)
            second = next(name for name in c.names if name in c.nodes and name != c.leader_now())
            c.kill(second)
            for number in range(200):
                await c.write(f"w{number}")
            await c.start(first)
            await c.converged()
            await c.nodes[await c.leader()].transfer(first, deadline_s=1)
            await c.start(second)
            assert await c.converged() == EXPECTED
            assert c.states[second].restored == 1
            for number in range(50):
                await c.write(f"z{number}")
            assert len(await c.converged()) == len(EXPECTED) + 50

    run(scenario())


def test_a_slightly_late_follower_is_served_from_the_log() -> None:
    async def scenario() -> None:
        async with cluster(3, config=RaftConfig(snapshot_entries=400)) as c:
            await c.write("a")
            for number in range(380):
                await c.write(f"w{number}")
            away = next(name for name in c.names if name != c.leader_now())
            c.kill(away)
            for number in range(60):
                await c.write(f"x{number}")
            await c.until(lambda: c.nodes[c.leader_now() or ""].status().snapshot_index > 380)
            await c.start(away)
            await c.converged()
            assert c.states[away].restored == 0

    run(scenario())


def test_a_transfer_that_breaks_begins_again() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c)
            seen = []

            def cut_once(source: str, target: str, message: Message) -> bool:
                if isinstance(message, Chunk):
                    seen.append(message.number)
                    if seen.count(3) == 1 and message.number == 3 and len(seen) < 10:
                        leader = source
                        c.network.cut = {(leader, away), (away, leader)}
                        c.network.refresh()
                        c.loop.call_later(0.1, c.network.heal)
                        return False
                return True

            c.network.tamper = cut_once
            await c.start(away)
            assert await c.converged() == EXPECTED
            assert seen.count(0) >= 2

    run(scenario())


def test_a_leader_killed_while_it_sends_is_replaced_as_sender() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c)
            killed: list[str] = []

            def kill_at_chunk(source: str, _target: str, message: Message) -> bool:
                if isinstance(message, Chunk) and message.number == 2 and not killed:
                    killed.append(source)
                    c.loop.call_soon(c.kill, source)
                return True

            c.network.tamper = kill_at_chunk
            await c.start(away)
            await c.until(lambda: killed)
            await c.deposed(killed[0])
            await c.start(killed[0])
            await c.write("last")
            assert await c.converged() == [*EXPECTED, "last"]

    run(scenario())


def test_a_node_killed_while_it_takes_a_snapshot_starts_again() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c)
            killed: list[str] = []

            def kill_receiver(_source: str, target: str, message: Message) -> bool:
                if isinstance(message, Chunk) and message.number == 4 and not killed:
                    killed.append(target)
                    c.loop.call_later(0.002, c.kill, target)
                return True

            c.network.tamper = kill_receiver
            await c.start(away)
            await c.until(lambda: away not in c.nodes)
            await c.start(away)
            assert await c.converged() == EXPECTED

    run(scenario())


def test_chunks_twice_and_in_any_order_install_the_same_state() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG, seed=9) as c:
            away = await leave_behind(c)
            c.network.duplicate = 0.5
            await c.start(away)
            assert await c.converged() == EXPECTED

    run(scenario())


def test_the_term_of_a_leaders_snapshot_is_kept_before_the_snapshot_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut leaves a snapshot of a term that this node's vote does not know, and it refuses to start."""

    def in_one_chunk(state: Notes) -> Iterator[bytes]:
        # No more chunks than may be under way: none waits for an answer, which would wait for the sync.
        pieces = [*chunks_of(state)]
        yield pieces[0]
        yield msgpack.packb([note for piece in pieces[1:] for note in msgpack.unpackb(piece)])

    chunks_of = Notes.snapshot
    monkeypatch.setattr(Notes, "snapshot", in_one_chunk)

    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c, 20)
            leader = await c.leader()
            other = next(name for name in c.names if name not in (away, leader))
            await c.nodes[leader].transfer(other, deadline_s=1)
            for number in range(200):
                await c.write(f"w{number}")
            await c.start(away)
            syncs = c.nodes[away]._syncer._thread
            c.loop.work_takes_s = lambda executor: (0.5 if executor is syncs else 0.0, True)
            directory = DIRECTORY / "snapshot"
            await c.until(lambda: any(name.endswith(".snap") for name in c.disks[away].names(directory)))
            c.cut_power(away)
            c.loop.work_takes_s = lambda executor: (0.0, False)
            await c.start(away)
            await c.converged()

    run(scenario())
