"""What a run counts, and the results file: one line per run, appended; tables come from it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.machine import commit

VIOLATIONS_KEPT = 3


@dataclass(slots=True)
class Figures:
    """The figures of a run."""

    strikes: int = 0
    """Power cuts, deaths, refusals: whatever the run is about."""
    kinds: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    lost: int = 0
    """Acknowledged writes that were not there."""
    violations: list[str] = field(default_factory=list)

    def count(self, kind: str) -> None:
        """One more of this kind."""
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def verdict(self, took_s: float) -> str:
        """One line."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items()))
        return (
            f"{'FAILED' if self.violations else 'passed'}: {self.strikes} strikes ({kinds}), acknowledged "
            f"{self.acknowledged}, lost {self.lost}, violations {len(self.violations)}, took {took_s:.0f} s"
        )


def append(path: Path | None, what: str, figures: Figures, **more: Any) -> None:
    """Add a run: what was run, when, on which commit, by which command, and its figures."""
    if path is None:
        return
    line = {
        "what": what,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": " ".join(["python -m", what, *sys.argv[1:]]),
        **more,
        "strikes": figures.strikes,
        "kinds": figures.kinds,
        "acknowledged": figures.acknowledged,
        "lost": figures.lost,
        "violations": len(figures.violations),
        "first_violations": figures.violations[:VIOLATIONS_KEPT],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
