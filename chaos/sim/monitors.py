"""What is checked while a world runs: the promises of the log and of the queue, judged from outside.

The monitors see what is applied, what is said and what becomes durable. They keep their own books in
plain dictionaries and never ask the code under test whether it did right.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos.checkers.history import Violation
from chaos.sim.disk import Inode, SimDisk
from ringraft.consensus.replog.codec import Message, RequestVote, Vote
from ringraft.consensus.replog.vote import VOTE_NAME, decode_vote
from ringraft.state import invariants
from ringraft.state.commands import Add, AddBatch, Claim, Configure, Renew
from ringraft.state.machine import StateMachine
from ringraft.state.model import Applied, Done, Entry, Event, Limits

DIGEST_EVERY = 16
"""Digests are compared at every index that this divides."""
CHECK_STATE_EVERY = 400
"""The state's own invariants are counted again after one entry in so many."""


class Broken(Exception):
    """A promise was broken; the world stops here."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(f"{violation.rule}: {violation.told}")
        self.violation = violation


@dataclass(slots=True)
class Track:
    """One item, as its events tell it."""

    token: int = 0
    lease_ms: int = 0
    until_ms: int | None = None
    """The log time at which its lease ends; None while it has none."""
    is_completed: bool = False


class Ledger:
    """The queue's promises, from the entries in their order."""

    def __init__(self, break_promise: Callable[[str, str], None]) -> None:
        self._break = break_promise
        self._tracks: dict[str, Track] = {}
        self._keys: dict[tuple[str, str], dict[str, Track]] = {}
        """The items that each key made, in order: themselves, not others of their names."""
        self._limits = Limits()
        self.completed = 0
        self.added = 0
        self.elected = 0

    def account(self, entry: Entry, applied: Applied, log_ms: int) -> None:
        """One entry was applied for the first time, anywhere."""
        lease_ms: dict[str, int] = {}
        for command, outcome in zip(entry.commands, applied.outcomes, strict=True):
            if not isinstance(outcome, Done):
                continue
            op = command.op
            if isinstance(op, Claim):
                wanted_ms = op.lease_ms if op.lease_ms is not None else self._limits.lease_default_ms
                lease_ms.update((work_id.lower(), wanted_ms) for work_id in outcome.value["claimed"])
            elif isinstance(op, Renew):
                self._renewed(outcome, log_ms)
            elif isinstance(op, Configure):
                self._limits = op.limits
        for event in applied.events:
            self._happened(event, lease_ms, log_ms)
        for command, outcome in zip(entry.commands, applied.outcomes, strict=True):
            if command.key is not None and isinstance(outcome, Done) and isinstance(command.op, Add | AddBatch):
                answers = outcome.value["items"] if isinstance(command.op, AddBatch) else [outcome.value]
                made = tuple(one["work_id"].lower() for one in answers if one["status"] == "added")
                # What was there already leaves no key behind.
                if made:
                    self._keyed((command.key.principal, command.key.key), made)

    def _keyed(self, key: tuple[str, str], work_ids: tuple[str, ...]) -> None:
        """A key lives as long as one item that it made is held; after that its repeat is a new add."""
        known = self._keys.get(key, {})
        if any(self._tracks.get(work_id) is track for work_id, track in known.items()):
            if tuple(known) != work_ids:
                self._break("key_twice", f"the key {key[1]} of {key[0]} made {tuple(known)} and later {work_ids}")
            return
        gone = [work_id for work_id in work_ids if work_id not in self._tracks]
        if gone:
            self._break("key_outlived", f"the key {key[1]} of {key[0]} still answers {gone[0]}, and nothing is held")
        self._keys[key] = {work_id: self._tracks[work_id] for work_id in work_ids}

    def _renewed(self, outcome: Done, log_ms: int) -> None:
        for lease in outcome.value["leases"]:
            track = self._tracks.get(lease["work_id"].lower())
            if lease["ok"] and not lease["cancel"]:
                if track is None or track.until_ms is None:
                    self._break("renewed_without_lease", f"{lease['work_id']} was renewed, and nobody holds it")
                    return
                track.until_ms = log_ms + track.lease_ms

    def _happened(self, event: Event, lease_ms: dict[str, int], log_ms: int) -> None:
        kind = event.type
        if kind == "LEADER_ELECTED":
            self.elected += 1
            return
        name = event.data.get("work_id")
        if name is None:
            return
        work_id = str(name).lower()
        if kind == "WORK_ADDED":
            self.added += 1
            if work_id in self._tracks:
                self._break("added_twice", f"{name} was added in entry {event.index} while it was there")
            self._tracks[work_id] = Track()
            return
        track = self._tracks.get(work_id)
        if track is None:
            self._break("ghost", f"{kind} for {name} in entry {event.index}, which is not there")
            return
        if kind == "WORK_CLAIMED":
            self._claimed(track, event, lease_ms.get(work_id, self._limits.lease_default_ms), log_ms)
        elif kind == "WORK_COMPLETED":
            self._completed(track, event)
        elif kind == "WORK_EXPIRED":
            if track.until_ms is not None and log_ms < track.until_ms:
                self._break("expired_early", f"{name}: its lease ended at {log_ms} and was granted to {track.until_ms}")
            track.until_ms = None
        elif kind in ("WORK_RELEASED", "WORK_RETRY", "WORK_FAILED", "WORK_TIMEOUT", "WORK_CANCELLED"):
            track.until_ms = None
        elif kind == "WORK_RETRIED":
            if track.is_completed:
                self._break("completed_undone", f"{name} was completed and then taken back in entry {event.index}")
        elif kind == "WORK_RETIRED":
            del self._tracks[work_id]

    def _claimed(self, track: Track, event: Event, lease_ms: int, log_ms: int) -> None:
        name, token = event.data["work_id"], event.data["token"]
        if token <= track.token:
            self._break("token_fell", f"{name} was granted with token {token} after {track.token}")
        if track.until_ms is not None and track.until_ms > log_ms:
            self._break(
                "lease_overlap",
                f"{name} was granted with token {token} at log time {log_ms}, and token {track.token} holds it "
                f"until {track.until_ms}",
            )
        if track.is_completed:
            self._break("claimed_after_end", f"{name} was granted with token {token} after it was completed")
        track.token, track.lease_ms, track.until_ms = token, lease_ms, log_ms + lease_ms

    def _completed(self, track: Track, event: Event) -> None:
        name, token = event.data["work_id"], event.data["token"]
        self.completed += 1
        if track.is_completed:
            self._break("completed_twice", f"{name} was completed again in entry {event.index} with token {token}")
        if token != track.token:
            self._break("stale_completion", f"{name} was completed with token {token}; {track.token} was granted since")
        track.is_completed, track.until_ms = True, None


