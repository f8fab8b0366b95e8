"""One grant from claim to report."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Any, Final

from ringraft.client import ApiError, ClientError
from ringraft.worker.executors import Executor
from ringraft.worker.logs import ItemLog, Logs
from ringraft.worker.process import Finished, ItemProcess
from ringraft.worker.reports import Cluster, Reports

logger = logging.getLogger(__name__)

START_RETRY_S: Final = 0.5


class Run:
    """An item that this node holds: its process and why it was stopped, if it was."""

    def __init__(
        self, item: dict[str, Any], executor: Executor | None, directory: Path, output_dir: Path, since_s: float
    ) -> None:
        self.work_id: str = item["work_id"]
        self.token: int = item["lease"]["token"]
        self.directory = directory
        self.progress: Any = None
        self.task: asyncio.Task[None] | None = None
        self._item = item
        self._executor = executor
        self._output_dir = output_dir
        self._since_s = since_s
        self._process: ItemProcess | None = None
        self._stopped: str | None = None
        self._release = False
        self._ending = False

    def status(self, now_s: float) -> dict[str, Any]:
        """As the worker's status shows it."""
        return {
            "work_id": self.work_id,
            "work_type": self._item["work_type"],
            "token": self.token,
            "pid": self._process.pid if self._process else None,
            "since_s": round(now_s - self._since_s, 3),
            "progress": self.progress,
        }

    def stop(self, reason: str, *, release: bool = False) -> None:
        """End the process now. With ``release`` the item is handed back, else there is nothing to report."""
        if self._stopped is not None:
            return
        self._stopped = reason
        self._release = release
        logger.warning("stopped a run action=run_stopped work_id=%s token=%d why=%s", self.work_id, self.token, reason)
        if self._process is not None:
            self._process.kill()

    def ask_to_end(self) -> None:
        """Let the process end by itself, at a point it chooses; what it has not finished is released."""
        self._ending = True
        if self._process is not None:
            self._process.terminate()

    async def run(self, cluster: Cluster, reports: Reports, logs: Logs) -> None:
        """Start, run and spool the ending. Cancelling it ends the process."""
        fault = self._fault()
        if fault is not None:
            logger.warning("cannot run an item action=bad_item work_id=%s error=%s", self.work_id, fault)
            await reports.put("fail", self.work_id, self.token, {"error": fault, "retryable": False})
            return
        if not await self._start(cluster):
            if self._release:
                await reports.put("release", self.work_id, self.token, {})
            return
        with await reports.on_disk(logs.open, self.work_id, self.token) as log:
            verb, body = await self._execute(log)
        if verb is not None:
            await reports.put(verb, self.work_id, self.token, body)
        # Only now: until the report is durable, the result lies in this directory.
        await reports.on_disk(lambda: shutil.rmtree(self.directory, ignore_errors=True))

    def _fault(self) -> str | None:
        if self._executor is None:
            return f"this worker has no executor for work_type {self._item['work_type']!r}"
        return self._executor.fault(self._item.get("config") or {})

    async def _start(self, cluster: Cluster) -> bool:
        """Tell the cluster that the item runs; False when it is not ours any more, or nobody answers."""
        while self._stopped is None and not self._ending:
            try:
                await cluster.post("/work/start", {"work_id": self.work_id, "token": self.token})
            except ApiError as error:
                if not error.retryable and error.status < 500:
                    logger.warning("the grant is gone action=start_refused work_id=%s error=%s", self.work_id, error)
                    return False
            except ClientError as error:
                # The renewals tell whether the lease still stands; they stop this run if not.
                logger.info("cannot start yet action=start_waits work_id=%s error=%s", self.work_id, error)
            else:
                return True
            await asyncio.sleep(START_RETRY_S)
        self._release = self._release or self._ending
        return False

    async def _execute(self, log: ItemLog) -> tuple[str | None, dict[str, Any]]:
        """Run the process to its end; the verb to report with, or None, and its body."""
        if self._stopped is not None:
            return ("release", {}) if self._release else (None, {})
        assert self._executor is not None
        try:
            process = await ItemProcess.spawn(self._executor, self._item, self.directory, self._output_dir, log)
        except OSError as error:
            logger.error("cannot start a process action=spawn_failed work_id=%s error=%s", self.work_id, error)
            return "fail", {"error": f"cannot start the executor: {error}", "retryable": True}
        self._process = process
        try:
            if self._stopped is not None:
                process.kill()  # stopped while it was being started
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            raise
        self._process = None  # its number may soon be another's
        ending = process.ending(code)
        logger.info("ended action=run_ended work_id=%s token=%d code=%d", self.work_id, self.token, code)
        if isinstance(ending, Finished) and code == 0 and (self._stopped is None or self._release):
            body = {"result": ending.result, "artifacts": ending.artifacts}
            return "complete", {name: value for name, value in body.items() if value is not None}
        if self._stopped is not None or self._ending:
            return ("release", {}) if self._release or self._ending else (None, {})
        assert not isinstance(ending, Finished)
        return "fail", {"error": ending.error, "retryable": ending.retryable}
