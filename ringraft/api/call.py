"""One request while it is served, and what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ringraft.api.auth import NOBODY, Principal
from ringraft.api.route import JSON_TYPE, Route
from ringraft.state.commands import Op
from ringraft.state.model import Command

if TYPE_CHECKING:
    from ringraft.api.served import ServedNode
    from ringraft.api.service import Service
    from ringraft.api.submission import Verb


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. ``body`` is JSON to be written, or bytes as they are."""

    body: Any
    status: int = 200
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One request: who asks, for what, until when."""

    service: Service
    request: web.Request
    request_id: str
    route: Route | None = None
    principal: Principal = NOBODY
    is_hop: bool = False
    """Another node forwarded it: it must not travel further."""
    query: dict[str, Any] = field(default_factory=dict)
    body: Any = None
    key: str | None = None
    end_s: float = 0.0
    """When the answer is due, on the loop's clock; ``wait_s`` included."""
    wait_s: float = 0.0
    """How long the caller asked to be held back when there is nothing to say."""
    is_stale: bool = False
    """Answered from this node's copy without asking anyone."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers that take the place of this node's own, from the node that served it."""

    @property
    def node(self) -> ServedNode:
        return self.service.node

    @property
    def params(self) -> Mapping[str, str]:
        """The named parts of the path."""
        return self.request.match_info

    def left_s(self) -> float:
        """Seconds until the answer is due; never negative."""
        return max(0.0, self.end_s - asyncio.get_running_loop().time())

    def command(self, verb: Verb, op: Op) -> Command:
        """The command of this call, with its key where the verb is keyed."""
        return Command(op, verb.key(self.principal, self.key, self.body))


CALL: web.RequestKey[Call] = web.RequestKey("call", Call)
"""Where a request keeps its call, for the signal that puts the headers on."""
