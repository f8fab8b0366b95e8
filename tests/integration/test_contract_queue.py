"""A work item's life over REST, each write sent to another node than the one before."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.cluster import Cluster, eventually, fresh, meanwhile

FIELDS = {
    "work_id", "work_type", "config", "priority", "state", "attempt", "max_attempts", "timeout_s", "depends_on",
    "on_dependency_failure", "not_before", "requirements", "target_node", "excluded_nodes", "unique_key", "group",
    "parent", "gang", "created_at", "started_at", "finished_at", "lease", "progress", "result", "error", "artifacts",
    "history",
}  # fmt: skip


@pytest.fixture
def turn(shared: Cluster) -> Iterator[Callable[[], str]]:
    """The next node, round and round."""
    names = itertools.cycle(("n1", "n2", "n3"))
    yield lambda: next(names)


def lived(shared: Cluster, work_type: str, until: str = "ASSIGNED", **fields: Any) -> tuple[str, int]:
    """An item claimed (and started); id and token."""
    work_id = shared.add(work_type=work_type, **fields)
    token = shared.claim(work_type)[0]["lease"]["token"]
    if until == "RUNNING":
        shared.post("n2", "/work/start", {"work_id": work_id, "token": token}).ok()
    return work_id, token


def test_an_item_has_every_field_and_its_defaults(shared: Cluster) -> None:
    item = shared.item(shared.add(work_type=fresh()))
    assert set(item) >= FIELDS
    expected = {
        "config": {}, "priority": 50, "state": "PENDING", "attempt": 0, "max_attempts": 3, "timeout_s": None,
        "depends_on": [], "on_dependency_failure": "cancel", "not_before": None, "target_node": None,
        "excluded_nodes": [], "unique_key": None, "group": None, "parent": None, "gang": None, "started_at": None,
        "finished_at": None, "lease": None, "progress": None, "result": None, "error": None, "history": [],
    }  # fmt: skip
    assert {name: item[name] for name in expected} == expected


def test_the_life_of_an_item_through_changing_nodes(shared: Cluster, turn: Callable[[], str]) -> None:
    work_type = fresh()
    added = shared.post(turn(), "/work/add", {"work_type": work_type, "config": {"n": 1}, "priority": 70}).ok()
    assert set(added) >= {"status", "work_id", "state", "index", "warnings"}
    assert (added["status"], added["state"]) == ("added", "PENDING")
    assert type(added["index"]) is int
    work_id = added["work_id"]

    claimed = shared.post(turn(), "/work/claim", {"node_id": "w-life", "work_types": [work_type]}).ok()
    assert claimed["work"] == claimed["items"][0]
    item = claimed["work"]
    assert set(item) >= FIELDS
    assert (item["work_id"], item["state"], item["config"]) == (work_id, "ASSIGNED", {"n": 1})
    assert set(item["lease"]) == {"node_id", "token", "expires_at"}
    assert item["lease"]["node_id"] == "w-life"
    token = item["lease"]["token"]
    assert type(token) is int
    assert token // 4096 > added["index"]

    started = shared.post(turn(), "/work/start", {"work_id": work_id, "token": token}).ok()
    assert started["status"] == "running"
    assert shared.item(work_id)["state"] == "RUNNING"
    assert shared.item(work_id)["started_at"]

    held = shared.get(turn(), "/work/for-node/w-life?consistency=leader").ok()
    assert (held["node_id"], held["count"], held["work_items"][0]["work_id"]) == ("w-life", 1, work_id)
    assert shared.get(turn(), "/work/node/w-life?consistency=leader").ok() == held

    leases = [{"work_id": work_id, "token": token, "progress": {"done": 3}}, {"work_id": "never-was", "token": 1}]
    renewed = shared.post(turn(), "/work/renew", {"node_id": "w-life", "leases": leases}).ok()["leases"]
    assert renewed[0]["work_id"] == work_id
    assert (renewed[0]["ok"], renewed[0]["cancel"]) == (True, False)
    assert renewed[0]["expires_at"] >= item["lease"]["expires_at"]
    assert renewed[1] == {"work_id": "never-was", "ok": False, "code": "not_found"}
    assert shared.item(work_id)["progress"] == {"done": 3}

    body = {"work_id": work_id, "token": token, "result": {"games": 7}, "artifacts": []}
    completed = shared.post(turn(), "/work/complete", body).ok()
    assert completed == {"status": "completed", "spawned": [], "then": None}
    for _ in range(3):
        item = shared.item(work_id, turn())
        assert (item["state"], item["result"], item["lease"]) == ("COMPLETED", {"games": 7}, None)
        assert item["finished_at"]
        (entry,) = item["history"]
        assert set(entry) >= {"attempt", "node_id", "token", "outcome", "reason", "at"}
        assert (entry["attempt"], entry["node_id"], entry["token"], entry["outcome"]) == (
            1,
            "w-life",
            token,
            "completed",
        )


def test_the_seeds_lines(shared: Cluster) -> None:
    body = {"work_type": "selfplay", "board_type": "hex8", "num_players": 2, "num_games": 1000}
    added = shared.post("n2", "/work/add", body).ok()
    assert shared.item(added["work_id"])["config"] == {"board_type": "hex8", "num_players": 2, "num_games": 1000}
    claimed = shared.post("n3", "/work/claim", {"node_id": "my-node"}).ok()
    assert claimed["work"] is not None
    assert shared.get("n1", "/work/for-node/my-node?consistency=leader").ok()["count"] >= 1
    for item in claimed["items"]:
        shared.post("n1", "/work/complete", {"work_id": item["work_id"], "token": item["lease"]["token"]}).ok()
    shared.post("n1", "/work/cancel", {"work_id": added["work_id"]})


def test_unknown_top_level_keys_join_what_config_already_says(shared: Cluster) -> None:
    item = shared.item(shared.add(work_type=fresh(), config={"a": 1}, b=2, c={"d": [3]}))
    assert item["config"] == {"a": 1, "b": 2, "c": {"d": [3]}}


@pytest.mark.parametrize(
    ("alias", "name"), [("gauntlet", "evaluation"), ("validation", "evaluation"), ("data_sync", "sync")]
)
def test_aliases_of_work_types(shared: Cluster, alias: str, name: str) -> None:
    work_id = shared.add(work_type=alias)
    assert shared.item(work_id)["work_type"] == name
    listed = shared.get("n1", f"/work/items?work_type={alias}&state=PENDING&consistency=leader").ok()["items"]
    assert work_id in [item["work_id"] for item in listed]
    token = next(i["lease"]["token"] for i in shared.claim(alias, max_items=100) if i["work_id"] == work_id)
    shared.post("n1", "/work/complete", {"work_id": work_id, "token": token}).ok()


def test_a_claim_by_query(shared: Cluster) -> None:
    work_type = fresh()
    work_id = shared.add(work_type=work_type)
    found = shared.get("n2", f"/work/claim?node_id=w-query&work_types={work_type}&max_items=2").ok()
    assert [item["work_id"] for item in found["items"]] == [work_id]


def test_an_empty_claim_counts_its_reasons(shared: Cluster) -> None:
    found = shared.post("n2", "/work/claim", {"node_id": "w-empty", "work_types": [fresh()]}).ok()
    assert found["items"] == []
    assert found["work"] is None
    assert isinstance(found["reasons"], dict)
    work_type = fresh()
    shared.add(work_type=work_type, requirements={"cpus": 8})
    found = shared.post(
        "n2", "/work/claim", {"node_id": "w-empty", "work_types": [work_type], "capabilities": {"cpus": 4}}
    ).ok()
    assert found["items"] == []
    assert sum(found["reasons"].values()) >= 1


def test_priority_then_age(shared: Cluster) -> None:
    work_type = fresh()
    order = [shared.add(work_type=work_type, priority=p) for p in (50, 0, 100, 50, 100)]
    claimed = [i["work_id"] for i in shared.claim(work_type, max_items=5)]
    assert claimed == [order[i] for i in (2, 4, 0, 3, 1)]


def test_classes_take_fair_turns(shared: Cluster) -> None:
    work_type = fresh()
    for board, count in (("hex8", 6), ("hex11", 2)):
        items = [{"work_type": work_type, "config": {"board_type": board}, "priority": 90}] * count
        shared.post("n1", "/work/add_batch", {"items": items}).ok()
    boards = [i["config"]["board_type"] for i in shared.claim(work_type, max_items=4)]
    assert sorted(boards) == ["hex11", "hex11", "hex8", "hex8"]


def test_a_claim_waits_for_work(shared: Cluster) -> None:
    for node in ("n1", "n2", "n3"):
        work_type = fresh()
        with meanwhile(lambda node=node, work_type=work_type: shared.claim(work_type, node=node, wait_s=10)) as waiting:
            begun_s = time.monotonic()
            work_id = shared.add("n1", work_type=work_type)
            assert [item["work_id"] for item in waiting.result()] == [work_id]
            assert time.monotonic() - begun_s < 5


def test_a_claim_that_waits_in_vain_ends_in_time(shared: Cluster) -> None:
    begun_s = time.monotonic()
    assert shared.claim(fresh(), node=shared.followers()[0], wait_s=1) == []
    assert 0.9 < time.monotonic() - begun_s < 4


@pytest.mark.parametrize(
    "fields",
    [{"max_items": 0}, {"max_items": 101}, {"lease_s": 4}, {"lease_s": 3601}, {"wait_s": 61}, {"wait_s": -1}],
)
def test_a_claims_bounds(shared: Cluster, fields: dict[str, Any]) -> None:
    problem = shared.post("n1", "/work/claim", {"node_id": "w", **fields}).refused(422, "invalid_field")
    assert [e["pointer"] for e in problem["errors"]] == [f"/{next(iter(fields))}"]


def test_requirements_are_matched_with_what_a_claim_offers(shared: Cluster) -> None:
    work_type = fresh()
    work_id = shared.add(
        work_type=work_type,
        requirements={"gpu": "RTX_5090", "cpus": 4, "memory_gb": 16, "labels": {"zone": "a"}},
    )
    full = {
        "gpus": [{"name": "NVIDIA GeForce RTX 5090", "vram_gb": 32}],
        "cpus": 8,
        "memory_gb": 64,
        "labels": {"zone": "a"},
    }
    other_gpu = {"gpus": [{"name": "H100", "vram_gb": 80}]}
    for lack in ({"gpus": []}, other_gpu, {"cpus": 2}, {"memory_gb": 8}, {"labels": {"zone": "b"}}):
        assert shared.claim(work_type, capabilities={**full, **lack}) == []
    assert shared.claim(work_type) == []  # no capabilities, none registered: only what requires nothing
    assert [i["work_id"] for i in shared.claim(work_type, capabilities=full)] == [work_id]


def test_gpu_counts_and_memory(shared: Cluster) -> None:
    work_type = fresh()
    work_id = shared.add(
        work_type=work_type, requirements={"gpu": {"names": ["H100", "A100"], "count": 2, "min_vram_gb": 70}}
    )
    one = {"name": "NVIDIA H100", "vram_gb": 80}
    assert shared.claim(work_type, capabilities={"gpus": [one]}) == []
    assert shared.claim(work_type, capabilities={"gpus": [one, {"name": "A100", "vram_gb": 40}]}) == []
    assert [i["work_id"] for i in shared.claim(work_type, capabilities={"gpus": [one, one]})] == [work_id]


def test_target_and_excluded_nodes(shared: Cluster) -> None:
    work_type = fresh()
    aimed = shared.add(work_type=work_type, target_node="w-aim")
    shunned = shared.add(work_type=work_type, excluded_nodes=["w-bad"])
    assert shared.claim(work_type, "w-bad", max_items=5) == []
    assert [i["work_id"] for i in shared.claim(work_type, "w-good", max_items=5)] == [shunned]
    assert [i["work_id"] for i in shared.claim(work_type, "w-aim", max_items=5)] == [aimed]
    shared.post("n1", "/work/add", {"work_type": work_type, "excluded_nodes": [f"n{i}" for i in range(17)]}).refused(
        422, "invalid_field"
    )


def test_unsatisfiable_is_a_warning_and_strict_a_refusal(shared: Cluster) -> None:
    body = {"work_type": fresh(), "requirements": {"cpus": 100_000}}
    assert shared.post("n1", "/work/add", body).ok()["warnings"]
    shared.post("n2", "/work/add", {**body, "strict": True}).refused(422, "unsatisfiable")


def test_tokens_rise_and_only_the_newest_counts(shared: Cluster) -> None:
    work_type = fresh()
    work_id, old = lived(shared, work_type)
    assert shared.post("n3", "/work/release", {"work_id": work_id, "token": old}).ok()["status"] == "released"
    assert shared.post("n2", "/work/release", {"work_id": work_id, "token": old}).ok()["status"] == "released"
    item = shared.item(work_id)
    assert (item["state"], item["attempt"], item["lease"]) == ("PENDING", 0, None)
    new = shared.claim(work_type)[0]["lease"]["token"]
    assert new > old
    for verb in ("start", "complete", "release"):
        shared.post("n1", f"/work/{verb}", {"work_id": work_id, "token": old}).refused(409, "stale_token")
    shared.post("n1", "/work/fail", {"work_id": work_id, "token": old, "error": "x"}).refused(409, "stale_token")
    renew = {"node_id": "w-test", "leases": [{"work_id": work_id, "token": old}]}
    assert shared.post("n1", "/work/renew", renew).ok()["leases"] == [
        {"work_id": work_id, "ok": False, "code": "stale_token"}
    ]
    shared.post("n2", "/work/start", {"work_id": work_id, "token": new}).ok()
    shared.post("n3", "/work/complete", {"work_id": work_id, "token": new, "result": 1}).ok()
    shared.post("n1", "/work/start", {"work_id": work_id, "token": new}).refused(409, "already_final")


@pytest.mark.parametrize("verb", ["start", "complete", "fail", "release"])
def test_a_missing_token_is_said(shared: Cluster, verb: str) -> None:
    body = {"work_id": "x", **({"error": "e"} if verb == "fail" else {})}
    shared.post("n1", f"/work/{verb}", body).refused(422, "token_required")


@pytest.mark.parametrize("verb", ["start", "complete", "fail", "release"])
def test_an_item_that_never_was_is_not_found(shared: Cluster, verb: str) -> None:
    body = {"work_id": "never-was", "token": 4096, **({"error": "e"} if verb == "fail" else {})}
    shared.post("n2", f"/work/{verb}", body).refused(404, "not_found")


def test_the_token_that_finished_an_item_hears_its_first_answer_again(shared: Cluster) -> None:
    work_type = fresh()
    work_id, old = lived(shared, work_type)
    shared.post("n1", "/work/release", {"work_id": work_id, "token": old}).ok()
    token = shared.claim(work_type)[0]["lease"]["token"]
    body = {"work_id": work_id, "token": token, "result": {"x": 1}, "spawn": [{"work_type": work_type}]}
    first = shared.post("n1", "/work/complete", body).ok()
    assert len(first["spawned"]) == 1
    for node in ("n2", "n3", "n1"):
        assert shared.post(node, "/work/complete", body).ok() == first
    assert shared.get("n1", f"/work/items?work_type={work_type}&consistency=leader").ok()["items"].__len__() == 2
    for verb, token_ in (("complete", old), ("release", token), ("start", token), ("fail", token), ("fail", old)):
        sent = {"work_id": work_id, "token": token_, **({"error": "e"} if verb == "fail" else {})}
        problem = shared.post("n2", f"/work/{verb}", sent).refused(409, "already_final")
        assert problem["state"] == "COMPLETED"


def test_fail_retries_with_growing_delay_until_no_attempt_is_left(shared: Cluster) -> None:
    work_type = fresh()
    work_id, token = lived(shared, work_type, until="RUNNING", max_attempts=2)
    first = shared.post("n2", "/work/fail", {"work_id": work_id, "token": token, "error": "boom"}).ok()
    assert set(first) >= {"status", "state", "not_before"}
    assert (first["status"], first["state"]) == ("retry", "PENDING")
    assert first["not_before"].endswith("Z")
    assert shared.post("n3", "/work/fail", {"work_id": work_id, "token": token, "error": "boom"}).ok() == first
    item = shared.item(work_id)
    assert (item["attempt"], item["error"]) == (1, "boom")
    (again,) = shared.claim(work_type, wait_s=10)
    last = shared.post("n1", "/work/fail", {"work_id": work_id, "token": again["lease"]["token"], "error": "bang"}).ok()
    assert (last["status"], last["state"]) == ("failed", "FAILED")
    item = shared.item(work_id)
    assert (item["state"], item["error"]) == ("FAILED", "bang")
    assert [h["outcome"] for h in item["history"]] == ["failed", "failed"]
    assert [h["attempt"] for h in item["history"]] == [1, 2]


def test_fail_for_good(shared: Cluster) -> None:
    work_id, token = lived(shared, fresh())
    body = {"work_id": work_id, "token": token, "error": "never again", "retryable": False}
    failed = shared.post("n2", "/work/fail", body).ok()
    assert (failed["status"], failed["state"]) == ("failed", "FAILED")
    assert shared.post("n3", "/work/fail", body).ok() == failed


def test_fail_needs_an_error(shared: Cluster) -> None:
    assert shared.post("n1", "/work/fail", {"work_id": "x", "token": 1}).status == 422


def test_cancel_is_final_at_once_and_the_worker_hears_of_it(shared: Cluster) -> None:
    work_id, token = lived(shared, fresh(), until="RUNNING")
    cancelled = shared.post("n2", "/work/cancel", {"work_id": work_id}).ok()
    assert cancelled["count"] == 1
    assert isinstance(cancelled["status"], str)
    assert shared.item(work_id)["state"] == "CANCELLED"
    renewed = shared.post(
        "n1", "/work/renew", {"node_id": "w-test", "leases": [{"work_id": work_id, "token": token}]}
    ).ok()
    assert renewed["leases"][0]["cancel"] is True
    problem = shared.post("n3", "/work/complete", {"work_id": work_id, "token": token}).refused(409, "already_final")
    assert problem["state"] == "CANCELLED"
    shared.post("n2", "/work/cancel", {"work_id": "never-was"}).refused(404, "not_found")
    shared.post("n2", "/work/retry", {"work_id": "never-was"}).refused(404, "not_found")


def test_a_group_is_cancelled_and_retried_whole(shared: Cluster) -> None:
    work_type, group = fresh(), fresh("g")
    ids = [shared.add(work_type=work_type, group=group) for _ in range(3)]
    listed = shared.get("n2", f"/work/items?group={group}&consistency=leader").ok()["items"]
    assert sorted(i["work_id"] for i in listed) == sorted(ids)
    assert shared.post("n2", "/work/cancel", {"group": group}).ok()["count"] == 3
    assert {shared.item(i)["state"] for i in ids} == {"CANCELLED"}
    assert shared.post("n3", "/work/retry", {"group": group}).ok()["count"] == 3
    for i in ids:
        item = shared.item(i)
        assert (item["state"], item["attempt"]) == ("PENDING", 0)


def test_cancel_wants_one_of_item_and_group(shared: Cluster) -> None:
    for body in ({}, {"work_id": "a", "group": "b"}):
        assert shared.post("n1", "/work/cancel", body).status == 422
        assert shared.post("n1", "/work/retry", body).status == 422


def test_retry_gives_new_attempts_and_refuses_what_lives(shared: Cluster) -> None:
    work_type = fresh()
    work_id, token = lived(shared, work_type, max_attempts=1)
    shared.post("n1", "/work/fail", {"work_id": work_id, "token": token, "error": "x"}).ok()
    assert shared.post("n2", "/work/retry", {"work_id": work_id}).ok()["count"] == 1
    (item,) = shared.claim(work_type)
    assert item["work_id"] == work_id
    assert item["lease"]["token"] > token
    shared.post("n2", "/work/complete", {"work_id": work_id, "token": item["lease"]["token"]}).ok()
    assert shared.post("n2", "/work/retry", {"work_id": work_id}).status == 409


def test_dependencies_hold_back_until_all_are_done(shared: Cluster) -> None:
    work_type, later = fresh(), fresh("later")
    first = [shared.add(work_type=work_type) for _ in range(2)]
    added = shared.post("n2", "/work/add", {"work_type": later, "depends_on": first}).ok()
    assert added["state"] == "BLOCKED"
    assert shared.claim(later) == []
    for item in shared.claim(work_type, max_items=2):
        assert shared.item(added["work_id"])["state"] == "BLOCKED"
        shared.post("n3", "/work/complete", {"work_id": item["work_id"], "token": item["lease"]["token"]}).ok()
    assert [i["work_id"] for i in shared.claim(later, wait_s=5)] == [added["work_id"]]


@pytest.mark.parametrize(("policy", "state"), [("cancel", "CANCELLED"), ("run", "PENDING"), ("wait", "BLOCKED")])
def test_what_becomes_of_dependents_of_a_failure(shared: Cluster, policy: str, state: str) -> None:
    work_type = fresh()
    work_id, token = lived(shared, work_type)
    waiting = shared.add(work_type=fresh(), depends_on=[work_id], on_dependency_failure=policy)
    shared.post("n1", "/work/fail", {"work_id": work_id, "token": token, "error": "x", "retryable": False}).ok()
    eventually(lambda: shared.item(waiting)["state"] == state)
    late = shared.post(
        "n2", "/work/add", {"work_type": fresh(), "depends_on": [work_id], "on_dependency_failure": policy}
    )
    assert late.ok()["state"] == state
    assert shared.post("n3", "/work/retry", {"work_id": work_id}).ok()["count"] == 1
    if policy == "cancel":
        assert shared.item(waiting)["state"] == "CANCELLED"  # cancelled dependents stay


def test_unknown_dependencies_and_cycles(shared: Cluster) -> None:
    problem = shared.post("n2", "/work/add", {"work_type": "a", "depends_on": ["never-was"]}).refused(
        422, "unknown_dependency"
    )
    assert problem["errors"]
    one, two = fresh(), fresh()
    items = [
        {"work_type": "a", "work_id": one, "depends_on": [two]},
        {"work_type": "a", "work_id": two, "depends_on": [one]},
    ]
    shared.post("n1", "/work/add_batch", {"items": items}).refused(422, "dependency_cycle")
    shared.get("n1", f"/work/item/{one}").refused(404, "not_found")
    own = fresh()
    shared.post("n1", "/work/add", {"work_type": "a", "work_id": own, "depends_on": [own]}).refused(
        422, "dependency_cycle"
    )
    many = {"work_type": "a", "depends_on": [f"d{i}" for i in range(65)]}
    shared.post("n1", "/work/add", many).refused(422, "invalid_field")


def test_a_batch_is_taken_whole_and_in_order(shared: Cluster) -> None:
    work_type, first, key = fresh(), fresh(), fresh("u")
    taken = shared.add(work_type=work_type, unique_key=key)
    items = [
        {"work_type": work_type, "depends_on": [first]},
        {"work_type": work_type, "work_id": first},
        {"work_type": work_type, "unique_key": key},
    ]
    answer = shared.post("n2", "/work/add_batch", {"items": items}).ok()["items"]
    assert [a["status"] for a in answer] == ["added", "added", "exists"]
    assert answer[1]["work_id"] == first
    assert answer[2]["work_id"] == taken
    assert shared.item(answer[0]["work_id"])["state"] == "BLOCKED"


def test_a_batch_with_one_fault_adds_nothing_and_names_it(shared: Cluster) -> None:
    work_type = fresh()
    items = [
        {"work_type": work_type},
        {"work_type": work_type, "priority": 1000},
        {"work_type": work_type, "depends_on": ["no"]},
    ]
    problem = shared.post("n3", "/work/add_batch", {"items": items})
    assert problem.status == 422
    assert any(e["pointer"].startswith("/items/1/") for e in problem.body["errors"])
    assert shared.get("n1", f"/work/items?work_type={work_type}&consistency=leader").ok()["items"] == []
    items = [{"work_type": work_type}, {"work_type": work_type, "depends_on": ["no"]}]
    problem = shared.post("n3", "/work/add_batch", {"items": items}).refused(422, "unknown_dependency")
    assert any(e["pointer"].startswith("/items/1/depends_on") for e in problem["errors"])
    assert shared.get("n1", f"/work/items?work_type={work_type}&consistency=leader").ok()["items"] == []
    assert shared.post("n1", "/work/add_batch", {"items": [{"work_type": work_type}] * 1001}).status in (413, 422)


def test_unique_key_is_free_again_when_its_item_is_final(shared: Cluster) -> None:
    work_type, key = fresh(), fresh("u")
    work_id = shared.add(work_type=work_type, unique_key=key)
    exists = shared.post("n2", "/work/add", {"work_type": work_type, "unique_key": key, "config": {"x": 1}}).ok()
    assert exists["status"] == "exists"
    assert exists["work_id"] == work_id
    shared.post("n1", "/work/cancel", {"work_id": work_id}).ok()
    added = shared.post("n3", "/work/add", {"work_type": work_type, "unique_key": key}).ok()
    assert added["status"] == "added"
    shared.post("n1", "/work/retry", {"work_id": work_id}).refused(409, "conflict")


def test_a_taken_work_id(shared: Cluster) -> None:
    work_type, work_id = fresh(), fresh("own")
    body = {"work_type": work_type, "work_id": work_id, "config": {"x": 1}}
    assert shared.post("n1", "/work/add", body).ok()["status"] == "added"
    again = shared.post("n2", "/work/add", body).ok()
    assert (again["status"], again["work_id"]) == ("exists", work_id)
    shared.post("n3", "/work/add", {**body, "config": {"x": 2}}).refused(409, "work_id_taken")


def test_complete_spawns_and_follows_in_one_entry(shared: Cluster) -> None:
    work_type, child, last = fresh(), fresh("child"), fresh("last")
    work_id, token = lived(shared, work_type)
    body = {
        "work_id": work_id,
        "token": token,
        "spawn": [{"work_type": child, "config": {"num": i}} for i in range(3)],
        "then": {"work_type": last},
    }
    answer = shared.post("n2", "/work/complete", body).ok()
    assert len(answer["spawned"]) == 3
    then = shared.item(answer["then"])
    assert (then["state"], then["parent"]) == ("BLOCKED", work_id)
    assert sorted(then["depends_on"]) == sorted(answer["spawned"])
    assert {shared.item(i)["parent"] for i in answer["spawned"]} == {work_id}
    for item in shared.claim(child, max_items=3):
        shared.post("n3", "/work/complete", {"work_id": item["work_id"], "token": item["lease"]["token"]}).ok()
    assert [i["work_id"] for i in shared.claim(last, wait_s=5)] == [answer["then"]]


def test_a_fault_in_what_is_spawned_refuses_the_completion(shared: Cluster) -> None:
    work_id, token = lived(shared, fresh())
    bad = {
        "work_id": work_id,
        "token": token,
        "spawn": [{"work_type": "a", "priority": 900}],
        "then": {"work_type": ""},
    }
    problem = shared.post("n2", "/work/complete", bad).refused(422, "invalid_field")
    assert {e["pointer"] for e in problem["errors"]} >= {"/spawn/0/priority", "/then/work_type"}
    unknown = {"work_id": work_id, "token": token, "spawn": [{"work_type": "a", "depends_on": ["never-was"]}]}
    problem = shared.post("n2", "/work/complete", unknown).refused(422, "unknown_dependency")
    assert problem["errors"][0]["pointer"].startswith("/spawn/0/depends_on")
    assert shared.item(work_id)["state"] == "ASSIGNED"


def test_a_batch_of_completions_each_by_itself(shared: Cluster) -> None:
    work_type = fresh()
    for _ in range(3):
        shared.add(work_type=work_type)
    items = shared.claim(work_type, max_items=3)
    body = [{"work_id": i["work_id"], "token": i["lease"]["token"], "result": n} for n, i in enumerate(items)]
    body[1]["token"] = 1
    body.append({"work_id": "never-was", "token": 1})
    answer = shared.post("n2", "/work/complete_batch", {"items": body}).ok()["items"]
    assert [a["status"] for a in answer] == ["completed", "refused", "completed", "refused"]
    assert [a.get("code") for a in answer] == [None, "stale_token", None, "not_found"]
    assert shared.post("n3", "/work/complete_batch", {"items": body}).ok()["items"] == answer
    assert [shared.item(i["work_id"])["state"] for i in items] == ["COMPLETED", "ASSIGNED", "COMPLETED"]


def test_not_before_holds_an_item_back(shared: Cluster) -> None:
    work_type = fresh()
    work_id = shared.add(work_type=work_type, not_before="2099-01-01T00:00:00Z")
    assert shared.claim(work_type) == []
    why = shared.get("n1", f"/work/why/{work_id}?consistency=leader").ok()
    assert set(why) >= {"work_id", "state", "reasons", "rejections", "position", "estimate_s"}
    assert why["reasons"]
    assert set(why["reasons"][0]) >= {"code", "detail"}
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    work_id = shared.add(work_type=work_type, not_before=soon)
    assert [i["work_id"] for i in shared.claim(work_type, node="n2", wait_s=10)] == [work_id]


def test_why_tells_for_each_state(shared: Cluster) -> None:
    work_type = fresh()
    lonely = shared.add(work_type=work_type)
    blocked = shared.add(work_type=work_type, depends_on=[lonely])
    for node in ("n1", "n2", "n3"):
        for work_id, state in ((lonely, "PENDING"), (blocked, "BLOCKED")):
            why = shared.get(node, f"/work/why/{work_id}?consistency=linearizable").ok()
            assert (why["work_id"], why["state"]) == (work_id, state)
            assert why["reasons"]
            assert isinstance(why["rejections"], dict)
    shared.post("n1", "/work/cancel", {"work_id": lonely}).ok()
    why = shared.get("n2", f"/work/why/{lonely}?consistency=linearizable").ok()
    assert why["state"] == "CANCELLED"
    shared.get("n2", "/work/why/never-was").refused(404, "not_found")


def test_waiting_for_an_item_to_be_final(shared: Cluster) -> None:
    for node in ("n1", "n2", "n3"):
        work_id, token = lived(shared, fresh())
        with meanwhile(
            lambda node=node, work_id=work_id: shared.get(node, f"/work/item/{work_id}?wait_s=20")
        ) as waiting:
            shared.post("n1", "/work/complete", {"work_id": work_id, "token": token, "result": [1]}).ok()
            assert waiting.result().ok()["state"] == "COMPLETED"
            assert waiting.result().took_s < 10
    work_id = shared.add(work_type=fresh())
    answer = shared.get("n2", f"/work/item/{work_id}?wait_s=1")
    assert answer.ok()["state"] == "PENDING"
    assert 0.9 < answer.took_s < 5


def test_work_status_counts(shared: Cluster) -> None:
    work_type = fresh()
    before = shared.get("n1", "/work/status?consistency=leader").ok()
    assert set(before) >= {
        "total_items", "by_status", "by_type", "pending", "running", "oldest_pending_age_s", "rates", "backpressure",
        "leases_by_node",
    }  # fmt: skip
    lived(shared, work_type, until="RUNNING")
    shared.add(work_type=work_type)
    after = shared.get("n2", "/work/status?consistency=leader").ok()
    assert after["total_items"] == before["total_items"] + 2
    assert after["running"] == before["running"] + 1
    assert after["pending"] == before["pending"] + 1
    assert after["by_status"]["RUNNING"] == before["by_status"].get("RUNNING", 0) + 1
    assert work_type in after["by_type"]
    assert after["leases_by_node"]["w-test"] >= 1


def test_items_are_listed_by_every_filter(shared: Cluster) -> None:
    work_type, group = fresh(), fresh("g")
    running, token = lived(shared, work_type, until="RUNNING", group=group)
    pending = shared.add(work_type=work_type, group=group)
    item = shared.claim(fresh(), "w-other")
    assert item == []

    def listed(query: str) -> list[str]:
        found = shared.get("n2", f"/work/items?{query}&consistency=leader").ok()["items"]
        return sorted(i["work_id"] for i in found)

    assert listed(f"work_type={work_type}") == sorted([running, pending])
    assert listed(f"work_type={work_type}&state=RUNNING") == [running]
    assert listed(f"group={group}&state=PENDING") == [pending]
    assert listed(f"node_id=w-test&work_type={work_type}") == [running]
    assert listed(f"node_id=w-nobody&work_type={work_type}") == []
    assert token


def test_history_lists_what_is_final(shared: Cluster) -> None:
    work_type = fresh()
    work_id, token = lived(shared, work_type)
    shared.post("n1", "/work/complete", {"work_id": work_id, "token": token, "result": 5}).ok()
    for node in ("n1", "n2", "n3"):
        found = eventually(
            lambda node=node: [
                i for i in shared.get(node, "/work/history?limit=1000").ok()["items"] if i["work_id"] == work_id
            ]
        )
        assert (found[0]["state"], found[0]["result"]) == ("COMPLETED", 5)


def test_a_gang_and_other_later_things_are_refused_in_words(shared: Cluster) -> None:
    answer = shared.post("n1", "/work/add", {"work_type": fresh(), "gang": {"size": 2, "timeout_s": 5}})
    assert answer.status in (200, 422)


def test_progress_and_result_are_bounded(shared: Cluster) -> None:
    work_id, token = lived(shared, fresh())
    answer = shared.post("n1", "/work/complete", {"work_id": work_id, "token": token, "result": "a" * 65_600})
    assert answer.status in (413, 422)
    assert shared.item(work_id)["state"] == "ASSIGNED"


def test_complete_from_assigned_is_allowed(shared: Cluster) -> None:
    work_id, token = lived(shared, fresh())
    assert shared.post("n3", "/work/complete", {"work_id": work_id, "token": token}).ok()["status"] == "completed"


def test_start_twice_is_one_start(shared: Cluster) -> None:
    work_id, token = lived(shared, fresh(), until="RUNNING")
    started = shared.item(work_id)["started_at"]
    assert shared.post("n3", "/work/start", {"work_id": work_id, "token": token}).ok()["status"] == "running"
    assert shared.item(work_id)["started_at"] == started


def test_renew_by_another_node_is_refused(shared: Cluster) -> None:
    work_id, token = lived(shared, fresh())
    body = {"node_id": "w-thief", "leases": [{"work_id": work_id, "token": token}]}
    answer = shared.post("n1", "/work/renew", body).ok()["leases"][0]
    assert answer["ok"] is False
