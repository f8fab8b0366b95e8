"""Every bit and every length of a small journal: the right entries, a cut tail or a refusal, never wrong data."""

from __future__ import annotations

import random
from pathlib import Path
from zlib import crc32

import pytest

from ringraft.consensus.replog.journal import Journal, JournalDamaged
from ringraft.consensus.replog.recovery import LogEntry
from ringraft.consensus.replog.segment import RECORD_MAGIC, SEGMENT_HEADER
from ringraft.consensus.replog.snapshot import Base
from tests.consensus.memory_disk import MemoryDisk

DIRECTORY = Path("/j")
VOTE, MARK = DIRECTORY / "vote", DIRECTORY / "mark"
SMALL = 300


def small_journal(*, synced: bool) -> tuple[MemoryDisk, list[list[LogEntry]]]:
    """Three segments with a truncation; the disk, and the log after each record of the newest segment."""
    disk = MemoryDisk()
    journal = Journal.open(DIRECTORY, disk=disk, segment_bytes=SMALL)
    journal.setCurrentTerm(1, None)
    for index in range(1, 9):
        journal.add(b"entry-%d" % index, index, 1)
    journal.setCurrentTerm(2, "n2")
    journal.deleteEntriesFrom(6)
    journal.setRaftCommitIndex(6)
    journal.flush()
    states: list[list[LogEntry]] = [journal[:]]
    for index in range(7, 11):
        count = len(journal._tape._segments)
        journal.add(b"other-%d" % index, index, 2)
        journal.flush()
        if len(journal._tape._segments) != count:
            del states[:-1]
        states.append(journal[:])
    if synced:
        journal.sync()
        journal.onOneSecondTimer()
        journal.sync()
    assert len(newest_first(disk)) == 3
    return disk.after_kill(), states


def newest_first(disk: MemoryDisk) -> list[Path]:
    return sorted((path for path in disk.inodes if path.suffix == ".seg"), reverse=True)


def opened(disk: MemoryDisk) -> list[LogEntry] | None:
    """The entries, or None when refused, which must leave the disk as it was."""
    before = disk.contents()
    try:
        journal = Journal.open(DIRECTORY, disk=disk, segment_bytes=SMALL)
    except JournalDamaged as damage:
        assert "Nothing was changed" in str(damage)
        assert str(damage.path) in str(damage)
        assert disk.contents() == before
        return None
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (2, "n2")
    return journal[:]


@pytest.mark.parametrize("synced", [False, True])
def test_a_flipped_bit_is_never_taken_for_data(synced: bool) -> None:
    disk, states = small_journal(synced=synced)
    whole = disk.contents()
    newest = newest_first(disk)[0]
    cuts = 0
    for path, content in whole.items():
        for bit in range(len(content) * 8):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            got = opened(MemoryDisk.holding({**whole, path: bytes(flipped)}))
            if path == MARK:
                assert got == states[-1], "the mark is only advice"
            elif path == newest and not synced and got is not None:
                assert got in states[:-1], "what was never synced can look torn"
                cuts += 1
            else:
                assert got is None, f"bit {bit} of {path} went unnoticed"
    assert (cuts > 0) is not synced, "what is known to be synced is never cut"


@pytest.mark.parametrize("synced", [False, True])
def test_a_file_cut_anywhere_is_a_torn_tail_or_refused(synced: bool) -> None:
    disk, states = small_journal(synced=synced)
    whole = disk.contents()
    newest = newest_first(disk)[0]
    for path, content in whole.items():
        for size in range(len(content)):
            got = opened(MemoryDisk.holding({**whole, path: content[:size]}))
            if path == MARK:
                assert got == states[-1]
            elif path == newest and not synced and size >= SEGMENT_HEADER.size:
                assert got in states[:-1]
            else:
                assert got is None, f"{path} cut at {size} went unnoticed"


def test_a_missing_file_is_refused() -> None:
    for synced in (False, True):
        disk, states = small_journal(synced=synced)
        whole = disk.contents()
        for path in whole:
            got = opened(MemoryDisk.holding({other: data for other, data in whole.items() if other != path}))
            if path == MARK:
                assert got == states[-1]
            elif path == newest_first(disk)[0] and not synced:
                # Nothing but the mark knows of it; the mark says so from the first sync on.
                assert got is None or got == states[0]
            else:
                assert got is None, f"{path} was not missed"


def test_an_older_copy_of_a_file_is_refused() -> None:
    disk = MemoryDisk()
    journal = Journal.open(DIRECTORY, disk=disk, segment_bytes=SMALL)
    journal.setCurrentTerm(1, "n1")
    journal.add(b"one", 1, 1)
    journal.sync()
    older = disk.contents()
    journal.setCurrentTerm(2, "n2")
    for index in range(2, 12):
        journal.add(b"entry-%d" % index, index, 2)
    journal.sync()
    whole = disk.contents()
    first = newest_first(disk)[-1]
    for path in (first, VOTE):
        assert opened(MemoryDisk.holding({**whole, path: older[path]})) is None


