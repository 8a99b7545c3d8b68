"""uWSGI, with its bytes, limits and codes made plain."""

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from tests.fakes import FakeUwsgi
from uwsgi_tasks import server as module
from uwsgi_tasks.errors import ConfigurationError, InvalidTask, SubmitError
from uwsgi_tasks.server import MULE_MESSAGE_LIMIT, Server


def server(**setup):
    return Server(FakeUwsgi(**setup))


NOBODY = Server(None)


def nothing(*_args):
    return None


# --- what it is


def test_outside_uwsgi_there_is_no_server():
    assert Server().present is False


def test_a_process_without_a_server_has_no_role():
    assert (NOBODY.role, NOBODY.has_master, NOBODY.incarnation) == ("", False, b"")


def test_a_process_without_a_server_has_neither_spoolers_nor_mules():
    assert (NOBODY.spoolers, NOBODY.has_mules, NOBODY.spooler_ordered) == ((), False, False)


@pytest.mark.parametrize("role", ["master", "worker", "mule", "spooler"])
@pytest.mark.parametrize("spoolers", [(), ("/spool",)])
def test_a_process_knows_its_role(role, spoolers):
    if role == "spooler" and not spoolers:
        spoolers = ("/other",)
    assert server(role=role, spoolers=spoolers).role == role


def test_two_runs_of_a_server_are_told_apart():
    uwsgi = FakeUwsgi()
    before = Server(uwsgi).incarnation
    uwsgi.started_on += 1
    assert Server(uwsgi).incarnation != before


def test_a_server_without_its_master_is_refused_with_the_remedy():
    with pytest.raises(ConfigurationError, match="add 'master = true'"):
        server(master=False).require_master()


@pytest.mark.parametrize("given", [NOBODY, server()])
def test_a_server_with_its_master_or_none_at_all_is_in_order(given):
    assert given.require_master() is None


# --- spoolers


def test_a_directory_with_several_processes_is_named_once():
    assert server(spoolers=("/a", "/a", "/b")).spoolers == ("/a", "/b")


def test_the_processes_of_a_directory_are_counted():
    assert server(spoolers=("/a", "/a", "/b")).spooler_processes("/a") == 2


def test_a_spooler_knows_its_own_directory():
    uwsgi = FakeUwsgi(spoolers=("/a", "/a", "/b"), role="spooler")
    uwsgi.serving = 2
    assert Server(uwsgi).own_spooler() == "/b"


@pytest.mark.parametrize("ordered", [True, False])
def test_the_order_of_priorities_is_known(ordered):
    assert server(ordered=ordered).spooler_ordered is ordered


@pytest.mark.parametrize(("spoolers", "expected"), [(("/a",), 1), ((), None)])
def test_the_frequency_is_set_where_there_is_a_spooler(spoolers, expected):
    uwsgi = FakeUwsgi(spoolers=spoolers)
    Server(uwsgi).set_spooler_frequency(1)
    assert uwsgi.frequency == expected


@pytest.mark.parametrize(
    ("setup", "expected"),
    [({}, 30), ({"spooler_frequency": b"7"}, 7), ({"spooler_freq": b"8"}, 8)],
)
def test_the_frequency_of_the_configuration_is_known(setup, expected):
    assert server(spoolers=("/a",), **setup).spooler_frequency == expected


def test_a_spooler_can_wake_itself(wakes):
    server(spoolers=("/a",)).wake_this_spooler()
    assert wakes == [signal.SIGUSR1]


