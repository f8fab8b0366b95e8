"""What each kind of fault does to a world, and how it is undone.

A fault begins and ends by the plan. Faults overlap: what two of them hold down stays down until both
are over, and healing ends all that are left at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from chaos.sim.disk import KEPT_MS, Inode
from chaos.sim.net import Weather
from chaos.sim.plan import LEADER, Fault
from ringraft.consensus.base import ProposalError, Role

if TYPE_CHECKING:
    from chaos.sim.node import Machine
    from chaos.sim.world import World

Undo = Callable[[], None]
Direction = tuple[str, str]
OLD_ENOUGH_S = 3.0
"""Data that was synced so long ago is known to be synced by what the journal itself keeps."""


class Faults:
    """The plan's faults on their way."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.rng = random.Random(f"{world.plan.seed} faults")
        self._undo: dict[int, Undo] = {}
        self._calm = world.network.weather
        self._healed = False
        self._harmed: set[str] = set()
        """Nodes whose disk was damaged: never more than a minority."""

    def arm(self) -> None:
        for number, fault in enumerate(self._world.plan.faults):
            if fault.at_s <= 0:
                self._begin(number, fault)
            else:
                self._world.after(fault.at_s, self._begin, number, fault)

    def heal(self) -> None:
        """Everything is over, at once."""
        self._healed = True
        for number in list(self._undo):
            self._end(number)
        self._world.network.weather = Weather()
        self._world.calls.answers_lost = 0.0
        for machine in self._world.machines.values():
            machine.deadly = None
            machine.disk.sync_ms = KEPT_MS
            self._set_rate(machine, 1.0)
            if machine.process is not None:
                machine.process.disk.deadly = None
            machine.start()

    def _begin(self, number: int, fault: Fault) -> None:
        if self._healed:
            return
        act: Callable[[Fault], Undo | None] = getattr(self, f"_{fault.kind}")
        self._world.tell("*", "fault", fault.told())
        self._world.count(fault.kind)
        undo = act(fault)
        if undo is not None:
            self._undo[number] = undo
            self._world.after(fault.for_s, self._end, number)

    def _end(self, number: int) -> None:
        undo = self._undo.pop(number, None)
        if undo is not None:
            self._world.tell("*", "fault over", self._world.plan.faults[number].told())
            undo()

    # Whom it hits

    def _machines(self, fault: Fault) -> list[Machine]:
        machines = list(self._world.machines.values())
        if fault.nodes == (LEADER,):
            leader = self._leader()
            return [leader if leader is not None else self.rng.choice(machines)]
        return [machines[number] for number in fault.nodes if number < len(machines)]

    def _leader(self) -> Machine | None:
        newest: tuple[int, Machine] | None = None
        for machine in self._world.machines.values():
            process = machine.process
            if process is None or not process.is_ready:
                continue
            status = process.consensus.status()
            if status.role is Role.LEADER and (newest is None or status.epoch.number > newest[0]):
                newest = (status.epoch.number, machine)
        return newest[1] if newest is not None else None

    # Processes and power

    def _hold_down(self, machines: Iterable[Machine], *, power: bool) -> Undo:
        held = list(machines)
        for machine in held:
            machine.hold_down()
            if power:
                machine.cut_power()
            else:
                machine.kill()

        def undo() -> None:
            for machine in held:
                machine.let_go()

        return undo

    def _kill(self, fault: Fault) -> Undo:
        return self._hold_down(self._machines(fault), power=False)

    def _power_cut(self, fault: Fault) -> Undo:
        return self._hold_down(self._machines(fault), power=True)

    _power_cut_all = _power_cut

    def _pause(self, fault: Fault) -> Undo:
        processes = [machine.process for machine in self._machines(fault) if machine.process is not None]
        for process in processes:
            self._world.tell(process.node_id, "pause", "stands still")
            process.loop.hold()
            self._world.network.await_pongs_of(process.node_id)

        def undo() -> None:
            for process in processes:
                if not process.loop.is_gone:
                    self._world.tell(process.node_id, "resume", "goes on")
                process.loop.release()

        return undo

    def _restart(self, fault: Fault) -> Undo:
        machines = self._machines(fault)
        for machine in machines:
            self._stop(machine, fault.for_s)
        return lambda: None

    def _stop(self, machine: Machine, for_s: float) -> None:
        process = machine.process
        if process is None or not process.is_ready:
            return
        machine.hold_down()
        world = self._world

        async def stop() -> None:
            await process.stop()
            if machine.process is process:
                world.after(0.0, machine.kill)

        process.loop.create_task(stop())

        def start() -> None:
            if machine.process is process:
                machine.kill()
            machine.let_go()

        world.after(for_s, start)

    def _rolling_restart(self, fault: Fault) -> Undo:
        machines = list(self._world.machines.values())
        each_s = fault.for_s / len(machines)
        for number, machine in enumerate(machines):
            self._world.after(number * each_s, self._stop, machine, each_s * 0.3)
        return lambda: None

    def _slow_node(self, fault: Fault) -> Undo:
        """The process runs for a share of each period only."""
        machine, period_s, share = self._machines(fault)[0], fault.args["period_s"], fault.args["share"]
        is_over = False

        def stop_it() -> None:
            process = machine.process
            if is_over:
                return
            if process is not None:
                process.loop.hold()
                self._world.after(period_s * (1 - share), process.loop.release)
            self._world.after(period_s, stop_it)

        def undo() -> None:
            nonlocal is_over
            is_over = True

        stop_it()
        return undo

    def _transfer(self, fault: Fault) -> None:
        machine = self._leader()
        if machine is None or machine.process is None:
            return
        process = machine.process

        async def transfer() -> None:
            try:
                await process.consensus.transfer(None, deadline_s=2.0)
            except ProposalError:
                return

        process.loop.create_task(transfer())

    # The network

    def _cut(self, directions: Iterable[Direction]) -> Undo:
        network, cut = self._world.network, list(directions)
        network.cut(cut)
        return lambda: network.mend(cut)

    def _isolate(self, fault: Fault) -> Undo:
        node = self._machines(fault)[0].node_id
        others = [other for other in self._world.node_ids if other != node]
        ways = fault.args["way"]
        directions = []
        if ways in ("both", "out"):
            directions += [(node, other) for other in others]
        if ways in ("both", "in"):
            directions += [(other, node) for other in others]
        return self._cut(directions)

    def _between(self, left: Iterable[str], right: Iterable[str]) -> list[Direction]:
        rights = list(right)
        return [pair for a in left for b in rights for pair in ((a, b), (b, a))]

    def _halves(self, fault: Fault) -> Undo:
        side = [machine.node_id for machine in self._machines(fault)]
        return self._cut(self._between(side, [node for node in self._world.node_ids if node not in side]))

    def _ring(self, fault: Fault) -> Undo:
        """Each node sees its two neighbours in a ring only, so each sees a majority of its own (of five)."""
        order = [machine.node_id for machine in self._machines(fault)]
        count = len(order)
        apart = [
            (a, b) for i, a in enumerate(order) for j, b in enumerate(order) if (i - j) % count not in (0, 1, count - 1)
        ]
        return self._cut(apart)

    def _bridge(self, fault: Fault) -> Undo:
        """Two sides that only one node connects."""
        order = [machine.node_id for machine in self._machines(fault)]
        half = (len(order) - 1) // 2
        return self._cut(self._between(order[1 : 1 + half], order[1 + half :]))

    def _one_link(self, fault: Fault) -> Undo:
        a, b = (machine.node_id for machine in self._machines(fault))
        return self._cut([(a, b)] if fault.args["way"] == "out" else [(a, b), (b, a)])

    def _flap(self, fault: Fault) -> Undo:
        a, b = (machine.node_id for machine in self._machines(fault))
        network, period_s = self._world.network, fault.args["period_s"]
        both = [(a, b), (b, a)]
        is_cut = is_over = False

        def turn() -> None:
            nonlocal is_cut
            if is_over:
                return
            is_cut = not is_cut
            (network.cut if is_cut else network.mend)(both)
            self._world.after(period_s, turn)

        def undo() -> None:
            nonlocal is_over
            is_over = True
            if is_cut:
                network.mend(both)

        turn()
        return undo

    def _resets(self, fault: Fault) -> Undo:
        is_over = False

        def reset() -> None:
            if is_over:
                return
            self._world.network.reset(*self.rng.sample(self._world.node_ids, 2))
            self._world.after(fault.args["every_s"], reset)

        def undo() -> None:
            nonlocal is_over
            is_over = True

        reset()
        return undo

    def _storm(self, fault: Fault) -> Undo:
        network, before = self._world.network, self._world.network.weather
        delay_s = fault.args["delay_ms"] / 1000
        network.weather = replace(
            before,
            delay_s=(before.delay_s[0], before.delay_s[1] + delay_s),
            loss=min(0.5, before.loss + fault.args["loss"]),
            duplicate=min(0.5, before.duplicate + fault.args["duplicate"]),
        )

        def undo() -> None:
            network.weather = self._calm

        return undo

    # Disks

    def _slow_disk(self, fault: Fault) -> Undo:
        disk = self._machines(fault)[0].disk
        low_ms, high_ms = fault.args["sync_ms"]
        disk.sync_ms = (low_ms, high_ms)

        def undo() -> None:
            disk.sync_ms = self._world.plan.sync_ms

        return undo

    def _fail_sync(self, fault: Fault) -> Undo:
        machine = self._machines(fault)[0]
        machine.disk.syncs_to_fail += 1
        machine.disk_failed = True

        def undo() -> None:
            machine.disk.syncs_to_fail = 0

        return undo

    def _full_disk(self, fault: Fault) -> Undo:
        machines = self._machines(fault)
        for machine in machines:
            machine.disk.is_full = machine.disk_failed = True

        def undo() -> None:
            for machine in machines:
                machine.disk.is_full = False

        return undo

    def _die_in_disk(self, fault: Fault) -> None:
        machine = self._machines(fault)[0]
        machine.dead_for_s = fault.for_s
        machine.deadly = (fault.args["step"], fault.args["count"], fault.args["moment"])
        if machine.process is not None:
            machine.process.disk.deadly, machine.deadly = machine.deadly, None

    def _bit_flip(self, fault: Fault) -> Undo | None:
        """Bytes that were durable change while the machine is down; of a minority of machines only."""
        machine = self._machines(fault)[0]
        harmed = self._harmed | {machine.node_id}
        if len(harmed) > (self._world.plan.voters - 1) // 2:
            return None
        undo = self._hold_down([machine], power=False)
        now_s = self._world.queue.now_s
        files: list[tuple[str, Inode]] = sorted(
            (path.name, inode)
            for path, inode in machine.disk.names.items()
            if path.name.startswith(fault.args["file"]) and now_s - inode.synced_s > OLD_ENOUGH_S and not inode.unsynced
        )
        if files:
            name, inode = self.rng.choice(files)
            place = self.rng.randrange(max(1, len(inode.data)))
            if fault.args["how"] == "flip":
                inode.data[place] ^= 1 << self.rng.randrange(8)
            else:
                del inode.data[place:]
            self._harmed, machine.disk_damaged = harmed, True
            self._world.tell(machine.node_id, "damage", f"{name} {fault.args['how']} at {place} of {len(inode.data)}")
        return undo

    def _wipe(self, fault: Fault) -> Undo | None:
        """A machine loses its whole disk; of a minority of machines only."""
        machine = self._machines(fault)[0]
        harmed = self._harmed | {machine.node_id}
        if len(harmed) > (self._world.plan.voters - 1) // 2:
            return None
        self._harmed = harmed
        undo = self._hold_down([machine], power=False)
        machine.wipe()
        return undo

    # Clocks

    def _clock_jump(self, fault: Fault) -> None:
        for machine in self._machines(fault):
            machine.wall_ahead_ms += fault.args["wall_ms"]
            if machine.process is not None:
                machine.process.clock.wall_ahead_ms = machine.wall_ahead_ms

    def _clock_rate(self, fault: Fault) -> Undo:
        machine, before = self._machines(fault)[0], self._machines(fault)[0].rate
        self._set_rate(machine, before * fault.args["rate"])
        return lambda: self._set_rate(machine, before)

    def _set_rate(self, machine: Machine, rate: float) -> None:
        machine.rate = rate
        if machine.process is not None:
            machine.process.clock.set_rate(rate)
