"""Links between voters: one WebSocket each way, proven before the first message counts.

Each node dials every other voter and sends on the connection it dialled; what the other sends
arrives on the connection the other dialled. So a link that is up means: what is sent may arrive.
A peer that proves itself is taken though this node does not know it, and dialled at the address it
names, for as long as it stays: the voters may have changed while this node was away.

Before a link carries messages both sides prove that they know the cluster secret (HMAC-SHA-256 over
both nonces, the cluster id and both node ids, with a label for each direction, the dialler first).
Without a secret the key is empty and only the ids are compared; such a cluster listens on loopback.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import msgpack
from aiohttp import WSMsgType, web

from ringraft.consensus.replog.codec import FRAME_BYTES_MAX, Message, WireError, decode_all, join

logger = logging.getLogger(__name__)

PATH = "/raft/connect"
VERSION = 3
HELLO_BYTES_MAX = 4096
HANDSHAKE_S = 2.0
PING_S = 2.0
"""A link without a pong for half of this is dead."""
REDIAL_FIRST_S = 0.02
REDIAL_MAX_S = 0.25
"""A fraction of the election time-out, so that links are back before anybody stands for election."""
BATCH_BYTES = 1024 * 1024
"""Messages that wait together travel in one WebSocket message of about this size."""
WAITING_BYTES_MAX = 64 * 1024 * 1024
"""A link that falls further behind is closed: the peer catches up from the log when it is back."""
CONFIGURED_EVERY = 4
"""Of so many dials in vain, the last goes to where the configuration has the peer, if that is elsewhere."""
GUESTS_MAX = 16
"""Peers linked that this node does not know; each has proven that it belongs to the cluster."""
ADDRESS_CHARS_MAX = 300
ID_CHARS_MAX = 64


class RevealsSecret(Protocol):
    """A secret that does not show itself by accident."""

    def reveal(self) -> str: ...


class LinkListener(Protocol):
    """Who is told what happens on the links."""

    def on_messages(self, peer_id: str, messages: list[Message]) -> None: ...

    def on_link(self, peer_id: str, is_up: bool) -> None:
        """What is sent to ``peer_id`` may arrive from now on, or no longer does."""
        ...

    def on_refused(self, peer_id: str) -> None:
        """Nobody listens at the peer's address: its process is gone."""
        ...

    def on_links_failed(self, error: Exception) -> None:
        """The links can no longer be kept up; this node must stop."""
        ...


class Links(Protocol):
    """The network as the log sees it."""

    async def start(self, listener: LinkListener) -> None: ...

    async def stop(self) -> None: ...

    def follow(self, peers: Mapping[str, str]) -> None:
        """Keep links to these: id to ``host:port``. Others stay while they dial this node. Also before ``start``."""
        ...

    def send(self, peer_id: str, frame: bytes) -> None:
        """Send an encoded message, or drop it when the link is down. Never waits."""
        ...

    async def accept_peer(self, request: web.Request) -> web.StreamResponse: ...


class HandshakeError(Exception):
    """The other side is not who it should be, or speaks another version."""


