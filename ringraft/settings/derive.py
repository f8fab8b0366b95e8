"""What follows from what was said: names, addresses and roles that a person need not spell out."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

from ringraft.settings.address import is_loopback, split_address
from ringraft.settings.convert import NODE_ID_CHARS_MAX
from ringraft.settings.tree import NodeRole, Secret

SECRET_CHARS_ADVISED = 16
SECRET_BYTES_MAX = 4096


class Values:
    """Converted values by ``section.key``, with origin and rank; what ``derive`` reads and completes."""

    def __init__(self) -> None:
        self.by_key: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.ranks: dict[str, int] = {}
        self.warnings: list[str] = []
        self.faults: list[str] = []

    def put(self, key: str, value: Any, origin: str, rank: int) -> None:
        """Set one value; the caller goes from low rank to high."""
        self.by_key[key], self.origins[key], self.ranks[key] = value, origin, rank

    def derive(self, key: str, value: Any, origin: str) -> None:
        """Set what follows from other settings; the rank stays, since nobody said it."""
        self.by_key[key], self.origins[key] = value, origin

    def is_default(self, key: str) -> bool:
        """Nobody said anything about ``key``."""
        return self.ranks[key] == 0


def derive(values: Values) -> None:
    """Complete ``values`` in place; faults and warnings are collected there."""
    _derive_node_id(values)
    _derive_secrets(values)
    _derive_bind(values)
    _derive_roles(values)
    _derive_addresses(values)
    _derive_from_entry(values)
    _advise(values)


def _derive_node_id(values: Values) -> None:
    if values.by_key["node.node_id"] is None:
        host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")
        values.derive("node.node_id", host[:NODE_ID_CHARS_MAX] or "node", "host name")


def _derive_secrets(values: Values) -> None:
    given, file = values.by_key["auth.secret"], values.by_key["auth.secret_file"]
    if given is not None and file is not None:
        if values.ranks["auth.secret"] == values.ranks["auth.secret_file"]:
            values.faults.append("auth.secret and auth.secret_file are both set; keep one")
        if values.ranks["auth.secret"] > values.ranks["auth.secret_file"]:
            file = None
    if file is not None:
        values.derive("auth.secret", _read_secret("auth.secret_file", file, values), f"file {file}")
    token_file = values.by_key["auth.token_file"]
    token = _read_secret("auth.token_file", token_file, values) if token_file is not None else None
    values.by_key["auth.token"] = token
    secret = values.by_key["auth.secret"]
    if secret is not None and len(secret.reveal()) < SECRET_CHARS_ADVISED:
        values.warnings.append(
            f"the cluster secret is shorter than {SECRET_CHARS_ADVISED} characters; take a longer one"
        )


def _read_secret(key: str, path: Path, values: Values) -> Secret | None:
    try:
        raw = path.read_bytes()
        mode = path.stat().st_mode & 0o777
        text = raw[: SECRET_BYTES_MAX + 1].decode("utf-8").strip()
    except OSError as error:
        values.faults.append(f"{key} {path} cannot be read: {error.strerror or error}")
        return None
    except UnicodeDecodeError:
        values.faults.append(f"{key} {path} is not text")
        return None
    if not text or len(raw) > SECRET_BYTES_MAX or not text.isprintable():
        values.faults.append(f"{key} {path} must hold one line of 1 to {SECRET_BYTES_MAX} printable characters")
        return None
    if mode & 0o077:
        values.warnings.append(f"{key} {path} can be read by others (mode {mode:o}); chmod 600 {path}")
    return Secret(text)


def _derive_bind(values: Values) -> None:
    """``node.port`` replaces the port of a bind that was not said more strongly; a voter's entry fills in a default."""
    node_id, port = values.by_key["node.node_id"], values.by_key["node.port"]
    host, _ = split_address(values.by_key["node.bind"])
    if port is not None and values.ranks["node.port"] >= values.ranks["node.bind"]:
        values.derive("node.bind", f"{host}:{port}", values.origins["node.port"])
        return
    own = values.by_key["cluster.voters"].get(node_id)
    if own is not None and values.is_default("node.bind"):
        bind = own if is_loopback(own) else f"{host}:{split_address(own)[1]}"
        values.derive("node.bind", bind, "its entry in cluster.voters")


def _derive_roles(values: Values) -> None:
    node_id, voters = values.by_key["node.node_id"], values.by_key["cluster.voters"]
    roles, join = values.by_key["node.roles"], values.by_key["cluster.join"]
    said_voter = NodeRole.VOTER in roles
    if voters:
        votes = node_id in voters
        if said_voter and not votes:
            values.warnings.append(f"node {node_id} is not in cluster.voters ({', '.join(voters)}), so it is a worker")
        if roles and not said_voter and votes:
            values.warnings.append(f"node {node_id} is in cluster.voters, so it votes")
    else:
        votes = said_voter or (not join and not roles)
    works = NodeRole.WORKER in roles or not votes
    found = tuple(role for role, has in ((NodeRole.VOTER, votes), (NodeRole.WORKER, works)) if has)
    if found != roles:
        values.derive("node.roles", found, "cluster.voters" if voters else "cluster.join" if join else "alone")


def _derive_addresses(values: Values) -> None:
    node_id, bind = values.by_key["node.node_id"], values.by_key["node.bind"]
    voters = values.by_key["cluster.voters"]
    if not voters and NodeRole.VOTER in values.by_key["node.roles"] and not values.by_key["cluster.join"]:
        voters = {node_id: values.by_key["node.advertise"] or bind}
        values.derive("cluster.voters", voters, "alone")
    own = voters.get(node_id)
    if values.by_key["node.advertise"] is None and own is not None and split_address(own)[1] != 0:
        values.derive("node.advertise", own, "its entry in cluster.voters")
    if NodeRole.WORKER in values.by_key["node.roles"] and not values.by_key["cluster.join"] and voters:
        values.derive("cluster.join", tuple(voters.values()), "cluster.voters")


def _derive_from_entry(values: Values) -> None:
    entry = values.by_key["cluster.nodes"].get(values.by_key["node.node_id"])
    if entry is None:
        return
    if values.is_default("worker.capabilities") and entry.capabilities():
        values.derive("worker.capabilities", entry.capabilities(), "its entry in cluster.nodes")
    if values.is_default("node.priority") and entry.priority:
        values.derive("node.priority", entry.priority, "its entry in cluster.nodes")


def _advise(values: Values) -> None:
    voters, node_id, bind = (values.by_key[key] for key in ("cluster.voters", "node.node_id", "node.bind"))
    if len(voters) > 1 and len(voters) % 2 == 0:
        values.warnings.append(
            f"{len(voters)} voters survive the loss of {(len(voters) - 1) // 2}, no more than {len(voters) - 1} would"
        )
    elsewhere = [name for name, address in voters.items() if name != node_id and not is_loopback(address)]
    if node_id in voters and elsewhere and is_loopback(bind):
        values.warnings.append(
            f"node.bind {bind} cannot be reached by {', '.join(elsewhere)}; bind to 0.0.0.0 and set auth.secret_file"
        )
