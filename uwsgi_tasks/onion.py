"""What surrounds the tasks of an app: middlewares, fixtures, and hooks of those who submit."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import keyword
import logging
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, overload

from uwsgi_tasks.current import CurrentTask, Fixtures
from uwsgi_tasks.errors import FixtureFailed, InvalidTask, SubmitError, shown
from uwsgi_tasks.loop import hold
from uwsgi_tasks.model import Job
from uwsgi_tasks.task import declared_at

log = logging.getLogger(__name__)

Call = Callable[[], Any]
Middleware = Callable[[CurrentTask, Call], Any]
Fixture = Callable[[], Iterator[Any] | AsyncIterator[Any]]
Hook = Callable[[Job], Mapping[str, Any] | None]
M = TypeVar("M", bound=Middleware)
F = TypeVar("F", bound=Fixture)
H = TypeVar("H", bound=Hook)

_PATIENCE = 10.0
"""Seconds that the fixtures of a process that ends wait for the attempts in its other threads.

Not for those that the thread executor has given up.
"""


class Onion:
    """The middlewares, the fixtures and the hooks of one app.

    What is declared when a module is read again, or under a second name, takes the place of what
    the same lines have declared before. A function that another one has made is always new.
    """

    wraps = False
    """Is there a middleware, or a fixture?"""

    def __init__(self) -> None:
        # Never changed, but replaced: an attempt in another thread goes through what it has begun.
        self.middlewares: tuple[Middleware, ...] = ()
        self.hooks: tuple[Hook, ...] = ()
        self._fixtures: dict[str, Fixture] = {}
        self._homes: dict[int, _Home] = {}

    # ---- declaring --------------------------------------------------------------------------

    def middleware(self, func: M, /) -> M:
        """Declare a function *(task, call)* that surrounds each attempt; the first is outermost.

        It calls *call()*, which returns what the task returns, and raises what that raises. What
        it returns or raises itself is how the attempt ended. Raises InvalidTask.
        """
        _check("@middleware", func, ("task", "call"))
        self.middlewares = _added(self.middlewares, func)
        self.wraps = True
        return func

    @overload
    def fixture(self, func: F, /) -> F: ...
    @overload
    def fixture(self, func: None = None, /, *, name: str | None = None) -> Callable[[F], F]: ...
    def fixture(self, func: Any = None, /, *, name: str | None = None) -> Any:
        """Declare a generator function whose value each process has while it lives.

        It may be an async one. It has no parameters, and yields once: before that stands how it
        is opened, behind it how it is closed. Tasks find the value by the *name* of the function,
        or the one that is given: ``get_current_task().fixtures.name``. Raises InvalidTask.
        """

        def declare(func: F) -> F:
            if not (inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func)):
                raise InvalidTask(
                    f"@fixture decorates a generator function, which yields its value once, not "
                    f"{func!r}; it needs no @contextmanager"
                )
            _check("@fixture", func, ())
            chosen = func.__name__ if name is None else name
            _check_name(chosen)
            known = self._fixtures.get(chosen)
            if known is not None and not _is_again(known, func):
                raise InvalidTask(
                    f"two fixtures are called {chosen}: give one of them another name with name="
                )
            self._fixtures[chosen] = func
            self.wraps = True
            return func

        return declare if func is None else declare(func)

    def on_submit(self, func: H, /) -> H:
        """Declare a function *(job)* that is called, where the caller is, before a submit.

        It may return a mapping that is added to the headers of the job. What it raises reaches
        the caller, and nothing is submitted. Raises InvalidTask.
        """
        _check("@on_submit", func, ("job",))
        self.hooks = _added(self.hooks, func)
        return func

    # ---- around an attempt ------------------------------------------------------------------

    def around(self, task: CurrentTask, call: Call) -> Call:
        """Return *call* with all middlewares around it."""
        for middleware in reversed(self.middlewares):
            call = partial(middleware, task, call)
        return call

    def open(self) -> Fixtures:
        """Open the fixtures that are not open in this process; return the values of all.

        One thread opens them, and others wait. Raises FixtureFailed, and has closed then what it
        has opened.
        """
        home = self._home()
        if len(home.open) < len(self._fixtures):
            home.open_all(self._fixtures)
        return home.values

    def attempt(self) -> contextlib.AbstractContextManager[None]:
        """Return what keeps the fixtures of this process open while an attempt is made."""
        return self._home()

    def give_up(self, threads: Collection[int]) -> None:
        """Do not wait for the attempts in these *threads*, by their idents, before closing."""
        home = self._homes.get(os.getpid())
        if home is not None and threads:
            home.give_up(threads)

    def close(self) -> None:
        """Close the fixtures of this process, the last one first, after its running attempts."""
        home = self._homes.get(os.getpid())
        if home is not None:
            home.close_all()
        for pid, parent in self._homes.items():
            if pid != os.getpid():
                parent.leave()

    def _home(self) -> _Home:
        pid = os.getpid()
        found = self._homes.get(pid)
        if found is None:
            # The parent's are kept: they would be closed here as soon as nobody had them.
            found = self._homes.setdefault(pid, _Home())
            atexit.register(self.close)
        return found

    # ---- before a submit --------------------------------------------------------------------

    def headed(self, job: Job) -> Job:
        """Return *job* with the headers that the hooks give it. Raises what they raise."""
        for hook in self.hooks:
            found = hook(job)
            if found is None:
                continue
            if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
                raise SubmitError(
                    f"{job.task}: the hook {hook.__qualname__} returned a {type(found).__name__}, "
                    "and headers are a mapping whose keys are texts"
                )
            job = job._replace(headers={**(job.headers or {}), **found})
        return job


class _Home:
    """The fixtures that are open in one process, and the attempts that may use them.

    As a context, it notes one attempt.
    """

    def __init__(self) -> None:
        self.values = Fixtures({})
        self.open: dict[str, contextlib.AbstractContextManager[Any]] = {}
        # Not a plain lock: uWSGI ends a mule in the middle of anything, and atexit calls us then.
        self._idle = threading.Condition(threading.RLock())
        self._attempts: Counter[int] = Counter()
        self._given_up: frozenset[int] = frozenset()
        self._opening: str | None = None

    def open_all(self, fixtures: Mapping[str, Fixture]) -> None:
        with self._idle:
            if self._opening is not None:
                raise FixtureFailed(
                    f"fixture {self._opening} runs a task while it is opened, and a task needs all "
                    "fixtures"
                )
            before = list(self.open)
            try:
                # The list: one of them may import a module that declares another.
                for name, func in list(fixtures.items()):
                    if name not in self.open:
                        self._open(name, func)
            except BaseException:
                self._close([name for name in self.open if name not in before])
                raise

    def _open(self, name: str, func: Fixture) -> None:
        self._opening = name
        try:
            if inspect.isasyncgenfunction(func):
                manager = hold(contextlib.asynccontextmanager(func)())
            else:
                manager = contextlib.contextmanager(func)()  # type: ignore[arg-type]
            value = manager.__enter__()
        # It may raise anything, and sys.exit() is no reason to end as if a job had crashed.
        except (Exception, SystemExit) as error:
            raise FixtureFailed(f"fixture {name} could not be opened: {shown(error)}") from error
        finally:
            self._opening = None
        self.open[name] = manager
        self.values = Fixtures({**vars(self.values), name: value})

    def close_all(self) -> None:
        with self._idle:
            mine = threading.get_ident()
            # What runs in this thread is below us, and will not go on.
            is_idle = lambda: set(self._attempts) <= {mine, *self._given_up}  # noqa: E731
            if not self.open:
                return
            self._idle.wait_for(is_idle, _PATIENCE)
            if set(self._attempts) - {mine}:
                log.warning("fixtures are closed while attempts run that do not end")
            self._close(list(self.open))

    def _close(self, names: list[str]) -> None:
        for name in reversed(names):
            manager = self.open.pop(name)
            try:
                manager.__exit__(None, None, None)
            # One that fails must not keep the others from being closed.
            except (Exception, SystemExit):
                log.exception("fixture %s could not be closed", name)
        left = vars(self.values).items()
        self.values = Fixtures({name: value for name, value in left if name in self.open})

    def give_up(self, threads: Collection[int]) -> None:
        # Before the lock, which one of them may have while it opens a fixture that hangs.
        self._given_up = self._given_up.union(threads)
        if self._idle.acquire(blocking=False):
            self._idle.notify_all()
            self._idle.release()

    def leave(self) -> None:
        """Have these, which are the parent's, outlive this process."""
        import ctypes  # noqa: PLC0415  few processes have a parent with open fixtures

        # The end of the interpreter would finish the generators, and so close what they hold.
        for manager in self.open.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(manager))

    def __enter__(self) -> None:
        with self._idle:
            self._attempts[threading.get_ident()] += 1

    def __exit__(self, *_raised: object) -> None:
        mine = threading.get_ident()
        with self._idle:
            self._attempts[mine] -= 1
            if not self._attempts[mine]:
                del self._attempts[mine]
                self._idle.notify_all()