class Monitors:
    """All that is watched in one world."""

    def __init__(self, rng: random.Random, told: Callable[[str, str], None]) -> None:
        self._told = told
        self._rng = rng
        self.violation: Violation | None = None
        self.ledger = Ledger(self.broken)
        self.frontier = 1
        """The newest entry applied anywhere; the library begins with one."""
        self.accounted = 0
        """The newest entry in the ledger."""
        self.terms = 0
        """Terms that somebody led."""
        self._entries: dict[int, tuple[int, bytes]] = {}
        self._digests: dict[int, str] = {}
        self._leaders: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._kept_votes: dict[str, tuple[int, str | None]] = {}

    def broken(self, rule: str, told: str) -> None:
        """A promise is broken: remember the first one and stop."""
        violation = Violation(rule, told)
        if self.violation is None:
            self.violation = violation
            self._told("violation", f"{rule}: {told}")
        raise Broken(violation)

    def found(self, violation: Violation) -> None:
        """The history breaks a rule, with the operations that show it."""
        if self.violation is None:
            self.violation = violation
            self._told("violation", str(violation))
        raise Broken(violation)

    # The log

    def leads(self, node_id: str, leader_id: str | None, term: int) -> None:
        """A node says who leads ``term``."""
        if leader_id is None:
            return
        known = self._leaders.get(term)
        if known is None:
            self._leaders[term] = leader_id
            self.terms += 1
            self._told("leader", f"{leader_id} leads term {term}")
        elif known != leader_id:
            self.broken("two_leaders", f"{node_id} says that {leader_id} leads term {term}; {known} does")

    def said(self, source: str, target: str, message: Message) -> None:
        """A message has arrived."""
        if type(message) is Vote:
            self._vote(source, message.term, target)
        elif type(message) is RequestVote:
            self._vote(source, message.term, source)

    def _vote(self, voter: str, term: int, candidate: str) -> None:
        known = self._votes.setdefault((voter, term), candidate)
        if known != candidate:
            self.broken("voted_twice", f"{voter} voted in term {term} for {known} and for {candidate}")

    def kept(self, node_id: str, disk: SimDisk, directory: Path) -> None:
        """What a node has durably voted."""
        inode = disk.names.get(directory / VOTE_NAME)
        if inode is None:
            return
        vote = decode_vote(bytes(inode.data))
        term, candidate = self._kept_votes.get(node_id, (0, None))
        if vote.term < term:
            self.broken("term_fell", f"{node_id} keeps term {vote.term} after it kept {term}")
        if vote.term == term and candidate is not None and vote.voted_for != candidate:
            self.broken("vote_changed", f"{node_id} keeps a vote for {vote.voted_for} in term {term} after {candidate}")
        self._kept_votes[node_id] = (vote.term, vote.voted_for)

    def forget(self, node_id: str) -> None:
        """This node's disk is wiped; it must never vote as who it was."""
        self._kept_votes.pop(node_id, None)

    def committed(self, node_id: str, index: int, term: int, command: bytes) -> None:
        """A node is about to apply an entry."""
        known = self._entries.get(index)
        if known is None:
            if index > self.frontier + 1:
                self.broken("gap", f"{node_id} applies entry {index}; the newest applied anywhere is {self.frontier}")
            self._entries[index] = (term, command)
        elif known != (term, command):
            self.broken(
                "other_entry",
                f"{node_id} applies at index {index} an entry of term {term} and {len(command)} bytes; one of term "
                f"{known[0]} and {len(known[1])} bytes was applied there before",
            )
        if index > self.frontier:
            self.frontier = index

    def applied(self, node_id: str, index: int, entry: Entry, applied: Applied, machine: StateMachine) -> None:
        """A node has applied an entry."""
        if index > self.accounted:
            self.accounted = index
            self.ledger.account(entry, applied, machine.log_ms)
        # States that differ once differ for good, so a digest now and then tells as much.
        if index % DIGEST_EVERY == 0:
            digest = machine.digest()
            if self._digests.setdefault(index, digest) != digest:
                self.broken("other_state", f"{node_id} has another state than others after entry {index}")
        if self._rng.random() * CHECK_STATE_EVERY < 1:
            self.check_state(node_id, machine)

    def restored(self, node_id: str, machine: StateMachine) -> None:
        """A node stands at a snapshot."""
        digest = machine.digest()
        if self._digests.setdefault(machine.index, digest) != digest:
            self.broken("other_state", f"{node_id} restored another state than others had after entry {machine.index}")

    def check_state(self, node_id: str, machine: StateMachine) -> None:
        try:
            invariants.check(machine)
        except AssertionError as fault:
            self.broken("invariant", f"{node_id} after entry {machine.index}: {fault}")

    # Processes

    def failed(self, node_id: str, error: BaseException, *, is_explained: bool) -> None:
        """A node says that it can no longer take part."""
        if not is_explained:
            self.broken("unexplained_failure", f"{node_id} stopped without a fault that explains it: {error!r}")

    def refused(self, node_id: str, error: BaseException, *, is_explained: bool) -> None:
        """A node does not start."""
        if not is_explained:
            self.broken("unexplained_refusal", f"{node_id} does not start, and its disk was not harmed: {error!r}")


class VoteWatch:
    """Tells the monitors when a vote has become durable."""

    def __init__(self, monitors: Monitors, disks: dict[str, SimDisk]) -> None:
        self._monitors = monitors
        self._disks = disks
        self._is_new: set[str] = set()

    def wrote(self, node_id: str, operation: str, path: Path, inode: Inode) -> None:
        if operation == "rename":
            if path.name == VOTE_NAME:
                self._is_new.add(node_id)
        elif operation == "sync_directory" and node_id in self._is_new:
            self._is_new.discard(node_id)
            self._monitors.kept(node_id, self._disks[node_id], path)
