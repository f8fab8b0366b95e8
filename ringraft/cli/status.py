"""``ringraft status``: is it well, who leads, what is there to do."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ringraft.cli.connect import Target, cluster_command
from ringraft.cli.exits import ExitCode
from ringraft.cli.output import ago, data_console, print_json, span, table
from ringraft.client import Client, ClientError

WATCH_S = 2.0
LEADER_S = 2.0
EVENTS_SHOWN = 5
STATES = ("PENDING", "BLOCKED", "ASSIGNED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED")

Answer = dict[str, Any]


@click.command()
@click.option("--watch", is_flag=True, help="Show it again and again; Ctrl-C ends it.")
@click.option(
    "--every",
    type=click.FloatRange(0.2, 3600),
    default=WATCH_S,
    show_default=True,
    metavar="S",
    help="Seconds between two looks.",
)
@cluster_command
async def status(target: Target, watch: bool, every: float) -> int:
    """Show the cluster as one node sees it. Exit 5 without a leader or a quorum."""
    async with target.client() as client:
        if not watch:
            seen = await look(client)
            _print(target, seen)
            return verdict(seen)
        if target.as_json or not sys.stdout.isatty():
            while True:
                _print(target, await look(client))
                await asyncio.sleep(every)
        with Live(console=data_console(), screen=True, auto_refresh=False) as live:
            while True:
                live.update(view(await look(client)), refresh=True)
                await asyncio.sleep(every)


async def look(client: Client) -> Answer:
    """The cluster, its work, its peers and the newest events in one."""
    cluster, work = await asyncio.gather(cluster_status(client), client.get("/work/status"))
    # Of whom the status is: a node that has started only now has not heard of every worker yet.
    peers = await _asked_at(client, cluster.get("url"), "/peers") or await client.get("/peers")
    listed = peers["items"] if isinstance(peers, dict) else peers
    events = await client.get("/events", params={"since": 0, "wait_s": 0})
    return {"status": cluster, "work": work, "peers": listed, "events": events["items"][-EVENTS_SHOWN:]}


async def cluster_status(client: Client) -> Answer:
    """``/status`` of the leader where it answers, for only it knows how far the others are; else of any node."""
    cluster: Answer = await client.get("/status")
    leader_id = cluster["leader_id"]
    url = next((voter["url"] for voter in cluster["voters"] if voter["node_id"] == leader_id), None)
    if url is None or leader_id == cluster["node_id"]:
        return cluster
    return await _asked_at(client, url, "/status") or cluster


async def _asked_at(client: Client, url: str | None, path: str) -> Answer | None:
    """What this very node answers; None when it does not."""
    if url is not None:
        with suppress(ClientError):
            seen: Answer = (await client.request("GET", path, address=url, deadline_s=LEADER_S)).body
            return seen
    return None


def verdict(seen: Mapping[str, Any]) -> ExitCode:
    """0 with a leader and a quorum, else 5."""
    cluster = seen["status"]
    return ExitCode.OK if cluster["leader_id"] and cluster["has_quorum"] else ExitCode.UNHEALTHY


def health(cluster: Mapping[str, Any]) -> str:
    """One word and why."""
    if not cluster["has_quorum"]:
        return (
            f"no quorum: {cluster['voters_alive']} of {len(cluster['voters'])} voters, {cluster['quorum_size']} needed"
        )
    if not cluster["leader_id"]:
        return "no leader: an election is under way"
    missing = len(cluster["voters"]) - cluster["voters_alive"]
    if missing:
        return f"degraded: {missing} of {len(cluster['voters'])} voters do not answer; writes work"
    return "ok"


def view(seen: Mapping[str, Any]) -> RenderableType:
    """The screen: a line on health, voters, workers, work, what happened last."""
    cluster, work = seen["status"], seen["work"]
    head = Text(f"{health(cluster)}   leader {cluster['leader_id'] or 'none'}   term {cluster['term']}   ")
    head.append(f"cluster {cluster['cluster_id']}   seen from {cluster['node_id']}, ringraft {cluster['version']}")
    parts: list[RenderableType] = [
        head,
        "",
        table(("VOTER", "ROLE", "APPLIED#", "BEHIND#", "CONTACT#", "URL"), voters(cluster)),
    ]
    workers = list(_workers(seen["peers"]))
    if workers:
        parts += [
            "",
            table(
                ("WORKER", "STATE", "SEEN#", "LEASES#", "CPU", "GPUS", "VERSION"),
                ((*row[:3], work["leases_by_node"].get(row[0], 0), *row[3:]) for row in workers),
            ),
        ]
    by_state = work["by_status"]
    shown = [state for state in STATES if by_state.get(state)]
    oldest = work.get("oldest_pending_age_s")
    summary = ", ".join(f"{by_state[state]} {state.lower()}" for state in shown) or "no work"
    parts += ["", f"work: {summary}" + (f"; oldest pending {span(oldest)}" if oldest else "")]
    if work["by_type"]:
        parts.append(table(("TYPE", "ITEMS#"), work["by_type"].items()))
    if seen["events"]:
        parts += ["", table(("WHEN#", "EVENT", "ABOUT"), (_event(event) for event in reversed(seen["events"])))]
    return Group(*parts)


def voters(cluster: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """A row each: who, role, applied, how far behind, last heard."""
    for voter in cluster["voters"]:
        contact = span(voter["last_contact_s"])
        if not voter.get("alive", True):
            yield voter["node_id"], "down", None, None, contact, voter["url"]
            continue
        role = "leader" if voter["node_id"] == cluster["leader_id"] else voter["role"]
        yield voter["node_id"], role, voter["applied_index"], voter["behind"], contact, voter["url"]


def _workers(peers: list[Answer]) -> Iterator[tuple[Any, ...]]:
    for peer in peers:
        if "worker" in peer["roles"]:
            cpu = (peer.get("resources") or {}).get("cpu_percent")
            gpus = ", ".join(gpu["name"] for gpu in peer.get("gpus") or ())
            load = None if cpu is None else f"{cpu:.0f} %"
            yield peer["node_id"], peer["state"], span(peer["last_seen_s"]), load, gpus or None, peer["version"]


def _event(event: Answer) -> tuple[Any, ...]:
    about = "  ".join(f"{name}={value}" for name, value in event["data"].items() if value is not None)
    return ago(event["at"]), event["type"], about


def _print(target: Target, seen: Answer) -> None:
    if target.as_json:
        print_json(seen)
    else:
        data_console().print(view(seen))
