"""What every executor promises about what is kept of a job, and about its end."""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.conformance.conftest import ALL, carried
from tests.fakes import FakeUwsgi
from uwsgi_tasks import (
    SPOOL_RETRY,
    App,
    InvalidTask,
    ResultNotKept,
    Retry,
    State,
    SubmitError,
    TaskCancelled,
    TaskFailed,
    TasksError,
    TaskTimeout,
    get_current_task,
)
from uwsgi_tasks.codec import encode
from uwsgi_tasks.executors import load
from uwsgi_tasks.server import Server
from uwsgi_tasks.spool_file import bury, locked

SECRET, OTHER = "correct horse battery", "staple of another one"
TTL = 60


travels = carried(*(kind for kind in ALL if kind.travels))
"""A carrier whose jobs wait until somebody runs them."""
waits = carried(*(kind for kind in ALL if kind.waits))
"""A carrier whose jobs may wait between two attempts."""
delays = carried(*(kind for kind in ALL if load(kind.executor).supports_delay))
"""A carrier whose jobs may wait for a time."""
tracks = carried(*(kind for kind in ALL if load(kind.executor).tracks))
"""A carrier whose executor itself knows what waits, and takes it away."""
counts = carried(*(kind for kind in ALL if kind.counts))
"""A carrier that counts what it runs."""


def declared(carrier, value=None, **options):
    """A task that notes its runs, and returns or raises *value*; and the ids of its runs."""
    runs = []

    @carrier.task(**options)
    def send(*_args, **_kwargs):
        runs.append(get_current_task().id)
        if isinstance(value, BaseException):
            raise value
        return value

    return send, runs


