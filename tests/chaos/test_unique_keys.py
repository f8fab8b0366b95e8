"""A unique key is free again once its item has ended, whoever ended it."""

from __future__ import annotations

from chaos.checkers.history import Ending, History, Op
from chaos.checkers.unique import judge


def added(number: int, work_id: str, **fields: object) -> Op:
    args = {"work_type": "selfplay", "unique_key": "u", "max_attempts": 3, "work_id": work_id, **fields}
    answer = {"status": "added", "work_id": work_id}
    return Op("c", number, "add", args, "n1", float(number), number + 0.5, Ending.DONE, answer)


def test_two_live_items_of_one_key_are_found() -> None:
    assert judge(History([added(0, "a"), added(1, "b")])).violations


def test_an_item_that_its_dependency_may_have_cancelled_proves_nothing() -> None:
    assert not judge(History([added(0, "a", depends_on=["x"]), added(1, "b")])).violations
    waiting = added(0, "a", depends_on=["x"], on_dependency_failure="run")
    assert judge(History([waiting, added(1, "b")])).violations
