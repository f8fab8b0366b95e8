"""A cluster of one, in memory: as much of ``/work/…`` as a worker uses, with faults to order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

from aiohttp import web

from ringraft.client import ApiError, ClientError, Unreachable

POLL_S = 0.3


def refusal(status: int, code: str, *, retryable: bool = False) -> ApiError:
    return ApiError(status, {"code": code, "detail": code, "retryable": retryable, "outcome": "not_applied"})


class FakeCluster:
    """Stands where ``ringraft.client.Client`` does; ``calls`` is everything that was asked, in order."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []
        self.faults: dict[str, list[ClientError]] = {}
        """Errors that the next calls of a path raise."""
        self.refuses_progress = False
        """The next renewal that carries progress is refused, whenever it comes."""
        self.away = False
        self.broken: set[str] = set()
        """Items whose reports are answered with a fault of the cluster's."""
        self.breaks_off: set[str] = set()
        """Items whose reports break the connection."""
        self.reports: dict[str, list[dict[str, Any]]] = {"complete": [], "fail": [], "release": []}
        """Accepted reports by verb."""
        self.progress: dict[str, Any] = {}
        self._tokens = itertools.count(4096)
        self._granted: dict[str, list[dict[str, Any]]] = {}
        self._news = asyncio.Event()

    def add(self, work_id: str, work_type: str, config: dict[str, Any] | None = None) -> None:
        self.items[work_id] = {
            "work_id": work_id,
            "work_type": work_type,
            "config": config or {},
            "state": "PENDING",
            "attempt": 0,
            "lease": None,
            "newest": 0,
        }
        self._news.set()

    def grant(self, work_id: str, node_id: str) -> int:
        """Lease an item to a node; the token."""
        item, token = self.items[work_id], next(self._tokens)
        item.update(state="ASSIGNED", newest=token, lease={"node_id": node_id, "token": token, "expires_at": "later"})
        return token

    def expire(self, work_id: str) -> None:
        self.items[work_id].update(state="PENDING", lease=None)

    def cancel(self, work_id: str) -> None:
        self.items[work_id].update(state="CANCELLED", lease=None)

    def state(self, work_id: str) -> str:
        return str(self.items[work_id]["state"])

    def paths(self) -> list[str]:
        return [path for path, _ in self.calls]

    async def get(self, path: str, **options: Any) -> Any:
        self.calls.append((path, {}))
        if self.away:
            raise Unreachable("nobody there", "not_applied")
        node_id = path.removeprefix("/work/for-node/")
        held = [item for item in self.items.values() if item["lease"] and item["lease"]["node_id"] == node_id]
        return {"node_id": node_id, "work_items": held, "count": len(held)}

    async def post(self, path: str, body: Any = None, **options: Any) -> Any:
        self.calls.append((path, body))
        self.keys.append(options.get("key"))
        if self.faults.get(path):
            raise self.faults[path].pop(0)
        if self.away:
            raise Unreachable("nobody there", "not_applied")
        match path:
            case "/nodes/register":
                return {"status": "registered", "freed": 0}
            case "/work/claim":
                return await self._claim(body, options.get("key"))
            case "/work/start":
                self._held(body)["state"] = "RUNNING"
                return {"status": "running"}
            case "/work/renew":
                if self.refuses_progress and any("progress" in lease for lease in body["leases"]):
                    self.refuses_progress = False
                    raise refusal(413, "too_large")
                return {"leases": [self._renew(lease) for lease in body["leases"]]}
        return self._report(path.removeprefix("/work/"), body)

    async def _claim(self, body: dict[str, Any], key: str | None) -> dict[str, Any]:
        if key is not None and key in self._granted:
            return {"items": self._granted[key]}
        end_s = asyncio.get_running_loop().time() + min(POLL_S, body["wait_s"])
        while True:
            found = [i for i in self.items.values() if i["state"] == "PENDING" and i["work_type"] in body["work_types"]]
            left_s = end_s - asyncio.get_running_loop().time()
            if found or left_s <= 0:
                break
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._news.wait()
        granted = found[: body["max_items"]]
        for item in granted:
            self.grant(item["work_id"], body["node_id"])
        items = [{**item, "lease": dict(item["lease"])} for item in granted]
        if key is not None:
            self._granted[key] = items
        return {"items": items, "work": items[0] if items else None}

    def _held(self, body: dict[str, Any]) -> dict[str, Any]:
        item = self.items.get(body["work_id"])
        if item is None:
            raise refusal(404, "not_found")
        if body["token"] < item["newest"]:
            raise refusal(409, "stale_token")
        if item["state"] in ("COMPLETED", "FAILED", "CANCELLED"):
            raise refusal(409, "already_final")
        if item["lease"] is None and item["state"] != "PENDING":
            raise refusal(409, "wrong_state")
        return item

    def _renew(self, lease: dict[str, Any]) -> dict[str, Any]:
        item = self.items[lease["work_id"]]
        if "progress" in lease:
            self.progress[lease["work_id"]] = lease["progress"]
        if item["state"] == "CANCELLED":
            return {"work_id": lease["work_id"], "ok": True, "expires_at": None, "cancel": True}
        if item["lease"] is None or item["lease"]["token"] != lease["token"]:
            return {"work_id": lease["work_id"], "ok": False, "code": "stale_token"}
        return {"work_id": lease["work_id"], "ok": True, "expires_at": "later", "cancel": False}

    def _report(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        if body["work_id"] in self.broken:
            raise refusal(500, "internal")
        if body["work_id"] in self.breaks_off:
            raise Unreachable("cut", "unknown")
        item = self._held(body)
        final = {"complete": "COMPLETED", "fail": "FAILED", "release": "PENDING"}[verb]
        item.update(state=final, lease=None)
        self.reports[verb].append(body)
        return {"status": verb}

    def application(self) -> web.Application:
        """The same over HTTP, for workers in processes of their own."""

        async def handle(request: web.Request) -> web.Response:
            body = await request.json() if request.can_read_body else None
            try:
                if request.method == "GET":
                    return web.json_response(await self.get(request.path))
                return web.json_response(
                    await self.post(request.path, body, key=request.headers.get("Idempotency-Key"))
                )
            except ApiError as error:
                return web.json_response(error.problem, status=error.status)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        return app
