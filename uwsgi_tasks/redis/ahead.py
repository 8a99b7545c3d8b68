"""Asks Redis something, and hears the reply later: it works while we do."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.redis.line import FAILURES, Line, UnknownScript
from uwsgi_tasks.redis.script import Reply, Word
from uwsgi_tasks.redis.waiter import Lines


class Ahead:
    """A connection of its own, with one question at a time; for one thread at a time.

    Both methods raise RedisAway; then nobody knows whether what was asked for was done.
    """

    def __init__(self, lines: Lines, key: str) -> None:
        self._lines, self._key = lines, key
        self._line: Line | None = None

    def ask(self, words: Sequence[Word]) -> None:
        """Send a command; `hear` is to follow before the next one."""
        if self._line is not None and self._line.is_broken():
            self.close()
        if self._line is None:
            ((self._line, _),) = self._lines.lines_to([self._key])
        try:
            self._line.send([words])
        except FAILURES as error:
            raise self._failed(error) from error

    def hear(self) -> Reply:
        """Wait for the reply; None if it is a script that Redis does not know."""
        assert self._line is not None  # noqa: S101  for the type checker: it has asked
        try:
            return self._line.read()
        except UnknownScript:
            return None
        except FAILURES as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> RedisAway:
        self.close()
        return self._lines.away(error)

    def close(self) -> None:
        """Let go of the connection."""
        line, self._line = self._line, None
        if line is not None:
            with contextlib.suppress(*FAILURES):
                line.close()
