"""Whether this node and the cluster are well: nothing here waits for anything."""

from __future__ import annotations

import time
from typing import Any

import ringraft
from ringraft.api import shapes
from ringraft.api.auth import Role
from ringraft.api.call import Call, Reply
from ringraft.api.problems import RETRY_AFTER_S
from ringraft.api.route import Answer, Consistency, Route
from ringraft.api.shapes import COUNT, FLAG, NUMBER, PEER_EXAMPLE, TEXT, TEXT_OR_NULL, listed, ref, shape, word
from ringraft.consensus.base import Role as LogRole
from ringraft.consensus.base import Status, VoterStatus
from ringraft.membership.base import Member
from ringraft.settings.tree import NodeEntry

DISK_PERCENT_MAX = 95.0
"""Above this a node counts as degraded: snapshots and the archive need room."""

READY = frozenset({"process", "log", "leader", "quorum", "voter", "cluster"})
"""What has to be well before requests should come here."""

Check = tuple[str, bool, str]


def checks(call: Call) -> list[Check]:
    """What is looked at: (name, ok, what was seen), the vital ones first."""
    out: list[Check] = []
    service = call.service
    is_up = not service.stopping.is_set()
    out.append(("process", is_up, "runs" if is_up else "is shutting down"))
    if service.is_member:
        status = service.status()
        out.append(("log", True, f"applied {status.applied_index} of {status.last_index}"))
        if status.acting_leader_id is not None:
            out.append(("leader", True, status.acting_leader_id))
        else:
            contact_s = status.leader_contact_s
            out.append(("leader", False, "none yet" if contact_s is None else f"none for {contact_s:.1f} s"))
        out.append(("quorum", status.has_quorum, "reached" if status.has_quorum else "no majority hears a leader"))
        out.append(_standing(status))
    else:
        leader = call.node.leader_url()
        out.append(("cluster", leader is not None, leader or "no voter answers"))
    disk = call.node.resources().get("disk_percent")
    if disk is not None:
        out.append(("disk", disk < DISK_PERCENT_MAX, f"{disk:.0f} % used"))
    faults = call.node.loops.faults()
    out.append(("loops", not faults, "; ".join(faults) or "run"))
    return out


def _standing(status: Status) -> Check:
    """Whether this node's copy counts; a learner's does not yet."""
    if status.standing == "learner":
        behind = max(0, status.leader_last_index - status.applied_index)
        return ("voter", False, f"learner: catching up, {behind} entries behind")
    if status.standing == "fresh":
        return ("voter", False, "new: waits for the other voters, or to be added")
    return ("voter", status.standing == "member", status.standing)


async def health(call: Call) -> Reply:
    """For load balancers: 503 only when this node can do nothing for anyone."""
    found = checks(call)
    is_unavailable = not found[0][1]
    is_well = all(ok for _, ok, _ in found)
    resources = call.node.resources()
    status = "unavailable" if is_unavailable else "ok" if is_well else "degraded"
    body: dict[str, Any] = {
        "status": status,
        "healthy": is_well,
        "node_id": call.service.node_id,
        **_leadership(call),
        "uptime_s": round(time.monotonic() - call.service.started_s, 3),
        "version": ringraft.__version__,
        "checks": [{"name": name, "ok": ok, "detail": detail} for name, ok, detail in found],
        "cpu_percent": resources.get("cpu_percent"),
        "memory_percent": resources.get("memory_percent"),
        "disk_percent": resources.get("disk_percent"),
        "gpus": resources.get("gpus") or [],
    }
    return Reply(body, 503 if is_unavailable else 200)


def _leadership(call: Call) -> dict[str, Any]:
    if not call.service.is_member:
        return {"role": "worker", "leader_id": None, "local_leader_id": None, "has_quorum": False} | {
            name: value for name, value in call.node.status_fields().items() if name in ("leader_id", "has_quorum")
        }
    status = call.service.status()
    return {
        "role": status.role.value,
        "leader_id": status.acting_leader_id,
        "local_leader_id": status.leader_id,
        "has_quorum": status.has_quorum,
    }


