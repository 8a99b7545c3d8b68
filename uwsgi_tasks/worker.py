"""A worker: the process that takes jobs from Redis; a program, or a mule of uWSGI."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NoReturn

from uwsgi_tasks import default_app
from uwsgi_tasks.app import App
from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.executors import Consuming
from uwsgi_tasks.health import answer
from uwsgi_tasks.hearing import Ears
from uwsgi_tasks.log_lines import one_line
from uwsgi_tasks.model import TaskExecutor
from uwsgi_tasks.processes import AGAIN, ENDS, STACKS, Processes, end, ends, flush, hear, hold
from uwsgi_tasks.settings import parse_queues

log = logging.getLogger(__name__)

_KILLED = 1
"""What a process ends with that was told twice."""
_SECOND_LOOK = 5.0
"""Seconds that a process has beyond its grace to say what it gives back."""
_AT_ONCE = 0.001
"""Seconds: none at all would be never."""
_FOREVER = 3600.0
_GLANCE = 200
"""Milliseconds for which one look for changed files takes."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a worker is run."""

    consuming: Consuming
    processes: int = 1
    reload: Iterator[object] | None = None
    """Yields when the worker is to start anew."""
    health: tuple[str, int] | None = None
    """Where it answers whether it is well: host and port."""
    executor: str = TaskExecutor.REDIS


