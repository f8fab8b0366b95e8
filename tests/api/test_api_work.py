"""The work queue over HTTP: bodies, answers, keys, refusals, the seed's lines."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ringraft.consensus.base import Indeterminate, Unavailable
from ringraft.state.commands import Cancel, Claim, Release, Tick
from ringraft.state.model import TOKENS_PER_ENTRY, Command
from tests.api.fake_node import Asker, FakeNode, one_node, until

SELFPLAY = {"work_type": "selfplay"}


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with one_node() as node:
        yield node


@pytest.fixture
async def asker(node: FakeNode) -> AsyncIterator[Asker]:
    async with Asker(node) as asker:
        yield asker


async def held(asker: Asker, **item: Any) -> dict[str, Any]:
    """A claimed item's ``work_id`` and ``token``."""
    await asker.post("/work/add", {**SELFPLAY, **item})
    _, body, _ = await asker.post("/work/claim", {"node_id": "w1"})
    return {"work_id": body["work"]["work_id"], "token": body["work"]["lease"]["token"]}


async def refused(asker: Asker, path: str, body: Any, **options: Any) -> str:
    status, answer, headers = await asker.post(path, body, **options)
    assert headers["Content-Type"] == "application/problem+json"
    assert answer["status"] == status >= 400
    assert answer["type"] == f"urn:ringraft:problem:{answer['code']}"
    assert answer["instance"] == headers["X-Ringraft-Request-Id"]
    assert {"title", "detail", "retryable", "outcome", "leader", "term"} <= answer.keys()
    if status in (429, 503):
        assert int(headers["Retry-After"]) >= 0
    code: str = answer["code"]
    return code


async def test_top_level_members_go_into_the_config(asker: Asker) -> None:
    body = {"work_type": "selfplay", "board_type": "hex8", "num_players": 2, "config": {"depth": 3}, "priority": 7}
    status, added, _ = await asker.post("/work/add", body)
    assert (status, added["status"], added["state"]) == (200, "added", "PENDING")
    _, item, _ = await asker.get(f"/work/item/{added['work_id']}")
    assert item["config"] == {"board_type": "hex8", "num_players": 2, "depth": 3}
    assert item["priority"] == 7


async def test_a_slip_of_the_pen_is_warned_of(asker: Asker) -> None:
    _, added, _ = await asker.post("/work/add", {**SELFPLAY, "priorty": 99})
    assert any("priority" in warning for warning in added["warnings"])


async def test_config_wins_over_the_top_level_and_says_so(asker: Asker) -> None:
    _, added, _ = await asker.post("/work/add", {**SELFPLAY, "games": 1, "config": {"games": 2}})
    assert any("'games'" in warning for warning in added["warnings"])
    assert (await asker.get(f"/work/item/{added['work_id']}"))[1]["config"] == {"games": 2}


async def test_a_whole_number_may_be_written_as_a_float(asker: Asker) -> None:
    lease = await held(asker, priority=50)
    text = json.dumps({**lease, "token": float(lease["token"])})
    status, _, _ = await asker.ask("POST", "/work/start", data=text, headers={"Content-Type": "application/json"})
    assert status == 200


async def test_aliases_mean_the_same(asker: Asker) -> None:
    for alias, name in {"gauntlet": "evaluation", "validation": "evaluation", "data_sync": "sync"}.items():
        _, added, _ = await asker.post("/work/add", {"work_type": alias})
        _, item, _ = await asker.get(f"/work/item/{added['work_id']}")
        assert item["work_type"] == name
    _, claimed, _ = await asker.post("/work/claim", {"node_id": "w", "work_types": ["gauntlet"], "max_items": 9})
    assert len(claimed["items"]) == 2
    _, found, _ = await asker.get("/work/items?work_type=data_sync")
    assert len(found["items"]) == 1


async def test_all_faults_of_a_body_are_told_at_once(asker: Asker) -> None:
    status, body, _ = await asker.post(
        "/work/add_batch", {"items": [{"work_type": 1, "priority": 101}, {"wrok_type": "x"}], "extra": 1}
    )
    assert status == 422
    assert {e["pointer"] for e in body["errors"]} == {
        "/items/0/work_type",
        "/items/0/priority",
        "/items/1/wrok_type",
        "/items/1/work_type",
        "/extra",
    }
    assert any("'work_type'" in e["message"] for e in body["errors"])


