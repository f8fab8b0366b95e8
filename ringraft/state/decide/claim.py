"""Claim, start, renew, release: the life of a lease."""

from __future__ import annotations

from typing import Any

from ringraft.state import commands as ops
from ringraft.state.decide.item import freed, held, lease_news, wrong_state
from ringraft.state.indexes import NOT_BEFORE, RETRY_BACKOFF
from ringraft.state.matching import capabilities_fault
from ringraft.state.model import TOKENS_PER_ENTRY, Done, Rejected, WorkState
from ringraft.state.policy import Turns, offered_classes, refused_because
from ringraft.state.records import ClassKey, ClassRecord, Grant, Item, KeyRecord
from ringraft.state.tables import At, Decision, News, Tables


def claim(tables: Tables, op: ops.Claim, at: At) -> Decision | Rejected:
    limits = tables.limits
    lease_ms = op.lease_ms if op.lease_ms is not None else limits.lease_default_ms
    fault = _fault(tables, op, lease_ms)
    if fault is not None:
        return fault
    room = room_for(tables, op.node_id)
    count = min(op.max_items, limits.claim_items_max, room, TOKENS_PER_ENTRY - at.grants)
    turns = Turns(tables, op.work_types, op.node_id.lower(), capabilities_of(tables, op))
    items: dict[str, Item | None] = {}
    news: list[News] = []
    first_token = at.index * TOKENS_PER_ENTRY + at.grants
    while len(items) < count:
        name = turns.take()
        if name is None:
            break
        item, token = tables.items[name], first_token + len(items)
        grant = Grant(op.node_id, token, lease_ms, at.log_ms + lease_ms, at.wall_ms + lease_ms)
        items[name] = Item(
            item.spec, WorkState.ASSIGNED, item.attempt, None, None, grant, item.progress, item.error, item.history
        )
        news.append(("WORK_CLAIMED", lease_news(item.spec, grant)))
    if not items:
        return Decision(Done({"claimed": [], "reasons": why_empty(tables, op, room)}))
    claimed = [tables.items[name].spec.work_id for name in items]
    leases = tuple((name, first_token + number) for number, name in enumerate(items))
    classes: dict[ClassKey, ClassRecord] = {key: ClassRecord(*key, turn) for key, turn in turns.turns.items()}
    return Decision(
        Done({"claimed": claimed, "reasons": {}}),
        items,
        news,
        classes,
        grants=len(items),
        clock=turns.clock,
        remembered=KeyRecord("", "", b"", b"", until_log_ms=at.log_ms + limits.key_grace_ms, leases=leases),
    )


def _fault(tables: Tables, op: ops.Claim, lease_ms: int) -> Rejected | None:
    limits = tables.limits
    faults = []
    if op.max_items < 1:
        faults.append(("/max_items", f"{op.max_items} is not from 1 to {limits.claim_items_max}"))
    if not limits.lease_min_ms <= lease_ms <= limits.lease_max_ms:
        told = f"{lease_ms / 1000} s is not from {limits.lease_min_ms / 1000} to {limits.lease_max_ms / 1000} s"
        faults.append(("/lease_s", told))
    if op.capabilities:
        fault = capabilities_fault(op.capabilities)
        if fault is not None:
            faults.append(("/capabilities", fault))
    return Rejected("invalid_field", faults[0][1], tuple(faults)) if faults else None


def capabilities_of(tables: Tables, op: ops.Claim) -> bytes:
    """What the claim says, else what the node registered with, else nothing."""
    if op.capabilities is not None:
        return op.capabilities
    node = tables.nodes.get(op.node_id.lower())
    return b"" if node is None else node.capabilities


def room_for(tables: Tables, node_id: str) -> int:
    """How many more leases a node may hold."""
    return tables.limits.node_leases_max - len(tables.indexes.leases.get(node_id.lower(), ()))


def could_claim(tables: Tables, op: ops.Claim) -> bool:
    """Whether the claim would get anything now. Looks at each shape with ready items at most once."""
    if op.max_items < 1 or room_for(tables, op.node_id) < 1:
        return False
    node_id, capabilities = op.node_id.lower(), capabilities_of(tables, op)
    return any(
        refused_because(shape, node_id, capabilities) is None
        for _, of_class in offered_classes(tables, op.work_types)
        for shape in of_class.shapes
    )


