"""Membership of a node that is no voter: it heartbeats one voter and keeps that voter's view."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ringraft.clock import Clock
from ringraft.membership.base import Member, MemberChange, MemberState
from ringraft.membership.heartbeat import Leader, Transport, Unreachable
from ringraft.membership.once import Once
from ringraft.membership.table import Report, Timers
from ringraft.membership.watchers import Watchers
from ringraft.membership.wire import Answer, BadHeartbeat, heartbeat_body, parse_answer

log = logging.getLogger(__name__)


REFRESH_BEATS = 5
REFRESH_MEMBERS = 8
"""An unchanged view is asked for again every 5 beats, for its ages and loads; in a large cluster every
(members / 8) beats, so that a beat carries 8 members on average, however many there are."""


class GuestMembership:
    """The membership of a worker. Nobody judges here: the verdicts are the heard voter's."""

    def __init__(
        self,
        *,
        own: Report,
        cluster_id: str | None,
        join: Sequence[str],
        timers: Timers,
        transport: Transport,
        clock: Clock,
        raise_incarnation: Callable[[int], Awaitable[int]],
        learn_cluster: Callable[[str], Awaitable[None]],
        resources: Callable[[], Mapping[str, Any]],
    ) -> None:
        assert join, "a node that is no voter needs somebody to ask"
        self._own = own
        self._cluster_id = cluster_id
        self._join = tuple(join)
        self._timers = timers
        self._transport = transport
        self._clock = clock
        self._raise_incarnation = raise_incarnation
        self._learn_cluster = learn_cluster
        self._resources = resources
        self._turn = 0
        self._beats = 0
        self._target: str | None = None
        self._answer: Answer | None = None
        self._answered_s: float | None = None
        self._members: dict[str, Member] = {}
        self._members_at_s = clock.monotonic_s()
        self._watchers = Watchers()
        self._refusals = Once()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to heartbeat."""
        self._task = asyncio.create_task(self._beat(), name="heartbeat")

    async def stop(self) -> None:
        """Tell the voter that hears this node that it leaves, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._own = replace(self._own, left=True)
        for target in dict.fromkeys((self._target or self._next_target(), self._next_target(), self._next_target())):
            if await self._send(target) is not None:
                return

    def members(self) -> Mapping[str, Member]:
        """The heard voter's view, its ages as of now, and this node."""
        self._own = self._own.with_load(self._resources())
        age_s = self._clock.monotonic_s() - self._members_at_s
        seen = {
            node_id: replace(member, last_seen_s=None if member.last_seen_s is None else member.last_seen_s + age_s)
            for node_id, member in self._members.items()
        }
        return {**seen, self._own.node_id: self._own_member()}

    def watch(self) -> AsyncIterator[MemberChange]:
        return self._watchers.watch()

    def heartbeat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Refuse another node's heartbeat, and say who would take it."""
        del body
        leader = self.leader()
        return {
            "accepted": False,
            "reason": "not_a_voter",
            "known_incarnation": 0,
            "cluster_id": self._cluster_id,
            "node_id": self._own.node_id,
            "leader_id": leader.node_id,
            "leader_url": leader.url,
            "term": leader.term,
            "view": "",
            "members": None,
        }

    def leader(self) -> Leader:
        """Whom the heard voter named last; nobody once it is silent for the peer time-out."""
        silent_s = self.silent_s()
        if self._answer is None or silent_s is None or silent_s > self._timers.dead_s:
            return Leader(None, None, self._answer.term if self._answer is not None else 0)
        return Leader(self._answer.leader_id, self._answer.leader_url, self._answer.term)

    def silent_s(self) -> float | None:
        """Seconds since a voter answered; None before the first answer."""
        return None if self._answered_s is None else self._clock.monotonic_s() - self._answered_s

    # Inside.

    def _own_member(self) -> Member:
        return Member(
            node_id=self._own.node_id,
            state=MemberState.LEFT if self._own.left else MemberState.ALIVE,
            incarnation=self._own.incarnation,
            addresses=self._own.addresses,
            roles=self._own.roles,
            last_seen_s=0.0,
            resources=self._own.resources,
            gpus=self._own.gpus,
            version=self._own.version,
        )

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            target = self._target or self._next_target()
            answer = await self._send(target)
            if answer is None:
                self._target = None
            else:
                await self._heard(target, answer)
            next_s = max(next_s + self._timers.heartbeat_s, loop.time())
            await asyncio.sleep(next_s - loop.time())

    def _next_target(self) -> str:
        """Everybody who might be a voter, in turn."""
        voters = [
            member.addresses[0] for member in self._members.values() if "voter" in member.roles and member.addresses
        ]
        candidates = list(dict.fromkeys((*self._join, *voters)))
        self._turn += 1
        return candidates[self._turn % len(candidates)]

    async def _send(self, address: str) -> Answer | None:
        self._own = self._own.with_load(self._resources())
        self._beats += 1
        is_stale = self._beats % max(REFRESH_BEATS, len(self._members) // REFRESH_MEMBERS) == 0
        view = "" if self._answer is None or is_stale else self._answer.view
        body = heartbeat_body(self._cluster_id, self._own, view, ())
        try:
            return parse_answer(await self._transport.send(address, body, timeout_s=self._timers.heartbeat_s))
        except (Unreachable, BadHeartbeat) as fault:
            log.debug("heartbeat failed action=heartbeat_failed to=%s fault=%s", address, fault)
            return None

    async def _heard(self, target: str, answer: Answer) -> None:
        if not answer.accepted:
            await self._refused(target, answer)
            return
        self._refusals.forget(target)
        self._answer = answer
        self._answered_s = self._clock.monotonic_s()
        self._target = _address(answer.leader_url) or target
        if self._cluster_id is None and answer.cluster_id is not None:
            self._cluster_id = answer.cluster_id
            await self._learn_cluster(answer.cluster_id)
        if answer.members is not None:
            self._install(answer.members)

    async def _refused(self, target: str, answer: Answer) -> None:
        self._refusals.log(
            log, target, "heartbeat was refused action=heartbeat_refused_by voter=%s reason=%s known_incarnation=%d",
            answer.node_id, answer.reason, answer.known_incarnation,
        )  # fmt: skip
        self._target = _address(answer.leader_url) if answer.reason == "not_a_voter" else None
        if answer.reason == "stale_incarnation" and answer.known_incarnation >= self._own.incarnation:
            incarnation = await self._raise_incarnation(answer.known_incarnation)
            self._own = replace(self._own, incarnation=incarnation)

    def _install(self, members: Sequence[Member]) -> None:
        before = self._members
        self._members = {member.node_id: member for member in members if member.node_id != self._own.node_id}
        self._members_at_s = self._clock.monotonic_s()
        changes = []
        for node_id, member in self._members.items():
            known = before.get(node_id)
            if known is None or (known.state, known.incarnation) != (member.state, member.incarnation):
                changes.append(MemberChange(member, known.state if known else None))
        self._watchers.tell(changes)


def _address(url: str | None) -> str | None:
    """``host:port`` of a URL."""
    return url.partition("://")[2].rstrip("/") or None if url else None
