"""A worker process that is killed with -9, or told to end, over real HTTP."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from tests.worker.cluster import FakeCluster
from tests.worker.kit import ENVIRONMENT, alive, until

Process = asyncio.subprocess.Process
Launch = Callable[[int], Awaitable[Process]]


@pytest.fixture
async def launch(cluster: FakeCluster, tmp_path: Path) -> AsyncIterator[Launch]:
    """Starts the worker as a process against ``cluster``; ends it at the end."""
    async with launching(cluster, tmp_path) as start:
        yield start


@asynccontextmanager
async def launching(cluster: FakeCluster, tmp_path: Path) -> AsyncIterator[Launch]:
    started: list[Process] = []
    async with TestServer(cluster.application()) as server:

        async def start(incarnation: int) -> Process:
            address = f"127.0.0.1:{server.port}"
            arguments = ("-m", "tests.worker.service", address, str(tmp_path / "data"), str(incarnation))
            process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=ENVIRONMENT)
            started.append(process)
            return process

        yield start
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_kill_9_loses_no_result_and_leaves_nothing_running(
    cluster: FakeCluster, launch: Launch, tmp_path: Path
) -> None:
    first = await launch(1)
    cluster.add("done", "answer", {"n": 4})
    cluster.add("running", "family")
    pids = (await until(lambda: cluster.progress.get("running")))["pids"]
    cluster.add("spooled", "wait", {"until": str(tmp_path / "go")})
    await until(lambda: cluster.state("done") == "COMPLETED" and "spooled" in cluster.progress)
    cluster.away = True
    (tmp_path / "go").touch()
    results = tmp_path / "data" / "spool" / "results"
    await until(lambda: list(results.glob("*.json")))
    first.send_signal(signal.SIGKILL)
    await first.wait()
    await until(lambda: not alive(pids[0]))  # its child may outlive it until the next start

    cluster.away = False
    asked = len(cluster.calls)
    second = await launch(2)
    await until(lambda: cluster.state("spooled") == "COMPLETED")
    await until(lambda: "/work/claim" in cluster.paths()[asked:])
    paths = cluster.paths()[asked:]
    assert paths.index("/work/complete") < paths.index("/nodes/register") < paths.index("/work/claim")
    assert [body["work_id"] for body in cluster.reports["complete"]] == ["done", "spooled"]
    assert not any(alive(pid) for pid in pids)
    assert list(results.iterdir()) == []

    cluster.add("last", "wait", {"until": str(tmp_path / "never")})
    await until(lambda: "last" in cluster.progress)
    second.send_signal(signal.SIGTERM)
    assert await second.wait() == 0
    assert [body["work_id"] for body in cluster.reports["release"]] == ["last"]
    assert not alive(cluster.progress["last"]["pid"])
