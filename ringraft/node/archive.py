"""The archive of final items: SQLite in ``state.db``, on one thread of its own.

It is never the truth about live work: an item is read here only when the state no longer holds it.
A crash loses at most what was not yet written, and the state still holds that for
``queue.retention_s``, so the backlog writes it again after the next start.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ringraft.node.sealed import Sealed

T = TypeVar("T")

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS item (
    key TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    work_type TEXT NOT NULL,
    grp TEXT,
    node_id TEXT,
    finished_wall_ms INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS item_by_end ON item (finished_wall_ms, key);
CREATE INDEX IF NOT EXISTS item_by_group ON item (grp, finished_wall_ms, key) WHERE grp IS NOT NULL;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""

ROWS_AT_ONCE = 64
"""Rows of one statement. Between two statements the thread gives the interpreter away and has to get it back
from a busy loop, so one statement a row takes three times as long."""

INSERT = "INSERT OR REPLACE INTO item VALUES "
ROW = "(?, ?, ?, ?, ?, ?, ?)"

READS_MAX = 64
"""Reads that may wait for the archive's thread at once; beyond it they are refused."""

HISTORY_LIMIT_MAX = 1000

CURSOR_TIME = re.compile(r"-?[0-9]{1,18}")

BUSY_TIMEOUT_S = 5.0
"""How long a write waits for another process (a person with sqlite3 open) to let go."""


class ArchiveBusy(Exception):
    """Too many reads of the archive wait already: try again later (429)."""

    def __init__(self) -> None:
        super().__init__(f"{READS_MAX} reads of the archive wait already; ask again later")


