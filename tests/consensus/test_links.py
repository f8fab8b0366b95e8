"""Real sockets on loopback and real directories: who may link, and a cluster that loses nodes and takes them back."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import msgpack
import pytest
from aiohttp import web

from ringraft.clock import SystemClock
from ringraft.consensus.base import NotLeader, Role, Unavailable
from ringraft.consensus.raft import RaftConsensus
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog import transport
from ringraft.consensus.replog.codec import Message, TimeoutNow, encode
from ringraft.consensus.replog.transport import VERSION, HandshakeError, PeerLinks
from ringraft.consensus.roll import Self
from ringraft.state.model import Done
from tests.consensus.raft_kit import Notes, note


class Secret:
    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text


class Ear:
    """A LinkListener that remembers."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Message]] = []
        self.up: set[str] = set()
        self.refused: list[str] = []

    def on_messages(self, peer_id: str, messages: list[Message]) -> None:
        self.messages += [(peer_id, message) for message in messages]

    def on_link(self, peer_id: str, is_up: bool) -> None:
        (self.up.add if is_up else self.up.discard)(peer_id)

    def on_refused(self, peer_id: str) -> None:
        self.refused.append(peer_id)

    def on_links_failed(self, error: Exception) -> None:
        raise error


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


async def until(holds: Callable[[], object], limit_s: float = 10.0) -> None:
    end_s = asyncio.get_running_loop().time() + limit_s
    while not holds():
        assert asyncio.get_running_loop().time() < end_s, f"not within {limit_s} s"
        await asyncio.sleep(0.005)


class Served:
    """Links with the server that accepts for them."""

    def __init__(self, links: PeerLinks, port: int) -> None:
        self.links, self.port, self.ear = links, port, Ear()
        self.runner: web.AppRunner

    async def start(self) -> "Served":
        app = web.Application()
        app.router.add_get("/raft/connect", self.links.accept_peer)
        self.runner = web.AppRunner(app, access_log=None)
        await self.links.start(self.ear)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        return self

    async def stop(self) -> None:
        await self.links.stop()
        await self.runner.cleanup()


