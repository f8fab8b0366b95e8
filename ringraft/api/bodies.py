"""What the bodies of the work queue look like: the declarative half of ``submission``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ringraft.api import rfc3339
from ringraft.schema import (
    ID,
    NAME,
    NODE_ID,
    Anything,
    Array,
    Boolean,
    Choice,
    Either,
    Fault,
    Field,
    Integer,
    Map,
    Nothing,
    Nullable,
    Number,
    Object,
    String,
)
from ringraft.state.model import Limits

WAIT_S_MAX = 60
TIMEOUT_S_MAX = 366 * 86_400
ATTEMPTS_MAX = 1000
WORK_TYPES_MAX = 64
GPUS_MAX = 64
LABELS_MAX = 64
AMOUNT_MAX = 1e9
"""The most cpus, gigabytes and the like; only to keep out what is no amount."""

WORK_TYPE_ALIASES: Mapping[str, str] = {"gauntlet": "evaluation", "validation": "evaluation", "data_sync": "sync"}

SET_BY_CLUSTER: Mapping[str, str] = {
    name: "is set by the cluster; leave it out"
    for name in (
        "state",
        "attempt",
        "parent",
        "created_at",
        "started_at",
        "finished_at",
        "lease",
        "progress",
        "result",
        "error",
        "artifacts",
        "history",
    )
}
"""Members of a work item that nobody can submit."""

ANY_OBJECT = Object({}, open=True)
TIME = String(rfc3339.TEXT_CHARS_MAX, 1, what="a time as in RFC 3339", format="date-time", parse=rfc3339.wall_ms)
AMOUNT = Number(0, AMOUNT_MAX)
LABELS = Map(String(128), LABELS_MAX, NAME)
GPU_NEED = Object(
    {
        "names": Field(Nullable(Array(NAME, GPUS_MAX, 1)), "Any of these."),
        "count": Field(Nullable(Integer(1, GPUS_MAX)), "How many; 1 when left out."),
        "min_vram_gb": Field(Nullable(AMOUNT), "The least memory of each."),
    }
)
REQUIREMENTS = Object(
    {
        "gpu": Field(Nullable(Either((NAME, GPU_NEED), "a GPU's name or an object")), "A name, or what is needed."),
        "cpus": Field(Nullable(AMOUNT)),
        "memory_gb": Field(Nullable(AMOUNT)),
        "labels": Field(Nullable(LABELS), "All must be there with these values."),
    }
)
GPU = Object({"name": Field(NAME, required=True), "vram_gb": Field(Nullable(AMOUNT))})
CAPABILITIES = Object(
    {
        "gpus": Field(Nullable(Array(GPU, GPUS_MAX))),
        "cpus": Field(Nullable(AMOUNT)),
        "memory_gb": Field(Nullable(AMOUNT)),
        "labels": Field(Nullable(LABELS)),
    }
)


@dataclass(frozen=True, slots=True)
class Token(Integer):
    """A lease's token. Leaving it out has a code of its own."""

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if value is None:
            faults.append(Fault(pointer, "is missing: send the token of the claim", "token_required"))
            return
        Integer.explain(self, value, pointer, faults)


TOKEN = Token()


def item_object(limits: Limits, *, is_open: bool) -> Object:
    """One item as submitted. ``is_open``: members that are no item field go into ``config``."""
    fields = {
        "work_type": Field(ID, "What a worker must offer to run it.", required=True),
        "config": Field(Nullable(ANY_OBJECT), "What the executor is told."),
        "work_id": Field(Nullable(ID), "Unique ignoring case; one is made when left out."),
        "priority": Field(Nullable(Integer(0, 100)), "100 goes first; 50 when left out."),
        "max_attempts": Field(Nullable(Integer(1, ATTEMPTS_MAX)), "3 when left out."),
        "timeout_s": Field(Nullable(Number(0, TIMEOUT_S_MAX, above=True)), "The longest run of one attempt."),
        "depends_on": Field(Nullable(Array(ID, limits.depends_on_max)), "Items that must end first.", refers=True),
        "on_dependency_failure": Field(Nullable(Choice(("cancel", "run", "wait"))), "cancel when left out."),
        "not_before": Field(Nullable(TIME), "Held back until this time."),
        "requirements": Field(Nullable(REQUIREMENTS), "What a node must have."),
        "target_node": Field(Nullable(NODE_ID), "Only this node may run it."),
        "excluded_nodes": Field(Nullable(Array(NODE_ID, limits.excluded_nodes_max)), "These nodes may not."),
        "unique_key": Field(Nullable(NAME), "At most one live item has it."),
        "group": Field(Nullable(NAME), "A name to list and cancel by."),
        "gang": Field(Nothing("gangs are not available in this version; leave it out"), "Not in this version."),
        "strict": Field(Nullable(Boolean()), "Refuse what no registered node could run.", refers=True),
    }
    return Object(fields, open=is_open, refused=SET_BY_CLUSTER)


