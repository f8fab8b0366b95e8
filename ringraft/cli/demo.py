"""``ringraft demo``: real games on a real cluster, and the leader killed half way."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import click

from ringraft.cli import items
from ringraft.cli.audit import Audit, audit
from ringraft.cli.exits import CommandFailed, ExitCode
from ringraft.cli.local import LocalCluster, usable_cpus
from ringraft.cli.output import counted, data_console, print_json, say, span, table
from ringraft.cli.prober import SETTLE_S, Prober
from ringraft.cli.rundir import RunDirectory, private_directory
from ringraft.cli.screen import Screen
from ringraft.cli.status import cluster_status
from ringraft.client import Client, ClientError

BOARD = "hex8"
GAMES_PER_ITEM = 10
SIMULATIONS = 120
"""Tree search simulations a move: about 0.1 s a game on one core, so that there is something to watch."""
GROUP = "demo"
PROBES = "demo-probes"
LOOK_S = 0.2
LEADER_S = 20.0
FINISH_BASE_S, FINISH_PER_GAME_S = 120.0, 3.0
"""How long the games may take before the demo gives up: far above what they need on two slow cores."""
AFTER_KILL_S = 5.0
"""The span after the kill in which the write gap is looked for."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Who was killed when, and who leads since."""

    node_id: str
    pid: int
    at_s: float
    games_done: int
    successor: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What the final table shows."""

    audit: Audit
    kill: Kill | None
    kill_wanted: bool
    gap_s: float | None
    quiet_gap_s: float | None
    """The longest gap before the kill: what the machine does when nothing happens."""
    probes: int
    took_s: float
    directory: str

    def to_json(self) -> dict[str, Any]:
        """The table as JSON; times in ms and s as the names say."""
        kill = self.kill
        return {
            "games": self.audit.to_json(),
            "ok": self.audit.is_right,
            "killed": None
            if kill is None
            else {"node_id": kill.node_id, "pid": kill.pid, "games_done": kill.games_done, "successor": kill.successor},
            "write_gap_ms": _ms(self.gap_s),
            "write_gap_before_ms": _ms(self.quiet_gap_s),
            "probe_writes": self.probes,
            "took_s": round(self.took_s, 1),
            "data": self.directory,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, a line each."""
        counts = self.audit
        rows = [
            ("games asked", str(counts.asked)),
            ("games played", str(counts.played)),
            ("games lost", str(counts.lost)),
            ("games counted twice", str(counts.twice)),
        ]
        if counts.strangers:
            rows.append(("games of no item", str(counts.strangers)))
        if counts.repeated:
            rows.append(("played again, not counted", str(counts.repeated)))
        if self.kill is not None:
            killed = f"{self.kill.node_id} (pid {self.kill.pid}) after {self.kill.games_done} games"
            rows.append(("leader killed with -9", killed))
            rows.append(("leader since then", self.kill.successor or "none"))
            rows.append(
                ("longest time without a write", f"{span(self.gap_s)} (before the kill {span(self.quiet_gap_s)})")
            )
        elif self.kill_wanted:
            rows.append(("leader killed with -9", "not: the games were over before"))
        rows.append(("took", span(self.took_s) or "-"))
        rows.append(("data", self.directory))
        return rows


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked of the demo."""

    voters: int
    workers: int
    games: int
    kill: bool

    def work(self) -> list[dict[str, Any]]:
        """The items to add: ten games each, the last one what is left, every one with a seed of its own."""
        sizes = [GAMES_PER_ITEM] * (self.games // GAMES_PER_ITEM)
        if self.games % GAMES_PER_ITEM:
            sizes.append(self.games % GAMES_PER_ITEM)
        first_seed = secrets.randbits(32)
        return [
            {
                "work_type": "selfplay",
                "group": GROUP,
                "config": {
                    "board_type": BOARD,
                    "num_players": 2,
                    "num_games": size,
                    "simulations": SIMULATIONS,
                    "seed": first_seed + i,
                },
            }
            for i, size in enumerate(sizes)
        ]


@click.command()
@click.option("--voters", type=click.IntRange(1, 9), default=3, show_default=True, help="Nodes that keep the log.")
@click.option("--workers", type=click.IntRange(1, 32), default=2, show_default=True, help="Nodes that play.")
@click.option("--games", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Games of hex8 to play.")
@click.option("--no-kill", is_flag=True, help="Let the leader live.")
@click.option("--keep", is_flag=True, help="Keep the data; otherwise the next demo takes it away.")
@click.option("--json", "as_json", is_flag=True, help="The final table as JSON.")
def demo(voters: int, workers: int, games: int, no_kill: bool, keep: bool, as_json: bool) -> int:
    """Play games on 3 voters and 2 workers, kill the leader half way, and count the games.

    Exit 1 when a game is lost or counted twice.
    """
    if find_spec("pyspiel") is None or find_spec("numpy") is None:
        raise CommandFailed(
            ExitCode.ERROR,
            "the games need OpenSpiel: pip install 'ringraft[selfplay]', or run bin/demo, which installs it",
        )
    if voters < 3 and not no_kill:
        raise click.UsageError(f"none of {counted(voters, 'voter')} may die; take 3 or more, or --no-kill")
    directory = RunDirectory(private_directory("ringraft-demo"), keep=keep)
    try:
        report = asyncio.run(_interruptible(Plan(voters, workers, games, not no_kill), directory))
    finally:
        directory.close()
    if as_json:
        print_json(report.to_json())
    else:
        data_console().print(table(("GAMES AND FILES", "FOUND"), report.rows()))
    return ExitCode.OK if report.audit.is_right else ExitCode.ERROR


async def _interruptible(plan: Plan, directory: RunDirectory) -> Report:
    """SIGTERM ends the demo as Ctrl-C does: with every process stopped."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await _play(plan, directory)
    except asyncio.CancelledError:
        raise click.Abort from None


