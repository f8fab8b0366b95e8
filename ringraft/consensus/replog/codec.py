"""What voters say to each other, as msgpack with explicit types; nothing here can run code.

A WebSocket message carries one or more protocol messages, each a msgpack array whose first
element names the kind. Whatever does not fit exactly (kind, number of fields, type, range) is a
``WireError``: the connection it came from is closed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgpack

FRAME_BYTES_MAX = 16 * 1024 * 1024
"""The largest WebSocket message taken from a peer; twice the largest log entry."""

INTEGER_MAX = 2**63 - 1
TEXT_MAX = 512
"""Ids and addresses are far shorter."""


class WireError(Exception):
    """A peer sent something that is not a message of this version."""


class RequestVote(NamedTuple):
    """A candidate asks for a vote in ``term``."""

    term: int
    last_index: int
    last_term: int
    is_asked_to: bool = False
    """The leader itself has asked the candidate to take over."""


class Vote(NamedTuple):
    """The sender's vote for the receiver in ``term``."""

    term: int


class TimeoutNow(NamedTuple):
    """The leader of ``term`` asks the receiver to stand for election at once."""

    term: int


class Append(NamedTuple):
    """Entries that follow ``prev_index``; also the heartbeat, without entries."""

    term: int
    prev_index: int
    prev_term: int
    commit_index: int
    entries: tuple[tuple[int, bytes], ...]
    """(term, command) of ``prev_index + 1`` and on."""
    round: int = 0
    """The newest round of the leader's, in which it asks whether it still leads; counted in each term."""


class Appended(NamedTuple):
    """Answers one Append. It names the ``prev_index`` it answers, so that an old one can be told."""

    term: int
    prev_index: int
    matched: bool
    log_index: int
    """Matched: the log agrees with the leader's up to here. Otherwise: where to look next."""
    log_term: int
    """Not matched: the term of the entry at ``log_index``; else 0."""
    round: int = 0
    """Of the Append that it answers."""


class Chunk(NamedTuple):
    """One piece of the snapshot that ends at ``end_index``, in order by ``number``.

    Number 0 carries the command of the entry at ``end_index``; the ``last`` one carries nothing.
    """

    term: int
    end_index: int
    end_term: int
    prev_term: int
    number: int
    last: bool
    data: bytes


class ChunkTaken(NamedTuple):
    """The receiver has pieces up to ``number`` and, when ``installed``, stands at ``end_index``."""

    term: int
    end_index: int
    number: int
    installed: bool


class AskIndex(NamedTuple):
    """A follower asks the leader for an index that a linearizable read must have applied."""

    term: int
    request: int


class ReadIndex(NamedTuple):
    """Answers AskIndex; ``read_index`` 0 means that the sender could not confirm its leadership."""

    term: int
    request: int
    read_index: int


class Introduce(NamedTuple):
    """Who the sender is and what it may do: the first message on every link, and again when that changes."""

    standing: int
    """A ``seat.Standing``."""
    has_met_log: bool
    """It holds entries, or knows of a log: the cluster exists."""
    data_id: str
    incarnation: int
    command_version: int
    address: str
    """``host:port`` where it wants to be reached."""
    formation_id: str
    your_data_id: str
    """The receiver's directory, as the sender's table has it; empty: it has none."""
    your_incarnation: int
    you_vote: bool
    """The sender's table has the receiver as a voter."""
    knows_you: bool
    """False: the sender's log names who keeps it, and the receiver is not among them."""
    applied_index: int
    """The newest entry that the sender has applied."""
    asks: bool
    """The sender does not know the receiver, and wants to be answered."""


class PreVote(NamedTuple):
    """The sender asks whether it would get a vote in ``term``, which is not begun."""

    term: int
    last_index: int
    last_term: int


class PreVoted(NamedTuple):
    """Answers a PreVote for ``asked_term``; ``term`` is the sender's."""

    term: int
    asked_term: int
    granted: bool


