"""From what people write (YAML values, texts of flags and variables) to the types of the tree.

Every function raises ``Fault`` with a sentence that goes after the key's name: "must be …".
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from ringraft.settings.address import split_address
from ringraft.settings.strict_yaml import parse_yaml
from ringraft.settings.tree import NodeEntry, Range, Secret, Settings, Shape, section_names

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ID_CHARS_MAX = 64
NODE_ID_CHARS_MAX = 48
TRUE_TEXTS = frozenset({"true", "yes", "on", "1"})
FALSE_TEXTS = frozenset({"false", "no", "off", "0"})
NONE_TEXTS = frozenset({"", "null", "none", "~"})


class Fault(ValueError):
    """One thing wrong with one value; the text follows the key's name."""


@cache
def setting_types() -> Mapping[str, Any]:
    """Every key, ``section.name``, with the type of its value, in the tree's order."""
    sections = get_type_hints(Settings)
    return {
        f"{section}.{name}": hint
        for section in section_names()
        for name, hint in get_type_hints(sections[section], include_extras=True).items()
        if (section, name) != ("auth", "token")
    }


def nearest(name: str, known: list[str]) -> str:
    """A hint for a name nobody knows: `` (did you mean raft.heartbeat_ms?)``, or nothing."""
    if near := get_close_matches(name, known, n=1, cutoff=0.6):
        return f" (did you mean {near[0]}?)"
    last = name.rpartition(".")[2]
    for candidate in known:
        if last and candidate.rpartition(".")[2].startswith(last):
            return f" (did you mean {candidate}?)"
    return ""


def convert(key: str, raw: Any, *, text: bool) -> Any:
    """``raw`` as the type of ``key``. ``text``: it came from a flag or a variable, where all is text."""
    text = text and isinstance(raw, str)
    match key:
        case "node.node_id" if raw is None:
            return None  # the host's name is found later
        case "cluster.voters":
            return _voters(_pairs(raw) if text else raw)
        case "cluster.nodes":
            return _nodes(_yaml(raw) if text else raw)
        case "worker.capabilities":
            return _capabilities(_yaml(raw) if text else raw)
        case "worker.executors":
            return _executors(_yaml(raw) if text else raw)
    return typed(setting_types()[key], raw, text=text, unit=key.rpartition("_")[2])


