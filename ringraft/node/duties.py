"""What only the leader does: let timers fire, bring settings and node verdicts into the log.

Nothing polls. The next tick is armed from ``machine.next_due()`` after each applied entry, and an
entry is made only when something is due. Whether this node leads is what ``consensus.watch()`` says;
a duty that outlives its leadership by an instant is refused by the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import fields
from typing import Any, Protocol

from ringraft.clock import Clock
from ringraft.consensus.base import Consensus, ProposalError
from ringraft.membership.base import Member, MemberChange, MemberState
from ringraft.state.commands import Configure, NodeStatus, Op, Tick
from ringraft.state.model import Applied, Command, Limits, Outcome, Rejected
from ringraft.state.records import NodeRecord

log = logging.getLogger(__name__)

PROPOSE_S = 5.0
"""How long a duty's own proposal may take."""

RETRY_S = 0.2
"""After a proposal that did not end in an outcome."""

TICK_GAP_S = 0.005
"""Between two ticks: bounded work that is left over goes on at once, but not in a tight loop."""

WALL_RECHECK_S = 1.0
"""A timer of the wall clock is looked at again this often, because that clock may jump. Looking proposes nothing."""

VERDICT_GAP_S = 0.1
"""Verdicts of the membership that come within this time travel together."""

VERDICTS_PER_ROUND = 64

VERDICT_ROUND_S = 5.0
"""Without any change the log's view is compared this often: a node that was never heard causes no change."""


class State(Protocol):
    """What duties read of the state machine."""

    @property
    def log_ms(self) -> int: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def is_configured(self) -> bool: ...

    def next_due(self) -> tuple[int | None, int | None]: ...

    def nodes(self) -> Mapping[str, NodeRecord]: ...


class StateHolder(Protocol):
    """What duties use of the replica; ``machine`` is read anew each time, a restore replaces it."""

    @property
    def machine(self) -> State: ...

    @property
    def applied_at_s(self) -> float: ...

    def listen(self, listener: Any) -> None: ...


class Verdicts(Protocol):
    """What duties use of the membership."""

    def members(self) -> Mapping[str, Member]: ...

    def watch(self) -> AsyncIterator[MemberChange]: ...

    def has_listened(self) -> bool:
        """Whether this node has been up for long enough to call a node that it never heard down."""
        ...


def due_in_s(due: tuple[int | None, int | None], *, log_ms: int, since_applied_s: float, wall_ms: int) -> float | None:
    """Seconds until the earliest timer can fire; None when there is none.

    ``log_ms`` is the newest log time applied and ``since_applied_s`` how long ago: the leader's log
    clock is at least their sum, so a tick made then is never too early.
    """
    due_log_ms, due_wall_ms = due
    waits = []
    if due_log_ms is not None:
        waits.append((due_log_ms - log_ms) / 1000 - since_applied_s)
    if due_wall_ms is not None:
        waits.append((due_wall_ms - wall_ms) / 1000)
    return max(0.0, min(waits)) if waits else None


