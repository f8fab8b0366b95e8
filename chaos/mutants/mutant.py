"""A bug to plant: a few words of the product's source changed, in this process, for as long as one wants.

A mutant names a function and says which text in it becomes which other text, so it reads like a patch, and
does not fit any more as soon as the product's text changes: then ``Misfit`` says so. The changed source is
compiled where it belongs, and only the function's code is exchanged, so whoever holds the function has the
bug, wherever it was imported to.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any


class Misfit(Exception):
    """The product is not what this mutant was written for."""


@dataclass(frozen=True, slots=True)
class Edit:
    """In the function at ``where`` (``package.module:Class.method``) what stands there once becomes something else."""

    where: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug."""

    name: str
    does: str
    """What is wrong then, in a sentence."""
    breaks: str
    """The promise that this breaks."""
    edits: tuple[Edit, ...]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The product with this bug. Raises Misfit when its text is not there."""
        texts: dict[FunctionType, str] = {}
        for edit in self.edits:
            function = function_of(edit)
            texts[function] = _edited(edit, texts.get(function) or _source(function))
        kept = {function: function.__code__ for function in texts}
        codes = {function: _compiled(function, text) for function, text in texts.items()}
        try:
            for function, code in codes.items():
                function.__code__ = code
            yield
        finally:
            for function, code in kept.items():
                function.__code__ = code


def function_of(edit: Edit) -> FunctionType:
    """The function itself, out of whatever wraps it."""
    module, _, path = edit.where.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        try:
            found = inspect.getattr_static(found, name)
        except AttributeError as fault:
            raise Misfit(f"there is no {edit.where}: write the mutant anew for what took its place") from fault
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, classmethod | staticmethod):
        found = found.__func__
    found = inspect.unwrap(found)
    assert isinstance(found, FunctionType), f"{edit.where} is no function"
    return found


def _source(function: FunctionType) -> str:
    return textwrap.dedent(inspect.getsource(function))


def _edited(edit: Edit, source: str) -> str:
    count = source.count(edit.old)
    if count != 1:
        raise Misfit(
            f"{edit.where} has {edit.old!r} {count} times, not once: write the mutant anew for its present text"
        )
    return source.replace(edit.old, edit.new)


def _compiled(function: FunctionType, source: str) -> CodeType:
    # From the def on: decorators stay where they are, around the function whose code is exchanged.
    lines = source.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(("def ", "async def ")))
    free = function.__code__.co_freevars
    body = textwrap.indent("\n".join(lines[first:]), "    ")
    factory = f"def factory({', '.join(free)}):\n{body}\n    return {function.__name__}"
    namespace: dict[str, Any] = {}
    exec(compile(factory, f"<{function.__qualname__}, mutated>", "exec"), function.__globals__, namespace)
    code: CodeType = namespace["factory"](*[None] * len(free)).__code__
    if code.co_freevars != free:
        raise Misfit(f"{function.__qualname__} uses {code.co_freevars} of its surroundings after the edit, not {free}")
    return code
