"""What an application's tests use, without pytest's help."""

import threading
import time
import unittest
from datetime import UTC, datetime, timedelta
from unittest.mock import ANY, call

import pytest

from uwsgi_tasks import (
    SPOOL_IGNORE,
    SPOOL_RETRY,
    App,
    Job,
    Retry,
    RetryTaskException,
    State,
    SubmitError,
    get_current_task,
)
from uwsgi_tasks.model import Result
from uwsgi_tasks.server import Server
from uwsgi_tasks.spool_file import bury
from uwsgi_tasks.testing import CapturedJob, capture_tasks, eager_tasks, queue_tasks
from uwsgi_tasks.testing.queued import Queue

HOUR = timedelta(hours=1)


@pytest.fixture
def app(tmp_path):
    return App(dead_dir=str(tmp_path / "dead"))


@pytest.fixture
def ran():
    """What the task of the test did, in its order."""
    return []


@pytest.fixture
def send(app, ran):
    @app.task(name="shop.send")
    def send(user_id, *, polite=True):
        ran.append(user_id)
        return f"sent {user_id}"

    return send


@pytest.fixture
def other(app, ran):
    @app.task(name="shop.other")
    def other(number=0):
        ran.append(-number)

    return other


@pytest.fixture
def captured(app):
    with capture_tasks(app) as captured:
        yield captured


@pytest.fixture
def queued(app):
    with queue_tasks(app) as queued:
        yield queued


def said(assertion, *args, **kwargs):
    """The words of an assertion that fails."""
    with pytest.raises(AssertionError) as caught:
        assertion(*args, **kwargs)
    return str(caught.value)


# --- captured


def test_what_is_captured_does_not_run(send, captured, ran):
    send(42)
    assert (len(captured), ran) == (1, [])


def test_a_call_is_found_by_its_arguments(send, captured):
    send(1)
    send(42)
    assert captured.assert_submitted(send, 42).args == (42,)


def test_a_call_is_found_however_its_arguments_are_written(send, captured):
    send(42)
    captured.assert_submitted(send, user_id=42)
    captured.assert_submitted(send, 42, polite=True)


def test_arguments_are_compared_by_what_stands_in_the_test(send, captured):
    send(0.1 + 0.2, polite=object)
    captured.assert_submitted(send, pytest.approx(0.3), polite=ANY)


def test_without_arguments_any_will_do(send, captured):
    send(42)
    captured.assert_submitted(send)
    assert [job.args for job in captured.of(send)] == [(42,)]


def test_calls_compare_to_those_of_mock(send, other, captured):
    send(1)
    other()
    send(2, polite=False)
    assert captured.calls(send) == [call(1), call(2, polite=False)]
    assert captured.calls(other) == [call()]


def test_options_are_given_as_they_are_in_a_call(send, captured):
    send.using(at=HOUR, priority=3)(42)
    captured.assert_submitted(send.using(priority=3), 42)
    captured.assert_submitted(send.using(at=HOUR, priority=3), 42)
    captured.assert_not_submitted(send.using(priority=4), 42)
    captured.assert_not_submitted(send.using(at=2 * HOUR))


def test_a_time_is_compared_as_a_time(send, captured):
    noon = datetime(2031, 1, 1, 12, tzinfo=UTC)
    send.using(at=noon)(42)
    job = captured.assert_submitted(send.using(at=noon.timestamp()))
    assert job.at == noon


def test_an_argument_called_like_an_option_is_an_argument(app, captured):
    @app.task
    def send(priority):
        pass

    send(priority="high")
    captured.assert_submitted(send, priority="high")
    assert captured.jobs[0].priority is None


def test_what_does_not_travel_cannot_be_asserted(send, captured):
    with pytest.raises(ValueError, match="executor cannot be asserted"):
        captured.assert_submitted(send.using(executor="runtime"))


def test_a_name_that_the_function_does_not_know_is_no_reason_to_be_content(send, captured):
    with pytest.raises(TypeError, match="usr_id"):
        captured.assert_not_submitted(send, usr_id=42)


def test_a_plain_function_is_no_reason_to_be_content_either(send, captured):
    with pytest.raises(TypeError, match="is no task"):
        captured.assert_not_submitted(send.func)


def test_a_function_that_hides_what_it_takes_is_compared_as_it_is_called(app, captured):
    biggest = app.task(name="max")(max)
    biggest(1, 2)
    captured.assert_submitted(biggest, 1, 2)
    captured.assert_not_submitted(biggest, 2, 1)


