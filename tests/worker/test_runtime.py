"""What a worker promises from claim to report."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ringraft.client import Unreachable
from ringraft.clock import TurnableClock
from tests.worker.cluster import FakeCluster, refusal
from tests.worker.kit import WORKLOADS, Config, Start, alive, entry, until


async def test_an_item_is_run_and_its_result_handed_in_once(make: Start, cluster: FakeCluster, tmp_path: Path) -> None:
    worker = make()
    await worker.start()
    cluster.add("a1", "answer", {"n": 21})
    await until(lambda: cluster.state("a1") == "COMPLETED")
    await until(lambda: worker.status()["spooled"] == 0 and not worker.status()["running"])
    assert [body["result"] for body in cluster.reports["complete"]] == [{"doubled": 42}]
    assert cluster.paths().count("/work/complete") == 1
    assert cluster.paths().index("/work/start") < cluster.paths().index("/work/complete")
    log = worker.log_path("A1")
    assert log is not None and log.read_text() == "working on a1\n"
    assert list((tmp_path / "data" / "runs").iterdir()) == []
    assert worker.log_path("unknown") is None


async def test_a_worker_claims_only_what_it_has_slots_for(make: Start, cluster: FakeCluster, tmp_path: Path) -> None:
    for i in range(5):
        cluster.add(f"i{i}", "wait", {"until": str(tmp_path / "go")})
    worker = make(Config(WORKLOADS, slots=2))
    await worker.start()
    await until(lambda: len(cluster.progress) == 2)
    claims = [body for path, body in cluster.calls if path == "/work/claim"]
    assert [body["max_items"] for body in claims] == [2]
    assert len(worker.status()["running"]) == 2
    (tmp_path / "go").touch()
    await until(lambda: len(cluster.reports["complete"]) == 5)


async def test_arguments_that_do_not_fit_fail_the_item_for_good_before_it_starts(
    make: Start, cluster: FakeCluster
) -> None:
    arguments = {"n": {"type": "integer", "minimum": 1, "required": True}, "mode": {"type": "string"}}
    worker = make(Config({"answer": entry("answer", arguments=arguments)}))
    await worker.start()
    cluster.add("bad", "answer", {"n": 0, "moed": "x"})
    await until(lambda: cluster.state("bad") == "FAILED")
    (report,) = cluster.reports["fail"]
    assert report["retryable"] is False
    assert "/config/n: is 0, allowed are 1 to" in report["error"]
    assert "'moed' is not known here; did you mean 'mode'?" in report["error"]
    assert "/work/start" not in cluster.paths()


@pytest.mark.parametrize(
    ("work_type", "error", "retryable"),
    [
        ("refuse", "bad arguments: n must be even", False),
        ("crash", r"OSError: no space \[31m left", True),
        ("large", r"result has 700\d\d bytes, the most is 65536: leave large data as a file in artifacts", False),
        ("exit3", "exit code 3: it broke", True),
        ("exit64", "exit code 64: usage", False),
        ("killed", "ended by SIGKILL", True),
        ("nonsense", "the result file is not JSON", False),
        ("nan", "the result file is not JSON", False),
        ("huge", "result cannot be stored", False),
    ],
)
async def test_each_bad_ending_says_what_happened(
    make: Start, cluster: FakeCluster, work_type: str, error: str, retryable: bool
) -> None:
    programs = {
        "exit3": "import sys; print('it broke'); sys.exit(3)",
        "exit64": "import sys; print('usage', file=sys.stderr); sys.exit(64)",
        "killed": "import os; os.kill(os.getpid(), 9)",
        "nonsense": "import os; open(os.environ['RINGRAFT_RESULT_FILE'], 'w').write('{')",
        "nan": "import os; open(os.environ['RINGRAFT_RESULT_FILE'], 'w').write('{\"result\": NaN}')",
        "huge": "import os; open(os.environ['RINGRAFT_RESULT_FILE'], 'w').write('{\"result\": 1e999}')",
    }
    declared = {name: {"command": [sys.executable, "-c", code]} for name, code in programs.items()}
    worker = make(Config({**WORKLOADS, **declared}))
    await worker.start()
    cluster.add("x", work_type)
    await until(lambda: cluster.reports["fail"])
    (report,) = cluster.reports["fail"]
    assert re.search(error, report["error"]), report
    assert report["error"].isprintable()
    assert report["retryable"] is retryable


async def test_a_program_gets_its_config_as_data_and_nothing_of_the_workers_environment(
    make: Start, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_WORKER", "x")
    monkeypatch.setenv("LD_PRELOAD", "/nonexistent/evil.so")
    code = (
        "import json, os, sys; config = json.load(sys.stdin);"
        "out = {'result': {'config': config, 'argv': sys.argv, 'names': sorted(os.environ)}};"
        "json.dump(out, open(os.environ['RINGRAFT_RESULT_FILE'], 'w'))"
    )
    worker = make(Config({"program": {"command": [sys.executable, "-c", code, "--fixed"], "environment": {"A": "b"}}}))
    await worker.start()
    nasty = {"path": f"; touch {tmp_path}/pwned; $(touch {tmp_path}/pwned)\n", "flag": "--help", "big": "x" * 50_000}
    cluster.add("p", "program", nasty)
    await until(lambda: cluster.reports["complete"])
    result = cluster.reports["complete"][0]["result"]
    assert result["config"] == nasty
    assert result["argv"] == ["-c", "--fixed"]
    assert "A" in result["names"]
    assert {"SECRET_OF_THE_WORKER", "LD_PRELOAD"}.isdisjoint(result["names"])
    assert not (tmp_path / "pwned").exists()


async def test_artifacts_are_described_and_stay(make: Start, cluster: FakeCluster) -> None:
    await make().start()
    cluster.add("k", "keep")
    await until(lambda: cluster.reports["complete"])
    (artifact,) = cluster.reports["complete"][0]["artifacts"]
    assert (artifact["name"], artifact["bytes"]) == ("k.txt", 4)
    assert await asyncio.to_thread(Path(artifact["path"]).read_text) == "data"


async def test_progress_goes_with_the_renewals(make: Start, cluster: FakeCluster, tmp_path: Path) -> None:
    await make().start()
    cluster.add("w", "wait", {"until": str(tmp_path / "go")})
    await until(lambda: cluster.progress)
    assert cluster.progress["w"]["waiting"] is True


@pytest.mark.parametrize("how", ["cancel", "expire"])
async def test_what_is_cancelled_or_leased_no_more_is_stopped_with_all_its_children(
    make: Start, cluster: FakeCluster, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = make(Config(WORKLOADS, work_types=("family",)))
    await worker.start()
    cluster.add("f", "family")
    pids = (await until(lambda: cluster.progress.get("f")))["pids"]
    cluster.grant("f", "w2") if how == "expire" else cluster.cancel("f")
    await until(lambda: not worker.status()["running"])
    assert not any(alive(pid) for pid in pids)
    assert cluster.reports == {"complete": [], "fail": [], "release": []}
    assert "action=run_stopped work_id=f" in caplog.text


async def test_a_cluster_that_is_away_for_an_hour_gets_the_result_when_it_is_back(
    make: Start, cluster: FakeCluster, tmp_path: Path
) -> None:
    clock = TurnableClock()
    worker = make(clock=clock)
    await worker.start()
    cluster.add("w", "wait", {"until": str(tmp_path / "go")})
    await until(lambda: cluster.progress)
    cluster.away = True
    clock.advance_ms(3_599_000)
    asked = len(cluster.calls)
    await until(lambda: cluster.paths()[asked:].count("/work/renew") >= 2)
    assert worker.status()["running"][0]["work_id"] == "w"
    (tmp_path / "go").touch()
    await until(lambda: worker.status()["spooled"] == 1 and not worker.status()["running"])
    cluster.away = False
    await until(lambda: cluster.state("w") == "COMPLETED")
    assert len(cluster.reports["complete"]) == 1


async def test_a_run_is_given_up_after_orphan_s_and_released_when_the_cluster_is_back(
    make: Start, cluster: FakeCluster, tmp_path: Path
) -> None:
    clock = TurnableClock()
    worker = make(Config(WORKLOADS, work_types=("wait",)), clock=clock)
    await worker.start()
    cluster.add("w", "wait", {"until": str(tmp_path / "never")})
    pid = (await until(lambda: cluster.progress.get("w")))["pid"]
    cluster.away = True
    clock.advance_ms(3_601_000)
    await until(lambda: not worker.status()["running"])
    assert not alive(pid)
    cluster.items["other"] = {**cluster.items["w"], "work_id": "other", "state": "COMPLETED"}
    cluster.away = False
    await until(lambda: cluster.reports["release"])


async def test_a_result_that_comes_too_late_is_dropped_with_a_line(
    make: Start, cluster: FakeCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker paused beyond its lease: the item went to another, and only that one counts."""
    worker = make(Config(WORKLOADS, lease_s=300))
    await worker.start()
    cluster.add("z", "wait", {"until": str(tmp_path / "go")})
    await until(lambda: worker.status()["running"] and cluster.state("z") == "RUNNING")
    cluster.grant("z", "w2")
    (tmp_path / "go").touch()
    await until(lambda: worker.status()["refused"] == 1)
    await until(lambda: worker.status()["spooled"] == 0)
    assert cluster.reports["complete"] == []
    assert "action=report_refused verb=complete work_id=z" in caplog.text
    assert "code=stale_token" in caplog.text


