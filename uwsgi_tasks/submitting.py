"""The way of a call: which executor takes it, and what is kept of it before and after."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from uwsgi_tasks.errors import InvalidTask, SubmitError, TasksError
from uwsgi_tasks.executors import Executor
from uwsgi_tasks.executors.mule import MuleExecutor
from uwsgi_tasks.executors.runtime import RuntimeExecutor, pause
from uwsgi_tasks.executors.spooler import SpoolerExecutor
from uwsgi_tasks.handle import JobHandle, Near
from uwsgi_tasks.ledger import Ledger
from uwsgi_tasks.log_lines import one_line
from uwsgi_tasks.model import Attempt, Job, Result, State, TaskExecutor, new_id
from uwsgi_tasks.onion import Onion
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.spool_file import pack_raw
from uwsgi_tasks.task import UNREACHABLE, Options, Task, options
from uwsgi_tasks.times import due
from uwsgi_tasks.tracker import Tracker

log = logging.getLogger(__name__)

_FLEETING = {TaskExecutor.AUTO, TaskExecutor.RUNTIME, TaskExecutor.THREAD}
"""Executors of dead letters whose process may be gone."""
_RESUBMITTED = {
    "executor", "at", "priority", "spooler", "mule", "working_dir", "retry_count",
    "retry_timeout", "expires", "result_ttl", "durable", "queue",
}  # fmt: skip
"""The options that a job may be given when it is submitted again."""


def _changed(job: Job, given: Options, changes: Iterable[str]) -> Job:
    for name in changes:
        if name not in _RESUBMITTED:
            raise InvalidTask(f"{name}= cannot change when a job is submitted again")
        if name in Job._fields and name not in {"at", "unique"}:
            job = job._replace(**{name: getattr(given, name)})
    return job


class Submitting:
    """Submits the calls of an app's tasks.

    *executor* returns the one of a name, and *warn* says something once.
    """

    diversion: Executor | None = None
    """Takes all calls, while it is set."""

    def __init__(  # noqa: PLR0913  all that a call may have to do with
        self,
        server: Server,
        settings: Callable[[], Settings],
        executor: Callable[[str], Executor],
        *,
        spooler: SpoolerExecutor,
        mule: MuleExecutor,
        stand_in: RuntimeExecutor,
        ledger: Ledger,
        tracker: Tracker,
        warn: Callable[[str], None],
        onion: Onion,
    ) -> None:
        self._server, self._settings, self._executor = server, settings, executor
        self._spooler, self._mule, self._stand_in = spooler, mule, stand_in
        self._ledger, self._tracker, self._warn = ledger, tracker, warn
        self._onion = onion

    def submit(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> JobHandle:
        """Submit one call. Raises SubmitError; where it runs at once, what the task raises."""
        job = task.job(new_id(), args, kwargs)
        if self._onion.hooks:
            job = self._onion.headed(job)
        route = task.route
        if route is None or route[0] is not self._settings():
            route = self._find_route(task)
        executor, keeps = route[1], route[2]
        if keeps:
            return self._submit_kept(task, job, executor)
        jobs = (job,)
        results = executor.submit(jobs) if executor else self._submit_auto(task, jobs)
        return self.handle(job, executor, results)

    def _submit_kept(self, task: Task[..., Any], job: Job, executor: Executor | None) -> JobHandle:
        """Submit a call of which the store is to know."""
        if job.result_ttl is None and self._settings().result_ttl:
            job = job._replace(result_ttl=self._settings().result_ttl)
        holder = self._claim(job)
        if holder is not None:
            return self.handle(job._replace(id=holder), executor, ())
        jobs = (job,)
        with self._claimed(job), self._queued(jobs, executor):
            results = executor.submit(jobs) if executor else self._submit_auto(task, jobs)
        return self.handle(job, executor, results)

    @contextlib.contextmanager
    def _queued(self, jobs: Sequence[Job], executor: Executor | None) -> Iterator[None]:
        """Have the store know of *jobs*, for as long as they are not refused, if it must."""
        is_known = executor is not None and executor.follows(jobs[0])
        if is_known or not jobs[0].result_ttl:
            yield
            return
        try:
            # Before they are submitted: a fast worker may be done before us.
            for job in jobs:
                self._ledger.queued(job, executor.name if executor else TaskExecutor.AUTO)
            yield
        except BaseException:
            for job in jobs:
                with contextlib.suppress(TasksError):
                    self._ledger.forget(job.id)
            raise

    def _claim(self, job: Job) -> str | None:
        """Claim the unique key of *job*, if it has one; return the id of the job that has it."""
        if job.unique is None:
            return None
        try:
            return self._ledger.claim(job)
        except TasksError as error:
            raise SubmitError(f"{job.task}: its unique key cannot be claimed: {error}") from error

    @contextlib.contextmanager
    def _claimed(self, job: Job) -> Iterator[None]:
        """Hold the key that was claimed for *job* until it ends, or until it is not submitted."""
        if job.unique is None:
            yield
            return
        began = time.monotonic()
        try:
            yield
        except BaseException:
            self._ledger.release(job.id)
            raise
        self._ledger.confirm(job, time.monotonic() - began)

    def submit_all(self, task: Task[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[JobHandle]:
        """Submit all of *calls*, or raise SubmitError and take none."""
        route = self._find_route(task)
        executor, keeps = route[1], route[2]
        if task.options.unique is not None:
            # Each is a question of its own, and some are there already.
            return [self.submit(task, args, {}) for args in calls]
        first = task.job(new_id(), calls[0], {})
        if self._onion.hooks:
            first = self._onion.headed(first)
        if keeps and first.result_ttl is None:
            first = first._replace(result_ttl=self._settings().result_ttl)
        key, name, _, *rest = first
        # As Job(...) would, in a quarter of the time.
        jobs: list[Job] = [
            tuple.__new__(Job, (f"{key}.{number}", name, args, *rest))
            for number, args in enumerate(calls)
        ]
        with self._queued(jobs, executor):
            results = executor.submit(jobs) if executor else self._submit_auto(task, jobs)
        if not results:
            model = self.handle(first, executor, ())
            tracker, seen, kept = self._tracker, model.is_seen, model.is_kept
            return [JobHandle(job.id, None, tracker, is_seen=seen, is_kept=kept) for job in jobs]
        return [
            self.handle(job, executor, (result,)) for job, result in zip(jobs, results, strict=True)
        ]

    def handle(
        self, job: Job, executor: Executor | None, results: Sequence[Result | Near]
    ) -> JobHandle:
        """Return the handle of what *executor* took. Raises what a job raised that has run."""
        if not results:
            is_kept = bool(job.result_ttl)
            is_seen = is_kept or (executor is not None and executor.tracks)
            return JobHandle(job.id, None, self._tracker, is_seen=is_seen, is_kept=is_kept)
        result = results[0]
        if isinstance(result, Near):
            return JobHandle(job.id, None, self._tracker, result)
        # What was cancelled has not run, and the caller may want to go on.
        if result.error is not None and result.state is State.FAILED:
            raise result.error
        return JobHandle(job.id, result, self._tracker)

    def attempts(
        self, task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[Attempt]:
        """Make the attempts at one call, here and now, one per turn of a loop."""
        declared = task
        if task.options.unique is not None:
            # Not even asked for its key: that is a function of the user's, which may raise.
            task = task.using(unique=None)
        # Now, not at the first turn: whatever is counted from the call begins here.
        job = task.job(new_id(), args, kwargs)._replace(at=None, delay=None)
        return self._attempts(self._onion.headed(job), declared)

    def _attempts(self, job: Job, _held: Task[..., Any]) -> Iterator[Attempt]:
        # A local function is a task for as long as somebody has it: here the loop has.
        for result, following in self._stand_in.attempts(job):
            if isinstance(result.error, (KeyboardInterrupt, SystemExit)):
                raise result.error
            yield Attempt(
                number=result.attempt,
                state=result.state,
                value=result.value,
                exception=result.error,
                wait=None if following is None else pause(following),
            )

    def put_back(self, variables: bytes, body: bytes) -> None:
        """Put a spool file back that is not ours. Raises SubmitError."""
        self._spooler.submit_raw(pack_raw(variables, body))

    def resubmit(self, job: Job, executor: str, changes: dict[str, Any]) -> JobHandle:
        """Submit *job* as it is, with *changes* of its options. Raises TasksError."""
        given = options(changes)
        if "executor" in changes:
            executor = given.executor
        # Whoever submits it again may be a program that ends at once: none that keeps it in memory.
        if executor in _FLEETING and "executor" not in changes and self._spooler.ready():
            executor = TaskExecutor.SPOOLER
        elif executor == TaskExecutor.AUTO:
            executor = TaskExecutor.SPOOLER if self._spooler.ready() else TaskExecutor.RUNTIME
        now = time.time()
        job = _changed(job, given, changes)
        at, delay = due(given.at, now)
        if "at" not in changes and job.at is not None and job.at > now:
            # Its time had not come when its process ended.
            at = job.at
        expires_at = due(given.expires, now, name="expires")[0]
        # A letter that a crash has left holds the job as it was then, in a later attempt.
        job = job._replace(attempt=1, began_at=None, submitted_at=now)
        job = job._replace(at=at, delay=delay, expires_at=expires_at)
        chosen = self.diversion or self._executor(executor)
        if "queue" in changes and not chosen.has_queues:
            raise InvalidTask(f"queue= is for redis: {chosen.name} has none")
        holder = self._claim(job)
        if holder is not None:
            raise SubmitError(f"{job}: its unique key is held by job {holder}: wait for its end")
        with self._claimed(job):
            chosen.forget(job.id)
            if job.result_ttl:
                self._ledger.forget(job.id)
            with self._queued((job,), chosen):
                results = chosen.submit((job,))
        return self.handle(job, chosen, results)

    def _find_route(self, task: Task[..., Any]) -> tuple[Settings, Executor | None, bool]:
        """Say which executor takes the calls of *task*; None if it must be asked at each call.

        And whether the store is to know of them.
        """
        current = self._settings()
        given = task.options
        ttl = current.result_ttl if given.result_ttl is None else given.result_ttl
        keeps = bool(ttl) or given.unique is not None
        chosen = self.diversion or self._find_executor(task, current)
        if chosen is not None and chosen.travels and not task.is_importable:
            raise InvalidTask(f"{task.name}: {UNREACHABLE}")
        route = task.route = (current, chosen, keeps)
        return route

    def _find_executor(self, task: Task[..., Any], current: Settings) -> Executor | None:
        name: str = task.options.executor
        if name == TaskExecutor.AUTO:
            name = current.executor
        chosen: Executor | None
        if name == TaskExecutor.AUTO:
            chosen = self._spooler if self._spooler.ready() else None
            if not self._server.present and chosen is None:
                chosen = self._at_home(durable=task.options.durable)
        else:
            chosen = self._executor(name)
            if chosen.travels and not self._server.present and not chosen.ready():
                chosen = self._at_home(durable=task.options.durable)
        return chosen

    def _submit_auto(self, task: Task[..., Any], jobs: Sequence[Job]) -> Sequence[Result | Near]:
        """Try a mule, and run *jobs* here if there is none, or it does not take them."""
        if self._mule.ready() and not jobs[0].durable:
            try:
                return self._mule.submit(jobs)
            except SubmitError as error:
                log.warning(
                    "%s runs in the caller's process: %s",
                    task.name,
                    one_line(error),
                    extra={"task_name": task.name},
                )
        return self._at_home(durable=jobs[0].durable).submit(jobs)

    def _at_home(self, *, durable: bool) -> Executor:
        """Return what runs jobs in the process of the caller, as the settings say."""
        # What must not be lost has run when the call returns.
        if self._settings().fallback == TaskExecutor.THREAD and not durable:
            found = self._executor(TaskExecutor.THREAD)
            if found.ready():
                return found
        self._warn(
            "this uWSGI has no spooler and no mule that answers: tasks run at once, in the "
            "process of the caller"
            if self._server.present
            else "uWSGI is not running here: tasks run at once, in the process of the caller"
        )
        return self._stand_in

    def follow(self, executor: Executor, job: Job) -> JobHandle:
        """Submit *job*, which the job being run asks for, and whose headers it has."""
        job = self._onion.headed(job)
        with self._queued((job,), executor):
            results = executor.follow(job)
        return self.handle(job, executor, results)
