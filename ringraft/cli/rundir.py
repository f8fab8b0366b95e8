"""Where a demo's data lies: a directory of its own, taken away by a later run unless it is to be kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ringraft.cli.exits import CommandFailed, ExitCode

LOCK = "lock"
KEEP = "keep"


def private_directory(name: str) -> Path:
    """``$TMPDIR/NAME-UID``, ours alone. CommandFailed when somebody else has it."""
    path = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if path.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise CommandFailed(ExitCode.ERROR, f"{path} is not this user's alone; remove it or set TMPDIR")
    return path


class RunDirectory:
    """A fresh directory that is held while the run lasts; earlier ones that nobody holds or keeps are removed."""

    def __init__(self, base: Path, *, keep: bool) -> None:
        _remove_abandoned(base)
        self.path = base / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.path.mkdir()
        held = _hold(self.path)
        assert held is not None, "a directory just made is nobody else's"
        self._held = held
        if keep:
            (self.path / KEEP).touch()

    def close(self) -> None:
        """Let go; the data stays until the next run."""
        self._held.close()


def _hold(path: Path) -> TextIO | None:
    file = (path / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _remove_abandoned(base: Path) -> None:
    for path in base.iterdir():
        if (path / KEEP).exists() or not (path / LOCK).is_file():
            continue
        with suppress(FileNotFoundError):
            held = _hold(path)
            if held is not None:
                shutil.rmtree(path, ignore_errors=True)
                held.close()