async def test_a_result_whose_lease_ran_out_still_counts_while_nobody_else_has_the_item(
    make: Start, cluster: FakeCluster, tmp_path: Path
) -> None:
    worker = make(Config(WORKLOADS, lease_s=300, slots=1))
    await worker.start()
    cluster.add("z", "wait", {"until": str(tmp_path / "go")})
    await until(lambda: cluster.state("z") == "RUNNING")
    cluster.expire("z")
    (tmp_path / "go").touch()
    await until(lambda: cluster.state("z") == "COMPLETED")


async def test_draining_lets_what_can_finish_finish_and_releases_the_rest(
    make: Start, cluster: FakeCluster, tmp_path: Path
) -> None:
    worker = make(Config(WORKLOADS, drain_s=1.0))
    await worker.start()
    cluster.add("short", "wait", {"until": str(tmp_path / "short")})
    cluster.add("long", "wait", {"until": str(tmp_path / "never")})
    await until(lambda: len(cluster.progress) == 2)
    stopping = asyncio.create_task(worker.stop())
    await until(lambda: worker.status()["phase"] == "draining")
    cluster.add("late", "answer")
    (tmp_path / "short").touch()
    await stopping
    assert cluster.state("short") == "COMPLETED"
    assert [body["work_id"] for body in cluster.reports["release"]] == ["long"]
    assert cluster.state("late") == "PENDING"
    assert not alive(cluster.progress["long"]["pid"])
    assert worker.status()["phase"] == "stopped"


