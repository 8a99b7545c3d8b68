"""The values that travel."""

import os

import pytest

from uwsgi_tasks import SPOOL_IGNORE, SPOOL_OK, SPOOL_RETRY, TaskExecutor
from uwsgi_tasks.model import Job, State, new_id


def test_no_two_ids_are_equal():
    assert len({new_id() for _ in range(1000)}) == 1000


def test_ids_of_a_fork_differ_from_those_of_its_parent():
    new_id()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 100).decode()

    assert theirs[:16] != new_id()[:16]


def test_a_job_shows_its_task_and_its_id():
    assert str(Job("3f2c", "billing.send", ("a secret",))) == "billing.send[3f2c]"


def test_the_same_job_again_is_one_attempt_later():
    job = Job("1", "shop.send", attempt=2)
    assert job.again(at=9.0) == job._replace(attempt=3, at=9.0)


def test_the_same_job_again_takes_changes_along():
    assert Job("1", "shop.send").again(None, retry_count=4).retry_count == 4


@pytest.mark.parametrize("name", ["auto", "spooler", "mule", "runtime"])
def test_an_executor_is_its_plain_string(name):
    assert TaskExecutor[name.upper()] == name


def test_the_codes_are_those_of_uwsgi():
    assert (SPOOL_OK, SPOOL_RETRY, SPOOL_IGNORE) == (-2, -1, 0)


def test_new_fields_of_a_job_have_gone_to_the_end():
    # The order is the wire format: a file of the version before must still be read.
    assert Job._fields == (
        *("id", "task", "args", "kwargs", "attempt", "submitted_at", "at", "delay"),
        *("working_dir", "priority", "retry_count", "retry_timeout", "spooler", "mule", "buffer"),
        *("expires_at", "result_ttl", "unique", "durable"),
        *("began_at", "headers", "queue", "lease", "serializer"),
    )


def test_new_fields_of_a_job_have_defaults():
    assert set(Job._fields) - set(Job._field_defaults) == {"id", "task"}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        *[(state, False) for state in (State.QUEUED, State.RUNNING, State.RETRYING)],
        *[(state, True) for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)],
    ],
)
def test_a_state_is_final_if_nothing_follows(state, expected):
    assert state.is_final is expected
