"""What is derived from the records, so that no command scans them.

Nothing here is in the snapshot or the digest: ``restore`` builds it again by the same calls. All
orders are total (age, name), so that two replicas with equal records answer alike, however their
indexes came about. Only ``machine`` calls what changes an index.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any

from ringraft.state.lazyheap import LazyHeap
from ringraft.state.model import LEASED, WorkState
from ringraft.state.order import AgeOrder
from ringraft.state.records import ClassKey, Item, ItemSpec, KeyId, KeyRecord, ShapeKey

READY = "Ready"
NOT_BEFORE = "NotBefore"
RETRY_BACKOFF = "RetryBackoff"


class ClassIndex:
    """How many items of a class are live and ready, and its shapes that have ready ones."""

    __slots__ = ("key", "live", "ready", "shapes")

    def __init__(self, key: ClassKey) -> None:
        self.key = key
        self.live = 0
        self.ready = 0
        self.shapes: dict[ShapeKey, Shape] = {}


class Shape:
    """Live items that can go to the same nodes; ``ready`` holds (-priority, seq, id) of the ready ones."""

    __slots__ = ("key", "live", "of_class", "ready")

    def __init__(self, key: ShapeKey, of_class: ClassIndex) -> None:
        self.key = key
        self.live = 0
        self.of_class = of_class
        self.ready = LazyHeap()


def standing(item: Item) -> str:
    """The item's state, PENDING told apart by what it waits for."""
    if item.state is not WorkState.PENDING:
        return item.state
    if item.wake_log_ms is not None:
        return RETRY_BACKOFF
    return READY if item.wake_wall_ms is None else NOT_BEFORE


