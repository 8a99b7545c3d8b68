"""What takes too long is ended, and what has waited too long does not begin."""

import time

import pytest

from tests.uwsgi.serving import is_alive
from uwsgi_tasks import State, TaskCancelled, TaskTimeout

SOURCE = """
    import asyncio, signal, time
    from datetime import timedelta
    from uwsgi_tasks import Retry, get_current_task, task

    def asleep(name):
        record("begun", name=name)
        time.sleep(600)

    def busy(name):
        record("begun", name=name)
        while True:
            pass

    async def coroutine(name):
        record("begun", name=name)
        await asyncio.sleep(600)

    def in_time(name):
        record("begun", name=name)
        return name

    def deaf(name):
        # As C code is that does not come back.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        record("begun", name=name)
        time.sleep(600)

    for func in (asleep, busy, coroutine, in_time, deaf):
        for executor in ("spooler", "mule"):
            name = f"{executor}_{func.__name__}"
            declare = task(executor=executor, timeout=1, result_ttl=600, name=f"app.{name}")
            globals()[name] = declare(func)

    @task(executor="spooler", timeout=0.5, retry=Retry(attempts=3, on=TimeoutError))
    def tried_again(name):
        record("begun", name=name, attempt=get_current_task().attempt)
        time.sleep(600)

    @task(executor="mule", timeout=0.5, retry=Retry(attempts=3, on=TimeoutError))
    def tried_again_in_a_mule(name):
        record("begun", name=name, attempt=get_current_task().attempt)
        time.sleep(600)

    @task(executor="spooler", timeout=0.5, retry=Retry(attempts=3, on=ConnectionError))
    def not_tried_again(name):
        record("begun", name=name)
        time.sleep(600)

    @task(executor="spooler", timeout=2)
    def each(number):
        record("each", number=number)
        if number == 1:
            time.sleep(600)

    def pauses(name):
        record("begun", name=name)
        # Interrupted by an alarm, it would end in an exception.
        for _ in range(15):
            time.sleep(0.1)
        record("ended", name=name)

    spooler_pauses = task(executor="spooler", name="app.spooler_pauses")(pauses)
    mule_pauses = task(executor="mule", name="app.mule_pauses")(pauses)

    @task(executor="spooler", result_ttl=600)
    def has_an_alarm_of_its_own(name):
        heard = []
        before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        while not heard:
            time.sleep(0.01)
        signal.signal(signal.SIGALRM, before)
        return len(heard)

    def hold(name):
        record("begun", name=name)
        gate(name)

    spooler_hold = task(executor="spooler", name="app.spooler_hold")(hold)
    mule_hold = task(executor="mule", name="app.mule_hold")(hold)

    def dated(name):
        record("dated", name=name)

    spooler_dated = task(executor="spooler", result_ttl=600, name="app.spooler_dated")(dated)
    mule_dated = task(executor="mule", result_ttl=600, name="app.mule_dated")(dated)
"""
BOTH = pytest.mark.parametrize("executor", ["spooler", "mule"])


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE, mules=1)


@pytest.fixture(scope="module")
def app(server):
    return server.app()


def submitted(server, app, call):
    return app.job(server.call(f"({call}).id"))


def begun(server, name):
    return [event for event in server.events("begun") if event["name"] == name]


@BOTH
@pytest.mark.parametrize("task", ["asleep", "busy", "coroutine"])
def test_an_attempt_ends_by_an_exception_when_its_time_is_over(server, app, executor, task):
    name = f"{executor}_{task}"
    handle = submitted(server, app, f"{name}('{name}')")

    with pytest.raises(TaskTimeout, match="timeout of 1 s"):
        handle.result(30)
    assert handle.state is State.FAILED
    (letter,) = server.wait_for(lambda: server.dead(f"app.{name}"))
    assert "TaskTimeout" in letter.error
    # Its process lives, and runs the next one.
    after = submitted(server, app, f"{executor}_in_time('after {name}')")
    assert after.result(30) == f"after {name}"
    assert begun(server, name)[0]["pid"] == begun(server, f"after {name}")[0]["pid"]


@pytest.mark.parametrize("task", ["tried_again", "tried_again_in_a_mule"])
def test_what_took_too_long_is_tried_again_as_the_rules_say(server, task):
    server.call(f"{task}('{task}')")

    (letter,) = server.wait_for(lambda: server.dead(f"app.{task}"))
    assert letter.attempt == 3
    assert [event["attempt"] for event in begun(server, task)] == [1, 2, 3]


