"""Why an item is where it is: GET /work/why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ringraft.state.decide.claim import room_for
from ringraft.state.model import FINAL, LEASED, WorkState
from ringraft.state.policy import unsatisfiable_because, worker_refused_because
from ringraft.state.records import ClassKey, Item, NodeRecord, ShapeKey
from ringraft.state.tables import Tables
from ringraft.state.view import rfc3339

POSITION_LOOKS_MAX = 10_000
"""Ready items that are counted to find an item's place; beyond it the place is not told."""

PAIR_LOOKS_MAX = 10_000
"""Pairs of worker and shape that one answer compares to find what competes for the same workers."""

NAMES_SHOWN = 3
"""Of nodes and classes; a sentence counts the others."""

DOWN, LEASES = "down", "leases"
"""Why a worker that fits gets nothing now; the other rejections are those of ``worker_refused_because``."""

Reason = tuple[str, str]
"""(code, detail)."""


def why(tables: Tables, one: Item) -> dict[str, Any]:
    """The reasons in the order of the ladder, the one that decides first; each worker that would be refused.

    The ladder, as far as it can occur: Deactivated, NotBefore, DependencyWait, DependencyFailed,
    Unsatisfiable, NoMatchingWorker, WorkersUnhealthy, QuotaExceeded, FairShare, LowerPriority,
    RetryBackoff, Ready. Who is leased has no reason; Ready stands alone.
    """
    is_waiting = one.state in (WorkState.PENDING, WorkState.BLOCKED)
    rejections = _rejections(tables, one) if is_waiting else {}
    fitting = [
        node
        for node in tables.nodes.values()
        if node.is_worker and rejections.get(node.node_id) in (None, DOWN, LEASES)
    ]
    position = _position(tables, one, fitting) if one.is_ready else None
    reasons = list(_reasons(tables, one, rejections))
    if one.is_ready:
        reasons += _order_reasons(_rivals(tables, one, fitting), position)
    if one.wake_log_ms is not None:
        spent = f"{one.attempt} of {one.spec.new.max_attempts} attempts are spent"
        reasons.append(("RetryBackoff", f"{spent}, the next may begin at {rfc3339(one.wake_wall_ms)}"))
    if not reasons and is_waiting:
        reasons.append(("Ready", "it is next: the first worker that fits and asks for work gets it"))
    return {
        "work_id": one.spec.work_id,
        "state": one.state.value,
        "reasons": [{"code": code, "detail": detail} for code, detail in reasons],
        "rejections": rejections,
        "position": position,
        "estimate_s": None,
    }


def _reasons(tables: Tables, one: Item, rejections: dict[str, str]) -> Iterator[Reason]:
    """What holds it back whatever else is waiting."""
    if one.state in FINAL:
        yield "Deactivated", f"it is {one.state.value}" + (f": {one.error}" if one.error else "")
    if one.state in FINAL or one.state in LEASED:
        return
    held_until_ms = _held_until_wall_ms(tables, one)
    if held_until_ms is not None:
        yield "NotBefore", f"it waits until {rfc3339(held_until_ms)}"
    if one.state is WorkState.BLOCKED:
        yield from _dependency_reasons(tables, one)
    yield from _worker_reasons(tables, one, rejections)


def _held_until_wall_ms(tables: Tables, one: Item) -> int | None:
    """The ``not_before`` that still lies ahead. A waiting item is held until an entry brings the time."""
    if one.wake_wall_ms is not None and one.wake_log_ms is None:
        return one.wake_wall_ms
    not_before_ms = one.spec.new.not_before_wall_ms
    return not_before_ms if not_before_ms is not None and not_before_ms > tables.wall_ms else None


def _dependency_reasons(tables: Tables, one: Item) -> Iterator[Reason]:
    waits: list[str] = []
    broken: list[str] = []
    for name in one.spec.dependencies:
        dependency = tables.dependency(one.spec, name)
        if dependency is None or dependency.state is WorkState.COMPLETED:
            continue
        told = f"{dependency.spec.work_id} ({dependency.state.value})"
        if dependency.state not in FINAL:
            waits.append(told)
        elif one.spec.new.on_dependency_failure != "run":
            broken.append(told)
    if waits:
        yield "DependencyWait", f"it waits for {', '.join(waits)}"
    if broken:
        yield "DependencyFailed", f"{', '.join(broken)}: retry what failed, or cancel this one"
    if not waits and not broken:
        yield "DependencyWait", "what it waited for is over: one of the next log entries lets it go on"


