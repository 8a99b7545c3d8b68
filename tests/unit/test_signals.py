"""Timers and crons on uWSGI's signals."""

import asyncio
import logging
import os
import warnings
from datetime import timedelta
from functools import partial

import pytest

from tests.fakes import FakeUwsgi
from uwsgi_tasks import App, signals
from uwsgi_tasks.errors import ConfigurationError, InvalidTask
from uwsgi_tasks.server import Server


@pytest.fixture
def uwsgi():
    return FakeUwsgi(role="master")


@pytest.fixture
def app(uwsgi):
    return App(Server(uwsgi))


def tick(number):
    """Count the turns."""
    turns.append(number)


turns = []


@pytest.fixture(autouse=True)
def _no_turns():
    turns.clear()


def rings(uwsgi, clock, seconds, number=0):
    """Let time pass, and the signal be raised."""
    clock.advance(seconds)
    uwsgi.signals[number][1](number)


def test_a_timer_fires_from_the_start_of_the_server(app, uwsgi):
    app.timer(seconds=5)(tick)
    assert uwsgi.timers == [(0, 5)]


def test_a_timer_with_iterations_is_counted(app, uwsgi, clock):
    app.timer(seconds=5, iterations=3)(tick)
    for _ in range(5):
        rings(uwsgi, clock, 5)
    assert (uwsgi.timers, len(turns)) == ([(0, 5)], 3)


def test_a_cron_fires_from_the_start_of_the_server(app, uwsgi):
    app.cron(minute=0, hour=12, dayweek=7)(tick)
    assert uwsgi.crons == [(0, 0, 12, -1, -1, 7)]


def test_a_bare_cron_fires_each_minute(app, uwsgi):
    app.cron(tick)
    assert uwsgi.crons == [(0, -1, -1, -1, -1, -1)]


@pytest.mark.parametrize("kind", ["timer_lazy", "cron_lazy"])
def test_a_lazy_one_does_not_fire_before_it_is_called(app, uwsgi, kind):
    getattr(app, kind)(tick)
    assert (uwsgi.timers, uwsgi.crons) == ([], [])


def test_a_lazy_one_fires_once_it_has_been_called(app, uwsgi):
    lazy = app.timer_lazy(seconds=5)(tick)
    assert (lazy(), uwsgi.timers) == (True, [(0, 5)])


def test_a_lazy_one_that_is_called_again_while_it_runs_does_nothing(app, uwsgi):
    lazy = app.timer_lazy(seconds=5)(tick)
    lazy()
    assert (lazy(), uwsgi.timers) == (False, [(0, 5)])


def test_a_timer_that_has_made_its_turns_can_be_started_again(app, uwsgi, clock):
    lazy = app.timer_lazy(seconds=5, iterations=2)(tick)
    lazy()
    clock.advance(8)
    early = lazy()
    clock.advance(3.1)
    assert (early, lazy()) == (False, True)


def test_a_timer_that_another_process_has_started_is_not_started_again(app):
    lazy = app.timer_lazy(seconds=5)(tick)
    child = os.fork()
    if child == 0:
        lazy()
        os._exit(0)
    os.waitpid(child, 0)
    assert lazy() is False


def test_a_lazy_one_can_be_started_in_a_worker(app, uwsgi):
    lazy = app.timer_lazy(seconds=5)(tick)
    uwsgi.role = "worker"
    assert lazy() is True


def test_the_function_gets_the_number_of_its_signal(app, uwsgi, clock):
    app.timer(seconds=5, signal=17)(tick)
    rings(uwsgi, clock, 5, 17)
    assert turns == [17]


def test_a_turn_that_fails_is_logged_and_does_not_reach_uwsgi(app, uwsgi, clock, caplog):
    @app.timer(seconds=5)
    def failing(number):
        raise OSError("no such host")

    rings(uwsgi, clock, 5)
    (record,) = caplog.records
    assert record.getMessage().endswith("failing failed on signal 0: OSError: no such host")
    assert (record.levelname, record.task_name.endswith("failing")) == ("ERROR", True)
    shown = logging.Formatter().formatException(record.exc_info)
    assert "in failing" in shown
    # From the function on: what is above it is ours.
    assert signals.__file__ not in shown


def test_the_name_of_the_function_stays_the_task(app):
    made = app.timer(seconds=5)(tick)
    assert (made.func, made.__doc__, made.name) == (tick, "Count the turns.", f"{__name__}.tick")


