"""Which spooler processes live, and what each of them is running: a mapped file a process."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import signal
import struct
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from uwsgi_tasks.model import Stop
from uwsgi_tasks.spool_file import job_id

_SIZE = 1024
_RUNNING, _WOKEN, _LENGTH, _NAME = 0, 1, 2, 4
_INCARNATION, _END = 512, 600
_ORDERED = 700
_STOP = struct.Struct("<IB")
"""Which job is asked to stop, as the checksum of its id, and how firmly."""
_STOP_AT = 704
_COURSE = struct.Struct("<ddd")
"""When the job began that runs, how far it has come, and of how much."""
_COURSE_AT = 720
_MARK = re.compile(r"\d+\.\d+")
_STANDARD = 2
_UNKNOWN = -1.0
_STATE = struct.Struct("<QB")
_FLAGS_AT = 16
"""Behind the state, a byte for each call: is it to be left out?"""
_WANTED, _SURE = 1, 2
_MOMENT = 0.001
_REFRESH = 1.0
"""Seconds for which the list of the living is believed."""


class Mark:
    """The file of this process, which keeps a lock on it for as long as it lives.

    The lock is a POSIX one, which children do not inherit, and which closing any other handle
    on the same file would drop: nothing here opens its own file twice.
    """

    def __init__(self, folder: Path, incarnation: bytes, *, ordered: bool) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._file = _own_file(folder / _own_name())
        weakref.finalize(self, os.close, self._file).atexit = False
        self._map = mmap.mmap(self._file, _SIZE)
        self._map[_INCARNATION : _INCARNATION + len(incarnation)] = incarnation
        self._map[_ORDERED] = ordered

    def begin(self, name: str) -> None:
        """Note that the spool file of this name is being run."""
        memory = self._map
        content = os.fsencode(name)
        memory[_LENGTH] = len(content)
        memory[_NAME : _NAME + len(content)] = content
        _COURSE.pack_into(memory, _COURSE_AT, time.time(), _UNKNOWN, _UNKNOWN)
        # Last: a process that dies in between was not running anything yet.
        memory[_RUNNING] = 1

    def advance(self, done: float, total: float | None) -> None:
        """Note how far the job has come, of how much in all."""
        started = _COURSE.unpack_from(self._map, _COURSE_AT)[0]
        _COURSE.pack_into(
            self._map, _COURSE_AT, started, done, _UNKNOWN if total is None else total
        )

    def running(self) -> Running | None:
        """Return what this process runs, as others see it."""
        return _running(os.getpid(), self._map)

    def stop(self, id: str, how: Stop) -> None:  # noqa: A002  the job's
        """Ask the job of this id, which runs in this process, to stop."""
        _STOP.pack_into(self._map, _STOP_AT, crc32(id.encode()), how)

    def asked_to_stop(self, id: str) -> Stop:  # noqa: A002  the job's
        """Has somebody asked the job of this id to stop?"""
        who, how = _STOP.unpack_from(self._map, _STOP_AT)
        return Stop(how) if how and who == crc32(id.encode()) else Stop.NOT

    def wake(self) -> None:
        """Note that this process itself has submitted a job."""
        self._map[_WOKEN] = 1

    def end(self) -> bool:
        """Note that nothing is being run; True if somebody submitted a job meanwhile."""
        memory = self._map
        # In this order: a submitter sets the second and then reads the first, so that either it
        # sees that nobody will look, and sends the signal itself, or we see that it was here.
        memory[_RUNNING] = 0
        if memory[_WOKEN]:
            memory[_WOKEN] = 0
            return True
        return False


def _namespace() -> str:
    """What tells the process numbers of one container from those of another."""
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return "0"


def _own_name() -> str:
    return f"{os.getpid()}.{_namespace()}"


def _fill_standard_streams() -> None:
    """Keep our files away from the numbers of standard input and output.

    uWSGI opens /dev/null over number 0 in each spooler after its fork; if a file of ours had that
    number, as it may where the server was started without an input, its lock would go.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= _STANDARD:
        pass
    os.close(handle)


