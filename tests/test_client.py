"""What the client promises: safe repeats, one key a write, typed endings, one frame for many calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgpack
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ringraft.client import ApiError, Client, Unreachable, base_url

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def problem(status: int, code: str, *, outcome: str = "not_applied", **members: Any) -> web.Response:
    retryable = status in (429, 503, 504)
    body = {"code": code, "detail": f"it is {code}", "retryable": retryable, "outcome": outcome, **members}
    return web.json_response(body, status=status, content_type="application/problem+json")


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A node that gives every request to ``handler``; yields its address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.fixture
def free_address(unused_tcp_port: int) -> str:
    return f"127.0.0.1:{unused_tcp_port}"


async def test_a_write_keeps_its_key_over_retries_and_addresses(free_address: str) -> None:
    seen: list[tuple[str, str]] = []

    async def first(request: web.Request) -> web.StreamResponse:
        seen.append(("first", request.headers["Idempotency-Key"]))
        return problem(503, "no_leader")

    async def second(request: web.Request) -> web.StreamResponse:
        seen.append(("second", request.headers["Idempotency-Key"]))
        if len(seen) < 4:
            return problem(504, "commit_unknown", outcome="unknown")
        return web.json_response({"status": "added", "work_id": "w1"})

    async with serving(first) as a, serving(second) as b, Client([free_address, a, b]) as client:
        body = await client.post("/work/add", {"work_type": "selfplay"})
    assert body == {"status": "added", "work_id": "w1"}
    assert [node for node, _ in seen] == ["first", "second", "first", "second"]
    assert len({key for _, key in seen}) == 1


async def test_a_refusal_is_not_repeated_and_keeps_what_it_says() -> None:
    calls = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return problem(422, "invalid_field", errors=[{"pointer": "/priority", "message": "101 is above 100"}])

    async with serving(handler) as address, Client([address]) as client:
        with pytest.raises(ApiError) as caught:
            await client.post("/work/add", {"priority": 101})
    assert calls == 1
    assert (caught.value.status, caught.value.code, caught.value.outcome) == (422, "invalid_field", "not_applied")
    assert "/priority: 101 is above 100" in str(caught.value)


async def test_a_write_without_key_whose_ending_is_unknown_is_not_repeated() -> None:
    calls = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with serving(handler) as a, serving(handler) as b, Client([a, b]) as client:
        with pytest.raises(Unreachable) as caught:
            await client.post("/admin/shutdown", {})
    assert calls == 1
    assert caught.value.outcome == "unknown"


async def test_the_last_refusal_stays_unknown_when_an_earlier_try_was_unknown() -> None:
    answers = [problem(504, "commit_unknown", outcome="unknown")]

    async def handler(request: web.Request) -> web.StreamResponse:
        return answers.pop() if answers else problem(503, "no_leader")

    async with serving(handler) as address, Client([address]) as client:
        with pytest.raises(ApiError) as caught:
            await client.post("/work/add", {}, deadline_s=0.3)
    assert (caught.value.code, caught.value.outcome) == ("no_leader", "unknown")


async def test_nobody_there_is_not_applied(free_address: str) -> None:
    async with Client([free_address]) as client:
        with pytest.raises(Unreachable) as caught:
            await client.post("/work/add", {}, deadline_s=0.1)
    assert caught.value.outcome == "not_applied"


async def test_retry_after_is_honoured() -> None:
    times: list[float] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            answer = problem(429, "queue_full")
            answer.headers["Retry-After"] = "0.4"
            return answer
        return web.json_response({})

    async with serving(handler) as address, Client([address]) as client:
        await client.post("/work/add", {})
    assert times[1] - times[0] >= 0.4


async def test_a_leader_hint_is_asked_next() -> None:
    asked: list[str] = []
    leader_url = ""

    async def follower(request: web.Request) -> web.StreamResponse:
        asked.append("follower")
        return problem(503, "no_leader", leader={"id": "n3", "url": leader_url})

    async def bystander(request: web.Request) -> web.StreamResponse:
        asked.append("bystander")
        return problem(503, "no_leader")

    async def leader(request: web.Request) -> web.StreamResponse:
        asked.append("leader")
        return web.json_response({})

    async with serving(follower) as a, serving(bystander) as b, serving(leader) as c, Client([a, b, c]) as client:
        leader_url = c
        await client.post("/work/add", {})
    assert asked == ["follower", "leader"]


async def test_a_silent_node_costs_one_try_not_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringraft.client.cluster.TRY_S", 0.2)
    release = asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response({})

    async def quick(request: web.Request) -> web.StreamResponse:
        return web.json_response({"ok": True})

    async with serving(silent) as a, serving(quick) as b, Client([a, b]) as client:
        started = asyncio.get_running_loop().time()
        assert await client.get("/work/status") == {"ok": True}
        assert asyncio.get_running_loop().time() - started < 2
        assert await client.get("/work/status") == {"ok": True}  # the one that answered is asked first
        release.set()


async def test_the_credential_is_sent_and_text_bodies_stay_text() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer s3cret"
        return web.Response(text="[+]log ok\n")

    async with serving(handler) as address, Client([address], token="s3cret") as client:
        assert await client.get("/readyz") == "[+]log ok\n"


def test_an_address_is_host_and_port_or_a_url() -> None:
    assert base_url("127.0.0.1:8770") == "http://127.0.0.1:8770"
    assert base_url("https://n1.example:8770/") == "https://n1.example:8770"
    with pytest.raises(ValueError, match="neither host:port"):
        base_url("ftp://n1")
    with pytest.raises(ValueError, match="at least one address"):
        Client([])


class StreamNode:
    """A node's ``/work/stream``: ``answer`` decides what each call gets; None leaves it unanswered."""

    def __init__(self, answer: Callable[[int, str, dict[str, Any]], tuple[int, Any] | None]) -> None:
        self.answer = answer
        self.frames: list[list[Any]] = []
        self.transports: list[asyncio.Transport] = []
        self.asked = asyncio.Event()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(protocols=("ringraft.v1",))
        await ws.prepare(request)
        assert request.transport is not None
        self.transports.append(request.transport)
        async for message in ws:
            assert message.type is aiohttp.WSMsgType.BINARY
            frame = msgpack.unpackb(message.data)
            self.frames.append(frame)
            self.asked.set()
            answers = [(seq, self.answer(seq, verb, body)) for seq, verb, body in frame]
            await ws.send_bytes(msgpack.packb([[seq, *a] for seq, a in answers if a is not None]))
        return ws


