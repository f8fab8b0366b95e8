"""A restored directory begins another life of the same state."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from ringraft.consensus.opening import LOG_DIRECTORY, SNAPSHOT_DIRECTORY
from ringraft.consensus.replog.journal import Journal
from ringraft.consensus.replog.snapshot import SnapshotStore
from ringraft.rescue.file import FORMAT_VERSION, BackupDamaged, Head, Writer
from ringraft.rescue.founding import INDEX_MAX, RescueRefused, refound
from ringraft.rescue.restore import Restored, restore
from ringraft.state import invariants
from ringraft.state.commands import Add, Begin, Claim, Complete, RegisterNode
from ringraft.state.machine import StateMachine
from ringraft.state.model import TOKENS_PER_ENTRY, Command, Done, Entry, Epoch, NewItem, Rejected
from ringraft.state.records import VoterRecord

VOTERS = {"n1": "127.0.0.1:1", "n2": "127.0.0.1:2", "n3": "127.0.0.1:3"}
GAP = 1000


def entry(machine: StateMachine, *ops: object, epoch: Epoch) -> Entry:
    return Entry(machine.log_ms + 10, 1_700_000_000_000, epoch, tuple(Command(op) for op in ops))


def worked() -> StateMachine:
    """A state with an item that is leased, one that waits and one that is final."""
    machine = StateMachine(strict=True)
    epoch = Epoch(0, 4)
    machine.apply(1, entry(machine, Begin("n2"), epoch=epoch))
    machine.apply(2, entry(machine, RegisterNode("n1", 7, (), None, b"\x80", (), "1"), epoch=epoch))
    items = [Add(NewItem("selfplay", b"\x80", work_id=name)) for name in "abc"]
    machine.apply(3, entry(machine, *items, epoch=epoch))
    machine.apply(4, entry(machine, Claim("w1", None, 2, None, b"\x80"), epoch=epoch))
    machine.apply(5, entry(machine, Complete("b", 4 * TOKENS_PER_ENTRY + 1), epoch=epoch))
    return machine


def file_of(machine: StateMachine, path: Path) -> Path:
    writer = Writer()
    epoch = machine.epoch
    head = Head(
        FORMAT_VERSION, "0.1.0", "c-1", "n2", machine.index, machine.log_ms, machine.wall_ms, 0, epoch.generation,
        epoch.number, machine.digest(), 3, False,
    )  # fmt: skip
    path.write_bytes(writer.head(head) + b"".join(writer.state(c) for c in machine.snapshot()) + writer.end())
    return path


def restored(path: Path, data_dir: Path, node_id: str = "n1", **options: object) -> Restored:
    arguments = {"voters": VOTERS, "cluster_id": None, "gap": GAP} | options
    return restore(path, data_dir=data_dir, node_id=node_id, **arguments)  # type: ignore[arg-type]


def state_in(data_dir: Path) -> StateMachine:
    snapshot = SnapshotStore(data_dir / SNAPSHOT_DIRECTORY).latest()
    assert snapshot is not None
    journal = Journal.open(data_dir / LOG_DIRECTORY, snapshot=snapshot.base)
    assert (journal.first_index, journal.last_index) == (snapshot.index - 1, snapshot.index)
    journal.close()
    return StateMachine.restore(snapshot.chunks(), strict=True)


def test_every_voter_begins_with_the_same_state_and_a_name_of_its_own(tmp_path: Path) -> None:
    path = file_of(worked(), tmp_path / "b")
    done = [restored(path, tmp_path / name, name) for name in VOTERS]
    machines = [state_in(tmp_path / name) for name in VOTERS]
    assert len({machine.digest() for machine in machines}) == 1
    assert {one.formation_id for one in done} == {machines[0].tables.formation_id}
    identities = [json.loads((tmp_path / name / "cluster.json").read_text()) for name in VOTERS]
    assert [identity["node_id"] for identity in identities] == list(VOTERS)
    assert len({identity["data_id"] for identity in identities}) == 3
    assert {identity["cluster_id"] for identity in identities} == {"c-1"}
    assert identities[0]["incarnation"] == 8, "above the one that the state knows"
    assert {record.node_id: record.address for record in machines[0].tables.voters.values()} == VOTERS
    assert stat.S_IMODE((tmp_path / "n1").stat().st_mode) == 0o700
    invariants.check(machines[0])


def test_items_stay_and_the_generation_keeps_the_old_life_out(tmp_path: Path) -> None:
    before = worked()
    restored(file_of(before, tmp_path / "b"), tmp_path / "n1")
    machine = state_in(tmp_path / "n1")
    assert {name: item.state for name, item in machine.tables.items.items()} == {
        name: item.state for name, item in before.tables.items.items()
    }
    assert (machine.epoch, machine.index) == (Epoch(1, 0), before.index + GAP)
    late = machine.apply(machine.index + 1, entry(machine, Begin("n9"), epoch=Epoch(0, 99)))
    assert isinstance(late.outcomes[0], Rejected) and late.outcomes[0].code == "stale_epoch"
    begun = machine.apply(machine.index + 1, entry(machine, Begin("n1"), epoch=Epoch(1, 5)))
    assert isinstance(begun.outcomes[0], Done)


def test_the_holder_of_a_lease_may_hand_in_and_no_lost_grant_has_a_token_of_the_new_life(tmp_path: Path) -> None:
    before = worked()
    restored(file_of(before, tmp_path / "b"), tmp_path / "n1")
    lost = before.apply(6, entry(before, Claim("w2", None, 1, None, b"\x80"), epoch=Epoch(0, 4)))
    assert isinstance(lost.outcomes[0], Done) and lost.outcomes[0].value["claimed"] == ["c"]
    machine, epoch = state_in(tmp_path / "n1"), Epoch(1, 5)
    machine.apply(machine.index + 1, entry(machine, Begin("n1"), epoch=epoch))
    held = machine.apply(machine.index + 1, entry(machine, Complete("a", 4 * TOKENS_PER_ENTRY), epoch=epoch))
    assert isinstance(held.outcomes[0], Done)
    # The same calls in the same order as in the old life: the token is another one all the same.
    again = machine.apply(machine.index + 1, entry(machine, Claim("w3", None, 1, None, b"\x80"), epoch=epoch))
    assert isinstance(again.outcomes[0], Done) and again.outcomes[0].value["claimed"] == ["c"]
    stale = machine.apply(machine.index + 1, entry(machine, Complete("c", 6 * TOKENS_PER_ENTRY), epoch=epoch))
    assert isinstance(stale.outcomes[0], Rejected) and stale.outcomes[0].code == "stale_token"


@pytest.mark.parametrize("what", ["file", "data", "left over"])
def test_a_directory_in_use_is_left_alone(tmp_path: Path, what: str) -> None:
    path = file_of(worked(), tmp_path / "b")
    target = tmp_path / "n1"
    if what == "file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / ("log" if what == "left over" else "data.txt")).write_text("precious")
    with pytest.raises(RescueRefused, match=r"no directory|not empty"):
        restored(path, target)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file() and p != path] == ["precious"]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "n1").mkdir()
    restored(file_of(worked(), tmp_path / "b"), tmp_path / "n1")
    assert (tmp_path / "n1" / "cluster.json").exists()


def test_a_damaged_file_leaves_nothing_behind(tmp_path: Path) -> None:
    path = file_of(worked(), tmp_path / "b")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BackupDamaged):
        restored(path, tmp_path / "n1")
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    path = file_of(worked(), tmp_path / "b")
    with pytest.raises(RescueRefused, match="n9 is not among the voters"):
        restored(path, tmp_path / "n9", "n9")
    with pytest.raises(RescueRefused, match="smaller --index-gap"):
        restored(path, tmp_path / "n1", gap=INDEX_MAX)
    machine = worked()
    with pytest.raises(RescueRefused, match="at least one voter"):
        refound(machine, gap=1, voters=[VoterRecord("n1", "a:1")], formation_id="f")
