"""Everything put together."""

import importlib
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fakes import FakeUwsgi
from uwsgi_tasks import (
    App,
    ConfigurationError,
    InvalidTask,
    ResultNotKept,
    State,
    SubmitError,
    TaskExecutor,
)
from uwsgi_tasks.codec import decode, encode
from uwsgi_tasks.errors import StoreError, TaskNotFound
from uwsgi_tasks.marks import _own_name
from uwsgi_tasks.model import DeadLetter, Job
from uwsgi_tasks.server import Server
from uwsgi_tasks.spool_file import pack_raw, unpack
from uwsgi_tasks.stores.memory import MemoryStore

pytestmark = pytest.mark.usefixtures("wakes", "home")


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o750)
    return folder


def app_in(uwsgi=None, **settings):
    """An app in a server whose mules, if any, have started."""
    app = App(Server(uwsgi), **settings)
    if uwsgi:
        with uwsgi.being("master"):
            app.set_uwsgi_callbacks()
        for number in range(1, uwsgi.mules + 1):
            uwsgi.fork(app.server, "mule", number)
    return app


def send(*args):
    sent.append(args)
    return args


sent = []


@pytest.fixture(autouse=True)
def _nothing_sent():
    sent.clear()


# --- which executor AUTO stands for


def test_auto_takes_the_spooler_if_there_is_one(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),), mules=1)
    app_in(uwsgi).task(send)(1)
    assert (len(uwsgi.spool_files()), len(uwsgi.messages), sent) == (1, 0, [])


def test_auto_takes_a_mule_if_there_is_no_spooler():
    uwsgi = FakeUwsgi(mules=1)
    app_in(uwsgi).task(send)(1)
    assert (len(uwsgi.messages), sent) == (1, [])


def test_auto_runs_at_once_if_there_is_neither():
    task = app_in(FakeUwsgi()).task(send)
    with pytest.warns(RuntimeWarning, match="no spooler and no mule .* run at once"):
        task(1)
    assert sent == [(1,)]


@pytest.mark.parametrize("executor", ["auto", "spooler", "mule"])
def test_without_uwsgi_a_task_runs_at_once(executor):
    task = app_in().task(executor=executor)(send)
    with pytest.warns(RuntimeWarning, match="uWSGI is not running here"):
        handle = task(1)
    assert (handle.result(), handle.state) == ((1,), State.SUCCEEDED)


def test_that_tasks_run_at_once_is_said_once():
    app = app_in()
    first, second = app.task(send), app.task(name="second")(send)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        first(1)
        first(2)
        second(3)
    assert len(warned) == 1


def test_a_task_that_is_to_run_at_once_does_so_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert app_in().task(executor="runtime")(send)(1).result() == (1,)


@pytest.mark.parametrize("executor", ["auto", "spooler"])
def test_without_uwsgi_a_directory_that_is_set_takes_the_job(path, executor):
    app_in(spooler_dir=str(path)).task(executor=executor)(send)(1)
    assert (len(list(path.iterdir())), sent) == (1, [])


def test_a_job_that_is_too_large_for_a_mule_runs_at_once_under_auto(caplog):
    task = app_in(FakeUwsgi(mules=1)).task(send)
    with pytest.warns(RuntimeWarning):
        task("x" * 70_000)
    assert len(sent) == 1
    assert "runs in the caller's process: 70" in caplog.text


def test_a_job_that_is_too_large_for_a_mule_is_refused_under_mule():
    task = app_in(FakeUwsgi(mules=1)).task(executor="mule")(send)
    with pytest.raises(SubmitError, match="use the spooler"):
        task("x" * 70_000)
    assert sent == []


def test_a_full_queue_of_the_mules_is_no_fault_under_auto():
    uwsgi = FakeUwsgi(mules=1)
    task = app_in(uwsgi).task(send)
    uwsgi.room = 0
    with pytest.warns(RuntimeWarning):
        task(1)
    assert sent == [(1,)]


@pytest.mark.parametrize("chosen", ["mule", "runtime"])
def test_a_setting_says_what_auto_stands_for(path, chosen):
    uwsgi = FakeUwsgi(spoolers=(str(path),), mules=1)
    app_in(uwsgi, executor=chosen).task(send)(1)
    assert (uwsgi.spool_files(), len(uwsgi.messages), len(sent)) == (
        [],
        int(chosen == "mule"),
        int(chosen == "runtime"),
    )


