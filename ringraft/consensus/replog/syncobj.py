"""PySyncObj's ``SyncObj``, driven by events, with the parts of it replaced that lose or repeat entries.

What stays the library's: roles, terms, the election time-out, granting votes, committing only by an
entry of the own term, falling back when no majority answers. What is replaced, whole, because filtering around
it would need more rules than writing it:

- *Taking entries* (``_take_entries``). The library cuts its log after ``prevLogIdx`` on every
  append, also where the entries match, and answers without saying what it answers. Here only a
  conflict cuts, never at or below the commit index, and an answer names its question. The library
  still sees each append as a bare heartbeat, so terms, roles and time-outs stay its business.
- *Sending entries* (``_SyncObj__sendAppendEntries``). The library resends from a guess, splits
  entries near a multiple of its batch size wrongly, and sends a commit notice after every commit.
  Here ``followers.py`` decides: an entry is encoded once for all followers, and a commit is told
  by the next message or a short while later.
- *Counting copies* (``_count``): only what survives a power cut, and this node's own like any other.
- *Applying* (``_SyncObj__applyLogEntries``): in bounded slices, through one door that cannot be
  skipped or repeated.
- *Compaction, dump files, the command queue*: not the library's at all (``BareSyncObj``).

Time enters through one clock: the library reads its module's ``monotonicTime``, which is pointed
at the clock of whichever node is being driven. All of it runs in one thread.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

from pysyncobj import syncobj as library
from pysyncobj.node import Node

from ringraft.clock import Clock
from ringraft.consensus.replog.codec import (
    Append,
    Appended,
    Message,
    PreVote,
    PreVoted,
    RequestVote,
    TimeoutNow,
    Vote,
    encode,
)
from ringraft.consensus.replog.election import Election
from ringraft.consensus.replog.filter import (
    Changes,
    LogRecord,
    Mismatch,
    Progress,
    SafetyViolation,
    Value,
    Votes,
    agreed,
    place,
    quorum_size,
)
from ringraft.consensus.replog.followers import Followers
from ringraft.consensus.replog.library import Ambient, BareSyncObj, Electorate, LogHost, LogStore, Peer, Timing
from ringraft.consensus.replog.promises import Promises
from ringraft.consensus.replog.snapshot import Base

logger = logging.getLogger(__name__)

ENTRY = b"\x00"
"""First byte of a command that is an Entry of ours; the library's own commands begin otherwise."""
CHANGE = b"\x10"
"""The same, of an Entry that may change the voters: found in the log without reading the entry."""

COMMIT_NOTICE_MS = 5
"""A commit without a following entry is told after this long: an entry that follows at once carries it."""
APPLY_SLICE_MS = 10
"""How long applying may hold the loop before others get their turn."""
APPLY_CHUNK = 32


