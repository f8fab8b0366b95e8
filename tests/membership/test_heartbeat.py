"""Voters and guests over a transport that lives in memory."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from ringraft.clock import SystemClock
from ringraft.membership.base import MemberState
from ringraft.membership.guest import GuestMembership
from ringraft.membership.heartbeat import HeartbeatMembership, Leader, Unreachable
from ringraft.membership.table import Report, Timers
from ringraft.membership.wire import BadHeartbeat
from tests.node.fakes import eventually

TIMERS = Timers.derive(heartbeat_s=0.01, peer_timeout_s=0.2, startup_grace_s=0.2)
VOTERS = {"n1": "h:1", "n2": "h:2", "n3": "h:3"}


class Net:
    """Delivers heartbeats by address; ``cut`` holds addresses that do not answer."""

    def __init__(self):
        self.nodes = {}
        self.cut = set()
        self.leader = Leader("n1", "http://h:1", 4)
        self.sent = []

    async def send(self, address, body, *, timeout_s):
        self.sent.append((body["node_id"], address))
        if address in self.cut or address not in self.nodes:
            raise Unreachable(address)
        return self.nodes[address].heartbeat(body)


class Incarnations:
    def __init__(self):
        self.raised = []

    async def raise_incarnation(self, known):
        self.raised.append(known)
        return known + 1


def report(node_id, address, incarnation=1, roles=("voter",)):
    return Report(node_id, f"d-{node_id}", incarnation, roles, (address,), "0")


def voter(net, node_id, **fields):
    membership = HeartbeatMembership(
        own=report(node_id, VOTERS[node_id], **fields),
        cluster_id="c",
        voters=VOTERS,
        timers=TIMERS,
        transport=net,
        clock=SystemClock(),
        leader=lambda: net.leader,
        raise_incarnation=Incarnations().raise_incarnation,
        resources=lambda: {"cpu_percent": 1.0, "gpus": [{"name": "H100"}]},
    )
    net.nodes[VOTERS[node_id]] = membership
    return membership


def guest(net, incarnations=None, learned=None, cluster_id="c", **fields):
    async def learn(cluster_id):
        learned.append(cluster_id)

    return GuestMembership(
        own=report("w1", "h:9", roles=("worker",), **fields),
        cluster_id=cluster_id,
        join=("h:2", "h:3"),
        timers=TIMERS,
        transport=net,
        clock=SystemClock(),
        raise_incarnation=(incarnations or Incarnations()).raise_incarnation,
        learn_cluster=learn,
        resources=dict,
    )


@asynccontextmanager
async def running(*memberships):
    for membership in memberships:
        await membership.start()
    try:
        yield
    finally:
        for membership in memberships:
            await membership.stop()


def states(membership):
    return {node_id: member.state for node_id, member in membership.members().items()}


async def test_voters_hear_each_other():
    net = Net()
    n1, n2, n3 = (voter(net, node_id) for node_id in VOTERS)
    async with running(n1, n2, n3):
        for each in (n1, n2, n3):
            await eventually(lambda each=each: set(states(each).values()) == {MemberState.ALIVE})
        assert n1.members()["n2"].resources == {"cpu_percent": 1.0}
        assert n1.members()["n2"].gpus == ({"name": "H100"},)


async def test_a_voter_that_falls_silent_is_dead_and_comes_back():
    net = Net()
    n1, n2 = voter(net, "n1"), voter(net, "n2")
    seen = []

    async def watch():
        async for change in n1.watch():
            if change.member.node_id == "n2":
                seen.append(change.member.state)

    watching = asyncio.create_task(watch())
    async with running(n1):
        await n2.start()
        await eventually(lambda: states(n1)["n2"] is MemberState.ALIVE)
        net.cut.add("h:1")
        await eventually(lambda: MemberState.DEAD in seen)
        net.cut.clear()
        await eventually(lambda: seen[-1] is MemberState.ALIVE)
        await n2.stop()
        assert seen[-1] is MemberState.ALIVE or seen[-1] is MemberState.LEFT
        await eventually(lambda: seen[-1] is MemberState.LEFT)
    watching.cancel()
    assert MemberState.SUSPECT in seen


async def test_a_guest_finds_the_leader_and_every_voter_hears_of_it():
    net = Net()
    n1, n2, n3 = (voter(net, node_id) for node_id in VOTERS)
    w1 = guest(net)
    async with running(n1, n2, n3, w1):
        await eventually(lambda: w1.leader() == Leader("n1", "http://h:1", 4))
        await eventually(lambda: net.sent[-20:].count(("w1", "h:1")) > 0)
        for each in (n1, n2, n3):
            await eventually(lambda each=each: "w1" in each.members())
        assert n1.members()["w1"].reachable_via == "direct"
        await eventually(lambda: set(w1.members()) == {"n1", "n2", "n3", "w1"})
        assert set(states(w1).values()) == {MemberState.ALIVE}


async def test_a_guest_turns_to_another_voter_when_its_own_is_gone():
    net = Net()
    n2, n3 = voter(net, "n2"), voter(net, "n3")
    net.leader = Leader(None, None)
    w1 = guest(net)
    async with running(n2, n3, w1):
        await eventually(lambda: w1.silent_s() is not None)
        (target,) = {address for sender, address in net.sent if sender == "w1"}
        net.cut.add(target)
        survivor = n3 if target == "h:2" else n2
        await eventually(lambda: "w1" in survivor.members() and survivor.members()["w1"].reachable_via == "direct")


async def test_a_guest_knows_no_leader_once_nobody_answers():
    net = Net()
    n2 = voter(net, "n2")
    w1 = guest(net)
    async with running(n2, w1):
        await eventually(lambda: w1.leader().node_id == "n1")
        net.cut.update(VOTERS.values())
        await eventually(lambda: w1.leader() == Leader(None, None, 4))


async def test_a_guest_learns_its_cluster_once_and_is_refused_by_another():
    net = Net()
    n2 = voter(net, "n2")
    learned = []
    w1 = guest(net, learned=learned, cluster_id=None)
    async with running(n2, w1):
        await eventually(lambda: learned)
        await asyncio.sleep(0.05)
        assert learned == ["c"]
    stranger = guest(net, cluster_id="other")
    async with running(n2, stranger):
        await asyncio.sleep(0.05)
        assert stranger.leader() == Leader(None, None)


async def test_a_wiped_guest_takes_a_higher_incarnation():
    net = Net()
    n2 = voter(net, "n2")
    old = guest(net, incarnation=7)
    async with running(n2):
        await old.start()
        await eventually(lambda: "w1" in n2.members())
        await old.stop()
        assert states(n2)["w1"] is MemberState.LEFT
        incarnations = Incarnations()
        new = guest(net, incarnations=incarnations)
        new._own = Report("w1", "another directory", 1, ("worker",), ("h:9",), "0")
        async with running(new):
            await eventually(lambda: states(n2)["w1"] is MemberState.ALIVE)
            assert incarnations.raised == [7]
            assert n2.members()["w1"].incarnation == 8


async def test_only_a_voter_passes_on_whom_it_heard():
    net = Net()
    n2, w1 = voter(net, "n2"), guest(net)
    await w1.stop()
    own = {
        "cluster_id": "c", "data_id": "d", "incarnation": 1, "roles": [], "addresses": [],
        "version": "0", "resources": {}, "gpus": [], "left": False, "view": None,
    }  # fmt: skip
    ghost = {**own, "node_id": "ghost", "age_s": 0}
    n2.heartbeat({**own, "node_id": "w2", "heard": [ghost]})
    assert "ghost" not in n2.members()
    n2.heartbeat({**own, "node_id": "n3", "heard": [ghost]})
    assert "ghost" in n2.members()


async def test_the_view_is_sent_only_when_it_changed():
    net = Net()
    n2 = voter(net, "n2")
    body = {
        "cluster_id": "c", "node_id": "w1", "data_id": "d", "incarnation": 1, "roles": [], "addresses": [],
        "version": "0", "resources": {}, "gpus": [], "left": False, "view": "", "heard": [],
    }  # fmt: skip
    first = n2.heartbeat(body)
    assert {member["node_id"] for member in first["members"]} == {"n1", "n2", "n3", "w1"}
    assert n2.heartbeat({**body, "view": first["view"]})["members"] is None


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"node_id": 5}, "node_id"),
        ({"incarnation": -1}, "incarnation"),
        ({"incarnation": True}, "incarnation"),
        ({"roles": "voter"}, "roles"),
        ({"addresses": ["x" * 1000]}, "addresses"),
        ({"resources": []}, "resources"),
        ({"heard": [3]}, "heard"),
        ({"heard": [{}]}, "node_id"),
        ({"cluster_id": 7}, "cluster_id"),
    ],
)
async def test_a_malformed_heartbeat_is_refused_by_field(fault, said):
    n2 = voter(Net(), "n2")
    body = {
        "cluster_id": "c", "node_id": "w1", "data_id": "d", "incarnation": 1, "roles": [], "addresses": [],
        "version": "0", "resources": {}, "gpus": [], "left": False, "view": None, "heard": [],
    }  # fmt: skip
    with pytest.raises(BadHeartbeat, match=said):
        n2.heartbeat({**body, **fault})


async def test_a_guest_takes_no_heartbeats():
    answer = guest(Net()).heartbeat({})
    assert (answer["accepted"], answer["reason"]) == (False, "not_a_voter")


async def test_heartbeats_follow_the_voters():
    net = Net()
    membership = voter(net, "n1")
    await membership.start()
    try:
        await eventually(lambda: {to for _, to in net.sent} == {"h:2", "h:3"})
        membership.follow({"n1": "h:1", "n3": "elsewhere:3", "n4": "h:4"})
        net.sent.clear()
        await eventually(lambda: {to for _, to in net.sent} == {"elsewhere:3", "h:4"})
        await asyncio.sleep(0.05)
        assert "h:2" not in {to for _, to in net.sent}
        assert set(membership.members()) == {"n1", "n3", "n4"}
    finally:
        await membership.stop()
