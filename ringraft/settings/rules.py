"""What must hold between settings, each rule a sentence for the person who broke it."""

from __future__ import annotations

from collections.abc import Iterator

from ringraft.settings.address import is_loopback, split_address
from ringraft.settings.tree import ConsensusMode, MembershipMode, Settings


def broken_rules(settings: Settings) -> Iterator[str]:
    """What does not fit together, a sentence each, naming the values and what to do."""
    raft, member, lease, http = settings.raft, settings.membership, settings.lease, settings.http
    if raft.election_min_ms <= 3 * raft.heartbeat_ms:
        yield (
            f"raft.election_min_ms ({raft.election_min_ms}) must exceed 3 × raft.heartbeat_ms ({raft.heartbeat_ms}), "
            f"so that two lost heartbeats start no election: at least {3 * raft.heartbeat_ms + 1}"
        )
    if raft.election_max_ms <= raft.election_min_ms:
        yield (
            f"raft.election_max_ms ({raft.election_max_ms}) must exceed raft.election_min_ms ({raft.election_min_ms}), "
            "so that voters do not stand for election all at once"
        )
    if lease.default_s * 1000 <= 2 * raft.election_max_ms:
        yield (
            f"lease.default_s ({lease.default_s:g}) must exceed twice raft.election_max_ms ({raft.election_max_ms}): "
            "a lease has to outlive a change of leader"
        )
    if not lease.min_s <= lease.default_s <= lease.max_s:
        yield (
            f"lease.default_s ({lease.default_s:g}) must lie between lease.min_s ({lease.min_s:g}) "
            f"and lease.max_s ({lease.max_s:g})"
        )
    if not lease.min_s <= settings.worker.lease_s <= lease.max_s:
        yield (
            f"worker.lease_s ({settings.worker.lease_s:g}) must lie between lease.min_s ({lease.min_s:g}) "
            f"and lease.max_s ({lease.max_s:g})"
        )
    if member.peer_timeout_s <= 2 * member.heartbeat_s:
        yield (
            f"membership.peer_timeout_s ({member.peer_timeout_s:g}) must exceed 2 × membership.heartbeat_s "
            f"({member.heartbeat_s:g}), so that one lost heartbeat kills nobody"
        )
    if http.request_timeout_s > http.request_timeout_max_s:
        yield (
            f"http.request_timeout_s ({http.request_timeout_s:g}) must not exceed http.request_timeout_max_s "
            f"({http.request_timeout_max_s:g})"
        )
    if http.batch_body_bytes_max > raft.entry_bytes_max:
        yield (
            f"http.batch_body_bytes_max ({http.batch_body_bytes_max}) must not exceed raft.entry_bytes_max "
            f"({raft.entry_bytes_max}): a batch travels in one log entry"
        )
    if http.body_bytes_max > http.batch_body_bytes_max:
        yield (
            f"http.body_bytes_max ({http.body_bytes_max}) must not exceed http.batch_body_bytes_max "
            f"({http.batch_body_bytes_max})"
        )
    if settings.queue.backoff_base_s > settings.queue.backoff_cap_s:
        yield (
            f"queue.backoff_base_s ({settings.queue.backoff_base_s:g}) must not exceed queue.backoff_cap_s "
            f"({settings.queue.backoff_cap_s:g})"
        )
    yield from _broken_modes(settings)
    yield from _broken_addresses(settings)


def _broken_modes(settings: Settings) -> Iterator[str]:
    if settings.consensus.mode is not ConsensusMode.RAFT:
        yield f"consensus.mode {settings.consensus.mode} is not available in this version; use raft"
    if settings.membership.mode is not MembershipMode.HTTP:
        yield f"membership.mode {settings.membership.mode} is not available in this version; use http"


def _broken_addresses(settings: Settings) -> Iterator[str]:
    node, cluster = settings.node, settings.cluster
    by_address: dict[str, str] = {}
    for voter, address in cluster.voters.items():
        if address in by_address:
            yield f"cluster.voters: {by_address[address]} and {voter} share the address {address}; each needs its own"
        by_address[address] = voter
        if split_address(address)[1] == 0 and len(cluster.voters) > 1:
            yield f"cluster.voters: {voter} has port 0; others must know the port of a voter"
    if node.advertise is not None and split_address(node.advertise)[1] == 0:
        yield f"node.advertise {node.advertise}: port 0 cannot be reached; name the port"
    if not is_loopback(node.bind) and settings.auth.secret is None:
        yield (
            f"node.bind {node.bind} can be reached from other machines, and there is no cluster secret; "
            "set auth.secret_file, or bind to 127.0.0.1"
        )
    if node.is_worker and not node.is_voter and not cluster.join:
        yield f"node {node.node_id} is a worker and knows nobody to ask; name a voter with --join host:port"
