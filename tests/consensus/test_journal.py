"""The journal as the log uses it, on a real directory."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pysyncobj.journal
import pytest

from ringraft.consensus.replog.files import LOCAL_DISK, DiskFailed
from ringraft.consensus.replog.journal import STAND_IN, Journal, JournalDamaged
from ringraft.consensus.replog.recovery import oldest_index
from ringraft.consensus.replog.snapshot import Base
from tests.consensus.memory_disk import MemoryDisk

SMALL = 256
"""Bytes of a segment that a few entries fill."""


def command(index: int) -> bytes:
    return b"command %d" % index


def filled(directory: Path, count: int, *, term: int = 1, segment_bytes: int = SMALL) -> Journal:
    journal = Journal.open(directory, segment_bytes=segment_bytes)
    journal.setCurrentTerm(term, None)
    for index in range(1, count + 1):
        journal.add(command(index), index, term)
    journal.flush()
    return journal


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.seg"))


def test_journal_has_every_method_that_the_library_calls(tmp_path: Path) -> None:
    expected = {name for name in vars(pysyncobj.journal.Journal) if not name.startswith("__") or name == "__len__"}
    assert expected - set(dir(Journal)) == set()


def test_what_was_added_is_there_after_reopening(tmp_path: Path) -> None:
    journal = filled(tmp_path, 20)
    journal.close()
    again = Journal.open(tmp_path, segment_bytes=SMALL)
    assert again[:] == [(command(index), index, 1) for index in range(1, 21)]
    assert (again.first_index, again.last_index, len(again)) == (1, 20, 20)
    assert again[-1] == (command(20), 20, 1)
    assert again[3:5] == [(command(4), 4, 1), (command(5), 5, 1)]
    assert again.entry(7) == (command(7), 7, 1)
    assert again.entry(21) is None
    assert again.synced_index == 20, "what is relied upon after a start is made durable first"
    assert len(segments(tmp_path)) > 3
    again.add(command(21), 21, 1)
    again.close()


def test_entries_of_any_bytes_and_size_come_back(tmp_path: Path) -> None:
    payloads = [b"", b"\x00", b"\xd5\x4a" * 40, bytes(range(256)) * 4096]
    journal = Journal.open(tmp_path)
    journal.setCurrentTerm(1, None)
    for index, payload in enumerate(payloads, 1):
        journal.add(payload, index, 1)
    journal.close()
    again = Journal.open(tmp_path)
    assert [entry[0] for entry in again[:]] == payloads
    again.close()


def test_truncated_entries_stay_away_and_their_places_are_taken(tmp_path: Path) -> None:
    journal = filled(tmp_path, 12)
    journal.setCurrentTerm(2, None)
    journal.deleteEntriesFrom(4)
    assert journal.last_index == 4
    journal.add(b"new", 5, 2)
    journal.close()
    again = Journal.open(tmp_path, segment_bytes=SMALL)
    assert [(index, term) for _, index, term in again[:]] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2)]
    again.close()


def test_committed_entries_are_never_truncated(tmp_path: Path) -> None:
    journal = filled(tmp_path, 5)
    journal.setRaftCommitIndex(3)
    with pytest.raises(AssertionError, match="entry 3 is committed"):
        journal.deleteEntriesFrom(2)
    journal.deleteEntriesFrom(3)
    assert journal.last_index == 3
    with pytest.raises(AssertionError, match="never cleared"):
        journal.clear()
    journal.close()


def test_entries_follow_each_other_and_the_term(tmp_path: Path) -> None:
    journal = filled(tmp_path, 2)
    with pytest.raises(AssertionError, match="cannot follow"):
        journal.add(b"", 4, 1)
    with pytest.raises(AssertionError, match="beyond the present one"):
        journal.add(b"", 3, 2)
    journal.close()


def test_term_and_vote_are_kept_and_never_go_back(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (0, None)
    journal.setCurrentTerm(4, None)
    journal.setCurrentTerm(4, "knoten-ä")
    journal.setCurrentTerm(4, "knoten-ä")
    with pytest.raises(AssertionError, match="second vote in term 4"):
        journal.setCurrentTerm(4, "other")
    with pytest.raises(AssertionError, match="went back"):
        journal.setCurrentTerm(3, None)
    journal.flush()
    journal._mark_file = None  # as if killed: nothing is closed or synced
    again = Journal.open(tmp_path)
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (4, "knoten-ä")
    again.setCurrentTerm(5, "")
    again.close()
    last = Journal.open(tmp_path)
    assert (last.getCurrentTerm(), last.getVotedForNodeId()) == (5, "")
    last.close()


def test_commit_index_is_kept_lazily_and_never_goes_back(tmp_path: Path) -> None:
    journal = filled(tmp_path, 9)
    assert journal.getRaftCommitIndex() == 1
    journal.setRaftCommitIndex(7)
    journal.setRaftCommitIndex(5)
    assert journal.getRaftCommitIndex() == 7
    journal.setRaftCommitIndex(100)
    assert journal.getRaftCommitIndex() == 9
    journal.sync()
    journal.onOneSecondTimer()
    journal.sync()
    again = Journal.open(tmp_path, segment_bytes=SMALL)
    assert again.getRaftCommitIndex() == 9
    again.close()


def test_compaction_keeps_two_entries_in_memory_and_one_snapshot_more_on_disk(tmp_path: Path) -> None:
    journal = filled(tmp_path, 60)
    journal.setRaftCommitIndex(60)
    before = segments(tmp_path)
    journal.compact_to(30)
    assert [entry[1] for entry in journal[:2]] == [29, 30]
    assert segments(tmp_path) == before, "the snapshot before, none at all, may still be needed"
    journal.compact_to(50)
    assert journal.first_index == 49
    journal.sync()
    oldest = oldest_index(tmp_path, disk=LOCAL_DISK)
    assert oldest is not None
    assert 1 < oldest <= 29
    journal.close()

    again = Journal.open(tmp_path, snapshot=Base(50, 1, 1, command(50)), segment_bytes=SMALL)
    assert again[:] == [(command(index), index, 1) for index in range(49, 61)]
    assert again.getRaftCommitIndex() == 60
    again.close()
    older = Journal.open(tmp_path, snapshot=Base(30, 1, 1, command(30)), segment_bytes=SMALL)
    assert older.first_index == 29
    older.close()
    with pytest.raises(JournalDamaged, match="but there is no snapshot"):
        Journal.open(tmp_path)


def test_segments_go_one_by_one_so_that_a_power_cut_leaves_no_gap() -> None:
    disk = MemoryDisk()
    journal = Journal.open(Path("/j"), disk=disk, segment_bytes=SMALL)
    journal.setCurrentTerm(1, None)
    for index in range(1, 61):
        journal.add(command(index), index, 1)
    journal.setRaftCommitIndex(60)
    journal.compact_to(40)
    journal.sync()
    disk.log.clear()
    journal.compact_to(50)
    journal.flush()
    assert len(disk.log) > 4
    assert disk.log == ["remove", "sync_directory"] * (len(disk.log) // 2)


def test_deleting_to_a_position_keeps_the_entry_there(tmp_path: Path) -> None:
    journal = filled(tmp_path, 10)
    journal.setRaftCommitIndex(10)
    journal.deleteEntriesTo(8)
    assert [entry[1] for entry in journal[:]] == [9, 10]
    with pytest.raises(AssertionError, match="ahead of the commit index"):
        journal.deleteEntriesTo(3)
    journal.close()


def test_truncation_behind_a_dropped_segment_reads_back(tmp_path: Path) -> None:
    journal = filled(tmp_path, 20)
    journal.setCurrentTerm(2, None)
    boundary = journal._tape._segments[-1].header.base
    journal.deleteEntriesFrom(boundary - 3)
    for index in range(boundary - 2, boundary + 30):
        journal.add(b"second", index, 2)
    journal.setRaftCommitIndex(journal.last_index)
    journal.compact_to(boundary + 2)
    journal.compact_to(boundary + 20)
    expected = journal[:]
    journal.close()
    base = Base(boundary + 20, 2, 2, b"second")
    again = Journal.open(tmp_path, snapshot=base, segment_bytes=SMALL)
    assert again[:] == expected
    again.close()


def test_installing_a_snapshot_ahead_begins_the_log_anew(tmp_path: Path) -> None:
    journal = filled(tmp_path, 12)
    base = Base(100, 1, 1, b"the hundredth", received=True)
    assert journal.install(base) is False
    assert journal[:] == [(STAND_IN, 99, 1), (b"the hundredth", 100, 1)]
    assert journal.getRaftCommitIndex() == 100
    journal.sync()
    assert len(segments(tmp_path)) == 1
    assert journal.install(base) is True, "a second time there is nothing to do"
    journal.add(b"next", 101, 1)
    journal.close()
    again = Journal.open(tmp_path, snapshot=base)
    assert again[1:] == [(b"the hundredth", 100, 1), (b"next", 101, 1)]
    again.close()


def test_installing_a_snapshot_keeps_entries_that_continue_it(tmp_path: Path) -> None:
    journal = filled(tmp_path, 12)
    assert journal.install(Base(8, 1, 1, command(8), received=True)) is True
    assert journal[:] == [(command(index), index, 1) for index in range(7, 13)]
    journal.close()


def test_installing_a_snapshot_drops_entries_that_contradict_it(tmp_path: Path) -> None:
    journal = filled(tmp_path, 12)
    journal.setCurrentTerm(3, None)
    assert journal.install(Base(8, 2, 1, b"other", received=True)) is False
    assert [entry[1] for entry in journal[:]] == [7, 8]
    journal.close()


def test_a_snapshot_that_contradicts_committed_entries_is_refused(tmp_path: Path) -> None:
    journal = filled(tmp_path, 12)
    journal.setCurrentTerm(3, None)
    journal.setRaftCommitIndex(9)
    with pytest.raises(JournalDamaged, match="different histories"):
        journal.install(Base(8, 2, 1, b"other", received=True))
    with pytest.raises(JournalDamaged, match="different histories"):
        journal.install(Base(11, 1, 0, b"other", received=True))
    with pytest.raises(JournalDamaged, match="different histories"):
        journal.install(Base(11, 2, 1, b"other", received=False))
    assert journal.last_index == 12
    journal.close()


def test_sync_covers_what_was_written_before_it(tmp_path: Path) -> None:
    journal = filled(tmp_path, 5, segment_bytes=1 << 20)
    assert journal.synced_index == 0
    assert journal.synced < journal.written
    covered = journal.sync()
    assert covered == journal.written == journal.synced
    assert journal.synced_index == 5
    journal.deleteEntriesFrom(3)
    assert journal.synced_index == 3
    journal.add(b"", 4, 1)
    assert journal.synced_index == 3
    journal.close()


def test_a_sync_says_nothing_about_entries_written_during_it() -> None:
    disk = MemoryDisk()
    journal = Journal.open(Path("/j"), disk=disk)
    journal.setCurrentTerm(1, None)
    for index in range(1, 11):
        journal.add(b"old", index, 1)
    entered, leave = threading.Event(), threading.Event()
    step = disk.step

    def slow(name: str, act: object, torn: object = None) -> None:
        if name == "sync" and threading.current_thread() is not threading.main_thread():
            entered.set()
            assert leave.wait(10)
        step(name, act, torn)

    disk.step = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=journal.sync)
    thread.start()
    assert entered.wait(10)
    journal.deleteEntriesFrom(7)
    for index in range(8, 13):
        journal.add(b"new", index, 1)
    journal.install(Base(50, 1, 1, b"", received=True))
    leave.set()
    thread.join(10)
    assert journal.synced_index == 7
    assert journal.synced < journal.written
    journal.sync()
    assert journal.synced_index == 50
    journal.add(b"", 51, 1)
    assert journal.synced_index == 50
    journal.close()


def test_a_sync_in_a_thread_does_not_cover_a_replaced_tail() -> None:
    disk = MemoryDisk()
    journal = Journal.open(Path("/j"), disk=disk)
    journal.setCurrentTerm(1, None)
    for index in range(1, 11):
        journal.add(b"old", index, 1)
    step = disk.step

    def meanwhile(name: str, act: object, torn: object = None) -> None:
        step(name, act, torn)
        if name == "sync":
            disk.step = step  # type: ignore[method-assign]
            journal.deleteEntriesFrom(7)
            for index in range(8, 13):
                journal.add(b"new", index, 1)

    disk.step = meanwhile  # type: ignore[method-assign]
    journal.sync()
    assert journal.synced_index == 7
    journal.sync()
    assert journal.synced_index == 12
    journal.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_journal_whose_disk_failed_takes_nothing_more(code: int) -> None:
    disk = MemoryDisk()
    journal = Journal.open(Path("/j"), disk=disk)
    journal.setCurrentTerm(1, None)
    journal.add(b"kept", 1, 1)
    journal.sync()
    disk.fail_at, disk.fail_errno = disk.operations + 1, code
    journal.add(b"lost, and torn", 2, 1)
    with pytest.raises(DiskFailed, match="append failed"):
        journal.sync()
    assert journal.synced_index == 1
    for act in (
        lambda: journal.add(b"", 3, 1),
        lambda: journal.setCurrentTerm(2, None),
        lambda: journal.deleteEntriesFrom(0),
        lambda: journal.install(Base(9, 1, 1, b"")),
        lambda: journal.compact_to(1),
        journal.sync,
        journal.flush,
        journal.onOneSecondTimer,
    ):
        with pytest.raises(DiskFailed):
            act()
    journal.close()
    again = Journal.open(Path("/j"), disk=disk.after_kill())
    assert again[:] == [(b"kept", 1, 1)]


@pytest.mark.parametrize("operation", ["create", "reserve", "pwrite", "sync", "replace", "sync_directory"])
def test_every_failing_operation_ends_the_journal(operation: str) -> None:
    def scenario(disk: MemoryDisk) -> Journal:
        journal = Journal.open(Path("/j"), disk=disk, segment_bytes=SMALL)
        journal.setCurrentTerm(1, None)
        journal.add(b"", 1, 1)
        journal.sync()
        disk.log.clear()
        journal.setCurrentTerm(2, "a")
        for index in range(2, 12):
            journal.add(b"", index, 2)
        return journal

    clean = MemoryDisk()
    scenario(clean).sync()
    assert operation in clean.log
    for position in [at for at, name in enumerate(clean.log, 1) if name == operation]:
        disk = MemoryDisk()
        journal = scenario(disk)
        disk.fail_at = disk.operations + position
        with pytest.raises(DiskFailed):
            journal.sync()
        for act in (journal.sync, journal.flush, lambda journal=journal: journal.add(b"", 12, 2)):
            with pytest.raises(DiskFailed):
                act()
        assert journal.synced_index == 1
        assert journal.synced < journal.written


def test_a_mark_that_cannot_be_written_ends_the_journal() -> None:
    disk = MemoryDisk()
    journal = Journal.open(Path("/j"), disk=disk)
    journal.setCurrentTerm(1, None)
    journal.add(b"", 1, 1)
    journal.sync()
    journal.setRaftCommitIndex(1)
    journal.onOneSecondTimer()
    disk.fail_at = disk.operations + 1
    with pytest.raises(DiskFailed, match="write the mark"):
        journal.sync()
    with pytest.raises(DiskFailed):
        journal.onOneSecondTimer()


def test_a_file_system_without_room_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where the directory should be")
    with pytest.raises(DiskFailed, match="blocked"):
        Journal.open(tmp_path / "blocked" / "journal")
