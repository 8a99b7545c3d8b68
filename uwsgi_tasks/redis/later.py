"""Asks Redis something now, and hears the reply later: it works while we do."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.redis.line import FAILURES, Line, UnknownScript
from uwsgi_tasks.redis.script import Reply, Word
from uwsgi_tasks.redis.waiter import Lines


class Later:
    """A connection of its own, with one question at a time; for one thread at a time.

    What raises RedisAway leaves nobody knowing whether that which was asked for was done.
    """

    def __init__(self, lines: Lines, key: str) -> None:
        self._lines, self._key = lines, key
        self._line: Line | None = None

    def ask(self, words: Sequence[Word]) -> None:
        """Send a command; `hear` is to follow before the next one. Raises RedisAway."""
        if self._line is not None and self._line.is_broken():
            self.drop()
        if self._line is None:
            ((self._line, _),) = self._lines.lines_to([self._key])
        try:
            self._line.send([words])
        except FAILURES as error:
            raise self._failed(error) from error

    def comes(self, seconds: float = 0.0) -> bool:
        """Does the reply come, or the end of the connection, within *seconds*?"""
        return self._line is None or self._line.comes(seconds)

    def hear(self) -> Reply:
        """Wait for the reply; None if it is a script that Redis does not know. Raises RedisAway."""
        assert self._line is not None  # noqa: S101  for the type checker: it has asked
        try:
            return self._line.read()
        except UnknownScript:
            return None
        except FAILURES as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> RedisAway:
        self.drop()
        return self._lines.away(error)

    def drop(self) -> None:
        """Let go of the connection, and of all that Redis has not got yet."""
        line, self._line = self._line, None
        if line is not None:
            with contextlib.suppress(*FAILURES):
                line.abort()
