"""A worker node: its own endpoints, what it passes on, and the work it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, Process, eventually, fresh, refused_start

RUNS = "t-runs"
SLOW = "t-slow"
SECRET = "a-secret-of-more-than-sixteen-characters"


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("crew")
    executors = {
        RUNS: {"command": [sys.executable, "-c", "print('hello from the run')"]},
        SLOW: {"command": [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]},
    }
    cluster = Cluster(directory)
    try:
        cluster.start()
        cluster.worker("w1", "--set", f"worker.executors={json.dumps(executors)}", "--set", "worker.lease_s=5")
        yield cluster
    finally:
        cluster.close()


def w1(cluster: Cluster) -> Process:
    return cluster.nodes["w1"]


def test_its_ready_line_and_health(crew: Cluster) -> None:
    assert (w1(crew).ready["event"], w1(crew).ready["node_id"]) == ("ready", "w1")
    leader = crew.leader([n for n in crew.nodes if n != "w1"])
    health = eventually(lambda: (h := crew.get("w1", "/health").ok())["leader_id"] == leader and h)
    assert (health["role"], health["node_id"], health["has_quorum"]) == ("worker", "w1", True)
    assert crew.get("w1", "/livez").status == 200
    assert crew.get("w1", "/readyz").status == 200
    status = crew.get("w1", "/status").ok()
    assert (status["node_id"], status["role"], status["is_leader"], status["leader_id"]) == (
        "w1",
        "worker",
        False,
        leader,
    )
    assert eventually(lambda: crew.get("w1", "/status").ok()["alive_peers"] == 4)
    assert crew.get("w1", "/metrics").status == 200


def test_its_answers_name_the_leader_and_the_term(crew: Cluster) -> None:
    leader = crew.leader([n for n in crew.nodes if n != "w1"])
    term = crew.get(leader, "/status").ok()["term"]

    def told() -> bool:
        headers = crew.get("w1", "/health").headers
        return headers.get("x-ringraft-leader") == leader and headers["x-ringraft-term"] == str(term)

    eventually(told)
    problem = crew.post("w1", "/work/add", {}).refused(422, "invalid_field")
    assert problem["leader"]["id"] == leader
    assert problem["term"] == term


def test_it_is_a_peer_of_every_voter(crew: Cluster) -> None:
    for node in ("n1", "n2", "n3"):
        peers = eventually(
            lambda node=node: (p := {x["node_id"]: x for x in crew.get(node, "/peers").ok()}) and "w1" in p and p
        )
        assert (peers["w1"]["state"], peers["w1"]["roles"]) == ("alive", ["worker"])
        assert peers["w1"]["reachable_via"] == "direct"
        assert crew.get(node, "/status").ok()["alive_peers"] == 4


def test_it_passes_everything_else_on(crew: Cluster) -> None:
    work_type, key = fresh(), fresh("key")
    body = {"work_type": work_type, "config": {"x": 1}}
    answer = crew.post("w1", "/work/add", body, key=key)
    first = answer.ok()
    assert answer.node == "w1"
    assert answer.headers["x-ringraft-served-by"] in ("n1", "n2", "n3")
    assert crew.post("n2", "/work/add", body, key=key).ok() == first
    (item,) = crew.claim(work_type, node="w1")
    lease = {"work_id": item["work_id"], "token": item["lease"]["token"]}
    assert crew.post("w1", "/work/start", lease).ok()["status"] == "running"
    assert crew.item(item["work_id"], "w1")["state"] == "RUNNING"
    assert crew.post("w1", "/work/complete", {**lease, "result": 1}).ok()["status"] == "completed"
    for path in (
        "/work/status", "/work/items", "/work/history", "/events", "/peers", "/raft/status", "/raft/digest",
        "/election/status", "/work/for-node/w1",
    ):  # fmt: skip
        assert crew.get("w1", path).status == 200, path
    crew.post("w1", "/work/complete", {**lease, "token": 1}).refused(409, "already_final")
    crew.get("w1", "/work/item/never-was").refused(404, "not_found")
    crew.get("w1", "/nothing").refused(404, "not_found")
    crew.post("w1", "/work/cancel", {"work_id": "never-was"}).refused(404, "not_found")


def test_it_runs_what_it_has_an_executor_for_and_keeps_the_output(crew: Cluster) -> None:
    work_id = crew.add("n2", work_type=RUNS)
    item = crew.get("n3", f"/work/item/{work_id}?wait_s=30").ok()
    assert item["state"] == "COMPLETED", item
    assert item["history"][-1]["node_id"] == "w1"
    for node in ("n1", "n2", "n3", "w1"):
        log = crew.get(node, f"/work/item/{work_id}/log")
        assert log.status == 200
        assert b"hello from the run" in log.raw


def test_a_cancelled_run_is_stopped(crew: Cluster) -> None:
    work_id = crew.add("n2", work_type=SLOW)
    eventually(lambda: crew.item(work_id)["state"] == "RUNNING", 20)
    crew.post("n1", "/work/cancel", {"work_id": work_id}).ok()
    assert crew.item(work_id)["state"] == "CANCELLED"
    quick = crew.add("n3", work_type=RUNS)
    assert crew.get("n1", f"/work/item/{quick}?wait_s=30").ok()["state"] == "COMPLETED"


def test_its_directory(crew: Cluster) -> None:
    data_dir = w1(crew).data_dir
    identity = json.loads((data_dir / "cluster.json").read_text())
    assert identity["node_id"] == "w1"
    assert identity["cluster_id"] == crew.get("n1", "/status").ok()["cluster_id"]
    assert (data_dir / "spool").is_dir()


def test_sigterm_releases_what_runs_and_ends_with_0(crew: Cluster, tmp_path: Path) -> None:
    executors = {"t-leave": {"command": [sys.executable, "-c", "import time; time.sleep(60)"]}}
    flags = ("--set", f"worker.executors={json.dumps(executors)}", "--set", "worker.drain_s=1")
    worker = crew.worker("w2", *flags, join="n2")
    work_id = crew.add(work_type="t-leave")
    eventually(lambda: crew.item(work_id)["state"] == "RUNNING", 20)
    assert worker.terminate() == 0
    item = crew.item(work_id)
    assert (item["state"], item["attempt"]) == ("PENDING", 0)
    assert item["history"][-1]["outcome"] == "released"

    def left(node: str) -> bool:
        return any(p["node_id"] == "w2" and p["state"] == "left" for p in crew.get(node, "/peers").ok())

    for node in ("n1", "n2", "n3"):
        eventually(lambda node=node: left(node))


def test_it_keeps_its_identity_over_a_kill(crew: Cluster) -> None:
    worker = crew.worker("w3", "--set", "worker.work_types=none-such")
    worker.kill()
    worker.start().wait_ready()
    eventually(lambda: any(p["node_id"] == "w3" and p["incarnation"] >= 2 for p in crew.get("n1", "/peers").ok()))
    assert worker.terminate() == 0


def test_a_worker_needs_somebody_to_join(tmp_path: Path) -> None:
    said = refused_start(
        "ringraft.cli.worker", "--node-id", "w9", "--bind", "127.0.0.1:0", "--data-dir", str(tmp_path / "w9")
    )
    assert "join" in said


def test_a_worker_is_ready_before_its_cluster(tmp_path: Path) -> None:
    """Listening is all that ready says."""
    cluster = Cluster(tmp_path)
    worker = Process(
        tmp_path, "ringraft.cli.worker", "w1", "--node-id", "w1", "--bind", "127.0.0.1:0", "--data-dir",
        str(tmp_path / "w1"), "--join", f"127.0.0.1:{cluster.ports[0]}",
    )  # fmt: skip
    cluster.nodes["w1"] = worker
    try:
        worker.start().wait_ready()
        answer = cluster.post("w1", "/work/add?timeout_s=1", {"work_type": fresh()})
        assert answer.status == 503
        assert answer.headers["retry-after"]
        assert answer.body["outcome"] == "not_applied"
        assert cluster.get("w1", "/health").body["leader_id"] is None
        for name in ("n1", "n2", "n3"):
            cluster.nodes[name].start()
        for name in ("n1", "n2", "n3"):
            cluster.nodes[name].wait_ready()
        eventually(lambda: cluster.post("w1", "/work/add", {"work_type": fresh()}).status == 200)
    finally:
        cluster.close()


def test_with_a_secret_a_worker_shows_a_credential(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    cluster = Cluster(tmp_path, "--set", f"auth.secret_file={secret}")
    cluster.headers = {"Authorization": f"Bearer {SECRET}"}
    try:
        cluster.start()
        cluster.worker("w1", "--token-file", str(secret))
        assert eventually(lambda: cluster.get("n1", "/status").ok()["alive_peers"] == 4)
        assert cluster.post("w1", "/work/add", {"work_type": fresh()}).ok()["status"] == "added"
        for credential in ("", "Bearer wrong"):
            answer = cluster.post("w1", "/work/add", {"work_type": fresh()}, headers={"Authorization": credential})
            answer.refused(401, "unauthenticated")
        assert cluster.get("w1", "/health", headers={"Authorization": ""}).status == 200
    finally:
        cluster.close()