async def test_a_claim_cut_short_by_the_stop_is_handed_back(make: Start, cluster: FakeCluster) -> None:
    worker = make()
    await worker.start()
    await until(lambda: "/work/claim" in cluster.paths())
    cluster.add("lost", "elsewhere")
    token = cluster.grant("lost", "w1")
    await worker.stop()
    assert cluster.reports["release"] == [{"work_id": "lost", "token": token}]


async def test_a_stop_without_a_cluster_keeps_the_reports_for_the_next_start(
    make: Start, cluster: FakeCluster, tmp_path: Path
) -> None:
    worker = make()
    await worker.start()
    cluster.add("w", "wait", {"until": str(tmp_path / "go")})
    await until(lambda: cluster.progress)
    cluster.away = True
    (tmp_path / "go").touch()
    await until(lambda: worker.status()["spooled"] == 1)
    stopping = asyncio.create_task(worker.stop(drain_s=0.1))
    await stopping
    cluster.away = False
    asked = len(cluster.calls)
    again = make(incarnation=2)
    await again.start()
    await until(lambda: "/work/claim" in cluster.paths()[asked:])
    paths = cluster.paths()[asked:]
    assert paths.index("/work/complete") < paths.index("/nodes/register") < paths.index("/work/claim")
    assert cluster.state("w") == "COMPLETED"
    registered = [body for path, body in cluster.calls if path == "/nodes/register"]
    assert [body["incarnation"] for body in registered] == [1, 2]


async def test_a_claim_with_unknown_ending_is_repeated_with_its_key(make: Start, cluster: FakeCluster) -> None:
    cluster.faults["/work/claim"] = [Unreachable("cut", "unknown"), refusal(503, "no_leader", retryable=True)]
    worker = make()
    await worker.start()
    cluster.add("a", "answer")
    await until(lambda: cluster.state("a") == "COMPLETED")
    keys = [key for (path, _), key in zip(cluster.calls, cluster.keys, strict=True) if path == "/work/claim"]
    assert keys[0] == keys[1] is not None
    assert len(set(keys)) == len(keys) - 1


async def test_a_result_the_cluster_cannot_take_fails_the_item(make: Start, cluster: FakeCluster) -> None:
    cluster.faults["/work/complete"] = [refusal(422, "invalid_field")]
    await make().start()
    cluster.add("a", "answer")
    await until(lambda: cluster.reports["fail"])
    (report,) = cluster.reports["fail"]
    assert report["retryable"] is False and "refused the result" in report["error"]


async def test_an_error_too_long_for_the_cluster_is_cut(make: Start, cluster: FakeCluster) -> None:
    cluster.faults["/work/fail"] = [refusal(422, "invalid_field")]
    code = "import sys; print('x' * 500); sys.exit(1)"
    await make(Config({"program": {"command": [sys.executable, "-c", code]}})).start()
    cluster.add("a", "program")
    await until(lambda: cluster.reports["fail"])
    assert cluster.reports["fail"][0]["error"] == "exit code 1: ".ljust(64, "x")


