"""The queues on Redis, and who serves them."""

from __future__ import annotations

import click

from uwsgi_tasks.cli import Code, Session, ask, command, shown, tables
from uwsgi_tasks.model import TaskExecutor

_QUEUE_HEADINGS = ("QUEUE", "WAITING", "DELAYED", "RUNNING")
_WORKER_HEADINGS = ("WORKER", "QUEUES", "THREADS", "RAN", "MEMORY", "TASKS", "SINCE")


@click.command("queues")
@command
def queues(session: Session) -> None:
    """Show how many jobs are in each queue on Redis."""
    found = session.app.executor(TaskExecutor.REDIS).sizes()
    if session.emit({"queues": {name: sizes._asdict() for name, sizes in found.items()}}):
        return
    rows = [[name, *(f"{number:,}" for number in sizes)] for name, sizes in found.items()]
    tables.show_table(_QUEUE_HEADINGS, rows)


@click.command("workers")
@command
def workers(session: Session) -> None:
    """Show the workers on Redis, of all machines, that gave a sign of life in the last minute."""
    found = session.app.executor(TaskExecutor.REDIS).workers()
    times = {one.name: shown.stamp(one.started_at) or "" for one in found}
    if session.emit(
        {"workers": [{**one._asdict(), "started_at": times[one.name]} for one in found]}
    ):
        return
    rows = [
        (
            one.name,
            ",".join(one.queues),
            str(one.threads),
            f"{one.ran:,}",
            f"{one.memory / 2**20:.0f} MB",
            str(len(one.tasks)),
            times[one.name],
        )
        for one in found
    ]
    tables.show_table(_WORKER_HEADINGS, rows)


@click.command("empty")
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
def empty(session: Session, queue: str, yes: bool) -> int:  # noqa: FBT001  click's
    """Take away all jobs that wait in QUEUE on Redis; what runs goes on."""
    executor = session.app.executor(TaskExecutor.REDIS)
    if not yes:
        ask(f"Take away all jobs that wait in {queue} at {executor.place}?")
    count = executor.purge(queue)
    if not session.emit({"taken_away": count}):
        session.tell(f"{count:,} taken away")
    return Code.DONE if count else Code.NO
