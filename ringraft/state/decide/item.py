"""The steps in an item's life that more than one command takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringraft.state.model import FINAL, HistoryEntry, Limits, Rejected, WorkState
from ringraft.state.policy import backoff_ms
from ringraft.state.records import End, Grant, Item, ItemSpec
from ringraft.state.tables import At, News, Tables


def news_of(spec: ItemSpec) -> dict[str, Any]:
    """The data that every event about an item has."""
    data: dict[str, Any] = {"work_id": spec.work_id, "work_type": spec.new.work_type}
    if spec.new.group is not None:
        data["group"] = spec.new.group
    return data


def lease_news(spec: ItemSpec, grant: Grant) -> dict[str, Any]:
    """The data of an event about an item and the node that holds or held it."""
    new = spec.new
    if new.group is None:
        return {"work_id": spec.work_id, "work_type": new.work_type, "node_id": grant.node_id, "token": grant.token}
    return {**news_of(spec), "node_id": grant.node_id, "token": grant.token}


def unblocked_state(spec: ItemSpec, state_of: Callable[[ItemSpec, str], WorkState | None]) -> WorkState:
    """PENDING, BLOCKED or CANCELLED: what the present states of its dependencies make of a live item
    without a lease. A dependency that is gone is nothing to wait for."""
    policy = spec.new.on_dependency_failure
    result = WorkState.PENDING
    for name in spec.dependencies:
        state = state_of(spec, name)
        if state is None or state is WorkState.COMPLETED:
            continue
        if state in FINAL:
            if policy == "cancel":
                return WorkState.CANCELLED
            if policy == "run":
                continue
        result = WorkState.BLOCKED
        if policy != "cancel":
            break
    return result


def place(item: Item, state: WorkState, at: At) -> Item:
    """The item as PENDING or BLOCKED; a PENDING one waits for its ``not_before`` if that lies ahead."""
    wake_wall_ms = None
    if state is WorkState.PENDING:
        not_before_ms = item.spec.new.not_before_wall_ms
        if not_before_ms is not None and not_before_ms > at.wall_ms:
            wake_wall_ms = not_before_ms
    if item.state is state and item.wake_wall_ms == wake_wall_ms and item.wake_log_ms is None and item.end is None:
        return item
    return item._replace(state=state, wake_log_ms=None, wake_wall_ms=wake_wall_ms, end=None)


def cancelled(item: Item, at: At, limits: Limits, reason: str | None = None) -> tuple[Item, News]:
    """The item as CANCELLED, whatever live state it is in."""
    grant, history, error = item.grant, item.history, item.error
    data = news_of(item.spec)
    if grant is not None:
        if item.is_leased:
            history = longer(item, at, limits, "cancelled", reason)
            data = lease_news(item.spec, grant)
        if grant.verdict in ("", "expired"):
            # A late result is for an item that still waits through expiry, not for one taken back later.
            grant = grant._replace(verdict="cancelled")
    if reason is not None:
        error = reason
        data["reason"] = reason
    done = Item(
        item.spec,
        WorkState.CANCELLED,
        item.attempt,
        None,
        None,
        grant,
        item.progress,
        error,
        history,
        End(at.wall_ms, at.log_ms + limits.retention_ms),
    )
    return done, ("WORK_CANCELLED", data)


def ordinal(item: Item) -> int:
    """Which attempt the newest grant is, from 1. An expiry that found it started has spent it already."""
    grant = item.grant
    assert grant is not None
    is_spent = grant.verdict == "expired" and grant.started_log_ms is not None
    return item.attempt if is_spent else item.attempt + 1


def longer(item: Item, at: At, limits: Limits, outcome: str, reason: str | None = None) -> tuple[HistoryEntry, ...]:
    """The item's history with the end of its newest grant; the oldest entries go beyond the limit."""
    grant = item.grant
    assert grant is not None
    entry = HistoryEntry(ordinal(item), grant.node_id, grant.token, outcome, reason, at.wall_ms)
    return (*item.history, entry)[-limits.history_max :] if item.history else (entry,)


def freed(item: Item, at: At, limits: Limits, outcome: str, reason: str | None = None) -> Item:
    """The lease ended without spending an attempt: PENDING again, at once."""
    grant = item.grant
    assert grant is not None
    back = item._replace(grant=grant._replace(verdict=outcome), history=longer(item, at, limits, outcome, reason))
    return place(back, WorkState.PENDING, at)


def spent(
    item: Item,
    at: At,
    limits: Limits,
    outcome: str,
    *,
    reason: str,
    is_last: bool = False,
    is_delayed: bool = False,
    verb: str = "",
) -> Item:
    """An attempt went wrong: PENDING again, after a back-off if ``is_delayed``, or FAILED when none is left."""
    grant = item.grant
    assert grant is not None
    history = longer(item, at, limits, outcome, reason)
    attempt = ordinal(item)
    if is_last or attempt >= item.spec.new.max_attempts:
        verdict = "failed" if verb else outcome
        end = End(at.wall_ms, at.log_ms + limits.retention_ms, verb, grant.token if verb else None)
        return Item(
            item.spec,
            WorkState.FAILED,
            attempt,
            None,
            None,
            grant._replace(verdict=verdict),
            item.progress,
            reason,
            history,
            end,
        )
    if not is_delayed:
        back = item._replace(attempt=attempt, grant=grant._replace(verdict=outcome), history=history, error=reason)
        return place(back, WorkState.PENDING, at)
    delay_ms = backoff_ms(limits, attempt, at.index, item.spec.id)
    verdict = "retry" if verb else outcome
    return Item(
        item.spec,
        WorkState.PENDING,
        attempt,
        at.log_ms + delay_ms,
        at.wall_ms + delay_ms,
        grant._replace(verdict=verdict, verdict_wall_ms=at.wall_ms + delay_ms),
        item.progress,
        reason,
        history,
    )


def held(tables: Tables, work_id: str, token: int, holder: str | None, verb: str) -> Item | Rejected:
    """The item whose newest token this is, or the refusal that all verbs share. An item that this very
    verb and token made final is returned too: its first answer is to be given again."""
    item = tables.items.get(work_id.lower())
    if item is None:
        return Rejected("not_found", f"there is no work item {work_id}")
    grant, end = item.grant, item.end
    if end is not None and not (end.verb == verb and end.token == token):
        members = {"state": item.state.value}
        return Rejected("already_final", f"{work_id} is {item.state.value} already", members=members)
    if grant is None or grant.token != token:
        newest = "none" if grant is None else grant.token
        return Rejected("stale_token", f"the newest token of {work_id} is {newest}, not {token}")
    if holder is not None and holder != grant.node_id and holder.lower() != grant.node_id.lower():
        return Rejected("forbidden", f"the lease of {work_id} is {grant.node_id}'s, not {holder}'s")
    return item


def wrong_state(item: Item, wanted: str) -> Rejected:
    told = f"{item.spec.work_id} is {item.state.value}"
    if item.grant is not None and item.grant.verdict:
        told += f", its lease ended: {item.grant.verdict}"
    return Rejected("wrong_state", f"{told}; {wanted}", members={"state": item.state.value})
