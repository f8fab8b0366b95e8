"""The twenty-three hazards of the library: shown on it as it comes, and what holds them off on ours.

====  =============================================================  ==========================================
      the unmodified library (``shown.py``)                          ours
====  =============================================================  ==========================================
H1    a stranger's bytes are unpickled                               no pickle in a whole failover; strangers are
                                                                     not linked
H2    20 writes acknowledged, nothing synced                         a promise waits for the sync that covers it
H3    a kill during compaction loses the log; rot is read            killed at any operation; every flipped bit
H4    a re-sent batch cuts committed entries, then it votes          cut only at a conflict, never what is committed
H5    an unreadable snapshot: it serves an empty state               never taken for state; the one before, or refuse
H6    one that was away deposes a healthy leader                     it asks first, and nobody answers
H7    a cut-off leader leads for 30 s more                           one election timeout
H8    it reads its own old state meanwhile                           a read needs a commit begun after it
H9    told LEADER_CHANGED, and applied                               unknown; the key makes the retry the same
H10   no answer, ever                                                every proposal ends at its deadline
H11   150 divergent entries take 17 s                                a term at a time
H11b  a tail and 300 KB of lag: it never catches up                  it does
H12   one bad command stops the cluster                              it is refused, alike everywhere
H13   forks, or makes the snapshot inside the tick                   slices beside the traffic
H14   only the higher address dials, every 5 s                       both dial
H15   who says an address is that peer                               a proof comes first, one live link a peer
H16   one vote twice elects; acknowledgements have no term           votes are a set; answers name their question
H17   a voter that never comes up costs a failure                    it catches up before it counts
H18   a transfer that never arrived is a SUCCESS                     it resolves when the other leads
H19   a disk error is an exception like any other                    the node ends, the others go on
H20   the first slice replaces the good snapshot                     an unfinished snapshot does not exist
H21   an entry of 131,000 bytes raises in every follower             any size below the limit arrives
H22   3,000 notes restored in one message                            chunks, acknowledged one by one
====  =============================================================  ==========================================

Each hazard is shown in a process of its own: importing our package fills the library's seams for the
whole process. ``OURS`` names the tests of the right-hand column; ``tests/consensus/test_library.py``
says clearly when the installed library is not the one all this was studied on.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

Fact = Any

SHOWN: dict[str, dict[str, Fact]] = {
    "H1": {"a_stranger_ran_code": True},
    "H2": {"acknowledged": 20, "syncs": 0},
    "H3": {"should_keep": 50, "kept": 2, "rot_is_read": True, "term_of_rotten_meta": 0, "offset_bytes": 4},
    "H4": {
        "committed": 11,
        "applied": 11,
        "end_after_resend": 5,
        "committed_after_resend": 5,
        "votes_for_one_that_lacks_committed_entries": True,
    },
    "H5": {"serves": True, "notes": ["after"]},
    "H6": {"healthy_leader_deposed": True},
    "H7": {"still_leader_s": lambda seconds: seconds > 25},
    "H8": {"acknowledged": True, "old_says_it_leads": True, "old_reads": []},
    "H9": {"told_leader_changed": True, "applied": ["once"]},
    "H10": {"answered_in_60_s": [], "answered_ever": [], "caught_up": 20},
    "H11": {"seconds": lambda seconds: seconds > 10},
    "H11b": {"behind_after_60_s": lambda entries: entries > 2000, "believes_in_the_right_leader": True},
    "H12": {"stuck": True, "later_write_answered": [], "errors_a_second": lambda count: count > 50},
    "H13": {"forks": 1, "made_in_the_tick": True},
    "H14": {"dials": {"low": False, "high": True}, "retry_s": 5.0},
    "H15": {"a_stranger_is_the_peer_it_says": True},
    "H16": {"voters": 5, "leads_with_two_real_votes": True, "commits_by_stale_acks": True},
    "H17": {"writes_with_three_of_three": True, "writes_with_one_down": False},
    "H18": {"told_success": True, "leads": False},
    "H19": {"disk_failed": 1, "goes_on_and_acknowledges": True},
    "H20": {"still_serializing": True, "good_snapshot_is_now": "slice 1 of 9"},
    "H21": {"followers_that_raised": 2},
    "H22": {"restored_in_one_message": 3000},
}
"""What is seen on the library: a value, or what must hold of it."""

OURS: dict[str, tuple[str, ...]] = {
    "H1": (
        "consensus.test_library:test_a_whole_failover_with_snapshots_runs_without_pickle",
        "consensus.test_links:test_a_stranger_is_not_linked",
        "test_house:test_nothing_dangerous_is_called",
    ),
    "H2": (
        "consensus.test_durability:test_all_lose_power_at_once_and_nothing_acknowledged_is_lost",
        "consensus.test_journal_crash:test_at_a_power_cut_nothing_synced_is_lost",
    ),
    "H3": (
        "consensus.test_journal_crash:test_killed_at_any_operation_nothing_acknowledged_is_lost",
        "consensus.test_journal_damage:test_a_flipped_bit_is_never_taken_for_data",
    ),
    "H4": (
        "consensus.test_filter:test_a_resent_batch_does_not_shorten_a_log_that_goes_on",
        "consensus.test_filter:test_a_conflict_with_a_committed_entry_is_fatal",
    ),
    "H5": (
        "consensus.test_snapshot:test_a_flipped_bit_is_never_taken_for_state",
        "consensus.test_journal_crash:test_the_snapshot_before_stands_in_for_a_damaged_one",
    ),
    "H6": (
        "consensus.test_raft_elections:test_a_node_that_was_cut_off_comes_back_in_its_old_term_and_deposes_nobody",
        "consensus.test_raft:test_a_paused_follower_does_not_depose_the_leader_on_resume",
    ),
    "H7": ("consensus.test_raft:test_a_leader_that_is_cut_off_knows_within_an_election_timeout",),
    "H8": (
        "consensus.test_raft:test_a_read_at_a_follower_sees_what_was_acknowledged",
        "consensus.test_raft:test_a_read_is_never_answered_by_a_leader_that_is_cut_off",
    ),
    "H9": (
        "consensus.test_proposals:test_a_deadline_in_an_entry_means_unknown",
        "state.test_model_properties:test_a_repeated_key_has_no_second_effect",
    ),
    "H10": (
        "consensus.test_proposals:test_a_deadline_in_an_entry_means_unknown",
        "consensus.test_proposals:test_a_snapshot_over_its_index_means_unknown",
        "consensus.test_raft:test_what_a_deposed_leader_had_under_way_ends_by_what_is_applied_there",
    ),
    "H11": (
        "consensus.test_filter:test_150_divergent_entries_are_found_in_a_few_questions",
        "consensus.test_raft:test_an_uncommitted_tail_is_replaced_in_a_few_exchanges",
    ),
    "H11b": ("hazards.test_ours:test_a_former_leader_with_a_tail_and_much_to_read_catches_up",),
    "H12": (
        "state.test_machine:test_a_bug_in_a_decider_refuses_that_one_command",
        "consensus.test_raft:test_a_replica_that_cannot_apply_stops_and_says_so",
    ),
    "H13": ("state.test_replay:test_slices_are_bounded",),
    "H14": ("consensus.test_links:test_two_peers_link_both_ways_and_messages_keep_their_order",),
    "H15": (
        "consensus.test_links:test_messages_before_the_proof_do_not_count",
        "consensus.test_links:test_a_newer_connection_replaces_the_older",
    ),
    "H16": (
        "consensus.test_raft:test_a_vote_that_comes_twice_counts_once",
        "consensus.test_filter:test_an_answer_to_an_older_question_does_not_undo_a_step_back",
    ),
    "H17": ("consensus.test_voters:test_a_learner_that_never_comes_lowers_nothing",),
    "H18": (
        "consensus.test_raft:test_leadership_is_handed_to_whom_was_named",
        "consensus.test_raft:test_a_transfer_that_cannot_succeed_leaves_leadership_where_it_is",
    ),
    "H19": (
        "consensus.test_raft:test_a_failed_disk_ends_the_node_and_the_others_go_on",
        "consensus.test_journal:test_a_journal_whose_disk_failed_takes_nothing_more",
    ),
    "H20": (
        "consensus.test_snapshot:test_an_unfinished_snapshot_does_not_exist",
        "consensus.test_snapshot:test_the_newest_two_are_kept",
    ),
    "H21": ("consensus.test_raft:test_an_entry_of_any_size_below_the_limit_reaches_the_followers",),
    "H22": (
        "consensus.test_raft_snapshot:test_an_installation_that_takes_long_deposes_nobody",
        "consensus.test_raft_snapshot:test_a_transfer_that_breaks_begins_again",
    ),
}
"""Where ours is tested for it: ``module:test`` below ``tests``."""


def seen(hazard: str, scratch: Path) -> dict[str, Any]:
    """What ``shown.py`` reports, in a process without our package and with a fixed order of sets."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hazards.shown", hazard.lower(), str(scratch)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("hazard", SHOWN)
def test_the_unmodified_library_has_it(hazard: str, tmp_path: Path) -> None:
    facts = seen(hazard, tmp_path)
    for name, expected in SHOWN[hazard].items():
        holds = expected(facts[name]) if callable(expected) else facts[name] == expected
        assert holds, f"{hazard}: {name} is {facts[name]}"


@pytest.mark.parametrize("hazard", OURS)
def test_ours_is_tested_for_it(hazard: str) -> None:
    for place in OURS[hazard]:
        module, _, test = place.partition(":")
        found = getattr(importlib.import_module(f"tests.{module}"), test, None)
        assert callable(found), (
            f"{hazard} is held off by {place}, which is not there: name the test that took its place"
        )


def test_the_list_is_whole() -> None:
    assert len(SHOWN) == 23
    assert list(OURS) == list(SHOWN)
    assert list(SHOWN) == [*(f"H{number}" for number in range(1, 12)), "H11b", *(f"H{n}" for n in range(12, 23))]
