"""A node's log as it stands in its data directory: the newest snapshot restored, the journal behind it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ringraft.clock import Clock
from ringraft.consensus.base import Replicated
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog.files import Disk
from ringraft.consensus.replog.journal import Journal
from ringraft.consensus.replog.library import Electorate, LogHost, Timing
from ringraft.consensus.replog.recovery import oldest_index
from ringraft.consensus.replog.seat import Seat, Standing, read_seat, write_seat
from ringraft.consensus.replog.snapshot import Snapshot, SnapshotStore
from ringraft.consensus.replog.syncobj import RaftLog
from ringraft.consensus.roll import Roll, Self

logger = logging.getLogger(__name__)

PROGRESS_S = 2.0
"""How often a long restoration says how far it is."""
LOG_DIRECTORY = "log"
SNAPSHOT_DIRECTORY = "snapshot"


class VoterRemoved(Exception):
    """The cluster removed the node of this data directory; it must not start on it."""


def open_roll(
    *,
    own: Self,
    configured: Mapping[str, str],
    contacts: Mapping[str, str],
    data_dir: Path,
    disk: Disk,
    clock: Clock,
    formation_wait_s: float,
) -> Roll:
    """The roll as the directory's seat has it. Raises JournalDamaged, DiskFailed, VoterRemoved."""
    directory = data_dir / LOG_DIRECTORY
    seat = read_seat(disk, directory)
    if seat.standing == Standing.REMOVED:
        raise VoterRemoved(
            f"{own.node_id} was removed from its cluster by entry {seat.since_index} of the log; to let it keep the "
            f"log again, empty {data_dir}, start it, and add it"
        )

    def keep(seat: Seat) -> None:
        disk.make_directory(directory)
        write_seat(disk, directory, seat)

    return Roll(
        own=own,
        configured=configured,
        contacts=contacts,
        seat=seat,
        keep=keep,
        clock=clock,
        formation_wait_s=formation_wait_s,
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """What a data directory held."""

    journal: Journal
    log: RaftLog
    store: SnapshotStore
    snapshot: Snapshot | None


def open_log(
    *,
    node_id: str,
    electorate: Electorate,
    data_dir: Path,
    replicated: Replicated,
    config: RaftConfig,
    clock: Clock,
    rng: random.Random,
    host: LogHost,
    disk: Disk,
) -> Opened:
    """Open the log, with the state as of the newest snapshot; what follows it is for the caller to apply.

    Raises JournalDamaged, SnapshotDamaged, DiskFailed: the node must not start on this directory.
    """
    directory = data_dir / LOG_DIRECTORY
    store = SnapshotStore(data_dir / SNAPSHOT_DIRECTORY, disk=disk)
    snapshot = store.latest(reach=oldest_index(directory, disk=disk))
    if snapshot is not None:
        restore(replicated, snapshot)
    journal = Journal.open(
        directory,
        snapshot=snapshot.base if snapshot is not None else None,
        segment_bytes=config.segment_bytes,
        disk=disk,
    )
    log = RaftLog(
        node_id=node_id,
        electorate=electorate,
        journal=journal,
        timing=Timing(
            heartbeat_s=config.heartbeat_ms / 1000,
            election_min_s=config.election_min_ms / 1000,
            election_max_s=config.election_max_ms / 1000,
        ),
        clock=clock,
        rng=rng,
        host=host,
    )
    if snapshot is not None:
        log.stand_at(snapshot.base)
    return Opened(journal, log, store, snapshot)


def restore(replicated: Replicated, snapshot: Snapshot) -> None:
    """Let the state be that of the snapshot, in one go: nothing is served yet."""
    began_s, said_s, taken = time.monotonic(), time.monotonic(), 0
    building = replicated.rebuild()
    for chunk in snapshot.chunks():
        for _ in building.take(chunk):
            pass
        taken += len(chunk)
        if time.monotonic() - said_s >= PROGRESS_S:
            said_s = time.monotonic()
            logger.info(
                "restoring action=snapshot_restoring index=%d bytes=%d of=%d",
                snapshot.index,
                taken,
                snapshot.chunks_bytes,
            )
    building.end()
    for _ in building.replace():
        pass
    logger.info(
        "restored action=snapshot_restored index=%d bytes=%d took_ms=%d",
        snapshot.index, taken, round((time.monotonic() - began_s) * 1000),
    )  # fmt: skip
