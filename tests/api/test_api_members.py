"""Adding and removing voters over REST; the log applies at once here, so nobody ever catches up by itself."""

from __future__ import annotations

import asyncio

import pytest

from ringraft.state.commands import AdmitVoter
from ringraft.state.model import Command
from tests.api.fake_node import Asker, FakeCluster, FakeNode, one_node


async def members(asker: Asker) -> dict[str, str]:
    status, body, _ = await asker.get("/raft/members")
    assert status == 200
    return {row["node_id"]: row["role"] for row in body["items"]}


async def test_a_voter_is_added_as_a_learner_and_removed_again() -> None:
    async with one_node() as node, Asker(node) as asker:
        assert await members(asker) == {"n1": "voter"}
        status, body, _ = await asker.post("/raft/members/n2", {"address": "127.0.0.1:8771"})
        assert (status, body["role"], body["address"]) == (202, "learner", "127.0.0.1:8771")
        status, body, _ = await asker.post("/raft/members/n2", {"address": "127.0.0.1:8771"})
        assert status == 202, "a repeat says how far it is"
        assert await members(asker) == {"n1": "voter", "n2": "learner"}
        status, body, _ = await asker.ask("DELETE", "/raft/members/n2")
        assert (status, body["status"], body["node_id"]) == (200, "removed", "n2")
        status, body, _ = await asker.ask("DELETE", "/raft/members/n2")
        assert (status, body["code"]) == (404, "not_found")
        status, body, _ = await asker.ask("DELETE", "/raft/members/n1")
        assert (status, body["code"]) == (409, "conflict")
        assert "last voter" in body["detail"]


async def test_adding_waits_for_the_admission_when_asked_to() -> None:
    async with one_node() as node, Asker(node) as asker:
        asking = asyncio.create_task(asker.post("/raft/members/n2?wait_s=30", {"address": "127.0.0.1:8771"}))
        table = node.replica.machine.tables
        while "n2" not in table.voters:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)
        admission = AdmitVoter("n2", "d2", 1, 2, "127.0.0.1:8771", table.voters_index)
        node.cluster.append(Command(admission))
        status, body, _ = await asking
        assert (status, body["role"], body["data_id"]) == (200, "voter", "d2")


@pytest.mark.parametrize("address", ["", "n2", "n2:0", "http://n2:1", "n2:99999", "n 2:1", 5, None])
async def test_an_address_that_nobody_can_dial_is_refused(address: object) -> None:
    async with one_node() as node, Asker(node) as asker:
        status, body, _ = await asker.post("/raft/members/n2", {"address": address})
        assert (status, body["code"]) == (422, "invalid_field")


async def test_an_address_that_is_none_is_told_in_words() -> None:
    async with one_node() as node, Asker(node) as asker:
        _, body, _ = await asker.post("/raft/members/n2", {"address": "n2:99999"})
        assert body["detail"] == "/address 'n2:99999' is not host:port, with a port from 1 to 65535"


async def test_a_voter_stays_without_whom_too_few_would_answer() -> None:
    cluster = FakeCluster()
    nodes: list[FakeNode] = [await cluster.add_node(name) for name in ("n1", "n2", "n3")]
    try:
        cluster.lead("n1")
        cluster.form()
        cluster.is_connected = False
        async with Asker(nodes[0]) as asker:
            status, body, _ = await asker.ask("DELETE", "/raft/members/n2")
            assert (status, body["code"]) == (409, "conflict")
            assert body["detail"] == (
                "without n2 the voters are n1, n3: 2 must answer, and n3 cannot be reached now; "
                "start or remove those first"
            )
            assert sorted(nodes[0].replica.machine.tables.voters) == ["n1", "n2", "n3"]
            cluster.is_connected = True
            status, body, _ = await asker.ask("DELETE", "/raft/members/N2")
        assert status == 200, body
    finally:
        await cluster.close()


async def test_a_leader_that_is_removed_hands_over_first() -> None:
    cluster = FakeCluster()
    nodes: list[FakeNode] = [await cluster.add_node(name) for name in ("n1", "n2")]
    try:
        cluster.lead("n1")
        cluster.form()
        async with Asker(nodes[0]) as asker:
            status, body, _ = await asker.ask("DELETE", "/raft/members/n1")
        assert status == 200, body
        assert cluster.leader == "n2"
        assert list(nodes[1].replica.machine.tables.voters) == ["n2"]
    finally:
        await cluster.close()
