"""The job that is being run, and what a task may change of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.model import Job, Stop, new_id
from uwsgi_tasks.times import due, seconds


class Fixtures:
    """The values of the fixtures that are open in this process, each by its name."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(vars(self)) or "none"
        raise AttributeError(f"no fixture {name!r} is declared; there is: {known}")


@dataclass(frozen=True)
class Surroundings:
    """Where attempts are made: the executor's name, and how it takes what a task submits."""

    executor: str
    resubmit: Callable[[Job], JobHandle]
    advance: Callable[[Job, float, float | None], None] = lambda _job, _done, _total: None
    asked: Callable[[Job], Stop] = lambda _job: Stop.NOT
    fixtures: Callable[[], Fixtures] = lambda: Fixtures({})
    extend: Callable[[Job], None] = lambda _job: None
    holds: Callable[[Job], bool] = lambda _job: True
    is_ours: Callable[[Job], bool] = lambda _job: True


class CurrentTask:
    """One attempt at one job: what is known of it, and what may be changed for the next.

    Calling it submits the same task again, with these settings and this buffer.
    """

    __slots__ = ("_buffer", "_job", "_surroundings")

    def __init__(self, job: Job, surroundings: Surroundings) -> None:
        self._job = job
        self._surroundings = surroundings
        self._buffer: dict[Any, Any] | None = None

    @property
    def executor(self) -> str:
        """The name of the executor that runs it."""
        return self._surroundings.executor

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
    def headers(self) -> Mapping[str, Any]:
        """What the hooks of the caller's side (``@on_submit``) have said of it."""
        return MappingProxyType(self._job.headers or {})

    @property
    def fixtures(self) -> Fixtures:
        """What ``@fixture`` has opened in this process: ``fixtures.database``.

        One that is not declared raises AttributeError, which names those that are.
        """
        return self._surroundings.fixtures()

    @property
    def scheduled_at(self) -> datetime:
        """When this attempt was due: its time, or the moment of the call."""
        at = self._job.at
        return datetime.fromtimestamp(self._job.submitted_at if at is None else at, UTC)

    @property
    def cancelled(self) -> bool:
        """Has somebody asked for its end? It may end then, or raise TaskCancelled."""
        return self._surroundings.asked(self._job) is not Stop.NOT

    def heartbeat(self) -> None:
        """Say that it is alive, which extends its lease. Raises LeaseLost if that is over.

        On Redis the worker does so by itself while the attempt runs; calling it tells at once
        whether somebody else has the job by now. Where there are no leases, nothing happens.
        """
        self._surroundings.extend(self._job)

    def progress(self, done: float, total: float | None = None) -> None:
        """Tell how far it has come, and of how much in all, to who looks from outside.

        The spooler shows it at once. Elsewhere the store is told, of a job with ``result_ttl``,
        a few times a second at most.
        """
        for value in (done,) if total is None else (done, total):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
                raise TypeError(f"progress() takes numbers from 0, not {value!r}")
        self._surroundings.advance(self._job, done, total)

    @property
    def buffer(self) -> dict[Any, Any]:
        """What lives from attempt to attempt, and goes along when the task submits itself."""
        if self._buffer is None:
            self._buffer = dict(self._job.buffer or {})
        return self._buffer

    @property
    def at(self) -> datetime | timedelta | None:
        """When the task runs if it is called again; a timedelta counts from that call."""
        if self._job.delay is not None:
            return timedelta(seconds=self._job.delay)
        return None if self._job.at is None else datetime.fromtimestamp(self._job.at, UTC)

    @at.setter
    def at(self, value: float | datetime | timedelta | None) -> None:
        at, delay = due(value)
        self._job = self._job._replace(at=at, delay=delay)

    @property
    def retry_count(self) -> int | None:
        """Runs that are left, this one included; None if the task sets no number."""
        return self._job.retry_count

    @retry_count.setter
    def retry_count(self, value: int | None) -> None:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"retry_count must be a whole number, not {value!r}")
        self._job = self._job._replace(retry_count=value)

    @property
    def retry_timeout(self) -> float | None:
        """Seconds until the next attempt, if one is asked for."""
        return self._job.retry_timeout

    @retry_timeout.setter
    def retry_timeout(self, value: float | timedelta | None) -> None:
        wait = None if value is None else seconds(value, "retry_timeout")
        self._job = self._job._replace(retry_timeout=wait)

    def __call__(self, /, *args: Any, **kwargs: Any) -> JobHandle:
        """Submit the task again, with these arguments. Raises SubmitError."""
        job, now = self.job, time.time()
        return self._surroundings.resubmit(
            job._replace(
                id=new_id(),
                args=args,
                kwargs=kwargs,
                attempt=1,
                submitted_at=now,
                at=job.at if job.delay is None else now + job.delay,
                began_at=None,
                # Held by the job that runs; the new one must not wait for its end.
                unique=None,
            )
        )

    @property
    def job(self) -> Job:
        """The job, with what the task has changed of it."""
        return self._job if self._buffer is None else self._job._replace(buffer=self._buffer)

    def __repr__(self) -> str:
        return f"<CurrentTask {self._job}, attempt {self.attempt}>"


class _Alone:
    """The task of a process that runs one at a time; threads that it starts find it here."""

    task: CurrentTask | None = None


current_task: ContextVar[CurrentTask | None] = ContextVar("current_task", default=None)
alone = _Alone()


def get_current_task() -> CurrentTask | None:
    """Return the task that is being run; None outside of one.

    It is found from helper functions and coroutines and, in spoolers and mules, from threads that
    the task has started. (Where several tasks run at a time, such a thread needs
    ``contextvars.copy_context().run``.)
    """
    return current_task.get() or alone.task
