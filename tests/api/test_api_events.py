"""Events as pages, long polls and server-sent events; headers, health, documents."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jsonschema_rs
import pytest

from ringraft.api.app import ROUTES
from ringraft.api.openapi import document, problem_codes
from ringraft.api.problems import KINDS
from tests.api.fake_node import Asker, FakeNode, one_node

SELFPLAY = {"work_type": "selfplay"}


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with one_node() as node:
        yield node


@pytest.fixture
async def asker(node: FakeNode) -> AsyncIterator[Asker]:
    async with Asker(node) as asker:
        yield asker


async def test_events_are_paged_and_awaited(asker: Asker) -> None:
    _, first, _ = await asker.get("/events")
    assert first["items"][0]["type"] == "LEADER_ELECTED"
    assert first["items"][0].keys() == {"seq", "index", "type", "at", "data"}
    waiting = asyncio.create_task(asker.get(f"/events?since={first['next']}&wait_s=20"))
    await asyncio.sleep(0.05)
    await asker.post("/work/add", SELFPLAY)
    async with asyncio.timeout(5):
        _, page, _ = await waiting
    assert [event["type"] for event in page["items"]] == ["WORK_ADDED"]
    assert page["next"] == page["items"][-1]["seq"]
    _, empty, _ = await asker.get(f"/events?since={page['next']}")
    assert (empty["items"], empty["next"]) == ([], page["next"])


async def sse(answer: Any) -> dict[str, str]:
    """The next server-sent event."""
    fields: dict[str, str] = {}
    async with asyncio.timeout(5):
        while line := (await answer.content.readline()).decode().rstrip("\n"):
            if not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
    return fields


async def test_server_sent_events_resume(node: FakeNode, asker: Asker) -> None:
    headers = {**asker.headers, "Accept": "text/event-stream"}
    async with asker.session.get(node.url + "/events", headers=headers) as answer:
        assert answer.content_type == "text/event-stream"
        assert answer.headers["X-Ringraft-Node"] == "n1"
        await asker.post("/work/add", SELFPLAY)
        first = await sse(answer)
        assert first["event"] == "WORK_ADDED" and json.loads(first["data"])["seq"] == int(first["id"])
    await asker.post("/work/add", {"work_type": "training"})
    resumed = {**headers, "Last-Event-ID": first["id"]}
    async with asker.session.get(node.url + "/events", headers=resumed) as answer:
        second = await sse(answer)
        assert json.loads(second["data"])["data"]["work_type"] == "training"
    status, body, _ = await asker.get("/events", headers={**headers, "Last-Event-ID": "x"})
    assert (status, body["code"]) == (422, "invalid_field")


async def test_a_reader_that_fell_behind_is_told(node: FakeNode, asker: Asker) -> None:
    for _ in range(9):
        await asker.post("/work/add_batch", {"items": [SELFPLAY] * 1000})
    _, page, _ = await asker.get("/events?since=1")
    assert page["lost"] is True
    headers = {**asker.headers, "Accept": "text/event-stream", "Last-Event-ID": "1"}
    async with asker.session.get(node.url + "/events", headers=headers) as answer:
        lost = await sse(answer)
        assert lost["event"] == "lost" and json.loads(lost["data"])["after"] == 1
        assert int((await sse(answer))["id"]) > 1


async def test_every_answer_has_its_headers(asker: Asker) -> None:
    await asker.post("/work/add", {**SELFPLAY, "work_id": "a"})
    seen = set()
    for method, path in [
        ("GET", "/health"), ("GET", "/livez"), ("GET", "/status"), ("GET", "/nope"), ("DELETE", "/work/add"),
        ("GET", "/work/item/a"), ("GET", "/work/item/b"), ("POST", "/work/add"), ("GET", "/metrics"),
        ("GET", "/openapi.json"), ("GET", "/work/stream"), ("HEAD", "/health"),
    ]:  # fmt: skip
        status, _, headers = await asker.ask(method, path)
        assert headers["X-Ringraft-Node"] == "n1", path
        assert headers["X-Ringraft-Leader"] == "n1", path
        assert int(headers["X-Ringraft-Term"]) == 1
        assert int(headers["X-Ringraft-Index"]) >= 1
        seen.add(headers["X-Ringraft-Request-Id"])
        assert "Python" not in headers["Server"]
        assert status < 500
    assert len(seen) == 12


async def test_404_and_405_are_problems(asker: Asker) -> None:
    status, body, headers = await asker.get("/nope")
    assert (status, body["code"], headers["Content-Type"]) == (404, "not_found", "application/problem+json")
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        status, body, headers = await asker.ask(method, "/work/claim")
        assert (status, body["code"], headers["Allow"]) == (405, "method_not_allowed", "GET, POST")


async def test_health_is_quick_while_the_node_is_busy(asker: Asker) -> None:
    adds = [asyncio.create_task(asker.post("/work/add_batch", {"items": [SELFPLAY] * 200})) for _ in range(5)]
    await asyncio.gather(*adds)
    began_s = time.perf_counter()
    status, body, _ = await asker.get("/health")
    assert time.perf_counter() - began_s < 0.25, "50 ms on a machine that does nothing else"
    assert status == 200 and body["status"] == "ok" and body["cpu_percent"] == 1.0


async def test_shutdown_is_asked_of_the_node(node: FakeNode, asker: Asker) -> None:
    assert (await asker.post("/admin/shutdown", {"graceful": False}))[0] == 200
    async with asyncio.timeout(2):
        while not node.shutdowns:  # noqa: ASYNC110 - the call comes from a timer
            await asyncio.sleep(0.01)
    assert node.shutdowns == [False]


async def test_metrics_count_requests_by_route(asker: Asker) -> None:
    await asker.get("/work/item/a")
    status, text, headers = await asker.get("/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    assert 'route="/work/item/{id}"' in text


async def test_a_secret_is_nowhere(node: FakeNode, asker: Asker) -> None:
    from tests.api.fake_node import SECRET

    for path in ("/status", "/health", "/metrics", "/openapi.json", "/peers", "/nope"):
        assert SECRET not in str(await asker.get(path))


async def test_registration_and_heartbeat(node: FakeNode, asker: Asker) -> None:
    body = {
        "node_id": "w1", "incarnation": 1, "roles": ["worker"], "work_types": ["selfplay"],
        "capabilities": {"cpus": 8, "gpus": [{"name": "RTX 5090", "vram_gb": 32}]},
        "addresses": ["127.0.0.1:9"], "version": "1",
    }  # fmt: skip
    assert (await asker.post("/nodes/register", body))[1]["status"] == "registered"
    assert node.replica.machine.nodes()["w1"].addresses == ("127.0.0.1:9",)
    beat = {
        "node_id": "w1", "data_id": "d", "incarnation": 1, "roles": ["worker"], "addresses": [], "version": "1",
        "resources": {}, "gpus": [], "heard": [], "view": None, "cluster_id": None, "left": False,
    }  # fmt: skip
    assert (await asker.post("/nodes/heartbeat", beat))[1]["accepted"] is True
    assert (await asker.post("/nodes/heartbeat", {"node_id": "w1"}))[0] == 422


# The document.


async def test_the_document_describes_every_route(node: FakeNode, asker: Asker) -> None:
    status, doc, _ = await asker.get("/openapi.json")
    assert status == 200 and doc["openapi"].startswith("3.1")
    assert node.server is not None and node.server.app is not None
    routes = node.server.app[ROUTES]
    for route in routes:
        if route.upgrades:
            assert any(one["path"] == route.path for one in doc["x-websockets"])
        elif route.path != "/openapi.json":
            assert route.method.lower() in doc["paths"][route.path]
    ids = [op["operationId"] for path in doc["paths"].values() for op in path.values()]
    assert len(ids) == len(set(ids))


async def test_every_answer_has_a_schema_and_an_example_that_fits(node: FakeNode) -> None:
    assert node.server is not None and node.server.app is not None
    doc = document(node.server.app[ROUTES], timeout_s_max=30)
    for path, operations in doc["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                assert response["description"], (path, method, status)
                for media in response.get("content", {}).values():
                    schema = {**media["schema"], "components": doc["components"]}
                    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
                    examples = [one["value"] for one in media.get("examples", {}).values()] or [media["example"]]
                    for example in examples:
                        errors = [str(error) for error in validator.iter_errors(example)]
                        assert not errors, (path, method, status, errors)
            body = operation.get("requestBody")
            if body is not None:
                media = body["content"]["application/json"]
                schema = {**media["schema"], "components": doc["components"]}
                validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
                assert validator.is_valid(media["example"]), (path, method)


async def test_every_code_is_documented_somewhere(node: FakeNode) -> None:
    assert node.server is not None and node.server.app is not None
    documented = {code for route in node.server.app[ROUTES] for code in problem_codes(route)}
    elsewhere = {"method_not_allowed", "window_full", "lease_held", "not_in_this_mode"}
    assert documented | elsewhere == set(KINDS)
