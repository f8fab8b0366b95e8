"""What a node does for the roll: introduces itself, forms a cluster, and as the leader enters changes.

The leader lets the log know each voter as it introduces itself, and proposes to admit a learner
that has caught up. It has one such proposal under way at a time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from ringraft.clock import Clock
from ringraft.consensus.base import ProposalError
from ringraft.consensus.replog.codec import Introduce, encode
from ringraft.consensus.replog.seat import Standing
from ringraft.consensus.replog.syncobj import RaftLog
from ringraft.consensus.roll import Roll
from ringraft.state.codec import SINCE
from ringraft.state.commands import VOTER_CHANGES, AdmitVoter, AnnounceVoter, FormVoters
from ringraft.state.decide.voter import try_again
from ringraft.state.model import Command, Outcome, Rejected
from ringraft.state.records import VoterRecord

logger = logging.getLogger(__name__)

PROPOSE_S = 5.0
"""How long a proposal of this part may take."""
RETRY_S = 0.2
"""After one that was refused or did not end in an outcome."""
FIRST_STAND_STAGGER_S = 0.04
"""In a cluster that has just been formed each voter in the order of names stands this much later."""
NEAR_ENTRIES = 64
"""A learner that stays this close to the leader's end has caught up, however long its round took."""

Propose = Callable[[Command, float], "asyncio.Future[Outcome]"]


class CatchUp:
    """Whether learners have caught up: a round is the way to where the leader's log ended when it began."""

    def __init__(self, round_s: float) -> None:
        self._round_s = round_s
        self._rounds: dict[str, tuple[int, float]] = {}
        """Peer to (where its round ends, when it began)."""

    def has_caught_up(self, peer_id: str, match_index: int, last_index: int, now_s: float) -> bool:
        """True once the learner has finished a round within an election time-out, or stays near the end."""
        goal, began_s = self._rounds.setdefault(peer_id, (last_index, now_s))
        if match_index < goal:
            return False
        self._rounds[peer_id] = (last_index, now_s)
        return now_s - began_s <= self._round_s or last_index - match_index <= NEAR_ENTRIES

    def forget(self, peer_id: str) -> None:
        """What it had is void, or it is a learner no longer."""
        self._rounds.pop(peer_id, None)


