"""One cluster a file for the tests that harm nothing, and one a test for those that do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three voters that stay up for one file of tests; every test uses work types of its own."""
    cluster = Cluster(tmp_path_factory.mktemp("shared"))
    try:
        yield cluster.start()
    finally:
        cluster.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three voters of the test's own, to kill."""
    cluster = Cluster(tmp_path)
    try:
        yield cluster.start()
    finally:
        cluster.close()