def elsewhere(carrier, question):
    """Ask *question* in another process; in this one where no other would know the answer."""
    if not carrier.travels:
        return question()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.write(write, json.dumps(question()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)


# --- results


@pytest.mark.parametrize("value", [{"to": ["ä", b"\0", 1.5]}, None, False, SPOOL_RETRY])
def test_a_result_is_kept_for_whoever_knows_the_id(carrier, value):
    send, _ = declared(carrier, value, result_ttl=TTL)
    handle = send()
    carrier.work()
    assert (handle.result(5), carrier.app.job(handle.id).result(5)) == (value, value)


def test_a_record_says_where_and_when_a_job_ran(carrier):
    before = carrier.clock()
    send, _ = declared(carrier, 42, result_ttl=TTL)
    handle = send()
    carrier.work()
    record = handle.record
    assert (record.id, record.task, record.executor) == (
        handle.id,
        "conformance.send",
        carrier.executor,
    )
    assert (record.state, record.attempt) == (State.SUCCEEDED, 1)
    assert str(os.getpid()) in record.worker
    assert before <= record.submitted_at <= record.started_at <= record.ended_at <= carrier.clock()


def test_the_number_of_the_attempt_that_ended_is_kept(carrier):
    @carrier.task(result_ttl=TTL, retry=Retry(attempts=3))
    def send():
        if get_current_task().attempt < 3:
            raise OSError
        return "at last"

    handle = send()
    carrier.work()
    assert (handle.result(5), handle.record.attempt) == ("at last", 3)


def raised_by(handle):
    """Return what the call of *handle* raised, as whoever asks for the result gets it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  each test looks at it
        handle.result(5)
    return caught.value


def failed(carrier, error, **options):
    """Submit a task that raises *error*, and run it; return the handle of anybody."""
    send, runs = declared(carrier, error, result_ttl=TTL, **options)
    with contextlib.suppress(type(error)):
        send()
    carrier.work()
    return carrier.app.job(runs[0])


def test_an_exception_is_raised_where_the_result_is_asked_for(carrier):
    error = raised_by(failed(carrier, KeyError("no such host")))
    assert (type(error), error.args) == (KeyError, ("no such host",))


def test_an_exception_that_was_kept_brings_its_traceback_along(carrier):
    (note,) = raised_by(failed(carrier, KeyError("no such host"))).__notes__
    assert ("in send" in note, str(os.getpid()) in note) == (True, True)


def test_the_state_and_the_text_of_a_failure_are_kept(carrier):
    handle = failed(carrier, OSError("no such host"))
    assert (handle.state, handle.record.error) == (State.FAILED, "OSError: no such host")
    assert "no such host" in handle.record.traceback


class Locked(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class Demanding(Exception):
    def __init__(self, text, *, code):
        super().__init__(text)
        self.code = code


@pytest.mark.parametrize(
    "error", [Locked("no such host"), Demanding("no such host", code=3)], ids=["written", "read"]
)
def test_an_exception_that_cannot_travel_is_told_in_words(carrier, error):
    raised = raised_by(failed(carrier, error))
    assert type(raised) is TaskFailed
    assert "no such host" in str(raised.args[0])
    assert "in send" in raised.args[1]


def test_a_result_that_cannot_be_kept_is_a_clear_error_in_the_result(carrier):
    send, runs = declared(carrier, threading.Lock(), result_ttl=TTL)
    handle = send()
    carrier.work()
    found = carrier.app.job(handle.id)
    assert (found.state, len(runs), carrier.dead()) == (State.SUCCEEDED, 1, [])
    with pytest.raises(ResultNotKept, match=r"_thread\.lock, which cannot be kept"):
        found.result(5)


def test_a_result_is_forgotten_after_its_time(carrier):
    send, _ = declared(carrier, 42, result_ttl=TTL)
    handle = carrier.app.job(send().id)
    carrier.work()
    carrier.wait(TTL - 10)
    assert handle.result(5) == 42
    carrier.wait(20)
    with pytest.raises(ResultNotKept):
        handle.result(5)


def test_the_time_of_a_result_begins_when_the_job_has_ended(travels):
    send, _ = declared(travels, 42, result_ttl=TTL)
    handle = send()
    travels.clock.advance(2 * TTL)
    travels.work()
    assert handle.result(5) == 42


def test_one_call_may_keep_its_result(carrier):
    send, _ = declared(carrier, 42)
    kept = carrier.app.job(send.using(result_ttl=TTL)().id)
    lost = carrier.app.job(send().id)
    carrier.work()
    assert kept.result(5) == 42
    with pytest.raises(ResultNotKept):
        lost.result(5)


def test_a_setting_keeps_the_results_of_all_tasks_but_those_that_decline(carrier):
    carrier.configure(result_ttl=TTL)
    send, _ = declared(carrier, 42)
    kept, lost = send(), send.using(result_ttl=0)()
    carrier.work()
    assert carrier.app.job(kept.id).result(5) == 42
    assert lost.record is None


def test_of_a_map_each_call_has_a_result_of_its_own(carrier):
    @carrier.task(result_ttl=TTL)
    def double(number):
        return 2 * number

    handles = double.map(range(4))
    carrier.work()
    assert [carrier.app.job(handle.id).result(5) for handle in handles] == [0, 2, 4, 6]


def test_of_a_map_each_call_has_an_end_of_its_own(travels):
    @travels.task(result_ttl=TTL)
    def invert(number):
        return 1 / number

    handles = invert.map([1, 0, 2])
    travels.work()
    assert [handle.state for handle in handles] == [
        State.SUCCEEDED,
        State.FAILED,
        State.SUCCEEDED,
    ]


# --- states, and waiting for them


def test_a_job_that_waits_is_queued(travels):
    send, _ = declared(travels, result_ttl=TTL)
    assert (send().state, travels.app.job(send().id).state) == (State.QUEUED, State.QUEUED)


def test_a_job_that_runs_is_running(carrier):
    states = []

    @carrier.task(result_ttl=TTL)
    def send():
        job = get_current_task().id
        states.append(elsewhere(carrier, lambda: carrier.app.job(job).state))

    send()
    carrier.work()
    assert states == [State.RUNNING]


def test_a_job_sees_itself_run(carrier):
    states = []

    @carrier.task(result_ttl=TTL)
    def send():
        states.append(carrier.inside.job(get_current_task().id).state)

    send()
    carrier.work()
    assert states == [State.RUNNING]


def test_a_job_that_looks_at_what_runs_stays_locked(tracks):
    seen = []

    def is_locked():
        (path,) = (tracks.spool / name for name in tracks.uwsgi.spool_files())
        with locked(path) as file:
            return file is None

    @tracks.task
    def send():
        # From within the process that runs it; then from another one.
        app, job = tracks.inside, get_current_task().id
        seen.append((app.job(job).state, [one.id for one in app.jobs()], app.job(job).cancel()))
        seen.append(elsewhere(tracks, is_locked))

    handle = send()
    tracks.work()
    assert seen == [(State.RUNNING, [handle.id], False), True]


def test_a_job_that_waits_for_its_next_attempt_is_retrying(waits):
    send, runs = declared(waits, OSError(), result_ttl=TTL, retry=Retry(attempts=2, delay=30))
    handle = send()
    waits.work()
    assert (handle.state, len(runs)) == (State.RETRYING, 1)


def test_a_job_that_was_not_kept_is_known_to_have_failed_by_its_dead_letter(travels):
    send, _ = declared(travels, OSError())
    handle = travels.app.job(send().id)
    travels.work()
    assert handle.state is State.FAILED


def test_of_a_job_that_was_not_kept_nobody_knows_how_it_ended(carrier):
    send, _ = declared(carrier)
    handle = carrier.app.job(send().id)
    carrier.work()
    with pytest.raises(ResultNotKept):
        _ = handle.state


def test_who_waits_for_too_long_is_told(travels):
    send, _ = declared(travels, result_ttl=TTL)
    handle = send()
    assert not handle.wait(0.01)
    with pytest.raises(TimeoutError, match=handle.id):
        handle.result(0.01)


def test_waiting_ends_with_the_job(carrier):
    send, _ = declared(carrier, result_ttl=TTL)
    handle = send()
    carrier.work()
    assert handle.wait(5)


def test_one_can_wait_for_the_begin_of_a_job(carrier):
    begun = []

    @carrier.task(result_ttl=TTL)
    def send():
        handle = carrier.app.job(get_current_task().id)
        begun.append(elsewhere(carrier, lambda: handle.wait(5, until=State.RUNNING)))
        begun.append(elsewhere(carrier, lambda: handle.wait(0.01)))

    handle = send()
    if carrier.travels:
        assert not handle.wait(0.01, until=State.RUNNING)
    carrier.work()
    assert (begun, handle.wait(5, until=State.RUNNING)) == ([True, False], True)


# --- cancelling what has not begun


def test_a_cancelled_job_never_runs_and_the_others_do(travels):
    send, runs = declared(travels, result_ttl=TTL)
    handles = [send() for _ in range(3)]
    assert handles[1].cancel()
    travels.work()
    travels.wait(3600)
    assert runs == [handles[0].id, handles[2].id]


def test_a_cancelled_job_says_so(travels):
    send, _ = declared(travels, result_ttl=TTL)
    handle = send()
    handle.cancel()
    travels.work()
    assert handle.state is State.CANCELLED
    with pytest.raises(TaskCancelled):
        handle.result(5)


def test_anybody_can_cancel_a_job_by_its_id(travels):
    send, runs = declared(travels, result_ttl=TTL)
    job = send().id
    assert elsewhere(travels, lambda: travels.app.job(job).cancel())
    travels.work()
    assert (runs, travels.app.job(job).state) == ([], State.CANCELLED)


def test_a_job_that_nobody_keeps_is_cancelled_where_its_executor_knows_it(travels):
    send, runs = declared(travels)
    handle = send()
    known = load(travels.executor).tracks or not load(travels.executor).travels
    if known:
        assert handle.cancel()
    else:
        with pytest.raises(ResultNotKept, match="result_ttl="):
            handle.cancel()
    travels.work()
    assert len(runs) == (not known)


def test_one_call_of_a_map_is_cancelled_alone(travels):
    send, runs = declared(travels, result_ttl=TTL)
    handles = send.map(range(4))
    assert (handles[0].cancel(), handles[2].cancel()) == (True, True)
    travels.work()
    assert runs == [handles[1].id, handles[3].id]
    assert [handle.state.is_final for handle in handles] == [True] * 4
    assert [handle.state is State.CANCELLED for handle in handles] == [True, False, True, False]


def test_a_delayed_job_can_be_cancelled(delays):
    send, runs = declared(delays, result_ttl=TTL, at=timedelta(seconds=30))
    handle = send()
    assert handle.cancel()
    delays.wait(40)
    assert (runs, handle.state, delays.left()) == ([], State.CANCELLED, 0)


def test_a_delayed_call_of_a_map_is_cancelled_alone(delays):
    send, runs = declared(delays, result_ttl=TTL, at=timedelta(seconds=30))
    handles = send.map(range(3))
    assert handles[1].cancel()
    delays.wait(40)
    assert runs == [handles[0].id, handles[2].id]


def test_a_job_that_waits_for_its_next_attempt_can_be_cancelled(waits):
    send, runs = declared(waits, OSError(), result_ttl=TTL, retry=Retry(attempts=3, delay=30))
    handle = send()
    waits.work()
    assert handle.cancel()
    waits.wait(40)
    assert (len(runs), handle.state, waits.dead()) == (1, State.CANCELLED, [])


def test_what_has_ended_cannot_be_cancelled(carrier):
    send, _ = declared(carrier, 42, result_ttl=TTL)
    handle = send()
    carrier.work()
    assert not handle.cancel()
    assert not carrier.app.job(handle.id).cancel(kill=True)
    assert carrier.app.job(handle.id).result(5) == 42


def test_what_was_cancelled_twice_stays_cancelled(travels):
    send, runs = declared(travels, result_ttl=TTL)
    handle = send()
    handle.cancel()
    handle.cancel()
    travels.work()
    assert (runs, handle.state) == ([], State.CANCELLED)


# --- cancelling what runs, and its progress


def test_a_job_that_runs_is_asked_to_stop(carrier):
    seen = []

    @carrier.task(result_ttl=TTL)
    def send():
        task = get_current_task()
        seen.append(elsewhere(carrier, lambda: carrier.app.job(task.id).cancel()))
        seen.append(task.cancelled)
        raise TaskCancelled("as you wish")

    with contextlib.suppress(TaskCancelled):
        send()
    carrier.work()
    assert (seen, carrier.dead()) == ([False, True], [])


def test_a_job_may_ask_itself_to_stop(carrier):
    seen = []

    @carrier.task(result_ttl=TTL)
    def send():
        task = get_current_task()
        seen.extend([carrier.inside.job(task.id).cancel(), task.cancelled])

    send()
    carrier.work()
    assert seen == [False, True]


def test_a_job_that_runs_can_be_killed(carrier):
    runs, answers = [], []

    @carrier.task(result_ttl=TTL, retry=Retry(attempts=3))
    def send():
        job = get_current_task().id
        runs.append(job)
        kill = lambda: carrier.app.job(job).cancel(kill=True)  # noqa: E731
        killer = threading.Thread(target=lambda: answers.append(elsewhere(carrier, kill)))
        killers.append(killer)
        killer.start()
        long_enough()

    killers = []
    send()
    carrier.work()
    killers[0].join(15)
    assert (len(runs), answers, carrier.dead()) == (1, [True], [])
    assert carrier.app.job(runs[0]).state is State.CANCELLED


def test_a_job_may_kill_itself(tracks):
    runs = []

    @tracks.task
    def send():
        runs.append(1)
        tracks.inside.job(get_current_task().id).cancel(kill=True)
        runs.append(2)

    send()
    tracks.work()
    assert (runs, tracks.left(), tracks.dead()) == ([1], 0, [])


def test_a_job_that_stops_when_it_is_asked_to_is_cancelled(carrier):
    handle = failed(carrier, TaskCancelled("as you wish"), retry=Retry(attempts=3))
    assert handle.state is State.CANCELLED
    with pytest.raises(TaskCancelled, match="as you wish"):
        handle.result(5)


def test_nobody_has_asked_a_job_to_stop(carrier):
    seen = []

    @carrier.task(result_ttl=TTL)
    def send():
        seen.append(get_current_task().cancelled)

    send()
    carrier.work()
    assert seen == [False]


def test_a_request_to_stop_reaches_the_job_that_it_is_for(carrier):
    seen = []

    @carrier.task(result_ttl=TTL)
    def send(number):
        task = get_current_task()
        if number == 0:
            elsewhere(carrier, lambda: carrier.app.job(task.id).cancel())
        seen.append(task.cancelled)

    send(0)
    send(1)
    carrier.work()
    assert seen == [True, False]


def test_progress_is_seen_from_outside(carrier):
    seen = []

    @carrier.task(result_ttl=TTL)
    def send():
        task = get_current_task()
        look = lambda: carrier.app.job(task.id).progress  # noqa: E731
        seen.append(elsewhere(carrier, look))
        task.progress(10, 10)
        seen.append(elsewhere(carrier, look))

    send()
    carrier.work()
    assert [one and tuple(one) for one in seen] == [None, (10, 10)]


def test_progress_of_an_unknown_whole_is_seen_from_outside(carrier):
    seen = []

    @carrier.task(result_ttl=TTL)
    def send():
        task = get_current_task()
        task.progress(2.5)
        seen.append(elsewhere(carrier, lambda: carrier.app.job(task.id).progress))

    send()
    carrier.work()
    assert [tuple(one) for one in seen] == [(2.5, None)]


# --- what expires


def test_what_has_not_begun_when_it_expires_is_dropped(travels):
    send, runs = declared(travels, result_ttl=TTL, expires=timedelta(seconds=30))
    handle = send()
    travels.wait(40)
    assert (runs, travels.left(), travels.dead()) == ([], 0, [])
    assert (handle.state, "had expired" in handle.record.error) == (State.CANCELLED, True)
    with pytest.raises(TaskCancelled, match="had expired"):
        handle.result(5)


def test_what_begins_before_it_expires_runs(carrier):
    send, runs = declared(carrier, 42, expires=timedelta(seconds=30))
    send()
    carrier.wait(20)
    assert len(runs) == 1


def test_of_a_call_one_may_say_that_it_expires(travels):
    send, runs = declared(travels)
    send.using(expires=travels.clock() + 30)()
    handle = send()
    travels.wait(40)
    assert runs == [handle.id]


def test_of_a_map_all_calls_expire(travels):
    send, runs = declared(travels, result_ttl=TTL, expires=timedelta(seconds=30))
    handles = send.map(range(3))
    travels.wait(40)
    assert (runs, {handle.state for handle in handles}) == ([], {State.CANCELLED})


def test_a_retry_that_would_come_too_late_is_a_dead_letter_at_once(waits):
    send, runs = declared(
        waits,
        OSError("no such host"),
        retry=Retry(attempts=3, delay=50),
        expires=timedelta(seconds=30),
    )
    send()
    waits.work()
    assert [letter.error for letter, _ in waits.dead()] == ["OSError: no such host"]
    waits.wait(60)
    assert len(runs) == 1


def test_a_retry_that_was_asked_for_and_comes_too_late_is_a_dead_letter(waits):
    send, runs = declared(
        waits, SPOOL_RETRY, retry_count=3, retry_timeout=50, expires=timedelta(seconds=30)
    )
    send()
    waits.work()
    waits.wait(60)
    assert (len(runs), len(waits.dead()), waits.left()) == (1, 1, 0)


# --- what is unique


def test_a_second_call_returns_the_job_that_waits(travels):
    send, runs = declared(travels, unique="report")
    first = send(1)
    assert send(2).id == first.id
    travels.work()
    assert runs == [first.id]


def test_a_second_call_returns_the_job_that_runs(carrier):
    ids = []

    @carrier.task(unique="report")
    def send(depth=0):
        task = get_current_task()
        ids.append((task.id, send(depth + 1).id if depth < 3 else None))

    handle = send()
    carrier.work()
    assert ids == [(handle.id, handle.id)]


@pytest.mark.parametrize("how", ["succeeds", "fails", "drops out"])
def test_a_key_is_free_when_its_job_has_ended(carrier, how):
    value = {"succeeds": 42, "fails": OSError(), "drops out": TaskCancelled()}[how]
    send, runs = declared(carrier, value, unique="report")
    for _ in range(2):
        with contextlib.suppress(OSError, TaskCancelled):
            send()
        carrier.work()
    assert len(set(runs)) == 2


def test_a_key_is_free_when_its_job_was_cancelled(travels):
    send, runs = declared(travels, unique="report", result_ttl=TTL)
    first = send()
    assert first.cancel()
    second = send()
    travels.work()
    assert (second.id != first.id, runs) == (True, [second.id])


def test_a_key_is_free_when_its_job_has_expired(travels):
    send, runs = declared(travels, unique="report", expires=timedelta(seconds=30))
    send()
    travels.wait(40)
    second = send()
    travels.work()
    assert runs == [second.id]


def test_a_key_is_held_between_two_attempts(waits):
    send, runs = declared(waits, OSError(), unique="report", retry=Retry(attempts=2, delay=30))
    first = send()
    waits.work()
    assert send().id == first.id
    waits.wait(40)
    assert send().id != first.id
    assert runs == [first.id, first.id]


def test_a_key_is_free_when_its_job_could_not_be_submitted(carrier):
    send, runs = declared(carrier, unique="report")
    with pytest.raises(SubmitError):
        send(threading.Lock())
    handle = send()
    carrier.work()
    assert runs == [handle.id]


def test_a_key_is_held_for_as_long_as_its_job_waits_within_a_day(travels):
    send, _ = declared(travels, unique="report")
    first = send()
    travels.clock.advance(3600)
    assert send().id == first.id


@pytest.mark.parametrize(
    ("unique", "calls", "jobs"),
    [
        ("report", [((1,), {}), ((2,), {})], 1),
        (True, [((1,), {}), ((1,), {}), ((2,), {})], 2),
        (True, [((), {"a": 1, "b": 2}), ((), {"b": 2, "a": 1}), ((), {"a": 2, "b": 1})], 2),
        (lambda number, **_: f"report {number}", [((1,), {}), ((1,), {"b": 1}), ((2,), {})], 2),
    ],
    ids=["a text", "the arguments", "named arguments", "a function"],
)
def test_a_key_is_made_of_what_the_declaration_says(travels, unique, calls, jobs):
    send, runs = declared(travels, unique=unique)
    ids = {send(*args, **kwargs).id for args, kwargs in calls}
    travels.work()
    assert (len(ids), sorted(runs)) == (jobs, sorted(ids))


def test_the_same_key_of_two_tasks_is_two_keys(travels):
    runs = []
    first = travels.task(unique="report", name="conformance.a")(lambda: runs.append("a"))
    second = travels.task(unique="report", name="conformance.b")(lambda: runs.append("b"))
    first()
    second()
    travels.work()
    assert sorted(runs) == ["a", "b"]


def test_of_a_map_calls_with_one_key_are_one_job(travels):
    send, runs = declared(travels, unique=True)
    ids = [handle.id for handle in send.map([1, 2, 1])]
    travels.work()
    assert (ids[0] == ids[2], len(set(ids)), len(runs)) == (True, 2, 2)


@pytest.mark.parametrize("key", ["", 5, None])
def test_a_function_that_makes_no_key_is_an_error_at_the_call(carrier, key):
    send, runs = declared(carrier, unique=lambda: key)
    with pytest.raises(InvalidTask, match="a key is a text"):
        send()
    carrier.work()
    assert runs == []


# --- limits of time


def long_enough():
    """Be busy for far longer than a task of these tests may be."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(0.01)


def test_an_attempt_that_takes_too_long_is_a_failure(carrier):
    @carrier.task(timeout=0.05, result_ttl=TTL)
    def send():
        long_enough()

    (failure,) = carrier.failures(send)
    assert failure.startswith("TaskTimeout: it took longer than its timeout of 0.05 s")


def test_a_coroutine_that_takes_too_long_is_a_failure(carrier):
    @carrier.task(timeout=0.05)
    async def send():
        await asyncio.sleep(30)

    (failure,) = carrier.failures(send)
    assert failure.startswith("TaskTimeout")


def test_an_attempt_that_took_too_long_is_tried_again_by_the_rules(carrier):
    runs = []

    @carrier.task(timeout=0.5, retry=Retry(attempts=3, on=TaskTimeout), result_ttl=TTL)
    def send():
        runs.append(1)
        if len(runs) < 3:
            long_enough()
        return "in time"

    handle = send()
    carrier.work()
    assert (handle.result(5), len(runs)) == ("in time", 3)


def test_a_task_may_tidy_up_when_its_time_is_over(carrier):
    done = []

    @carrier.task(timeout=0.05)
    def send():
        try:
            long_enough()
        finally:
            done.append("tidied up")

    carrier.failures(send)
    assert done == ["tidied up"]


def test_who_is_in_time_is_left_alone(carrier):
    send, runs = declared(carrier, timeout=30)
    assert (carrier.failures(send), len(runs)) == ([], 1)


def test_each_call_of_a_map_has_its_own_time(travels):
    @travels.task(timeout=0.5, result_ttl=TTL)
    def send(number):
        if number == 1:
            long_enough()

    handles = send.map(range(3))
    travels.work()
    assert [handle.state for handle in handles] == [
        State.SUCCEEDED,
        State.FAILED,
        State.SUCCEEDED,
    ]


# --- dead letters


class Host:
    """Something that a spooler could not import: it stands in for one of an application."""

    def __init__(self, name):
        self.name = name


def dead_letters(carrier, *calls, error="no such host", **options):
    """A task that fails until it is told not to; its runs, and the letters of these calls."""
    runs, healed = [], []

    @carrier.task(**options)
    def send(*args, **kwargs):
        task = get_current_task()
        runs.append((task.id, task.attempt, args, kwargs))
        if not healed:
            raise OSError(error)
        return args

    for args in calls:
        send(*args)
    carrier.work()
    return send, runs, healed


def test_a_dead_letter_says_what_is_known_of_the_job(travels):
    before = travels.clock()
    _, runs, _ = dead_letters(travels, ("a",), retry=Retry(attempts=2))
    (letter,) = travels.app.dead.list()
    assert (letter.id, letter.task, letter.attempt) == (runs[0][0], "conformance.send", 2)
    assert (letter.executor, letter.error) == (travels.executor, "OSError: no such host")
    assert ("in send" in letter.traceback, str(os.getpid()) in letter.worker) == (True, True)
    assert before <= letter.failed_at <= travels.clock()


def test_dead_letters_are_listed_the_newest_first_and_page_by_page(travels):
    dead_letters(travels, *[(number,) for number in range(5)])
    dead = travels.app.dead
    args = lambda letters: [dead.job(letter).args for letter in letters]  # noqa: E731
    page = dead.list(limit=3)
    assert (args(page), args(dead.list(before=page[-1]))) == ([(4,), (3,), (2,)], [(1,), (0,)])


def test_dead_letters_are_counted_and_found_by_their_task(travels):
    dead_letters(travels, (), ())
    dead = travels.app.dead
    assert (dead.count(), dead.count("conformance.send"), dead.count("another")) == (2, 2, 0)
    assert (len(dead.list(task="conformance.send")), dead.list(task="another")) == (2, [])


def test_a_dead_letter_is_found_by_the_id_of_the_job(travels):
    _, runs, _ = dead_letters(travels, ())
    assert travels.app.dead.get(runs[0][0]).task == "conformance.send"
    assert travels.app.dead.get("nothing") is None


def test_the_arguments_of_a_dead_letter_are_shown_without_building_them(travels):
    dead_letters(travels, ("a", Host("example.org")))
    job = travels.app.dead.job(travels.app.dead.list()[0])
    assert (job.args[0], type(job.args[1]) is Host) == ("a", False)
    assert "Host" in repr(job.args[1])
    assert "example.org" in repr(job.args[1])


def test_a_requeued_job_runs_again_under_its_id_from_its_first_attempt(travels):
    _, runs, healed = dead_letters(travels, ("a",), retry=Retry(attempts=2))
    healed.append(True)
    (letter,) = travels.app.dead.list()
    handle = travels.app.dead.requeue(letter.id)
    travels.work()
    assert (handle.id, runs[2:]) == (letter.id, [(letter.id, 1, ("a",), {})])
    assert travels.dead() == []


def test_a_job_that_a_crash_has_left_in_a_later_attempt_is_requeued_from_its_first(travels):
    _, runs, _ = dead_letters(travels, ("a",), retry=Retry(attempts=2, timeout=60))
    ((letter, job),) = travels.dead()
    left = encode((job._replace(attempt=2, began_at=1.0),), travels.app.settings.signer)
    travels.app.dead.remove(letter.id)
    travels.app.dead.keep(replace(letter, payload=left))
    travels.app.dead.requeue(letter.id)
    travels.work()
    assert [number for _, number, *_ in runs[2:]] == [1, 2]


def test_a_requeued_job_that_fails_again_is_a_dead_letter_again(travels):
    _, runs, _ = dead_letters(travels, ("a",), retry_count=2)
    travels.app.dead.requeue(runs[0][0])
    travels.work()
    assert [(letter.id, job.retry_count) for letter, job in travels.dead()] == [(runs[0][0], 2)]


def test_the_result_of_a_requeued_job_takes_the_place_of_the_old_one(travels):
    _, runs, healed = dead_letters(travels, ("a",), result_ttl=TTL)
    healed.append(True)
    handle = travels.app.dead.requeue(runs[0][0])
    assert handle.state is State.QUEUED
    travels.work()
    assert handle.result(5) == ("a",)


def test_a_job_is_requeued_with_other_options(travels):
    _, runs, healed = dead_letters(travels, ("a",))
    healed.append(True)
    handle = travels.app.dead.requeue(runs[0][0], result_ttl=TTL)
    travels.work()
    assert handle.result(5) == ("a",)


def test_a_job_is_requeued_for_later_where_that_is_possible(travels):
    _, runs, _ = dead_letters(travels, ("a",))
    requeue = lambda: travels.app.dead.requeue(  # noqa: E731
        runs[0][0], at=timedelta(seconds=30)
    )
    if travels.waits:
        requeue()
        travels.wait(20)
        assert len(runs) == 1
        travels.wait(20)
        assert len(runs) == 2
    else:
        with pytest.raises(TasksError):
            requeue()
        assert len(travels.dead()) == 1


@pytest.mark.parametrize("option", [{"name": "other"}, {"timeout": 5}, {"nonsense": 1}])
def test_what_cannot_change_when_a_job_is_requeued_leaves_the_dead_letter(travels, option):
    _, runs, _ = dead_letters(travels, ("a",))
    with pytest.raises(TasksError, match=next(iter(option))):
        travels.app.dead.requeue(runs[0][0], **option)
    travels.work()
    assert (len(runs), len(travels.dead())) == (1, 1)


def test_a_job_that_had_expired_is_requeued_without_its_end(waits):
    _, runs, _ = dead_letters(
        waits, ("a",), retry=Retry(attempts=2, delay=50), expires=timedelta(seconds=30)
    )
    waits.wait(3600)
    waits.app.dead.requeue(runs[0][0])
    waits.work()
    assert len(runs) >= 2


def test_a_job_is_requeued_once(travels):
    _, runs, healed = dead_letters(travels, ("a",))
    healed.append(True)
    travels.app.dead.requeue(runs[0][0])
    with pytest.raises(TasksError, match="no dead letter"):
        travels.app.dead.requeue(runs[0][0])
    travels.work()
    assert len(runs) == 2


def test_a_dead_letter_that_could_not_be_submitted_stays(travels):
    _, runs, _ = dead_letters(travels, ("a",))
    travels.configure(secret=SECRET)
    with pytest.raises(TasksError, match="not signed"):
        travels.app.dead.requeue(runs[0][0])
    assert travels.app.dead.count() == 1


def test_a_dead_letter_is_removed_once(travels):
    _, runs, _ = dead_letters(travels, (), ())
    answers = [travels.app.dead.remove(runs[0][0]) for _ in range(2)]
    assert (answers, travels.app.dead.count()) == ([True, False], 1)


def test_a_unique_job_is_not_requeued_while_another_has_its_key(travels):
    send, runs, healed = dead_letters(travels, ("a",), unique="report")
    healed.append(True)
    other = send("b")
    with pytest.raises(TasksError, match=other.id):
        travels.app.dead.requeue(runs[0][0])
    travels.work()
    assert ([args for _, _, args, _ in runs], travels.app.dead.count()) == ([("a",), ("b",)], 1)


def test_a_unique_job_that_is_requeued_holds_its_key_again(travels):
    send, runs, healed = dead_letters(travels, ("a",), unique="report")
    healed.append(True)
    handle = travels.app.dead.requeue(runs[0][0])
    assert send("b").id == handle.id
    travels.work()
    assert [args for _, _, args, _ in runs] == [("a",), ("a",)]


# --- signatures


class Trap:
    """Notes that it was built of bytes."""

    sprung: list[int] = []  # noqa: RUF012  of all of them

    def __reduce__(self):
        return Trap.sprung.append, (1,)


@pytest.fixture
def trap():
    Trap.sprung.clear()
    return Trap()


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [(OTHER, SECRET, "signed with another secret"), (None, SECRET, "not signed")],
    ids=["another secret", "no secret"],
)
def test_what_strangers_wrote_is_a_dead_letter_that_was_never_unpickled(
    travels, trap, theirs, ours, said
):
    send, runs = declared(travels)
    travels.configure(secret=theirs)
    handle = send(trap)
    travels.configure(secret=ours)
    travels.work()
    (letter,) = travels.app.dead.list()
    assert (letter.id, letter.task, said in letter.error) == (handle.id, "conformance.send", True)
    assert (runs, Trap.sprung, travels.left()) == ([], [], 0)


