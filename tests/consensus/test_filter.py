"""The rules of the log that the library does not keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringraft.consensus.replog.codec import Append, Appended
from ringraft.consensus.replog.filter import (
    LogRecord,
    Mismatch,
    Mode,
    Placement,
    Progress,
    SafetyViolation,
    Votes,
    agreed,
    place,
    quorum_size,
    retreat,
    trailing,
)


def log(*terms: int, first: int = 1) -> list[LogRecord]:
    return [(b"%d" % index, index, term) for index, term in enumerate(terms, first)]


def append(prev: tuple[int, int], *terms: int, commit: int = 0) -> Append:
    entries = tuple((term, b"%d" % index) for index, term in enumerate(terms, prev[0] + 1))
    return Append(9, prev[0], prev[1], commit, entries)


def test_entries_that_match_are_kept_and_nothing_is_cut() -> None:
    assert place(log(1, 1, 1, 1), 2, append((1, 1), 1, 1)) == Placement(None, (), 3)


def test_a_resent_batch_does_not_shorten_a_log_that_goes_on() -> None:
    own = log(*[1] * 11)
    assert place(own, 11, append((1, 1), 1, 1, 1, 1)) == Placement(None, (), 5)


def test_only_what_is_missing_is_added() -> None:
    assert place(log(1, 1), 1, append((1, 1), 1, 2)) == Placement(None, [(b"3", 3, 2)], 3)


def test_a_conflict_cuts_from_the_first_entry_that_differs() -> None:
    assert place(log(1, 1, 2, 2), 2, append((1, 1), 1, 3)) == Placement(3, [(b"3", 3, 3)], 3)


def test_a_conflict_with_a_committed_entry_is_fatal() -> None:
    with pytest.raises(SafetyViolation, match="entry 3 is committed with term 2"):
        place(log(1, 1, 2, 2), 3, append((1, 1), 1, 3))


def test_a_committed_entry_of_another_term_at_prev_is_fatal() -> None:
    with pytest.raises(SafetyViolation, match="entry 3 is committed"):
        place(log(1, 1, 2), 3, append((3, 1)))


def test_a_gap_is_answered_with_the_end_of_the_log() -> None:
    assert place(log(1, 1), 1, append((7, 1), 1)) == Mismatch(2, 1)


def test_a_mismatch_steps_back_a_whole_term() -> None:
    own = log(1, 1, *[2] * 150)
    assert place(own, 2, append((152, 3))) == Mismatch(152, 2)
    assert place(own, 2, append((152, 1))) == Mismatch(2, 1)


def test_what_a_snapshot_covers_counts_as_matched() -> None:
    own = log(3, 3, first=10)
    assert place(own, 11, append((4, 1), 1, 2)) == Placement(None, (), 6)
    assert place(own, 11, append((8, 1), 2, 3, 3, 3)) == Placement(None, [(b"12", 12, 3)], 12)


def test_retreat_stops_at_the_first_entry() -> None:
    assert retreat(log(5, 5, 6, first=4), 6, 3) == 4
    assert retreat(log(5, 5, 6, first=4), 6, 5) == 5
    assert retreat(log(5, 5, 6, first=4), 99, 6) == 6


def test_150_divergent_entries_are_found_in_a_few_questions() -> None:
    leader, follower = log(1, *[2] * 50, *[5] * 150), log(1, *[2] * 20, *[3] * 150, *[4] * 10)
    progress, questions = Progress(len(leader) + 1), 0
    while progress.mode is Mode.PROBE:
        questions += 1
        prev = progress.next_index - 1
        answer = place(follower, 1, Append(5, prev, leader[prev - 1][2], 0, ()))
        if isinstance(answer, Mismatch):
            progress.answered(Appended(5, prev, False, answer.log_index, answer.log_term), leader)
        else:
            progress.answered(Appended(5, prev, True, answer.matched, 0), leader)
    assert progress.match_index == 21
    assert questions <= 4


@given(st.data())
def test_probing_always_ends_at_a_common_entry(data: st.DataObject) -> None:
    common = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=8).map(sorted))
    rest = st.lists(st.integers(common[-1], common[-1] + 4), max_size=12).map(sorted)
    ours, theirs = data.draw(rest), data.draw(rest)
    leader, follower = log(*common, *ours), log(*common, *theirs)
    progress = Progress(len(leader) + 1)
    for _ in range(len(leader) + 2):
        prev = progress.next_index - 1
        answer = place(follower, 0, Append(9, prev, leader[prev - 1][2], 0, ()))
        if isinstance(answer, Placement):
            break
        progress.answered(Appended(9, prev, False, answer.log_index, answer.log_term), leader)
    assert isinstance(answer, Placement)
    assert leader[prev - 1][2] == follower[prev - 1][2]


def test_an_answer_to_an_older_question_does_not_undo_a_step_back() -> None:
    own = log(*[1] * 100)
    progress = Progress(101)
    progress.answered(Appended(1, 100, False, 40, 1), own)
    assert progress.next_index == 41
    progress.answered(Appended(1, 100, False, 90, 1), own)
    progress.answered(Appended(1, 60, False, 59, 1), own)
    assert progress.next_index == 41, "those answers belong to other questions"


def test_a_late_refusal_does_not_undo_what_matched() -> None:
    own = log(*[1] * 100)
    progress = Progress(51, mode=Mode.STREAM, match_index=50)
    progress.next_index = 80
    progress.answered(Appended(1, 40, False, 10, 1), own)
    assert (progress.mode, progress.next_index) == (Mode.STREAM, 80)


def test_acknowledgements_out_of_order_never_go_back() -> None:
    own = log(*[1] * 100)
    progress = Progress(101, mode=Mode.STREAM, match_index=50)
    progress.answered(Appended(1, 80, True, 90, 0), own)
    progress.answered(Appended(1, 60, True, 70, 0), own)
    assert (progress.match_index, progress.next_index) == (90, 101)


def test_a_broken_link_asks_again_from_what_is_known() -> None:
    progress = Progress(101, mode=Mode.STREAM, match_index=50)
    progress.link_changed()
    assert (progress.mode, progress.next_index, progress.is_asked) == (Mode.PROBE, 51, False)


def test_a_follower_behind_the_log_needs_a_snapshot() -> None:
    own = log(3, 3, 3, first=100)
    progress = Progress(103)
    progress.answered(Appended(3, 102, False, 7, 1), own)
    assert progress.next_index <= own[0][1]


def test_a_vote_counts_once_a_term() -> None:
    votes = Votes()
    assert votes.is_new("n2", 4)
    assert not votes.is_new("n2", 4)
    assert votes.is_new("n3", 4)
    assert votes.is_new("n2", 5)


@pytest.mark.parametrize(("voters", "size"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_a_quorum_is_a_majority_of_the_configured(voters: int, size: int) -> None:
    assert quorum_size(f"n{number}" for number in range(voters)) == size


@given(st.integers(1, 3), st.lists(st.integers(1, 9), max_size=5))
def test_what_is_agreed_is_the_most_that_a_quorum_has_reached(quorum: int, reached: list[int]) -> None:
    value = agreed(reached, quorum)
    assert value == 0 or sum(1 for one in reached if one >= value) >= quorum
    assert sum(1 for one in reached if one >= value + 1) < quorum


def test_what_trails_a_snapshot_is_bounded_in_bytes() -> None:
    held = [(b"x" * 100, index, 1) for index in range(11, 31)]
    assert [trailing(held, most) for most in (10_000, 250, 0)] == [11, 28, 30]


def test_a_follower_that_lost_what_it_acknowledged_is_asked_from_where_it_stands() -> None:
    held = log(1, 1, 1, 1, 2, 2)
    progress = Progress(next_index=7)
    progress.answered(Appended(2, 6, True, 6, 0), held)
    assert (progress.mode, progress.match_index) == (Mode.STREAM, 6)
    progress.answered(Appended(2, 6, False, 3, 1), held)
    assert progress.match_index == 6, "an old answer"
    progress.link_changed()
    progress.answered(Appended(2, 4, False, 3, 1), held)
    assert progress.match_index == 6, "not what was asked"
    progress.answered(Appended(2, 6, False, 3, 1), held)
    assert (progress.mode, progress.match_index, progress.next_index) == (Mode.PROBE, 0, 4)
    progress.answered(Appended(2, 3, True, 3, 0), held)
    assert (progress.mode, progress.match_index, progress.next_index) == (Mode.STREAM, 3, 4)
