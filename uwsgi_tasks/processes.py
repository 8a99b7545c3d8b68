"""Processes that do the same work: those that end are replaced, until all are told to."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

log = logging.getLogger(__name__)

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What tells a worker to end."""
RELOAD = signal.SIGUSR1
"""What tells the parent to start all of it anew."""
_PASSED_ON = signal.SIGUSR2
_HEARD = {*ENDS, RELOAD, _PASSED_ON, signal.SIGCHLD}
_KILLED = 1
"""What we end with when we are told twice."""
_BRIEF = 2.0
"""Seconds: a process that lives no longer is replaced with more and more patience."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_PR_SET_PDEATHSIG = 1
_FRESH = 5.0
"""Seconds for which a sign of life holds."""
_WAIT = 3600.0


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold what tells us something, in this thread and in those that it starts meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
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
        self._signs = mmap.mmap(-1, 8 * number)
        self._is_ending = False
        self.is_to_reload = False
        """Was this process told to start anew?"""

    def run(self) -> int:
        """Start them, and replace those that end, until we are told to; return our exit code.

        To be called where `signals_held` holds them.
        """
        deadline = float("inf")
        while True:
            self._reap()
            if self._is_ending and not any(child.pid for child in self._children):
                return 0
            self._start_due()
            got = self._next_signal(deadline)
            if got is None:
                if time.monotonic() > deadline:
                    self._tell(signal.SIGKILL)
            elif got == _PASSED_ON:
                self._tell(_PASSED_ON)
            elif got in (*ENDS, RELOAD):
                if self._is_ending and got != RELOAD:
                    self._tell(signal.SIGKILL)
                    return _KILLED
                self.is_to_reload = self.is_to_reload or got == RELOAD
                self._is_ending = True
                deadline = time.monotonic() + self._grace
                self._tell(signal.SIGTERM)

    @property
    def are_well(self) -> bool:
        """Has each of them given a sign of life of late?"""
        signs = memoryview(self._signs).cast("d")
        return all(time.monotonic() - sign < _FRESH for sign in signs)

    def _next_signal(self, deadline: float) -> int | None:
        dues = [child.due for child in self._children if not child.pid and not self._is_ending]
        end = min([deadline, *dues])
        left = max(0.0, min(end - time.monotonic(), _WAIT))
        found = signal.sigtimedwait(_HEARD, left)
        return None if found is None else found.si_signo

    def _tell(self, number: int) -> None:
        for child in self._children:
            if child.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    def _start_due(self) -> None:
        for child in self._children:
            if not (child.pid or self._is_ending) and time.monotonic() >= child.due:
                self._start(child)

    def _start(self, child: _Child) -> None:
        parent = os.getpid()
        child.started_at = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            child.pid = pid
            return
        code = _KILLED
        try:
            _die_with(parent)
            # Ctrl-C is for the parent, which tells us.
            os.setpgid(0, 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
            signal.signal(RELOAD, signal.SIG_IGN)
            signs = memoryview(self._signs).cast("d")

            def is_well() -> None:
                signs[child.number] = time.monotonic()

            code = self._work(is_well)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else _KILLED
        except BaseException:
            log.exception("a worker's process failed")
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            # The parent's own end is not ours.
            os._exit(code)

    def _reap(self) -> None:
        for child, status in self._ended():
            lived = time.monotonic() - child.started_at
            code = os.waitstatus_to_exitcode(status)
            if not self._is_ending:
                log.log(
                    logging.INFO if code >= 0 else logging.WARNING,
                    "worker process %d has ended (%s); another one takes its place",
                    child.pid,
                    f"by signal {-code}" if code < 0 else f"code {code}",
                )
            child.pause = min(max(child.pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
            if lived > _BRIEF:
                child.pause = 0.0
            child.due = time.monotonic() + child.pause
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
