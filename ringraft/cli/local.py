"""A cluster of real processes on this machine, for ``ringraft dev`` and ``ringraft demo``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringraft.cli.exits import CommandFailed, ExitCode
from ringraft.config import inherited_environment

READY_S = 30.0
"""How long a node may take from start to its ready line."""
STOP_S = 15.0
"""How long a node may take to end after SIGTERM: drain, hand over, sync."""
START_TRIES = 3
"""Free ports are found and then used; somebody else may be quicker."""
READY_LINE_BYTES_MAX = 65_536
LOG_TAIL_LINES = 2
LOCALHOST = "127.0.0.1"


class PortTaken(Exception):
    """A node could not listen where it was told."""


@dataclass(slots=True)
class LocalNode:
    """One process: how it is started, and what its ready line said."""

    node_id: str
    arguments: tuple[str, ...]
    directory: Path
    process: asyncio.subprocess.Process | None = None
    url: str = ""
    pid: int = 0
    drain: asyncio.Task[None] | None = None

    @property
    def log(self) -> Path:
        """What the node wrote to stderr."""
        return self.directory.parent / f"{self.node_id}.log"

    @property
    def is_running(self) -> bool:
        """It was started and has not ended."""
        return self.process is not None and self.process.returncode is None

    async def start(self) -> None:
        """Start it and wait for its ready line. PortTaken, or CommandFailed with the end of its log."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *self.arguments,
                "--end-with-parent",
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=inherited_environment(),
                # Its own session: Ctrl-C reaches this process only, which then stops the nodes in order.
                start_new_session=True,
                limit=READY_LINE_BYTES_MAX,
            )
        try:
            async with asyncio.timeout(READY_S):
                ready = await self._ready_line()
        except TimeoutError:
            self.kill()
            raise CommandFailed(
                ExitCode.ERROR, f"{self.node_id} was not ready in {READY_S:g} s; see {self.log}"
            ) from None
        self.url, self.pid = ready["url"], ready["pid"]
        self.drain = asyncio.create_task(self._drain())

    async def _ready_line(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        while line := await self.process.stdout.readline():
            with suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and said.get("event") == "ready":
                    return said
        code = await self.process.wait()
        tail = self.log_tail()
        if code == ExitCode.USAGE and "in use" in tail and "data dir" not in tail:
            raise PortTaken(tail)
        raise CommandFailed(ExitCode.ERROR, f"{self.node_id} ended with code {code} before it was ready: {tail}")

    async def _drain(self) -> None:
        """Read on, so that a node that says more never blocks on a full pipe."""
        assert self.process is not None and self.process.stdout is not None
        while await self.process.stdout.read(READY_LINE_BYTES_MAX):
            pass

    def log_tail(self) -> str:
        """The last lines of its log, as one."""
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return " / ".join(lines[-LOG_TAIL_LINES:])

    def kill(self) -> None:
        """kill -9. Nothing happens when it has ended."""
        if self.is_running:
            assert self.process is not None
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and kill -9 when that is not enough."""
        if self.process is None:
            return
        if self.is_running:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_S):
                    await self.process.wait()
            except TimeoutError:
                self.kill()
                await self.process.wait()
        if self.drain is not None:
            await self.drain
            self.drain = None


@dataclass(slots=True)
class LocalCluster:
    """Voters n1, n2, … and workers w1, w2, … below one directory."""

    directory: Path
    voters: int
    workers: int
    first_port: int | None = None
    """The voters' first port when it and the following are free; else any free ones."""
    assignments: Mapping[str, str] = field(default_factory=dict)
    """Settings on top, for every node."""
    worker_assignments: Mapping[str, str] = field(default_factory=dict)
    nodes: dict[str, LocalNode] = field(default_factory=dict)

    async def start(self) -> None:
        """Start all; when one cannot, the rest is stopped again."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, START_TRIES + 1):
            addresses = self._addresses(attempt)
            self.nodes = {node.node_id: node for node in (*self._voters(addresses), *self._workers(addresses))}
            try:
                await self._start_all(self.voter_nodes())
                await self._start_all(self.worker_nodes())
                return
            except PortTaken as error:
                await self.stop()
                if attempt == START_TRIES:
                    raise CommandFailed(ExitCode.ERROR, f"no free ports: {error}") from None
            except BaseException:
                await self.stop()
                raise

    async def _start_all(self, nodes: Sequence[LocalNode]) -> None:
        ended = await asyncio.gather(*(node.start() for node in nodes), return_exceptions=True)
        for one in ended:
            if isinstance(one, BaseException):
                raise one

    async def stop(self) -> None:
        """Stop workers first, so that they can hand back what they hold."""
        await asyncio.gather(*(node.stop() for node in self.worker_nodes()))
        await asyncio.gather(*(node.stop() for node in self.voter_nodes()))

    def voter_nodes(self) -> list[LocalNode]:
        """n1, n2, …"""
        return [node for node in self.nodes.values() if node.node_id.startswith("n")]

    def worker_nodes(self) -> list[LocalNode]:
        """w1, w2, …"""
        return [node for node in self.nodes.values() if node.node_id.startswith("w")]

    def ended(self, but: str | None = None) -> str | None:
        """A sentence on a node that ended by itself, ``but`` aside; None when all run."""
        for node in self.nodes.values():
            if node.process is not None and not node.is_running and node.node_id != but:
                return f"{node.node_id} ended with code {node.process.returncode}: {node.log_tail()} ({node.log})"
        return None

    def urls(self) -> list[str]:
        """The voters that were started, running or not."""
        return [node.url for node in self.voter_nodes() if node.url]

    def _addresses(self, attempt: int) -> dict[str, str]:
        names = [f"n{i}" for i in range(1, self.voters + 1)]
        ports = None
        if self.first_port is not None and attempt == 1:
            ports = ports_if_free(range(self.first_port, self.first_port + self.voters))
        return {name: f"{LOCALHOST}:{port}" for name, port in zip(names, ports or free_ports(self.voters), strict=True)}

    def _voters(self, addresses: Mapping[str, str]) -> list[LocalNode]:
        peers = ",".join(f"{name}={address}" for name, address in addresses.items())
        return [
            self._node(name, "voter", self.assignments, "--bind", address, "--peers", peers)
            for name, address in addresses.items()
        ]

    def _workers(self, addresses: Mapping[str, str]) -> list[LocalNode]:
        settings = {**self.assignments, **self.worker_assignments}
        join = ",".join(addresses.values())
        return [self._node(f"w{i}", "worker", settings, "--join", join) for i in range(1, self.workers + 1)]

    def _node(self, node_id: str, kind: str, settings: Mapping[str, str], *more: str) -> LocalNode:
        directory = self.directory / node_id
        # /dev/null as a settings file: a file that lies about in the present directory is not for this cluster.
        identity = ("--node-id", node_id, "--data-dir", str(directory), "--config", os.devnull)
        assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return LocalNode(node_id, (f"ringraft.cli.{kind}", *identity, *more, *assignments), directory)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((LOCALHOST, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def ports_if_free(ports: Sequence[int]) -> list[int] | None:
    """These ports, or None when one of them is taken."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOCALHOST, port))
            except OSError:
                return None
    return list(ports)


def usable_cpus() -> int:
    """The CPUs this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
