"""Background loops: counting, faults, stopping."""

import asyncio

from ringraft.clock import SystemClock
from ringraft.node.loops import Loops
from tests.node.fakes import eventually


async def test_a_periodic_loop_runs_and_is_counted():
    loops = Loops(SystemClock(), lambda reason: None)
    ran = []

    async def body():
        ran.append(1)

    loops.every("count", 0.001, body)
    await eventually(lambda: len(ran) >= 3)
    stats = loops.stats()["count"]
    assert stats["state"] == "running"
    assert stats["runs"] >= 3
    await loops.stop()
    assert loops.stats()["count"]["state"] == "stopped"
    assert loops.faults() == []


async def test_a_fault_stops_that_loop_alone_and_is_said():
    vital = []
    loops = Loops(SystemClock(), vital.append)

    async def broken():
        raise ValueError("no such thing")

    async def healthy():
        await asyncio.Event().wait()

    loops.standing("broken", broken)
    loops.standing("healthy", healthy)
    await eventually(loops.faults)
    assert loops.faults() == ["loop broken stopped: ValueError: no such thing"]
    assert loops.stats()["healthy"]["state"] == "running"
    assert vital == []
    await loops.stop()


async def test_a_fault_of_a_vital_loop_ends_the_node():
    vital = []
    loops = Loops(SystemClock(), vital.append)

    async def broken():
        raise ValueError("gone")

    loops.every("duties", 1, broken, vital=True)
    await eventually(lambda: vital)
    assert "duties" in vital[0]
    await loops.stop()
