"""How a process that runs jobs hears signals, and what those that it forks make of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable

from uwsgi_tasks.processes import Handler, hear

_heard: dict[signal.Signals, Handler] = {}
"""What this process hears, and none of its forks."""
_masks: dict[int, set[int]] = {}
"""What threads that fork would have held anyway, by their idents."""


def hear_here(numbers: Iterable[signal.Signals], handler: Handler) -> None:
    """Have *handler* called for signals, in this process alone; for the main thread.

    What a job forks, to run something beside it, ends by them as that of any program does.
    """
    _heard.update(dict.fromkeys(numbers, handler))
    hear(_heard, handler)


def _hold() -> None:
    # What comes to the fork before it is one of its own would be heard by nobody.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _heard)
    _masks[threading.get_ident()] = mask


def _go_on() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _be_a_child() -> None:
    for number, handler in _heard.items():
        # Else the job has set another one, and its children are to have that.
        if signal.getsignal(number) is handler:
            is_ctrl_c = number is signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
    _heard.clear()
    _go_on()
    _masks.clear()


# Once: nothing is to be had back, and where nothing is heard nothing is done.
os.register_at_fork(before=_hold, after_in_parent=_go_on, after_in_child=_be_a_child)
