"""The state machine with everyone who listens to it.

The consensus calls ``apply`` once per entry. Nothing in there derives anything of its own, waits or
raises: the machine decides, and the replica tells those who wait. Requests wait here, never in apply.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from ringraft.clock import Clock
from ringraft.consensus.base import Consensus, Indeterminate, NotLeader, ProposalError, Status, Unavailable
from ringraft.node.events import EventRing
from ringraft.node.parking import RECLAIM_PAUSE_S, ParkedClaims
from ringraft.state.commands import Claim
from ringraft.state.machine import StateMachine
from ringraft.state.model import Applied, Command, Done, Entry, Outcome, WorkState
from ringraft.state.records import VoterTable

FINAL_STATES = frozenset({WorkState.COMPLETED.value, WorkState.FAILED.value, WorkState.CANCELLED.value})

FINAL_EVENTS = frozenset({"WORK_COMPLETED", "WORK_FAILED", "WORK_CANCELLED"})
"""After one of these the item is final."""

ENDING_EVENTS = FINAL_EVENTS | {"WORK_RETIRED"}
"""After one of these nobody has to wait for the item any longer."""


REASONS: dict[type[ProposalError], str] = {
    NotLeader: "not_leader",
    Unavailable: "unavailable",
    Indeterminate: "indeterminate",
}

SWEEP_CREDITS = 64
"""How many parked claims one sweep wakes at most."""


class WaitersFull(Exception):
    """This node already holds as many waiting requests as it may: try again later (429)."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} requests wait on this node already (http.waiters_max); ask again later or without waiting"
        )
        self.limit = limit


class FinalItems(Protocol):
    """Whoever keeps final items for later (``backlog.Backlog``)."""

    def finished(self, index: int, work_id: str) -> None:
        """The item became final in entry ``index``."""
        ...

    def reopened(self, index: int, work_id: str) -> None:
        """The final item was taken back in entry ``index``."""
        ...

    def rescan(self, index: int) -> None:
        """The state was replaced by an image as of entry ``index``."""
        ...


