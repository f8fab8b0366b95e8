"""``/work/stream``: batching, the window, refusals, and followers that share one stream to the leader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from socket import SHUT_RDWR
from typing import Any

import aiohttp
import msgpack
import pytest

from ringraft.api.auth import Credentials, Principal, Role
from ringraft.consensus.base import Indeterminate
from ringraft.state.commands import Add
from tests.api.fake_node import SECRET, FakeCluster, FakeNode, one_node, until

SELFPLAY = {"work_type": "selfplay"}


class Caller:
    """A bare client of the stream."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.frames = 0

    async def send(self, *calls: list[Any]) -> None:
        await self.socket.send_bytes(msgpack.packb(calls))

    async def answers(self, count: int) -> dict[int, tuple[int, Any]]:
        found: dict[int, tuple[int, Any]] = {}
        async with asyncio.timeout(10):
            while len(found) < count:
                for seq, status, body in msgpack.unpackb(await self.socket.receive_bytes()):
                    assert seq not in found
                    found[seq] = (status, body)
                self.frames += 1
        return found

    async def call(self, verb: str, body: Any) -> tuple[int, Any]:
        await self.send([1, verb, body])
        return (await self.answers(1))[1]


class Dial:
    """Opens callers to nodes and closes them."""

    def __init__(self) -> None:
        self.session = aiohttp.ClientSession()
        self._sockets: list[aiohttp.ClientWebSocketResponse] = []

    async def __aenter__(self) -> Dial:
        return self

    async def __aexit__(self, *_: object) -> None:
        for socket in self._sockets:
            await socket.close()
        await self.session.close()

    async def to(self, node: FakeNode, token: str = SECRET, protocol: str = "ringraft.v1") -> Caller:
        socket = await self.session.ws_connect(
            node.url + "/work/stream", protocols=(protocol,), headers={"Authorization": f"Bearer {token}"}
        )
        self._sockets.append(socket)
        return Caller(socket)


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    async with Dial() as dial:
        yield dial


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with one_node() as node:
        yield node


def _nested(levels: int) -> list[Any]:
    return [_nested(levels - 1)] if levels else []


async def test_a_life_over_the_stream(node: FakeNode, dial: Dial) -> None:
    caller = await dial.to(node)
    assert caller.socket.protocol == "ringraft.v1"
    status, added = await caller.call("add", {**SELFPLAY, "board_type": "hex8"})
    assert (status, added["status"]) == (200, "added")
    _, claimed = await caller.call("claim", {"node_id": "w1"})
    lease = {"work_id": claimed["work"]["work_id"], "token": claimed["work"]["lease"]["token"]}
    assert claimed["work"]["config"] == {"board_type": "hex8"}
    assert await caller.call("start", lease) == (200, {"status": "running"})
    assert (await caller.call("renew", {"node_id": "w1", "leases": [lease]}))[1]["leases"][0]["ok"]
    assert (await caller.call("complete", {**lease, "result": {"n": 1}}))[1]["status"] == "completed"
    status, problem = await caller.call("fail", {**lease, "error": "x"})
    assert (status, problem["code"], problem["state"]) == (409, "already_final", "COMPLETED")
    assert (await caller.call("cancel", {"work_id": "nobody"}))[0] == 404
    assert (await caller.call("add_batch", {"items": [SELFPLAY] * 3}))[0] == 200
    assert (await caller.call("complete_batch", {"items": [{**lease, "token": 1}]}))[1]["items"][0]["code"] in (
        "already_final",
        "stale_token",
    )


async def test_many_calls_of_a_frame_are_answered_in_few_frames(node: FakeNode, dial: Dial) -> None:
    caller = await dial.to(node)
    await caller.send(*[[i, "add", SELFPLAY] for i in range(500)])
    answers = await caller.answers(500)
    assert all(status == 200 for status, _ in answers.values())
    assert caller.frames <= 5
    assert len({body["work_id"] for _, body in answers.values()}) == 500


async def test_beyond_the_window_a_call_is_refused() -> None:
    async with one_node(**{"stream.window": "4"}) as node, Dial() as dial:
        caller = await dial.to(node)
        await caller.send(*[[i, "claim", {"node_id": "w1", "wait_s": 20}] for i in range(4)])
        await until(lambda: node.replica.waiting == 4)
        await caller.send([9, "add", SELFPLAY])
        status, problem = (await caller.answers(1))[9]
        assert (status, problem["code"], problem["outcome"]) == (429, "window_full", "not_applied")
        node.replica.release_parked()


