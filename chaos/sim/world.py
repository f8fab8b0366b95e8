"""A whole cluster with its clients, from one plan: first faults, then healing, then it must come to rest."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zlib import crc32

from chaos.checkers.history import FinalState, History, Op, Violation
from chaos.sim import verdict
from chaos.sim.clients import Client, Submitter, Worker
from chaos.sim.disk import SimDisk
from chaos.sim.faults import Faults
from chaos.sim.loop import WAKER, Event, EventQueue, NodeLoop
from chaos.sim.monitors import Broken, Monitors, VoteWatch
from chaos.sim.net import Calls, Network, Weather
from chaos.sim.node import Machine, Process, limits
from chaos.sim.plan import Plan
from ringraft.consensus.base import Role

if TYPE_CHECKING:
    from ringraft.state.machine import StateMachine

REST_S = 60.0
"""After healing the queue must run dry and all nodes agree within this long."""
SETTLE_S = 5.0
"""And nobody is elected any more after this long."""
ELECTIONS_AFTER_HEALING_MAX = 3
STEP_S = 0.5
RESTART_S = (0.3, 2.0)
"""How long a supervisor waits before it starts a process again that ended by itself."""
REPLACED = 0.5
"""The chance that a node which refuses its disk gets an empty one …"""
REPLACED_AFTER_S = (0.5, 5.0)
NOTES_MAX = 200_000


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a line in a timeline."""

    at_s: float
    who: str
    kind: str
    text: str


@dataclass(slots=True)
class Result:
    """What one run came to."""

    plan: Plan
    violation: Violation | None
    violated_s: float | None
    simulated_s: float
    trace: int
    """Equal for equal runs."""
    counts: Counter[str]
    """Faults by kind, and what happened besides."""
    endings: Counter[str]
    elections: int
    events: int
    messages: int
    history: History
    finals: list[FinalState] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def weather_of(plan: Plan) -> Weather:
    """The network's own ways, without faults."""
    return Weather(
        delay_s=(plan.delay_ms[0] / 1000, plan.delay_ms[1] / 1000),
        loss=plan.loss,
        duplicate=plan.duplicate,
        late=plan.late,
        grain_s=plan.grain_ms / 1000,
    )


