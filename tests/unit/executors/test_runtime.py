"""At once, in the process of the caller."""

import threading
import time

import pytest

from uwsgi_tasks import State, SubmitError
from uwsgi_tasks.codec import decode
from uwsgi_tasks.executors.runtime import RuntimeExecutor
from uwsgi_tasks.model import Job, Result
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings

JOB = Job("1", "shop.send")


class Receiver:
    """Does with each job what *script* says for its id."""

    def __init__(self, script=None):
        self.script = script or {}
        self.ran = []
        self.endless = True

    def is_endless(self, _job):
        return self.endless

    def perform(self, job, payload, index=0):
        assert decode(payload)[index] == job
        self.ran.append((job.id, job.attempt))
        action = self.script.get(job.id)
        following = action(job) if action else None
        return Result(state=State.SUCCEEDED, attempt=job.attempt, value=job.id), following


def runtime(script=None):
    made = RuntimeExecutor(Server(None), Settings)
    made.listen(Receiver(script))
    return made


@pytest.fixture
def slept(sleeping_here, clock):
    """How long it slept, each time; the clock goes on meanwhile."""
    got = []

    def sleep(seconds):
        got.append(seconds)
        clock.advance(seconds)

    sleeping_here(sleep)
    return got


def until(number, wait):
    """Ask for another attempt, *wait* seconds later, up to attempt *number*."""
    return lambda job: job.again(time.time() + wait) if job.attempt < number else None


def test_it_is_always_ready():
    assert runtime().ready() is True


def test_a_job_has_run_when_the_call_returns():
    (result,) = runtime().submit([JOB])
    assert (result.state, result.value) == (State.SUCCEEDED, "1")


def test_retries_follow_at_once_and_the_last_result_counts():
    made = runtime({"1": lambda job: job.again(None) if job.attempt < 3 else None})
    (result,) = made.submit([JOB])
    assert (made._receiver.ran, result.attempt) == ([("1", 1), ("1", 2), ("1", 3)], 3)


def test_a_retry_that_is_due_later_is_waited_for(slept):
    began = time.time()
    made = runtime({"1": until(3, 60)})
    (result,) = made.submit([JOB])
    assert (result.attempt, len(slept)) == (3, 2)
    assert sum(slept) == pytest.approx(120, abs=5)
    assert time.time() - began >= 120


def test_no_attempt_begins_before_it_is_due(slept):
    early = []

    def look(job):
        early.append(job.at is not None and time.time() < job.at)
        return until(9, 0.5)(job)

    runtime({"1": look}).submit([JOB])
    assert early == [False] * 9


def test_who_is_woken_too_early_goes_on_waiting(sleeping_here, clock):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        clock.advance(seconds / 2 if len(slept) == 1 else seconds)

    sleeping_here(sleep)
    began = time.time()
    runtime({"1": until(2, 100)}).submit([JOB])
    assert len(slept) >= 2
    assert time.time() - began >= 100


def test_a_wait_beyond_all_times_is_a_wait(slept):
    runtime({"1": until(2, 200e9)}).submit([JOB])
    # What time.sleep takes.
    assert max(slept) < 9e9


def test_what_is_due_already_is_not_waited_for(slept):
    made = runtime({"1": until(3, -60)})
    made.submit([JOB])
    assert (len(made._receiver.ran), sum(slept)) == (3, 0)


def test_a_stand_in_does_not_wait(slept):
    made = RuntimeExecutor(Server(None), Settings, waits=False)
    made.listen(Receiver({"1": until(3, 60)}))
    (result,) = made.submit([JOB])
    assert (result.attempt, sum(slept)) == (3, 0)


def test_the_retries_of_what_followed_are_waited_for_too(slept):
    def follow(_job):
        made.follow(JOB._replace(id="2"))

    made = runtime({"1": follow, "2": until(2, 60)})
    made.submit([JOB])
    assert made._receiver.ran == [("1", 1), ("2", 1), ("2", 2)]
    assert sum(slept) == pytest.approx(60, abs=5)


def test_attempts_with_waits_between_them_have_no_limit(slept):
    made = runtime({"1": until(3000, 10)})
    (result,) = made.submit([JOB])
    assert (result.attempt, result.state) == (3000, State.SUCCEEDED)


def test_one_wait_among_attempts_in_a_row_starts_the_count_anew(slept):
    def ask(job):
        if job.attempt == 999:
            return job.again(time.time() + 10)
        return job.again(None) if job.attempt < 1998 else None

    (result,) = runtime({"1": ask}).submit([JOB])
    assert (result.attempt, result.state) == (1998, State.SUCCEEDED)


