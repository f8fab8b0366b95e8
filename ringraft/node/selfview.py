"""What a node says about itself, beside what the log and the membership say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ringraft.membership.base import MemberState
from ringraft.membership.guest import GuestMembership
from ringraft.metrics import Snapshot

if TYPE_CHECKING:
    from ringraft.node.app import Node


def status_fields(node: Node) -> dict[str, Any]:
    """The parts of ``/status`` that only the node knows."""
    settings = node.settings
    fields: dict[str, Any] = {
        "cluster_id": node.identity.cluster_id,
        "data_id": node.identity.data_id,
        "incarnation": node.identity.incarnation,
        "url": node.url,
        "background_loops": node.loops.stats(),
        "membership": {
            "mode": settings.membership.mode.value,
            "heartbeat_s": settings.membership.heartbeat_s,
            "peer_timeout_s": settings.membership.peer_timeout_s,
            "members": _members_by_state(node),
        },
        "uptime_s": round(node.clock.monotonic_s() - node.started_s, 3),
        "loop_lag_s": round(node.load.lag_s, 4),
    }
    if node.voter is not None:
        fields["archive"] = {
            "archived_index": node.voter.archive.archived_index,
            "backlog": len(node.voter.backlog),
            "scanning": node.voter.backlog.is_scanning,
        }
        fields["waiting_requests"] = node.voter.replica.waiting
    if isinstance(node.membership, GuestMembership):
        leader = node.membership.leader()
        fields |= {"leader_id": leader.node_id, "has_quorum": leader.node_id is not None, "term": leader.term}
    if node.worker is not None:
        fields["worker"] = node.worker.status()
    return fields


def metrics_snapshot(node: Node) -> Snapshot:
    """What the gauges of ``/metrics`` show."""
    gauges = {
        "uptime_seconds": node.clock.monotonic_s() - node.started_s,
        "loop_lag_seconds": node.load.lag_s,
        "background_loops_failed": float(len(node.loops.faults())),
        "http_connections": float(len(node.doors)),
    }
    if node.worker is not None:
        worker = node.worker.status()
        gauges |= {
            "worker_slots": float(worker["slots"]),
            "worker_running": float(len(worker["running"])),
            "worker_spooled_reports": float(worker["spooled"]),
            "worker_held_reports": float(len(worker["held_reports"])),
        }
    none = {state.value: 0 for state in MemberState}
    members, workers = none | _members_by_state(node), none | _members_by_state(node, role="worker")
    if node.voter is None:
        return Snapshot(None, None, members, workers, gpus=_gpus(node), gauges=gauges)
    replica = node.voter.replica
    gauges["archive_backlog_items"] = float(len(node.voter.backlog))
    gauges["waiting_requests"] = float(replica.waiting)
    gauges["raft_pending_commands"] = float(replica.pending)
    status, work = node.voter.consensus.status(), replica.machine.work_status()
    return Snapshot(status, work, members, workers, replica.failures, _gpus(node), gauges)


def _members_by_state(node: Node, role: str | None = None) -> dict[str, int]:
    members = node.membership.members().values()
    return dict(Counter(member.state.value for member in members if role is None or role in member.roles))


def _gpus(node: Node) -> dict[tuple[str, str], int]:
    """By (model, state of the node that has them)."""
    found: Counter[tuple[str, str]] = Counter()
    for member in node.membership.members().values():
        names = [str(gpu.get("name")) if isinstance(gpu, Mapping) else str(gpu) for gpu in member.gpus]
        found.update((name, member.state.value) for name in names)
    return found
