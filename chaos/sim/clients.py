"""Who uses the cluster: submitters and workers, with everything clients do wrong.

They ask any node, give up too early, repeat under the same key, lose answers, sleep past their leases
and hand in results that nobody wants any more. Every call is a record of the history.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from chaos.checkers.history import Ending, Op
from chaos.sim.clock import NodeClock
from chaos.sim.door import NOT_APPLIED, UNKNOWN, Answer, Request
from chaos.sim.loop import NodeLoop

if TYPE_CHECKING:
    from chaos.sim.world import World

WORK_TYPES = ("selfplay", "training", "evaluation")
DEADLINE_S = (0.5, 5.0)
TRIES_MAX = 4
KNOWN_MAX = 400
"""Ids that a client remembers having seen."""
CLAIM_WAIT_S = 2.0


class Client:
    """One caller: one operation at a time, and a new name after an answer that never came."""

    def __init__(self, world: World, name: str, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.loop = NodeLoop(world.queue, NodeClock(world.queue, began_s=0.0), name)
        self._name = name
        self._running: asyncio.Task[None] | None = None
        self._lives = 0
        self._number = 0
        self._keys = 0

    def begin(self) -> None:
        self._running = self.loop.create_task(self.run(), name=self._name)

    @property
    def has_ended(self) -> bool:
        """It asks for nothing any more."""
        return self._running is not None and self._running.done()

    async def run(self) -> None:
        """What a client of this kind asks for, until it asks for nothing any more."""
        raise NotImplementedError

    async def call(self, verb: str, body: dict[str, Any], *, keyed: bool = False, wait_s: float = 0.0) -> Answer:
        """Ask some node; repeat what nobody knows or nobody did, mostly under the same key."""
        rng = self.rng
        key = None
        if keyed and rng.random() < 0.9:
            self._keys += 1
            key = f"{self._name}-k{self._keys}"
            body = {**body, "idempotency_key": key}
        answer = NOT_APPLIED
        await self._beat()
        for _ in range(rng.randint(1, TRIES_MAX)):
            answer = await self._once(verb, body, key, wait_s)
            if answer.ending in (Ending.DONE, Ending.REFUSED):
                return answer
            if answer.ending is Ending.UNKNOWN and keyed and key is None:
                return answer
            await asyncio.sleep(rng.uniform(0.01, 0.5))
        return answer

    async def _beat(self) -> None:
        """Wait for the moment at which many clients call at once."""
        beat_s = self.world.plan.beat_s
        if beat_s and self.world.is_submitting:
            await asyncio.sleep(beat_s - self.world.queue.now_s % beat_s)

    async def _once(self, verb: str, body: dict[str, Any], key: str | None, wait_s: float) -> Answer:
        world, rng, loop = self.world, self.rng, self.loop
        node = rng.choice(world.node_ids)
        deadline_s = rng.uniform(*DEADLINE_S)
        request = Request(verb, body, key, deadline_s, wait_s)
        future: asyncio.Future[Answer] = loop.create_future()

        def end(how: str, answer: Answer | None) -> None:
            if not future.done():
                future.set_result(NOT_APPLIED if how == "not_sent" else answer or UNKNOWN)

        invoked_s = world.queue.now_s
        world.calls.begin(self._name, loop, node, request, end)
        patience_s = deadline_s + wait_s + rng.uniform(0.0, 1.0) - (0.4 if rng.random() < 0.1 else 0.0)
        timer = loop.call_later(max(0.05, patience_s), end, "no_answer", None)
        answer = await future
        timer.cancel()
        client = f"{self._name}.{self._lives}" if self._lives else self._name
        op = Op(client, self._number, verb, body, node, invoked_s, world.queue.now_s, answer.ending, answer.body)
        self._number += 1
        if answer.ending is Ending.UNKNOWN:
            self._lives, self._number = self._lives + 1, 0
        world.record(op)
        return answer


class Submitter(Client):
    """Adds work, looks at it, takes it back."""

    def __init__(self, world: World, name: str, rng: random.Random, rate: float) -> None:
        super().__init__(world, name, rng)
        self._rate = rate
        self._items = 0
        self._verbs: list[tuple[Callable[[], Awaitable[None]], float]] = [
            (self._add, 10.0),
            (self._add_batch, 1.0),
            (self._look, 8.0),
            (self._cancel, 0.7),
            (self._cancel_group, 0.1),
            (self._retry, 0.6),
        ]

    async def run(self) -> None:
        verbs, weights = [verb for verb, _ in self._verbs], [weight for _, weight in self._verbs]
        while self.world.is_submitting:
            await asyncio.sleep(self.rng.expovariate(self._rate))
            await self.rng.choices(verbs, weights)[0]()

    def _item(self) -> dict[str, Any]:
        rng, world = self.rng, self.world
        item: dict[str, Any] = {"work_type": rng.choice(WORK_TYPES), "priority": rng.choice((10, 50, 50, 90))}
        if rng.random() < 0.6:
            self._items += 1
            item["work_id"] = f"{self._name}-{self._items}"
        if rng.random() < 0.15 and world.known:
            item["depends_on"] = sorted({rng.choice(world.known) for _ in range(rng.randint(1, 2))})
            item["on_dependency_failure"] = rng.choice(("cancel", "run", "cancel"))
        if rng.random() < 0.1:
            item["unique_key"] = f"u{rng.randrange(8)}"
        if rng.random() < 0.2:
            item["group"] = f"g{rng.randrange(4)}"
        if rng.random() < 0.1:
            item["timeout_s"] = round(rng.uniform(0.5, 3.0), 1)
        if world.plan.payload_bytes:
            item["config"] = {
                "board_type": rng.choice(("hex8", "square8")),
                "x": "x" * rng.randrange(world.plan.payload_bytes),
            }
        item["max_attempts"] = rng.choice((1, 3, 3, 5))
        return item

    def _learn(self, work_id: str) -> None:
        known = self.world.known
        known.append(work_id)
        if len(known) > KNOWN_MAX:
            del known[: KNOWN_MAX // 4]

    async def _add(self) -> None:
        item = self._item()
        answer = await self.call("add", item, keyed=True)
        if answer.ending is Ending.DONE and answer.body is not None:
            self._learn(answer.body["work_id"])

    async def _add_batch(self) -> None:
        body = {"items": [self._item() for _ in range(self.rng.randint(2, 6))]}
        answer = await self.call("add_batch", body, keyed=True)
        if answer.ending is Ending.DONE and answer.body is not None:
            for item in answer.body["items"]:
                self._learn(item["work_id"])

    async def _look(self) -> None:
        if self.world.known:
            consistency = "stale" if self.rng.random() < 0.4 else "linearizable"
            await self.call("get", {"work_id": self.rng.choice(self.world.known), "consistency": consistency})

    async def _cancel(self) -> None:
        if self.world.known:
            await self.call("cancel", {"work_id": self.rng.choice(self.world.known)}, keyed=True)

    async def _cancel_group(self) -> None:
        await self.call("cancel", {"group": f"g{self.rng.randrange(4)}"}, keyed=True)

    async def _retry(self) -> None:
        if self.world.known:
            await self.call("retry", {"work_id": self.rng.choice(self.world.known)}, keyed=True)


class Worker(Client):
    """Claims, works, renews, reports; at times it sleeps past its lease and reports all the same."""

    def __init__(self, world: World, name: str, rng: random.Random, work_s: float) -> None:
        super().__init__(world, name, rng)
        self._work_s = work_s

    async def run(self) -> None:
        rng = self.rng
        while not self.world.is_over:
            low_ms, high_ms = self.world.plan.lease_ms
            lease_s = round(rng.uniform(low_ms, high_ms) / 1000, 3)
            body = {"node_id": self._name, "max_items": rng.choice((1, 1, 2, 3)), "lease_s": lease_s}
            answer = await self.call("claim", body, keyed=True, wait_s=CLAIM_WAIT_S)
            held = answer.body["items"] if answer.ending is Ending.DONE and answer.body is not None else []
            for item in held:
                await self._work(item["work_id"], item["lease"]["token"], lease_s)
            if not held:
                await asyncio.sleep(rng.uniform(0.05, 0.5))

    async def _work(self, work_id: str, token: int, lease_s: float) -> None:
        rng = self.rng
        is_draining = not self.world.is_submitting
        lease = {"work_id": work_id, "token": token}
        if rng.random() < 0.6:
            await self.call("start", lease)
        # When no more work comes, what is left is done at once: the queue has to run dry.
        work_s = 0.01 if is_draining else rng.expovariate(1 / self._work_s)
        if rng.random() < self.world.plan.zombies and not is_draining:
            await asyncio.sleep(lease_s * rng.uniform(1.0, 2.5))
        elif work_s > lease_s / 2:
            while work_s > 0:
                await asyncio.sleep(min(work_s, lease_s / 3))
                work_s -= lease_s / 3
                answer = await self.call("renew", {"node_id": self._name, "leases": [lease]})
                if answer.ending is Ending.DONE and answer.body is not None and not answer.body["leases"][0]["ok"]:
                    if rng.random() < 0.7:
                        return
        else:
            await asyncio.sleep(work_s)
        await self._report(lease, is_draining)

    async def _report(self, lease: dict[str, Any], is_draining: bool) -> None:
        rng = self.rng
        chance = 1.0 if is_draining else rng.random()
        if chance < 0.06:
            await self.call("fail", {**lease, "error": "it broke", "retryable": rng.random() < 0.8})
            await self._change_its_mind(lease)
        elif chance < 0.09:
            await self.call("release", lease)
            await self._change_its_mind(lease)
        elif chance < 0.12:
            return  # It forgot; the lease will run out.
        elif chance < 0.17:
            body = {**lease, "spawn": [{"work_type": "evaluation"} for _ in range(rng.randint(1, 2))]}
            if rng.random() < 0.5:
                body["then"] = {"work_type": "training"}
            await self.call("complete", body)
        elif chance < 0.22:
            await self.call("complete_batch", {"items": [{**lease, "result": {"n": rng.randrange(1000)}}]})
        else:
            await self.call("complete", {**lease, "result": {"n": rng.randrange(1000)}})

    async def _change_its_mind(self, lease: dict[str, Any]) -> None:
        """It gave the item up, and hands a result in all the same."""
        if self.rng.random() < 0.3:
            await self.call("complete", {**lease, "result": {"n": self.rng.randrange(1000)}})
