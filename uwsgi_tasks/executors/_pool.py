"""The threads of one process, the jobs that they run, and those that wait for them."""

from __future__ import annotations

import heapq
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from queue import SimpleQueue

from uwsgi_tasks import log_lines
from uwsgi_tasks.errors import ResultNotKept, SubmitError, TasksError, shown
from uwsgi_tasks.executors import Receiver
from uwsgi_tasks.executors._delays import Delays
from uwsgi_tasks.handle import Near
from uwsgi_tasks.model import Job, Result, Standing, State, Stop

log = logging.getLogger(__name__)

_QUEUED, _RUNNING, _RETRYING = State.QUEUED, State.RUNNING, State.RETRYING
_LAST = float("inf")
"""The priority of what has none: after all others, as on the spooler."""
_UNTOUCHED = "its process ended before it could run: requeue it"
_GO, _END = 1, 0
"""What a thread takes: there is a job, or there will be none any more."""
_INTERRUPTED = "interrupted: what has not run to its end becomes a dead letter"
_CLOSED = "this process is about to end, and takes no more jobs"


class Entry(Near):
    """A job of this process, and how it stands."""

    __slots__ = ("_changes", "_task", "done", "job", "priority", "result", "started_at", "state",
                 "stop", "total")  # fmt: skip

    def __init__(self, job: Job, task: object, changes: _Changes) -> None:
        self.job = job
        # Held: a function of a function may be gone before its job runs.
        self._task = task
        self.priority = _LAST if job.priority is None else job.priority
        self.state = _QUEUED
        self.result: Result | None = None
        self.stop = Stop.NOT
        self.started_at: float | None = None
        self.done: float | None = None
        self.total: float | None = None
        self._changes = changes

    def wait(self, timeout: float | None, *, begun: bool) -> bool:
        """Wait until it has ended, or *begun*; False if *timeout* seconds were over before.

        Raises ResultNotKept in a process that was forked since: there it never ends.
        """
        return self._changes.wait(
            self, lambda: self.result is not None or (begun and self.state is not _QUEUED), timeout
        )

    def end(self, result: Result) -> None:
        """Note how it has ended, and tell those who wait for that."""
        # In this order: who sees the result reads the state that belongs to it.
        self.state, self.result = result.state, result
        if self._changes.awaited:
            self._changes.tell(self)

    def forget_call(self) -> None:
        """Let go of what the job would be run with, which it will not be."""
        self.job, self._task = self.job._replace(args=(), kwargs={}), None

    def standing(self) -> Standing:
        """Return where it stands."""
        job, is_running = self.job, self.state is _RUNNING
        return Standing(
            id=job.id,
            task=job.task,
            executor="thread",
            state=self.state,
            attempt=job.attempt,
            submitted_at=job.submitted_at,
            at=None if is_running else job.at,
            priority=job.priority,
            worker=str(os.getpid()) if is_running else None,
            started_at=self.started_at if is_running else None,
            done=self.done,
            total=self.total,
        )


class _Changes:
    """Tells those who wait that a job has begun or ended; costs nothing while nobody does."""

    def __init__(self) -> None:
        self.awaited: dict[object, list[threading.Condition]] = {}
        """Who waits for a job; under None, for any change."""
        self._pid = os.getpid()
        # Not a plain one: a signal's handler may cancel a job while its thread is in here.
        self._lock = threading.RLock()

    def wait(self, thing: object, has_come: Callable[[], bool], timeout: float | None) -> bool:
        if has_come():
            return True
        if self._pid != os.getpid():
            raise ResultNotKept("the job is one of the process from which this one was forked")
        with self._lock:
            condition = threading.Condition(self._lock)
            # Noted before the next look: whoever makes a change looks for it afterwards.
            self.awaited.setdefault(thing, []).append(condition)
            try:
                return condition.wait_for(has_come, timeout)
            finally:
                others = self.awaited[thing]
                others.remove(condition)
                if not others:
                    del self.awaited[thing]

    def tell(self, thing: object) -> None:
        with self._lock:
            for condition in (*self.awaited.get(thing, ()), *self.awaited.get(None, ())):
                condition.notify()


