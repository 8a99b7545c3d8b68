"""What lies in a spooler's directory, and who may write there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from uwsgi_tasks.doctor.case import Directory, Finding, error, user_name
from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.spool import TICKET, SpoolDirectory
from uwsgi_tasks.spool_file import PREFIX

_LONG = 600.0
"""Seconds after which a job that is due, and does not run, is worth a word."""
_LATE = 60.0
"""The same of a delayed one, which somebody should have moved."""
_HALF = 60.0
"""Seconds that nobody needs to write a file."""
_SHORT = 4
"""Bytes of the smallest spool file."""
LOOKED_AT = 100
"""So many of the oldest files, and of the newest, are looked at: does somebody run them?"""
_DELAYED = re.compile(r"(\d+)_.+")
_LOCK = struct.Struct("hhqqi")


def refused(path: Path) -> Finding | None:
    """Return why this directory cannot be used, by this process at least."""
    try:
        SpoolDirectory(path).check()
    except ConfigurationError as trouble:
        return _explained(path, str(trouble))
    return None


def _explained(path: Path, text: str) -> Finding:
    try:
        found = path.stat()
    except FileNotFoundError:
        return error("directory-missing", text, f"mkdir -m 700 {path}")
    except OSError:
        return error("directory-unwritable", text, f"chmod u+rwx {path.parent}")
    user = user_name(_user_of(path))
    if not stat.S_ISDIR(found.st_mode):
        return error("directory-missing", text, f"rm {path}; mkdir -m 700 {path}")
    if found.st_mode & stat.S_IWOTH:
        return error("directory-open", text, f"chmod o-w {path}")
    if found.st_mode & stat.S_IWGRP and found.st_gid not in {os.getegid(), 0}:
        return error("directory-open", text, f"chmod g-w {path}")
    return error("directory-unwritable", text, f"run this as {user}: sudo -u {user} ...")


def _user_of(path: Path) -> int:
    """Return who the spoolers run as, as far as can be seen."""
    try:
        return (path / "running").stat().st_uid
    except OSError:
        return path.stat().st_uid


def look(path: Path, now: float) -> Directory:
    """Return what lies in a directory. What vanishes meanwhile is passed over."""
    space, inodes = _room(path)
    files = list(_files(path, now))
    levels = [entry for entry in _entries(path) if entry.name.isdigit()]
    ranked = [file for level in levels for file in _files(Path(level), now)]
    delayed = list(_delayed(path / "later"))
    held, stale = _oldest([*files, *ranked])
    return Directory(
        path=path,
        owner=path.stat().st_uid,
        filesystem=filesystem(path),
        space=space,
        inodes=inodes,
        waiting=len(files) + len(ranked),
        stale=stale,
        held=held,
        cut=sum(size < _SHORT and age > _HALF for _, size, age in files),
        half=_half(path, now),
        stranded=len(ranked),
        crashes=dict(_crashes(path)),
        late=sum(due < now - _LATE for due in delayed),
        latest=max(0.0, now - min(delayed, default=now)),
        delayed=len(delayed),
        has_ticket=(path / TICKET).exists(),
        dead=sum(entry.name.startswith(PREFIX) for entry in _entries(path / "dead")),
        uwsgi=tuple(_standing_in(path)),
    )


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries


def _files(folder: Path, now: float) -> Iterator[tuple[Path, int, float]]:
    """Yield each job, the size of its file, and for how many seconds it has been due."""
    for entry in _entries(folder):
        if entry.name.startswith(PREFIX) and entry.name != TICKET:
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                yield Path(entry), found.st_size, now - found.st_mtime


def _oldest(files: list[tuple[Path, int, float]]) -> tuple[int, tuple[tuple[str, float], ...]]:
    """Return how many files a process has in its hands, and the oldest that nobody runs."""
    files.sort(key=lambda file: -file[2])
    held, stale = 0, []
    # While it runs, a file may be dated ahead: the last ones are looked at, too.
    for path, _, age in dict.fromkeys((*files[:LOOKED_AT], *files[-LOOKED_AT:])):
        if _is_held(path):
            held += 1
        elif age > _LONG:
            stale.append((path.name, age))
    return held, tuple(stale[:LOOKED_AT])


def _is_held(path: Path) -> bool:
    """Has somebody uWSGI's lock on this file? Asks, and does not take it: uWSGI would pass on."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        wanted = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found = _LOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, wanted)[: _LOCK.size])
        return bool(found[0] != fcntl.F_UNLCK)
    return False


def _delayed(later: Path) -> Iterator[float]:
    """Yield when each delayed job is due, in seconds since 1970."""
    for bucket in _entries(later):
        if bucket.name.isdigit():
            for entry in _entries(Path(bucket)):
                if match := _DELAYED.fullmatch(entry.name):
                    yield int(match[1]) / 1000


def _half(path: Path, now: float) -> int:
    count = 0
    for entry in _entries(path):
        if entry.name.startswith(".") and PREFIX in entry.name:
            with contextlib.suppress(FileNotFoundError):
                count += now - entry.stat().st_mtime > _HALF
    return count


def _crashes(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each job that has killed its process and is still there, and how often it has."""
    for entry in _entries(path / "running"):
        name, dot, kind = entry.name.rpartition(".")
        if dot and kind == "crashes":
            with contextlib.suppress(OSError, ValueError):
                # How many calls were done then, its own crashes, and ends of the whole server.
                _, crashes, stops = (int(word) for word in Path(entry).read_text().split())
                yield name.removeprefix(PREFIX), crashes + stops


def _room(path: Path) -> tuple[float, float]:
    """Return the shares of the disk, and of the files that it can hold, that are free."""
    found = os.statvfs(path)
    space = found.f_bavail / found.f_blocks if found.f_blocks else 1.0
    # Some file systems do not count files.
    return space, found.f_favail / found.f_files if found.f_files else 1.0


def filesystem(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the kind of file system that *path* is on; empty if nobody tells."""
    real, best, kind = path.resolve(), Path(), ""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        place = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        # Of two at the same place, the later one covers the earlier.
        if real.is_relative_to(place) and len(place.parts) >= len(best.parts):
            best, kind = place, after.split()[0]
    return kind


def _standing_in(path: Path) -> Iterator[int]:
    """Yield the processes of a uWSGI that stand in *path*: its spoolers do, whoever they are."""
    for entry in _entries(Path("/proc")):
        if entry.name.isdigit():
            # Those of other users cannot be seen, save by root.
            with contextlib.suppress(OSError):
                there = Path(entry, "cwd").readlink()
                if there == path and b"uwsgi" in Path(entry, "cmdline").read_bytes().lower():
                    yield int(entry.name)
