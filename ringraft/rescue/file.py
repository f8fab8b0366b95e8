"""A backup: the state at one log index, and the archive as it was then, as a stream that shows every damage.

Magic, then frames (kind, length, checksum, bytes). Each checksum starts from the one before it, so a
frame that is changed, lost, repeated or moved does not pass. The last frame carries counts and a
SHA-256 of all data: without it the stream was cut off, however whole the rest looks.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any
from zlib import crc32

import msgpack

from ringraft.node.sealed import Sealed

FORMAT_VERSION = 1
MAGIC = b"ringback"
FRAME = struct.Struct("<BII")
"""kind, bytes, checksum of (kind, bytes, payload) that starts from the frame before's."""
FRAME_HEAD = struct.Struct("<BI")
END = struct.Struct("<QQQ32s")
"""state chunks, their bytes, archived items, SHA-256 of the data of all frames before."""
KIND_HEAD, KIND_STATE, KIND_ARCHIVE, KIND_END = 1, 2, 3, 4
PAYLOAD_BYTES_MAX = 256 * 1024 * 1024
"""No frame is longer; one that says so is damaged."""
ROW_FIELDS = len(Sealed._fields)


class BackupDamaged(Exception):
    """The file is no whole backup; says where and what, and nothing of it may be used."""

    def __init__(self, path: Path, offset: int, detail: str) -> None:
        super().__init__(f"{path}: damaged at offset {offset}: {detail}; make or fetch the backup again")
        self.path = path
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Head:
    """What a backup is of. Times in milliseconds; ``wall_ms`` is the leader's clock at the newest entry."""

    format_version: int
    program_version: str
    cluster_id: str
    node_id: str
    """Who made it."""
    index: int
    log_ms: int
    wall_ms: int
    made_wall_ms: int
    generation: int
    term: int
    digest: str
    items: int
    has_archive: bool


@dataclass(frozen=True, slots=True)
class Whole:
    """A backup that was read through and is whole."""

    head: Head
    chunks: int
    state_bytes: int
    archived: int
    sha256: str
    file_bytes: int


class Writer:
    """Makes the stream; the caller sends what each call returns, in order."""

    def __init__(self) -> None:
        self._crc = 0
        self._hash = hashlib.sha256()
        self._chunks = self._bytes = self._rows = 0

    def head(self, head: Head) -> bytes:
        """What comes first."""
        return MAGIC + self._frame(KIND_HEAD, msgpack.packb(asdict(head)))

    def state(self, chunk: bytes) -> bytes:
        """A slice of the image."""
        self._chunks += 1
        self._bytes += len(chunk)
        return self._frame(KIND_STATE, chunk)

    def archive(self, rows: Sequence[Sealed]) -> bytes:
        """Some items that were final long before."""
        self._rows += len(rows)
        return self._frame(KIND_ARCHIVE, msgpack.packb([list(row) for row in rows]))

    def end(self) -> bytes:
        """What makes it whole."""
        return self._frame(KIND_END, END.pack(self._chunks, self._bytes, self._rows, self._hash.digest()))

    def _frame(self, kind: int, payload: bytes) -> bytes:
        self._crc = crc32(payload, crc32(FRAME_HEAD.pack(kind, len(payload)), self._crc))
        if kind != KIND_END:
            self._hash.update(payload)
        return FRAME.pack(kind, len(payload), self._crc) + payload


def check(path: Path) -> Whole:
    """Read a backup through. Raises BackupDamaged, OSError."""
    head: Head | None = None
    counts: tuple[int, int, int, bytes] = (0, 0, 0, b"")
    offset = 0
    for kind, payload, at in _frames(path):
        offset = at + FRAME.size + len(payload)
        if kind == KIND_HEAD:
            head = _head(path, at, payload)
        elif kind == KIND_END:
            counts = END.unpack(payload)
    assert head is not None, "the frames begin with the head"
    chunks, state_bytes, archived, digest = counts
    return Whole(head, chunks, state_bytes, archived, digest.hex(), offset)


