"""Who votes, on virtual time: founding a cluster, lost and old directories, voters that come and go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ringraft.consensus.base import ProposalError, Role
from ringraft.consensus.enrolment import CatchUp
from ringraft.consensus.opening import VoterRemoved
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog.codec import Chunk, ChunkTaken, Message
from ringraft.consensus.replog.filter import Changes
from ringraft.consensus.replog.recovery import JournalDamaged
from ringraft.state.commands import AddLearner, RemoveVoter
from ringraft.state.model import Command, Done, Outcome, Rejected
from tests.consensus.memory_disk import MemoryDisk
from tests.consensus.raft_kit import DIRECTORY, Cluster, cluster, run

Scenario = Callable[..., Coroutine[Any, Any, None]]


def virtual(scenario: Scenario) -> Callable[..., None]:
    def test(*args: Any, **kwargs: Any) -> None:
        run(scenario(*args, **kwargs))

    test.__name__ = scenario.__name__
    test.__doc__ = scenario.__doc__
    test.pytestmark = getattr(scenario, "pytestmark", [])  # type: ignore[attr-defined]
    return test


def standing(c: Cluster, name: str) -> str:
    return c.nodes[name].status().standing


async def change(c: Cluster, make: Callable[[int], Any], *, limit_s: float = 10.0) -> Outcome:
    """Have the leader enter a change decided on its present table, until it is applied or refused for good."""
    end_s = c.loop.time() + limit_s
    while True:
        assert c.loop.time() < end_s, "the change was not entered in time"
        leader = await c.leader()
        op = make(c.states[leader].voter_table.changed_index)
        try:
            outcome = await c.nodes[leader].propose(Command(op), deadline_s=2.0)
        except ProposalError:
            continue
        if isinstance(outcome, Done) or "try again" not in outcome.detail:
            return outcome
        await asyncio.sleep(0.05)


async def admitted(c: Cluster, name: str, limit_s: float = 10.0) -> None:
    def is_in() -> bool:
        if name not in c.nodes or standing(c, name) != "member":
            return False
        return all(
            (record := state.voter_table.voters.get(name)) is not None
            and record.is_voter
            and record.data_id == c.data_ids[name]
            for state in c.states.values()
        )

    await c.until(is_in, limit_s)


# Founding


@virtual
async def test_three_fresh_voters_have_a_leader_well_under_a_second() -> None:
    c = Cluster(3)
    began_s = c.loop.time()
    await c.start()
    leader = await c.leader()
    assert c.loop.time() - began_s < 0.3
    await c.converged()
    for name in c.names:
        table = c.states[name].voter_table
        assert sorted(table.voters) == c.names
        assert [record.data_id for record in table.voters.values()] == [c.data_ids[n] for n in table.voters]
        assert table.formation_id and table == c.states[leader].voter_table
        assert standing(c, name) == "member"
    await c.stop()


@virtual
async def test_two_of_three_found_a_cluster_after_the_wait_and_the_third_is_admitted() -> None:
    c = Cluster(3, config=RaftConfig(formation_wait_ms=2000))
    began_s = c.loop.time()
    await c.start("n1", "n2")
    await asyncio.sleep(1.9)
    assert standing(c, "n1") == standing(c, "n2") == "fresh"
    assert c.leader_now() is None
    await c.write("a")
    assert 2.0 <= c.loop.time() - began_s < 3.0
    await c.start("n3")
    await admitted(c, "n3")
    assert await c.converged() == ["a"]
    c.kill("n1")
    await c.write("b")
    await c.stop()


@virtual
async def test_one_of_three_founds_nothing() -> None:
    c = Cluster(3, config=RaftConfig(formation_wait_ms=100))
    await c.start("n1")
    await asyncio.sleep(20)
    assert standing(c, "n1") == "fresh"
    assert c.nodes["n1"].status().epoch.number == 0
    await c.stop()


@virtual
async def test_a_founder_that_died_before_the_others_founded_is_taken_back() -> None:
    """It has a seat and no log; the others wait for it no longer than the bound."""
    c = Cluster(3, config=RaftConfig(formation_wait_ms=500))
    c.network.tamper = lambda source, target, message: False
    await c.start()
    await asyncio.sleep(0.05)
    c.network.tamper = lambda source, target, message: (source != "n1" and target != "n1") or source == "n2"
    await asyncio.sleep(0.1)
    c.kill("n1")
    c.network.tamper = None
    for name in ("n2", "n3"):
        c.kill(name)
    await c.start("n2", "n3")
    await c.write("a")
    await c.start("n1")
    await c.until(lambda: c.states["n1"].notes == ["a"])
    await c.stop()


@virtual
async def test_a_single_voter_founds_at_once_and_grows() -> None:
    c = Cluster(1)
    await c.start()
    await c.write("a")
    await join(c, "n2")
    await join(c, "n3")
    assert [voter.node_id for voter in c.nodes["n1"].status().voters] == c.names
    c.kill("n1")
    await c.write("b")
    assert sorted(set(await c.converged())) == ["a", "b"]
    await c.stop()


# Lost directories


@virtual
async def test_a_wiped_voter_neither_votes_nor_counts_until_it_is_admitted() -> None:
    async with cluster(3) as c:
        await c.leader()
        await c.write("a")
        await c.converged()
        c.kill("n3")
        await c.write("kept")  # n1 and n2 have it
        c.kill("n1")
        c.wipe("n3")
        await c.start("n3")
        await asyncio.sleep(20)
        assert c.leader_now() is None, "n2 and an empty directory are no majority"
        assert standing(c, "n3") == "learner"
        assert c.nodes["n3"].status().epoch.number == 0, "it has not even taken part in a term"
        await c.start("n1")
        await admitted(c, "n3")
        assert await c.converged() == ["a", "kept"]
        c.kill("n1")
        await c.write("with the new directory")
        assert (await c.converged())[-1] == "with the new directory"


@virtual
async def test_any_minority_may_lose_its_directories_one_after_the_other() -> None:
    async with cluster(5) as c:
        for number in range(6):
            await c.write(f"w{number}")
            gone = c.names[number % 5 : number % 5 + 2]
            for name in gone:
                c.kill(name)
                c.wipe(name)
            await c.write(f"x{number}")
            await c.start(*gone)
            for name in gone:
                await admitted(c, name)
        assert await c.converged() == [f"{kind}{number}" for number in range(6) for kind in "wx"]


@virtual
async def test_a_wiped_leader_comes_back_behind_a_snapshot() -> None:
    async with cluster(3, config=RaftConfig(snapshot_entries=20)) as c:
        for number in range(60):
            await c.write(f"w{number}")
        leader = await c.leader()
        c.kill(leader)
        c.wipe(leader)
        await c.write("later")
        await c.start(leader)
        await admitted(c, leader)
        assert c.states[leader].restored == 1
        assert len(await c.converged()) == 61


@virtual
async def test_a_crash_between_admission_and_taking_it_in_costs_no_seat() -> None:
    async with cluster(3) as c:
        await c.write("a")
        c.kill("n3")
        c.wipe("n3")
        await c.start("n3")

        def elsewhere() -> bool:
            record = c.states["n1"].voter_table.voters["n3"]
            return record.data_id == c.data_ids["n3"] and standing(c, "n3") == "learner"

        await c.until(elsewhere)
        c.kill("n3")
        await c.start("n3")
        await admitted(c, "n3")
        await c.until(lambda: c.states["n1"].voter_table.voters["n3"].incarnation == 2)


@virtual
async def test_an_old_directory_does_not_take_its_seat_back() -> None:
    """n3's directory is replaced by a new one, and then the first one comes back from a backup."""
    async with cluster(3) as c:
        await c.write("a")
        await c.converged()
        c.kill("n3")
        first, first_id, incarnation = c.disks["n3"], c.data_ids["n3"], c.incarnations["n3"]
        c.wipe("n3")
        await c.start("n3")
        await admitted(c, "n3")
        await c.write("b")
        c.kill("n3")
        c.disks["n3"], c.data_ids["n3"], c.incarnations["n3"] = first, first_id, incarnation
        await c.start("n3")
        await c.until(lambda: standing(c, "n3") == "learner")
        await admitted(c, "n3")
        assert await c.converged() == ["a", "b"]


