"""A heap of calls, run in the order of their times."""

import logging
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.uwsgi_coverage import environment
from uwsgi_tasks import (
    App,
    InvalidTask,
    Retry,
    State,
    StoreError,
    TaskCancelled,
    TaskHeap,
    get_current_task,
    heap,
)

DEADLOCK = 20
"""Seconds after which we do not wait any longer."""
HOUR = timedelta(hours=1)
FOR_EVER = Retry(attempts=0)


@pytest.fixture
def app():
    return App(executor="runtime")


@pytest.fixture
def ran():
    return []


@pytest.fixture
def declare(app):
    """Make a task of anything that can be called."""
    numbers = count(1)

    def declare(func, **given):
        def task(*args):
            return func(*args)

        return app.task(**{"name": f"task-{next(numbers)}", "executor": "auto"} | given)(task)

    return declare


@pytest.fixture
def note(app, ran):
    """A task that notes what it was given."""

    @app.task
    def note(what):
        ran.append(what)
        return what

    return note


@pytest.fixture
def flaky(app, ran):
    """A task that fails until it has run *times* times."""

    @app.task(retry=FOR_EVER)
    def flaky(what, times=3):
        ran.append(what)
        if get_current_task().attempt < times:
            raise ConnectionError("not yet")
        return what

    return flaky


class FakeTime:
    """A clock that goes on only while somebody sleeps."""

    def __init__(self):
        self.now = 1_000.0
        self.slept = []

    def monotonic(self):
        return self.now

    def time(self):
        return time.time() + self.now - 1_000

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    found = FakeTime()
    names = {name: getattr(found, name) for name in ("monotonic", "time", "sleep")}
    monkeypatch.setattr(heap, "time", SimpleNamespace(**names))
    return found


@pytest.fixture
def tasks():
    return TaskHeap()


@contextmanager
def running(tasks, threads=1, **given):
    """Run *tasks* in threads of their own; none may be left at the end."""
    runs = [threading.Thread(target=tasks.run, kwargs=given, daemon=True) for _ in range(threads)]
    for run in runs:
        run.start()
    try:
        yield
    finally:
        deadline = time.monotonic() + DEADLOCK
        while any(run.is_alive() for run in runs) and time.monotonic() < deadline:
            # Again and again: a wish is forgotten once one run has fulfilled it, and another may
            # begin after that.
            if not given:
                tasks.stop_now()
            time.sleep(0.002)
    assert not any(run.is_alive() for run in runs), "it runs for ever"


def until(condition):
    deadline = time.monotonic() + DEADLOCK
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


def ends(tasks, **given):
    """Run *tasks*, which is to end by itself."""
    thread = threading.Thread(target=tasks.run, kwargs=given, daemon=True)
    thread.start()
    thread.join(DEADLOCK)
    return not thread.is_alive()


# --- appending


def test_a_function_that_is_no_task_is_refused_with_the_remedy(tasks):
    with pytest.raises(InvalidTask, match="declare it with @task"):
        tasks.append(print, "hello")


def test_the_arguments_are_those_of_the_function(tasks, app, ran):
    @app.task
    def send(*args, **kwargs):
        ran.append((args, kwargs))

    entry = tasks.append(send, 1, task="theirs", interval=2)
    tasks.run(stop=True)

    assert ran == [((1,), {"task": "theirs", "interval": 2})]
    assert (entry.args, dict(entry.kwargs)) == ran[0]


def test_nothing_runs_before_run(tasks, note, ran):
    entry = tasks.append(note, "a")
    assert (ran, entry.state, entry.attempt) == ([], State.QUEUED, 0)


def test_an_entry_knows_its_task_and_when_it_is_due(tasks, note):
    later = note.using(executor="auto", at=datetime(2040, 1, 1, tzinfo=UTC))
    entry = tasks.append(later, "a")
    assert (entry.task, entry.next_at) == (later, datetime(2040, 1, 1, tzinfo=UTC))


def test_an_entry_without_a_time_is_due_at_once(tasks, note):
    before = datetime.now(UTC)
    assert before <= tasks.append(note, "a").next_at <= datetime.now(UTC)


# --- the order


def test_entries_run_in_the_order_of_appending(tasks, note, ran):
    for number in range(20):
        tasks.append(note, number)
    tasks.run(stop=True)
    assert ran == list(range(20))


