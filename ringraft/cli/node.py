"""Starting a node: ``ringraft node`` (the seed's line), ``ringraft-voter`` and ``ringraft-worker``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ringraft.cli.exits import CommandFailed, ExitCode
from ringraft.cli.members import members
from ringraft.cli.output import say
from ringraft.config import default_files, load_settings

PR_SET_PDEATHSIG = 1
"""prctl's name for "send me this signal when my parent ends"."""

Command = Callable[..., Any]


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


NODE_ID = click.option("--node-id", help="Unique name of this node; the host name when left out.")
BIND = click.option("--bind", metavar="HOST:PORT", help="Where to listen (127.0.0.1:8770).")
ADVERTISE = click.option("--advertise", metavar="HOST:PORT", help="Where others reach this node, if not at --bind.")
DATA_DIR = click.option("--data-dir", metavar="DIR", help="Where everything durable is kept (data/p2p).")
PEERS = click.option("--peers", metavar="N1=HOST:PORT,…", help="All voters, this one too; the same on each.")
PRIORITY = click.option("--priority", help="0 to 1000: who leads when there is a choice.")
JOIN = click.option("--join", metavar="HOST:PORT,…", help="Nodes of the cluster to work for, or to vote in.")
TOKEN_FILE = click.option("--token-file", metavar="FILE", help="This worker's own credential.")
COMMON = _options(
    click.option(
        "--config",
        "config_files",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Settings file, again for more; a later one wins. Without it: /etc/ringraft, config/, ./ringraft.yaml.",
    ),
    click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting: raft.heartbeat_ms=50."),
    click.option("--end-with-parent", type=int, metavar="PID", hidden=True, help="End when this parent does."),
)


@click.group(invoke_without_command=True)
@_options(NODE_ID, BIND, ADVERTISE, DATA_DIR, PEERS, JOIN, PRIORITY, TOKEN_FILE)
@click.option("--port", help="Only the port of --bind (8770).")
@click.option("--voter", is_flag=True, help="Keep a copy of the log and vote.")
@click.option("--worker", "works", is_flag=True, help="Run work.")
@COMMON
@click.pass_context
def node(context: click.Context, /, voter: bool, works: bool, **given: Any) -> int:
    """Start a node of either kind; ``members`` shows and changes who votes.

    Alone it is a cluster of one. With --peers or a configured voter list, that list says whether it
    votes; with --join it works for another cluster, and with --voter too it is one more voter of it, once
    ``ringraft node members add`` has named it.
    """
    if context.invoked_subcommand is not None:
        return ExitCode.OK
    roles = [role for role, wanted in (("voter", voter), ("worker", works)) if wanted]
    return _run(given, {"node.roles": ",".join(roles)} if roles else {})


@click.command()
@_options(NODE_ID, BIND, DATA_DIR, PEERS, JOIN, ADVERTISE, PRIORITY, COMMON)
def voter(**given: Any) -> int:
    """Start a node that keeps the log and votes: one of --peers, or one more for the cluster that --join names."""
    return _run(given, {"node.roles": "voter"}, must_vote=True)


@click.command()
@_options(NODE_ID, JOIN, DATA_DIR, BIND, ADVERTISE, TOKEN_FILE, COMMON)
def worker(**given: Any) -> int:
    """Start a node that claims work and runs it; it listens on a free port of this machine unless told."""
    given["bind"] = given["bind"] or "127.0.0.1:0"
    return _run(given, {"node.roles": "worker"})


node.add_command(members)

FLAG_KEYS = {
    "node_id": "node.node_id",
    "bind": "node.bind",
    "port": "node.port",
    "advertise": "node.advertise",
    "data_dir": "node.data_dir",
    "priority": "node.priority",
    "peers": "cluster.voters",
    "join": "cluster.join",
    "token_file": "auth.token_file",
}


def overrides(given: Mapping[str, Any], assignments: tuple[str, ...], roles: Mapping[str, str]) -> dict[str, str]:
    """The settings that the flags name. UsageError for a --set without '=' or against a flag."""
    found = {key: given[flag] for flag, key in FLAG_KEYS.items() if given.get(flag) is not None}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set {assignment}: write it as KEY=VALUE")
        if key in found:
            raise click.UsageError(f"{key} is set twice on the command line")
        found[key.strip()] = value
    return {**roles, **found}


def _run(given: dict[str, Any], roles: dict[str, str], *, must_vote: bool = False) -> int:
    if not __debug__:
        raise CommandFailed(ExitCode.USAGE, "broken invariants must stop a node, so it does not run under python -O")
    files, assignments, parent = (given.pop(name) for name in ("config_files", "assignments", "end_with_parent"))
    if parent is not None:
        _end_with_parent(parent)
    # Until the node's loop answers signals, there is nothing yet that would have to be stopped in order.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(ExitCode.OK))
    settings = load_settings(overrides(given, assignments, roles), files=files or default_files())
    for warning in settings.warnings:
        say(f"warning: {warning}")
    if must_vote and not settings.node.is_voter:
        voters = ", ".join(settings.cluster.voters)
        raise CommandFailed(ExitCode.USAGE, f"{settings.node.node_id} is not among the voters ({voters}); see --peers")
    from ringraft.node.app import run

    return run(settings)


def _end_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent, so that a killed demo leaves nothing running (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            raise CommandFailed(ExitCode.ERROR, f"the parent process {parent} ended before this one began")
