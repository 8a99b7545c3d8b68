"""How a process that runs jobs hears signals, and what those that it forks make of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType

from uwsgi_tasks.processes import hear

_NOBODY = -1
"""Whom Python writes to where nobody has asked for it."""


class Ears:
    """Hears signals in this process alone, also while its main thread runs C code.

    *at_once* is called for each of them by the main thread and by another one, as soon as either
    can; *each* by one of the two. What a job forks, to run something beside it, ends by such
    signals as that of any program does.
    """

    def __init__(
        self,
        numbers: Iterable[signal.Signals],
        at_once: Callable[[], None],
        each: Callable[[], None],
    ) -> None:
        self.numbers = list(numbers)
        self._at_once, self._each = at_once, each
        # Handlers are called between two steps of the main thread; this is written to in any case.
        self._hears, self._tells = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._tells, False)

    def open(self) -> None:
        """Hear them from now on, and those that were held; for the main thread."""
        _ears[:] = [self]
        threading.Thread(target=self._listen, name="uwsgi_tasks signals", daemon=True).start()
        self._have_told()
        hear(self.numbers, self._handle)

    def close_in_child(self) -> None:
        """Leave all signals to the parent of this process, which was forked just now."""
        for number in self.numbers:
            # Else a job has set another one, and its children are to have that.
            if signal.getsignal(number) == self._handle:
                is_ctrl_c = number is signal.SIGINT
                signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
        told = signal.set_wakeup_fd(_NOBODY)
        if told != self._tells:
            signal.set_wakeup_fd(told)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._at_once()
        if self._have_told() != self._tells:
            # An event loop in this thread, say, has taken it away: the other one was not told.
            self._each()

    def _have_told(self) -> int:
        """Have our other thread told, unless somebody else is; return who was until now."""
        # Somebody may have closed all files of this process.
        with contextlib.suppress(ValueError, OSError):
            told = signal.set_wakeup_fd(self._tells, warn_on_full_buffer=False)
            if told not in {self._tells, _NOBODY}:
                signal.set_wakeup_fd(told)
            return told
        return _NOBODY

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                for number in os.read(self._hears, 1000):
                    if number in self.numbers:
                        self._at_once()
                        self._each()


# ---- forks ------------------------------------------------------------------------------------

_ears: list[Ears] = []
"""Those of this process, if it has any."""
_masks: dict[int, set[int]] = {}
"""What threads that fork hold anyway, by their idents."""


def _hold() -> None:
    for ears in _ears:
        # What comes to the fork before it has left ours would be lost, or taken for ours.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ears.numbers)
        _masks[threading.get_ident()] = mask


def _go_on() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _be_a_child() -> None:
    for ears in _ears:
        ears.close_in_child()
    _ears.clear()
    _go_on()
    _masks.clear()


# Once for all: it is never undone, and nothing is done where nobody hears.
os.register_at_fork(before=_hold, after_in_parent=_go_on, after_in_child=_be_a_child)