def test_a_timer_shows_its_name(app):
    assert repr(app.timer(seconds=5)(tick)) == f"<Timer {__name__}.tick>"


# --- who runs it


@pytest.mark.parametrize(
    ("setup", "target"),
    [
        ({}, ""),
        ({"spoolers": ("/a",)}, "spooler"),
        ({"mules": 1}, "mule"),
        ({"spoolers": ("/a",), "mules": 1}, "mule"),
        ({"mule": b"program.py"}, ""),
    ],
)
def test_a_mule_runs_it_else_a_spooler_else_a_worker(setup, target):
    uwsgi = FakeUwsgi(role="master", **setup)
    App(Server(uwsgi)).timer(seconds=5)(tick)
    assert uwsgi.signals[0][0] == target


def test_the_target_of_the_declaration_runs_it(app, uwsgi):
    app.timer(seconds=5, target="workers")(tick)
    assert uwsgi.signals[0][0] == "workers"


@pytest.mark.parametrize("target", [5, "somebody", "mule3"])
def test_a_target_that_cannot_be_is_refused(app, target):
    with pytest.raises(InvalidTask, match="target"):
        app.timer(seconds=5, target=target)(tick)


# --- add_setup


def test_what_is_set_later_holds_for_the_next_start(app, uwsgi, clock):
    lazy = app.timer_lazy(target="worker")(tick)
    lazy.add_setup(seconds=10, iterations=2)
    lazy()
    for _ in range(3):
        rings(uwsgi, clock, 10)
    assert (uwsgi.timers, len(turns)) == ([(0, 10)], 2)


@pytest.mark.parametrize("changes", [{"target": "workers"}, {"signal": 9}])
def test_what_the_master_has_to_know_cannot_be_changed_later(app, changes):
    lazy = app.timer_lazy(seconds=5)(tick)
    (name,) = changes
    with pytest.raises(InvalidTask, match=f"{name} cannot change after"):
        lazy.add_setup(**changes)


def test_what_stays_as_it_is_may_be_said_again(app, uwsgi):
    lazy = app.timer_lazy(seconds=5, target="workers")(tick)
    lazy.add_setup(target="workers", seconds=6)
    lazy()
    assert uwsgi.timers == [(0, 6)]


def test_a_change_that_is_refused_changes_nothing(app, uwsgi):
    lazy = app.timer_lazy(seconds=5)(tick)
    with pytest.raises(InvalidTask):
        lazy.add_setup(seconds=7, iterations=0)
    lazy()
    assert uwsgi.timers == [(0, 5)]


# --- what is refused


@pytest.mark.parametrize(
    "setup",
    [
        {"seconds": 0},
        {"seconds": -1},
        {"seconds": 0.5},
        {"seconds": timedelta(milliseconds=1500)},
        {"seconds": "5"},
        {"seconds": "soon"},
        {"seconds": [5]},
        {"seconds": True},
        {"seconds": float("inf")},
        {"seconds": float("nan")},
        {"seconds": 5, "iterations": 0},
        {"seconds": 5, "iterations": True},
        {"seconds": 5, "iterations": "3"},
        {"seconds": 5, "iterations": 1.5},
        {"seconds": 5, "every": 3},
        {"seconds": 5, "signal": 256},
        {"seconds": 5, "signal": "first"},
    ],
)
def test_a_timer_that_would_never_fire_is_refused(app, setup):
    with pytest.raises(InvalidTask):
        app.timer(**setup)(tick)


@pytest.mark.parametrize("seconds", [timedelta(minutes=1), 60, 60.0])
def test_a_timer_takes_whole_seconds_of_any_kind(app, uwsgi, seconds):
    app.timer(seconds=seconds)(tick)
    assert uwsgi.timers == [(0, 60)]
    assert type(uwsgi.timers[0][1]) is int


def test_a_timer_that_nobody_has_told_how_often_is_refused_with_the_remedy(app):
    with pytest.raises(InvalidTask, match=r"seconds= or add_setup"):
        app.timer(tick)


@pytest.mark.parametrize(
    "setup",
    [
        {"minute": 60},
        {"minute": -60},
        {"hour": 24},
        {"day": 0},
        {"day": 32},
        {"month": 0},
        {"month": 13},
        {"dayweek": 8},
        {"minute": "*/5"},
        {"minute": True},
        {"minute": 1.0},
        {"minute": None},
        {"weekday": 1},
        {"seconds": 5},
    ],
)
def test_a_cron_that_would_never_come_is_refused_by_the_name_of_its_field(app, setup):
    (name,) = setup
    with pytest.raises(InvalidTask, match=name):
        app.cron(**setup)(tick)


