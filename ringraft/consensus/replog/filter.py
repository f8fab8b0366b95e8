"""The rules of the log that the library does not keep, as plain values without I/O.

``place`` decides what a follower does with entries (keep what matches, cut only at a conflict,
never at or below the commit index), ``retreat`` how far leader and follower step back after a
mismatch (a whole term at a time), ``Progress`` what a leader believes of one follower (moved only
by answers that fit what was asked), ``Votes`` who voted (a set: a vote that comes twice counts
once).

``Progress`` has three modes. PROBE: the place where the logs agree is not known yet, one question
at a time. STREAM: it is known, entries follow each other without waiting. SNAPSHOT: the follower
needs entries that are gone, so it is sent a snapshot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar

from ringraft.consensus.replog.codec import Append, Appended

Value = TypeVar("Value", int, float)

LogRecord = tuple[bytes, int, int]
"""(command, index, term), as the library keeps its log."""


class SafetyViolation(AssertionError):
    """Something that a majority has agreed on would be undone. The node must stop."""


class Log(Protocol):
    """The part of a journal that is read here: consecutive entries, at least one."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> LogRecord: ...


class Placement(NamedTuple):
    """What to do with the entries of an Append that was accepted."""

    cut_from: int | None
    """Drop own entries from this index on first; None: nothing conflicts."""
    entries: Sequence[LogRecord]
    """Then add these."""
    matched: int
    """Then both logs agree up to here."""


class Mismatch(NamedTuple):
    """The logs differ at or before the Append's ``prev_index``; look next at ``log_index``."""

    log_index: int
    log_term: int


def place(log: Log, commit_index: int, message: Append) -> Placement | Mismatch:
    """How the entries of ``message`` fit into ``log``; raises SafetyViolation instead of undoing a commit."""
    first, last = log[0][1], log[-1][1]
    prev = message.prev_index
    entries = message.entries
    matched = prev + len(entries)
    if prev < first:
        # What lies before the first entry is in a snapshot, so it is committed and the same here.
        entries = entries[first - prev :]
        prev = first
    elif prev > last:
        return _mismatch(log, last, message.prev_term)
    elif log[prev - first][2] != message.prev_term:
        if prev <= commit_index:
            raise SafetyViolation(
                f"entry {prev} is committed with term {log[prev - first][2]}, "
                f"but the leader of term {message.term} has term {message.prev_term} there"
            )
        return _mismatch(log, prev, message.prev_term)
    for offset, (term, _) in enumerate(entries):
        index = prev + 1 + offset
        if index > last:
            return Placement(None, _records(entries, offset, prev), matched)
        if log[index - first][2] != term:
            if index <= commit_index:
                raise SafetyViolation(
                    f"entry {index} is committed with term {log[index - first][2]}, "
                    f"but the leader of term {message.term} sends term {term}"
                )
            return Placement(index, _records(entries, offset, prev), matched)
    return Placement(None, (), matched)


def _records(entries: Sequence[tuple[int, bytes]], offset: int, prev: int) -> list[LogRecord]:
    return [(command, prev + 1 + at, term) for at, (term, command) in enumerate(entries) if at >= offset]


def _mismatch(log: Log, index: int, term: int) -> Mismatch:
    index = retreat(log, index, term)
    return Mismatch(index, log[index - log[0][1]][2])


def retreat(log: Log, index: int, term: int) -> int:
    """The newest index not after ``index`` whose term is at most ``term``; the first one if none is.

    Terms never fall along a log, so everything between there and ``index`` cannot match an entry
    of ``term`` or older: leader and follower skip a whole term in one exchange.
    """
    first = log[0][1]
    end = min(index, log[-1][1]) - first + 1
    return first + max(bisect_right(range(end), term, key=lambda position: log[position][2]) - 1, 0)


def trailing(entries: Sequence[LogRecord], bytes_max: int) -> int:
    """Where a log that ends with these may begin to hold about so many bytes of them."""
    size = 0
    for command, index, _ in reversed(entries):
        size += len(command)
        if size > bytes_max:
            return index
    return entries[0][1]


