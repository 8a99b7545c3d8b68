"""A Redis: one server, one that Sentinels watch, or a cluster; to all who use it they are alike."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from uwsgi_tasks.errors import ConfigurationError, RedisAway
from uwsgi_tasks.redis.line import Line, Refused, UnknownScript
from uwsgi_tasks.redis.script import Reply, Script, Word

__all__ = ["Behind", "Client", "Reply", "Script", "Waiter", "Word"]

_DEFAULTS = {"socket_connect_timeout": 5.0, "socket_timeout": 15.0}
"""Seconds; the URL may say otherwise, as in ``?socket_timeout=5``."""
_TRUSTED = 1.0
"""Seconds without use after which a connection is looked at before it is used again."""
_BLOCKED = 25
"""Seconds for which Redis holds a question open; it is put again then, so that a peer which is
gone without a word is noticed."""
_SILENT = 5.0
"""Seconds more, after which a question that was not answered is taken to be lost."""
_NO_LIMIT = 2**31
"""Connections that a pool of redis-py may make: ours are never given back, and it counts all."""
_FAILURES = (Refused, redis.RedisError, redis.exceptions.RedisClusterException, OSError)
"""The third is none of the second."""
_UNKNOWN = (UnknownScript, redis.exceptions.NoScriptError)
_SINGLE = {"redis", "rediss", "unix", "valkey", "valkeys"}
_MANY = {"sentinel": 26379, "cluster": 6379}
"""The kinds of several servers, and where they listen by default."""
_EXAMPLES = (
    "redis://host:6379/0, rediss:// with TLS, unix:///path?db=0, "
    "redis+sentinel://host1:26379,host2:26379/name/0 or redis+cluster://host1:6379,host2:6379"
)


_ANYTHING = Script("return redis.call(unpack(ARGV))")


@dataclass(frozen=True, kw_only=True)
class _Address:
    """What a URL says."""

    kind: str
    """``single``, ``sentinel`` or ``cluster``."""
    url: str
    """Of one server: as redis-py reads it."""
    hosts: Sequence[tuple[str, int]] = ()
    name: str = ""
    """What the Sentinels call their master."""
    shown: str = ""
    """Without a password."""


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_cut = "@" in url and "@" not in parts.netloc and parts.scheme != "unix"
        if not is_cut and not parts.fragment and ("," in parts.netloc or parts.port != 0):
            return parts
    except ValueError:
        # Not with what it says: that may be a part of the password.
        pass
    raise ConfigurationError(
        "the URL of Redis cannot be read; a password has %23 for #, %2F for /, %3F for ?, and "
        f"%40 for @: {_EXAMPLES}"
    )


def _parsed(url: str) -> _Address:
    parts = _split(url)
    scheme, _, kind = parts.scheme.partition("+")
    if kind == "" and scheme in _MANY:
        scheme, kind = "redis", scheme
    if scheme not in _SINGLE or not (kind == "" or kind in _MANY):
        raise ConfigurationError(
            f"no Redis is at a URL that begins with {parts.scheme}: {_EXAMPLES}"
        )
    scheme = scheme.replace("valkey", "redis")
    account, at, places = parts.netloc.rpartition("@")
    shown = f"{parts.scheme}://{places}{parts.path}"
    if not kind:
        return _Address(kind="single", url=f"{scheme}{url[len(parts.scheme) :]}", shown=shown)
    hosts = []
    for place in places.split(","):
        try:
            found = urlsplit(f"//{place}")
            hosts.append((found.hostname or "localhost", found.port or _MANY[kind]))
        except ValueError as error:
            raise ConfigurationError(f"{shown}: {place!r} is no host: {_EXAMPLES}") from error
    path = [part for part in parts.path.split("/") if part]
    name = unquote(path.pop(0)) if kind == "sentinel" and path else ""
    if kind == "sentinel" and not name:
        raise ConfigurationError(f"{shown}: which master? {_EXAMPLES}")
    if kind == "cluster" and path not in ([], ["0"]):
        raise ConfigurationError(f"{shown}: a cluster has database 0 alone")
    rest = "/".join(path)
    query = f"?{parts.query}" if parts.query else ""
    # Each of the servers, as redis-py would read it: account, database and options.
    one = f"{scheme}://{account}{at}localhost/{rest}{query}"
    return _Address(kind=kind, url=one, hosts=hosts, name=name, shown=shown)


class Client:
    """The connections of one process to the Redis at *url*, of each thread its own.

    None is opened before it is used; after a fork each process opens its own. All methods raise
    RedisAway if it cannot be reached or refuses, and may be called again: what broke is opened
    anew. Raises ConfigurationError for a URL that cannot be.
    """

    def __init__(self, url: str) -> None:
        self._address = address = _parsed(url)
        self.shown = address.shown
        """The URL, without a password."""
        self.is_cluster = address.kind == "cluster"
        self._local = threading.local()
        self._made: dict[int, Any] = {}
        self._making: dict[int, threading.Lock] = {}
        try:
            self._options = self._read_options(address.url)
        except (ValueError, TypeError, redis.RedisError) as error:
            raise ConfigurationError(f"{address.shown}: {error}: {_EXAMPLES}") from error

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
        with self._guarded():
            line = self._line()
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

    @staticmethod
    def _asked(node: ClusterNode, words: Sequence[Word]) -> Reply:
        connection = node.redis_connection.connection_pool.make_connection()
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
        with self._guarded():
            return self._line().ask_within(seconds, words)

    def _ask(self, words: Sequence[Word]) -> Reply:
        # Not by a context manager: each job pays for this.
        try:
            return self._line().ask(words)
        except BaseException as error:
            self._judge(error)
            raise

    def _ask_cluster(self, words: Sequence[Word]) -> Reply:
        with self._guarded():
            return self._cluster().execute_command(*words)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._judge(error)
            raise

    def _judge(self, error: BaseException) -> None:
        """Raise RedisAway, if *error* means that; drop a connection that is of no use behind it."""
        if isinstance(error, _UNKNOWN):
            return
        # One that is a replica now stays so; its successor may be at the same address.
        # Its text alone says so: of a cluster, redis-py cuts off the word READONLY.
        is_answer = isinstance(error, (Refused, redis.ResponseError))
        if not is_answer or "read only replica" in str(error):
            # After an alarm, too, or the user's interrupt: what is still to be read is nobody's.
            self._drop()
        if isinstance(error, _FAILURES):
            raise self.away(error) from error

    def away(self, error: BaseException) -> RedisAway:
        """Return *error* as what all who use us are told."""
        return RedisAway(f"Redis at {self.shown}: {error}")

    # ---- connections ------------------------------------------------------------------------

    def _line(self) -> Line:
        """Return this thread's connection, which was open when it was last looked at."""
        local, now = self._local, time.monotonic()
        found: Line | None = getattr(local, "line", None)
        if found is None or local.pid != os.getpid():
            local.pid = os.getpid()
            found = local.line = self._open()
        elif now > local.used + _TRUSTED and found.is_broken():
            self._drop()
            found = local.line = self._open()
        local.used = now
        return found

    def _drop(self) -> None:
        found, self._local.line = getattr(self._local, "line", None), None
        if found is not None and self._local.pid == os.getpid():
            found.close()

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
            with self._making.setdefault(pid, threading.Lock()):
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

    def _blocking(self, keys: Sequence[str]) -> Iterable[tuple[Line, Sequence[str]]]:
        """Return connections of the caller's own, each with those of *keys* that it serves."""
        if not self.is_cluster:
            return [(self._open(), list(keys))]
        with self._guarded():
            # One question may name keys of one slot alone.
            return [(self._open_to(self._cluster().get_node_from_key(key)), [key]) for key in keys]

    @staticmethod
    def _open_to(node: Any) -> Line:
        found = node.redis_connection.connection_pool.make_connection()
        found.connect()
        return Line(found)

    def _forget_nodes(self) -> None:
        """Find out anew which server has what: one has failed, or moved."""
        if self.is_cluster:
            with contextlib.suppress(*_FAILURES):
                self._cluster().nodes_manager.initialize()


