"""Who keeps the log: the voters and learners, adding one, removing one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ringraft.api import shapes
from ringraft.api.auth import Role
from ringraft.api.call import Call, Reply
from ringraft.api.forward import Passed
from ringraft.api.health import progress_of
from ringraft.api.problems import Problem
from ringraft.api.route import Answer, Consistency, Route
from ringraft.api.shapes import COUNT, FLAG, TEXT, TEXT_OR_NULL, listed, shape, word
from ringraft.consensus.base import Indeterminate, NotLeader, Unavailable
from ringraft.consensus.base import Role as LogRole
from ringraft.node.replica import WaitersFull
from ringraft.schema import NODE_ID, Field, Number, Object, String
from ringraft.state.commands import AddLearner, Op, RemoveVoter
from ringraft.state.model import Command, Done
from ringraft.state.records import VoterRecord

log = logging.getLogger(__name__)

WAIT_S_MAX = 60
AGAIN_S = 0.05
"""Between two tries while another change of the voters is under way."""
ADDRESS_CHARS_MAX = 261
"""The longest host name, a colon and a port."""
PORT_PATTERN = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
ADDRESS_PATTERN = rf"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*):{PORT_PATTERN}$"
ADDRESS_FORM = "host:port, with a port from 1 to 65535"
ID = {"id": Field(NODE_ID, "A node's id.")}
WAIT = {"wait_s": Field(Number(0, WAIT_S_MAX), "Answer when it votes, or after this long.", refers=True)}


async def members(call: Call) -> Reply:
    """Every node that keeps the log, as this node's log has it."""
    table = call.node.replica.voter_table
    rows = sorted(table.voters.values(), key=lambda record: record.node_id)
    return Reply(
        {
            "items": [member(call, record) for record in rows],
            "next_cursor": None,
            "cluster_id": call.node.identity.cluster_id,
            "formation_id": table.formation_id or None,
            "changed_index": table.changed_index,
        }
    )


def member(call: Call, record: VoterRecord) -> dict[str, Any]:
    """One node that keeps the log."""
    reached, last_contact_s, is_connected = progress_of(call, record.node_id)
    return {
        "node_id": record.node_id,
        "address": record.address,
        "role": "voter" if record.is_voter else "learner",
        "data_id": record.data_id or None,
        "incarnation": record.incarnation,
        "command_version": record.command_version,
        "behind": max(0, call.service.status().last_index - reached),
        "last_contact_s": last_contact_s,
        "connected": is_connected,
    }


async def add(call: Call) -> Reply:
    """Let a node keep the log: it is sent it as a learner, and votes once it has caught up."""
    node_id, wait_s = call.params["id"], call.wait_s
    query = {"wait_s": wait_s} if wait_s else {}
    passed = Passed("POST", f"/raft/members/{node_id}", query, call.body, wait_s)
    # The wait is for the admission; the entry itself is due without it.
    call.wait_s = 0.0
    outcome = await _change(call, lambda basis: AddLearner(node_id, call.body["address"], basis), passed)
    if isinstance(outcome, Reply):
        return outcome
    log.info("a node was added action=member_add node=%s by=%s", node_id, call.principal.name)
    await _wait_admitted(call, node_id, wait_s)
    record = _record(call, node_id)
    if record is None:
        raise Problem("conflict", f"{node_id} was removed again meanwhile")
    return Reply(member(call, record), 200 if record.is_voter else 202)


async def _change(call: Call, make: Callable[[int], Op], passed: Passed) -> Done | Reply:
    """Have the log decide a change on its voters as they are now, again while another one goes first."""
    while True:
        basis = call.node.replica.voter_table.changed_index
        try:
            return await call.service.outcome(call, Command(make(basis)), passed)
        except Problem as problem:
            if not problem.members.pop("try_again", False) or call.left_s() <= AGAIN_S:
                raise
        await asyncio.sleep(AGAIN_S)


async def _wait_admitted(call: Call, node_id: str, wait_s: float) -> None:
    """Wait until the node votes, is removed, or the time is over."""
    replica, loop = call.node.replica, asyncio.get_running_loop()
    until_s = loop.time() + min(wait_s, call.left_s())
    while (record := _record(call, node_id)) is not None and not record.is_voter and loop.time() < until_s:
        try:
            await replica.wait_index(replica.machine.index + 1, timeout_s=until_s - loop.time())
        except WaitersFull as error:
            raise Problem("rate_limited", str(error)) from None


def _record(call: Call, node_id: str) -> VoterRecord | None:
    found: VoterRecord | None = call.node.replica.machine.tables.voters.get(node_id.lower())
    return found


