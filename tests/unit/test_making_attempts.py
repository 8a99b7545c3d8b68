"""One attempt at one job."""

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from uwsgi_tasks import (
    SPOOL_IGNORE,
    SPOOL_OK,
    SPOOL_RETRY,
    Retry,
    RetryTaskException,
    SubmitError,
    attempts,
    calling,
    get_current_task,
)
from uwsgi_tasks.attempts import Worker
from uwsgi_tasks.codec import decode, encode
from uwsgi_tasks.current import Surroundings, alone
from uwsgi_tasks.errors import (
    NotKept,
    TaskCancelled,
    TaskNotFound,
    TasksError,
    TaskTimeout,
)
from uwsgi_tasks.model import DeadLetter, Job, State, Stop
from uwsgi_tasks.onion import Onion
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.signing import Signer
from uwsgi_tasks.spool_file import pack_raw, pack_variables, unpack
from uwsgi_tasks.task import Task, options
from uwsgi_tasks.times import END
from uwsgi_tasks.verdicts import decide

NOW = 1_700_000_000.0
OK, AGAIN, FAILED, DROPPED = State.SUCCEEDED, State.RETRYING, State.FAILED, State.CANCELLED

FIXED = Retry(attempts=3, delay=10)
AT_ONCE = Retry(attempts=3)
ASKED = RetryTaskException


# --- deciding: the outcome, what the job and the task say -> the state; the next run's delay and
# the runs that it has left


@pytest.mark.parametrize(
    ("outcome", "job", "given", "state", "wait", "left"),
    [
        # A value is a value.
        *[(v, {}, {}, OK, None, None) for v in (None, 0, -1, -2, "text")],
        (SPOOL_OK, {}, {"spooler_return": True}, OK, None, None),
        (None, {}, {"spooler_return": True}, OK, None, None),
        (7, {}, {"spooler_return": True}, OK, None, None),
        (False, {}, {"spooler_return": True}, OK, None, None),
        (-1.0, {}, {"spooler_return": True}, OK, None, None),
        (SPOOL_IGNORE, {}, {"spooler_return": True}, DROPPED, None, None),
        (SPOOL_IGNORE, {"retry_count": 3}, {"retry_count": 3}, OK, None, None),
        # SPOOL_RETRY, counted.
        (SPOOL_RETRY, {"retry_count": 3}, {"retry_count": 3}, AGAIN, None, 2),
        (SPOOL_RETRY, {"retry_count": 2}, {"retry_count": 3}, AGAIN, None, 1),
        (SPOOL_RETRY, {"retry_count": 1}, {"retry_count": 3}, FAILED, None, None),
        (SPOOL_RETRY, {"retry_count": 3, "retry_timeout": 5.0}, {"retry_count": 3}, AGAIN, 5, 2),
        # SPOOL_RETRY without a count: without a limit, but not without a pause.
        (SPOOL_RETRY, {}, {"spooler_return": True}, AGAIN, 1, None),
        (SPOOL_RETRY, {"attempt": 999}, {"spooler_return": True}, AGAIN, 1, None),
        (SPOOL_RETRY, {"retry_timeout": 5.0}, {"spooler_return": True}, AGAIN, 5, None),
        # With Retry, that counts.
        (SPOOL_RETRY, {"attempt": 2}, {"spooler_return": True, "retry": FIXED}, AGAIN, 10, None),
        (SPOOL_RETRY, {"attempt": 3}, {"spooler_return": True, "retry": FIXED}, FAILED, None, None),
        # RetryTaskException.
        (ASKED(), {"retry_count": 2}, {"retry_count": 2}, AGAIN, None, 1),
        (ASKED(), {"retry_count": 1}, {"retry_count": 2}, FAILED, None, None),
        (ASKED(), {"retry_count": 2, "retry_timeout": 5.0}, {"retry_count": 2}, AGAIN, 5, 1),
        (ASKED(timeout=10), {"retry_count": 2, "retry_timeout": 5.0}, {}, AGAIN, 10, 1),
        (ASKED(timeout=0), {"retry_count": 2, "retry_timeout": 5.0}, {}, AGAIN, None, 1),
        (ASKED(count=4), {"retry_count": 1}, {}, AGAIN, None, 3),
        (ASKED(count=4), {}, {}, AGAIN, None, 3),
        (ASKED(count=1), {"retry_count": 9}, {}, FAILED, None, None),
        (ASKED(count=0), {"retry_count": 9}, {}, FAILED, None, None),
        (ASKED(), {}, {}, FAILED, None, None),
        (ASKED(), {}, {"retry": FIXED}, AGAIN, 10, None),
        (ASKED(), {"attempt": 3}, {"retry": FIXED}, FAILED, None, None),
        (ASKED(timeout=7), {}, {"retry": FIXED}, AGAIN, 7, None),
        # Other exceptions: by Retry alone.
        (OSError(), {}, {}, FAILED, None, None),
        (OSError(), {"retry_count": 3}, {"retry_count": 3}, FAILED, None, None),
        (OSError(), {}, {"retry": AT_ONCE}, AGAIN, None, None),
        (OSError(), {}, {"retry": FIXED}, AGAIN, 10, None),
        (OSError(), {"attempt": 2}, {"retry": FIXED}, AGAIN, 10, None),
        (OSError(), {"attempt": 3}, {"retry": FIXED}, FAILED, None, None),
        (OSError(), {"attempt": 99}, {"retry": Retry(attempts=0)}, AGAIN, None, None),
        (OSError(), {}, {"retry": Retry(on=KeyError)}, FAILED, None, None),
        (OSError(), {}, {"retry": Retry(on=(KeyError, OSError))}, AGAIN, None, None),
        (OSError(), {"attempt": 2}, {"retry": Retry(delay=2, backoff=3)}, AGAIN, 2, None),
        (
            OSError(),
            {"attempt": 3},
            {"retry": Retry(attempts=9, delay=2, backoff=3)},
            AGAIN,
            6,
            None,
        ),
        (OSError(), {"retry_count": 2}, {"retry": AT_ONCE, "retry_count": 2}, AGAIN, None, 2),
        # What ends a process is not tried again unless it was asked for.
        (SystemExit(), {}, {"retry": FIXED}, FAILED, None, None),
        (KeyboardInterrupt(), {}, {"retry": FIXED}, FAILED, None, None),
        (SystemExit(), {}, {"retry": Retry(on=BaseException)}, AGAIN, None, None),
        # What was cancelled ends, whatever would be tried again.
        (TaskCancelled(), {}, {"retry": FIXED}, DROPPED, None, None),
        (TaskCancelled(), {"retry_count": 5}, {"retry_count": 5}, DROPPED, None, None),
        # An attempt that took too long has failed like others.
        (TaskTimeout(), {}, {}, FAILED, None, None),
        (TaskTimeout(), {}, {"retry": FIXED}, AGAIN, 10, None),
        (TaskTimeout(), {}, {"retry": Retry(on=TimeoutError)}, AGAIN, None, None),
        # Nothing is tried again that would have expired by then.
        (OSError(), {"expires_at": NOW + 10}, {"retry": FIXED}, AGAIN, 10, None),
        (OSError(), {"expires_at": NOW + 9}, {"retry": FIXED}, FAILED, None, None),
        (OSError(), {"expires_at": NOW}, {"retry": AT_ONCE}, AGAIN, None, None),
        (OSError(), {"expires_at": NOW - 1}, {"retry": AT_ONCE}, FAILED, None, None),
    ],
)
def test_what_follows_from_an_attempt(outcome, job, given, state, wait, left):
    error = outcome if isinstance(outcome, BaseException) else None
    value = None if error else outcome
    before = Job("1", "shop.send", ("me",), **job)
    verdict = decide(before, options(given), value, error, NOW)

    assert verdict.state is state
    following = verdict.following
    if state is AGAIN:
        assert (following.id, following.args, following.attempt) == (
            "1",
            ("me",),
            before.attempt + 1,
        )
        assert following.at == (None if wait is None else NOW + wait)
        assert following.retry_count == left
    else:
        assert following is None


