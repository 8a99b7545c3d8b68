"""Timers and crons on uWSGI's signals."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import update_wrapper
from types import CoroutineType
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar

from uwsgi_tasks import log_lines
from uwsgi_tasks.errors import InvalidTask, shown
from uwsgi_tasks.loop import run_coroutine
from uwsgi_tasks.server import Server

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_UNTIL = struct.Struct("<d")
_COUNTER = struct.Struct("<dqd")
"""When a timer was started, how many turns are left, and when the last one was."""
_PERIOD = struct.Struct("<I")
_PERIOD_AT = 64
_PERIODS_AT = 128
_SIZE = 256
_SLACK = 0.5
"""Seconds by which a tick may come early, beside those of a timer with another period."""
_EVERYBODY = {"workers", "active-workers", "mules"}
"""Targets of which each process gets each signal."""
_PERIODS = 8
"""Different periods that one timer may have in the life of a server."""
_FOREVER = float("inf")
_lock = threading.Lock()


def _shared_file() -> int:
    """Return a file without a name, that lives as long as somebody has it open."""
    import tempfile  # noqa: PLC0415  it imports every kind of compression

    with tempfile.TemporaryFile() as file:
        file.truncate(_SIZE)
        # Not number 0, over which uWSGI opens /dev/null in its spoolers.
        return fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)


class SignalTask(ABC, Generic[P, R]):
    """A function that uWSGI calls, with the number of its signal, at certain times.

    Calling it starts it, once for the whole server; ``func`` is the plain function.
    """

    defaults: ClassVar[dict[str, Any]]
    """When it fires, if nothing else is said."""

    def __init__(
        self, func: Callable[P, R], server: Server, absent: Callable[[], None], /, **setup: Any
    ) -> None:
        if not callable(func):
            raise InvalidTask(f"a timer or cron decorates a function, not {func!r}")
        update_wrapper(self, func, updated=())
        self.func = func
        qualname = getattr(func, "__qualname__", None)
        if qualname is None:
            raise InvalidTask(f"{func!r} has no name of its own: wrap it in a function")
        self.name = f"{func.__module__}.{qualname}"
        self._server, self._absent = server, absent
        self._number: int | None = None
        # Shared with all processes that uWSGI forks: any of them may start it.
        self._file = _shared_file()
        self._shared = mmap.mmap(self._file, _SIZE)
        self._setup: dict[str, Any] = {"target": None, "signal": None}
        self._setup.update(self.defaults)
        self.add_setup(**setup)
        self._register()

    def add_setup(self, **setup: Any) -> None:
        """Change when it fires; it holds for the next start. Raises InvalidTask."""
        for name in setup:
            if name not in self._setup:
                raise InvalidTask(
                    f"{self.name}: no setting {name!r}: choose from {', '.join(self._setup)}"
                )
        # uWSGI routes a signal as the master knew it before the fork.
        fixed = {"target", "signal"} & {
            name for name, value in setup.items() if value != self._setup[name]
        }
        if fixed and self._number is not None:
            raise InvalidTask(
                f"{self.name}: {' and '.join(sorted(fixed))} cannot change after the declaration"
            )
        changed = {**self._setup, **setup}
        self.check(changed)
        self._setup = changed

    def check(self, setup: dict[str, Any]) -> None:
        """Raise InvalidTask if *setup* cannot be."""
        if setup["target"] is not None:
            if not isinstance(setup["target"], str):
                raise InvalidTask(f"{self.name}: target= takes a text, not {setup['target']!r}")
            self._server.check_target(setup["target"])

    @property
    def target(self) -> str:
        """Who runs it: what the declaration says, else a mule, else a spooler, else a worker."""
        chosen = self._setup["target"]
        if chosen is not None:
            return str(chosen)
        if self._server.has_plain_mules:
            return "mule"
        return "spooler" if self._server.spoolers else ""

    def _register(self) -> None:
        if not self._server.present:
            return
        self._server.require_master()
        role = self._server.role
        if role == "worker":
            raise InvalidTask(
                f"{self.name} is declared after uWSGI has forked, and the master, who keeps the "
                "time, would never know of it: let the server load its module before that, with "
                "'shared-import = MODULE' where it has lazy-apps, or by importing it in the "
                "module that the server loads"
            )
        if role != "master":
            log.info("%s is declared in a %s: only the master can start it", self.name, role)
            return
        self._number = self._server.register_signal(self.target, self._fire, self._setup["signal"])

    def _fire(self, number: int) -> None:
        if not self.is_turn():
            return
        try:
            value = self.func(number)  # type: ignore[call-arg, arg-type]
            if type(value) is CoroutineType:
                run_coroutine(value)  # type: ignore[arg-type]
        # uWSGI has nobody to tell; the next turn comes all the same.
        except Exception as error:
            log.error(  # noqa: TRY400  the frames are the task's
                "%s failed on signal %d: %s",
                self.name,
                number,
                log_lines.one_line(shown(error)),
                exc_info=log_lines.from_the_task_on(error),
                extra={"task_name": self.name},
            )

    def __call__(self) -> bool:
        """Start it; False if it is running already, or cannot. Raises InvalidTask."""
        if not self._server.present:
            self._absent()
            return False
        if self._number is None:
            log.warning("%s does not start: it was not declared in the master", self.name)
            return False
        with _lock, self._alone():
            now = time.time()
            if _UNTIL.unpack_from(self._shared)[0] > now:
                return False
            self.start(self._number)
            _UNTIL.pack_into(self._shared, 0, now + self.lasts())
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from starting it in the same moment."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def is_turn(self) -> bool:
        """Is the signal that has just come one to act on?"""
        return True

    def lasts(self) -> float:
        """Seconds for which it fires once it has been started."""
        return _FOREVER

    @abstractmethod
    def start(self, number: int) -> None:
        """Have uWSGI raise signal *number*. Raises InvalidTask."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class Timer(SignalTask[P, R]):
    """Fires each *seconds*, for ever or *iterations* times."""

    defaults: ClassVar[dict[str, Any]] = {"seconds": None, "iterations": None}

    _own: tuple[float, int, float] = (0.0, 0, 0.0)

    def check(self, setup: dict[str, Any]) -> None:
        """Refuse what uWSGI would take, and never fire."""
        super().check(setup)
        seconds, iterations = setup["seconds"], setup["iterations"]
        if isinstance(seconds, timedelta):
            seconds = setup["seconds"] = seconds.total_seconds()
        # timer_lazy may learn them later, from add_setup().
        if seconds is not None:
            number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
            if not number or not 1 <= seconds < _FOREVER or seconds != int(seconds):
                raise InvalidTask(
                    f"{self.name}: uWSGI's timers count whole seconds from 1, not {seconds!r}"
                )
            setup["seconds"] = int(seconds)
        if iterations is not None and (
            isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1
        ):
            raise InvalidTask(
                f"{self.name}: iterations= takes a whole number from 1: {iterations!r}"
            )

    def lasts(self) -> float:
        """As long as its iterations take."""
        iterations = self._setup["iterations"]
        # uWSGI begins to count up to a second after it was asked to.
        return _FOREVER if iterations is None else self._setup["seconds"] * iterations + 1.0

    def start(self, number: int) -> None:
        """Add a timer of uWSGI's, if this period has none yet, and set the counter.

        uWSGI never frees a timer, and has 64 of them. So one that has ended goes on ticking, is
        not heeded, and serves again at the next start.
        """
        seconds = self._setup["seconds"]
        if seconds is None:
            raise InvalidTask(f"{self.name}: say how often, with seconds= or add_setup(seconds=…)")
        periods = self._shared[_PERIODS_AT : _PERIODS_AT + 4 * _PERIODS]
        known = struct.unpack(f"<{_PERIODS}I", periods)
        if seconds not in known:
            if 0 not in known:
                raise InvalidTask(f"{self.name}: more than {_PERIODS} periods; declare another")
            self._server.add_timer(number, seconds)
            at = _PERIODS_AT + 4 * known.index(0)
            self._shared[at : at + 4] = struct.pack("<I", seconds)
        turns = -1 if self._setup["iterations"] is None else self._setup["iterations"]
        _COUNTER.pack_into(self._shared, _UNTIL.size, time.time(), turns, 0.0)
        _PERIOD.pack_into(self._shared, _PERIOD_AT, seconds)

    def is_turn(self) -> bool:
        """Is it started, are turns left, and is it time?"""
        with _lock, self._alone():
            started, turns, last = _COUNTER.unpack_from(self._shared, _UNTIL.size)
            (seconds,) = _PERIOD.unpack_from(self._shared, _PERIOD_AT)
            if self.target in _EVERYBODY:
                # Each process counts for itself what all of them hear.
                if self._own[0] != started:
                    self._own = (started, turns, 0.0)
                started, turns, last = self._own
            now = time.time()
            # A timer that served before ticks at moments of its own, and others may tick, too.
            due = max(started, last) + seconds
            if not started or not turns or now < due - _SLACK:
                return False
            # A turn that comes late does not put off the next one.
            after = (started, turns - 1 if turns > 0 else turns, max(due, now - seconds))
            if self.target in _EVERYBODY:
                self._own = after
            else:
                _COUNTER.pack_into(self._shared, _UNTIL.size, *after)
            return True


_RANGES = {
    "minute": (0, 59),
    "hour": (0, 23),
    "day": (1, 31),
    "month": (1, 12),
    "dayweek": (0, 7),
}


class Cron(SignalTask[P, R]):
    """Fires when the time of day agrees; -1 stands for any, -N for every N."""

    defaults: ClassVar[dict[str, Any]] = dict.fromkeys(_RANGES, -1)

    def check(self, setup: dict[str, Any]) -> None:
        """Refuse what would never come."""
        super().check(setup)
        for name, (least, most) in _RANGES.items():
            value = setup[name]
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not (-most <= value < 0 or least <= value <= most):
                raise InvalidTask(
                    f"{self.name}: {name}= is a whole number from {least} to {most}, -1 for any, "
                    f"or -N for every N, not {value!r}"
                )

    def start(self, number: int) -> None:
        """Add a cron of uWSGI's."""
        setup = self._setup
        self._server.add_cron(
            number,
            (setup["minute"], setup["hour"], setup["day"], setup["month"], setup["dayweek"]),
        )
