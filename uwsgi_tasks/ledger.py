"""What is kept of jobs beside their run: how they ended, who holds a unique key, and counts."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from uwsgi_tasks import codec
from uwsgi_tasks.errors import ConfigurationError, DecodeError, ResultNotKept, StoreError, shown
from uwsgi_tasks.log_lines import of, one_line
from uwsgi_tasks.meter import Meter
from uwsgi_tasks.model import Job, Lease, Record, Result, State, Stop
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.stores import Store

log = logging.getLogger(__name__)

_AWAY = (StoreError, ConfigurationError)
"""What says that the store did not do it. Not all of our errors: an alarm may ring in its call."""
_CLAIM = 10.0
"""Seconds that a caller gets to submit what it has claimed the unique key for; and those for which
it tries again."""
_HELD = 86_400.0
"""Seconds after which a key is free whose job was lost, as one in a killed mule is."""
_SOON = 0.1
"""Seconds: a store that refuses sooner may have lost no more than a connection."""
_OWED = 1000
"""Writes that a process remembers which the store has missed."""
COUNTS_KEPT = 30 * 86_400.0
"""Seconds for which runs are counted."""
_PURGE = 60.0
"""Seconds after which a process that saves results deletes some that have expired."""
_OFTEN = 0.2
"""Seconds between two questions to the store by one running job."""


class Place(Protocol):
    """Where runs are counted."""

    def counts_folder(self) -> Path | None:
        """Return the folder of the processes' counts; None where nobody would look."""

    @property
    def is_near(self) -> bool:
        """Is the store in use here, or was it asked for?"""


class _Asked(threading.local):
    """Of which job this thread has asked the store last, when, and what it said."""

    last: tuple[str, float, Stop] = ("", 0.0, Stop.NOT)


