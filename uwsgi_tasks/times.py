"""Times and durations as users give them, in seconds."""

from __future__ import annotations

import time
import warnings
from datetime import UTC, datetime, timedelta

from uwsgi_tasks.errors import InvalidTask

END = 253_402_300_800.0
"""The end of the year 9999, in seconds since 1970: no datetime is later."""


def seconds(value: float | timedelta, name: str) -> float:
    """Return *value* in seconds; it may be a number or a timedelta, and not less than none."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTask(f"{name} must be seconds or a timedelta, not {value!r}")
    if not 0 <= value < float("inf"):
        raise InvalidTask(f"{name} must not be negative, and must end: {value!r}")
    return float(value)


def due(
    value: float | datetime | timedelta | None, now: float | None = None, *, name: str = "at"
) -> tuple[float | None, float | None]:
    """Return when *value* is, in seconds since 1970, and the delay if it is a timedelta.

    It may be a timestamp, an aware datetime, or a timedelta from *now*, by default this moment.
    A naive datetime is taken for UTC, with a warning. Raises InvalidTask for anything else.
    """
    if value is None:
        return None, None
    if isinstance(value, timedelta):
        delay = seconds(value, name)
        at = (time.time() if now is None else now) + delay
        if at >= END:
            raise InvalidTask(f"{name}={value!r} is after the year 9999")
        return at, delay
    if isinstance(value, datetime):
        if value.tzinfo is None:
            warnings.warn(
                f"{name}={value}: a datetime without a time zone is taken for UTC; "
                "give it one, or use a timedelta",
                stacklevel=4,
            )
            value = value.replace(tzinfo=UTC)
        return value.timestamp(), None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidTask(f"{name}= takes a timestamp, a datetime or a timedelta, not {value!r}")
    if not 0 <= value < END:
        raise InvalidTask(f"{name}={value!r} is not a time in seconds since 1970")
    return float(value), None
