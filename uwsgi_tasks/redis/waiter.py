"""Waits in Redis, without asking again and again, until there is something to do."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.redis.line import FAILURES, Line, Refused, UnknownScript
from uwsgi_tasks.redis.script import Reply, Word

_BLOCKED = 25
"""Seconds for which Redis holds a question open; it is put again then, so that a peer which is
gone without a word is noticed."""
_SILENT = 5.0
"""Seconds more, after which a question that was not answered is taken to be lost."""
_RING = "redis.call('RPUSH', KEYS[1], '1') return redis.call('EXPIRE', KEYS[1], 30)"
"""Pushes to a waiter's own list; should nobody take that, it is gone by itself.

No wait that it is to end is as long.
"""


def _reply_of_script(line: Line) -> Reply:
    try:
        return line.read()
    except UnknownScript:
        return None


class Lines(Protocol):
    """Those who open connections; the first two raise RedisAway."""

    def lines_to(self, keys: Sequence[str]) -> Iterable[tuple[Line, Sequence[str]]]:
        """Return connections of the caller's own, each with those of *keys* that it serves."""

    def call_within(self, seconds: float, *words: Word) -> Reply:
        """Send one command, which is to be answered within *seconds*."""

    def forget_nodes(self) -> None:
        """Find out anew which server has what: one has failed, or moved."""

    def away(self, error: BaseException) -> RedisAway:
        """Return *error* as what all who use us are told."""


class Behind(NamedTuple):
    """A command that follows a wait: Redis runs it in the moment in which the wait ends."""

    words: Callable[[], Sequence[Word]]
    """Return it, for the next wait."""
    hear: Callable[[Reply], None]
    """Take its reply; None if it is a script that Redis does not know."""


class Waiter:
    """Waits until somebody pushes to one of the lists at *keys*, or calls `wake`.

    It waits by the process's own clock: Redis ends a wait only when it looks at its own timers,
    up to 50 ms late. For one thread; `wake` may be called by any, and by the handler of a signal.

    With a command *behind* it, who is woken need not ask for what has woken it: the answer comes
    with the news. Each `wait` that says False is to be followed by `withdraw`, or `reset`, whose
    caller never learns whether that command was run.
    """

    def __init__(self, client: Lines, keys: Sequence[str], behind: Behind | None = None) -> None:
        self._client, self._behind = client, behind
        self._own = f"{keys[0]}:{os.urandom(6).hex()}"
        """A list to which nobody but us pushes."""
        self._keys = keys if behind is None else [*keys, self._own]
        self._told: str | None = None
        """The list that has ended the last wait."""
        self._asked: dict[int, tuple[Line, Sequence[str], float]] = {}
        """By file number: connections that hold a question, its keys, and when it was put."""
        self._answered: list[tuple[Line, Sequence[str]]] = []
        self._poll = select.poll()
        self._hears, self._calls = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._hears, select.POLLIN)

    def wake(self) -> None:
        """End the wait, or the next one, at once."""
        with contextlib.suppress(OSError):
            os.write(self._calls, b"!")

    def wait(self, seconds: float) -> bool:
        """Wait; True if something was pushed, or what is behind was run.

        Raises RedisAway: the next call asks anew.
        """
        end = time.monotonic() + seconds
        try:
            while True:
                now = time.monotonic()
                self._ask(end - now)
                silent = min(put + _BLOCKED + _SILENT for _, _, put in self._asked.values())
                left = min(end, silent) - now
                ready = self._poll.poll(max(0.0, left * 1000))
                if any(number == self._hears for number, _ in ready):
                    with contextlib.suppress(OSError):
                        os.read(self._hears, 1000)
                    return False
                if self._read([number for number, _ in ready]):
                    return True
                now = time.monotonic()
                if now >= end:
                    return False
                if now >= silent:
                    raise ConnectionError("it does not answer")
        except FAILURES as error:
            self._fail()
            raise self._client.away(error) from error
        except RedisAway:
            self._fail()
            raise

    def _ask(self, seconds: float) -> None:
        if any(line.is_broken() for line, _ in self._answered):
            self._fail()
        # Not as soon as they were answered: whoever was woken has something to do first.
        while self._answered:
            self._put(*self._answered[-1], seconds)
            self._answered.pop()
        if self._asked:
            return
        for line, keys in self._client.lines_to(self._keys):
            self._put(line, keys, seconds)

    def _put(self, line: Line, keys: Sequence[str], seconds: float) -> None:
        # No longer than we wait: then what comes is to wake somebody else. 0 would be for ever.
        most = min(_BLOCKED, max(seconds, 0.01))
        if self._behind is None:
            line.send([("BLPOP", *keys, most)])
        else:
            # Withdrawn when we have waited, which Redis would find out later.
            line.send([("BLPOP", *keys, most + 1), self._behind.words()])
        number = line.fileno()
        self._asked[number] = line, keys, time.monotonic()
        self._poll.register(number, select.POLLIN)

    def _read(self, numbers: Sequence[int]) -> bool:
        """Read the answers that have come; True if one says that something was pushed."""
        is_pushed = False
        for number in numbers:
            line, keys, _ = self._asked[number]
            if not line.arrives():
                continue
            reply = line.read()
            self._told = None if reply is None else reply[0].decode()
            if self._behind is not None:
                self._behind.hear(_reply_of_script(line))
            is_pushed = is_pushed or reply is not None or self._behind is not None
            del self._asked[number]
            self._poll.unregister(number)
            self._answered.append((line, keys))
        return is_pushed

    def withdraw(self, seconds: float = _SILENT) -> None:
        """End what was asked: then nothing is done behind it for which nobody waits.

        What is behind is run, and heard. Raises RedisAway if that is not so after *seconds*: then
        it may be run at any time until Redis has noticed that we are gone, or the wait is over.
        """
        if self._behind is None or not self._asked:
            return
        (number,) = self._asked
        end = time.monotonic() + seconds
        answer = select.poll()
        answer.register(number, select.POLLIN)
        try:
            if not self._push(seconds):
                # Soon the wait is over by itself, though perhaps not as soon.
                end += seconds
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    raise ConnectionError("it does not answer")
                if answer.poll(left * 1000) and self._read([number]):
                    break
            if self._told != self._own:
                # Something else was faster.
                self._client.call_within(seconds, "DEL", self._own)
        except FAILURES as error:
            self._fail()
            with contextlib.suppress(RedisAway):
                # It may be there, and nobody else takes it.
                self._client.call_within(seconds, "DEL", self._own)
            raise self._client.away(error) from error
        except RedisAway:
            self._fail()
            raise

    def _push(self, seconds: float) -> bool:
        """Push to our own list; False if Redis refuses: it is full, say."""
        try:
            self._client.call_within(seconds, "EVAL", _RING, 1, self._own)
        except RedisAway as error:
            if not isinstance(error.__cause__, Refused):
                raise
            return False
        return True

    def _fail(self) -> None:
        self.reset()
        self._client.forget_nodes()

    def reset(self) -> None:
        """Let go of all connections."""
        for number, (line, _, _) in self._asked.items():
            with contextlib.suppress(OSError, KeyError):
                self._poll.unregister(number)
            with contextlib.suppress(*FAILURES):
                line.close()
        for line, _ in self._answered:
            with contextlib.suppress(*FAILURES):
                line.close()
        self._asked, self._answered = {}, []

    def close(self) -> None:
        """Let go of all that it has."""
        self.reset()
        for number in (self._hears, self._calls):
            os.close(number)
