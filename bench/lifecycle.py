"""Work lifecycles (add, claim, complete) per second, each step acknowledged by the cluster.

    python -m bench.lifecycle                        3 voters, stream and HTTP, one and 100 per call
    python -m bench.lifecycle --only stream-16       one scenario
    python -m bench.lifecycle --json

Three voter processes on loopback and the project's own client in this process. The figure of a
scenario is the median of ``--repeat`` runs of ``--seconds`` each; CPU is what the three servers used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.cluster import Cluster
from bench.machine import machine_line
from ringraft.client import Client

CONFIG = {"board_type": "hex8", "num_players": 2, "payload": "x" * 150}
"""A 200-byte config once encoded."""

Call = Callable[[str, dict[str, object]], Awaitable[dict[str, object]]]
"""One acknowledged step: (verb, body) to the answer's body."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """How the client drives the cluster."""

    name: str
    transport: str
    in_flight: int
    per_call: int


SCENARIOS = tuple(
    Scenario(f"{transport}-{in_flight}" + ("" if per_call == 1 else f"x{per_call}"), transport, in_flight, per_call)
    for transport in ("stream", "http")
    for in_flight, per_call in ((1, 1), (16, 1), (64, 1), (16, 100))
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run's figures."""

    lifecycles_per_s: float
    server_cpu_s_per_1000: float
    client_cpu_s_per_1000: float


async def one_lifecycle(call: Call, node_id: str) -> int:
    """Add, claim and complete one item; the claim may take any item of the queue."""
    await call("add", {"work_type": "bench", "config": CONFIG})
    claimed = await call("claim", {"node_id": node_id, "wait_s": 5})
    item = claimed["work"]
    assert isinstance(item, dict), f"nothing to claim although an add was acknowledged: {claimed}"
    await call("complete", {"work_id": item["work_id"], "token": item["lease"]["token"], "result": {"ok": 1}})
    return 1


async def batch_lifecycle(call: Call, node_id: str, per_call: int) -> int:
    """The same for ``per_call`` items in each step; a short claim is made up for by the next ones."""
    await call("add_batch", {"items": [{"work_type": "bench", "config": CONFIG}] * per_call})
    left = per_call
    while left:
        claimed = await call("claim", {"node_id": node_id, "max_items": min(left, 100), "wait_s": 5})
        items = claimed["items"]
        assert isinstance(items, list) and items, f"nothing to claim although an add was acknowledged: {claimed}"
        done = [{"work_id": i["work_id"], "token": i["lease"]["token"], "result": {"ok": 1}} for i in items]
        answer = await call("complete_batch", {"items": done})
        outcomes = answer["items"]
        assert isinstance(outcomes, list)
        assert all(o["status"] == "completed" for o in outcomes), outcomes
        left -= len(items)
    return per_call


async def measure(scenario: Scenario, call: Call, cluster: Cluster, seconds: float) -> Run:
    """Drive the cluster for ``seconds`` and count finished lifecycles."""
    stop_at = time.monotonic() + seconds
    finished = 0

    async def drive(worker: int) -> None:
        nonlocal finished
        while time.monotonic() < stop_at:
            if scenario.per_call == 1:
                done = await one_lifecycle(call, f"bench{worker}")
            else:
                done = await batch_lifecycle(call, f"bench{worker}", scenario.per_call)
            # Not "+= await": that would read the count before the wait and lose what others counted meanwhile.
            finished += done

    server_before, client_before, began = cluster.cpu_s(), time.process_time(), time.monotonic()
    await asyncio.gather(*(drive(worker) for worker in range(scenario.in_flight)))
    took = time.monotonic() - began
    thousands = finished / 1000
    return Run(
        lifecycles_per_s=finished / took,
        server_cpu_s_per_1000=(cluster.cpu_s() - server_before) / thousands,
        client_cpu_s_per_1000=(time.process_time() - client_before) / thousands,
    )


async def run_scenario(scenario: Scenario, seconds: float, repeat: int) -> Run:
    """A fresh cluster for each scenario, a short warm-up, then the median of ``repeat`` runs."""
    async with Cluster(voters=3) as cluster:
        leader = await cluster.wait_leader()
        async with Client([cluster.url(leader)], timeout_s=30) as client:
            if scenario.transport == "stream":
                async with client.stream() as stream:
                    return await repeated(scenario, stream.call, cluster, seconds, repeat)

            async def post(verb: str, body: dict[str, object]) -> dict[str, object]:
                answer: dict[str, object] = await client.post(f"/work/{verb}", body)
                return answer

            return await repeated(scenario, post, cluster, seconds, repeat)


async def repeated(scenario: Scenario, call: Call, cluster: Cluster, seconds: float, repeat: int) -> Run:
    await measure(scenario, call, cluster, 1.0)
    runs = [await measure(scenario, call, cluster, seconds) for _ in range(repeat)]
    return Run(
        lifecycles_per_s=statistics.median(r.lifecycles_per_s for r in runs),
        server_cpu_s_per_1000=statistics.median(r.server_cpu_s_per_1000 for r in runs),
        client_cpu_s_per_1000=statistics.median(r.client_cpu_s_per_1000 for r in runs),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one run (5)")
    parser.add_argument("--repeat", type=int, default=3, help="runs per scenario; the median counts (3)")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="one of: " + " ".join(s.name for s in SCENARIOS)
    )
    parser.add_argument("--no-naive", action="store_true", help="leave out the naive use of the library")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = [s for s in SCENARIOS if not options.only or s.name in options.only]
    rows: list[dict[str, object]] = []
    for scenario in chosen:
        run = asyncio.run(run_scenario(scenario, options.seconds, options.repeat))
        rows.append(
            {
                "scenario": scenario.name,
                "in_flight": scenario.in_flight,
                "per_call": scenario.per_call,
                "lifecycles_per_s": round(run.lifecycles_per_s),
                "server_cpu_s_per_1000": round(run.server_cpu_s_per_1000, 3),
                "client_cpu_s_per_1000": round(run.client_cpu_s_per_1000, 3),
            }
        )
        print(f"{scenario.name}: {run.lifecycles_per_s:,.0f}/s", file=sys.stderr)
    if not options.no_naive and not options.only:
        from bench.naive import run_naive

        rows.extend(run_naive(options.seconds, in_flight) for in_flight in (1, 16, 64))
    if options.json:
        print(json.dumps({"machine": machine_line(), "rows": rows}, indent=2))
    else:
        print(machine_line())
        print("| scenario | in flight | per call | lifecycles/s | server CPU s per 1000 | client CPU s per 1000 |")
        print("|---|---|---|---|---|---|")
        for row in rows:
            print("| " + " | ".join(str(value) for value in row.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
