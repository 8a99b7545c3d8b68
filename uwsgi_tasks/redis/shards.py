"""The servers of a cluster: one may fail while the others go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from uwsgi_tasks.errors import RedisAway

_REST, _LONGEST_REST = 1.0, 15.0
"""Seconds for which a server is left alone that has failed."""


class _Failure(NamedTuple):
    """What came of the last question to a server that has failed."""

    text: str
    rest: float
    until: float


class Shards:
    """Knows which servers have failed; *server_of* names the one that has a queue.

    One that has failed twice, or slowly, is not asked for twice as long as that has taken: most of
    the time is for those that answer.
    """

    def __init__(self, server_of: Callable[[str], str]) -> None:
        self._server_of = server_of
        self._failed: dict[str, _Failure] = {}

    @contextlib.contextmanager
    def asking(self, queue: str) -> Iterator[None]:
        """Have the server of *queue* be asked. Raises RedisAway at once if it has just failed."""
        server, began = self._server_of(queue), time.monotonic()
        failed = self._failed.get(server)
        if failed is not None:
            if began < failed.until:
                raise RedisAway(failed.text)
            # Others are not to wait for it, too, until we know more.
            self._failed[server] = failed._replace(until=began + failed.rest)
        try:
            yield
        except RedisAway as error:
            now = time.monotonic()
            took = now - began
            rest = min(max(_REST, 2 * took), _LONGEST_REST)
            if failed is None and took < _REST:
                # It may have been no more than an old connection.
                rest = 0.0
            self._failed[server] = _Failure(str(error), rest, now + rest)
            raise
        self._failed.pop(server, None)
