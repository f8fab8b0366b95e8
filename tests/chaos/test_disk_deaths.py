"""Death, refusal and short writes at system calls: what was acknowledged is there, and careless disks are found out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chaos.disk import tracer, volume
from chaos.disk.careless import BufferedDisk, DeafDisk
from chaos.disk.logdeaths import die_everywhere
from chaos.disk.record import Figures
from ringraft.consensus.replog.files import LOCAL_DISK, Disk

needs_strace = pytest.mark.skipif(tracer.missing() is not None, reason=f"{tracer.missing()}")
needs_volumes = pytest.mark.skipif(volume.missing() is not None, reason=f"{volume.missing()}")


def deaths(folder: Path, disk: Disk = LOCAL_DISK, *, every: int) -> Figures:
    return die_everywhere(folder, seed=3, every=every, show=lambda _: None, disk=disk)


@needs_strace
def test_a_log_that_dies_or_is_refused_at_a_system_call_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    figures = deaths(tmp_path, every=30)
    assert figures.violations == []
    assert {"killed at pwrite64", "killed at rename", "refused fdatasync", "short write"} <= set(figures.kinds)
    assert figures.strikes == sum(figures.kinds.values()) > 40


@needs_strace
@pytest.mark.parametrize("disk", [BufferedDisk(), DeafDisk()])
def test_a_careless_disk_is_found_out(tmp_path: Path, disk: Disk) -> None:
    assert deaths(tmp_path, disk, every=60).violations


@needs_strace
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_log_survives_death_and_refusal_at_every_system_call(tmp_path: Path) -> None:
    figures = deaths(tmp_path, every=1)
    assert figures.violations == []
    assert figures.strikes > 800


@needs_strace
@needs_volumes
def test_voters_that_die_or_are_refused_at_system_calls_lose_nothing() -> None:
    command = [sys.executable, "-m", "chaos.disk.deaths", "--nodes", "3", "--strikes", "5", "--seed", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost 0, violations 0" in done.stdout
