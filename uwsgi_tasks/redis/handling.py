"""What is done with a job that was claimed: it is run, or given back, or a dead letter."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from uwsgi_tasks import codec, log_lines
from uwsgi_tasks.errors import FixtureFailed, NotKept, RedisAway, Unpicklable, shown
from uwsgi_tasks.executors import Receiver
from uwsgi_tasks.model import Job, State
from uwsgi_tasks.redis.queues import DEFAULT, Claim, End, Queues
from uwsgi_tasks.settings import Settings

log = logging.getLogger(__name__)

_PUT_OFF = 5.0
"""Seconds after which a job is tried again that could not be run here."""
_NONE = "-"
"""The token of a step that claims nothing."""


class Handling:
    """Handles one claimed job after the other, on any thread.

    What has ended is noted in *ends*, and told to Redis by whoever takes the next step.
    """

    def __init__(
        self,
        queues: Queues,
        receiver: Receiver,
        settings: Callable[[], Settings],
        ends: deque[End],
    ) -> None:
        self._queues, self._receiver, self._settings = queues, receiver, settings
        self._ends = ends

    def perform(self, claim: Claim, limit: int) -> None:
        """Run a job, or do what is to be done instead: *limit* crashes make it a dead letter."""
        receiver = self._receiver
        kills = claim.crashes >= limit
        reason = f"its worker died too often while it ran ({claim.crashes})"
        if kills and claim.payload[:3] == codec.MAGIC:
            # Unpickling it may be what killed them.
            receiver.reject(claim.payload, reason, id=claim.id)
            self.end(claim)
            return
        try:
            jobs = receiver.decode(claim.payload, claim.id)
        except NotKept as error:
            self._put_off(claim, error)
            return
        if not jobs:
            self.end(claim)
            return
        job = jobs[0]
        if job.id != claim.id or (job.queue or DEFAULT) != claim.queue:
            # A foreign program need not say twice what it is called, and where it lies.
            job = job._replace(id=claim.id, queue=claim.queue)
        if claim.is_once and not job.is_once:
            job = job._replace(lease=0.0)
        if kills:
            receiver.bury(job, reason)
            self.end(claim)
        elif claim.crashes < 0:
            receiver.cancel(job)
            self.end(claim)
        elif self._is_known(job, claim):
            self._attempt(claim, job)
        else:
            self._wait_for_code(claim, job)

    def _is_known(self, job: Job, claim: Claim) -> bool:
        receiver = self._receiver
        if receiver.knows(job.task):
            return True
        # Whoever can write JSON there must not choose what is imported here.
        if claim.payload[:3] != codec.MAGIC or self._settings().signer is None:
            return False
        try:
            receiver.find(job.task)
        except Exception:  # noqa: BLE001  the user's module, in which anything may go wrong
            return False
        return True

    def _attempt(self, claim: Claim, job: Job) -> None:
        if claim.is_once and not self._is_taken_off(claim):
            return
        try:
            result, following = self._receiver.perform(job, claim.payload, bury=True)
        except FixtureFailed as error:
            self._put_off(claim, error, job)
            return
        except NotKept as error:
            if claim.is_once:
                self._lose(job, error)
            else:
                self._put_off(claim, error)
            return
        # Else it is left to whoever has it, or gets it when its lease is over.
        if result.state is not State.RUNNING:
            self._follow(claim, following)

    def _follow(self, claim: Claim, following: Job | None) -> None:
        """Have Redis told what follows from an attempt."""
        payload: bytes | None = None
        if following is not None:
            try:
                payload = self._encoded(following)
            except Unpicklable as error:
                self._receiver.bury(following, str(error))
        if payload is None or following is None:
            if not claim.is_once:
                self.end(claim)
        elif claim.is_once:
            self._submit_again(claim, following, payload)
        else:
            self._ends.append(End(claim.queue, claim.id, claim.token, payload, following.at))

    def _encoded(self, job: Job) -> bytes:
        pickles = job.serializer == "pickle"
        return codec.encode_one(job, self._settings().signer, pickles=pickles)

    def end(self, claim: Claim) -> None:
        """Have Redis told, with the next step, that a job has ended."""
        self._ends.append(End(claim.queue, claim.id, claim.token))

    def _is_taken_off(self, claim: Claim) -> bool:
        """End a job before it runs, which is to run once at most; False if it is not ours to run.

        Should the answer be lost, it does not run at all.
        """
        end = End(claim.queue, claim.id, claim.token)
        return not self._queues.step([claim.queue], [end], 0, _NONE).lost

    def _submit_again(self, claim: Claim, job: Job, payload: bytes) -> None:
        """Submit a job that Redis knows no more."""
        words = (job.id, payload)
        try:
            self._queues.submit(claim.queue, words, at=job.at, priority=job.priority, lease=0)
        except RedisAway as error:
            self._receiver.bury(job, f"it could not be submitted again: {error}")

    def _wait_for_code(self, claim: Claim, job: Job) -> None:
        """Leave a job to others whose task nobody here knows, for as long as there may be any."""
        grace = self._settings().unknown_task_grace
        delay = min(_PUT_OFF, grace)
        reason = (
            f"no task {job.task} is declared: was it renamed or removed? A worker imports the "
            "modules that follow its -m"
        )
        unknown_for = self._queues.release([claim], delay, unknown=True)[0]
        if unknown_for >= grace:
            # It was given back just now; whoever has it next finds that it is gone.
            self._receiver.bury(job, reason)
            self._queues.forget(job.id)
        else:
            log.warning(
                "%s: %s; it waits",
                log_lines.one_line(job),
                log_lines.one_line(reason),
                extra=log_lines.of(job, "redis"),
            )

    def _put_off(self, claim: Claim, error: BaseException, job: Job | None = None) -> None:
        """Give a job back that could not be run, and to which nothing was done.

        *job* is it, if it may have been taken off.
        """
        log.warning(
            "job %s is put off: %s",
            log_lines.one_line(claim.id),
            log_lines.one_line(shown(error)),
            extra={"job_id": claim.id, "executor": "redis"},
        )
        if claim.is_once and job is not None:
            again = job._replace(at=time.time() + _PUT_OFF)
            self._submit_again(claim, again, claim.payload)
        else:
            self._queues.release([claim], _PUT_OFF)

    @staticmethod
    def _lose(job: Job, error: NotKept) -> None:
        """Note that a job has failed, must not run again, and could not be kept either."""
        log.critical(
            "%s has failed and is lost: %s",
            log_lines.one_line(job),
            log_lines.one_line(error),
            extra=log_lines.of(job, "redis"),
        )

    def give_up(self, claim: Claim, reason: str) -> None:
        """Make a dead letter of a job that runs, and that nobody can end, or wait for."""
        try:
            for job in self._receiver.decode(claim.payload, claim.id):
                self._receiver.bury(job._replace(id=claim.id), reason)
        except NotKept as error:
            log.critical(
                "job %s is given up, for %s, and could not be kept: %s",
                log_lines.one_line(claim.id),
                reason,
                log_lines.one_line(error),
                extra={"job_id": claim.id, "executor": "redis"},
            )
            # Its lease decides when it is tried again.
            return
        if not claim.is_once:
            self.end(claim)
