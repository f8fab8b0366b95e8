"""What the state holds and what a log entry is: plain immutable values.

Every record is frozen, so that a snapshot is a list of references and a decider cannot change
what it reads. JSON-like values that the state machine never looks into (config, result, progress,
artifacts) are kept as packed msgpack: immutable, small, and cheap to hash.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from ringraft.state.record import record

TOKENS_PER_ENTRY = 4096
"""A fencing token is ``index * TOKENS_PER_ENTRY + position``; also the most grants in one entry."""

EVENTS_PER_ENTRY = 1 << 20
"""An event's sequence number is ``index * EVENTS_PER_ENTRY + position``; below 2**53 up to index 2**33."""


class WorkState(StrEnum):
    """Where a work item stands; the last three are for ever (until ``retry``)."""

    PENDING = "PENDING"
    BLOCKED = "BLOCKED"
    ASSIGNED = "ASSIGNED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


FINAL = frozenset({WorkState.COMPLETED, WorkState.FAILED, WorkState.CANCELLED})
LEASED = frozenset({WorkState.ASSIGNED, WorkState.RUNNING})


class Epoch(NamedTuple):
    """Who may be heard: entries of an epoch older than the newest begun one change nothing."""

    generation: int
    number: int


class HistoryEntry(NamedTuple):
    """How one grant ended. ``attempt`` counts from 1."""

    attempt: int
    node_id: str
    token: int
    outcome: str
    reason: str | None
    at_wall_ms: int


@record
class NewItem:
    """A work item as submitted, checked and in canonical form; without an id the machine names it."""

    work_type: str
    config: bytes
    work_id: str | None = None
    priority: int = 50
    max_attempts: int = 3
    timeout_ms: int | None = None
    depends_on: tuple[str, ...] = ()
    on_dependency_failure: str = "cancel"
    not_before_wall_ms: int | None = None
    requirements: bytes = b""
    """Packed canonical requirements; empty when there are none."""
    target_node: str | None = None
    excluded_nodes: tuple[str, ...] = ()
    """Sorted, without repeats."""
    unique_key: str | None = None
    group: str | None = None
    class_key: str = ""
    """The ``config`` half of the (type, config) class: ``hex8_2p`` for board_type hex8, num_players 2."""
    strict: bool = False
    """Refuse instead of warn when no registered node could ever run it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Everything that bounds the state. Changed only by a command, so that every replica agrees."""

    items_max: int = 2_000_000
    retention_ms: int = 3_600_000
    lease_default_ms: int = 30_000
    lease_min_ms: int = 5_000
    lease_max_ms: int = 3_600_000
    claim_items_max: int = 100
    batch_items_max: int = 1000
    payload_bytes_max: int = 65_536
    depends_on_max: int = 64
    dependents_max: int = 10_000
    excluded_nodes_max: int = 16
    group_items_max: int = 10_000
    shapes_max: int = 4096
    classes_max: int = 4096
    nodes_max: int = 4096
    node_leases_max: int = 4096
    keys_max: int = 2_500_000
    """Above ``items_max``: every item may have come with a key of its own, and claims have some too."""
    history_max: int = 16
    error_chars_max: int = 4096
    key_grace_ms: int = 120_000
    """A claim's key lives at least this long from its grant."""
    backoff_base_ms: int = 1_000
    backoff_cap_ms: int = 300_000
    timers_per_entry: int = 1024
    """How many due timers, retirements and settled dependents one entry handles; the rest wait for the next."""


@record
class Key:
    """An idempotency key: unique per principal; ``body`` is the digest of verb and parsed body."""

    principal: str
    key: str
    body: bytes


@record
class Command:
    """One thing asked of the state machine."""

    op: Any
    """One of the classes of ``commands.py``."""
    key: Key | None = None


@record
class Entry:
    """One log entry: everything that arrived together, stamped by the leader."""

    log_ms: int
    wall_ms: int
    epoch: Epoch
    commands: tuple[Command, ...]


@record
class Done:
    """The command was applied; ``value`` answers it."""

    value: dict[str, Any]


@record
class Rejected:
    """The command changed nothing. ``code`` is one of the codes of the REST contract."""

    code: str
    detail: str
    errors: tuple[tuple[str, str], ...] = ()
    """(JSON pointer into the request body, message) of each field at fault."""
    members: dict[str, Any] = field(default_factory=dict)
    """Further members of the problem document, such as the ``state`` of an item that is final."""


Outcome = Done | Rejected


class Event(NamedTuple):
    """Something that happened, derived from an applied entry: the same on every node."""

    seq: int
    index: int  # type: ignore[assignment]
    type: str
    at_wall_ms: int
    data: dict[str, Any]


@record
class Applied:
    """What one entry did: one outcome per command, in order, and the events."""

    outcomes: tuple[Outcome, ...]
    events: tuple[Event, ...]
