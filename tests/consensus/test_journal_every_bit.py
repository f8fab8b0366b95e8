"""Every bit and every length of a 4 KiB journal, its vote and a snapshot: what was written, or a refusal."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringraft.consensus.replog.journal import Journal, JournalDamaged
from ringraft.consensus.replog.recovery import LogEntry
from ringraft.consensus.replog.segment import RECORD_MAGIC
from ringraft.consensus.replog.snapshot import SnapshotDamaged, SnapshotStore
from tests.consensus.memory_disk import MemoryDisk

LOG, SNAPSHOTS = Path("/d/log"), Path("/d/snapshot")
VOTE = (7, "a-voter-with-a-name")
JOURNAL_BYTES = 4096
SEGMENT_BYTES = 2600


@dataclass(frozen=True)
class Written:
    """A journal of exactly 4 KiB in two segments, beside its vote."""

    contents: dict[Path, bytes]
    entries: list[LogEntry]
    kept: int
    """So many entries are known to be on the medium; fewer are never right."""

    @property
    def newest(self) -> Path:
        return max(path for path in self.contents if path.suffix == ".seg")


def write(*, is_synced: bool) -> Written:
    """Entries of all sizes, some of which look like records."""
    rng = random.Random(17)
    disk = MemoryDisk()
    journal = Journal.open(LOG, disk=disk, segment_bytes=SEGMENT_BYTES)
    journal.setCurrentTerm(*VOTE)
    in_older = 0
    while True:
        before, segments = disk_bytes(disk), len(journal._tape._segments)
        left = JOURNAL_BYTES - before
        size = left - overhead(journal) if left < 300 else rng.choice((0, 1, 7, 40, 150))
        text = (RECORD_MAGIC + rng.randbytes(size))[:size]
        journal.add(text, journal.last_index + 1, VOTE[0])
        journal.sync() if is_synced or segments == 1 else journal.flush()
        if len(journal._tape._segments) > segments:
            in_older = journal.last_index - 1
        if disk_bytes(disk) >= JOURNAL_BYTES:
            break
    if is_synced:
        journal.onOneSecondTimer()
        journal.sync()
    assert disk_bytes(disk) == JOURNAL_BYTES
    assert len(journal._tape._segments) == 2
    return Written(disk.after_kill().contents(), journal[:], len(journal) if is_synced else in_older)


def disk_bytes(disk: MemoryDisk) -> int:
    return sum(len(data) for path, data in disk.contents().items() if path.suffix == ".seg")


def overhead(journal: Journal) -> int:
    """Bytes of a record without its payload."""
    probe = MemoryDisk()
    other = Journal.open(LOG, disk=probe)
    other.setCurrentTerm(1, None)
    other.sync()
    before = disk_bytes(probe)
    other.add(b"", 1, 1)
    other.sync()
    return disk_bytes(probe) - before


def opened(contents: dict[Path, bytes]) -> list[LogEntry] | None:
    """The entries found, None when refused; a refusal says where and what to do, and changes nothing."""
    disk = MemoryDisk.holding(contents)
    try:
        journal = Journal.open(LOG, disk=disk, segment_bytes=SEGMENT_BYTES)
    except JournalDamaged as damage:
        said = str(damage)
        assert f"{damage.path}: damaged at offset {damage.offset}: " in said
        assert "Restore this node's data directory whole from a backup" in said
        assert disk.contents() == contents
        return None
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == VOTE
    return journal[:]


def changes(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Every length below the present one, then every single bit turned over."""
    for size in range(len(content)):
        yield f"cut at {size}", content[:size]
    for bit in range(len(content) * 8):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} turned", bytes(changed)


@pytest.mark.parametrize("is_synced", [False, True])
def test_no_damage_to_a_journal_gives_wrong_entries(is_synced: bool) -> None:
    written = write(is_synced=is_synced)
    cases = 0
    for path, content in written.contents.items():
        if path.name == "mark":
            continue
        for what, changed in changes(content):
            got = opened({**written.contents, path: changed})
            cases += path.suffix == ".seg"
            if got is None:
                continue
            assert path == written.newest, f"{path} {what} went unnoticed"
            assert written.kept <= len(got), f"{path} {what}: {len(got)} entries of {written.kept} that were kept"
            assert got == written.entries[: len(got)], f"{path} {what} gave wrong entries"
            assert len(got) < len(written.entries) or not is_synced, f"{path} {what} went unnoticed"
    assert cases == JOURNAL_BYTES + 8 * JOURNAL_BYTES


def test_every_damage_to_a_snapshot_is_refused() -> None:
    disk = MemoryDisk()
    writer = SnapshotStore(SNAPSHOTS, disk=disk).begin(9, 3, 2, b"meta", command=b"command")
    rng = random.Random(5)
    for size in (1, 200, 700):
        writer.write(rng.randbytes(size))
    path = writer.commit().path
    for what, changed in changes(disk.contents()[path]):
        with pytest.raises(SnapshotDamaged, match="Restore this node's data directory whole") as damage:
            SnapshotStore(SNAPSHOTS, disk=MemoryDisk.holding({path: changed})).latest()
        assert f"{path}: damaged at offset {damage.value.offset}: " in str(damage.value), what