def test_entries_run_in_the_order_of_their_times(clock, note, ran):
    tasks = TaskHeap(sleep=clock.sleep)
    for minutes in (3, 1, 2):
        tasks.append(note.using(executor="auto", at=timedelta(minutes=minutes)), minutes)
    tasks.run(stop=True)
    assert ran == [1, 2, 3]


def test_of_those_that_are_due_the_smallest_priority_goes_first(tasks, auto, ran):
    for priority in (None, 5, 1, 5):
        tasks.append(auto.using(priority=priority), priority)
    tasks.run(stop=True)
    assert ran == [1, 5, 5, None]


@pytest.fixture
def auto(app, ran):
    """A task that may have a time and a priority."""

    @app.task(executor="auto", name="auto")
    def auto(what):
        ran.append(what)

    return auto


def test_what_is_late_goes_by_its_time_and_not_by_when_it_was_appended(clock, auto, ran):
    tasks = TaskHeap(sleep=clock.sleep)
    tasks.append(auto.using(at=timedelta(seconds=2)), "second")
    tasks.append(auto.using(at=timedelta(seconds=1)), "first")
    clock.now += 10
    tasks.run(stop=True)
    assert ran == ["first", "second"]


def test_one_of_great_importance_that_always_fails_leaves_the_others_their_turns(
    tasks, app, declare, ran
):
    @app.task(executor="auto", priority=0, retry=Retry(attempts=50))
    def fails():
        ran.append("fails")
        raise OSError

    tasks.append(fails)
    plain = declare(ran.append, priority=9)
    tasks.append(plain, "a")
    tasks.append(plain, "b")
    tasks.run(stop=True)

    assert ran[:4] == ["fails", "a", "b", "fails"]


def test_entries_that_are_tried_again_at_once_take_turns(tasks, flaky, ran):
    tasks.append(flaky, "a")
    tasks.append(flaky, "b")
    tasks.run(stop=True)
    assert ran == ["a", "b", "a", "b", "a", "b"]


def test_a_thousand_that_become_due_together_all_run(clock, auto, ran):
    tasks = TaskHeap(sleep=clock.sleep)
    soon = auto.using(at=timedelta(seconds=1))
    for number in range(2_500):
        tasks.append(soon, number)
    tasks.run(stop=True)
    assert ran == list(range(2_500))


# --- attempts


def test_an_entry_shows_what_came_of_it(tasks, note):
    entry = tasks.append(note, "a")
    tasks.run(stop=True)
    assert (entry.state, entry.attempt, entry.value, entry.exception, entry.next_at) == (
        State.SUCCEEDED, 1, "a", None, None,
    )  # fmt: skip


def test_a_task_that_fails_is_tried_again_as_its_retry_says(tasks, flaky, ran):
    entry = tasks.append(flaky, "a", times=4)
    tasks.run(stop=True)
    assert (ran, entry.state, entry.attempt) == (["a"] * 4, State.SUCCEEDED, 4)


def test_a_wait_counts_from_the_end_of_the_run(clock, app):
    began = []

    @app.task(retry=Retry(attempts=4, delay=10, backoff=2))
    def slow():
        began.append(clock.now)
        clock.now += 100
        raise OSError

    tasks = TaskHeap(sleep=clock.sleep, interval=HOUR.total_seconds())
    tasks.append(slow)
    tasks.run(stop=True)

    waits = [later - earlier - 100 for earlier, later in pairwise(began)]
    assert waits == pytest.approx([10, 10, 20], abs=1)


def test_a_task_that_never_succeeds_on_purpose_runs_as_often_as_it_says(clock, app, ran):
    @app.task(retry=Retry(attempts=5, delay=10, until=lambda _outcome: False))
    def poll():
        ran.append(clock.now)

    tasks = TaskHeap(sleep=clock.sleep)
    entry = tasks.append(poll)
    tasks.run(stop=True)

    assert (len(ran), entry.state, entry.attempt) == (5, State.FAILED, 5)


def test_what_the_last_attempt_raised_is_kept_and_logged_once(tasks, app, caplog):
    @app.task(retry=Retry(attempts=3))
    def fails():
        raise OSError("no\nnetwork")

    entry = tasks.append(fails)
    with caplog.at_level(logging.INFO, "uwsgi_tasks.heap"):
        tasks.run(stop=True)

    assert (entry.state, str(entry.exception)) == (State.FAILED, "no\nnetwork")
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "ERROR"]
    assert "failed in attempt 3: OSError: no network" in caplog.messages[-1]
    assert caplog.records[-1].exc_info[1] is entry.exception


