"""Several nodes: forwarding in one hop, consistency, redirects, workers without a log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ringraft.api.auth import ADMIN
from ringraft.api.hop import HOP_HEADER, HopSigner
from ringraft.consensus.base import Unavailable
from ringraft.state.commands import Add
from tests.api.fake_node import SECRET, Asker, FakeCluster, FakeNode, FakeWorker

SELFPLAY = {"work_type": "selfplay"}


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    cluster = FakeCluster()
    for node_id in ("n1", "n2"):
        await cluster.add_node(node_id)
    cluster.lead("n1")
    try:
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture
async def follower(cluster: FakeCluster) -> AsyncIterator[Asker]:
    async with Asker(cluster.nodes["n2"]) as asker:
        yield asker


async def test_a_write_at_a_follower_is_forwarded_once(cluster: FakeCluster, follower: Asker) -> None:
    status, body, headers = await follower.post("/work/add", {**SELFPLAY, "board_type": "hex8"})
    assert (status, body["status"]) == (200, "added")
    assert headers["X-Ringraft-Served-By"] == "n1"
    assert headers["X-Ringraft-Node"] == "n2"
    assert headers["X-Ringraft-Leader"] == "n1"
    assert int(headers["X-Ringraft-Index"]) >= body["index"]
    assert int(headers["X-Ringraft-Term"]) == 1


async def test_a_forwarded_write_has_a_key_and_its_principal(cluster: FakeCluster, follower: Asker) -> None:
    _, _, headers = await follower.post("/work/add", SELFPLAY)
    keyed = [command for command in cluster.proposed if isinstance(command.op, Add) and command.key is not None]
    assert keyed[-1].key is not None
    assert keyed[-1].key.principal == "admin"
    assert headers["Idempotency-Key"] == keyed[-1].key.key


async def test_a_key_holds_through_any_node(cluster: FakeCluster, follower: Asker) -> None:
    key = {"Idempotency-Key": "once"}
    _, first, _ = await follower.post("/work/add", SELFPLAY, headers=key)
    async with Asker(cluster.nodes["n1"]) as leader:
        _, again, _ = await leader.post("/work/add", SELFPLAY, headers=key)
        assert again["work_id"] == first["work_id"]
    cluster.lead("n2")
    _, third, _ = await follower.post("/work/add", SELFPLAY, headers=key)
    assert third["work_id"] == first["work_id"]


async def test_a_refusal_of_the_leader_is_relayed(follower: Asker) -> None:
    status, body, headers = await follower.post("/work/start", {"work_id": "nobody", "token": 1})
    assert (status, body["code"]) == (404, "not_found")
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["X-Ringraft-Served-By"] == "n1"


async def test_a_claim_by_get_is_forwarded_as_a_post(follower: Asker) -> None:
    await follower.post("/work/add", SELFPLAY)
    _, body, headers = await follower.get("/work/claim?node_id=w1")
    assert body["work"]["lease"]["node_id"] == "w1"
    assert headers["X-Ringraft-Served-By"] == "n1"


async def test_redirect_names_the_leader(cluster: FakeCluster, follower: Asker) -> None:
    status, _, headers = await follower.post("/work/add?redirect=1", SELFPLAY)
    assert (status, headers["Location"]) == (307, cluster.nodes["n1"].url + "/work/add")
    status, _, headers = await follower.get("/work/items?redirect=1&consistency=leader&state=PENDING")
    assert (status, headers["Location"]) == (307, cluster.nodes["n1"].url + "/work/items?state=PENDING")
    async with Asker(cluster.nodes["n1"]) as leader:
        assert (await leader.post("/work/add?redirect=1", SELFPLAY))[0] == 200


async def test_a_leader_that_is_gone_is_waited_out(cluster: FakeCluster, follower: Asker) -> None:
    server = cluster.nodes["n1"].server
    assert server is not None
    await server.close()
    asked = asyncio.create_task(follower.post("/work/add", SELFPLAY))
    await asyncio.sleep(0.1)
    cluster.lead("n2")
    async with asyncio.timeout(3):
        assert (await asked)[0] == 200
    cluster.lead("n1")
    status, body, _ = await follower.post("/work/add?timeout_s=0.2", SELFPLAY)
    assert (status, body["code"], body["outcome"]) == (503, "no_leader", "not_applied")


async def test_a_leader_that_dies_before_its_answer_leaves_one_effect(cluster: FakeCluster, follower: Asker) -> None:
    server = await deaf_front(cluster)
    status, body, _ = await follower.post("/work/add", SELFPLAY)
    held, _ = cluster.nodes["n1"].replica.machine.items(cursor=None, limit=10)
    assert (status, [item["work_id"] for item in held]) == (200, [body["work_id"]])
    await server.close()


async def deaf_front(cluster: FakeCluster) -> TestServer:
    """Stand before n1: what is asked there is done, then n2 leads, and the connection breaks without an answer."""
    n1 = cluster.nodes["n1"]
    real_url = n1.url

    async def do_and_die(request: web.Request) -> web.Response:
        body = await request.read()
        async with n1.client.post(real_url + request.path_qs, data=body, headers=request.headers) as answer:
            assert answer.status == 200
        cluster.lead("n2")
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", do_and_die)
    server = TestServer(app)
    await server.start_server()
    n1.url = f"http://127.0.0.1:{server.port}"
    return server


async def test_a_leader_that_does_not_answer_leaves_it_unknown(cluster: FakeCluster, follower: Asker) -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", hang)
    server = TestServer(app)
    await server.start_server()
    cluster.nodes["n1"].url = f"http://127.0.0.1:{server.port}"
    status, body, _ = await follower.post("/work/add?timeout_s=0.2", SELFPLAY)
    assert (status, body["code"], body["outcome"]) == (504, "commit_unknown", "unknown")
    await server.close()


async def test_two_nodes_that_each_take_the_other_for_leader_do_not_loop(cluster: FakeCluster) -> None:
    cluster.leader = "n3"
    for node in cluster.nodes.values():
        node.peer_url = lambda node_id: cluster.nodes["n2"].url  # type: ignore[method-assign]
    async with Asker(cluster.nodes["n1"]) as asker:
        status, body, _ = await asker.post("/work/add?timeout_s=0.2", SELFPLAY)
    assert status in (403, 503) and body["outcome"] == "not_applied"


# The hop header.


async def test_a_forged_hop_is_refused(cluster: FakeCluster) -> None:
    node = cluster.nodes["n1"]
    body = b'{"work_type":"x"}'
    kind = {"Content-Type": "application/json"}

    def signed(secret: str = SECRET, **change: Any) -> str:
        said = {"sender": "n2", "to": "n1", "request_id": "r", "method": "POST", "target": "/work/add", "body": body}
        return HopSigner(secret).sign(ADMIN, **{**said, **change})

    good = signed()
    version, text, mac = good.split(".")
    bad = {
        "another secret": signed("another"),
        "for another node": signed(to="n3"),
        "for another path": signed(target="/admin/shutdown"),
        "for another method": signed(method="GET"),
        "for another body": signed(body=b"{}"),
        "a changed claim": f"{version}.{text[:-2]}AA.{mac}",
        "no mac": f"{version}.{text}.",
        "nothing": "",
        "too long": "v1." + "a" * 4000 + ".b",
        "1": "1",
    }
    async with Asker(node, None) as asker:
        before = cluster.index
        for what, value in bad.items():
            headers = {**kind, HOP_HEADER: value}
            status, answer, _ = await asker.ask("POST", "/work/add", data=body, headers=headers)
            assert (status, answer["code"]) == (403, "forbidden"), what
        assert cluster.index == before
        status, _, _ = await asker.ask("POST", "/work/add", data=body, headers={**kind, HOP_HEADER: good})
        assert status == 200


async def test_headers_of_the_client_do_not_travel(cluster: FakeCluster, follower: Asker) -> None:
    seen: list[web.Request] = []

    async def record(request: web.Request) -> web.Response:
        seen.append(request)
        await request.read()
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", record)
    server = TestServer(app)
    await server.start_server()
    cluster.nodes["n1"].url = f"http://127.0.0.1:{server.port}"
    await follower.post("/work/add", SELFPLAY, headers={"X-Forwarded-For": "evil", "Cookie": "a=b", "X-Evil": "1"})
    (request,) = seen
    assert request.path_qs == "/work/add"
    assert not {"X-Forwarded-For", "Cookie", "X-Evil", "Authorization"} & set(request.headers)
    await server.close()


# Consistency.


async def test_reads_are_as_fresh_as_asked(cluster: FakeCluster, follower: Asker) -> None:
    _, added, _ = await follower.post("/work/add", SELFPLAY)
    path = f"/work/item/{added['work_id']}"
    _, _, headers = await follower.get(path)
    assert "X-Ringraft-Lag" not in headers
    _, _, headers = await follower.get(path + "?consistency=leader")
    assert headers["X-Ringraft-Served-By"] == "n1"
    cluster.nodes["n2"].consensus.contact_s = 1.25
    _, _, headers = await follower.get(path + "?consistency=stale")
    assert headers["X-Ringraft-Lag"] == "1.250" and "X-Ringraft-Served-By" not in headers
    _, _, headers = await follower.get("/work/status")
    assert headers["X-Ringraft-Lag"] == "1.250"
    assert (await follower.get(path + "?consistency=eventual"))[0] == 422


async def test_without_a_leader_stale_reads_work_and_others_wait(cluster: FakeCluster, follower: Asker) -> None:
    _, added, _ = await follower.post("/work/add", SELFPLAY)
    cluster.lead(None)
    cluster.is_connected = False
    path = f"/work/item/{added['work_id']}"
    assert (await follower.get(path + "?consistency=stale"))[0] == 200
    for consistency in ("linearizable", "leader"):
        status, body, _ = await follower.get(f"{path}?consistency={consistency}&timeout_s=0.1")
        assert (status, body["code"]) == (503, "no_quorum")
    assert (await follower.get("/election/status?timeout_s=0.1"))[0] == 503
    _, body, _ = await follower.get("/election/status?consistency=stale")
    assert body["leader_id"] is None and body["in_progress"]
    status, body, _ = await follower.get("/health")
    assert (status, body["status"], body["healthy"], body["leader_id"]) == (200, "degraded", False, None)
    assert (await follower.get("/livez"))[0] == 200
    status, text, _ = await follower.get("/readyz")
    assert status == 503 and "[-]leader" in text


async def test_a_barrier_that_fails_is_503(cluster: FakeCluster, follower: Asker) -> None:
    cluster.nodes["n2"].consensus.fails = Unavailable("no_quorum", "no majority")
    status, body, _ = await follower.get("/lease/status?timeout_s=0.1")
    assert (status, body["code"]) == (503, "no_quorum")


async def test_digests_are_equal_and_awaited(cluster: FakeCluster, follower: Asker) -> None:
    await follower.post("/work/add", SELFPLAY)
    async with Asker(cluster.nodes["n1"]) as leader:
        index = cluster.index
        assert (await leader.get("/raft/digest"))[1] == (await follower.get("/raft/digest"))[1]
        assert (await leader.get(f"/raft/digest?index={index}"))[1]["index"] == index
        status, body, _ = await leader.get(f"/raft/digest?index={index - 1}")
        assert (status, body["code"]) == (409, "digest_passed")
        status, body, _ = await leader.get(f"/raft/digest?index={index + 1}&timeout_s=0.1")
        assert (status, body["code"]) == (409, "not_reached")
        waiting = asyncio.create_task(leader.get(f"/raft/digest?index={index + 1}"))
        await asyncio.sleep(0.05)
        await follower.post("/work/add", SELFPLAY)
        assert (await waiting)[1]["index"] == index + 1


async def test_a_retired_item_is_asked_of_the_other_voters(cluster: FakeCluster, follower: Asker) -> None:
    cluster.nodes["n1"].archive.rows["old"] = {"work_id": "old", "state": "COMPLETED"}
    status, body, headers = await follower.get("/work/item/old")
    assert (status, body["state"], headers["X-Ringraft-Served-By"]) == (200, "COMPLETED", "n1")
    assert (await follower.get("/work/item/older"))[0] == 404


# Elections.


async def test_election_start_transfers_from_any_node(cluster: FakeCluster, follower: Asker) -> None:
    status, body, _ = await follower.ask("POST", "/election/start")
    assert (status, body) == (202, {"started": True, "reason": "external_request"})
    assert cluster.leader == "n2"
    status, body, _ = await follower.post("/election/start", {"reason": "again"})
    assert (status, body["reason"], cluster.leader) == (202, "again", "n1")
    cluster.lead(None)
    assert (await follower.ask("POST", "/election/start"))[0] == 202
    assert cluster.nodes["n2"].consensus.campaigns == ["external_request"]


async def test_election_status(cluster: FakeCluster, follower: Asker) -> None:
    cluster.lead("n2")
    _, body, _ = await follower.get("/election/status")
    assert (body["leader_id"], body["term"], body["quorum_size"], body["in_progress"]) == ("n2", 2, 2, False)
    assert body["candidates"] == ["n1", "n2"]
    assert [one["winner"] for one in body["last_elections"]] == ["n2", "n1"]
    _, body, _ = await follower.get("/lease/status?name=leader")
    assert (body["name"], body["holder"], body["epoch"]) == ("leader", "n2", 2)


# A worker without a log.


@pytest.fixture
async def worker(cluster: FakeCluster, tmp_path: Path) -> AsyncIterator[FakeNode]:
    node = await cluster.add_node("w1", is_worker=True)
    node.cluster_addresses = ["http://127.0.0.1:1", cluster.nodes["n2"].url]
    node.worker = FakeWorker(tmp_path)
    yield node


async def test_a_worker_passes_everything_to_the_cluster(cluster: FakeCluster, worker: FakeNode) -> None:
    async with Asker(worker) as asker:
        status, added, headers = await asker.post("/work/add", {**SELFPLAY, "a": 1})
        assert (status, added["status"], headers["X-Ringraft-Node"]) == (200, "added", "w1")
        assert headers["X-Ringraft-Leader"] == "n1" and int(headers["X-Ringraft-Index"]) > 0
        assert (await asker.get(f"/work/item/{added['work_id']}"))[1]["config"] == {"a": 1}
        assert (await asker.get("/work/claim?node_id=w1&wait_s=0.1"))[1]["work"]
        assert (await asker.get("/peers"))[0] == 200
        assert (await asker.get("/health"))[1]["role"] == "worker"
        assert (await asker.get("/status"))[1]["role"] == "worker"
        assert (await asker.get("/metrics"))[0] == 200
        assert (await asker.post("/work/add", {}))[0] == 422
    async with Asker(worker, "wrong") as stranger:
        assert (await stranger.post("/work/add", SELFPLAY))[0] == 401
    worker.cluster_addresses = ["http://127.0.0.1:1"]
    async with Asker(worker) as asker:
        assert (await asker.post("/work/add?timeout_s=0.2", SELFPLAY))[1]["code"] == "no_leader"


async def test_a_node_that_dies_before_it_answers_a_worker_leaves_one_effect(
    cluster: FakeCluster, worker: FakeNode
) -> None:
    server = await deaf_front(cluster)
    worker.cluster_addresses = [cluster.nodes["n1"].url, cluster.nodes["n2"].url]
    async with Asker(worker) as asker:
        status, body, _ = await asker.post("/work/add", SELFPLAY)
    held, _ = cluster.nodes["n1"].replica.machine.items(cursor=None, limit=10)
    assert (status, [item["work_id"] for item in held]) == (200, [body["work_id"]])
    await server.close()


async def test_output_comes_from_where_it_ran(cluster: FakeCluster, worker: FakeNode, follower: Asker) -> None:
    await follower.post("/work/add", {**SELFPLAY, "work_id": "job"})
    assert (await follower.get("/work/item/job/log"))[0] == 404
    await follower.post("/work/claim", {"node_id": "w1"})
    assert (await follower.get("/work/item/job/log"))[0] == 404
    (worker.worker.directory / "job").write_text("x" * 300_000 + "the end\n")
    status, text, headers = await follower.get("/work/item/job/log")
    assert status == 200 and text.endswith("the end\n") and len(text) == 256 * 1024
    assert headers["X-Ringraft-Served-By"] == "w1"
    async with Asker(worker) as asker:
        assert (await asker.get("/work/item/job/log"))[1] == text
    assert worker.server is not None
    await worker.server.close()
    status, body, _ = await follower.get("/work/item/job/log")
    assert (status, body["code"]) == (404, "not_found")


async def test_output_is_followed_until_the_end(worker: FakeNode, follower: Asker) -> None:
    await follower.post("/work/add", {**SELFPLAY, "work_id": "job"})
    await follower.post("/work/claim", {"node_id": "w1"})
    path = worker.worker.directory / "job"
    path.write_text("one\n")
    worker.worker.running.append("job")
    async with follower.session.get(
        follower.node.url + "/work/item/job/log?follow=1", headers=follower.headers
    ) as answer:
        assert await answer.content.readline() == b"one\n"
        with path.open("a") as file:
            file.write("two\n")
        async with asyncio.timeout(5):
            assert await answer.content.readline() == b"two\n"
            worker.worker.running.clear()
            assert await answer.content.read() == b""
