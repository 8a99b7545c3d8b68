"""What became of a job."""

import time
from dataclasses import replace

import pytest

from uwsgi_tasks.codec import encode_value
from uwsgi_tasks.errors import (
    ConfigurationError,
    ResultNotKept,
    StoreError,
    TaskCancelled,
    TaskFailed,
)
from uwsgi_tasks.model import DeadLetter, Job, Record, Standing, State, Stop
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.stores.memory import MemoryStore
from uwsgi_tasks.tracker import Tracker

ID = "3f-1"
JOB = Job(ID, "shop.send")
Q, R, OK, FAILED, GONE = (
    *(State.QUEUED, State.RUNNING, State.SUCCEEDED, State.FAILED),
    State.CANCELLED,
)


class Executor:
    """Knows where a job stands, and what comes of cancelling it."""

    name = "spooler"

    def __init__(self):
        self.standing, self.answer, self.asked = None, None, []

    def find(self, id):  # noqa: A002
        return self.standing if id == ID else None

    def cancel(self, id, stop):  # noqa: A002
        self.asked.append((id, stop))
        return self.answer


class Books:
    """A ledger that keeps all that it is told in lists."""

    def __init__(self):
        self.ended, self.counted, self.released = [], [], []

    def ends(self, job, executor, result):
        self.ended.append((job, executor, result.state))

    def count(self, task, outcome, seconds, now):
        self.counted.append((task, outcome, seconds))

    def release(self, id):  # noqa: A002
        self.released.append(id)


@pytest.fixture
def executor():
    return Executor()


@pytest.fixture
def books():
    return Books()


@pytest.fixture
def store():
    return MemoryStore("memory://", "")


@pytest.fixture
def tracker(executor, store, books):
    return Tracker(lambda: [Executor(), executor], lambda: store, Settings, books)


@pytest.fixture
def lost(executor, books):
    """Of an app that has no store."""

    def nowhere():
        raise ConfigurationError("install it")

    return Tracker(lambda: [executor], nowhere, Settings, books)


def standing(state=Q, **given):
    return Standing(id=ID, task="shop.send", executor="spooler", state=state, **given)


def keep(store, state, value=None, **given):
    outcome = encode_value(value) if state.is_final else None
    record = Record(id=ID, task="shop.send", executor="mule", state=state, outcome=outcome)
    store.save(replace(record, **given), 60.0)


def bury(store):
    letter = DeadLetter(
        id=ID, task="f", executor="spooler", attempt=1, failed_at=1.0, error="no", payload=b""
    )
    store.bury(letter)


# --- how it stands


@pytest.mark.parametrize("state", [Q, R, State.RETRYING])
def test_a_job_stands_as_its_executor_sees_it(tracker, executor, state):
    executor.standing = standing(state)
    assert tracker.state(ID) is state


def test_what_the_executor_does_not_see_stands_as_the_store_says(tracker, store):
    keep(store, R)
    assert tracker.state(ID) is R


def test_while_the_executor_sees_it_the_store_may_be_behind(tracker, executor, store):
    executor.standing = standing(R)
    keep(store, Q)
    assert tracker.state(ID) is R


def test_the_end_of_a_job_comes_before_what_its_executor_still_sees(tracker, executor, store):
    executor.standing = standing(R)
    keep(store, OK)
    assert tracker.state(ID) is OK


def test_a_dead_letter_has_failed(tracker, store):
    bury(store)
    assert tracker.state(ID) is FAILED


def test_of_a_job_that_is_nowhere_nobody_can_tell(tracker):
    with pytest.raises(ResultNotKept, match="nothing is known of job 3f-1"):
        tracker.state(ID)


def test_without_a_store_the_executor_is_asked_alone(lost, executor):
    executor.standing = standing(R)
    assert (lost.state(ID), lost.record(ID)) == (R, None)


def test_while_the_store_is_away_the_executor_is_asked_alone(tracker, executor, monkeypatch):
    def away(_id):
        raise StoreError("nobody is at home")

    monkeypatch.setattr(tracker, "record", away)
    with pytest.raises(StoreError):
        tracker.state(ID)
    executor.standing = Standing(id=ID, task="f", executor="spooler", state=R, attempt=1)
    assert tracker.state(ID) is R


def test_without_a_store_nobody_can_tell_how_a_job_ended(lost):
    with pytest.raises(ResultNotKept):
        lost.state(ID)


# --- how it ended


def test_what_the_function_returned_comes_back(tracker, store):
    keep(store, OK, 42)
    assert tracker.outcome(ID) == 42


@pytest.mark.parametrize("state", [None, Q, R])
def test_what_has_not_ended_or_is_not_kept_has_no_outcome(tracker, store, state):
    if state is not None:
        keep(store, state)
    with pytest.raises(ResultNotKept, match="its result is not kept, or no longer"):
        tracker.outcome(ID)


@pytest.mark.parametrize(
    ("error", "shown"), [(None, "job 3f-1: it was cancelled"), ("too late", "job 3f-1: too late")]
)
def test_what_was_cancelled_raises_that(tracker, store, error, shown):
    keep(store, GONE, error=error)
    with pytest.raises(TaskCancelled, match=shown):
        tracker.outcome(ID)


def test_what_the_function_raised_is_raised_with_its_traceback(tracker, store):
    keep(store, FAILED, OSError("no such host"), traceback="Traceback of there", worker="web1:7")
    with pytest.raises(OSError, match="no such host") as raised:
        tracker.outcome(ID)
    assert raised.value.__notes__ == ["In web1:7:\nTraceback of there"]


