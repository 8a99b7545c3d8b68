"""Jobs as bytes, and back."""

import contextlib
import pickle
import re
import struct
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import as_env, legacy
from uwsgi_tasks import codec
from uwsgi_tasks.codec import (
    MAGIC,
    decode,
    decode_legacy,
    decode_value,
    encode,
    encode_value,
    is_batch,
    is_legacy,
    peek,
)
from uwsgi_tasks.codec import names as names_of
from uwsgi_tasks.errors import DecodeError, SubmitError
from uwsgi_tasks.model import Job
from uwsgi_tasks.signing import SIZE, Signer

ONE = Job("3f2c", "shop.send", (1, "two"), {"three": [3]}, buffer={"done": {4}})
SINGLE = encode([ONE])
MANY = [ONE._replace(id=f"3f2c.{number}", args=(number,)) for number in range(5)]
BATCH = encode(MANY)

OURS, OLD, THEIRS = Signer(["our secret"]), Signer(["our old secret"]), Signer(["their secret"])
ROTATED = Signer(["our secret", "our old secret"])
HEAD = struct.calcsize("<3scQI")
SIGNED, SIGNED_BATCH = encode([ONE], OURS), encode(MANY, OURS)

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


# --- signed


@pytest.mark.parametrize("jobs", [[ONE], MANY], ids=["one", "many"])
def test_what_was_signed_comes_back(jobs):
    assert list(decode(encode(jobs, OURS), OURS)) == jobs


@pytest.mark.parametrize("signer", [OURS, OLD])
def test_what_any_of_our_secrets_has_signed_is_read(signer):
    assert list(decode(encode([ONE], signer), ROTATED)) == [ONE]


def test_the_first_of_our_secrets_signs():
    payload = encode([ONE], ROTATED)
    assert list(decode(payload, OURS)) == [ONE]
    with pytest.raises(DecodeError):
        decode(payload, OLD)


@pytest.mark.parametrize("payload", [SINGLE, BATCH, encode_value(1)], ids=["one", "many", "value"])
def test_what_is_not_signed_is_refused_where_a_secret_is_known(payload):
    with pytest.raises(DecodeError, match="not signed, and a secret is known here"):
        decode(payload, OURS)


@pytest.mark.parametrize("jobs", [[ONE], MANY], ids=["one", "many"])
def test_what_another_secret_has_signed_is_refused_with_the_remedy(jobs):
    with pytest.raises(DecodeError, match="add that one to the list in 'secret'"):
        decode(encode(jobs, THEIRS), OURS)


def test_a_digest_does_not_hold_for_another_kind_of_content():
    # What was signed as a value must not be taken for a job, though its bytes are the same.
    value = encode_value(ONE[:], OURS)
    digest, content = value[HEAD : HEAD + SIZE], value[HEAD + SIZE :]
    forged = whole(b"S", content)[:HEAD] + digest + content
    with pytest.raises(DecodeError, match="another secret"):
        decode(forged, OURS)


def test_where_no_secret_is_known_a_signature_says_nothing():
    assert list(decode(SIGNED)) == [ONE]


@pytest.mark.parametrize(("payload", "expected"), [(SIGNED, False), (SIGNED_BATCH, True)])
def test_many_calls_are_told_from_one_where_they_are_signed(payload, expected):
    assert is_batch(payload) is expected


@pytest.mark.parametrize("payload", [SIGNED, SIGNED_BATCH])
def test_the_first_job_that_is_signed_can_be_named(payload):
    assert names_of(payload)["task"] == "shop.send"


# --- what a task returned or raised


@pytest.mark.parametrize("signer", [None, OURS], ids=["unsigned", "signed"])
@given(value=VALUES)
def test_a_value_comes_back(signer, value):
    assert decode_value(encode_value(value, signer), signer) == value


def test_an_exception_comes_back():
    found = decode_value(encode_value(OSError("no such host")))
    assert (type(found), str(found)) == (OSError, "no such host")


def test_a_value_that_cannot_be_pickled_raises():
    with pytest.raises(TypeError):
        encode_value(threading.Lock())


@pytest.mark.parametrize(
    ("payload", "signer"),
    [
        (SINGLE, None),
        (SIGNED, OURS),
        (encode_value(1), OURS),
        (b"", None),
        (encode_value(1, THEIRS), OURS),
    ],
)
def test_what_is_no_value_is_a_decode_error(payload, signer):
    with pytest.raises(DecodeError):
        decode_value(payload, signer)


@pytest.mark.parametrize("signer", [None, OURS], ids=["unsigned", "signed"])
def test_a_value_is_no_job(signer):
    with pytest.raises(DecodeError, match="not a job"):
        decode(encode_value(ONE[:], signer), signer)


