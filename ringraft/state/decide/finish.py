"""Complete and fail: how an attempt ends by its worker's word."""

from __future__ import annotations

from ringraft.state import commands as ops
from ringraft.state.decide.add import Births, Fault, refusal
from ringraft.state.decide.item import held, lease_news, longer, spent, wrong_state
from ringraft.state.model import Done, Limits, Rejected, WorkState
from ringraft.state.records import End, Grant, Item
from ringraft.state.tables import At, Decision, News, Tables

COMPLETION_NEWS = {"selfplay": "SELFPLAY_COMPLETE", "training": "TRAINING_COMPLETE"}


def complete(tables: Tables, op: ops.Complete, at: At) -> Decision | Rejected:
    item = held(tables, op.work_id, op.token, op.holder, "complete")
    if isinstance(item, Rejected):
        return item
    grant, end = item.grant, item.end
    assert grant is not None
    if end is not None:
        return Decision(_completed(end))
    if not may_finish(item):
        return wrong_state(item, "the result is no longer wanted: claim again")
    faults = payload_faults(op, tables.limits)
    births: Births | None = None
    if op.spawn or op.then is not None:
        births = Births(tables, at, parent=item.spec.work_id, finishing=item)
        fault = plan_follow_ups(tables, op, births, faults)
        if fault is not None:
            return fault
    elif faults:
        return refusal(faults)
    names = [answer["work_id"] for answer in births.answers] if births else []
    then = names.pop() if op.then is not None else None
    retire_log_ms = at.log_ms + tables.limits.retention_ms
    end = End(at.wall_ms, retire_log_ms, "complete", op.token, op.result, op.artifacts, spawned=tuple(names), then=then)
    done = Item(
        item.spec,
        WorkState.COMPLETED,
        item.attempt,
        None,
        None,
        Grant(
            grant.node_id,
            grant.token,
            grant.lease_ms,
            grant.expires_log_ms,
            grant.expires_wall_ms,
            grant.started_log_ms,
            grant.started_wall_ms,
            "completed",
        ),
        item.progress,
        None,
        longer(item, at, tables.limits, "completed"),
        end,
    )
    data = lease_news(item.spec, grant)
    news: list[News] = [("WORK_COMPLETED", data)]
    if item.spec.new.work_type in COMPLETION_NEWS:
        news.append((COMPLETION_NEWS[item.spec.new.work_type], data))
    items: dict[str, Item | None] = {item.spec.id: done}
    if births is None:
        return Decision(_completed(end), items, news)
    return Decision(_completed(end), items | births.items, news + births.news, births=len(births.items))


def _completed(end: End) -> Done:
    return Done({"status": "completed", "spawned": list(end.spawned), "then": end.then})


def may_finish(item: Item) -> bool:
    """Leased, or waiting after its lease ran out and granted to nobody since."""
    if item.is_leased:
        return True
    return item.state is WorkState.PENDING and item.grant is not None and item.grant.verdict == "expired"


def payload_faults(op: ops.Complete, limits: Limits) -> list[Fault]:
    """What of the result itself is over its limit."""
    limit = limits.payload_bytes_max
    if len(op.result or b"") <= limit and len(op.artifacts or b"") <= limit:
        return []
    return [
        ("too_large", f"/{name}", f"{name} has {len(payload)} bytes; at most {limit} (payload_bytes_max)")
        for name, payload in (("result", op.result), ("artifacts", op.artifacts))
        if payload is not None and len(payload) > limit
    ]


def plan_follow_ups(tables: Tables, op: ops.Complete, births: Births, found: list[Fault]) -> Rejected | None:
    """What ``spawn`` and ``then`` add; ``then`` depends on all of the spawned besides what it names.

    ``found`` are the faults of the rest of the request.
    """
    limit = tables.limits.batch_items_max
    if len(op.spawn) > limit:
        told = f"spawn has {len(op.spawn)} items; at most {limit} (batch_items_max)"
        return refusal([*found, ("invalid_field", "/spawn", told)])
    return births.plan(op.spawn, [f"/spawn/{number}" for number in range(len(op.spawn))], op.then, found)


def fail(tables: Tables, op: ops.Fail, at: At) -> Decision | Rejected:
    item = held(tables, op.work_id, op.token, op.holder, "fail")
    if isinstance(item, Rejected):
        return item
    grant, limits = item.grant, tables.limits
    assert grant is not None
    if grant.verdict == "failed":
        return Decision(_FAILED)
    if grant.verdict == "retry":
        return Decision(_retried(grant.verdict_wall_ms))
    if not may_finish(item):
        return wrong_state(item, "there is nothing to fail: claim again")
    # A long error is cut, not refused: the report of the failure matters more than its last line.
    error = op.error[: limits.error_chars_max]
    after = spent(item, at, limits, "failed", reason=error, is_last=not op.retryable, is_delayed=True, verb="fail")
    data = lease_news(item.spec, grant)
    data["attempt"] = after.attempt
    if after.state is WorkState.FAILED:
        return Decision(_FAILED, {item.spec.id: after}, (("WORK_FAILED", data),))
    return Decision(_retried(after.wake_wall_ms), {item.spec.id: after}, (("WORK_RETRY", data),))


_FAILED = Done({"status": "failed", "state": "FAILED", "not_before_wall_ms": None})


def _retried(not_before_wall_ms: int | None) -> Done:
    return Done({"status": "retry", "state": "PENDING", "not_before_wall_ms": not_before_wall_ms})
