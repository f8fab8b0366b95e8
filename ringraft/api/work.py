"""The work queue's routes."""

from __future__ import annotations

import asyncio
from typing import Any

from ringraft.api import shapes
from ringraft.api.auth import Role
from ringraft.api.bodies import WAIT_S_MAX, WORK_TYPE_ALIASES, WORK_TYPES_MAX
from ringraft.api.call import Call, Reply
from ringraft.api.forward import NoAnswer, NotSent, Passed
from ringraft.api.log import work_log
from ringraft.api.problems import Problem, of_faults
from ringraft.api.route import Answer, Bound, Consistency, Route
from ringraft.api.shapes import AT, COUNT, ITEM_EXAMPLE, TEXT, TOKEN, WORK_ID, listed, page, ref, shape, word
from ringraft.api.stream import work_stream
from ringraft.api.submission import Submission
from ringraft.node.archive import ArchiveBusy, BadCursor
from ringraft.node.replica import WaitersFull
from ringraft.schema import ID, NAME, NODE_ID, Array, Boolean, Choice, Fault, Field, Integer, Number, String
from ringraft.state.model import WorkState

PAGE_DEFAULT = 100
PAGE_MAX = 1000
CURSOR_CHARS_MAX = 512
ASK_VOTERS_S = 2.0
"""How long the other voters have to say whether their archives hold an item."""

PAGING = {
    "limit": Field(Integer(1, PAGE_MAX), f"How many; {PAGE_DEFAULT} when left out."),
    "cursor": Field(String(CURSOR_CHARS_MAX, 1), "`next_cursor` of the page before.", refers=True),
}
FILTERS = {
    "state": Field(Choice(tuple(WorkState))),
    "work_type": Field(ID),
    "group": Field(NAME),
    "node_id": Field(NODE_ID, "The node that holds it, or held it last."),
}


async def post(call: Call) -> Reply:
    """Every POST that is one verb of the queue."""
    assert call.route is not None
    return await ask(call, call.route.path.rpartition("/")[2])


async def ask(call: Call, name: str) -> Reply:
    """Have verb ``name`` decided with the call's body."""
    verb = call.service.submission.verbs[name]
    op = verb.build(call.body, call.principal)
    return await call.service.decide(call, verb, call.command(verb, op))


async def claim_by_query(call: Call) -> Reply:
    """GET /work/claim, for workers of the seed: the same as the POST."""
    body = {name: value for name, value in call.query.items() if name != "redirect"}
    types = body.pop("capabilities", None)
    if types is not None and types != ["all"]:
        body.setdefault("work_types", types)
    call.body = call.service.submission.verbs["claim"].check(dict(sorted(body.items())))
    return await ask(call, "claim")


async def item(call: Call) -> Reply:
    """One item, wherever it is kept."""
    work_id = call.params["id"]
    found = call.node.replica.machine.item(work_id)
    if found is not None and call.wait_s > 0:
        try:
            found = await call.node.replica.wait_final(work_id, wait_s=min(call.wait_s, call.left_s())) or found
        except WaitersFull as error:
            raise Problem("rate_limited", str(error)) from None
    if found is None and call.node.archive is not None:
        try:
            found = await call.node.archive.item(work_id)
        except ArchiveBusy as error:
            raise Problem("rate_limited", str(error)) from None
    if found is not None:
        return Reply(found)
    elsewhere = None if call.is_hop else await _ask_voters(call, work_id)
    if elsewhere is None:
        raise Problem("not_found", f"there is no item {work_id}; it may have been retired long ago")
    return elsewhere


async def _ask_voters(call: Call, work_id: str) -> Reply | None:
    """The item from another voter's archive."""
    service = call.service
    others = [v.node_id for v in service.status().voters if v.node_id != service.node_id and v.connected]
    passed = Passed("GET", f"/work/item/{work_id}", {"consistency": str(Consistency.STALE)}, None)

    async def one(node_id: str) -> Reply | None:
        url = service.leader_url(node_id)
        if url is None:
            return None
        try:
            async with asyncio.timeout(min(ASK_VOTERS_S, max(0.05, call.left_s()))):
                reply = await service.forwarder.to_node(call, node_id, url, passed)
        except (NotSent, NoAnswer, TimeoutError):
            return None
        return reply if reply.status == 200 else None

    for reply in await asyncio.gather(*(one(node_id) for node_id in others)):
        if reply is not None:
            served_by = {k: v for k, v in reply.headers.items() if k == "X-Ringraft-Served-By"}
            return Reply(reply.body, reply.status, reply.content_type, served_by)
    return None


