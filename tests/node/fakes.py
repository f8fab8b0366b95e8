"""Small stand-ins: a state machine that knows ids only, and a one-voter log that applies at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ringraft.api.rfc3339 import wall_ms
from ringraft.clock import TurnableClock
from ringraft.consensus.base import Indeterminate, Leadership, NotLeader, ProposalError, Replicated, Role, Status
from ringraft.node.sealed import Sealed
from ringraft.state.commands import Add, Claim, Complete, Configure, NodeStatus, RegisterNode, Tick
from ringraft.state.model import (
    EVENTS_PER_ENTRY,
    Applied,
    Command,
    Done,
    Entry,
    Epoch,
    Event,
    Limits,
    NewItem,
    Outcome,
)
from ringraft.state.records import NodeRecord


def add(work_id: str, not_before_wall_ms: int | None = None) -> Command:
    return Command(Add(NewItem("selfplay", b"", work_id=work_id, not_before_wall_ms=not_before_wall_ms)))


def claim(node_id: str = "w1", max_items: int = 1) -> Command:
    return Command(Claim(node_id, None, max_items, None, None))


def complete(work_id: str) -> Command:
    return Command(Complete(work_id, 1))


class FakeItem:
    """A record: an item as it was at one instant."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        self.is_final = fields["state"] in ("COMPLETED", "FAILED", "CANCELLED")


def sealed(fields: dict[str, Any]) -> Sealed:
    """The row of an item in the API's shape."""
    return Sealed(
        fields["work_id"].lower(),
        fields["state"],
        fields["work_type"],
        fields["group"],
        fields["history"][-1]["node_id"],
        wall_ms(fields["finished_at"]),
        json.dumps(fields).encode(),
    )


class FakeMachine:
    """Items are pending, claimed or completed; ``not_before_wall_ms`` delays one."""

    def __init__(self) -> None:
        self.log_ms = 0
        self.wall_ms = 0
        self.index = 0
        self.epoch = Epoch(0, 1)
        self.limits = Limits()
        self.is_configured = False
        self.states: dict[str, str] = {}
        self.delayed: dict[str, int] = {}
        self.due_log_ms: int | None = None
        self.ticks = 0
        self.node_records: dict[str, NodeRecord] = {}
        self.looks = 0

    def apply(self, index: int, entry: Entry) -> Applied:
        self.index, self.log_ms, self.wall_ms = index, entry.log_ms, entry.wall_ms
        for work_id in [w for w, at_ms in self.delayed.items() if at_ms <= entry.wall_ms]:
            del self.delayed[work_id]
            self.states[work_id] = "PENDING"
        if self.due_log_ms is not None and self.due_log_ms <= entry.log_ms:
            self.due_log_ms = None
        outcomes: list[Outcome] = []
        events: list[tuple[str, dict[str, Any]]] = []
        for command in entry.commands:
            outcomes.append(self._apply(command.op, events))
        return Applied(
            tuple(outcomes),
            tuple(
                Event(index * EVENTS_PER_ENTRY + position, index, kind, entry.wall_ms, data)
                for position, (kind, data) in enumerate(events)
            ),
        )

    def _apply(self, op: Any, events: list[tuple[str, dict[str, Any]]]) -> Outcome:
        match op:
            case Add(item=item):
                assert item.work_id is not None
                if item.not_before_wall_ms is not None:
                    self.delayed[item.work_id] = item.not_before_wall_ms
                    self.states[item.work_id] = "DELAYED"
                else:
                    self.states[item.work_id] = "PENDING"
                events.append(("WORK_ADDED", {"work_id": item.work_id}))
                return Done({"status": "added", "work_id": item.work_id})
            case Claim(max_items=count):
                taken = [w for w, state in self.states.items() if state == "PENDING"][:count]
                for work_id in taken:
                    self.states[work_id] = "ASSIGNED"
                    events.append(("WORK_CLAIMED", {"work_id": work_id}))
                return Done({"claimed": taken, "reasons": {}})
            case Complete(work_id=work_id):
                self.states[work_id] = "COMPLETED"
                events.append(("WORK_COMPLETED", {"work_id": work_id}))
                return Done({"status": "completed"})
            case Configure(limits=limits):
                self.limits, self.is_configured = limits, True
            case Tick():
                self.ticks += 1
            case NodeStatus(node_id=node_id, incarnation=incarnation, up=up):
                self.node_records[node_id] = NodeRecord(node_id, incarnation, is_up=up)
            case RegisterNode(node_id=node_id, incarnation=incarnation):
                self.node_records[node_id] = NodeRecord(node_id, incarnation)
        return Done({})

    def could_claim(self, op: Claim) -> bool:
        self.looks += 1
        return "PENDING" in self.states.values()

    def next_due(self) -> tuple[int | None, int | None]:
        return self.due_log_ms, min(self.delayed.values(), default=None)

    def nodes(self) -> dict[str, NodeRecord]:
        return self.node_records

    def item(self, work_id: str) -> dict[str, Any] | None:
        for held, state in self.states.items():
            if held.lower() == work_id.lower():
                return {
                    "work_id": held,
                    "state": state,
                    "work_type": "selfplay",
                    "group": None,
                    "finished_at": None if state == "PENDING" else f"2026-01-01T00:00:00.{self.index % 1000:03d}Z",
                    "history": [{"node_id": "w1"}],
                }
        return None

    def records(self, *, state: str, cursor: str | None, limit: int) -> tuple[list[FakeItem], str | None]:
        names = sorted(w for w, s in self.states.items() if s == state and (cursor is None or w > cursor))
        page = [self.record(name) for name in names[:limit]]
        return [item for item in page if item is not None], names[limit - 1] if len(names) > limit else None

    def record(self, work_id: str) -> FakeItem | None:
        fields = self.item(work_id)
        return None if fields is None else FakeItem(fields)

    def snapshot(self) -> Iterator[bytes]:
        yield str(self.index).encode()
        yield from (f"{work_id}={state}".encode() for work_id, state in self.states.items())

    def restoring(self) -> FakeRestoring:
        return FakeRestoring()

    def dismantle(self) -> Iterator[None]:
        yield