# --- Retry: the number of the attempt, seconds since the first one began, and how it ended


def is_set(outcome):
    return outcome.value is not None


def missing(outcome):
    return not isinstance(outcome.exception, KeyError)


def never(_outcome):
    return False


MINUTE = Retry(attempts=0, delay=10, timeout=60)


@pytest.mark.parametrize(
    ("retry", "attempt", "since", "outcome", "state", "wait"),
    [
        # A value that until= accepts, or does not.
        (Retry(until=is_set), 1, 0, 0, OK, None),
        (Retry(until=is_set), 1, 0, None, AGAIN, None),
        (Retry(until=is_set, delay=5), 2, 0, None, AGAIN, 5),
        (Retry(until=is_set), 3, 0, None, FAILED, None),
        # An exception is an outcome as well.
        (Retry(until=is_set), 1, 0, OSError(), AGAIN, None),
        (Retry(until=missing), 1, 0, KeyError(), AGAIN, None),
        (Retry(until=missing), 1, 0, OSError(), OK, None),
        (Retry(until=missing), 1, 0, SystemExit(), FAILED, None),
        # What it does not accept is tried again if on= takes it.
        (Retry(until=never, on=KeyError), 1, 0, OSError(), FAILED, None),
        (Retry(until=never, on=KeyError), 1, 0, KeyError(), AGAIN, None),
        (Retry(until=never, on=KeyError), 1, 0, "value", AGAIN, None),
        (Retry(until=never), 1, 0, SystemExit(), FAILED, None),
        (Retry(on=lambda error: "404" in str(error)), 1, 0, OSError("404"), AGAIN, None),
        (Retry(on=lambda error: "404" in str(error)), 1, 0, OSError("401"), FAILED, None),
        # What was cancelled is not judged.
        (Retry(until=never), 1, 0, TaskCancelled(), DROPPED, None),
        (Retry(until=lambda _outcome: True), 1, 0, TaskCancelled(), DROPPED, None),
        # No limit.
        (Retry(attempts=0, delay=10, until=never), 10**6, 0, 1, AGAIN, 10),
        # No run begins later than its timeout allows, and on the dot is not later.
        (MINUTE, 1, 0, OSError(), AGAIN, 10),
        (MINUTE, 6, 50, OSError(), AGAIN, 10),
        (MINUTE, 6, 50.1, OSError(), FAILED, None),
        (MINUTE, 99, 9e9, OSError(), FAILED, None),
        (MINUTE, 99, 9e9, "value", OK, None),
        (Retry(attempts=0, timeout=0), 1, 0, OSError(), AGAIN, None),
        (Retry(attempts=0, timeout=0), 1, 0.1, OSError(), FAILED, None),
        (Retry(attempts=0, delay=61, timeout=60), 1, 0, OSError(), FAILED, None),
        (replace(MINUTE, until=never), 6, 50.1, "value", FAILED, None),
        # A request for another attempt is bound by it too, unless it counts for itself.
        (MINUTE, 6, 50.1, ASKED(), FAILED, None),
        (MINUTE, 6, 50.1, ASKED(timeout=5), AGAIN, 5),
        (MINUTE, 6, 50.1, ASKED(count=2), AGAIN, 10),
        # The waits grow from the second one on, to their ceiling.
        *[
            (
                *(Retry(attempts=9, delay=1, backoff=2, max_delay=5), attempt),
                *(0, OSError(), AGAIN, wait),
            )
            for attempt, wait in enumerate((1, 1, 2, 4, 5, 5), 1)
        ],
        (Retry(attempts=0, delay=1, backoff=2), 900, 0, OSError(), AGAIN, END - 1 - NOW),
    ],
)
def test_what_follows_by_the_rules_of_retry(retry, attempt, since, outcome, state, wait):
    error = outcome if isinstance(outcome, BaseException) else None
    job = Job("1", "shop.send", attempt=attempt, began_at=NOW - since)
    verdict = decide(job, options({"retry": retry}), None if error else outcome, error, NOW)

    assert verdict.state is state
    following = verdict.following
    assert (following is not None) is (state is AGAIN)
    if following is not None:
        assert following.at == (None if wait is None else NOW + wait)
        assert (following.attempt, following.began_at) == (attempt + 1, job.began_at)


@pytest.mark.parametrize(
    ("retry", "outcome", "reason"),
    [
        (Retry(attempts=1), OSError(), "attempt 1 was the last one"),
        # Both would end it.
        (Retry(attempts=1, delay=9, timeout=1), OSError(), "attempt 1 was the last one"),
        (
            *(Retry(attempts=0, delay=9, timeout=1), OSError()),
            "the next attempt would begin later than 1 s after the first one",
        ),
        (Retry(on=KeyError), OSError(), "Retry(on=) does not take it"),
        (
            *(Retry(attempts=1, until=never), None),
            "it returned None, which Retry(until=) does not accept; attempt 1 was the last one",
        ),
        (
            *(Retry(attempts=1, until=never), {"password": "x"}),
            (
                "it returned a value of type dict, which Retry(until=) does not accept; "
                "attempt 1 was the last one"
            ),
        ),
        (
            Retry(until=lambda _outcome: 1 / 0),
            1,
            "Retry(until=) raised ZeroDivisionError: division by zero",
        ),
        (
            Retry(on=lambda _error: 1 / 0),
            OSError(),
            "Retry(on=) raised ZeroDivisionError: division by zero",
        ),
    ],
)
def test_a_job_that_is_given_up_says_why(retry, outcome, reason):
    error = outcome if isinstance(outcome, BaseException) else None
    job = Job("1", "f", began_at=NOW)
    verdict = decide(job, options({"retry": retry}), None if error else outcome, error, NOW)
    assert (verdict.state, verdict.reason) == (FAILED, reason)


