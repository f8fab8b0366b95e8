"""A run on the command line: a progress bar, the violations, a verdict, a line in the results file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chaos.disk import record as results
from chaos.disk.record import Figures
from chaos.disk.volume import folder

Run = Callable[[Path, Callable[[Figures], None]], Figures]
"""What is done in a directory of its own, and tells how far it is."""


def watched(what: str, run: Run, *, total: int | None, record: Path | None, **told: Any) -> int:
    """Run it; 0 when nothing was wrong, else 1. ``total`` strikes are expected, None when nobody knows."""
    # What a journal says about its torn tail is what this is about, some thousand times.
    logging.disable(logging.CRITICAL)
    began_s = time.monotonic()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with folder() as path, Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)

        def show(figures: Figures) -> None:
            bar.update(task, completed=figures.strikes, description=f"{len(figures.violations)} violations")

        figures = run(path, show)
    took_s = time.monotonic() - began_s
    for violation in figures.violations:
        print(violation)
    print(figures.verdict(took_s))
    results.append(record, what, figures, **told, took_s=round(took_s, 1))
    return 1 if figures.violations else 0
