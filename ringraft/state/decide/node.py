"""Nodes that present themselves, leaders that begin, and the limits."""

from __future__ import annotations

from dataclasses import fields, replace

from ringraft.state import commands as ops
from ringraft.state.decide.add import full
from ringraft.state.decide.item import freed, lease_news, spent
from ringraft.state.matching import capabilities_fault
from ringraft.state.model import Done, Rejected, WorkState
from ringraft.state.records import Item, NodeRecord
from ringraft.state.tables import At, Decision, News, Tables

LIMIT_MAX = 1 << 50
"""No limit is larger, so that sums of a few stay below 2**53."""


def register_node(tables: Tables, op: ops.RegisterNode, at: At) -> Decision | Rejected:
    fault = capabilities_fault(op.capabilities)
    if fault is not None:
        return Rejected("invalid_field", f"capabilities {fault}", (("/capabilities", fault),))
    name, limits = op.node_id.lower(), tables.limits
    old = tables.nodes.get(name)
    if old is None and len(tables.nodes) >= limits.nodes_max:
        return full("nodes_max", limits.nodes_max, "nodes are known")
    if old is not None and op.incarnation < old.incarnation:
        told = f"{op.node_id} is registered with the newer incarnation {old.incarnation}, not {op.incarnation}"
        return Rejected("conflict", told)
    is_new = old is None or op.incarnation > old.incarnation
    items: dict[str, Item | None] = {}
    news: list[News] = []
    if old is not None and 0 < old.incarnation < op.incarnation:
        for item in held_by(tables, name):
            items[item.spec.id], told_of = _superseded(tables, item, at)
            news += told_of
    if is_new and not _was_told_online(old):
        news.append(("HOST_ONLINE", {"node_id": op.node_id, "incarnation": op.incarnation}))
    record = NodeRecord(
        op.node_id,
        op.incarnation,
        op.roles,
        op.work_types,
        op.capabilities,
        op.addresses,
        op.version,
        is_up=True if is_new or old is None else old.is_up,
        changed_wall_ms=at.wall_ms,
    )
    if old is not None and replace(record, changed_wall_ms=old.changed_wall_ms) == old:
        record = old
    return Decision(Done({"status": "registered", "freed": len(items)}), items, news, nodes={name: record})


def held_by(tables: Tables, node_id: str) -> list[Item]:
    """What a node (lower-case id) holds, oldest first."""
    held = [tables.items[name] for name in tables.indexes.leases.get(node_id, ())]
    return sorted(held, key=lambda item: item.spec.seq)


def _superseded(tables: Tables, item: Item, at: At) -> tuple[Item, list[News]]:
    """The holder's older self is gone: an attempt is spent only if it had started."""
    assert item.grant is not None
    data = lease_news(item.spec, item.grant) | {"reason": "superseded"}
    if item.state is not WorkState.RUNNING:
        return freed(item, at, tables.limits, "superseded"), [("WORK_RELEASED", data)]
    reason = f"{item.grant.node_id} was restarted"
    after = spent(item, at, tables.limits, "superseded", reason=reason)
    news: list[News] = [("WORK_RELEASED", data)]
    if after.state is WorkState.FAILED:
        news.append(("WORK_FAILED", data))
    return after, news


def node_status(tables: Tables, op: ops.NodeStatus, at: At) -> Decision | Rejected:
    name, limits = op.node_id.lower(), tables.limits
    old = tables.nodes.get(name)
    if old is None:
        if not op.up:
            return Decision(Done({}))
        if len(tables.nodes) >= limits.nodes_max:
            return full("nodes_max", limits.nodes_max, "nodes are known")
        record = NodeRecord(op.node_id, 0, changed_wall_ms=at.wall_ms)
    elif op.incarnation < old.incarnation or op.up == old.is_up:
        return Decision(Done({}))
    else:
        record = replace(old, is_up=op.up, changed_wall_ms=at.wall_ms)
        if op.up and _will_register(old, op):
            return Decision(Done({}), nodes={name: record})
    told = "HOST_ONLINE" if op.up else "HOST_OFFLINE"
    data = {"node_id": record.node_id, "incarnation": op.incarnation}
    return Decision(Done({}), news=((told, data),), nodes={name: record})


def _was_told_online(old: NodeRecord | None) -> bool:
    """The verdict that the node is up came before its first registration, and told it."""
    return old is not None and old.is_up and old.incarnation == 0


def _will_register(old: NodeRecord, op: ops.NodeStatus) -> bool:
    """A restarted worker is heard before it registers again, and its registration tells that it is online."""
    return 0 < old.incarnation < op.incarnation


def begin(tables: Tables, op: ops.Begin, at: At) -> Decision | Rejected:
    if at.epoch == tables.epoch:
        return Decision(Done({}))
    data = {"leader_id": op.leader_id, "term": at.epoch.number}
    return Decision(Done({}), news=(("LEADER_ELECTED", data),), epoch=at.epoch)


def configure(tables: Tables, op: ops.Configure, at: At) -> Decision | Rejected:
    limits = op.limits
    faults = []
    for one in fields(limits):
        value = getattr(limits, one.name)
        if not 1 <= value <= LIMIT_MAX:
            faults.append((f"/limits/{one.name}", f"{value} is not from 1 to {LIMIT_MAX}"))
    if not limits.lease_min_ms <= limits.lease_default_ms <= limits.lease_max_ms:
        faults.append(("/limits/lease_default_ms", "must lie from lease_min_ms to lease_max_ms"))
    if faults:
        return Rejected("invalid_field", f"{faults[0][0][8:]}: {faults[0][1]}", tuple(faults))
    return Decision(Done({}), limits=limits)