async def test_a_claim_that_waits_does_not_hold_up_the_rest(node: FakeNode, dial: Dial) -> None:
    caller = await dial.to(node)
    await caller.send([1, "claim", {"node_id": "w1", "wait_s": 20}])
    await until(lambda: node.replica.waiting)
    await caller.send([2, "add", SELFPLAY])
    answers = await caller.answers(2)
    assert answers[1][1]["work"]["work_id"] == answers[2][1]["work_id"]


async def test_a_claim_that_waits_ends_with_its_client(node: FakeNode, dial: Dial) -> None:
    gone, other = await dial.to(node), await dial.to(node)
    await gone.send([1, "claim", {"node_id": "w1", "wait_s": 20}])
    await until(lambda: node.replica.waiting)
    await gone.socket.close()
    await until(lambda: not node.replica.waiting)
    _, added = await other.call("add", SELFPLAY)
    _, claimed = await other.call("claim", {"node_id": "w2"})
    assert claimed["work"]["work_id"] == added["work_id"]


async def test_keys_hold_on_the_stream_and_over_http_alike(node: FakeNode, dial: Dial) -> None:
    caller = await dial.to(node)
    body = {**SELFPLAY, "idempotency_key": "once"}
    _, first = await caller.call("add", body)
    _, again = await caller.call("add", body)
    assert first["work_id"] == again["work_id"]
    headers = {"Authorization": f"Bearer {SECRET}", "Idempotency-Key": "once"}
    async with dial.session.post(node.url + "/work/add", json=SELFPLAY, headers=headers) as answer:
        assert (await answer.json())["work_id"] == first["work_id"]
    # Names in another order are the same body, however deep; so they are through a float and the slower check.
    nested = {"work_type": "x", "config": {"a": [{"b": 0.5, "c": 1}], "d": 2}, "priority": 3}
    turned = {"priority": 3, "config": {"d": 2, "a": [{"c": 1, "b": 0.5}]}, "work_type": "x"}
    _, first = await caller.call("add", {**nested, "idempotency_key": "twice"})
    headers["Idempotency-Key"] = "twice"
    async with dial.session.post(node.url + "/work/add", json=turned, headers=headers) as answer:
        assert (await answer.json())["work_id"] == first["work_id"]
    status, problem = await caller.call("add", {**body, "priority": 1})
    assert (status, problem["code"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize(
    ("verb", "body", "status", "code"),
    [
        ("nothing", {}, 422, "invalid_field"),
        (None, {}, 422, "invalid_field"),
        ("retry", {"work_id": "a"}, 422, "invalid_field"),
        ("add", None, 422, "invalid_field"),
        ("add", [], 422, "invalid_field"),
        ("add", {"work_type": 1}, 422, "invalid_field"),
        ("start", {"work_id": "a"}, 422, "token_required"),
        ("start", {"work_id": "a", "token": 1, "x": 1}, 422, "unknown_field"),
        ("add", {"work_type": "x", "config": {"a": float("nan")}}, 400, "bad_json"),
        ("add", {"work_type": "x", "config": {"a": 2**60}}, 400, "bad_json"),
        ("add", {"work_type": "x", "config": {"a": b"raw"}}, 400, "bad_json"),
        ("add", {"work_type": "x", "config": {b"a": 1}}, 400, "bad_json"),
        ("add", {"work_type": "x", "config": {"a": 1, b"b": 2}}, 400, "bad_json"),
        ("add", {"work_type": "x", "folded": {"a": msgpack.ExtType(5, b"abc")}}, 400, "bad_json"),
        ("add", {"work_type": "x", b"folded": 1}, 400, "bad_json"),
        ("add", {"work_type": "x", "config": {"a": [[[]]] * 2, "b": _nested(40)}}, 400, "bad_json"),
        ("add_batch", {"items": [{"work_type": "x", "config": {"a": -(2**53)}}]}, 400, "bad_json"),
        ("complete", {"work_id": "a", "token": 1, "result": [float("inf")]}, 400, "bad_json"),
        ("complete", {"work_id": "a", "token": 1, "artifacts": b""}, 400, "bad_json"),
        ("renew", {"node_id": "w", "leases": [{"work_id": "a", "token": 1, "progress": 2**63}]}, 400, "bad_json"),
        ("add", {"work_type": "x", "idempotency_key": ""}, 422, "invalid_field"),
        ("add", {"work_type": "x", "idempotency_key": 5}, 422, "invalid_field"),
        ("add", {"work_type": "x", "config": {"a": "x" * 70_000}}, 413, "too_large"),
    ],
)
async def test_a_bad_call_is_refused_and_the_next_one_works(
    node: FakeNode, dial: Dial, verb: Any, body: Any, status: int, code: str
) -> None:
    caller = await dial.to(node)
    got, problem = await caller.call(verb, body)
    assert (got, problem["code"]) == (status, code)
    assert (await caller.call("add", SELFPLAY))[0] == 200


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        msgpack.packb({}),
        msgpack.packb([1]),
        msgpack.packb([["a", "add", {}]]),
        msgpack.packb([[1, "add"]]),
        msgpack.packb([[-1, "add", {}]]),
        b"\x91" * 2000,
        b"\xdd\x7f\xff\xff\xff",
        b"\x81\xa1a\x01\x02",
    ],
)
async def test_a_frame_that_is_none_ends_the_stream(node: FakeNode, dial: Dial, frame: bytes) -> None:
    caller = await dial.to(node)
    await caller.socket.send_bytes(frame)
    message = await caller.socket.receive(5)
    assert message.type is aiohttp.WSMsgType.CLOSE and message.data == 1002
    before = node.cluster.index
    assert node.cluster.index == before


