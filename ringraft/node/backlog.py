"""Final items that the archive still lacks.

Apply notes records here and never waits. A background task seals a few at a time and hands them to
the archive's thread, so that a burst of completions costs the log nothing but a longer backlog.
Records never change, so a note still has the item when the state has retired it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ringraft.node.sealed import Sealed
from ringraft.state.model import FINAL

log = logging.getLogger(__name__)

PENDING_MAX = 500_000
"""Ids kept; beyond it they are dropped and found again by a scan of the state's final items."""

BATCH_ITEMS = 500
"""Items sealed in one go: about 4 ms of the loop at 8 µs an item."""

PAUSE_S = 0.05
"""Between two batches, so that archiving takes a bounded share of the loop (10,000 items/s)."""

RETRY_S = 5.0
"""After a failed write (a full disk): the items stay in the backlog."""


class Items(Protocol):
    """What is read of the state machine."""

    @property
    def index(self) -> int: ...

    def records(self, *, state: str, cursor: str | None, limit: int) -> tuple[Sequence[Any], str | None]: ...


class Record(Protocol):
    """An item of the state, at one instant (``state.records.Item``)."""

    @property
    def is_final(self) -> bool: ...


class Shelf(Protocol):
    """Where final items go (``archive.Archive``)."""

    archived_index: int

    async def store(self, items: Sequence[Sealed], reopened: Sequence[str], through: int) -> None: ...


class Backlog:
    """Notes from apply, in order, and at times a scan of everything final."""

    def __init__(
        self,
        shelf: Shelf,
        *,
        state: Callable[[], Items],
        find: Callable[[str], Record | None],
        seal: Callable[[Any], Sealed],
        pending_max: int = PENDING_MAX,
    ) -> None:
        """``find`` gives the record of an item as it is now, ``seal`` turns one into a row."""
        self._shelf = shelf
        self._state = state
        self._find = find
        self._seal = seal
        self._pending_max = pending_max
        self._pending: deque[tuple[int, str, Record | None]] = deque()
        self._scan: _Scan | None = None
        self._work = asyncio.Event()

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def is_scanning(self) -> bool:
        return self._scan is not None

    # What the replica calls in apply: neither blocks nor raises.

    def finished(self, index: int, work_id: str) -> None:
        """The item became final in entry ``index``."""
        self._note(index, work_id)

    def reopened(self, index: int, work_id: str) -> None:
        """The final item was taken back in entry ``index``."""
        self._note(index, work_id)

    def rescan(self, index: int) -> None:
        """The state is now an image as of entry ``index``: what it holds may be unknown to the archive."""
        self._pending.clear()
        self._scan = _Scan() if index > self._shelf.archived_index else None
        self._work.set()

    def _note(self, index: int, work_id: str) -> None:
        # The log's replay after a start tells of much that was archived before.
        if index <= self._shelf.archived_index:
            return
        if len(self._pending) >= self._pending_max:
            log.warning(
                "archive backlog dropped, scanning instead action=archive_rescan pending=%d", len(self._pending)
            )
            self._pending.clear()
            self._scan = _Scan()
        self._pending.append((index, work_id, self._find(work_id)))
        self._work.set()

    # The background task.

    async def run(self) -> None:
        """Archive for ever; a failed write is logged and tried again."""
        while True:
            await self._work.wait()
            try:
                await self.step()
            except sqlite3.Error as fault:
                log.error("archive write failed action=archive_failed fault=%s retry_s=%g", fault, RETRY_S)
                await asyncio.sleep(RETRY_S)
            else:
                await asyncio.sleep(PAUSE_S)

    async def drain(self, timeout_s: float) -> bool:
        """Whether everything is archived, working on it for at most ``timeout_s`` seconds."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while self._work.is_set() and loop.time() < until_s:
            await self.step()
        return not self._work.is_set()

    async def step(self) -> None:
        """Archive one batch. Raises sqlite3.Error and keeps the batch then."""
        state = self._state()
        batch = [self._pending[position] for position in range(min(BATCH_ITEMS, len(self._pending)))]
        newest = {work_id: record for _, work_id, record in batch}
        final = [self._seal(record) for record in newest.values() if record is not None and record.is_final]
        reopened = [work_id for work_id, record in newest.items() if record is not None and not record.is_final]
        scan = self._scan
        page, scan_next = scan.page(state) if scan is not None else ([], scan)
        final += [self._seal(record) for record in page]
        through = self._through(len(batch), state.index) if scan_next is None else self._shelf.archived_index
        await self._shelf.store(final, reopened, through)
        # A rescan may have begun meanwhile: then the notes were cleared and the scan is another.
        if self._scan is scan:
            self._scan = scan_next
            for _ in batch:
                self._pending.popleft()
        if not self._pending and self._scan is None:
            self._work.clear()

    def _through(self, taken: int, index: int) -> int:
        """Up to where everything final is archived once the first ``taken`` notes are."""
        reached = self._pending[taken][0] - 1 if taken < len(self._pending) else index
        return max(self._shelf.archived_index, reached)


class _Scan:
    """A walk over the final items of the state, page by page."""

    def __init__(self, states: tuple[str, ...] = tuple(sorted(FINAL)), cursor: str | None = None) -> None:
        self._states = states
        self._cursor = cursor

    def page(self, state: Items) -> tuple[Sequence[Any], _Scan | None]:
        """The next items, and the rest of the walk (None at its end)."""
        records, cursor = state.records(state=self._states[0], cursor=self._cursor, limit=BATCH_ITEMS)
        if cursor is not None:
            return records, _Scan(self._states, cursor)
        rest = self._states[1:]
        return records, _Scan(rest) if rest else None
