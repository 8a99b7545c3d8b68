"""What was submitted in a test, and what the test may say of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import call

from uwsgi_tasks.model import Job
from uwsgi_tasks.task import Task

KEPT_FOR = 3600.125
"""Seconds for which results are kept in a test, of tasks that do not say it themselves: a number
that nobody gives, so that it is told from what is an option of the call."""
_TRAVELS = ("priority", "spooler", "mule", "retry_count", "retry_timeout", "result_ttl", "unique")
"""The options that a job carries in a field of the same name."""
_SHOWN = 20
"""Jobs that a message lists."""


@dataclass(frozen=True, kw_only=True)
class CapturedJob:
    """One call of a task that was submitted, with its arguments as a worker gets them.

    Two are equal if the calls are: task, arguments, ``at`` and ``priority``.
    """

    task: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    at: datetime | timedelta | None = None
    """Not before, as it was given: a timedelta counts from the call."""
    priority: int | None = None
    job: Job = field(compare=False)
    """All that travels."""

    @classmethod
    def of(cls, job: Job) -> CapturedJob:
        """Return what there is to see of *job*."""
        return cls(
            task=job.task,
            args=job.args,
            kwargs=job.kwargs,
            at=_given_at(job),
            priority=job.priority,
            job=job,
        )

    def __repr__(self) -> str:
        if self.job.attempt == 1:
            return _shown(self.task, _travelling(self.job), self.args, self.kwargs)
        # Its time and its count are those of the retry, and nobody gave them.
        return f"{_shown(self.task, {}, self.args, self.kwargs)}, attempt {self.job.attempt}"


class SubmittedTasks:
    """What was submitted while it was open, in its order, from whichever thread.

    A task may be given with options, as it is called: ``assert_submitted(send.using(priority=3),
    42)`` looks for a call with that argument and that priority. Without arguments, any will do;
    ``calls(send) == [call()]`` is for none. Arguments are compared by ``==``, so that ``mock.ANY``
    and ``pytest.approx`` work, and as the function takes them: by place or by name is the same.
    """

    def __init__(self, jobs: list[CapturedJob]) -> None:
        self._jobs = jobs

    @property
    def jobs(self) -> list[CapturedJob]:
        """All of them."""
        return list(self._jobs)

    def of(self, task: Task[..., Any], /, *args: Any, **kwargs: Any) -> list[CapturedJob]:
        """Return those of *task* with these arguments; with any, if none are given."""
        wanted = _Wanted(task, args, kwargs)
        return [job for job in self.jobs if wanted.is_met_by(job)]

    def calls(self, task: Task[..., Any], /) -> list[tuple[Any, ...]]:
        """Return the calls of *task*, to be compared to a list of `unittest.mock.call`."""
        return [call(*job.args, **job.kwargs) for job in self.of(task)]

    def assert_submitted(self, task: Task[..., Any], /, *args: Any, **kwargs: Any) -> CapturedJob:
        """Raise AssertionError if no such call was submitted; return the first one."""
        __tracebackhide__ = True
        found = self.of(task, *args, **kwargs)
        if not found:
            self._complain(_Wanted(task, args, kwargs), "was not submitted")
        return found[0]

    def assert_submitted_once(
        self, task: Task[..., Any], /, *args: Any, **kwargs: Any
    ) -> CapturedJob:
        """Raise AssertionError unless exactly one such call was submitted; return it."""
        __tracebackhide__ = True
        found = self.of(task, *args, **kwargs)
        if len(found) != 1:
            ended = f"was submitted {len(found)} times, not once" if found else "was not submitted"
            self._complain(_Wanted(task, args, kwargs), ended)
        return found[0]

    def assert_not_submitted(self, task: Task[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Raise AssertionError if such a call was submitted."""
        __tracebackhide__ = True
        if self.of(task, *args, **kwargs):
            self._complain(_Wanted(task, args, kwargs), "was submitted")

    def assert_nothing_submitted(self) -> None:
        """Raise AssertionError if any call of any task was submitted."""
        __tracebackhide__ = True
        if self._jobs:
            raise AssertionError(listed("Submitted", self.jobs))

    def clear(self) -> None:
        """Forget what was submitted so far; what waits in a queue goes on waiting."""
        self._jobs.clear()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[CapturedJob]:
        return iter(self.jobs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.jobs}>"

    def _complain(self, wanted: _Wanted, what: str) -> None:
        __tracebackhide__ = True
        others = listed("Submitted", self.jobs) if self._jobs else "Nothing was submitted."
        raise AssertionError(f"{wanted} {what}.\n{others}")


