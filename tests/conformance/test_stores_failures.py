"""What every store promises when something is broken, missing, or of another version."""

import os
import signal
import traceback
from itertools import count

import pytest
import sqlalchemy as sa

from tests import servers
from tests.conformance.places import counted, in_processes, in_threads, record, until
from uwsgi_tasks.errors import StoreError, TaskTimeout
from uwsgi_tasks.model import Lease
from uwsgi_tasks.stores import _tables, connect


def test_a_closed_store_opens_itself_again(store):
    store.save(record(), 60)
    store.close()
    store.close()
    store.save(record("b"), 60)
    assert store.get("b") == record("b")


def test_a_store_that_is_away_says_so_and_comes_back_by_itself(database):
    store = database.connect()
    store.save(record(), 60)
    database.leave()
    try:
        for call in (
            lambda: store.get("a"),
            lambda: store.save(record(), 60),
            lambda: store.count([counted()]),
            store.now,
        ):
            with pytest.raises(StoreError, match=r"start the server|create it"):
                call()
    finally:
        database.come_back()
    assert store.get("a") == record()
    store.count([counted()])
    assert store.counts(0) == [counted()]


def test_connecting_to_a_store_that_is_away_does_not_fail(database):
    database.leave()
    try:
        store = database.connect()
        with pytest.raises(StoreError):
            store.now()
    finally:
        database.come_back()
    assert store.get("a") is None


def test_a_connection_that_broke_while_nobody_used_it_is_not_noticed(database):
    store = database.connect()
    in_threads(3, lambda index: store.save(record(f"{index}"), 60))
    for call in (
        lambda: store.get("0") == record("0"),
        lambda: store.save(record("3"), 60) is None,
        lambda: store.count([counted()]) is None,
        lambda: store.forget("3"),
        lambda: store.acquire("report", "a", 60).owner == "a",
        lambda: store.release(Lease(name="report", owner="a", due=0.0)),
    ):
        database.cut()
        assert call()
    assert store.counts(0) == [counted()]


def test_what_was_saved_outlives_the_process_that_saved_it(shared):
    store = shared.connect()
    child = os.fork()
    if not child:
        try:
            for number in range(20):
                store.save(record(f"{number}"), 60)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert store.get("19") == record("19")


def test_a_process_that_is_killed_holds_nobody_up(shared):
    store = shared.connect()
    for turn in range(10):
        child = os.fork()
        if not child:
            try:
                for number in count(0):
                    store.save(record(f"{turn}-{number}"), 60)
            finally:
                os._exit(1)
        until(lambda name=f"{turn}-5": store.get(name))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        store.save(record("last"), 60)
    assert store.get("last") == record("last")


@pytest.mark.parametrize(
    "kind", [servers.PostgreSQL, servers.MariaDB], ids=lambda one: one.__name__
)
def test_what_was_saved_outlives_a_server_that_is_killed(kind):
    with servers.serve(kind, durable=True) as server:
        store = connect(server.url)
        for number in range(20):
            store.save(record(f"{number}"), 60)
        server.kill()
        server.start()
        assert store.get("19") == record("19")
        store.close()


def test_a_time_limit_that_ends_a_call_is_not_taken_for_a_failure(database, monkeypatch):
    def too_late(*_):
        raise TaskTimeout

    store = database.connect()
    store.now()
    with monkeypatch.context() as limit:
        limit.setattr(store._engine.dialect, "do_execute", too_late)
        with pytest.raises(TaskTimeout):
            store.save(record(), 60)
    store.save(record("b"), 60)
    assert store.get("b") == record("b")


def test_tables_that_somebody_has_dropped_are_made_again(database):
    store = database.connect()
    store.save(record(), 60)
    names = ("schema", "results", "dead", "leases", "counts")
    database.execute(*(f"DROP TABLE uwsgi_tasks_{name}" for name in names))
    with pytest.raises(StoreError):
        store.get("a")
    assert store.get("a") is None


def test_an_error_does_not_tell_what_was_to_be_stored(database):
    store = database.connect()
    store.now()
    database.execute("DROP TABLE uwsgi_tasks_results")
    secret = bytes(range(ord("a"), ord("z")))
    with pytest.raises(StoreError) as caught:
        store.save(record("the id", outcome=secret, error=secret.decode()), 60)
    assert secret.decode() not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@localhost:1/tasks",
        "postgresql://u@localhost:1/tasks?password=hunter2",
        "postgresql://u:hunter2@/tasks?host=/nowhere",
        "mysql://u:hunter2@127.0.0.1:1/tasks",
        "mysql://u:hunter2@/tasks?unix_socket=/nowhere",
    ],
)
def test_an_error_does_not_tell_the_password(url):
    store = connect(url)
    with pytest.raises(StoreError, match="start the server") as caught:
        store.now()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


# --- versions of the tables


def add_column(connection, tables):
    connection.exec_driver_sql(f"ALTER TABLE {tables.results.name} ADD COLUMN colour VARCHAR(9)")


def add_table(connection, tables):
    connection.exec_driver_sql(f"CREATE TABLE {tables.prefix}colours (name VARCHAR(9))")


def columns_of(place):
    """The columns that the results have."""
    engine = sa.create_engine(place.address, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return {
            column["name"] for column in sa.inspect(connection).get_columns("uwsgi_tasks_results")
        }


def test_older_tables_are_brought_up_to_date_and_keep_what_is_in_them(database, monkeypatch):
    database.connect().save(record(), 60)
    monkeypatch.setattr(_tables, "STEPS", (add_column, add_table))
    store = database.connect()
    assert store.get("a") == record()
    assert "colour" in columns_of(database)
    store.save(record("b"), 60)
    assert store.get("b") == record("b")


def test_a_version_is_reached_step_by_step(database, monkeypatch):
    steps = []

    def step(number):
        return lambda *_: steps.append(number)

    database.connect().now()
    for known in ([1], [1, 2, 3]):
        monkeypatch.setattr(_tables, "STEPS", tuple(map(step, known)))
        database.connect().now()
    database.connect().now()
    assert steps == [1, 2, 3]


def test_new_tables_are_of_the_newest_version_at_once(database, monkeypatch):
    def fails(*_):
        raise AssertionError

    monkeypatch.setattr(_tables, "STEPS", (fails,))
    database.connect().now()
    database.connect().now()


def test_processes_that_find_older_tables_change_them_once(database, monkeypatch):
    database.connect().save(record(), 60)
    monkeypatch.setattr(_tables, "STEPS", (add_column, add_table))
    # A second time, a step would fail.
    assert in_processes(5, lambda _: database.connect().get("a")) == [record()] * 5


def test_a_step_that_fails_is_begun_again(database, monkeypatch):
    def fails(connection, _):
        connection.exec_driver_sql("SELECT nonsense FROM nowhere")

    database.connect().save(record(), 60)
    monkeypatch.setattr(_tables, "STEPS", (fails,))
    store = database.connect()
    with pytest.raises(StoreError):
        store.get("a")
    monkeypatch.setattr(_tables, "STEPS", (add_column,))
    assert store.get("a") == record()
    assert "colour" in columns_of(database)


def test_tables_that_are_newer_than_we_are_refused(database, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(_tables, "STEPS", (add_column,))
        database.connect().now()
    store = database.connect()
    for _ in range(2):
        with pytest.raises(StoreError, match="are of version 2, and this uwsgi_tasks knows 1 only"):
            store.get("a")
