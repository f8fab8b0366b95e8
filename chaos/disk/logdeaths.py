"""A walking log that dies, or is refused, at every system call of its life."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from chaos.disk.account import Account, Lost
from chaos.disk.life import EXIT_BROKEN, EXIT_DISK_FAILED, Life
from chaos.disk.record import Figures
from chaos.disk.tracer import attach, detach, tampered
from ringraft.consensus.replog.files import LOCAL_DISK, Disk, DiskFailed
from ringraft.consensus.replog.recovery import JournalDamaged
from ringraft.consensus.replog.snapshot import SnapshotDamaged

CALLS = ("pwrite64", "fdatasync", "fsync", "rename", "unlink", "openat", "ftruncate", "mkdir", "close")
"""Every system call of a log that changes its disk, or decides what is changed next."""
REFUSED = ("pwrite64", "fdatasync", "fsync", "rename", "unlink", "openat")
ERRORS = ("EIO", "ENOSPC")
LIFE_S_MAX = 60.0
STEPS = 30
KILLED = -9


def origin(path: Path, seed: int, lives: int) -> Path:
    """A directory to begin in: so many lives were led there, each ended cleanly."""
    path.mkdir()
    account = Account()
    for number in range(lives):
        life = Life(path / "data", seed + number, steps=STEPS)
        life.listen(time.monotonic() + LIFE_S_MAX)
        assert life.wait() == 0, "a life without faults ends well"
        account.read(bytes(life.said))
        account.judge(path / "data")
    return path


def copy(origin: Path, target: Path) -> Account:
    """The same directory elsewhere, and an account that begins there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(origin, target)
    return Account.of(target / "data") if (target / "data").exists() else Account()


def die_everywhere(
    folder: Path, *, seed: int, every: int, show: Callable[[Figures], None], disk: Disk = LOCAL_DISK
) -> Figures:
    """End lives at each system call in turn, at every ``every``-th of them, in a new directory and in a used one.

    ``disk`` is what the log writes through; a careless one shows that it would be noticed.
    """
    done = Figures()
    rng = random.Random(seed)
    for lives in (0, 2):
        begins = origin(folder / f"origin-{lives}", rng.getrandbits(32), lives)
        life_seed = rng.getrandbits(32)
        for call in CALLS:
            for when in itertools.count(1, every):
                if not _end(folder, begins, disk, life_seed, f"{call}:signal=KILL:when={when}", KILLED, done):
                    break
                done.count(f"killed at {call}")
                show(done)
        for call in REFUSED:
            for when in itertools.count(1, every):
                fault = rng.choice(ERRORS)
                injection = f"{call}:error={fault}:when={when}"
                if not _end(folder, begins, disk, life_seed, injection, EXIT_DISK_FAILED, done):
                    break
                done.count(f"refused {call}")
                show(done)
        for limit in range(100, 8192, 97 * every):
            if _cut_short(folder, begins, disk, life_seed, limit, done):
                done.count("short write")
            show(done)
    return done


def _end(folder: Path, begins: Path, disk: Disk, seed: int, injection: str, expected: int, done: Figures) -> bool:
    """One life with an injection; False when it was over before the injection's turn."""
    place = folder / "life"
    account = copy(begins, place)
    held, go = os.pipe()
    life = Life(place / "data", seed, steps=STEPS, disk=disk, prepare=lambda: _wait_for(held, go))
    os.close(held)
    try:
        tracer = attach(life.pid, injection, folder / "trace")
        os.close(go)
        life.listen(time.monotonic() + LIFE_S_MAX)
    finally:
        life.kill()
        code = life.wait()
    detach(tracer)
    if code == 0 and not tampered(folder / "trace"):
        return False
    _judge(account, life, place, code, expected, injection, done)
    return True


def _wait_for(held: int, go: int) -> None:
    """Stand still until the other side closes its end."""
    os.close(go)
    os.read(held, 1)
    os.close(held)


def _cut_short(folder: Path, begins: Path, disk: Disk, seed: int, limit: int, done: Figures) -> bool:
    """A life whose writes end at byte ``limit`` of any file: the last one is short, then refused."""
    place = folder / "life"
    account = copy(begins, place)
    life = Life(
        place / "data",
        seed,
        steps=STEPS,
        disk=disk,
        prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    life.listen(time.monotonic() + LIFE_S_MAX)
    code = life.wait()
    if code == 0:
        return False
    _judge(
        account, life, place, code, EXIT_DISK_FAILED, f"writes end at {limit} ({errno.errorcode[errno.EFBIG]})", done
    )
    return True


def _judge(account: Account, life: Life, place: Path, code: int, expected: int, what: str, done: Figures) -> None:
    done.strikes += 1
    account.read(bytes(life.said))
    try:
        if code == EXIT_BROKEN or code != expected:
            raise Lost(f"it ended with {code}, not {expected}")
        account.judge(place / "data")
    except (Lost, JournalDamaged, SnapshotDamaged, DiskFailed) as fault:
        done.violations.append(f"{what}: {type(fault).__name__}: {fault}")
        done.lost += isinstance(fault, Lost)
    done.acknowledged += account.acknowledged