def test_a_retry_says_in_the_log_when_the_next_attempt_follows(clock, app, caplog):
    @app.task(retry=Retry(attempts=2, delay=30, until=lambda outcome: outcome.attempt == 2))
    def poll():
        pass

    tasks = TaskHeap(sleep=clock.sleep)
    tasks.append(poll)
    with caplog.at_level(logging.INFO, "uwsgi_tasks.heap"):
        tasks.run(stop=True)

    assert caplog.messages == [
        f"{poll.name}: attempt 1 asked for another; the next one follows in 30.0 s"
    ]


def test_one_that_cannot_be_tried_at_all_has_failed_and_the_others_go_on(
    tasks, note, ran, caplog, monkeypatch
):
    def broken(*_):
        raise StoreError("the store is away")

    broken_one = tasks.append(note, "a")
    monkeypatch.setattr(type(note), "attempts", broken)
    ends(tasks, stop=True)
    monkeypatch.undo()
    tasks.append(note, "b")
    tasks.run(stop=True)

    assert (broken_one.state, str(broken_one.exception)) == (State.FAILED, "the store is away")
    assert ran == ["b"]
    assert "attempt 1 could not be made" in caplog.text


def test_one_that_expires_before_its_turn_is_dropped(clock, declare, ran, monkeypatch):
    task = declare(ran.append, at=timedelta(seconds=60), expires=timedelta(seconds=30))
    now = time.time
    tasks = TaskHeap(sleep=clock.sleep)
    entry = tasks.append(task, "a")
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    clock.now += 60
    tasks.run(stop=True)
    assert (ran, entry.state, type(entry.exception)) == ([], State.CANCELLED, TaskCancelled)


def test_a_task_may_append_others(tasks, declare, note, ran):
    tasks.append(declare(lambda: tasks.append(note, "from inside")))
    tasks.run(stop=True)
    assert ran == ["from inside"]


def test_a_coroutine_runs_too(tasks, app, ran):
    @app.task
    async def later(what):
        ran.append(what)
        return what

    entry = tasks.append(later, "a")
    tasks.run(stop=True)
    assert (ran, entry.value) == (["a"], "a")


# --- interrupted


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_ends_run_and_loses_nothing(tasks, app, note, ran, kind):
    @app.task
    def interrupted():
        ran.append("interrupted")
        if len(ran) == 1:
            raise kind

    entry = tasks.append(interrupted)
    tasks.append(note, "b")
    with pytest.raises(kind):
        tasks.run(stop=True)

    assert (len(tasks), entry.state, entry.attempt) == (2, State.QUEUED, 0)
    tasks.run(stop=True)
    assert (sorted(ran), entry.state) == (["b", "interrupted", "interrupted"], State.SUCCEEDED)


def test_one_that_was_cancelled_and_interrupted_does_not_come_back(tasks, app):
    @app.task
    def interrupted():
        assert not entry.cancel()
        raise KeyboardInterrupt

    entry = tasks.append(interrupted)
    with pytest.raises(KeyboardInterrupt):
        tasks.run()
    assert (len(tasks), entry.state) == (0, State.CANCELLED)


@pytest.mark.parametrize("step", ["take", "put"])
@pytest.mark.parametrize("is_done", [False, True])
def test_an_interrupt_between_two_steps_of_ours_loses_nothing(
    tasks, flaky, monkeypatch, step, is_done
):
    entry = tasks.append(flaky, "a")
    real = getattr(tasks._line, step)

    def interrupted(*args):
        monkeypatch.undo()
        if is_done:
            real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks._line, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        tasks.run(stop=True)

    assert [len(tasks), list(tasks)] == [1, [entry]]
    tasks.run(stop=True)
    assert entry.state is State.SUCCEEDED


def test_an_interrupt_while_nothing_is_due_leaves_all_as_it_was(auto):
    tasks = TaskHeap()
    entry = tasks.append(auto.using(at=HOUR), "a")
    main = threading.get_ident()
    stopper = threading.Thread(
        target=lambda: (until(lambda: tasks._idle), signal.pthread_kill(main, signal.SIGINT))
    )
    stopper.start()
    with pytest.raises(KeyboardInterrupt):
        tasks.run()
    stopper.join()
    assert (list(tasks), entry.state) == ([entry], State.QUEUED)