class World:
    """Everything that exists in one run."""

    def __init__(self, plan: Plan, *, keep_notes: bool = False) -> None:
        self.plan = plan
        self.queue = EventQueue()
        self.queue.on_fault = self._uncaught
        self.trace = plan.seed & 0xFFFFFFFF
        self.counts: Counter[str] = Counter()
        self.notes: list[Note] = []
        self._keeps_notes = keep_notes
        self.monitors = Monitors(self._rng("monitors"), lambda kind, text: self.tell("*", kind, text))
        self.limits = limits(plan.retention_ms)
        self.network = Network(self.queue, self._rng("network"), weather_of(plan))
        self.network.on_message = self.monitors.said
        self.calls = Calls(self.network, self._rng("calls"))
        self.calls.answers_lost = plan.answers_lost
        self.node_ids = [f"n{number + 1}" for number in range(plan.voters)]
        disks: dict[str, SimDisk] = {}
        self.watch = VoteWatch(self.monitors, disks)
        self.machines: dict[str, Machine] = {}
        for number, node_id in enumerate(self.node_ids):
            self.machines[node_id] = machine = Machine(self, number, self._rng(f"machine {number}"))
            disks[node_id] = machine.disk
            self.network.powered[node_id] = True
        self.graveyard: list[Process] = []
        self.known: list[str] = []
        """Ids of items that clients have seen."""
        self.final_items: dict[str, dict[str, Any]] = {}
        """Every item that became final, as it then was, also after it retired."""
        self.shelved: tuple[int, Process | None] = (0, None)
        self.is_submitting = True
        self.is_over = False
        self.ops: list[Op] = []
        self.faults = Faults(self)
        self._clients = self._make_clients()

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"{self.plan.seed} {name}")

    def _make_clients(self) -> list[Client]:
        plan = self.plan
        # Of the calls per second about half are the workers' own, which follow from what is added.
        rate = plan.ops_per_s / 2 / plan.submitters
        work_s = max(0.05, plan.workers / plan.ops_per_s)
        submitters = [Submitter(self, f"s{n}", self._rng(f"s{n}"), rate) for n in range(plan.submitters)]
        workers = [Worker(self, f"w{n}", self._rng(f"w{n}"), work_s) for n in range(plan.workers)]
        return [*submitters, *workers]

    # Running

    def run(self) -> Result:
        """Run the plan to its end, or to the first violation."""
        try:
            self._play()
        except Broken:
            assert self.monitors.violation is not None
        finally:
            result = self._result()
            self._bury_all()
        return result

    def _play(self) -> None:
        self.faults.arm()
        for machine in self.machines.values():
            machine.start()
        for client in self._clients:
            client.begin()
        if not self._run_until(self.plan.fault_s):
            return
        self.tell("*", "heal", "all faults are over")
        self.faults.heal()
        self.is_submitting = False
        elected = self.monitors.ledger.elected
        self._come_to_rest(elected)

    def _run_until(self, until_s: float) -> bool:
        """False when a violation ended it."""
        while self.queue.now_s < until_s:
            self.queue.run_until(min(until_s, self.queue.now_s + STEP_S))
            if self.monitors.violation is not None:
                return False
            self._bury()
        return True

    def _come_to_rest(self, elected: int) -> None:
        healed_s = self.queue.now_s
        end_s = healed_s + REST_S
        while (unrest := self._unrest()) is not None:
            if self.queue.now_s >= end_s:
                self.monitors.broken("no_rest", f"{REST_S:g} s after healing: {unrest}")
            if not self._run_until(self.queue.now_s + STEP_S):
                return
        self.is_over = True
        if not self._run_until(self.queue.now_s + SETTLE_S):
            return
        while (unrest := self._disagreement()) is not None:
            if self.queue.now_s >= end_s + SETTLE_S:
                self.monitors.broken("no_agreement", unrest)
            if not self._run_until(self.queue.now_s + STEP_S):
                return
        elections = self.monitors.ledger.elected - elected
        if elections > ELECTIONS_AFTER_HEALING_MAX:
            self.monitors.broken("elections", f"{elections} elections after everything was healed")
        for machine in self.machines.values():
            if machine.process is not None:
                self.monitors.check_state(machine.node_id, machine.process.replica.machine)
        told = verdict.judge(self)
        self.counts["histories"] += told.histories
        self.counts["undecided"] += told.undecided
        for violation in told.violations:
            self.monitors.found(violation)

    def _standing(self) -> list[Process]:
        return [machine.process for machine in self.machines.values() if machine.process is not None]

    def _unrest(self) -> str | None:
        """Why the world is not at rest."""
        if not all(client.has_ended for client in self._clients if isinstance(client, Submitter)):
            return "a submitter still waits for an answer"
        missing = [
            machine.node_id
            for machine in self.machines.values()
            if machine.refusal is None and (machine.process is None or not machine.process.is_ready)
        ]
        if missing:
            return f"{', '.join(missing)} did not start"
        if self._disagreement() is not None:
            return self._disagreement()
        state: StateMachine = self._standing()[0].replica.machine
        counts = state.work_status()["by_state"] if "by_state" in state.work_status() else state.work_status()
        live = [item for item in state.tables.items.values() if not item.is_final]
        if live:
            told = ", ".join(f"{item.spec.work_id} is {item.state}" for item in live[:3])
            return f"{len(live)} items are not final: {told}; {counts}"
        return None

    def _disagreement(self) -> str | None:
        """Why the nodes that stand do not agree."""
        standing = self._standing()
        if not any(process.consensus.status().role is Role.LEADER for process in standing):
            return "nobody leads"
        indexes = {process.node_id: process.consensus.applied_index for process in standing}
        if len(set(indexes.values())) > 1:
            return f"applied up to {indexes}"
        if min(indexes.values()) < self.monitors.frontier:
            self.monitors.broken(
                "lost", f"entry {self.monitors.frontier} was applied, and all nodes stand at {min(indexes.values())}"
            )
        if len({process.replica.machine.digest() for process in standing}) > 1:
            return "equal indexes and different states"
        return None

    # What parts tell

    def tell(self, who: str, kind: str, text: str) -> None:
        """A line for the timeline, and for the trace."""
        self.trace = crc32(f"{self.queue.now_s:.9f} {who} {kind} {text}".encode(), self.trace)
        if self._keeps_notes and len(self.notes) < NOTES_MAX:
            self.notes.append(Note(self.queue.now_s, who, kind, text))

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def record(self, op: Op) -> None:
        self.ops.append(op)
        told = f"{op.invoked_s:.9f} {op.client} {op.number} {op.verb} {op.node} {op.returned_s:.9f} {op.ending}"
        self.trace = crc32(told.encode(), self.trace)

    def role_changed(self, process: Process) -> None:
        status = process.consensus.status()
        self.tell(process.node_id, "role", f"{status.role.value} term {status.epoch.number} follows {status.leader_id}")

    def members_changed(self) -> None:
        for machine in self.machines.values():
            if machine.process is not None and machine.process.membership is not None:
                machine.process.membership.changed()

    def process_failed(self, machine: Machine, error: BaseException) -> None:
        """A process found that it must not go on; it ends, and its supervisor starts it again."""
        self.tell(machine.node_id, "failed", str(error))
        self.count("process_failed")
        self.monitors.failed(machine.node_id, error, is_explained=machine.disk_failed)
        self.after(0.0, machine.kill)
        self.after(self.faults.rng.uniform(*RESTART_S), machine.start)

    def refused(self, machine: Machine, error: Exception) -> None:
        """A process does not start on its disk."""
        self.tell(machine.node_id, "refused", str(error))
        self.count("refused_start")
        self.monitors.refused(machine.node_id, error, is_explained=machine.disk_damaged)
        machine.refusal = str(error)
        self.after(0.0, machine.kill)
        if self.faults.rng.random() < REPLACED:
            self.after(self.faults.rng.uniform(*REPLACED_AFTER_S), self._replace_disk, machine)

    def _replace_disk(self, machine: Machine) -> None:
        """Somebody gives a node that refuses its disk an empty one."""
        if machine.process is None:
            machine.wipe()
            machine.start()

    def died_in_disk(self, machine: Machine) -> None:
        """A process dies inside a disk operation, by plan."""
        self.tell(machine.node_id, "died", "inside a disk operation")
        self.count("died_in_disk")
        machine.kill()
        machine.hold_down()
        self.after(max(RESTART_S[0], machine.dead_for_s), machine.let_go)

    def after(self, delay_s: float, callback: Any, *args: Any) -> None:
        """Call something of the world's own, whatever stands still."""
        self.queue.at(self.queue.now_s + delay_s, Event(WAKER, callback, args, None, 0.0))

    def _uncaught(self, loop: NodeLoop, error: BaseException, where: str) -> None:
        if isinstance(error, Broken) or self.monitors.violation is not None:
            self.queue.is_halted = True
            return
        try:
            self.monitors.broken("uncaught", f"{loop.name}: {where}: {error!r}")
        except Broken:
            self.queue.is_halted = True

    def _bury(self) -> None:
        for process in self.graveyard:
            process.loop.bury()
        self.graveyard.clear()

    def _bury_all(self) -> None:
        self._keeps_notes = False
        for machine in self.machines.values():
            machine.kill()
        for client in self._clients:
            client.loop.vanish()
            client.loop.bury()
        self._bury()

    def finals(self) -> list[FinalState]:
        """What every node that stands holds now, and what is final."""
        return [
            FinalState(
                node=process.node_id,
                index=process.replica.machine.index,
                digest=process.replica.machine.digest(),
                items=self._items(process),
                archived=self.final_items,
            )
            for process in self._standing()
        ]

    def _items(self, process: Process) -> dict[str, dict[str, Any]]:
        machine = process.replica.machine
        views = (machine.item(work_id) for work_id in machine.tables.items)
        return {view["work_id"].lower(): view for view in views if view is not None}

    def _result(self) -> Result:
        violation = self.monitors.violation
        return Result(
            plan=self.plan,
            violation=violation,
            violated_s=self.queue.now_s if violation is not None else None,
            simulated_s=self.queue.now_s,
            trace=crc32(self.network.trace.to_bytes(4, "big"), self.trace),
            counts=self.counts,
            endings=Counter(op.ending.value for op in self.ops),
            elections=self.monitors.terms,
            events=self.queue.events_run,
            messages=self.network.messages,
            history=History(self.ops),
            finals=self.finals(),
            notes=self.notes,
        )
