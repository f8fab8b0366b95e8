"""The state machine: the only place where state changes.

``apply`` runs one entry: time first (what is due), then the commands in order, then the news of
final items to their dependents. For each step a decider reads and answers with a Decision, and
``_install`` puts its records in: dictionary assignments and index upkeep that cannot fail half way,
so that a bug in a decider costs one refused command, alike on every replica, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakSet

from ringraft.state import commands as ops
from ringraft.state import image, reasons, view
from ringraft.state.codec import pack_item, pack_spec, pack_value, unpack
from ringraft.state.decide import add, cancel, claim, finish, node, time, voter
from ringraft.state.digest import Digest
from ringraft.state.lazyheap import LazyHeap
from ringraft.state.model import (
    EVENTS_PER_ENTRY,
    Applied,
    Command,
    Done,
    Entry,
    Epoch,
    Event,
    Key,
    Limits,
    Outcome,
    Rejected,
)
from ringraft.state.records import AgendaRecord, ClassRecord, Item, KeyRecord, NodeRecord, VoterTable
from ringraft.state.tables import At, Decision, News, Tables

log = logging.getLogger(__name__)

Decider = Callable[[Tables, Any, At], Decision | Rejected]

DECIDERS: dict[type[Any], Decider] = {
    ops.Add: add.add,
    ops.AddBatch: add.add_batch,
    ops.Claim: claim.claim,
    ops.Start: claim.start,
    ops.Renew: claim.renew,
    ops.Release: claim.release,
    ops.Complete: finish.complete,
    ops.Fail: finish.fail,
    ops.Cancel: cancel.cancel,
    ops.Retry: cancel.retry,
    ops.Tick: time.tick,
    ops.RegisterNode: node.register_node,
    ops.NodeStatus: node.node_status,
    ops.Begin: node.begin,
    ops.Configure: node.configure,
    ops.FormVoters: voter.form,
    ops.AnnounceVoter: voter.announce,
    ops.AdmitVoter: voter.admit,
    ops.AddLearner: voter.add_learner,
    ops.RemoveVoter: voter.remove,
    ops.Refound: voter.refound,
}

KEYED = (ops.Add, ops.AddBatch, ops.Claim, ops.Cancel, ops.Retry)
"""The verbs that remember an idempotency key; the others are idempotent by (work_id, token)."""

EVENTS_ROOM = EVENTS_PER_ENTRY // 2
"""An entry with more events than this takes no further command: the next one could overrun the numbers."""


class StateMachine:
    """The replicated work queue. ``strict`` lets a decider's bug raise, for tests and the simulator."""

    def __init__(self, *, strict: bool = False) -> None:
        self._tables = Tables()
        self._digest = Digest()
        self._strict = strict
        self._images: WeakSet[image.Frozen] = WeakSet()
        """Those that are still being written by somebody."""
        self._events: list[Event] = []
        self.alarms = 0
        """Decider bugs that were contained since this process has begun."""
        self.voter_table = _voter_table(self._tables)
        """Who keeps the log."""
        self._digest.touch("limits", None, self._tables.limits)

    # -- applying ----------------------------------------------------------------------------------------------

    def apply(self, index: int, entry: Entry) -> Applied:
        """Run one entry. ``index`` must rise from call to call."""
        tables = self._tables
        assert index > tables.index, f"entry {index} comes after {tables.index}"
        tables.index = index
        if entry.epoch < tables.epoch:
            told = f"the entry is of epoch {tuple(entry.epoch)}, and {tuple(tables.epoch)} has begun"
            return Applied(tuple(Rejected("stale_epoch", told) for _ in entry.commands), ())
        tables.log_ms = max(tables.log_ms, entry.log_ms)
        tables.wall_ms = entry.wall_ms
        at = At(index, tables.log_ms, tables.wall_ms, entry.epoch)
        self._events = []
        self._fire_timers(at)
        outcomes = tuple([self._run(command, at) for command in entry.commands])
        self._settle_agenda(at)
        self._settle_digest()
        return Applied(outcomes, tuple(self._events))

    def _run(self, command: Command, at: At) -> Outcome:
        op, key = command.op, command.key
        if at.events > EVENTS_ROOM:
            return Rejected("queue_full", "the log entry has caused too many events already: send the request again")
        if isinstance(op, ops.CompleteBatch):
            return self._complete_batch(op, at)
        if key is None or not isinstance(op, KEYED):
            return self._decide_and_install(DECIDERS[type(op)], op, at)
        known = self._tables.keys.get((key.principal, key.key))
        if known is not None and time.lives(self._tables, known, at.log_ms):
            return self._repeat(known, key)
        return self._decide_and_install(DECIDERS[type(op)], op, at, key)

    def _decide_and_install(self, decider: Decider, op: Any, at: At, key: Key | None = None) -> Outcome:
        decision: Decision | Rejected = self._contained(decider, op, at)
        if isinstance(decision, Rejected):
            return decision
        if key is not None and decision.remembered is not None:
            limit = self._tables.limits.keys_max
            if len(self._tables.keys) >= limit and (key.principal, key.key) not in self._tables.keys:
                told = f"keys_max of {limit} idempotency keys is reached: wait, or send without a key"
                return Rejected("queue_full", told)
            decision.keys = {(key.principal, key.key): _keep(decision, key)}
        self._install(decision, at)
        return decision.outcome

    def _contained(self, decider: Callable[..., Any], *args: Any) -> Any:
        """What the decider answers; a bug in it is a refusal of this one command, unless ``strict``."""
        if self._strict:
            return decider(self._tables, *args)
        try:
            return decider(self._tables, *args)
        except MemoryError:
            raise  # It hits one replica alone, so it must end the process.
        except Exception:
            self.alarms += 1
            log.exception("decider failed action=decider_failed decider=%s", decider.__name__)
            return Rejected("internal", "a fault in the state machine: the command was refused and changed nothing")

    def _complete_batch(self, op: ops.CompleteBatch, at: At) -> Outcome:
        limit = self._tables.limits.batch_items_max
        if not 0 < len(op.items) <= limit:
            told = f"items has {len(op.items)} items; send 1 to {limit} at once"
            return Rejected("invalid_field", told, (("/items", f"1 to {limit} items"),))
        answers: list[dict[str, Any]] = []
        for one in op.items:
            outcome = self._decide_and_install(finish.complete, one, at)
            if isinstance(outcome, Done):
                answers.append({"status": "completed"})
            else:
                answers.append({"status": "refused", "code": outcome.code})
        return Done({"items": answers})

    def _repeat(self, known: KeyRecord, key: Key) -> Outcome:
        """The first outcome again; of a claim what is still leased so."""
        if known.body != key.body:
            return Rejected("idempotency_mismatch", f"the key {key.key} was used for another request: use a new one")
        if not known.leases:
            return Done(unpack(known.answer, "the kept outcome"))
        tables = self._tables
        claimed = [
            tables.items[work_id].spec.work_id
            for work_id, token in known.leases
            if time.is_leased_as(tables, work_id, token)
        ]
        return Done({"claimed": claimed, "reasons": {}})

    def _fire_timers(self, at: At) -> None:
        """Let what is due happen, earliest first, within the entry's bound; the rest is for the next entry."""
        tables, indexes = self._tables, self._tables.indexes
        left = tables.limits.timers_per_entry
        left = self._fire(indexes.log_timers, at.log_ms, time.item_due, at, left)
        left = self._fire(indexes.wall_timers, at.wall_ms, time.item_due_by_wall, at, left)
        self._fire(indexes.key_timers, at.log_ms, time.key_due, at, left)

    def _fire(self, timers: LazyHeap, now_ms: int, decider: Callable[..., Any], at: At, left: int) -> int:
        failed = []
        while left and (top := timers.top()) is not None and top[0] <= now_ms:
            left -= 1
            decision = self._contained(decider, top[-1], at)
            if isinstance(decision, Rejected):
                # Set aside for this entry, or the bug of one item would hold up all others.
                failed.append(top)
                timers.drop(top[-1])
            else:
                self._install(decision, at)
        for entry in failed:
            timers.put(entry[-1], entry)
        return left

    def _settle_agenda(self, at: At) -> None:
        tables = self._tables
        left = tables.limits.timers_per_entry
        while left > 0 and tables.agenda:
            agenda = tables.agenda[next(iter(tables.agenda))]
            answer = self._contained(time.settle, agenda, left, at)
            if isinstance(answer, Rejected):
                self._put_agenda(agenda.order, None)
                left -= 1
            else:
                decision, told = answer
                self._install(decision, at)
                left -= max(1, told)

    # -- installing --------------------------------------------------------------------------------------------

    def _install(self, decision: Decision, at: At) -> None:
        tables, digest = self._tables, self._digest
        indexes, items = tables.indexes, tables.items
        finished: list[str] = []
        for work_id, new in decision.items.items():
            old = items.get(work_id)
            if new is old:
                continue
            digest.touch_item(old, new)
            if new is None:
                del items[work_id]
            else:
                items[work_id] = new
                if new.end is not None and (old is None or old.end is None) and work_id in indexes.dependents:
                    finished.append(work_id)
            indexes.replace(old, new)
        for class_key, record in decision.classes.items():
            self._put_class(class_key, record)
        if decision.clock is not None:
            tables.clock = decision.clock
        if indexes.classes_before:
            self._keep_classes()
        for key_id, key_record in decision.keys.items():
            self._put_key(key_id, key_record)
        for name, node_record in decision.nodes.items():
            digest.touch(("node", name), tables.nodes.get(name), node_record)
            tables.nodes[name] = node_record
            tables.satisfiable.clear()
        if decision.voters:
            self._put_voters(decision, at)
        for order, agenda in decision.agenda.items():
            self._put_agenda(order, agenda)
        for work_id in finished:
            order = next(reversed(tables.agenda)) + 1 if tables.agenda else 0
            self._put_agenda(order, AgendaRecord(order, work_id, -1))
        at.births += decision.births
        at.grants += decision.grants
        if decision.epoch is not None:
            tables.epoch, tables.begun_index = decision.epoch, at.index
        if decision.limits is not None:
            digest.touch("limits", tables.limits, decision.limits)
            tables.limits, tables.is_configured = decision.limits, True
        if decision.news:
            self._tell(decision.news, at)

    def _put_voters(self, decision: Decision, at: At) -> None:
        tables = self._tables
        for name, record in decision.voters.items():
            self._digest.touch(("voter", name), tables.voters.get(name), record)
            if record is None:
                del tables.voters[name]
            else:
                tables.voters[name] = record
        if decision.changes_voters:
            tables.voters_index = at.index
        if decision.formation_id is not None:
            tables.formation_id = decision.formation_id
        self.voter_table = _voter_table(tables)

    def _keep_classes(self) -> None:
        """A class is there while it has live items; one that gets ready items again takes its turns from now on,
        it does not catch up on what it missed."""
        tables, indexes = self._tables, self._tables.indexes
        for key, ready_before in indexes.classes_before.items():
            found, record = indexes.classes[key], tables.classes.get(key)
            if not found.live:
                del indexes.classes[key]
                if record is not None:
                    self._put_class(key, None)
            elif record is None:
                self._put_class(key, ClassRecord(*key, tables.clock))
            elif found.ready and not ready_before and record.turn < tables.clock:
                self._put_class(key, ClassRecord(*key, tables.clock))
        indexes.classes_before.clear()

    def _put_class(self, key: tuple[str, str], record: ClassRecord | None) -> None:
        classes = self._tables.classes
        self._digest.touch(("class", key), classes.get(key), record)
        if record is None:
            del classes[key]
        else:
            classes[key] = record

    def _put_key(self, key_id: tuple[str, str], record: KeyRecord | None) -> None:
        tables = self._tables
        old = tables.keys.get(key_id)
        self._digest.touch(("key", key_id), old, record)
        if old is not None:
            tables.indexes.replace_key(key_id, None)
        if record is None:
            tables.keys.pop(key_id, None)
        else:
            tables.keys[key_id] = record
            tables.indexes.replace_key(key_id, record)

    def _put_agenda(self, order: int, record: AgendaRecord | None) -> None:
        agenda = self._tables.agenda
        self._digest.touch(("agenda", order), agenda.get(order), record)
        if record is None:
            del agenda[order]
        else:
            agenda[order] = record

    def _tell(self, news: Iterable[News], at: At) -> None:
        base, events = at.index * EVENTS_PER_ENTRY, self._events
        for name, data in news:
            events.append(Event(base + at.events, at.index, name, at.wall_ms, data))
            at.events += 1

    def _settle_digest(self) -> None:
        digest = self._digest
        if not self._images:
            digest.trim()
            return
        # An image is told of each entry by itself.
        for frozen in self._images:
            frozen.keep(digest)
        digest.fold(image.pack_clock(self._tables))

    # -- images ------------------------------------------------------------------------------------------------

    def snapshot(self) -> Iterator[bytes]:
        """The state as of this call, in slices of at most 256 KiB; apply may go on between slices."""
        frozen = image.Frozen(self._tables, self.digest())
        self._images.add(frozen)
        return image.slices(frozen)

    @classmethod
    def restore(cls, chunks: Iterable[bytes], *, strict: bool = False) -> StateMachine:
        """The machine that ``snapshot`` was taken of. Raises CodecError when the image is damaged."""
        restoring = Restoring(strict=strict)
        for chunk in chunks:
            for _ in restoring.take(chunk):
                pass
        return restoring.end()

    def restoring(self) -> Restoring:
        """A machine like this one on its way out of an image, in steps."""
        return Restoring(strict=self._strict)

    def dismantle(self) -> Iterator[None]:
        """Let go of the records, in steps of about a millisecond: a million at once would take half a second.

        The machine is of no use from the first step on; one whose image is still being written stays whole.
        """
        return iter(()) if self._images else self._tables.dismantle()

    # -- reading -----------------------------------------------------------------------------------------------

    @property
    def index(self) -> int:
        """The newest entry applied."""
        return self._tables.index

    @property
    def log_ms(self) -> int:
        """The newest log time applied."""
        return self._tables.log_ms

    @property
    def wall_ms(self) -> int:
        """The leader's wall clock at the newest entry; for people only."""
        return self._tables.wall_ms

    @property
    def epoch(self) -> Epoch:
        """The newest begun epoch."""
        return self._tables.epoch

    @property
    def limits(self) -> Limits:
        return self._tables.limits

    @property
    def is_configured(self) -> bool:
        """Whether a Configure was applied: from then on the log's limits count, whatever a node's own are."""
        return self._tables.is_configured

    @property
    def tables(self) -> Tables:
        """The records, for whoever checks or shows them: read only."""
        return self._tables

    def digest(self) -> str:
        """SHA-256 over (index, log time, sum of the records' hashes): equal on all nodes at equal index."""
        self._digest.fold(image.pack_clock(self._tables))
        return self._digest.hexdigest(self._tables.index, self._tables.log_ms)

    def pack(self, item: Item) -> bytes:
        """An item alone, for whoever keeps it longer (``image.unpack_one``); its hash, if due, comes from it too."""
        spec, packed = pack_spec(item.spec), pack_item(item)
        self._digest.fold_packed(item, spec, packed)
        return image.join_one(spec, packed)

    def next_due(self) -> tuple[int | None, int | None]:
        """(log_ms, wall_ms) of the earliest timers; log_ms is now when there is work left over."""
        tables, indexes = self._tables, self._tables.indexes
        if tables.agenda:
            log_ms: int | None = tables.log_ms
        else:
            tops = [top[0] for timers in (indexes.log_timers, indexes.key_timers) if (top := timers.top()) is not None]
            log_ms = max(min(tops), tables.log_ms) if tops else None
        wall_top = indexes.wall_timers.top()
        return log_ms, None if wall_top is None else int(wall_top[0])

    def could_claim(self, op: ops.Claim) -> bool:
        """Whether this claim would get anything now."""
        return claim.could_claim(self._tables, op)

    def nodes(self) -> dict[str, NodeRecord]:
        """Every known node by its id."""
        return {record.node_id: record for record in self._tables.nodes.values()}

    def item(self, work_id: str) -> dict[str, Any] | None:
        """The item in the API's shape, or None."""
        found = self._tables.item(work_id)
        return None if found is None else view.item(found)

    def items(
        self,
        *,
        state: str | None = None,
        work_type: str | None = None,
        group: str | None = None,
        node_id: str | None = None,
        cursor: str | None,
        limit: int,
    ) -> tuple[list[dict[str, Any]], str | None]:
        """A page of items, oldest first, and the cursor of the next. ``node_id``: those it holds now.

        Looks at a bounded number of items per call, so a page may be short and still have a next one.
        Raises ValueError for a cursor that no page has given.
        """
        found, following = view.page(self._tables, view.Filter(state, work_type, group, node_id), cursor, limit)
        return [view.item(one) for one in found], following

    def records(self, *, state: str, cursor: str | None, limit: int) -> tuple[list[Item], str | None]:
        """As ``items`` for one state, the records themselves: they never change, whatever comes after."""
        return view.page(self._tables, view.Filter(state, None, None, None), cursor, limit)

    def items_for_node(self, node_id: str) -> list[dict[str, Any]]:
        """What a node holds now, oldest first."""
        return [view.item(one) for one in node.held_by(self._tables, node_id.lower())]

    def work_status(self) -> dict[str, Any]:
        """Counts by state and type, the oldest pending item's age, room left, leases by node."""
        return view.work_status(self._tables)

    def why(self, work_id: str) -> dict[str, Any] | None:
        """Why an item is where it is, or None."""
        found = self._tables.item(work_id)
        return None if found is None else reasons.why(self._tables, found)


