"""Entries, commands and records as versioned msgpack.

Commands and their parts are maps that leave out what has its default value, so that an entry stays
short and a reader that meets a field it does not know says which. Records, which are encoded at
every step for the digest, are lists whose layout belongs to the snapshot's version. Decoding
checks every type and raises ``CodecError``, nothing else, whatever the bytes are.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from itertools import compress
from operator import attrgetter, is_not
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgpack

from ringraft.state import commands as ops
from ringraft.state.model import Command, Entry, Epoch, HistoryEntry, Key, Limits
from ringraft.state.records import (
    AgendaRecord,
    ClassRecord,
    End,
    Grant,
    Item,
    ItemSpec,
    KeyRecord,
    NodeRecord,
    VoterRecord,
)

ENTRY_VERSION = 1
COMMAND_VERSION = 2
"""The newest version of commands that this program knows; a voter announces it through the log."""
INT_MAX = 1 << 56
"""Larger integers than any that the state machine makes; sums of a few stay inside 64 bits."""

OPS: dict[str, type[Any]] = {
    "add": ops.Add,
    "add_batch": ops.AddBatch,
    "claim": ops.Claim,
    "start": ops.Start,
    "renew": ops.Renew,
    "complete": ops.Complete,
    "complete_batch": ops.CompleteBatch,
    "fail": ops.Fail,
    "release": ops.Release,
    "cancel": ops.Cancel,
    "retry": ops.Retry,
    "tick": ops.Tick,
    "register_node": ops.RegisterNode,
    "node_status": ops.NodeStatus,
    "begin": ops.Begin,
    "configure": ops.Configure,
    "form_voters": ops.FormVoters,
    "announce_voter": ops.AnnounceVoter,
    "admit_voter": ops.AdmitVoter,
    "add_learner": ops.AddLearner,
    "remove_voter": ops.RemoveVoter,
}
TAGS = {op: tag for tag, op in OPS.items()}
SINCE = {op: 1 for op in OPS.values()} | {ops.AdmitVoter: 2, ops.AddLearner: 2, ops.RemoveVoter: 2}
"""The command version since which each kind exists. A leader proposes a kind only once every voter has
announced that version; forming and announcing, by which versions become known, were there from the start."""

T = TypeVar("T")
Place = str | tuple[Any, str | int]
"""Where a value stands: a name, or (the place around it, its field or number). Put into words only for an error."""
Encode = Callable[[Any], Any]
Decode = Callable[[Any, Place], Any]


class CodecError(ValueError):
    """Bytes that are not what they should be; says where and what."""


def told(where: Place) -> str:
    """A place in words: ``entry.commands[3].add.item``."""
    if isinstance(where, str):
        return where
    around, part = where
    return f"{told(around)}[{part}]" if isinstance(part, int) else f"{told(around)}.{part}"


class Coding(NamedTuple):
    """How a type is written and read. Both ways check it, so that only what can be read is ever written."""

    encode: Encode
    decode: Decode
    plain: type[Any] | None = None
    """A value of exactly this type is written and read as it is: no call is needed to say so."""


def _plain(kind: type[Any]) -> Coding:
    is_int = kind is int

    def encode(value: Any) -> Any:
        if type(value) is not kind or (is_int and not -INT_MAX <= value <= INT_MAX):
            raise CodecError(f"{value!r:.80} cannot be written as {kind.__name__}")
        return value

    def decode(value: Any, where: Place) -> Any:
        if type(value) is not kind:
            raise CodecError(f"{told(where)} is {type(value).__name__}, not {kind.__name__}")
        if is_int and not -INT_MAX <= value <= INT_MAX:
            raise CodecError(f"{told(where)} is {value}, beyond {INT_MAX}")
        return value

    return Coding(encode, decode, None if is_int else kind)


def _optional(inner: Coding) -> Coding:
    def encode(value: Any) -> Any:
        return None if value is None else inner.encode(value)

    def decode(value: Any, where: Place) -> Any:
        return None if value is None else inner.decode(value, where)

    return Coding(encode, decode, inner.plain)


def _sequence(inner: Coding) -> Coding:
    def encode(value: Any) -> Any:
        if type(value) is not tuple:
            raise CodecError(f"{value!r:.80} cannot be written as a tuple")
        return [inner.encode(one) for one in value]

    def decode(value: Any, where: Place) -> Any:
        if type(value) is not list:
            raise CodecError(f"{told(where)} is {type(value).__name__}, not a list")
        return tuple([inner.decode(one, (where, number)) for number, one in enumerate(value)])

    return Coding(encode, decode)


def _pair(inner: list[Coding], kind: type[Any] = tuple) -> Coding:
    def encode(value: Any) -> Any:
        if type(value) is not kind or len(value) != len(inner):
            raise CodecError(f"{value!r:.80} cannot be written as a {kind.__name__} of {len(inner)}")
        return [one.encode(part) for one, part in zip(inner, value, strict=True)]

    def decode(value: Any, where: Place) -> Any:
        if type(value) is not list or len(value) != len(inner):
            raise CodecError(f"{told(where)} is not a list of {len(inner)}")
        return tuple([one.decode(part, where) for one, part in zip(inner, value, strict=True)])

    return Coding(encode, decode)


def _enum(kind: type[StrEnum]) -> Coding:
    known = {one.value: one for one in kind}

    def encode(value: Any) -> Any:
        if type(value) is not kind:
            raise CodecError(f"{value!r:.80} cannot be written as {kind.__name__}")
        return value.value

    def decode(value: Any, where: Place) -> Any:
        if not isinstance(value, str) or value not in known:
            raise CodecError(f"{told(where)} is {value!r}, which is no {kind.__name__}")
        return known[value]

    return Coding(encode, decode)


def _coding(hint: Any) -> Coding:
    if hint in (int, str, bytes, bool):
        return _plain(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        [inner] = [arg for arg in args if arg is not type(None)]
        return _optional(_coding(inner))
    if origin is tuple:
        return _sequence(_coding(args[0])) if args[-1] is Ellipsis else _pair([_coding(arg) for arg in args])
    if hint is Epoch:
        pair = _pair([_plain(int), _plain(int)], Epoch)
        return Coding(pair.encode, lambda value, where: Epoch(*pair.decode(value, where)))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _enum(hint)
    if is_dataclass(hint) or hasattr(hint, "_fields"):
        form = Form(hint)
        return Coding(form.to_map, form.from_map)
    raise TypeError(f"no coding for {hint}")


def _fields(kind: Any) -> list[tuple[str, Any]]:
    """(name, default or MISSING) of what a dataclass or named tuple is made of."""
    if is_dataclass(kind):
        return [(one.name, one.default) for one in fields(kind) if one.init]
    return [(name, kind._field_defaults.get(name, MISSING)) for name in kind._fields]


class Form:
    """How one record is written, as a map by field name or as a list in field order."""

    def __init__(self, kind: Any) -> None:
        hints = get_type_hints(kind)
        found = [(name, default, _coding(hints[name])) for name, default in _fields(kind)]
        self._kind = kind
        self._fields = [(name, default, coding.plain, coding.encode) for name, default, coding in found]
        self._defaults = [default for _, default, _ in found]
        self._numbers = range(len(found))
        self._codings = {name: (coding.plain, coding.decode) for name, _, coding in found}
        self._required = frozenset(name for name, default, _ in found if default is MISSING)
        names = [name for name, _, _ in found]
        # One call for all fields; with a single name it would give the bare value.
        self.parts: Callable[[Any], tuple[Any, ...]] = (
            attrgetter(*names) if len(names) > 1 else lambda value: tuple([getattr(value, name) for name in names])
        )

    def to_map(self, value: Any) -> dict[str, Any]:
        """Only what differs from its default."""
        if type(value) is not self._kind:
            raise CodecError(f"{value!r:.80} is not {self._kind.__name__}")
        result = {}
        parts = self.parts(value)
        # Most parts are the very default, which is found without a step of this loop for each.
        for number in compress(self._numbers, map(is_not, parts, self._defaults)):
            part, (name, default, plain, encode) = parts[number], self._fields[number]
            if part != default or type(part) is not type(default):
                result[name] = part if type(part) is plain else encode(part)
        return result

    def from_map(self, value: Any, where: Place) -> Any:
        if type(value) is not dict:
            raise CodecError(f"{told(where)} is {type(value).__name__}, not a map")
        parts = {}
        for name, part in value.items():
            coding = self._codings.get(name)
            if coding is None:
                raise CodecError(
                    f"{told(where)} has the unknown field {name!r}: it is from a newer version, or damaged"
                )
            parts[name] = part if type(part) is coding[0] else coding[1](part, (where, name))
        if not self._required <= parts.keys():
            raise CodecError(f"{told(where)} lacks {', '.join(sorted(self._required - parts.keys()))}")
        return self._kind(**parts)

    def to_list(self, value: Any) -> list[Any]:
        if type(value) is not self._kind:
            raise CodecError(f"{value!r:.80} is not {self._kind.__name__}")
        parts = zip(self.parts(value), self._fields, strict=True)
        return [part if type(part) is plain else encode(part) for part, (_, _, plain, encode) in parts]

    def from_list(self, value: Any, where: Place) -> Any:
        if type(value) is not list or len(value) != len(self._fields):
            raise CodecError(f"{told(where)} is not a list of {len(self._fields)} fields")
        parts = [
            part if type(part) is plain else decode(part, (where, name))
            for part, (name, (plain, decode)) in zip(value, self._codings.items(), strict=True)
        ]
        return self._kind(*parts)


_OP_FORMS = {tag: Form(kind) for tag, kind in OPS.items()}
_KEY = Form(Key)
_INT = _plain(int)
_packer = msgpack.Packer()


def unpack(data: bytes, what: str) -> Any:
    """One msgpack value and nothing after it."""
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise CodecError(f"{what} is not msgpack: {error or type(error).__name__}") from error


def encode_entry(entry: Entry) -> bytes:
    """The entry as it travels in the log. CodecError, or UnicodeEncodeError for half a surrogate pair.

    Whatever this writes ``decode_entry`` reads, as an equal entry: each type is checked on its way out.
    """
    commands = [_command_to_list(command) for command in entry.commands]
    times = _INT.encode(entry.log_ms), _INT.encode(entry.wall_ms)
    return bytes(_packer.pack([ENTRY_VERSION, *times, _EPOCH.encode(entry.epoch), commands]))


def encode_command(command: Command) -> bytes:
    """One command alone: its share of an entry's size."""
    return bytes(_packer.pack(_command_to_list(command)))


