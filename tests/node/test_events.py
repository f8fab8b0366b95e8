"""The event ring: order, loss, waiting."""

import asyncio

from ringraft.node.events import EventRing
from ringraft.state.model import EVENTS_PER_ENTRY, Event


def event(seq: int) -> Event:
    return Event(seq=seq, index=seq // EVENTS_PER_ENTRY, type="WORK_ADDED", at_wall_ms=0, data={})


def ring_of(size: int, *numbers: int) -> EventRing:
    ring = EventRing(size)
    for seq in numbers:
        ring.append([event(seq)])
    return ring


def test_events_come_in_order_and_page_by_page():
    ring = ring_of(10, 3, 5, 9)
    first = ring.since(0, 2)
    assert [e.seq for e in first.events] == [3, 5]
    assert not first.lost
    second = ring.since(first.next, 2)
    assert [e.seq for e in second.events] == [9]
    assert ring.since(second.next, 2).events == ()
    assert ring.since(second.next, 2).next == 9


def test_an_overrun_reader_learns_that_it_lost_events():
    ring = ring_of(3, *range(1, 11))
    page = ring.since(2, 100)
    assert page.lost
    assert [e.seq for e in page.events] == [8, 9, 10]
    assert not ring.since(7, 100).lost
    assert ring.since(6, 100).lost


def test_the_ring_holds_no_more_than_twice_its_size():
    ring = EventRing(4)
    for seq in range(1, 1000):
        ring.append([event(seq)])
        assert len(ring._events) <= 8
    assert len(ring) == 4


def test_a_replaced_state_loses_everything_up_to_its_index():
    ring = ring_of(10, 1, 2, 3)
    ring.restart_after(7)
    page = ring.since(3, 10)
    assert page.lost
    assert page.events == ()
    assert not ring.since(page.next, 10).lost
    ring.append([event(8 * EVENTS_PER_ENTRY)])
    assert [e.seq for e in ring.since(page.next, 10).events] == [8 * EVENTS_PER_ENTRY]


async def test_waiting_ends_with_the_next_event():
    ring = ring_of(10, 1)
    assert await ring.wait(0, 0)
    assert not await ring.wait(1, 0.01)
    waiting = [asyncio.create_task(ring.wait(1, 5)) for _ in range(3)]
    await asyncio.sleep(0)
    ring.append([event(2)])
    assert await asyncio.gather(*waiting) == [True, True, True]