class Sleeper:
    """A process that ends when it is woken."""

    def __init__(self):
        ready, done = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
            os.write(done, b"x")
            while True:
                signal.pause()
        os.read(ready, 1)
        os.close(ready)
        os.close(done)

    def woken(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 7

    def asleep(self):
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == -signal.SIGKILL


def served(*processes, spoolers=("/a", "/a", "/b")):
    """A server whose spoolers have these numbers."""
    uwsgi = FakeUwsgi(spoolers=spoolers)
    uwsgi.spooler_pids = lambda: [*processes]
    return Server(uwsgi)


def test_all_spoolers_of_a_directory_are_woken_and_no_others():
    first, second, other = Sleeper(), Sleeper(), Sleeper()
    served(first.pid, second.pid, other.pid).wake_spoolers("/a")
    assert (first.woken(), second.woken(), other.asleep()) == (True, True, True)


def test_a_spooler_does_not_wake_itself_among_the_others(wakes):
    served(os.getpid(), 0, 0).wake_spoolers("/a")
    assert wakes == []


def test_a_spooler_that_has_just_ended_is_no_fault():
    gone = Sleeper()
    gone.asleep()
    assert served(gone.pid, 0, 0).wake_spoolers("/a") is None


def test_the_numbers_of_the_spoolers_are_asked_for_once_a_second(monkeypatch):
    now, asked = time.monotonic(), []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    found = served(0, 0, 0)
    found._uwsgi.spooler_pids = lambda: asked.append(1) or [0, 0, 0]
    for _ in range(10):
        found.wake_spoolers("/a")
    before = len(asked)
    now += 1.5
    found.wake_spoolers("/a")
    assert (before, len(asked)) == (1, 2)


@pytest.mark.parametrize("role", ["spooler", "mule"])
@pytest.mark.parametrize(("seconds", "expected"), [(30, 40), (0.5, 10), (None, 0)])
def test_uwsgi_ends_a_process_that_hears_no_alarm(role, seconds, expected):
    uwsgi = FakeUwsgi(spoolers=("/a",), role=role)
    Server(uwsgi).end_after(seconds)
    assert uwsgi.harakiri == expected


@pytest.mark.parametrize("role", ["worker", "master"])
def test_a_process_that_serves_requests_is_not_ended(role):
    uwsgi = FakeUwsgi(spoolers=("/a",), role=role)
    Server(uwsgi).end_after(30)
    assert not hasattr(uwsgi, "harakiri")


# --- how a process ends


@pytest.mark.parametrize(
    ("role", "opt", "expected"),
    [
        ("worker", {}, 59),
        ("worker", {"worker_reload_mercy": b"10"}, 9),
        ("worker", {"worker_reload_mercy": b"1", "mule_reload_mercy": b"20"}, 0.5),
        ("mule", {"worker_reload_mercy": b"1", "mule_reload_mercy": b"20"}, 19),
        ("mule", {}, 59),
        # Nobody kills it, or nobody asks it before.
        ("worker", {"master": False}, float("inf")),
        ("master", {"worker_reload_mercy": b"10"}, float("inf")),
    ],
)
def test_a_process_that_was_told_to_end_has_a_little_less_than_the_mercy_of_uwsgi(
    role, opt, expected
):
    assert server(role=role, **opt).mercy == expected


def test_outside_uwsgi_nobody_kills_a_process_that_ends():
    assert NOBODY.mercy == float("inf")


def test_what_was_there_is_called_after_ours_when_a_process_ends():
    uwsgi, called = FakeUwsgi(), []
    uwsgi.atexit = lambda: called.append("theirs")
    Server(uwsgi).at_exit(lambda: called.append("ours"))
    uwsgi.atexit()
    assert called == ["ours", "theirs"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_was_there_is_called_even_if_ours_fails_when_a_process_ends():
    uwsgi, called = FakeUwsgi(), []
    uwsgi.atexit = lambda: called.append("theirs")
    Server(uwsgi).at_exit(lambda: 1 / 0)
    uwsgi.atexit()
    assert called == ["theirs"]


def test_what_the_main_thread_has_locked_for_itself_is_asked_for_by_another_one():
    # uWSGI calls from a signal's handler: the same thread would see what is half done.
    uwsgi, threads = FakeUwsgi(), []
    Server(uwsgi).at_exit(lambda: threads.append(threading.current_thread()))
    uwsgi.atexit()
    assert threads != [threading.current_thread()]


@pytest.mark.parametrize(("has", "lacks"), [(1, False), (0, True)])
def test_a_server_knows_whether_threads_run(has, lacks):
    uwsgi = FakeUwsgi()
    uwsgi.has_threads = has
    assert (Server(uwsgi).has_threads, Server(uwsgi).lacks_threads) == (bool(has), lacks)


def test_outside_uwsgi_threads_run():
    assert NOBODY.lacks_threads is False


# --- mules


@pytest.mark.parametrize(
    ("opt", "mules", "plain"),
    [
        ({}, False, False),
        ({"mules": 2}, True, True),
        ({"mule": True}, True, True),
        ({"mule": b"program.py"}, True, False),
        ({"mule": b"program.py", "mules": 1}, True, True),
    ],
)
def test_a_mule_that_waits_for_messages_is_told_from_one_that_does_not(opt, mules, plain):
    found = server(**opt)
    assert (found.has_mules, found.has_plain_mules) == (mules, plain)


def with_mules(*started, **setup):
    """A server, some of whose mules have loaded our hooks, as a worker sees it."""
    uwsgi = FakeUwsgi(**{"mules": 2, **setup})
    found = Server(uwsgi)
    with uwsgi.being("master"):
        found.install(nothing, nothing, nothing)
    for number in started:
        uwsgi.fork(found, "mule", number)
    return found, uwsgi


def test_a_mule_has_started_once_it_has_our_hook():
    found, _ = with_mules(2)
    started = [found.mule_started(number) for number in (0, 1, 2, 300)]
    assert started == [True, False, True, False]


def test_no_mule_has_started_before_the_first():
    found, _ = with_mules()
    assert found.mule_started() is False


@pytest.mark.parametrize(("target", "sent_to"), [(None, 0), (0, 0), (2, 2), ("farm1", b"farm1")])
def test_a_message_goes_to_its_target(target, sent_to):
    found, uwsgi = with_mules(1, 2, farms=("farm1",))
    found.mule_message(b"job", target)
    assert list(uwsgi.messages) == [(b"job", sent_to)]


def test_a_message_of_the_size_that_arrives_is_sent_whole():
    found, uwsgi = with_mules(1)
    found.mule_message(b"x" * MULE_MESSAGE_LIMIT, None)
    assert len(uwsgi.messages[0][0]) == 65536


def test_a_message_that_would_be_cut_is_refused_with_the_remedy():
    found, _ = with_mules(1)
    with pytest.raises(SubmitError, match=r"65537 bytes .* use the spooler"):
        found.mule_message(b"x" * (MULE_MESSAGE_LIMIT + 1), None)


def test_a_full_queue_is_refused_with_the_remedy():
    found, uwsgi = with_mules(1)
    uwsgi.room = 0
    with pytest.raises(SubmitError, match=r"full: add mules, .*mule-msg-size.*spooler"):
        found.mule_message(b"job", None)


def test_a_farm_that_does_not_exist_is_refused_with_the_remedy():
    found, _ = with_mules(1)
    with pytest.raises(SubmitError, match=r"mule 'x': .*farm = x:1,2"):
        found.mule_message(b"job", "x")


@pytest.mark.parametrize("number", [3, 255, 256, 100_000])
def test_a_mule_that_does_not_exist_is_refused_with_the_remedy(number):
    found, _ = with_mules(1, 2)
    with pytest.raises(SubmitError, match=f"no mule {number}: add 'mules = {number}'"):
        found.mule_message(b"job", number)


@pytest.mark.parametrize("number", [3, 256, 100_000])
def test_a_mule_that_does_not_exist_is_refused_in_the_master_too(number):
    found, uwsgi = with_mules()
    with uwsgi.being("master"), pytest.raises(SubmitError, match=f"no mule {number}"):
        found.mule_message(b"job", number)


def test_mules_that_do_not_know_us_are_refused_with_the_remedy():
    found, _ = with_mules()
    with pytest.raises(SubmitError, match=r"no mule has loaded uwsgi_tasks: .*'shared-import'"):
        found.mule_message(b"job", None)


def with_a_program_in_mule_1(*others):
    found, uwsgi = with_mules(1, *others)
    with uwsgi.being("mule", 1):
        found.take_no_messages()
    return found, uwsgi


def test_a_mule_with_a_program_of_its_own_is_refused_with_the_remedy():
    found, _ = with_a_program_in_mule_1()
    with pytest.raises(SubmitError, match=r"mule 1 runs a program of its own.*'mules = 1'"):
        found.mule_message(b"job", 1)
    with pytest.raises(SubmitError, match=r"every mule runs a program of its own.*'mules = 1'"):
        found.mule_message(b"job", None)


def test_a_mule_with_a_program_that_was_started_again_runs_it_again():
    found, uwsgi = with_a_program_in_mule_1()
    uwsgi.fork(found, "mule", 1)
    assert not found.mule_started(1)


def test_beside_a_mule_with_a_program_the_others_take_messages():
    found, uwsgi = with_a_program_in_mule_1(2)
    found.mule_message(b"job", None)
    found.mule_message(b"job", 2)
    assert [target for _, target in uwsgi.messages] == [0, 2]


def test_outside_of_a_server_there_is_no_mule_to_be_noted():
    NOBODY.take_no_messages()
    assert not NOBODY.mule_started(1)


def test_the_master_sends_before_its_mules_are_there():
    found, uwsgi = with_mules()
    with uwsgi.being("master"):
        found.mule_message(b"job", 1)
    assert len(uwsgi.messages) == 1


def test_a_starting_server_is_given_time_until_its_mules_are_there(sleeping_here):
    found, uwsgi = with_mules()
    uwsgi.started_on = int(time.time())
    sleeping_here(lambda _seconds: uwsgi.fork(found, "mule", 1))
    found.mule_message(b"job", None)
    assert len(uwsgi.messages) == 1


# --- signals


@pytest.mark.parametrize(
    "target",
    [
        *("", "worker", "workers", "active-workers", "worker0", "worker2", "mule", "mules"),
        *("mule0", "mule2", "spooler", "subscribed", "farm1", "farm_reports"),
    ],
)
def test_every_target_of_uwsgi_is_taken(target):
    given = server(spoolers=("/a",), mules=2, farms=("reports",))
    assert given.check_target(target) is None


@pytest.mark.parametrize("target", ["spoolers", "workr", "worker-1", "mule 1", "farm_", "x"])
@pytest.mark.parametrize("given", [NOBODY, server()])
def test_a_target_that_uwsgi_does_not_know_is_refused_with_the_choices(given, target):
    with pytest.raises(InvalidTask, match=f"no signal target '{target}': use .*workerN"):
        given.check_target(target)


def test_a_farm_whose_name_is_too_long_for_uwsgi_is_refused():
    with pytest.raises(InvalidTask, match="no signal target"):
        server(farms=("x",)).check_target("farm_" + "x" * 59)


@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        ("worker3", "this server has 2 workers"),
        ("mule", "add 'mules = 1'"),
        ("mules", "add 'mules = 1'"),
        ("spooler", "add 'spooler = DIRECTORY'"),
        ("farm1", "add 'farm = NAME:1,2'"),
        ("farm_x", "add 'farm = NAME:1,2'"),
    ],
)
def test_a_target_that_this_server_lacks_is_refused_with_the_remedy(target, remedy):
    with pytest.raises(InvalidTask, match=remedy):
        server().check_target(target)