async def items(call: Call) -> Reply:
    """A page of the items held."""
    query = call.query
    work_type = query.get("work_type")
    try:
        found, cursor = call.node.replica.machine.items(
            state=query.get("state"),
            work_type=WORK_TYPE_ALIASES.get(work_type, work_type) if work_type else None,
            group=query.get("group"),
            node_id=query.get("node_id"),
            cursor=query.get("cursor"),
            limit=query.get("limit", PAGE_DEFAULT),
        )
    except ValueError:
        raise _bad_cursor() from None
    return Reply({"items": found, "next_cursor": cursor})


async def history(call: Call) -> Reply:
    """A page of final items from this node's archive, newest first."""
    query = call.query
    try:
        found, cursor = await call.node.archive.history(
            state=query.get("state"),
            work_type=query.get("work_type"),
            group=query.get("group"),
            node_id=query.get("node_id"),
            cursor=query.get("cursor"),
            limit=query.get("limit", PAGE_DEFAULT),
        )
    except BadCursor:
        raise _bad_cursor() from None
    except ArchiveBusy as error:
        raise Problem("rate_limited", str(error)) from None
    return Reply({"items": found, "next_cursor": cursor})


def _bad_cursor() -> Problem:
    return of_faults([Fault("?cursor", "is no next_cursor of this list")])


async def work_status(call: Call) -> Reply:
    """The queue in numbers."""
    return Reply({**call.node.replica.machine.work_status(), "rates": call.node.rates()})


async def for_node(call: Call) -> Reply:
    """What a node holds now."""
    node_id = call.params["node_id"]
    held = call.node.replica.machine.items_for_node(node_id)
    return Reply({"node_id": node_id, "work_items": held, "count": len(held)})


async def why(call: Call) -> Reply:
    """Why an item does not run."""
    work_id = call.params["id"]
    found = call.node.replica.machine.why(work_id)
    if found is None:
        raise Problem("not_found", f"there is no live item {work_id}")
    return Reply(found)


ITEM_ID = {"id": Field(ID, "A work item's id, in any case.")}
NODE = {"node_id": Field(NODE_ID, "A node's id.")}
WAIT = {"wait_s": Field(Number(0, WAIT_S_MAX), "Answer when it is final, or after this long.", refers=True)}

ADD_EXAMPLE = {"work_type": "selfplay", "board_type": "hex8", "num_players": 2, "num_games": 1000}
ADDED = shape(
    {"status": word("added", "exists"), "work_id": TEXT},
    optional={"state": TEXT, "index": COUNT, "warnings": listed(TEXT)},
)
ADDED_EXAMPLE = {"status": "added", "work_id": WORK_ID, "state": "PENDING", "index": 45, "warnings": []}
CLAIMED = shape(
    {
        "items": listed(ref("WorkItem")),
        "work": {"anyOf": [ref("WorkItem"), {"type": "null"}]},
        "reasons": shapes.COUNTS,
    }
)
CLAIMED_EXAMPLE = {"items": [ITEM_EXAMPLE], "work": ITEM_EXAMPLE, "reasons": {}}
RENEWED = shape(
    {
        "leases": listed(
            shape(
                {"work_id": TEXT, "ok": shapes.FLAG},
                optional={"expires_at": shapes.TIME_OR_NULL, "cancel": shapes.FLAG, "code": TEXT},
            )
        )
    }
)
RENEWED_EXAMPLE = {"leases": [{"work_id": WORK_ID, "ok": True, "expires_at": AT, "cancel": False}]}
COUNTED = shape({"status": TEXT, "count": COUNT})
BY_TOKEN = {"work_id": WORK_ID, "token": TOKEN}
DECIDED = ("stale_token", "already_final", "wrong_state")
ADDING = ("unknown_dependency", "dependency_cycle", "unsatisfiable", "queue_full", "conflict")


