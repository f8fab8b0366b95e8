"""Of all items with one ``unique_key`` at most one is live at a time."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from chaos.checkers.history import Ending, History, Op, Violation, asked_items, born, completions, granted
from chaos.checkers.items import Judgement
from chaos.checkers.linearizability import VISITS_MAX, Model, Verdict, check, first_misfit


class KeyEvent(NamedTuple):
    """One operation as the key saw it."""

    verb: str
    """``added`` (a live item begins), ``exists`` (one is live), ``ended`` (this item was live until here)."""
    work_id: str
    invoked_s: float
    returned_s: float
    is_certain: bool
    source: Op


def fits(live: str, event: KeyEvent) -> list[str]:
    """The next live item, if the operation can be answered so while ``live`` (empty: none) is."""
    if event.verb == "added":
        return [event.work_id] if not live else []
    if event.verb == "exists":
        return [live] if live == event.work_id else []
    return [""] if live == event.work_id else []


def judge(history: History, visits_max: int = VISITS_MAX) -> Judgement:
    """Judge each unique key whose items end only by what clients ask for.

    A key is left out when time could end one of its items (it was granted, or may have been, as often as
    it has attempts), when one depends on others whose end may cancel it, or when a fail, a retry or a
    group's cancel names one: then any answer may be right. Drivers keep some keys free of that, with
    many attempts.
    """
    found = Judgement()
    for unique_key, events in _events(history).items():
        found.histories += 1
        # A free key may be taken by itself only by operations in the history, so nothing happens by itself.
        model = Model("", fits, lambda live, since_s, until_s: ())
        verdict = check(model, events, visits_max)
        if verdict is Verdict.UNDECIDED:
            found.undecided += 1
        elif verdict is Verdict.BROKEN:
            misfit, before = first_misfit(model, events, _doubted, visits_max)
            told = (
                f"the unique_key {unique_key} had two live items at once, or one that nobody added: "
                f"{misfit.source.client}#{misfit.source.number} ({misfit.source.verb}) cannot have been answered so"
            )
            ops = {id(event.source): event.source for event in before}
            found.violations.append(
                Violation("unique_key_shared", told, tuple(sorted(ops.values(), key=lambda op: op.invoked_s)))
            )
    return found


def _doubted(event: KeyEvent) -> KeyEvent:
    return event._replace(is_certain=False, returned_s=inf)


def _events(history: History) -> dict[str, list[KeyEvent]]:
    events: dict[str, list[KeyEvent]] = {}
    key_of: dict[str, str] = {}
    answered: set[str] = set()
    open_keys: set[str] = set()
    for op in history:
        for name, status, asked in born(op):
            unique_key = asked.get("unique_key")
            if unique_key is None or op.verb == "complete":
                continue
            if op.key is not None and f"{op.key}/{name}" in answered:
                continue  # The first answer again.
            answered.add(f"{op.key}/{name}")
            key_of[name.lower()] = unique_key
            if asked.get("depends_on") and asked.get("on_dependency_failure", "cancel") == "cancel":
                open_keys.add(str(unique_key))  # What it depends on may end it.
            first_s = history.first_call_s(op)
            events.setdefault(unique_key, []).append(_event(op, status, name, invoked_s=first_s))
        if op.ending is Ending.UNKNOWN:
            for asked in asked_items(op):
                if asked.get("unique_key") is None:
                    continue
                key, own = str(asked["unique_key"]), asked.get("work_id")
                if own is None or asked.get("depends_on"):
                    open_keys.add(key)
                else:
                    key_of[own.lower()] = key
                    events.setdefault(key, []).append(_event(op, "added", own))
    first_end_s: dict[str, float] = {}
    for op in history:
        _ends(op, key_of, events, open_keys, first_end_s)
    open_keys |= _ended_by_time(history, key_of)
    return {name: of_key for name, of_key in events.items() if name not in open_keys}


def _ended_by_time(history: History, key_of: dict[str, str]) -> set[str]:
    """The keys with an item whose last attempt may have run out."""
    lost = sum(1 for op in history.of("claim") if op.ending is Ending.UNKNOWN)
    attempts: dict[str, int] = {}
    for op in history:
        for name, _, asked in born(op):
            attempts[name.lower()] = asked.get("max_attempts", 3)
    for op in history.of("claim"):
        for name, _ in granted(op):
            attempts[name.lower()] = attempts.get(name.lower(), 3) - 1
    return {key_of[name] for name, left in attempts.items() if name in key_of and left <= lost}


def _ends(
    op: Op, key_of: dict[str, str], events: dict[str, list[KeyEvent]], open_keys: set[str], first_s: dict[str, float]
) -> None:
    ended: list[tuple[str, str]] = [(name, ending) for name, _, ending in completions(op)]
    if op.verb == "cancel" and op.args.get("work_id") is not None:
        ended.append((op.args["work_id"], op.ending.value))
    elif op.verb in ("cancel", "retry", "fail"):
        names = [op.args["work_id"]] if op.args.get("work_id") is not None else list(key_of)
        open_keys |= {key_of[name.lower()] for name in names if name.lower() in key_of}
        return
    for name, ending in ended:
        unique_key = key_of.get(name.lower())
        if unique_key is None or ending not in (Ending.DONE.value, Ending.UNKNOWN.value):
            continue
        # A repeat is answered what an earlier try did, so the end lies after the first try's call.
        first_s.setdefault(name.lower(), op.invoked_s)
        event = _event(op, "ended", name, invoked_s=first_s[name.lower()])
        is_repeat = any(
            one.verb == "ended" and one.work_id == name.lower() and one.is_certain for one in events[unique_key]
        )
        events[unique_key].append(event._replace(is_certain=False, returned_s=inf) if is_repeat else event)


def _event(op: Op, verb: str, name: str, invoked_s: float | None = None) -> KeyEvent:
    is_certain = op.is_done
    returned_s = op.returned_s if is_certain and op.returned_s is not None else inf
    return KeyEvent(verb, name.lower(), op.invoked_s if invoked_s is None else invoked_s, returned_s, is_certain, op)