@pytest.mark.parametrize("target", ["worker99", "mule", "spooler", "farm1"])
def test_without_a_server_any_target_of_uwsgi_will_do(target):
    assert NOBODY.check_target(target) is None


def test_a_signal_gets_the_first_free_number():
    uwsgi = FakeUwsgi()
    uwsgi.signals[0] = uwsgi.signals[1] = ("", nothing)
    assert Server(uwsgi).register_signal("mule", nothing) == 2
    assert uwsgi.signals[2] == ("mule", nothing)


@pytest.mark.parametrize("number", [0, 17, 255])
def test_a_signal_gets_the_number_that_was_asked_for(number):
    assert server().register_signal("", nothing, number) == number


@pytest.mark.parametrize("number", [-1, 256])
def test_a_number_that_is_no_byte_is_refused(number):
    with pytest.raises(InvalidTask, match="from 0 to 255"):
        server().register_signal("", nothing, number)


def test_a_number_that_is_taken_is_refused():
    found = server()
    found.register_signal("", nothing, 5)
    with pytest.raises(InvalidTask, match="refused signal 5"):
        found.register_signal("", nothing, 5)


def test_one_signal_too_many_is_refused_with_the_remedy():
    found = server()
    for _ in range(256):
        found.register_signal("", nothing)
    with pytest.raises(InvalidTask, match=r"all 256 signals .* fewer timers and crons"):
        found.register_signal("", nothing)


