"""The segments as one tape that is only ever written at its end.

Holds no entries and knows no Raft: it puts records on disk, begins segments, drops those that are
not needed, and says how much of it a power cut would leave. Everything that touches the disk is
called in one thread at a time. The first OSError ends it: what is on disk is then unknown, and
nothing is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ringraft.consensus.replog.files import Disk, DiskFailed, DiskFile, create_durably
from ringraft.consensus.replog.recovery import LogEntry, Recovered
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

RESERVE_BYTES = 1024 * 1024
"""Room is taken in steps of this size ahead of what is written, so that a full disk is met before a record is torn."""


class Tape:
    """The segments of one journal, opened for writing. Writing methods raise DiskFailed."""

    def __init__(self, directory: Path, disk: Disk, segment_bytes: int, found: Recovered) -> None:
        self._directory = directory
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._segments = found.segments
        self._active: DiskFile | None = None
        self._failure: DiskFailed | None = None
        self._unwritten: list[bytes] = []
        self._unwritten_from = 0
        """Offset in the newest segment."""
        self._synced_to = 0
        """Offset in the newest segment up to which all survives a power cut."""
        self._reserved_to = 0
        self.last_index = found.last_index
        """The log on the tape ends here."""
        self.size = sum(segment.size for segment in found.segments)
        """Bytes of all segments."""

    def open(self, found: Recovered) -> None:
        """Begin the first segment, or go on at the end of the newest, whose torn end is cut off."""
        if not self._segments:
            self.begin(1, [], reset=True)
            return
        segment, cut = self._segments[-1], found.cut
        with self.failing(segment.path, "open"):
            self._active = self._disk.open(segment.path)
            # Also where nothing is cut: blocks behind the end may hold records that a power cut kept without the
            # size. A file that grows over them, and loses power again, would show them as what it holds.
            self._active.truncate(segment.size)
            if cut is not None:
                logger.warning(
                    "torn tail cut action=journal_cut file=%s offset=%d bytes=%d reason=%r",
                    cut.path,
                    cut.offset,
                    cut.size - cut.offset,
                    cut.reason,
                )
            if found.tail:
                # What the last process wrote without a sync is about to be relied upon. Its sync may have
                # failed: then the cache holds bytes as clean that the medium does not have, and only
                # writing them again makes the next sync carry them.
                self._active.pwrite(found.tail, segment.size - len(found.tail))
            self._active.sync()
        self._unwritten_from = self._synced_to = segment.size

    @property
    def synced_place(self) -> tuple[int, int]:
        """(sequence, offset): all bytes up to there, in this segment and those before, survive a power cut."""
        return (self._segments[-1].header.sequence, self._synced_to)

    def append(self, kind: Kind, index: int, term: int, payload: bytes) -> None:
        """Add one record at the end; it is written by ``flush``, or when its segment is full."""
        assert len(payload) <= PAYLOAD_BYTES_MAX, f"an entry of {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX}"
        length = RECORD_BYTES + len(payload)
        segment = self._segments[-1]
        if segment.size + length > self._segment_bytes and segment.size > SEGMENT_HEADER.size:
            self._roll()
            segment = self._segments[-1]
        record = encode_record(
            kind, index, term, payload, salt=segment.header.salt, offset=segment.size, synced=self._synced_to
        )
        self._unwritten.append(record)
        segment.size += length
        self.size += length
        self.last_index = index
        if kind is Kind.ENTRY:
            segment.last_index = index

    def flush(self) -> None:
        """Write what was added; it survives the death of the process, not a power cut."""
        self.refuse_if_failed()
        if not self._unwritten:
            return
        assert self._active is not None, "the journal is closed"
        segment = self._segments[-1]
        with self.failing(segment.path, "append"):
            if segment.size > self._reserved_to:
                self._reserved_to = max(segment.size, min(self._segment_bytes, segment.size + RESERVE_BYTES))
                self._active.reserve(self._reserved_to)
            self._active.pwrite(b"".join(self._unwritten), self._unwritten_from)
        self._unwritten.clear()
        self._unwritten_from = segment.size

    def sync(self) -> None:
        """Let all that was added survive a power cut."""
        self.flush()
        segment = self._segments[-1]
        if self._synced_to == segment.size:
            return
        assert self._active is not None, "the journal is closed"
        with self.failing(segment.path, "sync"):
            self._active.sync()
        self._synced_to = segment.size

    def begin(self, base: int, entries: Sequence[LogEntry], *, reset: bool) -> None:
        """Go on in a new segment, durable with these entries when this returns.

        With ``reset`` everything before it is void from the same instant on, and then removed.
        """
        if not reset:
            self.sync()
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
        # These records only ever count once all of them are on the medium.
        size = len(content) + sum(RECORD_BYTES + len(command) for command, _, _ in entries)
        for command, index, term in entries:
            content += encode_record(
                Kind.ENTRY, index, term, command, salt=header.salt, offset=len(content), synced=size
            )
        path = self._directory / segment_name(header.sequence)
        with self.failing(path, "begin a segment"):
            file = create_durably(self._disk, path, content)
        if self._active is not None:
            self._active.close()
        self._active = file
        void = self._segments if reset else []
        self.last_index = base - 1 + len(entries)
        # In one assignment: another thread may be asking where the tape ends.
        self._segments = [*([] if reset else self._segments), Segment(path, header, size, self.last_index)]
        self._unwritten.clear()
        self._unwritten_from = self._synced_to = self._reserved_to = size
        self.size = sum(segment.size for segment in self._segments)
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
                del self._segments[0]
                self.size -= segment.size
                logger.info("segment removed action=journal_compact file=%s keep=%d", segment.path, index)

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
        self.begin(self.last_index + 1, [], reset=False)

    def _failed(self, path: Path, operation: str, error: OSError) -> DiskFailed:
        failure = DiskFailed(path, operation, error.strerror or str(error))
        if self._failure is None:
            self._failure = failure
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