def test_a_setting_that_names_what_the_server_lacks_is_a_clear_error():
    task = app_in(FakeUwsgi(), executor="spooler").task(send)
    with pytest.raises((ConfigurationError, SubmitError), match="spooler = "):
        task(1)


def test_a_task_changes_its_way_when_the_settings_change(path):
    app = app_in(spooler_dir=str(path))
    task = app.task(send)
    task(1)
    app.configure(executor="runtime")
    task(2)
    assert (len(list(path.glob("uwsgi*"))), sent) == (1, [(2,)])


def test_all_calls_of_a_map_travel_together(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    handles = app_in(uwsgi).task(send).map(range(100))
    assert (len(uwsgi.spool_files()), len({handle.id for handle in handles})) == (1, 100)


def test_a_map_that_runs_at_once_has_its_results_in_order():
    handles = app_in().task(executor="runtime")(send).map("abc")
    assert [handle.result() for handle in handles] == [("a",), ("b",), ("c",)]


def test_a_map_under_auto_goes_to_a_mule(path):
    uwsgi = FakeUwsgi(mules=1)
    handles = app_in(uwsgi).task(send).map("abc")
    assert (len(handles), len(uwsgi.messages)) == (3, 1)


def test_the_handle_of_a_job_that_travels_knows_only_that(path):
    handle = app_in(spooler_dir=str(path)).task(send)(1)
    with pytest.raises(ResultNotKept):
        handle.result()
    assert handle.state is State.QUEUED


def test_the_handle_and_the_job_have_one_id(path):
    handle = app_in(spooler_dir=str(path)).task(send)(1)
    (file,) = path.iterdir()
    assert decode(unpack(file.read_bytes())[1])[0].id == handle.id


def test_threads_build_one_executor():
    app = app_in()
    found = []
    barrier = threading.Barrier(8)

    def build():
        barrier.wait()
        found.append(app.executor("runtime"))

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1


# --- declaring


def test_a_task_is_declared_bare():
    assert app_in().task(send).func is send


def test_a_task_is_declared_with_options():
    assert app_in().task(executor=TaskExecutor.MULE)(send).options.executor == "mule"


def test_options_come_by_name():
    with pytest.raises(InvalidTask, match="options by name"):
        app_in().task(send, priority=5)


def test_an_unknown_option_is_refused_before_the_function_is_seen():
    with pytest.raises(InvalidTask, match="no option prio"):
        app_in().task(prio=5)


@pytest.mark.parametrize(
    ("setup", "given", "remedy"),
    [
        ({}, {"executor": "spooler"}, "add 'spooler = DIRECTORY'"),
        ({}, {"executor": "mule"}, "add 'mules = 2'"),
        ({}, {"at": 5}, "add 'spooler = DIRECTORY'"),
        ({}, {"priority": 5}, "add 'spooler = DIRECTORY'"),
        ({"mules": 1}, {"at": 5}, "use the spooler"),
        ({"mules": 1}, {"executor": "mule", "priority": 5}, "use the spooler"),
        ({"mules": 1}, {"retry_count": 3, "retry_timeout": 5}, "add 'enable-threads"),
        ({"mules": 1}, {"executor": "mule", "spooler": "/a"}, "spooler= is for the spooler"),
        ({"mules": 1}, {"executor": "runtime", "mule": 1}, "mule= is for the mule"),
        ({}, {"executor": "runtime", "at": 5}, "runtime cannot delay"),
        ({"spoolers": ("/a",)}, {"priority": 5}, "spooler-ordered = true"),
        ({"spoolers": ("/a",)}, {"spooler": "/b"}, "add 'spooler = /b'"),
    ],
)
def test_what_the_server_cannot_do_is_refused_when_it_is_declared(setup, given, remedy):
    app = App(Server(FakeUwsgi(**setup)))
    app.set_uwsgi_callbacks = lambda: None
    with pytest.raises(InvalidTask, match=remedy):
        app.task(**given)(send)


def test_an_executor_that_does_not_exist_is_refused_with_the_choices():
    with pytest.raises(ConfigurationError, match="use one of mule, redis, runtime, spooler"):
        app_in().task(executor="kafka")(send)


@pytest.mark.parametrize("executor", ["auto", "spooler", "mule"])
def test_a_server_without_its_master_is_refused(executor):
    with pytest.raises(ConfigurationError, match="add 'master = true'"):
        app_in(FakeUwsgi(master=False)).task(executor=executor)(send)


def test_what_runs_at_once_needs_no_master():
    assert app_in(FakeUwsgi(master=False)).task(executor="runtime")(send)(1).result() == (1,)


def test_a_spooler_directory_that_everybody_may_write_to_is_refused(path):
    path.chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod o-w"):
        app_in(FakeUwsgi(spoolers=(str(path),))).task(send)


def a_local_one():
    def local():
        pass

    return local


@pytest.mark.parametrize("make", [lambda: lambda: 0, a_local_one])
def test_what_cannot_be_imported_is_refused_inside_uwsgi(path, make):
    app = app_in(FakeUwsgi(spoolers=(str(path),)))
    with pytest.raises(InvalidTask, match=r"cannot be imported .* declare it at the top"):
        app.task(make())


def test_what_cannot_be_imported_may_run_at_once(path):
    app = app_in(FakeUwsgi(spoolers=(str(path),)))
    assert app.task(executor="runtime")(lambda: 5)().result() == 5


def test_what_cannot_be_imported_will_do_where_all_runs_at_once():
    with pytest.warns(RuntimeWarning):
        assert app_in().task(lambda: 5)().result() == 5


def test_what_cannot_be_imported_is_refused_when_it_would_travel_after_all(path):
    task = app_in(spooler_dir=str(path)).task(lambda: 5)
    with pytest.raises(InvalidTask, match="cannot be imported"):
        task()
    assert list(path.iterdir()) == []


def test_two_tasks_of_one_name_are_refused_with_the_remedy():
    app = app_in()
    app.task(name="shop.send")(send)
    with pytest.raises(InvalidTask, match=r"two tasks are called shop\.send: .* name="):
        app.task(name="shop.send")(app_in)


def test_the_same_function_may_be_declared_again():
    # As a module that is loaded under two names, or reloaded.
    app = app_in()
    app.task(send)
    assert app.task(send).name == f"{__name__}.send"


def test_a_function_without_a_name_can_be_a_task_with_one():
    task = app_in().task(executor="runtime", name="shop.send")(partial(send, "me"))
    assert task("hello").result() == ("me", "hello")


def test_a_changed_copy_goes_its_own_way(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),), mules=1)
    app_in(uwsgi).task(send).using(executor="mule")(1)
    assert (uwsgi.spool_files(), len(uwsgi.messages)) == ([], 1)


