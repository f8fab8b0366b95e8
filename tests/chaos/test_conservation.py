"""The books: each rule finds what it is for, in sentences, and is quiet about a clean run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chaos.checkers import conservation, convergence, leases, unique
from chaos.checkers.history import Ending, FinalState, History, Op, Violation
from chaos.checkers.leases import LoggedGrant
from chaos.checkers.report import report
from chaos.checkers.run import Run
from tests.chaos.play import Play


def op(
    number: int, verb: str, args: dict[str, Any], answer: dict[str, Any] | None, *, ending: Ending = Ending.DONE
) -> Op:
    """The operation called at ``number`` seconds, and answered half a second later."""
    returned_s = number + 0.5 if ending is not Ending.UNKNOWN else None
    return Op(f"c{number}", 0, verb, args, "n1", float(number), returned_s, ending, answer)


def add(number: int, name: str, **fields: Any) -> Op:
    return op(number, "add", {"work_id": name, **fields}, {"status": "added", "work_id": name})


def claim(number: int, name: str, token: int, **fields: Any) -> Op:
    granted = {"items": [{"work_id": name, "lease": {"token": token}}]}
    return op(number, "claim", {"node_id": "w", "max_items": 1, "lease_s": 30.0, **fields}, granted)


def complete(number: int, name: str, token: int) -> Op:
    done = {"status": "completed", "spawned": [], "then": None}
    return op(number, "complete", {"work_id": name, "token": token, "result": number}, done)


def final(node: str = "n1", index: int = 9, digest: str = "d", **states: str) -> FinalState:
    items = {name: {"work_id": name, "state": state} for name, state in states.items()}
    return FinalState(node, index, digest, items, {})


def rules(violations: list[Violation]) -> list[str]:
    return [violation.rule for violation in violations]


def test_an_acknowledged_item_that_is_gone_is_named_with_its_add() -> None:
    history = History([add(0, "a"), add(1, "b")])
    (violation,) = conservation.check(history, [final(a="PENDING")])
    assert violation.rule == "lost_add"
    assert str(violation).startswith("lost_add: b was acknowledged at 1.500 s and is not on n1 at the end")
    assert violation.ops == (history.ops[1],)


def test_an_archived_item_is_not_lost() -> None:
    gone = {"a": {"work_id": "a", "state": "COMPLETED"}}
    assert conservation.check(History([add(0, "a")]), [replace(final(), archived=gone)]) == []


def test_more_items_than_were_asked_for_are_unexpected() -> None:
    history = History([add(0, "a"), op(1, "add", {"config": {}}, None, ending=Ending.UNKNOWN)])
    totals = conservation.judge(history, [final(a="PENDING", w1="PENDING")])
    assert (totals.violations, totals.recovered) == ([], ["w1"])
    totals = conservation.judge(history, [final(a="PENDING", w1="PENDING", w2="PENDING")])
    assert rules(totals.violations) == ["unexpected_item"]


def test_what_was_not_applied_is_not_there() -> None:
    refused = [op(number, "add", {"work_id": "b"}, None, ending=Ending.NOT_APPLIED) for number in (1, 2)]
    history = History([add(0, "a"), *refused])
    found = conservation.check(history, [final(a="PENDING", b="PENDING")])
    assert rules(found) == ["applied_after_all"]
    again = op(3, "add", {"work_id": "b"}, None, ending=Ending.UNKNOWN)
    assert conservation.check(History([*history, again]), [final(a="PENDING", b="PENDING")]) == []


def test_two_completions_of_one_item() -> None:
    history = History([add(0, "a"), claim(1, "a", 1), claim(2, "a", 2), complete(3, "a", 1), complete(4, "a", 2)])
    assert rules(conservation.check(history, [])) == ["double_completion"]


def test_a_completion_without_a_claim() -> None:
    history = History([add(0, "a"), complete(3, "a", 5)])
    assert rules(conservation.check(history, [])) == ["completed_unclaimed"]
    lost = op(1, "claim", {"node_id": "w"}, None, ending=Ending.UNKNOWN)
    assert conservation.check(History([*history, lost]), []) == []


def test_an_acknowledged_completion_stands_at_the_end() -> None:
    history = History([add(0, "a"), claim(1, "a", 1), complete(2, "a", 1)])
    assert rules(conservation.check(history, [final(a="PENDING")])) == ["lost_completion"]
    other = {"a": {"work_id": "a", "state": "COMPLETED", "result": 77}}
    assert rules(conservation.check(history, [replace(final(), items=other)])) == ["foreign_result"]


def test_tokens_that_fall_or_are_shared() -> None:
    assert rules(conservation.check(History([claim(1, "a", 9), claim(2, "a", 5)]), [])) == ["token_fell"]
    assert rules(conservation.one_grant_a_token(History([claim(1, "a", 9), claim(2, "a", 9)]))) == ["token_shared"]
    again = [claim(1, "a", 9, idempotency_key="k"), claim(2, "a", 9, idempotency_key="k")]
    assert conservation.check(History(again), []) == []


def test_a_key_that_was_forgotten() -> None:
    run = Run(retention_s=1000.0, key_grace_s=120.0)
    twice = History([add(0, "a", idempotency_key="k"), add(1, "b", idempotency_key="k")])
    assert rules(conservation.one_effect_a_key(twice, run)) == ["key_forgotten"]
    claims = [claim(0, "a", 1 * 4096, idempotency_key="k"), claim(1, "b", 2 * 4096, idempotency_key="k")]
    assert rules(conservation.one_effect_a_key(History(claims), run)) == ["key_forgotten"]
    assert conservation.one_effect_a_key(History(claims), Run()) == []


def test_the_record_of_an_item_is_in_order() -> None:
    entries = [{"token": 5, "outcome": "completed"}, {"token": 4, "outcome": "completed"}]
    item = {"work_id": "a", "state": "COMPLETED", "history": entries}
    found = conservation.histories_in_order([replace(final(), items={"a": item})])
    assert rules(found) == ["token_fell", "double_completion"]


def test_nodes_that_differ_or_stay_behind_or_leave_work_undone() -> None:
    finals = [final(a="COMPLETED"), final("n2", digest="e", a="PENDING"), final("n3", index=4)]
    found = convergence.check(History(), finals)
    assert rules(found) == ["left_behind", "diverged", "unfinished"]
    assert "n1 and n2 both applied entry 9 and differ" in found[1].told
    assert "1 items differ, first a" in found[1].told
    assert convergence.check(History(), [final(a="COMPLETED"), final("n2", a="COMPLETED")]) == []


def test_two_leases_in_real_time() -> None:
    early = [claim(0, "a", 1), claim(20, "a", 2)]
    (found,) = leases.check(History(early), [])
    assert found.rule == "two_leases"
    assert "by 20.500 s" in found.told
    assert leases.check(History([claim(0, "a", 1), claim(31, "a", 2)]), []) == []
    ended = op(10, "release", {"work_id": "a", "token": 1}, None, ending=Ending.UNKNOWN)
    assert leases.check(History([*early, ended]), []) == []
    # A leader's clock that runs twice as fast ends leases in half the time.
    assert leases.check(History(early), [], rate_max=2.0) == []


def test_a_renewed_lease_lasts_longer() -> None:
    renewed = op(
        25,
        "renew",
        {"node_id": "w", "leases": [{"work_id": "a", "token": 1}]},
        {"leases": [{"work_id": "a", "ok": True}]},
    )
    history = [claim(0, "a", 1), claim(40, "a", 2)]
    assert leases.check(History(history), []) == []
    assert rules(leases.check(History([*history, renewed]), [])) == ["two_leases"]


def test_leases_in_log_time() -> None:
    first = LoggedGrant("a", 1, "w1", 0, 5000, 4000, "released")
    second = LoggedGrant("a", 2, "w2", 4000, 9000, None, "")
    assert leases.exclusive_in_log_time([second, first]) == []
    early = replace(first, ending="expired")
    assert rules(leases.exclusive_in_log_time([early, second])) == ["expired_early"]
    assert rules(leases.exclusive_in_log_time([replace(first, ended_log_ms=None), second])) == ["two_leases"]


def unique_rules(*ops: Op) -> list[str]:
    return rules(unique.judge(History(ops)).violations)


def test_a_unique_key_has_one_live_item() -> None:
    first, second = add(0, "a", unique_key="u", max_attempts=9), add(5, "b", unique_key="u", max_attempts=9)
    assert unique_rules(first, second) == ["unique_key_shared"]
    assert unique_rules(first, claim(1, "a", 1), complete(2, "a", 1), second) == []
    assert unique_rules(first, claim(1, "a", 1), second, complete(8, "a", 1)) == ["unique_key_shared"]
    lost = op(2, "cancel", {"work_id": "a"}, None, ending=Ending.UNKNOWN)
    assert unique_rules(first, lost, second) == []
    exists = op(5, "add", {"work_id": "b", "unique_key": "u"}, {"status": "exists", "work_id": "a"})
    assert unique_rules(first, exists) == []
    assert unique_rules(first, claim(1, "a", 1), complete(2, "a", 1), exists) == ["unique_key_shared"]


def test_a_key_whose_item_time_may_have_ended_is_left_out() -> None:
    first, second = add(0, "a", unique_key="u", max_attempts=1), add(5, "b", unique_key="u")
    assert unique_rules(first, claim(1, "a", 1), second) == []


def test_a_clean_run_is_clean_and_says_how_much_was_judged() -> None:
    play = Play(11, steps=150)
    told = report(play.history(), [play.final()], play.run, drained=False)
    assert told.is_clean
    assert str(told).startswith(f"{told.histories} histories, ")