def test_what_strangers_wrote_is_shown_and_still_not_unpickled(travels, trap):
    send, _ = declared(travels)
    travels.configure(secret=OTHER)
    send(trap)
    travels.configure(secret=SECRET)
    travels.work()
    (letter,) = travels.app.dead.list()
    travels.app.dead.job(letter)
    with pytest.raises(TasksError, match="another secret"):
        travels.app.dead.requeue(letter.id)
    assert Trap.sprung == []


def test_who_waits_for_what_strangers_wrote_is_told(travels):
    send, _ = declared(travels, result_ttl=TTL)
    travels.configure(secret=OTHER)
    handle = send()
    travels.configure(secret=SECRET)
    travels.work()
    assert handle.state is State.FAILED
    with pytest.raises(TasksError, match="another secret"):
        handle.result(5)


def test_an_old_secret_is_accepted_while_it_is_in_the_list(carrier):
    send, runs = declared(carrier)
    carrier.configure(secret=OTHER)
    handle = send()
    carrier.configure(secret=[SECRET, OTHER])
    second = send()
    carrier.work()
    assert runs == [handle.id, second.id]


def test_the_first_secret_of_a_list_signs(travels):
    send, runs = declared(travels)
    travels.configure(secret=[SECRET, OTHER])
    handle = send()
    travels.configure(secret=SECRET)
    travels.work()
    assert runs == [handle.id]


