"""What a voter has beside what every node has: the log, its state, the archive, the duties."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from ringraft.clock import Clock
from ringraft.config import failpoint
from ringraft.consensus.base import ProposalError, Role
from ringraft.consensus.opening import VoterRemoved
from ringraft.consensus.raft import RaftConsensus
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog.files import LOCAL_DISK, Disk, DiskFailed
from ringraft.consensus.replog.recovery import JournalDamaged
from ringraft.consensus.replog.snapshot import SnapshotDamaged
from ringraft.consensus.roll import Self
from ringraft.failpoints import Failpoint, FailpointDisk
from ringraft.membership.heartbeat import HeartbeatMembership
from ringraft.node.archive import Archive, ArchiveDamaged
from ringraft.node.backlog import Backlog
from ringraft.node.duties import Duties
from ringraft.node.elections import Elections
from ringraft.node.events import EventRing
from ringraft.node.identity import StartRefused
from ringraft.node.loops import Loops
from ringraft.node.replica import Replica
from ringraft.node.sealed import seal, unseal
from ringraft.settings.tree import Settings
from ringraft.state.machine import StateMachine
from ringraft.state.model import Applied
from ringraft.state.records import VoterTable

log = logging.getLogger(__name__)

ARCHIVE_FILE = "state.db"

SWEEP_S = 1.0
"""How often parked claims are looked at for what no event tells."""

HANDOVER_S = 2.0
"""How long a stopping leader waits for another to lead."""

DRAIN_S = 2.0
"""How long a stopping voter archives; the rest follows after the next start."""


def _disk(armed: str | None) -> Disk:
    """This machine's disk, which fails where a test wants it to. Raises StartRefused."""
    if armed is None:
        return LOCAL_DISK
    try:
        return FailpointDisk(LOCAL_DISK, Failpoint.parse(armed))
    except ValueError as fault:
        raise StartRefused(f"RINGRAFT_FAILPOINT: {fault}") from fault


