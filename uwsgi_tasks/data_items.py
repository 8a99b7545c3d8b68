"""The items of a data queue: how they are named, written and shown."""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from uwsgi_tasks import json_text
from uwsgi_tasks.errors import InvalidTask, NotJson

MICRO = 1_000_000
"""Microseconds of a second: Redis counts in them."""
_NO_HEAD = [""] * 5
"""What the head of an entry has not, which nobody has read, or which has no id."""
_RECEIPT = re.compile(r"\w+(\.\d+){3}\.\w+(\.\S+)?")


class ItemId(str):
    """The id of an item, and a text like any other; from `get` it carries the receipt as well."""

    __slots__ = ("receipt",)

    receipt: str
    """What shows that the item is its reader's to finish: a text, which may travel to another
    process. Empty where nothing is held."""


class DataEntry(NamedTuple):
    """An item as `DataQueue.look` shows it."""

    id: str
    item: Any
    state: str
    """``waiting``, ``held`` or ``delayed``."""
    attempts: int
    """How often it was given out; of a dead one, before it died."""
    due: datetime | None
    """When its lease or its delay ends."""
    died_at: datetime | None
    queue: str
    """The one in which it died; empty if it has not."""


# ---- ids and receipts -----------------------------------------------------------------------


def token(size: int) -> str:
    """Return letters and digits, as many as stand for *size* bytes, that nobody has had before."""
    return b64encode(os.urandom(size), b"ab").decode()


def new_ids(size: int) -> list[str]:
    """Return ids that nobody has had before; later ones are later texts."""
    # Not by a counter of Redis: one that has lost its memory would give them anew. In the order
    # of texts: so Redis orders those that are due in the same moment.
    pattern = f"{token(9)}%0{len(f'{size:x}')}x"
    return [pattern % number for number in range(size)]


def held(items: Iterable[str]) -> list[ItemId]:
    """Return the ids of *items* that their reader may hold."""
    if isinstance(items, str):
        raise InvalidTask(f"this takes a list of ids, not one: [{items!r}]")
    found = []
    for one in items:
        if isinstance(one, ItemId):
            held = one
        elif isinstance(one, str) and _RECEIPT.fullmatch(one):
            held = item_id(one)
        else:
            raise InvalidTask(
                f"{one!r} does not say who holds the item: pass the ids that get() returned, or "
                "their .receipt"
            )
        if held.receipt:
            found.append(held)
    return found


def item_id(receipt: str) -> ItemId:
    """Return the id of the item that *receipt* is for."""
    found = ItemId(receipt.partition(".")[0])
    found.receipt = receipt
    return found


# ---- as they are written and shown ----------------------------------------------------------

_MARK = token(18)
"""A text that nobody else knows."""
_BETWEEN = f',"{_MARK}",'.encode()


def encode(items: Iterable[Any], name: str) -> list[str]:
    """Return *items* as JSON. Raises NotJson if one of them would not come out as it goes in."""
    found = []
    for number, item in enumerate(items, 1):
        try:
            why = "" if type(item) in json_text.PLAIN else json_text.unfit(item, exact=False)
            why = why.replace(" builtins.", " ")
            if not why:
                found.append(json_text.encode(item))
        except RecursionError:
            why = "itself, or too much within one another"
        except ValueError as error:
            why = f"a number: {error}"
        if why:
            raise NotJson(
                f"data queue {name}: item {number} cannot be written as JSON, it holds {why}; put "
                "what that is made of, such as a text or a number. None of them was put"
            )
    return found


def entries(ids: Sequence[str], texts: Iterable[str]) -> list[bytes]:
    """Return what Redis is given: of each item its id, which is the head of it, and its text."""
    try:
        return [f"{one} {text}".encode() for one, text in zip(ids, texts, strict=True)]
    except UnicodeEncodeError:
        return entries(ids, map(json_text.escaped, texts))


def fresh(receipt: str, entry: bytes, *, alive: bool) -> bytes:
    """Return *entry*, which was given out for *receipt*, for another queue: nobody has read it."""
    item, _, _, _, _, *death = receipt.split(".", 5)
    head = item if alive else ".".join([item, *"0000", *death])
    return b"%b %b" % (head.encode(), entry.partition(b" ")[2])


def decode(entries: Sequence[bytes]) -> list[Any]:
    """Return the items; what another program has put that is not JSON, as bytes."""
    payloads = [entry.partition(b" ")[2] for entry in entries]
    try:
        # All at once: one by one takes many times as long.
        found: list[Any] = json.loads(b"[%b]" % _BETWEEN.join(payloads))
    except (ValueError, RecursionError):
        found = []
    # What is not JSON may be with what comes before it and behind it, but not around what is
    # between them: then that would not be at its place.
    if len(found) == 2 * len(payloads) - 1 and found[1::2].count(_MARK) == len(payloads) - 1:
        return found[::2]
    return [_value(payload) for payload in payloads]


def _value(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return payload


def show(state: str, head: str, payload: bytes, at: bytes) -> DataEntry:
    """Return what is shown of an item whose lease or delay ends *at*, in microseconds."""
    item, used, _, _, _, death = [*head.split(".", 5), *_NO_HEAD][:6]
    died, times, queue = death.split(".", 2) if death else ("", used, "")
    return DataEntry(
        id=item,
        item=_value(payload),
        state=state,
        attempts=int(times or 0),
        due=_time(at),
        died_at=_time(died),
        queue=queue,
    )


def _time(micros: bytes | str) -> datetime | None:
    return datetime.fromtimestamp(float(micros) / MICRO, UTC) if micros else None
