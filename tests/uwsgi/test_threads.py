"""Jobs on threads of uWSGI's own workers: whose they are, and what becomes of them at the end."""

import os
import signal
import socket
import time
from itertools import count, pairwise

import pytest

from tests.uwsgi.serving import CallError, is_alive

SOURCE = """
    import asyncio, os, threading, time
    from datetime import timedelta
    import uwsgi
    from uwsgi_tasks import Retry, default_app, get_current_task, task

    @task(executor="thread")
    def note(name, **more):
        record(name, thread=threading.current_thread().name, main=os.getpid(), **more)
        return f"{name} was noted"

    @task(executor="thread")
    def hold(name):
        record("held")
        gate(name)
        record("let go")

    @task(executor="thread", retry=Retry(attempts=3, delay=0.3))
    def flaky():
        current = get_current_task()
        record("flaky", attempt=current.attempt, at=current.scheduled_at.timestamp())
        if current.attempt < 3:
            raise ConnectionError("no answer")
        return "answered"

    @task(executor="thread", retry=Retry(attempts=3, delay=3600))
    def patient():
        record("patient")
        gate("patient")
        raise ConnectionError("no answer")

    @task(executor="thread")
    async def coroutine():
        await asyncio.sleep(0.01)
        record("coroutine", name=get_current_task().name)
        return "awaited"

    @task(executor="thread", result_ttl=600)
    def kept(name):
        record("kept")
        gate(name)
        return "kept"

    def rest():
        # From a thread: whoever serves the request that asks is busy.
        def look():
            while any(worker["status"] != b"idle" for worker in uwsgi.workers()):
                time.sleep(0.01)
            record("at rest")

        threading.Thread(target=look, daemon=True).start()

    def here(name):
        note(name, asked=os.getpid())

    def in_an_hour(name):
        note.using(at=timedelta(hours=1))(name)
"""
AUTO = """
    import os, threading
    from uwsgi_tasks import task

    @task
    def anywhere(name):
        record(name, thread=threading.current_thread().name)
        return f"{name} ran"
"""
MERCIFUL = ["--worker-reload-mercy", "30"]


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE, spoolers=0, workers=3)


@pytest.fixture
def merciful(serve):
    """A server that waits for what its workers have to finish."""
    return serve(SOURCE, spoolers=0, options=MERCIFUL)


def of_workers(server, name):
    """Submit jobs until each worker was asked; return their events, by the worker asked."""
    workers = set(server.pids("worker"))

    def asked():
        server.call(f"here({name!r})")
        return {event["asked"] for event in server.events(name)} >= workers

    server.wait_for(asked)
    return server.events(name)


def submit_hold(server, name="go"):
    server.call(f"hold({name!r})")
    server.wait_for_events("held")


def come_to_rest(server):
    """Wait until no worker serves a request: one that does is not asked to end in good order."""
    count = len(server.events("at rest"))
    server.call("rest()")
    server.wait_for_events("at rest", count + 1)


def letters(server):
    return {letter.task: letter.error for letter in server.dead()}


# ---- whose they are ---------------------------------------------------------------------------


def test_each_worker_runs_what_it_was_asked_on_threads_of_its_own(server):
    events = of_workers(server, "own")

    assert all(event["pid"] == event["asked"] for event in events)
    assert {event["pid"] for event in events} == set(server.pids("worker"))
    assert all(event["thread"].startswith("uwsgi_tasks thread ") for event in events)


def test_a_worker_has_as_many_threads_as_the_setting_says(serve):
    server = serve(SOURCE, spoolers=0, env={"UWSGI_TASKS_THREADS": "2"})
    server.call("for _ in range(3): hold('go')")
    server.wait_for_events("held", 2)
    names = server.call("sorted(thread.name for thread in threading.enumerate())")

    assert [name for name in names if name.startswith("uwsgi_tasks thread ")] == [
        "uwsgi_tasks thread 1",
        "uwsgi_tasks thread 2",
    ]
    assert len(server.events("held")) == 2
    server.open_gate("go")
    server.wait_for_events("let go", 3)


def test_the_call_does_not_wait_for_its_job(server):
    server.call("hold('unhurried')")
    server.wait_for_events("held")

    assert not server.events("let go")
    server.open_gate("unhurried")
    assert server.wait_for_events("let go")


def test_a_handle_has_the_value_in_the_worker_that_submitted(server):
    assert server.call("note('value').result(timeout=20)") == "value was noted"


def test_a_coroutine_function_runs(server):
    assert server.call("coroutine().result(timeout=20)") == "awaited"
    assert server.events("coroutine")[0]["name"] == "app.coroutine"


