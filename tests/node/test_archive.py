"""The archive and its backlog."""

import json
import sqlite3

import msgpack
import pytest

from ringraft.node.archive import Archive, ArchiveDamaged, BadCursor
from ringraft.node.backlog import Backlog
from ringraft.node.sealed import seal, unseal
from ringraft.state.codec import CodecError
from ringraft.state.commands import Add, Claim, Complete
from ringraft.state.machine import StateMachine
from ringraft.state.model import Command, Entry, Epoch, NewItem
from tests.node.fakes import FakeMachine, sealed


def item(work_id, second=0, **fields):
    return sealed(
        {
            "work_id": work_id,
            "work_type": "selfplay",
            "state": "COMPLETED",
            "group": None,
            "finished_at": f"2026-01-01T00:00:{second:02d}.000Z",
            "history": [{"node_id": "w1"}],
            **fields,
        }
    )


@pytest.fixture
async def archive(tmp_path):
    archive = Archive(tmp_path / "state.db", unseal=json.loads)
    await archive.open()
    yield archive
    await archive.close()


async def test_an_archived_item_is_found_whatever_the_case_of_its_id(archive):
    await archive.store([item("Game-1")], [], 5)
    assert (await archive.item("game-1"))["work_id"] == "Game-1"
    assert await archive.item("game-2") is None
    assert await archive.count() == 1


async def test_the_archive_survives_its_process(tmp_path):
    first = Archive(tmp_path / "state.db", unseal=json.loads)
    await first.open()
    await first.store([item("a")], [], 7)
    await first.close()
    second = Archive(tmp_path / "state.db", unseal=json.loads)
    await second.open()
    assert second.archived_index == 7
    assert await second.item("a") is not None
    await second.close()


async def test_history_pages_from_the_newest_end_to_the_oldest(archive):
    await archive.store([item(f"i{n}", n) for n in range(25)], [], 1)
    seen, cursor = [], None
    while True:
        page, cursor = await archive.history(limit=10, cursor=cursor)
        seen += [each["work_id"] for each in page]
        if cursor is None:
            break
    assert seen == [f"i{n}" for n in reversed(range(25))]


async def test_history_is_filtered(archive):
    await archive.store([item("a", group="g", state="FAILED"), item("b", work_type="training")], [], 1)
    assert [i["work_id"] for i in (await archive.history(group="g"))[0]] == ["a"]
    assert [i["work_id"] for i in (await archive.history(work_type="training"))[0]] == ["b"]
    assert [i["work_id"] for i in (await archive.history(state="FAILED", node_id="w1"))[0]] == ["a"]
    assert (await archive.history(node_id="w2"))[0] == []
    assert (await archive.history(state="' OR 1=1 --"))[0] == []


async def test_a_cursor_of_somebody_else_is_refused(archive):
    with pytest.raises(BadCursor):
        await archive.history(cursor="nonsense")


