"""Power cuts of one process that does nothing but drive a log: thousands of cuts in minutes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from chaos.disk.account import Account, Lost
from chaos.disk.life import EXIT_BROKEN, Life
from chaos.disk.record import Figures
from chaos.disk.volume import Volume
from ringraft.consensus.replog.files import DiskFailed
from ringraft.consensus.replog.recovery import JournalDamaged
from ringraft.consensus.replog.snapshot import SnapshotDamaged

LIFE_S_MAX = 0.2
CUTS_PER_VOLUME = 50
"""Then the file system is made anew, so that first starts are met again and again."""


def cut_log(folder: Path, *, cuts: int, seed: int, show: Callable[[Figures], None]) -> Figures:
    """Cut the power of a walking log ``cuts`` times; a directory with a violation is not gone on with."""
    done = Figures()
    rng = random.Random(seed)
    volume = Volume(folder, "log")
    try:
        while done.strikes < cuts:
            volume.make()
            account = Account()
            for _ in range(min(CUTS_PER_VOLUME, cuts - done.strikes)):
                life_seed = rng.getrandbits(48)
                done.strikes += 1
                done.count("cuts")
                try:
                    _cut_once(volume, account, life_seed, rng.random() ** 2 * LIFE_S_MAX)
                except (Lost, JournalDamaged, SnapshotDamaged, DiskFailed) as fault:
                    done.violations.append(f"cut {done.strikes} seed {life_seed}: {type(fault).__name__}: {fault}")
                    done.lost += isinstance(fault, Lost)
                    break
                finally:
                    show(done)
            done.acknowledged += account.acknowledged
    finally:
        volume.unmount()
    return done


def _cut_once(volume: Volume, account: Account, seed: int, life_s: float) -> None:
    life = Life(volume.path / "data", seed)
    try:
        life.listen(time.monotonic() + life_s)
    finally:
        life.kill()
        volume.cut()
        code = life.wait()
    account.read(bytes(life.said))
    volume.unmount()
    volume.mount()
    if code == EXIT_BROKEN:
        raise Lost("the walk ended by an exception; see above")
    account.judge(volume.path / "data")