class Outgoing:
    """The link to one peer: frames that wait, and the task that dials and sends."""

    def __init__(self, peer_id: str, address: str, configured: str) -> None:
        self.peer_id = peer_id
        self.address = address
        self.configured = configured
        """Where the configuration has it: all voters may have moved, and the log knows where each of them was."""
        self.dialled = address
        self.dials = 0
        """In vain, since it was linked last."""
        self.is_up = False
        self.dialling: asyncio.Task[None] | None = None
        self.refused = ""
        """What the peer said when it refused this node last."""
        self.redial = asyncio.Event()
        """Set when the peer showed that it is there: dial now."""
        self.sending: asyncio.Task[None] | None = None
        """While it is connected; the link breaks when this ends."""
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._more = asyncio.Event()

    def next_url(self) -> str:
        """Where to dial now."""
        self.dials += 1
        self.dialled = self.configured if self.dials % CONFIGURED_EVERY == 0 else self.address
        return f"http://{self.dialled}{PATH}"

    def put(self, frame: bytes) -> bool:
        """Queue a frame; False when the link is too far behind."""
        self._frames.append(frame)
        self._bytes += len(frame)
        self._more.set()
        return self._bytes <= WAITING_BYTES_MAX

    def clear(self) -> None:
        self._frames.clear()
        self._bytes = 0
        self._more.clear()

    async def send_all(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Send what waits, for ever; raises ConnectionError or ClientError when the link breaks."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._frames:
                batch, size = [self._frames.popleft()], 0
                size = len(batch[0])
                while self._frames and size + len(self._frames[0]) <= BATCH_BYTES:
                    batch.append(self._frames.popleft())
                    size += len(batch[-1])
                self._bytes -= size
                await socket.send_bytes(batch[0] if len(batch) == 1 else join(batch))


@dataclass(frozen=True, slots=True)
class Incoming:
    """The connection on which one peer sends."""

    socket: web.WebSocketResponse
    request: web.Request

    def cut(self) -> None:
        """End it without a farewell: its peer may be gone for good, and nobody waits for that."""
        if self.request.transport is not None:
            self.request.transport.abort()


class PeerLinks:
    """Links over the node's one REST port."""

    def __init__(
        self,
        *,
        node_id: str,
        address: str,
        cluster_id: str,
        secret: RevealsSecret | None,
        configured: Mapping[str, str] | None = None,
    ) -> None:
        """``address`` is where others reach this node; it travels in every greeting. ``configured`` says where
        peers may be as well that are not at the address followed."""
        self._node_id = node_id
        self._configured = dict(configured or {})
        self._address = address
        self._peers: dict[str, str] = {}
        """As followed last: what a peer says of its address since then goes before."""
        self._cluster_id = cluster_id
        self._key = secret.reveal().encode() if secret is not None else b""
        self._listener: LinkListener
        self._session: aiohttp.ClientSession | None = None
        self._outgoing: dict[str, Outgoing] = {}
        self._incoming: dict[str, Incoming] = {}
        self._ended: set[asyncio.Task[None]] = set()
        """Links given up, until their connections are closed."""

    async def start(self, listener: LinkListener) -> None:
        self._listener = listener
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector)
        for peer_id, address in self._peers.items():
            self._link_with(peer_id, address)

    async def stop(self) -> None:
        tasks = [*self._ended, *(link.dialling for link in self._outgoing.values() if link.dialling is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for incoming in list(self._incoming.values()):
            incoming.cut()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def follow(self, peers: Mapping[str, str]) -> None:
        before, self._peers = self._peers, dict(peers)
        if self._session is None:
            return
        for peer_id in before.keys() - peers.keys():
            if peer_id not in self._incoming:
                self._drop(peer_id)
        for peer_id, address in peers.items():
            link = self._outgoing.get(peer_id)
            if link is None:
                self._link_with(peer_id, address)
            elif before.get(peer_id) != address:
                self._move(link, address)

    def _link_with(self, peer_id: str, address: str) -> None:
        self._outgoing[peer_id] = link = Outgoing(peer_id, address, self._configured.get(peer_id, address))
        link.dialling = asyncio.create_task(self._stay_linked(link), name=f"raft-link-{peer_id}")

    def _drop(self, peer_id: str) -> None:
        link = self._outgoing.pop(peer_id, None)
        if link is not None and link.dialling is not None:
            link.dialling.cancel()
            self._ended.add(link.dialling)
            link.dialling.add_done_callback(self._ended.discard)

    def _move(self, link: Outgoing, address: str) -> None:
        """The peer is to be reached elsewhere; a connection that is up shows that it is there already."""
        if link.address == address:
            return
        logger.info(
            "peer moved action=peer_moved node=%s peer=%s from=%s to=%s",
            self._node_id, link.peer_id, link.address, address,
        )  # fmt: skip
        link.address = address
        if link.sending is not None and link.dialled != address:
            link.sending.cancel()
        link.redial.set()

    def send(self, peer_id: str, frame: bytes) -> None:
        link = self._outgoing.get(peer_id)
        if link is None:
            return
        if link.is_up and not link.put(frame):
            logger.warning("link too far behind action=link_overflow node=%s peer=%s", self._node_id, peer_id)
            self._down(link)
            if link.sending is not None:
                # The peer may be well and only slow: it is dialled again, and what it lacks is found out anew.
                link.sending.cancel()

    # Dialling

    async def _stay_linked(self, link: Outgoing) -> None:
        try:
            await self._keep_dialling(link)
        except Exception as error:
            logger.exception("link given up action=link_failed node=%s peer=%s", self._node_id, link.peer_id)
            self._listener.on_links_failed(error)

    async def _keep_dialling(self, link: Outgoing) -> None:
        pause_s = REDIAL_FIRST_S
        while True:
            link.redial.clear()
            try:
                await self._dial(link)
                pause_s = REDIAL_FIRST_S
            except aiohttp.ClientConnectorError as error:
                if isinstance(error.os_error, ConnectionRefusedError) and link.dialled == link.address:
                    self._listener.on_refused(link.peer_id)
                pause_s = min(pause_s * 2, REDIAL_MAX_S)
            except HandshakeError as error:
                if str(error) != link.refused:
                    link.refused = str(error)
                    logger.warning(
                        "peer refused action=link_handshake node=%s peer=%s: %s", self._node_id, link.peer_id, error
                    )
                pause_s = REDIAL_MAX_S
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                # A ValueError: the peer's address is none. It is another node's, or an operator's, and ends only this.
                logger.debug("link broke action=link_broken node=%s peer=%s: %r", self._node_id, link.peer_id, error)
                pause_s = min(pause_s * 2, REDIAL_MAX_S)
            try:
                async with asyncio.timeout(pause_s):
                    await link.redial.wait()
            except TimeoutError:
                pass

    async def _dial(self, link: Outgoing) -> None:
        """Connect, prove, send until the link breaks."""
        assert self._session is not None
        async with asyncio.timeout(HANDSHAKE_S):
            socket = await self._session.ws_connect(
                link.next_url(), compress=0, heartbeat=PING_S, max_msg_size=HELLO_BYTES_MAX, autoclose=True
            )
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await self._prove_dialling(socket, link.peer_id)
            link.clear()
            link.is_up, link.refused, link.dials = True, "", 0
            logger.info("link up action=link_up node=%s peer=%s", self._node_id, link.peer_id)
            self._listener.on_link(link.peer_id, True)
            if link.is_up:
                await self._send_until_broken(link, socket)
        finally:
            self._down(link)
            await socket.close()

    async def _send_until_broken(self, link: Outgoing, socket: aiohttp.ClientWebSocketResponse) -> None:
        link.sending = sending = asyncio.create_task(link.send_all(socket))
        closed = asyncio.create_task(_wait_closed(socket))
        try:
            await asyncio.wait((sending, closed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.sending = None
            for task in (sending, closed):
                task.cancel()
            for outcome in await asyncio.gather(sending, closed, return_exceptions=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, (OSError, aiohttp.ClientError)):
                    raise outcome

    def _down(self, link: Outgoing) -> None:
        if link.is_up:
            link.is_up = False
            link.clear()
            self._listener.on_link(link.peer_id, False)

    # Accepting

    async def accept_peer(self, request: web.Request) -> web.StreamResponse:
        """Take an upgraded connection from a peer; returns when it ends."""
        socket = web.WebSocketResponse(compress=False, heartbeat=PING_S, max_msg_size=FRAME_BYTES_MAX)
        try:
            await socket.prepare(request)
            async with asyncio.timeout(HANDSHAKE_S):
                peer_id, address = await self._prove_accepting(socket)
        except ConnectionResetError:
            # It dialled while this process stood still, and gave up; nobody reads this answer.
            raise web.HTTPRequestTimeout from None
        except (HandshakeError, TimeoutError) as error:
            # The dialler, which redials several times a second, says it once as a warning.
            logger.info("peer refused action=link_refused node=%s from=%s: %s", self._node_id, request.remote, error)
            await socket.close()
            return socket
        older = self._incoming.get(peer_id)
        self._incoming[peer_id] = Incoming(socket, request)
        if older is not None:
            older.cut()
        link = self._outgoing.get(peer_id)
        if link is None:
            self._link_with(peer_id, address)
        else:
            self._move(link, address)
            link.redial.set()
        try:
            await self._receive(socket, peer_id)
        finally:
            if self._counts(socket, peer_id):
                del self._incoming[peer_id]
                if peer_id not in self._peers:
                    self._drop(peer_id)
        return socket

    def _counts(self, socket: web.WebSocketResponse, peer_id: str) -> bool:
        """No newer connection of this peer has replaced it."""
        incoming = self._incoming.get(peer_id)
        return incoming is not None and incoming.socket is socket

    async def _receive(self, socket: web.WebSocketResponse, peer_id: str) -> None:
        async for frame in socket:
            if not self._counts(socket, peer_id):
                return
            if frame.type is not WSMsgType.BINARY:
                return
            try:
                messages = decode_all(frame.data)
            except WireError as error:
                logger.error("not a message action=link_garbage node=%s peer=%s: %s", self._node_id, peer_id, error)
                return
            self._listener.on_messages(peer_id, messages)

    # Proving

    async def _prove_dialling(self, socket: aiohttp.ClientWebSocketResponse, peer_id: str) -> None:
        nonce = secrets.token_bytes(16)
        hello = {
            "version": VERSION,
            "cluster": self._cluster_id,
            "from": self._node_id,
            "to": peer_id,
            "address": self._address,
            "nonce": nonce,
        }
        await socket.send_bytes(msgpack.packb(hello))
        theirs = _field(await _fields(socket), "nonce")
        await socket.send_bytes(msgpack.packb({"proof": self._proof(b"dial", self._node_id, peer_id, nonce, theirs)}))
        proof = _field(await _fields(socket), "proof")
        if not hmac.compare_digest(proof, self._proof(b"accept", self._node_id, peer_id, nonce, theirs)):
            raise HandshakeError("it does not know the cluster secret")

    async def _prove_accepting(self, socket: web.WebSocketResponse) -> tuple[str, str]:
        """The peer's id and where it wants to be reached. The address steers only where this node dials, and
        whoever answers there has to prove itself."""
        hello = await _fields(socket)
        peer_id, address, nonce = hello.get("from"), hello.get("address"), _field(hello, "nonce")
        fault = None
        if hello.get("version") != VERSION:
            fault = f"version {hello.get('version')!r} of the peer protocol; this node speaks {VERSION}"
        elif hello.get("cluster") != self._cluster_id:
            fault = f"cluster id {hello.get('cluster')!r}; this node belongs to {self._cluster_id!r}"
        elif hello.get("to") != self._node_id:
            fault = f"looks for {hello.get('to')!r} at the address of {self._node_id!r}"
        elif not isinstance(peer_id, str) or not 0 < len(peer_id) <= ID_CHARS_MAX or peer_id == self._node_id:
            fault = "its greeting names no peer"
        elif peer_id not in self._outgoing and len(self._outgoing.keys() - self._peers.keys()) >= GUESTS_MAX:
            fault = f"{GUESTS_MAX} nodes that this one does not know are linked already"
        elif not isinstance(address, str) or not 0 < len(address) <= ADDRESS_CHARS_MAX:
            fault = "its greeting has no address"
        if fault is not None:
            await socket.send_bytes(msgpack.packb({"refused": fault}))
            raise HandshakeError(fault)
        assert isinstance(peer_id, str) and isinstance(address, str)
        ours = secrets.token_bytes(16)
        await socket.send_bytes(msgpack.packb({"nonce": ours}))
        proof = _field(await _fields(socket), "proof")
        if not hmac.compare_digest(proof, self._proof(b"dial", peer_id, self._node_id, nonce, ours)):
            await socket.send_bytes(msgpack.packb({"refused": "the proof does not fit this cluster's secret"}))
            raise HandshakeError(f"{peer_id} does not know the cluster secret")
        answer = self._proof(b"accept", peer_id, self._node_id, nonce, ours)
        await socket.send_bytes(msgpack.packb({"proof": answer}))
        return peer_id, address

    def _proof(self, label: bytes, dialler: str, acceptor: str, dialler_nonce: bytes, acceptor_nonce: bytes) -> bytes:
        said = msgpack.packb(
            [b"ringraft peer", VERSION, label, self._cluster_id, dialler, acceptor, dialler_nonce, acceptor_nonce]
        )
        return hmac.digest(self._key, said, hashlib.sha256)


async def _wait_closed(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Nothing comes back on a link one sends on, so whatever comes is its end."""
    await socket.receive()


async def _fields(socket: aiohttp.ClientWebSocketResponse | web.WebSocketResponse) -> dict[str, Any]:
    frame = await socket.receive()
    if frame.type is not WSMsgType.BINARY or len(frame.data) > HELLO_BYTES_MAX:
        raise HandshakeError(f"the connection ended, or sent {frame.type.name} instead of its part of the greeting")
    try:
        fields = msgpack.unpackb(frame.data, strict_map_key=True, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise HandshakeError(f"its greeting is not msgpack: {error}") from error
    if not isinstance(fields, dict):
        raise HandshakeError("its greeting is not a map")
    if "refused" in fields:
        raise HandshakeError(f"it refuses: {fields['refused']}")
    return fields


def _field(fields: dict[str, Any], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, bytes) or not 16 <= len(value) <= 64:
        raise HandshakeError(f"its greeting has no {name} of 16 to 64 bytes")
    return value
