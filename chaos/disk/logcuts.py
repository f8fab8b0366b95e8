"""Power cuts of one process that does nothing but drive a log: thousands of cuts in minutes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chaos.disk.account import Account, Lost
from chaos.disk.life import EXIT_BROKEN, Life
from chaos.disk.volume import Volume
from ringraft.consensus.replog.files import DiskFailed
from ringraft.consensus.replog.recovery import JournalDamaged
from ringraft.consensus.replog.snapshot import SnapshotDamaged

LIFE_S_MAX = 0.12
CUTS_PER_VOLUME = 50
"""Then the file system is made anew, so that first starts are met again and again."""


@dataclass(slots=True)
class LogCuts:
    """The figures of a run."""

    cuts: int = 0
    acknowledged: int = 0
    violations: list[str] = field(default_factory=list)


def cut_log(folder: Path, *, cuts: int, seed: int, without_sync: bool, on_cut: Callable[[LogCuts], None]) -> LogCuts:
    """Cut the power of a walking log ``cuts`` times; a directory with a violation is not gone on with."""
    done = LogCuts()
    rng = random.Random(seed)
    volume = Volume(folder, "log")
    try:
        while done.cuts < cuts:
            volume.make()
            account = Account()
            for _ in range(min(CUTS_PER_VOLUME, cuts - done.cuts)):
                life_seed = rng.getrandbits(48)
                done.cuts += 1
                try:
                    _cut_once(volume, account, life_seed, rng.random() ** 2 * LIFE_S_MAX, without_sync)
                except (Lost, JournalDamaged, SnapshotDamaged, DiskFailed) as fault:
                    done.violations.append(f"cut {done.cuts} seed {life_seed}: {type(fault).__name__}: {fault}")
                    break
                finally:
                    on_cut(done)
            done.acknowledged += account.acknowledged
    finally:
        volume.unmount()
    return done


def _cut_once(volume: Volume, account: Account, seed: int, life_s: float, without_sync: bool) -> None:
    life = Life(volume.path / "data", seed, without_sync=without_sync)
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
    account.judge(volume.path / "data", is_power_cut=True)
