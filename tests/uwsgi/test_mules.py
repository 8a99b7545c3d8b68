"""Jobs that go to mules: fast, at most once, and refused aloud when they cannot be taken."""

import os
import signal
import time
from itertools import pairwise
from textwrap import dedent

import pytest

from tests.uwsgi.serving import CallError

SOURCE = """
    import asyncio, os
    from datetime import timedelta
    from uwsgi_tasks import Retry, RetryTaskException, SubmitError
    from uwsgi_tasks import default_app, get_current_task, task

    @task(executor="mule")
    def note(name, payload=b""):
        record(name, size=len(payload), cwd=os.getcwd())

    @task(executor="mule")
    def hold(name):
        record("held")
        gate(name)

    @task(executor="mule")
    def fails():
        raise LookupError("no such order")

    @task(executor="mule", retry=Retry(attempts=3))
    def flaky():
        current = get_current_task()
        record("flaky", attempt=current.attempt, executor=current.executor)
        raise ConnectionError("no answer")

    @task(executor="mule")
    async def coroutine():
        await asyncio.sleep(0.01)
        record("coroutine", name=get_current_task().name)

    @task(executor="mule")
    def leaves():
        raise SystemExit("enough")

    @task(executor="mule", retry=Retry(attempts=3, delay=0.3))
    def patient():
        current = get_current_task()
        record("patient", attempt=current.attempt, at=current.scheduled_at.timestamp())
        raise ConnectionError("no answer")

    @task(executor="mule", retry_count=3)
    def asks(count, timeout):
        current = get_current_task()
        record("asks", attempt=current.attempt, at=current.scheduled_at.timestamp(), seen=count)
        raise RetryTaskException(timeout=timeout)

    @task(executor="mule", retry=Retry(attempts=2, delay=3600), mule=1)
    def tomorrow(name):
        record("tomorrow", name=name)
        raise ConnectionError("no answer")

    @task(executor="mule")
    def again(turn=1):
        record("again", turn=turn)
        if turn == 1:
            current = get_current_task()
            current.at = timedelta(seconds=0.3)
            current(2)

    def flood(call, most=20000):
        for number in range(most):
            try:
                call(f"flood {number}")
            except SubmitError as error:
                return number, str(error)
        return most, ""
"""
SOURCE_OF_NOTE = """
    from uwsgi_tasks import Retry, task

    @task(executor="mule")
    def note(name):
        record(name)
"""
AUTO = """
    from uwsgi_tasks import task

    @task
    def anywhere(name, payload=b""):
        record(name, size=len(payload))
"""


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE, spoolers=0, mules=3, options=["--farm", "heavy:2,3"])


def refused(server, call):
    with pytest.raises(CallError) as caught:
        server.call(call)
    assert caught.value.name in {"SubmitError", "InvalidTask"}
    return str(caught.value)


def test_a_task_runs_in_a_mule_where_its_caller_was(server):
    server.call("note('plain')")

    (event,) = server.wait_for_events("plain")
    assert event["where"].startswith("mule")
    assert event["cwd"] == str(server.folder)


def test_a_task_runs_in_the_mule_that_it_names(server):
    for number in (1, 2, 3):
        server.call(f"note.using(mule={number})('mule-{number}')")

        assert server.wait_for_events(f"mule-{number}")[0]["where"] == f"mule{number}"


def test_a_task_runs_in_the_farm_that_it_names(server):
    server.call("for _ in range(20): note.using(mule='heavy')('farm')")

    events = server.wait_for_events("farm", 20)
    assert {event["where"] for event in events} <= {"mule2", "mule3"}


@pytest.mark.parametrize("mule", [4, 99, 255, 256, 100_000, 2**40])
def test_a_mule_that_does_not_exist_is_refused_and_harms_nobody(server, mule):
    worker = server.call("os.getpid()")

    assert str(mule) in refused(server, f"note.using(mule={mule})('nobody')")
    assert server.call("os.getpid()") == worker
    assert not server.events("nobody")


def test_a_farm_that_does_not_exist_is_refused(server):
    assert "nowhere" in refused(server, "note.using(mule='nowhere')('nobody')")


def test_a_message_over_the_limit_is_refused_and_just_below_it_arrives_whole(server):
    server.call("note('large', bytes(65_000))")

    assert server.wait_for_events("large")[0]["size"] == 65_000
    message = refused(server, "note('too-large', bytes(66_000))")
    assert "65536" in message
    assert "spooler" in message


def test_a_coroutine_function_runs(server):
    server.call("coroutine()")

    assert server.wait_for_events("coroutine")[0]["name"] == "app.coroutine"


