"""Finding a store by its URL."""

import subprocess
import sys

import pytest

from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.stores import connect
from uwsgi_tasks.stores.memory import MemoryStore
from uwsgi_tasks.stores.sql import SqlStore


class Own(MemoryStore):
    """What a third party may write."""

    def __init__(self, url, namespace):
        super().__init__("memory://", namespace)
        self.url = url


def test_memory_is_found():
    store = connect("memory://", "shop")
    assert (type(store), store.url, store.namespace) == (MemoryStore, "memory://", "shop")


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:////srv/site/tasks.sqlite3", "sqlite+pysqlite"),
        ("sqlite+pysqlite:////srv/site/tasks.sqlite3", "sqlite+pysqlite"),
        ("postgresql://u@localhost/tasks", "postgresql+psycopg"),
        ("postgres://u@localhost/tasks", "postgresql+psycopg"),
        ("postgresql+psycopg://u@localhost/tasks", "postgresql+psycopg"),
        ("mysql://u@localhost/tasks", "mysql+pymysql"),
        ("mariadb://u@localhost/tasks", "mysql+pymysql"),
        ("mysql+pymysql://u@localhost/tasks", "mysql+pymysql"),
    ],
)
def test_a_database_is_reached_by_the_driver_that_we_know(url, driver):
    store = connect(url)
    assert isinstance(store, SqlStore)
    assert store._database.url.drivername == driver


def test_a_third_party_gives_its_class_and_what_that_takes():
    store = connect(f"{__name__}:Own:redis://:secret@host:6379/0", "shop")
    assert (type(store).__name__, store.url) == ("Own", "redis://:secret@host:6379/0")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oracle://host", "no store at 'oracle'.*use one of mariadb, memory, mysql, postgres"),
        ("", "no store at ':'"),
        ("://", "no store at ''"),
        ("memory", "no store at 'memory:'"),
        (".:X", "no store at '.:X'"),
        ("os:nothing", "no store at 'os:nothing'"),
        ("os:getcwd", "os:getcwd is not a Store"),
        ("memory://x", "is just 'memory://'"),
        ("sql://x", "cannot be read: write it as in"),
        ("sqlite://", "use 'memory://'"),
        ("sqlite:///:memory:", "use 'memory://'"),
        ("sqlite:///file:x?uri=true", "use 'memory://'"),
        ("sqlite+aiosqlite:////srv/x", r"write sqlite, or sqlite\+pysqlite, instead"),
        ("postgresql+psycopg2://host/x", r"write postgresql, or postgresql\+psycopg, instead"),
        ("postgresql://host:port/x", "cannot be read"),
    ],
)
def test_what_cannot_be_found_is_an_error_that_names_the_remedy(url, message):
    with pytest.raises(ConfigurationError, match=message):
        connect(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgres:/u:hunter2@host/tasks",
        "postgresql://u:hunter2@host:port/tasks",
        "oracle://u:hunter2@host/tasks",
        "no.such.module:Class:redis://:hunter2@host",
        "postgresql+psycopg2://u:hunter2@host/tasks",
    ],
)
def test_an_error_does_not_tell_the_password(url):
    with pytest.raises(ConfigurationError) as caught:
        connect(url)
    assert "hunter2" not in str(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("url", "missing", "remedy"),
    [
        ("sqlite:////srv/x", "sqlalchemy", "pip install 'uwsgi_tasks[sql]'"),
        ("postgresql://host/x", "psycopg", "pip install 'uwsgi_tasks[postgresql]'"),
        ("mysql://host/x", "pymysql", "pip install 'uwsgi_tasks[mysql]'"),
    ],
)
def test_what_is_not_installed_is_named(url, missing, remedy):
    source = f"""
import sys
sys.modules[{missing!r}] = None
from uwsgi_tasks.stores import connect
try:
    connect({url!r})
except Exception as error:
    print(type(error).__name__, error)
"""
    said = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("ConfigurationError ")
    assert remedy in said


def test_sqlalchemy_is_imported_where_it_is_used_only():
    source = "import sys, uwsgi_tasks.stores.memory; print('sqlalchemy' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    ).stdout
    assert said == "False\n"
