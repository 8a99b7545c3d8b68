"""What is done now and then: look at the counts, and delete what has expired."""

from __future__ import annotations

import time

import click

from uwsgi_tasks.cli import Session, command, described, given, shown, tables

_HEADINGS = ("TASK", "OUTCOME", "RUNS", "MEAN", "SLOWEST")


@click.command("stats")
@click.option(
    "--since",
    type=given.span,
    default="1h",
    show_default=True,
    metavar="SPAN",
    help="How far back.",
)
@click.option("--task", help="Of this task only.")
@command
def stats(session: Session, since: float, task: str | None) -> None:
    """Show how often each task ran, how that ended, and how long it took."""
    until = time.time()
    start = until - since
    found = described.totals(session.app.stats(since=start, task=task))
    if session.emit(
        {
            "since": shown.stamp(start),
            "until": shown.stamp(until),
            "stats": [total.document() for total in found],
        }
    ):
        return
    headings = (*_HEADINGS, f"{shown.span(since)} AGO ... NOW")
    tables.show_table(headings, [total.row(start, until) for total in found])


@click.command("purge")
@command
def purge(session: Session) -> None:
    """Delete from the store what has expired: results, and old counts.

    Spoolers do so by themselves from time to time. Dead letters stay.
    """
    count = session.app.purge()
    if not session.emit({"purged": count}):
        session.tell(f"{count:,} deleted")
