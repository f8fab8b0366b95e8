"""``ringraft backup``: fetch the state of a running cluster, look into it, and begin anew from it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ringraft.cli.connect import Target, cluster_command
from ringraft.cli.exits import CommandFailed, ExitCode
from ringraft.cli.output import chatter_console, counted, data_console, print_json, say, table
from ringraft.client import ApiError
from ringraft.rescue.file import BackupDamaged, Whole, check
from ringraft.rescue.founding import DIRECTORY_FAULTS, INDEX_GAP, RescueRefused
from ringraft.rescue.restore import machine_of
from ringraft.rescue.restore import restore as write_directory
from ringraft.settings.convert import Fault, convert

STALL_S = 60.0
"""A download in which nothing comes for so long is given up."""

FILE = click.argument("file", type=click.Path(path_type=Path))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
GAP = click.option(
    "--index-gap",
    "gap",
    type=click.IntRange(1),
    default=INDEX_GAP,
    show_default=True,
    metavar="N",
    help="How far the log's index jumps ahead; more entries than were made after the backup.",
)


@contextmanager
def sentences() -> Iterator[None]:
    """What goes wrong with files becomes one sentence; the log's own lines are for nodes."""
    logging.getLogger("ringraft.consensus").setLevel(logging.ERROR)
    try:
        yield
    except (BackupDamaged, RescueRefused, *DIRECTORY_FAULTS) as error:
        raise CommandFailed(ExitCode.ERROR, str(error)) from error
    except OSError as error:
        raise CommandFailed(ExitCode.ERROR, f"{error.filename or 'the file'}: {error.strerror or error}") from error


def voters_of(option: str, text: str) -> dict[str, str]:
    """``n1=host:port,…`` as a mapping. Raises UsageError."""
    try:
        voters: dict[str, str] = convert("cluster.voters", text, text=True)
    except Fault as fault:
        raise click.UsageError(f"{option} {text}: {fault}") from fault
    return voters


@click.group()
def backup() -> None:
    """Keep a cluster's state in a file, and begin anew from one."""


@backup.command()
@FILE
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--stale", is_flag=True, help="Do not wait until the node asked has everything acknowledged before.")
@click.option("--no-archive", is_flag=True, help="Leave out the items that were final long before.")
@cluster_command
async def create(target: Target, file: Path, force: bool, stale: bool, no_archive: bool) -> None:
    """Fetch the state of the running cluster into FILE (mode 0600), and verify it.

    The work goes on meanwhile. FILE is there whole or not at all.
    """
    if not force and await asyncio.to_thread(file.exists):
        raise CommandFailed(ExitCode.USAGE, f"{file} is there already; name another file, or add --force")
    params = {"consistency": "stale"} if stale else {}
    params |= {"archive": "0"} if no_archive else {}
    with sentences():
        whole = await _fetch(target, file, params)
    if target.as_json:
        print_json(_view(file, whole))
    else:
        say(f"{file}: {counted(whole.head.items, 'item')} at index {whole.head.index}, verified")


async def _fetch(target: Target, file: Path, params: dict[str, str]) -> Whole:
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out, _progress() as progress:
            task = progress.add_task("reading the state", total=None)

            def take(piece: bytes) -> None:
                out.write(piece)
                progress.advance(task, len(piece))

            async with target.client() as client:
                await _download(client, take, params)
            out.flush()
            await asyncio.to_thread(os.fsync, out.fileno())
        whole = await asyncio.to_thread(check, unfinished)
        unfinished.replace(file)
        _sync_directory(file.parent)
    except BackupDamaged as damage:
        raise RescueRefused(f"the backup did not arrive whole ({damage}); nothing was kept") from damage
    finally:
        unfinished.unlink(missing_ok=True)
    return whole


