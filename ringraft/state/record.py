"""How a record of the state is declared: fixed once made, and cheap to make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def record(kind: type[T]) -> type[T]:
    """A dataclass with slots and a hash that nobody assigns to after it was made.

    The type checker refuses assignments, as for ``frozen=True``. At run time that would make each
    record through ``object.__setattr__``, field by field: 1.6 µs instead of 0.2 for a work item, and
    an entry of the log makes hundreds.
    """
    return dataclass(slots=True, unsafe_hash=True)(kind)
