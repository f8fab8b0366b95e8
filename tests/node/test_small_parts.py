"""Rates, log lines, the listener, metrics."""

import logging
import resource
import socket

import pytest

from ringraft.clock import TurnableClock
from ringraft.consensus.base import Role, Status
from ringraft.metrics import Metrics, Snapshot
from ringraft.node.identity import StartRefused
from ringraft.node.listener import address_of, bind
from ringraft.node.logs import FORMAT, OneLine
from ringraft.node.process import connections_allowed
from ringraft.node.rates import WINDOW_S, Rates
from ringraft.state.model import Applied, Done, Epoch, Event, Rejected


def applied(*types, outcomes=()):
    return Applied(tuple(outcomes), tuple(Event(i, 1, kind, 0, {}) for i, kind in enumerate(types)))


def test_rates_cover_the_last_minute():
    clock = TurnableClock()
    rates = Rates(clock)
    for _ in range(120):
        clock.advance_ms(1000)
        rates.applied(applied("WORK_ADDED", "WORK_ADDED", "WORK_COMPLETED", "HOST_ONLINE"))
    assert rates.per_minute()["added_per_minute"] == 120
    assert rates.per_minute()["completed_per_minute"] == 60
    assert len(rates._seconds) <= WINDOW_S
    clock.advance_ms(60_000)
    assert rates.per_minute()["added_per_minute"] == 0


def test_what_a_client_sent_cannot_make_a_log_line_of_its_own():
    record = logging.LogRecord("ringraft.x", logging.INFO, "", 0, "claimed node=%s", ("w1\nFAKE\x1b[31m",), None)
    line = OneLine(FORMAT).format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert "w1\\nFAKE\\x1b[31m" in line


def test_a_traceback_stays_below_its_line():
    try:
        raise ValueError("bad\nnews")
    except ValueError as fault:
        record = logging.LogRecord(
            "ringraft.x", logging.ERROR, "", 0, "failed", (), (type(fault), fault, fault.__traceback__)
        )
    lines = OneLine(FORMAT).format(record).split("\n")
    assert lines[0].endswith("ERROR ringraft.x failed")
    assert all(line.startswith("    ") for line in lines[1:])


def test_port_0_finds_a_free_port_and_says_which():
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert address_of(bound, "127.0.0.1") == f"127.0.0.1:{port}"
        assert address_of(bound, "0.0.0.0") == f"{socket.gethostname()}:{port}"
        with pytest.raises(StartRefused, match=f"port {port} on 127.0.0.1 is in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(host):
    with pytest.raises(StartRefused, match=host):
        bind(host, 0)


@pytest.mark.parametrize(
    ("limits", "wanted", "allowed", "raised_to"),
    [
        ((1024, 20_000), 500, 500, None),
        ((1024, 20_000), 5000, 5000, 5256),
        ((1024, resource.RLIM_INFINITY), 5000, 5000, 5256),
        ((1024, 4096), 5000, 3840, 4096),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 5000, 5000, None),
        ((100, 100), 5000, 1, None),
    ],
)
def test_as_many_connections_as_the_limit_of_open_files_allows(monkeypatch, caplog, limits, wanted, allowed, raised_to):
    raised = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: raised.append(to))
    assert connections_allowed(wanted) == allowed
    assert [soft for soft, _ in raised if soft != limits[0]] == ([raised_to] if raised_to else [])
    assert ("raise the limit of open files" in caplog.text) == (allowed < wanted)


class Source:
    def metrics_snapshot(self):
        status = Status("n1", Role.LEADER, "n1", Epoch(0, 7), 40, 38, 41, 10, 4096, True, 0.0, ())
        work = {"by_status": {"PENDING": 3}, "by_type": {"selfplay": 3}, "oldest_pending_age_s": 1.5}
        return Snapshot(
            status,
            work,
            {"alive": 2},
            {"alive": 1},
            {"not_leader": 4},
            {("H100", "alive"): 8},
            {"loop_lag_seconds": 0.5},
        )


def test_metrics_show_gauges_and_counters():
    metrics = Metrics(Source(), version="1", node_id="n1")
    metrics.observe_request("/work/item/{id}", "GET", 200, 0.004)
    metrics.forwarded()
    metrics.suspected()
    metrics.reappeared(was_dead=False)
    metrics.reappeared(was_dead=True)
    renewals = Done({"leases": [{"ok": True}, {"ok": False, "code": "stale_token"}]})
    outcomes = (Rejected("stale_token", ""), Rejected("not_found", ""), renewals, Done({}))
    metrics.applied(applied("WORK_CLAIMED", "WORK_CLAIMED", "WORK_EXPIRED", "WORK_COMPLETED", outcomes=outcomes))
    text = metrics.render().decode()
    for line in (
        "ringraft_raft_is_leader 1.0",
        "ringraft_raft_term 7.0",
        "ringraft_raft_apply_lag_entries 2.0",
        'ringraft_jobs{state="PENDING"} 3.0',
        "ringraft_queue_oldest_age_seconds 1.5",
        'ringraft_members{state="alive"} 2.0',
        'ringraft_workers{state="alive"} 1.0',
        "ringraft_loop_lag_seconds 0.5",
        'ringraft_gpus{model="H100",state="alive"} 8.0',
        "ringraft_membership_suspicions_total 1.0",
        "ringraft_membership_false_suspicions_total 1.0",
        "ringraft_membership_flaps_total 1.0",
        "ringraft_leases_granted_total 2.0",
        "ringraft_leases_renewed_total 1.0",
        "ringraft_leases_expired_total 1.0",
        "ringraft_leases_fenced_total 2.0",
        'ringraft_jobs_finished_total{outcome="completed"} 1.0',
        "ringraft_forwarded_requests_total 1.0",
        'ringraft_raft_proposals_failed_total{reason="not_leader"} 4.0',
        'ringraft_http_request_seconds_count{code="200",method="GET",route="/work/item/{id}"} 1.0',
    ):
        assert line in text.splitlines()
    assert "_created" not in text
