"""Faults that overlap end each for itself: a machine is whole again when the last one is over."""

from __future__ import annotations

from dataclasses import replace

from chaos.sim.batch import quiet
from chaos.sim.plan import KINDS, Fault, draw
from chaos.sim.world import World


def test_a_power_cut_inside_a_restart_leaves_no_machine_without_power() -> None:
    quiet_plan = draw(5, voters=3, seconds=8.0, without=frozenset(KINDS))
    restart, cut = Fault("restart", 2.0, 1.2, (0,)), Fault("power_cut_all", 2.9, 0.1, (0, 1, 2))
    with quiet():
        result = World(replace(quiet_plan, faults=(restart, cut))).run()
    assert result.violation is None, str(result.violation)


def test_a_power_cut_after_a_death_in_the_disk_leaves_no_machine_without_power() -> None:
    quiet_plan = draw(5, voters=3, seconds=8.0, without=frozenset(KINDS))
    args = {"step": "", "count": 1, "moment": "torn"}
    death, cut = Fault("die_in_disk", 2.0, 4.0, (0,), args), Fault("power_cut_all", 4.0, 0.1, (0, 1, 2))
    with quiet():
        result = World(replace(quiet_plan, faults=(death, cut))).run()
    assert result.counts["died_in_disk"] == 1
    assert result.violation is None, str(result.violation)
