"""One row of the route table: what a route takes, who may use it, what it can answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ringraft.api.auth import Role
from ringraft.schema import Boolean, Choice, Field, Number, Object

if TYPE_CHECKING:
    from ringraft.api.call import Call, Reply

Handler = Callable[["Call"], Awaitable["Reply | web.StreamResponse"]]

JSON_TYPE = "application/json"


class Consistency(StrEnum):
    """How fresh a read must be."""

    LINEARIZABLE = "linearizable"
    LEADER = "leader"
    STALE = "stale"


class Bound(StrEnum):
    """Which limit a body has."""

    BODY = "body"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that is no problem, with an example."""

    status: int
    doc: str
    schema: Mapping[str, Any]
    example: Any
    content_type: str = JSON_TYPE


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    ``roles``: any of them opens the route. ``consistency``: the default of a read of the replicated
    state, None for what this node answers of itself. ``is_local``: a node without a log answers it
    too instead of passing it to the cluster. ``upgrades``: it is a WebSocket, which OpenAPI has no
    words for.
    """

    method: str
    path: str
    handler: Handler
    roles: tuple[Role, ...]
    summary: str
    tag: str
    answers: Sequence[Answer] = ()
    problems: tuple[str, ...] = ()
    query: Mapping[str, Field] = field(default_factory=dict)
    body: Object | None = None
    body_required: bool = True
    body_example: Any = None
    body_bound: Bound = Bound.BODY
    consistency: Consistency | None = None
    writes: bool = False
    is_local: bool = False
    upgrades: bool = False
    path_fields: Mapping[str, Field] = field(default_factory=dict)
    doc: str = ""

    @property
    def is_cluster(self) -> bool:
        """It may be answered by another node than the one asked."""
        return self.writes or self.consistency is not None

    @property
    def is_open(self) -> bool:
        return Role.OPEN in self.roles

    def query_object(self, timeout_s_max: float) -> Object:
        """The query with what every route of its kind takes; ``timeout_s_max`` is the setting."""
        fields: dict[str, Field] = dict(self.query)
        fields["timeout_s"] = Field(
            Number(0, timeout_s_max, above=True), "How long to wait for a leader and a commit.", refers=True
        )
        if self.is_cluster:
            fields["redirect"] = Field(
                Boolean(), "Answer 307 with the leader's URL instead of forwarding.", refers=True
            )
        if self.consistency is not None:
            fields["consistency"] = Field(Choice(tuple(Consistency)), f"How fresh; {self.consistency} when left out.")
        return Object(fields)