def test_a_timer_is_told_its_signal_and_its_seconds():
    uwsgi = FakeUwsgi()
    Server(uwsgi).add_timer(3, 5)
    assert uwsgi.timers == [(3, 5)]


def test_a_cron_has_the_order_of_uwsgi():
    uwsgi = FakeUwsgi()
    Server(uwsgi).add_cron(3, (0, 12, -1, -1, 7))
    assert uwsgi.crons == [(3, 0, 12, -1, -1, 7)]


def test_one_timer_too_many_is_refused_with_the_remedy():
    found = server()
    for number in range(64):
        found.add_timer(number, 5)
    with pytest.raises(InvalidTask, match=r"room for 64 timers.*declare fewer"):
        found.add_timer(64, 5)


def test_one_cron_too_many_is_refused_with_the_remedy():
    found = server()
    for number in range(64):
        found.add_cron(number, (-1,) * 5)
    with pytest.raises(InvalidTask, match=r"room for 64 crons.*declare fewer"):
        found.add_cron(64, (-1,) * 5)


# --- callbacks


class Hooks:
    """What our callbacks got, each with the one that was there before."""

    def __init__(self):
        self.got = []
        self.forks = 0

    def spool(self, env, theirs):
        self.got.append(("spool", env, theirs))
        return -2

    def mule(self, message, theirs):
        self.got.append(("mule", message, theirs))

    def fork(self):
        self.forks += 1

    def install(self, found):
        found.install(self.spool, self.mule, self.fork)
        return self


