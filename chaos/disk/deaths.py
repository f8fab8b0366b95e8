"""End processes at chosen system calls, or have the calls refused, and see what was kept.

python -m chaos.disk.deaths                          # a log, at every system call of its life
python -m chaos.disk.deaths --nodes 3 --strikes 200  # real voters under load
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from chaos.disk import tracer
from chaos.disk.cluster import strike_clusters
from chaos.disk.clusterdeaths import SystemCalls
from chaos.disk.logdeaths import die_everywhere
from chaos.disk.record import Figures
from chaos.disk.run import watched
from chaos.disk.volume import CannotCutPower, enter_own_mounts

EXIT_CANNOT = 2


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m chaos.disk.deaths", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=0, help="voters; 0 takes only a log, without a node (0)")
    parser.add_argument("--every", type=int, default=1, help="without nodes: take every so many calls only (1)")
    parser.add_argument("--strikes", type=int, default=100, help="with nodes: how many deaths and refusals (100)")
    parser.add_argument("--seed", type=int, default=None, help="of what is drawn (random)")
    parser.add_argument("--record", type=Path, default=None, metavar="FILE", help="append a line with the figures")
    return parser.parse_args()


def main() -> int:
    """0 when nothing was lost, 1 when something was, 2 when this machine cannot do it."""
    options = arguments()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    reason = tracer.missing()
    if reason is not None:
        print(reason, file=sys.stderr)
        return EXIT_CANNOT
    if options.nodes:
        try:
            enter_own_mounts()
        except CannotCutPower as fault:
            print(fault, file=sys.stderr)
            return EXIT_CANNOT

    def run(path: Path, show: Callable[[Figures], None]) -> Figures:
        if options.nodes == 0:
            return die_everywhere(path, seed=seed, every=options.every, show=show)
        return asyncio.run(
            strike_clusters(path, SystemCalls(), nodes=options.nodes, strikes=options.strikes, seed=seed,
                            show=show)
        )  # fmt: skip

    total = options.strikes if options.nodes else None
    return watched("chaos.disk.deaths", run, total=total, record=options.record, nodes=options.nodes, seed=seed)


if __name__ == "__main__":
    sys.exit(main())
