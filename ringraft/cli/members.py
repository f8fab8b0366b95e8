"""``ringraft node members``: who keeps the log; adding a voter and removing one."""

from __future__ import annotations

import time
from typing import Any

import click

from ringraft.cli.connect import Target, cluster_command
from ringraft.cli.exits import ExitCode
from ringraft.cli.output import data_console, print_json, say, span, table

POLL_WAIT_S = 10.0
"""How long one request waits for the admission; the command asks again while --wait lasts."""

Answer = dict[str, Any]


@click.group()
def members() -> None:
    """Who keeps the log: the voters, and learners on their way to vote."""


@members.command("list")
@cluster_command
async def list_members(target: Target) -> int:
    """Show every node that keeps the log."""
    async with target.client() as client:
        found = await client.get("/raft/members")
    if target.as_json:
        print_json(found)
        return ExitCode.OK
    rows = [
        (row["node_id"], row["role"], row["address"], row["behind"], span(row["last_contact_s"]), row["incarnation"])
        for row in found["items"]
    ]
    data_console().print(table(("node", "role", "address", "behind#", "heard", "starts#"), rows))
    return ExitCode.OK


@members.command()
@click.argument("node_id")
@click.argument("address", metavar="HOST:PORT")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="S",
    help="How long to wait until it votes; 0 returns at once.",
)
@cluster_command
async def add(target: Target, node_id: str, address: str, wait_s: float) -> int:
    """Add a voter: it is sent the log, and votes once it has caught up.

    Start it with ``ringraft-voter --node-id NODE_ID --join …``, before or after. Exit 6 when it did not
    catch up in time; it goes on catching up, and a repeat waits on.
    """  # fmt: skip
    until_s = time.monotonic() + wait_s
    async with target.client() as client:
        while True:
            left_s = max(0.0, min(POLL_WAIT_S, until_s - time.monotonic()))
            row = await client.post(
                f"/raft/members/{node_id}",
                {"address": address},
                params={"wait_s": f"{left_s:.3f}"},
                key=client.new_key(),
                wait_s=left_s,
                deadline_s=target.timeout_s + left_s,
            )
            if row["role"] == "voter" or time.monotonic() >= until_s:
                break
    if target.as_json:
        print_json(row)
    elif row["role"] == "voter":
        say(f"{node_id} votes")
    else:
        state = "catches up" if row["connected"] else "is not connected; start it with --join"
        say(f"{node_id} is a learner, {row['behind']} entries behind, and {state}")
    return ExitCode.OK if row["role"] == "voter" or not wait_s else ExitCode.UNKNOWN


@members.command()
@click.argument("node_id")
@cluster_command
async def remove(target: Target, node_id: str) -> int:
    """Remove a voter or learner; its process ends. A leader hands over first, the last voter stays."""
    async with target.client() as client:
        done = (await client.request("DELETE", f"/raft/members/{node_id}")).body
    if target.as_json:
        print_json(done)
    else:
        say(f"{node_id} keeps the log no longer")
    return ExitCode.OK
