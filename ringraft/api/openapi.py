"""The OpenAPI 3.1 document, made from the route table and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import ringraft
from ringraft.api.problems import KINDS, PROBLEM_TYPE
from ringraft.api.route import JSON_TYPE, Answer, Route
from ringraft.api.shapes import AT, COMPONENTS, ref
from ringraft.schema import NAME, Array, Field, Number

Doc = dict[str, Any]

DESCRIPTION = """\
Any node takes any request; a write that reaches a node that does not lead is forwarded once to the leader.
Parameters that make a request wait, or whose value must name something that exists, are listed under
`x-also-accepts` (of an operation or of an object in a body) instead of among the parameters and properties, so that
generated requests neither wait nor name what is not there.
`Idempotency-Key` and `X-Ringraft-Timeout` are request headers that every write takes; see `components/parameters`.
"""

HEADERS: Doc = {
    "X-Ringraft-Node": {"description": "The node that answered.", "required": True, "schema": {"type": "string"}},
    "X-Ringraft-Leader": {"description": "Who leads; absent when nobody does.", "schema": {"type": "string"}},
    "X-Ringraft-Term": {
        "description": "The epoch of the answer.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "X-Ringraft-Index": {
        "description": "The applied index behind the answer.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "X-Ringraft-Request-Id": {"description": "Names this request.", "required": True, "schema": {"type": "string"}},
    "X-Ringraft-Lag": {
        "description": "Of a stale read: seconds since this node last heard the leader.",
        "schema": {"type": "number", "minimum": 0},
    },
    "X-Ringraft-Served-By": {"description": "The node a request was forwarded to.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer", "minimum": 0}},
    "Allow": {"description": "The methods there are.", "required": True, "schema": {"type": "string"}},
    "Location": {"description": "The leader's URL.", "required": True, "schema": {"type": "string"}},
}
ON_EVERY_ANSWER = ("Node", "Leader", "Term", "Index", "Request-Id", "Lag", "Served-By")


def document(routes: Iterable[Route], *, timeout_s_max: float) -> Doc:
    """The document. WebSockets, which OpenAPI has no words for, stand under ``x-websockets``.

    ``timeout_s_max`` is how long a request may ask to wait for a leader.
    """
    paths: Doc = {}
    sockets: list[Doc] = []
    for route in routes:
        if route.upgrades:
            sockets.append({"path": route.path, "summary": route.summary, "roles": [str(role) for role in route.roles]})
        else:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, timeout_s_max)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ringraft",
            "version": ringraft.__version__,
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": COMPONENTS,
            "headers": HEADERS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "parameters": {
                "Idempotency-Key": {
                    "name": "Idempotency-Key",
                    "in": "header",
                    "description": "A repeat with the same key and body has no second effect.",
                    "schema": NAME.json_schema(),
                },
                "X-Ringraft-Timeout": {
                    "name": "X-Ringraft-Timeout",
                    "in": "header",
                    "description": "Seconds to wait for a leader and a commit; the same as `timeout_s`.",
                    "schema": Number(0, timeout_s_max, above=True).json_schema(),
                },
            },
        },
        "x-websockets": sockets,
    }


def problem_codes(route: Route) -> set[str]:
    """Every code that this route can answer, whatever brings it about."""
    codes = {"invalid_field", "unknown_field", "internal", *route.problems}
    if not route.is_open:
        codes |= {"unauthenticated", "forbidden"}
    if route.body is not None:
        codes |= {"bad_json", "too_large", "unsupported_media_type", "token_required"}
    if route.is_cluster:
        codes |= {"no_leader", "no_quorum", "starting", "shutting_down"}
    if route.writes:
        codes |= {"commit_unknown", "disk_full", "forbidden"}
    return codes


def _operation(route: Route, timeout_s_max: float) -> Doc:
    query = route.query_object(timeout_s_max).fields
    operation: Doc = {
        "operationId": f"{route.method.lower()}_{re.sub(r'[^a-z0-9]+', '_', route.path.lower()).strip('_')}",
        "summary": route.summary,
        "tags": [route.tag],
        "x-roles": [str(role) for role in route.roles],
        "responses": _responses(route),
    }
    if route.doc:
        operation["description"] = route.doc
    if route.is_open:
        operation["security"] = []
    parameters = [_parameter(name, known, "path") for name, known in route.path_fields.items()]
    parameters += [_parameter(name, known, "query") for name, known in query.items() if not known.refers]
    if parameters:
        operation["parameters"] = parameters
    also = [_parameter(name, known, "query") for name, known in query.items() if known.refers]
    if route.writes:
        also += [{"$ref": f"#/components/parameters/{name}"} for name in ("Idempotency-Key", "X-Ringraft-Timeout")]
    operation["x-also-accepts"] = also
    if route.body is not None:
        content: Doc = {"schema": route.body.json_schema()}
        if route.body_example is not None:
            content["example"] = route.body_example
        operation["requestBody"] = {"required": route.body_required, "content": {JSON_TYPE: content}}
    return operation


def _parameter(name: str, known: Field, place: str) -> Doc:
    out: Doc = {
        "name": name,
        "in": place,
        "required": known.required or place == "path",
        "schema": known.type.json_schema(),
    }
    if known.doc:
        out["description"] = known.doc
    if isinstance(known.type, Array):
        out |= {"style": "form", "explode": False}
    return out


def _responses(route: Route) -> Doc:
    responses: Doc = {}
    for answer in route.answers:
        response = responses.setdefault(str(answer.status), {"description": answer.doc, "content": {}})
        response["content"][answer.content_type] = _content(answer)
        response["headers"] = _headers(answer.status)
    for status in sorted({KINDS[code].status for code in problem_codes(route)}):
        codes = sorted(code for code in problem_codes(route) if KINDS[code].status == status)
        response = responses.setdefault(str(status), {"description": "", "content": {}})
        response["description"] = (response["description"] + " " + ", ".join(codes)).strip()
        response["headers"] = _headers(status)
        response["content"][PROBLEM_TYPE] = {
            "schema": ref("Problem"),
            "examples": {code: {"value": _problem_example(code)} for code in codes},
        }
    if route.is_cluster:
        responses["307"] = {
            "description": "With `redirect=1`: the leader is elsewhere.",
            "headers": _headers(307),
        }
    return dict(sorted(responses.items()))


def _content(answer: Answer) -> Doc:
    return {"schema": answer.schema, "example": answer.example}


def _headers(status: int) -> Doc:
    names = [f"X-Ringraft-{name}" for name in ON_EVERY_ANSWER]
    names += {429: ["Retry-After"], 503: ["Retry-After"], 405: ["Allow"], 307: ["Location"]}.get(status, [])
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _problem_example(code: str) -> Doc:
    kind = KINDS[code]
    example: Doc = {
        "type": f"urn:ringraft:problem:{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": kind.title,
        "instance": "5f2b1c0d9e8a7f64",
        "code": code,
        "retryable": kind.retryable,
        "outcome": kind.outcome,
        "leader": {"id": "n1", "url": "http://127.0.0.1:8770"},
        "term": 3,
    }
    if code in ("invalid_field", "unknown_field", "token_required"):
        example["errors"] = [{"pointer": "/priority", "message": "is 101, allowed are 0 to 100"}]
    if code == "already_final":
        example |= {"state": "COMPLETED", "finished_at": AT}
    return example
