"""Processes that do the same work: those that end are replaced, until all are told to."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from uwsgi_tasks.log_lines import one_line

log = logging.getLogger(__name__)

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What tells a process to end."""
AGAIN = 0.5
"""Seconds within which a signal that comes twice is one: a shell, or a service manager, tells a
whole group of processes, and those among them that pass it on tell each other."""
STACKS = signal.SIGUSR2
"""What has a process show what it is doing."""
_RELOAD = 0
"""What we tell ourselves; no signal has this number."""
_KILLED = 1
"""What we end with when we are told twice, or had to kill."""
_BRIEF = 2.0
"""Seconds: a process that fails sooner is replaced with more and more patience."""
_LONGEST_LOOK = 3600.0
"""Seconds between two looks at what is due: a poll takes no more than some weeks."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_PR_SET_PDEATHSIG = 1
_A_SHOW = 0.1
"""Seconds between two processes that show their stacks: they write word by word, into one file."""
_FRESH = 5.0
"""Seconds for which a sign of life holds."""


def ends() -> list[signal.Signals]:
    """Return what tells this program to end; nohup keeps SIGHUP from it."""
    is_kept = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [each for each in ENDS if not (is_kept and each == signal.SIGHUP)]


Handler = Callable[[int, FrameType | None], object] | signal.Handlers


_missed: list[int] = []
"""Signals by which this process should have ended, and has not."""


def hear(numbers: Iterable[signal.Signals], handler: Handler) -> None:
    """Have *handler* called for signals, also those that were held; for the main thread."""
    for number in numbers:
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    while _missed:
        signal.raise_signal(_missed.pop())


def end(number: int, _frame: FrameType | None) -> None:
    """End this process with 0, by raising SystemExit.

    A destructor, or a module that is being imported, may swallow that: then whoever hears signals
    next is told.
    """
    _missed.append(number)
    sys.exit(0)


def hold(numbers: Iterable[signal.Signals]) -> None:
    """Keep signals for the program that this process becomes; for the main thread.

    Where another thread gets one, the process ends: what nobody hears must not be lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)


def flush() -> None:
    """Write what was said, so that neither a fork says it again nor an end keeps it back."""
    for stream in (sys.stdout, sys.stderr):
        # There is none where they were closed, and perhaps nobody who reads it.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


@dataclass
class _Child:
    number: int
    pid: int = 0
    started_at: float = 0.0
    pause: float = 0.0
    due: float = 0.0
    """When it is to be started, if it does not run."""