# ---- as a mule --------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run jobs from Redis in a mule: ``mule = uwsgi_tasks.worker:main``.

    The settings ``queues`` and ``threads`` say which, and how many at a time. What runs when the
    server stops or reloads has as long as its ``mule-reload-mercy``. With lazy-apps no function
    can be named there, at which uWSGI crashes, but a file that imports the tasks and calls this.
    """
    app = default_app
    app.server.take_no_messages()
    try:
        work = _mules_work(app)
    except ConfigurationError as error:
        log.critical("this mule runs no jobs: %s", one_line(error))
        # uWSGI would start it again each second, to the same end.
        while True:
            time.sleep(_FOREVER)
    place = app.executor(TaskExecutor.REDIS).place
    log.info("this mule serves %s of %s", app.settings.queues, place)
    # uWSGI kills it when it takes too long; and Ctrl-C comes twice: from the terminal, and from it.
    # All that it is told by is uWSGI's, though Python may have found it ignored, as under nohup.
    work.run(ENDS, alone=False)
    sys.exit(0)


def _mules_work(app: App) -> _Work:
    if not app.tasks:
        raise ConfigurationError(
            "no task is declared: import their modules where uWSGI loads the application, before "
            "it forks; with lazy-apps, in a file of your own that then calls this function, as "
            "'mule = worker.py'"
        )
    settings = app.settings
    consuming = Consuming(
        queues=parse_queues(settings.queues),
        threads=settings.threads,
        grace=min(app.server.mercy, _FOREVER),
    )
    return _Work(app, Plan(consuming=consuming))


# ---- as a program -----------------------------------------------------------------------------


def end_when_told() -> None:
    """Have this process end with 0 when it is told to, for as long as it does not work yet."""
    hear(ends(), end)


def run(app: App, plan: Plan) -> int:
    """Run a worker until it is told to end; return the code to exit with.

    Raises ConfigurationError.
    """
    here = Path.cwd()
    if plan.processes > 1 or plan.reload:
        return _run_several(app, plan, here)
    return _run_alone(app, plan, here)


def _run_alone(app: App, plan: Plan, here: Path) -> int:
    def abandon(code: int) -> NoReturn:
        if code and not work.is_told:
            start_anew(here)
        os._exit(0 if work.is_told else code)

    # Nobody else starts another process.
    consuming = replace(plan.consuming, abandon=abandon)
    work = _Work(app, replace(plan, consuming=consuming))
    _answer(plan, lambda: work.is_well)
    work.run(ends(), alone=True)
    if work.is_recycled:
        start_anew(here)
    return 0


def _run_several(app: App, plan: Plan, here: Path) -> int:
    """Have forks of this process work."""

    def work(is_well: Callable[[], None]) -> int:
        own = _Work(app, plan)
        if plan.health:
            own.tell_each_second(is_well)
        own.run(ends(), alone=False)
        return 0

    if "django.db" in sys.modules:
        # What importing has opened cannot be used by several.
        sys.modules["django.db"].connections.close_all()
    herd = Processes(plan.processes, work, plan.consuming.grace + _SECOND_LOOK)
    if plan.reload:
        _reload_on(plan.reload, herd.reload)
    _answer(plan, lambda: herd.are_well)
    code = herd.run()
    if herd.is_to_reload:
        start_anew(here)
    return code


def _answer(plan: Plan, is_well: Callable[[], bool]) -> None:
    if plan.health is not None:
        answer(plan.health, is_well, {"processes": plan.processes, "pid": os.getpid()})


def start_anew(folder: Path) -> NoReturn:
    """Become a new process, under the same number, that begins in *folder*; for any thread."""
    logging.shutdown()
    flush()
    os.chdir(folder)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  itself


def changes(folders: Sequence[Path]) -> Iterator[object]:
    """Return what yields when Python files in *folders* change, from now on.

    Raises ConfigurationError.
    """
    try:
        from watchfiles import PythonFilter, watch  # noqa: PLC0415  in development alone
    except ImportError as error:
        raise ConfigurationError(
            "--reload needs a package: pip install 'uwsgi_tasks[reload]'"
        ) from error
    seen = watch(
        *folders,
        watch_filter=PythonFilter(),
        rust_timeout=_GLANCE,
        yield_on_timeout=True,
        raise_interrupt=False,
    )
    # It looks when it is first asked; and swallows what the handler of a signal raises.
    first = next(seen, None)
    end_when_told()
    return filter(None, chain([first], seen))


def _reload_on(changed: Iterator[object], reload: Callable[[], None]) -> None:
    def look() -> None:
        next(changed)
        reload()

    threading.Thread(target=look, name="uwsgi_tasks reload", daemon=True).start()


# ---- one process ------------------------------------------------------------------------------


def _trim() -> None:
    """Give the system back what importing has used and freed: a megabyte, or two."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class _Work:
    """What one process does: it runs jobs until it is told to end, or has run enough."""

    def __init__(self, app: App, plan: Plan) -> None:
        self._consumer = app.consume(plan.consuming, plan.executor)
        self._grace = plan.consuming.grace
        self._is_alone = False
        self._told_at: float | None = None
        """When somebody has told it to end first."""
        self._heard_at: float | None = None
        """When that signal was counted: later, where its thread had to wait for its turn."""

    @property
    def is_told(self) -> bool:
        """Was it told to end?"""
        return self._told_at is not None

    @property
    def is_well(self) -> bool:
        """Is it about its work?"""
        return self._consumer.is_healthy

    @property
    def is_recycled(self) -> bool:
        """Is another process to take its place?"""
        return self._consumer.is_recycled and not self.is_told

    def run(self, numbers: Sequence[signal.Signals], *, alone: bool) -> None:
        """Run jobs until one of these signals comes; for the main thread.

        *alone*: nobody else sees to it that this process ends when it is told so twice, or takes
        too long.
        """
        self._is_alone = alone
        Ears(numbers, self._begin_to_end, self._heed).open()
        _trim()
        # Where standard error is no file, nobody could read it.
        with contextlib.suppress(ValueError, OSError, AttributeError):
            faulthandler.register(STACKS, all_threads=True)
        self._consumer.run()
        if not self.is_told:
            # Nothing runs here any more, and another one is to take our place.
            hold(numbers)

    def _begin_to_end(self) -> None:
        """Take no more; for the main thread, or the one that hears signals while that is busy."""
        if self._told_at is None:
            self._told_at = time.monotonic()
            self._consumer.stop()
        if not self._is_alone:
            return
        if threading.current_thread() is threading.main_thread():
            # By its own handler it would wait for a Redis that does not answer.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        left = self._told_at + self._grace + _SECOND_LOOK - time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(left, _AT_ONCE))

    def _heed(self) -> None:
        """Count a signal: the second one is the end."""
        now = time.monotonic()
        if self._heard_at is None:
            self._heard_at = now
        elif self._is_alone and now > self._heard_at + AGAIN:
            # Leases decide what becomes of what runs.
            os._exit(_KILLED)

    def tell_each_second(self, is_well: Callable[[], None]) -> None:
        """Call *is_well* for as long as that is so."""

        def tell() -> None:
            while True:
                if self.is_well:
                    is_well()
                time.sleep(1)

        threading.Thread(target=tell, name="uwsgi_tasks health", daemon=True).start()
