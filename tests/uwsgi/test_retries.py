"""A task runs again as often as it may, not sooner than it should, and is kept when it fails."""

from itertools import pairwise

import pytest

SOURCE = """
    import os, sys
    from datetime import timedelta
    from functools import wraps
    from pathlib import Path
    from uwsgi_tasks import (
        SPOOL_IGNORE, SPOOL_OK, SPOOL_RETRY, Retry, RetryTaskException, default_app,
        get_current_task, task,
    )

    def run(name):
        current = get_current_task()
        current.buffer["runs"] = current.buffer.get("runs", 0) + 1
        record(name, left=current.retry_count, runs=current.buffer["runs"],
               attempt=current.attempt, timeout=current.retry_timeout)
        return current.buffer["runs"]

    def retries_when_it_fails(func):
        @wraps(func)
        def inner(*args, **kwargs):
            try:
                func(*args, **kwargs)
            except Exception:
                return SPOOL_RETRY
            return SPOOL_OK
        return inner

    # The example of the documentation.
    @task(executor="spooler", retry_count=3, retry_timeout=1)
    @retries_when_it_fails
    def wrapped(text):
        run("wrapped")
        raise Exception("Sorry, task failed!")

    @task(executor="spooler", retry_count=2)
    def purchase():
        run("purchase")
        raise RetryTaskException(timeout=1)

    @task(executor="spooler", retry_count=1)
    def counts_up():
        if run("counts_up") < 3:
            raise RetryTaskException(count=2)

    @task(executor="spooler", spooler_return=True)
    def until_it_is_there():
        return SPOOL_OK if run("until") == 3 else SPOOL_RETRY

    @task(executor="spooler", spooler_return=True)
    def ignores():
        run("ignores")
        return SPOOL_IGNORE

    @task(executor="spooler")
    def returns(value):
        run(f"returns {value}")
        return value

    @task(executor="spooler", retry=Retry(attempts=3, delay=0.5, backoff=2))
    def flaky(good_run):
        if run(f"flaky {good_run}") < good_run:
            raise ConnectionError("no answer")

    @task(executor="spooler", retry=Retry(attempts=0, on=ConnectionError))
    def picky(error):
        if run(f"picky {error.__name__}") < 3:
            raise error("no answer")

    @task(executor="spooler", retry_count=3)
    def fails():
        run("fails")
        raise LookupError("no such order")

    @task(executor="spooler", dead_letter=False)
    def fails_unkept():
        run("unkept")
        raise LookupError("nobody minds")

    @task(executor="spooler", retry_count=2, retry_timeout=timedelta(days=1))
    def tomorrow():
        run("tomorrow")
        return SPOOL_RETRY

    @task(executor="spooler", retry_count=5)
    def changes_its_mind():
        current = get_current_task()
        run("changes")
        current.retry_count = 2
        current.retry_timeout = timedelta(seconds=1)
        return SPOOL_RETRY

    @task(executor="spooler", retry_count=2)
    async def coroutine():
        run("coroutine")
        return SPOOL_RETRY

    class Missing(Exception):
        pass

    # One function, as a task of the spooler and of a mule, which hands its retries to the spooler.
    def both(name, **options):
        def declare(func):
            for executor in ("spooler", "mule"):
                task(executor=executor, name=f"{executor} {name}", **options)(func)
            return func
        return declare

    def call(executor, name, *args):
        return default_app.tasks[f"{executor} {name}"](*args)

    def log(name, ends=False):
        current = get_current_task()
        record(f"{current.name}{' ends' if ends else ''}", attempt=current.attempt,
               due=current.scheduled_at.timestamp())
        return current.attempt

    @both("grows", retry=Retry(attempts=5, delay=0.25, backoff=2))
    def grows():
        log("grows")
        log("grows", ends=True)
        raise ConnectionError("no answer")

    @both("until", retry=Retry(attempts=0, delay=0.25, until=lambda outcome: outcome.value == "c"))
    def until():
        return " abc"[log("until")]

    @both("breaks", retry=Retry(
        attempts=0, delay=0.25, until=lambda outcome: not isinstance(outcome.exception, Missing)
    ))
    def breaks():
        raise Missing if log("breaks") < 3 else PermissionError("401")

    @both("late", retry=Retry(attempts=0, delay=1, timeout=2.5))
    def late():
        log("late")
        raise ConnectionError("no answer")

    @both("judge", retry=Retry(attempts=9, until=lambda outcome: {}[outcome.value]))
    def judge():
        log("judge")
        return "code"
"""


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE, spoolers=2, mules=1)


