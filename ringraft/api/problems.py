"""Every refusal a client can get: one table of codes, one shape of document (RFC 9457)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ringraft.schema import Fault
from ringraft.state.model import Rejected

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""What ``Retry-After`` says: about one election with room to spare."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a code means. ``outcome`` is what became of a write that ended so."""

    status: int
    title: str
    retryable: bool = False
    outcome: str = "not_applied"


KINDS: Mapping[str, Kind] = {
    "bad_json": Kind(400, "The request could not be read"),
    "unauthenticated": Kind(401, "A credential is needed"),
    "forbidden": Kind(403, "The credential does not allow this"),
    "not_found": Kind(404, "There is no such thing"),
    "method_not_allowed": Kind(405, "The resource has no such method"),
    "stale_token": Kind(409, "The item was granted again since"),
    "already_final": Kind(409, "The item is final"),
    "wrong_state": Kind(409, "The item's state does not allow this"),
    "work_id_taken": Kind(409, "Another item has this id"),
    "conflict": Kind(409, "The present state does not allow this"),
    "not_in_this_mode": Kind(409, "This mode does not have it"),
    "lease_held": Kind(409, "Another holder has the lease"),
    "digest_passed": Kind(409, "The index lies behind", retryable=False),
    "not_reached": Kind(409, "The index is not reached yet", retryable=True),
    "too_large": Kind(413, "Too large"),
    "unsupported_media_type": Kind(415, "The body must be application/json"),
    "invalid_field": Kind(422, "A field is at fault"),
    "unknown_field": Kind(422, "A field is not known"),
    "token_required": Kind(422, "A lease token is needed"),
    "unknown_dependency": Kind(422, "A dependency is not there"),
    "dependency_cycle": Kind(422, "The dependencies form a cycle"),
    "unsatisfiable": Kind(422, "No registered node could run it"),
    "idempotency_mismatch": Kind(422, "The key was used with another body"),
    "queue_full": Kind(429, "A limit of the queue is reached", retryable=True),
    "rate_limited": Kind(429, "Too many requests wait here", retryable=True),
    "window_full": Kind(429, "Too many calls in flight on this stream", retryable=True),
    "internal": Kind(500, "A fault of this program", outcome="unknown"),
    "no_leader": Kind(503, "There is no leader now", retryable=True),
    "no_quorum": Kind(503, "A majority of the voters is out of reach", retryable=True),
    "shutting_down": Kind(503, "This node is shutting down", retryable=True),
    "disk_full": Kind(503, "The disk takes no more", retryable=True),
    "starting": Kind(503, "This node is starting", retryable=True),
    "commit_unknown": Kind(504, "It may or may not have been done", retryable=True, outcome="unknown"),
}


class Problem(Exception):
    """A request that ends in a refusal. ``members`` are further members of the document."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        faults: Iterable[Fault] = (),
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.faults = tuple(faults)
        self.members = dict(members or {})
        self.headers = dict(headers or {})
        self.closes = closes
        """The connection cannot be used further: part of the request was left unread."""

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]


@dataclass(frozen=True, slots=True)
class Where:
    """What every problem document says of the cluster."""

    leader: Mapping[str, str] | None = None
    term: int = 0
    retry_after_s: int = field(default=RETRY_AFTER_S)


def document(problem: Problem, *, instance: str, where: Where) -> dict[str, Any]:
    """The problem document."""
    kind = problem.kind
    out: dict[str, Any] = {
        "type": f"urn:ringraft:problem:{problem.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        "instance": instance,
        "code": problem.code,
        "retryable": kind.retryable,
        "outcome": kind.outcome,
        "leader": dict(where.leader) if where.leader else None,
        "term": where.term,
    }
    if problem.faults:
        out["errors"] = [{"pointer": f.pointer, "message": f.message} for f in problem.faults]
    for name, value in problem.members.items():
        out.setdefault(name, value)
    return out


def of_faults(faults: list[Fault]) -> Problem:
    """One problem for all faults. The document's code is that of the fault that matters first."""
    for code in ("too_large", "token_required", "invalid_field", "unknown_field"):
        first = next((f for f in faults if f.code == code), None)
        if first is not None:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            where = first.pointer or "the body"
            return Problem(code, f"{where} {first.message}{more}", faults=faults)
    first = faults[0]
    return Problem(first.code, f"{first.pointer or 'the body'} {first.message}", faults=faults)


def of_rejected(rejected: Rejected) -> Problem:
    """The refusal of the state machine."""
    code = rejected.code if rejected.code in KINDS else "internal"
    faults = [Fault(pointer, message, code) for pointer, message in rejected.errors]
    return Problem(code, rejected.detail, faults=faults, members=rejected.members)