class Replica:
    """This node's copy of the state: proposals go in, events and answers come out."""

    def __init__(
        self,
        *,
        machine: StateMachine,
        clock: Clock,
        archive: FinalItems | None,
        events: EventRing,
        waiters_max: int,
    ) -> None:
        self.machine = machine
        self.events = events
        self._clock = clock
        self._archive = archive
        self._consensus: Consensus | None = None
        self._waiters_max = waiters_max
        self._waiters = 0
        self._parked = ParkedClaims()
        self._finals: dict[str, list[asyncio.Future[None]]] = {}
        self._indexes: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tickets = itertools.count()
        self._listeners: list[Callable[[Applied], None]] = []
        self.failures: Counter[str] = Counter()
        """Proposals that ended without an outcome, by reason."""
        self.pending = 0
        """Proposals of requests that have not ended."""
        self.applied_at_s = clock.monotonic_s()
        """When the newest entry was applied, on this node's monotonic clock."""

    def attach(self, consensus: Consensus) -> None:
        """Say where proposals go; once, before the first request."""
        assert self._consensus is None
        self._consensus = consensus

    def listen(self, listener: Callable[[Applied], None]) -> None:
        """Call ``listener`` after each applied entry; it must neither block nor raise."""
        self._listeners.append(listener)

    @property
    def waiting(self) -> int:
        """How many requests wait here now."""
        return self._waiters

    # What the consensus calls.

    @property
    def log_ms(self) -> int:
        """The newest log time applied."""
        return self.machine.log_ms

    @property
    def generation(self) -> int:
        """Of the newest epoch begun."""
        return self.machine.epoch.generation

    @property
    def voter_table(self) -> VoterTable:
        """Who keeps the log, as of the newest entry applied."""
        return self.machine.voter_table

    def apply(self, index: int, entry: Entry) -> Applied:
        """Apply one entry and tell everyone who waits for what it did."""
        machine = self.machine
        may_ready = self._parked.any and _timers_due(machine, entry)
        applied = machine.apply(index, entry)
        self.applied_at_s = self._clock.monotonic_s()
        self.events.append(applied.events)
        self._tell_archive(index, applied)
        self._wake_final(applied)
        self._wake_index(index)
        if self._parked.any:
            self._parked.applied(machine, applied, timers_fired=may_ready)
        for listener in self._listeners:
            listener(applied)
        return applied

    def snapshot(self) -> Iterator[bytes]:
        """A consistent image as of now, in slices."""
        return self.machine.snapshot()

    def rebuild(self) -> Rebuilding:
        """Begin to build the state of an image beside the present one."""
        return Rebuilding(self)

    def stand_on(self, machine: StateMachine) -> None:
        """Replace the state; whoever waits looks again."""
        self.machine = machine
        self.applied_at_s = self._clock.monotonic_s()
        self.events.restart_after(machine.index)
        if self._archive is not None:
            self._archive.rescan(machine.index)
        for waiting in self._finals.values():
            _resolve(waiting)
        self._finals.clear()
        self._wake_index(machine.index)
        self._parked.wake_all()

    # What requests call.

    async def submit(self, command: Command, *, deadline_s: float) -> Outcome:
        """Propose and wait for the outcome. Raises NotLeader, Unavailable, Indeterminate."""
        self.pending += 1
        try:
            return await self._log().propose(command, deadline_s=deadline_s)
        except ProposalError as fault:
            self.failures[REASONS[type(fault)]] += 1
            raise
        finally:
            self.pending -= 1

    async def claim(self, command: Command, *, deadline_s: float, wait_s: float) -> Outcome:
        """Claim; with nothing to get, wait up to ``wait_s`` seconds for something and claim again.

        Every try has the same key: an empty claim leaves none behind. Raises what ``submit`` raises
        and WaitersFull.
        """
        outcome = await self.submit(command, deadline_s=deadline_s)
        if wait_s <= 0 or not is_empty(outcome):
            return outcome
        return await self.claim_later(command, outcome, deadline_s=deadline_s, wait_s=wait_s)

    async def claim_later(self, command: Command, outcome: Outcome, *, deadline_s: float, wait_s: float) -> Outcome:
        """Go on as ``claim`` does after a first try that came back empty."""
        op = command.op
        assert isinstance(op, Claim)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_s
        with _Waiting(self), self._parked.park(op) as spot:
            pause_s = 0.0
            while is_empty(outcome):
                remaining_s = until_s - loop.time()
                if remaining_s <= 0:
                    return outcome
                # Something may have become ready while this claim was on its way through the log;
                # whoever readied it saw nobody asleep.
                if self.machine.could_claim(op):
                    await spot.woken(min(remaining_s, pause_s))
                elif not await spot.woken(remaining_s):
                    return outcome
                spot.claiming()
                outcome = await self.submit(command, deadline_s=deadline_s)
                pause_s = RECLAIM_PAUSE_S
            # What woke this claim may have readied more than it took.
            self._parked.pass_on(self.machine, op)
        return outcome

    async def read_barrier(self, *, deadline_s: float) -> int:
        """The index a linearizable read needs; applied here when this returns."""
        return await self._log().read_barrier(deadline_s=deadline_s)

    async def wait_final(self, work_id: str, *, wait_s: float) -> dict[str, Any] | None:
        """The item once it is final, or as it is after ``wait_s`` seconds; None when not held (any more)."""
        item = self.machine.item(work_id)
        if item is None or item["state"] in FINAL_STATES or wait_s <= 0:
            return item
        key = work_id.lower()
        with _Waiting(self):
            changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._finals.setdefault(key, []).append(changed)
            try:
                await asyncio.wait({changed}, timeout=wait_s)
            finally:
                changed.cancel()
                self._forget_final(key, changed)
        return self.machine.item(work_id)

    async def wait_index(self, index: int, *, timeout_s: float) -> bool:
        """Whether entry ``index`` is applied here, waiting at most ``timeout_s`` seconds."""
        if self.machine.index >= index:
            return True
        with _Waiting(self):
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._indexes, (index, next(self._tickets), reached))
            try:
                await asyncio.wait({reached}, timeout=timeout_s)
            finally:
                reached.cancel()
                self._forget_cancelled_indexes()
        return self.machine.index >= index

    def release_parked(self) -> None:
        """Let every parked claim ask again: this node no longer leads, or it stops."""
        self._parked.wake_all()

    def sweep_parked(self) -> None:
        """Wake parked claims that could get something now, whatever readied it.

        For what no event tells, such as a node that falls below its own bound of leases.
        """
        if self._parked.any:
            self._parked.sweep(self.machine, SWEEP_CREDITS)

    def status(self) -> Status:
        """The consensus as it is now; the only place that knows who leads."""
        return self._log().status()

    # Inside.

    def _log(self) -> Consensus:
        assert self._consensus is not None, "attach comes before the first request"
        return self._consensus

    def _tell_archive(self, index: int, applied: Applied) -> None:
        if self._archive is None:
            return
        for event in applied.events:
            if event.type in FINAL_EVENTS:
                self._archive.finished(index, event.data["work_id"])
            elif event.type == "WORK_RETRIED":
                self._archive.reopened(index, event.data["work_id"])

    def _wake_final(self, applied: Applied) -> None:
        if not self._finals:
            return
        for event in applied.events:
            if event.type in ENDING_EVENTS:
                _resolve(self._finals.pop(event.data["work_id"].lower(), ()))

    def _wake_index(self, index: int) -> None:
        while self._indexes and self._indexes[0][0] <= index:
            _resolve([heapq.heappop(self._indexes)[2]])

    def _forget_final(self, key: str, changed: asyncio.Future[None]) -> None:
        waiting = self._finals.get(key)
        if waiting is None or changed not in waiting:
            return
        waiting.remove(changed)
        if not waiting:
            del self._finals[key]

    def _forget_cancelled_indexes(self) -> None:
        # Cancelled waiters may lie anywhere in the heap; clear it when they are the greater part.
        stale = sum(1 for _, _, reached in self._indexes if reached.cancelled())
        if stale * 2 > len(self._indexes):
            self._indexes = [wait for wait in self._indexes if not wait[2].cancelled()]
            heapq.heapify(self._indexes)


