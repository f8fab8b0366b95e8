"""When a node's log takes its next step: soon after something arrived, or when a deadline has come.

No thread and no fixed tick: what arrives together is dealt with in one step, and an idle node wakes
for its deadlines only.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from ringraft.clock import Clock

TIMER_SLACK_S = 0.0005
"""Deadlines so close together share one waking."""


class Pace:
    """Calls ``step``, with the seconds by which the timer that was due is late."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, step: Callable[[float], None]) -> None:
        self._loop = loop
        self._clock = clock
        self._do_step = step
        self._is_stopped = False
        self._is_step_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        """When the timer is to run, or last ran."""

    def soon(self) -> None:
        """Take a step as soon as what is ready now has run."""
        if not self._is_step_due and not self._is_stopped:
            self._is_step_due = True
            self._loop.call_soon(self._step)

    def wake_at(self, due_s: float) -> None:
        """Take a step at ``due_s`` on the monotonic clock. An early timer costs less than moving it each time."""
        if self._is_stopped:
            return
        if self._timer is not None:
            if self._timer_s <= due_s + TIMER_SLACK_S:
                return
            self._timer.cancel()
        # The library's time-outs fire only after their instant.
        self._timer_s = max(due_s, self._clock.monotonic_s()) + TIMER_SLACK_S
        self._timer = self._loop.call_later(self._timer_s - self._clock.monotonic_s(), self._on_timer)

    def stop(self) -> None:
        """No step is taken any more."""
        self._is_stopped = True
        self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        self._step()

    def _step(self) -> None:
        self._is_step_due = False
        if self._is_stopped:
            return
        late_s = max(0.0, self._clock.monotonic_s() - self._timer_s)
        if late_s > TIMER_SLACK_S:
            # It is told once: the timer is set anew at the end of the step.
            self._disarm()
        self._do_step(late_s)
