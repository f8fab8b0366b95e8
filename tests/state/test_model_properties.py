"""Promises of the queue, each looked at alone: what a user may rely on whatever else happens."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from itertools import combinations
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringraft.state import commands as ops
from ringraft.state import invariants
from ringraft.state.machine import StateMachine
from ringraft.state.model import Applied, Command, Done, Entry, Epoch, Key, Limits, NewItem, Outcome, Rejected

settings.register_profile("properties-ci", max_examples=60, derandomize=True, deadline=None)
settings.register_profile("properties-long", max_examples=2000, deadline=None)
PROFILE = settings.get_profile("properties-" + os.environ.get("HYPOTHESIS_PROFILE", "ci"))

LEASE_MS = 5_000
LIMITS = Limits(
    retention_ms=20_000, key_grace_ms=8_000, lease_default_ms=LEASE_MS, backoff_base_ms=1_000, backoff_cap_ms=3_000
)

steps_ms = st.sampled_from([0, 0, 1, 700, 2_000, LEASE_MS, 9_000])


class Queue:
    """A machine with its log, one command an entry; a twin may be given something else at the same instant."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.machine = StateMachine(strict=True)
        self.entries: list[Entry] = []
        self.log_ms = 0
        self.applied: Applied | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.do(ops.Begin("v1"))
        self.do(ops.Configure(limits))

    @property
    def index(self) -> int:
        return len(self.entries)

    def do(self, op: Any, step_ms: int = 0, key: str | None = None) -> Outcome:
        stored = Key("p", key, hashlib.sha256(repr(op).encode()).digest()) if key else None
        [outcome] = self.apply((Command(op, stored),), step_ms)
        return outcome

    def apply(self, commands: tuple[Command, ...], step_ms: int = 0) -> tuple[Outcome, ...]:
        self.log_ms += step_ms
        self.entries.append(Entry(self.log_ms, 1_800_000_000_000 + self.log_ms, Epoch(1, 1), commands))
        applied = self.machine.apply(self.index, self.entries[-1])
        invariants.check(self.machine)
        self.events += [(event.type, event.data) for event in applied.events]
        return applied.outcomes

    def done(self, op: Any, step_ms: int = 0, key: str | None = None) -> dict[str, Any]:
        outcome = self.do(op, step_ms, key)
        assert isinstance(outcome, Done), outcome
        return outcome.value

    def claim(self, node_id: str = "n1", max_items: int = 1, step_ms: int = 0) -> list[dict[str, Any]]:
        """The items claimed, as they are right after."""
        claimed = self.done(ops.Claim(node_id, None, max_items, None, None), step_ms)["claimed"]
        return [self.item(work_id) for work_id in claimed]

    def item(self, work_id: str) -> dict[str, Any]:
        view = self.machine.item(work_id)
        assert view is not None, f"{work_id} is gone"
        return view

    def assert_last_entry_changed_nothing(self) -> None:
        """Compare with a machine that was sent nothing but the time instead."""
        twin = StateMachine(strict=True)
        for index, entry in enumerate(self.entries[:-1], start=1):
            twin.apply(index, entry)
        last = self.entries[-1]
        twin.apply(self.index, Entry(last.log_ms, last.wall_ms, last.epoch, (Command(ops.Tick()),)))
        assert twin.digest() == self.machine.digest()


def new_item(work_id: str | None = None, **fields: Any) -> NewItem:
    return NewItem(**{"work_type": "selfplay", "config": msgpack.packb({}), "work_id": work_id, **fields})


def code(outcome: Outcome) -> str:
    return outcome.code if isinstance(outcome, Rejected) else "done"


verbs = st.sampled_from(["claim", "claim", "start", "renew", "complete", "fail", "release", "tick"])
lease_steps = st.lists(st.tuples(verbs, steps_ms, st.integers(0, 9)), max_size=40)


def act(queue: Queue, verb: str, work_id: str, token: int, step_ms: int) -> Outcome:
    match verb:
        case "start":
            return queue.do(ops.Start(work_id, token), step_ms)
        case "renew":
            return queue.do(ops.Renew("n1", (ops.LeaseRef(work_id, token),)), step_ms)
        case "complete":
            return queue.do(ops.Complete(work_id, token), step_ms)
        case "fail":
            return queue.do(ops.Fail(work_id, token, "broken"), step_ms)
        case "release":
            return queue.do(ops.Release(work_id, token), step_ms)
    return queue.do(ops.Tick(), step_ms)


