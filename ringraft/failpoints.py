"""Named points at which a process can be made to die or its disk to fail, before and after each durable step.

Every durable step of the log goes through ``Disk``, so the points lie there and cost nothing when none
is asked for: the node then has no ``FailpointDisk``. ``RINGRAFT_FAILPOINT=name:count:action`` arms one
in a real process; the simulator arms them by the same names.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ringraft.consensus.replog.files import TEMPORARY_SUFFIX, Disk, DiskFile

STEPS = (
    "segment.create", "segment.fill", "segment.fill_sync", "segment.rename", "segment.reserve", "segment.append",
    "segment.sync", "segment.cut", "segment.remove",
    "vote.create", "vote.write", "vote.sync", "vote.rename",
    "mark.create", "mark.write",
    "snapshot.create", "snapshot.write", "snapshot.sync", "snapshot.rename", "snapshot.remove",
    "log.sync_directory", "snapshots.sync_directory",
)  # fmt: skip
"""What is written when: a segment of the journal is filled under a temporary name and then appended to."""

POINTS = tuple(f"{step}.{moment}" for step in STEPS for moment in ("before", "after"))
ACTIONS = ("kill", "eio", "enospc")

_KINDS = (("journal-", "segment"), ("vote", "vote"), ("mark", "mark"), ("snapshot-", "snapshot"))
_FILLED = {"write": "fill", "sync": "fill_sync"}
_APPENDED = {"write": "append", "truncate": "cut"}


def step_of(operation: str, path: Path) -> str | None:
    """The step that an operation on a file is; None when it has no name.

    ``operation`` is create, write, reserve, sync, truncate, rename, remove or sync_directory; of a rename
    ``path`` is the new name.
    """
    name = path.name
    if operation == "sync_directory":
        return {"log": "log.sync_directory", "snapshot": "snapshots.sync_directory"}.get(name)
    kind = next((kind for start, kind in _KINDS if name.startswith(start)), None)
    if kind is None:
        return None
    if kind == "segment":
        other = _FILLED if name.endswith(TEMPORARY_SUFFIX) else _APPENDED
        operation = other.get(operation, operation)
    step = f"{kind}.{operation}"
    return step if step in STEPS else None


@dataclass(slots=True)
class Failpoint:
    """What happens at the ``count``-th time that ``point`` is reached."""

    point: str
    count: int
    action: str

    @classmethod
    def parse(cls, text: str) -> Failpoint:
        """Raises ValueError that says what is wrong."""
        parts = text.split(":")
        if len(parts) != 3:
            raise ValueError(f"a failpoint is name:count:action, not {text!r}")
        point, count, action = parts
        if point not in POINTS:
            raise ValueError(f"there is no failpoint {point!r}; there are {', '.join(POINTS)}")
        if not count.isdecimal() or int(count) < 1:
            raise ValueError(f"a failpoint's count is a number from 1, not {count!r}")
        if action not in ACTIONS:
            raise ValueError(f"a failpoint's action is one of {', '.join(ACTIONS)}, not {action!r}")
        return cls(point, int(count), action)

    def reach(self, point: str, path: Path) -> None:
        """Dies or raises OSError when it is time."""
        if point != self.point:
            return
        self.count -= 1
        if self.count:
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = errno.EIO if self.action == "eio" else errno.ENOSPC
        raise OSError(code, os.strerror(code), str(path))


class FailpointDisk:
    """A ``Disk`` with one armed point."""

    def __init__(self, disk: Disk, failpoint: Failpoint) -> None:
        self._disk = disk
        self._failpoint = failpoint
        self._renamed: dict[Path, Path] = {}

    def present(self, path: Path) -> Path:
        """The name that a file has now which was opened as ``path``."""
        return self._renamed.get(path, path)

    def around(self, operation: str, path: Path, act: Callable[[], None]) -> None:
        """Do it, with the points before and after."""
        step = step_of(operation, path)
        if step is None:
            act()
            return
        self._failpoint.reach(f"{step}.before", path)
        act()
        self._failpoint.reach(f"{step}.after", path)

    def open(self, path: Path, *, create: bool = False) -> DiskFile:
        if not create:
            return FailpointFile(self, path, self._disk.open(path))
        self._renamed.pop(path, None)
        opened: list[DiskFile] = []
        self.around("create", path, lambda: opened.append(self._disk.open(path, create=True)))
        return FailpointFile(self, path, opened[0])

    def names(self, directory: Path) -> list[str]:
        return self._disk.names(directory)

    def make_directory(self, directory: Path) -> None:
        self._disk.make_directory(directory)

    def replace(self, source: Path, target: Path) -> None:
        self.around("rename", target, lambda: self._disk.replace(source, target))
        self._renamed[source] = target

    def remove(self, path: Path) -> None:
        self.around("remove", path, lambda: self._disk.remove(path))

    def sync_directory(self, directory: Path) -> None:
        self.around("sync_directory", directory, lambda: self._disk.sync_directory(directory))

    def salt(self) -> int:
        return self._disk.salt()


class FailpointFile:
    """A ``DiskFile`` of a ``FailpointDisk``."""

    def __init__(self, disk: FailpointDisk, path: Path, file: DiskFile) -> None:
        self._disk = disk
        self._path = path
        self._file = file

    def size(self) -> int:
        return self._file.size()

    def pread(self, size: int, offset: int) -> bytes:
        return self._file.pread(size, offset)

    def pwrite(self, data: bytes, offset: int) -> None:
        self._disk.around("write", self._disk.present(self._path), lambda: self._file.pwrite(data, offset))

    def truncate(self, size: int) -> None:
        self._disk.around("truncate", self._disk.present(self._path), lambda: self._file.truncate(size))

    def reserve(self, size: int) -> None:
        self._disk.around("reserve", self._disk.present(self._path), lambda: self._file.reserve(size))

    def sync(self) -> None:
        self._disk.around("sync", self._disk.present(self._path), self._file.sync)

    def close(self) -> None:
        self._file.close()
