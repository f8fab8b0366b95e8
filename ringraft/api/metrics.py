"""Numbers for Prometheus."""

from __future__ import annotations

from ringraft.api.auth import Role
from ringraft.api.call import Call, Reply
from ringraft.api.route import Answer, Route
from ringraft.api.shapes import TEXT
from ringraft.metrics import CONTENT_TYPE


async def metrics(call: Call) -> Reply:
    """The exposition text."""
    return Reply(call.node.metrics.render(), content_type=CONTENT_TYPE)


def routes() -> list[Route]:
    """The row of the metrics."""
    return [
        Route("GET", "/metrics", metrics, (Role.READER,), "Numbers for Prometheus", "health", is_local=True,
              answers=[Answer(200, "The exposition text.", TEXT, "ringraft_raft_is_leader 1.0\n", "text/plain")]),
    ]  # fmt: skip
