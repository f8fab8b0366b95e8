"""One attempt at one item: a process of its own, its directory, and what it leaves behind.

``runs/{work_id}.{token}/`` holds ``item.json`` (what to do), ``process.json`` (who does it, so that
a later worker can end it), ``progress.json``, and at the end ``result.json`` or ``error.json``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import psutil

import ringraft
from ringraft.worker.executors import Executor, search_path
from ringraft.worker.launch import BAD_ARGUMENTS, ERROR_FILE, ITEM_FILE, RESULT_FILE
from ringraft.worker.logs import ItemLog, printable
from ringraft.worker.task import PAYLOAD_BYTES_MAX, PROGRESS_FILE

logger = logging.getLogger(__name__)

PROCESS_FILE: Final = "process.json"
CONFIG_FILE: Final = "config.json"
FILE_BYTES_MAX: Final = 4 * PAYLOAD_BYTES_MAX
"""A result file with its artifacts is not even read beyond this."""
ERROR_CHARS_MAX: Final = 2000
OUTPUT_CHUNK_BYTES: Final = 1 << 16
OUTPUT_END_S: Final = 1.0
"""How long output may still come after the process ended: a stray child may hold the pipe."""
SAME_START_S: Final = 0.05
"""Start times of one process, read twice, differ by rounding only."""


@dataclass(frozen=True, slots=True)
class Finished:
    """It did what was asked."""

    result: Any
    artifacts: Any


@dataclass(frozen=True, slots=True)
class Broken:
    """It did not. ``retryable`` is False when another try would end the same."""

    error: str
    retryable: bool


class ItemProcess:
    """A running executor. Every stop goes to its whole process group."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path, log: ItemLog) -> None:
        self._process = process
        self._directory = directory
        self._log = log
        self._output = asyncio.create_task(self._copy_output())

    @classmethod
    async def spawn(
        cls, executor: Executor, item: Mapping[str, Any], directory: Path, output_dir: Path, log: ItemLog
    ) -> ItemProcess:
        """Start the executor on an item of the API's form. Raises OSError."""
        prepare(executor, item, directory, output_dir)
        with (directory / CONFIG_FILE).open("rb") as config:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the scratch directory is no place to import from
                "-m",
                "ringraft.worker.launch",
                str(directory),
                str(os.getpid()),
                stdin=config,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=directory,
                env=environment(executor, directory, output_dir),
                start_new_session=True,
            )
        started = cls(process, directory, log)
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended already
            born_s = psutil.Process(process.pid).create_time()
            record = {"pid": process.pid, "born_s": born_s, "boot_s": psutil.boot_time()}
            (directory / PROCESS_FILE).write_text(json.dumps(record))
        return started

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's."""
        return self._process.pid

    async def wait(self) -> int:
        """The exit code, once the process and its output have ended; nothing of its group is left."""
        code = await self._process.wait()
        kill_group(self.pid)
        done, _ = await asyncio.wait({self._output}, timeout=OUTPUT_END_S)
        if not done:
            self._output.cancel()
        await asyncio.gather(self._output, return_exceptions=True)
        return code

    def terminate(self) -> None:
        """Ask the group to end."""
        kill_group(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the group now."""
        kill_group(self.pid)

    def ending(self, code: int) -> Finished | Broken:
        """What an exit with ``code`` means, from the files it left."""
        return ending(self._directory, code, self._log)

    async def _copy_output(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while chunk := await stream.read(OUTPUT_CHUNK_BYTES):
            self._log.write(chunk)


def prepare(executor: Executor, item: Mapping[str, Any], directory: Path, output_dir: Path) -> None:
    """Write what the process reads at its start."""
    directory.mkdir(parents=True, mode=0o700)
    output_dir.mkdir(parents=True, exist_ok=True)
    config = item.get("config") or {}
    description = {
        "work_id": item["work_id"],
        "work_type": item["work_type"],
        "attempt": int(item.get("attempt") or 0) + 1,
        "token": item["lease"]["token"],
        "config": config,
        "command": executor.command,
        "entry_point": executor.entry_point,
        "output_dir": str(output_dir),
    }
    (directory / ITEM_FILE).write_text(json.dumps(description))
    (directory / CONFIG_FILE).write_text(json.dumps(config))


def environment(executor: Executor, directory: Path, output_dir: Path) -> dict[str, str]:
    """All variables the process sees: none of the worker's own, none of the item's."""
    return {
        "PATH": search_path(),
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
        "TMPDIR": str(directory),
        "PYTHONPATH": str(Path(ringraft.__file__).parent.parent),
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
        **executor.environment,
        "RINGRAFT_ITEM_FILE": str(directory / ITEM_FILE),
        "RINGRAFT_RESULT_FILE": str(directory / RESULT_FILE),
        "RINGRAFT_ERROR_FILE": str(directory / ERROR_FILE),
        "RINGRAFT_PROGRESS_FILE": str(directory / PROGRESS_FILE),
        "RINGRAFT_OUTPUT_DIR": str(output_dir),
    }


def ending(directory: Path, code: int, log: ItemLog | None) -> Finished | Broken:
    """Read the files a process left; whatever it wrote is data, checked before it is believed."""
    if code == 0:
        return read_result(directory / RESULT_FILE)
    said = read_json(directory / ERROR_FILE)
    if isinstance(said, dict) and isinstance(said.get("error"), str):
        return Broken(printable(said["error"], ERROR_CHARS_MAX), said.get("retryable") is not False)
    last = log.last_line(ERROR_CHARS_MAX - 100) if log is not None else ""
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Broken(f"{how}: {last}" if last else how, code != BAD_ARGUMENTS)


def read_result(path: Path) -> Finished | Broken:
    """The result file of a process that says it succeeded; a program need not write one."""
    if not path.exists():
        return Finished(None, None)
    value = read_json(path)
    if not isinstance(value, dict) or not value.keys() <= {"result", "artifacts"}:
        known = 'an object with "result" and "artifacts"'
        return Broken(f"the result file is not JSON of at most {FILE_BYTES_MAX} bytes with {known}", False)
    for name, part in value.items():
        fault = payload_fault(name, part)
        if fault is not None:
            return Broken(fault, False)
    return Finished(value.get("result"), value.get("artifacts"))


def payload_fault(name: str, value: Any) -> str | None:
    """Why the cluster would not take ``value`` as a result, or None."""
    try:
        # 1e999 reads as infinity, which no JSON can say.
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        size = max(len(msgpack.packb(value)), len(text))
    except (ValueError, OverflowError) as error:
        return f"{name} cannot be stored: {error}"
    if size > PAYLOAD_BYTES_MAX:
        return f"{name} has {size} bytes, the most is {PAYLOAD_BYTES_MAX}: leave large data as a file in artifacts"
    return None


def read_progress(directory: Path) -> Any:
    """What the process last said of its progress; None when nothing fit to send."""
    value = read_json(directory / PROGRESS_FILE)
    return None if value is None or payload_fault("progress", value) else value


def read_json(path: Path) -> Any:
    """The JSON in a file, None when it is absent, too large or something else."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        return json.loads(data, parse_constant=_refuse) if len(data) <= FILE_BYTES_MAX else None
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def kill_group(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process group that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


@dataclass(frozen=True, slots=True)
class Leftover:
    """A finished result that an older self had no time to report."""

    work_id: str
    token: int
    finished: Finished
    directory: Path


def clear_leftovers(runs: Path) -> list[Leftover]:
    """End what an older self left running, remove its directories, return whole results.

    A returned one's directory stays for the caller to remove once the result is spooled.
    """
    found: list[Leftover] = []
    for directory in sorted(runs.glob("*.*")):
        end_leftover(directory)
        item = read_json(directory / ITEM_FILE)
        # Only our own launcher writes the result last and durably; a program's may be half done.
        whole = isinstance(item, dict) and item.get("entry_point") and (directory / RESULT_FILE).exists()
        result = read_result(directory / RESULT_FILE) if whole else None
        if isinstance(result, Finished):
            found.append(Leftover(item["work_id"], item["token"], result, directory))
        else:
            shutil.rmtree(directory)
    return found


def end_leftover(directory: Path) -> None:
    """Kill the process group recorded in a run's directory, if it still is the one recorded."""
    record = read_json(directory / PROCESS_FILE)
    if not isinstance(record, dict) or abs(record["boot_s"] - psutil.boot_time()) > 60:
        return
    pid, born_s = record["pid"], record["born_s"]
    try:
        same = abs(psutil.Process(pid).create_time() - born_s) < SAME_START_S
    except psutil.NoSuchProcess:
        # Its number cannot be another's while its group lives, so members started later are its children.
        same = any(_is_member(process, pid, born_s) for process in psutil.process_iter())
    if same:
        logger.warning(
            "ended what an older self left running action=leftover_killed run=%s pid=%d", directory.name, pid
        )
        kill_group(pid)


def _is_member(process: psutil.Process, group: int, born_s: float) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.create_time() >= born_s - SAME_START_S
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
