"""One file of the journal: a header, then records, each framed, checksummed and bound to its place.

    header   magic, version, flags, salt, sequence, base index, size and salt of the segment before, crc
    record   magic, kind, payload length, index, term, synced, crc of the payload, crc of these 36 bytes; payload

A record's header checksum starts from ``salt + offset``: bytes that were written for another place
(a recycled block, a copied range, or a whole record that a client hid in a payload) never pass for a
record here.

``synced`` is the offset up to which this file was known to be on the medium when the record was
written. A power cut may keep any sectors of what was written since the last sync and lose others, so
a record that does not read may be followed by some that do. They tell which it is: if one of them
states a place beyond the bad record, those bytes had been synced, and it is damage; otherwise all
that follows was as little promised as the bad record itself, and it is a torn end.
All numbers are little endian; lengths are bytes; offsets count from the start of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from zlib import crc32

FORMAT_VERSION = 2
PAYLOAD_BYTES_MAX = 64 * 1024 * 1024
"""One record's payload; several times the largest entry the log makes."""

SEGMENT_HEADER = struct.Struct("<8sHHIQQQII")
RECORD_HEADER = struct.Struct("<2sBBIQQQI")
"""Without the checksum of the header itself, which follows."""
CRC = struct.Struct("<I")
RECORD_BYTES = RECORD_HEADER.size + CRC.size

SEGMENT_MAGIC = b"ringjrnl"
RECORD_MAGIC = b"\xd5\x4a"
FLAG_RESET = 1
UINT32 = 0xFFFFFFFF


class Kind(IntEnum):
    """What a record says."""

    ENTRY = 1
    """The log goes on with this entry; its index is the last one plus 1."""
    TRUNCATE = 2
    """The log ends at ``index``: what was after it is void."""


Record = tuple[int, int, int, bytes, int]
"""(kind, index, term, payload, offset), as read back."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """How a segment begins."""

    sequence: int
    """Counts the segments ever made here, from 1."""
    base: int
    """The index that the next entry had when this segment was made."""
    reset: bool
    """Nothing before this segment counts."""
    salt: int
    previous_size: int
    previous_salt: int

    def encode(self) -> bytes:
        fields = (
            SEGMENT_MAGIC,
            FORMAT_VERSION,
            FLAG_RESET if self.reset else 0,
            self.salt,
            self.sequence,
            self.base,
            self.previous_size,
            self.previous_salt,
        )
        body = SEGMENT_HEADER.pack(*fields, 0)[: -CRC.size]
        return body + CRC.pack(crc32(body))


class Unreadable(Exception):
    """These bytes are not what they should be; the message says how."""


def decode_header(data: bytes) -> SegmentHeader:
    """The header at the start of a segment's bytes; raises Unreadable."""
    if len(data) < SEGMENT_HEADER.size:
        raise Unreadable(f"the segment header is cut short at {len(data)} of {SEGMENT_HEADER.size} bytes")
    magic, version, flags, salt, sequence, base, previous_size, previous_salt, crc = SEGMENT_HEADER.unpack_from(data)
    if magic != SEGMENT_MAGIC or crc != crc32(data[: SEGMENT_HEADER.size - CRC.size]):
        raise Unreadable("the segment header's checksum is wrong")
    if version != FORMAT_VERSION:
        raise Unreadable(f"the segment has format {version}; this version reads {FORMAT_VERSION}")
    return SegmentHeader(
        sequence=sequence,
        base=base,
        reset=bool(flags & FLAG_RESET),
        salt=salt,
        previous_size=previous_size,
        previous_salt=previous_salt,
    )


def encode_record(kind: Kind, index: int, term: int, payload: bytes, *, salt: int, offset: int, synced: int) -> bytes:
    """A record for exactly this place, written when the file was known to be on the medium up to ``synced``."""
    header = RECORD_HEADER.pack(RECORD_MAGIC, kind, 0, len(payload), index, term, synced, crc32(payload))
    return header + CRC.pack(crc32(header, (salt + offset) & UINT32)) + payload


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a segment's bytes say."""

    records: list[Record]
    end: int
    """Where the records that read in order end."""
    fault: str | None
    """Why there, if not at the end of the file."""
    synced: int
    """The furthest place that any record, also behind the fault, states as synced."""
    stated_at: int
    """The offset of the record that states it."""


def scan(data: bytes, salt: int) -> Scanned:
    """The records of a segment in order, and where and why they end."""
    records: list[Record] = []
    unpack, crc_unpack = RECORD_HEADER.unpack_from, CRC.unpack_from
    view = memoryview(data)
    offset, size = SEGMENT_HEADER.size, len(data)
    synced = stated_at = SEGMENT_HEADER.size
    fault = None
    while offset < size:
        body = offset + RECORD_BYTES
        if body > size:
            fault = "a record's header is cut short"
            break
        checked = view[offset : offset + RECORD_HEADER.size]
        if crc32(checked, (salt + offset) & UINT32) != crc_unpack(data, offset + RECORD_HEADER.size)[0]:
            fault = "a record's header has a wrong checksum"
            break
        _magic, kind, _zero, length, index, term, stated, payload_crc = unpack(data, offset)
        end = body + length
        if end > size:
            fault = f"a record's payload is cut short at {size - body} of {length} bytes"
            break
        payload = data[body:end]
        if crc32(payload) != payload_crc:
            fault = "a record's payload has a wrong checksum"
            break
        records.append((kind, index, term, payload, offset))
        if stated > synced:
            synced, stated_at = stated, offset
        offset = end
    if fault is not None:
        for found, stated in _later_records(data, salt, offset):
            if stated > synced:
                synced, stated_at = stated, found
    return Scanned(records, offset, fault, synced, stated_at)


def _later_records(data: bytes, salt: int, start: int) -> Iterator[tuple[int, int]]:
    """(offset, the place stated as synced) of every record header from ``start`` on that is in its own place.

    The header at ``start`` itself counts: its payload may be what does not read.
    """
    offset = data.find(RECORD_MAGIC, start)
    while 0 <= offset <= len(data) - RECORD_BYTES:
        crc = crc32(data[offset : offset + RECORD_HEADER.size], (salt + offset) & UINT32)
        if crc == CRC.unpack_from(data, offset + RECORD_HEADER.size)[0]:
            yield offset, RECORD_HEADER.unpack_from(data, offset)[6]
        offset = data.find(RECORD_MAGIC, offset + 1)


def segment_name(sequence: int) -> str:
    return f"journal-{sequence:012d}.seg"


def segment_sequence(name: str) -> int | None:
    """The sequence number in a segment's file name, None for any other name."""
    digits = name.removeprefix("journal-").removesuffix(".seg")
    return int(digits) if digits.isdecimal() and name == segment_name(int(digits)) else None


@dataclass(slots=True)
class Segment:
    """A segment that the journal holds."""

    path: Path
    header: SegmentHeader
    size: int
    last_index: int
    """No entry in this file that counts is newer than this."""