async def _download(client: Any, take: Any, params: dict[str, str]) -> None:
    try:
        await client.download("/admin/backup", take, params=params, stall_s=STALL_S)
    except ApiError as error:
        if error.status != 307:
            raise
        voter = error.headers.get("Location", "").partition("/admin")[0]
        raise CommandFailed(ExitCode.USAGE, f"that node keeps no log; ask a voter: --addr {voter}") from None


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=chatter_console(), transient=True, disable=not chatter_console().is_terminal)


@backup.command()
@FILE
@AS_JSON
def inspect(file: Path, as_json: bool) -> None:
    """Read FILE through, check every checksum and the state's digest, and say what is in it."""
    with sentences():
        whole = check(file)
        work = machine_of(file).work_status()
    view = _view(file, whole) | {"by_state": work["by_status"], "by_type": work["by_type"]}
    if as_json:
        print_json(view)
        return
    rows = [(name.replace("_", " "), value) for name, value in view.items() if name not in ("by_state", "by_type")]
    console = data_console()
    console.print(table(("BACKUP", "whole, every checksum is right"), rows))
    for title in ("by_state", "by_type"):
        if view[title]:
            console.print(table((title.partition("_")[2].upper(), "ITEMS#"), sorted(view[title].items())))


@backup.command()
@FILE
@click.option("--data-dir", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Made; or empty.")
@click.option("--node-id", required=True, metavar="ID", help="Who this directory is for.")
@click.option("--peers", metavar="N1=HOST:PORT,…", help="All voters of the new cluster; this node alone when left out.")
@click.option("--bind", metavar="HOST:PORT", default="127.0.0.1:8770", help="This node's address, when it is alone.")
@click.option(
    "--cluster-id", metavar="ID", help="Another id than the backup's: for a copy beside a cluster that lives."
)
@GAP
@AS_JSON
def restore(
    file: Path,
    data_dir: Path,
    node_id: str,
    peers: str | None,
    bind: str,
    cluster_id: str | None,
    gap: int,
    as_json: bool,
) -> None:
    """Write a fresh data directory that begins with the state in FILE.

    With --peers, run it with the same arguments (but --node-id and --data-dir) on every voter before
    any is started. The log begins a new generation: nodes of the old life are not heard.
    """
    voters = voters_of("--peers", peers) if peers else voters_of("--node-id/--bind", f"{node_id}={bind}")
    with sentences():
        done = write_directory(file, data_dir=data_dir, node_id=node_id, voters=voters, cluster_id=cluster_id, gap=gap)
    if as_json:
        print_json({name: _plain(getattr(done, name)) for name in done.__slots__})
        return
    say(f"{done.data_dir}: voter {done.node_id} of cluster {done.cluster_id}, generation {done.generation}")
    say(f"  {counted(done.items, 'item')} and {done.archived} archived, log begins at index {done.index}")
    say("  leases that were held go on in log time: workers that live may hand in, the others' expire")
    say("  what was acknowledged after the backup was made is not in it")
    if len(done.voters) > 1:
        others = ", ".join(name for name in done.voters if name != done.node_id)
        say(f"  restore {others} from the same file before any of them is started")
    arguments = f"--node-id {done.node_id} --data-dir {done.data_dir}" + (
        f" --peers {peers}" if peers else f" --bind {bind}"
    )
    say(f"next: ringraft-voter {arguments}")


def _view(file: Path, whole: Whole) -> dict[str, Any]:
    head = whole.head
    return {
        "file": str(file),
        "bytes": whole.file_bytes,
        "sha256": whole.sha256,
        "cluster_id": head.cluster_id,
        "made_by": head.node_id,
        "made_at": _at(head.made_wall_ms),
        "newest_entry_at": _at(head.wall_ms),
        "index": head.index,
        "term": head.term,
        "generation": head.generation,
        "log_ms": head.log_ms,
        "state_digest": head.digest,
        "items": head.items,
        "archived": whole.archived,
        "has_archive": head.has_archive,
        "format_version": head.format_version,
        "program_version": head.program_version,
    }


def _at(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
