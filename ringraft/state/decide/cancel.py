"""Cancel and retry: an item's end and new beginning by a user's word; of one item or of a group."""

from __future__ import annotations

from ringraft.state import commands as ops
from ringraft.state.decide.add import BROKEN, full
from ringraft.state.decide.item import cancelled, news_of, place, unblocked_state
from ringraft.state.model import Done, Rejected, WorkState
from ringraft.state.records import Grant, Item, ItemSpec, KeyRecord
from ringraft.state.tables import At, Decision, News, Tables


def _chosen(tables: Tables, op: ops.Cancel | ops.Retry) -> list[Item] | Rejected:
    """The items that the command names, oldest first."""
    if (op.work_id is None) == (op.group is None):
        return Rejected("invalid_field", "give work_id or group, one of them", (("", "give work_id or group"),))
    if op.work_id is not None:
        item = tables.item(op.work_id)
        return [item] if item is not None else Rejected("not_found", f"there is no work item {op.work_id}")
    assert op.group is not None
    members = [tables.items[name] for name in tables.indexes.groups.get(op.group, ())]
    return sorted(members, key=lambda item: item.spec.seq)


def _already_final(item: Item) -> Rejected:
    told = f"{item.spec.work_id} is {item.state.value} already"
    return Rejected("already_final", told, members={"state": item.state.value})


def _remembered(tables: Tables, at: At, count: int) -> KeyRecord | None:
    """What did nothing leaves no key."""
    return KeyRecord("", "", b"", b"", until_log_ms=at.log_ms + tables.limits.retention_ms) if count else None


def cancel(tables: Tables, op: ops.Cancel, at: At) -> Decision | Rejected:
    chosen = _chosen(tables, op)
    if isinstance(chosen, Rejected):
        return chosen
    if op.work_id is not None and chosen[0].is_final:
        return _already_final(chosen[0])
    items: dict[str, Item | None] = {}
    news: list[News] = []
    for item in chosen:
        if not item.is_final:
            items[item.spec.id], event = cancelled(item, at, tables.limits)
            news.append(event)
    count = len(items)
    return Decision(
        Done({"status": "cancelled", "count": count}), items, news, remembered=_remembered(tables, at, count)
    )


def retry(tables: Tables, op: ops.Retry, at: At) -> Decision | Rejected:
    chosen = _chosen(tables, op)
    if isinstance(chosen, Rejected):
        return chosen
    if op.work_id is not None and chosen[0].state is WorkState.COMPLETED:
        return _already_final(chosen[0])
    if op.work_id is not None and not chosen[0].is_final:
        told = f"{op.work_id} is {chosen[0].state.value}; only a FAILED or CANCELLED item can be retried"
        return Rejected("wrong_state", told, members={"state": chosen[0].state.value})
    back = {item.spec.id: item for item in chosen if item.state in BROKEN}
    fault = _check_unique_keys(tables, back) or _check_room(tables, back)
    if fault is not None:
        return fault

    def state_of(spec: ItemSpec, name: str) -> WorkState | None:
        dependency = tables.dependency(spec, name)
        if dependency is None:
            return None
        # Those that come back together count as live for each other, in whatever order they were added.
        return WorkState.PENDING if name in back else dependency.state

    items: dict[str, Item | None] = {}
    news: list[News] = []
    for name, item in back.items():
        state = unblocked_state(item.spec, state_of)
        fresh = item._replace(attempt=0, error=None, end=None, grant=_over(item.grant))
        if state is WorkState.CANCELLED:
            broken = next(one for one in item.spec.dependencies if state_of(item.spec, one) in BROKEN)
            told = f"its dependency {broken} is {state_of(item.spec, broken)}"
            items[name], event = cancelled(fresh, at, tables.limits, told)
            news.append(event)
        else:
            # The state changes in place(), which compares with the present one.
            items[name] = place(fresh._replace(state=WorkState.CANCELLED), state, at)
            news.append(("WORK_RETRIED", news_of(item.spec)))
    count = len(items)
    return Decision(Done({"status": "retried", "count": count}), items, news, remembered=_remembered(tables, at, count))


def _over(grant: Grant | None) -> Grant | None:
    """A late result is for an item that still waits through expiry, not for one that was taken back."""
    return grant._replace(verdict="retried") if grant is not None and grant.verdict == "expired" else grant


def _check_unique_keys(tables: Tables, back: dict[str, Item]) -> Rejected | None:
    """A unique key is for one live item, also among those that come back together."""
    seen: dict[str, str] = {}
    for item in back.values():
        key = item.spec.new.unique_key
        if key is None:
            continue
        other = seen.get(key) or tables.indexes.unique.get(key)
        if other is not None:
            return Rejected("conflict", f"{item.spec.work_id}: the unique_key {key} is taken by {other}, which is live")
        seen[key] = item.spec.id
    return None


def _check_room(tables: Tables, back: dict[str, Item]) -> Rejected | None:
    limits, indexes = tables.limits, tables.indexes
    shapes = {item.spec.shape for item in back.values()} - indexes.shapes.keys()
    if shapes and len(indexes.shapes) + len(shapes) > limits.shapes_max:
        return full("shapes_max", limits.shapes_max, "distinct requirements of live items")
    classes = {item.spec.shape[:2] for item in back.values()} - tables.classes.keys()
    if classes and len(tables.classes) + len(classes) > limits.classes_max:
        return full("classes_max", limits.classes_max, "classes of live items")
    waiting: dict[str, int] = {}
    for item in back.values():
        for name in item.spec.dependencies:
            waiting[name] = waiting.get(name, 0) + 1
    for name, count in waiting.items():
        if len(indexes.dependents.get(name, ())) + count > limits.dependents_max:
            return full("dependents_max", limits.dependents_max, f"live items that depend on {name}")
    return None
