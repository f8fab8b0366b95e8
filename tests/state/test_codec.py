"""The encoding of entries and snapshots: golden bytes, round trips, and CodecError for anything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringraft.state import commands as ops
from ringraft.state.codec import (
    COMMAND_VERSION,
    OPS,
    SINCE,
    CodecError,
    decode_command,
    decode_entry,
    encode_command,
    encode_entry,
)
from ringraft.state.machine import StateMachine
from ringraft.state.model import Command, Done, Entry, Epoch, Key, Limits, NewItem, WorkState
from ringraft.state.records import VoterRecord
from tests.state.drive import WALL_START_MS, commands, entries_of, steps

GOLDEN = Path(__file__).parent.parent / "golden"

FULL_ITEM = NewItem(
    work_type="selfplay",
    config=msgpack.packb({"board_type": "hex8"}),
    work_id="Item-1",
    priority=70,
    max_attempts=5,
    timeout_ms=60_000,
    depends_on=("a", "b"),
    on_dependency_failure="wait",
    not_before_wall_ms=WALL_START_MS,
    requirements=msgpack.packb({"cpus": 4}),
    target_node="w1",
    excluded_nodes=("w2", "w3"),
    unique_key="u",
    group="g",
    class_key="hex8_2p",
    strict=True,
)
EVERY_OP = (
    ops.Add(FULL_ITEM),
    ops.AddBatch((FULL_ITEM, NewItem("training", b"\x80"))),
    ops.Claim("w1", ("selfplay",), 2, 30_000, b"\x80"),
    ops.Start("a", 4097, "w1"),
    ops.Renew("w1", (ops.LeaseRef("a", 4097, b"\x01"), ops.LeaseRef("b", 4098))),
    ops.Complete("a", 4097, b"\x80", b"\x90", (NewItem("evaluation", b"\x80"),), NewItem("cmaes", b"\x80"), "w1"),
    ops.CompleteBatch((ops.Complete("a", 4097),)),
    ops.Fail("a", 4097, "it broke", False, "w1"),
    ops.Release("a", 4097),
    ops.Cancel(group="g"),
    ops.Retry(work_id="a"),
    ops.Tick(),
    ops.RegisterNode("w1", 3, ("worker",), None, b"\x80", ("http://127.0.0.1:8770",), "0.1.0"),
    ops.NodeStatus("w1", 3, False),
    ops.Begin("n1"),
    ops.Configure(Limits(items_max=5)),
)
FOUNDERS = (VoterRecord("n1", "a:1", "d1", 3, True, 2), VoterRecord("N2", "b:1", is_voter=True))
EVERY_OP_SINCE_2 = (
    ops.FormVoters("f", FOUNDERS),
    ops.AnnounceVoter("n2", "d2", 1, 2, "c:1"),
    ops.AdmitVoter("n2", "d2", 1, 2, "c:1", 5),
    ops.AddLearner("n3", "d:1", 6),
    ops.RemoveVoter("n3", 7),
)
"""The kinds that came with version 2 of the commands."""


def every_entry(kinds: tuple[Any, ...] = EVERY_OP) -> Entry:
    batch = tuple(Command(op, Key("p", "k", bytes(range(32)))) for op in kinds)
    return Entry(12_345, WALL_START_MS, Epoch(1, 7), batch)


def golden(name: str, now: bytes, request: pytest.FixtureRequest) -> bytes:
    path = GOLDEN / name
    if request.config.getoption("--rewrite"):
        path.write_bytes(now)
    return path.read_bytes()


def test_every_command_has_an_encoding() -> None:
    kinds = {type(op) for op in EVERY_OP + EVERY_OP_SINCE_2}
    assert kinds == set(OPS.values()) == set(ops.Op.__args__) == SINCE.keys()
    assert max(SINCE.values()) == COMMAND_VERSION


def test_entry_is_as_it_was_written_by_version_1(request: pytest.FixtureRequest) -> None:
    kept = golden("entry_v1.msgpack", encode_entry(every_entry()), request)
    assert decode_entry(kept) == every_entry()
    assert encode_entry(every_entry()) == kept


def test_commands_of_version_2_are_as_they_were_written(request: pytest.FixtureRequest) -> None:
    entry = every_entry(EVERY_OP_SINCE_2)
    kept = golden("entry_commands_v2.msgpack", encode_entry(entry), request)
    assert decode_entry(kept) == entry
    assert encode_entry(entry) == kept


def every_record() -> StateMachine:
    """A machine whose snapshot has a record of each kind, with as many fields set as one story allows."""
    machine = StateMachine(strict=True)
    node = ops.RegisterNode("W1", 2, ("worker",), ("selfplay",), b"\x80", ("http://127.0.0.1:8770",), "0.1.0")
    spawn = NewItem("selfplay", b"\x80", work_id="s")
    story: tuple[tuple[int, tuple[Any, ...]], ...] = (
        (0, (ops.Begin("n1"), ops.Configure(Limits(timers_per_entry=1, key_grace_ms=500)), node)),
        (1, (ops.Add(NewItem("selfplay", b"\x80", work_id="Root", priority=90)), ops.NodeStatus("w2", 1, True))),
        (1, (ops.AddBatch((replace(FULL_ITEM, depends_on=("root",), strict=False),)),)),
        (1, tuple(ops.Add(NewItem("selfplay", b"\x80", work_id=f"d{n}", depends_on=("root",))) for n in range(3))),
        (2, (ops.Claim("W1", None, 1, None, None),)),
        (3, (ops.Start("root", 5 * 4096), ops.Renew("W1", (ops.LeaseRef("root", 5 * 4096, b"\x32"),)))),
        (4, (ops.Fail("root", 5 * 4096, "it broke"),)),
        (9, (ops.Claim("W1", None, 1, None, None), ops.Complete("root", 8 * 4096, b"\x01", b"\x90", (spawn,)))),
        (9, (ops.FormVoters("f", FOUNDERS), ops.AnnounceVoter("n2", "d2", 1, 2, "c:1"))),
    )
    for index, (second, batch) in enumerate(story, 1):
        keyed = tuple(Command(op, Key("p", f"{index}-{n}", b"body")) for n, op in enumerate(batch))
        entry = Entry(second * 1000, WALL_START_MS + second * 1000, Epoch(1, 7), keyed)
        for outcome in machine.apply(index, entry).outcomes:
            assert isinstance(outcome, Done), outcome
    return machine


def test_snapshot_of_version_2_is_read_and_written(request: pytest.FixtureRequest) -> None:
    machine = every_record()
    tables = machine.tables
    assert tables.agenda and tables.keys and tables.nodes and tables.classes and tables.voters
    kept = golden("snapshot_v2.msgpack", b"".join(machine.snapshot()), request)
    restored = StateMachine.restore([kept])
    assert restored.digest() == machine.digest()
    assert b"".join(restored.snapshot()) == kept


def test_a_snapshot_that_is_not_known_is_named() -> None:
    image = b"".join(every_record().snapshot())
    for old, new, told in (
        (b"\xaeringraft state\x02", b"\xaeringraft state\x03", "version 3"),
        (b"\xa5class", b"\xa5klass", "unknown kind 'klass'"),
        (b"COMPLETED", b"COMPLETEE", "no WorkState"),
        (b"it broke", b"it brake", "digest"),
    ):
        assert old in image
        with pytest.raises(CodecError, match=told):
            StateMachine.restore([image.replace(old, new)])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(commands)
def test_a_command_survives_its_encoding(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


class Text(str):
    """A string that is not quite one."""


ODD = (
    None, True, 0, 1, -1, 1 << 55, 1 << 57, 1.0, float("nan"), "", "a", "\ud800", Text("a"), WorkState.FAILED, b"",
    b"a", bytearray(b"a"), (), ("a",), (b"a",), (1,), ("\ud800",), [], ["a"], {}, Epoch(1, 1), (1, 1), FULL_ITEM,
    (FULL_ITEM,),
    Key("p", "k", b"d"), ops.Tick(), ops.LeaseRef("a", 1), (ops.LeaseRef("a", 1),), (ops.Complete("a", 1),), Limits(),
)  # fmt: skip


def with_odd_parts(value: Any) -> Iterator[Any]:
    """Copies of a record in which one part, however deep, is something odd."""
    if isinstance(value, tuple) and type(value) is tuple:
        for place, part in enumerate(value):
            yield from ((*value[:place], other, *value[place + 1 :]) for other in with_odd_parts(part))
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            for odd in (*ODD, *with_odd_parts(getattr(value, one.name))):
                yield replace(value, **{one.name: odd})


def test_what_the_encoder_writes_every_replica_reads_alike() -> None:
    written = refused = 0
    whole = every_entry()
    entries = [replace(whole, commands=(odd,)) for command in whole.commands for odd in with_odd_parts(command)]
    stamped = [replace(whole, **{name: odd}) for name in ("log_ms", "wall_ms", "epoch") for odd in ODD]
    for entry in entries + stamped:
        try:
            encoded = encode_entry(entry)
        except ValueError:
            refused += 1
            continue
        # By their texts too: True equals 1, and a string's heir equals a string.
        assert (back := decode_entry(encoded)) == entry and repr(back) == repr(entry)
        written += 1
    assert written > 200
    assert refused > 2000


def test_what_has_its_default_costs_nothing() -> None:
    assert len(encode_command(Command(ops.Add(NewItem("selfplay", b"\x80"))))) < 48


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([2, 0, 0, [1, 1], []], "version 2"),
        ([1, 0, 0, [1, 1], [["explode", {}]]], "verb 'explode'"),
        ([1, 0, 0, [1, 1], [["begin", {"leader_id": "n1", "mood": 1}]]], "unknown field 'mood'"),
        ([1, 0, 0, [1, 1], [["begin", {}]]], "lacks leader_id"),
        ([1, 0, 0, [1, 1], [["add", {"item": {"work_type": 7, "config": b""}}]]], "item.work_type is int, not str"),
        ([1, 0, 0, [1], []], "epoch"),
        ([1, True, 0, [1, 1], []], "log_ms is bool"),
        ([1, 1 << 60, 0, [1, 1], []], "beyond"),
        ({}, "not a list"),
    ],
)
def test_what_is_unknown_is_named(value: object, told: str) -> None:
    with pytest.raises(CodecError, match=told):
        decode_entry(msgpack.packb(value))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_garbage_is_refused_by_one_error(data: bytes) -> None:
    for read in (decode_entry, decode_command, lambda chunk: StateMachine.restore([chunk])):
        with pytest.raises(CodecError):
            read(data)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_entry_is_refused_or_read(data: st.DataObject) -> None:
    encoded = bytearray(encode_entry(every_entry()))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_entry(bytes(encoded))
    except CodecError:
        pass


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(steps, min_size=3, max_size=8).map(entries_of), st.data())
def test_a_damaged_or_cut_snapshot_is_refused(log: list[Entry], data: st.DataObject) -> None:
    machine = StateMachine(strict=True)
    for index, entry in enumerate(log, 1):
        machine.apply(index, entry)
    image = bytearray(b"".join(machine.snapshot()))
    at = data.draw(st.integers(0, len(image) - 1))
    with pytest.raises(CodecError):
        StateMachine.restore([bytes(image[:at])])
    changed = data.draw(st.integers(0, 255).filter(lambda byte: byte != image[at]))
    image[at] = changed
    with pytest.raises(CodecError):
        StateMachine.restore([bytes(image)])
