"""What was heard of whom, and the verdicts that follow from it. Pure: the time is an argument.

A node is heard directly or through another voter that heard it; the newest counts, so there is one
verdict for a node and no union of views. Silence alone makes a node suspect and then dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ringraft.membership.base import Member, MemberChange, MemberState

MEMBERS_MAX = 4096
"""Nodes known at once; further ones are refused until silent ones are forgotten."""

FORGET_S = 3600.0
"""A dead or left node that is no configured voter is forgotten after this long a silence."""


@dataclass(frozen=True, slots=True)
class Timers:
    """All derived from two settings; the order heartbeat < suspect < dead <= grace is checked."""

    heartbeat_s: float
    suspect_s: float
    dead_s: float
    grace_s: float
    """After its own start a node calls nobody dead for this long: it has not listened yet."""

    @classmethod
    def derive(cls, *, heartbeat_s: float, peer_timeout_s: float, startup_grace_s: float) -> Timers:
        """The timers of one base. ValueError names the settings whose order is wrong."""
        suspect_s = peer_timeout_s / 2
        if not heartbeat_s < suspect_s:
            raise ValueError(
                f"membership.peer_timeout_s ({peer_timeout_s:g}) must exceed twice membership.heartbeat_s "
                f"({heartbeat_s:g}): one lost heartbeat must not make a node suspect; raise it to "
                f"{5 * heartbeat_s:g} or more"
            )
        return cls(heartbeat_s, suspect_s, peer_timeout_s, max(startup_grace_s, peer_timeout_s))


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of itself."""

    node_id: str
    data_id: str
    incarnation: int
    roles: tuple[str, ...]
    addresses: tuple[str, ...]
    version: str
    resources: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[Any, ...] = ()
    left: bool = False
    priority: int | None = None
    """``node.priority``, so that every node orders the candidates alike."""
    applied_index: int | None = None
    """How far its log is applied; None where no log is kept."""

    def with_load(self, load: Mapping[str, Any]) -> Report:
        """The same report with the machine's load as of now; ``load`` holds ``gpus`` beside the figures."""
        figures = {name: value for name, value in load.items() if name != "gpus"}
        return replace(self, resources=figures, gpus=tuple(load.get("gpus", ())))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a report does not count. ``known_incarnation`` is the one to exceed."""

    reason: str
    known_incarnation: int


@dataclass(frozen=True, slots=True)
class _Heard:
    report: Report
    at_s: float
    state: MemberState


class MemberTable:
    """Reports and verdicts, bounded."""

    def __init__(self, *, own: Report, voters: Mapping[str, str], timers: Timers, now_s: float) -> None:
        self._own = own
        self._voters = dict(voters)
        self._timers = timers
        self._started_s = now_s
        self._heard: dict[str, _Heard] = {}
        self._silent_voters = {node_id: MemberState.SUSPECT for node_id in self._voters if node_id != own.node_id}
        self.changes = 0
        """Counts what a reader of the view would notice; ages and loads do not count."""

    def follow(self, voters: Mapping[str, str]) -> None:
        """These are the voters from now on. Who is one no longer is forgotten once it is silent for long."""
        for node_id in voters.keys() - self._voters.keys() - self._heard.keys() - {self._own.node_id}:
            self._silent_voters[node_id] = MemberState.SUSPECT
        for node_id in self._voters.keys() - voters.keys():
            self._silent_voters.pop(node_id, None)
        self._voters = dict(voters)
        self.changes += 1

    @property
    def own(self) -> Report:
        return self._own

    def present(self, own: Report) -> None:
        """This node's own report from now on."""
        self._own = own

    def hear(
        self, report: Report, *, now_s: float, age_s: float = 0.0, relayed: bool = False
    ) -> list[MemberChange] | Refusal:
        """Take a report that was made ``age_s`` seconds ago; what changed by it, or why it does not count."""
        if report.node_id == self._own.node_id:
            return [] if relayed else Refusal("node_id_in_use", self._own.incarnation)
        known = self._heard.get(report.node_id)
        at_s = now_s - max(0.0, age_s)
        if known is None:
            if len(self._heard) >= MEMBERS_MAX:
                return Refusal("members_full", 0)
            return self._install(report, at_s, None)
        if report.data_id != known.report.data_id and report.incarnation <= known.report.incarnation:
            # The same name from another directory: a second process, or one whose directory was wiped.
            alive = self._verdict(known, now_s) in (MemberState.ALIVE, MemberState.SUSPECT)
            reason = "node_id_in_use" if alive else "stale_incarnation"
            return Refusal(reason, known.report.incarnation)
        if report.incarnation < known.report.incarnation:
            return Refusal("stale_incarnation", known.report.incarnation)
        if report.incarnation == known.report.incarnation and (at_s < known.at_s or known.report.left):
            return []
        return self._install(report, at_s, known)

    def judge(self, now_s: float) -> list[MemberChange]:
        """The verdicts that silence changed since the last call; forgets who was silent for long."""
        changes = []
        for node_id, known in list(self._heard.items()):
            state = self._verdict(known, now_s)
            if state is not known.state:
                self._heard[node_id] = replace(known, state=state)
                changes.append(MemberChange(self._member(self._heard[node_id], now_s), known.state))
            forgettable = state in (MemberState.DEAD, MemberState.LEFT) and node_id not in self._voters
            if forgettable and now_s - known.at_s > FORGET_S:
                del self._heard[node_id]
        for node_id, before in self._silent_voters.items():
            state = self._verdict_of_silence(now_s)
            if state is not before:
                self._silent_voters[node_id] = state
                changes.append(MemberChange(self._never_heard(node_id, now_s), before))
        self.changes += len(changes)
        return changes

    def members(self, now_s: float) -> dict[str, Member]:
        """Everyone, this node included; the verdicts as of ``now_s``."""
        own = _Heard(self._own, now_s, MemberState.LEFT if self._own.left else MemberState.ALIVE)
        members = {self._own.node_id: self._member(own, now_s)}
        for node_id in self._silent_voters:
            members[node_id] = self._never_heard(node_id, now_s)
        for node_id, known in self._heard.items():
            members[node_id] = self._member(replace(known, state=self._verdict(known, now_s)), now_s)
        return members

    def relays(self, now_s: float, limit: int) -> list[tuple[Report, float]]:
        """Reports of nodes that are no voters, with their age, the newest first.

        Such a node talks to one voter only, so the other voters hear of it this way.
        """
        fresh = [
            (known.report, now_s - known.at_s)
            for node_id, known in self._heard.items()
            if node_id not in self._voters and now_s - known.at_s < self._timers.dead_s
        ]
        fresh.sort(key=lambda pair: pair[1])
        return fresh[:limit]

    def _install(self, report: Report, at_s: float, known: _Heard | None) -> list[MemberChange]:
        state = MemberState.LEFT if report.left else MemberState.ALIVE
        before = known.state if known else self._silent_voters.pop(report.node_id, None)
        heard = _Heard(report, at_s, state)
        self._heard[report.node_id] = heard
        unchanged = (
            known is not None
            and state is before
            and report.incarnation == known.report.incarnation
            and report.addresses == known.report.addresses
        )
        if unchanged:
            return []
        self.changes += 1
        return [MemberChange(self._member(heard, at_s), before)]

    def _verdict(self, known: _Heard, now_s: float) -> MemberState:
        if known.report.left:
            return MemberState.LEFT
        silence_s = now_s - known.at_s
        if silence_s < self._timers.suspect_s:
            return MemberState.ALIVE
        if silence_s < self._timers.dead_s or now_s - self._started_s < self._timers.grace_s:
            return MemberState.SUSPECT
        return MemberState.DEAD

    def _verdict_of_silence(self, now_s: float) -> MemberState:
        in_grace = now_s - self._started_s < self._timers.grace_s
        return MemberState.SUSPECT if in_grace else MemberState.DEAD

    def _member(self, known: _Heard, now_s: float) -> Member:
        report = known.report
        return Member(
            node_id=report.node_id,
            state=known.state,
            incarnation=report.incarnation,
            addresses=report.addresses,
            roles=report.roles,
            last_seen_s=max(0.0, now_s - known.at_s),
            resources=report.resources,
            gpus=report.gpus,
            version=report.version,
            priority=report.priority,
            applied_index=report.applied_index,
        )

    def _never_heard(self, node_id: str, now_s: float) -> Member:
        return Member(
            node_id=node_id,
            state=self._verdict_of_silence(now_s),
            incarnation=0,
            addresses=(self._voters[node_id],),
            roles=("voter",),
            last_seen_s=None,
        )
