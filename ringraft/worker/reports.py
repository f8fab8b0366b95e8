"""Handing in: every report in the spool goes to the cluster, oldest first, until it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from ringraft.client import ApiError, ClientError
from ringraft.clock import Clock
from ringraft.worker.spool import Report, Spool, Spooled

logger = logging.getLogger(__name__)

RETRY_BASE_S: Final = 0.1
RETRY_CAP_S: Final = 5.0
DISK_RETRY_S: Final = 5.0
"""How soon a report that the disk did not take is tried again."""
FORBIDDEN_RETRY_S: Final = 60.0
CREDENTIAL: Final = frozenset({401, 403})
UNFIT: Final = frozenset({400, 413, 422})
"""The cluster does not take this result as it is: repeating it, or the run, would change nothing."""
ERROR_CHARS_SURE: Final = 64
"""An error text that any cluster takes: the least that ``queue.error_chars_max`` may be."""
T = TypeVar("T")


class Cluster(Protocol):
    """What reporting and claiming need of ``ringraft.client.Client``."""

    async def post(self, path: str, body: Any = None, **options: Any) -> Any: ...

    async def get(self, path: str, **options: Any) -> Any: ...


class Reports:
    """The spool with its way to the cluster."""

    def __init__(self, spool: Spool, cluster: Cluster, clock: Clock, disk: Executor) -> None:
        self._spool = spool
        self._cluster = cluster
        self._clock = clock
        self._disk = disk
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._failures = 0
        self._not_before_s: dict[str, float] = {}
        """Reports that the credential does not allow, by file name: when to try them again."""
        self.acknowledged = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._spool)

    def __contains__(self, grant: tuple[str, int]) -> bool:
        """Whether the end of the grant (work_id, token) waits to be handed in."""
        return grant in self._spool

    async def on_disk(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what touches the disk in the one thread kept for it."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    async def put(self, verb: str, work_id: str, token: int, body: dict[str, Any]) -> None:
        """Keep a report; returns once it is durable, however long the disk is full."""
        report = Report(verb, work_id, token, body, self._clock.wall_ms())
        while True:
            try:
                await self.on_disk(self._spool.put, report)
                break
            except OSError as error:
                logger.error("cannot keep a report action=spool_failed work_id=%s error=%s", work_id, error)
                await asyncio.sleep(DISK_RETRY_S)
        self._idle.clear()
        self._news.set()

    async def run(self) -> None:
        """Hand in for ever."""
        while True:
            self._news.clear()
            await self.hand_in()
            if self._news.is_set():
                continue
            self._idle.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FORBIDDEN_RETRY_S if len(self._spool) else None):
                    await self._news.wait()

    async def idle(self) -> None:
        """Return when there is nothing to hand in; ``run`` must be running."""
        await self._idle.wait()

    async def hand_in(self) -> None:
        """Hand in what is there; returns when each report is answered, or put off for its credential."""
        while due := self._due():
            for spooled in due:
                if not await self._hand_in(spooled):
                    self._failures += 1
                    await asyncio.sleep(min(RETRY_CAP_S, RETRY_BASE_S * 2 ** min(self._failures, 10)))
                    break
                self._failures = 0

    def _due(self) -> list[Spooled]:
        now_s = self._clock.monotonic_s()
        return [s for s in self._spool.oldest_first() if self._not_before_s.get(s.path.name, now_s) <= now_s]

    async def _hand_in(self, spooled: Spooled) -> bool:
        """Whether the report is dealt with for now; False when the cluster cannot be asked."""
        report = spooled.report
        try:
            await self._cluster.post(f"/work/{report.verb}", report.request())
        except ApiError as error:
            return await self._refused(spooled, error)
        except ClientError as error:
            logger.info("cannot report yet action=report_waits work_id=%s error=%s", report.work_id, error)
            return False
        self.acknowledged += 1
        logger.info(
            "reported action=%s work_id=%s token=%d spooled=%d",
            report.verb, report.work_id, report.token, len(self._spool) - 1,
        )  # fmt: skip
        await self._forget(spooled)
        return True

    async def _refused(self, spooled: Spooled, error: ApiError) -> bool:
        report = spooled.report
        if error.retryable or error.status >= 500 or error.status == 429:
            logger.info("cannot report yet action=report_waits work_id=%s error=%s", report.work_id, error)
            return False
        if error.status in CREDENTIAL:
            # The result is good and only the credential is not: it waits for whoever repairs that.
            self._not_before_s[spooled.path.name] = self._clock.monotonic_s() + FORBIDDEN_RETRY_S
            logger.error("not allowed to report action=report_forbidden work_id=%s error=%s", report.work_id, error)
            return True
        if error.status in UNFIT and report.verb == "complete":
            logger.error("the result was refused action=result_refused work_id=%s error=%s", report.work_id, error)
            body = {"error": f"the cluster refused the result: {error}"[:2000], "retryable": False}
            await self.on_disk(self._spool.replace, spooled, replace(report, verb="fail", body=body))
            return True
        if error.status in UNFIT and len(report.body.get("error", "")) > ERROR_CHARS_SURE:
            body = {**report.body, "error": report.body["error"][:ERROR_CHARS_SURE]}
            await self.on_disk(self._spool.replace, spooled, replace(report, body=body))
            return True
        self.refused += 1
        logger.warning(
            "dropped a report that came too late action=report_refused verb=%s work_id=%s token=%d code=%s",
            report.verb, report.work_id, report.token, error.code,
        )  # fmt: skip
        await self._forget(spooled)
        return True

    async def _forget(self, spooled: Spooled) -> None:
        self._not_before_s.pop(spooled.path.name, None)
        await self.on_disk(self._spool.remove, spooled)
