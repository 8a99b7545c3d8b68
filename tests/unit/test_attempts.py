"""Attempts that are made by hand, one per turn of a loop."""

import asyncio
import threading
from datetime import timedelta

import pytest

from uwsgi_tasks import (
    SPOOL_RETRY,
    App,
    Attempt,
    PredicateFailed,
    Retry,
    RetryTaskException,
    State,
    SubmitError,
    TasksError,
    get_current_task,
)

AGAIN, OK, FAILED = State.RETRYING, State.SUCCEEDED, State.FAILED


@pytest.fixture
def app(tmp_path):
    return App(dead_dir=str(tmp_path / "dead"))


@pytest.fixture
def declare(app):
    """Declare a function as a task with these options."""

    def declare(func, **options):
        return app.task(name="f", **options)(func)

    return declare


def fail(*_args):
    raise OSError("no such host")


def states(attempts):
    return [attempt.state for attempt in attempts]


def test_there_is_an_attempt_per_turn_of_the_loop(declare):
    runs = []
    task = declare(lambda: runs.append(1) or fail(), retry=Retry(attempts=3))
    turns = [(attempt.number, len(runs)) for attempt in task.attempts()]
    assert turns == [(1, 1), (2, 2), (3, 3)]


def test_who_leaves_the_loop_makes_no_further_attempt(declare):
    runs = []
    task = declare(lambda: runs.append(1), retry=Retry(until=lambda _outcome: False))
    for _ in task.attempts():
        break
    assert runs == [1]


def test_nothing_runs_before_the_loop_begins(declare):
    runs = []
    declare(runs.append).attempts(1)
    assert runs == []


def test_a_task_without_retry_makes_one_attempt(declare):
    task = declare(lambda left, *, right: left + right)
    assert list(task.attempts(1, right=2)) == [Attempt(number=1, state=OK, value=3)]


def test_a_task_without_retry_that_fails_makes_one_attempt(declare):
    (attempt,) = declare(fail).attempts()
    assert (attempt.state, type(attempt.exception), attempt.wait) == (FAILED, OSError, None)


def test_attempts_end_with_the_first_that_succeeds(declare):
    values = iter([None, None, 7, 8])
    retry = Retry(attempts=9, until=lambda outcome: outcome.value)
    made = list(declare(lambda: next(values), retry=retry).attempts())
    assert [(one.number, one.state, one.value) for one in made] == [
        *((1, AGAIN, None), (2, AGAIN, None), (3, OK, 7)),
    ]


def test_an_exception_that_is_success_is_shown(declare):
    retry = Retry(attempts=9, until=lambda outcome: isinstance(outcome.exception, OSError))
    (attempt,) = declare(fail, retry=retry).attempts()
    assert (attempt.state, type(attempt.exception)) == (OK, OSError)


def test_a_value_that_is_never_accepted_ends_with_an_error_that_says_so(declare):
    retry = Retry(attempts=2, until=lambda _outcome: False)
    first, last = declare(lambda: 7, retry=retry).attempts()
    assert (first.state, first.exception, first.value) == (AGAIN, None, 7)
    assert (last.state, type(last.exception), last.value) == (FAILED, TasksError, 7)
    assert "Retry(until=) does not accept" in str(last.exception)


@pytest.mark.parametrize(
    "retry",
    [Retry(on=lambda _error: 1 / 0), Retry(until=lambda _outcome: 1 / 0)],
    ids=["on", "until"],
)
def test_a_predicate_that_raises_ends_the_loop_without_raising(declare, retry):
    (attempt,) = declare(fail, retry=retry).attempts()
    assert (attempt.state, type(attempt.exception)) == (FAILED, PredicateFailed)


def test_each_says_how_long_to_sleep_and_nobody_sleeps(declare, sleeping_here):
    sleeping_here(lambda _: pytest.fail("it slept"))
    retry = Retry(attempts=6, delay=100, backoff=2)
    waits = [attempt.wait for attempt in declare(fail, retry=retry).attempts()]
    assert waits[-1] is None
    assert waits[:-1] == [pytest.approx(wait, abs=20) for wait in (100, 100, 200, 400, 800)]
    assert all(
        wait <= most for wait, most in zip(waits[:-1], (100, 100, 200, 400, 800), strict=True)
    )