class Pool:
    """The threads of one process, and the jobs that it has.

    What is due lies in a heap, with one token in a queue for each: the threads wait for a token,
    in C and without polling, and take the first of the heap. A job belongs to whoever takes it out
    of `_waiting`: the thread that runs it, or the caller that cancels it.
    """

    def __init__(self, receiver: Receiver, threads: int) -> None:
        self.pid = os.getpid()
        self.is_closed = False
        self._is_hurried = False
        self._receiver = receiver
        self._waiting: dict[str, Entry] = {}
        self._due: list[tuple[float, int, Entry]] = []
        self._tokens: SimpleQueue[int] = SimpleQueue()
        self._numbers = count()
        self._delays: Delays[Entry] = Delays(
            self._put, "uwsgi_tasks delays", lambda entry: entry.result is None
        )
        self._changes = _Changes()
        # Of each thread what it runs. Not by the job's id: one that has failed may be submitted
        # again under its own before the thread has put it down.
        self._running: list[Entry | bool | None] = [None] * threads
        self._threads = [
            threading.Thread(
                target=self._work,
                args=(number,),
                name=f"uwsgi_tasks thread {number + 1}",
                daemon=True,
            )
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    # ---- the way of a job -------------------------------------------------------------------

    def take(self, jobs: Sequence[Job]) -> list[Entry]:
        if self.is_closed:
            raise SubmitError(_CLOSED)
        task, changes = self._receiver.find(jobs[0].task), self._changes
        entries = [Entry(job, task, changes) for job in jobs]
        for entry in entries:
            self._waiting[entry.job.id] = entry
            self._enter(entry)
        if self.is_closed:
            self._take_back(entries)
        return entries

    def _take_back(self, entries: list[Entry]) -> None:
        """Let nothing be lost that came while the doors were closed."""
        left = [one for one in entries if self._waiting.pop(one.job.id, None) is not None]
        if len(left) == len(entries):
            raise SubmitError(_CLOSED)
        for entry in left:
            self._give_up(entry, _UNTOUCHED)

    def _enter(self, entry: Entry) -> None:
        at = entry.job.at
        if at is not None and at > time.time():
            self._delays.add(at, entry)
        else:
            self._put(entry)

    def _put(self, entry: Entry) -> None:
        # No lock: under Python's own, each of these steps is one.
        heapq.heappush(self._due, (entry.priority, next(self._numbers), entry))
        self._tokens.put(_GO)

    def _work(self, number: int) -> None:
        take, due, awaited = self._tokens.get, self._due, self._changes.awaited
        waiting, running = self._waiting, self._running
        while take():
            # Before it is taken, and before it is no more among those that wait: at no moment it
            # is nowhere.
            running[number] = True
            entry = running[number] = heapq.heappop(due)[2]
            # Else somebody has cancelled it.
            owned = waiting.pop(entry.job.id, None) is not None
            following = self._run(entry) if owned else None
            if following is not None:
                entry.job, entry.state = following, _RETRYING
                waiting[following.id] = entry
                self._enter(entry)
            running[number] = None
            if awaited:
                self._changes.tell(entry)
            # Nothing is held while it waits for the next one.
            del entry, following

    def _run(self, entry: Entry) -> Job | None:
        """Make an attempt; return the next one, if any."""
        if self.is_closed:
            self._give_up(entry, _UNTOUCHED)
            return None
        job = entry.job
        entry.started_at, entry.done, entry.total = time.time(), None, None
        entry.state = _RUNNING
        if self._changes.awaited:
            self._changes.tell(entry)
        try:
            result, following = self._receiver.perform(job, bury=True)
        # The thread must go on, whatever one job brings about.
        except BaseException as error:  # noqa: BLE001
            self._give_up(entry, f"it could not be run: {shown(error)}", error)
            return None
        if following is None:
            # Those who wait are told by the caller, when it has put the job down.
            entry.state, entry.result = result.state, result
        return following

    def _give_up(self, entry: Entry, reason: str, error: BaseException | None = None) -> None:
        """Make a dead letter of a job that does not run, or not to its end."""
        job = entry.job
        try:
            self._receiver.bury(job, reason)
        # The others must not be lost with it.
        except Exception as refused:  # noqa: BLE001
            log.critical(
                "%s is lost: %s; %s",
                log_lines.one_line(job),
                log_lines.one_line(reason),
                log_lines.one_line(shown(refused)),
                extra=log_lines.of(job, "thread"),
            )
        error = error or TasksError(f"{job}: {reason}")
        entry.end(Result(state=State.FAILED, attempt=job.attempt, error=error))

    # ---- looking at them, and taking them away ----------------------------------------------

    def find(self, id: str) -> Entry | None:  # noqa: A002
        # Asked twice: between the first two looks it may have gone back, to be tried again.
        return self._waiting.get(id) or self.running_one(id) or self._waiting.get(id)

    def running_one(self, id: str) -> Entry | None:  # noqa: A002
        return next((entry for entry in self.running() if entry.job.id == id), None)

    def running(self) -> list[Entry]:
        return [entry for entry in self._running if isinstance(entry, Entry)]

    def count(self) -> int:
        return len(self._waiting) + len(self.running())

    def entries(self, *, running: bool) -> Iterator[Entry]:
        begun = dict.fromkeys(self.running())
        waiting = () if running else list(self._waiting.values())
        return chain(begun, (entry for entry in waiting if entry not in begun))

    def cancel(self, id: str, stop: Stop) -> tuple[State, Job] | None:  # noqa: A002
        # Asked twice, as above.
        for _ in range(2):
            entry = self._waiting.pop(id, None)
            if entry is not None:
                job = entry.job
                entry.end(Result(state=State.CANCELLED, attempt=job.attempt))
                # It stays where it waits, for a while; what it was called with need not.
                entry.forget_call()
                if job.at is not None:
                    self._delays.note_unwanted()
                return State.CANCELLED, job
            entry = self.running_one(id)
            if entry is not None:
                entry.stop = max(entry.stop, stop)
                return _RUNNING, entry.job
        return None

    # ---- the end ----------------------------------------------------------------------------

    def drain(self, end: float) -> None:
        """Wait until nothing is due, or *end*, by the monotonic clock, has come, or `hurry`."""
        left = end - time.monotonic()
        if not self._is_hurried and not self._is_idle():
            log.info("this process ends: it finishes its jobs first, for up to %g s", left)
            is_over = lambda: self._is_hurried or self._is_idle()  # noqa: E731
            self._changes.wait(None, is_over, max(0.0, left))

    def hurry(self) -> None:
        """Let nobody wait in `drain` any longer."""
        if not self._is_hurried:
            self._is_hurried = True
            log.warning(_INTERRUPTED)
        self._changes.tell(None)

    def stop(self, end: float) -> list[int]:
        """Finish what is due until *end*, make dead letters of the rest, and end the threads.

        Return the idents of those threads whose jobs run on.
        """
        # First, and while the others run: uWSGI may lose its patience sooner than we.
        for entry in self._delays.take_all():
            self._take_away(entry)
        self.drain(end)
        self.is_closed = True
        # What has come meanwhile, or is to be tried again later, and what nobody has got to.
        for entry in list(self._waiting.values()):
            self._take_away(entry)
        hung = [
            (thread, entry)
            for thread, entry in zip(self._threads, self._running, strict=True)
            if isinstance(entry, Entry) and entry.result is None
        ]
        for _, entry in hung:
            self._give_up(entry, "its process ended while it ran: requeue it")
        self.end()
        return [thread.ident for thread, _ in hung if thread.ident is not None]

    def end(self) -> None:
        """Let the threads go when they have done what is due."""
        self._delays.end()
        for _ in self._running:
            self._tokens.put(_END)

    def _take_away(self, entry: Entry) -> None:
        if self._waiting.pop(entry.job.id, None) is not None:
            self._give_up(entry, _UNTOUCHED)

    def _is_idle(self) -> bool:
        # Asked twice: between the first two looks a job may have gone back, to be tried again.
        due, running = self._due, self._running
        return not due and not any(running) and not due and not any(running)
