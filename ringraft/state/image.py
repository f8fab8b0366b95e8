"""The snapshot's bytes: a header, every record in canonical encoding, and the digest at the end.

The records are immutable, so taking an image is listing references; the encoding is done slice by
slice, while apply goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgpack

from ringraft.state.codec import (
    CodecError,
    Record,
    epoch_from_list,
    item_from_list,
    pack_item,
    pack_record,
    pack_spec,
    pack_value,
    record_from_list,
    spec_from_list,
)
from ringraft.state.model import FINAL, LEASED, Limits
from ringraft.state.records import AgendaRecord, ClassRecord, Item, ItemSpec, KeyRecord, NodeRecord, VoterRecord
from ringraft.state.tables import Tables

MAGIC = "ringraft state"
VERSION = 2
SLICE_BYTES = 256 * 1024


def pack_clock(tables: Tables) -> bytes:
    """What is no record and not in the digest's own head; most of it changes with every entry."""
    return pack_value(
        [
            *("clock", list(tables.epoch), tables.clock, tables.wall_ms, tables.is_configured),
            *(tables.begun_index, tables.voters_index, tables.formation_id),
        ]
    )


def slices(tables: Tables, digest: str) -> Iterator[bytes]:
    """The image as of this call; nothing is read from ``tables`` later."""
    head = [
        *(MAGIC, VERSION, tables.index, tables.log_ms, tables.wall_ms),
        *(list(tables.epoch), tables.clock, tables.is_configured, len(tables.items)),
        *(tables.begun_index, tables.voters_index, tables.formation_id),
    ]
    items = list(tables.items.values())
    others: list[Record] = [tables.limits, *tables.nodes.values(), *tables.voters.values()]
    others += tables.classes.values()
    others += tables.agenda.values()
    others += tables.keys.values()
    return _encode(head, items, others, digest)


def _encode(head: list[Any], items: list[Item], others: list[Record], digest: str) -> Iterator[bytes]:
    buffer = bytearray(pack_value(head))
    for parts in _encoded_records(items, others):
        buffer += parts
        while len(buffer) >= SLICE_BYTES:
            yield bytes(buffer[:SLICE_BYTES])
            del buffer[:SLICE_BYTES]
    buffer += pack_value(["end", digest])
    while buffer:
        yield bytes(buffer[:SLICE_BYTES])
        del buffer[:SLICE_BYTES]


def _encoded_records(items: list[Item], others: list[Record]) -> Iterator[bytes]:
    for item in items:
        yield pack_spec(item.spec)
        yield pack_item(item)
    for record in others:
        yield pack_record(record)


def pack_one(item: Item) -> bytes:
    """One item by itself, for whoever keeps it beyond the state."""
    return pack_value(VERSION) + pack_spec(item.spec) + pack_item(item)


def unpack_one(data: bytes) -> Item:
    """What ``pack_one`` wrote. CodecError for anything else."""
    values = list(_values([data]))
    if len(values) != 3 or values[0] != VERSION:
        raise CodecError(f"this is not one item of version {VERSION}")
    where = "the kept item"
    return item_from_list(values[2], spec_from_list(values[1], where), where)


def load(tables: Tables, chunks: Iterable[bytes]) -> str:
    """Fill fresh ``tables`` with an image's records, without indexes; returns the digest it was taken with.

    Raises CodecError for anything but a whole image of a known version.
    """
    values = _values(chunks)
    count = _load_header(tables, next(values, None))
    spec: ItemSpec | None = None
    for number, value in enumerate(values):
        where = f"the snapshot's value {number}"
        if type(value) is not list or not value or type(value[0]) is not str:
            raise CodecError(f"{where} is not a record")
        if value[0] == "end":
            if len(value) != 2 or type(value[1]) is not str or len(tables.items) != count:
                raise CodecError(f"the snapshot has {len(tables.items)} items where {count} were taken")
            if next(values, None) is not None:
                raise CodecError("the snapshot goes on after its end")
            return value[1]
        if value[0] == "spec":
            spec = spec_from_list(value, where)
        elif value[0] == "item":
            if spec is None:
                raise CodecError(f"{where} is an item without its spec")
            _load_item(tables, item_from_list(value, spec, where), where)
            spec = None
        else:
            _load_record(tables, record_from_list(value, where))
    raise CodecError("the snapshot breaks off before its end")


def _values(chunks: Iterable[bytes]) -> Iterator[Any]:
    unpacker = msgpack.Unpacker(strict_map_key=False)
    fed = 0
    for chunk in chunks:
        try:
            unpacker.feed(chunk)
            fed += len(chunk)
            yield from unpacker
        except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
            raise CodecError(f"the snapshot is not msgpack: {error or type(error).__name__}") from error
    if unpacker.tell() != fed:
        raise CodecError("the snapshot breaks off inside a value")


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


def _load_item(tables: Tables, item: Item, where: str) -> None:
    newest = next(reversed(tables.items.values()), None)
    if item.spec.id in tables.items or (newest is not None and newest.spec.seq >= item.spec.seq):
        raise CodecError(f"{where}: {item.spec.work_id} is out of order")
    if (item.state in LEASED and item.grant is None) or (item.state in FINAL) != (item.end is not None):
        raise CodecError(f"{where}: {item.spec.work_id} is not whole")
    tables.items[item.spec.id] = item


def _load_record(tables: Tables, record: Record) -> None:
    match record:
        case Limits():
            tables.limits = record
        case NodeRecord():
            tables.nodes[record.node_id.lower()] = record
        case VoterRecord():
            tables.voters[record.node_id.lower()] = record
        case ClassRecord():
            tables.classes[record.work_type, record.class_key] = record
        case AgendaRecord():
            tables.agenda[record.order] = record
        case KeyRecord():
            tables.keys[record.principal, record.key] = record
