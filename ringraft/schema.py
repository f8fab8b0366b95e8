"""What a JSON value must look like, said once: checked fast, explained whole, emitted as JSON Schema.

A schema is built from the types below. ``accepts(value)`` is the hot path: compiled closures, no
pointers, no messages. Only when it says no does ``faults(value)`` walk again and name every fault
with a JSON pointer, so a good request never pays for the words of a bad one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

Predicate = Callable[[object], bool]

INTEGER_MAX = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""

VALUE_REF = "#/components/schemas/Value"
"""Where a document that uses ``Anything`` says what any JSON value is."""

FAULTS_MAX = 100
"""How many faults one answer names; the rest would only repeat them."""

SHOWN_CHARS_MAX = 60
"""How much of a wrong value a message repeats."""

PATTERN_SHOWN_MAX = 40
"""A longer pattern explains nothing to people: the words for it do."""

ID_CHARS_MAX = 64
NODE_ID_CHARS_MAX = 48
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
NAME_CHARS_MAX = 128
NAME_PATTERN = r"^[ -~]+$"


class Fault(NamedTuple):
    """One field at fault. ``code`` is the code of the REST contract it calls for."""

    pointer: str
    message: str
    code: str = "invalid_field"


class Schema(Protocol):
    """One type of value."""

    def predicate(self) -> Predicate:
        """A function that says whether a value fits; made once, called often."""
        ...

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        """Append a fault for everything in ``value`` that does not fit."""
        ...

    def json_schema(self) -> dict[str, Any]:
        """The same as JSON Schema 2020-12."""
        ...


def shown(value: object) -> str:
    """A value as an error message repeats it: short, quoted, without control characters."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 1] + "…"


def escape(name: str) -> str:
    """A name as one step of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The known name that ``name`` was probably meant to be; ``likeness`` from 0 to 1 is what it takes."""
    found = difflib.get_close_matches(name[:ID_CHARS_MAX], list(known), n=1, cutoff=likeness)
    return found[0] if found else None


_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}


def kind(value: object) -> str:
    """What JSON calls the type of ``value``."""
    return "null" if value is None else _KINDS.get(type(value), "a binary value")


