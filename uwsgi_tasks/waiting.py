"""The jobs of a spooler's directory, as those see them who do not run them."""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import signal
import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from uwsgi_tasks import codec
from uwsgi_tasks.errors import DecodeError
from uwsgi_tasks.marks import Mark, Peers, Progress, Running
from uwsgi_tasks.model import Job, Standing, State, Stop
from uwsgi_tasks.spool import PROBE, SpoolDirectory
from uwsgi_tasks.spool_file import PREFIX, batch_id, delayed_name, file_name, locked, unpack

log = logging.getLogger(__name__)

Where = Callable[[Standing], bool]
"""Is this job wanted?"""

_MOMENT, _LOOK = 1.0, 0.01
"""Seconds in which a file that a process has just taken gets its mark, and between two looks."""
_PATIENCE = 5.0
"""Seconds in which a job that was killed may end by an exception; after that its process ends."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """What the present process runs, if it is a spooler.

    That file must not be opened here: closing it would drop the lock by which uWSGI keeps it from
    the other spoolers.
    """

    running: Running
    payload: bytes
    mark: Mark


class Waiting:
    """What waits in one directory, or runs: to find, to list and to take away."""

    def __init__(self, files: SpoolDirectory, own: Own | None = None) -> None:
        self._files, self._own = files, own
        self._running = files.path / "running"
        self._peers = Peers(self._running)

    # ---- looking ----------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many spool files there are."""
        found = sum(not entry.name.startswith(PROBE) for _, entry in self._files.waiting())
        return found + sum(1 for _ in self._files.delayed())

    def standings(
        self, limit: int | None = None, *, running: bool = False, where: Where | None = None
    ) -> Iterator[Standing]:
        """Yield what runs, then the oldest that wait, and then those of the future, the next first.

        See `Executor.standings`.
        """
        known = self._all_running()
        found = self._running_ones(known)
        if not running:
            # Whoever chooses may want any of them; else the rest need not be put in order.
            most = limit if where is None else None
            found = chain(found, self._waiting_ones(most, known), self._delayed_ones())
        return islice(filter(where, found), limit)

    def _running_ones(self, known: Mapping[str, Running]) -> Iterator[Standing]:
        for one in sorted(known.values(), key=lambda one: one.started_at):
            path = self._files.find(one.name)
            if path is not None:
                priority = None if path.parent == self._files.path else int(path.parent.name)
                yield from self._standings(path, priority, one)

    def _waiting_ones(self, most: int | None, known: Container[str]) -> Iterator[Standing]:
        entries = (
            (_age(entry), entry.path, priority)
            for priority, entry in self._files.waiting()
            if entry.name not in known and not entry.name.startswith(PROBE)
        )
        ranked = sorted(entries) if most is None else heapq.nsmallest(most, entries)
        for _, path, priority in ranked:
            yield from self._standings(Path(path), priority, None)

    def _delayed_ones(self) -> Iterator[Standing]:
        for _, priority, path in self._files.delayed():
            yield from self._standings(path, priority, None)

    def read(self, id: str) -> Job | None:  # noqa: A002  the job's
        """Return a job as it lies here, to look at; see `Executor.read`."""
        for path, _ in self._paths(id):
            # It may be done, or begin its next attempt, at any moment.
            with contextlib.suppress(FileNotFoundError):
                for job in self._jobs(path):
                    if job.id == id:
                        return job
        return None

    def find(self, id: str) -> Standing | None:  # noqa: A002  the job's
        """Return where a job stands; None if it is not here, or no longer."""
        for path, priority in self._paths(id):
            running = self._all_running().get(path.name)
            for standing in self._standings(path, priority, running, id=id):
                return standing
        return None

    def _all_running(self) -> dict[str, Running]:
        """Return what runs, by the names of the files."""
        found = {one.name: one for one in self._peers.running()}
        if self._own is not None:
            found[self._own.running.name] = self._own.running
        return found

    def _owned(self, name: str) -> Own | None:
        """Return what this process runs, if that is the file of this name."""
        own = self._own
        return own if own is not None and own.running.name == name else None

    def _jobs(self, path: Path) -> list[Job]:
        """Return the jobs in a file; none if it is not ours. Raises OSError."""
        own = self._owned(path.name)
        return _jobs(path.read_bytes()) if own is None else _peeked(own.payload)

    def _standings(
        self,
        path: Path,
        priority: int | None,
        running: Running | None,
        id: str | None = None,  # noqa: A002
    ) -> Iterator[Standing]:
        """Yield what the file at *path* holds: a job, a batch as one, or its call *id* alone."""
        try:
            jobs = self._jobs(path)
            modified = path.stat().st_mtime
        except OSError:
            return
        delayed = path.parent.parent.name == "later"
        at = int(path.name.partition("_")[0]) / 1000 if delayed else None
        if not jobs:
            yield Standing(
                id=path.name.partition(PREFIX)[2],
                task="",
                executor="spooler",
                state=State.QUEUED if running is None else State.RUNNING,
                submitted_at=modified,
                at=at,
                priority=priority,
                place=str(self._files.path),
            )
            return
        name = delayed_name(path) if delayed else path.name
        done = Progress.read(self._running, name) if len(jobs) > 1 else 0
        index = done
        if id is not None:
            index = next((n for n, job in enumerate(jobs) if job.id == id), -1)
            if index < done or Progress.is_left_out(self._running, name, index):
                return
        job = jobs[min(index, len(jobs) - 1)]
        here = running if index == done else None
        yield Standing(
            id=job.id,
            task=job.task,
            executor="spooler",
            state=_state(job, here),
            attempt=job.attempt,
            submitted_at=job.submitted_at,
            at=at,
            priority=priority,
            calls=1 if id is not None else len(jobs) - done,
            place=str(self._files.path),
            worker=f"{os.uname().nodename}:{here.pid} spooler" if here else None,
            started_at=here.started_at if here else None,
            done=here.done if here else None,
            total=here.total if here else None,
        )

    def _paths(self, id: str) -> Iterator[tuple[Path, int | None]]:  # noqa: A002
        """Yield where a job may lie: its own file first, then that of its batch, then retries."""
        names = dict.fromkeys((file_name(id), file_name(batch_id(id))))
        for name in names:
            path = self._files.path / name
            if path.exists():
                yield path, None
        again = f"{file_name(id)}_"

        def is_its(name: str) -> bool:
            return name in names or name.startswith(again)

        # Not at once: that costs a listing of names, though it opens nothing.
        for priority, entry in self._files.waiting():
            if is_its(entry.name):
                yield Path(entry.path), priority
        for _, priority, path in self._files.delayed():
            if is_its(delayed_name(path)):
                yield path, priority
        # It may have been moved in between the two looks.
        for priority, entry in self._files.waiting():
            if is_its(entry.name):
                yield Path(entry.path), priority

    # ---- cancelling -------------------------------------------------------------------------

    def cancel(self, id: str, stop: Stop) -> tuple[State, Job] | None:  # noqa: A002
        """Take a job away; return its state after that, and what it was; None if it is not here.

        CANCELLED is certain: it will not run. RUNNING: it was asked to *stop*, or killed.
        """
        # A job of the future may be moved in between two looks, and a retry be written.
        deadline = time.monotonic() + _MOMENT
        while True:
            is_here = False
            for path, _priority in self._paths(id):
                is_here = True
                with contextlib.suppress(FileNotFoundError):
                    found = self._cancel_at(path, id, stop)
                    if found is not None:
                        return found
            if not is_here or time.monotonic() > deadline:
                return None
            time.sleep(_LOOK)

    def _cancel_at(self, path: Path, id: str, stop: Stop) -> tuple[State, Job] | None:  # noqa: A002
        if path.parent.parent.name == "later":
            return self._cancel_delayed(path, id)
        own = self._owned(path.name)
        if own is not None:
            return self._stop(path.name, _peeked(own.payload), id, stop)
        with locked(path) as file:
            if file is not None:
                jobs = _jobs(file.read())
                if len(jobs) == 1 and jobs[0].id == id:
                    path.unlink()
                    return State.CANCELLED, jobs[0]
                return self._leave_out(path.name, jobs, id, is_held=True)
        jobs = _jobs(path.read_bytes())
        return self._stop(path.name, jobs, id, stop)

    def _cancel_delayed(self, path: Path, id: str) -> tuple[State, Job] | None:  # noqa: A002
        jobs = _jobs(path.read_bytes())
        if len(jobs) > 1:
            with self._files.held(path):
                return self._leave_out(delayed_name(path), jobs, id, is_held=True)
        # What cannot be read is not ours to take away.
        if not jobs or jobs[0].id != id or self._files.take_delayed(path) is None:
            return None
        return State.CANCELLED, jobs[0]

    def _leave_out(
        self,
        name: str,
        jobs: list[Job],
        id: str,  # noqa: A002
        *,
        is_held: bool = False,
    ) -> tuple[State, Job] | None:
        """Have one call of a batch left out; *is_held* if nobody can begin it meanwhile."""
        for index, job in enumerate(jobs):
            if job.id == id:
                self._running.mkdir(mode=0o700, exist_ok=True)
                progress = Progress(self._running, name, len(jobs))
                if index < progress.done or progress.is_cancelled(index, surely=True):
                    return None
                is_sure = progress.cancel(index, is_held=is_held)
                return (State.CANCELLED if is_sure else State.RUNNING), job
        return None

    def _stop(
        self,
        name: str,
        jobs: list[Job],
        id: str,  # noqa: A002
        stop: Stop,
    ) -> tuple[State, Job] | None:
        """Ask for the end of a job that runs now."""
        index = next((n for n, job in enumerate(jobs) if job.id == id), None)
        if index is None:
            return None
        if len(jobs) > 1:
            found = self._leave_out(name, jobs, id)
            if found is None or found[0] is State.CANCELLED:
                return found
        own = self._owned(name)
        pid: int | None
        if own is None:
            pid = self._peers.stop(name, id, stop)
        else:
            own.mark.stop(id, stop)
            pid = own.running.pid
        if pid is None:
            # Just taken: it has not said yet that it runs.
            return None
        if stop is Stop.KILL and pid:
            self._kill(pid, name, index)
        return State.RUNNING, jobs[index]

    def _kill(self, pid: int, name: str, index: int) -> None:
        """Raise in the process that runs call number *index* of *name*; if need be, end it."""
        deadline = time.monotonic() + _PATIENCE
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGALRM)
        while self._runs(pid, name, index):
            if time.monotonic() > deadline:
                log.warning("process %d did not end %s, and is killed", pid, name)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.02)

    def _runs(self, pid: int, name: str, index: int) -> bool:
        """Does this process run call number *index*, and not another, of the file *name*?"""
        runs = any(one.pid == pid and one.name == name for one in self._peers.running())
        return runs and Progress.read(self._running, name) == index


def _jobs(content: bytes) -> list[Job]:
    """Return the jobs in a spool file; none if it is not ours."""
    with contextlib.suppress(DecodeError):
        return _peeked(unpack(content)[1])
    return []


def _peeked(payload: bytes) -> list[Job]:
    with contextlib.suppress(DecodeError):
        return list(codec.peek(payload))
    return []


def _state(job: Job, running: Running | None) -> State:
    if running is not None:
        return State.RUNNING
    return State.RETRYING if job.attempt > 1 else State.QUEUED


def _age(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0
