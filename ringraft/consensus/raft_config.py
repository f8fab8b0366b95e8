"""Times and bounds of the log."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """Times and bounds of the log; the settings section ``raft``."""

    heartbeat_ms: int = 75
    election_min_ms: int = 300
    election_max_ms: int = 500
    snapshot_entries: int = 20_000
    entry_bytes_max: int = 8 * MIB
    entry_commands_max: int = 4096
    segment_bytes: int = 64 * MIB
    formation_wait_ms: int = 3000
    """How long a majority of fresh voters waits for the others before it forms a cluster without them."""

    def __post_init__(self) -> None:
        if self.election_min_ms <= 3 * self.heartbeat_ms:
            raise ValueError(
                f"raft.election_min_ms ({self.election_min_ms}) must exceed 3 × raft.heartbeat_ms ({self.heartbeat_ms})"
            )
        if self.election_max_ms <= self.election_min_ms:
            raise ValueError(
                f"raft.election_max_ms ({self.election_max_ms}) must exceed "
                f"raft.election_min_ms ({self.election_min_ms})"
            )
