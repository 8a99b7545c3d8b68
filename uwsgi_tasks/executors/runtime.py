"""At once, in the process of the caller."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import ClassVar

from uwsgi_tasks import codec
from uwsgi_tasks.errors import TasksError
from uwsgi_tasks.executors import Executor
from uwsgi_tasks.model import Job, Result, State
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings

_MOST = 1000
"""Attempts right after one another, of a task that sets itself no limit."""
_LONGEST = 1e9
"""Seconds; to sleep some times longer is an error."""
_following: ContextVar[deque[bytes] | None] = ContextVar("following", default=None)


class RuntimeExecutor(Executor):
    """Runs the job before the call returns, and its retries too, each when it is due.

    Where it stands in for another executor it does not *wait* for them: whoever calls expects an
    answer at once.
    """

    name: ClassVar[str] = "runtime"
    travels: ClassVar[bool] = False

    def __init__(
        self, server: Server, settings: Callable[[], Settings], *, waits: bool = True
    ) -> None:
        super().__init__(server, settings)
        self._waits = waits

    def ready(self) -> bool:
        """Always."""
        return True

    def submit(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Run all of *jobs*, and what they ask for; return how the last attempt of each ended.

        They are pickled and read again, as on their way to a spooler, so that a test with this
        executor finds what others would refuse, and a task has its arguments for itself.
        """
        payload = codec.encode(jobs, self._settings().signer)
        return [self._run(payload, index) for index in range(len(jobs))]

    def follow(self, job: Job) -> Sequence[Result]:
        """Run *job* after the attempt that asks for it, not inside it: it may ask again."""
        queue = _following.get()
        if queue is None:
            return self.submit((job,))
        queue.append(codec.encode((job,), self._settings().signer))
        return ()

    def _run(self, payload: bytes, index: int) -> Result:
        queue: deque[bytes] = deque()
        token = _following.set(queue)
        try:
            result = self._last(payload, index)
            while queue:
                followed = self._last(queue.popleft(), 0)
                if result.state is not State.FAILED and followed.state is State.FAILED:
                    result = followed
            return result
        finally:
            _following.reset(token)

    def _last(self, payload: bytes, index: int) -> Result:
        signer = self._settings().signer
        in_a_row = 0
        while True:
            job = codec.decode(payload, signer)[index]
            result, following = self._receiver.perform(job, payload, index)
            if following is None:
                return result
            wait = pause(following) if self._waits else 0.0
            in_a_row = 0 if wait else in_a_row + 1
            if in_a_row >= _MOST and self._receiver.is_endless(following):
                # A spooler would let others pass between them; here nobody would come any further.
                reason = f"{job}: it asked for more than {_MOST} attempts"
                error = result.error or TasksError(reason)
                return replace(result, state=State.FAILED, error=error)
            if wait:
                _wait_for(following)
            payload, index = codec.encode((following,), signer), 0

    def attempts(self, job: Job) -> Iterator[tuple[Result, Job | None]]:
        """Make the attempts at *job*, one per turn of a loop; yield what follows from each."""
        following: Job | None = job
        while following is not None:
            result, following = self._receiver.perform(following)
            yield result, following


def _wait_for(job: Job) -> None:
    # Again where the clock was set back meanwhile: no attempt begins before it is due.
    while left := pause(job):
        time.sleep(min(left, _LONGEST))


def pause(job: Job) -> float:
    """Return the seconds until *job* is due."""
    return 0.0 if job.at is None else max(job.at - time.time(), 0.0)
