"""``/work/stream`` as a client sees it: many calls in flight over one WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol

import aiohttp
import msgpack

from ringraft.client.errors import ApiError, Unreachable

logger = logging.getLogger(__name__)

STREAM_PROTOCOL: Final = "ringraft.v1"
STREAM_WINDOW: Final = 1024
"""Calls in flight on one stream; the node refuses more."""
STREAM_CALLS_MAX: Final = 65_536
"""Calls a stream holds unanswered, sent or not."""
FRAME_BYTES: Final = 1 << 20
"""A frame is closed when it reaches this; one large call may exceed it."""
FRAME_BYTES_MAX: Final = 16 << 20
STREAM_PING_S: Final = 2.0
"""A stream whose peer answers no ping for half of this is dropped and opened elsewhere."""
SWEEP_S: Final = 0.25
"""How often a stream looks for calls past their deadline."""
KEYED_VERBS: Final = frozenset({"add", "add_batch", "claim", "cancel"})
"""Verbs of the stream that need a key to be repeated; the others are idempotent by token."""


class Cluster(Protocol):
    """What a stream needs of the client it belongs to."""

    addresses: tuple[str, ...]
    timeout_s: float

    def new_key(self) -> str: ...

    def backoff_s(self, rounds: int, retry_after_s: float = 0.0) -> float: ...

    async def connect(self, attempt: int) -> aiohttp.ClientWebSocketResponse: ...


@dataclass(slots=True, eq=False)
class _Call:
    """One call of a stream until its answer."""

    seq: int
    packed: bytes
    future: asyncio.Future[Any]
    end_s: float
    sent: bool = False
    delayed: bool = False
    tries: int = 0


class Stream:
    """Many calls in flight over one WebSocket.

    Calls made in one turn of the event loop travel in one frame. When the connection breaks the
    stream opens one to another address and sends what has no answer again, with the same keys.
    """

    def __init__(self, client: Cluster, *, window: int = STREAM_WINDOW) -> None:
        self._client = client
        self._window = window
        self._packer = msgpack.Packer(use_bin_type=True)
        self._seq = 0
        self._calls: dict[int, _Call] = {}
        self._outbox: deque[_Call] = deque()
        self._in_flight = 0
        self._work = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def call(
        self, verb: str, body: Mapping[str, Any], key: str | None = None, *, deadline_s: float | None = None
    ) -> asyncio.Future[Any]:
        """Await the result: the answer's body. Raises ApiError or Unreachable; ``body`` is not kept."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise Unreachable("the stream is closed", "not_applied")
        if len(self._calls) >= STREAM_CALLS_MAX:
            raise Unreachable(f"{STREAM_CALLS_MAX} calls wait on this stream: await some first", "not_applied")
        if verb in KEYED_VERBS and "idempotency_key" not in body:
            body = {**body, "idempotency_key": key or self._client.new_key()}
        self._seq += 1
        if deadline_s is None:
            deadline_s = self._client.timeout_s + float(body.get("wait_s") or 0.0)
        packed: bytes = self._packer.pack((self._seq, verb, body))
        call = _Call(self._seq, packed, loop.create_future(), loop.time() + deadline_s)
        self._calls[call.seq] = call
        self._outbox.append(call)
        self._work.set()
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        if self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_S, self._sweep)
        return call.future

    async def calls(self, calls: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Any]:
        """Make many calls; each place holds the body or the ClientError of that call."""
        futures = [self.call(verb, body) for verb, body in calls]
        return await asyncio.gather(*futures, return_exceptions=True)

    async def close(self) -> None:
        """Close the connection; calls without an answer raise Unreachable."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._runner is not None:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner
        self._fail_all("the stream is closed")

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._work.wait()
            try:
                ws = await self._client.connect(failures)
            except aiohttp.WSServerHandshakeError as error:
                if error.status in (401, 403):
                    self._refuse_all(error.status)
                failures += 1
                await self._rest(failures)
                continue
            except (aiohttp.ClientError, OSError) as error:
                failures += 1
                logger.debug("stream did not open action=stream_connect_failed error=%r", error)
                await self._rest(failures)
                continue
            answered = await self._serve(ws)
            failures = 1 if answered else failures + 1
            self._requeue()
            if not answered:
                await self._rest(failures)

    async def _rest(self, failures: int) -> None:
        """Pause after every address has failed once more."""
        addresses = len(self._client.addresses)
        if failures % addresses == 0:
            await asyncio.sleep(self._client.backoff_s(failures // addresses))

    async def _serve(self, ws: aiohttp.ClientWebSocketResponse) -> bool:
        """Send and receive until the connection ends; whether anything was answered."""
        answered = False
        sender = asyncio.create_task(self._send(ws))
        try:
            while True:
                message = await ws.receive()
                if message.type is not aiohttp.WSMsgType.BINARY:
                    return answered
                answered = True
                self._take(message.data)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            await ws.close()

    async def _send(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                await self._work.wait()
                frame = self._frame()
                if frame is None:
                    self._work.clear()
                    continue
                await ws.send_bytes(frame)
        except (aiohttp.ClientError, OSError):
            await ws.close()  # ends the reader, which then opens a new connection

    def _frame(self) -> bytes | None:
        """The next frame, or None when nothing may be sent now."""
        parts: list[bytes] = []
        size = 0
        while self._outbox and self._in_flight < self._window and size < FRAME_BYTES:
            call = self._outbox.popleft()
            if call.future.done():
                self._calls.pop(call.seq, None)
                continue
            call.sent = True
            self._in_flight += 1
            parts.append(call.packed)
            size += len(call.packed)
        if not parts:
            return None
        return b"".join((self._packer.pack_array_header(len(parts)), *parts))

    def _take(self, data: bytes) -> None:
        """Resolve the calls that an answer frame answers."""
        for seq, status, body in msgpack.unpackb(data, raw=False):
            call = self._calls.get(seq)
            if call is None:
                self._in_flight -= 1  # it ran out of time before
                continue
            self._in_flight -= 1
            if status >= 400:
                self._refused(call, ApiError(status, body))
                continue
            del self._calls[seq]
            if not call.future.done():
                call.future.set_result(body)
        if self._outbox:
            self._work.set()

    def _refused(self, call: _Call, error: ApiError) -> None:
        """Try again what may be tried again in time; give the caller the rest."""
        loop = asyncio.get_running_loop()
        pause_s = self._client.backoff_s(call.tries, error.retry_after_s)
        if error.retryable and loop.time() + pause_s < call.end_s:
            call.tries += 1
            call.delayed = True
            loop.call_later(pause_s, self._resend, call)
            return
        del self._calls[call.seq]
        if not call.future.done():
            call.future.set_exception(error)

    def _resend(self, call: _Call) -> None:
        call.delayed = False
        if call.seq in self._calls:
            self._outbox.append(call)
            self._work.set()

    def _requeue(self) -> None:
        """After a broken connection everything without an answer goes again, oldest first."""
        self._in_flight = 0
        self._outbox = deque(call for call in self._calls.values() if not call.delayed)
        if self._outbox:
            self._work.set()
        else:
            self._work.clear()

    def _sweep(self) -> None:
        """Give up calls past their deadline."""
        now_s = asyncio.get_running_loop().time()
        late = [call for call in self._calls.values() if call.end_s <= now_s or call.future.cancelled()]
        for call in late:
            del self._calls[call.seq]
            if not call.future.done():
                outcome = "unknown" if call.sent else "not_applied"
                call.future.set_exception(Unreachable("no answer on the stream before the deadline", outcome))
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(SWEEP_S, self._sweep) if self._calls else None

    def _refuse_all(self, status: int) -> None:
        code = "unauthenticated" if status == 401 else "forbidden"
        problem = {"code": code, "detail": "the stream's handshake was refused", "outcome": "not_applied"}
        for call in self._drain():
            call.set_exception(ApiError(status, problem))

    def _fail_all(self, detail: str) -> None:
        unsent = {id(call.future) for call in self._calls.values() if not call.sent}
        for future in self._drain():
            future.set_exception(Unreachable(detail, "not_applied" if id(future) in unsent else "unknown"))

    def _drain(self) -> Sequence[asyncio.Future[Any]]:
        futures = [call.future for call in self._calls.values() if not call.future.done()]
        self._calls.clear()
        self._outbox.clear()
        self._work.clear()
        return futures
