"""Who gets what: which items may go to a node, and in which order a claim takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

from ringraft.state.indexes import ClassIndex, Shape
from ringraft.state.matching import mismatch
from ringraft.state.model import Limits
from ringraft.state.records import ClassKey, NodeRecord, ShapeKey
from ringraft.state.tables import Tables

TURN = 1 << 16
"""Virtual time that one grant costs a class of weight 1."""

SATISFIABLE_MAX = 8192
"""Shapes whose satisfiability is remembered."""


def refused_because(shape: ShapeKey, node_id: str, capabilities: bytes) -> str | None:
    """Why a node (lower-case id) may not have items of a shape, or None: the first of target_node,
    excluded_nodes, gpu, cpus, memory_gb, labels."""
    _, _, requirements, target, excluded = shape
    if target is not None and target != node_id:
        return "target_node"
    if node_id in excluded:
        return "excluded_nodes"
    return mismatch(requirements, capabilities)


def worker_refused_because(shape: ShapeKey, node: NodeRecord) -> str | None:
    """As ``refused_because`` for a registered worker, which may offer only some work types."""
    if node.work_types is not None and shape[0] not in node.work_types:
        return "work_type"
    return refused_because(shape, node.node_id.lower(), node.capabilities)


def unsatisfiable_because(tables: Tables, shape: ShapeKey) -> str | None:
    """Why no registered worker could ever run items of this shape, or None when one could."""
    memo = tables.satisfiable
    if shape not in memo:
        if len(memo) >= SATISFIABLE_MAX:
            memo.clear()
        memo[shape] = _ask_all_workers(tables, shape)
    return memo[shape]


def _ask_all_workers(tables: Tables, shape: ShapeKey) -> str | None:
    workers = 0
    reasons: dict[str, int] = {}
    for node in tables.nodes.values():
        if node.is_worker:
            why = worker_refused_because(shape, node)
            if why is None:
                return None
            workers += 1
            reasons[why] = reasons.get(why, 0) + 1
    if not workers:
        return "no worker is registered yet"
    told = ", ".join(f"{count} by {why}" for why, count in sorted(reasons.items()))
    return f"none of the {workers} registered workers can run it (refused {told})"


def offered_classes(tables: Tables, work_types: tuple[str, ...] | None) -> Iterator[tuple[ClassKey, ClassIndex]]:
    """The classes with ready items of these work types."""
    for key, of_class in tables.indexes.classes.items():
        if of_class.ready and (work_types is None or key[0] in work_types):
            yield key, of_class


class Queue:
    """The items of one class that one node may have: strictly by priority, then age."""

    __slots__ = ("_heads", "_is_taken", "_left")

    def __init__(self, shapes: list[Shape]) -> None:
        # (entry, shape number, shape, walk): the entry decides, because no two items share one.
        self._heads: list[tuple[tuple[Any, ...], int, Shape, Iterator[tuple[Any, ...]] | None]] = []
        for number, shape in enumerate(shapes):
            top = shape.ready.top()
            assert top is not None
            self._heads.append((top, number, shape, None))
        heapify(self._heads)
        self._left = sum(len(shape.ready) for shape in shapes)
        self._is_taken = False
        """The first head is; what follows it is looked for when somebody asks for more."""

    def take(self) -> str:
        """The id of the best; there must be one."""
        if self._is_taken:
            self._go_on()
        self._is_taken = True
        self._left -= 1
        name: str = self._heads[0][0][-1]
        return name

    def _go_on(self) -> None:
        _, number, shape, walk = self._heads[0]
        if walk is None:
            walk = shape.ready.walk()
            next(walk)
        following = next(walk, None)
        if following is not None:
            heapreplace(self._heads, (following, number, shape, walk))
        else:
            heappop(self._heads)

    def __bool__(self) -> bool:
        return self._left > 0


class Turns:
    """Takes items class by class: the class with the earliest turn first, ties by name."""

    def __init__(self, tables: Tables, work_types: tuple[str, ...] | None, node_id: str, capabilities: bytes) -> None:
        self.clock = tables.clock
        self.turns: dict[ClassKey, int] = {}
        """The next turn of each class that had one."""
        self._waiting: list[tuple[int, ClassKey, Queue]] = []
        for key, of_class in offered_classes(tables, work_types):
            shapes = [
                shape for shape in of_class.shapes.values() if refused_because(shape.key, node_id, capabilities) is None
            ]
            if shapes:
                self._waiting.append((tables.classes[key].turn, key, Queue(shapes)))
        heapify(self._waiting)

    def take(self) -> str | None:
        """The id of the next item, or None when nothing is left."""
        if not self._waiting:
            return None
        turn, key, queue = heappop(self._waiting)
        work_id = queue.take()
        self.clock = max(self.clock, turn)
        self.turns[key] = turn + TURN
        if queue:
            heappush(self._waiting, (turn + TURN, key, queue))
        return work_id


def backoff_ms(limits: Limits, attempt: int, index: int, work_id: str) -> int:
    """How long an item waits after its ``attempt``-th failure: doubling, capped, between half and whole."""
    whole_ms = min(limits.backoff_cap_ms, limits.backoff_base_ms << min(max(attempt - 1, 0), 40))
    jitter = int.from_bytes(hashlib.sha256(f"{index}:{work_id}".encode()).digest()[:4], "big")
    return whole_ms * ((1 << 32) + jitter) >> 33
