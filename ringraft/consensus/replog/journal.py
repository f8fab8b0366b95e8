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
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import overload

from ringraft.consensus.replog.files import LOCAL_DISK, Disk, DiskFailed, DiskFile, create_durably, disk_failure
from ringraft.consensus.replog.recovery import Alignment, JournalDamaged, LogEntry, Recovered, align, recover
from ringraft.consensus.replog.segment import (
    PAYLOAD_BYTES_MAX,
    RECORD_BYTES,
    SEGMENT_HEADER,
    Kind,
    Segment,
    SegmentHeader,
    encode_record,
    segment_name,
)
from ringraft.consensus.replog.snapshot import Base
from ringraft.consensus.replog.vote import MARK_BYTES, MARK_NAME, Mark, Vote, write_mark, write_vote

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
        self._segment_bytes = segment_bytes
        self._segments = found.segments
        self._first = found.first_index
        self._entries = found.entries
        self._vote = found.vote or Vote(0, None)
        self._commit_index = found.mark.commit_index if found.mark is not None else 0
        self._disk_first = found.first_index
        self._failure: DiskFailed | None = None

        self._active: DiskFile | None = None
        self._mark_file: DiskFile | None = None
        self._marked: Mark | None = None

        # Shared with the thread that syncs.
        self._state = Lock()
        self._sync_turn = Lock()
        self._is_syncing = False
        self._retired: list[DiskFile] = []
        self._written = 0
        self._synced = 0
        self._synced_index = 0
        self._synced_place = (0, 0)
        self._sync_bound = 0
        """The lowest index that the log ended at since the sync under way began."""

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
        with disk_failure(directory, "open"):
            journal._repair(found)
            if alignment is Alignment.RESET:
                assert snapshot is not None
                journal._reset(snapshot)
        if alignment is Alignment.KEEP:
            assert snapshot is not None
            journal._forget_before(snapshot.index - 1)
            journal._commit_index = max(journal._commit_index, snapshot.index)
            journal._disk_first = journal._first
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
        return sum(segment.size for segment in self._segments)

    def entry(self, index: int) -> LogEntry | None:
        """The entry at this index, None when the log does not hold it."""
        position = index - self._first
        return self._entries[position] if 0 <= position < len(self._entries) else None

    # Writing

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Append the next entry. It survives the death of this process; ``sync`` makes it survive a power cut."""
        assert idx == self.last_index + 1, f"entry {idx} cannot follow entry {self.last_index}"
        assert term <= self._vote.term, f"entry {idx} is of term {term}, beyond the present one, {self._vote.term}"
        self._append(Kind.ENTRY, idx, term, command)
        with self._state:
            self._entries.append((command, idx, term))
            self._segments[-1].last_index = idx

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Void the entries from position ``entryFrom`` on: they conflict with the leader's."""
        index = self._first + entryFrom - 1
        if index >= self.last_index:
            return
        assert index >= self._commit_index, (
            f"entry {index + 1} is committed (up to {self._commit_index}) and can never be truncated"
        )
        self._append(Kind.TRUNCATE, index, 0, b"")
        logger.info("journal truncated action=journal_truncate last=%d was=%d", index, self.last_index)
        with self._state:
            del self._entries[entryFrom:]
            self._bound_synced(index)
            for segment in self._segments:
                segment.last_index = min(segment.last_index, index)

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Forget the entries before position ``entryTo``; a snapshot at the entry after it is durable."""
        self.compact_to(self._first + entryTo + 1)

    def compact_to(self, index: int) -> None:
        """Let the log begin at ``index`` - 1, since a snapshot at ``index`` is durable.

        On disk the entries from the snapshot before on are kept, so that it can stand in for this one.
        """
        assert index <= self._commit_index, f"a snapshot at {index} is ahead of the commit index {self._commit_index}"
        self._refuse_if_failed()
        if index - 1 <= self._first:
            return
        keep, self._disk_first = self._disk_first, index - 1
        self._forget_before(index - 1)
        with self._failing(self._directory, "remove segments"):
            while len(self._segments) > 1 and self._segments[0].last_index < keep:
                segment = self._segments.pop(0)
                self._disk.remove(segment.path)
                self._disk.sync_directory(self._directory)
                logger.info("segment removed action=journal_compact file=%s keep=%d", segment.path, keep)

    def install(self, base: Base) -> bool:
        """Follow a leader's snapshot that is durable here. True when the entries after it stay.

        Before it is acknowledged, and before the state is served.
        """
        assert base.term <= self._vote.term, f"a snapshot of term {base.term} in term {self._vote.term}"
        self._refuse_if_failed()
        if base.index - 1 <= self._first and self._entries and self._commit_index >= base.index:
            return True
        alignment = align(self._directory, self._first, self._entries, self._commit_index, base)
        if alignment is Alignment.KEEP:
            self._commit_index = max(self._commit_index, base.index)
            self.compact_to(base.index)
            return True
        with self._failing(self._directory, "reset"):
            self._reset(base)
        return False

    def clear(self) -> None:
        """Never: an empty log would forget acknowledged entries. ``install`` replaces it whole."""
        raise AssertionError("the journal is never cleared: commit the snapshot, then call install(snapshot.base)")

    # Term, vote and commit index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        """Durable when this returns: nobody may hear of a term or vote before."""
        self._refuse_if_failed()
        vote = Vote(term, votedForNodeId)
        if vote == self._vote:
            return
        assert term >= self._vote.term, f"the term went back from {self._vote.term} to {term}"
        assert term > self._vote.term or self._vote.voted_for is None, (
            f"a second vote in term {term}: for {votedForNodeId} after {self._vote.voted_for}"
        )
        with self._failing(self._directory, "write the vote"):
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
        self._refuse_if_failed()
        with self._state:
            mark = Mark(self._commit_index, *self._synced_place)
        if mark == self._marked:
            return
        assert self._mark_file is not None
        with self._failing(self._directory, "write the mark"):
            write_mark(self._mark_file, mark)
        self._marked = mark

    # Syncing

    @property
    def written(self) -> int:
        """Bytes appended since the journal was opened; what ``sync`` returns is comparable."""
        return self._written

    @property
    def synced(self) -> int:
        """How much of ``written`` survives a power cut."""
        return self._synced

    @property
    def synced_index(self) -> int:
        """Entries up to here survive a power cut."""
        return self._synced_index

    def sync(self) -> int:
        """Wait until everything written before this call survives a power cut; returns how much that is.

        May be called in any thread while the log goes on; one runs at a time. Raises DiskFailed.
        """
        with self._sync_turn:
            with self._state:
                self._refuse_if_failed()
                assert self._active is not None
                file, place = self._active, (self._segments[-1].header.sequence, self._segments[-1].size)
                written, index = self._written, self.last_index
                self._sync_bound = index
                self._is_syncing = True
            try:
                # The segments before are synced: each was when the one after it was made.
                with self._failing(self._directory, "sync"):
                    file.sync()
            finally:
                with self._state:
                    self._is_syncing = False
                    self._close_retired()
            with self._state:
                self._synced = max(self._synced, written)
                self._synced_index = max(self._synced_index, min(index, self._sync_bound))
                self._synced_place = max(self._synced_place, place)
                return written

    def flush(self) -> None:
        """``sync``, and the mark says so."""
        self.sync()
        self.onOneSecondTimer()

    def close(self) -> None:
        """Flush, unless the disk failed, and let go of the files. The journal is not used any more."""
        if self._failure is None and self._active is not None:
            self.flush()
        for file in (self._active, self._mark_file):
            if file is not None:
                file.close()
        self._active = self._mark_file = None

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
        disk.make_directory(directory)
        if not self._segments:
            self._begin_segment(base=1, reset=True, entries=[])
        else:
            self._active = disk.open(self._segments[-1].path)
            if found.cut is not None:
                cut = found.cut
                self._active.truncate(cut.offset)
                logger.warning(
                    "torn tail cut action=journal_cut file=%s offset=%d bytes=%d reason=%r",
                    cut.path,
                    cut.offset,
                    cut.size - cut.offset,
                    cut.reason,
                )
            self._active.sync()
        if found.vote is None:
            write_vote(disk, directory, self._vote)
        for path in found.rubbish:
            disk.remove(path)
        # The process that renamed a file may have died before it synced the directory.
        disk.sync_directory(directory)
        self._mark_file = self._open_mark(found)
        self._all_synced()

    def _open_mark(self, found: Recovered) -> DiskFile:
        path = self._directory / MARK_NAME
        if found.mark is not None:
            return self._disk.open(path)
        file = self._disk.open(path, create=True)
        assert MARK_BYTES < 512, "the mark has to fit in a sector, to be torn as rarely as can be"
        return file

    def _append(self, kind: Kind, index: int, term: int, payload: bytes) -> None:
        """Write one record at the end of the log; in memory it is the caller's."""
        self._refuse_if_failed()
        length = RECORD_BYTES + len(payload)
        assert len(payload) <= PAYLOAD_BYTES_MAX, f"an entry of {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX}"
        segment = self._segments[-1]
        if segment.size + length > self._segment_bytes and segment.size > SEGMENT_HEADER.size:
            with self._failing(self._directory, "begin a segment"):
                self._roll()
            segment = self._segments[-1]
        assert self._active is not None, "the journal is closed"
        record = encode_record(kind, index, term, payload, salt=segment.header.salt, offset=segment.size)
        with self._failing(segment.path, "append"):
            self._active.pwrite(record, segment.size)
        with self._state:
            segment.size += length
            self._written += length

    def _roll(self) -> None:
        """Finish the active segment and begin the next. Raises OSError."""
        assert self._active is not None
        self._active.sync()
        self._begin_segment(base=self.last_index + 1, reset=False, entries=[])
        self._all_synced()

    def _reset(self, base: Base) -> None:
        """Begin the log anew at a durable snapshot, in one rename. Raises OSError."""
        entries = [(STAND_IN, base.index - 1, base.prev_term), (base.command, base.index, base.term)]
        logger.warning(
            "journal begins anew action=journal_reset snapshot=%d term=%d was_first=%d was_last=%d",
            base.index,
            base.term,
            self._first,
            self.last_index,
        )
        old = list(self._segments)
        self._begin_segment(base=base.index - 1, reset=True, entries=entries)
        with self._state:
            del self._segments[:-1]
            self._first = self._disk_first = base.index - 1
            self._entries = entries
            self._commit_index = max(self._commit_index, base.index)
            self._sync_bound = min(self._sync_bound, base.index)
        self._all_synced()
        for segment in old:
            self._disk.remove(segment.path)
        self._disk.sync_directory(self._directory)

    def _begin_segment(self, *, base: int, reset: bool, entries: Sequence[LogEntry]) -> None:
        """Make the next segment, durable with these entries, and append to it from now on. Raises OSError."""
        last = self._segments[-1] if self._segments else None
        header = SegmentHeader(
            sequence=last.header.sequence + 1 if last else 1,
            base=base,
            reset=reset,
            salt=self._disk.salt(),
            previous_size=last.size if last else 0,
            previous_salt=last.header.salt if last else 0,
        )
        content = header.encode()
        for command, index, term in entries:
            content += encode_record(Kind.ENTRY, index, term, command, salt=header.salt, offset=len(content))
        path = self._directory / segment_name(header.sequence)
        file = create_durably(self._disk, path, content)
        with self._state:
            if self._active is not None:
                self._retired.append(self._active)
            if not self._is_syncing:
                self._close_retired()
            self._active = file
            self._segments.append(Segment(path, header, len(content), base - 1 + len(entries)))
            self._written += len(content)

    def _forget_before(self, index: int) -> None:
        """Drop the entries below ``index`` from memory."""
        if index > self._first:
            with self._state:
                del self._entries[: index - self._first]
                self._first = index

    def _all_synced(self) -> None:
        """Note that all that was written is on the medium."""
        with self._state:
            self._synced = self._written
            self._synced_index = self.last_index
            self._synced_place = (self._segments[-1].header.sequence, self._segments[-1].size)

    def _bound_synced(self, index: int) -> None:
        """Note that the log ended at ``index``: a sync that is under way says nothing about later entries."""
        self._synced_index = min(self._synced_index, index)
        self._sync_bound = min(self._sync_bound, index)

    def _close_retired(self) -> None:
        """Close files that no sync can be using any more."""
        while self._retired:
            self._retired.pop().close()

    def _refuse_if_failed(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _failing(self, path: Path, operation: str) -> _Failing:
        return _Failing(self, path, operation)

    def _fail(self, failure: DiskFailed) -> None:
        if self._failure is None:
            self._failure = failure
            logger.critical("journal failed action=journal_failed error=%s", failure)


class _Failing:
    """An OSError inside becomes DiskFailed, and the journal takes nothing more."""

    __slots__ = ("_journal", "_operation", "_path")

    def __init__(self, journal: Journal, path: Path, operation: str) -> None:
        self._journal = journal
        self._path = path
        self._operation = operation

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            failure = DiskFailed(self._path, self._operation, error.strerror or str(error))
            self._journal._fail(failure)
            raise failure from error
