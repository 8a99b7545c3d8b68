"""Tasks: list what is declared, submit a call."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

import click

from uwsgi_tasks.cli import Code, Failure, Session, command, given, shown, tables
from uwsgi_tasks.errors import TaskNotFound, TasksError
from uwsgi_tasks.errors import shown as error_text
from uwsgi_tasks.model import TaskExecutor
from uwsgi_tasks.task import Options, Task

_KEPT = 3600.0
"""Seconds for which a result is kept that --wait asks for, of a task that keeps none."""
_DEFAULTS = Options()


@click.command("tasks")
@command
def list_tasks(session: Session) -> None:
    """List the declared tasks, with those of their options that are not the default.

    Name the modules that declare them: uwsgi-tasks -m shop.tasks tasks
    """
    found = {task.name: task for task in session.app.tasks.values()}
    tasks = [found[name] for name in sorted(found)]
    if session.emit({"tasks": [{"name": task.name, "options": _options(task)} for task in tasks]}):
        return
    if not tasks:
        session.complain("no task is declared: name the modules that declare them with -m MODULE")
    tables.show_table(("TASK", "OPTIONS"), [(task.name, _written(task)) for task in tasks])


def _options(task: Task[..., Any]) -> dict[str, Any]:
    return {
        entry.name: getattr(task.options, entry.name)
        for entry in fields(Options)
        if entry.init and getattr(task.options, entry.name) != getattr(_DEFAULTS, entry.name)
    }


def _written(task: Task[..., Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in _options(task).items())


def _value(value: Any) -> str:
    return repr(str(value)) if isinstance(value, str) else shown.safe_repr(value)


@click.command("submit")
@click.argument("task")
@click.argument("texts", nargs=-1, metavar="[ARG | NAME=ARG]...")
@click.option("--text", "as_text", is_flag=True, help="Take the arguments as texts, not as JSON.")
@given.takes_call_options
@click.option("--executor", help="How it travels, if not as its task says.")
@click.option("--wait", "wait", is_flag=True, help="Wait for the result, and print it.")
@click.option("--timeout", type=given.span, metavar="SPAN", help="With --wait: at most so long.")
@command
def submit(
    session: Session,
    task: str,
    texts: tuple[str, ...],
    as_text: bool,  # noqa: FBT001  click hands it in by name
    executor: str | None,
    wait: bool,  # noqa: FBT001  click hands it in by name
    timeout: float | None,
    **options: Any,
) -> None:
    """Submit a call of TASK, which is written module:task or as in its job's name.

    Each ARG is JSON, and NAME=ARG a keyword argument: 42, '"a text"', 'sizes=[1, 2]'. Write --
    before arguments that begin with a dash.
    """
    args, kwargs = given.arguments(texts, as_text=as_text)
    chosen = given.call_options(**options)
    found = _task(session, task)
    chosen["executor"] = _executor(session, found, executor, chosen.get("queue"))
    if wait and not (found.options.result_ttl or session.app.settings.result_ttl):
        chosen["result_ttl"] = _KEPT
    try:
        handle = found.using(**chosen)(*args, **kwargs)
        ended = wait and handle.wait(timeout)
        value = handle.result(0) if ended else None
    except TasksError:
        raise
    # What the task raised, here or where it ran.
    except Exception as error:
        raise Failure(f"{found.name} failed: {error_text(error)}", Code.NO) from error
    if wait and not ended:
        raise Failure(f"{handle.id} has not ended in time, and goes on", Code.LATE)
    answer = {"id": handle.id, "task": found.name, **({"result": value} if wait else {})}
    if not session.emit(answer):
        session.tell(shown.value(value) if wait else handle.id)


def _task(session: Session, name: str) -> Task[..., Any]:
    """Return the task that the user means. Raises TaskNotFound."""
    module, colon, path = name.partition(":")
    if not colon:
        return session.app.find(name)
    try:
        found: Any = import_module(module)
    # The user's module: anything may go wrong in it.
    except Exception as error:
        raise Failure(f"importing {module} failed: {error_text(error)}", Code.WRONG) from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, Task):
        raise TaskNotFound(
            f"{name} is no task: 'uwsgi-tasks -m {module} tasks' lists those of the module"
        )
    return found


def _executor(session: Session, task: Task[..., Any], wanted: str | None, queue: str | None) -> str:
    """Return how a call shall travel from here. Raises Failure if it cannot."""
    name, settings = wanted or task.options.executor, session.app.settings
    if name == TaskExecutor.AUTO:
        name = settings.executor
    if name == TaskExecutor.AUTO and queue is not None:
        name = TaskExecutor.REDIS
    if name == TaskExecutor.AUTO:
        if settings.spooler_dir is None and settings.has_redis:
            raise Failure(
                f"{task.name} goes to a spooler, and none is known: name it with --spooler DIR, or "
                "choose --executor redis",
                Code.WRONG,
            )
        name = TaskExecutor.SPOOLER
    if name == TaskExecutor.SPOOLER:
        # Without one it would run here, at once: not what somebody means who submits.
        session.spooler()
    if name == TaskExecutor.MULE:
        raise Failure(
            "a mule gets messages only from inside its uWSGI: choose --executor spooler or redis, "
            "or runtime to run it here",
            Code.WRONG,
        )
    return name
