"""``ringraft work`` against prepared answers: what it asks, what it prints, how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ringraft.cli.main import _run, ringraft
from tests.cli.fake_node import FakeNode, item


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as fake:
        yield fake


@pytest.fixture
def run(node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run ``ringraft work …``; (exit code, stdout, stderr)."""

    def call(*words: str, group: str = "work") -> tuple[int, str, str]:
        argv = ["ringraft", group, *words]
        monkeypatch.setattr("sys.argv", argv)
        monkeypatch.setenv("RINGRAFT_ADDR", node.address)
        code = _run(ringraft, "ringraft")
        out, err = capsys.readouterr()
        return int(code), out, err

    return call


def test_add_sends_config_and_prints_only_the_id(node: FakeNode, run: Any) -> None:
    node.answers["POST", "/work/add"] = (200, {"status": "added", "work_id": "a1", "warnings": ["w"]})
    code, out, err = run("add", "selfplay", "board_type=hex8", "num_games=10", "--priority", "80", "--gpu", "H100")
    assert (code, out) == (0, "a1\n")
    assert "warning: w" in err
    assert node.asked[-1][2] == {
        "work_type": "selfplay",
        "config": {"board_type": "hex8", "num_games": 10},
        "priority": 80,
        "requirements": {"gpu": "H100"},
    }


def test_add_many_goes_in_batches_of_a_thousand(node: FakeNode, run: Any) -> None:
    def answer(query: dict[str, str], body: Any) -> tuple[int, Any]:
        return 200, {"items": [{"status": "added", "work_id": f"x{i}"} for i in range(len(body["items"]))]}

    node.answers["POST", "/work/add_batch"] = answer
    code, out, _ = run("add", "sync", "--count", "1500")
    assert (code, len(out.split())) == (0, 1500)
    assert [len(body["items"]) for _, _, body in node.asked] == [1000, 500]


@pytest.mark.parametrize(("state", "expected"), [("COMPLETED", 0), ("FAILED", 3), ("CANCELLED", 3)])
def test_waiting_ends_as_the_item_did(node: FakeNode, run: Any, state: str, expected: int) -> None:
    node.answers["POST", "/work/add"] = (200, {"status": "added", "work_id": "a1"})
    node.answers["GET", "/work/item/a1"] = (200, item("a1", state))
    assert run("add", "selfplay", "--wait")[0] == expected
    assert run("wait", "a1")[0] == expected
    assert run("watch", "a1")[0] == expected


def test_waiting_too_long_is_unknown(node: FakeNode, run: Any) -> None:
    node.answers["GET", "/work/item/a1"] = (200, item("a1", "RUNNING"))
    code, _, err = run("watch", "a1", "--wait-s", "0.2")
    assert code == 6
    assert "not final within 0.2 s" in err


@pytest.mark.parametrize(
    ("status", "problem", "expected"),
    [
        (404, "not_found", 4),
        (401, "unauthenticated", 7),
        (403, "forbidden", 7),
        (503, "no_leader", 5),
        (504, "commit_unknown", 6),
        (422, "invalid_field", 1),
        (409, "wrong_state", 1),
    ],
)
def test_refusals_have_their_exit_codes(node: FakeNode, run: Any, status: int, problem: str, expected: int) -> None:
    node.answers["POST", "/work/add"] = (status, problem)
    code, out, err = run("add", "selfplay")
    assert (code, out) == (expected, "")
    assert f"refused with {problem}" in err
    assert ("It may have been done" in err) == (expected == 6)


def test_nobody_there_is_unhealthy(run: Any) -> None:
    assert run("list", "--addr", "127.0.0.1:1", "--timeout", "0.3")[0] == 5


@pytest.mark.parametrize(
    "words", [["add"], ["wait"], ["wait", "a", "--group", "g"], ["add", "selfplay", "x"], ["nope"]]
)
def test_misuse_is_2(run: Any, words: list[str]) -> None:
    assert run(*words)[0] == 2


def test_list_follows_pages_and_prints_plain_rows(node: FakeNode, run: Any) -> None:
    pages = {"": ([item("a1"), item("a2", "RUNNING", lease={"node_id": "w1"})], "c"), "c": ([item("a3")], None)}

    def answer(query: dict[str, str], body: Any) -> tuple[int, Any]:
        found, cursor = pages[query.get("cursor", "")]
        return 200, {"items": found, "next_cursor": cursor}

    node.answers["GET", "/work/items"] = answer
    code, out, _ = run("list", "--state", "pending")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["WORK", "a1", "a2", "a3"]
    assert "\x1b" not in out
    assert node.asked[0][2]["state"] == "PENDING"
    assert run("list", "-q")[1].split() == ["a1", "a2", "a3"]
    assert [one["work_id"] for one in json.loads(run("list", "--json")[1])["items"]] == ["a1", "a2", "a3"]


def test_show_is_plain_and_cuts_only_what_is_long(node: FakeNode, run: Any) -> None:
    done = {
        "attempt": 1,
        "node_id": "w1",
        "token": 9,
        "outcome": "completed",
        "reason": None,
        "at": "2026-01-01T00:00:00Z",
    }
    node.answers["GET", "/work/item/a1"] = (200, item("a1", "COMPLETED", result={"x": "y" * 500}, history=[done]))
    code, out, _ = run("show", "a1")
    assert code == 0
    assert "state                  COMPLETED\n" in out
    assert "… (509 characters; --json has all)" in out
    assert out.splitlines()[-1].split()[:4] == ["1", "w1", "9", "completed"]


