"""What became of a job: its executor's view of it, and the store's, made one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from uwsgi_tasks.errors import (
    ConfigurationError,
    ResultNotKept,
    StoreError,
    TaskCancelled,
    TaskFailed,
)
from uwsgi_tasks.executors import Executor
from uwsgi_tasks.ledger import Ledger, read_outcome
from uwsgi_tasks.model import Record, Result, Standing, State, Stop
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.stores import Store

_PATIENCE = 10.0
"""Seconds in which a killed job ends; see `Waiting.cancel`."""


class Tracker:
    """Finds jobs by their ids."""

    def __init__(
        self,
        executors: Callable[[], Sequence[Executor]],
        store: Callable[[], Store],
        settings: Callable[[], Settings],
        ledger: Ledger,
    ) -> None:
        self._executors, self._store, self._settings = executors, store, settings
        self._ledger = ledger

    def standing(self, id: str) -> Standing | None:  # noqa: A002
        """Return where a job stands that has not ended, if its executor knows that."""
        for executor in self._executors():
            if (found := executor.find(id)) is not None:
                return found
        return None

    def record(self, id: str) -> Record | None:  # noqa: A002
        """Return what the store remembers of the job."""
        try:
            return self._store().get(id)
        except ConfigurationError:
            # Without a store there is nothing that it could know.
            return None

    def state(self, id: str) -> State:  # noqa: A002
        """Return how the job stands. Raises ResultNotKept, StoreError."""
        # In this order: between the first two looks it may have ended.
        standing = self.standing(id)
        try:
            record = self.record(id)
        except StoreError:
            if standing is not None:
                return standing.state
            raise
        if record is not None and (standing is None or record.state.is_final):
            return record.state
        if standing is not None:
            return standing.state
        if self._is_dead(id):
            return State.FAILED
        raise ResultNotKept(
            f"nothing is known of job {id}: it has ended, and its task has no result_ttl=, or that "
            "is over"
        )

    def _is_dead(self, id: str) -> bool:  # noqa: A002
        try:
            return self._store().find_dead(id) is not None
        except ConfigurationError:
            return False

    def outcome(self, id: str) -> Any:  # noqa: A002
        """Return what the job returned, or raise what it raised."""
        record = self.record(id)
        if record is None or not record.state.is_final:
            raise ResultNotKept(f"job {id} has ended, and its result is not kept, or no longer")
        if record.state is State.CANCELLED:
            raise TaskCancelled(f"job {id}: {record.error or 'it was cancelled'}")
        if record.state is State.SUCCEEDED:
            return read_outcome(record, self._settings())
        try:
            error = read_outcome(record, self._settings())
        except ResultNotKept as unread:
            raise TaskFailed(record.error, record.traceback) from unread
        if not isinstance(error, BaseException):
            raise TaskFailed(record.error, record.traceback)
        if record.traceback:
            error.add_note(f"In {record.worker}:\n{record.traceback}")
        raise error

    def progress(self, id: str) -> tuple[float, float | None] | None:  # noqa: A002
        """Return how far the job has come, and of how much."""
        found = self.standing(id) or self.record(id)
        return None if found is None or found.done is None else (found.done, found.total)

    def cancel(self, id: str, stop: Stop) -> bool:  # noqa: A002
        """Take the job away, or ask it to stop; True if it will certainly not run (again)."""
        for executor in self._executors():
            found = executor.cancel(id, stop)
            if found is not None:
                state, job = found
                if state is State.CANCELLED:
                    result = Result(state=state, attempt=job.attempt)
                    self._ledger.ends(job, executor.name, result)
                    self._ledger.count(job.task, State.CANCELLED, 0.0, time.time())
                    return True
                if not job.is_once:
                    return stop is Stop.KILL and self._is_gone(id)
                # It is about to begin, or has begun: the store decides.
                break
        try:
            state_then = self._store().cancel(id, stop)
        except (ConfigurationError, StoreError):
            return False
        if state_then is State.RUNNING and stop is Stop.KILL:
            return self._is_gone(id)
        if state_then is State.CANCELLED:
            self._ledger.release(id)
            return True
        return False

    def _is_gone(self, id: str) -> bool:  # noqa: A002
        """Wait until a killed job has ended; True if it did not come to an end of its own."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                state = self.state(id)
            except ResultNotKept:
                return True
            if state.is_final:
                return state is State.CANCELLED
            time.sleep(0.02)
        return False