async def test_who_may_do_what_holds_on_the_stream_too() -> None:
    tokens = {
        "w": Principal("worker-a", Role.WORKER, "a"),
        "s": Principal("sub", Role.SUBMITTER),
        "r": Principal("r", Role.READER),
    }
    async with one_node(credentials=Credentials(SECRET, tokens)) as node, Dial() as dial:
        worker, submitter = await dial.to(node, "w"), await dial.to(node, "s")
        assert (await worker.call("add", SELFPLAY))[1]["code"] == "forbidden"
        assert (await worker.call("claim", {"node_id": "b"}))[1]["code"] == "forbidden"
        assert (await worker.call("claim", {"node_id": "a"}))[0] == 200
        assert (await submitter.call("add", SELFPLAY))[0] == 200
        assert (await submitter.call("claim", {"node_id": "a"}))[1]["code"] == "forbidden"
        for token, status in {"r": 403, "wrong": 401}.items():
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await dial.to(node, token)
            assert refused.value.status == status
        # Only a node says for whom it asks.
        await worker.send([1, "add", SELFPLAY, ["admin", "admin", None], 5])
        assert (await worker.answers(1))[1][1]["code"] == "forbidden"


async def test_the_subprotocol_must_be_offered(node: FakeNode, dial: Dial) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await dial.to(node, protocol="other")
    assert refused.value.status == 400


async def test_an_unknown_outcome_is_504(node: FakeNode, dial: Dial) -> None:
    caller = await dial.to(node)
    node.consensus.fails = Indeterminate("no answer")
    status, problem = await caller.call("add", SELFPLAY)
    assert (status, problem["code"], problem["outcome"]) == (504, "commit_unknown", "unknown")


# Followers.


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    cluster = FakeCluster()
    for node_id in ("n1", "n2", "n3"):
        await cluster.add_node(node_id, **{"http.request_timeout_s": "2"})
    cluster.lead("n1")
    yield cluster
    await cluster.close()


async def test_a_follower_carries_calls_to_the_leader(cluster: FakeCluster, dial: Dial) -> None:
    first, second = await dial.to(cluster.nodes["n2"]), await dial.to(cluster.nodes["n2"])
    await first.send(*[[i, "add", SELFPLAY] for i in range(100)])
    await second.send(*[[i, "add", SELFPLAY] for i in range(100)])
    answers = [await first.answers(100), await second.answers(100)]
    assert all(status == 200 for one in answers for status, _ in one.values())
    assert len({body["work_id"] for one in answers for _, body in one.values()}) == 200
    adds = [command for command in cluster.proposed if isinstance(command.op, Add)]
    assert all(command.key is not None for command in adds)
    assert (await first.call("start", {"work_id": "nobody", "token": 1}))[1]["code"] == "not_found"


async def test_a_claim_that_waits_at_the_leader_ends_with_its_client(cluster: FakeCluster, dial: Dial) -> None:
    gone, other = await dial.to(cluster.nodes["n2"]), await dial.to(cluster.nodes["n2"])
    await gone.send([1, "claim", {"node_id": "w1", "wait_s": 20}])
    await other.send([1, "claim", {"node_id": "w2", "wait_s": 20}])
    leader = cluster.nodes["n1"].replica
    await until(lambda: leader.waiting == 2)
    await gone.socket.close()
    await until(lambda: leader.waiting == 1)
    await other.send([2, "add", SELFPLAY])
    answers = await other.answers(2)
    assert answers[1][1]["work"]["work_id"] == answers[2][1]["work_id"]


async def test_a_claim_whose_client_goes_before_it_waits_never_does(node: FakeNode, dial: Dial) -> None:
    gone = await dial.to(node)
    propose, tried = node.consensus.propose, []

    def slow(command: Any, *, deadline_s: float) -> asyncio.Future[Any]:
        tried.append((asyncio.get_running_loop().create_future(), propose(command, deadline_s=deadline_s)))
        return tried[-1][0]

    node.consensus.propose = slow
    await gone.send([1, "claim", {"node_id": "w1", "wait_s": 20}])
    await until(lambda: tried)
    await gone.socket.close()
    [(first, outcome)] = tried
    first.set_result(await outcome)
    for _ in range(5):
        await asyncio.sleep(0)
    assert node.replica.waiting == 0


