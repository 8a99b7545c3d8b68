"""Puts everything together: settings, server, executors, and the tasks that are declared."""

from __future__ import annotations

import logging
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, overload
from weakref import WeakSet

from uwsgi_tasks import settings as settings_module
from uwsgi_tasks import spool
from uwsgi_tasks.current import Surroundings
from uwsgi_tasks.errors import ConfigurationError, InvalidTask, SubmitError, TaskNotFound
from uwsgi_tasks.executors import Executor, load
from uwsgi_tasks.executors.mule import MuleExecutor
from uwsgi_tasks.executors.spooler import SpoolerExecutor
from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.model import Job, Result, TaskExecutor, new_id
from uwsgi_tasks.registry import Registry
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.signals import Cron, Timer
from uwsgi_tasks.task import Task, options
from uwsgi_tasks.worker import Worker

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_UNREACHABLE = (
    "it cannot be imported by the process that shall run it: declare it at the top level of a "
    "module that can be imported, or use executor=TaskExecutor.RUNTIME; name= is for a function "
    "that the spoolers and mules have declared under that name"
)
_server = Server()
"""The one that this process belongs to."""
_apps: WeakSet[App] = WeakSet()
_AUTO = (TaskExecutor.SPOOLER, TaskExecutor.MULE)
"""What AUTO tries, in this order, before it runs a job at once."""