def _command_to_list(command: Command) -> list[Any]:
    tag = TAGS.get(type(command.op))
    if tag is None:
        raise CodecError(f"{type(command.op).__name__} is no command")
    parts = _OP_FORMS[tag].to_map(command.op)
    return [tag, parts] if command.key is None else [tag, parts, _KEY.to_list(command.key)]


def decode_entry(data: bytes) -> Entry:
    """The reverse of ``encode_entry``; CodecError names what is unknown or wrong."""
    parts = unpack(data, "the entry")
    if type(parts) is not list or not parts:
        raise CodecError("the entry is not a list")
    if type(parts[0]) is not int or parts[0] != ENTRY_VERSION:
        raise CodecError(f"the entry has version {parts[0]!r}; this program reads version {ENTRY_VERSION}")
    if len(parts) != 5 or type(parts[4]) is not list:
        raise CodecError("the entry is not a list of version, log_ms, wall_ms, epoch and commands")
    epoch = _EPOCH.decode(parts[3], "entry.epoch")
    commands = tuple([_command_from_list(one, ("entry.commands", number)) for number, one in enumerate(parts[4])])
    return Entry(_INT.decode(parts[1], "entry.log_ms"), _INT.decode(parts[2], "entry.wall_ms"), epoch, commands)


def decode_command(data: bytes) -> Command:
    """The reverse of ``encode_command``."""
    return _command_from_list(unpack(data, "the command"), "command")