@dataclass(frozen=True, slots=True)
class String:
    """A string of ``min_chars`` to ``max_chars`` characters that matches ``pattern`` whole."""

    max_chars: int
    min_chars: int = 0
    pattern: str | None = None
    what: str = "a string"
    format: str | None = None
    parse: Callable[[str], object] | None = None
    """Returns None when the text has the wrong form."""

    def predicate(self) -> Predicate:
        low, high, parse = self.min_chars, self.max_chars, self.parse
        if self.pattern is not None:
            match = re.compile(self.pattern.removesuffix("$") + r"\Z").match
            return lambda v: type(v) is str and low <= len(v) <= high and match(v) is not None
        if parse is not None:
            return lambda v: type(v) is str and low <= len(v) <= high and parse(v) is not None
        return lambda v: type(v) is str and low <= len(v) <= high

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if type(value) is not str:
            faults.append(Fault(pointer, f"must be {self.what}, not {kind(value)}"))
        elif len(value) > self.max_chars:
            faults.append(Fault(pointer, f"has {len(value)} characters, the most is {self.max_chars}"))
        elif len(value) < self.min_chars:
            faults.append(Fault(pointer, f"has {len(value)} characters, the least is {self.min_chars}"))
        elif not self.predicate()(value):
            form = f" (it must match {self.pattern})" if 0 < len(self.pattern or "") <= PATTERN_SHOWN_MAX else ""
            faults.append(Fault(pointer, f"{shown(value)} is not {self.what}{form}"))

    def json_schema(self) -> dict[str, Any]:
        out: dict[str, Any] = {"type": "string", "maxLength": self.max_chars}
        if self.min_chars:
            out["minLength"] = self.min_chars
        if self.pattern:
            out["pattern"] = self.pattern
        if self.format:
            out["format"] = self.format
        return out


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number from ``minimum`` to ``maximum``; a boolean is none, nor is the float 3.0."""

    minimum: int = 0
    maximum: int = INTEGER_MAX

    def predicate(self) -> Predicate:
        low, high = self.minimum, self.maximum
        return lambda v: type(v) is int and low <= v <= high

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if type(value) is not int:
            faults.append(Fault(pointer, f"must be an integer, not {kind(value)} ({shown(value)})"))
        elif not self.minimum <= value <= self.maximum:
            faults.append(Fault(pointer, f"is {shown(value)}, allowed are {self.minimum} to {self.maximum}"))

    def json_schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number from ``minimum`` to ``maximum``; ``above`` leaves the minimum itself out."""

    minimum: float = 0
    maximum: float = float(INTEGER_MAX)
    above: bool = False

    def predicate(self) -> Predicate:
        low, high, above = self.minimum, self.maximum, self.above

        def accepts(v: object) -> bool:
            if type(v) is not int and type(v) is not float:
                return False
            return low <= v <= high and not (above and v == low)

        return accepts

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if type(value) is not int and type(value) is not float:
            faults.append(Fault(pointer, f"must be a number, not {kind(value)} ({shown(value)})"))
        elif not self.predicate()(value):
            low = f"above {self.minimum:g}" if self.above else f"from {self.minimum:g}"
            faults.append(Fault(pointer, f"is {shown(value)}, allowed is {low} to {self.maximum:g}"))

    def json_schema(self) -> dict[str, Any]:
        low = "exclusiveMinimum" if self.above else "minimum"
        return {"type": "number", low: self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Boolean:
    """true or false, never 0 or 1."""

    def predicate(self) -> Predicate:
        return lambda v: v is True or v is False

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if value is not True and value is not False:
            faults.append(Fault(pointer, f"must be true or false, not {shown(value)}"))

    def json_schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def predicate(self) -> Predicate:
        words = frozenset(self.words)
        return lambda v: type(v) is str and v in words

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if type(value) is not str or value not in self.words:
            near = nearest(value, self.words) if isinstance(value, str) else None
            hint = f"; did you mean {str(near)!r}?" if near else ""
            faults.append(Fault(pointer, f"{shown(value)} is none of {', '.join(self.words)}{hint}"))

    def json_schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class Nothing:
    """null and nothing else: a place kept for what this version does not have. ``why`` says so."""

    why: str

    def predicate(self) -> Predicate:
        return lambda v: v is None

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if value is not None:
            faults.append(Fault(pointer, self.why))

    def json_schema(self) -> dict[str, Any]:
        return {"type": "null"}


@dataclass(frozen=True, slots=True)
class Anything:
    """Any JSON value."""

    def predicate(self) -> Predicate:
        return lambda v: True

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        return

    def json_schema(self) -> dict[str, Any]:
        return {"$ref": VALUE_REF}


@dataclass(frozen=True, slots=True)
class Nullable:
    """``of``, or null, which means the same as leaving the field out."""

    of: Schema

    def predicate(self) -> Predicate:
        inner = self.of.predicate()
        return lambda v: v is None or inner(v)

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if value is not None:
            self.of.explain(value, pointer, faults)

    def json_schema(self) -> dict[str, Any]:
        inner = self.of.json_schema()
        if isinstance(inner.get("type"), str) and "enum" not in inner:
            return {**inner, "type": [inner["type"], "null"]}
        return {"anyOf": [inner, {"type": "null"}]}


@dataclass(frozen=True, slots=True)
class Either:
    """One of several types; the faults are those of the option whose JSON type fits."""

    options: tuple[Schema, ...]
    what: str

    def predicate(self) -> Predicate:
        inner = tuple(option.predicate() for option in self.options)
        return lambda v: any(accepts(v) for accepts in inner)

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if self.predicate()(value):
            return
        for option in self.options:
            own: list[Fault] = []
            option.explain(value, pointer, own)
            if own and not any(f.pointer == pointer and f.message.startswith("must be ") for f in own):
                faults.extend(own)
                return
        faults.append(Fault(pointer, f"must be {self.what}, not {kind(value)}"))

    def json_schema(self) -> dict[str, Any]:
        return {"anyOf": [option.json_schema() for option in self.options]}


@dataclass(frozen=True, slots=True)
class Array:
    """``min_items`` to ``max_items`` values of one type."""

    of: Schema
    max_items: int
    min_items: int = 0

    def predicate(self) -> Predicate:
        inner, low, high = self.of.predicate(), self.min_items, self.max_items

        def accepts(v: object) -> bool:
            if type(v) is not list or not low <= len(v) <= high:
                return False
            # Not all(...): the generator would cost more than the check.
            for item in v:
                if not inner(item):
                    return False
            return True

        return accepts

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if type(value) is not list:
            faults.append(Fault(pointer, f"must be an array, not {kind(value)}"))
            return
        if not self.min_items <= len(value) <= self.max_items:
            faults.append(
                Fault(pointer, f"has {len(value)} elements, allowed are {self.min_items} to {self.max_items}")
            )
        for i, item in enumerate(value[: self.max_items]):
            if len(faults) >= FAULTS_MAX:
                return
            self.of.explain(item, f"{pointer}/{i}", faults)

    def json_schema(self) -> dict[str, Any]:
        out: dict[str, Any] = {"type": "array", "items": self.of.json_schema(), "maxItems": self.max_items}
        if self.min_items:
            out["minItems"] = self.min_items
        return out


@dataclass(frozen=True, slots=True)
class Map:
    """An object with free names (``name``) and values of one type."""

    of: Schema
    max_items: int
    name: Schema = field(default_factory=lambda: String(NAME_CHARS_MAX))

    def predicate(self) -> Predicate:
        inner, names, high = self.of.predicate(), self.name.predicate(), self.max_items
        return lambda v: type(v) is dict and len(v) <= high and all(names(k) and inner(item) for k, item in v.items())

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if type(value) is not dict:
            faults.append(Fault(pointer, f"must be an object, not {kind(value)}"))
            return
        if len(value) > self.max_items:
            faults.append(Fault(pointer, f"has {len(value)} members, the most is {self.max_items}"))
        for name, item in list(value.items())[: self.max_items]:
            self.name.explain(name, f"{pointer}/{escape(name)}", faults)
            self.of.explain(item, f"{pointer}/{escape(name)}", faults)

    def json_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "additionalProperties": self.of.json_schema(),
            "propertyNames": self.name.json_schema(),
            "maxProperties": self.max_items,
        }


