"""The last elections, as people see them."""

from ringraft.clock import TurnableClock
from ringraft.node.elections import KEPT, Elections
from ringraft.state.model import Applied, Event


def elected(leader_id, term=1):
    return Applied((), (Event(term << 20, term, "LEADER_ELECTED", 0, {"leader_id": leader_id, "term": term}),))


def test_a_gap_is_measured_whichever_comes_first():
    clock = TurnableClock()
    elections = Elections(clock)
    elections.leader_is(None)
    clock.advance_ms(400)
    elections.leader_is("n1")
    elections.applied(elected("n1", 1))
    elections.leader_is(None)
    clock.advance_ms(250)
    elections.applied(elected("n2", 2))
    elections.leader_is("n2")
    assert [(e["winner"], e["reason"], e["duration_s"]) for e in elections.views()] == [
        ("n2", "no_leader", 0.25),
        ("n1", "no_leader", 0.4),
    ]


def test_a_hand_over_has_no_gap():
    elections = Elections(TurnableClock())
    elections.leader_is("n1")
    elections.applied(elected("n1", 1))
    elections.leader_is("n2")
    elections.applied(elected("n2", 2))
    assert [(e["winner"], e["reason"]) for e in elections.views()] == [("n2", "handed_over"), ("n1", None)]


def test_elections_of_a_replayed_log_are_bounded():
    elections = Elections(TurnableClock())
    for term in range(1, 100):
        elections.applied(elected("n1", term))
    assert len(elections.views()) == KEPT
    assert elections.views()[0]["reason"] is None