def test_the_wait_that_was_asked_for_holds_for_the_next_time_too():
    job = Job("1", "shop.send", retry_count=9)
    verdict = decide(job, options({}), None, RetryTaskException(timeout=7), NOW)
    assert verdict.following.retry_timeout == 7


@pytest.mark.parametrize(
    ("job", "reason"),
    [({}, "neither retry_count= nor retry="), ({"retry_count": 1, "attempt": 4}, "number 4, the")],
)
def test_a_request_that_is_refused_says_why(job, reason):
    verdict = decide(Job("1", "f", **job), options({}), None, RetryTaskException(), NOW)
    assert reason in verdict.reason


def test_a_retry_that_would_come_too_late_says_so():
    job = Job("1", "f", expires_at=NOW)
    verdict = decide(job, options({"retry": FIXED}), None, OSError(), NOW)
    assert verdict.reason == "it expires before it could be tried again"


def test_what_was_cancelled_says_how():
    verdict = decide(Job("1", "f"), options({}), None, TaskCancelled("by hand"), NOW)
    assert verdict.reason == "by hand"


# --- a worker


class Graves:
    """Keeps dead letters in a list; *full* ones take none."""

    full = False

    def __init__(self):
        self.kept = []

    def __call__(self, letter):
        if self.full:
            raise SubmitError("no space left")
        self.kept.append(letter)
        return "/dead/letter"

    @property
    def jobs(self):
        return [decode(letter.payload)[0] for letter in self.kept]


@pytest.fixture
def graves():
    return Graves()


class Books:
    """A ledger that keeps all that it is told in lists."""

    worker = "web1:4711 spooler"

    def __init__(self):
        self.ended, self.counted, self.begun = [], [], []
        self.traces, self.times = [], []
        self.cancelled, self.confirmed = set(), []

    def confirm(self, job):
        self.confirmed.append(job.id)

    def starts(self, job):
        self.begun.append(job)
        return job.id not in self.cancelled

    def ends(self, job, executor, result, *, trace="", started_at=None, is_ours=bool):
        assert is_ours(job)
        self.ended.append((job.id, executor, result.state, result.error))
        self.traces.append(trace)
        self.times.append(started_at)

    def count(self, task, outcome, seconds, now):
        assert seconds >= 0
        assert now > 0
        self.counted.append((task, outcome))


@pytest.fixture
def books():
    return Books()


class Fuse:
    """What uWSGI was told of the end of this process."""

    def __init__(self):
        self.told = []


@pytest.fixture
def fuse():
    return Fuse()


@pytest.fixture
def tasks():
    return {}


@pytest.fixture
def build(tasks, graves, books, fuse, home):
    """Make a worker with some things changed."""

    def build(*, tracks=True, asked=lambda _job: Stop.NOT, onion=None, **settings):
        def find(name):
            if name not in found:
                raise TaskNotFound(f"no task {name}")
            return found[name]

        found, chosen = {}, Settings(**settings)
        made = Worker(
            surroundings=Surroundings("spooler", lambda job: job, asked=asked),
            tasks=tasks,
            find=find,
            keep=graves,
            ledger=books,
            settings=lambda: chosen,
            limit=fuse.told.append,
            tracks=tracks,
            onion=onion or Onion(),
        )
        made.found = found
        return made

    return build


@pytest.fixture
def worker_of(build):
    return build()


class Anywhere:
    def check(self, task):
        pass


@pytest.fixture
def run(worker_of, tasks):
    """Declare a function as a task, and make one attempt at a call of it."""

    def run(func, *args, job=None, **given):
        tasks["shop.send"] = Task(func, options({"name": "shop.send", **given}), Anywhere())
        return worker_of.run(Job("3f2c", "shop.send", args, **(job or {})))

    return run


def fail(*_args):
    raise OSError("no such host")


def fail_at_length():
    raise OSError("no such host: web1\n\n  line 2\r\n")


def test_a_job_is_run_with_its_arguments(run):
    got = []
    assert run(lambda *args: got.append(args), 1, "two") is None
    assert got == [(1, "two")]


def test_a_task_that_is_not_known_yet_is_looked_for(worker_of):
    got = []
    worker_of.found["shop.send"] = Task(got.append, options({"name": "shop.send"}), Anywhere())
    worker_of.run(Job("1", "shop.send", (5,)))
    assert got == [5]


def test_a_job_that_fails_is_a_dead_letter_with_all_that_is_known(run, graves):
    run(fail, 1, job={"attempt": 2})
    (letter,) = graves.kept
    assert replace(letter, failed_at=0, traceback="", payload=b"") == DeadLetter(
        id="3f2c",
        task="shop.send",
        executor="spooler",
        attempt=2,
        failed_at=0,
        error="OSError: no such host",
        worker="web1:4711 spooler",
    )
    assert time.time() - 60 < letter.failed_at <= time.time()
    assert letter.traceback.startswith("Traceback")
    assert "in fail" in letter.traceback


def test_a_traceback_begins_in_the_task(run, graves):
    run(fail)
    assert calling.__file__ not in graves.kept[0].traceback


def test_a_dead_letter_holds_a_job_that_can_be_run_again(run, graves):
    run(fail, 1, job={"attempt": 3, "at": 5.0, "retry_count": 1})
    (job,) = graves.jobs
    assert (job.id, job.args, job.attempt, job.at, job.retry_count) == ("3f2c", (1,), 1, None, 3)


def test_a_failure_is_one_log_line_that_names_job_and_file(run, caplog):
    run(fail)
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("ERROR", "uwsgi_tasks.attempts")
    assert record.getMessage() == (
        "shop.send[3f2c] failed in attempt 1: OSError: no such host; it is kept in /dead/letter"
    )


def test_the_traceback_of_a_failure_begins_in_the_task_and_is_no_part_of_the_line(run, caplog):
    run(fail)
    (record,) = caplog.records
    shown = logging.Formatter().formatException(record.exc_info)
    assert shown.startswith("Traceback")
    assert ("in fail" in shown, calling.__file__ in shown) == (True, False)