@dataclass(frozen=True, slots=True)
class Field:
    """One member of an ``Object``.

    ``missing_code`` is the code when a required one is absent. ``refers`` marks a field whose value
    must name something that exists (or that calls for a judgement no schema can make): it is
    declared so that a document stays valid without one, see ``Object.json_schema``.
    """

    type: Schema
    doc: str = ""
    required: bool = False
    missing_code: str = "invalid_field"
    refers: bool = False


@dataclass(frozen=True, slots=True)
class Object:
    """An object with known members. ``open`` takes others too; ``refused`` says why it does not take some."""

    fields: Mapping[str, Field]
    open: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    one_of: tuple[str, ...] = ()
    """Exactly one of these members must be there."""

    def predicate(self) -> Predicate:
        checks = {name: f.type.predicate() for name, f in self.fields.items()}
        find = checks.get
        required = frozenset(name for name, f in self.fields.items() if f.required)
        is_open, refused, one_of = self.open, frozenset(self.refused), self.one_of

        def accepts(v: object) -> bool:
            if type(v) is not dict:
                return False
            for name, item in v.items():
                check = find(name)
                if check is not None:
                    if not check(item):
                        return False
                elif not is_open or name in refused:
                    return False
            if not required <= v.keys():
                return False
            return not one_of or sum(name in v for name in one_of) == 1

        return accepts

    def explain(self, value: object, pointer: str, faults: list[Fault]) -> None:
        if type(value) is not dict:
            faults.append(Fault(pointer, f"must be an object, not {kind(value)}"))
            return
        for name, item in value.items():
            if len(faults) >= FAULTS_MAX:
                return
            at = f"{pointer}/{escape(name)}" if isinstance(name, str) else pointer
            known = self.fields.get(name)
            if known is not None:
                known.type.explain(item, at, faults)
            elif name in self.refused:
                faults.append(Fault(at, self.refused[name]))
            elif not self.open:
                near = nearest(name, self.fields) if isinstance(name, str) else None
                hint = f"; did you mean {near!r}?" if near else f"; known are {', '.join(sorted(self.fields))}"
                faults.append(Fault(at, f"{shown(name)} is not known here{hint}", "unknown_field"))
        for name, known in self.fields.items():
            if known.required and name not in value:
                faults.append(Fault(f"{pointer}/{escape(name)}", "is missing", known.missing_code))
        if self.one_of and sum(name in value for name in self.one_of) != 1:
            faults.append(Fault(pointer, f"must have exactly one of {', '.join(self.one_of)}"))

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema.

        A ``refers`` member stands under ``x-also-accepts``, which validators and generators do not read:
        a generated document cannot know what exists, and one that names it is not wrong by its form.
        """

        def one(f: Field) -> dict[str, Any]:
            return {**f.type.json_schema(), **({"description": f.doc} if f.doc else {})}

        out: dict[str, Any] = {
            "type": "object",
            "properties": {name: one(f) for name, f in self.fields.items() if not f.refers},
        }
        refers = {name: one(f) for name, f in self.fields.items() if f.refers}
        if refers:
            out["x-also-accepts"] = refers
        required = [name for name, f in self.fields.items() if f.required]
        if required:
            out["required"] = required
        if self.open:
            out["additionalProperties"] = {"$ref": VALUE_REF}
            if self.refused:
                out["propertyNames"] = {"not": {"enum": sorted(self.refused)}}
        else:
            out["additionalProperties"] = False
        if self.one_of:
            out["oneOf"] = [{"required": [name]} for name in self.one_of]
        return out


@dataclass(frozen=True, slots=True)
class Checker:
    """A schema made ready for use."""

    schema: Schema
    accepts: Predicate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "accepts", self.schema.predicate())

    def faults(self, value: object, pointer: str = "") -> list[Fault]:
        """Every fault of ``value``, at most ``FAULTS_MAX``; empty when it fits."""
        if self.accepts(value):
            return []
        found: list[Fault] = []
        self.schema.explain(value, pointer, found)
        assert found, f"the checker refuses {shown(value)} but cannot say why"
        return found[:FAULTS_MAX]


ID = String(ID_CHARS_MAX, 1, ID_PATTERN, "an id")
NODE_ID = String(NODE_ID_CHARS_MAX, 1, ID_PATTERN, "a node id")
NAME = String(NAME_CHARS_MAX, 1, NAME_PATTERN, "1 to 128 printable characters")
