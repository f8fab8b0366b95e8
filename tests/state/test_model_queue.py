"""The state machine beside the naive model: any sequence of entries gives the same answers and the same items.

Few ids, nodes, keys and instants, so that stale tokens, repeats, expiries and collisions are the
rule. ``HYPOTHESIS_PROFILE=long`` looks further.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringraft.state import commands as ops
from ringraft.state import invariants
from ringraft.state.machine import StateMachine
from ringraft.state.model import (
    EVENTS_PER_ENTRY,
    Applied,
    Command,
    Done,
    Entry,
    Epoch,
    Key,
    Limits,
    NewItem,
    Outcome,
    Rejected,
    WorkState,
)
from ringraft.state.records import VoterRecord
from tests.state.naive import Item, NaiveQueue

settings.register_profile(
    "ci",
    max_examples=300,
    stateful_step_count=50,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.register_profile(
    "long", settings.get_profile("ci"), max_examples=3000, stateful_step_count=80, derandomize=False
)
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

WALL_START_MS = 1_800_000_000_000

NODES = ["n1", "n2", "n3"]
CAPABILITIES = [
    msgpack.packb({}),
    msgpack.packb({"cpus": 4, "gpus": [], "labels": {"zone": "a"}, "memory_gb": 8}),
    msgpack.packb({"cpus": 16, "gpus": [{"name": "NVIDIA GeForce RTX 5090", "vram_gb": 32}], "memory_gb": 64}),
]
REQUIREMENTS = [
    msgpack.packb({"cpus": 8}),
    msgpack.packb({"gpu": {"names": ["RTX_5090"]}}),
    msgpack.packb({"gpu": {"count": 1, "min_vram_gb": 40}}),
    msgpack.packb({"labels": {"zone": "a"}}),
]

LADDER = [
    "Deactivated", "NotBefore", "DependencyWait", "DependencyFailed", "Unsatisfiable", "NoMatchingWorker",
    "WorkersUnhealthy", "QuotaExceeded", "FairShare", "LowerPriority", "RetryBackoff", "Ready",
]  # fmt: skip
"""The order in which the reasons of /work/why are looked for; Ready stands alone."""

few = st.integers(0, 5)
work_ids = st.sampled_from(["a", "b", "c", "d", "E", "e"])
groups = st.sampled_from(["g1", "g2"])
node_ids = st.sampled_from(NODES)
steps_ms = st.sampled_from([0, 0, 0, 1, 500, 1000, 2500, 5000, 9000, 25_000])
is_held_back = st.sampled_from([False, False, False, True])
voter_ids = st.sampled_from(["v1", "v2", "V2", "v3"])
data_ids = st.sampled_from(["d1", "d2"])
founders = st.lists(
    st.builds(VoterRecord, voter_ids, st.just("a:1"), st.just("") | data_ids, st.just(1), st.just(True)),
    min_size=1, max_size=3, unique_by=lambda founder: founder.node_id.lower(),
).map(tuple)  # fmt: skip
keys = st.sampled_from([None, None, None, ("p", "k1"), ("p", "k2"), ("q", "k1")])
policies = st.sampled_from(["cancel", "run", "wait"])
holders = st.sampled_from([None, None, "same", "n1"])
token_shifts = st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1])
limits = st.builds(
    Limits,
    items_max=st.sampled_from([2_000_000, 2_000_000, 10]),
    node_leases_max=st.sampled_from([4096, 4096, 2]),
    retention_ms=st.just(20_000),
    key_grace_ms=st.just(8_000),
    lease_default_ms=st.just(6_000),
    backoff_base_ms=st.just(1_000),
    backoff_cap_ms=st.just(3_000),
)


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 4 + list(others))


plain_items = st.builds(
    NewItem,
    work_type=mostly("selfplay", "training"),
    config=st.just(msgpack.packb({})),
    work_id=mostly(None, "a", "b", "c", "d", "E", "e"),
    priority=mostly(50, 90, 10),
    max_attempts=st.sampled_from([1, 2, 3]),
    timeout_ms=mostly(None, 3_333, 3_333),
    unique_key=mostly(None, "u1", "u2"),
    group=mostly(None, "g1", "g2"),
    class_key=mostly("", "hex8_2p"),
)
odd_items = st.builds(
    NewItem,
    work_type=st.sampled_from(["selfplay", "training"]),
    config=st.sampled_from([msgpack.packb({}), msgpack.packb({"games": 1})]),
    work_id=st.none() | work_ids,
    max_attempts=st.sampled_from([1, 2]),
    timeout_ms=mostly(None, 3_333),
    depends_on=st.just(()) | st.lists(work_ids, max_size=2, unique_by=str.lower).map(tuple),
    on_dependency_failure=policies,
    not_before_wall_ms=mostly(None, WALL_START_MS + 4_000, WALL_START_MS + 30_000),
    requirements=mostly(b"", *REQUIREMENTS),
    target_node=mostly(None, "n1"),
    excluded_nodes=mostly((), ("n1",), ("n1", "n2")),
    unique_key=mostly(None, "u1", "u2"),
    group=st.none() | groups,
    class_key=st.sampled_from(["", "hex8_2p"]),
    strict=mostly(False, True),
)
new_items = plain_items | plain_items | plain_items | odd_items


def shown(expected: Any, seen: Any) -> Any:
    """What of ``seen`` the model has an opinion on."""
    if isinstance(expected, dict) and isinstance(seen, dict):
        return {name: shown(value, seen[name]) if name in seen else "missing" for name, value in expected.items()}
    if isinstance(expected, list) and isinstance(seen, list) and len(expected) == len(seen):
        return [shown(e, s) for e, s in zip(expected, seen, strict=True)]
    return seen


def assert_same_outcome(op: Any, expected: Outcome, seen: Outcome) -> None:
    if isinstance(expected, Rejected) or isinstance(seen, Rejected):
        assert type(expected) is type(seen), f"{op}: model {expected}, machine {seen}"
        assert isinstance(expected, Rejected) and isinstance(seen, Rejected)
        assert seen.code in {expected.code, *(code for code, _ in expected.errors)}, (
            f"{op}: model {expected}, machine {seen}"
        )
        assert shown(expected.members, seen.members) == expected.members, f"{op}: model {expected}, machine {seen}"
        if expected.errors:
            assert_same_faults(expected, seen)
    else:
        assert shown(expected.value, seen.value) == expected.value, f"{op}: model {expected}, machine {seen}"


def assert_same_faults(expected: Rejected, seen: Rejected) -> None:
    """All that is wrong is pointed at. What lies between two cycles may be called part of one."""
    missing = {pointer for _, pointer in expected.errors} - {pointer for pointer, _ in seen.errors}
    excess = {pointer for pointer, _ in seen.errors} - {pointer for _, pointer in expected.errors}
    if any(code == "dependency_cycle" for code, _ in expected.errors):
        excess = {pointer for pointer in excess if not pointer.endswith("/depends_on")}
    assert not missing and not excess, f"model {expected}, machine {seen}"


def at(wall_ms: int | None) -> str | None:
    if wall_ms is None:
        return None
    return datetime.fromtimestamp(wall_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{wall_ms % 1000:03d}Z"


def item_view(item: Item) -> dict[str, Any]:
    """The item in the API's shape, as far as the contract fixes every field."""
    grant = item.grant
    lease = None
    if item.is_leased and grant is not None:
        lease = {"node_id": grant.node_id, "token": grant.token, "expires_at": at(grant.expires_wall_ms)}
    view = {
        name: getattr(item.new, name)
        for name in (
            "work_type",
            "priority",
            "max_attempts",
            "on_dependency_failure",
            "target_node",
            "unique_key",
            "group",
        )
    }
    history = [{**entry, "at": at(entry["at_wall_ms"])} for entry in item.history]
    for entry in history:
        del entry["at_wall_ms"]
    view |= {
        "work_id": item.work_id,
        "state": item.state,
        "attempt": item.attempt,
        "config": msgpack.unpackb(item.new.config),
        "timeout_s": item.new.timeout_ms and item.new.timeout_ms / 1000,
        "excluded_nodes": list(item.new.excluded_nodes),
        "parent": item.parent,
        "created_at": at(item.created_wall_ms),
        "finished_at": at(item.finished_wall_ms),
        "lease": lease,
        "history": history,
        "result": item.result and msgpack.unpackb(item.result),
    }
    if item.state is WorkState.RUNNING:
        view["started_at"] = at(item.started_wall_ms)
        view["progress"] = item.progress and msgpack.unpackb(item.progress)
    if item.state is WorkState.FAILED and item.history[-1]["outcome"] == "failed":
        view["error"] = item.error
    return view


