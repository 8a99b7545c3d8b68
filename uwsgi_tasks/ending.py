"""The end of a process, outside of uWSGI: what is done then, and when."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)

_INTERRUPTIONS = (KeyboardInterrupt, SystemExit)
"""What a handler of a signal raises in the main thread, to end the process."""


class Ending:
    """The end of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._has_begun = False
        self._actions: list[Callable[[], None]] = []
        self._firsts: list[Callable[[], None]] = []
        self._hurries: list[Callable[[], None]] = []
        self._go: SimpleQueue[None] = SimpleQueue()
        # Not by `join`: interrupted in it, Python 3.11 takes the thread to be dead (bpo-46726).
        self._is_done = False
        self._done: SimpleQueue[None] = SimpleQueue()
        # Here no handler of a signal interrupts them. Started now: in the end Python starts none.
        self._actor = threading.Thread(target=self._act, name="uwsgi_tasks last", daemon=True)

    def start(self) -> None:
        """Have this called when the process ends. Raises RuntimeError if it does so already."""
        _before_the_pools(self._begin)
        # Where an interrupt has kept Python from waiting for the thread.
        atexit.register(self._cut)
        self._actor.start()
        # Python waits for it; a thread that is a daemon may have started us, and hand that on.
        threading.Thread(target=self._wait, name="uwsgi_tasks exit", daemon=False).start()

    def add(
        self,
        action: Callable[[], None],
        first: Callable[[], None] | None,
        hurry: Callable[[], None] | None,
    ) -> None:
        """Have these called as `Server.at_exit` says. Raises RuntimeError if it is too late."""
        if self._has_begun:
            raise RuntimeError("this process has begun to end")
        self._actions.append(action)
        if first is not None:
            self._firsts.append(first)
        if hurry is not None:
            self._hurries.append(hurry)

    def _begin(self) -> None:
        """Call, in the main thread, what comes first."""
        if self.pid != os.getpid():
            return
        try:
            self._has_begun = True
            # What is registered last is called first: before the fixtures are closed.
            atexit.register(self._cut)
            _call(self._firsts)
        except _INTERRUPTIONS:
            self._cut()

    def _cut(self) -> None:
        """Wait for the actions, which hurry now, however often that is interrupted."""
        is_started = self._actor.ident is not None
        while is_started and self.pid == os.getpid() and not self._is_done:
            with contextlib.suppress(*_INTERRUPTIONS):
                _call(self._hurries)
                self._go.put(None)
                self._done.get()

    def _wait(self) -> None:
        threading.main_thread().join()
        # Each of them may have started others.
        while others := _others():
            for one in others:
                one.join()
        self._go.put(None)
        if not self._is_done:
            self._done.get()

    def _act(self) -> None:
        self._go.get()
        self._has_begun = True
        try:
            # Here SystemExit is no interruption, but an error as any other.
            _call(self._actions, BaseException)
        finally:
            self._is_done = True
            # For `_wait` and `_cut`, each of which looks first.
            self._done.put(None)
            self._done.put(None)


_endings: dict[int, Ending] = {}
"""The end of each process, by its number: one fork may have another's."""


def ending_of_this_process() -> Ending:
    """Return the end of this process. Raises RuntimeError if that is there already."""
    own = Ending()
    found = _endings.setdefault(own.pid, own)
    if found is own:
        try:
            own.start()
        except RuntimeError:
            del _endings[own.pid]
            raise
    return found


def _call(actions: list[Callable[[], None]], errors: type[BaseException] = Exception) -> None:
    for action in reversed(actions):
        try:
            action()
        # One that fails must not keep the others from what they have to save.
        except errors:
            log.exception("this process could not be ended as it should")


def _others() -> list[threading.Thread]:
    """Return the threads that run, and that Python waits for."""
    mine = threading.current_thread()
    return [
        one
        for one in threading.enumerate()
        # The main thread stays in the list.
        if one is not mine and not one.daemon and one.is_alive()
    ]


def _before_the_pools(action: Callable[[], None]) -> None:
    """Have *action* called when the main thread has come to its end, before all else."""
    # Imported, so that it comes first in the list, whose end is called first. Not public, and
    # there since 3.9: without it, a task that uses a pool while its process ends would fail.
    importlib.import_module("concurrent.futures.thread")
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(action)
