"""What a process is to run next: claimed ahead in batches, in one step with what has ended."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count, groupby
from typing import NamedTuple, TypeVar

from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.redis.ahead import Ahead
from uwsgi_tasks.redis.holdings import Held, by_queue
from uwsgi_tasks.redis.queues import End, Queues, Step, places_of, read_step
from uwsgi_tasks.redis.script import Reply, Word
from uwsgi_tasks.redis.waiter import Behind

_MOST = 100
"""Jobs that one step claims, at most."""
_WORTH = 0.01
"""Seconds of work that one step claims. Two are ahead at most: that long, a job waits behind
others."""
_WEIGHT = 0.1
"""Of the last run, in the mean of how long they take."""
_SOON = 1.0
"""Seconds in which Redis is to answer where there is more to do, as in a worker that stops."""
_IDLE = 5.0
"""Seconds after which who sleeps looks by itself: nobody is told of a lease that has begun."""
_LATE = _IDLE + 3.0
"""Seconds after which Redis has ended each wait of ours by itself, though nobody has told it."""
_LOOK_AGAIN = 1.0
"""Seconds between two looks for what was claimed so late."""


class _Flight(NamedTuple):
    """A step that Redis takes while we do something else."""

    places: Sequence[str]
    most: int
    token: str
    ends: Sequence[End]
    since: float


_NOTHING = Step([], [], None)

_Thing = TypeVar("_Thing")


class Supply:
    """The conversation of one process with *queues*, some with weights, on behalf of its threads.

    *owner* is what it is called, and *is_shared* says whether several of its jobs run at a time.
    What is claimed lies in *ahead* until one of them takes it; what is put into *ends* is told with
    the next step. What Redis could not be told is kept, and told when it is back. All methods
    that speak with it raise RedisAway.
    """

    def __init__(
        self,
        queues: Queues,
        served: Sequence[tuple[str, int | None]],
        owner: str,
        ahead: deque[Held],
        *,
        is_shared: bool,
    ) -> None:
        self._queues, self._owner = queues, owner
        # Who dies with several of them has been killed by one that nobody can tell.
        self._mark = "+" if is_shared else ""
        self.names = [name for name, _ in served]
        self._weights = {name: weight for name, weight in served if weight is not None}
        self.ahead = ahead
        self.ends: deque[End] = deque()
        self._numbers = count(1)
        self._mean = _WORTH
        self._batch = 1
        self._waiter = queues.waiter(self.names, Behind(self._ask, self._hear))
        self._next = Ahead(queues.client, queues.root(self.names[0]))
        self._flight: _Flight | None = None
        self._turn = threading.Lock()
        """Of who sends the next step ahead, or hears of it."""
        self._asked: _Flight | None = None
        """The claim that follows a wait, until its reply is known."""
        self._unheard: deque[tuple[str, float]] = deque()
        """The tokens of claims of which we were never told, and until when they may be made."""
        self._reclaim_at = 0.0
        self._unwanted: list[Held] = []
        """What could not be given back while Redis was away."""
        self.sleeps = 0
        """How often somebody has waited."""

    # ---- one step ---------------------------------------------------------------------------

    def popped(self) -> Held | None:
        """Take what was claimed first; None if there is nothing."""
        try:
            return self.ahead.popleft()
        except IndexError:
            return None

    def step(self, most: int | None = None) -> Step:
        """Tell Redis what has ended, and claim up to *most* jobs; by default as many as pays.

        Where there are as many as pay, Redis takes the next such step while these are run.
        """
        if most is not None:
            return self._step(most)
        with self._turn:
            if self.ahead:
                # Another thread was faster.
                return _NOTHING
            step, most = self._land()
            if not step.claims:
                lost, most = step.lost, self._size()
                step = self._step(most)
                step.lost[:0] = lost
            self._batch = max(len(step.claims), 1)
            if 1 < most == len(step.claims):
                self._take_off()
        return step

    def _step(self, most: int) -> Step:
        ends, token, since = list(_drained(self.ends)), self._token(), time.monotonic()
        try:
            step = self._queues.step(self._order(), ends, most, token)
        except BaseException:
            self._forget(token, ends)
            raise
        self._take(step, since)
        return step

    def _take_off(self) -> None:
        """Send the next step."""
        if self._queues.client.is_cluster:
            return
        flight = self._flight = self._planned(list(_drained(self.ends)))
        places, most, token, ends, _ = flight
        try:
            self._next.ask(self._queues.question(places, most, token, ends, is_ahead=True))
        except RedisAway:
            # Who takes the one after it finds out, too.
            self._crash()
        except BaseException:
            self._crash()
            raise

    def _planned(self, ends: Sequence[End] = ()) -> _Flight:
        places = places_of(self._order(), ends)
        return _Flight(places, self._size(), self._token(), ends, time.monotonic())

    def land(self, older: float = 0.0) -> Step:
        """Hear of the step that was sent ahead, if that was *older* seconds ago or more."""
        flight = self._flight
        if flight is None or time.monotonic() < flight.since + older:
            return _NOTHING
        if not self._turn.acquire(timeout=_SOON):
            # Whoever has it hears of it, if Redis answers at all.
            return _NOTHING
        try:
            return self._land()[0]
        finally:
            self._turn.release()

    def _land(self) -> tuple[Step, int]:
        """Hear of the step that was sent ahead: what it has brought, and might have."""
        flight = self._flight
        if flight is None:
            return _NOTHING, 0
        try:
            reply = self._next.hear()
        except BaseException:
            self._crash()
            raise
        if reply is None:
            # Redis was restarted, and has forgotten the script.
            self._crash()
            return _NOTHING, 0
        self._flight = None
        step = read_step(flight.places, flight.token, reply)
        self._take(step, flight.since)
        return step, flight.most

    def _crash(self) -> None:
        """Take it that we shall never hear of the step that was sent ahead."""
        flight, self._flight = self._flight, None
        self._next.close()
        if flight is not None:
            self._forget(flight.token, flight.ends)

    def _forget(self, token: str, ends: Sequence[End]) -> None:
        """Keep what is to be told once more, and what may have been claimed for us unheard."""
        self.ends.extendleft(reversed(ends))
        self._unheard.append((token, 0.0))

    def note_run(self, seconds: float) -> None:
        """Note how long a job has taken."""
        self._mean += (seconds - self._mean) * _WEIGHT

    def _size(self) -> int:
        return int(min(_MOST, max(1, _WORTH / max(self._mean, 1e-6)), self._batch * 4))

    def _order(self) -> Sequence[str]:
        """Return the queues in the order in which they are served now."""
        if not self._weights:
            return self.names
        # As if each had events at its rate, and the next ones were served in their order: if the
        # first queue is empty, the others still are in proportion.
        return sorted(self.names, key=lambda name: random.expovariate(self._weights[name]))

    def _token(self) -> str:
        return f"{self._owner}:{next(self._numbers)}{self._mark}"

    def _take(self, step: Step, since: float) -> None:
        """Have what a step has brought be run; its leases may have begun when it was asked for."""
        now = time.monotonic()
        self.ahead.extend(Held(claim, now, since) for claim in step.claims)

    # ---- waiting ----------------------------------------------------------------------------

    def sleep(self, seconds: float | None, is_over: Callable[[], bool]) -> None:
        """Wait in Redis, which claims what comes in the moment in which it does, or for `wake`.

        It lasts no longer than *seconds*, if anybody knows how many those are. Where *is_over*
        then, nobody has the time to wait for a Redis that does not answer.
        """
        try:
            if self._waiter.wait(_IDLE if seconds is None else min(seconds, _IDLE)):
                return
            if is_over():
                self._waiter.withdraw(_SOON)
            else:
                self._waiter.withdraw()
        finally:
            self.sleeps += 1
            if self._asked is not None:
                self.forget_question()
                self._waiter.reset()

    def wake(self) -> None:
        """End a `sleep`, or the next one, at once."""
        self._waiter.wake()

    def close(self) -> None:
        """Let go of all connections."""
        self._waiter.close()
        self._next.close()

    def forget_question(self) -> None:
        """Note that we shall never be told what a wait has claimed, or claims yet."""
        if self._asked is not None:
            self._unheard.append((self._asked.token, time.monotonic() + _LATE))
            self._asked = None

    def _ask(self) -> Sequence[Word]:
        """Return the step that Redis is to take when there is something."""
        asked = self._asked = self._planned()
        return self._queues.question(asked.places, asked.most, asked.token)

    def _hear(self, reply: Reply) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and reply is not None:
            self._take(read_step(asked.places, asked.token, reply), asked.since)

    # ---- giving back ------------------------------------------------------------------------

    def give_back(self, held: Sequence[Held]) -> None:
        """Give back what does not run here; what cannot be given back now, is later."""
        # What runs, and does so once at most, is gone from Redis.
        ours = [one for one in held if not one.is_taken_off]
        try:
            for _, group in groupby(sorted(ours, key=by_queue), key=by_queue):
                self._queues.release([one.claim for one in group])
        except RedisAway:
            self._unwanted += held
            raise

    def give_back_later(self, held: Held) -> None:
        """Give back one job when Redis is there."""
        self._unwanted.append(held)

    def give_back_ahead(self) -> None:
        """Give back what was claimed ahead."""
        back: list[Held] = []
        while True:
            try:
                back.append(self.ahead.pop())
            except IndexError:
                break
        self.give_back(back[::-1])

    def give_back_all(self) -> None:
        """Give back what is ours, and nobody here runs or knows of."""
        self.give_back_unheard(always=True)
        unwanted, self._unwanted = self._unwanted, []
        self.give_back(unwanted)

    def give_back_unheard(self, *, always: bool = False) -> None:
        """Give back what steps may have claimed whose answers were lost; now and then, or *always*.

        Redis may not have noticed yet that nobody waits for them.
        """
        now = time.monotonic()
        if not self._unheard or (now <= self._reclaim_at and not always):
            return
        unheard = list(_drained(self._unheard))
        self._reclaim_at = now + _LOOK_AGAIN
        try:
            for name in self.names:
                self._queues.reclaim(name, [token for token, _ in unheard])
        except BaseException:
            self._unheard += unheard
            raise
        self._unheard += [(token, until) for token, until in unheard if until > now]


def _drained(queue: deque[_Thing]) -> Iterator[_Thing]:
    """Take out all that is in *queue*, to which other threads may add."""
    while True:
        try:
            yield queue.popleft()
        except IndexError:
            return
