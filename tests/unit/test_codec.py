"""Jobs as bytes, and back."""

import pickle
import re
import struct
import threading
import time
from datetime import UTC, datetime, timedelta
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import as_env, legacy
from uwsgi_tasks.codec import MAGIC, decode, decode_legacy, encode, is_batch, is_legacy
from uwsgi_tasks.codec import names as names_of
from uwsgi_tasks.errors import DecodeError, SubmitError
from uwsgi_tasks.model import Job

ONE = Job("3f2c", "shop.send", (1, "two"), {"three": [3]}, buffer={"done": {4}})
SINGLE = encode([ONE])
MANY = [ONE._replace(id=f"3f2c.{number}", args=(number,)) for number in range(5)]
BATCH = encode(MANY)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def whole(kind, content, magic=MAGIC):
    """A payload whose length and sum are right, whatever is in it."""
    return struct.pack("<3scQI", magic, kind, len(content), crc32(content, crc32(kind))) + content


@given(st.lists(VALUES).map(tuple), st.dictionaries(st.text(), VALUES))
def test_what_was_encoded_comes_back(args, kwargs):
    job = ONE._replace(args=args, kwargs=kwargs)
    assert list(decode(encode([job]))) == [job]


@given(st.lists(st.lists(VALUES).map(tuple), min_size=2))
def test_many_calls_come_back_in_their_order(calls):
    jobs = [ONE._replace(id=str(number), args=args) for number, args in enumerate(calls)]
    assert list(decode(encode(jobs))) == jobs


def test_what_comes_back_are_jobs():
    assert {type(job) for job in (*decode(SINGLE), *decode(BATCH))} == {Job}


@pytest.mark.parametrize(("payload", "expected"), [(SINGLE, False), (BATCH, True)])
def test_many_calls_are_told_from_one(payload, expected):
    assert is_batch(payload) is expected


def decoded(payload):
    """What becomes of *payload*: jobs, or None for a DecodeError; all else is raised."""
    try:
        return list(decode(payload))
    except DecodeError:
        return None


@given(st.binary())
def test_bytes_of_others_are_a_decode_error(payload):
    with pytest.raises(DecodeError):
        decode(payload)


@given(st.sampled_from([b"1", b"n", b"?"]), st.binary())
def test_any_content_under_our_header_is_jobs_or_a_decode_error(kind, content):
    found = decoded(whole(kind, content))
    assert found is None or all(type(job) is Job for job in found)


@given(st.sampled_from([b"1", b"n"]), VALUES)
def test_any_value_under_our_header_is_jobs_or_a_decode_error(kind, value):
    found = decoded(whole(kind, pickle.dumps(value)))
    assert found is None or all(type(job) is Job for job in found)


@pytest.mark.parametrize("payload", [SINGLE, BATCH], ids=["single", "batch"])
def test_a_payload_cut_anywhere_is_found(payload):
    assert [end for end in range(len(payload)) if decoded(payload[:end]) is not None] == []


@pytest.mark.parametrize("payload", [SINGLE, BATCH], ids=["single", "batch"])
def test_a_payload_with_one_altered_byte_is_found(payload):
    def altered(at):
        return payload[:at] + bytes([payload[at] ^ 0x20]) + payload[at + 1 :]

    assert [at for at in range(len(payload)) if decoded(altered(at)) is not None] == []


@pytest.mark.parametrize("payload", [SINGLE, BATCH], ids=["single", "batch"])
def test_a_payload_that_something_was_added_to_is_found(payload):
    assert decoded(payload + b"\0") is None


def test_a_cut_payload_says_how_much_of_it_is_there():
    content = len(SINGLE) - 16
    with pytest.raises(DecodeError, match=f"{content - 1} bytes where {content} were written"):
        decode(SINGLE[:-1])


def test_a_payload_of_a_later_version_says_so():
    with pytest.raises(DecodeError, match="not written by this version"):
        decode(whole(b"1", pickle.dumps(ONE[:]), magic=b"uT\x02"))


class Explosive:
    def __reduce__(self):
        return (int, ("not a number",))


