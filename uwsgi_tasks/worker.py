"""One attempt at one job: run it, decide what follows, and lose nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import CoroutineType
from typing import Any

from uwsgi_tasks import codec
from uwsgi_tasks.current import CurrentTask, Surroundings, alone, current_task
from uwsgi_tasks.errors import (
    DecodeError,
    NotKept,
    RetryTaskException,
    TaskNotFound,
    TasksError,
    Unpicklable,
    shown,
)
from uwsgi_tasks.loop import run_coroutine
from uwsgi_tasks.model import SPOOL_IGNORE, SPOOL_RETRY, Job, Result, State
from uwsgi_tasks.task import Options, Task
from uwsgi_tasks.times import END

log = logging.getLogger(__name__)

Bury = Callable[[Mapping[str, str | bytes], bytes], Path]
"""Keeps a dead letter: what is known of it, and its bytes. Raises TasksError."""

_LEAST_WAIT = 1.0
"""Seconds between attempts of a task that asks for them without a limit."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What follows from an attempt: how it ended, and the next one, if there is one."""

    state: State
    following: Job | None = None
    reason: str = ""


def decide(
    job: Job, options: Options, value: object, error: BaseException | None, now: float
) -> Verdict:
    """Say what follows when an attempt returned *value*, or raised *error*."""
    if isinstance(error, RetryTaskException):
        count = job.retry_count if error.count is None else error.count
        return _asked(job, options, count, error.timeout, now)
    if error is not None:
        return _failed(job, options, error, now)
    # Their own types only: True, 1.0 or a number that happens to be -1 are values.
    if (options.obeys_codes or job.retry_count is not None) and type(value) is int:
        if value == SPOOL_RETRY:
            return _asked(job, options, job.retry_count, None, now, endless=options.spooler_return)
        if value == SPOOL_IGNORE and options.spooler_return:
            return Verdict(state=State.CANCELLED, reason="it returned SPOOL_IGNORE")
    return Verdict(state=State.SUCCEEDED)


def _asked(
    job: Job,
    options: Options,
    count: int | None,
    wait: float | None,
    now: float,
    *,
    endless: bool = False,
) -> Verdict:
    # Set by the exception, it holds for what follows; a back-off goes on growing.
    timeout = job.retry_timeout if wait is None else wait
    wait = timeout
    if wait is None:
        wait = options.retry.wait(job.attempt) if options.retry else 0.0
    if count is None and options.retry is not None:
        more = options.retry.allows(job.attempt)
    elif count is None:
        more = endless
        wait = max(wait, _LEAST_WAIT)
    else:
        more = count > 1
    if not more:
        reason = (
            "it asked for another attempt, and has neither retry_count= nor retry="
            if count is None and options.retry is None
            else f"it asked for another attempt after number {job.attempt}, the last one"
        )
        return Verdict(state=State.FAILED, reason=reason)
    following = job.again(
        at=min(now + wait, END - 1) if wait else None,
        retry_count=None if count is None else count - 1,
        retry_timeout=timeout,
    )
    return Verdict(state=State.RETRYING, following=following)


def _failed(job: Job, options: Options, error: BaseException, now: float) -> Verdict:
    retry = options.retry
    if retry is not None and isinstance(error, retry.on) and retry.allows(job.attempt):
        wait = retry.wait(job.attempt)
        at = min(now + wait, END - 1) if wait else None
        return Verdict(state=State.RETRYING, following=job.again(at=at))
    return Verdict(state=State.FAILED, reason=f"attempt {job.attempt} was the last one")


