"""When to try again."""

from datetime import timedelta

import pytest

from uwsgi_tasks import InvalidTask, Retry


@pytest.mark.parametrize(
    ("attempts", "attempt", "expected"),
    [(3, 1, True), (3, 2, True), (3, 3, False), (1, 1, False), (0, 1, True), (0, 10**9, True)],
)
def test_attempts_count_all_runs_and_0_sets_no_limit(attempts, attempt, expected):
    assert Retry(attempts=attempts).allows(attempt) is expected


@pytest.mark.parametrize(
    ("given", "attempt", "expected"),
    [
        ({}, 1, 0),
        ({"delay": 2}, 1, 2),
        ({"delay": 2}, 7, 2),
        ({"delay": 2, "backoff": 2}, 1, 2),
        ({"delay": 2, "backoff": 2}, 4, 16),
        ({"delay": 2, "backoff": 3, "max_delay": 10}, 2, 6),
        ({"delay": 2, "backoff": 3, "max_delay": 10}, 3, 10),
        ({"delay": timedelta(days=1)}, 1, 86400),
        ({"delay": 1, "backoff": 2, "max_delay": timedelta(hours=1)}, 5000, 3600),
        ({"delay": 0, "backoff": 2}, 5000, 0),
        ({"delay": 7, "backoff": 2}, 5000, 7),
    ],
)
def test_the_wait_grows_with_the_attempts_up_to_its_ceiling(given, attempt, expected):
    assert Retry(**given).wait(attempt) == expected


@pytest.mark.parametrize(("random", "expected"), [(0.0, 4), (0.5, 5), (1.0, 6)])
def test_jitter_is_added_at_random_and_above_the_ceiling_too(random, expected):
    retry = Retry(delay=8, max_delay=4, jitter=2)
    assert retry.wait(1, rng=lambda: random) == expected


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"attempts": -1}, "attempts="),
        ({"attempts": 2.5}, "attempts="),
        ({"attempts": "3"}, "attempts="),
        ({"attempts": True}, "attempts="),
        ({"backoff": 0.5}, "backoff="),
        ({"backoff": float("nan")}, "backoff="),
        ({"backoff": "2"}, "backoff="),
        ({"delay": -1}, "delay="),
        ({"delay": "soon"}, "delay="),
        ({"delay": float("inf")}, "delay="),
        ({"jitter": -1}, "jitter="),
        ({"max_delay": -1}, "max_delay="),
        ({"on": "OSError"}, "on="),
        ({"on": (OSError, int)}, "on="),
        ({"on": OSError("no class")}, "on="),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(given, named):
    with pytest.raises(InvalidTask, match=named):
        Retry(**given)


def test_several_kinds_of_exceptions_may_be_tried_again():
    assert Retry(on=(OSError, KeyError)).on == (OSError, KeyError)


def test_equal_rules_are_equal():
    assert Retry(delay=60) == Retry(delay=timedelta(minutes=1))
