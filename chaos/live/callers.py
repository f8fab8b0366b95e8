"""Clients of real voters: they ask any node, give up too early, repeat under the same key, work past their leases.

Every request is one attempt and one record of the history (``chaos.checkers.history``).
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from chaos.checkers.history import Ending, Op

PATIENCE_S = (0.3, 1.0, 3.0, 8.0)
"""How long a caller waits for an answer: often too short while a leader is missing."""
TRIES_MAX = 5
PAUSE_S_MAX = 0.25
REPEAT_SHARE = 0.15
LEASE_S = 5
"""The shortest that is allowed, so that leases run out within a run."""
CLAIM_WAIT_S = 1.0
KNOWN_MAX = 400
TAKEN_UNDECIDED = (429, 503)
"""Statuses that say "not applied" and nothing of the operation itself."""


@dataclass(slots=True)
class Scene:
    """What all callers share."""

    urls: dict[str, str]
    session: aiohttp.ClientSession
    rng: random.Random
    ops: list[Op] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    """Ids of items that were acknowledged."""
    is_submitting: bool = True
    is_over: bool = False
    faults: list[str] = field(default_factory=list)
    """Answers that nobody may ever get."""


class Caller:
    """One operation at a time, and a new name after an answer that never came."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene = scene
        self.rng = scene.rng
        self.name = name
        self._lives = 0
        self._number = 0
        self._keys = 0

    async def call(self, verb: str, body: dict[str, Any], *, is_keyed: bool = False) -> dict[str, Any] | None:
        """The answer when it was done; what nobody knows or nobody did is repeated, mostly until it was."""
        if is_keyed:
            self._keys += 1
            body = {**body, "idempotency_key": f"{self.name}-k{self._keys}"}
        for _ in range(self.rng.randint(1, TRIES_MAX)):
            op = await self._once(verb, body)
            if op.ending in (Ending.DONE, Ending.REFUSED):
                if is_keyed and self.rng.random() < REPEAT_SHARE:
                    # It forgot that it was answered.
                    await self._once(verb, body)
                return op.answer if op.is_done else None
            await asyncio.sleep(self.rng.uniform(0, PAUSE_S_MAX))
        return None

    async def _once(self, verb: str, body: dict[str, Any]) -> Op:
        node = self.rng.choice(sorted(self.scene.urls))
        client = f"{self.name}.{self._lives}" if self._lives else self.name
        invoked_s = time.monotonic()
        ending, answer = await self._ask(node, verb, body)
        op = Op(client, self._number, verb, body, node, invoked_s, time.monotonic(), ending, answer)
        self._number += 1
        if ending is Ending.UNKNOWN:
            self._lives, self._number = self._lives + 1, 0
        self.scene.ops.append(op)
        return op

    async def _ask(self, node: str, verb: str, body: dict[str, Any]) -> tuple[Ending, dict[str, Any] | None]:
        scene = self.scene
        fields = {name: value for name, value in body.items() if name != "idempotency_key"}
        headers = {"Idempotency-Key": body["idempotency_key"]} if "idempotency_key" in body else {}
        method, path = "POST", f"/work/{verb}"
        if verb == "get":
            method, path = "GET", f"/work/item/{fields['work_id']}?consistency={fields['consistency']}"
        timeout = aiohttp.ClientTimeout(total=self.rng.choice(PATIENCE_S))
        sent = None if verb == "get" else fields
        try:
            async with scene.session.request(
                method, scene.urls[node] + path, json=sent, headers=headers, timeout=timeout
            ) as response:
                answer = await response.json(content_type=None)
        except aiohttp.ClientConnectorError:
            return Ending.NOT_APPLIED, None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return Ending.UNKNOWN, None
        if response.status < 400:
            return Ending.DONE, answer
        if response.status == 500 or answer.get("outcome") not in ("not_applied", "unknown", "applied"):
            scene.faults.append(f"{verb} at {node} was answered {response.status} {answer}")
        if answer.get("outcome") == "unknown":
            return Ending.UNKNOWN, None
        if response.status in TAKEN_UNDECIDED:
            return Ending.NOT_APPLIED, None
        return Ending.REFUSED, answer


