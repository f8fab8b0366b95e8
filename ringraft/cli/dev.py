"""``ringraft dev``: a cluster on this machine to play with, until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil

from ringraft.cli.connect import DEFAULT_ADDRESS
from ringraft.cli.demo import LEADER_S, first_leader, leader
from ringraft.cli.exits import CommandFailed, ExitCode
from ringraft.cli.local import LocalCluster, LocalNode, usable_cpus
from ringraft.cli.output import counted, print_json, say, span
from ringraft.cli.rundir import RunDirectory, private_directory
from ringraft.client import Client, ClientError

STATE_FILE = "dev.json"
FIRST_PORT = 8770
RESTART_AFTER_S = 5.0
LOOK_S = 0.2
STOP_S = 60.0
START_TIME_SLACK_S = 2.0
"""A process of the same id that started this much later is another one."""


@dataclass(frozen=True, slots=True)
class Running:
    """A dev cluster as its state file tells of it."""

    pid: int
    started_s: float
    directory: Path
    nodes: dict[str, dict[str, Any]]

    @property
    def urls(self) -> list[str]:
        """The voters."""
        return [node["url"] for name, node in self.nodes.items() if name.startswith("n")]


def state_path() -> Path:
    """Where the one dev cluster of this user is written down."""
    return private_directory("ringraft-dev") / STATE_FILE


def read_running(path: Path) -> Running | None:
    """The dev cluster that runs now; None when there is none."""
    try:
        said = json.loads(path.read_text("utf-8"))
        running = Running(said["pid"], said["started_s"], Path(said["directory"]), said["nodes"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        raise CommandFailed(ExitCode.ERROR, f"{path} is damaged ({error}); remove it") from None
    return running if _is_process(running.pid, running.started_s) else None


def running_or_fail() -> Running:
    """The dev cluster that runs now. CommandFailed when there is none."""
    running = read_running(state_path())
    if running is None:
        raise CommandFailed(ExitCode.NOT_FOUND, "no dev cluster runs; start one with: ringraft dev")
    return running


def _is_process(pid: int, started_s: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started_s) < START_TIME_SLACK_S
        # One that ended and was not yet asked for its exit code is no longer running.
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@click.group(invoke_without_command=True)
@click.option("--voters", type=click.IntRange(1, 9), default=3, show_default=True, help="Nodes that keep the log.")
@click.option("--workers", type=click.IntRange(0, 32), default=2, show_default=True, help="Nodes that run work.")
@click.option(
    "--port", type=click.IntRange(1, 65_000), default=FIRST_PORT, show_default=True, help="The first voter's."
)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Keep the data here; else it is gone at the next start."
)
@click.option(
    "--restart-after",
    type=click.FloatRange(0),
    default=RESTART_AFTER_S,
    show_default=True,
    metavar="S",
    help="Seconds until a killed node comes back.",
)
@click.option("--no-restart", is_flag=True, help="A killed node stays dead.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, for every node.")
@click.pass_context
def dev(context: click.Context, /, **options: Any) -> int:
    """Run 3 voters and 2 workers on this machine until Ctrl-C.

    Without authentication, on loopback only. While it runs, in another terminal: ``ringraft dev kill
    leader`` (kill -9; the node is started again after 5 seconds), ``ringraft dev status``,
    ``ringraft dev stop``.
    """
    if context.invoked_subcommand is not None:
        return ExitCode.OK
    return asyncio.run(_run(**options))


async def _run(
    voters: int, workers: int, port: int, data_dir: Path | None, restart_after: float, no_restart: bool,
    assignments: tuple[str, ...],
) -> int:  # fmt: skip
    path = state_path()
    already = read_running(path)
    if already is not None:
        raise CommandFailed(ExitCode.USAGE, f"a dev cluster runs already at {already.urls[0]} (pid {already.pid})")
    scratch = RunDirectory(path.parent, keep=False) if data_dir is None else None
    directory = scratch.path if scratch is not None else (data_dir or Path()).resolve()
    settings = dict(_assignment(word) for word in assignments)
    slots = str(max(1, usable_cpus() // max(workers, 1) // 2))
    cluster = LocalCluster(directory, voters, workers, port, settings, {"worker.slots": slots, **settings})
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    say(f"starting {counted(voters, 'voter')} and {counted(workers, 'worker')}")
    await cluster.start()
    supervisor = _Supervisor(cluster, None if no_restart else restart_after, lambda: _write_state(path, cluster))
    try:
        _write_state(path, cluster)
        async with Client(cluster.urls()) as client:
            _say_next(cluster, await first_leader(cluster, client))
        await supervisor.run(stop)
    finally:
        path.unlink(missing_ok=True)
        say("stopping")
        await cluster.stop()
        if scratch is not None:
            scratch.close()
    return ExitCode.OK


def _assignment(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise click.UsageError(f"--set {word}: write it as KEY=VALUE")
    return key, value


def _write_state(path: Path, cluster: LocalCluster) -> None:
    nodes = {
        name: {"url": node.url, "pid": node.pid, "running": node.is_running, "log": str(node.log)}
        for name, node in cluster.nodes.items()
    }
    own = psutil.Process()
    said = {"pid": own.pid, "started_s": own.create_time(), "directory": str(cluster.directory), "nodes": nodes}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(said, indent=2), "utf-8")
    temporary.replace(path)


def _say_next(cluster: LocalCluster, leader_id: str) -> None:
    url = cluster.urls()[0]
    addr = "" if url == f"http://{DEFAULT_ADDRESS}" else f" --addr {url.removeprefix('http://')}"
    say(f"leader {leader_id}; data and logs in {cluster.directory}")
    print(url, flush=True)
    # Started from a checkout, the command is the script there.
    name = "bin/ringraft" if sys.argv[0].endswith("__main__.py") else "ringraft"
    say("next, in another terminal:")
    say(f"  {name} work add selfplay board_type=hex8 num_players=2 num_games=100{addr}")
    say(f"  {name} status --watch{addr}")
    say(f"  {name} dev kill leader")


class _Supervisor:
    """Notices nodes that end, and starts them again after a while."""

    def __init__(self, cluster: LocalCluster, restart_after_s: float | None, changed: Callable[[], None]) -> None:
        self.cluster = cluster
        self.restart_after_s = restart_after_s
        self.changed = changed

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``; a node that cannot be started again is said and left alone."""
        async with asyncio.TaskGroup() as tasks:
            watchers = [tasks.create_task(self._watch(node)) for node in self.cluster.nodes.values()]
            await stop.wait()
            for watcher in watchers:
                watcher.cancel()

    async def _watch(self, node: LocalNode) -> None:
        while node.process is not None:
            code = await node.process.wait()
            self.changed()
            how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
            if self.restart_after_s is None:
                say(f"{node.node_id} {how}")
                return
            say(f"{node.node_id} {how}; starting it again in {self.restart_after_s:g} s")
            await asyncio.sleep(self.restart_after_s)
            try:
                await node.start()
            except CommandFailed as error:
                say(f"{node.node_id} stays down: {error}")
                return
            self.changed()
            say(f"{node.node_id} is back at {node.url}")


