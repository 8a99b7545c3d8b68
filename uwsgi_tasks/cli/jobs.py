"""Jobs: list, cancel, wait."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from uwsgi_tasks.cli import (
    Code,
    Failure,
    Session,
    command,
    described,
    given,
    no,
    tables,
    unknown,
)
from uwsgi_tasks.errors import ResultNotKept
from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.model import Standing, State

_STATES = (str(State.QUEUED), described.DELAYED, str(State.RUNNING), str(State.RETRYING))


@click.command("ls")
@click.option("-n", "limit", default=50, show_default=True, help="How many; 0 for all.")
@click.option("--task", help="Of this task only.")
@click.option("--state", type=click.Choice(_STATES), help="In this state only.")
@command
def list_jobs(session: Session, limit: int, task: str | None, state: str | None) -> None:
    """List the jobs that wait or run, in the spooler and on Redis, of each the oldest first.

    A delayed job is one whose time has not come; a retrying one has failed, and waits for its
    next attempt.
    """
    session.look()
    now = time.time()
    jobs = _listed(session, limit or None, task, state, now)
    count = session.app.waiting()
    if session.emit({"jobs": [described.job_document(job, now) for job in jobs], "count": count}):
        return
    tables.show_table(described.JOB_HEADINGS, described.job_rows(jobs, now))
    session.say_how_many(len(jobs), count)


def _listed(
    session: Session, limit: int | None, task: str | None, state: str | None, now: float
) -> Sequence[Standing]:
    if task is None and state is None:
        return session.app.jobs(limit)

    def fits(job: Standing) -> bool:
        return task in {None, job.task} and state in {None, described.state(job, now)}

    return session.app.jobs(limit, running=state == State.RUNNING, where=fits)


@click.command("cancel")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--kill", is_flag=True, help="Stop those that run, instead of asking them to stop.")
@command
def cancel(session: Session, ids: tuple[str, ...], kill: bool) -> None:  # noqa: FBT001  click's
    """Cancel jobs.

    One that waits will certainly not run. One that runs is asked to stop, which its task must look
    for; --kill ends it.
    """
    session.look()
    cancelled: list[str] = []
    failed: dict[str, str] = {}
    for one in ids:
        reason = _cancel(session.app.job(one), kill=kill)
        if reason is None:
            cancelled.append(one)
            session.tell(f"{one} cancelled")
        else:
            failed[one] = reason
            session.complain(f"{one}: {reason}")
    session.emit({"cancelled": cancelled, "failed": failed})
    if failed:
        no()


def _cancel(handle: JobHandle, *, kill: bool) -> str | None:
    """Cancel a job; return why it could not be, or None."""
    try:
        if handle.cancel(kill=kill):
            return None
        state = handle.state
    except ResultNotKept:
        return "not cancelled: it has ended, or never was"
    if state is State.CANCELLED:
        # It has done as it was asked, in this moment.
        return None
    if state.is_final:
        return f"not cancelled: it has {state}"
    if kill:
        return "it runs, and is being stopped: 'uwsgi-tasks wait' tells when it has ended"
    return "it runs, and was asked to stop; --kill stops it"


@click.command("wait")
@click.argument("id")
@click.option("--timeout", type=given.span, metavar="SPAN", help="At most so long.")
@click.option(
    "--until",
    type=click.Choice(["running", "ended"]),
    default="ended",
    show_default=True,
    help="For its end, or for its beginning.",
)
@command
def wait(
    session: Session,
    id: str,  # noqa: A002  the word that its user reads
    timeout: float | None,
    until: str,
) -> None:
    """Wait for a job, and say where it stands.

    The exit code is 1 if it failed or was cancelled, and 3 if the time is over.
    """
    handle = session.app.job(id)
    if session.state(handle) is None:
        raise unknown(id)
    begun = until == "running"
    if not handle.wait(timeout, until=State.RUNNING if begun else None):
        missing = "begun" if begun else "ended"
        raise Failure(f"{id} has not {missing} within {timeout:g} seconds", Code.LATE)
    state = session.state(handle)
    record = handle.record
    error = record.error if record else None
    session.tell(f"{id} {state or 'has ended; how, is kept only of tasks with result_ttl='}")
    if not session.emit({"id": id, "state": state and str(state), "error": error}) and error:
        session.complain(error)
    if state in {State.FAILED, State.CANCELLED}:
        no()