class RaftLog(BareSyncObj):
    """One node's replicated log. Not safe to call from more than one thread."""

    def __init__(
        self,
        *,
        node_id: str,
        electorate: Electorate,
        journal: LogStore,
        timing: Timing,
        clock: Clock,
        rng: random.Random,
        host: LogHost,
    ) -> None:
        self.node_id = node_id
        self.leader_last_index = 0
        self._clock = clock
        self._rng = rng
        self._host = host
        self._timing = timing
        self._votes = Votes()
        self._election = Election(log=self, electorate=electorate, host=host, clock=clock, live_s=timing.election_min_s)
        self._commit_notice_s: float | None = None
        self._answered_round = 0
        """Of the leader's rounds, the one last answered."""
        self._electorate = electorate
        self._nodes = {peer_id: Peer(peer_id) for peer_id in electorate.addresses()}
        others = [self._nodes[voter] for voter in electorate.voters() if voter != node_id]
        self._quorum = quorum_size(electorate.voters())
        self._promises = Promises(journal, host)
        self._agreed_index = 0
        """A majority of the voters holds the log up to here durably."""
        self._followers = Followers(leader=self, journal=journal, host=host)
        self._enter()
        super().__init__(self_node=Peer(node_id), others=others, timing=timing, journal=journal)
        # A journal may have lost an unsynced tail that its commit index still counts.
        self._SyncObj__raftCommitIndex: int = min(journal.getRaftCommitIndex(), self.last_index())
        if self.is_alone():
            self._SyncObj__raftElectionDeadline = 0.0
        self._changes = Changes()
        self._note_changes(self._journal[:])

    def _enter(self) -> None:
        Ambient.monotonic_s = self._clock.monotonic_s

    # What is so at this instant

    @property
    def progress(self) -> dict[str, Progress]:
        """What this leader believes of each follower's log."""
        return self._followers.progress

    @property
    def last_heard_leader_s(self) -> float | None:
        """When a leader was last heard, on the monotonic clock."""
        return self._election.heard_s

    def hears_majority(self) -> bool:
        """The leader got an answer from a majority within an election time-out."""
        since_s = self._clock.monotonic_s() - self._timing.election_max_s
        heard_s = self._agreed(self._clock.monotonic_s(), lambda progress: progress.last_contact_s or 0.0)
        return heard_s > since_s

    def _agreed(self, own: Value, of: Callable[[Progress], Value]) -> Value:
        """The largest value that a majority of the voters has reached: this node's ``own``, and each follower's."""
        counts = self._electorate.counts
        values = [of(progress) for peer_id, progress in self.progress.items() if counts(peer_id)]
        if self._electorate.may_stand():
            values.append(own)
        return agreed(values, self._quorum)

    def next_deadline_s(self) -> float:
        """When ``tick`` wants to be called again, on the monotonic clock."""
        if not self.is_leader():
            deadline: float = self._SyncObj__raftElectionDeadline
            return min(deadline, self._election.next_deadline_s())
        heartbeat: float = self._SyncObj__newAppendEntriesTime
        return heartbeat if self._commit_notice_s is None else min(heartbeat, self._commit_notice_s)

    def is_alone(self) -> bool:
        """This node is the only voter."""
        return self._electorate.voters() == [self.node_id]

    def has_change_under_way(self) -> bool:
        """The log holds a change of the voters that is not applied."""
        return self._changes.newest > self.applied_index()

    # Who votes

    def follow(self) -> None:
        """The electorate has changed: who is sent the log, and whose copies make a majority."""
        self._enter()
        peer_ids = self._electorate.addresses().keys()
        for peer_id in sorted(self._nodes.keys() - peer_ids):
            self._followers.part_with(peer_id)
            if not self.is_linked(peer_id):
                del self._nodes[peer_id]
        for peer_id in sorted(peer_ids):
            self._nodes.setdefault(peer_id, Peer(peer_id))
            if self.is_leader() and peer_id not in self.progress:
                self._followers.add(peer_id)
        voters = self._electorate.voters()
        others = {self._nodes[voter] for voter in voters if voter != self.node_id}
        before: set[Node] = self._SyncObj__otherNodes
        for node in others - before:
            self._SyncObj__raftMatchIndex[node] = 0
            self._SyncObj__lastResponseTime[node] = self._clock.monotonic_s()
        self._SyncObj__otherNodes: set[Node] = others
        self._quorum = quorum_size(voters)
        self._journal.keep_commit_index()
        if self.is_leader() and not self._electorate.may_stand():
            self.resign()

    def begin_anew_with(self, peer_id: str) -> None:
        """The peer's copy is another one than before: what it had acknowledged is void."""
        if not self.is_leader() or peer_id not in self.progress:
            return
        self._SyncObj__raftMatchIndex[self._nodes[peer_id]] = 0
        self._followers.add(peer_id)
        self._followers.link_up(peer_id)

    def resign(self) -> None:
        """Lead no longer: this node is no voter any more."""
        self._SyncObj__setState(library._RAFT_STATE.FOLLOWER)
        self._SyncObj__raftLeader = None
        self.wait_anew()

    def _note_changes(self, records: Iterable[LogRecord]) -> None:
        """A leader proposes a change of the voters after it has applied the one before: that one is committed."""
        for command, index, _ in records:
            if command[:1] == CHANGE:
                proven = self._changes.add(index)
                if proven > self.commit_index():
                    self._SyncObj__raftCommitIndex = proven
                    self._journal.setRaftCommitIndex(proven)

    # What drives it

    def tick(self) -> None:
        """Let due time-outs fire, commit what a majority holds, apply some of what is committed."""
        now = self._clock.monotonic_s()
        # The library gets the same instant: it would stand unasked at a deadline that passes between two looks.
        Ambient.monotonic_s = lambda: now
        if not self.is_leader() and self._SyncObj__raftElectionDeadline <= now:
            if self.is_behind():
                self._SyncObj__applyLogEntries()
            if self.is_behind() or not self._electorate.may_stand() or not self.is_vote_kept():
                # Its table of voters may be old, it is no voter, or its disk still has the election before to keep.
                self.wait_anew()
            elif not self._election.may_stand(self.term() + 1) or not self.is_linked_at_all():
                self.wait_anew()
                self._SyncObj__transferInProgress = False  # heartbeats put the next time-out off again
                self._election.ask()
        self._election.answer_refused()
        if self.is_leader():
            self._count()
        self._onTick(0)
        if self._commit_notice_s is not None and now >= self._commit_notice_s:
            self._commit_notice_s = None
            if self.is_leader():
                self._followers.send(heartbeat=False)

    def apply_some(self) -> None:
        """Apply some of what is committed, as ``tick`` does; for the replay at start."""
        self._enter()
        self._SyncObj__applyLogEntries()

    def receive(self, peer_id: str, message: Message) -> None:
        """Take a message of the present connection to ``peer_id``."""
        node = self._nodes.get(peer_id)
        if node is None:
            return
        self._enter()
        match message:
            case Append():
                self._take_entries(node, message)
            case Appended():
                self._take_answer(node, message)
            case RequestVote() | Vote() | PreVote() | TimeoutNow() if not self._electorate.may_vote():
                logger.info("has no vote action=no_vote node=%s asked_by=%s", self.node_id, peer_id)
            case RequestVote(term, last_index, last_term, is_asked_to):
                if is_asked_to or not self.has_live_leader():
                    self.hear_request(node, term, last_index, last_term)
            case Vote(term):
                if term == self.term() and self._electorate.counts(peer_id) and self._votes.is_new(peer_id, term):
                    self.hear_vote(node, term)
            case PreVote():
                self._election.asked(peer_id, message)
            case PreVoted():
                self._election.answered(peer_id, message)
            case TimeoutNow(term):
                if term == self.term() and self.leader_id() == peer_id:
                    self._election.take_over(term + 1)
                self.hear_timeout_now(node, term)
            case _:
                raise AssertionError(f"{type(message).__name__} is not the log's to take")

    def link_up(self, peer_id: str) -> None:
        """Messages to ``peer_id`` may leave from now on; what was on the way before may be lost."""
        self._enter()
        # A guest, whom this node's table does not name, may lead or vote by a newer one.
        self._SyncObj__onNodeConnected(self._nodes.setdefault(peer_id, Peer(peer_id)))
        if self.is_leader() and peer_id in self.progress:
            self._followers.link_up(peer_id)

    def link_down(self, peer_id: str) -> None:
        if peer_id not in self._nodes:
            return
        self._SyncObj__onNodeDisconnected(self._nodes[peer_id])
        if peer_id not in self._electorate.addresses():
            del self._nodes[peer_id]
        elif self.is_leader():
            self._followers.link_down(peer_id)

    def append(self, command: bytes) -> int:
        """Add a command at the leader; returns its index. ``replicate`` sends it."""
        assert self.is_leader(), "only a leader appends"
        index = self.last_index() + 1
        self._journal.add(command, index, self.term())
        self._note_changes([(command, index, self.term())])
        return index

    def begin_round(self) -> int:
        """Ask every follower whether this node still leads; ``confirmed_round`` tells when a majority says so."""
        self._enter()
        self._followers.round += 1
        self._SyncObj__sendAppendEntries()
        return self._followers.round

    def confirmed_round(self) -> int:
        """The newest round that a majority has answered."""
        return self._agreed(self._followers.round, lambda progress: progress.round)

    def replicate(self) -> None:
        """Send every follower what it lacks."""
        self._enter()
        self._followers.send(heartbeat=False)

    def campaign_within(self, delay_s: float) -> None:
        """Stand for election after ``delay_s`` at the latest, unless a leader is heard before."""
        if not self.is_leader() and self._electorate.may_stand():
            # The library compares strictly, so "at once" has to lie in the past.
            due = self._clock.monotonic_s() + delay_s if delay_s > 0 else 0.0
            self._SyncObj__raftElectionDeadline = min(self._SyncObj__raftElectionDeadline, due)

    def wait_anew(self) -> None:
        """Begin the election time-out again: what arrived while this process stood still is heard first."""
        if not self.is_leader():
            self._SyncObj__raftElectionDeadline = self._clock.monotonic_s() + self._SyncObj__generateRaftTimeout()

    def hand_over(self, peer_id: str) -> None:
        """Ask ``peer_id`` to stand for election at once."""
        assert self.is_leader(), "only a leader hands over"
        self._host.send(peer_id, encode(TimeoutNow(self.term())))

    def stand_at(self, base: Base) -> None:
        """The state becomes that of a durable snapshot: keep the entries after it, if they continue it."""
        self._journal.install(base)
        self._changes.cut(self.last_index() + 1)
        self._SyncObj__raftLastApplied = base.index
        self._SyncObj__raftCommitIndex = max(base.index, min(self.commit_index(), self.last_index()))
        self._journal.setRaftCommitIndex(self.commit_index())

    def forget_before(self, index: int) -> list[LogRecord]:
        """Drop entries before ``index`` - 1, which a durable snapshot at or after ``index`` covers; returns them."""
        assert index <= self.applied_index(), f"entry {index} is not applied yet"
        return self._journal.compact_to(index)

    # Elections, before the vote

    def leader_gone(self, peer_id: str) -> None:
        """Nobody listens any more where ``peer_id`` did."""
        if peer_id == self.leader_id():
            self._election.gone(peer_id)

    def has_live_leader(self) -> bool:
        """Whether there is a leader that is not to be deserted; this node itself while a majority answers it."""
        return self.hears_majority() if self.is_leader() else self._election.is_live(self.leader_id())

    # Taking entries, as a follower

    def _take_entries(self, node: Node, message: Append) -> None:
        if message.term < self.term():
            self.promise(node.id, Appended(self.term(), message.prev_index, False, 0, 0))
            return
        self._hear_leader(node, message.term)
        self.leader_last_index = max(message.commit_index, message.prev_index + len(message.entries))
        commit_index = self.commit_index()
        placement = place(self._journal, commit_index, message)
        if isinstance(placement, Mismatch):
            refusal = Appended(
                message.term, message.prev_index, False, placement.log_index, placement.log_term, message.round
            )
            self._host.send(node.id, encode(refusal))
            return
        if placement.cut_from is not None:
            logger.info(
                "dropped entries that were never committed action=log_cut node=%s from=%d to=%d term=%d",
                self.node_id, placement.cut_from, self.last_index(), message.term,
            )  # fmt: skip
            self._journal.deleteEntriesFrom(placement.cut_from - self.first_index())
            self._changes.cut(placement.cut_from)
        for record in placement.entries:
            self._journal.add(*record)
        committed = min(message.commit_index, placement.matched)
        if committed > commit_index:
            self._SyncObj__raftCommitIndex = committed
            self._journal.setRaftCommitIndex(committed)
        self._note_changes(placement.entries)
        if message.entries:
            answer = Appended(message.term, message.prev_index, True, placement.matched, 0, message.round)
            self.promise(node.id, answer)
        if not message.entries or message.round > self._answered_round:
            # Who leads is answered at once, however slow this disk is; what it holds durably is no promise.
            durable = min(placement.matched, self.durable_index())
            answer = Appended(message.term, message.prev_index, True, durable, 0, message.round)
            self._host.send(node.id, encode(answer))
            self._answered_round = message.round

    def hear_leader(self, peer_id: str, term: int) -> bool:
        """Take ``peer_id`` for the leader of ``term``; False if that term is over, or nothing can be answered."""
        self._enter()
        node = self._nodes.get(peer_id)
        if node is None or term < self.term():
            return False
        self._hear_leader(node, term)
        return True

    def _hear_leader(self, node: Node, term: int) -> None:
        if self.is_leader() and term == self.term():
            raise SafetyViolation(f"{node.id} and {self.node_id} both lead term {term}")
        # The library sees a bare heartbeat: it settles term, role, leader and election time-out.
        self.hear_heartbeat(node, term)
        self._election.hear()

    def promise(self, peer_id: str, message: Message) -> None:
        """Send what promises that something is kept, once it is: a vote, a request for one, an answer to entries."""
        if isinstance(message, RequestVote):
            message = message._replace(is_asked_to=self._election.is_asked_to(message.term))
        self._promises.make(peer_id, message)

    def when_kept(self, act: Callable[[], None]) -> None:
        """Call ``act`` once all that is in the log by now survives a power cut; at once if it does."""
        self._promises.when_kept(act)

    def synced(self) -> None:
        """More of the log survives a power cut than before."""
        self._promises.release()

    # Answers, as the leader

    def _take_answer(self, node: Node, answer: Appended) -> None:
        if answer.term > self.term():
            self.step_down(answer.term)
            return
        if answer.term < self.term() or not self.is_leader() or node.id not in self.progress:
            return
        self.contact(node.id)
        self._followers.answered(node.id, answer)

    def installed(self, peer_id: str, index: int) -> None:
        """A follower stands at the snapshot that ends at ``index``."""
        self._followers.installed(peer_id, index)

    def contact(self, peer_id: str) -> None:
        """A follower was heard in this term."""
        now = self._clock.monotonic_s()
        if peer_id in self.progress:
            self.progress[peer_id].last_contact_s = now
            if self._electorate.counts(peer_id):
                self._SyncObj__lastResponseTime[self._nodes[peer_id]] = now

    def _count(self) -> None:
        """Let the library commit what a majority of the voters holds durably, whoever that is, and nothing else.

        The library counts this node's own copy without asking whether it is durable, and commits at
        once when there is no other voter. So it is told that every follower holds what is agreed, and
        is shown no entry beyond (``_SyncObj__getEntries``). A leader with a slow disk so commits what
        its followers hold. That an entry of this term must be among them stays the library's rule.
        """
        self._agreed_index = self._agreed(self.durable_index(), lambda progress: progress.match_index)
        for node in self._SyncObj__otherNodes:
            self._SyncObj__raftMatchIndex[node] = self._agreed_index

    # The library's private methods, replaced

    def _SyncObj__sendAppendEntries(self) -> None:
        """The library's heartbeat."""
        self._SyncObj__newAppendEntriesTime = self._clock.monotonic_s() + self._timing.heartbeat_s
        self._commit_notice_s = None
        self._followers.send(heartbeat=True)

    def _SyncObj__onBecomeLeader(self) -> None:
        self._followers.begin(self._electorate.addresses())
        self._agreed_index = 0
        super()._SyncObj__onBecomeLeader()

    def _SyncObj__getEntries(self, fromIDx: int, count: int | None = None, maxSizeBytes: int | None = None) -> Any:
        """The entry that the library is about to count as committed, if it is agreed."""
        if fromIDx > self._agreed_index:
            return []
        position = fromIDx - self.first_index()
        return self._journal[position : position + 1]

    def _SyncObj__applyLogEntries(self) -> bool:
        """Apply what is committed, for a while; the caller comes back while ``is_behind``."""
        if self.is_leader() and self._nodes and self.commit_index() > self._followers.told_commit():
            notice_s = self._clock.monotonic_s() + COMMIT_NOTICE_MS / 1000
            self._commit_notice_s = min(notice_s, self._commit_notice_s or notice_s)
        until_s = self._clock.monotonic_s() + APPLY_SLICE_MS / 1000
        while self.is_behind():
            position = self.applied_index() + 1 - self.first_index()
            count = min(self.commit_index() - self.applied_index(), APPLY_CHUNK)
            for command, index, term in self._journal[position : position + count]:
                assert index == self._SyncObj__raftLastApplied + 1, f"entry {index} is out of order"
                self._host.apply(index, term, command)
                self._SyncObj__raftLastApplied = index
                if self._clock.monotonic_s() >= until_s:
                    return False
        return False

    def _SyncObj__generateRaftTimeout(self) -> float:
        return self._rng.uniform(self._timing.election_min_s, self._timing.election_max_s)
