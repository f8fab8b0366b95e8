"""What an entry point is given: the item, where to write, and how to tell its progress."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PAYLOAD_BYTES_MAX: Final = 65_536
"""Progress and result hold at most this; larger data is an artifact."""
PROGRESS_FILE: Final = "progress.json"
HASH_CHUNK_BYTES: Final = 1 << 20


class ArgumentError(Exception):
    """The item's ``config`` cannot be run anywhere: the item fails and is not tried again."""


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt at one work item, inside its own process."""

    work_id: str
    work_type: str
    attempt: int
    config: Mapping[str, Any]
    directory: Path
    """Scratch space; gone when the process ends."""
    output_dir: Path
    """Where files that stay are written; the same for every attempt on this node."""

    def progress(self, value: Mapping[str, Any]) -> None:
        """Say how far it is; the cluster hears it with the next renewal of the lease."""
        data = json.dumps(dict(value), allow_nan=False).encode()
        if len(data) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"progress has {len(data)} bytes, the most is {PAYLOAD_BYTES_MAX}")
        temporary = self.directory / (PROGRESS_FILE + ".tmp")
        temporary.write_bytes(data)
        temporary.replace(self.directory / PROGRESS_FILE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an entry point returns. A plain dict stands for a result without artifacts."""

    result: Mapping[str, Any]
    artifacts: tuple[Mapping[str, Any], ...] = ()


def artifact(path: Path, name: str | None = None) -> dict[str, Any]:
    """The description of a file that a result refers to: name, path, bytes, sha256."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"name": name or path.name, "path": str(path), "bytes": size, "sha256": digest.hexdigest()}