async def test_a_life(asker: Asker) -> None:
    lease = await held(asker, timeout_s=60)
    assert (await asker.post("/work/start", lease))[1] == {"status": "running"}
    _, renewed, _ = await asker.post(
        "/work/renew", {"node_id": "w1", "leases": [{**lease, "progress": {"n": 1}}, {**lease, "token": 1}]}
    )
    assert renewed["leases"][0]["ok"] and renewed["leases"][0]["expires_at"].endswith("Z")
    assert renewed["leases"][0]["cancel"] is False
    assert renewed["leases"][1]["ok"] is False and renewed["leases"][1]["code"] == "stale_token"
    _, done, _ = await asker.post(
        "/work/complete",
        {**lease, "result": {"ok": 1}, "spawn": [SELFPLAY, SELFPLAY], "then": {"work_type": "training"}},
    )
    assert done["status"] == "completed" and len(done["spawned"]) == 2 and done["then"]
    _, item, _ = await asker.get(f"/work/item/{lease['work_id']}")
    assert (item["state"], item["result"], item["history"][0]["outcome"]) == ("COMPLETED", {"ok": 1}, "completed")
    _, then, _ = await asker.get(f"/work/item/{done['then']}")
    assert then["state"] == "BLOCKED" and sorted(then["depends_on"]) == sorted(done["spawned"])


async def test_fail_tells_when_it_is_tried_again(asker: Asker) -> None:
    lease = await held(asker)
    _, body, _ = await asker.post("/work/fail", {**lease, "error": "boom"})
    assert body["status"] == "retry" and body["state"] == "PENDING" and body["not_before"].endswith("Z")
    lease = await held(asker, max_attempts=1)
    _, body, _ = await asker.post("/work/fail", {**lease, "error": "boom", "retryable": False})
    assert body == {"status": "failed", "state": "FAILED", "not_before": None}


async def test_complete_batch_is_each_by_itself(asker: Asker) -> None:
    lease = await held(asker)
    _, body, _ = await asker.post("/work/complete_batch", {"items": [{**lease, "token": 1}, {**lease, "result": 1}]})
    assert [row["status"] for row in body["items"]] == ["refused", "completed"]
    assert body["items"][0]["code"] == "stale_token"


async def test_cancel_and_retry_take_one_or_a_group(asker: Asker) -> None:
    for name in ("a", "b"):
        await asker.post("/work/add", {**SELFPLAY, "work_id": name, "group": "g"})
    assert (await asker.post("/work/cancel", {"group": "g"}))[1]["count"] == 2
    assert (await asker.post("/work/retry", {"work_id": "a"}))[1]["count"] == 1
    assert await refused(asker, "/work/cancel", {}) == "invalid_field"
    assert await refused(asker, "/work/cancel", {"work_id": "a", "group": "g"}) == "invalid_field"
    assert await refused(asker, "/work/cancel", {"work_id": "nobody"}) == "not_found"


async def test_an_empty_claim_says_why(asker: Asker) -> None:
    await asker.post("/work/add", {**SELFPLAY, "requirements": {"gpu": "H100"}})
    _, body, _ = await asker.post("/work/claim", {"node_id": "w1", "capabilities": {"cpus": 4}})
    assert body["items"] == [] and body["work"] is None and sum(body["reasons"].values()) == 1
    offered = {"gpus": [{"name": "NVIDIA H100", "vram_gb": 80}]}
    assert (await asker.post("/work/claim", {"node_id": "w1", "capabilities": offered}))[1]["work"]