async def test_a_refused_credential_loses_no_result_and_holds_nothing_up(
    make: Start, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringraft.worker.reports.FORBIDDEN_RETRY_S", 0.2)
    cluster.faults["/work/complete"] = [refusal(403, "forbidden")]
    await make().start()
    cluster.add("a", "answer")
    await until(lambda: cluster.paths().count("/work/complete") == 1)
    cluster.add("b", "answer")
    await until(lambda: cluster.state("b") == "COMPLETED")
    await until(lambda: cluster.state("a") == "COMPLETED")


async def test_a_report_that_only_gets_faults_waits_by_itself_and_the_others_pass(
    make: Start, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.broken = {"a"}
    worker = make()
    await worker.start()
    cluster.add("a", "answer")
    await until(lambda: worker.status()["held_reports"])
    cluster.add("b", "answer")
    await until(lambda: cluster.state("b") == "COMPLETED")
    (held,) = worker.status()["held_reports"]
    assert (held["work_id"], held["verb"]) == ("a", "complete")
    assert "500" in held["error"]
    await until(lambda: worker.status()["spooled"] == 1)
    await until(lambda: worker.status()["held_reports"][0]["tries"] >= 3)
    cluster.broken.clear()
    await until(lambda: cluster.state("a") == "COMPLETED")
    assert worker.status()["held_reports"] == []


async def test_a_restarted_worker_does_not_wait_for_ever_for_a_report_that_nobody_can_take(
    make: Start, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringraft.worker.reports.RETRY_BASE_S", 0.001)
    cluster.broken = {"a"}
    first = make()
    await first.start()
    cluster.add("a", "answer")
    await until(lambda: first.status()["held_reports"])
    await first.stop(drain_s=0.1)
    again = make(incarnation=2)
    await again.start()
    cluster.add("b", "answer")
    await until(lambda: cluster.state("b") == "COMPLETED")
    await until(lambda: again.status()["spooled"] == 1)
    cluster.broken.clear()
    await until(lambda: cluster.state("a") == "COMPLETED")


async def test_a_report_on_which_every_answer_breaks_off_is_not_the_next_one_to_ask_with(
    make: Start, cluster: FakeCluster
) -> None:
    cluster.breaks_off = {"a"}
    worker = make()
    await worker.start()
    cluster.add("a", "answer")
    await until(lambda: cluster.paths().count("/work/complete") == 1)
    cluster.add("b", "answer")
    await until(lambda: cluster.state("b") == "COMPLETED")
    await until(lambda: worker.status()["spooled"] == 1)
    cluster.breaks_off.clear()
    await until(lambda: cluster.state("a") == "COMPLETED")


async def test_progress_that_is_refused_costs_no_lease(
    make: Start, cluster: FakeCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.refuses_progress = True
    worker = make()
    await worker.start()
    cluster.add("w", "wait", {"until": str(tmp_path / "go")})
    await until(lambda: "action=progress_refused" in caplog.text)
    await until(lambda: cluster.paths().count("/work/renew") >= 3)
    assert worker.status()["running"]
    (tmp_path / "go").touch()
    await until(lambda: cluster.state("w") == "COMPLETED")


async def test_registering_is_tried_until_the_incarnation_is_high_enough(make: Start, cluster: FakeCluster) -> None:
    cluster.faults["/nodes/register"] = [refusal(409, "conflict")]
    numbers = iter([1, 7, 7, 7, 7])
    await make(incarnation=lambda: next(numbers, 7)).start()
    await until(lambda: "/work/claim" in cluster.paths())
    assert [body["incarnation"] for path, body in cluster.calls if path == "/nodes/register"] == [1, 7]


async def test_a_full_disk_delays_a_report_and_loses_none(
    make: Start, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ringraft.worker.reports.DISK_RETRY_S", 0.05)
    full = [OSError(28, "No space left on device")] * 2
    from ringraft.worker import durable, spool

    write = durable.write_durably

    def failing(path: Path, data: bytes) -> None:
        if full:
            raise full.pop()
        write(path, data)

    monkeypatch.setattr(spool, "write_durably", failing)
    await make().start()
    cluster.add("a", "answer")
    await until(lambda: cluster.state("a") == "COMPLETED")
    assert caplog.text.count("action=spool_failed") == 2


async def test_a_worker_without_the_extra_says_what_to_install(
    make: Start, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    caplog.set_level(logging.WARNING)
    worker = make()
    await worker.start()
    await until(lambda: "/nodes/register" in cluster.paths())
    body: dict[str, Any] = next(body for path, body in cluster.calls if path == "/nodes/register")
    assert "selfplay" not in body["work_types"]
    assert "pip install 'ringraft[selfplay]'" in caplog.text
    assert "ringraft[selfplay]" in worker.status()["missing"]["selfplay"]
