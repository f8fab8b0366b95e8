"""The network between processes: connections that keep their order, break, and lose what was on the way.

It behaves like the simplex WebSockets of the peer links over TCP. A packet that is dropped is sent
again, so loss is delay and everything behind it waits; a direction that is cut holds back what was
sent until it is mended or the connection's ping runs out; a reset loses what is on the way. What has
reached a process that stands still waits in its socket. A connection to a process that is gone is
refused while its machine is up.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from aiohttp import web

from chaos.sim.loop import EventQueue, NodeLoop
from ringraft.consensus.replog.codec import Message, decode_all
from ringraft.consensus.replog.transport import LinkListener

REDIAL_FIRST_S = 0.02
REDIAL_MAX_S = 0.25
PING_OUT_S = (1.0, 3.0)
"""A connection that hears nothing breaks after this long."""
SYN_AGAIN_S = (0.2, 1.0)
"""A dial into nothing is looked at again after this long."""
RESEND_S = (0.02, 0.4)
"""A packet that was lost arrives so much later."""


@dataclass(slots=True)
class Weather:
    """How the network is: seconds, and chances for each message."""

    delay_s: tuple[float, float] = (0.0002, 0.0008)
    loss: float = 0.0
    duplicate: float = 0.0
    grain_s: float = 0.0
    """Messages arrive at multiples of it, several at once: a loop that is busy reads its sockets so."""
    late: float = 0.0
    """The chance of a message to take ten times as long."""


class Connection:
    """From the process that dialled to the one that took it; messages travel this way only."""

    __slots__ = ("arrived_s", "broken_s", "generation", "held_back", "source", "target")

    def __init__(self, source: SimLinks, target: SimLinks, generation: int) -> None:
        self.source = source
        self.target = target
        self.generation = generation
        self.broken_s: float | None = None
        self.arrived_s = 0.0
        """When the last message sent arrives; those behind it are not faster."""
        self.held_back: list[bytes] = []
        """Sent into a direction that is cut."""


class Network:
    """All connections, and which directions are cut."""

    def __init__(self, queue: EventQueue, rng: random.Random, weather: Weather) -> None:
        self.queue = queue
        self.weather = weather
        self.links: dict[str, SimLinks] = {}
        """Processes that listen now."""
        self.powered: dict[str, bool] = {}
        """Machines; one without power refuses nothing, it is silent."""
        self.cuts: Counter[tuple[str, str]] = Counter()
        self.slow: dict[str, float] = {}
        """Machines whose packets take so many times as long."""
        self.trace = 0
        self.messages = 0
        self.on_message: Callable[[str, str, Message], None] | None = None
        self.tamper: Callable[[str, str, bytes], bytes | None] | None = None
        """For planted faults: another frame, or None to lose it."""
        self._random = rng.random
        self._uniform = rng.uniform
        self._connections: set[int] = set()
        self._changes: Counter[tuple[str, str]] = Counter()
        self._generation = 0
        self._frame: bytes = b""
        self._messages: list[Message] = []

    # What faults do

    def cut(self, directions: Iterable[tuple[str, str]]) -> None:
        for direction in directions:
            self.cuts[direction] += 1
            self._changed(direction)

    def mend(self, directions: Iterable[tuple[str, str]]) -> None:
        for direction in directions:
            self.cuts[direction] -= 1
            if self.cuts[direction] <= 0:
                del self.cuts[direction]
                self._changed(direction)

    def reset(self, node: str, peer: str) -> None:
        """Break the connections between two machines, both ways."""
        for source, target in ((node, peer), (peer, node)):
            links = self.links.get(source)
            connection = links.connections.get(target) if links is not None else None
            if connection is not None:
                self.break_off(connection, self.queue.now_s)

    def is_open(self, source: str, target: str) -> bool:
        return (source, target) not in self.cuts

    def _changed(self, direction: tuple[str, str]) -> None:
        self._changes[direction] += 1
        for source, target in (direction, (direction[1], direction[0])):
            links = self.links.get(source)
            connection = links.connections.get(target) if links is not None else None
            if connection is None:
                continue
            if not self.is_open(*direction):
                self.await_pong(connection)
            elif (source, target) == direction and connection.held_back:
                self._send_held(connection)

    def await_pong(self, connection: Connection) -> None:
        """Break this connection unless what is wrong is over before its ping runs out."""
        source, target = connection.source.node_id, connection.target.node_id
        changes = self._changes[source, target], self._changes[target, source]
        at_s = self.queue.now_s + self._uniform(*PING_OUT_S)

        def look() -> None:
            if connection.broken_s is not None:
                return
            is_same = changes == (self._changes[source, target], self._changes[target, source])
            is_cut = not self.is_open(source, target) or not self.is_open(target, source)
            stands = connection.target.loop.held is not None or connection.target.is_closed
            if stands or (is_same and is_cut):
                self.break_off(connection, self.queue.now_s)

        connection.source.loop.deliver(at_s, look)

    def await_pongs_of(self, node: str) -> None:
        """A process stopped answering: who is connected to it will notice."""
        for links in self.links.values():
            connection = links.connections.get(node)
            if connection is not None:
                self.await_pong(connection)

    # Connections

    def delay_s(self, source: str, target: str) -> float:
        weather = self.weather
        delay_s = self._uniform(*weather.delay_s)
        if self.slow:
            delay_s *= max(self.slow.get(source, 1.0), self.slow.get(target, 1.0))
        if weather.late and self._random() < weather.late:
            delay_s *= 10
        if weather.loss and self._random() < weather.loss:
            delay_s += self._uniform(*RESEND_S)
        return delay_s

    def dial(self, source: SimLinks, peer: str, pause_s: float, attempt: int) -> None:
        """Try to connect; on the source's own time, until it succeeds, a newer attempt begins or the process ends."""
        if source.is_closed or peer in source.connections or source.attempts.get(peer) != attempt:
            return
        now_s = self.queue.now_s
        target = self.links.get(peer)
        is_open = self.is_open(source.node_id, peer) and self.is_open(peer, source.node_id)
        if not is_open or not self.powered.get(peer, False):
            source.loop.deliver(now_s + self._uniform(*SYN_AGAIN_S), self.dial, source, peer, REDIAL_FIRST_S, attempt)
        elif target is None:
            rtt_s = 2 * self.delay_s(source.node_id, peer)
            source.loop.deliver(now_s + rtt_s, source.refused, peer)
            again_s = min(2 * pause_s, REDIAL_MAX_S)
            source.loop.deliver(now_s + rtt_s + pause_s, self.dial, source, peer, again_s, attempt)
        elif target.loop.held is not None:
            source.loop.deliver(now_s + self._uniform(*SYN_AGAIN_S), self.dial, source, peer, REDIAL_FIRST_S, attempt)
        else:
            source.attempts[peer] = 0
            self._generation += 1
            connection = Connection(source, target, self._generation)
            accepted_s = now_s + 3 * self.delay_s(source.node_id, peer)
            target.loop.deliver(accepted_s, target.accept, connection)
            source.loop.deliver(accepted_s + self.delay_s(peer, source.node_id), source.connected, connection)

    def send(self, connection: Connection, frame: bytes) -> None:
        source = connection.source
        target = connection.target
        if self.tamper is not None:
            changed = self.tamper(source.node_id, target.node_id, frame)
            if changed is None:
                return
            frame = changed
        self.trace = crc32(frame, self.trace)
        if self.cuts and (source.node_id, target.node_id) in self.cuts:
            connection.held_back.append(frame)
            return
        at_s = self.queue.now_s + source.loop.ahead_s + self.delay_s(source.node_id, target.node_id)
        grain_s = self.weather.grain_s
        if grain_s:
            at_s = math.ceil(at_s / grain_s) * grain_s
        if at_s < connection.arrived_s:
            at_s = connection.arrived_s
        connection.arrived_s = at_s
        target.loop.deliver(at_s, self._arrive, connection, frame, at_s)
        if self.weather.duplicate and self._random() < self.weather.duplicate:
            target.loop.deliver(at_s, self._arrive, connection, frame, at_s)

    def _send_held(self, connection: Connection) -> None:
        frames, connection.held_back = connection.held_back, []
        at_s = self.queue.now_s + self._uniform(*RESEND_S)
        for frame in frames:
            at_s = max(at_s, connection.arrived_s) + 1e-6
            connection.arrived_s = at_s
            connection.target.loop.deliver(at_s, self._arrive, connection, frame, at_s)

    def _arrive(self, connection: Connection, frame: bytes, at_s: float) -> None:
        if connection.broken_s is not None and at_s > connection.broken_s:
            return
        source, target = connection.source, connection.target
        if target.incoming.get(source.node_id) is not connection:
            return
        if self.cuts and (source.node_id, target.node_id) in self.cuts:
            if connection.broken_s is None:
                connection.held_back.append(frame)
            return
        self.messages += 1
        # A message to all followers is one piece of memory, and is read once.
        if frame is not self._frame:
            self._frame, self._messages = frame, decode_all(frame)
        if self.on_message is not None:
            for message in self._messages:
                self.on_message(source.node_id, target.node_id, message)
        listener = target.listener
        if listener is not None:
            listener.on_messages(source.node_id, self._messages)

    def break_off(self, connection: Connection, at_s: float) -> None:
        """The connection ends; its dialler is told and dials again."""
        if connection.broken_s is not None:
            return
        connection.broken_s = at_s
        connection.held_back.clear()
        source = connection.source
        source.loop.deliver(at_s, source.broken, connection)

    def vanish(self, node: str, *, refuses: bool) -> None:
        """A process is gone. Its machine says so to whoever is connected, if it has power."""
        links = self.links.pop(node, None)
        if links is None:
            return
        links.is_closed = True
        links.listener = None
        for other in self.links.values():
            connection = other.connections.get(node)
            if connection is None:
                continue
            if refuses and self.is_open(node, other.node_id):
                at_s = self.queue.now_s + self.delay_s(node, other.node_id)
                other.loop.deliver(at_s, self.break_off, connection, at_s)
            else:
                self.await_pong(connection)


