"""What a walk was told is kept, and the judgement of what is found after its end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.disk.walk import open_log, payload, state_chunks
from ringraft.consensus.replog.files import LOCAL_DISK, Disk
from ringraft.consensus.replog.journal import STAND_IN, Journal
from ringraft.consensus.replog.snapshot import Snapshot

Terms = dict[int, int]
"""index: term, of the entries of a log."""
KeptVote = tuple[int, str | None]
"""(term, voted for)"""


class Lost(Exception):
    """Something that was known to be kept is not there, or something is there that never was."""


@dataclass(slots=True)
class Account:
    """Built up from a walk's lines; ``judge`` compares it with the directory and goes on from what is there.

    What a sync covered when it began is kept once it returned. Of what came later any prefix may be
    there, and a vote ahead of the entries that came before it.
    """

    terms: Terms = field(default_factory=dict)
    """The log as of ``steps[0]``."""
    vote: KeptVote = (0, None)
    """Likewise."""
    steps: list[list[Any]] = field(default_factory=list)
    """What was done since: adds, truncations, installations, votes."""
    covered: int = 0
    """So many of the steps are kept."""
    snapshot: tuple[int, int] = (0, 0)
    """(index, term) of the newest that is durable."""
    asked_snapshot: tuple[int, int] = (0, 0)
    acknowledged: int = 0
    """Entries and votes that were known to be kept, over all lives."""
    asked: list[Any] | None = None
    _sync_from: int = 0

    def read(self, lines: bytes) -> None:
        """Take the lines of one life; a last one that was cut short never was said."""
        for line in lines.split(b"\n")[:-1]:
            self._take(json.loads(line))

    def _take(self, words: list[Any]) -> None:
        match words:
            case ["ask", *asked]:
                self.asked = asked
                if asked[0] in ("snapshot", "install"):
                    self.asked_snapshot = (asked[1], asked[2])
            case ["did"]:
                assert self.asked is not None
                self.steps.append(self.asked)
                if self.asked[0] in ("snapshot", "install"):
                    self.snapshot = self.asked_snapshot
                self.asked = None
            case ["sync"]:
                self._sync_from = len(self.steps)
            case ["synced"]:
                kept = self.steps[self.covered : self._sync_from]
                self.acknowledged += sum(step[0] in ("add", "vote") for step in kept)
                self.covered = max(self.covered, self._sync_from)
            case _:
                raise AssertionError(f"a walk says {words}")

    @classmethod
    def of(cls, directory: Path) -> Account:
        """An account that begins with what is there."""
        account = cls()
        journal, snapshot = open_log(directory)
        account._go_on_from(journal, snapshot)
        journal.close()
        return account

    def judge(self, directory: Path, *, disk: Disk = LOCAL_DISK) -> None:
        """Open the directory and compare. Raises Lost, and what opening raises; then the next life can begin."""
        journal, snapshot = open_log(directory, disk)
        try:
            self._judge_vote(journal)
            self._judge_snapshot(snapshot)
            self._judge_log(journal, snapshot)
            self._go_on_from(journal, snapshot)
        finally:
            journal.close()

    def _judge_vote(self, journal: Journal) -> None:
        found = (journal.getCurrentTerm(), journal.getVotedForNodeId())
        votes = [self.vote]
        for number, step in enumerate(self._all_steps()):
            if step[0] == "vote":
                votes = [*(votes if number >= self.covered else []), (step[1], step[2])]
        if found not in votes:
            raise Lost(f"vote {votes[0]} was kept, {votes[1:]} came later, but {found} is there")

    def _judge_snapshot(self, snapshot: Snapshot | None) -> None:
        found = (snapshot.index, snapshot.term) if snapshot is not None else (0, 0)
        if found not in (self.snapshot, self.asked_snapshot):
            raise Lost(f"snapshot {self.snapshot} was kept and {self.asked_snapshot} asked for, but {found} is there")
        if snapshot is not None and list(snapshot.chunks()) != state_chunks(*found):
            raise Lost(f"the snapshot at {found} holds something else than was written")

    def _judge_log(self, journal: Journal, snapshot: Snapshot | None) -> None:
        index = snapshot.index if snapshot is not None else 0
        if journal.first_index > max(1, index - 1):
            raise Lost(f"the log begins at {journal.first_index}, after the snapshot at {index}")
        for command, at, term in journal[:]:
            is_stand_in = at == index - 1 and command == STAND_IN
            if command != payload(at, term) and not is_stand_in:
                raise Lost(f"entry {at} of term {term} holds something else than was written")
        found = {at: term for _command, at, term in journal[:]}
        possible = self.possible()
        if not any(agrees(found, terms, index) for terms in possible):
            raise Lost(
                f"the log {_summary(found)} is none that was: kept {_summary(possible[0])}, "
                f"written {_summary(possible[-1])}, snapshot {index}, asked {self.asked}"
            )

    def possible(self) -> list[Terms]:
        """Every log that may be found: as of each step since what is kept."""
        terms = dict(self.terms)
        found = [dict(terms)] if self.covered == 0 else []
        for number, step in enumerate(self._all_steps(), 1):
            _apply(terms, step)
            if number >= self.covered:
                found.append(dict(terms))
        return found

    def _all_steps(self) -> list[list[Any]]:
        return self.steps if self.asked is None else [*self.steps, self.asked]

    def _go_on_from(self, journal: Journal, snapshot: Snapshot | None) -> None:
        self.terms = {index: term for _command, index, term in journal[:]}
        self.steps, self.covered, self.asked, self._sync_from = [], 0, None, 0
        self.vote = (journal.getCurrentTerm(), journal.getVotedForNodeId())
        self.snapshot = self.asked_snapshot = (snapshot.index, snapshot.term) if snapshot is not None else (0, 0)


def agrees(found: Terms, terms: Terms, snapshot: int) -> bool:
    """The log found is this one from its first entry on, or the snapshot covers all of this one."""
    last, found_last = max(terms, default=0), max(found, default=0)
    if last < snapshot:
        return sorted(found) == [snapshot - 1, snapshot]
    return found_last == last and all(terms.get(index, term) == term for index, term in found.items())


def _apply(terms: Terms, step: list[Any]) -> None:
    match step:
        case ["add", index, term]:
            terms[index] = term
        case ["truncate", index]:
            for after in [at for at in terms if at > index]:
                del terms[after]
        case ["install", index, term, prev_term, keeps]:
            if not keeps:
                terms.clear()
                terms.update({index - 1: prev_term, index: term})


def _summary(terms: Terms) -> str:
    return f"{min(terms)}-{max(terms)} up to term {terms[max(terms)]}" if terms else "(empty)"
