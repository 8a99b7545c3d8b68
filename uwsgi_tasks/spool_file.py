"""Spool files: how uWSGI lays them out, what ours are called, and how they are written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from errno import ENOSPC
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import BinaryIO

from uwsgi_tasks.errors import DecodeError, SubmitError

PREFIX = "uwsgi_spoolfile_on_"

# modifier 17, the length of the variables, modifier 0; uWSGI checks neither modifier.
_HEADER = struct.Struct("<BHB")
_MODIFIER = 17
_PLAIN = _HEADER.pack(_MODIFIER, 0, 0)
_LIMIT = 0xFFFF
"""uWSGI keeps every length in 16 bits."""
_TEXT = 16_000
"""Bytes that one text in a dead letter may have."""
_AT_ONCE = 65_536
"""Bytes that one write puts into a file, or not at all."""
_TRIES = 5
_TICK = 0.001
_LATE = 0.02
"""Seconds; a kernel that counts a hundred times a second is behind by half of it at most."""
_COARSE_CLOCK = 5
"""Linux: the time of the kernel's last tick, which is what time() returns to uWSGI."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

_numbers = count(1)


def file_name(id: str, attempt: int = 1) -> str:  # noqa: A002  it is the job's id
    """Return what the spool file of an attempt is called."""
    return f"{PREFIX}{id}" if attempt == 1 else f"{PREFIX}{id}_{attempt}"


def job_id(name: str) -> str:
    """Return the id of the job, or what those of a batch have in common, in a file called so."""
    return name.removeprefix(PREFIX).partition("_")[0]


def delayed_name(path: Path) -> str:
    """Return what the spool file of a job of the future will be called, which lies at *path*."""
    return PREFIX + path.name.partition(PREFIX)[2]


def batch_id(id: str) -> str:  # noqa: A002
    """Return what the calls of one `Task.map` have in common: their file is called after it."""
    return id.partition(".")[0]


def pack(variables: Mapping[str, str | bytes], body: bytes) -> bytes:
    """Return a spool file's content, as uWSGI writes it. Raises ValueError if it does not fit."""
    return pack_raw(pack_variables(variables), body) if variables else _PLAIN + body


def pack_raw(variables: bytes, body: bytes) -> bytes:
    """Return a spool file's content, of *variables* that are packed already."""
    return _HEADER.pack(_MODIFIER, len(variables), 0) + variables + body


def pack_variables(variables: Mapping[str, str | bytes]) -> bytes:
    """Return *variables* as uWSGI writes them. Raises ValueError if they do not fit."""
    pieces = []
    for key, value in variables.items():
        for content in (_bytes(key), _bytes(value)):
            if len(content) > _LIMIT:
                raise ValueError(f"{key}: {len(content)} bytes do not fit into 16 bits of length")
            pieces.append(struct.pack("<H", len(content)) + content)
    head = b"".join(pieces)
    if len(head) > _LIMIT:
        raise ValueError(f"{len(head)} bytes of variables do not fit into 16 bits of length")
    return head


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
    name = new_name()
    write_whole(folder / name, pack(_fitting(variables), body), [folder])
    return folder / name


def write(folder: Path, name: str, content: bytes, *, durable: bool = False) -> None:
    """Put a spool file into *folder*, where a spooler may look at any moment. Raises SubmitError.

    *durable*: it is on the disk when this returns, and not in the kernel's memory alone.
    """
    if len(content) > _AT_ONCE:
        with vacant(folder / name) as free:
            write_whole(free, content, durable=durable)
        return
    path = f"{folder}/{name}"
    try:
        handle = os.open(path, _NEW, 0o600)
    except FileExistsError:
        # Of an earlier try to submit the same attempt, which may have died before it wrote.
        with vacant(folder / name) as free:
            write_whole(free, content, durable=durable)
        return
    except OSError as error:
        raise _not_written(folder, error) from error
    try:
        # As uWSGI itself does: it leaves a locked file, or an empty one, alone.
        fcntl.lockf(handle, fcntl.LOCK_EX)
        if os.geteuid() == 0 and (owner := _owner(folder)):
            os.fchown(handle, *owner)
        if os.write(handle, content) != len(content):
            raise OSError(ENOSPC, os.strerror(ENOSPC))  # noqa: TRY301  as the next write would
        if durable:
            os.fsync(handle)
            _sync(folder)
    except BaseException as error:
        Path(path).unlink()
        if isinstance(error, OSError):
            raise _not_written(folder, error) from error
        raise
    finally:
        os.close(handle)


