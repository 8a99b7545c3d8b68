"""`manage.py uwsgi_tasks` in a real project."""

import json
import subprocess
import sys

import pytest

from tests.uwsgi_coverage import environment

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
