"""Query strings, read by the same schemas as bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ringraft.schema import FAULTS_MAX, Array, Boolean, Fault, Integer, Nullable, Number, Object, Schema


def parse_text(schema: Schema, text: str) -> object:
    """The value that a query parameter's text stands for; the text itself when it has no such form.

    The text then meets the checker, which names the fault.
    """
    match schema:
        case Integer():
            return int(text.partition(".")[0]) if re.fullmatch(r"-?[0-9]{1,17}(\.0{1,17})?", text) else text
        case Number():
            if re.fullmatch(r"-?[0-9]{1,17}(\.[0-9]{1,17})?([eE][-+]?[0-9]{1,2})?", text):
                return int(text) if text.lstrip("-").isdigit() else float(text)
            return text
        case Boolean():
            return {"true": True, "1": True, "false": False, "0": False}.get(text, text)
        case Array(of=of):
            return [parse_text(of, part) for part in text.split(",")] if text else []
        case Nullable(of=of):
            return parse_text(of, text)
        case _:
            return text


def parse_query(schema: Object, pairs: Iterable[tuple[str, str]]) -> tuple[dict[str, Any], list[Fault]]:
    """The values of a query string, and what is wrong with it (pointers are ``?name``)."""
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, text in pairs:
        if name in values:
            faults.append(Fault(f"?{name}", "is given twice"))
            continue
        known = schema.fields.get(name)
        values[name] = text if known is None else parse_text(known.type, text)
    found: list[Fault] = []
    schema.explain(values, "", found)
    faults += [Fault("?" + f.pointer.removeprefix("/"), f.message, f.code) for f in found]
    return values, faults[:FAULTS_MAX]
