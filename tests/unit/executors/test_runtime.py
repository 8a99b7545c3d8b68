"""At once, in the process of the caller."""

import threading

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


def test_it_is_always_ready():
    assert runtime().ready() is True


def test_a_job_has_run_when_the_call_returns():
    (result,) = runtime().submit([JOB])
    assert (result.state, result.value) == (State.SUCCEEDED, "1")


def test_retries_follow_at_once_and_the_last_result_counts():
    made = runtime({"1": lambda job: job.again(None) if job.attempt < 3 else None})
    (result,) = made.submit([JOB])
    assert (made._receiver.ran, result.attempt) == ([("1", 1), ("1", 2), ("1", 3)], 3)


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
            error = OSError() if job.id == "2" else None
            return Result(state=result.state, attempt=1, error=error), following

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
