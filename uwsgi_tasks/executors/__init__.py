"""How a job travels: the contract of every executor, and the way to find one by its name."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

from uwsgi_tasks.errors import ConfigurationError, InvalidTask
from uwsgi_tasks.handle import Near
from uwsgi_tasks.model import LEASE, Job, KnownWorker, Result, Sizes, Standing, State, Stop
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings


class Receiver(Protocol):
    """Runs what an executor receives; the executor is given it, and knows nothing of tasks."""

    def decode(self, payload: bytes, id: str = "") -> Sequence[Job]:  # noqa: A002  the job's
        """Return the jobs in *payload*; none if it cannot be read, and is now a dead letter.

        That has this *id*, if it is given, as the bytes may have none.
        Raises NotKept if it could not be kept either: then it must stay where it is.
        """

    def run(self, job: Job, payload: bytes | None = None, index: int = 0) -> Job | None:
        """Make one attempt at *job*, number *index* of *payload*; return the next one, if any.

        What failed for good is a dead letter when this returns. Raises NotKept if it could not be
        kept: then it must stay where it is; and FixtureFailed if it cannot run in this process,
        to which nothing has been done yet.
        """

    def perform(
        self, job: Job, payload: bytes | None = None, index: int = 0, *, bury: bool = False
    ) -> tuple[Result, Job | None]:
        """Make one attempt, as `run` does, for a caller who waits for the result.

        Without *payload* the next attempt has the arguments as this one leaves them. What failed
        for good is a dead letter only if *bury* says so. Raises FixtureFailed as `run` does.
        """

    def find(self, name: str) -> object:
        """Return the task of this name; while it is held, it can run. Raises TaskNotFound.

        Its module is imported if need be.
        """

    def knows(self, name: str) -> bool:
        """Is a task of this name declared in this process already?"""

    def is_endless(self, job: Job) -> bool:
        """May attempts at *job* follow one another for ever?"""

    def catch_up(self) -> None:
        """Write down what the store has missed while it was away, if it is back."""

    @property
    def owes(self) -> bool:
        """Is there anything that the store has missed?"""

    def cancel(self, job: Job) -> None:
        """Note that *job* was cancelled, and does not run."""

    def bury(self, job: Job, reason: str) -> None:
        """Make *job* a dead letter, without an attempt. Raises NotKept."""

    def reject(
        self,
        payload: bytes,
        reason: str,
        variables: Mapping[str, str | bytes] | None = None,
        id: str = "",  # noqa: A002  the job's
    ) -> None:
        """Make a dead letter of bytes that are no job, and what came with them. Raises NotKept."""


class Options(Protocol):
    """What an executor may ask of a task's options."""

    @property
    def at(self) -> Any:
        """When it runs, if not at once."""

    @property
    def executor(self) -> str:
        """What the user named, which may be AUTO."""

    @property
    def queue(self) -> str | None:
        """The queue that takes it."""

    @property
    def lease(self) -> float | None:
        """Seconds without a sign of life after which somebody else gets it."""

    @property
    def serializer(self) -> str | None:
        """How it is written."""

    @property
    def priority(self) -> int | None:
        """How important it is; larger is less."""

    @property
    def spooler(self) -> str | None:
        """The spooler directory that takes it."""

    @property
    def mule(self) -> int | str | None:
        """The mule, or the farm, that takes it."""

    @property
    def waits(self) -> bool:
        """Do its retries wait?"""

    @property
    def durable(self) -> bool:
        """Must a job be on the disk before its caller goes on?"""


@dataclass(frozen=True, kw_only=True)
class Consuming:
    """What one process takes from where, and for how long."""

    queues: Sequence[tuple[str, int | None]]
    """Names and weights; without weights the first ones are served before all others."""
    threads: int = 1
    grace: float = 30.0
    """Seconds that what runs has when the process is to end."""
    max_jobs: int | None = None
    """Attempts after which another process takes its place."""
    max_memory: int | None = None
    """Bytes of resident memory, as above."""
    abandon: Callable[[int], NoReturn] = os._exit
    """Ends the process, with this code, because what runs in it does not; for any thread."""