def test_a_torn_tail_is_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    disk, states = small_journal(synced=False)
    newest = newest_first(disk)[0]
    del disk.inodes[newest].data[-3:]
    size = len(disk.inodes[newest].data)
    assert opened(disk) == states[-2]
    cut = len(disk.inodes[newest].data)
    assert cut < size
    assert f"action=journal_cut file={newest} offset={cut} bytes={size - cut}" in caplog.text
    assert opened(disk) == states[-2]


def test_zeros_after_the_end_are_a_torn_tail() -> None:
    disk, states = small_journal(synced=True)
    disk.inodes[newest_first(disk)[0]].data.extend(bytes(4096))
    assert opened(disk) == states[-1]


def test_records_inside_a_payload_are_not_taken_for_records() -> None:
    """A client may send bytes that look like a record; a torn append of them is still a torn append."""
    disk = MemoryDisk()
    journal = Journal.open(DIRECTORY, disk=disk)
    journal.setCurrentTerm(2, "n2")
    journal.add(b"first", 1, 2)
    journal.flush()
    record = disk.contents()[newest_first(disk)[0]][SEGMENT_HEADER.size :]
    assert record.startswith(RECORD_MAGIC)
    journal.add(record * 50, 2, 2)
    journal.flush()
    copy = disk.after_kill()
    del copy.inodes[newest_first(copy)[0]].data[-1:]
    assert opened(copy) == [(b"first", 1, 2)]


def test_two_directories_mixed_are_refused() -> None:
    disk, _ = small_journal(synced=True)
    other = MemoryDisk()
    other._random.seed(99)
    journal = Journal.open(DIRECTORY, disk=other, segment_bytes=SMALL)
    journal.setCurrentTerm(2, "n2")
    for index in range(1, 12):
        journal.add(b"entry-%d" % index, index, 2)
    journal.flush()
    whole, foreign = disk.contents(), other.contents()
    for path in newest_first(disk):
        assert opened(MemoryDisk.holding({**whole, path: foreign[path]})) is None


def test_a_snapshot_without_its_journal_is_refused() -> None:
    base = Base(5, 1, 1, b"entry-5")
    with pytest.raises(JournalDamaged, match="no journal"):
        Journal.open(DIRECTORY, snapshot=base, disk=MemoryDisk())
    disk, _ = small_journal(synced=True)
    with pytest.raises(JournalDamaged, match="the vote is of term 2, the snapshot of term 3"):
        Journal.open(DIRECTORY, snapshot=Base(50, 3, 1, b""), disk=disk)


def test_a_journal_of_a_newer_format_is_refused() -> None:
    disk, _ = small_journal(synced=True)
    content = disk.inodes[newest_first(disk)[0]].data
    content[8] = 3
    content[SEGMENT_HEADER.size - 4 : SEGMENT_HEADER.size] = crc32(content[: SEGMENT_HEADER.size - 4]).to_bytes(
        4, "little"
    )
    with pytest.raises(JournalDamaged, match="format 3; this version reads 2"):
        Journal.open(DIRECTORY, disk=disk)


def batches(sizes: list[int], *, payload: int = 40) -> tuple[MemoryDisk, list[int]]:
    """Batches of so many entries, each synced but the last; the disk, and where each batch begins."""
    disk = MemoryDisk()
    journal = Journal.open(DIRECTORY, disk=disk)
    journal.setCurrentTerm(2, "n2")
    starts, index = [], 0
    for size in sizes:
        starts.append(len(disk.contents()[newest_first(disk)[0]]))
        for _ in range(size):
            index += 1
            journal.add(b"%d" % index * payload, index, 2)
        if len(starts) < len(sizes):
            journal.sync()
        else:
            journal.flush()
    return disk, starts


def test_a_later_record_that_states_it_proves_what_was_synced() -> None:
    disk, starts = batches([3, 3, 3])
    path = newest_first(disk)[0]
    whole = disk.contents()
    for offset in range(SEGMENT_HEADER.size, len(whole[path])):
        damaged = bytearray(whole[path])
        damaged[offset] ^= 0x10
        got = opened(MemoryDisk.holding({**whole, path: bytes(damaged)}))
        if offset < starts[2]:
            assert got is None, f"offset {offset} was synced, and the mark, which was never written, is not needed"
        else:
            assert got is not None
            assert 6 <= len(got) < 9


@pytest.mark.parametrize("seed", range(60))
def test_a_power_cut_may_keep_any_sectors_of_what_was_not_synced(seed: int) -> None:
    chance = random.Random(seed)
    disk, _starts = batches([4, 4, chance.randint(1, 30)], payload=chance.choice([1, 60, 400]))
    before = Journal.open(DIRECTORY, disk=disk.after_kill())[:]
    got = opened(disk.after_power_cut(chance))
    assert got is not None
    assert len(got) >= 8
    assert got == before[: len(got)]
