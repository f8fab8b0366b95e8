"""One queue of events for a whole world, and an asyncio loop for each machine in it.

Nothing here reads a real clock. Time hardly moves while anything can run and then jumps to the next
event. Each process of the simulated cluster has a loop of its own over the same queue, so that it can
stop for a while (a pause, a blocking disk), run at its own rate, or vanish between two callbacks: what
a vanished process still had to do is never run. Work for threads becomes an event with a delay.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from chaos.sim.clock import NodeClock
from chaos.sim.died import Died
from chaos.sim.helper import RUNNING, Helper

TASKS_KEPT = 64
"""A loop forgets finished tasks when it has seen twice as many as were alive, and this many at least."""
CALLBACK_S = 2e-7
"""A callback takes this long at least: code that looks at the clock until time has passed comes to an end."""
CLOSE_TRIES = 6
"""A coroutine that waits in its clean-up is closed again; more would be one that never ends."""


class Event:
    """Something that will be called; asyncio's Handle and TimerHandle at once."""

    __slots__ = ("_args", "_callback", "_context", "_when", "is_cancelled", "owner")

    def __init__(
        self,
        owner: NodeLoop,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        when: float,
    ) -> None:
        self.owner = owner
        self._callback = callback
        self._args = args
        self._context = context
        self._when = when
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self._args = ()

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        """On the owner's monotonic clock."""
        return self._when

    def run(self) -> None:
        if self._context is None:
            self._callback(*self._args)
        else:
            self._context.run(self._callback, *self._args)


