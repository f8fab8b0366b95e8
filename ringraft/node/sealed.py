"""A final item as the archive keeps it: what is searched for in columns, the item itself packed.

Packing is a few microseconds where rendering for a person is thirty, and every final item is
archived while few are ever asked for: so it is rendered when it is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ringraft.state import image, view
from ringraft.state.records import Item


class Sealed(NamedTuple):
    """One row of the archive."""

    key: str
    """The id in lower case."""
    state: str
    work_type: str
    group: str | None
    node_id: str | None
    """The node of the last grant."""
    finished_wall_ms: int
    body: bytes


def seal(item: Item, body: bytes) -> Sealed:
    """A final item as a row; ``body`` is what the state machine packs it into."""
    new, end, grant = item.spec.new, item.end, item.grant
    assert end is not None, f"{item.spec.work_id} is not final"
    node_id = None if grant is None else grant.node_id
    return Sealed(item.spec.id, item.state, new.work_type, new.group, node_id, end.wall_ms, body)


def unseal(body: bytes) -> dict[str, Any]:
    """The item of a row in the API's shape."""
    return view.item(image.unpack_one(body))
