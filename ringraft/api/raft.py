"""The log as operators and tests see it, and the way in for the other voters."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ringraft.api import shapes
from ringraft.api.auth import Role
from ringraft.api.call import Call, Reply
from ringraft.api.health import VOTER, VOTER_EXAMPLE, voters
from ringraft.api.problems import Problem
from ringraft.api.route import Answer, Consistency, Route
from ringraft.api.shapes import COUNT, FLAG, TEXT, TEXT_OR_NULL, listed, shape, word
from ringraft.consensus.base import Logged, Unavailable
from ringraft.node.replica import WaitersFull
from ringraft.schema import Field, Integer
from ringraft.state.codec import TAGS
from ringraft.state.commands import Add
from ringraft.state.model import Command
from ringraft.state.view import rfc3339


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


async def raft_log(call: Call) -> Reply:
    """Entries of this node's log, committed or not."""
    consensus = call.node.consensus
    status = call.service.status()
    limit = call.query.get("limit") or LOG_DEFAULT
    first_index = consensus.first_index()
    asked = call.query.get("from")
    begin = max(first_index, status.last_index - limit + 1) if asked is None else max(first_index, asked)
    logged = await consensus.read_log(begin, limit)
    following = logged[-1].index + 1 if logged else begin
    return Reply(
        {
            "node_id": status.node_id,
            "first_index": first_index,
            "last_index": status.last_index,
            "commit_index": status.commit_index,
            "applied_index": status.applied_index,
            "snapshot_index": status.snapshot_index,
            "items": [entry_view(one) for one in logged],
            "next": following if following <= status.last_index else None,
        }
    )


def entry_view(logged: Logged) -> dict[str, Any]:
    """An entry as people read it: what was asked and of which item or node, not the data itself."""
    entry = logged.entry
    view: dict[str, Any] = {"index": logged.index, "term": logged.term, "bytes": logged.size_bytes}
    if entry is None:
        return view | {"epoch": None, "log_ms": None, "at": None, "commands": [], "commands_total": 0}
    return view | {
        "epoch": {"generation": entry.epoch.generation, "number": entry.epoch.number},
        "log_ms": entry.log_ms,
        "at": rfc3339(entry.wall_ms),
        "commands": [command_view(command) for command in entry.commands[:COMMANDS_SHOWN]],
        "commands_total": len(entry.commands),
    }


def command_view(command: Command) -> dict[str, Any]:
    """Kind and ids of one command."""
    op = command.op
    view: dict[str, Any] = {"kind": TAGS[type(op)]}
    named = op.item if isinstance(op, Add) else op
    for name in COMMAND_IDS:
        value = getattr(named, name, None)
        if value is not None:
            view[name] = value
    several = getattr(op, "items", None) or getattr(op, "leases", None)
    if several is not None:
        view["count"] = len(several)
        view["work_ids"] = [one.work_id for one in several[:COMMANDS_SHOWN]]
    if command.key is not None:
        view["key"] = command.key.key
    return view


async def raft_snapshot(call: Call) -> Reply:
    """Make a snapshot of this node's state now."""
    try:
        async with asyncio.timeout(call.left_s()):
            made = await call.node.consensus.snapshot()
    except TimeoutError:
        raise Problem("not_reached", "the snapshot is being made and was not whole in time; ask again") from None
    except Unavailable as error:
        raise Problem(error.code, str(error)) from None
    return Reply({"node_id": call.service.node_id, "index": made.index, "bytes": made.size_bytes, "ms": made.took_ms})


LOG_DEFAULT, LOG_MAX = 100, 1000
COMMANDS_SHOWN = 64
"""Commands of an entry, and items of a command, that are shown; their number is told."""
COMMAND_IDS = (
    "work_id", "work_type", "group", "node_id", "token", "incarnation", "up", "max_items", "leader_id", "formation_id",
)  # fmt: skip
"""What a command is about, where it has it."""

DIGEST_EXAMPLE = {"index": 45, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}


LOG = shape(
    {
        "node_id": TEXT,
        "first_index": COUNT,
        "last_index": COUNT,
        "commit_index": COUNT,
        "applied_index": COUNT,
        "snapshot_index": COUNT,
        "items": listed(
            shape(
                {
                    "index": COUNT,
                    "term": COUNT,
                    "bytes": COUNT,
                    "epoch": shapes.MAP_OR_NULL,
                    "log_ms": shapes.COUNT_OR_NULL,
                    "at": shapes.TIME_OR_NULL,
                    "commands": listed(shape({"kind": TEXT})),
                    "commands_total": COUNT,
                }
            )
        ),
        "next": shapes.COUNT_OR_NULL,
    }
)
LOG_EXAMPLE = {
    "node_id": "n1",
    "first_index": 1,
    "last_index": 3,
    "commit_index": 3,
    "applied_index": 3,
    "snapshot_index": 0,
    "items": [
        {
            "index": 3,
            "term": 1,
            "bytes": 210,
            "epoch": {"generation": 0, "number": 1},
            "log_ms": 1204,
            "at": "2026-01-31T12:00:00.000Z",
            "commands": [{"kind": "add", "work_id": "a", "work_type": "selfplay"}],
            "commands_total": 1,
        }
    ],
    "next": None,
}


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
        Route("GET", "/raft/log", raft_log, (Role.READER,), "Entries of this node's log", "raft",
              answers=[Answer(200, "Oldest first, the newest ones when from is left out.", LOG, LOG_EXAMPLE)],
              consistency=Consistency.STALE,
              query={"from": Field(Integer(0), "The first index wanted."),
                     "limit": Field(Integer(1, LOG_MAX), f"How many; {LOG_DEFAULT} when left out.")}),
        Route("POST", "/raft/snapshot", raft_snapshot, (Role.ADMIN,), "Make a snapshot now", "raft",
              answers=[Answer(200, "It is on this node's disk.",
                              shape({"node_id": TEXT, "index": COUNT, "bytes": COUNT, "ms": COUNT}),
                              {"node_id": "n1", "index": 45, "bytes": 4096, "ms": 12})],
              problems=("not_reached", "starting", "shutting_down")),
        Route("GET", "/raft/connect", connect, (Role.OPEN,), "Another voter's connection", "raft",
              upgrades=True, is_local=True,
              doc="Open because it carries its own proof: a challenge and response under the cluster secret."),
    ]  # fmt: skip
