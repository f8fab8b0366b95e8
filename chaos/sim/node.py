"""One voter of the simulated cluster: the code that ships, put together as ``node.voter`` does it.

A ``Machine`` has a disk, clocks and power, and runs at most one ``Process`` at a time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from pysyncobj.node import Node

from chaos.sim.clock import NodeClock
from chaos.sim.disk import DiskHandle, SimDisk
from chaos.sim.door import Door
from chaos.sim.helper import HelperLock
from chaos.sim.loop import NodeLoop
from chaos.sim.net import SimLinks
from ringraft.consensus.raft import RaftConsensus
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog import journal, syncobj
from ringraft.consensus.replog.files import DiskFailed
from ringraft.consensus.replog.recovery import JournalDamaged
from ringraft.consensus.replog.snapshot import SnapshotDamaged
from ringraft.consensus.roll import Self
from ringraft.membership.base import Member, MemberChange, MemberState
from ringraft.node.duties import Duties
from ringraft.node.events import EventRing
from ringraft.node.replica import Rebuilding, Replica
from ringraft.state.machine import StateMachine
from ringraft.state.model import Applied, Entry, Limits

if TYPE_CHECKING:
    from chaos.sim.world import World

DIRECTORY = Path("/data")
EVENTS_KEPT = 1000
WAITERS_MAX = 1000
SWEEP_S = 1.0


class StableNode(Node):  # type: ignore[misc]
    """The library keeps nodes in sets; here their order is the same in every process that runs a seed."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self._place = crc32(id.encode())

    def __hash__(self) -> int:
        return self._place


setattr(journal, "Lock", HelperLock)  # noqa: B010 - a loop that waits for a lock waits in virtual time
setattr(syncobj, "Node", StableNode)  # noqa: B010 - the module does not offer the name


class StrictMachine(StateMachine):
    """A decider's bug is never contained, after a restore neither."""

    def __init__(self, *, strict: bool = True) -> None:
        super().__init__(strict=True)


class WatchedConsensus(RaftConsensus):
    """Shows each entry before it is applied."""

    watcher: Callable[[int, int, bytes], None]

    def apply(self, index: int, term: int, command: bytes) -> None:
        self.watcher(index, term, command)
        super().apply(index, term, command)


class WatchedReplica:
    """``Replicated``: the replica, and what it did shown to the monitors."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._replica = process.replica
        self._monitors = process.machine.world.monitors

    @property
    def log_ms(self) -> int:
        return self._replica.log_ms

    def apply(self, index: int, entry: Entry) -> Applied:
        applied = self._replica.apply(index, entry)
        self._monitors.applied(self._process.node_id, index, entry, applied, self._replica.machine)
        return applied

    def snapshot(self) -> Iterator[bytes]:
        self._process.machine.world.count("snapshots")
        return self._replica.snapshot()

    def rebuild(self) -> WatchedRebuilding:
        return WatchedRebuilding(self._process)

    def __getattr__(self, name: str) -> Any:
        # What the log asks of a replica besides, as it is.
        return getattr(self._replica, name)


class WatchedRebuilding(Rebuilding):
    """Shows the state that a snapshot came to."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.replica)
        self._process = process

    def replace(self) -> Iterator[None]:
        self._process.machine.world.count("restores")
        rubble = super().replace()
        self._process.machine.world.monitors.restored(self._process.node_id, self._process.replica.machine)
        return rubble


