"""A backup file is whole or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ringraft.node.sealed import Sealed
from ringraft.rescue.file import BackupDamaged, Head, Writer, archived_rows, check, state_chunks

HEAD = Head(1, "0.1.0", "c-1", "n1", 45, 1200, 1_700_000_000_000, 1_700_000_000_500, 0, 3, "ab" * 32, 2, True)
ROWS = [
    Sealed("a", "COMPLETED", "selfplay", None, "w1", 1_700_000_000_000, b"body"),
    Sealed("b", "FAILED", "x", "g", None, 1, b""),
]


def written(head: Head = HEAD) -> bytes:
    writer = Writer()
    return b"".join(
        [writer.head(head), writer.state(b"first"), writer.state(b"second"), writer.archive(ROWS), writer.end()]
    )


def put(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "backup"
    path.write_bytes(data)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = put(tmp_path, written())
    whole = check(path)
    assert whole.head == HEAD
    assert (whole.chunks, whole.state_bytes, whole.archived) == (2, 11, 2)
    assert whole.file_bytes == path.stat().st_size
    assert list(state_chunks(path)) == [b"first", b"second"]
    assert list(archived_rows(path)) == ROWS


def test_every_cut_is_seen(tmp_path: Path) -> None:
    data = written()
    for length in range(len(data)):
        with pytest.raises(BackupDamaged):
            check(put(tmp_path, data[:length]))
    with pytest.raises(BackupDamaged, match="after the end"):
        check(put(tmp_path, data + b"x"))


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    data = written()
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(BackupDamaged):
                check(put(tmp_path, bytes(flipped)))


def test_frames_of_another_backup_do_not_pass(tmp_path: Path) -> None:
    ours, other = Writer(), Writer()
    begin = ours.head(HEAD)
    other.head(replace(HEAD, index=46))
    ours.state(b"first")
    with pytest.raises(BackupDamaged, match="checksum"):
        check(put(tmp_path, begin + other.state(b"first") + ours.end()))


def test_a_file_of_something_else_or_a_later_format_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackupDamaged, match="no backup of ringraft"):
        check(put(tmp_path, b"PK\x03\x04 something else"))
    with pytest.raises(BackupDamaged, match="format 2, and this program reads 1"):
        check(put(tmp_path, written(replace(HEAD, format_version=2))))