def _command_from_list(value: Any, where: Place) -> Command:
    if type(value) is not list or len(value) not in (2, 3):
        raise CodecError(f"{told(where)} is not a list of verb, fields and key")
    form = _OP_FORMS.get(value[0]) if type(value[0]) is str else None
    if form is None:
        raise CodecError(f"{told(where)} has the unknown verb {value[0]!r}: it is from a newer version, or damaged")
    key = _KEY.from_list(value[2], (where, "key")) if len(value) == 3 else None
    return Command(form.from_map(value[1], (where, value[0])), key)


# -- records -----------------------------------------------------------------------------------------------------

_EPOCH = _coding(Epoch)
_SPEC, _ITEM, _NEW = Form(ItemSpec), Form(Item), _coding(get_type_hints(ItemSpec)["new"])
_OTHERS: dict[str, Form] = {
    "class": Form(ClassRecord),
    "key": Form(KeyRecord),
    "node": Form(NodeRecord),
    "agenda": Form(AgendaRecord),
    "voter": Form(VoterRecord),
    "limits": Form(Limits),
}
_OTHER_TAGS = {
    ClassRecord: "class",
    KeyRecord: "key",
    NodeRecord: "node",
    AgendaRecord: "agenda",
    VoterRecord: "voter",
    Limits: "limits",
}
Record = ClassRecord | KeyRecord | NodeRecord | AgendaRecord | VoterRecord | Limits