class Shelf:
    """``FinalItems``: keeps for the checkers what becomes final, as whoever applies it first sees it."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def finished(self, index: int, work_id: str) -> None:
        if self._is_first(index):
            item = self._process.replica.machine.item(work_id)
            if item is not None:
                self._world.final_items[work_id.lower()] = item

    def reopened(self, index: int, work_id: str) -> None:
        if self._is_first(index):
            self._world.final_items.pop(work_id.lower(), None)

    def rescan(self, index: int) -> None:
        """Nothing is missed: another replica applied what this one skips."""

    def _is_first(self, index: int) -> bool:
        through, holder = self._world.shelved
        if index < through or (index == through and holder is not self._process):
            return False
        self._world.shelved = (index, self._process)
        return True


class Membership:
    """Verdicts from whoever knows the truth; advice, as the real ones are."""

    def __init__(self, world: World, loop: NodeLoop) -> None:
        self._world = world
        self._changed = asyncio.Event()
        self._loop = loop

    def members(self) -> Mapping[str, Member]:
        return {
            machine.node_id: Member(
                node_id=machine.node_id,
                state=MemberState.ALIVE if machine.process is not None else MemberState.DEAD,
                incarnation=machine.incarnation,
                addresses=(),
                roles=("voter",),
                last_seen_s=0.0,
            )
            for machine in self._world.machines.values()
        }

    async def watch(self) -> AsyncIterator[MemberChange]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            member = next(iter(self.members().values()))
            yield MemberChange(member, None)

    def has_listened(self) -> bool:
        return False

    def changed(self) -> None:
        self._changed.set()


class Machine:
    """A host: what outlives its processes."""

    def __init__(self, world: World, number: int, rng: random.Random) -> None:
        plan = world.plan
        self.world = world
        self.number = number
        self.node_id = f"n{number + 1}"
        self.rng = rng
        self.disk = SimDisk(self.node_id, random.Random(rng.getrandbits(64)), world.watch)
        self.disk.sync_ms = plan.sync_ms
        self.disk.kept = plan.kept
        self.rate = plan.clock_rates[number] if plan.clock_rates else 1.0
        self.began_s = plan.clock_begins_s[number] if plan.clock_begins_s else 1000.0
        self.wall_ahead_ms = plan.wall_ahead_ms[number] if plan.wall_ahead_ms else 0
        self.incarnation = 0
        self.data_id = f"{rng.getrandbits(64):016x}"
        """Of the directory on the disk; another one once it is wiped."""
        self.process: Process | None = None
        self.down = 0
        """Faults that keep it down now."""
        self.disk_failed = False
        """The disk refused something: a process may stop because of it."""
        self.disk_damaged = False
        """Bytes on it changed: a process may refuse to start because of it."""
        self.refusal: str | None = None
        """Why its disk is good for nothing any more."""
        self.deadly: tuple[str, int, str] | None = None
        """Where its next process will die, as in ``DiskHandle``; and for how long it then stays away."""
        self.dead_for_s = 0.0

    def start(self) -> None:
        """Begin a process, unless one runs or a fault keeps the machine down."""
        if (
            self.process is not None
            or self.down
            or self.refusal is not None
            or not self.world.network.powered[self.node_id]
        ):
            return
        self.incarnation += 1
        self.process = Process(self)
        self.world.tell(self.node_id, "start", f"incarnation {self.incarnation}")
        self.process.loop.create_task(self.process.run(), name="process")
        self.world.members_changed()

    def kill(self, *, refuses: bool = True) -> None:
        """The process is gone between two instructions; what it wrote stays in the page cache."""
        process, self.process = self.process, None
        if process is None:
            return
        self.world.tell(self.node_id, "down", "killed" if refuses else "without power")
        process.loop.vanish()
        self.world.network.vanish(self.node_id, refuses=refuses)
        self.world.calls.vanish(self.node_id)
        self.world.graveyard.append(process)
        self.world.members_changed()

    def hold_down(self) -> None:
        """One more reason not to run; ``let_go`` takes it back."""
        self.down += 1

    def let_go(self) -> None:
        """Whoever held it down last leaves it with power and a process, whatever ended meanwhile."""
        self.down -= 1
        if self.down == 0:
            self.world.network.powered[self.node_id] = True
        self.start()

    def wipe(self) -> None:
        """Another disk, empty: whoever starts on it is not who was here before."""
        assert self.process is None, "a disk is changed while nothing runs"
        self.disk.wipe()
        self.data_id = f"{self.rng.getrandbits(64):016x}"
        self.incarnation = 0
        self.refusal = None
        self.disk_damaged = False
        self.world.monitors.forget(self.node_id)
        self.world.tell(self.node_id, "wipe", "an empty disk")

    def cut_power(self) -> None:
        self.world.network.powered[self.node_id] = False
        self.kill(refuses=False)
        self.disk.cut_power()


class Process:
    """One life of a voter."""

    def __init__(self, machine: Machine) -> None:
        world, plan = machine.world, machine.world.plan
        self.machine = machine
        self.node_id = machine.node_id
        self.clock = NodeClock(
            world.queue,
            rate=machine.rate,
            began_s=machine.began_s + world.queue.now_s * machine.rate,
            wall_ahead_ms=machine.wall_ahead_ms,
        )
        self.loop = loop = NodeLoop(world.queue, self.clock, self.node_id)
        self.clock.loop = loop
        rng = random.Random(machine.rng.getrandbits(64))
        loop.thread_delay = lambda: (machine.disk.delay_s(), machine.disk.rng.random() < 0.5)
        loop.splits = lambda: machine.disk.rng.random() < plan.splits
        self.disk = DiskHandle(machine.disk, loop, lambda: world.died_in_disk(machine))
        self.disk.deadly, machine.deadly = machine.deadly, None
        self.links = SimLinks(world.network, loop, self.node_id)
        self.replica = Replica(
            machine=StrictMachine(),
            clock=self.clock,
            archive=Shelf(world, self),
            events=EventRing(EVENTS_KEPT),
            waiters_max=WAITERS_MAX,
        )
        self.consensus = WatchedConsensus(
            own=Self(self.node_id, f"{self.node_id}:1", machine.data_id, machine.incarnation),
            voters={node_id: f"{node_id}:1" for node_id in world.node_ids},
            data_dir=DIRECTORY,
            replicated=WatchedReplica(self),
            config=RaftConfig(
                heartbeat_ms=plan.heartbeat_ms,
                election_min_ms=plan.election_min_ms,
                election_max_ms=plan.election_max_ms,
                snapshot_entries=plan.snapshot_entries,
                segment_bytes=plan.segment_bytes,
                entry_commands_max=plan.entry_commands_max,
            ),
            secret=None,
            cluster_id="sim",
            clock=self.clock,
            rng=rng,
            on_failure=self._failed,
            links=self.links,
            disk=self.disk,
        )
        self.consensus.watcher = lambda index, term, command: world.monitors.committed(
            self.node_id, index, term, command
        )
        self.replica.attach(self.consensus)
        self.door = Door(self.node_id, loop, self.replica, world.calls, rng)
        self.membership: Membership | None = None
        self.is_ready = False

    async def run(self) -> None:
        """Start, serve until the process ends."""
        world = self.machine.world
        try:
            await self.consensus.start()
        except (JournalDamaged, SnapshotDamaged) as fault:
            world.refused(self.machine, fault)
            return
        except DiskFailed as fault:
            self._failed(fault)
            return
        self.is_ready = True
        self.membership = Membership(world, self.loop)
        duties = Duties(
            node_id=self.node_id,
            replica=self.replica,
            consensus=self.consensus,
            membership=self.membership,
            limits=world.limits,
            clock=self.clock,
        )
        world.calls.doors[self.node_id] = (self.loop, self.door.serve)
        async with asyncio.TaskGroup() as group:
            group.create_task(duties.run(), name="duties")
            group.create_task(self._follow_leadership(), name="leadership")
            group.create_task(self._sweep(), name="sweep")

    async def stop(self) -> None:
        """End in order, handing nothing over."""
        self.replica.release_parked()
        await self.consensus.stop()

    async def _follow_leadership(self) -> None:
        world = self.machine.world
        async for leadership in self.consensus.watch():
            world.monitors.leads(self.node_id, leadership.leader_id, leadership.epoch.number)
            world.role_changed(self)
            self.door.leadership_changed()
            if leadership.leader_id != self.node_id:
                self.replica.release_parked()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.replica.sweep_parked()

    def _failed(self, error: BaseException) -> None:
        self.machine.world.process_failed(self.machine, error)


def limits(retention_ms: int) -> Limits:
    """Short times, so that much happens."""
    return Limits(
        retention_ms=retention_ms,
        lease_min_ms=100,
        lease_default_ms=2_000,
        key_grace_ms=5_000,
        backoff_base_ms=200,
        backoff_cap_ms=2_000,
        timers_per_entry=64,
    )
