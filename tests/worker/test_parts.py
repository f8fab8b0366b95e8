"""Logs are bounded, declarations are checked, resources can be overridden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ringraft.worker import logs, resources
from ringraft.worker.executors import ExecutorError, Executors, declare
from ringraft.worker.task import Task


def test_a_log_keeps_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES_MAX", 1000)
    with logs.Logs(tmp_path).open("w", 1) as log:
        for i in range(500):
            log.write(f"line {i}\n".encode())
            assert log.path.stat().st_size <= 1000
        assert log.last_line(100) == "line 499"
    text = log.path.read_text()
    assert text.startswith("[... earlier output was dropped ...]\n")
    assert text.endswith("line 498\nline 499\n")


def test_only_the_newest_logs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOGS_MAX", 3)
    kept = logs.Logs(tmp_path)
    for i in range(6):
        with kept.open(f"w{i}", i) as log:
            log.write(b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w3.3.log", "w4.4.log", "w5.5.log"]


def test_the_log_of_the_latest_attempt_is_the_one_shown(tmp_path: Path) -> None:
    kept = logs.Logs(tmp_path)
    for token in (9, 10, 8):
        kept.open("Work.1", token).close()
    assert kept.path("work.1") == tmp_path / "Work.1.10.log"
    assert kept.path("work") is None


def test_control_characters_reach_no_log_line() -> None:
    assert logs.printable("a\r\nb\x1b[31m", 100) == "a  b [31m"
    assert logs.printable("x" * 200, 100) == "x" * 100


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ({}, "must have exactly one of command, entry_point"),
        ({"command": ["true"], "entry_point": "a:b"}, "must have exactly one of"),
        ({"command": ["no-such-program-here"]}, "there is no program 'no-such-program-here'"),
        ({"entry_point": "os.system"}, "not of the form module:function"),
        ({"command": ["true"], "shell": True}, "'shell' is not known here"),
        ({"command": ["true"], "arguments": {"n": {"type": "int"}}}, "none of string, integer"),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(declaration: dict[str, Any], message: str) -> None:
    with pytest.raises(ExecutorError, match=message) as caught:
        declare("training", declaration)
    assert "worker.executors.training" in str(caught.value)


def test_declared_arguments_are_checked() -> None:
    executor = declare(
        "training",
        {
            "command": ["true"],
            "arguments": {
                "epochs": {"type": "integer", "minimum": 1, "maximum": 100, "required": True},
                "rate": {"type": "number", "minimum": 0},
                "optimizer": {"type": "string", "choices": ["adam", "sgd"]},
                "layers": {"type": "array", "max_items": 3},
                "resume": {"type": "boolean"},
                "note": {"type": "any"},
            },
        },
    )
    good = {"epochs": 3, "rate": 0.1, "optimizer": "adam", "layers": [1, 2], "resume": True, "note": {"a": 1}}
    assert executor.fault(good) is None
    bad = executor.fault({"epochs": 0, "optimizer": "adma", "layers": [1] * 4, "resume": 1})
    assert bad is not None
    for part in ("/config/epochs: is 0", "did you mean 'adam'", "/config/layers", "/config/resume"):
        assert part in bad


def test_a_type_asked_for_without_executor_is_said() -> None:
    executors = Executors.load({"training": {"command": ["true"]}}, ("training", "evaluation"))
    assert list(executors.offered) == ["training"]
    assert "worker.executors has no 'evaluation'" in executors.missing["evaluation"]


def test_an_executor_declared_by_another_name_runs_the_type_itself() -> None:
    executors = Executors.load({"gauntlet": {"command": ["true"]}}, ("validation",))
    assert list(executors.offered) == ["evaluation"]


def test_detected_resources_can_be_overridden() -> None:
    found = resources.capabilities({})
    assert found["cpus"] >= 1 and found["memory_gb"] > 0 and isinstance(found["gpus"], list)
    override = {"gpus": [{"name": "RTX_5090", "vram_gb": 32}], "labels": {"site": "a"}}
    assert resources.capabilities(override) == {**found, **override}


def test_usage_is_in_percent(tmp_path: Path) -> None:
    found = resources.usage(tmp_path)
    for percent in (found.cpu_percent, found.memory_percent, found.disk_percent):
        assert 0 <= percent <= 100


class FakeNvml:
    """NVML with one good GPU and one that has fallen off the bus."""

    class NVMLError(Exception): ...

    class NVMLError_NotSupported(NVMLError): ...

    class Memory:
        total, used = 32 << 30, 1 << 30

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, i: int) -> int:
        if i == 1:
            raise self.NVMLError("GPU is lost")
        return i

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Memory:
        return self.Memory()

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"NVIDIA GeForce RTX 5090"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return "GPU-1"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> None:
        raise self.NVMLError_NotSupported


def test_a_lost_gpu_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resources, "DRIVER_FILE", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.import_module", lambda name: FakeNvml())
    (gpu,) = resources.gpus()
    assert (gpu.name, gpu.vram_gb, gpu.vram_used_gb, gpu.percent) == ("NVIDIA GeForce RTX 5090", 32.0, 1.0, None)
    assert "action=gpu_failed gpu=1" in caplog.text


def test_a_driver_without_the_library_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resources, "DRIVER_FILE", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resources.gpus() == ()
    assert "pip install 'ringraft[gpu]'" in caplog.text


def test_progress_is_bounded_and_whole(tmp_path: Path) -> None:
    task = Task("w", "t", 1, {}, tmp_path, tmp_path)
    task.progress({"games": 1})
    task.progress({"games": 2})
    assert (tmp_path / "progress.json").read_text() == '{"games": 2}'
    with pytest.raises(ValueError, match="the most is 65536"):
        task.progress({"x": "y" * 70_000})
