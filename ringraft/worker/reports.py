"""Handing in: every report in the spool goes to the cluster, oldest first, until it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
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
ANSWERED_RETRY_CAP_S: Final = 60.0
"""How rarely a report that gets nothing but faults is tried: it may be the one that nobody can take."""
ASIDE_AFTER: Final = 5
"""So many answers that are faults, and nobody waits for this report any longer."""
SHOWN_MAX: Final = 20
"""Held reports that the status shows."""
NOBODY: Final = frozenset({"no_leader", "no_quorum", "starting", "shutting_down", "disk_full"})
"""Refusals that say nothing about the report: the cluster takes none now."""
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


@dataclass(frozen=True, slots=True)
class Held:
    """Why a report was not taken, and when it is tried again."""

    not_before_s: float
    error: str
    tries: int = 0
    """Answers that were faults."""
    is_forbidden: bool = False

    @property
    def is_aside(self) -> bool:
        """Nobody waits for it: its credential or the cluster's own fault has to be repaired first."""
        return self.is_forbidden or self.tries >= ASIDE_AFTER


class Reports:
    """The spool with its way to the cluster.

    A report that the cluster answers with a fault waits by itself, longer each time, and the others
    pass it. When nobody can be asked, all wait; the next one to ask with is another one each time, so
    that one on which every node's answer fails holds nothing up either.
    """

    def __init__(self, spool: Spool, cluster: Cluster, clock: Clock, disk: Executor) -> None:
        self._spool = spool
        self._cluster = cluster
        self._clock = clock
        self._disk = disk
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._failures = 0
        self._held: dict[str, Held] = {}
        """Reports that were answered and not taken, by file name."""
        self._unheard: Counter[str] = Counter()
        """How often nobody was there for a report, by file name."""
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

    def held(self) -> list[dict[str, Any]]:
        """The reports that were tried and not taken, the oldest first, at most ``SHOWN_MAX``."""
        now_s = self._clock.monotonic_s()
        return [
            {
                "work_id": spooled.report.work_id,
                "token": spooled.report.token,
                "verb": spooled.report.verb,
                "tries": held.tries,
                "next_try_in_s": round(max(0.0, held.not_before_s - now_s), 3),
                "error": held.error,
            }
            for spooled in self._spool.oldest_first()
            if (held := self._held.get(spooled.path.name)) is not None
        ][:SHOWN_MAX]

    async def run(self) -> None:
        """Hand in for ever."""
        while True:
            self._news.clear()
            await self.hand_in()
            if self._news.is_set():
                continue
            self._idle.set()
            await self._wait_for_news()

    async def idle(self) -> None:
        """Return when there is nothing to hand in; ``run`` must be running."""
        await self._idle.wait()

    async def hand_in(self) -> None:
        """Hand in what is there; returns when each report is answered, or set aside for a repair."""
        while self._awaited():
            for spooled in self._due():
                if not await self._hand_in(spooled):
                    self._failures += 1
                    await asyncio.sleep(min(RETRY_CAP_S, RETRY_BASE_S * 2 ** min(self._failures, 10)))
                    break
                self._failures = 0
            else:
                self._news.clear()
                if self._awaited() and not self._due():
                    await self._wait_for_news()

    def _awaited(self) -> bool:
        """Whether a report is there that may yet be answered soon; those set aside are tried as they fall due."""
        return bool(self._due()) or len(self._spool) > sum(1 for held in self._held.values() if held.is_aside)

    def _due(self) -> list[Spooled]:
        """What to try now: the oldest first, behind those that nobody was there for less often."""
        now_s = self._clock.monotonic_s()
        due = []
        for spooled in self._spool.oldest_first():
            held = self._held.get(spooled.path.name)
            if held is None or held.not_before_s <= now_s:
                due.append(spooled)
        return sorted(due, key=lambda spooled: self._unheard[spooled.path.name])

    async def _wait_for_news(self) -> None:
        """Until a report comes, or a held one is due."""
        wait_s = None
        if self._held:
            wait_s = max(0.0, min(held.not_before_s for held in self._held.values()) - self._clock.monotonic_s())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._news.wait()

    async def _hand_in(self, spooled: Spooled) -> bool:
        """Whether the report is dealt with for now; False when the cluster cannot be asked."""
        report = spooled.report
        try:
            await self._cluster.post(f"/work/{report.verb}", report.request())
        except ApiError as error:
            return await self._refused(spooled, error)
        except ClientError as error:
            return self._nobody_there(spooled, error)
        self.acknowledged += 1
        logger.info(
            "reported action=%s work_id=%s token=%d spooled=%d",
            report.verb, report.work_id, report.token, len(self._spool) - 1,
        )  # fmt: skip
        await self._forget(spooled)
        return True

    async def _refused(self, spooled: Spooled, error: ApiError) -> bool:
        report = spooled.report
        if error.code in NOBODY:
            return self._nobody_there(spooled, error)
        if error.retryable or error.status >= 500 or error.status == 429:
            self._faulted(spooled, error)
            return True
        if error.status in CREDENTIAL:
            # The result is good and only the credential is not: it waits for whoever repairs that.
            until_s = self._clock.monotonic_s() + FORBIDDEN_RETRY_S
            self._held[spooled.path.name] = Held(until_s, str(error), is_forbidden=True)
            logger.error("not allowed to report action=report_forbidden work_id=%s error=%s", report.work_id, error)
            return True
        if error.status in UNFIT and report.verb == "complete":
            logger.error("the result was refused action=result_refused work_id=%s error=%s", report.work_id, error)
            body = {"error": f"the cluster refused the result: {error}"[:2000], "retryable": False}
            await self._replace(spooled, replace(report, verb="fail", body=body))
            return True
        if error.status in UNFIT and len(report.body.get("error", "")) > ERROR_CHARS_SURE:
            body = {**report.body, "error": report.body["error"][:ERROR_CHARS_SURE]}
            await self._replace(spooled, replace(report, body=body))
            return True
        self.refused += 1
        logger.warning(
            "dropped a report that came too late action=report_refused verb=%s work_id=%s token=%d code=%s",
            report.verb, report.work_id, report.token, error.code,
        )  # fmt: skip
        await self._forget(spooled)
        return True

    def _nobody_there(self, spooled: Spooled, error: ClientError) -> bool:
        logger.info("cannot report yet action=report_waits work_id=%s error=%s", spooled.report.work_id, error)
        self._unheard[spooled.path.name] += 1
        return False

    def _faulted(self, spooled: Spooled, error: ApiError) -> None:
        """The cluster answered, and not with a verdict: this report waits, the others pass it."""
        held = self._held.get(spooled.path.name)
        tries = held.tries + 1 if held is not None else 1
        wait_s = min(ANSWERED_RETRY_CAP_S, RETRY_BASE_S * 2 ** min(tries, 10))
        held = self._held[spooled.path.name] = Held(self._clock.monotonic_s() + wait_s, str(error), tries)
        logger.log(
            logging.WARNING if held.is_aside else logging.INFO,
            "a report was not taken action=report_held work_id=%s tries=%d next_try_in_s=%.1f error=%s",
            spooled.report.work_id, tries, wait_s, error,
        )  # fmt: skip

    async def _replace(self, spooled: Spooled, report: Report) -> None:
        self._held.pop(spooled.path.name, None)
        await self.on_disk(self._spool.replace, spooled, report)

    async def _forget(self, spooled: Spooled) -> None:
        self._held.pop(spooled.path.name, None)
        self._unheard.pop(spooled.path.name, None)
        await self.on_disk(self._spool.remove, spooled)
