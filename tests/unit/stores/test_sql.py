"""What only some databases do, or only a look inside can show."""

import fcntl
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from uwsgi_tasks.errors import StoreError
from uwsgi_tasks.model import Count, DeadLetter, Lease, Record, State, Stop
from uwsgi_tasks.stores import _databases, connect
from uwsgi_tasks.stores._tables import from_text, to_key, to_text


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    return folder / "tasks.sqlite3"


@pytest.fixture
def store(file):
    store = connect(f"sqlite:///{file}")
    yield store
    store.close()


def record(id_="a", state=State.QUEUED):
    return Record(id=id_, task="send", executor="spooler", state=state)


# --- texts


@pytest.mark.parametrize("text", ["", "a", "ä🦆", "a\\b", "%s", " a", "a b"])
def test_most_texts_are_stored_as_they_are(text):
    assert to_text(text) == text


@pytest.mark.parametrize(
    ("text", "stored"),
    [("a\0b", "a\x1a0000b"), ("\ud83d", "\x1ad83d"), ("\x1a", "\x1a001a"), ("a  ", "a \x1a0020")],
)
def test_what_a_database_refuses_is_written_out(text, stored):
    assert (to_text(text), from_text(stored)) == (stored, text)


@pytest.mark.parametrize("length", [0, 1, 254, 255, 256, 257, 10_000])
@pytest.mark.parametrize("character", ["x", "ä", "\0", "🦆"])
def test_a_key_fits_and_is_its_own_key(length, character):
    key = to_key(character * length)
    assert len(key) <= 255
    assert to_key(from_text(key)) == key


# --- SQLite: the file


def test_only_its_owner_may_read_the_file(store, file):
    store.save(record(), 60)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert modes == {
        "tasks.sqlite3": 0o600,
        "tasks.sqlite3-shm": 0o600,
        "tasks.sqlite3-wal": 0o600,
        "tasks.sqlite3.lock": 0o600,
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_owner_of_the_folder(store, file):
    os.chown(file.parent, 65534, 65534)
    store.save(record(), 60)
    assert {path.stat().st_uid for path in file.parent.iterdir()} == {65534}
    assert {path.stat().st_gid for path in file.parent.iterdir()} == {65534}


def test_the_folder_must_be_there(tmp_path):
    store = connect(f"sqlite:///{tmp_path}/none/tasks.sqlite3")
    with pytest.raises(StoreError, match=r"the folder .*/none of the store is not there: create"):
        store.now()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_somebody_else_is_an_error_that_names_the_remedy(store, file):
    def work(pipe):
        os.setuid(65534)
        try:
            store.now()
        except StoreError as error:
            pipe.send(str(error))

    store.save(record(), 60)
    store.close()
    for path in (file.parent.parent, *file.parent.parent.parents):
        if path.stat().st_uid == 0 and path.name.startswith("pytest"):
            path.chmod(0o755)
    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(sender,))
    process.start()
    process.join(30)
    assert receiver.poll(0)
    assert "run this, user 65534, as the user that uWSGI runs as" in receiver.recv()


def test_a_relative_path_is_that_of_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = connect("sqlite:///tasks.sqlite3")
    monkeypatch.chdir("/")
    store.save(record(), 60)
    assert (tmp_path / "tasks.sqlite3").exists()


def test_a_file_that_was_deleted_is_not_written_to(store, file):
    store.save(record(), 60)
    for path in file.parent.iterdir():
        path.unlink()
    store.save(record("b"), 60)
    assert connect(f"sqlite:///{file}").get("b") == record("b")


def test_a_file_that_is_no_database_is_named(store, file):
    file.write_bytes(b"x" * 4096)
    with pytest.raises(StoreError, match=f"restore {file}, or move it away"):
        store.now()


def test_a_file_that_somebody_keeps_locked_is_an_error_after_a_while(store, file, monkeypatch):
    monkeypatch.setattr(_databases, "_PATIENCE", 0.2)
    patient = connect(f"sqlite:///{file}")
    patient.save(record(), 60)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StoreError, match="another program has kept it to itself"):
            patient.save(record(), 60)
        assert patient.get("a") == record()
    finally:
        other.execute("COMMIT")
        other.close()
    patient.save(record("b"), 60)


def test_readers_do_not_wait_for_a_writer(store, file):
    store.save(record(), 60)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert store.get("a") == record()
    finally:
        other.close()


def test_writers_of_one_process_wait_for_each_other_in_a_queue(store):
    store.save(record(), 60)
    with store._connections.gate:
        done = threading.Event()
        thread = threading.Thread(target=lambda: (store.save(record("b"), 60), done.set()))
        thread.start()
        assert not done.wait(0.05)
    assert done.wait(10)
    thread.join()


def test_no_file_of_ours_has_the_number_of_a_standard_stream(file):
    source = f"""
import os
from uwsgi_tasks.stores import connect
for number in (0, 1, 2):
    os.close(number)
store = connect("sqlite:///{file}")
store.now()
found = [os.readlink(f"/proc/self/fd/{{number}}") for number in os.listdir("/proc/self/fd")
         if int(number) < 3 and os.path.exists(f"/proc/self/fd/{{number}}")]
os._exit(bool([name for name in found if "tasks.sqlite3" in name]))
"""
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


