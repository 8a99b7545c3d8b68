"""Jobs as JSON, and back."""

import json
import math
import re
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uwsgi_tasks import wire
from uwsgi_tasks.errors import DecodeError, NotJson, SubmitError
from uwsgi_tasks.model import Job
from uwsgi_tasks.task import CALLERS, Options

ONE = Job("3f2c", "shop.send")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Also halves of surrogate pairs, for which UTF-8 has no place.
    | st.text(st.characters(codec=None))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    max_leaves=10,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def there_and_back(job):
    return wire.decode(wire.encode(job))


def listed(value):
    """Return *value* with lists for tuples."""
    if isinstance(value, (list, tuple)):
        return [listed(one) for one in value]
    if isinstance(value, dict):
        return {key: listed(one) for key, one in value.items()}
    return value


def same(one, other):
    """Are these equal, and of the same types? 1 and True are not, nor are 0.0 and -0.0."""
    return repr(one) == repr(other)


@given(st.lists(VALUES).map(tuple), st.dictionaries(st.text(), VALUES))
@example((2**63, -(2**64), 10**40, 0.1, 1e308, 5e-324, -0.0), {})
@example(([], {}, [[]], [{}], "", None, True, 1, 1.0), {"": {"": []}})
@example(("\ud800", "\udfff\ud800", "\U0001f600", "\0", "\u2028", '"\\'), {"\ud800": "\ud800"})
def test_arguments_come_out_as_they_went_in(args, kwargs):
    found = there_and_back(ONE._replace(args=args, kwargs=kwargs))
    assert same((found.args, found.kwargs), (args, kwargs))


@given(
    st.recursive(SCALARS, lambda inner: st.lists(inner) | st.lists(inner).map(tuple), max_leaves=10)
)
@example((1, (2, ((3,),))))
@example({"a": (1, [(2,)])})
def test_tuples_within_come_out_as_lists(value):
    found = there_and_back(ONE._replace(args=(value,)))
    assert same(found.args, (listed(value),))


FIELDS = {
    "attempt": st.integers(1, 2**31 - 1),
    "submitted_at": st.floats(0, 2e11),
    "at": st.floats(0, 2e11),
    "delay": st.floats(0, 1e9),
    "priority": st.integers(0, 1000),
    "retry_count": st.integers(1, 10**9),
    "retry_timeout": st.floats(0, 1e9),
    "buffer": st.dictionaries(st.text(), VALUES, min_size=1),
    "expires_at": st.floats(0, 2e11),
    "result_ttl": st.floats(0, 1e12),
    "unique": st.text(st.characters(codec=None), min_size=1),
    "began_at": st.floats(0, 2e11),
    "headers": st.dictionaries(st.text(), VALUES, min_size=1),
    "queue": st.text(min_size=1),
    "lease": st.floats(0, 1e7),
    "id": st.text(st.characters(codec=None)),
    "task": st.text(min_size=1),
}


@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_fields_come_out_as_they_went_in(fields):
    job = ONE._replace(**fields)
    assert same(there_and_back(job), job)


def test_each_field_that_is_written_is_tried():
    assert FIELDS.keys() | {"args", "kwargs"} == wire._KINDS.keys()


def test_what_is_of_this_machine_alone_is_left_out():
    job = ONE._replace(
        working_dir="/srv", spooler="/spool", mule=1, durable=True, serializer="pickle"
    )
    assert json.loads(wire.encode(job)) == {"task": "shop.send", "id": "3f2c", "args": []}


def test_what_is_as_usual_is_left_out():
    assert json.loads(wire.encode(ONE)) == {"task": "shop.send", "id": "3f2c", "args": []}


def test_a_text_is_written_in_utf_8():
    assert "é".encode() in wire.encode(ONE._replace(args=("é",)))


@given(st.lists(st.lists(VALUES, max_size=3).map(tuple), min_size=1, max_size=5))
def test_many_calls_are_written_as_each_of_them_would_be(calls):
    jobs = [ONE._replace(id=f"3f2c.{number}", args=args) for number, args in enumerate(calls)]
    found = [wire.decode(payload) for payload in wire.encode_all(jobs)]
    assert same(found, jobs)


