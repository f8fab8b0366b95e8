"""The digest of the state, kept up as records change.

It is SHA-256 over (index, log time, sum modulo 2**256 of the SHA-256 of every record in canonical
encoding). A sum can be kept up in any order: each change takes the old record's hash away and adds
the new one's.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from ringraft.state.codec import Record, pack_item, pack_record, pack_spec
from ringraft.state.records import Item

MODULUS = 1 << 256


class Digest:
    """The sum, and what the present entry has touched and still has to be folded in."""

    __slots__ = ("_clock_hash", "_items", "_records", "_sum")

    def __init__(self) -> None:
        self._sum = 0
        self._clock_hash = 0
        self._items: dict[int, tuple[Item | None, Item | None]] = {}
        self._records: dict[object, tuple[Record | None, Record | None]] = {}

    def touch_item(self, old: Item | None, new: Item | None) -> None:
        """Note one change; several in one entry cost as much as one."""
        item = new or old
        assert item is not None
        seq = item.spec.seq
        first = self._items.get(seq)
        self._items[seq] = (old if first is None else first[0], new)

    def touch(self, name: object, old: Record | None, new: Record | None) -> None:
        """The same for any other record; ``name`` tells it from all others."""
        first = self._records.get(name)
        self._records[name] = (old if first is None else first[0], new)

    def touched_items(self) -> Iterable[tuple[int, tuple[Item | None, Item | None]]]:
        """(seq, (before the entry, now)) of the items that the present entry has touched."""
        return self._items.items()

    def touched_records(self) -> Iterable[tuple[Record | None, Record | None]]:
        """The same of the other records."""
        return self._records.values()

    def add(self, encoded: bytes) -> None:
        """Take in one record that was not there before, at once; ``fold`` follows."""
        self._sum += _hash(encoded)

    def fold(self, clock: bytes) -> None:
        """Take in all that was touched. ``clock`` is the encoding of what changes with every entry."""
        total = self._sum
        for old_item, new_item in self._items.values():
            if old_item is not None:
                total -= _hash(pack_item(old_item))
            if new_item is not None:
                total += _hash(pack_item(new_item))
            if old_item is None and new_item is not None:
                total += _hash(pack_spec(new_item.spec))
            elif new_item is None and old_item is not None:
                total -= _hash(pack_spec(old_item.spec))
        for old, new in self._records.values():
            if old is not None:
                total -= _hash(pack_record(old))
            if new is not None:
                total += _hash(pack_record(new))
        self._items.clear()
        self._records.clear()
        clock_hash = _hash(clock)
        self._sum = (total + clock_hash - self._clock_hash) % MODULUS
        self._clock_hash = clock_hash

    def hexdigest(self, index: int, log_ms: int) -> str:
        """The digest of the state as last folded."""
        head = index.to_bytes(8, "big") + log_ms.to_bytes(8, "big")
        return sha256(head + self._sum.to_bytes(32, "big")).hexdigest()


def _hash(encoded: bytes) -> int:
    return int.from_bytes(sha256(encoded).digest(), "big")
