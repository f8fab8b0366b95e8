"""Cut the power of real file systems under a running log, and count what was lost.

python -m chaos.disk.power --cuts 100 --nodes 3     # real voters under load
python -m chaos.disk.power --cuts 1000 --nodes 0    # only a log, thousands of cuts in minutes
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from chaos.disk.cluster import strike_clusters
from chaos.disk.clustercuts import PowerCut
from chaos.disk.logcuts import cut_log
from chaos.disk.record import Figures
from chaos.disk.run import watched
from chaos.disk.volume import CannotCutPower, enter_own_mounts
from chaos.mutants.catalogue import MUTANTS

EXIT_CANNOT = 2


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
    parser.add_argument("--mutant", choices=sorted(MUTANTS), default=None, help="plant a bug; it must be noticed")
    return parser.parse_args()


def main() -> int:
    """0 when nothing was lost, 1 when something was, 2 when this machine cannot do it."""
    options = arguments()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    # A plain kill has to leave no mount and no process behind.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        enter_own_mounts()
    except CannotCutPower as fault:
        print(fault, file=sys.stderr)
        return EXIT_CANNOT

    def run(path: Path, show: Callable[[Figures], None]) -> Figures:
        if options.nodes == 0:
            with MUTANTS[options.mutant].planted() if options.mutant else contextlib.nullcontext():
                return cut_log(path, cuts=options.cuts, seed=seed, show=show)
        return asyncio.run(
            strike_clusters(path, PowerCut(options.all_share), nodes=options.nodes, strikes=options.cuts, seed=seed,
                            mutant=options.mutant, show=show)
        )  # fmt: skip

    return watched(
        "chaos.disk.power", run, total=options.cuts, record=options.record,
        nodes=options.nodes, seed=seed, mutant=options.mutant,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
