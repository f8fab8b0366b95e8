"""Data directories of earlier formats open, or are refused by their version and left as they are.

``tests/golden/disk-v2`` is what format 2 left after: 30 entries of term 1, snapshots at 10 and 20, a
conflict from 26 on, 10 entries of term 3, a snapshot at 28, a vote for n3 in term 4. It is never
written anew; a new format gets a directory of its own beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ringraft.consensus.replog.files import LOCAL_DISK
from ringraft.consensus.replog.journal import Journal, JournalDamaged
from ringraft.consensus.replog.recovery import oldest_index
from ringraft.consensus.replog.snapshot import Base, SnapshotStore

GOLDEN = Path(__file__).parent.parent / "golden" / "disk-v2"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "data")
    return tmp_path / "data"


def expected(index: int) -> tuple[bytes, int, int]:
    term = 1 if index <= 25 else 3
    return (b"command %d of term %d" % (index, term), index, term)


def test_format_2_opens(data: Path) -> None:
    snapshot = SnapshotStore(data / "snapshots").latest()
    assert snapshot is not None
    assert snapshot.base == Base(28, 3, 3, b"command 28 of term 3")
    assert snapshot.meta == b"meta 28"
    assert list(snapshot.chunks()) == [b"chunk %d of the state at 28" % number for number in range(3)]

    journal = Journal.open(data / "journal", snapshot=snapshot.base)
    assert journal[:] == [expected(index) for index in range(27, 36)]
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (4, "n3")
    assert journal.getRaftCommitIndex() == 33
    journal.add(b"one more", 36, 4)
    journal.close()
    again = Journal.open(data / "journal", snapshot=snapshot.base)
    assert again[-2:] == [expected(35), (b"one more", 36, 4)]
    again.close()


def test_format_2_falls_back_to_the_snapshot_before(data: Path) -> None:
    newest = max((data / "snapshots").iterdir())
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    reach = oldest_index(data / "journal", disk=LOCAL_DISK)
    snapshot = SnapshotStore(data / "snapshots").latest(reach=reach)
    assert snapshot is not None
    assert snapshot.index == 20
    journal = Journal.open(data / "journal", snapshot=snapshot.base)
    assert journal[:] == [expected(index) for index in range(19, 36)]
    journal.close()


def test_format_1_is_refused_by_its_version(tmp_path: Path) -> None:
    """No release wrote it; ``tests/golden/disk-v1`` holds the same log in it."""
    data = tmp_path / "data"
    shutil.copytree(GOLDEN.with_name("disk-v1"), data)
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    snapshot = SnapshotStore(data / "snapshots").latest()
    assert snapshot is not None
    with pytest.raises(JournalDamaged, match="the segment has format 1; this version reads 2"):
        Journal.open(data / "journal", snapshot=snapshot.base)
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
