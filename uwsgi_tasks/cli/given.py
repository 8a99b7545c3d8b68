"""What is typed on the command line, as values."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

_SPAN = re.compile(r"(?P<number>\d+(?:\.\d+)?) *(?P<unit>ms|s|m|h|d|w)?")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_KEYWORD = re.compile(r"([^\W\d]\w*)=(.*)", re.DOTALL)


def span(text: str) -> float:
    """Return a length of time in seconds: 90, 90s, 1.5h. Raises click.BadParameter."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no length of time: write 90, 90s, 15m, 1.5h or 7d")
    return float(found["number"]) * _UNITS[found["unit"] or "s"]


def moment(text: str) -> float:
    """Return a time in seconds since 1970: ISO 8601, or that number. Raises click.BadParameter."""
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    try:
        # Without an offset it is the time that this machine's clock shows.
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{text!r} is no time: write 2030-01-31T08:00, or with an offset or a Z behind"
        ) from error


def arguments(
    texts: Sequence[str], *, as_text: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call; each is JSON, with ``name=`` before it a keyword argument.

    *as_text* takes them as they are. Raises click.UsageError.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        keyword = _KEYWORD.fullmatch(text)
        value = _value(keyword[2] if keyword else text, text, as_text=as_text)
        if keyword is None:
            args.append(value)
        elif keyword[1] in kwargs:
            raise click.UsageError(f"{keyword[1]} is given twice")
        else:
            kwargs[keyword[1]] = value
    return tuple(args), kwargs


def takes_call_options(func: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of one call to a command."""
    for option in (
        click.option("--spooler", metavar="DIR", help="Into this spooler's directory."),
        click.option("--queue", metavar="NAME", help="Into this queue on Redis."),
        click.option("--priority", type=click.IntRange(min=0), help="Larger is less important."),
        click.option("--delay", type=span, metavar="SPAN", help="Not before so long from now."),
        click.option("--at", type=moment, metavar="TIME", help="Not before this time."),
    ):
        func = option(func)
    return func


def call_options(
    at: float | None,
    delay: float | None,
    priority: int | None,
    spooler: str | None,
    queue: str | None = None,
) -> dict[str, Any]:
    """Return those that were given, as `Task.using` takes them. Raises click.UsageError."""
    if at is not None and delay is not None:
        raise click.UsageError("--at and --delay exclude each other")
    found = {
        "at": at if delay is None else timedelta(seconds=delay),
        "priority": priority,
        "spooler": spooler and str(Path(spooler).absolute()),
        "queue": queue,
    }
    return {name: value for name, value in found.items() if value is not None}


def _value(text: str, whole: str, *, as_text: bool) -> Any:
    if as_text:
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        quoted = f"{whole.removesuffix(text)}{json.dumps(text, ensure_ascii=False)}"
        raise click.UsageError(
            f"{whole!r} is not JSON: quote a text twice, as in '{quoted}', or take all arguments "
            "as texts with --text"
        ) from error
