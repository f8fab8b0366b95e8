"""The games that self-play knows, and what an item of it may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ringraft.schema import INTEGER_MAX, Choice, Field, Integer, Number, Object

GAMES_MAX: Final = 5000
"""Games in one item: its seeds and winners still fit into a result. A larger target is several items."""
SIMULATIONS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Board:
    """A game and its number of players."""

    name: str
    players: int
    game: str
    """The name of the game with its parameters, as OpenSpiel loads it."""


BOARDS: Final = {
    "hex8": Board("hex8", 2, "hex(board_size=8)"),
    "hex11": Board("hex11", 2, "hex(board_size=11)"),
    "connect_four": Board("connect_four", 2, "connect_four"),
    "maedn3": Board("maedn3", 3, "maedn(players=3)"),
    "maedn4": Board("maedn4", 4, "maedn(players=4)"),
}

ARGUMENTS: Final = Object(
    {
        "board_type": Field(Choice((*BOARDS, "maedn")), "the game", required=True),
        "num_players": Field(Integer(2, 4), "must fit the game; says which maedn it is"),
        "num_games": Field(Integer(1, GAMES_MAX), "games to play"),
        "seed": Field(Integer(0, INTEGER_MAX), "the same seed gives the same games; derived from the work_id"),
        "simulations": Field(Integer(1, SIMULATIONS_MAX), "tree search simulations a move"),
        "uct_c": Field(Number(0, 100, above=True), "how much the search explores"),
        "temperature_moves": Field(Integer(0, 10_000), "moves of a game drawn by visits; the rest take the most"),
    }
)
"""The config of a ``selfplay`` item."""


def board(board_type: str, num_players: int | None) -> Board | str:
    """The game asked for, or a sentence saying why there is none."""
    if board_type == "maedn":
        if num_players not in (3, 4):
            return f"board_type maedn needs num_players 3 or 4, not {num_players}"
        return BOARDS[f"maedn{num_players}"]
    found = BOARDS[board_type]
    if num_players not in (None, found.players):
        return f"board_type {board_type} is for {found.players} players, not {num_players}"
    return found
