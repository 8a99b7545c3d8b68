"""The command `worker`: run jobs from Redis."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from uwsgi_tasks import worker as program
from uwsgi_tasks.app import App
from uwsgi_tasks.cli import Code, Failure, Session, command, given, load, shown
from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.errors import shown as shown_error
from uwsgi_tasks.executors import Consuming
from uwsgi_tasks.settings import django_tasks, parse_queues

_FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"
_SHOWN = 12
"""Tasks that the banner names."""
_PORTS = 65_536
_MEGABYTE = 2**20


def _address(text: str) -> tuple[str, int]:
    """Return host and port of ``8080`` or ``0.0.0.0:8080``. Raises click.BadParameter."""
    host, _, port = text.rpartition(":")
    if not (port.isdecimal() and 0 < int(port) < _PORTS):
        raise click.BadParameter(f"{text!r} is no port: write 8080, or 0.0.0.0:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


def _queues(text: str) -> list[tuple[str, int | None]]:
    """Return names and weights. Raises click.BadParameter."""
    try:
        return parse_queues(text)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from error


@click.command("worker")
@click.option(
    "-m",
    "--module",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="Import this module first, so that its tasks are declared. May be repeated.",
)
@click.option(
    "-q",
    "--queues",
    type=_queues,
    metavar="NAMES",
    help="high,default: the first ones first; high=3,default=1: by weight.  [default: the setting "
    "queues, or default]",
)
@click.option(
    "-c",
    "--concurrency",
    "threads",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Jobs that each process runs at a time, on threads.",
)
@click.option("-p", "--processes", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option(
    "--grace",
    type=given.span,
    default="30s",
    show_default=True,
    metavar="SPAN",
    help="What runs has so long to end after a SIGTERM; then it is given back.",
)
@click.option(
    "--max-jobs",
    type=click.IntRange(1),
    help="A process that has run so many is replaced, when what it runs has ended.",
)
@click.option(
    "--max-memory",
    type=click.IntRange(1),
    metavar="MB",
    help="One that has grown so large, too.",
)
@click.option(
    "--health", type=_address, metavar="[HOST:]PORT", help="Answer probes there: 200, or 503."
)
@click.option("--reload", "reloads", is_flag=True, help="Start anew when Python files here change.")
@command
def worker(
    session: Session,
    modules: Sequence[str],
    queues: list[tuple[str, int | None]] | None,
    reloads: bool,  # noqa: FBT001  click hands it in by name
    max_memory: int | None,
    **limits: Any,
) -> int:
    """Run jobs from Redis, until it is told to end: SIGTERM, SIGINT or Ctrl-C.

    It finishes what it runs, for as long as --grace says, gives the rest back, and exits with 0.
    A second signal ends it at once; others run its jobs then when their leases are over.
    """
    program.end_when_told()
    here = Path.cwd()
    # Before they are imported: what changes meanwhile is another program.
    changed = program.changes([here]) if reloads else None
    try:
        _declare(session.app, modules)
    except Failure as error:
        if changed is None:
            raise
        session.complain(f"{error}; it starts anew when a file changes")
        program.end_when_told()
        next(changed, None)
        # It ends when a signal comes, too.
        program.end_when_told()
        program.start_anew(here)
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format=_FORMAT)
    plan = program.Plan(
        processes=limits.pop("processes"),
        health=limits.pop("health"),
        reload=changed,
        consuming=Consuming(
            queues=queues or parse_queues(session.app.settings.queues),
            max_memory=max_memory and max_memory * _MEGABYTE,
            **limits,
        ),
    )
    click.echo(shown.clean(_banner(session.app, plan)), err=True)
    return program.run(session.app, plan)


def _declare(app: App, modules: Sequence[str]) -> None:
    """Import what declares the tasks. Raises Failure if there are none."""
    for module in modules:
        load(module)
    if not modules:
        try:
            django_tasks()
        # The user's modules: anything may go wrong in them.
        except Exception as error:
            raise Failure(
                f"importing the tasks of Django's applications failed: {shown_error(error)}",
                Code.WRONG,
            ) from error
    if not app.tasks:
        # It would take jobs that others could run.
        raise Failure(
            "no task is declared: name the modules that declare them with -m MODULE", Code.WRONG
        )


def _banner(app: App, plan: program.Plan) -> str:
    queues = plan.consuming.queues
    is_weighted = queues[0][1] is not None
    names = [f"{name}={weight}" if is_weighted else name for name, weight in queues]
    tasks = sorted({task.name for task in app.tasks.values()})
    more = f", and {len(tasks) - _SHOWN} more" if len(tasks) > _SHOWN else ""
    facts = {
        "redis": app.executor(plan.executor).place,
        "queues": f"{', '.join(names)} ({'by weight' if is_weighted else 'in this order'})",
        "at a time": f"{plan.processes} x {plan.consuming.threads}  (pid {os.getpid()})",
        "tasks": ", ".join(tasks[:_SHOWN]) + more,
    }
    if plan.health:
        facts["health"] = f"http://{plan.health[0]}:{plan.health[1]}/"
    lines = [f"uwsgi_tasks {version('uwsgi_tasks')} worker"]
    return "\n".join(lines + [f"  {name:<10} {value}" for name, value in facts.items()])
