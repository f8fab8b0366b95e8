"""A binary heap with deletion by name, whose order can be walked without changing it.

A deleted entry stays in the array, stale, until it surfaces or until half of the array is stale.
Every entry is pushed once and discarded once, so that all operations are O(log n) over time, and
the top is never stale between calls. Entries are tuples that end in their reference and differ
from each other before that, so that their order is total and the same on every replica.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any

from ringraft.state.spread import Spread

SLACK = 64
"""A small heap is not worth compacting."""


class LazyHeap:
    """References in the order of their entries; the smallest first."""

    __slots__ = ("_array", "live")

    def __init__(self) -> None:
        self._array: list[tuple[Any, ...]] = []
        self.live: Spread[Any, tuple[Any, ...]] = Spread()
        """The present entry of each reference. Read only."""

    def __len__(self) -> int:
        return len(self.live)

    def put(self, ref: Any, entry: tuple[Any, ...]) -> None:
        """Enter ``ref``, or move it, to where ``entry`` says; ``entry[-1]`` is ``ref``."""
        stale = self.live.swap(ref, entry)
        heappush(self._array, entry)
        if stale is not None:
            self._tidy(stale)

    def drop(self, ref: Any) -> None:
        """Remove ``ref`` if it is there."""
        stale = self.live.pop(ref)
        if stale is not None:
            self._tidy(stale)

    def top(self) -> tuple[Any, ...] | None:
        """The smallest entry."""
        return self._array[0] if self._array else None

    def walk(self) -> Iterator[tuple[Any, ...]]:
        """All entries, smallest first: O(log n) each, nothing is changed."""
        array = self._array
        frontier = [(array[0], 0)] if array else []
        while frontier:
            entry, at = heappop(frontier)
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(array):
                    heappush(frontier, (array[child], child))
            if self.live.get(entry[-1]) is entry:
                yield entry

    def holders(self) -> list[dict[Any, Any] | list[Any]]:
        """What it keeps its entries in."""
        return [*self.live.holders(), self._array]

    def _tidy(self, stale: tuple[Any, ...]) -> None:
        """``stale`` has just become so: keep the top live, and half of the array."""
        array, live = self._array, self.live
        if array[0] is stale:
            heappop(array)
            while array and live.get(array[0][-1]) is not array[0]:
                heappop(array)
        if len(array) > 2 * len(live) + SLACK:
            array[:] = live.values()
            heapify(array)
