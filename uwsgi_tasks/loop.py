"""Coroutines, on one event loop for each process."""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future

_loops: dict[int, Any] = {}
"""The loop of this process, by its number: a fork leaves the loop's thread behind."""
_starting: dict[int, threading.Lock] = {}
"""The lock of each process: one that a thread of the parent held at a fork is never free."""
_SLICE = 0.5
"""Seconds for which a thread waits at a time."""


def run_coroutine(coroutine: Coroutine[Any, Any, Any], seconds: float | None = None) -> Any:
    """Run *coroutine* to its end, on the loop of this process, in a thread of its own.

    It is cancelled if it takes longer than *seconds*, and TimeoutError raised; or if what waits
    for it here, in the caller's thread, is interrupted.
    """
    # A third of the time and half of the memory of importing us, and few tasks need it.
    import asyncio  # noqa: PLC0415

    if _is_on_a_loop():
        # A coroutine has called a task which runs at once, and its loop waits for us here: if we
        # waited for that loop, or one that waits for it, we would do so for ever.
        return _run_elsewhere(coroutine, seconds)
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return _result(future, seconds)
    except BaseException:
        future.cancel()
        raise


def _result(future: Future[Any], seconds: float | None) -> Any:
    """Return what *future* has. Raises TimeoutError after so many *seconds*.

    Not by its own wait: what is raised in a thread from outside comes between two steps of Python,
    and that is one step, however long it takes.
    """
    end = float("inf") if seconds is None else time.monotonic() + seconds
    left = _SLICE if seconds is None else seconds
    over = threading.Lock()
    over.acquire()
    future.add_done_callback(lambda _: over.release())
    while not over.acquire(timeout=max(0.0, min(left, _SLICE))):
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
    return future.result()


@contextlib.contextmanager
def hold(resource: AbstractAsyncContextManager[Any]) -> Iterator[Any]:
    """Keep *resource* open, on the loop of this process, by one coroutine from begin to end.

    Raises RuntimeError on that loop itself, which could not wait for it.
    """
    import asyncio  # noqa: PLC0415
    from concurrent.futures import Future  # noqa: PLC0415

    loop = _loop()
    if _is_on_a_loop() and asyncio.get_running_loop() is loop:
        raise RuntimeError("a coroutine of a task cannot wait until this is open")
    opened: Future[Any] = Future()
    end = asyncio.Event()

    async def keep() -> None:
        try:
            async with resource as value:
                opened.set_result(value)
                await end.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    keeping = asyncio.run_coroutine_threadsafe(keep(), loop)
    try:
        value = opened.result()
    except BaseException:
        keeping.cancel()
        raise
    try:
        yield value
    finally:
        loop.call_soon_threadsafe(end.set)
        keeping.result()


def _loop() -> Any:
    """Return the loop of this process, which runs in a thread of its own."""
    import asyncio  # noqa: PLC0415

    with _starting.setdefault(os.getpid(), threading.Lock()):
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(loop,), name="uwsgi_tasks", daemon=True).start()
            _loops.clear()
            _loops[os.getpid()] = loop
        return loop


def _run(loop: Any) -> None:
    while True:
        try:
            loop.run_forever()
        # What a coroutine raises so is for who waits for it; the loop has others.
        except (SystemExit, KeyboardInterrupt):
            continue
        return


def _is_on_a_loop() -> bool:
    import asyncio  # noqa: PLC0415

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_elsewhere(coroutine: Coroutine[Any, Any, Any], seconds: float | None) -> Any:
    import asyncio  # noqa: PLC0415
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    begun: list[tuple[Any, Any]] = []

    async def limited() -> Any:
        begun.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await asyncio.wait_for(coroutine, seconds)

    # Not with it: at its end, it would wait also for what nobody waits for any more.
    pool = ThreadPoolExecutor(1)
    try:
        return _result(pool.submit(contextvars.copy_context().run, asyncio.run, limited()), None)
    except BaseException:
        for loop, task in begun:
            # It has ended by itself, and its loop with it.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        pool.shutdown(wait=False)
