"""What Redis remembers: one server, one that Sentinels watch, or a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from uwsgi_tasks.model import Count, DeadLetter, Lease, Record, State, Stop
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.redis.script import Script, Word, prefix
from uwsgi_tasks.stores import Store

_COUNTS_KEPT = 30 * 86_400
"""Seconds; a purge is no longer needed then."""
_PAGE = 500
"""Minutes of counts that are read in one step: others wait for so long."""
_FOREVER = 1e10
"""Seconds that serve as well as more, and that Redis can count."""

_NOW = Script.load("store_now.lua")
_SAVE = Script.load("store_save.lua")
_START = Script.load("store_start.lua")
_ADVANCE = Script.load("store_advance.lua")
_CANCEL = Script.load("store_cancel.lua")
_BURY = Script.load("store_bury.lua")
_DEAD = Script.load("store_dead.lua")
_EXHUME = Script.load("store_exhume.lua")
_ACQUIRE = Script.load("store_acquire.lua")
_EXTEND = Script.load("store_extend.lua")
_RELEASE = Script.load("store_release.lua")
_RELEASE_ALL = Script.load("store_release_all.lua")
_COUNT = Script.load("store_count.lua")
_COUNTS = Script.load("store_counts.lua")
_PURGE = Script.load("store_purge.lua")


def _to_bytes(text: str) -> bytes:
    # Half of a surrogate pair is a text, too.
    return text.encode("utf-8", "surrogatepass")


def _to_text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogatepass")


_RECORD: Mapping[str, Callable[[bytes], Any]] = {
    "task": _to_text,
    "executor": _to_text,
    "state": lambda stored: State(_to_text(stored)),
    "attempt": int,
    "submitted_at": float,
    "started_at": float,
    "ended_at": float,
    "worker": _to_text,
    "outcome": bytes,
    "error": _to_text,
    "traceback": _to_text,
    "done": float,
    "total": float,
}
"""How a field of a hash is read. What a job was asked for goes its own way."""
_LETTER: Mapping[str, Callable[[bytes], Any]] = {
    "task": _to_text,
    "executor": _to_text,
    "attempt": int,
    "failed_at": float,
    "error": _to_text,
    "traceback": _to_text,
    "worker": _to_text,
    "payload": bytes,
    "variables": bytes,
}


class RedisStore(Store):
    """Keeps everything in Redis, whose own settings say what outlives its end.

    Times are those of the server; in a cluster, of the one that has the key. What expires is
    deleted by Redis itself.
    """

    def __init__(self, url: str, namespace: str) -> None:
        super().__init__(url, namespace)
        self._client = Client(url)
        start = prefix(namespace)
        self._results = f"{start}:result:".encode()
        # What one step changes together is together in a cluster, too.
        self._dead = f"{{{start}:dead}}"
        self._leases = f"{{{start}:lease}}"
        self._counts = f"{{{start}:counts}}"

    def now(self) -> float:
        """Return the time by the clock of the server."""
        return float(self._client.run(_NOW, [self._counts]))

    def close(self) -> None:
        """Let go of this thread's connection, and in a cluster of all."""
        self._client.close()

    # ---- results ----------------------------------------------------------------------------

    def _result(self, id: str) -> bytes:  # noqa: A002
        return b"%s{%s}" % (self._results, _to_bytes(id))

    def save(self, record: Record, ttl: float) -> None:
        """Remember *record* for *ttl* seconds; see `Store.save`."""
        words: list[Word] = [int(_capped(ttl) * 1e3), int(record.stop), *_packed(record, _RECORD)]
        self._client.run(_SAVE, [self._result(record.id)], words)

    def get(self, id: str) -> Record | None:  # noqa: A002
        """Return what is known of a job."""
        found = _hash(self._client.call("HGETALL", self._result(id)))
        if not found:
            return None
        return Record(id=id, stop=Stop(int(found[b"stop"])), **_unpacked(found, _RECORD))

    def start(self, id: str, attempt: int, worker: str) -> bool:  # noqa: A002
        """Note the begin of an attempt; see `Store.start`."""
        return bool(self._client.run(_START, [self._result(id)], [attempt, _to_bytes(worker)]))

    def advance(self, id: str, done: float, total: float | None) -> Stop:  # noqa: A002
        """Note how far a job has come; return what it was asked for."""
        words: list[Word] = [
            b"" if _is_unknown(number) else str(number) for number in (done, total)
        ]
        return Stop(self._client.run(_ADVANCE, [self._result(id)], words))

    def cancel(self, id: str, stop: Stop) -> State | None:  # noqa: A002
        """Cancel a job that waits, or ask one that runs to stop; return its state."""
        state = self._client.run(_CANCEL, [self._result(id)], [int(stop)])
        return None if state is None else State(_to_text(state))

    def forget(self, id: str) -> bool:  # noqa: A002
        """Forget a job."""
        return bool(self._client.call("DEL", self._result(id)))

    # ---- dead letters -----------------------------------------------------------------------

    def bury(self, letter: DeadLetter) -> None:
        """Keep *letter*."""
        words: list[Word] = [_to_bytes(letter.id), _to_bytes(letter.task), letter.failed_at]
        self._client.run(_BURY, [self._dead], [*words, *_packed(letter, _LETTER)])

    def dead(
        self, limit: int = 50, before: DeadLetter | None = None, task: str | None = None
    ) -> list[DeadLetter]:
        """Return the newest dead letters first."""
        words: list[Word] = [_of(task), limit]
        if before is not None:
            words += [before.failed_at, _to_bytes(before.id)]
        found = self._client.run(_DEAD, [self._dead], words)
        return [
            DeadLetter(id=_to_text(id), **_unpacked(_hash(fields), _LETTER))
            for id, fields in zip(found[::2], found[1::2], strict=True)  # noqa: A001
        ]

    def find_dead(self, id: str) -> DeadLetter | None:  # noqa: A002
        """Return the dead letter of this id."""
        key = b"%s:letter:%s" % (self._dead.encode(), _to_bytes(id))
        found = _hash(self._client.call("HGETALL", key))
        return DeadLetter(id=id, **_unpacked(found, _LETTER)) if found else None

    def exhume(self, id: str, until: float = float("inf")) -> bool:  # noqa: A002
        """Take a dead letter away."""
        return bool(self._client.run(_EXHUME, [self._dead], [_to_bytes(id), until]))

    def count_dead(self, task: str | None = None) -> int:
        """Return how many dead letters are kept."""
        return int(self._client.call("ZCARD", b"%s:%s" % (self._dead.encode(), _of(task))))

    # ---- leases -----------------------------------------------------------------------------

    def acquire(self, name: str, owner: str, ttl: float) -> Lease:
        """Take a lease, if nobody has it; see `Store.acquire`."""
        words: list[Word] = [_to_bytes(name), _to_bytes(owner), int(_capped(ttl) * 1e6)]
        holder, due, extended = self._client.run(_ACQUIRE, [self._leases], words)
        return Lease(
            name=name, owner=_to_text(holder), due=int(due) / 1e6, extended=extended == b"1"
        )

    def extend(self, lease: Lease, ttl: float) -> bool:
        """Keep *lease* for *ttl* seconds from now."""
        words: list[Word] = [*_held(lease), int(_capped(ttl) * 1e6)]
        return bool(self._client.run(_EXTEND, [self._leases], words))

    def release(self, lease: Lease) -> bool:
        """Give *lease* back."""
        return bool(self._client.run(_RELEASE, [self._leases], _held(lease)))

    def release_all(self, owner: str) -> int:
        """Give back all leases of *owner*."""
        return int(self._client.run(_RELEASE_ALL, [self._leases], [_to_bytes(owner)]))

    # ---- counts -----------------------------------------------------------------------------

    def count(self, counts: Sequence[Count]) -> None:
        """Add *counts* to what was counted before."""
        words: list[Word] = [_COUNTS_KEPT]
        for one in counts:
            field = _counted(one.task) + _to_bytes(one.outcome)
            words += [one.minute, field, one.runs, one.seconds, one.slowest]
        if counts:
            self._client.run(_COUNT, [self._counts], words)

    def counts(
        self, since: float, until: float | None = None, task: str | None = None
    ) -> list[Count]:
        """Return what was counted between two times; of each minute all that was at one time."""
        end = "+inf" if until is None else f"({until}"
        index = f"{self._counts}:minutes"
        minutes = self._client.call("ZRANGEBYSCORE", index, since, end)
        start = b"" if task is None else _counted(task)
        found: list[Count] = []
        for first in range(0, len(minutes), _PAGE):
            page = minutes[first : first + _PAGE]
            hashes = self._client.run(_COUNTS, [self._counts], [start, *page])
            for minute, fields in zip(page, hashes, strict=True):
                found += sorted(_read(int(minute), fields), key=_by_name)
        return found

    # ---- housekeeping -----------------------------------------------------------------------

    def purge(self, counts_before: float, limit: int = 1000) -> int:
        """Delete old counts, at most *limit*; what else has expired Redis has deleted by itself."""
        return int(self._client.run(_PURGE, [self._counts], [counts_before, limit]))