# --- stopping


def test_run_with_stop_ends_when_nothing_is_left(tasks, note):
    tasks.append(note, "a")
    assert ends(tasks, stop=True)
    assert not tasks


def test_run_with_stop_of_an_empty_heap_ends_at_once(tasks):
    assert ends(tasks, stop=True)


def test_stop_now_lets_the_current_attempt_end_and_keeps_the_rest(tasks, app, note, ran):
    @app.task
    def stops():
        tasks.stop_now()
        ran.append("stops")

    tasks.append(stops)
    tasks.append(note, "b")
    assert ends(tasks)
    assert (ran, len(tasks)) == (["stops"], 1)


def test_run_goes_on_after_stop_now(tasks, declare, note, ran):
    tasks.append(declare(tasks.stop_now))
    tasks.append(note, "b")
    assert ends(tasks)
    assert ends(tasks, stop=True)
    assert ran == ["b"]


def test_stop_now_interrupts_a_wait(tasks, auto):
    tasks.append(auto.using(at=HOUR), "a")
    with running(tasks):
        until(lambda: tasks._idle)
        tasks.stop_now()
        until(lambda: not tasks._runs)
    assert len(tasks) == 1


def test_stop_now_before_run_ends_the_next_one_and_no_other(tasks, note, ran):
    tasks.append(note, "a")
    tasks.stop_now()

    assert ends(tasks)
    assert ran == []
    assert ends(tasks, stop=True)
    assert ran == ["a"]


def test_stop_after_before_run_ends_the_next_one_when_nothing_is_left(tasks, note, ran):
    tasks.append(note, "a")
    tasks.stop_after()
    assert ends(tasks)
    assert ran == ["a"]


def test_stop_after_is_forgotten_when_it_was_fulfilled(tasks, note, ran):
    tasks.stop_after()
    assert ends(tasks)
    with running(tasks):
        until(lambda: tasks._idle)
        tasks.append(note, "a")
        until(lambda: ran == ["a"])
        until(lambda: tasks._idle)


def test_stop_after_wakes_one_that_waits_for_nothing(tasks):
    with running(tasks):
        until(lambda: tasks._idle)
        tasks.stop_after()
        until(lambda: not tasks._runs)


def test_stop_after_runs_what_is_tried_again(tasks, flaky):
    entry = tasks.append(flaky, "a")
    with running(tasks):
        tasks.stop_after()
        until(lambda: not tasks)
    assert entry.state is State.SUCCEEDED


def test_a_stop_may_come_from_a_signal_while_the_heap_is_at_work(tasks, flaky):
    tasks.append(flaky, "a", times=math.inf)
    before = signal.signal(signal.SIGUSR1, lambda *_: tasks.stop_now())
    main = threading.get_ident()
    until_it_works = threading.Thread(
        target=lambda: (
            until(lambda: next(iter(tasks)).attempt > 100),
            signal.pthread_kill(main, signal.SIGUSR1),
        )
    )
    try:
        until_it_works.start()
        tasks.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
        until_it_works.join()
    assert len(tasks) == 1


# --- cancelling


def test_a_cancelled_entry_does_not_run(tasks, note, ran):
    entry = tasks.append(note, "a")
    tasks.append(note, "b")
    assert entry.cancel()
    tasks.run(stop=True)
    assert (ran, entry.state, entry.next_at) == (["b"], State.CANCELLED, None)


def test_the_last_one_that_is_cancelled_ends_who_waited_for_it(tasks, auto):
    entry = tasks.append(auto.using(at=HOUR), "a")
    with running(tasks, stop=True):
        until(lambda: tasks._idle)
        assert entry.cancel()
    assert not tasks


def test_an_attempt_that_runs_is_the_last_one_once_it_was_cancelled(tasks, app, ran):
    @app.task(retry=FOR_EVER)
    def fails():
        ran.append(entry.cancel())
        raise OSError

    entry = tasks.append(fails)
    tasks.run(stop=True)
    assert (ran, entry.state, entry.attempt) == ([False], State.CANCELLED, 1)


def test_what_has_ended_cannot_be_cancelled(tasks, note):
    entry = tasks.append(note, "a")
    tasks.run(stop=True)
    assert (entry.cancel(), entry.state) == (False, State.SUCCEEDED)