async def test_calls_of_one_turn_travel_in_one_frame() -> None:
    node = StreamNode(lambda seq, verb, body: (200, {"seq": seq, "verb": verb}))
    async with serving(node.serve) as address, Client([address]) as client, client.stream() as stream:
        bodies = await stream.calls([("start", {"work_id": f"w{i}", "token": i}) for i in range(50)])
        assert [body["seq"] for body in bodies] == list(range(1, 51))
        assert len(node.frames) == 1
        assert (await stream.call("claim", {"node_id": "w1"}))["verb"] == "claim"


async def test_at_most_a_window_is_in_flight() -> None:
    most = 0

    def answer(seq: int, verb: str, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {}

    node = StreamNode(answer)
    async with serving(node.serve) as address, Client([address]) as client, client.stream(window=8) as stream:
        await stream.calls([("renew", {}) for _ in range(100)])
        most = max(len(frame) for frame in node.frames)
    assert most == 8
    assert sum(len(frame) for frame in node.frames) == 100


async def test_unanswered_calls_go_again_elsewhere_with_their_keys() -> None:
    lost = StreamNode(lambda seq, verb, body: None)
    found = StreamNode(lambda seq, verb, body: (200, {"key": body.get("idempotency_key")}))
    async with serving(lost.serve) as a, serving(found.serve) as b, Client([a, b]) as client, client.stream() as stream:
        futures = [stream.call("add", {"work_type": "t", "config": {"i": i}}) for i in range(3)]
        given = stream.call("add", {"work_type": "t"}, key="mine")
        await lost.asked.wait()
        lost.transports[0].abort()
        keys = [(await future)["key"] for future in futures]
        assert (await given)["key"] == "mine"
    assert keys == [body["idempotency_key"] for _, _, body in lost.frames[0][:3]]
    assert len(set(keys)) == 3


async def test_a_stream_repeats_what_may_be_repeated_and_raises_the_rest() -> None:
    tries: dict[str, int] = {}

    def answer(seq: int, verb: str, body: dict[str, Any]) -> tuple[int, Any]:
        tries[verb] = tries.get(verb, 0) + 1
        if verb == "add" and tries[verb] == 1:
            return 503, {"code": "no_leader", "retryable": True, "outcome": "not_applied"}
        if verb == "complete":
            return 409, {"code": "stale_token", "retryable": False, "outcome": "not_applied"}
        return 200, {}

    async with serving(StreamNode(answer).serve) as address, Client([address]) as client, client.stream() as stream:
        added, completed = await stream.calls([("add", {}), ("complete", {"work_id": "w", "token": 1})])
    assert added == {}
    assert isinstance(completed, ApiError)
    assert completed.code == "stale_token"
    assert tries == {"add": 2, "complete": 1}


async def test_a_call_without_answer_ends_at_its_deadline_unknown(free_address: str) -> None:
    node = StreamNode(lambda seq, verb, body: None)
    async with serving(node.serve) as address, Client([address]) as client, client.stream() as stream:
        with pytest.raises(Unreachable) as caught:
            await stream.call("add", {}, deadline_s=0.1)
    assert caught.value.outcome == "unknown"
    async with Client([free_address]) as client, client.stream() as stream:
        with pytest.raises(Unreachable) as caught:
            await stream.call("add", {}, deadline_s=0.1)
    assert caught.value.outcome == "not_applied"


async def test_a_wrong_credential_ends_every_call_at_once() -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return problem(401, "unauthenticated")

    async with serving(refuse) as address, Client([address]) as client, client.stream() as stream:
        with pytest.raises(ApiError) as caught:
            await stream.call("add", {})
    assert caught.value.code == "unauthenticated"


async def test_closing_a_stream_ends_what_waits() -> None:
    node = StreamNode(lambda seq, verb, body: None)
    async with serving(node.serve) as address, Client([address]) as client:
        stream = client.stream()
        future = stream.call("add", {})
        await node.asked.wait()
        await stream.close()
        with pytest.raises(Unreachable):
            await future
        with pytest.raises(Unreachable, match="closed"):
            stream.call("add", {})


def test_an_error_says_each_fault_once() -> None:
    fault = {"pointer": "/address", "message": "is none"}
    other = {"pointer": "/wait_s", "message": "is 61"}
    assert (
        str(ApiError(422, {"code": "c", "detail": "/address is none", "errors": [fault]})) == "422 c: /address is none"
    )
    told = str(ApiError(422, {"code": "c", "detail": "/address is none (and 1 more)", "errors": [fault, other]}))
    assert told == "422 c: /address is none (and 1 more) (/wait_s: is 61)"
