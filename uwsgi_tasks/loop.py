"""Coroutines, on one event loop for each process."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Coroutine
from typing import Any

_loops: dict[int, tuple[Any, threading.Thread]] = {}
"""The loop of this process, by its number: a fork leaves the loop's thread behind."""
_starting = threading.Lock()


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run *coroutine* to its end, on the loop of this process, in a thread of its own."""
    # A third of the time and half of the memory of importing us, and few tasks need it.
    import asyncio  # noqa: PLC0415

    with _starting:
        if os.getpid() not in _loops:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="uwsgi_tasks", daemon=True)
            thread.start()
            _loops.clear()
            _loops[os.getpid()] = loop, thread
        loop, thread = _loops[os.getpid()]
    if threading.current_thread() is thread:
        # A coroutine that calls a task which runs at once: waiting here would be for ever.
        return _run_elsewhere(coroutine)
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


def _run_elsewhere(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import asyncio  # noqa: PLC0415
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, coroutine).result()
