"""When to try again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from uwsgi_tasks.errors import InvalidTask
from uwsgi_tasks.times import seconds


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often a task that failed runs again by itself, and how long it waits.

    *attempts* counts all runs, the first included; 0 sets no limit. The wait after run n is
    ``delay * backoff ** (n - 1)`` seconds, at most *max_delay*, plus up to *jitter* seconds
    taken at random. Only exceptions of the types *on* are tried again.
    """

    attempts: int = 3
    delay: float | timedelta = 0
    backoff: float = 1
    max_delay: float | timedelta | None = None
    jitter: float | timedelta = 0
    on: type[BaseException] | tuple[type[BaseException], ...] = Exception

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise InvalidTask(f"Retry(attempts=) must be a whole number, not {self.attempts!r}")
        if self.attempts < 0:
            raise InvalidTask(f"Retry(attempts=) must be 0 (no limit) or more: {self.attempts}")
        if isinstance(self.backoff, bool) or not isinstance(self.backoff, (int, float)):
            raise InvalidTask(f"Retry(backoff=) must be a number, not {self.backoff!r}")
        if not 1 <= self.backoff < float("inf"):
            raise InvalidTask(f"Retry(backoff=) must be 1 or more, not {self.backoff!r}")
        for name in ("delay", "jitter", "max_delay"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, seconds(value, f"Retry({name}=)"))
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise InvalidTask(f"Retry(on=) takes exception types, not {kind!r}")

    def allows(self, attempt: int) -> bool:
        """Is there a run after number *attempt*?"""
        return self.attempts == 0 or attempt < self.attempts

    def wait(self, attempt: int, rng: Callable[[], float] = random.random) -> float:
        """Seconds between the end of run number *attempt* and the next one."""
        delay, jitter = seconds(self.delay, "delay"), seconds(self.jitter, "jitter")
        ceiling = float("inf") if self.max_delay is None else seconds(self.max_delay, "max_delay")
        # A power of a thousand attempts overflows; what matters is below the ceiling anyway.
        try:
            grown = delay * self.backoff ** (attempt - 1) if delay else 0.0
        except OverflowError:
            grown = ceiling if ceiling < float("inf") else delay
        return min(grown, ceiling) + jitter * rng()