@pytest.mark.parametrize(
    "setup",
    [{"minute": -59}, {"hour": 0}, {"day": 31}, {"month": 12}, {"dayweek": 0}, {"dayweek": 7}],
)
def test_a_cron_takes_all_that_uwsgi_knows(app, uwsgi, setup):
    app.cron(**setup)(tick)
    assert len(uwsgi.crons) == 1


@pytest.mark.parametrize("kind", ["timer", "cron"])
def test_what_is_no_function_cannot_be_declared(app, kind):
    with pytest.raises(InvalidTask, match="decorates a function"):
        getattr(app, kind)(seconds=5)("tick") if kind == "timer" else app.cron()("tick")


def test_a_function_without_a_name_is_refused_with_the_remedy(app):
    with pytest.raises(InvalidTask, match="name"):
        app.timer(seconds=5)(partial(tick))


# --- where it is declared


def test_without_uwsgi_nothing_fires_and_that_is_said_once():
    app = App(Server(None))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        lazy = app.timer_lazy(seconds=5)(tick)
        app.timer(seconds=5)(tick)
        app.cron(tick)
        started = lazy()
    assert started is False
    assert ["timers and crons do not fire" in str(one.message) for one in warned] == [True]


def test_a_server_without_its_master_is_refused_with_the_remedy():
    app = App(Server(FakeUwsgi(master=False, role="master")))
    with pytest.raises(ConfigurationError, match="master = true"):
        app.timer(seconds=5)(tick)


def test_what_a_worker_declares_is_refused_with_the_remedy(app, uwsgi):
    uwsgi.role = "worker"
    with pytest.raises(InvalidTask, match="shared-import"):
        app.timer(seconds=5)(tick)


@pytest.mark.parametrize("role", ["mule", "spooler"])
def test_what_a_mule_or_spooler_declares_is_left_to_the_master(role, caplog):
    uwsgi = FakeUwsgi(role=role, spoolers=("/a",))
    caplog.set_level("INFO")
    lazy = App(Server(uwsgi)).timer_lazy(seconds=5)(tick)
    assert (lazy(), uwsgi.signals, uwsgi.timers) == (False, {}, [])
    assert f"declared in a {role}: only the master" in caplog.text
    assert "was not declared in the master" in caplog.text


def test_one_timer_too_many_is_refused(app):
    for _ in range(64):
        app.timer(seconds=5)(tick)
    with pytest.raises(InvalidTask, match="room for 64 timers"):
        app.timer(seconds=5)(tick)


def test_a_timer_that_had_no_room_counts_as_not_started(app, uwsgi):
    lazy = app.timer_lazy(seconds=5)(tick)
    uwsgi.timers = [(1, 1)] * 64
    with pytest.raises(InvalidTask):
        lazy()
    uwsgi.timers = []
    assert lazy() is True


def test_an_endless_timer_stays_started_however_long_the_server_runs(app, clock):
    lazy = app.timer_lazy(seconds=5)(tick)
    lazy()
    clock.advance(10**9)
    assert lazy() is False


# --- turns


def test_a_timer_that_was_not_started_does_not_fire(app, uwsgi, clock):
    app.timer_lazy(seconds=5)(tick)
    rings(uwsgi, clock, 5)
    assert turns == []


def test_a_timer_without_iterations_goes_on(app, uwsgi, clock):
    app.timer(seconds=5)(tick)
    for _ in range(20):
        rings(uwsgi, clock, 5)
    assert len(turns) == 20


def test_the_turns_of_a_timer_are_counted_for_all_processes(app, uwsgi, clock):
    app.timer(seconds=5, iterations=3)(tick)
    for _ in range(2):
        clock.advance(5)
        child = os.fork()
        if child == 0:
            uwsgi.signals[0][1](0)
            os._exit(len(turns))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    rings(uwsgi, clock, 5)
    rings(uwsgi, clock, 5)
    assert len(turns) == 1


