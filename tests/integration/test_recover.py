"""Two of three voters are lost for good: what the third has goes on, alone and then as three again."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from tests.integration.cluster import FAST, Cluster, Process, eventually, fresh
from tests.integration.test_backup import Load, address, ringraft
from tests.node.processes import free_ports


def start_again(cluster: Cluster, name: str) -> Process:
    """The same directory and address as before, told of no other voter."""
    old = cluster.nodes[name]
    node = Process(
        cluster.directory, "ringraft", name, "node", "--voter", "--node-id", name, "--bind", address(cluster, name),
        "--data-dir", str(old.data_dir), *FAST,
    )  # fmt: skip
    cluster.nodes[name] = node
    return node.start().wait_ready()


def test_the_last_voter_begins_again_with_all_it_had_and_grows_to_three(cluster: Cluster, tmp_path: Path) -> None:
    work_type = fresh()
    with Load(cluster, work_type) as load:
        eventually(lambda: len(load.completed) >= 10)
    left, *lost = [*cluster.followers(), cluster.leader()]
    index = cluster.get(cluster.leader(), "/raft/status").ok()["commit_index"]
    eventually(lambda: cluster.get(left, "/raft/status").body["applied_index"] >= index)
    cluster_id = cluster.get(left, "/status").ok()["cluster_id"]
    where = {name: address(cluster, name) for name in cluster.nodes}
    cluster.close()
    for name in lost:
        shutil.rmtree(cluster.nodes[name].data_dir)
    data_dir = cluster.nodes[left].data_dir
    command = ("recover", "--data-dir", str(data_dir), "--bind", where[left])
    command += ("--learners", ",".join(f"{name}={where[name]}" for name in lost))

    before = {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
    shown = ringraft(*command, code=1)
    assert f"--confirm {cluster_id}" in shown.stderr
    assert "Given up" in shown.stderr
    refused = ringraft(*command, "--confirm", "c-another", code=2)
    assert cluster_id in refused.stderr
    assert {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file()} == before

    done = json.loads(ringraft(*command, "--confirm", cluster_id, "--json").stdout)
    kept = Path(done["kept"])
    assert {path.name for path in kept.iterdir()} == {"cluster.json", "log", "snapshot"}
    assert (kept / "cluster.json").read_bytes() == before[data_dir / "cluster.json"]
    assert done["last_index"] >= index

    start_again(cluster, left)
    assert eventually(lambda: cluster.get(left, "/health").body["leader_id"]) == left
    status = cluster.get(left, "/raft/status").ok()
    assert status["generation"] == done["generation"] == 1
    for work_id in load.added:
        assert cluster.get(left, f"/work/item/{work_id}").ok()["work_type"] == work_type
    for work_id in load.completed:
        assert cluster.item(work_id, left)["state"] == "COMPLETED"
    added = cluster.add(left, work_type=work_type)
    granted = cluster.claim(work_type, node=left)[0]["lease"]["token"]
    assert granted > 4096 * done["index"]

    for name in lost:
        # As they were started at first, with directories that are empty now.
        cluster.nodes[name].start().wait_ready()

    def voters() -> bool:
        seen = cluster.get(left, "/raft/status").ok()["voters"]
        return len(seen) == 3 and all(one["behind"] == 0 for one in seen)

    eventually(voters, timeout_s=30)
    eventually(lambda: cluster.get(lost[0], f"/work/item/{added}?consistency=stale").status == 200)
    # The leader knows of their admission first; who has not heard of it yet could not elect another.
    for name in lost:
        eventually(lambda name=name: cluster.get(name, "/status").body["standing"] == "member")
    # One of three may die again.
    cluster.nodes[left].kill()
    assert eventually(lambda: cluster.get(lost[0], "/health").body["leader_id"] in lost)
    cluster.add(lost[0], work_type=work_type)
    for work_id in load.completed:
        assert cluster.item(work_id, lost[1])["state"] == "COMPLETED"


def test_a_worker_runs_on_through_a_recovery_and_its_result_counts(cluster: Cluster, tmp_path: Path) -> None:
    left = "n1"
    go, runs = tmp_path / "go", tmp_path / "runs"
    code = (
        f"import os, pathlib, time; open({str(runs)!r}, 'a').write('x')\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.05)\n"
    )
    work_type = fresh()
    executors = {work_type: {"command": [sys.executable, "-c", code]}}
    worker = cluster.worker("w1", "--set", f"worker.executors={json.dumps(executors)}", "--set", "worker.lease_s=5")
    work_id = cluster.add(left, work_type=work_type)
    eventually(lambda: cluster.item(work_id, left)["state"] == "RUNNING" and runs.exists())
    token = cluster.item(work_id, left)["lease"]["token"]
    for name in ("n1", "n2", "n3"):
        cluster.nodes[name].kill()
    cluster_id = json.loads((cluster.nodes[left].data_dir / "cluster.json").read_text())["cluster_id"]
    ringraft(
        "recover", "--data-dir", str(cluster.nodes[left].data_dir), "--bind", address(cluster, left),
        "--confirm", cluster_id,
    )  # fmt: skip
    start_again(cluster, left)
    go.touch()
    eventually(lambda: cluster.item(work_id, left)["state"] == "COMPLETED", timeout_s=30)
    item = cluster.item(work_id, left)
    assert [entry["token"] for entry in item["history"]] == [token], "the grant of the old life, and no other"
    assert runs.read_text() == "x"
    assert eventually(lambda: cluster.get("w1", "/status").body["worker"]["spooled"] == 0)
    assert worker.alive
    # Without learners named it grows as every cluster does.
    added = f"127.0.0.1:{free_ports(1)[0]}"
    joining = Process(
        tmp_path, "ringraft", "n9", "node", "--voter", "--node-id", "n9", "--bind", added,
        "--data-dir", str(tmp_path / "n9"), "--join", address(cluster, left), *FAST,
    )  # fmt: skip
    cluster.nodes["n9"] = joining.start().wait_ready()
    answer = cluster.post(left, "/raft/members/n9?wait_s=20", {"address": added}).ok()
    assert (answer["node_id"], answer["role"]) == ("n9", "voter")
    assert eventually(lambda: cluster.item(work_id, "n9"))["state"] == "COMPLETED"


def test_a_directory_that_is_in_use_or_no_voters_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.nodes["n1"]
    flags = ("--bind", address(cluster, "n1"), "--confirm", "x")
    in_use = ringraft("recover", "--data-dir", str(node.data_dir), *flags, code=1)
    assert "in use by another process" in in_use.stderr
    (tmp_path / "empty").mkdir()
    empty = ringraft("recover", "--data-dir", str(tmp_path / "empty"), *flags, code=1)
    assert "no voter's data directory" in empty.stderr
    assert list((tmp_path / "empty").iterdir()) == []
