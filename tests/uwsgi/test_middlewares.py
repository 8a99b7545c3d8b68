"""Middlewares, fixtures and hooks, in the processes of a real server."""

import os
import signal

import pytest

SOURCE = """
    import asyncio, os
    from uwsgi_tasks import fixture, get_current_task, middleware, on_submit, task

    @middleware
    def outer(task, call):
        record(f"outer in {task.name}", tenant=task.headers.get("tenant"))
        try:
            return call()
        finally:
            record(f"outer out {task.name}")

    @middleware
    def inner(task, call):
        record(f"inner in {task.name}")
        value = call()
        record(f"inner out {task.name}", value=value)
        return value

    @fixture
    def owner():
        record("open owner")
        yield os.getpid()
        record("close owner")

    @fixture(name="loop")
    async def the_loop():
        record("open loop")
        yield asyncio.get_running_loop()
        record("close loop")

    @on_submit
    def tenant(job):
        return {"tenant": f"tenant of {os.getpid()}"}

    @task(executor="spooler")
    def spooled():
        record("spooled", owner=get_current_task().fixtures.owner)
        return "value"

    @task(executor="mule")
    def muled():
        record("muled", owner=get_current_task().fixtures.owner)
        return "value"

    @task(executor="spooler")
    async def awaited():
        await asyncio.sleep(0)
        record("awaited", same=get_current_task().fixtures.loop is asyncio.get_running_loop())
        return "value"

    @task(executor="mule")
    def held():
        record("held")
        gate("held")
"""
FLAKY = """
    import os
    from pathlib import Path
    from uwsgi_tasks import fixture, task

    @fixture
    def first():
        yield
        record("close first")

    @fixture
    def database():
        record("try")
        if not Path(os.environ["STAGE_GATES"], "database").exists():
            raise ConnectionError("no database")
        yield "open"

    @task(executor="spooler")
    def spooled(number):
        record("spooled", number=number)

    @task(executor="mule")
    def muled(number):
        record("muled", number=number)

    @task(executor="runtime")
    def at_once():
        record("at once")
"""


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE, mules=1)


@pytest.mark.parametrize("name", ["spooled", "muled", "awaited"])
def test_an_attempt_goes_through_the_middlewares_and_back(server, name):
    server.call(f"{name}()")

    server.wait_for_events(f"outer out app.{name}")
    around = [event for event in server.events() if event["event"].endswith((name, f".{name}"))]
    assert [event["event"] for event in around] == [
        f"outer in app.{name}",
        f"inner in app.{name}",
        name,
        f"inner out app.{name}",
        f"outer out app.{name}",
    ]
    assert around[3]["value"] == "value"
    assert len({event["pid"] for event in around}) == 1


def test_each_process_opens_its_own_fixtures_in_their_order_and_once(server):
    server.call("for _ in range(3): spooled(), muled()")

    used = server.wait_for_events("spooled", 3) + server.wait_for_events("muled", 3)
    assert all(event["owner"] == event["pid"] for event in used)
    for pid in {event["pid"] for event in used}:
        mine = [event["event"] for event in server.events() if event["pid"] == pid]
        assert [name for name in mine if name.startswith("open")] == ["open owner", "open loop"]


def test_an_async_task_runs_on_the_loop_of_the_async_fixtures(server):
    server.call("awaited()")

    assert server.wait_for_events("awaited")[0]["same"]


@pytest.mark.parametrize("name", ["spooled", "muled"])
def test_what_a_hook_says_in_the_worker_arrives_in_the_other_process(server, name):
    server.call(f"{name}()")

    event = server.wait_for_events(f"outer in app.{name}")[0]
    assert event["tenant"] == f"tenant of {server.call('os.getpid()')}"
    assert event["where"].startswith(("spooler", "mule"))


def test_a_mule_closes_its_fixtures_in_reverse_when_the_server_stops_and_a_spooler_does_not(serve):
    server = serve(SOURCE, mules=1, options=["--mule-reload-mercy", "30"])
    server.call("spooled()")
    server.call("muled()")
    server.wait_for_events("outer out app.spooled")
    server.wait_for_events("outer out app.muled")

    server.stop()

    ends = [e for e in server.events() if e["event"].startswith("close")]
    assert [(e["event"], e["where"]) for e in ends] == [
        ("close loop", "mule1"),
        ("close owner", "mule1"),
    ]


def test_a_mule_closes_its_fixtures_at_a_reload_even_in_the_midst_of_a_task(serve):
    server = serve(SOURCE, mules=1, options=["--mule-reload-mercy", "30"])
    server.call("held()")
    (held,) = server.wait_for_events("held")

    server.reload()

    events = server.wait_for_events("close owner")
    assert [event["pid"] for event in events] == [held["pid"]]


def test_a_worker_closes_what_its_own_tasks_have_opened(serve):
    server = serve(SOURCE, mules=1, options=["--worker-reload-mercy", "30"])
    server.call("task(executor='runtime', name='x')(lambda: None)()")

    # Not a stop, which a worker that is still at its request does not live to see.
    server.reload()

    server.wait_for_events("close owner")
    assert [event["where"] for event in server.events("close owner")] == ["worker1"]


def test_a_spooler_closes_its_fixtures_when_it_is_asked_to_end(serve):
    server = serve(SOURCE, mules=1)
    server.call("spooled()")
    server.wait_for_events("outer out app.spooled")

    os.kill(server.spooler_pids()[0], signal.SIGINT)

    assert server.wait_for_events("close owner")[0]["where"] == "spooler"


def test_a_job_whose_fixture_cannot_be_opened_waits_in_the_spooler_until_it_can(serve):
    server = serve(FLAKY, spoolers=2, mules=1, env={"UWSGI_TASKS_CRASH_LIMIT": "1"})
    server.call("spooled.map([1, 2])")

    tries = server.wait_for_events("try", 3)
    assert len({event["pid"] for event in tries}) == len(tries)
    assert not server.events("spooled")
    server.open_gate("database")
    events = server.wait_for_events("spooled", 2)

    assert [event["number"] for event in events] == [1, 2]
    server.wait_for(lambda: not server.waiting())
    assert not server.dead()
    assert "died while it ran" not in server.log
    assert "stays in the spooler, and this process ends" in server.log
    assert "fixture database could not be opened: ConnectionError: no database" in server.log
    assert len(server.events("close first")) >= len(tries)


def test_a_message_whose_fixture_cannot_be_opened_is_a_dead_letter_and_a_new_mule_starts(serve):
    server = serve(FLAKY, mules=1)
    before = server.mule_pids()
    server.call("muled.map([1, 2])")

    server.wait_for(lambda: len(server.dead("app.muled")) == 2)
    assert "ConnectionError: no database" in server.dead("app.muled")[0].error
    server.wait_for(lambda: server.mule_pids() != before)
    server.open_gate("database")
    server.call("muled(3)")

    assert [event["number"] for event in server.wait_for_events("muled")] == [3]


def test_a_call_that_runs_at_once_raises_and_the_worker_goes_on(serve):
    server = serve(FLAKY, mules=1)

    failed = server.call(
        "from uwsgi_tasks import FixtureFailed\n"
        "try: at_once()\n"
        "except FixtureFailed as error: record('failed', message=str(error))"
    )
    assert failed is None
    assert "no database" in server.wait_for_events("failed")[0]["message"]
    server.open_gate("database")
    server.call("at_once()")
    assert server.wait_for_events("at once")
