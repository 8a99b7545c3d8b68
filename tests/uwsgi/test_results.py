"""What became of a job can be asked from any process."""

import time

import pytest

from tests.uwsgi.serving import CallError, run_outside
from uwsgi_tasks import ResultNotKept, State, TaskFailed

SOURCE = """
    import threading, time
    from uwsgi_tasks import Retry, get_current_task, task

    kept = task(executor="spooler", result_ttl=600)
    kept_of_mule = task(executor="mule", result_ttl=600)

    @kept
    def add(one, two):
        return one + two

    @kept_of_mule
    def add_in_a_mule(one, two):
        return one + two

    @kept
    def fails():
        raise LookupError("no such order")

    @kept_of_mule
    def fails_in_a_mule():
        raise LookupError("no such order")

    class OwnError(Exception):
        pass

    @kept
    def fails_in_its_own_way():
        raise OwnError("only the site knows this class")

    @kept
    def returns_a_lock():
        record("ran")
        return threading.Lock()

    @kept
    def pass_gate(name):
        record("begun", name=name)
        get_current_task().progress(3, 4)
        gate(name)
        return name

    @kept_of_mule
    def pass_gate_in_a_mule(name):
        record("begun", name=name)
        get_current_task().progress(3, 4)
        gate(name)
        return name

    @task(executor="spooler", result_ttl=600, retry=Retry(attempts=3, delay=2))
    def flaky():
        attempt = get_current_task().attempt
        record("flaky", attempt=attempt)
        if attempt < 3:
            raise ConnectionError("no answer")
        return attempt

    @task(executor="spooler")
    def forgotten(name):
        record("begun", name=name)
        gate(name)

    @task(executor="spooler")
    def fails_and_is_forgotten():
        raise LookupError("no such order")

    @task(executor="spooler", result_ttl=5)
    def brief():
        return 1
"""


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE, workers=2, mules=1)


@pytest.fixture(scope="module")
def app(server):
    """Look at its jobs from a process that never submitted any."""
    return server.app()


def submitted(server, app, call):
    return app.job(server.call(f"({call}).id"))


@pytest.mark.parametrize("task", ["add", "add_in_a_mule"])
def test_the_result_of_a_job_is_read_in_another_process(server, app, task):
    handle = submitted(server, app, f"{task}(1, 2)")

    assert handle.result(30) == 3
    assert handle.state is State.SUCCEEDED
    assert handle.record.worker.endswith("mule" if "mule" in task else "spooler")


def test_the_process_that_submitted_it_waits_for_its_result(server):
    assert server.call("add('a', 'b').result(20)") == "ab"


def test_a_script_that_imports_the_tasks_waits_for_their_results(server):
    done = run_outside(
        server.folder,
        "import app; print(app.add(40, 2).result(30))",
        env={"UWSGI_TASKS_SPOOLER_DIR": str(server.spool)},
    )

    assert done.stdout.strip() == "42", done.stderr


@pytest.mark.parametrize("task", ["add", "add_in_a_mule"])
def test_each_call_of_a_map_has_a_result_of_its_own(server, app, task):
    ids = server.call(f"[handle.id for handle in {task}.map(range(20), range(20))]")

    assert [app.job(one).result(30) for one in ids] == [2 * number for number in range(20)]


@pytest.mark.parametrize("task", ["fails", "fails_in_a_mule"])
def test_what_a_task_raised_is_raised_where_its_result_is_asked_for(server, app, task):
    handle = submitted(server, app, f"{task}()")

    with pytest.raises(LookupError, match="no such order") as caught:
        handle.result(30)
    assert handle.state is State.FAILED
    assert 'raise LookupError("no such order")' in "".join(caught.value.__notes__)


def test_an_exception_whose_class_is_unknown_here_is_told_by_its_text(server, app):
    handle = submitted(server, app, "fails_in_its_own_way()")

    with pytest.raises(TaskFailed, match="OwnError: only the site knows this class"):
        handle.result(30)


def test_a_value_that_cannot_be_kept_is_an_error_of_the_result_and_no_lost_job(server, app):
    handle = submitted(server, app, "returns_a_lock()")

    with pytest.raises(ResultNotKept, match=r"_thread\.lock, which cannot be kept"):
        handle.result(30)
    assert handle.state is State.SUCCEEDED
    assert len(server.events("ran")) == 1
    assert not server.dead("app.returns_a_lock")


@pytest.mark.parametrize("task", ["pass_gate", "pass_gate_in_a_mule"])
def test_one_can_wait_until_a_job_has_begun_and_then_until_it_has_ended(server, app, task):
    handle = submitted(server, app, f"{task}('{task}')")

    assert handle.wait(30, until=State.RUNNING)
    assert handle.state is State.RUNNING
    server.wait_for(lambda: handle.progress == (3, 4))
    assert not handle.wait(0.1)
    with pytest.raises(TimeoutError):
        handle.result(0.1)
    server.open_gate(task)
    assert handle.wait(30)
    assert handle.result() == task


