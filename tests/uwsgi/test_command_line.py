"""The command line beside a real uWSGI, as its user would type it."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from tests.uwsgi.serving import EVENTS, ROOT
from tests.uwsgi_coverage import environment

SOURCE = """
    import os, time
    from pathlib import Path
    from uwsgi_tasks import get_current_task, task

    @task(executor="spooler", result_ttl=600)
    def add(one, two):
        record("added", one=one, two=two)
        return one + two

    @task(executor="spooler", result_ttl=600)
    def pass_gate(name):
        get_current_task().progress(3, 4)
        record("begun", name=name)
        gate(name)
        record("passed", name=name)

    @task(executor="spooler", result_ttl=600)
    def until_cancelled():
        record("begun", name="until_cancelled")
        while not get_current_task().cancelled:
            time.sleep(0.01)
        record("stopped")
        gate("go on")

    @task(executor="spooler", result_ttl=600)
    def read(name):
        record("read", name=name)
        return Path(name).read_text()
"""


class Terminal:
    """A person's shell in the folder of a server."""

    def __init__(self, server):
        self.server = server

    def start(self, *words, **options):
        path = os.pathsep.join([str(self.server.folder), str(ROOT)])
        return subprocess.Popen(
            [sys.executable, "-m", "uwsgi_tasks", *map(str, words)],
            cwd=self.server.folder,
            env=environment(
                PYTHONPATH=path,
                STAGE_EVENTS=str(self.server.folder / EVENTS),
                UWSGI_TASKS_SPOOLER_DIR=str(self.server.spool),
            ),
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                **options,
            },
        )

    def __call__(self, *words, code=0):
        """Run a command line to its end, and give what it printed."""
        process = self.start(*words)
        try:
            out, error = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == code, f"{words}\n{out}\n{error}\n{self.server.log[-3000:]}"
        assert "Traceback" not in error
        return out + error

    def ask(self, *words, code=0):
        return json.loads(self("--json", *words, code=code))

    def begin(self, name):
        """Submit a job that waits at a gate, and return its id once it runs."""
        one = self("submit", "app:pass_gate", f'"{name}"').strip()
        self.server.wait_for(lambda: self.has_begun(name))
        return one

    def has_begun(self, name):
        return [event for event in self.server.events("begun") if event["name"] == name]

    def states(self):
        return {job["id"]: job["state"] for job in self.ask("ls")["jobs"]}


@pytest.fixture(scope="module")
def busy(serve_module):
    """A server that the tests of this module share, each with gates of its own."""
    return serve_module(SOURCE)


@pytest.fixture
def shell(busy):
    return Terminal(busy)


def test_a_call_runs_in_the_spooler_and_its_result_comes_back(shell):
    assert shell("submit", "app:add", "--wait", "1", "two=2") == "3\n"

    assert shell.server.events("added")[-1]["where"] == "spooler"


def test_what_is_known_of_a_job_that_has_ended(shell):
    one = shell("submit", "app.add", "20", "22").strip()

    assert shell("wait", one, "--timeout", "30s") == f"{one} succeeded\n"

    found = shell.ask("show", one)
    assert (found["state"], found["result"], found["task"]) == ("succeeded", 42, "app.add")
    assert found["submitted_at"] <= found["started_at"] <= found["ended_at"]
    assert "42" in shell("show", one)


def test_a_running_job_is_listed_with_who_runs_it_and_how_far_it_is(shell):
    one = shell.begin("listed")

    (job,) = [job for job in shell.ask("ls")["jobs"] if job["id"] == one]
    look = shell.ask("watch", "--count", "1")

    assert (job["state"], job["progress"]) == ("running", {"done": 3, "total": 4})
    assert job["worker"]
    assert one in [job["id"] for job in look["running"]]
    assert "3/4" in shell("ls", "--state", "running")
    assert shell("wait", one, "--until", "running").startswith(one)
    assert "has not ended" in shell("wait", one, "--timeout", "100ms", code=3)

    shell.server.open_gate("listed")
    shell("wait", one, "--timeout", "30s")


def test_a_job_that_waits_is_cancelled_for_good(shell):
    first = shell.begin("before")
    second = shell("submit", "app:add", "7", "7").strip()
    assert shell.states()[second] == "queued"

    assert shell("cancel", second) == f"{second} cancelled\n"

    shell.server.open_gate("before")
    shell("wait", first, "--timeout", "30s")
    assert shell("submit", "app:add", "--wait", "1", "1") == "2\n"
    assert 7 not in [event["one"] for event in shell.server.events("added")]
    assert second not in shell.states()
    assert "cancelled" in shell("wait", second, code=1)


