"""What ``/metrics`` shows: Prometheus text from a registry of its own.

Gauges are read when they are asked for, from the one place that knows; only what happens between
two questions is counted. Labels come from small closed sets.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from ringraft.consensus.base import Role, Status
from ringraft.state.model import Applied, Done, Event, Rejected
from ringraft.state.records import Item

CONTENT_TYPE = CONTENT_TYPE_LATEST

# One extra line for each counter and label set, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

JOB_BUCKETS_S = (0.01, 0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)

LOG_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

TYPE = attrgetter("type")
FINISHED = {"WORK_COMPLETED": "completed", "WORK_FAILED": "failed", "WORK_CANCELLED": "cancelled"}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the gauges show, read at one instant. None where this node has no such part."""

    status: Status | None
    work: Mapping[str, Any] | None
    """``work_status`` of the state machine."""
    members: Mapping[str, int]
    """Nodes by state."""
    workers: Mapping[str, int]
    """Nodes that run work, by state."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Proposals that ended without an outcome, by reason."""
    gpus: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Known GPUs by (model, state of their node)."""
    gauges: Mapping[str, float] = field(default_factory=dict)
    """Further numbers by name, without the ``ringraft_`` in front."""


class Source(Protocol):
    """Who is asked at each scrape."""

    def metrics_snapshot(self) -> Snapshot: ...


class Metrics:
    """Counters, and a collector that asks ``source`` at each scrape."""

    def __init__(self, source: Source, *, version: str, node_id: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Gauges(source, version=version, node_id=node_id))
        self._leases = {
            name: self._counter(f"ringraft_leases_{name}", text)
            for name, text in {
                "granted": "Leases granted by claims.",
                "renewed": "Leases renewed.",
                "expired": "Leases that ended without an answer.",
                "fenced": "Commands refused because their token was not the newest.",
            }.items()
        }
        finished = self._counter("ringraft_jobs_finished", "Items that became final.", "outcome")
        elections = self._counter("ringraft_raft_leader_changes", "Epochs begun.")
        self._by_event = {
            "WORK_CLAIMED": self._leases["granted"],
            "WORK_EXPIRED": self._leases["expired"],
            "LEADER_ELECTED": elections,
            **{kind: finished.labels(outcome) for kind, outcome in FINISHED.items()},
        }
        self._verdicts = {
            name: self._counter(f"ringraft_membership_{name}", text)
            for name, text in {
                "suspicions": "Nodes that became suspect.",
                "false_suspicions": "Suspects that turned out to be there.",
                "flaps": "Nodes called dead that came back without a restart.",
            }.items()
        }
        self._find: Callable[[str], Item | None] | None = None
        self._wait = self._job_times("wait", "From adding an item to its first grant.")
        self._run = self._job_times("run", "From start to completion of an attempt.")
        self._forwarded = self._counter("ringraft_forwarded_requests", "Requests passed on to the leader.")
        self._closed = self._counter("ringraft_http_connections_closed", "Connections that this node ended.", "reason")
        self._requests = Histogram(
            "ringraft_http_request_seconds",
            "Time to answer a request, waiting included.",
            ["route", "method", "code"],
            buckets=REQUEST_BUCKETS_S,
            registry=self._registry,
        )

        self._syncs = self._log_times("fsync", "Writing and syncing the journal, one group at a time.")
        self._commits = self._log_times("commit", "From the leader's append of an entry to the majority's.")
        self._applies = self._log_times("apply", "Applying one entry.")

    def _log_times(self, name: str, text: str) -> Histogram:
        return Histogram(f"ringraft_raft_{name}_seconds", text, buckets=LOG_BUCKETS_S, registry=self._registry)

    def synced(self, seconds: float) -> None:
        """One write and sync of the journal."""
        self._syncs.observe(seconds)

    def committed(self, seconds: float) -> None:
        """One entry, from its append at the leader to the majority's."""
        self._commits.observe(seconds)

    def took_apply(self, seconds: float) -> None:
        """Applying one entry."""
        self._applies.observe(seconds)

    def render(self) -> bytes:
        """The text of ``/metrics``; its type is ``CONTENT_TYPE``."""
        return generate_latest(self._registry)

    def observe_request(self, route: str, method: str, code: int, seconds: float) -> None:
        """One answered request; ``route`` is the route's pattern, never the path."""
        self._requests.labels(route, method, str(code)).observe(seconds)

    def forwarded(self) -> None:
        """One request was passed on to the leader."""
        self._forwarded.inc()

    def connection_closed(self, reason: str) -> None:
        """One connection was ended here: ``full`` or ``slow_head``."""
        self._closed.labels(reason).inc()

    def suspected(self) -> None:
        """One node became suspect."""
        self._verdicts["suspicions"].inc()

    def reappeared(self, *, was_dead: bool) -> None:
        """One node that was suspect or dead is there, and is not a new start of it."""
        self._verdicts["flaps" if was_dead else "false_suspicions"].inc()

    def follow_items(self, find: Callable[[str], Item | None]) -> None:
        """Say where items are found, so that waits and runs are timed."""
        self._find = find

    def applied(self, applied: Applied) -> None:
        """Count what one entry did. Called in apply: neither blocks nor raises."""
        for outcome in applied.outcomes:
            if isinstance(outcome, Rejected):
                if outcome.code == "stale_token":
                    self._leases["fenced"].inc()
            elif isinstance(outcome, Done) and "leases" in outcome.value:
                self._count_renewals(outcome.value["leases"])
        for kind, count in collections.Counter(map(TYPE, applied.events)).items():
            counter = self._by_event.get(kind)
            if counter is not None:
                counter.inc(count)
        for event in applied.events:
            if event.type == "WORK_CLAIMED":
                self._time_wait(event)
            elif event.type == "WORK_COMPLETED":
                self._time_run(event)

    def _count_renewals(self, leases: Iterable[Mapping[str, Any]]) -> None:
        for lease in leases:
            if lease["ok"]:
                self._leases["renewed"].inc()
            elif lease.get("code") == "stale_token":
                self._leases["fenced"].inc()

    def _time_wait(self, event: Event) -> None:
        item = self._find(event.data["work_id"]) if self._find is not None else None
        if item is not None and not item.history:
            self._wait.observe(max(0, event.at_wall_ms - item.spec.created_wall_ms) / 1000)

    def _time_run(self, event: Event) -> None:
        item = self._find(event.data["work_id"]) if self._find is not None else None
        if item is not None and item.grant is not None and item.grant.started_wall_ms is not None:
            self._run.observe(max(0, event.at_wall_ms - item.grant.started_wall_ms) / 1000)

    def _job_times(self, name: str, text: str) -> Histogram:
        return Histogram(f"ringraft_job_{name}_seconds", text, buckets=JOB_BUCKETS_S, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)


