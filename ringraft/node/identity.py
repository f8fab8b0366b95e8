"""Who this node is, kept in its data directory: one lock file and ``cluster.json``.

Identity is the node id and an incarnation that rises by one at each start, never an address. The
directory also carries a random data id, so that a directory that was emptied is not taken for the
old one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

IDENTITY_FILE = "cluster.json"
LOCK_FILE = "lock"
LOG_DIRECTORIES = ("log", "snapshot")
"""Where a log may lie; without an identity beside it nobody can tell whose it is."""
SEAT_FILE = "log/seat"
"""Written once the log has met others; see ``consensus/replog/seat.py``."""
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


class StartRefused(Exception):
    """This process must not start; one sentence says why and what to do (exit code 2)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """``cluster_id`` is None at a worker that has not met its cluster yet."""

    cluster_id: str | None
    node_id: str
    data_id: str
    incarnation: int


def propose_cluster_id(voters: Mapping[str, str]) -> str:
    """The cluster id that all founders of one configuration agree on; a single one draws its own.

    Two clusters of the same names have the same: which of them a log belongs to says its formation id.
    """
    if len(voters) == 1:
        return "c-" + secrets.token_hex(8)
    names = "\n".join(sorted(voter.lower() for voter in voters))
    return "c-" + hashlib.sha256(names.encode()).hexdigest()[:16]


class DataDirectory:
    """A data directory, held by this process from ``open`` to ``close``."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> DataDirectory:
        """Make the directory if need be and lock it. Raises StartRefused."""
        try:
            path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        except OSError as fault:
            raise StartRefused(
                f"data directory {path} cannot be used ({fault.strerror}); name another with --data-dir"
            ) from fault
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            os.close(lock)
            raise StartRefused(
                f"data directory {path} is in use by another process; stop that one, or name another with --data-dir"
            ) from fault
        if path.stat().st_mode & 0o077:
            path.chmod(DIRECTORY_MODE)
            log.warning("closed the data directory to other users action=data_dir_mode path=%s mode=0700", path)
        return cls(path, lock)

    def close(self) -> None:
        """Let another process have the directory."""
        os.close(self._lock)

    def cluster_id(self) -> str | None:
        """The cluster that this directory belongs to, None while it belongs to none for good.

        A voter's belongs to one once its log has met others (``log/seat``): a list of voters that was
        corrected before is not held against it. Raises StartRefused.
        """
        stored = self._read()
        is_settled = not (self.path / LOG_DIRECTORIES[0]).exists() or (self.path / SEAT_FILE).exists()
        return stored.cluster_id if stored is not None and is_settled else None

    def identify(self, *, node_id: str, cluster_id: str | None, proposed: str | None = None) -> Identity:
        """This start's identity: the stored one with its incarnation + 1, or a new one. Changes nothing yet.

        ``cluster_id`` is the configured one; ``proposed`` is for a directory that belongs to none yet.
        Raises StartRefused for a directory of another node or cluster.
        """
        stored, settled = self._read(), self.cluster_id()
        if stored is None:
            if any((self.path / name).exists() for name in LOG_DIRECTORIES):
                raise StartRefused(
                    f"data directory {self.path} holds a log but no {IDENTITY_FILE}, so nobody can tell whose it is; "
                    f"restore that file, or name an empty directory with --data-dir"
                )
            return Identity(cluster_id or proposed, node_id, secrets.token_hex(16), 1)
        if stored.node_id.lower() != node_id.lower():
            raise StartRefused(
                f"data directory {self.path} belongs to node {stored.node_id}, not {node_id}; "
                "name another with --data-dir, or start that node"
            )
        if cluster_id is not None and settled is not None and settled != cluster_id:
            raise StartRefused(
                f"data directory {self.path} belongs to cluster {settled}, not {cluster_id}; "
                f"name another with --data-dir, or set cluster.cluster_id={settled}"
            )
        return replace(stored, cluster_id=settled or cluster_id or proposed, incarnation=stored.incarnation + 1)

    def identity(self) -> Identity | None:
        """Who this directory belongs to; None when nobody has started here. Raises StartRefused."""
        return self._read()

    def save(self, identity: Identity) -> None:
        """Write ``cluster.json`` durably."""
        temporary = self.path / (IDENTITY_FILE + ".new")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(identity), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path / IDENTITY_FILE)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _read(self) -> Identity | None:
        path = self.path / IDENTITY_FILE
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as fault:
            raise StartRefused(f"{path} cannot be read ({fault}); restore it, or name another --data-dir") from fault
        return _parse(path, fields)


def _parse(path: Path, fields: Any) -> Identity:
    match fields:
        case {
            "cluster_id": str() | None as cluster_id,
            "node_id": str() as node_id,
            "data_id": str() as data_id,
            "incarnation": int() as incarnation,
        } if incarnation >= 1:
            return Identity(cluster_id, node_id, data_id, incarnation)
    raise StartRefused(
        f"{path} does not hold cluster_id, node_id, data_id and incarnation; restore it, or name another --data-dir"
    )
