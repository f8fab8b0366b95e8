"""Verdicts from silence, with a turned clock."""

import pytest

from ringraft.membership.base import MemberState
from ringraft.membership.table import FORGET_S, MEMBERS_MAX, MemberTable, Refusal, Report, Timers

TIMERS = Timers.derive(heartbeat_s=1, peer_timeout_s=5, startup_grace_s=10)
VOTERS = {"n1": "h:1", "n2": "h:2"}


def report(node_id="w1", incarnation=1, data_id=None, **fields):
    return Report(node_id, data_id or f"d-{node_id}", incarnation, ("worker",), ("h:9",), "0", **fields)


@pytest.fixture
def table():
    return MemberTable(own=report("n1"), voters=VOTERS, timers=TIMERS, now_s=0)


def state(table, node_id, now_s):
    return table.members(now_s)[node_id].state


def test_silence_makes_a_node_suspect_and_then_dead(table):
    table.hear(report(), now_s=100)
    assert state(table, "w1", 102.4) is MemberState.ALIVE
    assert state(table, "w1", 102.6) is MemberState.SUSPECT
    assert state(table, "w1", 105.1) is MemberState.DEAD


def test_changes_are_told_once(table):
    (new,) = table.hear(report(), now_s=100)
    assert (new.member.node_id, new.before) == ("w1", None)
    assert table.hear(report(), now_s=101) == []
    told = [c for now in (102, 104, 105, 110, 111) for c in table.judge(now) if c.member.node_id == "w1"]
    assert [c.member.state for c in told] == [MemberState.SUSPECT, MemberState.DEAD]
    (back,) = table.hear(report(), now_s=112)
    assert (back.member.state, back.before) == (MemberState.ALIVE, MemberState.DEAD)


def test_nobody_is_dead_before_this_node_has_listened(table):
    table.hear(report(), now_s=1)
    assert state(table, "w1", 9.9) is MemberState.SUSPECT
    assert state(table, "n2", 9.9) is MemberState.SUSPECT
    assert state(table, "w1", 10.1) is MemberState.DEAD
    assert state(table, "n2", 10.1) is MemberState.DEAD
    assert [c.member.node_id for c in table.judge(10.1)] == ["w1", "n2"]


def test_a_configured_voter_is_known_before_it_is_heard(table):
    voter = table.members(0)["n2"]
    assert (voter.incarnation, voter.addresses, voter.last_seen_s) == (0, ("h:2",), None)


def test_who_said_goodbye_has_left_until_it_starts_again(table):
    table.hear(report(), now_s=100)
    table.hear(report(left=True), now_s=101)
    table.hear(report(), now_s=101.1)
    assert state(table, "w1", 101.2) is MemberState.LEFT
    assert state(table, "w1", 200) is MemberState.LEFT
    table.hear(report(incarnation=2), now_s=201)
    assert state(table, "w1", 201) is MemberState.ALIVE


def test_an_older_incarnation_does_not_count(table):
    table.hear(report(incarnation=3), now_s=100)
    assert table.hear(report(incarnation=2), now_s=101) == Refusal("stale_incarnation", 3)


def test_a_second_process_with_the_same_name_is_refused(table):
    table.hear(report(incarnation=3), now_s=100)
    assert table.hear(report(incarnation=3, data_id="other"), now_s=101) == Refusal("node_id_in_use", 3)
    assert table.hear(report("n1", data_id="other"), now_s=101) == Refusal("node_id_in_use", 1)


def test_a_wiped_directory_learns_which_incarnation_to_exceed(table):
    table.hear(report(incarnation=3), now_s=100)
    assert table.hear(report(incarnation=1, data_id="new"), now_s=120) == Refusal("stale_incarnation", 3)
    assert not isinstance(table.hear(report(incarnation=4, data_id="new"), now_s=121), Refusal)


def test_the_newest_hearing_counts_whoever_heard(table):
    table.hear(report(), now_s=100)
    table.hear(report(), now_s=104, age_s=0.5, relayed=True)
    member = table.members(104)["w1"]
    assert (member.state, member.last_seen_s, member.reachable_via) == (MemberState.ALIVE, 0.5, "direct")
    table.hear(report(), now_s=104.1, age_s=3, relayed=True)
    assert table.members(104.1)["w1"].last_seen_s == pytest.approx(0.6)


def test_only_nodes_that_are_no_voters_are_passed_on(table):
    table.hear(report("n2"), now_s=100)
    table.hear(report("w1"), now_s=100)
    table.hear(report("w2"), now_s=101)
    assert [(r.node_id, age) for r, age in table.relays(102, 10)] == [("w2", 1), ("w1", 2)]
    assert [r.node_id for r, _ in table.relays(102, 1)] == ["w2"]
    assert table.relays(110, 10) == []


def test_members_are_bounded_and_the_silent_are_forgotten(table):
    for number in range(MEMBERS_MAX):
        table.hear(report(f"w{number}"), now_s=100)
    assert table.hear(report("one-more"), now_s=100) == Refusal("members_full", 0)
    table.judge(100 + FORGET_S + 1)
    assert not isinstance(table.hear(report("one-more"), now_s=5000), Refusal)
    assert set(table.members(5000)) == {"n1", "n2", "one-more"}


def test_the_order_of_the_timers_is_checked():
    with pytest.raises(ValueError, match=r"membership\.peer_timeout_s \(2\)"):
        Timers.derive(heartbeat_s=1, peer_timeout_s=2, startup_grace_s=10)
    assert Timers.derive(heartbeat_s=1, peer_timeout_s=5, startup_grace_s=0).grace_s == 5


def test_a_voters_priority_is_what_it_says_itself(table):
    assert table.members(0)["n2"].priority is None
    table.hear(report("n2", priority=7), now_s=1)
    assert table.members(1)["n2"].priority == 7


def test_voters_that_come_and_go_are_followed(table):
    table.follow({"n1": "h:1", "n3": "h:3"})
    assert set(table.members(100)) == {"n1", "n3"}
    assert state(table, "n3", 5) is MemberState.SUSPECT
    assert [change.member.node_id for change in table.judge(11)] == ["n3"]
    table.follow(VOTERS)
    assert set(table.members(100)) == {"n1", "n2"}
