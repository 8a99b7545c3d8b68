"""Jobs that finally failed: kept in the store, or in files while that is away, and requeued."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from uwsgi_tasks import codec, log_lines
from uwsgi_tasks.errors import (
    ConfigurationError,
    DecodeError,
    StoreError,
    TasksError,
    shown,
)
from uwsgi_tasks.handle import JobHandle
from uwsgi_tasks.model import DeadLetter, Job, TaskExecutor
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.spool_file import PREFIX, bury, unpack
from uwsgi_tasks.stores import Store

log = logging.getLogger(__name__)

_LEASE = 60.0
"""Seconds for which nobody else requeues what is being requeued."""


_EXACT = 2e-6
"""Seconds by which a time may come back later: databases keep microseconds."""
_REFUSALS = 3
"""Files in a row that a store does not take, after which it is taken to be away."""


class Submitter(Protocol):
    """Submits what was dead."""

    def resubmit(self, job: Job, executor: str, changes: dict[str, Any]) -> JobHandle:
        """Submit *job* with *changes* of its options. Raises TasksError."""

    def put_back(self, variables: bytes, body: bytes) -> None:
        """Put a spool file back that is not ours. Raises TasksError."""


class DeadLetters:
    """The dead letters of an app: to list, to look at, to requeue and to remove.

    All raise StoreError where the store cannot be reached.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        folder: Callable[[], Path],
        folders: Callable[[], Sequence[Path]],
        settings: Callable[[], Settings],
        submitter: Submitter,
    ) -> None:
        self._store, self._settings = store, settings
        self._folder, self._folders = folder, folders
        self._submitter = submitter
        self._files: dict[str, Path] = {}
        """By id: letters that a store shows which ends with this process, and which stay there."""

    # ---- keeping ----------------------------------------------------------------------------

    def keep(self, letter: DeadLetter) -> str:
        """Keep *letter*; return where. Raises OSError or TasksError if nobody takes it."""
        try:
            self._store().bury(letter)
        except (StoreError, ConfigurationError) as error:
            # A file, then: the next who lists them takes it into the store.
            path = bury(self._folder(), _variables(letter), letter.payload)
            log.warning(
                "the store did not take a dead letter: %s",
                log_lines.one_line(error),
                extra=log_lines.of(letter, letter.executor),
            )
            return str(path)
        return "the store"

    def outlive(self) -> None:
        """Write those that are in the memory of this process, which ends, into files."""
        store = self._store()
        if store.shared:
            return
        files: list[Path] = []
        for letter in store.dead(store.count_dead() or 1):
            if letter.id in self._files:
                continue
            try:
                files.append(bury(self._folder(), _variables(letter), letter.payload))
            # The others must not be lost with it.
            except (OSError, TasksError, ValueError) as error:
                log.critical(
                    "dead letter %s is lost: %s",
                    log_lines.one_line(letter.id),
                    log_lines.one_line(shown(error)),
                    extra=log_lines.of(letter, letter.executor),
                )
                continue
            store.exhume(letter.id)
        if files:
            log.warning(
                "the store ends with this process: its dead letters are in files, %d in %s",
                len(files),
                files[0].parent,
            )

    def adopt(self) -> int:
        """Take into the store what lies in files, since it was away; return how many."""
        store = self._store()
        self._forget_missing(store)
        found: list[Path] = []
        # Of this process, and of all spoolers: each has a folder of its own.
        for folder in self._folders():
            with contextlib.suppress(OSError):
                found += [folder / name for name in os.listdir(folder) if name.startswith(PREFIX)]
        refusals = 0
        known = set(self._files.values())
        for path in (one for one in found if one not in known):
            # Somebody else may have taken it; and one that is not ours to read, or that is too
            # large for the store, hides no other.
            try:
                letter = _letter(path)
                store.bury(letter)
                if store.shared:
                    path.unlink()
                else:
                    # What is in memory ends with this process, which may have come to look only.
                    self._files[letter.id] = path
            except FileNotFoundError:
                pass
            except (OSError, StoreError) as error:
                log.warning("a dead letter stays in %s: %s", path, log_lines.one_line(error))
                refusals += isinstance(error, StoreError)
            else:
                refusals = 0
            if refusals == _REFUSALS:
                break
        return len(found)

    def _forget_missing(self, store: Store) -> None:
        """Forget letters in files that another process has taken away."""
        for id, path in list(self._files.items()):  # noqa: A001
            if not path.exists():
                del self._files[id]
                store.exhume(id)

    def _remove(self, store: Store, id: str, until: float = math.inf) -> bool:  # noqa: A002
        is_gone = store.exhume(id, until)
        path = self._files.pop(id, None)
        if path is not None:
            path.unlink(missing_ok=True)
        return is_gone

    # ---- looking ----------------------------------------------------------------------------

    def list(
        self, limit: int = 50, before: DeadLetter | None = None, task: str | None = None
    ) -> list[DeadLetter]:
        """Return the newest first; those older than *before* only, and of *task* only, if given."""
        self.adopt()
        return self._store().dead(limit, before, task)

    def get(self, id: str) -> DeadLetter | None:  # noqa: A002  the job's
        """Return the dead letter of the job of this id."""
        self.adopt()
        return self._store().find_dead(id)

    def count(self, task: str | None = None) -> int:
        """Return how many there are, of *task* only, if given."""
        self.adopt()
        return self._store().count_dead(task)

    def job(self, letter: DeadLetter) -> Job:
        """Return the job in *letter* to look at; objects are stand-ins. Raises TasksError."""
        return codec.peek(letter.payload)[0]

    # ---- requeuing --------------------------------------------------------------------------

    def requeue(self, id: str, **options: Any) -> JobHandle:  # noqa: A002
        """Submit a dead job again, with its first attempt, and with these changes of its options.

        It is taken away after it was submitted: killed in between, it is in both places. Raises
        TasksError if it is not there, cannot be read, or is not taken.
        """
        self.adopt()
        store = self._store()
        token = os.urandom(8).hex()
        lease = store.acquire(f"requeue {id}", token, _LEASE)
        if lease.owner != token:
            raise TasksError(f"{id} is being requeued by somebody else")
        try:
            letter = store.find_dead(id)
            if letter is None:
                raise TasksError(f"there is no dead letter {id}: was it requeued, or removed?")
            handle = self._submit(letter, options)
            # It may have run, and failed again, by now: that letter is another one.
            self._remove(store, id, letter.failed_at + _EXACT)
        finally:
            store.release(lease)
        return handle

    def _submit(self, letter: DeadLetter, options: dict[str, Any]) -> JobHandle:
        if letter.executor != TaskExecutor.REDIS and not (
            codec.is_job(letter.payload) and not letter.variables
        ):
            if options:
                raise TasksError(f"{letter.id} is no job of ours: it can only go back as it is")
            self._submitter.put_back(letter.variables, letter.payload)
            return JobHandle(letter.id)
        try:
            settings = self._settings()
            # What nobody has signed may come from whoever can write to Redis, unread until now.
            is_foreign = letter.executor == TaskExecutor.REDIS and settings.signer is None
            pickles = settings.pickles and not is_foreign
            jobs = codec.decode(letter.payload, settings.signer, plain=True, pickles=pickles)
        except DecodeError as error:
            raise TasksError(f"{letter.id} cannot be submitted: {error}") from error
        # Many, if nobody could read what `Task.map` had submitted: none of them must be lost.
        handles = [self._submitter.resubmit(job, letter.executor, options) for job in jobs]
        return handles[0]

    def remove(self, id: str) -> bool:  # noqa: A002
        """Take a dead letter away for good; False if it is not there."""
        self.adopt()
        return self._remove(self._store(), id)