def test_a_job_that_runs_is_asked_to_stop(shell):
    one = shell("submit", "app:until_cancelled").strip()
    shell.server.wait_for(lambda: shell.has_begun("until_cancelled"))

    assert "was asked to stop" in shell("cancel", one, code=1)

    shell.server.wait_for_events("stopped")
    shell.server.open_gate("go on")
    shell("wait", one, "--timeout", "30s")
    assert "it has succeeded" in shell("cancel", one, code=1)


def test_a_job_that_runs_is_stopped(shell):
    one = shell.begin("never")

    assert shell("cancel", "--kill", one) == f"{one} cancelled\n"

    assert "cancelled" in shell("wait", one, "--timeout", "30s", code=1)
    assert shell("submit", "app:add", "--wait", "2", "2", "--timeout", "30s") == "4\n"
    assert one not in shell.states()


def test_a_dead_letter_is_shown_and_runs_again(shell):
    missing = shell.server.folder / "missing.txt"
    one = shell("submit", "app:read", "--text", missing).strip()
    assert "FileNotFoundError" in shell("wait", one, "--timeout", "30s", code=1)

    assert one in shell("dead", "ls")
    shown = shell.ask("dead", "show", one)
    assert shown["arguments"]["args"] == [str(missing)]
    assert "Traceback" in shown["traceback"]

    missing.write_text("here")
    assert shell.ask("dead", "requeue", one)["requeued"] == [one]
    shell.server.wait_for(lambda: len(shell.server.events("read")) == 2)
    shell.server.wait_for(lambda: one not in shell("dead", "ls"))


def test_dead_letters_are_removed(shell):
    ids = [shell("submit", "app:read", "--text", f"/none/{number}").strip() for number in range(3)]
    for one in ids:
        shell("wait", one, "--timeout", "30s", code=1)

    assert "say --yes" in shell("dead", "rm", "--all", code=2)
    # As under a program that has closed its standard input.
    deaf = shell.start("dead", "rm", "--all", stdin=None, preexec_fn=lambda: os.close(0))
    assert "say --yes" in deaf.communicate(timeout=60)[1]
    assert shell.ask("dead", "rm", ids[0])["removed"] == [ids[0]]
    assert set(shell.ask("dead", "rm", "--task", "app.read", "--yes")["removed"]) >= {*ids[1:]}
    assert shell.ask("dead", "ls") == {"dead": [], "count": 0}
    assert "no such" in shell("dead", "requeue", "--all", code=1)


def test_runs_are_counted(shell):
    shell("submit", "app:add", "--wait", "1", "1")

    def counted():
        stats = shell.ask("stats")["stats"]
        return [one for one in stats if (one["task"], one["outcome"]) == ("app.add", "succeeded")]

    (found,) = shell.server.wait_for(counted)
    assert found["runs"] > 0
    assert "app.add" in shell("stats")
    assert "deleted" in shell("purge")


def test_it_works_before_uwsgi_starts_and_after_it_has_ended(serve):
    server = serve(SOURCE)
    shell = Terminal(server)
    one = shell.begin("last")
    server.stop()

    two, three = (shell("submit", "app:add", str(number), "1").strip() for number in (40, 50))

    assert {one, two, three} <= set(shell.states())
    assert "(40, 1)" in shell("show", two)
    shell("cancel", three)
    assert "has not ended" in shell("wait", two, "--timeout", "100ms", code=3)

    server.open_gate("last")
    server.start()
    shell("wait", two, "--timeout", "30s")
    shell("wait", one, "--timeout", "30s")
    assert [event["one"] for event in server.events("added")] == [40]
    server.wait_for(lambda: shell.states() == {})


@contextmanager
def interrupted(process):
    """Send it Ctrl-C, and once more if that is not heard: a destructor may swallow one."""
    process.send_signal(signal.SIGINT)
    again = threading.Timer(15, process.send_signal, [signal.SIGINT])
    again.start()
    try:
        yield
    finally:
        again.cancel()


def test_the_live_view_ends_on_ctrl_c(shell):
    one = shell.begin("live")
    ours, theirs = pty.openpty()
    try:
        process = shell.start("watch", "--interval", "100ms", stdout=theirs, stdin=theirs)
        os.close(theirs)
        seen = ""
        while one not in seen:
            seen += os.read(ours, 65536).decode()
        with interrupted(process):
            # A terminal holds 4 KB: who does not read on would block it.
            while process.poll() is None:
                try:
                    os.read(ours, 65536)
                except OSError:
                    break

            assert process.wait(30) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        os.close(ours)
        shell.server.open_gate("live")
    shell("wait", one, "--timeout", "30s")


def test_looks_in_a_pipe_follow_each_other_until_ctrl_c(shell):
    process = shell.start("watch", "--interval", "50ms", "--json")
    try:
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        with interrupted(process):
            _, error = process.communicate(timeout=30)
    finally:
        process.kill()

    assert (process.returncode, error) == (0, "")
    assert looks[0]["at"] < looks[1]["at"] < looks[2]["at"]
    assert looks[0]["trouble"] is None
