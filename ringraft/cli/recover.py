"""``ringraft recover``: the majority of the voters is lost for good, and one of the others is left."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ringraft.cli.backup import GAP, sentences, voters_of
from ringraft.cli.exits import CommandFailed, ExitCode
from ringraft.cli.output import data_console, print_json, say, table
from ringraft.rescue.recover import Found, Stopped


@click.command()
@click.option("--data-dir", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Of the stopped node.")
@click.option("--bind", required=True, metavar="HOST:PORT", help="Where this node will listen.")
@click.option("--learners", metavar="N2=HOST:PORT,…", help="Nodes with empty directories that are to be sent the log.")
@click.option("--confirm", metavar="CLUSTER_ID", help="Do it; without this, only say what would be done.")
@GAP
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def recover(data_dir: Path, bind: str, learners: str | None, confirm: str | None, gap: int, as_json: bool) -> int:
    """Begin again with this stopped node as the only voter, when the majority is lost for good.

    Only then: while a majority can come back, start it instead. Of several nodes that are left take
    the one with the highest last term, and among those the highest last index; wipe the others. The
    old log is kept beside the directory.
    """
    address = voters_of("--bind", f"x={bind}")["x"]
    others = voters_of("--learners", learners) if learners else {}
    with sentences():
        stopped = Stopped(data_dir.absolute())
        try:
            found = stopped.found
            if confirm is None:
                _show(found, as_json)
                return ExitCode.ERROR
            if confirm != found.cluster_id:
                raise CommandFailed(
                    ExitCode.USAGE,
                    f"--confirm {confirm}: this directory is of cluster {found.cluster_id}; nothing was changed",
                )
            done = stopped.recover(address=address, learners=others, gap=gap)
        finally:
            stopped.close()
    if as_json:
        print_json(_view(found) | {"kept": str(done.kept), "generation": done.generation, "index": done.index})
        return ExitCode.OK
    say(f"{data_dir}: {found.identity.node_id} is the only voter, generation {done.generation}, index {done.index}")
    say(f"  the old log is kept in {done.kept}; remove it when all is well")
    say("  start no other voter of the old cluster on its old directory: wipe that first")
    say(f"next: ringraft-voter --node-id {found.identity.node_id} --data-dir {data_dir} --bind {bind}")
    return ExitCode.OK


def _show(found: Found, as_json: bool) -> None:
    if as_json:
        print_json(_view(found))
        return
    rows = [(name.replace("_", " "), value) for name, value in _view(found).items() if not isinstance(value, dict)]
    console = data_console()
    console.print(table(("DIRECTORY", str(found.data_dir)), rows))
    if found.items:
        console.print(table(("STATE", "ITEMS#"), sorted(found.items.items())))
    beyond = found.last_index - found.commit_index
    say(f"It holds the log up to index {found.last_index}, and knows it as committed up to {found.commit_index}.")
    if beyond:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.uncertain.items()))
        say(f"The {beyond} beyond may or may not have been acknowledged ({kinds or 'no command'}):")
        say("all of them are kept and applied.")
    say("Given up for good: whatever was acknowledged and lived only on the nodes that are lost.")
    say("If a majority of the voters can still be started, start them instead of this.")
    say(f"Nothing was changed. To do it: the same command with --confirm {found.cluster_id}")


def _view(found: Found) -> dict[str, Any]:
    newest = datetime.fromtimestamp(found.newest_wall_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {
        "data_dir": str(found.data_dir),
        "cluster_id": found.cluster_id,
        "node_id": found.identity.node_id,
        "standing": found.standing,
        "voters": ", ".join(found.voters) or None,
        "snapshot_index": found.snapshot_index,
        "first_index": found.first_index,
        "last_index": found.last_index,
        "last_term": found.last_term,
        "commit_index": found.commit_index,
        "term": found.term,
        "generation": found.generation,
        "newest_entry_at": newest.replace("+00:00", "Z"),
        "uncertain": dict(found.uncertain),
        "items": dict(found.items),
    }
