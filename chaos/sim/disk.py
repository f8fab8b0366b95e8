"""A machine's disk, with the page cache in front of it.

What a process wrote is in the page cache: it survives the process, not the power. At a power cut each
write since the file's last sync is kept, lost or torn at a sector, by the seed, and so is each name
made, moved or removed since the directory's last sync. A sync that fails has dropped what it was asked
to keep, and later ones do not bring it back.

``SimDisk`` is the machine's and outlives its processes. ``DiskHandle`` is what one process sees of it,
``Disk`` in the code under test; the handle of a dead process takes nothing any more.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from chaos.sim.died import Died
from chaos.sim.loop import NodeLoop
from ringraft.failpoints import step_of

SECTOR = 512
TORN = 0.15
"""The chance of an unsynced write to be torn at a power cut, beside that of being kept."""
KEPT_MS = (0.05, 0.4)
"""How long a sync takes on a healthy disk."""


class Write:
    """Bytes at a place, or (``data`` None) a new size, that no sync covers yet."""

    __slots__ = ("data", "offset", "old", "old_size")

    def __init__(self, offset: int, data: bytes | None, old: bytes, old_size: int) -> None:
        self.offset = offset
        self.data = data
        self.old = old
        self.old_size = old_size


class Inode:
    """A file: what the page cache holds, and what of it is not on the medium."""

    __slots__ = ("_medium", "data", "synced_s", "unsynced")

    def __init__(self) -> None:
        self.data = bytearray()
        self.unsynced: list[Write] = []
        self.synced_s = 0.0
        self._medium: bytearray | None = None
        """What is on the medium, once a sync has failed: then what the page cache takes for clean need not be there."""

    def write(self, data: bytes, offset: int) -> None:
        content = self.data
        self.unsynced.append(Write(offset, data, bytes(content[offset : offset + len(data)]), len(content)))
        _put(content, data, offset)

    def truncate(self, size: int) -> None:
        self.unsynced.append(Write(size, None, bytes(self.data[size:]), len(self.data)))
        del self.data[size:]

    def sync(self, count: int | None = None) -> None:
        """The first ``count`` unsynced writes, or all, reach the medium."""
        done = self.unsynced[:count]
        if self._medium is not None:
            for write in done:
                _apply(write, self._medium)
        del self.unsynced[: len(done)]

    def fail_sync(self) -> None:
        """Nothing of it reaches the medium, and the page cache does not know."""
        if self._medium is None:
            self._medium = self._synced()
        self.unsynced.clear()

    def cut_power(self, rng: random.Random, kept: float) -> None:
        """Each unsynced write is kept with the chance ``kept``, lost, or torn at a sector."""
        content = self._medium if self._medium is not None else self._synced()
        for write in self.unsynced:
            chance = rng.random()
            if chance < kept:
                _apply(write, content)
            elif chance < kept + TORN and write.data is not None:
                # Whole sectors reach the medium.
                border = rng.randrange(len(write.data) + 1)
                border -= (write.offset + border) % SECTOR
                if border > 0:
                    _put(content, write.data[:border], write.offset)
        self.data, self.unsynced, self._medium = content, [], None

    def _synced(self) -> bytearray:
        """The content without what is not synced."""
        content = bytearray(self.data)
        for write in reversed(self.unsynced):
            if write.data is None:
                content.extend(write.old)
                continue
            content[write.offset : write.offset + len(write.old)] = write.old
            del content[write.old_size :]
        return content


def _put(content: bytearray, data: bytes, offset: int) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _apply(write: Write, content: bytearray) -> None:
    if write.data is None:
        del content[write.offset :]
    else:
        _put(content, write.data, write.offset)


Renaming = tuple[Path, Inode | None, Path | None]
"""(name, what it is now or None, the name that it had before and that is gone)."""


class Watch(Protocol):
    """Who is told what a disk does."""

    def wrote(self, node_id: str, operation: str, path: Path, inode: Inode) -> None:
        """``operation`` is done, and durable if it is a sync."""
        ...


class SimDisk:
    """One machine's disk."""

    def __init__(self, node_id: str, rng: random.Random, watch: Watch) -> None:
        self.node_id = node_id
        self.rng = rng
        self.watch = watch
        self.names: dict[Path, Inode] = {}
        self._durable: dict[Path, Inode] = {}
        self._renamings: list[Renaming] = []
        self.sync_ms = KEPT_MS
        self.is_full = False
        self.syncs_to_fail = 0
        self.kept = 0.5
        """The chance of an unsynced write to survive a power cut."""
        self.operations = 0

    def delay_s(self) -> float:
        """How long the next sync takes."""
        return self.rng.uniform(*self.sync_ms) / 1000

    def move(self, name: Path, inode: Inode | None, before: Path | None = None) -> None:
        """A name is made, moved here from ``before``, or (``inode`` None) removed."""
        if before is not None:
            del self.names[before]
        if inode is None:
            del self.names[name]
        else:
            self.names[name] = inode
        self._renamings.append((name, inode, before))

    def sync_names(self, directory: Path) -> None:
        left = []
        for renaming in self._renamings:
            if renaming[0].parent == directory:
                self._keep(renaming)
            else:
                left.append(renaming)
        self._renamings = left

    def _keep(self, renaming: Renaming) -> None:
        name, inode, before = renaming
        if before is not None:
            self._durable.pop(before, None)
        if inode is None:
            self._durable.pop(name, None)
        else:
            self._durable[name] = inode

    def cut_power(self) -> None:
        """What is left when the power comes back."""
        for renaming in self._renamings:
            if self.rng.random() < self.kept:
                self._keep(renaming)
        self._renamings = []
        self.names = dict(self._durable)
        for inode in {id(inode): inode for inode in self.names.values()}.values():
            inode.cut_power(self.rng, self.kept)

    def wipe(self) -> None:
        """An empty disk."""
        self.names, self._durable, self._renamings = {}, {}, []


