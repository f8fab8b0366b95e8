"""Real voters killed, paused and stopped under clients: the checkers find nothing, and find a planted bug."""

from __future__ import annotations

import subprocess
import sys

import pytest


def torture(*arguments: str) -> tuple[int, str]:
    """Exit code and output of ``python -m chaos.live.torture``."""
    done = subprocess.run(
        [sys.executable, "-m", "chaos.live.torture", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(240)
def test_tortured_voters_keep_their_promises() -> None:
    code, said = torture("--seconds", "8", "--seed", "4")
    assert code == 0, said
    assert "lost 0, violations 0" in said


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_forgotten_key_is_found_out() -> None:
    code, said = torture("--seconds", "15", "--seed", "4", "--mutant", "key_not_remembered")
    assert code == 1, said
    assert "key_forgotten" in said
