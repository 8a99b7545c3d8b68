"""What this process has claimed: the leases of its jobs, and what others ask of those that run."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from uwsgi_tasks import interrupts
from uwsgi_tasks.errors import LeaseLost, RedisAway
from uwsgi_tasks.model import Job, Stop
from uwsgi_tasks.redis.queues import Claim, Queues, raise_first

_SHARE = 3
"""A lease is extended when so great a part of it is over."""
_LOOK = 1.0
"""Seconds between two questions whether what runs is to be killed."""
_OFTEN = 0.2
"""Seconds between two questions of one running job, whether it was asked to stop."""
_PATIENCE = 0.2
"""Seconds between two attempts to learn whether a job is still ours that has ended."""
_INSISTENCE = 5.0
"""Seconds between two times that a job is killed: what it has to clean up may take a while."""
_OVERDUE = 5.0
"""Seconds by which a job may overrun its time limit before its process is given up."""


class Held:
    """A job that this process has claimed."""

    __slots__ = (
        "asked_at", "claim", "deadline", "ident", "is_lost", "killed_at", "renewed_at", "since",
        "stop",
    )  # fmt: skip

    def __init__(self, claim: Claim, now: float, claimed_at: float) -> None:
        self.claim = claim
        self.since, self.renewed_at = now, claimed_at
        self.ident = 0
        """Of the thread that runs it."""
        self.stop = Stop.NOT
        self.is_lost = False
        self.deadline = float("inf")
        self.asked_at = self.killed_at = float("-inf")

    @property
    def expires_at(self) -> float:
        """When its lease is over, by our clock, and if nobody extends it."""
        return self.renewed_at + self.claim.lease

    @property
    def is_taken_off(self) -> bool:
        """Is it gone from Redis, for it runs, and does so once at most?"""
        return bool(self.claim.is_once and self.ident)


def by_queue(held: Iterable[Held]) -> dict[str, list[Held]]:
    """Return what is of each queue."""
    found: dict[str, list[Held]] = {}
    for one in held:
        found.setdefault(one.claim.queue, []).append(one)
    return found


class Holdings:
    """The jobs that this process has claimed: those *running* on its threads, and those *ahead*.

    *note_away* is told when Redis does not answer where nobody waits for what it would say;
    *is_away* says that it did not of late, and *may_wait* whether there is time until it does.
    """

    def __init__(
        self,
        queues: Queues,
        threads: int,
        note_away: Callable[[RedisAway], None],
        is_away: Callable[[], bool],
        may_wait: Callable[[], bool],
    ) -> None:
        self._queues, self._note_away = queues, note_away
        self._is_away, self._may_wait = is_away, may_wait
        self.running: list[Held | None] = [None] * threads
        self.ahead: deque[Held] = deque()
        self._looked_at = time.monotonic()

    # ---- from the threads that run jobs -----------------------------------------------------

    def asked(self, job: Job) -> Stop:
        """Was a job that runs here asked to stop?"""
        held = self._held(job)
        return Stop.NOT if held is None else self._ask(held)

    def show_progress(self, job: Job, progress: str, *, always: bool) -> None:
        """Note how far a job has come that runs here; a few times a second, unless *always*."""
        held = self._held(job)
        if held is not None:
            self._ask(held, progress, always=always)

    def extend(self, job: Job) -> None:
        """Extend the lease of a job that runs here. Raises LeaseLost."""
        held = self._held(job)
        if held is None or held.claim.is_once:
            return
        if not held.is_lost:
            try:
                self.touch([held])
            except RedisAway as error:
                # As far as anybody can tell, nobody else gets it either.
                self._note_away(error)
        if held.is_lost:
            raise LeaseLost(f"{job}: its lease was over; another worker may have it")

    def holds(self, job: Job) -> bool:
        """Is a job that has run here still ours, as far as anybody can tell?

        While Redis is away from us alone, another worker may get it, and end it in another way:
        so we wait until we know.
        """
        held = self._held(job)
        if held is None or held.claim.is_once:
            return True
        while not held.is_lost and (self._is_away() or time.monotonic() > held.expires_at):
            try:
                self.touch([held])
                break
            except RedisAway as error:
                self._note_away(error)
                if not self._may_wait():
                    break
                time.sleep(_PATIENCE)
        return not held.is_lost

    def limit(self, seconds: float | None) -> None:
        """Give this process up if what runs in this thread goes on for longer than *seconds*."""
        ident = threading.get_ident()
        for held in self.running:
            if held is not None and held.ident == ident:
                end = float("inf") if seconds is None else time.monotonic() + seconds + _OVERDUE
                held.deadline = end

    def _held(self, job: Job) -> Held | None:
        running = (held for held in self.running if held is not None)
        return next((held for held in running if held.claim.id == job.id), None)

    def _ask(self, held: Held, progress: str = "", *, always: bool = False) -> Stop:
        now = time.monotonic()
        if always or now > held.asked_at + _OFTEN:
            held.asked_at = now
            try:
                stop = self._queues.progress(held.claim.queue, held.claim.id, progress)
            except RedisAway as error:
                self._note_away(error)
            else:
                held.stop = max(held.stop, Stop(stop))
        return held.stop

    # ---- from the thread that looks after leases --------------------------------------------

    def renew(self) -> None:
        """Extend the leases that are partly over; kill what is to be killed. Raises RedisAway.

        Now and then it also asks what those that run are to do. In a cluster, what can be done
        has been when it raises.
        """
        now = time.monotonic()
        looks = now > self._looked_at + _LOOK
        held = [one for one in (*self.running, *tuple(self.ahead)) if one is not None]
        due = [
            one
            for one in held
            if not (one.is_lost or one.is_taken_off)
            and (
                now > one.renewed_at + one.claim.lease / _SHARE
                or (looks and one.ident and now > one.since + _LOOK)
            )
        ]
        if looks:
            self._looked_at = now
        if due:
            groups = by_queue(due)
            raise_first(self._queues.each(list(groups), lambda queue: self.touch(groups[queue])))

    def touch(self, held: Sequence[Held]) -> None:
        """Extend the leases of jobs of one queue, and learn what is asked of them."""
        now = time.monotonic()
        things = [interrupts.running(one.ident) for one in held]
        answers = self._queues.touch([one.claim for one in held])
        for one, thing, answer in zip(held, things, answers, strict=True):
            if answer < 0:
                # Else it has ended while we asked.
                one.is_lost = one in self.running
                continue
            one.renewed_at, one.stop = now, max(one.stop, Stop(answer))
            # It has run since before we asked: the thing is its, and no other job's.
            runs = thing is not None and one in self.running
            if one.stop is Stop.KILL and runs and now > one.killed_at + _INSISTENCE:
                one.killed_at = now
                interrupts.kill(one.ident, thing)

    def overdue(self) -> list[Held]:
        """Return what runs, and has overrun its time limit so far that nobody can end it."""
        now = time.monotonic()
        return [one for one in self.running if one is not None and now > one.deadline]
