"""Promises of the machine itself: contained bugs, bounded work, reads."""

from __future__ import annotations

import sys
from typing import Any

import msgpack
import pytest

from ringraft.state import commands as ops
from ringraft.state import invariants, machine, reasons
from ringraft.state.decide import time
from ringraft.state.machine import StateMachine
from ringraft.state.matching import fold_gpu_name
from ringraft.state.model import Applied, Command, Done, Entry, Epoch, Key, Limits, NewItem, Rejected

WALL_MS = 1_700_000_000_000


def apply(one: StateMachine, *commands: Any, after_ms: int = 0) -> Applied:
    batch = tuple(command if isinstance(command, Command) else Command(command) for command in commands)
    log_ms = one.log_ms + after_ms
    return one.apply(one.index + 1, Entry(log_ms, WALL_MS + log_ms, Epoch(1, 1), batch))


def items(count: int, **fields: Any) -> ops.AddBatch:
    return ops.AddBatch(tuple(NewItem("selfplay", b"\x80", **fields) for _ in range(count)))


def broken(*_: Any) -> Any:
    raise ZeroDivisionError("a bug")


def test_a_bug_in_a_decider_refuses_that_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = StateMachine(), StateMachine()
    monkeypatch.setitem(machine.DECIDERS, ops.Add, broken)
    for each in (one, other):
        applied = apply(each, ops.Add(NewItem("selfplay", b"\x80")), items(1))
        assert [type(outcome) for outcome in applied.outcomes] == [Rejected, Done]
        assert isinstance(applied.outcomes[0], Rejected)
        assert applied.outcomes[0].code == "internal"
        assert each.alarms == 1
        invariants.check(each)
    assert one.digest() == other.digest()
    with pytest.raises(ZeroDivisionError):
        apply(StateMachine(strict=True), ops.Add(NewItem("selfplay", b"\x80")))


def test_a_bug_of_one_timer_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    one = StateMachine()
    apply(
        one, ops.AddBatch((NewItem("selfplay", b"\x80", work_id="bad"), NewItem("selfplay", b"\x80", work_id="good")))
    )
    apply(one, ops.Claim("w1", None, 2, 5_000, None))
    real = time.item_due
    monkeypatch.setattr(
        time, "item_due", lambda tables, name, at: broken() if name == "bad" else real(tables, name, at)
    )
    apply(one, ops.Tick(), after_ms=5_000)
    assert [one.item(name)["state"] for name in ("bad", "good")] == ["ASSIGNED", "PENDING"]  # type: ignore[index]
    assert one.alarms == 1
    monkeypatch.undo()
    apply(one, ops.Tick())
    assert one.item("bad")["state"] == "PENDING"  # type: ignore[index]
    invariants.check(one)


def test_that_limits_were_entered_is_part_of_the_state() -> None:
    without, entered = StateMachine(strict=True), StateMachine(strict=True)
    apply(without, ops.Tick())
    apply(entered, ops.Configure(Limits()))
    assert (without.is_configured, entered.is_configured) == (False, True)
    assert without.limits == entered.limits
    assert without.digest() != entered.digest()
    for one in (without, entered):
        restored = StateMachine.restore(one.snapshot(), strict=True)
        assert restored.is_configured == one.is_configured
        assert restored.digest() == one.digest()
    [outcome] = apply(without, ops.Configure(Limits(items_max=0))).outcomes
    assert isinstance(outcome, Rejected)
    assert not without.is_configured


def test_an_index_never_comes_twice() -> None:
    one = StateMachine()
    apply(one)
    with pytest.raises(AssertionError):
        one.apply(1, Entry(0, 0, Epoch(1, 1), ()))


def operations(one: StateMachine, op: Any) -> int:
    """Lines of Python that an entry with this command runs, but for the read-only ends of heapq."""
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    one.digest()  # so that none of the changes before is hashed in this entry
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        apply(one, op)
    finally:
        sys.settrace(before)
    return count


def test_a_claim_does_the_same_work_whatever_the_number_of_items() -> None:
    small, large = StateMachine(strict=True), StateMachine(strict=True)
    apply(small, items(1000))
    for _ in range(100):
        apply(large, items(1000))
    for count in (1, 10):
        claim = ops.Claim("w1", None, count, None, None)
        few, many = operations(small, claim), operations(large, claim)
        assert few <= many <= few * 1.1
    for op in (ops.Cancel(work_id="w1-1f4"), ops.Add(NewItem("selfplay", b"\x80")), ops.Tick()):
        assert operations(large, op) <= operations(small, op) * 1.1
    assert len(large.items(cursor=None, limit=10)[0]) == 10
    assert operations(large, ops.Tick()) < 200


