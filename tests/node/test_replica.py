"""The replica: proposals, parked claims, waiting for items and indexes."""

import asyncio

import pytest

from ringraft.clock import TurnableClock
from ringraft.consensus.base import NotLeader
from ringraft.node.events import EventRing
from ringraft.node.replica import Replica, WaitersFull
from ringraft.state.commands import Claim
from ringraft.state.model import Command, Done
from tests.node.fakes import FakeMachine, OneVoterLog, add, claim, complete, settle


class Notes:
    """An archive that writes down what it is told."""

    def __init__(self):
        self.finals = []
        self.rescans = []

    def finished(self, index, work_id):
        self.finals.append((index, work_id))

    def reopened(self, index, work_id):
        self.finals.append((index, work_id))

    def rescan(self, index):
        self.rescans.append(index)


def replica_of(waiters_max=100):
    clock = TurnableClock()
    notes = Notes()
    replica = Replica(
        machine=FakeMachine(), clock=clock, archive=notes, events=EventRing(1000), waiters_max=waiters_max
    )
    log = OneVoterLog(replica, clock)
    replica.attach(log)
    return replica, log, notes


async def do(replica, command: Command):
    return await replica.submit(command, deadline_s=1)


async def test_an_applied_entry_shows_in_events_and_archive():
    replica, _, notes = replica_of()
    await do(replica, add("a"))
    await do(replica, complete("a"))
    assert [event.type for event in replica.events.since(0, 10).events] == ["WORK_ADDED", "WORK_COMPLETED"]
    assert notes.finals == [(2, "a")]


async def test_a_claim_that_finds_something_does_not_park():
    replica, _, _ = replica_of()
    await do(replica, add("a"))
    outcome = await replica.claim(claim(), deadline_s=1, wait_s=10)
    assert outcome == Done({"claimed": ["a"], "reasons": {}})
    assert replica.waiting == 0


async def test_an_empty_claim_without_waiting_returns_at_once():
    replica, _, _ = replica_of()
    assert (await replica.claim(claim(), deadline_s=1, wait_s=0)).value["claimed"] == []


async def test_a_parked_claim_gets_what_is_added_later():
    replica, _, _ = replica_of()
    waiting = asyncio.create_task(replica.claim(claim(), deadline_s=1, wait_s=10))
    await settle()
    assert replica.waiting == 1
    await do(replica, add("a"))
    assert (await waiting).value["claimed"] == ["a"]
    assert replica.waiting == 0


async def test_a_parked_claim_ends_empty_when_its_time_is_over():
    replica, log, _ = replica_of()
    outcome = await replica.claim(claim(), deadline_s=1, wait_s=0.02)
    assert outcome.value["claimed"] == []
    assert len(log.proposed) == 1, "waiting proposes nothing"


async def test_one_new_item_wakes_one_claim_in_order_of_arrival():
    replica, log, _ = replica_of()
    waiting = []
    for number in range(50):
        waiting.append(asyncio.create_task(replica.claim(claim(f"w{number}"), deadline_s=1, wait_s=10)))
        await settle(3)
    before = len(log.proposed)
    await do(replica, add("a"))
    await settle()
    assert [op.node_id for op in log.proposed[before:] if isinstance(op, Claim)] == ["w0"]
    assert waiting[0].done()
    await do(replica, add("b"))
    await settle()
    assert waiting[1].done()
    assert sum(task.done() for task in waiting) == 2
    replica.release_parked()
    for task in waiting[2:]:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert replica.waiting == 0


async def test_a_batch_serves_as_many_claims_as_it_has_items():
    replica, _, _ = replica_of()
    waiting = [asyncio.create_task(replica.claim(claim(), deadline_s=1, wait_s=10)) for _ in range(20)]
    await settle()
    for number in range(20):
        await do(replica, add(f"i{number}"))
    outcomes = await asyncio.gather(*waiting)
    assert sorted(outcome.value["claimed"][0] for outcome in outcomes) == sorted(f"i{n}" for n in range(20))


