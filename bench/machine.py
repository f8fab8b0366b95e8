"""One line that says what a figure was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil


def commit() -> str:
    """The checkout's commit, marked when the work tree differs from it."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def machine_line() -> str:
    """Cores, memory, kernel, interpreter, commit."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, commit {commit()}"
    )
