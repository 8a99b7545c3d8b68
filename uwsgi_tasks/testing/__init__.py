"""For the tests of an application: see what was submitted, and run it when the test says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from uwsgi_tasks import default_app
from uwsgi_tasks.app import App
from uwsgi_tasks.testing.diverted import Capture, Eager
from uwsgi_tasks.testing.queued import Attempt, Queue, QueuedTasks
from uwsgi_tasks.testing.submitted import KEPT_FOR, CapturedJob, SubmittedTasks

__all__ = [
    "Attempt",
    "CapturedJob",
    "QueuedTasks",
    "SubmittedTasks",
    "capture_tasks",
    "eager_tasks",
    "queue_tasks",
]

# Each use has a store of its own, which keeps the results of all tasks; and no spooler's directory
# of the application is written to, or looked into.
_ALONE: Mapping[str, Any] = {"store": "memory://", "result_ttl": KEPT_FOR, "spooler_dir": None}


@contextmanager
def capture_tasks(app: App | None = None) -> Iterator[SubmittedTasks]:
    """Keep what is submitted from running, and show it to the test.

    *app* is the default one, if none is given. A call that cannot travel fails as it would outside
    of a test; one that the function would refuse fails too, with TypeError, for nothing runs it.
    """
    chosen = app or default_app
    executor = Capture(chosen)
    with chosen.diverted_to(executor, **_ALONE):
        yield SubmittedTasks(executor.captured)


@contextmanager
def eager_tasks(app: App | None = None) -> Iterator[SubmittedTasks]:
    """Run what is submitted within its call, which raises what the task raises.

    Nothing waits: a time is not kept, and retries follow at once.
    """
    chosen = app or default_app
    executor = Eager(chosen)
    with chosen.diverted_to(executor, **_ALONE):
        yield SubmittedTasks(executor.captured)


@contextmanager
def queue_tasks(app: App | None = None, *, strict: bool = False) -> Iterator[QueuedTasks]:
    """Queue what is submitted, for the test to run.

    If *strict*, AssertionError is raised at the end where something still waits.
    """
    chosen = app or default_app
    executor = Queue(chosen)
    queued = QueuedTasks(executor, strict=strict)
    with chosen.diverted_to(executor, **_ALONE):
        yield queued
    if queued.strict:
        queued.assert_nothing_waits()
