"""The lifecycles of ``bench.lifecycle`` on replicated peers, in turns with ringraft on the same machine.

    python -m bench.peers --peer nats                      ringraft's stream and NATS JetStream in turns
    python -m bench.peers --peer nats --peer etcd --rounds 9 --json

Three replicas of each on loopback, all up at the same time; each round drives one after the other, so
that a slow minute of the machine hits all of them. The figure is the median of the rounds, and the
ratio the median of each round's own ratio. A peer's server comes from the system's packages
(``nats-server``, ``etcd-server``) and is ended with this program; ``pip install 'ringraft[bench]'`` has
the client for NATS.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.cluster import Cluster
from bench.lifecycle import CONFIG, batch_lifecycle, one_lifecycle
from bench.machine import machine_line
from ringraft.cli.local import LOCALHOST, free_ports
from ringraft.client import Client

REPLICAS = 3
START_S = 30.0
STOP_S = 5.0
WARM_UP_S = 1.0
PAYLOAD = json.dumps(CONFIG).encode()
SCENARIOS = ((16, 1), (16, 100))
"""(in flight, items per call)."""

Lifecycle = Callable[[int, int], Awaitable[int]]
"""(worker, items per call) to how many lifecycles it was."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that keeps a replicated queue, up and ready."""

    name: str
    lifecycle: Lifecycle
    pids: Callable[[], list[int]]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one contender did in one round."""

    lifecycles_per_s: float
    server_cpu_s_per_1000: float


@asynccontextmanager
async def replicas(commands: list[list[str]], folder: Path) -> AsyncIterator[list[int]]:
    """Server processes with a log file each; ended with the block."""
    processes = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{number}.log").open("wb") as log:
                processes.append(await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log))
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.terminate()
        for process in processes:
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def installed(program: str, package: str) -> str:
    """Where a server's program is, or the end of this run with what to install."""
    found = shutil.which(program)
    if found is None:
        sys.exit(f"{program} is not installed: apt-get install {package}")
    return found


# -- ringraft ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def ringraft(folder: Path) -> AsyncIterator[Contender]:
    async with Cluster(voters=REPLICAS) as cluster:
        leader = await cluster.wait_leader()
        async with Client([cluster.url(leader)], timeout_s=30) as client, client.stream() as stream:

            async def lifecycle(worker: int, per_call: int) -> int:
                if per_call == 1:
                    return await one_lifecycle(stream.call, f"bench{worker}")
                return await batch_lifecycle(stream.call, f"bench{worker}", per_call)

            yield Contender("ringraft", lifecycle, cluster.pids)


# -- NATS JetStream ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def nats(folder: Path) -> AsyncIterator[Contender]:
    """A work-queue stream on three file stores and a pull consumer; acknowledged puts, fetches, and
    completions that the server confirms. It leaves syncing to the operating system."""
    program = installed("nats-server", "nats-server")
    try:
        import nats as client
        from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType
    except ModuleNotFoundError:
        sys.exit("the client for NATS is not installed: pip install 'ringraft[bench]'")
    ports = free_ports(2 * REPLICAS)
    clients, routes = ports[:REPLICAS], ports[REPLICAS:]
    peers = ",".join(f"nats://{LOCALHOST}:{port}" for port in routes)
    commands = [
        [program, "-a", LOCALHOST, "-p", str(clients[n]), "-n", f"n{n}", "-js", "-sd", str(folder / f"n{n}"),
         "--cluster", f"nats://{LOCALHOST}:{routes[n]}", "--cluster_name", "bench", "--routes", peers]
        for n in range(REPLICAS)
    ]  # fmt: skip
    async with replicas(commands, folder) as pids, AsyncExitStack() as stack:
        urls = [f"nats://{LOCALHOST}:{port}" for port in clients]

        async def connected(url: str) -> Any:
            connection = await client.connect(url, connect_timeout=2, allow_reconnect=False, error_cb=quiet)
            stack.push_async_callback(connection.close)
            return connection

        async def stream_made() -> Any:
            jetstream = (await connected(urls[0])).jetstream()
            return await jetstream.add_stream(
                name="work", subjects=["work"], num_replicas=REPLICAS,
                storage=StorageType.FILE, retention=RetentionPolicy.WORK_QUEUE,
            )  # fmt: skip

        made = await patiently(stream_made)
        # As ringraft's client talks to the leader, so does this one.
        leader = int(made.cluster.leader.removeprefix("n"))
        jetstream = (await connected(urls[leader])).jetstream()
        await jetstream.add_consumer(
            "work", ConsumerConfig(durable_name="workers", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=100_000)
        )
        pulls: dict[int, Any] = {}

        async def lifecycle(worker: int, per_call: int) -> int:
            pull = pulls.get(worker)
            if pull is None:
                pull = pulls[worker] = await jetstream.pull_subscribe_bind("workers", stream="work")
            await asyncio.gather(*(jetstream.publish("work", PAYLOAD) for _ in range(per_call)))
            left = per_call
            while left:
                messages = await pull.fetch(left, timeout=5)
                await asyncio.gather(*(message.ack_sync(timeout=5) for message in messages))
                left -= len(messages)
            return per_call

        yield Contender("nats", lifecycle, lambda: pids)


