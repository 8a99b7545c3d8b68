"""Calls that this process makes itself, one after the other, each when it is due."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush
from itertools import count
from types import BuiltinFunctionType, MappingProxyType
from typing import Any, Final, ParamSpec

from uwsgi_tasks.errors import InvalidTask, shown
from uwsgi_tasks.log_lines import from_the_task_on, one_line
from uwsgi_tasks.model import Attempt, State
from uwsgi_tasks.task import Task
from uwsgi_tasks.times import due, seconds

log = logging.getLogger(__name__)

P = ParamSpec("P")

# As it was at import: gevent may put another one in its place later.
_SLEEP: Final = time.sleep
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_NOWHERE, _UNWANTED = -1, -2
_LEAST_IMPORTANT = float("inf")
_BATCH = 1000
"""Entries that become due in one turn: those who append wait for no more than that."""
_SLACK = 64
"""Entries that were cancelled, and may stay where they are."""
_SHOWN = 3


class HeapEntry:
    """One call in a `TaskHeap`, and what has become of it so far."""

    # A million of them may wait.
    __slots__ = (
        "_at",
        "_attempts",
        "_cancel",
        "_place",
        "args",
        "attempt",
        "exception",
        "kwargs",
        "state",
        "task",
        "value",
    )

    def __init__(
        self,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        cancel: Callable[[HeapEntry], bool],
    ) -> None:
        self.task = task
        self.args = args
        self.kwargs: Mapping[str, Any] = kwargs or _NOTHING
        self.attempt: int = 0
        """The number of the attempt that runs or was the last; 0 before the first."""
        self.state = State.QUEUED
        self.value: Any = None
        """What the last attempt returned."""
        self.exception: BaseException | None = None
        """What the last attempt raised."""
        self._cancel = cancel
        self._attempts: Iterator[Attempt] | None = None
        self._place = _NOWHERE
        self._at = 0.0

    @property
    def next_at(self) -> datetime | None:
        """When its next attempt is due, or the one that runs was; None once it has ended."""
        return None if self.state.is_final else datetime.fromtimestamp(self._at, UTC)

    def cancel(self) -> bool:
        """Take it out; True if it will certainly not run, or not again.

        An attempt that runs goes on to its end, and is the last one; the answer is then False,
        and so it is where the call has ended by itself.
        """
        return self._cancel(self)

    def __str__(self) -> str:
        if self.state.is_final:
            return f"{self.task.name}, {self.state} in attempt {self.attempt}"
        if self.state is State.RUNNING:
            return f"{self.task.name}, attempt {self.attempt} runs"
        wait = max(self._at - time.time(), 0.0)
        return f"{self.task.name}, attempt {self.attempt + 1} in {wait:.1f} s"

    def __repr__(self) -> str:
        return f"<HeapEntry {self}>"


class _Line:
    """The entries that wait: in the order of their times, and of importance once they are due.

    A turn of an entry that was tried before comes after those of all that are due by then,
    whatever its importance: one that fails all the time keeps nobody from its turn.
    """

    def __init__(self) -> None:
        # An item counts while its number is the place of its entry: so to cancel is one step.
        self._due: list[tuple[int, float, float, int, HeapEntry]] = []
        self._later: list[tuple[float, int, HeapEntry]] = []
        self._numbers = count()
        self._round = 0

    def put(self, entry: HeapEntry, at: float, now: float) -> bool:
        """Add *entry*, which is due *at*; True if it changes what is to be waited for."""
        place = entry._place = next(self._numbers)
        if at <= now:
            self._put_due(entry, at, place)
            return True
        heappush(self._later, (at, place, entry))
        return self._later[0][2] is entry

    def _put_due(self, entry: HeapEntry, at: float, place: int) -> None:
        priority = entry.task.options.priority
        turn = self._round + 1 if entry.attempt else self._round
        importance = _LEAST_IMPORTANT if priority is None else priority
        heappush(self._due, (turn, importance, at, place, entry))

    def first(self, now: float) -> HeapEntry | None:
        """Return the entry whose turn it is, if one is due; it stays until it is taken."""
        self._fall_due(now)
        while self._due:
            turn, _, _, place, entry = self._due[0]
            if entry._place == place:
                self._round = turn
                return entry
            heappop(self._due)
        return None

    def _fall_due(self, now: float) -> None:
        later = self._later
        for _ in range(_BATCH):
            if not later or later[0][0] > now:
                break
            at, place, entry = later[0]
            if entry._place == place:
                self._put_due(entry, at, place)
            heappop(later)

    def take(self) -> None:
        """Take out what `first` has returned."""
        heappop(self._due)[4]._place = _NOWHERE

    def wait(self, now: float) -> float | None:
        """Return the seconds until an entry is due; None if none waits. Nothing is due now."""
        while self._later:
            at, place, entry = self._later[0]
            if entry._place == place:
                return max(at - now, 0.0)
            heappop(self._later)
        return None

    def __bool__(self) -> bool:
        return bool(self._due or self._later)

    def clean(self, living: int) -> None:
        """Forget what was cancelled, if there is more of it than of *living* entries."""
        if len(self._due) + len(self._later) > 2 * living + _SLACK:
            due_ = [item for item in self._due if item[4]._place == item[3]]
            later = [item for item in self._later if item[2]._place == item[1]]
            heapify(due_)
            heapify(later)
            self._due, self._later = due_, later

    def snapshot(self) -> list[HeapEntry]:
        """Return the entries in the order of their times."""
        items = [(at, turn, place, entry) for turn, _, at, place, entry in self._due]
        items += [(at, 0, place, entry) for at, place, entry in self._later]
        items.sort(key=lambda item: item[:3])
        return [entry for _, _, place, entry in items if entry._place == place]

    def next_ones(self, most: int, now: float) -> list[HeapEntry]:
        """Return the first ones, *most* at most, in the order in which they have their turns."""
        self._fall_due(now)
        found = _tops(self._due, most)
        return found + _tops(self._later, most - len(found))


def _tops(items: list[Any], most: int) -> list[HeapEntry]:
    """Return the first entries of a heap of items, and take out what was cancelled before them."""
    taken: list[Any] = []
    try:
        while items and len(taken) < most:
            *_, place, entry = item = items[0]
            # In our hands before it is out of the heap. To be in it twice does no harm.
            if entry._place == place:
                taken.append(item)
            heappop(items)
    finally:
        for item in taken:
            heappush(items, item)
    return [item[-1] for item in taken]


class _Run:
    """One `TaskHeap.run` that has not returned, and the entry that it has taken."""

    __slots__ = ("entry",)

    def __init__(self) -> None:
        self.entry: HeapEntry | None = None


class TaskHeap:
    """Runs calls of tasks in this process, one after the other, each when it is due.

    Every entry gets one attempt a turn; the task's `Retry` says whether there is another, and when.
    Of those that are due, the smallest ``priority=`` goes first, then the time, then the order in
    which they were appended.

    It waits until the next entry is due, or something happens. With a *sleep* of its own, such as
    ``gevent.sleep``, it sleeps in steps of *interval* seconds at most, so that it notices by then
    what was appended, and lets others run between any two attempts.

    All methods may be called from any thread; what a thread appends, another one runs.
    """

    def __init__(
        self, sleep: Callable[[float], object] = time.sleep, interval: float = 0.1
    ) -> None:
        if not callable(sleep):
            raise InvalidTask(f"TaskHeap(sleep=) takes a function such as time.sleep: {sleep!r}")
        self.interval = seconds(interval, "TaskHeap(interval=)")
        if not self.interval:
            raise InvalidTask("TaskHeap(interval=) must be more than 0 seconds")
        self._given_sleep = None if sleep is _SLEEP or sleep is time.sleep else sleep
        # Threads take turns by themselves. Where the default was patched, they are green ones.
        is_patched = not isinstance(time.sleep, BuiltinFunctionType)
        self._yields = self._given_sleep is not None or is_patched
        # Not a plain lock: a signal's handler may stop us while we hold it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._line = _Line()
        self._runs: set[_Run] = set()
        self._living = self._idle = 0
        self._stops_now = self._stops_after = False
        self._drop_it = self._drop

    # ---- what is in it ----------------------------------------------------------------------

    def append(self, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> HeapEntry:
        """Add a call of *task*, due at the time of its ``at=``, or now. Raises InvalidTask.

        The time is counted from here on: setting the machine's clock later does not move it.
        """
        if not isinstance(task, Task):
            raise InvalidTask(
                f"TaskHeap.append() takes a task, not {task!r}: declare it with @task, and give "
                "the arguments after it"
            )
        entry = HeapEntry(task, args, kwargs, self._drop_it)
        given, wait = task.options, 0.0
        entry._at = now = time.time()
        if given.at is not None:
            entry._at = due(given.at, now)[0] or now
            wait = max(entry._at - now, 0.0)
        if given.expires is not None:
            # Its time runs from now on, and not from the first attempt.
            entry._attempts = task.attempts(*args, **kwargs)
        with self._lock:
            clock = time.monotonic()
            self._living += 1
            if self._line.put(entry, clock + wait, clock) and self._idle:
                self._changed.notify()
        return entry

    def __len__(self) -> int:
        return self._living

    def __bool__(self) -> bool:
        return self._living > 0

    def __iter__(self) -> Iterator[HeapEntry]:
        """Iterate over what is in it at this moment: what runs, then the rest by its time."""
        with self._lock:
            return iter([*self._running(), *self._line.snapshot()])

    def _running(self) -> list[HeapEntry]:
        entries = [run.entry for run in self._runs]
        return [entry for entry in entries if entry and entry.state is State.RUNNING]

    def __str__(self) -> str:
        with self._lock:
            living, running = self._living, len(self._running())
            first = self._line.next_ones(_SHOWN, time.monotonic())
        if not living:
            return "no tasks"
        parts = [f"{living:,} {'task' if living == 1 else 'tasks'}"]
        if running:
            parts.append(f"{running} of them running" if living > 1 else "running")
        if first:
            wait = max(first[0]._at - time.time(), 0.0)
            names = [entry.task.name for entry in first]
            more = living - running - len(first)
            parts.append(f"the next in {wait:.1f} s: {', '.join(names)}")
            if more > 0:
                parts.append(f"and {more:,} more")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"<TaskHeap {self}>"

    # ---- running it -------------------------------------------------------------------------

    def run(self, *, stop: bool = False) -> None:
        """Run what is due, for ever; with *stop*, until nothing is left.

        What an attempt raises does not end it, but for what is no `Exception`: KeyboardInterrupt,
        SystemExit, or the end of a green thread. Then the entry that ran stays in the heap, and its
        call begins anew in the next `run`.
        """
        run = _Run()
        with self._lock:
            self._runs.add(run)
        try:
            while self._goes_on(run, stop=stop):
                if run.entry is not None:
                    self._make_attempt(run, run.entry)
                    if self._yields:
                        self.sleep(0)
        finally:
            self._leave(run)

    def stop_now(self) -> None:
        """End `run` after the attempt that it makes now; the entries stay for the next one.

        Where none runs, the next one returns at once.
        """
        with self._lock:
            self._stops_now = True
            self._changed.notify_all()

    def stop_after(self) -> None:
        """End `run`, or the next one, as soon as nothing is left."""
        with self._lock:
            self._stops_after = True
            self._changed.notify_all()

    def sleep(self, seconds: float | None = None) -> None:
        """Sleep as the heap does, so that others run meanwhile; for one interval by default."""
        # Looked up at each call: it may have been patched.
        (self._given_sleep or time.sleep)(self.interval if seconds is None else seconds)

    def _goes_on(self, run: _Run, *, stop: bool) -> bool:
        """Give *run* the entry that is due, or wait; False if it is to end."""
        with self._lock:
            if self._stops_now or ((stop or self._stops_after) and not self._living):
                return False
            now = time.monotonic()
            # In its hands before it is out of the line: an interrupt between them loses nothing.
            run.entry = self._line.first(now)
            if run.entry is not None:
                self._line.take()
                run.entry.state = State.RUNNING
                run.entry.attempt += 1
                if self._idle and self._line:
                    # Who was woken for it has perhaps been late; somebody must see to the rest.
                    self._changed.notify()
                return True
            pause = self._line.wait(now)
            if self._given_sleep is None:
                self._await_change(pause)
                return True
        self.sleep(self.interval if pause is None else min(pause, self.interval))
        return True

    def _await_change(self, pause: float | None) -> None:
        self._idle += 1
        try:
            # A lock cannot wait until the year 9999.
            self._changed.wait(None if pause is None else min(pause, threading.TIMEOUT_MAX))
        finally:
            self._idle -= 1

    def _make_attempt(self, run: _Run, entry: HeapEntry) -> None:
        try:
            if entry._attempts is None:
                entry._attempts = entry.task.attempts(*entry.args, **entry.kwargs)
            attempt = next(entry._attempts)
        # An attempt raises nothing; what is around it (a fixture, the store) may, and is no reason
        # to leave the other entries alone. This one is lost: nobody knows how far it came.
        except Exception as error:
            log.exception("%s: attempt %d could not be made", entry.task.name, entry.attempt)
            attempt = Attempt(number=entry.attempt, state=State.FAILED, exception=error)
        else:
            if not isinstance(attempt.exception, (Exception, type(None))):
                raise attempt.exception
            _report(entry, attempt)
        self._settle(run, entry, attempt)

    def _settle(self, run: _Run, entry: HeapEntry, attempt: Attempt) -> None:
        with self._lock:
            entry.value, entry.exception = attempt.value, attempt.exception
            entry.attempt = attempt.number
            if attempt.wait is None:
                self._end(entry, attempt.state)
            elif entry._place == _UNWANTED:
                self._end(entry, State.CANCELLED)
            else:
                self._put_back(entry, State.RETRYING, attempt.wait)
            run.entry = None

    def _leave(self, run: _Run) -> None:
        with self._lock:
            if run.entry is not None and not run.entry.state.is_final:
                self._rescue(run.entry)
            self._runs.discard(run)
            if not self._runs:
                self._stops_now = self._stops_after = False
            # It may have been the only one that knew what it is time for.
            self._changed.notify_all()

    def _rescue(self, entry: HeapEntry) -> None:
        """Keep *entry*, whatever its run was doing with it when it was interrupted."""
        if entry.state is not State.RUNNING:
            if entry._place == _NOWHERE:
                self._put_back(entry, entry.state, 0.0)
        elif entry._place == _UNWANTED:
            self._end(entry, State.CANCELLED)
        else:
            # Its iterator has ended with what it raised.
            entry._attempts, entry.attempt = None, 0
            self._put_back(entry, State.QUEUED, 0.0)

    def _put_back(self, entry: HeapEntry, state: State, wait: float) -> None:
        clock = time.monotonic()
        entry.state = state
        entry._at = time.time() + wait
        self._line.put(entry, clock + wait, clock)

    def _end(self, entry: HeapEntry, state: State) -> None:
        entry.state, entry._place, entry._attempts = state, _NOWHERE, None
        self._living -= 1
        if not self._living and self._idle:
            self._changed.notify_all()

    def _drop(self, entry: HeapEntry) -> bool:
        with self._lock:
            if entry.state is State.RUNNING:
                entry._place = _UNWANTED
                return False
            if not entry.state.is_final:
                self._end(entry, State.CANCELLED)
                self._line.clean(self._living)
            return entry.state is State.CANCELLED


def _report(entry: HeapEntry, attempt: Attempt) -> None:
    """Say in the log what follows: there is no caller to be told."""
    if attempt.state is State.SUCCEEDED:
        return
    name, number, error = one_line(entry.task.name), attempt.number, attempt.exception
    extra = {"task_name": entry.task.name, "attempt": number}
    if attempt.wait is not None:
        ended = f"failed: {one_line(shown(error))}" if error else "asked for another"
        text = "%s: attempt %d %s; the next one follows in %.1f s"
        # No warning: many a task in a heap polls, and fails until there is something.
        log.info(text, name, number, ended, attempt.wait, extra=extra)
    elif attempt.state is State.CANCELLED:
        log.warning("%s is dropped: %s", name, error and one_line(error), extra=extra)
    elif error is not None:
        text, raised = one_line(shown(error)), from_the_task_on(error)
        log.error("%s failed in attempt %d: %s", name, number, text, exc_info=raised, extra=extra)
