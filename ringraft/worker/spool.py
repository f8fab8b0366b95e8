"""What the worker has to report, kept on disk until the cluster has acknowledged it.

One file a report, named by a rising number, so that reports are handed in oldest first. A file is
written durably before the executor's own files go, so a kill at any moment loses no result.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ringraft.worker.durable import sync_directory, write_durably

logger = logging.getLogger(__name__)

REPORTS_MAX: Final = 10_000
"""Reports kept. A worker stops claiming before it would exceed this."""
VERBS: Final = frozenset({"complete", "fail", "release"})


@dataclass(frozen=True, slots=True)
class Report:
    """How one grant ended: a verb of ``/work/…`` and its body. ``at_wall_ms`` is for people."""

    verb: str
    work_id: str
    token: int
    body: dict[str, Any]
    """Whatever the verb takes besides ``work_id`` and ``token``."""
    at_wall_ms: int

    def request(self) -> dict[str, Any]:
        """The body of ``POST /work/{verb}``."""
        return {"work_id": self.work_id, "token": self.token, **self.body}

    def to_json(self) -> dict[str, Any]:
        """The form on disk."""
        return {
            "version": 1,
            "verb": self.verb,
            "work_id": self.work_id,
            "token": self.token,
            "body": self.body,
            "at_wall_ms": self.at_wall_ms,
        }

    @classmethod
    def from_json(cls, value: Any) -> Report:
        """Raises ValueError for anything that ``to_json`` did not make."""
        match value:
            case {
                "version": 1,
                "verb": str(verb),
                "work_id": str(work_id),
                "token": int(token),
                "body": dict(body),
                "at_wall_ms": int(at_wall_ms),
            } if verb in VERBS:
                return cls(verb, work_id, token, body, at_wall_ms)
        raise ValueError("not a report of version 1")


@dataclass(frozen=True, slots=True)
class Spooled:
    """A report and where it lies."""

    path: Path
    report: Report


class Spool:
    """The reports not yet acknowledged. Its methods use the disk: call them in a thread."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._held: dict[int, Spooled] = {}
        self._last = 0
        self._load()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, grant: tuple[str, int]) -> bool:
        """Whether the end of the grant (work_id, token) is already kept."""
        return any((s.report.work_id, s.report.token) == grant for s in self._held.values())

    def oldest_first(self) -> list[Spooled]:
        """Everything kept, in the order it came."""
        return [self._held[number] for number in sorted(self._held)]

    def put(self, report: Report) -> Spooled:
        """Keep a report; returns once it is on the disk. Raises OSError, then it is not kept."""
        number = self._last + 1
        path = self._directory / f"{number:016d}.json"
        write_durably(path, json.dumps(report.to_json(), allow_nan=False).encode())
        self._last = number
        spooled = Spooled(path, report)
        self._held[number] = spooled
        return spooled

    def replace(self, spooled: Spooled, report: Report) -> Spooled:
        """Keep ``report`` in the place of another one."""
        write_durably(spooled.path, json.dumps(report.to_json(), allow_nan=False).encode())
        replaced = Spooled(spooled.path, report)
        self._held[int(spooled.path.stem)] = replaced
        return replaced

    def remove(self, spooled: Spooled) -> None:
        """Forget a report that was acknowledged; after a crash right here it is handed in once more."""
        spooled.path.unlink(missing_ok=True)
        self._held.pop(int(spooled.path.stem), None)

    def _load(self) -> None:
        for leftover in self._directory.glob("*.tmp"):
            leftover.unlink()
        for path in sorted(self._directory.glob("*.json")):
            try:
                number = int(path.stem)
                report = Report.from_json(json.loads(path.read_bytes()))
            except ValueError as error:
                # Kept aside for a look: the rename that made the file rules out a torn write.
                path.rename(path.with_suffix(".damaged"))
                logger.error("a spooled report is damaged action=spool_damaged file=%s error=%s", path.name, error)
                continue
            self._held[number] = Spooled(path, report)
            self._last = max(self._last, number)
        sync_directory(self._directory)
