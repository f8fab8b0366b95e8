"""Clients of a cluster whose disks die: adds and completions, each repeated with its key until answered.

``Ledger`` keeps what was asked and what was acknowledged, and compares it with what a node holds.
Adds name no work_id: a repeat that made a second item would be seen by its number.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ringraft.client import ApiError, Client, ClientError

CALL_S = 6.0
PAUSE_S_MAX = 0.02
CLAIM_ITEMS_MAX = 5
FINAL_REFUSALS = ("stale_token", "already_final", "wrong_state")
"""Answers to a completion after which another's counts."""


@dataclass(slots=True)
class Ledger:
    """What clients know. ``number`` marks one add, whatever id the cluster gave it."""

    added: dict[int, str] = field(default_factory=dict)
    """number: work_id, acknowledged."""
    asked: int = 0
    """Numbers below this were asked for."""
    completed: dict[str, str] = field(default_factory=dict)
    """work_id: result, acknowledged."""
    results: dict[str, set[str]] = field(default_factory=dict)
    """work_id: every result anybody tried to hand in."""
    refusals: list[str] = field(default_factory=list)
    """Answers that no call of these clients may get, such as "there is no such item"."""

    @property
    def acknowledged(self) -> int:
        return len(self.added) + len(self.completed)

    def faults(self, held: Iterable[Mapping[str, Any]]) -> list[str]:
        """What is wrong with these items, which are all that a node holds; empty when nothing is."""
        items = {item["work_id"]: item for item in held}
        wrong = list(self.refusals)
        wrong += [f"acknowledged add {work_id} ({number}) is lost" for number, work_id in self.added.items()
                 if work_id not in items]  # fmt: skip
        numbers = Counter(item["config"]["number"] for item in items.values())
        wrong += [f"add {number} is there {count} times" for number, count in numbers.items() if count > 1]
        wrong += [f"item {number} was never asked for" for number in numbers if not 0 <= number < self.asked]
        wrong += [f"add {number} was acknowledged as {work_id} and is not" for number, work_id in self.added.items()
                  if work_id in items and items[work_id]["config"]["number"] != number]  # fmt: skip
        for work_id, item in items.items():
            wrong += self._completion_faults(work_id, item)
        return wrong

    def _completion_faults(self, work_id: str, item: Mapping[str, Any]) -> list[str]:
        result = (item["result"] or {}).get("by")
        if item["state"] != "COMPLETED":
            return [f"acknowledged completion of {work_id} is lost"] if work_id in self.completed else []
        completions = sum(grant["outcome"] == "completed" for grant in item["history"])
        wrong = [f"{work_id} was completed {completions} times"] if completions != 1 else []
        if result not in self.results.get(work_id, ()):
            wrong.append(f"{work_id} holds result {result}, which nobody handed in")
        if self.completed.get(work_id, result) != result:
            wrong.append(f"{work_id} holds result {result} and {self.completed[work_id]} was acknowledged")
        return wrong


class Load:
    """Some adders and some workers, which may be held still."""

    def __init__(
        self, client: Client, ledger: Ledger, rng: random.Random, *, adders: int = 3, workers: int = 2
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._rng = rng
        self._may_begin = asyncio.Event()
        self._under_way = 0
        self._is_still = asyncio.Event()
        self._tasks = [
            *(asyncio.create_task(self._add_for_ever()) for _ in range(adders)),
            *(asyncio.create_task(self._work_for_ever(f"w{number}")) for number in range(workers)),
        ]

    def go(self) -> None:
        """Let calls begin."""
        self._may_begin.set()

    async def hold(self, within_s: float) -> None:
        """Begin nothing more and wait for what is under way. TimeoutError when it does not end."""
        self._may_begin.clear()
        async with asyncio.timeout(within_s):
            while self._under_way:
                self._is_still.clear()
                await self._is_still.wait()
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """End all clients."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _call(self, path: str, body: Mapping[str, Any], key: str | None = None) -> Any:
        """The answer, after as many tries as it takes; None for a refusal that stays."""
        await self._may_begin.wait()
        self._under_way += 1
        try:
            while True:
                try:
                    return await self._client.post(path, body, key=key, deadline_s=CALL_S)
                except ApiError as error:
                    if not error.retryable:
                        if error.code not in FINAL_REFUSALS:
                            self._ledger.refusals.append(f"{path} {body} was refused: {error}")
                        return None
                except ClientError:
                    pass
                await asyncio.sleep(self._rng.uniform(0, PAUSE_S_MAX))
        finally:
            self._under_way -= 1
            self._is_still.set()

    async def _add_for_ever(self) -> None:
        ledger = self._ledger
        while True:
            number = ledger.asked
            ledger.asked += 1
            padding = "x" * self._rng.choice((0, 10, 1000))
            body = {"work_type": "disk", "max_attempts": 1000, "config": {"number": number, "padding": padding}}
            answer = await self._call("/work/add", body, self._client.new_key())
            if answer is not None:
                ledger.added[number] = answer["work_id"]
            await asyncio.sleep(self._rng.uniform(0, PAUSE_S_MAX))

    async def _work_for_ever(self, name: str) -> None:
        while True:
            claim = {"node_id": name, "max_items": self._rng.randint(1, CLAIM_ITEMS_MAX), "lease_s": 5}
            answer = await self._call("/work/claim", claim, self._client.new_key())
            for item in answer["items"] if answer is not None else ():
                await self._complete(item["work_id"], item["lease"]["token"])
            await asyncio.sleep(self._rng.uniform(0, PAUSE_S_MAX))

    async def _complete(self, work_id: str, token: int) -> None:
        result = f"{token}"
        self._ledger.results.setdefault(work_id, set()).add(result)
        body = {"work_id": work_id, "token": token, "result": {"by": result}}
        if await self._call("/work/complete", body) is not None:
            self._ledger.completed[work_id] = result
