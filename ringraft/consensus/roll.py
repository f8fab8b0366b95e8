"""The roll of voters as one node sees it: who votes, whose copy counts, and what this directory may do.

Three sources, each with its own authority. The *table* in the applied state says who votes and which
data directory of each counts; before a cluster is formed the *configured* list stands in for it. This
directory's *seat* (``replog/seat.py``) says whether it takes part. And each peer *introduces* itself
when a link comes up: its standing, its directory, and what its table says of ours.

Which table is in force
-----------------------
Leader, candidate and follower use the newest table they have applied. Two rules make that safe:

- A change is proposed by a leader that has begun its term and has applied every change in its log
  (``entries.py``), so of two changes in any log the older one is committed. A node therefore takes a
  change as committed as soon as its log holds another one behind it, and stands for election only when
  it has applied all it knows to be committed (``replog/syncobj.py``). So a candidate's table is at most one
  change older than the newest change in its log.
- A change adds or removes one voter, so majorities of two tables that are one change apart share a
  voter, and that voter votes once in a term.

Let a candidate win with table k while change k+2 or a later one is committed. Its log holds at most change
k+1. Change k+2 was stored by a majority of table k+1, which shares a voter with every majority of table k;
that voter's log is newer than the candidate's, so it refused its vote. Hence tables of two leaders
of one term are at most one change apart, and there are no two.

Forming
-------
A fresh directory forms a cluster with the configured voters when it reaches all of them and none has
met a log; when it reaches a majority only, after a bounded wait, so that two of three can begin. It
writes its seat before its first vote. It joins the cluster that others have formed, but have not begun
to use, in the same way. Whoever meets a log becomes a learner instead, durably, and forms nothing any more.

What that allows: once every voter has met the log, any minority of the directories may be lost, since a
fresh directory then reaches no majority without meeting one that has the log. What it does not: while a
voter has never been there, it and directories that were lost can be a majority that has met no log,
and would begin anew. What the old majority had acknowledged is lost with it then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from ringraft.clock import Clock
from ringraft.consensus.replog.codec import Introduce
from ringraft.consensus.replog.filter import quorum_size
from ringraft.consensus.replog.seat import Seat, Standing
from ringraft.state.codec import COMMAND_VERSION
from ringraft.state.records import VoterRecord, VoterTable

logger = logging.getLogger(__name__)


class Self:
    """Who this node is, from its data directory's identity."""

    def __init__(
        self, node_id: str, address: str, data_id: str, incarnation: int, command_version: int = COMMAND_VERSION
    ) -> None:
        self.node_id = node_id
        self.address = address
        self.data_id = data_id
        self.incarnation = incarnation
        self.command_version = command_version


