"""Self-play: games of tree search against itself, as training data.

Everything random comes from the item's seed: game ``i`` has its own, from which its players, its
chance moves and its draws by temperature follow. So the same item with the same seed gives the
same games and byte-identical arrays on any node, and an attempt that is repeated replaces its file
by an equal one.
"""

from __future__ import annotations

import hashlib
import io
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyspiel

from ringraft.training.boards import Board, board
from ringraft.worker.durable import write_durably
from ringraft.worker.task import ArgumentError, Outcome, Task, artifact

GAMES: Final = 100
"""Games of an item that names no number."""
SIMULATIONS: Final = 32
UCT_C: Final = 1.4
TEMPERATURE_MOVES: Final = 8
"""The opening is drawn in proportion to visits, so that games differ; after that the most visited."""
SEARCH_MEMORY_MB: Final = 256
PROGRESS_EVERY_S: Final = 0.5
SEED_BITS: Final = 31
RESULT_MOVES_MAX: Final = 6000
"""Moves listed in the result itself; of longer items they are only in the file (``action``, ``game``)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an item asks for, defaults filled in."""

    board: Board
    games: int
    seed: int
    simulations: int
    uct_c: float
    temperature_moves: int

    @classmethod
    def of(cls, work_id: str, config: Mapping[str, Any]) -> Plan:
        """From an item's config, already checked field by field. Raises ArgumentError."""
        found = board(config["board_type"], config.get("num_players"))
        if isinstance(found, str):
            raise ArgumentError(found)
        return cls(
            found,
            config.get("num_games", GAMES),
            config.get("seed", derived_seed(work_id, "item", bits=53)),
            config.get("simulations", SIMULATIONS),
            float(config.get("uct_c", UCT_C)),
            config.get("temperature_moves", TEMPERATURE_MOVES),
        )


