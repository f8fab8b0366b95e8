"""What a journal's directory holds, found out without changing it.

Opening has two halves. This one reads everything, checks it, and either refuses (``JournalDamaged``)
or says what there is and what has to be put right; ``Journal.open`` then puts it right. So a
directory that is refused is as it was found.

What a crash can leave, and nothing else may be put right:

- the newest segment holds a record that does not read, and nothing proves that it had been synced:
  neither the mark nor a record behind it states a synced place beyond it. It is cut there, with
  whatever follows: acknowledgements follow the sync of what they cover, so nobody was told of it.
  (Each sync ends a batch, and the next batch states it. So the one batch that a sync has covered and
  nothing after it can testify for is the newest, until the mark is written within a second);
- unfinished ``.tmp`` files: removed;
- segments older than one that begins with ``reset``: void, removed;
- a snapshot that the journal does not know of yet: see ``align``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from ringraft.consensus.replog.files import TEMPORARY_SUFFIX, Disk, disk_failure, read_whole
from ringraft.consensus.replog.segment import (
    SEGMENT_HEADER,
    Kind,
    Record,
    Segment,
    SegmentHeader,
    Unreadable,
    decode_header,
    scan,
    segment_sequence,
)
from ringraft.consensus.replog.snapshot import Base
from ringraft.consensus.replog.vote import MARK_NAME, VOTE_NAME, Mark, Vote, decode_mark, decode_vote

LogEntry = tuple[bytes, int, int]
"""(command, index, term), as PySyncObj has it."""


class JournalDamaged(Exception):
    """The journal does not read back as it was written; a node must not vote or serve on it."""

    def __init__(self, path: Path, offset: int, detail: str) -> None:
        super().__init__(
            f"{path}: damaged at offset {offset}: {detail}. Nothing was changed. Restore this node's data directory "
            "whole from a backup, or replace the node by one with an empty directory; never remove single files"
        )
        self.path = path
        self.offset = offset


class Alignment(Enum):
    """What a snapshot means to a log."""

    KEEP = auto()
    """The log holds the snapshot's last entry: what follows it stays."""
    RESET = auto()
    """The log ends before the snapshot, or disagrees with it: it begins anew at the snapshot."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The newest segment's end that does not read."""

    path: Path
    offset: int
    size: int
    reason: str


@dataclass(slots=True)
class Recovered:
    """A journal as found. ``segments`` is empty for a directory that never held one."""

    segments: list[Segment]
    first_index: int
    """Of ``entries``, or the next one's when there are none."""
    entries: list[LogEntry]
    vote: Vote | None
    mark: Mark | None
    cut: Cut | None
    tail: bytes
    """The last bytes that read, of which nothing says that they were ever synced."""
    rubbish: list[Path]
    """Files that nothing depends on any more."""

    @property
    def last_index(self) -> int:
        return self.first_index + len(self.entries) - 1


def recover(directory: Path, disk: Disk) -> Recovered:
    """Read the journal in this directory. Raises JournalDamaged, DiskFailed; changes nothing."""
    with disk_failure(directory, "list"):
        names = disk.names(directory)
    rubbish = [directory / name for name in names if name.endswith(TEMPORARY_SUFFIX)]
    headers, void = _headers(directory, names, disk)
    found = Recovered([], 1, [], None, None, None, b"", rubbish + void)
    if MARK_NAME in names:
        found.mark = decode_mark(read_whole(disk, directory / MARK_NAME))
    for path, header in headers:
        _replay(found, path, header, read_whole(disk, path), is_newest=header is headers[-1][1])
    _check_mark(found, directory)
    found.vote = _vote(found, directory, names, disk)
    return found


def oldest_index(directory: Path, *, disk: Disk) -> int | None:
    """The oldest index that the journal here may still have, None without a journal.

    Raises JournalDamaged, DiskFailed.
    """
    with disk_failure(directory, "list"):
        names = disk.names(directory)
    headers, _void = _headers(directory, names, disk)
    return headers[0][1].base if headers else None


def align(path: Path, first_index: int, entries: list[LogEntry], commit_index: int, base: Base) -> Alignment:
    """What a durable snapshot at ``base`` means to this log. Raises JournalDamaged when they contradict.

    A snapshot holds committed entries only, its own last one included.

    1. The log holds that entry (same index, same term). Then, by Raft's log matching, it agrees up to
       there, and what follows stays: some of it may be acknowledged. This is every snapshot that this
       node made itself: it had applied the entry from this very log, and nothing at or below the
       commit index is ever truncated.
    2. The log ends before it. Then all the log holds is covered by the snapshot or was never
       committed with this node's help beyond it. The log begins anew at the snapshot. Only a snapshot
       from a leader gets here by the death of a process (between its rename and the journal's).
    3. The log holds another term at that index. Two entries at one index cannot both be committed, so
       this log's is not, and what follows it neither: the log begins anew. By 1 only a snapshot from
       a leader can be such; for one of this node's own, or when this log knows its entry as
       committed, files of different histories were mixed: refused.
    """
    last_index = first_index + len(entries) - 1
    if base.index > last_index:
        return Alignment.RESET
    if first_index > base.index - 1:
        raise JournalDamaged(
            path, 0, f"the journal begins at entry {first_index}, after the newest readable snapshot, at {base.index}"
        )
    term, prev_term = entries[base.index - first_index][2], entries[base.index - 1 - first_index][2]
    if term == base.term:
        if prev_term != base.prev_term:
            raise JournalDamaged(
                path,
                0,
                f"entry {base.index - 1} has term {prev_term} here and {base.prev_term} in the snapshot at "
                f"{base.index}: they are of different histories",
            )
        return Alignment.KEEP
    if not base.received or commit_index >= base.index:
        raise JournalDamaged(
            path,
            0,
            f"entry {base.index} has term {term} here and {base.term} in the snapshot, and both count as committed: "
            "they are of different histories",
        )
    return Alignment.RESET


