"""A quick configuration and what tests of the worker wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ringraft.worker.runtime import Worker

HERE = Path(__file__).parent
ENVIRONMENT = {"PYTHONPATH": f"{HERE.parent.parent}:{HERE}"}


@dataclass(frozen=True)
class Config:
    """The section ``worker`` of the settings, quick."""

    executors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    slots: int | None = 2
    lease_s: float = 0.3
    orphan_s: float = 3600.0
    drain_s: float = 5.0
    work_types: tuple[str, ...] | None = None
    capabilities: Mapping[str, Any] = field(default_factory=lambda: {"gpus": []})


def entry(name: str, **more: Any) -> dict[str, Any]:
    """The declaration of an executor that runs a function of ``workloads``."""
    return {"entry_point": f"workloads:{name}", "environment": ENVIRONMENT, **more}


WORKLOADS = {
    name: entry(name) for name in ("answer", "wait", "family", "keep", "refuse", "crash", "large", "environment")
}


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Poll until the condition holds and return its value."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + timeout_s
    while not (value := condition()):
        assert loop.time() < end_s, f"not within {timeout_s} s"
        await asyncio.sleep(0.01)
    return value


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


Start = Callable[..., Worker]