@virtual
async def test_an_old_copy_of_the_same_directory_is_a_learner() -> None:
    async with cluster(3) as c:
        await c.write("a")
        await c.converged()
        c.kill("n3")
        copy = MemoryDisk.holding(c.disks["n3"].contents())
        for _ in range(3):
            await c.start("n3")
            await c.until(lambda: c.states["n1"].voter_table.voters["n3"].incarnation == c.incarnations["n3"])
            c.kill("n3")
        await c.write("b")
        c.disks["n3"], c.incarnations["n3"] = copy, 1
        await c.start("n3")
        await c.until(lambda: standing(c, "n3") == "learner")
        await admitted(c, "n3")


@virtual
async def test_an_unreadable_seat_refuses_the_directory() -> None:
    async with cluster(3) as c:
        await c.leader()
        c.kill("n3")
        file = c.disks["n3"].open(DIRECTORY / "log" / "seat")
        file.pwrite(b"\xff", 9)
        with pytest.raises(JournalDamaged, match="seat"):
            await c.start("n3")
        del c.nodes["n3"], c.states["n3"]


@virtual
async def test_a_voter_of_another_cluster_of_the_same_names_is_not_heard() -> None:
    async with cluster(3) as c:
        await c.write("a")
        other = Cluster(3, seed=2)
        await other.start()
        await other.write("elsewhere")
        await other.converged()
        for name in other.names:
            other.kill(name)
        c.kill("n3")
        c.disks["n3"], c.data_ids["n3"] = other.disks["n3"], "other-3"
        c.data_ids["n3"] = other.data_ids["n3"] + "0"
        await c.start("n3")
        await c.write("b")
        await asyncio.sleep(5)
        assert "b" not in c.states["n3"].notes
        assert c.states["n1"].notes == c.states["n2"].notes == ["a", "b"]


