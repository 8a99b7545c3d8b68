"""Jobs that wait until a test runs them, one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, ClassVar

from uwsgi_tasks import codec
from uwsgi_tasks.app import App
from uwsgi_tasks.errors import Unpicklable
from uwsgi_tasks.model import Job, Result, State
from uwsgi_tasks.task import Task
from uwsgi_tasks.testing.diverted import Diverted
from uwsgi_tasks.testing.submitted import CapturedJob, SubmittedTasks, listed
from uwsgi_tasks.times import END, seconds

_LIMIT = 1000
"""Attempts after which a run is taken to be endless."""
_ROUNDING = 1e-6
"""Seconds by which a sum of two times may miss the third."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of a job, and how it ended."""

    job: CapturedJob
    number: int
    """Counts the runs of this job, from 1."""
    state: State
    value: Any = None
    error: BaseException | None = None

    def __repr__(self) -> str:
        ended = str(self.state) if self.error is None else f"{self.state} ({self.error!r})"
        return f"<{self.job!r}: {ended}>"


class QueuedTasks(SubmittedTasks):
    """What was submitted, and the queue in which it waits to be run by the test.

    It has a clock of its own, which `advance` and `run_all` put forward. Your code goes on to see
    the real time: a time that it gives is taken from there.
    """

    def __init__(self, queue: Queue, *, strict: bool = False) -> None:
        super().__init__(queue.captured)
        self._queue = queue
        self._attempts: list[Attempt] = []
        self.strict = strict
        """Is it an error if something waits at the end?"""

    @property
    def now(self) -> datetime:
        """The time by the queue's clock."""
        return datetime.fromtimestamp(min(self._queue.now(), END - 1), UTC)

    @property
    def waiting(self) -> list[CapturedJob]:
        """What has not run yet, in the order in which it will."""
        return [CapturedJob.of(entry.job) for entry in self._queue.entries()]

    @property
    def attempts(self) -> list[Attempt]:
        """All that has run so far, in its order."""
        return list(self._attempts)

    @property
    def failed(self) -> list[Attempt]:
        """The attempts after which a job was given up."""
        return [attempt for attempt in self.attempts if attempt.state is State.FAILED]

    def advance(self, by: float | timedelta) -> None:
        """Put the clock forward by so many seconds; nothing is run."""
        self._queue.advance(seconds(by, "advance()"))

    def run(
        self, task: Task[..., Any] | None = None, *, check: bool = True, limit: int = _LIMIT
    ) -> list[Attempt]:
        """Run what is due now, and what that submits, if it is due; return what has run.

        Of *task* only, if given. Raises what a job has raised that is not tried again, unless
        *check* is False; AssertionError after *limit* attempts, if there is still more to run.
        """
        __tracebackhide__ = True
        return list(self._run(task, check=check, limit=limit, moving=False))

    def run_all(
        self, task: Task[..., Any] | None = None, *, check: bool = True, limit: int = _LIMIT
    ) -> list[Attempt]:
        """Run as `run` does until nothing waits, putting the clock forward to what is due next."""
        __tracebackhide__ = True
        return list(self._run(task, check=check, limit=limit, moving=True))

    def assert_nothing_waits(self) -> None:
        """Raise AssertionError if something has not run."""
        __tracebackhide__ = True
        if self.waiting:
            raise AssertionError(listed("Not run", self.waiting))

    def _run(
        self, task: Task[..., Any] | None, *, check: bool, limit: int, moving: bool
    ) -> Iterator[Attempt]:
        __tracebackhide__ = True
        name = None if task is None else task.name
        for _ in range(limit):
            entry = self._queue.take(name, moving=moving)
            if entry is None:
                return
            attempt = self._queue.attempt(entry)
            self._attempts.append(attempt)
            if attempt.state is State.FAILED and attempt.error is not None:
                _raise(attempt.error, check=check)
            yield attempt
        if self._queue.has(name, moving=moving):
            raise AssertionError(
                f"{limit} attempts were made, and there is more to run: does a task submit itself "
                "for ever? If it does not, give a higher limit=.\n"
                f"{listed('Not run', self.waiting)}"
            )