def test_what_took_too_long_is_not_tried_again_where_the_rules_do_not_name_it(server):
    server.call("not_tried_again('once')")

    assert server.wait_for(lambda: server.dead("app.not_tried_again"))[0].attempt == 1
    assert len(begun(server, "once")) == 1


def test_each_call_of_a_map_has_the_whole_time(server):
    server.call("each.map(range(4))")

    server.wait_for_events("each", 4)
    server.wait_for(lambda: not server.waiting())
    assert len(server.dead("app.each")) == 1


@BOTH
def test_the_alarm_of_one_job_does_not_ring_in_the_next(server, app, executor):
    server.call(f"{executor}_in_time('quick'), {executor}_pauses('{executor} pauses')")

    server.wait_for(
        lambda: [e for e in server.events("ended") if e["name"] == f"{executor} pauses"]
    )
    assert len(begun(server, f"{executor} pauses")) == 1
    assert not server.dead(f"app.{executor}_pauses")


def test_a_task_may_have_an_alarm_of_its_own_and_leaves_ours_in_place(server, app):
    assert submitted(server, app, "has_an_alarm_of_its_own('own')").result(30) == 1

    with pytest.raises(TaskTimeout):
        submitted(server, app, "spooler_asleep('after its own')").result(30)


@pytest.mark.slow
def test_a_spooler_whose_task_hears_no_alarm_is_ended_and_that_counts_as_a_crash(serve):
    server = serve(SOURCE, mules=1, env={"UWSGI_TASKS_CRASH_LIMIT": "2"})
    app = server.app()
    handle = submitted(server, app, "spooler_deaf('deaf')")
    server.wait_for(lambda: begun(server, "deaf"))
    behind = submitted(server, app, "spooler_in_time('behind')")

    # The timeout, uWSGI's grace of ten seconds, and the looks that its master takes.
    assert behind.wait(25)
    assert not is_alive(begun(server, "deaf")[0]["pid"])
    server.wait_for(lambda: server.dead("app.spooler_deaf"), 40)
    (letter,) = server.dead()
    assert letter.id == handle.id
    assert "process died" in letter.error
    assert len(begun(server, "deaf")) == 2
    server.wait_for(lambda: handle.state is State.FAILED)


@pytest.mark.slow
def test_a_mule_whose_task_hears_no_alarm_is_ended_and_the_next_job_runs(serve):
    server = serve(SOURCE, mules=1)
    app = server.app()
    server.call("mule_deaf('deaf')")
    server.wait_for(lambda: begun(server, "deaf"))
    behind = submitted(server, app, "mule_in_time('behind')")

    assert behind.wait(25)
    assert not is_alive(begun(server, "deaf")[0]["pid"])
    # At most once: that is the promise of a mule.
    assert len(begun(server, "deaf")) == 1


@pytest.mark.slow
@BOTH
def test_the_end_that_uwsgi_was_asked_for_is_taken_back_when_the_task_was_in_time(server, executor):
    server.call(f"{executor}_in_time('{executor} first'), {executor}_hold('{executor} long')")
    server.wait_for(lambda: begun(server, f"{executor} long"))
    began = time.monotonic()
    # Longer than the timeout of the first one and uWSGI's grace.
    server.wait_for(lambda: time.monotonic() > began + 14)
    server.open_gate(f"{executor} long")

    server.call(f"{executor}_in_time('{executor} last')")
    server.wait_for(lambda: begun(server, f"{executor} last"))
    assert len(begun(server, f"{executor} long")) == 1
    assert (
        begun(server, f"{executor} last")[0]["pid"] == begun(server, f"{executor} long")[0]["pid"]
    )


@BOTH
def test_a_job_that_has_expired_before_it_could_begin_is_dropped(server, app, executor):
    server.call(f"{executor}_hold('{executor} expires')")
    server.wait_for(lambda: begun(server, f"{executor} expires"))
    expires_at = time.time() + 0.5
    task = f"{executor}_dated"
    late = submitted(server, app, f"{task}.using(expires={expires_at})('{executor} late')")
    early = submitted(server, app, f"{task}.using(expires=timedelta(hours=1))('{executor} early')")
    server.wait_for(lambda: time.time() > expires_at)
    server.open_gate(f"{executor} expires")

    assert early.wait(30)
    with pytest.raises(TaskCancelled, match="expired"):
        late.result(30)
    assert f"{executor} late" not in [event["name"] for event in server.events("dated")]
    assert f"{executor} early" in [event["name"] for event in server.events("dated")]
    assert not server.dead(f"app.{task}")