@pytest.mark.parametrize("dead_letter", [True, False])
def test_an_error_of_many_lines_is_one_line_in_the_log(run, caplog, dead_letter):
    run(fail_at_length, dead_letter=dead_letter)
    run(fail_at_length, dead_letter=dead_letter, retry=Retry())
    assert len(caplog.records) == 2
    for record in caplog.records:
        assert "OSError: no such host: web1 line 2" in record.getMessage()
        assert len(record.getMessage().splitlines()) == 1


def test_a_line_carries_the_job_in_fields_of_its_own(run, caplog):
    run(fail, job={"attempt": 2})
    run(fail, retry=Retry())
    run(fail, dead_letter=False)
    run(lambda: SPOOL_IGNORE, spooler_return=True)
    found = [(one.task_name, one.job_id, one.attempt, one.executor) for one in caplog.records]
    assert found == [("shop.send", "3f2c", number, "spooler") for number in (2, 1, 1, 1)]


def test_bytes_that_are_no_job_have_a_line_with_the_same_fields(worker_of, caplog):
    worker_of.reject(b"no job\n", "of\nno use")
    (record,) = caplog.records
    assert record.getMessage() == (
        "no task: 7 bytes were not run: of no use; they are kept in /dead/letter"
    )
    assert (record.task_name, record.attempt, record.executor) == ("", 1, "spooler")
    assert record.job_id


def test_a_job_that_was_done_has_no_line(run, caplog):
    caplog.set_level("DEBUG")
    run(lambda: None)
    assert caplog.records == []


def test_a_log_line_never_shows_the_arguments(run, caplog):
    password = str(10**9 + 7)
    run(fail, password, retry=Retry())
    run(fail, password)
    assert len(caplog.records) == 2
    assert password not in caplog.text
    # What a handler sends that takes a record apart.
    assert password not in str([vars(record) for record in caplog.records])


def test_a_task_that_wants_no_dead_letter_is_logged_all_the_same(run, graves, caplog):
    run(fail, dead_letter=False)
    assert graves.kept == []
    (record,) = caplog.records
    assert record.getMessage() == (
        "shop.send[3f2c] failed in attempt 1: OSError: no such host; it is not kept"
    )
    assert "\nTraceback" in caplog.text
    assert calling.__file__ not in caplog.text


def test_a_job_that_is_tried_again_is_a_warning_without_a_traceback(run, caplog):
    following = run(fail, retry=Retry(delay=5))
    (record,) = caplog.records
    assert (following.attempt, record.levelname) == (2, "WARNING")
    assert record.getMessage() == (
        "shop.send[3f2c]: attempt 1 failed: OSError: no such host; the next one follows in 5.0 s"
    )
    assert "Traceback" not in caplog.text


def test_a_job_that_asks_for_another_attempt_is_no_failure_in_the_log(run, caplog):
    run(lambda: SPOOL_RETRY, job={"retry_count": 2}, retry_count=2)
    assert caplog.messages == ["shop.send[3f2c]: attempt 1 asked for another; the next one follows"]


def test_a_value_that_is_refused_is_not_shown_in_the_log(run, caplog):
    run(lambda: "secret", retry=Retry(until=lambda outcome: outcome.value == "ready"))
    (line,) = caplog.messages
    assert line == (
        "shop.send[3f2c]: attempt 1 returned what Retry(until=) does not accept; "
        "the next one follows"
    )


def test_a_job_that_is_dropped_is_one_log_line(run, graves, caplog):
    run(lambda: SPOOL_IGNORE, spooler_return=True)
    assert caplog.messages == ["shop.send[3f2c] is dropped: it returned SPOOL_IGNORE"]
    assert graves.kept == []


def test_a_request_that_is_refused_is_a_dead_letter_that_says_why(run, graves):
    run(lambda: SPOOL_RETRY, job={"retry_count": 1}, retry_count=1)
    assert graves.kept[0].error == (
        "TasksError: shop.send[3f2c]: it asked for another attempt after number 1, the last one"
    )


def test_a_task_that_no_longer_exists_is_a_dead_letter(worker_of, graves):
    assert worker_of.run(Job("1", "shop.gone")) is None
    assert graves.kept[0].error == "TaskNotFound: no task shop.gone"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_what_would_end_the_process_is_a_failure_of_the_task(run, graves, error):
    def end():
        raise error

    run(end)
    assert graves.kept[0].error.startswith(type(error).__name__)


def test_a_call_with_the_wrong_arguments_is_a_failure_of_the_task(run, graves):
    run(lambda: None, 1)
    assert graves.kept[0].error.startswith("TypeError: ")


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("not even a message")


@pytest.mark.parametrize(
    "error", [Speechless(), ValueError("half of a pair: \ud83d")], ids=["speechless", "surrogate"]
)
def test_an_error_whose_text_cannot_be_shown_is_a_failure_like_others(run, graves, error):
    def bad():
        raise error

    assert run(bad) is None
    assert graves.kept[0].error.startswith(type(error).__name__)


def test_what_a_task_has_made_of_its_arguments_does_not_keep_it_from_being_buried(run, graves):
    def spoil(given):
        given.append(threading.Lock())
        get_current_task().buffer["lock"] = threading.Lock()
        fail()

    run(spoil, [1])
    (letter,) = graves.kept
    assert letter.error == "OSError: no such host"
    assert "Its arguments could not be kept: " in letter.traceback
    assert "_thread.lock" in letter.traceback


class Unshowable:
    def __reduce__(self):
        raise RuntimeError("never")

    def __repr__(self):
        raise RuntimeError("nor this")


def test_an_argument_that_can_neither_be_pickled_nor_shown_is_no_hindrance(run, graves):
    def spoil():
        get_current_task().buffer["x"] = Unshowable()
        fail()

    run(spoil)
    assert graves.kept[0].error == "OSError: no such host"


def test_a_job_whose_dead_letter_cannot_be_written_is_not_given_up(run, graves):
    graves.full = True
    with pytest.raises(
        NotKept, match="no dead letter could be written: SubmitError: no space left"
    ):
        run(fail)


# --- where it runs


def test_a_job_runs_in_the_directory_of_its_caller(run, tmp_path):
    got = []
    run(lambda: got.append(Path.cwd()), job={"working_dir": str(tmp_path)})
    assert got == [tmp_path]


def test_a_directory_that_is_gone_is_no_reason_to_lose_the_job(run, home, caplog):
    got = []
    run(lambda: got.append(Path.cwd()), job={"working_dir": "/no/such/folder"})
    assert got == [home]
    assert "working_dir /no/such/folder: " in caplog.text


def test_the_current_task_is_there_while_it_runs_and_not_after(run):
    got = []
    run(lambda: got.append(get_current_task().id))
    assert (got, get_current_task()) == (["3f2c"], None)