def test_a_job_that_is_behind_another_one_is_queued(server, app):
    first = submitted(server, app, "pass_gate('first')")
    assert first.wait(30, until=State.RUNNING)
    second = submitted(server, app, "add(1, 1)")

    assert second.state is State.QUEUED
    assert not second.wait(0.1, until=State.RUNNING)
    server.open_gate("first")
    assert second.result(30) == 2


def test_who_waits_looks_less_and_less_often(server, app, sleeping_here):
    handle = submitted(server, app, "pass_gate('watched')")
    assert handle.wait(30, until=State.RUNNING)
    pauses, sleep = [], time.sleep
    sleeping_here(lambda seconds: (pauses.append(seconds), sleep(seconds)))
    assert not handle.wait(3)
    server.open_gate("watched")

    # A busy machine makes them fewer, and never more.
    assert len(pauses) < 30
    assert max(pauses) <= 0.25


def test_a_job_that_is_tried_again_has_the_result_of_its_last_attempt(server, app):
    handle = submitted(server, app, "flaky()")
    server.wait_for_events("flaky")

    server.wait_for(lambda: handle.state is State.RETRYING)
    assert handle.result(30) == 3


def test_without_a_result_ttl_a_job_is_seen_as_long_as_it_is_there(server, app):
    handle = submitted(server, app, "forgotten('forgotten')")
    assert handle.wait(30, until=State.RUNNING)

    assert handle.state is State.RUNNING
    server.open_gate("forgotten")
    assert handle.wait(30)
    with pytest.raises(ResultNotKept):
        handle.result()
    with pytest.raises(ResultNotKept):
        assert handle.state


def test_without_a_result_ttl_a_failure_is_seen_in_its_dead_letter(server, app):
    handle = submitted(server, app, "fails_and_is_forgotten()")
    server.wait_for(lambda: server.dead("app.fails_and_is_forgotten"))

    server.wait_for(lambda: handle.state is State.FAILED)


def test_a_result_is_forgotten_when_its_time_is_over(server, app):
    handle = submitted(server, app, "brief()")
    assert handle.result(30) == 1

    def is_forgotten():
        try:
            return handle.state is None
        except ResultNotKept:
            return True

    server.wait_for(is_forgotten)


def test_a_result_outlives_the_server(serve):
    server = serve(SOURCE, mules=1)
    handle = submitted(server, server.app(), "add(1, 2)")
    assert handle.wait(30)
    server.stop()

    assert handle.result() == 3


def test_while_the_store_is_away_jobs_run_and_what_fails_is_kept_in_files(serve, tmp_path):
    folder = tmp_path / "away"
    url = f"sqlite:///{folder}/store.sqlite3"
    server = serve(SOURCE, mules=1, env={"UWSGI_TASKS_STORE": url})
    app = server.app(store=url)
    server.call("fails_and_is_forgotten(), returns_a_lock()")
    server.wait_for_events("ran")
    server.wait_for(lambda: not server.waiting())
    assert len(server.dead_files()) == 1

    # When it is back, they are where all others are.
    folder.mkdir()
    (letter,) = app.dead.list()
    assert letter.task == "app.fails_and_is_forgotten"
    assert letter.error == "LookupError: no such order"
    assert not server.dead_files()
    assert submitted(server, app, "add(1, 2)").result(30) == 3


# What is imported instead of it, where it is not installed.
MISSING = 'raise ModuleNotFoundError("No module named \'sqlalchemy\'", name="sqlalchemy")'


@pytest.fixture
def bare(serve):
    """Serve without SQLAlchemy."""
    return serve(
        """
        import os
        from uwsgi_tasks import task

        @task(executor="spooler")
        def note(name):
            record(name)

        @task(executor="spooler")
        def fails():
            raise LookupError("no such order")

        @task(executor="spooler")
        def exits():
            os._exit(1)
        """,
        files={"sqlalchemy/__init__.py": MISSING},
        env={"UWSGI_TASKS_CRASH_LIMIT": "1"},
    )


def test_without_sqlalchemy_jobs_run_and_dead_letters_are_files(bare):
    bare.call("note('before'), fails(), exits(), note('after')")
    bare.wait_for_events("before")
    bare.wait_for_events("after")
    bare.wait_for(lambda: len(bare.dead_files()) == 2)
    bare.wait_for(lambda: not bare.waiting())
    bare.stop()

    # Once it is installed, they are found.
    letters = {letter.task: letter.error for letter in bare.app().dead.list()}
    assert letters["app.fails"] == "LookupError: no such order"
    assert "process died" in letters["app.exits"]


@pytest.mark.parametrize("option", ["result_ttl=60", "unique=True"])
def test_without_sqlalchemy_what_needs_a_store_is_refused_with_the_remedy(bare, option):
    with pytest.raises(CallError, match=r"uwsgi_tasks\[sql\]") as caught:
        bare.call(f"task(executor='spooler', {option})(note.func)")

    assert caught.value.name == "InvalidTask"
    assert option.partition("=")[0] in str(caught.value)


def test_without_sqlalchemy_a_waiting_job_can_be_cancelled(bare):
    call = "(lambda handle: handle.cancel())(note.using(at=3600)('x'))"
    bare.call("from datetime import timedelta")
    assert bare.call(call.replace("3600", "timedelta(hours=1)")) is True

    assert not bare.delayed()
