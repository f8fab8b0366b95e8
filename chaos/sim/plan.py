"""What one seed is: the cluster, its settings, its load, and the faults that will hit it, as data.

Everything is drawn before anything runs, the mix of faults first (each seed has kinds of its own), so
that a run can be repeated with fewer faults, or with a plan written by hand.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ringraft.failpoints import STEPS

WARM_UP_S = 2.0
"""No faults before the first leader."""
FAULT_EVERY_S = (1.5, 6.0)
"""The mean time between faults is drawn from here."""


LEADER = -1
"""Stands for whoever leads when the fault comes."""


APART = (0.9, 1.1)
"""How fast clocks run that are not told to run fast or slow."""
TOLD_RATES = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something bad at ``at_s`` for ``for_s`` seconds. ``nodes`` are numbers; what else it needs is in ``args``."""

    kind: str
    at_s: float
    for_s: float = 0.0
    nodes: tuple[int, ...] = ()
    args: dict[str, Any] = field(default_factory=dict)

    def told(self) -> str:
        """For people."""
        parts = [f"{self.kind}"]
        if self.nodes:
            parts.append(",".join("leader" if node == LEADER else f"n{node + 1}" for node in self.nodes))
        if self.for_s:
            parts.append(f"for {self.for_s:.2f} s")
        parts += [f"{name}={value}" for name, value in self.args.items()]
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """A world and what happens to it. Times in seconds from the start."""

    seed: int
    voters: int
    fault_s: float
    """How long faults may hit; after it everything is healed."""
    heartbeat_ms: int = 75
    election_min_ms: int = 300
    election_max_ms: int = 500
    snapshot_entries: int = 200
    segment_bytes: int = 65_536
    entry_commands_max: int = 4096
    delay_ms: tuple[float, float] = (0.2, 0.8)
    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    grain_ms: float = 0.0
    """Messages arrive at multiples of it."""
    answers_lost: float = 0.0
    sync_ms: tuple[float, float] = (0.05, 0.4)
    splits: float = 0.05
    """The share of threads' work that stands still at its syncs, while the event loop goes on."""
    kept: float = 0.5
    """The chance of an unsynced write to survive a power cut."""
    clock_rates: tuple[float, ...] = ()
    clock_begins_s: tuple[float, ...] = ()
    wall_ahead_ms: tuple[int, ...] = ()
    ops_per_s: float = 20.0
    beat_s: float = 0.0
    """Clients begin at multiples of it, many at once; 0: whenever they like."""
    submitters: int = 3
    workers: int = 4
    lease_ms: tuple[int, int] = (800, 4000)
    retention_ms: int = 20_000
    payload_bytes: int = 64
    zombies: float = 0.06
    faults: tuple[Fault, ...] = ()

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises ValueError that names what is wrong."""
        try:
            raw = json.loads(text)
            faults = tuple(Fault(**{**fault, "nodes": tuple(fault["nodes"])}) for fault in raw.pop("faults"))
            values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
            return cls(**values, faults=faults)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a plan: {error}") from error

    def with_faults(self, faults: tuple[Fault, ...]) -> Plan:
        return replace(self, faults=faults)


Draw = Callable[[random.Random, int], dict[str, Any]]


def _one(rng: random.Random, voters: int) -> tuple[int, ...]:
    return (rng.randrange(voters),)


def _some(rng: random.Random, voters: int) -> tuple[int, ...]:
    """One, a minority, a majority, or all."""
    minority = max(1, (voters - 1) // 2)
    count = rng.choice((1, 1, 1, minority, min(voters, minority + 1), voters))
    return tuple(sorted(rng.sample(range(voters), count)))


def _minority(rng: random.Random, voters: int) -> tuple[int, ...]:
    count = (voters - 1) // 2
    return tuple(sorted(rng.sample(range(voters), rng.randint(1, count)))) if count else ()


def _target(rng: random.Random, voters: int) -> tuple[int, ...]:
    return (LEADER,) if rng.random() < 0.4 else _some(rng, voters)


def _short(rng: random.Random, low_s: float, high_s: float) -> float:
    """More often short than long."""
    return round(low_s + (high_s - low_s) * rng.random() ** 2, 3)


def _kill(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"nodes": _target(rng, voters), "for_s": _short(rng, 0.02, 8.0)}


def _power(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"nodes": _target(rng, voters), "for_s": _short(rng, 0.05, 8.0)}


def _power_all(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"nodes": tuple(range(voters)), "for_s": _short(rng, 0.05, 3.0)}


def _pause(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"nodes": _target(rng, voters), "for_s": _short(rng, 0.05, 12.0)}


def _restart(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"nodes": _target(rng, voters), "for_s": _short(rng, 0.05, 1.0)}


def _rolling(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"for_s": _short(rng, 2.0, 8.0)}


def _isolate(rng: random.Random, voters: int) -> dict[str, Any]:
    way = rng.choice(("both", "both", "in", "out"))
    return {"nodes": _target(rng, voters)[:1], "for_s": _short(rng, 0.1, 12.0), "args": {"way": way}}


def _halves(rng: random.Random, voters: int) -> dict[str, Any]:
    side = tuple(sorted(rng.sample(range(voters), voters // 2)))
    return {"nodes": side, "for_s": _short(rng, 0.1, 12.0)}


def _ring(rng: random.Random, voters: int) -> dict[str, Any]:
    order = list(range(voters))
    rng.shuffle(order)
    return {"nodes": tuple(order), "for_s": _short(rng, 0.5, 12.0)}


def _bridge(rng: random.Random, voters: int) -> dict[str, Any]:
    order = list(range(voters))
    rng.shuffle(order)
    return {"nodes": tuple(order), "for_s": _short(rng, 0.5, 12.0)}


def _one_link(rng: random.Random, voters: int) -> dict[str, Any]:
    pair = tuple(rng.sample(range(voters), 2))
    return {"nodes": pair, "for_s": _short(rng, 0.1, 12.0), "args": {"way": rng.choice(("both", "out"))}}


def _flap(rng: random.Random, voters: int) -> dict[str, Any]:
    args = {"period_s": round(rng.uniform(0.1, 2.0), 3)}
    return {"nodes": tuple(rng.sample(range(voters), 2)), "for_s": _short(rng, 1.0, 10.0), "args": args}


def _resets(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"for_s": _short(rng, 0.1, 5.0), "args": {"every_s": round(rng.uniform(0.02, 0.5), 3)}}


def _storm(rng: random.Random, voters: int) -> dict[str, Any]:
    args = {
        "delay_ms": round(rng.uniform(5, 80), 1),
        "loss": round(rng.choice((0.0, 0.05, 0.2)), 2),
        "duplicate": round(rng.choice((0.0, 0.1, 0.3)), 2),
    }
    return {"for_s": _short(rng, 0.5, 10.0), "args": args}


def _slow_node(rng: random.Random, voters: int) -> dict[str, Any]:
    args = {"share": round(rng.uniform(0.05, 0.4), 2), "period_s": 0.1}
    return {"nodes": _target(rng, voters)[:1], "for_s": _short(rng, 0.5, 8.0), "args": args}


def _slow_disk(rng: random.Random, voters: int) -> dict[str, Any]:
    return {
        "nodes": _target(rng, voters), "for_s": _short(rng, 0.5, 8.0), "args": {"sync_ms": [5, rng.choice((50, 500))]}
    }  # fmt: skip


def _fail_sync(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"nodes": _one(rng, voters), "for_s": _short(rng, 0.1, 4.0)}


def _full_disk(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"nodes": _minority(rng, voters) or _one(rng, voters), "for_s": _short(rng, 0.5, 8.0)}


def _die_in_disk(rng: random.Random, voters: int) -> dict[str, Any]:
    args = {
        "step": rng.choice(("", "", *STEPS)),
        "count": rng.randint(1, 12), "moment": rng.choice(("before", "torn", "after")),
    }  # fmt: skip
    return {"nodes": _target(rng, voters)[:1], "for_s": _short(rng, 0.02, 4.0), "args": args}


def _clock_jump(rng: random.Random, voters: int) -> dict[str, Any]:
    jump_ms = rng.choice((-1, 1)) * round(10 ** rng.uniform(1, 5.5))
    return {"nodes": _target(rng, voters), "args": {"wall_ms": jump_ms}}


def _clock_rate(rng: random.Random, voters: int) -> dict[str, Any]:
    return {
        "nodes": _one(rng, voters),
        "for_s": _short(rng, 1.0, 20.0),
        "args": {"rate": round(rng.uniform(*TOLD_RATES), 2)},
    }


def _transfer(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"nodes": _one(rng, voters)}


def _bit_flip(rng: random.Random, voters: int) -> dict[str, Any]:
    args = {"file": rng.choice(("journal-", "snapshot-", "vote")), "how": rng.choice(("flip", "flip", "cut"))}
    return {"nodes": _one(rng, voters), "for_s": _short(rng, 0.1, 3.0), "args": args}


def _wipe(rng: random.Random, voters: int) -> dict[str, Any]:
    return {"nodes": _one(rng, voters), "for_s": _short(rng, 0.1, 5.0)}


KINDS: dict[str, Draw] = {
    "kill": _kill,
    "power_cut": _power,
    "power_cut_all": _power_all,
    "pause": _pause,
    "restart": _restart,
    "rolling_restart": _rolling,
    "isolate": _isolate,
    "halves": _halves,
    "ring": _ring,
    "bridge": _bridge,
    "one_link": _one_link,
    "flap": _flap,
    "resets": _resets,
    "storm": _storm,
    "slow_node": _slow_node,
    "slow_disk": _slow_disk,
    "fail_sync": _fail_sync,
    "full_disk": _full_disk,
    "die_in_disk": _die_in_disk,
    "clock_jump": _clock_jump,
    "clock_rate": _clock_rate,
    "transfer": _transfer,
    "bit_flip": _bit_flip,
    "wipe": _wipe,
}
"""Every kind of fault, with how one is drawn."""

NEEDS_PEERS = frozenset(
    {"isolate", "halves", "ring", "bridge", "one_link", "flap", "resets", "transfer", "bit_flip", "wipe"}
)
POWER = frozenset({"power_cut", "power_cut_all"})


def draw(seed: int, *, voters: int | None = None, seconds: float = 60.0, without: frozenset[str] = frozenset()) -> Plan:
    """The plan of this seed. ``voters`` fixes their number; ``without`` leaves kinds of faults out."""
    rng = random.Random(f"plan {seed}")
    count = rng.choice((1, 3, 3, 3, 5, 5)) if voters is None else voters
    heartbeat_ms = rng.choice((30, 50, 75, 75, 150, 250))
    election_min_ms = round(heartbeat_ms * rng.choice((3.5, 4, 6)))
    election_max_ms = round(election_min_ms * rng.choice((1.3, 1.7, 2.5)))
    apart = rng.random() < 0.3
    beat_s = rng.choice((0.0, 0.1, 0.5))
    # Clients that wait for each other's moment take more of them for the same load.
    crowd = 1 if not beat_s else 2 if beat_s < 0.5 else 4
    plan = Plan(
        seed=seed,
        voters=count,
        fault_s=seconds,
        heartbeat_ms=heartbeat_ms,
        election_min_ms=election_min_ms,
        election_max_ms=election_max_ms,
        snapshot_entries=rng.choice((20, 60, 200, 200, 1000)),
        segment_bytes=rng.choice((4096, 16_384, 65_536, 1 << 20)),
        entry_commands_max=rng.choice((1, 4, 4096, 4096)),
        delay_ms=rng.choice(((0.1, 0.3), (0.2, 0.8), (0.5, 5.0))),
        loss=rng.choice((0.0, 0.0, 0.002, 0.02)),
        duplicate=rng.choice((0.0, 0.0, 0.01)),
        late=rng.choice((0.0, 0.01, 0.05)),
        grain_ms=rng.choice((0.0, 0.25, 1.0)),
        answers_lost=rng.choice((0.0, 0.01, 0.05)),
        sync_ms=rng.choice(((0.05, 0.4), (0.1, 1.0), (1.0, 10.0))),
        splits=rng.choice((0.02, 0.1, 0.3)),
        kept=rng.choice((0.0, 0.5, 0.5, 0.9)),
        clock_rates=tuple(round(rng.uniform(*APART), 3) if apart else 1.0 for _ in range(count)),
        clock_begins_s=tuple(round(rng.uniform(1, 1e6), 3) for _ in range(count)),
        wall_ahead_ms=tuple(rng.randint(-60_000, 60_000) if apart else rng.randint(-50, 50) for _ in range(count)),
        ops_per_s=20.0,
        beat_s=beat_s,
        submitters=rng.randint(2, 4) * crowd,
        workers=rng.randint(2, 6) * crowd,
        lease_ms=rng.choice(((500, 1500), (800, 4000), (3000, 10_000))),
        retention_ms=rng.choice((3_000, 20_000, 600_000)),
        payload_bytes=rng.choice((0, 64, 64, 2000)),
        zombies=rng.choice((0.0, 0.06, 0.2)),
    )
    return plan.with_faults(_faults(rng, plan, without))


def _faults(rng: random.Random, plan: Plan, without: frozenset[str]) -> tuple[Fault, ...]:
    possible = [kind for kind in KINDS if plan.voters > 1 or kind not in NEEDS_PEERS]
    chosen = [kind for kind in possible if rng.random() < 0.4] or [rng.choice(possible)]
    chosen = [kind for kind in chosen if kind not in without]
    weights = [rng.random() + 0.1 for _ in chosen]
    every_s = rng.uniform(*FAULT_EVERY_S)
    faults = []
    at_s = WARM_UP_S
    while chosen:
        at_s += rng.expovariate(1 / every_s)
        if at_s >= plan.fault_s:
            break
        kind = rng.choices(chosen, weights)[0]
        faults.append(Fault(kind, round(at_s, 4), **KINDS[kind](rng, plan.voters)))
    return tuple(faults)