@dataclass(slots=True)
class Record:
    """The positions of the games so far, one row each in every list, and one row a game."""

    observation: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    """Planes and counts, small whole numbers on every board here: a byte each."""
    visits: list[npt.NDArray[np.float32]] = field(default_factory=list)
    legal: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    action: list[int] = field(default_factory=list)
    player: list[int] = field(default_factory=list)
    game: list[int] = field(default_factory=list)
    returns: list[list[float]] = field(default_factory=list)
    history: list[list[int]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What the file holds. ``outcome`` is the game's end for the player to move, -1 to 1 for two."""
        returns = np.asarray(self.returns, dtype=np.float32)
        game = np.asarray(self.game, dtype=np.int32)
        player = np.asarray(self.player, dtype=np.int8)
        moves = [action for actions in self.history for action in actions]
        return {
            "observation": np.stack(self.observation),
            "policy": np.stack(self.visits),
            "legal": np.stack(self.legal),
            "outcome": returns[game, player],
            "player": player,
            "game": game,
            "action": np.asarray(self.action, dtype=np.int16),
            "returns": returns,
            "seed": np.asarray(self.seeds, dtype=np.int64),
            "history": np.asarray(moves, dtype=np.int16),
            "history_length": np.asarray([len(actions) for actions in self.history], dtype=np.int32),
        }


def run(task: Task) -> Outcome:
    """The executor of ``selfplay``: plays the item's games and writes them to one NPZ file."""
    plan = Plan.of(task.work_id, task.config)
    game = pyspiel.load_game(plan.board.game)
    record = Record()
    said_s = time.monotonic()
    for i in range(plan.games):
        play(game, plan, i, record)
        if time.monotonic() - said_s >= PROGRESS_EVERY_S:
            task.progress({"games": i + 1, "of": plan.games, "positions": len(record.action)})
            said_s = time.monotonic()
    directory = task.output_dir / f"{plan.board.name}_{plan.board.players}p"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{task.work_id}.npz"
    write(path, record.arrays())
    kept = artifact(path)
    return Outcome(result(plan, record, kept), (kept,))


def play(game: Any, plan: Plan, number: int, record: Record) -> None:
    """Play one game to its end and append it to ``record``."""
    seed = derived_seed(plan.seed, number)
    draws = random.Random(seed)
    players = [player(game, plan, derived_seed(seed, p)) for p in range(game.num_players())]
    shape = game.observation_tensor_shape()
    state = game.new_initial_state()
    history: list[int] = []
    while not state.is_terminal():
        if state.is_chance_node():
            outcomes = state.chance_outcomes()
            action = drawn(draws, [a for a, _ in outcomes], [p for _, p in outcomes])
        else:
            action = decide(state, players, plan, draws, record, shape, number)
        history.append(action)
        state.apply_action(action)
    record.returns.append(state.returns())
    record.history.append(history)
    record.seeds.append(seed)


def decide(
    state: Any, players: list[Any], plan: Plan, draws: random.Random, record: Record, shape: list[int], number: int
) -> int:
    """Search a position, record it, and choose the move."""
    mover = state.current_player()
    children = players[mover].mcts_search(state).children
    visited = sorted((child.action, child.explore_count) for child in children)
    actions = [action for action, _ in visited]
    counts = [count for _, count in visited]
    if state.move_number() < plan.temperature_moves and sum(counts):
        chosen = drawn(draws, actions, [float(count) for count in counts])
    else:
        chosen = max(visited, key=lambda each: (each[1], -each[0]))[0]
    size = state.num_distinct_actions()
    visits = np.zeros(size, dtype=np.float32)
    # A forced move may end the search before any visit; then it has all the weight.
    visits[actions] = np.asarray(counts, dtype=np.float32) / sum(counts) if sum(counts) else 1 / len(counts)
    legal = np.zeros(size, dtype=np.bool_)
    legal[state.legal_actions()] = True
    record.observation.append(np.asarray(state.observation_tensor(mover)).astype(np.uint8).reshape(shape))
    record.visits.append(visits)
    record.legal.append(legal)
    record.action.append(chosen)
    record.player.append(mover)
    record.game.append(number)
    return int(chosen)


def player(game: Any, plan: Plan, seed: int) -> Any:
    """A tree search player whose every random choice follows from ``seed``."""
    evaluator = pyspiel.RandomRolloutEvaluator(1, seed)
    return pyspiel.MCTSBot(game, evaluator, plan.uct_c, plan.simulations, SEARCH_MEMORY_MB, False, seed, False)


def drawn(draws: random.Random, actions: list[int], weights: list[float]) -> int:
    """One of ``actions``, in proportion to ``weights``; one draw whatever their number."""
    at = draws.random() * sum(weights)
    for action, weight in zip(actions, weights, strict=True):
        at -= weight
        if at < 0:
            return action
    return actions[-1]


def derived_seed(*parts: object, bits: int = SEED_BITS) -> int:
    """A number that follows from ``parts`` and looks random."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> (64 - bits)


def write(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an NPZ file durably, whole or not at all; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_durably(path, buffer.getbuffer())


def result(plan: Plan, record: Record, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What the cluster keeps. ``winners``: the player with the highest return, -1 for a draw."""
    listed = sum(map(len, record.history)) <= RESULT_MOVES_MAX
    return {
        "board_type": plan.board.name,
        "num_players": plan.board.players,
        "games": plan.games,
        "positions": len(record.action),
        "simulations": plan.simulations,
        "seed": plan.seed,
        "moves": record.history if listed else None,
        "winners": [winner(returns) for returns in record.returns],
        "lengths": [len(actions) for actions in record.history],
        "seeds": record.seeds,
        "file": kept["path"],
        "sha256": kept["sha256"],
    }


def winner(returns: list[float]) -> int:
    """The index of the one player with the highest return, -1 when there is no such one."""
    best = max(returns)
    return returns.index(best) if returns.count(best) == 1 else -1
