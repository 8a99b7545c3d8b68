"""What a process is to run next: claimed ahead in batches, in one step with what has ended."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple, TypeVar

from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.redis.holdings import Held, by_queue
from uwsgi_tasks.redis.later import Later
from uwsgi_tasks.redis.queues import End, Queues, Step, raise_first, read_step
from uwsgi_tasks.redis.script import Reply, Word
from uwsgi_tasks.redis.waiter import Behind

_MOST = 100
"""Jobs that one step claims, at most."""
_WORTH = 0.01
"""Seconds of work that one step claims. Two are ahead at most: that long, a job waits behind
others."""
_WEIGHT = 0.1
"""Of the last run, in the mean of how long they take."""
_SILENT = 15.0
"""Seconds after which a reply that has not come never will."""
SOON = 1.0
"""Seconds in which Redis is to answer where there is more to do, as in a worker that stops."""
_IDLE = 5.0
"""Seconds after which who sleeps looks by itself: nobody is told of a lease that has begun."""
_LATE = _IDLE + 3.0
"""Seconds after which Redis has ended each wait of ours by itself, though nobody has told it; and
by which what it was sent before a connection broke has come there."""
_UNHEARD = 400
"""Claims of which we were never told that are looked for, at most."""
_LOOK_AGAIN = 1.0
"""Seconds between two looks for what was claimed so late."""


class _Sent(NamedTuple):
    """A step that was sent, and whose reply is to come."""

    places: Sequence[str]
    most: int
    token: str
    ends: Sequence[End]
    at: float


class _Unheard(NamedTuple):
    """Claims of which we are never told."""

    token: str
    places: Sequence[str]
    until: float
    """When they have been made, if ever."""


NOTHING = Step([], [], None)
"""Of a step that was not taken, for there is something to run already."""

_Thing = TypeVar("_Thing")


class Supply:
    """The conversation of one process with *queues*, some with weights, on behalf of its threads.

    *owner* is what it is called, and *is_shared* says whether several of its jobs run at a time.
    What is claimed lies in *ahead* until one of them takes it; what is put into *ends* is told with
    the next step. What Redis could not be told is kept, and told when it is back. *note_gone* hears
    of what runs once at most, and was to be given back, but is not there any more. All methods that
    speak with Redis raise RedisAway.
    """

    def __init__(
        self,
        queues: Queues,
        served: Sequence[tuple[str, int | None]],
        owner: str,
        ahead: deque[Held],
        note_gone: Callable[[Held], None],
        *,
        is_shared: bool,
    ) -> None:
        self._queues, self._owner, self._note_gone = queues, owner, note_gone
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
        self._later = Later(queues.client, queues.root(self.names[0]))
        self._next: _Sent | None = None
        """The step that Redis takes while we run what the one before it has brought."""
        self._not_before = 0.0
        self._turn = threading.Lock()
        """Of who sends that step, or hears of it."""
        self._behind: _Sent | None = None
        """The step that follows a wait, until its reply is known."""
        self._unheard: deque[_Unheard] = deque()
        self._reclaim_at = 0.0
        self._retold: set[str] = set()
        """What has ended and is told once more: Redis may have known it."""
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
                return NOTHING
            step, most = self._hear_next()
            if not step.claims:
                lost, most = step.lost, self._size()
                step = self._step(most)
                step = step._replace(lost=lost + step.lost)
            self._batch = max(len(step.claims), 1)
            if 1 < most == len(step.claims):
                self._send_next()
        return step

    def _step(self, most: int) -> Step:
        sent = self._planned(most, list(_drained(self.ends)))
        try:
            step = self._queues.step(sent.places, sent.ends, most, sent.token)
        except BaseException:
            self._lose(sent)
            raise
        if step.missed:
            missed = [end for end in sent.ends if end.queue in step.missed]
            self._lose(sent._replace(places=step.unheard, ends=missed))
            sent = sent._replace(ends=[end for end in sent.ends if end.queue not in step.missed])
        return self._taken(step, sent)

    def _planned(self, most: int, ends: Sequence[End] = ()) -> _Sent:
        # What has ended has come from one of these, too.
        return _Sent(self._order(), most, self._token(), ends, time.monotonic())

    def _taken(self, step: Step, sent: _Sent) -> Step:
        """Have what a step has brought be run; its leases may have begun when it was sent."""
        now = time.monotonic()
        self.ahead.extend(Held(claim, now, sent.at) for claim in step.claims)
        if not self._retold:
            return step
        lost = [one for one in step.lost if one not in self._retold]
        self._retold.difference_update(end.id for end in sent.ends)
        return step._replace(lost=lost)

    def _lose(self, sent: _Sent, *, is_refused: bool = False) -> None:
        """Keep what is to be told once more; and what may be claimed, now or soon, unheard of."""
        self.ends.extendleft(reversed(sent.ends))
        if is_refused:
            return
        self._retold.update(end.id for end in sent.ends)
        if sent.most and sent.places:
            self._note_unheard(sent)

    def _note_unheard(self, sent: _Sent) -> None:
        self._unheard.append(_Unheard(sent.token, sent.places, time.monotonic() + _LATE))
        if len(self._unheard) > _UNHEARD:
            # What was sent when Redis went may have come there, and what was when it came back. In
            # between it was away; should one have come there nevertheless, its leases decide.
            with contextlib.suppress(IndexError):
                del self._unheard[_UNHEARD // 2]

    # ---- the next step, while we run what the last one has brought --------------------------

    def _send_next(self) -> None:
        most = self._size()
        # One alone would be as good later, and is claimed as what runs alone.
        if most == 1 or self._queues.client.is_cluster or time.monotonic() < self._not_before:
            return
        sent = self._next = self._planned(most, list(_drained(self.ends)))
        places, _, token, ends, _ = sent
        try:
            self._later.ask(self._queues.question(places, most, token, ends, is_ahead=True))
        except RedisAway:
            # Who takes the one after it finds out, too.
            self._lose_next()
            self._not_before = time.monotonic() + _LOOK_AGAIN
        except BaseException:
            self._lose_next()
            raise

    @property
    def expects_more(self) -> bool:
        """Is there a step of which we have not heard?"""
        return self._next is not None

    def hear_next(self, older: float = 0.0, patience: float = 0.0) -> Step:
        """Hear of the step that was sent, if that was *older* seconds ago or more.

        Its reply must come within *patience*. Whatever goes wrong, who takes a step finds out.
        """
        sent, now = self._next, time.monotonic()
        if sent is None or now < sent.at + older or not self._turn.acquire(timeout=patience):
            return NOTHING
        try:
            if self._later.comes(patience):
                return self._hear_next()[0]
            if patience or now > sent.at + _SILENT:
                self._lose_next()
        except RedisAway:
            pass
        finally:
            self._turn.release()
        return NOTHING

    def _hear_next(self) -> tuple[Step, int]:
        """Return what the step has brought that was sent, and how many jobs it might have."""
        sent = self._next
        if sent is None:
            return NOTHING, 0
        try:
            reply = self._later.hear()
            step = None if reply is None else read_step(sent.places, sent.token, reply)
        except BaseException:
            self._lose_next()
            raise
        self._next = None
        if step is None:
            # Redis was restarted, and has forgotten the script.
            self._lose(sent, is_refused=True)
            return NOTHING, 0
        return self._taken(step, sent), sent.most

    def _lose_next(self) -> None:
        """Take it that we shall never hear of the step that was sent."""
        sent, self._next = self._next, None
        self._later.drop()
        if sent is not None:
            self._lose(sent)

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
                self._waiter.withdraw(SOON)
            else:
                self._waiter.withdraw()
        finally:
            self.sleeps += 1
            if self._behind is not None:
                self.forget_question()
                self._waiter.reset()

    def wake(self) -> None:
        """End a `sleep`, or the next one, at once."""
        self._waiter.wake()

    def close(self) -> None:
        """Let go of all connections."""
        self._waiter.close()
        self._later.drop()

    def forget_question(self) -> None:
        """Note that we shall never be told what a wait has claimed, or claims yet."""
        sent, self._behind = self._behind, None
        if sent is not None:
            self._lose(sent)

    def _ask(self) -> Sequence[Word]:
        """Return the step that Redis is to take when there is something."""
        sent = self._behind = self._planned(self._size())
        return self._queues.question(sent.places, sent.most, sent.token)

    def _hear(self, reply: Reply) -> None:
        sent, self._behind = self._behind, None
        if sent is not None and reply is not None:
            self._taken(read_step(sent.places, sent.token, reply), sent)

    def is_ours(self, id: str) -> bool:  # noqa: A002  the job's
        """Has nobody else claimed a job that has ended here, of which Redis is not told yet?"""
        end = next((one for one in tuple(self.ends) if one.id == id), None)
        return end is None or self._queues.is_held(end)

    @property
    def has_more_to_tell(self) -> bool:
        """Is there anything of which Redis should know before this process ends?"""
        return bool(self.ends or self._unwanted or self.ahead)

    # ---- giving back ------------------------------------------------------------------------

    def give_back(self, held: Sequence[Held]) -> None:
        """Give back what does not run here; what cannot be given back now, is later."""
        # What runs, and does so once at most, is gone from Redis.
        groups = by_queue(one for one in held if not one.is_taken_off)
        away = self._queues.each(list(groups), lambda queue: self._release(groups[queue]))
        self._unwanted += [one for queue in away for one in groups[queue]]
        raise_first(away)

    def _release(self, held: Sequence[Held]) -> None:
        answers = self._queues.release([one.claim for one in held])
        for one, answer in zip(held, answers, strict=True):
            if answer < 0 and one.claim.is_once:
                self._note_gone(one)

    def give_back_later(self, held: Held) -> None:
        """Give back one job when Redis is there."""
        self._unwanted.append(held)

    def give_back_ahead(self, patience: float = 0.0) -> None:
        """Give back what was claimed ahead, if no step is under way, or ends within *patience*.

        Else what lies behind that would be claimed meanwhile, and run before it.
        """
        if not self._turn.acquire(timeout=patience):
            if patience:
                raise RedisAway("Redis does not answer")
            return
        try:
            back: list[Held] = []
            while self.ahead:
                # A thread that takes one may be faster.
                with contextlib.suppress(IndexError):
                    back.append(self.ahead.pop())
            self.give_back(back[::-1])
        finally:
            self._turn.release()

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
            away = self._reclaim(unheard)
        except BaseException:
            self._unheard.extendleft(reversed(unheard))
            raise
        for one in unheard:
            places = [name for name in one.places if one.until > now or name in away]
            if places:
                self._unheard.append(one._replace(places=places))
        raise_first(away)

    def _reclaim(self, unheard: Sequence[_Unheard]) -> Mapping[str, RedisAway]:
        tokens = {name: [one.token for one in unheard if name in one.places] for name in self.names}
        names = [name for name in self.names if tokens[name]]
        return self._queues.each(names, lambda name: self._queues.reclaim(name, tokens[name]))


def _drained(queue: deque[_Thing]) -> Iterator[_Thing]:
    """Take out all that is in *queue*, to which other threads may add."""
    while True:
        try:
            yield queue.popleft()
        except IndexError:
            return
