"""A second, deliberately simple queue: what the state machine must do, written for reading, not for speed.

Plain dictionaries, full scans and ``sorted()``; no indexes, no heaps, no timers. Whatever can be a
question about the present state is one here: an item is blocked because of what its dependencies
are now, a key is alive because of what its items are now.

Two things the machine may choose and a caller cannot foresee: the ids it mints, and how far
between half and whole a back-off lies. The model takes both from what it sees and checks that
they are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

from ringraft.state import commands as ops
from ringraft.state.decide.voter import VOTERS_MAX
from ringraft.state.model import (
    FINAL,
    LEASED,
    TOKENS_PER_ENTRY,
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

VENDOR_WORDS = {"nvidia", "geforce", "amd", "radeon", "tesla", "quadro", "instinct", "intel", "apple"}

KEYED = ops.Add | ops.AddBatch | ops.Claim | ops.Cancel | ops.Retry
"""Every other verb is idempotent by its token and ignores keys."""

NOT_SEEN = Rejected("not_seen", "the machine's outcome is not known")


@dataclass
class Grant:
    """The newest grant of an item; it stays when the lease ends, because its token still counts."""

    node_id: str
    token: int
    lease_ms: int
    expires_log_ms: int
    expires_wall_ms: int
    timeout_log_ms: int | None = None
    ended: str | None = None
    """How the lease ended; None while it lives."""
    is_spent: bool = False
    """The end of the lease has spent the attempt."""
    answers: dict[str, Done] = field(default_factory=dict)
    """The first answer of each verb that this token was accepted for."""


@dataclass
class Item:
    """One work item."""

    new: NewItem
    work_id: str
    seq: int
    parent: str | None
    created_wall_ms: int
    state: WorkState = WorkState.PENDING
    ready: bool = False
    attempt: int = 0
    grant: Grant | None = None
    backoff_until_log_ms: int | None = 0
    """None: it backs off, but until when within ``backoff_range_ms`` is not known yet."""
    backoff_range_ms: tuple[int, int] = (0, 0)
    finished_log_ms: int = 0
    final_by: tuple[str, int] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    result: bytes | None = None
    error: str | None = None
    progress: bytes | None = None
    started_wall_ms: int | None = None
    finished_wall_ms: int | None = None

    @property
    def queue_class(self) -> tuple[str, str]:
        return (self.new.work_type, self.new.class_key)

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    @property
    def is_leased(self) -> bool:
        return self.state in LEASED


@dataclass
class Remembered:
    """An idempotency key with its first outcome, and whether that still binds."""

    body: bytes
    outcome: Done
    is_alive: Callable[[], bool]
    answer: Callable[[], Done]


Faults = tuple[tuple[str, str], ...]
"""(code, JSON pointer into the request) of everything that is wrong with what is to be added."""


class Refused(Exception):
    """A command changes nothing. Where several things are wrong with it, any of their codes may be the answer's."""

    def __init__(self, code: str, faults: Faults = (), **members: Any) -> None:
        super().__init__(code)
        self.code = code
        self.faults = faults
        self.members = members


def fold_gpu(name: str) -> str:
    """``NVIDIA GeForce RTX 5090`` and ``RTX_5090`` are one: case, separators and vendor words do not count."""
    return "".join(word for word in re.split(r"[^a-z0-9]+", name.casefold()) if word not in VENDOR_WORDS)


def matches(requirements: bytes, capabilities: dict[str, Any]) -> bool:
    """Whether a node with these capabilities can run an item with these requirements: all must match."""
    if not requirements:
        return True
    wanted = msgpack.unpackb(requirements)
    if wanted.get("cpus") is not None and (capabilities.get("cpus") or 0) < wanted["cpus"]:
        return False
    if wanted.get("memory_gb") is not None and (capabilities.get("memory_gb") or 0) < wanted["memory_gb"]:
        return False
    have = capabilities.get("labels") or {}
    if any(have.get(name) != value for name, value in (wanted.get("labels") or {}).items()):
        return False
    gpu = wanted.get("gpu")
    if gpu is None:
        return True
    names = {fold_gpu(name) for name in gpu.get("names") or ()}
    fitting = [
        owned
        for owned in capabilities.get("gpus") or ()
        if (not names or fold_gpu(owned["name"]) in names)
        and (owned.get("vram_gb") or 0) >= (gpu.get("min_vram_gb") or 0)
    ]
    return len(fitting) >= (gpu.get("count") or 1)


