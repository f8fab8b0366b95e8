"""A node put together, started and stopped: the only place that knows every part."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
from aiohttp import http_parser, web

from ringraft import __version__
from ringraft.api.app import SERVICE, build_app
from ringraft.api.connection import Doors, listen
from ringraft.client import Client
from ringraft.clock import SystemClock
from ringraft.consensus.raft import RaftConsensus
from ringraft.consensus.roll import Self
from ringraft.membership.base import MemberState
from ringraft.membership.guest import GuestMembership
from ringraft.membership.heartbeat import HeartbeatMembership, Leader
from ringraft.membership.http import HttpTransport
from ringraft.membership.table import Report, Timers
from ringraft.metrics import Metrics, Snapshot
from ringraft.node.archive import Archive
from ringraft.node.identity import DataDirectory, Identity, StartRefused, propose_cluster_id
from ringraft.node.joining import ask_cluster
from ringraft.node.listener import BACKLOG, address_of, bind
from ringraft.node.load import SAMPLE_S, Load
from ringraft.node.logs import begin_logging
from ringraft.node.loops import Loops
from ringraft.node.memory import LOOK_S, Memory
from ringraft.node.process import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_REFUSED,
    connections_allowed,
    end_on_signals,
    say_ready,
)
from ringraft.node.rates import Rates
from ringraft.node.replica import Replica
from ringraft.node.selfview import metrics_snapshot, status_fields
from ringraft.node.voter import Voter
from ringraft.settings.address import is_loopback, split_address
from ringraft.settings.tree import Settings
from ringraft.worker.executors import ExecutorError
from ringraft.worker.runtime import Worker

log = logging.getLogger(__name__)

CLOSE_REQUESTS_S = 1.0
"""How long requests under way may take to end when the node stops."""

LINGER_S = 2.0
"""How long what is left of a refused body is read away, so that its sender sees the refusal."""

CONNECTIONS_MAX = 1024
"""Connections of this node to others, for forwarding and heartbeats."""


class Node:
    """One process of a cluster. ``replica``, ``consensus`` and ``archive`` are None where no log is kept."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.loops = Loops(self.clock, self.fail)
        self._memory = Memory(clock=self.clock, items=lambda: self.voter.items_held if self.voter else 0)
        self.identity: Identity
        self.membership: HeartbeatMembership | GuestMembership
        self.metrics: Metrics
        self.worker: Worker | None = None
        self.is_stopping = False
        self.url = ""
        self._address = ""
        self._contacts: Mapping[str, str] = {}
        self._directory: DataDirectory | None = None
        self._load: Load | None = None
        self._client: aiohttp.ClientSession | None = None
        self._bound: socket.socket | None = None
        self._rates = Rates(self.clock)
        self.voter: Voter | None = None
        self._worker_client: Client | None = None
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self.doors: Doors
        self.started_s = self.clock.monotonic_s()
        self._ended: asyncio.Future[int]
        self._is_graceful = True

    # What the API reads.

    @property
    def replica(self) -> Replica | None:
        return self.voter.replica if self.voter else None

    @property
    def consensus(self) -> RaftConsensus | None:
        return self.voter.consensus if self.voter else None

    @property
    def archive(self) -> Archive | None:
        return self.voter.archive if self.voter else None

    @property
    def client(self) -> aiohttp.ClientSession:
        """The session for requests to other nodes."""
        assert self._client is not None, "start comes first"
        return self._client

    @property
    def load(self) -> Load:
        """How busy the machine is."""
        assert self._load is not None, "start comes first"
        return self._load

    @property
    def cluster_addresses(self) -> Sequence[str]:
        """URLs of nodes that may be asked for the cluster, the likeliest first."""
        known = [self.leader_url()]
        known += [f"http://{address}" for address in (*self.settings.cluster.join, *self._voters().values())]
        for member in self.membership.members().values():
            if "voter" in member.roles and member.addresses:
                known.append(f"http://{member.addresses[0]}")
        return [url for url in dict.fromkeys(known) if url is not None and url != self.url]

    def leader_url(self) -> str | None:
        """Where the leader's API is, as the consensus says now, or at a worker as the heard voter says."""
        return self.leader().url

    def leader(self) -> Leader:
        """Who leads a majority, as the consensus says now, or at a worker as the heard voter says."""
        if self.voter is None:
            assert isinstance(self.membership, GuestMembership)
            return self.membership.leader()
        status = self.voter.consensus.status()
        leader_id = status.acting_leader_id
        return Leader(leader_id, None if leader_id is None else self.peer_url(leader_id), status.epoch.number)

    def peer_url(self, node_id: str) -> str | None:
        """Where node ``node_id``'s API is; None when nobody knows."""
        if node_id == self.identity.node_id:
            return self.url
        if node_id in self._voters():
            return f"http://{self._voters()[node_id]}"
        member = self.membership.members().get(node_id)
        return f"http://{member.addresses[0]}" if member is not None and member.addresses else None

    def resources(self) -> Mapping[str, Any]:
        """``{cpu_percent, memory_percent, disk_percent, gpus}`` as sampled last."""
        return self.load.resources()

    def last_elections(self) -> list[dict[str, Any]]:
        """``[{at, reason, duration_s, winner}]``, the newest first; empty where no log is kept."""
        return self.voter.elections.views() if self.voter is not None else []

    def rates(self) -> Mapping[str, float]:
        """How fast work moves here, for ``/work/status``."""
        return self._rates.per_minute()

    def status_fields(self) -> dict[str, Any]:
        """The parts of ``/status`` that only the node knows."""
        return status_fields(self)

    def metrics_snapshot(self) -> Snapshot:
        """What the gauges of ``/metrics`` show."""
        return metrics_snapshot(self)

    # Life.

    async def start(self) -> None:
        """Bind, replay, listen. Raises StartRefused, and has changed nothing then that matters later."""
        self._ended = asyncio.get_running_loop().create_future()
        settings = self.settings
        if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
            raise StartRefused(
                "aiohttp runs without its C parser, the slow one is laxer; reinstall aiohttp from a wheel"
            )
        if not is_loopback(settings.node.bind) and settings.auth.secret is None:
            raise StartRefused(
                f"node.bind {settings.node.bind} can be reached from other machines and there is no cluster secret; "
                "set auth.secret_file, or bind to 127.0.0.1"
            )
        host, port = split_address(settings.node.bind)
        self._bound = bind(host, port)
        try:
            await self._open(self._bound, host)
        except BaseException:
            await self._close()
            raise

    async def run_until_ended(self) -> int:
        """Wait for a reason to end, stop, and return the exit code."""
        code = await self._ended
        await self.stop(graceful=self._is_graceful and code == EXIT_DONE)
        return code

    def request_shutdown(self, *, graceful: bool = True) -> None:
        """End soon. Returns at once."""
        self._is_graceful = graceful
        self._end(EXIT_DONE)

    def fail(self, reason: str) -> None:
        """End with a failure: this process cannot do its part, the others go on."""
        log.error("node ends action=node_failed reason=%s", reason)
        self._end(EXIT_FAILED)

    async def stop(self, *, graceful: bool) -> None:
        """Stop; gracefully: end the work, say goodbye and hand leadership over first."""
        self.is_stopping = True
        log.info("stopping action=stop graceful=%s", graceful)
        if self.worker is not None:
            await self.worker.stop(drain_s=None if graceful else 0.0)
        await self.loops.stop()
        if graceful:
            if self.voter is not None:
                await self.voter.hand_over()
            await self.membership.stop()
        await self._close()
        log.info("stopped action=stopped")

    # Inside.

    async def _close(self) -> None:
        """Close what was opened, whatever that is: a start that failed half way ends here too."""
        await self.loops.stop()
        if self._bound is not None:
            self._bound.close()
        if self.voter is not None:
            # Before the requests under way are waited for: the peers' connections are some of them.
            await self.voter.close()
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()
        for session in (self._worker_client, self._client):
            if session is not None:
                await session.close()
        if self._load is not None:
            self._load.close()
        if self._directory is not None:
            self._directory.close()

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    def _founders(self) -> Mapping[str, str]:
        """The configured voters; none at a voter that joins."""
        voters = self.settings.cluster.voters
        if list(voters) == [self.settings.node.node_id]:
            return {self.settings.node.node_id: self._address}
        return voters

    def _voters(self) -> Mapping[str, str]:
        """Who keeps the log and where, as far as this node knows."""
        return self.voter.addresses() if self.voter is not None else self._founders()

    async def _open(self, bound: socket.socket, host: str) -> None:
        settings = self.settings
        self._address = settings.node.advertise or address_of(bound, host)
        self.url = f"http://{self._address}"
        self._directory = directory = DataDirectory.open(settings.node.data_dir.absolute())
        proposed = None
        if settings.node.is_voter and directory.cluster_id() is None:
            if self._founders():
                proposed = propose_cluster_id(self._founders())
            else:
                met = await ask_cluster(settings)
                proposed, self._contacts = met.cluster_id, met.voters
        self.identity = directory.identify(
            node_id=settings.node.node_id, cluster_id=settings.cluster.cluster_id, proposed=proposed
        )
        self._load = Load(directory.path)
        if settings.node.is_voter:
            self._memory.begin()
            await self._open_log(directory)
            self._memory.keep()
        directory.save(self.identity)
        self._client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX))
        self._begin_membership()
        self.metrics = Metrics(self, version=__version__, node_id=self.identity.node_id)
        await self._serve(bound)
        await self.membership.start()
        self._begin_loops()
        if settings.node.is_worker:
            await self._begin_work(directory)
        self._memory.settle()
        self.loops.every("memory", LOOK_S, self._memory.look)

    def _begin_loops(self) -> None:
        if self.voter is not None:
            assert isinstance(self.membership, HeartbeatMembership)
            self.voter.begin(self.membership)
            replica = self.voter.replica
            self.metrics.follow_items(lambda work_id: replica.machine.tables.item(work_id))
            replica.listen(self.metrics.applied)
            self.voter.consensus.meter.tell(self.metrics)
            self.voter.replica.listen(self._rates.applied)
        self.loops.standing("suspicions", self._count_suspicions)
        self.loops.every("load", SAMPLE_S, self.load.sample)
        self.loops.standing("loop_lag", self.load.watch_lag)

    async def _count_suspicions(self) -> None:
        seen: dict[str, int] = {}
        async for change in self.membership.watch():
            node_id, incarnation = change.member.node_id, change.member.incarnation
            if change.member.state is MemberState.SUSPECT:
                self.metrics.suspected()
            elif change.member.state is MemberState.ALIVE and seen.get(node_id) == incarnation:
                if change.before in (MemberState.SUSPECT, MemberState.DEAD):
                    self.metrics.reappeared(was_dead=change.before is MemberState.DEAD)
            seen[node_id] = incarnation

    def _removed(self) -> None:
        """The cluster does without this node: nothing failed, so a supervisor need not start it again."""
        log.warning("the cluster removed this node, which ends action=node_removed node=%s", self.identity.node_id)
        self.request_shutdown()

    async def _open_log(self, directory: DataDirectory) -> None:
        assert self.identity.cluster_id is not None
        voter = Voter(
            settings=self.settings,
            own=Self(self.identity.node_id, self._address, self.identity.data_id, self.identity.incarnation),
            founders=self._founders(),
            contacts=self._contacts,
            cluster_id=self.identity.cluster_id,
            data_dir=directory.path,
            clock=self.clock,
            loops=self.loops,
            on_failure=lambda fault: self.fail(str(fault)),
            on_removed=self._removed,
        )
        if self.identity.incarnation == 1:
            # A log must never lie in a directory that does not say whose it is.
            directory.save(self.identity)
        await voter.open()
        self.voter = voter

    def _begin_membership(self) -> None:
        settings = self.settings.membership
        if settings.trace:
            logging.getLogger("ringraft.membership").setLevel(logging.DEBUG)
        try:
            timers = Timers.derive(
                heartbeat_s=settings.heartbeat_s,
                peer_timeout_s=settings.peer_timeout_s,
                startup_grace_s=settings.startup_grace_s,
            )
        except ValueError as fault:
            raise StartRefused(str(fault)) from fault
        credential = self.settings.auth.credential()
        transport = HttpTransport(self.client, lambda: credential.reveal() if credential is not None else None)
        own = Report(
            node_id=self.identity.node_id,
            data_id=self.identity.data_id,
            incarnation=self.identity.incarnation,
            roles=tuple(role.value for role in self.settings.node.roles),
            addresses=(self._address,),
            version=__version__,
            priority=self.settings.node.priority,
        )
        if self.voter is None:
            self.membership = GuestMembership(
                own=own,
                cluster_id=self.identity.cluster_id,
                join=self.settings.cluster.join,
                timers=timers,
                transport=transport,
                clock=self.clock,
                raise_incarnation=self._raise_incarnation,
                learn_cluster=self._learn_cluster,
                resources=self.load.resources,
            )
            return
        assert self.identity.cluster_id is not None
        consensus = self.voter.consensus
        self.membership = HeartbeatMembership(
            own=own,
            cluster_id=self.identity.cluster_id,
            voters=self._voters(),
            timers=timers,
            transport=transport,
            clock=self.clock,
            leader=self.leader,
            raise_incarnation=self._raise_incarnation,
            resources=self.load.resources,
            applied_index=lambda: consensus.status().applied_index,
        )

    async def _raise_incarnation(self, known: int) -> int:
        """Go above ``known``, durably: another directory had this node's name before."""
        await self._store_identity(replace(self.identity, incarnation=known + 1))
        return self.identity.incarnation

    async def _learn_cluster(self, cluster_id: str) -> None:
        """Remember the cluster that this node met, so that its results never go to another."""
        await self._store_identity(replace(self.identity, cluster_id=cluster_id))

    async def _store_identity(self, identity: Identity) -> None:
        assert self._directory is not None
        # Two syncs of a small file, a few times in a node's life.
        await asyncio.to_thread(self._directory.save, identity)
        self.identity = identity

    async def _serve(self, bound: socket.socket) -> None:
        app = build_app(self)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            # A claim that waits for a client that is gone would be granted work that nobody does.
            handler_cancellation=True,
            shutdown_timeout=CLOSE_REQUESTS_S,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        http = self.settings.http
        allowed = connections_allowed(http.connections_max + http.connections_reserve)
        self.doors = Doors(http, app[SERVICE], connections_max=max(1, allowed - http.connections_reserve))
        self._listener = await listen(
            self._runner.server,
            bound,
            self.doors,
            backlog=BACKLOG,
            access_log=None,
            keepalive_timeout=http.idle_timeout_s,
            lingering_time=LINGER_S,
        )
        self._bound = None  # The listener closes it from now on.

    async def _begin_work(self, directory: DataDirectory) -> None:
        settings = self.settings
        credential = settings.auth.credential()
        own = [self._address] if self.voter is not None else []
        self._worker_client = Client(
            [*own, *settings.cluster.join, *self._voters().values()],
            token=credential.reveal() if credential is not None else None,
        )
        try:
            self.worker = Worker(
                node_id=self.identity.node_id,
                incarnation=self.identity.incarnation,
                data_dir=directory.path,
                client=self._worker_client,
                config=settings.worker,
                addresses=(self._address,),
                poll_s=settings.node.work_poll_interval_s,
            )
        except ExecutorError as fault:
            raise StartRefused(str(fault)) from fault
        await self.worker.start()
        self.loops.standing("worker", self.worker.wait, vital=True)


