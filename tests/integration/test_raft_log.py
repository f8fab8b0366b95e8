"""The log as operators see it, and a snapshot on demand."""

from __future__ import annotations

from tests.integration.cluster import Cluster, eventually, fresh


def test_the_log_tells_what_was_written_where(shared: Cluster) -> None:
    work_type = fresh()
    answer = shared.post("n1", "/work/add", {"work_type": work_type, "work_id": fresh()}, key="key-1").ok()
    shared.post("n1", "/work/add_batch", {"items": [{"work_type": work_type} for _ in range(70)]}).ok()
    for name in ("n1", "n2", "n3"):
        eventually(lambda name=name: shared.get(name, "/raft/status").body["applied_index"] > answer["index"])
        log = shared.get(name, f"/raft/log?from={answer['index']}&limit=1000").ok()
        assert log["node_id"] == name
        entry = log["items"][0]
        assert (entry["index"], entry["term"]) == (answer["index"], entry["epoch"]["number"])
        assert entry["bytes"] > 0 and entry["log_ms"] > 0 and entry["at"].endswith("Z")
        (command,) = [c for c in entry["commands"] if c.get("work_id") == answer["work_id"]]
        assert command == {"kind": "add", "work_id": answer["work_id"], "work_type": work_type, "key": "key-1"}
        batch = [c for e in log["items"] for c in e["commands"] if c["kind"] == "add_batch"][-1]
        assert batch["count"] == 70
        assert len(batch["work_ids"]) <= 64
        assert [e["index"] for e in log["items"]] == list(range(answer["index"], log["last_index"] + 1))
        assert log["next"] is None


def test_the_log_is_read_in_pages_and_shows_no_data(shared: Cluster) -> None:
    shared.add(work_type=fresh(), config={"hidden": "secret-value"})
    newest = shared.get("n1", "/raft/log?limit=2").ok()
    assert len(newest["items"]) == 2
    assert newest["items"][-1]["index"] == newest["last_index"]
    seen, following = [], newest["first_index"]
    while following is not None:
        answer = shared.get("n1", f"/raft/log?from={following}&limit=3")
        assert b"secret-value" not in answer.raw
        page = answer.ok()
        seen += [entry["index"] for entry in page["items"]]
        following = page["next"]
    assert seen == list(range(newest["first_index"], seen[-1] + 1))
    assert shared.get("n1", "/raft/log?from=99999999").ok()["items"] == []
    shared.get("n1", "/raft/log?limit=1001").refused(422, "invalid_field")
    shared.get("n1", "/raft/log?from=-1").refused(422, "invalid_field")


def test_a_snapshot_is_made_on_demand(shared: Cluster) -> None:
    shared.add(work_type=fresh())
    for name in ("n1", "n2", "n3"):
        applied = shared.get(name, "/raft/status").ok()["applied_index"]
        made = shared.post(name, "/raft/snapshot").ok()
        assert made["node_id"] == name
        assert made["index"] >= applied
        assert made["bytes"] > 0
        assert shared.get(name, "/raft/status").ok()["snapshot_index"] == made["index"]
        files = list((shared.nodes[name].data_dir / "snapshot").glob("*.snap"))
        assert any(str(made["index"]) in path.name for path in files)


def test_both_need_their_role(tmp_path_factory) -> None:
    from tests.integration.cluster import call

    cluster = Cluster(tmp_path_factory.mktemp("roles"), voters=1, environment={"RINGRAFT_AUTH__SECRET": "s" * 32})
    try:
        cluster.nodes["n1"].start().wait_ready()
        for method, path in (("GET", "/raft/log"), ("POST", "/raft/snapshot")):
            call(cluster.nodes["n1"].url, method, path).refused(401, "unauthenticated")
    finally:
        cluster.close()
