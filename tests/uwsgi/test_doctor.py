"""The doctor at real servers: one that is well, and those that are not."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.uwsgi.serving import ROOT
from tests.uwsgi_coverage import environment
from uwsgi_tasks import App, doctor, probe
from uwsgi_tasks.probe import Facts
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings

TASKS = """
    from stage import gate, record
    from uwsgi_tasks import task

    @task(executor="spooler")
    def note(name):
        record(name)

    @task(executor="spooler")
    def hold():
        record("held")
        gate("go")
"""
APP = "import jobs"
FILES = {"jobs.py": TASKS}


@pytest.fixture
def store():
    """A store that is well."""
    return SimpleNamespace(now=time.time, shared=True, count=lambda: 0)


@pytest.fixture
def examine(store, monkeypatch):
    """Examine a server from outside, with its tasks declared here; give the codes by level."""

    monkeypatch.setattr(doctor, "PATIENCE", 20.0)

    def examine(server, *, ini=None, names=("jobs.note",), **options):
        declared = App(Server(None))
        for name in names:
            module, _, qualname = name.rpartition(".")
            function = lambda: None  # noqa: E731  a name of its own is what it gets
            function.__module__, function.__qualname__ = module, qualname
            declared.task(**{"executor": "spooler", **options})(function)
        patient = SimpleNamespace(
            settings=Settings(), tasks=declared.tasks, store=store, dead=store
        )
        file = None
        if ini is not None:
            file = server.folder / "uwsgi.ini"
            file.write_text(textwrap.dedent(ini))
        found = doctor.examine(file, server.spool, patient)
        left = lambda: [path for path in server.spool.rglob("*probe*") if path.is_file()]  # noqa: E731
        server.wait_for(lambda: not left())
        return {finding.code: finding for finding in found if finding.level != "ok"}

    return examine


def wait_until_known(server):
    """Wait until a spooler has said that it lives: it is asked then, however slow it is."""
    server.wait_for(lambda: list((server.spool / "running").glob("[0-9]*.[0-9]*")))


def errors(found):
    return {code for code, finding in found.items() if finding.level == "error"}


def test_a_healthy_server_has_no_error(serve, examine):
    server = serve(APP, files=FILES, options=["--spooler-ordered"])
    wait_until_known(server)
    found = examine(
        server,
        ini="""
            [uwsgi]
            master = true
            module = app
            spooler = %dspool
            spooler-ordered = true
        """,
    )

    assert not errors(found), found
    assert "loaded in the master" in found["answered"].what


def test_a_spooler_says_its_options_and_its_niceness(serve):
    server = serve(APP, files=FILES, options=["--spooler-harakiri", "77"])
    wait_until_known(server)
    facts = probe.ask(server.spool, ["jobs.note"], 20, Settings())

    assert isinstance(facts, Facts)
    assert facts.options["spooler-harakiri"] == "77"
    assert facts.pid in server.spooler_pids()
    assert facts.role == "spooler"
    assert facts.has_threads
    assert facts.imports == {"jobs.note": ""}


def test_a_callback_that_was_overridden_is_found(serve, examine, monkeypatch):
    # It never answers.
    monkeypatch.setattr(doctor, "PATIENCE", 2.0)
    override = """
        import uwsgi
        uwsgi.spooler = lambda env: uwsgi.SPOOL_RETRY
    """
    server = serve(
        APP,
        files={**FILES, "override.py": override},
        options=["--spooler-import", "override"],
    )
    wait_until_known(server)

    assert errors(examine(server)) == {"callbacks"}


def test_a_callback_that_swallows_everything_is_found(serve, examine):
    override = """
        import uwsgi
        uwsgi.spooler = lambda env: uwsgi.SPOOL_OK
    """
    server = serve(
        APP,
        files={**FILES, "override.py": override},
        options=["--spooler-import", "override"],
    )
    wait_until_known(server)

    assert errors(examine(server)) == {"callbacks"}


def test_a_task_that_does_not_import_is_found(serve, examine):
    files = {**FILES, "broken.py": "import nowhere_to_be_found"}
    server = serve(APP, files=files)
    wait_until_known(server)
    found = examine(server, names=("jobs.note", "broken.one"))

    assert errors(found) == {"task-import"}
    assert "nowhere_to_be_found" in found["task-import"].what


def test_a_priority_without_order_is_found(serve, examine):
    server = serve(APP, files=FILES)
    wait_until_known(server)

    assert errors(examine(server, priority=1)) == {"not-ordered"}


def test_spoolers_that_have_not_loaded_us_are_found(serve, examine):
    server = serve(APP, lazy=True, files=FILES)
    (pid,) = server.spooler_pids()
    server.wait_for(lambda: Path(f"/proc/{pid}/cwd").readlink() == server.spool)
    ini = "[uwsgi]\nmodule = app\nlazy-apps = true\nspooler = %dspool\n"

    assert errors(examine(server, ini=ini)) == {"lazy-apps", "not-loaded"}


def test_a_server_that_was_stopped_is_found(serve, examine, monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE", 60.0)
    server = serve(APP, files=FILES)
    wait_until_known(server)
    server.stop()
    begun = time.monotonic()

    assert errors(examine(server)) == {"no-server"}
    assert time.monotonic() - begun < 30


def test_busy_spoolers_are_no_error(serve, examine, monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    server = serve(APP, files=FILES)
    server.call("jobs.hold()")
    server.wait_for_events("held")
    found = examine(server)
    server.open_gate("go")

    assert not errors(found), found
    assert "busy" in found
    server.wait_for(lambda: not server.waiting())


def test_of_many_spoolers_one_that_rests_answers(serve):
    server = serve(APP, spoolers=2, files=FILES)
    server.call("jobs.hold()")
    server.wait_for_events("held")
    answer = probe.ask(server.spool, [], 20, Settings())
    server.open_gate("go")

    assert isinstance(answer, Facts)


def test_a_secret_that_differs_is_found(serve, examine):
    server = serve(APP, files=FILES, env={"UWSGI_TASKS_SECRET": "only the server knows"})
    wait_until_known(server)

    assert "secret-differs" in errors(examine(server))


def test_a_doctor_that_is_killed_leaves_nothing(serve):
    server = serve(APP, files=FILES)
    server.call("jobs.hold()")
    server.wait_for_events("held")
    script = f"""
        from pathlib import Path
        from uwsgi_tasks import probe
        from uwsgi_tasks.settings import Settings
        probe.ask(Path({str(server.spool)!r}), [], 60, Settings())
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment(PYTHONPATH=str(ROOT))
    )
    server.wait_for(lambda: list(server.spool.glob("uwsgi_spoolfile_on_probe_*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.open_gate("go")

    server.wait_for(lambda: not server.waiting())
    assert not list(server.spool.rglob("*probe*"))
