"""What a call returns."""

import time

import pytest

from uwsgi_tasks import JobHandle, ResultNotKept, State
from uwsgi_tasks.errors import TaskCancelled
from uwsgi_tasks.handle import Near
from uwsgi_tasks.model import Record, Result, Stop

DONE = Result(state=State.SUCCEEDED, attempt=1, value=42)
DROPPED = Result(state=State.CANCELLED, attempt=1)
Q, R, OK = State.QUEUED, State.RUNNING, State.SUCCEEDED
RECORD = Record(id="3f2c", task="f", executor="spooler", state=OK)


class Tracker:
    """Knows a job that comes to these states, one look after the other."""

    def __init__(self, *states):
        self.states = list(states)
        self.looks, self.asked = 0, []

    def state(self, id):  # noqa: A002
        assert id == "3f2c"
        self.looks += 1
        found = self.states[0] if len(self.states) == 1 else self.states.pop(0)
        if found is None:
            raise ResultNotKept
        return found

    def record(self, _id):
        return RECORD

    def outcome(self, _id):
        return 42

    def progress(self, _id):
        return (1.0, 2.0)

    def cancel(self, id, stop):  # noqa: A002
        self.asked.append((id, stop))
        return True


@pytest.fixture
def clock(monkeypatch, sleeping_here):
    """A time that passes only where somebody sleeps; the pauses are in its list."""
    pauses = []
    monkeypatch.setattr(time, "monotonic", lambda: sum(pauses))
    sleeping_here(pauses.append)
    return pauses


# --- what has run already


@pytest.mark.parametrize(("result", "state"), [(DROPPED, State.CANCELLED), (DONE, OK)])
def test_a_handle_knows_how_a_job_ended_that_ran_at_once(result, state):
    assert JobHandle("3f2c", result).state is state


def test_the_result_of_a_job_that_ran_at_once_is_its_value():
    assert JobHandle("3f2c", DONE).result() == 42


def test_the_result_of_a_job_that_was_dropped_at_once_is_that_it_was_cancelled():
    with pytest.raises(TaskCancelled, match="job 3f2c was cancelled"):
        JobHandle("3f2c", DROPPED).result()


def test_the_result_of_a_job_that_was_cancelled_for_a_reason_is_that():
    reason = TaskCancelled("it had expired")
    result = Result(state=State.CANCELLED, attempt=1, error=reason)
    with pytest.raises(TaskCancelled, match="it had expired"):
        JobHandle("3f2c", result).result()


def test_nobody_waits_for_a_job_that_ran_at_once(clock):
    assert (JobHandle("3f2c", DONE).wait(), clock) == (True, [])


def test_a_job_that_ran_at_once_cannot_be_cancelled():
    tracker = Tracker(OK)
    assert JobHandle("3f2c", DONE, tracker).cancel(kill=True) is False
    assert tracker.asked == []


# --- what travelled


@pytest.mark.parametrize(
    "ask",
    [
        lambda handle: handle.state,
        lambda handle: handle.wait(),
        lambda handle: handle.result(),
        lambda handle: handle.cancel(),
    ],
    ids=["state", "wait", "result", "cancel"],
)
@pytest.mark.parametrize(
    "handle",
    [JobHandle("3f2c"), JobHandle("3f2c", None, Tracker(Q), is_seen=False, is_kept=False)],
    ids=["no tracker", "not seen"],
)
def test_of_a_job_that_nobody_sees_nothing_is_told(handle, ask):
    with pytest.raises(ResultNotKept, match="3f2c runs in another process"):
        ask(handle)


def test_the_result_of_a_job_that_travelled_is_not_kept_without_asking_for_it():
    tracker = Tracker(Q)
    handle = JobHandle("3f2c", None, tracker, is_kept=False)
    with pytest.raises(ResultNotKept, match="declare its task with result_ttl="):
        handle.result()
    assert (handle.state, tracker.looks) == (Q, 1)


def test_a_handle_without_a_tracker_has_no_record_and_no_progress():
    assert (JobHandle("3f2c").record, JobHandle("3f2c").progress) == (None, None)


def test_a_handle_tells_what_the_tracker_knows():
    handle = JobHandle("3f2c", None, Tracker(R))
    assert (handle.state, handle.record, handle.progress) == (R, RECORD, (1.0, 2.0))


def test_a_result_is_waited_for(clock):
    assert JobHandle("3f2c", None, Tracker(Q, R, OK)).result() == 42
    assert len(clock) == 2


def test_a_result_that_takes_too_long_is_a_timeout(clock):
    with pytest.raises(TimeoutError, match="job 3f2c has not ended after 1 s"):
        JobHandle("3f2c", None, Tracker(Q)).result(1)
    assert sum(clock) == pytest.approx(1)


