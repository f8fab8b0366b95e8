"""Images of the state, each at one log index: written beside the good ones, checked before they count.

File: a sequence of frames (kind, length, checksum, bytes). Each checksum starts from the one before
it, so a frame that is changed, lost, repeated or moved does not pass; the last frame carries counts
and a SHA-256 of all chunks. A snapshot gets its name only when it is whole and synced, and the one
before the newest is kept: while the journal still reaches back to it, it can stand in.
"""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from ringraft.consensus.replog.files import (
    LOCAL_DISK,
    TEMPORARY_SUFFIX,
    Disk,
    DiskFile,
    disk_failure,
)

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
CHUNK_BYTES_MAX = 16 * 1024 * 1024
SNAPSHOTS_KEPT = 2

MAGIC = b"ringsnap"
FRAME = struct.Struct("<BII")
"""kind, payload bytes, checksum of (kind, payload bytes, payload) that starts from the frame before's."""
FRAME_HEAD = struct.Struct("<BI")
HEAD = struct.Struct("<8sHHQQQII")
"""magic, version, flags, index, term, term of the entry before, bytes of meta, bytes of the command."""
END = struct.Struct("<QQ32s")
"""chunks, their bytes, SHA-256 of them all."""
KIND_HEAD, KIND_CHUNK, KIND_END = 1, 2, 3
FLAG_RECEIVED = 1


class SnapshotDamaged(Exception):
    """A snapshot that does not read back as it was written; the state must not be built from it."""

    def __init__(self, path: Path, offset: int, detail: str) -> None:
        super().__init__(
            f"{path}: damaged at offset {offset}: {detail}. Nothing was changed. Restore this node's data directory "
            "whole from a backup, or replace the node by one with an empty directory; never remove single files"
        )
        self.path = path
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Base:
    """Where a log begins after a snapshot: the last entry that the snapshot covers."""

    index: int
    term: int
    prev_term: int
    """The term of the entry before."""
    command: bytes
    """The entry's command: a follower that lacks exactly this entry is sent it from the log."""
    received: bool = False
    """Made by another node's state machine and installed here."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot on disk that was whole when last read."""

    path: Path
    base: Base
    meta: bytes
    chunks_count: int
    chunks_bytes: int
    _disk: Disk

    @property
    def index(self) -> int:
        return self.base.index

    @property
    def term(self) -> int:
        return self.base.term

    @property
    def prev_term(self) -> int:
        return self.base.prev_term

    @property
    def command(self) -> bytes:
        return self.base.command

    def chunks(self) -> Iterator[bytes]:
        """What was written, checked again on the way.

        Raises SnapshotDamaged, DiskFailed: what was yielded before is then not to be used.
        """
        frames = _frames(self._disk, self.path)
        # The head is read now: an open file stays readable when newer snapshots have this one removed.
        next(frames)
        return (payload for kind, payload, _offset in frames if kind == KIND_CHUNK)


