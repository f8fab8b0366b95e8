"""What executors print, kept for people: one file an attempt, bounded in size and in number."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import Final

LOG_BYTES_MAX: Final = 1 << 20
"""One file holds at most this. When it is full its older half goes: errors stand at the end."""
LOGS_MAX: Final = 1000
CUT: Final = b"[... earlier output was dropped ...]\n"
LOG_NAME: Final = re.compile(r"(?P<work_id>.+)\.(?P<token>\d+)\.log\Z")


class ItemLog:
    """The log file of one attempt while it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w+b", buffering=0)
        self._size = 0

    def __enter__(self) -> ItemLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Append; ``data`` is far smaller than the limit."""
        if self._size + len(data) > LOG_BYTES_MAX:
            self._drop_older_half()
        self._file.write(data)
        self._size += len(data)

    def last_line(self, chars_max: int) -> str:
        """The last line that is not empty, printable characters only."""
        self._file.seek(max(0, self._size - 4096))
        lines = [line.strip() for line in self._file.read().decode("utf-8", "replace").splitlines()]
        self._file.seek(self._size)
        return printable(next((line for line in reversed(lines) if line), ""), chars_max)

    def close(self) -> None:
        """Nothing is written any more."""
        self._file.close()

    def _drop_older_half(self) -> None:
        self._file.seek(max(0, self._size - LOG_BYTES_MAX // 2))
        tail = self._file.read()
        self._file.seek(0)
        self._file.truncate()
        self._file.write(CUT + tail)
        self._size = len(CUT) + len(tail)


class Logs:
    """All log files of a worker."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory

    def open(self, work_id: str, token: int) -> ItemLog:
        """A new log; the oldest file goes when there are too many."""
        logs = sorted(self._directory.glob("*.log"), key=lambda path: path.stat().st_mtime_ns)
        for path in logs[: max(0, len(logs) - LOGS_MAX + 1)]:
            path.unlink(missing_ok=True)
        return ItemLog(self._directory / f"{work_id}.{token}.log")

    def path(self, work_id: str) -> Path | None:
        """The log of the latest attempt that ran here; ids are equal ignoring case."""
        found: dict[int, Path] = {}
        for path in self._directory.glob("*.log"):
            name = LOG_NAME.match(path.name)
            if name is not None and name["work_id"].lower() == work_id.lower():
                found[int(name["token"])] = path
        return found[max(found)] if found else None


def printable(text: str, chars_max: int) -> str:
    """Text without control characters, cut to ``chars_max``."""
    return "".join(c if c.isprintable() else " " for c in text)[:chars_max]