class EventQueue:
    """All that is going to happen, in order. ``now_s`` is true time, which no process can read."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events_run = 0
        self.is_halted = False
        """Set by whoever has seen enough, such as a violation."""
        self.on_fault: Callable[[NodeLoop, BaseException, str], None] | None = None
        """Told of an exception that nobody handled."""
        self.ready: deque[Event] = deque()
        self._timed: list[tuple[float, int, Event]] = []
        self._order = itertools.count()

    def at(self, true_s: float, event: Event) -> None:
        heapq.heappush(self._timed, (true_s if true_s > self.now_s else self.now_s, next(self._order), event))

    def run_until(self, true_s: float) -> None:
        """Let everything happen that is due before ``true_s``."""
        ready, timed, pop = self.ready, self._timed, heapq.heappop
        running: NodeLoop | None = None
        before = asyncio._get_running_loop()
        try:
            while not self.is_halted:
                if ready:
                    event = ready.popleft()
                elif timed and timed[0][0] < true_s:
                    true_at_s, _, event = pop(timed)
                    if true_at_s > self.now_s:
                        self.now_s = true_at_s
                else:
                    break
                if event.is_cancelled:
                    continue
                owner = event.owner
                if owner.held is not None:
                    if not owner.is_gone:
                        owner.held.append(event)
                    continue
                if owner is not running:
                    asyncio._set_running_loop(owner)
                    running = owner
                self.events_run += 1
                self.now_s += CALLBACK_S
                try:
                    event.run()
                except Died:
                    assert owner.is_gone, "a process died without being told"
                except Exception as error:  # noqa: BLE001 - the top of every simulated process: told to the monitors
                    owner.call_exception_handler({"message": "in a callback", "exception": error})
                if owner.ahead_s:
                    owner.stall()
        finally:
            asyncio._set_running_loop(before)
        if not self.is_halted:
            self.now_s = max(self.now_s, true_s)

    def shift(self, owner: NodeLoop) -> None:
        """The owner's clock runs at another rate from now on: its timers fire when it will say so."""
        self._timed[:] = [
            (
                max(self.now_s, owner.clock.true_s(event.when())) if event.owner is owner and event.when() else true_s,
                order,
                event,
            )
            for true_s, order, event in self._timed
        ]
        heapq.heapify(self._timed)


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on where it lies in memory."""

    _serials = itertools.count()

    def __init__(self, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> None:
        self.serial = next(SimTask._serials)
        super().__init__(coro, **kwargs)

    def __hash__(self) -> int:
        return self.serial


if TYPE_CHECKING:
    # What asyncio itself does with a loop is all there is below; the rest of the interface stays unimplemented.
    Loop = asyncio.BaseEventLoop
else:
    Loop = asyncio.AbstractEventLoop


class NodeLoop(Loop):
    """The event loop of one process, until it is gone."""

    def __init__(self, queue: EventQueue, clock: NodeClock, name: str) -> None:
        self.queue = queue
        self.clock = clock
        self.name = name
        self.is_gone = False
        self.held: deque[Event] | None = None
        """While the process stands still: what has become due meanwhile, in order."""
        self.ahead_s = 0.0
        """How long the running callback has blocked so far: to this process so much time has passed."""
        self.thread_delay: Callable[[], tuple[float, bool]] = lambda: (0.0001, False)
        """How long the next piece of a thread's work takes, and whether it is done at its beginning."""
        self.in_thread = False
        self.splits: Callable[[], bool] = lambda: False
        """Whether the next piece of a thread's work stands still at its syncs, while the loop goes on."""
        self.helper: Helper | None = None
        """The piece that stands still now."""
        self._helper_future: asyncio.Future[Any] = asyncio.Future(loop=self)
        self._free_executor = 0
        self._holds = 0
        self._busy_until: dict[int, float] = {}
        self._tasks: list[SimTask] = []
        self._tasks_room = TASKS_KEPT

    # Standing still and vanishing

    def hold(self) -> None:
        """Run nothing until ``release``; holds add up."""
        self._holds += 1
        if self.held is None:
            self.held = deque()

    def release(self) -> None:
        self._holds -= 1
        if self._holds == 0 and self.held is not None and not self.is_gone:
            held, self.held = self.held, None
            self.queue.ready.extend(held)

    def stall(self) -> None:
        """The callback that just ended blocked: everything else waits for as long."""
        blocked_s, self.ahead_s = self.ahead_s, 0.0
        if self.is_gone:
            return
        self.hold()
        free = Event(WAKER, self.release, (), None, 0.0)
        self.queue.at(self.queue.now_s + blocked_s, free)

    def vanish(self) -> None:
        """Nothing of this process ever runs again."""
        self.is_gone = True
        self.held = deque()

    def bury(self) -> None:
        """Close what the process had open; its disk and network take nothing any more. Not from inside it."""
        if self.helper is not None:
            self.helper.abandon()
            self.helper = None
        while self._tasks:
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    _close(task.get_coro())

    # What asyncio asks of a loop

    def time(self) -> float:
        return self.clock.monotonic_s()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Event:
        event = Event(self, callback, args, context, 0.0)
        self.queue.ready.append(event)
        return event

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Event:
        return self.call_at(self.clock.monotonic_s() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> Event:
        event = Event(self, callback, args, context, when)
        self.queue.at(self.clock.true_s(when), event)
        return event

    def deliver(self, true_s: float, callback: Callable[..., Any], *args: Any) -> Event:
        """Something from outside reaches this process at ``true_s``."""
        event = Event(self, callback, args, None, 0.0)
        self.queue.at(true_s, event)
        return event

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> SimTask:
        task = SimTask(coro, loop=self, name=name, context=context)
        tasks = self._tasks
        tasks.append(task)
        if len(tasks) > self._tasks_room:
            self._tasks = [each for each in tasks if not each.done()]
            self._tasks_room = max(TASKS_KEPT, 2 * len(self._tasks))
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Pieces of one executor's work follow each other. A piece is done at one instant, at its end or beginning."""
        future = self.create_future()
        now_s = self.queue.now_s + self.ahead_s
        begin_s = max(now_s, self._busy_until.get(id(executor), 0.0))
        takes_s, is_early = self.thread_delay()
        if self.helper is None and begin_s <= now_s and self.splits():
            self._split(func, args, future)
            self._busy_until[id(executor)] = math.inf
            self._free_executor = id(executor)
            return future
        end_s = self._busy_until[id(executor)] = begin_s + takes_s
        self.deliver(begin_s if is_early else end_s, self._work, func, args, future, end_s)
        return future

    def _split(self, func: Callable[..., Any], args: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        """Do it up to its first sync now, and the rest in its own time."""
        self.helper = Helper(func, args)
        self._helper_future = future
        self.deliver(self.queue.now_s, self._go_on)

    def _go_on(self) -> None:
        """Let the helper run to its next sync, or its end."""
        helper = self.helper
        if helper is None:
            return
        self._run_helper(helper)
        if not helper.is_done:
            self.deliver(self.queue.now_s + self.thread_delay()[0], self._go_on)

    def finish_helper(self) -> None:
        """The loop waits for what the helper holds: it stands still until the helper is done."""
        helper = self.helper
        assert helper is not None, "the lock is held, and no helper runs"
        while not helper.is_done:
            self.ahead_s += self.thread_delay()[0]
            self._run_helper(helper)

    def _run_helper(self, helper: Helper) -> None:
        before, RUNNING[0] = RUNNING[0], self
        self.in_thread = True
        try:
            helper.go_on()
        finally:
            self.in_thread = False
            RUNNING[0] = before
        if not helper.is_done:
            return
        self.helper = None
        self._busy_until[self._free_executor] = self.queue.now_s
        error = helper.error
        if isinstance(error, Died):
            raise error
        assert error is None or isinstance(error, Exception), error
        self.deliver(self.queue.now_s, self._answer, self._helper_future, helper.result, error)

    def _work(self, func: Callable[..., Any], args: tuple[Any, ...], future: asyncio.Future[Any], end_s: float) -> None:
        self.in_thread = True
        try:
            result, error = func(*args), None
        except Exception as fault:  # noqa: BLE001 - carried to whoever waits for the thread, by set_exception below
            result, error = None, fault
        finally:
            self.in_thread = False
        self.deliver(end_s, self._answer, future, result, error)

    def _answer(self, future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self.is_gone or isinstance(error, Died) or self.queue.on_fault is None:
            return
        told = error if error is not None else RuntimeError(str(context.get("message")))
        self.queue.on_fault(self, told, str(context.get("message")))

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: Any) -> None:
        """Cancelled events are passed over when their time comes."""


def _close(coro: Any) -> None:
    for _ in range(CLOSE_TRIES):
        try:
            coro.close()
            return
        except BaseException as end:
            if isinstance(end, KeyboardInterrupt):
                raise


class _Waker(NodeLoop):
    """Whose events always run: faults, and processes that wake up."""


WAKER: NodeLoop = _Waker.__new__(_Waker)
WAKER.held = None
WAKER.ahead_s = 0.0
WAKER.is_gone = False
WAKER.name = "world"
