"""A process whose system calls die or fail, by strace: attached to one that stands still or runs.

The counts of ``when`` are strace's: of one call, in one thread. A call at which the process dies is
not executed; one that fails is not either.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

ATTACH_S = 10.0
DETACH_S = 3.0
POLL_S = 0.002
INJECTED = "(INJECTED)"


class CannotTrace(Exception):
    """strace cannot be used here; the message says why."""


def missing() -> str | None:
    """What this machine lacks, None when it has everything."""
    if shutil.which("strace") is None:
        return "death at chosen system calls needs the command strace"
    if os.geteuid() != 0:
        return "death at chosen system calls needs root, to attach strace to a running process"
    return None


def attach(pid: int, injection: str, out: Path | None = None) -> subprocess.Popen[bytes]:
    """Have strace watch ``pid`` with an injection such as ``fsync:signal=KILL:when=3``; returns once it does.

    With ``out`` every call that was tampered with is a line there, with the paths of its files.
    """
    call = injection.partition(":")[0]
    command = ["strace", "-f", "-qq", "-y", "-p", str(pid), "-e", f"trace={call}", "-e", f"inject={injection}"]
    tracer = subprocess.Popen(
        [*command, "-o", str(out or os.devnull)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end_s = time.monotonic() + ATTACH_S
    while tracer_of(pid) == 0:
        if tracer.poll() is not None or time.monotonic() > end_s:
            tracer.kill()
            tracer.wait()
            raise CannotTrace(f"strace did not attach to process {pid}")
        time.sleep(POLL_S)
    return tracer


def detach(tracer: subprocess.Popen[bytes]) -> None:
    """Let the process go; nothing happens when it is dead already."""
    if tracer.poll() is None:
        tracer.send_signal(signal.SIGTERM)
    try:
        tracer.wait(DETACH_S)
    except subprocess.TimeoutExpired:
        # It waits for ever for a process that was killed under it.
        tracer.kill()
        tracer.wait()


def tracer_of(pid: int) -> int:
    """Who traces ``pid``; 0 when nobody does. CannotTrace when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise CannotTrace(f"process {pid} is gone") from None
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("TracerPid:")))


def is_stopped(pid: int) -> bool:
    """It stands still because of a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def tampered(out: Path) -> list[str]:
    """The calls that were made to fail."""
    return [line for line in out.read_text("utf-8", "replace").splitlines() if INJECTED in line]
