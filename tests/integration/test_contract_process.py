"""Processes and files: the ready line, refusals to start, the end, the directory, names and settings."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, Process, call, eventually, free_ports, fresh, refused_start

VOTER = "ringraft.cli.voter"
NODE = "ringraft"


def alone(tmp_path: Path, *flags: str, environment: dict[str, str] | None = None) -> Process:
    (port,) = free_ports(1)
    return Process(
        tmp_path, VOTER, "n1", "--node-id", "n1", "--bind", f"127.0.0.1:{port}", "--data-dir", str(tmp_path / "n1"),
        "--peers", f"n1=127.0.0.1:{port}", *flags, environment=environment,
    )  # fmt: skip


def test_the_ready_line(shared: Cluster) -> None:
    for name, node in shared.nodes.items():
        assert set(node.ready) >= {"event", "node_id", "url", "pid"}
        assert (node.ready["event"], node.ready["node_id"]) == ("ready", name)
        assert node.ready["url"].startswith("http://127.0.0.1:")
        os.kill(node.ready["pid"], 0)


def test_a_voter_is_ready_without_a_quorum(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        cluster.nodes["n2"].start().wait_ready()
        health = cluster.get("n2", "/health")
        assert health.body["leader_id"] is None
        assert health.body["has_quorum"] is False
        assert cluster.get("n2", "/livez").status == 200
        assert cluster.get("n2", "/readyz").status == 503
    finally:
        cluster.close()


def test_the_data_directory(cluster: Cluster) -> None:
    work_type = fresh()
    work_id = cluster.add(work_type=work_type)
    token = cluster.claim(work_type)[0]["lease"]["token"]
    cluster.post("n1", "/work/complete", {"work_id": work_id, "token": token}).ok()
    ids = set()
    for node in cluster.nodes.values():
        identity = json.loads((node.data_dir / "cluster.json").read_text())
        ids.add(identity["cluster_id"])
        assert identity["node_id"] == node.node_id
        assert identity["incarnation"] >= 1
        assert identity["data_id"]
        assert (node.data_dir / "log").is_dir()
        assert (node.data_dir / "log" / "vote").is_file()
        assert (node.data_dir / "snapshot").is_dir()
        assert (node.data_dir / "state.db").is_file()
        assert not (node.data_dir.stat().st_mode & 0o077)
    assert len(ids) == 1
    assert {cluster.get(n, "/status").ok()["cluster_id"] for n in cluster.nodes} == ids


@pytest.mark.parametrize("after", ["lock", "log", "state.db"])
def test_sigterm_before_it_is_ready_ends_a_voter_with_0(tmp_path: Path, after: str) -> None:
    """At whatever step of the start it comes; the directory is good for the next one."""
    node = alone(tmp_path).start()
    eventually(lambda: (node.data_dir / after).exists())
    assert node.terminate() == 0, node.errors()
    node.start().wait_ready()
    assert node.terminate() == 0


def test_sigterm_before_it_is_ready_ends_a_worker_with_0(tmp_path: Path) -> None:
    worker = Process(
        tmp_path, "ringraft.cli.worker", "w1", "--node-id", "w1", "--data-dir", str(tmp_path / "w1"),
        "--join", f"127.0.0.1:{free_ports(1)[0]}",
    ).start()  # fmt: skip
    eventually(lambda: (tmp_path / "w1" / "lock").exists())
    assert worker.terminate() == 0, worker.errors()


def test_the_limit_that_is_named_is_the_logs_whatever_this_node_was_told_later(tmp_path: Path) -> None:
    claim = {"node_id": "w1", "max_items": 20}
    first = alone(tmp_path, "--set", "queue.claim_items_max=50").start().wait_ready()
    eventually(lambda: call(first.url, "POST", "/work/claim", claim).status == 200)
    assert first.terminate() == 0
    again = alone(tmp_path, "--set", "queue.claim_items_max=10").start().wait_ready()
    try:
        call(again.url, "POST", "/work/claim", claim).ok()
        problem = call(again.url, "POST", "/work/claim", {**claim, "max_items": 51}).refused(422, "invalid_field")
        assert "50" in problem["detail"]
    finally:
        again.kill()


def test_sigterm_ends_with_0_and_hands_over(cluster: Cluster) -> None:
    leader = cluster.leader()
    rest = [name for name in cluster.nodes if name != leader]
    begun_s = time.monotonic()
    cluster.nodes[leader].signal(signal.SIGTERM)
    assert cluster.post(rest[0], "/work/add?timeout_s=5", {"work_type": fresh()}).ok()["status"] == "added"
    assert time.monotonic() - begun_s < 3
    assert cluster.nodes[leader].wait() == 0
    assert cluster.leader(rest) in rest
    for name in rest:
        assert cluster.nodes[name].terminate() == 0


def test_shutdown_by_request(cluster: Cluster) -> None:
    one, two = cluster.followers()
    assert cluster.post(one, "/admin/shutdown", {"graceful": "yes"}).status == 422
    answer = cluster.post(one, "/admin/shutdown", {})
    assert answer.status in (200, 202), answer
    assert cluster.nodes[one].wait() == 0
    assert cluster.post(two, "/work/add", {"work_type": fresh()}).ok()["status"] == "added"
    answer = cluster.post(cluster.leader([two]), "/admin/shutdown", {"graceful": False})
    assert answer.status in (200, 202), answer


def test_shutdown_ends_the_node_that_is_asked(cluster: Cluster) -> None:
    follower = cluster.followers()[0]
    cluster.post(follower, "/admin/shutdown", {"graceful": True})
    assert cluster.nodes[follower].wait() == 0
    assert cluster.nodes[cluster.leader()].alive


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused_start(
            VOTER, "--node-id", "n1", "--bind", f"127.0.0.1:{port}", "--data-dir", str(tmp_path / "d"),
            "--peers", f"n1=127.0.0.1:{port}",
        )  # fmt: skip
    assert str(port) in said
    assert not (tmp_path / "d").exists() or not list((tmp_path / "d").glob("log/*"))


def test_a_data_directory_in_use_and_one_of_another_node(tmp_path: Path) -> None:
    node = alone(tmp_path)
    node.start().wait_ready()
    (port,) = free_ports(1)
    try:
        said = refused_start(
            VOTER, "--node-id", "n1", "--bind", f"127.0.0.1:{port}", "--data-dir", str(node.data_dir),
            "--peers", f"n1=127.0.0.1:{port}",
        )  # fmt: skip
        assert str(node.data_dir) in said
    finally:
        node.kill()
    before = {f: f.read_bytes() for f in node.data_dir.rglob("*") if f.is_file()}
    said = refused_start(
        VOTER, "--node-id", "n9", "--bind", f"127.0.0.1:{port}", "--data-dir", str(node.data_dir),
        "--peers", f"n9=127.0.0.1:{port}",
    )  # fmt: skip
    assert "n1" in said
    assert {f: f.read_bytes() for f in node.data_dir.rglob("*") if f.is_file()} == before


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "photos"
    (directory / "log").mkdir(parents=True)
    (directory / "cluster.json").write_text("not ours")
    said = refused_start(
        VOTER, "--node-id", "n1", "--data-dir", str(directory), "--bind", f"127.0.0.1:{free_ports(1)[0]}"
    )
    assert "cluster.json" in said or str(directory) in said
    assert (directory / "cluster.json").read_text() == "not ours"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("raft.heartbeet_ms=50", "raft.heartbeat_ms"),
        ("queue.retentions_s=5", "queue.retention_s"),
        ("raft.heartbeat_ms=soon", "raft.heartbeat_ms"),
        ("raft.heartbeat_ms=-1", "raft.heartbeat_ms"),
        ("consensus.mode=rafty", "consensus.mode"),
        ("heartbeat_ms=50", "raft.heartbeat_ms"),
        ("raft.heartbeat_ms", "raft.heartbeat_ms"),
        ("raft.election_min_ms=900", "raft.election_m"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, setting: str, words: str) -> None:
    directory = tmp_path / "d"
    said = refused_start(
        VOTER, "--node-id", "n1", "--bind", "127.0.0.1:0", "--data-dir", str(directory), "--set", setting
    )
    assert words in said
    assert not directory.exists()


def test_all_bad_settings_are_told_at_once(tmp_path: Path) -> None:
    said = refused_start(
        VOTER, "--node-id", "n 1", "--data-dir", str(tmp_path / "d"), "--set", "raft.heartbeat_ms=x",
        "--set", "queue.items_max=0", environment={"RINGRAFT_LEASE__DEFAULT_S": "never"},
    )  # fmt: skip
    for name in ("node.node_id", "raft.heartbeat_ms", "queue.items_max", "lease.default_s"):
        assert name in said


def test_the_named_settings_are_taken(tmp_path: Path) -> None:
    node = alone(
        tmp_path,
        "--set", "consensus.mode=raft", "--set", "membership.mode=http", "--set", "queue.items_max=5",
        "--set", "queue.retention_s=2", "--set", "raft.heartbeat_ms=40", "--set", "raft.election_min_ms=160",
        "--set", "raft.election_max_ms=300", "--set", "raft.snapshot_entries=100", "--set", "lease.default_s=7",
        "--set", "stream.window=16", "--set", "worker.orphan_s=60", "--set", "worker.drain_s=1",
        "--set", "membership.swim_bind=127.0.0.1:9999",
    )  # fmt: skip
    cluster = Cluster(tmp_path, voters=1)
    cluster.nodes = {"n1": node}
    try:
        node.start().wait_ready()
        cluster.leader()
        work_type = fresh()
        for _ in range(5):
            cluster.add(work_type=work_type)
        problem = cluster.post("n1", "/work/add", {"work_type": work_type}).refused(429, "queue_full")
        assert problem["outcome"] == "not_applied"
        assert cluster.get("n1", "/work/status").ok()["backpressure"]
        (item,) = cluster.claim(work_type)
        cluster.post("n1", "/work/complete", {"work_id": item["work_id"], "token": item["lease"]["token"]}).ok()
        eventually(lambda: cluster.post("n1", "/work/add", {"work_type": work_type}).status == 200)
    finally:
        node.kill()


def test_the_seeds_environment(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    node = Process(
        tmp_path, NODE, "seed", "node",
        environment={
            "P2P_NODE_ID": "seed", "P2P_PORT": str(port), "P2P_DATA_DIR": str(tmp_path / "state"),
            "RINGRIFT_P2P_HEARTBEAT_INTERVAL": "15", "RINGRIFT_P2P_PEER_TIMEOUT": "60",
            "RINGRIFT_P2P_STARTUP_GRACE_PERIOD": "120", "P2P_LOG_LEVEL": "DEBUG", "RINGRIFT_TRACE_GOSSIP": "1",
            "RINGRIFT_RAFT_ENABLED": "true", "RINGRIFT_CONSENSUS_MODE": "raft",
        },
    )  # fmt: skip
    try:
        node.start().wait_ready()
        assert (node.ready["node_id"], node.ready["url"]) == ("seed", f"http://127.0.0.1:{port}")
        assert (tmp_path / "state" / "cluster.json").is_file()
    finally:
        node.kill()


def test_the_seeds_line_is_a_cluster_of_one(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    node = Process(
        tmp_path, NODE, "my-node", "node", "--node-id", "my-node", "--port", str(port), "--voter",
        "--data-dir", str(tmp_path / "my-node"),
    )  # fmt: skip
    cluster = Cluster(tmp_path, voters=1)
    cluster.nodes = {"my-node": node}
    try:
        node.start().wait_ready()
        eventually(lambda: cluster.get("my-node", "/health").body["leader_id"] == "my-node")
        status = cluster.get("my-node", "/status").ok()
        assert (status["role"], status["alive_peers"], status["quorum_size"]) == ("leader", 1, 1)
        work_id = cluster.add("my-node", work_type="selfplay", board_type="hex8", num_players=2, num_games=1000)
        node.kill()
        node.start().wait_ready()
        eventually(lambda: cluster.get("my-node", "/health").body["leader_id"] == "my-node")
        assert cluster.item(work_id, "my-node")["state"] == "PENDING"
        assert node.terminate() == 0
    finally:
        node.kill()


def test_advertise_and_priority(tmp_path: Path) -> None:
    node = alone(tmp_path, "--priority", "7")
    cluster = Cluster(tmp_path, voters=1)
    cluster.nodes = {"n1": node}
    try:
        node.start().wait_ready()
        cluster.leader()
        assert cluster.get("n1", "/status").ok()["voters"][0]["priority"] == 7
        assert cluster.get("n1", "/election/status").ok()["voters"][0]["priority"] == 7
    finally:
        node.kill()


def test_a_torn_tail_is_cut_and_said_and_damage_before_it_refused(tmp_path: Path) -> None:
    node = alone(tmp_path)
    cluster = Cluster(tmp_path, voters=1)
    cluster.nodes = {"n1": node}
    node.start().wait_ready()
    cluster.leader()
    ids = [cluster.add(work_type=fresh()) for _ in range(20)]
    node.kill()
    (segment,) = [f for f in (node.data_dir / "log").iterdir() if f.name != "vote" and f.stat().st_size > 1000]
    whole = segment.read_bytes()
    segment.write_bytes(whole.rstrip(b"\0")[:-3])
    node.start().wait_ready()
    try:
        cluster.leader()
        assert cluster.item(ids[0])["state"] == "PENDING"
    finally:
        node.kill()
    damaged = bytearray(whole)
    damaged[len(whole.rstrip(b"\0")) // 2] ^= 0xFF
    segment.write_bytes(damaged)
    said = refused_start(*node.command)
    assert str(segment) in said
    assert segment.read_bytes() == damaged
