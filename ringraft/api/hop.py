"""The header with which one node vouches to another for a request it passes on.

It says who asked, for whom the request is and what its body is, and carries a MAC under the cluster
secret over that and the request line. A request that carries it goes no further: one hop.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass

from ringraft.api.auth import ANYBODY, Principal, Role
from ringraft.api.problems import Problem

HOP_HEADER = "X-Ringraft-Hop"
HOP_CHARS_MAX = 2048


@dataclass(frozen=True, slots=True)
class Hop:
    """A checked hop header. ``body_sha256`` must still be held against the body."""

    sender: str
    principal: Principal
    request_id: str
    body_sha256: str

    def check_body(self, raw: bytes) -> None:
        """Refuse a body that is not the one vouched for."""
        if not hmac.compare_digest(hashlib.sha256(raw).hexdigest(), self.body_sha256):
            raise Problem("forbidden", f"the body is not the one that {self.sender} signed")


class HopSigner:
    """Signs and checks hop headers under one secret."""

    def __init__(self, secret: str | None) -> None:
        self._is_open = secret is None
        self._key = hashlib.sha256(b"ringraft hop v1\n" + (secret or "").encode()).digest()

    def sign(
        self, principal: Principal, *, sender: str, to: str, request_id: str, method: str, target: str, body: bytes
    ) -> str:
        """The header's value for a request to node ``to``; ``target`` is path and query as sent."""
        said = {
            "from": sender,
            "to": to,
            "name": principal.name,
            "role": principal.role,
            "node": principal.node_id,
            "id": request_id,
            "body": hashlib.sha256(body).hexdigest(),
        }
        text = base64.urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode()
        return f"v1.{text}.{self._mac(text, method, target)}"

    def check(self, value: str, *, to: str, method: str, target: str) -> Hop:
        """The hop that ``value`` vouches for. Raises Problem (403) for anything but a good signature."""
        version, _, rest = value.partition(".")
        text, _, mac = rest.partition(".")
        good = len(value) <= HOP_CHARS_MAX and version == "v1" and value.isascii()
        if not good or not hmac.compare_digest(mac, self._mac(text, method, target)):
            raise Problem("forbidden", f"the {HOP_HEADER} header is not signed by a node of this cluster")
        try:
            said = json.loads(base64.urlsafe_b64decode(text))
            principal = Principal(said["name"], Role(said["role"]), said["node"])
            hop = Hop(said["from"], ANYBODY if self._is_open else principal, said["id"], said["body"])
            addressee = said["to"]
        except (ValueError, KeyError, TypeError):
            raise Problem("forbidden", f"the {HOP_HEADER} header is malformed") from None
        if addressee != to:
            raise Problem("forbidden", f"the {HOP_HEADER} header was made for node {addressee}")
        return hop

    def _mac(self, text: str, method: str, target: str) -> str:
        return hmac.new(self._key, f"{method}\n{target}\n{text}".encode(), hashlib.sha256).hexdigest()
