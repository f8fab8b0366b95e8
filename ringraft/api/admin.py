"""What only an administrator asks."""

from __future__ import annotations

import asyncio
import logging

from ringraft.api.auth import Role
from ringraft.api.call import Call, Reply
from ringraft.api.route import Answer, Route
from ringraft.api.shapes import FLAG, TEXT, shape
from ringraft.schema import Boolean, Field, Object

log = logging.getLogger(__name__)

ANSWER_FIRST_S = 0.05
"""The answer leaves before the node begins to stop."""


async def shutdown(call: Call) -> Reply:
    """End this node."""
    graceful = call.body.get("graceful", True)
    log.info("shutdown asked for action=shutdown graceful=%s by=%s", graceful, call.principal.name)
    asyncio.get_running_loop().call_later(ANSWER_FIRST_S, lambda: call.node.request_shutdown(graceful=graceful))
    return Reply({"status": "shutting_down", "node_id": call.service.node_id, "graceful": graceful})


def routes() -> list[Route]:
    """The rows of administration."""
    return [
        Route("POST", "/admin/shutdown", shutdown, (Role.ADMIN,), "End this node", "admin", is_local=True,
              answers=[Answer(200, "It ends.", shape({"status": TEXT, "node_id": TEXT, "graceful": FLAG}),
                              {"status": "shutting_down", "node_id": "n1", "graceful": True})],
              body=Object({"graceful": Field(Boolean(), "Drain and hand over first; true when left out.")}),
              body_example={"graceful": True}),
    ]  # fmt: skip
