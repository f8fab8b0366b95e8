"""The disk as the log sees it: a few calls, one error, and how a whole file is replaced.

Everything the log writes goes through ``Disk``, so that a simulator can stand in for the machine
and lose, tear or refuse what a real disk may lose, tear or refuse. What may be assumed of it:

- a ``pwrite`` that returned survives the death of this process (it is in the page cache), but not a
  power cut before the next ``sync`` of that file; one that was interrupted may have written a prefix;
- ``replace`` is atomic; it, a new name and a removal survive a power cut after ``sync_directory``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

TEMPORARY_SUFFIX = ".tmp"
"""Names that end so are unfinished files; whoever owns the directory removes them at start."""


FALLOC_FL_KEEP_SIZE = 1
"""Of Linux' fallocate(2): room without size, so that the end of the file stays the end of what was written."""

_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class DiskFailed(Exception):
    """The disk refused an operation; nothing more is taken, since what it did is unknown.

    A failed sync may have dropped the data it was asked to keep, so nothing is tried again on the
    same files: the process has to end, and what is on disk counts when it starts again.
    """

    def __init__(self, path: Path, operation: str, reason: str) -> None:
        super().__init__(f"{path}: {operation} failed: {reason}; this node stops taking part: free or repair the disk")
        self.path = path
        self.operation = operation


class DiskFile(Protocol):
    """An open file, read and written at given offsets."""

    def size(self) -> int: ...

    def pread(self, size: int, offset: int) -> bytes:
        """The bytes there; fewer only where the file ends."""
        ...

    def pwrite(self, data: bytes, offset: int) -> None:
        """All of ``data``, or OSError."""
        ...

    def truncate(self, size: int) -> None: ...

    def reserve(self, size: int) -> None:
        """Have room on the medium for a file of ``size`` bytes, or OSError; the file itself does not grow."""
        ...

    def sync(self) -> None:
        """Returns once data and size are on the medium. May be called in another thread than the writer's."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """What the log needs of a file system. Every call may raise OSError."""

    def open(self, path: Path, *, create: bool = False) -> DiskFile:
        """Open for reading and writing; ``create`` makes the file, or empties it."""
        ...

    def names(self, directory: Path) -> list[str]:
        """The names in it, sorted; none when it does not exist."""
        ...

    def make_directory(self, directory: Path) -> None:
        """Make it and its parents, durably; nothing to do when it exists."""
        ...

    def replace(self, source: Path, target: Path) -> None: ...

    def remove(self, path: Path) -> None: ...

    def sync_directory(self, directory: Path) -> None: ...

    def salt(self) -> int:
        """32 bits that nobody who writes through the log can guess."""
        ...


class LocalFile:
    """A file of this machine."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def pread(self, size: int, offset: int) -> bytes:
        parts = []
        while size > 0:
            part = os.pread(self._descriptor, size, offset)
            if not part:
                break
            parts.append(part)
            size -= len(part)
            offset += len(part)
        return b"".join(parts)

    def pwrite(self, data: bytes, offset: int) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        while written < len(data):
            written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def reserve(self, size: int) -> None:
        if _fallocate is None:
            return
        while _fallocate(self._descriptor, FALLOC_FL_KEEP_SIZE, 0, size) != 0:
            code = ctypes.get_errno()
            if code in (errno.EOPNOTSUPP, errno.ENOSYS):
                # This file system gives room only when written to; a record torn by a full disk is cut at the start.
                return
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class LocalDisk:
    """The file system of this machine."""

    def open(self, path: Path, *, create: bool = False) -> LocalFile:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0)
        return LocalFile(os.open(path, flags, 0o600))

    def names(self, directory: Path) -> list[str]:
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []

    def make_directory(self, directory: Path) -> None:
        if directory.is_dir():
            return
        if directory.parent != directory:
            self.make_directory(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
        self.sync_directory(directory.parent)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def salt(self) -> int:
        return secrets.randbits(32)


LOCAL_DISK = LocalDisk()


@contextmanager
def disk_failure(path: Path, operation: str) -> Iterator[None]:
    """Say which file and what was tried when the disk refuses."""
    try:
        yield
    except OSError as error:
        raise DiskFailed(path, operation, error.strerror or str(error)) from error


def temporary(path: Path) -> Path:
    """Where the next content of ``path`` is written before it takes the name."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def read_whole(disk: Disk, path: Path) -> bytes:
    """All bytes of a file; DiskFailed when it cannot be read."""
    with disk_failure(path, "read"):
        file = disk.open(path)
        try:
            return file.pread(file.size(), 0)
        finally:
            file.close()


def create_durably(disk: Disk, path: Path, content: bytes) -> DiskFile:
    """Make ``path`` hold ``content``, at every instant and after any crash either whole or as before.

    Returns the file, open. Raises OSError.
    """
    unfinished = temporary(path)
    file = disk.open(unfinished, create=True)
    try:
        file.pwrite(content, 0)
        file.sync()
        disk.replace(unfinished, path)
        disk.sync_directory(path.parent)
    except OSError:
        file.close()
        raise
    return file
