"""Health, status, peers, events, digest and elections, as seen from each node."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.cluster import Cluster, eventually, fresh, meanwhile

NAMES = ("n1", "n2", "n3")
SHA256 = re.compile(r"[0-9a-f]{64}")


@pytest.mark.parametrize("node", NAMES)
def test_health(shared: Cluster, node: str) -> None:
    answer = shared.get(node, "/health")
    health = answer.ok()
    leader = shared.leader()
    assert set(health) >= {
        "status", "healthy", "node_id", "role", "leader_id", "local_leader_id", "has_quorum", "uptime_s", "version",
        "checks", "cpu_percent", "memory_percent", "disk_percent", "gpus",
    }  # fmt: skip
    assert health["status"] in ("ok", "degraded")
    assert (health["healthy"], health["node_id"], health["leader_id"]) == (True, node, leader)
    assert health["role"] == ("leader" if node == leader else "follower")
    assert health["has_quorum"] is True
    assert all(set(check) == {"name", "ok", "detail"} for check in health["checks"])
    for figure in ("cpu_percent", "memory_percent", "disk_percent", "uptime_s"):
        assert isinstance(health[figure], int | float)
    assert isinstance(health["gpus"], list)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_are_plain_lines(shared: Cluster, path: str) -> None:
    answer = shared.get("n2", path)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.raw.decode().splitlines()
    assert lines
    assert all(re.fullmatch(r"\[[+-]\]\w+ .+", line) for line in lines)


@pytest.mark.parametrize("node", NAMES)
def test_status(shared: Cluster, node: str) -> None:
    leader = shared.leader()
    status = eventually(
        lambda: (s := shared.get(node, "/status").ok())["alive_peers"] == 3 and s["voters_alive"] == 3 and s
    )
    assert set(status) >= {
        "node_id", "cluster_id", "role", "is_leader", "leader_id", "local_leader_id", "term", "mode", "voters",
        "voters_alive", "quorum_size", "has_quorum", "alive_peers", "peers", "commit_index", "applied_index",
        "log_bytes", "snapshot_index", "state_digest", "work", "leases", "background_loops", "membership",
        "gossip", "uptime_s", "version", "config_version",
    }  # fmt: skip
    assert (status["node_id"], status["leader_id"], status["is_leader"]) == (node, leader, node == leader)
    assert status["mode"] == {"consensus": "raft", "membership": "http"}
    assert status["quorum_size"] == 2
    assert type(status["alive_peers"]) is int
    assert set(status["peers"]) == set(NAMES)
    assert {v["node_id"]: v["url"] for v in status["voters"]} == {n: shared.nodes[n].url for n in NAMES}
    for voter in status["voters"]:
        assert set(voter) >= {"node_id", "url", "role", "applied_index", "behind", "last_contact_s", "priority"}
        assert voter["role"] == ("leader" if voter["node_id"] == leader else "follower")
    assert set(status["state_digest"]) == {"index", "sha256"}
    assert SHA256.fullmatch(status["state_digest"]["sha256"])
    assert set(status["work"]) >= {"by_state", "by_type"}
    assert status["commit_index"] >= status["applied_index"] >= 1


@pytest.mark.parametrize("node", NAMES)
def test_every_node_knows_how_far_each_voter_is(shared: Cluster, node: str) -> None:
    index = shared.post("n1", "/work/add", {"work_type": fresh()}).ok()["index"]

    def all_there() -> bool:
        voters = shared.get(node, "/status").ok()["voters"]
        assert all(type(v["applied_index"]) is int and type(v["behind"]) is int for v in voters)
        assert all(isinstance(v["last_contact_s"], int | float) for v in voters)
        up_to_date = [v["up_to_date"] for v in shared.get(node, "/election/status?consistency=stale").ok()["voters"]]
        return all(v["applied_index"] >= index for v in voters) and all(up_to_date)

    eventually(all_there)


@pytest.mark.parametrize("node", NAMES)
def test_every_node_knows_every_voters_priority(shared: Cluster, node: str) -> None:
    def known() -> bool:
        voters = shared.get(node, "/status").ok()["voters"] + shared.get(node, "/election/status").ok()["voters"]
        return all(type(voter["priority"]) is int for voter in voters)

    eventually(known)


@pytest.mark.parametrize("node", NAMES)
def test_peers(shared: Cluster, node: str) -> None:
    peers = eventually(lambda: (p := shared.get(node, "/peers").ok()) and {x["node_id"] for x in p} == set(NAMES) and p)
    for peer in peers:
        assert set(peer) >= {
            "node_id", "addresses", "state", "incarnation", "roles", "last_seen_s", "resources", "gpus", "version",
            "reachable_via",
        }  # fmt: skip
        assert peer["state"] in ("alive", "suspect")
        assert peer["reachable_via"] == "direct"
        assert urlsplit(shared.nodes[peer["node_id"]].url).netloc in peer["addresses"]
        assert peer["roles"] == ["voter"]


@pytest.mark.parametrize("node", NAMES)
def test_events_of_an_item_in_order_on_every_node(shared: Cluster, node: str) -> None:
    work_type = fresh()
    since = newest_event(shared, node)
    work_id = shared.add(work_type=work_type)
    token = shared.claim(work_type)[0]["lease"]["token"]
    shared.post("n1", "/work/start", {"work_id": work_id, "token": token}).ok()
    shared.post("n1", "/work/complete", {"work_id": work_id, "token": token}).ok()

    def mine() -> list[str] | None:
        page = shared.get(node, f"/events?since={since}&wait_s=5&limit=1000").ok()
        for event in page["items"]:
            assert set(event) >= {"seq", "index", "type", "at", "data"}
            assert event["seq"] > since
        seqs = [event["seq"] for event in page["items"]]
        assert seqs == sorted(set(seqs))
        assert page["next"] >= seqs[-1]
        types = [event["type"] for event in page["items"] if event["data"].get("work_id") == work_id]
        return types if "WORK_COMPLETED" in types else None

    assert eventually(mine) == ["WORK_ADDED", "WORK_CLAIMED", "WORK_STARTED", "WORK_COMPLETED"]


def test_events_have_the_same_numbers_on_every_node(shared: Cluster) -> None:
    shared.add(work_type=fresh())

    def newest(node: str) -> object:
        return shared.get(node, "/events?limit=1000&since=0").ok()["items"][:50]

    eventually(lambda: newest("n1") == newest("n2") == newest("n3"))


def test_events_wait(shared: Cluster) -> None:
    since = newest_event(shared, "n2")
    with meanwhile(lambda: shared.get("n2", f"/events?since={since}&wait_s=20")) as waiting:
        work_id = shared.add(work_type=fresh())
        answer = waiting.result()
    assert any(event["data"].get("work_id") == work_id for event in answer.ok()["items"])
    assert answer.took_s < 10


def newest_event(cluster: Cluster, node: str) -> int:
    """The number of the newest event there is."""
    since = 0
    while page := cluster.get(node, f"/events?since={since}&limit=1000").ok()["items"]:
        since = page[-1]["seq"]
    return since


class Sse:
    """Events of a stream as they come."""

    def __init__(self, url: str, **headers: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=15)
        self.connection.request("GET", "/events?" + parts.query, headers={"Accept": "text/event-stream", **headers})
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200
        assert self.answer.headers["Content-Type"].startswith("text/event-stream")

    def __iter__(self) -> Iterator[dict[str, str]]:
        fields: dict[str, str] = {}
        while line := self.answer.readline().decode():
            if line.strip():
                name, _, value = line.rstrip("\r\n").partition(":")
                if name:
                    fields[name] = value.removeprefix(" ")
            elif fields:
                yield fields
                fields = {}

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


@pytest.mark.parametrize("node", NAMES)
def test_server_sent_events_resume_by_last_event_id(shared: Cluster, node: str) -> None:
    work_type = fresh()
    start = str(shared.get(node, "/events?since=0&limit=1").ok()["items"][0]["seq"])
    ids = [shared.add(work_type=work_type) for _ in range(3)]

    def seen(last: str, count: int) -> list[tuple[str, str]]:
        sse = Sse(shared.nodes[node].url, **{"Last-Event-ID": last})
        found: list[tuple[str, str]] = []
        try:
            for event in sse:
                if "data" not in event:
                    continue
                data = json.loads(event["data"])
                assert event.get("event") in (None, "message", data.get("type"), "lost")
                assert int(event["id"]) > int(last)
                if (data.get("data") or {}).get("work_id") in ids:
                    found.append((event["id"], data["data"]["work_id"]))
                if len(found) == count:
                    break
        finally:
            sse.close()
        return found

    all_three = seen(start, 3)
    assert [work_id for _, work_id in all_three] == ids
    assert seen(all_three[0][0], 2) == all_three[1:]


@pytest.mark.parametrize("query", ["since=x", "since=-1", "wait_s=-1", "wait_s=x", "limit=0"])
def test_bad_event_queries(shared: Cluster, query: str) -> None:
    assert shared.get("n1", f"/events?{query}").status == 422


def test_the_digest_is_the_same_at_the_same_index(shared: Cluster) -> None:
    index = shared.post("n1", "/work/add", {"work_type": fresh()}).ok()["index"]
    for node in NAMES:
        present = eventually(lambda node=node: (d := shared.get(node, "/raft/digest").ok())["index"] >= index and d)
        assert set(present) == {"index", "sha256"}
        assert SHA256.fullmatch(present["sha256"])

    def same() -> bool:
        found = [shared.get(n, "/raft/digest").ok() for n in NAMES]
        return found[0] == found[1] == found[2]

    eventually(same)


def test_a_digest_waits_for_its_index(cluster: Cluster) -> None:
    index = cluster.get("n1", "/raft/digest").ok()["index"] + 3
    for node in NAMES:
        answer = cluster.get(node, f"/raft/digest?index={index + 100_000}&timeout_s=1")
        answer.refused(409, "not_reached")
        assert 0.9 < answer.took_s < 5
    with meanwhile(lambda: cluster.get("n3", f"/raft/digest?index={index}&timeout_s=20")) as waiting:
        for _ in range(10):
            cluster.add(work_type=fresh())
        found = waiting.result()
    assert (found.status, found.body.get("index")) == (200, index) or found.body["code"] == "digest_passed"
    cluster.get("n1", "/raft/digest?index=1").refused(409, "digest_passed")
    assert cluster.get("n1", "/raft/digest?index=x").status == 422


@pytest.mark.parametrize("node", NAMES)
def test_election_status(shared: Cluster, node: str) -> None:
    found = shared.get(node, "/election/status").ok()
    assert set(found) >= {
        "mode", "leader_id", "local_leader_id", "term", "candidates", "voters", "quorum_size", "in_progress",
        "last_elections",
    }  # fmt: skip
    assert (found["mode"], found["leader_id"], found["quorum_size"]) == ("raft", shared.leader(), 2)
    assert sorted(found["candidates"]) == list(NAMES)
    assert found["in_progress"] is False
    for voter in found["voters"]:
        assert set(voter) >= {"node_id", "priority", "last_contact_s", "up_to_date"}
    assert found["last_elections"]
    for election in found["last_elections"]:
        assert set(election) >= {"at", "reason", "duration_s", "winner"}
    newest = found["last_elections"][0]
    assert newest["winner"] == shared.leader()
    assert isinstance(newest["reason"], str)
    assert isinstance(newest["duration_s"], int | float)


def test_an_election_may_be_asked_for_with_nothing_in_hand(cluster: Cluster) -> None:
    for node, options in (("n1", {}), ("n2", {"raw": b"", "headers": {}}), ("n3", {"body": {"reason": "a test"}})):
        before = cluster.leader()
        answer = cluster.post(node, "/election/start", **options)
        if answer.status == 409:
            answer.refused(409, "conflict")
        else:
            started = answer.ok(202)
            assert set(started) == {"started", "reason"}
            eventually(lambda before=before: cluster.leader() != before)
        assert cluster.post(node, "/work/add", {"work_type": fresh()}).ok()["status"] == "added"


def test_a_reader_whom_the_ring_overran_is_told(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "--set", "events.ring_size=100", voters=1)
    try:
        cluster.start()
        # Who leads is known a moment before the entry that tells it is applied.
        first = eventually(lambda: cluster.get("n1", "/events?limit=1").ok()["items"])[0]["seq"]
        cluster.post("n1", "/work/add_batch", {"items": [{"work_type": "a"}] * 200}).ok()
        page = cluster.get("n1", f"/events?since={first}&limit=2").ok()
        assert page["lost"] is True
        assert cluster.get("n1", f"/events?since={page['next']}&limit=2").ok()["lost"] is False
        sse = Sse(cluster.nodes["n1"].url, **{"Last-Event-ID": str(first)})
        try:
            events = iter(sse)
            assert next(events)["event"] == "lost"
            assert int(next(events)["id"]) >= page["items"][0]["seq"]
        finally:
            sse.close()
    finally:
        cluster.close()


def test_metrics_follow_the_work(shared: Cluster) -> None:
    work_type = fresh()
    work_id = shared.add(work_type=work_type)
    token = shared.claim(work_type)[0]["lease"]["token"]
    shared.post("n1", "/work/start", {"work_id": work_id, "token": token}).ok()
    shared.post("n1", "/work/complete", {"work_id": work_id, "token": token}).ok()
    leader = shared.leader()
    lines = dict(
        line.rsplit(" ", 1) for line in shared.get(leader, "/metrics").raw.decode().splitlines() if line[0] != "#"
    )
    assert float(lines["ringraft_job_wait_seconds_count"]) >= 1
    assert float(lines["ringraft_job_run_seconds_count"]) >= 1
    assert float(lines["ringraft_raft_pending_commands"]) >= 0
    assert float(lines["ringraft_http_connections"]) >= 1
    assert lines["ringraft_raft_has_leader"] == "1.0"
