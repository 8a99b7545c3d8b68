"""How often each task ran, how it ended and how long it took is known, whatever has crashed."""

import os
import signal
import time

import pytest

SOURCE = """
    import os, time
    from datetime import timedelta
    from uwsgi_tasks import Retry, default_app, task

    @task(executor="spooler")
    def good(pause=0.0):
        time.sleep(pause)

    @task(executor="spooler", result_ttl=600)
    def kept():
        pass

    @task(executor="mule")
    def in_a_mule():
        pass

    @task(executor="spooler")
    def fails():
        raise LookupError("no such order")

    @task(executor="spooler", retry=Retry(attempts=3))
    def flaky():
        raise ConnectionError("no answer")

    @task(executor="spooler")
    def hold(name):
        record("begun", name=name)
        gate(name)
"""


@pytest.fixture
def server(serve):
    return serve(SOURCE, mules=1, env={"UWSGI_TASKS_CRASH_LIMIT": "1"})


def counted(server, since):
    """Return the runs by task and outcome, as a process outside the server sees them."""
    runs = {}
    for count in server.app().stats(since):
        key = f"{count.task} {count.outcome}"
        runs[key] = runs.get(key, 0) + count.runs
    return runs


def test_each_outcome_is_counted_in_the_minute_in_which_it_happened(server):
    since = time.time()
    server.call("good.map([0.0] * 5), good(0.2), kept(), in_a_mule(), fails(), flaky()")
    server.call("good.using(at=timedelta(hours=1))().cancel()")

    expected = {
        "app.good succeeded": 6,
        "app.good cancelled": 1,
        "app.kept succeeded": 1,
        "app.in_a_mule succeeded": 1,
        "app.fails failed": 1,
        "app.flaky retrying": 2,
        "app.flaky failed": 1,
    }
    server.wait_for(lambda: counted(server, since) == expected)
    counts = server.app().stats(since, task="app.good")
    assert {count.task for count in counts} == {"app.good"}
    good = [count for count in counts if count.outcome == "succeeded"]
    assert max(count.slowest for count in good) >= 0.2
    assert sum(count.seconds for count in good) >= 0.2
    assert all(count.minute % 60 == 0 and count.minute > since - 60 for count in counts)


def test_a_worker_sees_the_same(server):
    server.call("good()")

    server.wait_for(lambda: server.call("sum(one.runs for one in default_app.stats(0))") == 1)


def test_counts_survive_a_spooler_that_is_killed(server):
    server.call("good.map([0.0] * 5), fails()")
    expected = {"app.good succeeded": 5, "app.fails failed": 1}
    # One that is counted, and whose file is still there, runs and counts once more.
    server.wait_for(lambda: counted(server, 0) == expected and not server.waiting())
    (pid,) = server.spooler_pids()
    os.kill(pid, signal.SIGKILL)
    server.wait_for(lambda: server.spooler_pids() != [pid])

    assert counted(server, 0) == expected
    server.call("good()")
    server.wait_for(lambda: counted(server, 0) == {**expected, "app.good succeeded": 6})


def test_counts_survive_a_server_that_is_killed_and_one_that_is_stopped(server):
    server.call("good.map([0.0] * 5), in_a_mule()")
    expected = {"app.good succeeded": 5, "app.in_a_mule succeeded": 1}
    # One that is counted, and whose file is still there, runs and counts once more.
    server.wait_for(lambda: counted(server, 0) == expected and not server.waiting())
    for pid in [*server.spooler_pids(), *server.mule_pids()]:
        os.kill(pid, signal.SIGKILL)
    server.stop()

    assert counted(server, 0) == expected
    server.start()
    server.call("good()")
    server.wait_for(lambda: counted(server, 0) == {**expected, "app.good succeeded": 6})
    # The dead have left nothing behind but what is in the store.
    server.app().stats(0)
    assert len(list((server.spool / "running").glob("*.counts"))) <= 2


def test_a_job_that_crashes_too_often_counts_as_a_failure(server):
    server.call("hold('never')")
    os.kill(server.wait_for_events("begun")[0]["pid"], signal.SIGKILL)
    server.wait_for(server.dead)

    server.wait_for(lambda: counted(server, 0) == {"app.hold failed": 1})


def test_where_the_setting_says_so_nothing_is_counted(serve):
    server = serve(SOURCE, mules=1, env={"UWSGI_TASKS_STATS": "false"})
    server.call("good()")
    server.wait_for(lambda: not server.waiting())

    assert counted(server, 0) == {}
    assert not list((server.spool / "running").glob("*.counts"))
