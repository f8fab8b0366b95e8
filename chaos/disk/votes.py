"""What voters said and kept about terms and votes, over all their lives."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ringraft.consensus.replog.vote import Vote

LEADERSHIP = re.compile(r"action=leadership node=(\S+) leader=(\S+) term=(\d+) role=leader")


@dataclass(slots=True)
class Votes:
    """What the voters said and kept about terms, over all their lives."""

    leaders: dict[int, str] = field(default_factory=dict)
    kept: dict[str, Vote] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    _read_to: dict[str, int] = field(default_factory=dict)

    def read_log(self, name: str, log: Path) -> list[str]:
        """Learn who led from a voter's own words; what contradicts others' words is returned."""
        wrong = []
        with log.open("rb") as file:
            file.seek(self._read_to.get(name, 0))
            text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self._read_to[name] = self._read_to.get(name, 0) + len(text)
        for node, leader, term in LEADERSHIP.findall(text.decode("utf-8", "replace")):
            if node == leader and self.leaders.setdefault(int(term), node) != node:
                wrong.append(f"{node} and {self.leaders[int(term)]} both led term {term}")
        return wrong

    def hear(self, name: str, term: int) -> list[str]:
        """A voter said that it is in this term."""
        before = self.told.get(name, 0)
        self.told[name] = max(before, term)
        return [f"{name} was in term {before} and then in {term}"] if term < before else []

    def found(self, name: str, vote: Vote) -> list[str]:
        """What a disk holds after a cut, before its voter starts."""
        wrong = []
        before = self.kept.get(name, Vote(0, None))
        self.kept[name] = vote
        if vote.term < max(before.term, self.told.get(name, 0)):
            wrong.append(f"{name} was in term {max(before.term, self.told.get(name, 0))} and kept only {vote.term}")
        if vote.term == before.term and before.voted_for not in (None, vote.voted_for):
            wrong.append(f"{name} voted for {before.voted_for} and for {vote.voted_for} in term {vote.term}")
        return wrong

    def unelected(self, names: list[str]) -> list[str]:
        """Leaders whose votes no majority of these disks carries; each read after one cut of all."""
        wrong = []
        for term, leader in self.leaders.items():
            for_it = [name for name in names if self._may_have_voted(name, term, leader)]
            if len(for_it) <= len(names) // 2:
                wrong.append(f"{leader} led term {term} and only {for_it} of {names} kept that or a newer vote")
        return wrong

    def _may_have_voted(self, name: str, term: int, leader: str) -> bool:
        vote = self.kept.get(name, Vote(0, None))
        return vote.term > term or (vote.term == term and vote.voted_for == leader)