def test_retries_maps_and_results_are_signed_too(carrier):
    carrier.configure(secret=SECRET)

    @carrier.task(retry=Retry(attempts=2), result_ttl=TTL)
    def send(number):
        if get_current_task().attempt == 1:
            raise OSError
        return number

    handles = send.map(range(3))
    carrier.work()
    assert [carrier.app.job(handle.id).result(5) for handle in handles] == [0, 1, 2]


def test_a_result_that_strangers_signed_is_not_unpickled(carrier, trap):
    carrier.configure(secret=OTHER)
    send, _ = declared(carrier, trap, result_ttl=TTL)
    handle = carrier.app.job(send().id)
    carrier.work()
    Trap.sprung.clear()
    carrier.configure(secret=SECRET)
    with pytest.raises(ResultNotKept, match="another secret"):
        handle.result(5)
    assert Trap.sprung == []


# --- on the disk


def test_a_durable_job_is_on_the_disk_or_refused(carrier, monkeypatch):
    if not load(carrier.executor).durable:
        with pytest.raises(InvalidTask, match="durable="):
            declared(carrier, durable=True)
        return
    synced, real = [], os.fsync
    send, runs = declared(carrier, durable=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file)), real(file)))
        send()
    (path,) = (carrier.spool / name for name in carrier.uwsgi.spool_files())
    assert [found.st_ino for found in synced] == [path.stat().st_ino, carrier.spool.stat().st_ino]
    carrier.work()
    assert len(runs) == 1


