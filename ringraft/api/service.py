"""What every request shares: the node, the verbs, who may ask, and how a request finds the leader."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Set
from typing import TYPE_CHECKING, Protocol

from ringraft.api.auth import Credentials, HostRule, host_names
from ringraft.api.call import Call, Reply
from ringraft.api.forward import Forwarder, NoAnswer, NotSent, Passed
from ringraft.api.hop import HopSigner
from ringraft.api.leaders import LeaderWait
from ringraft.api.problems import Problem, Where, of_rejected
from ringraft.api.route import Consistency
from ringraft.api.served import ServedNode
from ringraft.api.submission import Submission, Verb
from ringraft.consensus.base import Indeterminate, NotLeader, Role, Status, Unavailable
from ringraft.node.replica import WaitersFull
from ringraft.state.model import Command, Done, Limits, Outcome, Rejected

if TYPE_CHECKING:
    from ringraft.api.stream import StreamCall

WORTH_WAITING = frozenset({"no_leader", "no_quorum", "starting"})
"""Refusals that a new leader ends; the others stay until somebody does something."""


class Upstream(Protocol):
    """Where calls of streams go that another node must decide (``upstream.Upstream``)."""

    def take(self, call: StreamCall) -> None: ...

    def forget(self, calls: Set[StreamCall]) -> None: ...

    async def close(self) -> None: ...


class Service:
    """One per application."""

    def __init__(self, node: ServedNode, credentials: Credentials | None = None) -> None:
        self.node = node
        settings = node.settings
        secret = settings.auth.secret.reveal() if settings.auth.secret is not None else None
        self.node_id: str = settings.node.node_id
        self.started_s = time.monotonic()
        self.credentials = credentials or Credentials(secret)
        self.signer = HopSigner(secret)
        self.forwarder = Forwarder(node, self.signer)
        self.submission = Submission(self._limits())
        self.leaders = LeaderWait(lambda: self.status().leader_id is not None)
        own = [settings.node.bind, settings.node.advertise or settings.node.bind]
        self.host_rule = HostRule(host_names([*own, *settings.cluster.voters.values(), *settings.cluster.join]))
        self.upstream: Upstream
        self.event_readers = 0
        self.is_backing_up = False
        """Somebody reads a backup: it keeps what changes meanwhile in memory, so one at a time."""
        self.stopping = asyncio.Event()
        """Set when the application shuts down: streams and long polls end."""

    def _limits(self) -> Limits:
        """What the log says bounds the queue; this node's own settings while the log says nothing."""
        machine = self.node.replica.machine if self.node.replica is not None else None
        limits: Limits = (
            machine.limits if machine is not None and machine.is_configured else self.node.settings.limits()
        )
        return limits

    @property
    def is_member(self) -> bool:
        """This node keeps a copy of the log; otherwise it asks the cluster."""
        return self.node.replica is not None

    def status(self) -> Status:
        """The consensus as it is now."""
        status: Status = self.node.replica.status()
        return status

    def where(self) -> Where:
        """Who leads, as problem documents say it."""
        leader = self.node.leader()
        if leader.node_id is None:
            return Where(None, leader.term)
        return Where({"id": leader.node_id, "url": leader.url or ""}, leader.term)

    def leader_url(self, leader_id: str) -> str | None:
        """Where ``leader_id``'s API is; None when the configuration does not say."""
        url: str | None = self.node.peer_url(leader_id)
        return url

    async def decide(self, call: Call, verb: Verb, command: Command) -> Reply:
        """Have the log decide ``command``, here or at the leader, and answer.

        Raises Problem: a refusal, 503 when nobody could take it in time, 504 when it may have been done.
        """
        passed = Passed("POST", f"/work/{verb.name}", {}, call.body, call.wait_s)
        outcome = await self.outcome(call, command, passed, verb)
        if isinstance(outcome, Reply):
            return outcome
        return Reply(verb.answer(outcome.value, self.node.replica.machine, call.body))

    async def outcome(self, call: Call, command: Command, passed: Passed, verb: Verb | None = None) -> Done | Reply:
        """The outcome of a command decided here, or the leader's answer to ``passed``.

        ``verb`` makes the command's key once the call has one; None where no key is needed.
        """
        is_unknown = False
        while True:
            leader, code = None, "no_leader"
            try:
                outcome = await self._submit(call, command)
            except NotLeader as error:
                leader = error.leader_id
            except Unavailable as error:
                if error.code not in WORTH_WAITING:
                    raise self._too_late(True, error.code) if is_unknown else Problem(error.code, str(error)) from None
                code = error.code
            except Indeterminate as error:
                raise Problem("commit_unknown", f"{error}; repeat with the same key") from None
            except WaitersFull as error:
                raise Problem("rate_limited", str(error), headers={"Retry-After": "1"}) from None
            else:
                if isinstance(outcome, Done):
                    return outcome
                if outcome.code != "stale_epoch":
                    raise of_rejected(outcome)
            if call.is_hop:
                raise Problem(code, f"{self.node_id} does not lead")
            if leader is not None and leader != self.node_id:
                try:
                    return await self._ask_leader(call, leader, passed)
                except NoAnswer:
                    is_unknown = True
                    if verb is not None:
                        # It may have been done with the key that passing it on gave it: the same one from now on.
                        command = call.command(verb, command.op)
                except NotSent:
                    pass
            if call.left_s() <= 0:
                raise self._too_late(is_unknown, code)
            await self.leaders.chance(call.left_s())

    async def fresh(self, call: Call, consistency: Consistency, passed: Passed) -> Reply | None:
        """Make this node's copy fresh enough to answer from; or the leader's answer instead."""
        if consistency is Consistency.STALE:
            call.is_stale = True
            return None
        while True:
            leader: str | None = None
            code = "no_leader"
            try:
                if consistency is Consistency.LINEARIZABLE:
                    await self.node.replica.read_barrier(deadline_s=max(0.01, call.left_s()))
                    return None
                status = self.status()
                if status.role is Role.LEADER:
                    return None
                leader = status.leader_id
            except NotLeader as error:
                leader = error.leader_id
            except Unavailable as error:
                if error.code not in WORTH_WAITING:
                    raise Problem(error.code, str(error)) from None
                code = error.code
            except Indeterminate:
                code = "no_quorum"
            if call.is_hop:
                raise Problem(code, f"{self.node_id} does not lead")
            if leader is not None and leader != self.node_id:
                try:
                    return await self._ask_leader(call, leader, passed)
                except (NotSent, NoAnswer):
                    pass
            if call.left_s() <= 0:
                raise self._too_late(False, code)
            await self.leaders.chance(call.left_s())

    async def pass_to_cluster(self, call: Call, passed: Passed) -> Reply:
        """At a node without a log: any node of the cluster answers."""
        ensure_key(call, passed)
        is_unknown = False
        while True:
            try:
                return await self.forwarder.to_any(call, self.node.cluster_addresses, passed)
            except NoAnswer:
                is_unknown = passed.method != "GET"
            except NotSent:
                pass
            if call.left_s() <= 0:
                if is_unknown:
                    raise Problem("commit_unknown", "the cluster gave no answer in time; repeat with the same key")
                raise Problem("no_leader", "no node of the cluster could be reached in time")
            await asyncio.sleep(min(0.1, call.left_s()))

    async def _submit(self, call: Call, command: Command) -> Outcome:
        if call.wait_s > 0:
            wait_left_s = min(call.wait_s, call.left_s())
            deadline_s = max(0.01, call.left_s() - wait_left_s)
            outcome: Outcome = await self.node.replica.claim(command, deadline_s=deadline_s, wait_s=wait_left_s)
        else:
            outcome = await self.node.replica.submit(command, deadline_s=max(0.01, call.left_s()))
        assert isinstance(outcome, Done | Rejected)
        return outcome

    async def _ask_leader(self, call: Call, leader: str, passed: Passed) -> Reply:
        url = self.leader_url(leader)
        if url is None:
            raise NotSent(f"no address of {leader} is known")
        if call.query.get("redirect"):
            return Reply(b"", 307, headers={"Location": url.rstrip("/") + redirect_target(call)})
        ensure_key(call, passed)
        self.node.metrics.forwarded()
        return await self.forwarder.to_node(call, leader, url, passed)

    def _too_late(self, is_unknown: bool, code: str) -> Problem:
        if is_unknown:
            return Problem("commit_unknown", "the leader gave no answer in time; repeat with the same key")
        return no_leader(self.status(), code)