def run(settings: Settings) -> int:
    """Run a node until it is told to end; the process's exit code.

    0 after a stop that was asked for, 1 after a failure, 2 when this process must not start: one
    sentence on stderr says why, and nothing changed.
    """
    if not __debug__:
        print("ringraft: broken invariants must stop a node, so it does not run under python -O", file=sys.stderr)
        return EXIT_REFUSED
    try:
        begin_logging(settings.node.log_level.value, settings.node.log_dir, settings.node.node_id)
    except OSError as fault:
        print(f"ringraft: node.log_dir {settings.node.log_dir}: {fault.strerror}", file=sys.stderr)
        return EXIT_REFUSED
    try:
        return asyncio.run(_run(settings))
    except StartRefused as refusal:
        print(f"ringraft: {refusal}", file=sys.stderr)
        return EXIT_REFUSED


async def _run(settings: Settings) -> int:
    node = Node(settings)
    starting = asyncio.create_task(node.start(), name="start")

    def end() -> None:
        # Nothing was promised before the ready line: a start is broken off, not waited for.
        if starting.done():
            node.request_shutdown()
        else:
            starting.cancel()

    end_on_signals(end)
    await asyncio.wait({starting})
    if starting.cancelled():
        log.info("stopped before it was ready action=start_cancelled")
        return EXIT_DONE
    starting.result()
    say_ready(node.identity.node_id, node.url)
    return await node.run_until_ended()
