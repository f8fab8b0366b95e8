"""Who leads, and asking for a change."""

from __future__ import annotations

import logging

from ringraft.api import shapes
from ringraft.api.auth import Role
from ringraft.api.call import Call, Reply
from ringraft.api.forward import NoAnswer, NotSent, Passed
from ringraft.api.health import voters
from ringraft.api.problems import Problem
from ringraft.api.route import Answer, Consistency, Route
from ringraft.api.service import no_leader
from ringraft.api.shapes import AT, COUNT, FLAG, NUMBER, TEXT, TEXT_OR_NULL, listed, shape
from ringraft.consensus.base import Indeterminate, NotLeader, Unavailable
from ringraft.consensus.base import Role as LogRole
from ringraft.schema import Choice, Field, Object, String

log = logging.getLogger(__name__)

REASON_CHARS_MAX = 256
REASON_DEFAULT = "external_request"
LEADER = "leader"
NAMES = (LEADER,)
"""Locks come later; the leader's lease is a view of who leads."""


async def election_status(call: Call) -> Reply:
    """Who leads, who could, and how it came to that."""
    status = call.service.status()
    rows = voters(call)
    candidates = [row["node_id"] for row in sorted(rows, key=lambda row: (-(row["priority"] or 0), row["node_id"]))]
    body = {
        "mode": str(call.node.settings.consensus.mode),
        "leader_id": status.acting_leader_id,
        "local_leader_id": status.leader_id,
        "term": status.epoch.number,
        "candidates": candidates,
        "voters": [
            {
                "node_id": row["node_id"],
                "priority": row["priority"],
                "last_contact_s": row["last_contact_s"],
                "up_to_date": row["behind"] == 0,
            }
            for row in rows
        ],
        "quorum_size": len(rows) // 2 + 1,
        "in_progress": status.role is LogRole.CANDIDATE or status.acting_leader_id is None,
        "last_elections": call.node.last_elections(),
    }
    return Reply(body)


async def election_start(call: Call) -> Reply:
    """Another leader, please: a transfer, or a campaign when nobody leads."""
    service = call.service
    reason = call.body.get("reason") or REASON_DEFAULT
    status = service.status()
    leader = status.leader_id
    if leader is None:
        without = no_leader(status)
        if without.code == "no_quorum":
            raise Problem("conflict", f"an election cannot succeed now: {without.detail}")
        call.node.consensus.campaign(reason)
        log.info("election asked for action=election_start kind=campaign by=%s", call.principal.name)
        return Reply({"started": True, "reason": reason}, 202)
    if leader == service.node_id:
        try:
            following = await call.node.consensus.transfer(None, deadline_s=call.left_s())
        except NotLeader:
            raise Problem("conflict", "leadership changed meanwhile") from None
        except (Unavailable, Indeterminate) as error:
            raise Problem("conflict", f"leadership stays at {leader}: {error}") from None
        log.info("election asked for action=election_start kind=transfer to=%s by=%s", following, call.principal.name)
        return Reply({"started": True, "reason": reason}, 202)
    url = service.leader_url(leader)
    if call.is_hop or url is None:
        raise Problem("conflict", f"{leader} leads, and leadership changed meanwhile")
    try:
        return await service.forwarder.to_node(call, leader, url, Passed("POST", "/election/start", {}, call.body))
    except (NotSent, NoAnswer):
        raise Problem("conflict", f"the leader {leader} did not answer; an election starts by itself") from None


async def lease_status(call: Call) -> Reply:
    """The leader's lease: in this mode a view of the term."""
    status = call.service.status()
    election_s = call.node.settings.raft.election_max_ms / 1000
    holder = status.acting_leader_id
    left_s = 0.0 if holder is None else max(0.0, election_s - (status.leader_contact_s or 0.0))
    return Reply(
        {
            "name": LEADER,
            "holder": holder,
            "epoch": status.epoch.number,
            "expires_in_s": round(left_s, 3),
        }
    )


def routes() -> list[Route]:
    """The rows of elections."""
    voter = shape(
        {
            "node_id": TEXT,
            "priority": shapes.COUNT_OR_NULL,
            "last_contact_s": shapes.NUMBER_OR_NULL,
            "up_to_date": FLAG,
        }
    )
    past = shape(
        {"at": shapes.TIME, "reason": TEXT_OR_NULL, "duration_s": shapes.NUMBER_OR_NULL, "winner": TEXT_OR_NULL}
    )
    status = shape(
        {
            "mode": TEXT,
            "leader_id": TEXT_OR_NULL,
            "local_leader_id": TEXT_OR_NULL,
            "term": COUNT,
            "candidates": listed(TEXT),
            "voters": listed(voter),
            "quorum_size": COUNT,
            "in_progress": FLAG,
            "last_elections": listed(past),
        }
    )
    example = {
        "mode": "raft",
        "leader_id": "n1",
        "local_leader_id": "n1",
        "term": 3,
        "candidates": ["n1", "n2", "n3"],
        "voters": [{"node_id": "n1", "priority": 0, "last_contact_s": 0.0, "up_to_date": True}],
        "quorum_size": 2,
        "in_progress": False,
        "last_elections": [{"at": AT, "reason": "no_leader", "duration_s": 0.412, "winner": "n1"}],
    }
    lease = shape({"name": TEXT, "holder": TEXT_OR_NULL, "epoch": COUNT, "expires_in_s": NUMBER})
    return [
        Route("GET", "/election/status", election_status, (Role.READER,), "Who leads and who could", "election",
              answers=[Answer(200, "The view.", status, example)], consistency=Consistency.LINEARIZABLE),
        Route("POST", "/election/start", election_start, (Role.ADMIN,), "Ask for another leader", "election",
              answers=[Answer(202, "It is under way.", shape({"started": FLAG, "reason": TEXT}),
                              {"started": True, "reason": REASON_DEFAULT})],
              problems=("conflict",), body=Object({"reason": Field(String(REASON_CHARS_MAX), "For the log.")}),
              body_required=False, body_example={"reason": "maintenance"}, writes=True),
        Route("GET", "/lease/status", lease_status, (Role.READER,), "The leader's lease", "election",
              answers=[Answer(200, "The view.", lease,
                              {"name": "leader", "holder": "n1", "epoch": 3, "expires_in_s": 0.5})],
              query={"name": Field(Choice(NAMES), "`leader` when left out.")}, consistency=Consistency.LINEARIZABLE),
    ]  # fmt: skip
