"""The search accepts what can be, refuses what cannot, agrees with trying every order, and says when it gave up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.checkers import items
from chaos.checkers.history import Ending, FinalState, History, Op
from chaos.checkers.item_model import Event, Spec, View
from chaos.checkers.life import Life, UntoldGrants
from chaos.checkers.linearizability import Model, Verdict, check
from chaos.checkers.report import report
from tests.chaos.play import Play


class Told:
    """Writes a history down, one line an operation."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def __call__(self, verb: str, at: tuple[float, float], answer: dict[str, Any] | str | None, **args: Any) -> Told:
        """``answer``: a dictionary when done, a code when refused, None when it never came."""
        ending = Ending.DONE if isinstance(answer, dict) else Ending.REFUSED if answer else Ending.UNKNOWN
        body = {"code": answer} if isinstance(answer, str) else answer
        returned_s = at[1] if ending is not Ending.UNKNOWN else None
        self.ops.append(Op(f"c{len(self.ops)}", 0, verb, args, "n1", at[0], returned_s, ending, body))
        return self

    def add(self, at: tuple[float, float], answered: bool = True, **fields: Any) -> Told:
        return self("add", at, {"status": "added", "work_id": "a"} if answered else None, work_id="a", **fields)

    def claim(self, at: tuple[float, float], token: int | None, **fields: Any) -> Told:
        granted = [{"work_id": "a", "lease": {"token": token}}]
        return self("claim", at, None if token is None else {"items": granted}, node_id="w", max_items=1, **fields)

    def claim_nothing(self, at: tuple[float, float], max_items: int = 1) -> Told:
        return self("claim", at, {"items": []}, node_id="w", max_items=max_items)

    def start(self, at: tuple[float, float], token: int, answer: dict[str, Any] | str | None) -> Told:
        return self("start", at, answer, work_id="a", token=token)

    def complete(self, at: tuple[float, float], token: int, answer: dict[str, Any] | str | None) -> Told:
        return self("complete", at, answer, work_id="a", token=token, result={"by": token})

    def get(self, at: tuple[float, float], state: str | None, **fields: Any) -> Told:
        shown = {"work_id": "a", "state": state, **fields}
        return self("get", at, shown if state is not None else "not_found", work_id="a", consistency="linearizable")

    def verdict(self) -> bool:
        judged = items.judge(History(self.ops))
        assert judged.undecided == 0
        return judged.violations == []


DONE = {"status": "completed", "spawned": [], "then": None}
RUNNING = {"status": "running"}

GOOD = {
    "a whole life": Told().add((0, 1)).claim((2, 3), 7).start((4, 5), 7, RUNNING).complete((6, 7), 7, DONE),
    "a read beside the add sees it or not": Told()
    .add((0, 9))
    .get((1, 2), None)
    .get((3, 4), "PENDING")
    .get((5, 6), "PENDING"),
    "a lost add happens late": Told().add((0, 1), False).get((2, 3), None).get((4, 5), "PENDING"),
    "a lost add never happens": Told().add((0, 1), False).get((2, 3), None).get((8, 9), None),
    "a lost claim explains a lease": Told().add((0, 1)).claim((2, 3), None).get((4, 5), "ASSIGNED", lease={"token": 9}),
    "a lost claim's token is learnt from the next": Told()
    .add((0, 1))
    .claim((2, 3), None)
    .claim((4, 5), 12)
    .start((6, 7), 9, "stale_token"),
    "a lost claim took the item": Told()
    .add((0, 1))
    .claim((2, 3), 5)
    .claim((4, 5), None)
    .complete((6, 7), 5, "stale_token"),
    "a grant that a cancel ended before the claim's answer, which leaves it out": Told()
    .add((0, 1))
    .claim((2, 3), 7)
    .claim_nothing((8, 9), 2)
    .start((8, 9), 7, "stale_token")("cancel", (8, 9), {"status": "cancelled"}, work_id="a"),
    "a lease runs out, and the item is granted again": Told()
    .add((0, 1))
    .claim((2, 3), 7)
    .claim((8, 9), 11)
    .complete((10, 11), 11, DONE),
    "a late result counts while nobody else has it": Told()
    .add((0, 1))
    .claim((2, 3), 7)
    .get((8, 9), "PENDING")
    .complete((10, 11), 7, DONE),
    "the same completion twice": Told()
    .add((0, 1))
    .claim((2, 3), 7)
    .complete((4, 5), 7, DONE)
    .complete((6, 7), 7, DONE),
    "a repeated claim hands out what it has": Told()
    .add((0, 1))
    .claim((2, 3), 7, idempotency_key="k")
    .claim((4, 5), 7, idempotency_key="k"),
    "a lost completion, told by its repeat": Told()
    .add((0, 1))
    .claim((2, 3), 7)
    .complete((4, 5), 7, None)
    .get((6, 7), "COMPLETED")
    .complete((8, 9), 7, DONE),
}