def _keep(decision: Decision, key: Key) -> KeyRecord:
    life = decision.remembered
    assert life is not None
    assert isinstance(decision.outcome, Done)
    # A claim's repeat is answered from what is still leased, so its first answer need not be kept.
    answer = b"" if life.leases else pack_value(decision.outcome.value)
    return KeyRecord(key.principal, key.key, key.body, answer, life.until_log_ms, life.births, life.leases)


class Restoring:
    """A machine on its way out of an image, beside whatever runs."""

    def __init__(self, *, strict: bool = False) -> None:
        self._machine = StateMachine(strict=strict)
        self._reader = image.Reader(self._machine._tables)

    def take(self, chunk: bytes) -> Iterator[None]:
        """Take the next bytes, in steps of about a millisecond. Raises CodecError."""
        return self._reader.take(chunk)

    def end(self) -> StateMachine:
        """The machine that ``snapshot`` was taken of. Raises CodecError when the image is damaged."""
        self._reader.end()
        self._machine._digest = self._reader.digest
        self._machine.voter_table = _voter_table(self._machine._tables)
        return self._machine


def _voter_table(tables: Tables) -> VoterTable:
    voters = {record.node_id: record for record in tables.voters.values()}
    return VoterTable(voters, tables.formation_id, tables.voters_index)
