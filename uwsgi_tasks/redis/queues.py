"""Queues of jobs in Redis: bytes under ids, and each change of them one atomic step.

What each key holds, the scripts say where they begin.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple

from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.model import LEASE, Sizes
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.redis.script import Reply, Script, Word, prefix
from uwsgi_tasks.redis.shards import Shards
from uwsgi_tasks.redis.waiter import Behind, Waiter

DEFAULT = "default"
"""The queue of a job that names none."""
LEAST = 9
"""The priority of what has none: after all others."""
_PAGE = 200
_NOTED = 30.0
"""Seconds after which all others are told again of a queue: Redis may have lost its memory."""
_FEW = 500
"""Queues of which a process remembers at least when it has told of them."""
_AT_ONCE = 1000
"""Queues that are asked with one trip."""
_PLACES = ("suspects", *map(str, range(LEAST + 1)), "due")
"""Where jobs wait, in the order in which they would be taken."""


class Claim(NamedTuple):
    """A job that is this worker's to run, until it says how that ended."""

    queue: str
    id: str
    token: bytes
    """What shows that it is."""
    payload: bytes
    crashes: int
    """Workers that have died while they ran it and nothing else; up to two that may have run
    others, too. Less than none if it was cancelled, and must not run."""
    lease: float
    """Seconds."""
    is_once: bool
    """Is it to be ended before it runs, so that it runs once at most?"""


class End(NamedTuple):
    """How a claimed job went on."""

    queue: str
    id: str
    token: bytes
    following: bytes | None = None
    """What is to run next in its place; None if it has ended."""
    at: float | None = None
    """When, in seconds since 1970; None for now."""


class Standing(NamedTuple):
    """A job that has not ended."""

    queue: str
    id: str
    payload: bytes
    token: bytes
    """Of the worker that runs it; empty if none does."""
    at: float | None
    """When it is due, if it waits for that; in seconds since 1970."""
    progress: str
    stop: int
    """What it was asked for, as a `Stop`."""
    priority: int

    @property
    def worker(self) -> str:
        """The name of the worker that runs it."""
        return self.token.rpartition(b":")[0].decode()


class Step(NamedTuple):
    """What came of one step."""

    lost: list[str]
    """Ids of jobs that were no longer this worker's."""
    claims: list[Claim]
    wait: float | None
    """Seconds until there may be something to claim; None if nobody knows."""
    away: RedisAway | None = None
    """Why servers of a cluster could not be asked, while others could."""
    missed: Sequence[str] = ()
    """Their queues: nobody knows what came of that which they were told."""
    unheard: Sequence[str] = ()
    """Those of them that may have claimed something."""


