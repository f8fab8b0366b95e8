"""Reading work items through a client: by a shortened id, page by page, until they are final."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from ringraft.cli.exits import CommandFailed, ExitCode
from ringraft.client import ApiError

Item = dict[str, Any]

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
PAGE_MAX = 1000
"""Items in one page, by the REST contract."""
LONG_POLL_S = 20.0
"""How long a node is asked to hold back the answer to "tell me when it is final"."""
POLL_S = 0.5
"""How often changes short of the end are looked for."""


class Reader(Protocol):
    """What is needed of ``ringraft.client.Client``."""

    async def get(self, path: str, **options: Any) -> Any: ...

    async def post(self, path: str, body: Any = None, **options: Any) -> Any: ...


async def read(client: Reader, work_id: str) -> Item:
    """The item with this id, or the only one among the first thousand whose id starts so."""
    try:
        item: Item = await client.get(f"/work/item/{work_id}")
        return item
    except ApiError as error:
        if error.code != "not_found":
            raise
        page = await client.get("/work/items", params={"limit": PAGE_MAX})
        found: list[Item] = [item for item in page["items"] if item["work_id"].lower().startswith(work_id.lower())]
        if len(found) > 1:
            some = ", ".join(item["work_id"] for item in found[:5])
            raise CommandFailed(ExitCode.USAGE, f"{work_id} could be {len(found)} items: {some}…") from None
        if not found:
            raise
        return found[0]


async def listed(client: Reader, params: Mapping[str, Any], limit: int | None) -> AsyncIterator[Item]:
    """Items page by page, at most ``limit``."""
    cursor: str | None = None
    left = limit
    while left is None or left > 0:
        page_params = {**params, "limit": PAGE_MAX if left is None else min(PAGE_MAX, left)}
        if cursor is not None:
            page_params["cursor"] = cursor
        page = await client.get("/work/items", params=page_params)
        for item in page["items"]:
            yield item
        left = None if left is None else left - len(page["items"])
        cursor = page.get("next_cursor")
        if cursor is None:
            return


async def wait_final(client: Reader, work_id: str) -> Item:
    """The item once it is final; waits for as long as that takes."""
    while True:
        item: Item = await client.get(
            f"/work/item/{work_id}", params={"wait_s": f"{LONG_POLL_S:g}"}, wait_s=LONG_POLL_S
        )
        if item["state"] in FINAL:
            return item


async def changes(client: Reader, work_ids: Iterable[str]) -> AsyncIterator[Item]:
    """Each item as it is now and whenever its state, holder or progress changes, until all are final."""
    seen: dict[str, tuple[Any, ...]] = {}
    open_ids = list(work_ids)
    while open_ids:
        for work_id in list(open_ids):
            item: Item = await client.get(f"/work/item/{work_id}")
            mark = (item["state"], (item.get("lease") or {}).get("node_id"), item.get("progress"), item["attempt"])
            if seen.get(work_id) != mark:
                seen[work_id] = mark
                yield item
            if item["state"] in FINAL:
                open_ids.remove(work_id)
        if open_ids:
            await asyncio.sleep(POLL_S)


async def log(client: Reader, work_id: str) -> str:
    """The tail of the latest attempt's output."""
    text = await client.get(f"/work/item/{work_id}/log")
    return text if isinstance(text, str) else str(text.get("log", ""))


async def log_parts(client: Reader, work_id: str, *, follow: bool) -> AsyncIterator[str]:
    """The output so far, then, with ``follow``, what is added until the item is final."""
    shown = ""
    while True:
        item: Item = await client.get(f"/work/item/{work_id}")
        text = await log(client, work_id)
        yield text.removeprefix(shown) if text.startswith(shown) else text
        shown = text
        if not follow or item["state"] in FINAL:
            return
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def within(seconds: float | None) -> AsyncIterator[None]:
    """Give up after ``seconds`` with the exit code for it; None waits for ever."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise CommandFailed(ExitCode.UNKNOWN, f"not final within {seconds:g} s") from None


def verdict(found: Iterable[Item]) -> ExitCode:
    """0 when all are COMPLETED, else 3."""
    return ExitCode.OK if all(item["state"] == "COMPLETED" for item in found) else ExitCode.WORK_FAILED
