"""What happened, from the log: as pages, long polls and server-sent events."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from ringraft.api import rfc3339
from ringraft.api.auth import Role
from ringraft.api.bodies import WAIT_S_MAX
from ringraft.api.call import Call, Reply
from ringraft.api.problems import Problem, of_faults
from ringraft.api.route import Answer, Consistency, Route
from ringraft.api.shapes import COUNT, EVENT_EXAMPLE, FLAG, TEXT, listed, ref, shape
from ringraft.api.work import PAGE_DEFAULT, PAGE_MAX
from ringraft.schema import Fault, Field, Integer, Number
from ringraft.state.model import Event

SSE_TYPE = "text/event-stream"
KEEPALIVE_S = 15.0
LOOK_S = 1.0
"""How soon a reader without news notices that this node stops."""

READERS_MAX = 1024
"""Event streams of one node."""


async def events(call: Call) -> Reply | web.StreamResponse:
    """A page; with ``Accept: text/event-stream`` what happens from now on."""
    if SSE_TYPE in call.request.headers.get("Accept", ""):
        return await _stream(call)
    ring = call.node.replica.events
    since, limit = call.query.get("since", 0), call.query.get("limit", PAGE_DEFAULT)
    if call.wait_s > 0:
        await ring.wait(since, min(call.wait_s, call.left_s()))
    found = ring.since(since, limit)
    return Reply({"items": [event_view(event) for event in found.events], "next": found.next, "lost": found.lost})


def event_view(event: Event) -> dict[str, Any]:
    """An event as the API shows it."""
    return {
        "seq": event.seq,
        "index": event.index,
        "type": str(event.type),
        "at": rfc3339.text(event.at_wall_ms),
        "data": event.data,
    }


async def _stream(call: Call) -> web.StreamResponse:
    service, ring = call.service, call.node.replica.events
    seq = _resumed_at(call)
    if service.event_readers >= READERS_MAX:
        raise Problem("rate_limited", f"{READERS_MAX} readers follow the events of this node already")
    response = web.StreamResponse(headers={"Content-Type": SSE_TYPE, "Cache-Control": "no-store"})
    await response.prepare(call.request)
    service.event_readers += 1
    try:
        quiet_s = 0.0
        while not service.stopping.is_set():
            found = ring.since(seq, PAGE_MAX)
            if found.lost:
                lost = json.dumps({"after": seq, "next": found.events[0].seq if found.events else found.next})
                await response.write(f"event: lost\ndata: {lost}\n\n".encode())
            seq = found.next
            if found.events:
                quiet_s = 0.0
                await response.write(b"".join(map(_as_sse, found.events)))
            elif not await ring.wait(seq, LOOK_S):
                quiet_s += LOOK_S
                if quiet_s >= KEEPALIVE_S:
                    quiet_s = 0.0
                    await response.write(b": still here\n\n")
    finally:
        service.event_readers -= 1
    await response.write_eof()
    return response


def _resumed_at(call: Call) -> int:
    text = call.request.headers.get("Last-Event-ID")
    if text is not None:
        if not text.isascii() or not text.isdigit() or len(text) > 16:
            raise of_faults([Fault("Last-Event-ID", "must be the id of an event")])
        return int(text)
    since: int = call.query.get("since", call.node.replica.events.newest_seq)
    return since


def _as_sse(event: Event) -> bytes:
    data = json.dumps(event_view(event), separators=(",", ":"))
    return f"id: {event.seq}\nevent: {event.type}\ndata: {data}\n\n".encode()


def routes() -> list[Route]:
    """The row of the events."""
    return [
        Route(
            "GET", "/events", events, (Role.READER,), "What happened", "events",
            answers=[
                Answer(
                    200, "A page; `next` is what to ask `since` with.",
                    shape({"items": listed(ref("Event")), "next": COUNT}, optional={"lost": FLAG}),
                    {"items": [EVENT_EXAMPLE], "next": EVENT_EXAMPLE["seq"], "lost": False},
                ),
                Answer(200, "What happens from now on.", TEXT, f"id: {EVENT_EXAMPLE['seq']}\nevent: WORK_ADDED\n"
                       "data: {}\n\n", SSE_TYPE),
            ],
            problems=("rate_limited",),
            query={
                "since": Field(Integer(), "Only events with a higher number; all that are kept when left out."),
                "limit": Field(Integer(1, PAGE_MAX), f"How many; {PAGE_DEFAULT} when left out."),
                "wait_s": Field(Number(0, WAIT_S_MAX), "How long to wait for one.", refers=True),
            },
            consistency=Consistency.STALE,
        )
    ]  # fmt: skip