class DiskHandle:
    """The disk as one process sees it: ``Disk``."""

    def __init__(self, disk: SimDisk, loop: NodeLoop, die: Callable[[], None]) -> None:
        self._disk = disk
        self._loop = loop
        self._die = die
        self.deadly: tuple[str, int, str] | None = None
        """(step of ``ringraft.failpoints`` or "" for any, how many of them are left, before|torn|after): its death."""
        self._renamed: dict[Path, Path] = {}

    # Every operation goes through here.

    def step(self, operation: str, path: Path, act: Callable[[], None], torn: Callable[[], None] | None = None) -> None:
        disk = self._disk
        if self._loop.is_gone:
            raise Died
        disk.operations += 1
        if self.deadly is not None:
            self._maybe_die(step_of(operation, self.present(path)), act, torn)
        act()

    def present(self, path: Path) -> Path:
        """The name that a file has now which was opened as ``path``."""
        return self._renamed.get(path, path)

    def _maybe_die(self, step: str | None, act: Callable[[], None], torn: Callable[[], None] | None) -> None:
        assert self.deadly is not None
        name, left, moment = self.deadly
        if name and name != step:
            return
        if left > 1:
            self.deadly = (name, left - 1, moment)
            return
        if moment == "after":
            act()
        elif moment == "torn" and torn is not None:
            torn()
        self._die()
        raise Died

    def block(self) -> None:
        """A sync on the event loop holds it up."""
        if not self._loop.in_thread and self._disk.sync_ms is not KEPT_MS:
            self._loop.ahead_s += self._disk.delay_s()

    def stand_still(self) -> None:
        """A sync in a thread of its own lets the loop go on."""
        loop = self._loop
        if loop.helper is not None and loop.helper.is_current():
            loop.helper.wait()

    def refuse_if_full(self, path: Path) -> None:
        if self._disk.is_full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def fail_if_due(self, path: Path) -> None:
        if self._disk.syncs_to_fail > 0:
            self._disk.syncs_to_fail -= 1
            raise OSError(errno.EIO, "Input/output error", str(path))

    # ``Disk``

    def open(self, path: Path, *, create: bool = False) -> SimFile:
        disk = self._disk
        if create:
            self.refuse_if_full(path)
            self._renamed.pop(path, None)
            self.step("create", path, lambda: disk.move(path, Inode()))
        elif self._loop.is_gone:
            raise Died
        elif path not in disk.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return SimFile(self, disk, path, disk.names[path])

    def names(self, directory: Path) -> list[str]:
        return sorted(path.name for path in self._disk.names if path.parent == directory)

    def make_directory(self, directory: Path) -> None:
        """All directories are there."""

    def replace(self, source: Path, target: Path) -> None:
        disk = self._disk
        inode = disk.names[source]
        self.step("rename", target, lambda: disk.move(target, inode, source))
        self._renamed[source] = target
        disk.watch.wrote(disk.node_id, "rename", target, inode)

    def remove(self, path: Path) -> None:
        disk = self._disk
        if path not in disk.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        self.step("remove", path, lambda: disk.move(path, None))

    def sync_directory(self, directory: Path) -> None:
        disk = self._disk
        self.block()
        self.stand_still()
        self.fail_if_due(directory)

        def keep() -> None:
            disk.sync_names(directory)
            disk.watch.wrote(disk.node_id, "sync_directory", directory, Inode())

        self.step("sync_directory", directory, keep)

    def salt(self) -> int:
        return self._disk.rng.getrandbits(32)


class SimFile:
    """An open file: ``DiskFile``."""

    __slots__ = ("_disk", "_handle", "_inode", "_is_open", "_path")

    def __init__(self, handle: DiskHandle, disk: SimDisk, path: Path, inode: Inode) -> None:
        self._handle = handle
        self._disk = disk
        self._path = path
        self._inode = inode
        self._is_open = True

    def size(self) -> int:
        return len(self._inode.data)

    def pread(self, size: int, offset: int) -> bytes:
        assert self._is_open, f"{self._path.name}: read after close"
        return bytes(self._inode.data[offset : offset + size])

    def pwrite(self, data: bytes, offset: int) -> None:
        assert self._is_open, f"{self._path.name}: write after close"
        inode, handle = self._inode, self._handle
        if self._disk.is_full and offset + len(data) > len(inode.data):
            room = self._disk.rng.randrange(len(data))
            inode.write(data[:room], offset)
            handle.refuse_if_full(self._path)
        handle.step(
            "write", self._path, lambda: inode.write(data, offset), lambda: inode.write(data[: len(data) // 2], offset)
        )

    def reserve(self, size: int) -> None:
        if size > len(self._inode.data):
            self._handle.refuse_if_full(self._path)
        self._handle.step("reserve", self._path, lambda: None)

    def truncate(self, size: int) -> None:
        self._handle.step("truncate", self._path, lambda: self._inode.truncate(size))

    def sync(self) -> None:
        assert self._is_open, f"{self._path.name}: closed before its sync"
        inode, handle = self._inode, self._handle
        handle.block()
        count = len(inode.unsynced)
        handle.stand_still()
        if self._disk.syncs_to_fail > 0:
            inode.fail_sync()
            handle.fail_if_due(self._path)
        # What is written while a sync runs is not covered by it.
        handle.step("sync", self._path, lambda: inode.sync(count))
        inode.synced_s = handle._loop.queue.now_s

    def close(self) -> None:
        self._is_open = False
