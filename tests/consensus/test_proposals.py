"""Each proposal ends exactly once: done, not applied, or unknown."""

import asyncio

import pytest

from ringraft.consensus import proposals as proposals_module
from ringraft.consensus.base import Indeterminate, NotLeader, Unavailable
from ringraft.consensus.proposals import WEIGHT_MAX, Made, Proposals
from ringraft.state.commands import AddBatch, Cancel, Claim, weight
from ringraft.state.model import Command, Done, Entry, Epoch, NewItem
from tests.consensus.raft_kit import note, run

EPOCH = Epoch(0, 3)


async def waiting(count: int, deadline_s: float = 10.0) -> tuple[Proposals, list[asyncio.Future[object]]]:
    proposals = Proposals(asyncio.get_running_loop())
    return proposals, [proposals.add(note(str(number)), deadline_s) for number in range(count)]


def make(proposals: Proposals, index: int, term: int = 3, own: int = 0) -> Made:
    taken = proposals.take(100)
    made = Made(term, Entry(0, 0, EPOCH, tuple(p.command for p in taken)), tuple(taken), own)
    proposals.made(index, made)
    return made


def test_those_that_waited_together_travel_together_and_get_their_own_outcomes() -> None:
    async def scenario() -> None:
        proposals, futures = await waiting(3)
        make(proposals, 5, own=1)
        proposals.applied(5, 3, (Done({}), Done({"at": 0}), Done({"at": 1}), Done({"at": 2})), "n1")
        assert [(await future).value for future in futures] == [{"at": 0}, {"at": 1}, {"at": 2}]  # type: ignore[attr-defined]

    run(scenario())


def test_another_term_at_its_index_means_not_applied() -> None:
    async def scenario() -> None:
        proposals, (future,) = await waiting(1)
        make(proposals, 5)
        proposals.applied(5, 4, (), "n2")
        with pytest.raises(NotLeader) as refused:
            await future
        assert refused.value.leader_id == "n2"

    run(scenario())


def test_a_deadline_before_an_entry_means_not_applied() -> None:
    async def scenario() -> None:
        proposals, (future,) = await waiting(1)
        proposals.expire(10.0)
        with pytest.raises(Unavailable, match="was not proposed"):
            await future
        assert proposals.take(10) == []

    run(scenario())


def test_a_deadline_in_an_entry_means_unknown() -> None:
    async def scenario() -> None:
        proposals, (future,) = await waiting(1)
        make(proposals, 5)
        proposals.expire(9.9)
        assert not future.done()
        proposals.expire(10.0)
        with pytest.raises(Indeterminate, match="entry 5"):
            await future
        proposals.applied(5, 3, (Done({}),), "n1")

    run(scenario())


def test_an_entry_lost_and_an_entry_made_again_at_one_index_end_apart() -> None:
    async def scenario() -> None:
        proposals = Proposals(asyncio.get_running_loop())
        first = proposals.add(note("lost"), 10.0)
        make(proposals, 5, term=3)
        second = proposals.add(note("kept"), 10.0)
        make(proposals, 5, term=6)
        proposals.applied(5, 6, (Done({"kept": True}),), "n1")
        assert (await second) == Done({"kept": True})
        with pytest.raises(NotLeader):
            await first

    run(scenario())


def test_a_snapshot_over_its_index_means_unknown() -> None:
    async def scenario() -> None:
        proposals, (future,) = await waiting(1)
        make(proposals, 5)
        proposals.skipped_to(7)
        with pytest.raises(Indeterminate):
            await future

    run(scenario())


def test_stopping_ends_all() -> None:
    async def scenario() -> None:
        proposals, (travelling,) = await waiting(1)
        make(proposals, 5)
        late = proposals.add(note("late"), 10.0)
        proposals.give_up()
        with pytest.raises(Indeterminate):
            await travelling
        with pytest.raises(Unavailable) as refused:
            await late
        assert refused.value.code == "shutting_down"
        assert proposals.next_deadline_s() is None

    run(scenario())


def test_a_caller_that_has_gone_is_not_proposed() -> None:
    async def scenario() -> None:
        proposals, futures = await waiting(2)
        futures[0].cancel()
        assert [proposal.future for proposal in proposals.take(10)] == [futures[1]]

    run(scenario())


def test_a_caller_that_goes_later_hurts_nobody() -> None:
    async def scenario() -> None:
        proposals, futures = await waiting(2)
        make(proposals, 5)
        futures[0].cancel()
        proposals.applied(5, 3, (Done({"at": 0}), Done({"at": 1})), "n1")
        assert (await futures[1]) == Done({"at": 1})

    run(scenario())


def test_too_many_waiting_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals_module, "WAITING_MAX", 2)

    async def scenario() -> None:
        proposals, futures = await waiting(3)
        with pytest.raises(Unavailable, match="2 proposals wait already"):
            await futures[2]
        assert len(proposals) == 2
        proposals.give_up()
        await asyncio.gather(*futures[:2], return_exceptions=True)

    run(scenario())


def test_what_was_put_back_goes_first() -> None:
    async def scenario() -> None:
        proposals, futures = await waiting(3)
        taken = proposals.take(2)
        proposals.put_back(taken)
        assert [proposal.future for proposal in proposals.take(3)] == futures

    run(scenario())


def test_an_entry_touches_a_bounded_number_of_items_and_keeps_the_order() -> None:
    async def scenario() -> None:
        proposals = Proposals(asyncio.get_running_loop())
        batch = AddBatch(tuple(NewItem("selfplay", b"\x80") for _ in range(400)))
        ops = [batch, batch, Claim("w", None, 100, None, None), batch, Cancel(group="g"), Cancel(work_id="a")]
        futures = [proposals.add(Command(op), 10.0) for op in ops]
        futures[1].cancel()
        sizes = []
        while len(proposals):
            taken = proposals.take(100)
            sizes.append([one.command.op for one in taken])
            made = Made(3, Entry(0, 0, EPOCH, ()), tuple(taken), 0)
            proposals.made(5 + len(sizes), made)
        assert sizes == [[ops[0], ops[2], ops[3]], [ops[4]], [ops[5]]]
        assert all(sum(weight(op) for op in entry) <= WEIGHT_MAX for entry in sizes)
        proposals.give_up()
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)

    run(scenario())
