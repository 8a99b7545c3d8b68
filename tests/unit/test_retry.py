"""When to try again."""

from datetime import timedelta

import pytest

from uwsgi_tasks import InvalidTask, Outcome, PredicateFailed, Retry


async def later(_given):
    """A function whose answer is a coroutine."""


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
        ({"delay": 2, "backoff": 2}, 2, 2),
        ({"delay": 2, "backoff": 2}, 5, 16),
        ({"delay": 2, "backoff": 3, "max_delay": 10}, 3, 6),
        ({"delay": 2, "backoff": 3, "max_delay": 10}, 4, 10),
        ({"delay": 9, "max_delay": 4}, 1, 4),
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
        ({"on": (OSError, lambda _error: True)}, "on="),
        ({"on": None}, "on="),
        ({"on": later}, r"on=\) takes a plain function"),
        ({"until": True}, "until="),
        ({"until": "done"}, "until="),
        ({"until": later}, r"until=\) takes a plain function"),
        ({"timeout": -1}, "timeout="),
        ({"timeout": True}, "timeout="),
        ({"timeout": float("nan")}, "timeout="),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(given, named):
    with pytest.raises(InvalidTask, match=named):
        Retry(**given)


def test_several_kinds_of_exceptions_may_be_tried_again():
    assert Retry(on=(OSError, KeyError)).on == (OSError, KeyError)


def test_equal_rules_are_equal():
    assert Retry(delay=60) == Retry(delay=timedelta(minutes=1))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"delay": 1, "backoff": 2}, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]),
        ({"delay": 1}, list(range(10))),
        ({"delay": 1, "backoff": 2, "max_delay": 4}, [0, 1, 2, 4, 8, 12, 16, 20, 24, 28]),
        ({"delay": 2, "backoff": 3}, [0, 2, 4, 10, 28, 82, 244, 730, 2188, 6562]),
        ({"backoff": 2}, [0] * 10),
    ],
)
def test_runs_that_take_no_time_begin_at(given, expected):
    retry, begins = Retry(attempts=10, **given), [0]
    for attempt in range(1, 10):
        begins.append(begins[-1] + retry.wait(attempt))
    assert begins == expected


@pytest.mark.parametrize(
    ("on", "error", "expected"),
    [
        (Exception, OSError(), True),
        (Exception, SystemExit(), False),
        (OSError, ConnectionError(), True),
        ((KeyError, OSError), OSError(), True),
        ((KeyError, OSError), ValueError(), False),
        ((), OSError(), False),
        (lambda error: error.args, OSError("busy"), True),
        (lambda error: error.args, OSError(), False),
        (lambda _error: None, OSError(), False),
    ],
)
def test_types_or_a_function_say_which_exceptions_are_tried_again(on, error, expected):
    assert Retry(on=on).takes(error) is expected


@pytest.mark.parametrize(
    ("until", "outcome", "expected"),
    [
        (None, Outcome(value=None), True),
        (None, Outcome(exception=OSError()), False),
        (lambda outcome: outcome.value, Outcome(value=[1]), True),
        (lambda outcome: outcome.value, Outcome(value=[]), False),
        (lambda outcome: outcome.exception, Outcome(exception=OSError()), True),
        (lambda outcome: outcome.attempt == 3, Outcome(attempt=3), True),
        (lambda _outcome: None, Outcome(value=1), False),
    ],
)
def test_success_is_what_until_says_it_is(until, outcome, expected):
    assert Retry(until=until).accepts(outcome) is expected


class Array:
    """A value that is neither true nor false."""

    def __bool__(self):
        raise ValueError("ambiguous")


def ends(_given):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("predicate", "text"),
    [
        (lambda _given: {}["code"], "KeyError: 'code'"),
        (lambda _given: Array(), "ValueError: ambiguous"),
        (lambda: True, "TypeError: "),
        (ends, "SystemExit: 3"),
    ],
    ids=["raises", "is neither true nor false", "takes no argument", "ends the process"],
)
@pytest.mark.parametrize("name", ["on", "until"])
def test_a_predicate_that_raises_is_named_with_what_it_raised(name, predicate, text):
    retry = Retry(**{name: predicate})
    with pytest.raises(PredicateFailed) as caught:
        _ = retry.takes(OSError()) if name == "on" else retry.accepts(Outcome())
    assert f"Retry({name}=) raised {text}" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_ctrl_c_within_a_predicate_is_ctrl_c():
    def interrupted(_outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Retry(until=interrupted).accepts(Outcome())


def test_a_timeout_may_be_a_timedelta():
    assert Retry(timeout=timedelta(minutes=1)) == Retry(timeout=60)
