"""The output of a work item's latest attempt, fetched from the node that ran it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
from aiohttp import web
from yarl import URL

from ringraft.api.call import Call, Reply
from ringraft.api.forward import CONNECT_S_MAX, Passed
from ringraft.api.hop import HOP_HEADER
from ringraft.api.problems import PROBLEM_TYPE, Problem
from ringraft.node.archive import ArchiveBusy

TAIL_BYTES_MAX = 256 * 1024
"""How much of the end is sent; the whole file lies on the worker."""

CHUNK_BYTES = 64 * 1024
FOLLOW_LOOK_S = 0.5
FOLLOW_S_MAX = 3600.0
"""A reader that follows for longer has to ask again."""

TEXT_TYPE = "text/plain; charset=utf-8"


async def work_log(call: Call) -> Reply | web.StreamResponse:
    """The output, from here if it ran here, else from where it ran."""
    work_id = call.params["id"]
    worker = call.node.worker
    path: Path | None = worker.log_path(work_id) if worker is not None else None
    if path is not None:
        return await _local(call, work_id, path)
    if not call.service.is_member:
        if call.is_hop:
            raise Problem("not_found", f"this node keeps no output of {work_id}")
        return await call.service.pass_to_cluster(call, Passed("GET", call.request.path, call.query, None))
    node_id = await _ran_on(call, work_id)
    url = call.node.peer_url(node_id)
    if url is None or call.is_hop or node_id == call.service.node_id:
        raise Problem("not_found", f"{work_id} ran on {node_id}, which is not known here or keeps no output of it")
    return await _proxied(call, work_id, node_id, url)


async def _ran_on(call: Call, work_id: str) -> str:
    item: dict[str, Any] | None = call.node.replica.machine.item(work_id)
    if item is None and call.node.archive is not None:
        try:
            item = await call.node.archive.item(work_id)
        except ArchiveBusy as error:
            raise Problem("rate_limited", str(error)) from None
    if item is None:
        raise Problem("not_found", f"there is no item {work_id}")
    if item["lease"] is not None:
        return str(item["lease"]["node_id"])
    if item["history"]:
        return str(item["history"][-1]["node_id"])
    raise Problem("not_found", f"{work_id} has not been tried yet")


async def _local(call: Call, work_id: str, path: Path) -> Reply | web.StreamResponse:
    try:
        file = await asyncio.to_thread(_open_tail, path)
    except FileNotFoundError:
        raise Problem("not_found", f"the output of {work_id} is gone from this node") from None
    with file:
        if not call.query.get("follow"):
            return Reply(await asyncio.to_thread(file.read, TAIL_BYTES_MAX), content_type=TEXT_TYPE)
        return await _follow(call, work_id, file)


def _open_tail(path: Path) -> BinaryIO:
    file = path.open("rb")
    file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES_MAX))
    return file


async def _follow(call: Call, work_id: str, file: BinaryIO) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": TEXT_TYPE})
    await response.prepare(call.request)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + FOLLOW_S_MAX
    while loop.time() < end_s and not call.service.stopping.is_set():
        # Asked before reading: what was written before the end is sent before the stream ends.
        is_running = any(run["work_id"].lower() == work_id.lower() for run in call.node.worker.status()["running"])
        part = await asyncio.to_thread(file.read, CHUNK_BYTES)
        if part:
            await response.write(part)
        elif not is_running:
            break
        else:
            await asyncio.sleep(FOLLOW_LOOK_S)
    await response.write_eof()
    return response


async def _proxied(call: Call, work_id: str, node_id: str, url: str) -> Reply | web.StreamResponse:
    passed = Passed("GET", f"/work/item/{work_id}/log", call.query, None)
    signature = call.service.forwarder.signature(call.principal, node_id, call.request_id, "GET", passed.target)
    follows = bool(call.query.get("follow"))
    timeout = aiohttp.ClientTimeout(total=FOLLOW_S_MAX if follows else call.left_s(), sock_connect=CONNECT_S_MAX)
    try:
        async with call.node.client.get(
            URL(url.rstrip("/") + passed.target, encoded=True),
            headers={HOP_HEADER: signature},
            timeout=timeout,
            allow_redirects=False,
        ) as answer:
            call.headers["X-Ringraft-Served-By"] = node_id
            if answer.status != 200:
                if answer.content_type == PROBLEM_TYPE and answer.status == 404:
                    raise Problem("not_found", f"{node_id} keeps no output of {work_id}")
                raise Problem("not_found", f"{node_id} gave no output of {work_id}: status {answer.status}")
            if not follows:
                return Reply(await answer.read(), content_type=TEXT_TYPE)
            response = web.StreamResponse(headers={"Content-Type": TEXT_TYPE})
            await response.prepare(call.request)
            async for part in answer.content.iter_any():
                await response.write(part)
                if call.service.stopping.is_set():
                    break
            await response.write_eof()
            return response
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        if call.request.writer.output_size:
            raise ConnectionResetError("the output broke off") from error
        raise Problem("not_found", f"{node_id}, which has the output of {work_id}, cannot be reached") from None