class Rebuilding:
    """A state on its way out of an image (``consensus.base.Rebuilding``)."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._restoring = replica.machine.restoring()
        self._built: StateMachine | None = None

    def take(self, chunk: bytes) -> Iterator[None]:
        """Take the image's next bytes, in small steps. Raises CodecError."""
        return self._restoring.take(chunk)

    def end(self) -> None:
        """Nothing follows. Raises CodecError unless it was a whole image."""
        self._built = self._restoring.end()

    def replace(self) -> Iterator[None]:
        """Let the replica stand on what was built; the steps let go of what it stood on."""
        assert self._built is not None, "end comes first"
        old = self._replica.machine
        self._replica.stand_on(self._built)
        return old.dismantle()


class _Waiting:
    """One of the places for waiting requests, taken while the block runs."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def __enter__(self) -> None:
        if self._replica._waiters >= self._replica._waiters_max:
            raise WaitersFull(self._replica._waiters_max)
        self._replica._waiters += 1

    def __exit__(self, *_: object) -> None:
        self._replica._waiters -= 1


def _resolve(waiting: Iterable[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)


def is_empty(outcome: Outcome) -> bool:
    """Whether a claim got nothing."""
    return isinstance(outcome, Done) and not outcome.value["claimed"]


def _timers_due(machine: StateMachine, entry: Entry) -> bool:
    """Whether ``entry`` reaches a timer: back-off and ``not_before`` end without an event."""
    due_log_ms, due_wall_ms = machine.next_due()
    return (due_log_ms is not None and entry.log_ms >= due_log_ms) or (
        due_wall_ms is not None and entry.wall_ms >= due_wall_ms
    )
