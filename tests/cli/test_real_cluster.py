"""The command line against real processes: a node, a demo, a dev cluster, each killed or stopped for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ringraft.cli.local import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE_S = 60.0


def environment(tmp_path: Path) -> dict[str, str]:
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("RINGRAFT_", "RINGRIFT_", "P2P_"))
    }
    return plain | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}


def run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ringraft", *words]
    return subprocess.run(
        command, env=environment(tmp_path), cwd=tmp_path, text=True, capture_output=True, timeout=DEADLINE_S
    )


def begin(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ringraft", *words]
    log = (tmp_path / "begun.log").open("w")
    with log:
        return subprocess.Popen(
            command, env=environment(tmp_path), cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=log
        )


def end(process: subprocess.Popen[str]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)
    return process.returncode


@pytest.fixture
def lone_node(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = begin(tmp_path, "node", "--node-id", "my-node", "--port", str(free_ports(1)[0]), "--voter")
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["event"] == "ready"
    assert ready["pid"] == process.pid
    yield process, ready["url"].removeprefix("http://")
    end(process)


def test_seeds_line_starts_a_cluster_of_one(lone_node: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    process, address = lone_node
    added = run(tmp_path, "work", "add", "selfplay", "board_type=hex8", "num_games=10", "--addr", address)
    assert added.returncode == 0, added.stderr
    listed = run(tmp_path, "work", "list", "-q", "--addr", address)
    assert listed.stdout == added.stdout
    seen = run(tmp_path, "status", "--json", "--addr", address)
    assert (seen.returncode, json.loads(seen.stdout)["status"]["leader_id"]) == (0, "my-node")
    assert end(process) == 0


def test_second_node_on_the_same_port_or_directory_is_refused(
    lone_node: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    _, address = lone_node
    port = address.rpartition(":")[2]
    taken = run(tmp_path, "node", "--node-id", "other", "--port", port, "--data-dir", str(tmp_path / "other"))
    assert (taken.returncode, taken.stdout) == (2, "")
    assert port in taken.stderr
    same = run(tmp_path, "node", "--node-id", "my-node", "--port", "0")
    assert (same.returncode, same.stdout) == (2, "")
    assert "data/p2p" in same.stderr


def test_demo_kills_the_leader_and_every_game_is_there_once(tmp_path: Path) -> None:
    pytest.importorskip("pyspiel", reason="the games need the extra [selfplay]")
    played = run(tmp_path, "demo", "--games", "40", "--json")
    assert played.returncode == 0, played.stderr
    report = json.loads(played.stdout)
    games = report["games"]
    assert (games["asked"], games["played"], games["lost"], games["twice"]) == (40, 40, 0, 0)
    assert report["killed"]["successor"] not in (None, report["killed"]["node_id"])
    assert report["write_gap_ms"] > 0
    assert len(list(Path(report["data"]).rglob("*.npz"))) == games["files"] == 4
    assert psutil.Process().children(recursive=True) == []


def test_dev_lives_through_the_leaders_death(tmp_path: Path) -> None:
    port = str(free_ports(1)[0])
    process = begin(tmp_path, "dev", "--workers", "0", "--port", port, "--restart-after", "0.2")
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        second = run(tmp_path, "dev")
        assert (second.returncode, "runs already" in second.stderr) == (2, True)
        killed = run(tmp_path, "dev", "kill", "leader")
        assert killed.returncode == 0, killed.stderr
        assert [line.split()[0] for line in killed.stdout.splitlines()] == ["killed", "leader"]
        victim = killed.stdout.split()[1]
        until_s = time.monotonic() + DEADLINE_S
        while not json.loads(run(tmp_path, "dev", "status", "--json").stdout)["nodes"][victim]["running"]:
            assert time.monotonic() < until_s, f"{victim} did not come back"
        assert run(tmp_path, "dev", "stop").returncode == 0
    finally:
        assert end(process) == 0
    assert run(tmp_path, "dev", "status").returncode == 4


def test_killed_demo_leaves_nothing_running(tmp_path: Path) -> None:
    process = begin(tmp_path, "dev", "--workers", "1", "--port", str(free_ports(1)[0]))
    assert process.stdout is not None
    process.stdout.readline()
    children = psutil.Process(process.pid).children()
    assert len(children) == 4
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert (len(gone), alive) == (4, [])
