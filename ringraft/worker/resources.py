"""What a machine offers and how busy it is: CPUs, memory, disk, and GPUs where NVIDIA's driver is."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

logger = logging.getLogger(__name__)

DRIVER_FILE: Final = Path("/proc/driver/nvidia/version")
"""There when the kernel has NVIDIA's driver."""
GIB: Final = 1 << 30
GPUS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Gpu:
    """One graphics processor. ``percent`` is its load, None where the driver does not say."""

    name: str
    uuid: str
    vram_gb: float
    vram_used_gb: float
    percent: int | None

    def to_json(self) -> dict[str, Any]:
        """As ``/health`` shows it."""
        return {
            "name": self.name,
            "uuid": self.uuid,
            "vram_gb": self.vram_gb,
            "vram_used_gb": self.vram_used_gb,
            "percent": self.percent,
        }


@dataclass(frozen=True, slots=True)
class Usage:
    """How busy the machine is, in percent of what it has."""

    cpu_percent: float
    memory_percent: float
    disk_percent: float
    gpus: tuple[Gpu, ...]


def capabilities(override: Mapping[str, Any]) -> dict[str, Any]:
    """What this machine offers in the API's form; what ``override`` names replaces what was detected."""
    found: dict[str, Any] = {
        "gpus": [{"name": gpu.name, "vram_gb": gpu.vram_gb} for gpu in gpus()] if "gpus" not in override else [],
        "cpus": cpus(),
        "memory_gb": round(psutil.virtual_memory().total / GIB, 1),
        "labels": {},
    }
    return {**found, **override}


def cpus() -> int:
    """The CPUs this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1


def default_slots() -> int:
    """How many items to run at once when nothing is set: one CPU stays free on a larger machine."""
    count = cpus()
    return count - 1 if count > 2 else count


def usage(data_dir: Path) -> Usage:
    """The load since the last call. Takes milliseconds and asks the driver: call it in a thread."""
    return Usage(
        psutil.cpu_percent(),
        psutil.virtual_memory().percent,
        psutil.disk_usage(str(data_dir)).percent,
        gpus(),
    )


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that NVIDIA's driver lists; none without a driver."""
    if not DRIVER_FILE.exists():
        return ()
    if importlib.util.find_spec("pynvml") is None:
        logger.error(
            "there is an NVIDIA driver, but its GPUs cannot be listed: pip install 'ringraft[gpu]' action=nvml_missing"
        )
        return ()
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        logger.error("the NVIDIA driver does not answer: no GPU is offered action=nvml_failed error=%s", error)
        return ()
    try:
        count = min(nvml.nvmlDeviceGetCount(), GPUS_MAX)
        return tuple(gpu for i in range(count) if (gpu := _gpu(nvml, i)) is not None)
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, i: int) -> Gpu | None:
    """One GPU; None for one that has fallen off the bus, which must not hide the others."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(i)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return Gpu(
            _text(nvml.nvmlDeviceGetName(handle)),
            _text(nvml.nvmlDeviceGetUUID(handle)),
            round(memory.total / GIB, 1),
            round(memory.used / GIB, 1),
            _load_percent(nvml, handle),
        )
    except nvml.NVMLError as error:
        logger.error("a GPU does not answer and is not offered action=gpu_failed gpu=%d error=%s", i, error)
        return None


def _load_percent(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError_NotSupported:
        return None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
