"""A worker of Redis as a mule of uWSGI: ``mule = uwsgi_tasks.worker:main``."""

import os
import re
import signal

import pytest

from tests.servers import redis_server  # noqa: F401  a fixture
from tests.uwsgi.serving import SPAWNED, CallError, is_alive
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.redis.queues import Queues

WORKER = "uwsgi_tasks.worker:main"
SOURCE = """
    from uwsgi_tasks import get_current_task, task

    @task(executor="redis")
    def note(name):
        record(name)

    def hold_it(name):
        record("held", id=get_current_task().id)
        gate(name)
        record("let go", id=get_current_task().id)

    hold = task(executor="redis", name="app.hold")(hold_it)
    # One whose process dies runs again soon.
    hold_briefly = task(executor="redis", name="app.hold_briefly", lease=5)(hold_it)

    @task(executor="mule")
    def message(name):
        record(name)
"""
JOBS = """
    from stage import record
    from uwsgi_tasks import task

    @task(executor="redis")
    def note(name):
        record(name)
"""


@pytest.fixture
def serve_worker(serve, redis_server):  # noqa: F811  the fixture
    """Start a uWSGI with such a mule."""
    redis_server.flush()

    def start(source=SOURCE, *, worker=WORKER, options=(), mercy=20, threads=2, **given):
        env = {"UWSGI_TASKS_REDIS": redis_server.url, "UWSGI_TASKS_THREADS": str(threads)}
        options = [f"--mule={worker}", "--mule-reload-mercy", str(mercy), *options]
        return serve(source, spoolers=0, options=options, env=env, **given)

    return start


@pytest.fixture
def queues(redis_server):  # noqa: F811  the fixture
    return Queues(Client(redis_server.url), "")


def mules(server):
    """Return all mules that there were, the latest last."""
    return [int(pid) for pid in re.findall(SPAWNED["mule"], server.log)]


def test_it_runs_jobs_as_many_at_a_time_as_the_setting_threads_says(serve_worker, queues):
    server = serve_worker()
    server.call("for _ in range(3): hold('gate')")
    server.wait_for_events("held", 2)
    running = queues.sizes("default").running
    server.open_gate("gate")

    events = server.wait_for_events("let go", 3)
    assert running == 2
    assert {event["where"] for event in events} == {"mule1"}


def test_when_the_server_stops_it_finishes_what_runs(serve_worker, queues):
    server = serve_worker()
    server.call("hold('gate')")
    server.wait_for_events("held")
    os.kill(server.pid, signal.SIGTERM)
    # From then on it waits for its mules alone.
    server.wait_for(lambda: "worker 1 buried" in server.log)
    server.open_gate("gate")
    server.stop()

    assert len(server.events("let go")) == 1
    assert sum(queues.sizes("default")) == 0


def test_ctrl_c_comes_from_the_terminal_and_from_the_master_and_is_no_mishap(serve_worker):
    server = serve_worker()
    server.call("hold('gate')")
    server.wait_for_events("held")
    os.killpg(server.pid, signal.SIGINT)
    server.wait_for(lambda: "killing workers" in server.log)
    server.open_gate("gate")
    server.stop()

    assert len(server.events("let go")) == 1


IGNORING = """
    import signal
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_python_believes_to_be_ignored_is_uwsgis_all_the_same(serve_worker, number):
    # As under nohup, or in the background of a shell's script.
    server = serve_worker(IGNORING + SOURCE)
    server.call("hold('gate')")
    (event,) = server.wait_for_events("held")
    os.kill(server.pid, number)
    server.wait_for(lambda: "buried" in server.log)
    server.open_gate("gate")
    server.wait_for_events("let go")

    assert [one["pid"] for one in server.events("let go")] == [event["pid"]]


def test_a_reload_waits_for_what_runs_and_the_new_mule_goes_on(serve_worker):
    server = serve_worker()
    server.call("hold('gate')")
    server.wait_for_events("held")
    os.kill(server.pid, signal.SIGHUP)
    server.wait_for(lambda: "gracefully killing workers" in server.log)
    server.open_gate("gate")
    server.wait_for(lambda: len(mules(server)) == 2)
    server.call("note('after')")

    (event,) = server.wait_for_events("after")
    assert event["pid"] == mules(server)[1]
    assert [one["pid"] for one in server.events("let go")] == mules(server)[:1]


def test_what_takes_longer_than_the_mercy_is_given_back_and_runs_in_the_next_mule(serve_worker):
    server = serve_worker(mercy=2)
    server.call("hold_briefly('gate')")
    server.wait_for_events("held")
    os.kill(server.pid, signal.SIGHUP)
    events = server.wait_for_events("held", 2)
    server.open_gate("gate")

    assert [event["pid"] for event in events] == mules(server)
    assert [one["pid"] for one in server.wait_for_events("let go")] == mules(server)[1:]
    assert not server.dead()


FORKING = """
    import multiprocessing
    import time
    @task(executor="redis")
    def fork():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
        child.terminate()
        child.join(20)
        record("forked", code=child.exitcode)
        child.kill()
