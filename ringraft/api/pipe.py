"""At a node without a log a stream is a pipe to a node that has one, with the client's credential."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp import WSMsgType, web

from ringraft.api.call import Call
from ringraft.api.forward import CONNECT_S_MAX
from ringraft.api.problems import Problem

PATH = "/work/stream"
PING_S = 20.0
CLOSE_RESTART = 1012
"""The far end went away: connect again and send again, with the same keys."""


async def pipe_to_cluster(call: Call, protocol: str, frame_bytes_max: int) -> web.StreamResponse:
    """Carry frames both ways until one side ends."""
    far = await _connect(call, protocol, frame_bytes_max)
    near = web.WebSocketResponse(protocols=(protocol,), heartbeat=PING_S, max_msg_size=frame_bytes_max, compress=False)
    try:
        await near.prepare(call.request)
        ends = [
            asyncio.create_task(_carry(near, far), name="pipe-to-cluster"),
            asyncio.create_task(_carry(far, near), name="pipe-to-client"),
            asyncio.create_task(call.service.stopping.wait(), name="pipe-stopping"),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        await near.close(code=CLOSE_RESTART, message=b"the cluster's end of this stream is gone")
    finally:
        await far.close()
    return near


async def _connect(call: Call, protocol: str, frame_bytes_max: int) -> aiohttp.ClientWebSocketResponse:
    authorization = call.request.headers.get("Authorization")
    headers = {"Authorization": authorization} if authorization is not None else {}
    for url in call.node.cluster_addresses:
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                far: aiohttp.ClientWebSocketResponse = await call.node.client.ws_connect(
                    url.rstrip("/") + PATH,
                    protocols=(protocol,),
                    headers=headers,
                    max_msg_size=frame_bytes_max,
                    heartbeat=PING_S,
                    compress=0,
                )
                return far
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise Problem("forbidden", "the cluster refuses this credential") from None
        except (aiohttp.ClientError, OSError, TimeoutError):
            continue
    raise Problem("no_leader", "no node of the cluster takes a stream now")


async def _carry(source: Any, sink: Any) -> None:
    try:
        async for message in source:
            if message.type is not WSMsgType.BINARY:
                return
            await sink.send_bytes(message.data)
    except (ConnectionResetError, aiohttp.ClientError):
        return
