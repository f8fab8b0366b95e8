"""The scripts' own environment: what they say when they cannot make one. Nothing is installed here."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / "bin" / "environment.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finished(environment: ModuleType, directory: Path, *locks: str) -> None:
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").touch()
    note = {"python": environment.version(), **{lock: environment.lock_hash(lock) for lock in locks}}
    (directory / environment.NOTE).write_text(json.dumps(note))


def test_finished_environment_is_used_again(environment: ModuleType, tmp_path: Path) -> None:
    finished(environment, tmp_path / "venv", "run")
    assert environment.is_ready(tmp_path / "venv", "run")
    assert not environment.is_ready(tmp_path / "venv", "test")


def test_test_environment_serves_running_too(environment: ModuleType, tmp_path: Path) -> None:
    finished(environment, tmp_path / "venv", *environment.LOCKS["test"])
    assert environment.is_ready(tmp_path / "venv", "run")


@pytest.mark.parametrize("note", ["{}", "", '{"python": "2.7 vax", "run": "0"}'])
def test_unfinished_or_other_environment_is_not_used(environment: ModuleType, tmp_path: Path, note: str) -> None:
    finished(environment, tmp_path / "venv", "run")
    (tmp_path / "venv" / environment.NOTE).write_text(note)
    assert not environment.is_ready(tmp_path / "venv", "run")


def test_somebody_elses_venv_is_left_alone(environment: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "precious").touch()
    assert "was not made by this script" in environment.build(tmp_path / "venv", "run")
    assert (tmp_path / "venv" / "precious").exists()


def test_locks_name_no_host_and_hash_everything(environment: ModuleType) -> None:
    for name in ("build", "run", "test"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        assert "://" not in text
        assert "--index-url" not in text
        entries = text.replace("\\\n", " ").splitlines()
        assert [line for line in entries if line.strip() and "--hash=sha256:" not in line] == []


def test_test_lock_holds_the_run_lock(environment: ModuleType) -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        return {line.split()[0] for line in lines if "==" in line.partition(" ")[0]}

    assert pins("run") <= pins("test")


def test_without_python_there_is_a_sentence(tmp_path: Path) -> None:
    for tool in ("sh", "dirname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    ended = subprocess.run(
        [str(shutil.which("sh")), str(ROOT / "bin" / "ringraft")],
        env={"PATH": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("ringraft needs Python 3.11 or newer and found none on PATH")


def test_interpreter_that_has_every_locked_package_is_used_as_it_is(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = dict(re.findall(r"^(\S+)==(\S+) \\$", (ROOT / "requirements" / "run.txt").read_text(), re.MULTILINE))
    monkeypatch.setattr(environment.importlib.metadata, "version", pinned.__getitem__)
    assert environment.has_all("run")
    monkeypatch.setitem(pinned, "aiohttp", "0.0.1")
    assert not environment.has_all("run")


@pytest.mark.parametrize("runner", [["sh"], [sys.executable], []])
def test_scripts_run_by_shell_by_python_and_by_themselves(runner: list[str]) -> None:
    script = str(ROOT / "bin" / "ringraft-voter")
    done = subprocess.run([*runner, script, "--help"], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "--peers" in done.stdout