def links(name: str, ports: list[int], *, secret: str | None = "s", cluster: str = "c") -> Served:
    addresses = {f"n{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports, 1)}
    own = int(name[1:]) - 1
    peers = {peer: address for peer, address in addresses.items() if peer != name}
    key = None if secret is None else Secret(secret)
    made = PeerLinks(node_id=name, address=addresses[name], cluster_id=cluster, secret=key)
    made.follow(peers)
    return Served(made, ports[own])


async def test_two_peers_link_both_ways_and_messages_keep_their_order() -> None:
    ports = free_ports(2)
    one, two = await links("n1", ports).start(), await links("n2", ports).start()
    await until(lambda: one.ear.up == {"n2"} and two.ear.up == {"n1"})
    for number in range(500):
        one.links.send("n2", encode(TimeoutNow(number)))
    two.links.send("n1", encode(TimeoutNow(7)))
    await until(lambda: len(two.ear.messages) == 500 and one.ear.messages)
    assert [message.term for _, message in two.ear.messages] == list(range(500))
    await one.stop()
    await until(lambda: not two.ear.up)
    await until(lambda: "n1" in two.ear.refused)
    await two.stop()


@pytest.mark.parametrize(
    "other",
    [{"secret": "another"}, {"secret": None}, {"cluster": "another"}],
    ids=["wrong secret", "no secret", "another cluster"],
)
async def test_a_stranger_is_not_linked(other: dict[str, str]) -> None:
    ports = free_ports(2)
    one, two = await links("n1", ports).start(), await links("n2", ports, **other).start()
    await asyncio.sleep(0.3)
    assert not one.ear.up
    assert not two.ear.up
    assert not one.ear.messages
    await one.stop()
    await two.stop()


async def test_a_node_at_anothers_address_is_not_linked() -> None:
    ports = free_ports(3)
    one = await links("n1", ports).start()
    three = await links("n3", [ports[0], ports[2], ports[1]]).start()  # sits where n1 looks for n2
    await asyncio.sleep(0.3)
    assert "n2" not in one.ear.up
    await one.stop()
    await three.stop()


@pytest.fixture
async def one() -> AsyncIterator[Served]:
    served = await links("n1", free_ports(2)).start()
    yield served
    await served.stop()


async def raw(served: Served) -> aiohttp.ClientWebSocketResponse:
    session = aiohttp.ClientSession()
    dialled = await session.ws_connect(f"http://127.0.0.1:{served.port}/raft/connect")
    dialled_close = dialled.close

    async def close() -> bool:
        closed = await dialled_close()
        await session.close()
        return closed

    dialled.close = close  # type: ignore[method-assign,assignment]
    return dialled


@pytest.mark.parametrize(
    "greeting",
    [
        b"\xc1 garbage",
        msgpack.packb([1, 2]),
        msgpack.packb({"version": VERSION}),
        msgpack.packb({"version": VERSION, "cluster": "c", "from": "n2", "to": "n1", "nonce": b"short"}),
        msgpack.packb({"version": VERSION, "cluster": "c", "from": "n9", "to": "n1", "nonce": b"n" * 16}),
        msgpack.packb({"version": VERSION, "cluster": "c", "from": ["n2"], "to": "n1", "nonce": b"n" * 16}),
        msgpack.packb({"version": VERSION, "cluster": "c", "from": "n2", "to": "n1", "nonce": b"n" * 16}),
        msgpack.packb({"version": 9, "cluster": "c", "from": "n2", "to": "n1", "nonce": b"n" * 16}),
        b"x" * 100_000,
    ],
)
async def test_a_greeting_that_does_not_fit_ends_the_connection(one: Served, greeting: bytes) -> None:
    dialled = await raw(one)
    await dialled.send_bytes(greeting)
    async with asyncio.timeout(3):
        while (await dialled.receive()).type is aiohttp.WSMsgType.BINARY:
            pass
    await dialled.close()
    assert not one.ear.messages


async def test_messages_before_the_proof_do_not_count(one: Served) -> None:
    dialled = await raw(one)
    hello = {"version": VERSION, "cluster": "c", "from": "n2", "to": "n1", "address": "a:1", "nonce": b"n" * 16}
    await dialled.send_bytes(msgpack.packb(hello))
    assert "nonce" in msgpack.unpackb((await dialled.receive()).data)
    await dialled.send_bytes(encode(TimeoutNow(1)))
    async with asyncio.timeout(3):
        while (await dialled.receive()).type is aiohttp.WSMsgType.BINARY:
            pass
    await dialled.close()
    assert not one.ear.messages


async def proven(served: Served) -> aiohttp.ClientWebSocketResponse:
    dialled = await raw(served)
    other = PeerLinks(node_id="n2", address="127.0.0.1:1", cluster_id="c", secret=Secret("s"))
    await other._prove_dialling(dialled, "n1")
    return dialled


async def test_garbage_after_the_proof_ends_the_connection(one: Served) -> None:
    dialled = await proven(one)
    await dialled.send_bytes(encode(TimeoutNow(1)))
    await dialled.send_bytes(b"\xc1")
    async with asyncio.timeout(3):
        while (await dialled.receive()).type is aiohttp.WSMsgType.BINARY:
            pass
    await dialled.close()
    assert [message for _, message in one.ear.messages] == [TimeoutNow(1)]


async def test_a_peer_that_gave_up_before_it_was_accepted_is_no_fault(
    one: Served, caplog: pytest.LogCaptureFixture
) -> None:
    request = (
        "GET /raft/connect HTTP/1.1\r\nHost: n1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", one.port)) as gone:
            gone.sendall(request.encode())
    await asyncio.sleep(0.2)
    assert not [record for record in caplog.records if record.name == "aiohttp.server"]


async def test_a_newer_connection_replaces_the_older() -> None:
    served = await links("n1", free_ports(2)).start()
    older = await proven(served)
    newer = await proven(served)
    async with asyncio.timeout(3):
        assert (await older.receive()).type is not aiohttp.WSMsgType.BINARY
    await newer.send_bytes(encode(TimeoutNow(2)))
    await until(lambda: served.ear.messages)
    assert served.ear.messages == [("n2", TimeoutNow(2))]
    await older.close()
    await newer.close()
    await served.stop()


async def test_a_proven_peer_that_nobody_named_is_linked_for_as_long_as_it_stays() -> None:
    ports = free_ports(2)
    one, two = links("n1", ports), links("n2", ports)
    one.links.follow({})
    await one.start()
    await two.start()
    await until(lambda: one.ear.up == {"n2"} and two.ear.up == {"n1"})
    one.links.send("n2", encode(TimeoutNow(1)))
    await until(lambda: two.ear.messages)
    await two.stop()
    await until(lambda: not one.ear.up)
    assert not one.links._outgoing
    await one.stop()


async def test_there_are_only_so_many_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "GUESTS_MAX", 0)
    ports = free_ports(2)
    one, two = links("n1", ports), links("n2", ports)
    one.links.follow({})
    await one.start()
    await two.start()
    await asyncio.sleep(0.3)
    assert not one.ear.up and not two.ear.up
    await one.stop()
    await two.stop()


async def test_a_peer_is_dialled_where_it_says_it_is() -> None:
    ports = free_ports(3)
    one, two = links("n1", ports), links("n2", ports)
    one.links.follow({"n2": f"127.0.0.1:{ports[2]}"})
    await one.start()
    await two.start()
    await until(lambda: one.ear.up == {"n2"})
    await one.stop()
    await two.stop()


