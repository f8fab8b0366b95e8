"""Voters that die at a chosen system call, have it refused, or have no room left on their disk.

At their start or under load. A voter whose log or snapshot was refused something has to stop taking
part, say so and end; the others go on meanwhile. What it acknowledged before has to be there when all
run again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from typing import NamedTuple

from chaos.disk import tracer
from chaos.disk.cluster import POLL_S, SETTLE_S, Cluster
from chaos.disk.nodes import VoterProcess

KILLED = ("pwrite64", "fdatasync", "fsync", "rename", "unlink", "openat", "ftruncate")
REFUSED = ("pwrite64", "fdatasync", "fsync", "rename", "unlink")
ERRORS = ("EIO", "ENOSPC")
WHEN_MEAN = {
    "pwrite64": 20.0, "fdatasync": 8.0, "openat": 4.0, "fsync": 3.0, "rename": 2.0, "unlink": 2.0, "ftruncate": 0.5,
}  # fmt: skip
"""About how often each call is made in a second: most deaths come early, some late."""
REACH_S = 1.0
"""How long a voter may take to come to the call; then it is killed where it is."""
END_S = 10.0
"""How long a voter may take to end after a call of its log was refused."""
FULL_SHARE = 0.1
STOPS = "this node stops taking part"
LOG_PLACES = ("/data/log", "/data/snapshot")


class Injection(NamedTuple):
    """What befalls a voter."""

    call: str
    fault: str
    """``signal=KILL`` or ``error=EIO``."""
    when: int

    def __str__(self) -> str:
        return f"{self.call}:{self.fault}:when={self.when}"

    @property
    def is_death(self) -> bool:
        return self.fault.startswith("signal")


class SystemCalls:
    """A disaster at a system call of one voter, or of all."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    async def strike(self, cluster: Cluster) -> None:
        """Trace or fill, wait for the end, start again."""
        rng = cluster.rng
        cluster.figures.strikes += 1
        names = cluster.names if rng.random() < 0.25 else [rng.choice(cluster.names)]
        if rng.random() < FULL_SHARE:
            # One at a time: without a majority the others would write nothing and meet nothing.
            names = names[:1]
            await self._fill(cluster, names[0])
        else:
            await self._trace(cluster, names)
        if len(names) * 2 < len(cluster.names):
            await self._others_go_on(cluster)
        await cluster.voters.kill(names)
        for name in names:
            cluster.volumes[name].free()
            cluster.report(cluster.votes.read_log(name, cluster.voters.nodes[name].log))
        await cluster.voters.start(names)

    async def _fill(self, cluster: Cluster, name: str) -> None:
        """A disk without a free byte: its voter has to stop before it keeps half of something."""
        node = cluster.voters.nodes[name]
        said_before = len(node.log.read_text("utf-8", "replace"))
        cluster.volumes[name].fill()
        await self._must_stop(cluster, node, "a full disk", [], said_before)
        cluster.figures.count("disk full")

    async def _trace(self, cluster: Cluster, names: list[str]) -> None:
        rng = cluster.rng
        is_death = rng.random() < 0.6
        call = rng.choice(KILLED if is_death else REFUSED)
        fault = "signal=KILL" if is_death else f"error={rng.choice(ERRORS)}"
        injection = Injection(call, fault, 1 + int(rng.expovariate(1 / WHEN_MEAN[call])))
        at_start = rng.random() < 0.4
        if at_start:
            await cluster.voters.kill(names)
        await asyncio.gather(*(self._end(cluster, name, injection, at_start=at_start) for name in names))

    async def _end(self, cluster: Cluster, name: str, injection: Injection, *, at_start: bool) -> None:
        node = cluster.voters.nodes[name]
        out = node.aside / f"{name}.{next(self._numbers)}.trace"
        said_before = len(node.log.read_text("utf-8", "replace"))
        if at_start:
            await node.start(cluster.voters.nursery, is_held=True)
            await stopped(node.pid)
        tracing = await asyncio.to_thread(tracer.attach, node.pid, str(injection), out)
        try:
            if at_start:
                os.kill(node.pid, signal.SIGCONT)
            await ended(node, REACH_S)
            calls = tracer.tampered(out)
            if not injection.is_death and any(place in call for call in calls for place in LOG_PLACES):
                await self._must_stop(cluster, node, str(injection), calls, said_before)
            reached = bool(calls) or (injection.is_death and not node.is_running)
        finally:
            await asyncio.to_thread(tracer.detach, tracing)
        what = ("killed at" if injection.is_death else "refused") if reached else "never came to"
        cluster.figures.count(f"{what} {injection.call}")

    async def _must_stop(
        self, cluster: Cluster, node: VoterProcess, what: str, calls: list[str], said_before: int
    ) -> None:
        """Its log was refused a call: it says so and ends by itself."""
        await ended(node, END_S)
        if node.is_running:
            cluster.report([f"{node.node_id} goes on after {what}: {calls}"])
            return
        code = await node.wait()
        if code not in (1, 2) or STOPS not in node.log.read_text("utf-8", "replace")[said_before:]:
            cluster.report([f"{node.node_id} ended with {code} after {what}: {node.log_tail()}: {calls}"])

    async def _others_go_on(self, cluster: Cluster) -> None:
        before = cluster.ledger.acknowledged
        end_s = asyncio.get_running_loop().time() + SETTLE_S
        while cluster.ledger.acknowledged == before:
            if asyncio.get_running_loop().time() > end_s:
                cluster.report([f"the others acknowledge nothing in {SETTLE_S:g} s"])
                return
            await asyncio.sleep(POLL_S)


async def stopped(pid: int) -> None:
    """Wait until a process that stops itself stands still."""
    async with asyncio.timeout(SETTLE_S):
        while not tracer.is_stopped(pid):  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(POLL_S)


async def ended(node: VoterProcess, within_s: float) -> None:
    """Wait for its end, at most so long."""
    if node.ended is not None:
        await asyncio.wait([node.ended], timeout=within_s)
