"""Snapshots: made beside traffic, the log behind them dropped, sent to whom the log no longer reaches."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog import install
from ringraft.consensus.replog.codec import Chunk, Message
from ringraft.consensus.replog.sending import PATIENCE_S
from tests.consensus.memory_disk import MemoryDisk
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


class SlowThread:
    """One node's snapshot thread takes long: each piece of work is done when its time is over, if the node lives."""

    def __init__(self, c: Cluster, name: str, takes_s: float) -> None:
        self.cluster, self.name, self.takes_s = c, name, takes_s
        self.node = c.nodes[name]
        self.done = 0
        self.before: Callable[[int], object] | None = None
        self.inline = c.loop.run_in_executor
        c.loop.run_in_executor = self.run  # type: ignore[method-assign, assignment]

    def run(self, executor: Any, act: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        if executor is not self.node._snapshot_thread:
            return self.inline(executor, act, *arguments)
        future = self.cluster.loop.create_future()

        def end() -> None:
            self.done += 1
            if self.before is not None:
                self.before(self.done)
            if self.cluster.nodes.get(self.name) is self.node and not future.cancelled():
                future.set_result(act(*arguments))

        self.cluster.loop.call_later(self.takes_s, end)
        return future


async def building(c: Cluster, away: str) -> SlowThread:
    """Start the one that is behind, and wait until it holds a whole snapshot that it has not changed over to."""
    await c.start(away)
    thread = SlowThread(c, away, 0.4)
    thread.takes_s = 0.002
    taking = c.nodes[away]._images._taking
    await c.until(lambda: taking._is_whole)
    thread.takes_s = 0.4
    return thread


def terms(c: Cluster) -> set[int]:
    return {node.status().epoch.number for node in c.nodes.values()}


def test_while_a_snapshot_is_installed_the_old_state_serves_and_nobody_stands() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c)
            c.network.keep_sent = True
            await building(c, away)
            began_s, term = c.loop.time(), terms(c)
            state, node = c.states[away], c.nodes[away]
            while not state.restored:
                assert len(state.notes) <= 1
                assert node.applied_index < 10
                assert node.status().leader_id == c.leader_now()
                await asyncio.sleep(0.01)
            assert c.loop.time() - began_s > PATIENCE_S
            assert state.notes[:100] == EXPECTED[:100]
            assert node.applied_index >= 100
            assert await c.converged() == EXPECTED
            assert terms(c) == term
            firsts = [m for _, target, m in c.network.sent if isinstance(m, Chunk) and m.number == 0 and target == away]
            assert len(firsts) == 1, "the sender was told that its snapshot is worked on"

    run(scenario())


def test_entries_that_arrive_while_a_snapshot_is_installed_are_kept() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c)
            await building(c, away)
            for number in range(150):
                await c.write(f"z{number}")
            assert not c.states[away].restored
            assert await c.converged(60) == [*EXPECTED, *(f"z{number}" for number in range(150))]
            c.kill(away)
            await c.start(away)
            assert len(await c.converged()) == len(EXPECTED) + 150

    run(scenario())


def test_a_leader_that_changes_while_a_snapshot_is_installed_changes_nothing() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c)
            await building(c, away)
            other = next(name for name in c.names if name not in (away, c.leader_now()))
            await c.nodes[await c.leader()].transfer(other, deadline_s=2)
            await c.write("after")
            assert not c.states[away].restored
            assert await c.converged(60) == [*EXPECTED, "after"]
            assert max(terms(c)) == 2

    run(scenario())


def test_a_link_that_breaks_while_a_snapshot_is_installed_changes_nothing() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c)
            await building(c, away)
            rest = [name for name in c.names if name != away]
            c.network.partition([away], rest)
            await asyncio.sleep(3)
            c.network.heal()
            assert not c.states[away].restored
            await c.write("after")
            assert await c.converged(60) == [*EXPECTED, "after"]

    run(scenario())


def test_a_log_that_comes_as_far_by_itself_needs_no_snapshot() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            await c.write("a")
            away, keeper = [name for name in c.names if name != c.leader_now()]
            c.kill(keeper)
            c.config = RaftConfig(snapshot_entries=10_000, segment_bytes=4096)
            await c.start(keeper)
            c.config = CONFIG
            await c.converged()
            c.kill(away)
            for number in range(200):
                await c.write(f"w{number}")
            await building(c, away)
            await c.nodes[await c.leader()].transfer(keeper, deadline_s=2)
            assert await c.converged(60) == EXPECTED
            node = c.nodes[away]
            await c.until(lambda: not node._images._taking.is_busy)
            assert not c.states[away].restored
            assert node._images.index > 100, "it is a snapshot like any other"
            c.kill(away)
            await c.start(away)
            assert await c.converged() == EXPECTED

    run(scenario())


def test_a_node_that_dies_at_any_piece_of_an_installation_starts_again() -> None:
    async def scenario() -> None:
        async with cluster(3, config=CONFIG) as c:
            away = await leave_behind(c)
            image = c.disks[away].contents()
            pieces = 0
            while True:
                pieces += 1
                c.disks[away] = MemoryDisk.holding(image)
                await c.start(away)
                thread, died = SlowThread(c, away, 0.001), []

                def die(done: int, at: int = pieces, died: list[int] = died) -> None:
                    if done == at:
                        died.append(at)
                        c.kill(away)

                thread.before = die
                state = c.states[away]
                await c.until(lambda died=died, state=state: died or state.restored)  # type: ignore[misc]
                c.loop.run_in_executor = thread.inline  # type: ignore[method-assign]
                if not died:
                    break
                await c.start(away)
                assert await c.converged() == EXPECTED
                c.kill(away)
            assert pieces > 30

    run(scenario())


def test_few_long_entries_are_worth_a_snapshot_too_and_a_large_image_is_not_made_for_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install, "LOG_BYTES_MAX", 20_000)
    monkeypatch.setattr(install, "TRAILING_BYTES_MAX", 2_000)

    async def scenario() -> None:
        async with cluster(1, config=RaftConfig(snapshot_entries=10_000)) as c:
            node = c.nodes["n1"]
            number = 0
            while not node.status().snapshot_index:
                number += 1
                await c.write(f"{number}" + "x" * 1000)
            first = node.status().snapshot_index
            assert 10 < first < 30
            assert node._log.first_index() >= first - 3
            size = node._images.newest_bytes
            assert size > 15_000
            monkeypatch.setattr(install, "LOG_BYTES_MAX", 100)
            await c.write("little")
            assert node.status().snapshot_index == first
            for _ in range(size // install.IMAGE_SHARE // 1000 + 3):
                await c.write("y" * 1000)
            assert node.status().snapshot_index > first

    run(scenario())