def test_arguments_are_not_shared_between_jobs():
    one, other = (wire.decode(b'{"task": "a", "args": [[]]}') for _ in range(2))
    one.args[0].append(1)
    assert other.args == ([],)


# --- what is refused


class Colour(StrEnum):
    RED = "red"


class Text(str):
    __slots__ = ()


LOOP = []
LOOP.append(LOOP)
DEEP = []
for _ in range(2000):
    DEEP = [DEEP]

UNFIT = {
    "bytes": (b"x", "a builtins.bytes"),
    "a set": ({1}, "a builtins.set"),
    "a frozen set": (frozenset(), "a builtins.frozenset"),
    "a date": (datetime(2030, 1, 1, tzinfo=UTC), "a datetime.datetime"),
    "a decimal": (Decimal(1), "a decimal.Decimal"),
    "an object": (object(), "a builtins.object"),
    "a kind of text": (Text("x"), "Text"),
    "a member": (Colour.RED, "Colour"),
    "a whole number as a key": ({1: 2}, "the key 1, which is no text"),
    "nothing as a key": ({None: 2}, "the key None, which is no text"),
    "a tuple as a key": ({(1,): 2}, "the key (1,), which is no text"),
    "a loop": (LOOP, "something that holds itself"),
    "too much within one another": (DEEP, "something that holds itself"),
    "no number": (math.nan, "nan|Out of range"),
    "infinity": (math.inf, "inf|Out of range"),
    "minus infinity": (-math.inf, "inf|Out of range"),
    "a number without end": (10**5000, "digits"),
    "one within": ([[1, {"a": (b"x",)}]], "holds a builtins.bytes"),
    "no number within": ({"a": [math.nan]}, "nan, which JSON has no word for"),
}


def refusal(job):
    with pytest.raises(NotJson) as caught:
        wire.encode(job)
    return str(caught.value)


@pytest.mark.parametrize(("value", "words"), UNFIT.values(), ids=UNFIT)
def test_what_would_not_come_out_is_refused_by_its_position(value, words):
    text = refusal(ONE._replace(args=(1, value)))
    assert text.startswith("shop.send: argument 2")
    assert re.search(words if "|" in words else re.escape(words), text)


@pytest.mark.parametrize(("value", "words"), UNFIT.values(), ids=UNFIT)
def test_what_would_not_come_out_is_refused_by_its_name(value, words):
    text = refusal(ONE._replace(kwargs={"a": 1, "to": value}))
    assert text.startswith("shop.send: argument 'to'")
    assert re.search(words if "|" in words else re.escape(words), text)


@pytest.mark.parametrize("value", [value for value, _ in UNFIT.values()], ids=UNFIT)
def test_a_refusal_names_the_remedies(value):
    text = refusal(ONE._replace(args=(value,)))
    assert "pass what it is made of" in text
    assert "serializer='pickle'" in text


@pytest.mark.parametrize("value", [value for value, _ in UNFIT.values()], ids=UNFIT)
def test_a_buffer_is_looked_at_as_well(value):
    assert refusal(ONE._replace(buffer={"a": value})).startswith("shop.send: the buffer")


@pytest.mark.parametrize("value", [value for value, _ in UNFIT.values()], ids=UNFIT)
def test_headers_are_looked_at_as_well(value):
    assert refusal(ONE._replace(headers={"a": value})).startswith("shop.send: a header")


def test_of_many_calls_the_one_that_cannot_be_written_is_found():
    jobs = [ONE._replace(args=(1,)), ONE._replace(args=(math.nan,))]
    with pytest.raises(NotJson, match="argument 1"):
        wire.encode_all(jobs)


def test_a_refusal_is_a_refusal_to_submit():
    assert issubclass(NotJson, SubmitError)


def test_there_is_an_option_that_a_refusal_names():
    assert Options(serializer="pickle", working_dir=CALLERS).serializer == "pickle"


