"""A backup of a cluster that works, and the cluster that begins from it."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.integration.cluster import FAST, Cluster, Process, clean_environment, eventually, fresh
from tests.node.processes import ROOT, free_ports


def ringraft(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ringraft", *words],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def address(cluster: Cluster, name: str) -> str:
    return cluster.nodes[name].url.removeprefix("http://")


class Load:
    """Adds items, claims and completes some of them, until told to stop; knows what was acknowledged."""

    def __init__(self, cluster: Cluster, work_type: str) -> None:
        self.added: list[str] = []
        self.completed: list[str] = []
        self._cluster, self._work_type = cluster, work_type
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.added.append(self._cluster.add(work_type=self._work_type))
            if len(self.added) % 3 == 0:
                (item,) = self._cluster.claim(self._work_type)
                body = {"work_id": item["work_id"], "token": item["lease"]["token"], "result": {"n": 1}}
                self._cluster.post("n1", "/work/complete", body).ok()
                self.completed.append(item["work_id"])


def restored_cluster(tmp_path: Path, file: Path, voters: int) -> dict[str, Process]:
    ports = free_ports(voters)
    peers = ",".join(f"m{i + 1}=127.0.0.1:{port}" for i, port in enumerate(ports))
    nodes = {}
    for i, port in enumerate(ports):
        name, data_dir = f"m{i + 1}", tmp_path / f"m{i + 1}"
        ringraft("backup", "restore", str(file), "--data-dir", str(data_dir), "--node-id", name, "--peers", peers)
        nodes[name] = Process(
            tmp_path, "ringraft.cli.voter", name, "--node-id", name, "--bind", f"127.0.0.1:{port}",
            "--data-dir", str(data_dir), "--peers", peers, *FAST,
        )  # fmt: skip
    return nodes


def test_from_any_node_under_load_to_a_cluster_that_has_it_all(cluster: Cluster, tmp_path: Path) -> None:
    work_type, held_type = fresh(), fresh()
    held = cluster.add(work_type=held_type, unique_key="only-one")
    token = cluster.claim(held_type, lease_s=60)[0]["lease"]["token"]
    keyed = cluster.post("n1", "/work/add", {"work_type": held_type}, key="the-key").ok()
    files = {}
    with Load(cluster, work_type) as load:
        for name in cluster.nodes:
            eventually(lambda: len(load.completed) >= 2)
            acknowledged = list(load.added), list(load.completed)
            file = tmp_path / f"{name}.backup"
            done = json.loads(
                ringraft("backup", "create", str(file), "--addr", address(cluster, name), "--json").stdout
            )
            assert done["made_by"] == name
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            files[name] = (file, *acknowledged)
    for file, added, completed in files.values():
        seen = json.loads(ringraft("backup", "inspect", str(file), "--json").stdout)
        assert seen["items"] == sum(seen["by_state"].values())
        assert seen["by_type"][work_type] >= len(added), "a linearizable backup has all that was acknowledged before"
        assert seen["by_state"]["COMPLETED"] >= len(completed)
    cluster.close()

    file, added, completed = files["n2"]
    nodes = restored_cluster(tmp_path, file, 3)
    copy = Cluster(tmp_path / "unused", voters=0)
    copy.nodes = nodes
    try:
        copy.start()
        for work_id in added:
            assert copy.get("m2", f"/work/item/{work_id}").ok()["work_type"] == work_type
        for work_id in completed:
            assert copy.item(work_id, "m3")["state"] == "COMPLETED"
        assert copy.post("m1", "/work/add", {"work_type": held_type}, key="the-key").ok()["work_id"] == keyed["work_id"]
        # The worker of the old life is still there: its lease counts, and so does its result.
        body: dict[str, Any] = {"work_id": held, "token": token, "result": {"n": 2}}
        copy.post("m2", "/work/complete", body).ok()
        assert copy.item(held, "m1")["result"] == {"n": 2}
        status = copy.get("m1", "/raft/status").ok()
        assert status["generation"] == 1
        granted = copy.claim(work_type, node="m1")[0]["lease"]["token"]
        assert granted > token
        assert len({copy.get(name, "/raft/digest?index=" + str(status["applied_index"])).status for name in nodes}) <= 2
        eventually(lambda: len({copy.get(name, "/raft/digest").body["sha256"] for name in nodes}) == 1)
    finally:
        copy.close()


def test_the_archive_comes_along(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.leader()
    work_type = fresh()
    ids = []
    for _ in range(5):
        ids.append(cluster.add(work_type=work_type))
        token = cluster.claim(work_type)[0]["lease"]["token"]
        cluster.post("n1", "/work/complete", {"work_id": ids[-1], "token": token}).ok()
    eventually(lambda: len(cluster.get(name, f"/work/history?work_type={work_type}").body["items"]) == 5)
    file = tmp_path / "b"
    with_archive = json.loads(
        ringraft("backup", "create", str(file), "--addr", address(cluster, name), "--json").stdout
    )
    assert (with_archive["has_archive"], with_archive["archived"]) == (True, 5)
    refused = ringraft("backup", "create", str(file), "--addr", address(cluster, name), code=2)
    assert "--force" in refused.stderr
    flags = ("--no-archive", "--stale", "--force", "--addr", address(cluster, name))
    ringraft("backup", "create", str(file), *flags)
    assert json.loads(ringraft("backup", "inspect", str(file), "--json").stdout)["has_archive"] is False
    ringraft("backup", "create", str(file), "--force", "--addr", address(cluster, name))
    cluster.close()
    nodes = restored_cluster(tmp_path, file, 1)
    copy = Cluster(tmp_path / "unused", voters=0)
    copy.nodes = nodes
    try:
        copy.start()
        history = copy.get("m1", f"/work/history?work_type={work_type}").ok()["items"]
        assert {item["work_id"] for item in history} == set(ids)
    finally:
        copy.close()


def test_a_download_that_is_cut_short_is_not_kept(cluster: Cluster, tmp_path: Path) -> None:
    whole = cluster.get("n1", "/admin/backup")
    assert whole.status == 200
    assert whole.headers["content-type"] == "application/octet-stream"
    cut = tmp_path / "cut"
    cut.write_bytes(whole.raw[:-7])
    refused = ringraft("backup", "inspect", str(cut), code=1)
    assert "cut short" in refused.stderr
    refused = ringraft("backup", "restore", str(cut), "--data-dir", str(tmp_path / "d"), "--node-id", "x", code=1)
    assert "cut short" in refused.stderr
    assert not (tmp_path / "d").exists()


def test_a_node_without_a_log_names_one_that_has_it(cluster: Cluster, tmp_path: Path) -> None:
    worker = cluster.worker("w1")
    answer = cluster.get("w1", "/admin/backup?consistency=stale")
    assert answer.status == 307
    assert answer.headers["location"].endswith("/admin/backup?consistency=stale")
    refused = ringraft("backup", "create", str(tmp_path / "b"), "--addr", worker.url.removeprefix("http://"), code=2)
    assert "--addr http://127.0.0.1:" in refused.stderr
    assert list(tmp_path.glob("*b")) == []


def test_without_a_majority_only_a_stale_backup_is_made(cluster: Cluster, tmp_path: Path) -> None:
    leader = cluster.leader()
    cluster.add(node=leader, work_type=fresh())
    rest = [name for name in cluster.nodes if name != leader]
    eventually(lambda: cluster.get(rest[0], "/work/status").body["total_items"] == 1)
    cluster.nodes[leader].kill()
    cluster.nodes[rest[1]].kill()
    cluster.get(rest[0], "/admin/backup?timeout_s=0.5").refused(503, "no_quorum")
    refused = ringraft("backup", "create", str(tmp_path / "b"), "--addr", address(cluster, rest[0]), code=5)
    assert "majority" in refused.stderr or "voters" in refused.stderr
    ringraft("backup", "create", str(tmp_path / "b"), "--stale", "--addr", address(cluster, rest[0]))
    assert json.loads(ringraft("backup", "inspect", str(tmp_path / "b"), "--json").stdout)["items"] == 1


def test_a_backup_needs_the_role_of_an_administrator(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    cluster = Cluster(tmp_path, "--set", f"auth.secret_file={secret}", voters=1)
    cluster.headers = {"Authorization": f"Bearer {'s' * 32}"}
    try:
        cluster.start()
        flags = (str(tmp_path / "b"), "--addr", address(cluster, "n1"))
        ringraft("backup", "create", *flags, code=7)
        assert not (tmp_path / "b").exists()
        ringraft("backup", "create", *flags, "--token-file", str(secret))
        refused = cluster.get("n1", "/admin/backup", headers={"Host": "evil.example"})
        refused.refused(403, "forbidden")
    finally:
        cluster.close()