def test_a_value_whose_constructor_exits_is_a_decode_error():
    with pytest.raises(DecodeError, match="SystemExit"):
        decode_value(encode_value(Exiting()))


class Exiting:
    def __reduce__(self):
        return sys.exit, (3,)


# --- to look at


@pytest.mark.parametrize("payload", [SINGLE, SIGNED], ids=["unsigned", "signed"])
def test_a_job_can_be_looked_at_whoever_has_written_it(payload):
    assert list(peek(payload)) == [ONE]


@pytest.mark.parametrize("payload", [BATCH, SIGNED_BATCH], ids=["unsigned", "signed"])
def test_many_calls_can_be_looked_at(payload):
    assert list(peek(payload)) == MANY


def test_looking_at_a_job_runs_nothing():
    (job,) = peek(encode([ONE._replace(args=(Exiting(),))]))
    assert repr(job.args) == "(<sys.exit(3)>,)"


@pytest.mark.parametrize(
    "payload",
    [b"", SINGLE[:-1], encode_value(1), whole(b"1", b"nonsense"), whole(b"1", pickle.dumps(5))],
)
def test_what_is_no_job_cannot_be_looked_at(payload):
    with pytest.raises(DecodeError):
        peek(payload)


# --- whatever comes


@st.composite
def altered(draw, payload):
    """A payload with pieces of it cut out, replaced, doubled or inserted; or cut off."""
    content = bytearray(payload)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(start + 20, len(content))))
        content[start:end] = draw(
            st.one_of(st.binary(max_size=20), st.just(bytes(content[start:end]) * 2))
        )
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


@st.composite
def forged(draw, payload):
    """A payload that was altered, whose length and sum were made right again."""
    changed = draw(altered(payload))
    kind = draw(st.sampled_from([b"1", b"n", b"v", b"S", b"N", b"V"]))
    digest = draw(st.sampled_from([b"", changed[HEAD : HEAD + SIZE], bytes(SIZE)]))
    content = draw(
        st.sampled_from([changed[HEAD:], changed[HEAD + SIZE :], payload[HEAD + SIZE :]])
    )
    return whole(kind, content)[:HEAD] + digest + content


WRITTEN = [SINGLE, BATCH, SIGNED, SIGNED_BATCH, encode([ONE], THEIRS), encode_value([1], OURS)]
SOUND = {payload[HEAD + SIZE :] for payload in (SIGNED, SIGNED_BATCH, encode_value([1], OURS))}
"""What may be unpickled where our secret is known."""
ANYTHING = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(WRITTEN),
    st.sampled_from(WRITTEN).flatmap(altered),
)


@contextlib.contextmanager
def watched():
    """Note what is unpickled meanwhile."""
    loaded, loads = [], pickle.loads
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            codec.pickle, "loads", lambda content: loaded.append(content) or loads(content)
        )
        yield loaded


def read(way, payload, *given):
    """Read a payload; what comes of it is jobs, a value, or a DecodeError."""
    with watched() as loaded:
        try:
            found = way(payload, *given)
        except DecodeError:
            found = None
        if way is not decode_value:
            assert {type(job) for job in found or ()} <= {Job}
    return loaded


@settings(deadline=None, max_examples=500)
@given(ANYTHING | st.sampled_from(WRITTEN).flatmap(forged))
def test_nothing_is_unpickled_that_we_have_not_signed(payload):
    assert set(read(decode, payload, OURS)) <= SOUND
    assert set(read(decode_value, payload, OURS)) <= SOUND


@settings(deadline=None, max_examples=500)
@given(ANYTHING)
def test_whatever_comes_unsigned_is_jobs_or_a_decode_error(payload):
    read(decode, payload)
    read(decode_value, payload)


@settings(deadline=None, max_examples=500)
@given(ANYTHING)
def test_whatever_is_looked_at_is_never_unpickled(payload):
    assert read(peek, payload) == []


@settings(deadline=None)
@given(ANYTHING | st.sampled_from(WRITTEN).flatmap(forged))
def test_whatever_comes_has_a_name_or_none(payload):
    assert set(names_of(payload)) <= {"id", "task"}


@pytest.mark.parametrize("payload", [SIGNED, SIGNED_BATCH], ids=["one", "many"])
def test_a_signed_payload_cut_anywhere_is_not_unpickled(payload):
    assert [read(decode, payload[:end], OURS) for end in range(len(payload))] == [[]] * len(payload)


@pytest.mark.parametrize("payload", [SIGNED, SIGNED_BATCH], ids=["one", "many"])
def test_a_signed_payload_with_one_altered_bit_is_not_unpickled(payload):
    for place in range(len(payload) * 8):
        changed = bytearray(payload)
        changed[place // 8] ^= 1 << place % 8
        assert read(decode, bytes(changed), OURS) == []