class Processes:
    """Keeps *number* forks of this process at *work*.

    *work* is called in each of them, with a function by which it says that it is well, about each
    second; it returns the code to exit with. *grace* is how long one may take to end, in seconds.
    """

    def __init__(
        self, number: int, work: Callable[[Callable[[], None]], int], grace: float
    ) -> None:
        self._children = [_Child(each) for each in range(number)]
        self._work, self._grace = work, grace
        # Shared with the forks: of each the time at which it was well.
        self._signs = memoryview(mmap.mmap(-1, 8 * number)).cast("d")
        self._ends = ends()
        # Not by waiting for signals: a thread of somebody else may get them.
        self._hears, self._tells = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._hears, select.POLLIN)
        self._told_at: float | None = None
        self._kill_at = float("inf")
        self._to_show: list[_Child] = []
        self._show_at = float("inf")
        self._code = 0
        self.is_to_reload = False
        """Has it ended in order to start anew?"""

    # ---- from outside -----------------------------------------------------------------------

    def run(self) -> int:
        """Start them, and replace those that end, until we are told to; return our exit code.

        For the main thread.
        """
        signal.set_wakeup_fd(self._tells, warn_on_full_buffer=False)
        hear(self._heeded, _take_note)
        self._keep()
        if self.is_to_reload:
            hold(self._ends)
            self.is_to_reload = not any(number in self._ends for number in self._heard())
        return self._code

    def reload(self) -> None:
        """Have all of them end, and `run` return, so that all is started anew; for any thread."""
        os.write(self._tells, bytes([_RELOAD]))

    @property
    def are_well(self) -> bool:
        """Has each of them given a sign of life of late?"""
        return all(time.monotonic() - sign < _FRESH for sign in self._signs)

    # ---- what we are told -------------------------------------------------------------------

    @property
    def _heeded(self) -> list[signal.Signals]:
        return [*self._ends, STACKS, signal.SIGCHLD]

    @property
    def _is_ending(self) -> bool:
        return self.is_to_reload or self._told_at is not None

    def _keep(self) -> None:
        while True:
            self._reap()
            if self._is_ending and not any(child.pid for child in self._children):
                return
            self._start_due()
            left = self._next_due() - time.monotonic()
            self._poll.poll(max(0.0, min(left, _LONGEST_LOOK) * 1000))
            for number in self._heard():
                self._heed(number)
            if time.monotonic() >= self._show_at:
                self._have_next_show()
            if time.monotonic() >= self._kill_at:
                self._kill()

    def _heard(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._hears, 1000)
        return b""

    def _heed(self, number: int) -> None:
        now = time.monotonic()
        if number == STACKS:
            # Who asks again while they answer is answered once.
            if not self._to_show:
                self._to_show, self._show_at = list(self._children), now
        elif number in self._ends and self._told_at is not None:
            if now > self._told_at + AGAIN:
                self._kill()
        elif number in self._ends or number == _RELOAD:
            if not self._is_ending:
                self._kill_at = now + self._grace
                self._tell(signal.SIGTERM)
            if number != _RELOAD:
                self._told_at = now
            self.is_to_reload = self._told_at is None

    def _kill(self) -> None:
        self._kill_at = float("inf")
        self._code = _KILLED
        self._tell(signal.SIGKILL)

    # ---- the processes ----------------------------------------------------------------------

    def _next_due(self) -> float:
        dues = [child.due for child in self._children if not (child.pid or self._is_ending)]
        return min([self._kill_at, self._show_at, *dues])

    def _tell(self, number: int) -> None:
        for child in self._children:
            _tell(child, number)

    def _have_next_show(self) -> None:
        _tell(self._to_show.pop(0), STACKS)
        self._show_at = time.monotonic() + _A_SHOW if self._to_show else float("inf")

    def _start_due(self) -> None:
        for child in self._children:
            if not (child.pid or self._is_ending) and time.monotonic() >= child.due:
                self._start(child)

    def _start(self, child: _Child) -> None:
        parent = os.getpid()
        child.started_at = time.monotonic()
        flush()
        # What comes to the fork before it has its own handlers must not tell us.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._heeded)
        try:
            child.pid = os.fork()
        except OSError as error:
            log.warning("a worker's process could not be started: %s", one_line(error))
            child.due = time.monotonic() + _LONGEST_PAUSE
        else:
            if not child.pid:
                self._begin(child.number, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _begin(self, number: int, parent: int) -> NoReturn:
        """Do the work of a process that was forked just now, and end it."""
        code = _KILLED
        try:
            # Ctrl-C is for the parent, which tells us.
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            hear([*self._ends, signal.SIGCHLD], signal.SIG_DFL)
            # Until somebody shows what we do: by itself it would end us.
            hear([STACKS], _take_note)
            _die_with(parent)

            def is_well() -> None:
                self._signs[number] = time.monotonic()

            code = self._work(is_well)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else _KILLED
        # Whatever it is: it must not go on as a second parent.
        except BaseException:
            log.exception("a worker's process failed")
        finally:
            logging.shutdown()
            flush()
            # What the parent does when it ends is not ours to do.
            os._exit(code)

    def _reap(self) -> None:
        for child, status in self._ended():
            now = time.monotonic()
            code = os.waitstatus_to_exitcode(status)
            if code or not self._is_ending:
                log.log(
                    logging.WARNING if code else logging.INFO,
                    "worker process %d has ended (%s)%s",
                    child.pid,
                    f"by signal {-code}" if code < 0 else f"code {code}",
                    "" if self._is_ending else "; another one takes its place",
                )
            child.pause = min(max(child.pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
            # One that has run as much as it may was no failure.
            if code == 0 or now > child.started_at + _BRIEF:
                child.pause = 0.0
            child.due = now + child.pause
            child.pid = 0

    def _ended(self) -> Iterator[tuple[_Child, int]]:
        for child in self._children:
            if child.pid:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    yield child, status


def _tell(child: _Child, number: int) -> None:
    if child.pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)


def _take_note(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: that it came is written down where we read it."""


def _die_with(parent: int) -> None:
    """Have this process told to end when its parent does, however that ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(_KILLED)
