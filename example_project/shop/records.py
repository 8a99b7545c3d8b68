"""Keeps the record of a job while the job goes its way."""

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

from django.db.models import F
from django.utils import timezone

from shop.models import JobRecord, State
from uwsgi_tasks import JobHandle, Retry, get_current_task

log = logging.getLogger(__name__)


def recorded(retry: Retry | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Record each run of a task, whose first argument is the key of its record.

    It goes below ``@task``. *retry* is the task's own: it says whether a failure is the last one.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(key: int, *args: Any) -> Any:
            started(key)
            try:
                outcome = function(key, *args)
            except Exception as error:
                failed(key, error, retry)
                raise
            # A handle: the job has submitted itself again, and may be running elsewhere by now,
            # so the record belongs to that next run.
            if not isinstance(outcome, JobHandle):
                finished(key, outcome)
            return outcome

        return run

    return decorate


def started(key: int) -> None:
    """The job runs, in this process."""
    JobRecord.objects.filter(pk=key).update(
        state=State.RUNNING,
        job_id=get_current_task().id,
        runs=F("runs") + 1,
        started_at=timezone.now(),
        error="",
    )
    log.info("%s: run %s", *JobRecord.objects.values_list("title", "runs").get(pk=key))


def goes_on(key: int, note: str) -> None:
    """This step is done, and the job is about to submit itself for the next one."""
    JobRecord.objects.filter(pk=key).update(state=State.WAITING, note=note)


def finished(key: int, note: str) -> None:
    """The job has done what it was asked for."""
    JobRecord.objects.filter(pk=key).update(state=State.DONE, ended_at=timezone.now(), note=note)


def failed(key: int, error: Exception, retry: Retry | None) -> None:
    """The run failed; another one follows, or the job is dead."""
    now = timezone.now()
    attempt = get_current_task().attempt
    record = JobRecord.objects.filter(pk=key)
    text = f"{type(error).__name__}: {error}"
    if retry and retry.allows(attempt):
        due = now + timedelta(seconds=retry.wait(attempt))
        record.update(state=State.WAITING, due_at=due, error=text)
    else:
        record.update(state=State.FAILED, ended_at=now, error=text)


def recover() -> None:
    """Say what became of the jobs that the last stop interrupted. Only while no server runs."""
    interrupted = JobRecord.objects.filter(state__in=[State.WAITING, State.RUNNING])
    # A mule's messages live in memory; spool files are still there, and will run again.
    interrupted.filter(executor="mule").update(
        state=State.FAILED,
        ended_at=timezone.now(),
        error="Lost: the server stopped, and a mule keeps nothing.",
    )
    interrupted.filter(state=State.RUNNING).update(state=State.WAITING, due_at=None)
