"""Adding items: alone, many at once, or as what follows from a completed one."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from itertools import chain
from typing import Any

from ringraft.state import commands as ops
from ringraft.state.decide.item import cancelled, news_of, place, unblocked_state
from ringraft.state.matching import requirements_fault
from ringraft.state.model import Done, Limits, NewItem, Rejected, WorkState
from ringraft.state.policy import unsatisfiable_because
from ringraft.state.records import BIRTHS_PER_ENTRY, Item, ItemSpec, KeyRecord
from ringraft.state.tables import At, Decision, News, Tables

FAILURE_POLICIES = ("cancel", "run", "wait")

Fault = tuple[str, str, str]
"""(code, JSON pointer into the request, message)."""


def add(tables: Tables, op: ops.Add, at: At) -> Decision | Rejected:
    births = Births(tables, at, parent=None)
    fault = births.plan((op.item,), ("",))
    if fault is not None:
        return fault
    return Decision(
        Done(births.answers[0]),
        births.items,
        births.news,
        births=len(births.items),
        remembered=births.remembered(),
    )


def add_batch(tables: Tables, op: ops.AddBatch, at: At) -> Decision | Rejected:
    limit = tables.limits.batch_items_max
    if not 0 < len(op.items) <= limit:
        return Rejected(
            "invalid_field",
            f"items has {len(op.items)} items; send 1 to {limit} at once",
            (("/items", f"1 to {limit} items"),),
        )
    births = Births(tables, at, parent=None)
    fault = births.plan(op.items, [f"/items/{number}" for number in range(len(op.items))])
    if fault is not None:
        return fault
    return Decision(
        Done({"items": births.answers}),
        births.items,
        births.news,
        births=len(births.items),
        remembered=births.remembered(),
    )


class Births:
    """Items that one command would add: planned first, so that a fault in one refuses them all.

    ``finishing`` is the item that the same command completes: it counts as COMPLETED, and its
    unique key as free.
    """

    def __init__(self, tables: Tables, at: At, parent: str | None, finishing: Item | None = None) -> None:
        self._tables = tables
        self._at = at
        self._parent = parent
        self._finishing = finishing
        self.items: dict[str, Item | None] = {}
        """The new items in order of age."""
        self.answers: list[dict[str, Any]] = []
        """What to tell about each item asked for, in order."""
        self.news: list[News] = []
        self._unique: dict[str, str] = {}

    def plan(
        self, news: Sequence[NewItem], pointers: Sequence[str], then: NewItem | None = None, found: Sequence[Fault] = ()
    ) -> Rejected | None:
        """Plan all of ``news`` and, after all of them, ``then``; ``pointers`` say where each stands in the request.

        A refusal lists the faults of all of them, in the order of the request, after those ``found`` in
        the rest of it. Whether there is room is asked only for what is without fault.
        """
        asked = list(zip(news, pointers, strict=True))
        if then is not None:
            asked.append((then, "/then"))
        faults = [field_faults(new, pointer, self._tables.limits) for new, pointer in asked]
        fresh: list[tuple[Item, int]] = []
        for number, (new, pointer) in enumerate(asked):
            if number == len(news):
                spawned = (answer["work_id"] for answer in self.answers)
                new = replace(new, depends_on=tuple(dict.fromkeys((*new.depends_on, *spawned))))
            twin = self._taken(new)
            if twin is not None and (twin.spec.new != new or twin.spec.parent != self._parent):
                told = f"{new.work_id} is the id of another work item"
                faults[number].append(("work_id_taken", f"{pointer}/work_id", told))
                continue
            twin = twin or self._unique_twin(new)
            if twin is not None:
                self.answers.append({"status": "exists", "work_id": twin.spec.work_id})
                continue
            item = self._conceive(new)
            fresh.append((item, number))
            self.answers.append({"status": "added", "work_id": item.spec.work_id})
        self._check_dependencies(fresh, [pointer for _, pointer in asked], faults)
        in_order = [*found, *chain.from_iterable(faults)]
        if in_order:
            return refusal(in_order)
        if not fresh:
            return None
        fault = self._check_room()
        if fault is None:
            self._settle([item for item, _ in fresh])
        return fault

    def remembered(self) -> KeyRecord | None:
        births = tuple(item.spec.seq for item in self.items.values() if item is not None)
        return KeyRecord("", "", b"", b"", births=births) if births else None

    def _taken(self, new: NewItem) -> Item | None:
        return self._find(new.work_id.lower()) if new.work_id is not None else None

    def _find(self, name: str) -> Item | None:
        found = self.items.get(name)
        return found if found is not None else self._tables.items.get(name)

    def _unique_twin(self, new: NewItem) -> Item | None:
        if new.unique_key is None:
            return None
        name = self._unique.get(new.unique_key) or self._tables.indexes.unique.get(new.unique_key)
        if name is None or (self._finishing is not None and name == self._finishing.spec.id):
            return None
        return self._find(name)

    def _conceive(self, new: NewItem) -> Item:
        at = self._at
        position = at.births + len(self.items)
        assert position < BIRTHS_PER_ENTRY
        work_id = new.work_id if new.work_id is not None else self._mint(position)
        spec = ItemSpec(work_id, at.index * BIRTHS_PER_ENTRY + position, new, self._parent, at.wall_ms)
        item = Item(spec, WorkState.PENDING)
        self.items[spec.id] = item
        if new.unique_key is not None:
            self._unique[new.unique_key] = spec.id
        return item

    def _mint(self, position: int) -> str:
        base = name = f"w{self._at.index:x}-{position:x}"
        suffix = 0
        while self._find(name) is not None:
            suffix += 1
            name = f"{base}.{suffix}"
        return name

    def _check_dependencies(
        self, fresh: list[tuple[Item, int]], pointers: Sequence[str], faults: list[list[Fault]]
    ) -> None:
        """Add to the ``faults`` of each item what is wrong with it only beside the others and the nodes."""
        if all(not item.spec.dependencies and not item.spec.new.strict for item, _ in fresh):
            return
        in_cycles = cyclic({item.spec.id: item.spec.dependencies for item, _ in fresh})
        for item, number in fresh:
            own, pointer = faults[number], pointers[number]
            are_requirements_read = all(at != f"{pointer}/requirements" for _, at, _ in own)
            for position, name in enumerate(item.spec.new.depends_on):
                if self._find(name.lower()) is None:
                    told = f"{name} is unknown or retired: add it first, or leave it out"
                    own.append(("unknown_dependency", f"{pointer}/depends_on/{position}", told))
            if item.spec.id in in_cycles:
                told = f"{item.spec.work_id} depends on itself through {', '.join(item.spec.new.depends_on)}"
                own.append(("dependency_cycle", f"{pointer}/depends_on", told))
            if item.spec.new.strict and are_requirements_read:
                why = unsatisfiable_because(self._tables, item.spec.shape)
                if why is not None:
                    own.append(("unsatisfiable", f"{pointer}/requirements", why))

    def _check_room(self) -> Rejected | None:
        """The limits on how much there may be; what the finishing item alone took up is free."""
        tables, limits, indexes = self._tables, self._tables.limits, self._tables.indexes
        if len(tables.items) + len(self.items) > limits.items_max:
            return full("items_max", limits.items_max, f"{len(tables.items)} items are held")
        planned = [item.spec for item in self.items.values() if item is not None]
        shapes = {spec.shape for spec in planned}
        new_shapes = len(shapes - indexes.shapes.keys())
        if new_shapes and len(indexes.shapes) + new_shapes - self._freed(shapes) > limits.shapes_max:
            return full("shapes_max", limits.shapes_max, "distinct requirements of live items")
        classes = {shape[:2] for shape in shapes}
        new_classes = len(classes - tables.classes.keys())
        if new_classes and len(tables.classes) + new_classes - self._freed(classes) > limits.classes_max:
            return full("classes_max", limits.classes_max, "classes of live items")
        groups: dict[str, int] = {}
        waiting: dict[str, int] = {}
        for spec in planned:
            if spec.new.group is not None:
                groups[spec.new.group] = groups.get(spec.new.group, 0) + 1
            for name in spec.dependencies:
                waiting[name] = waiting.get(name, 0) + 1
        for group, count in groups.items():
            if len(indexes.groups.get(group, ())) + count > limits.group_items_max:
                return full("group_items_max", limits.group_items_max, f"items in the group {group}")
        for name, count in waiting.items():
            if len(indexes.dependents.get(name, ())) + count > limits.dependents_max:
                return full("dependents_max", limits.dependents_max, f"live items that depend on {name}")
        return None

    def _freed(self, planned: Set[Any]) -> int:
        """1 when the finishing item is the last of a shape or class (whichever ``planned`` has) that goes with it."""
        if self._finishing is None:
            return 0
        indexes, shape = self._tables.indexes, self._finishing.spec.shape
        is_last_of_class = indexes.classes[shape[:2]].live == 1 and shape[:2] not in planned
        is_last_of_shape = indexes.shapes[shape].live == 1 and shape not in planned
        return int(is_last_of_class if len(next(iter(planned))) == 2 else is_last_of_shape)

    def _settle(self, fresh: list[Item]) -> None:
        """Give each its first state. Others of the batch count as live, whatever becomes of them here."""
        at, limits = self._at, self._tables.limits
        started: dict[str, Item] = {}
        for item in fresh:
            state = unblocked_state(item.spec, self._state_of) if item.spec.dependencies else WorkState.PENDING
            self.news.append(("WORK_ADDED", news_of(item.spec)))
            if state is WorkState.CANCELLED:
                broken = next(n for n in item.spec.dependencies if self._state_of(item.spec, n) in BROKEN)
                told = f"its dependency {broken} is {self._state_of(item.spec, broken)}"
                item, news = cancelled(item, at, limits, told)
                self.news.append(news)
            else:
                item = place(item, state, at)
            started[item.spec.id] = item
        self.items.update(started)
        added = (answer for answer in self.answers if answer["status"] == "added")
        for answer, item in zip(added, started.values(), strict=True):
            why = unsatisfiable_because(self._tables, item.spec.shape)
            answer["state"] = str(item.state)
            answer["index"] = at.index
            answer["warnings"] = [why] if why is not None else []

    def _state_of(self, _: ItemSpec, name: str) -> WorkState | None:
        done = self._finishing
        if done is not None and done.spec.id == name:
            return WorkState.COMPLETED
        item = self._find(name)
        return item.state if item is not None else None


BROKEN = (WorkState.FAILED, WorkState.CANCELLED)


def cyclic(dependencies: dict[str, tuple[str, ...]]) -> set[str]:
    """The names that lie on a cycle, or between two; what is not a key does not count."""
    below = {name: [one for one in names if one in dependencies] for name, names in dependencies.items()}
    left = _without_ends(below)
    above: dict[str, list[str]] = {name: [] for name in left}
    for name in left:
        for one in below[name]:
            if one in left:
                above[one].append(name)
    return _without_ends(above)


def _without_ends(edges: dict[str, list[str]]) -> set[str]:
    """The names from which one can walk for ever."""
    comers: dict[str, list[str]] = {}
    open_count = {name: len(targets) for name, targets in edges.items()}
    for name, targets in edges.items():
        for target in targets:
            comers.setdefault(target, []).append(name)
    ends = [name for name, count in open_count.items() if not count]
    while ends:
        name = ends.pop()
        del open_count[name]
        for comer in comers.get(name, ()):
            open_count[comer] -= 1
            if not open_count[comer]:
                ends.append(comer)
    return set(open_count)


def field_faults(new: NewItem, pointer: str, limits: Limits) -> list[Fault]:
    """Each field over a limit or out of its range."""
    faults = []
    if len(new.config) > limits.payload_bytes_max:
        told = f"{len(new.config)} bytes; at most {limits.payload_bytes_max} (payload_bytes_max)"
        faults.append(("too_large", f"{pointer}/config", told))
    if len(new.requirements) > limits.payload_bytes_max:
        told = f"{len(new.requirements)} bytes; at most {limits.payload_bytes_max} (payload_bytes_max)"
        faults.append(("too_large", f"{pointer}/requirements", told))
    if not 0 <= new.priority <= 100:
        faults.append(("invalid_field", f"{pointer}/priority", f"{new.priority} is not from 0 to 100"))
    if new.max_attempts < 1:
        faults.append(("invalid_field", f"{pointer}/max_attempts", f"{new.max_attempts} is less than 1"))
    if new.timeout_ms is not None and new.timeout_ms < 1:
        faults.append(("invalid_field", f"{pointer}/timeout_s", "must be more than 0, or null"))
    if new.on_dependency_failure not in FAILURE_POLICIES:
        told = f"{new.on_dependency_failure} is none of {', '.join(FAILURE_POLICIES)}"
        faults.append(("invalid_field", f"{pointer}/on_dependency_failure", told))
    if len(new.depends_on) > limits.depends_on_max:
        told = f"{len(new.depends_on)} ids; at most {limits.depends_on_max} (depends_on_max)"
        faults.append(("invalid_field", f"{pointer}/depends_on", told))
    if len(new.excluded_nodes) > limits.excluded_nodes_max:
        told = f"{len(new.excluded_nodes)} nodes; at most {limits.excluded_nodes_max} (excluded_nodes_max)"
        faults.append(("invalid_field", f"{pointer}/excluded_nodes", told))
    if new.requirements:
        fault = requirements_fault(new.requirements)
        if fault is not None:
            faults.append(("invalid_field", f"{pointer}/requirements", fault))
    return faults


def refusal(faults: Sequence[Fault]) -> Rejected:
    """All faults at once, under the code of the first."""
    code, _, told = faults[0]
    return Rejected(code, told, tuple((pointer, message) for _, pointer, message in faults))


def full(limit: str, value: int, told: str) -> Rejected:
    return Rejected("queue_full", f"{limit} of {value} is reached ({told}): wait until some are finished and retired")
