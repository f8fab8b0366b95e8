"""The digest of the state, kept up as records change.

It is SHA-256 over (index, log time, sum modulo 2**256 of the SHA-256 of every record in canonical
encoding). A sum can be kept up in any order: each change takes the old record's hash away and adds
the new one's. So the newest changes are only noted, and hashed when they are many or when somebody
asks: a record that changes several times meanwhile is hashed once.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from ringraft.state.codec import Record, pack_item, pack_record, pack_spec
from ringraft.state.records import Item

MODULUS = 1 << 256

NOTED_MAX = 2048
"""Changes of items, and as many of other records, that are noted and not hashed yet: what asking for the
digest may have to hash first, 8 ms at 4 µs a change."""


class Digest:
    """The sum, and the changes that still have to be folded into it."""

    __slots__ = ("_clock_hash", "_items", "_records", "_sum")

    def __init__(self) -> None:
        self._sum = 0
        self._clock_hash = 0
        # What was folded last, and what it is now; the one that was noted first comes first.
        self._items: dict[int, tuple[Item | None, Item | None]] = {}
        self._records: dict[object, tuple[Record | None, Record | None]] = {}

    def touch_item(self, old: Item | None, new: Item | None) -> None:
        """Note one change; several before it is folded cost as much as one."""
        item = old if new is None else new
        assert item is not None
        seq = item.spec.seq
        first = self._items.get(seq)
        self._items[seq] = (old if first is None else first[0], new)

    def touch(self, name: object, old: Record | None, new: Record | None) -> None:
        """The same for any other record; ``name`` tells it from all others."""
        first = self._records.get(name)
        self._records[name] = (old if first is None else first[0], new)

    def touched_items(self) -> Iterable[tuple[int, tuple[Item | None, Item | None]]]:
        """(seq, (as last folded, now)) of the items that are noted."""
        return self._items.items()

    def touched_records(self) -> Iterable[tuple[Record | None, Record | None]]:
        """The same of the other records."""
        return self._records.values()

    def add(self, encoded: bytes) -> None:
        """Take in one record that was not there before, at once; ``fold`` follows."""
        self._sum += _hash(encoded)

    def trim(self) -> None:
        """Fold the oldest changes beyond ``NOTED_MAX``: what is noted keeps records alive that are gone."""
        items, records = self._items, self._records
        while len(items) > NOTED_MAX:
            self._fold_item(*items.pop(next(iter(items))))
        while len(records) > NOTED_MAX:
            self._fold_record(*records.pop(next(iter(records))))

    def fold_packed(self, item: Item, spec: bytes, packed: bytes) -> None:
        """Fold the change to ``item`` if it is noted; ``spec`` and ``packed`` are its encodings."""
        noted = self._items.get(item.spec.seq)
        if noted is None or noted[1] is not item:
            return
        del self._items[item.spec.seq]
        old = noted[0]
        self._sum += _hash(packed) + (_hash(spec) if old is None else -_hash(pack_item(old)))

    def fold(self, clock: bytes) -> None:
        """Take in all that is noted. ``clock`` is the encoding of what changes with every entry."""
        for old_item, new_item in self._items.values():
            self._fold_item(old_item, new_item)
        for old, new in self._records.values():
            self._fold_record(old, new)
        self._items.clear()
        self._records.clear()
        clock_hash = _hash(clock)
        self._sum = (self._sum + clock_hash - self._clock_hash) % MODULUS
        self._clock_hash = clock_hash

    def _fold_item(self, old: Item | None, new: Item | None) -> None:
        if old is not None:
            self._sum -= _hash(pack_item(old))
        if new is not None:
            self._sum += _hash(pack_item(new))
        if old is None and new is not None:
            self._sum += _hash(pack_spec(new.spec))
        elif new is None and old is not None:
            self._sum -= _hash(pack_spec(old.spec))

    def _fold_record(self, old: Record | None, new: Record | None) -> None:
        if old is not None:
            self._sum -= _hash(pack_record(old))
        if new is not None:
            self._sum += _hash(pack_record(new))

    def hexdigest(self, index: int, log_ms: int) -> str:
        """The digest of the state as last folded."""
        head = index.to_bytes(8, "big") + log_ms.to_bytes(8, "big")
        return sha256(head + self._sum.to_bytes(32, "big")).hexdigest()


def _hash(encoded: bytes) -> int:
    return int.from_bytes(sha256(encoded).digest(), "big")
