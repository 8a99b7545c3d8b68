"""While a job with a key waits or runs, the next call with the same key is that job."""

import os
import signal
import subprocess
import sys

import pytest

from tests.uwsgi.serving import EVENTS, ROOT
from tests.uwsgi_coverage import environment
from uwsgi_tasks import State

SOURCE = """
    import os
    from datetime import timedelta
    from pathlib import Path
    from uwsgi_tasks import Retry, get_current_task, task

    def hold(name="same"):
        record("begun", name=name)
        gate(name)
        record("ended", name=name)

    named = task(executor="spooler", unique="the one", name="app.named")(hold)
    by_arguments = task(executor="spooler", unique=True, name="app.by_arguments")(hold)
    by_function = task(
        executor="spooler", unique=lambda name: name.lower(), name="app.by_function"
    )(hold)
    in_a_mule = task(executor="mule", unique=True, name="app.in_a_mule")(hold)

    @task(executor="spooler", unique=True)
    def fails(name):
        record("begun", name=name)
        gate(name)
        raise LookupError("no such order")

    @task(executor="spooler", unique=True, retry=Retry(attempts=3, delay=2))
    def flaky(name):
        record("flaky", name=name, attempt=get_current_task().attempt)
        if get_current_task().attempt < 3:
            raise ConnectionError("no answer")

    @task(executor="spooler", unique=True)
    def exits(name):
        record("begun", name=name)
        os._exit(1)
"""


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE, workers=2, mules=1, env={"UWSGI_TASKS_CRASH_LIMIT": "2"})


def begun(server, name):
    return [event for event in server.events("begun") if event["name"] == name]


def submit(server, call):
    return server.call(f"({call}).id")


def end(server, name):
    server.open_gate(name)
    server.wait_for(lambda: [e for e in server.events("ended") if e["name"] == name])
    server.wait_for(lambda: not server.waiting())


def test_calls_with_the_key_of_a_job_that_runs_are_that_job(server):
    first = submit(server, "named('named')")
    server.wait_for(lambda: begun(server, "named"))

    assert {submit(server, "named('other')") for _ in range(5)} == {first}
    end(server, "named")
    assert not begun(server, "other")
    assert submit(server, "named('named')") != first


def test_calls_with_the_key_of_a_job_that_waits_are_that_job(server):
    submit(server, "by_arguments('before')")
    server.wait_for(lambda: begun(server, "before"))
    ids = {submit(server, "by_arguments('waits')") for _ in range(5)}
    server.open_gate("before")

    assert len(ids) == 1
    end(server, "waits")
    assert len(begun(server, "waits")) == 1


def test_a_key_made_of_the_arguments_tells_calls_apart(server):
    ids = {submit(server, f"by_function('{name}')") for name in ("KEY-A", "key-a", "key-b")}

    assert len(ids) == 2
    server.open_gate("KEY-A")
    end(server, "key-b")


def test_the_key_of_a_job_of_the_future_is_held(server):
    first = submit(server, "by_arguments.using(at=timedelta(hours=1))('future')")

    assert submit(server, "by_arguments('future')") == first
    # Cancelled, it gives the key back.
    assert server.app().job(first).cancel()
    second = submit(server, "by_arguments('future')")
    assert second != first
    end(server, "future")


def test_a_mule_holds_keys_as_well(server):
    first = submit(server, "in_a_mule('mule')")
    server.wait_for(lambda: begun(server, "mule"))

    assert submit(server, "in_a_mule('mule')") == first
    end(server, "mule")
    server.wait_for(lambda: submit(server, "in_a_mule('mule')") != first)


def test_a_job_that_fails_gives_its_key_back(server):
    first = submit(server, "fails('fails')")
    server.wait_for(lambda: begun(server, "fails"))
    assert submit(server, "fails('fails')") == first
    server.open_gate("fails")
    server.wait_for(lambda: server.dead("app.fails"))

    server.wait_for(lambda: submit(server, "fails('fails')") != first)


def test_a_job_holds_its_key_until_its_last_attempt(server):
    first = submit(server, "flaky('flaky')")
    server.wait_for_events("flaky")

    assert submit(server, "flaky('flaky')") == first
    server.wait_for_events("flaky", 3)
    server.wait_for(lambda: submit(server, "flaky('flaky')") != first)


def test_a_job_whose_process_is_killed_holds_its_key_and_runs_again(server):
    first = submit(server, "by_arguments('killed')")
    os.kill(server.wait_for(lambda: begun(server, "killed"))[0]["pid"], signal.SIGKILL)

    assert submit(server, "by_arguments('killed')") == first
    server.wait_for(lambda: len(begun(server, "killed")) == 2)
    assert submit(server, "by_arguments('killed')") == first
    end(server, "killed")
    assert len(begun(server, "killed")) == 2


def test_a_job_that_crashes_too_often_gives_its_key_back(server):
    first = submit(server, "exits('exits')")
    (letter,) = server.wait_for(lambda: server.dead("app.exits"))

    assert letter.id == first
    server.wait_for(lambda: server.app().job(first).state is State.FAILED)
    server.wait_for(lambda: submit(server, "exits('exits')") != first)


def test_of_many_processes_that_submit_at_once_one_does(serve):
    server = serve(SOURCE, mules=1)
    variables = {
        "PYTHONPATH": os.pathsep.join([str(server.folder), str(ROOT)]),
        "STAGE_EVENTS": str(server.folder / EVENTS),
        "UWSGI_TASKS_SPOOLER_DIR": str(server.spool),
    }
    source = "import app\nfor _ in range(20): print(app.named('race').id)"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", source],
            cwd=server.folder,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    outputs = [racer.communicate(timeout=60)[0] for racer in racers]

    assert [racer.returncode for racer in racers] == [0] * 6
    ids = "".join(outputs).split()
    assert len(ids) == 120
    assert len(set(ids)) == 1
    end(server, "race")
    assert len(begun(server, "race")) == 1