# Voters that come and go


async def join(c: Cluster, name: str) -> None:
    add(c, name)
    await c.start(name)
    outcome = await change(c, lambda basis: AddLearner(name, f"{name}:1", basis))
    assert isinstance(outcome, Done)
    await admitted(c, name)


def add(c: Cluster, name: str) -> None:
    """A machine with an empty directory; nobody configured it."""
    c.names.append(name)
    c.wipe_new(name)


async def leave(c: Cluster, name: str) -> None:
    if await c.leader() == name:
        await c.nodes[name].transfer(None, deadline_s=2.0)
        await c.deposed(name)
    outcome = await change(c, lambda basis: RemoveVoter(name, basis))
    assert isinstance(outcome, Done), outcome


@virtual
async def test_a_voter_joins_a_running_cluster_and_another_leaves() -> None:
    async with cluster(3) as c:
        await c.write("a")
        await join(c, "n4")
        assert [voter.node_id for voter in c.nodes["n1"].status().voters] == ["n1", "n2", "n3", "n4"]
        c.kill("n1")
        await c.write("three of four")
        await c.start("n1")
        await c.converged()
        await leave(c, "n1")
        await c.until(lambda: "n1" in c.removed)
        c.kill("n1")
        c.names.remove("n1")
        await c.until(lambda: all("n1" not in state.voter_table.voters for state in c.states.values()))
        c.kill("n2")
        await c.write("two of three")
        with pytest.raises(VoterRemoved, match="removed"):
            await c.start("n1")
        del c.nodes["n1"], c.states["n1"]


@virtual
async def test_a_learner_that_never_comes_lowers_nothing() -> None:
    async with cluster(3) as c:
        await c.write("a")
        assert isinstance(await change(c, lambda basis: AddLearner("n4", "n4:1", basis)), Done)
        c.kill("n1")
        await c.write("two of three still")
        assert [voter.node_id for voter in c.nodes["n2"].status().learners] == ["n4"]
        assert isinstance(await change(c, lambda basis: RemoveVoter("n4", basis)), Done)


@virtual
async def test_the_last_voter_stays() -> None:
    async with cluster(1) as c:
        await c.leader()
        outcome = await change(c, lambda basis: RemoveVoter("n1", basis))
        assert isinstance(outcome, Rejected) and outcome.code == "conflict"
        assert "last voter" in outcome.detail