def test_to_cancel_twice_is_to_cancel(tasks, note):
    entry = tasks.append(note, "a")
    assert (entry.cancel(), entry.cancel(), len(tasks)) == (True, True, 0)


def test_what_was_cancelled_is_not_kept(tasks, auto):
    kept = tasks.append(auto.using(at=HOUR), "kept")
    for number in range(10_000):
        tasks.append(auto.using(at=HOUR) if number % 100 else auto, number).cancel()
    assert (len(tasks), list(tasks)) == (1, [kept])
    assert len(tasks._line._later) + len(tasks._line._due) < 100


# --- waiting


def test_the_default_sleep_waits_until_the_next_one_is_due_and_does_not_poll(auto, ran):
    tasks = TaskHeap(interval=0.001)
    waits = []
    real = tasks._changed.wait
    tasks._changed.wait = lambda timeout: waits.append(timeout) or real(timeout)
    began = time.monotonic()
    tasks.append(auto.using(at=timedelta(seconds=0.4)), "a")
    tasks.run(stop=True)

    assert time.monotonic() - began >= 0.4
    assert ran == ["a"]
    # A wait may end a little early.
    assert 1 <= len(waits) <= 3


def test_an_idle_heap_waits_without_an_end_and_wakes_when_one_is_appended(tasks, note, ran):
    waits = []
    real = tasks._changed.wait
    tasks._changed.wait = lambda timeout: waits.append(timeout) or real(timeout)
    with running(tasks):
        until(lambda: tasks._idle)
        tasks.append(note, "a")
        until(lambda: ran == ["a"])
        until(lambda: tasks._idle)
        assert set(waits) == {None}


def test_it_wakes_for_one_that_is_due_earlier(tasks, auto, note, ran):
    tasks.append(auto.using(at=HOUR), "late")
    with running(tasks):
        until(lambda: tasks._idle)
        tasks.append(auto.using(at=timedelta(seconds=0.01)), "early")
        until(lambda: ran == ["early"])


def test_one_that_is_due_later_wakes_nobody(tasks, auto):
    waits = []
    real = tasks._changed.wait
    tasks._changed.wait = lambda timeout: waits.append(timeout) or real(timeout)
    tasks.append(auto.using(at=HOUR), "a")
    with running(tasks):
        until(lambda: tasks._idle)
        for _ in range(100):
            tasks.append(auto.using(at=2 * HOUR), "b")
        time.sleep(0.05)
        assert len(waits) == 1


def test_a_time_in_the_past_is_due_at_once(tasks, auto, ran):
    tasks.append(auto.using(at=0), "a")
    assert ends(tasks, stop=True)
    assert ran == ["a"]


def test_one_that_is_due_in_thousands_of_years_can_be_waited_for(tasks, auto):
    tasks.append(auto.using(at=datetime(9999, 1, 1, tzinfo=UTC)), "a")
    with running(tasks):
        until(lambda: tasks._idle)


def test_a_given_sleep_is_asked_for_no_more_than_one_interval(clock, auto):
    tasks = TaskHeap(sleep=clock.sleep, interval=3)
    tasks.append(auto.using(at=timedelta(seconds=7)), "a")
    tasks.run(stop=True)
    waits = [seconds for seconds in clock.slept if seconds]
    assert waits == pytest.approx([3, 3, 1], abs=0.1)


def test_a_given_sleep_does_not_sleep_longer_than_until_the_next_one_is_due(clock, auto):
    tasks = TaskHeap(sleep=clock.sleep, interval=100)
    tasks.append(auto.using(at=timedelta(seconds=7)), "a")
    tasks.run(stop=True)
    assert clock.now == pytest.approx(1_007, abs=0.1)


def test_with_a_given_sleep_what_is_appended_is_noticed_within_an_interval(clock, auto, note, ran):
    def sleep(seconds):
        clock.sleep(seconds)
        if len(clock.slept) == 5:
            tasks.append(note, clock.now)
        elif ran:
            tasks.stop_now()

    tasks = TaskHeap(sleep=sleep, interval=2)
    tasks.append(auto.using(at=HOUR), "late")
    tasks.run()
    assert (ran, clock.slept[:5]) == ([1_010], [2, 2, 2, 2, 2])


