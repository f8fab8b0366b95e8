"""How many seeds the simulator needs to find a planted bug."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import signal
import statistics
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from chaos.mutants.catalogue import MUTANTS
from chaos.sim.batch import Asked, play

START_APART = 100_000
"""Seeds between one start and the next: starts never look at the same worlds."""
STUCK_S = 120
"""A seed that takes longer of this machine's time counts as one that found nothing."""


@dataclass(frozen=True, slots=True)
class Hunt:
    """One mutant, looked for from one first seed on."""

    mutant: str
    first: int
    seeds_max: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Catch:
    """What a hunt came to."""

    mutant: str
    first: int
    seeds: int
    """How many it took; all of them when it was not caught."""
    rule: str | None
    """What caught it; None: nothing did."""
    told: str = ""
    seed: int | None = None


def hunt(asked: Hunt) -> Catch:
    """Run seeds with the bug until one is caught that is clean without it."""
    mutant = MUTANTS[asked.mutant]
    for count, seed in enumerate(range(asked.first, asked.first + asked.seeds_max), 1):
        with mutant.planted():
            found = _violation(seed, asked.seconds)
        if found is not None and _violation(seed, asked.seconds) is None:
            rule, told = found
            return Catch(asked.mutant, asked.first, count, rule, told, seed)
    return Catch(asked.mutant, asked.first, asked.seeds_max, None)


def _violation(seed: int, seconds: float) -> tuple[str, str] | None:
    with contextlib.suppress(_Stuck), _limited():
        found = play(Asked(seed, seconds, None)).violation
        return None if found is None else (found.rule, found.told)
    return None


class _Stuck(BaseException):
    """Not an Exception: nothing in the simulated world may catch it."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _Stuck

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(STUCK_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def hunt_many(asked: Iterable[Hunt], *, jobs: int) -> Iterator[Catch]:
    """In processes of their own, ``jobs`` at a time; in the order in which they end."""
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_quiet, maxtasksperchild=4) as pool:
        yield from pool.imap_unordered(hunt, asked)


def _quiet() -> None:
    logging.disable(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Row:
    """All hunts for one mutant."""

    mutant: str
    starts: int
    caught: int
    seeds_median: float
    seeds_worst: int
    rules: tuple[str, ...]
    """What caught it, the most frequent first."""


def row(mutant: str, catches: list[Catch]) -> Row:
    seeds = [catch.seeds for catch in catches]
    rules = [catch.rule for catch in catches if catch.rule is not None]
    ordered = tuple(sorted(set(rules), key=lambda rule: (-rules.count(rule), rule)))
    return Row(mutant, len(catches), len(rules), statistics.median(seeds), max(seeds), ordered)


def record(path: Path, command: str, catch: Catch) -> None:
    """Append what a hunt came to, with the commit and the command."""
    asked = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    line = {"commit": done.stdout.strip(), "command": command, **asdict(catch)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


def recorded(path: Path) -> dict[str, list[Catch]]:
    """The newest hunt of each mutant from each start."""
    newest: dict[tuple[str, int], Catch] = {}
    for line in path.read_text("utf-8").splitlines():
        fields = json.loads(line)
        catch = Catch(**{name: fields[name] for name in Catch.__slots__})
        newest[catch.mutant, catch.first] = catch
    catches: dict[str, list[Catch]] = {}
    for (mutant, _), catch in newest.items():
        catches.setdefault(mutant, []).append(catch)
    return catches
