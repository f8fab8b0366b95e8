"""One walk in a process of its own, forked so that a life costs milliseconds."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from chaos.disk.walk import Walk, tell_to
from ringraft.consensus.replog.files import LOCAL_DISK, Disk, DiskFailed

STEPS = 1_000
"""More than a life lasts until it is ended."""
EXIT_DISK_FAILED = 3
"""The walk met a disk that refuses, said so and ended."""
EXIT_BROKEN = 4
"""The walk ended by an exception that it should not have met; its text is on stderr."""


class Life:
    """A walk that runs until it is killed or its steps are done."""

    def __init__(
        self,
        directory: Path,
        seed: int,
        *,
        steps: int = STEPS,
        disk: Disk = LOCAL_DISK,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        """``prepare`` runs in the child before its first step."""
        self._reads, writes = os.pipe()
        self.said = bytearray()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reads)
            self._live(directory, seed, steps, writes, disk, prepare)
        os.close(writes)

    @staticmethod
    def _live(
        directory: Path, seed: int, steps: int, writes: int, disk: Disk, prepare: Callable[[], object] | None
    ) -> None:
        """The child's whole life; never returns."""
        code = EXIT_BROKEN
        walk = None
        try:
            if prepare is not None:
                prepare()
            walk = Walk(directory, random.Random(seed), tell_to(writes), disk)
            walk.steps(steps)
            code = 0
        except DiskFailed:
            if walk is not None:
                walk.stays_failed()
            code = EXIT_DISK_FAILED
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            os._exit(code)

    def listen(self, until_s: float) -> bool:
        """Take what it says until the monotonic clock shows ``until_s``; True when it ended by itself."""
        while (left_s := until_s - time.monotonic()) > 0:
            if select.select([self._reads], [], [], left_s)[0]:
                part = os.read(self._reads, 65536)
                if not part:
                    return True
                self.said += part
        return False

    def kill(self) -> None:
        """kill -9; nothing happens when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Take what is left of its words and its exit code, negative for a signal."""
        while part := os.read(self._reads, 65536):
            self.said += part
        os.close(self._reads)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