@pytest.mark.parametrize("then", ["cancelled", "granted to another"])
async def test_what_was_taken_back_before_the_answer_is_not_handed_out(
    node: FakeNode, asker: Asker, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    await asker.post("/work/add", {**SELFPLAY, "work_id": "taken"})
    await asker.post("/work/add", {**SELFPLAY, "work_id": "kept"})
    propose = node.consensus.propose

    def propose_and_more(command: Command, **options: Any) -> asyncio.Future[Any]:
        """Entries that are applied before the one who asked gets to run."""
        future = propose(command, **options)
        token = node.cluster.index * TOKENS_PER_ENTRY
        if then == "cancelled":
            node.cluster.append(Command(Cancel(work_id="taken")))
        else:
            node.cluster.append(Command(Release("taken", token)), Command(Claim("w2", None, 1, None, None)))
        return future

    monkeypatch.setattr(node.consensus, "propose", propose_and_more)
    _, body, _ = await asker.post("/work/claim", {"node_id": "W1", "max_items": 2})
    assert [(item["work_id"], item["lease"]["node_id"]) for item in body["items"]] == [("kept", "W1")]
    assert body["work"]["work_id"] == "kept"


async def test_claims_wait_for_work(asker: Asker) -> None:
    waiting = asyncio.create_task(asker.post("/work/claim", {"node_id": "w1", "wait_s": 20}))
    await until(lambda: asker.node.replica.waiting)
    await asker.post("/work/add", SELFPLAY)
    async with asyncio.timeout(5):
        status, body, _ = await waiting
    assert status == 200 and body["work"]["state"] == "ASSIGNED"


async def test_an_item_can_be_waited_for(asker: Asker) -> None:
    lease = await held(asker)
    waiting = asyncio.create_task(asker.get(f"/work/item/{lease['work_id']}?wait_s=20"))
    await until(lambda: asker.node.replica.waiting)
    await asker.post("/work/complete", lease)
    async with asyncio.timeout(5):
        assert (await waiting)[1]["state"] == "COMPLETED"


async def test_claim_by_get(asker: Asker) -> None:
    await asker.post("/work/add", {"work_type": "training"})
    _, body, _ = await asker.get("/work/claim?node_id=w1&work_types=selfplay,sync")
    assert body["items"] == []
    _, body, _ = await asker.get("/work/claim?node_id=w1&capabilities=selfplay,training&lease_s=60")
    assert body["work"]["work_type"] == "training"
    assert (await asker.get("/work/claim"))[0] == 422


async def test_work_of_a_node_on_both_paths(asker: Asker) -> None:
    lease = await held(asker)
    for path in ("/work/for-node/w1", "/work/node/w1"):
        _, body, _ = await asker.get(path)
        assert (body["node_id"], body["count"]) == ("w1", 1)
        assert body["work_items"][0]["work_id"] == lease["work_id"]


async def test_why(asker: Asker) -> None:
    await asker.post("/work/add", {**SELFPLAY, "work_id": "big", "requirements": {"gpu": {"min_vram_gb": 80}}})
    status, body, _ = await asker.get("/work/why/BIG")
    assert status == 200 and body["work_id"] == "big" and body["reasons"][0]["code"]
    assert (await asker.get("/work/why/nobody"))[0] == 404


async def test_lists_are_paged(asker: Asker) -> None:
    await asker.post("/work/add_batch", {"items": [SELFPLAY] * 25})
    seen, path = [], "/work/items?limit=10"
    while True:
        _, body, _ = await asker.get(path)
        seen += [item["work_id"] for item in body["items"]]
        if body["next_cursor"] is None:
            break
        path = f"/work/items?limit=10&cursor={body['next_cursor']}"
    assert len(seen) == len(set(seen)) == 25
    status, body, _ = await asker.get("/work/items?cursor=%20nonsense")
    assert (status, body["errors"][0]["pointer"]) == (422, "?cursor")
    assert (await asker.get("/work/items?limit=1001"))[0] == 422
    assert (await asker.get("/work/items?stat=PENDING"))[1]["code"] == "unknown_field"


# Keys.


async def test_a_repeat_with_its_key_has_no_second_effect(asker: Asker) -> None:
    key = {"Idempotency-Key": "k 1"}
    _, first, _ = await asker.post("/work/add", {**SELFPLAY, "a": 1, "b": 2}, headers=key)
    text = '{ "b":2, "a": 1,\n "work_type":"selfplay"}'
    _, again, _ = await asker.ask("POST", "/work/add", data=text, headers={**key, "Content-Type": "application/json"})
    assert again["work_id"] == first["work_id"] and again["status"] == "added"
    assert (await asker.get("/work/status"))[1]["total_items"] == 1


async def test_a_key_with_another_body_or_verb_is_refused(asker: Asker) -> None:
    key = {"Idempotency-Key": "k"}
    await asker.post("/work/add", SELFPLAY, headers=key)
    assert await refused(asker, "/work/add", {**SELFPLAY, "priority": 1}, headers=key) == "idempotency_mismatch"
    assert await refused(asker, "/work/add_batch", {"items": [SELFPLAY]}, headers=key) == "idempotency_mismatch"


@pytest.mark.parametrize("key", ["", "x" * 129, "ä", "a\tb"])
async def test_a_key_has_its_form(asker: Asker, key: str) -> None:
    assert await refused(asker, "/work/add", SELFPLAY, headers={"Idempotency-Key": key}) == "invalid_field"


async def test_a_claim_repeated_gets_the_same_lease_however_long_it_waits(asker: Asker) -> None:
    key = {"Idempotency-Key": "c"}
    await asker.post("/work/add_batch", {"items": [SELFPLAY] * 3})
    _, first, _ = await asker.post("/work/claim", {"node_id": "w1"}, headers=key)
    _, again, _ = await asker.post("/work/claim", {"node_id": "w1", "wait_s": 1}, headers=key)
    assert again["work"]["lease"]["token"] == first["work"]["lease"]["token"]
    _, other, _ = await asker.post("/work/claim", {"node_id": "w1"}, headers={"Idempotency-Key": "d"})
    assert other["work"]["work_id"] != first["work"]["work_id"]


async def test_the_same_submission_under_a_taken_id_exists(asker: Asker) -> None:
    body = {**SELFPLAY, "work_id": "mine", "config": {"a": 1, "b": {"x": 1, "y": 2}}}
    await asker.post("/work/add", body)
    reordered = {**SELFPLAY, "work_id": "mine", "config": {"b": {"y": 2, "x": 1}, "a": 1}}
    assert (await asker.post("/work/add", reordered))[1] == {"status": "exists", "work_id": "mine"}
    assert await refused(asker, "/work/add", {**body, "priority": 1}) == "work_id_taken"


# Refusals.


async def test_every_refusal_of_the_queue_can_be_reached(node: FakeNode, asker: Asker) -> None:
    lease = await held(asker)
    assert await refused(asker, "/work/start", {**lease, "token": 1}) == "stale_token"
    assert await refused(asker, "/work/start", {"work_id": lease["work_id"]}) == "token_required"
    assert await refused(asker, "/work/start", {"work_id": lease["work_id"], "token": None}) == "token_required"
    assert await refused(asker, "/work/start", {"work_id": "nobody", "token": 1}) == "not_found"
    await asker.post("/work/complete", lease)
    assert (await asker.post("/work/complete", lease))[0] == 200
    status, body, _ = await asker.post("/work/fail", {**lease, "error": "x"})
    assert (status, body["code"], body["state"]) == (409, "already_final", "COMPLETED")
    released = await held(asker)
    await asker.post("/work/release", released)
    assert await refused(asker, "/work/complete", released) == "wrong_state"
    assert await refused(asker, "/work/add", {**SELFPLAY, "depends_on": ["nobody"]}) == "unknown_dependency"
    cycle = [{**SELFPLAY, "work_id": "x", "depends_on": ["y"]}, {**SELFPLAY, "work_id": "y", "depends_on": ["x"]}]
    assert await refused(asker, "/work/add_batch", {"items": cycle}) == "dependency_cycle"
    strict = {**SELFPLAY, "strict": True, "requirements": {"cpus": 1e6}}
    assert await refused(asker, "/work/add", strict) == "unsatisfiable"
    assert await refused(asker, "/work/add", {**SELFPLAY, "gang": {"size": 2}}) == "invalid_field"
    assert await refused(asker, "/work/add", {**SELFPLAY, "state": "COMPLETED"}) == "invalid_field"
    assert await refused(asker, "/work/start", {**lease, "tokn": 1}) == "unknown_field"


async def test_a_full_queue_is_429() -> None:
    async with one_node(**{"queue.items_max": "1"}) as node, Asker(node) as asker:
        await asker.post("/work/add", SELFPLAY)
        assert await refused(asker, "/work/add", SELFPLAY) == "queue_full"


async def test_too_many_waiters_are_429() -> None:
    async with one_node(**{"http.waiters_max": "1"}) as node, Asker(node) as asker:
        waiting = asyncio.create_task(asker.post("/work/claim", {"node_id": "w1", "wait_s": 20}))
        await until(lambda: node.replica.waiting)
        assert await refused(asker, "/work/claim", {"node_id": "w2", "wait_s": 20}) == "rate_limited"
        node.replica.release_parked()
        waiting.cancel()


@pytest.mark.parametrize(
    ("fails", "status", "code", "outcome"),
    [
        (Indeterminate("no answer"), 504, "commit_unknown", "unknown"),
        (Unavailable("disk_full", "no room"), 503, "disk_full", "not_applied"),
        (Unavailable("shutting_down", "ends"), 503, "shutting_down", "not_applied"),
        (Unavailable("starting", "replays"), 503, "starting", "not_applied"),
        (Unavailable("no_quorum", "alone"), 503, "no_quorum", "not_applied"),
    ],
)
async def test_the_log_s_refusals(
    node: FakeNode, asker: Asker, fails: Exception, status: int, code: str, outcome: str
) -> None:
    node.consensus.fails = fails
    got, body, headers = await asker.post("/work/add?timeout_s=0.1", SELFPLAY)
    assert (got, body["code"], body["outcome"]) == (status, code, outcome)
    assert ("Retry-After" in headers) == (status == 503)


async def test_a_repeat_after_an_unknown_outcome_has_one_effect(node: FakeNode, asker: Asker) -> None:
    key = {"Idempotency-Key": "once"}
    node.consensus.fails = Indeterminate("no answer")
    assert (await asker.post("/work/add", SELFPLAY, headers=key))[0] == 504
    node.consensus.fails = None
    assert (await asker.post("/work/add", SELFPLAY, headers=key))[1]["status"] == "added"
    assert (await asker.get("/work/status"))[1]["total_items"] == 1


async def test_no_leader_is_waited_for_and_then_503(node: FakeNode, asker: Asker) -> None:
    node.cluster.lead(None)
    status, body, headers = await asker.post("/work/add?timeout_s=0.1", SELFPLAY)
    assert (status, body["code"], body["leader"]) == (503, "no_leader", None)
    assert "X-Ringraft-Leader" not in headers
    waiting = asyncio.create_task(asker.post("/work/add", SELFPLAY))
    await asyncio.sleep(0.05)
    node.cluster.lead("n1")
    async with asyncio.timeout(2):
        assert (await waiting)[0] == 200


async def test_timeouts_have_their_bounds(asker: Asker) -> None:
    for too_long in ("31", "400"):
        status, body, _ = await asker.get(f"/work/status?timeout_s={too_long}")
        assert (status, body["errors"][0]["pointer"]) == (422, "?timeout_s")
        assert "30" in body["errors"][0]["message"], body
    for bad in ("?timeout_s=31", "?timeout_s=0", "?timeout_s=x", "?timeout_s=-1"):
        assert (await asker.get(f"/work/status{bad}"))[1]["errors"][0]["pointer"] == "?timeout_s"
    for header in ("31", "0", "x", "nan"):
        status, body, _ = await asker.get("/work/status", headers={"X-Ringraft-Timeout": header})
        assert (status, body["errors"][0]["pointer"]) == (422, "X-Ringraft-Timeout")
    assert (await asker.get("/work/status", headers={"X-Ringraft-Timeout": "30"}))[0] == 200


async def test_times_fire_over_http_too(node: FakeNode, asker: Asker) -> None:
    lease = await held(asker)
    node.cluster.clock.advance_ms(31_000)
    node.cluster.append(Command(Tick()))
    assert (await asker.get(f"/work/item/{lease['work_id']}"))[1]["state"] == "PENDING"
    assert (await asker.post("/work/complete", lease))[0] == 200


# The seed's lines.


@pytest.mark.parametrize(
    "line",
    [
        'curl -X POST {url}/work/add \\\n  -H "Content-Type: application/json" \\\n'
        '  -d \'{{"work_type": "selfplay", "board_type": "hex8", "num_players": 2, "num_games": 1000}}\'',
        "curl -s {url}/work/status",
        'curl -X POST {url}/work/claim \\\n  -H "Content-Type: application/json" \\\n  -d \'{{"node_id": "my-node"}}\'',
        "curl -s {url}/status",
        "curl -s {url}/election/status",
        "curl -X POST {url}/election/start",
    ],
)
async def test_the_seeds_lines_work_as_they_stand(line: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    async with one_node(secret=None) as node:
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", line.format(url=node.url), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await process.communicate()
        body = json.loads(out)
        assert body.get("status") not in (400, 404, 405, 415, 422, 500)
        if line.endswith("/status") and "/work" not in line and "/election" not in line:
            assert body["leader_id"] == "n1" and body["alive_peers"] == 1