@pytest.mark.parametrize("target", ["workers", "active-workers", "mules"])
def test_where_all_hear_a_signal_each_process_counts_for_itself(uwsgi, clock, target):
    uwsgi.opt["mules"] = b"2"
    App(Server(uwsgi)).timer(seconds=5, iterations=2, target=target)(tick)
    clock.advance(5)
    child = os.fork()
    if child == 0:
        uwsgi.signals[0][1](0)
        os._exit(len(turns))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    uwsgi.signals[0][1](0)
    for _ in range(3):
        rings(uwsgi, clock, 5)
    assert len(turns) == 2


def test_where_all_hear_a_signal_a_new_start_counts_anew(uwsgi, clock):
    lazy = App(Server(uwsgi)).timer_lazy(seconds=5, iterations=2, target="workers")(tick)
    for _ in range(2):
        lazy()
        for _ in range(4):
            rings(uwsgi, clock, 5)
    assert len(turns) == 4


def test_a_timer_that_is_started_again_uses_the_timer_of_uwsgi_again(app, uwsgi, clock):
    lazy = app.timer_lazy(seconds=5, iterations=2)(tick)
    for _ in range(100):
        assert lazy() is True
        for _ in range(3):
            rings(uwsgi, clock, 5)
    assert (uwsgi.timers, len(turns)) == ([(0, 5)], 200)


def test_a_tick_of_the_last_start_does_not_come_too_early(app, uwsgi, clock):
    lazy = app.timer_lazy(seconds=5, iterations=1)(tick)
    lazy()
    rings(uwsgi, clock, 5)
    clock.advance(3)
    lazy()
    rings(uwsgi, clock, 2)
    early = len(turns)
    rings(uwsgi, clock, 5)
    assert (early, len(turns)) == (1, 2)


def test_a_tick_may_come_a_little_early(app, uwsgi, clock):
    app.timer(seconds=5)(tick)
    rings(uwsgi, clock, 4.6)
    assert len(turns) == 1


def test_a_turn_that_comes_late_does_not_cost_the_next_one(app, uwsgi, clock):
    # A busy mule or worker hears its signal late; uWSGI goes on by its own clock.
    app.timer(seconds=5)(tick)
    rings(uwsgi, clock, 6)
    rings(uwsgi, clock, 4)
    assert len(turns) == 2


def test_each_period_of_a_timer_is_one_timer_of_uwsgi(app, uwsgi, clock):
    lazy = app.timer_lazy(iterations=1)(tick)
    for seconds in (5, 7, 5, 7):
        lazy.add_setup(seconds=seconds)
        assert lazy() is True
        clock.advance(60)
    assert uwsgi.timers == [(0, 5), (0, 7)]


def test_the_ticks_of_another_period_are_not_heeded(app, uwsgi, clock):
    lazy = app.timer_lazy(seconds=5, iterations=1)(tick)
    lazy()
    rings(uwsgi, clock, 5)
    clock.advance(5)
    lazy.add_setup(seconds=60)
    lazy()
    for _ in range(11):
        rings(uwsgi, clock, 5)
    early = len(turns)
    rings(uwsgi, clock, 5)
    assert (early, len(turns)) == (1, 2)


def test_one_period_too_many_is_refused(app, clock):
    lazy = app.timer_lazy(iterations=1)(tick)
    for seconds in range(1, 9):
        lazy.add_setup(seconds=seconds)
        lazy()
        clock.advance(60)
    lazy.add_setup(seconds=9)
    with pytest.raises(InvalidTask, match="more than 8 periods; declare another"):
        lazy()


def test_a_coroutine_function_runs_to_its_end(app, uwsgi, clock):
    @app.timer(seconds=5)
    async def ticking(number):
        await asyncio.sleep(0)
        turns.append(number)

    rings(uwsgi, clock, 5)
    assert turns == [0]


def test_a_coroutine_function_that_fails_is_logged(app, uwsgi, clock, caplog):
    @app.cron
    async def failing(_number):
        await asyncio.sleep(0)
        raise OSError("no such host")

    rings(uwsgi, clock, 60)
    assert "failing failed on signal 0" in caplog.text
    assert "OSError: no such host" in caplog.text


def test_a_cron_acts_on_each_signal(app, uwsgi, clock):
    app.cron(tick)
    rings(uwsgi, clock, 0)
    rings(uwsgi, clock, 60)
    assert len(turns) == 2


def test_a_cron_that_is_started_stays_started(app, uwsgi, clock):
    lazy = app.cron_lazy(minute=5)(tick)
    lazy()
    clock.advance(10**9)
    assert (lazy(), len(uwsgi.crons)) == (False, 1)