def no_leader(status: Status, code: str = "no_leader") -> Problem:
    """503 for a cluster without a leader, as seen from one node."""
    reached = 1 + sum(1 for voter in status.voters if voter.connected and voter.node_id != status.node_id)
    voters = len({voter.node_id for voter in status.voters} | {status.node_id})
    if code == "no_leader" and reached <= voters // 2:
        code = "no_quorum"
    if code == "no_quorum":
        return Problem(
            "no_quorum", f"{reached} of {voters} voters can be reached from here, {voters // 2 + 1} are needed"
        )
    if code == "starting":
        return Problem("starting", "the log is still being replayed")
    return Problem("no_leader", "nobody leads and nobody was elected within the request's timeout")


def mint_key() -> str:
    """A key for a call that came without one, so that passing it on twice has one effect."""
    return f"node-{secrets.token_hex(16)}"


def ensure_key(call: Call, passed: Passed) -> None:
    """A write that is passed on has a key, the caller's or one of ours, and the caller is told it."""
    if call.key is None and passed.method == "POST":
        call.key = mint_key()
        call.headers["Idempotency-Key"] = call.key


def redirect_target(call: Call) -> str:
    """The path and query of the call without what was answered here."""
    passed = Passed("GET", call.request.path, {k: v for k, v in call.query.items() if k != "redirect"}, None)
    return passed.target