# --- settings


def test_settings_of_the_app_are_its_own(path):
    assert app_in(spooler_dir=str(path)).settings.spooler_dir == str(path)


def test_configure_adds_to_what_was_set(path):
    app = app_in(spooler_dir=str(path))
    app.configure(crash_limit=7)
    assert (app.settings.spooler_dir, app.settings.crash_limit) == (str(path), 7)


def test_a_setting_that_is_refused_changes_nothing():
    app = app_in()
    with pytest.raises(ConfigurationError):
        app.configure(crash_limit=0)
    assert app.settings.crash_limit == 3


# --- finding tasks


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that is imported for the first time by the test."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, source):
        file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        written.append(name.partition(".")[0])
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] in written]:
        del sys.modules[name]


def test_a_task_is_found_by_importing_its_module(module, monkeypatch):
    app = app_in()
    monkeypatch.setattr("uwsgi_tasks.task", app.task)
    module("findable.tasks", "from uwsgi_tasks import task\n@task\ndef send(): pass\n")
    assert app.find("findable.tasks.send").name == "findable.tasks.send"


def test_a_task_in_a_class_is_found_by_importing_its_module(module, monkeypatch):
    app = app_in()
    monkeypatch.setattr("uwsgi_tasks.task", app.task)
    source = "from uwsgi_tasks import task\nclass Shop:\n    @task\n    def send(): pass\n"
    module("findable2", source)
    assert app.find("findable2.Shop.send").name == "findable2.Shop.send"


def test_a_task_that_is_known_is_found_without_an_import():
    app = app_in()
    task = app.task(name="shop.send")(send)
    assert app.find("shop.send") is task


