"""Who asks, and what that lets them do. Denied unless a route's role says otherwise."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from ringraft.api.problems import Problem

CREDENTIAL_CHARS_MAX = 4096
"""A longer ``Authorization`` value is no credential of ours."""


class Role(StrEnum):
    """What a route asks for, and what a credential carries."""

    OPEN = "open"
    READER = "reader"
    SUBMITTER = "submitter"
    WORKER = "worker"
    PEER = "peer"
    ADMIN = "admin"


INCLUDES: Mapping[Role, frozenset[Role]] = {
    Role.OPEN: frozenset({Role.OPEN}),
    Role.READER: frozenset({Role.OPEN, Role.READER}),
    Role.SUBMITTER: frozenset({Role.OPEN, Role.READER, Role.SUBMITTER}),
    Role.WORKER: frozenset({Role.OPEN, Role.READER, Role.WORKER}),
    Role.PEER: frozenset({Role.OPEN, Role.READER, Role.PEER}),
    Role.ADMIN: frozenset(Role),
}
"""A higher role does what the lower ones may."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a credential belongs to. ``node_id`` binds a worker to its own node."""

    name: str
    role: Role
    node_id: str | None = None

    def may(self, roles: Iterable[Role]) -> bool:
        """Whether one of ``roles`` is included in this principal's."""
        return not INCLUDES[self.role].isdisjoint(roles)

    def check_node(self, node_id: str) -> None:
        """Refuse a worker that speaks for another node."""
        if self.node_id is not None and self.node_id.lower() != node_id.lower():
            raise Problem("forbidden", f"this credential is node {self.node_id}'s, it cannot speak for {node_id}")


NOBODY = Principal("nobody", Role.OPEN)
ANYBODY = Principal("anybody", Role.ADMIN)
"""Everyone, where no secret is set: such a node listens on loopback only."""

ADMIN = Principal("admin", Role.ADMIN)


class Credentials:
    """The credentials this node knows. Only digests are kept; comparing takes the same time always."""

    def __init__(self, secret: str | None, tokens: Mapping[str, Principal] | None = None) -> None:
        self._known: list[tuple[bytes, Principal]] = []
        if secret is not None:
            self._known.append((_digest(secret), ADMIN))
        for token, principal in (tokens or {}).items():
            self._known.append((_digest(token), principal))

    def principal(self, authorization: str | None) -> Principal | None:
        """Who an ``Authorization`` header speaks for; None when it names nobody we know."""
        if not self._known:
            return ANYBODY
        if authorization is None:
            return NOBODY
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or len(token) > CREDENTIAL_CHARS_MAX:
            return None
        digest = _digest(token.strip())
        found: Principal | None = None
        for known, principal in self._known:
            if hmac.compare_digest(known, digest):
                found = principal
        return found


class HostRule:
    """Which ``Host`` an administrator's request may name.

    A web page can make a browser send requests to this port under a host name of the page's own
    choosing (DNS rebinding); it cannot do so under an address or under our names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name.lower() for name in names) | {"localhost"}

    def check(self, host: str | None, origin: str | None) -> None:
        """Refuse (403) what a browser was tricked into."""
        if origin is not None:
            raise Problem(
                "forbidden", "a request with an Origin header comes from a web page; this one is not for those"
            )
        name = _host_name(host or "")
        if name is None or not (name in self._names or _is_address(name)):
            raise Problem("forbidden", "the Host header names neither an address nor a name of this cluster")


def host_names(addresses: Iterable[str]) -> set[str]:
    """The host names in ``host:port`` texts and URLs."""
    names = (_host_name(address.partition("://")[2] or address) for address in addresses)
    return {name for name in names if name}


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
