"""A cluster in one thread on a clock that jumps to the next deadline: no waiting, no chance but the seed's."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgpack
from aiohttp import web

from ringraft.consensus.base import NotLeader, Unavailable
from ringraft.consensus.raft import RaftConsensus
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog.codec import Message, decode_all
from ringraft.consensus.replog.transport import LinkListener
from ringraft.consensus.roll import Self
from ringraft.state.codec import COMMAND_VERSION
from ringraft.state.commands import Cancel
from ringraft.state.machine import StateMachine
from ringraft.state.model import Applied, Command, Done, Entry, Outcome
from ringraft.state.records import VoterTable
from tests.consensus.memory_disk import DEATHS, Died, MemoryDisk

T = TypeVar("T")
DIRECTORY = Path("/data")


@dataclass(eq=False)
class Work:
    """What a node asked a thread to do."""

    executor: Any
    act: Callable[[], Any]
    future: asyncio.Future[Any]
    runs_late: bool
    """It happens when it ends, not when it begins."""
    timer: asyncio.TimerHandle | None = None

    def run(self) -> tuple[Any, Exception | None]:
        try:
            return self.act(), None
        except Exception as error:  # noqa: BLE001 - as a thread's: whoever waits for it gets it
            return None, error

    def tell(self, result: Any, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything can run, then jumps to the next timer.

    Threads' work runs inline, or takes as long as ``work_takes_s`` says and happens either when it
    begins or when it ends: whoever dies in between has or has not done it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self._clock_resolution = 1e-9
        self.work_takes_s: Callable[[Any], tuple[float, bool]] = lambda executor: (0.0, False)
        """(how long, whether it happens at the end), for an executor."""
        self.works: list[Work] = []

    def time(self) -> float:
        return self.now_s

    # The base class's own names for what is ready and what is scheduled; they have no public ones.
    _ready: Any
    _scheduled: Any
    _timer_cancelled_count: int

    def _run_once(self) -> None:
        if not self._ready:
            while self._scheduled and self._scheduled[0]._cancelled:
                self._scheduled[0]._scheduled = False
                heapq.heappop(self._scheduled)
                self._timer_cancelled_count -= 1
            assert self._scheduled, "everything waits and nothing will happen"
            self.now_s = max(self.now_s, self._scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        takes_s, runs_late = self.work_takes_s(executor)
        work = Work(executor, lambda: func(*args), self.create_future(), runs_late)
        if takes_s <= 0:
            work.tell(*work.run())
            return work.future
        self.works.append(work)
        outcome = None if runs_late else work.run()
        work.timer = self.call_later(takes_s, self._end_work, work, outcome)
        return work.future

    def _end_work(self, work: Work, outcome: tuple[Any, Exception | None] | None) -> None:
        self.works.remove(work)
        work.tell(*(outcome or work.run()))


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a scenario on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scenario)


class LoopClock:
    """A node's clocks on virtual time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.ahead_s = 0.0
        """Raised by a test when this node alone stood still: to it so much time has passed at once."""

    def monotonic_s(self) -> float:
        return self._loop.now_s + self.ahead_s

    def monotonic_ms(self) -> int:
        return int(self.monotonic_s() * 1000)

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self._loop.now_s * 1000)


class Notes:
    """A Replicated that remembers what it was told: the ids of Cancel commands, in order. Voters are the machine's."""

    def __init__(self) -> None:
        self.machine = StateMachine(strict=True)
        self.log_ms = 0
        self.generation = 0
        self.notes: list[str] = []
        self.entries: list[tuple[int, Entry]] = []
        self.restored = 0

    @property
    def voter_table(self) -> VoterTable:
        return self.machine.voter_table

    def apply(self, index: int, entry: Entry) -> Applied:
        assert not self.entries or index > self.entries[-1][0], "an entry was applied twice, or out of order"
        assert entry.log_ms >= self.log_ms, "log time went back"
        self.entries.append((index, entry))
        self.log_ms = entry.log_ms
        outcomes: list[Outcome] = []
        for command, outcome in zip(entry.commands, self.machine.apply(index, entry).outcomes, strict=True):
            if isinstance(command.op, Cancel):
                self.notes.append(str(command.op.work_id))
                outcome = Done({"count": len(self.notes), "index": index})
            outcomes.append(outcome)
        return Applied(tuple(outcomes), ())

    def snapshot(self) -> Iterator[bytes]:
        notes, log_ms = list(self.notes), self.log_ms
        yield msgpack.packb([log_ms, b"".join(self.machine.snapshot())])
        for start in range(0, len(notes), 10):
            yield msgpack.packb(notes[start : start + 10])

    def rebuild(self) -> Rebuilding:
        return Rebuilding(self)


