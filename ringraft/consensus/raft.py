"""The replicated log as the rest of the node sees it: ``Consensus`` in raft mode.

Everything happens in ``_step``, which runs soon after something arrived (a message, a proposal, a
link that came or went) or a deadline passed, once for all that came together. No thread, no fixed
tick: an idle node wakes for heartbeats only.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from ringraft.clock import Clock
from ringraft.consensus.base import (
    Leadership,
    NotLeader,
    Replicated,
    Status,
    Unavailable,
    VoterStatus,
)
from ringraft.consensus.proposals import Made, Proposals
from ringraft.consensus.replog.codec import AskIndex, Chunk, ChunkTaken, Message, ReadIndex, encode
from ringraft.consensus.replog.files import LOCAL_DISK, Disk
from ringraft.consensus.replog.install import Images
from ringraft.consensus.replog.journal import Journal
from ringraft.consensus.replog.recovery import oldest_index
from ringraft.consensus.replog.snapshot import SnapshotStore
from ringraft.consensus.replog.syncobj import ENTRY, RaftLog, Timing
from ringraft.consensus.replog.transport import Links, PeerLinks, RevealsSecret
from ringraft.state.codec import decode_entry, encode_entry
from ringraft.state.commands import Begin
from ringraft.state.model import Command, Entry, Epoch, Outcome, Rejected

logger = logging.getLogger(__name__)

ENTRIES_IN_FLIGHT_MAX = 4
"""Entries under way at once. Few: what waits meanwhile travels together in the next."""
STALL_MS = 150
"""A step that is later than this found the process paused or starved."""
HINT_DELAY_MS = 10
"""A follower whose redial of the leader is refused stands for election this much later …"""
HINT_STAGGER_MS = 40
"""… and each further voter in the order of names this much later still, so that votes do not split."""
TIMER_SLACK_S = 0.0005
WATCH_CHANGES_MAX = 256
"""A watcher that is further behind than this misses the oldest changes."""
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
    generation: int = 0
    """Raised by whatever replaces the log's history: an offline recovery, a restore, a change of mode."""

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


@dataclass(frozen=True, slots=True)
class EpochBase:
    """Where log time stood when this node's term began, on its own monotonic clock."""

    term: int
    log_ms: int
    monotonic_ms: int


@dataclass(slots=True)
class Transfer:
    """Leadership on its way to ``to``; no entry is made meanwhile."""

    to: str
    until_s: float
    future: asyncio.Future[str]
    is_asked: bool = False


