"""How often a spool file has killed the process that ran it, and what becomes of it then."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from uwsgi_tasks import codec, spool
from uwsgi_tasks.marks import Dead, Progress, bereave
from uwsgi_tasks.spool_file import delayed_name, locked, unpack

log = logging.getLogger(__name__)

_BACK_OFF = 2.0
"""Seconds between a counted crash and the next attempt; doubled with each crash."""

_STOPS = 10
"""Ends of the whole server while it ran that a file survives."""
REASON = "its process died too often while it ran"
CANCELLED = "it was cancelled, and its process ended"

Reject = Callable[[bytes, str, dict[str, str]], None]
Cancelled = Callable[[bytes], None]


class Crashes:
    """What a spooler that starts makes of those that died before it.

    Nothing is unpickled here: it may be just that which kills. *limit* crashes make a file a dead
    letter, which *reject* writes. Of a file with many calls, only the one that was running goes.
    What was to be killed goes as well, and *cancelled* is told. *shared* says that other processes
    serve the directory, each of which settles the death of who had run a file that it takes.
    """

    def __init__(
        self,
        files: spool.SpoolDirectory,
        incarnation: bytes,
        limit: int,
        reject: Reject,
        cancelled: Cancelled,
        *,
        shared: bool = False,
    ) -> None:
        self._files = files
        self._running = files.path / "running"
        self._incarnation, self._limit = incarnation, limit
        self._reject, self._cancelled = reject, cancelled
        self._shared = shared

    def settle(self, current: str | None, payload: bytes, *, has_mark: bool = False) -> str | None:
        """Count the crashes of all that died; return why the file *current* must not run, if so.

        That file, with *payload*, is in the hands of this process already, if it is not None. It
        must not be opened: closing it would drop uWSGI's lock. *has_mark*: this process has a
        `Mark` already.
        """
        reasons: list[str | None] = []

        def settle(dead: Dead) -> bool:
            # A newcomer must start, whatever is wrong with one file; that one keeps its time.
            try:
                if dead.running is not None and dead.running == current:
                    reasons.append(self._settle_current(dead, current, payload))
                elif dead.running is not None:
                    return self._settle(dead, dead.running)
            except Exception:
                log.exception("%s: its process died, and that could not be counted", dead.running)
            return True

        bereave(self._running, settle, has_mark=has_mark)
        return next(filter(None, reasons), None)

    def forget_finished(self) -> None:
        """Take away what is known of files that are gone."""
        notes = [note for kind in ("crashes", "done") for note in self._running.glob(f"*.{kind}")]
        if not notes:
            return
        # First: what is moved in meanwhile is in one of the two places.
        delayed = {delayed_name(path) for _, _, path in self._files.delayed()}
        for note in notes:
            if note.stem not in delayed and self._files.find(note.stem) is None:
                note.unlink(missing_ok=True)

    def _settle(self, dead: Dead, name: str) -> bool:
        """Count a crash; False if that is left to another process, which has the file."""
        path = self._files.find(name)
        if path is None:
            return True
        with contextlib.suppress(FileNotFoundError), locked(path) as file:
            if file is not None:
                self._judge(dead, path, file)
            elif self._shared:
                # Before it runs the file it asks for the dead, as we do; it alone can leave it out.
                return False
            else:
                # Somebody runs it already. A crash of theirs leaves a mark of its own.
                self._count(dead, name)
        return True

    def _judge(self, dead: Dead, path: Path, file: BinaryIO) -> None:
        """Make of a file, which is locked, what the death of who ran it makes of it."""
        if dead.killed:
            self._cancelled(unpack(file.read())[1])
            path.unlink()
            return
        # Should the counting fail, as on a full disk, it waits all the same.
        self._put_off(path, _BACK_OFF)
        crashes, limit = self._count(dead, path.name)
        if crashes < limit:
            # If the server was stopped, reloaded or killed, the job need not wait.
            stopped = dead.incarnation != self._incarnation
            self._put_off(path, 0 if stopped else _BACK_OFF * 2 ** (crashes - 1))
            return
        variables, body = unpack(file.read())
        if self._spares(path.name, body):
            os.utime(path)
            return
        self._reject(body, f"{REASON} ({crashes})", variables)
        path.unlink()
        # Whoever puts it back wants it to be tried as often as it was.
        self._file(path.name).unlink(missing_ok=True)

    def _settle_current(self, dead: Dead, name: str, payload: bytes) -> str | None:
        if dead.killed:
            return CANCELLED
        crashes, limit = self._count(dead, name)
        return (
            f"{REASON} ({crashes})"
            if crashes >= limit and not self._spares(name, payload)
            else None
        )

    @staticmethod
    def _put_off(path: Path, seconds: float) -> None:
        due = time.time() + seconds
        os.utime(path, (due, due))

    def _spares(self, name: str, body: bytes) -> bool:
        """Does all but one of its calls get another chance?"""
        if not codec.is_batch(body):
            return False
        # If it has had that chance, and got no further, decoding it is what kills.
        spared = Progress(self._running, name).condemn()
        if spared:
            self._file(name).unlink(missing_ok=True)
        return spared

    def _count(self, dead: Dead, name: str) -> tuple[int, int]:
        """Count one more; return how many there were, and how many there may be.

        The end of the whole server is counted apart, and allowed more often: it is hardly ever
        the job's doing, but a job can bring it about, and would then do so at each start.
        """
        stopped = dead.incarnation != self._incarnation
        file = self._file(name)
        # In a file with many calls, each has crashes of its own.
        done = Progress.read(self._running, name)
        counts = [0, 0]
        with contextlib.suppress(OSError, ValueError):
            at, crashes, stops = (int(word) for word in file.read_text().split())
            if at == done:
                counts = [crashes, stops]
        counts[stopped] += 1
        file.write_text(f"{done} {counts[0]} {counts[1]}")
        limit = max(self._limit, _STOPS) if stopped else self._limit
        log.log(
            logging.INFO if stopped else logging.WARNING,
            "%s: its %s died while it ran (%d of %d)",
            name,
            "server" if stopped else "process",
            counts[stopped],
            limit,
        )
        return counts[stopped], limit

    def _file(self, name: str) -> Path:
        return self._running / f"{name}.crashes"
