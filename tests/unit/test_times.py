"""Times and durations as users give them."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from uwsgi_tasks.errors import InvalidTask
from uwsgi_tasks.times import due, seconds

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (2, 2.0),
        (0.25, 0.25),
        (timedelta(days=1), 86400.0),
        (timedelta(milliseconds=1500), 1.5),
    ],
)
def test_a_duration_is_seconds(value, expected):
    assert seconds(value, "delay") == expected


@pytest.mark.parametrize(
    "value", [-1, -0.001, timedelta(seconds=-1), float("inf"), float("nan"), "5", None, True, [1]]
)
def test_what_is_no_duration_is_refused_by_its_name(value):
    with pytest.raises(InvalidTask, match="retry_timeout must"):
        seconds(value, "retry_timeout")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, (None, None)),
        (NOW, (NOW, None)),
        (5, (5.0, None)),
        (timedelta(seconds=10), (NOW + 10, 10.0)),
        (timedelta(0), (NOW, 0.0)),
        (datetime.fromtimestamp(NOW, UTC), (NOW, None)),
        (datetime.fromtimestamp(NOW, timezone(timedelta(hours=3))), (NOW, None)),
    ],
)
def test_a_time_is_seconds_since_1970(value, expected):
    assert due(value, NOW) == expected


def test_a_timedelta_counts_from_this_moment_if_no_other_is_given(clock):
    before = clock()
    at, _ = due(timedelta(seconds=60))
    assert before + 60 <= at <= clock() + 60


def test_a_datetime_without_a_zone_is_utc_with_a_warning():
    with pytest.warns(UserWarning, match="taken for UTC"):
        at, _ = due(datetime(2030, 1, 1), NOW)  # noqa: DTZ001  that is the point
    assert at == datetime(2030, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "value",
    [
        *("tomorrow", True, [1], Decimal(1), -1, float("nan"), float("inf")),
        *(253_402_300_800, 1e300, timedelta(seconds=-1), timedelta.max),
    ],
)
def test_what_is_no_time_is_refused(value):
    with pytest.raises(InvalidTask, match="at"):
        due(value, NOW)


def test_the_last_second_of_the_year_9999_is_a_time():
    assert due(253_402_300_799) == (253_402_300_799.0, None)


@pytest.mark.parametrize("value", ["tomorrow", -1, timedelta(seconds=-1), timedelta.max])
def test_a_time_that_is_refused_is_named(value):
    with pytest.raises(InvalidTask, match="expires"):
        due(value, NOW, name="expires")


def test_a_datetime_without_a_zone_is_named():
    with pytest.warns(UserWarning, match="expires="):
        due(datetime(2030, 1, 1), NOW, name="expires")  # noqa: DTZ001  that is the point
