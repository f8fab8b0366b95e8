"""Real processes on loopback, and a caller that sends exactly what it is told and keeps all that comes back."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tests.node.processes import ROOT, free_ports

T = TypeVar("T")

FAST = ("--set", "raft.heartbeat_ms=50", "--set", "raft.election_min_ms=200", "--set", "raft.election_max_ms=400")
"""Timers that make a failover short without making a loaded machine elect for nothing."""
END_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, whole."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    took_s: float

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def node(self) -> str:
        return self.headers["x-ringraft-node"]

    def ok(self, status: int = 200) -> Any:
        """The body, when the status is the one expected."""
        assert self.status == status, (self.status, self.raw[:2000])
        return self.body

    def refused(self, status: int, code: str) -> dict[str, Any]:
        """The problem, when it is the one expected and every member is there."""
        assert self.status == status, (self.status, self.raw[:2000])
        assert self.headers["content-type"].startswith("application/problem+json")
        problem = self.body
        assert problem["code"] == code, problem
        assert problem["type"] == f"urn:ringraft:problem:{code}"
        assert problem["status"] == status
        assert problem["instance"] == self.headers["x-ringraft-request-id"]
        for member, kind in (("title", str), ("detail", str), ("retryable", bool), ("term", int)):
            assert type(problem[member]) is kind, (member, problem)
        assert problem["outcome"] in ("not_applied", "applied", "unknown")
        assert problem["leader"] is None or set(problem["leader"]) == {"id", "url"}
        return dict(problem)


def call(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    raw: bytes | None = None,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 40.0,
) -> Answer:
    """One request on a connection of its own. ``raw`` goes as it is; ``body`` as JSON with its content type."""
    sent = dict(headers or {})
    if body is not None:
        raw = json.dumps(body).encode()
    if raw is not None:
        sent.setdefault("Content-Type", "application/json")
    if key is not None:
        sent["Idempotency-Key"] = key
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    begun_s = time.monotonic()
    try:
        connection.request(method, path, body=raw, headers=sent)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, content, time.monotonic() - begun_s)


class Process:
    """One node."""

    def __init__(
        self,
        directory: Path,
        module: str,
        node_id: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.node_id = node_id
        self.url = ""
        self.data_dir = directory / node_id
        self.ready: dict[str, Any] = {}
        self._errors = directory / f"{node_id}.err"
        self.command = [module, *arguments]
        self._environment = clean_environment() | dict(environment or {})
        self._directory = directory
        self._popen: subprocess.Popen[str] | None = None

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> Process:
        with self._errors.open("a") as errors:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", *self.command],
                cwd=ROOT,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        return self

    def wait_ready(self) -> Process:
        assert self._popen is not None
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, f"{self.node_id} ended with {self._popen.wait()}: {self.errors()}"
        self.ready = json.loads(line)
        self.url = self.ready["url"]
        return self

    def signal(self, number: signal.Signals) -> None:
        assert self._popen is not None
        self._popen.send_signal(number)

    def wait(self, timeout_s: float = END_S) -> int:
        """Its exit code."""
        assert self._popen is not None
        code = self._popen.wait(timeout=timeout_s)
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        return code

    def kill(self) -> None:
        if self._popen is not None:
            self._popen.send_signal(signal.SIGCONT)
            self._popen.kill()
            self.wait()

    def terminate(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def errors(self) -> str:
        return self._errors.read_text()[-4000:] if self._errors.exists() else ""


def clean_environment() -> dict[str, str]:
    """This environment without anything that a node would read from it."""
    ours = ("RINGRAFT_", "RINGRIFT_", "P2P_", "WORK_POLL", "HEARTBEAT_", "PEER_TIMEOUT")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def refused_start(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a node that must not start: exit 2, nothing on stdout; what it says."""
    found = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=clean_environment() | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
    )
    assert found.returncode == 2, (found.returncode, found.stdout, found.stderr)
    assert not found.stdout
    assert "Traceback" not in found.stderr
    return found.stderr


class Cluster:
    """Voters n1…, and the requests a stranger would send them."""

    def __init__(
        self, directory: Path, *flags: str, voters: int = 3, environment: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.ports = free_ports(voters)
        self.peers = ",".join(f"n{i + 1}=127.0.0.1:{port}" for i, port in enumerate(self.ports))
        self.headers: dict[str, str] = {}
        self.nodes: dict[str, Process] = {}
        for i, port in enumerate(self.ports):
            name = f"n{i + 1}"
            self.nodes[name] = Process(
                directory, "ringraft.cli.voter", name, "--node-id", name, "--bind", f"127.0.0.1:{port}",
                "--data-dir", str(directory / name), "--peers", self.peers, *FAST, *flags, environment=environment,
            )  # fmt: skip

    def start(self) -> Cluster:
        for node in self.nodes.values():
            node.start()
        for node in self.nodes.values():
            node.wait_ready()
        self.leader()
        return self

    def worker(
        self, node_id: str, *flags: str, join: str = "n1", environment: Mapping[str, str] | None = None
    ) -> Process:
        """A worker that is ready; ``close`` ends it."""
        worker = Process(
            self.directory, "ringraft.cli.worker", node_id, "--node-id", node_id, "--bind", "127.0.0.1:0",
            "--data-dir", str(self.directory / node_id), "--join", urlsplit(self.nodes[join].url).netloc, *flags,
            environment=environment,
        )  # fmt: skip
        self.nodes[node_id] = worker
        return worker.start().wait_ready()

    def close(self) -> None:
        for node in self.nodes.values():
            node.kill()

    def send(self, node: str, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        headers = {**self.headers, **options.pop("headers", {})}
        return call(self.nodes[node].url, method, path, body, headers=headers, **options)

    def get(self, node: str, path: str, **options: Any) -> Answer:
        return self.send(node, "GET", path, **options)

    def post(self, node: str, path: str, body: Any = None, **options: Any) -> Answer:
        return self.send(node, "POST", path, body, **options)

    def leader(self, among: list[str] | None = None) -> str:
        """Who leads, as soon as the nodes agree."""
        names = among or [name for name, node in self.nodes.items() if node.alive]

        def agreed() -> str | None:
            seen = {self.get(name, "/health").body["leader_id"] for name in names}
            return seen.pop() if len(seen) == 1 else None

        return str(eventually(agreed))

    def followers(self) -> list[str]:
        leader = self.leader()
        return [name for name in self.nodes if name.startswith("n") and name != leader]

    def add(self, node: str = "n1", **fields: Any) -> str:
        """Add one item; its id."""
        return str(self.post(node, "/work/add", fields).ok()["work_id"])

    def claim(self, work_type: str, node_id: str = "w-test", node: str = "n1", **fields: Any) -> list[dict[str, Any]]:
        body = {"node_id": node_id, "work_types": [work_type], **fields}
        return list(self.post(node, "/work/claim", body).ok()["items"])

    def item(self, work_id: str, node: str = "n1") -> dict[str, Any]:
        return dict(self.get(node, f"/work/item/{work_id}").ok())


def eventually(look: Callable[[], T | None], timeout_s: float = 15.0) -> T:
    """The first true answer of ``look()``; fails after ``timeout_s``."""
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            found = look()
        except (OSError, http.client.HTTPException):
            found = None
        if found:
            return found
        assert time.monotonic() < until_s, "did not come true in time"
        time.sleep(0.005)


@contextmanager
def meanwhile(function: Callable[[], T]) -> Iterator[Future[T]]:
    """Run ``function`` in a thread while the block runs."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(function)


def fresh(prefix: str = "t") -> str:
    """A name nobody used."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"
