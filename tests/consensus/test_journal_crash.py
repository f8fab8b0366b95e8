"""The process or the power dies at every single operation of a life; what starts again is never wrong.

One scripted life goes through all that a log does: appends over several segments, votes, conflicts,
own snapshots with compaction, snapshots from a leader ahead of the log, inside it and against it.
It is ended at each disk operation in turn, before it, after it and, for writes, half way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ringraft.consensus.replog.journal import Journal
from ringraft.consensus.replog.recovery import LogEntry, oldest_index
from ringraft.consensus.replog.snapshot import SnapshotStore, SnapshotWriter
from tests.consensus.memory_disk import DEATHS, Died, MemoryDisk

JOURNAL, SNAPSHOTS = Path("/data/journal"), Path("/data/snapshots")
SEGMENT = 260


@dataclass
class State:
    """What the log is, as far as anybody was told."""

    vote: tuple[int, str | None] = (0, None)
    entries: list[LogEntry] = field(default_factory=list)
    snapshot: int = 0

    def of(self, index: int) -> LogEntry | None:
        return next((entry for entry in self.entries if entry[1] == index), None)

    @property
    def last(self) -> int:
        return self.entries[-1][1] if self.entries else 0


class Life:
    """The script; ``states[k]`` is the state after k steps, ``synced`` the newest of them known to be synced."""

    def __init__(self, disk: MemoryDisk) -> None:
        self.disk = disk
        self.states = [State()]
        self.synced = 0
        self.next: State | None = None

    def boot(self) -> Journal:
        store = SnapshotStore(SNAPSHOTS, disk=self.disk)
        latest = store.latest(reach=oldest_index(JOURNAL, disk=self.disk))
        base = latest.base if latest is not None else None
        return Journal.open(JOURNAL, snapshot=base, disk=self.disk, segment_bytes=SEGMENT)

    def step(self, act: Callable[[], object], **change: object) -> None:
        now = self.states[-1]
        self.next = State(
            vote=change.get("vote", now.vote),  # type: ignore[arg-type]
            entries=change.get("entries", now.entries),  # type: ignore[arg-type]
            snapshot=change.get("snapshot", now.snapshot),  # type: ignore[arg-type]
        )
        act()
        self.journal.flush()
        self.states.append(self.next)
        self.next = None

    def live(self) -> None:
        self.journal = journal = self.boot()
        store = SnapshotStore(SNAPSHOTS, disk=self.disk)

        def vote(term: int, name: str | None) -> None:
            self.step(lambda: journal.setCurrentTerm(term, name), vote=(term, name))

        def add(text: bytes, count: int) -> None:
            for _ in range(count):
                entry = (text, journal.last_index + 1, journal.getCurrentTerm())
                self.step(lambda entry=entry: journal.add(*entry), entries=[*self.states[-1].entries, entry])  # type: ignore[misc]

        def truncate(index: int) -> None:
            kept = [entry for entry in self.states[-1].entries if entry[1] <= index]
            self.step(lambda: journal.deleteEntriesFrom(index + 1 - journal.first_index), entries=kept)

        def sync() -> None:
            self.step(journal.sync)
            self.synced = len(self.states) - 1

        def commit(writer: SnapshotWriter) -> None:
            writer.write(b"state")
            writer.commit()

        def own_snapshot(index: int) -> None:
            journal.setRaftCommitIndex(index)
            entry, before = self.states[-1].of(index), self.states[-1].of(index - 1)
            assert entry is not None
            assert before is not None
            sync()
            writer = store.begin(index, entry[2], before[2], b"", command=entry[0])
            self.step(lambda: commit(writer), snapshot=index)
            self.step(lambda: journal.compact_to(index))

        def install(index: int, term: int, prev_term: int, *, keeps: bool) -> None:
            text = b"installed %d" % index
            if keeps:
                entry = self.states[-1].of(index)
                assert entry is not None
                text, entries = entry[0], self.states[-1].entries
            else:
                entries = [(b"\x01", index - 1, prev_term), (text, index, term)]
            writer = store.receive(index, term, prev_term, b"", command=text)

            def act() -> None:
                commit(writer)
                assert journal.install(writer._base) is keeps

            self.step(act, entries=entries, snapshot=index)
            if not keeps:
                self.synced = len(self.states) - 1

        vote(1, "a")
        add(b"one", 8)
        sync()
        vote(2, None)
        truncate(4)
        vote(2, "b")
        add(b"two", 9)
        journal.onOneSecondTimer()
        own_snapshot(9)
        add(b"more", 6)
        sync()
        own_snapshot(17)
        own_snapshot(18)
        add(b"again", 8)
        journal.onOneSecondTimer()
        install(22, 2, 2, keeps=True)
        add(b"tail", 2)
        vote(4, None)
        install(24, 3, 2, keeps=False)
        add(b"then", 3)
        sync()
        install(60, 4, 3, keeps=False)
        add(b"end", 7)
        own_snapshot(62)
        journal.flush()
        journal.onOneSecondTimer()
        journal.close()


def operations() -> int:
    disk = MemoryDisk()
    life = Life(disk)
    life.live()
    assert {"pwrite", "sync", "replace", "sync_directory", "remove", "create"} <= set(disk.log)
    return disk.operations


OPERATIONS = operations()


def lived(die_at: int, death: str) -> Life:
    disk = MemoryDisk()
    disk.die_at, disk.death = die_at, death
    life = Life(disk)
    with pytest.raises(Died):
        life.live()
    return life


def agrees(journal: Journal, state: State, snapshot: int) -> bool:
    """The journal holds this state's log, from this snapshot on at the latest."""
    if journal.last_index != state.last or journal.first_index > max(1, snapshot - 1):
        return False
    known = [entry for entry in state.entries if entry[1] >= journal.first_index]
    # Where the log began anew in between, the entry before the snapshot's last is a stand-in.
    return all(mine == theirs or (at == 0 and mine[1:] == theirs[1:]) for at, (mine, theirs) in enumerate(
        zip(journal[:], known, strict=True))
    )  # fmt: skip