def _variables(letter: DeadLetter) -> dict[str, str | bytes]:
    """Return what a file says of *letter*."""
    found: dict[str, str | bytes] = {
        name: str(getattr(letter, name))
        for name in ("task", "id", "attempt", "executor", "failed_at", "worker", "error")
    }
    found["traceback"] = letter.traceback
    if letter.variables:
        found["variables"] = letter.variables
    return found


def _letter(path: Path) -> DeadLetter:
    """Return what was written into a file, by us or by an earlier version."""
    try:
        variables, body = unpack(path.read_bytes())
    except DecodeError as error:
        variables, body = {"error": f"{shown(error)} in {path.name}"}, path.read_bytes()
    attempt = variables.get("attempt", "1")
    try:
        failed_at = float(variables.get("failed_at", ""))
    except ValueError:
        failed_at = math.nan
    if not math.isfinite(failed_at):
        failed_at = path.stat().st_mtime
    return DeadLetter(
        id=variables.get("id") or path.name.removeprefix(PREFIX),
        task=variables.get("task", ""),
        executor=variables.get("executor", "spooler"),
        attempt=int(attempt) if attempt.isdigit() else 1,
        failed_at=failed_at,
        error=variables.get("error", ""),
        traceback=variables.get("traceback", ""),
        worker=variables.get("worker", ""),
        payload=body,
        variables=variables.get("variables", "").encode("utf-8", "surrogateescape"),
    )