class Duties:
    """The leader's duties, taken up and laid down as leadership comes and goes."""

    def __init__(
        self,
        *,
        node_id: str,
        replica: StateHolder,
        consensus: Consensus,
        membership: Verdicts,
        limits: Limits,
        clock: Clock,
    ) -> None:
        """``limits`` are this node's own, for a log that has none yet."""
        self._node_id = node_id
        self._replica = replica
        self._consensus = consensus
        self._membership = membership
        self._limits = limits
        self._clock = clock
        self._is_leading = False
        self._rearm = asyncio.Event()
        self._verdicts_changed = asyncio.Event()
        self._armed_for: tuple[int | None, int | None] = (None, None)
        replica.listen(self._applied)

    async def run(self) -> None:
        """Follow leadership until cancelled."""
        async with asyncio.TaskGroup() as group:
            lead: asyncio.Task[None] | None = None
            try:
                async for leadership in self._consensus.watch():
                    if lead is not None:
                        lead.cancel()
                        lead = None
                    self._is_leading = leadership.leader_id == self._node_id
                    if self._is_leading:
                        log.info("took up the leader's duties action=duties_begin epoch=%s", tuple(leadership.epoch))
                        lead = group.create_task(self._lead(), name="duties-lead")
            finally:
                self._is_leading = False
                if lead is not None:
                    lead.cancel()

    async def _lead(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._configure(), name="duties-configure")
            group.create_task(self._tick(), name="duties-tick")
            group.create_task(self._enter_verdicts(), name="duties-verdicts")
            group.create_task(self._follow_members(), name="duties-members")

    # Time.

    def _applied(self, applied: Applied) -> None:
        """Called in apply: wakes the ticker when there is an earlier timer than it waits for.

        One that is later now only lets it wake in vain, once; it would be moved with nearly every entry.
        """
        if self._is_leading:
            due = zip(self._replica.machine.next_due(), self._armed_for, strict=True)
            if any(now is not None and (before is None or now < before) for now, before in due):
                self._rearm.set()

    async def _tick(self) -> None:
        while True:
            self._rearm.clear()
            machine = self._replica.machine
            self._armed_for = machine.next_due()
            wait_s = due_in_s(
                self._armed_for,
                log_ms=machine.log_ms,
                since_applied_s=self._clock.monotonic_s() - self._replica.applied_at_s,
                wall_ms=self._clock.wall_ms(),
            )
            if wait_s is not None and wait_s <= 0:
                await self._propose(Tick())
                await asyncio.sleep(TICK_GAP_S)
                continue
            if self._armed_for[1] is not None:
                wait_s = WALL_RECHECK_S if wait_s is None else min(wait_s, WALL_RECHECK_S)
            await _wait(self._rearm, wait_s)

    # Settings.

    async def _configure(self) -> None:
        """Enter this node's limits into a log that has none; else say what differs.

        They are entered even when they are the defaults: a later leader's must not count as the first.
        A proposal without an outcome may yet be applied, so the log is looked at again before the next.
        """
        outcome = None
        while outcome is None:
            await self._catch_up()
            if self._replica.machine.is_configured:
                self._warn_of_differences(self._replica.machine.limits)
                return
            outcome = await self._propose(Configure(self._limits))
        if isinstance(outcome, Rejected):
            log.error("limits were refused action=configure_refused code=%s %s", outcome.code, outcome.detail)

    async def _catch_up(self) -> None:
        """Wait until what earlier leaders entered is applied here."""
        while True:
            try:
                await self._consensus.read_barrier(deadline_s=PROPOSE_S)
                return
            except ProposalError as fault:
                log.info("read barrier failed action=duties_wait fault=%s", fault)
                await asyncio.sleep(RETRY_S)

    def _warn_of_differences(self, limits: Limits) -> None:
        differing = [
            f"{field.name}={getattr(self._limits, field.name)} (log: {getattr(limits, field.name)})"
            for field in fields(Limits)
            if getattr(self._limits, field.name) != getattr(limits, field.name)
        ]
        if differing:
            log.warning("own limits differ, the log's value wins action=limits_differ %s", ", ".join(differing))

    # Nodes.

    async def _follow_members(self) -> None:
        async for _ in self._membership.watch():
            self._verdicts_changed.set()

    async def _enter_verdicts(self) -> None:
        """Bring the log's view of who is up in line with the membership's, a round at a time."""
        self._verdicts_changed.set()
        while True:
            await _wait(self._verdicts_changed, VERDICT_ROUND_S)
            self._verdicts_changed.clear()
            await self._catch_up()
            differing = differing_verdicts(
                self._membership.members(),
                self._replica.machine.nodes(),
                unheard_are_down=self._membership.has_listened(),
            )
            for verdict in differing[:VERDICTS_PER_ROUND]:
                log.info(
                    "node is %s action=node_status node=%s incarnation=%d",
                    "up" if verdict.up else "down", verdict.node_id, verdict.incarnation,
                )  # fmt: skip
            outcomes = await asyncio.gather(*(self._propose(verdict) for verdict in differing[:VERDICTS_PER_ROUND]))
            if len(differing) > VERDICTS_PER_ROUND or None in outcomes:
                self._verdicts_changed.set()
            await asyncio.sleep(VERDICT_GAP_S)

    async def _propose(self, op: Op) -> Outcome | None:
        """The outcome, or None after a pause when there was none."""
        try:
            return await self._consensus.propose(Command(op), deadline_s=PROPOSE_S)
        except ProposalError as fault:
            log.info("duty was not done action=duty_failed op=%s fault=%s", type(op).__name__, fault)
        await asyncio.sleep(RETRY_S)
        return None


def differing_verdicts(
    members: Mapping[str, Member], nodes: Mapping[str, NodeRecord], *, unheard_are_down: bool
) -> list[NodeStatus]:
    """What to tell the log. Suspicion is no verdict yet; a node that left or was never heard is down."""
    heard = {member.node_id.lower(): member for member in members.values()}
    recorded = {record.node_id.lower(): record for record in nodes.values()}
    differing = []
    for key, member in heard.items():
        is_up = member.state is MemberState.ALIVE
        record = recorded.get(key)
        was_up = record is not None and record.is_up
        if member.state is not MemberState.SUSPECT and is_up != was_up:
            differing.append(NodeStatus(member.node_id, member.incarnation, is_up))
    if unheard_are_down:
        for key, record in recorded.items():
            if record.is_up and key not in heard:
                differing.append(NodeStatus(record.node_id, record.incarnation, False))
    return sorted(differing, key=lambda verdict: verdict.node_id)


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
