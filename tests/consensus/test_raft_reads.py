"""Linearizable reads without an entry in the log."""

import asyncio

import pytest

from ringraft.consensus.base import NotLeader, Role, Unavailable
from ringraft.consensus.replog.codec import Append, Appended, AskIndex, Message, ReadIndex
from tests.consensus.raft_kit import cluster
from tests.consensus.test_raft import virtual


@virtual
async def test_reads_that_wait_share_a_round_and_write_nothing() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader = c.nodes[await c.leader()]
        await asyncio.sleep(0.05)
        before = leader.status()
        c.network.keep_sent = True
        began_s = c.loop.time()
        indexes = await asyncio.gather(*(leader.read_barrier(deadline_s=1) for _ in range(50)))
        assert c.loop.time() - began_s < 0.004, "about a round trip, also when idle"
        assert set(indexes) == {before.commit_index}
        assert leader.status().last_index == before.last_index
        rounds = [m for _, _, m in c.network.sent if isinstance(m, Append)]
        assert len(rounds) <= 4


@virtual
async def test_a_read_that_comes_during_a_round_waits_for_the_next() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader = await c.leader()
        followers = [name for name in c.names if name != leader]
        held: list[tuple[str, str, Message]] = []

        def hold(source: str, target: str, message: Message) -> bool:
            if source in followers and isinstance(message, Appended) and message.round and len(held) < 2:
                held.append((source, target, message))
                return False
            return True

        c.network.tamper = hold
        first = asyncio.ensure_future(c.nodes[leader].read_barrier(deadline_s=2))
        await c.until(lambda: len(held) == 2)
        second = asyncio.ensure_future(c.nodes[leader].read_barrier(deadline_s=2))
        await asyncio.sleep(0)
        for source, _, message in held:
            c.nodes[leader].on_messages(source, [message])
        await first
        assert not second.done()
        await second


@virtual
async def test_an_idle_follower_is_answered_within_two_round_trips() -> None:
    async with cluster(3) as c:
        await c.write("a")
        await asyncio.sleep(0.3)
        follower = next(name for name in c.names if name != c.leader_now())
        c.network.keep_sent = True
        began_s = c.loop.time()
        await asyncio.gather(*(c.nodes[follower].read_barrier(deadline_s=1) for _ in range(20)))
        assert c.loop.time() - began_s < 0.006
        assert len([m for _, _, m in c.network.sent if isinstance(m, AskIndex)]) <= 2


@virtual
async def test_reads_do_not_wait_for_disks() -> None:
    async with cluster(3) as c:
        await c.write("a")
        for name in c.names:
            c.disk_ms[name] = (200.0, 200.0)
        leader = await c.leader()
        pending = asyncio.ensure_future(c.write("b"))
        await asyncio.sleep(0.005)
        began_s = c.loop.time()
        await c.nodes[leader].read_barrier(deadline_s=1)
        assert c.loop.time() - began_s < 0.01
        await pending


@virtual
async def test_a_single_voter_reads_at_once() -> None:
    async with cluster(1) as c:
        await c.write("a")
        began_s = c.loop.time()
        assert await c.nodes["n1"].read_barrier(deadline_s=1) >= 1
        assert c.loop.time() == began_s


@virtual
async def test_a_new_leader_confirms_nothing_before_its_first_entry_is_applied() -> None:
    async with cluster(3) as c:
        await c.write("a")
        old = await c.leader()
        rest = [name for name in c.names if name != old]

        def no_entries(source: str, _target: str, message: Message) -> bool:
            return not (source in rest and isinstance(message, Append) and message.entries)

        c.network.tamper = no_entries
        c.kill(old)
        new = str(await c.until(lambda: next((n for n in rest if c.nodes[n].status().role is Role.LEADER), None)))
        with pytest.raises((Unavailable, NotLeader)):
            await c.nodes[new].read_barrier(deadline_s=0.2)
        c.network.tamper = None
        await c.write("b")
        index = await c.nodes[await c.leader()].read_barrier(deadline_s=1)
        assert index >= 3


@virtual
async def test_a_question_that_was_lost_is_asked_again() -> None:
    async with cluster(3) as c:
        await c.write("a")
        follower = next(name for name in c.names if name != c.leader_now())
        lost: list[Message] = []

        def lose(_source: str, _target: str, message: Message) -> bool:
            if isinstance(message, AskIndex | ReadIndex) and len(lost) < 3:
                lost.append(message)
                return False
            return True

        c.network.tamper = lose
        began_s = c.loop.time()
        await c.nodes[follower].read_barrier(deadline_s=5)
        assert c.loop.time() - began_s < 1.0
        assert len(lost) == 3


@virtual
async def test_a_read_outlives_the_leader_it_was_asked_of() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader = await c.leader()
        follower = next(name for name in c.names if name != leader)
        c.network.tamper = lambda source, target, message: not isinstance(message, ReadIndex)
        pending = asyncio.ensure_future(c.nodes[follower].read_barrier(deadline_s=5))
        await asyncio.sleep(0.01)
        c.network.tamper = None
        c.kill(leader)
        index = await pending
        assert "a" in c.states[follower].notes
        assert c.nodes[follower].applied_index >= index


@virtual
async def test_a_leader_paused_and_deposed_confirms_no_read() -> None:
    async with cluster(3) as c:
        await c.write("a")
        old = await c.leader()
        rest = [name for name in c.names if name != old]
        c.network.cut = {(name, old) for name in rest}
        await asyncio.sleep(0.01)
        asked = asyncio.ensure_future(c.nodes[old].read_barrier(deadline_s=3))
        await c.deposed(old)
        await c.write("b")
        assert not asked.done()
        c.network.heal()
        index = await asked
        assert "b" in c.states[old].notes, "it was answered by the new leader, with all that it had committed"
        assert c.nodes[old].applied_index >= index