class Queues:
    """All queues of one namespace. All methods raise RedisAway."""

    _SUBMIT, _STEP, _TOUCH, _RELEASE, _RECLAIM, _CANCEL, _FIND, _LIST, _PROGRESS, _PURGE, _SIZES = (
        Script.load(f"queue_{name}.lua")
        for name in ("submit", "step", "touch", "release", "reclaim", "cancel", "find", "list",
                     "progress", "purge", "sizes")
    )  # fmt: skip
    _FORGET = Script.load("queue_forget.lua")

    def __init__(self, client: Client, namespace: str) -> None:
        self.client = client
        self.prefix = prefix(namespace)
        self._noted: dict[str, float] = {}
        self._room = _FEW
        self._shards = Shards(lambda queue: client.server_of(self.root(queue)))

    def root(self, queue: str) -> str:
        """Return what the keys of a queue begin with: all of them lie in one slot of a cluster."""
        return f"{{{self.prefix}:queue:{queue}}}"

    # ---- the way in -------------------------------------------------------------------------

    def submit(
        self,
        queue: str,
        jobs: Sequence[str | bytes],
        *,
        at: float | None = None,
        priority: int | None = None,
        lease: float = LEASE,
    ) -> None:
        """Take all of *jobs*, id and payload in turn, or none."""
        self.note(queue)
        head = (
            "" if at is None else _milliseconds(at),
            # One beyond it, as a spooler's may be, has no list that anybody serves.
            LEAST if priority is None else min(priority, LEAST),
            "" if lease == LEASE else _milliseconds(lease),
        )
        words = [_raw(word) if isinstance(word, str) else word for word in jobs]
        self.client.run(self._SUBMIT, (self.root(queue),), (*head, *words))

    def note(self, queue: str) -> None:
        """Have all others know of *queue*."""
        now = time.monotonic()
        if now > self._noted.get(queue, float("-inf")) + _NOTED:
            self.client.call("SADD", f"{self.prefix}:queues", queue)
            self._noted[queue] = now
            if len(self._noted) > self._room:
                self._forget_noted(now)

    def _forget_noted(self, now: float) -> None:
        # Of a copy: other threads add to it. What they add meanwhile is told once more.
        kept = [(name, at) for name, at in self._noted.copy().items() if now <= at + _NOTED]
        self._noted = dict(kept)
        # Else it would be looked through for each of many that are all in use.
        self._room = max(_FEW, 2 * len(kept))

    def names(self) -> list[str]:
        """Return the queues that are known, by name."""
        return sorted(
            name.decode(errors="replace")
            for name in self.client.call("SMEMBERS", f"{self.prefix}:queues")
        )

    # ---- the way out ------------------------------------------------------------------------

    def step(self, queues: Sequence[str], ends: Sequence[End], most: int, token: str) -> Step:
        """End what has run, and claim up to *most* jobs of *queues*, the first of them first.

        In a cluster this is a step for each queue, up to the first one that has any; in all
        others it is one. Where a server of a cluster has failed, those of the others are taken; it
        raises RedisAway if there are none.
        """
        places = list(dict.fromkeys([*queues, *(end.queue for end in ends)]))
        if not self.client.is_cluster:
            return self._step(places, ends, most, token)
        steps: list[Step] = []
        asked: list[str] = []
        away: dict[str, RedisAway] = {}
        for place in places:
            is_served = place in queues and not any(step.claims for step in steps)
            left, own = most if is_served else 0, [end for end in ends if end.queue == place]
            if not (left or own):
                continue
            try:
                with self._shards.asking(place):
                    asked += [place] if left else []
                    steps.append(self._step([place], own, left, token))
            except RedisAway as error:
                away[place] = error
        if away and not steps:
            raise next(iter(away.values()))
        return _together(steps, asked, away)

    def _step(self, places: Sequence[str], ends: Sequence[End], most: int, token: str) -> Step:
        roots, words = self._step_words(places, ends, most, token)
        return read_step(places, token, self.client.run(self._STEP, roots, words))

    def question(
        self,
        places: Sequence[str],
        most: int,
        token: str,
        ends: Sequence[End] = (),
        *,
        is_ahead: bool = False,
    ) -> Sequence[Word]:
        """Return the command of a step whose reply `read_step` reads; all *ends* are of *places*.

        *is_ahead*: no job is claimed whose worker has died; it is to run while nothing else does.
        """
        roots, words = self._step_words(places, ends, -most if is_ahead else most, token)
        return ("EVALSHA", self._STEP.sha, len(roots), *roots, *words)

    def _step_words(
        self, places: Sequence[str], ends: Sequence[End], most: int, token: str
    ) -> tuple[Sequence[Word], Sequence[Word]]:
        words: list[str | bytes | int] = [most, token, _milliseconds(LEASE)]
        for place in places:
            words += _said(
                ends if len(places) == 1 else [end for end in ends if end.queue == place]
            )
        return [self.root(place) for place in places], words

    def each(self, queues: Sequence[str], ask: Callable[[str], object]) -> dict[str, RedisAway]:
        """Call *ask* with each of *queues*; return those of which it has raised RedisAway.

        In a cluster, one server that fails does not keep us from the others.
        """
        away: dict[str, RedisAway] = {}
        for number, queue in enumerate(queues):
            try:
                with self._asking(queue):
                    ask(queue)
            except RedisAway as error:
                if not self.client.is_cluster:
                    return dict.fromkeys(queues[number:], error)
                away[queue] = error
        return away

    def _asking(self, queue: str) -> contextlib.AbstractContextManager[None]:
        is_cluster = self.client.is_cluster
        return self._shards.asking(queue) if is_cluster else contextlib.nullcontext()

    def look(self, queues: Sequence[str]) -> None:
        """Find that all servers are there that have one of *queues*."""
        call = self.client.call
        raise_first(self.each(queues, lambda queue: call("EXISTS", f"{self.root(queue)}:jobs")))

    def touch(self, claims: Sequence[Claim]) -> list[int]:
        """Extend the leases of jobs of one queue by their length, from now.

        Returns what each was asked for, as a `Stop`; -1 if it is not this worker's any more.
        """
        words: list[str | bytes | int] = []
        for claim in claims:
            words += _raw(claim.id), claim.token, _milliseconds(claim.lease)
        found: list[int] = self.client.run(self._TOUCH, (self.root(claims[0].queue),), words)
        return found

    def is_held(self, end: End) -> bool:
        """Has nobody else claimed a job that has ended here, of which Redis is not told yet?"""
        words = _raw(end.id), end.token, _milliseconds(LEASE)
        found: list[int] = self.client.run(self._TOUCH, (self.root(end.queue),), words)
        return found[0] >= 0

    def runs_alone(self, claim: Claim) -> bool:
        """Note that its worker runs nothing else, and extend its lease; False if it is lost."""
        alone = claim._replace(token=claim.token + b"!")
        return self.touch([alone])[0] >= 0

    def release(
        self, claims: Sequence[Claim], delay: float = 0.0, *, unknown: bool = False
    ) -> list[float]:
        """Give back jobs of one queue that have not run, for others to take in *delay* seconds.

        Returns, where their task is *unknown* here, for how many seconds it has been that; less
        than nothing of a job that is not this worker's any more.
        """
        words: list[str | bytes | int] = [_milliseconds(delay), "unknown" if unknown else ""]
        for claim in claims:
            words += _raw(claim.id), claim.token
        found = self.client.run(self._RELEASE, (self.root(claims[0].queue),), words)
        return [each / 1000 for each in found]

    def reclaim(self, queue: str, tokens: Sequence[str]) -> int:
        """Give back what was claimed under *tokens*, whose answers were lost; return how many."""
        found: int = self.client.run(self._RECLAIM, (self.root(queue),), tokens)
        return found

    def waiter(self, queues: Sequence[str], behind: Behind | None = None) -> Waiter:
        """Return what waits until there may be something to claim in *queues*."""
        return self.client.waiter([f"{self.root(queue)}:wake" for queue in queues], behind)

    # ---- looking, and taking away -----------------------------------------------------------

    def _holders(self, id: str) -> Iterator[str]:  # noqa: A002
        """Go through the queues that may have a job."""
        names = self.names()
        if len(names) == 1 or self.client.is_cluster:
            # Each is a trip there, whatever it is asked.
            yield from names
            return
        for start in range(0, len(names), _AT_ONCE):
            page = names[start : start + _AT_ONCE]
            asked = [("HEXISTS", f"{self.root(name)}:jobs", _raw(id)) for name in page]
            yield from compress(page, self.client.calls(asked))

    def find(self, id: str) -> Standing | None:  # noqa: A002
        """Return where a job stands, in whichever queue that is."""
        for queue in self._holders(id):
            for found in self._standings(queue, [_raw(id)]):
                return found
        return None

    def _standings(self, queue: str, ids: Sequence[bytes]) -> Iterator[Standing]:
        flat = self.client.run(self._FIND, (self.root(queue),), ids) if ids else []
        for id_, payload, token, at, progress, stop, option in _rows(flat, 7):
            yield Standing(
                queue=queue,
                id=_text(id_),
                payload=payload,
                token=token.rstrip(b"!"),
                at=float(at) / 1000 if at else None,
                progress=progress.decode(),
                stop=int(stop),
                priority=int(option.rpartition(b"|")[2] or LEAST),
            )

    def running(self, queue: str) -> Iterator[Standing]:
        """Go through what runs, to look at it."""
        yield from self._listed(queue, "run")

    def waiting(self, queue: str) -> Iterator[Standing]:
        """Go through what waits, in the order in which it would be taken, page by page.

        What moves meanwhile may be shown twice, or not at all.
        """
        for place in _PLACES:
            yield from (one for one in self._listed(queue, place) if not one.token)

    def _listed(self, queue: str, place: str) -> Iterator[Standing]:
        start = 0
        while True:
            words = (place, start, start + _PAGE - 1)
            ids = self.client.run(self._LIST, (self.root(queue),), words)
            yield from self._standings(queue, ids)
            if len(ids) < _PAGE:
                return
            start += _PAGE

    def cancel(self, id: str, stop: int) -> tuple[bool, Standing] | None:  # noqa: A002
        """Take a job away that waits, or ask one that runs to *stop*; None if it is nowhere.

        Returns whether it runs, and what it was.
        """
        for queue in self._holders(id):
            found = self.client.run(self._CANCEL, (self.root(queue),), (_raw(id), int(stop)))
            if found is not None:
                runs, payload = found
                return bool(runs), Standing(queue, id, payload, b"", None, "", stop, LEAST)
        return None

    def forget(self, id: str) -> None:  # noqa: A002
        """Forget a job, whatever it is doing, for it is to be submitted again."""
        for queue in self._holders(id):
            self.client.run(self._FORGET, (self.root(queue),), (_raw(id),))

    def progress(self, queue: str, id: str, progress: str = "") -> int:  # noqa: A002
        """Note how far a running job has come; return what it was asked for, as a `Stop`."""
        found: int = self.client.run(self._PROGRESS, (self.root(queue),), (_raw(id), progress))
        return found

    def sizes(self, queue: str) -> Sizes:
        """Return how many jobs are in a queue."""
        return Sizes(*self.client.run(self._SIZES, (self.root(queue),)))

    def purge(self, queue: str) -> Iterator[tuple[str, bytes]]:
        """Take all jobs away that wait in a queue, page by page; yield the id and payload of each.

        Those that run go on.
        """
        seen = _PAGE
        while seen == _PAGE:
            seen, *flat = self.client.run(self._PURGE, (self.root(queue),), (_PAGE,))
            for id_, payload in _rows(flat, 2):
                yield _text(id_), payload


