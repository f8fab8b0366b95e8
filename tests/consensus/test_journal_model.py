"""Any history of calls, deaths and power cuts, beside a plain list."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringraft.consensus.replog.journal import STAND_IN, Journal
from ringraft.consensus.replog.recovery import LogEntry, oldest_index
from ringraft.consensus.replog.snapshot import SnapshotStore
from tests.consensus.memory_disk import DEATHS, Died, MemoryDisk

JOURNAL, SNAPSHOTS = Path("/data/journal"), Path("/data/snapshots")
commands = st.binary(max_size=60)


class JournalBesideList(RuleBasedStateMachine):
    """``entries`` is the whole log from ``entries[0]`` on; ``synced`` is how long it was at the last sync."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = MemoryDisk()
        self.entries: list[LogEntry] = []
        self.term = 0
        self.voted_for: str | None = None
        self.commit = 0
        self.snapshot = 0
        self.segment_bytes = 300

    @initialize(segment_bytes=st.integers(60, 1200))
    def start(self, segment_bytes: int) -> None:
        self.segment_bytes = segment_bytes
        self.boot()
        self.journal.setCurrentTerm(1, None)
        self.term = 1

    def boot(self) -> None:
        self.store = SnapshotStore(SNAPSHOTS, disk=self.disk)
        latest = self.store.latest(reach=oldest_index(JOURNAL, disk=self.disk))
        base = latest.base if latest is not None else None
        self.journal = Journal.open(JOURNAL, snapshot=base, disk=self.disk, segment_bytes=self.segment_bytes)

    @property
    def last(self) -> int:
        return self.entries[-1][1] if self.entries else 0

    def at(self, index: int) -> LogEntry:
        return self.entries[index - self.entries[0][1]]

    @rule(batch=st.lists(commands, min_size=1, max_size=8))
    def add(self, batch: list[bytes]) -> None:
        for command in batch:
            entry = (command, self.last + 1, self.term)
            self.journal.add(*entry)
            self.entries.append(entry)

    @rule(by=st.integers(1, 3), name=st.sampled_from([None, "a", "b"]))
    def new_term(self, by: int, name: str | None) -> None:
        self.term, self.voted_for = self.term + by, name
        self.journal.setCurrentTerm(self.term, name)

    @precondition(lambda self: self.last > self.commit)
    @rule(data=st.data())
    def conflict(self, data: st.DataObject) -> None:
        keep = data.draw(st.integers(max(self.commit, self.journal.first_index), self.last))
        self.journal.deleteEntriesFrom(keep + 1 - self.journal.first_index)
        self.entries = [entry for entry in self.entries if entry[1] <= keep]

    @precondition(lambda self: self.last > self.commit)
    @rule(data=st.data())
    def advance_commit(self, data: st.DataObject) -> None:
        self.commit = data.draw(st.integers(self.commit, self.last))
        self.journal.setRaftCommitIndex(self.commit)

    @precondition(lambda self: self.commit > max(2, self.snapshot))
    @rule(compacts=st.booleans())
    def own_snapshot(self, compacts: bool) -> None:
        index = self.commit
        # A start may have forgotten it, since it is kept lazily; whoever applied up to here says it again.
        self.journal.setRaftCommitIndex(index)
        command, _, term = self.at(index)
        self.journal.sync()
        self.store.begin(index, term, self.at(index - 1)[2], b"", command=command).commit()
        self.snapshot = index
        if compacts:
            self.journal.compact_to(index)

    @rule(ahead=st.integers(1, 30), command=commands, dies=st.booleans())
    def install_ahead(self, ahead: int, command: bytes, dies: bool) -> None:
        index = max(self.last, 1) + ahead
        self.install(index, self.term, command, dies)
        self.entries = [(STAND_IN, index - 1, self.term), (command, index, self.term)]

    @precondition(lambda self: self.last > max(2, self.commit) and self.last > self.journal.first_index)
    @rule(data=st.data(), dies=st.booleans())
    def install_inside(self, data: st.DataObject, dies: bool) -> None:
        low = max(2, self.commit + 1, self.journal.first_index + 1)
        index = data.draw(st.integers(low, max(low, self.last)))
        if index > self.last:
            return
        command, _, term = self.at(index)
        agrees = data.draw(st.booleans())
        if not agrees:
            self.new_term(1, None)
            term = self.term
        self.install(index, term, command, dies, prev_term=self.at(index - 1)[2])
        if not agrees:
            self.entries = [(STAND_IN, index - 1, self.at(index - 1)[2]), (command, index, term)]

    def install(self, index: int, term: int, command: bytes, dies: bool, prev_term: int | None = None) -> None:
        prev_term = self.term if prev_term is None else prev_term
        self.journal.flush()
        snapshot = self.store.receive(index, term, prev_term, b"", command=command).commit()
        if dies:
            self.disk = self.disk.after_kill()
            self.boot()
        else:
            self.journal.install(snapshot.base)
        self.commit = self.snapshot = index

    @rule()
    def tick(self) -> None:
        self.journal.onOneSecondTimer()

    @rule()
    def close(self) -> None:
        self.journal.close()
        self.boot()

    @rule()
    def sync(self) -> None:
        self.journal.sync()

    @rule()
    def kill(self) -> None:
        self.journal.flush()
        self.disk = self.disk.after_kill()
        self.boot()

    @rule(steps=st.integers(1, 12), death=st.sampled_from(DEATHS), command=commands)
    def kill_while_adding(self, steps: int, death: str, command: bytes) -> None:
        self.journal.flush()
        self.disk.die_at, self.disk.death = self.disk.operations + steps, death
        try:
            while True:
                self.journal.add(command, self.last + 1, self.term)
                self.journal.flush()
                self.entries.append((command, self.last + 1, self.term))
        except Died:
            pass
        self.disk = self.disk.after_kill()
        self.boot()
        if self.journal.last_index == self.last + 1:
            self.entries.append((command, self.last + 1, self.term))

    @rule(batches=st.lists(st.lists(commands, max_size=8), max_size=3), seed=st.none() | st.integers(0, 99))
    def power_cut_after_sync(self, batches: list[list[bytes]], seed: int | None) -> None:
        self.journal.sync()
        synced = self.last
        for batch in batches:
            self.add(batch)
            self.journal.flush()
        self.disk = self.disk.after_power_cut(None if seed is None else random.Random(seed))
        self.boot()
        assert synced <= self.journal.last_index <= self.last
        self.entries = [entry for entry in self.entries if entry[1] <= self.journal.last_index]

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "journal"):
            return
        journal = self.journal
        assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (self.term, self.voted_for)
        assert journal.last_index == self.last
        assert len(journal) == journal.last_index - journal.first_index + 1
        assert journal.first_index <= max(1, self.snapshot - 1)
        expected = self.entries[-len(journal) :] if len(journal) else []
        assert journal[:] == expected
        assert journal.synced_index <= journal.last_index
        assert self.snapshot <= journal.getRaftCommitIndex() <= max(1, self.commit)


JournalBesideList.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
TestJournalBesideList = JournalBesideList.TestCase
