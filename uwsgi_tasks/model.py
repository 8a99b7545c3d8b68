"""The values that travel: a job, and how it ended."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import Any, NamedTuple

_numbers = count(1)
_prefix = (0, "")

SPOOL_OK = -2
SPOOL_RETRY = -1
SPOOL_IGNORE = 0


class TaskExecutor(StrEnum):
    """How a call travels; the plain strings serve as well."""

    AUTO = "auto"
    SPOOLER = "spooler"
    MULE = "mule"
    RUNTIME = "runtime"


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


def new_id() -> str:
    """Return a name for a job that no process, on any machine, has given before."""
    global _prefix  # noqa: PLW0603  a random number a call costs more than the rest of a submit
    pid = os.getpid()
    if _prefix[0] != pid:
        _prefix = (pid, os.urandom(8).hex())
    return f"{_prefix[1]}{next(_numbers):x}"


class Job(NamedTuple):
    """One call of a task.

    A named tuple, not a dataclass: it is built once a call and once a run, and a frozen dataclass
    of as many fields costs four times as much as everything else in a submit. The order of the
    fields is the wire format: new ones go to the end, with a default.
    """

    id: str
    task: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012  never written to
    attempt: int = 1
    submitted_at: float = 0.0
    """When the first attempt was submitted, in seconds since 1970."""
    at: float | None = None
    """Not before, in seconds since 1970."""
    delay: float | None = None
    """What ``at`` was, if it was given as a timedelta: a job that submits itself waits again."""
    working_dir: str | None = None
    priority: int | None = None
    retry_count: int | None = None
    """Runs that are left, this one included."""
    retry_timeout: float | None = None
    spooler: str | None = None
    mule: int | str | None = None
    buffer: dict[Any, Any] | None = None

    def __str__(self) -> str:
        return f"{self.task}[{self.id}]"

    def again(self, at: float | None, **changes: Any) -> Job:
        """Return the same job, one attempt later."""
        return self._replace(attempt=self.attempt + 1, at=at, **changes)


@dataclass(frozen=True, kw_only=True)
class Result:
    """How an attempt at a job ended."""

    state: State
    attempt: int
    value: Any = None
    error: BaseException | None = None