def test_what_failed_without_a_traceback_is_raised_without_one(tracker, store):
    keep(store, FAILED, OSError("no such host"))
    with pytest.raises(OSError, match="no such host") as raised:
        tracker.outcome(ID)
    assert not hasattr(raised.value, "__notes__")


@pytest.mark.parametrize("given", [{"outcome": None}, {"outcome": b"cut"}, {}])
def test_what_cannot_travel_is_raised_as_its_text(tracker, store, given):
    keep(store, FAILED, "no exception", error="Loud: no", traceback="Traceback", **given)
    with pytest.raises(TaskFailed, match="Loud: no") as raised:
        tracker.outcome(ID)
    assert raised.value.args == ("Loud: no", "Traceback")


def test_a_value_that_cannot_be_read_is_not_kept(tracker, store):
    keep(store, OK, outcome=b"cut")
    with pytest.raises(ResultNotKept, match="its result cannot be read"):
        tracker.outcome(ID)


# --- how far it has come


@pytest.mark.parametrize(
    ("seen", "kept", "expected"),
    [
        ({"done": 1, "total": 2}, {}, (1, 2)),
        ({"done": 0}, {}, (0, None)),
        ({}, {}, None),
        (None, {"done": 1, "total": 2}, (1, 2)),
        (None, {}, None),
    ],
)
def test_how_far_a_job_has_come_is_told_by_who_sees_it(
    tracker, executor, store, seen, kept, expected
):
    executor.standing = None if seen is None else standing(R, **seen)
    keep(store, R, **kept)
    assert tracker.progress(ID) == expected


def test_of_a_job_that_is_nowhere_nothing_is_told(tracker):
    assert tracker.progress(ID) is None


# --- cancelling


@pytest.mark.parametrize("stop", [Stop.ASKED, Stop.KILL])
def test_a_job_that_its_executor_takes_away_is_noted_and_counted(tracker, executor, books, stop):
    executor.answer = GONE, JOB
    assert tracker.cancel(ID, stop) is True
    assert books.ended == [(JOB, "spooler", GONE)]
    assert books.counted == [("shop.send", GONE, 0.0)]
    assert executor.asked == [(ID, stop)]


def test_a_job_that_was_only_asked_may_run_to_its_end(tracker, executor, books):
    executor.answer = R, JOB
    assert tracker.cancel(ID, Stop.ASKED) is False
    assert (books.ended, books.counted) == ([], [])


@pytest.fixture
def later(monkeypatch, sleeping_here):
    """Have something happen when somebody has slept so often; time passes while he does."""
    now, actions = [0.0], {}
    naps = []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def sleep(seconds):
        naps.append(seconds)
        now[0] += 1
        actions.pop(len(naps), lambda: None)()

    sleeping_here(sleep)
    return actions


@pytest.mark.parametrize(("end", "expected"), [(GONE, True), (OK, False), (FAILED, False)])
def test_who_kills_a_job_learns_how_it_ended(tracker, executor, store, later, end, expected):
    executor.answer, executor.standing = (R, JOB), standing(R)
    later[2] = lambda: keep(store, end)
    assert tracker.cancel(ID, Stop.KILL) is expected


def test_a_killed_job_whose_end_nobody_keeps_is_gone(tracker, executor, later):
    executor.answer, executor.standing = (R, JOB), standing(R)
    later[2] = lambda: setattr(executor, "standing", None)
    assert tracker.cancel(ID, Stop.KILL) is True


def test_a_killed_job_that_goes_on_is_not_waited_for_without_an_end(tracker, executor, later):
    executor.answer, executor.standing = (R, JOB), standing(R)
    assert tracker.cancel(ID, Stop.KILL) is False


def test_where_the_executor_does_not_see_it_the_store_cancels(tracker, store, books):
    keep(store, Q)
    assert tracker.cancel(ID, Stop.ASKED) is True
    assert (store.get(ID).state, books.released) == (GONE, [ID])


def test_a_job_that_runs_elsewhere_is_asked_through_the_store(tracker, store, books):
    keep(store, R)
    assert tracker.cancel(ID, Stop.ASKED) is False
    assert (store.get(ID).stop, books.released) == (Stop.ASKED, [])


def test_a_job_that_runs_elsewhere_is_killed_through_the_store(tracker, store, later):
    keep(store, R)
    later[2] = lambda: keep(store, GONE)
    assert tracker.cancel(ID, Stop.KILL) is True


@pytest.mark.parametrize("state", [OK, FAILED])
def test_a_job_that_has_ended_cannot_be_cancelled(tracker, store, state):
    keep(store, state)
    assert tracker.cancel(ID, Stop.KILL) is False
    assert store.get(ID).state is state


def test_a_job_that_is_nowhere_cannot_be_cancelled(tracker):
    assert tracker.cancel(ID, Stop.KILL) is False


def test_without_a_store_a_job_that_nobody_sees_cannot_be_cancelled(lost):
    assert lost.cancel(ID, Stop.KILL) is False


def test_while_the_store_is_away_it_cancels_nothing(tracker, monkeypatch):
    def away(*_args):
        raise StoreError

    monkeypatch.setattr(MemoryStore, "cancel", away)
    assert tracker.cancel(ID, Stop.KILL) is False
