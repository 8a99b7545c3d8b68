"""Items, not tasks, on Redis: put by some, taken by others, in the order in which they came."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from types import EllipsisType
from typing import Any, NamedTuple

from uwsgi_tasks import data_items
from uwsgi_tasks.data_items import MICRO, DataEntry, ItemId
from uwsgi_tasks.errors import InvalidTask, RedisAway
from uwsgi_tasks.log_lines import one_line
from uwsgi_tasks.redis.script import Redis, Reply, Script, Waiting, prefix
from uwsgi_tasks.times import seconds

log = logging.getLogger(__name__)

Seconds = float | timedelta

_MOST = 1000
"""Items of one step; Lua takes a few thousand arguments, and Redis does nothing else meanwhile."""
_PAGE = 100
_LOOK = 1.0
"""Seconds after which who waits looks again: of a lease that began later nobody tells them."""
_CARRY = 60 * MICRO
"""Microseconds that carrying dead items to another queue may take."""
_LONGEST = 1e9
"""Seconds: what is later than that, Redis could not tell from its neighbours."""
_NAMED = 10
"""Ids that a line in the log names."""
_STATES = ("waiting", "held", "delayed")
_NAME = re.compile(r"[^\s{}]{1,200}")
_PUT, _GET, _DONE, _REFRESH, _GIVE_BACK, _REQUEUE, _LOOK_AT, _SIZES, _CLEAR = (
    Script.load(f"data_{name}.lua")
    for name in ("put", "get", "done", "refresh", "give_back", "requeue", "look", "sizes", "clear")
)


class Sizes(NamedTuple):
    """How many items a queue holds."""

    waiting: int
    held: int
    delayed: int
    dead: int


class PutInterrupted(RedisAway):
    """Redis went away while items were put: some of them are in the queue."""

    def __init__(self, text: str, ids: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.ids = list(ids)
        """Of those that are certainly there, in their order: the first ones that were given."""


class _Place:
    """Where a queue's items, or its dead ones, are in Redis, and how they are written there."""

    def __init__(
        self,
        client: Callable[[], Redis],
        namespace: Callable[[], str],
        name: str,
        suffix: str = "",
    ) -> None:
        self.client, self.namespace, self.name, self.suffix = client, namespace, name, suffix

    @property
    def base(self) -> str:
        """What the keys begin with: all of them lie in one slot of a cluster."""
        return f"{{{prefix(self.namespace())}:data:{self.name}}}{self.suffix}"

    def run(self, script: Script, *args: str | bytes | int) -> Reply:
        """Take one atomic step."""
        return self.client().run(script, (self.base,), args)

    def settle(self, script: Script, items: Iterable[str], *args: int) -> set[str]:
        """Let *script* end or change the leases of *items*; return those that were still held."""
        held, kept = data_items.held(items), set[str]()
        for some in _thousands(held):
            lost = {one.decode() for one in self.run(script, *args, *(one.receipt for one in some))}
            kept.update(one for one in some if one.receipt not in lost)
        return kept

    def adopt(self, pairs: Iterable[tuple[str, bytes]], *, alive: bool = False) -> None:
        """Put what another place gave out: receipts, and entries. Nobody has read it here yet."""
        entries = (data_items.fresh(receipt, entry, alive=alive) for receipt, entry in pairs)
        self.run(_PUT, 0, *entries)


class _Bell:
    """Rings for one thread of one process when there is something at *key*."""

    def __init__(self, client: Redis, key: str) -> None:
        self._for = client, key, os.getpid()
        self.waiter = client.waiter([key])

    def is_for(self, client: Redis, key: str) -> bool:
        """Is it this one that such a reader needs?"""
        return self._for == (client, key, os.getpid())

    def __del__(self) -> None:
        # With its thread, or with its queue.
        self.waiter.close()


class _Bells(threading.local):
    """Of each thread its own."""

    one: _Bell | None = None


