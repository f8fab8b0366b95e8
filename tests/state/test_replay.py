"""The state is a function of the log: replayed, encoded, cut by snapshots anywhere, it comes out the same."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringraft.state import commands as ops
from ringraft.state import digest, image, invariants
from ringraft.state.codec import decode_entry, encode_entry
from ringraft.state.image import SLICE_BYTES
from ringraft.state.machine import Restoring, StateMachine
from ringraft.state.model import Command, Entry, Epoch, Key, NewItem
from tests.state.drive import SHORT, WALL_START_MS, entries_of, held_tokens, steps

slow = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
logs = st.lists(steps, min_size=5, max_size=25).map(entries_of)


def run(log: list[Entry]) -> tuple[StateMachine, list[Entry]]:
    """A machine that has seen the log, and the log as it was sent, with tokens that are held."""
    machine, sent = StateMachine(strict=True), []
    for entry in log:
        sent.append(held_tokens(entry, machine))
        machine.apply(machine.index + 1, sent[-1])
        invariants.check(machine)
    return machine, sent


@slow
@given(logs)
def test_replay_of_the_encoded_log_gives_the_same_outcomes_and_digest(log: list[Entry]) -> None:
    machine, sent = run(log)
    first, second = StateMachine(strict=True), StateMachine()
    for index, entry in enumerate(sent, 1):
        copy = decode_entry(encode_entry(entry))
        assert copy == entry
        assert first.apply(index, copy) == second.apply(index, entry)
        assert first.digest() == second.digest()
    assert first.digest() == machine.digest()
    assert second.alarms == 0


@slow
@given(logs, st.sampled_from([0, 1, 3]))
def test_when_changes_are_hashed_makes_no_difference(log: list[Entry], noted_max: int) -> None:
    machine, sent = run(log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "NOTED_MAX", noted_max)
        other = StateMachine(strict=True)
        for index, entry in enumerate(sent, 1):
            other.apply(index, entry)
    asked, packed = StateMachine(strict=True), StateMachine(strict=True)
    for index, entry in enumerate(sent, 1):
        asked.apply(index, entry)
        asked.digest()
        before = list(packed.tables.items.values())
        packed.apply(index, entry)
        for item in (*before, *packed.tables.items.values()):
            packed.pack(item)
    assert packed.digest() == asked.digest()
    assert machine.digest() == other.digest() == asked.digest()


@slow
@given(logs, st.data())
def test_snapshot_at_any_point_changes_nothing(log: list[Entry], data: st.DataObject) -> None:
    machine, sent = run(log)
    cut = data.draw(st.integers(0, len(sent)))
    whole = StateMachine(strict=True)
    for index, entry in enumerate(sent[:cut], 1):
        whole.apply(index, entry)
    chunks = whole.snapshot()
    taken = whole.digest()
    for index, entry in enumerate(sent[cut:], cut + 1):
        whole.apply(index, entry)

    restored = StateMachine.restore(chunks, strict=True)  # encoded only now, after the machine has gone on
    invariants.check(restored)
    assert restored.digest() == taken
    assert b"".join(restored.snapshot()) == b"".join(StateMachine.restore(restored.snapshot()).snapshot())
    for index, entry in enumerate(sent[cut:], cut + 1):
        restored.apply(index, entry)
        invariants.check(restored)
    assert restored.digest() == whole.digest() == machine.digest()
    assert restored.next_due() == whole.next_due()
    assert restored.work_status() == whole.work_status()


@slow
@given(logs, st.data())
def test_an_image_stays_as_it_began_while_entries_are_applied_between_its_slices(
    log: list[Entry], data: st.DataObject
) -> None:
    sent = run(log)[1]
    cut = data.draw(st.integers(1, len(sent)))
    machine = StateMachine(strict=True)
    for index, entry in enumerate(sent[:cut], 1):
        machine.apply(index, entry)
    taken, at_once = machine.digest(), b"".join(machine.snapshot())
    with patch.object(image, "SLICE_BYTES", 60), patch.object(image, "PAGE_ITEMS", 1):
        chunks = machine.snapshot()
        made = b""
        for index, entry in enumerate(sent[cut:], cut + 1):
            for _ in range(data.draw(st.integers(0, 6))):
                made += next(chunks, b"")
            machine.apply(index, entry)
        made += b"".join(chunks)
    # What was gone before it was written may come last; nothing else differs.
    assert len(made) == len(at_once)
    restored = StateMachine.restore([made], strict=True)
    invariants.check(restored)
    assert restored.digest() == taken
    assert not machine._images


def test_what_retires_while_an_image_is_written_is_in_it() -> None:
    machine = StateMachine(strict=True)

    def apply(*verbs: object, after_ms: int = 0) -> None:
        log_ms = machine.log_ms + after_ms
        batch = tuple(Command(verb) for verb in verbs)
        machine.apply(machine.index + 1, Entry(log_ms, WALL_START_MS + log_ms, Epoch(1, 1), batch))

    names = [f"i{number}" for number in range(9)]
    apply(ops.Configure(SHORT), *(ops.Add(NewItem("selfplay", b"\x80", work_id=name)) for name in names))
    apply(*(ops.Cancel(work_id=name) for name in names[::2]))
    taken = machine.digest()
    with patch.object(image, "SLICE_BYTES", 60), patch.object(image, "PAGE_ITEMS", 1):
        chunks = machine.snapshot()
        made = b"".join(next(chunks) for _ in range(5))
        for _ in range(3):
            apply(ops.Tick(), after_ms=SHORT.retention_ms)
        assert [name for name in names if machine.item(name)] == names[1::2]
        made += b"".join(chunks)
    restored = StateMachine.restore([made], strict=True)
    assert restored.digest() == taken
    assert all(restored.item(name) for name in names)


def test_reading_an_image_goes_in_small_steps() -> None:
    machine = StateMachine(strict=True)
    machine.apply(
        1, Entry(0, 0, Epoch(1, 1), tuple(Command(ops.Add(NewItem("selfplay", b"\x80"))) for _ in range(900)))
    )
    restoring = Restoring(strict=True)
    assert sum(1 for chunk in machine.snapshot() for _ in restoring.take(chunk)) >= 900 * 2 // image.STEP_VALUES
    assert restoring.end().digest() == machine.digest()


def test_keys_of_large_batches_are_read_a_few_at_a_step() -> None:
    machine = StateMachine(strict=True)
    batch = ops.AddBatch(tuple(NewItem("selfplay", b"\x80") for _ in range(1000)))
    for number in range(4):
        command = Command(batch, Key("p", f"k{number}", b"body"))
        machine.apply(number + 1, Entry(0, 0, Epoch(1, 1), (command,)))
    restoring = Restoring(strict=True)
    steps = sum(1 for chunk in machine.snapshot() for _ in restoring.take(chunk))
    assert steps >= 4 * 2000 // image.STEP_VALUES + 2
    assert restoring.end().digest() == machine.digest()


def test_slices_are_bounded() -> None:
    machine = StateMachine(strict=True)
    batch = tuple(Command(ops.Add(NewItem("selfplay", b"\xc5\x9c\x40" + bytes(40_000)))) for _ in range(20))
    machine.apply(1, Entry(0, 0, Epoch(1, 1), batch))
    chunks = list(machine.snapshot())
    assert len(chunks) == 4
    assert max(map(len, chunks)) <= SLICE_BYTES
    assert StateMachine.restore(chunks).digest() == machine.digest()
    whole = b"".join(chunks)
    assert StateMachine.restore(whole[at : at + 999] for at in range(0, len(whole), 999)).index == 1
