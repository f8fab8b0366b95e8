"""Self-play gives the same real games for the same seed, and data that can be trusted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from ringraft.schema import Checker
from ringraft.training.boards import ARGUMENTS, BOARDS, board
from ringraft.worker.task import PAYLOAD_BYTES_MAX, ArgumentError, Outcome, Task

np = pytest.importorskip("numpy")
pyspiel = pytest.importorskip("pyspiel")

from ringraft.training import selfplay  # noqa: E402 - needs the extra


def play(directory: Path, work_id: str = "sp-1", **config: Any) -> tuple[Outcome, dict[str, Any]]:
    """Run an item; its outcome and the arrays of its file."""
    directory.mkdir(exist_ok=True)
    assert Checker(ARGUMENTS).faults(config) == []
    outcome = selfplay.run(Task(work_id, "selfplay", 1, config, directory, directory / "out"))
    with np.load(outcome.result["file"], allow_pickle=False) as file:
        return outcome, {name: file[name] for name in file.files}


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_plays_whole_games(name: str, tmp_path: Path) -> None:
    outcome, arrays = play(tmp_path, board_type=name, num_games=2, simulations=4)
    result = outcome.result
    game = pyspiel.load_game(BOARDS[name].game)
    assert result["games"] == len(result["winners"]) == len(result["lengths"]) == len(set(result["seeds"])) == 2
    assert result["num_players"] == game.num_players() == BOARDS[name].players
    for moves, winner, returns in zip(result["moves"], result["winners"], arrays["returns"], strict=True):
        state = game.new_initial_state()
        for action in moves:
            state.apply_action(action)  # an illegal one ends the process
        assert state.is_terminal()
        assert state.returns() == pytest.approx(returns.tolist())
        assert winner == -1 or state.returns()[winner] == max(state.returns())


@pytest.mark.parametrize("name", ["hex8", "maedn3"])
def test_positions_are_what_the_game_shows(name: str, tmp_path: Path) -> None:
    outcome, arrays = play(tmp_path, board_type=name, num_games=1, simulations=3)
    state = pyspiel.load_game(BOARDS[name].game).new_initial_state()
    row = 0
    for action in outcome.result["moves"][0]:
        if not state.is_chance_node():
            mover = state.current_player()
            assert arrays["player"][row] == mover
            assert arrays["action"][row] == action
            assert arrays["observation"][row].flatten().tolist() == state.observation_tensor(mover)
            assert np.flatnonzero(arrays["legal"][row]).tolist() == state.legal_actions()
            assert arrays["outcome"][row] == arrays["returns"][0][mover]
            row += 1
        state.apply_action(action)
    assert row == len(arrays["player"])


def test_policy_targets_are_shares_of_visits_over_legal_moves(tmp_path: Path) -> None:
    _, arrays = play(tmp_path, board_type="connect_four", num_games=3, simulations=16)
    policy = arrays["policy"]
    assert policy.sum(axis=1) == pytest.approx(1.0)
    assert not policy[~arrays["legal"]].any()
    rows = range(len(policy))
    assert (policy[rows, arrays["action"]] > 0).all()
    assert {name: arrays[name].dtype.name for name in ("observation", "policy", "legal", "outcome", "game")} == {
        "observation": "uint8",
        "policy": "float32",
        "legal": "bool",
        "outcome": "float32",
        "game": "int32",
    }


@pytest.mark.parametrize("name", ["hex8", "connect_four", "maedn4"])
def test_the_same_item_gives_the_same_games_and_the_same_bytes(name: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"board_type": name, "num_games": 2, "simulations": 8, "seed": 7}
    first, _ = play(tmp_path / "a", **config)
    second, _ = play(tmp_path / "b", "another-item", **config)
    assert first.result["sha256"] == second.result["sha256"]
    assert first.result["moves"] == second.result["moves"]
    other, _ = play(tmp_path / "c", **{**config, "seed": 8})
    assert other.result["moves"] != first.result["moves"]


def test_a_longer_item_begins_with_the_games_of_a_shorter_one(tmp_path: Path) -> None:
    short, _ = play(tmp_path, "short", board_type="hex8", num_games=1, simulations=4, seed=3)
    long, _ = play(tmp_path, "long", board_type="hex8", num_games=2, simulations=4, seed=3)
    assert long.result["moves"][0] == short.result["moves"][0]


def test_without_a_seed_it_follows_from_the_work_id(tmp_path: Path) -> None:
    config: dict[str, Any] = {"board_type": "connect_four", "num_games": 2, "simulations": 4}
    first, _ = play(tmp_path / "a", "sp-1", **config)
    again, _ = play(tmp_path / "b", "sp-1", **config)
    other, _ = play(tmp_path / "c", "sp-2", **config)
    assert first.result["seed"] == again.result["seed"] != other.result["seed"]
    assert first.result["sha256"] == again.result["sha256"] != other.result["sha256"]


def test_an_attempt_that_is_repeated_replaces_its_file_by_an_equal_one(tmp_path: Path) -> None:
    config: dict[str, Any] = {"board_type": "connect_four", "num_games": 1, "simulations": 4}
    first, _ = play(tmp_path, **config)
    path = Path(first.result["file"])
    path.write_bytes(b"cut short")
    second, _ = play(tmp_path, **config)
    assert second.result["file"] == str(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == first.result["sha256"]
    assert [p.name for p in path.parent.iterdir()] == ["sp-1.npz"]
    (artifact,) = second.artifacts
    assert artifact["bytes"] == path.stat().st_size and artifact["sha256"] == first.result["sha256"]


def test_the_result_of_a_large_item_fits_and_its_moves_are_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfplay, "RESULT_MOVES_MAX", 50)
    outcome, arrays = play(tmp_path, board_type="connect_four", num_games=10, simulations=2)
    assert outcome.result["moves"] is None
    assert arrays["history_length"].tolist() == outcome.result["lengths"]
    assert len(arrays["history"]) == sum(outcome.result["lengths"])


def test_the_largest_result_fits_into_the_log() -> None:
    plan = selfplay.Plan.of("w" * 64, {"board_type": "maedn4", "num_games": 5000})
    record = selfplay.Record()
    record.history = [[44] * 1000] * 5000
    record.returns = [[3.0, -1.0, -1.0, -1.0]] * 5000
    record.seeds = [2**31 - 1] * 5000
    result = selfplay.result(plan, record, {"path": "/x" * 200, "sha256": "0" * 64})
    assert len(msgpack.packb(result)) < PAYLOAD_BYTES_MAX
    record.history = [[120] * 12] * 500
    record.returns, record.seeds = record.returns[:500], record.seeds[:500]
    result = selfplay.result(plan, record, {"path": "/x" * 200, "sha256": "0" * 64})
    assert result["moves"] is not None
    assert len(json.dumps(result)) < PAYLOAD_BYTES_MAX


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"board_type": "hex8", "num_players": 3}, "board_type hex8 is for 2 players, not 3"),
        ({"board_type": "maedn"}, "board_type maedn needs num_players 3 or 4, not None"),
        ({"board_type": "maedn4", "num_players": 3}, "board_type maedn4 is for 4 players, not 3"),
    ],
)
def test_players_must_fit_the_board(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        play(tmp_path, **config)


def test_maedn_takes_its_players_from_the_item() -> None:
    assert board("maedn", 3) is BOARDS["maedn3"]
    assert board("hex11", 2) is BOARDS["hex11"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"board_type": "hex9"}, "'hex9' is none of hex8, hex11"),
        ({}, "is missing"),
        ({"board_type": "hex8", "num_games": 5001}, "is 5001, allowed are 1 to 5000"),
        ({"board_type": "hex8", "num_game": 1}, "did you mean 'num_games'"),
        ({"board_type": "hex8", "seed": "7"}, "must be an integer"),
    ],
)
def test_a_wrong_config_is_explained(config: dict[str, Any], message: str) -> None:
    (fault,) = Checker(ARGUMENTS).faults(config)
    assert message in fault.message