class App:
    """The tasks of one application, and the ways that their calls take.

    The functions of the package are bound to a default one; another is for tests, or for
    settings of its own: ``App(spooler_dir="/var/spool/other")``.
    """

    def __init__(self, server: Server | None = None, **overrides: Any) -> None:
        self.server = server or _server
        self.tasks = Registry()
        self._overrides = overrides
        self._settings: Settings | None = None
        self._spooler = SpoolerExecutor(self.server, lambda: self.settings)
        self._mule = MuleExecutor(self.server, lambda: self.settings)
        self._mule.relay = self._spooler
        self._executors: dict[str, Executor] = {
            TaskExecutor.SPOOLER: self._spooler,
            TaskExecutor.MULE: self._mule,
        }
        for executor in self._executors.values():
            self._listen(executor)
        self._building = threading.RLock()
        self._warned: set[str] = set()
        _apps.add(self)

    # ---- settings ---------------------------------------------------------------------------

    def configure(self, **overrides: Any) -> None:
        """Change settings. Raises ConfigurationError for what does not exist or cannot be."""
        changed = {**self._overrides, **overrides}
        checked = settings_module.read(changed, environ={}, django=dict)
        if checked.executor != TaskExecutor.AUTO:
            self.executor(checked.executor)
        self._overrides = changed
        self._settings = None

    @property
    def settings(self) -> Settings:
        """The settings, read when they are first needed: Django's may not be there before."""
        found = self._settings
        if found is None:
            found = settings_module.read(self._overrides)
            if not settings_module.django_is_late():
                self._settings = found
        return found

    # ---- declaring --------------------------------------------------------------------------

    @overload
    def task(self, func: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, func: None = None, /, **given: Any
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    def task(self, func: Callable[P, R] | None = None, /, **given: Any) -> Any:
        """Declare a function as a task, bare or with the options of `Options`.

        Raises InvalidTask, and ConfigurationError where the server cannot work.
        """
        if func is not None and given:
            raise InvalidTask("@task takes its options by name: @task(executor=...)")
        chosen = options(given)

        def declare(func: Callable[P, R]) -> Task[P, R]:
            self.set_uwsgi_callbacks()
            task = Task(func, chosen, self)
            self.tasks.declare(task)
            return task

        return declare if func is None else declare(func)

    def check(self, task: Task[..., Any]) -> None:
        """Raise InvalidTask if no call of *task* could ever run as its options say."""
        try:
            self._check_places(task)
            self._check_executor(task)
        except InvalidTask as error:
            raise InvalidTask(f"{task.name}: {error}") from None

    @staticmethod
    def _check_places(task: Task[..., Any]) -> None:
        given = task.options
        for option in (TaskExecutor.SPOOLER, TaskExecutor.MULE):
            if getattr(given, option) is not None and given.executor not in {"auto", option}:
                raise InvalidTask(f"{option}= is for the {option}, not for {given.executor}")
        if given.executor == TaskExecutor.RUNTIME and isinstance(given.working_dir, str):
            raise InvalidTask("working_dir= is for other processes: at once, it runs where it is")

    def _check_executor(self, task: Task[..., Any]) -> None:
        given = task.options
        for executor in self._candidates(given.executor):
            if executor.travels:
                self.server.require_master()
                # Where everything runs at once, as in a test or a shell, any function will do.
                if self.server.present and not task.is_importable:
                    raise InvalidTask(_UNREACHABLE)
            missing = executor.missing()
            if missing is None:
                executor.check(given)
                return
            if given.executor != TaskExecutor.AUTO:
                raise InvalidTask(missing)
        if self.server.present and (given.at is not None or given.priority is not None):
            raise InvalidTask(
                "at= and priority= need a spooler: add 'spooler = DIRECTORY' to the configuration "
                "of this uWSGI"
            )

    def _candidates(self, name: str) -> Iterator[Executor]:
        if name == TaskExecutor.AUTO:
            yield from (self.executor(each) for each in _AUTO)
        else:
            yield self.executor(name)

    # ---- timers and crons -------------------------------------------------------------------

    @overload
    def timer_lazy(self, func: Callable[P, R], /) -> Timer[P, R]: ...
    @overload
    def timer_lazy(
        self, func: None = None, /, **setup: Any
    ) -> Callable[[Callable[P, R]], Timer[P, R]]: ...
    def timer_lazy(self, func: Callable[P, R] | None = None, /, **setup: Any) -> Any:
        """Declare a function that uWSGI calls each *seconds* once the timer has been called.

        *iterations* ends it after so many turns; *target* says who runs it. Raises InvalidTask.
        """
        return self._signal(Timer, func, setup, start=False)

    @overload
    def timer(self, func: Callable[P, R], /) -> Timer[P, R]: ...
    @overload
    def timer(
        self, func: None = None, /, **setup: Any
    ) -> Callable[[Callable[P, R]], Timer[P, R]]: ...
    def timer(self, func: Callable[P, R] | None = None, /, **setup: Any) -> Any:
        """Declare a function that uWSGI calls each *seconds*, from the start of the server."""
        return self._signal(Timer, func, setup, start=True)

    @overload
    def cron_lazy(self, func: Callable[P, R], /) -> Cron[P, R]: ...
    @overload
    def cron_lazy(
        self, func: None = None, /, **setup: Any
    ) -> Callable[[Callable[P, R]], Cron[P, R]]: ...
    def cron_lazy(self, func: Callable[P, R] | None = None, /, **setup: Any) -> Any:
        """Declare a function that uWSGI calls when the time agrees, once the cron was called.

        *minute*, *hour*, *day*, *month* and *dayweek* are whole numbers; -1, the default, stands
        for any, -N for every N. The time is that of the server's time zone. Raises InvalidTask.
        """
        return self._signal(Cron, func, setup, start=False)

    @overload
    def cron(self, func: Callable[P, R], /) -> Cron[P, R]: ...
    @overload
    def cron(
        self, func: None = None, /, **setup: Any
    ) -> Callable[[Callable[P, R]], Cron[P, R]]: ...
    def cron(self, func: Callable[P, R] | None = None, /, **setup: Any) -> Any:
        """Declare a function that uWSGI calls when the time agrees, from the server's start."""
        return self._signal(Cron, func, setup, start=True)

    def _signal(
        self, kind: type[Any], func: Callable[P, R] | None, setup: dict[str, Any], *, start: bool
    ) -> Any:
        def declare(func: Callable[P, R]) -> Any:
            made = kind(func, self.server, self._absent, **setup)
            if start:
                made()
            return made

        return declare if func is None else declare(func)

    def _absent(self) -> None:
        self._warn("timers and crons do not fire: this process does not belong to uWSGI")

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    # ---- submitting -------------------------------------------------------------------------

    def submit(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> JobHandle:
        """Submit one call. Raises SubmitError; where it runs at once, what the task raises."""
        job = task.job(new_id(), args, kwargs)
        route = task.route
        if route is None or route[0] is not self._settings:
            route = self._find_route(task)
        executor = route[1]
        jobs = (job,)
        results = executor.submit(jobs) if executor else self._submit_auto(task, jobs)
        return _handle(job, results[0]) if results else JobHandle(job.id)

    def submit_all(self, task: Task[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[JobHandle]:
        """Submit all of *calls*, or raise SubmitError and take none."""
        key, name, _, *rest = task.job(new_id(), calls[0], {})
        # As Job(...) would, in a quarter of the time.
        jobs: list[Job] = [
            tuple.__new__(Job, (f"{key}.{number}", name, args, *rest))
            for number, args in enumerate(calls)
        ]
        executor = self._find_route(task)[1]
        results = executor.submit(jobs) if executor else self._submit_auto(task, jobs)
        if not results:
            return [JobHandle(job.id) for job in jobs]
        return [_handle(job, result) for job, result in zip(jobs, results, strict=True)]

    def _find_route(self, task: Task[..., Any]) -> tuple[Settings, Executor | None]:
        """Say which executor takes the calls of *task*; None if it must be asked at each call."""
        current = self.settings
        name: str = task.options.executor
        if name == TaskExecutor.AUTO:
            name = current.executor
        chosen: Executor | None
        if name == TaskExecutor.AUTO:
            chosen = self._spooler if self._spooler.ready() else None
            if not self.server.present and chosen is None:
                chosen = self._at_once()
        else:
            chosen = self.executor(name)
            if chosen.travels and not self.server.present and not chosen.ready():
                chosen = self._at_once()
        if chosen is not None and chosen.travels and not task.is_importable:
            raise InvalidTask(f"{task.name}: {_UNREACHABLE}")
        route = task.route = (current, chosen)
        return route

    def _submit_auto(self, task: Task[..., Any], jobs: Sequence[Job]) -> Sequence[Result]:
        """Try a mule, and run *jobs* here if there is none, or it does not take them."""
        if self._mule.ready():
            try:
                return self._mule.submit(jobs)
            except SubmitError as error:
                log.warning("%s runs at once, in the caller's process: %s", task.name, error)
        return self._at_once().submit(jobs)

    def _at_once(self) -> Executor:
        self._warn(
            "this uWSGI has no spooler and no mule that answers: tasks run at once, in the "
            "process of the caller"
            if self.server.present
            else "uWSGI is not running here: tasks run at once, in the process of the caller"
        )
        return self.executor(TaskExecutor.RUNTIME)

    # ---- executors --------------------------------------------------------------------------

    def executor(self, name: str) -> Executor:
        """Return the executor of this name. Raises ConfigurationError."""
        found = self._executors.get(name)
        return found if found is not None else self._build(name)

    def _build(self, name: str) -> Executor:
        with self._building:
            if name not in self._executors:
                made = load(str(name))(self.server, lambda: self.settings)
                self._listen(made)
                self._executors[name] = made
            return self._executors[name]

    def _listen(self, executor: Executor) -> None:
        executor.listen(
            Worker(
                surroundings=Surroundings(executor.name, partial(self._follow, executor)),
                tasks=self.tasks,
                find=self.find,
                bury=self._bury,
            )
        )

    @staticmethod
    def _follow(executor: Executor, job: Job) -> JobHandle:
        results = executor.follow(job)
        return _handle(job, results[0]) if results else JobHandle(job.id)

    def set_uwsgi_callbacks(self) -> None:
        """Tell uWSGI to hand us the jobs of its spoolers and mules; done by the first `task`.

        Raises ConfigurationError if everybody may write to a spooler's directory.
        """
        if not self.server.has_master:
            return
        self._spooler.check_directories()
        self.server.install(self._spooler.receive, self._mule.receive, self._forked)

    def _forked(self) -> None:
        """Take up the work of a process that uWSGI has just forked."""
        if self.server.role == "spooler":
            # uWSGI would print it, and go on; the first job then tries again.
            try:
                self._spooler.start()
            except Exception:
                log.exception("this spooler could not take up its work")

    # ---- what a worker needs ----------------------------------------------------------------

    def find(self, name: str) -> Task[..., Any]:
        """Return the task of this name, importing its module if need be. Raises TaskNotFound."""
        found = self.tasks.find(name)
        if found is None:
            # uWSGI hands all jobs to the app that was first; they may be another one's.
            others = (app.tasks.get(name) for app in _apps if app.server.shares(self.server))
            found = next((task for task in others if task is not None), None)
        if found is None:
            raise TaskNotFound(f"no task {name} is declared: was it renamed or removed?")
        return found

    def _bury(self, variables: Mapping[str, str | bytes], body: bytes) -> Path:
        return spool.bury(self.dead_letters(), variables, body)

    def dead_letters(self) -> Path:
        """Return the folder of dead letters. Raises ConfigurationError."""
        folder = self._spooler.dead_letters()
        if folder is not None:
            return folder
        if self.settings.dead_dir is not None:
            folder = Path(self.settings.dead_dir)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return folder
        return _private_folder() / "dead"


def _handle(job: Job, result: Result) -> JobHandle:
    if result.error is not None:
        raise result.error
    return JobHandle(job.id, result)


def _private_folder() -> Path:
    import tempfile  # noqa: PLC0415  it imports every kind of compression

    path = Path(tempfile.gettempdir()) / f"uwsgi_tasks-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigurationError(f"{path} is not private: set 'dead_dir' to a folder that is")
    return path
