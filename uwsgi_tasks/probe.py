"""A question to a running spooler, and its answer: two small files in its directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from uwsgi_tasks.errors import SubmitError, TasksError
from uwsgi_tasks.marks import Peers
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.signing import Signer
from uwsgi_tasks.spool import PROBE
from uwsgi_tasks.spool_file import give_away, locked, pack, write_whole

log = logging.getLogger(__name__)

MARK = {"uwsgi_tasks": "probe"}
"""The variable of a spool file that is a question."""

OPTIONS = (
    "binary-path", "die-on-term", "enable-threads", "farm", "import", "lazy", "lazy-apps",
    "master", "module", "mule", "mule-harakiri", "mule-msg-size", "mules", "need-app",
    "processes", "py-import", "pyimport", "python-import", "shared-import", "shared-py-import",
    "shared-pyimport", "shared-python-import", "single-interpreter", "spooler", "spooler-chdir",
    "spooler-external", "spooler-freq", "spooler-frequency", "spooler-harakiri",
    "spooler-import", "spooler-max-tasks", "spooler-ordered", "spooler-processes",
    "spooler-py-import", "spooler-pyimport", "spooler-python-import", "spooler-quiet", "strict",
    "touch-spoolers-reload", "uid", "wsgi", "wsgi-file",
)  # fmt: skip
"""What is told of uWSGI's options: none of these is ever a secret."""

_START = 1.0
"""Seconds that a spooler which is just starting gets to leave its mark."""
_FIRST, _LONGEST = 0.005, 0.1
"""Seconds between two looks for the answer: more and more."""
_TOKEN = re.compile(r"[0-9a-f]{32}")
_LOADED_BY = os.getpid()
"""The process that imported us: the master, or the spooler itself."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a spooler process says of itself."""

    pid: int
    role: str
    loaded_in: str
    """The kind of process that imported uwsgi_tasks: "master" or "spooler"."""
    python: str
    uwsgi: str
    is_pyuwsgi: bool
    has_threads: bool
    options: Mapping[str, str]
    callbacks: Mapping[str, Sequence[str]]
    """Of each of uWSGI's callbacks, who is called: the first, and who was there before."""
    nice: int
    renice: bool
    frequency: int
    declared: int
    """How many tasks it had before it was asked."""
    imports: Mapping[str, str]
    """Of each task that was asked for, why it cannot be found; empty if it can."""
    has_secret: bool
    accepts: bool
    """Does it accept what the asker signs, or leaves unsigned?"""
    same_store: bool
    """Is its store the asker's?"""


class Silence(Enum):
    """Why there is no answer."""

    NOBODY = "no spooler process of uwsgi_tasks lives there"
    LEFT = "nobody took the question"
    TAKEN = "somebody took the question, and did not answer"
    HELD = "somebody took the question, and is still at it"


# ---- who asks -----------------------------------------------------------------------------------


def ask(
    directory: Path,
    tasks: Sequence[str],
    timeout: float,
    settings: Settings,
) -> Facts | Silence:
    """Ask a spooler that serves *directory* about itself, and whether it can find *tasks*.

    Returns within *timeout* seconds. Nothing of the question is left in the directory then, save
    after HELD; where nobody lives who would understand it, nothing is written. Raises SubmitError.
    """
    end = time.monotonic() + timeout
    peers = Peers(directory / "running")
    if not _anybody(peers, min(end, time.monotonic() + _START)):
        return Silence.NOBODY
    token = os.urandom(16).hex()
    question = directory / f"{PROBE}{token}"
    reply = directory / "running" / f"{token}.probe"
    request = {
        "token": token,
        "tasks": list(tasks),
        "store": _address(settings, token),
    }
    body = json.dumps(request).encode()
    signature = settings.signer.sign(_signed(body)) if settings.signer else b""
    with _waiting(reply):
        try:
            write_whole(question, pack({**MARK, "signature": signature.hex()}, body))
            return _await(question, reply, peers, end)
        finally:
            _withdraw(question)