def test_a_failing_task_is_logged_and_kept(server):
    server.call("fails()")
    server.wait_for(lambda: 'raise LookupError("no such order")' in server.log)

    (letter,) = server.wait_for(lambda: server.dead("app.fails"))
    assert letter.error == "LookupError: no such order"
    assert letter.executor == "mule"


def test_retries_without_a_delay_need_no_spooler(server):
    server.call("flaky()")

    events = server.wait_for_events("flaky", 3)
    assert [event["attempt"] for event in events] == [1, 2, 3]


def offsets(server, name, count, attempts):
    """Return the events of the attempts so far."""
    events = server.wait_for_events(name, count)
    assert [event["attempt"] for event in events] == attempts
    return events


def test_a_retry_waits_in_the_mule_where_there_is_no_spooler(server):
    server.call("patient()")

    events = offsets(server, "patient", 3, [1, 2, 3])
    for before, after in pairwise(events):
        assert before["time"] + 0.3 <= after["at"] <= after["time"]
    # The last one has failed for good, and nothing follows it.
    server.wait_for(lambda: server.dead("app.patient"))
    (letter,) = server.dead("app.patient")
    assert (letter.attempt, letter.error) == (3, "ConnectionError: no answer")
    assert len(server.events("patient")) == 3


def test_a_retry_that_the_task_asks_for_waits_in_the_mule_too(server):
    server.call("asks(7, timeout=0.3)")

    events = offsets(server, "asks", 3, [1, 2, 3])
    for before, after in pairwise(events):
        assert before["time"] + 0.3 <= after["at"] <= after["time"]
    assert {event["seen"] for event in events} == {7}
    server.wait_for(lambda: server.dead("app.asks"))
    assert len(server.events("asks")) == 3


def test_a_job_that_submits_itself_for_later_waits_in_the_mule(server):
    server.call("again()")

    first, second = server.wait_for_events("again", 2)
    assert [first["turn"], second["turn"]] == [1, 2]
    assert second["time"] >= first["time"] + 0.3


def test_a_call_for_later_is_refused_where_there_is_no_spooler(server):
    message = refused(server, "note.using(at=60)('later')")
    assert "use the spooler" in message
    assert not server.events("later")


def test_a_mule_runs_other_messages_while_a_retry_waits(serve):
    server = serve(SOURCE, spoolers=0, mules=1)
    server.call("tomorrow('waits')")
    server.wait_for_events("tomorrow")
    server.call("for _ in range(20): note('meanwhile')")

    events = server.wait_for_events("meanwhile", 20)
    assert {event["where"] for event in events} == {"mule1"}
    assert len(server.events("tomorrow")) == 1


def serve_with_waiting_retries(serve, **options):
    server = serve(SOURCE, spoolers=0, mules=1, **options)
    server.call("tomorrow('first'), tomorrow('second')")
    # The next message is run when these two have been dealt with.
    server.call("note('after')")
    server.wait_for_events("after")
    assert not server.dead()
    return server


def letters_of_the_waiting(server):
    letters = server.dead("app.tomorrow")
    assert {(letter.attempt, letter.executor) for letter in letters} <= {(2, "mule")}
    assert all("its mule ended before it was due: requeue it" in one.error for one in letters)
    return letters


# Long enough for a busy machine: a mule that is killed before it has written them loses them.
MERCIFUL = ["--mule-reload-mercy", "30"]


def test_what_waits_in_a_mule_is_kept_when_it_is_busy_at_the_stop(serve):
    server = serve_with_waiting_retries(serve, options=MERCIFUL)
    server.call("hold('never')")
    server.wait_for_events("held")
    server.stop()

    assert len(letters_of_the_waiting(server)) == 2


def test_what_waits_in_a_mule_is_kept_when_the_server_reloads_and_can_be_requeued(serve):
    server = serve_with_waiting_retries(serve, options=MERCIFUL)
    server.reload()

    server.wait_for(lambda: len(letters_of_the_waiting(server)) == 2)
    server.call("for letter in default_app.dead.list(): default_app.dead.requeue(letter.id)")
    events = server.wait_for_events("tomorrow", 4)
    assert sorted(event["name"] for event in events[2:]) == ["first", "second"]


def test_what_waits_in_a_mule_that_is_killed_is_lost_and_the_next_one_works(serve):
    server = serve_with_waiting_retries(serve)
    os.kill(server.mule_pids()[0], signal.SIGKILL)
    server.call("note('next')")

    server.wait_for_events("next")
    assert not server.dead()
    assert len(server.events("tomorrow")) == 2


