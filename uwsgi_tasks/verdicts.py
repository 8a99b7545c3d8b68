"""What follows from an attempt: decided here, and done elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

from uwsgi_tasks.errors import (
    PredicateFailed,
    RetryTaskException,
    TaskCancelled,
    TasksError,
    shown,
)
from uwsgi_tasks.model import SPOOL_IGNORE, SPOOL_RETRY, Job, State
from uwsgi_tasks.retry import Outcome, Retry
from uwsgi_tasks.task import Options
from uwsgi_tasks.times import END, seconds

_LEAST_WAIT = 1.0
"""Seconds between attempts of a task that asks for them without a limit."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What follows from an attempt: how it ended, and the next one, if there is one."""

    state: State
    following: Job | None = None
    reason: str = ""
    error: TasksError | None = None
    """What went wrong when the outcome was judged."""


def decide(
    job: Job, options: Options, value: object, error: BaseException | None, now: float
) -> Verdict:
    """Say what follows when an attempt returned *value*, or raised *error*.

    *job* says in ``began_at`` when the first attempt began.
    """
    if isinstance(error, TaskCancelled):
        return Verdict(state=State.CANCELLED, reason=str(error))
    asked = _request(job, options, value, error, now)
    if asked is not None:
        return asked
    if options.retry is not None:
        return _judged(job, options.retry, value, error, now)
    if error is None:
        return Verdict(state=State.SUCCEEDED)
    return Verdict(state=State.FAILED, reason=_last(job))


def _request(
    job: Job, options: Options, value: object, error: BaseException | None, now: float
) -> Verdict | None:
    """Say what follows if the task itself asked for something; None if it did not."""
    if isinstance(error, RetryTaskException):
        count = job.retry_count if error.count is None else error.count
        return _asked(job, options, count, error.timeout, now)
    # Their own types only: True, 1.0 or a number that happens to be -1 are values.
    if (options.obeys_codes or job.retry_count is not None) and type(value) is int:
        if value == SPOOL_RETRY:
            return _asked(job, options, job.retry_count, None, now, endless=options.spooler_return)
        if value == SPOOL_IGNORE and options.spooler_return:
            return Verdict(state=State.CANCELLED, reason="it returned SPOOL_IGNORE")
    return None


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
    late = _too_late(job, options.retry if count is None else None, now + wait)
    if late:
        return Verdict(state=State.FAILED, reason=late)
    following = job.again(
        at=min(now + wait, END - 1) if wait else None,
        retry_count=None if count is None else count - 1,
        retry_timeout=timeout,
    )
    return Verdict(state=State.RETRYING, following=following, reason="asked for another")


def _judged(
    job: Job, retry: Retry, value: object, error: BaseException | None, now: float
) -> Verdict:
    """Say what follows by the rules of *retry*."""
    # What is to end the program is no outcome that anybody could accept.
    is_end = isinstance(error, (KeyboardInterrupt, SystemExit))
    outcome = Outcome(value=value, exception=error, attempt=job.attempt)
    try:
        if not is_end and retry.accepts(outcome):
            return Verdict(state=State.SUCCEEDED)
        if error is not None and not retry.takes(error):
            return Verdict(state=State.FAILED, reason="Retry(on=) does not take it")
    except PredicateFailed as failed:
        if error is not None:
            failed.add_note(f"It was to judge attempt {job.attempt}, which raised {shown(error)}")
        return Verdict(state=State.FAILED, reason=str(failed), error=failed)
    verdict = _failed(job, retry, now)
    if error is None and verdict.following is None:
        # Never the value: it may be long, or a secret.
        shape = "None" if value is None else f"a value of type {type(value).__name__}"
        unmet = f"it returned {shape}, which Retry(until=) does not accept; {verdict.reason}"
        return replace(verdict, reason=unmet)
    return verdict


def _failed(job: Job, retry: Retry, now: float) -> Verdict:
    if not retry.allows(job.attempt):
        return Verdict(state=State.FAILED, reason=_last(job))
    wait = retry.wait(job.attempt)
    reason = _too_late(job, retry, now + wait)
    if reason:
        return Verdict(state=State.FAILED, reason=reason)
    at = min(now + wait, END - 1) if wait else None
    return Verdict(state=State.RETRYING, following=job.again(at=at))


def _too_late(job: Job, retry: Retry | None, at: float) -> str:
    """Say why no attempt may begin as late as *at*; nothing if it may."""
    if job.expires_at is not None and at > job.expires_at:
        return "it expires before it could be tried again"
    # Judged after an attempt alone: one is always made.
    if retry is not None and retry.timeout is not None and job.began_at is not None:
        limit = seconds(retry.timeout, "timeout")
        if at > job.began_at + limit:
            return f"the next attempt would begin later than {limit:g} s after the first one"
    return ""


def _last(job: Job) -> str:
    return f"attempt {job.attempt} was the last one"
