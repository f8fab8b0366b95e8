"""The state in the API's shapes: plain dictionaries, times as RFC 3339 UTC, durations in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import msgpack

from ringraft.state.indexes import NOT_BEFORE, READY, RETRY_BACKOFF
from ringraft.state.model import FINAL, LEASED, HistoryEntry, WorkState
from ringraft.state.records import Item
from ringraft.state.tables import Tables

PAGE_LOOKS_MAX = 10_000
"""Items that one page looks at."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=4096)
def rfc3339(wall_ms: int | None) -> str | None:
    """``2026-11-23T18:47:52.123Z``; None for None. Kept, because what happened in one entry has one time."""
    if wall_ms is None:
        return None
    return f"{_to_the_second(wall_ms // 1000)}.{wall_ms % 1000:03d}Z"


@lru_cache(maxsize=4096)
def _to_the_second(wall_s: int) -> str:
    """Kept, because the times of neighbouring items share their second and every item has five of them."""
    return (EPOCH + timedelta(seconds=wall_s)).isoformat()[:-6]


def seconds(duration_ms: int) -> float | int:
    return duration_ms // 1000 if duration_ms % 1000 == 0 else duration_ms / 1000


def unpacked(packed: bytes | None) -> Any:
    return None if not packed else msgpack.unpackb(packed, strict_map_key=False)


def item(one: Item) -> dict[str, Any]:
    """A work item as GET /work/item shows it."""
    # A claim of a hundred shows a hundred of these: what is mostly absent is asked for before it is called for.
    spec, state, grant, end = one.spec, one.state, one.grant, one.end
    new = spec.new
    lease = started_at = None
    if grant is not None:
        if state in LEASED:
            expires_at = rfc3339(grant.expires_wall_ms)
            lease = {"node_id": grant.node_id, "token": grant.token, "expires_at": expires_at}
        if grant.started_wall_ms is not None and (state is WorkState.RUNNING or state in FINAL):
            started_at = rfc3339(grant.started_wall_ms)
    not_before_ms = new.not_before_wall_ms if one.wake_wall_ms is None else one.wake_wall_ms
    return {
        "work_id": spec.work_id,
        "work_type": new.work_type,
        "config": unpacked(new.config) or {},
        "priority": new.priority,
        "state": str(state),
        "attempt": one.attempt,
        "max_attempts": new.max_attempts,
        "timeout_s": None if new.timeout_ms is None else seconds(new.timeout_ms),
        "depends_on": list(new.depends_on),
        "on_dependency_failure": new.on_dependency_failure,
        "not_before": None if not_before_ms is None else rfc3339(not_before_ms),
        "requirements": (unpacked(new.requirements) or {}) if new.requirements else {},
        "target_node": new.target_node,
        "excluded_nodes": list(new.excluded_nodes),
        "unique_key": new.unique_key,
        "group": new.group,
        "parent": spec.parent,
        "gang": None,
        "created_at": rfc3339(spec.created_wall_ms),
        "started_at": started_at,
        "finished_at": None if end is None else rfc3339(end.wall_ms),
        "lease": lease,
        "progress": None if one.progress is None else unpacked(one.progress),
        "result": None if end is None else unpacked(end.result),
        "error": one.error,
        "artifacts": None if end is None else unpacked(end.artifacts),
        "history": [_attempt(entry) for entry in one.history] if one.history else [],
    }


def _attempt(entry: HistoryEntry) -> dict[str, Any]:
    return {
        "attempt": entry.attempt,
        "node_id": entry.node_id,
        "token": entry.token,
        "outcome": entry.outcome,
        "reason": entry.reason,
        "at": rfc3339(entry.at_wall_ms),
    }


class Filter(NamedTuple):
    """Which items a list is to have; None leaves a question open."""

    state: str | None
    work_type: str | None
    group: str | None
    node_id: str | None

    def takes(self, one: Item) -> bool:
        if self.state is not None and one.state.value != self.state:
            return False
        if self.work_type is not None and one.spec.new.work_type != self.work_type:
            return False
        if self.group is not None and one.spec.new.group != self.group:
            return False
        if self.node_id is None:
            return True
        return one.is_leased and one.grant is not None and one.grant.node_id.lower() == self.node_id.lower()


def page(tables: Tables, wanted: Filter, cursor: str | None, limit: int) -> tuple[list[Item], str | None]:
    """Up to ``limit`` items, oldest first, and where to go on. ValueError for a cursor that is none."""
    after = -1
    if cursor is not None:
        if not cursor.isascii() or not cursor.isdigit():
            raise ValueError(f"{cursor!r} is no cursor: take next_cursor of the page before")
        after = int(cursor)
    found: list[Item] = []
    for looks, (seq, name) in enumerate(_candidates(tables, wanted, after)):
        if len(found) >= limit or looks >= PAGE_LOOKS_MAX:
            return found, str(after)
        after = seq
        one = tables.items[name]
        if wanted.takes(one):
            found.append(one)
    return found, None


def _candidates(tables: Tables, wanted: Filter, after: int) -> Iterator[tuple[int, str]]:
    """(seq, id) of the items to look at: the smallest set that an index knows, oldest first."""
    indexes = tables.indexes
    names: dict[str, None] | None = None
    if wanted.node_id is not None:
        names = indexes.leases.get(wanted.node_id.lower(), {})
    elif wanted.group is not None:
        names = indexes.groups.get(wanted.group, {})
    if names is None:
        return indexes.order.after(after)
    pairs = sorted((tables.items[name].spec.seq, name) for name in names)
    return (pair for pair in pairs if pair[0] > after)


def work_status(tables: Tables) -> dict[str, Any]:
    """GET /work/status, all but the rates."""
    by_status = {state.value: 0 for state in WorkState}
    by_type: dict[str, int] = {}
    for (work_type, standing), count in sorted(tables.indexes.counts.items()):
        state = WorkState.PENDING.value if standing in (READY, NOT_BEFORE, RETRY_BACKOFF) else standing
        by_status[state] += count
        by_type[work_type] = by_type.get(work_type, 0) + count
    oldest = tables.indexes.pending.top()
    oldest_age_s = None
    if oldest is not None:
        oldest_age_s = max(0, tables.wall_ms - tables.items[oldest[-1]].spec.created_wall_ms) / 1000
    total, items_max = len(tables.items), tables.limits.items_max
    return {
        "total_items": total,
        "by_status": by_status,
        "by_type": by_type,
        "pending": by_status["PENDING"],
        "running": by_status["RUNNING"],
        "oldest_pending_age_s": oldest_age_s,
        "backpressure": {"active": total >= items_max, "items": total, "items_max": items_max},
        "leases_by_node": {
            _spelled(tables, node_id): len(held) for node_id, held in sorted(tables.indexes.leases.items())
        },
    }


def _spelled(tables: Tables, node_id: str) -> str:
    """A node id as the node writes it."""
    record = tables.nodes.get(node_id)
    if record is not None:
        return record.node_id
    held = tables.items[next(iter(tables.indexes.leases[node_id]))].grant
    return node_id if held is None else held.node_id
