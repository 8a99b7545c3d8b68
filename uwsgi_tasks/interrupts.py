"""An end for what runs in a thread and takes too long, or is no longer wanted."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
import time

from uwsgi_tasks.errors import TaskCancelled, TaskTimeout

_INSISTENCE = 5.0
"""Seconds after which it is interrupted again, having caught that and gone on."""


class _Region:
    """What one thread runs, and may be interrupted in.

    There is one token: who takes it out decides. The thread takes it when it leaves; who
    interrupts it, before; then the thread does not leave before that has arrived.
    """

    __slots__ = ("deadline", "has_arrived", "seconds", "tokens")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.deadline = float("inf") if seconds is None else time.monotonic() + seconds
        self.tokens = [1]
        self.has_arrived = False


class _TimeIsOver(TaskTimeout):
    """Raised in the thread, which makes it with no arguments."""

    def __init__(self) -> None:
        region = _arrived()
        seconds = None if region is None else region.seconds
        super().__init__(f"it took longer than its timeout of {seconds or 0:g} s")

    def __reduce__(self) -> tuple[type[TaskTimeout], tuple[object, ...]]:
        return TaskTimeout, self.args


class _Killed(TaskCancelled):
    """Raised in the thread, which makes it with no arguments."""

    def __init__(self) -> None:
        _arrived()
        super().__init__("it was cancelled while it ran, with kill=True")

    def __reduce__(self) -> tuple[type[TaskCancelled], tuple[object, ...]]:
        return TaskCancelled, self.args


for _kind, _plain in ((_TimeIsOver, TaskTimeout), (_Killed, TaskCancelled)):
    # In a log and in a store they are what they stand for.
    _kind.__name__ = _kind.__qualname__ = _plain.__name__
    _kind.__module__ = _plain.__module__

_regions: dict[int, _Region] = {}
"""By the thread's ident."""


def _arrived() -> _Region | None:
    region = _regions.get(threading.get_ident())
    if region is not None:
        region.has_arrived = True
    return region


def _raise_in(ident: int, region: _Region, kind: type[BaseException]) -> bool:
    """Have *kind* raised in a thread, between two steps of Python code; False if it has left.

    A call of C code, such as a wait for the network, ends first; but for those of the main thread,
    if it has called `listen`.
    """
    try:
        region.tokens.pop()
    except IndexError:
        return False
    region.has_arrived = False
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(kind))
    if ident == threading.main_thread().ident and callable(signal.getsignal(signal.SIGALRM)):
        # There, a signal ends what the thread waits for; its handler is where this is raised.
        signal.pthread_kill(ident, signal.SIGALRM)
    return True


def listen() -> None:
    """Let the main thread, which calls this, be interrupted also while it waits for something."""
    if not callable(signal.getsignal(signal.SIGALRM)):
        signal.signal(signal.SIGALRM, lambda _number, _frame: None)


class Interruptible:
    """Lets what runs inside be interrupted: after so many *seconds*, and by `kill`.

    It raises TaskTimeout, or TaskCancelled. Of regions within one another the innermost counts.
    """

    __slots__ = ("_ident", "_outer", "_region", "_seconds")

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        ident = self._ident = threading.get_ident()
        self._outer = _regions.get(ident)
        region = self._region = _regions[ident] = _Region(self._seconds)
        if self._seconds is not None:
            _clock.look(region.deadline)

    def __exit__(self, *raised: object) -> None:
        try:
            # Nearly always nobody has taken it.
            self._region.tokens.pop()
        except IndexError:
            _wait_for_arrival(self._region)
        finally:
            if self._outer is None:
                del _regions[self._ident]
            else:
                _regions[self._ident] = self._outer


def _wait_for_arrival(region: _Region) -> None:
    """Let what is on its way arrive here, and not in what comes afterwards."""
    with contextlib.suppress(_TimeIsOver, _Killed):
        while not region.has_arrived:
            time.sleep(0.0005)


def kill(ident: int) -> bool:
    """Raise TaskCancelled in the thread of this ident, if it runs something; say whether."""
    region = _regions.get(ident)
    if region is None:
        return False
    if region.has_arrived and not region.tokens:
        # It has caught that, and goes on.
        region.tokens.append(1)
    return _raise_in(ident, region, _Killed)


class _Clock:
    """Interrupts those whose time is over; it has a thread while there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._next = float("inf")

    def look(self, deadline: float) -> None:
        """Look at *deadline*, at the latest."""
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._work, name="uwsgi_tasks time limits", daemon=True
                )
                self._thread.start()
            if deadline < self._next:
                self._next = deadline
                self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while (left := self._next - time.monotonic()) > 0:
                    self._changed.wait(None if left == float("inf") else left)
                self._next = float("inf")
            first = self._interrupt()
            with self._changed:
                self._next = min(self._next, first)

    @staticmethod
    def _interrupt() -> float:
        """Interrupt whose time is over; return when the next one's is."""
        now, first = time.monotonic(), float("inf")
        for ident, region in list(_regions.items()):
            if region.deadline <= now:
                if region.has_arrived and not region.tokens:
                    region.tokens.append(1)
                _raise_in(ident, region, _TimeIsOver)
                region.deadline = now + _INSISTENCE
            first = min(first, region.deadline)
        return first


_clock = _Clock()
