"""Cut the power of real file systems under a running log, and count what was lost.

python -m chaos.disk.power --cuts 100 --nodes 3     # real voters under load
python -m chaos.disk.power --cuts 1000 --nodes 0    # only a log, thousands of cuts in minutes
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chaos.disk import record
from chaos.disk.clustercuts import cut_cluster
from chaos.disk.logcuts import cut_log
from chaos.disk.volume import CannotCutPower, enter_own_mounts, folder

EXIT_CANNOT = 2


class Figures(Protocol):
    """What a run counts."""

    cuts: int
    acknowledged: int
    violations: list[str]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m chaos.disk.power", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=100, help="how many power cuts (100)")
    parser.add_argument("--nodes", type=int, default=3, help="voters; 0 drives only a log, without a node (3)")
    parser.add_argument("--all-share", type=float, default=0.5, help="share of cuts that take all disks at once (0.5)")
    parser.add_argument("--seed", type=int, default=None, help="of what is drawn; timing is the machine's (random)")
    parser.add_argument("--record", type=Path, default=None, metavar="FILE", help="append a line with the figures")
    parser.add_argument("--without-sync", action="store_true", help="plant the bug: syncs do nothing; must be noticed")
    return parser.parse_args()


def main() -> int:
    """0 when nothing was lost, 1 when something was, 2 when this machine cannot do it."""
    options = arguments()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    # What a journal says about its torn tail is what this is about, some thousand times.
    logging.disable(logging.CRITICAL)
    # A plain kill has to leave no mount and no process behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    console = Console(stderr=True)
    began_s = time.monotonic()
    try:
        enter_own_mounts()
    except CannotCutPower as fault:
        console.print(str(fault))
        return EXIT_CANNOT
    bar = Progress(TextColumn("power cuts"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                   TimeElapsedColumn(), console=console)  # fmt: skip
    with folder() as path, bar:
        task = bar.add_task("", total=options.cuts)

        def show(done: Figures) -> None:
            said = f"{len(done.violations)} violations"
            bar.update(task, completed=min(done.cuts, options.cuts), description=said)

        done = _run(path, options, seed, show)
    took_s = time.monotonic() - began_s
    for violation in done.violations:
        print(violation)
    verdict = "FAILED" if done.violations else "passed"
    figures = {"nodes": options.nodes, "cuts": done.cuts, "cuts_of_all": getattr(done, "cuts_of_all", done.cuts),
               "acknowledged": done.acknowledged, "lost": getattr(done, "lost", len(done.violations)),
               "violations": len(done.violations)}  # fmt: skip
    print(f"{verdict}: " + ", ".join(f"{name} {value}" for name, value in figures.items()) + f", took {took_s:.0f} s")
    record.append(
        options.record,
        "chaos.disk.power",
        seed=seed,
        without_sync=options.without_sync,
        took_s=round(took_s, 1),
        **figures,
        first_violations=done.violations[:3],
    )
    return 1 if done.violations else 0


def _run(path: Path, options: argparse.Namespace, seed: int, show: Callable[[Figures], None]) -> Figures:
    if options.nodes == 0:
        return cut_log(path, cuts=options.cuts, seed=seed, without_sync=options.without_sync, on_cut=show)
    return asyncio.run(
        cut_cluster(
            path,
            nodes=options.nodes,
            cuts=options.cuts,
            all_share=options.all_share,
            seed=seed,
            without_sync=options.without_sync,
            on_cut=show,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
