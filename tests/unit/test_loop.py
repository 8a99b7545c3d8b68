"""Coroutines, on one event loop for each process."""

import asyncio
import contextlib
import contextvars
import os
import signal
import threading
import time

import pytest

from uwsgi_tasks import loop
from uwsgi_tasks.errors import TaskCancelled
from uwsgi_tasks.interrupts import Interruptible, kill
from uwsgi_tasks.loop import run_coroutine

DEADLOCK = 10
"""Seconds after which we do not wait any longer."""


async def double(value):
    await asyncio.sleep(0)
    return 2 * value


async def where():
    await asyncio.sleep(0)
    return asyncio.get_running_loop(), threading.current_thread()


def in_time(coroutine):
    """Run *coroutine*, and fail if it never ends."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run_coroutine(coroutine)), daemon=True)
    thread.start()
    thread.join(DEADLOCK)
    assert found, "it waits for ever"
    return found[0]


@pytest.fixture(autouse=True)
def _a_loop_of_its_own(monkeypatch):
    # One that a test has brought to a stand must not stop the others.
    monkeypatch.setattr(loop, "_loops", {})


def test_a_coroutine_runs_to_its_end():
    assert run_coroutine(double(21)) == 42


def test_what_a_coroutine_raises_is_raised():
    async def fail():
        await asyncio.sleep(0)
        raise OSError("no such host")

    with pytest.raises(OSError, match="no such host"):
        run_coroutine(fail())


async def run_by_another_one(coroutine):
    return run_coroutine(coroutine)


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("run", [lambda one: one, run_by_another_one])
def test_what_would_end_a_thread_ends_neither_the_loop_nor_others_on_it(end, run):
    async def leave():
        await asyncio.sleep(0.01)
        raise end(3)

    async def stay():
        await asyncio.sleep(0.5)
        return "at its end"

    others = []
    other = threading.Thread(target=lambda: others.append(run_coroutine(stay())))
    other.start()
    with pytest.raises(end):
        run_coroutine(run(leave()), 30)
    other.join(30)
    assert (others, run_coroutine(double(2), 30)) == (["at its end"], 4)


def test_all_run_on_one_loop_in_a_thread_of_its_own():
    (first, thread), second = run_coroutine(where()), run_coroutine(where())
    assert (first, thread) == second
    assert thread is not threading.current_thread()
    assert thread.daemon is True


def test_threads_that_begin_together_share_one_loop():
    found = []
    barrier = threading.Barrier(8)

    def begin():
        barrier.wait()
        found.append(run_coroutine(where()))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), len(set(found))) == (8, 1)


def test_a_fork_makes_a_loop_of_its_own():
    run_coroutine(double(1))
    child = os.fork()
    if child == 0:
        os._exit(run_coroutine(double(21)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert list(loop._loops) == [os.getpid()]


def test_a_coroutine_may_run_another_one():
    async def outer():
        return run_coroutine(double(21))

    assert in_time(outer()) == 42


def test_a_coroutine_that_is_run_by_another_one_has_its_context():
    variable = contextvars.ContextVar("variable")

    async def inner():
        return variable.get()

    async def outer():
        variable.set("outer")
        return run_coroutine(inner())

    assert in_time(outer()) == "outer"


def test_what_the_inner_coroutine_raises_reaches_the_outer_one():
    async def fail():
        raise OSError("no such host")

    async def outer():
        with pytest.raises(OSError, match="no such host"):
            run_coroutine(fail())
        return "caught"

    assert in_time(outer()) == "caught"


def test_coroutines_may_run_each_other_to_any_depth():
    async def nested(depth):
        return depth if depth == 5 else run_coroutine(nested(depth + 1))

    # Elsewhere: threads that wait for ever would keep this process from ending.
    child = os.fork()
    if child == 0:
        signal.alarm(DEADLOCK)
        with contextlib.suppress(BaseException):
            os._exit(run_coroutine(nested(0)))
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code != -signal.SIGALRM, "they wait for ever"
    assert code == 5


def test_a_coroutine_that_is_run_by_another_one_has_an_end_too():
    async def outer():
        with pytest.raises(TimeoutError):
            run_coroutine(asyncio.sleep(30), 0.05)
        return "in time"

    assert in_time(outer()) == "in time"


@pytest.mark.parametrize("run", [run_coroutine, lambda one: asyncio.run(run_by_another_one(one))])
def test_a_thread_that_waits_for_a_coroutine_can_be_interrupted_which_cancels_that(run):
    began, cancelled, raised = threading.Event(), threading.Event(), []

    async def swim():
        began.set()
        try:
            await asyncio.sleep(10 * DEADLOCK)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def wait():
        try:
            with Interruptible():
                run(swim())
        except TaskCancelled as error:
            raised.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert began.wait(DEADLOCK)
    # In the midst of its wait.
    time.sleep(0.1)
    assert kill(thread.ident)
    thread.join(DEADLOCK)

    assert len(raised) == 1
    assert cancelled.wait(DEADLOCK)


def test_an_end_of_time_that_a_coroutine_raises_is_its_own(monkeypatch):
    monkeypatch.setattr(loop, "_SLICE", 0.01)

    async def fail():
        await asyncio.sleep(0.1)
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        run_coroutine(fail())


def test_one_that_takes_longer_than_a_slice_has_all_its_time(monkeypatch):
    monkeypatch.setattr(loop, "_SLICE", 0.01)
    assert run_coroutine(asyncio.sleep(0.1, "in time"), DEADLOCK) == "in time"
    with pytest.raises(TimeoutError):
        run_coroutine(asyncio.sleep(30), 0.05)
