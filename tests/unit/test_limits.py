"""An end for what takes too long."""

import os
import signal
import threading
import time

import pytest

from uwsgi_tasks import limits as module
from uwsgi_tasks.errors import TaskCancelled, TaskTimeout
from uwsgi_tasks.limits import Alarm

LONG = 30.0


@pytest.fixture(autouse=True)
def _as_before():
    """Put the timer aside that watches over the tests, and all of it back in the end."""
    before, timer = signal.getsignal(signal.SIGALRM), signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.fixture
def alarm():
    return Alarm()


def idle(seconds=LONG):
    """Wait, as a task does that never comes to an end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


def in_a_thread(action):
    """Do something where no signal is heard; return what it raised."""
    raised = []

    def run():
        try:
            action()
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LONG)
    return raised


def test_where_no_signal_is_heard_nothing_has_an_end(alarm, monkeypatch, caplog):
    def deaf(_number, _handler):
        raise ValueError("signal only works in main thread of the main interpreter")

    monkeypatch.setattr(signal, "signal", deaf)
    with alarm.limit(0.01):
        time.sleep(0.05)
    monkeypatch.undo()
    assert caplog.messages == ["no time limit holds here: this is not the main interpreter"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


# --- a time that is over


def test_what_takes_too_long_is_ended(alarm):
    took = r"it took longer than its timeout of 0\.05 s"
    with pytest.raises(TaskTimeout, match=took), alarm.limit(0.05):
        idle()


def test_what_ends_in_time_is_left_alone(alarm):
    with alarm.limit(LONG):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_catches_the_end_and_goes_on_is_ended_again(alarm, monkeypatch):
    monkeypatch.setattr(module, "_INSISTENCE", 0.05)
    caught = []

    def stubborn():
        try:
            idle()
        except TaskTimeout as error:
            caught.append(error)
        idle()

    with pytest.raises(TaskTimeout), alarm.limit(0.05):
        stubborn()
    assert len(caught) == 1


def test_an_error_goes_through(alarm):
    with pytest.raises(OSError, match="no such host"), alarm.limit(LONG):
        raise OSError("no such host")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_who_handled_the_signal_before_does_so_again(alarm):
    heard = []
    signal.signal(signal.SIGALRM, lambda number, _frame: heard.append(number))
    with alarm.limit(LONG):
        pass
    signal.raise_signal(signal.SIGALRM)
    assert heard == [signal.SIGALRM]


def test_the_timer_of_somebody_else_goes_on(alarm):
    heard = []
    signal.signal(signal.SIGALRM, lambda number, _frame: heard.append(number))
    signal.setitimer(signal.ITIMER_REAL, LONG, 7.0)
    with alarm.limit(LONG):
        pass
    rest, interval = signal.getitimer(signal.ITIMER_REAL)
    assert (0 < rest <= LONG, interval, heard) == (True, 7.0, [])


def test_a_timer_of_somebody_else_that_was_due_meanwhile_rings_after_us(alarm):
    heard = []
    signal.signal(signal.SIGALRM, lambda number, _frame: heard.append(number))
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    with alarm.limit(LONG):
        idle(1.2)
        before = list(heard)
    deadline = time.monotonic() + LONG
    while not heard and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (before, heard) == ([], [signal.SIGALRM])


def test_a_limit_inside_of_another_leaves_that_one_its_time(alarm):
    def inner():
        with alarm.limit(LONG):
            pass
        idle()

    with pytest.raises(TaskTimeout, match=r"0\.2 s"), alarm.limit(0.2):
        inner()


def test_a_shorter_limit_inside_of_another_is_its_own(alarm):
    with alarm.limit(LONG):
        with pytest.raises(TaskTimeout, match=r"0\.05 s"), alarm.limit(0.05):
            idle()
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0


def test_in_another_thread_there_is_no_end(alarm):
    assert in_a_thread(lambda: _limited(alarm)) == []


def _limited(alarm):
    with alarm.limit(0.01):
        time.sleep(0.05)


def test_an_alarm_whose_handler_is_not_of_python_is_not_put_back(alarm, monkeypatch):
    set_ = signal.signal
    given = []

    def as_if_from_c(number, handler):
        given.append(handler)
        set_(number, handler)

    monkeypatch.setattr(signal, "signal", as_if_from_c)
    with alarm.limit(LONG):
        pass
    assert given == [alarm._ring]


# --- what is killed


def test_what_is_killed_is_ended(alarm):
    def killed():
        os.kill(os.getpid(), signal.SIGALRM)
        idle()

    alarm.watch(lambda: True)
    with pytest.raises(TaskCancelled, match="with kill=True"):
        killed()


def test_an_alarm_for_nobody_is_passed_over(alarm):
    alarm.watch(lambda: False)
    signal.raise_signal(signal.SIGALRM)
    assert signal.getsignal(signal.SIGALRM) == alarm._ring


def test_what_is_killed_inside_of_a_limit_is_ended(alarm):
    alarm.watch(lambda: True)
    with pytest.raises(TaskCancelled), alarm.limit(LONG):
        signal.raise_signal(signal.SIGALRM)


def test_an_alarm_that_comes_before_its_time_ends_nothing(alarm):
    with alarm.limit(LONG):
        signal.raise_signal(signal.SIGALRM)


def test_who_can_only_be_asked_is_asked_each_interval(alarm):
    asked = []

    def is_unwanted():
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(TaskCancelled), alarm.limit(None, is_unwanted, 0.01):
        idle()
    # Once more, perhaps, where that comes before its end.
    assert len(asked) >= 3


def test_who_is_asked_has_an_end_all_the_same(alarm):
    with pytest.raises(TaskTimeout, match=r"0\.05 s"), alarm.limit(0.05, lambda: False, 0.01):
        idle()


def test_after_the_limit_the_old_question_is_asked_again(alarm):
    asked = []
    alarm.watch(lambda: bool(asked.append("old")))
    with alarm.limit(LONG, lambda: bool(asked.append("new"))):
        signal.raise_signal(signal.SIGALRM)
    signal.raise_signal(signal.SIGALRM)
    assert asked == ["new", "old"]


def test_in_another_thread_nothing_is_watched_by_signals(alarm):
    before = signal.getsignal(signal.SIGALRM)
    assert in_a_thread(lambda: alarm.watch(lambda: True)) == []
    assert signal.getsignal(signal.SIGALRM) == before
