"""One process's life on a real directory: everything a log does to its disk, in an order drawn from a seed.

``Walk`` drives the real journal and snapshot store and tells what it is about to do and what was
done, one line each, to a descriptor. ``Account`` keeps those lines and judges what is found after
the process, or its disk, died: everything that was known to be kept has to be there, and nothing
may be there that was never written.

Payloads and states follow from index and term alone, and the term rises with every start, so a
stale byte cannot pass for the right one.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringraft.consensus.replog.files import LOCAL_DISK, Disk, DiskFailed
from ringraft.consensus.replog.journal import Journal
from ringraft.consensus.replog.recovery import oldest_index
from ringraft.consensus.replog.snapshot import Snapshot, SnapshotStore, SnapshotWriter

JOURNAL, SNAPSHOTS = "log", "snapshot"
PAYLOAD_BYTES_MAX = 2500
FLUSH_SHARE = 0.3
Tell = Callable[[list[Any]], None]


def payload(index: int, term: int) -> bytes:
    """What the entry at ``index`` of ``term`` holds."""
    rng = random.Random(index * 1_000_003 + term)
    return b"%d.%d." % (index, term) + rng.randbytes(rng.choice((4, 40, 400, rng.randrange(PAYLOAD_BYTES_MAX))))


def state_chunks(index: int, term: int) -> list[bytes]:
    """What the snapshot at ``index`` holds."""
    rng = random.Random(-index * 1_000_003 - term)
    return [
        b"state at %d of %d: " % (index, term) + rng.randbytes(rng.randrange(3000)) for _ in range(rng.randint(1, 4))
    ]


def open_log(directory: Path, disk: Disk = LOCAL_DISK, segment_bytes: int = 8192) -> tuple[Journal, Snapshot | None]:
    """Start from what is in the directory, as a node does."""
    store = SnapshotStore(directory / SNAPSHOTS, disk=disk)
    snapshot = store.latest(reach=oldest_index(directory / JOURNAL, disk=disk))
    base = snapshot.base if snapshot is not None else None
    journal = Journal.open(directory / JOURNAL, snapshot=base, segment_bytes=segment_bytes, disk=disk)
    return journal, snapshot


def tell_to(descriptor: int) -> Tell:
    """Lines to a pipe: what was said before the process dies can be read."""
    return lambda words: _write_line(descriptor, words)


def _write_line(descriptor: int, words: list[Any]) -> None:
    os.write(descriptor, json.dumps(words).encode() + b"\n")


class Walk:
    """Random steps on one directory."""

    def __init__(self, directory: Path, rng: random.Random, tell: Tell, disk: Disk = LOCAL_DISK) -> None:
        self._rng = rng
        self._tell = tell
        self._store: SnapshotStore
        self._journal, snapshot = open_log(directory, disk, segment_bytes=rng.choice((2048, 8192, 32768)))
        self._store = SnapshotStore(directory / SNAPSHOTS, disk=disk)
        self._snapshot = snapshot.index if snapshot is not None else 0
        self._vote(self._journal.getCurrentTerm() + 1, rng.choice((None, "n1")))

    def steps(self, count: int) -> None:
        """So many steps, then a clean end."""
        choices = (
            (self._add, 10), (self._sync, 4), (self._sync_beside, 4), (self._next_term, 2), (self._truncate, 2),
            (self._own_snapshot, 3), (self._install, 2), (self._mark, 2),
        )  # fmt: skip
        acts = [act for act, weight in choices for _ in range(weight)]
        for _ in range(count):
            self._rng.choice(acts)()
        self._journal.close()

    def stays_failed(self) -> None:
        """After the journal's disk refused once, every further call has to be refused too."""
        journal = self._journal
        if not journal._tape.has_failed:
            return
        index, term = journal.last_index + 1, journal.getCurrentTerm()
        acts: tuple[Callable[[], object], ...] = (
            lambda: journal.add(b"", index, term), journal.sync, journal.onOneSecondTimer, journal.flush,
            lambda: journal.setCurrentTerm(term + 1, None),
        )  # fmt: skip
        for act in acts:
            try:
                act()
            except DiskFailed:
                continue
            raise AssertionError("the journal goes on after its disk failed")

    def _do(self, *words: Any, act: Callable[[], object]) -> None:
        self._tell(["ask", *words])
        act()
        self._tell(["did"])

    def _vote(self, term: int, name: str | None) -> None:
        self._do("vote", term, name, act=lambda: self._journal.setCurrentTerm(term, name))

    def _add(self) -> None:
        for _ in range(self._rng.randint(1, 8)):
            self._add_one()

    def _add_one(self) -> None:
        index, term = self._journal.last_index + 1, self._journal.getCurrentTerm()
        self._do("add", index, term, act=lambda: self._journal.add(payload(index, term), index, term))

    def _sync(self) -> None:
        self._tell(["sync"])
        self._journal.sync()
        self._tell(["synced"])

    def _sync_beside(self) -> None:
        """Sync in another thread while entries are added, as a node does."""
        failures: list[BaseException] = []

        def sync() -> None:
            try:
                self._journal.sync()
            except Exception as error:  # noqa: BLE001 - the thread's top; raised again below
                failures.append(error)

        thread = threading.Thread(target=sync)
        self._tell(["sync"])
        thread.start()
        try:
            self._add()
        finally:
            thread.join()
        if failures:
            raise failures[0]
        self._tell(["synced"])

    def _next_term(self) -> None:
        term = self._journal.getCurrentTerm() + 1
        name = self._rng.choice((None, "n1", "n2-with-a-longer-name"))
        self._vote(term, name)
        if name is None and self._rng.random() < 0.5:
            self._vote(term, "n3")

    def _truncate(self) -> None:
        lowest = max(self._journal.getRaftCommitIndex(), self._journal.first_index)
        if lowest >= self._journal.last_index:
            return
        self._next_term()
        index = self._rng.randrange(lowest, self._journal.last_index)
        position = index + 1 - self._journal.first_index
        self._do("truncate", index, act=lambda: self._journal.deleteEntriesFrom(position))

    def _own_snapshot(self) -> None:
        last = self._journal.last_index
        lowest = max(self._snapshot, self._journal.first_index) + 1
        if last < lowest:
            return
        index = self._rng.randint(lowest, last)
        if self._journal.synced_index < index:
            # Else a power cut could leave a snapshot of entries over an older, conflicting end of the log.
            self._sync()
        self._journal.setRaftCommitIndex(index)
        command, _, term = self._entry(index)
        prev_term = self._entry(index - 1)[2]
        writer = self._store.begin(index, term, prev_term, b"", command=command)
        self._do("snapshot", index, term, prev_term, act=lambda: self._write(writer, index, term))
        self._snapshot = index
        self._journal.compact_to(index)

    def _install(self) -> None:
        """A leader's snapshot: ahead of this log, inside it, or against it."""
        term, last = self._journal.getCurrentTerm(), self._journal.last_index
        commit_index = max(self._journal.getRaftCommitIndex(), self._snapshot, self._journal.first_index)
        if self._rng.random() < 0.5 and commit_index + 1 <= last:
            index = self._rng.randint(commit_index + 1, last)
            command, _, entry_term = self._entry(index)
            prev_term = self._entry(index - 1)[2]
            if self._rng.random() < 0.5 and entry_term < term:
                entry_term, command = term, payload(index, term)
        else:
            index = last + self._rng.randint(2, 20)
            entry_term, prev_term, command = term, term, payload(index, term)
        # The term of a snapshot is kept before the snapshot is.
        self._sync()
        writer = self._store.receive(index, entry_term, prev_term, b"", command=command)
        entry = self._journal.entry(index)
        keeps = entry is not None and entry[2] == entry_term

        def act() -> None:
            snapshot = self._write(writer, index, entry_term)
            assert self._journal.install(snapshot.base) is keeps

        self._do("install", index, entry_term, prev_term, keeps, act=act)
        self._snapshot = index

    def _write(self, writer: SnapshotWriter, index: int, term: int) -> Snapshot:
        for chunk in state_chunks(index, term):
            writer.write(chunk)
        return writer.commit()

    def _mark(self) -> None:
        self._journal.onOneSecondTimer()

    def _entry(self, index: int) -> tuple[bytes, int, int]:
        entry = self._journal.entry(index)
        assert entry is not None, f"entry {index} is not in the log"
        return entry
