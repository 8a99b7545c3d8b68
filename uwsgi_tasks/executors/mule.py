"""To a mule: a process of uWSGI that takes one message after the other."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn

from uwsgi_tasks import codec, log_lines
from uwsgi_tasks.errors import (
    FixtureFailed,
    InvalidTask,
    SubmitError,
    TasksError,
    Unpicklable,
    shown,
)
from uwsgi_tasks.executors import Executor, Options
from uwsgi_tasks.executors._delays import Delays
from uwsgi_tasks.handle import Near
from uwsgi_tasks.model import Job, Result
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings

log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds after which a job that no mule took is sent again."""
_NOBODY_WAITS = (
    "a mule cannot wait before it tries again, as this uWSGI has neither a spooler nor threads: "
    "add 'enable-threads = true' or 'spooler = DIRECTORY' to its configuration, or retry without "
    "a delay"
)


class MuleExecutor(Executor):
    """Sends jobs as messages: fast, at most once, and gone when the server stops.

    A job that must wait, as a retry with a delay, goes on to *relay*, an executor that can delay;
    where there is none it waits in the memory of the mule that has run it, and becomes a dead
    letter when that ends in good order.
    """

    name: ClassVar[str] = "mule"

    relay: Executor | None = None

    def __init__(self, server: Server, settings: Callable[[], Settings]) -> None:
        super().__init__(server, settings)
        self._delays: Delays[Job] | None = None

    def ready(self) -> bool:
        """Is there a mule that waits for messages, and knows what to do with ours?"""
        if not self._server.has_plain_mules:
            return False
        return self._server.role == "master" or self._server.mule_started()

    def missing(self) -> str | None:
        """Say that there is no mule."""
        if self._server.present and not self._server.has_mules:
            return "this uWSGI has no mules: add 'mules = 2' to its configuration"
        return None

    def check(self, options: Options) -> None:
        """Refuse what needs a delay where nobody can delay."""
        super().check(options)
        if isinstance(options.mule, int):
            self._server.check_mule(options.mule)
        if options.waits and self._relay() is None and self._server.lacks_threads:
            raise InvalidTask(_NOBODY_WAITS)

    def submit(self, jobs: Sequence[Job]) -> Sequence[Result | Near]:
        """Send *jobs* as one message, which must not exceed 64 KiB."""
        if jobs[0].at is not None and jobs[0].at > time.time():
            relay = self._relay()
            if relay is not None:
                return relay.submit(jobs)
            if self._server.role != "mule":
                raise SubmitError(
                    "a mule takes no job of the future: use the spooler, or executor='thread'"
                )
            if self._server.lacks_threads:
                raise SubmitError(_NOBODY_WAITS)
            self._delay(jobs)
            return ()
        self._server.mule_message(codec.encode(jobs, self._settings().signer), jobs[0].mule)
        return ()

    def _delay(self, jobs: Sequence[Job]) -> None:
        """Keep *jobs*, which this mule is to send when they are due."""
        if self._delays is None:
            self._delays = Delays(self._send, "uwsgi_tasks delays")
            self._server.at_exit(self._end)
        for job in jobs:
            self._delays.add(job.at or 0.0, job)

    def _send(self, job: Job) -> None:
        try:
            self.submit((job,))
        except Unpicklable as error:
            self._bury(job, str(error))
        except SubmitError as error:
            log.warning(
                "%s cannot be sent to a mule yet: %s",
                log_lines.one_line(job),
                log_lines.one_line(error),
                extra=log_lines.of(job, self.name),
            )
            self._delay((job._replace(at=time.time() + _PAUSE),))

    def _end(self) -> None:
        """Make dead letters of what still waits when this mule ends."""
        for job in self._delays.take_all() if self._delays else ():
            self._bury(job, "its mule ended before it was due: requeue it")

    def _bury(self, job: Job, reason: str) -> None:
        try:
            self._receiver.bury(job, reason)
        except TasksError as error:
            log.critical(
                "%s is lost: %s; %s",
                log_lines.one_line(job),
                reason,
                log_lines.one_line(error),
                extra=log_lines.of(job, self.name),
            )

    def _relay(self) -> Executor | None:
        return self.relay if self.relay is not None and self.relay.ready() else None

    def receive(self, message: bytes, theirs: Callable[[bytes], Any] | None) -> None:
        """Run the jobs in *message*; uWSGI's hook."""
        try:
            if message[:3] != codec.MAGIC:
                self._foreign(message, theirs)
                return
            jobs = self._receiver.decode(message)
        # uWSGI would print it and go on; nobody else can still keep what is in the message.
        except Exception:
            log.critical("a message of %d bytes is lost", len(message), exc_info=True)
            return
        home = _here()
        for index, job in enumerate(jobs):
            try:
                self._run(job, message, index)
            except FixtureFailed as error:
                self._give_up(jobs[index:], error)
            except Exception:
                fields = log_lines.of(job, self.name)
                log.critical("%s is lost", log_lines.one_line(job), exc_info=True, extra=fields)
        if home is not None:
            os.chdir(home)

    def _give_up(self, jobs: Sequence[Job], error: FixtureFailed) -> NoReturn:
        """Make dead letters of *jobs*, none of which can run here, and end this process."""
        log.critical(
            "%d jobs do not run, and this process ends: %s",
            len(jobs),
            log_lines.one_line(error),
            exc_info=error.__cause__,
        )
        for job in jobs:
            try:
                self._receiver.bury(job, str(error))
            except Exception:
                fields = log_lines.of(job, self.name)
                log.critical("%s is lost", log_lines.one_line(job), exc_info=True, extra=fields)
        self._server.end_this_process()

    def _foreign(self, message: bytes, theirs: Callable[[bytes], Any] | None) -> None:
        if theirs is None:
            self._receiver.reject(message, "a message to a mule that is not ours")
            return
        try:
            theirs(message)
        except Exception as error:
            log.exception("%s could not handle a message", getattr(theirs, "__name__", theirs))
            self._receiver.reject(message, shown(error))

    def _run(self, job: Job | None, payload: bytes | None, index: int) -> None:
        while job is not None:
            job = self._receiver.run(job, payload, index)
            if job is None:
                return
            try:
                self.submit((job,))
            except SubmitError as error:
                if isinstance(error, Unpicklable) or (job.at or 0.0) > time.time():
                    self._receiver.bury(job, str(error))
                    return
                log.info(
                    "%s: %s; its next attempt runs at once",
                    log_lines.one_line(job),
                    log_lines.one_line(error),
                    extra=log_lines.of(job, self.name),
                )
                payload, index = codec.encode((job,), self._settings().signer), 0
            else:
                return


def _here() -> str | None:
    """Return the working directory, if it is still there."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
