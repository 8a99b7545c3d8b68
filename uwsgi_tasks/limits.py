"""An end for what takes too long, or is no longer wanted: an alarm that raises in the task."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from uwsgi_tasks.errors import TaskCancelled, TaskTimeout

log = logging.getLogger(__name__)

_INSISTENCE = 5.0
"""Seconds after which the alarm is raised again, in a task that caught it and went on."""


class Alarm:
    """What SIGALRM means in this process: a task's time is over, or it is to be killed.

    Python runs the handlers of signals in the main thread, and between two of its own steps:
    a task in another thread, or one inside a call of C code that does not return, goes on.
    """

    def __init__(self) -> None:
        self._seconds: float | None = None
        self._deadline = float("inf")
        self._is_killed: Callable[[], bool] = lambda: False

    def watch(self, is_killed: Callable[[], bool]) -> None:
        """From now on, whenever SIGALRM comes, raise TaskCancelled if *is_killed* says so."""
        self._is_killed = is_killed
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, self._ring)

    @contextlib.contextmanager
    def limit(
        self,
        seconds: float | None,
        is_killed: Callable[[], bool] | None = None,
        interval: float | None = None,
    ) -> Iterator[None]:
        """Raise TaskTimeout in what runs inside after so many *seconds*; None sets no limit.

        With *is_killed*, which is asked each *interval*, TaskCancelled is raised as soon as it
        is true.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        outer = self._seconds, self._deadline, self._is_killed
        rest, repeated = signal.setitimer(signal.ITIMER_REAL, 0)
        began = time.monotonic()
        try:
            before = signal.signal(signal.SIGALRM, self._ring)
        except ValueError:
            # A sub-interpreter, as a worker without 'single-interpreter' may have.
            log.warning("no time limit holds here: this is not the main interpreter")
            yield
            return
        self._seconds, self._is_killed = seconds, is_killed or self._is_killed
        self._deadline = float("inf") if seconds is None else began + seconds
        first = min(one for one in (seconds, interval) if one is not None)
        try:
            signal.setitimer(signal.ITIMER_REAL, first, interval or _INSISTENCE)
            yield
        finally:
            # First, so that an alarm in these lines is none.
            self._deadline, self._is_killed = float("inf"), outer[2]
            signal.setitimer(signal.ITIMER_REAL, 0)
            if before is not None:
                signal.signal(signal.SIGALRM, before)
            self._seconds, self._deadline, self._is_killed = outer
            if rest:
                # Somebody else's: it rings as if we had not been here.
                rest = max(rest - (time.monotonic() - began), 0.001)
                signal.setitimer(signal.ITIMER_REAL, rest, repeated)

    def _ring(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_killed():
            raise TaskCancelled("it was cancelled while it ran, with kill=True")
        # The timer is as exact as the clock by which it is judged; not more.
        if time.monotonic() > self._deadline - _ROUNDING:
            raise TaskTimeout(f"it took longer than its timeout of {self._seconds:g} s")


_ROUNDING = 0.001
alarm = Alarm()
"""A process has one."""
