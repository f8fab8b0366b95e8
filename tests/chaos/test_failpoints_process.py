"""Named points in real processes: ``RINGRAFT_FAILPOINT`` ends a voter where it says, and it comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.node.processes import ROOT, VoterProcess, free_ports

READY_S = 60.0


def run_voter(directory: Path, failpoint: str) -> tuple[int, str]:
    """A voter alone with a failpoint, to its end: exit code and what it said on stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RINGRAFT_", "P2P_"))}
    ended = subprocess.run(
        [sys.executable, "-m", "ringraft.cli.voter", "--node-id", "n1", "--bind", "127.0.0.1:0",
         "--data-dir", str(directory / "n1")],
        cwd=ROOT, env=environment | {"RINGRAFT_FAILPOINT": failpoint}, capture_output=True, text=True,
        timeout=READY_S, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    "point", ["segment.rename.before", "vote.rename.after", "vote.sync.before", "mark.create.after"]
)
def test_a_voter_killed_at_its_first_start_starts_again(tmp_path: Path, point: str) -> None:
    code, _ = run_voter(tmp_path, f"{point}:1:kill")
    assert code == -signal.SIGKILL
    voter = VoterProcess(tmp_path, "n1", f"127.0.0.1:{free_ports(1)[0]}")
    voter.start()
    try:
        voter.wait_ready()
    finally:
        voter.kill()


def test_a_disk_that_refuses_ends_the_voter_with_one_sentence(tmp_path: Path) -> None:
    code, told = run_voter(tmp_path, "vote.write.before:1:enospc")
    assert code not in (0, -signal.SIGKILL)
    assert "No space left on device" in told


def test_a_failpoint_that_is_none_is_refused(tmp_path: Path) -> None:
    code, told = run_voter(tmp_path, "vote.sing.before:1:kill")
    assert code == 2
    assert "RINGRAFT_FAILPOINT: there is no failpoint 'vote.sing.before'" in told
