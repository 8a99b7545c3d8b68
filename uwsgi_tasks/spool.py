"""A spooler's directory as files: jobs written, delayed, moved in when due, and buried."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import stat
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from uwsgi_tasks.errors import ConfigurationError, DecodeError, SubmitError

log = logging.getLogger(__name__)

PREFIX = "uwsgi_spoolfile_on_"
TICKET = PREFIX + "later"
"""A spool file without a job: when its time has come, what is due is moved in."""

# modifier 17, the length of the variables, modifier 0; uWSGI checks neither modifier.
_HEADER = struct.Struct("<BHB")
_MODIFIER = 17
_LIMIT = 0xFFFF
"""uWSGI keeps every length in 16 bits."""
_BUCKET = 16_000
"""Milliseconds of due times that share a folder: no listing grows with all that is waiting."""
_TEXT = 16_000
"""Bytes that one text in a dead letter may have."""
_NEVER = 2**31 - 1
_DELAYED = re.compile(rf"(\d+)_(\d+|-)_({PREFIX}.+)")
_PATIENCE = 5.0
"""Seconds after which what was begun, and not finished, is tried again."""

_numbers = count(1)


def pack(variables: Mapping[str, str | bytes], body: bytes) -> bytes:
    """Return a spool file's content, as uWSGI writes it. Raises ValueError if it does not fit."""
    pieces = []
    for key, value in variables.items():
        for content in (_bytes(key), _bytes(value)):
            if len(content) > _LIMIT:
                raise ValueError(f"{key}: {len(content)} bytes do not fit into 16 bits of length")
            pieces.append(struct.pack("<H", len(content)) + content)
    head = b"".join(pieces)
    if len(head) > _LIMIT:
        raise ValueError(f"{len(head)} bytes of variables do not fit into 16 bits of length")
    return _HEADER.pack(_MODIFIER, len(head), 0) + head + body


def unpack(content: bytes) -> tuple[dict[str, str], bytes]:
    """Return the variables and the body of a spool file. Raises DecodeError."""
    try:
        _, length, _ = _HEADER.unpack_from(content)
        end = _HEADER.size + length
        if len(content) < end:
            raise DecodeError(f"cut after {len(content)} bytes")
        texts, at = [], _HEADER.size
        while at < end:
            (size,) = struct.unpack_from("<H", content, at)
            texts.append(content[at + 2 : at + 2 + size].decode("utf-8", "surrogateescape"))
            at += 2 + size
        if at != end or len(texts) % 2:
            raise DecodeError("its variables do not add up")
        return dict(zip(texts[::2], texts[1::2], strict=True)), content[end:]
    except struct.error as error:
        raise DecodeError(f"cut: {error}") from error


def bury(folder: Path, variables: Mapping[str, str | bytes], body: bytes) -> Path:
    """Keep in *folder* a job that finally failed, with what is known of it; return the file.

    It is a spool file: moved into a spooler's directory, it runs again. Of *variables*, bytes are
    part of the job, and kept whole; a text is cut where it is too long. Raises SubmitError.
    """
    name = _new_name()
    _write(folder / name, pack(_fitting(variables), body), [folder])
    return folder / name


def _write(
    path: Path, content: bytes, folders: Sequence[Path] = (), due: int | None = None
) -> None:
    """Write a file whole, or not at all; make *folders* for it, if need be. Raises SubmitError."""
    temporary = path.with_name(f".{path.name}")
    try:
        try:
            _write_private(temporary, content)
        except FileNotFoundError:
            # The mover takes away folders that it has emptied, at any moment. The directory
            # itself we do not make: if it is gone, nobody would run what lies in a new one.
            for folder in folders:
                _make_private(folder)
            _write_private(temporary, content)
        if due is not None:
            os.utime(temporary, (due, due))
        temporary.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise SubmitError(f"could not write into {path.parent}: {error.strerror}") from error


