"""At once, in the process of the caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import ClassVar

from uwsgi_tasks import codec
from uwsgi_tasks.errors import TasksError
from uwsgi_tasks.executors import Executor
from uwsgi_tasks.model import Job, Result, State

_MOST = 1000
"""Attempts in a row, of a task that sets itself no limit."""
_following: ContextVar[deque[bytes] | None] = ContextVar("following", default=None)


class RuntimeExecutor(Executor):
    """Runs the job before the call returns, and its retries right after one another."""

    name: ClassVar[str] = "runtime"
    travels: ClassVar[bool] = False

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
                if result.error is None and followed.error is not None:
                    result = followed
            return result
        finally:
            _following.reset(token)

    def _last(self, payload: bytes, index: int) -> Result:
        signer = self._settings().signer
        for _ in range(_MOST):
            job = codec.decode(payload, signer)[index]
            result, following = self._receiver.perform(job, payload, index)
            if following is None:
                return result
            payload, index = codec.encode((following,), signer), 0
        # A spooler would wait between them; nobody can wait here for what may never come.
        error = result.error or TasksError(f"{job}: it asked for more than {_MOST} attempts")
        return replace(result, state=State.FAILED, error=error)