async def test_a_file_that_is_no_database_is_refused_by_name(tmp_path):
    (tmp_path / "state.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(ArchiveDamaged, match=r"state\.db"):
        await Archive(tmp_path / "state.db", unseal=json.loads).open()


async def test_a_file_of_a_later_version_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(ArchiveDamaged, match="schema 99"):
        await Archive(tmp_path / "state.db", unseal=json.loads).open()


def backlog_of(shelf, machine, **options):
    return Backlog(shelf, state=lambda: machine, find=machine.record, seal=lambda one: sealed(one.fields), **options)


def machine_of(index, **states):
    machine = FakeMachine()
    machine.index, machine.states = index, states
    return machine


async def test_the_backlog_archives_what_became_final(archive):
    machine = machine_of(9, a="COMPLETED", b="COMPLETED", c="PENDING")
    backlog = backlog_of(archive, machine)
    backlog.finished(3, "a")
    backlog.finished(9, "b")
    assert await backlog.drain(5)
    assert archive.archived_index == 9
    assert await archive.item("a") is not None
    assert await archive.item("c") is None


async def test_a_reopened_item_leaves_the_archive(archive):
    machine = machine_of(4, a="PENDING")
    await archive.store([item("a")], [], 3)
    backlog = backlog_of(archive, machine)
    backlog.reopened(4, "a")
    assert await backlog.drain(5)
    assert await archive.item("a") is None


async def test_a_replayed_log_archives_nothing_twice(archive):
    await archive.store([item("a")], [], 100)
    backlog = backlog_of(archive, machine_of(100))
    backlog.finished(50, "a")
    assert len(backlog) == 0


async def test_an_installed_image_is_searched_for_what_is_not_archived(archive):
    states = {f"i{n:04}": "COMPLETED" for n in range(250)} | {"f": "FAILED", "p": "PENDING"}
    machine = machine_of(500, **states)
    backlog = backlog_of(archive, machine)
    backlog.rescan(500)
    machine.states["late"] = "COMPLETED"
    machine.index = 501
    backlog.finished(501, "late")
    assert archive.archived_index == 0
    assert await backlog.drain(10)
    assert await archive.count() == 252
    assert archive.archived_index == 501


async def test_an_image_that_is_archived_already_is_not_searched(archive):
    await archive.store([], [], 500)
    backlog = backlog_of(archive, machine_of(400, a="COMPLETED"))
    backlog.rescan(400)
    assert not backlog.is_scanning


async def test_a_backlog_that_overflows_finds_everything_again(archive):
    machine = machine_of(1, **{f"i{n:04}": "COMPLETED" for n in range(300)})
    backlog = backlog_of(archive, machine, pending_max=50)
    for n in range(300):
        machine.index = n + 1
        backlog.finished(n + 1, f"i{n:04}")
        assert len(backlog) <= 50
    assert await backlog.drain(10)
    assert await archive.count() == 300
    assert archive.archived_index == 300


async def test_a_failed_write_keeps_the_items():
    class FullDisk:
        archived_index = 0
        is_full = True
        stored = ()

        async def store(self, items, reopened, through):
            if self.is_full:
                raise sqlite3.OperationalError("database or disk is full")
            self.stored += tuple(items)

    disk = FullDisk()
    backlog = backlog_of(disk, machine_of(1, a="COMPLETED"))
    backlog.finished(1, "a")
    with pytest.raises(sqlite3.OperationalError):
        await backlog.step()
    assert len(backlog) == 1
    disk.is_full = False
    await backlog.step()
    assert [row.key for row in disk.stored] == ["a"]


async def test_an_item_that_is_retired_before_it_is_archived_is_not_lost(archive):
    machine = machine_of(3, a="COMPLETED")
    backlog = backlog_of(archive, machine)
    backlog.finished(3, "a")
    del machine.states["a"]
    assert await backlog.drain(5)
    assert await archive.item("a") is not None


def test_a_sealed_item_is_read_as_it_was():
    machine = StateMachine(strict=True)
    new = NewItem("selfplay", msgpack.packb({"board_type": "hex8"}), work_id="Game-1", group="g")
    machine.apply(1, Entry(1000, 2000, Epoch(0, 1), (Command(Add(new)),)))
    machine.apply(2, Entry(1001, 2001, Epoch(0, 1), (Command(Claim("w1", None, 1, None, None)),)))
    token = machine.item("game-1")["lease"]["token"]
    result = msgpack.packb({"games": 7})
    machine.apply(3, Entry(1002, 2002, Epoch(0, 1), (Command(Complete("game-1", token, result)),)))
    item = machine.tables.item("game-1")
    row = seal(item, machine.pack(item))
    assert row[:6] == ("game-1", "COMPLETED", "selfplay", "g", "w1", 2002)
    assert unseal(row.body) == machine.item("game-1")
    with pytest.raises(CodecError):
        unseal(row.body[:-1])
