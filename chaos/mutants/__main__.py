"""``python -m chaos.mutants``: what bugs there are to plant, and how soon the simulator finds them."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from chaos.mutants.catalogue import MUTANTS
from chaos.mutants.hunt import START_APART, Catch, Hunt, hunt_many, record, recorded, row

console = Console()


@click.group()
def main() -> None:
    """Planted bugs."""


@main.command("list")
def list_all() -> None:
    """Name every planted bug and say what it does."""
    table = Table("mutant", "what it does", "what it breaks")
    for mutant in MUTANTS.values():
        table.add_row(mutant.name, mutant.does, mutant.breaks)
    console.print(table)


@main.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MUTANTS)), metavar="[NAME]…")
@click.option("--jobs", type=int, default=os.cpu_count() or 1, show_default=True)
@click.option("--starts", type=int, default=3, show_default=True, help="First seeds to begin from, for the median.")
@click.option("--seeds-max", type=int, default=3000, show_default=True, help="Give up after so many.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Simulated seconds with faults a seed.")
@click.option("--record", "path", type=click.Path(path_type=Path), help="Append each hunt as a line of JSON.")
def run(names: tuple[str, ...], jobs: int, starts: int, seeds_max: int, seconds: float, path: Path | None) -> None:
    """Hunt for the bugs named, or for all; ends with 1 when one was not found."""
    chosen = names or tuple(MUTANTS)
    hunts = [Hunt(name, start * START_APART, seeds_max, seconds) for start in range(starts) for name in chosen]
    catches: dict[str, list[Catch]] = {name: [] for name in chosen}
    for catch in hunt_many(hunts, jobs=jobs):
        catches[catch.mutant].append(catch)
        if path is not None:
            record(path, f"python -m chaos.mutants {shlex.join(sys.argv[1:])}", catch)
        found = "not caught" if catch.rule is None else f"{catch.rule} at seed {catch.seed}: {catch.told[:160]}"
        click.echo(f"{catch.mutant}: {catch.seeds} seeds: {found}", err=True)
    _show(catches)
    sys.exit(any(catch.rule is None for of_one in catches.values() for catch in of_one))


@main.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
def table(path: Path) -> None:
    """Show what was recorded, the newest hunt from each start."""
    _show(recorded(path))


def _show(catches: dict[str, list[Catch]]) -> None:
    shown = Table("mutant", "caught", "seeds, median", "worst", "by")
    for one in (row(name, of_one) for name, of_one in catches.items() if of_one):
        median = f"{one.seeds_median:g}"
        shown.add_row(one.mutant, f"{one.caught} of {one.starts}", median, str(one.seeds_worst), ", ".join(one.rules))
    console.print(shown)


if __name__ == "__main__":
    main()
