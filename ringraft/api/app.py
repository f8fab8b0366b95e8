"""The application: the route table with every route, behind the one gate."""

from __future__ import annotations

from aiohttp import web

from ringraft.api import (
    admin,
    backup,
    election,
    events,
    health,
    members,
    metrics,
    nodes,
    openapi,
    raft,
    strictjson,
    work,
)
from ringraft.api.auth import Credentials, Role
from ringraft.api.call import Call, Reply
from ringraft.api.gate import Gate, WebHandler, stamp
from ringraft.api.route import JSON_TYPE, Answer, Route
from ringraft.api.served import ServedNode
from ringraft.api.service import Service
from ringraft.api.shapes import MAP
from ringraft.api.submission import Submission
from ringraft.api.upstream import Upstream

HEAD_PATHS = frozenset({"/health", "/livez", "/readyz"})
"""Load balancers ask these with HEAD."""

ROUTES: web.AppKey[list[Route]] = web.AppKey("routes", list)
SERVICE: web.AppKey[Service] = web.AppKey("service", Service)


def route_table(submission: Submission, *, timeout_s_max: float) -> list[Route]:
    """Every route there is, the document that describes them included."""
    table = [
        *health.routes(),
        *work.routes(submission),
        *events.routes(),
        *raft.routes(),
        *members.routes(),
        *election.routes(),
        *nodes.routes(),
        *admin.routes(),
        *backup.routes(),
        *metrics.routes(),
    ]
    described = Answer(200, "This document.", MAP, {"openapi": "3.1.0"})
    text = b""

    async def serve(call: Call) -> Reply:
        return Reply(text, content_type=JSON_TYPE)

    table.append(
        Route("GET", "/openapi.json", serve, (Role.READER,), "This document", "health", [described], is_local=True)
    )
    text = strictjson.dump(openapi.document(table, timeout_s_max=timeout_s_max))
    return table


def build_app(node: ServedNode, credentials: Credentials | None = None) -> web.Application:
    """The REST interface of ``node`` .

    ``credentials`` replaces the node's own, which know the cluster secret only.
    """
    service = Service(node, credentials)
    service.upstream = Upstream(service)
    gate = Gate(service)

    @web.middleware
    async def gated(request: web.Request, handler: WebHandler) -> web.StreamResponse:
        return await gate.serve(request, handler)

    app = web.Application(middlewares=[gated], client_max_size=node.settings.http.batch_body_bytes_max)
    table = route_table(service.submission, timeout_s_max=node.settings.http.request_timeout_max_s)
    app[ROUTES] = table
    app[SERVICE] = service
    for route in table:
        handler = gate.handler(route)
        app.router.add_route(route.method, route.path, handler)
        if route.path in HEAD_PATHS:
            app.router.add_route("HEAD", route.path, handler)
    app.on_response_prepare.append(stamp)
    app.on_shutdown.append(_stop)
    return app


async def _stop(app: web.Application) -> None:
    service = app[SERVICE]
    service.stopping.set()
    await service.upstream.close()
