"""The library this is built on: the version that was studied, and no pickle."""

import pickle
from pathlib import Path

import pysyncobj.journal
import pysyncobj.pickle
import pysyncobj.serializer
import pysyncobj.syncobj
import pytest

import ringraft.consensus.replog as replog
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.replog.library import STUDIED_SOURCE, installed_source
from tests.consensus.raft_kit import cluster, run


def test_the_installed_library_is_the_one_that_was_studied() -> None:
    assert installed_source() == STUDIED_SOURCE, (
        "pysyncobj/syncobj.py is not the source of version 0.3.17 whose private methods replog/syncobj.py replaces. "
        "Install pysyncobj==0.3.17, or compare every replaced method with the new source and then change STUDIED_SOURCE"
    )


def test_every_replaced_method_exists_in_the_library() -> None:
    source = Path(replog.__file__).with_name("syncobj.py").read_text()
    names = {line.split("(")[0].split("def ")[1] for line in source.splitlines() if "def _SyncObj__" in line}
    assert names, "the private methods are replaced under their mangled names"
    assert [name for name in sorted(names) if not hasattr(pysyncobj.syncobj.SyncObj, name)] == []


def test_a_whole_failover_with_snapshots_runs_without_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("pickle was called")

    for module in (pickle, pysyncobj.pickle):
        for name in ("loads", "dumps", "load", "dump"):
            monkeypatch.setattr(module, name, never)
    monkeypatch.setattr(pysyncobj.journal, "loads", never)
    monkeypatch.setattr(pysyncobj.journal, "dumps", never)

    async def scenario() -> None:
        async with cluster(3, config=RaftConfig(snapshot_entries=30)) as c:
            for number in range(100):
                await c.write(f"w{number}")
            victim = await c.leader()
            c.kill(victim)
            for number in range(100, 200):
                await c.write(f"w{number}")
            await c.start(victim)
            assert await c.converged() == [f"w{number}" for number in range(200)]

    run(scenario())


def test_the_library_reaches_plain_values_where_it_expects_pickle() -> None:
    assert pysyncobj.syncobj.pickle is pysyncobj.serializer.pickle
    assert pysyncobj.syncobj.pickle is not pysyncobj.pickle
