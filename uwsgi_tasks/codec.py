"""Jobs as bytes, and back."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import time
from collections.abc import Sequence
from datetime import timedelta
from io import BytesIO
from typing import Any
from zlib import crc32

from uwsgi_tasks import wire
from uwsgi_tasks.errors import DecodeError, Unpicklable, shown
from uwsgi_tasks.model import Job
from uwsgi_tasks.signing import SIZE, Signer
from uwsgi_tasks.standins import look

MAGIC = b"uT\x01"
"""How every payload of ours begins; its last byte is the version."""

_SINGLE, _BATCH, _VALUE, _JSON = b"1", b"n", b"v", b"j"
_SIGNED = {_SINGLE: b"S", _BATCH: b"N", _VALUE: b"V", _JSON: b"J"}
"""The kinds, and what stands for each of them where a digest follows."""
_KINDS = {kind: (kind, False) for kind in _SIGNED} | {
    signed: (kind, True) for kind, signed in _SIGNED.items()
}
_SEEDS = {kind: crc32(kind) for kind in _KINDS}
"""Where the checksum begins: it covers the kind, too."""
_UNCHECKED = (
    "pickled, and no secret is known here by which to tell who has written it: set 'secret', here "
    "and where jobs are submitted"
)
_UNKNOWN = "not JSON, which begins with {, and not written by this version of uwsgi_tasks"
# uWSGI runs a spool file whose body was cut, so the body says how long it is and what is in it.
_HEADER = struct.Struct("<3scQI")
_HEAD = _HEADER.size


def encode(jobs: Sequence[Job], signer: Signer | None = None) -> bytes:
    """Return *jobs*, which differ in id and args alone, as bytes, signed if a *signer* is given.

    Raises Unpicklable, which names what cannot be pickled.
    """
    # Plain tuples: named ones would carry the name of their class, and be twice as slow.
    kind = _SINGLE
    content: tuple[Any, ...] = jobs[0][:]
    if len(jobs) > 1:
        kind, content = _BATCH, (content, [(job.id, job.args) for job in jobs])
    try:
        pickled = pickle.dumps(content, 5)
    except Exception as error:
        raise _unpicklable(jobs, error) from error
    return _sealed(kind, pickled, signer)


def encode_one(job: Job, signer: Signer | None = None, *, pickles: bool = True) -> bytes:
    """Return *job* as bytes, in JSON unless it may be pickled. Raises Unpicklable."""
    return encode((job,), signer) if pickles else wire.encode(job)


def encode_value(value: object, signer: Signer | None = None, *, pickles: bool = True) -> bytes:
    """Return what a task returned or raised as bytes, in JSON unless it may be pickled.

    Raises NotJson, or whatever pickling it raises.
    """
    if not pickles:
        return _sealed(_JSON, wire.encode_value(value), signer)
    return _sealed(_VALUE, pickle.dumps(value, 5), signer)


def _sealed(kind: bytes, content: bytes, signer: Signer | None) -> bytes:
    if signer is None:
        return _HEADER.pack(MAGIC, kind, len(content), crc32(content, _SEEDS[kind])) + content
    kind = _SIGNED[kind]
    head = _HEADER.pack(MAGIC, kind, len(content), crc32(content, _SEEDS[kind]))
    return b"".join((head, signer.sign(head + content), content))


def is_batch(payload: bytes) -> bool:
    """Does *payload*, which is ours, hold many calls?"""
    return payload[3:4] in {_BATCH, _SIGNED[_BATCH]}


def is_job(payload: bytes) -> bool:
    """Is *payload* ours, or a job in JSON?"""
    if payload[:1] != wire.BEGINS:
        return payload[:3] == MAGIC
    try:
        wire.decode(payload)
    except DecodeError:
        return False
    return True


def decode(
    payload: bytes, signer: Signer | None = None, *, plain: bool = False, pickles: bool = True
) -> Sequence[Job]:
    """Return the jobs in *payload*. Raises DecodeError, whatever is wrong with it.

    With a *signer*, nothing is unpickled that it, or who shares its secret, has not signed.
    Without one, a signature cannot be checked, and says nothing: nothing is unpickled at all
    unless it *pickles*. JSON, which nobody signs, is taken only if *plain* says so.
    """
    if plain and payload[:3] != MAGIC:
        if payload[:1] != wire.BEGINS:
            raise DecodeError(_UNKNOWN)
        return (wire.decode(payload),)
    if not pickles:
        raise DecodeError(_UNCHECKED)
    kind, content = _opened(payload, signer)
    try:
        # Signed; or else the folder that it comes from is the user's own: others may not write.
        return _jobs(kind, pickle.loads(content))  # noqa: S301
    except DecodeError:
        raise
    # Unpickling runs the constructors of the arguments: anything may come out of it.
    except BaseException as error:
        raise DecodeError(shown(error)) from error


def decode_value(payload: bytes, signer: Signer | None = None, *, pickles: bool = True) -> Any:
    """Return what `encode_value` was given. Raises DecodeError, whatever is wrong with it."""
    kind, content = _opened(payload, signer)
    if kind == _JSON:
        return wire.decode_value(content)
    if kind != _VALUE:
        raise DecodeError("not the outcome of a job")
    if not pickles:
        raise DecodeError(_UNCHECKED)
    try:
        return pickle.loads(content)  # noqa: S301  checked, as above
    except BaseException as error:
        raise DecodeError(shown(error)) from error


def peek(payload: bytes) -> Sequence[Job]:
    """Return the jobs in *payload* to look at, whoever has written it. Raises DecodeError.

    Nothing that it names is imported or called; stand-ins take the place of objects.
    """
    if payload[:1] == wire.BEGINS:
        return (wire.decode(payload),)
    kind, content = _opened(payload, None)
    try:
        return _jobs(kind, look(content))
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(shown(error)) from error


def _jobs(kind: bytes, fields: Any) -> Sequence[Job]:
    if kind == _SINGLE:
        return (_job(fields),)
    if kind != _BATCH:
        raise DecodeError("not a job")
    first, calls = _job(fields[0]), fields[1]
    name, rest = first.task, first[3:]
    # As Job(...) would, in a quarter of the time.
    return [tuple.__new__(Job, (key, name, args, *rest)) for key, args in calls]


def names(payload: bytes) -> dict[str, str]:
    """Return the id and the task of the first job in *payload*, without building anything."""
    import pickletools  # noqa: PLC0415  for what has killed a process, and nothing else

    if payload[:1] == wire.BEGINS:
        with contextlib.suppress(DecodeError):
            job = wire.decode(payload)
            return {"id": job.id, "task": job.task}
        return {}
    found: list[str] = []
    with contextlib.suppress(Exception):
        for _, argument, _ in pickletools.genops(payload[_content_at(payload) :]):
            found += [argument] if isinstance(argument, str) else []
            if len(found) == len(Job._fields[:2]):
                break
    return dict(zip(Job._fields, found, strict=False))


def _content_at(payload: bytes) -> int:
    _, is_signed = _KINDS.get(payload[3:4], (b"", False))
    return _HEAD + SIZE if is_signed else _HEAD


def _opened(payload: bytes, signer: Signer | None) -> tuple[bytes, bytes]:
    """Return the kind and the content of a payload that is whole. Raises DecodeError."""
    try:
        magic, marked, length, checksum = _HEADER.unpack_from(payload)
    except struct.error as error:
        raise DecodeError(f"cut after {len(payload)} bytes") from error
    if magic != MAGIC or marked not in _KINDS:
        raise DecodeError("not written by this version of uwsgi_tasks")
    kind, is_signed = _KINDS[marked]
    start = _content_at(payload)
    content = payload[start:]
    if len(content) != length or crc32(content, _SEEDS[marked]) != checksum:
        raise DecodeError(f"cut or altered: {len(content)} bytes where {length} were written")
    if signer is not None:
        if not is_signed:
            raise DecodeError("not signed, and a secret is known here: give it to who submits, too")
        if not signer.verifies(payload[:_HEAD] + content, payload[_HEAD:start]):
            raise DecodeError("signed with another secret: add that one to the list in 'secret'")
    return kind, content


def _job(fields: tuple[Any, ...]) -> Job:
    job = Job(*fields)
    if not (type(job.id) is type(job.task) is str and type(job.args) is tuple):
        raise DecodeError("its fields are not those of a job")
    return job


def _unpicklable(jobs: Sequence[Job], cause: Exception) -> Unpicklable:
    first = jobs[0]
    parts = [(f"argument {name!r}", value) for name, value in first.kwargs.items()]
    parts.append(("the buffer", first.buffer))
    parts += [(f"header {name!r}", value) for name, value in (first.headers or {}).items()]
    for job in jobs:
        parts += [(f"argument {number}", value) for number, value in enumerate(job.args, 1)]
    for name, value in parts:
        try:
            pickle.dumps(value, 5)
        except Exception as error:  # noqa: BLE001  __reduce__ may raise anything
            return Unpicklable(
                f"{first.task}: {name}, {_kind(value)}, cannot be pickled ({shown(error)}); "
                "pass what it is made of, such as a primary key or a path"
            )
    return Unpicklable(f"{first.task}: its arguments cannot be pickled ({shown(cause)})")


def _kind(value: object) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"


class _LegacyBuffer(dict[Any, Any]):
    """Stands for the class of uwsgi_tasks 0.7 that held a task's buffer."""


