"""The cluster's state as a stream, while it runs."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

import ringraft
from ringraft.api.auth import Role
from ringraft.api.call import Call, Reply
from ringraft.api.problems import Problem
from ringraft.api.route import Answer, Consistency, Route
from ringraft.api.service import no_leader
from ringraft.api.shapes import TEXT
from ringraft.consensus.base import Indeterminate, NotLeader, Unavailable
from ringraft.node.archive import ArchiveBusy
from ringraft.rescue.file import FORMAT_VERSION, Head, Writer
from ringraft.schema import Boolean, Choice, Field

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/octet-stream"
SLICE_S = 0.004
"""How long a backup holds the loop at a time …"""
PAUSE_S = 0.004
"""… and how long it leaves the loop alone in between."""
STALL_S = 30.0
"""A reader that takes nothing for so long is let go: what it has not read yet is kept in memory for it."""
PAGE_ROWS = 100


async def backup(call: Call) -> Reply | web.StreamResponse:
    """The state at one index, then the archive as it was before."""
    service = call.service
    if not service.is_member:
        voter = next(iter(call.node.cluster_addresses), None)
        if voter is None:
            raise Problem("no_leader", "this node keeps no log and knows no voter yet")
        return Reply(b"", 307, headers={"Location": f"{voter.rstrip('/')}{call.request.raw_path}"})
    if service.is_backing_up:
        raise Problem("rate_limited", "another backup is being read from this node; ask another node, or later")
    service.is_backing_up = True
    try:
        if call.query.get("consistency") != Consistency.STALE:
            await _catch_up(call)
        return await _stream(call)
    finally:
        service.is_backing_up = False


async def _catch_up(call: Call) -> None:
    """Wait until everything acknowledged before this call is applied here."""
    while True:
        try:
            await call.node.replica.read_barrier(deadline_s=max(0.01, call.left_s()))
            return
        except (NotLeader, Unavailable, Indeterminate) as error:
            if call.left_s() <= 0:
                code = error.code if isinstance(error, Unavailable) else "no_leader"
                raise no_leader(call.service.status(), code) from None
        await call.service.leaders.chance(call.left_s())


async def _stream(call: Call) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
    began_s = time.monotonic()
    sent = 0
    try:
        async with asyncio.timeout(STALL_S) as patience, aclosing(_frames(call)) as frames:
            # The image is taken with the first frame, before anybody is told that there is one.
            first = await anext(frames)
            await response.prepare(call.request)
            await response.write(first)
            async for frame in frames:
                patience.reschedule(asyncio.get_running_loop().time() + STALL_S)
                await response.write(frame)
                sent += len(frame)
    except (TimeoutError, ArchiveBusy, sqlite3.Error) as error:
        if not response.prepared:
            raise Problem("rate_limited", f"the archive cannot be read now: {error}") from error
        # Cut off: a reader sees that the end is missing.
        log.error("backup broken off action=backup_failed by=%s error=%r", call.principal.name, error)
        if call.request.transport is not None:
            call.request.transport.abort()
        return response
    log.info(
        "backup sent action=backup by=%s bytes=%d took_s=%.1f", call.principal.name, sent, time.monotonic() - began_s
    )
    return response


async def _frames(call: Call) -> AsyncGenerator[bytes, None]:
    archive = call.node.archive if call.query.get("archive", True) else None
    upto = await archive.newest_row() if archive is not None else 0
    machine = call.node.replica.machine
    writer = Writer()
    chunks = machine.snapshot()
    yield writer.head(
        Head(
            format_version=FORMAT_VERSION,
            program_version=ringraft.__version__,
            cluster_id=call.node.identity.cluster_id or "",
            node_id=call.service.node_id,
            index=machine.index,
            log_ms=machine.log_ms,
            wall_ms=machine.wall_ms,
            made_wall_ms=time.time_ns() // 1_000_000,
            generation=machine.epoch.generation,
            term=machine.epoch.number,
            digest=machine.digest(),
            items=len(machine.tables.items),
            has_archive=archive is not None,
        )
    )
    slice_end_s = time.monotonic() + SLICE_S
    for chunk in chunks:
        yield writer.state(chunk)
        if time.monotonic() >= slice_end_s:
            await asyncio.sleep(PAUSE_S)
            slice_end_s = time.monotonic() + SLICE_S
    after = 0
    while archive is not None and after < upto:
        rows, after = await archive.page(after, upto, PAGE_ROWS)
        if rows:
            yield writer.archive(rows)
    yield writer.end()


def routes() -> list[Route]:
    """The row of backups."""
    return [
        Route("GET", "/admin/backup", backup, (Role.ADMIN,), "The state as a stream", "admin", is_local=True,
              answers=[Answer(200, "A backup file; see `ringraft backup`. Without its last record it was cut off.",
                              TEXT, "ringback…", CONTENT_TYPE)],
              problems=("rate_limited", "no_leader", "no_quorum", "starting", "shutting_down"),
              query={"consistency": Field(Choice((Consistency.LINEARIZABLE, Consistency.STALE)),
                                          "linearizable (when left out): with all that was acknowledged before."),
                     "archive": Field(Boolean(), "With this node's archive of final items; true when left out.")}),
    ]  # fmt: skip