class _Wanted:
    """A call that a test asks for: a task with its options, and the arguments, if any."""

    def __init__(self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not isinstance(task, Task):
            raise TypeError(f"{task!r} is no task: give what @task has made")
        self._task, self._args, self._kwargs = task, args, kwargs
        self._arguments = bound(task, args, kwargs) if args or kwargs else None
        self._options = _changed(task, args, kwargs)

    def is_met_by(self, found: CapturedJob) -> bool:
        if found.task != self._task.name:
            return False
        travelling = _travelling(found.job)
        if any(travelling.get(name) != value for name, value in self._options.items()):
            return False
        if self._arguments is None:
            return True
        try:
            return self._arguments == bound(self._task, found.args, found.kwargs)
        except TypeError:
            return False

    def __str__(self) -> str:
        if self._arguments is None:
            return f"{self._task.name}{_using(self._options)}"
        return _shown(self._task.name, self._options, self._args, self._kwargs)


def bound(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by their names. Raises TypeError if the function does not take them."""
    try:
        found = inspect.signature(task.func).bind(*args, **kwargs)
    except ValueError:
        # Some functions that are written in C do not say what they take.
        return {"args": args, "kwargs": kwargs}
    except TypeError as error:
        raise TypeError(f"{_shown(task.name, {}, args, kwargs)}: {error}") from None
    found.apply_defaults()
    return found.arguments


def _changed(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the options that *task* was given with `Task.using`, as `_travelling` has them."""
    declared = task
    while declared.origin is not None:
        declared = declared.origin
    names = [
        option.name
        for option in fields(task.options)
        if option.init
        and getattr(task.options, option.name) != getattr(declared.options, option.name)
    ]
    hidden = set(names) - {"at", "expires", *_TRAVELS}
    if hidden:
        raise ValueError(
            f"{task.name}: {', '.join(sorted(hidden))} cannot be asserted: it does not travel with "
            "the job"
        )
    travelling = _travelling(task.job("", args, kwargs)) if names else {}
    return {name: travelling.get(name) for name in names}


def _travelling(job: Job) -> dict[str, Any]:
    """Return the options that *job* was submitted with, as they are given."""
    options: dict[str, Any] = {"at": _given_at(job)}
    if job.expires_at is not None:
        # To the millisecond: it is the sum of two times.
        options["expires"] = timedelta(seconds=round(job.expires_at - job.submitted_at, 3))
    options |= {name: getattr(job, name) for name in _TRAVELS}
    if job.result_ttl == KEPT_FOR:
        del options["result_ttl"]
    return {name: value for name, value in options.items() if value is not None}


def _given_at(job: Job) -> datetime | timedelta | None:
    if job.delay is not None:
        return timedelta(seconds=job.delay)
    return None if job.at is None else datetime.fromtimestamp(job.at, UTC)


# ---- messages -------------------------------------------------------------------------------


def listed(title: str, jobs: Sequence[CapturedJob]) -> str:
    """Return *jobs* as a list below *title*."""
    lines = [f"{title}:", *(f"  {job!r}" for job in jobs[:_SHOWN])]
    if len(jobs) > _SHOWN:
        lines.append(f"  and {len(jobs) - _SHOWN} more")
    return "\n".join(lines)


def _shown(
    task: str, options: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """Return a call as one would write it."""
    given = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    return f"{task}{_using(options)}({', '.join(given)})"


def _using(options: dict[str, Any]) -> str:
    given = ", ".join(f"{name}={_plain(value)}" for name, value in options.items())
    return f".using({given})" if given else ""


def _plain(value: object) -> str:
    """Return a value as it is read best."""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    return repr(value).removeprefix("datetime.")