def test_a_program_that_we_start_inherits_nothing(store, file):
    store.now()
    handles = [number for number in os.listdir("/proc/self/fd") if str(file) in _link(number)]
    assert len(handles) > 1
    assert all(fcntl.fcntl(int(one), fcntl.F_GETFD) & fcntl.FD_CLOEXEC for one in handles)


def failing(store, monkeypatch, times):
    """Let the next calls of the driver fail with what passes by itself."""
    real, failed = store._engine.dialect.do_execute, []

    def do_execute(*given):
        if len(failed) < times:
            error = sqlite3.OperationalError("locking protocol")
            error.sqlite_errorname = "SQLITE_PROTOCOL"
            failed.append(error)
            raise error
        real(*given)

    store.now()
    monkeypatch.setattr(store._engine.dialect, "do_execute", do_execute)
    return failed


def test_what_passes_by_itself_is_tried_again(store, monkeypatch):
    failed = failing(store, monkeypatch, 3)
    store.count([Count(minute=0, task="a", outcome="failed", runs=1, seconds=1.0, slowest=1.0)])
    assert (len(failed), store.counts(0)[0].runs) == (3, 1)


def test_what_does_not_pass_is_an_error_in_the_end(store, monkeypatch):
    failed = failing(store, monkeypatch, 100)
    with pytest.raises(StoreError, match="locking protocol"):
        store.now()
    assert len(failed) == 6


# --- SQLite: forks


def test_nothing_is_open_in_a_child_that_python_forks(store, file):
    store.now()

    def work(pipe):
        links = map(_link, os.listdir("/proc/self/fd"))
        pipe.send([link for link in links if link.startswith(str(file))])

    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(sender,))
    process.start()
    process.join(30)
    # The lock's file is not SQLite's, and locks nothing in a child.
    assert [name for name in receiver.recv() if not name.endswith(".lock")] == []


def _link(number):
    try:
        return str(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return ""


def test_a_fork_waits_for_threads_inside_sqlite(store):
    store.now()
    inside, leave = threading.Event(), threading.Event()

    def busy():
        with _databases.SQLite.steady:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=busy)
    thread.start()
    inside.wait(10)
    threading.Timer(0.1, leave.set).start()
    child = os.fork()
    if not child:
        os._exit(0)
    has_left = leave.is_set()
    os.waitpid(child, 0)
    assert has_left
    thread.join()


# --- no statement reads more than it must


def statements(store):
    """Every statement by a name, but for those that must count, or list, all that there is."""
    say = store._say
    yield from ((name, getattr(say, name)) for name in _FINDING)
    yield from ((f"page {key}", page) for key, page in say._pages.items())
    yield from ((f"purge {number}", purge) for number, purge in enumerate(say.purges))


_FINDING = [
    "get",
    "state",
    "stop",
    "start",
    "advance",
    "cancel",
    "forget",
    "find_dead",
    "exhume",
    "count_dead_of",
    "lease",
    "extend",
    "release",
    "release_all",
    "counts",
    "counts_of",
]


def test_every_statement_uses_an_index(store, file):
    store.now()
    connection = sqlite3.connect(file)
    for name, statement in statements(store):
        holes = [0] * len(statement._names)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement._text}", holes).fetchall()
        steps = " / ".join(step[3] for step in plan)
        # A scan of an index from its end is how the newest are found.
        ends_early = name.startswith("page") and "USING INDEX" in steps
        assert "SCAN" not in steps or ends_early, f"{name}: {steps}"
        assert "TEMP B-TREE" not in steps, f"{name}: {steps}"
    connection.close()


@pytest.mark.slow
def test_a_hundred_thousand_rows_make_nothing_slower(store):
    def cost():
        start = time.process_time()
        for number in range(200):
            store.save(record(f"x{number}", State.SUCCEEDED), 60)
            store.get(f"x{number}")
            store.cancel(f"x{number}", Stop.ASKED)
            store.dead(5)
            store.dead(5, task="rare")
            store.purge(0)
            store.release_all("nobody")
        return time.process_time() - start

    store.bury(_letter("rare", 0.0, "rare"))
    before = min(cost() for _ in range(3))
    with store._database.transaction(connection := store._connections.take()):
        for table, values in (
            ("results", "'r' || n, 't', 'x', 'queued', 1, 0, 0, 0, '', '', '', '', 0, 0, 0, 1e12"),
            ("dead", "'d' || n, 'often', 'x', 1, n, '', '', '', '', ''"),
            ("leases", "'l' || n, 'o' || n, 1e12, 0"),
        ):
            numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 100000)"
            connection.exec_driver_sql(
                f"{numbers} INSERT INTO uwsgi_tasks_{table} SELECT {values} FROM c"  # noqa: S608
            )
    store._connections.give(connection)
    assert min(cost() for _ in range(3)) < 3 * before + 0.1


def _letter(id_, failed_at, task):
    return DeadLetter(
        id=id_, task=task, executor="x", attempt=1, failed_at=failed_at, error="OSError"
    )


def test_a_statement_is_compiled_once(store):
    store.save(record(), 60)
    assert store._say.save is store._say.save
    assert store.release(Lease(name="a", owner="b", due=0.0)) is False