"""


def test_what_a_job_forks_there_ends_as_that_of_any_program(serve_worker):
    server = serve_worker(SOURCE + FORKING)
    server.call("fork()")
    (event,) = server.wait_for_events("forked")
    server.call("note('after')")
    (after,) = server.wait_for_events("after")

    assert (event["code"], after["pid"]) == (-signal.SIGTERM, event["pid"])


STUCK = """
    import ctypes
    import threading
    @task(executor="redis", lease=1)
    def stick():
        libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(lock)
        record("stuck", thread=threading.current_thread().name)
        # No signal ends it.
        libc.pthread_mutex_lock(lock)
"""


def test_c_code_that_takes_longer_than_the_mercy_is_given_back_too(serve_worker):
    # Of one thread, jobs run in the main one, which calls handlers when it is back from there.
    server = serve_worker(SOURCE + STUCK, mercy=2, threads=1)
    server.call("stick()")
    for number in (1, 2, 3):
        events = server.wait_for_events("stuck", number)
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for(lambda number=number: len(mules(server)) > number)
        # A mule has a second for it, then it is killed: one that stands still is too late.
        if "this worker ends while 1 of its jobs run: they are given back" in server.log:
            break
    else:
        pytest.fail(server.log)

    assert {event["thread"] for event in events} == {"MainThread"}


def test_a_mule_that_is_killed_is_started_again_and_its_job_runs_again(serve_worker, queues):
    server = serve_worker()
    server.call("hold_briefly('gate')")
    (before,) = server.wait_for_events("held")
    os.kill(before["pid"], signal.SIGKILL)
    _, after = server.wait_for_events("held", 2)
    server.open_gate("gate")
    server.wait_for(lambda: not sum(queues.sizes("default")))

    assert before["id"] == after["id"]
    assert len(server.events("let go")) == 1


def refused(server, call):
    with pytest.raises(CallError) as caught:
        server.call(call)
    assert caught.value.name == "SubmitError"
    return str(caught.value)


@pytest.mark.slow
def test_a_message_to_a_mule_that_reads_none_is_refused(serve_worker):
    server = serve_worker()
    server.call("note('begun')")
    server.wait_for_events("begun")

    assert "mule 1 runs a program of its own" in refused(server, "message.using(mule=1)('lost')")
    assert "every mule runs a program of its own" in refused(server, "message('lost')")


def test_after_it_was_started_again_it_is_still_known_for_one_that_reads_none(serve_worker):
    server = serve_worker()
    server.call("note('begun')")
    (event,) = server.wait_for_events("begun")
    os.kill(event["pid"], signal.SIGKILL)
    server.wait_for(lambda: not is_alive(event["pid"]))

    assert "mule 1 runs a program of its own" in refused(server, "message.using(mule=1)('lost')")


def test_beside_a_plain_mule_messages_go_to_that_one(serve_worker):
    server = serve_worker(options=["--mules", "1"])
    server.call("note('begun')")
    server.wait_for_events("begun")
    server.call("for _ in range(20): message('heard')")

    assert {event["where"] for event in server.wait_for_events("heard", 20)} == {"mule2"}
    assert "mule 1 runs a program of its own" in refused(server, "message.using(mule=1)('lost')")


CALL = "from uwsgi_tasks.worker import main\nmain()\n"


def test_with_lazy_apps_it_is_a_file_that_imports_the_tasks(serve_worker):
    files = {"jobs.py": JOBS, "worker.py": f"import jobs\n{CALL}"}
    server = serve_worker("import jobs", worker="worker.py", files=files, lazy=True)
    server.call("jobs.note('lazy')")

    assert server.wait_for_events("lazy")[0]["where"] == "mule1"
    assert server.stop() == 0


def test_where_no_task_is_declared_it_names_the_remedy_and_waits(serve_worker):
    files = {"jobs.py": JOBS, "worker.py": CALL}
    server = serve_worker("import jobs", worker="worker.py", files=files, lazy=True)
    server.wait_for(lambda: "this mule runs no jobs: no task is declared" in server.log)

    assert "before it forks" in server.log
    assert is_alive(*mules(server))
    assert server.stop() == 0


def test_without_the_package_redis_it_names_the_remedy_and_waits(serve_worker):
    server = serve_worker(
        "import sys\nsys.modules['redis'] = None\nfrom uwsgi_tasks import task\n\n"
        "@task\ndef plain(): pass\n"
    )

    server.wait_for(lambda: "pip install 'uwsgi_tasks[redis]'" in server.log)
    assert len(mules(server)) == 1
