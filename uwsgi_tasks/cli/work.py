"""The command line: workers and queues on Redis."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import click

from uwsgi_tasks import worker as program
from uwsgi_tasks.cli import Code, Session, command, load, shown
from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.executors import Consuming
from uwsgi_tasks.model import TaskExecutor
from uwsgi_tasks.settings import parse_queues

_FORMAT = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"
_SHOWN = 12
"""Tasks that the banner names."""


def _address(text: str) -> tuple[str, int]:
    """Return host and port of ``8080`` or ``0.0.0.0:8080``. Raises click.BadParameter."""
    host, _, port = text.rpartition(":")
    if not (port.isdecimal() and int(port) < 65_536):  # noqa: PLR2004  ports end there
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
    help="high,default: the first ones first; high=3,default=1: by weight. [default: default]",
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Jobs that each process runs at a time, on threads.",
)
@click.option("-p", "--processes", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="What runs has so long to end after a SIGTERM; then it is given back.",
)
@click.option(
    "--max-jobs", type=click.IntRange(1), help="A process that has run so many is replaced."
)
@click.option(
    "--max-memory", type=click.IntRange(1), metavar="MB", help="One that has grown so large, too."
)
@click.option(
    "--health", type=_address, metavar="[HOST:]PORT", help="Answer probes there: 200, or 503."
)
@click.option("--reload", "reloads", is_flag=True, help="Start anew when Python files here change.")
@command
def worker(  # noqa: PLR0913  click hands them in by name
    session: Session,
    modules: Sequence[str],
    queues: list[tuple[str, int | None]] | None,
    concurrency: int,
    processes: int,
    grace: float,
    max_jobs: int | None,
    max_memory: int | None,
    health: tuple[str, int] | None,
    reloads: bool,  # noqa: FBT001  as above
) -> int:
    """Run jobs from Redis, until it is told to end (SIGTERM, SIGINT, Ctrl-C).

    It finishes what it runs, for as long as --grace says, gives the rest back, and exits with 0.
    A second signal ends it at once; others run its jobs then when their leases are over.
    """
    for module in modules:
        load(module)
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format=_FORMAT)
    served = queues or parse_queues(session.app.settings.queues)
    consuming = Consuming(
        queues=served,
        threads=concurrency,
        grace=grace,
        max_jobs=max_jobs,
        max_memory=max_memory and max_memory * 2**20,
    )
    plan = program.Plan(
        consuming=consuming,
        processes=processes,
        health=health,
        reload=[Path.cwd()] if reloads else [],
    )
    _show_banner(session, plan)
    return program.run(session.app, plan)


def _show_banner(session: Session, plan: program.Plan) -> None:
    queues, app = plan.consuming.queues, session.app
    is_weighted = queues[0][1] is not None
    names = [f"{name}={weight}" if is_weighted else name for name, weight in queues]
    tasks = sorted(app.tasks)
    more = f", and {len(tasks) - _SHOWN} more" if len(tasks) > _SHOWN else ""
    facts = {
        "redis": app.executor(TaskExecutor.REDIS).place,
        "queues": f"{', '.join(names)} ({'by weight' if is_weighted else 'in this order'})",
        "at a time": f"{plan.processes} x {plan.consuming.threads}  (pid {os.getpid()})",
        "tasks": ", ".join(tasks[:_SHOWN]) + more or "none: name the modules with -m",
    }
    if plan.health:
        facts["health"] = f"http://{plan.health[0]}:{plan.health[1]}/"
    lines = [f"uwsgi_tasks {version('uwsgi_tasks')} worker"]
    lines += [f"  {name:<10} {value}" for name, value in facts.items()]
    click.echo(shown.clean("\n".join(lines)), err=True)


@click.command("queues")
@command
def queues(session: Session) -> None:
    """Show how many jobs are in each queue on Redis."""
    found = session.app.executor(TaskExecutor.REDIS).sizes()
    if session.emit({"queues": {name: sizes._asdict() for name, sizes in found.items()}}):
        return
    rows = [[name, *(f"{number:,}" for number in sizes)] for name, sizes in found.items()]
    session.table(("QUEUE", "WAITING", "DELAYED", "RUNNING"), rows)


@click.command("workers")
@command
def workers(session: Session) -> None:
    """Show the workers on Redis that are there, on all machines."""
    found = session.app.executor(TaskExecutor.REDIS).workers()
    if session.emit({"workers": [one._asdict() for one in found]}):
        return
    rows = [
        [one.name, ",".join(one.queues), str(one.threads), f"{one.ran:,}",
         f"{one.memory / 2**20:.0f} MB", str(len(one.tasks)), shown.stamp(one.started_at) or ""]
        for one in found
    ]  # fmt: skip
    headings = ("WORKER", "QUEUES", "THREADS", "RAN", "MEMORY", "TASKS", "SINCE")
    session.table(headings, rows)


@click.command("empty")
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
def empty(session: Session, queue: str, yes: bool) -> int:  # noqa: FBT001  click's
    """Take away all jobs that wait in QUEUE on Redis; what runs goes on."""
    if not yes:
        click.confirm(f"take away all jobs that wait in {queue}?", abort=True, err=True)
    count = session.app.executor(TaskExecutor.REDIS).purge(queue)
    if not session.emit({"taken_away": count}):
        session.tell(f"{count:,} taken away")
    return Code.DONE if count else Code.NO


COMMANDS = (worker, queues, workers, empty)
