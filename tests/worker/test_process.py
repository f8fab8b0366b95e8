"""What an older self left is ended or taken over, and nobody else is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ringraft.worker.process import clear_leftovers, read_progress
from ringraft.worker.task import PROGRESS_FILE
from tests.worker.kit import alive


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, with a child in the same group."""
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    process = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(60)"], start_new_session=True)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, 9)
    process.wait()


def leave(runs: Path, pid: int, born_s: float, **item: Any) -> Path:
    directory = runs / f"w.{item.get('token', 4096)}"
    directory.mkdir(parents=True)
    record = {"pid": pid, "born_s": born_s, "boot_s": psutil.boot_time()}
    (directory / "process.json").write_text(json.dumps(record))
    described = {"work_id": "w", "token": 4096, "entry_point": "workloads:answer", **item}
    (directory / "item.json").write_text(json.dumps(described))
    return directory


def group(pid: int) -> list[int]:
    return [p.pid for p in psutil.process_iter() if p.pid != pid and os.getpgid(p.pid) == pid and alive(p.pid)]


def until(condition: Any) -> None:
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_a_leftover_is_ended_with_its_children(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    until(lambda: group(sleeper.pid))
    children = group(sleeper.pid)
    directory = leave(tmp_path, sleeper.pid, psutil.Process(sleeper.pid).create_time())
    assert clear_leftovers(tmp_path) == []
    assert sleeper.wait(5) == -9
    until(lambda: not any(alive(pid) for pid in children))
    assert not directory.exists()


def test_orphans_of_an_ended_process_are_ended(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    until(lambda: group(sleeper.pid))
    children = group(sleeper.pid)
    born_s = psutil.Process(sleeper.pid).create_time()
    os.kill(sleeper.pid, 9)
    sleeper.wait()
    leave(tmp_path, sleeper.pid, born_s)
    clear_leftovers(tmp_path)
    until(lambda: not any(alive(pid) for pid in children))


def test_a_stranger_with_the_same_number_is_left_alone(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    leave(tmp_path, sleeper.pid, psutil.Process(sleeper.pid).create_time() - 1000)
    clear_leftovers(tmp_path)
    assert sleeper.poll() is None


def test_a_finished_result_that_was_not_reported_is_taken_over(tmp_path: Path) -> None:
    directory = leave(tmp_path, 2**22 - 1, 0.0)
    (directory / "result.json").write_text(json.dumps({"result": {"n": 1}, "artifacts": []}))
    (found,) = clear_leftovers(tmp_path)
    assert (found.work_id, found.token, found.finished.result) == ("w", 4096, {"n": 1})
    assert directory.exists()


def test_what_a_program_left_half_done_is_not_a_result(tmp_path: Path) -> None:
    directory = leave(tmp_path, 2**22 - 1, 0.0, entry_point=None, command=["/bin/true"])
    (directory / "result.json").write_text(json.dumps({"result": {"n": 1}}))
    assert clear_leftovers(tmp_path) == []
    assert not directory.exists()


@pytest.mark.parametrize("text", ['{"loss": 1e999}', '{"loss": -1e999}', '{"n": 100000000000000000000}', '"\\ud800"'])
def test_progress_that_no_request_can_carry_is_not_sent(tmp_path: Path, text: str) -> None:
    (tmp_path / PROGRESS_FILE).write_text(text)
    assert read_progress(tmp_path) is None
