"""The one stream of a node to the leader, shared by all clients' streams that came to this node.

A call that this node cannot decide waits here until somebody leads. It is sent with a key (minted
when the client gave none) and sent again, with the same key, to every new leader until it is
answered or its time is up; so it has one effect.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Set
from typing import Any

import aiohttp
import msgpack

from ringraft.api.auth import ADMIN
from ringraft.api.forward import CONNECT_S_MAX, TRY_ELSEWHERE
from ringraft.api.hop import HOP_HEADER
from ringraft.api.problems import Problem
from ringraft.api.service import Service, mint_key, no_leader
from ringraft.api.stream import FORGET, FRAME_BYTES_MAX, PROTOCOL, StreamCall, dispatch, problem_answer

log = logging.getLogger(__name__)

PATH = "/work/stream"
CALLS_MAX = 65_536
"""Calls that wait here for an answer; beyond it a client is told to come back."""

FRAME_CALLS_MAX = 4096
LOOK_S = 0.02
"""How often a leader is looked for, and how soon the next is tried after a failure."""

SWEEP_S = 0.1
PING_S = 2.0
"""A leader that answers no ping for this long is taken for gone."""


class Upstream:
    """Calls on their way to the leader and back."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._calls: dict[int, StreamCall] = {}
        self._unsent: dict[int, None] = {}
        self._forgotten: list[int] = []
        """Calls the leader has and need not answer."""
        self._numbers = itertools.count(1)
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def take(self, call: StreamCall) -> None:
        """Carry ``call`` to whoever leads; its answer comes by ``call.answer``."""
        if len(self._calls) >= CALLS_MAX:
            problem = Problem("rate_limited", f"{CALLS_MAX} calls wait here for the leader already")
            call.answer(*problem_answer(self._service, problem))
            return
        if call.key is None and call.verb.is_keyed:
            call.key = mint_key()
            call.command = type(call.command)(call.command.op, call.verb.key(call.principal, call.key, call.body))
        number = next(self._numbers)
        self._calls[number] = call
        self._unsent[number] = None
        self._wanted.set()
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._run(), name="upstream"),
                asyncio.create_task(self._sweep(), name="upstream-sweep"),
            ]

    def forget(self, calls: Set[StreamCall]) -> None:
        """Nobody waits for these any longer."""
        for number in [number for number, call in self._calls.items() if call in calls]:
            self._unsent.pop(number, None)
            if self._calls.pop(number).was_sent:
                self._forgotten.append(number)
                self._wanted.set()

    async def close(self) -> None:
        """Give up on everything that has no answer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for number in list(self._calls):
            self._give_up(number)

    async def _run(self) -> None:
        while True:
            if not self._calls:
                self._wanted.clear()
                await self._wanted.wait()
            status = self._service.status()
            leader = status.leader_id
            url = self._service.leader_url(leader) if leader is not None else None
            if leader == self._service.node_id:
                self._take_home()
            elif leader is not None and url is not None:
                await self._serve(leader, url)
                for number, call in self._calls.items():
                    call.is_unknown = call.is_unknown or call.was_sent
                    call.was_sent = False
                    self._unsent[number] = None
            if self._calls:
                await asyncio.sleep(LOOK_S)

    def _take_home(self) -> None:
        """This node leads now: decide here what waits."""
        waiting = list(self._calls.values())
        self._calls.clear()
        self._unsent.clear()
        for call in waiting:
            dispatch(self._service, call)

    async def _serve(self, leader: str, url: str) -> None:
        """Send and receive until the connection ends or somebody else leads."""
        signature = self._service.forwarder.signature(ADMIN, leader, mint_key()[5:21], "GET", PATH)
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                socket = await self._service.node.client.ws_connect(
                    url.rstrip("/") + PATH,
                    protocols=(PROTOCOL,),
                    headers={HOP_HEADER: signature},
                    max_msg_size=FRAME_BYTES_MAX,
                    heartbeat=PING_S,
                    compress=0,
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.debug("leader not reached action=upstream_connect_failed leader=%s error=%r", leader, error)
            return
        self._forgotten.clear()  # what another connection was told ended with that connection
        log.info("stream to the leader opened action=upstream_open leader=%s", leader)
        sender = asyncio.create_task(self._send(socket, leader), name="upstream-sender")
        try:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.BINARY:
                    break
                self._receive(message.data)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            await socket.close()
        log.info("stream to the leader ended action=upstream_end leader=%s waiting=%d", leader, len(self._calls))

    async def _send(self, socket: aiohttp.ClientWebSocketResponse, leader: str) -> None:
        pack = msgpack.Packer(use_bin_type=True).pack
        try:
            while self._service.status().leader_id in (leader, None):
                if not self._unsent and not self._forgotten:
                    self._wanted.clear()
                    try:
                        # Woken now and then to see whether somebody else leads.
                        await asyncio.wait_for(self._wanted.wait(), SWEEP_S)
                    except TimeoutError:
                        continue
                batch = self._next_batch()
                if batch:
                    await socket.send_bytes(pack(batch))
        except (aiohttp.ClientError, OSError) as error:
            log.debug("leader went away action=upstream_broken leader=%s error=%r", leader, error)
        # Ends the reader, which then looks for the leader again.
        await socket.close()

    def _next_batch(self) -> list[list[Any]]:
        now_s = asyncio.get_running_loop().time()
        batch: list[list[Any]] = [[number, FORGET, None] for number in self._forgotten]
        self._forgotten.clear()
        for number in list(self._unsent)[:FRAME_CALLS_MAX]:
            del self._unsent[number]
            call = self._calls.get(number)
            if call is None:
                continue
            call.was_sent = True
            body = call.body if call.key is None else {**call.body, "idempotency_key": call.key}
            who = call.principal
            left_s = max(0.05, call.end_s - now_s - call.wait_s)
            batch.append([number, call.verb.name, body, [who.name, str(who.role), who.node_id], left_s])
        return batch

    def _receive(self, data: bytes) -> None:
        for number, status, body in msgpack.unpackb(data, raw=False):
            call = self._calls.get(number)
            if call is None:
                continue
            if status == 503 and body.get("code") in TRY_ELSEWHERE and body.get("outcome") == "not_applied":
                # It does not lead any more; the next one is asked as soon as it is known.
                call.was_sent = False
                self._unsent[number] = None
                continue
            del self._calls[number]
            call.answer(status, body)

    async def _sweep(self) -> None:
        """Answer what ran out of time."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = asyncio.get_running_loop().time()
            for number in [n for n, call in self._calls.items() if call.end_s <= now_s]:
                self._give_up(number)

    def _give_up(self, number: int) -> None:
        call = self._calls.pop(number)
        self._unsent.pop(number, None)
        if call.was_sent or call.is_unknown:
            problem = Problem("commit_unknown", "the leader gave no answer in time; repeat with the same key")
        else:
            problem = no_leader(self._service.status())
        call.answer(*problem_answer(self._service, problem))
