"""When a voter's process looks for garbage, so that no look ever stops it for long.

The state is millions of objects that live long and form no cycles: reference counts free them the
instant they go (``tests/node/test_memory.py``). A full collection looks at each of them all the same,
1.2 s at a million items, four elections long. What does form cycles is small and young: requests,
connections, failed calls. So

- what is new is collected in portions: ``YOUNG`` objects, and ten such portions once more, 1 to 5 ms;
- what survived that is *old*. While it is little, it is collected as well, every few seconds. When it
  has become much, it is mostly new items: it is *frozen* (``gc.freeze``, a constant time), and nothing
  looks at it any more. A burst so costs nothing, and a steady queue a few milliseconds now and then;
- everything, frozen or not, is looked at once in ``FULL_PERIOD_S``, if the number of items tells that it
  takes ``FULL_MS_MAX`` at most. With a large state it does not happen. What that leaves is a connection
  that was open while old objects were frozen: 20 KiB when it closes.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

from ringraft.clock import Clock

log = logging.getLogger(__name__)

YOUNG = 2_000
"""Objects made, less those freed, between two collections of what is new."""
PORTIONS = 10
NEVER = 1_000_000_000
LOOK_S = 5.0
OLD_MAX = 20_000
"""Old objects that are still looked at: at 0.4 µs for one that is in no cache, 8 ms."""
FULL_PERIOD_S = 600.0
FULL_MS_MAX = 25.0
FULL_US_AN_ITEM = 1.2
FULL_MS_BESIDE = 15.0
"""What a full collection takes for everything that is no item."""


class Memory:
    """The policy of this process. ``items`` says how many the state holds."""

    def __init__(self, *, clock: Clock, items: Callable[[], int]) -> None:
        self._clock = clock
        self._items = items
        self._old = 0
        """At most so many objects have become old since the last freeze."""
        self._full_s = clock.monotonic_s()

    def begin(self) -> None:
        """Before the state is restored: making a million objects would set off full collections all the while."""
        gc.set_threshold(YOUNG, PORTIONS, NEVER)

    def keep(self) -> None:
        """The state is restored: whatever is there stays."""
        gc.freeze()

    def settle(self) -> None:
        """The node has started: what that has left behind goes, the rest stays."""
        gc.collect()
        gc.freeze()

    async def look(self) -> None:
        """Deal with what has become old; call it every ``LOOK_S``."""
        portions = gc.get_count()[2]
        self._old += portions * PORTIONS * YOUNG
        if self._is_full_due():
            self._collect_all()
        elif self._old > OLD_MAX:
            gc.freeze()
            self._old = 0
        elif portions:
            gc.collect()

    def _is_full_due(self) -> bool:
        takes_ms = FULL_MS_BESIDE + self._items() * FULL_US_AN_ITEM / 1000
        return takes_ms <= FULL_MS_MAX and self._clock.monotonic_s() - self._full_s >= FULL_PERIOD_S

    def _collect_all(self) -> None:
        self._full_s = began_s = self._clock.monotonic_s()
        gc.unfreeze()
        found = gc.collect()
        gc.freeze()
        self._old = 0
        took_ms = round((self._clock.monotonic_s() - began_s) * 1000, 1)
        log.debug("collected everything action=memory_full found=%d took_ms=%s", found, took_ms)
