"""The running cluster: three real processes, killed and restarted."""

import asyncio
import json
import os
import signal
import socket
import stat

import aiohttp
import psutil
import pytest

from tests.node.processes import Cluster, VoterProcess, eventually_some, free_ports

ITEM = {"work_type": "selfplay", "board_type": "hex8", "num_players": 2, "num_games": 10}


async def add(cluster, node_id, key):
    """Add one item; True when it was acknowledged."""
    try:
        status, body = await cluster.post(
            node_id, "/work/add?timeout_s=5", ITEM | {"work_id": key}, **{"Idempotency-Key": key}
        )
    except (aiohttp.ClientError, TimeoutError):
        return False
    return status == 200 and body["status"] in ("added", "exists")


async def held(cluster, node_id):
    """Every item id the node holds."""
    found, cursor = set(), None
    while True:
        page = await cluster.get(node_id, f"/work/items?limit=1000{'&cursor=' + cursor if cursor else ''}")
        found |= {item["work_id"] for item in page["items"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return found


async def test_three_voters_elect_a_leader_and_take_writes_anywhere(tmp_path):
    async with Cluster(tmp_path) as cluster:
        for node_id, voter in cluster.voters.items():
            assert voter.ready == {
                "event": "ready", "node_id": node_id, "url": voter.url, "pid": voter.process.pid,
            }  # fmt: skip
            assert stat.S_IMODE(voter.data_dir.stat().st_mode) == 0o700
        leader = await cluster.leader()
        for node_id in cluster.voters:
            assert await add(cluster, node_id, f"on-{node_id}")

        async def agree():
            digests = await cluster.digests()
            return len(digests) == 1

        await eventually_some(agree)
        for node_id in cluster.voters:
            assert await held(cluster, node_id) == {"on-n1", "on-n2", "on-n3"}
        status = await cluster.get(leader, "/status")
        assert status["is_leader"]
        assert status["voters_alive"] == 3

        async def everybody_alive():
            return (await cluster.get(leader, "/status"))["alive_peers"] == 3

        await eventually_some(everybody_alive)


async def test_killing_the_leader_loses_no_acknowledged_write(tmp_path):
    async with Cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        survivors = [node_id for node_id in cluster.voters if node_id != leader]
        acknowledged, done = set(), asyncio.Event()

        async def write(node_id):
            number = 0
            while not done.is_set():
                number += 1
                key = f"{node_id}-{number}"
                await eventually_some(lambda key=key: add(cluster, node_id, key))
                acknowledged.add(key)

        writers = [asyncio.create_task(write(node_id)) for node_id in survivors]
        await eventually_some(lambda: _enough(acknowledged, 50))
        cluster.voters[leader].kill()
        before = len(acknowledged)
        await eventually_some(lambda: _enough(acknowledged, before + 50))
        done.set()
        await asyncio.gather(*writers)
        assert await cluster.leader(survivors) in survivors
        for node_id in survivors:
            await cluster.get(node_id, f"/work/item/{next(iter(acknowledged))}")
            assert acknowledged <= await eventually_some(lambda node_id=node_id: _all(cluster, node_id, acknowledged))
        cluster.voters[leader].start()
        cluster.voters[leader].wait_ready()
        assert acknowledged <= await eventually_some(lambda: _all(cluster, leader, acknowledged))


async def test_killing_all_and_restarting_them_keeps_every_acknowledged_write(tmp_path):
    async with Cluster(tmp_path, "--set", "raft.snapshot_entries=100") as cluster:
        await cluster.leader()
        keys = [f"k{number}" for number in range(300)]
        ends = await asyncio.gather(*(add(cluster, f"n{number % 3 + 1}", key) for number, key in enumerate(keys)))
        acknowledged = {key for key, done in zip(keys, ends, strict=True) if done}
        assert len(acknowledged) > 250
        terms = [(await cluster.get(node_id, "/status"))["term"] for node_id in cluster.voters]
        for voter in cluster.voters.values():
            voter.kill()
        cluster.start()
        await cluster.leader()
        assert await add(cluster, "n1", "after")
        for node_id in cluster.voters:
            assert acknowledged <= await eventually_some(lambda node_id=node_id: _all(cluster, node_id, acknowledged))
            assert (await cluster.get(node_id, "/status"))["term"] >= max(terms)
            assert json.loads((cluster.voters[node_id].data_dir / "cluster.json").read_text())["incarnation"] == 2


async def test_sigterm_hands_over_and_ends_with_0(tmp_path):
    async with Cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        survivors = [node_id for node_id in cluster.voters if node_id != leader]
        assert cluster.voters[leader].stop() == 0
        assert await cluster.leader(survivors) in survivors
        assert await add(cluster, survivors[0], "after")

        async def said_goodbye():
            return (await cluster.get(survivors[0], "/status"))["peers"][leader]["state"] == "left"

        await eventually_some(said_goodbye)


async def test_a_parked_claim_at_a_follower_outlives_the_leader(tmp_path):
    async with Cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        first, second = (node_id for node_id in cluster.voters if node_id != leader)
        claiming = asyncio.create_task(cluster.post(first, "/work/claim", {"node_id": "w1", "wait_s": 9}))

        async def parked():
            return (await cluster.get(leader, "/status"))["waiting_requests"] == 1

        await eventually_some(parked)
        cluster.voters[leader].kill()
        await eventually_some(lambda: add(cluster, second, "later"))
        status, body = await claiming
        assert (status, body["work"]["work_id"]) == (200, "later")


async def test_a_parked_claim_ends_with_its_client_through_any_node(tmp_path):
    async with Cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        follower = next(node_id for node_id in cluster.voters if node_id != leader)

        async def parked(count):
            return (await cluster.get(leader, "/status"))["waiting_requests"] == count

        gone = [
            asyncio.create_task(cluster.post(node_id, "/work/claim", {"node_id": "gone", "wait_s": 9}))
            for node_id in (leader, follower)
        ]
        await eventually_some(lambda: parked(2))
        for claiming in gone:
            claiming.cancel()
        await eventually_some(lambda: parked(0), 5)
        assert await add(cluster, follower, "for-the-living")
        status, body = await cluster.post(follower, "/work/claim", {"node_id": "w1"})
        assert (status, [item["work_id"] for item in body["items"]]) == (200, ["for-the-living"])


async def test_a_claim_parked_at_a_stopping_leader_goes_on_at_the_next(tmp_path):
    async with Cluster(tmp_path) as cluster:
        leader = await cluster.leader()
        other = next(node_id for node_id in cluster.voters if node_id != leader)
        claiming = asyncio.create_task(cluster.post(leader, "/work/claim", {"node_id": "w1", "wait_s": 9}))

        async def parked():
            return (await cluster.get(leader, "/status"))["waiting_requests"] == 1

        await eventually_some(parked)
        assert await asyncio.to_thread(cluster.voters[leader].stop) == 0
        try:
            status, body = await claiming
        except aiohttp.ClientError:
            return  # It may lose its connection, which tells a client to repeat: nothing was granted.
        assert (status, body.get("code")) in ((503, "shutting_down"), (504, "commit_unknown"), (200, None)), body
        assert await add(cluster, other, "after")


async def test_a_cluster_with_a_secret_works_together_and_lets_nobody_else_in(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a-secret-of-more-than-sixteen-characters")
    secret.chmod(0o600)
    async with Cluster(tmp_path, "--set", f"auth.secret_file={secret}") as cluster:
        leader = await cluster.leader()
        assert (await cluster.post("n1", "/work/add", ITEM))[0] == 401
        assert (await cluster.post("n1", "/nodes/heartbeat", {}))[0] == 401
        bearer = {"Authorization": f"Bearer {secret.read_text()}"}
        for node_id in cluster.voters:
            assert (await cluster.post(node_id, "/work/add", ITEM, **bearer))[0] == 200
        cluster.session.headers.update(bearer)

        async def everybody_alive():
            return (await cluster.get(leader, "/status"))["alive_peers"] == 3

        await eventually_some(everybody_alive)
        for voter in cluster.voters.values():
            assert secret.read_text() not in voter.errors()


async def test_a_finished_item_reaches_the_archive_and_a_parked_claim_its_work(tmp_path):
    voter = VoterProcess(
        tmp_path, "n1", "127.0.0.1:0", None, "--set", "queue.retention_s=1", "--set", "lease.min_s=0.2"
    )
    voter.start()
    voter.wait_ready()
    assert not voter.url.endswith(":0")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session:

        async def post(path, body):
            async with session.post(voter.url + path, json=body) as answer:
                assert answer.status == 200, await answer.text()
                return await answer.json()

        claiming = asyncio.create_task(post("/work/claim", {"node_id": "w1", "wait_s": 10}))
        await asyncio.sleep(0.1)
        await post("/work/add", ITEM | {"work_id": "parked"})
        work = (await claiming)["work"]
        assert work["work_id"] == "parked"
        await post("/work/complete", {"work_id": "parked", "token": work["lease"]["token"], "result": {"games": 10}})

        async def retired_and_archived():
            async with session.get(voter.url + "/work/items") as answer:
                if (await answer.json())["items"]:
                    return None
            async with session.get(voter.url + "/work/item/parked") as answer:
                return (await answer.json())["result"] == {"games": 10}

        await eventually_some(retired_and_archived)
        async with session.get(voter.url + "/work/history") as answer:
            assert [item["work_id"] for item in (await answer.json())["items"]] == ["parked"]
    assert voter.stop() == 0


def test_a_second_signal_ends_at_once_and_a_restart_works(tmp_path):
    voter = VoterProcess(tmp_path, "n1", "127.0.0.1:0")
    voter.start()
    voter.wait_ready()
    process = voter.process
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=10) in (0, 1)
    voter.kill()
    voter.start()
    voter.wait_ready()
    assert voter.stop() == 0


def test_starts_that_must_not_be_are_refused_with_a_sentence(tmp_path):
    first = VoterProcess(tmp_path, "n1", "127.0.0.1:0")
    first.start()
    first.wait_ready()
    address = first.url.removeprefix("http://")

    def refused(voter, said):
        code, out, errors = voter.run()
        assert (code, out) == (2, ""), errors
        assert said in errors
        assert "Traceback" not in errors

    refused(VoterProcess(tmp_path, "n9", address), "is in use")
    assert not (tmp_path / "n9").exists(), "a refused start leaves nothing behind"
    refused(VoterProcess(tmp_path, "n1", "127.0.0.1:0"), "in use by another process")
    assert first.stop() == 0
    before = (tmp_path / "n1" / "cluster.json").read_text()
    (tmp_path / "n1").rename(tmp_path / "n2")
    refused(VoterProcess(tmp_path, "n2", "127.0.0.1:0"), "belongs to node n1")
    refused(VoterProcess(tmp_path, "n3", f"0.0.0.0:{free_ports(1)[0]}"), "secret")
    assert (tmp_path / "n2" / "cluster.json").read_text() == before


def test_a_port_that_was_taken_between_is_said_with_the_port(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, errors = VoterProcess(tmp_path, "n1", f"127.0.0.1:{port}").run()
    assert code == 2
    assert f"port {port}" in errors


async def _enough(found, count):
    return len(found) >= count


async def _all(cluster, node_id, wanted):
    found = await held(cluster, node_id)
    return found if wanted <= found else None


@pytest.fixture(autouse=True)
def nothing_left_running():
    """Each process a test starts is a child of this one, so it can be counted."""
    yield
    assert not [child for child in psutil.Process().children() if "ringraft.cli.voter" in child.cmdline()]
