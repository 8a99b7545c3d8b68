"""Everything that is known of one job, wherever it is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from uwsgi_tasks.cli import Session, command, described, shown, tables, unknown
from uwsgi_tasks.errors import shown as error_text
from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.model import DeadLetter, Job, Record, Standing, State

_KEYS = (
    *("task", "executor", "attempt", "submitted_at", "due_at", "started_at", "ended_at"),
    *("failed_at", "priority", "progress", "place", "worker", "error", "traceback"),
)
_NAMES = {"submitted_at": "submitted", "due_at": "due", "started_at": "started"}
_NAMES |= {"ended_at": "ended", "failed_at": "failed", "worker": "where"}


@dataclass(frozen=True, kw_only=True)
class _Known:
    state: State | None
    """None if it has ended, and nobody has kept how."""
    record: Record | None
    standing: Standing | None
    """As its executor sees it, while it waits or runs."""
    job: Job | None
    """As it lies there."""
    letter: DeadLetter | None

    def document(self) -> dict[str, Any]:
        """Return what all sources say of it together; the first that knows something is right."""
        whole: dict[str, Any] = dict.fromkeys(_KEYS)
        for source in self._sources():
            for key in _KEYS:
                if whole[key] is None:
                    whole[key] = source.get(key)
        return {"state": self.state and str(self.state), **whole, "dead": self.letter is not None}

    def _sources(self) -> Iterator[dict[str, Any]]:
        if self.record:
            yield described.record_document(self.record)
        if self.standing:
            yield described.job_document(self.standing, time.time())
        if self.letter:
            yield described.letter_document(self.letter)
            yield {"traceback": self.letter.traceback or None}


@click.command("show")
@click.argument("id")
@command
def show_job(session: Session, id: str) -> None:  # noqa: A002  the word that its user reads
    """Show everything that is known of a job: waiting, running, ended or dead."""
    known = _find(session, id)
    arguments, call = _arguments(session, known)
    result, value = None, None
    if known.state is State.SUCCEEDED:
        result, value = _value(session.app.job(id))
    whole = {"id": id, **known.document(), "arguments": arguments, "result": result}
    if session.emit(whole):
        return
    whole |= {"arguments": call, "result": value}
    tables.show_pairs((_NAMES.get(name, name), _text(name, found)) for name, found in whole.items())
    if known.letter:
        session.tell(f"It is a dead letter: 'uwsgi-tasks dead requeue {id}' runs it again.")


def _text(name: str, found: Any) -> str | None:
    if found is None or name == "dead":
        return None
    return shown.progress(**found) if name == "progress" else str(found)


def _arguments(session: Session, known: _Known) -> tuple[dict[str, Any] | None, str | None]:
    """Return the arguments of a job, for JSON and for a person."""
    if known.job:
        return described.arguments(known.job), described.call(known.job)
    return session.called_with(known.letter) if known.letter else (None, None)


def _value(handle: JobHandle) -> tuple[Any, str]:
    """Return what a job returned, for JSON and for a person."""
    try:
        value = handle.result(0)
    # Reading it back runs the constructors of what was returned.
    except Exception as error:  # noqa: BLE001
        text = f"(unreadable: {error_text(error)})"
        return text, text
    return shown.as_json(value), shown.safe_repr(value)


def _find(session: Session, id: str) -> _Known:  # noqa: A002  it is the job's id
    """Return what is known of a job. Raises Failure if that is nothing."""
    session.look()
    job, standing = session.app.read(id), session.app.standing(id)
    handle = session.app.job(id)
    record, letter = handle.record, session.app.dead.get(id)
    state = session.state(handle)
    if all(found is None for found in (job, standing, record, letter, state)):
        raise unknown(id)
    return _Known(state=state, record=record, standing=standing, job=job, letter=letter)
