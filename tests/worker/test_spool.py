"""A report that was kept is there after any crash, and in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ringraft.worker.spool import Report, Spool
from tests.worker.kit import ENVIRONMENT

WRITER = """
import os, signal, sys
from pathlib import Path
from ringraft.worker.spool import Report, Spool
spool = Spool(Path(sys.argv[1]))
for i in range(3):
    spool.put(Report("complete", f"w{i}", 4096 + i, {"result": {"i": i}}, 0))
os.kill(os.getpid(), signal.SIGKILL)
"""


def report(i: int, verb: str = "complete") -> Report:
    return Report(verb, f"w{i}", 4096 + i, {"result": {"i": i}}, 1_700_000_000_000)


def test_what_was_put_survives_kill_9_in_order(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], env=ENVIRONMENT, check=False)
    assert ended.returncode == -signal.SIGKILL
    spool = Spool(tmp_path)
    assert [kept.report.work_id for kept in spool.oldest_first()] == ["w0", "w1", "w2"]
    assert ("w1", 4097) in spool
    assert ("w1", 4096) not in spool


def test_order_holds_over_removals_and_restarts(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for i in range(3):
        spool.put(report(i))
    spool.remove(spool.oldest_first()[0])
    again = Spool(tmp_path)
    again.put(report(3))
    assert [kept.report.work_id for kept in again.oldest_first()] == ["w1", "w2", "w3"]
    assert again.oldest_first()[0].report == report(1)


def test_a_replaced_report_keeps_its_place(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(report(0))
    spool.put(report(1))
    spool.replace(spool.oldest_first()[0], report(0, "fail"))
    assert [kept.report.verb for kept in Spool(tmp_path).oldest_first()] == ["fail", "complete"]


def test_a_write_that_was_cut_short_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "0000000000000001.json.tmp").write_text('{"version"')
    assert len(Spool(tmp_path)) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"version": 2}), json.dumps({"verb": "exec"})])
def test_a_damaged_file_is_kept_aside_and_said(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    Spool(tmp_path).put(report(0))
    (tmp_path / "0000000000000002.json").write_text(text)
    spool = Spool(tmp_path)
    assert [kept.report.work_id for kept in spool.oldest_first()] == ["w0"]
    assert (tmp_path / "0000000000000002.damaged").exists()
    assert "action=spool_damaged file=0000000000000002.json" in caplog.text


def test_a_failing_disk_keeps_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        spool.put(report(0))
    monkeypatch.undo()
    assert len(spool) == 0
    spool.put(report(1))
    assert [kept.report.work_id for kept in Spool(tmp_path).oldest_first()] == ["w1"]
