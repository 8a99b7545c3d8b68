"""A spooler's directory as files: jobs written, delayed, moved in when due, and buried."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from uwsgi_tasks.errors import ConfigurationError, SubmitError
from uwsgi_tasks.spool_file import (
    PREFIX,
    give_away,
    make_private,
    new_name,
    pack,
    vacant,
    write,
    write_whole,
)

log = logging.getLogger(__name__)

PROBE = PREFIX + "probe_"
"""How the names of the doctor's questions begin, which are no jobs; see `probe`."""
TICKET = PREFIX + "later"
"""A spool file without a job: when its time has come, what is due is moved in."""

_BUCKET = 16_000
"""Milliseconds of due times that share a folder: no listing grows with all that is waiting."""
_NEVER = 2**31 - 1
_DELAYED = re.compile(rf"(\d+)_(\d+|-)_({PREFIX}.+)")
_PATIENCE = 5.0
"""Seconds after which what was begun, and not finished, is tried again."""


class SpoolDirectory:
    """One directory that uWSGI's spoolers read, with the folders that we keep inside it.

    ``later/`` holds jobs of the future, where uWSGI does not read them at each pass, and
    ``dead/`` those that finally failed. All of it is written whole or not at all.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._later = self.path / "later"
        self._ticket = self.path / TICKET

    @property
    def dead(self) -> Path:
        """The folder of what finally failed."""
        return self.path / "dead"

    def check(self) -> None:
        """Raise ConfigurationError if it is missing, not writable, or open to everybody."""
        try:
            found = self.path.stat()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            raise ConfigurationError(
                f"the spooler directory {self.path} is not there: create it, owned by the user "
                "that uWSGI runs as, or correct 'spooler_dir'"
                if missing
                else f"the spooler directory {self.path} cannot be reached ({error.strerror})"
            ) from error
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigurationError(f"the spooler directory {self.path} is not a directory")
        if found.st_mode & stat.S_IWOTH:
            raise ConfigurationError(
                f"everybody may write to the spooler directory {self.path}, and what lies in it "
                f"is run: take that right away with 'chmod o-w {self.path}'"
            )
        if found.st_mode & stat.S_IWGRP and found.st_gid not in {os.getegid(), 0}:
            raise ConfigurationError(
                f"a group that is not yours may write to the spooler directory {self.path}, and "
                f"what lies in it is run: take that right away with 'chmod g-w {self.path}'"
            )
        for folder in (self.path, *(self.path / name for name in ("running", "later", "dead"))):
            if folder.exists() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise ConfigurationError(
                    f"{folder} is not writable for user {os.geteuid()}: run this as the user that "
                    f"uWSGI runs as, or hand all of it over with 'chown -R USER {self.path}'"
                )
        self._check_server()

    def _check_server(self) -> None:
        """Raise ConfigurationError if the spoolers could not read what this user writes."""
        try:
            theirs = (self.path / "running").stat().st_uid
        except OSError:
            # No spooler has served it yet.
            return
        if os.geteuid() not in {theirs, 0}:
            raise ConfigurationError(
                f"the spoolers of {self.path} run as user {theirs}, and could not read what user "
                f"{os.geteuid()} writes: run this command as that user"
            )

    # ---- writing ----------------------------------------------------------------------------

    def write(
        self,
        body: bytes,
        priority: int | None = None,
        *,
        name: str | None = None,
        durable: bool = False,
    ) -> None:
        """Put a job into the directory, to be run at the next pass. Raises SubmitError.

        *name* is that of the file. One that is there already is replaced; unless it is just run:
        then the new one has a name of its own. *durable*: it is on the disk when this returns.
        """
        folder = self.path
        if priority is not None:
            folder = folder / str(priority)
            if not folder.is_dir():
                self._make(folder, durable=durable)
        write(folder, name or new_name(), pack({}, body), durable=durable)

    def _make(self, folder: Path, *, durable: bool) -> None:
        try:
            make_private(folder, durable=durable)
        except OSError as error:
            raise SubmitError(f"could not write into {self.path}: {error.strerror}") from error

    def write_later(
        self,
        body: bytes,
        due: float,
        priority: int | None = None,
        *,
        name: str | None = None,
        durable: bool = False,
    ) -> None:
        """Keep a job until *due*, in seconds since 1970; else as `write`. Raises SubmitError."""
        path = self.delayed_path(name or new_name(), due, priority)
        write_whole(path, pack({}, body), [self._later, path.parent], durable=durable)
        try:
            self.expect(due)
        except (OSError, SubmitError) as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise SubmitError(f"could not write into {self.path}: {error}") from error

    def delayed_path(self, name: str, due: float, priority: int | None = None) -> Path:
        """Return where a job lies until *due*."""
        # Rounded up, so that it never runs early.
        moment = math.ceil(due * 1000)
        level = "-" if priority is None else str(priority)
        return self._later / str(moment // _BUCKET) / f"{moment}_{level}_{name}"

    # ---- what is delayed --------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        make_private(self._later)
        # Opened each time: a lock on a file opened before a fork would be shared with the children.
        lock = os.open(self._later / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                give_away(lock, self._later)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def expect(self, due: float) -> None:
        """Have the spooler move in, at *due* or before, what is due by then."""
        # uWSGI compares whole seconds. A look that comes too early is repeated a second later.
        second = int(due)
        # Under the lock: the mover may just have read the folders, and be about to set a later
        # time. The ticket is never removed, for the same reason.
        with self._locked():
            try:
                if self._ticket.stat().st_mtime > second:
                    os.utime(self._ticket, (second, second))
            except FileNotFoundError:
                content = pack({"uwsgi_tasks": "moves in what is due"}, b"")
                write_whole(self._ticket, content, due=second)

    def move_in(self, now: float, *, ordered: bool = True) -> int:
        """Move what is due into the directory; return how many. It may die at any moment.

        *ordered* says that uWSGI looks into the folders of priorities.

        Called by the spooler while it holds uWSGI's lock on the ticket, which must therefore not
        be opened here: closing it would drop that lock.
        """
        moved = 0
        with self._locked():
            self._set_ticket(now + _PATIENCE)
            following = float(_NEVER)
            for bucket in sorted(int(name) for name in _names(self._later) if name.isdigit()):
                if bucket * _BUCKET > now * 1000:
                    # Its first job may be due later than it begins: one look in vain.
                    following = bucket * _BUCKET / 1000
                    break
                count, rest = self._empty(self._later / str(bucket), now, ordered=ordered)
                moved += count
                if rest is not None:
                    following = rest
                    break
            self._set_ticket(following)
        return moved

    def _set_ticket(self, due: float) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._ticket, (int(due), int(due)))

    def _empty(self, folder: Path, now: float, *, ordered: bool) -> tuple[int, float | None]:
        """Move in what is due in one folder; return how many, and when the next one is."""
        moved = 0
        for moment, level, name in sorted(_delayed(folder)):
            if moment > now * 1000:
                return moved, moment / 1000
            target = self.path / level if ordered and level != "-" else self.path
            if target != self.path:
                make_private(target)
            with vacant(target / name) as free:
                (folder / f"{moment}_{level}_{name}").rename(free)
            moved += 1
        # Not empty, if somebody is just writing into it: then it stays.
        with contextlib.suppress(OSError):
            folder.rmdir()
        return moved, None

    @contextlib.contextmanager
    def held(self, path: Path) -> Iterator[None]:
        """Keep a job of the future where it is. Raises FileNotFoundError if it is not there."""
        with self._locked():
            path.stat()
            yield

    def take_delayed(self, path: Path) -> bytes | None:
        """Take a job of the future away; return its spool file, None if it is not there."""
        # Whoever moves what is due holds the same lock.
        with self._locked(), contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
            path.unlink()
            return content
        return None

    # ---- looking ----------------------------------------------------------------------------

    def delayed(self) -> Iterator[tuple[float, int | None, Path]]:
        """Yield the due time, the priority and the path of each job of the future."""
        for bucket in sorted(int(name) for name in _names(self._later) if name.isdigit()):
            folder = self._later / str(bucket)
            for moment, level, name in sorted(_delayed(folder)):
                priority = None if level == "-" else int(level)
                yield moment / 1000, priority, folder / f"{moment}_{level}_{name}"

    def waiting(self) -> Iterator[tuple[int | None, os.DirEntry[str]]]:
        """Yield the priority and the entry of each job that waits or runs."""
        levels = []
        for entry in _entries(self.path):
            if entry.name.isdigit():
                levels.append(entry.name)
            elif entry.name.startswith(PREFIX) and entry.name != TICKET:
                yield None, entry
        for level in sorted(levels, key=int):
            for entry in _entries(self.path / level):
                if entry.name.startswith(PREFIX):
                    yield int(level), entry

    def find(self, name: str) -> Path | None:
        """Return where the spool file of this name lies, in the directory or a priority's."""
        for folder in (self.path, *self._priorities()):
            if (folder / name).exists():
                return folder / name
        return None

    # ---- at the start of a spooler ----------------------------------------------------------

    def tidy(self, *, ordered: bool) -> None:
        """Mend what crashes and changes of the configuration have left behind."""
        if not ordered:
            self._rescue_priorities()
        if self._later.is_dir():
            self.expect(time.time())
        self._remove_leftovers(time.time() - 3600)

    def _remove_leftovers(self, before: float) -> None:
        """Remove what those left behind, and touched last *before*, who were killed at their work.

        The halves of files, which take a living writer microseconds, and questions of the doctor.
        """
        folders = (self.path, *self._priorities(), *self._later.glob("[0-9]*"), self.dead)
        for folder in folders:
            for name in _names(folder):
                if PREFIX in name:
                    path = folder / name
                    is_left = name.startswith((".", PROBE))
                    _remove_old(path, before, even_whole=is_left)
        for name in _names(self.path / "running"):
            if name.endswith(".probe") or (name.startswith(".") and ".probe." in name):
                _remove_old(self.path / "running" / name, before, even_whole=True)

    def _priorities(self) -> list[Path]:
        return [self.path / name for name in _names(self.path) if name.isdigit()]

    def _rescue_priorities(self) -> None:
        """Without spooler-ordered uWSGI never looks into the folders of priorities."""
        for folder in self._priorities():
            for name in _names(folder):
                if name.startswith(PREFIX):
                    log.warning("%s: 'spooler-ordered' is off; its priority is lost", name)
                    with contextlib.suppress(FileNotFoundError):
                        (folder / name).rename(self.path / name)


def _remove_old(path: Path, before: float, *, even_whole: bool) -> None:
    """Remove a file, if it is empty, or *even_whole*, and older than *before*."""
    with contextlib.suppress(OSError):
        found = path.stat()
        if found.st_mtime < before and (even_whole or not found.st_size):
            path.unlink()


def _delayed(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the time in ms, the priority and the name of each delayed job in *folder*."""
    for found in _names(folder):
        if match := _DELAYED.fullmatch(found):
            yield int(match[1]), match[2], match[3]


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
