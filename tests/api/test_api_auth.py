"""Denied by default: every route, with no, a wrong and a too low credential."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ringraft.api.app import ROUTES
from ringraft.api.auth import INCLUDES, Credentials, Principal, Role
from ringraft.api.route import Route
from tests.api.fake_node import SECRET, Asker, FakeNode, one_node

TOKENS = {
    "submitter-token": Principal("submitter", Role.SUBMITTER),
    "worker-token": Principal("worker-a", Role.WORKER, "a"),
    "reader-token": Principal("reader", Role.READER),
    "peer-token": Principal("peer", Role.PEER),
}


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with one_node(credentials=Credentials(SECRET, TOKENS)) as node:
        yield node


def routes(node: FakeNode) -> list[Route]:
    assert node.server is not None and node.server.app is not None
    return node.server.app[ROUTES]


def path(route: Route) -> str:
    return route.path.replace("{id}", "x1").replace("{node_id}", "x1")


async def test_every_registered_path_is_in_the_table(node: FakeNode) -> None:
    assert node.server is not None and node.server.app is not None
    known = {(route.method, route.path) for route in routes(node)}
    for one in node.server.app.router.routes():
        method = "GET" if one.method == "HEAD" else one.method
        assert one.resource is not None
        assert (method, one.resource.canonical) in known
    assert all(route.roles for route in routes(node))


async def test_only_health_and_the_peers_own_handshake_are_open(node: FakeNode) -> None:
    assert {route.path for route in routes(node) if route.is_open} == {"/health", "/livez", "/readyz", "/raft/connect"}


@pytest.mark.parametrize(
    "credential", [None, "Bearer wrong", "Bearer ", f"Basic {SECRET}", SECRET, "Bearer " + "x" * 5000]
)
async def test_no_route_answers_a_stranger(node: FakeNode, credential: str | None) -> None:
    headers = {} if credential is None else {"Authorization": credential}
    before = node.cluster.index
    async with Asker(node, None) as asker:
        for route in routes(node):
            status, body, _ = await asker.ask(route.method, path(route), headers=headers, data=b"{}")
            if route.is_open:
                assert status != 401, route.path
            else:
                assert status == 401, (route.method, route.path)
                assert body["code"] == "unauthenticated"
        for unknown in ("/nope", "/admin/nope", "/work/add/x"):
            assert (await asker.get(unknown, headers=headers))[0] == 401
    assert node.cluster.index == before


@pytest.mark.parametrize("token", TOKENS)
async def test_a_role_opens_what_it_includes_and_nothing_else(node: FakeNode, token: str) -> None:
    async with Asker(node, token) as asker:
        for route in routes(node):
            status, body, _ = await asker.ask(route.method, path(route))
            if INCLUDES[TOKENS[token].role].isdisjoint(route.roles):
                assert (status, body["code"]) == (403, "forbidden"), route.path
            else:
                assert status not in (401, 403), (route.path, body)


async def test_a_worker_speaks_for_its_own_node_only(node: FakeNode) -> None:
    async with Asker(node) as admin, Asker(node, "worker-token") as worker:
        for name in ("one", "two"):
            await admin.post("/work/add", {"work_type": "selfplay", "work_id": name})
        assert (await worker.post("/work/claim", {"node_id": "b"}))[0] == 403
        assert (await worker.get("/work/claim?node_id=b"))[0] == 403
        assert (await worker.post("/work/renew", {"node_id": "b", "leases": []}))[0] == 403
        assert (await worker.post("/work/add", {"work_type": "selfplay"}))[0] == 403
        assert (await worker.post("/admin/shutdown", {}))[0] == 403
        _, claimed, _ = await admin.post("/work/claim", {"node_id": "b"})
        lease = {"work_id": claimed["work"]["work_id"], "token": claimed["work"]["lease"]["token"]}
        for verb, more in {"start": {}, "complete": {}, "fail": {"error": "x"}, "release": {}}.items():
            status, body, _ = await worker.post(f"/work/{verb}", {**lease, **more})
            assert (status, body["code"]) == (403, "forbidden"), verb
        _, own, _ = await worker.post("/work/claim", {"node_id": "A"})
        lease = {"work_id": own["work"]["work_id"], "token": own["work"]["lease"]["token"]}
        assert (await worker.post("/work/complete", lease))[0] == 200


async def test_a_worker_registers_and_beats_for_itself_only(node: FakeNode) -> None:
    body = {"node_id": "b", "incarnation": 1, "roles": ["worker"]}
    async with Asker(node, "worker-token") as worker:
        assert (await worker.post("/nodes/register", body))[0] == 403
        assert (await worker.post("/nodes/register", {**body, "node_id": "a"}))[0] == 200


async def test_admin_refuses_what_a_browser_was_tricked_into(node: FakeNode) -> None:
    async with Asker(node) as asker:
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
            status, body, _ = await asker.post("/admin/shutdown", {}, headers=headers)
            assert (status, body["code"]) == (403, "forbidden"), headers
        status, body, _ = await asker.ask("POST", "/admin/shutdown", data=b"{}", headers={"Content-Type": "text/plain"})
        assert status == 415
        assert not node.shutdowns
        for host in ("localhost:8770", "127.0.0.1:8770", "[::1]:8770"):
            assert (await asker.post("/admin/shutdown", {}, headers={"Host": host}))[0] == 200


async def test_without_a_secret_everyone_may_everything() -> None:
    async with one_node(secret=None) as node, Asker(node, None) as asker:
        assert (await asker.post("/work/add", {"work_type": "selfplay"}))[0] == 200
        assert (await asker.get("/status"))[0] == 200


async def test_two_authorization_headers_are_refused(node: FakeNode) -> None:
    async with Asker(node, None) as asker:
        headers = [("Authorization", f"Bearer {SECRET}"), ("Authorization", "Bearer x")]
        async with asker.session.get(node.url + "/status", headers=headers) as answer:
            assert answer.status == 401


async def test_an_authenticator_that_breaks_lets_nobody_in(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Principal:
        raise RuntimeError("the key store is gone")

    monkeypatch.setattr(Credentials, "principal", broken)
    async with Asker(node) as asker:
        status, body, _ = await asker.post("/work/add", {"work_type": "selfplay"})
    assert (status, body["code"]) == (500, "internal")
    assert "key store" not in str(body)
