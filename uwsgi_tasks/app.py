"""Puts everything together: settings, server, executors, and the tasks that are declared."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, overload
from weakref import WeakSet

from uwsgi_tasks import probe
from uwsgi_tasks import settings as settings_module
from uwsgi_tasks.attempts import Worker
from uwsgi_tasks.checking import Checking
from uwsgi_tasks.current import Surroundings
from uwsgi_tasks.data_queue import DataQueue
from uwsgi_tasks.dead_letters import DeadLetters
from uwsgi_tasks.errors import (
    InvalidTask,
    StoreError,
    TaskNotFound,
)
from uwsgi_tasks.executors import Consumer, Consuming, Executor, load
from uwsgi_tasks.executors.mule import MuleExecutor
from uwsgi_tasks.executors.runtime import RuntimeExecutor
from uwsgi_tasks.executors.spooler import SpoolerExecutor
from uwsgi_tasks.executors.thread import ThreadExecutor
from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.keeping import Keeping
from uwsgi_tasks.ledger import Ledger
from uwsgi_tasks.limits import alarm
from uwsgi_tasks.model import (
    Count,
    Job,
    Standing,
    Stop,
    TaskExecutor,
)
from uwsgi_tasks.onion import Onion
from uwsgi_tasks.redis.script import Redis
from uwsgi_tasks.registry import Registry
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.signals import Cron, Timer
from uwsgi_tasks.stores import Store
from uwsgi_tasks.submitting import Submitting
from uwsgi_tasks.task import Task, options
from uwsgi_tasks.tracker import Tracker

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_server = Server()
"""The one that this process belongs to."""
_apps: WeakSet[App] = WeakSet()


class App:
    """The tasks of one application, and the ways that their calls take.

    The functions of the package are bound to a default one; another is for tests, or for
    settings of its own: ``App(spooler_dir="/var/spool/other")``.
    """

    def __init__(self, server: Server | None = None, **overrides: Any) -> None:
        self.server = server or _server
        self.tasks = Registry()
        self._onion = Onion()
        self.middleware, self.fixture = self._onion.middleware, self._onion.fixture
        self.on_submit = self._onion.on_submit
        self._overrides = overrides
        self._settings: Settings | None = None
        self._building = threading.RLock()
        self._warned: set[str] = set()
        # Read anew each time: they may change, and Django may not be there yet.
        settings = self._read_settings
        ways = self.server, settings
        self._spooler, self._mule = SpoolerExecutor(*ways), MuleExecutor(*ways)
        self._thread = ThreadExecutor(*ways)
        self._mule.relay = self._spooler
        stand_in = RuntimeExecutor(*ways, waits=False)
        self._spooler.answer = self._answer
        self._executors: dict[str, Executor] = {
            TaskExecutor.THREAD: self._thread,
            TaskExecutor.SPOOLER: self._spooler,
            TaskExecutor.MULE: self._mule,
        }
        self._keeping = Keeping(self.server, settings, self._spooler)
        store = lambda: self.store  # noqa: E731
        self._checking = Checking(*ways, self.executor, store)
        self._ledger = Ledger(store, settings, self._keeping, lambda: self.server.role)
        self._tracker = Tracker(self._tracking, store, settings, self._ledger)
        self._submitting = Submitting(
            self.server,
            settings,
            self.executor,
            spooler=self._spooler,
            mule=self._mule,
            stand_in=stand_in,
            ledger=self._ledger,
            tracker=self._tracker,
            warn=self._warn,
            onion=self._onion,
        )
        # Not methods of ours: each call would pay for one more frame.
        self.submit, self.submit_all = self._submitting.submit, self._submitting.submit_all
        self.attempts = self._submitting.attempts
        kept = self._keeping
        self.dead = DeadLetters(
            store, kept.dead_folder, kept.dead_folders, settings, self._submitting
        )
        """The dead letters."""
        self._thread.ended, self._thread.gave_up = self.dead.outlive, self._onion.give_up
        for executor in (*self._executors.values(), stand_in):
            self._listen(executor)
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
        return self._read_settings()

    def _read_settings(self) -> Settings:
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
        self._checking.check(task)

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

    # ---- executors --------------------------------------------------------------------------

    def executor(self, name: str) -> Executor:
        """Return the executor of this name. Raises ConfigurationError."""
        found = self._executors.get(name)
        return found if found is not None else self._build(name)

    def _tracking(self) -> Sequence[Executor]:
        """Return the executors that can tell what waits and what runs."""
        if self._read_settings().has_redis:
            self.executor(TaskExecutor.REDIS)
        return [one for one in tuple(self._executors.values()) if one.tracks or one is self._thread]

    def consume(self, consuming: Consuming, executor: str = TaskExecutor.REDIS) -> Consumer:
        """Return what takes jobs of *executor* in this process. Raises ConfigurationError."""
        # Where the store is away, somebody does so later.
        with contextlib.suppress(StoreError, OSError):
            self._keeping.adopt_counts()
        return self.executor(executor).consume(consuming, sorted(self.tasks))

    def _build(self, name: str) -> Executor:
        with self._building:
            if name not in self._executors:
                made = load(str(name))(self.server, self._read_settings)
                self._listen(made)
                self._executors[name] = made
            return self._executors[name]

    def _listen(self, executor: Executor) -> None:
        ledger = self._ledger

        # In its own process it may know; in all others it is the store that does.
        def advance(job: Job, done: float, total: float | None) -> None:
            executor.show_progress(job, done, total)
            if not executor.follows(job):
                ledger.show_progress(job, done, total)

        def asked(job: Job) -> Stop:
            stop = executor.asked(job)
            return stop if stop or executor.follows(job) else ledger.asked(job)

        executor.listen(
            Worker(
                surroundings=Surroundings(
                    executor.name,
                    partial(self._submitting.follow, executor),
                    advance,
                    asked,
                    self._onion.open,
                    executor.extend,
                    executor.holds,
                    executor.is_ours,
                ),
                tasks=self.tasks,
                find=self.find,
                keep=self.dead.keep,
                ledger=self._ledger,
                settings=self._read_settings,
                limit=self.server.end_after if executor.needs_server else executor.limit,
                tracks=executor.tracks,
                onion=self._onion,
                plain=executor.plain,
                is_threaded=executor.is_threaded,
            )
        )

    @contextlib.contextmanager
    def diverted_to(self, executor: Executor, **settings: Any) -> Iterator[None]:
        """Send every call of every task to *executor*, under these *settings*, meanwhile.

        What a store in memory keeps is forgotten in the end.
        """
        self._listen(executor)
        submitting, keeping = self._submitting, self._keeping
        before = submitting.diversion, self._overrides, keeping.stores
        submitting.diversion, self._overrides = executor, {**self._overrides, **settings}
        keeping.stores, keeping.is_alone = {}, True
        # Other settings: the routes that tasks remember do not hold any more.
        self._settings = None
        try:
            yield
        finally:
            made, keeping.is_alone = keeping.stores, False
            submitting.diversion, self._overrides, keeping.stores = before
            self._settings = None
            for store in made.values():
                store.close()

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
        if self.server.role == "mule":
            # Its tasks are asked by their own alarms; any other must not end it.
            alarm.watch(lambda: False)
        if self.server.role == "spooler":
            # uWSGI would print it, and go on; the first job then tries again.
            try:
                self._spooler.start()
            except Exception:
                log.exception("this spooler could not take up its work")

    def data_queue(
        self,
        name: str,
        *,
        attempts: int = 1,
        lease: float | timedelta | None = None,
        dead_letter: bool | str = False,
    ) -> DataQueue:
        """Return the data queue of this name, on the Redis of this app: items, and no tasks.

        *attempts* says how often an item is given out that was read under a *lease* and not done
        (0: no limit), and *dead_letter* whether it is kept then, or where. Redis is not reached
        before it is used. Raises InvalidTask.
        """
        return DataQueue(
            name,
            client=self._redis,
            namespace=lambda: self._read_settings().namespace,
            attempts=attempts,
            lease=lease,
            dead_letter=dead_letter,
        )

    def _redis(self) -> Redis:
        # It is one of those that `load` finds, and the only one that has a client.
        found: Any = self.executor(TaskExecutor.REDIS)
        client: Redis = found.queues.client
        return client

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

    def _answer(self, env: dict[Any, Any], directory: Path) -> None:
        probe.answer(
            env,
            directory,
            server=self.server,
            settings=self.settings,
            find=self.find,
            declared=self.tasks,
        )

    # ---- what became of it ------------------------------------------------------------------

    def job(self, id: str) -> JobHandle:  # noqa: A002
        """Return the handle of any job, whoever submitted it."""
        return JobHandle(id, None, self._tracker)

    def jobs(
        self,
        limit: int | None = None,
        *,
        running: bool = False,
        where: Callable[[Standing], bool] | None = None,
    ) -> list[Standing]:
        """Return what runs and waits: in this process, in the spoolers known here, on Redis.

        Of each the oldest comes first.
        *running* leaves out what waits, which is cheap however much that is; *where* takes those
        alone for which it is true, and must open one file after the other to find them.
        """
        found: list[Standing] = []
        for executor in self._tracking():
            left = None if limit is None else limit - len(found)
            if left is None or left > 0:
                found += executor.standings(left, running=running, where=where)
        return found

    def standing(self, id: str) -> Standing | None:  # noqa: A002
        """Return where a job stands that waits or runs; None if it does neither."""
        return self._tracker.standing(id)

    def read(self, id: str) -> Job | None:  # noqa: A002
        """Return a job that waits or runs, to look at; None if it does neither.

        Nothing of yours is executed: objects in its arguments are stand-ins, but for a job of this
        process, which is itself.
        """
        found = (executor.read(id) for executor in self._tracking())
        return next((job for job in found if job is not None), None)

    def waiting(self) -> int:
        """Return how many jobs wait, run or are of the future, as far as anybody can tell.

        Of spoolers it counts files, each of which may hold many calls.
        """
        return sum(executor.count() for executor in self._tracking())

    def stats(
        self, since: float, until: float | None = None, task: str | None = None
    ) -> list[Count]:
        """Return the runs of each task by minute and outcome, also of the present minute.

        *since* and *until* are in seconds since 1970. Raises StoreError.
        """
        return self._keeping.stats(since, until, task)

    def purge(self) -> int:
        """Delete what has expired in the store; counts after thirty days. Raises StoreError."""
        return self._keeping.purge()

    @property
    def store(self) -> Store:
        """What remembers results, dead letters and counts. Raises ConfigurationError."""
        return self._keeping.store
