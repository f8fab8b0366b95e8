"""The worker against a real node: one voter in this process."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ringraft.client import Client
from ringraft.config import load_settings
from ringraft.node.app import Node
from ringraft.worker.runtime import Worker
from tests.worker.kit import ENVIRONMENT, WORKLOADS, Config, alive, until

WAIT_S = 20.0


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    settings = load_settings(
        {
            "node.node_id": "n1",
            "node.bind": "127.0.0.1:0",
            "node.data_dir": str(tmp_path / "n1"),
            "node.roles": ["voter"],
            "lease.min_s": 0.1,
        },
        env={},
    )
    node = Node(settings)
    await node.start()
    yield node
    await node.stop(graceful=False)


@pytest.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    async with Client([node.url]) as client:
        yield client


@asynccontextmanager
async def working(client: Client, data_dir: Path, config: Config, incarnation: int = 1) -> AsyncIterator[Worker]:
    worker = Worker(
        node_id="w1", incarnation=incarnation, data_dir=data_dir, client=client, config=config, poll_s=0.2
    )  # fmt: skip
    await worker.start()
    yield worker
    await worker.stop(drain_s=0)


@asynccontextmanager
async def serving(node: Node, data_dir: Path, incarnation: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in a process of its own."""
    arguments = ("-m", "tests.worker.service", node.url, str(data_dir), str(incarnation))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=ENVIRONMENT, stderr=asyncio.subprocess.PIPE
    )
    yield process
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def item_when(client: Client, work_id: str, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Poll an item until the condition holds."""
    async with asyncio.timeout(WAIT_S):
        while True:
            item: dict[str, Any] = await client.get(f"/work/item/{work_id}")
            if condition(item):
                return item
            await asyncio.sleep(0.02)


async def finished(client: Client, work_id: str) -> dict[str, Any]:
    item: dict[str, Any] = await client.get(f"/work/item/{work_id}", params={"wait_s": WAIT_S}, wait_s=WAIT_S)
    return item


async def test_real_items_are_run(client: Client, tmp_path: Path) -> None:
    pytest.importorskip("pyspiel")
    config = Config(WORKLOADS, lease_s=1.0, slots=2)
    async with working(client, tmp_path / "w1", config) as worker:
        games = {"board_type": "connect_four", "num_games": 3, "simulations": 4}
        await client.post("/work/add", {"work_type": "selfplay", "work_id": "sp", **games})
        await client.post("/work/add", {"work_type": "selfplay", "work_id": "bad", "board_type": "hex8", "games": 3})
        await client.post("/work/add", {"work_type": "crash", "work_id": "crash", "max_attempts": 1})
        played = await finished(client, "sp")
        assert played["state"] == "COMPLETED"
        assert played["result"]["games"] == 3
        assert len(played["result"]["moves"]) == 3
        assert played["artifacts"][0]["sha256"] == played["result"]["sha256"]
        assert [entry["outcome"] for entry in played["history"]] == ["completed"]
        refused = await finished(client, "bad")
        assert (refused["state"], refused["attempt"]) == ("FAILED", 1)
        assert "'games' is not known here; did you mean 'num_games'?" in str(refused["error"])
        crashed = await finished(client, "crash")
        assert "OSError: no space" in str(crashed["error"])
        assert worker.log_path("crash") is not None


async def test_a_cancelled_item_is_stopped(client: Client, tmp_path: Path) -> None:
    async with working(client, tmp_path / "w1", Config(WORKLOADS, lease_s=0.3)) as worker:
        await client.post("/work/add", {"work_type": "family", "work_id": "f"})
        item = await item_when(client, "f", lambda item: item["progress"])
        await client.post("/work/cancel", {"work_id": "f"})
        await until(lambda: not worker.status()["running"])
        assert not any(alive(pid) for pid in item["progress"]["pids"])
        assert (await client.get("/work/item/f"))["state"] == "CANCELLED"


async def test_a_stop_releases_without_spending_an_attempt(client: Client, tmp_path: Path) -> None:
    async with working(client, tmp_path / "w1", Config(WORKLOADS, lease_s=5.0)) as worker:
        await client.post("/work/add", {"work_type": "wait", "work_id": "w", "until": str(tmp_path / "never")})
        await item_when(client, "w", lambda item: item["state"] == "RUNNING")
        await worker.stop(drain_s=0)
        item = await client.get("/work/item/w")
    assert (item["state"], item["attempt"], item["lease"]) == ("PENDING", 0, None)
    assert item["history"][-1]["outcome"] == "released"


async def test_a_killed_worker_comes_back_and_its_items_are_free_at_once(
    node: Node, client: Client, tmp_path: Path
) -> None:
    await client.post("/work/add", {"work_type": "wait", "work_id": "w", "until": str(tmp_path / "go")})
    async with serving(node, tmp_path / "w1", 1) as first:
        pid = (await item_when(client, "w", lambda item: item["progress"]))["progress"]["pid"]
        first.kill()
        await first.wait()
    async with serving(node, tmp_path / "w1", 2):
        again = await item_when(client, "w", lambda item: item["progress"] and item["progress"]["pid"] != pid)
        assert again["attempt"] == 1
        assert not alive(pid)
        (tmp_path / "go").touch()
        done = await finished(client, "w")
    assert done["state"] == "COMPLETED"
    assert done["history"][-1]["outcome"] == "completed"


async def test_a_worker_paused_beyond_its_lease_loses_to_the_next_holder(
    node: Node, client: Client, tmp_path: Path
) -> None:
    await client.post("/work/add", {"work_type": "wait", "work_id": "z", "until": str(tmp_path / "go")})
    async with serving(node, tmp_path / "w1", 1) as zombie:
        item = await item_when(client, "z", lambda item: item["progress"])
        zombie.send_signal(signal.SIGSTOP)
        await item_when(client, "z", lambda item: item["state"] == "PENDING")
        # The paused worker may have a long poll of its own waiting: then it is granted the item once more,
        # and w2 gets it when that lease has ended too.
        claim = {"node_id": "w2", "lease_s": 60, "wait_s": WAIT_S}
        granted = await client.post("/work/claim", claim, wait_s=WAIT_S)
        token = granted["work"]["lease"]["token"]
        assert token > item["lease"]["token"]
        (tmp_path / "go").touch()
        zombie.send_signal(signal.SIGCONT)
        assert zombie.stderr is not None
        async with asyncio.timeout(WAIT_S):
            while b"action=report_refused" not in (line := await zombie.stderr.readline()):
                if b"action=run_stopped work_id=z" in line:
                    break
        assert (await client.get("/work/item/z"))["lease"]["token"] == token
        await client.post("/work/complete", {"work_id": "z", "token": token, "result": {"by": "w2"}})
    done = await client.get("/work/item/z")
    assert (done["state"], done["result"]) == ("COMPLETED", {"by": "w2"})
