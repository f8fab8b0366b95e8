"""All nodes end in the same state, and every item in a final one."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.checkers.conservation import unfinished
from chaos.checkers.history import FinalState, History, Violation


def check(history: History, finals: Sequence[FinalState]) -> list[Violation]:
    """After healing: equal indexes, equal digests, nothing left to do."""
    return [*same_index(finals), *same_digest(finals), *unfinished(finals)]


def same_digest(finals: Sequence[FinalState]) -> list[Violation]:
    """Nodes at the same index have the same digest."""
    violations = []
    first: dict[int, FinalState] = {}
    for state in finals:
        other = first.setdefault(state.index, state)
        if other.digest != state.digest:
            told = (
                f"{other.node} and {state.node} both applied entry {state.index} and differ: digests "
                f"{other.digest[:12]}… and {state.digest[:12]}…; {_difference(other, state)}"
            )
            violations.append(Violation("diverged", told))
    return violations


def same_index(finals: Sequence[FinalState]) -> list[Violation]:
    """Nobody is left behind."""
    indexes = {state.node: state.index for state in finals}
    newest = max(indexes.values(), default=0)
    behind = {node: index for node, index in indexes.items() if index < newest}
    if not behind:
        return []
    shown = ", ".join(f"{node} at {index}" for node, index in sorted(behind.items()))
    return [Violation("left_behind", f"the newest entry applied is {newest}, and healed nodes stay behind: {shown}")]


def _difference(one: FinalState, other: FinalState) -> str:
    names = sorted(
        name for name in one.items.keys() | other.items.keys() if one.items.get(name) != other.items.get(name)
    )
    if not names:
        return "their items are equal, so something beside the items differs"
    return f"{len(names)} items differ, first {names[0]}"
