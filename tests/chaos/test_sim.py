"""The simulator repeats itself exactly, and the code that ships keeps its promises in it."""

from __future__ import annotations

import pytest

from chaos.sim.batch import Asked, play, quiet


@pytest.fixture(autouse=True)
def _quiet() -> object:
    with quiet():
        yield


@pytest.mark.parametrize("seed", [3, 104, 110])
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    asked = Asked(seed, 20.0, None)
    first, second = play(asked), play(asked)
    assert first.trace == second.trace
    assert first.history.ops == second.history.ops
    assert first.events == second.events


def test_another_seed_gives_another_trace() -> None:
    assert play(Asked(1, 5.0, 3)).trace != play(Asked(2, 5.0, 3)).trace


@pytest.mark.parametrize("seed", range(30))
def test_no_seed_breaks_a_promise(seed: int) -> None:
    result = play(Asked(seed, 30.0, None))
    assert result.violation is None, f"{result.violation}\npython -m chaos.sim replay {seed} --seconds 30 --timeline"
    assert result.endings["done"] > 20