class Indexes:
    """All indexes over one ``items`` dictionary, which the caller keeps up."""

    def __init__(self, items: dict[str, Item]) -> None:
        self._items = items
        self.shapes: dict[ShapeKey, Shape] = {}
        self.classes: dict[ClassKey, ClassIndex] = {}
        self.classes_before: dict[ClassKey, int] = {}
        """Ready count before the present installation, of each class that it changed."""
        self.log_timers = LazyHeap()
        """(log_ms, seq, id): lease ends, time limits, back-offs, retirements."""
        self.wall_timers = LazyHeap()
        """(wall_ms, seq, id): items held by ``not_before``."""
        self.key_timers = LazyHeap()
        """(log_ms, key id)."""
        self.pending = LazyHeap()
        """(seq, id) of every PENDING item."""
        self.order = AgeOrder()
        self.unique: dict[str, str] = {}
        """unique_key -> id of the live item that has it."""
        self.groups: dict[str, dict[str, None]] = {}
        self.dependents: dict[str, list[tuple[int, str]]] = {}
        """id -> (seq, id) of the live items that depend on it, oldest first."""
        self.leases: dict[str, dict[str, None]] = {}
        """node id in lower case -> ids it holds."""
        self.counts: dict[tuple[str, str], int] = {}
        """(work_type, standing) -> items."""
        self.births: dict[int, KeyId] = {}
        """seq -> the idempotency key that the item was added with."""
        self.births_left: dict[KeyId, int] = {}

    def holders(self) -> Iterator[dict[Any, Any] | list[Any]]:
        """Every container that grows with the number of items or keys, for whoever takes the state apart."""
        heaps = [self.log_timers, self.wall_timers, self.key_timers, self.pending]
        for heap in [*heaps, *(shape.ready for shape in self.shapes.values())]:
            yield from heap.holders()
        yield from self.order.holders()
        # A class and its shapes hold each other: taken apart, they leave no cycle.
        yield from (of_class.shapes for of_class in self.classes.values())
        yield from (self.unique, self.groups, self.dependents, self.leases, self.births, self.births_left)

    # -- items -------------------------------------------------------------------------------------------------

    def replace(self, old: Item | None, new: Item | None) -> None:
        """Follow one change of ``items``; an item never changes its spec while it is held."""
        either = old if new is None else new
        assert either is not None
        spec = either.spec
        was, now = standing(old) if old is not None else None, standing(new) if new is not None else None
        if old is None:
            self._enter(spec)
        if was != now:
            was_live, is_live = old is not None and old.end is None, new is not None and new.end is None
            shape = self._shape(spec) if was_live or is_live else None
            if is_live and not was_live and shape is not None:
                self._join(spec, shape)
            self._move(spec, was, now, old, new, shape)
            if was_live and not is_live and shape is not None:
                self._part(spec, shape)
        if new is None:
            self._leave(spec)
        self._arm(spec, new)

    def _enter(self, spec: ItemSpec) -> None:
        self.order.append(spec.seq, spec.id)
        if spec.new.group is not None:
            self.groups.setdefault(spec.new.group, {})[spec.id] = None

    def _leave(self, spec: ItemSpec) -> None:
        self.order.remove(spec.seq)
        group = spec.new.group
        if group is not None:
            del self.groups[group][spec.id]
            if not self.groups[group]:
                del self.groups[group]
        key_id = self.births.pop(spec.seq, None)
        if key_id is not None:
            self.births_left[key_id] -= 1

    def _shape(self, spec: ItemSpec) -> Shape:
        """The shape of an item that is live now or was; its class is noted as changed."""
        shape = self.shapes.get(spec.shape)
        if shape is None:
            class_key = spec.shape[:2]
            of_class = self.classes.get(class_key)
            if of_class is None:
                of_class = self.classes[class_key] = ClassIndex(class_key)
            shape = self.shapes[spec.shape] = Shape(spec.shape, of_class)
        of_class = shape.of_class
        if of_class.key not in self.classes_before:
            self.classes_before[of_class.key] = of_class.ready
        return shape

    def _join(self, spec: ItemSpec, shape: Shape) -> None:
        """The item is live from now on."""
        spec.share(shape.key)
        shape.live += 1
        shape.of_class.live += 1
        if spec.new.unique_key is not None:
            self.unique[spec.new.unique_key] = spec.id
        for name in spec.dependencies:
            waiting = self.dependents.setdefault(name, [])
            insort(waiting, (spec.seq, spec.id))
            if len(waiting) == 1:
                self.log_timers.drop(name) if self._is_final(name) else None

    def _part(self, spec: ItemSpec, shape: Shape) -> None:
        """The item is live no longer."""
        shape.live -= 1
        if not shape.live:
            del self.shapes[spec.shape]
        shape.of_class.live -= 1
        if spec.new.unique_key is not None:
            del self.unique[spec.new.unique_key]
        for name in spec.dependencies:
            waiting = self.dependents[name]
            del waiting[bisect_left(waiting, (spec.seq, spec.id))]
            if not waiting:
                del self.dependents[name]
                dependency = self._items.get(name)
                if dependency is not None:
                    self._arm(dependency.spec, dependency)

    def _is_final(self, name: str) -> bool:
        item = self._items.get(name)
        return item is not None and item.end is not None

    def _move(
        self, spec: ItemSpec, was: str | None, now: str | None, old: Item | None, new: Item | None, shape: Shape | None
    ) -> None:
        work_type = spec.new.work_type
        if was is not None:
            left = self.counts[work_type, was] - 1
            if left:
                self.counts[work_type, was] = left
            else:
                del self.counts[work_type, was]
        if now is not None:
            self.counts[work_type, now] = self.counts.get((work_type, now), 0) + 1
        if shape is not None and (was == READY or now == READY):
            self._move_ready(spec, shape, now == READY)
        was_state, is_state = old.state if old is not None else None, new.state if new is not None else None
        was_pending, is_pending = was_state is WorkState.PENDING, is_state is WorkState.PENDING
        if is_pending and not was_pending:
            self.pending.put(spec.id, (spec.seq, spec.id))
        elif was_pending and not is_pending:
            self.pending.drop(spec.id)
        was_leased, is_leased = was_state in LEASED, is_state in LEASED
        if is_leased and not was_leased:
            assert new is not None and new.grant is not None
            self.leases.setdefault(new.grant.node_id.lower(), {})[spec.id] = None
        elif was_leased and not is_leased:
            assert old is not None and old.grant is not None
            node_id = old.grant.node_id.lower()
            held = self.leases[node_id]
            del held[spec.id]
            if not held:
                del self.leases[node_id]

    def _move_ready(self, spec: ItemSpec, shape: Shape, is_ready: bool) -> None:
        of_class = shape.of_class
        if is_ready:
            if not shape.ready:
                of_class.shapes[spec.shape] = shape
            shape.ready.put(spec.id, (-spec.new.priority, spec.seq, spec.id))
            of_class.ready += 1
        else:
            shape.ready.drop(spec.id)
            of_class.ready -= 1
            if not shape.ready:
                del of_class.shapes[spec.shape]

    def _arm(self, spec: ItemSpec, item: Item | None) -> None:
        log_ms = wall_ms = None
        if item is not None:
            if item.wake_wall_ms is not None:
                wall_ms = item.due_wall_ms()
            # What a live item depends on is kept: its timer comes back with the last dependent's end.
            if item.end is None or spec.id not in self.dependents:
                log_ms = item.due_log_ms()
        _arm_one(self.log_timers, log_ms, spec)
        if wall_ms is not None or self.wall_timers:
            _arm_one(self.wall_timers, wall_ms, spec)

    # -- keys --------------------------------------------------------------------------------------------------

    def replace_key(self, key_id: KeyId, new: KeyRecord | None) -> None:
        """Follow one change of the keys."""
        if new is None:
            self.key_timers.drop(key_id)
            self.births_left.pop(key_id, None)
            return
        due_ms = new.due_log_ms()
        if due_ms is not None:
            self.key_timers.put(key_id, (due_ms, key_id))
        if new.births:
            # In an image some of them may have retired.
            births = [seq for seq in new.births if self.order.has(seq)]
            self.births_left[key_id] = len(births)
            for seq in births:
                self.births[seq] = key_id


def _arm_one(timers: LazyHeap, due_ms: int | None, spec: ItemSpec) -> None:
    present = timers.live.get(spec.id)
    if due_ms is None:
        if present is not None:
            timers.drop(spec.id)
    elif present is None or present[0] != due_ms:
        timers.put(spec.id, (due_ms, spec.seq, spec.id))