def test_an_argument_whose_constructor_fails_is_a_decode_error_that_tells_why():
    with pytest.raises(DecodeError, match="ValueError: invalid literal"):
        decode(encode([ONE._replace(args=(Explosive(),))]))


class Quitting:
    def __reduce__(self):
        return (exec, ("raise SystemExit(3)",))


def test_an_argument_whose_constructor_exits_is_a_decode_error():
    # Whoever decodes is a spooler as well, and must not end with it.
    with pytest.raises(DecodeError, match="SystemExit"):
        decode(encode([ONE._replace(args=(Quitting(),))]))


@pytest.mark.parametrize(
    "fields", [(), ("id",), (1, "shop.send"), ("id", 2), ("id", "t", [1]), ("x",) * 16]
)
def test_fields_that_are_not_those_of_a_job_are_a_decode_error(fields):
    with pytest.raises(DecodeError):
        decode(whole(b"1", pickle.dumps(fields)))


# --- what cannot be pickled


class Refusing:
    def __reduce__(self):
        raise RuntimeError("never")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"args": (1, threading.Lock())}, "argument 2, a _thread.lock, cannot be pickled"),
        ({"kwargs": {"lock": threading.Lock()}}, "argument 'lock', a _thread.lock, cannot"),
        ({"buffer": {"lock": threading.Lock()}}, "the buffer, a builtins.dict, cannot"),
        (
            {"args": (Refusing(),)},
            "argument 1, a .*Refusing, cannot be pickled .RuntimeError: never.",
        ),
        ({"kwargs": {"f": lambda: 0}}, "argument 'f', a builtins.function, cannot"),
    ],
)
def test_the_argument_that_cannot_be_pickled_is_named(changes, named):
    with pytest.raises(SubmitError, match=named):
        encode([ONE._replace(**changes)])


def test_the_remedy_for_what_cannot_be_pickled_is_named():
    with pytest.raises(SubmitError, match="pass what it is made of"):
        encode([ONE._replace(args=(threading.Lock(),))])


def test_of_many_calls_the_one_that_cannot_be_pickled_is_found():
    with pytest.raises(SubmitError, match=r"argument 1, a _thread.lock"):
        encode([*MANY, ONE._replace(args=(threading.Lock(),))])


class Once:
    """Can be pickled from the second time on."""

    tries = 0

    def __reduce__(self):
        self.tries += 1
        if self.tries == 1:
            raise RuntimeError("not yet")
        return (Once, ())


def test_a_value_that_cannot_be_pickled_just_now_is_refused_all_the_same():
    with pytest.raises(SubmitError, match=re.escape("cannot be pickled (RuntimeError: not yet)")):
        encode([ONE._replace(args=(Once(),))])


# --- files of uwsgi_tasks 0.7


def old(function="shop.tasks.send", *call, **setup):
    return as_env(legacy(function, *call, **setup))


def test_a_file_of_0_7_is_known_by_its_keys():
    assert is_legacy(old())


@pytest.mark.parametrize(
    "env",
    [
        {"body": SINGLE},
        {b"function_name": b"f"},
        {b"setup": b""},
        {b"ud_spool_func": b"f", b"args": b""},
    ],
)
def test_a_file_of_others_is_not_taken_for_one_of_0_7(env):
    assert not is_legacy(env)


def test_a_job_of_0_7_keeps_its_call():
    job = decode_legacy(old("shop.tasks.send", (1, "ä"), {"copy": True}), "old_1")
    assert (job.id, job.task, job.args, job.kwargs) == (
        *("old_1", "shop.tasks.send"),
        *((1, "ä"), {"copy": True}),
    )


def test_a_large_job_of_0_7_has_its_arguments_in_the_body():
    env = old("shop.tasks.send", ("x" * 70_000,), {"copy": True})
    assert "body" in env
    job = decode_legacy(env, "1")
    assert (job.args, job.kwargs) == (("x" * 70_000,), {"copy": True})


def test_a_job_of_0_7_keeps_its_working_directory():
    assert decode_legacy(old(working_dir="/srv/shop"), "1").working_dir == "/srv/shop"


