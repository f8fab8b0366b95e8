"""What became of the games that were asked for: counted from the files on disk and the items' histories.

A game is known by its seed, which follows from its item's seed. It counts when it stands in the file
that its item's accepted result names (same path, same bytes). Any further file that holds it would
train on it twice, unless the item's history explains it: an attempt on that node which lost its
lease and whose result was therefore not taken.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

Item = Mapping[str, Any]


class Standing(Enum):
    """What a file on disk is to the item whose games it holds."""

    COUNTED = "the file of the accepted result"
    CHANGED = "that file, with other bytes"
    EXPLAINED = "of an attempt whose result was not taken"
    EXTRA = "one file more"
    STRANGER = "of no item"


@dataclass(frozen=True, slots=True)
class Audit:
    """Games, by what became of them. Right is: ``played == asked``, and 0 in all that follow."""

    asked: int
    played: int
    """Different games on disk that belong to an accepted result."""
    lost: int
    """Asked, and not among them."""
    twice: int
    """More than once on disk without an explanation, or in more than one accepted result."""
    strangers: int
    """On disk, and in no item's result."""
    repeated: int
    """Played again after a lost lease; their files lie beside the counted ones, and none of them counts."""
    files: int

    @property
    def is_right(self) -> bool:
        """Every game asked for is there, once."""
        return self.lost == self.twice == self.strangers == 0 and self.played == self.asked

    def to_json(self) -> dict[str, int]:
        """All counts by name."""
        return asdict(self)


def audit(directory: Path, items: Iterable[Item]) -> Audit:
    """Count the games below ``directory`` (one directory a worker, NPZ files in it) against the items."""
    items = list(items)
    accepted: Counter[int] = Counter()
    owner: dict[int, Item] = {}
    for item in items:
        for seed in _accepted_seeds(item):
            accepted[seed] += completions(item)
            owner[seed] = item
    found: dict[Standing, Counter[int]] = {standing: Counter() for standing in Standing}
    files = sorted(directory.rglob("*.npz"))
    for path in files:
        seeds = seeds_in(path)
        owners = {id(item): item for item in (owner.get(seed) for seed in seeds)}
        standings = {key: _standing(path, directory, item) for key, item in owners.items()}
        for seed in seeds:
            found[standings[id(owner.get(seed))]][seed] += 1
    counted = found[Standing.COUNTED]
    asked = sum(int(item["config"]["num_games"]) for item in items)
    played = sum(1 for seed in counted if accepted[seed])
    twice = sum(1 for seed in owner if accepted[seed] > 1 or counted[seed] > 1 or found[Standing.EXTRA][seed])
    return Audit(
        asked=asked,
        played=played,
        lost=max(asked - played, 0),
        twice=twice,
        strangers=found[Standing.STRANGER].total(),
        repeated=found[Standing.EXPLAINED].total(),
        files=len(files),
    )


def completions(item: Item) -> int:
    """How many attempts of the item were accepted as its completion."""
    return sum(1 for entry in item["history"] if entry["outcome"] == "completed")


def seeds_in(path: Path) -> list[int]:
    """The games of one file; none when it is no whole NPZ file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            seeds = arrays["seed"].tolist()
            lengths = arrays["history_length"].tolist()
            moves = len(arrays["history"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return []
    if len(lengths) != len(seeds) or sum(lengths) != moves or not all(lengths):
        return []
    return [int(seed) for seed in seeds]


def _accepted_seeds(item: Item) -> Iterator[int]:
    if item["state"] == "COMPLETED" and item["result"]:
        yield from (int(seed) for seed in item["result"]["seeds"])


def _standing(path: Path, directory: Path, item: Item | None) -> Standing:
    """What a file is to the item whose games it holds."""
    if item is None:
        return Standing.STRANGER
    for artifact in item["artifacts"] or ():
        if Path(artifact["path"]).resolve() == path.resolve():
            whole = hashlib.sha256(path.read_bytes()).hexdigest() == artifact["sha256"]
            return Standing.COUNTED if whole else Standing.CHANGED
    # A node that held the item and was not heard wrote its file under the item's own name.
    unheard = {entry["node_id"] for entry in item["history"] if entry["outcome"] != "completed"}
    explained = path.relative_to(directory).parts[0] in unheard and path.name == f"{item['work_id']}.npz"
    return Standing.EXPLAINED if explained else Standing.EXTRA