# --- counts


def counted(carrier, since):
    """Return how often the task ended in each way."""
    counts = Counter()
    for count in carrier.app.stats(since, task="conformance.send"):
        assert 0 <= count.slowest <= count.seconds
        counts[count.outcome] += count.runs
    return counts


def test_counts_add_up(carrier):
    @carrier.task(retry=Retry(attempts=2, on=OSError), result_ttl=TTL)
    def send(how):
        if how == "again" and get_current_task().attempt == 1:
            raise OSError
        if how == "fails":
            raise KeyError
        if how == "drops out":
            raise TaskCancelled

    began = carrier.clock()
    for how in ["succeeds", "succeeds", "again", "fails", "drops out"]:
        with contextlib.suppress(KeyError, TaskCancelled):
            send(how)
    carrier.work()
    expected = {"succeeded": 3, "retrying": 1, "failed": 1, "cancelled": 1}
    # Without a spooler's directory nobody counts.
    assert counted(carrier, began) == (expected if carrier.counts else {})


def test_what_never_ran_is_counted_too(counts):
    send, _ = declared(counts, result_ttl=TTL)
    began = counts.clock()
    send().cancel()
    send.using(expires=timedelta(seconds=30))()
    counts.wait(40)
    assert counted(counts, began) == {"cancelled": 2}