class _Gauges(Collector):
    """Reads the source anew at each scrape."""

    def __init__(self, source: Source, *, version: str, node_id: str) -> None:
        self._source = source
        self._version = version
        self._node_id = node_id

    def collect(self) -> Iterator[Metric]:
        snapshot = self._source.metrics_snapshot()
        build = GaugeMetricFamily("ringraft_build_info", "This build.", labels=["version", "node_id"])
        build.add_metric([self._version, self._node_id], 1)
        yield build
        if snapshot.status is not None:
            yield from _raft(snapshot.status)
        if snapshot.work is not None:
            yield from _work(snapshot.work)
        yield from _nodes(snapshot)
        failed = CounterMetricFamily(
            "ringraft_raft_proposals_failed", "Proposals that ended without an outcome.", labels=["reason"]
        )
        for reason, count in sorted(snapshot.failures.items()):
            failed.add_metric([reason], count)
        yield failed
        for name, value in snapshot.gauges.items():
            yield GaugeMetricFamily(f"ringraft_{name}", name.replace("_", " ") + ".", value=value)


def _nodes(snapshot: Snapshot) -> Iterator[Metric]:
    for name, text, counts in (
        ("members", "Known nodes by state.", snapshot.members),
        ("workers", "Known nodes that run work, by state.", snapshot.workers),
    ):
        family = GaugeMetricFamily(f"ringraft_{name}", text, labels=["state"])
        for state, count in sorted(counts.items()):
            family.add_metric([state], count)
        yield family
    gpus = GaugeMetricFamily("ringraft_gpus", "Known GPUs, by the state of their node.", labels=["model", "state"])
    for (model, state), count in sorted(snapshot.gpus.items()):
        gpus.add_metric([model, state], count)
    yield gpus


def _raft(status: Status) -> Iterator[Metric]:
    values = {
        "is_leader": (status.role is Role.LEADER, "1 where this node leads."),
        "has_leader": (status.acting_leader_id is not None, "1 where a leader of a majority is heard."),
        "has_quorum": (status.has_quorum, "1 where a majority is heard."),
        "term": (status.epoch.number, "The term."),
        "commit_index": (status.commit_index, "The newest committed entry."),
        "applied_index": (status.applied_index, "The newest applied entry."),
        "apply_lag_entries": (status.commit_index - status.applied_index, "Committed entries not yet applied."),
        "snapshot_index": (status.snapshot_index, "The newest snapshot."),
        "log_bytes": (status.log_bytes, "Size of the log on disk."),
    }
    for name, (value, text) in values.items():
        yield GaugeMetricFamily(f"ringraft_raft_{name}", text, value=float(value))


def _work(work: Mapping[str, Any]) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("ringraft_jobs", "Items held, by state.", labels=["state"])
    for state, count in sorted(work["by_status"].items()):
        jobs.add_metric([state], count)
    yield jobs
    types = GaugeMetricFamily("ringraft_jobs_by_type", "Items held, by type.", labels=["work_type"])
    for work_type, count in sorted(work["by_type"].items()):
        types.add_metric([work_type], count)
    yield types
    yield GaugeMetricFamily(
        "ringraft_queue_oldest_age_seconds",
        "How long the oldest pending item waits.",
        value=float(work["oldest_pending_age_s"] or 0.0),
    )
