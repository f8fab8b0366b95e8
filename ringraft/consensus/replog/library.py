"""PySyncObj with its seams filled: what it takes from its module is given by us.

The library reads its clock, its codec and its journal's maker from module attributes, sends through
a transport and polls sockets. Here they are the clock of the node being driven, msgpack, the
journal that is handed in, an outbox of typed messages, and nothing to poll. Importing this module
fills the seams for the whole process: no instance of the library in it can pickle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

from pysyncobj import serializer as _library_serializer
from pysyncobj import syncobj as library
from pysyncobj.config import SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from ringraft.consensus.base import Role
from ringraft.consensus.replog.codec import Message, PlainValues, RequestVote, Vote
from ringraft.consensus.replog.recovery import LogEntry
from ringraft.consensus.replog.snapshot import Base

STUDIED_SOURCE = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"
"""SHA-256 of the ``pysyncobj/syncobj.py`` (0.3.17) whose private methods are replaced in ``syncobj.py``."""


class LogStore(Protocol):
    """The journal: consecutive entries, and the term with its vote."""

    @property
    def log_bytes(self) -> int: ...
    @property
    def written(self) -> int: ...
    @property
    def synced(self) -> int: ...
    @property
    def synced_index(self) -> int: ...
    @property
    def is_vote_kept(self) -> bool: ...
    def __len__(self) -> int: ...
    def __getitem__(self, item: Any) -> Any: ...
    def add(self, command: bytes, idx: int, term: int) -> None: ...
    def deleteEntriesFrom(self, entryFrom: int) -> None: ...
    def install(self, base: Base) -> bool: ...
    def compact_to(self, index: int) -> list[tuple[bytes, int, int]]: ...
    def setRaftCommitIndex(self, raftCommitIndex: int) -> None: ...
    def getRaftCommitIndex(self) -> int: ...
    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None: ...
    def getCurrentTerm(self) -> int: ...
    def getVotedForNodeId(self) -> str | None: ...
    def onOneSecondTimer(self) -> None: ...
    def keep_commit_index(self) -> None: ...
    def sync(self) -> int: ...
    def close(self) -> None: ...


class LogHost(Protocol):
    """What the log needs from whoever drives it."""

    def send(self, peer_id: str, frame: bytes) -> None:
        """Hand an encoded message to the link, if there is one."""
        ...

    def apply(self, index: int, term: int, command: bytes) -> None:
        """Apply a committed command; called once per index, in order."""
        ...

    def send_snapshot(self, peer_id: str) -> bool:
        """Begin to send a snapshot; False if there is none to send."""
        ...


class Electorate(Protocol):
    """Who votes, as the log asks (``roll.py``)."""

    def voters(self) -> list[str]:
        """Every voter, this node too if it is one: a majority of these decides."""
        ...

    def addresses(self) -> Mapping[str, str]:
        """Everybody else who keeps the log, learners too."""
        ...

    def counts(self, peer_id: str) -> bool:
        """Whether a vote or an acknowledgement of this peer counts."""
        ...

    def may_vote(self) -> bool:
        """Whether this directory's own vote and copy count."""
        ...

    def may_stand(self) -> bool:
        """Whether this node may stand for election."""
        ...


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. The election time-out is drawn anew from its range each time."""

    heartbeat_s: float
    election_min_s: float
    election_max_s: float


class Ambient:
    """The clock that the library reads: that of the node being driven."""

    monotonic_s: Callable[[], float] = staticmethod(lambda: 0.0)


library.monotonicTime = lambda: Ambient.monotonic_s()
library.pickle = PlainValues
_library_serializer.pickle = PlainValues
library.createJournal = lambda journal: journal


class Peer(Node):  # type: ignore[misc]
    """A node of the library, which keeps them in sets: in the same order in every process."""

    def __hash__(self) -> int:
        return crc32(self.id.encode())


class Outbox(Transport):  # type: ignore[misc]
    """What the library sends, as messages of ours. It has no address, no socket, no utility commands."""

    def __init__(self, send: Callable[[str, Message], None]) -> None:
        super().__init__(None, None, ())
        self._send = send

    def send(self, node: Node, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "request_vote":
                request = RequestVote(message["term"], message["last_log_index"], message["last_log_term"])
                self._send(node.id, request)
            case "response_vote":
                self._send(node.id, Vote(message["term"]))
            case other:
                raise AssertionError(f"the library's {other} message is not used")


class NoPoller:
    """The library polls sockets at the end of a tick; there are none."""

    def poll(self, _timeout: float) -> None:
        return None


class BareSyncObj(library.SyncObj):  # type: ignore[misc]
    """The library's roles, terms and elections, without its queue, its compaction and its dump file."""

    def __init__(self, *, self_node: Node, others: Iterable[Node], timing: Timing, journal: LogStore) -> None:
        conf = SyncObjConf(
            autoTick=False,
            # Only steers parts that are replaced; True keeps the library from opening a pipe.
            appendEntriesUseBatch=True,
            appendEntriesPeriod=timing.heartbeat_s,
            raftMinTimeout=timing.election_min_s,
            raftMaxTimeout=timing.election_max_s,
            # A cut-off leader keeps saying "I lead" for this long.
            leaderFallbackTimeout=timing.election_max_s,
            connectionTimeout=max(3.5, timing.election_max_s),
            commandsWaitLeader=False,
            journalFile=journal,
        )
        self._journal = journal
        super().__init__(self_node, list(others), conf, nodeClass=Peer, transport=Outbox(self.promise))
        self._poller = NoPoller()

    # The library's state under names of its own

    def role(self) -> Role:
        return (Role.FOLLOWER, Role.CANDIDATE, Role.LEADER)[self._SyncObj__raftState]

    def is_leader(self) -> bool:
        return bool(self._SyncObj__raftState == library._RAFT_STATE.LEADER)

    def term(self) -> int:
        term: int = self._SyncObj__raftCurrentTerm
        return term

    def leader_id(self) -> str | None:
        leader = self._SyncObj__raftLeader
        return None if leader is None else str(leader.id)

    def commit_index(self) -> int:
        index: int = self._SyncObj__raftCommitIndex
        return index

    def applied_index(self) -> int:
        index: int = self._SyncObj__raftLastApplied
        return index

    def is_behind(self) -> bool:
        """Something committed is not applied yet."""
        return bool(self._SyncObj__raftCommitIndex > self._SyncObj__raftLastApplied)

    def first_index(self) -> int:
        """The oldest entry held; it is only ever compared with, never sent."""
        index: int = self._journal[0][1]
        return index

    def entries(self, first: int, count: int) -> list[LogEntry]:
        """Up to ``count`` entries as (command, index, term), from ``first`` on or the oldest held after it."""
        start = max(0, first - self.first_index())
        return list(self._journal[start : start + count])

    def log_bytes(self) -> int:
        """Bytes of the log on disk."""
        return self._journal.log_bytes

    def is_vote_kept(self) -> bool:
        """This node's term, and its vote in it, survive a power cut."""
        return self._journal.is_vote_kept

    def durable_index(self) -> int:
        """This node's own log survives a power cut up to here."""
        return self._journal.synced_index

    def last_index(self) -> int:
        index: int = self._journal[-1][1]
        return index

    def close(self) -> None:
        """Let go of the journal."""
        self._journal.close()

    def last_entry(self) -> tuple[int, int]:
        """(term, index) of the newest entry held: whose log is newer is whose pair is larger."""
        _, index, term = self._journal[-1]
        return (term, index)

    def stand_now(self) -> None:
        """Let the library's election begin with the next tick."""
        # It compares strictly, so "at once" has to lie in the past.
        self._SyncObj__raftElectionDeadline = 0.0

    def step_down(self, term: int) -> None:
        """Follow nobody in ``term``, which is newer than the present one."""
        assert term > self.term(), f"term {term} is not newer than {self.term()}"
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(library._RAFT_STATE.FOLLOWER)
        self._SyncObj__raftLeader = None

    def is_linked(self, peer_id: str) -> bool:
        node = self._nodes.get(peer_id)
        return node is not None and node in self._SyncObj__connectedNodes

    def is_linked_at_all(self) -> bool:
        """Whether the library's election can begin: it needs a link, unless there is nobody else."""
        return bool(self._SyncObj__connectedToAnyone())

    def term_begun(self) -> bool:
        """This node leads and has applied everything that earlier leaders left."""
        return self.is_leader() and self.applied_index() >= self._SyncObj__noopIDx

    def base_at_applied(self) -> Base:
        """Where a snapshot of the present state belongs."""
        position = self.applied_index() - self.first_index()
        command, index, term = self._journal[position]
        return Base(index, term, self._journal[position - 1][2], command)

    # What the library is told

    def hear_request(self, node: Node, term: int, last_index: int, last_term: int) -> None:
        """``node`` asks for a vote."""
        said = {"type": "request_vote", "term": term, "last_log_index": last_index, "last_log_term": last_term}
        self._SyncObj__onMessageReceived(node, said)

    def hear_vote(self, node: Node, term: int) -> None:
        """``node`` votes for this node: the library counts it, whoever it is and how often it comes."""
        self._SyncObj__onMessageReceived(node, {"type": "response_vote", "term": term})

    def hear_heartbeat(self, node: Node, term: int) -> None:
        """``node`` leads ``term``."""
        self._SyncObj__onMessageReceived(node, {"type": "append_entries", "term": term, "commit_index": 0})

    def hear_timeout_now(self, node: Node, term: int) -> None:
        """``node``, the leader of ``term``, asks this node to stand at once."""
        self._SyncObj__onMessageReceived(node, {"type": "timeout_now", "term": term})

    def promise(self, peer_id: str, message: Message) -> None:
        """Send what promises that something is kept, once it is: whoever has the journal knows when (``RaftLog``)."""
        raise NotImplementedError

    def _checkCommandsToApply(self) -> None:
        """Commands come through ``append``; the library's queue stays empty."""

    def _SyncObj__tryLogCompaction(self) -> None:
        """Snapshots are made and installed by ``install.py``."""

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:
        raise AssertionError("the library's dump file is not used")

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:
        raise AssertionError("entries are applied by _SyncObj__applyLogEntries")


def installed_source() -> str:
    """SHA-256 of the installed library's source, to be compared with ``STUDIED_SOURCE``."""
    return hashlib.sha256(Path(library.__file__).read_bytes()).hexdigest()
