"""What goes in comes out: nothing acknowledged is lost, nothing counts twice, nothing comes from nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.checkers.history import Ending, FinalState, History, Op, Violation, asked_items, born, completions, granted
from chaos.checkers.item_model import FINAL
from chaos.checkers.life import canonical
from chaos.checkers.run import WHOLE, Run

TOKENS_PER_ENTRY = 4096
"""A token is its log entry's index times this, plus the position in the entry: the REST contract says so."""


@dataclass(slots=True)
class Totals:
    """A queue's books, as of a total-queue check."""

    acknowledged: int = 0
    """Items whose add was answered."""
    lost: list[str] = field(default_factory=list)
    """Acknowledged, and nowhere at the end."""
    unexpected: list[str] = field(default_factory=list)
    """There at the end, and asked for by nobody."""
    recovered: list[str] = field(default_factory=list)
    """There at the end although their add was never answered: allowed, and worth counting."""
    violations: list[Violation] = field(default_factory=list)


def judge(history: History, finals: Sequence[FinalState], run: Run = WHOLE) -> Totals:
    """Settle the books. With no final reads only what the history alone shows is judged."""
    totals = Totals()
    totals.violations += one_completion(history, finals, run)
    totals.violations += tokens_rise(history)
    totals.violations += one_grant_a_token(history)
    totals.violations += one_effect_a_key(history, run)
    if finals:
        _adds(history, finals, totals)
        totals.violations += histories_in_order(finals)
    return totals


def check(history: History, finals: Sequence[FinalState], run: Run = WHOLE) -> list[Violation]:
    return judge(history, finals, run).violations


def _adds(history: History, finals: Sequence[FinalState], totals: Totals) -> None:
    answered: dict[str, Op] = {}
    asked: dict[str, Op] = {}
    nameless = 0
    for op in history:
        for name, _, _ in born(op):
            answered.setdefault(name.lower(), op)
        if op.ending is Ending.UNKNOWN:
            for one in asked_items(op):
                if one.get("work_id") is not None:
                    asked.setdefault(one["work_id"].lower(), op)
                else:
                    nameless += 1
    totals.acknowledged = len(answered)
    for state in finals:
        there = state.items.keys() | state.archived.keys()
        for name, op in answered.items():
            if name not in there:
                totals.lost.append(name)
                told = f"{name} was acknowledged at {op.returned_s:.3f} s and is not on {state.node} at the end"
                totals.violations.append(Violation("lost_add", told, (op,)))
    everywhere = {name for state in finals for name in state.items.keys() | state.archived.keys()}
    for op in history:
        if op.ending is not Ending.NOT_APPLIED:
            continue
        for name in {str(one.get("work_id", "")).lower() for one in asked_items(op)}:
            if name in everywhere and name not in answered and name not in asked:
                told = f"{name} is there, and every add of it ended as not applied, which means never"
                totals.violations.append(Violation("applied_after_all", told, (op,)))
                asked[name] = op
    unnamed = sorted(everywhere - answered.keys() - asked.keys())
    totals.recovered = sorted(everywhere & (asked.keys() - answered.keys()))
    if len(unnamed) <= nameless:
        totals.recovered += unnamed
        return
    totals.unexpected = unnamed
    told = (
        f"{len(unnamed)} items are there that no add named ({', '.join(unnamed[:8])}), and only {nameless} adds "
        "without an id went unanswered: at least one was added twice or by nobody"
    )
    totals.violations.append(Violation("unexpected_item", told))


def one_completion(history: History, finals: Iterable[FinalState], run: Run = WHOLE) -> list[Violation]:
    """At most one token of an item completes it; it was granted; and the item ends as the answer says."""
    violations = []
    accepted: dict[str, tuple[int, Op]] = {}
    results: dict[str, set[str | None]] = {}
    # An id that was given to a second item is judged by its linearizability alone.
    other_life = _reused(history, run) | {
        op.args["work_id"].lower() for op in history.of("retry") if op.args.get("work_id") is not None
    }
    lost_claims = [op.invoked_s for op in history.of("claim") if op.ending is Ending.UNKNOWN]
    grants = {(name.lower(), token): op for op in history.of("claim") for name, token in granted(op)}
    seen = {
        (op.answer["work_id"].lower(), op.answer["lease"]["token"])
        for op in history.of("get")
        if op.is_done and op.answer is not None and op.answer.get("lease")
    }
    for op in history:
        for number, (name, token, ending) in enumerate(completions(op)):
            key = name.lower()
            if ending in (Ending.DONE.value, Ending.UNKNOWN.value):
                results.setdefault(key, set()).add(canonical(_completed(op)[number].get("result")))
            if ending != Ending.DONE.value:
                continue
            first = accepted.setdefault(key, (token, op))
            if first[0] != token and key not in other_life:
                told = f"{name} was completed twice, with the tokens {first[0]} and {token}: two results count"
                violations.append(Violation("double_completion", told, (first[1], op)))
            if (
                (key, token) not in grants
                and (key, token) not in seen
                and not any(s <= op.invoked_s for s in lost_claims)
            ):
                told = f"{name} was completed with the token {token}, which no claim was ever granted"
                violations.append(Violation("completed_unclaimed", told, (op,)))
    for state in finals:
        for name, (_, op) in accepted.items():
            item = state.items.get(name) or state.archived.get(name)
            if item is None or name in other_life:
                continue
            if item["state"] != "COMPLETED":
                told = f"{name} was acknowledged as completed and is {item['state']} on {state.node} at the end"
                violations.append(Violation("lost_completion", told, (op,)))
            elif "result" in item and canonical(item["result"]) not in results[name]:
                told = f"{name} has on {state.node} a result that nobody sent: {item.get('result')}"
                violations.append(Violation("foreign_result", told, (op,)))
    return violations


