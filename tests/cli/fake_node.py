"""A node that gives prepared answers and remembers what it was asked, for tests of the command line."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

Answer = tuple[int, Any]


class FakeNode:
    """Serves ``answers[(method, path)]``: a (status, body), or a function of the request's query and body."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Answer | Callable[[dict[str, str], Any], Answer]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.address = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="fake-node")

    def __enter__(self) -> FakeNode:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        runner = self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _answer(self, request: web.Request) -> web.Response:
        text = await request.text()
        body = json.loads(text) if text else None
        self.asked.append((request.method, request.path, body if body is not None else dict(request.query)))
        found = self.answers.get((request.method, request.path))
        if found is None:
            return problem(404, "not_found", f"nothing at {request.path}")
        status, value = found(dict(request.query), body) if callable(found) else found
        if status >= 400:
            return problem(status, value, f"refused with {value}")
        if isinstance(value, str):
            return web.Response(text=value)
        return web.json_response(value, status=status)


def problem(status: int, code: str, detail: str) -> web.Response:
    outcome = "unknown" if status == 504 else "not_applied"
    body = {"status": status, "code": code, "detail": detail, "retryable": False, "outcome": outcome}
    return web.json_response(body, status=status, content_type="application/problem+json")


def item(work_id: str, state: str = "PENDING", **more: Any) -> dict[str, Any]:
    """A work item as the API shows it."""
    return {
        "work_id": work_id,
        "work_type": "selfplay",
        "config": {"num_games": 10},
        "priority": 50,
        "state": state,
        "attempt": 0,
        "max_attempts": 3,
        "created_at": "2026-01-01T00:00:00.000Z",
        "lease": None,
        "progress": None,
        "result": None,
        "error": None,
        "artifacts": [],
        "history": [],
        **more,
    }
