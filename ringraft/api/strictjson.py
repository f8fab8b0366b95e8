"""JSON that means one thing: no duplicate names, no NaN, no numbers that lose digits, bounded depth.

``parse`` reads bytes; 3.0 and 3 are one number, an int. What it and ``ordered`` give has its names in
order, whatever order they came in: two such values are the same exactly when their encodings are.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from ringraft.schema import INTEGER_MAX, shown

NAMES_MAX = 1000
"""How many members one object may have."""

INTEGER_DIGITS_MAX = 16
FLOAT_CHARS_MAX = 400


class NotStrict(ValueError):
    """The text is no JSON, or JSON that readers disagree about. The message says where and why."""


def parse(raw: bytes, *, depth_max: int) -> Any:
    """The value of a JSON text. Raises NotStrict."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotStrict(f"the body is not UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise NotStrict("the body begins with a byte order mark")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise NotStrict(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise _too_deep(depth_max) from None
    if text.count("{") + text.count("[") > depth_max:
        _check_depth(value, depth_max)
    if "\\u" in text:
        _check_surrogates(value)
    return value


def canonical(value: Any) -> str:
    """The one text of a value: names sorted, no spaces. Raises NotStrict for what JSON cannot say."""
    try:
        return _CANONICAL.encode(value)
    except (TypeError, ValueError) as error:
        raise NotStrict(f"the body holds what JSON cannot say: {error}") from None


def is_plain(packed: bytes) -> bool:
    """Whether msgpack holds nothing that JSON could not say: no binary, no extension, no float (it may be
    NaN), no integer of 64 bits. False when it might: a length or a character can look like one of those."""
    return len(packed.translate(None, _NOT_PLAIN)) == len(packed)


def check_unpacked(value: Any) -> None:
    """Hold an ordered value that came as msgpack to the same rules. Raises NotStrict."""
    if _LONG_NUMBER.search(canonical(value)):
        _check_integers(value)


def ordered(value: Any, *, depth_max: int) -> Any:
    """The value with its names in order. Raises NotStrict when it nests deeper than ``depth_max``."""
    try:
        return _ordered(value, depth_max, depth_max) if type(value) in _NESTING else value
    except TypeError:
        raise NotStrict("a name is no string") from None


def _ordered(value: Any, left: int, depth_max: int) -> Any:
    if not left:
        raise _too_deep(depth_max)
    left -= 1
    if type(value) is dict:
        return {
            name: _ordered(item, left, depth_max) if type(item) in _NESTING else item
            for name, item in sorted(value.items())
        }  # fmt: skip
    return [_ordered(item, left, depth_max) if type(item) in _NESTING else item for item in value]


def dump(value: Any) -> bytes:
    """A JSON answer. Values come from the state, which holds only what ``parse`` let in."""
    return _PLAIN.encode(value).encode()


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise NotStrict(f"the name {shown(twice)} stands twice in one object")
    if len(out) > NAMES_MAX:
        raise NotStrict(f"an object has {len(out)} members, the most is {NAMES_MAX}")
    return dict(sorted(out.items()))


def _integer(text: str) -> int:
    if len(text) <= INTEGER_DIGITS_MAX + 1:
        value = int(text)
        if -INTEGER_MAX <= value <= INTEGER_MAX:
            return value
    raise NotStrict(f"the integer {shown(text)} is beyond 2^53 - 1; write it as a string")


def _float(text: str) -> float | int:
    if len(text) > FLOAT_CHARS_MAX:
        raise NotStrict(f"a number has {len(text)} characters, the most is {FLOAT_CHARS_MAX}")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise NotStrict(f"the number {shown(text)} is too large")
    if value.is_integer() and -INTEGER_MAX <= value <= INTEGER_MAX:
        return int(value)
    return value


def _constant(text: str) -> NoReturn:
    raise NotStrict(f"{text} is no JSON number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_float, parse_constant=_constant, strict=True
)
# Made once: json.dumps makes a new one for every call with options.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_PLAIN = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_NESTING = frozenset({dict, list})
_NOT_PLAIN = bytes([*range(0xC4, 0xCC), 0xCF, *range(0xD3, 0xD9)])
"""The first bytes of what is not plain: binary, extensions, floats, integers of 64 bits."""
_LONG_NUMBER = re.compile(r"[0-9]{16}")


def _check_depth(value: Any, depth_max: int) -> None:
    # Level by level, because a call for each level could go too deep itself.
    level, depth = [value] if type(value) in _NESTING else [], 0
    while level:
        depth += 1
        if depth > depth_max:
            raise _too_deep(depth_max)
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in _NESTING
        ]


def _too_deep(depth_max: int) -> NotStrict:
    return NotStrict(f"the body nests deeper than {depth_max} levels")


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise NotStrict("a string holds half of a surrogate pair") from None


def _check_integers(value: Any) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        if type(item) is int and not -INTEGER_MAX <= item <= INTEGER_MAX:
            raise NotStrict(f"the integer {item} is beyond 2^53 - 1; send it as a string")
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
