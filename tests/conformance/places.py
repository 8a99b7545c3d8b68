"""Every store, at a place that a test can look into, break and mend."""

import multiprocessing
import threading
import time
import traceback
from pathlib import Path

import pytest
import sqlalchemy as sa

import uwsgi_tasks.stores
from uwsgi_tasks.model import Count, DeadLetter, Record, State
from uwsgi_tasks.stores import connect

FOLDER = Path(uwsgi_tasks.stores.__file__).parent
FILES = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


class Place:
    """Where a store keeps things, as seen from outside of it."""

    def __init__(self, request):
        self.request = request

    url: str
    shared = True
    """Do several processes see the same?"""
    expires = False
    """Does what has expired go by itself, so that no purge finds it?"""

    def connect(self, namespace=""):
        return connect(self.url, namespace)

    @property
    def address(self):
        """Where SQLAlchemy itself finds it."""
        return self.url

    def execute(self, *statements):
        """Do something behind the back of the store."""
        raise NotImplementedError

    def cut(self):
        """Break all connections; new ones work."""

    def leave(self):
        """Be gone."""
        raise NotImplementedError

    def come_back(self):
        """Be there again."""
        raise NotImplementedError

    def empty(self):
        """Take away what is kept; tables may stay."""

    def clear(self):
        """Take away everything."""


class Memory(Place):
    """In this process."""

    url = "memory://"
    shared = False


class SQLite(Place):
    """In a file."""

    def __init__(self, request):
        super().__init__(request)
        self.folder = request.getfixturevalue("tmp_path") / "site"
        self.folder.mkdir()
        self.url = f"sqlite:///{self.folder}/tasks.sqlite3"

    def execute(self, *statements):
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def leave(self):
        self.folder.rename(self.folder.with_name("elsewhere"))

    def come_back(self):
        self.folder.with_name("elsewhere").rename(self.folder)


class Served(Place):
    """In a server."""

    fixture: str
    tables: str
    cuts: str

    def __init__(self, request):
        super().__init__(request)
        self.server = request.getfixturevalue(self.fixture)
        self.url = self.server.url

    @property
    def address(self):
        return self.server.address

    def execute(self, *statements):
        with self.server.connection() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def empty(self):
        # Making tables takes longer than most tests.
        with self.server.connection() as connection:
            for name in connection.exec_driver_sql(self.tables).scalars().all():
                if not name.endswith("_schema"):
                    connection.execute(sa.delete(sa.table(name)))

    def clear(self):
        with self.server.connection() as connection:
            for name in connection.exec_driver_sql(self.tables).scalars().all():
                connection.exec_driver_sql(f"DROP TABLE {name}")

    def leave(self):
        self.server.stop()

    def come_back(self):
        self.server.start()


class PostgreSQL(Served):
    """In PostgreSQL."""

    fixture = "postgresql"
    tables = "SELECT tablename FROM pg_tables WHERE tablename LIKE 'uwsgi%%'"

    def cut(self):
        self.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )


class MariaDB(Served):
    """In MariaDB."""

    fixture = "mariadb"
    tables = (
        "SELECT table_name FROM information_schema.tables "
        "WHERE table_schema = 'test' AND table_name LIKE 'uwsgi%%'"
    )

    def cut(self):
        others = (
            "SELECT id FROM information_schema.processlist "
            "WHERE user = 'root' AND id <> connection_id()"
        )
        with self.server.connection() as connection:
            for number in connection.exec_driver_sql(others).scalars().all():
                connection.exec_driver_sql(f"KILL {number}")


class Redis(Place):
    """In Redis."""

    fixture = "redis_server"
    expires = True

    def __init__(self, request):
        super().__init__(request)
        self.server = request.getfixturevalue(self.fixture)
        self.url = self.server.url

    def empty(self):
        self.server.flush()

    clear = empty


class Redis62(Redis):
    """In the oldest Redis that we serve."""

    fixture = "redis_62"


class RedisCluster(Redis):
    """In several Redis, of which each has a part."""

    fixture = "redis_cluster"


PLACES = {
    "memory": [Memory],
    "sql": [SQLite, PostgreSQL, MariaDB],
    "redis": [Redis, Redis62, RedisCluster],
}
"""The contract is checked for each of these. A new store needs an entry."""
ALL = [place for all_ in PLACES.values() for place in all_]


def named(place):
    return place.__name__


@pytest.fixture(params=ALL, ids=named)
def place(request):
    place = request.param(request)
    yield place
    place.empty()


@pytest.fixture(params=[one for one in ALL if one.shared], ids=named)
def shared(request):
    place = request.param(request)
    place.clear()
    yield place
    place.clear()


@pytest.fixture(params=PLACES["sql"], ids=named)
def database(request):
    place = request.param(request)
    place.clear()
    yield place
    place.clear()


@pytest.fixture
def store(place):
    store = place.connect()
    yield store
    store.close()


def record(id_="a", state=State.QUEUED, **more):
    return Record(id=id_, task="billing.send", executor="spooler", state=state, **more)


def letter(id_="a", failed_at=0.0, **more):
    fields = {"task": "billing.send", "executor": "spooler", "attempt": 1, "error": "OSError"}
    return DeadLetter(id=id_, failed_at=failed_at, **{**fields, **more})


def counted(minute=0, task="billing.send", outcome="succeeded", runs=1, seconds=1.0, slowest=1.0):
    return Count(
        minute=minute, task=task, outcome=outcome, runs=runs, seconds=seconds, slowest=slowest
    )


def until(condition, patience=20.0):
    """Wait for *condition*."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def in_processes(number, work):
    """Call work(0), work(1), ... at one moment, each in a process; return their values."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(number)

    def run(index, pipe):
        try:
            barrier.wait(30)
            pipe.send((work(index), None))
        except BaseException:  # noqa: BLE001  it is shown where somebody sees it
            pipe.send((None, traceback.format_exc()))

    pipes, processes = [], []
    for index in range(number):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run, args=(index, sender), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    return _values([pipe.recv() if pipe.poll(60) else (None, "it hangs") for pipe in pipes])


def in_threads(number, work):
    """Call work(0), work(1), ... at one moment, each in a thread; return their values."""
    barrier, values = threading.Barrier(number), [(None, "it hangs")] * number

    def run(index):
        try:
            barrier.wait(30)
            values[index] = (work(index), None)
        except BaseException:  # noqa: BLE001  it is shown where somebody sees it
            values[index] = (None, traceback.format_exc())

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return _values(values)


def _values(answers):
    for _, failure in answers:
        assert failure is None, failure
    return [value for value, _ in answers]


def racing(place, number, work):
    """Call work(store, index), each in a process with a store of its own."""

    def connected(index):
        store = place.connect()
        store.now()
        return work(store, index)

    return in_processes(number, connected)
