"""Jobs as JSON, for programs in any language; ``docs/wire.md`` is its description."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from uwsgi_tasks import json_text
from uwsgi_tasks.errors import DecodeError, NotJson
from uwsgi_tasks.model import Job

BEGINS = b"{"
"""How every such payload begins."""

_quoted = json.encoder.encode_basestring_ascii
_BOXES = {list, tuple, dict}
_LEFT_OUT = {"args", "kwargs", "working_dir", "spooler", "mule", "durable", "serializer"}
"""What is written apart, means nothing on another machine, or can be seen."""
_OPTIONAL = [
    (name, index, Job._field_defaults[name])
    for index, name in enumerate(Job._fields)
    if name in Job._field_defaults and name not in _LEFT_OUT
]
_NUMBER, _WHOLE, _TEXT, _OBJECT = frozenset({int, float}), frozenset({int}), {str}, {dict}
_KINDS: dict[str, tuple[Collection[type], str]] = {
    "id": (_TEXT, "a text"),
    "task": (_TEXT, "a text"),
    "args": ({list}, "a list"),
    "kwargs": (_OBJECT, "an object"),
    "attempt": (_WHOLE, "a whole number from 1"),
    "submitted_at": (_NUMBER, "seconds since 1970"),
    "at": (_NUMBER, "seconds since 1970"),
    "delay": (_NUMBER, "seconds"),
    "priority": (_WHOLE, "a whole number from 0"),
    "retry_count": (_WHOLE, "a whole number from 0"),
    "retry_timeout": (_NUMBER, "seconds"),
    "buffer": (_OBJECT, "an object"),
    "expires_at": (_NUMBER, "seconds since 1970"),
    "result_ttl": (_NUMBER, "seconds"),
    "unique": (_TEXT, "a text"),
    "began_at": (_NUMBER, "seconds since 1970"),
    "headers": (_OBJECT, "an object"),
    "queue": (_TEXT, "a text"),
    "lease": (_NUMBER, "seconds"),
}
"""The fields: of which types they may be, and how that is called."""
_YEAR_9999 = 253_402_300_799
"""In seconds since 1970: nothing could show a later time."""
_RANGES = {
    # As far as databases count.
    "a whole number from 1": (1, 2**31 - 1),
    "a whole number from 0": (0, 2**63 - 1),
    "seconds since 1970": (0, _YEAR_9999),
    "seconds": (0, sys.float_info.max),
}
_FIELDS = {
    name: (Job._fields.index(name), kinds, *_RANGES.get(words, (None, None)))
    for name, (kinds, words) in _KINDS.items()
}
_SPACES = " \t\n\r"
_BLANK = ["", "", *(Job._field_defaults[name] for name in Job._fields[2:])]


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"there is no {word}")


_decoder = json.JSONDecoder(parse_constant=_refuse)
"""Reads JSON, and not what Python's own writes beside it: NaN and Infinity."""


def encode(job: Job) -> bytes:
    """Return *job* as bytes. Raises NotJson, which names what would not come out as it went in."""
    return encode_all((job,))[0]


def encode_all(jobs: Sequence[Job]) -> list[bytes]:
    """Return *jobs*, which differ in id and args alone, each as bytes. Raises NotJson."""
    first = jobs[0]
    _check_shared(first)
    shared = {name: first[index] for name, index, usual in _OPTIONAL if first[index] != usual}
    try:
        head = json_text.encode({"task": first.task, **shared})[:-1]
        tail = f',"kwargs":{json_text.encode(first.kwargs)}}}' if first.kwargs else "}"
    except ValueError as error:
        raise _blamed(first, error) from error
    texts = []
    for job in jobs:
        for number, value in enumerate(job.args, 1):
            if type(value) not in json_text.PLAIN:
                _check(value, f"argument {number}", job.task)
        try:
            args = json_text.encode(job.args)
        except ValueError as error:
            raise _blamed(job, error) from error
        texts.append(f'{head},"id":{_quoted(job.id)},"args":{args}{tail}')
    return [json_text.in_utf8(text) for text in texts]


def decode(payload: bytes) -> Job:
    """Return the job in *payload*. Raises DecodeError, whatever is wrong with it."""
    found = decode_value(payload)
    if type(found) is not dict:
        raise DecodeError("not a JSON object")
    values = _BLANK[:]
    for name, value in found.items():
        index, kinds, least, most = _FIELDS.get(name) or _no_field(name)
        if type(value) not in kinds or not (least is None or least <= value <= most):
            raise DecodeError(f"the field {name!r} takes {_KINDS[name][1]}, not {value!r:.100}")
        values[index] = value
    if not values[1]:
        raise DecodeError("the field 'task' is missing: the name of a task")
    values[2] = tuple(values[2])
    # As Job(...) would, in a third of the time.
    job: Job = tuple.__new__(Job, values)
    return job


def _no_field(name: str) -> NoReturn:
    raise DecodeError(f"a job has no field {name!r:.100}: there are {', '.join(_KINDS)}")


def encode_value(value: Any) -> bytes:
    """Return what a task returned as bytes. Raises NotJson."""
    why = _complaint(value)
    try:
        if not why:
            return json_text.in_utf8(json_text.encode(value))
    except ValueError as error:
        why = f" ({error})"
    raise NotJson(f"the value{why} cannot be written as JSON; with a 'secret' it is pickled")


def decode_value(payload: bytes) -> Any:
    """Return what `encode_value` was given. Raises DecodeError."""
    try:
        text = str(payload, "utf-8")
        if text[:1] not in _SPACES:
            # As `decode` would, which looks for spaces, in half the time.
            value, end = _decoder.raw_decode(text)
            if end == len(text):
                return value
        return _decoder.decode(text)
    # A number of too many digits, or brackets within brackets without end.
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {error}") from error


def _check_shared(job: Job) -> None:
    for name, value in job.kwargs.items():
        if type(value) not in json_text.PLAIN:
            _check(value, f"argument {name!r}", job.task)
    if job.buffer:
        _check(job.buffer, "the buffer", job.task)
    if job.headers:
        _check(job.headers, "a header", job.task)


def _check(value: Any, where: str, task: str) -> None:
    """Raise NotJson if *value* would not be the same when it comes out again."""
    why = _complaint(value)
    if why:
        raise _refused(task, where, why)


def _complaint(value: Any) -> str:
    """Return what makes *value* another one when it comes out; nothing if it stays the same.

    Tuples are let through, and come out as lists.
    """
    try:
        found = json_text.unfit(value, exact=True)
    except RecursionError:
        found = "something that holds itself"
    if not found:
        return ""
    return f" holds {found}, and" if type(value) in _BOXES else f", {found},"


def _blamed(job: Job, error: ValueError) -> NotJson:
    """Return what names the argument with a number that JSON has not, or that has no end."""
    named = [(f"argument {number}", value) for number, value in enumerate(job.args, 1)]
    named += [(f"argument {name!r}", value) for name, value in job.kwargs.items()]
    for where, value in [*named, ("the buffer", job.buffer), ("a header", job.headers)]:
        try:
            json_text.encode(value)
        except ValueError as found:
            return _refused(job.task, where, f" ({found})")
    return _refused(job.task, "a number", f" ({error})")


def _refused(task: str, where: str, why: str) -> NotJson:
    return NotJson(
        f"{task}: {where}{why} cannot be written as JSON; pass what it is made of, such as a "
        "text or a primary key, or declare the task with serializer='pickle'"
    )
