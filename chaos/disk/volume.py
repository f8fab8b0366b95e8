"""A small disk of its own: an ext4 image, mounted by loop, whose power can be cut.

A cut is ext4's shutdown without a flush of its journal: from that instant nothing reaches the image
any more, and what was written but not synced is gone at the next mount, as after a loss of power.
The file system replays its journal then; nothing is checked or repaired by hand.

The mounts live in a mount namespace of this process, so that none is left behind on the machine,
however the process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = struct.pack("I", 2)
CLONE_NEWNS = 0x00020000
FOLDER_PREFIX = "ringraft-disk-"
VOLUME_BYTES = 64 * 1024 * 1024
"""Large enough for a few minutes of load, small enough that making one takes 40 ms."""
COMMAND_S = 30.0


class CannotCutPower(Exception):
    """This machine cannot do it; the message says what is missing."""


def missing() -> str | None:
    """What this machine lacks for power cuts, None when it has everything."""
    if os.geteuid() != 0:
        return "power cuts need root, to mount file systems"
    for command in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(command) is None:
            return f"power cuts need the command {command}"
    if not Path("/dev/loop-control").exists():
        return "power cuts need loop devices, and /dev/loop-control is missing"
    return None


def run(*command: str | Path) -> None:
    """Run a command of the system; its own words in the exception when it fails."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    if done.returncode != 0:
        raise CannotCutPower(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.returncode}")


def enter_own_mounts() -> None:
    """Mount nothing that others see. Before threads are started. Raises CannotCutPower."""
    reason = missing()
    if reason is not None:
        raise CannotCutPower(reason)
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise CannotCutPower(f"unshare: {os.strerror(ctypes.get_errno())}")
    run("mount", "--make-rprivate", "/")


@contextmanager
def folder() -> Iterator[Path]:
    """A directory for volumes, gone at the end with all that is mounted in it; those of dead processes go first."""
    base = Path(tempfile.gettempdir())
    for left in base.glob(FOLDER_PREFIX + "*"):
        owner = left.name.removeprefix(FOLDER_PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path("/proc", owner).exists():
            remove_folder(left)
    path = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
    try:
        yield path
    finally:
        remove_folder(path)


def remove_folder(path: Path) -> None:
    """Unmount what is mounted below ``path``, then remove it."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{path}/")), reverse=True):
        run("umount", "--lazy", mount)
    shutil.rmtree(path, ignore_errors=True)


class Volume:
    """One image, mounted at ``path`` or not."""

    def __init__(self, folder: Path, name: str, size_bytes: int = VOLUME_BYTES) -> None:
        self.path = folder / name
        self._image = folder / f"{name}.img"
        self._filler = self.path / "filler"
        self._size_bytes = size_bytes
        self._is_mounted = False

    def make(self) -> None:
        """An empty file system, mounted. One that was there before is gone."""
        self.unmount()
        self.path.mkdir(exist_ok=True)
        self._image.unlink(missing_ok=True)
        with self._image.open("wb") as image:
            image.truncate(self._size_bytes)
        run("mkfs.ext4", "-q", "-F", self._image)
        self.mount()

    def mount(self) -> None:
        """Bring it back, as when the machine starts again."""
        run("mount", "-o", "loop", self._image, self.path)
        self._is_mounted = True

    def cut(self) -> None:
        """Cut its power: what was not synced is lost, and every write fails until it is mounted again.

        The processes on it are killed just before, not after: a sync that is under way during ext4's
        shutdown may return success without having kept anything, and no machine without power would
        let its process say so. From kill -9 on none says anything, while such a sync is still cut short.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert os.fstat(descriptor).st_dev != os.stat(self.path.parent).st_dev, "nothing is mounted here"
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(descriptor)

    def fill(self) -> None:
        """Take every free byte, so that the next that somebody wants is refused."""
        with self._filler.open("ab") as filler:
            for bits in range(26, 8, -1):
                with contextlib.suppress(OSError):
                    while True:
                        size = filler.seek(0, os.SEEK_END)
                        os.posix_fallocate(filler.fileno(), size, 1 << bits)

    def free(self) -> None:
        """Give back what ``fill`` took."""
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Take it away; nobody may have a file open on it."""
        if self._is_mounted:
            run("umount", self.path)
            self._is_mounted = False
