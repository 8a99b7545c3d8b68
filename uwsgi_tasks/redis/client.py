"""A Redis: one server, one that Sentinels watch, or a cluster; to all who use it they are alike."""

from __future__ import annotations

import contextlib

# Else the first name that is looked up does it, and a handler of a signal finds it half done.
import encodings.idna  # noqa: F401
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from uwsgi_tasks.errors import ConfigurationError, RedisAway
from uwsgi_tasks.redis.address import EXAMPLES, parse
from uwsgi_tasks.redis.line import FAILURES, Line, Refused, UnknownScript
from uwsgi_tasks.redis.script import Reply, Script, Word
from uwsgi_tasks.redis.waiter import Behind, Waiter

_DEFAULTS = {"socket_connect_timeout": 5.0, "socket_timeout": 15.0}
"""Seconds; the URL may say otherwise, as in ``?socket_timeout=5``."""
_TRUSTED = 1.0
"""Seconds without use after which a connection is looked at before it is used again."""
_KEPT = 3
"""Connections that a thread keeps: to open one takes milliseconds, in which more signals come."""
_NO_LIMIT = 2**31
"""Connections that a pool of redis-py may make: ours are never given back, and it counts all."""
_FAILURES = (*FAILURES, redis.RedisError, redis.exceptions.RedisClusterException)
"""The last is none of those before it."""
_UNKNOWN = (UnknownScript, redis.exceptions.NoScriptError)
_ANSWERS = (Refused, redis.ResponseError)

_ANYTHING = Script("return redis.call(unpack(ARGV))")