def at_rest(server):
    """Wait until everything that is due has run."""
    server.wait_for(lambda: not server.waiting())


def gaps(events):
    return [after["time"] - before["time"] for before, after in pairwise(events)]


def dead_letters_of(server, name):
    return server.dead(f"app.{name}")


def test_spool_retry_runs_it_again_after_its_timeout_until_its_runs_are_used_up(server):
    server.call("wrapped('hello')")

    events = server.wait_for_events("wrapped", 3)
    assert [event["left"] for event in events] == [3, 2, 1]
    assert [event["runs"] for event in events] == [1, 2, 3]
    assert all(gap >= 1 for gap in gaps(events))
    assert server.wait_for(lambda: dead_letters_of(server, "wrapped"))
    at_rest(server)
    assert len(server.events("wrapped")) == 3


def test_retry_task_exception_asks_for_another_run_after_its_own_timeout(server):
    server.call("purchase()")

    events = server.wait_for_events("purchase", 2)
    assert [event["left"] for event in events] == [2, 1]
    assert gaps(events)[0] >= 1
    assert server.wait_for(lambda: dead_letters_of(server, "purchase"))


def test_the_count_of_a_retry_task_exception_replaces_that_of_the_task(server):
    server.call("counts_up()")

    events = server.wait_for_events("counts_up", 3)
    assert [event["left"] for event in events] == [1, 1, 1]


def test_without_a_count_spool_retry_is_obeyed_until_the_task_is_content(server):
    server.call("until_it_is_there()")

    events = server.wait_for_events("until", 3)
    assert all(gap >= 1 for gap in gaps(events))
    at_rest(server)
    assert not dead_letters_of(server, "until_it_is_there")


def test_spool_ignore_drops_the_job_with_one_line(server):
    server.call("ignores()")

    server.wait_for(lambda: "SPOOL_IGNORE" in server.log)
    at_rest(server)
    assert len(server.events("ignores")) == 1
    assert server.log.count("returned SPOOL_IGNORE") == 1
    assert not dead_letters_of(server, "ignores")


@pytest.mark.parametrize("value", [-1, 0, -2, None, True, 1.5, "'text'"])
def test_without_an_option_that_asks_for_it_what_a_task_returns_means_nothing(server, value):
    server.call(f"returns({value})")

    name = f"returns {value}".replace("'", "")
    server.wait_for_events(name)
    at_rest(server)
    assert len(server.events(name)) == 1
    assert not dead_letters_of(server, "returns")


def test_a_retry_waits_longer_each_time_and_ends_with_success(server):
    server.call("flaky(3)")

    events = server.wait_for_events("flaky 3", 3)
    assert [event["attempt"] for event in events] == [1, 2, 3]
    first, second = gaps(events)
    assert first >= 0.5
    assert second >= 1
    at_rest(server)
    assert not dead_letters_of(server, "flaky")


def test_a_retry_ends_with_a_dead_letter(server):
    server.call("flaky(4)")

    server.wait_for_events("flaky 4", 3)
    (letter,) = server.wait_for(lambda: dead_letters_of(server, "flaky"))
    assert letter.attempt == 3
    assert letter.error == "ConnectionError: no answer"


def test_a_retry_is_for_the_exceptions_that_it_names(server):
    server.call("picky(ConnectionError), picky(ValueError)")

    server.wait_for_events("picky ConnectionError", 3)
    (letter,) = server.wait_for(lambda: dead_letters_of(server, "picky"))
    assert letter.error == "ValueError: no answer"
    assert len(server.events("picky ValueError")) == 1