def test_shortened_id_finds_its_item(node: FakeNode, run: Any) -> None:
    node.answers["GET", "/work/items"] = (200, {"items": [item("abc1"), item("abd2")], "next_cursor": None})
    code, out, _ = run("show", "abd", "--json")
    assert (code, json.loads(out)["work_id"]) == (0, "abd2")
    code, _, err = run("show", "ab")
    assert code == 2
    assert "ab could be 2 items: abc1, abd2" in err
    assert run("show", "zz")[0] == 4


@pytest.mark.parametrize(
    ("state", "reasons", "expected"),
    [("PENDING", ["Ready"], 0), ("PENDING", ["NoMatchingWorker"], 1), ("RUNNING", [], 0), ("PENDING", [], 255)],
)
def test_why_says_whether_something_stands_in_the_way(
    node: FakeNode, run: Any, state: str, reasons: list[str], expected: int
) -> None:
    node.answers["GET", "/work/item/a1"] = (200, item("a1", state))
    said = [{"code": code, "detail": "because"} for code in reasons]
    answer = {"work_id": "a1", "state": state, "reasons": said, "rejections": {}, "position": None, "estimate_s": None}
    node.answers["GET", "/work/why/a1"] = (200, answer)
    assert run("why", "a1")[0] == expected


def test_group_is_cancelled_only_when_meant(node: FakeNode, run: Any) -> None:
    node.answers["POST", "/work/cancel"] = (200, {"status": "cancelled", "count": 7})
    code, _, err = run("cancel", "--group", "g")
    assert code == 2
    assert "--yes" in err
    code, _, err = run("cancel", "--group", "g", "--yes")
    assert (code, err) == (0, "cancelled 7\n")
    assert node.asked[-1][2] == {"group": "g"}


def test_retry_names_the_whole_id(node: FakeNode, run: Any) -> None:
    node.answers["GET", "/work/items"] = (200, {"items": [item("abc1", "FAILED")], "next_cursor": None})
    node.answers["POST", "/work/retry"] = (200, {"status": "retried", "count": 1})
    assert run("retry", "abc")[0] == 0
    assert node.asked[-1][2] == {"work_id": "abc1"}


def test_logs_are_printed_as_they_are(node: FakeNode, run: Any) -> None:
    node.answers["GET", "/work/item/a1"] = (200, item("a1", "COMPLETED"))
    node.answers["GET", "/work/item/a1/log"] = (200, "one\ntwo\n")
    assert run("logs", "a1", "-f")[:2] == (0, "one\ntwo\n")


def cluster(**more: Any) -> dict[str, Any]:
    voter = {"role": "follower", "applied_index": 9, "behind": 0, "last_contact_s": 0.1, "priority": 0}
    return {
        "node_id": "n2", "cluster_id": "c", "leader_id": "n1", "term": 3, "has_quorum": True, "voters_alive": 3,
        "quorum_size": 2, "version": "0.1.0",
        "voters": [{**voter, "node_id": f"n{i}", "url": f"http://127.0.0.1:{i}"} for i in (1, 2, 3)], **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "expected", "word"),
    [
        ({}, 0, "ok"),
        ({"voters_alive": 2}, 0, "degraded: 1 of 3 voters"),
        ({"leader_id": None}, 5, "no leader"),
        ({"has_quorum": False, "voters_alive": 1, "leader_id": None}, 5, "no quorum: 1 of 3 voters, 2 needed"),
    ],
)
def test_status_is_a_verdict(node: FakeNode, run: Any, more: dict[str, Any], expected: int, word: str) -> None:
    node.answers["GET", "/status"] = (200, cluster(**more))
    by_type = {"selfplay": 2}
    work = {"by_status": {"PENDING": 2}, "by_type": by_type, "oldest_pending_age_s": 12, "leases_by_node": {}}
    node.answers["GET", "/work/status"] = (200, work)
    peer = {"node_id": "w1", "roles": ["worker"], "state": "alive", "last_seen_s": 0.5, "gpus": [{"name": "H100"}],
            "resources": {"cpu_percent": 50.0}, "version": "0.1.0"}  # fmt: skip
    node.answers["GET", "/peers"] = (200, {"items": [peer]})
    event = {"seq": 1, "index": 1, "type": "WORK_ADDED", "at": "2026-01-01T00:00:00.000Z", "data": {"work_id": "a"}}
    node.answers["GET", "/events"] = (200, {"items": [event], "next": 2})
    code, out, _ = run(group="status")
    assert code == expected
    for expectation in (word, "http://127.0.0.1:2", "w1", "H100", "2 pending; oldest pending 12 s", "WORK_ADDED"):
        assert expectation in out
    code, out, _ = run("--json", group="status")
    assert json.loads(out)["status"]["node_id"] == "n2"


def test_the_workers_are_those_that_the_leader_knows(node: FakeNode, run: Any) -> None:
    """The node asked may have started only now."""
    worker = {"node_id": "w1", "roles": ["worker"], "state": "alive", "last_seen_s": 0.5, "version": "0.1.0"}
    with FakeNode() as leader:
        voters = [{**cluster()["voters"][0], "url": f"http://{leader.address}"}]
        seen = cluster(node_id="n1", voters=voters, url=f"http://{leader.address}")
        leader.answers["GET", "/status"] = (200, seen)
        leader.answers["GET", "/peers"] = (200, {"items": [worker]})
        node.answers["GET", "/status"] = (200, {**seen, "node_id": "n2", "url": f"http://{node.address}"})
        node.answers["GET", "/peers"] = (200, {"items": []})
        node.answers["GET", "/work/status"] = (200, {"by_status": {}, "by_type": {}, "leases_by_node": {}})
        node.answers["GET", "/events"] = (200, {"items": [], "next": 1})
        code, out, _ = run(group="status")
    assert code == 0
    assert "w1" in out