def goes_on(journal: Journal, disk: MemoryDisk) -> None:
    """What was started again has no leftovers, and can be written and started again."""
    assert not [path for path in disk.inodes if path.suffix == ".tmp"]
    assert len([path for path in disk.inodes if path.suffix == ".seg"]) == len(journal._tape._segments)
    term = journal.getCurrentTerm() + 1
    journal.setCurrentTerm(term, "later")
    for _ in range(6):
        journal.add(b"later", journal.last_index + 1, term)
    journal.flush()
    expected = journal[:]
    life = Life(disk.after_kill())
    again = life.boot()
    assert again[:] == expected
    assert (again.getCurrentTerm(), again.getVotedForNodeId()) == (term, "later")


@pytest.mark.parametrize("death", DEATHS)
def test_killed_at_any_operation_nothing_acknowledged_is_lost(death: str) -> None:
    for die_at in range(1, OPERATIONS + 1):
        life = lived(die_at, death)
        disk = life.disk.after_kill()
        journal = Life(disk).boot()
        told, asked = life.states[-1], life.next or life.states[-1]
        vote = (journal.getCurrentTerm(), journal.getVotedForNodeId())
        assert vote in (told.vote, asked.vote), f"operation {die_at}"
        assert any(agrees(journal, state, state.snapshot) for state in (told, asked)), (
            f"operation {die_at}: {journal[:]}"
        )
        goes_on(journal, disk)


@pytest.mark.parametrize("death", DEATHS)
def test_at_a_power_cut_nothing_synced_is_lost(death: str) -> None:
    for die_at in range(1, OPERATIONS + 1):
        life = lived(die_at, death)
        disk = life.disk.after_power_cut()
        journal = Life(disk).boot()
        told, asked = life.states[-1], life.next or life.states[-1]
        vote = (journal.getCurrentTerm(), journal.getVotedForNodeId())
        assert vote in (told.vote, asked.vote), f"operation {die_at}"
        possible = [*life.states[life.synced :], asked]
        begins_anew = len(journal) == 2 and journal[-1] in (told.of(told.snapshot), asked.of(asked.snapshot))
        assert journal.last_index >= min(state.last for state in possible), f"operation {die_at}"
        assert begins_anew or any(agrees(journal, state, asked.snapshot) for state in possible), (
            f"operation {die_at}: {journal[:]}"
        )
        goes_on(journal, disk)


@pytest.mark.parametrize("death", DEATHS)
def test_killed_while_starting_again_it_starts_the_next_time(death: str) -> None:
    for first in range(2, OPERATIONS + 1, 5):
        life = lived(first, "torn")
        second = 0
        while True:
            second += 1
            disk = life.disk.after_kill()
            disk.die_at, disk.death = second, death
            try:
                Life(disk).boot()
            except Died:
                journal = Life(disk.after_kill()).boot()
                told, asked = life.states[-1], life.next or life.states[-1]
                assert any(agrees(journal, state, state.snapshot) for state in (told, asked)), (
                    f"operations {first}, {second}"
                )
                journal = Life(disk.after_power_cut()).boot()
                assert journal.getCurrentTerm() in (told.vote[0], asked.vote[0])
            else:
                break
        assert second > 3


@pytest.mark.parametrize("power_cut", [False, True])
def test_the_snapshot_before_stands_in_for_a_damaged_one(power_cut: bool) -> None:
    disk = MemoryDisk()
    journal = Life(disk).boot()
    store = SnapshotStore(SNAPSHOTS, disk=disk)
    journal.setCurrentTerm(1, None)
    for index in range(1, 80):
        journal.add(b"entry", index, 1)
        journal.setRaftCommitIndex(index)
        if index % 20 == 0:
            journal.sync()
            store.begin(index, 1, 1, b"", command=b"entry").commit()
            journal.compact_to(index)
    journal.sync()
    assert oldest_index(JOURNAL, disk=disk) not in (None, 1)
    disk = disk.after_power_cut() if power_cut else disk.after_kill()
    disk.inodes[store.path(60)].data[50] ^= 4
    again = Life(disk).boot()
    assert (again.first_index, again.last_index) == (39, 79)


