"""Processes that are replaced, and told to end: each test has a parent of its own."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.uwsgi_coverage import environment

ROOT = Path(__file__).parent.parent.parent
PARENT = """
import json, logging, os, signal, sys, threading, time
from uwsgi_tasks.processes import Processes

logging.basicConfig(level=logging.INFO, format="%(message)s")

def say(**words):
    line = json.dumps({"pid": os.getpid(), "at": time.monotonic(), **words})
    os.write(1, line.encode() + b"\\n")

def wait(is_well):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    say(event="waits")
    while True:
        is_well()
        time.sleep(0.01)
"""
END = """
code = herd.run()
say(event="end", code=code, reload=herd.is_to_reload)
"""


class Parent:
    """A parent that runs, what it and its children say, and what is logged."""

    def __init__(self, folder, source):
        script = folder / "parent.py"
        script.write_text(PARENT + textwrap.dedent(source) + END)
        self._said, self._logged = folder / "said", folder / "logged"
        with self._said.open("wb") as said, self._logged.open("wb") as logged:
            self.process = subprocess.Popen(
                [sys.executable, str(script)],
                env=environment(PYTHONPATH=str(ROOT)),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=logged,
                start_new_session=True,
            )

    def said(self, event=None):
        lines = self._said.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [one for one in found if event in (None, one["event"])]

    @property
    def log(self):
        return self._logged.read_text()

    def wait_for(self, event, number=1):
        """Return what was said of *event* as soon as that is so many."""
        deadline = time.monotonic() + 30
        while len(found := self.said(event)) < number:
            assert time.monotonic() < deadline, f"{self.said()}\n{self.log}"
            time.sleep(0.01)
        return found

    def tell(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def end(self):
        """Return how `run` has ended."""
        assert self.process.wait(30) == 0, self.log
        (found,) = self.said("end")
        return found["code"], found["reload"]


@pytest.fixture
def start(tmp_path):
    started = []

    def start(source):
        started.append(Parent(tmp_path, source))
        return started[-1]

    yield start
    for parent in started:
        parent.process.kill()
        parent.process.wait()


def test_there_are_as_many_as_was_said_and_all_end_when_told(start):
    parent = start("herd = Processes(3, wait, 10)")
    children = parent.wait_for("waits", 3)
    parent.tell()

    assert parent.end() == (0, False)
    assert len({child["pid"] for child in children} | {parent.process.pid}) == 4


@pytest.mark.parametrize("code", [0, 3, -9])
def test_one_that_ends_is_replaced(start, code):
    end = "os.kill(os.getpid(), 9)" if code == -9 else f"sys.exit({code})"
    parent = start(f"""
        def once(is_well):
            if not os.path.exists("{{0}}".format(__file__ + ".ran")):
                open(__file__ + ".ran", "w").close()
                say(event="first")
                {end}
            wait(is_well)

        from uwsgi_tasks import processes
        processes._FIRST_PAUSE = 5
        processes._BRIEF = 60
        herd = Processes(1, once, 10)
    """)
    (first,), (second,) = parent.wait_for("first"), parent.wait_for("waits")
    parent.tell()

    assert parent.end() == (0, False)
    assert first["pid"] != second["pid"]
    how = "by signal 9" if code < 0 else f"code {code}"
    assert f"worker process {first['pid']} has ended ({how}); another one" in parent.log
    # One that has not failed is missed at once.
    assert (second["at"] - first["at"] < 4) == (code == 0)


def test_one_that_fails_at_once_is_replaced_with_more_and_more_patience(start):
    parent = start("""
        def fail(is_well):
            say(event="fails")
            raise LookupError("no such thing")

        from uwsgi_tasks import processes
        processes._BRIEF = 60
        herd = Processes(1, fail, 10)
    """)
    one, two, three = (said["at"] for said in parent.wait_for("fails", 3))
    parent.tell()

    assert parent.end() == (0, False)
    assert two - one >= 0.5
    assert three - two >= 1
    assert "LookupError: no such thing" in parent.log


def test_one_that_does_not_end_within_the_grace_is_killed(start):
    parent = start("""
        def stay(is_well):
            signal.signal(signal.SIGTERM, lambda *_: say(event="told"))
            say(event="stays")
            while True:
                time.sleep(1)

        herd = Processes(2, stay, 4)
    """)
    parent.wait_for("stays", 2)
    parent.tell()

    assert parent.end() == (1, False)
    assert len(parent.said("told")) == 2


def test_told_to_end_while_it_reloads_it_ends(start, tmp_path):
    parent = start("""
        def wait_for(end):
            while not os.path.exists(__file__ + end):
                time.sleep(0.01)

        def linger(is_well):
            signal.signal(signal.SIGTERM, lambda *_: (wait_for(".go"), sys.exit(0)))
            open(__file__ + ".ready", "w").close()
            while True:
                time.sleep(1)

        herd = Processes(1, linger, 10)

        def reload():
            wait_for(".ready")
            herd.reload()
            say(event="reloads")

        threading.Thread(target=reload, daemon=True).start()
    """)
    parent.wait_for("reloads")
    parent.tell()
    (tmp_path / "parent.py.go").touch()

    assert parent.end() == (0, False)


def test_told_by_a_thread_to_reload_it_says_so_when_all_have_ended(start):
    parent = start("""
        herd = Processes(2, wait, 10)

        def reload():
            while not herd.are_well:
                time.sleep(0.01)
            herd.reload()

        threading.Thread(target=reload, daemon=True).start()
    """)

    assert parent.end() == (0, True)


def test_it_hears_signals_that_another_thread_gets(start):
    parent = start("""
        signals = {signal.SIGTERM, signal.SIGCHLD}
        # All of them go to a thread of somebody else.
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)

        def freely(is_well):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            wait(is_well)

        herd = Processes(1, freely, 10)
    """)
    (first,) = parent.wait_for("waits")
    os.kill(first["pid"], signal.SIGKILL)
    parent.wait_for("waits", 2)
    parent.tell()

    assert parent.end() == (0, False)


def test_they_are_not_well_while_one_does_not_say_so(start):
    parent = start("""
        def work(is_well):
            try:
                os.close(os.open(__file__ + ".first", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                wait(is_well)
            wait(lambda: None)

        herd = Processes(2, work, 10)

        def look():
            while not any(herd._signs):
                time.sleep(0.01)
            say(event="looks", well=herd.are_well)
            herd.reload()

        threading.Thread(target=look, daemon=True).start()
    """)

    assert parent.wait_for("looks")[0]["well"] is False
    assert parent.end() == (0, True)


def test_a_fork_that_fails_is_tried_again(start):
    parent = start("""
        from uwsgi_tasks import processes
        processes._LONGEST_PAUSE = 0.2
        fork, tries = os.fork, []

        def refuse():
            tries.append(1)
            if len(tries) < 3:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return fork()

        os.fork = refuse
        herd = Processes(1, wait, 10)
    """)
    parent.wait_for("waits")
    parent.tell()

    assert parent.end() == (0, False)
    assert parent.log.count("could not be started: [Errno 11]") == 2


def test_they_show_what_they_do_one_after_the_other(start):
    parent = start("""
        def work(is_well):
            signal.signal(signal.SIGUSR2, lambda *_: say(event="shows"))
            wait(is_well)

        from uwsgi_tasks import processes
        processes._A_SHOW = 1
        tell = processes._tell

        def told(child, number):
            say(event="tells", number=int(number))
            tell(child, number)

        processes._tell = told
        herd = Processes(3, work, 10)
    """)
    parent.wait_for("waits", 3)
    parent.tell(signal.SIGUSR2)
    shown = parent.wait_for("shows", 3)
    parent.tell()

    assert parent.end() == (0, False)
    assert len({one["pid"] for one in shown}) == 3
    # As they were told: when they show it, only they know.
    told = [one["at"] for one in parent.said("tells") if one["number"] == signal.SIGUSR2]
    assert len(told) == 3
    assert all(later - sooner >= 1 for sooner, later in pairwise(told))
