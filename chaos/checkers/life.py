"""The history of each work item: what every operation meant to it.

Items are independent as far as their answers go, so a history is judged one item at a time. What
reaches over to others enters as what *may* happen: a claim may have granted any item untold, a group's
cancel takes each of its members, a dependency's end unblocks at some time.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from typing import Any

from chaos.checkers.history import Ending, FinalState, History, Op, asked_items, born, completions, granted
from chaos.checkers.item_model import FINAL, Event, Spec, View
from chaos.checkers.run import WHOLE, Run

REFUSALS_JUDGED = frozenset({"not_found", "stale_token", "already_final", "wrong_state"})
"""Refusals that say something of the item's state. The others (a limit, a bad field) do not."""

DONE_ANSWERS = {
    "start": frozenset({"running"}),
    "release": frozenset({"released"}),
    "complete": frozenset({"completed"}),
    "cancel": frozenset({"cancelled"}),
    "retry": frozenset({"retried"}),
    "cancel_group": frozenset({"cancelled"}),
    "retry_group": frozenset({"retried"}),
}


@dataclass(slots=True)
class Life:
    """One item's events, and what of its fields decides its life."""

    work_id: str
    """Lower case."""
    spec: Spec
    events: list[Event] = field(default_factory=list)
    is_asked: bool = False
    """Whether an operation is known to have asked for it."""
    is_known: bool = True
    """Whether its fields are: not those of an item that a lost add made and no read ever showed."""


def canonical(result: Any) -> str | None:
    """A result as text to compare; None for none."""
    return None if result is None else json.dumps(result, sort_keys=True, separators=(",", ":"))


class UntoldGrants:
    """When a claim may have granted items that its answer does not name.

    A lost one at any time from its call on. One that was answered with fewer items than it asked for,
    while it was under way: an answer names what is still leased when it is made, and a lease that was
    cancelled or taken back by then is left out.
    """

    def __init__(self, claims: Iterable[Op]) -> None:
        spans = sorted(span for op in claims if (span := _untold(op)) is not None)
        self._begins_s = [begin_s for begin_s, _ in spans]
        self._ends_s = list(accumulate((end_s for _, end_s in spans), max))
        """The latest end of those that began so early or earlier."""

    def may_be_between(self, since_s: float, until_s: float) -> bool:
        count = bisect_right(self._begins_s, until_s)
        return count > 0 and self._ends_s[count - 1] >= since_s


def _untold(claim: Op) -> tuple[float, float] | None:
    if claim.ending is Ending.UNKNOWN:
        return claim.invoked_s, inf
    if not claim.is_done or len(granted(claim)) >= claim.args.get("max_items", 1):
        return None
    assert claim.returned_s is not None
    return claim.invoked_s, claim.returned_s


def lives(
    history: History, finals: Iterable[FinalState] = (), run: Run = WHOLE
) -> tuple[dict[str, Life], UntoldGrants]:
    """The life of every item the history names, and when claims may have granted it without telling."""
    finals = tuple(finals)
    split = _Split(history, run)
    split.learn(finals)
    for op in history:
        split.take(op)
    for state in finals:
        split.take_final(state)
    split.explain_nameless()
    return split.lives, UntoldGrants(history.of("claim"))