def test_without_a_server_nothing_is_installed():
    hooks = Hooks().install(NOBODY)
    assert hooks.forks == 0


def test_jobs_of_spoolers_and_mules_come_to_our_hooks():
    uwsgi = FakeUwsgi(role="master")
    hooks = Hooks().install(Server(uwsgi))
    answer = uwsgi.spooler({"body": b"job"})
    uwsgi.mule_msg_hook(b"message")
    assert (answer, hooks.got) == (
        -2,
        [("spool", {"body": b"job"}, None), ("mule", b"message", None)],
    )


def test_the_callbacks_that_were_there_are_handed_over():
    uwsgi = FakeUwsgi(role="master")
    uwsgi.spooler, uwsgi.mule_msg_hook = print, repr
    hooks = Hooks().install(Server(uwsgi))
    uwsgi.spooler({})
    uwsgi.mule_msg_hook(b"")
    assert [theirs for *_, theirs in hooks.got] == [print, repr]


def test_callbacks_that_come_after_ours_are_chained_when_we_ask_again():
    uwsgi = FakeUwsgi(role="master")
    found = Server(uwsgi)
    hooks = Hooks().install(found)
    uwsgi.spooler = print
    hooks.install(found)
    uwsgi.spooler({})
    assert hooks.got == [("spool", {}, print)]


def test_callbacks_that_come_between_the_import_and_the_fork_are_chained():
    uwsgi = FakeUwsgi(role="master", spoolers=("/a",))
    found = Server(uwsgi)
    hooks = Hooks().install(found)
    uwsgi.spooler = print
    uwsgi.fork(found, "spooler")
    uwsgi.spooler({})
    assert hooks.got == [("spool", {}, print)]


def test_asking_twice_does_not_chain_us_to_ourselves():
    uwsgi = FakeUwsgi(role="master")
    found = Server(uwsgi)
    hooks = Hooks().install(found)
    hooks.install(found)
    uwsgi.spooler({})
    assert hooks.got == [("spool", {}, None)]