def test_a_job_of_the_future_runs_at_its_time_while_its_worker_is_idle(server):
    before = time.time()
    server.call("note.using(at=timedelta(seconds=0.5))('later')")

    (event,) = server.wait_for_events("later")
    assert event["time"] >= before + 0.5


def test_retries_come_after_their_delay_in_the_same_worker(server):
    server.call("flaky()")

    events = server.wait_for_events("flaky", 3)
    assert [event["attempt"] for event in events] == [1, 2, 3]
    assert len({event["pid"] for event in events}) == 1
    for before, after in pairwise(events):
        assert after["at"] >= before["time"] + 0.3
        assert after["time"] >= after["at"]


def test_a_task_that_finally_fails_is_kept(server):
    server.call("task(executor='thread', name='app.fails')(lambda: 1 / 0)()")

    server.wait_for(lambda: server.dead("app.fails"))
    (letter,) = server.dead("app.fails")
    assert (letter.error, letter.executor) == ("ZeroDivisionError: division by zero", "thread")


def test_a_result_that_is_kept_is_seen_by_every_worker(server):
    id_ = server.call("(lambda handle: handle.id)(kept('open'))")
    server.wait_for_events("kept")
    server.open_gate("open")
    # The store knows nothing of it until it has ended.
    server.wait_for(lambda: server.store.get(id_))
    source = f"record('seen', asked=os.getpid(), value=default_app.job({id_!r}).result(timeout=20))"

    def all_have():
        server.call(source)
        return len({event["asked"] for event in server.events("seen")}) == 3

    server.wait_for(all_have)
    assert {event["value"] for event in server.events("seen")} == {"kept"}


# ---- set-ups ----------------------------------------------------------------------------------


def test_a_job_that_the_master_submits_is_refused_with_the_remedy(serve):
    server = serve(
        SOURCE
        + """
    try:
        note("too early")
    except Exception as error:
        refusal = type(error).__name__, str(error)
    """,
        spoolers=0,
        workers=2,
    )
    name, text = server.call("refusal")

    assert name == "SubmitError"
    assert "master process" in text
    assert "submit the job from a worker, or use the spooler" in text
    events = of_workers(server, "in time")
    assert all(event["pid"] == event["asked"] for event in events)
    assert not server.events("too early")


def test_with_lazy_apps_even_what_is_submitted_at_the_import_runs_in_each_worker(serve):
    server = serve(
        SOURCE + "\n    note('imported', asked=os.getpid())\n", spoolers=0, workers=2, lazy=True
    )

    events = server.wait_for_events("imported", 2)
    assert {event["pid"] for event in events} == set(server.pids("worker"))
    assert all(event["pid"] == event["asked"] for event in of_workers(server, "lazy"))


def test_without_a_master_threads_run(serve):
    server = serve(SOURCE, spoolers=0, master=False)
    assert server.call("note('alone').result(timeout=20)") == "alone was noted"
    server.call("in_an_hour('tomorrow')")
    come_to_rest(server)
    server.stop()
    assert list(letters(server)) == ["app.note"]


def test_workers_with_threads_of_their_own_submit_from_all_of_them(serve):
    server = serve(
        SOURCE
        + """
    def together(count):
        def submit():
            for _ in range(50):
                here("threads")
        threads = [threading.Thread(target=submit) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    """,
        spoolers=0,
        workers=2,
        options=["--threads", "4"],
    )
    server.call("together(8)")

    server.wait_for_events("threads", 400)
    assert all(event["pid"] == event["asked"] for event in of_workers(server, "threads"))


def test_no_configuration_of_this_uwsgi_turns_threads_off(serve, tmp_path):
    # Older ones do so unless they are told 'enable-threads': has_threads says what holds.
    ini = tmp_path / "off.ini"
    ini.write_text("[uwsgi]\nenable-threads = false\n")
    server = serve(SOURCE, spoolers=0, options=["--ini", str(ini)])

    assert server.call("uwsgi.has_threads") == 1
    server.call("here('on')")
    assert server.wait_for_events("on")


def test_where_there_are_no_threads_the_task_is_refused_with_the_remedy(serve):
    server = serve("import uwsgi\nuwsgi.has_threads = 0\n" + "from uwsgi_tasks import task\n")

    with pytest.raises(CallError, match=r"InvalidTask.*enable-threads = true"):
        server.call("task(executor='thread')(lambda: None)")


def test_auto_falls_back_to_threads_where_the_setting_says_so(serve):
    server = serve(AUTO, spoolers=0, env={"UWSGI_TASKS_FALLBACK": "thread"})

    assert server.call("anywhere('behind').result(timeout=20)") == "behind ran"
    (event,) = server.events("behind")
    assert (event["where"], event["thread"][:11]) == ("worker1", "uwsgi_tasks")
    assert "tasks run at once" not in server.log


