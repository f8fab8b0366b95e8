"""A cluster that holds a million pending items: what it weighs, and what ever stops its event loops.

    python -m bench.million                          1,000,000 items, about six minutes
    python -m bench.million --items 100000 --json

Three voter processes on loopback, each with a probe on its own event loop (``bench.probed_voter``). One is
killed before the fill and started again after it, so that it is sent a snapshot of everything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.machine import machine_line
from ringraft.cli import local
from ringraft.cli.local import LOCALHOST, LocalNode, free_ports
from ringraft.client import Client, ClientError, Stream

CONFIG = {"board_type": "hex8", "num_players": 2, "payload": "x" * 150}
"""200 bytes encoded."""
BATCH_ITEMS = 1000
BATCHES_IN_FLIGHT = 4
CLAIMS = 1000
BURST = 4096
TRAFFIC_IN_FLIGHT = 8
READY_S = 600.0
POLL_S = 0.05
ASK_S = 1.0
WAIT_S = 900.0


class Voter:
    """One process."""

    def __init__(self, directory: Path, name: str, addresses: dict[str, str]) -> None:
        self.directory = directory / name
        peers = ",".join(f"{peer}={address}" for peer, address in addresses.items())
        arguments = ("--node-id", name, "--data-dir", str(self.directory), "--bind", addresses[name], "--peers", peers)
        self.node = LocalNode(name, ("bench.probed_voter", *arguments), self.directory)

    async def measured(self) -> dict[str, Any]:
        """What its probe found since it was asked last."""
        path = self.directory / "probe.json"
        path.unlink(missing_ok=True)
        os.kill(self.node.pid, signal.SIGUSR1)
        async with asyncio.timeout(WAIT_S):
            await poll(path.exists)
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found

    def image_bytes(self) -> int:
        """Of its newest snapshot."""
        return max((self.directory / "snapshot").glob("*.snap")).stat().st_size

    def disk_bytes(self) -> int:
        """Of its log and its snapshots."""
        parts = [self.directory / "log", self.directory / "snapshot"]
        return sum(path.stat().st_blocks * 512 for part in parts for path in part.iterdir())


class Bench:
    """One run."""

    def __init__(self, directory: Path, items: int) -> None:
        names = ["n1", "n2", "n3"]
        addresses = {name: f"{LOCALHOST}:{port}" for name, port in zip(names, free_ports(3), strict=True)}
        self.items = items
        self.voters = {name: Voter(directory, name, addresses) for name in names}
        self.figures: dict[str, Any] = {"items": items}

    async def run(self) -> dict[str, Any]:
        await asyncio.gather(*(voter.node.start() for voter in self.voters.values()))
        try:
            leader = await self.leader()
            away = next(name for name in self.voters if name != leader)
            self.voters[away].node.kill()
            async with Client([self.voters[leader].node.url], timeout_s=WAIT_S) as client, client.stream() as stream:
                await self.drive(client, stream, leader, away)
        finally:
            await asyncio.gather(*(voter.node.stop() for voter in self.voters.values()))
        return self.figures

    async def drive(self, client: Client, stream: Stream, leader: str, away: str) -> None:
        lead, figures = self.voters[leader], self.figures
        base_bytes = (await lead.measured())["rss_bytes"]
        await self.fill(stream, 1000)
        figures["claim_at_1000_ms"] = await claims(stream)
        began_s = time.monotonic()
        await self.fill(stream, self.items - 1000)
        figures["fill_s"] = round(time.monotonic() - began_s, 1)
        self.note("fill", await lead.measured())
        # Whatever image the fill has set off is finished when this returns.
        await snapshot(client)
        await stream.call("add", {"work_type": "bench", "config": CONFIG})
        figures["claim_ms"] = await claims(stream)
        await lead.measured()
        figures["made"] = await self.beside_traffic(stream, snapshot(client))
        self.note("making", await lead.measured())
        await asyncio.gather(*(stream.call("add", {"work_type": "bench", "config": CONFIG}) for _ in range(BURST)))
        self.note("burst_of_adds", await lead.measured())
        await asyncio.gather(*(stream.call("claim", {"node_id": f"b{n % 500}"}) for n in range(BURST)))
        self.note("burst_of_claims", await lead.measured())
        await self.install(client, stream, lead, self.voters[away])
        await snapshot(client)
        figures["live_bytes"] = live = lead.image_bytes()
        figures["disk_bytes"] = lead.disk_bytes()
        figures["disk_per_live"] = round(figures["disk_bytes"] / live, 2)
        measured = await lead.measured()
        figures["rss_bytes"] = measured["rss_bytes"]
        figures["rss_bytes_per_item"] = round((measured["rss_bytes"] - base_bytes) / self.items)
        os.kill(lead.node.pid, signal.SIGUSR2)
        figures["full_gc_ms"] = (await lead.measured())["full_gc_ms"]
        figures["term_changes"] = (await client.get("/status"))["term"] - figures.pop("term")
        back = self.voters[away]
        await back.node.stop()
        began_s = time.monotonic()
        await back.node.start()
        figures["start_s"] = round(time.monotonic() - began_s, 1)

    async def fill(self, stream: Stream, count: int) -> None:
        """Add items in batches, a few at a time."""
        left = iter(range(0, count, BATCH_ITEMS))

        async def add() -> None:
            for at in left:
                size = min(BATCH_ITEMS, count - at)
                await stream.call("add_batch", {"items": [{"work_type": "bench", "config": CONFIG}] * size})

        await asyncio.gather(*(add() for _ in range(BATCHES_IN_FLIGHT)))

    async def beside_traffic(self, stream: Stream, act: Awaitable[Any]) -> dict[str, Any]:
        """What ``act`` answered, how long it took, and how the lifecycles beside it fared."""
        times_s: list[float] = []
        task = asyncio.ensure_future(act)

        async def lifecycles(number: int) -> None:
            while not task.done():
                began_s = time.monotonic()
                await lifecycle(stream, f"t{number}")
                times_s.append(time.monotonic() - began_s)

        began_s = time.monotonic()
        await asyncio.gather(task, *(lifecycles(number) for number in range(TRAFFIC_IN_FLIGHT)))
        took_s = time.monotonic() - began_s
        return {"took_s": round(took_s, 1), "lifecycles_per_s": round(len(times_s) / took_s), **spread(times_s)}

    async def install(self, client: Client, stream: Stream, lead: Voter, away: Voter) -> None:
        """Start the voter that has nothing, and wait until it stands where the others do."""
        self.figures["term"] = (await client.get("/status"))["term"]
        goal = (await client.get("/status"))["commit_index"]
        await away.node.stop()

        async def caught_up() -> None:
            await away.node.start()
            # What the start itself cost is another figure.
            await away.measured()
            async with Client([away.node.url]) as other:
                reached = 0
                while reached < goal:
                    await asyncio.sleep(POLL_S)
                    reached = (await other.get("/status", address=away.node.url))["applied_index"]

        await lead.measured()
        self.figures["installed"] = await self.beside_traffic(stream, caught_up())
        self.note("sending", await lead.measured())
        self.note("installing", await away.measured())

    async def leader(self) -> str:
        async with Client([voter.node.url for voter in self.voters.values()]) as client, asyncio.timeout(WAIT_S):
            while True:
                told = {(await client.get("/status", address=v.node.url))["leader_id"] for v in self.voters.values()}
                if len(told) == 1 and None not in told:
                    return str(told.pop())
                await asyncio.sleep(POLL_S)

    def note(self, name: str, measured: dict[str, Any]) -> None:
        """Keep the figures of one phase."""
        print(f"{name}: {measured}", file=sys.stderr)
        self.figures[name] = {key: measured[key] for key in ("stall_ms", "stall_cpu_ms", "stalls_over_50_ms", "gc_ms")}


async def snapshot(client: Client) -> None:
    """Have the leader make a snapshot, however long that takes."""
    goal = (await client.get("/status"))["applied_index"]
    with suppress(ClientError):
        # It may take longer than a request may wait; it is made all the same.
        await client.post("/raft/snapshot", {}, deadline_s=ASK_S)
    reached = 0
    while reached < goal:
        await asyncio.sleep(POLL_S)
        reached = (await client.get("/status"))["snapshot_index"]


async def poll(holds: Callable[[], bool]) -> None:
    """Wait until it holds."""
    while not holds():  # noqa: ASYNC110 - another process makes it so
        await asyncio.sleep(POLL_S)


async def claims(stream: Stream) -> dict[str, float]:
    """How long a claim takes when nothing else goes on; what it got is given back."""
    times_s = []
    for _ in range(CLAIMS):
        began_s = time.monotonic()
        claimed = await stream.call("claim", {"node_id": "c1"})
        times_s.append(time.monotonic() - began_s)
        item = claimed["work"]
        await stream.call("release", {"work_id": item["work_id"], "token": item["lease"]["token"]})
    return spread(times_s)


async def lifecycle(stream: Stream, node_id: str) -> None:
    """Add, claim and complete one item."""
    await stream.call("add", {"work_type": "bench", "config": CONFIG})
    item = (await stream.call("claim", {"node_id": node_id}))["work"]
    await stream.call("complete", {"work_id": item["work_id"], "token": item["lease"]["token"], "result": {"ok": 1}})


def spread(times_s: list[float]) -> dict[str, float]:
    """Median, 99th percentile and worst, in milliseconds."""
    ordered = sorted(times_s)
    if not ordered:
        return {}
    at = {"p50": len(ordered) // 2, "p99": min(len(ordered) - 1, int(len(ordered) * 0.99)), "max": len(ordered) - 1}
    return {name: round(ordered[place] * 1000, 2) for name, place in at.items()}


def table(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures as rows for people."""
    mib = 2**20

    def stall(phase: str) -> str:
        found = figures[phase]
        return f"{found['stall_ms']:.0f} ms ({found['stall_cpu_ms']:.0f} ms of CPU)"

    few, many = figures["claim_at_1000_ms"], figures["claim_ms"]
    memory = f"{figures['rss_bytes'] / mib:,.0f} MiB, {figures['rss_bytes_per_item']:,} bytes an item"
    installed = f"{figures['installed']['took_s']} s, {figures['term_changes']} elections"
    disk = f"{figures['disk_bytes'] / mib:,.0f} MiB, {figures['disk_per_live']} of the image"
    return [
        ("memory of the leader", memory),
        ("claim, p50 / p99, 1,000 pending", f"{few['p50']} / {few['p99']} ms"),
        (f"claim, p50 / p99, {figures['items']:,} pending", f"{many['p50']} / {many['p99']} ms"),
        ("snapshot made beside traffic", f"{figures['made']['took_s']} s"),
        ("installed at an empty voter beside traffic", installed),
        ("restored at start", f"{figures['start_s']} s"),
        ("longest stall: filling", stall("fill")),
        ("longest stall: making", stall("making")),
        ("longest stall: sending", stall("sending")),
        ("longest stall: installing", stall("installing")),
        (f"longest stall: {BURST:,} adds at once", stall("burst_of_adds")),
        (f"longest stall: {BURST:,} claims at once", stall("burst_of_claims")),
        ("log and snapshots on disk", disk),
        ("a full collection, which the policy never runs", f"{figures['full_gc_ms']:.0f} ms"),
        ("longest collection while making", f"{max(figures['making']['gc_ms']):.0f} ms"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000, help="how many are pending (1,000,000)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    local.READY_S = READY_S
    with tempfile.TemporaryDirectory(prefix="ringraft-million-", ignore_cleanup_errors=True) as folder:
        figures = asyncio.run(Bench(Path(folder), options.items).run())
    if options.json:
        print(json.dumps({"machine": machine_line(), **figures}, indent=2))
        return 0
    print(machine_line())
    print(f"| {options.items:,} pending items | |")
    print("|---|---|")
    for name, value in table(figures):
        print(f"| {name} | {value} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
