"""A worker in a process of its own: ``python service.py ADDRESS DATA_DIR INCARNATION``."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

from ringraft.client import Client
from ringraft.worker.runtime import Worker
from tests.worker.kit import WORKLOADS, Config


async def main(address: str, data_dir: str, incarnation: str) -> None:
    logging.basicConfig(level=logging.INFO)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with Client([address]) as client:
        worker = Worker(
            node_id="w1",
            incarnation=int(incarnation),
            data_dir=Path(data_dir),
            client=client,
            config=Config(WORKLOADS, drain_s=1.0),
            poll_s=0.05,
        )
        await worker.start()
        await ended.wait()
        await worker.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
