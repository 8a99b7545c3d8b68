"""A job that is not wanted any more: one that waits never runs, one that runs is stopped."""

import os
import signal

import pytest

from tests.uwsgi.serving import is_alive
from uwsgi_tasks import ResultNotKept, State, TaskCancelled

SOURCE = """
    import asyncio, os, signal, time
    from datetime import timedelta
    from uwsgi_tasks import TaskCancelled, get_current_task, task

    kept = task(executor="spooler", result_ttl=600)
    in_a_mule = task(executor="mule", result_ttl=600)

    def hold(name):
        record("begun", name=name)
        gate(name)
        record("passed", name=name)

    def until_cancelled(name):
        record("begun", name=name)
        while not get_current_task().cancelled:
            time.sleep(0.01)
        record("stopped", name=name)

    def in_python(name):
        try:
            record("begun", name=name)
            while True:
                pass
        except TaskCancelled:
            record("killed", name=name)
            raise

    def asleep(name):
        try:
            record("begun", name=name)
            time.sleep(600)
        except TaskCancelled:
            record("killed", name=name)
            raise

    async def coroutine(name):
        try:
            record("begun", name=name)
            await asyncio.sleep(600)
        finally:
            record("killed", name=name)

    def deaf(name):
        # As C code is that does not come back.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        record("begun", name=name)
        time.sleep(600)

    def insistent(name):
        record("begun", name=name)
        while True:
            try:
                time.sleep(600)
            except BaseException:
                record("caught", name=name)

    @task(executor="spooler")
    def plain(name):
        hold(name)

    @task(executor="spooler")
    def plain_deaf(name):
        deaf(name)

    @kept
    def sometimes_deaf(name):
        if name == "deaf":
            deaf(name)
        record("begun", name=name)

    @kept
    def note(name):
        record("note", name=name)

    @in_a_mule
    def note_in_a_mule(name):
        record("note", name=name)

    for func in (hold, until_cancelled, in_python, asleep, coroutine, deaf, insistent):
        for kind, executor in (("spooled", "spooler"), ("muled", "mule")):
            name = f"{kind}_{func.__name__}"
            declare = task(executor=executor, result_ttl=600, name=f"app.{name}")
            globals()[name] = declare(func)
"""


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE, mules=1)


@pytest.fixture(scope="module")
def app(server):
    return server.app()


def submitted(server, app, call):
    return app.job(server.call(f"({call}).id"))


def begun(server, app, task, name):
    """Submit a call of *task*, and return its handle once it runs."""
    handle = submitted(server, app, f"{task}({name!r})")
    server.wait_for(lambda: [e for e in server.events("begun") if e["name"] == name])
    return handle


def recorded(server, event):
    return [each["name"] for each in server.events(event)]


def process_of(server, name):
    return next(each["pid"] for each in server.events("begun") if each["name"] == name)


# ---- what waits


def test_a_job_that_waits_is_cancelled_for_certain(server, app):
    begun(server, app, "plain", "before")
    unwanted = submitted(server, app, "note('unwanted')")
    wanted = submitted(server, app, "note('wanted')")

    assert unwanted.cancel()
    assert unwanted.state is State.CANCELLED
    server.open_gate("before")
    assert wanted.wait(30)
    with pytest.raises(TaskCancelled):
        unwanted.result()
    assert "unwanted" not in recorded(server, "note")


def test_a_job_of_the_future_is_cancelled_for_certain(server, app):
    # Its time may come before it is cancelled: nobody is free to run it then.
    begun(server, app, "plain", "before the future")
    handle = submitted(server, app, "note.using(at=timedelta(seconds=1))('delayed')")
    other = submitted(server, app, "note.using(at=timedelta(seconds=1.1))('delayed, and wanted')")

    assert handle.cancel()
    assert handle.state is State.CANCELLED
    server.open_gate("before the future")
    assert other.wait(30)
    assert "delayed" not in recorded(server, "note")