_HISTORY, _GRANT, _END = Form(HistoryEntry), Form(Grant), Form(End)


def pack_spec(spec: ItemSpec) -> bytes:
    """The canonical form of what is fixed about an item."""
    parts = ["spec", spec.work_id, spec.seq, _NEW.encode(spec.new), spec.parent, spec.created_wall_ms]
    return bytes(_packer.pack(parts))


def pack_item(item: Item) -> bytes:
    """The canonical form of what changes about an item. Written out, because this is most of an apply."""
    grant, end = item.grant, item.end
    return bytes(
        _packer.pack(
            (
                "item",
                item.spec.seq,
                item.state,
                item.attempt,
                item.wake_log_ms,
                item.wake_wall_ms,
                None
                if grant is None
                else (
                    grant.node_id,
                    grant.token,
                    grant.lease_ms,
                    grant.expires_log_ms,
                    grant.expires_wall_ms,
                    grant.started_log_ms,
                    grant.started_wall_ms,
                    grant.verdict,
                    grant.verdict_wall_ms,
                ),
                item.progress,
                item.error,
                [(h.attempt, h.node_id, h.token, h.outcome, h.reason, h.at_wall_ms) for h in item.history],
                None
                if end is None
                else (
                    end.wall_ms,
                    end.retire_log_ms,
                    end.verb,
                    end.token,
                    end.result,
                    end.artifacts,
                    end.spawned,
                    end.then,
                ),
            )
        )
    )


def pack_record(record: Record) -> bytes:
    """The canonical form of any other record."""
    tag = _OTHER_TAGS[type(record)]
    # All their parts are plain values and tuples of such, which are written as they are.
    return bytes(_packer.pack((tag, *_OTHERS[tag].parts(record))))


def pack_value(value: Any) -> bytes:
    """A plain value, such as an outcome to keep."""
    return bytes(_packer.pack(value))


def spec_from_list(value: list[Any], where: Place) -> ItemSpec:
    """What ``pack_spec`` wrote."""
    if len(value) != 6:
        raise CodecError(f"{told(where)} is not a list of 6")
    spec: ItemSpec = _SPEC.from_list(
        [value[1], value[2], value[3], value[4], value[5]],
        where,
    )
    return spec


def item_from_list(value: list[Any], spec: ItemSpec, where: Place) -> Item:
    """What ``pack_item`` wrote, with the spec that came before it."""
    if len(value) != 11 or value[1] != spec.seq:
        raise CodecError(f"{told(where)} is not the item that belongs to {spec.work_id}")
    parts = [decode(part, (where, name)) for part, (name, decode) in zip(value[2:], _ITEM_PARTS, strict=True)]
    return Item(spec, *parts)


def record_from_list(value: list[Any], where: Place) -> Record:
    """What ``pack_record`` wrote."""
    form = _OTHERS.get(value[0])
    if form is None:
        raise CodecError(f"{told(where)} is of the unknown kind {value[0]!r}: it is from a newer version, or damaged")
    record: Record = form.from_list(value[1:], where)
    return record


def epoch_from_list(value: Any, where: Place) -> Epoch:
    epoch: Epoch = _EPOCH.decode(value, where)
    return epoch


def _listed(form: Form) -> Coding:
    return Coding(form.to_list, form.from_list)


def _item_parts() -> list[tuple[str, Decode]]:
    hints = get_type_hints(Item)
    listed = {"grant": _optional(_listed(_GRANT)), "end": _optional(_listed(_END))}
    listed["history"] = _sequence(_listed(_HISTORY))
    names = [name for name in Item._fields if name != "spec"]
    return [(name, (listed.get(name) or _coding(hints[name])).decode) for name in names]


_ITEM_PARTS = _item_parts()