class NaiveQueue:
    """The whole queue. ``apply`` as the machine's, with the machine's own outcomes beside the entry."""

    def __init__(self) -> None:
        self.limits = Limits()
        self.log_ms = 0
        self.wall_ms = 0
        self.index = 0
        self.epoch = Epoch(0, 0)
        self.items: dict[str, Item] = {}
        self.nodes: dict[str, ops.RegisterNode] = {}
        self.keys: dict[tuple[str, str], Remembered] = {}
        self.turns: dict[tuple[str, str], int] = {}
        """How many turns each class with live items has had, counted from the common start."""
        self.turn = 0
        """The latest turn that any class has had: the present, for a class that comes now."""
        self.grants_in_entry = 0
        self.additions_in_entry = 0
        self.retired: list[str] = []
        self.voters: dict[str, VoterRecord] = {}
        self.begun_index = 0
        self.voters_index = 0

    # -- entries -----------------------------------------------------------------------------------------------

    def apply(self, index: int, entry: Entry, seen: Sequence[Outcome]) -> list[Outcome]:
        """What the machine should answer. ``seen`` is what it did answer: only free choices are taken from it."""
        self.index = index
        if entry.epoch < self.epoch:
            return [Rejected("stale_epoch", "") for _ in entry.commands]
        self.log_ms = max(self.log_ms, entry.log_ms)
        self.wall_ms = entry.wall_ms
        self.grants_in_entry = 0
        self.additions_in_entry = 0
        self._let_time_pass()
        self._forget_dead_classes()
        outcomes = [self._command(c, s, entry.epoch) for c, s in zip(entry.commands, seen, strict=True)]
        self._settle()
        return outcomes

    def _command(self, command: Command, seen: Outcome, epoch: Epoch) -> Outcome:
        key = (
            command.key if isinstance(command.op, ops.Add | ops.AddBatch | ops.Claim | ops.Cancel | ops.Retry) else None
        )
        if key is not None:
            old = self.keys.get((key.principal, key.key))
            if old is not None and old.is_alive():
                return old.answer() if old.body == key.body else Rejected("idempotency_mismatch", "")
            self.keys.pop((key.principal, key.key), None)
        try:
            outcome = self._decide(command.op, seen, epoch)
        except Refused as refused:
            return Rejected(refused.code, "", refused.faults, refused.members)
        if key is not None:
            self._remember(key, command.op, outcome)
        self._forget_dead_classes()
        return outcome

    def _decide(self, op: Any, seen: Outcome, epoch: Epoch) -> Done:
        match op:
            case ops.Add():
                return self._add(op, seen)
            case ops.AddBatch():
                return self._add_batch(op, seen)
            case ops.Claim():
                return self._claim(op)
            case ops.Start():
                return self._start(op)
            case ops.Renew():
                return Done({"leases": [self._renew(op.node_id, ref.work_id, ref) for ref in op.leases]})
            case ops.Complete():
                return self._complete(op, seen)
            case ops.CompleteBatch():
                return Done({"items": [self._complete_one(one) for one in op.items]})
            case ops.Fail():
                return self._fail(op, seen)
            case ops.Release():
                return self._release(op)
            case ops.Cancel():
                return self._cancel(op)
            case ops.Retry():
                return self._retry(op)
            case ops.RegisterNode():
                return self._register(op)
            case ops.Begin():
                self.begun_index = self.index if epoch != self.epoch else self.begun_index
                self.epoch = epoch
            case ops.AnnounceVoter():
                return self._announce(op)
            case ops.FormVoters() | ops.AdmitVoter() | ops.AddLearner() | ops.RemoveVoter():
                return self._change_voters(op, epoch)
            case ops.Configure():
                self.limits = op.limits
            case ops.Tick() | ops.NodeStatus():
                pass
        return Done({})

    # -- voters ------------------------------------------------------------------------------------------------

    def _voter(self, op: Any) -> VoterRecord:
        record = self.voters.get(op.node_id.lower())
        if record is None:
            raise Refused("not_found")
        return record

    def _announce(self, op: ops.AnnounceVoter) -> Done:
        record = self._voter(op)
        if record.data_id and record.data_id != op.data_id:
            raise Refused("conflict")
        if record.data_id == op.data_id and record.incarnation > op.incarnation:
            raise Refused("conflict")
        return self._says(record, op, record.is_voter)

    def _says(self, record: VoterRecord, op: Any, is_voter: bool) -> Done:
        said = (op.address or record.address, op.data_id, op.incarnation, is_voter, op.command_version)
        known = (record.address, record.data_id, record.incarnation, record.is_voter, record.command_version)
        self.voters[op.node_id.lower()] = VoterRecord(record.node_id, *said)
        return Done({"status": "exists" if said == known else "admitted" if hasattr(op, "basis") else "announced"})

    def _change_voters(self, op: Any, epoch: Epoch) -> Done:
        basis = 0 if isinstance(op, ops.FormVoters) else op.basis
        has_begun = epoch == self.epoch and self.begun_index < self.index
        if not has_begun or self.voters_index == self.index or self.voters_index != basis:
            raise Refused("conflict")
        done = self._changed_voters(op)
        if done.value["status"] != "exists":
            self.voters_index = self.index
        return done

    def _changed_voters(self, op: Any) -> Done:
        match op:
            case ops.FormVoters():
                if self.voters:
                    raise Refused("conflict")
                self.voters = {one.node_id.lower(): one for one in op.founders}
                return Done({"status": "formed"})
            case ops.AdmitVoter():
                return self._says(self._voter(op), op, True)
            case ops.RemoveVoter():
                record = self._voter(op)
                if record.is_voter and len([one for one in self.voters.values() if one.is_voter]) == 1:
                    raise Refused("conflict")
                del self.voters[op.node_id.lower()]
                return Done({"status": "removed"})
        record = self.voters.get(op.node_id.lower(), VoterRecord(op.node_id, ""))
        if record.is_voter or record.address == op.address:
            return Done({"status": "exists"})
        if not self.voters or (record.address == "" and len(self.voters) == VOTERS_MAX):
            raise Refused("conflict")
        self.voters[op.node_id.lower()] = replace(record, address=op.address)
        return Done({"status": "added"})

    # -- time --------------------------------------------------------------------------------------------------

    def due_times(self) -> tuple[list[int], list[int]]:
        """When something about an item ends: in log time (leases, time limits, back-offs, retention), in wall time."""
        log_times, wall_times = [], []
        for item in self.items.values():
            if item.is_leased and item.grant:
                log_times.append(item.grant.expires_log_ms)
                if item.grant.timeout_log_ms is not None:
                    log_times.append(item.grant.timeout_log_ms)
            elif item.state is WorkState.PENDING and not item.ready:
                if item.backoff_until_log_ms and item.backoff_until_log_ms > self.log_ms:
                    log_times.append(item.backoff_until_log_ms)
                elif item.new.not_before_wall_ms:
                    wall_times.append(item.new.not_before_wall_ms)
            elif item.is_final and not self._is_needed(item):
                log_times.append(item.finished_log_ms + self.limits.retention_ms)
        return log_times, wall_times

    def _let_time_pass(self) -> None:
        for item in list(self.items.values()):
            if not item.is_leased or item.grant is None:
                continue
            grant = item.grant
            timeout_log_ms = grant.timeout_log_ms
            if timeout_log_ms is not None and timeout_log_ms <= min(self.log_ms, grant.expires_log_ms):
                self._spend(item, "timeout")
                if not item.is_final:
                    self._back_off(item)
            elif grant.expires_log_ms <= self.log_ms:
                self._lose(item, "expired")
        for item in self.in_age():
            self._wake(item)
        for item in list(self.items.values()):
            if self.may_retire(item):
                self._remove(item)

    def may_retire(self, item: Item) -> bool:
        """A final item goes after its retention, unless a live item depends on it."""
        is_over = self.log_ms >= item.finished_log_ms + self.limits.retention_ms
        return item.is_final and is_over and not self._is_needed(item)

    def _is_needed(self, item: Item) -> bool:
        return any(not other.is_final and item.work_id.lower() in depends_on(other) for other in self.items.values())

    def _remove(self, item: Item) -> None:
        del self.items[item.work_id.lower()]
        self.retired.append(item.work_id)

    def _wake(self, item: Item) -> None:
        """Make a waiting item ready once its back-off and its ``not_before`` are over."""
        if item.state is not WorkState.PENDING or item.ready or item.backoff_until_log_ms is None:
            return
        if item.backoff_until_log_ms <= self.log_ms and (item.new.not_before_wall_ms or 0) <= self.wall_ms:
            self._make_ready(item)

    def _make_ready(self, item: Item) -> None:
        # A class that was away takes its turns from now on: it does not catch up on what it missed.
        if not any(other.ready for other in self.items.values() if other.queue_class == item.queue_class):
            self.turns[item.queue_class] = max(self.turns.get(item.queue_class, 0), self.turn)
        item.ready = True

    def _back_off(self, item: Item) -> None:
        whole_ms = min(self.limits.backoff_cap_ms, self.limits.backoff_base_ms * 2 ** (item.attempt - 1))
        item.backoff_range_ms = (whole_ms // 2, whole_ms)
        item.backoff_until_log_ms = None

    def learn_backoff(self, item: Item, delay_ms: int) -> None:
        """Take over the machine's choice of a back-off, counted from the present entry."""
        low_ms, high_ms = item.backoff_range_ms
        assert low_ms <= delay_ms <= high_ms, f"{item.work_id} backs off {delay_ms} ms, not {low_ms} to {high_ms} ms"
        item.backoff_until_log_ms = self.log_ms + delay_ms

    def _settle(self) -> None:
        """Free or cancel whatever waits for items that are final now, and what waits for those in turn."""
        changed = True
        while changed:
            changed = False
            for item in self.in_age():
                standing = self._standing(item)
                if item.state is not WorkState.BLOCKED or standing is WorkState.BLOCKED:
                    continue
                changed = True
                if standing is WorkState.CANCELLED:
                    self._finish(item, WorkState.CANCELLED, None)
                else:
                    item.state = WorkState.PENDING
                    self._wake(item)
        self._forget_dead_classes()

    def _standing(self, item: Item) -> WorkState:
        """PENDING, BLOCKED or CANCELLED: what its dependencies make of an item that nobody holds."""
        # A younger item is another one that took the name of a retired one.
        there = [self.items[name] for name in depends_on(item) if name in self.items]
        states = [one.state for one in there if one.seq // 4096 <= item.seq // 4096]
        unmet = [state for state in states if state is not WorkState.COMPLETED]
        is_broken = any(state in FINAL for state in unmet)
        if item.new.on_dependency_failure == "cancel" and is_broken:
            return WorkState.CANCELLED
        if item.new.on_dependency_failure == "run":
            unmet = [state for state in unmet if state not in FINAL]
        return WorkState.BLOCKED if unmet else WorkState.PENDING

    def in_age(self) -> list[Item]:
        return sorted(self.items.values(), key=lambda item: item.seq)

    def _forget_dead_classes(self) -> None:
        live = {item.queue_class for item in self.items.values() if not item.is_final}
        self.turns = {name: turns for name, turns in self.turns.items() if name in live}

    # -- adding ------------------------------------------------------------------------------------------------

    def _add(self, op: ops.Add, seen: Outcome) -> Done:
        chosen = seen.value.get("work_id") if isinstance(seen, Done) else None
        [(status, item)] = self._add_all([op.item], [""], [chosen], None)
        if status == "exists":
            return Done({"status": status, "work_id": item.work_id})
        return Done({"status": status, "work_id": item.work_id, "state": item.state, "index": self.index})

    def _add_batch(self, op: ops.AddBatch, seen: Outcome) -> Done:
        chosen = [one.get("work_id") for one in seen.value["items"]] if isinstance(seen, Done) else []
        added = self._add_all(op.items, [f"/items/{n}" for n in range(len(op.items))], chosen, None)
        return Done({"items": [{"status": status, "work_id": item.work_id} for status, item in added]})

    def _add_all(
        self,
        news: Sequence[NewItem],
        pointers: Sequence[str],
        chosen: Sequence[str | None],
        parent: str | None,
        then: NewItem | None = None,
    ) -> list[tuple[str, Item]]:
        """Add all of them or none; ``then`` last, after all the others. ``chosen`` has the machine's ids."""
        added: list[tuple[str, Item]] = []
        fresh: dict[str, Item] = {}
        standing: dict[str, str] = {}
        faults: list[tuple[str, str]] = []
        for place, each in enumerate([*news, *([then] if then else [])]):
            new, pointer = each, [*pointers, "/then"][place]
            if place == len(news):
                new = replace(each, depends_on=tuple(dict.fromkeys((*each.depends_on, *(i.work_id for _, i in added)))))
            known = self.items | fresh
            taken = known.get(new.work_id.lower()) if new.work_id else None
            if taken is not None and (taken.new != new or taken.parent != parent):
                faults.append(("work_id_taken", f"{pointer}/work_id"))
                continue
            twin = taken or self._live_with_key(new.unique_key, known.values())
            if twin is not None:
                added.append(("exists", twin))
                continue
            work_id = new.work_id or (chosen[place] if place < len(chosen) else None) or f"unseen-{place}"
            assert work_id.lower() not in known, f"the minted id {work_id} is taken"
            item = Item(new, work_id, self.index * 4096 + self.additions_in_entry, parent, self.wall_ms)
            self.additions_in_entry += 1
            fresh[work_id.lower()] = item
            standing[work_id.lower()] = pointer
            added.append(("added", item))
        faults += self._faults(fresh, standing)
        if faults:
            raise Refused(faults[0][0], tuple(faults))
        if fresh and len(self.items | fresh) > self.limits.items_max:
            raise Refused("queue_full")
        self.items |= fresh
        for item in fresh.values():
            self._place(item)
        return added

    def _faults(self, fresh: dict[str, Item], standing: dict[str, str]) -> list[tuple[str, str]]:
        """What is wrong with the items beside one another; ``standing`` says where each is in the request."""
        known = self.items | fresh
        faults = []
        for name, item in fresh.items():
            pointer = standing[name]
            for place, below in enumerate(depends_on(item)):
                if below not in known:
                    faults.append(("unknown_dependency", f"{pointer}/depends_on/{place}"))
            if name in all_below(item, fresh):
                faults.append(("dependency_cycle", f"{pointer}/depends_on"))
            if item.new.strict and not any(self._could_ever_run(node, item) for node in self.nodes.values()):
                faults.append(("unsatisfiable", f"{pointer}/requirements"))
        return faults

    def _could_ever_run(self, node: ops.RegisterNode, item: Item) -> bool:
        fits = matches(item.new.requirements, msgpack.unpackb(node.capabilities))
        return fits and may_have(item, node.node_id, node.work_types)

    def _live_with_key(self, unique_key: str | None, items: Iterable[Item]) -> Item | None:
        live = [item for item in items if unique_key and item.new.unique_key == unique_key and not item.is_final]
        assert len(live) <= 1, f"{unique_key} is held by more than one live item"
        return live[0] if live else None

    def _place(self, item: Item) -> None:
        """Give an item without a holder the state its dependencies ask for."""
        item.state = self._standing(item)
        if item.state is WorkState.CANCELLED:
            self._finish(item, WorkState.CANCELLED, None)
        self._wake(item)

    # -- claiming ----------------------------------------------------------------------------------------------

    def claimable(self, op: ops.Claim) -> list[Item]:
        """The ready items that this claim could have, whatever their order."""
        node = self.nodes.get(op.node_id)
        packed = op.capabilities if op.capabilities is not None else node.capabilities if node else b""
        capabilities = msgpack.unpackb(packed) if packed else {}
        return [
            item
            for item in self.items.values()
            if item.ready and may_have(item, op.node_id, op.work_types) and matches(item.new.requirements, capabilities)
        ]

    def room(self, op: ops.Claim) -> int:
        """How many more leases the claim may hand to its node."""
        held = sum(1 for item in self.items.values() if item.is_leased and item.grant and is_held_by(item, op.node_id))
        return max(0, min(op.max_items, self.limits.claim_items_max, self.limits.node_leases_max - held))

    def next_for(self, op: ops.Claim) -> Item | None:
        """The class with the fewest turns, then its name; inside a class strictly priority, then age."""
        order = lambda i: (self.turns[i.queue_class], i.queue_class, -i.new.priority, i.seq)  # noqa: E731
        return min(self.claimable(op), key=order, default=None)

    def _claim(self, op: ops.Claim) -> Done:
        lease_ms = op.lease_ms if op.lease_ms is not None else self.limits.lease_default_ms
        claimed = []
        for _ in range(self.room(op)):
            best = self.next_for(op)
            if best is None:
                break
            self.turn = max(self.turn, self.turns[best.queue_class])
            self.turns[best.queue_class] += 1
            token = self.index * TOKENS_PER_ENTRY + self.grants_in_entry
            self.grants_in_entry += 1
            best.grant = Grant(op.node_id, token, lease_ms, self.log_ms + lease_ms, self.wall_ms + lease_ms)
            best.state = WorkState.ASSIGNED
            best.ready = False
            best.started_wall_ms = None
            claimed.append(best.work_id)
        return Done({"claimed": claimed})

    # -- holding -----------------------------------------------------------------------------------------------

    def _held(self, verb: str, work_id: str, token: int, holder: str | None) -> tuple[Item, Grant]:
        """The item and its newest grant, if ``token`` is that grant's; the refusals common to all verbs."""
        item = self.items.get(work_id.lower())
        if item is None:
            raise Refused("not_found")
        if item.is_final and item.final_by != (verb, token):
            raise Refused("already_final", state=item.state)
        if item.grant is None or item.grant.token != token:
            raise Refused("stale_token")
        if holder is not None and holder != item.grant.node_id:
            raise Refused("forbidden")
        return item, item.grant

    def _start(self, op: ops.Start) -> Done:
        item, grant = self._held("start", op.work_id, op.token, op.holder)
        if item.state is WorkState.RUNNING:
            return Done({"status": "running"})
        if item.state is not WorkState.ASSIGNED:
            raise Refused("wrong_state")
        item.state = WorkState.RUNNING
        item.started_wall_ms = self.wall_ms
        if item.new.timeout_ms is not None:
            grant.timeout_log_ms = self.log_ms + item.new.timeout_ms
        return Done({"status": "running"})

    def _renew(self, node_id: str, work_id: str, ref: Any) -> dict[str, Any]:
        item = self.items.get(work_id.lower())
        if item is not None and item.state is WorkState.CANCELLED and item.grant and item.grant.token == ref.token:
            if item.grant.node_id == node_id:
                return {"work_id": work_id, "ok": True, "expires_at_wall_ms": None, "cancel": True}
        try:
            item, grant = self._held("renew", work_id, ref.token, node_id)
            if not item.is_leased:
                raise Refused("wrong_state")
        except Refused as refused:
            return {"work_id": work_id, "ok": False, "code": refused.code}
        grant.expires_log_ms = self.log_ms + grant.lease_ms
        grant.expires_wall_ms = self.wall_ms + grant.lease_ms
        if ref.progress is not None:
            item.progress = ref.progress
        return {"work_id": work_id, "ok": True, "expires_at_wall_ms": grant.expires_wall_ms, "cancel": False}

    def _finishable(self, verb: str, op: Any) -> tuple[Item, Grant, Done | None]:
        """The item that a complete or a fail is for, and the answer it had already when this is a repeat."""
        item, grant = self._held(verb, op.work_id, op.token, op.holder)
        if verb in grant.answers:
            return item, grant, grant.answers[verb]
        if not item.is_leased and (item.state is not WorkState.PENDING or grant.ended != "expired"):
            raise Refused("wrong_state")
        return item, grant, None

    def _complete(self, op: ops.Complete, seen: Outcome) -> Done:
        item, grant, first = self._finishable("complete", op)
        if first is not None:
            return first
        shown = seen.value if isinstance(seen, Done) else {"spawned": [], "then": None}
        state, item.state = item.state, WorkState.COMPLETED  # the spawned may depend on it or take its unique key
        try:
            pointers = [f"/spawn/{n}" for n in range(len(op.spawn))]
            added = self._add_all(op.spawn, pointers, [*shown["spawned"], shown["then"]], item.work_id, op.then)
        except Refused:
            item.state = state
            raise
        item.result = op.result
        self._note(item, "completed")
        self._finish(item, WorkState.COMPLETED, ("complete", op.token))
        names = [one.work_id for _, one in added]
        then = names.pop() if op.then else None
        grant.answers["complete"] = Done({"status": "completed", "spawned": names, "then": then})
        return grant.answers["complete"]

    def _complete_one(self, op: ops.Complete) -> dict[str, Any]:
        try:
            self._complete(op, NOT_SEEN)
        except Refused as refused:
            return {"status": "refused", "code": refused.code}
        return {"status": "completed"}

    def _fail(self, op: ops.Fail, seen: Outcome) -> Done:
        item, grant, first = self._finishable("fail", op)
        if first is not None:
            return first
        item.error = op.error
        self._spend(item, "failed", ("fail", op.token), is_last=not op.retryable)
        not_before_wall_ms = None
        if not item.is_final:
            self._back_off(item)
            if isinstance(seen, Done):
                not_before_wall_ms = seen.value["not_before_wall_ms"]
                self.learn_backoff(item, not_before_wall_ms - self.wall_ms)
        status = "failed" if item.is_final else "retry"
        answer = Done({"status": status, "state": item.state, "not_before_wall_ms": not_before_wall_ms})
        grant.answers["fail"] = answer
        return answer

    def _release(self, op: ops.Release) -> Done:
        item, grant = self._held("release", op.work_id, op.token, op.holder)
        if "release" not in grant.answers:
            if not item.is_leased:
                raise Refused("wrong_state")
            self._note(item, "released")
            self._free(item, "released")
            grant.answers["release"] = Done({"status": "released"})
        return grant.answers["release"]

    # -- endings of a lease and of an item -----------------------------------------------------------------------

    def _lose(self, item: Item, outcome: str) -> None:
        """The holder is gone: an attempt is spent only if it had started; ready at once."""
        if item.state is WorkState.RUNNING:
            self._spend(item, outcome)
        else:
            self._note(item, outcome)
            self._free(item, outcome)

    def _spend(self, item: Item, outcome: str, by: tuple[str, int] | None = None, is_last: bool = False) -> None:
        """One attempt went wrong; the item goes back to PENDING while it has another."""
        self._note(item, outcome)
        assert item.grant is not None
        if not item.grant.is_spent:  # a late fail after an expiry that spent it already
            item.attempt += 1
            item.grant.is_spent = True
        if is_last or item.attempt >= item.new.max_attempts:
            self._finish(item, WorkState.FAILED, by)
            item.grant.ended = outcome
        else:
            self._free(item, outcome)

    def _free(self, item: Item, outcome: str) -> None:
        assert item.grant is not None
        item.grant.ended = outcome
        item.grant.timeout_log_ms = None
        item.state = WorkState.PENDING
        item.ready = False
        item.backoff_until_log_ms = 0
        if outcome not in ("failed", "timeout"):  # these back off first
            self._wake(item)

    def _finish(self, item: Item, state: WorkState, by: tuple[str, int] | None) -> None:
        item.state = state
        item.ready = False
        item.final_by = by
        item.finished_log_ms = self.log_ms
        item.finished_wall_ms = self.wall_ms

    def _note(self, item: Item, outcome: str) -> None:
        assert item.grant is not None
        node_id, token = item.grant.node_id, item.grant.token
        attempt = item.attempt + (0 if item.grant.is_spent else 1)
        entry = {"attempt": attempt, "node_id": node_id, "token": token, "outcome": outcome}
        item.history = [*item.history, {**entry, "at_wall_ms": self.wall_ms}][-self.limits.history_max :]

    # -- cancel, retry, nodes ----------------------------------------------------------------------------------

    def _chosen(self, op: ops.Cancel | ops.Retry) -> list[Item]:
        if op.work_id is None:
            return [item for item in self.in_age() if item.new.group == op.group]
        item = self.items.get(op.work_id.lower())
        if item is None:
            raise Refused("not_found")
        return [item]

    def _cancel(self, op: ops.Cancel) -> Done:
        chosen = self._chosen(op)
        if op.work_id is not None and chosen[0].is_final:
            raise Refused("already_final", state=chosen[0].state)
        live = [item for item in chosen if not item.is_final]
        for item in live:
            if item.is_leased and item.grant:
                self._note(item, "cancelled")
                item.grant.ended = "cancelled"
            self._finish(item, WorkState.CANCELLED, None)
        return Done({"status": "cancelled", "count": len(live)})

    def _retry(self, op: ops.Retry) -> Done:
        chosen = self._chosen(op)
        if op.work_id is not None and chosen[0].state is WorkState.COMPLETED:
            raise Refused("already_final", state=chosen[0].state)
        if op.work_id is not None and not chosen[0].is_final:
            raise Refused("wrong_state")
        back = [item for item in chosen if item.state in (WorkState.FAILED, WorkState.CANCELLED)]
        for item in back:
            if self._live_with_key(item.new.unique_key, self.items.values()):
                raise Refused("conflict")
        for item in back:
            item.attempt = 0
            if item.grant:
                item.grant.ended = "retried"  # it is not PENDING through expiry any more
            item.backoff_until_log_ms = 0
            item.final_by = None
            item.finished_wall_ms = None
            self._place(item)
        return Done({"status": "retried", "count": len(back)})

    def _register(self, op: ops.RegisterNode) -> Done:
        old = self.nodes.get(op.node_id)
        if old is not None and op.incarnation < old.incarnation:
            raise Refused("conflict")
        freed = 0
        if old is not None and op.incarnation > old.incarnation:
            for item in self.in_age():
                if item.is_leased and is_held_by(item, op.node_id):
                    self._lose(item, "superseded")
                    freed += 1
        self.nodes[op.node_id] = op
        return Done({"status": "registered", "freed": freed})

    # -- keys --------------------------------------------------------------------------------------------------

    def _remember(self, key: Key, op: Any, first: Done) -> None:
        """Keep a key for as long as what its command made is there; what made nothing leaves no key."""
        now_ms, answer = self.log_ms, lambda: first
        match op:
            case ops.Add() | ops.AddBatch():
                shown = first.value["items"] if isinstance(op, ops.AddBatch) else [first.value]
                made = [self.items[one["work_id"].lower()] for one in shown if one["status"] == "added"]
                if not made:
                    return
                is_alive = lambda: any(self.items.get(item.work_id.lower()) is item for item in made)  # noqa: E731
            case ops.Claim():
                grants = [(item, item.grant) for item in map(self.items.get, lower(first.value["claimed"])) if item]
                if not grants:
                    return

                def held() -> list[str]:
                    return [item.work_id for item, grant in grants if item.is_leased and item.grant is grant]

                is_alive = lambda: bool(held()) or self.log_ms < now_ms + self.limits.key_grace_ms  # noqa: E731
                answer = lambda: Done({"claimed": held()})  # noqa: E731
            case _:
                if first.value["count"] == 0:
                    return
                is_alive = lambda: self.log_ms < now_ms + self.limits.retention_ms  # noqa: E731
        self.keys[key.principal, key.key] = Remembered(key.body, first, is_alive, answer)


def lower(names: Iterable[str]) -> list[str]:
    return [name.lower() for name in names]


def depends_on(item: Item) -> list[str]:
    return lower(item.new.depends_on)


def all_below(item: Item, known: dict[str, Item]) -> set[str]:
    """Everything that an item depends on, through any number of steps."""
    below: set[str] = set()
    todo = depends_on(item)
    while todo:
        name = todo.pop()
        if name in known and name not in below:
            below.add(name)
            todo += depends_on(known[name])
    return below


def is_held_by(item: Item, node_id: str) -> bool:
    return item.grant is not None and item.grant.node_id == node_id


def may_have(item: Item, node_id: str, work_types: Sequence[str] | None) -> bool:
    """Whether the item's own wishes and the node's offer leave the item open to this node."""
    new = item.new
    is_offered = work_types is None or new.work_type in work_types
    return is_offered and new.target_node in (None, node_id) and node_id not in new.excluded_nodes
