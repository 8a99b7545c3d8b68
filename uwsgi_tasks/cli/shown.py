"""How values look, on a terminal, in a pipe and in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from uwsgi_tasks.errors import shown

_BARS = "▁▂▃▄▅▆▇█"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def stamp(moment: float | None) -> str | None:
    """Return a time as ISO 8601 in UTC."""
    if moment is None:
        return None
    try:
        text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    # A year that datetime does not know: what somebody dated so is not ours to refuse.
    except (ValueError, OverflowError, OSError):
        return str(moment)
    return text.replace("+00:00", "Z")


def span(seconds: float) -> str:
    """Return a length of time in its two largest units."""
    whole = int(max(0.0, seconds))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def took(seconds: float) -> str:
    """Return how long a run took, in three digits."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < _MINUTE else span(seconds)


def progress(done: float | None, total: float | None) -> str:
    """Return how far a job has come; nothing if it did not say."""
    if done is None:
        return ""
    return f"{done:g}/{total:g}" if total else f"{done:g}"


def sparkline(values: Sequence[float]) -> str:
    """Draw *values* as bars, one character each; a blank stands for nothing."""
    most = max(values, default=0) or 1
    return "".join(
        _BARS[math.ceil(value / most * len(_BARS)) - 1] if value > 0 else " " for value in values
    )


def clean(text: str) -> str:
    """Return *text* so that it can do nothing to the terminal but stand there."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1]
        for letter in text
    )


def safe_repr(value: object) -> str:
    """Return the repr of *value*, which may be anybody's and have none."""
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  __repr__ may raise anything
        return f"<{type(value).__name__}, whose repr failed: {shown(error)}>"


def as_json(value: Any, depth: int = 50) -> Any:
    """Return what JSON can hold of *value*: the repr stands for what it cannot."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    # What contains itself has a repr, and no end.
    if depth and isinstance(value, (list, tuple)):
        return [as_json(item, depth - 1) for item in value]
    if depth and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: as_json(item, depth - 1) for key, item in value.items()}
    return safe_repr(value)


def document(content: Any) -> str:
    """Return *content* as one JSON document."""
    # Escaped: a lone surrogate could not be written.
    return json.dumps(as_json(content), indent=2)


def value(value: Any) -> str:
    """Return *value* as JSON on one line, if JSON has it, else its repr."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return safe_repr(value)


def one_line(text: str) -> str:
    """Return *text* on a single line."""
    return " ".join(text.split())
