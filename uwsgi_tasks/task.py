"""What @task makes: a function, how its calls travel, and when they run."""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from functools import update_wrapper
from importlib.util import find_spec
from pathlib import Path
from time import time
from types import CodeType
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar

from uwsgi_tasks.errors import InvalidTask, Unpicklable
from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.model import LEASE, Attempt, Job, TaskExecutor, is_queue
from uwsgi_tasks.retry import Retry
from uwsgi_tasks.times import due, seconds

P = ParamSpec("P")
R = TypeVar("R")
Unique = str | bool | Callable[..., str] | None


class _Callers:
    """Stands for the directory that the caller is in."""

    def __repr__(self) -> str:
        return "the caller's directory"


CALLERS: Final = _Callers()
UNREACHABLE = (
    "it cannot be imported by the process that shall run it: declare it at the top level of a "
    "module that can be imported, or use executor=TaskExecutor.RUNTIME; name= is for a function "
    "that the spoolers and mules have declared under that name"
)
"""What is said of a task that travels and is not importable."""
_LONGEST = 366 * 86_400
"""Seconds; more would not fit where uWSGI keeps the time at which it ends a process."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a task's calls travel, and when they run. Raises InvalidTask for what cannot be."""

    executor: str = TaskExecutor.AUTO
    name: str | None = None
    working_dir: str | _Callers | None = CALLERS
    at: float | datetime | timedelta | None = None
    priority: int | None = None
    spooler: str | None = None
    mule: int | str | None = None
    spooler_return: bool = False
    retry_count: int | None = None
    retry_timeout: float | None = None
    retry: Retry | None = None
    dead_letter: bool = True
    timeout: float | None = None
    expires: float | datetime | timedelta | None = None
    result_ttl: float | None = None
    unique: Unique = None
    durable: bool = False
    queue: str | None = None
    lease: float | None = LEASE
    serializer: str | None = None

    obeys_codes: bool = field(init=False)
    """May the number that the function returns be an order to run it again?"""
    is_judged: bool = field(init=False)
    """Must the value that the function returns be looked at?"""
    waits: bool = field(init=False)
    """Do its retries wait?"""

    def __post_init__(self) -> None:
        if not isinstance(self.executor, str):
            raise InvalidTask(f"executor= takes a TaskExecutor or a name, not {self.executor!r}")
        if self.name is not None and not (isinstance(self.name, str) and self.name):
            raise InvalidTask(f"name= takes a text, not {self.name!r}")
        self._check_places()
        due(self.at)
        self._set("priority", _whole(self.priority, "priority", least=0))
        self._set("retry_count", _whole(self.retry_count, "retry_count", least=1))
        if self.retry_timeout is not None:
            self._set("retry_timeout", seconds(self.retry_timeout, "retry_timeout"))
        if self.retry is not None and not isinstance(self.retry, Retry):
            raise InvalidTask(f"retry= takes a Retry(...), not {self.retry!r}")
        self._check_limits()
        self._check_queue()
        for name in ("spooler_return", "dead_letter", "durable"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidTask(f"{name}= is True or False, not {getattr(self, name)!r}")
        self._set("obeys_codes", self.spooler_return or self.retry_count is not None)
        judges = self.retry is not None and self.retry.until is not None
        self._set("is_judged", self.obeys_codes or judges)
        self._set("waits", bool(self.retry_timeout or (self.retry and self.retry.wait(1))))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_limits(self) -> None:
        for name in ("timeout", "result_ttl"):
            value = getattr(self, name)
            if value is not None:
                self._set(name, seconds(value, name))
        if self.timeout is not None and not 0 < self.timeout < _LONGEST:
            raise InvalidTask(
                f"timeout= takes seconds, more than none and less than a year: {self.timeout:g}; "
                "None sets no limit"
            )
        due(self.expires, name="expires")
        key = self.unique
        if key is not None and key is not True and not callable(key) and not _is_key(key):
            raise InvalidTask(
                "unique= takes a text, True for the arguments, or a function of the arguments that "
                f"returns a text, not {key!r}"
            )

    def _check_queue(self) -> None:
        if self.queue is not None and not (isinstance(self.queue, str) and is_queue(self.queue)):
            raise InvalidTask(
                "queue= takes a name of up to 100 characters, none of them a space or one of "
                f",=:{{}}, not {self.queue!r}"
            )
        if self.lease is not None:
            self._set("lease", seconds(self.lease, "lease"))
            if not 0 < (self.lease or 0.0) < _LONGEST:
                raise InvalidTask(
                    f"lease= takes seconds, more than none and less than a year: {self.lease:g}; "
                    "None takes a job off before it runs, so that it runs once or not at all"
                )
        if self.serializer not in {None, "pickle", "json"}:
            raise InvalidTask(f"serializer= is 'pickle' or 'json', not {self.serializer!r}")

    def _check_places(self) -> None:
        if not (self.working_dir is None or self.working_dir is CALLERS):
            self._set("working_dir", _path(self.working_dir, "working_dir"))
            if not Path(str(self.working_dir)).is_absolute():
                raise InvalidTask(
                    f"working_dir={self.working_dir!r} must be an absolute path, or None"
                )
        if self.spooler is not None:
            self._set("spooler", _path(self.spooler, "spooler"))
        if self.mule is not None and (
            isinstance(self.mule, bool)
            or not isinstance(self.mule, (int, str))
            or (isinstance(self.mule, int) and self.mule < 0)
        ):
            raise InvalidTask(
                f"mule= takes the number of a mule or the name of a farm: {self.mule!r}"
            )


_CHOICES = [entry.name for entry in fields(Options) if entry.init]


def options(given: dict[str, Any], start: Options | None = None) -> Options:
    """Return the options that a user gave, on top of *start*. Raises InvalidTask."""
    unknown = set(given) - set(_CHOICES)
    if unknown:
        raise InvalidTask(
            f"no option {', '.join(sorted(unknown))}: choose from {', '.join(_CHOICES)}"
        )
    return Options(**given) if start is None else replace(start, **given)


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def digest(value: Any) -> str:
    """Return a text that tells *value* from others. Raises Unpicklable."""
    from hashlib import blake2b  # noqa: PLC0415  it loads OpenSSL, and few tasks need it

    try:
        content = pickle.dumps(value, 5)
    except Exception as error:
        raise Unpicklable(f"unique=True: the arguments cannot be pickled ({error})") from error
    return blake2b(content, digest_size=16).hexdigest()


def _path(value: Any, name: str) -> str:
    if not isinstance(value, (str, Path)):
        raise InvalidTask(f"{name}= takes the path of a directory, not {value!r}")
    return str(value)


def _whole(value: Any, name: str, least: int) -> int | None:
    if value is None:
        return None
    # uwsgi_tasks 0.7 took priorities as texts.
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidTask(f"{name}= takes a whole number from {least}, not {value!r}")
    return value


class Submitter(Protocol):
    """What a task needs of the app that it belongs to."""

    def check(self, task: Task[..., Any]) -> None:
        """Raise InvalidTask if no call of *task* could ever run as its options say."""

    def submit(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> JobHandle:
        """Submit one call. Raises SubmitError."""

    def submit_all(self, task: Task[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[JobHandle]:
        """Submit all of *calls*, or raise SubmitError and take none."""

    def attempts(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[Attempt]:
        """Make the attempts at one call, here and now, one per turn of a loop."""


class Task(Generic[P, R]):
    """A declared function. Calling it submits a job, and returns its handle.

    ``func`` is the plain function; calling that runs it here and now, and nothing else.
    """

    func: Callable[P, R]
    name: str
    options: Options
    origin: Task[P, R] | None = None
    """The task that this is a changed copy of."""
    route: Any = None
    """The executor that AUTO stands for, once a call has found it out."""

    def __init__(self, func: Callable[P, R], given: Options, app: Submitter) -> None:
        _check_kind(func)
        update_wrapper(self, func, updated=())
        self.func = func
        self.options = given
        self.qualname: str | None = getattr(func, "__qualname__", None)
        self.name = given.name or task_name(func)
        self.place = declared_at(func)
        self._app = app
        self._tail = (
            given.priority,
            given.retry_count,
            given.retry_timeout,
            given.spooler,
            given.mule,
            None,
            None,
            given.result_ttl,
            None,
            given.durable,
            None,
            None,
            given.queue,
            None if given.lease == LEASE else given.lease or 0.0,
            given.serializer,
        )
        app.check(self)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle:
        """Submit a call. Raises SubmitError; where it runs at once, what the function raises."""
        return self._app.submit(self, args, kwargs)

    def map(self, *iterables: Iterable[Any]) -> list[JobHandle]:
        """Submit a call for each item, as the built-in map would call; return their handles.

        All travel together. Raises SubmitError, and then none was taken; those of a task with
        ``unique`` travel one by one, and the first ones may have been.
        """
        calls = list(zip(*iterables, strict=False))
        return self._app.submit_all(self, calls) if calls else []

    def attempts(self, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Attempt]:
        """Make the attempts at a call by hand: here and now, one per turn of the loop.

        The rules of its `Retry` say when there is no other. Nobody waits: ``attempt.wait`` says
        how long to sleep. What the function raises is in ``attempt.exception``, and never raised,
        but for what is to end the program (KeyboardInterrupt, SystemExit).
        """
        return self._app.attempts(self, args, kwargs)

    def using(self, **changes: Any) -> Task[P, R]:
        """Return this task with other options. Raises InvalidTask.

        Those that the worker goes by are those of the declaration, and cannot change.
        """
        fixed = {"name", "retry", "spooler_return", "dead_letter", "timeout"} & set(changes)
        if fixed:
            raise InvalidTask(
                f"{self.name}: {', '.join(sorted(fixed))} cannot change from call to call; "
                "declare it with @task"
            )
        changed = Task(self.func, options(changes, self.options), self._app)
        # A local function has a name that the app has made up for it.
        changed.name, changed.origin = self.name, self
        return changed

    def job(self, id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Job:  # noqa: A002
        """Return a call of this task as it is now."""
        now = time()
        given = self.options
        working_dir = given.working_dir
        if working_dir is CALLERS:
            try:
                working_dir = os.getcwd()
            except FileNotFoundError:
                working_dir = None
        at = delay = None
        if given.at is not None:
            at, delay = due(given.at, now)
        # As Job(...) would, in half of the time.
        job: Job = tuple.__new__(
            Job, (id, self.name, args, kwargs, 1, now, at, delay, working_dir, *self._tail)
        )
        if given.expires is not None:
            job = job._replace(expires_at=due(given.expires, now, name="expires")[0])
        if given.unique is not None:
            job = job._replace(unique=self._unique_key(args, kwargs))
        return job

    def _unique_key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        key = self.options.unique
        if key is True:
            return digest((args, sorted(kwargs.items())))
        if callable(key):
            key = key(*args, **kwargs)
        if not _is_key(key):
            raise InvalidTask(f"{self.name}: unique= gave {key!r}, and a key is a text")
        return str(key)

    @property
    def is_coroutine(self) -> bool:
        """Does a call of the function make a coroutine?"""
        return inspect.iscoroutinefunction(inspect.unwrap(self.func))

    @property
    def is_importable(self) -> bool:
        """Can another process find it, by importing its module?"""
        if self.options.name is not None:
            return True
        module = self.name.removesuffix(f".{self.qualname}")
        return not ("<" in self.name or module == "__main__" or module.startswith("uwsgi_file_"))

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


def _check_kind(func: Callable[..., Any]) -> None:
    """Raise InvalidTask for what can be called, and would do nothing or fail each time."""
    if not callable(func):
        raise InvalidTask(f"@task decorates a function, not {func!r}")
    inner = inspect.unwrap(func)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise InvalidTask(f"{func!r} is a generator, of which a call would run nothing")
    outer, _, name = getattr(func, "__qualname__", "").rpartition(".")
    code = _code(func)
    first = code.co_varnames[: min(code.co_argcount, 1)] if code else ()
    if outer and not outer.endswith("<locals>") and first == ("self",):
        raise InvalidTask(
            f"{outer}.{name} is a method, and its object does not travel: make it a function "
            "that takes what it needs of the object"
        )


def _code(func: Callable[..., Any]) -> CodeType | None:
    return getattr(inspect.unwrap(func), "__code__", None)


def declared_at(func: Callable[..., Any]) -> tuple[str, int]:
    """Where the function stands in its file: what tells a second import from a second function."""
    code = _code(func)
    return (os.path.realpath(code.co_filename), code.co_firstlineno) if code else ("", 0)


def task_name(func: Callable[..., Any]) -> str:
    """Return ``module.qualname``, with the module by which other processes can import it."""
    qualname = getattr(func, "__qualname__", None)
    if qualname is None or func.__module__ is None:
        raise InvalidTask(f"{func!r} has no name of its own: give it one with name=")
    return f"{_module_name(func)}.{qualname}"


def _module_name(func: Callable[..., Any]) -> str:
    module = func.__module__
    if module == "__main__" and (spec := getattr(sys.modules["__main__"], "__spec__", None)):
        return str(spec.name).removesuffix(".__main__")
    # uWSGI loads a 'wsgi-file' under a name that it makes up of the path.
    if module != "__main__" and not module.startswith("uwsgi_file_"):
        return module
    code = _code(func)
    return (code and _importable(Path(code.co_filename))) or module


def _importable(file: Path) -> str | None:
    """Return the name by which *file* would be imported, if any."""
    file = file.resolve()
    for entry in sys.path:
        folder = Path(entry or ".").resolve()
        if file.suffix == ".py" and file.is_relative_to(folder):
            parts = file.relative_to(folder).with_suffix("").parts
            if all(part.isidentifier() for part in parts):
                name = ".".join(parts)
                spec = None
                # The packages above it are imported: the user's code, which may fail.
                with contextlib.suppress(Exception):
                    spec = find_spec(name)
                if spec and spec.origin and Path(spec.origin).resolve() == file:
                    return name
    return None