def _write_private(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        if os.geteuid() == 0:
            _give_away(file.fileno(), path.parent)
        file.write(content)


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        _give_away(folder, folder.parent)


def _give_away(made: int | Path, parent: Path) -> None:
    """Let what root has made belong to the owner of the folder that it lies in."""
    owner = parent.stat()
    if owner.st_uid != 0:
        os.chown(made, owner.st_uid, owner.st_gid)


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

    def write(self, body: bytes, priority: int | None = None) -> None:
        """Put a job into the directory, to be run at the next pass. Raises SubmitError."""
        folder = self.path if priority is None else self.path / str(priority)
        _write(folder / _new_name(), pack({}, body), [] if priority is None else [folder])

    def write_later(self, body: bytes, due: float, priority: int | None = None) -> None:
        """Keep a job until *due*, in seconds since 1970. Raises SubmitError."""
        # Rounded up, so that it never runs early.
        moment = math.ceil(due * 1000)
        level = "-" if priority is None else str(priority)
        name = f"{moment}_{level}_{_new_name()}"
        folder = self._later / str(moment // _BUCKET)
        _write(folder / name, pack({}, body), [self._later, folder])
        try:
            self.expect(due)
        except (OSError, SubmitError) as error:
            with contextlib.suppress(OSError):
                (folder / name).unlink()
            raise SubmitError(f"could not write into {self.path}: {error}") from error

    # ---- what is delayed --------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        _make_private(self._later)
        # Opened each time: a lock on a file opened before a fork would be shared with the children.
        lock = os.open(self._later / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            if os.geteuid() == 0:
                _give_away(lock, self._later)
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
                _write(self._ticket, content, due=second)

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
                _make_private(target)
            (folder / f"{moment}_{level}_{name}").rename(target / name)
            moved += 1
        # Not empty, if somebody is just writing into it: then it stays.
        with contextlib.suppress(OSError):
            folder.rmdir()
        return moved, None

    # ---- at the start of a spooler ----------------------------------------------------------

    def find(self, name: str) -> Path | None:
        """Return where the spool file of this name lies, in the directory or a priority's."""
        for folder in (self.path, *self._priorities()):
            if (folder / name).exists():
                return folder / name
        return None

    def tidy(self, *, ordered: bool) -> None:
        """Mend what crashes and changes of the configuration have left behind."""
        if not ordered:
            self._rescue_priorities()
        if self._later.is_dir():
            self.expect(time.time())
        hour_ago = time.time() - 3600
        for folder in (self.path, *self._priorities(), *self._later.glob("[0-9]*"), self.dead):
            for name in _names(folder):
                with contextlib.suppress(OSError):
                    # Half a file of a writer that was killed; a living one takes microseconds.
                    path = folder / name
                    ours = name.startswith(".") and PREFIX in name
                    if ours and path.stat().st_mtime < hour_ago:
                        path.unlink()

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


def _delayed(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the time in ms, the priority and the name of each delayed job in *folder*."""
    for found in _names(folder):
        if match := _DELAYED.fullmatch(found):
            yield int(match[1]), match[2], match[3]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _new_name() -> str:
    # As uWSGI names its own: sorted by version, those of one process keep their order.
    moment = time.time_ns() // 1000
    return (
        f"{PREFIX}{os.uname().nodename}_{os.getpid()}_{next(_numbers)}_"
        f"{int.from_bytes(os.urandom(3))}_{moment // 1_000_000}_{moment % 1_000_000}"
    )


def _bytes(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _fitting(variables: Mapping[str, str | bytes]) -> dict[str, str | bytes]:
    """Cut the texts so that all fits: the end of a traceback says more than its beginning."""
    fitting: dict[str, str | bytes] = {}
    room = _LIMIT - sum(
        len(_bytes(key)) + len(value) + 4
        for key, value in variables.items()
        if isinstance(value, bytes)
    )
    for key, value in variables.items():
        if isinstance(value, bytes):
            fitting[key] = value
            continue
        content = _bytes(value)
        most = min(_TEXT, room - len(_bytes(key)) - 4)
        if most <= 0:
            continue
        if len(content) > most:
            content = content[-most:].decode("utf-8", "ignore").encode()
        fitting[key] = content
        room -= len(_bytes(key)) + len(content) + 4
    return fitting
