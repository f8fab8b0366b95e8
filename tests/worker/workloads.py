"""Entry points that the tests' executors run, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ringraft.worker.task import ArgumentError, Outcome, Task, artifact


def answer(task: Task) -> dict[str, Any]:
    print(f"working on {task.work_id}")
    return {"doubled": task.config.get("n", 0) * 2}


def wait(task: Task) -> dict[str, Any]:
    """Run until the file named in the config is there."""
    task.progress({"waiting": True, "pid": os.getpid()})
    while not Path(task.config["until"]).exists():
        time.sleep(0.01)
    return {"waited": True}


def family(task: Task) -> dict[str, Any]:
    """Run with a child of its own."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    task.progress({"pids": [os.getpid(), child.pid]})
    time.sleep(600)
    return {}


def keep(task: Task) -> Outcome:
    path = task.output_dir / f"{task.work_id}.txt"
    path.write_text("data")
    return Outcome({"kept": 1}, (artifact(path),))


def refuse(task: Task) -> dict[str, Any]:
    raise ArgumentError("n must be even")


def crash(task: Task) -> dict[str, Any]:
    raise OSError("no space\x1b[31m left\r\n")


def large(task: Task) -> dict[str, Any]:
    return {"data": "x" * 70_000}


def environment(task: Task) -> dict[str, Any]:
    return {"environment": dict(os.environ), "arguments": sys.argv, "group": os.getpgid(0) == os.getpid()}
