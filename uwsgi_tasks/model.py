"""The values that travel, and those that are remembered."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from itertools import count
from typing import Any, NamedTuple

_numbers = count(1)
_prefix = (0, "")

SPOOL_OK = -2
SPOOL_RETRY = -1
SPOOL_IGNORE = 0


LEASE = 30.0
"""Seconds without a sign of life of its worker after which another one gets a job."""


class TaskExecutor(StrEnum):
    """How a call travels; the plain strings serve as well."""

    AUTO = "auto"
    SPOOLER = "spooler"
    MULE = "mule"
    THREAD = "thread"
    REDIS = "redis"
    RUNTIME = "runtime"


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Will nothing follow?"""
        return self in _FINAL


_FINAL = {State.SUCCEEDED, State.FAILED, State.CANCELLED}


class Stop(IntEnum):
    """What a running job was asked for."""

    NOT = 0
    ASKED = 1
    """To end by itself, when it looks."""
    KILL = 2
    """To end at once."""


def new_id() -> str:
    """Return a name for a job that no process, on any machine, has given before."""
    global _prefix  # noqa: PLW0603  a random number a call costs more than the rest of a submit
    pid = os.getpid()
    if _prefix[0] != pid:
        _prefix = (pid, os.urandom(8).hex())
    return f"{_prefix[1]}-{next(_numbers)}"


def is_queue(name: str) -> bool:
    """May a queue be called so?"""
    return re.fullmatch(r"[^\s{},=:]{1,100}", name) is not None


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
    expires_at: float | None = None
    """An attempt that has not begun by then is dropped; in seconds since 1970."""
    result_ttl: float | None = None
    """Seconds for which the store remembers how it ended."""
    unique: str | None = None
    """While it waits or runs, a call with the same key is this one."""
    durable: bool = False
    """Is it to be on the disk before its caller goes on?"""
    began_at: float | None = None
    """When the first attempt began, in seconds since 1970; None while that is to come."""
    headers: dict[str, Any] | None = None
    """What hooks of the caller's side say to the middlewares."""
    queue: str | None = None
    """The queue that takes it, where there are several."""
    lease: float | None = None
    """Seconds after which another worker gets it whose own has given no sign of life; 0: none does,
    for it is taken off before it runs. None is what is usual there."""
    serializer: str | None = None
    """How it is written: ``pickle``, or ``json``; None is what is usual there."""

    def __str__(self) -> str:
        return f"{self.task}[{self.id}]"

    @property
    def is_once(self) -> bool:
        """Does it run once at most? Then the store alone can know of it while it runs."""
        return self.lease == 0

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
    """What it raised; also where ``Retry(until=)`` accepted that."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One turn of ``for attempt in task.attempts(...)``."""

    number: int
    """From 1."""
    state: State
    """RETRYING if another one follows."""
    value: Any = None
    """What the function returned."""
    exception: BaseException | None = None
    """What it raised."""
    wait: float | None = None
    """Seconds until the next attempt is due, by the rules of its `Retry`; None after the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a store remembers of one job; times are in seconds since 1970."""

    id: str
    task: str
    executor: str
    state: State
    attempt: int = 1
    submitted_at: float = 0.0
    started_at: float | None = None
    """When its last attempt began."""
    ended_at: float | None = None
    worker: str | None = None
    """The process that ran it: machine, kind and number."""
    outcome: bytes | None = None
    """What it returned or raised, as `codec` writes it."""
    error: str | None = None
    traceback: str | None = None
    done: float | None = None
    """How far it has come, of ``total``."""
    total: float | None = None
    stop: Stop = Stop.NOT


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A job that finally failed, or bytes that never were one, with what is known of it."""

    id: str
    task: str
    """Empty where it could not be read."""
    executor: str
    attempt: int
    failed_at: float
    error: str
    traceback: str = ""
    worker: str = ""
    payload: bytes = b""
    """The job as it would be submitted again."""
    variables: bytes = b""
    """What else was in its spool file, as uWSGI packs it; empty where the file was ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right to do something alone, until it is *due* by the store's clock."""

    name: str
    owner: str
    due: float
    extended: bool = False
    """Has its owner extended it, and so begun what it was taken for?"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """How often a task ended in one way within one minute, and how long that took."""

    minute: int
    """When it began, in seconds since 1970."""
    task: str
    outcome: str
    """A `State`, or "crashed"."""
    runs: int
    seconds: float
    """Of all runs together."""
    slowest: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A job that has not ended, as its executor sees it."""

    id: str
    task: str
    executor: str
    state: State
    attempt: int = 1
    submitted_at: float = 0.0
    at: float | None = None
    """When it is due, where it waits for a time."""
    priority: int | None = None
    calls: int = 1
    """How many calls of one `Task.map`, this being the first, still wait in the same place."""
    place: str = ""
    """Where it waits: a spooler's directory."""
    worker: str | None = None
    """The process that runs it."""
    started_at: float | None = None
    done: float | None = None
    total: float | None = None


class Sizes(NamedTuple):
    """How many jobs a queue holds."""

    waiting: int
    delayed: int
    running: int


class KnownWorker(NamedTuple):
    """A worker that has given a sign of life in the last minute."""

    name: str
    host: str
    pid: int
    queues: list[str]
    threads: int
    started_at: float
    """In seconds since 1970, by its own clock."""
    ran: int
    """Attempts that it has made."""
    memory: int
    """Its resident memory, in bytes."""
    tasks: list[str]
