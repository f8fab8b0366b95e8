"""What holds for every request: headers, problems, strict JSON, limits, forwarding, consistency."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

import pytest

from tests.integration.cluster import Answer, Cluster, call, eventually, fresh

READS = (
    "/health", "/livez", "/readyz", "/status", "/peers", "/events", "/metrics", "/openapi.json",
    "/work/items", "/work/history", "/work/status", "/work/for-node/w1", "/work/node/w1",
    "/raft/status", "/raft/digest", "/election/status",
)  # fmt: skip
KIB = 1024


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("path", READS)
def test_every_answer_names_node_leader_term_index_and_request(shared: Cluster, path: str) -> None:
    leader = shared.leader()
    for name in ("n1", "n2", "n3"):
        answer = shared.get(name, path)
        assert answer.status == 200
        assert answer.headers["x-ringraft-node"] == name
        assert answer.headers["x-ringraft-leader"] == leader
        assert int(answer.headers["x-ringraft-term"]) >= 1
        assert int(answer.headers["x-ringraft-index"]) >= 1
        assert answer.headers["x-ringraft-request-id"]


def test_refusals_carry_the_headers_too(shared: Cluster) -> None:
    for answer in (
        shared.get("n1", "/nothing/here"),
        shared.send("n1", "DELETE", "/work/add"),
        shared.post("n1", "/work/add", raw=b"{"),
        shared.post("n1", "/work/add", {}),
    ):
        for header in ("node", "leader", "term", "index", "request-id"):
            assert answer.headers[f"x-ringraft-{header}"], (header, answer)


def test_request_ids_differ(shared: Cluster) -> None:
    assert len({shared.get("n1", "/health").headers["x-ringraft-request-id"] for _ in range(5)}) == 5


def test_stale_reads_say_their_lag_and_linearizable_ones_do_not(shared: Cluster) -> None:
    work_id = shared.add(work_type=fresh())
    follower = shared.followers()[0]
    stale = shared.get(follower, f"/work/item/{work_id}?consistency=stale")
    assert float(stale.headers["x-ringraft-lag"]) >= 0
    assert float(shared.get(follower, "/work/status").headers["x-ringraft-lag"]) < 5
    linear = shared.get(follower, f"/work/item/{work_id}")
    assert linear.status == 200
    assert "x-ringraft-lag" not in linear.headers


@pytest.mark.parametrize("level", ["linearizable", "leader", "stale"])
@pytest.mark.parametrize(
    "path", ["/work/item/{id}", "/work/items", "/work/status", "/election/status", "/work/why/{id}"]
)
def test_every_consistency_level_on_every_node(shared: Cluster, level: str, path: str) -> None:
    work_id = shared.add(work_type=fresh())
    for name in ("n1", "n2", "n3"):
        look = path.format(id=work_id) + f"?consistency={level}"
        eventually(lambda name=name, look=look: shared.get(name, look).status == 200)


def test_an_unknown_consistency_level_is_refused_with_its_pointer(shared: Cluster) -> None:
    problem = shared.get("n1", "/work/status?consistency=maybe").refused(422, "invalid_field")
    assert problem["errors"]


def test_what_was_just_added_is_read_on_every_node(shared: Cluster) -> None:
    """The default for one item is linearizable: no node may say that it is not there."""
    for node in ("n1", "n2", "n3"):
        work_id = shared.add(node, work_type=fresh())
        for reader in ("n1", "n2", "n3"):
            assert shared.item(work_id, reader)["state"] == "PENDING"


def test_a_write_at_a_follower_is_relayed_and_says_who_served_it(shared: Cluster) -> None:
    leader, follower = shared.leader(), shared.followers()[0]
    answer = shared.post(follower, "/work/add", {"work_type": fresh()})
    answer.ok()
    assert answer.node == follower
    assert answer.headers["x-ringraft-served-by"] == leader
    assert "x-ringraft-served-by" not in shared.post(leader, "/work/add", {"work_type": fresh()}).headers


def test_redirect_answers_307_to_the_leader(shared: Cluster) -> None:
    leader, follower = shared.leader(), shared.followers()[0]
    answer = shared.post(follower, "/work/add?redirect=1", {"work_type": fresh()})
    assert answer.status == 307
    target = answer.headers["location"]
    assert urlsplit(target).netloc == urlsplit(shared.nodes[leader].url).netloc
    assert urlsplit(target).path == "/work/add"
    again = call(
        shared.nodes[leader].url, "POST", urlsplit(target).path + "?" + urlsplit(target).query, {"work_type": fresh()}
    )
    assert again.ok()["status"] == "added"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[1, 2",
        b'{"work_type": "a"} x',
        b'{"work_type": "a", "work_type": "b"}',
        b'{"work_type": "a", "config": {"x": 1, "x": 2}}',
        b'{"work_type": "a", "config": {"x": NaN}}',
        b'{"work_type": "a", "config": {"x": Infinity}}',
        b'{"work_type": "a", "config": {"x": -Infinity}}',
        b'{"work_type": "a", "config": {"x": "\\ud800"}}',
        b'{"work_type": "a", "config": {"\\udc00": 1}}',
        b'{"work_type": "a\xff"}',
        b'\xff\xfe{\x00}\x00',
    ],
)  # fmt: skip
def test_what_is_not_json_is_bad_json(shared: Cluster, raw: bytes) -> None:
    for node in ("n1", "n2", "n3"):
        problem = shared.post(node, "/work/add", raw=raw).refused(400, "bad_json")
        assert problem["outcome"] == "not_applied"
        assert problem["retryable"] is False


def test_a_body_that_is_no_object_is_refused(shared: Cluster) -> None:
    for raw in (b"[]", b"1", b'"x"', b"null"):
        answer = shared.post("n1", "/work/add", raw=raw)
        assert (answer.status, answer.body["code"]) in ((422, "invalid_field"), (400, "bad_json"))


def test_depth_is_bounded_at_32(shared: Cluster) -> None:
    assert shared.post("n1", "/work/add", {"work_type": fresh(), "config": {"x": nested(29)}}).status == 200
    answer = shared.post("n1", "/work/add", {"work_type": fresh(), "config": {"x": nested(40)}})
    assert answer.status in (400, 413, 422)
    deep = b'{"work_type":"a","config":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    answer = shared.post("n1", "/work/add", raw=deep)
    assert answer.status in (400, 413, 422)
    assert answer.body["code"]


def test_config_holds_64_kib_and_no_more(shared: Cluster) -> None:
    assert shared.post("n1", "/work/add", {"work_type": fresh(), "config": {"x": "a" * (63 * KIB)}}).status == 200
    problem = shared.post("n2", "/work/add", {"work_type": fresh(), "config": {"x": "a" * (64 * KIB)}})
    assert problem.status in (413, 422), problem
    assert problem.body["code"] in ("too_large", "invalid_field")


def test_a_body_over_1_mib_is_413_and_a_batch_holds_8(shared: Cluster) -> None:
    padding = b" " * (1024 * KIB)
    shared.post("n1", "/work/add", raw=b'{"work_type": "a"}' + padding).refused(413, "too_large")
    items = [{"work_type": fresh(), "config": {"x": "a" * (60 * KIB)}} for _ in range(60)]
    assert len(shared.post("n2", "/work/add_batch", {"items": items}).ok()["items"]) == 60
    shared.post("n1", "/work/add_batch", raw=b'{"items": []}' + padding * 8).refused(413, "too_large")


@pytest.mark.parametrize("media", ["text/plain", "application/xml", "application/x-www-form-urlencoded"])
def test_another_media_type_is_415(shared: Cluster, media: str) -> None:
    answer = shared.post("n1", "/work/add", raw=b'{"work_type": "a"}', headers={"Content-Type": media})
    answer.refused(415, "unsupported_media_type")


def test_a_charset_beside_the_media_type_is_fine(shared: Cluster) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    shared.post("n1", "/work/add", raw=b'{"work_type": "%s"}' % fresh().encode(), headers=headers).ok()


def test_404_and_405(shared: Cluster) -> None:
    shared.get("n1", "/nothing").refused(404, "not_found")
    shared.get("n1", "/work/item/never-was").refused(404, "not_found")
    answer = shared.get("n1", "/work/add")
    answer.refused(405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


def test_unknown_fields_are_refused_with_the_nearest_known_one(shared: Cluster) -> None:
    problem = shared.post("n1", "/work/claim", {"node_id": "w", "max_item": 3}).refused(422, "unknown_field")
    assert any(e["pointer"] == "/max_item" and "max_items" in e["message"] for e in problem["errors"])


def test_all_faults_are_told_at_once(shared: Cluster) -> None:
    body = {"work_type": "", "priority": 101, "max_attempts": 0, "timeout_s": -1, "depends_on": "x", "target_node": ""}
    problem = shared.post("n1", "/work/add", body).refused(422, "invalid_field")
    assert {e["pointer"] for e in problem["errors"]} >= {f"/{field}" for field in body}


def test_ids_are_checked(shared: Cluster) -> None:
    for work_id in ("", "-a", ".a", "a b", "a/b", "ä", "a" * 65):
        shared.post("n1", "/work/add", {"work_type": "a", "work_id": work_id}).refused(422, "invalid_field")
    for node_id in ("", "a b", "a" * 49):
        shared.post("n1", "/work/claim", {"node_id": node_id}).refused(422, "invalid_field")


def test_ids_are_unique_ignoring_case(shared: Cluster) -> None:
    work_id = fresh("Case")
    shared.add(work_type="a-case", work_id=work_id)
    shared.post("n2", "/work/add", {"work_type": "other-case", "work_id": work_id.upper()}).refused(
        409, "work_id_taken"
    )


def test_the_timeout_is_bounded_and_may_be_given_twofold(shared: Cluster) -> None:
    for node in ("n1", "n2"):
        assert shared.post(node, "/work/add?timeout_s=2", {"work_type": fresh()}).status == 200
        assert shared.post(node, "/work/add", {"work_type": fresh()}, headers={"X-Ringraft-Timeout": "2"}).status == 200
    for value in ("x", "-1", "nan"):
        assert shared.post("n1", f"/work/add?timeout_s={value}", {"work_type": fresh()}).status == 422


def test_lists_are_paged(shared: Cluster) -> None:
    work_type = fresh()
    items = [{"work_type": work_type} for _ in range(25)]
    wanted = [i["work_id"] for i in shared.post("n1", "/work/add_batch", {"items": items}).ok()["items"]]

    def walk(node: str, limit: int) -> list[str]:
        found: list[str] = []
        cursor = ""
        while True:
            page = shared.get(node, f"/work/items?work_type={work_type}&limit={limit}{cursor}&consistency=leader").ok()
            assert set(page) >= {"items", "next_cursor"}
            assert len(page["items"]) <= limit
            found += [item["work_id"] for item in page["items"]]
            if page["next_cursor"] is None:
                return found
            cursor = "&cursor=" + page["next_cursor"]

    for node, limit in (("n1", 10), ("n2", 25), ("n3", 1), ("n1", 1000)):
        found = walk(node, limit)
        assert sorted(found) == sorted(wanted)
        assert len(set(found)) == 25


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=%00nonsense", "state=NONSENSE"])
def test_bad_list_queries_are_422(shared: Cluster, query: str) -> None:
    assert shared.get("n1", f"/work/items?{query}").status == 422


def test_an_unknown_query_parameter_is_never_a_server_error(shared: Cluster) -> None:
    assert shared.get("n1", "/work/items?stat=PENDING").status in (200, 422)


def test_times_are_rfc3339_utc(shared: Cluster) -> None:
    item = shared.item(shared.add(work_type=fresh(), not_before="2030-01-01T01:00:00+01:00"))
    assert item["not_before"].startswith("2030-01-01T00:00:00")
    for at in (item["created_at"], item["not_before"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", at)


def test_keys_are_checked(shared: Cluster) -> None:
    for key in ("a" * 129, "a\tb", "ä"):
        answer = shared.post("n1", "/work/add", {"work_type": fresh()}, headers={"Idempotency-Key": key})
        assert answer.status == 422, key
    assert shared.post("n1", "/work/add", {"work_type": fresh()}, key="a" * 128).status == 200


def test_the_openapi_document_lists_what_there_is(shared: Cluster) -> None:
    document = shared.get("n1", "/openapi.json").ok()
    assert document["openapi"].startswith("3.1")
    paths = document["paths"]
    for path, method in (
        ("/health", "get"), ("/livez", "get"), ("/readyz", "get"), ("/status", "get"), ("/peers", "get"),
        ("/events", "get"), ("/metrics", "get"), ("/work/add", "post"), ("/work/add_batch", "post"),
        ("/work/claim", "post"), ("/work/claim", "get"), ("/work/start", "post"), ("/work/renew", "post"),
        ("/work/complete", "post"), ("/work/complete_batch", "post"), ("/work/fail", "post"),
        ("/work/release", "post"), ("/work/cancel", "post"), ("/work/retry", "post"), ("/work/items", "get"),
        ("/work/history", "get"), ("/work/status", "get"), ("/raft/status", "get"), ("/raft/digest", "get"),
        ("/election/status", "get"), ("/election/start", "post"), ("/admin/shutdown", "post"),
    ):  # fmt: skip
        assert method in paths[path], (method, path)


def test_metrics_are_prometheus_text(shared: Cluster) -> None:
    answer = shared.get("n1", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line for line in answer.raw.decode().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*(\{.*\})? [-+0-9.eEnaifNI]+", line) for line in lines)
    assert any(line.startswith("ringraft_") for line in lines)


def test_generated_answers_stay_json_for_any_method(shared: Cluster) -> None:
    def sane(answer: Answer) -> bool:
        return answer.status < 500 and (not answer.raw or bool(json.loads(answer.raw)))

    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"):
        assert sane(shared.send("n1", method, "/work/add")), method