def routes(submission: Submission) -> list[Route]:
    """The rows of the work queue."""
    schemas = submission.schemas

    def verb(name: str, summary: str, example: Any, answer: Any, *problems: str) -> Route:
        row = submission.verbs[name]
        return Route(
            "POST",
            f"/work/{name}",
            post,
            (row.role,),
            summary,
            "work",
            answers=[answer],
            problems=("idempotency_mismatch", *problems) if row.is_keyed else problems,
            body=schemas[name],
            body_example=example,
            body_bound=Bound.BATCH if row.is_batch else Bound.BODY,
            writes=True,
        )

    def read(path: str, handler: Any, summary: str, answer: Answer, *problems: str, **more: Any) -> Route:
        consistency = more.pop("consistency", Consistency.STALE)
        return Route(
            "GET",
            path,
            handler,
            (Role.READER,),
            summary,
            "work",
            answers=[answer],
            problems=problems,
            consistency=consistency,
            **more,
        )

    held = Answer(
        200,
        "What it holds.",
        shape({"node_id": TEXT, "work_items": listed(ref("WorkItem")), "count": COUNT}),
        {"node_id": "w1", "work_items": [ITEM_EXAMPLE], "count": 1},
    )
    claimed = Answer(200, "The items granted, perhaps none.", CLAIMED, CLAIMED_EXAMPLE)
    listing = Answer(200, "A page.", page(ref("WorkItem")), {"items": [ITEM_EXAMPLE], "next_cursor": None})
    return [
        verb(
            "add",
            "Add one item; members that are no item field go into its config",
            ADD_EXAMPLE,
            Answer(200, "Added, or there already.", ADDED, ADDED_EXAMPLE),
            "work_id_taken",
            *ADDING,
        ),
        verb(
            "add_batch",
            "Add many items, all or none",
            {"items": [{"work_type": "selfplay", "config": {"board_type": "hex8"}}]},
            Answer(200, "In order.", shape({"items": listed(ADDED)}), {"items": [ADDED_EXAMPLE]}),
            "work_id_taken",
            *ADDING,
        ),
        verb("claim", "Take items to run them", {"node_id": "w1"}, claimed, "rate_limited", "queue_full"),
        Route(
            "GET",
            "/work/claim",
            claim_by_query,
            (Role.WORKER,),
            "Take items to run them, as the seed's workers ask",
            "work",
            answers=[claimed],
            problems=("rate_limited", "idempotency_mismatch", "queue_full"),
            query={
                "node_id": Field(NODE_ID, "Who will run it.", required=True),
                "work_types": Field(Array(ID, WORK_TYPES_MAX, 1), "Only these, separated by commas."),
                "capabilities": Field(Array(ID, WORK_TYPES_MAX, 1), "The seed's name for work_types; `all` is all."),
                "max_items": Field(Integer(1, submission.limits.claim_items_max)),
                "lease_s": Field(Number(submission.limits.lease_min_ms / 1000, submission.limits.lease_max_ms / 1000)),
                "wait_s": Field(Number(0, WAIT_S_MAX), "How long to wait for something.", refers=True),
            },
            writes=True,
        ),
        verb(
            "start",
            "ASSIGNED → RUNNING",
            BY_TOKEN,
            Answer(200, "It runs.", shape({"status": word("running")}), {"status": "running"}),
            "not_found",
            *DECIDED,
        ),
        verb(
            "renew",
            "Keep leases, report progress, learn of cancellations",
            {"node_id": "w1", "leases": [BY_TOKEN]},
            Answer(200, "Each by itself.", RENEWED, RENEWED_EXAMPLE),
        ),
        verb(
            "complete",
            "Finish an item and add what follows from it",
            {**BY_TOKEN, "result": {"games": 1000}},
            Answer(
                200,
                "It is final.",
                shape({"status": word("completed"), "spawned": listed(TEXT), "then": shapes.TEXT_OR_NULL}),
                {"status": "completed", "spawned": [], "then": None},
            ),
            "not_found",
            "work_id_taken",
            *DECIDED,
            *ADDING,
        ),
        verb(
            "complete_batch",
            "Finish many items, each by itself",
            {"items": [BY_TOKEN]},
            Answer(
                200,
                "In order.",
                shape(
                    {"items": listed(shape({"status": word("completed", "refused")}, optional={"code": TEXT}))}
                ),
                {"items": [{"status": "completed"}, {"status": "refused", "code": "stale_token"}]},
            ),
        ),
        verb(
            "fail",
            "Report that an attempt failed",
            {**BY_TOKEN, "error": "exit code 1"},
            Answer(
                200,
                "Tried again later, or failed for ever.",
                shape({"status": word("retry", "failed"), "state": TEXT, "not_before": shapes.TIME_OR_NULL}),
                {"status": "retry", "state": "PENDING", "not_before": AT},
            ),
            "not_found",
            *DECIDED,
        ),
        verb(
            "release",
            "Hand an item back without spending an attempt",
            BY_TOKEN,
            Answer(200, "It is PENDING.", shape({"status": word("released")}), {"status": "released"}),
            "not_found",
            *DECIDED,
        ),
        verb(
            "cancel",
            "Cancel an item or a group, for ever",
            {"work_id": WORK_ID},
            Answer(200, "How many.", COUNTED, {"status": "cancelled", "count": 1}),
            "not_found",
            "already_final",
            "wrong_state",
        ),
        verb(
            "retry",
            "Take a FAILED or CANCELLED item, or a group's, back",
            {"work_id": WORK_ID},
            Answer(200, "How many.", COUNTED, {"status": "retried", "count": 1}),
            "not_found",
            "already_final",
            "wrong_state",
            "conflict",
            "queue_full",
        ),
        Route("GET", "/work/stream", work_stream, (Role.SUBMITTER, Role.WORKER), "Many calls over one WebSocket",
              "work", upgrades=True, is_local=True),
        read("/work/item/{id}", item, "One item", Answer(200, "The item.", ref("WorkItem"), ITEM_EXAMPLE),
             "not_found", "rate_limited", consistency=Consistency.LINEARIZABLE, path_fields=ITEM_ID, query=WAIT),
        Route(
            "GET", "/work/item/{id}/log", work_log, (Role.READER,), "The output of the latest attempt", "work",
            answers=[Answer(200, "The tail, as it was written.", TEXT, "game 1 of 1000\n", "text/plain")],
            problems=("not_found", "rate_limited"),
            query={"follow": Field(Boolean(), "Go on as more is written, until the item is final.")},
            path_fields=ITEM_ID, is_local=True,
        ),
        read("/work/items", items, "Items held, by what they are", listing, query={**FILTERS, **PAGING}),
        read("/work/history", history, "Final items, newest first", listing, "rate_limited",
             query={**FILTERS, **PAGING}),
        read(
            "/work/status", work_status, "The queue in numbers",
            Answer(
                200,
                "Counts and rates.",
                shape(
                    {
                        "total_items": COUNT,
                        "by_status": shapes.COUNTS,
                        "by_type": shapes.MAP,
                        "pending": shapes.ANY,
                        "running": shapes.ANY,
                        "oldest_pending_age_s": shapes.NUMBER_OR_NULL,
                        "rates": shapes.MAP,
                        "backpressure": shapes.ANY,
                        "leases_by_node": shapes.COUNTS,
                    }
                ),
                {
                    "total_items": 3,
                    "by_status": {"PENDING": 2, "RUNNING": 1},
                    "by_type": {"selfplay": 3},
                    "pending": 2,
                    "running": 1,
                    "oldest_pending_age_s": 12.5,
                    "rates": {"added": 0.5, "completed": 0.4},
                    "backpressure": {"active": False},
                    "leases_by_node": {"w1": 1},
                },
            ),
        ),
        read("/work/for-node/{node_id}", for_node, "What a node holds now", held, path_fields=NODE),
        read("/work/node/{node_id}", for_node, "What a node holds now, on the seed's path", held, path_fields=NODE),
        read(
            "/work/why/{id}", why, "Why an item does not run",
            Answer(
                200,
                "First what matters most.",
                shape(
                    {
                        "work_id": TEXT,
                        "state": word(*WorkState),
                        "reasons": listed(shape({"code": TEXT, "detail": TEXT})),
                        "rejections": {"type": "object", "additionalProperties": TEXT},
                        "position": shapes.COUNT_OR_NULL,
                        "estimate_s": shapes.NUMBER_OR_NULL,
                    }
                ),
                {
                    "work_id": WORK_ID,
                    "state": "PENDING",
                    "reasons": [
                        {"code": "WorkersUnhealthy", "detail": "every worker that fits is down (w2): bring one back"}
                    ],
                    "rejections": {"w1": "gpu", "w2": "down"},
                    "position": 0,
                    "estimate_s": None,
                },
            ),
            "not_found",
            path_fields=ITEM_ID,
        ),
    ]  # fmt: skip
