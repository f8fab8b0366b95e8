"""What a data directory is to the log: the small file ``seat`` beside the vote.

A directory has a seat once its cluster was formed with it, or an entry of the log admitted it. Without
one it votes in no term and its copy counts for nothing: whoever emptied it, or put another in its
place, took away what it had promised. The file is replaced durably before the node acts on it; unreadable,
it is refused. A directory without the file has no seat: it is fresh when it has no log either.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from ringraft.consensus.replog.files import Disk, create_durably, disk_failure, read_whole
from ringraft.consensus.replog.recovery import JournalDamaged
from ringraft.consensus.replog.segment import CRC

SEAT_NAME = "seat"
FORMAT_VERSION = 2
SEAT = struct.Struct("<8sHHQQH")
"""magic, format version, standing, index, start, bytes of the formation id; then the id and a checksum."""
SEAT_MAGIC = b"ringseat"


class Standing(IntEnum):
    """Whether this directory takes part; the numbers are on disk and on the wire."""

    FRESH = 0
    """It has met no log yet and may form a cluster."""
    LEARNER = 1
    """A log exists, and this directory has no part in its decisions until it is admitted."""
    MEMBER = 2
    """It votes, and its copy counts."""
    REMOVED = 3
    """The cluster removed its node."""


class Seat(NamedTuple):
    """The standing of one directory."""

    standing: Standing = Standing.FRESH
    since_index: int = 0
    """The entry that gave it the standing; 0 for a founder. What others know as of an older one says nothing."""
    formation_id: str = ""
    """Of the log it has met; empty before that was applied."""
    since_start: int = 0
    """A learner's: an admission of this incarnation or a later one is its own: it kept all it promised since."""


def read_seat(disk: Disk, directory: Path) -> Seat:
    """The directory's seat. Raises JournalDamaged, DiskFailed."""
    with disk_failure(directory, "list"):
        if SEAT_NAME not in disk.names(directory):
            return Seat()
    path = directory / SEAT_NAME
    data = read_whole(disk, path)
    body, crc = data[: -CRC.size], data[-CRC.size :]
    if len(body) < SEAT.size or crc != CRC.pack(crc32(body)):
        raise JournalDamaged(path, 0, "the seat's checksum is wrong")
    magic, version, standing, index, since_start, size = SEAT.unpack_from(body)
    if magic != SEAT_MAGIC or version != FORMAT_VERSION or standing > max(Standing):
        raise JournalDamaged(path, 0, f"the seat has format {version}; this version reads {FORMAT_VERSION}")
    if len(body) != SEAT.size + size:
        raise JournalDamaged(path, 0, "the seat's length is wrong")
    return Seat(Standing(standing), index, body[SEAT.size :].decode(), since_start)


def write_seat(disk: Disk, directory: Path, seat: Seat) -> None:
    """Durable when this returns. Raises DiskFailed."""
    formation = seat.formation_id.encode()
    head = (SEAT_MAGIC, FORMAT_VERSION, seat.standing, seat.since_index, seat.since_start, len(formation))
    body = SEAT.pack(*head) + formation
    with disk_failure(directory / SEAT_NAME, "write the seat"):
        create_durably(disk, directory / SEAT_NAME, body + CRC.pack(crc32(body))).close()