@virtual
async def test_a_leader_that_is_removed_all_the_same_leads_no_longer() -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        await c.converged()
        assert isinstance(await change(c, lambda basis: RemoveVoter(leader, basis)), Done)
        assert c.nodes[leader].status().role is not Role.LEADER
        assert leader in c.removed
        c.kill(leader)
        c.names.remove(leader)
        await c.write("the others go on")


@virtual
async def test_of_two_changes_at_once_one_is_refused() -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        basis = c.states[leader].voter_table.changed_index
        ops = [AddLearner("n4", "n4:1", basis), AddLearner("n5", "n5:1", basis), RemoveVoter("n3", basis)]
        outcomes = await asyncio.gather(*(c.nodes[leader].propose(Command(op), deadline_s=2) for op in ops))
        assert [isinstance(outcome, Done) for outcome in outcomes] == [True, False, False]
        late = await c.nodes[leader].propose(Command(RemoveVoter("n3", basis)), deadline_s=2)
        assert isinstance(late, Rejected) and "decided on" in late.detail


@virtual
async def test_a_kind_that_a_voter_does_not_know_is_refused_until_it_does() -> None:
    c = Cluster(3)
    c.versions["n3"] = 1
    await c.start()
    leader = await c.leader()
    await c.until(lambda: len(c.states[leader].voter_table.voters) == 3)
    refused = await change(c, lambda basis: AddLearner("n4", "n4:1", basis))
    assert isinstance(refused, Rejected) and refused.code == "conflict"
    assert "n3" in refused.detail and "version 2" in refused.detail
    await c.write("known kinds go on")
    c.kill("n3")
    del c.versions["n3"]
    await c.start("n3")
    await c.until(lambda: c.states[leader].voter_table.voters["n3"].command_version == 2)
    assert isinstance(await change(c, lambda basis: AddLearner("n4", "n4:1", basis)), Done)
    await c.stop()


@pytest.mark.parametrize("seed", range(12))
def test_storms_of_coming_going_and_wiping_lose_nothing(seed: int) -> None:
    run(storm(seed))


async def storm(seed: int) -> None:
    rng = random.Random(seed)
    c = Cluster(3, seed=seed, config=RaftConfig(snapshot_entries=30))
    await c.start()
    written: list[str] = []
    spare = 4
    for step in range(12):
        written.append(f"s{step}")
        await c.write(written[-1])
        what = rng.choice(["join", "leave", "wipe", "kill_leader", "kill_leader"])
        voters = sorted(c.states[await c.leader()].voter_table.voters)
        if what == "join" and len(voters) < 5:
            name, spare = f"n{spare}", spare + 1
            add(c, name)
            await c.start(name)
            task = asyncio.create_task(change(c, lambda basis, name=name: AddLearner(name, f"{name}:1", basis)))
            if rng.random() < 0.5:
                await asyncio.sleep(rng.uniform(0, 0.02))
                await kill_and_restart(c, await c.leader())
            assert isinstance(await task, Done)
            await admitted(c, name)
        elif what == "leave" and len(voters) > 3:
            name = rng.choice(voters)
            await leave(c, name)
            await c.until(lambda name=name: name in c.removed, 5.0)
            c.kill(name)
            c.names.remove(name)
        elif what == "wipe":
            name = rng.choice(voters)
            c.kill(name)
            c.wipe(name)
            await c.start(name)
            if rng.random() < 0.5:
                await asyncio.sleep(rng.uniform(0, 0.05))
                others = [voter for voter in voters if voter != name and len(voters) > 3]
                if others:
                    await kill_and_restart(c, rng.choice(others))
            await admitted(c, name)
        elif what == "kill_leader":
            await kill_and_restart(c, await c.leader())
    notes = await c.converged()
    assert [note for note in written if note not in notes] == []
    tables = [dict(state.voter_table.voters) for state in c.states.values()]
    assert all(table == tables[0] for table in tables)
    await c.stop()


async def kill_and_restart(c: Cluster, name: str) -> None:
    c.kill(name)
    await asyncio.sleep(0.1)
    await c.start(name)


# Small parts