def test_cancelled_calls_of_a_map_are_counted_once(counts):
    send, _ = declared(counts, result_ttl=TTL)
    began = counts.clock()
    handles = send.map(range(4))
    for handle in (handles[0], handles[2], handles[2]):
        assert handle.cancel()
    counts.work()
    assert counted(counts, began) == {"cancelled": 2, "succeeded": 2}


def test_counts_outlive_the_minute_that_they_were_made_in(counts):
    send, _ = declared(counts)
    began = counts.clock()
    for _ in range(3):
        send()
        counts.wait(60)
    found = counts.app.stats(began)
    assert (sum(one.runs for one in found), len({one.minute for one in found})) == (3, 3)


def test_counting_can_be_declined(counts):
    counts.configure(stats=False)
    send, _ = declared(counts)
    send()
    counts.work()
    assert counts.app.stats(counts.clock() - 60) == []


# --- a store that is away


def away(carrier):
    """Give *carrier* a store that cannot be reached; return what brings it back."""
    folder = carrier.folder / "mounted"
    folder.mkdir()
    carrier.configure(store=f"sqlite:///{folder}/store.sqlite3")
    gone = folder.rename(carrier.folder / "unmounted")
    return lambda: gone.rename(folder)


def test_a_job_whose_result_nobody_keeps_runs_all_the_same(carrier, caplog):
    away(carrier)
    send, runs = declared(carrier, 42, result_ttl=TTL)
    send()
    carrier.work()
    assert (len(runs), carrier.left()) == (1, 0)
    assert "could not be kept" in caplog.text