class _Split:
    """Hands each operation to the items it is about."""

    def __init__(self, history: History, run: Run) -> None:
        self.lives: dict[str, Life] = {}
        self._run = run
        self._groups: dict[str, set[str]] = {}
        self._names: dict[str, list[str]] = {}
        self._first_call_s = history.first_call_s
        self._granted: set[tuple[str, str, int]] = set()
        self._completed: set[tuple[str, int]] = set()
        self._completing_s: dict[tuple[str, int], float] = {}
        self._told: set[str] = set()
        self._nameless: list[Op] = []
        self._history = history
        self._shown: dict[str, dict[str, Any]] = {}
        self._last_s = max((op.returned_s or op.invoked_s for op in history), default=0.0)
        for op in history:
            if op.key is not None and op.is_done and op.verb in ("add", "add_batch"):
                self._names.setdefault(op.key, [name for name, _, _ in born(op)])
            for name, token, _ in completions(op):
                self._completing_s.setdefault((name.lower(), token), op.invoked_s)
            self._learn_groups(op)
            if op.ending is Ending.UNKNOWN:
                known = self._names.get(op.key) if op.key is not None else None
                # The key of an add ends with its items: a late try may then add others.
                is_told = known is not None and self._last_s < run.retention_s
                if not is_told and any(one.get("work_id") is None for one in asked_items(op)):
                    self._nameless.append(op)

    def learn(self, finals: tuple[FinalState, ...]) -> None:
        """What reads tell of the fields of items whose add was lost."""
        shown = [op.answer for op in self._history.of("get") if op.is_done and op.answer is not None]
        for state in finals:
            shown += [*state.items.values(), *state.archived.values()]
        for item in shown:
            name = item["work_id"].lower()
            self._shown.setdefault(name, item)
            if item.get("group") is not None:
                self._groups.setdefault(item["group"], set()).add(name)

    def _learn_groups(self, op: Op) -> None:
        for name, status, asked in born(op):
            if asked.get("group") is not None and _is_own(name, status, asked):
                self._groups.setdefault(asked["group"], set()).add(name.lower())
        for asked in asked_items(op):
            if asked.get("group") is not None and asked.get("work_id") is not None:
                self._groups.setdefault(asked["group"], set()).add(asked["work_id"].lower())

    def take(self, op: Op) -> None:
        if op.ending is Ending.NOT_APPLIED or (op.is_refused and op.code not in REFUSALS_JUDGED):
            return
        if op.verb in ("add", "add_batch"):
            self._births(op)
        elif op.verb == "claim":
            self._claim(op)
        elif op.verb == "renew":
            self._renew(op)
        elif op.verb == "complete_batch":
            self._complete_batch(op)
        elif op.verb in ("cancel", "retry"):
            self._cancel_or_retry(op)
        elif op.verb == "get":
            self._get(op)
        else:
            self._plain(op)

    def take_final(self, state: FinalState) -> None:
        """What a node holds at the end is a read of every item after everything else."""
        for items, is_held in ((state.items, True), (state.archived, False)):
            for name, item in items.items():
                if not is_held and name in state.items:
                    continue
                source = Op(
                    "final-read",
                    0,
                    "get",
                    {"work_id": name, "consistency": "final"},
                    state.node,
                    self._last_s,
                    self._last_s,
                    Ending.DONE,
                    item,
                )
                event = Event("read", self._last_s, inf, True, view=_view(item), source=source)
                self._life(name).events.append(event)

    # Inside.

    def _life(self, name: str) -> Life:
        key = name.lower()
        if key not in self.lives:
            spec = Spec(may_retire=self._last_s >= self._run.retention_s, may_be_freed=self._run.may_be_freed)
            self.lives[key] = Life(key, spec)
        return self.lives[key]

    def _put(self, name: str, op: Op, verb: str, **fields: Any) -> None:
        is_certain = op.ending is not Ending.UNKNOWN
        returned_s = op.returned_s if is_certain and op.returned_s is not None else inf
        defaults: dict[str, Any] = {"invoked_s": op.invoked_s, "returned_s": returned_s, "is_certain": is_certain}
        self._life(name).events.append(Event(verb, **(defaults | fields), source=op))

    def _births(self, op: Op) -> None:
        known = self._names.get(op.key, []) if op.key is not None else []
        told = born(op)
        for number, asked in enumerate(asked_items(op)):
            if op.is_done:
                name, status, _ = told[number]
            elif op.ending is Ending.UNKNOWN:
                name, status = asked.get("work_id") or (known[number] if number < len(known) else ""), ""
            else:
                continue
            if not name:
                continue
            if not status or _is_own(name, status, asked):
                self._ask(name, asked)
            answers = frozenset({status}) if status else None
            if op.is_done and number < len(known) and known[number] != name:
                # The key's first item is gone, and a lost try may have added this one.
                since_s = self._first_call_s(op)
                self._put(name, op, "add", invoked_s=since_s, returned_s=inf, is_certain=False, key=op.key)
            self._put(name, op, "add", answers=answers, key=op.key)

    def _ask(self, name: str, asked: dict[str, Any]) -> None:
        life = self._life(name)
        if life.is_asked:
            return
        life.is_asked = True
        if not asked:
            asked = self._shown.get(life.work_id, {})
        life.spec = life.spec._replace(
            max_attempts=asked.get("max_attempts", 3),
            has_timeout=asked.get("timeout_s") is not None,
            depends=bool(asked.get("depends_on")),
        )

    def _claim(self, op: Op) -> None:
        first_s = self._first_call_s(op)
        for name, token in granted(op):
            grant = (op.key or f"{op.client}#{op.number}", name.lower(), token)
            if grant in self._granted:
                self._put(name, op, "hold", token=token, answers=frozenset({"held"}))
                continue
            self._granted.add(grant)
            # A repeat with the same key tells what an earlier try was granted.
            self._put(name, op, "grant", invoked_s=first_s, token=token, answers=frozenset({"granted"}))

    def _renew(self, op: Op) -> None:
        refs = op.args["leases"]
        told = op.answer["leases"] if op.is_done and op.answer is not None else [None] * len(refs)
        for ref, answer in zip(refs, told, strict=True):
            if answer is None:
                continue  # A lost renewal changes nothing the model knows of.
            if answer["ok"]:
                answers = frozenset({"cancel" if answer.get("cancel") else "ok"})
            elif answer["code"] in REFUSALS_JUDGED:
                answers = _refusal(answer)
            else:
                continue
            self._put(ref["work_id"], op, "renew", token=ref["token"], answers=answers)

    def _complete_batch(self, op: Op) -> None:
        told = op.answer["items"] if op.is_done and op.answer is not None else [None] * len(op.args["items"])
        for one, answer in zip(op.args["items"], told, strict=True):
            answers = None
            if answer is not None and answer["status"] == "completed":
                answers = DONE_ANSWERS["complete"]
            elif answer is not None:
                if answer["code"] not in REFUSALS_JUDGED:
                    continue
                answers = _refusal(answer)
            result = canonical(one.get("result"))
            self._put(one["work_id"], op, "complete", token=one["token"], answers=answers, result=result)

    def _cancel_or_retry(self, op: Op) -> None:
        group = op.args.get("group")
        verb = op.verb if group is None else f"{op.verb}_group"
        names = [op.args["work_id"]] if group is None else self._groups.get(group, set())
        fields: dict[str, Any] = {"answers": _answers(op, verb)}
        if op.is_done and op.key is not None:
            # It tells what the first try with its key did, which may be an earlier one.
            fields["invoked_s"] = self._first_call_s(op)
            if op.key in self._told:
                fields |= {"is_certain": False, "returned_s": inf}
            self._told.add(op.key)
        for name in sorted(names):
            self._put(name, op, verb, **fields)

    def _get(self, op: Op) -> None:
        if op.ending is Ending.UNKNOWN or op.args.get("consistency", "linearizable") == "stale":
            return
        if op.is_refused:
            self._put(op.args["work_id"], op, "read", answers=frozenset({"not_found"}))
        else:
            assert op.answer is not None
            self._put(op.args["work_id"], op, "read", view=_view(op.answer))

    def _plain(self, op: Op) -> None:
        name, fields = op.args["work_id"], {"token": op.args.get("token", 0)}
        if op.verb == "complete":
            fields["result"] = canonical(op.args.get("result"))
            self._spawn(op)
        elif op.verb == "fail":
            fields["is_last"] = not op.args.get("retryable", True)
        self._put(name, op, op.verb, answers=_answers(op, op.verb), **fields)

    def _spawn(self, op: Op) -> None:
        """What a completion adds. Its repeats answer the same names and add nothing."""
        told = [(name, asked) for name, _, asked in born(op)]
        if op.ending is Ending.UNKNOWN:
            told = [(asked["work_id"], asked) for asked in asked_items(op) if asked.get("work_id") is not None]
        completion = (op.args["work_id"].lower(), op.args["token"])
        is_first = op.is_done and completion not in self._completed
        if op.is_done:
            self._completed.add(completion)
        for name, asked in told:
            # What comes after the spawned ones depends on them.
            self._ask(name, {**asked, "depends_on": True} if asked is op.args.get("then") else asked)
            since_s = self._completing_s[completion]
            until_s = op.returned_s if is_first else inf
            self._put(name, op, "add", invoked_s=since_s, returned_s=until_s, is_certain=is_first)

    def explain_nameless(self) -> None:
        """An item that nobody is known to have asked for may be one that a lost add asked for without an id."""
        if not self._nameless:
            return
        first = min(self._nameless, key=lambda op: op.invoked_s)
        for life in self.lives.values():
            if life.is_asked:
                continue
            if life.work_id not in self._shown:
                life.is_known = False
                continue
            self._ask(life.work_id, self._shown[life.work_id])
            self._put(life.work_id, first, "add", is_certain=False, returned_s=inf)


def _is_own(name: str, status: str, asked: dict[str, Any]) -> bool:
    """Whether the fields asked for are those of the item named in the answer, not of a twin's by unique key."""
    return status == "added" or str(asked.get("work_id", "")).lower() == name.lower()


def _answers(op: Op, verb: str) -> frozenset[str] | None:
    if op.ending is Ending.UNKNOWN:
        return None
    assert op.answer is not None
    if op.is_refused:
        return _refusal(op.answer)
    if verb == "fail":
        return frozenset({"retry" if op.answer["status"] == "retry" else "failed"})
    return DONE_ANSWERS[verb]


def _refusal(answer: dict[str, Any]) -> frozenset[str]:
    if answer["code"] != "already_final":
        return frozenset({answer["code"]})
    if answer.get("state") is not None:
        return frozenset({f"already_final {answer['state']}"})
    return frozenset(f"already_final {state}" for state in FINAL)


def _view(item: dict[str, Any]) -> View:
    lease = item.get("lease")
    token = lease["token"] if lease is not None else None
    return View(item["state"], item.get("attempt"), token, canonical(item.get("result")))
