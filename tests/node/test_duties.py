"""What only the leader does."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest

from ringraft.clock import SystemClock
from ringraft.membership.base import Member, MemberState
from ringraft.node.duties import RETRY_S, Duties, differing_verdicts, due_in_s
from ringraft.node.events import EventRing
from ringraft.node.replica import Replica
from ringraft.state.commands import Configure, NodeStatus, Tick
from ringraft.state.model import Limits
from ringraft.state.records import NodeRecord
from tests.node.fakes import FakeMachine, OneVoterLog, add, eventually, settle


class FakeMembership:
    def __init__(self):
        self.seen = {}
        self.changed = asyncio.Event()

    def members(self):
        return self.seen

    def has_listened(self):
        return True

    async def watch(self):
        while True:
            await self.changed.wait()
            self.changed.clear()
            yield None


def member(node_id, state=MemberState.ALIVE, incarnation=1):
    return Member(node_id, state, incarnation, (), ("worker",), 0.0)


@asynccontextmanager
async def leader(limits=None):
    clock = SystemClock()
    machine = FakeMachine()
    replica = Replica(machine=machine, clock=clock, archive=None, events=EventRing(100), waiters_max=10)
    log = OneVoterLog(replica, clock)
    replica.attach(log)
    membership = FakeMembership()
    duties = Duties(
        node_id="n1",
        replica=replica,
        consensus=log,
        membership=membership,
        limits=limits or Limits(),
        clock=clock,
    )
    task = asyncio.create_task(duties.run())
    await settle()
    try:
        yield replica, log, membership
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def ticks(log):
    return sum(isinstance(op, Tick) for op in log.proposed)


@pytest.mark.parametrize(
    ("due", "expected"),
    [
        ((None, None), None),
        ((5_000, None), 3.5),
        ((1_000, None), 0.0),
        ((None, 62_000), 2.0),
        ((None, 59_000), 0.0),
        ((5_000, 61_000), 1.0),
    ],
)
def test_the_next_timer_by_log_time_and_wall_time(due, expected):
    assert due_in_s(due, log_ms=1_000, since_applied_s=0.5, wall_ms=60_000) == expected


@pytest.mark.parametrize("limits", [Limits(items_max=7), Limits()], ids=["own", "defaults"])
async def test_a_first_leader_enters_its_limits_once(limits, caplog):
    async with leader(limits) as (replica, log, _):
        await eventually(lambda: replica.machine.is_configured)
        with caplog.at_level(logging.WARNING):
            log.lead("n1", 2)
            await settle()
        assert log.proposed == [Configure(limits)]
        assert caplog.records == []


async def test_limits_whose_outcome_is_unknown_are_not_entered_twice():
    async with leader() as (replica, log, _):
        await eventually(lambda: replica.machine.is_configured)
        replica.machine.is_configured = False
        log.lost_outcomes = 1
        log.lead("n1", 2)
        await eventually(lambda: replica.machine.is_configured)
        await asyncio.sleep(2 * RETRY_S)
        assert log.proposed == [Configure(Limits())] * 2


async def test_the_limits_of_the_log_win(caplog):
    async with leader(Limits(items_max=7, keys_max=9)) as (replica, log, _):
        log.lead("n2", 2)
        await settle()
        replica.machine.limits, replica.machine.is_configured = Limits(items_max=8), True
        log.proposed.clear()
        with caplog.at_level(logging.WARNING):
            log.lead("n1", 3)
            await settle()
        assert log.proposed == []
        (line,) = [r.getMessage() for r in caplog.records if "action=limits_differ" in r.getMessage()]
        assert "items_max=7 (log: 8)" in line
        assert "keys_max=9" in line


async def test_a_tick_is_made_when_a_timer_is_due_and_only_then():
    async with leader() as (replica, log, _):
        await eventually(lambda: replica.machine.is_configured)
        await asyncio.sleep(0.05)
        assert ticks(log) == 0
        replica.machine.due_log_ms = log.clock.monotonic_ms() + 50
        await log.propose(add("a"), deadline_s=1)
        assert ticks(log) == 0
        await eventually(lambda: ticks(log) == 1)
        assert replica.machine.due_log_ms is None
        await asyncio.sleep(0.05)
        assert ticks(log) == 1


async def test_a_timer_of_the_wall_clock_fires():
    async with leader() as (replica, log, _):
        await log.propose(add("a", not_before_wall_ms=log.clock.wall_ms() + 30), deadline_s=1)
        await eventually(lambda: replica.machine.states["a"] == "PENDING")
        assert ticks(log) == 1


async def test_only_the_leader_ticks():
    async with leader() as (replica, log, _):
        log.lead("n2", 2)
        await settle()
        replica.machine.due_log_ms = 0
        await asyncio.sleep(0.05)
        assert ticks(log) == 0
        log.lead("n1", 3)
        await eventually(lambda: ticks(log) >= 1)


async def test_verdicts_enter_the_log_once():
    async with leader() as (replica, log, membership):
        membership.seen = {"w1": member("w1")}
        membership.changed.set()
        await eventually(lambda: "w1" in replica.machine.node_records)
        assert replica.machine.node_records["w1"].is_up
        membership.seen = {"w1": member("w1", MemberState.DEAD)}
        membership.changed.set()
        await eventually(lambda: not replica.machine.node_records["w1"].is_up)
        assert [op for op in log.proposed if isinstance(op, NodeStatus)] == [
            NodeStatus("w1", 1, True),
            NodeStatus("w1", 1, False),
        ]


def test_suspicion_is_no_verdict():
    up = {"w1": NodeRecord("w1", 1, is_up=True)}
    assert differing_verdicts({"W1": member("W1", MemberState.SUSPECT)}, up, unheard_are_down=True) == []
    assert differing_verdicts({"w1": member("w1", MemberState.LEFT)}, up, unheard_are_down=True) == [
        NodeStatus("w1", 1, False)
    ]


def test_a_node_that_was_never_heard_is_down_after_the_grace_only():
    up = {"w1": NodeRecord("w1", 4, is_up=True)}
    assert differing_verdicts({}, up, unheard_are_down=False) == []
    assert differing_verdicts({}, up, unheard_are_down=True) == [NodeStatus("w1", 4, False)]
    assert differing_verdicts({"w2": member("w2", MemberState.DEAD)}, {}, unheard_are_down=True) == []