def _completion(limits: Limits) -> dict[str, Field]:
    item = item_object(limits, is_open=False)
    return {
        "work_id": Field(ID, required=True),
        "token": Field(TOKEN, "The claim's.", required=True, missing_code="token_required"),
        "result": Field(Anything(), "At most 64 KiB."),
        "artifacts": Field(Anything(), "What was made and where it lies."),
        "spawn": Field(Nullable(Array(item, limits.batch_items_max)), "Items to add in the same log entry."),
        "then": Field(Nullable(item), "An item that depends on all the spawned."),
    }


def _by_token(**more: Field) -> Object:
    return Object(
        {
            "work_id": Field(ID, required=True),
            "token": Field(TOKEN, "The claim's.", required=True, missing_code="token_required"),
            **more,
        }
    )


def bodies(limits: Limits) -> dict[str, Object]:
    """The body of each verb, bounded by ``limits``."""
    completion = _completion(limits)
    lease_s = Number(limits.lease_min_ms / 1000, limits.lease_max_ms / 1000)
    renewal = _by_token(progress=Field(Anything(), "At most 64 KiB.")).fields
    choice = {"work_id": Field(ID, "This item."), "group": Field(NAME, "All items of this group.")}
    return {
        "add": item_object(limits, is_open=True),
        "add_batch": Object(
            {"items": Field(Array(item_object(limits, is_open=False), limits.batch_items_max, 1), required=True)}
        ),
        "claim": Object(
            {
                "node_id": Field(NODE_ID, "Who will run it.", required=True),
                "work_types": Field(Nullable(Array(ID, WORK_TYPES_MAX)), "Only these; all when left out."),
                "max_items": Field(Nullable(Integer(1, limits.claim_items_max)), "1 when left out."),
                "lease_s": Field(Nullable(lease_s), "How long without a renewal; 30 when left out."),
                "wait_s": Field(Nullable(Number(0, WAIT_S_MAX)), "How long to wait for something.", refers=True),
                "capabilities": Field(Nullable(CAPABILITIES), "The registered ones when left out."),
            }
        ),
        "start": _by_token(),
        "renew": Object(
            {
                "node_id": Field(NODE_ID, required=True),
                "leases": Field(Array(Object(renewal), limits.node_leases_max), required=True),
            }
        ),
        "complete": Object(completion),
        "complete_batch": Object(
            {"items": Field(Array(Object(completion), limits.batch_items_max, 1), required=True)}
        ),
        "fail": _by_token(
            error=Field(String(limits.error_chars_max), "For people.", required=True),
            retryable=Field(Nullable(Boolean()), "false fails it for ever; true when left out."),
        ),
        "release": _by_token(),
        "cancel": Object(choice, one_of=("work_id", "group")),
        "retry": Object(choice, one_of=("work_id", "group")),
    }  # fmt: skip


REGISTRATION = Object(
    {
        "node_id": Field(NODE_ID, required=True),
        "incarnation": Field(Integer(), "Rises by one with each start of the node.", required=True),
        "roles": Field(Array(Choice(("voter", "worker")), 2, 1), required=True),
        "work_types": Field(Nullable(Array(ID, WORK_TYPES_MAX)), "What its executors run; all when null."),
        "capabilities": Field(Nullable(CAPABILITIES)),
        "addresses": Field(Nullable(Array(String(256, 1, what="host:port"), 16)), "Where its API answers."),
        "version": Field(Nullable(String(64))),
    }
)