class SimLinks:
    """``Links`` of one process."""

    def __init__(self, network: Network, loop: NodeLoop, node_id: str) -> None:
        self.network = network
        self.loop = loop
        self.node_id = node_id
        self.peers: list[str] = []
        self.connections: dict[str, Connection] = {}
        """Those this process dialled and that are up."""
        self.incoming: dict[str, Connection] = {}
        self.attempts: dict[str, int] = {}
        """The number of the newest attempt to connect; 0 while a connection is being made."""
        self.listener: LinkListener | None = None
        self.is_closed = False
        self._attempt = 0

    async def start(self, listener: LinkListener) -> None:
        self.listener = listener
        self.network.links[self.node_id] = self
        for peer in self.peers:
            self.dial(peer)

    def follow(self, peers: Mapping[str, str]) -> None:
        before, self.peers = self.peers, list(peers)
        if self.listener is None:
            return
        for peer in self.peers:
            if peer not in before:
                self.dial(peer)

    def dial(self, peer: str) -> None:
        """Begin to connect, unless a connection is just being made."""
        if (peer in self.peers or peer in self.incoming) and self.attempts.get(peer) != 0:
            self._attempt += 1
            self.attempts[peer] = self._attempt
            self.loop.call_soon(self.network.dial, self, peer, REDIAL_FIRST_S, self._attempt)

    async def stop(self) -> None:
        if not self.is_closed:
            self.network.vanish(self.node_id, refuses=True)
            self.connections.clear()

    def send(self, peer_id: str, frame: bytes) -> None:
        connection = self.connections.get(peer_id)
        if connection is not None:
            self.network.send(connection, frame)

    async def accept_peer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError("connections come through the simulated network")

    # What the network tells

    def accept(self, connection: Connection) -> None:
        # A dialler that has died meanwhile has closed its end; nothing more comes from it.
        if self.is_closed or connection.source.is_closed or connection.broken_s is not None:
            return
        peer = connection.source.node_id
        older = self.incoming.get(peer)
        self.incoming[peer] = connection
        if older is not None:
            self.network.break_off(older, self.network.queue.now_s)
        if peer not in self.connections:
            self.dial(peer)

    def connected(self, connection: Connection) -> None:
        peer = connection.target.node_id
        if self.is_closed:
            return
        self.attempts.pop(peer, None)
        if self.network.links.get(peer) is not connection.target or connection.broken_s is not None:
            self.dial(peer)
            return
        self.connections[peer] = connection
        if self.listener is not None:
            self.listener.on_link(peer, True)
        if not self.network.is_open(self.node_id, peer) or not self.network.is_open(peer, self.node_id):
            self.network.await_pong(connection)

    def broken(self, connection: Connection) -> None:
        peer = connection.target.node_id
        if self.is_closed or self.connections.get(peer) is not connection:
            return
        del self.connections[peer]
        if self.listener is not None:
            self.listener.on_link(peer, False)
        self.dial(peer)

    def refused(self, peer: str) -> None:
        if self.listener is not None and peer not in self.network.links:
            self.listener.on_refused(peer)


