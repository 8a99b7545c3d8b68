"""`manage.py uwsgi_tasks` in a real project."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.servers import redis_server  # noqa: F401  a fixture
from tests.uwsgi_coverage import environment
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.redis.queues import Queues

MANAGE = """
import os, sys
from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
execute_from_command_line(sys.argv)
"""
SETTINGS = """
from pathlib import Path

SECRET_KEY = "of the tests"
INSTALLED_APPS = ["mysite", "uwsgi_tasks.django"]
UWSGI_TASKS = {"spooler_dir": Path(__file__).parent.parent / "spool"}
"""
TASKS = """
from django.conf import settings
from uwsgi_tasks import task

@task(executor="spooler")
def send(to):
    print(settings.SECRET_KEY, to)
"""
CALL = """
import os, django
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
django.setup()
from django.core.management import CommandError, call_command

import mysite.tasks
call_command("uwsgi_tasks", "tasks", "--json")
for words in (["show", "unknown-1"], ["ls", "--nothing"]):
    try:
        call_command("uwsgi_tasks", *words)
    except CommandError as error:
        print(error.returncode)
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "mysite").mkdir()
    (tmp_path / "spool").mkdir(mode=0o700)
    files = {
        "manage.py": MANAGE,
        "call.py": CALL,
        "mysite/__init__.py": "",
        "mysite/settings.py": SETTINGS,
        "mysite/other.py": SETTINGS + 'UWSGI_TASKS = {"crash_limit": 0}\n',
        "mysite/tasks.py": TASKS,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def python(project, *words):
    return subprocess.run(
        [sys.executable, *words],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def manage(project, *words):
    return python(project, "manage.py", "uwsgi_tasks", *words)


def test_it_knows_djangos_settings(project):
    ran = manage(project, "ls", "--json")

    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)["jobs"] == []


def test_it_submits_with_djangos_settings(project):
    ran = manage(project, "submit", "mysite.tasks:send", '"ada"')

    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(list((project / "spool").glob("uwsgi_spoolfile_on_*"))) == 1


def test_its_exit_codes_and_errors_are_those_of_the_command_line(project):
    ran = manage(project, "ls", "--nothing")

    assert ran.returncode == 2
    assert "manage.py uwsgi_tasks ls --help" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_arguments_behind_two_dashes_arrive(project):
    ran = manage(project, "submit", "mysite.tasks:send", "--executor", "runtime", "--", "-1")

    assert (ran.returncode, ran.stderr) == (0, "")
    assert "of the tests -1" in ran.stdout


@pytest.mark.parametrize("words", [["--settings=mysite.other"], ["--settings", "mysite.other"]])
def test_the_options_of_manage_are_obeyed(project, words):
    ran = manage(project, "tasks", *words)

    assert ran.returncode == 2
    assert "crash_limit" in ran.stderr


def test_it_can_be_called_from_code(project):
    ran = python(project, "call.py")

    assert ran.returncode == 0, ran.stderr
    *tasks, unknown, wrong = ran.stdout.splitlines()
    assert json.loads("".join(tasks))["tasks"][0]["name"] == "mysite.tasks.send"
    assert (unknown, wrong) == ("1", "2")


def test_settings_that_do_not_import_are_one_line(project):
    ran = python(
        project,
        "-c",
        "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'mysite.none'\n"
        "from uwsgi_tasks.__main__ import program; program(['tasks'])",
    )

    assert ran.returncode == 2
    assert "mysite.none" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.fixture
def work(project, redis_server):  # noqa: F811  the fixture
    """Start `manage.py uwsgi_tasks worker`, and end it with the test."""
    redis_server.flush()
    started = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, "manage.py", "uwsgi_tasks", "worker", *words],
            cwd=project,
            env=environment(UWSGI_TASKS_REDIS=redis_server.url),
            stdout=(project / "out").open("w"),
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def submit(server, task, **options):
    queues = Queues(Client(server.url), "")
    queues.submit("default", ["job-1", json.dumps({"task": task, "args": ["ada"]})], **options)


def wait_for(condition, process, project):
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, (project / "out").read_text()
        assert time.monotonic() < deadline, (project / "out").read_text()
        time.sleep(0.02)


def test_its_worker_knows_the_tasks_of_djangos_applications(project, work, redis_server):  # noqa: F811
    submit(redis_server, "mysite.tasks.send")
    worker = work()
    wait_for(lambda: "of the tests ada" in (project / "out").read_text(), worker, project)
    worker.send_signal(signal.SIGTERM)

    assert worker.wait(30) == 0


def test_its_worker_starts_anew_as_it_was_started(project, work, redis_server):  # noqa: F811
    worker = work("--max-jobs", "1")
    submit(redis_server, "mysite.tasks.send")
    wait_for(lambda: (project / "out").read_text().count("tasks  ") == 2, worker, project)
    worker.send_signal(signal.SIGTERM)

    assert worker.wait(30) in {0, -signal.SIGTERM}


def test_what_importing_has_opened_is_not_for_several_processes(project, work, redis_server):  # noqa: F811
    with (project / "mysite" / "settings.py").open("a") as settings:
        settings.write(
            'DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db"}}\n'
        )
    (project / "mysite" / "tasks.py").write_text(
        "from django.db import connection\n"
        "from uwsgi_tasks import task\n\n"
        "connection.ensure_connection()\n\n"
        "@task\n"
        "def look(to):\n"
        "    print('has one' if connection.connection else 'has none')\n"
    )
    submit(redis_server, "mysite.tasks.look")
    worker = work("--processes", "2")
    wait_for(lambda: "has " in (project / "out").read_text(), worker, project)

    assert "has none" in (project / "out").read_text()


def test_a_module_of_tasks_that_does_not_import_is_one_line(project, redis_server):  # noqa: F811
    (project / "mysite" / "tasks.py").write_text("import no_such_module\n")

    ran = manage(project, "worker")

    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert "importing the tasks of Django's applications failed" in ran.stderr
