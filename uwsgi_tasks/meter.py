"""Counts of runs and their times, kept where the end of a process does not lose them."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import get_native_id

from uwsgi_tasks.errors import TasksError
from uwsgi_tasks.log_lines import one_line
from uwsgi_tasks.model import Count

log = logging.getLogger(__name__)

_SLOT = 256
"""Bytes for one task and outcome in one minute: five numbers, and the name."""
_SLOTS = 256
_DOUBLE = 8
_DOUBLES = _SLOT // _DOUBLE
_MINUTE_AT, _LENGTH, _RUNS, _SECONDS, _SLOWEST = range(5)
_NUMBERS = struct.Struct("=5d")
_NAME_AT = _NUMBERS.size
_NAME = _SLOT - _NAME_AT
_SUFFIX = ".counts"
_MINUTE = 60
_DEAD = 20
"""Files of dead processes that may lie about until somebody has the store at hand."""

Save = Callable[[Sequence[Count]], None]


class Meter:
    """The counts of this process, in a file that the kernel keeps even if it is killed.

    *save* takes them when the file is full, and at the end of each minute if *is_near* says that
    the store is at hand. It raises TasksError.

    One meter is for either `add` or `add_from_any_thread`; both may be called by any thread.
    """

    def __init__(self, folder: Path, save: Save, is_near: Callable[[], bool]) -> None:
        self._folder, self._save, self._is_near = folder, save, is_near
        self._map: mmap.mmap | None = None
        # Of each process its own: one that another thread holds in a fork is never free again.
        # Not plain ones: a signal's handler may count too.
        self._locks: dict[int, threading.RLock] = {}
        self._others: Meter | None = None
        self._pid = self._thread = 0
        self._minute = 0
        self._until = 0.0
        self._used = 0
        self._slots: dict[tuple[str, str], int] = {}
        self._numbers: memoryview[float] = memoryview(b"").cast("d")

    def add_from_any_thread(self, task: str, outcome: str, seconds: float, now: float) -> None:
        """Count one run where several threads do so all the time, one after the other."""
        pid = os.getpid()
        with self._lock(pid):
            if self._pid != pid:
                self._open()
            # The file is its own as long as it holds the lock.
            self._thread = get_native_id()
            self.add(task, outcome, seconds, now)

    def add(self, task: str, outcome: str, seconds: float, now: float) -> None:
        """Count one run where nearly all are of one thread: the first, which waits for nobody.

        All others count in another file, one after the other.
        """
        # A thread's number is the only one in the system: in a fork it is another one too.
        if self._thread != get_native_id() and not self._is_ours():
            self._others_here().add_from_any_thread(task, outcome, seconds, now)
            return
        if now >= self._until:
            self._turn(now)
        at = self._slots.get((task, outcome))
        if at is None:
            at = self._new_slot(task, outcome)
        # In the file itself, for each run pays for this: nothing is packed, or read back.
        numbers = self._numbers
        numbers[at + _RUNS] += 1
        numbers[at + _SECONDS] += seconds
        if seconds > numbers[at + _SLOWEST]:  # noqa: PLR1730  max() takes twice as long
            numbers[at + _SLOWEST] = seconds

    def _lock(self, pid: int) -> threading.RLock:
        return self._locks.get(pid) or self._locks.setdefault(pid, threading.RLock())

    def _is_ours(self) -> bool:
        """Is the present thread the first of its process that counts?"""
        pid = os.getpid()
        with self._lock(pid):
            if self._pid != pid:
                self._open()
        return self._thread == get_native_id()

    def _others_here(self) -> Meter:
        with self._lock(os.getpid()):
            if self._others is None:
                self._others = Meter(self._folder, self._save, self._is_near)
            return self._others

    def _turn(self, now: float) -> None:
        """Begin another minute."""
        if self._slots and self._is_near():
            self.flush()
        self._minute = int(now) // _MINUTE * _MINUTE
        self._until = self._minute + _MINUTE
        self._slots.clear()

    def flush(self) -> None:
        """Hand over what was counted; it stays here if the store is away."""
        if self._map is None:
            return
        try:
            self._save(list(_read(self._map)))
        except TasksError as error:
            log.warning("what was counted stays in %s: %s", self._folder, one_line(error))
            return
        # Killed in between, these are counted twice: better than not at all.
        self._map[:] = bytes(len(self._map))
        self._used = 0
        self._slots.clear()

    def _new_slot(self, task: str, outcome: str) -> int:
        assert self._map is not None  # noqa: S101  for the type checker
        if self._used == _SLOTS:
            self.flush()
        # If the store was away all the time: the last slot is the one for what does not fit.
        slot = min(self._used, _SLOTS - 1)
        self._used = min(self._used + 1, _SLOTS)
        name = f"{outcome} {task}".encode("utf-8", "replace")[:_NAME]
        start = slot * _SLOT
        self._map[start + _NAME_AT : start + _NAME_AT + len(name)] = name
        _NUMBERS.pack_into(self._map, start, self._minute, len(name), 0, 0, 0)
        at = self._slots[task, outcome] = slot * _DOUBLES
        return at

    def _open(self) -> None:
        try:
            self._map = mmap.mmap(self._own_file(), _SLOT * _SLOTS)
        except OSError as error:
            log.warning("what this process counts is lost with it: %s", one_line(error))
            self._map = mmap.mmap(-1, _SLOT * _SLOTS)
        self._numbers = memoryview(self._map).cast("d")
        # In the end: a signal's handler that counts meanwhile opens a file for itself.
        self._used, self._until, self._slots = 0, 0.0, {}
        self._thread, self._pid = get_native_id(), os.getpid()

    def _own_file(self) -> int:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._is_near() or len(_files(self._folder)) > _DEAD:
            take_over(self._folder, self._save)
        kept = None
        while kept is None:
            # In another container a process may have the same number.
            name = f"{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}"
            kept = _locked(self._folder / name)
        os.posix_fallocate(kept, 0, _SLOT * _SLOTS)
        # An application that is no longer used counts nothing; in most processes there is one.
        weakref.finalize(self, os.close, kept).atexit = False
        self._file = kept
        return kept


def _locked(path: Path) -> int | None:
    """Return a new file that is ours for life; None if another process has just taken it away."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Not numbers 0 to 2, over which uWSGI opens /dev/null.
    kept = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(handle)
    fcntl.flock(kept, fcntl.LOCK_EX)
    # Until it was locked, it was like one that a dead process has left.
    if path.exists():
        return kept
    os.close(kept)
    return None