def _raise(error: BaseException, *, check: bool) -> None:
    __tracebackhide__ = True
    # What stops the test, such as pytest.fail() or Ctrl-C, was not meant for the task.
    if check or not isinstance(error, (Exception, SystemExit)):
        # From the frame of the task on: what stands above it is ours, and says nothing.
        trace = error.__traceback__
        raise error.with_traceback(trace and trace.tb_next)


# Compared by what they are, and not by the arguments, of which nobody knows what they compare to.
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Entry:
    """A job in the queue."""

    job: Job
    payload: bytes
    index: int
    """Its place in *payload*."""
    number: int
    """Its place in the order of submission."""
    ahead: float
    """How far the queue's clock was before the real one then."""

    @property
    def due(self) -> float:
        """When it may run, by the queue's clock."""
        return 0.0 if self.job.at is None else self.job.at + self.ahead

    @property
    def rank(self) -> tuple[float, float, int]:
        """What comes first: as a spooler with 'spooler-ordered' has it."""
        priority = float("inf") if self.job.priority is None else self.job.priority
        return (priority, self.due, self.number)


class Queue(Diverted):
    """Keeps what comes until it is taken, by a clock that can be put forward."""

    name: ClassVar[str] = "queued"

    def __init__(self, app: App) -> None:
        super().__init__(app)
        self._entries: list[_Entry] = []
        self._numbers = count()
        self._ahead = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the time by its clock, in seconds since 1970."""
        return time.time() + self._ahead

    def advance(self, by: float) -> None:
        """Put the clock forward by so many seconds."""
        self._ahead += by

    def submit(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Let *jobs* wait."""
        payload, travelled = self._travelled(jobs)
        self._note(travelled)
        self._add(payload, travelled)
        return ()

    def entries(self) -> list[_Entry]:
        """Return all that waits, in the order in which it will run."""
        now = self.now()
        with self._lock:
            return sorted(self._entries, key=lambda entry: (max(entry.due - now, 0.0), entry.rank))

    def has(self, task: str | None, *, moving: bool) -> bool:
        """Would `take` find something?"""
        return self._next(task, moving=moving) is not None

    def take(self, task: str | None, *, moving: bool) -> _Entry | None:
        """Take out what is to run next, of *task* if given; put the clock forward if *moving*."""
        entry = self._next(task, moving=moving)
        if entry is not None:
            self._ahead += max(entry.due - self.now(), 0.0)
            with self._lock:
                self._entries.remove(entry)
        return entry

    def attempt(self, entry: _Entry) -> Attempt:
        """Make one attempt; what follows from it is in the queue when this returns."""
        # Read again: what the task does to its arguments must not be seen in what was captured.
        job = codec.decode(entry.payload, self._settings().signer)[entry.index]
        # Whoever looks at these times goes by the real clock.
        moved = self._ahead - entry.ahead
        if job.expires_at is not None:
            job = job._replace(expires_at=job.expires_at - moved)
        if job.began_at is not None:
            job = job._replace(began_at=job.began_at - moved)
        result, following = self._receiver.perform(job, entry.payload, entry.index, bury=True)
        if following is not None:
            try:
                self._add(*self._travelled((following,)))
            except Unpicklable as error:
                self._receiver.bury(following, str(error))
                result = Result(state=State.FAILED, attempt=result.attempt, error=error)
        return Attempt(
            job=CapturedJob.of(entry.job),
            number=result.attempt,
            state=result.state,
            value=result.value,
            error=result.error,
        )

    def _next(self, task: str | None, *, moving: bool) -> _Entry | None:
        latest = float("inf") if moving else self.now() + _ROUNDING
        return next(
            (
                entry
                for entry in self.entries()
                if task in {None, entry.job.task} and entry.due <= latest
            ),
            None,
        )

    def _add(self, payload: bytes, jobs: Sequence[Job]) -> None:
        with self._lock:
            self._entries += [
                _Entry(
                    job=job,
                    payload=payload,
                    index=index,
                    number=next(self._numbers),
                    ahead=self._ahead,
                )
                for index, job in enumerate(jobs)
            ]
