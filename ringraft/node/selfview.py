"""What a node says about itself, beside what the log and the membership say."""

from __future__ import annotations

from collections import Counter
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
    }
    none = {state.value: 0 for state in MemberState}
    members, workers = none | _members_by_state(node), none | _members_by_state(node, role="worker")
    if node.voter is None:
        return Snapshot(None, None, members, workers, gauges=gauges)
    replica = node.voter.replica
    gauges["archive_backlog_items"] = float(len(node.voter.backlog))
    gauges["waiting_requests"] = float(replica.waiting)
    status, work = node.voter.consensus.status(), replica.machine.work_status()
    return Snapshot(status, work, members, workers, replica.failures, gauges)


def _members_by_state(node: Node, role: str | None = None) -> dict[str, int]:
    members = node.membership.members().values()
    return dict(Counter(member.state.value for member in members if role is None or role in member.roles))
