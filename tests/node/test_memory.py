"""What the collector is let do, and that the state leaves nothing for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from ringraft.node import memory
from ringraft.node.memory import FULL_PERIOD_S, OLD_MAX, PORTIONS, YOUNG, Memory
from ringraft.state import commands as ops
from ringraft.state.machine import Restoring, StateMachine
from ringraft.state.model import Applied, Command, Done, Entry, Epoch, Limits, NewItem
from tests.node.fakes import TurnableClock


class Collector:
    """Stands in for the interpreter's, and notes what it is asked to do."""

    def __init__(self) -> None:
        self.portions = 0
        self.did: list[str] = []

    def get_count(self) -> tuple[int, int, int]:
        return 0, 0, self.portions

    def set_threshold(self, *thresholds: int) -> None:
        self.did.append(f"thresholds {thresholds}")

    def collect(self) -> int:
        self.did.append("collect")
        self.portions = 0
        return 0

    def freeze(self) -> None:
        self.did.append("freeze")
        self.portions = 0

    def unfreeze(self) -> None:
        self.did.append("unfreeze")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    stand_in = Collector()
    monkeypatch.setattr(memory, "gc", stand_in)
    return stand_in


async def look(policy: Memory, collector: Collector, portions: int = 0) -> list[str]:
    collector.did, collector.portions = [], portions
    await policy.look()
    return collector.did


async def test_little_that_is_old_is_collected_and_much_is_frozen(collector: Collector) -> None:
    policy = Memory(clock=TurnableClock(), items=lambda: 1_000_000)
    many = OLD_MAX // (PORTIONS * YOUNG)
    assert await look(policy, collector) == []
    assert [await look(policy, collector, 1) for _ in range(many + 1)] == [["collect"]] * many + [["freeze"]]
    assert await look(policy, collector, many + 1) == ["freeze"]
    assert await look(policy, collector, 1) == ["collect"]


async def test_everything_is_looked_at_only_where_that_is_quick(collector: Collector) -> None:
    clock = TurnableClock()
    held = 1_000_000
    policy = Memory(clock=clock, items=lambda: held)
    clock.advance_ms(FULL_PERIOD_S * 1000)
    assert await look(policy, collector) == []
    held = 5_000
    assert await look(policy, collector) == ["unfreeze", "collect", "freeze"]
    assert await look(policy, collector) == []


@pytest.fixture
def no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def garbage() -> list[str]:
    """What only a collection could free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = [f"{type(one).__module__}.{type(one).__name__}: {one!r:.80}" for one in gc.garbage]
    gc.garbage.clear()
    return found


def live(rounds: int) -> StateMachine:
    """Every kind of end an item can come to, images and a restoration between."""
    machine = StateMachine(strict=True)

    def apply(*verbs: Any, after_ms: int = 1) -> Applied:
        log_ms = machine.log_ms + after_ms
        entry = Entry(log_ms, 1_700_000_000_000 + log_ms, Epoch(1, 1), tuple(Command(verb) for verb in verbs))
        return machine.apply(machine.index + 1, entry)

    apply(ops.Configure(Limits(retention_ms=10_000)))
    for number in range(rounds):
        config = msgpack.packb({"seed": number})
        names = [f"r{number}-{one}" for one in range(10)]
        apply(ops.AddBatch(tuple(NewItem("selfplay", config, work_id=name, group=f"g{number}") for name in names)))
        apply(ops.Add(NewItem("training", config, work_id=f"after{number}", depends_on=(names[0],))))
        [claimed] = apply(ops.Claim("w1", None, 6, None, None)).outcomes
        assert isinstance(claimed, Done)
        tokens = {name: machine.tables.item(name).grant.token for name in claimed.value["claimed"]}  # type: ignore[union-attr]
        first, second, *others = tokens
        apply(ops.Start(first, tokens[first]), ops.Complete(first, tokens[first], config))
        apply(ops.Fail(second, tokens[second], "it broke", True), ops.Release(others[0], tokens[others[0]]))
        apply(ops.Cancel(group=f"g{number}"), ops.Tick(), after_ms=20_000)
        for chunk in machine.snapshot():
            apply(ops.Tick())
            assert chunk
    return machine


@pytest.mark.usefixtures("no_collections")
def test_a_state_that_lives_and_goes_leaves_no_cycles() -> None:
    live(1)
    gc.collect()  # what a first run makes once: caches, classes
    machine = live(20)
    assert garbage() == []
    restoring = Restoring(strict=True)
    for chunk in machine.snapshot():
        for _ in restoring.take(chunk):
            pass
    again = restoring.end()
    assert again.digest() == machine.digest()
    del restoring, chunk
    assert garbage() == []
    for one in (machine, again):
        for _ in one.dismantle():
            pass
    del machine, again, one
    assert garbage() == []