def test_with_a_given_sleep_others_get_their_turn_between_any_two_attempts(clock, flaky):
    tasks = TaskHeap(sleep=clock.sleep)
    tasks.append(flaky, "a", times=5)
    tasks.run(stop=True)
    assert clock.slept == [0] * 5


def test_the_heap_sleeps_one_interval_by_default(clock):
    tasks = TaskHeap(sleep=clock.sleep, interval=3)
    tasks.sleep()
    tasks.sleep(5)
    assert clock.slept == [3, 5]


def test_the_default_sleep_is_that_of_the_time_at_which_it_sleeps(clock):
    TaskHeap().sleep(5)
    assert clock.slept == [5]


def test_without_a_given_sleep_there_is_an_interval_too():
    assert TaskHeap().interval == 0.1


@pytest.mark.parametrize("wrong", [0, -1, math.inf, "1", None])
def test_an_interval_that_cannot_be_is_refused(wrong):
    with pytest.raises(InvalidTask, match="interval"):
        TaskHeap(interval=wrong)


def test_a_sleep_that_is_no_function_is_refused():
    with pytest.raises(InvalidTask, match=r"time\.sleep"):
        TaskHeap(sleep=0.1)


# --- threads


def test_tasks_are_appended_while_a_thread_runs_them(tasks, flaky, ran):
    with running(tasks):
        entries = [tasks.append(flaky, number) for number in range(200)]
        until(lambda: not tasks)
    assert {entry.state for entry in entries} == {State.SUCCEEDED}
    assert len(ran) == 600


def test_several_threads_run_and_append_and_each_entry_ends_once(tasks, app):
    runs, guard = [], threading.Lock()

    @app.task(retry=Retry(attempts=2))
    def count(number):
        with guard:
            runs.append(number)
        if get_current_task().attempt == 1:
            raise OSError

    def append(start):
        for number in range(start, start + 300):
            tasks.append(count, number)

    appending = [threading.Thread(target=append, args=(start,)) for start in range(0, 1200, 300)]
    with running(tasks, threads=4):
        for thread in appending:
            thread.start()
        for thread in appending:
            thread.join()
        until(lambda: not tasks)
    assert sorted(runs) == sorted([*range(1200), *range(1200)])


def test_one_thread_runs_what_is_due_while_another_is_at_work(tasks, declare, auto, ran):
    release = threading.Event()
    blocks = declare(lambda: release.wait(DEADLOCK))
    with running(tasks, threads=2):
        until(lambda: tasks._idle == 2)
        tasks.append(auto.using(at=timedelta(seconds=0.05)), "soon")
        tasks.append(blocks)
        try:
            until(lambda: ran == ["soon"])
        finally:
            release.set()


def test_run_with_stop_waits_for_what_another_thread_runs(tasks, app, ran):
    begun, release = threading.Event(), threading.Event()

    @app.task(retry=Retry(attempts=2))
    def fails_once():
        begun.set()
        release.wait(DEADLOCK)
        ran.append("it")
        if len(ran) == 1:
            raise OSError

    tasks.append(fails_once)
    with running(tasks):
        assert begun.wait(DEADLOCK)
        second = threading.Thread(target=tasks.run, kwargs={"stop": True})
        second.start()
        until(lambda: tasks._idle)
        assert len(tasks) == 1
        release.set()
        second.join(DEADLOCK)
        assert not second.is_alive()
    assert len(ran) == 2


def test_stop_now_ends_all_who_run_it(tasks):
    with running(tasks, threads=3):
        until(lambda: tasks._idle == 3)
        tasks.stop_now()
        until(lambda: not tasks._runs)
    assert not tasks._stops_now


# --- what it shows


def test_a_heap_is_true_while_something_is_in_it(tasks, note):
    assert not tasks
    tasks.append(note, "a")
    assert tasks
    assert len(tasks) == 1


def test_what_runs_is_in_the_heap(tasks, declare):
    seen = []
    looking = declare(lambda: seen.extend([len(tasks), *tasks, str(tasks)]))
    entry = tasks.append(looking)
    tasks.run(stop=True)
    assert seen == [1, entry, "1 task, running"]


def test_iteration_is_a_snapshot_in_the_order_of_times(tasks, auto):
    late = tasks.append(auto.using(at=2 * HOUR), "late")
    early = tasks.append(auto.using(at=HOUR), "early")
    now = tasks.append(auto, "now")
    gone = tasks.append(auto, "gone")
    gone.cancel()
    found = iter(tasks)
    tasks.append(auto, "too late")
    assert list(found) == [now, early, late]