class DataQueue:
    """A queue of items, which are JSON, in the Redis of *client*.

    Each item is given to one reader. Without a *lease* it is removed as it is read. With one,
    seconds or a timedelta, it is held: invisible to others, until its reader says `done`. If the
    lease ends before that, it comes back, and is given out *attempts* times in all (0: no limit).
    Then it is dropped, which is logged, or, with *dead_letter*, kept in `dead`; a text there is
    the name of the data queue that takes it.

    Nothing is opened, and no setting is read, before the first use. May be used by all threads,
    and after a fork. All methods raise RedisAway if Redis cannot be reached, and InvalidTask for
    arguments that cannot be.
    """

    def __init__(
        self,
        name: str,
        *,
        client: Callable[[], Redis],
        namespace: Callable[[], str],
        attempts: int = 1,
        lease: Seconds | None = None,
        dead_letter: bool | str = False,
    ) -> None:
        _check_name(name)
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 0:
            raise InvalidTask(
                f"data queue {name}: attempts must be a whole number, 0 for no limit: {attempts!r}"
            )
        if isinstance(dead_letter, str):
            _check_name(dead_letter)
            if dead_letter == name:
                raise InvalidTask(f"data queue {name}: its dead items need another queue")
        elif not isinstance(dead_letter, bool):
            raise InvalidTask(f"data queue {name}: dead_letter= takes True, False or a name")
        self.name = name
        self._lease = _micros(lease or 0, "lease")
        self._policy = f".{attempts}.{int(bool(dead_letter))}"
        self._place = _Place(client, namespace, name)
        self._dead_place = _Place(client, namespace, name, ":dead")
        self._other = (
            _Place(client, namespace, dead_letter) if isinstance(dead_letter, str) else None
        )
        """Where dead items are taken to, if they do not stay beside the others."""
        self._bells = _Bells()

    def __repr__(self) -> str:
        return f"DataQueue({self.name!r})"

    # ---- putting ----------------------------------------------------------------------------

    def put(self, items: Iterable[Any], *, delay: Seconds = 0) -> list[str]:
        """Put *items* behind all others, or let them wait for *delay* first; return their ids.

        Raises NotJson, and puts none, if one of them would not come out as it went in. A
        thousand travel in one atomic step. If Redis goes away between two steps, or does not
        answer, PutInterrupted says which ones are in: those after them are not, except that the
        next thousand may be, where the answer was lost. Put them again, and none is lost, but
        these may be there twice.
        """
        if isinstance(items, (str, bytes, dict)):
            raise InvalidTask(f"put() takes a list of items, not {type(items).__name__}: [item]")
        wait = _micros(delay, "delay")
        texts = data_items.encode(items, self.name)
        ids = data_items.new_ids(len(texts))
        entries = data_items.entries(ids, texts)
        for start in range(0, len(entries), _MOST):
            try:
                self._place.run(_PUT, wait, *entries[start : start + _MOST])
            except RedisAway as error:
                raise PutInterrupted(
                    f"{error}; of {len(ids)} items {start} are in data queue {self.name}, and "
                    f"{min(_MOST, len(ids) - start)} more may be",
                    ids[:start],
                ) from error
        return ids

    # ---- getting ----------------------------------------------------------------------------

    def get(
        self, n: int = 1, *, lease: Seconds | EllipsisType | None = ..., wait: Seconds = 0
    ) -> dict[ItemId, Any]:
        """Take up to *n* items, 1,000 at most, by their ids, the first ones first.

        *lease* is the queue's own if not given; with None or 0 they are removed, and those whose
        answer is lost on the way are lost. If there is none, *wait* so long for the first. What
        another program has put that is not JSON comes as bytes.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= _MOST:
            raise InvalidTask(f"get() takes a whole number of items, from 1 to {_MOST}: {n!r}")
        held = self._lease if isinstance(lease, EllipsisType) else _micros(lease or 0, "lease")
        end = time.monotonic() + seconds(wait, "wait")
        found, pause = self._take(n, held)
        if found or not wait:
            return found
        is_told = False
        try:
            while not found and (left := end - time.monotonic()) > 0:
                is_told = self._waiter().wait(min(left, pause))
                found, pause = self._take(n, held)
        finally:
            if not is_told:
                # Its question is still open, and would take the token of another who waits.
                self._bells.one = None
        return found

    def _waiter(self) -> Waiting:
        """Return this thread's; a new one would cost more than most waits last."""
        client, key, bell = self._place.client(), f"{self._place.base}:wake", self._bells.one
        if bell is None or not bell.is_for(client, key):
            bell = self._bells.one = _Bell(client, key)
        return bell.waiter

    def _take(self, n: int, lease: int) -> tuple[dict[ItemId, Any], float]:
        """Return what there is, and the seconds after which there may be more."""
        receipts, entries, pause = self._step(n, lease)
        ids = [data_items.item_id(receipt) for receipt in receipts]
        if not lease:
            for one in ids:
                one.receipt = ""
        values = data_items.decode(entries)
        return dict(zip(ids, values, strict=True)), pause

    def _step(self, n: int = 0, lease: int = 0) -> tuple[list[str], list[bytes], float]:
        """Let those join that are due, or back, and take *n*: receipts, entries and a pause."""
        more, entries = 1, list[bytes]()
        while more and not entries:
            more, pause, has_dead, dropped, receipts, entries = self._place.run(
                _GET, n, lease, f"{self._policy}.{data_items.token(6)}", self.name
            )
            if dropped:
                self._tell(dropped)
            if has_dead and self._other:
                self._carry(self._other)
        wait = _LOOK if pause < 0 else min(_LOOK, pause / MICRO)
        return receipts.decode().split(), entries, wait

    def _tell(self, dropped: Sequence[bytes]) -> None:
        log.warning(
            "data queue %s: %d items are dropped, their attempts are used up: %s%s",
            self.name,
            len(dropped),
            ", ".join(one.decode() for one in dropped[:_NAMED]),
            " ..." * (len(dropped) > _NAMED),
        )

    # ---- finishing --------------------------------------------------------------------------

    def done(self, items: Iterable[str]) -> set[str]:
        """Take *items* away for good: what `get` returned, or any of its ids.

        Return the ids of those that were still held. The others were given to another reader
        meanwhile, or wait for one, and stay as they are.
        """
        return self._place.settle(_DONE, items)

    def refresh(self, items: Iterable[str], lease: Seconds | None = None) -> set[str]:
        """Hold *items* for *lease* from now, by default the queue's; return the ids still held."""
        micros = self._lease if lease is None else _micros(lease, "lease")
        if not micros:
            raise InvalidTask(f"refresh() of data queue {self.name} needs a lease: for how long?")
        return self._place.settle(_REFRESH, items, micros)

    def give_back(
        self, items: Iterable[str], *, delay: Seconds = 0, failed: bool = False
    ) -> set[str]:
        """Let others have *items*, at once or after *delay*; return the ids that were still held.

        They are the first to be given out then, and no attempt is used up. If they *failed*, one
        is, as if their lease had ended, and they are the last.
        """
        return self._place.settle(_GIVE_BACK, items, _micros(delay, "delay"), int(failed))

    # ---- dead items -------------------------------------------------------------------------

    @property
    def dead(self) -> DataQueue:
        """The dead items: a queue that is read like any other, and drops none.

        Its lease is that of this queue.
        """
        return _DeadItems(self._other or self._dead_place, self._lease, self._sweep)

    def _sweep(self) -> None:
        """Let those come back or die whose lease is over."""
        self._step()

    def _carry(self, other: _Place) -> None:
        """Bring the dead to the queue of another name, which may be on another server.

        Nobody loses them; who is killed here leaves some in both places, until they are twice
        in the other one.
        """
        own = self._dead_place
        try:
            while True:
                found = own.run(_GET, _MOST, _CARRY, f".0.0.{data_items.token(6)}", self.name)
                receipts, entries = found[4].decode().split(), found[5]
                if not entries:
                    return
                other.adopt(zip(receipts, entries, strict=True))
                own.run(_DONE, *receipts)
        except RedisAway as error:
            # Not raised: the caller has items in hand. The next one carries them.
            log.warning(
                "data queue %s: dead items stay here for now: %s", self.name, one_line(error)
            )

    def requeue(self, items: Iterable[str] | None = None) -> set[str]:
        """Let dead items live again, with all their attempts, behind all others; return their ids.

        *items* are what `dead.get` returned, with a lease, or ids of them; by default all that
        nobody holds. A thousand move in one atomic step. From the queue of another name only
        those that were read can come, and are in both for a moment.
        """
        if items is not None:
            return self._fetch(items, self._other) if self._other else self._revive(items)
        if self._other:
            raise InvalidTask(
                f"{self._other.name} may have dead items of others: read those that shall come "
                f"back to {self.name} by dead.get(lease=), and requeue them"
            )
        # So that those come, too, whose lease ends now.
        self.dead.sizes()
        ids = set[str]()
        while found := self._place.run(_REQUEUE, _MOST):
            ids.update(one.decode() for one in found)
        return ids

    def _revive(self, items: Iterable[str]) -> set[str]:
        return self._place.settle(_REQUEUE, items, 0)

    def _fetch(self, items: Iterable[str], other: _Place) -> set[str]:
        """Bring dead items back from the queue of another name."""
        fetched = set[str]()
        for some in _thousands(data_items.held(items)):
            other.settle(_REFRESH, some, _CARRY)
            key, receipts = f"{other.base}:held", [one.receipt for one in some]
            entries = other.client().call("HMGET", key, *receipts)
            pairs = [pair for pair in zip(receipts, entries, strict=True) if pair[1] is not None]
            if pairs:
                self._place.adopt(pairs, alive=True)
                fetched |= other.settle(_DONE, [receipt for receipt, _ in pairs])
        return fetched

    # ---- looking ----------------------------------------------------------------------------

    def sizes(self) -> Sizes:
        """Count the items, as they are now."""
        self._step()
        waiting, held, delayed, dead = self._place.run(_SIZES)
        return Sizes(waiting, held, delayed, len(self.dead) if self._other else dead)

    def __len__(self) -> int:
        """Count all items that are not dead: those that wait, are held or delayed."""
        self._step()
        return sum(self._place.run(_SIZES)[:3])

    def __iter__(self) -> Iterator[DataEntry]:
        return self.look()

    def look(self, state: str | None = None) -> Iterator[DataEntry]:
        """Show the items that are ``waiting``, in their order, then ``held``, then ``delayed``.

        With *state* those alone. They are read page by page; nothing is taken or changed. What
        moves on meanwhile may be shown twice, or not at all.
        """
        if state not in {None, *_STATES}:
            raise InvalidTask(f"look() shows {', '.join(_STATES)}, not {state!r}")
        self._step()
        for each in (state,) if state else _STATES:
            cursor = None
            while cursor != b"":
                cursor, *columns = self._place.run(_LOOK_AT, each, cursor or "", _PAGE)
                for head, payload, at in zip(*columns, strict=True):
                    yield data_items.show(each, head.decode(), payload, at)

    def clear(self) -> int:
        """Take all items away for good, but not the dead ones; return how many."""
        found: int = self._place.run(_CLEAR)
        return found