@given(steps=lease_steps)
@settings(PROFILE)
def test_tokens_only_rise_and_one_completion_counts(steps: list[tuple[str, int, int]]) -> None:
    queue = Queue()
    for work_id in ("a", "b", "c"):
        queue.done(ops.Add(new_item(work_id, max_attempts=100)))
    tokens: list[tuple[str, int]] = []
    accepted: dict[str, dict[int, Outcome]] = {}
    for verb, step_ms, pick in steps:
        if verb == "claim" or not tokens:
            granted = [(item["work_id"], item["lease"]["token"]) for item in queue.claim(max_items=2, step_ms=step_ms)]
            newest = max((token for _, token in tokens), default=0)
            assert all(newest < token < 2**53 and token // 4096 == queue.index for _, token in granted)
            assert [token for _, token in granted] == sorted({token for _, token in granted})
            tokens += granted
            continue
        work_id, token = tokens[-1 - pick % len(tokens)]
        outcome = act(queue, verb, work_id, token, step_ms)
        if verb == "complete" and isinstance(outcome, Done):
            assert accepted.setdefault(work_id, {}).setdefault(token, outcome) == outcome
    for work_id in "abc":
        assert len(accepted.get(work_id, {})) <= 1
        completed = [data for kind, data in queue.events if kind == "WORK_COMPLETED" and data["work_id"] == work_id]
        assert len(completed) == len(accepted.get(work_id, {}))


@given(steps=lease_steps)
@settings(PROFILE)
def test_no_lease_is_granted_while_another_lives(steps: list[tuple[str, int, int]]) -> None:
    queue = Queue()
    queue.done(ops.Add(new_item("a", max_attempts=100)))
    token, lives_until_ms = 0, 0
    for verb, step_ms, _ in steps:
        if verb == "claim" or not token:
            for item in queue.claim(step_ms=step_ms):
                assert queue.log_ms >= lives_until_ms, "granted again while the first lease lived"
                token, lives_until_ms = item["lease"]["token"], queue.log_ms + LEASE_MS
            continue
        outcome = act(queue, verb, "a", token, step_ms)
        if verb == "renew" and isinstance(outcome, Done) and outcome.value["leases"][0]["ok"]:
            assert queue.log_ms < lives_until_ms, "renewed after its end"
            lives_until_ms = queue.log_ms + LEASE_MS
        elif verb in ("release", "fail") and isinstance(outcome, Done):
            lives_until_ms = 0
        holds = queue.item("a")["lease"] is not None
        assert not holds or queue.log_ms < lives_until_ms


bad_items = {
    "unknown_dependency": new_item("bad", depends_on=("nowhere",)),
    "dependency_cycle": new_item("bad", depends_on=("bad-too",)),
    "work_id_taken": new_item("taken", priority=1),
}


@given(good=st.integers(0, 5), position=st.integers(0, 5), fault=st.sampled_from(sorted(bad_items)))
@settings(PROFILE)
def test_a_batch_is_all_or_nothing(good: int, position: int, fault: str) -> None:
    queue = Queue()
    queue.done(ops.Add(new_item("taken")))
    items = [new_item(f"i{n}", unique_key=f"u{n}", group="g") for n in range(good)]
    items.insert(position, bad_items[fault])
    if fault == "dependency_cycle":
        items.append(new_item("bad-too", depends_on=("bad",)))
    outcome = queue.do(ops.AddBatch(tuple(items)), key="k")
    assert code(outcome) == fault
    assert isinstance(outcome, Rejected) and outcome.errors, "a refused field is pointed at"
    queue.assert_last_entry_changed_nothing()
    queue.done(ops.AddBatch((new_item("i0", unique_key="u0"),)), key="k")  # a refusal leaves no key behind


@given(good=st.integers(0, 3), fault=st.sampled_from(["unknown_dependency", "work_id_taken"]), in_then=st.booleans())
@settings(PROFILE)
def test_a_fault_in_what_is_spawned_refuses_the_completion(good: int, fault: str, in_then: bool) -> None:
    queue = Queue()
    queue.done(ops.Add(new_item("taken")))
    queue.done(ops.Add(new_item("a", priority=99)))
    [item] = queue.claim()
    token = item["lease"]["token"]
    spawn = tuple(new_item(f"i{n}") for n in range(good)) + (() if in_then else (bad_items[fault],))
    outcome = queue.do(ops.Complete("a", token, spawn=spawn, then=bad_items[fault] if in_then else None))
    assert code(outcome) == fault
    queue.assert_last_entry_changed_nothing()
    value = queue.done(ops.Complete("a", token, spawn=spawn[:good], then=new_item("next")))
    assert value == {"status": "completed", "spawned": [f"i{n}" for n in range(good)], "then": "next"}
    assert queue.item("next")["state"] == ("BLOCKED" if good else "PENDING")
    assert sorted(queue.item("next")["depends_on"]) == sorted(value["spawned"])


@given(
    edges=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=8),
    order=st.permutations(range(8)),
    policy=st.sampled_from(["cancel", "wait"]),
    endings=st.lists(st.sampled_from(["complete", "complete", "fail", "expire"]), max_size=30),
)
@settings(PROFILE)
def test_dependents_never_run_before_their_dependencies(
    edges: list[list[int]], order: list[int], policy: str, endings: list[str]
) -> None:
    items = [
        new_item(
            f"i{n}", depends_on=tuple(sorted({f"i{d % n}" for d in below})) if n else (), on_dependency_failure=policy
        )
        for n, below in enumerate(edges)
    ]
    queue = Queue()
    queue.done(ops.AddBatch(tuple(items[n] for n in order if n < len(items))))
    depends_on = {item.work_id: item.depends_on for item in items}
    for ending in endings:
        for item in queue.claim(max_items=2):
            work_id, token = item["work_id"], item["lease"]["token"]
            assert all(queue.item(name)["state"] == "COMPLETED" for name in depends_on[work_id])
            if ending == "complete":
                queue.done(ops.Complete(work_id, token))
            elif ending == "fail":
                queue.done(ops.Fail(work_id, token, "broken", retryable=False))
        queue.do(ops.Tick(), step_ms=LEASE_MS if ending == "expire" else 0)


