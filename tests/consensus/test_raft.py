"""The log on virtual time: three voters and one, elections, writes, reads, handing over."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from ringraft.consensus.base import Indeterminate, Leadership, NotLeader, Role, Unavailable
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog.codec import Append, Appended, Message, RequestVote, Vote
from ringraft.consensus.replog.followers import APPEND_BYTES_MAX, APPEND_BYTES_ON_WAY_MAX
from ringraft.state.commands import Begin
from ringraft.state.model import Done, Rejected
from tests.consensus.raft_kit import cluster, note, run


def virtual(scenario: Any) -> Any:
    """A test on virtual time; what is awaited costs no real time."""

    def test(*args: Any, **kwargs: Any) -> None:
        coroutine: Coroutine[Any, Any, None] = scenario(*args, **kwargs)
        run(coroutine)

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


@virtual
async def test_three_nodes_elect_write_and_apply() -> None:
    async with cluster(3) as c:
        for number in range(20):
            assert await c.write(f"w{number}") == number + 1
        assert await c.converged() == [f"w{number}" for number in range(20)]


@virtual
async def test_one_voter_leads_at_once_and_keeps_what_it_acknowledged() -> None:
    async with cluster(1) as c:
        began_s = c.loop.time()
        await c.write("a")
        assert c.loop.time() - began_s < 0.01
        c.kill("n1")
        await c.start("n1")
        await c.write("b")
        assert await c.converged() == ["a", "b"]


@virtual
async def test_the_first_entry_of_each_term_begins_it() -> None:
    async with cluster(3) as c:
        await c.write("a")
        old = await c.leader()
        c.kill(old)
        await c.write("b")
        state = c.states[await c.leader()]
        begins = [entry for _, entry in state.entries if isinstance(entry.commands[0].op, Begin)]
        assert [entry.commands[0].op.leader_id for entry in begins] == [old, await c.leader()]
        numbers = [entry.epoch.number for _, entry in state.entries]
        assert numbers == sorted(numbers)
        assert len(begins) == len(set(numbers))


@virtual
async def test_log_time_goes_on_from_what_the_last_leader_reached() -> None:
    async with cluster(3) as c:
        await c.write("a")
        await asyncio.sleep(7)
        await c.write("b")
        before_ms = c.states[await c.leader()].log_ms
        c.kill(await c.leader())
        await asyncio.sleep(60)
        await c.write("c")
        await asyncio.sleep(1)
        await c.write("d")
        times = [entry.log_ms for _, entry in c.states[await c.leader()].entries]
        assert 7000 <= before_ms <= 7100
        assert times == sorted(times)
        assert times[-1] - before_ms < 62_000


@virtual
async def test_commands_that_arrive_together_travel_in_one_entry() -> None:
    async with cluster(3) as c:
        await c.write("first")
        leader = c.nodes[await c.leader()]
        before = leader.status().last_index
        outcomes = await asyncio.gather(*(leader.propose(note(f"w{n}"), deadline_s=1) for n in range(100)))
        assert all(isinstance(outcome, Done) for outcome in outcomes)
        assert leader.status().last_index == before + 1


@virtual
async def test_an_entry_holds_no_more_than_its_limits() -> None:
    async with cluster(3, config=RaftConfig(entry_commands_max=10, entry_bytes_max=2000)) as c:
        await c.write("first")
        leader = c.nodes[await c.leader()]
        big = [leader.propose(note(f"{n}" + "x" * 300), deadline_s=1) for n in range(20)]
        small = [leader.propose(note(f"s{n}"), deadline_s=1) for n in range(25)]
        too_big = leader.propose(note("y" * 3000), deadline_s=1)
        after = leader.propose(note("after"), deadline_s=1)
        await asyncio.gather(*big, *small, after)
        refused = await too_big
        assert isinstance(refused, Rejected)
        assert refused.code == "too_large"
        assert "entry_bytes_max is 2000" in refused.detail
        assert await c.converged() == [
            "first", *(f"{n}" + "x" * 300 for n in range(20)), *(f"s{n}" for n in range(25)), "after",
        ]  # fmt: skip
        entries = [entry for _, entry in c.states[await c.leader()].entries]
        assert max(len(entry.commands) for entry in entries) <= 10


@virtual
async def test_an_entry_of_any_size_below_the_limit_reaches_the_followers() -> None:
    async with cluster(3) as c:
        for size in (65_530, 65_536, 65_540, 131_000, 131_072, 1_048_570, 1_048_577, 3_000_000):
            await c.write("x" * size, deadline_s=2)
        assert [len(text) for text in await c.converged()][-1] == 3_000_000


@virtual
async def test_a_follower_refuses_and_names_the_leader() -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        for name in c.names:
            if name != leader:
                with pytest.raises(NotLeader) as refused:
                    await c.nodes[name].propose(note("a"), deadline_s=1)
                assert refused.value.leader_id == leader


@virtual
async def test_without_a_majority_nothing_is_acknowledged() -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        await c.write("a")
        for name in c.names:
            if name != leader:
                c.kill(name)
        began_s = c.loop.time()
        pending = c.nodes[leader].propose(note("b"), deadline_s=0.3)
        with pytest.raises(Indeterminate):
            await pending
        assert c.loop.time() - began_s < 0.31
        await c.until(lambda: c.nodes[leader].status().role is not Role.LEADER, 0.6)
        with pytest.raises(NotLeader):
            await c.nodes[leader].propose(note("c"), deadline_s=0.3)


@virtual
async def test_a_leader_that_is_cut_off_knows_within_an_election_timeout() -> None:
    async with cluster(3) as c:
        old = await c.leader()
        await c.write("a")
        rest = [name for name in c.names if name != old]
        c.network.partition([old], rest)
        began_s = c.loop.time()
        await c.until(lambda: c.nodes[old].status().role is not Role.LEADER)
        assert c.loop.time() - began_s < 0.6
        assert not c.nodes[old].status().has_quorum
        await c.write("b")
        c.network.heal()
        assert await c.converged() == ["a", "b"]


@virtual
async def test_what_a_deposed_leader_had_under_way_ends_by_what_is_applied_there() -> None:
    async with cluster(3) as c:
        old = await c.leader()
        await c.write("a")
        c.network.partition([old], [name for name in c.names if name != old])
        await asyncio.sleep(0.01)
        lost = c.nodes[old].propose(note("lost"), deadline_s=5)
        await c.deposed(old)
        await c.write("b")
        c.network.heal()
        with pytest.raises(NotLeader) as refused:
            await lost
        assert refused.value.leader_id == await c.leader()
        assert await c.converged() == ["a", "b"]


@virtual
async def test_what_a_deposed_leader_had_under_way_is_done_if_it_was_committed() -> None:
    async with cluster(3) as c:
        old = await c.leader()
        await c.write("a")
        others = [name for name in c.names if name != old]
        c.network.cut = {(name, old) for name in others}  # it can speak, and hears nobody
        kept = c.nodes[old].propose(note("kept"), deadline_s=5)
        await asyncio.sleep(0.01)
        c.network.partition([old], others)
        await c.until(lambda: any(c.nodes[name].status().role is Role.LEADER for name in others))
        await c.write("b")
        c.network.heal()
        assert isinstance(await kept, Done)
        assert await c.converged() == ["a", "kept", "b"]


@virtual
async def test_killing_the_leader_leaves_a_short_gap() -> None:
    gaps = []
    async with cluster(3, seed=5) as c:
        for number in range(12):
            await c.write(f"w{number}")
            victim, began_s = await c.leader(), c.loop.time()
            c.kill(victim)
            await c.write(f"after{number}")
            gaps.append(c.loop.time() - began_s)
            await c.start(victim)
            await c.converged()
    assert sorted(gaps)[len(gaps) // 2] < 0.1
    assert max(gaps) < 1.2


@virtual
async def test_a_leader_that_only_falls_silent_is_replaced_by_the_timeout() -> None:
    async with cluster(3) as c:
        victim = await c.leader()
        await c.write("a")
        began_s = c.loop.time()
        c.kill(victim, refuses=False)
        await c.write("b")
        assert 0.2 < c.loop.time() - began_s < 1.2


@virtual
async def test_all_killed_at_once_lose_nothing_acknowledged() -> None:
    async with cluster(3) as c:
        for round_number in range(3):
            for number in range(5):
                await c.write(f"r{round_number}w{number}")
            for name in c.names:
                c.kill(name)
            await c.start()
        await c.write("last")
        assert await c.converged() == [f"r{r}w{n}" for r in range(3) for n in range(5)] + ["last"]


@virtual
async def test_a_follower_that_was_away_catches_up_from_the_log() -> None:
    async with cluster(3) as c:
        await c.write("a")
        away = next(name for name in c.names if name != c.leader_now())
        c.kill(away)
        for number in range(300):
            await c.write(f"w{number}")
        await c.start(away)
        began_s = c.loop.time()
        await c.converged()
        assert c.loop.time() - began_s < 0.1
        assert c.states[away].restored == 0


@virtual
async def test_a_follower_far_behind_is_sent_only_so_much_before_it_answers() -> None:
    async with cluster(3) as c:
        await c.write("a")
        away = next(name for name in c.names if name != c.leader_now())
        c.kill(away)
        for _ in range(40):
            await c.write("x" * 1024 * 1024)
        on_way: dict[int, int] = {}
        most = 0

        def watch(source: str, target: str, message: Message) -> bool:
            nonlocal most
            if target == away and isinstance(message, Append):
                on_way.update({message.prev_index + at: len(data) for at, (_, data) in enumerate(message.entries, 1)})
                most = max(most, sum(on_way.values()))
            elif source == away and isinstance(message, Appended) and message.matched:
                for index in [index for index in on_way if index <= message.log_index]:
                    del on_way[index]
            return True

        c.network.tamper = watch
        await c.start(away)
        await c.converged()
        assert most < APPEND_BYTES_ON_WAY_MAX + 2 * APPEND_BYTES_MAX


@virtual
async def test_an_uncommitted_tail_is_replaced_in_a_few_exchanges() -> None:
    async with cluster(3) as c:
        old = await c.leader()
        await c.write("a")
        c.network.partition([old], [name for name in c.names if name != old])
        await asyncio.sleep(0.01)
        doomed = []
        for number in range(200):
            doomed.append(c.nodes[old].propose(note("x" * 2000 + str(number)), deadline_s=9))
            await asyncio.sleep(0.001)
        await c.deposed(old)
        for number in range(50):
            await c.write(f"w{number}")
        c.network.heal()
        began_s = c.loop.time()
        await c.converged()
        assert c.loop.time() - began_s < 0.2
        endings = await asyncio.gather(*doomed, return_exceptions=True)
        assert {type(ending) for ending in endings} == {NotLeader}


@virtual
async def test_every_message_twice_and_in_any_order_changes_nothing() -> None:
    async with cluster(3, seed=3) as c:
        c.network.duplicate, c.network.reorder, c.network.delay_ms = 0.5, True, (0.1, 30.0)
        for number in range(60):
            await c.write(f"w{number}")
        assert await c.converged() == [f"w{number}" for number in range(60)]


@virtual
async def test_a_vote_that_comes_twice_counts_once() -> None:
    async with cluster(5) as c:
        leader = await c.leader()
        c.kill(leader)
        alive = [name for name in c.names if name != leader]
        candidate, voter, others = alive[0], alive[1], alive[2:]

        def only_one_voter(source: str, target: str, message: Message) -> bool:
            if isinstance(message, RequestVote):
                return source == candidate and target == voter
            return True

        c.network.tamper, c.network.duplicate = only_one_voter, 1.0
        c.nodes[candidate].campaign("test")
        await asyncio.sleep(2)
        assert all(node.status().role is not Role.LEADER for node in c.nodes.values())
        assert others


@virtual
async def test_messages_of_an_old_term_are_answered_with_the_new_one_and_ignored() -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        await c.write("a")
        c.network.keep_sent = True
        links = c.nodes[leader]._links
        follower = next(name for name in c.names if name != leader)
        node = c.nodes[follower]
        before = node.status()
        node.on_messages(leader, [Append(0, 1, 0, 99, ((0, b"\x00x"),)), Vote(0), Appended(0, 5, True, 99, 0)])
        await asyncio.sleep(0.01)
        assert node.status().last_index == before.last_index
        answers = [m for s, t, m in c.network.sent if s == follower and t == leader and isinstance(m, Appended)]
        assert (answers[0].term, answers[0].matched) == (before.epoch.number, False)
        assert links


@virtual
async def test_an_idle_cluster_keeps_its_leader_and_says_little() -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        await c.write("a")
        await asyncio.sleep(0.2)
        c.network.keep_sent = True
        term, began_s = c.nodes[leader].status().epoch.number, c.loop.time()
        await asyncio.sleep(60)
        assert c.nodes[leader].status().epoch.number == term
        heartbeats = 60 / 0.075 * 2
        assert len(c.network.sent) <= heartbeats * 2 + 4
        assert round(c.loop.time() - began_s, 6) >= 60


@virtual
async def test_a_commit_is_told_by_the_entry_that_follows() -> None:
    async with cluster(3) as c:
        await c.write("a")
        await asyncio.sleep(0.1)
        c.network.keep_sent = True
        for number in range(30):
            await c.write(f"w{number}")
        appends = [m for _, _, m in c.network.sent if isinstance(m, Append)]
        assert len(appends) <= 2 * 30 + 8
        await asyncio.sleep(0.01)
        assert len({node.applied_index for node in c.nodes.values()}) == 1


@virtual
async def test_a_read_at_a_follower_sees_what_was_acknowledged() -> None:
    async with cluster(3) as c:
        for number in range(10):
            await c.write(f"w{number}")
            follower = next(name for name in c.names if name != c.leader_now())
            index = await c.nodes[follower].read_barrier(deadline_s=1)
            assert c.nodes[follower].applied_index >= index
            assert f"w{number}" in c.states[follower].notes


@virtual
async def test_a_read_is_never_answered_by_a_leader_that_is_cut_off() -> None:
    async with cluster(3) as c:
        old = await c.leader()
        await c.write("a")
        rest = [name for name in c.names if name != old]
        c.network.partition([old], rest)
        await asyncio.sleep(0.005)
        with pytest.raises((Unavailable, NotLeader)):
            await c.nodes[old].read_barrier(deadline_s=3)


@virtual
async def test_leadership_is_handed_to_whom_was_named() -> None:
    async with cluster(3) as c:
        await c.write("a")
        for _ in range(4):
            old = await c.leader()
            to = next(name for name in c.names if name != old)
            began_s = c.loop.time()
            assert await c.nodes[old].transfer(to, deadline_s=1) == to
            assert c.loop.time() - began_s < 0.05
            assert await c.leader() == to
        await c.write("b")


@virtual
async def test_a_transfer_that_cannot_succeed_leaves_leadership_where_it_is() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader = await c.leader()
        gone = next(name for name in c.names if name != leader)
        c.kill(gone)
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match=f"{gone} is not connected"):
            await c.nodes[leader].transfer(gone, deadline_s=1)
        with pytest.raises(Unavailable, match="not one of the voters"):
            await c.nodes[leader].transfer("stranger", deadline_s=1)
        assert await c.nodes[leader].transfer(leader, deadline_s=1) == leader
        await c.write("b")
        assert await c.leader() == leader


@virtual
async def test_a_transfer_to_one_that_does_not_answer_ends_and_writes_go_on() -> None:
    async with cluster(3) as c:
        await c.write("a")
        leader = await c.leader()
        deaf = next(name for name in c.names if name != leader)
        c.network.tamper = lambda source, target, message: deaf not in (source, target)
        await asyncio.sleep(0.01)
        began_s = c.loop.time()
        transfer = asyncio.ensure_future(c.nodes[leader].transfer(deaf, deadline_s=5))
        await asyncio.sleep(0)
        waiting = c.nodes[leader].propose(note("b"), deadline_s=5)
        with pytest.raises(Unavailable, match="did not take over in time"):
            await transfer
        assert c.loop.time() - began_s < 0.6
        assert isinstance(await waiting, Done)


@virtual
async def test_a_follower_does_not_hand_over() -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        follower = next(name for name in c.names if name != leader)
        with pytest.raises(NotLeader):
            await c.nodes[follower].transfer(None, deadline_s=1)


@virtual
async def test_a_campaign_does_nothing_while_a_leader_is_heard() -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        await c.write("a")
        term = c.nodes[leader].status().epoch.number
        for node in c.nodes.values():
            node.campaign("asked")
        await asyncio.sleep(1)
        assert c.nodes[leader].status().epoch.number == term


@virtual
async def test_watch_tells_each_change_beginning_with_the_present() -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        await c.write("a")
        watcher = next(name for name in c.names if name != leader)
        seen: list[Leadership] = []

        async def watch() -> None:
            async for change in c.nodes[watcher].watch():
                seen.append(change)

        task = asyncio.create_task(watch())
        await asyncio.sleep(0.01)
        c.kill(leader)
        await c.deposed(leader)
        await c.write("b")
        await asyncio.sleep(0.1)
        task.cancel()
        assert seen[0].leader_id == leader
        assert seen[-1].leader_id == c.leader_now()
        assert [change.epoch for change in seen] == sorted(change.epoch for change in seen)


@virtual
async def test_a_paused_follower_does_not_depose_the_leader_on_resume() -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        await c.write("a")
        paused = next(name for name in c.names if name != leader)
        node, term = c.nodes[paused], c.nodes[leader].status().epoch.number
        for _ in range(5):
            # Its timer comes late by two seconds, and heartbeats wait in the socket meanwhile.
            pace = node._pace
            assert pace._timer is not None
            pace._timer.cancel()
            pace._timer_s -= 2.0
            node._log._SyncObj__raftElectionDeadline = c.loop.time() - 2.0
            pace._on_timer()
            await asyncio.sleep(0.2)
        assert c.nodes[leader].status().epoch.number == term


@virtual
async def test_status_tells_how_far_each_voter_is() -> None:
    async with cluster(3) as c:
        for number in range(5):
            await c.write(f"w{number}")
        await c.converged()
        await asyncio.sleep(0.2)
        leader = await c.leader()
        status = c.nodes[leader].status()
        assert status.role is Role.LEADER
        assert status.leader_contact_s == 0.0
        assert status.has_quorum
        assert status.log_bytes > 0
        assert {voter.match_index for voter in status.voters} == {status.last_index}
        assert all(voter.connected for voter in status.voters)
        assert all(voter.last_contact_s is not None and voter.last_contact_s < 0.2 for voter in status.voters)
        follower = c.nodes[next(name for name in c.names if name != leader)].status()
        assert follower.leader_contact_s is not None
        assert follower.leader_contact_s < 0.1
        assert follower.has_quorum


@virtual
async def test_a_failed_disk_ends_the_node_and_the_others_go_on() -> None:
    async with cluster(3) as c:
        c.expected_failures = True
        await c.write("a")
        leader = await c.leader()
        c.disks[leader].fail_at = c.disks[leader].operations + 1
        pending = c.nodes[leader].propose(note("b"), deadline_s=5)
        with pytest.raises((Indeterminate, Unavailable)):
            await pending
        assert leader in c.failures
        dead = c.nodes.pop(leader)
        c.states.pop(leader)
        await c.write("c")
        assert "a" in await c.converged()
        with pytest.raises(Unavailable, match="does not take part"):
            await dead.propose(note("d"), deadline_s=1)


@virtual
async def test_a_replica_that_cannot_apply_stops_and_says_so() -> None:
    async with cluster(3) as c:
        c.expected_failures = True
        await c.write("a")
        follower = next(name for name in c.names if name != c.leader_now())

        def broken(*_: object) -> None:
            raise AssertionError("an invariant broke")

        c.states[follower].apply = broken  # type: ignore[method-assign,assignment]
        await c.write("b")
        await c.until(lambda: follower in c.failures)
        c.nodes.pop(follower)
        c.states.pop(follower)
        await c.write("c")
        assert await c.converged() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"heartbeat_ms": 100, "election_min_ms": 300}, "must exceed 3 × raft.heartbeat_ms"),
        ({"election_min_ms": 500}, "must exceed raft.election_min_ms"),
    ],
)
def test_timers_out_of_order_are_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RaftConfig(**settings)


def test_the_same_seed_gives_the_same_history() -> None:
    async def scenario() -> list[object]:
        async with cluster(3, seed=11) as c:
            c.network.keep_sent, c.network.duplicate = True, 0.2
            await c.write("a")
            c.kill(await c.leader())
            await c.write("b")
            return list(c.network.sent)

    assert run(scenario()) == run(scenario())