def test_after_a_fork_the_work_is_taken_up_once():
    uwsgi = FakeUwsgi(role="master")
    hooks = Hooks().install(Server(uwsgi))
    before = hooks.forks
    uwsgi.role = "worker"
    uwsgi.post_fork_hook()
    uwsgi.post_fork_hook()
    assert (before, hooks.forks) == (0, 1)


def test_what_is_imported_after_the_fork_takes_up_its_work_at_once():
    hooks = Hooks().install(server(role="spooler", spoolers=("/a",)))
    assert hooks.forks == 1


def test_the_hook_that_was_there_is_called_after_ours():
    uwsgi = FakeUwsgi(role="master")
    calls = []
    uwsgi.post_fork_hook = lambda: calls.append("theirs")
    Server(uwsgi).install(nothing, nothing, lambda: calls.append("ours"))
    uwsgi.role = "mule"
    uwsgi.post_fork_hook()
    assert calls == ["ours", "theirs"]


def test_uwsgidecorators_is_imported_before_it_could_put_itself_over_us(monkeypatch):
    uwsgi = FakeUwsgi(role="master")

    def imported(name):
        assert name == "uwsgidecorators"
        uwsgi.spooler = print

    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=imported))
    hooks = Hooks().install(Server(uwsgi))
    uwsgi.spooler({})
    assert hooks.got == [("spool", {}, print)]


def test_callbacks_that_were_written_by_hand_stay_before_those_of_uwsgidecorators(monkeypatch):
    uwsgi = FakeUwsgi(role="master")
    uwsgi.spooler = repr

    def imported(_name):
        uwsgi.spooler = uwsgi.mule_msg_hook = print

    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=imported))
    hooks = Hooks().install(Server(uwsgi))
    uwsgi.spooler({})
    uwsgi.mule_msg_hook(b"")
    assert [theirs for *_, theirs in hooks.got] == [repr, print]


def test_uwsgidecorators_that_are_there_are_not_imported_again(monkeypatch):
    monkeypatch.setitem(sys.modules, "uwsgidecorators", SimpleNamespace())
    monkeypatch.setattr(module, "importlib", None)
    assert Hooks().install(server(role="master")).forks == 0


def test_a_uwsgidecorators_that_fails_is_no_fault(monkeypatch):
    def imported(_name):
        raise Exception  # noqa: TRY002  it does that

    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=imported))
    uwsgi = FakeUwsgi(role="master")
    hooks = Hooks().install(Server(uwsgi))
    uwsgi.spooler({})
    assert len(hooks.got) == 1


def test_a_mule_beyond_our_table_is_no_fault():
    found, uwsgi = with_mules()
    uwsgi.fork(found, "mule", 256)
    assert found.mule_started() is False


def test_a_mule_in_another_process_is_seen():
    found, uwsgi = with_mules()
    child = os.fork()
    if child == 0:
        uwsgi.fork(found, "mule", 2)
        os._exit(0)
    os.waitpid(child, 0)
    assert found.mule_started(2)


# --- what else it is


@pytest.mark.parametrize(
    ("setup", "number", "allowed"),
    [
        ({"mules": 2}, 2, True),
        ({"mules": 2}, 3, False),
        # Of 'mule', which may be repeated, only the last one is seen.
        ({"mule": True}, 9, True),
        ({"mules": 1, "mule": True}, 9, True),
        ({}, 9, True),
    ],
)
def test_a_mule_that_certainly_is_not_there_is_refused(setup, number, allowed):
    found = server(**setup)
    if allowed:
        assert found.check_mule(number) is None
    else:
        with pytest.raises(InvalidTask, match=r"no mule 3: this server has 2; add 'mules = 3'"):
            found.check_mule(number)


@pytest.mark.parametrize(
    ("found", "expected"),
    [(NOBODY, False), (server(), False), (server(spooler_external=b"/other"), True)],
)
def test_spoolers_of_another_server_are_known(found, expected):
    assert found.has_external_spoolers is expected


def test_two_objects_may_stand_for_one_uwsgi():
    uwsgi = FakeUwsgi()
    assert Server(uwsgi).shares(Server(uwsgi)) is True
    assert Server(uwsgi).shares(server()) is False