BAD = {
    "a stale read": Told().add((0, 1)).claim((2, 3), 7).complete((4, 5), 7, DONE).get((6, 7), "ASSIGNED"),
    "an answered add is gone": Told().add((0, 1)).get((2, 3), None),
    "read before it was added": Told().get((0, 1), "PENDING").add((2, 3)),
    "two reads go back in time": Told().add((0, 9)).get((1, 2), "PENDING").get((3, 4), None),
    "completed with an old token": Told().add((0, 1)).claim((2, 3), 7).claim((4, 5), 11).complete((6, 7), 7, DONE),
    "completed twice": Told()
    .add((0, 1))
    .claim((2, 3), 7)
    .complete((4, 5), 7, DONE)
    .claim((6, 7), 11)
    .complete((8, 9), 11, DONE),
    "a token goes back": Told().add((0, 1)).claim((2, 3), 11).claim((4, 5), 7),
    "one token twice": Told().add((0, 1)).claim((2, 3), 7).claim((4, 5), 7),
    "a final item is granted": Told().add((0, 1)).claim((2, 3), 7).complete((4, 5), 7, DONE).claim((6, 7), 12),
    "completed, and nobody ever claimed": Told().add((0, 1)).complete((2, 3), 7, DONE),
    "the newest token is refused as stale": Told().add((0, 1)).claim((2, 3), 7).start((4, 5), 7, "stale_token"),
    "cancelled, and completed after": Told()
    .add((0, 1))
    .claim((2, 3), 7)("cancel", (4, 5), {"status": "cancelled"}, work_id="a")
    .complete((6, 7), 7, DONE),
    "an old token held after a lost claim was outrun": Told()
    .add((0, 1))
    .claim((2, 3), None)
    .claim((4, 5), 12)
    .complete((6, 7), 9, DONE),
    "another result than the one that counted": Told()
    .add((0, 1))
    .claim((2, 3), 7)
    .complete((4, 5), 7, DONE)
    .get((6, 7), "COMPLETED", result={"by": 8}),
    "an attempt that nobody spent": Told().add((0, 1)).get((2, 3), "PENDING", attempt=1),
    "a claim that grants without telling while it is not under way": Told()
    .add((0, 1))
    .claim_nothing((1, 2))
    .claim((3, 4), 7)
    .start((8, 9), 7, "stale_token")
    .claim_nothing((10, 11)),
    "nobody lost a claim, so nobody holds it": Told().add((0, 1)).get((2, 3), "ASSIGNED", lease={"token": 9}),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_is_accepted(name: str) -> None:
    assert GOOD[name].verdict()


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused(name: str) -> None:
    assert not BAD[name].verdict()


def test_a_violation_names_the_operation_that_does_not_fit() -> None:
    history = BAD["a stale read"].ops + Told().add((20, 21)).ops
    (violation,) = items.judge(History(history)).violations
    assert violation.rule == "not_linearizable"
    assert violation.ops[-1].verb == "get"
    assert "a until 7.000 s fit no order" in violation.told
    assert "[6.000–7.000 s]" in str(violation)


def test_a_bound_that_is_reached_is_an_answer_of_its_own() -> None:
    play = Play(3, steps=200, overlap_s=5.0)
    judged = items.judge(play.history(), visits_max=5)
    assert judged.undecided > 0
    assert judged.violations == []


plays = st.builds(
    Play,
    seed=st.integers(0, 2**32),
    steps=st.just(60),
    overlap_s=st.sampled_from([0.0, 0.5, 2.0]),
    loss=st.sampled_from([0.0, 0.2, 0.5]),
    retention_s=st.sampled_from([8.0, 1000.0]),
)


@settings(max_examples=150, deadline=None)
@given(plays)
def test_what_the_state_machine_did_is_accepted(play: Play) -> None:
    history = play.history()
    judged = report(history, [play.final(), play.final("n2")], play.run, drained=False)
    assert judged.violations == ()
    assert judged.histories > 0


def final_ops(history: History, rule: str) -> list[tuple[Op, Op]]:
    """(completion, later operation on the same item) where nothing but that completion can explain the later one."""
    taken_back = {op.args.get("work_id") for op in history.of("retry")}
    return [
        (op, later)
        for op in history.of("complete")
        if op.is_done and None not in taken_back and op.args["work_id"] not in taken_back
        for later in history.of(rule)
        if later.is_done and op.returned_s is not None and later.invoked_s > op.returned_s
    ]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_a_spoilt_history_is_refused(seed: int, data: st.DataObject) -> None:
    play = Play(seed, steps=80, loss=0.1)
    history, finals = play.history(), [play.final()]
    spoilers = [spoil for spoil in SPOILERS if spoil(history, finals[0]) is not None]
    if not spoilers:
        return
    spoil = data.draw(st.sampled_from(spoilers), label="how")
    spoilt = spoil(history, finals[0])
    assert spoilt is not None
    judged = report(spoilt[0], [spoilt[1]], play.run, drained=False)
    assert judged.violations != ()


Spoilt = tuple[History, FinalState] | None


def changed(history: History, old: Op, new: Op) -> History:
    return History([new if op is old else op for op in history])


def stale_read(history: History, final: FinalState) -> Spoilt:
    for done, get in final_ops(history, "get"):
        if get.args["work_id"] == done.args["work_id"]:
            shown = {"work_id": get.args["work_id"], "state": "RUNNING"}
            return changed(history, get, replace(get, answer=shown)), final
    return None


def lost_add(history: History, final: FinalState) -> Spoilt:
    for op in history.of("add"):
        if op.is_done and op.answer is not None:
            name = op.answer["work_id"].lower()
            left = {key: item for key, item in final.items.items() if key != name}
            return history, replace(final, items=left)
    return None


def double_completion(history: History, final: FinalState) -> Spoilt:
    for done, _ in final_ops(history, "claim"):
        last_s = max(op.returned_s or 0.0 for op in history) + 1
        args = {**done.args, "token": done.args["token"] + 4096}
        again = replace(done, client="thief", invoked_s=last_s, returned_s=last_s + 1, args=args)
        return History([*history, again]), final
    return None


def token_falls(history: History, final: FinalState) -> Spoilt:
    newest: dict[str, tuple[int, float]] = {}
    for op in history.of("claim"):
        if not op.is_done or op.answer is None or op.key is not None:
            continue
        for item in op.answer["items"]:
            before = newest.get(item["work_id"])
            if before is not None and before[1] < op.invoked_s:
                items = [{**item, "lease": {**item["lease"], "token": before[0] - 1}}]
                return changed(history, op, replace(op, answer={"items": items})), final
            assert op.returned_s is not None
            newest[item["work_id"]] = (item["lease"]["token"], op.returned_s)
    return None


def read_before_added(history: History, final: FinalState) -> Spoilt:
    for op in history.of("add"):
        if not op.is_done or op.answer is None or op.key is not None or op.answer["status"] != "added":
            continue
        early = Op(
            "seer",
            0,
            "get",
            {"work_id": op.answer["work_id"], "consistency": "linearizable"},
            "n1",
            -2.0,
            -1.0,
            Ending.DONE,
            {"work_id": op.answer["work_id"], "state": "PENDING"},
        )
        return History([early, *history]), final
    return None


SPOILERS = [stale_read, lost_add, double_completion, token_falls, read_before_added]


def test_every_spoiler_gets_something_to_spoil() -> None:
    plays = [Play(seed, steps=80, loss=0.1) for seed in range(40)]
    runs = [(play.history(), play.final()) for play in plays]
    for spoil in SPOILERS:
        assert any(spoil(*run) is not None for run in runs), spoil.__name__


# A second opinion: every order, tried without memory.


def brute(model: Model, events: Sequence[Event], state: Any, since_s: float = -inf, depth: int = 0) -> bool:
    if not any(event.is_certain for event in events):
        return True
    until_s = min(event.returned_s for event in events if event.is_certain)
    moved = model.by_itself(state, since_s, until_s) if depth < 2 else ()
    if any(brute(model, events, after, since_s, depth + 1) for after in moved):
        return True
    for number, event in enumerate(events):
        if event.invoked_s <= until_s:
            rest = [*events[:number], *events[number + 1 :]]
            now_s = max(since_s, event.invoked_s)
            if any(brute(model, rest, after, now_s) for after in model.fits(state, event)):
                return True
    return False


times = st.integers(0, 6)
tokens = st.sampled_from([5, 9])


@st.composite
def small_events(draw: st.DrawFn) -> list[Event]:
    events = []
    for _ in range(draw(st.integers(1, 5))):
        invoked_s, is_certain = draw(times), draw(st.sampled_from([True, True, False]))
        verb = draw(st.sampled_from(["add", "grant", "start", "complete", "release", "read", "cancel"]))
        told = {
            "add": ["added"],
            "grant": ["granted"],
            "start": ["running", "stale_token"],
            "cancel": ["cancelled"],
            "complete": ["completed", "stale_token", "wrong_state"],
            "release": ["released"],
            "read": ["not_found"],
        }
        view = None
        if verb == "read" and draw(st.booleans()):
            view = View(draw(st.sampled_from(["PENDING", "ASSIGNED", "COMPLETED"])))
        answers = frozenset({draw(st.sampled_from(told[verb]))}) if is_certain and view is None else None
        if verb == "grant":
            is_certain, answers = True, frozenset({"granted"})
        if verb == "read":
            is_certain = True
        returned_s = invoked_s + draw(st.integers(0, 4)) if is_certain else inf
        events.append(Event(verb, invoked_s, returned_s, is_certain, draw(tokens), answers, view))
    return events


@settings(max_examples=400, deadline=None)
@given(small_events(), st.sampled_from([Told(), Told().claim((0, 1), None), Told().claim_nothing((2, 3))]))
def test_it_agrees_with_trying_every_order(events: list[Event], claims: Told) -> None:
    model = items.model_of(Life("a", Spec(may_retire=False)), UntoldGrants(claims.ops))
    expected = Verdict.LINEARIZABLE if brute(model, events, model.start) else Verdict.BROKEN
    assert check(model, events) is expected
