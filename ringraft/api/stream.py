"""``/work/stream``: many calls in flight over one WebSocket.

Theory of operation. A frame is read and every call of it is checked and proposed in the same turn of
the loop, without a task per call; the log then carries them in one entry. What ends a proposal puts
the answer into the connection's outbox, and one writer per connection packs all answers that came
together into one frame. What cannot be decided here, because another node leads, goes to the one
``Upstream`` that all connections of this node share.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import msgpack
from aiohttp import WSMsgType, web

from ringraft.api import strictjson
from ringraft.api.auth import Principal, Role
from ringraft.api.call import Call
from ringraft.api.pipe import pipe_to_cluster
from ringraft.api.problems import Problem, document, of_rejected
from ringraft.api.service import WORTH_WAITING, Service, mint_key, no_leader
from ringraft.api.submission import Verb
from ringraft.consensus.base import Indeterminate, NotLeader, Unavailable
from ringraft.node.replica import WaitersFull, is_empty
from ringraft.schema import INTEGER_MAX, NAME, Fault, shown
from ringraft.state.model import Command, Done, Outcome, Rejected

log = logging.getLogger(__name__)

PROTOCOL = "ringraft.v1"
FRAME_BYTES_MAX = 16 * 1024 * 1024
PING_S = 20.0
CALLS_PER_FRAME_MAX = 65_536
VERBS = frozenset(
    {"add", "add_batch", "claim", "start", "renew", "complete", "complete_batch", "fail", "release", "cancel"}
)
FORGET = "forget"
"""What a node says of a call that it has passed on and whose client is gone; it has no answer of its own."""
HOP_WINDOW_FACTOR = 64
"""Another node's stream carries the calls of all its clients."""
CLOSE_PROTOCOL = 1002
CLOSE_GOING_AWAY = 1001
_NAME_FITS = NAME.predicate()
_DEADLINE_FLOOR_S = 0.01


@dataclass(slots=True, eq=False)
class StreamCall:
    """One call until its answer."""

    connection: Connection
    seq: int
    verb: Verb
    body: dict[str, Any]
    command: Command
    principal: Principal
    key: str | None
    wait_s: float
    end_s: float
    is_hop: bool
    was_sent: bool = False
    """It went to another node, which has not answered."""
    is_unknown: bool = False
    """It went to a node that is gone and may have done it."""
    waiting: asyncio.Task[Outcome] | None = None
    """A claim that found nothing and waits for something."""
    is_forgotten: bool = False
    """Whoever asked is gone."""

    def answer(self, status: int, body: dict[str, Any]) -> None:
        if self.wait_s > 0:
            self.connection.claims.discard(self)
        self.connection.put(self.seq, status, body)

    def forget(self) -> None:
        """Wait no longer: nobody would take what there may be."""
        self.is_forgotten = True
        if self.waiting is not None:
            self.waiting.cancel()