def test_a_task_of_0_7_is_found_by_the_module_name_that_uwsgi_made_up():
    app = app_in()
    task = app.task(name="shop.send")(send)
    assert app.find(f"{__name__}.send") is task


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("send", "renamed or removed"),
        ("no_such_module.send", "renamed or removed"),
        ("os.path.join", "renamed or removed"),
    ],
)
def test_a_task_that_nobody_declares_is_not_found(name, reason):
    with pytest.raises(TaskNotFound, match=reason):
        app_in().find(name)


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import no_such_thing", "No module named 'no_such_thing'"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_module_that_fails_is_named_with_its_error(module, source, reason):
    module("unfindable", source)
    with pytest.raises(TaskNotFound, match=f"importing unfindable failed: .*{reason}"):
        app_in().find("unfindable.send")


# --- dead letters


NOW = 1_700_000_000.0
LETTER = DeadLetter(
    id="1", task="shop.send", executor="mule", attempt=2, failed_at=NOW, error="no", payload=b"job"
)


def kept_in_a_file(app):
    """Have the app keep a dead letter while its store is away; return the file."""
    return Path(app.dead.keep(LETTER))


def away():
    """A store that is out of reach, and the URL by which it is named."""
    return {"store": f"{__name__}:Away:"}


class Away(MemoryStore):
    def bury(self, letter):
        raise StoreError("nobody is at home")


def test_dead_letters_lie_in_the_store(path):
    app = app_in(FakeUwsgi(spoolers=(str(path),)))
    assert (app.dead.keep(LETTER), app.dead.list()) == ("the store", [LETTER])


def test_dead_letters_lie_in_the_directory_of_the_spooler(path):
    app = app_in(FakeUwsgi(spoolers=(str(path),)), **away())
    assert kept_in_a_file(app).parent == path / "dead"


def test_the_store_lies_beside_the_jobs(path):
    app_in(FakeUwsgi(spoolers=(str(path),))).dead.keep(LETTER)
    assert (path / "store.sqlite3").exists()


def test_without_a_spooler_dead_letters_lie_where_the_setting_says(tmp_path):
    app = app_in(FakeUwsgi(), dead_dir=str(tmp_path / "dead" / "letters"), **away())
    assert kept_in_a_file(app).parent == tmp_path / "dead" / "letters"


def test_without_a_setting_dead_letters_lie_in_a_private_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = kept_in_a_file(app_in(**away()))
    private = tmp_path / f"uwsgi_tasks-{os.geteuid()}"
    assert (file.parent, private.stat().st_mode & 0o777) == (private / "dead", 0o700)


@pytest.mark.parametrize("fault", ["mode", "link"])
def test_a_folder_that_somebody_else_has_prepared_is_refused(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    private = tmp_path / f"uwsgi_tasks-{os.geteuid()}"
    if fault == "mode":
        private.mkdir()
        private.chmod(0o755)
    else:
        (tmp_path / "theirs").mkdir(mode=0o700)
        private.symlink_to(tmp_path / "theirs")
    with pytest.raises(ConfigurationError, match="is not private: set 'dead_dir'"):
        kept_in_a_file(app_in(**away()))


# --- inside uWSGI


def test_the_first_task_installs_the_callbacks(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),), role="master")
    app = App(Server(uwsgi))
    before = hasattr(uwsgi, "spooler")
    app.task(send)
    assert (before, hasattr(uwsgi, "spooler"), hasattr(uwsgi, "mule_msg_hook")) == (
        *(False, True),
        True,
    )


def test_without_a_master_no_callbacks_are_installed():
    uwsgi = FakeUwsgi(master=False, role="master")
    App(Server(uwsgi)).set_uwsgi_callbacks()
    assert not hasattr(uwsgi, "spooler")