def test_a_stand_in_ends_after_a_thousand_attempts_whatever_they_would_wait():
    made = RuntimeExecutor(Server(None), Settings, waits=False)
    made.listen(Receiver({"1": lambda job: job.again(time.time() + 3600)}))
    (result,) = made.submit([JOB])
    assert (result.attempt, result.state) == (1000, State.FAILED)


def test_what_a_spooler_would_refuse_is_refused_and_not_run():
    made = runtime()
    with pytest.raises(SubmitError, match="argument 1"):
        made.submit([JOB._replace(args=(threading.Lock(),))])
    assert made._receiver.ran == []


def test_a_job_that_submits_itself_runs_after_the_attempt_and_not_inside_it():
    depth = []

    def follow(job):
        depth.append("in")
        if len(depth) < 200:
            made.follow(job)
        depth.append("out")

    made = runtime({"1": follow})
    made.submit([JOB])
    assert depth[:4] == ["in", "out", "in", "out"]


def test_a_thousand_jobs_that_submit_themselves_need_no_deep_stack():
    left = iter(range(4999))

    def follow(job):
        if next(left, None) is not None:
            made.follow(job)

    made = runtime({"1": follow})
    made.submit([JOB])
    assert len(made._receiver.ran) == 5000


def test_what_follows_outside_of_an_attempt_runs_at_once():
    made = runtime()
    made.follow(JOB)
    assert made._receiver.ran == [("1", 1)]


def test_what_follows_is_refused_where_a_spooler_would_refuse_it():
    refused = []

    def follow(job):
        with pytest.raises(SubmitError):
            made.follow(job._replace(args=(threading.Lock(),)))
        refused.append(1)

    made = runtime({"1": follow})
    made.submit([JOB])
    assert refused == [1]


def test_a_job_of_another_task_that_is_called_inside_runs_inside():
    other = JOB._replace(id="2")
    order = []

    def call(_job):
        order.append("before")
        made.submit([other])
        order.append("after")

    made = runtime({"1": call, "2": lambda _job: order.append("inside")})
    made.submit([JOB])
    assert order == ["before", "inside", "after"]


def test_a_failure_of_what_followed_reaches_the_caller():
    class Failing(Receiver):
        def perform(self, job, payload, index=0):
            result, following = super().perform(job, payload, index)
            if job.id == "2":
                result = Result(state=State.FAILED, attempt=1, error=OSError())
            return result, following

    def follow(job):
        made.follow(job._replace(id="2"))

    made = RuntimeExecutor(Server(None), Settings)
    made.listen(Failing({"1": follow}))
    (result,) = made.submit([JOB])
    assert type(result.error) is OSError


def test_a_job_that_asks_for_ever_ends_after_a_thousand_attempts():
    made = runtime({"1": lambda job: job.again(None)})
    (result,) = made.submit([JOB])
    assert (len(made._receiver.ran), result.attempt, result.state) == (1000, 1000, State.FAILED)
    assert "shop.send[1]: it asked for more than 1000 attempts" in str(result.error)


def test_a_job_that_fails_for_ever_ends_with_its_own_error():
    class Failing(Receiver):
        def perform(self, job, payload, index=0):
            result = Result(state=State.RETRYING, attempt=job.attempt, error=OSError("no"))
            return result, job.again(None)

    made = RuntimeExecutor(Server(None), Settings)
    made.listen(Failing())
    (result,) = made.submit([JOB])
    assert (result.state, str(result.error)) == (State.FAILED, "no")


def test_a_task_that_sets_itself_a_limit_has_all_its_attempts():
    made = runtime({"1": lambda job: job.again(None) if job.attempt < 2500 else None})
    made._receiver.endless = False
    (result,) = made.submit([JOB])
    assert (result.state, result.attempt) == (State.SUCCEEDED, 2500)


def test_a_thousand_attempts_are_enough_if_the_last_one_succeeds():
    made = runtime({"1": lambda job: job.again(None) if job.attempt < 1000 else None})
    (result,) = made.submit([JOB])
    assert (result.state, result.attempt, result.error) == (State.SUCCEEDED, 1000, None)


def test_a_job_has_a_copy_of_the_arguments():
    given = [1]
    seen = []
    made = runtime({"1": lambda job: seen.append(job.args[0]) or job.args[0].append(2)})
    made.submit([JOB._replace(args=(given,))])
    assert (seen[0] is given, given) == (False, [1])


def test_each_job_of_many_is_read_at_its_own_place():
    made = runtime()
    made.submit([JOB._replace(id=str(number), args=(number,)) for number in range(3)])
    assert made._receiver.ran == [("0", 1), ("1", 1), ("2", 1)]
