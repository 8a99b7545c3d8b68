"""The job that is being run, and what a task may change of it."""

import contextvars
import threading
from datetime import UTC, datetime, timedelta

import pytest

from uwsgi_tasks import InvalidTask, get_current_task
from uwsgi_tasks.current import CurrentTask, Surroundings, alone, current_task
from uwsgi_tasks.model import Job, Stop

NOW = 1_700_000_000.0
JOB = Job("3f2c", "shop.send", (1,), {"copy": True}, attempt=2, submitted_at=NOW)


class Queue:
    """Takes what a task submits."""

    def __init__(self):
        self.jobs = []

    def __call__(self, job):
        self.jobs.append(job)
        return "a handle"


@pytest.fixture
def queue():
    return Queue()


def running(queue, **changes):
    return CurrentTask(JOB._replace(**changes), Surroundings("spooler", queue))


def test_a_task_knows_its_job(queue):
    task = running(queue)
    assert (task.id, task.name, task.attempt, task.args, task.kwargs, task.executor) == (
        *("3f2c", "shop.send", 2),
        *((1,), {"copy": True}, "spooler"),
    )


@pytest.mark.parametrize(("at", "expected"), [(None, NOW), (NOW + 60, NOW + 60)])
def test_an_attempt_was_due_at_its_time_or_at_the_call(queue, at, expected):
    assert running(queue, at=at).scheduled_at == datetime.fromtimestamp(expected, UTC)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"at": NOW}, datetime.fromtimestamp(NOW, UTC)),
        ({"at": NOW, "delay": 10.0}, timedelta(seconds=10)),
    ],
)
def test_at_is_given_back_as_it_was_given(queue, changes, expected):
    assert running(queue, **changes).at == expected


@pytest.mark.parametrize(
    "value", [None, timedelta(seconds=20), datetime.fromtimestamp(NOW + 5, UTC)]
)
def test_at_can_be_changed(queue, value):
    task = running(queue, at=NOW)
    task.at = value
    assert task.at == value


def test_a_time_that_cannot_be_is_refused(queue):
    with pytest.raises(InvalidTask):
        running(queue).at = "soon"


def test_the_runs_that_are_left_can_be_changed(queue):
    task = running(queue, retry_count=3)
    task.retry_count = 1
    assert (task.retry_count, task.job.retry_count) == (1, 1)


@pytest.mark.parametrize("value", ["3", 1.5, True])
def test_runs_that_cannot_be_counted_are_refused(queue, value):
    with pytest.raises(TypeError, match="retry_count must be a whole number"):
        running(queue).retry_count = value


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), (5, 5.0), (timedelta(days=1), 86400.0)]
)
def test_the_wait_can_be_changed(queue, value, expected):
    task = running(queue, retry_timeout=2.0)
    task.retry_timeout = value
    assert (task.retry_timeout, task.job.retry_timeout) == (expected, expected)


def test_a_wait_that_cannot_be_is_refused(queue):
    with pytest.raises(InvalidTask, match="retry_timeout"):
        running(queue).retry_timeout = -1


def test_the_buffer_starts_empty(queue):
    assert running(queue).buffer == {}


def test_what_is_put_into_the_buffer_goes_with_the_job(queue):
    task = running(queue, buffer={"one": 1})
    task.buffer["two"] = 2
    assert task.job.buffer == {"one": 1, "two": 2}


def test_the_buffer_of_the_job_that_was_read_stays_as_it_was(queue):
    before = {"one": 1}
    running(queue, buffer=before).buffer["two"] = 2
    assert before == {"one": 1}


def test_a_buffer_that_nobody_asked_for_is_not_made(queue):
    assert running(queue).job.buffer is None


def test_calling_it_submits_the_same_task_with_new_arguments(queue):
    task = running(queue, retry_count=2, priority=5)
    task.buffer["done"] = 1
    assert task("next", copy=False) == "a handle"
    (job,) = queue.jobs
    assert (job.task, job.args, job.kwargs, job.attempt) == (
        *("shop.send", ("next",)),
        *({"copy": False}, 1),
    )
    assert (job.retry_count, job.priority, job.buffer) == (2, 5, {"done": 1})


def test_a_call_begins_anew(queue):
    running(queue, began_at=NOW, unique="key")()
    (job,) = queue.jobs
    assert (job.attempt, job.began_at, job.unique) == (1, None, None)


def test_each_call_is_a_job_of_its_own(queue):
    task = running(queue)
    task()
    task()
    assert len({job.id for job in queue.jobs} | {task.id}) == 3


def test_a_delay_counts_from_the_call(queue, clock):
    task = running(queue, at=NOW, delay=10.0)
    before = clock()
    task()
    assert before + 10 <= queue.jobs[0].at <= clock() + 10


def test_a_time_is_kept(queue):
    running(queue, at=NOW + 5)()
    assert queue.jobs[0].at == NOW + 5


def test_the_attempt_itself_keeps_its_arguments_when_it_submits_another(queue):
    task = running(queue)
    task("next")
    assert (task.args, task.id) == ((1,), "3f2c")


def test_it_shows_its_job_and_attempt(queue):
    assert repr(running(queue)) == "<CurrentTask shop.send[3f2c], attempt 2>"


# --- finding it


def test_outside_of_a_task_there_is_none():
    assert get_current_task() is None


def test_the_one_task_of_a_process_is_found_from_its_threads(queue, monkeypatch):
    monkeypatch.setattr(alone, "task", running(queue))
    found = []
    thread = threading.Thread(target=lambda: found.append(get_current_task()))
    thread.start()
    thread.join()
    assert found == [alone.task]


def test_of_two_tasks_the_inner_one_is_the_current(queue, monkeypatch):
    monkeypatch.setattr(alone, "task", running(queue))
    inner = running(queue)

    def inside():
        current_task.set(inner)
        return get_current_task()

    assert contextvars.copy_context().run(inside) is inner
    assert get_current_task() is alone.task


# --- seen from outside


@pytest.mark.parametrize(
    ("stop", "expected"), [(Stop.NOT, False), (Stop.ASKED, True), (Stop.KILL, True)]
)
def test_a_task_sees_that_somebody_asked_for_its_end(queue, stop, expected):
    asked = []
    around = Surroundings("spooler", queue, asked=lambda job: asked.append(job.id) or stop)
    assert (CurrentTask(JOB, around).cancelled, asked) == (expected, ["3f2c"])


@pytest.mark.parametrize("given", [(1,), (0, 0), (0.5, 3)])
def test_a_task_tells_how_far_it_has_come(queue, given):
    told = []
    around = Surroundings("spooler", queue, advance=lambda job, *come: told.append((job.id, *come)))
    CurrentTask(JOB, around).progress(*given)
    assert told == [("3f2c", given[0], given[1] if len(given) > 1 else None)]


@pytest.mark.parametrize("given", [("1",), (True,), (-1,), (1, "2"), (1, -2), (None,), (1, True)])
def test_what_is_no_progress_is_refused(queue, given):
    with pytest.raises(TypeError, match=r"progress.. takes numbers from 0"):
        running(queue).progress(*given)


def test_where_nobody_looks_a_task_tells_and_asks_in_vain(queue):
    task = running(queue)
    assert (task.progress(1, 2), task.cancelled) == (None, False)


def test_a_task_that_submits_itself_does_not_wait_for_its_own_end(queue):
    running(queue, unique="me")()
    assert queue.jobs[0].unique is None