def state_chunks(path: Path) -> Iterator[bytes]:
    """The slices of the image, checked on the way. Raises BackupDamaged: what came before is then not to be used."""
    for kind, payload, _ in _frames(path):
        if kind == KIND_STATE:
            yield payload


def archived_rows(path: Path) -> Iterator[Sealed]:
    """The archived items, checked on the way. Raises BackupDamaged."""
    for kind, payload, offset in _frames(path):
        if kind == KIND_ARCHIVE:
            for row in _unpacked(path, offset, payload):
                if type(row) is not list or len(row) != ROW_FIELDS:
                    raise BackupDamaged(path, offset, "an archived item is not one")
                yield Sealed(*row)


def _frames(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """(kind, payload, offset) of each frame up to the end frame, which must match and be the last."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BackupDamaged(path, 0, "this is no backup of ringraft")
        digest, crc, kind, offset = hashlib.sha256(), 0, 0, len(MAGIC)
        chunks = size = rows = 0
        while kind != KIND_END:
            kind, payload, crc = _next_frame(path, file, offset, crc)
            if (kind == KIND_HEAD) != (offset == len(MAGIC)) or not KIND_HEAD <= kind <= KIND_END:
                raise BackupDamaged(path, offset, f"a frame of kind {kind} is out of place")
            if kind == KIND_STATE:
                chunks, size = chunks + 1, size + len(payload)
            elif kind == KIND_ARCHIVE:
                rows += len(_unpacked(path, offset, payload))
            if kind == KIND_END:
                if payload != END.pack(chunks, size, rows, digest.digest()):
                    raise BackupDamaged(path, offset, "the data is not what was written")
            else:
                digest.update(payload)
            yield kind, payload, offset
            offset += FRAME.size + len(payload)
        if file.read(1):
            raise BackupDamaged(path, offset, "there are bytes after the end")


def _next_frame(path: Path, file: IO[bytes], offset: int, crc: int) -> tuple[int, bytes, int]:
    header = file.read(FRAME.size)
    if len(header) < FRAME.size:
        raise BackupDamaged(path, offset, "it breaks off here: the download was cut short")
    kind, length, expected = FRAME.unpack(header)
    if length > PAYLOAD_BYTES_MAX:
        raise BackupDamaged(path, offset, f"a frame says that it has {length} bytes")
    payload = file.read(length)
    if len(payload) < length:
        raise BackupDamaged(path, offset, "it breaks off inside a frame: the download was cut short")
    crc = crc32(payload, crc32(FRAME_HEAD.pack(kind, length), crc))
    if crc != expected:
        raise BackupDamaged(path, offset, "a frame's checksum is wrong")
    return kind, payload, crc


def _unpacked(path: Path, offset: int, payload: bytes) -> list[Any]:
    try:
        value = msgpack.unpackb(payload, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise BackupDamaged(path, offset, f"a frame is not msgpack: {error}") from error
    if type(value) is not list:
        raise BackupDamaged(path, offset, "a frame of archived items is no list")
    return value


def _head(path: Path, offset: int, payload: bytes) -> Head:
    try:
        found = msgpack.unpackb(payload, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise BackupDamaged(path, offset, f"the head is not msgpack: {error}") from error
    if type(found) is not dict or type(found.get("format_version")) is not int:
        raise BackupDamaged(path, offset, "this is not the head of a backup")
    if found["format_version"] != FORMAT_VERSION:
        version = found["format_version"]
        raise BackupDamaged(path, offset, f"it has format {version}, and this program reads {FORMAT_VERSION}")
    kinds = {"int": int, "str": str, "bool": bool}
    if set(found) != {field.name for field in fields(Head)} or any(
        type(found[field.name]) is not kinds[str(field.type)] for field in fields(Head)
    ):
        raise BackupDamaged(path, offset, "the head does not have its fields")
    return Head(**found)
