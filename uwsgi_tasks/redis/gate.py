"""Has one job of a process run alone, which may be what kills it."""

from __future__ import annotations

import threading
from collections.abc import Callable

_LOOK = 0.1
"""Seconds between two looks whether who waits gives up."""


class Gate:
    """Lets threads begin beside one another, or one of them when no other is inside."""

    def __init__(self) -> None:
        # Taken twice for each job: as the lock itself, in a third of the time.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self.is_closed = False
        """Is somebody alone, or about to be?"""

    def enter(self) -> bool:
        """Begin beside others; False if it is closed."""
        with self._lock:
            if self.is_closed:
                return False
            self._inside += 1
            return True

    def enter_alone(self, gives_up: Callable[[], bool]) -> bool:
        """Close it, and begin when all others have left; False if the caller *gives_up* first."""
        with self._lock:
            while self.is_closed:
                if gives_up():
                    return False
                self._changed.wait(_LOOK)
            self.is_closed = True
            while self._inside:
                if gives_up():
                    self._open()
                    return False
                self._changed.wait(_LOOK)
            return True

    def leave(self) -> None:
        """End what was begun."""
        with self._lock:
            if not self._inside:
                self._open()
                return
            self._inside -= 1
            if self.is_closed:
                self._changed.notify_all()

    def _open(self) -> None:
        self.is_closed = False
        self._changed.notify_all()
