"""The settings of one process: a frozen tree, its units in the names, its rules as sentences.

There are no defaults here: ``config/defaults.yaml`` has them, with a reason each. ``config.py``
reads the layers and builds this tree; parts of the program are handed the section they need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from ringraft.settings.address import PORT_MAX
from ringraft.state.model import TOKENS_PER_ENTRY, Limits

DAY_S = 86_400
YEAR_S = 366 * DAY_S
MIB = 1024 * 1024


class Secret:
    """A text that is never shown: not in logs, not in tracebacks, not by ``/admin/config``."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for signing and for the Authorization header."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class NodeRole(StrEnum):
    """What a process does: keep the log, run work, or both."""

    VOTER = "voter"
    WORKER = "worker"


class ConsensusMode(StrEnum):
    """Who leads. Only ``raft`` is available in this version."""

    RAFT = "raft"
    BULLY = "bully"
    HYBRID = "hybrid"


class MembershipMode(StrEnum):
    """Who is alive. Only ``http`` is available in this version."""

    HTTP = "http"
    SWIM = "swim"
    HYBRID = "hybrid"


class Profile(StrEnum):
    """Which times to start from."""

    LAN = "lan"
    WAN = "wan"


class LogLevel(StrEnum):
    """The standard library's names."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the most a number may be, both allowed."""

    least: float
    most: float


class Shape(StrEnum):
    """What a text must look like."""

    NODE_ID = "node id"
    ID = "id"
    ADDRESS = "host:port"


Address = Annotated[str, Shape.ADDRESS]
NodeId = Annotated[str, Shape.NODE_ID]
Count = Annotated[int, Range(1, 2**31)]


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """This process: who it is, where it listens, where it keeps things."""

    node_id: NodeId
    roles: tuple[NodeRole, ...]
    bind: Address
    port: Annotated[int, Range(0, PORT_MAX)] | None
    advertise: Address | None
    data_dir: Path
    priority: Annotated[int, Range(0, 1000)]
    log_level: LogLevel
    log_dir: Path | None
    work_poll_interval_s: Annotated[float, Range(0.05, 3600)]

    @property
    def is_voter(self) -> bool:
        """This node keeps a copy of the log and votes."""
        return NodeRole.VOTER in self.roles

    @property
    def is_worker(self) -> bool:
        """This node claims and runs work."""
        return NodeRole.WORKER in self.roles


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """What the configuration knows of one machine. ``port`` is its SSH port, as in the seed's file."""

    host: str
    port: int = 22
    api_port: int = 8770
    user: str | None = None
    key_file: str | None = None
    provider: str | None = None
    gpu: str | None = None
    gpu_count: int = 1
    gpu_vram_gb: float | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    labels: Mapping[str, str] | None = None
    priority: int = 0

    def capabilities(self) -> dict[str, Any]:
        """What a worker on this machine offers, in the API's form; only what the file says."""
        found: dict[str, Any] = {}
        if self.gpu:
            gpu: dict[str, Any] = {"name": self.gpu}
            if self.gpu_vram_gb is not None:
                gpu["vram_gb"] = self.gpu_vram_gb
            found["gpus"] = [dict(gpu) for _ in range(self.gpu_count)]
        if self.cpus is not None:
            found["cpus"] = self.cpus
        if self.memory_gb is not None:
            found["memory_gb"] = self.memory_gb
        if self.labels:
            found["labels"] = dict(self.labels)
        return found


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Who votes, whom to ask, and what is known of the machines."""

    cluster_id: Annotated[str, Shape.ID] | None
    voters: Mapping[str, str]
    join: tuple[Address, ...]
    nodes: Mapping[str, NodeEntry]


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Credentials. ``secret_file`` and ``token_file`` are read at start."""

    secret: Secret | None
    secret_file: Path | None
    token_file: Path | None
    insecure_transport: bool
    token: Secret | None
    """What ``token_file`` holds; not a key of its own."""

    def credential(self) -> Secret | None:
        """What this process shows to others: its own token, else the cluster secret."""
        return self.token or self.secret


@dataclass(frozen=True, slots=True)
class RaftSettings:
    """The log's times and sizes."""

    heartbeat_ms: Annotated[int, Range(5, 60_000)]
    election_min_ms: Annotated[int, Range(20, 600_000)]
    election_max_ms: Annotated[int, Range(25, 600_000)]
    snapshot_entries: Annotated[int, Range(10, 100_000_000)]
    entry_bytes_max: Annotated[int, Range(MIB, 15 * MIB)]
    entry_commands_max: Annotated[int, Range(1, TOKENS_PER_ENTRY)]
    segment_bytes: Annotated[int, Range(64 * 1024, 1024 * MIB)]
    formation_wait_ms: Annotated[int, Range(0, 600_000)]


@dataclass(frozen=True, slots=True)
class ConsensusSettings:
    """Who leads."""

    mode: ConsensusMode


