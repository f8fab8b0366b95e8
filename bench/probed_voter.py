"""A voter that measures its own process: the node that ships, with a probe on its event loop.

    python -m bench.probed_voter --node-id n1 --data-dir DIR --bind HOST:PORT --peers … --end-with-parent PID

SIGUSR1 writes what was measured since the last time to ``DIR/probe.json``; SIGUSR2 runs a full collection
over everything, as the interpreter's own policy does whenever the number of objects has grown by a quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

from ringraft.config import load_settings
from ringraft.node.app import Node
from ringraft.node.logs import begin_logging
from ringraft.node.process import end_on_signals, say_ready

PERIOD_S = 0.001
STALL_MS = 50
LOOK_S = 0.01
LOOK_AFTER_S = 0.04
FRAMES_KEPT = 6


class Probe:
    """How late a task that wants to run every millisecond was, and how long the collector stopped everything."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = psutil.Process()
        self._thread = threading.get_ident()
        self._at_s = time.monotonic()
        gc.callbacks.append(self._collected)
        self._begin()

    def _begin(self) -> None:
        self._stall_s = self._stall_cpu_s = 0.0
        self._stalls = 0
        self._longest: list[float] = []
        self._where: dict[str, int] = {}
        self._pauses_s = [0.0, 0.0, 0.0]
        self._full_s = 0.0
        self._since_s = time.monotonic()

    def watch(self) -> None:
        """Note where the loop stands whenever it has not run the probe for long; for a thread of its own."""
        seen_s = 0.0
        while True:
            time.sleep(LOOK_S)
            at_s = self._at_s
            if at_s != seen_s and time.monotonic() - at_s > LOOK_AFTER_S:
                seen_s = at_s
                frame = sys._current_frames().get(self._thread)
                where: list[str] = []
                while frame is not None and len(where) < FRAMES_KEPT:
                    where.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
                    frame = frame.f_back
                told = " < ".join(where)
                self._where[told] = self._where.get(told, 0) + 1

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self._at_s = time.monotonic()
            at_s, cpu_s = time.monotonic(), time.thread_time()
            await asyncio.sleep(PERIOD_S)
            late_s, used_s = time.monotonic() - at_s - PERIOD_S, time.thread_time() - cpu_s
            self._stall_s, self._stall_cpu_s = max(self._stall_s, late_s), max(self._stall_cpu_s, used_s)
            if late_s * 1000 > STALL_MS:
                self._stalls += 1
                self._longest = sorted([*self._longest, round(late_s * 1000)], reverse=True)[:8]

    def report(self) -> None:
        """Write what was measured, and begin anew."""
        found = {
            "stall_ms": round(self._stall_s * 1000, 1),
            "stall_cpu_ms": round(self._stall_cpu_s * 1000, 1),
            "stalls_over_50_ms": self._stalls,
            "longest_ms": self._longest,
            "where": dict(sorted(self._where.items(), key=lambda found: -found[1])[:6]),
            "gc_ms": [round(pause_s * 1000, 1) for pause_s in self._pauses_s],
            "full_gc_ms": round(self._full_s * 1000, 1),
            "rss_bytes": self._process.memory_info().rss,
            "seconds": round(time.monotonic() - self._since_s, 1),
        }
        unfinished = self._path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(found), "utf-8")
        os.replace(unfinished, self._path)
        self._begin()

    def collect_all(self) -> None:
        """Time one full collection over every object."""
        gc.unfreeze()
        at_s = time.monotonic()
        gc.collect()
        self._full_s = time.monotonic() - at_s
        gc.freeze()

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_s = time.monotonic()
        else:
            generation = info["generation"]
            took_s = time.monotonic() - self._collecting_s
            self._pauses_s[generation] = max(self._pauses_s[generation], took_s)


async def run(options: argparse.Namespace) -> int:
    """Run the node until it is told to end."""
    settings = load_settings(
        {
            "node.node_id": options.node_id,
            "node.data_dir": options.data_dir,
            "node.bind": options.bind,
            "node.roles": "voter",
            "cluster.voters": options.peers,
        },
        files=[Path(os.devnull)],
    )
    begin_logging(settings.node.log_level.value, settings.node.log_dir, settings.node.node_id)
    probe = Probe(Path(options.data_dir) / "probe.json")
    loop = asyncio.get_running_loop()
    task = loop.create_task(probe.run())
    threading.Thread(target=probe.watch, daemon=True).start()
    node = Node(settings)
    await node.start()
    end_on_signals(node.request_shutdown)
    loop.add_signal_handler(signal.SIGUSR1, probe.report)
    loop.add_signal_handler(signal.SIGUSR2, probe.collect_all)
    say_ready(node.identity.node_id, node.url)
    code = await node.run_until_ended()
    task.cancel()
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--node-id", "--data-dir", "--bind", "--peers"):
        parser.add_argument(name, required=True)
    parser.add_argument("--end-with-parent", type=int, help="taken from the local cluster's command line")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
