"""The local cluster of the command line, with what a measurement needs besides: CPU, kills, restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from ringraft.cli.local import LocalCluster
from ringraft.client import Client, ClientError

SETTLE_S = 30.0
"""How long a cluster may take to elect a leader or to bring a restarted voter up to date."""
POLL_S = 0.05


class Cluster:
    """Voter processes on loopback in a directory of their own, gone at the end.

    >>> async with Cluster(voters=3) as cluster:
    ...     leader = await cluster.wait_leader()
    """

    def __init__(self, voters: int, settings: dict[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ringraft-bench-", ignore_cleanup_errors=True)
        self._local = LocalCluster(Path(self._folder.name), voters, workers=0, assignments=settings or {})
        self._client: Client | None = None

    async def __aenter__(self) -> Cluster:
        await self._local.start()
        self._client = Client(self._local.urls(), timeout_s=SETTLE_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()
        await self._local.stop()
        self._folder.cleanup()

    @property
    def voters(self) -> list[str]:
        """The node ids, running or not."""
        return [node.node_id for node in self._local.voter_nodes()]

    def url(self, node_id: str) -> str:
        """Where a voter listens, also while it is down."""
        return self._local.nodes[node_id].url

    def pids(self) -> list[int]:
        """The processes of the running voters."""
        return [node.pid for node in self._local.voter_nodes() if node.is_running]

    def cpu_s(self) -> float:
        """CPU seconds that the running voters have used so far."""
        times = [psutil.Process(pid).cpu_times() for pid in self.pids()]
        return sum(used.user + used.system for used in times)

    def signal(self, node_id: str, number: signal.Signals) -> None:
        """Send a voter's process a signal."""
        os.kill(self._local.nodes[node_id].pid, number)

    async def restart(self, node_id: str) -> None:
        """Start a killed voter again and wait until it is ready."""
        node = self._local.nodes[node_id]
        await node.stop()
        await node.start()

    async def statuses(self) -> dict[str, dict[str, Any]]:
        """``/status`` of each voter that answers."""
        assert self._client is not None
        found = {}
        for node in self._local.voter_nodes():
            if node.is_running:
                try:
                    found[node.node_id] = await self._client.get("/status", address=node.url, deadline_s=1.0)
                except ClientError:
                    continue
        return found

    async def wait_leader(self) -> str:
        """The leader that every running voter agrees on. TimeoutError when there is none in time."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                statuses = await self.statuses()
                leaders = {status["leader_id"] for status in statuses.values()}
                running = sum(node.is_running for node in self._local.voter_nodes())
                if len(statuses) == running and len(leaders) == 1 and None not in leaders:
                    return str(leaders.pop())
                await asyncio.sleep(POLL_S)

    async def wait_caught_up(self) -> None:
        """Every voter runs and has applied what the most advanced one had committed when this was called."""
        async with asyncio.timeout(SETTLE_S):
            goal = max(status["commit_index"] for status in (await self.statuses()).values())
            while True:
                applied = [status["applied_index"] for status in (await self.statuses()).values()]
                if len(applied) == len(self.voters) and min(applied) >= goal:
                    return
                await asyncio.sleep(POLL_S)
