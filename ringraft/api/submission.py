"""From a checked body to a command, and from its outcome to an answer: one row per verb.

HTTP and ``/work/stream`` share these rows, so that a verb means the same on both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack

from ringraft.api import rfc3339, strictjson
from ringraft.api.auth import Principal, Role
from ringraft.api.bodies import SET_BY_CLUSTER, WORK_TYPE_ALIASES, bodies
from ringraft.api.problems import Problem, of_faults
from ringraft.schema import ID, Checker, Fault, nearest
from ringraft.state.commands import (
    Add,
    AddBatch,
    Cancel,
    Claim,
    Complete,
    CompleteBatch,
    Fail,
    LeaseRef,
    Op,
    Release,
    Renew,
    Retry,
    Start,
)
from ringraft.state.model import Key, Limits, NewItem

PLAYERS_DEFAULT = 2
NOT_IN_DIGEST = ("wait_s", "idempotency_key")
"""How long to wait is not part of what is asked for: a repeat may wait shorter."""

MISSPELT = 0.8
"""How like a field's name a member of a config must be to be taken for a slip of the pen."""

Body = dict[str, Any]


class Items(Protocol):
    """What an answer reads from the state machine."""

    def item(self, work_id: str) -> dict[str, Any] | None: ...


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing a client can ask of the queue. Bodies have their names in order (``strictjson``), so that
    equal ones have equal bytes.

    ``build`` makes the command's operation of a checked body (raises Problem); ``answer`` makes the
    answer of a ``Done`` value.
    """

    name: str
    role: Role
    is_keyed: bool
    is_batch: bool
    checker: Checker
    build: Callable[[Body, Principal], Op]
    answer: Callable[[dict[str, Any], Items, Body], dict[str, Any]]

    def check(self, body: object) -> Body:
        """The body itself. Raises Problem with all its faults."""
        if not self.checker.accepts(body):
            raise of_faults(self.checker.faults(body))
        return body  # type: ignore[return-value]

    def key(self, principal: Principal, key: str | None, body: Body) -> Key | None:
        """What makes a repeat of this call have no second effect; None when the verb needs none."""
        if key is None or not self.is_keyed:
            return None
        if not body.keys().isdisjoint(NOT_IN_DIGEST):
            body = {name: body[name] for name in body if name not in NOT_IN_DIGEST}
        return Key(principal.name, key, hashlib.sha256(_packed((self.name, body))).digest())


class Submission:
    """All verbs, bounded by one set of limits."""

    def __init__(self, limits: Limits) -> None:
        self._payload_bytes_max = limits.payload_bytes_max
        self.limits = limits
        self.schemas = bodies(limits)
        self._item_fields = frozenset(self.schemas["add"].fields)
        rows: list[tuple[str, Role, bool, bool, Callable[[Body, Principal], Op], Any]] = [
            ("add", Role.SUBMITTER, True, False, self._add, _added),
            ("add_batch", Role.SUBMITTER, True, True, self._add_batch, _as_is),
            ("claim", Role.WORKER, True, False, self._claim, _claimed),
            ("start", Role.WORKER, False, False, _start, _as_is),
            ("renew", Role.WORKER, False, False, self._renew, _renewed),
            ("complete", Role.WORKER, False, False, self._complete, _as_is),
            ("complete_batch", Role.WORKER, False, True, self._complete_batch, _as_is),
            ("fail", Role.WORKER, False, False, _fail, _failed),
            ("release", Role.WORKER, False, False, _release, _as_is),
            ("cancel", Role.SUBMITTER, True, False, _cancel, _as_is),
            ("retry", Role.SUBMITTER, True, False, _retry, _as_is),
        ]
        self.verbs: Mapping[str, Verb] = {
            name: Verb(name, role, keyed, batch, Checker(self.schemas[name]), build, answer)
            for name, role, keyed, batch, build, answer in rows
        }

    def _add(self, body: Body, principal: Principal) -> Op:
        faults: list[Fault] = []
        item = self._item(body, "", faults, fold=True)
        if faults:
            raise of_faults(faults)
        return Add(item)

    def _add_batch(self, body: Body, principal: Principal) -> Op:
        faults: list[Fault] = []
        items = tuple([self._item(item, f"/items/{i}", faults) for i, item in enumerate(body["items"])])
        if faults:
            raise of_faults(faults)
        return AddBatch(items)

    def _claim(self, body: Body, principal: Principal) -> Op:
        find = body.get
        principal.check_node(body["node_id"])
        types = find("work_types")
        lease_s = find("lease_s")
        offered = find("capabilities")
        return Claim(
            node_id=body["node_id"],
            work_types=None if types is None else tuple(dict.fromkeys(WORK_TYPE_ALIASES.get(t, t) for t in types)),
            max_items=find("max_items") or 1,
            lease_ms=None if lease_s is None else round(lease_s * 1000),
            capabilities=None if offered is None else capabilities(offered),
        )

    def _renew(self, body: Body, principal: Principal) -> Op:
        principal.check_node(body["node_id"])
        faults: list[Fault] = []
        leases = tuple(
            LeaseRef(
                lease["work_id"],
                lease["token"],
                self._payload(lease.get("progress"), f"/leases/{i}/progress", faults),
            )
            for i, lease in enumerate(body["leases"])
        )
        if faults:
            raise of_faults(faults)
        return Renew(body["node_id"], leases)

    def _complete(self, body: Body, principal: Principal) -> Op:
        faults: list[Fault] = []
        op = self._completion(body, principal, "", faults)
        if faults:
            raise of_faults(faults)
        return op

    def _complete_batch(self, body: Body, principal: Principal) -> Op:
        faults: list[Fault] = []
        asked = enumerate(body["items"])
        items = [self._completion(item, principal, f"/items/{i}", faults) for i, item in asked]
        if faults:
            raise of_faults(faults)
        return CompleteBatch(tuple(items))

    def _completion(self, body: Body, principal: Principal, pointer: str, faults: list[Fault]) -> Complete:
        find = body.get
        result, artifacts, spawn, then = find("result"), find("artifacts"), find("spawn"), find("then")
        return Complete(
            work_id=body["work_id"],
            token=body["token"],
            result=None if result is None else self._payload(result, f"{pointer}/result", faults),
            artifacts=None if artifacts is None else self._payload(artifacts, f"{pointer}/artifacts", faults),
            spawn=tuple([self._item(item, f"{pointer}/spawn/{i}", faults) for i, item in enumerate(spawn)])
            if spawn
            else (),
            then=None if then is None else self._item(then, f"{pointer}/then", faults),
            holder=principal.node_id,
        )

    def _item(self, body: Body, pointer: str, faults: list[Fault], *, fold: bool = False) -> NewItem:
        find = body.get
        config = find("config") or {}
        if fold and not body.keys() <= self._item_fields:
            config = self._folded(body, config)
        timeout_s = find("timeout_s")
        not_before = find("not_before")
        needs = find("requirements")
        excluded = find("excluded_nodes")
        depends_on = find("depends_on")
        priority = find("priority")
        work_type = body["work_type"]
        return NewItem(
            work_type=WORK_TYPE_ALIASES.get(work_type, work_type),
            config=self._payload(config, f"{pointer}/config", faults) or b"\x80",
            work_id=find("work_id"),
            priority=50 if priority is None else priority,
            max_attempts=find("max_attempts") or 3,
            timeout_ms=None if timeout_s is None else max(1, round(timeout_s * 1000)),
            depends_on=tuple(dict.fromkeys(depends_on)) if depends_on else (),
            on_dependency_failure=find("on_dependency_failure") or "cancel",
            not_before_wall_ms=None if not_before is None else rfc3339.wall_ms(not_before),
            requirements=b"" if needs is None else requirements(needs),
            target_node=find("target_node"),
            excluded_nodes=tuple(sorted(set(excluded))) if excluded else (),
            unique_key=find("unique_key"),
            group=find("group"),
            class_key=class_key(config),
            strict=find("strict") or False,
        )

    def _folded(self, body: Body, config: Body) -> Body:
        # What is said inside config was meant for it, so it wins; ``_clashes`` warns.
        folded = {name: value for name, value in body.items() if name not in self._item_fields} | config
        return dict(sorted(folded.items()))

    def _payload(self, value: Any, pointer: str, faults: list[Fault]) -> bytes | None:
        if value is None:
            return None
        packed = _packed(value)
        # A body's own fields have their types checked; what is free in form may hold what came as msgpack only.
        if not strictjson.is_plain(packed):
            try:
                strictjson.check_unpacked(value)
            except strictjson.NotStrict as error:
                raise Problem("bad_json", str(error)) from None
        if len(packed) > self._payload_bytes_max:
            faults.append(
                Fault(
                    pointer,
                    f"has {len(packed)} bytes when packed, the most is {self._payload_bytes_max}; "
                    "put large data into a file and name it",
                    "too_large",
                )
            )
        return packed


_packed: Callable[[Any], bytes] = msgpack.Packer().pack


def class_key(config: Body) -> str:
    """The ``config`` half of an item's class: ``hex8_2p`` for board_type hex8; empty without a board."""
    board = config.get("board_type")
    players = config.get("num_players", PLAYERS_DEFAULT)
    if type(board) is not str or type(players) is not int or not _is_id(board) or not 0 <= players <= 999:
        return ""
    return f"{board}_{players}p"