class RaftConsensus:
    """One voter of the replicated log. All methods are called on the event loop."""

    def __init__(
        self,
        *,
        node_id: str,
        voters: Mapping[str, str],
        data_dir: Path,
        replicated: Replicated,
        config: RaftConfig,
        secret: RevealsSecret | None,
        cluster_id: str,
        clock: Clock,
        rng: random.Random,
        on_failure: Callable[[BaseException], None] | None = None,
        links: Links | None = None,
        disk: Disk = LOCAL_DISK,
    ) -> None:
        """``voters`` maps every voter's id, this node's too, to ``host:port``.

        ``on_failure`` is told once when this node can no longer take part (a failed disk, a broken
        invariant): the process should end. ``links`` and ``disk`` stand in for network and machine.
        """
        if node_id not in voters:
            raise ValueError(f"node_id {node_id!r} is not among the voters {sorted(voters)}")
        self._node_id = node_id
        self._voters = sorted(voters)
        self._data_dir = data_dir
        self._replicated = replicated
        self._config = config
        self._clock = clock
        self._rng = rng
        self._on_failure = on_failure
        self._disk = disk
        peers = {voter: address for voter, address in voters.items() if voter != node_id}
        self._links: Links = links or PeerLinks(node_id=node_id, peers=peers, cluster_id=cluster_id, secret=secret)
        self._loop: asyncio.AbstractEventLoop
        self._log: RaftLog
        self._images: Images
        self._proposals: Proposals
        self._syncer: Executor
        self._is_running = False
        self._is_step_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._snapshot_task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._epoch_base: EpochBase | None = None
        self._leadership = Leadership(None, Epoch(config.generation, 0))
        self._watchers: set[asyncio.Queue[Leadership]] = set()
        self._transfer: Transfer | None = None
        self._heard_s: dict[str, float] = {}
        self._ask_number = rng.getrandbits(40)
        self._asks: dict[int, asyncio.Future[int]] = {}
        self._apply_waiters: list[tuple[int, asyncio.Future[int]]] = []

    # Life

    async def start(self) -> None:
        """Open the log, apply what is known to be committed, and join the others.

        Raises JournalDamaged, SnapshotDamaged, DiskFailed: the node must not start on this directory.
        """
        self._loop = asyncio.get_running_loop()
        self._proposals = Proposals(self._loop)
        self._syncer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raft-sync")
        self._open()
        while self._log.is_behind():
            self._log.apply_some()
            await asyncio.sleep(0)
        if len(self._voters) > 1:
            self._log.wait_anew()
        self._is_running = True
        self._note_leadership()
        await self._links.start(self)
        self._soon()

    def _open(self) -> None:
        directory = self._data_dir / "journal"
        store = SnapshotStore(self._data_dir / "snapshots", disk=self._disk)
        snapshot = store.latest(reach=oldest_index(directory, disk=self._disk))
        if snapshot is not None:
            self._replicated.restore(snapshot.chunks())
        journal = Journal.open(
            directory,
            snapshot=snapshot.base if snapshot is not None else None,
            segment_bytes=self._config.segment_bytes,
            disk=self._disk,
        )
        self._log = RaftLog(
            node_id=self._node_id,
            voters=self._voters,
            journal=journal,
            timing=Timing(
                heartbeat_s=self._config.heartbeat_ms / 1000,
                election_min_s=self._config.election_min_ms / 1000,
                election_max_s=self._config.election_max_ms / 1000,
            ),
            clock=self._clock,
            rng=self._rng,
            host=self,
        )
        if snapshot is not None:
            self._log.stand_at(snapshot.base)
        self._images = Images(
            store=store,
            newest=snapshot,
            log=self._log,
            replicated=self._replicated,
            entries_between=self._config.snapshot_entries,
            clock=self._clock,
            syncer=self._syncer,
            send=self.send,
            on_installed=self._proposals.skipped_to,
        )

    async def stop(self) -> None:
        """Stop taking part; every proposal has ended when this returns. Hands nothing over."""
        self._halt()
        if self._ending is not None:
            await self._ending
        await self._links.stop()
        if self._snapshot_task is not None:
            self._snapshot_task.cancel()
            await asyncio.gather(self._snapshot_task, return_exceptions=True)
        self._syncer.shutdown()
        self._images.abandon()
        self._log.close()

    def _halt(self) -> None:
        self._is_running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._proposals.give_up()
        gone = Unavailable("shutting_down", "this node stops")
        if self._transfer is not None:
            self._end_transfer(gone)
        for future in [*self._asks.values(), *(future for _, future in self._apply_waiters)]:
            if not future.done():
                future.set_exception(gone)
        self._asks.clear()
        self._apply_waiters.clear()

    def _fail(self, error: Exception) -> None:
        """This node can no longer be trusted to take part; the others go on."""
        if not self._is_running:
            return
        logger.critical(
            "this node stops taking part action=consensus_failed node=%s: %s", self._node_id, error, exc_info=error
        )
        self._halt()
        self._ending = self._loop.create_task(self._links.stop())
        if self._on_failure is not None:
            self._on_failure(error)

    # What is so

    @property
    def applied_index(self) -> int:
        return self._log.applied_index()

    def status(self) -> Status:
        log, now = self._log, self._clock.monotonic_s()
        leads = log.is_leader()
        heard = log.last_heard_leader_s
        contact_s = 0.0 if leads else None if heard is None else now - heard
        hears_leader = log.leader_id() is not None and contact_s is not None
        return Status(
            node_id=self._node_id,
            role=log.role(),
            leader_id=log.leader_id(),
            epoch=Epoch(self._config.generation, log.term()),
            commit_index=log.commit_index(),
            applied_index=log.applied_index(),
            last_index=log.last_index(),
            snapshot_index=self._images.index,
            log_bytes=log.log_bytes(),
            has_quorum=log.hears_majority()
            if leads
            else hears_leader and (contact_s or 0.0) * 1000 <= self._config.election_max_ms,
            leader_contact_s=contact_s,
            voters=[self._voter_status(voter, now) for voter in self._voters],
        )

    def _voter_status(self, voter: str, now_s: float) -> VoterStatus:
        if voter == self._node_id:
            return VoterStatus(voter, self._log.last_index(), 0.0, True)
        progress = self._log.progress.get(voter) if self._log.is_leader() else None
        heard_s = self._heard_s.get(voter)
        return VoterStatus(
            node_id=voter,
            match_index=progress.match_index if progress is not None else 0,
            last_contact_s=None if heard_s is None else now_s - heard_s,
            connected=self._log.is_linked(voter),
        )

    async def watch(self) -> AsyncIterator[Leadership]:
        """Every change of leader or epoch from now on, the present one first."""
        changes: asyncio.Queue[Leadership] = asyncio.Queue(WATCH_CHANGES_MAX)
        changes.put_nowait(self._leadership)
        self._watchers.add(changes)
        try:
            while True:
                yield await changes.get()
        finally:
            self._watchers.discard(changes)

    def _note_leadership(self) -> None:
        present = Leadership(self._log.leader_id(), Epoch(self._config.generation, self._log.term()))
        if present == self._leadership:
            return
        self._leadership = present
        logger.info(
            "leadership changed action=leadership node=%s leader=%s term=%d role=%s",
            self._node_id, present.leader_id, present.epoch.number, self._log.role(),
        )  # fmt: skip
        if not self._log.is_leader():
            self._images.stop_sending()
            self._proposals.refuse_waiting(NotLeader(present.leader_id))
        for changes in self._watchers:
            if changes.full():
                changes.get_nowait()
            changes.put_nowait(present)

    # What is asked of it

    def propose(self, command: Command, *, deadline_s: float) -> asyncio.Future[Outcome]:
        """Ends within ``deadline_s`` seconds: an outcome, or NotLeader, Unavailable, Indeterminate."""
        return self._wait_for_entry(command, deadline_s)

    def _wait_for_entry(self, command: Command | None, deadline_s: float) -> asyncio.Future[Any]:
        if not self._is_running:
            return self._refused(Unavailable("shutting_down", "this node does not take part in the log"))
        if not self._log.is_leader():
            return self._refused(NotLeader(self._log.leader_id()))
        future = self._proposals.add(command, self._clock.monotonic_s() + deadline_s)
        self._soon()
        return future

    def _refused(self, error: Exception) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        return future

    async def read_barrier(self, *, deadline_s: float) -> int:
        """The index a linearizable read must have applied; applied here when this returns.

        At the leader: that of the next entry made, one for all reads that wait. At a follower: the
        same, asked of the leader. Raises NotLeader, Unavailable.
        """
        if not self._is_running or self._log.is_leader():
            index: int = await self._wait_for_entry(None, deadline_s)
            return index
        leader_id = self._log.leader_id()
        if leader_id is None or not self._log.is_linked(leader_id):
            raise NotLeader(leader_id)
        self._ask_number += 1
        number, asked = self._ask_number, self._loop.create_future()
        self._asks[number] = asked
        try:
            async with asyncio.timeout(deadline_s):
                self.send(leader_id, encode(AskIndex(self._log.term(), number)))
                index = await asked
                await self._applied(index)
        except TimeoutError:
            raise Unavailable("no_quorum", "no majority confirmed the read before the deadline; try again") from None
        finally:
            self._asks.pop(number, None)
        return index

    async def _applied(self, index: int) -> None:
        if self._log.applied_index() < index:
            future: asyncio.Future[int] = self._loop.create_future()
            self._apply_waiters.append((index, future))
            await future

    async def transfer(self, to: str | None, *, deadline_s: float) -> str:
        """Hand leadership over and return the new leader; on failure it stays here.

        ``to`` None picks the voter whose log is closest. Waits at most an election time-out, since no
        entry is made meanwhile. Raises NotLeader, and Unavailable with code ``conflict`` or ``no_quorum``.
        """
        if not self._is_running or not self._log.is_leader():
            raise NotLeader(self._log.leader_id())
        if to == self._node_id:
            return to
        if self._transfer is not None:
            raise Unavailable("conflict", f"a transfer to {self._transfer.to} is under way")
        if to is not None and to not in self._voters:
            raise Unavailable("conflict", f"{to} is not one of the voters {', '.join(self._voters)}")
        linked = [voter for voter in self._voters if voter != self._node_id and self._log.is_linked(voter)]
        if to is None and linked:
            to = max(linked, key=lambda voter: self._log.progress[voter].match_index)
        if to is None or to not in linked:
            raise Unavailable("no_quorum", f"{to or 'no other voter'} is not connected; leadership stays here")
        patience_s = min(deadline_s, self._config.election_max_ms / 1000)
        future: asyncio.Future[str] = self._loop.create_future()
        self._transfer = Transfer(to, self._clock.monotonic_s() + patience_s, future)
        self._soon()
        return await future

    def campaign(self, reason: str) -> None:
        """Ask for an election now; does nothing while a live leader is heard."""
        if not self._is_running or self._log.is_leader():
            return
        heard_s = self._log.last_heard_leader_s
        if self._log.leader_id() is not None and heard_s is not None:
            if (self._clock.monotonic_s() - heard_s) * 1000 < self._config.election_min_ms:
                return
        logger.info("stands for election action=campaign node=%s reason=%s", self._node_id, reason)
        self._log.campaign_within(0)
        self._soon()

    async def accept_peer(self, request: web.Request) -> web.StreamResponse:
        """The route ``GET /raft/connect``: a peer's connection, for as long as it lives."""
        if not self._is_running:
            raise web.HTTPServiceUnavailable(text="this node does not take part in the log")
        return await self._links.accept_peer(request)

    # What arrives from the links (``LinkListener``)

    def on_messages(self, peer_id: str, messages: list[Message]) -> None:
        if not self._is_running:
            return
        self._heard_s[peer_id] = self._clock.monotonic_s()
        try:
            for message in messages:
                self._take(peer_id, message)
        except Exception as error:  # noqa: BLE001 - the top of what a peer drives: logged, and the node stops
            self._fail(error)
        self._soon()

    def _take(self, peer_id: str, message: Message) -> None:
        match message:
            case Chunk():
                self._images.take(peer_id, message)
            case ChunkTaken(term):
                if self._log.is_leader() and term == self._log.term():
                    self._log.contact(peer_id)
                    self._images.taken(peer_id, message)
            case AskIndex(_, request):
                self._confirm_index(peer_id, request)
            case ReadIndex(_, request, index):
                self._answer_ask(request, index)
            case _:
                self._log.receive(peer_id, message)

    def on_link(self, peer_id: str, is_up: bool) -> None:
        if not self._is_running:
            return
        if is_up:
            self._log.link_up(peer_id)
        else:
            self._images.stop_sending(peer_id)
            self._log.link_down(peer_id)
        self._soon()

    def on_refused(self, peer_id: str) -> None:
        # Only a hint, and only votes elect: a wrong one costs an election at most.
        if not self._is_running or peer_id != self._log.leader_id():
            return
        rank = [voter for voter in self._voters if voter != peer_id].index(self._node_id)
        delay_ms = HINT_DELAY_MS + rank * HINT_STAGGER_MS + self._rng.uniform(0, HINT_DELAY_MS)
        self._log.campaign_within(delay_ms / 1000)
        self._soon()

    def _confirm_index(self, peer_id: str, request: int) -> None:
        """A follower's read: answer with the index of a commit begun now, or 0."""

        def answer(future: asyncio.Future[Any]) -> None:
            index = 0 if future.cancelled() or future.exception() is not None else future.result()
            self.send(peer_id, encode(ReadIndex(self._log.term(), request, index)))

        self._wait_for_entry(None, self._config.election_max_ms / 1000).add_done_callback(answer)

    def _answer_ask(self, request: int, index: int) -> None:
        asked = self._asks.pop(request, None)
        if asked is None or asked.done():
            return
        if index:
            asked.set_result(index)
        else:
            asked.set_exception(NotLeader(self._log.leader_id()))

    # What the log asks for (``LogHost``)

    def send(self, peer_id: str, frame: bytes) -> None:
        if self._is_running:
            self._links.send(peer_id, frame)

    def send_snapshot(self, peer_id: str) -> bool:
        return self._images.send_to(peer_id)

    def apply(self, index: int, term: int, command: bytes) -> None:
        outcomes: tuple[Outcome, ...] = ()
        if command[:1] == ENTRY:
            entry = self._proposals.entry_at(index, term) or decode_entry(command[1:])
            outcomes = self._replicated.apply(index, entry).outcomes
            assert len(outcomes) == len(entry.commands), f"entry {index}: an outcome per command"
        self._proposals.applied(index, term, outcomes, self._log.leader_id())

    # What drives it

    def _soon(self) -> None:
        if not self._is_step_due and self._is_running:
            self._is_step_due = True
            self._loop.call_soon(self._step)

    def _on_timer(self) -> None:
        self._timer = None
        late_s = self._clock.monotonic_s() - self._timer_s
        if late_s * 1000 > STALL_MS:
            # This process stood still. The leader's messages may be waiting in a socket: hear them first.
            logger.warning("was not run in time action=stalled node=%s late_ms=%d", self._node_id, round(late_s * 1000))
            self._log.wait_anew()
        self._step()

    def _step(self) -> None:
        self._is_step_due = False
        if not self._is_running:
            return
        try:
            self._advance()
        except Exception as error:  # noqa: BLE001 - the top of what time drives: logged, and the node stops
            self._fail(error)

    def _advance(self) -> None:
        log = self._log
        log.tick()
        self._note_leadership()
        now_s = self._clock.monotonic_s()
        self._proposals.expire(now_s)
        if self._transfer is not None:
            self._drive_transfer(self._transfer, now_s)
        if log.is_leader():
            self._images.begin_stalled_again()
            self._make_entries()
        if self._apply_waiters:
            self._wake_appliers()
        if self._images.is_due() and (self._snapshot_task is None or self._snapshot_task.done()):
            self._snapshot_task = self._loop.create_task(self._make_snapshot())
        if log.is_behind() or (len(self._voters) == 1 and log.last_index() > log.commit_index()):
            self._soon()
        self._arm()

    def _arm(self) -> None:
        """Wake at the next deadline. A timer that is early costs less than moving it each time."""
        due_s = self._log.next_deadline_s()
        proposal_s = self._proposals.next_deadline_s()
        if proposal_s is not None:
            due_s = min(due_s, proposal_s)
        if self._transfer is not None:
            due_s = min(due_s, self._transfer.until_s)
        if self._timer is not None:
            if self._timer_s <= due_s + TIMER_SLACK_S:
                return
            self._timer.cancel()
        # The library's time-outs fire only after their instant.
        self._timer_s = max(due_s, self._clock.monotonic_s()) + TIMER_SLACK_S
        self._timer = self._loop.call_later(self._timer_s - self._clock.monotonic_s(), self._on_timer)

    def _wake_appliers(self) -> None:
        applied_index = self._log.applied_index()
        still: list[tuple[int, asyncio.Future[int]]] = []
        for index, future in self._apply_waiters:
            if future.done():
                continue
            if index <= applied_index:
                future.set_result(index)
            else:
                still.append((index, future))
        self._apply_waiters = still

    async def _make_snapshot(self) -> None:
        try:
            await self._images.make()
        except Exception as error:  # noqa: BLE001 - a task's top: logged, and the node stops
            self._fail(error)

    # Entries

    def _make_entries(self) -> None:
        """Put what waits into entries, as long as few are under way."""
        log = self._log
        made = False
        while log.last_index() - log.applied_index() < ENTRIES_IN_FLIGHT_MAX and self._transfer is None:
            base = self._epoch_base
            if base is None or base.term != log.term():
                if not log.term_begun():
                    break
                base = EpochBase(log.term(), self._replicated.log_ms, self._clock.monotonic_ms())
                self._append(base, [Command(Begin(self._node_id))])
                self._epoch_base = base
            elif len(self._proposals):
                self._append(base, [])
            else:
                break
            made = True
        if made:
            log.replicate()

    def _append(self, base: EpochBase, own: list[Command]) -> None:
        count_max = self._config.entry_commands_max - len(own)
        while True:
            taken = self._proposals.take(count_max)
            if not taken and not own:
                return
            entry = Entry(
                log_ms=base.log_ms + self._clock.monotonic_ms() - base.monotonic_ms,
                wall_ms=self._clock.wall_ms(),
                epoch=Epoch(self._config.generation, base.term),
                commands=(*own, *(proposal.command for proposal in taken if proposal.command is not None)),
            )
            encoded = self._encoded(entry)
            if not isinstance(encoded, Rejected):
                break
            assert taken, f"this node's own command does not fit into the log: {encoded.detail}"
            if len(taken) == 1:
                taken[0].end(encoded)
            else:
                self._proposals.put_back(taken)
            count_max = max(len(taken) // 2, 1)
        # Noted first: what a failing disk has taken of it may yet be found there and committed.
        command, as_read = encoded
        self._proposals.made(self._log.last_index() + 1, Made(base.term, as_read, tuple(taken), len(own)))
        self._log.append(command)

    def _encoded(self, entry: Entry) -> tuple[bytes, Entry] | Rejected:
        """The entry as it stands in the log, and as every replica reads it there; or why it cannot stand there.

        Read back before it is in the log, since an entry that cannot be read would stop every replica.
        """
        try:
            command = ENTRY + encode_entry(entry)
            as_read = decode_entry(command[1:])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            logger.error("a command cannot be encoded action=encode_failed node=%s: %r", self._node_id, error)
            return Rejected("internal", f"the command cannot be encoded: {error}")
        limit = self._config.entry_bytes_max
        if len(command) > limit:
            return Rejected(
                "too_large", f"the command takes {len(command)} bytes in the log; raft.entry_bytes_max is {limit}"
            )
        return command, as_read

    # Handing over

    def _drive_transfer(self, transfer: Transfer, now_s: float) -> None:
        log = self._log
        leader_id = log.leader_id()
        if not log.is_leader():
            if leader_id == transfer.to:
                self._end_transfer(None)
            elif leader_id is not None:
                self._end_transfer(Unavailable("conflict", f"{leader_id} leads now, not {transfer.to}"))
        elif not transfer.is_asked and log.progress[transfer.to].match_index == log.last_index():
            transfer.is_asked = True
            log.hand_over(transfer.to)
        if self._transfer is not None and now_s >= transfer.until_s:
            stays = f"{leader_id} leads" if leader_id is not None else "nobody leads yet"
            self._end_transfer(Unavailable("conflict", f"{transfer.to} did not take over in time; {stays}"))

    def _end_transfer(self, error: Unavailable | None) -> None:
        transfer, self._transfer = self._transfer, None
        if transfer is None or transfer.future.done():
            return
        if error is None:
            logger.info("handed over action=transfer node=%s to=%s", self._node_id, transfer.to)
            transfer.future.set_result(transfer.to)
        else:
            transfer.future.set_exception(error)
