"""What time brings: leases and time limits that end, back-offs that are over, retirement, and the
news of final items travelling to those that depend on them."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from ringraft.state import commands as ops
from ringraft.state.decide.add import BROKEN
from ringraft.state.decide.item import cancelled, freed, lease_news, news_of, place, spent, unblocked_state
from ringraft.state.model import Done, Rejected, WorkState
from ringraft.state.records import AgendaRecord, Item, KeyId, KeyRecord
from ringraft.state.tables import At, Decision, News, Tables

KEY_RECHECK_MS = 1_000
"""A key whose leases should be over, but are not yet taken back, is looked at again after this."""


def item_due(tables: Tables, work_id: str, at: At) -> Decision:
    """The log time of an item has come."""
    item = tables.items[work_id]
    if item.is_leased:
        return _lease_over(tables, item, at)
    if item.end is not None:
        return _retire(tables, item)
    return _wake(item, at)


def item_due_by_wall(tables: Tables, work_id: str, at: At) -> Decision:
    """The ``not_before`` of an item has come."""
    return _wake(tables.items[work_id], at)


def _wake(item: Item, at: At) -> Decision:
    return Decision(Done({}), {item.spec.id: place(item, WorkState.PENDING, at)})


def _lease_over(tables: Tables, item: Item, at: At) -> Decision:
    grant, limits = item.grant, tables.limits
    assert grant is not None
    data = lease_news(item.spec, grant)
    timeout_ms = item.spec.new.timeout_ms
    if timeout_ms is not None and grant.started_log_ms is not None:
        if grant.started_log_ms + timeout_ms <= grant.expires_log_ms:
            reason = f"ran longer than {timeout_ms / 1000} s on {grant.node_id}"
            after = spent(item, at, limits, "timeout", reason=reason, is_delayed=True)
            return _ended(item, after, "WORK_TIMEOUT", data | {"attempt": after.attempt})
    reason = f"{grant.node_id} did not renew its lease of {grant.lease_ms / 1000} s"
    if item.state is WorkState.RUNNING:
        after = spent(item, at, limits, "expired", reason=reason)
    else:
        after = freed(item, at, limits, "expired", reason)
    return _ended(item, after, "WORK_EXPIRED", data | {"attempt": after.attempt})


def _ended(item: Item, after: Item, told: str, data: dict[str, object]) -> Decision:
    news: list[News] = [(told, data)]
    if after.state is WorkState.FAILED:
        news.append(("WORK_FAILED", data))
    return Decision(Done({}), {item.spec.id: after}, news)


def _retire(tables: Tables, item: Item) -> Decision:
    """The item goes, and with it the key it was added with, unless others of the same command are still there."""
    keys: dict[KeyId, KeyRecord | None] = {}
    key_id = tables.indexes.births.get(item.spec.seq)
    if key_id is not None and tables.indexes.births_left[key_id] == 1:
        keys[key_id] = None
    return Decision(Done({}), {item.spec.id: None}, (("WORK_RETIRED", news_of(item.spec)),), keys=keys)


def lives(tables: Tables, record: KeyRecord, log_ms: int) -> bool:
    """Whether a repeat of the key's command still gets the first outcome."""
    if record.until_log_ms is None or log_ms < record.until_log_ms:
        return True
    return any(is_leased_as(tables, work_id, token) for work_id, token in record.leases)


def is_leased_as(tables: Tables, work_id: str, token: int) -> bool:
    """Whether the lease that was granted with this token lives."""
    item = tables.items.get(work_id)
    return item is not None and item.is_leased and item.grant is not None and item.grant.token == token


def key_due(tables: Tables, key_id: KeyId, at: At) -> Decision:
    """A key's time has come; a claim's key waits for the last of its leases."""
    record = tables.keys[key_id]
    if not lives(tables, record, at.log_ms):
        return Decision(Done({}), keys={key_id: None})
    ends = [
        item.grant.expires_log_ms
        for work_id, token in record.leases
        if is_leased_as(tables, work_id, token) and (item := tables.items[work_id]).grant is not None
    ]
    recheck_log_ms = max(at.log_ms + KEY_RECHECK_MS, *ends)
    return Decision(Done({}), keys={key_id: replace(record, recheck_log_ms=recheck_log_ms)})


def settle(tables: Tables, agenda: AgendaRecord, count_max: int, at: At) -> tuple[Decision, int]:
    """Tell up to ``count_max`` dependents, oldest first, that an item is final. Also: how many were told."""
    order = agenda.order
    waiting = tables.indexes.dependents.get(agenda.work_id, [])
    source = tables.items.get(agenda.work_id)
    first = bisect_right(waiting, (agenda.after_seq + 1, ""))
    told = waiting[first : first + count_max]
    if source is None or source.end is None or not told:
        # Gone or taken back by a retry meanwhile: who has not heard of the end need not.
        return Decision(Done({}), agenda={order: None}), 0

    state_of = tables.dependency_state
    items: dict[str, Item | None] = {}
    news: list[News] = []
    for _, name in told:
        item = tables.items[name]
        if item.state is not WorkState.BLOCKED:
            continue
        state = unblocked_state(item.spec, state_of)
        if state is WorkState.CANCELLED:
            broken = next(one for one in item.spec.dependencies if state_of(item.spec, one) in BROKEN)
            reason = f"its dependency {broken} is {state_of(item.spec, broken)}"
            items[name], event = cancelled(item, at, tables.limits, reason)
            news.append(event)
        elif state is WorkState.PENDING:
            items[name] = place(item, state, at)
            news.append(("WORK_UNBLOCKED", news_of(item.spec)))
    is_over = first + len(told) == len(waiting)
    rest = None if is_over else replace(agenda, after_seq=told[-1][0])
    return Decision(Done({}), items, news, agenda={order: rest}), len(told)


def tick(tables: Tables, op: ops.Tick, at: At) -> Decision | Rejected:
    """Nothing but time, which has been taken in already."""
    return Decision(Done({}))
