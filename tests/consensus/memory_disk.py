"""A disk in memory that can die, fail and lose power at any operation."""

from __future__ import annotations

import errno
import random
from pathlib import Path

DEATHS = ("before", "torn", "after")
"""Where in its last operation the process dies; a torn write leaves a prefix."""


class Died(BaseException):
    """The process is gone. Not an Exception: no code of ours may catch it."""


class Inode:
    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.durable = bytes(data)


class MemoryFile:
    def __init__(self, disk: MemoryDisk, inode: Inode) -> None:
        self._disk = disk
        self._inode = inode
        self._is_open = True

    def size(self) -> int:
        return len(self._inode.data)

    def pread(self, size: int, offset: int) -> bytes:
        assert self._is_open, "read after close"
        return bytes(self._inode.data[offset : offset + size])

    def pwrite(self, data: bytes, offset: int) -> None:
        assert self._is_open, "write after close"

        def write(part: bytes) -> None:
            content = self._inode.data
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(part)] = part

        self._disk.step("pwrite", lambda: write(data), torn=lambda: write(data[: len(data) // 2]))

    def truncate(self, size: int) -> None:
        def cut() -> None:
            del self._inode.data[size:]

        self._disk.step("truncate", cut)

    def sync(self) -> None:
        def keep() -> None:
            assert self._is_open, "closed during a sync"
            self._inode.durable = bytes(self._inode.data)

        self._disk.step("sync", keep)

    def close(self) -> None:
        self._is_open = False


class MemoryDisk:
    """``die_at`` counts operations from 1; so does ``fail_at``, whose operation ends in an OSError."""

    def __init__(self) -> None:
        self.inodes: dict[Path, Inode] = {}
        self.durable: dict[Path, Inode] = {}
        self.operations = 0
        self.log: list[str] = []
        self.die_at: int | None = None
        self.death = "before"
        self.fail_at: int | None = None
        self.fail_errno = errno.ENOSPC
        self._random = random.Random(7)

    def step(self, name: str, act: object, torn: object = None) -> None:
        assert callable(act)
        self.operations += 1
        self.log.append(name)
        if self.operations == self.die_at:
            if self.death == "torn" and callable(torn):
                torn()
            elif self.death == "after":
                act()
            raise Died
        if self.operations == self.fail_at:
            if callable(torn):
                torn()
            raise OSError(self.fail_errno, f"injected at operation {self.operations}")
        act()

    def open(self, path: Path, *, create: bool = False) -> MemoryFile:
        if create:

            def make() -> None:
                self.inodes[path] = Inode()

            self.step("create", make)
        elif path not in self.inodes:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return MemoryFile(self, self.inodes[path])

    def names(self, directory: Path) -> list[str]:
        return sorted(path.name for path in self.inodes if path.parent == directory)

    def make_directory(self, directory: Path) -> None:
        pass

    def replace(self, source: Path, target: Path) -> None:
        def move() -> None:
            self.inodes[target] = self.inodes.pop(source)

        self.step("replace", move)

    def remove(self, path: Path) -> None:
        def drop() -> None:
            del self.inodes[path]

        self.step("remove", drop)

    def sync_directory(self, directory: Path) -> None:
        def keep() -> None:
            for path in [path for path in self.durable if path.parent == directory]:
                del self.durable[path]
            for path, inode in self.inodes.items():
                if path.parent == directory:
                    self.durable[path] = inode

        self.step("sync_directory", keep)

    def salt(self) -> int:
        return self._random.getrandbits(32)

    # What is left for the next process

    def after_kill(self) -> MemoryDisk:
        """What the page cache holds; nothing more of it is synced than was."""
        return self._successor(self.inodes, from_medium=False)

    def after_power_cut(self) -> MemoryDisk:
        """What was synced, under the names that were."""
        return self._successor(self.durable, from_medium=True)

    def contents(self) -> dict[Path, bytes]:
        return {path: bytes(inode.data) for path, inode in self.inodes.items()}

    @classmethod
    def holding(cls, contents: dict[Path, bytes]) -> MemoryDisk:
        """A disk that holds these files, synced."""
        disk = cls()
        disk.inodes = {path: Inode(data) for path, data in contents.items()}
        disk.durable = dict(disk.inodes)
        return disk

    def _successor(self, names: dict[Path, Inode], *, from_medium: bool) -> MemoryDisk:
        copies: dict[int, Inode] = {}
        for inode in (*names.values(), *self.durable.values()):
            copy = Inode(inode.durable)
            if not from_medium:
                copy.data = bytearray(inode.data)
            copies[id(inode)] = copy
        disk = MemoryDisk()
        disk._random.seed(self._random.getrandbits(32))
        disk.inodes = {path: copies[id(inode)] for path, inode in names.items()}
        disk.durable = {path: copies[id(inode)] for path, inode in self.durable.items()}
        return disk
