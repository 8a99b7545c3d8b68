"""At once, in the process of the caller."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextvars import ContextVar
from typing import ClassVar

from uwsgi_tasks import codec
from uwsgi_tasks.executors import Executor
from uwsgi_tasks.model import Job, Result

_following: ContextVar[deque[Job] | None] = ContextVar("following", default=None)


class RuntimeExecutor(Executor):
    """Runs the job before the call returns, and its retries right after one another."""

    name: ClassVar[str] = "runtime"
    travels: ClassVar[bool] = False

    def ready(self) -> bool:
        """Always."""
        return True

    def submit(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Run all of *jobs*, and what they ask for; return how the last attempt of each ended."""
        # What the spooler would refuse, a test with this executor shall find.
        codec.encode(jobs)
        return [self._run(job) for job in jobs]

    def follow(self, job: Job) -> Sequence[Result]:
        """Run *job* after the attempt that asks for it, not inside it: it may ask again."""
        queue = _following.get()
        if queue is None:
            return self.submit((job,))
        codec.encode((job,))
        queue.append(job)
        return ()

    def _run(self, job: Job) -> Result:
        queue: deque[Job] = deque()
        token = _following.set(queue)
        try:
            result = self._last(job)
            while queue:
                followed = self._last(queue.popleft())
                if result.error is None and followed.error is not None:
                    result = followed
            return result
        finally:
            _following.reset(token)

    def _last(self, job: Job | None) -> Result:
        while job is not None:
            result, job = self._receiver.perform(job)
        return result