class Consumer(Protocol):
    """Takes jobs in this process, and runs them."""

    @property
    def name(self) -> str:
        """What it is called, among those of all machines."""

    @property
    def ran(self) -> int:
        """Attempts that it has made."""

    @property
    def is_recycled(self) -> bool:
        """Has it stopped because it has run as much as it may?"""

    @property
    def is_healthy(self) -> bool:
        """Can it reach what it takes its jobs from, and is it about its work?"""

    def run(self) -> None:
        """Run jobs until `stop`, and until what runs then has ended."""

    def stop(self, grace: float | None = None) -> None:
        """Take no more; what runs has *grace* seconds. For any thread, and for a signal."""


class Executor(ABC):
    """Carries jobs from the caller to whoever runs them. Knows no task, no retry, no result."""

    name: ClassVar[str]
    supports_delay: ClassVar[bool] = False
    """Can it keep a job until a time?"""
    supports_priority: ClassVar[bool] = False
    """Can it run more important jobs first?"""
    durable: ClassVar[bool] = False
    """Does a job that it took survive the end of the processes that run it?"""
    travels: ClassVar[bool] = True
    """Does the job run in another process, which must find its task by name?"""
    tracks: ClassVar[bool] = False
    """Can it tell, in every process, what waits and what runs, and take a job away?"""
    needs_server: ClassVar[bool] = True
    """Is it a part of uWSGI, or of one of its processes?"""
    plain: ClassVar[bool] = False
    """Does it take jobs in JSON, from whoever can write them there?"""
    is_threaded: ClassVar[bool] = False
    """Does it make attempts on threads that may be interrupted?"""
    has_queues: ClassVar[bool] = False
    """Does it know queues, and leases?"""

    def __init__(self, server: Server, settings: Callable[[], Settings]) -> None:
        self._server = server
        self._settings = settings

    @abstractmethod
    def ready(self) -> bool:
        """Would someone run a job that is submitted now?"""

    def missing(self) -> str | None:
        """What this server lacks for it, as a sentence that names the remedy; None if nothing."""
        return None

    def check(self, options: Options) -> None:
        """Raise InvalidTask if a task with these *options* could not run here as they say."""
        if options.at is not None and not self.supports_delay:
            raise InvalidTask(f"at=: {self.name} cannot delay a job; use the spooler, or threads")
        if options.priority is not None and not self.supports_priority:
            raise InvalidTask(f"priority=: {self.name} has none; use the spooler, or threads")
        if options.durable and not self.durable:
            raise InvalidTask(f"durable=: {self.name} keeps nothing on disk; use the spooler")
        # Under AUTO they are for the day on which a setting says that it means Redis.
        if options.executor == self.name and not self.has_queues:
            if options.queue is not None or options.lease != LEASE:
                raise InvalidTask(f"queue= and lease= are for redis: {self.name} has none")
            if options.serializer == "json":
                raise InvalidTask(f"serializer=: {self.name} pickles; use redis")

    @abstractmethod
    def submit(self, jobs: Sequence[Job]) -> Sequence[Result | Near]:
        """Take all of *jobs*, or raise SubmitError and take none.

        Returns the results that are known already, those of jobs that have run when it returns; of
        jobs that stay in the memory of this process, what tells how each stands.
        Jobs that came as one call of `Task.map` differ in ``id`` and ``args`` alone.
        """

    def follow(self, job: Job) -> Sequence[Result | Near]:
        """Take *job*, which the job being run asks for, as `submit` does."""
        return self.submit((job,))

    def forget(self, id: str) -> None:  # noqa: A002, B027  the job's
        """Forget what earlier runs of a job have done, which is to be submitted again."""

    # ---- what waits and runs, where it `tracks` that -----------------------------------------

    def follows(self, job: Job) -> bool:
        """Does it know where *job* stands from its call to its end? Else the store must."""
        return self.tracks and not job.is_once

    def find(self, id: str) -> Standing | None:  # noqa: A002, ARG002  the job's
        """Return where a job stands that has not ended; None if it is not here."""
        return None

    def standings(
        self,
        limit: int | None = None,  # noqa: ARG002
        *,
        running: bool = False,  # noqa: ARG002
        where: Callable[[Standing], bool] | None = None,  # noqa: ARG002
    ) -> list[Standing]:
        """Return what runs, and then what waits, the oldest first; at most *limit*.

        Only what runs, if *running*, which must be cheap however much waits; only those for which
        *where* is true.
        """
        return []

    @property
    def place(self) -> str:
        """Where it keeps jobs, to be shown."""
        return self.name

    def sizes(self) -> dict[str, Sizes]:
        """Return how many jobs are in each queue that is known."""
        return {}

    def workers(self) -> list[KnownWorker]:
        """Return the workers that are there, on all machines."""
        return []

    def purge(self, queue: str) -> int:
        """Take all jobs away that wait in *queue*, as if each was cancelled; return how many."""
        raise ConfigurationError(f"{self.name} has no queue {queue!r}")

    def count(self) -> int:
        """Return how many jobs wait, run or are of the future."""
        return 0

    def read(self, id: str) -> Job | None:  # noqa: A002, ARG002  the job's
        """Return a job that has not ended, to look at: objects in its arguments are stand-ins."""
        return None

    def cancel(self, id: str, stop: Stop) -> tuple[State, Job] | None:  # noqa: A002, ARG002
        """Take a job away; return its state after that, and what it was; None if it is not here.

        CANCELLED is certain. RUNNING: it was asked to *stop*.
        """
        return None

    def show_progress(self, job: Job, done: float, total: float | None) -> None:  # noqa: B027
        """Show how far *job* has come, which runs in this process."""

    def extend(self, job: Job) -> None:  # noqa: B027
        """Extend the lease of *job*, which runs in this process. Raises LeaseLost."""

    def holds(self, job: Job) -> bool:  # noqa: ARG002
        """Is *job*, which has run in this process just now, still its own to end?"""
        return True

    def is_ours(self, job: Job) -> bool:  # noqa: ARG002
        """Has nobody else taken *job*, which has ended in this process? Raises StoreError."""
        return True

    def limit(self, seconds: float | None) -> None:  # noqa: B027
        """End the process if what runs in this thread goes on for longer than *seconds*."""

    def asked(self, job: Job) -> Stop:  # noqa: ARG002
        """Was *job*, which runs in this process, asked to stop?"""
        return Stop.NOT

    def consume(self, consuming: Consuming, tasks: Sequence[str]) -> Consumer:  # noqa: ARG002
        """Return what takes jobs in this process, which knows *tasks*.

        Raises ConfigurationError.
        """
        raise ConfigurationError(
            f"{self.name} needs no worker: uWSGI, or the process of the caller, runs what it takes"
        )

    def listen(self, receiver: Receiver) -> None:
        """Let *receiver* run what arrives in this process."""
        self._receiver = receiver


_PARTS = {"redis": ["hiredis"]}
"""What comes with the package that an executor is called after."""


def load(name: str) -> type[Executor]:
    """Return the executor called *name*: ``"spooler"``, or ``"package.module:Class"``."""
    path, _, attribute = name.partition(":")
    if not attribute:
        path, attribute = f"uwsgi_tasks.executors.{name}", f"{name.capitalize()}Executor"
    try:
        found = getattr(import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name in {name, *_PARTS.get(name, ())}:
            raise ConfigurationError(
                f"executor {name!r} needs a package: pip install 'uwsgi_tasks[{name}]'"
            ) from error
        known = sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))
        raise ConfigurationError(
            f"no executor {name!r} ({error}): use one of {', '.join(known)}, auto, "
            "or 'package.module:Class'"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Executor)):
        raise ConfigurationError(f"{name!r} is not an Executor")
    return found
