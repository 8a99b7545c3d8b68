"""On threads of the caller's own process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar
from weakref import WeakMethod

from uwsgi_tasks.errors import SubmitError
from uwsgi_tasks.executors import Executor
from uwsgi_tasks.executors._pool import Entry, Pool
from uwsgi_tasks.handle import Near
from uwsgi_tasks.model import Job, Standing, State, Stop
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings


class ThreadExecutor(Executor):
    """Keeps jobs in the memory of this process, and runs them on a few threads of it.

    They end with the process. One that ends in good order finishes what is due, for as long as the
    setting ``thread_grace`` says; what it cannot finish becomes a dead letter. A worker of uWSGI
    has no more than ``worker-reload-mercy``, less a second to write them: what it does after that
    is cut short by a SIGKILL. A worker that was killed, or that was serving a request when the
    server was stopped (not reloaded), says nothing of its jobs.
    """

    name: ClassVar[str] = "thread"
    supports_delay: ClassVar[bool] = True
    supports_priority: ClassVar[bool] = True
    travels: ClassVar[bool] = False

    def __init__(self, server: Server, settings: Callable[[], Settings]) -> None:
        super().__init__(server, settings)
        self.ended: Callable[[], None] = lambda: None
        """Called when this process has stopped running jobs, before it ends."""
        self.gave_up: Callable[[Sequence[int]], None] = lambda _threads: None
        """Called with the threads, by their idents, whose jobs run on and are dead letters."""
        self._pool: Pool | None = None
        self._pools: dict[int, Pool] = {}
        # Of each process its own: one that another thread holds in a fork is never free again.
        # Not plain ones: a signal's handler may submit a job while its thread is in there.
        self._starting: dict[int, threading.RLock] = {}
        self._left: float | None = None
        """Seconds of grace that remain when this process has begun to end."""

    def ready(self) -> bool:
        """Whether threads run here: not in a uWSGI without them, nor in its master."""
        return self.missing() is None and self._server.role != "master"

    def missing(self) -> str | None:
        """Say that threads do not run in this uWSGI."""
        if not self._server.lacks_threads:
            return None
        return "this uWSGI runs no threads: add 'enable-threads = true' to its configuration"

    def submit(self, jobs: Sequence[Job]) -> Sequence[Near]:
        """Take all of *jobs*; return what tells how each stands."""
        if jobs[0].durable:
            raise SubmitError("durable=: threads keep nothing on disk; use the spooler")
        pool = self._pool
        if pool is None or pool.pid != os.getpid():
            pool = self._start()
        return pool.take(jobs)

    def _start(self) -> Pool:
        pid = os.getpid()
        with self._starting.setdefault(pid, threading.RLock()):
            pool = self._here()
            if pool is not None:
                return pool
            if self._server.role == "master":
                raise SubmitError(
                    "the master process of uWSGI runs no threads: submit the job from a worker, or "
                    "use the spooler"
                )
            missing = self.missing()
            if missing:
                raise SubmitError(missing)
            self._left = None
            try:
                self._server.at_exit(
                    _weakly(self.stop), first=_weakly(self.finish), hurry=_weakly(self.hurry)
                )
                own = Pool(self._receiver, self._settings().threads)
            # So says Python where it ends, or the kernel where there are too many.
            except RuntimeError as error:
                raise SubmitError(f"no thread can be started: {error}") from error
            # In one step: a signal's handler may have submitted a job since we looked.
            pool = self._pools.setdefault(pid, own)
            if pool is not own:
                own.end()
            # What a process had from before it was forked is the parent's to run.
            self._pool, self._pools = pool, {pid: pool}
            return pool

    def finish(self) -> None:
        """Finish what is due; this process is about to end, and everything in it still works."""
        pool = self._here()
        if pool is None or pool.is_closed:
            return
        end = time.monotonic() + self._grace()
        pool.drain(end)
        self._left = max(0.0, end - time.monotonic())

    def hurry(self) -> None:
        """Finish nothing more: somebody has lost patience."""
        pool = self._here()
        if pool is not None and not pool.is_closed:
            pool.hurry()

    def stop(self) -> None:
        """Finish what is due, make dead letters of the rest, and take no more."""
        pool = self._here()
        if pool is not None and not pool.is_closed:
            left = self._grace() if self._left is None else self._left
            self.gave_up(pool.stop(time.monotonic() + left))
            self.ended()

    def _grace(self) -> float:
        return min(self._settings().thread_grace, self._server.mercy)

    # ---- what waits and runs ----------------------------------------------------------------

    def _here(self) -> Pool | None:
        pool = self._pool
        return pool if pool is not None and pool.pid == os.getpid() else None

    def find(self, id: str) -> Standing | None:  # noqa: A002  the job's
        """Return where a job stands that this process has."""
        pool = self._here()
        entry = pool.find(id) if pool else None
        return entry.standing() if entry else None

    def standings(
        self,
        limit: int | None = None,
        *,
        running: bool = False,
        where: Callable[[Standing], bool] | None = None,
    ) -> list[Standing]:
        """Return what this process runs, and then what waits in it."""
        pool = self._here()
        found: list[Standing] = []
        for entry in pool.entries(running=running) if pool else ():
            if limit is not None and len(found) >= limit:
                break
            standing = entry.standing()
            if standing.state.is_final:
                continue
            if where is None or where(standing):
                found.append(standing)
        return found

    def count(self) -> int:
        """Return how many jobs wait or run here."""
        pool = self._here()
        return pool.count() if pool else 0

    def read(self, id: str) -> Job | None:  # noqa: A002  the job's
        """Return a job that has not ended, itself and no copy."""
        pool = self._here()
        entry = pool.find(id) if pool else None
        return entry.job if entry else None

    def cancel(self, id: str, stop: Stop) -> tuple[State, Job] | None:  # noqa: A002
        """Take a job away that waits, or ask one that runs to stop: a thread cannot be ended."""
        pool = self._here()
        return pool.cancel(id, stop) if pool else None

    def show_progress(self, job: Job, done: float, total: float | None) -> None:
        """Note how far a running job has come."""
        entry = self._running(job)
        if entry is not None:
            entry.done, entry.total = done, total

    def asked(self, job: Job) -> Stop:
        """Was a running job asked to stop?"""
        entry = self._running(job)
        return Stop.NOT if entry is None else entry.stop

    def _running(self, job: Job) -> Entry | None:
        pool = self._here()
        return pool.running_one(job.id) if pool else None


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """Return what calls *method* while its object lives, as it does by its threads if by nobody."""
    found = WeakMethod(method)

    def call() -> None:
        there = found()
        if there is not None:
            there()

    return call
