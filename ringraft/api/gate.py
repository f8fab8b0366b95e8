"""The one middleware: every request is identified, authorised, read and answered here.

Denied by default: a path without a route, a route without a fitting role and a credential that
nobody knows all end before a handler runs.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from ringraft.api import strictjson
from ringraft.api.auth import NOBODY, Principal, Role
from ringraft.api.call import CALL, Call, Reply
from ringraft.api.forward import Passed
from ringraft.api.hop import HOP_HEADER, Hop
from ringraft.api.problems import PROBLEM_TYPE, RETRY_AFTER_S, Problem, document, of_faults
from ringraft.api.query import parse_query, parse_text
from ringraft.api.route import JSON_TYPE, Bound, Consistency, Route
from ringraft.api.service import Service
from ringraft.schema import NAME, Checker, Number, Object

log = logging.getLogger(__name__)

REQUEST_ID_CHARS_MAX = 64
TIMEOUT_HEADER = "X-Ringraft-Timeout"
KEY_HEADER = "Idempotency-Key"

WebHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Gate:
    """Serves requests by the route table."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._routes: dict[WebHandler, tuple[Route, Object, Checker | None]] = {}

    def handler(self, route: Route) -> WebHandler:
        """The aiohttp handler that stands for ``route``; the middleware does the work."""

        async def unreached(request: web.Request) -> web.StreamResponse:
            raise AssertionError("the gate answers before a handler is called")

        query = route.query_object(self._service.node.settings.http.request_timeout_max_s)
        self._routes[unreached] = (route, query, Checker(route.body) if route.body is not None else None)
        return unreached

    async def serve(self, request: web.Request, handler: WebHandler) -> web.StreamResponse:
        """Answer one request. Never raises: a fault of ours is logged and answered 500."""
        began_s = time.perf_counter()
        call = Call(self._service, request, secrets.token_hex(8))
        request[CALL] = call
        try:
            answer = await self._serve(call, handler)
        except Problem as problem:
            answer = self._problem(call, problem)
        except (ConnectionResetError, asyncio.CancelledError):
            raise
        except web.HTTPException as error:
            code = "shutting_down" if error.status == 503 else "bad_json"
            answer = self._problem(call, Problem(code, error.text or error.reason))
        except Exception:
            log.exception("request failed action=request_failed method=%s path=%r", request.method, request.path)
            answer = self._problem(call, Problem("internal", "a fault of this program; its log says more"))
        self._observe(call, answer, time.perf_counter() - began_s)
        return answer

    async def _serve(self, call: Call, handler: WebHandler) -> web.StreamResponse:
        request = call.request
        known = self._routes.get(handler)
        hop = self._hop(call)
        is_open = known is not None and known[0].is_open
        call.principal = hop.principal if hop is not None else self._principal(request, is_open)
        if known is None:
            if call.principal is NOBODY:
                raise unauthenticated()
            raise self._no_route(request)
        route, query, checker = known
        call.route = route
        self._authorise(call, route)
        self._read_query(call, route, query)
        await self._read_body(call, route, checker, hop)
        call.wait_s = float(call.query.get("wait_s") or (isinstance(call.body, dict) and call.body.get("wait_s")) or 0)
        call.end_s += call.wait_s
        reply = await self._answer(call, route)
        return reply if isinstance(reply, web.StreamResponse) else self._response(call, reply)

    def _hop(self, call: Call) -> Hop | None:
        request = call.request
        value = request.headers.get(HOP_HEADER)
        if value is None:
            return None
        hop = self._service.signer.check(
            value, to=self._service.node_id, method=request.method, target=request.raw_path
        )
        call.is_hop = True
        call.request_id = hop.request_id[:REQUEST_ID_CHARS_MAX]
        return hop

    def _principal(self, request: web.Request, is_open: bool) -> Principal:
        values = request.headers.getall("Authorization", [])
        principal = self._service.credentials.principal(values[0] if values else None)
        if (principal is None or len(values) > 1) and not is_open:
            raise unauthenticated()
        return principal or NOBODY

    def _authorise(self, call: Call, route: Route) -> None:
        if not call.principal.may(route.roles):
            if call.principal is NOBODY:
                raise unauthenticated()
            need = " or ".join(role.value for role in route.roles)
            raise Problem("forbidden", f"{route.path} needs the role {need}; this credential has {call.principal.role}")
        if Role.ADMIN in route.roles and not call.is_hop:
            self._service.host_rule.check(call.request.headers.get("Host"), call.request.headers.get("Origin"))

    def _no_route(self, request: web.Request) -> Problem:
        error = request.match_info.http_exception
        if isinstance(error, web.HTTPMethodNotAllowed):
            allowed = ", ".join(sorted(error.allowed_methods))
            return Problem(
                "method_not_allowed", f"{request.method} is not allowed here, but {allowed}", headers={"Allow": allowed}
            )
        return Problem("not_found", "there is nothing at this path; /openapi.json lists what there is")

    def _read_query(self, call: Call, route: Route, query: Object) -> None:
        request, http = call.request, call.node.settings.http
        call.query, faults = parse_query(query, request.query.items())
        for name, known in route.path_fields.items():
            known.type.explain(parse_text(known.type, call.params[name]), f"path:{name}", faults)
        timeout_s = call.query.pop("timeout_s", None)
        header = request.headers.get(TIMEOUT_HEADER)
        if timeout_s is None and header is not None:
            timeout_s = parse_text(Number(), header)
            Number(0, http.request_timeout_max_s, above=True).explain(timeout_s, TIMEOUT_HEADER, faults)
        key = request.headers.get(KEY_HEADER)
        if key is not None and route.writes:
            NAME.explain(key, KEY_HEADER, faults)
            call.key = key
        if faults:
            raise of_faults(faults)
        call.end_s = asyncio.get_running_loop().time() + (timeout_s or http.request_timeout_s)

    async def _read_body(self, call: Call, route: Route, checker: Checker | None, hop: Hop | None) -> None:
        request, http = call.request, call.node.settings.http
        if checker is None:
            if hop is not None:
                hop.check_body(b"")
            if request.method != "GET" and request.can_read_body:
                await _read(request, http.body_bytes_max, http.body_timeout_s)
            return
        if not request.can_read_body and not route.body_required:
            call.body = {}
            if hop is not None:
                hop.check_body(b"")
        else:
            self._check_media_type(request)
            limit = http.batch_body_bytes_max if route.body_bound is Bound.BATCH else http.body_bytes_max
            raw = await _read(request, limit, http.body_timeout_s)
            if hop is not None:
                hop.check_body(raw)
            try:
                call.body = strictjson.parse(raw, depth_max=http.json_depth_max)
            except strictjson.NotStrict as error:
                raise Problem("bad_json", str(error)) from None
        if not checker.accepts(call.body):
            raise of_faults(checker.faults(call.body))

    def _check_media_type(self, request: web.Request) -> None:
        if request.content_type != JSON_TYPE:
            raise Problem(
                "unsupported_media_type", f"send the body as {JSON_TYPE}, not {request.content_type}", closes=True
            )
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Problem("unsupported_media_type", "send the body without a Content-Encoding", closes=True)
        if (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
            raise Problem("unsupported_media_type", "send the body in UTF-8", closes=True)

    async def _answer(self, call: Call, route: Route) -> Reply | web.StreamResponse:
        service = self._service
        if not service.is_member and not route.is_local and not route.upgrades:
            return await service.pass_to_cluster(call, self._passed(call, route))
        if route.consistency is not None and service.is_member:
            consistency = Consistency(call.query.pop("consistency", route.consistency))
            passed = self._passed(call, route, consistency)
            reply = await service.fresh(call, consistency, passed)
            if reply is not None:
                return reply
        return await route.handler(call)

    def _passed(self, call: Call, route: Route, consistency: Consistency | None = None) -> Passed:
        query = {name: value for name, value in call.query.items() if name != "redirect"}
        if consistency is not None:
            query["consistency"] = str(consistency)
        body = call.body if route.body is not None else None
        return Passed(route.method, call.request.path, query, body, call.wait_s)

    def _response(self, call: Call, reply: Reply) -> web.Response:
        call.headers.update(reply.headers)
        raw = reply.body if isinstance(reply.body, bytes) else strictjson.dump(reply.body)
        return web.Response(body=raw, status=reply.status, headers={"Content-Type": reply.content_type})

    def _problem(self, call: Call, problem: Problem) -> web.Response:
        body = document(problem, instance=call.request_id, where=self._service.where())
        response = web.Response(
            body=strictjson.dump(body),
            status=problem.kind.status,
            headers={"Content-Type": PROBLEM_TYPE, **problem.headers},
        )
        if problem.kind.status in (429, 503):
            response.headers.setdefault("Retry-After", str(RETRY_AFTER_S))
        if problem.kind.status == 401:
            response.headers["WWW-Authenticate"] = 'Bearer realm="ringraft"'
        if problem.closes:
            response.force_close()
        return response

    def _observe(self, call: Call, answer: web.StreamResponse, seconds: float) -> None:
        path = call.route.path if call.route is not None else "none"
        call.node.metrics.observe_request(path, call.request.method, answer.status, seconds)


def unauthenticated() -> Problem:
    """401: no credential, or one that nobody knows; which of both is not said."""
    return Problem("unauthenticated", "send the cluster secret or a token as Authorization: Bearer …")


async def _read(request: web.Request, limit: int, timeout_s: float) -> bytes:
    """The body, at most ``limit`` bytes of it and in at most ``timeout_s`` seconds."""
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.content.iter_any():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError:
        raise Problem("bad_json", f"the body did not arrive within {timeout_s:g} s", closes=True) from None
    except web.RequestPayloadError as error:
        raise Problem("bad_json", f"the body is broken: {error}", closes=True) from None
    return b"".join(parts)


def _too_large(limit: int) -> Problem:
    return Problem("too_large", f"the body has more than {limit} bytes", closes=True)


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """Put the headers on that every answer carries; a signal, so that streams have them too."""
    call = request.get(CALL)
    if call is None:
        return
    headers = response.headers
    service = call.service
    headers["X-Ringraft-Node"] = service.node_id
    headers["X-Ringraft-Request-Id"] = call.request_id
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Server"] = "ringraft"
    if service.is_member:
        status = service.status()
        if status.acting_leader_id is not None:
            headers["X-Ringraft-Leader"] = status.acting_leader_id
        headers["X-Ringraft-Term"] = str(status.epoch.number)
        headers["X-Ringraft-Index"] = str(service.node.replica.machine.index)
        if call.is_stale:
            contact_s = status.leader_contact_s
            lag_s = time.monotonic() - service.started_s if contact_s is None else contact_s
            headers["X-Ringraft-Lag"] = f"{lag_s:.3f}"
    else:
        leader = service.node.leader()
        if leader.node_id is not None:
            headers["X-Ringraft-Leader"] = leader.node_id
        headers["X-Ringraft-Term"] = str(leader.term)
        headers["X-Ringraft-Index"] = "0"
    headers.update(call.headers)
