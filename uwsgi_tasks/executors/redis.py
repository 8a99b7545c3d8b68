"""Through Redis, to workers on any machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import ClassVar

from uwsgi_tasks import codec, wire
from uwsgi_tasks.errors import DecodeError, InvalidTask, RedisAway, SubmitError
from uwsgi_tasks.executors import Consuming, Executor, Options
from uwsgi_tasks.model import LEASE, Job, KnownWorker, Result, Sizes, Standing, State, Stop
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.redis.consumer import Consumer
from uwsgi_tasks.redis.holdings import Holdings
from uwsgi_tasks.redis.presence import workers
from uwsgi_tasks.redis.queues import DEFAULT, LEAST, Queues
from uwsgi_tasks.redis.queues import Standing as Queued
from uwsgi_tasks.settings import Settings

HERE = "redis://localhost:6379/0"
"""Where Redis is, if no setting says it."""
_PAUSE = 0.05
"""Seconds between two attempts to submit."""


class RedisExecutor(Executor):
    """Keeps jobs in queues in Redis; workers take them there, under a lease.

    A job is in Redis until its worker has said that it has ended. A worker that says nothing for
    as long as the lease is taken to be dead, and another one runs the job.
    """

    name: ClassVar[str] = "redis"
    supports_delay: ClassVar[bool] = True
    supports_priority: ClassVar[bool] = True
    tracks: ClassVar[bool] = True
    needs_server: ClassVar[bool] = False
    plain: ClassVar[bool] = True
    is_threaded: ClassVar[bool] = True
    has_queues: ClassVar[bool] = True

    _found: tuple[Settings, Queues] | None = None
    _consumer: Consumer | None = None
    _holdings: Holdings | None = None

    @property
    def queues(self) -> Queues:
        """The queues of the namespace that the settings name. Raises ConfigurationError."""
        settings = self._settings()
        found = self._found
        if found is None or found[0] is not settings:
            client = Client(settings.redis or HERE)
            found = self._found = settings, Queues(client, settings.namespace)
        return found[1]

    @property
    def place(self) -> str:
        """The URL of Redis, without a password."""
        return self.queues.client.shown

    # ---- declaring --------------------------------------------------------------------------

    def ready(self) -> bool:
        """Always: what is submitted waits for the next worker."""
        return True

    def check(self, options: Options) -> None:
        """Refuse what no worker could do."""
        super().check(options)
        if options.priority is not None and options.priority > LEAST:
            raise InvalidTask(
                f"priority={options.priority}: on redis it goes from 0, the most important, to "
                f"{LEAST}, which is that of a task without one"
            )
        if options.lease is not None and options.lease < 1:
            raise InvalidTask(f"lease={options.lease:g}: on redis it is one second at least")
        if options.serializer == "pickle" and self._settings().signer is None:
            raise InvalidTask(
                "serializer='pickle': without a secret anybody who can write to Redis could run "
                "code in your workers: set 'secret', or use JSON"
            )

    # ---- submitting -------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Take all of *jobs* in one step, or none."""
        job = jobs[0]
        at = job.at if job.at is not None and job.at > time.time() else None
        words: list[str | bytes] = []
        for each, payload in zip(jobs, self._encoded(jobs), strict=True):
            words += each.id, payload
        lease = LEASE if job.lease is None else job.lease
        queues, queue = self.queues, job.queue or DEFAULT
        give_up = 0.0
        while True:
            try:
                queues.submit(queue, words, at=at, priority=job.priority, lease=lease)
            except RedisAway as error:
                now = time.monotonic()
                give_up = give_up or now + self._settings().redis_retry
                # What is to run once at most may have been taken, and run, though nobody said so.
                if now >= give_up or not lease:
                    raise SubmitError(f"{job.task}: {error}") from error
                time.sleep(_PAUSE)
            else:
                return ()

    def _encoded(self, jobs: Sequence[Job]) -> list[bytes]:
        if jobs[0].serializer != "pickle":
            return wire.encode_all(jobs)
        signer = self._settings().signer
        return [codec.encode((job,), signer) for job in jobs]

    def forget(self, id: str) -> None:  # noqa: A002  the job's
        """Forget it, whatever it is doing: it is to be submitted again."""
        self.queues.forget(id)

    # ---- looking, and taking away -----------------------------------------------------------

    def find(self, id: str) -> Standing | None:  # noqa: A002  the job's
        """Look for the job in all queues."""
        found = self.queues.find(id)
        return None if found is None else _standing(found)

    def read(self, id: str) -> Job | None:  # noqa: A002  the job's
        """Look into its payload."""
        found = self.queues.find(id)
        if found is None:
            return None
        try:
            return codec.peek(found.payload)[0]._replace(id=found.id, queue=found.queue)
        except DecodeError:
            return None

    def standings(
        self,
        limit: int | None = None,
        *,
        running: bool = False,
        where: Callable[[Standing], bool] | None = None,
    ) -> list[Standing]:
        """List the queues, one after the other: first what runs, and then what waits."""
        queues = self.queues
        names = queues.names()
        listed: Iterator[Queued] = chain.from_iterable(map(queues.running, names))
        if not running:
            listed = chain(listed, chain.from_iterable(map(queues.waiting, names)))
        found = (_standing(one) for one in listed)
        return list(islice((one for one in found if where is None or where(one)), limit))

    def count(self) -> int:
        """Return how many jobs wait or run in all queues."""
        return sum(sum(self.queues.sizes(name)) for name in self.queues.names())

    def sizes(self) -> dict[str, Sizes]:
        """Return how many jobs are in each queue that is known."""
        return {name: self.queues.sizes(name) for name in self.queues.names()}

    def workers(self) -> list[KnownWorker]:
        """Return the workers that are there."""
        return workers(self.queues)

    def purge(self, queue: str) -> int:
        """Take all jobs away that wait in *queue*, as if each was cancelled; return how many."""
        count = 0
        for count, (id_, payload) in enumerate(self.queues.purge(queue), 1):  # noqa: B007  returned
            with contextlib.suppress(DecodeError):
                self._receiver.cancel(codec.peek(payload)[0]._replace(id=id_, queue=queue))
        return count

    def cancel(self, id: str, stop: Stop) -> tuple[State, Job] | None:  # noqa: A002
        """Take a job away that waits, or have its worker learn what it was asked for."""
        found = self.queues.cancel(id, stop)
        if found is None:
            return None
        runs, queued = found
        try:
            job = codec.peek(queued.payload)[0]._replace(id=id, queue=queued.queue)
        except DecodeError:
            job = Job(id=id, task="")
        return State.RUNNING if runs else State.CANCELLED, job

    # ---- running ----------------------------------------------------------------------------

    def consume(self, consuming: Consuming, tasks: Sequence[str]) -> Consumer:
        """Return what takes jobs in this process."""
        made = Consumer(self.queues, self._receiver, consuming, self._settings, tasks)
        self._consumer, self._holdings = made, made.holdings
        return made

    def show_progress(self, job: Job, done: float, total: float | None) -> None:
        """Note how far a job has come that runs here."""
        if self._holdings is not None:
            said = f"{done} {'' if total is None else total}"
            self._holdings.show_progress(job, said, always=done == total)

    def asked(self, job: Job) -> Stop:
        """Was a job that runs here asked to stop?"""
        return Stop.NOT if self._holdings is None else self._holdings.asked(job)

    def extend(self, job: Job) -> None:
        """Extend the lease of a job that runs here. Raises LeaseLost."""
        if self._holdings is not None:
            self._holdings.extend(job)

    def holds(self, job: Job) -> bool:
        """Is its lease not over, or at least not another worker's?"""
        return self._holdings is None or self._holdings.holds(job)

    def is_ours(self, job: Job) -> bool:
        """Has nobody else taken it, until Redis is told that it has ended?"""
        return self._consumer is None or self._consumer.is_ours(job.id)

    def limit(self, seconds: float | None) -> None:
        """Give the worker up, and not the job, if what runs in this thread cannot be ended."""
        if self._holdings is not None:
            self._holdings.limit(seconds)


def _standing(found: Queued) -> Standing:
    """Return where a job stands, and what can be read of it."""
    try:
        job = codec.peek(found.payload)[0]
    except DecodeError:
        job = Job(id=found.id, task="")
    done, _, total = found.progress.partition(" ")
    state = State.RETRYING if job.attempt > 1 else State.QUEUED
    return Standing(
        id=found.id,
        task=job.task,
        executor="redis",
        state=State.RUNNING if found.token else state,
        attempt=job.attempt,
        submitted_at=job.submitted_at,
        at=found.at,
        priority=job.priority,
        place=found.queue,
        worker=found.worker or None,
        done=float(done) if done else None,
        total=float(total) if total else None,
    )
