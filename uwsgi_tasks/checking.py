"""Whether a task, as it is declared, could ever run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from uwsgi_tasks.errors import ConfigurationError, InvalidTask
from uwsgi_tasks.executors import Executor
from uwsgi_tasks.model import TaskExecutor
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.stores import Store
from uwsgi_tasks.task import UNREACHABLE, Task

_AUTO = (TaskExecutor.SPOOLER, TaskExecutor.MULE)
"""What AUTO tries, in this order, before it runs a job at once."""


class Checking:
    """Checks tasks when they are declared, against the executors and the store that there are."""

    def __init__(
        self,
        server: Server,
        settings: Callable[[], Settings],
        executor: Callable[[str], Executor],
        store: Callable[[], Store],
    ) -> None:
        self._server, self._settings = server, settings
        self._executor, self._store = executor, store

    def check(self, task: Task[..., Any]) -> None:
        """Raise InvalidTask if no call of *task* could ever run as its options say."""
        try:
            self._check_places(task)
            self._check_executor(task)
            self._check_store(task)
        except InvalidTask as error:
            raise InvalidTask(f"{task.name}: {error}") from None

    @staticmethod
    def _check_places(task: Task[..., Any]) -> None:
        given = task.options
        for option in (TaskExecutor.SPOOLER, TaskExecutor.MULE):
            if getattr(given, option) is not None and given.executor not in {"auto", option}:
                raise InvalidTask(f"{option}= is for the {option}, not for {given.executor}")
        is_here = given.executor in {TaskExecutor.RUNTIME, TaskExecutor.THREAD}
        if is_here and isinstance(given.working_dir, str):
            raise InvalidTask("working_dir= is for other processes: this one stays where it is")
        if given.executor == TaskExecutor.REDIS and isinstance(given.working_dir, str):
            raise InvalidTask("working_dir= is for this machine: a worker stays where it is")
        if given.executor == TaskExecutor.THREAD and given.timeout and not task.is_coroutine:
            raise InvalidTask(
                "timeout=: nobody can end a thread; make the function a coroutine, or use the "
                "spooler"
            )

    def _check_executor(self, task: Task[..., Any]) -> None:
        given = task.options
        for executor in self._candidates(given.executor):
            if executor.travels:
                if executor.needs_server:
                    self._server.require_master()
                # Where everything runs at once, as in a test or a shell, any function will do.
                if self._server.present and not task.is_importable:
                    raise InvalidTask(UNREACHABLE)
            missing = executor.missing()
            if missing is None:
                executor.check(given)
                return
            if given.executor != TaskExecutor.AUTO:
                raise InvalidTask(missing)
        if self._server.present and (given.at is not None or given.priority is not None):
            raise InvalidTask(
                "at= and priority= need a spooler: add 'spooler = DIRECTORY' to the configuration "
                "of this uWSGI, or use executor=TaskExecutor.THREAD"
            )

    def _check_store(self, task: Task[..., Any]) -> None:
        given = task.options
        if not given.result_ttl and given.unique is None:
            return
        option = "unique=" if given.unique is not None else "result_ttl="
        try:
            is_shared = self._store().shared
        except ConfigurationError as error:
            raise InvalidTask(f"{option} needs a store: {error}") from error
        travels_far = self._meant(given.executor) == TaskExecutor.REDIS
        if not is_shared and (self._server.present or travels_far):
            raise InvalidTask(
                f"{option} needs a store that all processes see which run tasks: set 'redis', or "
                "'store' to the URL of a database, such as 'sqlite:////srv/site/tasks.sqlite3'"
            )

    def _meant(self, name: str) -> str:
        """Return the executor that *name* stands for: AUTO for what the settings say."""
        return self._settings().executor if name == TaskExecutor.AUTO else name

    def _candidates(self, name: str) -> Iterator[Executor]:
        meant = self._meant(name)
        if name == meant != TaskExecutor.AUTO or not (
            meant == TaskExecutor.AUTO or self._executor(meant).needs_server
        ):
            yield self._executor(meant)
            return
        yield from (self._executor(each) for each in _AUTO)
        if self._settings().fallback == TaskExecutor.THREAD:
            yield self._executor(TaskExecutor.THREAD)
