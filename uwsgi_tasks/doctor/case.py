"""What the doctor looks at, and what it finds: values, and nothing that goes and looks."""

from __future__ import annotations

import pwd
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from uwsgi_tasks.model import KnownWorker, Sizes, TaskExecutor
from uwsgi_tasks.probe import Facts, Silence
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.task import Task

Level = Literal["error", "warning", "note", "ok"]

SHARED = ("shared-import", "shared-pyimport", "shared-py-import", "shared-python-import")
"""The names of the option that imports a module in the master, before it starts the others."""
SPOOLERS = ("spooler-import", "spooler-pyimport", "spooler-py-import", "spooler-python-import")
"""The names of the option that imports a module in each spooler."""

_FALSE = {"false", "no", "off", "0"}
_SHOWN = 3
"""Names that one sentence lists."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found; ``error``: work does not run or is lost, ``warning``: it may be."""

    level: Level
    code: str
    """What docs/doctor.md lists it under."""
    what: str
    remedy: str
    """A line to add, or a command to run; empty where nothing need be done."""


def error(code: str, what: str, remedy: str) -> Finding:
    """Return a finding that something does not work."""
    return Finding(level="error", code=code, what=what, remedy=remedy)


def warning(code: str, what: str, remedy: str) -> Finding:
    """Return a finding that something may not work."""
    return Finding(level="warning", code=code, what=what, remedy=remedy)


def note(code: str, what: str, remedy: str) -> Finding:
    """Return a finding of what one should know."""
    return Finding(level="note", code=code, what=what, remedy=remedy)


NO_TASKS = note(
    "no-tasks",
    "no task is declared in this process, so none could be checked",
    "uwsgi-tasks -m mysite.tasks doctor",
)


@dataclass(frozen=True, kw_only=True)
class Directory:
    """What lies in a spooler's directory, at one moment."""

    path: Path
    owner: int = 0
    filesystem: str = ""
    space: float = 1.0
    """The share of the disk that is free for this user."""
    inodes: float = 1.0
    """The share of the files that the disk has room for, and that are not used."""
    waiting: int = 0
    stale: Sequence[tuple[str, float]] = ()
    """Jobs that are due, that nobody runs, and for how many seconds; the oldest first."""
    held: int = 0
    """Files that a process has in its hands, as far as was looked."""
    cut: int = 0
    """Files that are too short to be a job: uWSGI reads them at each pass, for ever."""
    half: int = 0
    """Files that somebody began to write, and did not finish."""
    stranded: int = 0
    """Jobs in the folders of priorities."""
    crashes: Mapping[str, int] = field(default_factory=dict)
    """How often a job that is still there has killed its process."""
    late: int = 0
    """Delayed jobs whose time has come, and that still lie in ``later/``."""
    latest: float = 0.0
    """For how many seconds the first of them has been due."""
    delayed: int = 0
    has_ticket: bool = True
    """Is there the file that tells the spooler when to look for delayed jobs?"""
    dead: int = 0
    """Dead letters that are files."""
    uwsgi: Sequence[int] = ()
    """Processes of some uWSGI that stand in the directory, as its spoolers do."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How the store answered."""

    trouble: str = ""
    """Why it did not; empty if it did."""
    is_shared: bool = True
    skew: float = 0.0
    """Seconds by which its clock is ahead of ours."""
    dead: int = 0


@dataclass(frozen=True, kw_only=True)
class Member:
    """One server of a Redis: the only one, or a master of a cluster."""

    place: str
    skew: float = 0.0
    """Seconds by which its clock is ahead of ours, at least."""
    told: Mapping[str, str] = field(default_factory=dict)
    """What INFO and CONFIG say, as far as they may be asked."""

    def number(self, name: str) -> int | None:
        """Return a number that it tells; None if it does not."""
        found = self.told.get(name, "")
        return int(found) if found.isdecimal() else None


