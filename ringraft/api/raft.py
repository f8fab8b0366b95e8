"""The log as operators and tests see it, and the way in for the other voters."""

from __future__ import annotations

from aiohttp import web

from ringraft.api import shapes
from ringraft.api.auth import Role
from ringraft.api.call import Call, Reply
from ringraft.api.health import VOTER, VOTER_EXAMPLE, voters
from ringraft.api.problems import Problem
from ringraft.api.route import Answer, Consistency, Route
from ringraft.api.shapes import COUNT, FLAG, TEXT, TEXT_OR_NULL, listed, shape, word
from ringraft.node.replica import WaitersFull
from ringraft.schema import Field, Integer


async def raft_status(call: Call) -> Reply:
    """This node's log."""
    status = call.service.status()
    return Reply(
        {
            "node_id": status.node_id,
            "mode": str(call.node.settings.consensus.mode),
            "role": status.role.value,
            "leader_id": status.acting_leader_id,
            "term": status.epoch.number,
            "generation": status.epoch.generation,
            "commit_index": status.commit_index,
            "applied_index": status.applied_index,
            "last_index": status.last_index,
            "snapshot_index": status.snapshot_index,
            "log_bytes": status.log_bytes,
            "has_quorum": status.has_quorum,
            "leader_contact_s": status.leader_contact_s,
            "voters": voters(call),
        }
    )


async def raft_digest(call: Call) -> Reply:
    """The state's digest, at an index when one is asked for."""
    index = call.query.get("index")
    replica = call.node.replica
    if index is not None:
        if replica.machine.index < index:
            try:
                is_reached = await replica.wait_index(index, timeout_s=call.left_s())
            except WaitersFull as error:
                raise Problem("rate_limited", str(error)) from None
            if not is_reached:
                raise Problem(
                    "not_reached",
                    f"index {index} is not applied here yet, {replica.machine.index} is",
                    members={"index": replica.machine.index},
                )
        if replica.machine.index > index:
            raise Problem(
                "digest_passed",
                f"index {index} lies behind {replica.machine.index}, and digests are not kept",
                members={"index": replica.machine.index},
            )
    return Reply({"index": replica.machine.index, "sha256": replica.machine.digest()})


async def connect(call: Call) -> web.StreamResponse:
    """A voter's connection. It proves its node id and the secret before its first frame counts."""
    if call.request.headers.get("Upgrade", "").lower() != "websocket":
        raise Problem("bad_json", "this is for the other voters: a WebSocket")
    if call.node.consensus is None:
        raise Problem("not_found", "this node keeps no log")
    response: web.StreamResponse = await call.node.consensus.accept_peer(call.request)
    return response


DIGEST_EXAMPLE = {"index": 45, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}


def routes() -> list[Route]:
    """The rows of the log."""
    status = shape(
        {
            "node_id": TEXT,
            "mode": TEXT,
            "role": word("leader", "follower", "candidate"),
            "leader_id": TEXT_OR_NULL,
            "term": COUNT,
            "generation": COUNT,
            "commit_index": COUNT,
            "applied_index": COUNT,
            "last_index": COUNT,
            "snapshot_index": COUNT,
            "log_bytes": COUNT,
            "has_quorum": FLAG,
            "leader_contact_s": shapes.NUMBER_OR_NULL,
            "voters": listed(VOTER),
        }
    )
    example = {
        "node_id": "n1",
        "mode": "raft",
        "role": "leader",
        "leader_id": "n1",
        "term": 3,
        "generation": 0,
        "commit_index": 45,
        "applied_index": 45,
        "last_index": 45,
        "snapshot_index": 0,
        "log_bytes": 9216,
        "has_quorum": True,
        "leader_contact_s": 0.0,
        "voters": [VOTER_EXAMPLE],
    }
    return [
        Route("GET", "/raft/status", raft_status, (Role.READER,), "This node's log", "raft",
              answers=[Answer(200, "The view.", status, example)], consistency=Consistency.STALE),
        Route("GET", "/raft/digest", raft_digest, (Role.READER,), "The digest of the state", "raft",
              answers=[Answer(200, "Equal on all nodes at equal index.", shape({"index": COUNT, "sha256": TEXT}),
                              DIGEST_EXAMPLE)],
              problems=("not_reached", "digest_passed", "rate_limited"), consistency=Consistency.STALE,
              query={"index": Field(Integer(), "Wait for this index.", refers=True)}),
        Route("GET", "/raft/connect", connect, (Role.OPEN,), "Another voter's connection", "raft",
              upgrades=True, is_local=True,
              doc="Open because it carries its own proof: a challenge and response under the cluster secret."),
    ]  # fmt: skip
