"""Takes jobs from queues in Redis, ahead and in batches, and runs them on threads."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from uwsgi_tasks import interrupts, log_lines
from uwsgi_tasks.errors import RedisAway, shown
from uwsgi_tasks.executors import Consuming, Receiver
from uwsgi_tasks.redis.gate import Gate
from uwsgi_tasks.redis.handling import Handling
from uwsgi_tasks.redis.holdings import Held, Holdings
from uwsgi_tasks.redis.presence import Presence
from uwsgi_tasks.redis.queues import Queues, Step
from uwsgi_tasks.redis.supply import NOTHING, SOON, Supply
from uwsgi_tasks.settings import Settings

log = logging.getLogger(__name__)

_STUCK = 0.1
"""Seconds after which what was claimed ahead, and nobody gets to, is given back."""
_TICK = 0.02
"""Seconds between two looks at what runs, while anything does."""
_DOZE = 0.25
"""The same while nothing does."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two attempts to fetch what cannot be fetched, as when Redis is away: more and
more."""
_AGAIN = 1.0
"""Seconds between two attempts to tell it what has ended, where nobody comes by; and between two
looks into a cluster, some of whose servers are away."""
_DOUBTS = 2
"""Times that its process has died, with others that ran there, after which a job runs alone."""
_ALONE = 1.0, 60.0
"""Seconds for which a job waits until it is alone, while nothing else begins: each time twice as
many, and at most so many."""
_DOUBTED = 1000
"""Jobs of which a process remembers how long they have waited so."""
_SHARE = 10
"""Times as long, others have their way then."""
_DONE, _STUCK_JOB = 0, 75
"""What a worker's process ends with; after the second one, another takes its place."""


