"""The job that is being run, and what a task may change of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from datetime import UTC, datetime, timedelta
from typing import Any

from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.model import Job, new_id
from uwsgi_tasks.times import due, seconds

_current: ContextVar[CurrentTask | None] = ContextVar("current_task", default=None)
_only: CurrentTask | None = None
"""The task of a process that runs one at a time; threads that it starts find it here."""


def get_current_task() -> CurrentTask | None:
    """Return the task that is being run; None outside of one.

    It is found from helper functions and coroutines and, in spoolers and mules, from threads that
    the task has started. (Where several tasks run at a time, such a thread needs
    ``contextvars.copy_context().run``.)
    """
    return _current.get() or _only


class CurrentTask:
    """One attempt at one job: what is known of it, and what may be changed for the next.

    Calling it submits the same task again, with these settings and this buffer.
    """

    __slots__ = (
        "_at",
        "_buffer",
        "_delay",
        "_job",
        "_resubmit",
        "_wait",
        "executor",
        "retry_count",
    )

    def __init__(self, job: Job, executor: str, resubmit: Callable[[Job], JobHandle]) -> None:
        self._job = job
        self._resubmit = resubmit
        self._buffer: dict[Any, Any] | None = None
        self._at, self._delay, self._wait = job.at, job.delay, job.retry_timeout
        self.executor = executor
        self.retry_count = job.retry_count
        """Runs that are left, this one included; None if the task sets no number."""

    @property
    def id(self) -> str:
        """The id of the job."""
        return self._job.id

    @property
    def name(self) -> str:
        """The name of the task."""
        return self._job.task

    @property
    def attempt(self) -> int:
        """The number of this run, from 1."""
        return self._job.attempt

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments of the call."""
        return self._job.args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The named arguments of the call."""
        return self._job.kwargs

    @property
    def scheduled_at(self) -> datetime:
        """When this attempt was due: its time, or the moment of the call."""
        at = self._job.at
        return datetime.fromtimestamp(self._job.submitted_at if at is None else at, UTC)

    @property
    def buffer(self) -> dict[Any, Any]:
        """What lives from attempt to attempt, and goes along when the task submits itself."""
        if self._buffer is None:
            self._buffer = dict(self._job.buffer or {})
        return self._buffer

    @property
    def at(self) -> datetime | timedelta | None:
        """When the task runs if it is called again; a timedelta counts from that call."""
        if self._delay is not None:
            return timedelta(seconds=self._delay)
        return None if self._at is None else datetime.fromtimestamp(self._at, UTC)

    @at.setter
    def at(self, value: float | datetime | timedelta | None) -> None:
        self._at, self._delay = due(value)

    @property
    def retry_timeout(self) -> float | None:
        """Seconds until the next attempt, if one is asked for."""
        return self._wait

    @retry_timeout.setter
    def retry_timeout(self, value: float | timedelta | None) -> None:
        self._wait = None if value is None else seconds(value, "retry_timeout")

    def __call__(self, *args: Any, **kwargs: Any) -> JobHandle:
        """Submit the task again, with these arguments. Raises SubmitError."""
        now = time.time()
        return self._resubmit(
            self.changed(self._job)._replace(
                id=new_id(),
                args=args,
                kwargs=kwargs,
                attempt=1,
                submitted_at=now,
                at=self._at if self._delay is None else now + self._delay,
            )
        )

    def changed(self, job: Job) -> Job:
        """Return *job* with what the task has changed."""
        return job._replace(
            delay=self._delay,
            retry_count=self.retry_count,
            retry_timeout=self._wait,
            buffer=job.buffer if self._buffer is None else self._buffer,
        )

    def __repr__(self) -> str:
        return f"<CurrentTask {self._job}, attempt {self.attempt}>"


def enter(current: CurrentTask, *, alone: bool) -> Token[CurrentTask | None]:
    """Make *current* the task that is being run, until `leave`; *alone* in this process, or not."""
    global _only  # noqa: PLW0603  a context variable does not reach threads that a task starts
    if alone:
        _only = current
    return _current.set(current)


def leave(token: Token[CurrentTask | None]) -> None:
    """End what `enter` began."""
    global _only  # noqa: PLW0603
    _only = None
    _current.reset(token)
