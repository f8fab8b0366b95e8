"""With a cluster secret: every route without a credential, with a wrong one and with the right one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgpack
import pytest

from tests.integration.cluster import Cluster, clean_environment, free_ports, fresh, refused_start

SECRET = "a-secret-of-more-than-sixteen-characters"
OPEN = ("/health", "/livez", "/readyz")
VOTER = "ringraft.cli.voter"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("guarded")
    secret = directory / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    cluster = Cluster(directory, "--set", f"auth.secret_file={secret}")
    cluster.headers = {"Authorization": f"Bearer {SECRET}"}
    try:
        yield cluster.start()
    finally:
        cluster.close()


def test_every_route_but_the_open_ones_wants_a_credential(guarded: Cluster) -> None:
    paths = guarded.get("n1", "/openapi.json").ok()["paths"]
    closed = 0
    for path, methods in paths.items():
        for method in methods:
            if method not in ("get", "post", "put", "delete"):
                continue
            target = re.sub(r"\{[^}]*\}", "x", path)
            for credential in ("", "Bearer wrong", "Basic eDp5", f"Bearer {SECRET}x", "Bearer "):
                headers = {"Authorization": credential} if credential else {"Authorization": ""}
                body = {} if method == "post" else None
                answer = guarded.send("n2", method.upper(), target, body, headers=headers)
                if path in OPEN or path == "/":
                    assert answer.status != 401, path
                else:
                    problem = answer.refused(401, "unauthenticated")
                    assert problem["outcome"] == "not_applied"
                    assert answer.headers["www-authenticate"].lower().startswith("bearer")
                    closed += 1
    assert closed > 100


def test_the_secret_opens_every_node(guarded: Cluster) -> None:
    for node in ("n1", "n2", "n3"):
        assert guarded.post(node, "/work/add", {"work_type": fresh()}).ok()["status"] == "added"
        for path in ("/status", "/peers", "/events", "/metrics", "/work/items", "/raft/digest", "/election/status"):
            assert guarded.get(node, path).status == 200


def test_open_routes_tell_no_secret(guarded: Cluster) -> None:
    for path in (*OPEN, "/status", "/metrics", "/openapi.json"):
        assert SECRET.encode() not in guarded.get("n1", path).raw


def test_secrets_are_not_logged_or_kept(guarded: Cluster) -> None:
    guarded.post("n1", "/work/add", {"work_type": fresh()}).ok()
    guarded.get("n1", "/status", headers={"Authorization": "Bearer wrong-credential"})
    for file in guarded.directory.rglob("*"):
        if file.is_file() and file.name != "secret":
            content = file.read_bytes()
            assert SECRET.encode() not in content, file
            assert b"wrong-credential" not in content, file


async def test_the_stream_checks_at_the_handshake(guarded: Cluster) -> None:
    url = guarded.nodes["n3"].url + "/work/stream"
    async with aiohttp.ClientSession() as session:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                await session.ws_connect(url, protocols=["ringraft.v1"], headers=headers)
            assert refusal.value.status == 401
        async with session.ws_connect(url, protocols=["ringraft.v1"], headers=guarded.headers) as socket:
            await socket.send_bytes(msgpack.packb([[1, "add", {"work_type": fresh()}]]))
            ((_, status, _),) = msgpack.unpackb(await socket.receive_bytes(timeout=10))
            assert status == 200


def test_a_stranger_cannot_join_the_log(guarded: Cluster) -> None:
    answer = guarded.get("n1", "/raft/connect", headers={"Authorization": ""})
    assert answer.status in (400, 401, 403, 404, 426)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7"])
def test_without_a_secret_only_loopback_is_bound(tmp_path: Path, host: str) -> None:
    (port,) = free_ports(1)
    said = refused_start(
        VOTER, "--node-id", "n1", "--bind", f"{host}:{port}", "--data-dir", str(tmp_path / "d"),
        "--peers", f"n1={host}:{port}",
    )  # fmt: skip
    assert "secret" in said
    assert not (tmp_path / "d").exists()


def test_the_secret_may_come_from_the_environment(tmp_path: Path) -> None:
    for number, (name, value) in enumerate(
        (("RINGRAFT_AUTH__SECRET", SECRET), ("RINGRAFT_AUTH__SECRET_FILE", str(tmp_path / "s")))
    ):
        (tmp_path / "s").write_text(SECRET)
        (tmp_path / "s").chmod(0o600)
        directory = tmp_path / str(number)
        directory.mkdir()
        cluster = Cluster(directory, voters=1, environment={name: value})
        try:
            cluster.nodes["n1"].start().wait_ready()
            cluster.get("n1", "/status").refused(401, "unauthenticated")
            cluster.headers = {"Authorization": f"Bearer {SECRET}"}
            cluster.leader()
            assert cluster.get("n1", "/status").status == 200
        finally:
            cluster.close()
    assert "RINGRAFT_AUTH__SECRET" not in clean_environment()