_is_id = ID.predicate()


def requirements(needs: Body) -> bytes:
    """Packed canonical requirements: nulls left out, one spelling for each need; empty when there are none.

    The names in ``needs`` are in order.
    """
    out = {name: _amount(needs[name]) for name in ("cpus", "memory_gb") if needs.get(name) is not None}
    gpu = needs.get("gpu")
    if isinstance(gpu, str):
        out["gpu"] = {"names": [gpu]}
    elif gpu is not None:
        out["gpu"] = {name: _amount(value) for name, value in gpu.items() if value is not None}
    if needs.get("labels"):
        out["labels"] = needs["labels"]
    return _packed(dict(sorted(out.items()))) if out else b""


def capabilities(offered: Body) -> bytes:
    """Packed canonical capabilities: nulls left out. The names in ``offered`` are in order."""
    out: Body = {name: _amount(offered[name]) for name in ("cpus", "memory_gb") if offered.get(name) is not None}
    if offered.get("gpus"):
        out["gpus"] = [
            {name: _amount(value) for name, value in gpu.items() if value is not None} for gpu in offered["gpus"]
        ]
    if offered.get("labels"):
        out["labels"] = offered["labels"]
    return _packed(dict(sorted(out.items())))


def _amount(value: Any) -> Any:
    # 4.0 and 4 are the same need and must have the same bytes.
    return int(value) if type(value) is float and value.is_integer() else value


