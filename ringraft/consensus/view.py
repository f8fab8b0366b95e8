"""What a node can say of itself and of the other voters at one instant."""

from __future__ import annotations

from ringraft.clock import Clock
from ringraft.consensus.base import Replicated, Status, VoterStatus
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog.install import Images
from ringraft.consensus.replog.syncobj import RaftLog
from ringraft.consensus.roll import Roll
from ringraft.state.model import Epoch


class View:
    """Reads everything anew when asked; keeps only when each voter was last heard."""

    def __init__(
        self,
        *,
        roll: Roll,
        log: RaftLog,
        images: Images,
        replicated: Replicated,
        config: RaftConfig,
        clock: Clock,
    ) -> None:
        self._roll = roll
        self._log = log
        self._images = images
        self._replicated = replicated
        self._config = config
        self._clock = clock
        self._heard_s: dict[str, float] = {}

    def heard(self, peer_id: str) -> None:
        """Something came from this voter."""
        self._heard_s[peer_id] = self._clock.monotonic_s()

    def status(self) -> Status:
        log, now_s = self._log, self._clock.monotonic_s()
        leads = log.is_leader()
        heard_s = log.last_heard_leader_s
        contact_s = 0.0 if leads else None if heard_s is None else now_s - heard_s
        hears_leader = log.leader_id() is not None and contact_s is not None
        return Status(
            node_id=log.node_id,
            role=log.role(),
            leader_id=log.leader_id(),
            epoch=Epoch(self._replicated.generation, log.term()),
            commit_index=log.commit_index(),
            applied_index=log.applied_index(),
            last_index=log.last_index(),
            snapshot_index=self._images.index,
            log_bytes=log.log_bytes(),
            has_quorum=log.hears_majority()
            if leads
            else hears_leader and (contact_s or 0.0) * 1000 <= self._config.election_max_ms,
            leader_contact_s=contact_s,
            voters=[self._voter_status(voter, now_s) for voter in self._roll.voters()],
            learners=[self._voter_status(learner, now_s) for learner in self._roll.learners()],
            standing=self._roll.seat.standing.name.lower(),
            leader_last_index=max(log.last_index(), log.leader_last_index),
        )

    def _voter_status(self, voter: str, now_s: float) -> VoterStatus:
        if voter == self._log.node_id:
            return VoterStatus(voter, self._log.last_index(), 0.0, True)
        progress = self._log.progress.get(voter) if self._log.is_leader() else None
        heard_s = self._heard_s.get(voter)
        return VoterStatus(
            node_id=voter,
            match_index=progress.match_index if progress is not None else 0,
            last_contact_s=None if heard_s is None else now_s - heard_s,
            connected=self._log.is_linked(voter),
        )