def test_the_current_task_is_gone_after_a_failure_too(run):
    run(fail)
    assert alone.task is None


def test_what_a_task_changes_of_its_job_holds_for_the_next_attempt(run):
    def change():
        task = get_current_task()
        task.retry_timeout = 7
        task.buffer["done"] = 1
        raise RetryTaskException(count=5)

    following = run(change)
    assert (following.retry_timeout, following.buffer) == (7, {"done": 1})


@pytest.mark.parametrize(
    ("ready", "closed"), [(True, 1), (False, 0), (None, 0)], ids=["in use", "not set up", "bare"]
)
def test_the_connections_of_django_are_renewed_before_a_job(run, monkeypatch, ready, closed):
    calls = []
    database = SimpleNamespace(close_old_connections=lambda: calls.append(1))
    monkeypatch.setitem(sys.modules, "django.db", database)
    monkeypatch.delitem(sys.modules, "django.apps", raising=False)
    if ready is not None:
        apps = SimpleNamespace(apps=SimpleNamespace(ready=ready))
        monkeypatch.setitem(sys.modules, "django.apps", apps)
    run(lambda: None)
    assert len(calls) == closed


# --- coroutines


def test_a_coroutine_function_runs_to_its_end(run):
    got = []

    async def send(value):
        await asyncio.sleep(0)
        got.append(value)

    run(send, 5)
    assert got == [5]


def test_a_coroutine_that_fails_is_a_failure_like_others(run, graves):
    async def send():
        await asyncio.sleep(0)
        fail()

    run(send)
    assert graves.kept[0].error == "OSError: no such host"


def test_coroutines_of_a_process_share_one_loop(run):
    loops = []

    async def send():
        loops.append(asyncio.get_running_loop())

    run(send)
    run(send)
    assert loops[0] is loops[1]