async def work_stream(call: Call) -> web.StreamResponse:
    """Serve one connection until it ends."""
    request = call.request
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise Problem(
            "bad_json", f"this is a WebSocket: connect with Upgrade: websocket and the subprotocol {PROTOCOL}"
        )
    offered = [p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    if PROTOCOL not in offered:
        raise Problem("bad_json", f"offer the subprotocol {PROTOCOL}")
    if not call.service.is_member:
        return await pipe_to_cluster(call, PROTOCOL, FRAME_BYTES_MAX)
    socket = web.WebSocketResponse(
        protocols=(PROTOCOL,),
        heartbeat=PING_S,
        max_msg_size=FRAME_BYTES_MAX,
        compress=False,
        writer_limit=FRAME_BYTES_MAX,
    )
    await socket.prepare(request)
    await Connection(call, socket).serve()
    return socket


class Connection:
    """One client's stream."""

    def __init__(self, call: Call, socket: web.WebSocketResponse) -> None:
        self._call = call
        self._service = call.service
        self._socket = socket
        self._window: int = call.node.settings.stream.window
        self._window *= HOP_WINDOW_FACTOR if call.is_hop else 1
        self._depth_max: int = call.node.settings.http.json_depth_max
        self._timeout_s: float = call.left_s()
        self._in_flight = 0
        self._outbox: list[tuple[int, int, dict[str, Any]]] = []
        self._filled = asyncio.Event()
        self.claims: set[StreamCall] = set()
        """Those that may wait and have no answer."""

    async def serve(self) -> None:
        """Read calls until the client or this node ends the connection."""
        writer = asyncio.create_task(self._write(), name="stream-writer")
        stopper = asyncio.create_task(self._close_when_stopping(), name="stream-stopper")
        try:
            async for message in self._socket:
                if message.type is not WSMsgType.BINARY or not self._take(message.data):
                    await self._socket.close(code=CLOSE_PROTOCOL, message=b"a frame is an array of [seq, verb, body]")
                    break
        finally:
            for claim in self.claims:
                claim.forget()
            self._service.upstream.forget(self.claims)
            waiting = [claim.waiting for claim in self.claims if claim.waiting is not None]
            for task in (writer, stopper):
                task.cancel()
            await asyncio.gather(writer, stopper, *waiting, return_exceptions=True)

    async def _close_when_stopping(self) -> None:
        await self._service.stopping.wait()
        await self._socket.close(code=CLOSE_GOING_AWAY, message=b"shutting down")

    async def _write(self) -> None:
        pack = msgpack.Packer(use_bin_type=True).pack
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                batch, self._outbox = self._outbox, []
                self._in_flight -= len(batch)
                await self._socket.send_bytes(pack(batch))
        except ConnectionResetError:
            log.debug("stream went away action=stream_reset")

    def _take(self, data: bytes) -> bool:
        """Begin every call of a frame; False when the frame is none."""
        try:
            calls = msgpack.unpackb(data, raw=False, strict_map_key=True, object_pairs_hook=_no_doubles)
        except (ValueError, msgpack.UnpackException, UnicodeDecodeError):
            return False
        if type(calls) is not list or len(calls) > CALLS_PER_FRAME_MAX:
            return False
        for one in calls:
            if type(one) is not list or len(one) not in (3, 5) or type(one[0]) is not int:
                return False
            if not 0 <= one[0] <= INTEGER_MAX:
                return False
            if self._call.is_hop and one[1] == FORGET:
                self._forget(one[0])
            else:
                self._begin(one)
        return True

    def _begin(self, one: list[Any]) -> None:
        seq = one[0]
        if self._in_flight >= self._window:
            # Counted all the same: an answer that is not written yet holds memory.
            self._in_flight += 1
            self._answer(seq, Problem("window_full", f"{self._window} calls are in flight already (stream.window)"))
            return
        self._in_flight += 1
        try:
            begun = self._read(seq, one)
        except Problem as problem:
            self._answer(seq, problem)
            return
        if begun.wait_s > 0:
            self.claims.add(begun)
        dispatch(self._service, begun)

    def _forget(self, seq: int) -> None:
        for claim in [claim for claim in self.claims if claim.seq == seq]:
            claim.forget()

    def _read(self, seq: int, one: list[Any]) -> StreamCall:
        name, body = one[1], one[2]
        principal, timeout_s = self._call.principal, self._timeout_s
        if len(one) == 5:
            if not self._call.is_hop:
                raise Problem("forbidden", "only a node of the cluster says for whom it asks")
            principal, timeout_s = Principal(one[3][0], Role(one[3][1]), one[3][2]), float(one[4])
        verb = self._service.submission.verbs.get(name) if type(name) is str and name in VERBS else None
        if verb is None:
            raise Problem("invalid_field", f"{shown(name)} is no verb of the stream: {', '.join(sorted(VERBS))}")
        if not principal.may((verb.role,)):
            raise Problem("forbidden", f"{name} needs the role {verb.role}; this credential has {principal.role}")
        key = None
        if type(body) is dict and "idempotency_key" in body:
            key = body.pop("idempotency_key")
            if key is not None and not _NAME_FITS(key):
                raise Problem("invalid_field", "idempotency_key must be 1 to 128 printable characters",
                              faults=[Fault("/idempotency_key", "must be 1 to 128 printable characters")])  # fmt: skip
        body = self._ordered(verb, body)
        op = verb.build(body, principal)
        wait_s = float(body.get("wait_s") or 0) if name == "claim" else 0.0
        return StreamCall(
            connection=self,
            seq=seq,
            verb=verb,
            body=body,
            command=Command(op, verb.key(principal, key, body)),
            principal=principal,
            key=key,
            wait_s=wait_s,
            end_s=asyncio.get_running_loop().time() + timeout_s + wait_s,
            is_hop=self._call.is_hop,
        )

    def _ordered(self, verb: Verb, body: Any) -> dict[str, Any]:
        """The body once it is checked, with its names in order. Raises Problem."""
        try:
            found: dict[str, Any] = strictjson.ordered(verb.check(body), depth_max=self._depth_max)
        except strictjson.NotStrict as error:
            raise Problem("bad_json", str(error)) from None
        return found

    def _answer(self, seq: int, problem: Problem) -> None:
        self.put(seq, *problem_answer(self._service, problem))

    def put(self, seq: int, status: int, body: dict[str, Any]) -> None:
        """Answer the call ``seq``."""
        self._outbox.append((seq, status, body))
        self._filled.set()


def problem_answer(service: Service, problem: Problem) -> tuple[int, dict[str, Any]]:
    """Status and body of a refusal."""
    body = document(problem, instance=mint_key()[5:21], where=service.where())
    return problem.kind.status, body


def dispatch(service: Service, call: StreamCall) -> None:
    """Have a call decided here when this node leads, else by who does."""
    # Who leads is not asked before: the log refuses at once what it cannot take.
    left_s = call.end_s - call.wait_s - asyncio.get_running_loop().time()
    future = service.node.consensus.propose(call.command, deadline_s=max(_DEADLINE_FLOOR_S, left_s))
    future.add_done_callback(lambda done: _tried(service, call, done))


def _tried(service: Service, call: StreamCall, done: asyncio.Future[Outcome]) -> None:
    """A first try has ended: a claim that waits and got nothing goes on, in a task of its own."""
    if call.wait_s <= 0 or done.cancelled() or done.exception() is not None or not is_empty(done.result()):
        _decided(service, call, done)
    elif not call.is_forgotten:
        left_s = call.end_s - asyncio.get_running_loop().time()
        claim = service.node.replica.claim_later(
            call.command,
            done.result(),
            deadline_s=max(_DEADLINE_FLOOR_S, left_s - call.wait_s),
            wait_s=min(call.wait_s, max(0.0, left_s)),
        )
        call.waiting = asyncio.create_task(claim, name="stream-claim")
        call.waiting.add_done_callback(lambda later: _decided(service, call, later))


def _decided(service: Service, call: StreamCall, done: asyncio.Future[Outcome]) -> None:
    if done.cancelled():
        call.answer(*problem_answer(service, Problem("shutting_down", "this node is shutting down")))
        return
    error = done.exception()
    if error is None:
        outcome = done.result()
        if isinstance(outcome, Done):
            call.answer(200, call.verb.answer(outcome.value, service.node.replica.machine, call.body))
        elif outcome.code == "stale_epoch":
            _elsewhere(service, call)
        else:
            assert isinstance(outcome, Rejected)
            call.answer(*problem_answer(service, of_rejected(outcome)))
        return
    match error:
        case NotLeader():
            _elsewhere(service, call)
        case Unavailable(code=code) if code in WORTH_WAITING:
            _elsewhere(service, call)
        case Unavailable(code=code):
            # A leader that is gone may have done it, even if this node did not.
            code = "commit_unknown" if call.is_unknown else code
            call.answer(*problem_answer(service, Problem(code, str(error))))
        case Indeterminate():
            call.answer(*problem_answer(service, Problem("commit_unknown", f"{error}; repeat with the same key")))
        case WaitersFull():
            call.answer(*problem_answer(service, Problem("rate_limited", str(error))))
        case _:
            log.error("stream call failed action=stream_call_failed verb=%s", call.verb.name, exc_info=error)
            call.answer(*problem_answer(service, Problem("internal", "a fault of this program; its log says more")))


def _elsewhere(service: Service, call: StreamCall) -> None:
    if call.is_hop:
        problem = no_leader(service.status()) if service.status().leader_id is None else None
        problem = problem or Problem("no_leader", f"{service.node_id} does not lead")
        call.answer(*problem_answer(service, problem))
        return
    service.upstream.take(call)


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name stands twice in one map")
    return out
