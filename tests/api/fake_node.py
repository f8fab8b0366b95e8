"""Nodes small enough to turn by hand: the real replica and state machine over a log that applies at once.

``FakeCluster`` has one log and as many nodes as asked; who leads is set by the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from ringraft.api.app import build_app
from ringraft.api.auth import Credentials
from ringraft.clock import TurnableClock
from ringraft.config import load_settings
from ringraft.consensus.base import Indeterminate, Logged, Made, NotLeader, Role, Status, Unavailable, VoterStatus
from ringraft.membership.base import Member, MemberState
from ringraft.membership.heartbeat import Leader
from ringraft.membership.wire import parse_heartbeat
from ringraft.metrics import Metrics, Snapshot
from ringraft.node.events import EventRing
from ringraft.node.identity import Identity
from ringraft.node.replica import Replica
from ringraft.state.codec import COMMAND_VERSION
from ringraft.state.commands import Begin, Configure, FormVoters
from ringraft.state.machine import StateMachine
from ringraft.state.model import Command, Entry, Epoch, Outcome
from ringraft.state.records import VoterRecord
from ringraft.state.view import rfc3339

SECRET = "correct-horse-battery-staple-0123456789"


class FakeLog:
    """One node's end of the shared log."""

    def __init__(self, cluster: FakeCluster, node_id: str) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.fails: Exception | None = None
        """Raised by the next proposals, after applying when it is Indeterminate."""
        self.campaigns: list[str] = []
        self.contact_s: float | None = 0.0

    def status(self) -> Status:
        cluster = self.cluster
        others = [n for n in cluster.nodes if n != self.node_id]
        index = cluster.nodes[self.node_id].replica.machine.index
        leads = cluster.leader == self.node_id
        return Status(
            node_id=self.node_id,
            role=Role.LEADER if leads else Role.FOLLOWER,
            leader_id=cluster.leader,
            epoch=Epoch(0, cluster.term),
            commit_index=cluster.index,
            applied_index=index,
            last_index=cluster.index,
            snapshot_index=0,
            log_bytes=0,
            has_quorum=cluster.leader is not None,
            leader_contact_s=0.0 if leads else self.contact_s,
            voters=[VoterStatus(n, cluster.index, 0.1, cluster.is_connected) for n in others],
        )

    def first_index(self) -> int:
        return 1

    async def read_log(self, first: int, limit: int) -> list[Logged]:
        found = self.cluster.entries[first - 1 : first - 1 + limit]
        return [Logged(first + i, self.cluster.term, 100, entry) for i, entry in enumerate(found)]

    async def snapshot(self) -> Made:
        return Made(self.cluster.index, 4096, 1)

    def propose(self, command: Command, *, deadline_s: float) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        cluster = self.cluster
        if cluster.leader == self.node_id:
            cluster.proposed.append(command)
        if cluster.leader != self.node_id:
            future.set_exception(NotLeader(cluster.leader))
        elif isinstance(self.fails, Indeterminate):
            cluster.append(command)
            future.set_exception(self.fails)
        elif self.fails is not None:
            future.set_exception(self.fails)
        else:
            future.set_result(cluster.append(command))
        return future

    async def read_barrier(self, *, deadline_s: float) -> int:
        if self.cluster.leader is None:
            raise NotLeader(None)
        if isinstance(self.fails, Unavailable):
            raise self.fails
        return self.cluster.index

    async def transfer(self, to: str | None, *, deadline_s: float) -> str:
        others = [n for n in self.cluster.nodes if n != self.node_id]
        if not others:
            raise Unavailable("no_quorum", "no other voter is connected")
        self.cluster.lead(to or others[0])
        return to or others[0]

    def campaign(self, reason: str) -> None:
        self.campaigns.append(reason)

    async def accept_peer(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket


class FakeMembership:
    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.beats: list[Mapping[str, Any]] = []

    def members(self) -> dict[str, Member]:
        return {
            node_id: Member(node_id, MemberState.ALIVE, 1, (node.url.removeprefix("http://"),), ("voter",), 0.1)
            for node_id, node in self._cluster.nodes.items()
        }

    def heartbeat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        beat = parse_heartbeat(body)
        self.beats.append(body)
        return {
            "accepted": True,
            "reason": None,
            "known_incarnation": beat.report.incarnation,
            "cluster_id": "c-test",
            "node_id": "n1",
            "leader_id": self._cluster.leader,
            "leader_url": None,
            "term": 1,
            "view": "1",
            "members": None,
        }


class FakeLoops:
    def stats(self) -> dict[str, Any]:
        return {}

    def faults(self) -> list[str]:
        return []


class FakeWorker:
    """Serves output from a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[str] = []

    def log_path(self, work_id: str) -> Path | None:
        path = self.directory / work_id
        return path if path.exists() else None

    def status(self) -> dict[str, Any]:
        return {"running": [{"work_id": work_id} for work_id in self.running]}


class FakeArchive:
    """Final items in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    async def newest_row(self) -> int:
        return 0

    async def item(self, work_id: str) -> dict[str, Any] | None:
        return self.rows.get(work_id)

    async def history(self, *, limit: int, cursor: str | None, **filters: Any) -> tuple[list[dict[str, Any]], None]:
        return list(self.rows.values())[:limit], None


@dataclass
class FakeNode:
    """What ``build_app`` needs."""

    cluster: FakeCluster
    settings: Any
    replica: Any
    consensus: Any
    membership: Any
    archive: Any = None
    worker: Any = None
    identity: Identity = field(default_factory=lambda: Identity("c-test", "n1", "d-test", 1))
    loops: FakeLoops = field(default_factory=FakeLoops)
    client: Any = None
    metrics: Any = None
    url: str = ""
    server: TestServer | None = None
    shutdowns: list[bool] = field(default_factory=list)
    cluster_addresses: list[str] = field(default_factory=list)

    def leader_url(self) -> str | None:
        return self.peer_url(self.cluster.leader) if self.cluster.leader else None

    def leader(self) -> Leader:
        term = self.replica.status().epoch.number if self.replica is not None else 0
        return Leader(self.cluster.leader, self.leader_url(), term)

    def peer_url(self, node_id: str) -> str | None:
        node = self.cluster.nodes.get(node_id) or self.cluster.guests.get(node_id)
        return node.url if node is not None else None

    def request_shutdown(self, *, graceful: bool = True) -> None:
        self.shutdowns.append(graceful)

    def status_fields(self) -> dict[str, Any]:
        return {"background_loops": {}}

    def last_elections(self) -> list[dict[str, Any]]:
        events = [event for event in self.replica.events.since(0, 4096).events if event.type == "LEADER_ELECTED"]
        return [
            {"at": rfc3339(event.at_wall_ms), "reason": None, "duration_s": None, "winner": event.data["leader_id"]}
            for event in reversed(events)
        ]

    def resources(self) -> dict[str, Any]:
        return {"cpu_percent": 1.0, "memory_percent": 2.0, "disk_percent": 3.0, "gpus": []}

    def rates(self) -> dict[str, float]:
        return {"added": 0.0}

    def metrics_snapshot(self) -> Snapshot:
        status = self.replica.status() if self.replica is not None else None
        work = self.replica.machine.work_status() if self.replica is not None else None
        return Snapshot(status, work, {"alive": 1}, {})


class FakeCluster:
    """A log that applies at once at every node, and the nodes' servers."""

    def __init__(self, clock: TurnableClock | None = None) -> None:
        self.clock = clock or TurnableClock()
        self.nodes: dict[str, FakeNode] = {}
        self.guests: dict[str, FakeNode] = {}
        self.leader: str | None = None
        self.term = 0
        self.index = 0
        self.entries: list[Entry] = []
        self.is_connected = True
        self.proposed: list[Command] = []

    def append(self, *commands: Command) -> Outcome:
        self.index += 1
        entry = Entry(self.clock.monotonic_ms(), self.clock.wall_ms(), Epoch(0, self.term), commands)
        self.entries.append(entry)
        outcomes = [node.replica.apply(self.index, entry).outcomes for node in self.nodes.values()]
        assert all(one == outcomes[0] for one in outcomes), "replicas disagree"
        return outcomes[0][0]

    def form(self) -> None:
        """The nodes are the voters from now on."""
        founders = [VoterRecord(name, f"{name}:1", f"d-{name}", 1, True, COMMAND_VERSION) for name in self.nodes]
        self.append(Command(FormVoters("f", tuple(founders))))

    def lead(self, node_id: str | None) -> None:
        self.leader = node_id
        if node_id is not None:
            self.term += 1
            self.append(Command(Begin(node_id)))

    async def add_node(
        self,
        node_id: str,
        *,
        secret: str | None = SECRET,
        credentials: Credentials | None = None,
        is_worker: bool = False,
        **overrides: Any,
    ) -> FakeNode:
        values = {"node.node_id": node_id, "cluster.voters": f"{node_id}=127.0.0.1:8770", **overrides}
        if is_worker:
            values = {"node.node_id": node_id, "node.roles": "worker", "cluster.join": "127.0.0.1:1", **overrides}
        if secret is not None:
            values["auth.secret"] = secret
        settings = load_settings(values, env={})
        replica = consensus = None
        if not is_worker:
            replica = Replica(
                machine=StateMachine(strict=True),
                clock=self.clock,
                archive=None,
                events=EventRing(4096),
                waiters_max=settings.http.waiters_max,
            )
            consensus = FakeLog(self, node_id)
            replica.attach(consensus)
        node = FakeNode(self, settings, replica, consensus, FakeMembership(self))
        node.archive = None if is_worker else FakeArchive()
        node.client = aiohttp.ClientSession()
        node.metrics = Metrics(node, version="test", node_id=node_id)
        (self.guests if is_worker else self.nodes)[node_id] = node
        app = build_app(node, credentials)
        node.server = TestServer(app)
        await node.server.start_server()
        node.url = f"http://127.0.0.1:{node.server.port}"
        return node

    async def close(self) -> None:
        for node in [*self.guests.values(), *self.nodes.values()]:
            await node.client.close()
            assert node.server is not None
            await node.server.close()


async def until(holds: Callable[[], object], *, deadline_s: float = 5.0) -> None:
    """Return once ``holds`` is true; fail when it is not in time."""
    async with asyncio.timeout(deadline_s):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def one_node(**options: Any) -> AsyncIterator[FakeNode]:
    """A cluster of one that leads."""
    cluster = FakeCluster()
    node = await cluster.add_node("n1", **options)
    cluster.lead("n1")
    cluster.append(Command(Configure(node.settings.limits())))
    cluster.form()
    try:
        yield node
    finally:
        await cluster.close()


class Asker:
    """Requests to one node, with a credential."""

    def __init__(self, node: FakeNode, token: str | None = SECRET) -> None:
        self.node = node
        self.session = aiohttp.ClientSession()
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any, Mapping[str, str]]:
        headers = {**self.headers, **options.pop("headers", {})}
        async with self.session.request(
            method, self.node.url + path, headers=headers, allow_redirects=False, **options
        ) as answer:
            body = await answer.json() if answer.content_type.endswith("json") else await answer.text()
            return answer.status, body, answer.headers

    async def get(self, path: str, **options: Any) -> tuple[int, Any, Mapping[str, str]]:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, Any, Mapping[str, str]]:
        return await self.ask("POST", path, json=body, **options)
