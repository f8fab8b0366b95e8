"""The results file: one line per run, appended; tables come from it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.machine import commit


def append(path: Path | None, what: str, **figures: Any) -> None:
    """Add a run: what was run, when, on which commit, by which command, and its figures."""
    if path is None:
        return
    line = {
        "what": what,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": " ".join(["python -m", what, *sys.argv[1:]]),
        **figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