def _start(body: Body, principal: Principal) -> Op:
    return Start(body["work_id"], body["token"], principal.node_id)


def _fail(body: Body, principal: Principal) -> Op:
    return Fail(
        body["work_id"],
        body["token"],
        body["error"],
        body.get("retryable") is not False,
        principal.node_id,
    )


def _release(body: Body, principal: Principal) -> Op:
    return Release(body["work_id"], body["token"], principal.node_id)


def _cancel(body: Body, principal: Principal) -> Op:
    return Cancel(body.get("work_id"), body.get("group"))


def _retry(body: Body, principal: Principal) -> Op:
    return Retry(body.get("work_id"), body.get("group"))


def _as_is(value: dict[str, Any], items: Items, body: Body) -> dict[str, Any]:
    return value


def _added(value: dict[str, Any], items: Items, body: Body) -> dict[str, Any]:
    if value["status"] != "added":
        return value
    warnings = [*value.get("warnings", ()), *_misspelt(body), *_clashes(body)]
    return {**value, "warnings": warnings}


def _misspelt(body: Body) -> list[str]:
    known = _SUBMITTABLE
    if body.keys() <= known:
        return []
    names = ((name, nearest(name, known, likeness=MISSPELT)) for name in body if name not in known)
    return [f"{name!r} went into config; was {near!r} meant?" for name, near in names if near is not None]


def _clashes(body: Body) -> list[str]:
    config = body.get("config") or {}
    return [
        f"{name!r} stands both at the top and in config; the one in config counts"
        for name in body
        if name in config and name not in _SUBMITTABLE and config[name] != body[name]
    ]


def _claimed(value: dict[str, Any], items: Items, body: Body) -> dict[str, Any]:
    node_id = body["node_id"].lower()
    # Entries applied since may have cancelled one, or taken it back and given it to another node.
    granted = [item for item in map(items.item, value["claimed"]) if item is not None and item["lease"] is not None]
    held = [item for item in granted if item["lease"]["node_id"].lower() == node_id]
    return {"items": held, "work": held[0] if held else None, "reasons": value.get("reasons") or {}}


def _renewed(value: dict[str, Any], items: Items, body: Body) -> dict[str, Any]:
    return {"leases": [_with_time(lease, "expires_at_wall_ms", "expires_at") for lease in value["leases"]]}


def _failed(value: dict[str, Any], items: Items, body: Body) -> dict[str, Any]:
    return _with_time(value, "not_before_wall_ms", "not_before")


def _with_time(value: dict[str, Any], ms_name: str, name: str) -> dict[str, Any]:
    if ms_name not in value:
        return value
    ms = value[ms_name]
    out = {k: v for k, v in value.items() if k != ms_name}
    out[name] = None if ms is None else rfc3339.text(ms)
    return out


_SUBMITTABLE = frozenset(bodies(Limits())["add"].fields) | SET_BY_CLUSTER.keys()