async def livez(call: Call) -> Reply:
    """Whether the process should go on."""
    return _lines(checks(call)[:1])


async def readyz(call: Call) -> Reply:
    """Whether requests should come here."""
    return _lines(
        [check for check in checks(call) if check[0] in ("process", "log", "leader", "quorum", "voter", "cluster")]
    )


def _lines(found: list[Check]) -> Reply:
    text = "".join(f"[{'+' if ok else '-'}]{name} {'ok' if ok else detail}\n" for name, ok, detail in found)
    is_well = all(ok for _, ok, _ in found)
    headers = {} if is_well else {"Retry-After": str(RETRY_AFTER_S)}
    return Reply(text.encode(), 200 if is_well else 503, "text/plain; charset=utf-8", headers)


async def status(call: Call) -> Reply:
    """Everything an operator asks first."""
    return Reply(cluster_status(call))


def cluster_status(call: Call) -> dict[str, Any]:
    """The body of ``/status``."""
    service, node = call.service, call.node
    settings = node.settings
    members = node.membership.members()
    alive = sum(1 for member in members.values() if member.state == "alive")
    body: dict[str, Any] = {
        "node_id": service.node_id,
        "cluster_id": node.identity.cluster_id,
        **_leadership(call),
        "is_leader": False,
        "term": 0,
        "mode": {"consensus": str(settings.consensus.mode), "membership": str(settings.membership.mode)},
        "voters": [],
        "voters_alive": 0,
        "quorum_size": 0,
        "alive_peers": alive,
        "peers": {node_id: member.view() for node_id, member in members.items()},
        "commit_index": 0,
        "applied_index": 0,
        "log_bytes": 0,
        "snapshot_index": 0,
        "state_digest": None,
        "work": {"by_state": {}, "by_type": {}},
        "leases": 0,
        "background_loops": {},
        "membership": {"mode": str(settings.membership.mode), "members": len(members), "alive": alive},
        "gossip": {"mode": "none"},
        "uptime_s": round(time.monotonic() - service.started_s, 3),
        "version": ringraft.__version__,
        "config_version": 0,
    }
    if service.is_member:
        body |= _log_fields(call)
    return body | dict(node.status_fields())


def _log_fields(call: Call) -> dict[str, Any]:
    service, machine = call.service, call.node.replica.machine
    consensus = service.status()
    work = machine.work_status()
    rows = voters(call)
    return {
        "is_leader": consensus.role == "leader",
        "term": consensus.epoch.number,
        "voters": rows,
        "voters_alive": sum(1 for row in rows if row["alive"]),
        "quorum_size": len(rows) // 2 + 1,
        "commit_index": consensus.commit_index,
        "applied_index": consensus.applied_index,
        "log_bytes": consensus.log_bytes,
        "snapshot_index": consensus.snapshot_index,
        "standing": consensus.standing,
        "state_digest": {"index": machine.index, "sha256": machine.digest()},
        "work": {"by_state": work["by_status"], "by_type": work["by_type"]},
        "leases": sum(work["leases_by_node"].values()),
    }


def voters(call: Call) -> list[dict[str, Any]]:
    """One row per configured voter, this node included."""
    service = call.service
    status = service.status()
    known = {voter.node_id: voter for voter in status.voters}
    members = call.node.membership.members()
    rows = []
    # A node that joins is no voter yet.
    own = {service.node_id} if status.standing == "member" else set()
    for node_id in sorted({*known, *own}):
        voter, member, is_own = known.get(node_id), members.get(node_id), node_id == service.node_id
        applied, reached = _progress(status, voter, member, node_id)
        role = status.role.value if is_own else "leader" if node_id == status.acting_leader_id else "follower"
        rows.append(
            {
                "node_id": node_id,
                "url": service.leader_url(node_id),
                "role": role,
                "applied_index": applied,
                "behind": max(0, status.last_index - reached),
                "last_contact_s": 0.0 if is_own else _last_contact_s(voter, member),
                "priority": _priority(call, member, node_id),
                "alive": is_own or (voter is not None and voter.connected),
            }
        )
    return rows