def take_over(folder: Path, save: Save) -> None:
    """Hand over what those have counted that are dead; it stays if the store is away."""
    for path in _files(folder):
        with contextlib.suppress(OSError, TasksError), path.open("r+b") as file:
            # A living one holds it.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists():
                save(list(_read(file.read())))
                path.unlink()


def unsaved(folder: Path) -> list[Count]:
    """Return what the processes have counted that use *folder*, and not yet handed over."""
    found: list[Count] = []
    for path in _files(folder):
        with contextlib.suppress(OSError):
            found += _read(path.read_bytes())
    return found


def added_up(counts: Sequence[Count]) -> list[Count]:
    """Return *counts* with those of the same minute, task and outcome made one, in their order."""
    sums: dict[tuple[int, str, str], Count] = {}
    for one in counts:
        key = one.minute, one.task, one.outcome
        known = sums.get(key)
        sums[key] = (
            one
            if known is None
            else replace(
                known,
                runs=known.runs + one.runs,
                seconds=known.seconds + one.seconds,
                slowest=max(known.slowest, one.slowest),
            )
        )
    return [sums[key] for key in sorted(sums)]


def _files(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if name.endswith(_SUFFIX)]
    except FileNotFoundError:
        return []


def _read(content: bytes | mmap.mmap) -> Iterator[Count]:
    for at in range(0, len(content) - _SLOT + 1, _SLOT):
        minute, length, runs, total, slowest = _NUMBERS.unpack_from(content, at)
        if not length:
            return
        if runs:
            name = content[at + _NAME_AT : at + _NAME_AT + int(length)].decode("utf-8", "ignore")
            outcome, _, task = name.partition(" ")
            yield Count(
                minute=int(minute),
                task=task,
                outcome=outcome,
                runs=int(runs),
                seconds=total,
                slowest=slowest,
            )
