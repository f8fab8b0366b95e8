"""The demo's table is counted from what lies on disk and in the items' histories."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringraft.cli.audit import Audit, audit

GAMES = 10


def write_games(path: Path, seeds: list[int]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        seed=np.asarray(seeds, dtype=np.int64),
        history=np.zeros(3 * len(seeds), dtype=np.int16),
        history_length=np.full(len(seeds), 3, dtype=np.int32),
    )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ended(node_id: str, outcome: str) -> dict[str, Any]:
    return {"attempt": 1, "node_id": node_id, "token": 4096, "outcome": outcome, "reason": None, "at": "x"}


class Played:
    """Two workers' directories with four items of ten games, all completed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.items: list[dict[str, Any]] = []
        for i in range(4):
            node_id, work_id = f"w{i % 2 + 1}", f"i{i}"
            path = self.path(node_id, work_id)
            seeds = list(range(100 * i, 100 * i + GAMES))
            sha256 = write_games(path, seeds)
            self.items.append(
                {
                    "work_id": work_id,
                    "state": "COMPLETED",
                    "config": {"num_games": GAMES},
                    "result": {"seeds": seeds},
                    "artifacts": [{"path": str(path), "sha256": sha256}],
                    "history": [ended(node_id, "completed")],
                }
            )

    def path(self, node_id: str, work_id: str) -> Path:
        return self.root / node_id / "output" / "selfplay" / "hex8_2p" / f"{work_id}.npz"

    def audit(self) -> Audit:
        return audit(self.root, self.items)


@pytest.fixture
def played(tmp_path: Path) -> Played:
    return Played(tmp_path)


def test_every_game_there_once_is_right(played: Played) -> None:
    found = played.audit()
    assert (found.asked, found.played, found.lost, found.twice, found.files) == (40, 40, 0, 0, 4)
    assert found.is_right


def test_removed_file_is_lost_games(played: Played) -> None:
    played.path("w1", "i0").unlink()
    found = played.audit()
    assert (found.played, found.lost, found.twice) == (30, 10, 0)
    assert not found.is_right


@pytest.mark.parametrize("copy", ["w1/output/selfplay/hex8_2p/copy.npz", "w2/output/selfplay/hex8_2p/i0.npz", "i0.npz"])
def test_copied_file_is_games_counted_twice(played: Played, copy: str) -> None:
    shutil.copy(played.path("w1", "i0"), played.root / copy)
    found = played.audit()
    assert (found.played, found.lost, found.twice) == (40, 0, 10)
    assert not found.is_right


def test_file_with_other_bytes_is_lost_games(played: Played) -> None:
    write_games(played.path("w1", "i0"), list(range(GAMES))[::-1])
    assert played.audit().lost == 10


def test_torn_file_is_lost_games(played: Played) -> None:
    path = played.path("w1", "i0")
    path.write_bytes(path.read_bytes()[:50])
    assert played.audit().lost == 10


def test_item_completed_twice_counts_twice(played: Played) -> None:
    played.items[0]["history"].append(ended("w2", "completed"))
    assert played.audit().twice == 10


def test_two_items_with_the_same_games_count_twice(played: Played) -> None:
    played.items[1]["result"] = played.items[0]["result"]
    found = played.audit()
    assert found.twice == 10
    assert not found.is_right


def test_item_that_is_not_completed_is_lost_games(played: Played) -> None:
    played.items[0] |= {"state": "FAILED", "result": None, "artifacts": None, "history": [ended("w1", "failed")]}
    found = played.audit()
    assert found.lost == 10
    assert found.strangers == 10


def test_games_of_an_attempt_that_was_not_heard_are_no_second_count(played: Played) -> None:
    shutil.copy(played.path("w1", "i0"), played.path("w2", "i0"))
    played.items[0]["history"].insert(0, ended("w2", "expired"))
    found = played.audit()
    assert (found.played, found.twice, found.repeated) == (40, 0, 10)
    assert found.is_right


def test_games_of_no_item_are_said(played: Played) -> None:
    write_games(played.root / "w1" / "x.npz", [7777])
    found = played.audit()
    assert found.strangers == 1
    assert not found.is_right