def progress_of(call: Call, node_id: str) -> tuple[int, float | None, bool]:
    """(held, last contact in seconds, connected) of a node that keeps the log, learners too."""
    status = call.service.status()
    member = call.node.membership.members().get(node_id)
    known = {one.node_id: one for one in (*status.voters, *status.learners)}.get(node_id)
    is_own = node_id == status.node_id
    held = _progress(status, known, member, node_id)[1]
    return held, 0.0 if is_own else _last_contact_s(known, member), is_own or (known is not None and known.connected)


def _progress(status: Status, voter: VoterStatus | None, member: Member | None, node_id: str) -> tuple[int, int]:
    """(applied, held) of a voter's log: the leader knows of all, the others what they heard with heartbeats."""
    if node_id == status.node_id:
        return status.applied_index, status.last_index
    if status.role is LogRole.LEADER:
        held = voter.match_index if voter is not None else 0
        return held, held
    if node_id == status.acting_leader_id:
        return status.commit_index, status.last_index
    applied = (member.applied_index or 0) if member is not None else 0
    return applied, applied


def _last_contact_s(voter: VoterStatus | None, member: Member | None) -> float | None:
    if voter is not None and voter.last_contact_s is not None:
        return round(voter.last_contact_s, 3)
    return member.last_seen_s if member is not None else None


def _priority(call: Call, member: Member | None, node_id: str) -> int | None:
    """What the voter says of itself; before it was heard, what the configuration says of it, which may be nothing."""
    if member is not None and member.priority is not None:
        return member.priority
    entry: NodeEntry | None = call.node.settings.cluster.nodes.get(node_id)
    return None if entry is None else entry.priority


async def peers(call: Call) -> Reply:
    """Every node that is known."""
    return Reply([member.view() for _, member in sorted(call.node.membership.members().items())])


