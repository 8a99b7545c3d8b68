"""Where the calls of a test go instead of to a spooler, unless they wait there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from uwsgi_tasks import codec
from uwsgi_tasks.app import App
from uwsgi_tasks.executors import Executor, Receiver
from uwsgi_tasks.executors.runtime import RuntimeExecutor
from uwsgi_tasks.model import Job, Result
from uwsgi_tasks.task import Task
from uwsgi_tasks.testing.submitted import CapturedJob, bound


class Diverted(Executor):
    """What the executors of tests have in common: they keep a list of what came."""

    supports_delay: ClassVar[bool] = True
    supports_priority: ClassVar[bool] = True
    # It stays here, so that functions of a test, which nobody could import, are tasks as well.
    travels: ClassVar[bool] = False

    def __init__(self, app: App) -> None:
        super().__init__(app.server, lambda: app.settings)
        self._find = app.find
        self._tasks: dict[str, Task[..., Any]] = {}
        self.captured: list[CapturedJob] = []

    def ready(self) -> bool:
        """Always."""
        return True

    def _travelled(self, jobs: Sequence[Job]) -> tuple[bytes, Sequence[Job]]:
        """Return *jobs* as bytes, and as they are read from them. Raises Unpicklable."""
        signer = self._settings().signer
        payload = codec.encode(jobs, signer)
        return payload, codec.decode(payload, signer)

    def _note(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            # A function of the test may be gone before its job runs, or is looked at.
            self._tasks[job.task] = self._find(job.task)
        self.captured += map(CapturedJob.of, jobs)


class Capture(Diverted):
    """Runs nothing."""

    name: ClassVar[str] = "captured"

    def submit(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Keep *jobs*. Raises SubmitError as others do, and TypeError where a run would."""
        _, travelled = self._travelled(jobs)
        for job in travelled:
            # Nothing runs it, so nobody else would find that its arguments are wrong.
            bound(self._find(job.task), job.args, job.kwargs)
        self._note(travelled)
        return ()


class Eager(Diverted):
    """Runs what comes within its call."""

    name: ClassVar[str] = RuntimeExecutor.name

    def __init__(self, app: App) -> None:
        super().__init__(app)
        # Not its child: `follow` would call our `submit`, and what follows would be noted twice.
        self._runtime = RuntimeExecutor(app.server, lambda: app.settings, waits=False)

    def listen(self, receiver: Receiver) -> None:
        """Let *receiver* run what arrives."""
        self._runtime.listen(receiver)

    def submit(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Run *jobs*, and return how they ended."""
        self._note(self._travelled(jobs)[1])
        return self._runtime.submit(jobs)

    def follow(self, job: Job) -> Sequence[Result]:
        """Run *job* after the one that asks for it."""
        self._note(self._travelled((job,))[1])
        return self._runtime.follow(job)