async def test_an_address_that_is_none_ends_a_dial_and_nothing_else() -> None:
    served = links("n1", free_ports(2))
    served.links.follow({"n2": "[:]:1", "n3": "a b:1", "n4": "nowhere"})
    await served.start()
    await asyncio.sleep(0.2)
    assert not served.ear.up
    await served.stop()


async def test_a_link_that_fell_too_far_behind_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "WAITING_BYTES_MAX", 1000)
    ports = free_ports(2)
    one, two = await links("n1", ports).start(), await links("n2", ports).start()
    await until(lambda: one.ear.up == {"n2"} and two.ear.up == {"n1"})
    for number in range(1000):
        one.links.send("n2", encode(TimeoutNow(number)))
    assert not one.ear.up
    await until(lambda: one.ear.up)
    one.links.send("n2", encode(TimeoutNow(7)))
    await until(lambda: two.ear.messages[-1:] == [("n1", TimeoutNow(7))])
    await one.stop()
    await two.stop()


async def test_the_proof_depends_on_every_part() -> None:
    links_of = PeerLinks(node_id="n1", address="a:1", cluster_id="c", secret=Secret("s"))
    good = links_of._proof(b"dial", "n1", "n2", b"a" * 16, b"b" * 16)
    others = [
        links_of._proof(b"accept", "n1", "n2", b"a" * 16, b"b" * 16),
        links_of._proof(b"dial", "n2", "n1", b"a" * 16, b"b" * 16),
        links_of._proof(b"dial", "n1", "n2", b"b" * 16, b"a" * 16),
        PeerLinks(node_id="n1", address="a:1", cluster_id="d", secret=Secret("s"))._proof(
            b"dial", "n1", "n2", b"a" * 16, b"b" * 16
        ),
        PeerLinks(node_id="n1", address="a:1", cluster_id="c", secret=Secret("t"))._proof(
            b"dial", "n1", "n2", b"a" * 16, b"b" * 16
        ),
    ]
    assert good not in others
    assert len(set(others)) == len(others)
    assert issubclass(HandshakeError, Exception)


class RealNode:
    """A RaftConsensus with its server."""

    def __init__(self, name: str, voters: dict[str, str], directory: Path, incarnation: int = 1) -> None:
        self.state = Notes()
        self.consensus = RaftConsensus(
            own=Self(name, voters[name], f"{name}-1", incarnation),
            voters=voters,
            data_dir=directory / name,
            replicated=self.state,
            config=RaftConfig(snapshot_entries=50, segment_bytes=64 * 1024),
            secret=Secret("s"),
            cluster_id="c",
            clock=SystemClock(),
            rng=random.Random(),
        )
        self.port = int(voters[name].rpartition(":")[2])
        self.runner: web.AppRunner

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/raft/connect", self.consensus.accept_peer)
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        await self.consensus.start()

    async def stop(self) -> None:
        await self.consensus.stop()
        await self.runner.cleanup()


async def write(nodes: dict[str, RealNode], text: str) -> None:
    async with asyncio.timeout(10):
        while True:
            for node in list(nodes.values()):
                if node.consensus.status().role is Role.LEADER:
                    try:
                        outcome = await node.consensus.propose(note(text), deadline_s=2)
                    except (NotLeader, Unavailable):
                        continue
                    assert isinstance(outcome, Done)
                    return
            await asyncio.sleep(0.005)


async def test_a_real_cluster_loses_its_leader_and_takes_it_back(tmp_path: Path) -> None:
    voters = {f"n{number}": f"127.0.0.1:{port}" for number, port in enumerate(free_ports(3), 1)}
    nodes = {name: RealNode(name, voters, tmp_path) for name in voters}
    for node in nodes.values():
        await node.start()
    for number in range(30):
        await write(nodes, f"a{number}")
    leader = next(name for name, node in nodes.items() if node.consensus.status().role is Role.LEADER)
    await nodes.pop(leader).stop()
    for number in range(100):
        await write(nodes, f"b{number}")
    nodes[leader] = RealNode(leader, voters, tmp_path, 2)
    await nodes[leader].start()
    await write(nodes, "last")
    expected = [*(f"a{number}" for number in range(30)), *(f"b{number}" for number in range(100)), "last"]
    await until(lambda: all(node.state.notes == expected for node in nodes.values()))
    index = await nodes[leader].consensus.read_barrier(deadline_s=2)
    assert nodes[leader].consensus.applied_index >= index
    for node in nodes.values():
        await node.stop()
    nodes = {name: RealNode(name, voters, tmp_path, 3) for name in voters}
    for node in nodes.values():
        await node.start()
    await write(nodes, "after all")
    await until(lambda: all(node.state.notes == [*expected, "after all"] for node in nodes.values()))
    for node in nodes.values():
        await node.stop()
