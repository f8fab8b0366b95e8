"""A lost majority: the newest copy that is left begins again as a cluster of one.

Everything on this disk is applied, also entries that this node does not know to be committed: one of
them may have been acknowledged by a majority that is gone, and nobody is left to say. An entry that
was not is applied too; its caller was told nothing or "unknown", which covers both.
"""

from __future__ import annotations

import secrets
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

from ringraft.consensus.opening import LOG_DIRECTORY, SNAPSHOT_DIRECTORY
from ringraft.consensus.replog.files import LOCAL_DISK
from ringraft.consensus.replog.recovery import JournalDamaged, oldest_index
from ringraft.consensus.replog.recovery import recover as read_journal
from ringraft.consensus.replog.seat import read_seat
from ringraft.consensus.replog.snapshot import SnapshotStore
from ringraft.consensus.replog.syncobj import CHANGE, ENTRY
from ringraft.node.identity import IDENTITY_FILE, DataDirectory, Identity
from ringraft.rescue.founding import RescueRefused, lay, refound
from ringraft.state.codec import COMMAND_VERSION, TAGS, CodecError, decode_entry
from ringraft.state.machine import StateMachine
from ringraft.state.model import Entry
from ringraft.state.records import VoterRecord

KEPT_SUFFIX: Final = ".before-recover-"
"""Between the directory's name and the time, in the name of what is kept of it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a stopped node's directory holds."""

    data_dir: Path
    identity: Identity
    cluster_id: str
    snapshot_index: int
    first_index: int
    last_index: int
    last_term: int
    """Of the entry at ``last_index``."""
    commit_index: int
    """The newest that this node knew to be committed when it last wrote it down; more may be."""
    term: int
    generation: int
    formation_id: str
    standing: str
    """A member's copy counted; a learner's may lack much that was acknowledged."""
    voters: tuple[str, ...]
    """As the log has them; empty in a log that has no table of them."""
    uncertain: Mapping[str, int]
    """Commands beyond the known commit index, by kind: they may or may not have been acknowledged."""
    newest_wall_ms: int
    items: Mapping[str, int]
    """By state, everything applied."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was written."""

    found: Found
    kept: Path
    """Where the old log is."""
    index: int
    generation: int
    formation_id: str


