"""Histories whose truth is known: a seeded random program run against the real state machine.

Operations are decided one after the other; each one's call lies a little before its decision and its
answer a little after it, so that they overlap. Answers get lost, and some lost ones never happened.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import msgpack

from chaos.checkers.history import Ending, FinalState, History, Op
from chaos.checkers.run import Run
from ringraft.state import commands as ops
from ringraft.state.machine import StateMachine
from ringraft.state.model import TOKENS_PER_ENTRY, Command, Done, Entry, Epoch, Key, Limits, NewItem, Outcome
from ringraft.state.records import BIRTHS_PER_ENTRY

WALL_MS = 1_700_000_000_000
LEASE_S = 3.0
NODES = ("w1", "w2", "w3")


@dataclass
class Play:
    """One program. ``overlap_s``: how far calls and answers lie from decisions at most."""

    seed: int
    steps: int = 60
    overlap_s: float = 1.0
    loss: float = 0.2
    retention_s: float = 1000.0
    machine: StateMachine = field(init=False)
    ops: list[Op] = field(default_factory=list)
    archived: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.machine = StateMachine(strict=True)
        self._now_s = 0.0
        self._index = 0
        self._number = 0
        self._called_s: dict[int, float] = {}
        self._sent: list[tuple[str, dict[str, Any]]] = []
        limits = Limits(lease_min_ms=1000, backoff_base_ms=500, retention_ms=int(self.retention_s * 1000))
        self._apply(ops.Configure(limits), None)

    @property
    def run(self) -> Run:
        return Run(retention_s=self.retention_s, key_grace_s=120.0)

    def history(self) -> History:
        for _ in range(self.steps):
            self._now_s += self._random.choice([0.01, 0.1, 0.3, 1.0])
            self._step()
        return History(self.ops)

    def final(self, node: str = "n1") -> FinalState:
        items, _ = self.machine.items(cursor=None, limit=1000)
        held = {item["work_id"].lower(): item for item in items}
        return FinalState(node, self.machine.index, self.machine.digest(), held, dict(self.archived))

    def _step(self) -> None:
        chance = self._random
        verb = chance.choice(["add", "add", "claim", "claim", "get", "get", "act", "act", "act", "cancel", "retry"])
        if self._sent and chance.random() < 0.1:
            verb, args = chance.choice(self._sent)
            return self._do(verb, args)
        if verb == "add":
            return self._do("add", self._new_item())
        if verb == "claim":
            key = {"idempotency_key": f"k{self._number}"} if chance.random() < 0.7 else {}
            args = {"node_id": chance.choice(NODES), "max_items": chance.choice([1, 1, 2]), "lease_s": LEASE_S}
            return self._do("claim", args | key)
        name = chance.choice(sorted(self.machine.tables.items) or ["nothing"])
        if verb == "get":
            return self._do("get", {"work_id": name, "consistency": "linearizable"})
        if verb in ("cancel", "retry"):
            if chance.random() < 0.3:
                return self._do(verb, {"group": "g"})
            return self._do(verb, {"work_id": name}) if chance.random() < 0.4 else None
        return self._act(name)

    def _new_item(self) -> dict[str, Any]:
        chance = self._random
        args: dict[str, Any] = {"max_attempts": chance.choice([1, 2, 3])}
        if chance.random() < 0.7:
            args["work_id"] = f"i{chance.randrange(8)}"
        if chance.random() < 0.8:
            args["idempotency_key"] = f"k{self._number}"
        if chance.random() < 0.3:
            args["group"] = "g"
        if chance.random() < 0.2 and self.machine.tables.items:
            args["depends_on"] = [chance.choice(sorted(self.machine.tables.items))]
        if chance.random() < 0.2:
            args["timeout_s"] = 2
        if "work_id" in args:
            # One id has one body, so that a second add of it is a repeat.
            fixed = random.Random(args["work_id"])
            args = {name: args[name] for name in ("work_id", "idempotency_key") if name in args}
            args["max_attempts"] = fixed.choice([1, 2, 3])
        return args

    def _act(self, name: str) -> None:
        chance = self._random
        item = self.machine.tables.item(name)
        token = item.grant.token if item is not None and item.grant is not None else 4096
        if chance.random() < 0.15:
            token -= chance.choice([1, 4096, 8192])
        args: dict[str, Any] = {"work_id": name, "token": token}
        verb = chance.choice(["start", "start", "renew", "complete", "complete", "fail", "release", "complete_batch"])
        if verb == "complete":
            args["result"] = {"by": self._number}
            if chance.random() < 0.2:
                args["spawn"] = [{"max_attempts": 2}]
        elif verb == "fail":
            args |= {"error": "it broke", "retryable": chance.random() < 0.8}
        elif verb == "renew":
            node_id = item.grant.node_id if item is not None and item.grant is not None else "w1"
            args = {"node_id": node_id, "leases": [args]}
        elif verb == "complete_batch":
            args = {"items": [{**args, "result": {"by": self._number}}]}
        self._do(verb, args)

    def _do(self, verb: str, args: dict[str, Any]) -> None:
        chance = self._random
        if args.get("idempotency_key") is not None:
            self._sent.append((verb, args))
        invoked_s = max(0.0, self._now_s - chance.random() * self.overlap_s)
        for one in (args, *args.get("leases", ()), *args.get("items", ())):
            # Nobody names a token before the claim that granted it was called.
            invoked_s = max(invoked_s, self._called_s.get(one.get("token", 0) // TOKENS_PER_ENTRY, 0.0))
            named = self.machine.tables.item(one.get("work_id") or "")
            if named is not None:
                # Nor an item before what added it was called.
                invoked_s = max(invoked_s, self._called_s.get(named.spec.seq // BIRTHS_PER_ENTRY, 0.0))
        returned_s: float | None = self._now_s + chance.random() * self.overlap_s
        is_lost = chance.random() < self.loss
        ending, answer = Ending.UNKNOWN, None
        if not (is_lost and chance.random() < 0.4):
            ending, answer = self._decide(verb, args, invoked_s)
        if is_lost:
            ending, answer, returned_s = Ending.UNKNOWN, None, None
        self.ops.append(Op(f"c{self._number}", 0, verb, args, "n1", invoked_s, returned_s, ending, answer))
        self._number += 1

    def _decide(self, verb: str, args: dict[str, Any], invoked_s: float) -> tuple[Ending, dict[str, Any]]:
        if verb == "get":
            self._apply(ops.Tick(), None)
            item = self.machine.item(args["work_id"])
            return (Ending.DONE, item) if item is not None else (Ending.REFUSED, {"code": "not_found"})
        self._called_s[self._index + 1] = invoked_s
        outcome = self._apply(command_of(verb, args), args.get("idempotency_key"))
        if not isinstance(outcome, Done):
            return Ending.REFUSED, {"code": outcome.code, **outcome.members}
        if verb == "claim":
            return Ending.DONE, {"items": [self.machine.item(name) for name in outcome.value["claimed"]]}
        return Ending.DONE, outcome.value

    def _apply(self, op: Any, key: str | None) -> Outcome:
        self._index += 1
        now_ms = int(self._now_s * 1000)
        command = Command(op, None if key is None else Key("p", key, b"body"))
        before = {name: self.machine.item(name) for name in self.machine.tables.items} if self.retention_s < 100 else {}
        applied = self.machine.apply(self._index, Entry(now_ms, WALL_MS + now_ms, Epoch(1, 1), (command,)))
        for name, item in before.items():
            if item is not None and name not in self.machine.tables.items:
                self.archived[name] = item
        return applied.outcomes[0]


def new_item(args: dict[str, Any]) -> NewItem:
    timeout_s = args.get("timeout_s")
    return NewItem(
        "selfplay",
        b"\x80",
        args.get("work_id"),
        max_attempts=args.get("max_attempts", 3),
        group=args.get("group"),
        unique_key=args.get("unique_key"),
        timeout_ms=None if timeout_s is None else timeout_s * 1000,
        depends_on=tuple(args.get("depends_on", ())),
    )


def complete(args: dict[str, Any]) -> ops.Complete:
    spawn = tuple(new_item(one) for one in args.get("spawn", ()))
    return ops.Complete(args["work_id"], args["token"], msgpack.packb(args.get("result")), spawn=spawn)


def command_of(verb: str, args: dict[str, Any]) -> Any:
    if verb == "add":
        return ops.Add(new_item(args))
    if verb == "claim":
        return ops.Claim(args["node_id"], None, args["max_items"], int(args["lease_s"] * 1000), b"\x80")
    if verb == "renew":
        leases = tuple(ops.LeaseRef(one["work_id"], one["token"]) for one in args["leases"])
        return ops.Renew(args["node_id"], leases)
    if verb == "complete":
        return complete(args)
    if verb == "complete_batch":
        return ops.CompleteBatch(tuple(complete(one) for one in args["items"]))
    if verb == "fail":
        return ops.Fail(args["work_id"], args["token"], args["error"], args["retryable"])
    if verb in ("cancel", "retry"):
        kind = ops.Cancel if verb == "cancel" else ops.Retry
        return kind(args.get("work_id"), args.get("group"))
    return {"start": ops.Start, "release": ops.Release}[verb](args["work_id"], args["token"])