def install_spread_over_time(disk: MemoryDisk, told: list[tuple[str, list[LogEntry]]]) -> None:
    """A leader's snapshot becomes durable; the log goes on as it was for a while, and follows later."""
    journal = Life(disk).boot()
    store = SnapshotStore(SNAPSHOTS, disk=disk)

    def tell(what: str) -> None:
        journal.sync()
        told.append((what, journal[:]))

    def add(text: bytes, count: int) -> None:
        for _ in range(count):
            journal.add(text, journal.last_index + 1, journal.getCurrentTerm())
            tell("old")

    journal.setCurrentTerm(1, "a")
    add(b"one", 9)
    journal.setRaftCommitIndex(6)
    writer = store.receive(30, 1, 1, b"", command=b"installed 30")
    writer.write(b"state")
    writer.commit()
    tell("between")
    add(b"more", 2)
    journal.setCurrentTerm(2, None)
    journal.deleteEntriesFrom(9 - journal.first_index + 1)
    tell("between")
    add(b"two", 3)
    entry = journal.entry(6)
    assert entry is not None
    own = store.begin(6, 1, 1, b"", command=entry[0])
    own.write(b"own state")
    own.commit()
    journal.compact_to(6)
    tell("between")
    add(b"three", 8)
    assert journal.install(store.read(store.path(30)).base) is False
    tell("installed")
    add(b"after", 3)
    journal.close()


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("power", [False, True])
def test_killed_between_a_durable_snapshot_and_the_log_that_follows_it(death: str, power: bool) -> None:
    clean = MemoryDisk()
    install_spread_over_time(clean, [])
    seen = set()
    for die_at in range(1, clean.operations + 1):
        disk = MemoryDisk()
        disk.die_at, disk.death = die_at, death
        told: list[tuple[str, list[LogEntry]]] = [("old", [])]
        with pytest.raises(Died):
            install_spread_over_time(disk, told)
        disk = disk.after_power_cut() if power else disk.after_kill()
        newest = SnapshotStore(SNAPSHOTS, disk=disk).latest(reach=oldest_index(JOURNAL, disk=disk))
        journal = Life(disk).boot()
        what, entries = told[-1]
        if newest is None or newest.index < 30:
            assert what == "old", f"operation {die_at}: the snapshot was durable"
            assert journal[: len(entries)] == entries, f"operation {die_at}"
            seen.add("old")
        else:
            assert journal.first_index == 29
            assert journal.entry(30) == (b"installed 30", 30, 1)
            if what == "installed":
                assert journal.last_index >= entries[-1][1]
            seen.add("installed" if what == "installed" else "between")
        goes_on(journal, disk)
    assert seen == {"old", "between", "installed"}


def test_a_snapshot_renamed_by_a_process_that_died_is_durable_before_the_log_forgets_what_it_covers() -> None:
    disk = MemoryDisk()
    journal = Life(disk).boot()
    journal.setCurrentTerm(1, None)
    for index in range(1, 10):
        journal.add(b"entry", index, 1)
    journal.sync()
    writer = SnapshotStore(SNAPSHOTS, disk=disk).receive(30, 1, 1, b"", command=b"installed 30")
    writer.write(b"state")
    disk.die_at, disk.death = disk.operations + 4, "before"
    with pytest.raises(Died):
        writer.commit()
    assert disk.log[-2:] == ["replace", "sync_directory"]
    disk = disk.after_kill()
    assert Life(disk).boot().first_index == 29, "the log begins anew at the snapshot"
    assert Life(disk.after_power_cut()).boot().first_index == 29


def test_records_that_a_power_cut_left_behind_the_end_of_the_file_never_come_back() -> None:
    """Blocks may reach the medium without the file's new size, and a later size without the blocks under it."""

    def add(journal: Journal, count: int, term: int) -> None:
        for _ in range(count):
            journal.add(b"entry of %d" % term, journal.last_index + 1, term)

    disk = MemoryDisk()
    journal = Journal.open(JOURNAL, disk=disk)
    journal.setCurrentTerm(1, None)
    add(journal, 3, 1)
    journal.sync()
    path = next(path for path in disk.inodes if path.suffix == ".seg")
    add(journal, 2, 1)
    journal.flush()
    behind, size = disk.contents()[path], len(disk.inodes[path].durable)
    disk = disk.after_power_cut()
    assert len(disk.contents()[path]) == size
    disk.log.clear()
    journal = Journal.open(JOURNAL, disk=disk)
    is_freed = "truncate" in disk.log
    journal.setCurrentTerm(2, None)
    add(journal, 1, 2)
    journal.sync()
    synced = disk.contents()[path]
    contents = disk.after_power_cut().contents()
    contents[path] = synced + (bytes(len(behind) - len(synced)) if is_freed else behind[len(synced) :])
    again = Journal.open(JOURNAL, disk=MemoryDisk.holding(contents))
    assert [term for _, _, term in again[:]] == [1, 1, 1, 2]