def settle() -> None:
    """Wait until uWSGI runs what was just written: as a second begins, for milliseconds.

    It passes over a file, or the folder of a priority, from a second that has not begun by its
    clock. From Linux 6.13 on, what was written after that clock's last tick can be from there.
    """
    now = time.time()
    if now % 1.0 > _LATE or not sys.platform.startswith("linux"):
        return
    # A sandbox may have no such clock; then its files have no finer one either.
    with contextlib.suppress(OSError):
        for _ in range(int(_LATE / _TICK)):
            if time.clock_gettime(_COARSE_CLOCK) >= int(now):
                return
            time.sleep(_TICK)


@contextlib.contextmanager
def vacant(path: Path) -> Iterator[Path]:
    """Yield *path*, or one like it if somebody runs what lies there.

    What bears the name of a file that is run goes with it, when that has come to its end.
    """
    with contextlib.ExitStack() as held:
        try:
            is_free = held.enter_context(locked(path)) is not None
        except FileNotFoundError:
            is_free = True
        except OSError:
            is_free = False
        yield path if is_free else path.with_name(f"{path.name}_{os.urandom(4).hex()}")


def _not_written(folder: Path, error: OSError) -> SubmitError:
    return SubmitError(f"could not write into {folder}: {error.strerror}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[BinaryIO | None]:
    """Hold the lock that uWSGI takes to run a file; None if somebody else has it.

    uWSGI looks, under the lock, whether the file is still there: what is removed here will not
    run. It must not be opened a second time meanwhile: closing that would drop the lock.
    """
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        # Gone between the two: somebody has run it, or taken it away.
        if not path.exists():
            raise FileNotFoundError(path)
        yield file


def write_whole(
    path: Path,
    content: bytes,
    folders: Sequence[Path] = (),
    *,
    due: int | None = None,
    durable: bool = False,
) -> None:
    """Write a file under another name, and then give it its own. Raises SubmitError.

    Makes *folders* for it, if need be.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        for left in reversed(range(_TRIES)):
            try:
                _write_private(temporary, content, durable=durable)
            except FileNotFoundError:
                # The mover takes away folders that it has emptied, at any moment. The directory
                # itself we do not make: if it is gone, nobody would run what lies in a new one.
                if not left:
                    raise
                for folder in folders:
                    make_private(folder)
            else:
                break
        if due is not None:
            os.utime(temporary, (due, due))
        temporary.rename(path)
        if durable:
            # The names are in the folders: that of the file, and those of folders just made.
            for folder in {path.parent, *(folder.parent for folder in folders)}:
                _sync(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _not_written(path.parent, error) from error


def _write_private(path: Path, content: bytes, *, durable: bool) -> None:
    handle = os.open(path, _NEW, 0o600)
    with os.fdopen(handle, "wb") as file:
        if os.geteuid() == 0:
            give_away(file.fileno(), path.parent)
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_private(folder: Path, *, durable: bool = False) -> None:
    """Make *folder*, if need be, for its owner alone."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        give_away(folder, folder.parent)
    if durable:
        _sync(folder.parent)


@lru_cache
def _owner(folder: Path) -> tuple[int, int] | None:
    """Return to whom *folder* belongs, if that is not root; asked once, for it hardly changes."""
    found = folder.stat()
    return (found.st_uid, found.st_gid) if found.st_uid else None


def give_away(made: int | Path, parent: Path) -> None:
    """Let what root has made belong to the owner of the folder that it lies in."""
    owner = parent.stat()
    if owner.st_uid != 0:
        os.chown(made, owner.st_uid, owner.st_gid)


def new_name() -> str:
    """Return a name for a spool file that nobody else has given."""
    moment = time.time_ns() // 1000
    return (
        f"{PREFIX}{os.uname().nodename}_{os.getpid()}_{next(_numbers)}_"
        f"{int.from_bytes(os.urandom(3))}_{moment // 1_000_000}_{moment % 1_000_000}"
    )


def new_id() -> str:
    """Return an id for bytes that have none."""
    return new_name().removeprefix(PREFIX)


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