def _own_file(path: Path) -> int:
    _fill_standard_streams()
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(handle, fcntl.LOCK_EX, _SIZE)
        os.ftruncate(handle, 0)
        # Here, where it is an error: on a full disk the first write into the map would kill us.
        os.posix_fallocate(handle, 0, _SIZE)
        # Between the creation and the lock another newcomer may have taken it for a dead one's.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)


@dataclass(frozen=True, kw_only=True)
class Dead:
    """What a spooler process that died has left: the file that it was running, if any."""

    running: str | None
    incarnation: bytes
    killed: bool = False
    """Was what it ran to be stopped at once?"""


def bereave(folder: Path, settle: Callable[[Dead], bool], *, has_mark: bool = False) -> None:
    """Tell *settle*, once, what each spooler process that died was doing; its file goes with it.

    If it returns False, the file stays, for another process to settle that death. Until this
    process has a `Mark`, one that bears its name is that of a dead one, which had its number.
    """
    for path in _files(folder):
        if has_mark and path.name == _own_name():
            continue
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                # One newcomer after the other, by a byte behind those that the process itself
                # locks: if these cannot be had then, it lives.
                fcntl.lockf(handle, fcntl.LOCK_EX, 1, _SIZE)
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, _SIZE)
                # Another newcomer may have been here between the listing and the lock.
                if path.exists() and settle(_dead(os.read(handle, _SIZE).ljust(_SIZE, b"\0"))):
                    path.unlink()
            finally:
                os.close(handle)


def _dead(content: bytes) -> Dead:
    name = os.fsdecode(content[_NAME : _NAME + content[_LENGTH]])
    return Dead(
        running=name if content[_RUNNING] else None,
        incarnation=content[_INCARNATION:_END].rstrip(b"\0"),
        killed=_is_killed(content, name),
    )


def _is_killed(content: bytes, name: str) -> bool:
    who, how = _STOP.unpack_from(content, _STOP_AT)
    return bool(how == Stop.KILL and who == crc32(job_id(name).encode()))


def _files(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if _MARK.fullmatch(name)]
    except FileNotFoundError:
        return []


@dataclass(frozen=True, kw_only=True)
class Running:
    """A spooler process, and the spool file that it runs, as others see it."""

    pid: int
    name: str
    started_at: float
    done: float | None
    total: float | None


class Peers:
    """The living spooler processes of a directory, as those who submit to it see them."""

    def __init__(self, folder: Path, expected: float = float("inf")) -> None:
        self._folder = folder
        self._expected = expected
        """How many there should be; as long as there are fewer, each call looks for newcomers."""
        self._maps: dict[Path, mmap.mmap] = {}
        self._read_at = float("-inf")
        self._namespace = _namespace()

    def wake(self) -> int:
        """Make sure that each of them reads the directory once more; return how many there are.

        A busy one finds our note when its job ends, so that a burst of submits makes one more
        pass, not one each; those at rest get a signal. The present process is left out: it has
        its `Mark`.
        """
        old = time.monotonic() - self._read_at > _REFRESH
        if old or len(self._maps) < self._expected:
            self._refresh(believe=not old)
        for path, memory in self._maps.items():
            memory[_WOKEN] = 1
            # In this order, see `Mark.end`.
            if not memory[_RUNNING]:
                # It may have ended in this second, or belong to another user.
                pid, _, namespace = path.name.partition(".")
                if namespace == self._namespace:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(int(pid), signal.SIGUSR1)
        return len(self._maps)

    def running(self) -> list[Running]:
        """Return what each of them runs."""
        self._refresh(believe=False)
        found = (_running(_pid_of(path), memory) for path, memory in self._maps.items())
        return [one for one in found if one is not None]

    def stop(self, name: str, id: str, how: Stop) -> int | None:  # noqa: A002  the job's
        """Ask for an end of the job of this id, in the spool file *name*.

        Return the number of the process that runs it, 0 if that is not to be reached from here;
        None if nobody runs it.
        """
        self._refresh(believe=False)
        for path, memory in self._maps.items():
            one = _running(_pid_of(path), memory)
            if one is not None and one.name == name:
                # Its id beside it: the process may go on to another job in this moment.
                _STOP.pack_into(memory, _STOP_AT, crc32(id.encode()), how)
                return one.pid if path.name.partition(".")[2] == self._namespace else 0
        return None

    def ordered(self) -> bool | None:
        """Do they look into the folders of priorities? None if nobody is there to tell."""
        self._refresh(believe=False)
        for memory in self._maps.values():
            return bool(memory[_ORDERED])
        return None

    def _refresh(self, *, believe: bool) -> None:
        """Look for newcomers; *believe* that those who are known still live."""
        known = self._maps
        if not believe:
            self._read_at = time.monotonic()
        maps = {
            path: known.get(path) or _mapped(path)
            for path in _files(self._folder)
            if (believe and path in known) or _lives(path)
        }
        # Replaced as a whole: another thread may be going through the old one.
        self._maps = {path: memory for path, memory in maps.items() if memory is not None}


