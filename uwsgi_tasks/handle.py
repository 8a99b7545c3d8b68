"""What a call returns."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, Protocol

from uwsgi_tasks.errors import ResultNotKept, TaskCancelled
from uwsgi_tasks.model import Record, Result, State, Stop

_FIRST, _LONGEST, _GROWTH = 0.002, 0.25, 1.5
"""Seconds between two looks of one who waits: more and more."""


class Tracker(Protocol):
    """Finds out what became of a job."""

    def state(self, id: str) -> State:  # noqa: A002
        """Return how the job stands. Raises ResultNotKept where nobody can tell any more."""

    def record(self, id: str) -> Record | None:  # noqa: A002
        """Return what the store remembers of it."""

    def outcome(self, id: str) -> Any:  # noqa: A002
        """Return what it returned, or raise what it raised; ResultNotKept if that is not kept."""

    def progress(self, id: str) -> tuple[float, float | None] | None:  # noqa: A002
        """Return how far it has come, and of how much."""

    def cancel(self, id: str, stop: Stop) -> bool:  # noqa: A002
        """Take it away, or ask it to stop; True if it will certainly not run."""


class Near(ABC):
    """A job in the memory of this process, which tells by itself how it stands."""

    __slots__ = ()

    state: State
    result: Result | None
    """How it ended; None before."""

    @abstractmethod
    def wait(self, timeout: float | None, *, begun: bool) -> bool:
        """Wait until it has ended, or *begun*; False if *timeout* seconds were over before."""


class JobHandle:
    """A job that was submitted. Where it has run already, it knows how that ended.

    *is_seen* says that its executor or the store can tell how it stands, and *is_kept* that the
    store will remember how it ended.
    """

    __slots__ = ("_near", "_result", "_tracker", "id", "is_kept", "is_seen")

    def __init__(
        self,
        id: str,  # noqa: A002
        result: Result | None = None,
        tracker: Tracker | None = None,
        near: Near | None = None,
        *,
        is_seen: bool = True,
        is_kept: bool = True,
    ) -> None:
        self.id = id
        """The name of the job, as log lines and dead letters show it."""
        self._result = result
        self._tracker = tracker
        self._near = near
        self.is_seen, self.is_kept = is_seen, is_kept

    @property
    def state(self) -> State:
        """How the job stands. Raises ResultNotKept where nobody can tell.

        Of a job without ``result_ttl`` the spooler knows whether it waits or runs, and the dead
        letters whether it failed; a mule tells nothing.
        """
        ended = self._ended()
        if ended is not None:
            return ended.state
        return self._seen().state(self.id) if self._near is None else self._near.state

    def _ended(self) -> Result | None:
        if self._result is None and self._near is not None:
            self._result = self._near.result
        return self._result

    @property
    def record(self) -> Record | None:
        """What the store remembers of it; None if that is nothing. Raises StoreError."""
        return None if self._tracker is None else self._tracker.record(self.id)

    @property
    def progress(self) -> tuple[float, float | None] | None:
        """How far it has come, and of how much in all, as the task says; None if it does not."""
        return None if self._tracker is None else self._tracker.progress(self.id)

    def wait(self, timeout: float | None = None, *, until: State | None = None) -> bool:
        """Wait until the job has ended; False if *timeout* seconds were over before.

        With *until* ``State.RUNNING``, until it has begun. Raises ResultNotKept where nobody can
        tell.
        """
        if until not in {None, State.RUNNING}:
            raise ValueError(f"until= takes State.RUNNING, or None for the end, not {until!r}")
        if self._ended() is not None:
            return True
        if self._near is not None:
            return self._near.wait(timeout, begun=until is not None)
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST
        while not self._has_come_to(until):
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                pause = min(pause, left)
            time.sleep(pause)
            pause = min(pause * _GROWTH, _LONGEST)
        return True

    def _has_come_to(self, until: State | None) -> bool:
        tracker = self._seen()
        try:
            state = tracker.state(self.id)
        except ResultNotKept:
            # It is nowhere any more: it has ended, and nobody knows how.
            return True
        return state.is_final or (until is not None and state is not State.QUEUED)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for its end, and return what the function returned, or raise what it raised.

        Raises TimeoutError if that takes longer than *timeout* seconds, TaskCancelled if it was
        cancelled, ResultNotKept if its task has no ``result_ttl``, or that is over. What cannot
        travel is raised as TaskFailed.
        """
        if self._near is not None and not self._near.wait(timeout, begun=False):
            raise TimeoutError(f"job {self.id} has not ended after {timeout:g} s")
        ended = self._ended()
        if ended is not None:
            return self._outcome(ended)
        if not self.is_kept:
            raise ResultNotKept(
                f"job {self.id} runs in another process, and its result is not kept: "
                "declare its task with result_ttl="
            )
        if not self.wait(timeout):
            raise TimeoutError(f"job {self.id} has not ended after {timeout:g} s")
        return self._seen().outcome(self.id)

    def _outcome(self, ended: Result) -> Any:
        if ended.state is State.CANCELLED:
            raise ended.error or TaskCancelled(f"job {self.id} was cancelled")
        # Where it succeeded all the same, its task's rules have accepted the exception.
        if ended.state is State.FAILED and ended.error is not None:
            raise ended.error
        return ended.value

    def cancel(self, *, kill: bool = False) -> bool:
        """Cancel the job; True if it will certainly not run, or not again.

        One that runs is asked to stop, and sees that in ``get_current_task().cancelled``; the
        answer is then False. With *kill* it is stopped, by an exception, and if that does not help
        within five seconds by the end of its process.
        """
        if self._ended() is not None:
            return False
        return self._seen().cancel(self.id, Stop.KILL if kill else Stop.ASKED)

    def _seen(self) -> Tracker:
        if self._tracker is None or not self.is_seen:
            raise ResultNotKept(
                f"job {self.id} runs in another process, which does not tell how it stands: "
                "declare its task with result_ttl=, or use the spooler"
            )
        return self._tracker

    def __repr__(self) -> str:
        ended = self._ended()
        return (
            f"<JobHandle {self.id}>" if ended is None else f"<JobHandle {self.id}, {ended.state}>"
        )
