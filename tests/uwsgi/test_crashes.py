"""A process dies in the middle of a task: nothing is lost, and nobody else has to wait."""

import os
import signal
import time
from collections import Counter
from contextlib import suppress

import pytest

SOURCE = """
    import ctypes, os, sys, time
    from datetime import timedelta
    from pathlib import Path
    from uwsgi_tasks import task

    @task(executor="spooler")
    def slow(name):
        record("start", name=name)
        gate(name)
        record("done", name=name)

    @task(executor="spooler")
    def good(number):
        record("good", number=number)

    @task(executor="spooler")
    def exits():
        record("exits")
        if not Path("mended").exists():
            os._exit(1)

    @task(executor="spooler")
    def exits_late():
        record("exits_late")
        time.sleep(6)
        os._exit(1)

    @task(executor="spooler")
    def segfaults():
        record("segfaults")
        ctypes.string_at(0)

    @task(executor="spooler")
    def leaves():
        record("leaves")
        sys.exit("enough")

    @task(executor="spooler")
    def each(number, mortal):
        record("each", number=number)
        if number == mortal and (mortal == 7 or not Path("died").exists()):
            Path("died").touch()
            os._exit(1)
"""


def started(server, count):
    return server.wait_for_events("start", count)[-1]["pid"]


def numbers(server, name):
    return Counter(event["number"] for event in server.events(name))


def test_a_task_whose_spooler_is_killed_runs_again(serve):
    server = serve(SOURCE)
    server.call("slow('one')")
    os.kill(started(server, 1), signal.SIGKILL)
    started(server, 2)
    server.open_gate("one")

    server.wait_for_events("done")
    server.wait_for(lambda: not server.waiting())
    assert len(server.events("start")) == 2
    assert len(server.events("done")) == 1
    assert not server.dead()


def test_tasks_that_crash_their_process_hold_nobody_up_and_end_as_dead_letters(serve):
    server = serve(SOURCE)
    (pid,) = server.spooler_pids()
    os.kill(pid, signal.SIGSTOP)
    server.call("exits(), segfaults(), leaves(), good.map(range(5))")
    server.call("for number in range(5, 50): good(number)")
    os.kill(pid, signal.SIGCONT)

    server.wait_for_events("good", 50)
    assert numbers(server, "good") == dict.fromkeys(range(50), 1)
    server.wait_for(lambda: len(server.dead()) == 3)
    server.wait_for(lambda: not server.waiting())
    runs = Counter(event["event"] for event in server.events())
    assert runs["exits"] == runs["segfaults"] == 3
    # sys.exit() is an exception like others: it ends the task, and not its process.
    assert runs["leaves"] == 1
    good_at = max(event["time"] for event in server.events("good"))
    assert good_at < server.events("exits")[-1]["time"]
    assert good_at < server.events("segfaults")[-1]["time"]

    letters = {letter.task: letter for letter in server.dead()}
    assert "process died" in letters["app.exits"].error
    assert "process died" in letters["app.segfaults"].error
    assert "enough" in letters["app.leaves"].error
    for letter in letters.values():
        assert f"{letter.task}[{letter.id}]" in server.log or letter.id in server.log

    # Once its cause is mended, a dead letter is requeued, and runs.
    (server.folder / "mended").touch()
    server.app().dead.requeue(letters["app.exits"].id)
    server.wait_for_events("exits", 4)
    server.wait_for(lambda: not server.waiting())
    assert len(server.dead()) == 2


@pytest.mark.slow
def test_of_several_spoolers_none_runs_for_ever_what_kills_it_after_a_while(serve):
    server = serve(SOURCE, spoolers=2, env={"UWSGI_TASKS_CRASH_LIMIT": "2"})
    id_ = server.call("exits_late().id")

    # Longer than another spooler is kept away from it: it is there before the newcomer.
    (letter,) = server.wait_for(server.dead, 60)
    assert letter.id == id_
    assert "process died" in letter.error
    server.wait_for(lambda: not server.waiting())
    assert len(server.events("exits_late")) == 2


def test_how_many_crashes_are_too_many_is_a_setting(serve):
    server = serve(SOURCE, env={"UWSGI_TASKS_CRASH_LIMIT": "1"})
    id_ = server.call("exits().id")

    (letter,) = server.wait_for(server.dead)
    assert len(server.events("exits")) == 1
    assert "process died" in letter.error
    # All is told of it, though nobody has unpickled it.
    assert (letter.id, letter.task) == (id_, "app.exits")
    assert letter.worker.endswith(" spooler")
    server.app().dead.requeue(id_)
    server.wait_for_events("exits", 2)


def test_a_reload_loses_nothing_and_counts_as_no_crash(serve):
    server = serve(SOURCE, env={"UWSGI_TASKS_CRASH_LIMIT": "1"})
    server.call("slow('one')")
    started(server, 1)
    for number in range(20):
        server.call(f"good({number})")
    server.call("good.using(at=timedelta(seconds=3))(20)")
    for count in (2, 3):
        server.reload()
        started(server, count)
    server.open_gate("one")

    server.wait_for_events("done")
    server.wait_for_events("good", 21)
    server.wait_for(lambda: not server.waiting())
    assert numbers(server, "good") == dict.fromkeys(range(21), 1)
    assert not server.dead()
    assert "its process died" not in server.log


def test_what_waits_when_the_server_stops_runs_when_it_starts_again(serve):
    server = serve(SOURCE, env={"UWSGI_TASKS_CRASH_LIMIT": "1"})
    server.call("slow('one'), good.using(at=timedelta(seconds=1))(1)")
    started(server, 1)
    server.call("good(2)")
    server.stop()
    server.open_gate("one")
    server.start()

    server.wait_for_events("done")
    server.wait_for_events("good", 2)
    assert not server.dead()


def test_a_crash_in_the_middle_of_a_map_runs_only_the_rest_again(serve):
    server = serve(SOURCE)
    server.call("each.map(range(10), [5] * 10)")

    server.wait_for(lambda: 9 in numbers(server, "each"))
    server.wait_for(lambda: not server.waiting())
    assert numbers(server, "each") == {**dict.fromkeys(range(10), 1), 5: 2}
    assert not server.dead()


def test_a_call_of_a_map_that_always_crashes_is_buried_alone(serve):
    server = serve(SOURCE, env={"UWSGI_TASKS_CRASH_LIMIT": "2"})
    server.call("each.map(range(10), [7] * 10)")

    server.wait_for(lambda: 9 in numbers(server, "each"))
    server.wait_for(lambda: not server.waiting())
    assert numbers(server, "each") == {**dict.fromkeys(range(10), 1), 7: 2}
    assert len(server.dead()) == 1


def test_delayed_jobs_survive_spoolers_that_are_killed_while_they_move_them(serve):
    server = serve(SOURCE, spoolers=2, env={"UWSGI_TASKS_CRASH_LIMIT": "50"})
    server.call(
        """
        for number in range(600):
            good.using(at=timedelta(seconds=1 + number / 300))(number)
        """
    )
    kills = 0
    end = time.time() + 4
    while time.time() < end:
        for pid in server.spooler_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                kills += 1

    server.wait_for(lambda: len(numbers(server, "good")) == 600)
    server.wait_for(lambda: not server.waiting() and not server.delayed())
    assert kills > 2
    # One that was just being run runs again; nothing else does.
    assert sum(numbers(server, "good").values()) <= 600 + kills
    assert not server.dead()
