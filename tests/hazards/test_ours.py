"""Counterparts of hazards that need a scenario of their own: the one that shows the hazard, on ours."""

from __future__ import annotations

import asyncio

from tests.consensus.raft_kit import cluster, note, run


def test_a_former_leader_with_a_tail_and_much_to_read_catches_up() -> None:
    async def scenario() -> None:
        async with cluster(3) as c:
            old = await c.leader()
            c.network.partition([old], [name for name in c.names if name != old])
            doomed = [asyncio.ensure_future(c.nodes[old].propose(note(f"lost {n}"), deadline_s=9)) for n in range(20)]
            await c.deposed(old)
            # Many messages' worth, as in the hazard.
            written = [f"n{number} " + "x" * 10_000 for number in range(300)]
            for text in written:
                await c.write(text)
            c.network.heal()
            assert await c.converged(limit_s=2.0) == written
            for ending in await asyncio.gather(*doomed, return_exceptions=True):
                assert isinstance(ending, Exception), "what a minority wrote was acknowledged"

    run(scenario())
