"""What becomes of final items: in the log's state for a while, in every node's archive after that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.cluster import Cluster, eventually, fresh


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Final items are kept for two seconds."""
    cluster = Cluster(
        tmp_path_factory.mktemp("brief"), "--set", "queue.retention_s=2", "--set", "raft.snapshot_entries=100"
    )
    try:
        yield cluster.start()
    finally:
        cluster.close()


def finished(cluster: Cluster, **fields: object) -> tuple[str, int]:
    work_type = fresh()
    work_id = cluster.add(work_type=work_type, **fields)
    token = cluster.claim(work_type)[0]["lease"]["token"]
    cluster.post("n1", "/work/complete", {"work_id": work_id, "token": token, "result": {"x": [1]}}).ok()
    return work_id, token


def retired(cluster: Cluster, node: str, work_id: str) -> bool:
    """No longer in the state of ``node``."""
    listed = cluster.get(node, "/work/items?limit=1000").ok()["items"]
    return work_id not in {item["work_id"] for item in listed}


def test_a_retired_item_reads_as_before_through_every_node(brief: Cluster) -> None:
    work_id, token = finished(brief, config={"a": 1}, group="g")
    before = brief.item(work_id)
    for node in brief.nodes:
        eventually(lambda node=node: retired(brief, node, work_id))
        assert brief.item(work_id, node) == before
        history = brief.get(node, "/work/history?limit=1000").ok()["items"]
        assert [i for i in history if i["work_id"] == work_id] == [before]
    # Tokens of a retired item: whatever is said, no second effect.
    answer = brief.post("n2", "/work/complete", {"work_id": work_id, "token": token, "result": {"x": [1]}})
    assert answer.status in (200, 404, 409)
    assert brief.item(work_id) == before


def test_a_retired_dependency_is_unknown(brief: Cluster) -> None:
    work_id, _ = finished(brief)
    eventually(lambda: retired(brief, brief.leader(), work_id))
    body = {"work_type": fresh(), "depends_on": [work_id]}
    brief.post("n2", "/work/add", body).refused(422, "unknown_dependency")


def test_what_a_live_item_depends_on_is_kept(brief: Cluster) -> None:
    first, other = fresh(), fresh()
    a, b = brief.add(work_type=first), brief.add(work_type=other)
    waiting = brief.add(work_type=fresh(), depends_on=[a, b])
    token = brief.claim(first)[0]["lease"]["token"]
    brief.post("n1", "/work/complete", {"work_id": a, "token": token}).ok()
    gone, _ = finished(brief)
    eventually(lambda: retired(brief, brief.leader(), gone))
    assert not retired(brief, brief.leader(), a)
    assert brief.item(waiting)["state"] == "BLOCKED"


def test_a_key_lives_as_long_as_its_item_and_no_longer(brief: Cluster) -> None:
    work_type, key = fresh(), fresh("key")
    body = {"work_type": work_type}
    first = brief.post("n1", "/work/add", body, key=key).ok()
    token = brief.claim(work_type)[0]["lease"]["token"]
    brief.post("n1", "/work/complete", {"work_id": first["work_id"], "token": token}).ok()
    assert brief.post("n2", "/work/add", body, key=key).ok() == first
    eventually(lambda: retired(brief, brief.leader(), first["work_id"]))
    again = brief.post("n3", "/work/add", body, key=key).ok()
    assert again["status"] == "added"
    assert again["work_id"] != first["work_id"]


def test_a_node_that_was_away_reads_what_was_retired_meanwhile(brief: Cluster) -> None:
    """It comes back through a snapshot, never applied the item, and asks the other voters."""
    away = brief.followers()[0]
    brief.nodes[away].kill()
    rest = [name for name in brief.nodes if name != away]
    work_type = fresh()
    work_id = brief.add(rest[0], work_type=work_type)
    token = brief.claim(work_type, node=rest[0])[0]["lease"]["token"]
    brief.post(rest[0], "/work/complete", {"work_id": work_id, "token": token, "result": "meanwhile"}).ok()
    eventually(lambda: retired(brief, rest[0], work_id))
    for _ in range(250):
        brief.add(rest[0], work_type=fresh("fill"))
    eventually(lambda: brief.get(rest[0], "/status").ok()["snapshot_index"] > 0)
    brief.nodes[away].start().wait_ready()
    brief.leader()
    item = brief.item(work_id, away)
    assert (item["state"], item["result"]) == ("COMPLETED", "meanwhile")
    brief.get(away, "/work/item/never-was").refused(404, "not_found")


def test_a_restart_reads_what_was_retired_before(brief: Cluster) -> None:
    work_id, _ = finished(brief)
    before = brief.item(work_id)
    eventually(lambda: all(retired(brief, node, work_id) for node in brief.nodes))
    for node in brief.nodes.values():
        node.kill()
    brief.start()
    for node in brief.nodes:
        assert brief.item(work_id, node) == before
