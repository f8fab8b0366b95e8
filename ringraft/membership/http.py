"""Heartbeats as POST /nodes/heartbeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from ringraft.membership.heartbeat import Unreachable

PATH = "/nodes/heartbeat"

ANSWER_BYTES_MAX = 16 * 1024 * 1024


class HttpTransport:
    """Sends heartbeats over the node's client session, with its credential."""

    def __init__(self, client: aiohttp.ClientSession, credential: Callable[[], str | None]) -> None:
        self._client = client
        self._credential = credential

    async def send(self, address: str, body: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """Deliver to ``host:port`` and return the answer. Raises Unreachable."""
        credential = self._credential()
        headers = {"Authorization": f"Bearer {credential}"} if credential is not None else {}
        try:
            async with self._client.post(
                f"http://{address}{PATH}",
                json=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as answer:
                if answer.status != 200:
                    raise Unreachable(f"{address} answered {answer.status}")
                if (answer.content_length or 0) > ANSWER_BYTES_MAX:
                    raise Unreachable(f"{address} answered with {answer.content_length} bytes")
                fields = await answer.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as fault:
            raise Unreachable(f"{address}: {fault!r}") from fault
        if not isinstance(fields, dict):
            raise Unreachable(f"{address} answered with something else than an object")
        return fields
