"""Voters as processes that may be killed, started again and have their disks taken away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from ringraft.cli.local import LOCALHOST, free_ports
from ringraft.config import inherited_environment

READY_S = 30.0
POLL_S = 0.01
LINE_BYTES_MAX = 65_536


class NotReady(Exception):
    """A voter ended before it was ready, or took too long; with the end of its log."""


class Nursery:
    """The process that forks voters (``nursery.py``)."""

    def __init__(self, mutant: str | None = None) -> None:
        """``mutant`` names a planted bug that every voter has."""
        self._mutant = mutant
        self._process: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]
        self._started: asyncio.Queue[int | None] = asyncio.Queue()
        self._ends: dict[int, asyncio.Future[int]] = {}

    async def __aenter__(self) -> Nursery:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "chaos.disk.nursery",
            *([self._mutant] if self._mutant else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=inherited_environment(),
            limit=LINE_BYTES_MAX,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said: dict[str, int] = json.loads(line)
            if "started" in said:
                self._ends[said["started"]] = asyncio.get_running_loop().create_future()
                self._started.put_nowait(said["started"])
            else:
                self._ends[said["ended"]].set_result(said["code"])
        # Voters end with the process that forked them.
        for end in self._ends.values():
            if not end.done():
                end.set_result(-signal.SIGKILL)
        self._started.put_nowait(None)

    async def start(
        self, arguments: list[str], *, out: Path, log: Path, is_held: bool
    ) -> tuple[int, asyncio.Future[int]]:
        """Fork a voter: its pid, and its exit code once it ended (negative: the signal)."""
        assert self._process.stdin is not None
        order = {"start": arguments, "out": str(out), "log": str(log), "held": is_held}
        if self._process.returncode is None:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = await self._started.get()
        if pid is None:
            raise NotReady("the process that forks voters has ended; see what it said above")
        return pid, self._ends[pid]


@dataclass(slots=True)
class VoterProcess:
    """One voter; ``directory`` may lie on a disk of its own."""

    node_id: str
    address: str
    directory: Path
    aside: Path
    """Where what it writes to stdout and stderr is kept, out of reach of its disk's power."""
    arguments: list[str]
    pid: int = 0
    ended: asyncio.Future[int] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def log(self) -> Path:
        return self.aside / f"{self.node_id}.log"

    @property
    def out(self) -> Path:
        return self.aside / f"{self.node_id}.out"

    @property
    def is_running(self) -> bool:
        return self.ended is not None and not self.ended.done()

    async def start(self, nursery: Nursery, *, is_held: bool = False) -> None:
        """Fork it; ``ready`` waits until it listens. A held one stands still at its first instant."""
        assert not self.is_running, f"{self.node_id} runs"
        self.out.unlink(missing_ok=True)
        self.pid, self.ended = await nursery.start(self.arguments, out=self.out, log=self.log, is_held=is_held)

    async def ready(self) -> None:
        """Wait for its ready line. Raises NotReady."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while self.is_running:
                    if self.out.exists() and '"ready"' in self.out.read_text("utf-8", "replace"):
                        return
                    await asyncio.sleep(POLL_S)
        code = self.ended.result() if self.ended is not None and self.ended.done() else None
        raise NotReady(f"{self.node_id} was not ready, exit code {code}: {self.log_tail()}")

    def log_tail(self, lines: int = 3) -> str:
        """The last lines of its log, as one."""
        if not self.log.exists():
            return "no log"
        return " / ".join(self.log.read_text("utf-8", "replace").strip().splitlines()[-lines:])

    def kill(self) -> None:
        """kill -9; it may still be ending when this returns."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int | None:
        """Its exit code once it ended, None if it was never started."""
        return None if self.ended is None else await self.ended


@dataclass(slots=True)
class Voters:
    """The voters of one cluster, by node id."""

    nodes: dict[str, VoterProcess]
    nursery: Nursery
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def plan(cls, folder: Path, count: int, nursery: Nursery, settings: dict[str, str]) -> Voters:
        """n1, n2, … with free ports of this machine; node id ``n1`` keeps its data in ``folder/n1/data``."""
        names = [f"n{number}" for number in range(1, count + 1)]
        addresses = dict(zip(names, (f"{LOCALHOST}:{port}" for port in free_ports(count)), strict=True))
        peers = ",".join(f"{name}={address}" for name, address in addresses.items())
        nodes = {}
        for name, address in addresses.items():
            directory = folder / name / "data"
            # /dev/null as a settings file: one that lies in the present directory is not for this cluster.
            arguments = ["--node-id", name, "--bind", address, "--data-dir", str(directory), "--config", os.devnull]
            arguments += ["--peers", peers] if count > 1 else []
            arguments += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
            nodes[name] = VoterProcess(name, address, directory, folder, arguments)
        return cls(nodes, nursery, settings)

    async def start(self, names: list[str] | None = None) -> None:
        """Start these, all by default, without waiting until they are ready."""
        for name in names or list(self.nodes):
            await self.nodes[name].start(self.nursery)

    async def ready(self) -> None:
        """Wait until every voter that was started listens. Raises NotReady."""
        await asyncio.gather(*(node.ready() for node in self.nodes.values()))

    async def kill(self, names: list[str] | None = None) -> None:
        """kill -9 at once, then wait for their end."""
        chosen = [self.nodes[name] for name in names or list(self.nodes)]
        for node in chosen:
            node.kill()
        await asyncio.gather(*(node.wait() for node in chosen))

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes.values()]
