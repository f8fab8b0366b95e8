"""What answers look like: JSON Schemas and examples, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ringraft.api.bodies import CAPABILITIES
from ringraft.api.problems import KINDS
from ringraft.schema import VALUE_REF
from ringraft.state.model import WorkState

Shape = dict[str, Any]

TEXT: Shape = {"type": "string"}
TEXT_OR_NULL: Shape = {"type": ["string", "null"]}
TIME: Shape = {"type": "string", "format": "date-time"}
TIME_OR_NULL: Shape = {"type": ["string", "null"], "format": "date-time"}
COUNT: Shape = {"type": "integer", "minimum": 0}
COUNT_OR_NULL: Shape = {"type": ["integer", "null"]}
NUMBER: Shape = {"type": "number"}
NUMBER_OR_NULL: Shape = {"type": ["number", "null"]}
FLAG: Shape = {"type": "boolean"}
ANY: Shape = {}
MAP: Shape = {"type": "object"}
MAP_OR_NULL: Shape = {"type": ["object", "null"]}
COUNTS: Shape = {"type": "object", "additionalProperties": COUNT}


def shape(members: Mapping[str, Shape], *, optional: Mapping[str, Shape] | None = None) -> Shape:
    """An object that has all of ``members`` and may have the optional ones and others."""
    return {"type": "object", "properties": {**members, **(optional or {})}, "required": list(members)}


def listed(of: Shape) -> Shape:
    """An array of one shape."""
    return {"type": "array", "items": of}


def word(*words: str) -> Shape:
    """One of a few words."""
    return {"type": "string", "enum": list(words)}


def page(of: Shape) -> Shape:
    """One page of a list."""
    return shape({"items": listed(of), "next_cursor": TEXT_OR_NULL})


def ref(name: str) -> Shape:
    """A shape of ``COMPONENTS`` by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


HISTORY_ENTRY = shape(
    {
        "attempt": COUNT,
        "node_id": TEXT,
        "token": COUNT,
        "outcome": word("completed", "failed", "expired", "timeout", "released", "cancelled", "superseded"),
        "reason": TEXT_OR_NULL,
        "at": TIME,
    }
)
LEASE = shape({"node_id": TEXT, "token": COUNT, "expires_at": TIME})
WORK_ITEM = shape(
    {
        "work_id": TEXT,
        "work_type": TEXT,
        "config": MAP,
        "priority": COUNT,
        "state": word(*WorkState),
        "attempt": COUNT,
        "max_attempts": COUNT,
        "timeout_s": NUMBER_OR_NULL,
        "depends_on": listed(TEXT),
        "on_dependency_failure": word("cancel", "run", "wait"),
        "not_before": TIME_OR_NULL,
        "requirements": MAP_OR_NULL,
        "target_node": TEXT_OR_NULL,
        "excluded_nodes": listed(TEXT),
        "unique_key": TEXT_OR_NULL,
        "group": TEXT_OR_NULL,
        "parent": TEXT_OR_NULL,
        "gang": MAP_OR_NULL,
        "created_at": TIME,
        "started_at": TIME_OR_NULL,
        "finished_at": TIME_OR_NULL,
        "lease": {"anyOf": [LEASE, {"type": "null"}]},
        "progress": ANY,
        "result": ANY,
        "error": TEXT_OR_NULL,
        "artifacts": ANY,
        "history": listed(HISTORY_ENTRY),
    }
)
PROBLEM = shape(
    {
        "type": TEXT,
        "title": TEXT,
        "status": COUNT,
        "detail": TEXT,
        "instance": TEXT,
        "code": word(*KINDS),
        "retryable": FLAG,
        "outcome": word("not_applied", "applied", "unknown"),
        "leader": {"anyOf": [shape({"id": TEXT, "url": TEXT}), {"type": "null"}]},
        "term": COUNT,
    },
    optional={"errors": listed(shape({"pointer": TEXT, "message": TEXT}))},
)
PEER = shape(
    {
        "node_id": TEXT,
        "addresses": listed(TEXT),
        "state": word("alive", "suspect", "dead", "left"),
        "incarnation": COUNT,
        "roles": listed(TEXT),
        "last_seen_s": NUMBER_OR_NULL,
        "resources": MAP,
        "gpus": {"type": "array"},
        "version": TEXT,
        "reachable_via": word("direct", "relay"),
    }
)
EVENT = shape({"seq": COUNT, "index": COUNT, "type": TEXT, "at": TIME, "data": MAP})
VALUE: Shape = {
    "description": "Any JSON value. An integer beyond 2^53 - 1 is refused, many readers lose digits: send a string.",
    "anyOf": [
        {"type": ["null", "boolean", "string"]},
        {"type": "integer", "format": "int32"},
        {"type": "number", "format": "double"},
        {"type": "array", "items": {"$ref": VALUE_REF}},
        {"type": "object", "additionalProperties": {"$ref": VALUE_REF}},
    ],
}
COMPONENTS: dict[str, Shape] = {
    "WorkItem": WORK_ITEM,
    "Problem": PROBLEM,
    "Peer": PEER,
    "Event": EVENT,
    "Value": VALUE,
    "Capabilities": CAPABILITIES.json_schema(),
}

AT = "2026-01-31T12:00:00.000Z"
TOKEN = 184_320
WORK_ID = "w-2d-0"
ITEM_EXAMPLE: Shape = {
    "work_id": WORK_ID,
    "work_type": "selfplay",
    "config": {"board_type": "hex8", "num_players": 2, "num_games": 1000},
    "priority": 50,
    "state": "RUNNING",
    "attempt": 0,
    "max_attempts": 3,
    "timeout_s": None,
    "depends_on": [],
    "on_dependency_failure": "cancel",
    "not_before": None,
    "requirements": {"gpu": {"names": ["RTX_5090"]}},
    "target_node": None,
    "excluded_nodes": [],
    "unique_key": None,
    "group": None,
    "parent": None,
    "gang": None,
    "created_at": AT,
    "started_at": AT,
    "finished_at": None,
    "lease": {"node_id": "w1", "token": TOKEN, "expires_at": "2026-01-31T12:00:30.000Z"},
    "progress": {"games": 120},
    "result": None,
    "error": None,
    "artifacts": None,
    "history": [],
}
PEER_EXAMPLE: Shape = {
    "node_id": "n1",
    "addresses": ["127.0.0.1:8770"],
    "state": "alive",
    "incarnation": 3,
    "roles": ["voter"],
    "last_seen_s": 0.4,
    "resources": {"cpu_percent": 12.5, "memory_percent": 41.0, "disk_percent": 63.2},
    "gpus": [],
    "version": "0.1.0",
    "reachable_via": "direct",
}
EVENT_EXAMPLE: Shape = {
    "seq": 2_949_120,
    "index": 45,
    "type": "WORK_ADDED",
    "at": AT,
    "data": {"work_id": WORK_ID, "work_type": "selfplay"},
}
