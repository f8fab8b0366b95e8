"""References in order of age, with removal anywhere and entry at any point."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

BLOCK_MAX = 512
"""Entries per block: removing one moves at most this many pointers."""


class AgeOrder:
    """(seq, id) pairs, sorted, in blocks, so that nothing ever moves the whole list."""

    __slots__ = ("_blocks", "_firsts", "_size")

    def __init__(self) -> None:
        self._blocks: list[list[tuple[int, str]]] = []
        self._firsts: list[int] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def newest(self) -> int:
        """The age of the youngest; -1 when there is none."""
        return self._blocks[-1][-1][0] if self._blocks else -1

    def has(self, seq: int) -> bool:
        """Whether one of this age is there."""
        at = bisect_right(self._firsts, seq) - 1
        if at < 0:
            return False
        block = self._blocks[at]
        place = bisect_left(block, (seq, ""))
        return place < len(block) and block[place][0] == seq

    def append(self, seq: int, ref: str) -> None:
        """Add one that is younger than all."""
        assert not self._blocks or self._blocks[-1][-1][0] < seq
        if self._blocks and len(self._blocks[-1]) < BLOCK_MAX:
            self._blocks[-1].append((seq, ref))
        else:
            self._blocks.append([(seq, ref)])
            self._firsts.append(seq)
        self._size += 1

    def remove(self, seq: int) -> None:
        at = bisect_right(self._firsts, seq) - 1
        block = self._blocks[at]
        place = bisect_left(block, (seq, ""))
        assert block[place][0] == seq
        del block[place]
        self._size -= 1
        if block:
            self._firsts[at] = block[0][0]
        else:
            del self._blocks[at], self._firsts[at]

    def holders(self) -> list[list[tuple[int, str]]]:
        """What it keeps its entries in."""
        return self._blocks

    def after(self, seq: int) -> Iterator[tuple[int, str]]:
        """All that are younger than ``seq``, oldest first."""
        at = max(0, bisect_right(self._firsts, seq) - 1)
        for number in range(at, len(self._blocks)):
            block = self._blocks[number]
            start = bisect_left(block, (seq + 1, "")) if number == at else 0
            for place in range(start, len(block)):
                yield block[place]