async def _play(plan: Plan, directory: RunDirectory) -> Report:
    slots = max(1, (usable_cpus() - 1) // plan.workers)
    cluster = LocalCluster(directory.path, plan.voters, plan.workers, worker_assignments={"worker.slots": str(slots)})
    say(f"starting {counted(plan.voters, 'voter')} and {counted(plan.workers, 'worker')} on this machine")
    start_s = time.monotonic()
    await cluster.start()
    try:
        async with Client(cluster.urls()) as client, Client(cluster.urls()) as probing:
            await first_leader(cluster, client)
            prober = Prober(probing, PROBES)
            probes = asyncio.create_task(prober.run())
            try:
                run = _Run(plan, cluster, client, prober)
                found = await run.play()
            finally:
                probes.cancel()
                await asyncio.gather(probes, return_exceptions=True)
            await prober.tidy()
    finally:
        await cluster.stop()
    gap_s = quiet_gap_s = None
    if run.kill is not None:
        gap_s = prober.gap_s(run.kill.at_s, run.kill.at_s + AFTER_KILL_S)
        quiet_gap_s = prober.gap_s(run.start_s + SETTLE_S, run.kill.at_s - LOOK_S)
    counts = audit(directory.path, found)
    took_s = time.monotonic() - start_s
    return Report(
        counts, run.kill, plan.kill, gap_s, quiet_gap_s, len(prober.acknowledged_s), took_s, str(directory.path)
    )


class _Run:
    """The games from adding them to their end, with the kill in between."""

    def __init__(self, plan: Plan, cluster: LocalCluster, client: Client, prober: Prober) -> None:
        self.plan = plan
        self.cluster = cluster
        self.client = client
        self.prober = prober
        self.kill: Kill | None = None
        self.start_s = time.monotonic()

    async def play(self) -> list[items.Item]:
        """Add the work and follow it; the items as the cluster knows them at the end."""
        work = self.plan.work()
        await self.client.post("/work/add_batch", {"items": work})
        say(f"added {counted(self.plan.games, 'game')} of {BOARD} in {counted(len(work), 'item')}")
        give_up_s = FINISH_BASE_S + FINISH_PER_GAME_S * self.plan.games
        try:
            async with asyncio.timeout(give_up_s):
                with Screen(self.plan.games) as screen:
                    await self._follow(screen)
                return [item async for item in items.listed(self.client, self._all("linearizable"), None)]
        except TimeoutError:
            raise CommandFailed(ExitCode.UNKNOWN, f"the games were not over after {give_up_s:.0f} s") from None

    def _all(self, consistency: str) -> dict[str, str]:
        return {"group": GROUP, "consistency": consistency}

    async def _follow(self, screen: Screen) -> None:
        """Look, show, and kill once half of the games are played."""
        while True:
            try:
                status = await cluster_status(self.client)
                found = [item async for item in items.listed(self.client, self._all("stale"), None)]
            except ClientError:
                fail_if_ended(self.cluster, self.kill.node_id if self.kill else None)
                await asyncio.sleep(LOOK_S)
                continue
            done = games_done(found)
            self._note_successor(status)
            screen.show(status, found, done, self.kill.node_id if self.kill else None)
            if found and all(item["state"] in items.FINAL for item in found):
                return
            if self.plan.kill and self.kill is None and is_half_way(found, done, self.plan.games):
                self._kill_leader(status["leader_id"], done, screen)
            await asyncio.sleep(LOOK_S)

    def _kill_leader(self, leader_id: str | None, done: int, screen: Screen) -> None:
        if leader_id is None:
            return
        node = self.cluster.nodes[leader_id]
        node.kill()
        self.kill = Kill(leader_id, node.pid, time.monotonic(), done)
        screen.note(f"kill -9 {node.pid}: the leader {leader_id} is dead, {done} games played")

    def _note_successor(self, status: dict[str, Any]) -> None:
        kill, leader_id = self.kill, status["leader_id"]
        if kill is not None and kill.successor is None and leader_id not in (None, kill.node_id):
            self.kill = Kill(kill.node_id, kill.pid, kill.at_s, kill.games_done, leader_id)


def is_half_way(found: list[items.Item], done: int, games: int) -> bool:
    """Half of the games are played; or the last ones are being played, where so few items leave no half way."""
    return 2 * done >= games or (bool(found) and all(item["state"] in ("RUNNING", *items.FINAL) for item in found))


def games_done(found: list[items.Item]) -> int:
    """Games of finished items, and what running ones say they have played."""
    done = 0
    for item in found:
        if item["state"] == "COMPLETED":
            done += item["config"]["num_games"]
        elif item["state"] == "RUNNING" and item["progress"]:
            done += int(item["progress"].get("games", 0))
    return done


async def first_leader(cluster: LocalCluster, client: Client) -> str:
    """The leader of a cluster just started. CommandFailed when a node ended instead."""
    try:
        return await leader(client)
    except (ClientError, CommandFailed):
        fail_if_ended(cluster)
        raise


async def leader(client: Client) -> str:
    """The leader's node id, once there is one. CommandFailed when there is none in time."""
    end_s = time.monotonic() + LEADER_S
    while time.monotonic() < end_s:
        leader_id = (await client.get("/status"))["leader_id"]
        if leader_id is not None:
            return str(leader_id)
        await asyncio.sleep(LOOK_S / 2)
    raise CommandFailed(ExitCode.UNHEALTHY, f"no leader within {LEADER_S:g} s")


def fail_if_ended(cluster: LocalCluster, but: str | None = None) -> None:
    """CommandFailed with the end of its log when a node, ``but`` aside, is no longer there."""
    sentence = cluster.ended(but)
    if sentence is not None:
        raise CommandFailed(ExitCode.ERROR, sentence)
