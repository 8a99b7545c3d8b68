"""What a call returns."""

import pytest

from uwsgi_tasks import JobHandle, ResultNotKept, State
from uwsgi_tasks.model import Result

DONE = Result(state=State.SUCCEEDED, attempt=1, value=42)


@pytest.mark.parametrize(("result", "state"), [(None, State.QUEUED), (DONE, State.SUCCEEDED)])
def test_a_handle_knows_how_a_job_ended_that_ran_at_once(result, state):
    assert JobHandle("3f2c", result).state is state


def test_the_result_of_a_job_that_ran_at_once_is_its_value():
    assert JobHandle("3f2c", DONE).result() == 42


def test_the_result_of_a_job_that_travelled_is_not_kept():
    with pytest.raises(ResultNotKept, match="3f2c runs in another process"):
        JobHandle("3f2c").result()


def test_a_handle_shows_its_id_and_state():
    assert repr(JobHandle("3f2c")) == "<JobHandle 3f2c, queued>"


def test_a_handle_shows_its_id_as_log_lines_do():
    assert JobHandle("3f2c").id == "3f2c"
