"""A disk in memory that can die, fail and lose power at any operation."""

from __future__ import annotations

import errno
import random
from pathlib import Path

DEATHS = ("before", "torn", "after")
"""Where in its last operation the process dies; a torn write leaves a prefix."""


class Died(BaseException):
    """The process is gone. Not an Exception: no code of ours may catch it."""


SECTOR = 512


class Inode:
    """A file's bytes: in the page cache (``data``), on the medium for certain (``durable``), and perhaps."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.durable = bytes(data)
        self.perhaps: dict[int, list[bytes]] = {}
        """By sector: what it held at times since the last sync, any of which may be on the medium."""
        self.sizes: list[int] = []
        """The sizes that the file had since the last sync."""

    def write(self, data: bytes, offset: int) -> None:
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(data)] = data
        for sector in range(offset // SECTOR, (offset + len(data) - 1) // SECTOR + 1 if data else 0):
            self.perhaps.setdefault(sector, []).append(bytes(self.data[sector * SECTOR : (sector + 1) * SECTOR]))
        self.sizes.append(len(self.data))

    def cut(self, size: int) -> None:
        del self.data[size:]
        self.sizes.append(len(self.data))

    def sync(self) -> None:
        self.durable = bytes(self.data)
        self.perhaps, self.sizes = {}, []

    def copy(self) -> Inode:
        """The same file for the next process."""
        other = Inode(self.durable)
        other.data = bytearray(self.data)
        other.perhaps = {sector: list(versions) for sector, versions in self.perhaps.items()}
        other.sizes = list(self.sizes)
        return other

    def after_power_cut(self, chance: random.Random | None) -> Inode:
        """What is on the medium: without ``chance`` what was synced, else any mix of what was written since."""
        if chance is None:
            return Inode(self.durable)
        size = chance.choice([len(self.durable), *self.sizes])
        if self.sizes and chance.random() < 0.3:
            size = chance.randint(min(len(self.durable), *self.sizes), max(len(self.durable), *self.sizes))
        keeps = chance.choice([0.1, 0.5, 0.9, 1.0])
        data = bytearray(self.durable)
        data.extend(bytes(max(0, max([size, *self.sizes]) - len(data))))
        for sector, versions in sorted(self.perhaps.items()):
            if chance.random() < keeps:
                version = versions[-1] if chance.random() < 0.8 else chance.choice(versions)
                data[sector * SECTOR : sector * SECTOR + len(version)] = version
        return Inode(bytes(data[:size]))


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

        write = self._inode.write
        self._disk.step("pwrite", lambda: write(data, offset), torn=lambda: write(data[: len(data) // 2], offset))

    def truncate(self, size: int) -> None:
        self._disk.step("truncate", lambda: self._inode.cut(size))

    def reserve(self, size: int) -> None:
        self._disk.step("reserve", lambda: None)

    def sync(self) -> None:
        def keep() -> None:
            assert self._is_open, "closed during a sync"
            self._inode.sync()

        self._disk.step("sync", keep)

    def close(self) -> None:
        self._is_open = False


class MemoryDisk:
    """``die_at`` counts operations from 1; so does ``fail_at``, whose operation ends in an OSError."""

    def __init__(self) -> None:
        self.inodes: dict[Path, Inode] = {}
        self.durable: dict[Path, Inode] = {}
        self.perhaps: dict[Path, list[dict[Path, Inode]]] = {}
        """By directory: the names in it at times since it was synced, any of which may be on the medium."""
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

    def _named(self, directory: Path) -> None:
        """The names in a directory changed."""
        names = {path: inode for path, inode in self.inodes.items() if path.parent == directory}
        self.perhaps.setdefault(directory, []).append(names)

    def open(self, path: Path, *, create: bool = False) -> MemoryFile:
        if create:

            def make() -> None:
                self.inodes[path] = Inode()
                self._named(path.parent)

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
            self._named(target.parent)

        self.step("replace", move)

    def remove(self, path: Path) -> None:
        def drop() -> None:
            del self.inodes[path]
            self._named(path.parent)

        self.step("remove", drop)

    def sync_directory(self, directory: Path) -> None:
        def keep() -> None:
            self.perhaps.pop(directory, None)
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
        disk = self._blank()
        copies = {id(inode): inode.copy() for inode in self._all_inodes()}
        disk.inodes = {path: copies[id(inode)] for path, inode in self.inodes.items()}
        disk.durable = {path: copies[id(inode)] for path, inode in self.durable.items()}
        disk.perhaps = {
            directory: [{path: copies[id(inode)] for path, inode in names.items()} for names in versions]
            for directory, versions in self.perhaps.items()
        }
        return disk

    def after_power_cut(self, chance: random.Random | None = None) -> MemoryDisk:
        """What was synced, under the names that were; with ``chance`` also any part of what was not."""
        names = dict(self.durable)
        if chance is not None:
            for directory, versions in sorted(self.perhaps.items()):
                kept = {path: inode for path, inode in names.items() if path.parent == directory}
                names = {path: inode for path, inode in names.items() if path.parent != directory}
                names.update(chance.choice([kept, *versions]))
        disk = self._blank()
        disk.inodes = {path: inode.after_power_cut(chance) for path, inode in sorted(names.items())}
        disk.durable = dict(disk.inodes)
        return disk

    def contents(self) -> dict[Path, bytes]:
        return {path: bytes(inode.data) for path, inode in self.inodes.items()}

    @classmethod
    def holding(cls, contents: dict[Path, bytes]) -> MemoryDisk:
        """A disk that holds these files, synced."""
        disk = cls()
        disk.inodes = {path: Inode(data) for path, data in contents.items()}
        disk.durable = dict(disk.inodes)
        return disk

    def _all_inodes(self) -> list[Inode]:
        versions = [names for versions in self.perhaps.values() for names in versions]
        return [inode for names in (self.inodes, self.durable, *versions) for inode in names.values()]

    def _blank(self) -> MemoryDisk:
        disk = MemoryDisk()
        disk._random.seed(self._random.getrandbits(32))
        return disk
