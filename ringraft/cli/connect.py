"""How a command finds the cluster: ``--addr``, ``--token-file``, ``--timeout``, and the loop it runs in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ringraft.cli.exits import CommandFailed, ExitCode
from ringraft.client import Client

DEFAULT_ADDRESS = "127.0.0.1:8770"
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster a command talks to, and whether it answers in JSON."""

    addresses: tuple[str, ...]
    token: str | None
    timeout_s: float
    as_json: bool

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client, closed at the end."""
        try:
            client = Client(self.addresses, token=self.token, timeout_s=self.timeout_s)
        except ValueError as error:
            raise CommandFailed(ExitCode.USAGE, str(error)) from None
        async with client:
            yield client


def cluster_command(function: Callable[..., Coroutine[Any, Any, int | None]]) -> Callable[..., int]:
    """Make an async function of a ``Target`` a command's body, with the options that find the cluster."""

    @wraps(function)
    def run(addr: str, token_file: Path | None, token: str | None, timeout: float, as_json: bool, **rest: Any) -> int:
        addresses = tuple(part.strip() for part in addr.split(",") if part.strip())
        target = Target(addresses, _credential(token_file, token), timeout, as_json)
        return asyncio.run(function(target, **rest)) or ExitCode.OK

    options = (
        click.option("--addr", envvar="RINGRAFT_ADDR", default=DEFAULT_ADDRESS, show_default=True,
                     metavar="HOST:PORT,…", help="Nodes to ask, in this order; any node will do."),
        click.option("--token-file", envvar="RINGRAFT_TOKEN_FILE", type=click.Path(path_type=Path), metavar="FILE",
                     help="File with the credential to show."),
        click.option("--token", envvar="RINGRAFT_TOKEN", hidden=True),
        click.option("--timeout", type=click.FloatRange(0.1, 3600), default=TIMEOUT_S, show_default=True, metavar="S",
                     help="Seconds to keep trying."),
        click.option("--json", "as_json", is_flag=True, help="Answer as JSON, times in RFC 3339."),
    )  # fmt: skip
    for option in reversed(options):
        run = option(run)
    return run


def _credential(token_file: Path | None, token: str | None) -> str | None:
    if token_file is None:
        return token
    try:
        return token_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(ExitCode.USAGE, f"--token-file {token_file} cannot be read: {error}") from None
