"""An end for what runs in a thread and takes too long, or is no longer wanted."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
import time
from queue import Empty, SimpleQueue

from uwsgi_tasks.errors import TaskCancelled, TaskTimeout

_INSISTENCE = 5.0
"""Seconds after which it is interrupted again, having caught that and gone on."""
_SOON = 0.01
_NEVER = float("inf")


class _Region:
    """What one thread runs, and may be interrupted in.

    There is one token, once it has begun: who takes it out decides. The thread takes it when it
    leaves; who interrupts it, before; then the thread leaves as one that may be interrupted at any
    moment.
    """

    __slots__ = ("deadline", "has_left", "is_interrupted", "seconds", "tokens")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.deadline = _NEVER if seconds is None else time.monotonic() + seconds
        self.tokens: list[int] = []
        # Both under the lock; of a thread that was never interrupted its token alone counts.
        self.is_interrupted = False
        self.has_left = False


class _TimeIsOver(TaskTimeout):
    """Raised in the thread, which makes it with no arguments."""

    def __init__(self) -> None:
        region = _regions.get(threading.get_ident())
        seconds = None if region is None else region.seconds
        super().__init__(f"it took longer than its timeout of {seconds or 0:g} s")

    def __reduce__(self) -> tuple[type[TaskTimeout], tuple[object, ...]]:
        return TaskTimeout, self.args


class _Killed(TaskCancelled):
    """Raised in the thread, which makes it with no arguments."""

    def __init__(self) -> None:
        super().__init__("it was cancelled while it ran, with kill=True")

    def __reduce__(self) -> tuple[type[TaskCancelled], tuple[object, ...]]:
        return TaskCancelled, self.args


for _kind, _plain in ((_TimeIsOver, TaskTimeout), (_Killed, TaskCancelled)):
    # In a log and in a store they are what they stand for.
    _kind.__name__ = _kind.__qualname__ = _plain.__name__
    _kind.__module__ = _plain.__module__

_NUDGE = signal.SIGURG
"""Nearly nobody uses it, and where nobody listens it does nothing."""
_regions: dict[int, _Region] = {}
"""By the thread's ident."""
_interrupting = threading.Lock()


def _raise_in(ident: int, region: _Region, kind: type[BaseException]) -> bool:
    """Have *kind* raised in a thread, between two steps of Python code; False if it has left.

    A call of C code, such as a wait for the network, ends first; but for those of the main thread,
    if it has called `listen`. Also raised in one that has caught it before, and goes on.
    """
    thread, raised = ctypes.c_ulong(ident), ctypes.py_object(kind)
    is_nudged = ident == threading.main_thread().ident and _listens()
    with _interrupting:
        if not region.is_interrupted:
            try:
                region.tokens.pop()
            except IndexError:
                return False
            region.is_interrupted = True
        if region.has_left:
            return False
        # No call of Python code from here on: until it is raised, Python 3.11 makes none in any
        # other thread that is traced, as for coverage or a debugger.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, raised)
        if is_nudged:
            # A signal ends what the main thread waits for; its handler is where this is raised.
            signal.pthread_kill(ident, _NUDGE)
    return True


def _nudged(_number: int, _frame: object) -> None:
    """Do nothing: that it is called at all is what is wanted."""


def _listens() -> bool:
    # By its names: of a module that was imported anew it would be another one.
    handler = signal.getsignal(_NUDGE)
    names = getattr(handler, "__module__", ""), getattr(handler, "__name__", "")
    return names == (__name__, _nudged.__name__)


def listen() -> None:
    """Let the main thread, which calls this, be interrupted also while it waits for something."""
    if not callable(signal.getsignal(_NUDGE)):
        signal.signal(_NUDGE, _nudged)


class Interruptible:
    """Lets what runs inside be interrupted: after so many *seconds*, and by `kill`.

    It raises TaskTimeout, or TaskCancelled. Of regions within one another the innermost counts.
    """

    __slots__ = ("_ident", "_outer", "_region", "_seconds")

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._region: _Region | None = None

    def __enter__(self) -> None:
        ident = self._ident = threading.get_ident()
        self._outer = _regions.get(ident)
        region = self._region = _regions[ident] = _Region(self._seconds)
        if self._seconds is not None:
            _clock.look(region.deadline)
        region.tokens.append(1)

    def __exit__(self, *raised: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Let nothing be raised from now on, also where an interrupt has kept us from leaving.

        That may come as the first thing of the call that would do so: whoever catches it calls
        this.
        """
        region = self._region
        if region is None:
            return
        try:
            # Nearly always nobody has taken it.
            region.tokens.pop()
        except IndexError:
            _leave(region)
        outer = self._outer
        if outer is None:
            _regions.pop(self._ident, None)
        else:
            _regions[self._ident] = outer
            if outer.seconds is not None:
                # Nobody has looked at it meanwhile.
                _clock.look(outer.deadline)
        self._region = None


def _leave(region: _Region) -> None:
    """Let what is on its way arrive here, and not in what comes afterwards."""
    has_come = False
    while not has_come:
        with contextlib.suppress(_TimeIsOver, _Killed):
            with _interrupting:
                # From now on nobody sends another one.
                region.has_left = True
            # At the turn of a loop, at the latest, Python raises what was sent.
            for _ in range(3):
                has_come = region.has_left


def running(ident: int) -> object:
    """Return what stands for the thing that the thread of this ident runs; None if nothing does."""
    return _regions.get(ident)


def kill(ident: int, thing: object = None) -> bool:
    """Raise TaskCancelled in the thread of this ident, if it runs something; say whether.

    If it runs this *thing*, where one is given, and not the next.
    """
    region = _regions.get(ident)
    if region is None or thing not in {None, region}:
        return False
    return _raise_in(ident, region, _Killed)


class _Clock:
    """Interrupts those whose time is over, from a thread of its own.

    Those who call it may be interrupted at any moment: they hold no lock that is Python code.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._looks: SimpleQueue[None] = SimpleQueue()
        self._next = _NEVER
        """When the thread looks again, at the latest."""

    def look(self, deadline: float) -> None:
        """Look at *deadline*, at the latest; it is that of a region by now."""
        if self._thread is None or not self._thread.is_alive():
            self._start()
        if deadline < self._next:
            self._next = deadline
            self._looks.put(None)

    def _start(self) -> None:
        with self._starting:
            # Of a process that was forked, nothing is left but what it had noted.
            if self._thread is None or not self._thread.is_alive():
                looks = self._looks = SimpleQueue()
                self._next = _NEVER
                self._thread = threading.Thread(
                    target=self._work, args=(looks,), name="uwsgi_tasks time limits", daemon=True
                )
                self._thread.start()

    def _work(self, looks: SimpleQueue[None]) -> None:
        first = _NEVER
        while True:
            with contextlib.suppress(Empty):
                looks.get(timeout=None if first == _NEVER else max(0.0, first - time.monotonic()))
            # In this order: a deadline that comes from now on is seen, or has us look again.
            self._next = _NEVER
            self._next = first = self._interrupt()

    @staticmethod
    def _interrupt() -> float:
        """Interrupt whose time is over; return when the next one's is."""
        now, first = time.monotonic(), _NEVER
        for ident, region in list(_regions.items()):
            if region.deadline <= now:
                is_sent = _raise_in(ident, region, _TimeIsOver)
                # Else it is about to begin, or has just left.
                region.deadline = now + (_INSISTENCE if is_sent else _SOON)
            first = min(first, region.deadline)
        return first


_clock = _Clock()