def test_a_keyed_add_batch_lives_as_long_as_its_last_item() -> None:
    one = StateMachine(strict=True)
    key = Key("p", "k", b"body")
    news = (NewItem("selfplay", b"\x80", work_id="a"), NewItem("selfplay", b"\x80", work_id="b"))
    apply(one, ops.Configure(Limits(retention_ms=10_000)))
    first = apply(one, Command(ops.AddBatch(news), key)).outcomes
    apply(one, ops.Cancel(work_id="a"))
    apply(one, ops.Tick(), after_ms=10_000)
    assert one.item("a") is None
    assert apply(one, Command(ops.AddBatch(news), key)).outcomes == first
    assert one.item("a") is None
    apply(one, ops.Cancel(work_id="b"))
    apply(one, ops.Tick(), after_ms=10_000)
    assert not one.tables.keys
    assert apply(one, Command(ops.AddBatch(news), key)).outcomes != first


def test_pages_have_every_item_once() -> None:
    one = StateMachine(strict=True)
    apply(one, items(30, group="g"), items(20))
    apply(one, ops.Claim("W1", None, 7, None, None))
    for wanted, count in (({}, 50), ({"group": "g"}, 30), ({"state": "ASSIGNED"}, 7), ({"node_id": "w1"}, 7)):
        seen: list[str] = []
        cursor = None
        while True:
            page, cursor = one.items(**wanted, cursor=cursor, limit=8)
            assert len(page) <= 8
            seen += [view["work_id"] for view in page]
            if cursor is None:
                break
        assert len(seen) == len(set(seen)) == count
    with pytest.raises(ValueError, match="cursor"):
        one.items(cursor="x", limit=1)


def test_an_item_has_the_shape_of_the_contract() -> None:
    one = StateMachine(strict=True)
    apply(one, ops.Add(NewItem("selfplay", msgpack.packb({"games": 4}), work_id="A", timeout_ms=1500)))
    apply(one, ops.Claim("w1", None, 1, 30_000, None), after_ms=123)
    apply(one, ops.Start("a", 2 * 4096))
    assert one.item("a") == {
        "work_id": "A",
        "work_type": "selfplay",
        "config": {"games": 4},
        "priority": 50,
        "state": "RUNNING",
        "attempt": 0,
        "max_attempts": 3,
        "timeout_s": 1.5,
        "depends_on": [],
        "on_dependency_failure": "cancel",
        "not_before": None,
        "requirements": {},
        "target_node": None,
        "excluded_nodes": [],
        "unique_key": None,
        "group": None,
        "parent": None,
        "gang": None,
        "created_at": "2023-11-14T22:13:20.000Z",
        "started_at": "2023-11-14T22:13:20.123Z",
        "finished_at": None,
        "lease": {"node_id": "w1", "token": 8192, "expires_at": "2023-11-14T22:13:50.123Z"},
        "progress": None,
        "result": None,
        "error": None,
        "artifacts": None,
        "history": [],
    }
    status = one.work_status()
    assert status["by_status"]["RUNNING"] == status["running"] == status["total_items"] == 1
    assert status["leases_by_node"] == {"w1": 1}
    assert status["oldest_pending_age_s"] is None


def test_an_item_far_behind_is_told_so_without_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    one = StateMachine(strict=True)
    apply(one, ops.RegisterNode("w1", 1, ("worker",), None, b"\x80", (), "1"), items(4))
    monkeypatch.setattr(reasons, "POSITION_LOOKS_MAX", 2)
    for name, position, told in (
        ("w1-0", 0, ("Ready", "it is next: the first worker that fits and asks for work gets it")),
        ("w1-2", 2, ("LowerPriority", "2 items of its class go first")),
        ("w1-3", None, ("LowerPriority", "more than 2 items of its class go first")),
    ):
        why = one.why(name)
        assert why is not None
        assert why["position"] == position
        assert [(reason["code"], reason["detail"]) for reason in why["reasons"]] == [told]


def test_next_due_tells_the_earliest_of_each_clock() -> None:
    one = StateMachine(strict=True)
    assert one.next_due() == (None, None)
    apply(one, items(1), items(1, not_before_wall_ms=WALL_MS + 99))
    assert one.next_due() == (None, WALL_MS + 99)
    apply(one, ops.Claim("w1", None, 1, 5_000, None))
    assert one.next_due() == (5_000, WALL_MS + 99)


@pytest.mark.parametrize(
    "name", ["RTX_5090", "NVIDIA GeForce RTX 5090", "rtx-5090", "GeForceRTX5090", "NVIDIA RTX5090", "geforce rtx 5090"]
)
def test_gpu_names_compare_without_vendor_words_and_separators(name: str) -> None:
    assert fold_gpu_name(name) == "rtx5090"
