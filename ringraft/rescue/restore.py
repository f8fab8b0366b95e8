"""A fresh data directory from a backup."""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ringraft.consensus.replog.files import LOCAL_DISK
from ringraft.node.archive import fill
from ringraft.node.identity import LOCK_FILE, DataDirectory, Identity
from ringraft.node.voter import ARCHIVE_FILE
from ringraft.rescue.file import Whole, archived_rows, check, state_chunks
from ringraft.rescue.founding import RescueRefused, lay, refound
from ringraft.state.codec import CodecError
from ringraft.state.machine import StateMachine
from ringraft.state.records import VoterRecord


@dataclass(frozen=True, slots=True)
class Restored:
    """What was written."""

    data_dir: Path
    node_id: str
    cluster_id: str
    voters: tuple[str, ...]
    index: int
    generation: int
    formation_id: str
    items: int
    archived: int


def machine_of(path: Path) -> StateMachine:
    """The state that a backup holds, its digest checked. Raises BackupDamaged, RescueRefused."""
    try:
        return StateMachine.restore(state_chunks(path))
    except CodecError as error:
        raise RescueRefused(f"{path}: {error}") from error


def restore(
    path: Path, *, data_dir: Path, node_id: str, voters: Mapping[str, str], cluster_id: str | None, gap: int
) -> Restored:
    """Write the data directory of a voter that begins with the backup's state.

    ``voters`` are all that found the cluster, this one among them, by ``host:port``. Each of them is
    restored from the same file with the same arguments before any is started; nothing in the result
    but who it is differs from one to the next. ``cluster_id`` None keeps the backup's. Raises
    BackupDamaged, RescueRefused, DiskFailed, OSError; the directory is there whole or not at all.
    """
    if node_id not in voters:
        raise RescueRefused(f"{node_id} is not among the voters {', '.join(voters)}: name it in --peers")
    _refuse_used(data_dir)
    whole = check(path)
    machine = machine_of(path)
    formation_id = _formation(whole, voters, gap)
    founders = [VoterRecord(name, address, is_voter=True) for name, address in sorted(voters.items())]
    refound(machine, gap=gap, voters=founders, formation_id=formation_id)
    known = machine.nodes().get(node_id)
    identity = Identity(
        cluster_id or whole.head.cluster_id, node_id, secrets.token_hex(16), known.incarnation + 1 if known else 1
    )
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{data_dir.name}-restoring-", dir=data_dir.parent) as scratch:
        unfinished = Path(scratch) / "data"
        directory = DataDirectory.open(unfinished)
        lay(unfinished, machine, term=max(1, whole.head.term))
        archived = fill(unfinished / ARCHIVE_FILE, archived_rows(path))
        directory.save(identity)
        directory.close()
        _refuse_used(data_dir)
        unfinished.rename(data_dir)
        LOCAL_DISK.sync_directory(data_dir.parent)
    return Restored(
        data_dir, node_id, identity.cluster_id or "", tuple(sorted(voters)), machine.index,
        machine.epoch.generation, formation_id, len(machine.tables.items), archived,
    )  # fmt: skip


def _refuse_used(data_dir: Path) -> None:
    if not data_dir.exists():
        return
    if not data_dir.is_dir():
        raise RescueRefused(f"{data_dir} is no directory; name another with --data-dir")
    there = sorted(path.name for path in data_dir.iterdir())
    if there == [LOCK_FILE]:
        (data_dir / LOCK_FILE).unlink()
    elif there:
        raise RescueRefused(
            f"{data_dir} is not empty ({', '.join(there[:4])}…): a restore never writes over data; "
            "name a fresh directory, or move that one away"
        )


def _formation(whole: Whole, voters: Mapping[str, str], gap: int) -> str:
    """Names this new cluster: the same for each of its voters, another for every other file or set of voters."""
    text = "\n".join(
        [whole.sha256, str(whole.head.generation), str(gap), *(f"{n}={a}" for n, a in sorted(voters.items()))]
    )
    return "r-" + hashlib.sha256(text.encode()).hexdigest()[:30]