def test_a_spooler_takes_up_its_work_after_the_fork(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    app = app_in(uwsgi)
    uwsgi.fork(app.server, "spooler")
    assert (path / "running" / _own_name()).exists()


def test_a_worker_takes_up_no_work_of_a_spooler(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    app = app_in(uwsgi)
    uwsgi.fork(app.server, "worker")
    assert list(path.iterdir()) == []


def test_a_spooler_that_cannot_take_up_its_work_is_logged_and_tries_again(path, caplog):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    app = app_in(uwsgi)
    app.task(send)(1)
    path.chmod(0o777)
    uwsgi.fork(app.server, "spooler")
    path.chmod(0o750)
    assert "this spooler could not take up its work" in caplog.text
    assert (uwsgi.look(), sent) == (1, [(1,)])


def test_a_job_of_a_second_app_finds_its_task(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    first, second = app_in(uwsgi), app_in(uwsgi)
    first.task(name="first")(send)
    second.task(name="second")(send)(2)
    uwsgi.look()
    assert sent == [(2,)]


def test_a_job_whose_task_is_gone_is_a_dead_letter_and_is_done_with(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    app = app_in(uwsgi)
    uwsgi.spool({b"body": encode([Job("1", "no.such.task")])})
    assert (uwsgi.look(), [letter.id for letter in app.dead.list()]) == (1, ["1"])


def test_bytes_that_are_no_job_are_a_dead_letter_and_are_done_with(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    app = app_in(uwsgi)
    uwsgi.spool({b"body": encode([Job("1", "f")])[:-1]})
    assert uwsgi.look() == 1
    (letter,) = app.dead.list()
    assert "cut or altered" in letter.error
    assert letter.payload == encode([Job("1", "f")])[:-1]


def test_a_large_file_of_0_7_that_is_refused_is_kept_whole(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    app = app_in(uwsgi, accept_legacy=False)
    content = bytes(range(256)) * 100
    uwsgi.spool({b"function_name": b"shop.send", b"setup": b"x", b"args": content})
    uwsgi.look()
    (letter,) = app.dead.list()
    variables, _ = unpack(pack_raw(letter.variables, b""))
    assert variables["args"].encode("utf-8", "surrogateescape") == content


# --- settings that come late, and one server for all


def test_an_executor_that_does_not_exist_is_refused_by_configure():
    app = app_in()
    with pytest.raises(ConfigurationError, match="no executor 'nosuch'"):
        app.configure(executor="nosuch")
    assert app.settings.executor == "auto"


@pytest.fixture
def django(monkeypatch):
    """Django that is imported, and whose settings nobody has named yet."""
    settings = SimpleNamespace(configured=False)
    conf = SimpleNamespace(settings=settings)
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.setitem(sys.modules, "django", SimpleNamespace(conf=conf))
    monkeypatch.setitem(sys.modules, "django.conf", conf)
    return settings


def test_settings_are_read_again_until_django_has_its_own(django):
    app = app_in()
    before = app.settings.crash_limit
    django.configured, django.UWSGI_TASKS = True, {"crash_limit": 7}
    assert (before, app.settings.crash_limit) == (3, 7)
    django.UWSGI_TASKS = {"crash_limit": 9}
    assert app.settings.crash_limit == 7


def test_a_call_goes_by_the_settings_that_django_got_after_the_last_one(path, django):
    task = app_in().task(send)
    with pytest.warns(RuntimeWarning):
        task(1)
    django.configured, django.UWSGI_TASKS = True, {"spooler_dir": str(path)}
    task(2)
    assert (sent, len(list(path.iterdir()))) == ([(1,)], 1)


def test_apps_without_a_server_of_their_own_share_the_one_of_the_process():
    assert App().server is App().server
    server = Server(None)
    assert App(server).server is server


def test_a_job_does_not_find_the_task_of_an_app_in_another_server():
    other, here = app_in(FakeUwsgi()), app_in(FakeUwsgi())
    other.task(name="others", executor="runtime")(send)
    with pytest.raises(TaskNotFound):
        here.find("others")


def test_local_functions_of_one_line_are_tasks_of_their_own():
    app = app_in(executor="runtime")
    first, second = (app.task(lambda number=number: number) for number in (1, 2))
    assert (first().result(), second().result()) == (1, 2)


def test_a_changed_copy_of_a_local_function_runs_that_function():
    app = app_in(executor="runtime")
    first, second = (app.task(lambda number=number: number) for number in (1, 2))
    assert [task.using(retry_count=2)().result() for task in (first, second)] == [1, 2]


def test_a_mule_that_is_not_there_is_refused_when_the_task_is_declared():
    with pytest.raises(InvalidTask, match="there is no mule 3: this server has 1"):
        app_in(FakeUwsgi(mules=1)).task(executor="mule", mule=3)(send)


@pytest.mark.parametrize("given", [{"at": timedelta(days=1)}, {"priority": 5}])
def test_where_threads_are_the_fallback_a_task_may_wait_and_be_important(given):
    uwsgi = FakeUwsgi()
    uwsgi.has_threads = 1
    app = app_in(uwsgi, fallback="thread")
    with uwsgi.being("worker"):
        handle = app.task(**given)(send)(1)
        assert app.read(handle.id).task.endswith("send")
        handle.cancel()
    with pytest.raises(InvalidTask, match="or use executor=TaskExecutor"):
        app_in(uwsgi).task(**given)(send)


def test_a_dead_letter_of_a_thread_is_submitted_to_the_spooler_where_there_is_one(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    uwsgi.has_threads = 1
    app = app_in(uwsgi, store=f"sqlite:///{path}/store.sqlite3")
    app.task(name="send", executor="thread")(send)
    later = time.time() + 3600
    job = Job("3f-1", "send", (5,), at=later)
    app.dead.keep(
        DeadLetter(
            id="3f-1",
            task="send",
            executor="thread",
            attempt=1,
            failed_at=1.0,
            error="it ended",
            payload=encode([job]),
        )
    )
    app.dead.requeue("3f-1")
    (standing,) = app.jobs()
    assert (standing.executor, standing.at) == ("spooler", pytest.approx(later, abs=1))


# --- what is for Redis


FOR_REDIS = [{"queue": "mail"}, {"lease": 5}, {"lease": None}]


@pytest.mark.parametrize("given", FOR_REDIS)
@pytest.mark.parametrize("executor", ["spooler", "mule", "thread", "runtime"])
def test_a_queue_and_a_lease_are_refused_where_there_are_none(path, executor, given):
    uwsgi = FakeUwsgi(spoolers=(str(path),), mules=1)
    uwsgi.has_threads = 1
    with pytest.raises(InvalidTask, match=f"queue= and lease= are for redis: {executor} has none"):
        app_in(uwsgi).task(executor=executor, **given)(send)


@pytest.mark.parametrize("executor", ["spooler", "mule", "thread", "runtime"])
def test_who_pickles_in_any_case_is_not_asked_for_json(path, executor):
    uwsgi = FakeUwsgi(spoolers=(str(path),), mules=1)
    uwsgi.has_threads = 1
    with pytest.raises(InvalidTask, match=f"serializer=: {executor} pickles; use redis"):
        app_in(uwsgi).task(executor=executor, serializer="json")(send)


@pytest.mark.parametrize("given", [{"queue": "mail"}, {"lease": 5}, {"serializer": "json"}])
def test_under_auto_what_is_for_redis_may_be_said_before_there_is_one(path, given):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    app_in(uwsgi).task(**given)(send)(1)
    assert len(uwsgi.spool_files()) == 1


def test_under_auto_a_spooler_is_not_asked_for_what_it_would_not_keep(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    with pytest.raises(InvalidTask, match="lease=None: the spooler runs a job again"):
        app_in(uwsgi).task(lease=None)(send)


def test_under_auto_what_redis_cannot_do_is_refused_where_a_setting_means_that():
    with pytest.raises(InvalidTask, match="priority=10: on redis it goes from 0"):
        app_in(executor="redis", redis="redis://localhost:1").task(priority=10)(send)


def test_under_auto_a_setting_sends_calls_to_redis_also_inside_uwsgi(path):
    uwsgi = FakeUwsgi(spoolers=(str(path),))
    app = app_in(uwsgi, executor="redis", redis="redis://localhost:1")
    with pytest.raises(SubmitError, match=r"Redis at redis://localhost:1"):
        app.task(send)(1)
    assert uwsgi.spool_files() == []


@pytest.mark.parametrize("given", [{"result_ttl": 5}, {"unique": "a"}])
def test_under_auto_what_must_be_kept_needs_a_store_that_workers_see(given):
    with pytest.raises(InvalidTask, match=r"a store that all processes see .*: set 'redis'"):
        app_in(executor="redis").task(**given)(send)


def test_redis_is_the_store_where_no_other_one_is_named():
    app = app_in(redis="redis://localhost:1", namespace="shop")
    assert (app.store.url, app.store.namespace) == ("redis://localhost:1", "shop")
    assert app_in(redis="redis://localhost:1", store="memory://").store.url == "memory://"


def test_without_redis_its_package_is_not_imported():
    source = """
import sys
from uwsgi_tasks import App
from uwsgi_tasks.server import Server
app = App(Server(None))
app.task(executor="runtime")(lambda: 5)()
app.jobs(), app.waiting()
assert not {"redis", "uwsgi_tasks.redis.client", "uwsgi_tasks.executors.redis"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", source], check=True, timeout=60)
