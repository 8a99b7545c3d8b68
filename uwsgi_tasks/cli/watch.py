"""A live view: what runs, how far it is, what waits, and what failed last."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from uwsgi_tasks.app import App
from uwsgi_tasks.cli import Session, command, described, given, shown, tables
from uwsgi_tasks.errors import ConfigurationError, StoreError
from uwsgi_tasks.model import DeadLetter, Standing, State

_LETTERS = 5
_RUNNING = 20
_MINUTES = 5


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything that one look shows."""

    at: float
    waiting: int
    running: Sequence[Standing]
    letters: Sequence[DeadLetter]
    dead: int
    rate: float
    """Runs that ended, a minute."""
    failures: float
    """Those among them that did not succeed."""
    trouble: str = ""
    """Why the store is silent."""


def _look(app: App, now: float) -> Snapshot:
    running = app.jobs(running=True)
    waiting = app.waiting() - len(running)
    try:
        letters, dead = app.dead.list(limit=_LETTERS), app.dead.count()
        counts = app.stats(since=now - 60 * _MINUTES)
    except (StoreError, ConfigurationError) as error:
        # Files are there without it, and it may come back.
        return Snapshot(
            at=now,
            waiting=waiting,
            running=running,
            letters=[],
            dead=0,
            rate=0,
            failures=0,
            trouble=str(error),
        )
    runs = sum(count.runs for count in counts)
    good = sum(count.runs for count in counts if count.outcome == State.SUCCEEDED)
    return Snapshot(
        at=now,
        waiting=max(0, waiting),
        running=running,
        letters=letters,
        dead=dead,
        rate=runs / _MINUTES,
        failures=(runs - good) / _MINUTES,
    )


@click.command("watch")
@click.option(
    "--interval", type=given.span, default="1s", show_default=True, help="Between two looks."
)
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after so many looks.")
@command
def watch(session: Session, interval: float, count: int | None) -> None:
    """Show what happens, as it happens; Ctrl-C ends it.

    Where the output is no terminal, it prints one look after the other; with --json each is one
    line.
    """
    session.look()
    console = tables.output()
    try:
        if console.is_terminal and not session.as_json:
            _live(session.app, console, interval, count)
        else:
            for look in _looks(session.app, interval, count):
                _print(session, look)
    except KeyboardInterrupt:
        # How one ends it: no mishap.
        return


def _looks(app: App, interval: float, count: int | None) -> Iterator[Snapshot]:
    for number in itertools.count(1):
        yield _look(app, time.time())
        if number == count:
            return
        time.sleep(interval)


def _live(app: App, console: Console, interval: float, count: int | None) -> None:
    with Live(console=console, auto_refresh=False, screen=count is None) as live:
        for look in _looks(app, interval, count):
            live.update(drawn(look), refresh=True)


def _headline(look: Snapshot) -> str:
    rate = f"{look.rate:g} a minute, {look.failures:g} failing"
    parts = [f"{look.waiting:,} waiting", f"{len(look.running):,} running", f"{look.dead:,} dead"]
    return "  ".join([*parts, look.trouble or rate])


def drawn(look: Snapshot) -> RenderableType:
    """Return what a terminal shows of one look."""
    running = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    running.add_column("RUNNING", no_wrap=True)
    for heading in ("TASK", "FOR", "WHERE"):
        running.add_column(heading, overflow="fold")
    running.add_column("PROGRESS", ratio=1)
    for job in look.running[:_RUNNING]:
        row = (job.id, job.task, _for(job, look.at), job.worker or job.place)
        running.add_row(*(Text(shown.clean(cell)) for cell in row), _bar(job))
    parts: list[RenderableType] = [
        Text(shown.clean(_headline(look)), style="bold"),
        Text(),
        running,
    ]
    if len(look.running) > _RUNNING:
        parts.append(Text(f"and {len(look.running) - _RUNNING:,} more", style="dim"))
    if look.letters:
        rows = [described.letter_row(letter, look.at) for letter in look.letters]
        parts += [Text(), Text("Latest dead letters", style="bold")]
        parts.append(tables.table(described.LETTER_HEADINGS, rows))
    return Group(*parts)


def _for(job: Standing, now: float) -> str:
    return "" if job.started_at is None else shown.span(now - job.started_at)


def _bar(job: Standing) -> RenderableType:
    if job.done is None or not job.total:
        return Text(shown.progress(job.done, job.total))
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=job.total, completed=job.done, width=30), _part(job))
    return bar


def _part(job: Standing) -> Text:
    return Text(shown.progress(job.done, job.total))


def _print(session: Session, look: Snapshot) -> None:
    if session.as_json:
        click.echo(json.dumps(shown.as_json(_document(look))))
        return
    session.tell(f"{shown.stamp(look.at)}  {_headline(look)}")
    for job in look.running:
        row = (job.id, job.task, _for(job, look.at), job.worker or "")
        session.tell("  ".join(["  running", *row, shown.progress(job.done, job.total)]).rstrip())


def _document(look: Snapshot) -> dict[str, Any]:
    return {
        "at": shown.stamp(look.at),
        "waiting": look.waiting,
        "running": [described.job_document(job, look.at) for job in look.running],
        "dead": look.dead,
        "latest_dead": [described.letter_document(letter) for letter in look.letters],
        "runs_a_minute": look.rate,
        "failures_a_minute": look.failures,
        "trouble": look.trouble or None,
    }
