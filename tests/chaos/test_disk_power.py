"""Power cuts on real file systems: what was synced is there, and a log that does not sync is found out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.disk.load import Ledger
from chaos.disk.volume import missing
from chaos.disk.votes import Votes
from ringraft.consensus.replog.vote import Vote

needs_volumes = pytest.mark.skipif(missing() is not None, reason=f"{missing()}")


def power(*arguments: str) -> tuple[int, str]:
    """Exit code and output of ``python -m chaos.disk.power``."""
    done = subprocess.run(
        [sys.executable, "-m", "chaos.disk.power", *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    return done.returncode, done.stdout + done.stderr


@needs_volumes
def test_a_log_keeps_through_power_cuts_what_it_synced(tmp_path: Path) -> None:
    results = tmp_path / "power.jsonl"
    code, said = power("--nodes", "0", "--cuts", "60", "--seed", "5", "--record", str(results))
    assert code == 0, said
    assert "passed: 60 strikes (cuts 60)" in said
    line = json.loads(results.read_text())
    assert (line["strikes"], line["lost"], line["violations"]) == (60, 0, 0)
    assert line["acknowledged"] > 500
    assert line["command"].startswith("python -m chaos.disk.power --nodes 0 --cuts 60")


@needs_volumes
def test_a_log_that_does_not_sync_is_found_out() -> None:
    code, said = power("--nodes", "0", "--cuts", "40", "--seed", "5", "--mutant", "sync_that_syncs_nothing")
    assert code == 1
    assert "FAILED" in said
    assert said.count("Lost: ") > 2


@needs_volumes
def test_a_power_cut_leaves_nothing_mounted() -> None:
    before = Path("/proc/self/mounts").read_text()
    power("--nodes", "0", "--cuts", "2")
    assert Path("/proc/self/mounts").read_text() == before


def item(number: int, work_id: str, state: str = "PENDING", result: str | None = None, completions: int = 0) -> dict:
    return {
        "work_id": work_id,
        "config": {"number": number},
        "state": state,
        "result": None if result is None else {"by": result},
        "history": [{"outcome": "completed"}] * completions,
    }


def ledger() -> Ledger:
    return Ledger(added={0: "w0", 1: "w1"}, asked=3, completed={"w1": "7"}, results={"w1": {"7", "8"}})


WHOLE = [item(0, "w0"), item(1, "w1", "COMPLETED", "7", 1)]


def test_the_ledger_has_no_fault_with_what_was_acknowledged() -> None:
    assert ledger().faults(WHOLE) == []
    assert ledger().faults([*WHOLE, item(2, "w2")]) == [], "asked for, and not answered"


@pytest.mark.parametrize(
    ("held", "fault"),
    [
        (WHOLE[1:], "acknowledged add w0 (0) is lost"),
        ([*WHOLE, item(0, "w9")], "add 0 is there 2 times"),
        ([*WHOLE, item(3, "w9")], "item 3 was never asked for"),
        ([item(2, "w0"), WHOLE[1]], "add 0 was acknowledged as w0 and is not"),
        ([WHOLE[0], item(1, "w1")], "acknowledged completion of w1 is lost"),
        ([WHOLE[0], item(1, "w1", "COMPLETED", "7", 2)], "w1 was completed 2 times"),
        ([WHOLE[0], item(1, "w1", "COMPLETED", "8", 1)], "w1 holds result 8 and 7 was acknowledged"),
        ([WHOLE[0], item(1, "w1", "COMPLETED", "9", 1)], "w1 holds result 9, which nobody handed in"),
    ],
)
def test_the_ledger_finds(held: list[dict], fault: str) -> None:
    assert fault in ledger().faults(held)


def test_a_vote_that_changes_in_its_term_or_goes_back_is_found() -> None:
    votes = Votes()
    assert votes.found("n1", Vote(3, None)) == []
    assert votes.found("n1", Vote(3, "n2")) == []
    assert votes.found("n1", Vote(3, "n3")) == ["n1 voted for n2 and for n3 in term 3"]
    assert votes.hear("n1", 4) == []
    assert votes.found("n1", Vote(3, "n3")) == ["n1 was in term 4 and kept only 3"]
    assert votes.hear("n1", 3) == ["n1 was in term 4 and then in 3"]


def test_a_leader_that_no_majority_voted_for_is_found(tmp_path: Path) -> None:
    log = tmp_path / "n1.log"
    log.write_text("x action=leadership node=n1 leader=n1 term=5 role=leader\n")
    votes = Votes()
    assert votes.read_log("n1", log) == []
    for name, vote in (("n1", Vote(5, "n1")), ("n2", Vote(5, None)), ("n3", Vote(4, "n1"))):
        votes.found(name, vote)
    assert votes.unelected(["n1", "n2", "n3"]) == [
        "n1 led term 5 and only ['n1'] of ['n1', 'n2', 'n3'] kept that or a newer vote"
    ]
    votes.found("n3", Vote(6, None))
    assert votes.unelected(["n1", "n2", "n3"]) == []
    other = tmp_path / "n2.log"
    other.write_text("x action=leadership node=n2 leader=n2 term=5 role=leader\n")
    assert votes.read_log("n2", other) == ["n2 and n1 both led term 5"]


@needs_volumes
def test_voters_keep_through_power_cuts_what_they_acknowledged() -> None:
    code, said = power("--nodes", "3", "--cuts", "6", "--seed", "5")
    assert code == 0, said
    assert "lost 0, violations 0" in said


@needs_volumes
def test_voters_that_do_not_sync_are_found_out() -> None:
    code, said = power("--nodes", "1", "--cuts", "20", "--seed", "5", "--mutant", "sync_that_syncs_nothing")
    assert code == 1
    assert "FAILED" in said, said
    assert "is lost" in said or "was not ready" in said or "was refused" in said, said
