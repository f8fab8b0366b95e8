"""Another history for a state: a data directory whose log begins at an image, in a generation of its own.

What keeps the lives apart:

- the generation rises, so an entry of the life before changes nothing where it may still turn up;
- the formation is another, and this directory has another data id, so nobody takes it for a copy
  of the one before;
- the index jumps ahead, because a token is made of it: grants that the life before made after the
  image was taken must not have the tokens of grants to come.

Items keep their states. A lease that was held goes on in log time, which stood still meanwhile: its
worker may renew it and hand in its result, and if it is gone, the lease expires.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ringraft.consensus.opening import LOG_DIRECTORY, SNAPSHOT_DIRECTORY
from ringraft.consensus.replog.files import LOCAL_DISK, DiskFailed
from ringraft.consensus.replog.journal import STAND_IN, Journal, JournalDamaged
from ringraft.consensus.replog.seat import Seat, Standing, write_seat
from ringraft.consensus.replog.snapshot import SnapshotDamaged, SnapshotStore
from ringraft.node.identity import StartRefused
from ringraft.state.commands import Refound
from ringraft.state.machine import StateMachine
from ringraft.state.model import Command, Done, Entry, Epoch
from ringraft.state.records import VoterRecord

INDEX_GAP: Final = 10_000_000
"""Entries that the life before may have made after the image; at a thousand a second almost three hours."""
INDEX_MAX: Final = 1 << 33
"""Events are numbered by index; beyond it their numbers would not be exact in JSON."""


DIRECTORY_FAULTS: Final = (JournalDamaged, SnapshotDamaged, DiskFailed, StartRefused)
"""Why a data directory cannot be read or written, each in one sentence."""


class RescueRefused(Exception):
    """Nothing was changed; one sentence says why and what to do."""


def refound(machine: StateMachine, *, gap: int, voters: Sequence[VoterRecord], formation_id: str) -> None:
    """Begin another generation in ``machine``, ``gap`` entries further on. Raises RescueRefused."""
    index = machine.index + gap
    if not 1 <= gap or index >= INDEX_MAX:
        raise RescueRefused(f"index {machine.index} + {gap} is not below {INDEX_MAX}: choose a smaller --index-gap")
    epoch = Epoch(machine.epoch.generation + 1, 0)
    entry = Entry(machine.log_ms, machine.wall_ms, epoch, (Command(Refound(tuple(voters), formation_id)),))
    (outcome,) = machine.apply(index, entry).outcomes
    if not isinstance(outcome, Done):
        raise RescueRefused(outcome.detail)


def lay(directory: Path, machine: StateMachine, *, term: int) -> int:
    """Write ``log/`` and ``snapshot/`` that begin at this state; the bytes of the image.

    ``term`` is the newest that this state's nodes have known. Raises DiskFailed.
    """
    journal = Journal.open(directory / LOG_DIRECTORY)
    try:
        journal.setCurrentTerm(term, None)
        writer = SnapshotStore(directory / SNAPSHOT_DIRECTORY).begin(machine.index, term, term, b"", command=STAND_IN)
        for chunk in machine.snapshot():
            writer.write(chunk)
        snapshot = writer.commit()
        journal.install(snapshot.base)
    finally:
        journal.close()
    seat = Seat(Standing.MEMBER, machine.index, machine.tables.formation_id)
    write_seat(LOCAL_DISK, directory / LOG_DIRECTORY, seat)
    return snapshot.chunks_bytes
