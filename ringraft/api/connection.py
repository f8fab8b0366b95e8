"""Connections as such: how many, how long one may take over a request's head, and what is no HTTP.

aiohttp closes a connection that idles, and the gate bounds the time of a body. Between the two lies
the head: a client that sends it byte by byte holds a place for as long as it likes. And nothing
bounds how many connections there are: at the process's limit of open files nobody gets in, not even
the peers. So a new connection beyond the bounds may only ask what must always be answered, and only
as many may as the reserve has places.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ringraft.api import strictjson
from ringraft.api.problems import PROBLEM_TYPE, RETRY_AFTER_S, Problem, document
from ringraft.api.service import Service
from ringraft.settings.tree import HttpSettings

log = logging.getLogger(__name__)

ALWAYS_ANSWERED = (
    b"GET /health ", b"HEAD /health ", b"GET /livez ", b"HEAD /livez ", b"GET /readyz ", b"HEAD /readyz ",
    b"GET /raft/connect", b"POST /nodes/heartbeat ",
)  # fmt: skip
"""How a request begins that may use the reserve: whether this node is well, and what keeps the cluster together."""

DETAIL_CHARS_MAX = 200


class Doors:
    """Counts the connections of one node and decides who gets in."""

    def __init__(self, settings: HttpSettings, service: Service, *, connections_max: int) -> None:
        """``connections_max`` is the setting, or less where the machine allows no more."""
        self._connections_max = connections_max
        self.header_timeout_s = settings.header_timeout_s
        self._settings = settings
        self._service = service
        self._open: Counter[str] = Counter()
        """Connections by address."""
        self._reserved = 0

    def __len__(self) -> int:
        return self._open.total()

    def enter(self, address: str) -> bool | None:
        """Take a place: False an ordinary one, True one of the reserve, None when there is none."""
        settings = self._settings
        is_over = (
            self._open.total() - self._reserved >= self._connections_max
            or self._open[address] >= settings.connections_per_address_max
        )
        if is_over and self._reserved >= settings.connections_reserve:
            return None
        self._open[address] += 1
        self._reserved += is_over
        return is_over

    def leave(self, address: str, *, reserved: bool) -> None:
        """Give the place back."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]
        self._reserved -= reserved

    def count(self, reason: str) -> None:
        """A connection was closed by this node."""
        self._service.node.metrics.connection_closed(reason)

    def problem(self, problem: Problem) -> tuple[bytes, dict[str, str]]:
        """Body and headers of a refusal that no route gives."""
        request_id = secrets.token_hex(8)
        headers = {
            "Content-Type": PROBLEM_TYPE,
            "X-Ringraft-Node": self._service.node_id,
            "X-Ringraft-Request-Id": request_id,
            "X-Content-Type-Options": "nosniff",
            "Server": "ringraft",
        }
        if problem.kind.status == 429:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        return strictjson.dump(document(problem, instance=request_id, where=self._service.where())), headers

    def full(self) -> bytes:
        """The whole answer to a connection that has no place."""
        settings = self._settings
        detail = (
            f"this node has as many connections as it may (http.connections_max {self._connections_max}, "
            f"http.connections_per_address_max {settings.connections_per_address_max}); use fewer, or ask another node"
        )
        body, headers = self.problem(Problem("rate_limited", detail))
        headers |= {"Content-Length": str(len(body)), "Connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 429 Too Many Requests\r\n{head}\r\n".encode() + body


class Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ("_address", "_deadline", "_doors", "_is_reserved")

    def __init__(self, server: web.Server, doors: Doors, **options: Any) -> None:
        super().__init__(server, **options)
        self._doors = doors
        self._address = ""
        self._is_reserved: bool | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if isinstance(peer, tuple) else ""
        self._is_reserved = self._doors.enter(self._address)
        if self._is_reserved is None:
            self._turn_away()
        else:
            self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget_deadline()
        if self._is_reserved is not None:
            self._doors.leave(self._address, reserved=self._is_reserved)
            self._is_reserved = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_reserved and self._is_between_requests and not data.startswith(ALWAYS_ANSWERED):
            self._turn_away()
            return
        super().data_received(data)
        if not self._is_between_requests:
            self._forget_deadline()
        elif self._deadline is None:
            self._await_head()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What could not be read as HTTP, in the form of every other refusal."""
        if request.writer is not None and request.writer.output_size > 0:
            raise ConnectionResetError("a part of another answer was sent already")
        if isinstance(exc, HttpProcessingError):
            log.debug("not HTTP action=bad_request from=%s error=%r", request.remote, exc)
            said = (message or exc.message or "malformed").strip().partition("\n")[0].rstrip(":")
            problem = Problem("bad_json", f"this is no HTTP request: {said[:DETAIL_CHARS_MAX]}")
        else:
            log.error("request failed action=request_failed from=%s", request.remote, exc_info=exc)
            problem = Problem("internal", "a fault of this program; its log says more")
        body, headers = self._doors.problem(problem)
        response = web.Response(body=body, status=problem.kind.status, headers=headers)
        response.force_close()
        return response

    @property
    def _is_between_requests(self) -> bool:
        """No request is being served: what has come in since is at most the beginning of a head."""
        return self._waiter is not None and not self._waiter.done()

    def _await_head(self) -> None:
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._doors.header_timeout_s, self._too_slow)

    def _too_slow(self) -> None:
        self._deadline = None
        if self._is_between_requests:
            self._doors.count("slow_head")
            self.force_close()

    def _turn_away(self) -> None:
        self._forget_deadline()
        self._doors.count("full")
        if isinstance(self.transport, asyncio.WriteTransport) and not self.transport.is_closing():
            self.transport.write(self._doors.full())
        self.force_close()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


async def listen(
    server: web.Server, bound: socket.socket, doors: Doors, *, backlog: int, **options: Any
) -> asyncio.Server:
    """Serve what comes in at ``bound``; ``options`` are those of aiohttp's connections."""
    loop = asyncio.get_running_loop()
    make: Callable[[], Connection] = lambda: Connection(server, doors, loop=loop, **options)  # noqa: E731
    return await loop.create_server(make, sock=bound, backlog=backlog)
