"""Numbers of uWSGI's configuration that do not go with what the tasks ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from uwsgi_tasks.doctor.case import Case, Finding, Group, error, note, some, warning
from uwsgi_tasks.model import TaskExecutor
from uwsgi_tasks.task import Task

_STANDARD = 30
"""Seconds between two looks into the directory, if nobody says anything else."""
_OFTEN = 100
"""Jobs, after which a second's pause is felt."""
_SETTING = "UWSGI_TASKS_SPOOLER_FREQUENCY=1"


def _harakiri(case: Case) -> Iterator[Finding]:
    limit = case.number("spooler-harakiri")
    if not limit:
        return
    timeouts = {
        task.name: float(task.options.timeout)
        for task in case.tasks_on(TaskExecutor.SPOOLER)
        if task.options.timeout is not None
    }
    longer = {name: timeout for name, timeout in timeouts.items() if timeout >= limit}
    if longer:
        yield error(
            "harakiri-short",
            f"spooler-harakiri kills after {limit} s what may take longer: {some(longer)} has a "
            f"timeout of up to {max(longer.values()):g} s",
            f"spooler-harakiri = {int(max(longer.values())) + 10}",
        )


def _max_tasks(case: Case) -> Iterator[Finding]:
    count = case.number("spooler-max-tasks")
    if not count:
        return
    what = f"after {count} jobs a spooler starts anew, and is away for about a second"
    make = warning if count < _OFTEN else note
    yield make("spooler-max-tasks", what, "spooler-max-tasks = 10000, or leave it out")


def _chdir(case: Case) -> Iterator[Finding]:
    place = case.last("spooler-chdir")
    if place and case.tasks:
        yield note(
            "spooler-chdir",
            f"spooler-chdir = {place} is for tasks with working_dir=None: the others run where "
            "their caller was",
            "@task(working_dir=None), or leave it out",
        )


def _touch(case: Case) -> Iterator[Finding]:
    if case.values("touch-spoolers-reload"):
        yield note(
            "touch-spoolers-reload",
            "touch-spoolers-reload kills a running job, which counts as a crash of it",
            "touch-reload, which does not count",
        )


def _wait(task: Task[..., Any]) -> float | None:
    """Return the shortest time that a job of *task* may wait for, in seconds."""
    waits = [task.options.retry_timeout]
    if task.options.retry is not None:
        waits.append(task.options.retry.wait(1, lambda: 0.0))
    return min((wait for wait in waits if wait), default=None)


def _frequency(case: Case) -> Iterator[Finding]:
    if not case.values("spooler"):
        return
    said = case.number("spooler-frequency", "spooler-freq")
    ours = case.settings.spooler_frequency
    if ours is None and said == 0:
        what = "spooler-frequency = 0 lets an idle spooler take all of a processor"
        yield error("frequency-zero", what, "spooler-frequency = 1")
        return
    if ours is None and said is not None and said < 0:
        what = "a negative spooler-frequency: what is delayed, or tried again, waits for ever"
        yield error("frequency-never", what, _SETTING)
        return
    # The server may have other settings than we.
    seconds = case.facts.frequency if case.facts else ours or said or _STANDARD
    waits = {task.name: _wait(task) for task in case.tasks_on(TaskExecutor.SPOOLER)}
    sooner = {name: wait for name, wait in waits.items() if wait is not None and wait < seconds}
    # A second is what anybody may expect to be late.
    if sooner and seconds > 1:
        yield warning(
            "frequency-slow",
            f"an idle spooler looks every {seconds} s, and {some(sooner)} shall be tried again "
            f"after {min(sooner.values()):g} s",
            _SETTING,
        )


GROUP = Group(
    code="limits",
    says="the numbers of the configuration leave the tasks the time that they ask for",
    checks=(_harakiri, _max_tasks, _chdir, _touch, _frequency),
)
