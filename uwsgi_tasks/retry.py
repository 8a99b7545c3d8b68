"""When to try again."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from uwsgi_tasks.errors import InvalidTask, PredicateFailed, shown
from uwsgi_tasks.times import seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an attempt ended: what ``Retry(until=)`` judges."""

    value: Any = None
    """What the function returned; None if it raised."""
    exception: BaseException | None = None
    """What it raised, if it did."""
    attempt: int = 1
    """The number of the attempt, from 1."""


On = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], object]
Until = Callable[[Outcome], object]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often a task that failed runs again by itself, and how long it waits.

    *attempts* counts all runs, the first included; 0 sets no limit. The first retry follows after
    *delay* seconds, and so does the second; from then on each wait is *backoff* times the one
    before, at most *max_delay*: with a delay of 1 and a backoff of 2, the runs are at 0, 1, 2, 4,
    8, 16 ... seconds. Up to *jitter* seconds, taken at random, are added to each. A wait begins
    when the run has ended. No run is planned for later than *timeout* seconds after the first one
    began.

    *on* says which exceptions are tried again: types, or a function that is given the exception.
    *until* says what success is, in place of "it raised nothing": a function that is given an
    `Outcome`. If either raises, the job has failed.
    """

    attempts: int = 3
    delay: float | timedelta = 0
    backoff: float = 1
    max_delay: float | timedelta | None = None
    jitter: float | timedelta = 0
    timeout: float | timedelta | None = None
    on: On = Exception
    until: Until | None = None

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise InvalidTask(f"Retry(attempts=) must be a whole number, not {self.attempts!r}")
        if self.attempts < 0:
            raise InvalidTask(f"Retry(attempts=) must be 0 (no limit) or more: {self.attempts}")
        if isinstance(self.backoff, bool) or not isinstance(self.backoff, (int, float)):
            raise InvalidTask(f"Retry(backoff=) must be a number, not {self.backoff!r}")
        if not 1 <= self.backoff < float("inf"):
            raise InvalidTask(f"Retry(backoff=) must be 1 or more, not {self.backoff!r}")
        for name in ("delay", "jitter", "max_delay", "timeout"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, seconds(value, f"Retry({name}=)"))
        self._check_predicates()

    def _check_predicates(self) -> None:
        if self.until is not None and not callable(self.until):
            raise InvalidTask(f"Retry(until=) takes a function of the outcome, not {self.until!r}")
        for name in ("on", "until"):
            # Its answer would be a coroutine, which is true whatever comes of it.
            if inspect.iscoroutinefunction(getattr(self, name)):
                raise InvalidTask(
                    f"Retry({name}=) takes a plain function, not a coroutine function"
                )
        if _is_predicate(self.on):
            return
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        for kind in kinds:
            if not _is_exception(kind):
                raise InvalidTask(
                    "Retry(on=) takes exception types, or a function of the exception, not "
                    f"{kind!r}"
                )

    def allows(self, attempt: int) -> bool:
        """Is there a run after number *attempt*, however late it is?"""
        return self.attempts == 0 or attempt < self.attempts

    def takes(self, error: BaseException) -> bool:
        """Is what raised *error* tried again? Raises PredicateFailed."""
        on = self.on
        if isinstance(on, (type, tuple)):
            return isinstance(error, on)
        return _asked("on", on, error)

    def accepts(self, outcome: Outcome) -> bool:
        """Is this success? Raises PredicateFailed."""
        if self.until is None:
            return outcome.exception is None
        return _asked("until", self.until, outcome)

    def wait(self, attempt: int, rng: Callable[[], float] = random.random) -> float:
        """Seconds between the end of run number *attempt* and the next one."""
        delay, jitter = seconds(self.delay, "delay"), seconds(self.jitter, "jitter")
        ceiling = float("inf") if self.max_delay is None else seconds(self.max_delay, "max_delay")
        # A power of a thousand attempts overflows; what matters is below the ceiling anyway.
        try:
            grown = delay * self.backoff ** max(attempt - 2, 0) if delay else 0.0
        except OverflowError:
            grown = ceiling if ceiling < float("inf") else delay
        return min(grown, ceiling) + jitter * rng()


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _is_predicate(on: object) -> bool:
    return callable(on) and not isinstance(on, type)


def _asked(name: str, predicate: Callable[[Any], object], given: object) -> bool:
    try:
        # Also the answer may refuse to be true or false, as an array does.
        return bool(predicate(given))
    # Not all that there is: Ctrl-C is meant for whoever waits for the call.
    except (Exception, SystemExit) as error:
        raise PredicateFailed(f"Retry({name}=) raised {shown(error)}") from error