def _reused(history: History, run: Run) -> set[str]:
    """Ids that a second item may have got: another add named them, or the same one when the first was gone."""
    keys: dict[str, set[str]] = {}
    first_s: dict[str, float] = {}
    for op in history:
        names = [name for name, status, _ in born(op) if status == "added"]
        if op.ending is Ending.UNKNOWN:
            names = [one["work_id"] for one in asked_items(op) if one.get("work_id") is not None]
        for name in names:
            is_first = name.lower() not in first_s
            began_s = first_s.setdefault(name.lower(), op.invoked_s)
            is_same = is_first or (op.returned_s is not None and op.returned_s < began_s + run.retention_s)
            again = "" if is_same else " later"
            keys.setdefault(name.lower(), set()).add((op.key or f"{op.client}#{op.number}") + again)
    return {name for name, of_name in keys.items() if len(of_name) > 1}


def _completed(op: Op) -> list[dict[str, Any]]:
    return [op.args] if op.verb == "complete" else list(op.args["items"])


def tokens_rise(history: History) -> list[Violation]:
    """A grant that was asked for after another one was answered has a higher token."""
    violations = []
    newest: dict[str, list[tuple[int, Op]]] = {}
    repeated: set[tuple[str | None, str, int]] = set()
    for op in history.of("claim"):
        for name, token in granted(op):
            if op.key is not None and (op.key, name.lower(), token) in repeated:
                continue
            repeated.add((op.key, name.lower(), token))
            for before_token, before in newest.setdefault(name.lower(), []):
                assert before.returned_s is not None
                if before.returned_s < history.first_call_s(op) and before_token >= token:
                    told = f"{name} was granted with the token {before_token}, and later with {token}: tokens only rise"
                    violations.append(Violation("token_fell", told, (before, op)))
            newest[name.lower()].append((token, op))
    return violations


def one_grant_a_token(history: History) -> list[Violation]:
    """No two claims (repeats with one key are one claim) are handed the same token of an item."""
    violations = []
    holders: dict[tuple[str, int], Op] = {}
    for op in history.of("claim"):
        for name, token in granted(op):
            first = holders.setdefault((name.lower(), token), op)
            if first is not op and (first.key is None or first.key != op.key):
                told = f"the token {token} of {name} was handed to two claims: both hold the item"
                violations.append(Violation("token_shared", told, (first, op)))
    return violations


def one_effect_a_key(history: History, run: Run = WHOLE) -> list[Violation]:
    """Whatever was sent with one key and answered, was answered with the same effect."""
    violations = []
    first: dict[str, Op] = {}
    for op in history:
        if op.key is None or not op.is_done or op.answer is None:
            continue
        if op.verb == "claim" and not granted(op):
            continue  # An empty claim leaves no key.
        before = first.setdefault(op.key, op)
        if before is op or before.verb != op.verb or op.returned_s is None:
            continue
        life_s = run.key_grace_s if op.verb == "claim" else run.retention_s
        if op.returned_s >= before.invoked_s + life_s:
            continue  # The key may have ended.
        names, names_before = ([name for name, _, _ in born(one)] for one in (op, before))
        if op.verb in ("add", "add_batch") and names != names_before:
            told = f"the key {op.key} added {', '.join(names_before)} and then {', '.join(names)}: one key, two effects"
            violations.append(Violation("key_forgotten", told, (before, op)))
        if op.verb == "claim":
            # A repeat hands out what is left of the first grant, which was one entry.
            entries = {token // TOKENS_PER_ENTRY for one in (before, op) for _, token in granted(one)}
            if len(entries) > 1:
                told = f"the key {op.key} was granted {granted(before)} and {granted(op)}: one key, two effects"
                violations.append(Violation("key_forgotten", told, (before, op)))
    return violations


def histories_in_order(finals: Iterable[FinalState]) -> list[Violation]:
    """Within an item's own record tokens rise, and one grant at most completed it."""
    violations = []
    for state in finals:
        for name, item in (*state.items.items(), *state.archived.items()):
            tokens = [entry["token"] for entry in item.get("history", ())]
            if sorted(tokens) != tokens:
                told = f"the history of {name} on {state.node} has the tokens {tokens}: they do not rise"
                violations.append(Violation("token_fell", told))
            completed = [entry["token"] for entry in item.get("history", ()) if entry["outcome"] == "completed"]
            if len(completed) > 1:
                told = f"the history of {name} on {state.node} has it completed with {completed}: once is all"
                violations.append(Violation("double_completion", told))
    return violations


def unfinished(finals: Iterable[FinalState]) -> list[Violation]:
    """After the drain every item is final."""
    violations = []
    for state in finals:
        left = {name: item["state"] for name, item in state.items.items() if item["state"] not in FINAL}
        if left:
            shown = ", ".join(f"{name} {at}" for name, at in sorted(left.items())[:8])
            told = f"{len(left)} items are not final on {state.node} although workers had the time: {shown}"
            violations.append(Violation("unfinished", told))
    return violations
