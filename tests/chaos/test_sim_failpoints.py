"""Every named point is reached, and a process that ends there comes back without loss."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from chaos.sim.batch import quiet
from chaos.sim.plan import Fault, Plan
from chaos.sim.world import World
from ringraft import failpoints
from ringraft.consensus.replog.files import LOCAL_DISK
from ringraft.consensus.replog.journal import Journal
from ringraft.failpoints import POINTS, STEPS, Failpoint, FailpointDisk


def _death(step: str, moment: str, at_s: float) -> Fault:
    return Fault("die_in_disk", at_s, 2.0, (0,), {"step": step, "count": 1, "moment": moment})


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_that_dies_at_any_point_comes_back(step: str, moment: str) -> None:
    deaths = tuple(_death(step, moment, at_s) for at_s in (0.0, 4.0))
    if step == "segment.cut":
        # There is something to cut after a death in the middle of an append only.
        deaths = (_death("segment.append", "torn", 3.0), _death(step, moment, 4.5))
    # A kill and a pause, so that there is something to install, to repair and to vote about.
    troubles = (
        Fault("isolate", 5.0, 2.0, (1,), {"way": "both"}),
        Fault("kill", 6.0, 4.0, (0,)),
        Fault("isolate", 12.0, 3.0, (0,), {"way": "both"}),
    )
    plan = Plan(
        seed=7, voters=3, fault_s=15.5, snapshot_entries=10, segment_bytes=4096, faults=deaths + troubles, ops_per_s=20
    )
    with quiet():
        result = World(plan).run()
    assert result.violation is None
    assert result.counts["died_in_disk"] >= (2 if step == "segment.cut" else 1), f"{step} was not reached"


def test_there_are_points_enough() -> None:
    assert len(POINTS) == 2 * len(STEPS) >= 25


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vote.sync.before", "name:count:action"),
        ("vote.sing.before:1:kill", "no failpoint"),
        ("vote.sync.before:0:kill", "from 1"),
        ("vote.sync.before:1:dance", "kill, eio, enospc"),
    ],
)
def test_a_failpoint_that_is_none_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Failpoint.parse(text)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_the_count_says_which_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(_process: int, number: int) -> None:
        assert number == signal.SIGKILL
        raise Killed

    monkeypatch.setattr(failpoints.os, "kill", kill)
    disk = FailpointDisk(LOCAL_DISK, Failpoint.parse("segment.append.after:3:kill"))
    journal = Journal.open(tmp_path / "log", disk=disk)
    journal.setCurrentTerm(1, None)
    for index, command in enumerate((b"a", b"b"), 1):
        journal.add(command, index, 1)
        journal.sync()
    journal.add(b"c", 3, 1)
    with pytest.raises(Killed):
        journal.sync()
    assert Journal.open(tmp_path / "log").last_index == 3
