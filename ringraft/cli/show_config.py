"""``ringraft config``: what a node started here would be told, and by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ringraft.cli.node import overrides
from ringraft.cli.output import data_console, print_json, say, table
from ringraft.config import default_files, load_settings


@click.group()
def config() -> None:
    """Look at settings without starting anything."""


@config.command("show")
@click.option("--config", "config_files", multiple=True, type=click.Path(path_type=Path), help="Settings file.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting on top.")
@click.option("--changed", is_flag=True, help="Only what is not default.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(config_files: tuple[Path, ...], assignments: tuple[str, ...], changed: bool, as_json: bool) -> None:
    """Every setting with its value and where that came from; secrets stay hidden."""
    settings = load_settings(overrides({}, assignments, {}), files=config_files or default_files())
    for warning in settings.warnings:
        say(f"warning: {warning}")
    rows: list[tuple[str, Any, str]] = [
        (f"{section}.{name}", value, settings.origin(f"{section}.{name}"))
        for section, values in settings.to_public().items()
        for name, value in values.items()
    ]
    rows = [row for row in rows if not changed or row[2] != "default"]
    if as_json:
        print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
    else:
        data_console().print(table(("KEY", "VALUE", "ORIGIN"), rows))


@config.command("validate")
@click.argument("config_files", nargs=-1, type=click.Path(path_type=Path))
def validate(config_files: tuple[Path, ...]) -> None:
    """Say everything that is wrong with settings files (exit 2), or nothing."""
    for warning in load_settings(files=config_files or default_files()).warnings:
        say(f"warning: {warning}")
