"""Real voter processes on loopback, for tests that kill them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[2]

READY_S = 30.0


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class VoterProcess:
    """One ``ringraft-voter``."""

    def __init__(self, directory: Path, node_id: str, bind: str, peers: str | None = None, *flags: str) -> None:
        self.node_id = node_id
        self.data_dir = directory / node_id
        self._errors = directory / f"{node_id}.err"
        self._arguments = ["--node-id", node_id, "--bind", bind, "--data-dir", str(self.data_dir), *flags]
        if peers is not None:
            self._arguments += ["--peers", peers]
        self.process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}
        self.url = f"http://{bind}"

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RINGRAFT_", "P2P_"))}
        with self._errors.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ringraft.cli.voter", *self._arguments],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def wait_ready(self) -> None:
        """Read the ready line; the process's own words when there is none."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.node_id} ended with {self.process.wait()}: {self.errors()}"
        self.ready = json.loads(line)
        self.url = self.ready["url"]

    def kill(self) -> None:
        """End it as the kernel does when memory is out: nothing is said, nothing is flushed."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        return self._end(signal.SIGTERM)

    def run(self) -> tuple[int, str, str]:
        """Run it to its end: exit code, stdout, stderr. For starts that are refused."""
        found = subprocess.run(
            [sys.executable, "-m", "ringraft.cli.voter", *self._arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )
        return found.returncode, found.stdout, found.stderr

    def errors(self) -> str:
        return self._errors.read_text()[-4000:] if self._errors.exists() else ""

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
        return code


class Cluster:
    """Three voters and a session to talk to them."""

    def __init__(self, directory: Path, *flags: str, voters: int = 3) -> None:
        ports = free_ports(voters)
        peers = ",".join(f"n{i + 1}=127.0.0.1:{port}" for i, port in enumerate(ports))
        self.voters = {
            f"n{i + 1}": VoterProcess(directory, f"n{i + 1}", f"127.0.0.1:{port}", peers, *flags)
            for i, port in enumerate(ports)
        }
        self.session: aiohttp.ClientSession

    async def __aenter__(self) -> Cluster:
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        try:
            self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        for voter in self.voters.values():
            voter.kill()

    def start(self) -> None:
        for voter in self.voters.values():
            voter.start()
        for voter in self.voters.values():
            voter.wait_ready()

    async def get(self, node_id: str, path: str) -> Any:
        async with self.session.get(self.voters[node_id].url + path) as answer:
            return await answer.json()

    async def post(self, node_id: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        url = self.voters[node_id].url + path
        async with self.session.post(url, json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def leader(self, among: list[str] | None = None) -> str:
        """Wait until the nodes agree on who leads."""
        names = among or list(self.voters)

        async def agreed() -> str | None:
            seen = {(await self.get(name, "/health"))["leader_id"] for name in names}
            return seen.pop() if len(seen) == 1 else None

        return str(await eventually_some(agreed))

    async def digests(self) -> set[tuple[int, str]]:
        """(index, digest) of every node; one element when they agree."""
        found = set()
        for name in self.voters:
            digest = (await self.get(name, "/status"))["state_digest"]
            found.add((digest["index"], digest["sha256"]))
        return found


async def eventually_some(look: Any, timeout_s: float = 15.0) -> Any:
    """The first true answer of ``look()``, failing after ``timeout_s``."""
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            found = await look()
        except (aiohttp.ClientError, TimeoutError):
            found = None
        if found:
            return found
        assert time.monotonic() < until_s, "did not come true in time"
        await asyncio.sleep(0.05)
