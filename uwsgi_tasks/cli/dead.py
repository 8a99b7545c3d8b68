"""Dead letters: list, show, requeue, remove."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from uwsgi_tasks.cli import (
    Code,
    Failure,
    Session,
    ask,
    command,
    described,
    given,
    no,
    shown,
    tables,
)
from uwsgi_tasks.errors import ConfigurationError, StoreError, SubmitError, TasksError
from uwsgi_tasks.model import DeadLetter

_PAGE = 200


@click.group(no_args_is_help=False)
def dead() -> None:
    """Jobs that finally failed: look at them, run them again, remove them."""


@dead.command("ls")
@click.option("-n", "limit", default=50, show_default=True, help="How many; 0 for all.")
@click.option("--task", help="Of this task only.")
@command
def list_dead(session: Session, limit: int, task: str | None) -> None:
    """List dead letters, the newest first."""
    letters = list(_pages(session, task, limit or None))
    count = session.app.dead.count(task)
    found = [described.letter_document(letter) for letter in letters]
    if session.emit({"dead": found, "count": count}):
        return
    now = time.time()
    rows = [described.letter_row(letter, now) for letter in letters]
    tables.show_table(described.LETTER_HEADINGS, rows)
    session.say_how_many(len(letters), count)


def _pages(session: Session, task: str | None, limit: int | None = None) -> Iterator[DeadLetter]:
    """Yield dead letters, the newest first."""
    last: DeadLetter | None = None
    while limit is None or limit > 0:
        size = min(_PAGE, limit or _PAGE)
        page = session.app.dead.list(limit=size, before=last, task=task)
        yield from page
        if len(page) < size:
            return
        last = page[-1]
        limit = limit and limit - size


@dead.command("show")
@click.argument("id")
@command
def show_dead(session: Session, id: str) -> None:  # noqa: A002  the word that its user reads
    """Show a dead letter, with its arguments and its traceback."""
    letter = session.app.dead.get(id)
    if letter is None:
        raise Failure(f"no dead letter {id}: 'uwsgi-tasks dead ls' lists them", Code.NO)
    arguments, text = session.called_with(letter)
    traceback = letter.traceback or None
    whole = described.letter_document(letter)
    if session.emit({**whole, "arguments": arguments, "traceback": traceback}):
        return
    tables.show_pairs(
        [
            ("id", letter.id),
            ("task", letter.task or None),
            ("executor", letter.executor),
            ("attempt", str(letter.attempt)),
            ("failed", shown.stamp(letter.failed_at)),
            ("where", letter.worker or None),
            ("arguments", text),
            ("error", letter.error),
            ("traceback", traceback),
        ]
    )


def _takes_several(func: Callable[..., Any]) -> Callable[..., Any]:
    func = click.option("--task", help="All of this task.")(func)
    func = click.option("--all", "everything", is_flag=True, help="All of them.")(func)
    return click.argument("ids", nargs=-1, metavar="[ID]...")(func)


def _chosen(
    session: Session, ids: Sequence[str], task: str | None, *, everything: bool
) -> list[str]:
    """Return the ids that the words of the command stand for."""
    if bool(ids) == (everything or task is not None):
        raise click.UsageError("name the dead letters by their ids, or say --all or --task TASK")
    return list(ids) or [letter.id for letter in _pages(session, task)]


@dead.command("requeue")
@_takes_several
@given.takes_call_options
@command
def requeue(
    session: Session,
    ids: tuple[str, ...],
    everything: bool,  # noqa: FBT001  click hands it in by name
    task: str | None,
    at: float | None,
    delay: float | None,
    priority: int | None,
    spooler: str | None,
    queue: str | None,
) -> None:
    """Run dead letters again, from their first attempt.

    A letter is gone when its job was submitted; if it fails again, it becomes a new one.
    """
    options = given.call_options(at, delay, priority, spooler, queue)
    chosen = _chosen(session, ids, task, everything=everything)
    session.look()

    def submit(one: str) -> str | None:
        try:
            session.app.dead.requeue(one, **options)
        except (ConfigurationError, StoreError, SubmitError):
            raise
        except TasksError as error:
            return str(error)
        return None

    _each(session, chosen, "requeued", submit)


@dead.command("rm")
@_takes_several
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
def remove(
    session: Session,
    ids: tuple[str, ...],
    everything: bool,  # noqa: FBT001  click hands it in by name
    task: str | None,
    yes: bool,  # noqa: FBT001  click hands it in by name
) -> None:
    """Remove dead letters for good. With --all or --task it asks first."""
    chosen = _chosen(session, ids, task, everything=everything)
    if chosen and not ids and not yes:
        ask(f"Remove {len(chosen):,} dead letters for good?")
    removed = session.app.dead.remove
    _each(session, chosen, "removed", lambda one: None if removed(one) else "no such dead letter")


def _each(
    session: Session, ids: Sequence[str], verb: str, act: Callable[[str], str | None]
) -> None:
    """Call *act* with each id, and report; it returns why not, or None."""
    done, failed = [], {}
    try:
        for one in ids:
            reason = act(one)
            if reason is None:
                done.append(one)
                session.tell(f"{one} {verb}")
            else:
                failed[one] = reason
                session.complain(f"{one}: {reason}")
        if not ids:
            session.complain("there are no such dead letters")
    finally:
        # Also when the server went away in the middle: what was done, was done.
        session.emit({verb: done, "failed": failed})
    if failed or not done:
        no()
