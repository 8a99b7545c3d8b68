"""What waits for a time in this process."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST = 60.0
"""Seconds after which the time is looked at again: somebody may have set the clock."""
_SLACK = 64
"""Things that nobody wants any more, and that may stay where they are."""


class Delays(Generic[T]):
    """Hands things over, each at its time, from a thread of its own.

    That thread begins with the first of them, and sleeps until the next is due. The process does
    not wait for it when it ends. What *is_wanted* is false of is not handed over.
    """

    def __init__(
        self,
        hand_over: Callable[[T], None],
        name: str,
        is_wanted: Callable[[T], bool] = lambda _thing: True,
    ) -> None:
        self._hand_over, self._name, self._is_wanted = hand_over, name, is_wanted
        self._heap: list[tuple[float, int, T]] = []
        self._numbers = count()
        self._unwanted = 0
        # Not a plain lock: a signal's handler may add something while its thread is in here.
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._is_over = False

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at: float, thing: T) -> None:
        """Hand *thing* over at this time, in seconds since 1970."""
        entry = at, next(self._numbers), thing
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._watch, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
            heapq.heappush(self._heap, entry)
            if self._heap[0] is entry:
                # Before the one that the thread is waiting for.
                self._changed.notify()

    def note_unwanted(self) -> None:
        """Note that one more is not wanted, perhaps one of ours: they are not kept for long."""
        with self._changed:
            self._unwanted += 1
            # Of those that were handed over already it does no harm to count too many.
            if 2 * self._unwanted > len(self._heap) + _SLACK:
                self._clean()

    def _clean(self) -> None:
        self._unwanted = 0
        # What a signal's handler adds meanwhile, it adds to the new one.
        entries, self._heap = self._heap, []
        try:
            entries = [entry for entry in entries if self._is_wanted(entry[2])]
        # Nor is anything lost if the handler raises.
        finally:
            self._heap += entries
            heapq.heapify(self._heap)
            self._changed.notify()

    def take_all(self) -> list[T]:
        """Return all that wait, in order of time, and let none of them wait any longer."""
        with self._changed:
            taken = sorted(self._heap)
            self._heap.clear()
            self._unwanted = 0
        return [thing for _, _, thing in taken if self._is_wanted(thing)]

    def end(self) -> None:
        """Hand nothing over any more, and let the thread go."""
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not self._is_over and (left := self._left()) > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                if self._is_over:
                    return
                _, _, thing = heapq.heappop(self._heap)
            try:
                if self._is_wanted(thing):
                    self._hand_over(thing)
            # The loop: what comes after it must not wait for ever.
            except Exception:
                log.exception("%s: one thing could not be handed over", self._name)
            # Nothing is held while it waits for the next one.
            del thing

    def _left(self) -> float:
        """Return the seconds until it is to look again; none if something is due."""
        if not self._heap:
            return float("inf")
        return min(self._heap[0][0] - time.time(), _LONGEST)