@dataclass(frozen=True, kw_only=True)
class Redis:
    """What a Redis says of itself, of the jobs that wait in it, and of those who take them."""

    place: str = ""
    trouble: str = ""
    """Why it cannot be reached; empty if it can."""
    members: Sequence[Member] = ()
    hidden: Sequence[str] = ()
    """Questions to which it gave no answer."""
    unwritable: str = ""
    """Why nobody can write to it; empty if one can."""
    refused: Sequence[str] = ()
    """Commands that we need, and that this user may not use."""
    closed: Sequence[str] = ()
    """Keys that this user may not touch, though they are ours."""
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    workers: Sequence[KnownWorker] | None = None
    """None if it is not known who is there."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that is known of one server and one of its directories."""

    options: Mapping[str, Sequence[str]]
    """Every value of each of uWSGI's options: of the file, or else of the running server."""
    has_options: bool = True
    """Is it known what is in them?"""
    settings: Settings
    tasks: Sequence[Task[..., Any]] = ()
    is_pyuwsgi: bool = False
    """Is the uWSGI of this environment the wheel, in a virtual environment?"""
    base: Path = Path()
    """Where relative paths begin."""
    directory: Directory | None = None
    memory: Memory | None = None
    redis: Redis | None = None
    answer: Facts | Silence | None = None
    """None if nobody was asked."""

    # ---- options ----------------------------------------------------------------------------

    def values(self, *names: str) -> list[str]:
        """Return every value of an option that has these names."""
        return [value for name in names for value in self.options.get(name, ())]

    def last(self, *names: str) -> str | None:
        """Return the value of an option that counts."""
        return next(reversed(self.values(*names)), None)

    def has(self, *names: str) -> bool:
        """Is one of these switches on?"""
        last = (value for name in names for value in self.options.get(name, ())[-1:])
        return any(value.lower() not in _FALSE for value in last)

    def number(self, *names: str) -> int | None:
        """Return the number that an option has; None if it has none."""
        try:
            return int(self.last(*names) or "")
        except ValueError:
            return None

    @property
    def spoolers(self) -> list[Path]:
        """The directories that the server serves."""
        return [self.base / value for value in self.values("spooler") if value]

    @property
    def mules(self) -> int:
        """How many mules the server has."""
        return (self.number("mules") or 0) + len(self.options.get("mule", ()))

    @property
    def facts(self) -> Facts | None:
        """What the running server says."""
        return self.answer if isinstance(self.answer, Facts) else None

    # ---- tasks ------------------------------------------------------------------------------

    def executor(self, task: Task[..., Any]) -> str:
        """Return what takes the calls of *task*."""
        name = task.options.executor
        if name == TaskExecutor.AUTO:
            name = self.settings.executor
        if name != TaskExecutor.AUTO:
            return name
        if self.options.get("spooler") or not self.has_options:
            return TaskExecutor.SPOOLER
        return TaskExecutor.MULE if self.mules else TaskExecutor.RUNTIME

    def tasks_on(self, *executors: str) -> list[Task[..., Any]]:
        """Return the tasks whose calls these executors take."""
        return [task for task in self.tasks if self.executor(task) in executors]

    @property
    def uses_redis(self) -> bool:
        """Do jobs travel through Redis?"""
        return self.settings.has_redis or bool(self.tasks_on(TaskExecutor.REDIS))

    @property
    def redis_is_store(self) -> bool:
        """Is the Redis of the jobs the store as well?"""
        return self.settings.redis is not None and self.settings.store is None


Check = Callable[[Case], Iterator[Finding]]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Checks that belong together."""

    code: str
    says: str
    """What is well if nothing worse than a note is found."""
    checks: Sequence[Check]

    def judge(self, case: Case) -> Iterator[Finding]:
        """Yield what is found, and at last that all is well, if it is."""
        found = [finding for check in self.checks for finding in check(case)]
        yield from found
        if all(finding.level == "note" for finding in found):
            yield Finding(level="ok", code=self.code, what=self.says, remedy="")


def user_name(uid: int) -> str:
    """Return what a user is called."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def some(names: Iterable[str]) -> str:
    """Return the first few of *names*, as part of a sentence."""
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