CHECK = shape({"name": TEXT, "ok": FLAG, "detail": TEXT})
HEALTH = shape(
    {
        "status": word("ok", "degraded", "unavailable"),
        "healthy": FLAG,
        "node_id": TEXT,
        "role": word("leader", "follower", "candidate", "worker"),
        "leader_id": TEXT_OR_NULL,
        "local_leader_id": TEXT_OR_NULL,
        "has_quorum": FLAG,
        "uptime_s": NUMBER,
        "version": TEXT,
        "checks": listed(CHECK),
        "cpu_percent": shapes.NUMBER_OR_NULL,
        "memory_percent": shapes.NUMBER_OR_NULL,
        "disk_percent": shapes.NUMBER_OR_NULL,
        "gpus": {"type": "array"},
    }
)
HEALTH_EXAMPLE = {
    "status": "ok",
    "healthy": True,
    "node_id": "n1",
    "role": "leader",
    "leader_id": "n1",
    "local_leader_id": "n1",
    "has_quorum": True,
    "uptime_s": 81.5,
    "version": "0.1.0",
    "checks": [{"name": "leader", "ok": True, "detail": "n1"}],
    "cpu_percent": 12.5,
    "memory_percent": 41.0,
    "disk_percent": 63.2,
    "gpus": [],
}
VOTER = shape(
    {
        "node_id": TEXT,
        "url": TEXT_OR_NULL,
        "role": TEXT,
        "applied_index": COUNT,
        "behind": COUNT,
        "last_contact_s": shapes.NUMBER_OR_NULL,
        "priority": shapes.COUNT_OR_NULL,
    }
)
VOTER_EXAMPLE = {
    "node_id": "n1",
    "url": "http://127.0.0.1:8770",
    "role": "leader",
    "applied_index": 45,
    "behind": 0,
    "last_contact_s": 0.0,
    "priority": 0,
    "alive": True,
}
STATUS = shape(
    {
        "node_id": TEXT,
        "cluster_id": TEXT_OR_NULL,
        "role": word("leader", "follower", "candidate", "worker"),
        "is_leader": FLAG,
        "leader_id": TEXT_OR_NULL,
        "local_leader_id": TEXT_OR_NULL,
        "term": COUNT,
        "mode": shape({"consensus": TEXT, "membership": TEXT}),
        "voters": listed(VOTER),
        "voters_alive": COUNT,
        "quorum_size": COUNT,
        "has_quorum": FLAG,
        "alive_peers": COUNT,
        "peers": {"type": "object", "additionalProperties": ref("Peer")},
        "commit_index": COUNT,
        "applied_index": COUNT,
        "log_bytes": COUNT,
        "snapshot_index": COUNT,
        "state_digest": {"anyOf": [shape({"index": COUNT, "sha256": TEXT}), {"type": "null"}]},
        "work": shape({"by_state": shapes.COUNTS, "by_type": shapes.MAP}),
        "leases": COUNT,
        "background_loops": shapes.ANY,
        "membership": shapes.MAP,
        "gossip": shapes.MAP,
        "uptime_s": NUMBER,
        "version": TEXT,
        "config_version": shapes.ANY,
    }
)
STATUS_EXAMPLE = {
    "node_id": "n1",
    "cluster_id": "c-1f2e3d4c5b6a7980",
    "role": "leader",
    "is_leader": True,
    "leader_id": "n1",
    "local_leader_id": "n1",
    "term": 3,
    "mode": {"consensus": "raft", "membership": "http"},
    "voters": [VOTER_EXAMPLE],
    "voters_alive": 1,
    "quorum_size": 1,
    "has_quorum": True,
    "alive_peers": 1,
    "peers": {"n1": PEER_EXAMPLE},
    "commit_index": 45,
    "applied_index": 45,
    "log_bytes": 9216,
    "snapshot_index": 0,
    "state_digest": {"index": 45, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
    "work": {"by_state": {"PENDING": 2}, "by_type": {"selfplay": 2}},
    "leases": 0,
    "background_loops": {},
    "membership": {"mode": "http", "members": 1, "alive": 1},
    "gossip": {"mode": "none"},
    "uptime_s": 81.5,
    "version": "0.1.0",
    "config_version": 0,
}
LINES_WELL = Answer(200, "All is well, a line each.", TEXT, "[+]log ok\n", "text/plain")
LINES_ILL = Answer(503, "Something is not, a line each.", TEXT, "[-]leader none for 3.1 s\n", "text/plain")


def routes() -> list[Route]:
    """The rows of health and status."""
    open_to_all = (Role.OPEN,)
    return [
        Route("GET", "/health", health, open_to_all, "Whether this node is well", "health", is_local=True,
              answers=[Answer(200, "It serves.", HEALTH, HEALTH_EXAMPLE),
                       Answer(503, "It can do nothing for anyone.", HEALTH, {**HEALTH_EXAMPLE, "status": "unavailable",
                                                                             "healthy": False})]),
        Route("GET", "/livez", livez, open_to_all, "Whether the process should go on", "health", is_local=True,
              answers=[LINES_WELL, LINES_ILL]),
        Route("GET", "/readyz", readyz, open_to_all, "Whether requests should come here", "health", is_local=True,
              answers=[LINES_WELL, LINES_ILL]),
        Route("GET", "/status", status, (Role.READER,), "The cluster as this node sees it", "health", is_local=True,
              answers=[Answer(200, "The view.", STATUS, STATUS_EXAMPLE)], consistency=Consistency.STALE),
        Route("GET", "/peers", peers, (Role.READER,), "Every known node", "health", consistency=Consistency.STALE,
              answers=[Answer(200, "Sorted by id.", listed(ref("Peer")), [PEER_EXAMPLE])]),
    ]  # fmt: skip
