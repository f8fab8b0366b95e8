"""The segments as one tape that is only ever written at its end.

Holds no entries and knows no Raft: it puts records on disk, begins segments, drops those that are
not needed, and says how much of it a power cut would leave. One thread writes; ``sync`` may run in
another at the same time. The first OSError ends it: what is on disk is then unknown, and nothing is
tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from ringraft.consensus.replog.files import Disk, DiskFailed, DiskFile, create_durably
from ringraft.consensus.replog.recovery import Cut, LogEntry
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

logger = logging.getLogger(__name__)


class Tape:
    """The segments of one journal, opened for writing. Writing methods raise DiskFailed."""

    def __init__(
        self, directory: Path, disk: Disk, segment_bytes: int, segments: list[Segment], last_index: int
    ) -> None:
        self._directory = directory
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._segments = segments
        self._last_index = last_index
        self._active: DiskFile | None = None
        self._failure: DiskFailed | None = None

        # Shared with the thread that syncs; what only the writer reads is not guarded.
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

    def open(self, cut: Cut | None) -> None:
        """Begin the first segment, or go on at the end of the newest, whose torn end is cut off."""
        if not self._segments:
            self.begin(1, [], reset=True)
            return
        path = self._segments[-1].path
        with self.failing(path, "open"):
            self._active = self._disk.open(path)
            if cut is not None:
                self._active.truncate(cut.offset)
                logger.warning(
                    "torn tail cut action=journal_cut file=%s offset=%d bytes=%d reason=%r",
                    cut.path,
                    cut.offset,
                    cut.size - cut.offset,
                    cut.reason,
                )
            # What the last process wrote without a sync is about to be relied upon.
            self._active.sync()
        self._all_synced()

    @property
    def size(self) -> int:
        """Bytes of all segments on disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def written(self) -> int:
        """Bytes written since it was opened."""
        return self._written

    @property
    def synced(self) -> int:
        """How much of ``written`` survives a power cut."""
        return self._synced

    @property
    def synced_index(self) -> int:
        """Entries up to here survive a power cut."""
        return self._synced_index

    @property
    def synced_place(self) -> tuple[int, int]:
        """(sequence, offset): all bytes up to there, in this segment and those before, survive a power cut."""
        return self._synced_place

    def append(self, kind: Kind, index: int, term: int, payload: bytes) -> None:
        """Write one record at the end. Once this returns, it survives the death of the process."""
        self.refuse_if_failed()
        assert len(payload) <= PAYLOAD_BYTES_MAX, f"an entry of {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX}"
        length = RECORD_BYTES + len(payload)
        segment = self._segments[-1]
        if segment.size + length > self._segment_bytes and segment.size > SEGMENT_HEADER.size:
            self._roll()
            segment = self._segments[-1]
        assert self._active is not None, "the journal is closed"
        record = encode_record(kind, index, term, payload, salt=segment.header.salt, offset=segment.size)
        try:
            self._active.pwrite(record, segment.size)
        except OSError as error:
            raise self._failed(segment.path, "append", error) from error
        with self._state:
            segment.size += length
            self._written += length
            if kind is Kind.TRUNCATE:
                self._end_at(index)
            else:
                self._last_index = segment.last_index = index

    def begin(self, base: int, entries: Sequence[LogEntry], *, reset: bool) -> None:
        """Go on in a new segment, durable with these entries when this returns.

        With ``reset`` everything before it is void from the same instant on, and then removed.
        """
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
        with self.failing(path, "begin a segment"):
            file = create_durably(self._disk, path, content)
        with self._state:
            if self._active is not None:
                self._retired.append(self._active)
            if not self._is_syncing:
                self._close_retired()
            self._active = file
            void = self._segments[:] if reset else []
            del self._segments[: len(void)]
            self._end_at(base - 1)
            self._last_index = base - 1 + len(entries)
            self._segments.append(Segment(path, header, len(content), self._last_index))
            self._written += len(content)
        self._all_synced()
        if void:
            with self.failing(self._directory, "remove segments"):
                for segment in void:
                    self._disk.remove(segment.path)
                self._disk.sync_directory(self._directory)

    def drop_below(self, index: int) -> None:
        """Remove the oldest segments while they hold no entry from ``index`` on that counts."""
        with self.failing(self._directory, "remove segments"):
            while len(self._segments) > 1 and self._segments[0].last_index < index:
                segment = self._segments[0]
                self._disk.remove(segment.path)
                # Each before the next, so that what remains never has a gap.
                self._disk.sync_directory(self._directory)
                with self._state:
                    del self._segments[0]
                logger.info("segment removed action=journal_compact file=%s keep=%d", segment.path, index)

    def sync(self) -> int:
        """Wait until all that is written survives a power cut; returns how much that is, as in ``written``.

        May be called in any thread; one runs at a time. What is written meanwhile is not covered.
        """
        with self._sync_turn:
            with self._state:
                self.refuse_if_failed()
                assert self._active is not None, "the journal is closed"
                file, segment = self._active, self._segments[-1]
                written, index, place = self._written, self._last_index, (segment.header.sequence, segment.size)
                self._sync_bound = index
                self._is_syncing = True
            try:
                # The segments before are synced: each was when the one after it was made.
                with self.failing(segment.path, "sync"):
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

    def close(self) -> None:
        """Let go of the newest segment; it is not synced."""
        if self._active is not None:
            self._active.close()
            self._active = None

    def refuse_if_failed(self) -> None:
        if self._failure is not None:
            raise self._failure

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    def failing(self, path: Path, operation: str) -> _Failing:
        """A context in which an OSError is the end."""
        return _Failing(self, path, operation)

    def _roll(self) -> None:
        """Finish the newest segment and begin the next."""
        assert self._active is not None, "the journal is closed"
        with self.failing(self._segments[-1].path, "sync"):
            self._active.sync()
        self.begin(self._last_index + 1, [], reset=False)

    def _end_at(self, index: int) -> None:
        """The log ends at ``index`` now: a sync that is under way says nothing about later entries."""
        self._last_index = index
        self._synced_index = min(self._synced_index, index)
        self._sync_bound = min(self._sync_bound, index)

    def _all_synced(self) -> None:
        with self._state:
            self._synced = self._written
            self._synced_index = self._last_index
            self._synced_place = (self._segments[-1].header.sequence, self._segments[-1].size)

    def _close_retired(self) -> None:
        """Close files that no sync can be using any more."""
        while self._retired:
            self._retired.pop().close()

    def _failed(self, path: Path, operation: str, error: OSError) -> DiskFailed:
        failure = DiskFailed(path, operation, error.strerror or str(error))
        if self._failure is None:
            self._failure = failure
            logger.critical("journal failed action=journal_failed error=%s", failure)
        return failure


class _Failing:
    """An OSError inside becomes DiskFailed, and the tape takes nothing more."""

    __slots__ = ("_operation", "_path", "_tape")

    def __init__(self, tape: Tape, path: Path, operation: str) -> None:
        self._tape = tape
        self._path = path
        self._operation = operation

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise self._tape._failed(self._path, self._operation, error) from error