Message = (
    RequestVote
    | Vote
    | TimeoutNow
    | Append
    | Appended
    | Chunk
    | ChunkTaken
    | AskIndex
    | ReadIndex
    | Introduce
    | PreVote
    | PreVoted
)

_KINDS: tuple[type[Message], ...] = (
    RequestVote, Vote, TimeoutNow, Append, Appended, Chunk, ChunkTaken, AskIndex, ReadIndex, Introduce,
    PreVote, PreVoted,
)  # fmt: skip
"""A kind's number is its place; places never change."""

_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_FIELD_TYPES: tuple[tuple[type, ...], ...] = (
    (int, int, int, bool),
    (int,),
    (int,),
    (int, int, int, int, list, int),
    (int, int, bool, int, int, int),
    (int, int, int, int, int, bool, bytes),
    (int, int, int, bool),
    (int, int),
    (int, int, int),
    (int, bool, str, int, int, str, str, str, int, bool, bool, int, bool),
    (int, int, int),
    (int, int, bool),
)


def encode(message: Message) -> bytes:
    """One message, ready to travel."""
    packed: bytes = msgpack.packb((_NUMBERS[type(message)], *message))
    return packed


def decode_all(data: bytes) -> list[Message]:
    """Every message in ``data``; raises WireError if any of it does not fit."""
    unpacker = msgpack.Unpacker(
        None, raw=False, use_list=True, strict_map_key=True, max_buffer_size=FRAME_BYTES_MAX, max_ext_len=0
    )
    messages: list[Message] = []
    end = 0
    try:
        unpacker.feed(data)
        for fields in unpacker:
            messages.append(_message(fields))
            end = unpacker.tell()
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"{len(data)} bytes that are not msgpack: {error}") from error
    if end != len(data):
        raise WireError(f"{len(data) - end} bytes of a message that was cut off")
    return messages


def _message(fields: Any) -> Message:
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise WireError(f"a message is an array that begins with its kind, not {type(fields).__name__}")
    number = fields[0]
    if not 0 <= number < len(_KINDS):
        raise WireError(f"message kind {number} is not known; kinds go up to {len(_KINDS) - 1}")
    kind, types = _KINDS[number], _FIELD_TYPES[number]
    if len(fields) != len(types) + 1:
        raise WireError(f"{kind.__name__} has {len(types)} fields, not {len(fields) - 1}")
    for name, value, wanted in zip(kind._fields, fields[1:], types, strict=True):
        if type(value) is not wanted:
            raise WireError(f"{kind.__name__}.{name} is {type(value).__name__}, not {wanted.__name__}")
        if type(value) is int and not 0 <= value <= INTEGER_MAX:
            raise WireError(f"{kind.__name__}.{name} is {value}, not in 0..{INTEGER_MAX}")
        if type(value) is str and len(value) > TEXT_MAX:
            raise WireError(f"{kind.__name__}.{name} has {len(value)} characters, more than {TEXT_MAX}")
    if kind is Append:
        fields[5] = tuple(_entry(pair) for pair in fields[5])
    message: Message = kind(*fields[1:])
    return message


def _entry(pair: Any) -> tuple[int, bytes]:
    if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not int or type(pair[1]) is not bytes:
        raise WireError("an entry is [term, command]")
    if not 0 <= pair[0] <= INTEGER_MAX or not pair[1]:
        raise WireError(f"an entry has a term in 0..{INTEGER_MAX} and a command, not {pair[0]}, {len(pair[1])} bytes")
    return pair[0], pair[1]


def join(frames: Iterable[bytes]) -> bytes:
    """Several encoded messages as one WebSocket message."""
    return b"".join(frames)


class PlainValues:
    """Stands where the library expects its pickle module: plain msgpack values, nothing else.

    The library uses it for commands of its own that are never made here; should one arrive all
    the same it can only be a value.
    """

    @staticmethod
    def dumps(value: Any, protocol: int | None = None) -> bytes:
        packed: bytes = msgpack.packb(value)
        return packed

    @staticmethod
    def loads(data: bytes) -> Any:
        return msgpack.unpackb(data, strict_map_key=True, max_ext_len=0)
