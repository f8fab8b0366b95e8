"""Slow clients, too many clients, and what is no HTTP."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.cluster import FAST, Cluster, Process, call, eventually, fresh
from tests.node.processes import free_ports

HEADER_S = 1.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    directory: Path = tmp_path_factory.mktemp("node")
    (port,) = free_ports(1)
    settings = {
        "http.header_timeout_s": HEADER_S, "http.body_timeout_s": 1, "http.idle_timeout_s": 2,
        "http.connections_max": 220, "http.connections_per_address_max": 210, "http.connections_reserve": 5,
    }  # fmt: skip
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    process = Process(
        directory, "ringraft.cli.voter", "n1", "--node-id", "n1", "--bind", f"127.0.0.1:{port}",
        "--data-dir", str(directory / "n1"), "--peers", f"n1=127.0.0.1:{port}", *FAST, *flags,
    )  # fmt: skip
    try:
        yield process.start().wait_ready()
    finally:
        process.kill()


def dial(node: Process, begins: bytes = b"", address: str = "127.0.0.1") -> socket.socket:
    port = int(node.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(address, 0))
    connection.sendall(begins)
    return connection


def rest(connection: socket.socket) -> bytes:
    """Everything until the other side ends."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def problem_of(raw: bytes) -> tuple[int, dict[str, object]]:
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    assert headers["content-type"].startswith("application/problem+json"), raw
    problem = json.loads(body)
    assert problem["instance"] == headers["x-ringraft-request-id"]
    return int(lines[0].split()[1]), problem


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n",
        b"POST /work/add HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 9000 + b"\r\n\r\n",
    ],
    ids=["tls", "header name", "length", "too long"],
)
def test_what_is_no_http_is_refused_like_everything_else(node: Process, sent: bytes) -> None:
    with closing(dial(node, sent)) as connection:
        status, problem = problem_of(rest(connection))
    assert (status, problem["code"], problem["outcome"]) == (400, "bad_json", "not_applied")
    assert str(problem["detail"]).isprintable()


def test_slow_heads_are_cut_off_and_health_stays_quick(node: Process) -> None:
    begun_s = time.monotonic()
    slow = [dial(node, b"GET /status HTTP/1.1\r\nHost: x\r\nX-Slow: ") for _ in range(200)]
    try:
        slowest_s = 0.0
        open_ones = list(slow)
        while open_ones and time.monotonic() - begun_s < 20:
            slowest_s = max(slowest_s, call(node.url, "GET", "/health").took_s)
            for connection in list(open_ones):
                try:
                    connection.sendall(b"a")
                    connection.setblocking(False)
                    if connection.recv(1) == b"":
                        open_ones.remove(connection)
                except BlockingIOError:
                    pass
                except OSError:
                    open_ones.remove(connection)
        assert not open_ones
        assert time.monotonic() - begun_s < HEADER_S + 4
        assert slowest_s < 0.2
    finally:
        for connection in slow:
            connection.close()


def test_a_slow_second_head_is_cut_off_too(node: Process) -> None:
    whole = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with closing(dial(node, whole)) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        begun_s = time.monotonic()
        connection.sendall(b"GET /livez HTTP/1.1\r\nHo")
        assert rest(connection) == b""
        assert time.monotonic() - begun_s < HEADER_S + 0.7


def test_a_slow_body_is_refused_and_an_idle_connection_ended(node: Process) -> None:
    head = b"POST /work/add HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with closing(dial(node, head)) as connection:
        status, problem = problem_of(rest(connection))
        assert status == 400
        assert "1 s" in str(problem["detail"])
    with closing(dial(node, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")) as connection:
        begun_s = time.monotonic()
        rest(connection)
        assert 1.5 < time.monotonic() - begun_s < 5


def test_a_full_node_answers_health_and_peers_only(node: Process) -> None:
    eventually(lambda: call(node.url, "GET", "/livez").status == 200)
    held = [dial(node, b"GET /events?wait_s=20&since=999999 HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(210)]
    try:
        eventually(lambda: b" 429 " in rest_of(node, b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"))
        status, problem = problem_of(rest_of(node, b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"))
        assert (status, problem["code"], problem["retryable"]) == (429, "rate_limited", True)
        assert "connections_per_address_max" in str(problem["detail"])
        health = call(node.url, "GET", "/health")
        assert health.status == 200
        assert health.took_s < 0.2
        # Another address still has its share, up to the bound of all.
        with closing(dial(node, b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n", "127.0.0.2")) as other:
            assert other.recv(12) == b"HTTP/1.1 200"
        # A place of the reserve is good for what it was given for only.
        with closing(dial(node, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")) as sly:
            assert sly.recv(65536).startswith(b"HTTP/1.1 200")
            sly.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 429 " in rest(sly)
    finally:
        for connection in held:
            connection.close()
    eventually(lambda: b" 200 " in rest_of(node, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    assert 'ringraft_http_connections_closed_total{reason="full"}' in call(node.url, "GET", "/metrics").raw.decode()


def test_slow_clients_of_the_leader_cause_no_election(shared: Cluster) -> None:
    leader = shared.leader()
    term = shared.get(leader, "/raft/status").body["term"]
    heads = [dial(shared.nodes[leader], b"GET /status HTTP/1.1\r\nX-Slow: ") for _ in range(150)]
    head = b"POST /work/add HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    bodies = [dial(shared.nodes[leader], head) for _ in range(50)]
    try:
        until_s = time.monotonic() + 3
        while time.monotonic() < until_s:
            assert shared.get(leader, "/health").took_s < 0.2
            assert shared.post(shared.followers()[0], "/work/add", {"work_type": fresh()}).status == 200
        assert shared.get(leader, "/raft/status").body["term"] == term
    finally:
        for connection in heads + bodies:
            connection.close()


def rest_of(node: Process, sent: bytes) -> bytes:
    with closing(dial(node, sent)) as connection:
        connection.settimeout(3)
        return connection.recv(65536)