class Worker:
    """Runs jobs for one executor.

    *find* returns the task of a name or raises TaskNotFound; *tasks* holds those that it has
    found already. *bury* keeps dead letters.
    """

    def __init__(
        self,
        *,
        surroundings: Surroundings,
        tasks: Mapping[str, Task[..., Any]],
        find: Callable[[str], Task[..., Any]],
        bury: Bury,
    ) -> None:
        self._surroundings = surroundings
        self._tasks, self._find, self._bury = tasks, find, bury

    # ---- what an executor calls -------------------------------------------------------------

    def decode(self, payload: bytes) -> Sequence[Job]:
        """Return the jobs in *payload*; none if it is a dead letter now. Raises NotKept."""
        try:
            return codec.decode(payload)
        except DecodeError as error:
            self.reject(payload, str(error))
            return ()

    def run(self, job: Job, payload: bytes | None = None, index: int = 0) -> Job | None:
        """Make one attempt, the only one in this process; return the next job, if any.

        *job* is number *index* of *payload*, from which it is read again should it have to go on:
        what a task has done to its arguments is no part of the call. The working directory is the
        job's when this returns. Raises NotKept.
        """
        task = self._tasks.get(job.task)
        if task is None:
            try:
                task = self._find(job.task)
            except TaskNotFound as missing:
                self._lay_out(job, missing, "")
                return None
        current = alone.task = CurrentTask(job, self._surroundings)
        try:
            if "django.db" in sys.modules:
                _renew_connections()
            if job.working_dir is not None:
                _change_directory(job, job.working_dir)
            value, error = _attempt(task, job)
        finally:
            alone.task = None
        # Nearly all of them, and each step costs.
        if error is None and not _speaks(task, current):
            return None
        return self._settle(task, _unspoilt(current.job, payload, index), value, error).following

    def perform(self, job: Job, payload: bytes, index: int = 0) -> tuple[Result, Job | None]:
        """Make one attempt for a caller who waits; whatever it raises is in the result.

        *job* is number *index* of *payload*, as for `run`.
        """
        task = self._find(job.task)
        current = CurrentTask(job, self._surroundings)
        token = current_task.set(current)
        try:
            value, error = _attempt(task, job)
        finally:
            current_task.reset(token)
        job = _unspoilt(current.job, payload, index)
        verdict = decide(job, task.options, value, error, time.time())
        if verdict.state is State.FAILED and error is None:
            error = TasksError(f"{job}: {verdict.reason}")
        result = Result(state=verdict.state, attempt=job.attempt, value=value, error=error)
        return result, verdict.following

    def bury(self, job: Job, reason: str) -> None:
        """Make *job* a dead letter. Raises NotKept."""
        self._lay_out(job, TasksError(reason), "")

    def reject(
        self, payload: bytes, reason: str, variables: Mapping[str, str | bytes] | None = None
    ) -> None:
        """Make a dead letter of bytes that are no job. Raises NotKept."""
        path = self._keep({"error": reason, **(variables or {})}, payload)
        log.error("%d bytes were not run: %s; they are kept in %s", len(payload), reason, path)

    # ---- the steps of an attempt ------------------------------------------------------------

    def _settle(
        self, task: Task[..., Any], job: Job, value: object, error: BaseException | None
    ) -> Verdict:
        verdict = decide(job, task.options, value, error, time.time())
        if verdict.following is not None:
            log.warning(
                "%s: attempt %d %s; the next one follows%s",
                job,
                job.attempt,
                f"failed with {type(error).__name__}" if error else "asked for another",
                f" in {verdict.following.at - time.time():.1f} s" if verdict.following.at else "",
            )
        elif verdict.state is State.CANCELLED:
            log.warning("%s is dropped: %s", job, verdict.reason)
        elif verdict.state is State.FAILED:
            self._fail(task, job, error or TasksError(verdict.reason))
        return verdict

    def _fail(self, task: Task[..., Any], job: Job, error: BaseException) -> None:
        # From the frame of the task on: what stands above it is ours, and says nothing.
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        text = "".join(traceback.format_exception(type(error), error, trace))
        if task.options.dead_letter:
            self._lay_out(job, error, text)
        else:
            log.error("%s failed in attempt %d, and is not kept\n%s", job, job.attempt, text)

    def _lay_out(self, job: Job, error: BaseException, trace: str) -> None:
        variables = {
            "task": job.task,
            "id": job.id,
            "attempt": str(job.attempt),
            "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "error": shown(error),
            "traceback": trace,
        }
        # Whoever puts it back wants it to be tried as often as it was.
        count = None if job.retry_count is None else job.retry_count + job.attempt - 1
        fresh = job._replace(attempt=1, at=None, retry_count=count)
        path = self._keep(variables, _encoded(fresh, variables))
        log.error(
            "%s failed in attempt %d: %s; it is kept in %s%s",
            job,
            job.attempt,
            variables["error"],
            path,
            trace and f"\n{trace}",
        )

    def _keep(self, variables: Mapping[str, str | bytes], body: bytes) -> Path:
        try:
            return self._bury(variables, body)
        except (OSError, TasksError) as error:
            raise NotKept(f"no dead letter could be written: {shown(error)}") from error


def _encoded(job: Job, variables: dict[str, str]) -> bytes:
    """Return *job* as bytes; what a task has made of its arguments or buffer may not travel."""
    try:
        return codec.encode((job,))
    except Unpicklable:
        with contextlib.suppress(Exception):
            variables["lost"] = f"{job.args!r} {job.kwargs!r} {job.buffer!r}"
        return codec.encode((job._replace(args=(), kwargs={}, buffer=None),))


def _speaks(task: Task[..., Any], current: CurrentTask) -> bool:
    """May the value that the task returned ask for another attempt?"""
    return task.options.obeys_codes or current.retry_count is not None


def _unspoilt(job: Job, payload: bytes | None, index: int) -> Job:
    """Return *job* with the arguments of its call, whatever the task has done to them."""
    if payload is None or not (job.args or job.kwargs):
        return job
    try:
        original = codec.decode(payload)[index]
    except DecodeError:
        return job
    return job._replace(args=original.args, kwargs=original.kwargs)


def _attempt(task: Task[..., Any], job: Job) -> tuple[Any, BaseException | None]:
    try:
        value = task.func(*job.args, **job.kwargs)
        if type(value) is CoroutineType:
            value = run_coroutine(value)
    # The attempt: whatever a task raises, sys.exit() included, is how it ended.
    except BaseException as error:  # noqa: BLE001
        return None, error
    return value, None


def _renew_connections() -> None:
    """Close Django's connections that are broken or too old, as each request does.

    Nothing else does so in a spooler or mule, where one that the database has closed would fail
    every job from then on.
    """
    apps = sys.modules.get("django.apps")
    if apps is not None and apps.apps.ready:
        sys.modules["django.db"].close_old_connections()


def _change_directory(job: Job, path: str) -> None:
    """Go where the caller was; a directory that is gone is no reason to lose the job."""
    try:
        os.chdir(path)
    except OSError as error:
        log.warning("%s: working_dir %s: %s; it runs where it is", job, path, error)