def replay(entries: list[tuple[int, Entry, Applied]], machine: StateMachine) -> StateMachine:
    for index, entry, applied in entries:
        assert machine.apply(index, entry) == applied, f"entry {index} has another outcome when it is replayed"
    return machine


class QueueBesideModel(RuleBasedStateMachine):
    """Drives both, one entry at a time; commands that are held back travel in the next entry."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = StateMachine(strict=True)
        self.model = NaiveQueue()
        self.entries: list[tuple[int, Entry, Applied]] = []
        self.held_back: list[Command] = []
        self.grants: list[tuple[str, int, str]] = []
        self.completions: dict[str, int] = {}
        self.epoch = Epoch(1, 1)
        self.log_ms = 0
        self.wall_ms = WALL_START_MS
        self.index = 0
        self.frozen: tuple[Any, str, int] | None = None

    # -- plumbing ----------------------------------------------------------------------------------------------

    def send(self, op: Any, key: tuple[str, str] | None = None, held_back: bool = False, step_ms: int = 0) -> None:
        stored = Key(key[0], key[1], hashlib.sha256(repr(op).encode()).digest()) if key else None
        self.held_back.append(Command(op, stored))
        if not held_back or len(self.held_back) > 5:
            self.flush(step_ms)

    def flush(self, step_ms: int = 0, epoch: Epoch | None = None) -> None:
        self.log_ms += step_ms
        self.wall_ms += step_ms
        self.index += 1
        entry = Entry(self.log_ms, self.wall_ms, epoch or self.epoch, tuple(self.held_back))
        self.held_back = []
        applied = self.machine.apply(self.index, entry)
        self.entries.append((self.index, entry, applied))
        expected = self.model.apply(self.index, entry, applied.outcomes)
        self.learn_backoffs()
        for command, e, s in zip(entry.commands, expected, applied.outcomes, strict=True):
            assert_same_outcome(command.op, e, s)
        self.check_events(applied)
        self.note_grants(entry, applied)

    def learn_backoffs(self) -> None:
        for item in self.model.items.values():
            if item.state is WorkState.PENDING and item.backoff_until_log_ms is None:
                view = self.machine.item(item.work_id)
                assert view is not None
                not_before = datetime.fromisoformat(view["not_before"])
                self.model.learn_backoff(item, round(not_before.timestamp() * 1000) - self.wall_ms)

    def note_grants(self, entry: Entry, applied: Applied) -> None:
        for command, outcome in zip(entry.commands, applied.outcomes, strict=True):
            if isinstance(command.op, ops.Claim) and isinstance(outcome, Done):
                for work_id in outcome.value["claimed"]:
                    grant = self.model.items[work_id.lower()].grant
                    assert grant is not None
                    known = (work_id, grant.token, grant.node_id)
                    if known not in self.grants:
                        self.grants.append(known)

    def check_events(self, applied: Applied) -> None:
        seqs = [event.seq for event in applied.events]
        assert seqs == sorted(set(seqs))
        assert all(seq // EVENTS_PER_ENTRY == self.index for seq in seqs)

    def grant(self, pick: int, holder: str | None, shift: int) -> tuple[str, int, str | None]:
        """A grant that lives (0 to 2), or any of the newest; perhaps with a wrong token or another holder."""
        live = [grant for grant in self.grants if self.is_live(grant)]
        grants = live if live and pick <= 2 else self.grants
        work_id, token, node_id = grants[-1 - pick % len(grants)]
        return work_id, token + shift, node_id if holder == "same" else holder

    def is_live(self, grant: tuple[str, int, str]) -> bool:
        item = self.model.items.get(grant[0].lower())
        return item is not None and item.is_leased and item.grant is not None and item.grant.token == grant[1]

    def known_item(self, work_id: str, pick: int | None) -> str:
        names = [item.work_id for item in self.model.in_age()]
        return work_id if pick is None or not names else names[-1 - pick % len(names)]

    # -- rules -------------------------------------------------------------------------------------------------

    @initialize(limits=limits, news=st.lists(plain_items, min_size=2, max_size=5))
    def begin(self, limits: Limits, news: list[NewItem]) -> None:
        self.send(ops.Begin("v1"), held_back=True)
        self.send(ops.Configure(limits), held_back=True)
        for new in news:
            self.send(ops.Add(new))

    @rule(new=new_items, key=keys, held_back=is_held_back, step_ms=steps_ms)
    def add(self, new: NewItem, key: Any, held_back: bool, step_ms: int) -> None:
        self.send(ops.Add(new), key, held_back, step_ms)

    @rule(news=st.lists(new_items, min_size=1, max_size=4).map(tuple), key=keys, held_back=is_held_back)
    def add_batch(self, news: tuple[NewItem, ...], key: Any, held_back: bool) -> None:
        self.send(ops.AddBatch(news), key, held_back)

    @precondition(lambda self: self.model.items)
    @rule(new=plain_items, picks=st.lists(few, min_size=1, max_size=2), policy=policies)
    def add_dependent(self, new: NewItem, picks: list[int], policy: str) -> None:
        """Depends on items that are there, the newest first."""
        names = [item.work_id for item in reversed(self.model.in_age())]
        below = tuple(dict.fromkeys(names[pick % len(names)] for pick in picks))
        self.send(ops.Add(dataclasses.replace(new, depends_on=below, on_dependency_failure=policy)))

    @rule(node_id=node_ids, max_items=st.sampled_from([1, 1, 3]), do_start=st.booleans(), step_ms=steps_ms)
    def work(self, node_id: str, max_items: int, do_start: bool, step_ms: int) -> None:
        """Claim what there is for a well equipped node, and perhaps start it."""
        known = len(self.grants)
        self.send(ops.Claim(node_id, None, max_items, None, CAPABILITIES[-1]), step_ms=step_ms)
        for work_id, token, _ in self.grants[known:] if do_start else []:
            self.send(ops.Start(work_id, token))

    @rule(
        node_id=node_ids,
        work_types=mostly(None, ("selfplay",), ("training", "selfplay")),
        max_items=st.sampled_from([1, 1, 2, 4]),
        lease_ms=mostly(None, 5_000, 12_000),
        capabilities=st.none() | st.sampled_from(CAPABILITIES),
        key=keys,
        held_back=is_held_back,
        step_ms=steps_ms,
    )
    def claim(self, key: Any, held_back: bool, step_ms: int, **fields: Any) -> None:
        self.send(ops.Claim(**fields), key, held_back, step_ms)

    @precondition(lambda self: self.grants)
    @rule(pick=few, holder=holders, shift=token_shifts, held_back=is_held_back, step_ms=steps_ms)
    def start(self, pick: int, holder: Any, shift: int, held_back: bool, step_ms: int) -> None:
        self.send(ops.Start(*self.grant(pick, holder, shift)), None, held_back, step_ms)

    @precondition(lambda self: self.grants)
    @rule(picks=st.lists(few, min_size=1, max_size=2), node=holders, shift=token_shifts, step_ms=steps_ms)
    def renew(self, picks: list[int], node: Any, shift: int, step_ms: int) -> None:
        grants = [self.grant(pick, "same", shift) for pick in picks]
        node_id = node if node in NODES else grants[0][2]
        refs = tuple(ops.LeaseRef(work_id, token, msgpack.packb(self.index)) for work_id, token, _ in grants)
        self.send(ops.Renew(str(node_id), refs), step_ms=step_ms)

    @precondition(lambda self: self.grants)
    @rule(
        pick=few,
        holder=holders,
        shift=token_shifts,
        spawn=st.just([]) | st.lists(new_items, max_size=2),
        then=st.none() | new_items,
        held_back=is_held_back,
        step_ms=steps_ms,
    )
    def complete(
        self, pick: int, holder: Any, shift: int, spawn: list[NewItem], then: Any, held_back: bool, step_ms: int
    ) -> None:
        work_id, token, node_id = self.grant(pick, holder, shift)
        op = ops.Complete(work_id, token, msgpack.packb({"won": 1}), None, tuple(spawn), then, node_id)
        self.send(op, None, held_back, step_ms)

    @precondition(lambda self: self.grants)
    @rule(picks=st.lists(few, min_size=1, max_size=4), shift=token_shifts, step_ms=steps_ms)
    def complete_batch(self, picks: list[int], shift: int, step_ms: int) -> None:
        refs = [self.grant(pick, None, shift) for pick in picks]
        self.send(ops.CompleteBatch(tuple(ops.Complete(w, t) for w, t, _ in refs)), step_ms=step_ms)

    @precondition(lambda self: self.grants)
    @rule(
        pick=few,
        holder=holders,
        shift=token_shifts,
        retryable=mostly(True, False),
        held_back=is_held_back,
        step_ms=steps_ms,
    )
    def fail(self, pick: int, holder: Any, shift: int, retryable: bool, held_back: bool, step_ms: int) -> None:
        work_id, token, node_id = self.grant(pick, holder, shift)
        self.send(ops.Fail(work_id, token, "it broke", retryable, node_id), None, held_back, step_ms)

    @precondition(lambda self: self.grants)
    @rule(pick=few, holder=holders, shift=token_shifts, held_back=is_held_back, step_ms=steps_ms)
    def release(self, pick: int, holder: Any, shift: int, held_back: bool, step_ms: int) -> None:
        self.send(ops.Release(*self.grant(pick, holder, shift)), None, held_back, step_ms)

    @rule(work_id=work_ids, pick=st.none() | few, key=keys, held_back=is_held_back)
    def cancel(self, work_id: str, pick: int | None, key: Any, held_back: bool) -> None:
        self.send(ops.Cancel(work_id=self.known_item(work_id, pick)), key, held_back)

    @rule(group=groups, key=keys, held_back=is_held_back)
    def cancel_group(self, group: str, key: Any, held_back: bool) -> None:
        self.send(ops.Cancel(group=group), key, held_back)

    @rule(work_id=work_ids, pick=st.none() | few, key=keys, held_back=is_held_back)
    def retry(self, work_id: str, pick: int | None, key: Any, held_back: bool) -> None:
        final = [item.work_id for item in self.model.in_age() if item.is_final]
        chosen = final[-1 - pick % len(final)] if pick is not None and final else work_id
        self.send(ops.Retry(work_id=chosen), key, held_back)

    @rule(group=groups, key=keys)
    def retry_group(self, group: str, key: Any) -> None:
        self.send(ops.Retry(group=group), key)

    @rule(
        node_id=node_ids,
        incarnation=st.integers(1, 3),
        capabilities=st.sampled_from(CAPABILITIES),
        work_types=mostly(None, ("selfplay",)),
    )
    def register(self, node_id: str, incarnation: int, capabilities: bytes, work_types: Any) -> None:
        self.send(ops.RegisterNode(node_id, incarnation, ("worker",), work_types, capabilities, (), "1"))

    @precondition(lambda self: not self.model.voters)
    @rule(founders=founders, held_back=is_held_back)
    def form(self, founders: tuple[VoterRecord, ...], held_back: bool) -> None:
        self.send(ops.FormVoters("f", founders), held_back=held_back)

    @rule(node_id=voter_ids, data_id=data_ids, incarnation=st.integers(1, 3), version=mostly(2, 1))
    def announce(self, node_id: str, data_id: str, incarnation: int, version: int) -> None:
        self.send(ops.AnnounceVoter(node_id, data_id, incarnation, version, ""))

    @rule(
        verb=st.sampled_from(["admit", "add", "add", "remove"]),
        node_id=voter_ids,
        data_id=data_ids,
        incarnation=st.integers(1, 3),
        late=mostly(0, 1),
        held_back=is_held_back,
    )
    def change_voters(
        self, verb: str, node_id: str, data_id: str, incarnation: int, late: int, held_back: bool
    ) -> None:
        basis = self.model.voters_index - late
        op: Any = ops.AdmitVoter(node_id, data_id, incarnation, 2, f"{node_id}:2", basis)
        if verb != "admit":
            op = ops.RemoveVoter(node_id, basis) if verb == "remove" else ops.AddLearner(node_id, "somewhere:1", basis)
        self.send(op, held_back=held_back)

    @rule(step_ms=steps_ms)
    def tick(self, step_ms: int) -> None:
        self.send(ops.Tick(), step_ms=step_ms)

    @precondition(lambda self: self.model.due_times()[0])
    @rule(early_ms=st.sampled_from([0, 0, 1]))
    def tick_when_due(self, early_ms: int) -> None:
        step_ms = max(0, min(self.model.due_times()[0]) - self.log_ms - early_ms)
        self.send(ops.Tick(), step_ms=step_ms)

    @rule(jump_ms=st.sampled_from([-2_000, 10_000]))
    def wall_clock_jumps(self, jump_ms: int) -> None:
        self.wall_ms += jump_ms
        self.send(ops.Tick())

    @precondition(lambda self: self.index % 4 == 0)
    @rule(late_ms=st.sampled_from([0, 30_000]))
    def old_leader_is_not_heard(self, late_ms: int) -> None:
        before, digest = self.log_ms, self.machine.digest()
        self.wall_ms, wall_ms = self.wall_ms + late_ms, self.wall_ms
        if not self.held_back:
            self.held_back = [Command(ops.Add(NewItem("selfplay", b"", work_id="a")))]
        self.flush(late_ms, epoch=Epoch(self.epoch.generation, self.epoch.number - 1))
        self.log_ms, self.wall_ms = before, wall_ms
        assert self.machine.log_ms == self.model.log_ms
        assert digest != ""

    @rule(generations=mostly(0, 1))
    def new_leader(self, generations: int) -> None:
        self.epoch = Epoch(self.epoch.generation + generations, self.epoch.number + 1)
        self.held_back.insert(0, Command(ops.Begin("v2")))
        self.flush()

    @rule()
    def go_on_from_a_snapshot(self) -> None:
        restored = StateMachine.restore(self.machine.snapshot(), strict=True)
        assert restored.digest() == self.machine.digest()
        self.machine = restored

    @rule()
    def take_a_snapshot_for_later(self) -> None:
        self.frozen = (self.machine.snapshot(), self.machine.digest(), len(self.entries))

    @precondition(lambda self: self.frozen is not None)
    @rule()
    def snapshot_is_of_when_it_was_taken(self) -> None:
        assert self.frozen is not None
        chunks, digest, length = self.frozen
        self.frozen = None
        restored = StateMachine.restore(chunks, strict=True)
        assert restored.digest() == digest
        assert replay(self.entries[length:], restored).digest() == self.machine.digest()

    # -- what holds after every step -----------------------------------------------------------------------------

    def items_are_the_same(self) -> None:
        for item in self.model.items.values():
            seen = self.machine.item(item.work_id.swapcase())
            assert seen is not None, f"the machine has lost {item.work_id}"
            expected = item_view(item)
            assert shown(expected, seen) == expected
            assert [name.lower() for name in seen["depends_on"]] == [name.lower() for name in item.new.depends_on]
        for work_id in self.model.retired:
            if work_id.lower() not in self.model.items:
                assert self.machine.item(work_id) is None, f"{work_id} should be retired"

    def lists_are_the_same(self) -> None:
        listed: list[str] = []
        cursor: str | None = None
        for _ in range(len(self.model.items) + 1):
            page, cursor = self.machine.items(cursor=cursor, limit=3)
            listed += [view["work_id"] for view in page]
            if cursor is None:
                break
        assert cursor is None
        assert sorted(listed) == sorted(item.work_id for item in self.model.items.values())
        for state in (WorkState.PENDING, WorkState.COMPLETED):
            page, _ = self.machine.items(state=state, cursor=None, limit=1000)
            expected = sorted(item.work_id for item in self.model.items.values() if item.state is state)
            assert sorted(view["work_id"] for view in page) == expected

    def status_is_the_same(self) -> None:
        status = self.machine.work_status()
        items = list(self.model.items.values())
        assert status["total_items"] == len(items)
        for state in WorkState:
            assert status["by_status"].get(state, 0) == sum(1 for item in items if item.state is state)
        for node_id in NODES:
            held = [item for item in items if item.is_leased and item.grant and item.grant.node_id == node_id]
            assert status["leases_by_node"].get(node_id, 0) == len(held)
            views = self.machine.items_for_node(node_id)
            assert sorted(view["work_id"] for view in views) == sorted(item.work_id for item in held)

    def parked_claims_would_be_woken_when_they_can_have_something(self) -> None:
        for node_id in NODES:
            op = ops.Claim(node_id, None, 1, None, None)
            assert self.machine.could_claim(op) == bool(self.model.room(op) and self.model.claimable(op))

    def voters_are_the_same(self) -> None:
        seen = {
            name: dataclasses.replace(record, changed_wall_ms=0)
            for name, record in self.machine.voter_table.voters.items()
        }
        expected = {one.node_id: dataclasses.replace(one, changed_wall_ms=0) for one in self.model.voters.values()}
        assert seen == expected
        assert self.machine.tables.voters_index == self.model.voters_index

    def reasons_are_true(self) -> None:
        for item in self.model.items.values():
            why = self.machine.why(item.work_id)
            assert why is not None
            codes = [reason["code"] for reason in why["reasons"]]
            assert codes == [code for code in LADDER if code in codes], f"{item.work_id}: {codes}"
            assert all(reason["detail"] for reason in why["reasons"])
            assert bool(codes) == (not item.is_leased)
            assert ("Deactivated" in codes) == item.is_final
            is_blocked = "DependencyWait" in codes or "DependencyFailed" in codes
            assert is_blocked == (item.state is WorkState.BLOCKED)
            is_backing_off = (item.backoff_until_log_ms or 0) > self.log_ms
            assert ("RetryBackoff" in codes) == (item.state is WorkState.PENDING and is_backing_off)
            assert ("NoMatchingWorker" in codes) >= (not self.model.nodes and item.state is WorkState.PENDING)
            if codes == ["Ready"]:
                self.is_next_wherever_it_fits(item, why["rejections"])

    def is_next_wherever_it_fits(self, item: Item, rejections: dict[str, str]) -> None:
        """Ready is a promise: the next claim of any worker that is not named takes this item."""
        takers = [node for node_id, node in self.model.nodes.items() if node_id not in rejections]
        assert takers
        for node in takers:
            op = ops.Claim(node.node_id, node.work_types, 1, None, None)
            assert self.model.room(op) == 1
            assert self.model.next_for(op) is item

    def whatever_is_due_is_announced(self) -> None:
        for due_ms, times in zip(self.machine.next_due(), self.model.due_times(), strict=True):
            due_by_ms = max(min(times, default=0), self.log_ms)
            assert not times or (due_ms is not None and due_ms <= due_by_ms), f"announced {due_ms}, due {due_by_ms}"

    @invariant()
    def both_are_the_same(self) -> None:
        self.items_are_the_same()
        self.lists_are_the_same()
        self.status_is_the_same()
        self.parked_claims_would_be_woken_when_they_can_have_something()
        self.whatever_is_due_is_announced()
        self.reasons_are_true()
        self.voters_are_the_same()
        invariants.check(self.machine)
        assert self.machine.index == self.index
        assert self.machine.log_ms == self.model.log_ms

    def teardown(self) -> None:
        """The same entries on a fresh machine: the same outcomes and events, and the same digest."""
        if self.entries:
            assert replay(self.entries, StateMachine(strict=True)).digest() == self.machine.digest()


TestQueue = pytest.mark.timeout(3600)(QueueBesideModel.TestCase)
TestQueue.settings = PROFILE


def test_fields_of_a_new_item_all_take_part() -> None:
    """A field that is added to NewItem must be drawn here too."""
    drawn = {
        "work_type", "config", "work_id", "priority", "max_attempts", "timeout_ms", "depends_on",
        "on_dependency_failure", "not_before_wall_ms", "requirements", "target_node", "excluded_nodes",
        "unique_key", "group", "class_key", "strict",
    }  # fmt: skip
    assert {one.name for one in dataclasses.fields(NewItem)} == drawn
