"""The command `worker`: what is typed, and what it says before it begins."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.uwsgi_coverage import environment
from uwsgi_tasks import App, worker
from uwsgi_tasks.cli import Failure, program, work
from uwsgi_tasks.executors import Consuming
from uwsgi_tasks.server import Server

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture
def app():
    found = App(Server(None), redis="redis://ada:s3cret@shop.example:6380/2")
    declare(found, "shop.send")
    return found


def declare(app, name):
    app.task(name=name)(lambda: None)


def lines(app, **given):
    """Return what the banner says, by name."""
    queues = given.pop("queues", [("default", None)])
    consuming = Consuming(queues=queues, threads=given.pop("threads", 1))
    _, *found = work._banner(app, worker.Plan(consuming=consuming, **given)).splitlines()
    return dict(line.strip().split(maxsplit=1) for line in found)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8080", ("127.0.0.1", 8080)),
        (":8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),  # noqa: S104  what one types in a container
        ("[::]:80", ("::", 80)),
        ("::1:80", ("::1", 80)),
        ("probes.example:65535", ("probes.example", 65535)),
    ],
)
def test_an_address_is_a_port_with_or_without_a_host(text, address):
    assert work._address(text) == address


@pytest.mark.parametrize("text", ["", "here", "80:here", "-1", "0", "65536", "1e3"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(click.BadParameter, match="is no port: write 8080, or"):
        work._address(text)


def test_the_banner_names_redis_without_its_password(app):
    assert lines(app)["redis"] == "redis://shop.example:6380/2"


def test_the_banner_says_in_which_order_queues_are_served(app):
    assert lines(app, queues=[("a", None), ("b", None)])["queues"] == "a, b (in this order)"
    assert lines(app, queues=[("a", 3), ("b", 1)])["queues"] == "a=3, b=1 (by weight)"


def test_the_banner_says_how_many_jobs_run_at_a_time(app):
    found = work._banner(
        app,
        worker.Plan(processes=2, consuming=Consuming(queues=[("default", None)], threads=8)),
    )

    assert "  at a time  2 x 8  (pid " in found


def test_the_banner_names_some_of_many_tasks(app):
    for number in range(15):
        declare(app, f"shop.task{number:02}")

    assert lines(app)["tasks"].endswith(", and 4 more")


def test_the_banner_names_the_address_of_probes_if_there_is_one(app):
    assert lines(app, health=("127.0.0.1", 80))["health"] == "http://127.0.0.1:80/"
    assert "health" not in lines(app)


def test_without_a_task_it_is_refused():
    with pytest.raises(Failure, match="no task is declared: name the modules"):
        work._declare(App(Server(None)), [])


@pytest.mark.parametrize("name", program._COMMANDS)
def test_each_command_is_where_it_is_looked_for(name):
    assert program.program.get_command(click.Context(program.program), name).name == name


def test_the_worker_imports_nothing_that_shows_tables_or_looks_at_databases():
    source = """
import sys
from uwsgi_tasks.cli.program import program
program.load("worker")
unwanted = {"rich", "sqlalchemy", "http.server", "uwsgi_tasks.doctor", "redis", "watchfiles"}
print(sorted(unwanted & set(sys.modules)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", source],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert ran.stdout == "[]\n"