@dataclass(frozen=True, slots=True)
class MembershipSettings:
    """Who is alive; for information, it ends no lease."""

    mode: MembershipMode
    profile: Profile
    heartbeat_s: Annotated[float, Range(0.05, 3600)]
    peer_timeout_s: Annotated[float, Range(0.1, DAY_S)]
    startup_grace_s: Annotated[float, Range(0, DAY_S)]
    swim_bind: Address | None
    trace: bool


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What bounds the queue. These travel through the log, so that every replica agrees."""

    items_max: Annotated[int, Range(1, 100_000_000)]
    retention_s: Annotated[float, Range(1, YEAR_S)]
    payload_bytes_max: Annotated[int, Range(256, MIB)]
    batch_items_max: Annotated[int, Range(1, TOKENS_PER_ENTRY)]
    claim_items_max: Annotated[int, Range(1, TOKENS_PER_ENTRY)]
    depends_on_max: Annotated[int, Range(0, 4096)]
    dependents_max: Count
    excluded_nodes_max: Annotated[int, Range(0, 4096)]
    group_items_max: Count
    shapes_max: Annotated[int, Range(1, 1_000_000)]
    classes_max: Annotated[int, Range(1, 1_000_000)]
    nodes_max: Annotated[int, Range(1, 1_000_000)]
    node_leases_max: Count
    keys_max: Count
    key_grace_s: Annotated[float, Range(120, DAY_S)]
    history_max: Annotated[int, Range(1, 1024)]
    error_chars_max: Annotated[int, Range(64, 65_536)]
    backoff_base_s: Annotated[float, Range(0.001, 3600)]
    backoff_cap_s: Annotated[float, Range(0.001, DAY_S)]
    timers_per_entry: Annotated[int, Range(1, 1_000_000)]


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """How long a grant lasts without renewal, in log time."""

    default_s: Annotated[float, Range(0.05, DAY_S)]
    min_s: Annotated[float, Range(0.05, DAY_S)]
    max_s: Annotated[float, Range(0.05, DAY_S)]


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """``/work/stream``."""

    window: Annotated[int, Range(1, 65_536)]


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The REST port."""

    request_timeout_s: Annotated[float, Range(0.05, 300)]
    request_timeout_max_s: Annotated[float, Range(0.05, 300)]
    body_bytes_max: Annotated[int, Range(1024, 64 * MIB)]
    batch_body_bytes_max: Annotated[int, Range(1024, 64 * MIB)]
    json_depth_max: Annotated[int, Range(4, 256)]
    waiters_max: Annotated[int, Range(1, 1_000_000)]
    header_timeout_s: Annotated[float, Range(0.05, 300)]
    body_timeout_s: Annotated[float, Range(0.05, 300)]
    idle_timeout_s: Annotated[float, Range(0.05, DAY_S)]
    connections_max: Annotated[int, Range(1, 1_000_000)]
    connections_per_address_max: Annotated[int, Range(1, 1_000_000)]
    connections_reserve: Annotated[int, Range(1, 100_000)]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker runs and how long it holds on."""

    slots: Annotated[int, Range(1, 4096)] | None
    lease_s: Annotated[float, Range(0.05, DAY_S)]
    orphan_s: Annotated[float, Range(0, YEAR_S)]
    drain_s: Annotated[float, Range(0, DAY_S)]
    work_types: tuple[Annotated[str, Shape.ID], ...] | None
    capabilities: Mapping[str, Any]
    executors: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class EventSettings:
    """``/events``."""

    ring_size: Annotated[int, Range(16, 10_000_000)]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a process is told. Built by ``config.load_settings``; never changed afterwards."""

    node: NodeSettings
    cluster: ClusterSettings
    auth: AuthSettings
    raft: RaftSettings
    consensus: ConsensusSettings
    membership: MembershipSettings
    queue: QueueSettings
    lease: LeaseSettings
    stream: StreamSettings
    http: HttpSettings
    worker: WorkerSettings
    events: EventSettings
    origins: Mapping[str, str]
    """Where each value came from, by ``section.key``."""
    warnings: tuple[str, ...]

    def origin(self, key: str) -> str:
        """Where the value of ``section.key`` came from: ``default``, a file, a variable, the command line.

        KeyError for a name that is no setting.
        """
        return self.origins[key]

    def limits(self) -> Limits:
        """The cluster-wide bounds in the form that the log carries."""
        queue, lease = self.queue, self.lease
        same = {f.name for f in fields(Limits)} & {f.name for f in fields(QueueSettings)}
        return Limits(
            **{name: getattr(queue, name) for name in same},
            retention_ms=_ms(queue.retention_s),
            key_grace_ms=_ms(queue.key_grace_s),
            backoff_base_ms=_ms(queue.backoff_base_s),
            backoff_cap_ms=_ms(queue.backoff_cap_s),
            lease_default_ms=_ms(lease.default_s),
            lease_min_ms=_ms(lease.min_s),
            lease_max_ms=_ms(lease.max_s),
        )

    def to_public(self) -> dict[str, dict[str, Any]]:
        """All values as plain JSON, secrets hidden (``***`` where one is set)."""
        return {name: _plain(getattr(self, name)) for name in section_names()}


def section_names() -> list[str]:
    """The sections, in the order of ``config/defaults.yaml``."""
    return [f.name for f in fields(Settings) if f.name not in ("origins", "warnings")]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _plain(value: Any) -> Any:
    match value:
        case Secret():
            return "***"
        case Path():
            return str(value)
        case StrEnum():
            return value.value
        case Mapping():
            return {str(k): _plain(v) for k, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name != "token"}
    return value
