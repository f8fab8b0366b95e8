"""The snapshot's bytes: a header, every record in canonical encoding, and the digest at the end.

The records are immutable, so an image that has begun stays as it is while apply goes on: it is
encoded slice by slice, and ``Frozen`` keeps what changes before it is written. Reading one back goes
in steps as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any

import msgpack

from ringraft.state.codec import (
    CodecError,
    Place,
    Record,
    epoch_from_list,
    item_from_list,
    pack_item,
    pack_record,
    pack_spec,
    pack_value,
    record_from_list,
    spec_from_list,
    told,
)
from ringraft.state.digest import Digest
from ringraft.state.model import FINAL, LEASED, Limits
from ringraft.state.records import AgendaRecord, ClassRecord, Item, ItemSpec, KeyId, KeyRecord, NodeRecord, VoterRecord
from ringraft.state.tables import Tables

MAGIC = "ringraft state"
VERSION = 2
SLICE_BYTES = 256 * 1024
"""About 850 items of 200-byte configs, 4 ms of encoding."""
PAGE_ITEMS = 64
BIRTHS_PER_VALUE = 16
STEP_VALUES = 64
"""About a millisecond of reading."""


def pack_clock(tables: Tables) -> bytes:
    """What is no record and not in the digest's own head; most of it changes with every entry."""
    return pack_value(
        [
            *("clock", list(tables.epoch), tables.clock, tables.wall_ms, tables.is_configured),
            *(tables.begun_index, tables.voters_index, tables.formation_id),
        ]
    )


class Frozen:
    """The records as they are when it is made, however long after that they are written.

    Nothing is copied: it walks the records in order of age and is told what changes meanwhile
    (``keep``), of which it keeps the old version if it has not come to it yet. So making it takes the
    same short time whatever the number of items; two lists of a million references would take 50 ms.
    """

    def __init__(self, tables: Tables, digest: str) -> None:
        self.digest = digest
        self.head = [
            *(MAGIC, VERSION, tables.index, tables.log_ms, tables.wall_ms),
            *(list(tables.epoch), tables.clock, tables.is_configured, len(tables.items)),
            *(tables.begun_index, tables.voters_index, tables.formation_id),
        ]
        self.others: list[Record] = [tables.limits, *tables.nodes.values(), *tables.voters.values()]
        self.others += tables.classes.values()
        self.others += tables.agenda.values()
        self._tables = tables
        self._last = tables.indexes.order.newest
        self._at = -1
        """Items up to this age are written."""
        self._items: dict[int, Item] = {}
        """As they were, by age: changed since, and not written yet."""
        self._gone: list[int] = []
        """A heap of those of them that are no longer there."""
        self._keys: dict[KeyId, KeyRecord | None] = {}
        """As they were, of those changed since; None for a new one."""
        self._are_keys_taken = False

    def keep(self, digest: Digest) -> None:
        """Take note of what an entry has just changed."""
        for seq, (old_item, new_item) in digest.touched_items():
            if old_item is not None and self._at < seq <= self._last:
                self._items.setdefault(seq, old_item)
                if new_item is None:
                    heappush(self._gone, seq)
        if not self._are_keys_taken:
            for old, new in digest.touched_records():
                record = old or new
                if isinstance(record, KeyRecord):
                    assert old is None or isinstance(old, KeyRecord)
                    self._keys.setdefault((record.principal, record.key), old)

    def page(self) -> list[Item]:
        """The next items, oldest first; none at the end."""
        page: list[Item] = []
        gone, kept = self._gone, self._items
        walk = self._tables.indexes.order.after(self._at)
        seq, name = next(walk, (self._last + 1, ""))
        while len(page) < PAGE_ITEMS:
            if gone and gone[0] < seq:
                self._at = heappop(gone)
                page.append(kept.pop(self._at))
            elif seq <= self._last:
                self._at = seq
                page.append(kept.pop(seq) if seq in kept else self._tables.items[name])
                seq, name = next(walk, (self._last + 1, ""))
            else:
                break
        return page

    def keys(self) -> Iterator[KeyRecord]:
        """All keys; to be asked for after the items. They have no order of age to walk, so their references
        are listed, 25 ns each."""
        self._are_keys_taken = True
        kept = self._keys
        for record in list(self._tables.keys.values()):
            key_id = (record.principal, record.key)
            was = kept.pop(key_id) if key_id in kept else record
            if was is not None:
                yield was
        yield from (was for was in kept.values() if was is not None)


def slices(frozen: Frozen) -> Iterator[bytes]:
    """The image, in slices; ``frozen`` is told of every entry that is applied between them."""
    buffer = bytearray(pack_value(frozen.head))
    while page := frozen.page():
        for item in page:
            buffer += pack_spec(item.spec)
            buffer += pack_item(item)
        yield from _full_slices(buffer)
    for record in frozen.others:
        buffer += pack_record(record)
    yield from _full_slices(buffer)
    for record in frozen.keys():
        buffer += pack_record(record)
        if len(buffer) >= SLICE_BYTES:
            yield from _full_slices(buffer)
    buffer += pack_value(["end", frozen.digest])
    yield from _full_slices(buffer)
    if buffer:
        yield bytes(buffer)


def _full_slices(buffer: bytearray) -> Iterator[bytes]:
    while len(buffer) >= SLICE_BYTES:
        yield bytes(buffer[:SLICE_BYTES])
        del buffer[:SLICE_BYTES]


def join_one(spec: bytes, item: bytes) -> bytes:
    """One packed item by itself, for whoever keeps it beyond the state."""
    return pack_value(VERSION) + spec + item