@given(
    added=st.lists(st.integers(0, 12), min_size=2, max_size=4),
    claims=st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["complete", "release", "keep"])), max_size=12),
)
@settings(PROFILE)
def test_classes_take_fair_turns_while_they_have_ready_work(added: list[int], claims: list[tuple[int, str]]) -> None:
    queue = Queue()
    for position, (name, count) in enumerate(zip("wxyz", added, strict=False)):
        for n in range(count):
            queue.done(ops.Add(new_item(f"{name}{n}", class_key=name, priority=90 - 10 * position)))
    left = dict(zip("wxyz", added, strict=False))
    pairs = list(combinations(sorted(left), 2))
    ahead = dict.fromkeys(pairs, 0)
    spread = dict.fromkeys(pairs, 1)
    for max_items, ending in claims:
        granted = queue.claim(max_items=max_items)
        for item in granted:
            name = item["work_id"][0]
            left[name] -= 1
            for pair in pairs:
                if name in pair:
                    ahead[pair] += 1 if name == pair[0] else -1
                if not all(left[one] for one in pair):
                    # One of them has nothing ready: no debt remains, and who comes back may be half a turn off.
                    ahead[pair], spread[pair] = 0, 2
                assert abs(ahead[pair]) <= spread[pair], f"{pair}: {ahead} with {left} left"
        for item in granted:
            if ending == "complete":
                queue.done(ops.Complete(item["work_id"], item["lease"]["token"]))
            elif ending == "release":
                queue.done(ops.Release(item["work_id"], item["lease"]["token"]))
                left[item["work_id"][0]] += 1


@given(head_start=st.integers(1, 30), max_items=st.integers(1, 4), had_work_before=st.booleans())
@settings(PROFILE)
def test_a_class_that_comes_later_does_not_catch_up(head_start: int, max_items: int, had_work_before: bool) -> None:
    queue = Queue(limits=Limits(lease_default_ms=3_600_000))
    if had_work_before:
        queue.done(ops.Add(new_item("old", class_key="late")))
        queue.claim()  # the class lives on with a lease, but has nothing ready
    queue.done(ops.AddBatch(tuple(new_item(f"e{n}", class_key="early") for n in range(60))))
    for _ in range(head_start):
        queue.claim()
    queue.done(ops.AddBatch(tuple(new_item(f"l{n}", class_key="late") for n in range(20))))
    had: Counter[str] = Counter()
    while sum(had.values()) < 20:
        had.update(item["work_id"][0] for item in queue.claim(max_items=max_items))
        assert abs(had["e"] - had["l"]) <= 2, f"{had} since both have work"