async def test_principals_travel_with_their_calls() -> None:
    cluster = FakeCluster()
    tokens = {"w": Principal("worker-a", Role.WORKER, "a")}
    for node_id in ("n1", "n2"):
        await cluster.add_node(node_id, credentials=Credentials(SECRET, tokens))
    cluster.lead("n1")
    async with Dial() as dial:
        worker = await dial.to(cluster.nodes["n2"], "w")
        assert (await worker.call("claim", {"node_id": "a"}))[0] == 200
        claims = [command for command in cluster.proposed if command.key is not None]
        assert claims[-1].key is not None and claims[-1].key.principal == "worker-a"
        assert (await worker.call("claim", {"node_id": "b"}))[1]["code"] == "forbidden"
    await cluster.close()


async def test_a_change_of_leader_loses_no_call_and_doubles_none(cluster: FakeCluster, dial: Dial) -> None:
    caller = await dial.to(cluster.nodes["n2"])
    added: list[str] = []
    for leader in ("n1", "n3", "n2", "n3", "n1"):
        await caller.send(*[[i, "add", SELFPLAY] for i in range(50)])
        cluster.lead(leader)
        answers = await caller.answers(50)
        assert {status for status, _ in answers.values()} == {200}
        added += [body["work_id"] for _, body in answers.values()]
    machine = cluster.nodes["n1"].replica.machine
    assert len(set(added)) == 250 == machine.work_status()["total_items"]


async def test_a_leader_that_dies_unanswered_is_asked_again_with_the_same_key(cluster: FakeCluster, dial: Dial) -> None:
    caller = await dial.to(cluster.nodes["n2"])
    await caller.call("add", SELFPLAY)
    leader = cluster.nodes["n1"]
    # It takes the call and answers nothing.
    waiting: list[asyncio.Future[Any]] = []

    def mute(command: Any, *, deadline_s: float) -> asyncio.Future[Any]:
        cluster.append(command)
        waiting.append(asyncio.get_running_loop().create_future())
        return waiting[-1]

    leader.consensus.propose = mute
    await caller.send([7, "add", {**SELFPLAY, "work_id": "one"}])
    await until(lambda: waiting)
    assert leader.server is not None
    cluster.lead("n3")
    await leader.server.close()
    status, body = (await caller.answers(1))[7]
    assert (status, body["status"], body["work_id"]) == (200, "added", "one")
    for future in waiting:
        future.cancel()


async def test_without_a_leader_a_call_waits_and_then_is_503(cluster: FakeCluster, dial: Dial) -> None:
    caller = await dial.to(cluster.nodes["n2"])
    cluster.lead(None)
    await caller.send([1, "add", SELFPLAY])
    await asyncio.sleep(0.1)
    cluster.lead("n3")
    assert (await caller.answers(1))[1][0] == 200
    cluster.lead(None)
    status, problem = await caller.call("add", SELFPLAY)
    assert (status, problem["code"], problem["outcome"]) == (503, "no_leader", "not_applied")


async def test_a_worker_pipes_its_stream_to_the_cluster(cluster: FakeCluster, dial: Dial) -> None:
    worker = await cluster.add_node("w1", is_worker=True)
    worker.cluster_addresses = ["http://127.0.0.1:1", cluster.nodes["n2"].url]
    caller = await dial.to(worker)
    await caller.send(*[[i, "add", SELFPLAY] for i in range(20)])
    assert {status for status, _ in (await caller.answers(20)).values()} == {200}


async def test_a_pipe_leaves_nothing_behind_when_its_client_goes(cluster: FakeCluster, dial: Dial) -> None:
    worker = await cluster.add_node("w1", is_worker=True)
    worker.cluster_addresses = [cluster.nodes["n2"].url]
    caller = await dial.to(worker)
    await caller.send([1, "add", SELFPLAY])
    await caller.answers(1)

    def piping() -> int:
        return sum(1 for task in asyncio.all_tasks() if task.get_name().startswith("pipe-"))

    assert piping() == 3
    caller.socket.get_extra_info("socket").shutdown(SHUT_RDWR)
    await caller.socket.receive(5)  # its own end has noticed, too
    await until(lambda: piping() == 0)


async def test_a_node_that_stops_closes_its_streams(node: FakeNode, dial: Dial) -> None:
    caller = await dial.to(node)
    assert node.server is not None
    closing = asyncio.create_task(node.server.close())
    message = await caller.socket.receive(5)
    assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    await closing
