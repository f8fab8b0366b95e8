"""The interface every consensus mode has, and the three ways a proposal can fail.

ProposalError
├── NotLeader      not applied: ask ``leader_id`` instead
├── Unavailable    not applied: nobody can take it now, try again later
└── Indeterminate  unknown: repeat with the same idempotency key
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ringraft.state.model import Applied, Command, Entry, Epoch, Outcome
from ringraft.state.records import VoterTable


class ProposalError(Exception):
    """A proposal that did not end in an outcome of the state machine."""


class NotLeader(ProposalError):
    """Not applied: another node leads, or nobody does (``leader_id`` is None)."""

    def __init__(self, leader_id: str | None) -> None:
        super().__init__(f"the leader is {leader_id}" if leader_id else "there is no leader")
        self.leader_id = leader_id


class Unavailable(ProposalError):
    """Not applied, and no other node to ask. ``code`` is one of the 503 codes of the REST contract."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Indeterminate(ProposalError):
    """It may have been applied and may still be: only a repeat with the same key can tell."""


class Role(StrEnum):
    """What this node is to the log."""

    LEADER = "leader"
    FOLLOWER = "follower"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True)
class VoterStatus:
    """What this node knows of one voter's log. ``last_contact_s`` is None before the first."""

    node_id: str
    match_index: int
    last_contact_s: float | None
    connected: bool


@dataclass(frozen=True, slots=True)
class Status:
    """A view of the consensus at one instant; never waits for anything."""

    node_id: str
    role: Role
    leader_id: str | None
    epoch: Epoch
    commit_index: int
    applied_index: int
    last_index: int
    snapshot_index: int
    log_bytes: int
    has_quorum: bool
    """The leader hears a majority; or this node hears a leader that says so."""
    leader_contact_s: float | None
    """Seconds since this node last heard the leader; 0 at the leader, None if never."""
    voters: Sequence[VoterStatus]
    learners: Sequence[VoterStatus] = ()
    """Who is sent the log and does not vote yet."""
    standing: str = "member"
    """Of this node's data directory: ``fresh``, ``learner``, ``member`` or ``removed``; only a member votes."""
    leader_last_index: int = 0
    """Where the leader's log ended when it was heard last."""

    @property
    def acting_leader_id(self) -> str | None:
        """Who leads a majority. ``leader_id`` still names whom this node followed last when there is none."""
        return self.leader_id if self.has_quorum else None


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who leads from when on."""

    leader_id: str | None
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Logged:
    """One entry as it stands in this node's log; ``entry`` is None for what the log adds itself."""

    index: int
    term: int
    size_bytes: int
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot on this node's disk; ``took_ms`` is 0 for one that was there already."""

    index: int
    size_bytes: int
    took_ms: int


class Rebuilding(Protocol):
    """A state that is built from an image that ``snapshot`` made, while the present one goes on serving."""

    def take(self, chunk: bytes) -> Iterator[None]:
        """Take the image's next bytes, in steps of about a millisecond."""
        ...

    def end(self) -> None:
        """Check that the image was whole; raises when it was not. Nothing is replaced yet."""
        ...

    def replace(self) -> Iterator[None]:
        """The built state serves from this call on. The steps let go of the old one, a millisecond each."""
        ...


class Replicated(Protocol):
    """What the consensus drives: the state machine with whatever listens to it (``node.replica``)."""

    @property
    def log_ms(self) -> int:
        """The newest log time applied."""
        ...

    @property
    def generation(self) -> int:
        """Of the newest epoch begun: how often the log's history was replaced."""
        ...

    @property
    def voter_table(self) -> VoterTable:
        """Who keeps the log, as of the newest entry applied: another object as soon as it has changed."""
        ...

    def apply(self, index: int, entry: Entry) -> Applied:
        """Total and deterministic. Called once per entry, in order."""
        ...

    def snapshot(self) -> Iterator[bytes]:
        """A consistent image as of now, in slices; apply may go on between slices."""
        ...

    def rebuild(self) -> Rebuilding:
        """Begin to build the state of an image beside the present one."""
        ...


class Consensus(Protocol):
    """A replicated log with a leader. All methods are called on the event loop."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def status(self) -> Status: ...

    def propose(self, command: Command, *, deadline_s: float) -> asyncio.Future[Outcome]:
        """Ends within ``deadline_s`` seconds: an outcome, or NotLeader, Unavailable, Indeterminate."""
        ...

    async def read_barrier(self, *, deadline_s: float) -> int:
        """The index a linearizable read must have applied; applied here when this returns."""
        ...

    async def transfer(self, to: str | None, *, deadline_s: float) -> str:
        """Hand leadership over and return the new leader; on failure it stays here."""
        ...

    def campaign(self, reason: str) -> None:
        """Ask for an election now; does nothing while a live leader is heard."""
        ...

    def watch(self) -> AsyncIterator[Leadership]:
        """Every change of leader or epoch from now on, the present one first."""
        ...