class _DeadItems(DataQueue):
    """The dead items of a queue."""

    def __init__(self, place: _Place, lease: int, arrive: Callable[[], None]) -> None:
        super().__init__(place.name, client=place.client, namespace=place.namespace, attempts=0)
        self._place, self._lease, self._arrive = place, lease, arrive

    def __repr__(self) -> str:
        return f"{super().__repr__()}{'.dead' * bool(self._place.suffix)}"

    @property
    def dead(self) -> DataQueue:
        raise InvalidTask(f"{self!r} has no dead items, it is they; ask the queue itself")

    def requeue(self, items: Iterable[str] | None = None) -> set[str]:  # noqa: ARG002
        raise InvalidTask(f"{self!r}: it is the queue itself that they go back to")

    def _step(self, n: int = 0, lease: int = 0) -> tuple[list[str], list[bytes], float]:
        # So that what has just died is here.
        self._arrive()
        return super()._step(n, lease)


# ---- arguments ------------------------------------------------------------------------------


def _check_name(name: object) -> None:
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InvalidTask(
            f"a data queue has a name of up to 200 characters, without spaces or braces: {name!r}"
        )


def _micros(value: Seconds, name: str) -> int:
    found = seconds(value, name)
    if found > _LONGEST:
        raise InvalidTask(f"{name} must not be longer than {_LONGEST:.0f} seconds: {value!r}")
    return math.ceil(found * MICRO)


def _thousands(items: list[ItemId]) -> Iterator[list[ItemId]]:
    for start in range(0, len(items), _MOST):
        yield items[start : start + _MOST]