def test_once_is_once(send, captured):
    send(1)
    send(1)
    send(2)
    captured.assert_submitted_once(send, 2)
    assert said(captured.assert_submitted_once, send, 1) == (
        "shop.send(1) was submitted 2 times, not once.\n"
        "Submitted:\n  shop.send(1)\n  shop.send(1)\n  shop.send(2)"
    )
    assert said(captured.assert_submitted_once, send, 3).startswith("shop.send(3) was not sub")


def test_a_failure_shows_what_was_submitted_instead(send, other, captured):
    send.using(at=HOUR, priority=3)(41, polite=False)
    other()
    assert said(captured.assert_submitted, send.using(priority=4), 42) == (
        "shop.send.using(priority=4)(42) was not submitted.\n"
        "Submitted:\n"
        "  shop.send.using(at=timedelta(seconds=3600), priority=3)(41, polite=False)\n"
        "  shop.other()"
    )


def test_a_failure_says_that_there_was_nothing(send, captured):
    assert said(captured.assert_submitted, send) == (
        "shop.send was not submitted.\nNothing was submitted."
    )


def test_a_failure_does_not_show_hundreds(send, captured):
    send.map(range(25))
    assert said(captured.assert_nothing_submitted).endswith("shop.send(19)\n  and 5 more")


def test_what_must_not_be_submitted_is_shown(send, captured):
    captured.assert_not_submitted(send)
    captured.assert_nothing_submitted()
    send.using(at=datetime(2031, 1, 1, tzinfo=UTC))(42)
    captured.assert_not_submitted(send, 1)
    assert said(captured.assert_not_submitted, send, 42) == (
        "shop.send(42) was submitted.\n"
        "Submitted:\n  shop.send.using(at=2031-01-01 00:00:00+00:00)(42)"
    )


def test_a_captured_job_compares_and_prints_as_its_call(send, captured):
    send.using(priority=2)(42)
    (job,) = captured
    assert job == CapturedJob(task="shop.send", args=(42,), priority=2, job=job.job)
    assert repr(captured) == "<SubmittedTasks [shop.send.using(priority=2)(42)]>"


def test_how_long_a_job_may_wait_is_shown_as_it_is_given():
    job = Job("1", "shop.send", submitted_at=100.0, expires_at=160.0)
    assert repr(CapturedJob.of(job)) == "shop.send.using(expires=timedelta(seconds=60))()"


def test_an_argument_that_cannot_travel_fails_at_the_call(send, captured):
    with pytest.raises(SubmitError, match=r"argument 1, a _thread\.lock, cannot be pickled"):
        send(threading.Lock())
    assert captured.jobs == []


def test_arguments_that_the_function_does_not_take_fail_at_the_call(send, captured):
    with pytest.raises(TypeError, match=r"shop.send\(\): missing a required argument: 'user_id'"):
        send()


def test_what_the_caller_does_to_an_argument_later_is_not_seen(send, captured):
    given = [1]
    send(given)
    given.append(2)
    captured.assert_submitted(send, [1])


def test_lambdas_and_functions_of_the_test_are_tasks_too(app, captured):
    one, two = app.task(lambda number: number), app.task(lambda number: number)
    one(1)
    assert (captured.calls(one), captured.calls(two)) == ([call(1)], [])


def test_every_executor_is_captured(app, captured):
    for name in ("auto", "spooler", "mule", "runtime"):
        app.task(executor=name, name=name)(lambda: 1 / 0)()
    assert [job.task for job in captured] == ["auto", "spooler", "mule", "runtime"]