@given(
    priorities=st.lists(st.integers(0, 3), min_size=1, max_size=10),
    actions=st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["complete", "release", "expire"])), max_size=15),
)
@settings(PROFILE)
def test_priority_then_age_is_strict_inside_a_class(priorities: list[int], actions: list[tuple[int, str]]) -> None:
    queue = Queue()
    rank = {}
    for age, priority in enumerate(priorities):
        work_id = queue.done(ops.Add(new_item(priority=priority, max_attempts=100)))["work_id"]
        rank[work_id] = (-priority, age)
    ready = set(rank)
    for max_items, ending in actions:
        granted = queue.claim(max_items=max_items)
        expected = sorted(ready, key=rank.__getitem__)[:max_items]
        assert [item["work_id"] for item in granted] == expected
        for item in granted:
            if ending == "complete":
                queue.done(ops.Complete(item["work_id"], item["lease"]["token"]))
                ready.discard(item["work_id"])
            elif ending == "release":
                queue.done(ops.Release(item["work_id"], item["lease"]["token"]))
        if ending == "expire":
            queue.do(ops.Tick(), step_ms=LEASE_MS)


keyed = st.sampled_from(["add", "add_batch", "claim", "cancel", "cancel_group", "retry"])


@given(verb=keyed, between=st.lists(st.tuples(st.sampled_from(["claim", "tick", "add"]), steps_ms), max_size=5))
@settings(PROFILE)
def test_a_repeated_key_has_no_second_effect(verb: str, between: list[tuple[str, int]]) -> None:
    queue = Queue()
    for n in range(6):
        queue.done(ops.Add(new_item(f"s{n}", group="g")))
    queue.done(ops.Add(new_item("gone", priority=0)))
    queue.done(ops.Cancel(work_id="gone"))
    op = {
        "add": ops.Add(new_item()),
        "add_batch": ops.AddBatch((new_item(), new_item(), new_item("s0", group="g"))),
        "claim": ops.Claim("n2", None, 2, None, None),
        "cancel": ops.Cancel(work_id="s5"),
        "cancel_group": ops.Cancel(group="g"),
        "retry": ops.Retry(work_id="gone"),
    }[verb]
    first = queue.done(op, key="k")
    passed_ms = 0
    for other, step_ms in between:
        if passed_ms + step_ms >= LIMITS.key_grace_ms:
            continue
        passed_ms += step_ms
        if other == "claim":
            queue.claim(step_ms=step_ms)
        else:
            queue.do(ops.Tick() if other == "tick" else ops.Add(new_item()), step_ms=step_ms)
    again = queue.done(op, key="k")
    queue.assert_last_entry_changed_nothing()
    if verb == "claim":
        held = [item["work_id"] for item in queue.machine.items_for_node("n2")]
        assert again["claimed"] == [work_id for work_id in first["claimed"] if work_id in held]
    else:
        assert again == first
    assert code(queue.do(ops.Add(new_item(priority=1)), key="k")) == "idempotency_mismatch"
    queue.assert_last_entry_changed_nothing()


def test_a_key_dies_with_what_it_made() -> None:
    queue = Queue()
    first = queue.done(ops.Add(new_item()), key="k")
    queue.done(ops.Cancel(work_id=first["work_id"]))
    assert queue.done(ops.Add(new_item()), step_ms=LIMITS.retention_ms - 1, key="k") == first
    again = queue.done(ops.Add(new_item()), step_ms=2, key="k")
    assert again["status"] == "added"
    assert again["work_id"] != first["work_id"]


def test_a_claim_key_lives_with_its_leases_and_at_least_the_grace() -> None:
    queue = Queue()
    for work_id in ("a", "b"):
        queue.done(ops.Add(new_item(work_id)))
    op = ops.Claim("n1", None, 1, LEASE_MS, None)
    assert queue.done(op, key="k")["claimed"] == ["a"]
    for _ in range(5):
        token = queue.item("a")["lease"]["token"]
        queue.done(ops.Renew("n1", (ops.LeaseRef("a", token),)), step_ms=LEASE_MS - 1)
        assert queue.done(op, key="k")["claimed"] == ["a"]
    queue.done(ops.Release("a", token))
    queue.do(ops.Tick())
    assert queue.done(op, key="k")["claimed"] == ["a"]
    assert queue.item("a")["lease"]["token"] > token, "the key was over, so this is a new claim"
    queue.done(ops.Release("a", queue.item("a")["lease"]["token"]))
    assert queue.done(op, key="k")["claimed"] == [], "within the grace it is a repeat that holds nothing any more"