def raise_first(away: Mapping[str, RedisAway]) -> None:
    """Raise what the first of those has raised that `Queues.each` has returned."""
    for error in away.values():
        raise error


def _together(steps: Sequence[Step], asked: Sequence[str], away: Mapping[str, RedisAway]) -> Step:
    """Return what came of the steps of one worker on several servers."""
    return Step(
        [one for step in steps for one in step.lost],
        [claim for step in steps for claim in step.claims],
        min((step.wait for step in steps if step.wait is not None), default=None),
        next(iter(away.values()), None),
        list(away),
        [place for place in asked if place in away],
    )


def read_step(places: Sequence[str], token: str, reply: Reply) -> Step:
    """Return what a step has brought about."""
    lost, flat, wait = reply
    key = token.encode()
    claims = [
        Claim(
            *(places[number], _text(id_), key, payload, crashes), lease / 1000 or LEASE, not lease
        )
        for number, id_, payload, crashes, lease in _rows(flat, 5)
    ]
    return Step([_text(one) for one in lost], claims, None if wait < 0 else wait / 1000)


def _said(ends: Sequence[End]) -> list[str | bytes | int]:
    """Return the words by which the script learns of *ends*, which are of one queue."""
    over = [end for end in ends if end.following is None]
    words: list[str | bytes | int] = [len(over), len(ends) - len(over)]
    for end in over:
        words += _raw(end.id), end.token
    for end in ends:
        if end.following is not None:
            at = "" if end.at is None else _milliseconds(end.at)
            words += _raw(end.id), end.token, end.following, at
    return words


def _text(id: bytes) -> str:  # noqa: A002  a job's
    # Another program may call a job what it likes.
    return id.decode("utf-8", "surrogateescape")


def _raw(id: str) -> bytes:  # noqa: A002  a job's
    return id.encode("utf-8", "surrogateescape")


def _milliseconds(seconds: float) -> int:
    # Up: cut off, a job would run before its time.
    return math.ceil(seconds * 1000)


def _rows(flat: Sequence[Any], width: int) -> Iterator[tuple[Any, ...]]:
    """Cut what a script returns in one row into rows of *width*."""
    each = iter(flat)
    return zip(*[each] * width, strict=True)