class _LegacyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("uwsgi_tasks.utils", "ProxyDict"):
            return _LegacyBuffer
        return super().find_class(module, name)


def is_legacy(env: dict[Any, Any]) -> bool:
    """Was the spool file with these keys written by uwsgi_tasks 0.7?"""
    return b"function_name" in env and b"setup" in env


def decode_legacy(env: dict[Any, Any], id: str) -> Job:  # noqa: A002  it is the job's id
    """Return the job in a spool file of uwsgi_tasks 0.7. Raises DecodeError."""

    def load(content: bytes) -> Any:
        return _LegacyUnpickler(BytesIO(content)).load()

    try:
        setup = load(env[b"setup"])
        if "body" in env:
            body = load(env["body"])
            args, kwargs = body["args"], body["kwargs"]
        else:
            args, kwargs = load(env[b"args"]), load(env[b"kwargs"])
        wait, at = setup.get("retry_timeout"), setup.get("at")
        count = setup.get("retry_count")
        return Job(
            id=id,
            task=env[b"function_name"].decode(),
            args=tuple(args),
            kwargs=dict(kwargs),
            submitted_at=time.time(),
            priority=int(env[b"priority"]) if env.get(b"priority", b"").isdigit() else None,
            spooler=os.fsdecode(env[b"spooler"]) if b"spooler" in env else None,
            delay=at.total_seconds() if isinstance(at, timedelta) else None,
            working_dir=setup.get("working_dir"),
            # It wrote 0 for a task without a number of runs.
            retry_count=int(count) if count else None,
            retry_timeout=None if wait is None else float(wait),
            buffer=dict(setup.get("buffer") or {}),
        )
    except BaseException as error:
        raise DecodeError(f"a file of uwsgi_tasks 0.7: {shown(error)}") from error