class _Kept(threading.local):
    """What each thread has of its own."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        """Connections that no call uses: one, and those of calls in the midst of others."""


def is_refusal(error: RedisAway) -> bool:
    """Has Redis answered, and said no?"""
    return isinstance(error.__cause__, _ANSWERS)


class Client:
    """The connections of one process to the Redis at *url*, of each thread its own.

    None is opened before it is used; after a fork each process opens its own. The handler of a
    signal, and a destructor, may call us in the midst of a call. All methods raise RedisAway if it
    cannot be reached or refuses, and may be called again: what broke is opened anew. Raises
    ConfigurationError for a URL that cannot be.
    """

    def __init__(self, url: str) -> None:
        self._address = address = parse(url)
        self.shown = address.shown
        """The URL, without a password."""
        self.is_cluster = address.kind == "cluster"
        self._kept = _Kept()
        self._made: dict[int, Any] = {}
        # Not plain ones: see above.
        self._making: dict[int, threading.RLock] = {}
        try:
            self._options = self._read_options(address.url)
        except (ValueError, TypeError, redis.RedisError) as error:
            raise ConfigurationError(f"{address.shown}: {error}: {EXAMPLES}") from error

    @staticmethod
    def _read_options(url: str) -> dict[str, Any]:
        # Not by the parts of the URL: put together again, three slashes would be one.
        plain, _, query = url.partition("?")
        words = dict(parse_qsl(query))
        sentinel_words = {key: words.pop(key) for key in list(words) if key.startswith("sentinel_")}
        if words:
            plain = f"{plain}?{urlencode(words)}"
        pool = redis.ConnectionPool.from_url(plain, protocol=2)
        # It is not opened, but an option that there is not is found out.
        pool.make_connection()
        found = {**_DEFAULTS, "socket_keepalive": True, **pool.connection_kwargs, "protocol": 2}
        found["connection_class"] = pool.connection_class
        if pool.connection_class is redis.UnixDomainSocketConnection:
            found.pop("socket_keepalive")
            found.pop("socket_connect_timeout")
        return {**found, **sentinel_words}

    # ---- one step ---------------------------------------------------------------------------

    def call(self, *words: Word) -> Reply:
        """Send one command, whose second word is its key; return the reply, texts as bytes."""
        if self.is_cluster:
            return self.run(_ANYTHING, (words[1],), words)
        return self._ask(words)

    def calls(self, commands: Sequence[Sequence[Word]]) -> list[Reply]:
        """Send many commands at once; return their replies. They are no atomic step."""
        if self.is_cluster:
            return [self.call(*words) for words in commands]
        if not commands:
            return []
        with self._lent() as line:
            line.send(commands)
            replies, first = [], None
            for _ in commands:
                try:
                    replies.append(line.read())
                except Refused as error:
                    # The others must be read, or the next one would get their replies.
                    first = first or error
            if first is not None:
                raise first
            return replies

    def everywhere(self, *words: Word) -> dict[str, Reply]:
        """Send one command to each server that takes what is written; return replies by address."""
        if not self.is_cluster:
            return {self.shown: self.call(*words)}
        with self._guarded():
            masters = self._cluster().get_primaries()
            return {node.name: self._asked(node, words) for node in masters}

    def _asked(self, node: ClusterNode, words: Sequence[Word]) -> Reply:
        connection = self._connection_to(node)
        try:
            connection.send_command(*words)
            return connection.read_response()
        finally:
            connection.disconnect()

    def run(self, script: Script, keys: Sequence[Word], args: Sequence[Word] = ()) -> Reply:
        """Run *script*: one atomic step. In a cluster all *keys* must be in one slot."""
        ask = self._ask_cluster if self.is_cluster else self._ask
        try:
            return ask(("EVALSHA", script.sha, len(keys), *keys, *args))
        except _UNKNOWN:
            # It was restarted, failed over, or told to forget: this one it remembers.
            return ask(("EVAL", script.text, len(keys), *keys, *args))

    def call_within(self, seconds: float, *words: Word) -> Reply:
        """`call`, of one server, which is to answer within *seconds*."""
        with self._lent() as line:
            return line.ask_within(seconds, words)

    def _ask(self, words: Sequence[Word]) -> Reply:
        # Not by `_lent`: each job pays for this.
        line = None
        try:
            line = self._take()
            reply = line.ask(words)
        except BaseException as error:
            self._judge(error, line)
            raise
        self._keep(line)
        return reply

    def _ask_cluster(self, words: Sequence[Word]) -> Reply:
        with self._guarded():
            return self._cluster().execute_command(*words)

    @contextlib.contextmanager
    def _lent(self) -> Iterator[Line]:
        line = None
        try:
            line = self._take()
            yield line
        except BaseException as error:
            self._judge(error, line)
            raise
        self._keep(line)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._judge(error)
            raise

    def _judge(self, error: BaseException, line: Line | None = None) -> None:
        """Raise RedisAway, if *error* means that; keep *line*, if it is of any use behind it."""
        # One that is a replica now stays so; its successor may be at the same address.
        # Its text alone says so: of a cluster, redis-py cuts off the word READONLY.
        if not isinstance(error, _ANSWERS) or "read only replica" in str(error):
            # After an alarm, too, or the user's interrupt: what is still to be read is nobody's.
            self._drop(line)
        elif line is not None:
            self._keep(line)
        if isinstance(error, _FAILURES) and not isinstance(error, _UNKNOWN):
            raise self.away(error) from error

    def away(self, error: BaseException) -> RedisAway:
        """Return *error* as what all who use us are told."""
        return RedisAway(f"Redis at {self.shown}: {error}")

    # ---- connections ------------------------------------------------------------------------

    def _take(self) -> Line:
        """Take a connection of this thread's own, which was open when it was last looked at.

        Who calls us until it is kept again takes, or opens, another.
        """
        lines, now, found = self._kept.lines, time.monotonic(), None
        if lines:
            found = lines.pop()
            if found.pid != os.getpid():
                # All are those of our parent.
                lines.clear()
                found = None
            elif now > found.used_at + _TRUSTED and found.is_broken():
                found.close()
                found = None
        if found is None:
            found = self._open()
        found.used_at = now
        return found

    def _keep(self, line: Line) -> None:
        """Keep a connection for this thread's next call; no reply is under way there."""
        lines = self._kept.lines
        lines.append(line)
        if len(lines) > _KEPT:
            lines.pop(0).close()

    def _drop(self, line: Line | None = None) -> None:
        """Let go of *line*, and of what this thread has kept."""
        lines = self._kept.lines
        kept = [*lines] if line is None else [line, *lines]
        lines.clear()
        for one in kept:
            one.close()

    def _open(self) -> Line:
        found = self._pool().make_connection()
        # By name: what it does by itself when it is used does not ask the Sentinels.
        found.connect()
        return Line(found)

    def _pool(self) -> Any:
        """Return what makes connections to the one server that counts."""
        return self._once(self._make_pool)

    def _cluster(self) -> RedisCluster:
        found: RedisCluster = self._once(self._make_cluster)
        return found

    def _once(self, make: Callable[[], Any]) -> Any:
        pid = os.getpid()
        found = self._made.get(pid)
        if found is None:
            with self._making.setdefault(pid, threading.RLock()):
                found = self._made.get(pid)
                if found is None:
                    found = make()
                    # What another process had made is its own.
                    self._made = {pid: found}
        return found

    def _make_pool(self) -> Any:
        options = {**self._options, "max_connections": _NO_LIMIT}
        kind = options.pop("connection_class")
        if self._address.kind == "single":
            return redis.ConnectionPool(connection_class=kind, **options)
        words = {
            name.removeprefix("sentinel_"): options.pop(name)
            for name in list(options)
            if name.startswith("sentinel_")
        }
        is_encrypted = kind is redis.SSLConnection
        shared = {
            name: value
            for name, value in options.items()
            if name.startswith(("ssl_", "socket_")) or name == "protocol"
        }
        # Each is asked once: there are others, and who calls us tries again.
        shared |= {"ssl": is_encrypted, "retry": Retry(NoBackoff(), 0)}
        watchers = Sentinel(list(self._address.hosts), sentinel_kwargs={**shared, **words})
        for name in ("host", "port"):
            options.pop(name, None)
        return SentinelConnectionPool(self._address.name, watchers, ssl=is_encrypted, **options)

    def _make_cluster(self) -> RedisCluster:
        options = {**self._options, "max_connections": _NO_LIMIT}
        is_encrypted = options.pop("connection_class") is redis.SSLConnection
        for name in ("host", "port", "db"):
            options.pop(name, None)
        nodes = [ClusterNode(host, port) for host, port in self._address.hosts]
        made = RedisCluster(startup_nodes=nodes, ssl=is_encrypted, **options)
        # By itself it would send again what may have been done: who calls us knows what that means.
        made.retry = Retry(NoBackoff(), 0)
        # Before redis-py 6 that was called so.
        vars(made)["cluster_error_retry_attempts"] = 0
        return made

    def close(self) -> None:
        """Let go of this thread's connection, and in a cluster of all; the next call opens one."""
        self._drop()
        found = self._made.pop(os.getpid(), None)
        if isinstance(found, RedisCluster):
            with contextlib.suppress(*_FAILURES):
                found.close()

    def waiter(self, keys: Sequence[str], behind: Behind | None = None) -> Waiter:
        """Return what waits until a list at one of *keys* has an entry, and takes that.

        *behind* is what is to be done in the same moment; in a cluster, nothing is.
        """
        return Waiter(self, keys, None if self.is_cluster else behind)

    def lines_to(self, keys: Sequence[str]) -> Iterable[tuple[Line, Sequence[str]]]:
        """Return connections of the caller's own, each with those of *keys* that it serves."""
        with self._guarded():
            if not self.is_cluster:
                return [(self._open(), list(keys))]
            # One question may name keys of one slot alone.
            return [(self._open_to(self._cluster().get_node_from_key(key)), [key]) for key in keys]

    def _open_to(self, node: Any) -> Line:
        found = self._connection_to(node)
        found.connect()
        return Line(found)

    def _connection_to(self, node: Any) -> Any:
        # Asked of the cluster: before redis-py 6 a node that was away has no pool of its own.
        return self._cluster().get_redis_connection(node).connection_pool.make_connection()

    def server_of(self, key: str) -> str:
        """Return the name of the server of a cluster that has *key*. Raises RedisAway."""
        with self._guarded():
            return str(self._cluster().get_node_from_key(key).name)

    def forget_nodes(self) -> None:
        """Find out anew which server has what: one has failed, or moved."""
        if self.is_cluster:
            with contextlib.suppress(*_FAILURES):
                self._cluster().nodes_manager.initialize()
