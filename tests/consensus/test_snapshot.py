"""Snapshots: whole or not there, the one before stands in only where the journal allows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringraft.consensus.replog.files import DiskFailed
from ringraft.consensus.replog.snapshot import Base, Snapshot, SnapshotDamaged, SnapshotStore
from tests.consensus.memory_disk import MemoryDisk

DIRECTORY = Path("/s")
CHUNKS = [b"first chunk", b"\x00" * 20, b"last"]


def write(store: SnapshotStore, index: int, chunks: list[bytes] = CHUNKS) -> Snapshot:
    writer = store.begin(index, 3, 2, b"meta %d" % index, command=b"command %d" % index)
    for chunk in chunks:
        writer.write(chunk)
    return writer.commit()


def names(disk: MemoryDisk) -> list[str]:
    return disk.names(DIRECTORY)


def test_a_snapshot_comes_back_as_written(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snapshots")
    assert store.latest() is None
    written = write(store, 7)
    again = SnapshotStore(tmp_path / "snapshots").latest()
    assert again is not None
    assert again == written or (again.base, again.meta) == (written.base, written.meta)
    assert again.base == Base(7, 3, 2, b"command 7")
    assert (again.index, again.term, again.prev_term, again.command) == (7, 3, 2, b"command 7")
    assert (again.meta, again.chunks_count, again.chunks_bytes) == (b"meta 7", 3, 35)
    assert list(again.chunks()) == CHUNKS


def test_a_received_snapshot_says_so(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    writer = store.receive(7, 3, 2, b"", command=b"c")
    own = store.begin(7, 3, 2, b"", command=b"c")
    writer.write(b"x")
    assert writer.commit().base.received
    own.abort()
    own.abort()
    latest = store.latest()
    assert latest is not None
    assert latest.base == Base(7, 3, 2, b"c", received=True)
    assert [path.name for path in tmp_path.iterdir()] == [latest.path.name]


def test_an_unfinished_snapshot_does_not_exist() -> None:
    disk = MemoryDisk()
    store = SnapshotStore(DIRECTORY, disk=disk)
    writer = store.begin(7, 3, 2, b"", command=b"")
    writer.write(b"chunk")
    assert store.latest() is None
    after = disk.after_kill()
    assert SnapshotStore(DIRECTORY, disk=after).latest() is None
    assert names(after) == [], "what a dead process left unfinished is removed"


def test_the_newest_two_are_kept() -> None:
    disk = MemoryDisk()
    store = SnapshotStore(DIRECTORY, disk=disk)
    for index in (5, 9, 12, 40):
        write(store, index)
    assert [int(name[9:29]) for name in names(disk)] == [12, 40]
    latest = store.latest()
    assert latest is not None
    assert latest.index == 40


def test_a_damaged_snapshot_is_replaced_only_where_the_journal_goes_on() -> None:
    disk = MemoryDisk()
    store = SnapshotStore(DIRECTORY, disk=disk)
    write(store, 20)
    newest = write(store, 40)
    disk.inodes[newest.path].data[100] ^= 1
    with pytest.raises(SnapshotDamaged, match="Nothing was changed") as damage:
        store.latest()
    assert damage.value.path == newest.path
    for reach in (20, 25, 39):
        with pytest.raises(SnapshotDamaged):
            store.latest(reach=reach)
    for reach in (1, 12, 19):
        fallback = store.latest(reach=reach)
        assert fallback is not None
        assert fallback.index == 20
    # Damaged ones do not count among those to keep.
    write(store, 60)
    assert [int(name[9:29]) for name in names(disk)] == [20, 40, 60]
    write(store, 80)
    assert [int(name[9:29]) for name in names(disk)] == [60, 80]


def test_with_the_whole_journal_no_snapshot_is_needed() -> None:
    disk = MemoryDisk()
    store = SnapshotStore(DIRECTORY, disk=disk)
    only = write(store, 20)
    disk.inodes[only.path].data[100] ^= 1
    assert store.latest(reach=1) is None
    with pytest.raises(SnapshotDamaged):
        store.latest(reach=2)


def test_a_flipped_bit_is_never_taken_for_state() -> None:
    disk = MemoryDisk()
    path = write(SnapshotStore(DIRECTORY, disk=disk), 7).path
    content = bytes(disk.inodes[path].data)
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SnapshotDamaged):
            SnapshotStore(DIRECTORY, disk=MemoryDisk.holding({path: bytes(flipped)})).latest()


def test_a_snapshot_of_another_length_is_never_taken_for_state() -> None:
    disk = MemoryDisk()
    path = write(SnapshotStore(DIRECTORY, disk=disk), 7).path
    content = bytes(disk.inodes[path].data)
    for wrong in [content[:size] for size in range(len(content))] + [content + b"\x00", content + content]:
        with pytest.raises(SnapshotDamaged):
            SnapshotStore(DIRECTORY, disk=MemoryDisk.holding({path: wrong})).latest()


def test_a_snapshot_under_another_name_is_refused() -> None:
    disk = MemoryDisk()
    store = SnapshotStore(DIRECTORY, disk=disk)
    path = write(store, 7).path
    wrong = MemoryDisk.holding({store.path(9): disk.contents()[path]})
    with pytest.raises(SnapshotDamaged, match="holds the snapshot at index 7"):
        SnapshotStore(DIRECTORY, disk=wrong).latest()


def test_damage_met_while_reading_stops_the_reader() -> None:
    disk = MemoryDisk()
    snapshot = write(SnapshotStore(DIRECTORY, disk=disk), 7)
    disk.inodes[snapshot.path].data[-60] ^= 1
    with pytest.raises(SnapshotDamaged):
        list(snapshot.chunks())


def test_a_failing_disk_ends_a_snapshot_and_leaves_the_last() -> None:
    clean = MemoryDisk()
    write(SnapshotStore(DIRECTORY, disk=clean), 7)
    write(SnapshotStore(DIRECTORY, disk=clean), 9)
    contents = clean.contents()
    operations = 0
    while True:
        operations += 1
        disk = MemoryDisk.holding(contents)
        store = SnapshotStore(DIRECTORY, disk=disk)
        disk.fail_at = disk.operations + operations
        try:
            write(store, 20)
        except DiskFailed:
            latest = SnapshotStore(DIRECTORY, disk=disk.after_kill()).latest()
            assert latest is not None
            assert latest.index in (9, 20)
            assert list(latest.chunks()) == CHUNKS
        else:
            break
    assert operations > 8
