"""Passing a request on to another node: always a new request, with a fixed path and a canonical body."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from ringraft.api import strictjson
from ringraft.api.auth import Principal
from ringraft.api.call import Call, Reply
from ringraft.api.hop import HOP_HEADER, HopSigner
from ringraft.api.problems import PROBLEM_TYPE
from ringraft.api.route import JSON_TYPE
from ringraft.api.served import ServedNode

log = logging.getLogger(__name__)

CONNECT_S_MAX = 1.0
"""A node that takes no connection for this long is asked again later."""

ANSWER_MARGIN_S = 0.5
"""How much longer than its own deadline the other node has for the answer to arrive."""

TRY_ELSEWHERE = frozenset({"no_leader", "no_quorum", "shutting_down", "starting"})
"""What the other node says when it did nothing and a new leader may."""

WHOLE_BYTES_MAX = 512 * 1024
"""A larger body is sent piece by piece."""

RELAYED_HEADERS = ("X-Ringraft-Leader", "X-Ringraft-Term", "X-Ringraft-Index", "X-Ringraft-Lag", "Retry-After", "Allow")


class NotSent(Exception):
    """The other node never had the request, or says that it did nothing with it."""


class NoAnswer(Exception):
    """The other node may have done it: only a repeat with the same key can tell."""


@dataclass(frozen=True, slots=True)
class Passed:
    """A request as it is passed on."""

    method: str
    path: str
    query: Mapping[str, Any]
    body: Any
    wait_s: float = 0.0

    @property
    def target(self) -> str:
        """Path and query, encoded here and nowhere else."""
        text = quote(self.path, safe="/-._~")
        return f"{text}?{urlencode(_texts(self.query))}" if self.query else text

    @property
    def raw(self) -> bytes:
        return b"" if self.body is None else strictjson.canonical(self.body).encode()


class Forwarder:
    """Sends requests to other nodes over the node's one client session."""

    def __init__(self, node: ServedNode, signer: HopSigner) -> None:
        self._node = node
        self._signer = signer

    async def to_node(self, call: Call, node_id: str, url: str, passed: Passed) -> Reply:
        """Ask ``node_id`` at ``url`` on behalf of the caller. Raises NotSent, NoAnswer."""
        raw = passed.raw
        headers = self._headers(call, passed)
        headers[HOP_HEADER] = self.signature(
            call.principal, node_id, call.request_id, passed.method, passed.target, raw
        )
        return await self._send(call, url, passed, raw, headers)

    async def to_any(self, call: Call, urls: Sequence[str], passed: Passed) -> Reply:
        """Ask one of the cluster's nodes as the caller, with the caller's own credential."""
        raw = passed.raw
        headers = self._headers(call, passed)
        authorization = call.request.headers.get("Authorization")
        if authorization is not None:
            headers["Authorization"] = authorization
        failure: NotSent | NoAnswer = NotSent("no address of the cluster is known")
        for url in urls:
            try:
                return _as_answer_to(call, await self._send(call, url, passed, raw, headers))
            except (NotSent, NoAnswer) as error:
                failure = failure if isinstance(failure, NoAnswer) else error
        raise failure

    def signature(
        self, principal: Principal, to: str, request_id: str, method: str, target: str, raw: bytes = b""
    ) -> str:
        """The hop header's value for a request to node ``to``."""
        return self._signer.sign(
            principal,
            sender=self._node.settings.node.node_id,
            to=to,
            request_id=request_id,
            method=method,
            target=target,
            body=raw,
        )

    def _headers(self, call: Call, passed: Passed) -> dict[str, str]:
        left_s = max(0.05, call.left_s() - passed.wait_s)
        left_s = min(left_s, self._node.settings.http.request_timeout_max_s)
        headers = {"X-Ringraft-Timeout": f"{left_s:.3f}", "Accept": JSON_TYPE}
        if passed.body is not None:
            headers["Content-Type"] = JSON_TYPE
        if call.key is not None:
            headers["Idempotency-Key"] = call.key
        return headers

    async def _send(self, call: Call, url: str, passed: Passed, raw: bytes, headers: Mapping[str, str]) -> Reply:
        timeout = aiohttp.ClientTimeout(
            total=call.left_s() + ANSWER_MARGIN_S, sock_connect=min(CONNECT_S_MAX, call.left_s() + ANSWER_MARGIN_S)
        )
        try:
            async with self._node.client.request(
                passed.method,
                URL(url.rstrip("/") + passed.target, encoded=True),
                data=_payload(raw),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                return _reply(answer, await answer.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            log.debug("node not reached action=forward_not_sent url=%s error=%r", url, error)
            raise NotSent(f"{url} takes no connection") from error
        except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            log.info("no answer to a forwarded request action=forward_no_answer url=%s error=%r", url, error)
            raise NoAnswer(f"{url} gave no answer") from error


def _payload(raw: bytes) -> bytes | io.BytesIO | None:
    # A large body is sent in pieces, so that the loop is not held up.
    return io.BytesIO(raw) if len(raw) > WHOLE_BYTES_MAX else raw or None


def _reply(answer: aiohttp.ClientResponse, body: bytes) -> Reply:
    kind = answer.content_type
    if answer.status == 503 and kind == PROBLEM_TYPE:
        problem = strictjson.parse(body, depth_max=64)
        if problem.get("code") in TRY_ELSEWHERE and problem.get("outcome") == "not_applied":
            raise NotSent(str(problem.get("detail")))
    headers = {name: answer.headers[name] for name in RELAYED_HEADERS if name in answer.headers}
    served_by = answer.headers.get("X-Ringraft-Served-By") or answer.headers.get("X-Ringraft-Node")
    if served_by:
        headers["X-Ringraft-Served-By"] = served_by
    return Reply(body, answer.status, answer.headers.get("Content-Type", JSON_TYPE), headers)


def _as_answer_to(call: Call, reply: Reply) -> Reply:
    """A problem names the request it answers: the caller's, where the other node gave it a number of its own."""
    if reply.content_type != PROBLEM_TYPE:
        return reply
    return replace(reply, body={**strictjson.parse(reply.body, depth_max=64), "instance": call.request_id})


def _texts(query: Mapping[str, Any]) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in query.items():
        if isinstance(value, bool):
            out[name] = "true" if value else "false"
        elif isinstance(value, list):
            out[name] = ",".join(str(part) for part in value)
        else:
            out[name] = str(value)
    return out
