"""The worker: claims what it has slots for, runs it, keeps the leases, reports the endings.

Order at start: end what an older self left running; hand in the spool, because the cluster takes
those results only while the older self's leases still stand; then register this incarnation, which
frees them; then claim.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol

import ringraft
from ringraft.client import ApiError, ClientError
from ringraft.clock import Clock, SystemClock
from ringraft.worker import resources
from ringraft.worker.executors import Executors
from ringraft.worker.logs import Logs
from ringraft.worker.process import clear_leftovers, read_progress
from ringraft.worker.reports import UNFIT, Cluster, Reports
from ringraft.worker.run import Run
from ringraft.worker.spool import REPORTS_MAX, Spool

logger = logging.getLogger(__name__)

CLAIM_WAIT_S: Final = 20.0
"""How long the cluster may hold an empty claim back."""
CLAIM_ITEMS_MAX: Final = 100
RENEWALS_PER_LEASE: Final = 3
"""Two renewals in a row may fail before a lease is in danger."""
RENEW_TIMEOUT_MIN_S: Final = 1.0
KILL_AFTER_S: Final = 2.0
"""The part of ``drain_s`` between asking executors to end and ending them, if it is long enough."""
LAST_WORDS_S: Final = 3.0
"""How long a stopping worker still tries to reach the cluster; the spool keeps the rest."""


class WorkerConfig(Protocol):
    """The section ``worker`` of the settings."""

    @property
    def slots(self) -> int | None: ...
    @property
    def lease_s(self) -> float: ...
    @property
    def orphan_s(self) -> float: ...
    @property
    def drain_s(self) -> float: ...
    @property
    def work_types(self) -> tuple[str, ...] | None: ...
    @property
    def capabilities(self) -> Mapping[str, Any]: ...
    @property
    def executors(self) -> Mapping[str, Mapping[str, Any]]: ...


class Worker:
    """One node's worker. ``start`` returns at once; ``stop`` drains. Raises ExecutorError when made.

    ``incarnation`` may be a function: a node whose directory was lost learns only from the cluster
    that a higher number is in use, and registering is tried until the number is high enough.
    """

    def __init__(
        self,
        *,
        node_id: str,
        incarnation: int | Callable[[], int],
        data_dir: Path,
        client: Cluster,
        config: WorkerConfig,
        addresses: tuple[str, ...] = (),
        poll_s: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self._node_id = node_id
        self._incarnation = incarnation if callable(incarnation) else lambda: incarnation
        self._client = client
        self._config = config
        self._addresses = addresses
        self._poll_s = poll_s
        self._clock = clock or SystemClock()
        self._slots = config.slots or resources.default_slots()
        self._executors = Executors.load(config.executors, config.work_types)
        data_dir = data_dir.absolute()
        self._output_dir = data_dir / "output"
        self._runs_dir = data_dir / "runs"
        self._runs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._logs = Logs(data_dir / "work-logs")
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="worker-disk")
        self._reports = Reports(Spool(data_dir / "spool" / "results"), client, self._clock, self._disk)
        self._capabilities: dict[str, Any] = {}
        self._runs: dict[int, Run] = {}
        """What runs here, by token."""
        self._slot_free = asyncio.Event()
        self._slot_free.set()
        self._task: asyncio.Task[None] | None = None
        self._claiming: asyncio.Task[None] | None = None
        """Set once this incarnation is registered."""
        self._phase = "new"
        self._heard_s = self._clock.monotonic_s()
        self._claimed = 0

    async def start(self) -> None:
        """Begin to work, in a task of its own. ``wait`` says when it broke."""
        for work_type, why in self._executors.missing.items():
            logger.warning("%s is not offered: %s action=not_offered work_type=%s", work_type, why, work_type)
        self._task = asyncio.create_task(self._work(), name="worker")

    async def wait(self) -> None:
        """Return when the worker was stopped; raise what ended it otherwise."""
        assert self._task is not None, "start comes first"
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()

    async def stop(self, *, drain_s: float | None = None) -> None:
        """Stop claiming, let executors end within ``drain_s``, release the rest, say so to the cluster."""
        self._phase = "draining"
        drain_s = self._config.drain_s if drain_s is None else drain_s
        logger.info("draining action=drain running=%d drain_s=%g", len(self._runs), drain_s)
        if self._claiming is not None:
            self._claiming.cancel()
            await asyncio.gather(self._claiming, return_exceptions=True)
            await self._end_runs(drain_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._release_unknown()
                    await self._reports.idle()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._disk.shutdown()
        self._phase = "stopped"
        logger.info("stopped action=worker_stopped spooled=%d", len(self._reports))

    def log_path(self, work_id: str) -> Path | None:
        """The output of the latest attempt of an item that ran here."""
        return self._logs.path(work_id)

    def status(self) -> dict[str, Any]:
        """What ``/status`` of this node says about its work."""
        now_s = self._clock.monotonic_s()
        return {
            "phase": self._phase,
            "slots": self._slots,
            "running": [run.status(now_s) for run in self._runs.values()],
            "claimed": self._claimed,
            "acknowledged": self._reports.acknowledged,
            "refused": self._reports.refused,
            "spooled": len(self._reports),
            "held_reports": self._reports.held(),
            "work_types": sorted(self._executors.offered),
            "missing": dict(self._executors.missing),
            "capabilities": self._capabilities,
            "last_contact_s": round(now_s - self._heard_s, 3),
        }

    async def _work(self) -> None:
        await self._clear_leftovers()
        self._phase = "handing_in"
        await self._reports.hand_in()
        self._phase = "registering"
        await self._register()
        self._phase = "working"
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reports.run(), name="reports")
            group.create_task(self._renew_for_ever(), name="renew")
            self._claiming = group.create_task(self._claim_for_ever(), name="claim")

    async def _clear_leftovers(self) -> None:
        for leftover in await self._reports.on_disk(clear_leftovers, self._runs_dir):
            body = {"result": leftover.finished.result, "artifacts": leftover.finished.artifacts}
            await self._reports.put("complete", leftover.work_id, leftover.token, body)
            await self._reports.on_disk(shutil.rmtree, leftover.directory)

    async def _register(self) -> None:
        """Present this incarnation, however long that takes."""
        self._capabilities = await self._reports.on_disk(resources.capabilities, self._config.capabilities)
        while True:
            body = {
                "node_id": self._node_id,
                "incarnation": self._incarnation(),
                "roles": ["worker"],
                "work_types": sorted(self._executors.offered),
                "capabilities": self._capabilities,
                "addresses": list(self._addresses),
                "version": ringraft.__version__,
            }
            try:
                answer = await self._client.post("/nodes/register", body)
                break
            except ClientError as error:
                logger.warning("cannot register yet action=register_waits error=%s", error)
                await asyncio.sleep(self._poll_s)
        self._heard_s = self._clock.monotonic_s()
        freed = answer.get("freed") if isinstance(answer, dict) else None
        logger.info("registered action=registered incarnation=%d freed=%s", body["incarnation"], freed)

    async def _claim_for_ever(self) -> None:
        if not self._executors.offered:
            logger.error("nothing to run here: no executor is available action=nothing_offered")
            return
        while self._phase == "working":
            await self._slot_free.wait()
            self._slot_free.clear()
            free = min(self._slots - len(self._runs), CLAIM_ITEMS_MAX)
            if len(self._reports) + len(self._runs) + free > REPORTS_MAX:
                logger.error("the spool is full: nothing is claimed action=spool_full spooled=%d", len(self._reports))
                await asyncio.sleep(self._poll_s)
                self._slot_free.set()
            elif free > 0:
                for item in await self._claim(free):
                    self._begin(item)
                self._slot_free.set()

    async def _claim(self, free: int) -> list[dict[str, Any]]:
        """Items granted to this node; empty when there are none for a while."""
        body = {
            "node_id": self._node_id,
            "work_types": sorted(self._executors.offered),
            "max_items": free,
            "lease_s": self._config.lease_s,
            "wait_s": CLAIM_WAIT_S,
        }
        key = f"{self._node_id}-{self._incarnation()}-{self._clock.wall_ms()}-{self._claimed}"
        while True:
            asked_s = self._clock.monotonic_s()
            started_s = asyncio.get_running_loop().time()
            try:
                answer = await self._client.post("/work/claim", body, key=key, wait_s=CLAIM_WAIT_S)
            except ClientError as error:
                logger.warning("cannot claim yet action=claim_failed error=%s", error)
                await asyncio.sleep(self._poll_s)
                if error.outcome == "unknown":
                    continue  # it may have been granted: only the same key tells
                return []
            self._heard_s = asked_s
            items: list[dict[str, Any]] = answer["items"]
            if not items and asyncio.get_running_loop().time() - started_s < CLAIM_WAIT_S / 2:
                await asyncio.sleep(self._poll_s)  # the long poll was cut
            self._claimed += len(items)
            return items

    def _begin(self, item: dict[str, Any]) -> None:
        """Run an item in a task of its own."""
        token = item["lease"]["token"]
        directory = self._runs_dir / f"{item['work_id']}.{token}"
        executor = self._executors.offered.get(item["work_type"])
        run = Run(item, executor, directory, self._output_dir / item["work_type"], self._clock.monotonic_s())
        self._runs[token] = run
        logger.info("claimed action=claimed work_id=%s token=%d type=%s", run.work_id, token, item["work_type"])
        run.task = asyncio.create_task(run.run(self._client, self._reports, self._logs), name=f"run-{run.work_id}")
        run.task.add_done_callback(lambda task: self._ended(token, task))

    def _ended(self, token: int, task: asyncio.Task[None]) -> None:
        run = self._runs.pop(token)
        self._slot_free.set()
        if not task.cancelled() and task.exception() is not None:
            logger.error("a run broke action=run_broke work_id=%s", run.work_id, exc_info=task.exception())

    async def _renew_for_ever(self) -> None:
        interval_s = self._config.lease_s / RENEWALS_PER_LEASE
        while True:
            await asyncio.sleep(interval_s)
            if self._runs:
                await self._renew(max(RENEW_TIMEOUT_MIN_S, interval_s))

    async def _renew(self, timeout_s: float) -> None:
        """Extend every lease held, report progress, and stop what the cluster says is not ours."""
        runs = dict(self._runs)
        leases = await self._reports.on_disk(_leases, list(runs.values()))
        asked_s = self._clock.monotonic_s()
        try:
            verdicts = await self._ask_to_renew(leases, timeout_s)
        except ClientError as error:
            self._cut_off(error)
            return
        self._heard_s = asked_s
        for lease, verdict in zip(leases, verdicts, strict=True):
            run = runs[lease["token"]]
            if verdict["ok"]:
                if verdict.get("cancel"):
                    run.stop("cancelled")
            elif verdict.get("code") != "too_large":
                run.stop(f"lease_gone:{verdict.get('code')}")

    async def _ask_to_renew(self, leases: list[dict[str, Any]], timeout_s: float) -> list[dict[str, Any]]:
        """The cluster's word on each lease. Progress that it does not take must not cost the leases."""
        body = {"node_id": self._node_id, "leases": leases}
        try:
            answer = await self._client.post("/work/renew", body, deadline_s=timeout_s)
        except ApiError as error:
            if error.status not in UNFIT or not any("progress" in lease for lease in leases):
                raise
            logger.warning("progress was refused action=progress_refused error=%s", error)
            bare = [{"work_id": lease["work_id"], "token": lease["token"]} for lease in leases]
            answer = await self._client.post(
                "/work/renew", {"node_id": self._node_id, "leases": bare}, deadline_s=timeout_s
            )
        verdicts: list[dict[str, Any]] = answer["leases"]
        return verdicts

    def _cut_off(self, error: ClientError) -> None:
        """Nobody could be asked: run on, for a time, in the hope that the results will still count."""
        silent_s = self._clock.monotonic_s() - self._heard_s
        logger.warning(
            "cannot renew action=renew_failed running=%d silent_s=%.1f error=%s", len(self._runs), silent_s, error
        )
        if isinstance(error, ApiError) and error.status in (401, 403):
            self._heard_s = self._clock.monotonic_s()  # asked and answered: the cluster is there
            return
        if silent_s > self._config.orphan_s:
            for run in self._runs.values():
                run.stop("orphaned", release=True)

    async def _end_runs(self, drain_s: float) -> None:
        """Wait for executors, ask them to end, end them; what is unfinished is released."""
        grace_s = min(KILL_AFTER_S, drain_s / 2)
        tasks = {run.task for run in self._runs.values() if run.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=drain_s - grace_s)
        for run in self._runs.values():
            run.ask_to_end()
        tasks = {task for task in tasks if not task.done()}
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        for run in self._runs.values():
            run.stop("drained", release=True)
        tasks = {task for task in tasks if not task.done()}
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_WORDS_S)

    async def _release_unknown(self) -> None:
        """A claim cut short by the stop may have been granted: hand back what was never begun."""
        try:
            held = await self._client.get(f"/work/for-node/{self._node_id}", deadline_s=LAST_WORDS_S)
        except ClientError as error:
            logger.info("cannot ask for leases held action=release_unknown_failed error=%s", error)
            return
        for item in held["work_items"]:
            grant = (item["work_id"], item["lease"]["token"])
            if item["state"] == "ASSIGNED" and grant not in self._reports:
                await self._reports.put("release", *grant, {})


def _leases(runs: list[Run]) -> list[dict[str, Any]]:
    """The body of a renewal; reads the progress files."""
    leases = []
    for run in runs:
        lease: dict[str, Any] = {"work_id": run.work_id, "token": run.token}
        progress = read_progress(run.directory)
        if progress is not None and progress != run.progress:
            lease["progress"] = run.progress = progress
        leases.append(lease)
    return leases