def test_without_a_delay_there_is_nothing_to_sleep(declare):
    made = list(declare(fail, retry=Retry(attempts=2)).attempts())
    assert [attempt.wait for attempt in made] == [0.0, None]


def test_a_timeout_counts_from_the_first_attempt(declare, clock):
    made = []
    task = declare(fail, retry=Retry(attempts=0, delay=20, timeout=60))
    clock.advance(1000)
    for attempt in task.attempts():
        made.append(attempt.number)
        clock.advance(attempt.wait or 0)
    # By a clock that runs: the one at 60 s would be too late.
    assert made == [1, 2, 3]


def test_an_exception_of_the_task_may_ask_for_another_attempt(declare):
    def send():
        raise RetryTaskException(timeout=100)

    made = list(declare(send, retry_count=3).attempts())
    assert states(made) == [AGAIN, AGAIN, FAILED]
    assert made[0].wait == pytest.approx(100, abs=20)


def test_a_code_may_ask_for_another_attempt(declare):
    left = []

    def send():
        left.append(get_current_task().retry_count)
        return SPOOL_RETRY

    made = list(declare(send, retry_count=3).attempts())
    assert (left, states(made)) == ([3, 2, 1], [AGAIN, AGAIN, FAILED])


def test_the_current_task_is_known_in_it(declare):
    seen = []

    def send(*args):
        current = get_current_task()
        seen.append((current.id, current.attempt, args, current.buffer.setdefault("runs", [])))
        current.buffer["runs"].append(1)
        fail()

    list(declare(send, retry=Retry(attempts=2)).attempts(5))
    assert [(attempt, args) for _, attempt, args, _ in seen] == [(1, (5,)), (2, (5,))]
    assert seen[0][0] == seen[1][0]
    assert seen[1][3] == [1, 1]
    assert get_current_task() is None


def test_what_cannot_travel_may_be_an_argument(declare):
    lock, got = threading.Lock(), []
    list(declare(got.append).attempts(lock))
    assert got[0] is lock


def test_wrong_arguments_are_an_exception_of_the_attempt(declare):
    (attempt,) = declare(fail).attempts(nothing=1)
    assert (attempt.state, type(attempt.exception)) == (FAILED, TypeError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("retry", [None, Retry(on=BaseException)], ids=["once", "on all"])
def test_what_is_to_end_the_program_is_raised(declare, kind, retry):
    def end():
        raise kind

    with pytest.raises(kind):
        list(declare(end, retry=retry).attempts())


@pytest.mark.parametrize("kind", [GeneratorExit, asyncio.CancelledError, StopIteration])
def test_nothing_else_is_raised(declare, kind):
    def end():
        raise kind

    (attempt,) = declare(end).attempts()
    assert (attempt.state, type(attempt.exception)) == (FAILED, kind)


def test_a_coroutine_function_is_awaited(declare):
    async def send():
        await asyncio.sleep(0)
        return get_current_task().attempt

    retry = Retry(attempts=5, until=lambda outcome: outcome.value == 2)
    made = list(declare(send, retry=retry).attempts())
    assert [attempt.value for attempt in made] == [1, 2]


def refuses(*_args):
    raise SubmitError("no key")


@pytest.mark.parametrize(
    "given",
    [
        {"at": timedelta(days=1)},
        {"at": 4_000_000_000},
        {"unique": True},
        {"unique": "key"},
        {"unique": refuses},
        {"result_ttl": 60},
        {"expires": timedelta(days=1)},
        {"dead_letter": False},
    ],
    ids="-".join,
)
def test_an_option_of_the_journey_is_no_hindrance(declare, given):
    task = declare(lambda value: value, executor="spooler", **given)
    for _ in range(2):
        (attempt,) = task.attempts(5)
        assert (attempt.state, attempt.value) == (OK, 5)


def test_a_key_that_waits_elsewhere_is_not_touched(declare):
    runs = []
    task = declare(runs.append, unique="key", result_ttl=60)
    list(task.attempts(1))
    task(2)
    assert runs == [1, 2]


def test_what_fails_is_no_dead_letter(declare, app):
    list(declare(fail, retry=Retry(attempts=2)).attempts())
    assert app.dead.list() == []


def test_a_changed_copy_makes_its_attempts_by_its_own_options(declare):
    task = declare(lambda: SPOOL_RETRY).using(retry_count=2)
    assert states(task.attempts()) == [AGAIN, FAILED]
