"""Idempotency keys: one effect and one outcome, whoever is asked and whatever happened in between."""

from __future__ import annotations

import pytest

from tests.integration.cluster import Cluster, eventually, fresh


def test_a_repeated_add_has_one_effect_through_every_node(shared: Cluster) -> None:
    work_type, key = fresh(), fresh("key")
    body = {"work_type": work_type, "config": {"a": 1, "b": [1.5, None]}}
    first = shared.post("n1", "/work/add", body, key=key).ok()
    for node in ("n2", "n3", "n1"):
        assert shared.post(node, "/work/add", body, key=key).ok() == first
    spaced = b'{ "config" : {"b": [1.50, null], "a": 1}, "work_type": "%s" }' % work_type.encode()
    assert shared.post("n2", "/work/add", raw=spaced, key=key).ok() == first
    assert len(shared.get("n1", f"/work/items?work_type={work_type}&consistency=leader").ok()["items"]) == 1


def test_the_outcome_of_an_add_stays_when_its_item_moves_on(shared: Cluster) -> None:
    work_type, key = fresh(), fresh("key")
    first = shared.post("n1", "/work/add", {"work_type": work_type}, key=key).ok()
    token = shared.claim(work_type)[0]["lease"]["token"]
    shared.post("n1", "/work/complete", {"work_id": first["work_id"], "token": token}).ok()
    assert shared.post("n2", "/work/add", {"work_type": work_type}, key=key).ok() == first


def test_the_same_key_with_another_body_is_a_mismatch(shared: Cluster) -> None:
    key = fresh("key")
    shared.post("n1", "/work/add", {"work_type": fresh()}, key=key).ok()
    for node in ("n1", "n2", "n3"):
        problem = shared.post(node, "/work/add", {"work_type": fresh()}, key=key).refused(422, "idempotency_mismatch")
        assert problem["outcome"] == "not_applied"
    shared.post("n1", "/work/cancel", {"work_id": "never-was"}, key=key).refused(422, "idempotency_mismatch")


def test_a_repeated_batch(shared: Cluster) -> None:
    work_type, key = fresh(), fresh("key")
    body = {"items": [{"work_type": work_type, "config": {"n": n}} for n in range(5)]}
    first = shared.post("n2", "/work/add_batch", body, key=key).ok()
    for node in ("n3", "n1"):
        assert shared.post(node, "/work/add_batch", body, key=key).ok() == first
    assert len(shared.get("n1", f"/work/items?work_type={work_type}&consistency=leader").ok()["items"]) == 5
    body["items"].pop()
    shared.post("n1", "/work/add_batch", body, key=key).refused(422, "idempotency_mismatch")


def test_a_repeated_claim_returns_what_is_still_leased_so(shared: Cluster) -> None:
    work_type, key = fresh(), fresh("key")
    for _ in range(3):
        shared.add(work_type=work_type)
    body = {"node_id": "w-key", "work_types": [work_type], "max_items": 2}

    def tokens(node: str) -> list[tuple[str, int]]:
        items = shared.post(node, "/work/claim", body, key=key).ok()["items"]
        return [(i["work_id"], i["lease"]["token"]) for i in items]

    first = tokens("n1")
    assert len(first) == 2
    assert tokens("n2") == tokens("n3") == first
    shared.post("n1", "/work/complete", {"work_id": first[0][0], "token": first[0][1]}).ok()
    assert tokens("n2") == first[1:]
    shared.post("n1", "/work/release", {"work_id": first[1][0], "token": first[1][1]}).ok()
    assert tokens("n3") == []
    shared.post("n1", "/work/claim", {**body, "max_items": 3}, key=key).refused(422, "idempotency_mismatch")


def test_an_empty_claim_leaves_no_key(shared: Cluster) -> None:
    work_type, key = fresh(), fresh("key")
    body = {"node_id": "w-key", "work_types": [work_type]}
    assert shared.post("n1", "/work/claim", body, key=key).ok()["items"] == []
    work_id = shared.add(work_type=work_type)
    assert [i["work_id"] for i in shared.post("n2", "/work/claim", body, key=key).ok()["items"]] == [work_id]
    other = {"node_id": "w-key", "work_types": [fresh()]}
    empty = fresh("key")
    assert shared.post("n1", "/work/claim", other, key=empty).ok()["items"] == []
    assert shared.post("n1", "/work/add", {"work_type": fresh()}, key=empty).ok()["status"] == "added"


def test_exists_leaves_no_key(shared: Cluster) -> None:
    work_type, unique, key = fresh(), fresh("u"), fresh("key")
    body = {"work_type": work_type, "unique_key": unique}
    first = shared.add(**body)
    assert shared.post("n1", "/work/add", body, key=key).ok()["status"] == "exists"
    shared.post("n1", "/work/cancel", {"work_id": first}).ok()
    assert shared.post("n2", "/work/add", body, key=key).ok()["status"] == "added"


def test_a_refusal_leaves_no_key(shared: Cluster) -> None:
    key, wanted = fresh("key"), fresh("own")
    body = {"work_type": fresh(), "depends_on": [wanted]}
    shared.post("n1", "/work/add", body, key=key).refused(422, "unknown_dependency")
    shared.add(work_type=fresh(), work_id=wanted)
    assert shared.post("n2", "/work/add", body, key=key).ok()["status"] == "added"


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_cancel_and_retry_answer_a_repeat_alike(shared: Cluster, verb: str) -> None:
    key, group = fresh("key"), fresh("g")
    for _ in range(2):
        shared.add(work_type=fresh(), group=group)
    if verb == "retry":
        shared.post("n1", "/work/cancel", {"group": group}).ok()
    first = shared.post("n1", f"/work/{verb}", {"group": group}, key=key).ok()
    assert first["count"] == 2
    assert shared.post("n2", f"/work/{verb}", {"group": group}, key=key).ok() == first
    shared.post("n3", f"/work/{verb}", {"group": fresh()}, key=key).refused(422, "idempotency_mismatch")


def test_keys_survive_a_failover_and_a_restart_of_all(cluster: Cluster) -> None:
    work_type, key, claim_key = fresh(), fresh("key"), fresh("key")
    body = {"work_type": work_type}
    claim = {"node_id": "w-key", "work_types": [work_type], "lease_s": 600}
    first = cluster.post("n1", "/work/add", body, key=key).ok()
    granted = cluster.post("n2", "/work/claim", claim, key=claim_key).ok()["items"]

    def repeats_agree(node: str) -> None:
        assert cluster.post(node, "/work/add", body, key=key).ok() == first
        again = cluster.post(node, "/work/claim", claim, key=claim_key).ok()["items"]
        assert [(i["work_id"], i["lease"]["token"]) for i in again] == [
            (i["work_id"], i["lease"]["token"]) for i in granted
        ]

    leader = cluster.leader()
    cluster.nodes[leader].kill()
    rest = [name for name in cluster.nodes if name != leader]
    cluster.leader(rest)
    for node in rest:
        repeats_agree(node)
    cluster.nodes[leader].start().wait_ready()
    repeats_agree(leader)
    for node in cluster.nodes.values():
        node.kill()
    cluster.start()
    for node in cluster.nodes:
        repeats_agree(node)
    cluster.post("n1", "/work/add", {"work_type": fresh()}, key=key).refused(422, "idempotency_mismatch")

    def one_digest() -> bool:
        found = [cluster.get(name, "/raft/digest").body for name in cluster.nodes]
        return len({(d["index"], d["sha256"]) for d in found}) == 1

    eventually(one_digest)