def test_auto_goes_to_the_spooler_where_there_is_one_whatever_the_fallback(serve):
    server = serve(AUTO, env={"UWSGI_TASKS_FALLBACK": "thread"})
    server.call("anywhere('spooled')")

    assert server.wait_for_events("spooled")[0]["where"] == "spooler"


def test_what_the_master_submits_under_auto_runs_at_once_where_threads_are_the_fallback(serve):
    server = serve(
        AUTO + "\n    early = anywhere('early').result()\n",
        spoolers=0,
        env={"UWSGI_TASKS_FALLBACK": "thread"},
    )

    assert server.call("early") == "early ran"
    assert server.events("early")[0]["where"] == "master"


# ---- the end ----------------------------------------------------------------------------------


def test_on_stop_a_worker_finishes_what_is_due_and_keeps_the_rest(merciful):
    server = merciful
    server.call("in_an_hour('tomorrow')")
    # More than there are threads: some of them have not begun.
    server.call("for _ in range(6): hold('go')")
    server.wait_for_events("held", 4)
    come_to_rest(server)
    os.kill(server.pid, signal.SIGTERM)
    # Before the others are done: uWSGI may kill this worker sooner than they are.
    server.wait_for(lambda: letters(server).get("app.note"))
    assert not server.events("let go")
    server.open_gate("go")

    assert server.stop() == 0
    assert len(server.events("let go")) == 6
    assert letters(server) == {"app.note": letters(server)["app.note"]}
    assert "its process ended before it could run: requeue it" in letters(server)["app.note"]
    assert not server.events("tomorrow")


def test_on_reload_a_worker_finishes_what_is_due_and_keeps_the_rest(merciful):
    server = merciful
    server.call("in_an_hour('tomorrow')")
    submit_hold(server)
    os.kill(server.pid, signal.SIGHUP)
    server.wait_for(lambda: letters(server).get("app.note"))
    assert not server.events("let go")
    server.open_gate("go")

    server.wait_for_events("let go")
    server.wait_for(lambda: server.log.count("spawned uWSGI worker 1") == 2)
    assert server.call("note('anew').result(timeout=20)") == "anew was noted"
    assert list(letters(server)) == ["app.note"]
    (letter,) = server.dead("app.note")
    server.call(f"default_app.dead.requeue({letter.id!r}, at=timedelta(seconds=0.1))")
    (event,) = server.wait_for_events("tomorrow")
    assert event["pid"] == server.pids("worker")[-1]


def test_on_stop_a_retry_that_would_wait_is_kept_and_nobody_waits_for_it(merciful):
    server = merciful
    server.call("in_an_hour('tomorrow'), patient()")
    server.wait_for_events("patient")
    come_to_rest(server)
    os.kill(server.pid, signal.SIGTERM)
    # It has begun to end.
    server.wait_for(lambda: server.dead("app.note"))
    server.open_gate("patient")

    assert server.stop() == 0
    assert len(server.events("patient")) == 1
    (letter,) = server.dead("app.patient")
    assert (letter.attempt, "requeue it" in letter.error) == (2, True)


def test_what_a_worker_cannot_finish_in_its_grace_is_kept(serve):
    server = serve(SOURCE, spoolers=0, options=MERCIFUL, env={"UWSGI_TASKS_THREAD_GRACE": "0.2"})
    submit_hold(server, "never")
    come_to_rest(server)

    assert server.stop() == 0
    assert letters(server) == {"app.hold": "TasksError: its process ended while it ran: requeue it"}


