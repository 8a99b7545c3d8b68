"""Configurations of uWSGI: those that work, and those that are refused with the remedy."""

import os
import signal

import pytest

from tests.uwsgi.serving import CallError, Server

SOURCE = """
    from uwsgi_tasks import SubmitError, TaskExecutor, get_current_task, task

    @task(executor=TaskExecutor.SPOOLER)
    def note(name):
        record(name, task=get_current_task().name)
"""
PRIORITIES = """
    @task(executor="spooler", priority=5)
    def ranked(name):
        record("ranked", name=name)

    @task(executor="spooler")
    def hold():
        record("held")
        gate("go")
"""
JOBS = """
    from stage import record
    from uwsgi_tasks import set_uwsgi_callbacks, task

    set_uwsgi_callbacks()

    @task(executor="spooler")
    def note(name):
        record(name)
"""
LAZY_APP = """
    import jobs
"""


@pytest.fixture
def refuse(tmp_path):
    """Start a server that ends by itself, and return its log."""
    servers = []

    def start(source, **options):
        server = Server(tmp_path / "served", source, **options)
        servers.append(server)
        with pytest.raises(AssertionError, match="uWSGI ended"):
            server.start()
        return server.log

    (tmp_path / "served").mkdir()
    yield start
    for server in servers:
        server.stop()


def test_tasks_of_a_wsgi_file_run_under_the_name_that_others_import(serve):
    server = serve(SOURCE, entry="wsgi-file")
    server.call("note('file')")

    assert server.wait_for_events("file")[0]["task"] == "app.note"
    assert not server.dead()


def test_a_wsgi_file_survives_a_spooler_that_starts_anew(serve):
    server = serve(SOURCE, entry="wsgi-file")
    (pid,) = server.spooler_pids()
    os.kill(pid, signal.SIGKILL)
    server.wait_for(lambda: server.spooler_pids() != [pid])
    server.call("note('anew')")

    assert server.wait_for_events("anew")


@pytest.mark.parametrize("option", ["--spooler-import", "--shared-import"])
def test_with_lazy_apps_the_spooler_imports_the_tasks(serve, option):
    server = serve(LAZY_APP, lazy=True, files={"jobs.py": JOBS}, options=[option, "jobs"])
    server.call("jobs.note('lazy')")

    assert server.wait_for_events("lazy")[0]["where"] == "spooler"
    server.wait_for(lambda: not server.waiting())


def test_with_lazy_apps_and_no_import_jobs_wait_and_the_log_names_the_remedy(serve):
    server = serve(LAZY_APP, lazy=True, files={"jobs.py": JOBS})
    server.call("jobs.note('waits')")

    def named():
        server.call("jobs.note('waits')")
        return "spooler-import" in server.log

    server.wait_for(named)
    assert not server.events("waits")
    assert server.waiting()


def test_with_lazy_apps_and_shared_import_mules_run_tasks_and_timers_fire(serve):
    jobs = """
        from stage import record
        from uwsgi_tasks import task, timer

        @task(executor="mule")
        def note(name):
            record(name)

        @timer(seconds=1, target="mule")
        def ticks(number):
            record("ticks")
    """
    server = serve(
        LAZY_APP,
        lazy=True,
        spoolers=0,
        mules=1,
        workers=2,
        files={"jobs.py": jobs},
        options=["--shared-import", "jobs"],
    )
    server.call("jobs.note('lazy')")

    assert server.wait_for_events("lazy")[0]["where"] == "mule1"
    times = [event["time"] for event in server.wait_for_events("ticks", 8)]
    # Twice a second they would take half of that.
    assert times[7] - times[0] > 3.6


@pytest.mark.parametrize(
    "declaration",
    [
        "@task",
        "@task(executor='spooler')",
        "@task(executor='mule')",
        "@timer(seconds=1)",
        "@cron(minute=-2)",
    ],
)
def test_without_a_master_a_declaration_is_refused_with_the_remedy(refuse, declaration):
    log = refuse(
        f"""
        from uwsgi_tasks import cron, task, timer

        {declaration}
        def note(*args):
            record("note")
        """,
        master=False,
        spoolers=0,
    )

    assert "ConfigurationError" in log
    assert "master = true" in log


def test_without_a_master_runtime_tasks_run(serve):
    server = serve(
        """
        from uwsgi_tasks import task

        @task(executor="runtime")
        def note(name):
            record(name)
            return 42
        """,
        master=False,
        spoolers=0,
    )

    assert server.call("note('here').result()") == 42
    assert server.events("here")[0]["where"] == "worker1"


def test_without_spoolers_and_mules_a_task_runs_at_once(serve):
    server = serve(
        """
        from uwsgi_tasks import task

        @task
        def note(name):
            record(name)
            return 42
        """,
        spoolers=0,
    )

    assert server.call("note('here').result()") == 42
    server.call("note('here')")
    assert len(server.events("here")) == 2
    assert server.log.count("tasks run at once") == 1


def test_a_spooler_directory_that_everybody_may_write_to_is_refused(refuse, tmp_path):
    spool = tmp_path / "served" / "spool"
    spool.mkdir()
    spool.chmod(0o777)

    log = refuse(SOURCE)
    assert "ConfigurationError" in log
    assert "chmod o-w" in log