def test_one_call_of_a_map_is_cancelled_and_the_others_run(server, app):
    begun(server, app, "plain", "before the map")
    ids = server.call("[handle.id for handle in note.map(['one', 'two', 'three'])]")

    assert app.job(ids[1]).cancel()
    server.open_gate("before the map")
    assert app.job(ids[2]).wait(30)
    assert "two" not in recorded(server, "note")
    assert [app.job(one).state for one in ids] == ["succeeded", "cancelled", "succeeded"]


def test_a_call_of_a_map_of_which_an_earlier_one_runs_is_cancelled(server, app):
    ids = server.call("[handle.id for handle in spooled_hold.map(['m-1', 'm-2', 'm-3'])]")
    server.wait_for(lambda: "m-1" in recorded(server, "begun"))

    assert app.job(ids[1]).cancel()
    for name in ("m-1", "m-3"):
        server.open_gate(name)
    assert app.job(ids[2]).wait(30)
    assert "m-2" not in recorded(server, "begun")
    assert app.job(ids[1]).state is State.CANCELLED


def test_a_job_that_waits_for_a_mule_is_cancelled_for_certain(server, app):
    begun(server, app, "muled_hold", "mule")
    handle = submitted(server, app, "note_in_a_mule('unwanted by the mule')")
    last = submitted(server, app, "note_in_a_mule('wanted by the mule')")

    assert handle.cancel()
    server.open_gate("mule")
    assert last.wait(30)
    assert handle.state is State.CANCELLED
    assert "unwanted by the mule" not in recorded(server, "note")


def test_a_job_that_has_ended_cannot_be_cancelled(server, app):
    handle = submitted(server, app, "note('ended')")
    assert handle.wait(30)

    assert not handle.cancel()
    assert not handle.cancel(kill=True)
    assert handle.state is State.SUCCEEDED


def test_a_job_that_never_was_cannot_be_cancelled(app):
    assert not app.job("0123456789abcdef-1").cancel(kill=True)


# ---- what runs


@pytest.mark.parametrize("kind", ["spooled", "muled"])
def test_a_job_that_runs_is_asked_to_stop_and_sees_it(server, app, kind):
    handle = begun(server, app, f"{kind}_until_cancelled", f"{kind} asked")

    assert not handle.cancel()
    assert handle.wait(30)
    assert f"{kind} asked" in recorded(server, "stopped")


@pytest.mark.parametrize("kind", ["spooled", "muled"])
@pytest.mark.parametrize("task", ["in_python", "asleep", "coroutine"])
def test_kill_ends_a_task_by_an_exception_and_spares_its_process(server, app, kind, task):
    name = f"{kind} {task}"
    handle = begun(server, app, f"{kind}_{task}", name)

    assert handle.cancel(kill=True)
    assert handle.state is State.CANCELLED
    # A coroutine hears of it on its loop, beside the job's end.
    server.wait_for(lambda: name in recorded(server, "killed"))
    assert is_alive(process_of(server, name))
    after = begun(server, app, f"{kind}_hold", f"after {name}")
    server.open_gate(f"after {name}")
    assert after.wait(30)
    assert process_of(server, f"after {name}") == process_of(server, name)
    assert recorded(server, "begun").count(name) == 1
    assert not server.dead()


def test_kill_ends_the_call_of_a_map_that_runs_and_no_other(server, app):
    ids = server.call("[handle.id for handle in spooled_asleep.map(['k-1', 'k-2'])]")
    server.wait_for(lambda: "k-1" in recorded(server, "begun"))

    assert app.job(ids[0]).cancel(kill=True)
    server.wait_for(lambda: "k-2" in recorded(server, "begun"))
    assert app.job(ids[1]).cancel(kill=True)
    assert [app.job(one).state for one in ids] == ["cancelled", "cancelled"]
    # Both have heard of it, so that their process could live on.
    assert [name for name in recorded(server, "killed") if name in {"k-1", "k-2"}] == ["k-1", "k-2"]
    assert is_alive(process_of(server, "k-1"))


