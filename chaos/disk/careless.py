"""Disks with a planted bug, to show that deaths and refusals would notice one.

Power cuts notice the mutant ``sync_that_syncs_nothing``.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ringraft.consensus.replog.files import LocalDisk, LocalFile


class _BufferedFile(LocalFile):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._waiting: list[tuple[bytes, int]] = []

    def pwrite(self, data: bytes, offset: int) -> None:
        self._waiting.append((data, offset))

    def sync(self) -> None:
        while len(self._waiting) > 1:
            super().pwrite(*self._waiting.pop(0))
        super().sync()

    def close(self) -> None:
        for data, offset in self._waiting:
            super().pwrite(data, offset)
        super().close()


class BufferedDisk(LocalDisk):
    """It keeps the newest write to a file in memory, synced or not: the death of a process shows it."""

    def open(self, path: Path, *, create: bool = False) -> LocalFile:
        return _BufferedFile(descriptor(path, create))


class _DeafFile(LocalFile):
    def sync(self) -> None:
        with contextlib.suppress(OSError):
            super().sync()


class DeafDisk(LocalDisk):
    """It goes on after a failed sync: a refused sync shows it."""

    def open(self, path: Path, *, create: bool = False) -> LocalFile:
        return _DeafFile(descriptor(path, create))


def descriptor(path: Path, create: bool) -> int:
    """Open as the real disk does."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0), 0o600)