@contextlib.contextmanager
def _waiting(reply: Path) -> Iterator[None]:
    """Show by a lock on *reply*, which the kernel takes away if we are killed, that we wait."""
    handle = os.open(reply, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Not a POSIX one: that would go as soon as we looked into the file.
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.geteuid() == 0:
            give_away(handle, reply.parent)
        yield
    finally:
        reply.unlink(missing_ok=True)
        os.close(handle)


def _anybody(peers: Peers, end: float) -> bool:
    return any(peers.wake() for _ in _looks(end))


def _looks(end: float) -> Iterator[float]:
    """Yield now, and again after growing pauses until *end*."""
    pause = _FIRST
    while True:
        now = time.monotonic()
        yield now
        if now >= end:
            return
        time.sleep(max(0.0, min(pause, end - now)))
        pause = min(pause * 1.5, _LONGEST)


def _await(question: Path, reply: Path, peers: Peers, end: float) -> Facts | Silence:
    for _ in _looks(end):
        # In this order: the answer is written before the question is taken away.
        is_there = question.exists()
        found = _read(reply)
        if found is not None:
            return found
        if not is_there:
            return Silence.TAKEN
        # Again and again: those who were busy may rest by now.
        peers.wake()
    silence = _withdraw(question)
    return _read(reply) or silence


def _read(reply: Path) -> Facts | None:
    try:
        return Facts(**json.loads(reply.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _withdraw(question: Path) -> Silence:
    """Take the question back, under uWSGI's lock: then nobody is running it."""
    try:
        with locked(question) as file:
            if file is None:
                return Silence.HELD
            question.unlink()
    except FileNotFoundError:
        return Silence.TAKEN
    return Silence.LEFT


# ---- who answers --------------------------------------------------------------------------------


def answer(
    env: Mapping[Any, Any],
    directory: Path,
    *,
    server: Server,
    settings: Settings,
    find: Callable[[str], object],
    declared: Collection[str],
) -> None:
    """Answer a question that a spooler of *directory* was handed; never raises an Exception.

    Nothing is written for somebody who has stopped waiting, or was killed, nor anything imported
    for somebody who does not share our secret.
    """
    body = env.get("body", b"")
    try:
        request = json.loads(body)
        token = str(request["token"])
        tasks = [str(name) for name in request["tasks"]]
        signature = bytes.fromhex(env.get(b"signature", b"").decode())
    except (ValueError, KeyError, TypeError):
        log.warning("a question of the doctor could not be read")
        return
    reply = directory / "running" / f"{token}.probe"
    if not (_TOKEN.fullmatch(token) and _is_awaited(reply)):
        return
    signer = settings.signer
    accepts = signer is None or signer.verifies(_signed(body), signature)
    known = len(declared)
    facts = Facts(
        pid=os.getpid(),
        role=server.role,
        loaded_in="spooler" if os.getpid() == _LOADED_BY else "master",
        python=sys.version.split()[0],
        uwsgi=server.version,
        is_pyuwsgi="pyuwsgi" in sys.modules,
        has_threads=server.has_threads,
        options=server.options(OPTIONS),
        callbacks=server.callbacks(),
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        renice=settings.renice,
        frequency=settings.spooler_frequency or server.spooler_frequency,
        declared=known,
        imports={name: _trouble(find, name) for name in tasks} if accepts else {},
        has_secret=signer is not None,
        accepts=accepts,
        same_store=request.get("store") == _address(settings, token),
    )
    # Again: to import the tasks may have taken long.
    if _is_awaited(reply):
        with contextlib.suppress(SubmitError):
            write_whole(reply, json.dumps(asdict(facts)).encode())


def _is_awaited(reply: Path) -> bool:
    """Does somebody wait for this answer? What was left by one who was killed is taken away."""
    try:
        handle = os.open(reply, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        reply.unlink(missing_ok=True)
        return False
    finally:
        os.close(handle)


def _signed(body: bytes) -> bytes:
    """Return what is signed: never to be taken for a job."""
    return b"probe:" + body


def _trouble(find: Callable[[str], object], task: str) -> str:
    try:
        find(task)
    except TasksError as error:
        return str(error)
    return ""


def _address(settings: Settings, token: str) -> str:
    """Return what stands for the address of the store, which may hold a password."""
    # Another one each time, of which nobody can make a table.
    return Signer([f"{settings.store}\0{settings.namespace}"]).sign(token.encode()).hex()
