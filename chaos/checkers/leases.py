"""A lease is one holder's: in log time always, in real time as far as clocks keep to their bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from chaos.checkers.history import Ending, FinalState, History, Op, Violation, granted

LEASE_DEFAULT_S = 30.0
"""What a claim gets that does not say."""


GRAIN_S = 0.001
"""Log time is of whole milliseconds."""


@dataclass(frozen=True, slots=True)
class LoggedGrant:
    """A lease as the log has it."""

    work_id: str
    token: int
    node_id: str
    granted_log_ms: int
    expires_log_ms: int
    """After the last renewal."""
    ended_log_ms: int | None
    """When it was completed, failed, released, cancelled or taken back; None while it lives."""
    ending: str
    """``expired`` when time ended it, else what did."""


def exclusive_in_log_time(grants: Iterable[LoggedGrant]) -> list[Violation]:
    """No grant while another one of the item lives, and none ends by time before its time."""
    violations = []
    last: dict[str, LoggedGrant] = {}
    for grant in sorted(grants, key=lambda one: one.token):
        before = last.get(grant.work_id)
        if before is not None and (before.ended_log_ms is None or before.ended_log_ms > grant.granted_log_ms):
            told = (
                f"{grant.work_id} was granted to {grant.node_id} (token {grant.token}) at log time "
                f"{grant.granted_log_ms} ms, while {before.node_id} holds token {before.token} until "
                f"{before.expires_log_ms} ms: two live leases"
            )
            violations.append(Violation("two_leases", told))
        if grant.ending == "expired" and grant.ended_log_ms is not None and grant.ended_log_ms < grant.expires_log_ms:
            told = (
                f"the lease {grant.token} of {grant.work_id} was taken back at log time {grant.ended_log_ms} ms, "
                f"before it ended at {grant.expires_log_ms} ms"
            )
            violations.append(Violation("expired_early", told))
        last[grant.work_id] = grant
    return violations


def exclusive_in_real_time(history: History, rate_max: float = 1.0) -> list[Violation]:
    """A new grant comes no earlier than the lease's time after the call of the last grant or renewal.

    Unless the holder, or whoever may, ended it first. ``rate_max``: how much faster than the driver's clock
    a leader's may run; leases then last that much shorter. Times are the driver's.
    """
    violations = []
    ends = _Ends(history)
    holds: dict[str, list[tuple[float, float, int, Op]]] = {}
    repeated: set[tuple[str, str, int]] = set()
    for op in sorted(history.of("claim"), key=lambda one: one.returned_s if one.returned_s is not None else inf):
        for name, token in granted(op):
            key = name.lower()
            if op.key is not None and (op.key, key, token) in repeated:
                continue
            repeated.add((op.key or "", key, token))
            lease_s = float(op.args.get("lease_s", LEASE_DEFAULT_S))
            assert op.returned_s is not None
            for called_s, before_lease_s, before_token, before in holds.get(key, ()):
                if before_token >= token or ends.may_be_over(key, before_token, op.returned_s):
                    continue
                renewed_s = ends.renewed_s(key, before_token, called_s)
                over_s = renewed_s + before_lease_s / rate_max
                over_s = min(over_s, ends.times_out_s(key, before_token, rate_max))
                if op.returned_s < over_s - GRAIN_S:
                    told = (
                        f"{name} was granted again (token {token}) by {op.returned_s:.3f} s, and the lease with token "
                        f"{before_token} lasts until {over_s:.3f} s at least: nobody had ended it"
                    )
                    violations.append(Violation("two_leases", told, (before, op)))
            holds.setdefault(key, []).append((history.first_call_s(op), lease_s, token, op))
    return violations


class _Ends:
    """What may have ended a lease before its time, and what prolonged it."""

    def __init__(self, history: History) -> None:
        self._over: dict[tuple[str, int], float] = {}
        self._cancelled: dict[str, float] = {}
        self._groups = inf
        self._renewed: dict[tuple[str, int], list[float]] = {}
        self._started: dict[tuple[str, int], float] = {}
        self._timeout_s: dict[str, float] = {}
        for op in history:
            self._learn_timeouts(op)
            if op.verb == "start" and op.may_have_happened:
                lease = (op.args["work_id"].lower(), op.args["token"])
                self._started[lease] = min(self._started.get(lease, inf), op.invoked_s)
            if op.verb in ("complete", "fail", "release") and op.may_have_happened:
                self._end((op.args["work_id"].lower(), op.args["token"]), op.invoked_s)
            elif op.verb == "complete_batch" and op.may_have_happened:
                for one in op.args["items"]:
                    self._end((one["work_id"].lower(), one["token"]), op.invoked_s)
            elif op.verb == "cancel" and op.ending is not Ending.NOT_APPLIED:
                if op.args.get("work_id") is None:
                    self._groups = min(self._groups, op.invoked_s)
                else:
                    name = op.args["work_id"].lower()
                    self._cancelled[name] = min(self._cancelled.get(name, inf), op.invoked_s)
            elif op.verb == "renew" and op.is_done and op.answer is not None:
                for ref, told in zip(op.args["leases"], op.answer["leases"], strict=True):
                    if told["ok"]:
                        self._renewed.setdefault((ref["work_id"].lower(), ref["token"]), []).append(op.invoked_s)

    def _learn_timeouts(self, op: Op) -> None:
        shown = op.answer["items"] if op.verb == "claim" and op.is_done and op.answer is not None else []
        for item in shown:
            if item.get("timeout_s") is not None:
                self._timeout_s[item["work_id"].lower()] = item["timeout_s"]

    def times_out_s(self, name: str, token: int, rate_max: float) -> float:
        """The earliest time at which the run may have been too long, whatever was renewed."""
        return self._started.get((name, token), inf) + self._timeout_s.get(name, inf) / rate_max

    def _end(self, lease: tuple[str, int], at_s: float) -> None:
        self._over[lease] = min(self._over.get(lease, inf), at_s)

    def may_be_over(self, name: str, token: int, by_s: float) -> bool:
        """Whether somebody asked to end it by then."""
        asked_s = (self._over.get((name, token), inf), self._cancelled.get(name, inf), self._groups)
        return any(at_s <= by_s for at_s in asked_s)

    def renewed_s(self, name: str, token: int, granted_s: float) -> float:
        """The call of the last renewal that was answered well."""
        return max(granted_s, *self._renewed.get((name, token), ()), granted_s)


def check(history: History, finals: Sequence[FinalState], rate_max: float = 1.0) -> list[Violation]:
    return exclusive_in_real_time(history, rate_max)