def test_a_job_of_0_7_without_a_working_directory_has_none():
    assert decode_legacy(old(working_dir=None), "1").working_dir is None


@pytest.mark.parametrize("wait", [5, timedelta(seconds=5)])
def test_a_job_of_0_7_keeps_its_retries(wait):
    job = decode_legacy(old(retry_count=3, retry_timeout=wait), "1")
    assert (job.retry_count, job.retry_timeout) == (3, 5.0)


def test_a_job_of_0_7_that_set_no_number_of_runs_has_none():
    # 0.7 wrote a 0, by which it meant that none was set.
    assert decode_legacy(old(), "1").retry_count is None


def test_a_job_of_0_7_keeps_its_buffer():
    buffer = decode_legacy(old(buffer={"results": ["a", "b"]}), "1").buffer
    assert (type(buffer), buffer) == (dict, {"results": ["a", "b"]})


def test_a_job_of_0_7_with_a_delay_keeps_it_for_its_next_call():
    assert decode_legacy(old(at=timedelta(seconds=20)), "1").delay == 20.0


def test_a_job_of_0_7_keeps_its_priority_and_its_spooler():
    job = decode_legacy(old(priority="5", spooler="/srv/sp\xe4ol"), "1")
    assert (job.priority, job.spooler) == (5, "/srv/sp\xe4ol")


@pytest.mark.parametrize("priority", [None, "high", "-1", ""])
def test_a_job_of_0_7_without_a_number_has_no_priority(priority):
    env = old() if priority is None else {**old(), b"priority": priority.encode()}
    job = decode_legacy(env, "1")
    assert (job.priority, job.spooler) == (None, None)


def test_a_job_of_0_7_was_submitted_when_it_is_read_for_all_we_know():
    before = time.time()
    assert before <= decode_legacy(old(), "1").submitted_at <= time.time()


@pytest.mark.parametrize("at", [1_700_000_000, datetime(2023, 1, 1, tzinfo=UTC)])
def test_a_job_of_0_7_with_a_time_is_due_when_uwsgi_runs_it(at):
    job = decode_legacy(old(at=at), "1")
    assert (job.at, job.delay) == (None, None)


@pytest.mark.parametrize("key", [b"setup", b"args", b"kwargs"])
@given(content=st.binary())
def test_any_bytes_in_a_file_of_0_7_are_a_job_or_a_decode_error(key, content):
    try:
        found = decode_legacy({**old(), key: content}, "1")
    except DecodeError:
        return
    assert type(found) is Job


@pytest.mark.parametrize("key", [b"setup", b"args", b"kwargs"])
def test_a_file_of_0_7_cut_anywhere_is_a_decode_error(key):
    env = old("shop.send", (1, "two"), {"three": 3}, retry_count=2)
    for end in range(len(env[key])):
        with pytest.raises(DecodeError, match=r"a file of uwsgi_tasks 0\.7"):
            decode_legacy({**env, key: env[key][:end]}, "1")


@pytest.mark.parametrize("key", [b"args", b"kwargs"])
def test_a_file_of_0_7_that_lacks_a_key_is_a_decode_error(key):
    env = old()
    del env[key]
    with pytest.raises(DecodeError):
        decode_legacy(env, "1")


def test_a_class_of_0_7_that_is_not_the_buffer_is_not_invented():
    content = b"cuwsgi_tasks.utils\nget_function_path\n."
    with pytest.raises(DecodeError, match=r"uwsgi_tasks\.utils"):
        decode_legacy({**old(), b"args": content}, "1")


@pytest.mark.parametrize("payload", [SINGLE, BATCH], ids=["single", "batch"])
def test_the_first_job_can_be_named_without_unpickling_it(payload):
    names = {SINGLE: "3f2c", BATCH: "3f2c.0"}
    assert names_of(payload) == {"id": names[payload], "task": "shop.send"}


@given(st.binary())
def test_of_bytes_of_others_there_is_no_more_to_name_than_two_texts(payload):
    assert set(names_of(payload)) <= {"id", "task"}
