"""How busy this machine and this process's event loop are, sampled in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ringraft.worker.resources import usage

SAMPLE_S = 2.0

LAG_S = 0.25
"""How often the loop's lateness is measured."""

LAG_KEPT = 0.9
"""Share of the worst lateness that is kept from one measure to the next."""


class Load:
    """The newest sample. Reading it costs nothing, whoever asks."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ringraft-load")
        self._resources: dict[str, Any] = {
            "cpu_percent": 0.0,
            "memory_percent": 0.0,
            "disk_percent": 0.0,
            "gpus": [],
        }
        self.lag_s = 0.0
        """How late the event loop was lately: the worst, fading."""

    def resources(self) -> Mapping[str, Any]:
        """``{cpu_percent, memory_percent, disk_percent, gpus}``."""
        return self._resources

    async def sample(self) -> None:
        """Take a new sample, on a thread of its own: a GPU driver may take its time."""
        found = await asyncio.get_running_loop().run_in_executor(self._thread, usage, self._data_dir)
        self._resources = {
            "cpu_percent": found.cpu_percent,
            "memory_percent": found.memory_percent,
            "disk_percent": found.disk_percent,
            "gpus": [gpu.to_json() for gpu in found.gpus],
        }

    async def watch_lag(self) -> None:
        """Measure the loop's lateness until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            expected_s = loop.time() + LAG_S
            await asyncio.sleep(LAG_S)
            self.lag_s = max(loop.time() - expected_s, self.lag_s * LAG_KEPT)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
