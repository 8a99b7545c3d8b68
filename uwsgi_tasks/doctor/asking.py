"""What a Redis says when it is asked: of itself, of our rights, and of who is there."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any

from uwsgi_tasks.app import App
from uwsgi_tasks.doctor.case import Member, Redis
from uwsgi_tasks.errors import ConfigurationError, RedisAway
from uwsgi_tasks.model import TaskExecutor
from uwsgi_tasks.redis.script import Script

COMMANDS = (
    ("TIME",),
    ("DECR", "DEL", "EXISTS", "GET", "HGETALL", "HKEYS", "HLEN", "LLEN", "LPOP", "SMEMBERS",
     "UNLINK", "ZCARD"),
    ("EXPIRE", "HDEL", "HEXISTS", "HGET", "HMGET", "INCRBY", "LPUSH", "PEXPIRE", "PEXPIREAT",
     "RPUSH", "SADD", "SET", "SREM", "ZMSCORE", "ZREM", "ZSCAN", "ZSCORE"),
    ("HINCRBY", "HSET", "HSETNX", "LRANGE", "ZADD", "ZCOUNT", "ZRANGE", "ZRANGEBYSCORE",
     "ZREMRANGEBYSCORE"),
)  # fmt: skip
"""The commands that our scripts are made of, by how many words they take at least."""

_RIGHTS = Script.load("rights.lua")
_SETTINGS = ("save", "appendfsync")
"""What INFO does not say."""
_CLOCK = ("TIME",)
_WAITS = 2.0
"""Seconds for which it may hold a question whose answer is there."""
_COMMAND = re.compile(r"permissions to run the '(\S+)' command")
_KEY = re.compile(r"no permissions to access|can't access at least one of the keys")
_RIGHT = re.compile(r"no permissions to run|can't run this command|[Uu]nknown (Redis )?command")
_WORDS = re.compile(r"read only replica|used memory >|MISCONF|RDB snapshots|AOF file|good replicas")
"""With which it refuses to write; of a cluster, redis-py cuts off the capitals of some."""


def ask(app: App) -> Redis:
    """Ask the Redis of the jobs, and each of its servers, if there are several."""
    try:
        executor: Any = app.executor(TaskExecutor.REDIS)
        queues, place = executor.queues, executor.place
    except ConfigurationError as trouble:
        return Redis(trouble=str(trouble))
    try:
        members, hidden = _members(queues.client)
        own = f"doctor:{os.urandom(6).hex()}"
        unwritable = _pushed(queues, own)
        refused, closed = ([], []) if unwritable else _rights(queues, own)
        known = _known(executor, is_free=not (refused or closed or unwritable))
    except RedisAway as trouble:
        return Redis(place=place, trouble=str(trouble))
    return Redis(
        place=place,
        members=members,
        hidden=hidden,
        unwritable=unwritable,
        refused=refused,
        closed=closed,
        **known,
    )


def _known(executor: Any, *, is_free: bool) -> dict[str, Any]:
    try:
        return {"sizes": executor.sizes(), "workers": executor.workers()}
    except RedisAway:
        if is_free:
            raise
        return {}


# ---- its servers --------------------------------------------------------------------------


def _members(client: Any) -> tuple[list[Member], list[str]]:
    """Return the servers, and the questions that they may not be asked."""
    hidden = []

    def told(*words: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = client.everywhere(*words)
        except RedisAway as trouble:
            # A service that others run may refuse the rest in words of its own.
            if words == _CLOCK and not _RIGHT.search(str(trouble)):
                raise
            hidden.append(" ".join(words))
            return {}
        return found

    began = time.time()
    clocks = told(*_CLOCK)
    ended = time.time()
    infos = told("INFO")
    settings = [told("CONFIG", "GET", name) for name in _SETTINGS]
    return [
        Member(
            place=place,
            skew=_skew(clocks.get(place), began, ended),
            told=dict(_lines(infos.get(place, b"")))
            | dict(pair for found in settings for pair in _pairs(found.get(place, ()))),
        )
        for place in clocks or infos or [client.shown]
    ], hidden


def _skew(clock: Any, began: float, ended: float) -> float:
    """Return by how much a clock is ahead that was read between these two times, at least."""
    if clock is None:
        return 0.0
    seconds = int(clock[0]) + int(clock[1]) / 1e6
    return float(seconds - min(max(seconds, began), ended))


def _lines(info: bytes) -> Iterator[tuple[str, str]]:
    for line in info.decode(errors="replace").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name, value


def _pairs(flat: Any) -> Iterator[tuple[str, str]]:
    for name, value in zip(flat[::2], flat[1::2], strict=True):
        yield name.decode(), value.decode(errors="replace")


# ---- our rights ---------------------------------------------------------------------------


def _pushed(queues: Any, own: str) -> str:
    """Write something that is gone at once; say why nobody may, if that is so."""
    key = f"{queues.root(own)}:wake"
    try:
        # First: nothing is written that could not be removed.
        queues.client.call("DEL", key)
        queues.client.call("RPUSH", key, "1")
        queues.client.call("DEL", key)
    except RedisAway as trouble:
        if _WORDS.search(str(trouble)):
            return str(trouble)
        # What this user alone may not do is found out next.
        if not (_RIGHT.search(str(trouble)) or _KEY.search(str(trouble))):
            raise
    return ""


def _rights(queues: Any, own: str) -> tuple[list[str], list[str]]:
    """Return the commands that it refuses to this user, and the keys."""
    refused: set[str] = set()
    closed = []
    # Of the first kind are the keys of queues, of the other those of workers.
    for key in (f"{queues.root(own)}:wake", f"{queues.prefix}:{own}"):
        try:
            refused.update(_tried(queues.client, key))
        except RedisAway as trouble:
            if _KEY.search(str(trouble)):
                closed.append(key.replace(own, "*"))
            elif found := _COMMAND.search(str(trouble)):
                refused.add(found[1].upper())
            else:
                raise
    if not refused and not closed:
        refused.update(_waited(queues, own))
    return sorted(refused), closed


def _tried(client: Any, key: str) -> Iterator[str]:
    """Try each command on *key*, which is nobody's; yield those that are refused."""
    words: list[str | int] = ["DEL", 1]
    for count, names in enumerate(COMMANDS):
        for name in names:
            words += name, count
    found = [word.decode(errors="replace") for word in client.run(_RIGHTS, (key,), words)]
    for name, text in zip(found[::2], found[1::2], strict=True):
        if _RIGHT.search(text) or _COMMAND.search(text):
            yield name


def _waited(queues: Any, own: str) -> Iterator[str]:
    """Wait, as workers do, for what is there; yield the command if it is refused."""
    key, waiter = f"{queues.root(own)}:wake", queues.waiter([own])
    queues.client.call("RPUSH", key, "1")
    try:
        waiter.wait(_WAITS)
    except RedisAway as trouble:
        if not _RIGHT.search(str(trouble)):
            raise
        yield "BLPOP"
    finally:
        waiter.close()
        queues.client.call("DEL", key)
