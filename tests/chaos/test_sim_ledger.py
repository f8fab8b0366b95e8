"""The simulator's books know how long a key of an add lives: as long as one item that it made is held."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from chaos.sim.monitors import Broken, Monitors
from ringraft.state import commands as ops
from ringraft.state.machine import StateMachine
from ringraft.state.model import Applied, Command, Done, Entry, Epoch, Key, Limits, NewItem

RETENTION_MS = 1000
KEY = Key("anybody", "k", b"b" * 32)
BATCH = ops.AddBatch((NewItem("selfplay", b"\x80", "named"), NewItem("selfplay", b"\x80")))


class Books:
    """A state machine whose every entry goes through a ledger."""

    def __init__(self) -> None:
        self._machine = StateMachine(strict=True)
        self._ledger = Monitors(random.Random(0), lambda kind, text: None).ledger
        self._index = 0
        self.apply(0, ops.Configure(Limits(retention_ms=RETENTION_MS)))

    def apply(self, log_ms: int, op: ops.Op, key: Key | None = None) -> tuple[Entry, Applied]:
        self._index += 1
        entry = Entry(log_ms, log_ms, Epoch(1, 1), (Command(op, key),))
        applied = self._machine.apply(self._index, entry)
        assert isinstance(applied.outcomes[0], Done)
        self.account(entry, applied)
        return entry, applied

    def account(self, entry: Entry, applied: Applied) -> None:
        self._ledger.account(entry, applied, self._machine.log_ms)

    def add(self, log_ms: int) -> tuple[Entry, Applied]:
        return self.apply(log_ms, BATCH, KEY)

    def cancel(self, log_ms: int, added: Applied, *numbers: int) -> None:
        outcome = added.outcomes[0]
        assert isinstance(outcome, Done)
        for number in numbers:
            self.apply(log_ms, ops.Cancel(outcome.value["items"][number]["work_id"]))


def test_a_repeat_is_a_new_add_once_all_items_of_its_key_have_retired() -> None:
    books = Books()
    _, first = books.add(1)
    books.cancel(2, first, 0, 1)
    _, repeat = books.add(3)
    assert repeat.outcomes == first.outcomes
    _, again = books.add(3 + 2 * RETENTION_MS)
    assert [event.type for event in again.events if event.type != "WORK_RETIRED"] == ["WORK_ADDED"] * 2
    _, repeat = books.add(4 + 2 * RETENTION_MS)
    assert repeat.outcomes == again.outcomes


def test_a_key_lives_as_long_as_the_last_of_its_items() -> None:
    books = Books()
    _, first = books.add(1)
    books.cancel(2, first, 0)
    _, repeat = books.add(3 + 2 * RETENTION_MS)
    assert repeat.outcomes == first.outcomes


def test_a_key_that_makes_other_items_while_one_is_held_is_found() -> None:
    books = Books()
    _, first = books.add(1)
    books.cancel(2, first, 0)
    books.apply(3 + 2 * RETENTION_MS, ops.Tick())
    entry, forgotten = books.apply(4 + 2 * RETENTION_MS, BATCH)
    with pytest.raises(Broken, match="key_twice: the key k of anybody made"):
        books.account(replace(entry, commands=(Command(BATCH, KEY),)), replace(forgotten, events=()))


def test_a_key_that_outlives_its_items_is_found() -> None:
    books = Books()
    entry, first = books.add(1)
    books.cancel(2, first, 0, 1)
    books.apply(3 + 2 * RETENTION_MS, ops.Tick())
    with pytest.raises(Broken, match="key_outlived: the key k of anybody still answers named"):
        books.account(entry, replace(first, events=()))
