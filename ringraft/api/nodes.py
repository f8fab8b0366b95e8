"""How nodes present themselves to the cluster."""

from __future__ import annotations

from ringraft.api import shapes
from ringraft.api.auth import Role
from ringraft.api.bodies import REGISTRATION, WORK_TYPE_ALIASES
from ringraft.api.call import Call, Reply
from ringraft.api.forward import Passed
from ringraft.api.problems import Problem
from ringraft.api.route import Answer, Route
from ringraft.api.shapes import COUNT, FLAG, TEXT, TEXT_OR_NULL, shape, word
from ringraft.api.submission import capabilities
from ringraft.membership.wire import (
    ADDRESSES_MAX,
    GPUS_MAX,
    HEARD_MAX,
    RESOURCES_MAX,
    ROLES_MAX,
    TEXT_MAX,
    BadHeartbeat,
)
from ringraft.schema import NODE_ID, Anything, Array, Boolean, Field, Integer, Map, Nullable, Number, Object, String
from ringraft.state.commands import RegisterNode
from ringraft.state.model import Command

_REPORT = {
    "node_id": Field(NODE_ID, required=True),
    "data_id": Field(String(TEXT_MAX), required=True),
    "incarnation": Field(Integer(), required=True),
    "roles": Field(Array(String(TEXT_MAX), ROLES_MAX), required=True),
    "addresses": Field(Array(String(TEXT_MAX), ADDRESSES_MAX), required=True),
    "version": Field(String(TEXT_MAX), required=True),
    "resources": Field(Map(Anything(), RESOURCES_MAX), required=True),
    "gpus": Field(Array(Anything(), GPUS_MAX), required=True),
    "left": Field(Boolean(), "It says goodbye."),
    "priority": Field(Nullable(Integer()), "Who is asked first to lead when a choice exists."),
    "applied_index": Field(Nullable(Integer()), "How far its log is applied."),
}
HEARTBEAT = Object(
    {
        **_REPORT,
        "cluster_id": Field(Nullable(String(TEXT_MAX))),
        "view": Field(Nullable(String(TEXT_MAX)), "The newest view of the members it has."),
        "heard": Field(
            Array(Object({**_REPORT, "age_s": Field(Number(), required=True)}), HEARD_MAX),
            "Whom it heard itself.",
            required=True,
        ),
    }
)
REPORT_EXAMPLE = {
    "node_id": "w1",
    "data_id": "d-5b6a7980",
    "incarnation": 3,
    "roles": ["worker"],
    "addresses": ["127.0.0.1:8780"],
    "version": "0.1.0",
    "resources": {"cpu_percent": 12.5},
    "gpus": [],
}


async def register(call: Call) -> Reply:
    """Enter a node, or a new incarnation of one, into the log."""
    body = call.body
    call.principal.check_node(body["node_id"])
    types = body.get("work_types")
    op = RegisterNode(
        node_id=body["node_id"],
        incarnation=body["incarnation"],
        roles=tuple(dict.fromkeys(body["roles"])),
        work_types=None if types is None else tuple(dict.fromkeys(WORK_TYPE_ALIASES.get(t, t) for t in types)),
        capabilities=capabilities(body.get("capabilities") or {}),
        addresses=tuple(body.get("addresses") or ()),
        version=body.get("version") or "",
    )
    outcome = await call.service.outcome(call, Command(op), Passed("POST", "/nodes/register", {}, body))
    return outcome if isinstance(outcome, Reply) else Reply(outcome.value)


async def heartbeat(call: Call) -> Reply:
    """Hear a node and tell it who is there."""
    call.principal.check_node(call.body["node_id"])
    try:
        return Reply(call.node.membership.heartbeat(call.body))
    except BadHeartbeat as error:
        raise Problem("invalid_field", str(error)) from None


def routes() -> list[Route]:
    """The rows of membership."""
    answer = shape(
        {
            "accepted": FLAG,
            "reason": TEXT_OR_NULL,
            "known_incarnation": COUNT,
            "cluster_id": TEXT_OR_NULL,
            "node_id": TEXT,
            "leader_id": TEXT_OR_NULL,
            "leader_url": TEXT_OR_NULL,
            "term": COUNT,
            "view": TEXT,
            "members": {"type": ["array", "null"]},
        }
    )
    example = {
        "accepted": True,
        "reason": None,
        "known_incarnation": 3,
        "cluster_id": "c-1f2e3d4c5b6a7980",
        "node_id": "n1",
        "leader_id": "n1",
        "leader_url": "http://127.0.0.1:8770",
        "term": 1,
        "view": "n1-7",
        "members": None,
    }
    return [
        Route("POST", "/nodes/register", register, (Role.WORKER, Role.PEER), "A node presents itself", "nodes",
              answers=[Answer(200, "Entered.", shape({"status": word("registered"), "freed": shapes.ANY}),
                              {"status": "registered", "freed": 0})],
              problems=("conflict", "queue_full"), body=REGISTRATION, writes=True,
              body_example={"node_id": "w1", "incarnation": 3, "roles": ["worker"], "work_types": ["selfplay"],
                            "capabilities": {"cpus": 8}, "addresses": ["127.0.0.1:8780"], "version": "0.1.0"}),
        Route("POST", "/nodes/heartbeat", heartbeat, (Role.WORKER, Role.PEER), "A node says that it is there", "nodes",
              answers=[Answer(200, "Heard.", answer, example)], body=HEARTBEAT,
              body_example={**REPORT_EXAMPLE, "cluster_id": None, "view": None, "heard": []}),
    ]  # fmt: skip
