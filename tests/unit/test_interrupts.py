"""Ending what runs in a thread."""

import os
import pickle
import signal
import sqlite3
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from uwsgi_tasks import interrupts
from uwsgi_tasks.errors import TaskCancelled, TaskTimeout
from uwsgi_tasks.interrupts import Interruptible, kill, listen, running

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def unheard():
    """Who listens to the signal by which the main thread is interrupted is as it was."""
    before = signal.getsignal(signal.SIGURG)
    yield
    signal.signal(signal.SIGURG, before)


def busy(seconds=PATIENCE):
    """Run Python code for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0)
    return "at its end"


class Ran:
    """A function that runs in a thread of its own, and how it ended."""

    def __init__(self, function, *args):
        self.value = self.error = None
        self.begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(function, *args), daemon=True)
        self._thread.start()
        self.begun.wait()
        self.ident = self._thread.ident

    def _run(self, function, *args):
        self.begun.set()
        try:
            self.value = function(*args)
        except BaseException as error:  # noqa: BLE001  each test looks at it
            self.error = error

    def ended(self):
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self


def limited(seconds, function=busy, *args):
    with Interruptible(seconds):
        return function(*args)


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def killed(ran):
    """Kill what *ran* runs, as soon as it does."""
    until(lambda: kill(ran.ident))
    return ran.ended()


# --- the time limit


def test_what_takes_too_long_is_interrupted():
    error = Ran(limited, 0.05).ended().error
    assert isinstance(error, TaskTimeout)
    assert str(error) == "it took longer than its timeout of 0.05 s"


def test_who_is_in_time_is_left_alone():
    def work():
        value = limited(1, lambda: "in time")
        busy(1.2)
        return value

    assert Ran(work).ended().value == "in time"


def test_what_it_raises_itself_goes_through():
    with pytest.raises(ZeroDivisionError):
        limited(PATIENCE, lambda: 1 / 0)


def test_each_thread_has_its_own_time():
    slow, fast = Ran(limited, PATIENCE, busy, 0.3), Ran(limited, 0.05)
    assert isinstance(fast.ended().error, TaskTimeout)
    assert slow.ended().value == "at its end"


def test_many_limits_need_one_thread():
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: limited(PATIENCE, busy, 0.01), range(40)))
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("uwsgi_tasks time limits") == 1


def test_what_only_waits_is_interrupted_when_that_is_over():
    error = Ran(limited, 0.05, time.sleep, 2).ended().error
    assert isinstance(error, TaskTimeout)


def test_a_child_has_a_clock_of_its_own():
    limited(PATIENCE, busy, 0.01)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        with suppress(BaseException):
            limited(0.05)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- killing


def test_what_runs_can_be_killed():
    error = killed(Ran(limited, None)).error
    assert isinstance(error, TaskCancelled)
    assert "kill=True" in str(error)


def test_nobody_is_killed_who_runs_nothing():
    ran = Ran(busy, 0.1)
    assert not kill(ran.ident)
    assert ran.ended().value == "at its end"


def test_nobody_is_killed_who_has_left():
    left, go = threading.Event(), threading.Event()

    def work():
        limited(None, busy, 0.01)
        left.set()
        go.wait()
        return busy(0.05)

    ran = Ran(work)
    left.wait()
    is_killed = kill(ran.ident)
    go.set()
    assert (is_killed, ran.ended().value) == (False, "at its end")


def test_what_comes_next_is_not_killed_in_the_place_of_what_was_meant():
    first, second = threading.Event(), threading.Event()

    def work():
        limited(None, first.wait)
        return limited(None, second.wait)

    ran = Ran(work)
    until(lambda: running(ran.ident))
    meant = running(ran.ident)
    first.set()
    until(lambda: running(ran.ident) not in {None, meant})
    is_killed = kill(ran.ident, meant)
    second.set()
    assert (is_killed, ran.ended().value) == (False, True)


def test_what_is_meant_is_killed():
    ran = Ran(limited, None)
    until(lambda: running(ran.ident))
    assert kill(ran.ident, running(ran.ident))
    assert isinstance(ran.ended().error, TaskCancelled)


def test_what_tidies_up_when_it_is_killed_does_so():
    tidied, inside = [], threading.Event()

    def work():
        try:
            inside.set()
            busy()
        finally:
            tidied.append(busy(0.05))

    ran = Ran(limited, None, work)
    inside.wait()
    killed(ran)
    assert tidied == ["at its end"]


# --- in the main thread


def slept(seconds, limit):
    began = time.monotonic()
    with pytest.raises(TaskTimeout), Interruptible(limit):
        time.sleep(seconds)
    return time.monotonic() - began


def test_the_main_thread_is_interrupted_while_it_waits_if_it_listens():
    listen()
    assert slept(PATIENCE, 0.05) < PATIENCE / 2


def test_the_main_thread_can_be_killed_while_it_waits():
    listen()
    main = threading.get_ident()

    def kill_main():
        until(lambda: running(main))
        # By then it waits.
        time.sleep(0.05)
        kill(main)

    threading.Thread(target=kill_main).start()
    began = time.monotonic()
    with pytest.raises(TaskCancelled), Interruptible():
        time.sleep(PATIENCE)
    assert time.monotonic() - began < PATIENCE / 2


def test_without_listening_no_signal_is_sent():
    signal.signal(signal.SIGURG, signal.SIG_DFL)
    assert slept(2, 0.05) >= 2


def test_whoever_listens_to_that_signal_already_goes_on_to_do_so():
    heard = []
    signal.signal(signal.SIGURG, lambda *_: heard.append(1))
    listen()
    signal.raise_signal(signal.SIGURG)
    assert heard == [1]


# --- those who catch it


def caught_and_went_on(caught):
    while len(caught) < 3:
        try:
            busy()
        except (TaskTimeout, TaskCancelled) as error:
            caught.append(error)
    return "at its end"


def test_who_catches_the_end_of_his_time_is_interrupted_again_after_a_while(monkeypatch):
    monkeypatch.setattr(interrupts, "_INSISTENCE", 0.1)
    caught = []
    began = time.monotonic()
    ran = Ran(limited, 0.05, caught_and_went_on, caught).ended()
    assert (ran.value, [type(error).__name__ for error in caught]) == (
        "at its end",
        ["TaskTimeout"] * 3,
    )
    assert time.monotonic() - began >= 0.25


def test_who_catches_it_can_be_killed_again():
    caught = []
    ran = Ran(limited, None, caught_and_went_on, caught)
    for number in range(3):
        until(lambda: kill(ran.ident))
        until(lambda number=number: len(caught) > number)
    assert ran.ended().value == "at its end"


def test_what_a_foreign_library_swallows_keeps_nobody_from_leaving():
    def work():
        connection = sqlite3.connect(":memory:")
        connection.create_function("busy", 0, lambda: busy(0.3))
        with suppress(sqlite3.OperationalError):
            connection.execute("select busy()").fetchall()
        return "at its end"

    assert Ran(limited, 0.05, work).ended().value == "at its end"


# --- regions within one another


def test_the_limit_of_what_is_inside_ends_that_alone():
    def outer():
        with pytest.raises(TaskTimeout, match=r"0\.05 s"):
            limited(0.05)
        return busy(0.1)

    assert Ran(limited, PATIENCE, outer).ended().value == "at its end"


def test_the_limit_of_what_is_outside_counts_again_when_the_inside_has_ended():
    def outer():
        limited(None, busy, 0.2)
        return busy()

    error = Ran(limited, 0.05, outer).ended().error
    assert str(error) == "it took longer than its timeout of 0.05 s"


def test_who_is_killed_within_a_region_is_killed_in_the_innermost():
    inside = threading.Event()

    def outer():
        with pytest.raises(TaskCancelled):
            limited(None, lambda: (inside.set(), busy()))
        return "the outer one goes on"

    ran = Ran(limited, None, outer)
    assert inside.wait(PATIENCE)
    assert killed(ran).value == "the outer one goes on"


def test_leaving_twice_is_leaving_once():
    def outer():
        inner = Interruptible(PATIENCE)
        with inner:
            pass
        inner.leave()
        return busy()

    error = Ran(limited, 0.05, outer).ended().error
    assert isinstance(error, TaskTimeout)


# --- leaving


@pytest.fixture
def restless():
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def attempts(end, limit, stray):
    """Run pieces of work that end when their time does; note what comes in between."""
    counts = {"in time": 0, "interrupted": 0}
    while time.monotonic() < end:
        try:
            piece = Interruptible(limit)
            try:
                with piece:
                    busy(0.0005)
                outcome = "in time"
            except (TaskTimeout, TaskCancelled):
                outcome = "interrupted"
            finally:
                piece.leave()
            counts[outcome] += 1
            for _ in range(100):
                str(outcome)
        except (TaskTimeout, TaskCancelled) as error:
            stray.append("".join(traceback.format_exception(error)))
    return counts


@pytest.mark.usefixtures("restless", "untraced")
def test_nothing_is_raised_in_who_has_left():
    """Bounded: three seconds in which each way out is met by each way to be interrupted."""
    stray = []
    end = time.monotonic() + 3
    workers = [Ran(attempts, end, limit, stray) for limit in (0.0005, 0.00051, None)]
    while time.monotonic() < end:
        for worker in workers:
            kill(worker.ident)
        time.sleep(0.0003)
    counts = [worker.ended().value for worker in workers]
    assert stray == []
    assert all(count["in time"] and count["interrupted"] for count in counts)
    assert not {worker.ident for worker in workers} & set(interrupts._regions)


# --- what is raised


def errors():
    return [Ran(limited, 0.01).ended().error, killed(Ran(limited, None)).error]


def test_what_is_raised_travels_as_what_it_stands_for():
    found = errors()
    copies = [pickle.loads(pickle.dumps(error)) for error in found]
    assert [type(copy) for copy in copies] == [TaskTimeout, TaskCancelled]
    assert [copy.args for copy in copies] == [error.args for error in found]


def test_what_is_raised_is_called_what_it_stands_for():
    names = [traceback.format_exception_only(error)[0].split(":")[0] for error in errors()]
    assert names == ["uwsgi_tasks.errors.TaskTimeout", "uwsgi_tasks.errors.TaskCancelled"]
