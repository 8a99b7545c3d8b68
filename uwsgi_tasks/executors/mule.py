"""To a mule: a process of uWSGI that takes one message after the other."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from uwsgi_tasks import codec
from uwsgi_tasks.errors import InvalidTask, SubmitError, Unpicklable, shown
from uwsgi_tasks.executors import Executor, Options
from uwsgi_tasks.model import Job, Result

log = logging.getLogger(__name__)


class MuleExecutor(Executor):
    """Sends jobs as messages: fast, at most once, and gone when the server stops.

    A job that must wait, as a retry with a delay, goes on to *relay*: an executor that can delay.
    """

    name: ClassVar[str] = "mule"

    relay: Executor | None = None

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
        if options.waits and self._relay() is None:
            raise InvalidTask(
                "a mule cannot wait before it tries again: use the spooler, add one to this "
                "server, or retry without a delay"
            )

    def submit(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Send *jobs* as one message, which must not exceed 64 KiB."""
        if jobs[0].at is not None and jobs[0].at > time.time():
            relay = self._relay()
            if relay is None:
                raise SubmitError("a mule cannot wait: use the spooler for what has a time")
            return relay.submit(jobs)
        self._server.mule_message(codec.encode(jobs, self._settings().signer), jobs[0].mule)
        return ()

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
            except Exception:
                log.critical("%s is lost", job, exc_info=True)
        if home is not None:
            os.chdir(home)

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
                if job.at is not None or isinstance(error, Unpicklable):
                    self._receiver.bury(job, str(error))
                    return
                log.info("%s: %s; its next attempt runs at once", job, error)
                payload, index = codec.encode((job,), self._settings().signer), 0
            else:
                return


def _here() -> str | None:
    """Return the working directory, if it is still there."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
