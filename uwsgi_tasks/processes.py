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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

RELOAD = signal.SIGUSR1
"""What tells the parent to start all of it anew."""
STACKS = signal.SIGUSR2
"""What has a process show what it is doing."""
AGAIN = 0.5
"""Seconds within which a signal that comes twice is one: a shell, or a service manager, tells a
whole group of processes, and those among them that pass it on tell each other."""
_KILLED = 1
"""What we end with when we are told twice, or had to kill."""
_BRIEF = 2.0
"""Seconds: a process that fails sooner is replaced with more and more patience."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_PR_SET_PDEATHSIG = 1
_FRESH = 5.0
"""Seconds for which a sign of life holds."""


def ends() -> list[signal.Signals]:
    """Return what tells this process to end; nohup keeps SIGHUP from it."""
    found = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    return [each for each in found if signal.getsignal(each) is not signal.SIG_IGN]


class Ears:
    """Hears signals meanwhile, whichever thread they come to; for the main thread."""

    def __init__(self) -> None:
        self.ends = ends()
        """Those that tell this process to end."""

    def __enter__(self) -> Self:
        self._hears, self._tells = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._tells, warn_on_full_buffer=False)
        for number in self._numbers():
            signal.signal(number, lambda *_: None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.forget()

    def forget(self) -> None:
        """Hear nothing more; what comes from now on does what it does to any process."""
        for number in self._numbers():
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(self._hears)
        os.close(self._tells)

    def _numbers(self) -> list[signal.Signals]:
        return [*self.ends, RELOAD, STACKS, signal.SIGCHLD]

    def wait(self, seconds: float) -> bytes:
        """Return the numbers of the signals that have come; wait for the first of them."""
        select.select([self._hears], [], [], None if seconds == float("inf") else max(0.0, seconds))
        with contextlib.suppress(BlockingIOError):
            return os.read(self._hears, 1000)
        return b""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hear later what comes meanwhile to this thread."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers())
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
        self._told_at: float | None = None
        self._kill_at = float("inf")
        self._code = 0
        self.is_to_reload = False
        """Was this process told to start anew?"""

    def run(self, ears: Ears) -> int:
        """Start them, and replace those that end, until we are told to; return our exit code."""
        while True:
            self._reap()
            if self._is_ending and not any(child.pid for child in self._children):
                return self._code
            if not self._is_ending:
                self._start_due(ears)
            for number in ears.wait(self._next_due() - time.monotonic()):
                if number in ears.ends and self._is_told_again():
                    self._tell(signal.SIGKILL)
                    return _KILLED
                self._heed(number, ears)
            if time.monotonic() >= self._kill_at:
                self._kill_at = float("inf")
                self._code = _KILLED
                self._tell(signal.SIGKILL)

    @property
    def are_well(self) -> bool:
        """Has each of them given a sign of life of late?"""
        return all(time.monotonic() - sign < _FRESH for sign in self._signs)

    @property
    def _is_ending(self) -> bool:
        return self.is_to_reload or self._told_at is not None

    def _is_told_again(self) -> bool:
        return self._told_at is not None and time.monotonic() > self._told_at + AGAIN

    def _heed(self, number: int, ears: Ears) -> None:
        if number == STACKS:
            self._tell(STACKS)
        elif number in ears.ends or number == RELOAD:
            if not self._is_ending:
                self._kill_at = time.monotonic() + self._grace
                self._tell(signal.SIGTERM)
            if number != RELOAD:
                self._told_at = self._told_at or time.monotonic()
            self.is_to_reload = self._told_at is None

    def _next_due(self) -> float:
        dues = [child.due for child in self._children if not (child.pid or self._is_ending)]
        return min([self._kill_at, *dues])

    def _tell(self, number: int) -> None:
        for child in self._children:
            if child.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    def _start_due(self, ears: Ears) -> None:
        for child in self._children:
            if not child.pid and time.monotonic() >= child.due:
                self._start(child, ears)

    def _start(self, child: _Child, ears: Ears) -> None:
        parent = os.getpid()
        child.started_at = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        with ears.held():
            pid = os.fork()
            if not pid:
                self._begin(child.number, parent, ears)
        child.pid = pid

    def _begin(self, number: int, parent: int, ears: Ears) -> None:
        """Do the work of a process that was forked just now, and end it."""
        code = _KILLED
        try:
            # Ctrl-C is for the parent, which tells us.
            os.setpgid(0, 0)
            ears.forget()
            # Not for us: it would end us.
            signal.signal(RELOAD, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            _die_with(parent)

            def is_well() -> None:
                self._signs[number] = time.monotonic()

            code = self._work(is_well)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else _KILLED
        # Whatever it is, it must not run on in a second parent.
        except BaseException:
            log.exception("a worker's process failed")
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            # What the parent does when it ends is not ours to do.
            os._exit(code)

    def _reap(self) -> None:
        for child, status in self._ended():
            now = time.monotonic()
            code = os.waitstatus_to_exitcode(status)
            if not self._is_ending:
                log.log(
                    logging.WARNING if code else logging.INFO,
                    "worker process %d has ended (%s); another one takes its place",
                    child.pid,
                    f"by signal {-code}" if code < 0 else f"code {code}",
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


def _die_with(parent: int) -> None:
    """Have this process told to end when its parent does, however that ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(_KILLED)