def test_a_heap_says_how_many_and_which_come_next(tasks, declare):
    for number, name in enumerate("abcde"):
        task = declare(print, name=name, at=timedelta(minutes=1 + number))
        tasks.append(task)
    said = r"5 tasks, the next in (\d+\.\d) s: a, b, c, and 2 more"
    assert 50 < float(re.fullmatch(said, str(tasks))[1]) <= 60
    assert re.fullmatch(f"<TaskHeap {said}>", repr(tasks))


def test_a_heap_says_what_comes_next_however_many_before_it_were_cancelled(tasks, auto, declare):
    early = [tasks.append(auto.using(at=HOUR), None) for _ in range(500)]
    for hours in range(1_000):
        tasks.append(declare(print, name=f"{hours}", at=(2 + hours) * HOUR))
    for entry in early:
        entry.cancel()
    assert str(tasks).startswith("1,000 tasks, the next in 7")
    assert str(tasks).endswith(" s: 0, 1, 2, and 997 more")


def test_what_was_cancelled_between_the_first_ones_is_not_shown(tasks, declare):
    entries = [
        tasks.append(declare(print, name=f"{hours}", at=hours * HOUR)) for hours in range(1, 300)
    ]
    for entry in entries[1:100] + entries[101:140]:
        entry.cancel()
    assert str(tasks).endswith(" s: 1, 101, 141, and 158 more")


def test_a_heap_names_first_what_goes_first(clock, declare):
    tasks = TaskHeap(sleep=clock.sleep)
    for priority in (None, 5, 1):
        tasks.append(declare(print, name=f"{priority}", priority=priority))
    tasks.append(declare(print, name="late", at=timedelta(seconds=5), priority=0))
    before = str(tasks)
    clock.now += 10
    assert (before, str(tasks)) == (
        "4 tasks, the next in 0.0 s: 1, 5, None, and 1 more",
        "4 tasks, the next in 0.0 s: late, 1, 5, and 1 more",
    )


def test_to_look_at_a_heap_changes_nothing(tasks, auto, ran):
    for number in range(20):
        tasks.append(auto, number)
        str(tasks)
    found = list(tasks)
    assert (str(tasks), list(tasks)) == (str(tasks), found)
    tasks.run(stop=True)
    assert ran == list(range(20))


def test_an_empty_heap_says_so(tasks):
    assert str(tasks) == "no tasks"


def test_a_heap_says_what_runs(tasks, declare, note):
    seen = []
    looking = declare(lambda: seen.append(str(tasks)))
    tasks.append(looking)
    tasks.append(note, "a")
    tasks.run(stop=True)
    assert seen == [f"2 tasks, 1 of them running, the next in 0.0 s: {note.name}"]


def test_an_entry_says_what_it_is_and_where_it_stands(tasks, app, declare):
    seen = []

    @app.task(name="shop.send", executor="auto", at=HOUR)
    def send():
        pass

    @app.task(name="shop.look")
    def look():
        seen.append(str(entry))

    said = r"<HeapEntry shop\.send, attempt 1 in (\d+\.\d) s>"
    assert 3590 < float(re.fullmatch(said, repr(tasks.append(send)))[1]) <= 3600
    entry = tasks.append(look)
    tasks.append(declare(tasks.stop_now))
    tasks.run()
    assert [*seen, str(entry)] == [
        "shop.look, attempt 1 runs",
        "shop.look, succeeded in attempt 1",
    ]


# --- many


@pytest.mark.slow
@pytest.mark.usefixtures("untraced")
def test_a_million_entries_wait_in_little_memory_and_are_cancelled_one_by_one(tasks, auto):
    later, before = auto.using(at=HOUR), memory()
    entries = [tasks.append(later, None) for _ in range(1_000_000)]
    each = (memory() - before) / len(entries)

    assert len(tasks) == 1_000_000
    assert each < 600, f"{each:.0f} bytes an entry"
    for entry in entries[1_000:]:
        entry.cancel()
    assert len(tasks) == len(list(tasks)) == 1_000
    assert len(tasks._line._later) < 10_000


