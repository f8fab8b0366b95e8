"""Membership over the REST port ("http").

Voters heartbeat each other; every other node (``guest.GuestMembership``) heartbeats one voter, the
leader where it knows it. A voter passes on whom it heard, so each voter has a verdict on each node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from ringraft.clock import Clock
from ringraft.membership.base import Member, MemberChange
from ringraft.membership.once import Once
from ringraft.membership.table import MemberTable, Refusal, Report, Timers
from ringraft.membership.watchers import Watchers
from ringraft.membership.wire import (
    HEARD_MAX,
    Answer,
    BadHeartbeat,
    Heartbeat,
    heartbeat_body,
    parse_answer,
    parse_heartbeat,
)

log = logging.getLogger(__name__)

JUDGE_SHARE = 0.5
"""Verdicts are computed this many heartbeats apart."""


class Unreachable(Exception):
    """The other node gave no usable answer in time; the message says why."""


class Transport(Protocol):
    """How a heartbeat reaches another node."""

    async def send(self, address: str, body: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        """Deliver to ``host:port`` and return the answer. Raises Unreachable."""
        ...


class Leader(NamedTuple):
    """Who leads, as the consensus says at this moment."""

    node_id: str | None
    url: str | None
    term: int = 0


class HeartbeatMembership:
    """The membership of a voter."""

    def __init__(
        self,
        *,
        own: Report,
        cluster_id: str,
        voters: Mapping[str, str],
        timers: Timers,
        transport: Transport,
        clock: Clock,
        leader: Callable[[], Leader],
        raise_incarnation: Callable[[int], Awaitable[int]],
        resources: Callable[[], Mapping[str, Any]],
        applied_index: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._cluster_id = cluster_id
        self._others = {node_id: address for node_id, address in voters.items() if node_id != own.node_id}
        self._timers = timers
        self._transport = transport
        self._clock = clock
        self._leader = leader
        self._raise_incarnation = raise_incarnation
        self._resources = resources
        self._applied_index = applied_index
        self._started_s = clock.monotonic_s()
        self._table = MemberTable(own=own, voters=voters, timers=timers, now_s=self._started_s)
        self._watchers = Watchers()
        self._refusals = Once()
        self._beats: dict[str, asyncio.Task[None]] = {}
        self._judging: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to heartbeat and to judge."""
        self._judging = asyncio.create_task(self._judge(), name="membership-judge")
        self._beat_others()

    def follow(self, voters: Mapping[str, str]) -> None:
        """These are the voters from now on, id to ``host:port``: they are sent heartbeats."""
        own = self._table.own.node_id
        others = {node_id: address for node_id, address in voters.items() if node_id != own}
        for node_id in [known for known in self._others if others.get(known) != self._others[known]]:
            if node_id in self._beats:
                self._beats.pop(node_id).cancel()
        self._others = others
        self._table.follow(voters)
        if self._judging is not None:
            self._beat_others()

    def _beat_others(self) -> None:
        for node_id, address in self._others.items():
            if node_id not in self._beats:
                self._beats[node_id] = asyncio.create_task(self._beat(node_id, address), name=f"heartbeat-{node_id}")

    async def stop(self) -> None:
        """Tell the other voters that this node leaves, and end."""
        tasks = [*self._beats.values(), *([self._judging] if self._judging is not None else [])]
        self._beats, self._judging = {}, None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        own = self._present(left=True)
        farewells = (self._send(node_id, address, own) for node_id, address in self._others.items())
        await asyncio.gather(*farewells)

    def members(self) -> Mapping[str, Member]:
        """Every known node; this one with its load as of now."""
        self._present(left=self._table.own.left)
        return self._table.members(self._clock.monotonic_s())

    def watch(self) -> AsyncIterator[MemberChange]:
        return self._watchers.watch()

    def has_listened(self) -> bool:
        """Whether this node has been up for long enough to call a node that it never heard down."""
        return self._clock.monotonic_s() - self._started_s >= self._timers.grace_s

    def heartbeat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take another node's heartbeat and answer it. Raises BadHeartbeat."""
        beat = parse_heartbeat(body)
        if beat.cluster_id is not None and beat.cluster_id != self._cluster_id:
            return self._answer(beat, Refusal("foreign_cluster", 0))
        now_s = self._clock.monotonic_s()
        heard = self._table.hear(beat.report, now_s=now_s)
        if isinstance(heard, Refusal):
            self._refusals.log(
                log, beat.report.node_id, "heartbeat refused action=heartbeat_refused node=%s incarnation=%d reason=%s",
                beat.report.node_id, beat.report.incarnation, heard.reason,
            )  # fmt: skip
            return self._answer(beat, heard)
        self._refusals.forget(beat.report.node_id)
        log.debug(
            "heartbeat heard action=heartbeat node=%s incarnation=%d", beat.report.node_id, beat.report.incarnation
        )
        self._tell(heard)
        # Only a voter passes on whom it heard; whatever another node says of others is hearsay.
        for report, age_s in beat.heard if beat.report.node_id in self._others else ():
            passed_on = self._table.hear(report, now_s=now_s, age_s=age_s, relayed=True)
            if not isinstance(passed_on, Refusal):
                self._tell(passed_on)
        return self._answer(beat, None)

    # Inside.

    def _present(self, *, left: bool) -> Report:
        own = self._table.own.with_load(self._resources())
        fresh = replace(own, left=left, applied_index=self._applied_index())
        self._table.present(fresh)
        return fresh

    def _answer(self, beat: Heartbeat, refusal: Refusal | None) -> dict[str, Any]:
        leader = self._leader()
        own = self._table.own
        view = f"{own.node_id}/{own.incarnation}/{self._table.changes}"
        members = None
        if refusal is None and beat.view is not None and beat.view != view:
            members = [member.view() for member in self.members().values()]
        return {
            "accepted": refusal is None,
            "reason": refusal.reason if refusal else None,
            "known_incarnation": refusal.known_incarnation if refusal else beat.report.incarnation,
            "cluster_id": self._cluster_id,
            "node_id": own.node_id,
            "leader_id": leader.node_id,
            "leader_url": leader.url,
            "term": leader.term,
            "view": view,
            "members": members,
        }

    async def _beat(self, node_id: str, address: str) -> None:
        """Heartbeat one voter for ever, at a fixed rate: one that is slow delays no other."""
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            answer = await self._send(node_id, address, self._present(left=False))
            if answer is not None and not answer.accepted:
                await self._refused(node_id, answer)
            next_s = max(next_s + self._timers.heartbeat_s, loop.time())
            await asyncio.sleep(next_s - loop.time())

    async def _send(self, node_id: str, address: str, own: Report) -> Answer | None:
        heard = self._table.relays(self._clock.monotonic_s(), HEARD_MAX)
        body = heartbeat_body(self._cluster_id, own, None, heard)
        try:
            return parse_answer(await self._transport.send(address, body, timeout_s=self._timers.heartbeat_s))
        except (Unreachable, BadHeartbeat) as fault:
            log.debug("heartbeat failed action=heartbeat_failed to=%s fault=%s", node_id, fault)
            return None

    async def _refused(self, node_id: str, answer: Answer) -> None:
        self._refusals.log(
            log, f"by {node_id}",
            "heartbeat was refused action=heartbeat_refused_by voter=%s reason=%s known_incarnation=%d",
            node_id, answer.reason, answer.known_incarnation,
        )  # fmt: skip
        own = self._table.own
        if answer.reason == "stale_incarnation" and answer.known_incarnation >= own.incarnation:
            incarnation = await self._raise_incarnation(answer.known_incarnation)
            self._table.present(replace(self._table.own, incarnation=incarnation))

    async def _judge(self) -> None:
        while True:
            await asyncio.sleep(self._timers.heartbeat_s * JUDGE_SHARE)
            self._tell(self._table.judge(self._clock.monotonic_s()))

    def _tell(self, changes: list[MemberChange]) -> None:
        for change in changes:
            member = change.member
            log.info(
                "member is %s action=member_%s node=%s incarnation=%d before=%s",
                member.state, member.state, member.node_id, member.incarnation, change.before,
            )  # fmt: skip
        self._watchers.tell(changes)