def unpack_one(data: bytes) -> Item:
    """What ``join_one`` wrote. CodecError for anything else."""
    where = "the kept item"
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(data)
    try:
        values = list(unpacker)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise CodecError(f"{where} is not msgpack: {error or type(error).__name__}") from error
    if unpacker.tell() != len(data) or len(values) != 3 or values[0] != VERSION:
        raise CodecError(f"this is not one item of version {VERSION}")
    return item_from_list(values[2], spec_from_list(values[1], where), where)


class Reader:
    """Fills fresh ``tables`` from an image, chunk by chunk, so that whoever drives it can do else in between."""

    def __init__(self, tables: Tables) -> None:
        self.digest = Digest()
        self._tables = tables
        self._unpacker = msgpack.Unpacker(strict_map_key=False)
        self._fed = 0
        self._number = 0
        """Of the next value."""
        self._work = 0
        """What the present step has come to, in values."""
        self._count = 0
        """How many items there are to be."""
        self._spec: ItemSpec | None = None
        self._newest = -1
        self._taken_with: str | None = None

    def take(self, chunk: bytes) -> Iterator[None]:
        """Take the next bytes; a step is ``STEP_VALUES`` of their values. Raises CodecError."""
        for value in self._values(chunk):
            self._take(value)
            self._number += 1
            self._work += 1
            if self._work >= STEP_VALUES:
                self._work = 0
                yield

    def end(self) -> None:
        """Nothing follows. Raises CodecError unless it was one whole image."""
        if self._unpacker.tell() != self._fed:
            raise CodecError("the snapshot breaks off inside a value")
        if self._taken_with is None:
            raise CodecError("the snapshot breaks off before its end")
        tables = self._tables
        self.digest.add(pack_record(tables.limits))
        self.digest.fold(pack_clock(tables))
        if self.digest.hexdigest(tables.index, tables.log_ms) != self._taken_with:
            why = f"the snapshot's records do not have the digest {self._taken_with} that it was taken with"
            raise CodecError(why)
        tables.indexes.classes_before.clear()

    def _values(self, chunk: bytes) -> Iterator[Any]:
        try:
            self._unpacker.feed(chunk)
            self._fed += len(chunk)
            yield from self._unpacker
        except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
            raise CodecError(f"the snapshot is not msgpack: {error or type(error).__name__}") from error

    def _take(self, value: Any) -> None:
        tables, where = self._tables, ("the snapshot", self._number)
        if self._number == 0:
            self._count = _load_header(tables, value)
            return
        if self._taken_with is not None:
            raise CodecError("the snapshot goes on after its end")
        if type(value) is not list or not value or type(value[0]) is not str:
            raise CodecError(f"{told(where)} is not a record")
        kind = value[0]
        if kind == "spec":
            self._spec = spec_from_list(value, where)
        elif kind == "item":
            if self._spec is None:
                raise CodecError(f"{told(where)} is an item without its spec")
            self._take_item(item_from_list(value, self._spec, where), where)
            self._spec = None
        elif kind == "end":
            if len(value) != 2 or type(value[1]) is not str or len(tables.items) != self._count:
                raise CodecError(f"the snapshot has {len(tables.items)} items where {self._count} were taken")
            self._taken_with = value[1]
        else:
            self._take_record(record_from_list(value, where))

    def _take_item(self, item: Item, where: Place) -> None:
        spec, tables = item.spec, self._tables
        if spec.id in tables.items or spec.seq <= self._newest:
            raise CodecError(f"{told(where)}: {spec.work_id} is out of order")
        if (item.state in LEASED and item.grant is None) or (item.state in FINAL) != (item.end is not None):
            raise CodecError(f"{told(where)}: {spec.work_id} is not whole")
        self._newest = spec.seq
        # Of what was decoded, not the bytes that came: so the codec's two directions check each other.
        self.digest.add(pack_spec(spec))
        self.digest.add(pack_item(item))
        tables.items[spec.id] = item
        tables.indexes.replace(None, item)

    def _take_record(self, record: Record) -> None:
        tables = self._tables
        if isinstance(record, Limits):
            tables.limits = record
            return
        self.digest.add(pack_record(record))
        match record:
            case NodeRecord():
                tables.nodes[record.node_id.lower()] = record
            case VoterRecord():
                tables.voters[record.node_id.lower()] = record
            case ClassRecord():
                tables.classes[record.work_type, record.class_key] = record
            case AgendaRecord():
                tables.agenda[record.order] = record
            case KeyRecord():
                key_id = (record.principal, record.key)
                tables.keys[key_id] = record
                tables.indexes.replace_key(key_id, record)
                # The key of a batch has a thousand births, each looked up: 1.5 ms.
                self._work += len(record.births) // BIRTHS_PER_VALUE


def _load_header(tables: Tables, head: Any) -> int:
    if type(head) is not list or len(head) < 2 or head[0] != MAGIC:
        raise CodecError("this is not a snapshot of ringraft's state")
    if type(head[1]) is not int or head[1] != VERSION:
        raise CodecError(f"the snapshot has version {head[1]!r}; this program reads version {VERSION}")
    if len(head) != 12 or type(head[7]) is not bool or type(head[11]) is not str:
        raise CodecError("the snapshot's header is damaged")
    if any(type(number) is not int for number in (*head[2:5], head[6], *head[8:11])) or min(head[2], head[3]) < 0:
        raise CodecError("the snapshot's header is damaged")
    tables.index, tables.log_ms, tables.wall_ms = head[2:5]
    tables.epoch = epoch_from_list(head[5], "the snapshot's epoch")
    tables.clock, tables.is_configured = head[6:8]
    tables.begun_index, tables.voters_index, tables.formation_id = head[9:12]
    return int(head[8])
