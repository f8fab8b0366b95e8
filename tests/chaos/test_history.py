"""A history survives its file, and says which line is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.checkers.history import Ending, History, Op, born, completions, granted


def op(verb: str, args: dict[str, object], answer: dict[str, object] | None, number: int = 0) -> Op:
    return Op("c1", number, verb, args, "n1", float(number), number + 0.5, Ending.DONE, answer)


def test_a_history_survives_its_file(tmp_path: Path) -> None:
    lost = Op("c2", 0, "claim", {"node_id": "w1", "max_items": 1}, "n2", 0.25, None, Ending.UNKNOWN)
    history = History([op("add", {"work_id": "a"}, {"status": "added", "work_id": "a"}), lost])
    history.save(tmp_path / "history.jsonl")
    again = History.load(tmp_path / "history.jsonl")
    assert again.ops == history.ops
    assert [one.ending for one in again] == [Ending.DONE, Ending.UNKNOWN]


def test_operations_stand_in_the_order_of_their_calls() -> None:
    later, earlier = op("start", {}, {}, 3), op("start", {}, {}, 1)
    assert History([later, earlier]).ops == [earlier, later]
    assert History([later, earlier]).of("claim") == []


def test_a_damaged_line_is_named() -> None:
    with pytest.raises(ValueError, match="line 2 is no operation"):
        History.parse([next(History([op("start", {}, {})]).lines()), '{"client": "c1"}'])


@pytest.mark.parametrize(
    "wrong",
    [
        {"verb": "steal"},
        {"returned_s": -1.0},
        {"returned_s": None},
        {"answer": None},
    ],
)
def test_an_operation_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    fields = {"client": "c", "number": 0, "verb": "start", "args": {}, "node": "n1", "invoked_s": 0.0}
    fields |= {"returned_s": 1.0, "ending": Ending.DONE, "answer": {}}
    with pytest.raises(AssertionError):
        Op(**(fields | wrong))  # type: ignore[arg-type]


def test_readers_know_where_a_fact_stands() -> None:
    claim = op("claim", {"node_id": "w1"}, {"items": [{"work_id": "a", "lease": {"token": 7}}]})
    assert granted(claim) == [("a", 7)]
    batch = op(
        "add_batch",
        {"items": [{}, {}]},
        {"items": [{"work_id": "a", "status": "added"}, {"work_id": "b", "status": "exists"}]},
    )
    assert [(name, status) for name, status, _ in born(batch)] == [("a", "added"), ("b", "exists")]
    then = op("complete", {"work_id": "a", "token": 7, "spawn": [{}], "then": {}}, {"spawned": ["b"], "then": "c"})
    assert [name for name, _, _ in born(then)] == ["b", "c"]
    many = op(
        "complete_batch",
        {"items": [{"work_id": "a", "token": 1}, {"work_id": "b", "token": 2}]},
        {"items": [{"status": "completed"}, {"status": "refused", "code": "stale_token"}]},
    )
    assert completions(many) == [("a", 1, "done"), ("b", 2, "refused")]
