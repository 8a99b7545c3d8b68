"""What the page shows, read from the records."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q
from django.utils import timezone

from shop import pulse
from shop.models import JobRecord, State, Tick
from shop.tasks import REPORT
from uwsgi_tasks import default_app

PHASES = {
    "pending": "Pending",
    "delayed": "Delayed",
    "running": "Running",
    "done": "Done",
    "failed": "Failed",
}
UNDER_WAY = ("running", "pending", "delayed")
SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Section:
    """A list of jobs, with what to say if there are none."""

    name: str
    title: str
    empty: str
    records: list[JobRecord]
    total: int

    @property
    def hidden(self) -> int:
        """How many there are beyond those that are shown."""
        return self.total - len(self.records)


def read() -> dict[str, Any]:
    """Return everything that the page shows."""
    numbers = counts()
    return {
        "counts": numbers,
        "tiles": [(phase, label, numbers[phase]) for phase, label in PHASES.items()],
        "sections": sections(numbers),
        "clock": clock(),
        "pulse": pulse.read(),
        "report": REPORT.stat().st_mtime_ns if REPORT.exists() else None,
    }


def counts() -> dict[str, int]:
    """Return the number of jobs in each phase."""
    waiting = Q(state=State.WAITING)
    later = waiting & Q(due_at__isnull=False, due_at__gt=timezone.now())
    return JobRecord.objects.aggregate(
        running=Count("pk", filter=Q(state=State.RUNNING)),
        pending=Count("pk", filter=waiting & ~later),
        delayed=Count("pk", filter=later),
        failed=Count("pk", filter=Q(state=State.FAILED)),
        done=Count("pk", filter=Q(state=State.DONE)),
    )


def sections(numbers: dict[str, int]) -> list[Section]:
    """Return the lists of the board, each in the order in which one wants to read it."""
    records = JobRecord.objects
    under_way = records.filter(state__in=[State.WAITING, State.RUNNING]).order_by("pk")
    return [
        Section(
            name="active",
            title="Under way",
            empty="Nothing is waiting. Press a button, and watch the job come by.",
            records=sorted(
                with_progress(under_way[:SHOWN]), key=lambda record: UNDER_WAY.index(record.phase)
            ),
            total=sum(numbers[phase] for phase in UNDER_WAY),
        ),
        Section(
            name="failed",
            title="Failed",
            empty="Nothing has failed. An expired card would.",
            records=list(records.filter(state=State.FAILED).order_by("-ended_at")[:SHOWN]),
            total=numbers["failed"],
        ),
        Section(
            name="done",
            title="Done",
            empty="What is done will be listed here, the latest first.",
            records=list(records.filter(state=State.DONE).order_by("-ended_at")[:SHOWN]),
            total=numbers["done"],
        ),
    ]


def with_progress(records: Iterable[JobRecord]) -> list[JobRecord]:
    """Return *records*, with how far those have come that run in a spooler."""
    running = {job.id: job for job in default_app.jobs(running=True) if job.done is not None}
    found = list(records)
    for record in found:
        if job := running.get(record.job_id):
            record.progress = (job.done, job.total)
    return found


def clock() -> list[dict[str, Any]]:
    """Return what the timer and the cron did last."""
    ticks = Tick.objects.in_bulk()
    return [
        {"title": title, "rule": rule, "tick": ticks.get(title.lower())}
        for title, rule in (
            ("Timer", "every 5 seconds, in a mule"),
            ("Cron", "every minute, in a spooler"),
        )
    ]
