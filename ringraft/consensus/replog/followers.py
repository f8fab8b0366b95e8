"""What a leader sends its followers, and what it believes of their logs.

A ``Progress`` per follower decides what it is sent next. An entry is encoded once for all of them,
and what a follower lacks leaves in messages of a bounded size, a bounded number of bytes ahead of
its answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ringraft.consensus.replog.codec import Append, Appended, encode
from ringraft.consensus.replog.filter import LogRecord, Mode, Progress
from ringraft.consensus.replog.library import LogHost, LogStore

APPEND_BYTES_MAX = 1024 * 1024
"""Entries are sent in messages of about this size, and one entry at least."""
APPEND_BYTES_ON_WAY_MAX = 8 * APPEND_BYTES_MAX
"""A follower that is behind is sent about this much before it answers: more would overrun its link."""
ENTRY_OVERHEAD_BYTES = 16
"""At most what an entry's term and lengths add to it in a message."""


class Leader(Protocol):
    """The log of the leader whose followers these are."""

    def term(self) -> int: ...

    def first_index(self) -> int: ...

    def last_index(self) -> int: ...

    def commit_index(self) -> int: ...

    def is_linked(self, peer_id: str) -> bool: ...


class Followers:
    """All followers of one leader; of no meaning while this node does not lead."""

    def __init__(self, *, leader: Leader, journal: LogStore, host: LogHost) -> None:
        self.progress: dict[str, Progress] = {}
        self.round = 0
        """How often this leader has asked in its term whether it still leads."""
        self._leader = leader
        self._journal = journal
        self._host = host
        self._frames: dict[tuple[int, int, int, int, int], bytes] = {}

    def begin(self, peer_ids: Iterable[str]) -> None:
        """This node leads from now on: nothing is known of their logs yet."""
        next_index = self._leader.last_index() + 1
        self.round = 0
        self.progress = {peer_id: Progress(next_index) for peer_id in peer_ids}

    def add(self, peer_id: str) -> None:
        """Another follower, or one whose copy is void: nothing is known of its log."""
        self.progress[peer_id] = Progress(self._leader.last_index() + 1)

    def part_with(self, peer_id: str) -> None:
        """A follower goes; it is told last what is committed, its own going included."""
        progress = self.progress.pop(peer_id, None)
        if progress is None or progress.next_index <= self._leader.first_index():
            return  # nothing that it can be told of follows what it holds
        if progress.mode is Mode.STREAM and self._leader.is_linked(peer_id):
            self._send_entries(peer_id, progress, progress.next_index, limit=0)
            self._frames.clear()

    def link_up(self, peer_id: str) -> None:
        self.progress[peer_id].link_changed()
        self._send_to(peer_id, heartbeat=True)

    def link_down(self, peer_id: str) -> None:
        self.progress[peer_id].link_changed()

    def answered(self, peer_id: str, answer: Appended) -> None:
        """Take an answer of the present term, and send what the follower lacks still."""
        progress = self.progress[peer_id]
        progress.round = max(progress.round, answer.round)
        was_probe = progress.mode is Mode.PROBE
        progress.answered(answer, self._journal)
        if was_probe or progress.mode is not Mode.STREAM or progress.next_index <= self._leader.last_index():
            self._send_to(peer_id, heartbeat=False)

    def installed(self, peer_id: str, index: int) -> None:
        """A follower stands at the snapshot that ends at ``index``."""
        progress = self.progress.get(peer_id)
        if progress is None:
            return  # it was removed while the snapshot was on its way
        progress.match_index = max(progress.match_index, index)
        progress.probe_from(progress.match_index + 1)
        self._send_to(peer_id, heartbeat=False)

    def told_commit(self) -> int:
        """The oldest commit index that a follower in step was last told."""
        return min(
            (p.commit_sent for p in self.progress.values() if p.mode is Mode.STREAM),
            default=self._leader.commit_index(),
        )

    def send(self, *, heartbeat: bool) -> None:
        """Send every follower what it lacks; on a heartbeat something in any case."""
        for peer_id in self.progress:
            self._send_to(peer_id, heartbeat=heartbeat)
        self._frames.clear()

    def _send_to(self, peer_id: str, *, heartbeat: bool) -> None:
        leader, progress = self._leader, self.progress[peer_id]
        if not leader.is_linked(peer_id):
            return
        if progress.mode is not Mode.SNAPSHOT and progress.next_index <= leader.first_index():
            if self._host.send_snapshot(peer_id):
                progress.mode = Mode.SNAPSHOT
        if progress.mode is Mode.SNAPSHOT or progress.next_index <= leader.first_index():
            if heartbeat:
                self._send_entries(peer_id, progress, leader.last_index() + 1, limit=0)
            return
        if progress.mode is Mode.PROBE:
            if heartbeat or not progress.is_asked:
                progress.is_asked = True
                self._send_entries(peer_id, progress, progress.next_index, limit=0)
            return
        sent = False
        while progress.next_index <= leader.last_index() and progress.bytes_on_way < APPEND_BYTES_ON_WAY_MAX:
            progress.next_index += self._send_entries(peer_id, progress, progress.next_index, limit=APPEND_BYTES_MAX)
            sent = True
        if not sent and (heartbeat or progress.commit_sent < min(leader.commit_index(), progress.next_index - 1)):
            self._send_entries(peer_id, progress, progress.next_index, limit=0)

    def _send_entries(self, peer_id: str, progress: Progress, next_index: int, *, limit: int) -> int:
        """Send entries from ``next_index`` on, up to ``limit`` bytes; returns how many."""
        term, commit_index = self._leader.term(), self._leader.commit_index()
        first = self._leader.first_index()
        count = 0
        if limit:
            size, position = 0, next_index - first
            while position + count < len(self._journal):
                size += len(self._journal[position + count][0]) + ENTRY_OVERHEAD_BYTES
                if count and size > limit:
                    break
                count += 1
        # In one term a leader only adds to its log, so these five tell what the message holds.
        key = (term, next_index, count, commit_index, self.round)
        frame = self._frames.get(key)
        if frame is None:
            position = next_index - first
            records: list[LogRecord] = self._journal[position : position + count]
            entries = tuple((entry_term, command) for command, _, entry_term in records)
            prev_term = self._journal[position - 1][2]
            frame = encode(Append(term, next_index - 1, prev_term, commit_index, entries, self.round))
            self._frames[key] = frame
        progress.commit_sent = commit_index
        if count:
            progress.sent(next_index + count - 1, len(frame))
        self._host.send(peer_id, frame)
        return count
