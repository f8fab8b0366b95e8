"""The demo as it goes: a bar and the cluster on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ringraft.cli.output import chatter_console, say

LINE_EVERY_S = 3.0
RATE_WINDOW_S = 5.0
STATES = ("PENDING", "ASSIGNED", "RUNNING", "COMPLETED", "FAILED")


class Screen:
    """Shows what ``show`` is given. A context manager; stderr only."""

    def __init__(self, games: int) -> None:
        self.games = games
        self._live: Live | None = None
        self._progress = Progress(
            TextColumn("games"), BarColumn(40), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")
        )
        self._task = self._progress.add_task("games", total=games, rate="")
        self._seen: list[tuple[float, int]] = []
        self._line_s = 0.0

    def __enter__(self) -> Screen:
        if sys.stderr.isatty():
            self._live = Live(console=chatter_console(), refresh_per_second=10, transient=False)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def note(self, sentence: str) -> None:
        """Something happened."""
        if self._live is not None:
            self._live.console.print(sentence)
        else:
            say(sentence)

    def show(
        self, status: Mapping[str, Any], items: Sequence[Mapping[str, Any]], done: int, killed: str | None
    ) -> None:
        """The cluster and the games as they are now."""
        states = Counter(str(item["state"]) for item in items)
        rate = f"{self._rate(done):.1f} games/s"
        self._progress.update(self._task, completed=done, rate=rate)
        if self._live is not None:
            self._live.update(Group(self._progress, cluster_table(status, killed), states_table(states)))
        elif time.monotonic() - self._line_s >= LINE_EVERY_S or done >= self.games:
            self._line_s = time.monotonic()
            counts = ", ".join(f"{states[state]} {state.lower()}" for state in STATES if states[state])
            say(f"{done}/{self.games} games, {rate}; items: {counts}; leader {status['leader_id'] or 'none'}")

    def _rate(self, done: int) -> float:
        now_s = time.monotonic()
        self._seen.append((now_s, done))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.pop(0)
        first_s, first = self._seen[0]
        return (done - first) / (now_s - first_s) if now_s > first_s else 0.0


def cluster_table(status: Mapping[str, Any], killed: str | None) -> Table:
    """The voters: who leads, how far each has applied the log."""
    made = Table(box=None, pad_edge=False)
    for column in ("VOTER", "ROLE", "APPLIED", "BEHIND", "URL"):
        made.add_column(column, justify="right" if column in ("APPLIED", "BEHIND") else "left")
    for voter in status["voters"]:
        dead = voter["node_id"] == killed
        leads = voter["node_id"] == status["leader_id"] and not dead
        role = "killed" if dead else "leader" if leads else "follower"
        style = "red" if dead else "bold green" if leads else ""
        cells = (None, None) if dead else (voter["applied_index"], voter["behind"])
        numbers = ("-" if cell is None else str(cell) for cell in cells)
        made.add_row(voter["node_id"], role, *numbers, str(voter["url"]), style=style)
    return made


def states_table(states: Mapping[str, int]) -> Table:
    """The work items, by state."""
    made = Table(box=None, pad_edge=False)
    shown = [state for state in STATES if state != "FAILED" or states.get(state)]
    for state in shown:
        made.add_column(state, justify="right")
    made.add_row(*(str(states.get(state, 0)) for state in shown))
    return made