async def test_items_that_a_timer_readies_reach_every_parked_claim():
    replica, log, _ = replica_of()
    later_ms = log.clock.wall_ms() + 1000
    for number in range(30):
        await do(replica, add(f"i{number}", not_before_wall_ms=later_ms))
    waiting = [asyncio.create_task(replica.claim(claim(), deadline_s=1, wait_s=10)) for _ in range(30)]
    await settle()
    log.clock.advance_ms(1000)
    await do(replica, complete("i0"))
    await asyncio.wait_for(asyncio.gather(*waiting[:29]), 5)
    waiting[29].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_woken_claim_that_gives_up_passes_its_chance_on():
    replica, _, _ = replica_of()
    first = asyncio.create_task(replica.claim(claim("w1"), deadline_s=1, wait_s=10))
    await settle()
    second = asyncio.create_task(replica.claim(claim("w2"), deadline_s=1, wait_s=10))
    await settle()
    await do(replica, add("a"))
    first.cancel()
    assert (await asyncio.wait_for(second, 5)).value["claimed"] == ["a"]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_parked_claims_learn_that_this_node_no_longer_leads():
    replica, log, _ = replica_of()
    waiting = asyncio.create_task(replica.claim(claim(), deadline_s=1, wait_s=10))
    await settle()
    log.lead("n2", 2)
    replica.release_parked()
    with pytest.raises(NotLeader) as refused:
        await waiting
    assert refused.value.leader_id == "n2"
    assert replica.waiting == 0


async def test_waiting_requests_are_bounded():
    replica, _, _ = replica_of(waiters_max=2)
    waiting = [asyncio.create_task(replica.claim(claim(), deadline_s=1, wait_s=10)) for _ in range(2)]
    await settle()
    with pytest.raises(WaitersFull):
        await replica.claim(claim(), deadline_s=1, wait_s=10)
    with pytest.raises(WaitersFull):
        await replica.wait_index(99, timeout_s=1)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert replica.waiting == 0


async def test_an_idle_entry_looks_at_no_parked_claim():
    replica, _, _ = replica_of()
    await do(replica, add("busy"))
    await do(replica, claim())
    waiting = [asyncio.create_task(replica.claim(claim(), deadline_s=1, wait_s=10)) for _ in range(30)]
    await settle()
    before = replica.machine.looks
    await do(replica, complete("busy"))
    assert replica.machine.looks == before
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_waiting_for_an_item_ends_when_it_is_final():
    replica, _, _ = replica_of()
    await do(replica, add("Item-1"))
    waiting = asyncio.create_task(replica.wait_final("item-1", wait_s=10))
    await settle()
    await do(replica, complete("Item-1"))
    assert (await waiting)["state"] == "COMPLETED"
    assert (await replica.wait_final("ITEM-1", wait_s=10))["state"] == "COMPLETED"


async def test_waiting_for_an_item_ends_with_its_state_in_time():
    replica, _, _ = replica_of()
    await do(replica, add("a"))
    assert (await replica.wait_final("a", wait_s=0.01))["state"] == "PENDING"
    assert await replica.wait_final("unknown", wait_s=10) is None
    assert replica._finals == {}


async def test_waiting_for_an_index():
    replica, _, _ = replica_of()
    waiting = [asyncio.create_task(replica.wait_index(index, timeout_s=10)) for index in (3, 2, 1)]
    late = asyncio.create_task(replica.wait_index(4, timeout_s=0.05))
    await settle()
    for number in range(3):
        await do(replica, add(f"i{number}"))
    assert await asyncio.gather(*waiting) == [True, True, True]
    assert not await late
    assert replica._indexes == []


async def test_a_restored_image_replaces_the_state_and_wakes_everybody():
    replica, _, notes = replica_of()
    await do(replica, add("a"))
    other = FakeMachine()
    other.index, other.states = 40, {"a": "COMPLETED"}
    item = asyncio.create_task(replica.wait_final("a", wait_s=10))
    index = asyncio.create_task(replica.wait_index(40, timeout_s=10))
    await settle()
    building = replica.rebuild()
    for chunk in other.snapshot():
        for _ in building.take(chunk):
            await settle()
    building.end()
    assert replica.machine.item("a")["state"] == "PENDING"
    assert not item.done()
    for _ in building.replace():
        assert replica.machine.index == 40
    assert (await item)["state"] == "COMPLETED"
    assert await index
    assert notes.rescans == [40]
    assert replica.events.since(0, 10).lost
