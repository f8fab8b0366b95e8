"""The interface every membership mode has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class MemberState(StrEnum):
    """The one verdict on a node. ``left`` said goodbye itself; only a new start brings it back."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Member:
    """A node as this one knows it. Identity is ``node_id`` and ``incarnation``, never an address."""

    node_id: str
    state: MemberState
    incarnation: int
    """0: a configured voter that was never heard."""
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    last_seen_s: float | None
    """Seconds since it was last heard; None if never."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[Any, ...] = ()
    version: str = ""
    reachable_via: str = "direct"
    """How requests get there; through whom it was heard is something else."""
    priority: int | None = None
    """``node.priority`` of that node; None when it did not say."""
    applied_index: int | None = None
    """How far its log was applied when it was last heard; None when it did not say."""

    def view(self) -> dict[str, Any]:
        """The form that ``/peers`` shows."""
        return {
            "node_id": self.node_id,
            "addresses": list(self.addresses),
            "state": self.state.value,
            "incarnation": self.incarnation,
            "roles": list(self.roles),
            "last_seen_s": None if self.last_seen_s is None else round(self.last_seen_s, 3),
            "resources": dict(self.resources),
            "gpus": list(self.gpus),
            "version": self.version,
            "reachable_via": self.reachable_via,
        }


@dataclass(frozen=True, slots=True)
class MemberChange:
    """A verdict or an incarnation that changed; ``before`` is None for a node that is new here."""

    member: Member
    before: MemberState | None


class Membership(Protocol):
    """Who is there, as advice: it moves traffic and informs people, it ends no lease and elects nobody."""

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Say goodbye (``left``) and end; bounded by one heartbeat's time-out."""
        ...

    def members(self) -> Mapping[str, Member]:
        """Every known node, this one included; computed now, never waits."""
        ...

    def watch(self) -> AsyncIterator[MemberChange]:
        """Changes from now on. A reader that lags loses the oldest: ``members`` is the truth."""
        ...
