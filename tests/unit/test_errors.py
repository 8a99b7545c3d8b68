"""Everything that we raise."""

import pickle
from datetime import timedelta

import pytest

from uwsgi_tasks import errors
from uwsgi_tasks.errors import RetryTaskException, TasksError, shown

OURS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TasksError)
]


@pytest.mark.parametrize("kind", OURS)
def test_the_docstring_is_the_message_of_an_error_without_one(kind):
    assert str(kind()) == kind.__doc__


@pytest.mark.parametrize("kind", OURS)
def test_a_message_that_is_given_is_kept(kind):
    assert str(kind("the disk is full")) == "the disk is full"


@pytest.mark.parametrize("kind", OURS)
def test_an_error_survives_pickling(kind):
    copy = pickle.loads(pickle.dumps(kind("why")))
    assert (type(copy), copy.args) == (kind, ("why",))


def test_asking_for_another_attempt_is_no_error_of_the_library():
    assert not issubclass(RetryTaskException, TasksError)


def test_a_request_for_another_attempt_keeps_count_and_timeout_when_it_is_pickled():
    asked = pickle.loads(pickle.dumps(RetryTaskException(count=3, timeout=timedelta(seconds=5))))
    assert (asked.count, asked.timeout) == (3, 5)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"count": "3"}, TypeError),
        ({"count": 2.5}, TypeError),
        ({"timeout": "soon"}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": timedelta(seconds=-1)}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": float("nan")}, ValueError),
    ],
)
def test_a_request_that_nobody_can_fulfil_fails_where_it_is_made(given, kind):
    (name,) = given
    with pytest.raises(kind, match=f"{name}="):
        RetryTaskException(**given)


def test_a_request_for_another_attempt_says_what_it_asks_for():
    assert str(RetryTaskException(2, 10)) == "another attempt was asked for (count=2, timeout=10)"


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("not even a message")


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError("no such host"), "OSError: no such host"), (Speechless(), "Speechless")],
)
def test_an_error_of_anybody_can_be_shown(error, expected):
    assert shown(error) == expected