def test_a_grace_beyond_the_mercy_of_uwsgi_ends_before_that(serve):
    # After so many seconds it is killed, and could write nothing any more.
    server = serve(
        SOURCE,
        spoolers=0,
        options=["--worker-reload-mercy", "4"],
        env={"UWSGI_TASKS_THREAD_GRACE": "3600"},
    )
    submit_hold(server, "never")
    server.call("in_an_hour('tomorrow')")
    come_to_rest(server)

    assert server.stop() == 0
    assert sorted(letters(server)) == ["app.hold", "app.note"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_with_threads_of_uwsgis_ends_in_the_same_order(serve, number):
    server = serve(SOURCE, spoolers=0, workers=2, options=[*MERCIFUL, "--threads", "4"])
    server.call("in_an_hour('tomorrow')")
    submit_hold(server)
    come_to_rest(server)
    os.kill(server.pid, number)
    server.wait_for(lambda: letters(server).get("app.note"))
    server.open_gate("go")

    assert server.wait_for_events("let go")


def test_the_users_own_function_is_still_called_at_the_end(serve):
    server = serve(
        SOURCE + "\n    uwsgi.atexit = lambda: record('goodbye')\n",
        spoolers=0,
        workers=2,
        options=MERCIFUL,
    )
    server.call("here('first')")
    server.wait_for_events("first")
    server.call("in_an_hour('tomorrow')")
    come_to_rest(server)
    server.stop()

    # Of the worker that had threads, and of the one that had none.
    assert len({event["pid"] for event in server.events("goodbye")}) == 2
    assert list(letters(server)) == ["app.note"]


def test_a_function_of_the_users_that_raises_at_the_end_costs_no_job(serve):
    server = serve(SOURCE + "\n    uwsgi.atexit = lambda: 1 / 0\n", spoolers=0, options=MERCIFUL)
    server.call("in_an_hour('tomorrow')")
    come_to_rest(server)
    server.stop()

    assert "ZeroDivisionError" in server.log
    assert list(letters(server)) == ["app.note"]


def test_a_reload_lets_a_worker_end_its_request_first_and_then_its_jobs(merciful):
    server = merciful
    server.call("in_an_hour('tomorrow')")
    source = "record('busy'), gate('answer'), note('from the request')"
    with asking(server, source) as connection:
        server.wait_for_events("busy")
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for(lambda: "Gracefully killing worker 1" in server.log)
        server.open_gate("answer")
        assert b"200 OK" in connection.recv(1000)

    assert server.wait_for_events("from the request")
    server.wait_for(lambda: list(letters(server)) == ["app.note"])


def test_a_graceful_stop_lets_a_worker_end_its_request_first_and_then_its_jobs(serve, tmp_path):
    fifo = tmp_path / "fifo"
    server = serve(SOURCE, spoolers=0, options=[*MERCIFUL, "--master-fifo", str(fifo)])
    server.call("in_an_hour('tomorrow')")
    with asking(server, "record('busy'), gate('answer'), note('from the request')"):
        server.wait_for_events("busy")
        fifo.write_text("q")
        server.wait_for(lambda: "Gracefully killing worker 1" in server.log)
        server.open_gate("answer")

        assert server.wait_for_events("from the request")
        server.wait_for(lambda: list(letters(server)) == ["app.note"])


def test_a_stop_in_the_middle_of_a_request_loses_the_jobs_of_its_worker(merciful):
    # As documented: uWSGI calls nobody then. No promise, but to be known.
    server = merciful
    server.call("in_an_hour('tomorrow')")
    with asking(server, "record('busy'), gate('never')"):
        server.wait_for_events("busy")
        assert server.stop() == 0

    assert not server.dead()


def test_a_worker_that_is_killed_loses_its_jobs_and_no_other_does(serve):
    server = serve(SOURCE, spoolers=0, workers=2)

    def held_in_both():
        server.call("hold('go')")
        return len({event["pid"] for event in server.events("held")}) == 2

    server.wait_for(held_in_both)
    victim, other = server.pids("worker")
    os.kill(victim, signal.SIGKILL)
    server.wait_for(lambda: victim not in server.pids("worker"))
    server.open_gate("go")

    server.wait_for_events("let go")
    assert {event["pid"] for event in server.events("let go")} == {other}
    assert is_alive(other)
    assert not server.dead()
    assert {event["pid"] for event in of_workers(server, "after")} == set(server.pids("worker"))


def test_workers_that_uwsgi_recycles_finish_what_is_due(serve):
    options = [*MERCIFUL, "--max-requests", "5", "--min-worker-lifetime", "1"]
    server = serve(SOURCE, spoolers=0, workers=2, options=options)
    numbers = count()

    def recycled():
        server.call(f"note('recycled', number={next(numbers)})")
        return len({event["pid"] for event in server.events("recycled")}) > 3

    server.wait_for(recycled)
    submitted = next(numbers)
    events = server.wait_for_events("recycled", submitted)
    assert sorted(event["number"] for event in events) == list(range(submitted))
    assert not server.dead()


def test_a_worker_that_uwsgi_recycles_keeps_what_is_not_due(serve):
    options = [*MERCIFUL, "--max-requests", "3", "--min-worker-lifetime", "1"]
    server = serve(SOURCE, spoolers=0, options=options)
    (pid,) = server.pids("worker")
    server.call("in_an_hour('tomorrow')")

    def recycled():
        server.call("None")
        return pid not in server.pids("worker")

    server.wait_for(recycled)
    assert list(letters(server)) == ["app.note"]


class asking:  # noqa: N801
    """A request that is under way."""

    def __init__(self, server, source):
        self._path, self._source = str(server._socket), source.encode()

    def __enter__(self):
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(30)
        self._connection.connect(self._path)
        head = f"POST / HTTP/1.0\r\nContent-Length: {len(self._source)}\r\n\r\n"
        self._connection.sendall(head.encode() + self._source)
        return self._connection

    def __exit__(self, *error):
        self._connection.close()