def _check(what: str, func: Any, names: tuple[str, ...]) -> None:
    """Raise InvalidTask if *func* is no plain function with these parameters."""
    if not inspect.isfunction(func):
        raise InvalidTask(f"{what} decorates a function, not {func!r}: write one that calls it")
    if inspect.iscoroutinefunction(func):
        raise InvalidTask(
            f"{what}: {func.__qualname__} is a coroutine function; make it a plain one, for async "
            "tasks as well: uwsgi_tasks awaits them"
        )
    if names and (inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func)):
        raise InvalidTask(
            f"{what}: {func.__qualname__} is a generator, of which a call would run nothing; "
            "return a value instead of yielding one"
        )
    try:
        inspect.signature(func).bind(*names)
    except TypeError as error:
        wanted = f"({', '.join(names)})" if names else "no parameters"
        raise InvalidTask(f"{what}: {func.__qualname__} must take {wanted}: {error}") from None


def _check_name(name: Any) -> None:
    is_name = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
    if not is_name or name.startswith("_"):
        raise InvalidTask(
            f"@fixture(name={name!r}): tasks write fixtures.NAME, so it must be an identifier "
            "without an underscore in front"
        )


def _is_again(known: Callable[..., Any], func: Callable[..., Any]) -> bool:
    """Are both made of the same lines, which were imported twice, or read again?"""
    if known is func:
        return True
    is_local = "<" in func.__qualname__
    return not is_local and declared_at(known) == declared_at(func)


_D = TypeVar("_D", bound=Callable[..., Any])


def _added(known: tuple[_D, ...], func: _D) -> tuple[_D, ...]:
    """Return *known* with *func* at its end, or in the place that it had."""
    if any(_is_again(one, func) for one in known):
        return tuple(func if _is_again(one, func) else one for one in known)
    return (*known, func)
