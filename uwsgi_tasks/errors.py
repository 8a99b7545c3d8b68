"""Everything that we raise."""

from __future__ import annotations

from datetime import timedelta


class TasksError(Exception):
    """Something went wrong in uwsgi_tasks."""

    def __init__(self, *args: object) -> None:
        # The docstring is the message of an error that was given none.
        super().__init__(*(args or (type(self).__doc__,)))


class InvalidTask(TasksError):
    """The task was declared with something that cannot work."""


class ConfigurationError(TasksError):
    """The settings, or the server that they speak of, cannot work."""


class SubmitError(TasksError):
    """The job was not submitted; nothing was taken."""


class Unpicklable(SubmitError):
    """What a job carries cannot be pickled."""


class NotJson(Unpicklable):
    """What a job carries cannot be written as JSON."""


class ResultNotKept(TasksError):
    """Nobody keeps the result of this job: declare its task with ``result_ttl=``."""


class TaskFailed(TasksError):
    """The task raised something that cannot travel; the text and the traceback are here."""


class TaskTimeout(TasksError, TimeoutError):
    """The attempt took longer than the task's ``timeout=`` allows."""


class TaskCancelled(TasksError):
    """The job was cancelled."""


class PredicateFailed(TasksError):
    """What was to judge an attempt, in ``Retry(on=)`` or ``Retry(until=)``, raised itself."""


class FixtureFailed(TasksError):
    """A fixture could not be opened; nothing has run."""


class StoreError(TasksError):
    """The store cannot be reached, or cannot do what it was asked for."""


class RedisAway(StoreError):
    """Redis cannot be reached, or cannot do what it was asked for."""


class LeaseLost(TasksError):
    """The lease of what runs is over, and somebody else may have it: stop, and leave no trace."""


class DecodeError(TasksError):
    """The bytes are not a job."""


class TaskNotFound(TasksError):
    """No task of this name is declared, and importing its module declares none."""


class NotKept(TasksError):
    """The job is neither done nor kept elsewhere, so it must stay where it is."""


def shown(error: BaseException) -> str:
    """Return the type and the text of *error*, which may be anybody's and have none."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  __str__ may raise anything
        return type(error).__name__


class RetryTaskException(Exception):
    """Raise it inside a task to ask for another attempt.

    *count* replaces the task's ``retry_count``: the runs that are left, this one included.
    *timeout* replaces its ``retry_timeout``: seconds, or a timedelta, until the next one.
    """

    def __init__(self, count: int | None = None, timeout: float | timedelta | None = None) -> None:
        super().__init__(count, timeout)
        if not (count is None or isinstance(count, int)):
            raise TypeError(f"RetryTaskException(count=) takes a whole number, not {count!r}")
        if not (timeout is None or isinstance(timeout, (int, float, timedelta))):
            raise TypeError(f"RetryTaskException(timeout=) takes seconds, not {timeout!r}")
        wait = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        if not 0 <= (wait or 0) < float("inf"):
            raise ValueError(f"RetryTaskException(timeout=) is negative or endless: {timeout!r}")
        self.count = count
        self.timeout = wait

    def __str__(self) -> str:
        return f"another attempt was asked for (count={self.count}, timeout={self.timeout})"