def test_a_failing_task_is_kept_and_logged_with_its_traceback(server):
    handle = server.call("fails().id")

    (letter,) = server.wait_for(lambda: dead_letters_of(server, "fails"))
    assert letter.id == handle
    assert letter.error == "LookupError: no such order"
    assert 'raise LookupError("no such order")' in letter.traceback
    assert letter.failed_at
    assert letter.worker.endswith(" spooler")
    server.wait_for(lambda: f"app.fails[{handle}] failed in attempt 1" in server.log)
    assert 'raise LookupError("no such order")' in server.log
    # retry_count is for those who ask.
    assert len(server.events("fails")) == 1


def test_a_failing_task_without_dead_letters_is_only_logged(server):
    server.call("fails_unkept()")

    server.wait_for(lambda: "nobody minds" in server.log)
    at_rest(server)
    assert not dead_letters_of(server, "fails_unkept")


def test_a_retry_timeout_of_a_day_is_a_day(server):
    server.call("tomorrow()")

    (event,) = server.wait_for_events("tomorrow")
    assert event["timeout"] == 86400
    server.wait_for(server.delayed)
    at_rest(server)
    assert len(server.events("tomorrow")) == 1


def test_a_task_may_change_how_often_and_when_it_runs_again(server):
    server.call("changes_its_mind()")

    events = server.wait_for_events("changes", 2)
    # It sets its count anew in each run, so that the next run always finds one less.
    assert events[1]["left"] == 1
    assert events[1]["timeout"] == 1
    assert gaps(events)[0] >= 1


def test_a_coroutine_may_ask_for_another_run(server):
    server.call("coroutine()")

    assert [event["left"] for event in server.wait_for_events("coroutine", 2)] == [2, 1]


# --- the same on a mule, which hands what must wait to the spooler


executors = pytest.mark.parametrize("executor", ["spooler", "mule"])


@executors
def test_the_waits_grow_from_the_second_one_on(server, executor):
    name = f"{executor} grows"
    server.call(f"call({executor!r}, 'grows')")

    assert server.wait_for(lambda: server.dead(name))
    ends = [event["time"] for event in server.events(f"{name} ends")]
    runs = server.events(name)
    assert [run["attempt"] for run in runs] == [1, 2, 3, 4, 5]
    waits = [run["due"] - end for end, run in zip(ends, runs[1:], strict=False)]
    # From the end of a run, which is noted a moment after the task has noted it.
    assert all(wait >= least for wait, least in zip(waits, (0.25, 0.25, 0.5, 1), strict=True)), (
        waits
    )
    assert all(run["time"] >= run["due"] for run in runs)


@executors
def test_it_runs_until_its_value_is_the_one(server, executor):
    name = f"{executor} until"
    server.call(f"call({executor!r}, 'until')")

    server.wait_for_events(name, 3)
    at_rest(server)
    assert [event["attempt"] for event in server.events(name)] == [1, 2, 3]
    assert not server.dead(name)


@executors
def test_it_runs_until_it_fails_in_another_way(server, executor):
    name = f"{executor} breaks"
    server.call(f"call({executor!r}, 'breaks')")

    server.wait_for_events(name, 3)
    at_rest(server)
    assert [event["attempt"] for event in server.events(name)] == [1, 2, 3]
    assert not server.dead(name)


@executors
def test_no_run_begins_later_than_the_timeout_allows(server, executor):
    name = f"{executor} late"
    server.call(f"call({executor!r}, 'late')")

    assert server.wait_for(lambda: server.dead(name))
    runs = server.events(name)
    assert all(run["due"] - runs[0]["time"] <= 2.5 for run in runs)
    assert 1 <= len(runs) <= 3


@executors
def test_a_predicate_that_raises_is_a_dead_letter_and_the_worker_goes_on(server, executor):
    name = f"{executor} judge"
    server.call(f"call({executor!r}, 'judge')")

    (letter,) = server.wait_for(lambda: server.dead(name))
    pid = server.events(name)[0]["pid"]
    assert letter.error == "PredicateFailed: Retry(until=) raised KeyError: 'code'"
    assert len(server.events(name)) == 1
    server.call(f"call({executor!r}, 'judge')")
    server.wait_for_events(name, 2)
    assert server.events(name)[1]["pid"] == pid or executor == "spooler"
