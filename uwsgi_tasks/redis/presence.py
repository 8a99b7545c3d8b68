"""Who is there: the workers of all machines, and the queues and tasks that they know."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from uwsgi_tasks import log_lines
from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.model import KnownWorker
from uwsgi_tasks.redis.client import is_refusal
from uwsgi_tasks.redis.queues import Queues

log = logging.getLogger(__name__)

_KEPT = 60
"""Seconds for which a worker is known that gives no sign of life."""
_EVERY = 15.0
"""Seconds between two signs of life."""
_AGAIN = 1.0
"""The same, after one that did not arrive."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Presence:
    """What one worker says of itself, under a key that lives for a minute."""

    def __init__(
        self, queues: Queues, names: Sequence[str], threads: int, tasks: Sequence[str]
    ) -> None:
        self._queues = queues
        host, pid = os.uname().nodename, os.getpid()
        self.name = f"{host}.{pid}.{os.urandom(3).hex()}"
        self._said: dict[str, Any] = {
            "name": self.name, "host": host, "pid": pid, "queues": list(names),
            "tasks": list(tasks), "threads": threads, "started_at": time.time(),
        }  # fmt: skip
        self._key = f"{queues.prefix}:worker:{self.name}"
        self._next = 0.0
        self._is_refused = False

    def announce(self) -> None:
        """Say who we are, as soon as may be."""
        self._next = 0.0

    def announce_again(self) -> None:
        """Say who we are soon, though not at once: it may be this that has just failed."""
        self._next = min(self._next, time.monotonic() + _AGAIN)

    def keep(self, ran: int) -> bool:
        """Give a sign of life, if it is time for one; say whether Redis has taken it.

        Raises RedisAway, but not where the work can go on: Redis is there and refuses, or it is a
        cluster, whose other servers may be there.
        """
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _AGAIN
        try:
            self._say(ran)
        except RedisAway as error:
            if not self._may_go_on(error):
                raise
            # Most of the time is for servers that answer.
            self._next = time.monotonic() + _AGAIN + 2 * (time.monotonic() - now)
            return self._keep_old(error)
        self._next, self._is_refused = now + _EVERY, False
        return True

    def _say(self, ran: int) -> None:
        said = {**self._said, "ran": ran, "memory": self.memory()}
        client = self._queues.client
        # First: who sees the worker sees its queues, too.
        for queue in self._said["queues"]:
            self._queues.note(queue)
        client.call("SET", self._key, json.dumps(said), "EX", _KEPT)
        client.call("SADD", f"{self._queues.prefix}:workers", self.name)

    def _keep_old(self, error: RedisAway) -> bool:
        """Have what we said last be kept, of which also a Redis that is full is capable."""
        if not self._is_refused:
            self._is_refused = True
            text = "%s; this worker goes on, though others may not learn of it"
            log.warning(text, log_lines.one_line(error))
        try:
            self._queues.client.call("EXPIRE", self._key, _KEPT)
        except RedisAway as again:
            if not self._may_go_on(again):
                raise
            # It takes nothing at all, as while it loads its data.
            return False
        return True

    def _may_go_on(self, error: RedisAway) -> bool:
        return is_refusal(error) or self._queues.client.is_cluster

    def leave(self) -> None:
        """Say that we are gone. Raises RedisAway."""
        prefix, client = self._queues.prefix, self._queues.client
        client.call("DEL", self._key)
        client.call("SREM", f"{prefix}:workers", self.name)

    @staticmethod
    def memory() -> int:
        """Return the resident memory of this process, in bytes."""
        try:
            with open("/proc/self/statm") as file:  # noqa: PTH123  each few seconds
                return int(file.read().split()[1]) * _PAGE
        except OSError:
            return 0


def workers(queues: Queues) -> list[KnownWorker]:
    """Return the workers that are there, by name. Raises RedisAway."""
    prefix, client = queues.prefix, queues.client
    names = [name.decode() for name in client.call("SMEMBERS", f"{prefix}:workers")]
    texts = client.calls([("GET", f"{prefix}:worker:{name}") for name in names])
    found = []
    for name, text in zip(names, texts, strict=True):
        if text is None:
            # Should it give a sign of life just now, it says its name again with the next one.
            client.call("SREM", f"{prefix}:workers", name)
        else:
            said = json.loads(text)
            # One of another version may say more, or less.
            if said.keys() >= set(KnownWorker._fields):
                found.append(KnownWorker(**{key: said[key] for key in KnownWorker._fields}))
    return sorted(found)