def _pid_of(path: Path) -> int:
    return int(path.name.partition(".")[0])


def _running(pid: int, memory: mmap.mmap) -> Running | None:
    if not memory[_RUNNING]:
        return None
    started, done, total = _COURSE.unpack_from(memory, _COURSE_AT)
    return Running(
        pid=pid,
        name=os.fsdecode(memory[_NAME : _NAME + memory[_LENGTH]]),
        started_at=started,
        done=None if done == _UNKNOWN else done,
        total=None if total == _UNKNOWN else total,
    )


def _mapped(path: Path) -> mmap.mmap | None:
    with contextlib.suppress(OSError, ValueError), path.open("r+b") as file:
        return mmap.mmap(file.fileno(), _SIZE)
    return None


def _lives(path: Path) -> bool:
    # Closing its own file would drop the lock by which a process is known to live.
    if path.name == _own_name():
        return False
    try:
        with path.open("rb") as file:
            # Asked for, and not taken: a newcomer that finds it locked believes that it lives.
            os.lockf(file.fileno(), os.F_TEST, _SIZE)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Progress:
    """How many calls of one spool file are done: it outlives the process that runs them."""

    def __init__(self, folder: Path, name: str, calls: int = 0) -> None:
        self._path = folder / f"{name}.done"
        size = _FLAGS_AT + calls
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, size)
            self._map = mmap.mmap(handle, size)
        finally:
            os.close(handle)

    @classmethod
    def read(cls, folder: Path, name: str) -> int:
        """Return how many calls of a spool file are done; 0 if nothing is known of it."""
        try:
            return int(_STATE.unpack_from((folder / f"{name}.done").read_bytes())[0])
        except (OSError, struct.error):
            return 0

    @property
    def done(self) -> int:
        """The number of calls that need not run again."""
        count: int = _STATE.unpack_from(self._map)[0]
        return count

    @property
    def condemned(self) -> bool:
        """Has the next one killed its process too often?"""
        return bool(_STATE.unpack_from(self._map)[1])

    def condemn(self) -> bool:
        """Note that the next one shall not run; False if that was noted already."""
        done, condemned = _STATE.unpack_from(self._map)
        _STATE.pack_into(self._map, 0, done, 1)
        return not condemned

    def cancel(self, index: int, *, is_held: bool = False) -> bool:
        """Have call number *index* left out; False if it has begun, or may have.

        *is_held* says that nobody can begin it meanwhile. True: the caller notes how it ended.
        """
        self._map[_FLAGS_AT + index] = _WANTED
        if not is_held:
            # Whoever runs them notes that it has come to a call, and looks here after that. By now
            # each sees what the other has written.
            time.sleep(_MOMENT)
        if is_held or index > self.done:
            self._map[_FLAGS_AT + index] = _SURE
            return True
        return False

    def is_cancelled(self, index: int, *, surely: bool = False) -> bool:
        """Is call number *index* to be left out? *surely*: and was that noted as its end?"""
        return self._map[_FLAGS_AT + index] >= (_SURE if surely else _WANTED)

    @classmethod
    def is_left_out(cls, folder: Path, name: str, index: int) -> bool:
        """Was call number *index* of a spool file surely cancelled?"""
        try:
            return (folder / f"{name}.done").read_bytes()[_FLAGS_AT + index] == _SURE
        except (OSError, IndexError):
            return False

    def note(self, count: int) -> None:
        """Note that so many are done."""
        _STATE.pack_into(self._map, 0, count, 0)

    def forget(self) -> None:
        """Take it away: all are done."""
        self._map.close()
        self._path.unlink(missing_ok=True)