def test_a_fork_makes_a_loop_of_its_own(run):
    async def send():
        await asyncio.sleep(0)
        return 0

    run(send)
    child = os.fork()
    if child == 0:
        os._exit(0 if run(send) is None else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- for a caller who waits


def perform(worker, job):
    return worker.perform(job, encode([job]))


def test_the_caller_who_waits_gets_the_value(worker_of):
    worker_of.found["f"] = Task(lambda: 42, options({"name": "f"}), Anywhere())
    result, following = perform(worker_of, Job("1", "f"))
    assert (result.state, result.attempt, result.value, following) == (OK, 1, 42, None)


def test_the_caller_who_waits_gets_the_exception_and_no_dead_letter(worker_of, graves):
    worker_of.found["f"] = Task(fail, options({"name": "f"}), Anywhere())
    result, _ = perform(worker_of, Job("1", "f"))
    assert (result.state, type(result.error), graves.kept) == (FAILED, OSError, [])


def test_the_caller_who_waits_is_told_why_no_more_attempts_are_made(worker_of):
    task = Task(lambda: SPOOL_RETRY, options({"name": "f", "retry_count": 1}), Anywhere())
    worker_of.found["f"] = task
    result, _ = perform(worker_of, Job("1", "f", retry_count=1))
    assert isinstance(result.error, TasksError)
    assert "f[1]: it asked for another attempt" in str(result.error)


# --- what is no job


def test_bytes_that_are_no_job_are_a_dead_letter_with_the_bytes(worker_of, graves, caplog):
    assert worker_of.decode(b"nonsense") == ()
    (letter,) = graves.kept
    assert (letter.payload, letter.task, letter.variables) == (b"nonsense", "", b"")
    assert letter.error.startswith("cut after 8 bytes")
    assert "8 bytes were not run: " in caplog.text
    assert "/dead/letter" in caplog.text


def test_bytes_that_are_jobs_are_given_back(worker_of):
    job = Job("1", "f")
    assert list(worker_of.decode(encode([job]))) == [job]


def test_bytes_that_could_not_be_kept_are_not_given_up(worker_of, graves):
    graves.full = True
    with pytest.raises(NotKept):
        worker_of.decode(b"nonsense")


def test_what_came_with_the_bytes_is_kept_too(worker_of, graves):
    worker_of.reject(b"", "nobody knows", {"ud_spool_func": "f"})
    (letter,) = graves.kept
    assert (letter.error, letter.payload) == ("nobody knows", b"")
    assert letter.variables == pack_variables({"ud_spool_func": "f"})


def test_a_job_can_be_buried_without_an_attempt(worker_of, graves):
    worker_of.bury(Job("1", "f", (1,)), "its process died 3 times")
    assert graves.kept[0].error == "TasksError: its process died 3 times"
    assert graves.jobs[0].args == (1,)


# --- what a task has done to its arguments


def again_of(worker_of, tasks, func, args=(), kwargs=None, *, jobs=None, index=0, **given):
    """Make an attempt at a job that can be read again; return the next one."""
    tasks["shop.send"] = Task(func, options({"name": "shop.send", **given}), Anywhere())
    jobs = jobs or [Job("3f2c", "shop.send", args, kwargs or {})]
    payload = encode(jobs)
    return worker_of.run(decode(payload)[index], payload, index)


def spoil(given, **named):
    given.append(threading.Lock())
    for value in named.values():
        value.clear()
    fail()


def test_the_next_attempt_has_the_arguments_of_the_call(worker_of, tasks):
    args, kwargs = ([1, [2]],), {"copy": {"to": "me"}}
    following = again_of(worker_of, tasks, spoil, args, kwargs, retry=Retry())
    assert (following.attempt, following.args, following.kwargs) == (2, *(args, kwargs))


def test_of_many_calls_the_next_attempt_has_its_own_arguments(worker_of, tasks):
    jobs = [Job(str(number), "shop.send", ([number],)) for number in range(3)]
    following = again_of(worker_of, tasks, spoil, jobs=jobs, index=1, retry=Retry())
    assert (following.id, following.args) == ("1", ([1],))


def test_what_a_task_has_changed_on_purpose_goes_along(worker_of, tasks):
    def change(given):
        given.clear()
        get_current_task().buffer["done"] = 1
        get_current_task().retry_count = 5
        return SPOOL_RETRY

    following = again_of(worker_of, tasks, change, ([1],))
    assert (following.args, following.buffer, following.retry_count) == (([1],), {"done": 1}, 4)


def test_a_dead_letter_has_the_arguments_of_the_call(worker_of, tasks, graves):
    again_of(worker_of, tasks, spoil, ([1],))
    assert (graves.jobs[0].args, "not be kept" in graves.kept[0].traceback) == (([1],), False)


def test_a_job_that_cannot_be_read_again_goes_on_with_what_is_there(worker_of, tasks):
    def change(given):
        given.append(2)
        fail()

    tasks["shop.send"] = Task(change, options({"name": "f", "retry": Retry()}), Anywhere())
    job = Job("1", "shop.send", ([1],))
    assert worker_of.run(job, encode([job])[:-1]).args == ([1, 2],)


def test_the_caller_who_waits_has_the_arguments_of_the_call_tried_again(worker_of):
    worker_of.found["f"] = Task(spoil, options({"name": "f", "retry": Retry()}), Anywhere())
    result, following = perform(worker_of, Job("1", "f", ([1],)))
    assert (result.state, following.args) == (AGAIN, ([1],))


# --- how often


def test_the_back_off_goes_on_growing_when_attempts_are_asked_for(run):
    def ask():
        raise RetryTaskException

    for attempt, wait in ((1, 10), (2, 10), (3, 30), (4, 90)):
        before = time.time()
        following = run(ask, job={"attempt": attempt}, retry=Retry(attempts=9, delay=10, backoff=3))
        assert before + wait - 0.01 <= following.at <= time.time() + wait + 0.01
        assert following.retry_timeout is None


@pytest.mark.parametrize(("count", "left"), [(3, 2), (1, None)])
def test_a_number_of_runs_that_a_task_sets_makes_its_codes_count(run, count, left):
    def ask():
        get_current_task().retry_count = count
        return SPOOL_RETRY

    following = run(ask)
    assert (following and following.retry_count) == left


def test_a_number_of_runs_of_the_call_makes_its_codes_count(run):
    assert run(lambda: SPOOL_RETRY, job={"retry_count": 3}).retry_count == 2


def test_without_a_number_of_runs_a_code_is_a_value(run, graves):
    assert (run(lambda: SPOOL_RETRY), graves.kept) == (None, [])


# --- judging


def raises(_given):
    return {}["code"]


@pytest.mark.parametrize(
    ("retry", "func", "named"),
    [
        (Retry(attempts=9, until=raises), lambda: 1, "until"),
        (Retry(attempts=9, until=raises), fail, "until"),
        (Retry(attempts=9, on=raises), fail, "on"),
    ],
)
def test_a_predicate_that_raises_is_a_failure_of_the_job(run, graves, retry, func, named):
    assert run(func, retry=retry) is None
    (letter,) = graves.kept
    assert letter.error == f"PredicateFailed: Retry({named}=) raised KeyError: 'code'"
    assert "in raises" in letter.traceback


def test_what_the_predicate_was_to_judge_is_not_forgotten(run, graves):
    run(fail, retry=Retry(on=raises))
    assert (
        "It was to judge attempt 1, which raised OSError: no such host" in graves.kept[0].traceback
    )


def test_a_worker_goes_on_after_a_predicate_that_raised(run, graves):
    got = []
    run(fail, retry=Retry(on=raises))
    run(got.append, 1)
    assert (got, len(graves.kept)) == ([1], 1)


def test_a_predicate_that_would_end_the_process_is_a_failure_of_the_job(run, graves):
    def end(_outcome):
        sys.exit(3)

    assert run(lambda: 1, retry=Retry(until=end)) is None
    assert graves.kept[0].error == "PredicateFailed: Retry(until=) raised SystemExit: 3"


def test_an_exception_that_was_accepted_is_no_failure(run, graves, caplog):
    assert run(fail, retry=Retry(until=lambda outcome: outcome.exception)) is None
    assert (graves.kept, caplog.records) == ([], [])


def test_the_caller_who_waits_is_told_the_exception_that_was_accepted(worker_of):
    retry = Retry(until=lambda outcome: outcome.exception)
    worker_of.found["f"] = Task(fail, options({"name": "f", "retry": retry}), Anywhere())
    result, following = perform(worker_of, Job("1", "f"))
    assert (result.state, type(result.error), following) == (OK, OSError, None)


def test_an_exception_that_was_accepted_is_kept_as_a_success_without_a_value(run, books):
    run(fail, job={"result_ttl": 60}, retry=Retry(until=lambda outcome: outcome.exception))
    assert books.ended == [("3f2c", "spooler", OK, None)]


def test_the_outcome_has_the_number_of_the_attempt(run):
    seen = []
    run(lambda: 5, job={"attempt": 4}, retry=Retry(attempts=9, until=seen.append))
    (outcome,) = seen
    assert (outcome.value, outcome.exception, outcome.attempt) == (5, None, 4)


def test_a_value_that_was_not_accepted_at_last_is_a_dead_letter_that_does_not_show_it(
    run, graves, caplog
):
    password = str(10**9 + 7)
    run(lambda: password, retry=Retry(attempts=1, until=never))
    assert "it returned a value of type str, which Retry(until=)" in graves.kept[0].error
    assert password not in caplog.text


# --- since when


def test_a_timeout_counts_from_the_beginning_of_the_first_run(run, clock):
    began = time.time()
    waited_since = {"submitted_at": began - 9999, "at": began - 999}
    following = run(fail, job=waited_since, retry=Retry(delay=10, timeout=60))
    assert began <= following.began_at <= time.time()


def test_when_the_first_run_began_is_known_to_the_last(run):
    following = run(fail, job={"attempt": 2, "began_at": NOW}, retry=Retry())
    assert following.began_at == NOW


def test_a_first_run_that_takes_longer_than_the_timeout_is_made(run, clock, graves):
    ran = []

    def slow():
        ran.append(1)
        clock.advance(100)
        fail()

    assert run(slow, retry=Retry(attempts=0, timeout=60)) is None
    assert (len(ran), len(graves.kept)) == (1, 1)


def test_a_dead_letter_begins_anew(run, graves):
    run(fail, job={"attempt": 3, "began_at": NOW}, retry=Retry())
    assert (graves.jobs[0].attempt, graves.jobs[0].began_at) == (1, None)


# --- what is written down


PAST, FUTURE = 1.0, 9e9


@pytest.mark.parametrize(
    ("func", "given", "state"),
    [
        (lambda: None, {}, OK),
        (fail, {}, FAILED),
        (fail, {"retry": Retry()}, AGAIN),
        (lambda: SPOOL_IGNORE, {"spooler_return": True}, DROPPED),
    ],
)
def test_each_attempt_is_counted_once_by_how_it_ended(run, books, func, given, state):
    run(func, **given)
    assert books.counted == [("shop.send", state)]


def test_a_job_that_asks_for_nothing_costs_no_word_to_the_store(run, books):
    run(lambda: None)
    assert (books.begun, books.ended) == ([], [])


@pytest.mark.parametrize("asked", [{"result_ttl": 60.0}, {"unique": "me"}])
@pytest.mark.parametrize(
    ("func", "given", "state"),
    [(lambda: 1, {}, OK), (fail, {}, FAILED), (fail, {"retry": Retry()}, AGAIN)],
)
def test_how_an_attempt_ended_is_told_where_the_job_asks_for_it(
    run, books, asked, func, given, state
):
    run(func, job=asked, **given)
    ((id_, executor, ended, _),) = books.ended
    assert (id_, executor, ended) == ("3f2c", "spooler", state)
    assert books.times[0] > NOW


def test_the_traceback_of_a_failure_is_kept_beside_its_error(run, books):
    run(fail, job={"result_ttl": 60.0})
    ((_, _, _, error),) = books.ended
    assert (type(error), "in fail" in books.traces[0]) == (OSError, True)


def test_a_task_that_no_longer_exists_is_told_to_those_who_wait(worker_of, books):
    worker_of.run(Job("1", "shop.gone", result_ttl=60.0))
    ((id_, _, state, error),) = books.ended
    assert (id_, state, type(error)) == ("1", FAILED, TaskNotFound)
    assert books.counted == [("shop.gone", FAILED)]


def test_bytes_that_cannot_be_read_are_told_to_those_who_wait_for_their_jobs(worker_of, books):
    jobs = [Job(f"3f-1.{n}", "f", result_ttl=60.0) for n in range(2)]
    worker_of.reject(encode(jobs), "its process died too often while it ran (3)")
    assert [(id_, state, str(error)) for id_, _, state, error in books.ended] == [
        (job.id, FAILED, "its process died too often while it ran (3)") for job in jobs
    ]


def test_bytes_that_are_nothing_are_told_to_nobody(worker_of, books):
    worker_of.reject(b"nonsense", "nobody knows")
    assert (books.ended, books.counted) == ([], [("", FAILED)])


def test_a_dead_letter_of_bytes_has_the_name_of_the_job_that_they_were(worker_of, graves):
    payload = encode([Job("3f-1", "f")])
    worker_of.reject(payload, "its process died")
    (letter,) = graves.kept
    assert (letter.id, letter.task, letter.variables) == ("3f-1", "f", b"")


def test_variables_of_bytes_that_are_not_ours_are_kept_whole(worker_of, graves):
    theirs = {"id": "their own", "task": "theirs"}
    worker_of.reject(b"x", "its process died", theirs)
    (letter,) = graves.kept
    assert (letter.task, unpack(pack_raw(letter.variables, b""))[0]) == ("", theirs)


def test_dead_letters_of_bytes_without_a_name_do_not_replace_each_other(worker_of, graves):
    worker_of.reject(b"x", "nobody knows")
    worker_of.reject(b"x", "nobody knows")
    assert graves.kept[0].id != graves.kept[1].id


def test_a_job_that_was_cancelled_is_told_and_counted(worker_of, books):
    worker_of.cancel(Job("1", "f", result_ttl=60.0))
    assert books.ended == [("1", "spooler", DROPPED, None)]
    assert books.counted == [("f", DROPPED)]


# --- signed


SECRET, OTHER = "a" * 20, "b" * 20


@pytest.mark.parametrize("signer", [None, Signer([OTHER])], ids=["unsigned", "another"])
def test_what_is_not_signed_as_it_should_be_is_a_dead_letter(build, graves, signer):
    worker = build(secret=SECRET)
    assert worker.decode(encode([Job("1", "shop.send")], signer)) == ()
    (letter,) = graves.kept
    assert (letter.id, letter.task) == ("1", "shop.send")
    assert "sign" in letter.error


def test_what_is_signed_is_read(build):
    job = Job("1", "f")
    assert list(build(secret=SECRET).decode(encode([job], Signer([SECRET])))) == [job]


def test_a_dead_letter_is_signed(build, graves, tasks):
    tasks["f"] = Task(fail, options({"name": "f"}), Anywhere())
    build(secret=SECRET).run(Job("1", "f"))
    (job,) = decode(graves.kept[0].payload, Signer([SECRET]))
    assert job.id == "1"


# --- an end


def test_an_attempt_that_takes_too_long_fails(run, graves):
    run(lambda: time.sleep(60), timeout=0.05)
    assert graves.kept[0].error == "TaskTimeout: it took longer than its timeout of 0.05 s"


def test_an_attempt_that_took_too_long_is_tried_again_by_the_rules(run):
    assert run(lambda: time.sleep(60), timeout=0.05, retry=Retry()).attempt == 2


def test_uwsgi_is_told_of_the_timeout_before_and_after(run, fuse):
    run(lambda: None, timeout=30)
    run(fail, timeout=30)
    assert fuse.told == [30, None] * 2


def test_without_a_timeout_uwsgi_is_told_nothing(run, fuse):
    run(lambda: None, job={"result_ttl": 60.0})
    assert fuse.told == []


def test_a_coroutine_that_takes_too_long_fails(run, graves):
    run(lambda: asyncio.sleep(60), timeout=0.05)
    assert graves.kept[0].error.startswith("TaskTimeout: ")


def in_a_thread(func):
    """Call *func* where no signal is heard."""
    found = []
    thread = threading.Thread(target=lambda: found.append(func()))
    thread.start()
    thread.join(30)
    return found[0]


def test_a_coroutine_ends_in_time_where_no_alarm_is_heard(worker_of):
    task = Task(lambda: asyncio.sleep(60), options({"name": "f", "timeout": 0.05}), Anywhere())
    worker_of.found["f"] = task
    result, _ = in_a_thread(lambda: perform(worker_of, Job("1", "f")))
    assert (result.state, type(result.error)) == (FAILED, TaskTimeout)


def test_a_timeout_of_a_coroutines_own_is_no_end_of_ours(worker_of):
    async def impatient():
        raise TimeoutError("of the host")

    task = Task(impatient, options({"name": "f", "timeout": 60}), Anywhere())
    worker_of.found["f"] = task
    result, _ = in_a_thread(lambda: perform(worker_of, Job("1", "f")))
    assert (type(result.error), str(result.error)) == (TimeoutError, "of the host")


def test_a_coroutine_without_an_end_runs_to_it_in_a_thread_too(worker_of):
    async def quick():
        return 7

    worker_of.found["f"] = Task(quick, options({"name": "f"}), Anywhere())
    assert in_a_thread(lambda: perform(worker_of, Job("1", "f")))[0].value == 7


def test_a_job_that_expired_before_it_began_is_dropped(run, graves, books, caplog):
    got = []
    assert run(got.append, 1, job={"expires_at": PAST, "result_ttl": 60.0}) is None
    ((_, _, state, _),) = books.ended
    assert (got, graves.kept, state) == ([], [], DROPPED)
    assert books.counted == [("shop.send", DROPPED)]
    assert caplog.messages == ["shop.send[3f2c] is dropped: it had expired before attempt 1 began"]


def test_a_job_that_has_not_expired_runs(run):
    got = []
    run(got.append, 1, job={"expires_at": FUTURE})
    assert got == [1]


def test_a_job_that_failed_and_expired_since_is_a_dead_letter(run, graves, books):
    got = []
    run(got.append, 1, job={"expires_at": PAST, "attempt": 2})
    assert got == []
    assert graves.kept[0].error == "TaskCancelled: it had expired before attempt 2 began"
    assert books.counted == [("shop.send", FAILED)]


def test_a_dead_letter_does_not_expire(run, graves):
    run(fail, job={"expires_at": FUTURE})
    assert graves.jobs[0].expires_at is None


def test_the_caller_who_waits_is_told_that_his_job_had_expired(worker_of, graves):
    worker_of.found["f"] = Task(fail, options({"name": "f"}), Anywhere())
    result, following = perform(worker_of, Job("1", "f", expires_at=PAST, attempt=2))
    assert (result.state, type(result.error)) == (DROPPED, TaskCancelled)
    assert (following, graves.kept) == (None, [])


@pytest.mark.parametrize(("tracks", "ran"), [(False, []), (True, [1])])
def test_where_the_executor_cannot_take_a_job_away_the_store_is_asked(
    build, tasks, books, tracks, ran
):
    got = []
    tasks["f"] = Task(got.append, options({"name": "f"}), Anywhere())
    books.cancelled = {"1"}
    build(tracks=tracks).run(Job("1", "f", (1,), result_ttl=60.0))
    assert got == ran


def test_a_job_that_is_killed_while_it_runs_is_dropped(build, tasks, books, graves):
    def endless():
        time.sleep(60)

    tasks["f"] = Task(endless, options({"name": "f", "retry": Retry()}), Anywhere())
    worker = build(tracks=False, asked=lambda _job: Stop.KILL)
    assert worker.run(Job("1", "f", result_ttl=60.0)) is None
    ((_, _, state, error),) = books.ended
    assert (state, type(error), graves.kept) == (DROPPED, TaskCancelled, [])


def test_a_job_that_was_only_asked_to_stop_runs_on(build, tasks, books):
    def patient():
        time.sleep(1.1)
        return 7

    tasks["f"] = Task(patient, options({"name": "f", "timeout": 60}), Anywhere())
    build(tracks=False, asked=lambda _job: Stop.ASKED).run(Job("1", "f", result_ttl=60.0))
    assert books.ended[0][2] is OK


def test_an_alarm_that_rings_when_the_function_has_just_returned_is_a_failure(
    run, graves, monkeypatch
):
    class Late:
        @contextlib.contextmanager
        def limit(self, *_args):
            yield
            raise TaskTimeout("late")

    monkeypatch.setattr(attempts, "alarm", Late())
    run(lambda: None, timeout=1)
    assert graves.kept[0].error == "TaskTimeout: late"


def test_a_unique_job_that_runs_at_once_keeps_its_key_before_it_has_run(worker_of, books):
    seen = []
    worker_of.found["f"] = Task(
        lambda: seen.extend(books.confirmed), options({"name": "f"}), Anywhere()
    )
    perform(worker_of, Job("1", "f", unique="me"))
    assert seen == ["1"]


def test_a_unique_job_that_is_tried_again_keeps_its_key(run, books):
    run(fail, job={"unique": "me"}, retry=FIXED)
    assert books.confirmed == ["3f2c", "3f2c"]


def test_before_a_retry_the_store_is_asked_even_where_the_executor_could_take_it_away(
    build, tasks, books
):
    got = []
    tasks["f"] = Task(got.append, options({"name": "f"}), Anywhere())
    books.cancelled = {"1"}
    build(tracks=True).run(Job("1", "f", (1,), result_ttl=60.0, attempt=2))
    assert got == []


def test_what_a_killed_job_makes_of_its_end_does_not_count(build, tasks, books):
    def translate():
        try:
            time.sleep(60)
        except TaskCancelled:
            raise OSError("no such host") from None

    tasks["f"] = Task(translate, options({"name": "f", "retry": Retry()}), Anywhere())
    worker = build(tracks=False, asked=lambda _job: Stop.KILL)
    assert worker.run(Job("1", "f", result_ttl=60.0)) is None
    assert [(state, type(error)) for *_, state, error in books.ended] == [(DROPPED, TaskCancelled)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_job_that_is_killed_just_before_or_after_it_runs_is_dropped(
    run, graves, books, monkeypatch, when
):
    class Untimely:
        @contextlib.contextmanager
        def limit(self, *_args):
            if when == "before":
                raise TaskCancelled("by hand")
            yield
            raise TaskCancelled("by hand")

    monkeypatch.setattr(attempts, "alarm", Untimely())
    run(lambda: None, timeout=1, job={"result_ttl": 60.0})
    assert [state for _, _, state, _ in books.ended] == [DROPPED]
    assert graves.kept == []


def test_what_does_not_fit_into_a_file_stays_a_job(run, monkeypatch, worker_of):
    def refuse(_letter):
        raise ValueError("65536 bytes of variables do not fit into 16 bits of length")

    monkeypatch.setattr(worker_of, "_keep", refuse)
    with pytest.raises(NotKept, match="65536 bytes"):
        run(fail)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_is_accepted_by_nobody(run, graves, end):
    asked = []

    def stop():
        raise end

    run(stop, retry=Retry(until=lambda outcome: asked.append(outcome) or True))
    assert (asked, len(graves.kept)) == ([], 1)


def test_a_dead_letter_keeps_a_time_that_has_not_come(worker_of, graves):
    worker_of.bury(Job("1", "f", at=FUTURE), "its process ended")
    worker_of.bury(Job("2", "f", at=PAST), "its process ended")
    worker_of.bury(Job("3", "f", at=FUTURE, attempt=2), "its process ended")
    assert [job.at for job in graves.jobs] == [FUTURE, None, None]


@pytest.mark.parametrize(
    ("given", "job", "endless"),
    [
        ({"retry": Retry(attempts=0)}, {}, True),
        ({"retry": Retry(attempts=5000)}, {}, False),
        ({"spooler_return": True}, {}, True),
        ({"retry_count": 5000}, {"retry_count": 4000}, False),
        ({"retry": Retry(attempts=0)}, {"retry_count": 4000}, False),
    ],
)
def test_who_sets_no_limit_may_be_tried_for_ever(worker_of, given, job, endless):
    worker_of.found["f"] = Task(fail, options({"name": "f", **given}), Anywhere())
    assert worker_of.is_endless(Job("1", "f", **job)) is endless
