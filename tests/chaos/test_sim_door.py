"""The simulator's front does with a call what the service does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, cast

from chaos.checkers.history import Ending
from chaos.sim.door import Answer, Door, Request
from chaos.sim.loop import NodeLoop
from chaos.sim.net import Calls
from ringraft.consensus.base import NotLeader
from ringraft.node.replica import Replica
from ringraft.state.model import Command, Done

End = Callable[[str, Answer | None], None]


class Leaders:
    """Another node leads and never answers; the third try finds this node leading."""

    machine = None

    def __init__(self) -> None:
        self.keys: list[str | None] = []

    async def submit(self, command: Command, *, deadline_s: float) -> Done:
        if len(self.keys) < 2:
            raise NotLeader("n2")
        self.keys.append(command.key.key if command.key is not None else None)
        return Done({"status": "added", "work_id": "a"})

    def begin(self, source: str, loop: object, target: str, request: Request, end: End) -> None:
        self.keys.append(request.key)
        end("no_answer", None)


def asked(key: str | None) -> list[str | None]:
    async def ask() -> Answer:
        loop = cast(NodeLoop, asyncio.get_running_loop())
        door = Door("n1", loop, cast(Replica, leaders), cast(Calls, leaders), random.Random(0))
        serving = asyncio.ensure_future(door.serve(Request("add", body, key)))
        while not serving.done():
            door.leadership_changed()
            await asyncio.sleep(0)
        return serving.result()

    leaders, body = Leaders(), cast(dict[str, Any], {"work_type": "selfplay"})
    assert asyncio.run(ask()).ending is Ending.DONE
    return leaders.keys


def test_a_call_without_a_key_that_is_passed_on_gets_one_for_all_its_tries() -> None:
    keys = asked(None)
    assert len(keys) == 3
    assert keys[0] is not None
    assert len(set(keys)) == 1


def test_a_callers_key_stays() -> None:
    assert asked("mine") == ["mine"] * 3
