"""``ringraft work``: adding work and following it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from ringraft.cli import items
from ringraft.cli.connect import Target, cluster_command
from ringraft.cli.exits import CommandFailed, ExitCode
from ringraft.cli.output import ago, data_console, print_json, say, span, table

BATCH_MAX = 1000
"""Items in one add_batch, by the REST contract."""
SHOWN_CHARS_MAX = 300
READY_CODES = frozenset({"Ready", "LowerPriority", "FairShare"})
"""Reasons of /work/why that need nobody to do anything."""


@click.group()
def work() -> None:
    """Add work items and follow them. An id may be cut short where that stays unique."""


@work.command()
@click.argument("work_type")
@click.argument("config", nargs=-1, metavar="[KEY=VALUE]…")
@click.option("--count", type=click.IntRange(1, 100_000), default=1, help="Add so many of the same.")
@click.option("--id", "work_id", help="Its id; the cluster makes one when left out.")
@click.option("--priority", type=click.IntRange(0, 100), help="100 is most urgent; 50 when left out.")
@click.option("--group", help="A name to list, wait for or cancel items by.")
@click.option("--depends-on", multiple=True, metavar="ID", help="Start after this one is COMPLETED; may be repeated.")
@click.option("--unique-key", help="At most one live item with this key.")
@click.option("--max-attempts", type=click.IntRange(1), help="Tries before it is FAILED; 3 when left out.")
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), help="Longest run of one attempt.")
@click.option("--target-node", help="Only this node may run it.")
@click.option("--gpu", help="Needs a GPU of this name, such as RTX_5090.")
@click.option("--wait", is_flag=True, help="Wait until it is final; exit 3 unless COMPLETED.")
@cluster_command
async def add(
    target: Target, work_type: str, config: tuple[str, ...], count: int, gpu: str | None, wait: bool, **fields: Any
) -> int:
    """Add an item: ``ringraft work add selfplay board_type=hex8 num_players=2 num_games=10``.

    A VALUE that reads as JSON is taken as JSON (10, true, [1,2]), else as text. Prints the id.
    """
    item = {"work_type": work_type, "config": dict(_pairs(config))}
    item |= {name: value for name, value in fields.items() if value not in (None, ())}
    if "depends_on" in item:
        item["depends_on"] = list(fields["depends_on"])
    if gpu is not None:
        item["requirements"] = {"gpu": gpu}
    if count > 1 and "work_id" in item:
        raise click.UsageError("--id names one item; leave it out or leave out --count")
    async with target.client() as client:
        answers = await _add(client, item, count)
        work_ids = [answer["work_id"] for answer in answers]
        for answer in answers:
            for warning in answer.get("warnings") or ():
                say(f"warning: {warning}")
        if not wait:
            _print_added(target, answers)
            return ExitCode.OK
        say(f"added {len(work_ids)}, waiting")
        found = [await items.wait_final(client, work_id) for work_id in work_ids]
    _print_items(target, found, quiet=False)
    return items.verdict(found)


async def _add(client: items.Reader, item: dict[str, Any], count: int) -> list[dict[str, Any]]:
    if count == 1:
        return [await client.post("/work/add", item)]
    answers: list[dict[str, Any]] = []
    for first in range(0, count, BATCH_MAX):
        body = {"items": [item] * min(BATCH_MAX, count - first)}
        answers += (await client.post("/work/add_batch", body))["items"]
    return answers


def _print_added(target: Target, answers: list[dict[str, Any]]) -> None:
    if target.as_json:
        print_json(answers[0] if len(answers) == 1 else {"items": answers})
        return
    for answer in answers:
        print(answer["work_id"])
        if answer.get("status") == "exists":
            say(f"{answer['work_id']} exists already")


def _pairs(words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{word!r}: write the item's config as KEY=VALUE")
        try:
            yield name, json.loads(value)
        except ValueError:
            yield name, value


@work.command("list")
@click.option("--state", help="PENDING, BLOCKED, ASSIGNED, RUNNING, COMPLETED, FAILED or CANCELLED.")
@click.option("--type", "work_type", help="Only this work type.")
@click.option("--group", help="Only this group.")
@click.option("--node", "node_id", help="Only what this node holds.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True)
@click.option("-q", "--quiet", is_flag=True, help="Only the ids.")
@cluster_command
async def list_items(target: Target, limit: int, quiet: bool, **filters: Any) -> int:
    """List items, oldest first."""
    if filters["state"]:
        filters["state"] = filters["state"].upper()
    params = {name: value for name, value in filters.items() if value}
    async with target.client() as client:
        found = [item async for item in items.listed(client, params, limit)]
    if target.as_json:
        print_json({"items": found})
    else:
        _print_items(target, found, quiet=quiet)
    return ExitCode.OK


def _print_items(target: Target, found: list[dict[str, Any]], *, quiet: bool) -> None:
    if target.as_json:
        print_json(found[0] if len(found) == 1 else {"items": found})
        return
    if quiet:
        for item in found:
            print(item["work_id"])
        return
    columns = ("WORK ID", "TYPE", "STATE", "PRIO#", "TRY", "NODE", "AGE#", "ERROR")
    data_console().print(table(columns, (_row(item) for item in found)))


def _row(item: dict[str, Any]) -> tuple[Any, ...]:
    lease = item.get("lease") or {}
    # attempt counts those that are spent; people count from the first.
    tries = f"{item['attempt'] if item['state'] == 'FAILED' else item['attempt'] + 1}/{item['max_attempts']}"
    error = (item.get("error") or "").splitlines()[:1]
    age = (ago(item["created_at"]) or "").removesuffix(" ago")
    return (
        item["work_id"],
        item["work_type"],
        item["state"],
        item["priority"],
        tries,
        lease.get("node_id"),
        age,
        *error,
    )


@work.command()
@click.argument("work_id")
@cluster_command
async def show(target: Target, work_id: str) -> int:
    """Show one item with its history."""
    async with target.client() as client:
        item = await items.read(client, work_id)
    if target.as_json:
        print_json(item)
        return ExitCode.OK
    plain = {name: value for name, value in item.items() if name != "history" and value not in (None, [], {})}
    for name, value in plain.items():
        print(f"{name:<22} {_shortened(_cell(value))}")
    if item.get("history"):
        columns = ("TRY#", "NODE", "TOKEN#", "OUTCOME", "WHEN", "REASON")
        rows = (
            (h["attempt"], h["node_id"], h["token"], h["outcome"], ago(h["at"]), h.get("reason"))
            for h in item["history"]
        )
        print()
        data_console().print(table(columns, rows))
    return ExitCode.OK


def _shortened(text: str) -> str:
    if len(text) <= SHOWN_CHARS_MAX:
        return text
    return f"{text[:SHOWN_CHARS_MAX]}… ({len(text)} characters; --json has all)"


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@work.command()
@click.argument("work_id")
@cluster_command
async def why(target: Target, work_id: str) -> int:
    """Say why an item is not running. Exit 0: nothing stands in its way, 1: something does, 255: cannot tell."""
    async with target.client() as client:
        full_id = (await items.read(client, work_id))["work_id"]
        answer = await client.get(f"/work/why/{full_id}")
    if target.as_json:
        print_json(answer)
    else:
        print(f"{answer['work_id']} is {answer['state']}")
        for reason in answer["reasons"]:
            print(f"  {reason['code']}: {reason['detail']}")
        for node, code in (answer.get("rejections") or {}).items():
            print(f"  {node} cannot take it: {code}")
        if answer.get("position") is not None:
            estimate = span(answer.get("estimate_s"))
            print(f"  position {answer['position']}" + (f", about {estimate} to go" if estimate else ""))
    if not answer["reasons"]:
        return ExitCode.CANNOT_TELL if answer["state"] in ("PENDING", "BLOCKED") else ExitCode.OK
    return ExitCode.OK if {r["code"] for r in answer["reasons"]} <= READY_CODES else ExitCode.ERROR


@work.command()
@click.argument("work_ids", nargs=-1, metavar="[WORK_ID]…")
@click.option("--group", help="All of this group.")
@click.option("--wait-s", type=click.FloatRange(0), help="Give up after so many seconds, with exit code 6.")
@click.option("-q", "--quiet", is_flag=True, help="Only the ids.")
@cluster_command
async def wait(target: Target, work_ids: tuple[str, ...], group: str | None, wait_s: float | None, quiet: bool) -> int:
    """Wait until items are final. Exit 3 unless all are COMPLETED."""
    async with target.client() as client, items.within(wait_s):
        found = []
        for work_id in await _named(client, work_ids, group):
            found.append(await items.wait_final(client, work_id))
    _print_items(target, found, quiet=quiet)
    return items.verdict(found)


@work.command()
@click.argument("work_ids", nargs=-1, metavar="[WORK_ID]…")
@click.option("--group", help="All of this group.")
@click.option("--wait-s", type=click.FloatRange(0), help="Give up after so many seconds, with exit code 6.")
@cluster_command
async def watch(target: Target, work_ids: tuple[str, ...], group: str | None, wait_s: float | None) -> int:
    """Print each change of items until they are final. Exit 3 unless all are COMPLETED."""
    async with target.client() as client, items.within(wait_s):
        found: dict[str, dict[str, Any]] = {}
        async for item in items.changes(client, await _named(client, work_ids, group)):
            found[item["work_id"]] = item
            if target.as_json:
                print(json.dumps(item, ensure_ascii=False), flush=True)
            else:
                print("  ".join(_progress(item)), flush=True)
    return items.verdict(found.values())


def _progress(item: dict[str, Any]) -> Iterator[str]:
    yield item["work_id"]
    yield item["state"]
    if item.get("lease"):
        yield f"on {item['lease']['node_id']}"
    if item.get("progress"):
        yield _cell(item["progress"])
    if item.get("error"):
        yield item["error"].splitlines()[0]


async def _named(client: items.Reader, work_ids: tuple[str, ...], group: str | None) -> list[str]:
    if bool(work_ids) == bool(group):
        raise click.UsageError("name items, or a --group")
    if group is None:
        return [(await items.read(client, work_id))["work_id"] for work_id in work_ids]
    found = [item["work_id"] async for item in items.listed(client, {"group": group}, None)]
    if not found:
        raise CommandFailed(ExitCode.NOT_FOUND, f"no items in group {group}")
    return found


@work.command()
@click.argument("work_id")
@click.option("-f", "--follow", is_flag=True, help="Go on until the item is final.")
@cluster_command
async def logs(target: Target, work_id: str, follow: bool) -> int:
    """Print what the executor of the latest attempt wrote."""
    async with target.client() as client:
        full_id = (await items.read(client, work_id))["work_id"]
        if target.as_json:
            print_json({"work_id": full_id, "log": await items.log(client, full_id)})
            return ExitCode.OK
        async for part in items.log_parts(client, full_id, follow=follow):
            sys.stdout.write(part)
            sys.stdout.flush()
    return ExitCode.OK


@work.command()
@click.argument("work_ids", nargs=-1, metavar="[WORK_ID]…")
@click.option("--group", help="All live items of this group.")
@click.option("--yes", is_flag=True, help="Do not ask before a group is cancelled.")
@cluster_command
async def cancel(target: Target, work_ids: tuple[str, ...], group: str | None, yes: bool) -> int:
    """Cancel items for good; a running one is stopped."""
    if group is not None and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"cancelling the group {group} needs --yes when nobody can be asked")
        click.confirm(f"Cancel all live items of group {group}?", abort=True, err=True)
    return await _change(target, "/work/cancel", work_ids, group)


@work.command()
@click.argument("work_ids", nargs=-1, metavar="[WORK_ID]…")
@click.option("--group", help="All FAILED and CANCELLED items of this group.")
@cluster_command
async def retry(target: Target, work_ids: tuple[str, ...], group: str | None) -> int:
    """Take FAILED or CANCELLED items back, with new attempts."""
    return await _change(target, "/work/retry", work_ids, group)


async def _change(target: Target, path: str, work_ids: tuple[str, ...], group: str | None) -> int:
    if bool(work_ids) == bool(group):
        raise click.UsageError("name items, or a --group")
    async with target.client() as client:
        if group is not None:
            answers = [await client.post(path, {"group": group})]
        else:
            full_ids = [(await items.read(client, work_id))["work_id"] for work_id in work_ids]
            answers = [await client.post(path, {"work_id": full_id}) for full_id in full_ids]
    if target.as_json:
        print_json(answers[0] if len(answers) == 1 else {"items": answers})
    else:
        say(f"{answers[0]['status']} {sum(answer['count'] for answer in answers)}")
    return ExitCode.OK