class Ledger:
    """Writes down in the store what jobs ask for, and counts all of them.

    Where the store is away, the job goes on: what could not be written is logged, and how it
    ended is written when the store is back, by this process and for as long as it lives.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        settings: Callable[[], Settings],
        place: Place,
        role: Callable[[], str],
    ) -> None:
        self._store, self._settings, self._place, self._role = store, settings, place, role
        self.count: Callable[[str, str, float, float], None] = self._first_count
        """Counts one run: its task, its outcome, its seconds, and when it has ended."""
        # Of each process its own: one that another thread holds in a fork is never free again.
        # Not plain ones: a signal's handler may cancel a job, which is counted too.
        self._counting: dict[int, threading.RLock] = {}
        self._owed: deque[tuple[str, Callable[[], object]]] = deque()
        self._catching: dict[int, threading.RLock] = {}
        self._purged_at = float("-inf")
        self._asked = _Asked()

    # ---- the way of a job -------------------------------------------------------------------

    def queued(self, job: Job, executor: str) -> None:
        """Remember that *job* is about to be submitted."""
        self._save(job, executor, State.QUEUED)

    def starts(self, job: Job) -> bool:
        """Note that an attempt begins; False if the job was cancelled, and must not."""
        try:
            known = self._store().start(job.id, job.attempt, self.worker)
        except _AWAY as error:
            log.warning(
                "%s: that it begins could not be kept: %s",
                one_line(job),
                one_line(error),
                extra=of(job),
            )
            return True
        if known:
            return True
        log.info("%s was cancelled, and does not run", one_line(job), extra=of(job))
        self.count(job.task, State.CANCELLED, 0.0, time.time())
        return False

    def ends(
        self,
        job: Job,
        executor: str,
        result: Result,
        *,
        trace: str = "",
        started_at: float | None = None,
        is_ours: Callable[[Job], bool] = lambda _job: True,
    ) -> None:
        """Remember how an attempt ended, if the job wants that; and give its unique key back.

        What the store does not take now, it is told when it is back, if the job *is_ours* still.
        """
        if job.result_ttl:
            self._save(
                job,
                executor,
                result.state,
                result,
                trace=trace,
                started_at=started_at,
                is_ours=is_ours,
            )
        if job.unique is not None and result.state.is_final:
            self.release(job.id, lambda: is_ours(job))

    def forget(self, id: str) -> None:  # noqa: A002  the job's
        """Forget how a job ended, which is to be submitted again. Raises StoreError."""
        self._store().forget(id)

    def _save(
        self,
        job: Job,
        executor: str,
        state: State,
        result: Result | None = None,
        *,
        trace: str = "",
        started_at: float | None = None,
        is_ours: Callable[[Job], bool] = lambda _job: True,
    ) -> None:
        error, outcome = None, None
        if result is not None:
            error = None if result.error is None else shown(result.error)
            try:
                outcome = self._outcome(result)
            # Whatever pickling the user's value, or exception, raises: the job has ended so.
            except Exception as refused:  # noqa: BLE001
                if result.error is None:
                    kind = type(result.value)
                    error = (
                        f"it returned a {kind.__module__}.{kind.__qualname__}, which cannot be "
                        f"kept ({shown(refused)}): return what it is made of"
                    )
        record = Record(
            id=job.id,
            task=job.task,
            executor=executor,
            state=state,
            attempt=job.attempt,
            submitted_at=job.submitted_at,
            started_at=started_at,
            ended_at=time.time() if state.is_final else None,
            worker=None if result is None else self.worker,
            outcome=outcome,
            error=error,
            traceback=trace or None,
        )
        try:
            self._store().save(record, _kept_for(job, state))
        except _AWAY as away:
            if state.is_final:
                self._owe(
                    job.id,
                    lambda: is_ours(job) and self._store().save(record, _kept_for(job, state)),
                )
            log.warning(
                "%s: that it is %s could not be kept: %s",
                one_line(job),
                state,
                one_line(away),
                extra=of(job, executor),
            )
        else:
            self.catch_up()
            self._purge()

    def _owe(self, id: str, write: Callable[[], object]) -> None:  # noqa: A002  the job's
        if len(self._owed) < _OWED:
            self._owed.append((id, write))

    @property
    def owes(self) -> bool:
        """Is there anything that the store has missed?"""
        return bool(self._owed)

    def catch_up(self) -> None:
        """Write how those jobs ended which did while the store was away, if it is back."""
        if not self._owed:
            return
        # One after the other: what another thread is about to write is not written yet.
        with self._catching.setdefault(os.getpid(), threading.RLock()):
            until = time.monotonic() + _SOON
            while self._owed:
                first = self._owed[0]
                try:
                    first[1]()
                except _AWAY:
                    # What it never takes, being too large, say, does not hold the others up.
                    self._put_last(first[0])
                    if time.monotonic() > until:
                        return
                    # It was the connection, perhaps, and the next one is a new one.
                    until = 0.0
                else:
                    # The handler of a signal may have done the same in its midst.
                    with contextlib.suppress(ValueError):
                        self._owed.remove(first)

    def _put_last(self, id: str) -> None:  # noqa: A002
        """Let all others come before what is owed to one job, which stays in its order."""
        for one in tuple(self._owed):
            if one[0] == id:
                with contextlib.suppress(ValueError):
                    self._owed.remove(one)
                    self._owed.append(one)

    def _purge(self) -> None:
        """Delete a little of what has expired, now and then."""
        now = time.monotonic()
        if now > self._purged_at + _PURGE:
            self._purged_at = now
            try:
                self._store().purge(time.time() - COUNTS_KEPT)
            except _AWAY as error:
                log.warning("what has expired could not be deleted: %s", one_line(error))

    def _outcome(self, result: Result) -> bytes | None:
        if not result.state.is_final:
            return None
        value = result.value if result.error is None else result.error
        settings = self._settings()
        if not settings.pickles and result.error is not None:
            # Its text and its traceback are kept.
            return None
        outcome = codec.encode_value(value, settings.signer, pickles=settings.pickles)
        if result.error is not None:
            # Many an exception can be pickled, and not be read again.
            codec.decode_value(outcome, settings.signer)
        return outcome

    @property
    def worker(self) -> str:
        """The present process: its machine, number and kind."""
        return f"{os.uname().nodename}:{os.getpid()} {self._role()}".rstrip()

    # ---- unique keys ------------------------------------------------------------------------

    def claim(self, job: Job) -> str | None:
        """Claim the unique key of *job* for it; return the id of the job that has it, if any.

        Raises StoreError.
        """
        name = _lease_name(job)
        while True:
            lease = self._store().acquire(name, job.id, self._claimed_for)
            if lease.owner == job.id:
                return None
            # Submitted: it is there, and will run. Else its caller is about to, or has died.
            if lease.extended:
                return lease.owner
            time.sleep(0.02)

    @property
    def _claimed_for(self) -> float:
        return _CLAIM + self._settings().redis_retry

    def confirm(self, job: Job, took: float = 0.0) -> None:
        """Note that *job*, for which the key was claimed, is submitted; that *took* seconds."""
        until = _HELD + max((job.at or 0.0) - time.time(), 0.0)
        try:
            # Where it has run already, the key is free, and this is in vain.
            if not self._store().extend(_lease(job), until) and took > self._claimed_for:
                log.warning(
                    "%s: its unique key was free before it was submitted, for that took %.0f "
                    "seconds: another job may have it, too",
                    one_line(job),
                    took,
                    extra=of(job),
                )
        except _AWAY as error:
            log.warning(
                "%s: its unique key could not be kept: %s",
                one_line(job),
                one_line(error),
                extra=of(job),
            )

    def release(
        self,
        id: str,  # noqa: A002  the job's
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        """Give the unique key of a job back, if it has one."""
        try:
            self._store().release_all(id)
        except _AWAY as error:
            self._owe(id, lambda: is_ours() and self._store().release_all(id))
            log.warning(
                "job %s: its unique key is held for up to a day if the store stays away: %s",
                id,
                one_line(error),
                extra={"job_id": id},
            )

    # ---- while it runs ----------------------------------------------------------------------

    def show_progress(self, job: Job, done: float, total: float | None) -> None:
        """Remember how far *job* has come."""
        if job.result_ttl:
            self._ask(job, lambda: self._store().advance(job.id, done, total), always=done == total)

    def asked(self, job: Job) -> Stop:
        """Was *job* asked to stop?"""
        return (
            self._ask(job, lambda: _stop_of(self._store().get(job.id)))
            if job.result_ttl
            else (Stop.NOT)
        )

    def _ask(self, job: Job, question: Callable[[], Stop], *, always: bool = False) -> Stop:
        id, at, known = self._asked.last  # noqa: A001  the job's
        now = time.monotonic()
        if id != job.id:
            known = Stop.NOT
        elif now < at + _OFTEN and not always:
            return known
        try:
            known = question()
        except _AWAY as error:
            log.warning(
                "%s: the store could not be asked: %s",
                one_line(job),
                one_line(error),
                extra=of(job),
            )
        self._asked.last = (job.id, now, known)
        return known

    # ---- counts -----------------------------------------------------------------------------

    def _first_count(self, task: str, outcome: str, seconds: float, now: float) -> None:
        with self._counting.setdefault(os.getpid(), threading.RLock()):
            # Another thread may have been first.
            if self.count == self._first_count:
                self.count = self._counter()
        # From now on without a detour, for each run pays for it.
        self.count(task, outcome, seconds, now)

    def _counter(self) -> Callable[[str, str, float, float], None]:
        folder = self._place.counts_folder() if self._settings().stats else None
        if folder is None:
            return _uncounted
        meter = Meter(
            folder, lambda counts: self._store().count(counts), lambda: self._place.is_near
        )
        # Those run one job at a time, but for what they have threads for; and so do most programs
        # outside of uWSGI whose main thread comes first, as that of a worker does.
        role, is_main = self._role(), threading.current_thread() is threading.main_thread()
        has_one = role in {"spooler", "mule"} or (is_main and not role)
        return meter.add if has_one else meter.add_from_any_thread


def _uncounted(_task: str, _outcome: str, _seconds: float, _now: float) -> None:
    """Count nothing: nobody would look, or the setting 'stats' is off."""


def read_outcome(record: Record, settings: Settings) -> object:
    """Return what the task of *record* returned, or the exception that it raised.

    Raises ResultNotKept.
    """
    if record.outcome is None:
        raise ResultNotKept(f"job {record.id}: {record.error or 'its value was not kept'}")
    try:
        return codec.decode_value(record.outcome, settings.signer, pickles=settings.pickles)
    except DecodeError as error:
        raise ResultNotKept(f"job {record.id}: its result cannot be read: {error}") from error


def _kept_for(job: Job, state: State) -> float:
    """Return for how many seconds to remember how *job* stands."""
    ttl = job.result_ttl or 0.0
    if state.is_final:
        return ttl
    # Until it has ended, it must not be forgotten that it was cancelled.
    return max(ttl, _HELD) + max((job.at or 0.0) - time.time(), 0.0)


def _stop_of(record: Record | None) -> Stop:
    return Stop.NOT if record is None else record.stop


def _lease_name(job: Job) -> str:
    return f"unique {job.task} {job.unique}"


def _lease(job: Job) -> Lease:
    return Lease(name=_lease_name(job), owner=job.id, due=0.0)
