"""The records that make up the state: whatever is here is in the snapshot and in the digest.

An item is two records. ``ItemSpec`` is what was asked for and never changes, ``Item`` is what
became of it and is replaced whole at every step, so it stays small. What is made at every step is a
named tuple, which takes a quarter of the time that a frozen dataclass takes to make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import NamedTuple

from ringraft.state.model import FINAL, LEASED, HistoryEntry, NewItem, WorkState
from ringraft.state.record import record

BIRTHS_PER_ENTRY = 1 << 20
"""``seq`` is ``index * BIRTHS_PER_ENTRY + position``; an entry of 8 MiB cannot carry this many items."""

ClassKey = tuple[str, str]
"""(work_type, class_key): what fair turns are between."""

ShapeKey = tuple[str, str, bytes, str | None, tuple[str, ...]]
"""(work_type, class_key, requirements, target_node, excluded_nodes), node ids in lower case: items
that agree in it can go to the same nodes."""

KeyId = tuple[str, str]
"""(principal, key) of an idempotency key."""


@record
class ItemSpec:
    """The part of an item that is fixed when it is added."""

    work_id: str
    """As submitted, or minted; the state finds it by its lower-case form."""
    seq: int
    """The item's age: lower is older. Kept over retry, release and expiry."""
    new: NewItem
    parent: str | None
    created_wall_ms: int
    id: str = field(init=False)
    shape: ShapeKey = field(init=False)
    dependencies: tuple[str, ...] = field(init=False)
    """Lower-case ids, each once."""

    def __post_init__(self) -> None:
        new = self.new
        target = None if new.target_node is None else new.target_node.lower()
        excluded = tuple(sorted({node_id.lower() for node_id in new.excluded_nodes})) if new.excluded_nodes else ()
        put = object.__setattr__
        lower = self.work_id.lower()
        put(self, "id", self.work_id if lower == self.work_id else lower)
        put(self, "shape", (new.work_type, new.class_key, new.requirements, target, excluded))
        dependencies = tuple(dict.fromkeys(name.lower() for name in new.depends_on)) if new.depends_on else ()
        put(self, "dependencies", dependencies)

    def share(self, shape: ShapeKey) -> None:
        """Hold an equal ``shape`` and its parts in place of the own ones: a million copies take 200 MiB."""
        assert shape == self.shape
        put, new = object.__setattr__, self.new
        put(self, "shape", shape)
        put(new, "work_type", shape[0])
        put(new, "class_key", shape[1])
        put(new, "requirements", shape[2])


class Grant(NamedTuple):
    """The newest grant of an item. It stays when the lease ends, because its token still counts."""

    node_id: str
    token: int
    lease_ms: int
    expires_log_ms: int
    expires_wall_ms: int
    """For people only: what ``expires_log_ms`` looked like on the leader's wall clock."""
    started_log_ms: int | None = None
    started_wall_ms: int | None = None
    verdict: str = ""
    """How the lease ended; empty while it lives. ``retry`` and ``failed`` are the two answers of fail."""
    verdict_wall_ms: int | None = None
    """The ``not_before`` that fail answered, for a repeat."""


class End(NamedTuple):
    """How an item became final."""

    wall_ms: int
    retire_log_ms: int
    verb: str = ""
    """``complete`` or ``fail`` when a worker's call made it final, else empty."""
    token: int | None = None
    result: bytes | None = None
    artifacts: bytes | None = None
    spawned: tuple[str, ...] = ()
    then: str | None = None


class Item(NamedTuple):
    """The part of an item that changes."""

    spec: ItemSpec
    state: WorkState
    attempt: int = 0
    wake_log_ms: int | None = None
    """PENDING, but backing off until this log time."""
    wake_wall_ms: int | None = None
    """PENDING, but held until this wall time; beside ``wake_log_ms`` only what to show."""
    grant: Grant | None = None
    progress: bytes | None = None
    error: str | None = None
    history: tuple[HistoryEntry, ...] = ()
    end: End | None = None

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    @property
    def is_leased(self) -> bool:
        return self.state in LEASED

    @property
    def is_ready(self) -> bool:
        return self.state is WorkState.PENDING and self.wake_log_ms is None and self.wake_wall_ms is None

    def due_log_ms(self) -> int | None:
        """The log time at which this item changes by itself. A final one may be kept longer by dependents."""
        if self.state in LEASED:
            grant = self.grant
            assert grant is not None
            timeout_ms = self.spec.new.timeout_ms
            if timeout_ms is None or grant.started_log_ms is None:
                return grant.expires_log_ms
            return min(grant.expires_log_ms, grant.started_log_ms + timeout_ms)
        if self.end is not None:
            return self.end.retire_log_ms
        return self.wake_log_ms

    def due_wall_ms(self) -> int | None:
        """The wall time at which this item becomes ready by itself."""
        return self.wake_wall_ms if self.wake_log_ms is None else None


@record
class NodeRecord:
    """A node as it presented itself, and what the membership last said about it."""

    node_id: str
    incarnation: int
    """0: the membership has seen it, but it has not registered."""
    roles: tuple[str, ...] = ()
    work_types: tuple[str, ...] | None = None
    capabilities: bytes = b""
    addresses: tuple[str, ...] = ()
    version: str = ""
    is_up: bool = True
    changed_wall_ms: int = 0

    @property
    def is_worker(self) -> bool:
        return "worker" in self.roles


@record
class VoterRecord:
    """A node that keeps the log, as the log knows it."""

    node_id: str
    address: str
    """``host:port``."""
    data_id: str = ""
    """Of the data directory whose copy counts; empty: a founder that was not heard yet."""
    incarnation: int = 0
    is_voter: bool = False
    """False: a learner, which is sent the log and counts for nothing."""
    command_version: int = 0
    """The newest version of commands that its program knows; 0: it has not said."""
    changed_wall_ms: int = 0


class VoterTable(NamedTuple):
    """Who keeps the log, as of one instant; another object as soon as any of it changes."""

    voters: Mapping[str, VoterRecord]
    """By id; empty until the cluster is formed."""
    formation_id: str
    changed_index: int
    """The entry that changed the voters last: the basis of the next change."""


@record
class KeyRecord:
    """What an idempotency key stands for, and how long.

    A key of an add lives as long as one of the items in ``births`` is held. Every other key ends at
    ``until_log_ms``, a claim's not before the last of its ``leases`` has ended.
    """

    principal: str
    key: str
    body: bytes
    answer: bytes
    """The first outcome's value, packed."""
    until_log_ms: int | None = None
    births: tuple[int, ...] = ()
    """``seq`` of each item that the command added."""
    leases: tuple[tuple[str, int], ...] = ()
    """(work_id, token) of each lease that the command granted."""
    recheck_log_ms: int | None = None
    """After ``until_log_ms``, while a lease lives: when to look again."""

    def due_log_ms(self) -> int | None:
        """The log time at which the key may have ended."""
        return self.until_log_ms if self.recheck_log_ms is None else self.recheck_log_ms


@record
class ClassRecord:
    """A class with live items, and the virtual time of its next turn."""

    work_type: str
    class_key: str
    turn: int


@record
class AgendaRecord:
    """An item became final and its dependents past ``after_seq`` have not been told yet."""

    order: int
    work_id: str
    after_seq: int