def why_empty(tables: Tables, op: ops.Claim, room: int) -> dict[str, int]:
    """How many items of the types asked for this claim could not have, by reason."""
    node_id, capabilities = op.node_id.lower(), capabilities_of(tables, op)
    reasons: dict[str, int] = {}
    for _, of_class in offered_classes(tables, op.work_types):
        for key, shape in of_class.shapes.items():
            refused = refused_because(key, node_id, capabilities)
            code = "NoMatchingWorker" if refused is not None else "QuotaExceeded" if room < 1 else "Ready"
            reasons[code] = reasons.get(code, 0) + len(shape.ready)
    waiting = {NOT_BEFORE: "NotBefore", RETRY_BACKOFF: "RetryBackoff", WorkState.BLOCKED.value: "DependencyWait"}
    for (work_type, standing), count in tables.indexes.counts.items():
        if standing in waiting and (op.work_types is None or work_type in op.work_types):
            reasons[waiting[standing]] = reasons.get(waiting[standing], 0) + count
    return dict(sorted(reasons.items()))


def start(tables: Tables, op: ops.Start, at: At) -> Decision | Rejected:
    item = held(tables, op.work_id, op.token, op.holder, "start")
    if isinstance(item, Rejected):
        return item
    if item.state is WorkState.RUNNING:
        return Decision(Done({"status": "running"}))
    if item.state is not WorkState.ASSIGNED:
        return wrong_state(item, "start is for an ASSIGNED one: claim again")
    old = item.grant
    assert old is not None
    grant = Grant(old.node_id, old.token, old.lease_ms, old.expires_log_ms, old.expires_wall_ms, at.log_ms, at.wall_ms)
    running = Item(
        item.spec, WorkState.RUNNING, item.attempt, None, None, grant, item.progress, item.error, item.history
    )
    return Decision(
        Done({"status": "running"}), {item.spec.id: running}, (("WORK_STARTED", lease_news(item.spec, grant)),)
    )


def renew(tables: Tables, op: ops.Renew, at: At) -> Decision | Rejected:
    limit = max(tables.limits.node_leases_max, tables.limits.batch_items_max)
    if len(op.leases) > limit:
        told = f"{len(op.leases)} leases; at most {limit} at once"
        return Rejected("invalid_field", told, (("/leases", told),))
    items: dict[str, Item | None] = {}
    answers = [_renew_one(tables, op.node_id, ref, at, items) for ref in op.leases]
    return Decision(Done({"leases": answers}), items)


def _renew_one(
    tables: Tables, node_id: str, ref: ops.LeaseRef, at: At, items: dict[str, Item | None]
) -> dict[str, Any]:
    item = items.get(ref.work_id.lower()) or tables.item(ref.work_id)
    if item is not None and item.state is WorkState.CANCELLED and item.grant is not None:
        if item.grant.token == ref.token and item.grant.node_id.lower() == node_id.lower():
            return {"work_id": ref.work_id, "ok": True, "expires_at_wall_ms": None, "cancel": True}
    found = held(tables, ref.work_id, ref.token, node_id, "renew")
    if isinstance(found, Rejected):
        return {"work_id": ref.work_id, "ok": False, "code": found.code}
    assert item is not None and item.grant is not None
    if not item.is_leased:
        return {"work_id": ref.work_id, "ok": False, "code": "wrong_state"}
    if ref.progress is not None and len(ref.progress) > tables.limits.payload_bytes_max:
        return {"work_id": ref.work_id, "ok": False, "code": "too_large"}
    expires_wall_ms = at.wall_ms + item.grant.lease_ms
    grant = item.grant._replace(expires_log_ms=at.log_ms + item.grant.lease_ms, expires_wall_ms=expires_wall_ms)
    progress = item.progress if ref.progress is None else ref.progress
    items[item.spec.id] = Item(
        item.spec, item.state, item.attempt, None, None, grant, progress, item.error, item.history
    )
    return {"work_id": ref.work_id, "ok": True, "expires_at_wall_ms": expires_wall_ms, "cancel": False}


def release(tables: Tables, op: ops.Release, at: At) -> Decision | Rejected:
    item = held(tables, op.work_id, op.token, op.holder, "release")
    if isinstance(item, Rejected):
        return item
    assert item.grant is not None
    if item.grant.verdict == "released":
        return Decision(Done({"status": "released"}))
    if not item.is_leased:
        return wrong_state(item, "only a lease that lives can be released")
    back = freed(item, at, tables.limits, "released")
    return Decision(
        Done({"status": "released"}), {item.spec.id: back}, (("WORK_RELEASED", lease_news(item.spec, item.grant)),)
    )