def test_what_threads_submit_is_captured(send, captured):
    threads = [threading.Thread(target=send, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.args[0] for job in captured) == list(range(20))


def test_what_was_captured_can_be_forgotten(send, captured):
    send(1)
    captured.clear()
    captured.assert_nothing_submitted()


# --- isolation


@pytest.mark.parametrize("divert", [capture_tasks, eager_tasks, queue_tasks])
@pytest.mark.filterwarnings("ignore:uWSGI is not running:RuntimeWarning")
def test_nothing_is_diverted_afterwards(divert, app, send, ran):
    def fail():
        with divert(app):
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011  any
        fail()
    with divert(app) as submitted:
        pass
    send(42)
    assert (ran, submitted.jobs) == ([42], [])


def test_the_inner_of_two_gets_the_calls(app, send):
    with capture_tasks(app) as outer:
        with capture_tasks(app) as inner:
            send(1)
        send(2)
    assert (outer.calls(send), inner.calls(send)) == ([call(2)], [call(1)])


def test_other_apps_are_left_alone(app, send, ran):
    with capture_tasks(App()) as captured, eager_tasks(app):
        send(42)
    assert (ran, captured.jobs) == ([42], [])


def test_in_a_unittest_it_is_one_line(app, send):
    class Case(unittest.TestCase):
        def setUp(self):
            self.tasks = self.enterContext(capture_tasks(app))

        def test_it(self):
            send(42)
            self.tasks.assert_submitted(send, 42)

    result = unittest.TestResult()
    Case("test_it").run(result)
    assert result.wasSuccessful()


# --- eager


def test_an_eager_task_has_run_when_the_call_returns(app, send, ran):
    with eager_tasks(app) as submitted:
        handle = send(42)
    assert (handle.result(), ran) == ("sent 42", [42])
    submitted.assert_submitted_once(send, 42)


def test_an_eager_task_raises_what_it_raises(app):
    broken = app.task(lambda: 1 / 0)
    with eager_tasks(app), pytest.raises(ZeroDivisionError):
        broken()


def test_an_eager_task_waits_for_nothing(app, ran):
    @app.task(retry=Retry(attempts=3, delay=3600))
    def flaky():
        ran.append(get_current_task().attempt)
        if len(ran) < 3:
            raise OSError

    with eager_tasks(app):
        flaky.using(at=HOUR)()
    assert ran == [1, 2, 3]


def test_what_an_eager_task_submits_is_noted_once(app, ran):
    @app.task
    def count(left):
        ran.append(left)
        if left:
            get_current_task()(left - 1)

    with eager_tasks(app) as submitted:
        count(2)
    assert (ran, submitted.calls(count)) == ([2, 1, 0], [call(2), call(1), call(0)])


# --- queued


def test_what_is_queued_runs_when_the_test_says_so(send, queued, ran):
    send(1)
    assert (ran, len(queued.waiting)) == ([], 1)
    (attempt,) = queued.run()
    assert (ran, queued.waiting) == ([1], [])
    assert (attempt.state, attempt.value, attempt.number) == (State.SUCCEEDED, "sent 1", 1)
    assert (queued.run(), queued.attempts) == ([], [attempt])


def test_what_has_run_was_submitted(send, queued):
    send(1)
    queued.run()
    queued.assert_submitted_once(send, 1)


def test_it_runs_in_the_order_of_submission(send, other, queued, ran):
    send.map([1, 2])
    other(3)
    send(4)
    queued.run()
    assert ran == [1, 2, -3, 4]


def test_a_more_important_one_is_first_and_one_without_a_priority_last(send, queued, ran):
    send(3)
    send.using(priority=10)(2)
    send.using(priority=1)(1)
    assert [job.args for job in queued.waiting] == [(1,), (2,), (3,)]
    queued.run()
    assert ran == [1, 2, 3]


def test_only_one_task_runs_if_the_test_wants_that(send, other, queued, ran):
    send(1)
    other(2)
    queued.run(other)
    assert (ran, [job.task for job in queued.waiting]) == ([-2], ["shop.send"])


def test_what_a_job_submits_runs_as_well(app, send, queued, ran):
    @app.task
    def both():
        send(1)
        send.using(at=HOUR)(2)

    both()
    queued.run()
    assert (ran, queued.waiting[0].args) == ([1], (2,))


def test_a_job_of_later_waits_until_then(send, queued, ran):
    send.using(at=HOUR)(1)
    assert queued.run() == []
    queued.advance(3590)
    assert queued.run() == []
    queued.advance(timedelta(seconds=10))
    queued.run()
    assert ran == [1]


def test_what_is_submitted_after_the_clock_was_put_forward_waits_from_then(send, queued):
    queued.advance(HOUR)
    send.using(at=HOUR)(1)
    queued.advance(timedelta(minutes=59))
    assert queued.run() == []
    queued.advance(timedelta(minutes=1))
    assert len(queued.run()) == 1


def test_all_run_at_their_times_and_the_clock_follows(send, queued, ran):
    before = queued.now
    send.using(at=2 * HOUR, priority=0)(2)
    send.using(at=HOUR)(1)
    send(0)
    queued.run_all()
    assert ran == [0, 1, 2]
    assert queued.now - before == pytest.approx(2 * HOUR, abs=timedelta(seconds=10))


def test_a_job_has_waited_as_long_as_the_clock_says(app, send):
    now, seen = time.time(), []

    class Fake:
        @staticmethod
        def perform(job, _payload, _index, *, bury):
            assert bury
            seen.append(job.expires_at - now)
            return Result(state=State.SUCCEEDED, attempt=1), None

    queue = Queue(app)
    queue.listen(Fake)
    queue.advance(30)
    queue.submit([Job("1", send.name, submitted_at=now, expires_at=now + 60)])
    queue.advance(40)
    queue.attempt(queue.take(None, moving=False))
    assert seen == [pytest.approx(20)]


def test_the_timeout_of_a_retry_goes_by_the_clock_of_the_queue(app, queued):
    @app.task(retry=Retry(attempts=0, delay=100, timeout=350))
    def send():
        raise OSError

    send()
    queued.run_all(check=False)
    assert [attempt.state for attempt in queued.attempts] == [State.RETRYING] * 3 + [State.FAILED]


def test_the_clock_does_not_go_backwards(queued):
    with pytest.raises(Exception, match="must not be negative"):
        queued.advance(-1)


def test_a_retry_waits_for_its_delay(app, queued, ran):
    @app.task(retry=Retry(attempts=3, delay=10))
    def flaky():
        ran.append(get_current_task().attempt)
        if len(ran) < 3:
            raise OSError("no")

    flaky()
    (attempt,) = queued.run()
    assert (attempt.state, str(attempt.error), ran) == (State.RETRYING, "no", [1])
    queued.advance(9)
    assert queued.run() == []
    queued.advance(1)
    queued.run()
    assert repr(queued.waiting).endswith("flaky#1(), attempt 3]")
    last = queued.run_all()[-1]
    assert (last.state, last.number, queued.failed) == (State.SUCCEEDED, 3, [])
    assert len(queued.jobs) == 1


def test_a_task_may_ask_for_another_attempt(app, queued, ran):
    @app.task
    def once_more():
        ran.append(1)
        if len(ran) == 1:
            raise RetryTaskException(count=2, timeout=60)

    once_more()
    queued.run()
    assert queued.run() == []
    queued.run_all()
    assert len(ran) == 2


def test_a_task_may_return_what_is_to_follow(app, queued, ran):
    answers = iter([SPOOL_RETRY, SPOOL_IGNORE])

    @app.task(spooler_return=True, retry_timeout=5)
    def poll():
        return next(answers)

    poll()
    states = [attempt.state for attempt in queued.run_all()]
    assert states == [State.RETRYING, State.CANCELLED]


def test_a_task_that_submits_itself_keeps_its_buffer(app, queued, ran):
    @app.task(at=timedelta(seconds=10))
    def count():
        current = get_current_task()
        current.buffer["count"] = current.buffer.get("count", 0) + 1
        if current.buffer["count"] < 3:
            current()
        ran.append(current.buffer["count"])

    count()
    queued.run_all()
    assert ran == [1, 2, 3]


def test_arguments_that_the_function_does_not_take_fail_where_the_test_runs_it(send, queued):
    send(1, 2)
    queued.assert_not_submitted(send, 1)
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        queued.run()


def test_a_failure_is_raised_where_the_test_runs_it(app, send, queued):
    broken = app.task(name="shop.broken", dead_letter=False)(lambda: 1 / 0)
    broken()
    send(1)
    with pytest.raises(ZeroDivisionError) as caught:
        queued.run()
    assert caught.traceback[-1].name == "<lambda>"
    assert [attempt.job.task for attempt in queued.failed] == ["shop.broken"]
    assert len(queued.waiting) == 1


def test_a_failure_is_kept_if_the_test_wants_to_see_it(app, send, queued, ran):
    broken = app.task(name="shop.broken", dead_letter=False)(lambda: 1 / 0)
    broken()
    send(1)
    queued.run(check=False)
    (failed,) = queued.failed
    assert repr(failed) == "<shop.broken(): failed (ZeroDivisionError('division by zero'))>"
    assert ran == [1]


def test_what_failed_is_a_dead_letter_if_it_would_be_one(app, queued):
    for name in ("kept", "lost"):
        app.task(name=name, dead_letter=name == "kept")(lambda: 1 / 0)()
    queued.run(check=False)
    assert len(queued.failed) == 2
    (letter,) = app.dead.list()
    assert (letter.task, letter.error) == ("kept", "ZeroDivisionError: division by zero")
    assert "Traceback" in letter.traceback


def test_what_ends_the_test_is_never_kept(app, queued):
    app.task(dead_letter=False)(lambda: pytest.fail("this test"))()
    with pytest.raises(pytest.fail.Exception, match="this test"):
        queued.run(check=False)


def test_a_task_that_submits_itself_for_ever_ends_the_test(app, queued):
    @app.task(name="shop.daily", at=timedelta(days=1))
    def daily():
        get_current_task()()

    daily()
    said_so = said(queued.run_all, limit=30)
    assert said_so.startswith("30 attempts were made, and there is more to run")
    assert said_so.endswith("Not run:\n  shop.daily.using(at=timedelta(days=1))()")


def test_as_many_attempts_as_the_limit_are_fine(send, queued, ran):
    send.map([1, 2, 3])
    queued.run(limit=3)
    assert ran == [1, 2, 3]


def test_a_buffer_that_cannot_travel_ends_the_job(app, queued):
    @app.task(retry=Retry(attempts=2), dead_letter=False)
    def spoilt():
        get_current_task().buffer["lock"] = threading.Lock()
        raise OSError

    spoilt()
    with pytest.raises(SubmitError, match="the buffer"):
        queued.run()


def test_a_job_has_its_arguments_for_itself(app, queued):
    @app.task(retry=Retry(attempts=2), dead_letter=False)
    def spoil(given):
        given.append(len(given))
        raise OSError(str(given))

    given = [0]
    spoil(given)
    attempts = queued.run_all(check=False)
    assert [str(attempt.error) for attempt in attempts] == ["[0, 1]", "[0, 1]"]
    assert (given, attempts[0].job.args) == ([0], ([0],))


def test_a_coroutine_runs_to_its_end(app, queued, ran):
    @app.task
    async def ping(host):
        ran.append(host)

    ping("here")
    queued.run()
    assert ran == ["here"]


def test_what_waits_at_the_end_is_an_error_if_the_test_is_strict(app, send):
    def leave():
        with queue_tasks(app, strict=True):
            send(42)

    assert said(leave) == "Not run:\n  shop.send(42)"


def test_a_strict_test_that_fails_fails_for_its_own_reason(app, send):
    def fail():
        with queue_tasks(app, strict=True):
            send(42)
            raise OSError("its own")

    with pytest.raises(OSError, match="its own"):
        fail()


def test_a_strict_test_that_runs_everything_is_content(app, send):
    with queue_tasks(app) as queued:
        queued.strict = True
        send(42)
        queued.run()


# --- results


def test_a_handle_knows_how_its_job_ended(send, queued):
    handle = send(42)
    assert handle.state is State.QUEUED
    queued.run()
    assert (handle.state, handle.result(timeout=0)) == (State.SUCCEEDED, "sent 42")


def test_a_handle_raises_what_its_job_raised(app, queued):
    handle = app.task(name="shop.broken")(lambda: 1 / 0)()
    queued.run(check=False)
    assert handle.state is State.FAILED
    with pytest.raises(ZeroDivisionError):
        handle.result(timeout=0)


def test_a_dead_letter_is_found_and_requeued(app, queued):
    app.task(name="shop.broken")(lambda: 1 / 0)()
    queued.run(check=False)
    (letter,) = app.dead.list()
    app.dead.requeue(letter.id)
    assert [job.task for job in queued.waiting] == ["shop.broken"]


def test_a_job_that_waits_too_long_is_dropped(send, queued, ran):
    send.using(expires=60)(42)
    queued.advance(61)
    (attempt,) = queued.run()
    assert (attempt.state, ran) == (State.CANCELLED, [])


def test_a_cancelled_job_does_not_run(send, queued, ran):
    handle = send(42)
    assert handle.cancel()
    queued.run()
    assert ran == []


def test_each_use_has_a_store_of_its_own(app, send):
    broken = app.task(name="shop.broken")(lambda: 1 / 0)
    for _ in range(2):
        with queue_tasks(app) as queued:
            broken()
            queued.run(check=False)
            assert app.dead.count() == 1


def test_nothing_is_looked_for_in_the_directory_of_a_spooler(tmp_path):
    app = App(spooler_dir=str(tmp_path))
    with queue_tasks(app) as queued:
        handle = app.task(name="shop.send")(lambda: 42)()
        queued.run()
        assert handle.result(timeout=0) == 42
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_a_call_wants_kept_is_an_option_of_it(send, captured):
    send.using(result_ttl=60)(42)
    captured.assert_submitted(send.using(result_ttl=60), 42)
    assert repr(captured.jobs) == "[shop.send.using(result_ttl=60.0)(42)]"


def test_dead_letters_that_others_have_left_are_not_of_the_test(tmp_path):
    app = App(Server(None), dead_dir=str(tmp_path))
    bury(tmp_path, {"id": "3f-1"}, b"x")
    with queue_tasks(app):
        assert app.dead.list() == []
    assert len(app.dead.list()) == 1
