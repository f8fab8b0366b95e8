"""Names that the seed's users have in their environment, and the settings they mean."""

from __future__ import annotations

ALIASES: tuple[tuple[str, str], ...] = (
    ("WORK_POLL_INTERVAL", "node.work_poll_interval_s"),
    ("HEARTBEAT_INTERVAL", "membership.heartbeat_s"),
    ("PEER_TIMEOUT", "membership.peer_timeout_s"),
    ("RINGRIFT_NODE_ID", "node.node_id"),
    ("RINGRIFT_P2P_PORT", "node.port"),
    ("RINGRIFT_P2P_STATE_DIR", "node.data_dir"),
    ("RINGRIFT_P2P_HEARTBEAT_INTERVAL", "membership.heartbeat_s"),
    ("RINGRIFT_P2P_PEER_TIMEOUT", "membership.peer_timeout_s"),
    ("RINGRIFT_P2P_STARTUP_GRACE_PERIOD", "membership.startup_grace_s"),
    ("RINGRIFT_CLUSTER_AUTH_TOKEN", "auth.secret"),
    ("RINGRIFT_CLUSTER_AUTH_TOKEN_FILE", "auth.secret_file"),
    ("RINGRIFT_TRACE_GOSSIP", "membership.trace"),
    ("RINGRIFT_CONSENSUS_MODE", "consensus.mode"),
    ("RINGRIFT_MEMBERSHIP_MODE", "membership.mode"),
    ("P2P_NODE_ID", "node.node_id"),
    ("P2P_PORT", "node.port"),
    ("P2P_DATA_DIR", "node.data_dir"),
    ("P2P_LOG_LEVEL", "node.log_level"),
)
"""(variable, key). Of two for one key the later wins."""

SWITCHES: tuple[tuple[str, str, str], ...] = (
    ("RINGRIFT_RAFT_ENABLED", "consensus.mode", "raft"),
    ("RINGRIFT_SWIM_ENABLED", "membership.mode", "swim"),
)
"""(variable, key, the value it means when true). When false it says nothing; the mode's own variable beats it."""

WITHOUT_EFFECT = ("GOSSIP_INTERVAL",)
"""Known, and without a meaning in this version."""