def _worker_reasons(tables: Tables, one: Item, rejections: dict[str, str]) -> Iterator[Reason]:
    """Why no registered worker could take it now, if none could."""
    workers = [node for node in tables.nodes.values() if node.is_worker]
    if any(node.node_id not in rejections for node in workers):
        return
    new, codes = one.spec.new, set(rejections.values())
    if not workers:
        yield "NoMatchingWorker", "no worker is registered yet: start one"
    elif codes == {"work_type"}:
        told = f"none of the {len(workers)} registered workers offers {new.work_type}"
        yield "NoMatchingWorker", f"{told}: start one that has an executor for it"
    elif codes <= {"work_type", "target_node"}:
        told = f"its target_node {new.target_node} is not registered as a worker that offers {new.work_type}"
        yield "Unsatisfiable", f"{told}: start that one, or add the item for another"
    elif not codes & {DOWN, LEASES}:
        told = unsatisfiable_because(tables, one.spec.shape) or "no registered worker can run it"
        yield "Unsatisfiable", f"{told}: start a worker that can, or add the item so that one of these can"
    elif LEASES in codes:
        limit = tables.limits.node_leases_max
        told = f"every worker that fits and is up holds all the leases it may have (node_leases_max of {limit})"
        yield "QuotaExceeded", f"{told}: start another"
    else:
        down = [node_id for node_id, code in rejections.items() if code == DOWN]
        yield "WorkersUnhealthy", f"every worker that fits is down ({_listed(down)}): bring one back, or start another"


def _order_reasons(rivals: Sequence[ClassKey], position: int | None) -> Iterator[Reason]:
    """What goes before it where a worker could take both."""
    if rivals:
        names = _listed(["/".join(part for part in key if part) for key in rivals])
        yield "FairShare", f"classes take turns, and it is the turn of {names}"
    if position is None:
        yield "LowerPriority", f"more than {POSITION_LOOKS_MAX} items of its class go first"
    elif position == 1:
        yield "LowerPriority", "1 item of its class goes first"
    elif position > 1:
        yield "LowerPriority", f"{position} items of its class go first"


def _rivals(tables: Tables, one: Item, fitting: Sequence[NodeRecord]) -> list[ClassKey]:
    """The classes whose turn comes before its own at a worker that fits, the earliest first."""
    own = one.spec.shape[:2]
    own_turn = (tables.classes[own].turn, own)
    earlier = sorted(
        (tables.classes[key].turn, key)
        for key, of_class in tables.indexes.classes.items()
        if of_class.ready and (tables.classes[key].turn, key) < own_turn
    )
    rivals: list[ClassKey] = []
    looks_left = PAIR_LOOKS_MAX
    for _, key in earlier:
        shapes = tables.indexes.classes[key].shapes
        looks_left -= len(shapes) * len(fitting)
        if looks_left < 0:
            break
        if any(_can_take(shape, fitting) for shape in shapes):
            rivals.append(key)
    return rivals


def _can_take(shape: ShapeKey, nodes: Sequence[NodeRecord]) -> bool:
    return any(worker_refused_because(shape, node) is None for node in nodes)


def _listed(names: Sequence[str]) -> str:
    """``a, b, c and 4 more``."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{shown} and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown


def _rejections(tables: Tables, one: Item) -> dict[str, str]:
    """node -> the first reason why it would not get the item, for the workers with one."""
    result = {}
    for node in tables.nodes.values():
        if not node.is_worker:
            continue
        code = worker_refused_because(one.spec.shape, node)
        if code is None and not node.is_up:
            code = DOWN
        if code is None and room_for(tables, node.node_id) < 1:
            code = LEASES
        if code is not None:
            result[node.node_id] = code
    return dict(sorted(result.items()))


def _position(tables: Tables, one: Item, fitting: Sequence[NodeRecord]) -> int | None:
    """How many ready items of its class go before it; None when that is more than are counted.

    What none of the workers that fit may have does not count, as long as there are such workers, and few
    enough to ask.
    """
    own = (-one.spec.new.priority, one.spec.seq, one.spec.id)
    shapes = tables.indexes.classes[one.spec.shape[:2]].shapes
    do_ask = 0 < len(fitting) * len(shapes) <= PAIR_LOOKS_MAX
    ahead = 0
    for key, shape in shapes.items():
        if do_ask and not _can_take(key, fitting):
            continue
        for entry in shape.ready.walk():
            if entry >= own:
                break
            ahead += 1
            if ahead > POSITION_LOOKS_MAX:
                return None
    return ahead
