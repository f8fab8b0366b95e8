"""Heartbeats as JSON: what a node sends, and what it is answered.

A heartbeat: ``{cluster_id, node_id, data_id, incarnation, roles, addresses, version, resources, gpus,
left, priority, applied_index, view, heard: [{…a report…, age_s}]}``. The answer: ``{accepted, reason,
known_incarnation, cluster_id, node_id, leader_id, leader_url, term, view, members}``; ``members`` is null
when the sender's ``view`` is the newest already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ringraft.membership.base import Member, MemberState
from ringraft.membership.table import Report

TEXT_MAX = 256
ADDRESSES_MAX = 16
ROLES_MAX = 8
GPUS_MAX = 64
RESOURCES_MAX = 64
HEARD_MAX = 1000
MEMBERS_MAX = 8192
STATES = frozenset(state.value for state in MemberState)


class BadHeartbeat(ValueError):
    """A heartbeat or its answer that does not have the form above; the message names the field."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One heartbeat as received."""

    cluster_id: str | None
    report: Report
    view: str | None
    heard: tuple[tuple[Report, float], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a voter said to a heartbeat."""

    accepted: bool
    reason: str | None
    known_incarnation: int
    cluster_id: str | None
    node_id: str
    leader_id: str | None
    leader_url: str | None
    term: int
    view: str
    members: tuple[Member, ...] | None


def report_fields(report: Report) -> dict[str, Any]:
    """A report as JSON."""
    return {
        "node_id": report.node_id,
        "data_id": report.data_id,
        "incarnation": report.incarnation,
        "roles": list(report.roles),
        "addresses": list(report.addresses),
        "version": report.version,
        "resources": dict(report.resources),
        "gpus": list(report.gpus),
        "left": report.left,
        "priority": report.priority,
        "applied_index": report.applied_index,
    }


def heartbeat_body(
    cluster_id: str | None, report: Report, view: str | None, heard: Sequence[tuple[Report, float]]
) -> dict[str, Any]:
    """A heartbeat as JSON."""
    return {
        "cluster_id": cluster_id,
        **report_fields(report),
        "view": view,
        "heard": [{**report_fields(other), "age_s": round(age_s, 3)} for other, age_s in heard],
    }


def parse_heartbeat(body: Mapping[str, Any]) -> Heartbeat:
    """Read a heartbeat. Raises BadHeartbeat."""
    heard = []
    for other in _listed(body, "heard", HEARD_MAX):
        if not isinstance(other, Mapping):
            raise BadHeartbeat("heard: each entry is an object")
        heard.append((_report(other), _number(other, "age_s")))
    return Heartbeat(
        cluster_id=_text_or_none(body, "cluster_id"),
        report=_report(body),
        view=_text_or_none(body, "view"),
        heard=tuple(heard),
    )


def parse_answer(body: Mapping[str, Any]) -> Answer:
    """Read the answer to a heartbeat. Raises BadHeartbeat."""
    members = None
    if body.get("members") is not None:
        members = tuple(_member(member) for member in _listed(body, "members", MEMBERS_MAX))
    return Answer(
        accepted=body.get("accepted") is True,
        reason=_text_or_none(body, "reason"),
        known_incarnation=_integer(body, "known_incarnation"),
        cluster_id=_text_or_none(body, "cluster_id"),
        node_id=_text(body, "node_id"),
        leader_id=_text_or_none(body, "leader_id"),
        leader_url=_text_or_none(body, "leader_url"),
        term=0 if body.get("term") is None else _integer(body, "term"),
        view=_text(body, "view"),
        members=members,
    )


def _report(body: Mapping[str, Any]) -> Report:
    return Report(
        node_id=_text(body, "node_id"),
        data_id=_text(body, "data_id"),
        incarnation=_integer(body, "incarnation"),
        roles=_texts(body, "roles", ROLES_MAX),
        addresses=_texts(body, "addresses", ADDRESSES_MAX),
        version=_text(body, "version"),
        resources=_flat(body, "resources"),
        gpus=tuple(_listed(body, "gpus", GPUS_MAX)),
        left=body.get("left") is True,
        priority=_integer_or_none(body, "priority"),
        applied_index=_integer_or_none(body, "applied_index"),
    )


def _member(body: Any) -> Member:
    if not isinstance(body, Mapping):
        raise BadHeartbeat("members: each entry is an object")
    state = _text(body, "state")
    if state not in STATES:
        raise BadHeartbeat(f"state: {state!r} is none of {', '.join(sorted(STATES))}")
    return Member(
        node_id=_text(body, "node_id"),
        state=MemberState(state),
        incarnation=_integer(body, "incarnation"),
        addresses=_texts(body, "addresses", ADDRESSES_MAX),
        roles=_texts(body, "roles", ROLES_MAX),
        last_seen_s=None if body.get("last_seen_s") is None else _number(body, "last_seen_s"),
        resources=_flat(body, "resources"),
        gpus=tuple(_listed(body, "gpus", GPUS_MAX)),
        version=_text(body, "version"),
        reachable_via=_text(body, "reachable_via"),
    )


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise BadHeartbeat(f"{name}: must be text of at most {TEXT_MAX} characters")
    return value


def _text_or_none(body: Mapping[str, Any], name: str) -> str | None:
    return None if body.get(name) is None else _text(body, name)


def _integer(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise BadHeartbeat(f"{name}: must be a whole number from 0 to 2^53 - 1")
    return value


def _integer_or_none(body: Mapping[str, Any], name: str) -> int | None:
    return None if body.get(name) is None else _integer(body, name)


def _number(body: Mapping[str, Any], name: str) -> float:
    value = body.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise BadHeartbeat(f"{name}: must be a number from 0 on")
    return float(value)


def _listed(body: Mapping[str, Any], name: str, count_max: int) -> list[Any]:
    value = body.get(name)
    if not isinstance(value, list) or len(value) > count_max:
        raise BadHeartbeat(f"{name}: must be a list of at most {count_max}")
    return value


def _texts(body: Mapping[str, Any], name: str, count_max: int) -> tuple[str, ...]:
    values = _listed(body, name, count_max)
    if not all(isinstance(value, str) and len(value) <= TEXT_MAX for value in values):
        raise BadHeartbeat(f"{name}: must hold texts of at most {TEXT_MAX} characters")
    return tuple(values)


def _flat(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if not isinstance(value, Mapping) or len(value) > RESOURCES_MAX:
        raise BadHeartbeat(f"{name}: must be an object of at most {RESOURCES_MAX} members")
    return dict(value)
