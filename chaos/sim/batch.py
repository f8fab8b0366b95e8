"""Many seeds, over the processors there are, and what they came to together."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.sim.plan import draw
from chaos.sim.world import Result, World


@dataclass(frozen=True, slots=True)
class Asked:
    """One seed, as it is to be run."""

    seed: int
    seconds: float
    nodes: int | None
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed came to, small enough to travel between processes."""

    seed: int
    voters: int
    simulated_s: float
    cpu_s: float
    trace: int
    violation: str | None
    counts: Counter[str]
    endings: Counter[str]
    elections: int
    messages: int


@dataclass(slots=True)
class Total:
    """All of them."""

    seeds: int = 0
    simulated_s: float = 0.0
    cpu_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    elections: int = 0
    messages: int = 0
    violations: list[tuple[int, str]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.simulated_s += outcome.simulated_s
        self.cpu_s += outcome.cpu_s
        self.counts.update(outcome.counts)
        self.endings.update(outcome.endings)
        self.elections += outcome.elections
        self.messages += outcome.messages
        if outcome.violation is not None:
            self.violations.append((outcome.seed, outcome.violation))

    @property
    def hours_per_cpu_minute(self) -> float:
        """Simulated cluster-hours in a minute of one processor."""
        return self.simulated_s / 3600 / (self.cpu_s / 60) if self.cpu_s else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "seeds": self.seeds,
            "simulated_hours": round(self.simulated_s / 3600, 3),
            "cpu_s": round(self.cpu_s, 1),
            "hours_per_cpu_minute": round(self.hours_per_cpu_minute, 2),
            "faults": dict(sorted(self.counts.items())),
            "ops": dict(sorted(self.endings.items())),
            "elections": self.elections,
            "messages": self.messages,
            "violations": [{"seed": seed, "told": told} for seed, told in self.violations],
        }


def run_one(asked: Asked) -> Outcome:
    """Run a seed in this process."""
    began_s = time.process_time()
    result = play(asked)
    return Outcome(
        seed=asked.seed,
        voters=result.plan.voters,
        simulated_s=result.simulated_s,
        cpu_s=time.process_time() - began_s,
        trace=result.trace,
        violation=None if result.violation is None else f"{result.violation.rule}: {result.violation.told}",
        counts=result.counts,
        endings=result.endings,
        elections=result.elections,
        messages=result.messages,
    )


def play(asked: Asked, *, keep_notes: bool = False) -> Result:
    """Run a seed and keep everything."""
    # Nothing of a run outlives it, so its garbage is collected at its end, in one go.
    gc.disable()
    try:
        return _play(asked, keep_notes=keep_notes)
    finally:
        gc.enable()
        gc.collect()


def _play(asked: Asked, *, keep_notes: bool) -> Result:
    plan = draw(asked.seed, voters=asked.nodes, seconds=asked.seconds, without=asked.without)
    return World(plan, keep_notes=keep_notes).run()


def run_many(asked: Iterable[Asked], *, jobs: int) -> Iterator[Outcome]:
    """Run seeds, ``jobs`` at a time; in the order in which they end."""
    if jobs == 1:
        with quiet():
            yield from map(run_one, asked)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_quiet_for_ever, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(run_one, asked)


class quiet:
    """Nothing of what simulated nodes log is shown."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)


def _quiet_for_ever() -> None:
    logging.disable(logging.CRITICAL)


def record(path: Path, command: str, total: Total) -> None:
    """Append one line with what was run and what it came to."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    line = {"commit": commit, "command": command, **total.as_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")