@pytest.mark.parametrize(
    ("declaration", "remedy"),
    [
        ("task(executor='spooler', priority=1)", "spooler-ordered = true"),
        ("task(priority=1)", "spooler-ordered = true"),
        ("task(executor='spooler', priority='high')", "whole number"),
        ("task(executor='spooler', priority=-1)", "whole number"),
        ("task(executor='spooler', priority='../evil')", "whole number"),
        ("task(executor='spooler', spooler='/nowhere')", "spooler = /nowhere"),
        ("task(executor='mule')", "mules = "),
        ("task(executor='mule', at=60)", "spooler|mules"),
        ("task(executor='spooler', at='tomorrow')", "timestamp, a datetime or a timedelta"),
        ("task(executor='spooler', at=-1)", "1970"),
        ("task(executor='spooler', retry_timeout=-1)", "negative"),
        ("task(executor='spooler', retry_count=0)", "from 1"),
        ("task(executor='spooler', colour='red')", "no option colour: choose from"),
        ("task(executor='pigeon')", "spooler"),
    ],
)
def test_a_declaration_that_cannot_work_here_is_refused_with_the_remedy(plain, declaration, remedy):
    with pytest.raises(CallError, match=remedy) as caught:
        plain.call(f"{declaration}(note.func)")
    assert caught.value.name in {"InvalidTask", "ConfigurationError"}


@pytest.mark.parametrize("source", ["task(executor='spooler')(lambda: 0)", "nested()"])
def test_a_function_that_no_spooler_could_find_is_refused(plain, source):
    plain.call(
        """
        def nested():
            @task(executor='spooler')
            def inner(): pass
        """
    )
    with pytest.raises(CallError, match="top level") as caught:
        plain.call(source)
    assert caught.value.name == "InvalidTask"


def test_a_spooler_that_is_not_ours_is_refused_at_the_call_too(plain):
    with pytest.raises(CallError, match="/nowhere"):
        plain.call("note.using(spooler='/nowhere')('x')")


@pytest.fixture(scope="module")
def plain(serve_module):
    return serve_module(SOURCE)


def test_each_of_two_spooler_directories_runs_its_own(serve, tmp_path):
    second = tmp_path / "second"
    second.mkdir(mode=0o700)
    server = serve(SOURCE, options=["--spooler", str(second)])
    server.call(
        f"""
        note('default')
        note.using(spooler={str(second)!r})('second')
        note.using(spooler={str(server.spool)!r})('first')
        """
    )

    pids = {name: server.wait_for_events(name)[0]["pid"] for name in ("default", "second", "first")}
    assert pids["first"] != pids["second"]
    server.call(
        f"task(executor='spooler', spooler={str(second)!r}, name='app.gone')(note.func)('x')"
    )
    # One store, in the first of them, holds the dead letters of both.
    assert server.wait_for(server.dead)[0].task == "app.gone"


def test_priorities_are_honoured_smaller_first_and_none_last(serve):
    server = serve(SOURCE + PRIORITIES, options=["--spooler-ordered"])
    server.call("hold()")
    server.wait_for_events("held")
    for priority in (10, 2, None, 1, 9, "03"):
        server.call(f"ranked.using(priority={priority!r})('{priority}')")
    server.open_gate("go")

    events = server.wait_for_events("ranked", 6)
    assert [event["name"] for event in events] == ["1", "2", "03", "9", "10", "None"]


def test_delayed_and_retried_jobs_keep_their_priority(serve):
    server = serve(
        SOURCE
        + PRIORITIES
        + """
    from uwsgi_tasks import SPOOL_RETRY

    @task(executor="spooler", priority=7, retry_count=2, retry_timeout=1)
    def retried():
        record("retried")
        return SPOOL_RETRY
    """,
        options=["--spooler-ordered"],
    )
    server.call("from datetime import timedelta\nranked.using(at=timedelta(seconds=1))('later')")
    server.call("retried()")

    server.wait_for_events("ranked")
    server.wait_for_events("retried", 2)
    server.wait_for(lambda: not server.waiting())


def test_when_spooler_ordered_is_turned_off_what_waits_with_a_priority_still_runs(serve):
    server = serve(SOURCE + PRIORITIES, options=["--spooler-ordered"])
    server.call("hold()")
    server.wait_for_events("held")
    server.call("ranked('stranded')")
    server.stop()
    server.remove_option("--spooler-ordered")
    app = server.folder / "app.py"
    app.write_text(app.read_text().replace(", priority=5", ""))
    server.open_gate("go")
    server.start()

    assert server.wait_for_events("ranked")


def test_a_spooler_may_be_told_to_work_elsewhere(serve, tmp_path):
    server = serve(SOURCE, options=["--spooler-chdir", str(tmp_path)])
    server.call("note('elsewhere')")

    server.wait_for_events("elsewhere")
    server.wait_for(lambda: not server.waiting())


def test_a_spooler_that_recycles_itself_loses_nothing(serve):
    server = serve(SOURCE, spoolers=2, options=["--spooler-max-tasks", "3"])
    server.call("for number in range(10): note('recycled')")

    server.wait_for_events("recycled", 10)
    server.wait_for(lambda: not server.waiting())
    assert len(server.events("recycled")) == 10
    assert not server.dead()


def test_workers_with_threads_submit_from_all_of_them(serve):
    server = serve(
        SOURCE
        + """
    import threading

    def together(count):
        def submit():
            for _ in range(50):
                note("threads")
        threads = [threading.Thread(target=submit) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    """,
        options=["--threads", "4"],
    )
    server.call("together(8)")

    server.wait_for_events("threads", 400)
    server.wait_for(lambda: not server.waiting())
    assert len(server.events("threads")) == 400
