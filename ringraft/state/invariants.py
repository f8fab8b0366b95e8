"""What is true of the state after every entry; checked in tests and in the simulator.

Everything is counted again from the records, so a check is as slow as the state is large.
"""

from __future__ import annotations

from typing import Any

from ringraft.state.decide.item import unblocked_state
from ringraft.state.indexes import Indexes, standing
from ringraft.state.machine import StateMachine
from ringraft.state.model import FINAL, LEASED, TOKENS_PER_ENTRY, WorkState
from ringraft.state.records import Item
from ringraft.state.tables import Tables


def check(machine: StateMachine) -> None:
    """Raises AssertionError that names what does not hold."""
    tables = machine.tables
    for name, item in tables.items.items():
        assert name == item.spec.id == item.spec.work_id.lower(), f"{name} is kept under another name"
        check_item(tables, item)
    seqs = [item.spec.seq for item in tables.items.values()]
    assert seqs == sorted(set(seqs)), "items are not kept in order of age"
    check_limits(tables)
    check_classes(tables)
    check_keys(tables)
    check_voters(tables)
    check_indexes(tables)


def check_item(tables: Tables, item: Item) -> None:
    name, grant, end = item.spec.work_id, item.grant, item.end
    assert (item.state in FINAL) == (end is not None), f"{name} is {item.state} and has the end {end}"
    assert 0 <= item.attempt <= item.spec.new.max_attempts, f"{name} has spent {item.attempt} attempts"
    if item.state in LEASED:
        assert grant is not None, f"{name} is {item.state} without a grant"
        assert grant.verdict == "", f"{name} is {item.state} and its lease ended: {grant.verdict}"
        assert (item.state is WorkState.RUNNING) == (grant.started_log_ms is not None), f"{name} started or not?"
    elif grant is not None:
        assert grant.verdict != "", f"{name} is {item.state} and its lease lives"
    if item.state is not WorkState.PENDING:
        assert item.wake_log_ms is None, f"{name} is {item.state} and backs off"
        assert item.wake_wall_ms is None, f"{name} is {item.state} and waits for a time"
    if item.state is WorkState.BLOCKED:
        assert item.spec.dependencies, f"{name} is BLOCKED by nothing"
    if grant is not None:
        assert grant.token // TOKENS_PER_ENTRY <= tables.index, f"{name} has a token of the future"
        assert all(entry.token <= grant.token for entry in item.history), f"{name} has history past its token"
    if item.state is WorkState.BLOCKED and not tables.agenda:
        state = unblocked_state(item.spec, tables.dependency_state)
        assert state is WorkState.BLOCKED, f"{name} is BLOCKED where it should be {state}"
    assert len(item.history) <= tables.limits.history_max, f"{name} has too long a history"


def check_limits(tables: Tables) -> None:
    limits, indexes = tables.limits, tables.indexes
    assert len(tables.keys) <= max(limits.keys_max, 0), "too many idempotency keys"
    assert tables.log_ms >= 0, "log time is negative"
    for node_id, held in indexes.leases.items():
        assert held, f"{node_id} has an empty set of leases"


def check_classes(tables: Tables) -> None:
    live: dict[tuple[str, str], int] = {}
    for item in tables.items.values():
        if item.end is None:
            key = item.spec.shape[:2]
            live[key] = live.get(key, 0) + 1
    assert live.keys() == tables.classes.keys(), "classes with live items are not those that are kept"
    for key, record in tables.classes.items():
        assert key == (record.work_type, record.class_key), f"{key} is kept under another name"


def check_keys(tables: Tables) -> None:
    seqs = {item.spec.seq for item in tables.items.values()}
    for key_id, record in tables.keys.items():
        assert key_id == (record.principal, record.key), f"{key_id} is kept under another name"
        if record.births:
            assert seqs.intersection(record.births), f"{key_id} has outlived all it added"
        else:
            assert record.until_log_ms is not None, f"{key_id} would live for ever"


def check_voters(tables: Tables) -> None:
    for name, record in tables.voters.items():
        assert name == record.node_id.lower(), f"{record.node_id} is kept under another name"
    has_voter = any(record.is_voter for record in tables.voters.values())
    assert has_voter == bool(tables.voters) == bool(tables.formation_id), "a formed cluster has a voter and an id"
    assert tables.begun_index <= tables.index, "an epoch began in the future"
    assert tables.voters_index <= tables.index, "the voters were changed in the future"


def check_indexes(tables: Tables) -> None:
    """The indexes say the same as fresh ones over the same records."""
    fresh = Indexes(tables.items)
    for item in tables.items.values():
        fresh.replace(None, item)
    for key_id, record in tables.keys.items():
        fresh.replace_key(key_id, record)
    kept = tables.indexes
    assert not kept.classes_before, "an installation was not finished"
    for name in ("log_timers", "wall_timers", "key_timers", "pending"):
        assert getattr(kept, name).live == getattr(fresh, name).live, f"{name} differs from its records"
    for name in ("unique", "dependents", "leases", "groups", "counts", "births", "births_left"):
        assert getattr(kept, name) == getattr(fresh, name), f"{name} differs from its records"
    assert list(kept.order.after(-1)) == list(fresh.order.after(-1)), "the order of age differs from its records"
    assert len(kept.order) == len(tables.items), "the order of age has another size"
    assert _shapes(kept) == _shapes(fresh), "the ready items differ from their records"
    for shape in kept.shapes.values():
        walked = [entry[-1] for entry in shape.ready.walk()]
        assert sorted(walked) == sorted(shape.ready.live), "a walk misses ready items"
    ready = sum(1 for item in tables.items.values() if standing(item) == "Ready")
    assert ready == sum(len(shape.ready) for shape in kept.shapes.values()), "ready items are not all in a shape"


def _shapes(indexes: Indexes) -> dict[Any, Any]:
    shapes: dict[Any, Any] = {key: (shape.live, shape.ready.live) for key, shape in indexes.shapes.items()}
    for key, of_class in indexes.classes.items():
        shapes[key] = (of_class.live, of_class.ready, set(of_class.shapes))
    return shapes
