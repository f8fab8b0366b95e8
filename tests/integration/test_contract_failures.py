"""Failover, no majority, kill -9 of everything, lease expiry and what is told while all that happens."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from tests.integration.cluster import Answer, Cluster, call, eventually, fresh


def majority_lost(cluster: Cluster) -> str:
    """Kill the leader and one more; the one that is left, once it knows."""
    left, other = cluster.followers()
    cluster.nodes[cluster.leader()].kill()
    cluster.nodes[other].kill()
    eventually(lambda: cluster.get(left, "/health").body["leader_id"] is None)
    return left


def test_without_a_majority_writes_are_refused_and_stale_reads_work(cluster: Cluster) -> None:
    work_type = fresh()
    work_id = cluster.add(work_type=work_type)
    token = cluster.claim(work_type, lease_s=5)[0]["lease"]["token"]
    for node in cluster.nodes:
        eventually(lambda node=node: cluster.get(node, f"/work/item/{work_id}?consistency=stale").body["lease"])
    left = majority_lost(cluster)

    for path, body in (
        ("/work/add", {"work_type": work_type}),
        ("/work/add_batch", {"items": [{"work_type": work_type}]}),
        ("/work/claim", {"node_id": "w", "work_types": [work_type]}),
        ("/work/start", {"work_id": work_id, "token": token}),
        ("/work/complete", {"work_id": work_id, "token": token}),
        ("/work/cancel", {"work_id": work_id}),
    ):
        answer = cluster.post(left, f"{path}?timeout_s=0.4", body)
        assert answer.status == 503, answer
        assert answer.body["code"] in ("no_quorum", "no_leader")
        assert answer.body["outcome"] == "not_applied"
        assert answer.body["retryable"] is True
        assert answer.body["leader"] is None
        assert int(answer.headers["retry-after"]) >= 1
        assert 0.3 < answer.took_s < 4
        assert "x-ringraft-leader" not in answer.headers
    for level in ("linearizable", "leader"):
        answer = cluster.get(left, f"/work/item/{work_id}?consistency={level}&timeout_s=0.4")
        assert answer.status == 503
        assert answer.headers["retry-after"]

    assert cluster.get(left, f"/work/item/{work_id}?consistency=stale").ok()["state"] == "ASSIGNED"
    for path in (
        "/work/status",
        "/work/items",
        "/status",
        "/peers",
        "/events",
        "/metrics",
        "/raft/status",
        "/raft/digest",
    ):
        assert cluster.get(left, path).status == 200, path
    first = float(cluster.get(left, "/work/status").headers["x-ringraft-lag"])
    eventually(lambda: float(cluster.get(left, "/work/status").headers["x-ringraft-lag"]) > first)
    status = cluster.get(left, "/status").ok()
    assert (status["leader_id"], status["has_quorum"], status["is_leader"]) == (None, False, False)
    assert status["role"] in ("follower", "candidate")
    health = cluster.get(left, "/health")
    assert health.body["has_quorum"] is False
    assert health.body["status"] in ("degraded", "unavailable")
    assert (health.status == 503) == (health.body["status"] == "unavailable")
    assert cluster.get(left, "/readyz").status == 503
    assert "[-]" in cluster.get(left, "/readyz").raw.decode()
    assert cluster.get(left, "/livez").status == 200
    cluster.post(left, "/election/start").refused(409, "conflict")

    for node in cluster.nodes.values():
        if not node.alive:
            node.start().wait_ready()
    cluster.leader()
    item = cluster.item(work_id, left)
    assert item["state"] in ("ASSIGNED", "PENDING")
    assert item["lease"] is None or item["lease"]["token"] == token
    assert cluster.post(left, "/work/complete", {"work_id": work_id, "token": token}).ok()["status"] == "completed"


def test_a_write_waits_for_a_leader_as_long_as_it_says(cluster: Cluster) -> None:
    left = majority_lost(cluster)
    answers: list[Answer] = []
    body = {"work_type": fresh()}
    writer = threading.Thread(target=lambda: answers.append(cluster.post(left, "/work/add?timeout_s=25", body)))
    writer.start()
    for node in cluster.nodes.values():
        if not node.alive:
            node.start().wait_ready()
            break
    writer.join()
    assert answers[0].ok()["status"] == "added"


def test_writes_go_on_through_a_failover_and_nothing_is_lost_or_doubled(cluster: Cluster) -> None:
    """Repeats by key through whoever answers, with the leader killed half way."""
    work_type = fresh()
    acknowledged: dict[str, str] = {}
    leader = cluster.leader()
    rest = [name for name in cluster.nodes if name != leader]
    for n in range(60):
        if n == 20:
            cluster.nodes[leader].kill()
        body: dict[str, Any] = {"work_type": work_type, "config": {"n": n}}
        key = f"{work_type}-{n}"

        def attempt(n: int = n, body: dict[str, Any] = body, key: str = key) -> bool:
            answer = cluster.post(rest[n % 2], "/work/add", body, key=key)
            if answer.status == 200:
                acknowledged[key] = answer.body["work_id"]
            else:
                assert answer.status in (503, 504), answer
            return answer.status == 200

        eventually(attempt)
    assert len(set(acknowledged.values())) == 60
    cluster.nodes[leader].start().wait_ready()
    for node in cluster.nodes:
        listed = cluster.get(node, f"/work/items?work_type={work_type}&limit=1000&consistency=leader").ok()["items"]
        assert {i["work_id"] for i in listed} == set(acknowledged.values())
        assert len(listed) == 60
    assert cluster.get(leader, "/status").ok()["term"] >= 2


def test_kill_of_all_at_once_loses_nothing_acknowledged(cluster: Cluster) -> None:
    work_type = fresh()
    items = [{"work_type": work_type, "config": {"n": n}} for n in range(200)]
    ids = [i["work_id"] for i in cluster.post("n2", "/work/add_batch", {"items": items}).ok()["items"]]
    leases = {i["work_id"]: i["lease"]["token"] for i in cluster.claim(work_type, max_items=50, lease_s=600)}
    done = list(leases)[:20]
    for work_id in done:
        cluster.post("n1", "/work/complete", {"work_id": work_id, "token": leases[work_id], "result": work_id}).ok()
    term = cluster.get("n1", "/status").ok()["term"]
    for node in cluster.nodes.values():
        node.kill()
    cluster.start()
    for node in cluster.nodes:
        found = {
            i["work_id"]: i
            for i in cluster.get(node, f"/work/items?work_type={work_type}&limit=1000&consistency=leader").ok()["items"]
        }
        assert sorted(found) == sorted(ids)
        assert {i for i in found if found[i]["state"] == "COMPLETED"} == set(done)
        assert all(found[i]["result"] == i for i in done)
        assert {i: found[i]["lease"]["token"] for i in leases if i not in done} == {
            i: leases[i] for i in leases if i not in done
        }
    assert cluster.get("n1", "/status").ok()["term"] >= term
    for work_id in done[:3]:
        body = {"work_id": work_id, "token": leases[work_id], "result": work_id}
        assert cluster.post("n3", "/work/complete", body).ok()["status"] == "completed"


def test_a_paused_leader_does_not_speak_for_the_cluster(cluster: Cluster) -> None:
    leader = cluster.leader()
    rest = [name for name in cluster.nodes if name != leader]
    cluster.nodes[leader].signal(signal.SIGSTOP)
    eventually(lambda: cluster.get(rest[0], "/health", timeout_s=2).body["leader_id"] in rest)
    work_id = cluster.add(rest[0], work_type=fresh())
    cluster.nodes[leader].signal(signal.SIGCONT)
    answer = cluster.get(leader, f"/work/item/{work_id}")
    assert answer.status == 200, answer
    eventually(lambda: cluster.get(leader, "/health").body["leader_id"] in rest)
    assert cluster.post(leader, "/work/add", {"work_type": fresh()}).ok()["status"] == "added"


def test_a_lost_commit_is_said_to_be_unknown(cluster: Cluster) -> None:
    """The leader takes a write that no majority can take: never `applied`, never `not_applied`."""
    leader = cluster.leader()
    for name in cluster.followers():
        cluster.nodes[name].signal(signal.SIGSTOP)
    key, body = fresh("key"), {"work_type": fresh()}
    answer = call(cluster.nodes[leader].url, "POST", "/work/add?timeout_s=2", body, key=key)
    assert answer.status in (503, 504), answer
    assert answer.body["code"] in ("commit_unknown", "no_quorum", "no_leader")
    assert answer.body["outcome"] == ("unknown" if answer.status == 504 else "not_applied")
    assert answer.took_s < 6
    for name, node in cluster.nodes.items():
        if name != leader:
            node.signal(signal.SIGCONT)
    eventually(lambda: cluster.post(leader, "/work/add", body, key=key).status == 200)
    listed = cluster.get(leader, f"/work/items?work_type={body['work_type']}&consistency=linearizable").ok()["items"]
    assert len(listed) == 1


def test_the_killed_nodes_absence_is_seen_and_its_return_too(cluster: Cluster) -> None:
    victim = cluster.followers()[0]
    witness = cluster.leader()
    cluster.nodes[victim].kill()
    eventually(lambda: cluster.get(witness, "/status").body["voters_alive"] == 2)
    cluster.nodes[victim].start().wait_ready()
    eventually(lambda: cluster.get(witness, "/status").body["voters_alive"] == 3)
    incarnations = {p["node_id"]: p["incarnation"] for p in cluster.get(victim, "/peers").ok()}
    assert incarnations[victim] == 2


def expired(cluster: Cluster, work_id: str) -> dict[str, Any]:
    return eventually(lambda: (i := cluster.item(work_id))["state"] == "PENDING" and i, 20)


def test_a_lease_that_is_not_renewed_ends(shared: Cluster) -> None:
    """Two items: one only claimed, one started. Only the started one has spent an attempt."""
    work_type, started_type = fresh(), fresh()
    claimed, started = shared.add(work_type=work_type), shared.add(work_type=started_type)
    (first,) = shared.claim(work_type, "w-lost", lease_s=5)
    (second,) = shared.claim(started_type, "w-lost", node="n2", lease_s=5)
    begun_s = time.monotonic()
    token, started_token = first["lease"]["token"], second["lease"]["token"]
    shared.post("n1", "/work/start", {"work_id": started, "token": started_token}).ok()

    item = expired(shared, claimed)
    assert 3.5 < time.monotonic() - begun_s < 12
    assert (item["attempt"], item["lease"]) == (0, None)
    assert item["history"][-1]["outcome"] == "expired"
    item = expired(shared, started)
    assert (item["attempt"], item["lease"]) == (1, None)
    renew = {"node_id": "w-lost", "leases": [{"work_id": claimed, "token": token}]}
    assert shared.post("n1", "/work/renew", renew).ok()["leases"][0]["ok"] is False

    # Late, with the newest token: accepted, once.
    body = {"work_id": claimed, "token": token, "result": "late"}
    assert shared.post("n2", "/work/complete", body).ok()["status"] == "completed"
    assert shared.item(claimed)["result"] == "late"
    # Late, after somebody else took it: stale.
    newer = shared.claim(started_type, "w-other", wait_s=5)[0]["lease"]["token"]
    assert newer > started_token
    shared.post("n3", "/work/complete", {"work_id": started, "token": started_token}).refused(409, "stale_token")
    shared.post("n1", "/work/complete", {"work_id": started, "token": newer}).ok()


def test_the_last_attempt_that_expires_fails_the_item(shared: Cluster) -> None:
    work_type = fresh()
    work_id = shared.add(work_type=work_type, max_attempts=1)
    token = shared.claim(work_type, lease_s=5)[0]["lease"]["token"]
    shared.post("n1", "/work/start", {"work_id": work_id, "token": token}).ok()
    answer = shared.get("n2", f"/work/item/{work_id}?wait_s=20").ok()
    assert (answer["state"], answer["attempt"]) == ("FAILED", 1)
    problem = shared.post("n3", "/work/complete", {"work_id": work_id, "token": token}).refused(409, "already_final")
    assert problem["state"] == "FAILED"


@pytest.mark.long
def test_renewing_keeps_a_lease(shared: Cluster) -> None:
    work_type = fresh()
    work_id = shared.add(work_type=work_type)
    token = shared.claim(work_type, lease_s=5)[0]["lease"]["token"]
    until_s = time.monotonic() + 7
    while time.monotonic() < until_s:
        leases = [{"work_id": work_id, "token": token}]
        assert shared.post("n2", "/work/renew", {"node_id": "w-test", "leases": leases}).ok()["leases"][0]["ok"]
        threading.Event().wait(0.5)
    assert shared.item(work_id)["state"] == "ASSIGNED"


def test_a_run_that_takes_too_long_is_ended(shared: Cluster) -> None:
    work_type = fresh()
    work_id = shared.add(work_type=work_type, timeout_s=1, max_attempts=1)
    token = shared.claim(work_type, lease_s=600)[0]["lease"]["token"]
    shared.post("n1", "/work/start", {"work_id": work_id, "token": token}).ok()
    item = shared.get("n3", f"/work/item/{work_id}?wait_s=15").ok()
    assert item["state"] == "FAILED"
    assert item["history"][-1]["outcome"] == "timeout"


@pytest.mark.long
def test_time_without_a_leader_ends_no_lease(cluster: Cluster) -> None:
    work_type = fresh()
    work_id = cluster.add(work_type=work_type)
    token = cluster.claim(work_type, lease_s=5)[0]["lease"]["token"]
    for node in cluster.nodes.values():
        node.kill()
    threading.Event().wait(5.5)
    cluster.start()
    item = cluster.item(work_id)
    assert (item["state"], item["lease"]["token"]) == ("ASSIGNED", token)


@pytest.mark.parametrize("through", ["leader", "follower"])
def test_a_long_poll_survives_its_leader(cluster: Cluster, through: str) -> None:
    """A claim that waits when the leader dies ends with work, an empty answer or 503: never a hang."""
    leader = cluster.leader()
    followers = cluster.followers()
    work_type = fresh()
    answers: list[Answer] = []
    body = {"node_id": "w", "work_types": [work_type], "wait_s": 10}
    node = followers[0]
    waiter = threading.Thread(target=lambda: answers.append(cluster.post(node, "/work/claim", body, key=fresh())))
    waiter.start()
    cluster.nodes[leader if through == "follower" else followers[1]].kill()
    cluster.leader()
    cluster.add(node, work_type=work_type)
    waiter.join(timeout=20)
    assert answers, "the claim hangs"
    assert answers[0].status in (200, 503, 504), answers[0]
    assert answers[0].took_s < 16
