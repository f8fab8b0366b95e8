"""The small parts of the command line, each by itself."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from ringraft.cli.demo import Plan, games_done, is_half_way
from ringraft.cli.dev import read_running
from ringraft.cli.exits import CommandFailed
from ringraft.cli.local import free_ports, ports_if_free
from ringraft.cli.main import _run, ringraft
from ringraft.cli.node import voter
from ringraft.cli.output import span
from ringraft.cli.prober import longest_gap_s
from ringraft.cli.rundir import KEEP, RunDirectory


def test_gap_is_the_longest_that_touches_the_span() -> None:
    times = [0.0, 5.0, 5.1, 5.2, 5.9, 6.0, 6.1, 9.0]
    assert longest_gap_s(times, 5.15, 6.05) == pytest.approx(0.7)
    assert longest_gap_s(times, 6.05, 8.0) == pytest.approx(2.9)
    assert longest_gap_s(times, 20.0, 30.0) is None
    assert longest_gap_s([], 0, 1) is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.34, "340 ms"),
        (1.0, "1 s"),
        (119, "119 s"),
        (180, "3 min"),
        (7300, "2 h"),
        (400_000, "5 d"),
        (-1, "0 ms"),
        (None, None),
    ],
)
def test_spans_are_said_as_people_do(seconds: float | None, said: str | None) -> None:
    assert span(seconds) == said


@pytest.mark.parametrize(("games", "sizes"), [(200, [10] * 20), (7, [7]), (25, [10, 10, 5])])
def test_demo_asks_for_exactly_the_games(games: int, sizes: list[int]) -> None:
    work = Plan(3, 2, games, True).work()
    assert [one["config"]["num_games"] for one in work] == sizes
    assert len({one["config"]["seed"] for one in work}) == len(work)


def test_games_done_counts_running_progress() -> None:
    running = {"state": "RUNNING", "progress": {"games": 3}, "config": {"num_games": 10}}
    ended = {"state": "COMPLETED", "progress": {"games": 9}, "config": {"num_games": 10}}
    waiting = {"state": "PENDING", "progress": {"games": 4}, "config": {"num_games": 10}}
    assert games_done([running, ended, waiting, {**running, "progress": None}]) == 13


def test_half_way_comes_even_with_few_items() -> None:
    running = {"state": "RUNNING"}
    ended = {"state": "COMPLETED"}
    waiting = {"state": "PENDING"}
    assert is_half_way([ended, ended, waiting, waiting], 20, 40)
    assert not is_half_way([ended, running, waiting, waiting], 10, 40)
    assert is_half_way([running, running, running], 0, 25)
    assert not is_half_way([], 0, 25)


def test_run_directory_takes_away_what_nobody_holds_or_keeps(tmp_path: Path) -> None:
    held = RunDirectory(tmp_path, keep=False)
    kept = tmp_path / "kept"
    gone = tmp_path / "gone"
    for path in (kept, gone):
        path.mkdir()
        (path / "lock").touch()
    (kept / KEEP).touch()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "dev.json").touch()
    os.rename(held.path, tmp_path / "held")
    second = RunDirectory(tmp_path, keep=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["kept", "foreign", "held", "dev.json", second.path.name]
    )
    held.close()
    second.close()


def test_taken_ports_are_not_offered() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert ports_if_free([taken.getsockname()[1]]) is None
    assert len(set(free_ports(5))) == 5


def test_dev_cluster_of_an_ended_process_is_none(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    assert read_running(path) is None
    path.write_text(json.dumps({"pid": os.getpid(), "started_s": 1.0, "directory": "/x", "nodes": {}}))
    assert read_running(path) is None
    path.write_text("{")
    with pytest.raises(CommandFailed, match=r"damaged .* remove it"):
        read_running(path)


def test_faults_of_settings_are_listed_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ringraft", "node", "--config", os.devnull, "--set", "raft.hartbeat_ms=1", "--set", "stream.window=0"]
    monkeypatch.setattr("sys.argv", words)
    assert _run(ringraft, "ringraft") == 2
    said = capsys.readouterr().err
    assert "2 settings are wrong" in said
    assert "did you mean raft.heartbeat_ms?" in said


def test_voter_outside_its_peers_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ringraft-voter", "--config", os.devnull, "--node-id", "n9", "--peers", "n1=127.0.0.1:1,n2=127.0.0.1:2"]
    monkeypatch.setattr("sys.argv", words)
    assert _run(voter, "ringraft-voter") == 2
    assert "n9 is not among the voters (n1, n2)" in capsys.readouterr().err


def test_setting_given_twice_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ringraft", "node", "--config", os.devnull, "--node-id", "a", "--set", "node.node_id=b"]
    monkeypatch.setattr("sys.argv", words)
    assert _run(ringraft, "ringraft") == 2
    assert "node.node_id is set twice" in capsys.readouterr().err
