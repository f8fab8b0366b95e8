"""Whether a node's capabilities meet an item's requirements. Both are packed maps, judged by value."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgpack

VENDOR_WORDS = ("nvidia", "geforce", "amd", "radeon", "tesla", "quadro", "instinct", "intel", "apple")


def fold_gpu_name(name: str) -> str:
    """``NVIDIA GeForce RTX 5090``, ``RTX_5090`` and ``GeForceRTX5090`` are all ``rtx5090``."""
    words = [word for word in re.split(r"[\W_]+", name.casefold()) if word and word not in VENDOR_WORDS]
    folded = "".join(words)
    while prefix := next((word for word in VENDOR_WORDS if folded.startswith(word)), None):
        folded = folded[len(prefix) :]
    return folded


def unpack_map(packed: bytes) -> dict[str, Any]:
    """A packed map; empty bytes are an empty one. Raises ValueError for anything else."""
    if not packed:
        return {}
    try:
        value = msgpack.unpackb(packed)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ValueError("not msgpack") from error
    if not isinstance(value, dict):
        raise ValueError("not a map")
    return value


@lru_cache(maxsize=4096)
def requirements_fault(packed: bytes) -> str | None:
    """What is wrong with packed requirements, if anything is."""
    try:
        wanted = unpack_map(packed)
    except ValueError as error:
        return f"is {error}"
    gpu = wanted.get("gpu")
    if isinstance(gpu, dict):
        names = gpu.get("names")
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            return "gpu.names must be a list of names"
        if not _are_amounts(gpu, "count", "min_vram_gb"):
            return "gpu.count and gpu.min_vram_gb must be numbers"
    elif gpu is not None and not isinstance(gpu, str):
        return "gpu must be a name or a map of names, count and min_vram_gb"
    return _common_fault(wanted)


@lru_cache(maxsize=4096)
def capabilities_fault(packed: bytes) -> str | None:
    """What is wrong with packed capabilities, if anything is."""
    try:
        offered = unpack_map(packed)
    except ValueError as error:
        return f"is {error}"
    gpus = offered.get("gpus")
    if gpus is not None and not isinstance(gpus, list):
        return "gpus must be a list of maps with name and vram_gb"
    for gpu in gpus or ():
        if not isinstance(gpu, dict) or not isinstance(gpu.get("name"), str) or not _are_amounts(gpu, "vram_gb"):
            return "gpus must be a list of maps with name and vram_gb"
    return _common_fault(offered)


def _common_fault(value: dict[str, Any]) -> str | None:
    if not _are_amounts(value, "cpus", "memory_gb"):
        return "cpus and memory_gb must be numbers"
    if value.get("labels") is not None and not isinstance(value["labels"], dict):
        return "labels must be a map"
    return None


def _are_amounts(value: dict[str, Any], *names: str) -> bool:
    return all(value.get(name) is None or type(value[name]) in (int, float) for name in names)


@lru_cache(maxsize=16384)
def mismatch(requirements: bytes, capabilities: bytes) -> str | None:
    """The first requirement that the capabilities do not meet (gpu, cpus, memory_gb, labels), or None."""
    if not requirements:
        return None
    wanted, offered = unpack_map(requirements), unpack_map(capabilities)
    if wanted.get("gpu") is not None and not _has_gpus(wanted["gpu"], offered.get("gpus") or []):
        return "gpu"
    for amount in ("cpus", "memory_gb"):
        if wanted.get(amount) is not None and (offered.get(amount) or 0) < wanted[amount]:
            return amount
    labels = offered.get("labels") or {}
    if any(name not in labels or labels[name] != value for name, value in (wanted.get("labels") or {}).items()):
        return "labels"
    return None


def _has_gpus(wanted: str | dict[str, Any], gpus: list[dict[str, Any]]) -> bool:
    if isinstance(wanted, str):
        wanted = {"names": [wanted]}
    names = {fold_gpu_name(name) for name in wanted.get("names") or ()}
    vram_gb = wanted.get("min_vram_gb") or 0
    fitting = sum(
        1 for gpu in gpus if (not names or fold_gpu_name(gpu["name"]) in names) and (gpu.get("vram_gb") or 0) >= vram_gb
    )
    return fitting >= (wanted.get("count") or 1)
