"""The endings of a call that brought no success."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """A call that brought no success. ``outcome``: not_applied, applied or unknown."""

    outcome: str = "unknown"


class Unreachable(ClientError):
    """No address gave an answer before the deadline."""

    def __init__(self, detail: str, outcome: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


class ApiError(ClientError):
    """The cluster's refusal: a problem document with its status."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        problem = body if isinstance(body, dict) else {}
        self.status = status
        self.body = body
        self.headers: Mapping[str, str] = headers or {}
        self.problem: dict[str, Any] = problem
        self.code: str = problem.get("code") or f"http_{status}"
        self.detail: str = problem.get("detail") or problem.get("title") or str(body or "")[:200]
        self.errors: list[dict[str, str]] = problem.get("errors") or []
        self.retryable: bool = problem.get("retryable") is True
        self.outcome = problem.get("outcome") or "unknown"
        # A detail that gives its faults need not be followed by them.
        unsaid = [e for e in self.errors if str(e.get("message")) not in self.detail]
        where = "; ".join(f"{e.get('pointer')}: {e.get('message')}" for e in unsaid)
        super().__init__(f"{status} {self.code}: {self.detail}" + (f" ({where})" if where else ""))

    @property
    def retry_after_s(self) -> float:
        """Seconds the cluster asks to wait, 0 when it says nothing."""
        return _retry_after_s(self.headers, self.problem)

    @property
    def leader_url(self) -> str | None:
        """Where the answering node believes the leader is."""
        leader = self.problem.get("leader")
        return leader.get("url") if isinstance(leader, dict) else None


def _retry_after_s(headers: Mapping[str, str], problem: Mapping[str, Any]) -> float:
    value = headers.get("Retry-After") or problem.get("retry_after_s") or 0
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return 0.0
