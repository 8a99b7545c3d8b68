"""What this process remembers, for as long as it lives."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import islice
from typing import ClassVar

from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.model import Count, DeadLetter, Lease, Record, State, Stop
from uwsgi_tasks.stores import Store

_WAITING = {State.QUEUED, State.RETRYING}


class _Expiry:
    """When each of many things ends; the first of them is found at once."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}
        # A thing that was given another end is in here twice; its old place is passed over.
        self._heap: list[tuple[float, str]] = []

    def set(self, key: str, end: float) -> None:
        self._ends[key] = end
        heappush(self._heap, (end, key))

    def forget(self, key: str) -> None:
        self._ends.pop(key, None)

    def lives(self, key: str, now: float) -> bool:
        return self._ends.get(key, now) > now

    def ended(self, now: float, limit: int) -> Iterator[str]:
        """Yield, and forget, at most *limit* things that have ended."""
        while limit and self._heap and self._heap[0][0] <= now:
            end, key = heappop(self._heap)
            if self._ends.get(key) == end:
                del self._ends[key]
                limit -= 1
                yield key


class MemoryStore(Store):
    """Keeps everything in this process: for tests, for development, and where nothing must last.

    A forked child goes on with a copy of its own.
    """

    shared: ClassVar[bool] = False

    def __init__(self, url: str, namespace: str) -> None:
        super().__init__(url, namespace)
        if url != "memory://":
            raise ConfigurationError("the store in memory is just 'memory://': it has no name")
        self._process = (os.getpid(), threading.Lock())
        self._records: dict[str, Record] = {}
        self._expiry = _Expiry()
        self._letters: dict[str, DeadLetter] = {}
        # By time, those of each task; those of all under None.
        self._order: dict[str | None, list[tuple[float, str]]] = defaultdict(list)
        self._leases: dict[str, Lease] = {}
        self._due = _Expiry()
        self._owned: dict[str, set[str]] = defaultdict(set)
        self._minutes: dict[int, dict[tuple[str, str], Count]] = {}

    @property
    def _lock(self) -> threading.Lock:
        pid, lock = self._process
        if pid != os.getpid():
            # Another thread of the parent may have held it when we were forked.
            lock = threading.Lock()
            self._process = (os.getpid(), lock)
        return lock

    def now(self) -> float:
        """Return the time by the clock of this machine."""
        return time.time()

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    # ---- results ----------------------------------------------------------------------------

    def _known(self, id: str) -> Record | None:  # noqa: A002
        return self._records.get(id) if self._expiry.lives(id, self.now()) else None

    def save(self, record: Record, ttl: float) -> None:
        """Remember *record* for *ttl* seconds; see `Store.save`."""
        with self._lock:
            known = self._known(record.id)
            if known is not None and not record.state.is_final:
                if known.state.is_final:
                    return
                record = replace(record, stop=max(record.stop, known.stop))
            self._records[record.id] = record
            self._expiry.set(record.id, self.now() + ttl)

    def get(self, id: str) -> Record | None:  # noqa: A002
        """Return what is known of a job."""
        with self._lock:
            return self._known(id)

    def start(self, id: str, attempt: int, worker: str) -> bool:  # noqa: A002
        """Note the begin of an attempt; see `Store.start`."""
        with self._lock:
            known = self._known(id)
            if known is not None and not known.state.is_final:
                self._records[id] = replace(
                    known,
                    state=State.RUNNING,
                    attempt=attempt,
                    worker=worker,
                    started_at=self.now(),
                    done=None,
                    total=None,
                )
            return known is None or known.state is not State.CANCELLED

    def advance(self, id: str, done: float, total: float | None) -> Stop:  # noqa: A002
        """Note how far a job has come; return what it was asked for."""
        with self._lock:
            known = self._known(id)
            if known is None:
                return Stop.NOT
            if not known.state.is_final:
                self._records[id] = replace(known, done=done, total=total)
            return known.stop

    def cancel(self, id: str, stop: Stop) -> State | None:  # noqa: A002
        """Cancel a job that waits, or ask one that runs to stop; return its state."""
        with self._lock:
            known = self._known(id)
            if known is None:
                return None
            if known.state in _WAITING:
                known = replace(known, state=State.CANCELLED, ended_at=self.now())
            elif known.state is State.RUNNING:
                known = replace(known, stop=max(stop, known.stop))
            self._records[id] = known
            return known.state

    def forget(self, id: str) -> bool:  # noqa: A002
        """Forget a job."""
        with self._lock:
            known = self._known(id)
            self._records.pop(id, None)
            self._expiry.forget(id)
            return known is not None

    # ---- dead letters -----------------------------------------------------------------------

    def _remove(self, id: str) -> bool:  # noqa: A002
        letter = self._letters.pop(id, None)
        if letter is None:
            return False
        place = (letter.failed_at, id)
        for task in (None, letter.task):
            order = self._order[task]
            del order[bisect_left(order, place)]
            if not order:
                del self._order[task]
        return True

    def bury(self, letter: DeadLetter) -> None:
        """Keep *letter*."""
        with self._lock:
            self._remove(letter.id)
            self._letters[letter.id] = letter
            for task in (None, letter.task):
                insort(self._order[task], (letter.failed_at, letter.id))

    def dead(
        self, limit: int = 50, before: DeadLetter | None = None, task: str | None = None
    ) -> list[DeadLetter]:
        """Return the newest dead letters first."""
        with self._lock:
            order = self._order.get(task, [])
            end = bisect_left(order, (before.failed_at, before.id)) if before else len(order)
            page = order[max(0, end - limit) : end]
            return [self._letters[id] for _, id in reversed(page)]  # noqa: A001

    def find_dead(self, id: str) -> DeadLetter | None:  # noqa: A002
        """Return the dead letter of this id."""
        with self._lock:
            return self._letters.get(id)

    def exhume(self, id: str, until: float = float("inf")) -> bool:  # noqa: A002
        """Take a dead letter away."""
        with self._lock:
            letter = self._letters.get(id)
            return letter is not None and letter.failed_at <= until and self._remove(id)

    def count_dead(self, task: str | None = None) -> int:
        """Return how many dead letters are kept."""
        with self._lock:
            return len(self._order.get(task, []))

    # ---- leases -----------------------------------------------------------------------------

    def _take(self, lease: Lease) -> None:
        self._leases[lease.name] = lease
        self._owned[lease.owner].add(lease.name)
        self._due.set(lease.name, lease.due)

    def _drop(self, name: str) -> None:
        lease = self._leases.pop(name)
        self._due.forget(name)
        names = self._owned[lease.owner]
        names.remove(name)
        if not names:
            del self._owned[lease.owner]

    def acquire(self, name: str, owner: str, ttl: float) -> Lease:
        """Take a lease, if nobody has it; see `Store.acquire`."""
        with self._lock:
            now = self.now()
            if not self._due.lives(name, now):
                if name in self._leases:
                    self._drop(name)
                self._take(Lease(name=name, owner=owner, due=now + ttl))
            return self._leases[name]

    def _holds(self, lease: Lease) -> bool:
        theirs = self._leases.get(lease.name)
        return (
            theirs is not None
            and theirs.owner == lease.owner
            and self._due.lives(lease.name, self.now())
        )

    def extend(self, lease: Lease, ttl: float) -> bool:
        """Keep *lease* for *ttl* seconds from now."""
        with self._lock:
            held = self._holds(lease)
            if held:
                self._take(replace(lease, due=self.now() + ttl, extended=True))
            return held

    def release(self, lease: Lease) -> bool:
        """Give *lease* back."""
        with self._lock:
            held = self._holds(lease)
            if held:
                self._drop(lease.name)
            return held

    def release_all(self, owner: str) -> int:
        """Give back all leases of *owner*."""
        with self._lock:
            now = self.now()
            names = [name for name in self._owned.get(owner, ()) if self._due.lives(name, now)]
            for name in names:
                self._drop(name)
            return len(names)

    # ---- counts -----------------------------------------------------------------------------

    def count(self, counts: Sequence[Count]) -> None:
        """Add *counts* to what was counted before."""
        with self._lock:
            for one in counts:
                minute = self._minutes.setdefault(one.minute, {})
                key = (one.task, one.outcome)
                before = minute.get(key)
                minute[key] = one if before is None else _sum(before, one)

    def counts(
        self, since: float, until: float | None = None, task: str | None = None
    ) -> list[Count]:
        """Return what was counted between two times."""
        end = float("inf") if until is None else until
        with self._lock:
            return [
                count
                for minute in sorted(self._minutes)
                if since <= minute < end
                for (name, _), count in sorted(self._minutes[minute].items())
                if task in {None, name}
            ]

    # ---- housekeeping -----------------------------------------------------------------------

    def purge(self, counts_before: float, limit: int = 1000) -> int:
        """Delete what has expired, at most *limit* of each kind."""
        with self._lock:
            now = self.now()
            records = list(self._expiry.ended(now, limit))
            for id in records:  # noqa: A001
                del self._records[id]
            names = list(self._due.ended(now, limit))
            for name in names:
                self._drop(name)
            before = (minute for minute in sorted(self._minutes) if minute < counts_before)
            counts = ((minute, key) for minute in before for key in self._minutes[minute])
            old = list(islice(counts, limit))
            for minute, key in old:
                del self._minutes[minute][key]
                if not self._minutes[minute]:
                    del self._minutes[minute]
            return len(records) + len(names) + len(old)


def _sum(one: Count, other: Count) -> Count:
    return replace(
        one,
        runs=one.runs + other.runs,
        seconds=one.seconds + other.seconds,
        slowest=max(one.slowest, other.slowest),
    )