def typed(hint: Any, raw: Any, *, text: bool = False, unit: str = "") -> Any:
    """``raw`` as one plain type of the tree; ``unit`` is the key's last word, tolerated after a number."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *conditions = get_args(hint)
        value = typed(base, raw, text=text, unit=unit)
        for condition in conditions:
            _check(condition, value)
        return value
    if origin in (Union, types.UnionType):
        if raw is None or (text and raw.strip().lower() in NONE_TEXTS):
            return None
        inner = next(a for a in get_args(hint) if a is not types.NoneType)
        return typed(inner, raw, text=text, unit=unit)
    if origin is tuple:
        return _tuple(get_args(hint)[0], raw, text=text)
    if hint is bool:
        return _bool(raw, text=text)
    if hint is int or hint is float:
        return _number(hint, raw, text=text, unit=unit)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _choice(hint, raw)
    if origin is Mapping or origin is dict:
        return {str(k): _text(v) for k, v in _mapping(raw).items()}
    value = _text(raw)
    if hint is Path:
        return Path(value).expanduser()
    return Secret(value) if hint is Secret else value


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise Fault(f"must be a text, not {_kind(raw)} {raw!r}; put it in quotes")
    if not raw.strip():
        raise Fault("must not be empty")
    return raw.strip()


def _bool(raw: Any, *, text: bool) -> bool:
    if isinstance(raw, bool):
        return raw
    if text and raw.strip().lower() in TRUE_TEXTS | FALSE_TEXTS:
        return raw.strip().lower() in TRUE_TEXTS
    raise Fault(f"must be true or false, not {raw!r}")


def _number(hint: type[int] | type[float], raw: Any, *, text: bool, unit: str) -> int | float:
    value = raw
    if isinstance(raw, str) and (text or (unit in ("s", "ms") and raw.endswith(unit))):
        try:
            digits = raw.strip().removesuffix(unit if unit in ("s", "ms") else "").strip().replace("_", "")
            value = int(digits) if digits.lstrip("+-").isdecimal() else float(digits)
        except ValueError:
            value = raw
    if (
        isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0
    ):  # bool is an int, and neither inf nor nan is a number here
        raise Fault(f"must be a number, not {raw!r}")
    if hint is int and value != int(value):
        raise Fault(f"must be a whole number, not {raw!r}")
    return hint(value)


def _choice(hint: type[StrEnum], raw: Any) -> StrEnum:
    for member in hint:
        if isinstance(raw, str) and raw.strip().lower() == member.value.lower():
            return member
    raise Fault(f"must be one of {', '.join(hint)}, not {raw!r}")


def _tuple(hint: Any, raw: Any, *, text: bool) -> tuple[Any, ...]:
    if text:
        raw = [part.strip() for part in raw.split(",") if part.strip()]
    if not isinstance(raw, list | tuple):
        raise Fault(f"must be a list, not {_kind(raw)} {raw!r}")
    return tuple(typed(hint, part) for part in raw)


def _check(condition: Any, value: Any) -> None:
    match condition:
        case Range(least, most):
            if not least <= value <= most:
                raise Fault(f"must be between {_digits(least)} and {_digits(most)}, not {_digits(value)}")
        case Shape.ADDRESS:
            _address(value)
        case Shape.ID:
            _id(value, ID_CHARS_MAX)
        case Shape.NODE_ID:
            _id(value, NODE_ID_CHARS_MAX)


def _digits(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _id(value: str, chars_max: int) -> str:
    if not ID.fullmatch(value) or len(value) > chars_max:
        raise Fault(
            f"must be letters, digits, '.', '_' and '-', starting with a letter or digit, "
            f"at most {chars_max} characters, not {value!r}"
        )
    return value


def _address(value: str) -> str:
    try:
        split_address(value)
    except ValueError as error:
        raise Fault(f"must be host:port: {error}") from None
    return value


def _kind(raw: Any) -> str:
    names = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "a map"}
    return names.get(type(raw), "nothing" if raw is None else type(raw).__name__)


def _mapping(raw: Any) -> Mapping[Any, Any]:
    if not isinstance(raw, Mapping):
        raise Fault(f"must be a map, not {_kind(raw)} {raw!r}")
    return raw


def _yaml(raw: str) -> Any:
    try:
        return parse_yaml(raw)
    except ValueError as error:
        raise Fault(f"is not YAML: {error}") from None


def _pairs(raw: str) -> Mapping[str, Any]:
    """``n1=host:port,n2=host:port``, as ``--peers`` takes it; ``{n1: "host:port"}`` works too."""
    if raw.lstrip().startswith("{"):
        return _mapping(_yaml(raw))
    pairs: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in raw.split(","))):
        name, equals, address = (p.strip() for p in part.partition("="))
        if not equals:
            raise Fault(f"must be id=host:port,…, and {part!r} has no '='")
        if name in pairs:
            raise Fault(f"names {name} twice")
        pairs[name] = address
    return pairs


def _voters(raw: Any) -> dict[str, str]:
    voters: dict[str, str] = {}
    for name, address in _mapping(raw).items():
        voters[_id(_text(name), NODE_ID_CHARS_MAX)] = _address(_text(address))
    folded = {name.lower() for name in voters}
    if len(folded) < len(voters):
        raise Fault(f"has names that differ only by case: {', '.join(sorted(voters))}")
    return voters


def _nodes(raw: Any) -> dict[str, NodeEntry]:
    return {
        _id(_text(name), NODE_ID_CHARS_MAX): entry if isinstance(entry, NodeEntry) else node_entry(str(name), entry)
        for name, entry in _mapping(raw).items()
    }


def node_entry(name: str, raw: Any) -> NodeEntry:
    """One machine of the ``nodes`` map. Fault names the node and the field."""
    hints = get_type_hints(NodeEntry)
    values: dict[str, Any] = {}
    try:
        given = _mapping(raw)
    except Fault as fault:
        raise Fault(f"entry {name} {fault}") from None
    for field, value in given.items():
        if field not in hints:
            raise Fault(f"entry {name} has an unknown field {field}{nearest(str(field), list(hints))}")
        try:
            values[field] = typed(hints[field], value)
        except Fault as fault:
            raise Fault(f"entry {name}: {field} {fault}") from None
    missing = [f.name for f in fields(NodeEntry) if f.default is MISSING and f.name not in values]
    if missing:
        raise Fault(f"entry {name} lacks {', '.join(missing)}")
    return NodeEntry(**values)


def _capabilities(raw: Any) -> dict[str, Any]:
    known = ["gpus", "cpus", "memory_gb", "labels"]
    found = dict(_mapping(raw))
    for field in found:
        if field not in known:
            raise Fault(f"has an unknown field {field}{nearest(str(field), known)}")
    return found


def _executors(raw: Any) -> dict[str, dict[str, Any]]:
    executors: dict[str, dict[str, Any]] = {}
    for work_type, given in _mapping(raw).items():
        name = _id(_text(work_type), ID_CHARS_MAX)
        executor = dict(_mapping(given))
        if len({"command", "entry_point"} & set(executor)) != 1:
            raise Fault(f"entry {name} must have either command or entry_point")
        command = executor.get("command")
        if command is not None and not (
            isinstance(command, list) and command and all(isinstance(word, str) for word in command)
        ):
            raise Fault(f"entry {name}: command must be a list of texts, [program, argument…]; no shell reads it")
        executors[name] = executor
    return executors
