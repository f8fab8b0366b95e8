"""Voters that come back in the middle of a change: none stays a learner, and none keeps the others from a majority."""

from __future__ import annotations

import pytest

from ringraft.consensus.raft_config import RaftConfig
from ringraft.state.commands import AddLearner, RemoveVoter
from ringraft.state.model import Done
from tests.consensus.memory_disk import MemoryDisk
from tests.consensus.raft_kit import cluster, run
from tests.consensus.test_voters import add, admitted, change, standing, virtual


@pytest.mark.parametrize("who", [("n2",), ("n1", "n2")])
def test_the_second_voter_may_die_between_its_admission_and_taking_it_in(who: tuple[str, ...]) -> None:
    """The table has two voters, and the only copy that counts is the first one's."""
    run(second_voter(who))


async def second_voter(who: tuple[str, ...]) -> None:
    async with cluster(1) as c:
        await c.write("a")
        add(c, "n2")
        await c.start("n2")
        assert isinstance(await change(c, lambda basis: AddLearner("n2", "n2:1", basis)), Done)

        def elsewhere() -> bool:
            record = c.states["n1"].voter_table.voters["n2"]
            return record.is_voter and standing(c, "n2") == "learner"

        await c.until(elsewhere)
        for name in who:
            c.kill(name)
        await c.start(*who)
        await admitted(c, "n2")
        await c.write("b")
        assert await c.converged() == ["a", "b"]


@virtual
async def test_an_admission_of_before_a_log_was_lost_gives_no_seat() -> None:
    """Somebody emptied n3's log and left the file that says who it is."""
    async with cluster(3) as c:
        await c.write("a")
        await c.converged()
        for _ in range(2):
            c.kill("n3")
            c.disks["n3"] = MemoryDisk()
            await c.start("n3")
            await c.until(lambda: standing(c, "n3") == "learner")
            await admitted(c, "n3")
        assert c.incarnations["n3"] == 3


@virtual
async def test_a_voter_removed_and_added_while_it_was_away_is_admitted() -> None:
    """Its directory has its seat, and it never sees the entry that removed it."""
    async with cluster(3, config=RaftConfig(snapshot_entries=20)) as c:
        await c.write("a")
        await c.converged()
        c.kill("n3")
        assert isinstance(await change(c, lambda basis: RemoveVoter("n3", basis)), Done)
        assert isinstance(await change(c, lambda basis: AddLearner("n3", "n3:1", basis)), Done)
        for number in range(60):
            await c.write(f"b{number}")
        await c.until(lambda: all(node.first_index() > 30 for node in c.nodes.values()))
        await c.start("n3")
        await admitted(c, "n3")


@pytest.mark.parametrize("cut", [False, True])
def test_the_last_of_two_goes_on_alone_though_it_dies_as_soon_as_the_other_has_left(cut: bool) -> None:
    run(last_of_two(cut))


async def last_of_two(cut: bool) -> None:
    async with cluster(2) as c:
        await c.write("a")
        await c.converged()
        leader = await c.leader()
        other = next(name for name in c.names if name != leader)
        assert isinstance(await change(c, lambda basis: RemoveVoter(other, basis)), Done)
        await c.until(lambda: other in c.removed)
        if cut:
            c.cut_power(leader)
        else:
            c.kill(leader)
        c.kill(other)
        await c.start(leader)
        await c.write("b")