def _capped(ttl: float) -> float:
    return min(ttl, _FOREVER)


def _is_unknown(value: object) -> bool:
    """Is it nothing, or a number that is none?"""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _packed(whole: Record | DeadLetter, fields: Mapping[str, Callable[[bytes], Any]]) -> list[Word]:
    """Return field, value, field, value, ... of what is known."""
    words: list[Word] = []
    for name in fields:
        value = getattr(whole, name)
        if not _is_unknown(value):
            words += [name, value if isinstance(value, bytes) else _to_bytes(str(value))]
    return words


def _unpacked(
    found: Mapping[bytes, bytes], fields: Mapping[str, Callable[[bytes], Any]]
) -> dict[str, Any]:
    stored = ((name, read, found.get(name.encode())) for name, read in fields.items())
    return {name: read(value) for name, read, value in stored if value is not None}


def _hash(reply: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the hash of which Redis sent field, value, field, value, ..."""
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _of(task: str | None) -> bytes:
    """Return how the order of the dead letters of *task* is called, or that of all."""
    return b"all" if task is None else b"task:" + _to_bytes(task)


def _held(lease: Lease) -> list[bytes]:
    return [_to_bytes(lease.name), _to_bytes(lease.owner)]


def _counted(task: str) -> bytes:
    """Return how the counts of *task* begin, and of no other."""
    name = _to_bytes(task)
    return b"%d:%s" % (len(name), name)


def _read(minute: int, fields: Sequence[bytes]) -> Iterator[Count]:
    for field, value in _hash(fields).items():
        length, _, names = field.partition(b":")
        runs, seconds, slowest = value.split()
        yield Count(
            minute=minute,
            task=_to_text(names[: int(length)]),
            outcome=_to_text(names[int(length) :]),
            runs=int(runs),
            seconds=float(seconds),
            slowest=float(slowest),
        )


def _by_name(count: Count) -> tuple[str, str]:
    return count.task, count.outcome
