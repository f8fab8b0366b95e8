"""Messages between voters."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringraft.consensus.replog import codec
from ringraft.consensus.replog.codec import Append, Appended, Chunk, Message, Vote, WireError, decode_all, encode, join

numbers = st.integers(0, 2**63 - 1)
texts = st.text(max_size=codec.TEXT_MAX)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Vote, numbers),
    st.builds(codec.RequestVote, numbers, numbers, numbers, st.booleans()),
    st.builds(codec.PreVote, numbers, numbers, numbers),
    st.builds(codec.PreVoted, numbers, numbers, st.booleans()),
    st.builds(codec.TimeoutNow, numbers),
    st.builds(
        Append,
        numbers,
        numbers,
        numbers,
        numbers,
        st.lists(st.tuples(numbers, st.binary(min_size=1))).map(tuple),
        numbers,
    ),
    st.builds(Appended, numbers, numbers, st.booleans(), numbers, numbers, numbers),
    st.builds(Chunk, numbers, numbers, numbers, numbers, numbers, st.booleans(), st.binary()),
    st.builds(codec.ChunkTaken, numbers, numbers, numbers, st.booleans()),
    st.builds(codec.AskIndex, numbers, numbers),
    st.builds(codec.ReadIndex, numbers, numbers, numbers),
    st.builds(
        codec.Introduce,
        *(numbers, st.booleans(), texts, numbers, numbers, texts, texts, texts, numbers),
        *(st.booleans(), st.booleans(), numbers, st.booleans()),
    ),
)
INTRODUCE = codec._NUMBERS[codec.Introduce]


@given(st.lists(messages, max_size=5))
def test_messages_come_back_as_they_were_sent(sent: list[Message]) -> None:
    assert decode_all(join(encode(message) for message in sent)) == sent


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error_or_a_message(data: bytes) -> None:
    try:
        decode_all(data)
    except WireError:
        pass


@given(messages, st.data())
def test_a_message_that_is_cut_or_changed_is_a_wire_error_or_a_message(message: Message, data: st.DataObject) -> None:
    encoded = bytearray(encode(message))
    with pytest.raises(WireError):
        decode_all(bytes(encoded[: data.draw(st.integers(1, len(encoded) - 1))]))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decode_all(bytes(encoded))
    except WireError:
        pass


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], "begins with its kind"),
        ("text", "begins with its kind"),
        ([99, 1], "kind 99 is not known"),
        ([-1, 1], "kind -1 is not known"),
        ([True, 1], "begins with its kind"),
        ([1, 1, 2], "Vote has 1 fields, not 2"),
        ([1, "1"], "Vote.term is str, not int"),
        ([1, True], "Vote.term is bool, not int"),
        ([1, -1], "Vote.term is -1"),
        ([1, 2**63], "Vote.term is"),
        ([3, 1, 1, 1, 1, {}, 0], "Append.entries is dict"),
        ([3, 1, 1, 1, 1, [[1]], 0], "an entry is"),
        ([3, 1, 1, 1, 1, [[1, b""]], 0], "an entry has a term"),
        ([3, 1, 1, 1, 1, [[-1, b"x"]], 0], "an entry has a term"),
        ([4, 1, 1, 1, 1, 1, 0], "Appended.matched is int"),
        (
            [INTRODUCE, 1, True, "d" * 513, 1, 1, "", "", "", 1, True, True, 1, False],
            "Introduce.data_id has 513 characters",
        ),
        ([INTRODUCE, 1, True, b"d", 1, 1, "", "", "", 1, True, True, 1, False], "Introduce.data_id is bytes"),
    ],
)
def test_what_does_not_fit_is_said(fields: Any, said: str) -> None:
    with pytest.raises(WireError, match=said):
        decode_all(msgpack.packb(fields))


def test_extension_types_are_refused() -> None:
    with pytest.raises(WireError):
        decode_all(msgpack.packb([1, msgpack.ExtType(1, b"x")]))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(WireError):
        decode_all(b"\x91" * 100_000)


def test_what_the_library_would_pickle_is_a_plain_value() -> None:
    value = ["add", "n4", None]
    assert codec.PlainValues.loads(codec.PlainValues.dumps(value)) == value
