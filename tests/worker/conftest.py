"""A worker on a fake cluster, stopped at the end whatever happened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ringraft.clock import Clock
from ringraft.worker.runtime import Worker
from tests.worker.cluster import FakeCluster
from tests.worker.kit import WORKLOADS, Config, Start


@pytest.fixture
async def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
async def make(tmp_path: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Makes workers on ``cluster``; all are stopped at the end."""
    made: list[Worker] = []

    def make_one(
        config: Config | None = None, *, incarnation: int | Callable[[], int] = 1, clock: Clock | None = None
    ) -> Worker:
        worker = Worker(
            node_id="w1",
            incarnation=incarnation,
            data_dir=tmp_path / "data",
            client=cluster,
            config=config or Config(WORKLOADS),
            poll_s=0.05,
            clock=clock,
        )
        made.append(worker)
        return worker

    yield make_one
    for worker in made:
        if worker.status()["phase"] != "stopped":
            cluster.away = True
            monkeypatch.setattr("ringraft.worker.runtime.LAST_WORDS_S", 0.1)
            await worker.stop(drain_s=0)