class Calls:
    """Requests from one process to another, as HTTP has them: an answer, none sent, or nobody knows."""

    def __init__(self, network: Network, rng: random.Random) -> None:
        self._network = network
        self._rng = rng
        self.doors: dict[str, tuple[NodeLoop, Callable[[Any], Any]]] = {}
        """Where requests to a node go: a coroutine function that runs on its loop."""
        self.answers_lost = 0.0
        self._open: dict[str, dict[int, Callable[[str, Any], None]]] = {}
        self._number = 0

    def begin(self, source: str, loop: NodeLoop, target: str, request: Any, then: Callable[[str, Any], None]) -> None:
        """``then`` is called on ``loop`` with "answer", "not_sent" or "no_answer", the last perhaps never."""
        network, now_s = self._network, self._network.queue.now_s
        door = self.doors.get(target)
        if door is None or not network.is_open(source, target) or not network.is_open(target, source):
            is_refused = door is None and network.powered.get(target, False)
            loop.deliver(now_s + (0.001 if is_refused else 1.0), then, "not_sent", None)
            return
        self._number += 1
        number = self._number

        def reply(how: str, value: Any) -> None:
            self._reply(source, loop, target, then, how, value)

        self._open.setdefault(target, {})[number] = reply
        at_s = now_s + network.delay_s(source, target)
        door[0].deliver(at_s, self._arrive, source, target, door, request, number)

    def vanish(self, target: str) -> None:
        """The process is gone: who waits for an answer learns that none comes."""
        self.doors.pop(target, None)
        for reply in self._open.pop(target, {}).values():
            reply("no_answer", None)

    def _arrive(
        self, source: str, target: str, door: tuple[NodeLoop, Callable[[Any], Any]], request: Any, number: int
    ) -> None:
        if self.doors.get(target) is not door or not self._network.is_open(source, target):
            return
        loop, serve = door

        async def answer() -> None:
            value = await serve(request)
            reply = self._open.get(target, {}).pop(number, None)
            if reply is not None:
                reply("answer", value)

        loop.create_task(answer())

    def _reply(
        self, source: str, loop: NodeLoop, target: str, then: Callable[[str, Any], None], how: str, value: Any
    ) -> None:
        network = self._network
        if not network.is_open(target, source) or not network.powered.get(target, False):
            return
        if self.answers_lost and self._rng.random() < self.answers_lost:
            return
        loop.deliver(network.queue.now_s + network.delay_s(target, source), then, how, value)
