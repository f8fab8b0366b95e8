"""Work for a thread that stops in the middle: at each sync the thread waits and the event loop goes on.

A real thread does it, but never at the same time as anything else: it runs until it is done or comes to a
sync, then the simulation goes on, and when the sync is over the thread runs again. So what the loop does
while a thread syncs is explored, and a seed still repeats itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chaos.sim.died import Died

if TYPE_CHECKING:
    from chaos.sim.loop import NodeLoop


class Helper:
    """One piece of work in a thread of its own."""

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._func = func
        self._args = args
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._is_started = False
        self._is_abandoned = False
        self.is_done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="sim-helper")

    def go_on(self) -> None:
        """Let it run until it waits again or is done."""
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()

    def is_current(self) -> bool:
        """Whether it is this that runs now, and not the loop."""
        return threading.current_thread() is self._thread

    def wait(self) -> None:
        """Called in the thread: stand still until told to go on. Raises Died when the process is gone."""
        if not self._is_abandoned:
            self._back.release()
            self._go.acquire()
        if self._is_abandoned:
            raise Died

    def abandon(self) -> None:
        """The process is gone: end the thread."""
        if not self._is_started:
            self.is_done = True
        if not self.is_done:
            self._is_abandoned = True
            self.go_on()
            self._thread.join()

    def _run(self) -> None:
        try:
            self.result = self._func(*self._args)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, by set_exception or as the death it is
            self.error = error
        self.is_done = True
        self._back.release()


class HelperLock:
    """``threading.Lock`` for code that runs in helpers and on the loop: a loop that waits lets the helper finish."""

    def __init__(self) -> None:
        self._is_held = False
        self._holder: NodeLoop | None = None

    def __enter__(self) -> None:
        if self._is_held:
            assert self._holder is not None, "a lock is taken twice by one caller"
            self._holder.finish_helper()
        assert not self._is_held, "whoever held the lock is done and holds it still"
        self._is_held = True
        self._holder = RUNNING[0]

    def __exit__(self, *_: object) -> None:
        self._is_held = False
        self._holder = None


RUNNING: list[NodeLoop | None] = [None]
"""The loop whose helper runs now."""