@dev.command("status")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def dev_status(as_json: bool) -> int:
    """Say what runs, and where."""
    running = running_or_fail()
    if as_json:
        print_json({"pid": running.pid, "directory": str(running.directory), "nodes": running.nodes})
        return ExitCode.OK
    for name, node in running.nodes.items():
        print(f"{name}  {'running' if node['running'] else 'down'}  {node['url']}  pid {node['pid']}  {node['log']}")
    return ExitCode.OK


@dev.command("kill")
@click.argument("who")
def dev_kill(who: str) -> int:
    """kill -9 the ``leader``, or a node by name (n1, w2), and say who leads then and how long that took."""
    return asyncio.run(_kill(running_or_fail(), who))


async def _kill(running: Running, who: str) -> int:
    async with Client(running.urls) as client:
        before = await leader(client)
        name = before if who == "leader" else who
        if name not in running.nodes:
            raise CommandFailed(ExitCode.NOT_FOUND, f"no node {who}; there are {', '.join(running.nodes)}")
        node = running.nodes[name]
        if not node["running"] or not _is_child(node["pid"], running.pid):
            raise CommandFailed(ExitCode.ERROR, f"{name} is down already")
        os.kill(node["pid"], signal.SIGKILL)
        killed_s = time.monotonic()
        print(f"killed {name} (pid {node['pid']})", flush=True)
        if name != before:
            return ExitCode.OK
        return await _say_successor(client, name, killed_s)


async def _say_successor(client: Client, name: str, killed_s: float) -> int:
    while time.monotonic() - killed_s < LEADER_S:
        with suppress(ClientError):
            now = (await client.get("/status"))["leader_id"]
            if now not in (None, name):
                print(f"leader {now} after {span(time.monotonic() - killed_s)}")
                return ExitCode.OK
        await asyncio.sleep(LOOK_S / 10)
    raise CommandFailed(ExitCode.UNHEALTHY, f"no new leader after {LEADER_S:g} s")


def _is_child(pid: int, parent: int) -> bool:
    """``pid`` is still the node that ``parent`` started, not a later process of the same number."""
    try:
        return psutil.Process(pid).ppid() == parent
    except psutil.NoSuchProcess:
        return False


@dev.command("stop")
def dev_stop() -> int:
    """Stop the dev cluster, every node in order."""
    running = running_or_fail()
    os.kill(running.pid, signal.SIGTERM)
    if not asyncio.run(_ended(running)):
        raise CommandFailed(ExitCode.UNKNOWN, f"pid {running.pid} is still stopping after {STOP_S:g} s")
    print("stopped")
    return ExitCode.OK


async def _ended(running: Running) -> bool:
    end_s = time.monotonic() + STOP_S
    while time.monotonic() < end_s:
        if not _is_process(running.pid, running.started_s):
            return True
        await asyncio.sleep(LOOK_S)
    return False
