"""On threads of the caller's own process."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from types import SimpleNamespace
from weakref import ref

import pytest

from uwsgi_tasks import (
    App,
    InvalidTask,
    ResultNotKept,
    Retry,
    RetryTaskException,
    State,
    SubmitError,
    TaskCancelled,
    TaskTimeout,
    get_current_task,
)
from uwsgi_tasks.errors import NotKept
from uwsgi_tasks.model import Job, Stop
from uwsgi_tasks.server import Server

LONG = 30
SOON = timedelta(seconds=0.1)
LATER = timedelta(hours=1)
ENDING = ("uwsgi_tasks exit", "uwsgi_tasks last")
"""The threads that wait for the end of this process."""


@pytest.fixture
def make(tmp_path):
    """Return apps with settings of their own, whose threads end with the test."""
    apps = []

    def make(**settings):
        given = {"store": "memory://", "dead_dir": str(tmp_path / "dead"), "thread_grace": 0}
        app = App(Server(None), **{**given, **settings})
        apps.append(app)
        return app

    yield make
    for app in apps:
        app._thread.stop()


@pytest.fixture
def app(make):
    return make()


@pytest.fixture
def task(app):
    return lambda **options: app.task(executor="thread", **options)


class Gate:
    """What a job waits for, and how many wait there."""

    def __init__(self):
        self.arrived, self._open = threading.Semaphore(0), threading.Event()
        # A method could be no task.
        self.hold = lambda: self.pass_()  # noqa: PLW0108

    def pass_(self):
        self.arrived.release()
        assert self._open.wait(LONG)

    def wait(self, number=1):
        for _ in range(number):
            assert self.arrived.acquire(timeout=LONG)

    def open(self):
        self._open.set()


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.open()


@pytest.fixture
def blocked(make, gate):
    """An app with one thread, which a job keeps busy until the gate is opened."""
    app = make(threads=1)
    app.task(executor="thread", name="blocking")(gate.hold)()
    gate.wait()
    return app


def threading_id():
    return threading.get_ident()


def until(condition):
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- where it runs


def test_a_job_runs_on_a_thread_of_the_pool(task):
    name = task()(lambda: threading.current_thread().name)().result(LONG)
    assert name.startswith("uwsgi_tasks thread ")


def test_as_many_jobs_run_at_a_time_as_there_are_threads(make, gate):
    app = make(threads=3)
    hold = app.task(executor="thread")(gate.hold)
    handles = [hold() for _ in range(5)]
    gate.wait(3)
    states = [handle.state for handle in handles]
    gate.open()
    assert sorted(states) == ["queued", "queued", "running", "running", "running"]
    assert all(handle.wait(LONG) for handle in handles)


def test_arguments_are_themselves_and_no_copies(task):
    given = [threading.Lock()]
    assert task()(lambda one: one is given)(given).result(LONG) is True


def test_a_function_inside_a_function_runs_also_when_nobody_has_it_any_more(blocked, gate):
    def submitted(value):
        return blocked.task(executor="thread")(lambda: value)()

    handle = submitted(42)
    gc.collect()
    gate.open()
    assert handle.result(LONG) == 42


def test_the_current_task_is_found_in_the_job_and_nowhere_else(task):
    handle = task()(lambda: get_current_task().id)()
    assert (handle.result(LONG), get_current_task()) == (handle.id, None)


def test_jobs_that_run_at_a_time_have_each_its_own_current_task(task, gate):
    @task()
    def look():
        before = get_current_task().id
        gate.pass_()
        return before, get_current_task().id

    handles = [look() for _ in range(4)]
    gate.wait(4)
    gate.open()
    assert [handle.result(LONG) for handle in handles] == [(one.id, one.id) for one in handles]


def test_coroutines_run_on_one_loop(task):
    @task()
    async def look():
        await asyncio.sleep(0)
        return id(asyncio.get_running_loop()), get_current_task().id

    handles = [look() for _ in range(8)]
    found = [handle.result(LONG) for handle in handles]
    assert len({loop for loop, _ in found}) == 1
    assert [job for _, job in found] == [handle.id for handle in handles]


def test_djangos_connections_are_renewed_before_each_job(task, monkeypatch):
    renewed = []
    database = SimpleNamespace(close_old_connections=lambda: renewed.append(1))
    monkeypatch.setitem(sys.modules, "django.db", database)
    registry = SimpleNamespace(apps=SimpleNamespace(ready=True))
    monkeypatch.setitem(sys.modules, "django.apps", registry)
    send = task()(lambda: len(renewed))
    assert [send().result(LONG), send().result(LONG)] == [1, 2]


# --- in which order


def test_a_job_of_the_future_does_not_run_before_its_time(task):
    at = time.time() + 0.1
    assert task(at=at)(time.time)().result(LONG) >= at


def test_jobs_of_the_future_run_in_the_order_of_their_times(make):
    ran = []
    note = make(threads=1).task(executor="thread", name="note")(ran.append)
    # All of them are there before the first is due.
    now = time.time() + 1
    handles = [note.using(at=now + 0.05 * number)(number) for number in (3, 1, 2)]
    assert all(handle.wait(LONG) for handle in handles)
    assert ran == [1, 2, 3]


def test_the_smaller_priority_runs_first_and_none_after_all(blocked, gate):
    ran = []
    note = blocked.task(executor="thread", name="note")(ran.append)
    handles = [note.using(priority=one)(one) for one in (5, None, 1, 9, 0)]
    gate.open()
    assert all(handle.wait(LONG) for handle in handles)
    assert ran == [0, 1, 5, 9, None]


def test_of_one_priority_the_first_runs_first(blocked, gate):
    ran = []
    note = blocked.task(executor="thread", name="note", priority=1)(ran.append)
    handles = [note(number) for number in range(50)]
    gate.open()
    assert all(handle.wait(LONG) for handle in handles)
    assert ran == list(range(50))


def test_many_who_submit_at_once_have_each_job_run_once(task):
    counts, lock = {}, threading.Lock()

    @task()
    def count(key):
        with lock:
            counts[key] = counts.get(key, 0) + 1

    handles = []
    keys = [[(who, number) for number in range(1000)] for who in range(8)]
    threads = [
        threading.Thread(target=lambda mine=mine: handles.extend(count(key) for key in mine))
        for mine in keys
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(handle.wait(LONG) for handle in handles)
    assert counts == {key: 1 for mine in keys for key in mine}


def test_a_map_runs_each_of_its_calls(task):
    handles = task()(lambda one: one * 2).map([1, 2, 3])
    assert [handle.result(LONG) for handle in handles] == [2, 4, 6]


# --- how it stands


@pytest.mark.parametrize("ttl", [None, 60])
def test_a_handle_tells_how_a_job_stands_from_the_beginning_to_the_end(make, gate, ttl):
    app = make(threads=1)
    hold = app.task(executor="thread", result_ttl=ttl)(gate.hold)
    first, second = hold(), hold()
    assert first.wait(LONG, until=State.RUNNING)
    states = [first.state, second.state]
    gate.open()
    assert second.wait(LONG)
    assert [*states, first.state, second.state] == ["running", "queued", "succeeded", "succeeded"]


@pytest.mark.parametrize("ttl", [None, 60])
def test_any_handle_of_a_job_that_runs_tells_how_it_stands(app, task, gate, ttl):
    handle = task(result_ttl=ttl)(gate.hold)()
    gate.wait()
    assert app.job(handle.id).state is State.RUNNING


def test_how_a_job_ended_is_known_to_any_handle_with_a_result_ttl(app, task):
    handle = task(result_ttl=60)(lambda: 42)()
    handle.wait(LONG)
    assert app.job(handle.id).result(LONG) == 42


def test_without_result_ttl_the_callers_handle_alone_knows_how_a_job_ended(app, task):
    handle = task()(lambda: 42)()
    assert handle.result(LONG) == 42
    with pytest.raises(ResultNotKept):
        app.job(handle.id).result(LONG)


def test_the_exception_itself_is_raised(task):
    error = OSError("no such host")

    @task()
    def send():
        raise error

    with pytest.raises(OSError, match="no such host") as caught:
        send().result(LONG)
    assert caught.value is error


def test_a_wait_that_is_over_too_early_says_so(task, gate):
    handle = task()(gate.hold)()
    assert handle.wait(0.01) is False
    with pytest.raises(TimeoutError):
        handle.result(0.01)


@pytest.mark.parametrize("ttl", [None, 60])
def test_progress_is_seen_while_it_runs(app, task, gate, ttl):
    @task(result_ttl=ttl)
    def send():
        get_current_task().progress(1, 3)
        gate.pass_()

    handle = send()
    gate.wait()
    assert (handle.progress, app.job(handle.id).progress) == ((1, 3), (1, 3))


def test_the_progress_of_one_attempt_is_not_that_of_the_next(task, gate):
    @task(retry=Retry(attempts=2))
    def send():
        if get_current_task().attempt == 1:
            get_current_task().progress(1, 3)
            raise OSError
        gate.pass_()

    handle = send()
    gate.wait()
    assert handle.progress is None


def test_a_waiter_that_comes_at_the_moment_of_the_end_is_not_forgotten(task):
    send = task()(lambda: None)
    for _ in range(2000):
        assert send().wait(LONG)


def test_each_of_many_waiters_is_told(task, gate):
    told = []
    handle = task()(gate.hold)()
    waiters = [threading.Thread(target=lambda: told.append(handle.wait(LONG))) for _ in range(20)]
    for waiter in waiters:
        waiter.start()
    gate.open()
    for waiter in waiters:
        waiter.join()
    assert told == [True] * 20


def test_the_jobs_of_this_process_are_listed_what_runs_first(blocked):
    waiting = blocked.task(executor="thread", name="waiting", priority=3)(len)("abc")
    running, queued = blocked.jobs()
    assert (running.task, running.state, running.worker) == (
        "blocking",
        State.RUNNING,
        str(os.getpid()),
    )
    assert (queued.id, queued.state, queued.priority) == (waiting.id, State.QUEUED, 3)
    assert blocked.waiting() == 2


def test_the_list_can_be_narrowed(blocked):
    handles = blocked.task(executor="thread", name="waiting", at=LATER)(len).map(["a", "b"])
    assert [one.task for one in blocked.jobs(running=True)] == ["blocking"]
    assert [one.task for one in blocked.jobs(2)] == ["blocking", "waiting"]
    found = blocked.jobs(where=lambda one: one.id == handles[1].id)
    assert [one.id for one in found] == [handles[1].id]


def test_a_job_that_waits_can_be_looked_at(app, task):
    handle = task(at=LATER)(len)("abc")
    assert app.read(handle.id).args == ("abc",)
    assert app.jobs()[0].at == pytest.approx(time.time() + 3600, abs=60)
    handle.cancel()
    assert (app.read(handle.id), app.jobs(), app.waiting()) == (None, [], 0)


def test_a_process_that_has_submitted_nothing_has_no_threads_and_no_jobs(app):
    executor = app._thread
    assert (executor._pool, app.jobs(), app.read("x"), app.waiting()) == (None, [], None, 0)
    assert (executor.cancel("x", Stop.ASKED), executor.find("x")) == (None, None)
    assert executor.asked(Job("x", "f")) is Stop.NOT


# --- cancelling


@pytest.mark.parametrize("ttl", [None, 60])
@pytest.mark.parametrize("at", [None, LATER])
def test_a_job_that_waits_is_taken_away(blocked, gate, ttl, at):
    ran = []
    note = blocked.task(executor="thread", name="note", result_ttl=ttl, at=at)(ran.append)
    handle = note(1)
    assert handle.cancel() is True
    gate.open()
    blocked.task(executor="thread", name="last")(lambda: None)().wait(LONG)
    assert (ran, handle.state, handle.wait(0)) == ([], State.CANCELLED, True)
    with pytest.raises(TaskCancelled):
        handle.result(0)
    assert handle.cancel() is False


class Big:
    """An argument of which one can see whether it is still held."""


@pytest.mark.parametrize("at", [None, LATER])
def test_a_job_that_was_taken_away_holds_its_arguments_no_longer(blocked, at):
    argument = Big()
    seen = ref(argument)
    task = blocked.task(executor="thread", name="note", at=at)(lambda _: None)
    handle = task(argument)
    del argument
    handle.cancel()
    gc.collect()
    assert (seen(), handle.state) == (None, State.CANCELLED)


def test_jobs_of_the_future_that_were_taken_away_are_not_kept(blocked):
    note = blocked.task(executor="thread", name="note", at=LATER)(len)
    kept = note("kept")
    for _ in range(1_000):
        note("abc").cancel()
    assert len(blocked._thread._pool._delays) < 100
    assert (blocked.waiting(), kept.state) == (2, State.QUEUED)


def test_a_job_can_be_cancelled_by_its_id(app, task):
    handle = task(at=LATER)(len)("abc")
    assert app.job(handle.id).cancel() is True
    assert handle.state is State.CANCELLED


def test_who_waits_for_a_job_is_told_that_it_was_cancelled(task):
    handle, told = task(at=LATER)(len)("abc"), []
    waiter = threading.Thread(target=lambda: told.append(handle.wait(LONG)))
    waiter.start()
    handle.cancel()
    waiter.join()
    assert told == [True]


def test_a_job_that_waits_for_its_next_attempt_is_taken_away(task):
    runs = []

    @task(retry=Retry(attempts=2, delay=3600))
    def send():
        runs.append(1)
        raise OSError

    handle = send()
    until(lambda: handle.state is State.RETRYING)
    assert (handle.cancel(), handle.state, runs) == (True, State.CANCELLED, [1])


def test_a_job_that_runs_is_asked_to_stop(task, gate):
    @task()
    def send():
        gate.pass_()
        if get_current_task().cancelled:
            raise TaskCancelled("stopped")

    handle = send()
    gate.wait()
    assert handle.cancel() is False
    gate.open()
    assert (handle.wait(LONG), handle.state) == (True, State.CANCELLED)


def test_a_job_that_was_not_asked_to_stop_is_not_cancelled(task):
    assert task()(lambda: get_current_task().cancelled)().result(LONG) is False


# --- what a task asks for


def test_retries_wait_as_long_as_they_are_told(task):
    begun = []

    @task(retry=Retry(attempts=3, delay=0.1))
    def send():
        begun.append(time.time())
        if len(begun) < 3:
            raise OSError

    assert send().wait(LONG)
    assert begun[1] - begun[0] >= 0.1
    assert begun[2] - begun[1] >= 0.1


def test_a_job_that_is_to_be_tried_again_is_retrying(task):
    @task(retry=Retry(attempts=2, delay=3600))
    def send():
        raise OSError

    handle = send()
    until(lambda: handle.state is State.RETRYING)
    assert handle.wait(0.01) is False


def test_retries_in_great_numbers_on_all_threads_end_no_thread(make):
    app = make(threads=4)
    stubborn = app.task(executor="thread", retry=Retry(attempts=100), dead_letter=False)(
        lambda: 1 / 0
    )
    handles = [stubborn() for _ in range(8)]
    assert all(handle.wait(LONG) for handle in handles)
    assert [handle._near.result.attempt for handle in handles] == [100] * 8


def test_a_task_may_ask_for_another_attempt(task):
    @task(retry_count=3)
    def send():
        if get_current_task().attempt < 3:
            raise RetryTaskException
        return get_current_task().attempt

    assert send().result(LONG) == 3


def test_a_task_may_submit_itself(task):
    ran, done = [], threading.Event()

    @task()
    def step(number):
        ran.append(number)
        if number == 3:
            done.set()
        else:
            get_current_task()(number + 1)

    step(0)
    assert done.wait(LONG)
    assert ran == [0, 1, 2, 3]


def test_a_task_may_wait_for_another_one(task):
    double = task(name="double")(lambda one: one * 2)
    assert task()(lambda: double(21).result(LONG))().result(LONG) == 42


def test_while_a_job_with_a_key_waits_another_call_is_the_same_job(blocked, gate):
    ran = []
    note = blocked.task(executor="thread", name="note", unique="key")(ran.append)
    first, second = note(1), note(2)
    assert second.id == first.id
    gate.open()
    first.wait(LONG)
    assert ran == [1]
    third = note(3)
    assert third.id != first.id


def test_a_cancelled_job_gives_its_key_back(task):
    note = task(unique="key", at=LATER)(len)
    first = note("a")
    first.cancel()
    assert note("b").id != first.id


def test_what_has_expired_does_not_run(blocked, gate):
    ran = []
    handle = blocked.task(executor="thread", name="note", expires=timedelta(seconds=0.01))(
        ran.append
    )(1)
    time.sleep(0.02)
    gate.open()
    assert (handle.wait(LONG), handle.state, ran) == (True, State.CANCELLED, [])


# --- failures


def test_what_failed_for_good_is_a_dead_letter_that_can_be_requeued(app, task):
    fails = [True]

    @task(name="send")
    def send(number):
        if fails:
            raise OSError("no such host")
        return number

    handle = send(7)
    handle.wait(LONG)
    (letter,) = app.dead.list()
    assert (letter.id, letter.executor, letter.error) == (
        handle.id,
        "thread",
        "OSError: no such host",
    )
    fails.clear()
    assert app.dead.requeue(letter.id).result(LONG) == 7
    assert app.dead.list() == []


def test_a_letter_that_is_requeued_at_the_moment_of_its_failure_ends_no_thread(make):
    app = make(threads=2)

    @app.task(executor="thread", name="send")
    def send(number):
        if number is None:
            raise OSError

    keep = app.dead.keep
    found = []

    def keep_and_requeue(letter):
        where = keep(letter)
        if len(found) < 50:
            found.append(app.dead.requeue(letter.id))
        return where

    app._thread._receiver._keep = keep_and_requeue
    send(None)
    until(lambda: len(found) == 50)
    assert all(handle.wait(LONG) for handle in found)
    assert all(send(number).wait(LONG) for number in range(10))


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_a_job_may_raise_anything_and_its_thread_goes_on(make, error):
    app = make(threads=1)

    @app.task(executor="thread")
    def send():
        raise error

    handle = send()
    assert (handle.wait(LONG), handle.state) == (True, State.FAILED)
    assert app.task(executor="thread")(lambda: 42)().result(LONG) == 42


@pytest.mark.parametrize("error", [NotKept("no room"), RuntimeError("anything")])
def test_where_no_dead_letter_can_be_written_the_log_has_it_and_the_thread_goes_on(
    make, caplog, error
):
    app = make(threads=1)

    def keep(_letter):
        raise error

    app._thread._receiver._keep = keep
    handle = app.task(executor="thread")(lambda: 1 / 0)()
    assert (handle.wait(LONG), handle.state) == (True, State.FAILED)
    assert "is lost" in caplog.text
    assert app.task(executor="thread")(lambda: 42)().result(LONG) == 42


def test_a_job_whose_task_has_gone_meanwhile_fails(app, blocked, gate):
    handle = blocked.task(executor="thread", name="gone")(len)("abc")
    del blocked.tasks["gone"]
    gate.open()
    assert (handle.wait(LONG), handle.state) == (True, State.FAILED)


# --- what is refused


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"durable": True}, "use the spooler"),
        ({"spooler": "/a"}, "is for the spooler"),
        ({"mule": 1}, "is for the mule"),
        ({"working_dir": "/"}, "stays where it is"),
        ({"timeout": 5}, "make the function a coroutine"),
    ],
)
def test_what_a_thread_cannot_do_is_refused_when_it_is_declared(task, options, remedy):
    with pytest.raises(InvalidTask, match=remedy):
        task(**options)(lambda: None)


def test_the_time_of_a_coroutine_can_be_limited(task):
    @task(timeout=0.05)
    async def send():
        await asyncio.sleep(LONG)

    with pytest.raises(TaskTimeout):
        send().result(LONG)


def test_where_auto_means_threads_what_must_not_be_lost_is_refused(make):
    send = make(executor="thread").task(durable=True)(lambda: None)
    with pytest.raises(SubmitError, match="use the spooler"):
        send()


class Signalled(Server):
    """Gets a signal, once, while the first job has threads started."""

    signals = (signal.SIGUSR1,)

    def at_exit(self, action, **more):
        signals, self.signals = self.signals, ()
        for number in signals:
            signal.raise_signal(number)
        super().at_exit(action, **more)


def test_a_signals_handler_may_submit_while_its_thread_starts_the_pool(tmp_path):
    app = App(Signalled(None), store="memory://", dead_dir=str(tmp_path), thread_grace=0)
    send = app.task(executor="thread")(lambda number: number)
    handles = []
    before = signal.signal(signal.SIGUSR1, lambda *_: handles.append(send.using(at=LATER)(1)))
    try:
        app.task(executor="thread")(lambda: None)().wait(LONG)
        assert [job.id for job in app.jobs()] == [handles[0].id]
    finally:
        signal.signal(signal.SIGUSR1, before)
        app._thread.stop()


def test_where_no_thread_can_be_started_the_caller_is_told(app, task, monkeypatch):
    def start(_self):
        raise RuntimeError("can't start new thread")

    send = task()(lambda: 42)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(SubmitError, match="can't start new thread"):
            send()
    assert send().result(LONG) == 42


# --- the fallback


def test_without_uwsgi_auto_runs_at_once_by_default(make):
    with pytest.warns(RuntimeWarning, match="at once"):
        handle = make().task(threading_id)()
    assert handle.result(0) == threading.get_ident()


@pytest.mark.parametrize("executor", ["auto", "spooler", "mule"])
def test_with_the_fallback_to_threads_it_runs_in_the_background(make, executor):
    handle = make(fallback="thread").task(executor=executor)(threading_id)()
    assert handle.result(LONG) != threading.get_ident()


def test_what_must_not_be_lost_runs_at_once_all_the_same(make):
    app = make(fallback="thread")
    with pytest.warns(RuntimeWarning, match="at once"):
        handle = app.task(durable=True)(threading_id)()
    assert handle.result(0) == threading.get_ident()


# --- the end


def test_after_the_end_no_job_is_taken(app, task):
    send = task()(lambda: None)
    send().wait(LONG)
    app._thread.stop()
    with pytest.raises(SubmitError, match="about to end"):
        send()


def test_the_end_comes_once(app, task):
    ended = []
    app._thread.ended = lambda: ended.append(1)
    task()(lambda: None)().wait(LONG)
    app._thread.stop()
    app._thread.stop()
    app._thread.finish()
    assert ended == [1]


def test_the_threads_end_with_their_pool(make):
    app, before = make(threads=2), set(threading.enumerate())
    app.task(executor="thread", at=LATER)(len)("a")
    mine = [one for one in threading.enumerate() if one not in before]
    assert len(mine) >= 3
    app._thread.stop()
    until(lambda: all(one.name in ENDING for one in mine if one.is_alive()))


def test_what_was_due_has_run_and_what_was_not_is_a_dead_letter(make):
    app, ran = make(threads=1, thread_grace=LONG), []
    note = app.task(executor="thread", name="note")(ran.append)
    handles = [note(number) for number in range(20)]
    late = note.using(at=LATER)(99)
    app._thread.stop()
    assert (ran, late.state) == (list(range(20)), State.FAILED)
    assert all(handle.state is State.SUCCEEDED for handle in handles)
    assert [letter.id for letter in app.dead.list()] == [late.id]


def test_a_retry_that_is_due_later_is_not_waited_for(make):
    app = make(thread_grace=LONG)

    @app.task(executor="thread", name="send", retry=Retry(attempts=2, delay=3600))
    def send():
        raise OSError

    handle = send()
    until(lambda: handle.state is State.RETRYING)
    began = time.monotonic()
    app._thread.stop()
    assert time.monotonic() - began < LONG
    assert [letter.id for letter in app.dead.list()] == [handle.id]


def test_what_still_runs_when_the_grace_is_over_is_a_dead_letter(blocked):
    waiting = blocked.task(executor="thread", name="waiting")(len)("abc")
    blocked._thread.stop()
    letters = {letter.task: letter.error for letter in blocked.dead.list()}
    assert "while it ran" in letters["blocking"]
    assert "before it could run" in letters["waiting"]
    assert waiting.wait(0) is True


def test_who_hurries_cuts_the_grace_short(make, gate):
    app = make(threads=1, thread_grace=LONG)
    hold = app.task(executor="thread", name="hold")(gate.hold)
    hold()
    gate.wait()
    began = time.monotonic()
    app._thread.hurry()
    app._thread.finish()
    app._thread.stop()
    assert time.monotonic() - began < LONG
    assert [letter.task for letter in app.dead.list()] == ["hold"]


def test_a_job_that_comes_while_the_doors_are_closed_is_refused_or_kept(make):
    app = make(threads=2)
    send = app.task(executor="thread", name="send")(lambda: None)
    send().wait(LONG)
    taken, refused = [], []

    def submit():
        for _ in range(5000):
            try:
                taken.append(send())
            except SubmitError:
                refused.append(1)
                return

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(taken) > 100)
    app._thread.stop()
    for thread in threads:
        thread.join()
    assert all(handle.wait(LONG) for handle in taken)


# --- forks


def in_a_child(action):
    """Run *action* in a fork of this process; is what it returns true?"""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LONG)
        result = False
        with contextlib.suppress(BaseException):
            result = action()
        os._exit(0 if result else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_has_none_of_the_jobs_of_its_parent_and_runs_its_own(blocked, gate):
    ran = []
    note = blocked.task(executor="thread", name="note")(ran.append)
    handle = note("parent's")

    def child():
        nothing = blocked.jobs() == [] and blocked.read(handle.id) is None
        own = note("child's").wait(LONG)
        return nothing and own and ran == ["child's"]

    assert in_a_child(child)
    gate.open()
    assert (handle.wait(LONG), ran) == (True, ["parent's"])


def test_a_child_does_not_wait_for_a_job_of_its_parent(blocked):
    handle = blocked.task(executor="thread", name="waiting")(len)("abc")

    def child():
        with pytest.raises(ResultNotKept, match="forked"):
            handle.wait(LONG)
        return handle.cancel() is False

    assert in_a_child(child)


def test_a_child_can_submit_though_a_lock_was_held_when_it_was_forked(task, app):
    double = task()(lambda one: one * 2)
    pid = os.getpid()
    lock = app._thread._starting.setdefault(pid, threading.Lock())
    with lock:
        assert in_a_child(lambda: double(21).result(LONG) == 42)


def test_a_child_can_submit_though_the_locks_of_the_pool_were_held(task, app):
    double = task()(lambda one: one * 2)
    assert double(1).result(LONG) == 2
    double.using(at=LATER)(1)
    pool = app._thread._pool
    held, done = threading.Event(), threading.Event()

    def hold():
        with pool._changes._lock, pool._delays._changed:
            held.set()
            done.wait(LONG)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(LONG)
    child = in_a_child(
        lambda: double(21).result(LONG) == 42 and double.using(at=SOON)(4).result(LONG) == 8
    )
    done.set()
    holder.join()
    assert child


def test_a_coroutine_runs_in_a_child_though_the_loops_lock_was_held(task):
    from uwsgi_tasks import loop

    async def double(one):
        await asyncio.sleep(0)
        return one * 2

    send = task()(double)
    with loop._starting.setdefault(os.getpid(), threading.Lock()):
        assert in_a_child(lambda: send(21).result(LONG) == 42)


# --- idleness


def test_a_pool_that_has_nothing_to_do_does_nothing(make):
    app = make()
    app.task(executor="thread")(lambda: None)().wait(LONG)
    app.task(executor="thread", name="later", at=LATER)(lambda: None)()
    began = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - began < 0.2
