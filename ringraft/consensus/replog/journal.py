"""The durable log: what PySyncObj appends to, and what a node starts from after it died.

Theory of operation
-------------------
The thread of the log changes the log in memory and notes what is to be written; ``sync``, called in
another thread, writes all that was noted and returns once it survives a power cut. So the thread of
the log never waits for the disk, one sync covers everything that came since the last, and what is on
disk only ever follows what is in memory. Nobody may hear of anything that is not synced:
``written`` says how much has been noted, ``synced`` how much of it is safe, and a message that
promises something made when ``written`` was n leaves when ``synced`` has reached n.

On disk there is a directory of segments (``segment.py``), a ``vote`` and a ``mark`` (``vote.py``).
Records are only ever appended: a conflict is cut off by a TRUNCATE record, and a log that begins anew
behind a snapshot is a new segment flagged ``reset``. So at every instant the directory is a sequence
of whole records and perhaps one torn end, and reading it from the front gives the log as it was after
some prefix of the calls made. Per step:

- **term and vote** come first in every sync: the newest of them, replaced whole and durable before any
  record that was noted with it is written. So no entry on disk is of a newer term than the vote on
  disk, and one that is proves damage. What was noted between two syncs counts as one: of two terms
  only the newer is written, since nobody has heard of the older one.
- **appends, truncations**: one ``pwrite`` at the end for all of them, in room taken before, then one
  ``fdatasync``. Interrupted by the death of the process it leaves a prefix; by a power cut, any of its
  sectors. Each record states how much was synced when it was written, which tells this torn end from
  damage (``segment.py``). The torn end is cut at the next start: as if the calls had not been made.
- **a new segment**: the full one is synced, the new one is written under a temporary name, synced,
  renamed, its directory synced. Before the rename the old segment is simply the newest; after it the
  old one is complete and never written again, so a bad record in it is damage, never a torn end. The
  new header states its predecessor's size and salt: an older copy of a segment is recognised.
- **compaction** removes whole segments, oldest first, each removal synced before the next: what
  remains is a suffix without gaps. It runs after the snapshot is durable, and lags one snapshot
  behind the memory, so that the snapshot before the newest can stand in for a damaged one. Where the
  log begins after it needs no record of its own: the snapshot at index i says i-1.
- **installing a leader's snapshot**: first the snapshot becomes durable, then the log follows, in one
  rename (a ``reset`` segment that already holds the two entries it begins with) or, when it holds the
  snapshot's last entry, not at all. A death in between leaves a snapshot that the journal does not
  know; ``open`` then takes the very step that was missing. ``recovery.align`` decides it in both
  places and carries the proof. Segments before a reset are void from the rename on, in whatever
  order they disappear.
- **the mark** tells the commit index no further than this node's own log is synced: beyond that the
  disk may hold other entries than those that were committed.

A snapshot of this node's own waits until the log is synced up to it: the state may have applied
entries that a majority holds and this disk does not yet.

The log at a snapshot of index i begins with the entries i-1 and i, since PySyncObj reads both; after
an installation, i-1 is a stand-in that carries only its term: it lies below the first entry that is
ever sent from the log or applied. i carries its command, which may have to be sent.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import overload

from ringraft.consensus.replog.files import LOCAL_DISK, Disk, DiskFailed, DiskFile, disk_failure
from ringraft.consensus.replog.recovery import Alignment, JournalDamaged, LogEntry, Recovered, align, recover
from ringraft.consensus.replog.segment import Kind
from ringraft.consensus.replog.snapshot import Base
from ringraft.consensus.replog.tape import Tape
from ringraft.consensus.replog.vote import MARK_NAME, Mark, Vote, write_mark, write_vote

__all__ = ["Base", "DiskFailed", "Journal", "JournalDamaged", "LogEntry"]

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 1024 * 1024
STAND_IN = b"\x01"
"""PySyncObj's no-op: what the entry before a snapshot's last one holds after an installation."""


@dataclass(frozen=True, slots=True)
class Record:
    """To be written: an entry, or where the log ends."""

    kind: Kind
    index: int
    term: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Reset:
    """To be written: the log begins anew with these two entries."""

    entries: list[LogEntry]


@dataclass(frozen=True, slots=True)
class Drop:
    """To be done: segments that hold nothing from ``index`` on are not needed."""

    index: int


Note = Record | Reset | Drop
UNBOUNDED = 2**63


class Journal:
    """A log of ``(command, index, term)`` with PySyncObj's journal interface, made by ``open``.

    ``sync`` and ``flush`` raise DiskFailed when the disk refuses; from then on every writing method
    does, and the process has to end. Reading goes on.
    """

    def __init__(self, directory: Path, disk: Disk, segment_bytes: int, found: Recovered) -> None:
        self._directory = directory
        self._disk = disk
        self._tape = Tape(directory, disk, segment_bytes, found)
        self._first = found.first_index
        self._entries = found.entries
        self._vote = found.vote or Vote(0, None)
        self._commit_index = found.mark.commit_index if found.mark is not None else 0
        self._kept_from = found.first_index
        """Entries from here on stay on disk at the next compaction."""
        self._mark_file: DiskFile | None = None
        self._marked: Mark | None = None

        # Shared by the thread of the log and the one that syncs, under this lock, which nobody holds for long.
        self._state = Lock()
        self._notes: list[Note] = []
        self._written = 0
        self._synced = 0
        self._synced_index = 0
        self._sync_bound = UNBOUNDED
        """The lowest index that the log ended at since the sync under way began."""
        self._is_mark_due = self._is_mark_kept = False
        # Held by the thread that syncs: one at a time.
        self._sync_turn = Lock()
        self._vote_kept = self._vote

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        snapshot: Base | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        disk: Disk = LOCAL_DISK,
    ) -> Journal:
        """The journal in this directory, which is made when missing, aligned to the newest durable snapshot.

        Raises JournalDamaged, which leaves the directory as it was, and DiskFailed.
        """
        found = recover(directory, disk)
        journal = cls(directory, disk, segment_bytes, found)
        alignment = journal._check_snapshot(found, snapshot)
        journal._repair(found)
        journal._synced_index = journal.last_index
        if alignment is Alignment.RESET:
            assert snapshot is not None
            journal._reset(snapshot)
            journal.sync()
        if alignment is Alignment.KEEP:
            assert snapshot is not None
            journal._forget_before(snapshot.index - 1)
            journal._commit_index = max(journal._commit_index, snapshot.index)
            journal._kept_from = journal._first
        if journal._commit_index > journal.last_index:
            logger.warning(
                "commit index beyond the journal's end action=journal_commit_clamped commit=%d last=%d",
                journal._commit_index,
                journal.last_index,
            )
            journal._commit_index = max(0, journal.last_index)
        logger.info(
            "journal opened action=journal_open directory=%s first=%d last=%d term=%d bytes=%d",
            directory,
            journal._first,
            journal.last_index,
            journal._vote.term,
            journal.log_bytes,
        )
        return journal

    # What the log holds

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, item: int) -> LogEntry: ...

    @overload
    def __getitem__(self, item: slice) -> list[LogEntry]: ...

    def __getitem__(self, item: int | slice) -> LogEntry | list[LogEntry]:
        return self._entries[item]

    @property
    def first_index(self) -> int:
        """The index of ``journal[0]``."""
        return self._first

    @property
    def last_index(self) -> int:
        """The index of ``journal[-1]``; one below ``first_index`` when there are no entries."""
        return self._first + len(self._entries) - 1

    @property
    def log_bytes(self) -> int:
        """Bytes of all segments on disk."""
        return self._tape.size

    def entry(self, index: int) -> LogEntry | None:
        """The entry at this index, None when the log does not hold it."""
        position = index - self._first
        return self._entries[position] if 0 <= position < len(self._entries) else None

    # Writing

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append the next entry."""
        self._tape.refuse_if_failed()
        assert idx == self.last_index + 1, f"entry {idx} cannot follow entry {self.last_index}"
        assert term <= self._vote.term, f"entry {idx} is of term {term}, beyond the present one, {self._vote.term}"
        self._entries.append((command, idx, term))
        self._note(Record(Kind.ENTRY, idx, term, command))

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Void the entries from position ``entryFrom`` on: they conflict with the leader's."""
        index = self._first + entryFrom - 1
        if index >= self.last_index:
            return
        assert index >= self._commit_index, (
            f"entry {index + 1} is committed (up to {self._commit_index}) and can never be truncated"
        )
        self._tape.refuse_if_failed()
        logger.info("journal truncated action=journal_truncate last=%d was=%d", index, self.last_index)
        del self._entries[entryFrom:]
        self._note(Record(Kind.TRUNCATE, index, 0, b""), ends_at=index)

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Forget the entries before position ``entryTo``: a durable snapshot covers them."""
        self._compact(self._first + entryTo)

    def compact_to(self, index: int) -> list[LogEntry]:
        """Let the log begin at ``index`` - 1, since a snapshot at ``index`` is durable; returns what it drops.

        On disk the entries from the snapshot before on are kept, so that it can stand in for this one.
        """
        return self._compact(index - 1)

    def _compact(self, keep: int) -> list[LogEntry]:
        assert keep <= self._commit_index, f"entry {keep} is ahead of the commit index {self._commit_index}"
        self._tape.refuse_if_failed()
        if keep <= self._first:
            return []
        # One entry more than this caller kept last time: a snapshot needs the one before its own on disk.
        self._note(Drop(self._kept_from - 1))
        dropped = self._forget_before(keep)
        self._kept_from = keep
        return dropped

    def install(self, base: Base) -> bool:
        """Follow a leader's snapshot that is durable here. True when the entries after it stay."""
        assert base.term <= self._vote.term, f"a snapshot of term {base.term} in term {self._vote.term}"
        self._tape.refuse_if_failed()
        if base.index - 1 <= self._first and self._entries and self._commit_index >= base.index:
            return True
        alignment = align(self._directory, self._first, self._entries, self._commit_index, base)
        if alignment is Alignment.KEEP:
            self._commit_index = max(self._commit_index, base.index)
            self.compact_to(base.index)
            return True
        self._reset(base)
        return False

    def clear(self) -> None:
        """Never: an empty log would forget acknowledged entries. ``install`` replaces it whole."""
        raise AssertionError("the journal is never cleared: commit the snapshot, then call install(snapshot.base)")

    # Term, vote and commit index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        self._tape.refuse_if_failed()
        vote = Vote(term, votedForNodeId)
        if vote == self._vote:
            return
        assert term >= self._vote.term, f"the term went back from {self._vote.term} to {term}"
        assert term > self._vote.term or self._vote.voted_for is None, (
            f"a second vote in term {term}: for {votedForNodeId} after {self._vote.voted_for}"
        )
        with self._state:
            self._vote = vote
            self._written += 1

    def getCurrentTerm(self) -> int:
        return self._vote.term

    def getVotedForNodeId(self) -> str | None:
        return self._vote.voted_for

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Entries up to here are never truncated. Kept in memory; written now and then. Never goes back."""
        self._commit_index = max(self._commit_index, min(raftCommitIndex, self.last_index))

    def getRaftCommitIndex(self) -> int:
        """At least 1, as PySyncObj counts: its first entry is committed by definition."""
        return max(1, self._commit_index)

    def onOneSecondTimer(self) -> None:
        """Let the next sync write the mark, if it changed; it is advice, so nothing waits for it."""
        self._tape.refuse_if_failed()
        if self._mark() != self._marked:
            with self._state:
                self._is_mark_due = True
                self._written += 1

    def keep_commit_index(self) -> None:
        """Let the next sync write the mark and sync it too. For what others may never tell again: a voter that has
        left had a part in committing its going, and does not come back to confirm it."""
        with self._state:
            self._is_mark_due = self._is_mark_kept = True
            self._written += 1

    # Syncing

    @property
    def written(self) -> int:
        """How many changes were noted since the journal was opened; ``synced`` is comparable."""
        return self._written

    @property
    def synced(self) -> int:
        """How many of the changes noted survive a power cut."""
        return self._synced

    @property
    def synced_index(self) -> int:
        """Entries up to here survive a power cut."""
        return self._synced_index

    @property
    def is_vote_kept(self) -> bool:
        """The present term, and this node's vote in it, survive a power cut."""
        return self._vote_kept == self._vote

    def sync(self) -> int:
        """Write what was noted before this call, and return how much that is once it survives a power cut.

        May be called in any thread while the log goes on; one runs at a time. Raises DiskFailed.
        """
        with self._sync_turn:
            self._tape.refuse_if_failed()
            with self._state:
                written, is_mark_due, is_mark_kept = self._written, self._is_mark_due, self._is_mark_kept
                self._is_mark_due = self._is_mark_kept = False
            self._write_out()
            self._tape.sync()
            with self._state:
                self._synced = written
                self._synced_index = max(self._synced_index, min(self._tape.last_index, self._sync_bound))
            if is_mark_due:
                self._write_mark(is_kept=is_mark_kept)
            return written

    def flush(self) -> None:
        """Let what was noted survive the death of this process, though not a power cut."""
        with self._sync_turn:
            self._tape.refuse_if_failed()
            self._write_out()
            self._tape.flush()

    def _write_out(self) -> None:
        """Put on the tape what was noted, the vote first."""
        with self._state:
            notes, self._notes = self._notes, []
            vote = self._vote
            self._sync_bound = UNBOUNDED
        if vote != self._vote_kept:
            with self._tape.failing(self._directory, "write the vote"):
                write_vote(self._disk, self._directory, vote)
            self._vote_kept = vote
        for note in notes:
            match note:
                case Record(kind, index, term, payload):
                    self._tape.append(kind, index, term, payload)
                case Reset(entries):
                    self._tape.begin(entries[0][1], entries, reset=True)
                case Drop(index):
                    self._tape.drop_below(index)

    def _note(self, note: Note, *, ends_at: int = UNBOUNDED) -> None:
        """``ends_at``: the log ends there now, so a sync under way says nothing about later entries."""
        with self._state:
            self._notes.append(note)
            self._written += 1
            self._synced_index = min(self._synced_index, ends_at)
            self._sync_bound = min(self._sync_bound, ends_at)

    def _mark(self) -> Mark:
        return Mark(min(self._commit_index, self._synced_index), *self._tape.synced_place)

    def _write_mark(self, *, is_kept: bool = False) -> None:
        mark = self._mark()
        assert self._mark_file is not None
        with self._tape.failing(self._directory, "write the mark"):
            write_mark(self._mark_file, mark)
            if is_kept:
                self._mark_file.sync()
        self._marked = mark

    def close(self) -> None:
        """Sync, unless the disk failed, and let go of the files. The journal is not used any more."""
        if self._mark_file is None:
            return
        if not self._tape.has_failed:
            self.sync()
            self._write_mark()
        self._tape.close()
        self._mark_file.close()
        self._mark_file = None

    def _destroy(self) -> None:
        self.close()

    # Inside

    def _check_snapshot(self, found: Recovered, snapshot: Base | None) -> Alignment | None:
        """Whether what was found and the newest snapshot belong together, and what is to be done."""
        if snapshot is None:
            if found.first_index > 1:
                raise JournalDamaged(
                    self._directory, 0, f"the journal begins at entry {found.first_index}, but there is no snapshot"
                )
            return None
        if found.vote is None:
            raise JournalDamaged(self._directory, 0, f"there is a snapshot at {snapshot.index}, but no journal")
        if found.vote.term < snapshot.term:
            raise JournalDamaged(
                self._directory, 0, f"the vote is of term {found.vote.term}, the snapshot of term {snapshot.term}"
            )
        return align(self._directory, found.first_index, found.entries, self._commit_index, snapshot)

    def _repair(self, found: Recovered) -> None:
        """Put right what a crash left, and make durable what is now going to be relied upon."""
        disk, directory = self._disk, self._directory
        with disk_failure(directory, "open"):
            disk.make_directory(directory)
            # The process that renamed a file may have died before it synced the directory.
            disk.sync_directory(directory)
            for path in found.rubbish:
                disk.remove(path)
            disk.sync_directory(directory)
        self._tape.open(found)
        with self._tape.failing(directory, "open"):
            if found.vote is None:
                write_vote(disk, directory, self._vote)
            self._mark_file = disk.open(directory / MARK_NAME, create=found.mark is None)

    def _reset(self, base: Base) -> None:
        """Begin the log anew at a durable snapshot, in one rename."""
        logger.warning(
            "journal begins anew action=journal_reset snapshot=%d term=%d was_first=%d was_last=%d",
            base.index,
            base.term,
            self._first,
            self.last_index,
        )
        entries = [(STAND_IN, base.index - 1, base.prev_term), (base.command, base.index, base.term)]
        self._entries = list(entries)
        self._first = self._kept_from = base.index - 1
        self._note(Reset(entries), ends_at=base.index - 2)
        self._commit_index = max(self._commit_index, base.index)

    def _forget_before(self, index: int) -> list[LogEntry]:
        """Drop the entries below ``index`` from memory; returns them."""
        count = max(0, index - self._first)
        dropped = self._entries[:count]
        del self._entries[:count]
        self._first += count
        return dropped