class FakeRestoring:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def take(self, chunk: bytes) -> Iterator[None]:
        self.chunks.append(chunk)
        yield

    def end(self) -> FakeMachine:
        machine = FakeMachine()
        first, *rest = self.chunks
        machine.index = int(first)
        machine.states = dict(chunk.decode().split("=") for chunk in rest)  # type: ignore[misc]
        return machine


class OneVoterLog:
    """Leads for ever and applies each command in an entry of its own, at once."""

    def __init__(self, replicated: Replicated, clock: TurnableClock, node_id: str = "n1") -> None:
        self.replicated = replicated
        self.clock = clock
        self.node_id = node_id
        self.index = 0
        self.proposed: list[Any] = []
        self.fault: ProposalError | None = None
        self.lost_outcomes = 0
        """Of this many proposals to come the outcome is not told, though they are applied."""
        self._leadership = Leadership(node_id, Epoch(0, 1))
        self._watchers: list[asyncio.Queue[Leadership]] = []

    def propose(self, command: Command, *, deadline_s: float) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self.fault is not None:
            future.set_exception(self.fault)
            return future
        self.proposed.append(command.op)
        self.index += 1
        entry = Entry(self.clock.monotonic_ms(), self.clock.wall_ms(), Epoch(0, 1), (command,))
        outcome = self.replicated.apply(self.index, entry).outcomes[0]
        if self.lost_outcomes:
            self.lost_outcomes -= 1
            future.set_exception(Indeterminate("the deadline passed"))
        else:
            future.set_result(outcome)
        return future

    async def read_barrier(self, *, deadline_s: float) -> int:
        if self.fault is not None:
            raise self.fault
        return self.index

    def lead(self, leader_id: str | None, number: int) -> None:
        self._leadership = Leadership(leader_id, Epoch(0, number))
        self.fault = None if leader_id == self.node_id else NotLeader(leader_id)
        for watcher in self._watchers:
            watcher.put_nowait(self._leadership)

    async def watch(self) -> AsyncIterator[Leadership]:
        queue: asyncio.Queue[Leadership] = asyncio.Queue()
        self._watchers.append(queue)
        yield self._leadership
        while True:
            yield await queue.get()

    def status(self) -> Status:
        return Status("n1", Role.LEADER, "n1", Epoch(0, 1), 0, 0, 0, 0, 0, True, 0.0, ())


async def settle(rounds: int = 20) -> None:
    """Let every task that can run now do so."""
    for _ in range(rounds):
        await asyncio.sleep(0)


async def eventually(true: Any, timeout_s: float = 5.0) -> None:
    """Poll until ``true()``, failing after ``timeout_s``."""
    until_s = asyncio.get_running_loop().time() + timeout_s
    while not true():
        assert asyncio.get_running_loop().time() < until_s, "did not come true in time"
        await asyncio.sleep(0.005)
