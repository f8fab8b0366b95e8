"""The binary stream: the same verbs and answers as REST, pipelined, through leader and followers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgpack
import pytest

from tests.integration.cluster import Cluster, fresh

WINDOW = 1024


class Stream:
    """One open stream. Answers come in any order and several to a frame."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self._seq = 0

    async def send(self, *calls: tuple[str, Mapping[str, Any]]) -> list[int]:
        frame = []
        for verb, body in calls:
            self._seq += 1
            frame.append([self._seq, verb, body])
        await self.socket.send_bytes(msgpack.packb(frame))
        return [seq for seq, _, _ in frame]

    async def answers(self, seqs: list[int]) -> list[tuple[int, Any]]:
        found: dict[int, tuple[int, Any]] = {}
        while not found.keys() >= set(seqs):
            frame = msgpack.unpackb(await self.socket.receive_bytes(timeout=15), strict_map_key=False)
            assert isinstance(frame, list)
            for seq, status, body in frame:
                assert type(seq) is int
                assert type(status) is int
                assert seq not in found
                found[seq] = (status, body)
        return [found[seq] for seq in seqs]

    async def call(self, verb: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        (answer,) = await self.answers(await self.send((verb, body)))
        return answer

    async def ok(self, verb: str, body: Mapping[str, Any]) -> Any:
        status, answer = await self.call(verb, body)
        assert status == 200, answer
        return answer


@asynccontextmanager
async def stream(cluster: Cluster, node: str) -> AsyncIterator[Stream]:
    async with aiohttp.ClientSession() as session:
        url = cluster.nodes[node].url + "/work/stream"
        async with session.ws_connect(url, protocols=["ringraft.v1"], headers=cluster.headers, compress=0) as socket:
            assert socket.protocol == "ringraft.v1"
            yield Stream(socket)


@pytest.fixture(params=["leader", "follower"])
def node(request: pytest.FixtureRequest, shared: Cluster) -> str:
    return shared.leader() if request.param == "leader" else shared.followers()[0]


async def test_every_verb_answers_as_its_post_does(shared: Cluster, node: str) -> None:
    work_type = fresh()
    async with stream(shared, node) as s:
        added = await s.ok("add", {"work_type": work_type, "board_type": "hex8", "group": work_type})
        assert set(added) >= {"status", "work_id", "state", "index", "warnings"}
        assert (await s.ok("add_batch", {"items": [{"work_type": work_type}] * 4}))["items"][3]["status"] == "added"
        claimed = await s.ok("claim", {"node_id": "w-s", "work_types": [work_type], "max_items": 5})
        assert claimed["work"] == claimed["items"][0]
        leases = {i["work_id"]: i["lease"]["token"] for i in claimed["items"]}
        assert len(leases) == 5
        assert shared.item(added["work_id"])["config"] == {"board_type": "hex8"}
        a, b, c, d, e = leases
        assert (await s.ok("start", {"work_id": a, "token": leases[a]}))["status"] == "running"
        renewed = await s.ok("renew", {"node_id": "w-s", "leases": [{"work_id": a, "token": leases[a], "progress": 1}]})
        assert renewed["leases"][0]["ok"] is True
        done = await s.ok("complete", {"work_id": a, "token": leases[a], "result": {"x": 1}})
        assert done == {"status": "completed", "spawned": [], "then": None}
        both = [{"work_id": b, "token": leases[b]}, {"work_id": c, "token": 1}]
        assert [i["status"] for i in (await s.ok("complete_batch", {"items": both}))["items"]] == [
            "completed",
            "refused",
        ]
        failed = await s.ok("fail", {"work_id": c, "token": leases[c], "error": "x", "retryable": False})
        assert (failed["status"], failed["state"]) == ("failed", "FAILED")
        assert (await s.ok("release", {"work_id": d, "token": leases[d]}))["status"] == "released"
        assert (await s.ok("cancel", {"work_id": e}))["count"] == 1
    states = [shared.item(i)["state"] for i in (a, b, c, d, e)]
    assert states == ["COMPLETED", "COMPLETED", "FAILED", "PENDING", "CANCELLED"]


async def test_refusals_are_problems_with_the_status_of_the_post(shared: Cluster, node: str) -> None:
    work_type = fresh()
    shared.add(work_type=work_type)
    (item,) = shared.claim(work_type)
    lease = {"work_id": item["work_id"], "token": item["lease"]["token"]}
    shared.post("n1", "/work/release", lease).ok()
    (newer,) = shared.claim(work_type)
    async with stream(shared, node) as s:
        for verb, body, status, code in (
            ("add", {}, 422, "invalid_field"),
            ("add", {"work_type": "a", "priority": 101}, 422, "invalid_field"),
            ("add", {"work_type": "a", "depends_on": ["never-was"]}, 422, "unknown_dependency"),
            ("claim", {"node_id": "w", "max_item": 1}, 422, "unknown_field"),
            ("complete", {"work_id": "never-was", "token": 1}, 404, "not_found"),
            ("complete", {"work_id": "never-was"}, 422, "token_required"),
            ("complete", lease, 409, "stale_token"),
            ("cancel", {"work_id": "never-was"}, 404, "not_found"),
        ):
            found, problem = await s.call(verb, body)
            assert (found, problem["code"]) == (status, code), (verb, body, problem)
            assert problem["outcome"] == "not_applied"
            assert type(problem["retryable"]) is bool
        found, problem = await s.call("frobnicate", {})
        assert 400 <= found < 500, problem
        assert (await s.ok("add", {"work_type": fresh()}))["status"] == "added"  # and the stream lives on
    shared.post("n1", "/work/complete", {"work_id": newer["work_id"], "token": newer["lease"]["token"]}).ok()


async def test_keys_are_those_of_rest(shared: Cluster, node: str) -> None:
    work_type, key = fresh(), fresh("key")
    body = {"work_type": work_type, "config": {"x": 1}}
    async with stream(shared, node) as s:
        first = await s.ok("add", {**body, "idempotency_key": key})
        assert await s.ok("add", {**body, "idempotency_key": key}) == first
        assert shared.post("n1", "/work/add", body, key=key).ok() == first
        status, problem = await s.call("add", {"work_type": fresh(), "idempotency_key": key})
        assert (status, problem["code"]) == (422, "idempotency_mismatch")
        claim = {"node_id": "w-s", "work_types": [work_type], "idempotency_key": fresh("key")}
        granted = (await s.ok("claim", claim))["items"]
        assert (await s.ok("claim", claim))["items"] == granted
    assert shared.item(first["work_id"])["config"] == {"x": 1}


async def test_many_at_once_in_one_frame(shared: Cluster, node: str) -> None:
    work_type = fresh()
    async with stream(shared, node) as s:
        seqs = await s.send(*[("add", {"work_type": work_type, "config": {"n": n}}) for n in range(500)])
        answers = await s.answers(seqs)
        assert {status for status, _ in answers} == {200}
        assert len({body["work_id"] for _, body in answers}) == 500


async def test_the_window_is_bounded(shared: Cluster, node: str) -> None:
    """A claim that waits stays in flight, so the window is full and one more is too many."""
    work_type = fresh()
    claim = {"node_id": "w-s", "work_types": [work_type], "wait_s": 30}
    async with stream(shared, node) as s:
        waiting = await s.send(*[("claim", claim)] * WINDOW)
        status, problem = await s.call("add", {"work_type": fresh()})
        assert (status, problem["code"]) == (429, "window_full")
        assert problem["outcome"] == "not_applied"
        work_id = shared.add(work_type=work_type)
        frame = msgpack.unpackb(await s.socket.receive_bytes(timeout=15))
        assert frame[0][0] in waiting
        assert frame[0][2]["items"][0]["work_id"] == work_id


async def test_a_waiting_claim_lets_others_pass(shared: Cluster, node: str) -> None:
    work_type = fresh()
    async with stream(shared, node) as s:
        (waiting,) = await s.send(("claim", {"node_id": "w-s", "work_types": [work_type], "wait_s": 20}))
        (added,) = await s.send(("add", {"work_type": work_type}))
        answers = await s.answers([waiting, added])
        assert answers[0][1]["items"][0]["work_id"] == answers[1][1]["work_id"]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        msgpack.packb({"a": 1}),
        msgpack.packb([[1, "add"]]),
        msgpack.packb([["x", "add", {}]]),
        msgpack.packb([1]),
        msgpack.packb([[1, "add", [1]]]),
        msgpack.packb([[1, "add", {"work_type": "a", "config": {1: 2}}]]),
        msgpack.packb([[1, "add", {"work_type": "a", "config": {"x": float("nan")}}]]),
        msgpack.packb([[1, "add", {"work_type": "a", "config": {"x": b"bytes"}}]]),
    ],
)
async def test_a_malformed_frame_is_refused_and_harms_nobody(shared: Cluster, frame: bytes) -> None:
    async with stream(shared, "n2") as s:
        await s.socket.send_bytes(frame)
        message = await s.socket.receive(timeout=10)
        if message.type is aiohttp.WSMsgType.BINARY:
            for _, status, body in msgpack.unpackb(message.data):
                assert 400 <= status < 500, body
        else:
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING)
    assert shared.get("n2", "/health").status == 200


async def test_a_plain_get_is_told_what_is_missing(shared: Cluster) -> None:
    answer = shared.get("n1", "/work/stream")
    assert 400 <= answer.status < 500
    assert answer.body["code"]