def test_a_retry_that_waits_is_refused_at_the_declaration_where_nobody_can_wait(serve):
    server = serve("import uwsgi\nuwsgi.has_threads = 0\n" + dedent(SOURCE_OF_NOTE), mules=1,
                   spoolers=0)  # fmt: skip
    with pytest.raises(CallError, match=r"InvalidTask.*a mule cannot wait.*enable-threads = true"):
        server.call("task(executor='mule', retry=Retry(delay=5))(note.func)")
    assert server.call("task(executor='mule', name='b', retry=Retry())(note.func)")


def test_a_mule_survives_a_task_that_exits(server):
    pids = server.mule_pids()
    server.call("leaves()")

    server.wait_for(lambda: "SystemExit: enough" in server.log)
    assert server.mule_pids() == pids


def serve_with_a_mule_at_work(serve):
    """Serve `anywhere`, and wait for its mule: until that has started, a call runs at once."""
    server = serve(AUTO, spoolers=0, mules=1)

    def at_work():
        server.call("anywhere('ready')")
        return any(event["where"] == "mule1" for event in server.events("ready"))

    server.wait_for(at_work)
    return server


def test_a_full_queue_is_refused_and_what_was_taken_runs(serve):
    server = serve(SOURCE, spoolers=0, mules=1)
    (mule,) = server.mule_pids()
    server.call("note('ready')")
    server.wait_for_events("ready")
    os.kill(mule, signal.SIGSTOP)
    taken, message = server.call("flood(note)")

    assert 0 < taken < 20000
    assert "full" in message
    assert "mule-msg-size" in message
    os.kill(mule, signal.SIGCONT)
    server.wait_for_events(f"flood {taken - 1}")
    assert len([e for e in server.events() if e["event"].startswith("flood ")]) == taken


def test_under_auto_what_a_full_queue_does_not_take_runs_at_once(serve):
    server = serve_with_a_mule_at_work(serve)
    os.kill(server.mule_pids()[0], signal.SIGSTOP)
    server.call("for number in range(1000): anywhere('flood')")
    at_once = len(server.events("flood"))
    os.kill(server.mule_pids()[0], signal.SIGCONT)

    server.wait_for_events("flood", 1000)
    where = {event["where"] for event in server.events("flood")}
    assert where == {"worker1", "mule1"}
    assert 0 < at_once < 1000


def test_under_auto_what_is_too_large_for_a_mule_runs_at_once(serve):
    server = serve_with_a_mule_at_work(serve)
    server.call("anywhere('small')")
    server.call("anywhere('large', bytes(300_000))")

    assert server.wait_for_events("small")[0]["where"] == "mule1"
    (event,) = server.events("large")
    assert (event["where"], event["size"]) == ("worker1", 300_000)


def test_under_auto_the_spooler_comes_before_the_mule(serve):
    server = serve(AUTO, mules=1)
    server.call("anywhere('small'), anywhere('large', bytes(300_000))")

    assert server.wait_for_events("small")[0]["where"] == "spooler"
    assert server.wait_for_events("large")[0]["size"] == 300_000


def test_beside_a_spooler_retries_of_a_mule_wait_there_and_failures_are_kept_there(serve):
    server = serve(
        """
        from uwsgi_tasks import Retry, task

        @task(executor="mule", retry=Retry(attempts=2, delay=1))
        def flaky():
            record("flaky")
            raise ConnectionError("no answer")
        """,
        mules=1,
    )
    server.call("flaky()")

    first, second = server.wait_for_events("flaky", 2)
    assert (first["where"], second["where"]) == ("mule1", "spooler")
    assert second["time"] - first["time"] >= 1
    server.wait_for(server.dead)
    assert server.dead()[0].error == "ConnectionError: no answer"


def test_what_is_queued_survives_a_mule_that_is_killed(serve):
    server = serve(SOURCE, spoolers=0, mules=1)
    server.call("hold('never')")
    server.wait_for_events("held")
    server.call("for number in range(50): note('queued')")
    os.kill(server.mule_pids()[0], signal.SIGKILL)

    server.wait_for_events("queued", 50)
    assert len(server.events("held")) == 1


def test_without_mules_a_mule_task_is_refused_at_its_declaration(serve):
    server = serve("from uwsgi_tasks import task\ndef plain(): pass\n")

    with pytest.raises(CallError, match=r"InvalidTask.*mules = "):
        server.call("task(executor='mule')(plain)")


def test_a_mule_sends_its_first_job_as_soon_as_the_server_answers(serve):
    server = serve(AUTO, spoolers=0, mules=1)
    start = time.monotonic()
    server.call("for number in range(10): anywhere('early')")

    server.wait_for_events("early", 10)
    assert time.monotonic() - start < 8
