"""Into the spooler: a file a job, run by uWSGI's spooler processes, and safe until it is done."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from uwsgi_tasks import codec, spool
from uwsgi_tasks.crashes import CANCELLED, REASON, Crashes
from uwsgi_tasks.current import alone
from uwsgi_tasks.errors import (
    ConfigurationError,
    DecodeError,
    FixtureFailed,
    InvalidTask,
    SubmitError,
    TasksError,
    Unpicklable,
)
from uwsgi_tasks.executors import Executor, Options
from uwsgi_tasks.limits import alarm
from uwsgi_tasks.log_lines import one_line
from uwsgi_tasks.marks import Mark, Peers, Progress
from uwsgi_tasks.model import SPOOL_OK, SPOOL_RETRY, Job, Result, Standing, State, Stop
from uwsgi_tasks.spool_file import PREFIX, batch_id, file_name, new_name, settle, write_whole
from uwsgi_tasks.waiting import Own, Waiting

log = logging.getLogger(__name__)

_LEASE = 5.0
"""Seconds by which a file's time is put ahead while it runs: if its process dies, and nobody
counts the crash, uWSGI passes the file over for so long, and runs those behind it."""
_GRACE = 5.0
"""Seconds that a server gets to start its spoolers before we say that they do not know us."""
_NICE = 19

_Theirs = Callable[[dict[Any, Any]], int] | None


@dataclass(frozen=True)
class _Place:
    """A spooler directory, and the processes that serve it."""

    files: spool.SpoolDirectory
    peers: Peers
    processes: float
    """How many there are, beside this one; infinite where that is not known."""
    is_elsewhere: bool
    """Do they belong to another server?"""

    @classmethod
    def at(cls, path: str, processes: float, *, is_elsewhere: bool = False) -> _Place:
        files = spool.SpoolDirectory(path)
        files.check()
        peers = Peers(files.path / "running", processes)
        return cls(files, peers, processes, is_elsewhere)


class SpoolerExecutor(Executor):
    """Writes jobs as spool files, and runs them in uWSGI's spooler processes.

    Outside uWSGI it writes the same files into the directory that the setting names.
    """

    name: ClassVar[str] = "spooler"
    supports_delay: ClassVar[bool] = True
    supports_priority: ClassVar[bool] = True
    durable: ClassVar[bool] = True
    tracks: ClassVar[bool] = True

    answer: Callable[[dict[Any, Any], Path], None]
    """Answers a `probe`."""
    _mark: Mark | None = None
    """This process's own mark, if it is a spooler."""
    _crashes: Crashes
    _home: _Place
    """The place that this process serves, if it is a spooler."""
    _payload = b""
    """What was in the file that this process runs, or ran last."""
    _pid = 0
    _nice = False
    _shared = False
    """Do other processes serve the same directory?"""
    _condemned: tuple[str, str] | None = None
    """The file that must not run, if uWSGI hands us just that one, and why."""
    _unknown_since: float | None = None
    _spent: Progress | None = None
    """Of the batch that ran last; without it all of that would run again, if we are killed before
    uWSGI has removed the file."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._places: dict[str | None, _Place] = {}

    # ---- declaring --------------------------------------------------------------------------

    def ready(self) -> bool:
        """Is there a spooler, or the directory of one?"""
        return bool(self._server.spoolers) or (
            not self._server.present and self._settings().spooler_dir is not None
        )

    def missing(self) -> str | None:
        """Say that there is no spooler."""
        if self._server.present and not self._server.spoolers:
            return "this uWSGI has no spooler: add 'spooler = DIRECTORY' to its configuration"
        return None

    def check(self, options: Options) -> None:
        """Refuse what uWSGI would never run."""
        super().check(options)
        if not self._server.present:
            return
        if options.lease is None:
            raise InvalidTask(
                "lease=None: the spooler runs a job again whose process was killed; use redis"
            )
        if options.priority is not None and not self._server.spooler_ordered:
            raise InvalidTask(
                "priority=: without 'spooler-ordered = true' in its configuration uWSGI would "
                "never run such a job"
            )
        spoolers = self._server.spoolers
        if options.spooler is not None and _real(options.spooler) not in spoolers:
            raise InvalidTask(
                f"spooler={options.spooler!r}: this uWSGI serves {', '.join(spoolers)}; "
                f"add 'spooler = {options.spooler}' to its configuration"
            )

    def dead_letters(self) -> Path | None:
        """Return the folder for what finally failed here; None where there is no spooler."""
        if self._pid == os.getpid():
            return self._home.files.dead
        directories = self.directories()
        return spool.SpoolDirectory(directories[0]).dead if directories else None

    def check_directories(self) -> None:
        """Raise ConfigurationError if what lies in a spooler's directory cannot be trusted."""
        for path in self._server.spoolers:
            spool.SpoolDirectory(path).check()

    # ---- submitting -------------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Write *jobs* into one spool file."""
        job = jobs[0]
        payload = codec.encode(jobs, self._settings().signer)
        place = self._places.get(job.spooler) or self._find_place(job.spooler)
        if job.priority is not None and not self._has_priorities(place):
            raise SubmitError(
                f"{job.task}: its priority needs 'spooler-ordered = true' in the configuration of "
                "the uWSGI that serves this directory"
            )
        # Whoever looks for a job finds it by its id alone.
        name = file_name(batch_id(job.id) if len(jobs) > 1 else job.id, job.attempt)
        files, durable = place.files, job.durable
        if job.at is not None and job.at > time.time():
            files.write_later(payload, job.at, job.priority, name=name, durable=durable)
            return ()
        files.write(payload, job.priority, name=name, durable=durable)
        self._wake(place)
        return ()

    def submit_raw(self, content: bytes) -> None:
        """Put a spool file back that is not ours. Raises SubmitError."""
        place = self._places.get(None) or self._find_place(None)
        write_whole(place.files.path / new_name(), content)
        self._wake(place)

    def _has_priorities(self, place: _Place) -> bool:
        if self._server.present:
            return self._server.spooler_ordered
        # If nobody is there to tell: a spooler that does not look there mends it when it starts.
        return place.peers.ordered() is not False

    def _wake(self, place: _Place) -> None:
        """Have the file that was just written read soon; whatever goes wrong, it is written."""
        settle()
        if self._mark is not None and place is self._home:
            self._mark.wake()
        try:
            known = place.peers.wake()
        except OSError as error:
            log.warning(
                "the spoolers of %s could not be woken: %s", place.files.path, one_line(error)
            )
            return
        if known >= place.processes or place.is_elsewhere:
            self._unknown_since = None
            return
        # They have just been forked, or have not loaded us: uWSGI knows their numbers.
        self._server.wake_spoolers(str(place.files.path))
        if not known:
            self._complain()

    def _find_place(self, spooler: str | None) -> _Place:
        processes, is_elsewhere = float("inf"), True
        if self._server.present:
            known = self._server.spoolers
            if not known:
                raise SubmitError(self.missing())
            path = known[0] if spooler is None else _real(spooler)
            if path not in known:
                raise SubmitError(f"spooler={spooler!r}: this uWSGI serves {', '.join(known)}")
            is_elsewhere = self._server.has_external_spoolers
            processes = self._server.spooler_processes(path)
        else:
            directory = spooler or self._settings().spooler_dir
            if directory is None:
                raise SubmitError("no spooler directory is known: set 'spooler_dir'")
            path = _real(str(directory))
        if self._mark is not None and path == str(self._home.files.path):
            self._places[spooler] = self._home
            return self._home
        try:
            place = _Place.at(path, processes, is_elsewhere=is_elsewhere)
            self._places[spooler] = place
        except ConfigurationError as error:
            raise SubmitError(str(error)) from error
        return place

    def _complain(self) -> None:
        """Say once that no spooler process has our callbacks: the jobs wait, and are not lost."""
        if self._server.role not in {"worker", "mule"}:
            return
        if self._unknown_since is None:
            self._unknown_since = time.monotonic()
        elif self._unknown_since < time.monotonic() - _GRACE:
            self._unknown_since = float("inf")
            log.error(
                "no spooler process has loaded uwsgi_tasks, so that what is submitted waits: "
                "call set_uwsgi_callbacks() in a module that the server loads before it forks, "
                "or add 'spooler-import = MODULE' to its configuration"
            )

    # ---- looking ----------------------------------------------------------------------------

    def directories(self) -> Sequence[str]:
        """Return the spooler directories that are known here."""
        directory = self._settings().spooler_dir
        return self._server.spoolers or (() if directory is None else (_real(str(directory)),))

    def _waiting(self) -> list[Waiting]:
        own = self._own()
        return [Waiting(spool.SpoolDirectory(path), own) for path in self.directories()]

    def _own(self) -> Own | None:
        """Return what this process runs, if it is a spooler."""
        if self._mark is None or self._pid != os.getpid():
            return None
        running = self._mark.running()
        if running is None:
            return None
        return Own(running=running, payload=self._payload, mark=self._mark)

    def forget(self, id: str) -> None:  # noqa: A002  the job's
        """Forget how often it has killed its process."""
        for path in self.directories():
            (Path(path) / "running" / f"{file_name(id)}.crashes").unlink(missing_ok=True)

    def find(self, id: str) -> Standing | None:  # noqa: A002  the job's
        """Look for the job's file, in each of the directories."""
        return next(filter(None, (waiting.find(id) for waiting in self._waiting())), None)

    def standings(
        self,
        limit: int | None = None,
        *,
        running: bool = False,
        where: Callable[[Standing], bool] | None = None,
    ) -> list[Standing]:
        """List the directories, one after the other."""
        found = (
            one
            for waiting in self._waiting()
            for one in waiting.standings(limit, running=running, where=where)
        )
        return list(islice(found, limit))

    def read(self, id: str) -> Job | None:  # noqa: A002  the job's
        """Look into the job's file."""
        return next(filter(None, (waiting.read(id) for waiting in self._waiting())), None)

    def count(self) -> int:
        """Return how many files wait, run or are delayed."""
        return sum(map(len, self._waiting()))

    def cancel(self, id: str, stop: Stop) -> tuple[State, Job] | None:  # noqa: A002
        """Take the job's file away, under the lock by which uWSGI runs it."""
        found = (waiting.cancel(id, stop) for waiting in self._waiting())
        return next(filter(None, found), None)

    def show_progress(self, job: Job, done: float, total: float | None) -> None:  # noqa: ARG002
        """Note it in this process's mark."""
        if self._mark is not None:
            self._mark.advance(done, total)

    def asked(self, job: Job) -> Stop:
        """Look into this process's mark."""
        return Stop.NOT if self._mark is None else self._mark.asked_to_stop(job.id)

    # ---- running ----------------------------------------------------------------------------

    def start(self, current: str | None = None, payload: bytes = b"") -> Mark:
        """Take up work in a spooler process: count the crashes of the dead, and mend the rest.

        *current* and *payload* are the file that uWSGI has handed to this process already, if it
        has: the hook that runs before may have been taken from us.
        """
        if self._pid == os.getpid() and self._mark is not None:
            return self._mark
        self._pid = os.getpid()
        alarm.watch(self._is_killed)
        directory = self._server.own_spooler()
        others = self._server.spooler_processes(directory) - 1
        self._home = _Place.at(directory, others)
        # Those that were made before the fork count this process among the others.
        self._places.clear()
        files, settings = self._home.files, self._settings()
        incarnation, ordered = self._server.incarnation, self._server.spooler_ordered
        self._shared = others > 0
        self._crashes = crashes = Crashes(
            files,
            incarnation,
            settings.crash_limit,
            self._receiver.reject,
            self._cancelled,
            shared=self._shared,
        )
        self._settle(current, payload)
        # Their faults must not keep a spooler from its work.
        try:
            files.tidy(ordered=ordered)
            crashes.forget_finished()
        except (OSError, TasksError):
            log.exception("%s could not be tidied", files.path)
        self._mark = Mark(files.path / "running", incarnation, ordered=ordered)
        self._nice = not settings.renice
        if settings.spooler_frequency is not None:
            self._server.set_spooler_frequency(settings.spooler_frequency)
        return self._mark

    def _settle(self, current: str | None, payload: bytes, *, has_mark: bool = False) -> None:
        """Count the crashes of the dead, and note whether the file at hand must not run."""
        reason = self._crashes.settle(current, payload, has_mark=has_mark)
        if current is not None and reason is not None:
            self._condemned = current, reason

    def _was_begun(self, name: str) -> bool:
        """Has a process begun the file that is not there any more, or was it put off?

        If it ran for longer than the lease, we are here before the newcomer that counts crashes.
        """
        try:
            found = Path(name).stat()
        except FileNotFoundError:
            # As in `_put_off`.
            path = self._home.files.find(name)
            if path is None:
                return False
            found = path.stat()
        # Only who puts a file off dates it ahead of the moment at which that is done.
        return found.st_mtime_ns > found.st_ctime_ns

    def _is_killed(self) -> bool:
        """Is the job that runs in this process to end at once?"""
        current = alone.task
        return current is not None and self.asked(current.job) is Stop.KILL

    def _cancelled(self, payload: bytes) -> None:
        for job in codec.peek(payload):
            self._receiver.cancel(job)

    def receive(self, env: dict[Any, Any], theirs: _Theirs) -> int:
        """Run what is in a spool file; uWSGI's hook.

        Always SPOOL_OK, except where the file must stay: uWSGI would run it at each pass.
        """
        name = os.fsdecode(env["spooler_task_name"])
        try:
            payload = env.get("body", b"")
            mark = self._mark
            if mark is None or self._pid != os.getpid():
                mark = self.start(name, payload)
            if self._spent is not None:
                self._spent.forget()
                self._spent = None
            code = self._handle(name, payload, env, theirs, mark)
        except FixtureFailed as error:
            log.critical(
                "%s stays in the spooler, and this process ends, for another one to try again: %s",
                name,
                one_line(error),
                exc_info=error.__cause__,
            )
            # It has not run: whoever counts crashes must not count this as one.
            self._put_off(name, 0.0)
            if mark is not None:
                mark.end()
            self._server.end_this_process()
        # Whatever it was, the file is the only place where the job is safe.
        except Exception:
            log.exception("%s stays in the spooler, and is tried again", name)
            self._put_off(name, _LEASE)
            code = SPOOL_RETRY
        # Not in a 'finally': what else ends this process is a crash, and the mark must say so.
        if mark is not None and mark.end():
            self._server.wake_this_spooler()
        return code

    def _handle(
        self, name: str, payload: bytes, env: dict[Any, Any], theirs: _Theirs, mark: Mark
    ) -> int:
        if not self._nice:
            self._renice()
        if payload[:3] != codec.MAGIC:
            if name == spool.TICKET:
                return self._move_in()
            if env.get(b"uwsgi_tasks") == b"probe":
                self.answer(env, self._home.files.path)
                return SPOOL_OK
            if not self._is_ours(env, theirs):
                return self._run_theirs(name, env, theirs)
        if self._shared:
            if self._was_begun(name):
                self._settle(name, payload, has_mark=True)
            # If we die, another process would take it before the crash is counted.
            self._put_off(name, _LEASE)
        self._payload = payload
        mark.begin(name)
        self._run(name, payload, env)
        return SPOOL_OK

    def _is_ours(self, env: dict[Any, Any], theirs: _Theirs) -> bool:
        """Is a file that does not look like ours left to us all the same?"""
        if codec.is_legacy(env) or theirs is None:
            return True
        # That module is always there, and can do nothing with what it did not write.
        if getattr(theirs, "__module__", "") == "uwsgidecorators":
            return b"ud_spool_func" not in env
        return False

    def _run(self, name: str, payload: bytes, env: dict[Any, Any]) -> None:
        if self._condemned is not None and name == self._condemned[0]:
            reason = self._condemned[1]
            if reason == CANCELLED:
                self._cancelled(payload)
            else:
                self._receiver.reject(payload, reason)
                self.forget(name.removeprefix(PREFIX))
        elif payload[:3] != codec.MAGIC:
            self._run_foreign(name, env)
        elif codec.is_batch(payload):
            self._run_batch(name, payload)
        else:
            for job in self._receiver.decode(payload):
                self._attempt(job, payload)

    def _attempt(self, job: Job, payload: bytes | None) -> None:
        following = self._receiver.run(job, payload)
        if following is not None:
            self._follow_up(following)

    def _follow_up(self, job: Job) -> None:
        # Before the last attempt is acknowledged: a crash in between runs it twice, never not.
        try:
            self.submit((job,))
        except Unpicklable as error:
            self._receiver.bury(job, str(error))

    def _run_batch(self, name: str, payload: bytes) -> None:
        jobs = self._receiver.decode(payload)
        progress = Progress(self._home.files.path / "running", name, len(jobs))
        # What was cancelled as well is left out below.
        if (
            progress.condemned
            and jobs[progress.done :]
            and not progress.is_cancelled(progress.done)
        ):
            self._receiver.bury(jobs[progress.done], REASON)
            progress.note(progress.done + 1)
        done, run, note = progress.done, self._receiver.run, progress.note
        for index, job in enumerate(jobs[done:], done):
            if progress.is_cancelled(index):
                if not progress.is_cancelled(index, surely=True):
                    self._receiver.cancel(job)
                note(index + 1)
                continue
            following = run(job, payload, index)
            if following is not None:
                self._follow_up(following)
            note(index + 1)
        self._spent = progress

    def _run_foreign(self, name: str, env: dict[Any, Any]) -> None:
        """Run a file of uwsgi_tasks 0.7; what nobody knows becomes a dead letter."""
        reason = "nobody knows what to do with this spool file"
        if codec.is_legacy(env):
            reason = "a file of uwsgi_tasks 0.7, which 'accept_legacy' is set to refuse"
            if self._settings().accept_legacy:
                try:
                    job = codec.decode_legacy(env, name.removeprefix(PREFIX))
                except DecodeError as error:
                    reason = str(error)
                else:
                    self._attempt(job, None)
                    return
        variables = {
            os.fsdecode(key): value
            for key, value in env.items()
            if key not in {"spooler_task_name", "body"}
        }
        self._receiver.reject(env.get("body", b""), reason, variables)

    def _run_theirs(self, name: str, env: dict[Any, Any], theirs: _Theirs) -> int:
        """Run a file that is not ours, as if we were not here."""
        assert theirs is not None  # noqa: S101  for the type checker: else it would be ours
        code = theirs(env)
        if code != SPOOL_OK:
            # It runs again at the next pass, and the passes of this server were not so many.
            self._put_off(name, self._server.spooler_frequency)
        return code

    def _move_in(self) -> int:
        ordered = self._server.spooler_ordered
        if self._home.files.move_in(time.time(), ordered=ordered):
            # This pass has read the directory already.
            settle()
            self._server.wake_this_spooler()
            self._home.peers.wake()
        return SPOOL_RETRY

    def _put_off(self, name: str, seconds: float) -> None:
        """Have uWSGI pass the file over for so long."""
        due = time.time() + seconds
        try:
            os.utime(name, (due, due))
        except FileNotFoundError:
            # With spooler-chdir, or after a task that has changed it, we are elsewhere.
            path = self._home.files.find(name)
            if path is not None:
                os.utime(path, (due, due))

    def _renice(self) -> None:
        self._nice = True
        if os.getpriority(os.PRIO_PROCESS, 0) < _NICE:
            return
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        except PermissionError:
            log.warning(
                "this spooler runs at nice 19, as uWSGI starts it, and may starve on a busy "
                "machine: give it CAP_SYS_NICE, or RLIMIT_NICE 20"
            )


def _real(path: str) -> str:
    return os.path.realpath(path)