class Enrolment:
    """Keeps the roll and the log of one node in step."""

    def __init__(
        self,
        *,
        roll: Roll,
        log: RaftLog,
        clock: Clock,
        rng: random.Random,
        election_s: float,
        send: Callable[[str, bytes], None],
        propose: Propose,
        has_begun: Callable[[], bool],
        stop_sending: Callable[[str], None],
        on_removed: Callable[[], None],
    ) -> None:
        """``on_removed`` is told once when the cluster has removed this node."""
        self._roll = roll
        self._log = log
        self._clock = clock
        self._rng = rng
        self._send = send
        self._propose = propose
        self._has_begun = has_begun
        self._stop_sending = stop_sending
        self._on_removed = on_removed
        self._is_removed = False
        self._catch_up = CatchUp(election_s)
        self._has_stood = False
        self._under_way: asyncio.Future[Outcome] | None = None
        self._pause_until_s = 0.0
        self._told: tuple[object, ...] = ()
        """What the last introductions were made from."""

    # Introductions

    def introduce(self, peer_id: str, *, asks: bool = False) -> None:
        """Say to a peer who this node is."""
        self._send(peer_id, encode(self._roll.introduction(peer_id, has_log=self._has_log(), asks=asks)))

    def _has_log(self) -> bool:
        # A term begins after a majority has said that it would vote, so a majority has its seats already.
        return self._log.last_index() > 1 or self._log.term() > 0

    def take(self, peer_id: str, said: Introduce) -> None:
        """A peer says who it is."""
        if self._roll.heard(peer_id, said):
            self._catch_up.forget(peer_id)
            self._stop_sending(peer_id)
            self._log.begin_anew_with(peer_id)
        if said.asks:
            self.introduce(peer_id)
        if self._log.is_leader() and not self._roll.may_stand():
            self._log.resign()

    def may_be_heard(self, peer_id: str) -> bool:
        """Whether what a peer sends counts: it has introduced itself and belongs to this cluster."""
        if self._roll.said(peer_id) is None:
            self.introduce(peer_id, asks=True)
            return False
        return not self._roll.is_foreign(peer_id)

    # What time and the log bring

    def drive(self, now_s: float) -> None:
        """Form, tell the others what has changed, and as the leader enter the next change that is due."""
        roll, log = self._roll, self._log
        if roll.form_if_due(log.is_linked):
            log.wait_anew()
        self._tell_changes()
        if roll.seat.standing == Standing.REMOVED and not self._is_removed:
            self._is_removed = True
            logger.warning("this node was removed from the cluster action=removed node=%s", roll.own.node_id)
            self._on_removed()
        if not self._has_stood and roll.may_stand() and log.last_index() <= 1:
            self._stand_first()
        if log.is_leader() and self._under_way is None and now_s >= self._pause_until_s:
            op = self._next_change(now_s)
            if op is not None:
                self._under_way = self._propose(Command(op), PROPOSE_S)
                self._under_way.add_done_callback(self._entered)

    def _tell_changes(self) -> None:
        told = (self._roll.seat, self._roll.table, self._has_log())
        if told != self._told:
            self._told = told
            for peer_id in self._roll.addresses():
                if self._log.is_linked(peer_id):
                    self.introduce(peer_id)

    def _stand_first(self) -> None:
        """Nobody leads a new cluster: its first voter need not wait for a time-out to find that out."""
        voters, own = self._roll.voters(), self._roll.own.node_id
        ready = sum(1 for peer_id in voters if peer_id == own or self._roll.counts(peer_id))
        if ready * 2 > len(voters):
            self._has_stood = True
            self._log.campaign_within(voters.index(own) * FIRST_STAND_STAGGER_S)

    def next_deadline_s(self) -> float | None:
        """When ``drive`` has something to do though nothing arrives."""
        if self._log.is_leader() and self._pause_until_s > self._clock.monotonic_s():
            return self._pause_until_s
        return self._roll.forms_at_s()

    # What the leader enters

    def refusal(self, command: Command) -> Rejected | None:
        """Why the leader does not propose this, or None: not every voter knows its kind, or a change is under way."""
        kind = type(command.op)
        since = SINCE[kind]
        if since > self._roll.command_version():
            behind = ", ".join(self._roll.lagging_voters(since)) or "the cluster"
            told = (
                f"{kind.__name__} came with commands of version {since}, which {behind} has not announced: upgrade it"
            )
            return Rejected("conflict", told)
        if kind in VOTER_CHANGES and (self._log.has_change_under_way() or not self._has_begun()):
            return try_again("the leader has begun only now, or a change of the voters is under way")
        return None

    def _next_change(self, now_s: float) -> FormVoters | AnnounceVoter | AdmitVoter | None:
        roll, log = self._roll, self._log
        if not self._has_begun():
            return None
        if not roll.is_formed:
            return FormVoters(f"{self._rng.getrandbits(64):016x}", roll.founders(log.is_linked))
        for record in sorted(roll.table.voters.values(), key=lambda one: one.node_id):
            said = self._sayings(record)
            if said is None:
                continue
            is_member = roll.may_vote() if record.node_id == roll.own.node_id else said.standing == Standing.MEMBER
            if is_member and record.is_voter:
                if record.data_id in ("", said.data_id) and self._differs(record, said):
                    return AnnounceVoter(
                        record.node_id, said.data_id, said.incarnation, said.command_version, said.address
                    )
            elif not is_member and self._has_caught_up(record.node_id, now_s):
                basis = roll.table.changed_index
                parts = (said.data_id, said.incarnation, said.command_version, said.address)
                return AdmitVoter(record.node_id, *parts, basis)
        return None

    def _sayings(self, record: VoterRecord) -> Introduce | None:
        """How the node introduced itself, or None while it is away."""
        roll = self._roll
        if record.node_id == roll.own.node_id:
            return roll.introduction(record.node_id, has_log=True)
        is_here = self._log.is_linked(record.node_id) and not roll.is_foreign(record.node_id)
        said = roll.said(record.node_id) if is_here else None
        return None if said is None or said.standing == Standing.REMOVED else said

    def _differs(self, record: VoterRecord, said: Introduce) -> bool:
        if said.data_id == record.data_id and said.incarnation < record.incarnation:
            return False
        known = (record.data_id, record.incarnation, record.command_version, record.address)
        return known != (said.data_id, said.incarnation, said.command_version, said.address)

    def _has_caught_up(self, peer_id: str, now_s: float) -> bool:
        progress = self._log.progress.get(peer_id)
        if progress is None:
            return False
        return self._catch_up.has_caught_up(peer_id, progress.match_index, self._log.last_index(), now_s)

    def _entered(self, future: asyncio.Future[Outcome]) -> None:
        self._under_way = None
        error = None if future.cancelled() else future.exception()
        if error is None and not future.cancelled() and not isinstance(future.result(), Rejected):
            return
        self._pause_until_s = self._clock.monotonic_s() + RETRY_S
        if error is not None and not isinstance(error, ProposalError):
            raise error
        told = error if error is not None else "cancelled" if future.cancelled() else future.result()
        logger.info("the roll was not changed action=roll_unchanged node=%s: %s", self._roll.own.node_id, told)
