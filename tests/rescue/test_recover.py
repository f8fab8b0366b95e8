"""A recovery that dies half way leaves nothing that a node would start on, and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ringraft.consensus.opening import LOG_DIRECTORY, SNAPSHOT_DIRECTORY
from ringraft.consensus.replog.files import LOCAL_DISK
from ringraft.consensus.replog.journal import Journal
from ringraft.consensus.replog.seat import Seat, Standing, read_seat, write_seat
from ringraft.consensus.replog.snapshot import SnapshotStore
from ringraft.consensus.replog.syncobj import CHANGE, ENTRY
from ringraft.node.identity import DataDirectory, Identity, StartRefused
from ringraft.rescue.founding import RescueRefused
from ringraft.rescue.recover import Found, Stopped
from ringraft.state.codec import encode_entry
from ringraft.state.commands import Add, Begin, FormVoters
from ringraft.state.machine import StateMachine
from ringraft.state.model import Command, Entry, Epoch, NewItem
from ringraft.state.records import VoterRecord

NOOP = b"\x01"


def entry(log_ms: int, *ops: object) -> bytes:
    return encode_entry(Entry(log_ms, 1_700_000_000_000, Epoch(0, 3), tuple(Command(op) for op in ops)))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A stopped voter's: three entries known as committed, two more that may or may not have been acknowledged."""
    path = tmp_path / "n1"
    directory = DataDirectory.open(path)
    directory.save(Identity("c-1", "n1", "d" * 32, 4))
    journal = Journal.open(path / LOG_DIRECTORY)
    journal.setCurrentTerm(5, "n2")
    founders = tuple(VoterRecord(name, f"{name}:1", is_voter=True) for name in ("n1", "n2", "n3"))
    commands = [
        NOOP,
        ENTRY + entry(1, Begin("n2")),
        CHANGE + entry(2, FormVoters("f", founders)),
        ENTRY + entry(3, Add(NewItem("selfplay", b"\x80", work_id="a"))),
        ENTRY + entry(4, Add(NewItem("selfplay", b"\x80", work_id="b"))),
    ]
    for index, command in enumerate(commands, 1):
        journal.add(command, index, 3)
    journal.setRaftCommitIndex(3)
    journal.close()
    write_seat(LOCAL_DISK, path / LOG_DIRECTORY, Seat(Standing.MEMBER, 0, "f"))
    (path / "state.db").write_bytes(b"the archive")
    directory.close()
    return path


def found_in(data_dir: Path) -> Found:
    stopped = Stopped(data_dir)
    stopped.close()
    return stopped.found


def test_it_says_what_is_there_and_what_is_uncertain(data_dir: Path) -> None:
    found = found_in(data_dir)
    assert (found.last_index, found.last_term, found.commit_index, found.term) == (5, 3, 3, 5)
    assert found.uncertain == {"add": 2}
    assert found.voters == ("n1", "n2", "n3")
    assert (found.standing, found.cluster_id, found.items["PENDING"]) == ("member", "c-1", 2)


def test_everything_on_the_disk_is_kept_and_the_node_is_alone(data_dir: Path) -> None:
    stopped = Stopped(data_dir)
    done = stopped.recover(address="10.0.0.1:1", learners={"n2": "10.0.0.2:1"}, gap=1000)
    stopped.close()
    snapshot = SnapshotStore(data_dir / SNAPSHOT_DIRECTORY).latest()
    assert snapshot is not None
    machine = StateMachine.restore(snapshot.chunks())
    assert set(machine.tables.items) == {"a", "b"}
    assert {name: row.is_voter for name, row in machine.tables.voters.items()} == {"n1": True, "n2": False}
    identity = json.loads((data_dir / "cluster.json").read_text())
    assert (identity["cluster_id"], identity["incarnation"]) == ("c-1", 5)
    assert identity["data_id"] == machine.tables.voters["n1"].data_id != "d" * 32
    seat = read_seat(LOCAL_DISK, data_dir / LOG_DIRECTORY)
    assert seat == Seat(Standing.MEMBER, 1005, machine.tables.formation_id)
    assert found_in(data_dir).term == 5, "terms never fall"
    assert (data_dir / "state.db").read_bytes() == b"the archive"
    assert {path.name for path in data_dir.parent.iterdir()} == {"n1", done.kept.name}


@pytest.mark.parametrize("deaths_at", range(1, 6))
def test_a_death_half_way_leaves_what_no_node_starts_on(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, deaths_at: int
) -> None:
    before = {path.relative_to(data_dir): path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
    stopped, moves, rename = Stopped(data_dir), 0, Path.rename

    def dying(self: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves > deaths_at:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying)
    with pytest.raises(KeyboardInterrupt):
        stopped.recover(address="10.0.0.1:1", learners={}, gap=1000)
    stopped.close()
    monkeypatch.undo()
    directory = DataDirectory.open(data_dir)
    with pytest.raises(StartRefused, match="nobody can tell whose it is"):
        directory.identify(node_id="n1", cluster_id=None)
    directory.close()
    with pytest.raises(RescueRefused, match="cut short"):
        Stopped(data_dir)
    (kept,) = data_dir.parent.glob("n1.before-recover-*")
    left = {path.relative_to(data_dir): path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
    aside = {path.relative_to(kept): path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    assert left | aside == left | before, "every old file is in one of the two"


def test_a_disk_that_is_full_changes_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in data_dir.parent.rglob("*") if path.is_file()}
    stopped = Stopped(data_dir)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ringraft.rescue.recover.lay", full)
    with pytest.raises(OSError, match="No space"):
        stopped.recover(address="10.0.0.1:1", learners={}, gap=1000)
    stopped.close()
    assert {path: path.read_bytes() for path in data_dir.parent.rglob("*") if path.is_file()} == before