def _reply_of_script(line: Line) -> Reply:
    try:
        return line.read()
    except UnknownScript:
        return None


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

    def __init__(self, client: Client, keys: Sequence[str], behind: Behind | None = None) -> None:
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
        except _FAILURES as error:
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
        for line, keys in self._client._blocking(self._keys):  # noqa: SLF001  its other half
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
            self._push(seconds)
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    raise ConnectionError("it does not answer")
                if answer.poll(left * 1000) and self._read([number]):
                    break
            if self._told != self._own:
                # Something else was faster.
                self._client.call_within(seconds, "DEL", self._own)
        except _FAILURES as error:
            self._fail()
            with contextlib.suppress(RedisAway):
                # It may be there, and nobody else takes it.
                self._client.call_within(seconds, "DEL", self._own)
            raise self._client.away(error) from error
        except RedisAway:
            self._fail()
            raise

    def _push(self, seconds: float) -> None:
        try:
            self._client.call_within(seconds, "RPUSH", self._own, "1")
        except RedisAway as error:
            # It is full, say. Soon the wait is over by itself.
            if not isinstance(error.__cause__, Refused):
                raise

    def _fail(self) -> None:
        self.reset()
        self._client._forget_nodes()  # noqa: SLF001  its other half

    def reset(self) -> None:
        """Let go of all connections."""
        for number, (line, _, _) in self._asked.items():
            with contextlib.suppress(OSError, KeyError):
                self._poll.unregister(number)
            with contextlib.suppress(*_FAILURES):
                line.close()
        for line, _ in self._answered:
            with contextlib.suppress(*_FAILURES):
                line.close()
        self._asked, self._answered = {}, []

    def close(self) -> None:
        """Let go of all that it has."""
        self.reset()
        for number in (self._hears, self._calls):
            os.close(number)