class Mode(StrEnum):
    PROBE = "probe"
    STREAM = "stream"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Progress:
    """What the leader believes of one follower's log."""

    next_index: int
    match_index: int = 0
    mode: Mode = Mode.PROBE
    is_asked: bool = False
    """PROBE: a question is out and its answer is awaited (or the next heartbeat)."""
    commit_sent: int = 0
    """The commit index last told."""
    last_contact_s: float | None = None
    round: int = 0
    """The newest of the leader's rounds that it has answered."""
    bytes_on_way: int = 0
    """Of the messages with entries that no answer covers yet."""
    _on_way: deque[tuple[int, int]] = field(default_factory=deque)
    """(last index, bytes) of each of them, oldest first."""

    def sent(self, last_index: int, size: int) -> None:
        """A message of ``size`` bytes with entries up to ``last_index`` is on its way."""
        self._on_way.append((last_index, size))
        self.bytes_on_way += size

    def answered(self, answer: Appended, log: Log) -> None:
        """Take an answer of the present term. What does not fit what was asked moves nothing."""
        if answer.matched:
            if answer.log_index > self.match_index:
                self.match_index = answer.log_index
                while self._on_way and self._on_way[0][0] <= self.match_index:
                    self.bytes_on_way -= self._on_way.popleft()[1]
            if self.mode is Mode.PROBE or (self.mode is Mode.SNAPSHOT and answer.log_index >= log[0][1]):
                self.mode = Mode.STREAM
                self._go_on_from(self.match_index + 1)
            self.is_asked = False
            self.next_index = max(self.next_index, self.match_index + 1)
            return
        if self.mode is Mode.SNAPSHOT:
            return
        if self.mode is Mode.PROBE and answer.prev_index != self.next_index - 1:
            return  # answers an earlier question
        if answer.prev_index <= self.match_index:
            if self.mode is not Mode.PROBE:
                return  # from before the logs were known to agree there
            # Asked on a new link whether it still holds what it acknowledged, it says no: its disk is another,
            # or an older one. What is believed of it begins anew, so it does not count for what it lacks.
            self.match_index = 0
        back = answer.log_index
        if back >= log[0][1]:
            back = retreat(log, min(back, answer.prev_index), answer.log_term)
        self.probe_from(max(min(back, answer.prev_index - 1), self.match_index) + 1)

    def link_changed(self) -> None:
        """What was on the way may be lost: ask again from what is known."""
        is_known = self.mode is not Mode.PROBE and self.match_index > 0
        self.probe_from(self.match_index + 1 if is_known else self.next_index)

    def probe_from(self, next_index: int) -> None:
        """Ask whether the logs agree before ``next_index``."""
        self.mode = Mode.PROBE
        self.is_asked = False
        self._go_on_from(next_index)

    def _go_on_from(self, next_index: int) -> None:
        self.next_index = next_index
        self.bytes_on_way = 0
        self._on_way.clear()


@dataclass(slots=True)
class Votes:
    """Who voted for this node in ``term``."""

    term: int = 0
    voters: set[str] = field(default_factory=set)

    def is_new(self, voter: str, term: int) -> bool:
        """Note a vote; False if this voter's vote in this term is already counted."""
        if term != self.term:
            self.term, self.voters = term, set()
        if voter in self.voters:
            return False
        self.voters.add(voter)
        return True


@dataclass(slots=True)
class Changes:
    """Where the log holds changes of the voters: the two newest are all that matters."""

    newest: int = 0
    before: int = 0

    def add(self, index: int) -> int:
        """Note a change; returns the one before it, which is committed, or 0."""
        if index > self.newest:
            self.before, self.newest = self.newest, index
        return self.before

    def cut(self, index: int) -> None:
        """The log was cut from ``index`` on, or begins anew and ends before it."""
        while self.newest >= max(index, 1):
            self.newest, self.before = self.before, 0


def quorum_size(voters: Iterable[str]) -> int:
    """A majority of the configured voters; nothing ever lowers it."""
    return len(set(voters)) // 2 + 1


def agreed(values: Iterable[Value], quorum: int) -> Value:
    """The largest value that ``quorum`` of those who count have reached; whoever is missing has reached nothing."""
    ranked = sorted(values, reverse=True)
    ranked += [0] * (quorum - len(ranked))
    return ranked[quorum - 1]
