"""Data to stdout, chatter to stderr; plain text where nobody watches."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 10_000
"""Columns where stdout is a file or a pipe: wide enough that nothing is cut."""


def data_console() -> Console:
    """stdout. Colours and boxes only on a terminal; NO_COLOR is honoured."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=True)


def chatter_console() -> Console:
    """stderr."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=True)


def say(sentence: str) -> None:
    """One line of chatter."""
    print(sentence, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout, indented on a terminal."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """A table without lines of its own; None shows as ``-``. Columns whose name ends in ``#`` align right."""
    made = Table(
        box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, title=title, title_justify="left", pad_edge=False
    )
    for column in columns:
        made.add_column(column.removesuffix("#"), justify="right" if column.endswith("#") else "left", no_wrap=True)
    for row in rows:
        made.add_row(*("-" if cell is None else str(cell) for cell in row))
    return made


def ago(at: str | None) -> str | None:
    """An RFC 3339 time as people say it: ``12 s ago``."""
    if at is None:
        return None
    return f"{span((datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds())} ago"


def span(seconds: float | None) -> str | None:
    """A length of time in its largest fitting unit: ``340 ms``, ``12 s``, ``3 min``, ``2 h``, ``5 d``."""
    if seconds is None:
        return None
    seconds = max(seconds, 0.0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def counted(number: int, noun: str) -> str:
    """``1 voter``, ``3 voters``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
