"""One attempt at one job: run it, do what follows from it, and lose nothing."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from uwsgi_tasks import calling, codec, log_lines
from uwsgi_tasks.current import CurrentTask, Surroundings, alone, current_task
from uwsgi_tasks.errors import (
    DecodeError,
    LeaseLost,
    NotKept,
    TaskCancelled,
    TaskNotFound,
    TasksError,
    TaskTimeout,
    Unpicklable,
    shown,
)
from uwsgi_tasks.interrupts import Interruptible
from uwsgi_tasks.ledger import Ledger
from uwsgi_tasks.limits import alarm
from uwsgi_tasks.model import DeadLetter, Job, Result, State, Stop
from uwsgi_tasks.onion import Onion
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.signing import Signer
from uwsgi_tasks.spool_file import new_id, pack_variables
from uwsgi_tasks.task import Task
from uwsgi_tasks.verdicts import Verdict, decide

log = logging.getLogger(__name__)

Keep = Callable[[DeadLetter], str]
"""Keeps a dead letter, and says where. Raises OSError or TasksError."""

_PLAIN_AT = Job._fields.index("expires_at")
_PLAIN_END = Job._fields.index("headers")
_PLAIN = tuple(Job._field_defaults[name] for name in Job._fields[_PLAIN_AT:_PLAIN_END])
"""Those fields of a job that wants no more than a run: each job is compared with them."""
# A plain text: the hash of an enumeration's member is a call of Python code.
_SUCCEEDED = State.SUCCEEDED.value
_DONE = Result(state=State.SUCCEEDED, attempt=1)
"""How most attempts end; it is made once, for it takes as long as a short task does."""
_POLL = 1.0
"""Seconds between two looks into the store whether a running job is to be killed."""


class Worker:
    """Runs jobs for one executor.

    *find* returns the task of a name or raises TaskNotFound; *tasks* holds those that it has
    found already. *keep* keeps dead letters, and says where; *ledger* all else that is kept.
    *limit* has uWSGI end this process after so many seconds, should our own alarm not be heard.
    *onion* is what surrounds each attempt. *plain*: jobs may be JSON, from whoever can write it.
    *is_threaded*: attempts are made on threads, which nobody but `interrupts` can end.
    """

    def __init__(  # noqa: PLR0913  all that an attempt may have to do with
        self,
        *,
        surroundings: Surroundings,
        tasks: Mapping[str, Task[..., Any]],
        find: Callable[[str], Task[..., Any]],
        keep: Keep,
        ledger: Ledger,
        settings: Callable[[], Settings],
        limit: Callable[[float | None], None],
        tracks: bool,
        onion: Onion,
        plain: bool = False,
        is_threaded: bool = False,
    ) -> None:
        self._surroundings, self._executor = surroundings, surroundings.executor
        self._tasks, self._find, self._keep = tasks, find, keep
        self._ledger, self._settings, self._limit = ledger, settings, limit
        self._tracks, self._onion = tracks, onion
        self._plain, self._is_threaded = plain, is_threaded

    # ---- what an executor calls -------------------------------------------------------------

    def decode(self, payload: bytes, id: str = "") -> Sequence[Job]:  # noqa: A002  the job's
        """Return the jobs in *payload*; none if it is a dead letter now. Raises NotKept."""
        try:
            return self._decoded(payload)
        except DecodeError as error:
            self.reject(payload, str(error), id=id)
            return ()

    def _decoded(self, payload: bytes) -> Sequence[Job]:
        settings = self._settings()
        pickles = self._trusts(settings)
        return codec.decode(payload, settings.signer, plain=self._plain, pickles=pickles)

    def _trusts(self, settings: Settings) -> bool:
        """Is what comes this way to be unpickled, wherever results are kept?"""
        return settings.signer is not None or not self._plain

    def run(self, job: Job, payload: bytes | None = None, index: int = 0) -> Job | None:
        """Make one attempt, the only one in this process; return the next job, if any.

        *job* is number *index* of *payload*, from which it is read again should it have to go on:
        what a task has done to its arguments is no part of the call. The working directory is the
        job's when this returns. Raises NotKept, and FixtureFailed before anything is done.
        """
        task = self._tasks.get(job.task)
        if task is None:
            try:
                task = self._find(job.task)
            except TaskNotFound as missing:
                self._lay_out(job, missing, "")
                return None
        wraps = self._onion.wraps
        if wraps:
            self._onion.open()
        asks = _asks(job, task)
        if asks and not self._admits(job, bury=True):
            return None
        current = alone.task = CurrentTask(job, self._surroundings)
        began = time.time()
        try:
            if "django.db" in sys.modules:
                calling.renew_connections()
            if job.working_dir is not None:
                calling.change_directory(job, job.working_dir)
            value, error = (
                self._attempt(task, job, current) if asks or wraps else calling.call(task, job)
            )
        # It was to be killed just before the function began, or just after it had returned.
        except TaskCancelled as cancelled:
            value, error = None, cancelled
        finally:
            alone.task = None
        # Nearly all of them, and each step costs.
        if error is None and not asks and not _speaks(task, current):
            now = time.time()
            self._ledger.count(task.name, _SUCCEEDED, now - began, now)
            return None
        job = self._unspoilt(current.job, payload, index)
        return self._settle(task, job, value, error, began, bury=True)[1]

    def perform(
        self, job: Job, payload: bytes | None = None, index: int = 0, *, bury: bool = False
    ) -> tuple[Result, Job | None]:
        """Make one attempt for a caller who waits; whatever it raises is in the result.

        *job* is number *index* of *payload*, as for `run`. Raises FixtureFailed before anything
        is done.
        """
        task = self.find(job.task)
        wraps = self._onion.wraps
        if wraps:
            self._onion.open()
        asks = _asks(job, task)
        if asks and not self._admits(job, bury=bury):
            error = TaskCancelled(f"{job} was cancelled, or had expired")
            return Result(state=State.CANCELLED, attempt=job.attempt, error=error), None
        current = CurrentTask(job, self._surroundings)
        token = current_task.set(current)
        began = time.time()
        # In the background, where no request does so.
        if bury and "django.db" in sys.modules:
            calling.renew_connections()
        try:
            value, raised = (
                self._attempt(task, job, current)
                if asks or wraps or self._is_threaded
                else calling.call(task, job)
            )
        finally:
            current_task.reset(token)
        if raised is None and not asks and not _speaks(task, current):
            now = time.time()
            self._ledger.count(task.name, _SUCCEEDED, now - began, now)
            if value is None and job.attempt == 1:
                return _DONE, None
            return Result(state=State.SUCCEEDED, attempt=job.attempt, value=value), None
        job = self._unspoilt(current.job, payload, index)
        return self._settle(task, job, value, raised, began, bury=bury)

    def find(self, name: str) -> Task[..., Any]:
        """Return the task of this name. Raises TaskNotFound."""
        return self._tasks.get(name) or self._find(name)

    def knows(self, name: str) -> bool:
        """Is a task of this name declared here already?"""
        return name in self._tasks

    def is_endless(self, job: Job) -> bool:
        """May attempts at *job* follow one another for ever?"""
        retry = self.find(job.task).options.retry
        return job.retry_count is None and (retry is None or retry.attempts == 0)

    def bury(self, job: Job, reason: str) -> None:
        """Make *job* a dead letter. Raises NotKept."""
        self._lay_out(job, TasksError(reason), "")

    def catch_up(self) -> None:
        """Write down what the store has missed while it was away, if it is back."""
        self._ledger.catch_up()

    @property
    def owes(self) -> bool:
        """Is there anything that the store has missed?"""
        return self._ledger.owes

    def cancel(self, job: Job) -> None:
        """Note that *job* was cancelled, and does not run."""
        fields = log_lines.of(job, self._executor)
        log.info("%s was cancelled", log_lines.one_line(job), extra=fields)
        self._end_cancelled(job)

    def _end_cancelled(self, job: Job, error: BaseException | None = None) -> None:
        result = Result(state=State.CANCELLED, attempt=job.attempt, error=error)
        self._note_end(job, result)
        self._ledger.count(job.task, State.CANCELLED, 0.0, time.time())

    def reject(
        self,
        payload: bytes,
        reason: str,
        variables: Mapping[str, str | bytes] | None = None,
        id: str = "",  # noqa: A002  the job's
    ) -> None:
        """Make a dead letter of bytes that were not run. Raises NotKept."""
        names = codec.names(payload) if payload[:3] == codec.MAGIC else {}
        task = names.get("task", "")
        letter = DeadLetter(
            id=id or names.get("id") or new_id(),
            task=task,
            executor=self._executor,
            attempt=1,
            failed_at=time.time(),
            error=reason,
            worker=self._ledger.worker,
            payload=payload,
            variables=pack_variables(variables) if variables else b"",
        )
        where = self._kept(letter)
        log.error(
            "%s: %d bytes were not run: %s; they are kept in %s",
            log_lines.one_line(task) or "no task",
            len(payload),
            log_lines.one_line(reason),
            where,
            extra=log_lines.of(letter, self._executor),
        )
        self._ledger.count(task, State.FAILED, 0.0, time.time())
        self._end_of_the_unread(payload, reason)

    # ---- the steps of an attempt ------------------------------------------------------------

    def _unspoilt(self, job: Job, payload: bytes | None, index: int) -> Job:
        """Return *job* with the arguments of its call, whatever the task has done to them."""
        if payload is None or not (job.args or job.kwargs):
            return job
        try:
            original = self._decoded(payload)[index]
        except DecodeError:
            return job
        return job._replace(args=original.args, kwargs=original.kwargs)

    def _admits(self, job: Job, *, bury: bool) -> bool:
        """May this attempt begin? Not if its job has expired, or was cancelled."""
        if job.expires_at is not None and time.time() > job.expires_at:
            error = TaskCancelled(f"it had expired before attempt {job.attempt} began")
            if job.attempt > 1 and bury:
                self._lay_out(job, error, "")
            else:
                self._log_dropped(job, str(error))
                self._end_cancelled(job, error)
            return False
        if job.unique is not None:
            # Whoever submits it may be about to, and not get to it before it has run.
            self._ledger.confirm(job)
        # Where the executor cannot take a job away, the store must be asked; and before a retry,
        # which somebody may have cancelled who sees the store alone.
        is_certain = self._tracks and job.attempt == 1 and not job.is_once
        return not job.result_ttl or is_certain or self._ledger.starts(job)

    def _attempt(
        self, task: Task[..., Any], job: Job, current: CurrentTask
    ) -> tuple[Any, BaseException | None]:
        """Run the function, with all that is around it, and an end to it."""
        if not self._onion.wraps:
            return self._limited(task, job, partial(calling.call, task, job))
        with self._onion.attempt():
            attempt = partial(calling.call_through, self._onion, current, task, job)
            return self._limited(task, job, attempt)

    def _limited(
        self,
        task: Task[..., Any],
        job: Job,
        attempt: Callable[..., tuple[Any, BaseException | None]],
    ) -> tuple[Any, BaseException | None]:
        """Make the *attempt*, which takes the seconds that it has, with an end to it."""
        seconds = task.options.timeout
        polled = bool(job.result_ttl) and not self._tracks
        if seconds is None and not (polled or self._is_threaded):
            return attempt()
        if seconds is not None:
            self._limit(seconds)
        end = (
            Interruptible(seconds)
            if self._is_threaded
            else self._alarm(job, seconds, polled=polled)
        )
        try:
            with end:
                return attempt(seconds)
        # It came when the function had just returned.
        except (TaskTimeout, TaskCancelled) as error:
            return None, error
        finally:
            if isinstance(end, Interruptible):
                end.leave()
            if seconds is not None:
                self._limit(None)

    def _alarm(
        self, job: Job, seconds: float | None, *, polled: bool
    ) -> AbstractContextManager[None]:
        asked = self._surroundings.asked
        is_killed = (lambda: asked(job) is Stop.KILL) if polled else None
        return alarm.limit(seconds, is_killed, _POLL if polled else None)

    def _settle(
        self,
        task: Task[..., Any],
        job: Job,
        value: object,
        error: BaseException | None,
        began: float,
        *,
        bury: bool,
    ) -> tuple[Result, Job | None]:
        if isinstance(error, LeaseLost) or not self._surroundings.holds(job):
            return self._leave_to_others(job, error)
        now = time.time()
        # Whatever it has made of the exception by which it was ended.
        if error is not None and self._surroundings.asked(job) is Stop.KILL:
            error = TaskCancelled("it was cancelled while it ran, with kill=True")
        if job.began_at is None:
            job = job._replace(began_at=began)
        verdict = decide(job, task.options, value, error, now)
        # A caller who waits is told, and does not wait between attempts.
        if bury:
            self._report(job, verdict, error)
        trace = ""
        if verdict.state is State.FAILED:
            error = verdict.error or error or TasksError(f"{job}: {verdict.reason}")
            trace = "".join(traceback.format_exception(*calling.from_the_task_on(error)))
            if bury:
                self._fail(task, job, error, trace)
        if verdict.following is not None and job.unique is not None:
            self._ledger.confirm(verdict.following)
        result = Result(state=verdict.state, attempt=job.attempt, value=value, error=error)
        self._ledger.count(job.task, verdict.state, now - began, now)
        if job.result_ttl or job.unique is not None:
            kept = result if verdict.state is not State.SUCCEEDED else replace(result, error=None)
            self._note_end(job, kept, trace=trace, started_at=began)
        return result, verdict.following

    def _note_end(
        self, job: Job, result: Result, *, trace: str = "", started_at: float | None = None
    ) -> None:
        is_ours = self._surroundings.is_ours
        self._ledger.ends(
            job, self._executor, result, trace=trace, started_at=started_at, is_ours=is_ours
        )

    def _leave_to_others(self, job: Job, error: BaseException | None) -> tuple[Result, Job | None]:
        """Leave no trace of an attempt at a job that somebody else has by now."""
        log.warning(
            "%s has ended after its lease was over: what came of it counts for nothing, for "
            "another worker has it",
            log_lines.one_line(job),
            extra=log_lines.of(job, self._executor),
        )
        return Result(state=State.RUNNING, attempt=job.attempt, error=error), None

    def _report(self, job: Job, verdict: Verdict, error: BaseException | None) -> None:
        """Say in the log what follows, unless the job has succeeded or failed."""
        if verdict.state is State.CANCELLED:
            self._log_dropped(job, verdict.reason)
        if verdict.following is None:
            return
        ended = "returned what Retry(until=) does not accept"
        if error is not None:
            ended = f"failed: {log_lines.one_line(shown(error))}"
        at = verdict.following.at
        log.warning(
            "%s: attempt %d %s; the next one follows%s",
            log_lines.one_line(job),
            job.attempt,
            verdict.reason or ended,
            f" in {at - time.time():.1f} s" if at else "",
            extra=log_lines.of(job, self._executor),
        )

    def _log_dropped(self, job: Job, reason: str) -> None:
        log.warning(
            "%s is dropped: %s",
            log_lines.one_line(job),
            log_lines.one_line(reason),
            extra=log_lines.of(job, self._executor),
        )

    def _fail(self, task: Task[..., Any], job: Job, error: BaseException, text: str) -> None:
        if task.options.dead_letter:
            self._write_letter(job, error, text, f"failed in attempt {job.attempt}")
        else:
            log.error(
                "%s failed in attempt %d: %s; it is not kept",
                log_lines.one_line(job),
                job.attempt,
                log_lines.one_line(shown(error)),
                exc_info=calling.from_the_task_on(error),
                extra=log_lines.of(job, self._executor),
            )

    def _lay_out(self, job: Job, error: BaseException, trace: str) -> None:
        """Make a dead letter of a job that has not run, or not to its end."""
        self._write_letter(job, error, trace, "did not run to its end")
        self._ledger.count(job.task, State.FAILED, 0.0, time.time())
        result = Result(state=State.FAILED, attempt=job.attempt, error=error)
        self._note_end(job, result, trace=trace)

    def _end_of_the_unread(self, payload: bytes, reason: str) -> None:
        """Tell those who wait for a job that was never decoded, or killed its process."""
        try:
            jobs = codec.peek(payload)
        except DecodeError:
            return
        for job in jobs:
            result = Result(state=State.FAILED, attempt=job.attempt, error=TasksError(reason))
            self._ledger.ends(job, self._executor, result)

    def _write_letter(self, job: Job, error: BaseException, trace: str, ended: str) -> None:
        # Whoever puts it back wants it to be tried as often as it was, and whatever the time is;
        # but one whose time has not come yet keeps that.
        count = None if job.retry_count is None else job.retry_count + job.attempt - 1
        is_early = job.attempt == 1 and job.at is not None and job.at > time.time()
        at = job.at if is_early else None
        fresh = job._replace(attempt=1, at=at, retry_count=count, expires_at=None, began_at=None)
        settings = self._settings()
        pickles = settings.pickles and self._trusts(settings)
        payload, lost = _encoded(fresh, settings.signer, pickles=pickles)
        letter = DeadLetter(
            id=job.id,
            task=job.task,
            executor=self._executor,
            attempt=job.attempt,
            failed_at=time.time(),
            error=shown(error),
            traceback=f"{trace}\nIts arguments could not be kept: {lost}" if lost else trace,
            worker=self._ledger.worker,
            payload=payload,
        )
        log.error(
            "%s %s: %s; it is kept in %s",
            log_lines.one_line(job),
            ended,
            log_lines.one_line(letter.error),
            self._kept(letter),
            exc_info=calling.from_the_task_on(error) if trace else None,
            extra=log_lines.of(job, self._executor),
        )

    def _kept(self, letter: DeadLetter) -> str:
        try:
            return self._keep(letter)
        # ValueError: what it says of itself does not fit into a file.
        except (OSError, TasksError, ValueError) as error:
            raise NotKept(f"no dead letter could be written: {shown(error)}") from error


def _asks(job: Job, task: Task[..., Any]) -> bool:
    """Does *job* want more than a run?"""
    return job[_PLAIN_AT:_PLAIN_END] != _PLAIN or task.options.timeout is not None


def _encoded(job: Job, signer: Signer | None, *, pickles: bool) -> tuple[bytes, str]:
    """Return *job* as bytes, and what could not travel: a task may make anything of its buffer."""
    try:
        return codec.encode_one(job, signer, pickles=pickles), ""
    except Unpicklable:
        lost = "their text could not be made"
        with contextlib.suppress(Exception):
            lost = f"{job.args!r} {job.kwargs!r} {job.buffer!r}"
        bare = job._replace(args=(), kwargs={}, buffer=None, headers=None)
        return codec.encode_one(bare, signer, pickles=pickles), lost


def _speaks(task: Task[..., Any], current: CurrentTask) -> bool:
    """May the value that the task returned ask for another attempt?"""
    return task.options.is_judged or current.retry_count is not None
