"""The seeds that every change has to pass: 300 worlds with 120 simulated seconds of faults each."""

from __future__ import annotations

import os

import pytest

from chaos.sim.batch import Asked, Total, run_many

SEEDS = 300
SECONDS = 120.0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_three_hundred_seeds_break_no_promise() -> None:
    total = Total()
    for outcome in run_many((Asked(seed, SECONDS, None) for seed in range(SEEDS)), jobs=os.cpu_count() or 1):
        total.add(outcome)
    assert total.seeds == SEEDS
    assert total.violations == [], "python -m chaos.sim replay SEED --timeline"