class Rebuilding:
    """Notes on their way out of an image; ``ended`` is told before anything is replaced."""

    def __init__(self, state: Notes) -> None:
        self.state = state
        self.pieces: list[Any] = []

    def take(self, chunk: bytes) -> Iterator[None]:
        self.pieces.append(msgpack.unpackb(chunk))
        yield

    def end(self) -> None:
        assert self.pieces, "an image has at least one piece"

    def replace(self) -> Iterator[None]:
        state = self.state
        state.log_ms, image = self.pieces[0]
        state.machine = StateMachine.restore([image], strict=True)
        state.notes = [note for piece in self.pieces[1:] for note in piece]
        state.entries = []
        state.restored += 1
        return iter(())


class Network:
    """Links of all nodes. What is under way when a link is cut is lost; otherwise a link keeps order."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.nodes: dict[str, MemoryLinks] = {}
        self.cut: set[tuple[str, str]] = set()
        self.duplicate = 0.0
        self.reorder = False
        self.delay_ms = (0.2, 0.8)
        self.sent: list[tuple[str, str, Message]] = []
        self.keep_sent = False
        self.tamper: Callable[[str, str, Message], bool] | None = None
        """Returns False for a message that gets lost."""

    def is_open(self, source: str, target: str) -> bool:
        """Both run, one of them knows the other, and nothing is cut."""
        if source not in self.nodes or target not in self.nodes or (source, target) in self.cut:
            return False
        return source in self.nodes[target].peers or target in self.nodes[source].peers

    def refresh(self) -> None:
        """Tell every node which of its links are up, a moment later."""
        for links in self.nodes.values():
            for peer in self.nodes:
                self.loop.call_later(0.002, links.look, peer)

    def partition(self, *sides: Iterable[str]) -> None:
        groups = [set(side) for side in sides]
        side_of = {name: number for number, group in enumerate(groups) for name in group}
        names = list(side_of)
        self.cut = {(a, b) for a in names for b in names if side_of[a] != side_of[b]}
        self.refresh()

    def heal(self) -> None:
        self.cut = set()
        self.refresh()


class MemoryLinks:
    """``Links`` over a Network."""

    def __init__(self, network: Network, node_id: str, peers: Iterable[str]) -> None:
        self.network = network
        self.node_id = node_id
        self.peers = [peer for peer in peers if peer != node_id]
        self.up: dict[str, int] = {}
        self.busy_until_s: dict[str, float] = {}
        self.generation = 0
        self.listener: LinkListener | None = None

    async def start(self, listener: LinkListener) -> None:
        self.listener = listener
        self.network.nodes[self.node_id] = self
        self.network.refresh()

    async def stop(self) -> None:
        self.vanish(refuses=False)

    def follow(self, peers: Mapping[str, str]) -> None:
        self.peers = list(peers)
        if self.listener is not None:
            self.network.refresh()

    def vanish(self, *, refuses: bool) -> None:
        if self.network.nodes.get(self.node_id) is not self:
            return
        del self.network.nodes[self.node_id]
        self.listener = None
        for other in self.network.nodes.values():
            self.network.loop.call_later(0.001, other.look, self.node_id)
            if refuses:
                self.network.loop.call_later(0.003, other.refused, self.node_id)

    def look(self, peer: str) -> None:
        """Notice whether the way to ``peer`` is open."""
        is_up = peer != self.node_id and self.network.is_open(self.node_id, peer)
        if self.listener is None or is_up == (peer in self.up):
            return
        self.generation += 1
        if is_up:
            self.up[peer] = self.generation
        else:
            del self.up[peer]
        self.listener.on_link(peer, is_up)

    def refused(self, peer: str) -> None:
        if self.listener is not None and peer not in self.network.nodes:
            self.listener.on_refused(peer)

    def send(self, peer: str, frame: bytes) -> None:
        network = self.network
        if peer not in self.up:
            return
        for message in decode_all(frame):
            if network.keep_sent:
                network.sent.append((self.node_id, peer, message))
            if network.tamper is not None and not network.tamper(self.node_id, peer, message):
                continue
            copies = 2 if network.rng.random() < network.duplicate else 1
            for _ in range(copies):
                at_s = network.loop.time() + network.rng.uniform(*network.delay_ms) / 1000
                if not network.reorder:
                    at_s = max(at_s, self.busy_until_s.get(peer, 0.0) + 1e-6)
                    self.busy_until_s[peer] = at_s
                network.loop.call_at(at_s, self._deliver, peer, self.up[peer], message)

    def _deliver(self, peer: str, generation: int, message: Message) -> None:
        target = self.network.nodes.get(peer)
        if self.up.get(peer) == generation and self.network.is_open(self.node_id, peer) and target is not None:
            if target.listener is not None:
                target.listener.on_messages(self.node_id, [message])

    async def accept_peer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError("messages come through the simulated network")


class Cluster:
    """Nodes that can be killed and started again on the same disks."""

    def __init__(self, count: int, *, seed: int = 1, config: RaftConfig | None = None) -> None:
        self.loop: VirtualLoop = asyncio.get_running_loop()  # type: ignore[assignment]
        self.rng = random.Random(seed)
        self.network = Network(self.loop, self.rng)
        self.names = [f"n{number}" for number in range(1, count + 1)]
        self.config = config or RaftConfig()
        self.disks = {name: MemoryDisk() for name in self.names}
        self.nodes: dict[str, RaftConsensus] = {}
        self.states: dict[str, Notes] = {}
        self.founders = list(self.names)
        """The configured voters; others join."""
        self.data_ids = {name: f"{name}-1" for name in self.names}
        self.incarnations = dict.fromkeys(self.names, 0)
        self.versions: dict[str, int] = {}
        """The newest command version of a node that is not of this one."""
        self.removed: set[str] = set()
        self.failures: dict[str, BaseException] = {}
        self.expected_failures = False
        self.disk_ms: dict[str, tuple[float, float]] = {}
        """How long a node's syncs take, from and to; at once where nothing is said."""
        self.may_tell_late = False
        """Some syncs are done at once, and only told of after that time."""
        self.loop.work_takes_s = self._work_takes_s

    def _work_takes_s(self, executor: Any) -> tuple[float, bool]:
        for name, node in self.nodes.items():
            if name in self.disk_ms and executor in (node._syncer._thread, node._snapshot_thread):
                return self.rng.uniform(*self.disk_ms[name]) / 1000, not (
                    self.may_tell_late and self.rng.random() < 0.5
                )
        return 0.0, False

    async def start(self, *names: str) -> None:
        for name in names or [name for name in self.names if name not in self.nodes]:
            assert name not in self.nodes, f"{name} runs already"
            self.states[name] = state = Notes()
            self.incarnations[name] += 1
            version = self.versions.get(name, COMMAND_VERSION)
            self.nodes[name] = node = RaftConsensus(
                own=Self(name, f"{name}:1", self.data_ids[name], self.incarnations[name], version),
                voters={voter: f"{voter}:1" for voter in self.founders} if name in self.founders else {},
                contacts={} if name in self.founders else {voter: f"{voter}:1" for voter in self.founders},
                data_dir=DIRECTORY,
                replicated=state,
                config=self.config,
                secret=None,
                cluster_id="test",
                clock=LoopClock(self.loop),
                rng=random.Random(self.rng.random()),
                on_failure=lambda error, name=name: self.failures.__setitem__(name, error),  # type: ignore[misc]
                on_removed=lambda name=name: self.removed.add(name),  # type: ignore[misc]
                links=MemoryLinks(self.network, name, []),
                disk=self.disks[name],
            )
            await node.start()

    def wipe(self, name: str) -> None:
        """Somebody emptied the directory of a node that does not run."""
        assert name not in self.nodes
        self.disks[name] = MemoryDisk()
        self.data_ids[name] = f"{name}-{int(self.data_ids[name].split('-')[1]) + 1}"
        self.incarnations[name] = 0

    def wipe_new(self, name: str) -> None:
        """Another machine, with an empty directory."""
        self.disks[name], self.data_ids[name], self.incarnations[name] = MemoryDisk(), f"{name}-1", 0

    def kill(self, name: str, *, refuses: bool = True) -> None:
        """As kill -9: nothing is said, nothing more is written."""
        node = self.nodes.pop(name)
        links = node._links
        assert isinstance(links, MemoryLinks)
        links.vanish(refuses=refuses)
        node._halt()
        self.states.pop(name)
        disk = self.disks[name]
        for work in [
            work for work in self.loop.works if work.executor in (node._syncer._thread, node._snapshot_thread)
        ]:
            self.loop.works.remove(work)
            assert work.timer is not None
            work.timer.cancel()
            work.future.cancel()
            if work.runs_late and self.rng.random() < 0.5:
                # It dies in the middle of it.
                disk.die_at, disk.death = disk.operations + self.rng.randint(1, 6), self.rng.choice(DEATHS)
                with contextlib.suppress(Died):
                    work.run()
                disk.die_at = None
        self.disks[name] = disk.after_kill()

    def cut_power(self, *names: str) -> None:
        """Nodes that run die, and what was not synced is kept, lost or torn, by the seed."""
        for name in names or sorted(self.nodes):
            if name in self.nodes:
                self.kill(name)
            self.disks[name] = self.disks[name].after_power_cut(self.rng)

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.stop()
        assert self.expected_failures or not self.failures, self.failures

    async def until(self, holds: Callable[[], Any], limit_s: float = 10.0) -> Any:
        end_s = self.loop.time() + limit_s
        while not (value := holds()):
            assert self.loop.time() < end_s, f"not within {limit_s} s: {self.describe()}"
            assert self.expected_failures or not self.failures, self.failures
            await asyncio.sleep(0.001)
        return value

    def describe(self) -> str:
        return "\n" + "\n".join(str(node.status()) for node in self.nodes.values())

    def leader_now(self) -> str | None:
        """The leader of the newest term that a majority follows, once the log names the voters and enters nothing."""
        for name, node in self.nodes.items():
            if not node.status().role == "leader" or not node._roll.is_formed or node._enrolment._under_way is not None:
                continue
            followers = [other for other, its in self.nodes.items() if its.status().leader_id == name]
            voters = [voter.node_id for voter in node.status().voters]
            if len([n for n in followers if n in voters]) * 2 > len(voters):
                return name
        return None

    async def leader(self) -> str:
        return str(await self.until(self.leader_now))

    async def deposed(self, old: str) -> str:
        """Wait until another than ``old`` leads."""
        return str(await self.until(lambda: self.leader_now() not in (None, old) and self.leader_now()))

    async def write(self, note: str, *, deadline_s: float = 5.0) -> int:
        """Write until it is acknowledged, at whoever leads; returns how many notes there were."""
        while True:
            name = await self.leader()
            try:
                outcome = await self.nodes[name].propose(Command(Cancel(work_id=note)), deadline_s=deadline_s)
                assert isinstance(outcome, Done)
                return int(outcome.value["count"])
            except (NotLeader, Unavailable):
                await asyncio.sleep(0.005)

    async def converged(self, limit_s: float = 10.0) -> list[str]:
        """All nodes hold the same notes; returns them."""

        def same() -> bool:
            states = [state.notes for state in self.states.values()]
            indexes = {node.applied_index for node in self.nodes.values()}
            return len(indexes) == 1 and all(notes == states[0] for notes in states)

        await self.until(same, limit_s)
        return next(iter(self.states.values())).notes


@contextlib.asynccontextmanager
async def cluster(count: int, *, seed: int = 1, config: RaftConfig | None = None) -> AsyncIterator[Cluster]:
    made = Cluster(count, seed=seed, config=config)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def note(text: str) -> Command:
    return Command(Cancel(work_id=text))
