"""Who keeps the log and votes on it: one change at a time, each decided on the table as it stands.

A change names the table it was decided on (``basis``), so of two that were proposed at once only the
first has an effect, and none takes effect before the leader that proposed it has begun its term.
That keeps any two tables that can be in force at the same time one change apart, so their
majorities share a voter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ringraft.state import commands as ops
from ringraft.state.model import Done, Epoch, Rejected
from ringraft.state.records import VoterRecord
from ringraft.state.tables import At, Decision, Tables

VOTERS_MAX = 15
"""Rows of the table, learners too. A majority of more would be slower than any of its voters is likely to fail."""


def try_again(detail: str) -> Rejected:
    """A refusal that is over soon: decided anew on the table as it is then, the change may go through."""
    return Rejected("conflict", f"{detail}; try again", members={"try_again": True})


def _refused(tables: Tables, at: At, basis: int) -> Rejected | None:
    """Why no voter may be changed now, or None."""
    if at.epoch != tables.epoch or at.index <= tables.begun_index:
        return try_again("the leader's term has not begun in the log")
    if at.index == tables.voters_index:
        return try_again("this entry has changed the voters already: one change at a time")
    if basis != tables.voters_index:
        told = f"decided on the voters as of entry {basis}, and entry {tables.voters_index} has changed them"
        return try_again(told)
    return None


def form(tables: Tables, op: ops.FormVoters, at: At) -> Decision | Rejected:
    fault = _refused(tables, at, 0)
    if fault is not None:
        return fault
    if tables.voters:
        return Rejected("conflict", f"the cluster is formed: {_names(tables)}")
    rows = {founder.node_id.lower(): founder for founder in op.founders}
    if not 0 < len(op.founders) <= VOTERS_MAX or len(rows) != len(op.founders):
        told = f"founders are 1 to {VOTERS_MAX} nodes with different ids, not {len(op.founders)}"
        return Rejected("invalid_field", told, (("/founders", told),))
    if not op.formation_id or not all(founder.is_voter for founder in op.founders):
        told = "a formation has an id, and its founders are voters"
        return Rejected("invalid_field", told, (("/founders", told),))
    news = ("VOTERS_FORMED", {"voters": [founder.node_id for founder in op.founders]})
    return _changed(at, rows, "formed", news, formation_id=op.formation_id)


def refound(tables: Tables, op: ops.Refound, at: At) -> Decision | Rejected:
    if at.epoch.generation <= tables.epoch.generation:
        return Rejected("conflict", f"generation {at.epoch.generation} is not newer than {tables.epoch.generation}")
    rows: dict[str, VoterRecord | None] = {record.node_id.lower(): record for record in op.voters}
    if not 0 < len(op.voters) <= VOTERS_MAX or len(rows) != len(op.voters):
        told = f"those who keep the log are 1 to {VOTERS_MAX} nodes with different ids, not {len(op.voters)}"
        return Rejected("invalid_field", told)
    if not op.formation_id or not any(record.is_voter for record in op.voters):
        return Rejected("invalid_field", "a formation has an id, and at least one voter")
    gone: dict[str, VoterRecord | None] = {name: None for name in tables.voters}
    news = ("CLUSTER_REFOUNDED", {"voters": [record.node_id for record in op.voters if record.is_voter]})
    return _changed(at, gone | rows, "refounded", news, formation_id=op.formation_id, epoch=at.epoch)


def announce(tables: Tables, op: ops.AnnounceVoter, at: At) -> Decision | Rejected:
    """What a node says of itself changes neither who votes nor, once its directory is known, whose copy counts."""
    record = tables.voters.get(op.node_id.lower())
    if record is None:
        return _not_a_voter(tables, op.node_id)
    fault = _older(record, op)
    if fault is not None:
        return fault
    if record.data_id not in ("", op.data_id):
        told = f"{op.node_id} is known with another data directory: it must catch up and be admitted"
        return Rejected("conflict", told)
    said = _said(record, op, at)
    if said == record:
        return Decision(Done({"status": "exists"}))
    return Decision(Done({"status": "announced"}), voters={op.node_id.lower(): said})


def admit(tables: Tables, op: ops.AdmitVoter, at: At) -> Decision | Rejected:
    record = tables.voters.get(op.node_id.lower())
    fault = _refused(tables, at, op.basis)
    if fault is not None:
        return fault
    if record is None:
        return _not_a_voter(tables, op.node_id)
    admitted = replace(_said(record, op, at), is_voter=True)
    if admitted == record:
        return Decision(Done({"status": "exists"}))
    news = ("VOTER_ADMITTED", {"node_id": record.node_id, "incarnation": op.incarnation})
    return _changed(at, {op.node_id.lower(): admitted}, "admitted", news)


def add_learner(tables: Tables, op: ops.AddLearner, at: At) -> Decision | Rejected:
    fault = _refused(tables, at, op.basis)
    if fault is not None:
        return fault
    name = op.node_id.lower()
    record = tables.voters.get(name)
    if record is not None:
        if record.is_voter or record.address == op.address:
            return Decision(Done({"status": "exists"}))
        record = replace(record, address=op.address)
    elif len(tables.voters) >= VOTERS_MAX:
        return Rejected("conflict", f"{VOTERS_MAX} nodes keep the log already; remove one first")
    elif not tables.voters:
        return try_again("the cluster is not formed yet")
    else:
        record = VoterRecord(op.node_id, op.address, changed_wall_ms=at.wall_ms)
    news = ("LEARNER_ADDED", {"node_id": record.node_id, "address": op.address})
    return _changed(at, {name: record}, "added", news)


def remove(tables: Tables, op: ops.RemoveVoter, at: At) -> Decision | Rejected:
    fault = _refused(tables, at, op.basis)
    if fault is not None:
        return fault
    record = tables.voters.get(op.node_id.lower())
    if record is None:
        return _not_a_voter(tables, op.node_id)
    if record.is_voter and sum(one.is_voter for one in tables.voters.values()) == 1:
        return Rejected("conflict", f"{record.node_id} is the last voter: add another one first")
    news = ("VOTER_REMOVED", {"node_id": record.node_id})
    return _changed(at, {op.node_id.lower(): None}, "removed", news)


def _changed(
    at: At,
    voters: Mapping[str, VoterRecord | None],
    status: str,
    news: tuple[str, dict[str, Any]],
    formation_id: str | None = None,
    epoch: Epoch | None = None,
) -> Decision:
    done = Done({"status": status, "index": at.index})
    return Decision(done, news=(news,), voters=voters, changes_voters=True, formation_id=formation_id, epoch=epoch)


def _said(record: VoterRecord, op: ops.AnnounceVoter | ops.AdmitVoter, at: At) -> VoterRecord:
    """The row with what the node says of itself."""
    said = replace(
        record,
        address=op.address or record.address,
        data_id=op.data_id,
        incarnation=op.incarnation,
        command_version=op.command_version,
    )
    return said if said == record else replace(said, changed_wall_ms=at.wall_ms)


def _older(record: VoterRecord, op: ops.AnnounceVoter) -> Rejected | None:
    if op.data_id != record.data_id or op.incarnation >= record.incarnation:
        return None
    told = f"{record.node_id} is known with incarnation {record.incarnation}, and {op.incarnation} is older"
    return Rejected("conflict", told)


def _not_a_voter(tables: Tables, node_id: str) -> Rejected:
    return Rejected("not_found", f"{node_id} does not keep this log; those who do are {_names(tables)}")


def _names(tables: Tables) -> str:
    return ", ".join(record.node_id for record in tables.voters.values()) or "not known yet"