class SnapshotWriter:
    """A snapshot being written; it does not exist for anyone before ``commit`` returns.

    Used by one thread at a time; ``commit`` syncs, so it may be worth a thread of its own.
    Every method raises DiskFailed; after that only ``abort`` may be called.
    """

    def __init__(self, store: SnapshotStore, base: Base, meta: bytes) -> None:
        assert base.index >= 2, "a snapshot covers at least two entries, since the log keeps the last two"
        self._store = store
        self._base = base
        self._meta = meta
        self._target = store.path(base.index)
        origin = "received" if base.received else "own"
        self._unfinished = self._target.with_name(f"{self._target.name}.{origin}{TEMPORARY_SUFFIX}")
        self._offset = 0
        self._crc = 0
        self._chunks = 0
        self._bytes = 0
        self._hash = hashlib.sha256()
        with disk_failure(self._unfinished, "create"):
            self._file: DiskFile | None = store.disk.open(self._unfinished, create=True)
        flags = FLAG_RECEIVED if base.received else 0
        head = (MAGIC, FORMAT_VERSION, flags, base.index, base.term, base.prev_term, len(meta), len(base.command))
        self._frame(KIND_HEAD, HEAD.pack(*head) + meta + base.command)

    def write(self, chunk: bytes) -> None:
        """Add a chunk of 1 to ``CHUNK_BYTES_MAX`` bytes; the reader gets the same chunks."""
        assert 0 < len(chunk) <= CHUNK_BYTES_MAX, f"a chunk of {len(chunk)} bytes; 1 to {CHUNK_BYTES_MAX} are allowed"
        self._chunks += 1
        self._bytes += len(chunk)
        self._hash.update(chunk)
        self._frame(KIND_CHUNK, chunk)

    def commit(self) -> Snapshot:
        """Make it durable and the newest; removes those that are too old to keep."""
        self._frame(KIND_END, END.pack(self._chunks, self._bytes, self._hash.digest()))
        assert self._file is not None
        disk = self._store.disk
        with disk_failure(self._unfinished, "sync"):
            self._file.sync()
        self._close()
        with disk_failure(self._target, "rename"):
            disk.replace(self._unfinished, self._target)
            disk.sync_directory(self._target.parent)
        self._store.remove_old(self._base.index)
        logger.info(
            "snapshot written action=snapshot_commit index=%d term=%d chunks=%d bytes=%d",
            self._base.index,
            self._base.term,
            self._chunks,
            self._offset,
        )
        return Snapshot(self._target, self._base, self._meta, self._chunks, self._bytes, disk)

    def abort(self) -> None:
        """Forget it."""
        if self._file is not None:
            self._close()
            with disk_failure(self._unfinished, "remove"):
                self._store.disk.remove(self._unfinished)

    def _frame(self, kind: int, payload: bytes) -> None:
        assert self._file is not None, "this snapshot was committed or aborted"
        self._crc = crc32(payload, crc32(FRAME_HEAD.pack(kind, len(payload)), self._crc))
        data = FRAME.pack(kind, len(payload), self._crc) + payload
        with disk_failure(self._unfinished, "write"):
            self._file.pwrite(data, self._offset)
        self._offset += len(data)

    def _close(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None


class SnapshotStore:
    """The snapshots of one log, in a directory of their own."""

    def __init__(self, directory: Path, *, disk: Disk = LOCAL_DISK) -> None:
        self.directory = directory
        self.disk = disk
        self._damaged: set[str] = set()
        with disk_failure(directory, "open"):
            disk.make_directory(directory)
            # The process that renamed a snapshot may have died before it synced the directory, and the log is
            # about to forget what the snapshot covers.
            disk.sync_directory(directory)
            for name in disk.names(directory):
                if name.endswith(TEMPORARY_SUFFIX):
                    disk.remove(directory / name)

    def path(self, index: int) -> Path:
        return self.directory / f"snapshot-{index:020d}.snap"

    def begin(self, index: int, term: int, prev_term: int, meta: bytes, *, command: bytes) -> SnapshotWriter:
        """Write this node's own state as of ``index``, which it has applied.

        ``term`` and ``command`` are those of the entry at ``index``, ``prev_term`` that of the one before.
        """
        return SnapshotWriter(self, Base(index, term, prev_term, command), meta)

    def receive(self, index: int, term: int, prev_term: int, meta: bytes, *, command: bytes) -> SnapshotWriter:
        """Write a state that the leader sends; ``Journal.install`` it after the commit, before acknowledging it."""
        return SnapshotWriter(self, Base(index, term, prev_term, command, received=True), meta)

    def latest(self, *, reach: int | None = None) -> Snapshot | None:
        """The newest snapshot, read through and found whole; None when there is none.

        ``reach`` is the oldest index that the journal still has (``recovery.oldest_index``). When the
        newest snapshot is damaged, the one before it counts if the journal goes on from there, and
        none at all if the journal goes back to the first entry. Otherwise raises SnapshotDamaged.
        """
        fault: SnapshotDamaged | None = None
        with disk_failure(self.directory, "list"):
            paths = [self.path(index) for index in self._indexes()]
        for path in paths:
            try:
                snapshot = self.read(path)
            except SnapshotDamaged as damage:
                logger.error("snapshot damaged action=snapshot_damaged file=%s offset=%d", path, damage.offset)
                self._damaged.add(path.name)
                fault = fault or damage
                continue
            if fault is None or (reach is not None and reach < snapshot.index):
                return snapshot
            break
        if fault is not None and reach != 1:
            raise fault
        return None

    def read(self, path: Path) -> Snapshot:
        """The snapshot in this file, read through. Raises SnapshotDamaged, DiskFailed."""
        base, meta, counts = None, b"", (0, 0)
        for kind, payload, offset in _frames(self.disk, path):
            if kind == KIND_HEAD:
                base, meta = _decode_head(path, offset, payload)
            elif kind == KIND_END:
                chunks, size, _digest = END.unpack(payload)
                counts = (chunks, size)
        assert base is not None, "the frames begin with the head"
        if path != self.path(base.index):
            raise SnapshotDamaged(path, 0, f"the file holds the snapshot at index {base.index}")
        return Snapshot(path, base, meta, *counts, self.disk)

    def remove_old(self, newest: int) -> None:
        """Remove what is older than the newest whole ones to keep."""
        with disk_failure(self.directory, "remove old snapshots"):
            indexes = [index for index in self._indexes() if index <= newest]
            whole = [index for index in indexes if self.path(index).name not in self._damaged]
            if len(whole) < SNAPSHOTS_KEPT:
                return
            for index in indexes:
                if index < whole[SNAPSHOTS_KEPT - 1]:
                    self.disk.remove(self.path(index))
            self.disk.sync_directory(self.directory)

    def _indexes(self) -> list[int]:
        """Newest first."""
        digits = [name.removeprefix("snapshot-").removesuffix(".snap") for name in self.disk.names(self.directory)]
        return sorted((int(d) for d in digits if d.isdecimal() and len(d) == 20), reverse=True)


def _decode_head(path: Path, offset: int, payload: bytes) -> tuple[Base, bytes]:
    if len(payload) < HEAD.size:
        raise SnapshotDamaged(path, offset, "the head is cut short")
    magic, version, flags, index, term, prev_term, meta_bytes, command_bytes = HEAD.unpack_from(payload)
    if magic != MAGIC or len(payload) != HEAD.size + meta_bytes + command_bytes:
        raise SnapshotDamaged(path, offset, "this is not the head of a snapshot")
    if version != FORMAT_VERSION:
        raise SnapshotDamaged(path, offset, f"the snapshot has format {version}; this version reads {FORMAT_VERSION}")
    meta, command = payload[HEAD.size : HEAD.size + meta_bytes], payload[HEAD.size + meta_bytes :]
    return Base(index, term, prev_term, command, bool(flags & FLAG_RECEIVED)), meta


def _frames(disk: Disk, path: Path) -> Iterator[tuple[int, bytes, int]]:
    """(kind, payload, offset) of each frame up to the end frame, which must match and be the last."""
    with disk_failure(path, "read"):
        file = disk.open(path)
    try:
        with disk_failure(path, "read"):
            size = file.size()
        digest, chunks, chunk_bytes = hashlib.sha256(), 0, 0
        offset, crc, kind = 0, 0, 0
        while kind != KIND_END:
            with disk_failure(path, "read"):
                head = file.pread(FRAME.size, offset)
            if len(head) < FRAME.size:
                raise SnapshotDamaged(path, offset, "the file is cut short")
            kind, length, expected = FRAME.unpack(head)
            if offset + FRAME.size + length > size:
                raise SnapshotDamaged(path, offset, "a frame is cut short, or its length is wrong")
            with disk_failure(path, "read"):
                payload = file.pread(length, offset + FRAME.size)
            crc = crc32(payload, crc32(FRAME_HEAD.pack(kind, length), crc))
            if crc != expected:
                raise SnapshotDamaged(path, offset, "a frame's checksum is wrong")
            if (kind == KIND_HEAD) != (offset == 0) or kind not in (KIND_HEAD, KIND_CHUNK, KIND_END):
                raise SnapshotDamaged(path, offset, f"a frame of kind {kind} is out of place")
            if kind == KIND_CHUNK:
                digest.update(payload)
                chunks += 1
                chunk_bytes += length
            elif kind == KIND_END and payload != END.pack(chunks, chunk_bytes, digest.digest()):
                raise SnapshotDamaged(path, offset, "the chunks are not those that were written")
            yield kind, payload, offset
            offset += FRAME.size + length
        if offset != size:
            raise SnapshotDamaged(path, offset, "there are bytes after the end")
    finally:
        file.close()