def test_a_round_is_the_way_to_where_the_log_ended_when_it_began() -> None:
    catch_up = CatchUp(0.5)
    assert not catch_up.has_caught_up("n4", 0, 1000, 0.0)
    assert not catch_up.has_caught_up("n4", 999, 2000, 1.0)
    assert not catch_up.has_caught_up("n4", 1000, 2000, 2.0), "the round took longer than an election"
    assert not catch_up.has_caught_up("n4", 1900, 2100, 2.1)
    assert catch_up.has_caught_up("n4", 2000, 2200, 2.3)
    assert not CatchUp(0.5).has_caught_up("n4", 0, 1, 0.0)


def test_of_two_changes_in_a_log_the_older_one_is_committed() -> None:
    changes = Changes()
    assert changes.add(5) == 0
    changes.cut(5)
    assert (changes.newest, changes.before) == (0, 0)
    assert changes.add(7) == 0
    assert changes.add(9) == 7
    changes.cut(8)
    assert changes.newest == 7
    assert changes.add(12) == 7
    changes.cut(6)
    assert (changes.newest, changes.before) == (0, 0), "both are gone"


@virtual
async def test_a_change_that_a_snapshot_wiped_out_proves_nothing() -> None:
    """A leader that is cut off has a change in its log that is never committed; its log begins anew at a snapshot."""
    async with cluster(3, config=RaftConfig(snapshot_entries=20)) as c:
        await c.write("a")
        await c.converged()
        old = await c.leader()
        c.network.partition([old], [name for name in c.names if name != old])
        basis = c.states[old].voter_table.changed_index
        lost = c.nodes[old].propose(Command(AddLearner("n9", "n9:1", basis)), deadline_s=60)
        await c.deposed(old)
        for number in range(80):
            await c.write(f"w{number}")
        c.network.heal()
        await c.converged()
        assert c.states[old].restored == 1
        assert "n9" not in c.states[old].voter_table.voters
        log = c.nodes[old]._log
        assert not log.has_change_under_way()
        assert log._changes.newest <= log.applied_index()
        with pytest.raises(ProposalError):
            await lost


@virtual
async def test_a_learner_removed_while_it_takes_a_snapshot_does_not_stop_the_leader() -> None:
    async with cluster(3, config=RaftConfig(snapshot_entries=40, segment_bytes=4096)) as c:
        for number in range(100):
            await c.write(f"w{number}")
        late: list[Message] = []

        def hold(source: str, _target: str, message: Message) -> bool:
            if source == "n4" and isinstance(message, ChunkTaken) and message.installed:
                late.append(message)
                return False
            return True

        c.network.tamper = hold
        add(c, "n4")
        await c.start("n4")
        assert isinstance(await change(c, lambda basis: AddLearner("n4", "n4:1", basis)), Done)
        await c.until(lambda: late)
        leader = await c.leader()
        assert isinstance(await change(c, lambda basis: RemoveVoter("n4", basis)), Done)
        c.nodes[leader].on_messages("n4", late)
        c.kill("n4")
        await c.write("goes on")
        assert await c.leader() == leader and not c.failures


@virtual
async def test_a_snapshot_from_whom_this_node_neither_knows_nor_reaches_stops_nobody() -> None:
    """One that is away may be sent a snapshot by a leader that its old table does not name, on a link one way only."""
    async with cluster(3) as c:
        await c.write("a")
        node = c.nodes[next(name for name in c.names if name != c.leader_now())]
        node.on_messages("n9", [node._roll.introduction("n9", has_log=True)])
        node.on_messages("n9", [Chunk(node._log.term() + 1, 100, 1, 1, 0, False, b"x")])
        await c.write("b")
        assert not c.failures and await c.converged() == ["a", "b"]


@virtual
async def test_who_is_removed_just_when_the_log_has_forgotten_what_it_lacks_is_told_nothing_wrong() -> None:
    async with cluster(3, config=RaftConfig(snapshot_entries=40, segment_bytes=4096)) as c:
        for number in range(100):
            await c.write(f"w{number}")
        leader = await c.leader()
        log = c.nodes[leader]._log
        behind = next(name for name in c.names if name != leader)
        assert log.first_index() > 40
        # As it is from the moment that the log forgets until the next heartbeat.
        log.progress[behind].next_index = log.first_index() - 20
        c.network.keep_sent = True
        log._followers.part_with(behind)
        assert not [message for _, target, message in c.network.sent if target == behind]
