"""The replicated log as the rest of the node sees it: ``Consensus`` in raft mode.

Everything happens in ``_step``, which runs soon after something arrived (a message, a proposal, a
link that came or went) or a deadline passed, once for all that came together (``pace.py``).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from ringraft.clock import Clock
from ringraft.consensus.base import (
    Leadership,
    Logged,
    Made,
    NotLeader,
    Replicated,
    Status,
    Unavailable,
)
from ringraft.consensus.enrolment import Enrolment
from ringraft.consensus.entries import EntryMaker
from ringraft.consensus.handover import Handover
from ringraft.consensus.imaging import Imaging
from ringraft.consensus.leadership import LeadershipFeed
from ringraft.consensus.logview import read_log
from ringraft.consensus.meter import Meter
from ringraft.consensus.opening import open_log, open_roll
from ringraft.consensus.pace import Pace
from ringraft.consensus.proposals import Proposals
from ringraft.consensus.raft_config import RaftConfig
from ringraft.consensus.reads import Reads
from ringraft.consensus.refusals import Refusals
from ringraft.consensus.replog.codec import AskIndex, Chunk, ChunkTaken, Introduce, Message, ReadIndex
from ringraft.consensus.replog.files import LOCAL_DISK, Disk
from ringraft.consensus.replog.install import Images
from ringraft.consensus.replog.syncer import Syncer
from ringraft.consensus.replog.syncobj import CHANGE, ENTRY, RaftLog
from ringraft.consensus.replog.transport import Links, PeerLinks, RevealsSecret
from ringraft.consensus.roll import Roll, Self
from ringraft.consensus.view import View
from ringraft.state.codec import decode_entry
from ringraft.state.model import Command, Epoch, Outcome

logger = logging.getLogger(__name__)

STALL_MS = 150
"""A step that is later than this found the process paused or starved."""


class RaftConsensus:
    """One voter of the replicated log. All methods are called on the event loop."""

    def __init__(
        self,
        *,
        own: Self,
        voters: Mapping[str, str],
        contacts: Mapping[str, str] | None = None,
        data_dir: Path,
        replicated: Replicated,
        config: RaftConfig,
        secret: RevealsSecret | None,
        cluster_id: str,
        clock: Clock,
        rng: random.Random,
        on_failure: Callable[[BaseException], None] | None = None,
        on_removed: Callable[[], None] = lambda: None,
        links: Links | None = None,
        disk: Disk = LOCAL_DISK,
    ) -> None:
        """``voters`` maps the voters that are to found the cluster to ``host:port``, this node too if it is one
        of them; once the log names voters, they count. A node that joins has none, but ``contacts``:
        voters of the cluster, to which it links until its log names them.

        ``on_failure`` is told once when this node can no longer take part (a failed disk, a broken
        invariant), ``on_removed`` when the cluster has removed it: the process should end. ``links`` and
        ``disk`` stand in for network and machine.
        """
        self._own = own
        self._node_id = own.node_id
        self._voters, self._contacts = dict(voters), dict(contacts or {})
        self._data_dir = data_dir
        self._replicated = replicated
        self._config = config
        self._clock = clock
        self._rng = rng
        self._on_failure = on_failure
        self._on_removed = on_removed
        self._disk = disk
        self.meter = Meter(clock)
        self._links: Links = links or PeerLinks(
            node_id=own.node_id, address=own.address, cluster_id=cluster_id, secret=secret, configured=self._voters
        )
        self._roll: Roll
        self._enrolment: Enrolment
        self._loop: asyncio.AbstractEventLoop
        self._pace: Pace
        self._log: RaftLog
        self._images: Images
        self._imaging: Imaging
        self._view: View
        self._proposals: Proposals
        self._entries: EntryMaker
        self._reads: Reads
        self._handover: Handover
        self._syncer: Syncer
        self._snapshot_thread: Executor
        self._is_open = False
        self._is_running = False
        self._ending: asyncio.Task[None] | None = None
        self._feed = LeadershipFeed(Leadership(None, Epoch(0, 0)))
        self._refusals = Refusals(own.node_id, lambda: self._roll.voters(), rng)

    # Life

    async def start(self) -> None:
        """Open the log, apply what is known to be committed, and join the others.

        Raises JournalDamaged, SnapshotDamaged, DiskFailed, VoterRemoved: the node must not start on this directory.
        """
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(self._loop, self._clock, self._step)
        self._proposals = Proposals(self._loop)
        # A thread each: a large snapshot on its way to the medium must not keep entries waiting behind it.
        self._snapshot_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raft-snapshot")
        self._open()
        while self._log.is_behind():
            self._log.apply_some()
            await asyncio.sleep(0)
        if not self._log.is_alone():
            self._log.wait_anew()
        self._is_running = True
        self._links.follow(self._roll.addresses())
        self._note_leadership()
        await self._links.start(self)
        self._pace.soon()

    def _open(self) -> None:
        self._roll = open_roll(
            own=self._own,
            configured=self._voters,
            contacts=self._contacts,
            data_dir=self._data_dir,
            disk=self._disk,
            clock=self._clock,
            formation_wait_s=self._config.formation_wait_ms / 1000,
        )
        opened = open_log(
            node_id=self._node_id,
            electorate=self._roll,
            data_dir=self._data_dir,
            replicated=self._replicated,
            config=self._config,
            clock=self._clock,
            rng=self._rng,
            host=self,
            disk=self._disk,
        )
        self._log = opened.log
        self._syncer = Syncer(
            loop=self._loop, store=opened.journal, on_synced=self._on_synced, on_failed=self._fail, clock=self._clock
        )
        self._images = Images(
            store=opened.store,
            newest=opened.snapshot,
            log=self._log,
            replicated=self._replicated,
            entries_between=self._config.snapshot_entries,
            clock=self._clock,
            thread=self._snapshot_thread,
            send=self.send,
            on_installed=self._on_installed,
            on_failure=self._fail,
        )
        self._imaging = Imaging(log=self._log, images=self._images, clock=self._clock, on_failure=self._fail)
        self._view = View(
            roll=self._roll,
            log=self._log,
            images=self._images,
            replicated=self._replicated,
            config=self._config,
            clock=self._clock,
        )
        self._take_up()
        self._follow_table(opened.log.applied_index())
        self._is_open = True

    def _take_up(self) -> None:
        """Put together what asks something of the log."""
        self._entries = EntryMaker(
            log=self._log,
            proposals=self._proposals,
            replicated=self._replicated,
            clock=self._clock,
            commands_max=self._config.entry_commands_max,
            bytes_max=self._config.entry_bytes_max,
            refusal=lambda command: self._enrolment.refusal(command),
            meter=self.meter,
        )
        self._enrolment = Enrolment(
            roll=self._roll,
            log=self._log,
            clock=self._clock,
            rng=self._rng,
            election_s=self._config.election_max_ms / 1000,
            send=self.send,
            propose=lambda command, deadline_s: self.propose(command, deadline_s=deadline_s),
            has_begun=self._entries.has_begun,
            stop_sending=self._images.stop_sending,
            on_removed=self._on_removed,
        )
        self._reads = Reads(
            log=self._log,
            clock=self._clock,
            first_number=self._rng.getrandbits(40),
            patience_s=2 * self._config.heartbeat_ms / 1000,
            send=self.send,
        )
        patience_s = self._config.election_max_ms / 1000
        self._handover = Handover(log=self._log, roll=self._roll, patience_s=patience_s)

    async def stop(self) -> None:
        """Stop taking part; every proposal has ended when this returns. Hands nothing over."""
        if not self._is_open:
            return
        self._is_open = False
        self._halt()
        if self._ending is not None:
            await self._ending
        await self._links.stop()
        await self._imaging.stop()
        self._snapshot_thread.shutdown()
        await self._syncer.stop()
        self._log.close()

    def _halt(self) -> None:
        self._is_running = False
        self._pace.stop()
        self._imaging.halt()
        self._images.halt()
        self._syncer.halt()
        self._proposals.give_up()
        gone = Unavailable("shutting_down", "this node stops")
        self._handover.give_up(gone)
        self._reads.give_up(gone)

    def _fail(self, error: BaseException) -> None:
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
        return self._view.status()

    async def watch(self) -> AsyncIterator[Leadership]:
        """Every change of leader or epoch from now on, the present one first."""
        async for leadership in self._feed.watch():
            yield leadership

    def _note_leadership(self) -> None:
        present = Leadership(self._log.leader_id(), Epoch(self._replicated.generation, self._log.term()))
        if present == self._feed.present:
            return
        self._refusals.follow(present.leader_id)
        logger.info(
            "leadership changed action=leadership node=%s leader=%s term=%d role=%s",
            self._node_id, present.leader_id, present.epoch.number, self._log.role(),
        )  # fmt: skip
        if not self._log.is_leader():
            self._images.stop_sending()
            self.meter.follows()
            self._proposals.refuse_waiting(NotLeader(present.leader_id))
        self._reads.leader_changed()
        self._feed.tell(present)

    # What is asked of it

    def propose(self, command: Command, *, deadline_s: float) -> asyncio.Future[Outcome]:
        """Ends within ``deadline_s`` seconds: an outcome, or NotLeader, Unavailable, Indeterminate."""
        if not self._is_running:
            return self._refused(Unavailable("shutting_down", "this node does not take part in the log"))
        if not self._log.is_leader():
            return self._refused(NotLeader(self._log.leader_id()))
        future = self._proposals.add(command, self._clock.monotonic_s() + deadline_s)
        self._pace.soon()
        return future

    def _refused(self, error: Exception) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        return future

    async def read_barrier(self, *, deadline_s: float) -> int:
        """The index a linearizable read must have applied; applied here when this returns.

        A majority confirms the leader after this call, once for all reads that wait. Raises NotLeader, Unavailable.
        """
        if not self._is_running:
            raise Unavailable("shutting_down", "this node does not take part in the log")
        self._pace.soon()
        return await self._reads.barrier(deadline_s=deadline_s)

    async def transfer(self, to: str | None, *, deadline_s: float) -> str:
        """Hand leadership over and return the new leader; on failure it stays here.

        ``to`` None picks the voter whose log is closest. Waits at most an election time-out, since no
        entry is made meanwhile. Raises NotLeader, and Unavailable with code ``conflict`` or ``no_quorum``.
        """
        if not self._is_running:
            raise Unavailable("shutting_down", "this node does not take part in the log")
        if to == self._node_id and self._log.is_leader():
            return to
        future = self._handover.begin(to, now_s=self._clock.monotonic_s(), deadline_s=deadline_s)
        self._pace.soon()
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
        self._pace.soon()

    def first_index(self) -> int:
        """The oldest entry that this node's log holds."""
        return self._log.first_index()

    async def read_log(self, first: int, limit: int) -> list[Logged]:
        """Entries of this node's log, committed or not, from ``first`` on."""
        return await read_log(self._log, first, limit)

    async def snapshot(self) -> Made:
        """Make a snapshot now, unless the newest is as of now. Raises Unavailable."""
        if not self._is_running:
            raise Unavailable("shutting_down", "this node does not take part in the log")
        return await self._imaging.ask()

    async def accept_peer(self, request: web.Request) -> web.StreamResponse:
        """The route ``GET /raft/connect``: a peer's connection, for as long as it lives."""
        if not self._is_running:
            raise web.HTTPServiceUnavailable(text="this node does not take part in the log")
        return await self._links.accept_peer(request)

    # What arrives from the links (``LinkListener``)

    def on_messages(self, peer_id: str, messages: list[Message]) -> None:
        if not self._is_running:
            return
        self._view.heard(peer_id)
        try:
            for message in messages:
                if isinstance(message, Introduce):
                    self._enrolment.take(peer_id, message)
                elif self._enrolment.may_be_heard(peer_id):
                    self._take(peer_id, message)
        except Exception as error:  # noqa: BLE001 - the top of what a peer drives: logged, and the node stops
            self._fail(error)
        self._pace.soon()

    def on_links_failed(self, error: Exception) -> None:
        self._fail(error)

    def _take(self, peer_id: str, message: Message) -> None:
        match message:
            case Chunk():
                self._images.take(peer_id, message)
            case ChunkTaken(term):
                if self._log.is_leader() and term == self._log.term():
                    self._log.contact(peer_id)
                    self._images.taken(peer_id, message)
            case AskIndex(_, request):
                self._reads.asked_by(peer_id, request)
            case ReadIndex(_, request, index):
                self._reads.answered(request, index)
            case _:
                self._log.receive(peer_id, message)

    def on_link(self, peer_id: str, is_up: bool) -> None:
        if not self._is_running:
            return
        if is_up:
            self._enrolment.introduce(peer_id)
            self._log.link_up(peer_id)
        else:
            self._images.stop_sending(peer_id)
            self._log.link_down(peer_id)
        self._reads.link_changed(peer_id)
        self._pace.soon()

    def on_refused(self, peer_id: str) -> None:
        if not self._is_running:
            return
        self._log.leader_gone(peer_id)
        delay_s = self._refusals.delay_s(peer_id)
        if delay_s is not None:
            self._log.campaign_within(delay_s)
        self._pace.soon()

    # What the log asks for (``LogHost``)

    def send(self, peer_id: str, frame: bytes) -> None:
        if self._is_running:
            self._links.send(peer_id, frame)

    def send_snapshot(self, peer_id: str) -> bool:
        return self._images.send_to(peer_id)

    def apply(self, index: int, term: int, command: bytes) -> None:
        outcomes: tuple[Outcome, ...] = ()
        if command[:1] in (ENTRY, CHANGE):
            entry = self._proposals.entry_at(index, term) or decode_entry(command[1:])
            began_s = self.meter.now_s()
            outcomes = self._replicated.apply(index, entry).outcomes
            self.meter.applied(began_s)
            assert len(outcomes) == len(entry.commands), f"entry {index}: an outcome per command"
        self._proposals.applied(index, term, outcomes, self._log.leader_id())
        if self._replicated.voter_table is not self._roll.table:
            self._follow_table(index)
        self._roll.note_applied(index)

    def _follow_table(self, index: int) -> None:
        """Entry ``index`` may have changed who keeps the log: quorum, links and this directory's standing follow."""
        self._roll.take_table(self._replicated.voter_table, index)
        self._log.follow()
        if self._is_running:
            self._links.follow(self._roll.addresses())

    def _on_installed(self, index: int) -> None:
        """The state was replaced by a snapshot as of entry ``index``."""
        self._proposals.skipped_to(index)
        self._follow_table(index)
        self._pace.soon()

    # What drives it

    def _on_synced(self, took_s: float) -> None:
        if self._is_running:
            self.meter.synced(took_s)
            self._log.synced()
            self._pace.soon()

    def _step(self, late_s: float) -> None:
        if not self._is_running:
            return
        if late_s * 1000 > STALL_MS:
            # This process stood still. The leader's messages may be waiting in a socket: hear them first.
            logger.warning("was not run in time action=stalled node=%s late_ms=%d", self._node_id, round(late_s * 1000))
            self._log.wait_anew()
        try:
            self._advance()
        except Exception as error:  # noqa: BLE001 - the top of what time drives: logged, and the node stops
            self._fail(error)

    def _advance(self) -> None:
        log = self._log
        log.tick()
        self.meter.committed(log.commit_index())
        self._note_leadership()
        now_s = self._clock.monotonic_s()
        self._enrolment.drive(now_s)
        self._proposals.expire(now_s)
        self._handover.drive(now_s)
        if log.is_leader():
            self._images.begin_stalled_again()
            if not self._handover.is_under_way:
                self._entries.make()
        self._reads.drive()
        self._imaging.begin_if_due()
        self._syncer.soon()
        if log.is_behind():
            self._pace.soon()
        ends = (self._proposals.next_deadline_s(), self._handover.until_s(), self._enrolment.next_deadline_s())
        self._pace.wake_at(min([log.next_deadline_s(), *(end_s for end_s in ends if end_s is not None)]))
