"""Submitting without uWSGI, from a shell or a cron job, into a spooler that a uWSGI serves."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from tests.uwsgi.serving import run_outside

SOURCE = """
    from datetime import timedelta
    from uwsgi_tasks import task

    @task(executor="spooler")
    def note(name, payload=b""):
        record(name, size=len(payload))

    @task
    def anywhere(name):
        record(name)
"""


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE)


@pytest.fixture(scope="module")
def ordered(serve_module):
    return serve_module(SOURCE, options=["--spooler-ordered"])


def outside(server, source, directory=None):
    return run_outside(
        server.folder,
        f"import app\nfrom app import *\n{source}",
        env={"UWSGI_TASKS_SPOOLER_DIR": str(directory or server.spool)},
    )


def done(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(result):
    assert result.returncode == 1, result.stdout
    return result.stderr.splitlines()[-1]


def test_a_job_from_outside_runs_in_the_spooler(server):
    done(outside(server, "note('small'); anywhere('auto'); note('large', bytes(5_000_000))"))

    for name, size in (("small", 0), ("large", 5_000_000)):
        (event,) = server.wait_for_events(name)
        assert (event["where"], event["size"]) == ("spooler", size)
    assert server.wait_for_events("auto")[0]["where"] == "spooler"


def test_many_jobs_from_many_processes_run_once_each(server):
    for _ in range(3):
        done(outside(server, "for number in range(200): note('many')\nnote.map(['many'] * 100)"))

    server.wait_for_events("many", 900)
    server.wait_for(lambda: not server.waiting())
    assert len(server.events("many")) == 900


def test_a_delayed_job_waits_for_its_time(server):
    start = time.time()
    done(outside(server, "note.using(at=timedelta(seconds=1.5))('later')"))

    (event,) = server.wait_for_events("later")
    assert event["time"] - start >= 1.5


def test_nothing_is_warned_of_and_the_call_is_queued(server):
    source = "job = note.using(at=timedelta(hours=1))('later'); print(job.state, job.cancel())"
    assert done(outside(server, source)).strip() == "queued True"
    assert not outside(server, "note('quiet')").stderr


def test_priorities_order_jobs_where_the_server_honours_them(ordered):
    done(outside(ordered, "note.using(priority=3)('important')"))

    assert ordered.wait_for_events("important")


def test_a_priority_that_the_server_would_not_honour_is_refused(server):
    message = refused(outside(server, "note.using(priority=3)('important')"))

    assert "spooler-ordered" in message
    assert not [path for path in server.spool.iterdir() if path.name.isdigit()]


def test_what_cannot_be_pickled_is_refused_and_leaves_nothing_behind(server):
    # Of the tests before, all has run by then.
    server.wait_for(lambda: not server.waiting())
    message = refused(outside(server, "note('x', lambda: 0)"))

    assert "argument 2" in message
    assert not server.waiting()


def test_a_directory_that_is_missing_is_refused_with_the_remedy(server):
    message = refused(outside(server, "note('x')", directory=server.folder / "nowhere"))

    assert "nowhere" in message
    assert "spooler_dir" in message


def test_a_directory_that_everybody_may_write_to_is_refused_with_the_remedy(server, tmp_path):
    tmp_path.chmod(0o777)

    assert "chmod o-w" in refused(outside(server, "note('x')", directory=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_a_clear_error_and_leaves_no_half_file(server):
    source = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
try:
    note('x', bytes(100_000))
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
"""
    server.wait_for(lambda: not server.waiting())
    assert "could not write" in refused(outside(server, source))
    assert not server.waiting()
    assert not [path for path in server.spool.iterdir() if path.name.startswith(".uwsgi")]


def test_without_a_server_the_job_waits_until_there_is_one(serve):
    server = serve(SOURCE)
    server.stop()
    done(outside(server, "note('patient')"))
    assert len(server.waiting()) == 1
    server.start()

    assert server.wait_for_events("patient")


def test_without_anything_it_runs_at_once_with_one_warning(server):
    result = run_outside(server.folder, "from app import *; note('a'); note('b'); anywhere('c')")

    assert result.returncode == 0
    assert result.stderr.count("RuntimeWarning") == 1
    assert {event["where"] for event in server.events() if event["event"] in "abc"} == {"outside"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_directory_of_another_user_is_refused_with_the_remedy(server):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        source = """
import os
os.setresuid(65534, 65534, 0)
try:
    note('x')
finally:
    os.setresuid(0, 0, 0)
"""
        message = refused(outside(server, source, directory=directory))

    assert "as the user that uWSGI runs as" in message
