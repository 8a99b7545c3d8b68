"""One call of a task's function, with what surrounds it in its process."""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import partial
from types import CoroutineType
from typing import Any

from uwsgi_tasks import log_lines
from uwsgi_tasks.current import CurrentTask
from uwsgi_tasks.errors import TaskTimeout
from uwsgi_tasks.loop import run_coroutine
from uwsgi_tasks.model import Job
from uwsgi_tasks.onion import Onion
from uwsgi_tasks.task import Task

log = logging.getLogger(__name__)


def call(
    task: Task[..., Any], job: Job, seconds: float | None = None
) -> tuple[Any, BaseException | None]:
    """Call the function, which has so many seconds if it is a coroutine; return how it ended."""
    try:
        value = task.func(*job.args, **job.kwargs)
        if type(value) is CoroutineType:
            value = _awaited(value, seconds)
    # The attempt: whatever a task raises, sys.exit() included, is how it ended.
    except BaseException as error:  # noqa: BLE001
        return None, error
    return value, None


def call_through(
    onion: Onion,
    current: CurrentTask,
    task: Task[..., Any],
    job: Job,
    seconds: float | None = None,
) -> tuple[Any, BaseException | None]:
    """Call the function through the middlewares."""
    if not onion.middlewares:
        return call(task, job, seconds)
    ends_at = None if seconds is None else time.monotonic() + seconds
    layers = onion.around(current, partial(_called, task, job, seconds, ends_at))
    try:
        return layers(), None
    # The attempt, as above: what a middleware raises is how it ended.
    except BaseException as error:  # noqa: BLE001
        return None, error


def _called(task: Task[..., Any], job: Job, seconds: float | None, ends_at: float | None) -> Any:
    value = task.func(*job.args, **job.kwargs)
    if type(value) is CoroutineType:
        value = _awaited(value, seconds, ends_at)
    return value


def from_the_task_on(error: BaseException) -> log_lines.Raised:
    """Return *error* as ``exc_info=``, without the frames above the task's."""
    # Where there are middlewares, they and more of ours are above the task.
    return log_lines.from_the_task_on(error, _called.__code__)


def _awaited(
    coroutine: CoroutineType[Any, Any, Any], seconds: float | None, ends_at: float | None = None
) -> Any:
    """Return what *coroutine* returns, which has until *ends_at*, or *seconds* from now."""
    if seconds is None:
        return run_coroutine(coroutine)
    now = time.monotonic()
    ends_at = now + seconds if ends_at is None else ends_at
    try:
        return run_coroutine(coroutine, max(ends_at - now, 0.0))
    except TimeoutError as error:
        if time.monotonic() < ends_at:
            raise
        raise TaskTimeout(f"it took longer than its timeout of {seconds:g} s") from error


def renew_connections() -> None:
    """Close Django's connections that are broken or too old, as each request does.

    Nothing else does so in a spooler or mule, where one that the database has closed would fail
    every job from then on.
    """
    apps = sys.modules.get("django.apps")
    if apps is not None and apps.apps.ready:
        sys.modules["django.db"].close_old_connections()


def change_directory(job: Job, path: str) -> None:
    """Go where the caller was; a directory that is gone is no reason to lose the job."""
    try:
        os.chdir(path)
    except OSError as error:
        log.warning(
            "%s: working_dir %s: %s; it runs where it is",
            log_lines.one_line(job),
            path,
            log_lines.one_line(error),
            extra=log_lines.of(job),
        )