@pytest.mark.slow
def test_very_many_entries_run_in_the_order_of_their_times(clock, auto, ran):
    tasks = TaskHeap(sleep=clock.sleep, interval=10_000_000)
    start = clock.time()
    # Each once, in an order of no use.
    for number in range(200):
        due = auto.using(at=start + 1 + number * 77 % 200)
        for _ in range(250):
            tasks.append(due, number * 77 % 200)
    assert len(tasks) == 50_000
    tasks.run(stop=True)
    assert ran == sorted(ran)
    assert len(ran) == 50_000


def memory():
    """Return the bytes of memory that this process has in use."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


# --- green threads


def has(library):
    if find_spec(library) is None:
        assert not os.environ.get("CI"), f"CI must have {library}: pip install -e '.[test]'"
        return False
    return True


GEVENT = """
import gevent

def spawn(run, **given):
    return gevent.spawn(run, **given)

def join(*threads):
    gevent.joinall(threads, timeout=10, raise_error=True)
    assert all(thread.ready() for thread in threads)

def kill(thread):
    thread.kill(timeout=10)
    assert thread.ready()

sleep = gevent.sleep
"""
EVENTLET = """
import eventlet

def spawn(run, **given):
    return eventlet.spawn(run, **given)

def join(*threads):
    with eventlet.Timeout(10):
        for thread in threads:
            thread.wait()

def kill(thread):
    thread.kill()
    try:
        join(thread)
    except eventlet.greenlet.GreenletExit:
        pass
    assert thread.dead

sleep = eventlet.sleep
"""
PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
STARTS = {
    "patched": "{patch}\n{names}\nfrom uwsgi_tasks import TaskHeap\ntasks = TaskHeap()\n",
    "late": "{names}\nfrom uwsgi_tasks import TaskHeap\n{patch}\ntasks = TaskHeap()\n",
    "unpatched": (
        "{names}\nfrom uwsgi_tasks import TaskHeap\ntasks = TaskHeap(sleep=sleep, interval=0.02)\n"
    ),
}
GREEN = """
from datetime import timedelta
from uwsgi_tasks import Retry, State, get_current_task, task

@task(retry=Retry(attempts=0, delay=0.05))
def flaky(what, times):
    if get_current_task().attempt < times:
        raise ConnectionError(what)
    return what

@task(retry=Retry(attempts=0))
def never():
    raise OSError

@task
def nap():
    sleep(0.05)

@task
def sleep_long():
    sleep(30)

@task(at=timedelta(seconds=0.05))
def soon():
    pass

# Appended while it runs; the heap lets us go on.
thread = spawn(tasks.run)
sleep(0)
entries = [tasks.append(flaky, "a", times=2), tasks.append(flaky, "b", times=3)]
entries += [tasks.append(nap), tasks.append(soon)]
while tasks:
    tasks.sleep()
assert all(entry.state is State.SUCCEEDED for entry in entries), list(entries)

# One that fails all the time leaves us our turns, and stop_now ends the loop; it goes on later.
busy = tasks.append(never)
while busy.attempt <= 1:
    tasks.sleep()
tasks.stop_now()
join(thread)
assert len(tasks) == 1

thread = spawn(tasks.run)
sleep(0)
busy.cancel()
last = tasks.append(flaky, "c", times=2)
tasks.stop_after()
join(thread)
assert last.value == "c"

# Two green threads run one heap: what one sleeps in does not hold up the other.
tasks.append(nap)
tasks.append(nap)
threads = [spawn(tasks.run, stop=True) for _ in range(2)]
join(*threads)
assert not tasks

# The end of a green thread in the middle of a task ends the loop, and the entry stays.
tasks.append(sleep_long)
thread = spawn(tasks.run)
sleep(0.01)
kill(thread)
assert len(tasks) == 1
print("done")
"""


LIBRARIES = {"gevent": GEVENT, "eventlet": EVENTLET}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "library",
    [
        pytest.param(
            library, marks=pytest.mark.skipif(not has(library), reason=f"{library} is missing")
        )
        for library in LIBRARIES
    ],
)
def test_a_heap_runs_among_green_threads(library, start, tmp_path):
    script = tmp_path / "green.py"
    beginning = STARTS[start].format(patch=PATCHES[library], names=LIBRARIES[library])
    script.write_text(beginning + textwrap.dedent(GREEN))
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:uwsgi_tasks", str(script)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "done\n"
