"""How requests reach a replica: as the API's service does it, without HTTP.

Here or at the leader, one hop, waiting for a leader until the deadline; three endings, kept apart.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from typing import Any

from chaos.checkers.history import Ending
from chaos.sim.loop import NodeLoop
from chaos.sim.net import Calls
from ringraft.api.auth import ANYBODY
from ringraft.api.submission import Submission, Verb
from ringraft.consensus.base import Indeterminate, NotLeader, Unavailable
from ringraft.node.replica import Replica, WaitersFull
from ringraft.state.model import Command, Done, Limits, Rejected

SUBMISSION = Submission(Limits(lease_min_ms=100))
ANSWER_MARGIN_S = 0.5
"""How much longer than its own deadline the leader has for its answer to arrive."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sends. ``verb`` is a row of the REST contract, or ``get``."""

    verb: str
    body: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    deadline_s: float = 5.0
    wait_s: float = 0.0
    is_hop: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """How it ended, and the body of the answer."""

    ending: Ending
    body: dict[str, Any] | None = None


NOT_APPLIED = Answer(Ending.NOT_APPLIED)
UNKNOWN = Answer(Ending.UNKNOWN)


class Door:
    """A node's front."""

    def __init__(self, node_id: str, loop: NodeLoop, replica: Replica, calls: Calls, rng: random.Random) -> None:
        self.node_id = node_id
        self._loop = loop
        self._replica = replica
        self._calls = calls
        self._rng = rng
        self._changed = asyncio.Event()

    def leadership_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def serve(self, request: Request) -> Answer:
        """Answer within the deadline and the wait."""
        if request.verb == "get":
            return await self._get(request)
        verb = SUBMISSION.verbs[request.verb]
        key = verb.key(ANYBODY, request.key, request.body)
        command = Command(verb.build(request.body, ANYBODY), key)
        return await self._decide(request, verb, command)

    async def _decide(self, request: Request, verb: Verb, command: Command) -> Answer:
        until_s = self._loop.time() + request.deadline_s + request.wait_s
        is_unknown = False
        while True:
            leader: str | None = None
            left_s = until_s - self._loop.time()
            try:
                if request.wait_s > 0:
                    wait_s = min(request.wait_s, left_s)
                    deadline_s = max(0.01, left_s - wait_s)
                    outcome = await self._replica.claim(command, deadline_s=deadline_s, wait_s=wait_s)
                else:
                    outcome = await self._replica.submit(command, deadline_s=max(0.01, left_s))
            except NotLeader as error:
                leader = error.leader_id
            except (Unavailable, WaitersFull):
                pass
            except Indeterminate:
                return UNKNOWN
            else:
                if isinstance(outcome, Done):
                    return Answer(Ending.DONE, verb.answer(outcome.value, self._replica.machine, request.body))
                assert isinstance(outcome, Rejected)
                if outcome.code != "stale_epoch":
                    return Answer(Ending.REFUSED, {"code": outcome.code, **outcome.members})
            if request.is_hop:
                return NOT_APPLIED
            if leader is not None and leader != self.node_id:
                if request.key is None:
                    # As the service does: what is passed on twice has one effect.
                    request = replace(request, key=f"{self.node_id}-{self._rng.getrandbits(64):016x}")
                how, answer = await self._ask(leader, request, until_s)
                if how == "answer" and answer.ending is not Ending.NOT_APPLIED:
                    return answer
                if how == "no_answer":
                    is_unknown = True
                    command = Command(command.op, verb.key(ANYBODY, request.key, request.body))
            if self._loop.time() >= until_s:
                return UNKNOWN if is_unknown else NOT_APPLIED
            await self._chance(until_s)

    async def _get(self, request: Request) -> Answer:
        until_s = self._loop.time() + request.deadline_s
        while request.body["consistency"] != "stale":
            try:
                await self._replica.read_barrier(deadline_s=max(0.01, until_s - self._loop.time()))
                break
            except (NotLeader, Unavailable, Indeterminate):
                pass
            if self._loop.time() >= until_s:
                return NOT_APPLIED
            await self._chance(until_s)
        item = self._replica.machine.item(request.body["work_id"])
        if item is None:
            return Answer(Ending.REFUSED, {"code": "not_found"})
        return Answer(Ending.DONE, item)

    async def _ask(self, leader: str, request: Request, until_s: float) -> tuple[str, Answer]:
        left_s = until_s - self._loop.time()
        wait_s = min(request.wait_s, left_s)
        passed = replace(request, is_hop=True, wait_s=wait_s, deadline_s=max(0.05, left_s - wait_s))
        future: asyncio.Future[tuple[str, Answer]] = self._loop.create_future()

        def end(how: str, answer: Answer | None) -> None:
            if not future.done():
                future.set_result((how, answer or UNKNOWN))

        self._calls.begin(self.node_id, self._loop, leader, passed, end)
        timer = self._loop.call_later(left_s + ANSWER_MARGIN_S, end, "no_answer", None)
        answered = await future
        timer.cancel()
        return answered

    async def _chance(self, until_s: float) -> None:
        """Wait until there may be another leader."""
        try:
            async with asyncio.timeout(min(0.25, max(0.01, until_s - self._loop.time()))):
                await self._changed.wait()
        except TimeoutError:
            return