def _headers(directory: Path, names: list[str], disk: Disk) -> tuple[list[tuple[Path, SegmentHeader]], list[Path]]:
    """The segments that count, oldest first, and those that a reset made void."""
    sequences = sorted(sequence for name in names if (sequence := segment_sequence(name)) is not None)
    paths = {segment_sequence(name): directory / name for name in names}
    headers: list[tuple[Path, SegmentHeader]] = []
    while sequences:
        sequence = sequences.pop()
        path = paths[sequence]
        header = _read_header(path, disk)
        if header.sequence != sequence:
            raise JournalDamaged(path, 0, f"the file holds segment {header.sequence}")
        if headers and headers[0][1].sequence != sequence + 1:
            raise JournalDamaged(path, 0, f"segment {sequence + 1}, which follows this one, is missing")
        headers.insert(0, (path, header))
        if header.reset:
            break
    return headers, [paths[sequence] for sequence in sequences]


def _read_header(path: Path, disk: Disk) -> SegmentHeader:
    with disk_failure(path, "read"):
        file = disk.open(path)
        try:
            data = file.pread(SEGMENT_HEADER.size, 0)
        finally:
            file.close()
    try:
        return decode_header(data)
    except Unreadable as fault:
        raise JournalDamaged(path, 0, str(fault)) from fault


def _replay(found: Recovered, path: Path, header: SegmentHeader, data: bytes, *, is_newest: bool) -> None:
    """Apply one segment's records to what was found in those before."""
    if found.segments:
        before = found.segments[-1]
        if (header.previous_size, header.previous_salt) != (before.size, before.header.salt):
            raise JournalDamaged(
                before.path,
                before.size,
                f"it holds {before.size} bytes and the segment after it was begun at {header.previous_size}",
            )
        if header.base != found.last_index + 1:
            raise JournalDamaged(path, 0, f"it begins at entry {header.base} and not at {found.last_index + 1}")
    else:
        found.first_index = header.base
    scanned = scan(data, header.salt)
    end, fault = scanned.end, scanned.fault
    if fault is not None:
        if scanned.synced > end:
            raise JournalDamaged(
                path, end, f"{fault}, and the record at offset {scanned.stated_at} says that it had been synced"
            )
        if not is_newest:
            raise JournalDamaged(path, end, f"{fault}, and a later segment is there")
        found.cut = Cut(path, end, len(data), fault)
    found.tail = data[scanned.synced : end]
    segment = Segment(path, header, end, header.base - 1)
    found.segments.append(segment)
    _replay_records(found, path, scanned.records)
    segment.last_index = found.last_index


def _replay_records(found: Recovered, path: Path, records: list[Record]) -> None:
    entries = found.entries
    index = found.last_index
    for kind, record_index, term, payload, offset in records:
        if kind == Kind.ENTRY and record_index == index + 1:
            entries.append((payload, record_index, term))
            index += 1
        elif kind == Kind.TRUNCATE and record_index <= index:
            index = record_index
            del entries[max(0, index + 1 - found.first_index) :]
            # Segments that held what is now the end of the log may be gone, behind a snapshot.
            found.first_index = min(found.first_index, index + 1)
        else:
            raise JournalDamaged(
                path, offset, f"a record of kind {kind} for entry {record_index} cannot follow entry {index}"
            )


def _check_mark(found: Recovered, directory: Path) -> None:
    """Refuse a journal that ends before what is known to have been on the medium."""
    if found.mark is None or not found.segments:
        return
    newest = found.segments[-1]
    if found.mark.sequence > newest.header.sequence:
        raise JournalDamaged(
            directory, 0, f"segment {found.mark.sequence} is missing; the newest is {newest.header.sequence}"
        )
    if found.mark.sequence == newest.header.sequence and found.mark.offset > newest.size:
        reason = found.cut.reason if found.cut is not None else "the file ends there"
        raise JournalDamaged(newest.path, newest.size, f"{reason}, though it was synced up to {found.mark.offset}")


def _vote(found: Recovered, directory: Path, names: list[str], disk: Disk) -> Vote | None:
    path = directory / VOTE_NAME
    if VOTE_NAME not in names:
        if found.entries or found.cut is not None or found.mark is not None or len(found.segments) > 1:
            raise JournalDamaged(
                path, 0, "the vote is missing though there is a journal, so this node could vote twice"
            )
        return None
    if not found.segments:
        raise JournalDamaged(path, 0, "there is a vote, but the journal's segments are missing")
    try:
        vote = decode_vote(read_whole(disk, path))
    except Unreadable as fault:
        raise JournalDamaged(path, 0, str(fault)) from fault
    newest_term = found.entries[-1][2] if found.entries else 0
    if vote.term < newest_term:
        raise JournalDamaged(path, 0, f"it is of term {vote.term}, older than the journal, of term {newest_term}")
    return vote