@pytest.mark.slow
@pytest.mark.parametrize("spoolers", [1, 2])
@pytest.mark.parametrize("task", ["spooled_deaf", "spooled_insistent", "plain_deaf"])
def test_kill_ends_the_process_of_a_task_that_hears_nothing(serve, task, spoolers):
    server = serve(SOURCE, mules=1, spoolers=spoolers, env={"UWSGI_TASKS_CRASH_LIMIT": "1"})
    app = server.app()
    handle = begun(server, app, task, "stuck")
    behind = submitted(server, app, "note('behind')")

    # The second spooler is at rest, and would take the job over as soon as nobody holds it.
    assert handle.cancel(kill=True)
    assert not is_alive(process_of(server, "stuck"))
    assert behind.wait(30)
    server.wait_for(lambda: not server.waiting())
    assert recorded(server, "begun").count("stuck") == 1
    assert "behind" in recorded(server, "note")
    assert not server.dead()
    if task == "plain_deaf":
        with pytest.raises(ResultNotKept):
            assert handle.state
    else:
        assert handle.state is State.CANCELLED


@pytest.mark.slow
def test_kill_ends_the_process_of_a_deaf_call_of_a_map_and_the_others_run(serve):
    server = serve(SOURCE, mules=1, env={"UWSGI_TASKS_CRASH_LIMIT": "1"})
    app = server.app()
    ids = server.call("[handle.id for handle in sometimes_deaf.map(['first', 'deaf', 'last'])]")
    server.wait_for(lambda: "deaf" in recorded(server, "begun"))

    app.job(ids[1]).cancel(kill=True)
    assert app.job(ids[2]).wait(30)
    assert [app.job(one).state for one in ids] == ["succeeded", "cancelled", "succeeded"]
    assert recorded(server, "begun").count("deaf") == 1
    assert recorded(server, "begun").count("first") == 1
    assert not server.dead()


# ---- who is innocent


@pytest.mark.parametrize("kind", ["spooler", "mule"])
def test_an_alarm_that_is_meant_for_nobody_harms_nobody(server, app, kind):
    (pid,) = server.pids(kind)
    task = {"spooler": "spooled_hold", "mule": "muled_hold"}[kind]
    os.kill(pid, signal.SIGALRM)
    handle = begun(server, app, task, f"innocent {kind}")
    os.kill(pid, signal.SIGALRM)
    server.open_gate(f"innocent {kind}")

    assert handle.wait(30)
    assert handle.state is State.SUCCEEDED
    assert server.pids(kind) == [pid]
    assert not server.dead()


def test_an_alarm_for_a_job_that_has_just_ended_does_not_reach_the_next_one(server, app):
    first = begun(server, app, "plain", "just ended")
    second = submitted(server, app, "spooled_hold('the next')")
    server.open_gate("just ended")
    server.wait_for(lambda: "the next" in recorded(server, "begun"))

    assert not first.cancel(kill=True)
    server.open_gate("the next")
    assert second.wait(30)
    assert second.state is State.SUCCEEDED
    assert recorded(server, "begun").count("the next") == 1


def test_jobs_beside_the_one_that_is_killed_are_left_alone(serve):
    server = serve(SOURCE, mules=1, spoolers=3)
    app = server.app()
    others = [begun(server, app, "spooled_hold", f"beside {number}") for number in range(2)]
    handle = begun(server, app, "spooled_in_python", "the one")

    assert handle.cancel(kill=True)
    for number, other in enumerate(others):
        server.open_gate(f"beside {number}")
        assert other.wait(30)
        assert other.state is State.SUCCEEDED
    assert len(recorded(server, "begun")) == 3


def test_a_spooler_that_was_given_no_hook_hears_the_alarm_all_the_same(serve):
    server = serve(
        SOURCE
        + """
    import uwsgi

    def theirs():
        pass

    uwsgi.post_fork_hook = theirs
    """,
        mules=1,
    )
    app = server.app()
    handle = begun(server, app, "spooled_in_python", "unhooked")
    assert handle.cancel(kill=True)

    assert is_alive(process_of(server, "unhooked"))
    assert handle.state is State.CANCELLED
    assert submitted(server, app, "note('after')").wait(30)
