"""Orders, what became of each job, and what ticks."""

from datetime import timedelta

from django.db import models
from django.utils import timezone


class Order(models.Model):
    """One book for one reader."""

    book = models.CharField(max_length=100)
    cents = models.PositiveIntegerField()
    reader = models.EmailField()
    placed_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.book} for {self.reader}"


class State(models.TextChoices):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class JobRecord(models.Model):
    """What became of one job: written by whoever submits it, then by the task itself."""

    kind = models.CharField(max_length=20)
    title = models.CharField(max_length=100)
    executor = models.CharField(max_length=20)
    state = models.CharField(
        max_length=10, choices=State.choices, default=State.WAITING, db_index=True
    )
    job_id = models.CharField(max_length=100, blank=True)
    runs = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)
    due_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    note = models.TextField(blank=True)
    error = models.TextField(blank=True)

    progress: tuple[float, float | None] | None = None
    """How far it has come, and of how much, if it runs and says so; no part of the record."""

    def __str__(self) -> str:
        return f"{self.title} ({self.state})"

    @property
    def phase(self) -> str:
        """The state as the page shows it: what waits is pending, or delayed until it is due."""
        if self.state != State.WAITING:
            return self.state
        return "delayed" if self.due_at and self.due_at > timezone.now() else "pending"

    @property
    def can_be_requeued(self) -> bool:
        """Did it fail as a job of the spooler, which keeps the dead ones?"""
        return self.state == State.FAILED and self.executor == "spooler" and bool(self.job_id)

    @property
    def can_be_stopped(self) -> bool:
        """Does it run, and look whether it is to stop?"""
        return self.state == State.RUNNING and self.kind == "stock"

    @property
    def delay(self) -> timedelta | None:
        """How long the first run, if it is the only one, had to wait for a free process."""
        if self.runs != 1 or not self.started_at or self.state == State.WAITING:
            return None
        return self.started_at - max(self.created_at, self.due_at or self.created_at)

    @property
    def total(self) -> timedelta | None:
        """From the button to the end."""
        return self.ended_at and self.ended_at - self.created_at


class Tick(models.Model):
    """What a timer or a cron did last."""

    name = models.CharField(max_length=30, primary_key=True)
    count = models.PositiveIntegerField(default=0)
    at = models.DateTimeField(null=True)
    note = models.CharField(max_length=200, blank=True)

    def __str__(self) -> str:
        return f"{self.name}, tick {self.count}"
