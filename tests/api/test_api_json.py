"""Strict JSON: a table of bodies that mean two things, or nothing."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringraft.api import rfc3339, strictjson
from tests.api.fake_node import Asker, FakeNode, one_node

JSON_TYPE = {"Content-Type": "application/json"}
DEEP = b'{"work_type":"x","config":' + b'{"a":' * 40 + b"1" + b"}" * 40 + b"}"
BAD = {
    "empty": b"",
    "no json": b"{",
    "two values": b"{} {}",
    "duplicate names": b'{"work_type":"x","work_type":"y"}',
    "duplicate names, deep": b'{"work_type":"x","config":{"a":1,"a":1}}',
    "NaN": b'{"work_type":"x","config":{"a":NaN}}',
    "Infinity": b'{"work_type":"x","config":{"a":-Infinity}}',
    "a float that overflows": b'{"work_type":"x","config":{"a":1e999}}',
    "an integer beyond 2^53": b'{"work_type":"x","config":{"a":9007199254740993}}',
    "a huge integer": b'{"work_type":"x","config":{"a":' + b"9" * 5000 + b"}}",
    "not UTF-8": b'{"work_type":"\xff"}',
    "UTF-16": '{"work_type":"x"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"work_type":"x"}',
    "half a surrogate": b'{"work_type":"x","config":{"a":"\\ud800"}}',
    "half a surrogate as a name": b'{"work_type":"x","config":{"\\udc00":1}}',
    "a control character": b'{"work_type":"x","config":{"a":"\x01"}}',
    "a trailing comma": b'{"work_type":"x",}',
    "a comment": b'{"work_type":"x"/**/}',
    "too deep": DEEP,
    "absurdly deep": b"[" * 100_000,
    "too many names": b'{"work_type":"x","config":{' + b",".join(b'"k%d":1' % i for i in range(1001)) + b"}}",
}


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with one_node() as node:
        yield node


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_body_is_refused_and_nothing_is_proposed(node: FakeNode, what: str) -> None:
    before = node.cluster.index
    async with Asker(node) as asker:
        status, body, _ = await asker.ask("POST", "/work/add", data=BAD[what], headers=JSON_TYPE)
    assert (status, body["code"], body["outcome"]) == (400, "bad_json", "not_applied")
    assert node.cluster.index == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/problem+json", ""])
async def test_another_media_type_is_refused(node: FakeNode, kind: str) -> None:
    async with Asker(node) as asker:
        status, body, _ = await asker.ask("POST", "/work/add", data=b"{}", headers={"Content-Type": kind})
    assert (status, body["code"]) == (415, "unsupported_media_type")


async def test_a_compressed_body_is_refused_unread(node: FakeNode) -> None:
    async with Asker(node) as asker:
        headers = {**JSON_TYPE, "Content-Encoding": "gzip"}
        status, _, _ = await asker.ask("POST", "/work/add", data=b"\x1f\x8b bomb", headers=headers)
    assert status in (400, 415)


async def test_a_body_beyond_its_bound_is_refused(node: FakeNode) -> None:
    text = '{"work_type":"x","config":{"a":"' + "x" * 1_100_000 + '"}}'
    async with Asker(node) as asker:
        status, body, _ = await asker.ask("POST", "/work/add", data=io.BytesIO(text.encode()), headers=JSON_TYPE)
        assert (status, body["code"]) == (413, "too_large")

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b" " * 65_536

        status, body, _ = await asker.ask("POST", "/work/add", data=chunks(), headers=JSON_TYPE)
        assert (status, body["code"]) == (413, "too_large")


async def test_a_payload_beyond_64_kib_is_refused_with_its_pointer(node: FakeNode) -> None:
    async with Asker(node) as asker:
        status, body, _ = await asker.post("/work/add", {"work_type": "x", "config": {"a": "x" * 65_537}})
        assert (status, body["code"], body["errors"][0]["pointer"]) == (413, "too_large", "/config")
        items = [{"work_type": "x"}, {"work_type": "x", "config": {"a": "x" * 65_537}}]
        status, body, _ = await asker.post("/work/add_batch", {"items": items})
        assert (status, body["errors"][0]["pointer"]) == (413, "/items/1/config")


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    LEAVES, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(), one, max_size=3), max_leaves=9
)


@given(VALUES)
def test_what_is_written_is_read_back(value: object) -> None:
    text = strictjson.canonical(value)
    if "\\u" not in text:
        assert strictjson.parse(text.encode(), depth_max=32) == value


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t01:00:00.0019+01:00", 1),
        ("2016-12-31T23:59:60Z", 1483228799999),
        ("0000-01-01T00:00:00Z", -62167219200000),
        ("2024-02-29T00:00:00Z", 1709164800000),
        ("2023-02-29T00:00:00Z", None),
        ("2026-01-01", None),
        ("2026-01-01T00:00:00", None),
        ("2026-01-01T24:00:00Z", None),
        ("2026-01-01T00:00:00+24:00", None),
        ("2026-01-01T00:00:00Z\n", None),
    ],
)
def test_times_are_read_as_the_rfc_has_them(text: str, ms: int | None) -> None:
    assert rfc3339.wall_ms(text) == ms


@given(st.integers(-62_167_219_200_000, 253_402_300_799_999))
def test_times_go_to_text_and_back(ms: int) -> None:
    assert rfc3339.wall_ms(rfc3339.text(ms)) == ms


ANY_MSGPACK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=20)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.binary(max_size=3), inner),
    max_leaves=12,
)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(ANY_MSGPACK)
def test_plain_msgpack_holds_nothing_that_json_cannot_say(value: object) -> None:
    if strictjson.is_plain(msgpack.packb(value)):
        strictjson.check_unpacked(value)


@pytest.mark.parametrize("value", [float("nan"), 0.5, b"", 2**53, -(2**53), msgpack.ExtType(1, b"abc"), {b"a": 1}])
def test_what_needs_a_look_is_not_plain(value: object) -> None:
    assert strictjson.is_plain(msgpack.packb({"work_type": "selfplay", "config": {"a": [1, None, "é"], "b": 2**31}}))
    assert not strictjson.is_plain(msgpack.packb([value]))