class ArchiveDamaged(Exception):
    """``state.db`` cannot be used; the message says which file and what to do."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(
            f"the archive {path} cannot be opened ({fault}); move it away to start with an empty one: "
            "only items that are retired already are then missing here"
        )


class BadCursor(Exception):
    """The cursor was not made by ``history``."""


class Archive:
    """Final items by id and by time of their end. Unbounded on purpose: it is the record of the work."""

    def __init__(self, path: Path, *, unseal: Callable[[bytes], dict[str, Any]]) -> None:
        """``unseal`` renders the body of a row."""
        self._path = path
        self._unseal = unseal
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ringraft-archive")
        self._connection: sqlite3.Connection | None = None
        self._reads = 0
        self.archived_index = 0
        """Every item that became final in an entry up to this one is here."""

    async def open(self) -> None:
        """Open or make the file. Raises ArchiveDamaged."""
        try:
            self.archived_index = await self._on_thread(self._open)
        except sqlite3.DatabaseError as fault:
            self._thread.shutdown(wait=True)
            raise ArchiveDamaged(self._path, str(fault)) from fault

    async def close(self) -> None:
        """Close the file after everything asked for before is done."""
        await self._on_thread(self._close)
        self._thread.shutdown(wait=True)

    async def store(self, items: Sequence[Sealed], reopened: Sequence[str], through: int) -> None:
        """Put final items in, take reopened ones out, durably move ``archived_index`` to ``through``.

        Raises sqlite3.Error; nothing of the batch is stored then.
        """
        keys = [(work_id.lower(),) for work_id in reopened]
        await self._on_thread(lambda: self._store(items, keys, through))
        self.archived_index = through

    async def item(self, work_id: str) -> dict[str, Any] | None:
        """The item as it was when it became final. Raises ArchiveBusy."""
        body = await self._read(lambda connection: _body(connection, work_id.lower()))
        return None if body is None else self._unseal(body)

    async def history(
        self,
        *,
        state: str | None = None,
        work_type: str | None = None,
        group: str | None = None,
        node_id: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Final items, the newest end first, and the cursor of the next page.

        ``node_id`` is the node of the last grant. Raises ArchiveBusy, BadCursor.
        """
        wanted = {"state": state, "work_type": work_type, "grp": group, "node_id": node_id}
        filters = {column: value for column, value in wanted.items() if value is not None}
        after = _parse_cursor(cursor) if cursor is not None else None
        count = max(1, min(limit, HISTORY_LIMIT_MAX))
        bodies, following = await self._read(lambda connection: _history(connection, filters, after, count))
        return [self._unseal(body) for body in bodies], following

    async def newest_row(self) -> int:
        """The place of the row stored last, for ``page``. Raises ArchiveBusy."""
        return await self._read(_newest_row)

    async def page(self, after: int, upto: int, limit: int) -> tuple[list[Sealed], int]:
        """Rows stored after place ``after``, none beyond ``upto``, and the place of the last. Raises ArchiveBusy."""
        return await self._read(lambda connection: _page(connection, after, upto, limit))

    async def count(self) -> int:
        """How many items are here. Raises ArchiveBusy."""
        return await self._read(_count)

    # On the loop.

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._reads >= READS_MAX:
            raise ArchiveBusy
        self._reads += 1
        try:
            return await self._on_thread(lambda: query(self._opened()))
        finally:
            self._reads -= 1

    # On the thread.

    def _opened(self) -> sqlite3.Connection:
        assert self._connection is not None, "open comes first"
        return self._connection

    def _open(self) -> int:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            # In WAL mode NORMAL survives the death of the process; what power loss takes, the state
            # still holds and the backlog writes again.
            connection.execute("PRAGMA synchronous=NORMAL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA_VERSION):
                raise sqlite3.DatabaseError(f"it has schema {version}, this version knows {SCHEMA_VERSION}")
            connection.executescript(SCHEMA)
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            found = connection.execute("SELECT value FROM meta WHERE name = 'archived_index'").fetchone()
        except sqlite3.DatabaseError:
            connection.close()
            raise
        self._connection = connection
        return int(found[0]) if found else 0

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _store(self, rows: Sequence[Sealed], keys: list[tuple[str]], through: int) -> None:
        connection = self._opened()
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany("DELETE FROM item WHERE key = ?", keys)
            whole = len(rows) - len(rows) % ROWS_AT_ONCE
            for start in range(0, whole, ROWS_AT_ONCE):
                values = list(chain.from_iterable(rows[start : start + ROWS_AT_ONCE]))
                connection.execute(INSERT + ", ".join([ROW] * ROWS_AT_ONCE), values)
            connection.executemany(INSERT + ROW, rows[whole:])
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('archived_index', ?)", (through,))
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def fill(path: Path, rows: Iterable[Sealed]) -> int:
    """Make an archive of these rows, for a node that has not started yet; how many. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript(SCHEMA)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("BEGIN")
        counted = 0
        for row in rows:
            connection.execute("INSERT OR REPLACE INTO item VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            counted += 1
        connection.execute("COMMIT")
    finally:
        connection.close()
    path.chmod(0o600)
    return counted


def _newest_row(connection: sqlite3.Connection) -> int:
    (newest,) = connection.execute("SELECT MAX(rowid) FROM item").fetchone()
    return int(newest or 0)


def _page(connection: sqlite3.Connection, after: int, upto: int, limit: int) -> tuple[list[Sealed], int]:
    rows = connection.execute(
        "SELECT rowid, key, state, work_type, grp, node_id, finished_wall_ms, body FROM item "
        "WHERE rowid > ? AND rowid <= ? ORDER BY rowid LIMIT ?",
        (after, upto, limit),
    ).fetchall()
    return [Sealed(*row[1:]) for row in rows], rows[-1][0] if rows else upto


def _body(connection: sqlite3.Connection, key: str) -> bytes | None:
    found = connection.execute("SELECT body FROM item WHERE key = ?", (key,)).fetchone()
    return None if found is None else bytes(found[0])


def _history(
    connection: sqlite3.Connection, filters: Mapping[str, str], after: tuple[int, str] | None, count: int
) -> tuple[list[bytes], str | None]:
    # Column names come from the fixed set in Archive.history, values only as parameters.
    conditions = [f"{column} = ?" for column in filters]
    values: list[Any] = list(filters.values())
    if after is not None:
        conditions.append("(finished_wall_ms, key) < (?, ?)")
        values += after
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    rows = connection.execute(
        f"SELECT finished_wall_ms, key, body FROM item {where} ORDER BY finished_wall_ms DESC, key DESC LIMIT ?",
        (*values, count + 1),
    ).fetchall()
    more = f"{rows[count - 1][0]}~{rows[count - 1][1]}" if len(rows) > count else None
    return [bytes(body) for _, _, body in rows[:count]], more


def _count(connection: sqlite3.Connection) -> int:
    (count,) = connection.execute("SELECT COUNT(*) FROM item").fetchone()
    return int(count)


def _parse_cursor(cursor: str) -> tuple[int, str]:
    finished, separator, key = cursor.partition("~")
    if not separator or not key or not CURSOR_TIME.fullmatch(finished):
        raise BadCursor(f"cursor {cursor!r} is not one that this list gave; begin again without a cursor")
    return int(finished), key
