"""REST calls to a cluster, through whichever of its addresses answers."""

from __future__ import annotations

import asyncio
import json as jsonlib
import random
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import aiohttp
from yarl import URL

from ringraft.client.errors import ApiError, ClientError, Unreachable
from ringraft.client.stream import FRAME_BYTES_MAX, STREAM_PING_S, STREAM_PROTOCOL, STREAM_WINDOW, Stream

TIMEOUT_S: Final = 10.0
"""How long a call is tried when the caller does not say."""
TRY_S: Final = 3.0
"""How long one address may take while there is another to ask; a paused node costs at most this."""
ANSWER_MARGIN_S: Final = 0.25
"""The node is asked to answer this much before the client gives up, so that its reason arrives."""
NODE_TIMEOUT_MAX_S: Final = 30.0
"""What a node accepts as a request's timeout at most."""
BACKOFF_BASE_S: Final = 0.05
BACKOFF_CAP_S: Final = 2.0
CONNECTIONS_MAX: Final = 256
READS: Final = frozenset({"GET", "HEAD"})
KEYED_PATHS: Final = ("/work/", "/nodes/")
"""Writes that a node recognises as repeats: by key, by token or by incarnation."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A success. ``body`` is parsed JSON, or text when it is not JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Client:
    """One cluster, by any of its addresses (``host:port`` or a URL). One session, closed with ``close``.

    Addresses are used in the order given; the one that answered last is asked first.
    """

    def __init__(
        self,
        addresses: Iterable[str],
        *,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        rng: random.Random | None = None,
    ) -> None:
        self.addresses: tuple[str, ...] = tuple(dict.fromkeys(base_url(a) for a in addresses))
        if not self.addresses:
            raise ValueError("a client needs at least one address, such as 127.0.0.1:8770")
        self.timeout_s = timeout_s
        self.rng = rng or random.Random()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._current = 0
        self._session: aiohttp.ClientSession | None = None
        self._key_prefix = secrets.token_hex(8)
        self._keys = 0

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session; streams are closed by their owners before."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def new_key(self) -> str:
        """An idempotency key that nobody else uses."""
        self._keys += 1
        return f"{self._key_prefix}-{self._keys}"

    def stream(self, *, window: int = STREAM_WINDOW) -> Stream:
        """A pipelined connection to the queue; opened at the first call."""
        return Stream(self, window=window)

    async def get(self, path: str, **options: Any) -> Any:
        """The body of ``GET path``; options as in ``request``."""
        return (await self.request("GET", path, **options)).body

    async def post(self, path: str, body: Any = None, **options: Any) -> Any:
        """The body of ``POST path``; options as in ``request``."""
        return (await self.request("POST", path, json=body, **options)).body

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
        deadline_s: float | None = None,
        wait_s: float = 0.0,
        address: str | None = None,
    ) -> Answer:
        """One call, repeated where that is safe until ``deadline_s`` from now is over.

        ``wait_s`` is how long the node may hold the answer back on purpose (long polls); it is not
        added to the request. ``address`` pins the call to one node. Raises ApiError, Unreachable.
        """
        data = None if json is None else jsonlib.dumps(json, separators=(",", ":"), allow_nan=False).encode()
        repeatable = method in READS or key is not None or path.startswith(KEYED_PATHS)
        headers = dict(self._headers)
        if method not in READS:
            headers["Idempotency-Key"] = key or self.new_key()
        if data is not None:
            headers["Content-Type"] = "application/json"
        query = f"?{urlencode(params)}" if params else ""
        now_s = asyncio.get_running_loop().time
        end_s = now_s() + (self.timeout_s + wait_s if deadline_s is None else deadline_s)
        alone = address is not None or len(self.addresses) == 1
        hint: str | None = None
        tries = 0
        unknown = False
        while True:
            target = base_url(address) if address else hint or self.addresses[self._current]
            left_s = max(0.0, end_s - now_s())
            try_s = left_s if alone else min(left_s, wait_s + TRY_S)
            headers["X-Ringraft-Timeout"] = f"{min(NODE_TIMEOUT_MAX_S, max(0.1, try_s - wait_s - ANSWER_MARGIN_S)):g}"
            failure: ClientError
            try:
                return await self._once(method, URL(target + path + query, encoded=True), data, headers, try_s)
            except Unreachable as error:
                failure = error
                unknown = unknown or error.outcome == "unknown"
                again = repeatable or error.outcome == "not_applied"
            except ApiError as error:
                failure = error
                unknown = unknown or error.outcome == "unknown"
                again = error.retryable and (repeatable or error.outcome == "not_applied")
            if not again:
                raise failure
            if hint is None and address is None:
                self._current = (self._current + 1) % len(self.addresses)
            tries += 1
            hint = self._hint(failure, target)
            pause_s = self._pause_s(failure, tries, alone) if hint is None else 0.0
            if now_s() + pause_s >= end_s:
                if unknown:
                    failure.outcome = "unknown"
                raise failure
            await asyncio.sleep(pause_s)

    async def download(
        self, path: str, take: Callable[[bytes], None], *, params: Mapping[str, Any] | None = None, stall_s: float
    ) -> None:
        """Hand the body of ``GET path`` to ``take``, piece by piece, from the first address that answers.

        Raises ApiError; Unreachable when nobody answers, or when nothing comes for ``stall_s`` seconds or
        the connection breaks: what was taken until then is not whole.
        """
        query = f"?{urlencode(params)}" if params else ""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TRY_S, sock_read=stall_s)
        failure: Unreachable | None = None
        for address in self.addresses:
            url, has_begun = URL(address + path + query, encoded=True), False
            try:
                async with self.session().get(
                    url, headers=self._headers, timeout=timeout, allow_redirects=False
                ) as response:
                    if response.status != 200:
                        raw = await response.read()
                        raise ApiError(response.status, _parse(raw, response.content_type), response.headers)
                    async for piece in response.content.iter_any():
                        has_begun = True
                        take(piece)
                    return
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = Unreachable(f"{url.authority}: {error or type(error).__name__}", "not_applied")
                if has_begun:
                    break
        assert failure is not None
        raise failure

    def _hint(self, failure: ClientError, asked: str) -> str | None:
        """The leader's address when a refusal names one that was not just asked."""
        if not isinstance(failure, ApiError) or failure.leader_url is None:
            return None
        url = failure.leader_url.rstrip("/")
        # The credential goes only where the transport is the one that was configured.
        same_scheme = urlsplit(url).scheme == urlsplit(asked).scheme
        return url if same_scheme and url != asked and url in self.addresses else None

    def _pause_s(self, failure: ClientError, tries: int, alone: bool) -> float:
        """Full jitter, never below what the cluster asks for; none while another address is untried."""
        busy = isinstance(failure, ApiError) and failure.status == 429
        if not alone and not busy and tries % len(self.addresses):
            return 0.0
        rounds = tries if alone else tries // len(self.addresses)
        return self.backoff_s(rounds, failure.retry_after_s if isinstance(failure, ApiError) else 0.0)

    def backoff_s(self, rounds: int, retry_after_s: float = 0.0) -> float:
        """How long to wait after ``rounds`` failures in a row."""
        jitter_s = self.rng.uniform(0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(rounds, 16)))
        return max(jitter_s, 0.005) + retry_after_s

    async def _once(
        self, method: str, url: URL, data: bytes | None, headers: Mapping[str, str], try_s: float
    ) -> Answer:
        """One request to one address."""
        session = self.session()
        try:
            async with (
                asyncio.timeout(try_s),
                session.request(method, url, data=data, headers=headers, allow_redirects=False) as response,
            ):
                raw = await response.read()
                body = _parse(raw, response.content_type)
                if response.status >= 400:
                    raise ApiError(response.status, body, response.headers)
                return Answer(response.status, response.headers, body)
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(f"cannot connect to {url.authority}: {error.os_error}", "not_applied") from error
        except TimeoutError as error:
            raise Unreachable(f"{url.authority} gave no answer within {try_s:.1f} s", "unknown") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{url.authority}: {error or type(error).__name__}", "unknown") from error

    def session(self) -> aiohttp.ClientSession:
        """The one HTTP session, made inside the running loop."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
            timeout = aiohttp.ClientTimeout(total=None)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session

    async def connect(self, attempt: int) -> aiohttp.ClientWebSocketResponse:
        """Open ``/work/stream`` at an address; another one for each ``attempt``. Raises aiohttp's errors."""
        base = self.addresses[(self._current + attempt) % len(self.addresses)]
        async with asyncio.timeout(TRY_S):
            ws = await self.session().ws_connect(
                URL(base + "/work/stream", encoded=True),
                protocols=(STREAM_PROTOCOL,),
                headers=self._headers,
                heartbeat=STREAM_PING_S,
                max_msg_size=FRAME_BYTES_MAX,
                compress=0,
            )
        self._current = self.addresses.index(base)
        return ws


def base_url(address: str) -> str:
    """``host:port`` or a URL as ``scheme://host:port``; ValueError for anything else."""
    text = address if "://" in address else f"http://{address}"
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise ValueError(f"address {address!r} is neither host:port nor http(s)://host:port")
    return f"{parts.scheme}://{parts.netloc}"


def _parse(raw: bytes, content_type: str) -> Any:
    if content_type.endswith("json"):
        try:
            return jsonlib.loads(raw)
        except ValueError:
            return raw.decode("utf-8", "replace")
    return raw.decode("utf-8", "replace")
