"""The tables of ``chaos/README.md`` from results files: ``python -m chaos.disk.table chaos/results/power.jsonl``."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

SUBJECTS = {0: "a log alone", 1: "one voter", 3: "three voters", 5: "five voters"}
PARTS = {"chaos.disk.power": "power cuts", "chaos.disk.deaths": "deaths and refusals", "chaos.live.torture": "troubles"}


def table(lines: list[dict[str, Any]]) -> str:
    """One row for each thing that was run, its runs summed up."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        runs[line["what"], line["nodes"]].append(line)
    rows = ["| what | of | runs | strikes | acknowledged | lost | violations |", "|---|---|--:|--:|--:|--:|--:|"]
    for (what, nodes), found in sorted(runs.items()):
        sums = [sum(line[name] for line in found) for name in ("strikes", "acknowledged", "lost", "violations")]
        cells = [PARTS[what], SUBJECTS[nodes], len(found), *sums]
        rows.append("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table([json.loads(line) for path in sys.argv[1:] for line in Path(path).read_text("utf-8").splitlines()]))