class Stopped:
    """A stopped node's directory, locked while this is open. ``close`` ends it."""

    def __init__(self, data_dir: Path) -> None:
        """Read everything; changes nothing that counts. Raises RescueRefused and ``founding.DIRECTORY_FAULTS``."""
        if not (data_dir / IDENTITY_FILE).is_file() or not (data_dir / LOG_DIRECTORY).is_dir():
            _refuse(data_dir)
        self._directory = DataDirectory.open(data_dir)
        try:
            self.machine = StateMachine()
            self.found = self._read(data_dir)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others have the directory."""
        self._directory.close()

    def recover(self, *, address: str, learners: Mapping[str, str], gap: int) -> Recovered:
        """Begin again as the only voter; ``learners`` are sent the log when they come, by ``host:port``.

        The old log is kept beside the directory. Raises RescueRefused, DiskFailed, OSError.
        """
        found, data_dir = self.found, self.found.data_dir
        if found.identity.node_id in learners:
            raise RescueRefused(f"{found.identity.node_id} is the voter that is left, and cannot be a learner too")
        identity = replace(found.identity, data_id=secrets.token_hex(16), incarnation=found.identity.incarnation + 1)
        formation_id = "r-" + secrets.token_hex(15)
        own = VoterRecord(identity.node_id, address, identity.data_id, identity.incarnation, True, COMMAND_VERSION)
        rows = [own, *(VoterRecord(name, where) for name, where in sorted(learners.items()))]
        refound(self.machine, gap=gap, voters=rows, formation_id=formation_id)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        prepared = data_dir.with_name(f"{data_dir.name}.recovering-{stamp}")
        kept = data_dir.with_name(f"{data_dir.name}{KEPT_SUFFIX}{stamp}")
        prepared.mkdir(mode=0o700)
        try:
            lay(prepared, self.machine, term=max(1, found.term))
            kept.mkdir(mode=0o700)
        except BaseException:
            shutil.rmtree(prepared)
            raise
        self._exchange(prepared, kept)
        self._directory.save(identity)
        return Recovered(found, kept, self.machine.index, self.machine.epoch.generation, formation_id)

    def _exchange(self, prepared: Path, kept: Path) -> None:
        """Put the old log aside and the new one in its place.

        The identity goes first and comes last, and one of the two directories is always there: a log that
        does not say whose it is, which no node starts on, whenever this process dies.
        """
        data_dir, disk = self.found.data_dir, LOCAL_DISK

        def move(source: Path, target: Path) -> None:
            source.rename(target)
            disk.sync_directory(target.parent)
            disk.sync_directory(source.parent)

        move(data_dir / IDENTITY_FILE, kept / IDENTITY_FILE)
        for name in (LOG_DIRECTORY, SNAPSHOT_DIRECTORY):
            move(data_dir / name, kept / name)
            move(prepared / name, data_dir / name)
        prepared.rmdir()
        disk.sync_directory(data_dir.parent)

    def _read(self, data_dir: Path) -> Found:
        identity = self._directory.identity()
        if identity is None or identity.cluster_id is None:
            raise RescueRefused(f"{data_dir} does not know its cluster: nothing was ever acknowledged with its help")
        log, disk = data_dir / LOG_DIRECTORY, LOCAL_DISK
        snapshot = SnapshotStore(data_dir / SNAPSHOT_DIRECTORY).latest(reach=oldest_index(log, disk=disk))
        journal = read_journal(log, disk)
        if snapshot is None and journal.first_index > 1:
            raise JournalDamaged(log, 0, f"the journal begins at entry {journal.first_index}, but there is no snapshot")
        snapshot_index = snapshot.index if snapshot is not None else 0
        try:
            if snapshot is not None:
                self.machine = StateMachine.restore(snapshot.chunks())
            commit_index = max(snapshot_index, journal.mark.commit_index if journal.mark is not None else 0)
            uncertain: Counter[str] = Counter()
            for command, index, _ in journal.entries:
                if index <= snapshot_index or command[:1] not in (ENTRY, CHANGE):
                    continue
                entry: Entry = decode_entry(command[1:])
                self.machine.apply(index, entry)
                if index > commit_index:
                    uncertain.update(TAGS[type(one.op)] for one in entry.commands)
        except CodecError as error:
            raise RescueRefused(f"{data_dir}: {error}") from error
        tables = self.machine.tables
        snapshot_term = snapshot.term if snapshot is not None else 0
        last_index = max(snapshot_index, journal.last_index)
        return Found(
            data_dir=data_dir,
            identity=identity,
            cluster_id=identity.cluster_id,
            snapshot_index=snapshot_index,
            first_index=journal.first_index,
            last_index=last_index,
            last_term=journal.entries[-1][2] if last_index > snapshot_index else snapshot_term,
            commit_index=min(commit_index, last_index),
            term=max(journal.vote.term if journal.vote is not None else 0, snapshot_term),
            generation=tables.epoch.generation,
            formation_id=tables.formation_id,
            standing=read_seat(disk, log).standing.name.lower(),
            voters=tuple(record.node_id for record in tables.voters.values() if record.is_voter),
            uncertain=dict(uncertain),
            newest_wall_ms=tables.wall_ms,
            items=self.machine.work_status()["by_status"],
        )


def _refuse(data_dir: Path) -> NoReturn:
    parts = f"{IDENTITY_FILE}, {LOG_DIRECTORY} and {SNAPSHOT_DIRECTORY}"
    cut_short = sorted(data_dir.parent.glob(f"{data_dir.name}{KEPT_SUFFIX}*"))
    if cut_short and not (data_dir / IDENTITY_FILE).exists():
        raise RescueRefused(
            f"{data_dir}: an earlier recovery was cut short; move what {cut_short[-1]} has of {parts} back "
            "in the place of what is there, and begin again"
        )
    raise RescueRefused(
        f"{data_dir} is no voter's data directory ({IDENTITY_FILE} and {LOG_DIRECTORY} are not both there); "
        "name one with --data-dir"
    )
