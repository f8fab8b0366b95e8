"""What befalls real voters: kill -9, SIGSTOP and SIGTERM, of the leader, of one, of a majority, of all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter

from chaos.disk.nodes import VoterProcess, Voters
from ringraft.client import Client, ClientError

PAUSE_S = (0.3, 4.0)
STOPS_S = (0.1, 0.5, 1.0, 2.5, 7.0)
"""Shorter than a heartbeat, about an election, longer than a lease."""
DOWN_S = (0.0, 0.2, 1.0, 3.0)
TERM_S = 20.0
KINDS = ("kill_leader", "kill_one", "kill_majority", "kill_all", "stop_leader", "stop_one", "stop_majority",
         "flap", "stop_leader_kill_one", "term_leader", "term_one", "election")  # fmt: skip


class Nemesis:
    """One trouble after the other; ``counts`` says which."""

    def __init__(self, voters: Voters, client: Client, rng: random.Random) -> None:
        self._voters = voters
        self._client = client
        self._rng = rng
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    async def run(self, until_s: float) -> None:
        """Until the loop's clock shows ``until_s``; then every voter runs."""
        now_s = asyncio.get_running_loop().time
        while now_s() < until_s:
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))
            kind = self._rng.choice(KINDS)
            self.counts[kind] += 1
            await self._trouble(kind)
            self.faults += [
                f"{node.node_id} ended by itself: {node.log_tail()}" for node in self._nodes() if not node.is_running
            ]
            if self.faults:
                return

    def _nodes(self) -> list[VoterProcess]:
        return list(self._voters.nodes.values())

    async def _trouble(self, kind: str) -> None:
        nodes, rng = self._nodes(), self._rng
        leader = await self._leader()
        others = [node for node in nodes if node is not leader]
        majority = rng.sample(nodes, len(nodes) // 2 + 1)
        match kind:
            case "kill_leader":
                await self._kill([leader])
            case "kill_one":
                await self._kill([rng.choice(nodes)])
            case "kill_majority":
                await self._kill(majority)
            case "kill_all":
                await self._kill(nodes)
            case "stop_leader":
                await self._stop([leader])
            case "stop_one":
                await self._stop([rng.choice(nodes)])
            case "stop_majority":
                await self._stop(majority)
            case "flap":
                for _ in range(rng.randint(3, 12)):
                    await self._stop([rng.choice(nodes)], rng.uniform(0.02, 0.7))
            case "stop_leader_kill_one":
                _signal(leader, signal.SIGSTOP)
                await asyncio.sleep(rng.uniform(0.2, 1.5))
                await self._kill([rng.choice(others or nodes)], also=lambda: _signal(leader, signal.SIGCONT))
            case "term_leader":
                await self._term(leader)
            case "term_one":
                await self._term(rng.choice(nodes))
            case _:
                with contextlib.suppress(ClientError):
                    await self._client.post("/election/start", {"reason": "torture"}, deadline_s=2)

    async def _leader(self) -> VoterProcess:
        """Whoever says so, or anybody."""
        for node in self._nodes():
            with contextlib.suppress(ClientError):
                leader = (await self._client.get("/raft/status", address=node.url, deadline_s=0.5))["leader_id"]
                if leader in self._voters.nodes:
                    return self._voters.nodes[leader]
        return self._rng.choice(self._nodes())

    async def _kill(self, nodes: list[VoterProcess], also: object = None) -> None:
        for node in nodes:
            node.kill()
            if self._rng.random() < 0.3:
                await asyncio.sleep(self._rng.uniform(0, 0.3))
        await asyncio.gather(*(node.wait() for node in nodes))
        if callable(also):
            also()
        await asyncio.gather(*(self._start_again(node) for node in nodes))

    async def _start_again(self, node: VoterProcess) -> None:
        await asyncio.sleep(self._rng.choice(DOWN_S))
        await node.start(self._voters.nursery)

    async def _stop(self, nodes: list[VoterProcess], for_s: float | None = None) -> None:
        for node in nodes:
            _signal(node, signal.SIGSTOP)
        await asyncio.sleep(for_s if for_s is not None else self._rng.choice(STOPS_S))
        for node in nodes:
            _signal(node, signal.SIGCONT)

    async def _term(self, node: VoterProcess) -> None:
        """It ends with 0, and soon."""
        _signal(node, signal.SIGTERM)
        try:
            async with asyncio.timeout(TERM_S):
                code = await node.wait()
        except TimeoutError:
            self.faults.append(f"{node.node_id} did not end within {TERM_S:g} s of SIGTERM: {node.log_tail()}")
            return
        # A process that is told to end before it listens to signals ends by the signal.
        if code not in (0, -signal.SIGTERM):
            self.faults.append(f"{node.node_id} ended with {code} after SIGTERM: {node.log_tail()}")
        await self._start_again(node)


def _signal(node: VoterProcess, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(node.pid, number)
