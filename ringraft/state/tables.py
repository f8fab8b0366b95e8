"""The whole state, as deciders read it, and what a decider answers with.

A decider is a function (tables, op, at) -> Decision | Rejected. It only reads. What should change
is in the decision, and ``machine`` installs it: no command can be left half done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ringraft.state.indexes import Indexes
from ringraft.state.model import Epoch, Limits, Outcome, WorkState
from ringraft.state.records import (
    BIRTHS_PER_ENTRY,
    AgendaRecord,
    ClassKey,
    ClassRecord,
    Item,
    ItemSpec,
    KeyId,
    KeyRecord,
    NodeRecord,
    ShapeKey,
    VoterRecord,
)

DISMANTLE_STEP = 1000


class Tables:
    """The records and their indexes. Only ``machine`` assigns; everyone else reads."""

    __slots__ = (
        "agenda",
        "begun_index",
        "classes",
        "clock",
        "epoch",
        "formation_id",
        "index",
        "indexes",
        "is_configured",
        "items",
        "keys",
        "limits",
        "log_ms",
        "nodes",
        "satisfiable",
        "voters",
        "voters_index",
        "wall_ms",
    )

    def __init__(self) -> None:
        self.index = 0
        self.log_ms = 0
        self.wall_ms = 0
        self.epoch = Epoch(0, 0)
        self.begun_index = 0
        """The entry in which the newest epoch began."""
        self.limits = Limits()
        self.is_configured = False
        """Whether the limits were entered into the log, be it the ones that hold without."""
        self.clock = 0
        """The virtual clock: the turn of the newest grant. A class that wakes up starts here."""
        self.items: dict[str, Item] = {}
        """By lower-case id; in order of age."""
        self.nodes: dict[str, NodeRecord] = {}
        """By lower-case id."""
        self.voters: dict[str, VoterRecord] = {}
        """Who keeps the log, by lower-case id; empty until the cluster is formed."""
        self.voters_index = 0
        """The entry that changed the voters last."""
        self.formation_id = ""
        self.classes: dict[ClassKey, ClassRecord] = {}
        self.keys: dict[KeyId, KeyRecord] = {}
        self.agenda: dict[int, AgendaRecord] = {}
        """Items that became final and whose dependents wait to hear of it, first come first."""
        self.indexes = Indexes(self.items)
        self.satisfiable: dict[ShapeKey, str | None] = {}
        """Remembers ``policy.unsatisfiable_because`` until a node registers; no part of the state."""

    def dismantle(self) -> Iterator[None]:
        """Let go of everything, in steps of ``DISMANTLE_STEP`` references."""
        holders: list[dict[Any, Any] | list[Any]] = [self.items, self.keys, self.agenda, *self.indexes.holders()]
        for holder in holders:
            while holder:
                if isinstance(holder, dict):
                    for _ in range(min(DISMANTLE_STEP, len(holder))):
                        holder.popitem()
                else:
                    del holder[-DISMANTLE_STEP:]
                yield

    def item(self, work_id: str) -> Item | None:
        return self.items.get(work_id.lower())

    def dependency(self, spec: ItemSpec, name: str) -> Item | None:
        """The item that ``spec`` depends on under this name; None when it has retired.

        A dependency was there when the dependent was added, or came with it. A younger item is another
        one that took the name of a retired one: waiting for it could close a circle.
        """
        item = self.items.get(name)
        if item is None or item.spec.seq // BIRTHS_PER_ENTRY > spec.seq // BIRTHS_PER_ENTRY:
            return None
        return item

    def dependency_state(self, spec: ItemSpec, name: str) -> WorkState | None:
        """The state of ``dependency``."""
        item = self.dependency(spec, name)
        return item.state if item is not None else None


class At:
    """Where a command stands: the entry it is in and what that entry has used up so far."""

    __slots__ = ("births", "epoch", "events", "grants", "index", "log_ms", "wall_ms")

    def __init__(self, index: int, log_ms: int, wall_ms: int, epoch: Epoch) -> None:
        self.index = index
        self.log_ms = log_ms
        self.wall_ms = wall_ms
        self.epoch = epoch
        """The entry's."""
        self.births = 0
        """Items added by the entry so far."""
        self.grants = 0
        """Leases granted by the entry so far."""
        self.events = 0


News = tuple[str, dict[str, Any]]
"""(type, data) of an event to come."""

NOTHING: Mapping[Any, Any] = {}


class Decision:
    """What one command comes to: its answer, the records to install and the events to tell."""

    __slots__ = (
        "agenda",
        "births",
        "changes_voters",
        "classes",
        "clock",
        "epoch",
        "formation_id",
        "grants",
        "items",
        "keys",
        "limits",
        "news",
        "nodes",
        "outcome",
        "remembered",
        "voters",
    )

    def __init__(
        self,
        outcome: Outcome,
        items: Mapping[str, Item | None] = NOTHING,
        news: Sequence[News] = (),
        classes: Mapping[ClassKey, ClassRecord] = NOTHING,
        *,
        keys: Mapping[KeyId, KeyRecord | None] = NOTHING,
        nodes: Mapping[str, NodeRecord] = NOTHING,
        voters: Mapping[str, VoterRecord | None] = NOTHING,
        changes_voters: bool = False,
        formation_id: str | None = None,
        agenda: Mapping[int, AgendaRecord | None] = NOTHING,
        births: int = 0,
        grants: int = 0,
        clock: int | None = None,
        epoch: Epoch | None = None,
        limits: Limits | None = None,
        remembered: KeyRecord | None = None,
    ) -> None:
        self.outcome = outcome
        self.items = items
        """By lower-case id, new ones in order of age; None removes."""
        self.news = news
        self.classes = classes
        self.keys = keys
        self.nodes = nodes
        self.voters = voters
        self.changes_voters = changes_voters
        self.formation_id = formation_id
        self.agenda = agenda
        self.births = births
        """Items added."""
        self.grants = grants
        """Leases granted."""
        self.clock = clock
        self.epoch = epoch
        self.limits = limits
        self.remembered = remembered
        """How long a repeat of the command is to find this outcome; ``machine`` adds key and answer."""
