"""Which program runs which type of work, and what its arguments must look like.

An item chooses only the type; the program is fixed by the worker's own configuration. Nothing an
item says becomes part of a command line or an environment variable: it arrives as data.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ringraft import schema
from ringraft.training import boards

ENTRY_POINT: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z")
ALIASES: Final = {"gauntlet": "evaluation", "validation": "evaluation", "data_sync": "sync"}
"""Other names of types; an item always comes with the one on the right."""
TEXT_CHARS_MAX: Final = 4096
ARRAY_ITEMS_MAX: Final = 4096
FAULTS_SHOWN: Final = 5

ARGUMENT: Final = schema.Object(
    {
        "type": schema.Field(schema.Choice(("string", "integer", "number", "boolean", "array", "any")), required=True),
        "required": schema.Field(schema.Boolean()),
        "choices": schema.Field(schema.Array(schema.String(TEXT_CHARS_MAX), ARRAY_ITEMS_MAX, 1)),
        "minimum": schema.Field(schema.Number(-float(schema.INTEGER_MAX))),
        "maximum": schema.Field(schema.Number(-float(schema.INTEGER_MAX))),
        "max_chars": schema.Field(schema.Integer(1, TEXT_CHARS_MAX)),
        "max_items": schema.Field(schema.Integer(1, ARRAY_ITEMS_MAX)),
    }
)
DECLARATION: Final = schema.Checker(
    schema.Object(
        {
            "command": schema.Field(schema.Array(schema.String(TEXT_CHARS_MAX, 1), 256, 1)),
            "entry_point": schema.Field(schema.String(256, 3)),
            "arguments": schema.Field(schema.Map(ARGUMENT, 256)),
            "environment": schema.Field(schema.Map(schema.String(TEXT_CHARS_MAX), 256)),
        },
        one_of=("command", "entry_point"),
    )
)
"""One value of ``worker.executors``."""


class ExecutorError(Exception):
    """A declaration in ``worker.executors`` is wrong; the message names it."""


@dataclass(frozen=True, slots=True)
class Executor:
    """How one type of work is run: a program with fixed arguments, or a Python function."""

    work_type: str
    command: tuple[str, ...] | None = None
    entry_point: str | None = None
    arguments: schema.Checker | None = None
    """What ``config`` must look like; None takes any object."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def fault(self, config: Any) -> str | None:
        """Why ``config`` cannot be run, or None."""
        if self.arguments is None:
            return None if isinstance(config, dict) else "config must be an object"
        faults = self.arguments.faults(config, "/config")
        if not faults:
            return None
        more = f" (and {len(faults) - FAULTS_SHOWN} more)" if len(faults) > FAULTS_SHOWN else ""
        return "bad arguments: " + "; ".join(f"{f.pointer}: {f.message}" for f in faults[:FAULTS_SHOWN]) + more


@dataclass(frozen=True, slots=True)
class Executors:
    """What a worker can run (``offered``) and what it would need for the rest (``missing``)."""

    offered: Mapping[str, Executor]
    missing: Mapping[str, str]

    @classmethod
    def load(cls, declared: Mapping[str, Mapping[str, Any]], work_types: tuple[str, ...] | None) -> Executors:
        """The built-in and the declared executors, limited to ``work_types``. Raises ExecutorError."""
        offered: dict[str, Executor] = {}
        missing: dict[str, str] = {}
        absent = [name for name in ("pyspiel", "numpy") if importlib.util.find_spec(name) is None]
        if absent:
            missing["selfplay"] = f"{' and '.join(absent)} not found: pip install 'ringraft[selfplay]'"
        else:
            arguments = schema.Checker(boards.ARGUMENTS)
            offered["selfplay"] = Executor(
                "selfplay", entry_point="ringraft.training.selfplay:run", arguments=arguments
            )
        for name, declaration in declared.items():
            work_type = ALIASES.get(name, name)
            offered[work_type] = declare(work_type, declaration)
            missing.pop(work_type, None)
        if work_types is not None:
            work_types = tuple(ALIASES.get(name, name) for name in work_types)
            for work_type in work_types:
                if work_type not in offered and work_type not in missing:
                    missing[work_type] = f"worker.executors has no {work_type!r}: declare a command or an entry_point"
            offered = {name: executor for name, executor in offered.items() if name in work_types}
            missing = {name: why for name, why in missing.items() if name in work_types}
        return cls(offered, missing)


def declare(work_type: str, declaration: Mapping[str, Any]) -> Executor:
    """The executor that a value of ``worker.executors`` describes. Raises ExecutorError."""
    where = f"worker.executors.{work_type}"
    faults = DECLARATION.faults(_plain(declaration))
    if faults:
        raise ExecutorError("; ".join(f"{where}{f.pointer.replace('/', '.')} {f.message}" for f in faults))
    arguments = declaration.get("arguments")
    checker = None if arguments is None else schema.Checker(_object(arguments))
    environment = dict(declaration.get("environment") or {})
    entry_point = declaration.get("entry_point")
    if entry_point is not None:
        if not ENTRY_POINT.match(entry_point):
            raise ExecutorError(f"{where}.entry_point {entry_point!r} is not of the form module:function")
        return Executor(work_type, entry_point=entry_point, arguments=checker, environment=environment)
    program, *rest = declaration["command"]
    found = shutil.which(program, path=search_path())
    if found is None:
        raise ExecutorError(f"{where}.command: there is no program {program!r}; give its whole path")
    return Executor(work_type, command=(os.path.abspath(found), *rest), arguments=checker, environment=environment)


def search_path() -> str:
    """Where programs are found: beside the interpreter, then the system's own places."""
    return os.pathsep.join((str(Path(sys.executable).parent), *os.defpath.split(os.pathsep)))


def _object(arguments: Mapping[str, Mapping[str, Any]]) -> schema.Object:
    return schema.Object(
        {name: schema.Field(_type(a), required=a.get("required") is True) for name, a in arguments.items()}
    )


def _type(argument: Mapping[str, Any]) -> schema.Schema:
    low, high = argument.get("minimum"), argument.get("maximum")
    limit = schema.INTEGER_MAX
    match argument["type"]:
        case "string" if argument.get("choices"):
            return schema.Choice(tuple(argument["choices"]))
        case "string":
            return schema.String(argument.get("max_chars", TEXT_CHARS_MAX))
        case "integer":
            return schema.Integer(-limit if low is None else int(low), limit if high is None else int(high))
        case "number":
            return schema.Number(-float(limit) if low is None else low, float(limit) if high is None else high)
        case "boolean":
            return schema.Boolean()
        case "array":
            return schema.Array(schema.Anything(), argument.get("max_items", ARRAY_ITEMS_MAX))
    return schema.Anything()


def _plain(value: Any) -> Any:
    """Settings are read-only mappings and tuples; the checker knows JSON's types."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
