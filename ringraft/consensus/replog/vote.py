"""The two small files beside the segments: the vote, and how far things had come.

``vote`` holds the term and whom this node voted for in it. It is replaced durably before anybody
may hear of it, and a journal with entries but no readable vote is refused: a node that forgot its
vote could vote twice in a term, and two leaders would follow.

``mark`` is advice, rewritten in place now and then without a sync: a commit index, and a place in the
segments up to which all bytes are known to be on the medium. It says nothing that was not so before it
was written, so it may reach the medium late or never. Unreadable, it is left out of account; readable,
it tells a tail that a crash tore (after the mark) from one that was lost later.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from ringraft.consensus.replog.files import Disk, DiskFile, create_durably
from ringraft.consensus.replog.segment import CRC, Unreadable

VOTE_NAME = "vote"
MARK_NAME = "mark"
FORMAT_VERSION = 1

VOTE = struct.Struct("<8sHHQ")
"""magic, format version, bytes of the id + 1 (0: no vote), term; then the id and a checksum."""
VOTE_MAGIC = b"ringvote"
MARK = struct.Struct("<8sQQQ")
"""magic, commit index, sequence of a segment, offset in it; then a checksum."""
MARK_MAGIC = b"ringmark"
MARK_BYTES = MARK.size + CRC.size


class Vote(NamedTuple):
    """The newest term this node knows, and its vote in it."""

    term: int
    voted_for: str | None


class Mark(NamedTuple):
    """How far things had come when it was written, at least."""

    commit_index: int
    sequence: int
    offset: int


def encode_vote(vote: Vote) -> bytes:
    name = b"" if vote.voted_for is None else vote.voted_for.encode()
    body = VOTE.pack(VOTE_MAGIC, FORMAT_VERSION, 0 if vote.voted_for is None else len(name) + 1, vote.term) + name
    return body + CRC.pack(crc32(body))


def decode_vote(data: bytes) -> Vote:
    """Raises Unreadable."""
    body, crc = data[: -CRC.size], data[-CRC.size :]
    if len(body) < VOTE.size or crc != CRC.pack(crc32(body)):
        raise Unreadable("the vote's checksum is wrong")
    magic, version, marker, term = VOTE.unpack_from(body)
    if magic != VOTE_MAGIC or version != FORMAT_VERSION:
        raise Unreadable(f"the vote has format {version}; this version reads {FORMAT_VERSION}")
    name = body[VOTE.size :]
    if len(name) != max(0, marker - 1):
        raise Unreadable("the vote's length is wrong")
    return Vote(term, name.decode() if marker else None)


def write_vote(disk: Disk, directory: Path, vote: Vote) -> None:
    """Durable when this returns. Raises OSError."""
    create_durably(disk, directory / VOTE_NAME, encode_vote(vote)).close()


def decode_mark(data: bytes) -> Mark | None:
    """None when it says nothing."""
    body = data[: MARK.size]
    if len(data) != MARK_BYTES or data[MARK.size :] != CRC.pack(crc32(body)):
        return None
    magic, commit_index, sequence, offset = MARK.unpack(body)
    return Mark(commit_index, sequence, offset) if magic == MARK_MAGIC else None


def write_mark(file: DiskFile, mark: Mark) -> None:
    """Raises OSError."""
    body = MARK.pack(MARK_MAGIC, *mark)
    file.pwrite(body + CRC.pack(crc32(body)), 0)