class Roll:
    """Voters, learners and standings; everything but the durable write is memory."""

    def __init__(
        self,
        *,
        own: Self,
        configured: Mapping[str, str],
        contacts: Mapping[str, str],
        seat: Seat,
        keep: Callable[[Seat], None],
        clock: Clock,
        formation_wait_s: float,
    ) -> None:
        """``configured`` maps the founding voters to addresses; it is empty at a node that joins, which has
        ``contacts``: voters of the cluster, until its log names them.

        ``keep`` makes a seat durable.
        """
        self.own = own
        self.seat = seat
        self.table = VoterTable({}, "", 0)
        self.index = 0
        """The newest entry applied when the table was last looked at."""
        self._configured = dict(configured)
        self._contacts = dict(contacts)
        self._keep = keep
        self._clock = clock
        self._formation_wait_s = formation_wait_s
        self._introduced: dict[str, Introduce] = {}
        self._majority_since_s: float | None = None
        self._foreign: set[str] = set()

    # Who votes

    @property
    def is_formed(self) -> bool:
        """The log says who votes; before, the configuration does."""
        return bool(self.table.voters)

    def voters(self) -> list[str]:
        """Every voter, this node too if it is one, sorted: a majority of these decides."""
        if not self.is_formed:
            return sorted(self._configured)
        return sorted(record.node_id for record in self.table.voters.values() if record.is_voter)

    def learners(self) -> list[str]:
        """Who is sent the log and is no voter yet, sorted."""
        return sorted(record.node_id for record in self.table.voters.values() if not record.is_voter)

    def addresses(self) -> dict[str, str]:
        """Everybody else who keeps the log, with where to reach it."""
        if self.is_formed:
            known = {record.node_id: record.address for record in self.table.voters.values()}
        else:
            known = self._configured | self._contacts
        known.pop(self.own.node_id, None)
        return known

    def counts(self, peer_id: str) -> bool:
        """Whether a vote or an acknowledgement of this peer counts: it is a voter, and this is its directory."""
        said = self._introduced.get(peer_id)
        if said is None or said.standing != Standing.MEMBER or self.is_foreign(peer_id):
            return False
        if not self.is_formed:
            return peer_id in self._configured
        record = self.table.voters.get(peer_id)
        # A founder whose directory the log does not name yet: its own seat says that it has lost nothing.
        return record is not None and record.is_voter and record.data_id in ("", said.data_id)

    def may_vote(self) -> bool:
        """Whether this directory's own vote and copy count."""
        return self.seat.standing == Standing.MEMBER

    def may_stand(self) -> bool:
        """Whether this node may stand for election."""
        return self.may_vote() and self.own.node_id in self.voters()

    def command_version(self) -> int:
        """The newest version of commands that every voter has announced through the log."""
        said = [one.command_version for one in self.table.voters.values() if one.is_voter and one.data_id]
        return min(said, default=1)

    def lagging_voters(self, version: int) -> list[str]:
        """The voters that have announced an older version of commands only."""
        rows = self.table.voters.values()
        return sorted(one.node_id for one in rows if one.is_voter and one.data_id and one.command_version < version)

    # Introductions

    def introduction(self, to: str, *, has_log: bool, asks: bool = False) -> Introduce:
        """What this node says of itself to ``to``. ``has_log``: it holds entries, or has seen a term."""
        own, record = self.own, self.table.voters.get(to)
        return Introduce(
            standing=int(self.seat.standing),
            has_met_log=has_log or self.seat.standing in (Standing.LEARNER, Standing.REMOVED),
            data_id=own.data_id,
            incarnation=own.incarnation,
            command_version=own.command_version,
            address=own.address,
            formation_id=self.seat.formation_id,
            your_data_id=record.data_id if record is not None else "",
            your_incarnation=record.incarnation if record is not None else 0,
            you_vote=record is not None and record.is_voter,
            knows_you=record is not None or not self.is_formed,
            applied_index=self.index,
            asks=asks,
        )

    def said(self, peer_id: str) -> Introduce | None:
        """How a peer introduced itself last."""
        return self._introduced.get(peer_id)

    def heard(self, peer_id: str, said: Introduce) -> bool:
        """Take an introduction. True when the peer is another than before: what was known of its copy is void."""
        before = self._introduced.get(peer_id)
        self._introduced[peer_id] = said
        if self.is_foreign(peer_id):
            if peer_id not in self._foreign:
                self._foreign.add(peer_id)
                logger.error(
                    "another cluster has a voter of this name action=foreign_voter node=%s peer=%s formation=%s "
                    "theirs=%s: one of the two data directories is in the wrong place",
                    self.own.node_id, peer_id, self.seat.formation_id, said.formation_id,
                )  # fmt: skip
            return True
        self._foreign.discard(peer_id)
        if said.has_met_log and self.seat.standing == Standing.FRESH:
            self._sit(Seat(Standing.LEARNER, since_start=self.own.incarnation), f"{peer_id} has a log already")
        self._compare_with(peer_id, said)
        self._take_up_admission(peer_id, said)
        return before is None or (before.data_id, before.standing) != (said.data_id, said.standing)

    def is_foreign(self, peer_id: str) -> bool:
        """The peer belongs to another cluster of the same names: nothing of it is heard."""
        said = self._introduced.get(peer_id)
        return said is not None and said.formation_id not in ("", self.seat.formation_id or said.formation_id)

    def _compare_with(self, peer_id: str, said: Introduce) -> None:
        """A directory of an older life of this node takes no part, whatever its own seat says."""
        own = self.own
        if self.seat.standing != Standing.MEMBER or said.applied_index <= self.seat.since_index:
            return
        if not said.knows_you:
            seat = self.seat._replace(standing=Standing.REMOVED, since_index=said.applied_index)
            self._sit(seat, f"{peer_id} knows that this node was removed")
        elif not said.your_data_id:
            return
        elif said.your_data_id != own.data_id:
            self._learn(own.incarnation, f"{peer_id} knows this node by another directory")
        elif said.your_incarnation > own.incarnation:
            known = f"{peer_id} knows incarnation {said.your_incarnation}, this is {own.incarnation}"
            self._learn(said.your_incarnation, f"the directory is an old copy: {known}")

    def _learn(self, known: int, reason: str) -> None:
        """A member's copy counts no longer, until it is admitted in this start or in a later one than ``known``."""
        self._sit(self.seat._replace(standing=Standing.LEARNER, since_start=known + 1), reason)

    def _take_up_admission(self, peer_id: str, said: Introduce) -> None:
        """Take the seat that the cluster gave this directory before an earlier start of it could.

        The peer has applied the admission, so it is committed, and a majority without this directory holds it.
        Waiting for the log to say so may be for ever: the first of two voters needs the other's vote to lead.
        """
        seat, own = self.seat, self.own
        if seat.standing != Standing.LEARNER or not said.you_vote or said.your_data_id != own.data_id:
            return
        if seat.since_start <= said.your_incarnation <= own.incarnation:
            formation_id = seat.formation_id or said.formation_id
            seat = seat._replace(standing=Standing.MEMBER, since_index=said.applied_index, formation_id=formation_id)
            self._sit(seat, f"{peer_id} knows that start {said.your_incarnation} of this directory was admitted")

    # The table

    def take_table(self, table: VoterTable, index: int) -> None:
        """Entry ``index`` was applied, and this is the table now."""
        before, self.table, self.index = self.table.voters.get(self.own.node_id), table, index
        if not table.voters:
            return
        seat, reason = self.seat._replace(formation_id=table.formation_id), f"entry {index} names the voters"
        record = table.voters.get(self.own.node_id)
        if record is not None and self._is_for_this_start(record):
            if seat.standing in (Standing.FRESH, Standing.LEARNER):
                seat, reason = seat._replace(standing=Standing.MEMBER, since_index=index), f"entry {index} admitted it"
        elif record is not None and not record.is_voter and seat.standing == Standing.MEMBER:
            if index > seat.since_index:
                # The leader admits learners only, and this one need not have seen the entry that removed it.
                told = f"entry {index} finds it removed and added again"
                seat, reason = seat._replace(standing=Standing.LEARNER, since_start=self.own.incarnation + 1), told
        elif record is None and before is not None and before.data_id == self.own.data_id:
            if index > seat.since_index:
                seat, reason = seat._replace(standing=Standing.REMOVED, since_index=index), f"entry {index} removed it"
        if seat.standing == Standing.FRESH:
            seat = seat._replace(standing=Standing.LEARNER, since_start=self.own.incarnation)
        if seat != self.seat:
            self._sit(seat, reason)

    def _is_for_this_start(self, record: VoterRecord) -> bool:
        # The incarnation tells the admission of this very start from one that an old log replays.
        own = self.own
        return record.is_voter and (record.data_id, record.incarnation) == (own.data_id, own.incarnation)

    def note_applied(self, index: int) -> None:
        """Entry ``index`` was applied, and the table is as before."""
        self.index = index

    # Forming

    def form_if_due(self, linked: Callable[[str], bool]) -> bool:
        """Form a cluster when it is time to; True when this directory has its seat from now on."""
        if self.seat.standing != Standing.FRESH or self.own.node_id not in self._configured or self.is_formed:
            return False
        fresh = [
            peer_id
            for peer_id in self._configured
            if peer_id == self.own.node_id
            or (linked(peer_id) and (said := self._introduced.get(peer_id)) is not None and not said.has_met_log)
        ]
        now_s = self._clock.monotonic_s()
        if len(fresh) < quorum_size(self._configured):
            self._majority_since_s = None
            return False
        if self._majority_since_s is None:
            self._majority_since_s = now_s
        if len(fresh) < len(self._configured) and now_s < self._majority_since_s + self._formation_wait_s:
            return False
        self._sit(Seat(Standing.MEMBER), f"formed a cluster of {', '.join(sorted(self._configured))}")
        return True

    def forms_at_s(self) -> float | None:
        """When a majority has waited long enough for the others."""
        if self.seat.standing != Standing.FRESH or self._majority_since_s is None:
            return None
        return self._majority_since_s + self._formation_wait_s

    def founders(self, linked: Callable[[str], bool]) -> tuple[VoterRecord, ...]:
        """The configured voters with what is known of each."""
        return tuple(self._founder(peer_id, address, linked) for peer_id, address in sorted(self._configured.items()))

    def _founder(self, peer_id: str, address: str, linked: Callable[[str], bool]) -> VoterRecord:
        said: Introduce | Self | None = self.own if peer_id == self.own.node_id else self._introduced.get(peer_id)
        if said is None or (said is not self.own and not (self.counts(peer_id) and linked(peer_id))):
            return VoterRecord(peer_id, address, is_voter=True)
        parts = (said.address, said.data_id, said.incarnation, True, said.command_version)
        return VoterRecord(peer_id, *parts)

    def _sit(self, seat: Seat, reason: str) -> None:
        self._keep(seat)
        logger.info(
            "the directory's standing action=seat node=%s standing=%s since=%d: %s",
            self.own.node_id, seat.standing.name.lower(), seat.since_index, reason,
        )  # fmt: skip
        self.seat = seat