@pytest.mark.parametrize("verb", ["complete", "fail", "release", "start"])
def test_the_codes_of_a_token_that_does_not_count(verb: str) -> None:
    queue = Queue()
    assert code(act(queue, verb, "nowhere", 1, 0)) == "not_found"
    queue.done(ops.Add(new_item("a", max_attempts=9)))
    [first] = queue.claim()
    [second] = queue.claim(node_id="n2", step_ms=LEASE_MS)
    stale, newest = first["lease"]["token"], second["lease"]["token"]
    assert code(act(queue, verb, "a", stale, 0)) == "stale_token"
    queue.done(ops.Complete("a", newest))
    outcome = act(queue, verb, "a", stale, 0)
    assert code(outcome) == "already_final", "final beats stale"
    assert isinstance(outcome, Rejected) and outcome.members["state"] == "COMPLETED"
    expected = "done" if verb == "complete" else "already_final"
    assert code(act(queue, verb, "a", newest, 0)) == expected


def test_leftover_timers_are_handled_by_the_entries_that_follow() -> None:
    queue = Queue(Limits(**{**{name: getattr(LIMITS, name) for name in Limits.__slots__}, "timers_per_entry": 3}))
    for n in range(10):
        queue.done(ops.Add(new_item(f"i{n}")))
    assert len(queue.claim(max_items=10)) == 10
    for step_ms in (LEASE_MS, 0, 0, 0):
        before = len(queue.events)
        queue.do(ops.Tick(), step_ms=step_ms)
        assert sum(1 for kind, _ in queue.events[before:] if kind == "WORK_EXPIRED") <= 3
    assert queue.machine.work_status()["by_status"]["PENDING"] == 10
    assert queue.machine.next_due()[0] is None


@pytest.mark.parametrize(
    ("limits", "items"),
    [
        ({"items_max": 2}, [new_item(), new_item(), new_item()]),
        ({"classes_max": 2}, [new_item(class_key=name) for name in "xyz"]),
        ({"shapes_max": 2}, [new_item(excluded_nodes=(name,)) for name in "xyz"]),
    ],
)
def test_what_is_over_a_limit_is_refused_by_name(limits: dict[str, int], items: list[NewItem]) -> None:
    queue = Queue(Limits(**limits))
    assert [code(queue.do(ops.Add(item))) for item in items] == ["done", "done", "queue_full"]
    queue.assert_last_entry_changed_nothing()
    queue = Queue(Limits(**limits))
    outcome = queue.do(ops.AddBatch(tuple(items)))
    assert isinstance(outcome, Rejected) and outcome.code == "queue_full"
    assert next(iter(limits)) in outcome.detail
    queue.assert_last_entry_changed_nothing()


@given(fails=st.integers(1, 6), count=st.integers(1, 4))
@settings(PROFILE)
def test_backoff_doubles_to_its_cap_and_is_over_when_it_says(fails: int, count: int) -> None:
    queue = Queue()
    for _ in range(count):
        queue.done(ops.Add(new_item(max_attempts=100)))
    for nth in range(1, fails + 1):
        whole_ms = min(LIMITS.backoff_cap_ms, LIMITS.backoff_base_ms * 2 ** (nth - 1))
        latest_ms = 0
        for item in queue.claim(max_items=count):
            value = queue.done(ops.Fail(item["work_id"], item["lease"]["token"], "broken"))
            delay_ms = value["not_before_wall_ms"] - queue.entries[-1].wall_ms
            assert whole_ms // 2 <= delay_ms <= whole_ms
            latest_ms = max(latest_ms, delay_ms)
        assert queue.claim() == []
        queue.do(ops.Tick(), step_ms=latest_ms)
        assert queue.machine.could_claim(ops.Claim("n1", None, 1, None, None))


def test_a_retry_closes_no_cycle_of_dependencies() -> None:
    queue = Queue()
    queue.done(ops.Add(new_item("a")))
    queue.done(ops.Add(new_item("x", depends_on=("a",), on_dependency_failure="wait")))
    queue.done(ops.Add(new_item("y", depends_on=("x",), on_dependency_failure="wait")))
    queue.done(ops.Cancel(work_id="a"))
    queue.done(ops.Cancel(work_id="x"))
    queue.do(ops.Tick(), step_ms=LIMITS.retention_ms)
    assert queue.machine.item("a") is None, "only x depended on it, and x is final"
    queue.done(ops.Add(new_item("a", depends_on=("y",))))
    queue.do(ops.Retry(work_id="x"))
    assert any(queue.item(work_id)["state"] != "BLOCKED" for work_id in "axy"), "they wait for one another for ever"