def test_a_store_that_comes_back_keeps_what_ends_then(carrier):
    come_back = away(carrier)
    send, _ = declared(carrier, 42, result_ttl=TTL)
    send()
    carrier.work()
    come_back()
    handle = send()
    carrier.work()
    assert carrier.app.job(handle.id).result(5) == 42


def test_a_unique_job_is_refused_while_the_store_is_away(carrier):
    away(carrier)
    send, runs = declared(carrier, unique="report")
    with pytest.raises(SubmitError, match="unique key"):
        send()
    carrier.work()
    assert runs == []


def test_a_dead_letter_waits_in_a_file_for_the_store_to_come_back(travels):
    come_back = away(travels)
    _, runs, healed = dead_letters(travels, ("a",))
    assert len(list((travels.spool / "dead").iterdir())) == 1
    come_back()
    (letter,) = travels.app.dead.list()
    assert (letter.id, letter.task) == (runs[0][0], "conformance.send")
    assert (letter.error, letter.attempt) == ("OSError: no such host", 1)
    assert "in send" in letter.traceback
    assert list((travels.spool / "dead").iterdir()) == []
    healed.append(True)
    travels.app.dead.requeue(letter.id)
    travels.work()
    assert [args for _, _, args, _ in runs] == [("a",), ("a",)]


def test_the_dead_letters_in_the_files_of_all_spoolers_are_found(tmp_path):
    spools = [tmp_path / "a", tmp_path / "b"]
    for path in spools:
        path.mkdir(mode=0o750)
        bury(path / "dead", {"id": path.name, "task": "conformance.send"}, b"")
    app = App(Server(FakeUwsgi(spoolers=[str(path) for path in spools])))
    assert {letter.id for letter in app.dead.list()} == {"a", "b"}
    assert [list((path / "dead").iterdir()) for path in spools] == [[], []]