class Consumer:
    """Runs the jobs of some queues in this process.

    Threads that have nothing to do wait for one of them, which waits in Redis. Whoever comes back
    with nothing left to run tells Redis what has ended, and asks for more, in one step; where there
    is much to do, the next step is under way meanwhile. One more thread looks after the leases of
    what runs, and after the end.
    """

    def __init__(
        self,
        queues: Queues,
        receiver: Receiver,
        consuming: Consuming,
        settings: Callable[[], Settings],
        tasks: Sequence[str],
    ) -> None:
        self._queues, self._receiver, self._settings = queues, receiver, settings
        self._consuming = consuming
        self._presence = Presence(
            queues, [name for name, _ in consuming.queues], consuming.threads, tasks
        )
        self.name = self._presence.name
        self._is_shared = consuming.threads > 1
        self.holdings = Holdings(
            queues,
            consuming.threads,
            self._note_away,
            lambda: self._is_away,
            lambda: time.monotonic() < self._stop_by,
        )
        self._running, self._ahead = self.holdings.running, self.holdings.ahead
        self._supply = Supply(
            queues,
            consuming.queues,
            self.name,
            self._ahead,
            self._note_gone,
            is_shared=self._is_shared,
        )
        self._handling = Handling(queues, receiver, settings, self._supply.ends)
        self._gate = Gate()
        self._patience: dict[str, float] = {}
        """For how long each job has waited until it was alone, the last time, and in vain."""
        self._lost: set[str] = set()
        """What has ended here and is another worker's, while the store has missed any end."""
        self._lead = threading.Lock()
        self._idle: set[int] = set()
        self._hurry = threading.Event()
        self._stopping = False
        self._stop_by = float("inf")
        self._over = threading.Event()
        # Not a plain one: the handler of a signal may find out that Redis is away, too.
        self._away = threading.RLock()
        self._is_away = False
        self._pause = _FIRST_PAUSE
        self._flushed_at = float("-inf")
        self.is_recycled = False
        """Has it stopped because it has run as much as it may?"""
        # Of each thread its own: a sum that several add to would lose some.
        self._ran = [0] * consuming.threads

    # ---- from outside -----------------------------------------------------------------------

    def run(self) -> None:
        """Run jobs until `stop`, and until what runs then has ended, or its grace is over.

        Of one thread alone, jobs run in the caller's, where signals can interrupt them.
        """
        self._presence.announce()
        keeper = threading.Thread(target=self._keep, name="uwsgi_tasks leases", daemon=True)
        keeper.start()
        if len(self._running) == 1:
            if threading.current_thread() is threading.main_thread():
                interrupts.listen()
            self._work(0)
        else:
            threads = [
                threading.Thread(
                    target=self._work,
                    args=(number,),
                    name=f"uwsgi_tasks worker {number}",
                    daemon=True,
                )
                for number in range(len(self._running))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                _join(thread)
        self._over.set()
        self._hurry.set()
        _join(keeper)
        self._supply.close()

    def stop(self, grace: float | None = None) -> None:
        """Take no more; what runs has *grace* seconds. May be called by the handler of a signal."""
        grace = self._consuming.grace if grace is None else grace
        self._stop_by = min(self._stop_by, time.monotonic() + grace)
        self._stopping = True
        # Later, the thread that it interrupts may have the lock of this event.
        if not self._over.is_set():
            self._hurry.set()
        self._supply.wake()

    @property
    def ran(self) -> int:
        """Attempts that were made."""
        return sum(self._ran)

    @property
    def is_healthy(self) -> bool:
        """Is Redis there, and this process about its work?"""
        return not (self._is_away or self._over.is_set())

    def is_ours(self, id: str) -> bool:  # noqa: A002  the job's
        """Has nobody else taken a job that has ended here? Raises RedisAway."""
        return id not in self._lost and self._supply.is_ours(id)

    # ---- threads that run jobs --------------------------------------------------------------

    def _work(self, number: int) -> None:
        ident, running = threading.get_ident(), self._running
        while (held := self._next()) is not None:
            running[number] = held
            if self._is_shared and not self._may_begin(held):
                running[number] = None
                continue
            held.ident = ident
            began = held.since = time.monotonic()
            try:
                self._handling.perform(held.claim, self._limit)
            # The thread must go on, whatever one job brings about.
            except BaseException as error:  # noqa: BLE001
                self._fail(held, error)
            running[number] = None
            if self._is_shared:
                self._make_way()
            self._supply.note_run(time.monotonic() - began)
            self._ran[number] += 1
            if self._consuming.max_jobs and self.ran >= self._consuming.max_jobs:
                self._recycle(f"{self.ran} jobs")

    @property
    def _limit(self) -> int:
        """How often its process may have died before a job is a dead letter."""
        limit = self._settings().crash_limit
        return max(limit, _DOUBTS + 1) if self._is_shared else limit

    def _may_begin(self, held: Held) -> bool:
        """Wait until a job may begin; False if it is not to run here now, and is given back."""
        delay = 0.0
        if _DOUBTS <= held.claim.crashes < self._limit:
            may = self._may_begin_alone(held)
            if not may and not self._stopping:
                delay = self._patience.get(held.claim.id, 0.0) * _SHARE
        else:
            may = self._gate.enter()
        if not (may or held.is_lost):
            try:
                self._queues.release([held.claim], delay)
            except RedisAway as error:
                self._supply.give_back_later(held)
                self._note_away(error)
        return may

    def _may_begin_alone(self, held: Held) -> bool:
        first, longest = _ALONE
        patience = min(self._patience.get(held.claim.id, first / 2) * 2, longest)
        until = time.monotonic() + patience
        if not self._gate.enter_alone(
            lambda: self._stopping or held.is_lost or time.monotonic() > until
        ):
            if len(self._patience) > _DOUBTED:
                # Others may have run them meanwhile.
                self._patience.clear()
            self._patience[held.claim.id] = patience
            return False
        self._patience.pop(held.claim.id, None)
        # Nothing more is to come here meanwhile, and nothing to lie here.
        self._supply.wake()
        self._hear_next(patience=SOON)
        try:
            self._supply.give_back_ahead(SOON)
            held.is_lost = not self._queues.runs_alone(held.claim)
        except RedisAway as error:
            self._note_away(error)
        else:
            if not held.is_lost:
                return True
        self._gate.leave()
        return False

    def _make_way(self) -> None:
        """Let others begin, behind one that has ended."""
        if self._gate.is_closed:
            # It may have run alone, and what comes next is not to be its end.
            self._flush()
        self._gate.leave()

    def _next(self) -> Held | None:
        """Return what to run next, however long that takes; None when there is nothing more."""
        while not self._stopping:
            if self._gate.is_closed:
                time.sleep(_TICK)
                continue
            held = self._supply.popped() or self._fetch()
            if held is None:
                continue
            if self._ahead and self._idle:
                # Somebody waits in Redis for what lies here.
                self._supply.wake()
            if held.expires_at > time.monotonic() or self._is_ours_still(held):
                return held
        self._flush()
        return None

    def _fetch(self) -> Held | None:
        """Take a step; wait if it brings nothing, or goes wrong."""
        try:
            held = self._fetched()
        except RedisAway as error:
            self._note_away(error)
        # The thread must go on: nobody would see that there is one less.
        except Exception:
            log.exception("what is to run next could not be fetched")
        else:
            self._pause = _FIRST_PAUSE
            return held
        self._rest()
        return None

    def _fetched(self) -> Held | None:
        sleeps = self._supply.sleeps
        step = self._step()
        held = self._supply.popped()
        if held is not None or step.claims or step is NOTHING:
            # There may be more, though others have run that.
            return held
        self._idle.add(threading.get_ident())
        try:
            # One of them waits in Redis, the others for that one.
            with self._lead:
                if sleeps != self._supply.sleeps and not self._ahead:
                    # It was told of something of which our step, before that, knew nothing.
                    step = self._step(1)
                if not (self._ahead or self._stopping):
                    self._sleep(step)
        finally:
            self._idle.discard(threading.get_ident())
        return None

    def _sleep(self, step: Step) -> None:
        """Wait until there may be more to do than *step* has brought."""
        if step.away is None:
            self._supply.sleep(step.wait, lambda: self._stopping)
        else:
            # Who waits in Redis does so on all servers.
            self._wait(_AGAIN)

    def _step(self, most: int | None = None) -> Step:
        """Take a step, which claims up to *most* jobs."""
        settings = self._settings()
        if settings.store_url == settings.redis:
            # Who waits for a job's end looks for its result then. One that is full takes none, and
            # has room again when jobs have ended. But it must not come back between the two.
            if self._is_away and not self._queues.client.is_cluster:
                self._queues.names()
            self._receiver.catch_up()
        step = self._supply.step(most)
        if step.away is not None:
            self._note_away(step.away)
            self._complain(step.lost)
        elif self._is_away:
            self._welcome_redis()
        elif step.lost:
            self._complain(step.lost)
        return step

    def _flush(self) -> None:
        """Tell Redis what has ended."""
        if self._supply.ends:
            try:
                self._step(0)
            except RedisAway as error:
                self._note_away(error)

    def _complain(self, lost: Sequence[str]) -> None:
        if not self._receiver.owes:
            self._lost.clear()
        self._lost.update(lost)
        for id_ in lost:
            log.warning(
                "job %s has ended after its lease was over: another worker has it, and what came "
                "of it here counts for nothing",
                log_lines.one_line(id_),
                extra={"job_id": id_, "executor": "redis"},
            )

    # ---- one job ----------------------------------------------------------------------------

    def _fail(self, held: Held, error: BaseException) -> None:
        """Note that a job could not even be tried; its lease decides when it is again.

        If that is because Redis is away, it is given back when that is there.
        """
        if isinstance(error, RedisAway):
            held.ident = 0
            self._supply.give_back_later(held)
            self._note_away(error)
            return
        log.error(
            "job %s could not be run: %s",
            log_lines.one_line(held.claim.id),
            log_lines.one_line(shown(error)),
            exc_info=error,
            extra={"job_id": held.claim.id, "executor": "redis"},
        )

    def _note_gone(self, held: Held) -> None:
        """Note that Redis knows no more of a job that was to run once at most, and has not here."""
        if time.monotonic() < held.expires_at:
            # It was ours: it was we who have taken it off.
            reason = "it was taken off to run once at most, but that was not heard: it has not run"
            self._handling.give_up(held.claim, reason)
            return
        log.error(
            "job %s was to run once at most, and is gone: it has not run here, and perhaps nowhere",
            log_lines.one_line(held.claim.id),
            extra={"job_id": held.claim.id, "executor": "redis"},
        )

    # ---- while Redis is away ----------------------------------------------------------------

    def _note_away(self, error: RedisAway) -> None:
        with self._away:
            if not self._is_away:
                self._is_away = True
                self._presence.announce_again()
                log.warning("%s; this worker waits for it", log_lines.one_line(error))

    def _rest(self) -> None:
        """Do nothing for a while, and the next time for longer."""
        pause, self._pause = self._pause, min(self._pause * 1.5, _LONGEST_PAUSE)
        self._wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  no secret

    def _wait(self, seconds: float) -> None:
        """Wait until somebody else has got something to run, or the worker is to end."""
        end = time.monotonic() + seconds
        while not (self._stopping or self._ahead) and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    def _welcome_redis(self) -> None:
        """Go on where we were, and give back what was claimed for us without our knowing."""
        is_cluster = self._queues.client.is_cluster
        if is_cluster:
            # One server that does not answer is not to keep others from what they are about.
            self._queues.look(self._supply.names)
        with self._away:
            if not is_cluster:
                # What we have just heard may have been said before it went.
                self._queues.names()
            self._supply.give_back_all()
            if self._is_away:
                self._is_away = False
                log.info("Redis is back")

    # ---- the thread that looks after leases -------------------------------------------------

    def _keep(self) -> None:
        while not self._over.is_set():
            # Not woken by who begins a job: it would have to wait for us, and most are short.
            self._hurry.wait(_DOZE if self._is_away or self._is_idle() else _TICK)
            for look_after in (self.holdings.renew, self._tidy):
                try:
                    look_after()
                except RedisAway as error:
                    self._note_away(error)
                    if not self._queues.client.is_cluster:
                        break
                # Without it all that runs would lose its lease.
                except Exception:
                    log.exception("the leases of what runs could not be looked after")
            self._announce()
            try:
                self._check_end()
            # As above: no dead letter could be written, say.
            except Exception:
                log.exception("what cannot be ended could not be given up")
            if self._stopping and not self._over.is_set():
                self._over.wait(_TICK)
        self._take_leave()

    def _take_leave(self) -> None:
        """Tell Redis what it is to know of what has ended here, for as long as there is time."""
        until = time.monotonic() + self._consuming.grace
        while True:
            try:
                self._hear_next(patience=SOON)
                if self._supply.ends:
                    self._step(0)
                elif self._receiver.owes:
                    self._receiver.catch_up()
                self._supply.give_back_ahead(SOON)
                self._supply.give_back_all()
                # In a cluster, a part of it may not have been told.
                if not self._has_more_to_tell or time.monotonic() > min(until, self._stop_by):
                    self._presence.leave()
                    return
            except RedisAway as error:
                self._note_away(error)
                if not self._has_more_to_tell or time.monotonic() > min(until, self._stop_by):
                    log.warning("Redis learns nothing of this end: %s", log_lines.one_line(error))
                    return
            time.sleep(_FIRST_PAUSE)

    @property
    def _has_more_to_tell(self) -> bool:
        return self._supply.has_more_to_tell or self._receiver.owes

    def _is_idle(self) -> bool:
        return not (self._ahead or self._supply.ends or any(self._running))

    def _announce(self) -> None:
        try:
            if self._presence.keep(self.ran) and self._is_away:
                # All threads may be at work for long, and ask for nothing.
                self._welcome_redis()
        except RedisAway as error:
            self._note_away(error)
        limit = self._consuming.max_memory
        # Not before it has run anything: the next one would be no smaller.
        if limit and self.ran and self._presence.memory() > limit and not self._stopping:
            self._recycle(f"{self._presence.memory() / 2**20:.0f} MB")

    def _is_ours_still(self, held: Held) -> bool:
        """Is a job still ours that lay here for so long that its lease may be over?"""
        try:
            self.holdings.touch([held])
        except RedisAway as error:
            self._supply.give_back_later(held)
            self._note_away(error)
            return False
        return held.expires_at > time.monotonic()

    def _tidy(self) -> None:
        """Tell Redis what has ended, where nobody comes by; give back what nobody gets to."""
        now = time.monotonic()
        is_time = not self._is_away or now > self._flushed_at + _AGAIN
        if self._supply.ends and not self._ahead and is_time:
            self._flush()
            self._flushed_at = time.monotonic()
        first = next(iter(tuple(self._ahead)), None)
        is_stuck = (
            first is not None
            and now > first.since + _STUCK
            and (None not in self._running or self._gate.is_closed)
        )
        self._hear_next(0.0 if is_stuck or self._stopping else _STUCK)
        # All at once, in its order, where nobody is in a hurry to have it.
        if (is_stuck or self._stopping) and not self._supply.expects_more:
            self._supply.give_back_ahead()
        # In a cluster some of it may be there. At last, for this may go wrong each time.
        if not self._is_away or self._queues.client.is_cluster:
            self._supply.give_back_unheard()

    def _hear_next(self, older: float = 0.0, patience: float = 0.0) -> None:
        """Take what Redis has claimed for us, where nobody comes by to hear of it."""
        step = self._supply.hear_next(older, patience)
        self._complain(step.lost)
        if self._ahead and self._idle:
            self._supply.wake()

    # ---- the end ----------------------------------------------------------------------------

    def _recycle(self, reason: str) -> None:
        if not self._stopping:
            self.is_recycled = True
            # Not by `stop`: its lock is not for this thread, where a signal's handler may call it
            # at any moment. Whoever ends it for good says how long that may take.
            self._stopping = True
            # Who reads this may count on it: nothing begins here any more.
            log.info("this worker has had %s: another one takes its place", reason)
            self._supply.wake()

    def _check_end(self) -> None:
        overdue = self.holdings.overdue()
        for held in overdue:
            self._handling.give_up(
                held.claim, "it took longer than its timeout, and could not be interrupted"
            )
        if time.monotonic() < self._stop_by and not overdue:
            return
        left = [one for one in self._running if one is not None and one not in overdue]
        if not overdue and not left:
            return
        self._leave(left, by_force=bool(overdue))

    def _leave(self, left: Sequence[Held], *, by_force: bool) -> None:
        """End this process: what runs in it cannot be waited for."""
        back = [one for one in left if not one.is_taken_off]
        log.warning(
            "this worker ends while %d of its jobs run: they are given back, and run again",
            len(back),
        )
        # From now on no thread begins anything.
        self._stopping = True
        for held in left:
            if held.is_taken_off:
                self._handling.give_up(held.claim, "its worker had to end before it did")
        self._supply.forget_question()
        try:
            self._hear_next(patience=SOON)
            self._flush()
            self._supply.give_back([*back, *self._ahead])
            self._supply.give_back_all()
            self._presence.leave()
        except RedisAway as error:
            log.warning("they run again when their leases are over: %s", log_lines.one_line(error))
        logging.shutdown()
        self._consuming.abandon(_STUCK_JOB if by_force else _DONE)


def _join(thread: threading.Thread) -> None:
    # With an end each time: without one, the handlers of signals would have to wait.
    while thread.is_alive():
        thread.join(1.0)