async def quiet(error: Exception) -> None:
    """While the peer starts its client's errors are expected; ``patiently`` tries again."""


# -- etcd ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def etcd(folder: Path) -> AsyncIterator[Contender]:
    """Keys in transactions, over its JSON gateway; it syncs every write.

    It has no claim, so each worker takes what it has put itself and never meets another: that is kind to it.
    Its gateway costs it more than its own protocol would.
    """
    program = installed("etcd", "etcd-server")
    ports = free_ports(2 * REPLICAS)
    clients, peers = ports[:REPLICAS], ports[REPLICAS:]
    members = ",".join(f"n{n}=http://{LOCALHOST}:{peers[n]}" for n in range(REPLICAS))
    commands = []
    for n in range(REPLICAS):
        url, peer = f"http://{LOCALHOST}:{clients[n]}", f"http://{LOCALHOST}:{peers[n]}"
        commands.append(
            [program, "--name", f"n{n}", "--data-dir", str(folder / f"n{n}"), "--initial-cluster", members,
             "--listen-client-urls", url, "--advertise-client-urls", url,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        )  # fmt: skip
    async with replicas(commands, folder) as pids, aiohttp.ClientSession() as session:
        urls = [f"http://{LOCALHOST}:{port}" for port in clients]

        async def call(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
            async with session.post(f"{url}/v3/{path}", json=body) as answer:
                answer.raise_for_status()
                found: dict[str, Any] = await answer.json()
                return found

        async def leader_url() -> str:
            for url in urls:
                status = await call(url, "maintenance/status", {})
                if status["leader"] == status["header"]["member_id"]:
                    return url
            raise ConnectionError("no member leads yet")

        leader = await patiently(leader_url)
        numbers = iter(range(1 << 62))

        async def lifecycle(worker: int, per_call: int) -> int:
            await etcd_lifecycle(lambda path, body: call(leader, path, body), worker, per_call, numbers)
            return per_call

        yield Contender("etcd", lifecycle, lambda: pids)


async def etcd_lifecycle(call: Any, worker: int, per_call: int, numbers: Any) -> None:
    """Put, find and take, finish: one transaction each."""
    value = base64.b64encode(PAYLOAD).decode()
    ready, taken, done = (f"{state}/{worker}/" for state in ("ready", "taken", "done"))

    def moved(names: list[str], source: str, target: str) -> dict[str, Any]:
        return {
            "compare": [
                {"target": "CREATE", "result": "GREATER", "key": key(source + name), "create_revision": 0}
                for name in names
            ],
            "success": [{"request_delete_range": {"key": key(source + name)}} for name in names]
            + [{"request_put": {"key": key(target + name), "value": value}} for name in names],
        }

    # A transaction has at most 128 operations by default, and moving an item takes two.
    for start in range(0, per_call, 60):
        names = [f"{next(numbers):016d}" for _ in range(min(60, per_call - start))]
        puts = [{"request_put": {"key": key(ready + name), "value": value}} for name in names]
        await call("kv/txn", {"success": puts})
        found = await call("kv/range", {"key": key(ready), "range_end": key(ready + "~"), "limit": len(names)})
        held = [base64.b64decode(one["key"]).decode().removeprefix(ready) for one in found["kvs"]]
        for source, target in ((ready, taken), (taken, done)):
            answer = await call("kv/txn", moved(held, source, target))
            assert answer.get("succeeded"), answer


def key(name: str) -> str:
    return base64.b64encode(name.encode()).decode()


# -- the race ----------------------------------------------------------------------------------------------------


async def patiently(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """The result of ``attempt``, tried again until a cluster that starts is ready."""
    stop_at = time.monotonic() + START_S
    while True:
        try:
            return await attempt()
        except Exception as error:
            # Each client has errors of its own while its servers come up; the last one is told at the end.
            if time.monotonic() > stop_at:
                raise TimeoutError(f"the peer was not ready in {START_S:g} s") from error
            await asyncio.sleep(0.2)


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that these processes have used."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


async def drive(contender: Contender, in_flight: int, per_call: int, seconds: float) -> Turn:
    """Lifecycles with ``in_flight`` workers for ``seconds``."""
    finished = 0
    began, before = time.monotonic(), cpu_s(contender.pids())
    stop_at = began + seconds

    async def work(worker: int) -> None:
        nonlocal finished
        while time.monotonic() < stop_at:
            done = await contender.lifecycle(worker, per_call)
            finished += done

    await asyncio.gather(*(work(worker) for worker in range(in_flight)))
    took = time.monotonic() - began
    return Turn(finished / took, (cpu_s(contender.pids()) - before) / finished * 1000)


CONTENDERS = {"nats": nats, "etcd": etcd}


async def race(peers: list[str], rounds: int, seconds: float) -> list[dict[str, object]]:
    """One row per contender and scenario."""
    rows: list[dict[str, object]] = []
    async with AsyncExitStack() as stack:
        contenders = []
        for entry in (ringraft, *(CONTENDERS[name] for name in peers)):
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="ringraft-peer-", ignore_cleanup_errors=True)
            )
            contenders.append(await stack.enter_async_context(entry(Path(folder))))
        for in_flight, per_call in SCENARIOS:
            turns: dict[str, list[Turn]] = {contender.name: [] for contender in contenders}
            for contender in contenders:
                await drive(contender, in_flight, per_call, WARM_UP_S)
            for number in range(rounds):
                for contender in contenders:
                    turns[contender.name].append(await drive(contender, in_flight, per_call, seconds))
                told = ", ".join(f"{name} {done[-1].lifecycles_per_s:,.0f}/s" for name, done in turns.items())
                print(f"{in_flight} x {per_call}, round {number + 1}/{rounds}: {told}", file=sys.stderr)
            rows.extend(row(name, in_flight, per_call, turns) for name in turns)
    return rows


def row(name: str, in_flight: int, per_call: int, turns: dict[str, list[Turn]]) -> dict[str, object]:
    own = turns[name]
    ratios = [ours.lifecycles_per_s / turn.lifecycles_per_s for ours, turn in zip(turns["ringraft"], own, strict=True)]
    return {
        "contender": name,
        "in_flight": in_flight,
        "per_call": per_call,
        "lifecycles_per_s": round(statistics.median(turn.lifecycles_per_s for turn in own)),
        "server_cpu_s_per_1000": round(statistics.median(turn.server_cpu_s_per_1000 for turn in own), 3),
        "ringraft_is_times": round(statistics.median(ratios), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", choices=sorted(CONTENDERS), required=True)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one turn (4)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(race(options.peer, options.rounds, options.seconds))
    if options.json:
        print(json.dumps({"machine": machine_line(), "rows": rows}, indent=2))
    else:
        print(machine_line())
        print("| " + " | ".join(rows[0]) + " |")
        print("|" + "---|" * len(rows[0]))
        for one in rows:
            print("| " + " | ".join(str(value) for value in one.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
