"""The tasks that are declared, by name."""

from __future__ import annotations

from importlib import import_module
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

from uwsgi_tasks.errors import InvalidTask, TaskNotFound, shown
from uwsgi_tasks.task import Task


class Registry(dict[str, Task[..., Any]]):
    """Tasks by name; `find` also imports the module that declares one."""

    def __init__(self) -> None:
        super().__init__()
        # One line can make many functions, which differ in what they enclose: each is a task, for
        # as long as somebody has it.
        self._local: WeakValueDictionary[str, Task[..., Any]] = WeakValueDictionary()
        self._numbers = count(1)

    def declare(self, task: Task[..., Any]) -> None:
        """Add *task*. Raises InvalidTask if another one has its name."""
        if task.options.name is None and "<" in task.name:
            task.name = f"{task.name}#{next(self._numbers)}"
            self._local[task.name] = task
            return
        known = self.get(task.name)
        # The same lines under two names of their module, or read again, are one task.
        if known is not None and (known.place != task.place or "<" in (task.qualname or "")):
            raise InvalidTask(
                f"two tasks are called {task.name}: give one of them another name with name="
            )
        self[task.name] = task
        # Jobs of uwsgi_tasks 0.7 carry the module name that uWSGI makes up for a 'wsgi-file'.
        if task.qualname is not None:
            self.setdefault(f"{task.func.__module__}.{task.qualname}", task)

    def find(self, name: str) -> Task[..., Any] | None:
        """Return the task of this name, importing its module if need be; None if there is none.

        Raises TaskNotFound if that module cannot be imported.
        """
        found = self.get(name) or self._local.get(name)
        if found is None:
            _import_module_of(name)
            found = self.get(name)
        return found


def _import_module_of(name: str) -> None:
    """Import the longest beginning of *name* that is a module. Raises TaskNotFound."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            # It is itself missing, or one of its parents: then it was not a module.
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise TaskNotFound(f"{name}: importing {module} failed: {error}") from error
        # The user's module: anything may go wrong in it, and it may even exit.
        except BaseException as error:
            raise TaskNotFound(f"{name}: importing {module} failed: {shown(error)}") from error
        else:
            return