async def remove(call: Call) -> Reply:
    """Let a node keep the log no longer. A leader hands over first."""
    service, node_id = call.service, call.params["id"]
    passed = Passed("DELETE", f"/raft/members/{node_id}", {}, None)
    status = service.status()
    voters = [one for one in call.node.replica.voter_table.voters.values() if one.is_voter]
    if node_id.lower() == service.node_id.lower() and status.role is LogRole.LEADER and len(voters) > 1:
        try:
            following = await call.node.consensus.transfer(None, deadline_s=max(0.01, call.left_s()))
        except NotLeader:
            following = None
        except (Unavailable, Indeterminate) as error:
            raise Problem("conflict", f"{node_id} leads and could not hand over: {error}") from None
        log.info("handed over before leaving action=member_hand_over node=%s to=%s", node_id, following)
    _refuse_standstill(call, node_id)
    outcome = await _change(call, lambda basis: RemoveVoter(node_id, basis), passed)
    if isinstance(outcome, Reply):
        return outcome
    log.info("a node was removed action=member_remove node=%s by=%s", node_id, call.principal.name)
    return Reply({"status": "removed", "node_id": node_id, "index": outcome.value["index"]})


def _refuse_standstill(call: Call, node_id: str) -> None:
    """Those who are left must be able to decide, or nothing could ever be changed again. Asked at the leader."""
    voters = {one.node_id.lower(): one.node_id for one in call.node.replica.voter_table.voters.values() if one.is_voter}
    if call.service.status().role is not LogRole.LEADER or voters.pop(node_id.lower(), None) is None or not voters:
        return
    silent = sorted(left for left in voters.values() if not progress_of(call, left)[2])
    needed = len(voters) // 2 + 1
    if len(voters) - len(silent) < needed:
        raise Problem(
            "conflict",
            f"without {node_id} the voters are {', '.join(sorted(voters.values()))}: {needed} must answer, and "
            f"{', '.join(silent)} cannot be reached now; start or remove those first",
        )


def routes() -> list[Route]:
    """The rows of those who keep the log."""
    row = shape(
        {
            "node_id": TEXT,
            "address": TEXT,
            "role": word("voter", "learner"),
            "data_id": TEXT_OR_NULL,
            "incarnation": COUNT,
            "command_version": COUNT,
            "behind": COUNT,
            "last_contact_s": shapes.NUMBER_OR_NULL,
            "connected": FLAG,
        }
    )
    example = {
        "node_id": "n1",
        "address": "127.0.0.1:8770",
        "role": "voter",
        "data_id": "5f0c7a9be4d1428fa3c6d2e1b0897a6c",
        "incarnation": 3,
        "command_version": 2,
        "behind": 0,
        "last_contact_s": 0.0,
        "connected": True,
    }
    listing = shape(
        {
            "items": listed(row),
            "next_cursor": TEXT_OR_NULL,
            "cluster_id": TEXT_OR_NULL,
            "formation_id": TEXT_OR_NULL,
            "changed_index": COUNT,
        }
    )
    listing_example = {
        "items": [example],
        "next_cursor": None,
        "cluster_id": "c-1f2e3d4c5b6a7980",
        "formation_id": "9f86d081884c7d65",
        "changed_index": 3,
    }
    body = Object(
        {"address": Field(String(ADDRESS_CHARS_MAX, 3, ADDRESS_PATTERN, ADDRESS_FORM), "Where it is reached.",
                          required=True)}
    )  # fmt: skip
    return [
        Route("GET", "/raft/members", members, (Role.READER,), "Who keeps the log", "raft",
              answers=[Answer(200, "Sorted by id.", listing, listing_example)], consistency=Consistency.STALE),
        Route("POST", "/raft/members/{id}", add, (Role.ADMIN,), "Add a voter", "raft",
              answers=[Answer(200, "It votes.", row, example),
                       Answer(202, "It is sent the log and votes once it has caught up.", row,
                              {**example, "role": "learner", "data_id": None, "behind": 45})],
              problems=("conflict", "rate_limited"), path_fields=ID, query=WAIT, body=body,
              body_example={"address": "127.0.0.1:8773"}, writes=True,
              doc="Start the node with `--voter --join`, in either order. A repeat answers how far it is."),
        Route("DELETE", "/raft/members/{id}", remove, (Role.ADMIN,), "Remove a voter or learner", "raft",
              answers=[Answer(200, "It keeps the log no longer, and ends.",
                              shape({"status": TEXT, "node_id": TEXT, "index": COUNT}),
                              {"status": "removed", "node_id": "n3", "index": 46})],
              problems=("conflict", "not_found"), path_fields=ID, writes=True,
              doc="A leader hands over first. The last voter stays, and one without whom too few would answer."),
    ]  # fmt: skip
