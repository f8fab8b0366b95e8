"""A node's log as it stands in its data directory: the newest snapshot restored, the journal behind it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ringraft.clock import Clock
from ringraft.consensus.base import Replicated
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog.files import Disk
from ringraft.consensus.replog.journal import Journal
from ringraft.consensus.replog.library import LogHost, Timing
from ringraft.consensus.replog.recovery import oldest_index
from ringraft.consensus.replog.snapshot import Snapshot, SnapshotStore
from ringraft.consensus.replog.syncobj import RaftLog

logger = logging.getLogger(__name__)

PROGRESS_S = 2.0
"""How often a long restoration says how far it is."""
LOG_DIRECTORY = "log"
SNAPSHOT_DIRECTORY = "snapshot"


@dataclass(frozen=True, slots=True)
class Opened:
    """What a data directory held."""

    log: RaftLog
    store: SnapshotStore
    snapshot: Snapshot | None


def open_log(
    *,
    node_id: str,
    voters: Sequence[str],
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
        voters=voters,
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
    return Opened(log, store, snapshot)


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