class Voter:
    """The log-keeping part of a node."""

    def __init__(
        self,
        *,
        settings: Settings,
        own: Self,
        founders: Mapping[str, str],
        contacts: Mapping[str, str],
        cluster_id: str,
        data_dir: Path,
        clock: Clock,
        loops: Loops,
        on_failure: Callable[[BaseException], None],
        on_removed: Callable[[], None],
    ) -> None:
        """``founders`` are the configured voters; none at a node that joins a cluster, whose
        voters are its ``contacts``."""
        self._founders = dict(founders)
        self._contacts = dict(contacts)
        self._table: VoterTable | None = None
        self._membership: HeartbeatMembership | None = None
        self._node_id = settings.node.node_id
        self._loops = loops
        self._clock = clock
        self._limits = settings.limits()
        self.archive = Archive(data_dir / ARCHIVE_FILE, unseal=unseal)
        self.backlog = Backlog(
            self.archive,
            state=lambda: self.replica.machine,
            find=lambda work_id: self.replica.machine.tables.item(work_id),
            seal=lambda item: seal(item, self.replica.machine.pack(item)),
        )
        self.replica = Replica(
            machine=StateMachine(),
            clock=clock,
            archive=self.backlog,
            events=EventRing(settings.events.ring_size),
            waiters_max=settings.http.waiters_max,
        )
        raft = settings.raft
        self.consensus = RaftConsensus(
            own=own,
            voters=founders,
            contacts=contacts,
            data_dir=data_dir,
            replicated=self.replica,
            config=RaftConfig(
                heartbeat_ms=raft.heartbeat_ms,
                election_min_ms=raft.election_min_ms,
                election_max_ms=raft.election_max_ms,
                snapshot_entries=raft.snapshot_entries,
                entry_bytes_max=raft.entry_bytes_max,
                entry_commands_max=raft.entry_commands_max,
                segment_bytes=raft.segment_bytes,
                formation_wait_ms=raft.formation_wait_ms,
            ),
            secret=settings.auth.secret,
            cluster_id=cluster_id,
            clock=clock,
            # Only to spread elections: nothing in it needs to be repeatable or secret.
            rng=random.Random(),
            on_failure=on_failure,
            on_removed=on_removed,
            disk=_disk(failpoint()),
        )
        self.replica.attach(self.consensus)
        self.elections = Elections(clock)
        self.replica.listen(self.elections.applied)
        self.replica.listen(self._follow_voters)

    def addresses(self) -> Mapping[str, str]:
        """Who keeps the log, by id: as the log says, or as configured before it says anything."""
        table = self.replica.voter_table.voters
        return {record.node_id: record.address for record in table.values()} or self._founders or self._contacts

    def _follow_voters(self, _applied: Applied | None = None) -> None:
        """Let heartbeats go to those who keep the log now; say once how they differ from the configuration."""
        table = self.replica.voter_table
        if table is self._table or not table.voters or self._membership is None:
            return
        if self._table is None:
            self._compare_with_configuration(set(table.voters))
        self._table = table
        self._membership.follow(self.addresses())

    def _compare_with_configuration(self, known: set[str]) -> None:
        configured = set(self._founders)
        if configured and known != configured:
            log.warning(
                "the log names other voters than the configuration, the log's count action=voters_differ "
                "only_in_log=%s only_configured=%s",
                ",".join(sorted(known - configured)) or "-", ",".join(sorted(configured - known)) or "-",
            )  # fmt: skip

    @property
    def items_held(self) -> int:
        """How many items the state holds."""
        return len(self.replica.machine.tables.items)

    async def open(self) -> None:
        """Open the archive and replay the log. Raises StartRefused."""
        try:
            await self.archive.open()
        except ArchiveDamaged as fault:
            raise StartRefused(str(fault)) from fault
        try:
            await self._replay()
        except BaseException:
            await self.consensus.stop()
            await self.archive.close()
            raise

    def begin(self, membership: HeartbeatMembership) -> None:
        """Take up what runs in the background."""
        self._membership = membership
        self._follow_voters()
        duties = Duties(
            node_id=self._node_id,
            replica=self.replica,
            consensus=self.consensus,
            membership=membership,
            limits=self._limits,
            clock=self._clock,
        )
        self._loops.standing("duties", duties.run, vital=True)
        self._loops.standing("leadership", self._follow_leadership, vital=True)
        self._loops.standing("archive", self.backlog.run)
        self._loops.every("parked_claims", SWEEP_S, self._sweep)

    async def hand_over(self) -> None:
        """Hand leadership to another voter, when this one has it; bounded by ``HANDOVER_S``."""
        status = self.consensus.status()
        others = [voter for voter in status.voters if voter.node_id != self._node_id]
        if status.role is not Role.LEADER or not any(voter.connected for voter in others):
            return
        try:
            leader_id = await self.consensus.transfer(None, deadline_s=HANDOVER_S)
        except ProposalError as fault:
            log.warning("leadership was not handed over action=hand_over_failed fault=%s", fault)
        else:
            log.info("handed leadership over action=hand_over to=%s", leader_id)
            # While this node still answers, so that parked claims go on at the new leader.
            self.replica.release_parked()

    async def close(self) -> None:
        """Stop the log, archive what can be archived quickly, close everything."""
        self.replica.release_parked()
        await self.consensus.stop()
        if not await self.backlog.drain(DRAIN_S):
            log.info("left items to archive after the next start action=archive_left count=%d", len(self.backlog))
        await self.archive.close()

    async def _replay(self) -> None:
        try:
            await self.consensus.start()
        except (JournalDamaged, SnapshotDamaged, DiskFailed, VoterRemoved) as fault:
            raise StartRefused(str(fault)) from fault

    async def _follow_leadership(self) -> None:
        async for leadership in self.consensus.watch():
            log.info("leader is %s action=leader epoch=%s", leadership.leader_id, tuple(leadership.epoch))
            self.elections.leader_is(leadership.leader_id)
            if leadership.leader_id != self._node_id:
                # Claims are parked at the leader only; here they would wait for what others hand out.
                self.replica.release_parked()

    async def _sweep(self) -> None:
        self.replica.sweep_parked()