class Submitter(Caller):
    """Adds work, looks at it, takes some of it back."""

    async def run(self) -> None:
        """Until the scene submits no more."""
        acts, weights = (self._add, self._add_batch, self._look, self._cancel), (10, 2, 8, 1)
        while self.scene.is_submitting:
            await self.rng.choices(acts, weights)[0]()
            await asyncio.sleep(self.rng.uniform(0, 0.1))

    def _item(self) -> dict[str, Any]:
        known = self.scene.known
        item: dict[str, Any] = {"work_type": self.rng.choice(("selfplay", "training")), "max_attempts": 5}
        if self.rng.random() < 0.3:
            item["config"] = {"x": "x" * self.rng.choice((10, 3000))}
        if known and self.rng.random() < 0.1:
            item["depends_on"] = [self.rng.choice(known)]
            item["on_dependency_failure"] = self.rng.choice(("cancel", "run"))
        return item

    async def _add(self) -> None:
        answer = await self.call("add", self._item(), is_keyed=True)
        if answer is not None:
            self._learn(answer["work_id"])

    async def _add_batch(self) -> None:
        items = [self._item() for _ in range(self.rng.choice((2, 5, 20)))]
        answer = await self.call("add_batch", {"items": items}, is_keyed=True)
        for item in answer["items"] if answer is not None else ():
            self._learn(item["work_id"])

    async def _look(self) -> None:
        if self.scene.known:
            consistency = self.rng.choice(("linearizable", "linearizable", "stale"))
            await self.call("get", {"work_id": self.rng.choice(self.scene.known), "consistency": consistency})

    async def _cancel(self) -> None:
        if self.scene.known:
            await self.call("cancel", {"work_id": self.rng.choice(self.scene.known)}, is_keyed=True)

    def _learn(self, work_id: str) -> None:
        self.scene.known.append(work_id)
        del self.scene.known[:-KNOWN_MAX]


class Worker(Caller):
    """Claims, works, renews and reports; now and then it forgets an item or reports it too late."""

    async def run(self) -> None:
        """Until the scene is over."""
        while not self.scene.is_over:
            body = {"node_id": self.name, "max_items": self.rng.choice((1, 1, 3, 10)), "lease_s": LEASE_S}
            answer = await self.call("claim", {**body, "wait_s": CLAIM_WAIT_S}, is_keyed=True)
            items = answer["items"] if answer is not None else []
            await asyncio.gather(*(self._hand(item) for item in items))
            await asyncio.sleep(self.rng.uniform(0, 0.1))

    async def _hand(self, item: dict[str, Any]) -> None:
        """Each item by a caller of its own: a caller has one operation under way."""
        self._keys += 1
        hand = Worker(self.scene, f"{self.name}-h{self._keys}")
        await hand.work(self.name, item["work_id"], item["lease"]["token"])

    async def work(self, node_id: str, work_id: str, token: int) -> None:
        """One item, from its grant to its report."""
        rng, lease = self.rng, {"work_id": work_id, "token": token}
        is_draining = not self.scene.is_submitting
        if rng.random() < 0.05 and not is_draining:
            return
        if rng.random() < 0.6:
            await self.call("start", lease)
        if rng.random() < 0.3:
            await asyncio.sleep(rng.uniform(0, 0.5))
            await self.call("renew", {"node_id": node_id, "leases": [lease]})
        if rng.random() < 0.03 and not is_draining:
            await asyncio.sleep(LEASE_S * rng.uniform(1.0, 1.5))
        chance = 1.0 if is_draining else rng.random()
        if chance < 0.06:
            await self.call("fail", {**lease, "error": "it broke"})
        elif chance < 0.1:
            await self.call("release", lease)
        else:
            await self.call("complete", {**lease, "result": {"by": self.name}})
            if rng.random() < REPEAT_SHARE:
                await self.call("complete", {**lease, "result": {"by": f"{self.name} again"}})