# --- what others write


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"task": "a"}}', "not JSON"),
        (b'{"task": "a", "args": [NaN]}', "not JSON: there is no NaN"),
        (b'{"task": "a", "args": [-Infinity]}', "not JSON: there is no -Infinity"),
        (b'{"task": "a", "args": [' + b"1" * 5000 + b"]}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"task": "\xff"}', "not JSON"),
        ('{"task": "a"}'.encode("utf-16"), "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"task"', "not a JSON object"),
        (b"{}", "the field 'task' is missing"),
        (b'{"task": ""}', "the field 'task' is missing"),
        (b'{"task": null}', "the field 'task' takes a text, not None"),
        (b'{"task": "a", "tusk": 1}', "a job has no field 'tusk': there are id, task, args"),
        (b'{"task": "a", "serializer": "pickle"}', "a job has no field 'serializer'"),
        (b'{"task": "a", "args": {}}', "the field 'args' takes a list, not {}"),
        (b'{"task": "a", "kwargs": []}', "the field 'kwargs' takes an object, not []"),
        (b'{"task": "a", "id": 7}', "the field 'id' takes a text, not 7"),
        (b'{"task": "a", "attempt": 0}', "the field 'attempt' takes a whole number from 1, not 0"),
        (b'{"task": "a", "attempt": 1.5}', "the field 'attempt' takes a whole number from 1"),
        (b'{"task": "a", "attempt": true}', "the field 'attempt' takes a whole number from 1"),
        (b'{"task": "a", "attempt": 1%s}' % (b"0" * 300), "the field 'attempt' takes"),
        (b'{"task": "a", "priority": -1}', "the field 'priority' takes a whole number from 0"),
        (b'{"task": "a", "at": -1}', "the field 'at' takes seconds since 1970, not -1"),
        (b'{"task": "a", "at": 1e12}', "the field 'at' takes seconds since 1970"),
        (b'{"task": "a", "at": "now"}', "the field 'at' takes seconds since 1970, not 'now'"),
        (b'{"task": "a", "result_ttl": -0.1}', "the field 'result_ttl' takes seconds, not -0.1"),
        (b'{"task": "a", "result_ttl": 1e999}', "the field 'result_ttl' takes seconds, not inf"),
        (b'{"task": "a", "lease": false}', "the field 'lease' takes seconds, not False"),
        (b'{"task": "a", "buffer": "x"}', "the field 'buffer' takes an object, not 'x'"),
    ],
)
def test_what_is_no_job_is_refused_with_the_reason(payload, words):
    with pytest.raises(DecodeError) as caught:
        wire.decode(payload)
    assert str(caught.value).startswith(words)


def test_a_refusal_is_short():
    with pytest.raises(DecodeError) as caught:
        wire.decode(json.dumps({"task": "a", "id": ["x" * 10_000]}).encode())
    assert len(str(caught.value)) < 200


@given(st.binary())
@example(b'{"task": "a", "at": 1e400}')
def test_any_bytes_are_a_job_or_refused(payload):
    try:
        found = wire.decode(payload)
    except DecodeError:
        return
    assert isinstance(found, Job)


@given(st.dictionaries(st.sampled_from([*wire._KINDS, "other"]), JSON).map(json.dumps))
def test_any_json_is_a_job_that_can_be_written_again_or_refused(text):
    try:
        found = wire.decode(text.encode())
    except DecodeError:
        return
    assert same(there_and_back(found), found)


def test_white_space_is_free():
    assert wire.decode(b'{\n  "task" : "a" ,\n  "args" : [ 1 ]\n}\n').args == (1,)


# --- values


@given(VALUES)
def test_a_value_comes_out_as_it_went_in(value):
    assert same(wire.decode_value(wire.encode_value(value)), value)


@pytest.mark.parametrize("value", [value for value, _ in UNFIT.values()], ids=UNFIT)
def test_a_value_that_would_not_come_out_is_refused(value):
    with pytest.raises(NotJson, match=r"the value.*with a 'secret' it is pickled"):
        wire.encode_value(value)


@pytest.mark.parametrize("payload", [b"", b"{", b"NaN", b"\xff"])
def test_a_value_that_cannot_be_read_is_refused(payload):
    with pytest.raises(DecodeError, match="not JSON"):
        wire.decode_value(payload)
