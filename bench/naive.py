"""Naive use of the library: one blocking replicated call per step, three processes, journals on.

What ``bench.lifecycle`` is compared with. The load runs inside the leader's process, without HTTP
and without a sync of the journal, so the comparison leans towards the naive side.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from pysyncobj import SyncObj, SyncObjConf, replicated

from ringraft.cli.local import free_ports

CONFIG = {"board_type": "hex8", "num_players": 2, "payload": "x" * 150}


class NaiveQueue(SyncObj):  # type: ignore[misc]
    """A queue as one writes it after reading the library's first example."""

    def __init__(self, address: str, others: list[str], journal: str) -> None:
        conf = SyncObjConf(journalFile=journal, appendEntriesUseBatch=False, autoTickPeriod=0.001)
        super().__init__(address, others, conf)
        self._pending: list[int] = []
        self._items: dict[int, dict[str, object]] = {}

    @replicated  # type: ignore[untyped-decorator]
    def add(self, config: dict[str, object]) -> int:
        number = len(self._items)
        self._items[number] = config
        self._pending.append(number)
        return number

    @replicated  # type: ignore[untyped-decorator]
    def claim(self) -> int | None:
        return self._pending.pop() if self._pending else None

    @replicated  # type: ignore[untyped-decorator]
    def complete(self, number: int) -> bool:
        self._items[number] = {}
        return True


def serve(address: str, others: list[str], journal: str, pipe: Connection) -> None:
    """One replica: says whether it leads, and runs the load when told to."""
    # In this setting the library reports that it truncates applied entries, many times a second.
    logging.disable(logging.CRITICAL)
    queue = NaiveQueue(address, others, journal)
    while True:
        command = pipe.recv()
        if command is None:
            pipe.send("bye")
            return
        if command == "leads?":
            pipe.send(bool(queue._isLeader() and queue.isReady()))
        else:
            seconds, in_flight = command
            pipe.send(load(queue, seconds, in_flight))


def load(queue: NaiveQueue, seconds: float, in_flight: int) -> float:
    """Finished lifecycles per second with ``in_flight`` threads that block on each step."""
    stop_at = time.monotonic() + seconds
    counts = [0] * in_flight

    def drive(worker: int) -> None:
        while time.monotonic() < stop_at:
            queue.add(CONFIG, sync=True, timeout=30)
            number = queue.claim(sync=True, timeout=30)
            queue.complete(number, sync=True, timeout=30)
            counts[worker] += 1

    threads = [threading.Thread(target=drive, args=(worker,)) for worker in range(in_flight)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


def run_naive(seconds: float, in_flight: int) -> dict[str, object]:
    """One row for the table of ``bench.lifecycle``."""
    context = multiprocessing.get_context("spawn")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    with tempfile.TemporaryDirectory(prefix="ringraft-naive-") as folder:
        pipes, processes = [], []
        for number, address in enumerate(addresses):
            ours, theirs = context.Pipe()
            others = [other for other in addresses if other != address]
            journal = str(Path(folder) / f"journal{number}")
            process = context.Process(target=serve, args=(address, others, journal, theirs), daemon=True)
            process.start()
            pipes.append(ours)
            processes.append(process)
        try:
            leader = find_leader(pipes)
            cpu = [psutil.Process(process.pid) for process in processes]
            before = sum(sum(p.cpu_times()[:2]) for p in cpu)
            leader.send((seconds, in_flight))
            rate = leader.recv()
            used = sum(sum(p.cpu_times()[:2]) for p in cpu) - before
        finally:
            for process in processes:
                process.kill()
                process.join()
    return {
        "scenario": f"naive-{in_flight}",
        "in_flight": in_flight,
        "per_call": 1,
        "lifecycles_per_s": round(rate),
        "server_cpu_s_per_1000": round(used / (rate * seconds / 1000), 3),
        "client_cpu_s_per_1000": "in server",
    }


def find_leader(pipes: list[Connection], wait_s: float = 30.0) -> Connection:
    """Ask every replica until one leads."""
    stop_at = time.monotonic() + wait_s
    while time.monotonic() < stop_at:
        for pipe in pipes:
            pipe.send("leads?")
        leaders = [pipe for pipe in pipes if pipe.recv()]
        if leaders:
            return leaders[0]
        time.sleep(0.05)
    raise TimeoutError(f"no naive replica led within {wait_s} s")
