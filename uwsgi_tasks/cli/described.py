"""Jobs, dead letters and counts, as rows of a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from uwsgi_tasks.cli import shown
from uwsgi_tasks.model import Count, DeadLetter, Job, Record, Standing, State

JOB_HEADINGS = ("ID", "TASK", "CALLS", "STATE", "AGE", "DUE", "TRY", "PRIO", "PROGRESS", "WHERE")
LETTER_HEADINGS = ("ID", "TASK", "FAILED", "TRY", "ERROR", "WHERE")

DELAYED = "delayed"
"""Queued, and its time has not come: not a `State`, for nobody notes the moment it ends."""


def state(job: Standing, now: float) -> str:
    """Return the word for where a job stands."""
    if job.state is State.QUEUED and job.at is not None and job.at > now:
        return DELAYED
    return str(job.state)


def job_rows(jobs: Sequence[Standing], now: float) -> list[tuple[str, ...]]:
    """Return what a table shows of *jobs*."""
    # Where a job waits is worth a word only if it could be elsewhere.
    several = len({job.place for job in jobs}) > 1
    return [(*_job_row(job, now), job.worker or job.place * several) for job in jobs]


def _job_row(job: Standing, now: float) -> tuple[str, ...]:
    due = "" if job.at is None or job.at <= now else f"in {shown.span(job.at - now)}"
    return (
        job.id,
        job.task or "(unreadable)",
        f"{job.calls:,}" if job.calls > 1 else "",
        state(job, now),
        shown.span(now - job.submitted_at) if job.submitted_at else "",
        due,
        str(job.attempt),
        "" if job.priority is None else str(job.priority),
        shown.progress(job.done, job.total),
    )


def job_document(job: Standing, now: float) -> dict[str, Any]:
    """Return what a list in JSON says of a job."""
    return {
        "id": job.id,
        "task": job.task or None,
        "executor": job.executor,
        "state": state(job, now),
        "attempt": job.attempt,
        "calls": job.calls,
        "submitted_at": shown.stamp(job.submitted_at or None),
        "due_at": shown.stamp(job.at),
        "started_at": shown.stamp(job.started_at),
        "priority": job.priority,
        "progress": _progress(job.done, job.total),
        "place": job.place or None,
        "worker": job.worker,
    }


def _progress(done: float | None, total: float | None) -> dict[str, float | None] | None:
    return None if done is None else {"done": done, "total": total}


def letter_row(letter: DeadLetter, now: float) -> tuple[str, ...]:
    """Return what a table shows of a dead letter."""
    return (
        letter.id,
        letter.task or "(unreadable)",
        f"{shown.span(now - letter.failed_at)} ago",
        str(letter.attempt),
        shown.one_line(letter.error),
        letter.worker,
    )


def letter_document(letter: DeadLetter) -> dict[str, Any]:
    """Return what a list in JSON says of a dead letter."""
    return {
        "id": letter.id,
        "task": letter.task or None,
        "executor": letter.executor,
        "attempt": letter.attempt,
        "failed_at": shown.stamp(letter.failed_at),
        "error": letter.error,
        "worker": letter.worker or None,
    }


def arguments(job: Job) -> dict[str, Any]:
    """Return the arguments of a call for JSON."""
    return {"args": shown.as_json(job.args), "kwargs": shown.as_json(job.kwargs)}


def call(job: Job) -> str:
    """Return the arguments of a call as its caller wrote them."""
    parts = [shown.safe_repr(value) for value in job.args]
    parts += [f"{name}={shown.safe_repr(value)}" for name, value in job.kwargs.items()]
    return f"({', '.join(parts)})"


def record_document(record: Record) -> dict[str, Any]:
    """Return what the store remembers of a job, for JSON; its value is not among it."""
    return {
        "id": record.id,
        "task": record.task,
        "executor": record.executor,
        "state": str(record.state),
        "attempt": record.attempt,
        "submitted_at": shown.stamp(record.submitted_at or None),
        "started_at": shown.stamp(record.started_at),
        "ended_at": shown.stamp(record.ended_at),
        "progress": _progress(record.done, record.total),
        "worker": record.worker,
        "error": record.error,
        "traceback": record.traceback,
    }


@dataclass(frozen=True, kw_only=True)
class Total:
    """How often a task ended in one way, within the time that was asked for."""

    task: str
    outcome: str
    runs: int
    mean: float
    """Seconds."""
    slowest: float
    """Seconds."""
    minutes: Mapping[int, int]
    """Runs by minute, in seconds since 1970; minutes without a run are not there."""

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        minutes = [
            {"at": shown.stamp(minute), "runs": runs}
            for minute, runs in sorted(self.minutes.items())
        ]
        return {**asdict(self), "minutes": minutes}

    def row(self, since: float, until: float, width: int = 30) -> tuple[str, ...]:
        """Return what a table shows of it; its last cell draws the time from left to right."""
        return (
            self.task,
            self.outcome,
            f"{self.runs:,}",
            shown.took(self.mean),
            shown.took(self.slowest),
            shown.sparkline(_spread(self.minutes, since, until, width)),
        )


def totals(counts: Iterable[Count]) -> list[Total]:
    """Add up *counts* by task and outcome."""
    groups: dict[tuple[str, str], list[Count]] = {}
    for count in counts:
        groups.setdefault((count.task, count.outcome), []).append(count)
    return [_total(group) for _, group in sorted(groups.items())]


def _total(group: Sequence[Count]) -> Total:
    runs = sum(count.runs for count in group)
    minutes: dict[int, int] = {}
    for count in group:
        minutes[count.minute] = minutes.get(count.minute, 0) + count.runs
    return Total(
        task=group[0].task,
        outcome=group[0].outcome,
        runs=runs,
        mean=sum(count.seconds for count in group) / runs if runs else 0.0,
        slowest=max(count.slowest for count in group),
        minutes=minutes,
    )


def _spread(minutes: Mapping[int, int], since: float, until: float, width: int) -> list[int]:
    """Return runs in equal parts of the time, of a minute each at least."""
    first = int(since // 60)
    whole = max(1, int(until // 60) - first + 1)
    parts = min(width, whole)
    spread = [0] * parts
    for minute, runs in minutes.items():
        place = (minute // 60 - first) * parts // whole
        if 0 <= place < parts:
            spread[place] += runs
    return spread