def test_who_waits_does_so_longer_and_longer(clock):
    assert JobHandle("3f2c", None, Tracker(*[Q] * 20, OK)).wait()
    assert clock == sorted(clock)
    assert (clock[0], max(clock)) == (0.002, 0.25)


def test_who_waits_no_longer_looks_once_more_at_the_end(clock):
    tracker = Tracker(Q)
    assert JobHandle("3f2c", None, tracker).wait(0.003) is False
    assert (clock, tracker.looks) == ([0.002, pytest.approx(0.001)], 3)


def test_who_has_no_time_looks_once(clock):
    assert JobHandle("3f2c", None, Tracker(Q)).wait(0) is False
    assert JobHandle("3f2c", None, Tracker(OK)).wait(0) is True
    assert clock == []


@pytest.mark.parametrize(
    ("states", "looks"), [([Q, R], 2), ([Q, OK], 2), ([State.RETRYING], 1), ([Q, None], 2)]
)
def test_who_waits_for_the_beginning_waits_no_longer(clock, states, looks):
    tracker = Tracker(*states)
    assert JobHandle("3f2c", None, tracker).wait(until=R) is True
    assert (tracker.looks, len(clock)) == (looks, looks - 1)


@pytest.mark.parametrize("until", [OK, Q, "the end", True])
def test_who_waits_for_something_else_is_told_what_there_is_to_wait_for(until):
    with pytest.raises(ValueError, match=r"until= takes State\.RUNNING"):
        JobHandle("3f2c", None, Tracker(OK)).wait(until=until)


@pytest.mark.usefixtures("clock")
def test_a_job_that_is_nowhere_any_more_has_ended():
    assert JobHandle("3f2c", None, Tracker(R, None)).wait() is True


@pytest.mark.parametrize(("kill", "stop"), [(False, Stop.ASKED), (True, Stop.KILL)])
def test_a_job_that_travelled_can_be_cancelled(kill, stop):
    tracker = Tracker(Q)
    assert JobHandle("3f2c", None, tracker).cancel(kill=kill) is True
    assert tracker.asked == [("3f2c", stop)]


# --- how it shows


@pytest.mark.parametrize(
    ("result", "shown"), [(None, "<JobHandle 3f2c>"), (DONE, "<JobHandle 3f2c, succeeded>")]
)
def test_a_handle_shows_its_id_and_state_if_it_knows_that(result, shown):
    assert repr(JobHandle("3f2c", result)) == shown


def test_a_handle_shows_its_id_as_log_lines_do():
    assert JobHandle("3f2c").id == "3f2c"


# --- a job in the memory of this process


class Here(Near):
    """A job that comes to its end when somebody waits for it."""

    def __init__(self, result=None, after=DONE):
        self.state = State.RUNNING if result is None else result.state
        self.result, self._after = result, after
        self.waits = []

    def wait(self, timeout, *, begun):
        self.waits.append((timeout, begun))
        self.result = self._after
        return self._after is not None


def test_a_job_that_is_near_is_not_looked_for(clock):
    tracker = Tracker(R)
    handle = JobHandle("3f2c", None, tracker, Here())
    assert (handle.state, handle.result(5), handle.state) == (State.RUNNING, 42, OK)
    assert (tracker.looks, clock) == (0, [])


def test_a_wait_for_a_job_that_is_near_says_what_for():
    near = Here(after=None)
    handle = JobHandle("3f2c", None, Tracker(R), near)
    assert (handle.wait(3), handle.wait(4, until=R)) == (False, False)
    assert near.waits == [(3, False), (4, True)]


def test_a_job_that_is_near_and_takes_too_long_says_so():
    with pytest.raises(TimeoutError, match="5 s"):
        JobHandle("3f2c", None, Tracker(R), Here(after=None)).result(5)


def test_a_job_that_is_near_and_has_ended_is_not_waited_for():
    near = Here(DROPPED)
    handle = JobHandle("3f2c", None, Tracker(R), near)
    assert (handle.wait(), handle.cancel(), near.waits) == (True, False, [])
    with pytest.raises(TaskCancelled):
        handle.result()


def test_a_job_that_is_near_is_cancelled_by_who_has_it():
    tracker = Tracker(R)
    assert JobHandle("3f2c", None, tracker, Here()).cancel() is True
    assert tracker.asked == [("3f2c", Stop.ASKED)]


def test_an_exception_that_was_accepted_is_not_raised():
    accepted = Result(state=OK, attempt=1, error=OSError())
    assert JobHandle("3f2c", None, Tracker(R), Here(accepted, accepted)).result() is None
