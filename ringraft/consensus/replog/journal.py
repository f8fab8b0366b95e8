"""The durable log: what PySyncObj appends to, and what a node starts from after it died.

Theory of operation
-------------------
A directory of segments (``segment.py``), a ``vote`` and a ``mark`` (``vote.py``). Records are only
ever appended: a conflict is cut off by a TRUNCATE record, and a log that begins anew behind a
snapshot is a new segment flagged ``reset``. So at every instant the directory is a sequence of whole
records and perhaps one torn end, and reading it from the front gives the log as it was after some
prefix of the calls made. Per step:

- **append, truncation**: one ``pwrite`` at the end. Interrupted, it leaves a prefix of one record,
  which is cut at the next start: as if the call had not been made.
- **a new segment**: the full one is synced, the new one is written under a temporary name, synced,
  renamed, its directory synced. Before the rename the old segment is simply the newest; after it the
  old one is complete and never written again, so a bad record in it is damage, never a torn tail. The
  new header states its predecessor's size and salt: an older copy of a segment is recognised.
- **vote**: replaced whole and durable before the call returns.
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

An entry survives the death of the process once ``add`` returned, and a power cut once ``sync`` did:
acknowledgements that promise the latter wait for ``synced_index``. ``sync`` is the one method for
another thread; everything else belongs to the thread of the log.

The log at a snapshot of index i begins with the entries i-1 and i, since PySyncObj reads both; after
an installation, i-1 is a stand-in that carries only its term: it lies below the first entry that is
ever sent from the log or applied. i carries its command, which may have to be sent.
"""

from __future__ import annotations

import logging
from pathlib import Path
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


class Journal:
    """A log of ``(command, index, term)`` with PySyncObj's journal interface, made by ``open``.

    Every writing method raises DiskFailed when the disk refuses; from then on each of them does, and
    the process has to end. Reading goes on.
    """

    def __init__(self, directory: Path, disk: Disk, segment_bytes: int, found: Recovered) -> None:
        self._directory = directory
        self._disk = disk
        self._tape = Tape(directory, disk, segment_bytes, found.segments, found.last_index)
        self._first = found.first_index
        self._entries = found.entries
        self._vote = found.vote or Vote(0, None)
        self._commit_index = found.mark.commit_index if found.mark is not None else 0
        self._kept_from = found.first_index
        """Entries from here on stay on disk at the next compaction."""
        self._mark_file: DiskFile | None = None
        self._marked: Mark | None = None

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
        if alignment is Alignment.RESET:
            assert snapshot is not None
            journal._reset(snapshot)
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
        """Append the next entry. It survives the death of this process; ``sync`` makes it survive a power cut."""
        assert idx == self.last_index + 1, f"entry {idx} cannot follow entry {self.last_index}"
        assert term <= self._vote.term, f"entry {idx} is of term {term}, beyond the present one, {self._vote.term}"
        self._tape.append(Kind.ENTRY, idx, term, command)
        self._entries.append((command, idx, term))

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Void the entries from position ``entryFrom`` on: they conflict with the leader's."""
        index = self._first + entryFrom - 1
        if index >= self.last_index:
            return
        assert index >= self._commit_index, (
            f"entry {index + 1} is committed (up to {self._commit_index}) and can never be truncated"
        )
        self._tape.append(Kind.TRUNCATE, index, 0, b"")
        logger.info("journal truncated action=journal_truncate last=%d was=%d", index, self.last_index)
        del self._entries[entryFrom:]

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Forget the entries before position ``entryTo``: a durable snapshot covers them."""
        self._compact(self._first + entryTo)

    def compact_to(self, index: int) -> None:
        """Let the log begin at ``index`` - 1, since a snapshot at ``index`` is durable.

        On disk the entries from the snapshot before on are kept, so that it can stand in for this one.
        """
        self._compact(index - 1)

    def _compact(self, keep: int) -> None:
        assert keep <= self._commit_index, f"entry {keep} is ahead of the commit index {self._commit_index}"
        self._tape.refuse_if_failed()
        if keep <= self._first:
            return
        # One entry more than this caller kept last time: a snapshot needs the one before its own on disk.
        self._tape.drop_below(self._kept_from - 1)
        self._forget_before(keep)
        self._kept_from = keep

    def install(self, base: Base) -> bool:
        """Follow a leader's snapshot that is durable here. True when the entries after it stay.

        Before it is acknowledged, and before the state is served.
        """
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
        """Durable when this returns: nobody may hear of a term or vote before."""
        self._tape.refuse_if_failed()
        vote = Vote(term, votedForNodeId)
        if vote == self._vote:
            return
        assert term >= self._vote.term, f"the term went back from {self._vote.term} to {term}"
        assert term > self._vote.term or self._vote.voted_for is None, (
            f"a second vote in term {term}: for {votedForNodeId} after {self._vote.voted_for}"
        )
        with self._tape.failing(self._directory, "write the vote"):
            write_vote(self._disk, self._directory, vote)
        self._vote = vote

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
        """Write the mark when it changed; it is advice, so nothing waits for it."""
        self._tape.refuse_if_failed()
        mark = Mark(self._commit_index, *self._tape.synced_place)
        if mark == self._marked:
            return
        assert self._mark_file is not None
        with self._tape.failing(self._directory, "write the mark"):
            write_mark(self._mark_file, mark)
        self._marked = mark

    # Syncing

    @property
    def written(self) -> int:
        """Bytes appended since the journal was opened; what ``sync`` returns is comparable."""
        return self._tape.written

    @property
    def synced(self) -> int:
        """How much of ``written`` survives a power cut."""
        return self._tape.synced

    @property
    def synced_index(self) -> int:
        """Entries up to here survive a power cut."""
        return self._tape.synced_index

    def sync(self) -> int:
        """Wait until everything written before this call survives a power cut; returns how much that is.

        May be called in any thread while the log goes on; one runs at a time. Raises DiskFailed.
        """
        return self._tape.sync()

    def flush(self) -> None:
        """Let what was added survive the death of this process: it does already, since nothing is buffered here."""
        self._tape.refuse_if_failed()

    def close(self) -> None:
        """Sync, unless the disk failed, and let go of the files. The journal is not used any more."""
        if self._mark_file is None:
            return
        if not self._tape.has_failed:
            self._tape.sync()
            self.onOneSecondTimer()
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
        self._tape.open(found.cut)
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
        self._tape.begin(base.index - 1, entries, reset=True)
        self._entries = entries
        self._first = self._kept_from = base.index - 1
        self._commit_index = max(self._commit_index, base.index)

    def _forget_before(self, index: int) -> None:
        """Drop the entries below ``index`` from memory."""
        if index > self._first:
            del self._entries[: index - self._first]
            self._first = index
