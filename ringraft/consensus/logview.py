"""The log's entries as people look at them."""

from __future__ import annotations

import asyncio
from typing import Final

from ringraft.consensus.base import Logged
from ringraft.consensus.replog.syncobj import CHANGE, ENTRY, RaftLog
from ringraft.state.codec import decode_entry

READ_BYTES_MAX: Final = 4 * 1024 * 1024
"""Entries that one look decodes, together; the first one always."""
ON_LOOP_BYTES_MAX: Final = 32 * 1024
"""A larger entry is decoded in a thread: a full one takes longer than a heartbeat."""


async def read_log(log: RaftLog, first: int, limit: int) -> list[Logged]:
    """At most ``limit`` entries from ``first`` on, fewer when they are large or there are no more."""
    found: list[Logged] = []
    size = 0
    for command, index, term in log.entries(first, limit):
        size += len(command)
        if found and size > READ_BYTES_MAX:
            break
        entry = None
        if command[:1] in (ENTRY, CHANGE):
            if len(command) > ON_LOOP_BYTES_MAX:
                entry = await asyncio.to_thread(decode_entry, command[1:])
            else:
                entry = decode_entry(command[1:])
                await asyncio.sleep(0)
        found.append(Logged(index, term, len(command), entry))
    return found
