"""``python -m chaos.sim``: run seeds, replay one, shrink one."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from chaos.sim.batch import Asked, Total, play, quiet, record, run_many
from chaos.sim.picture import html
from chaos.sim.plan import KINDS, Plan, draw
from chaos.sim.shrink import shrink as find_shortest
from chaos.sim.timeline import lines
from chaos.sim.world import World

console = Console(stderr=True)


def _kinds(_context: click.Context, _parameter: click.Parameter, value: str) -> frozenset[str]:
    kinds = frozenset(kind for kind in value.split(",") if kind)
    unknown = kinds - KINDS.keys()
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: no such fault; there are {', '.join(KINDS)}")
    return kinds


nodes_option = click.option("--nodes", type=click.Choice(["1", "3", "5"]), help="Voters; otherwise each seed says.")
seconds_option = click.option("--seconds", type=float, default=120.0, show_default=True, help="Simulated, with faults.")
without_option = click.option("--without", default="", callback=_kinds, help="Kinds of faults to leave out, a,b,c.")


@click.group()
def main() -> None:
    """A whole cluster in one thread, from one seed."""


@main.command()
@click.option("--seeds", type=int, default=300, show_default=True)
@click.option("--from", "first", type=int, default=0, show_default=True, help="The first seed.")
@click.option("--jobs", type=int, default=os.cpu_count() or 1, show_default=True)
@nodes_option
@seconds_option
@without_option
@click.option("--record", "path", type=click.Path(path_type=Path), help="Append what it came to as a line of JSON.")
@click.option("--json", "as_json", is_flag=True, help="Say what it came to as JSON.")
def run(
    seeds: int,
    first: int,
    jobs: int,
    nodes: str | None,
    seconds: float,
    without: frozenset[str],
    path: Path | None,
    as_json: bool,
) -> None:
    """Run SEEDS seeds; exit 1 when a promise was broken."""
    voters = int(nodes) if nodes else None
    asked = [Asked(seed, seconds, voters, without) for seed in range(first, first + seeds)]
    total = Total()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("seeds", total=seeds)
        for outcome in run_many(asked, jobs=jobs):
            total.add(outcome)
            progress.advance(bar)
            if outcome.violation is not None:
                again = _again(outcome.seed, seconds, nodes, without)
                console.print(f"seed {outcome.seed}: {outcome.violation}\n  {again} --timeline", highlight=False)
    if as_json:
        click.echo(json.dumps(total.as_dict(), indent=1))
    else:
        Console().print(_table(total))
    if path is not None:
        record(path, shlex.join(["python", "-m", "chaos.sim", *sys.argv[1:]]), total)
    sys.exit(1 if total.violations else 0)


def _again(seed: int, seconds: float, nodes: str | None, without: frozenset[str]) -> str:
    parts = ["python -m chaos.sim replay", str(seed), f"--seconds {seconds:g}"]
    if nodes:
        parts.append(f"--nodes {nodes}")
    if without:
        parts.append(f"--without {','.join(sorted(without))}")
    return " ".join(parts)


def _table(total: Total) -> Table:
    table = Table(title=f"{total.seeds} seeds", show_header=False)
    table.add_row("simulated hours", f"{total.simulated_s / 3600:.2f}")
    table.add_row("cluster-hours per CPU minute", f"{total.hours_per_cpu_minute:.2f}")
    table.add_row("what happened", ", ".join(f"{name} {count}" for name, count in sorted(total.counts.items())))
    table.add_row("operations", ", ".join(f"{name} {count}" for name, count in sorted(total.endings.items())))
    table.add_row("terms with a leader", str(total.elections))
    table.add_row("messages", str(total.messages))
    table.add_row(
        "violations", str(len(total.violations)) + "".join(f"\n{seed}: {told}" for seed, told in total.violations)
    )
    return table


@main.command()
@click.argument("seed", type=int, required=False)
@click.option("--schedule", type=click.Path(exists=True, path_type=Path), help="A plan saved as JSON, not a seed.")
@nodes_option
@seconds_option
@without_option
@click.option("--timeline", is_flag=True, help="Show what happened, line by line.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Draw it into this file.")
@click.option("--save", type=click.Path(path_type=Path), help="Save the plan as JSON.")
def replay(
    seed: int | None,
    schedule: Path | None,
    nodes: str | None,
    seconds: float,
    without: frozenset[str],
    timeline: bool,
    page: Path | None,
    save: Path | None,
) -> None:
    """Run one SEED, or a saved plan, again; exit 1 when a promise was broken."""
    if (seed is None) == (schedule is None):
        raise click.UsageError("name a SEED or a --schedule")
    with quiet():
        if schedule is not None:
            try:
                plan = Plan.from_json(schedule.read_text("utf-8"))
            except ValueError as fault:
                raise click.ClickException(f"{schedule}: {fault}") from fault
            result = World(plan, keep_notes=True).run()
        else:
            assert seed is not None
            result = play(Asked(seed, seconds, int(nodes) if nodes else None, without), keep_notes=True)
    if save is not None:
        save.write_text(result.plan.as_json() + "\n", "utf-8")
    if timeline:
        for line in lines(result):
            click.echo(line)
    if page is not None:
        page.write_text(html(result), "utf-8")
    verdict = "no violation" if result.violation is None else str(result.violation)
    click.echo(f"seed {result.plan.seed}: {result.simulated_s:.1f} s, trace {result.trace:08x}: {verdict}")
    sys.exit(1 if result.violation else 0)


@main.command()
@click.argument("seed", type=int)
@nodes_option
@seconds_option
@without_option
@click.option("--runs", type=int, default=200, show_default=True, help="How many runs it may take.")
@click.option("--save", type=click.Path(path_type=Path), help="Save the shortest plan as JSON.")
def shrink(seed: int, nodes: str | None, seconds: float, without: frozenset[str], runs: int, save: Path | None) -> None:
    """Find the shortest schedule of faults with which SEED still breaks the same promise."""
    plan = draw(seed, voters=int(nodes) if nodes else None, seconds=seconds, without=without)
    with quiet():
        shortest = find_shortest(plan, runs_max=runs, told=lambda line: console.print(line, highlight=False))
    if shortest is None:
        click.echo(f"seed {seed} breaks no promise")
        return
    click.echo(f"seed {seed} after {shortest.runs} runs: {shortest.rule}: {shortest.told}")
    for fault in shortest.plan.faults:
        click.echo(f"{fault.at_s:10.4f}  {fault.told()}")
    if save is not None:
        save.write_text(shortest.plan.as_json() + "\n", "utf-8")
        click.echo(f"python -m chaos.sim replay --schedule {save} --timeline")
    sys.exit(1)


if __name__ == "__main__":
    main()
