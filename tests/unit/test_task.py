"""What @task makes."""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from pathlib import Path
from types import ModuleType

import pytest

from uwsgi_tasks import InvalidTask, Retry, TaskExecutor
from uwsgi_tasks.task import Options, Task, options, task_name


class Taking:
    """An app that takes every task, and keeps the calls."""

    def __init__(self):
        self.calls = []

    def check(self, task):
        self.checked = task

    def submit(self, task, args, kwargs):
        self.calls.append((task, args, kwargs))
        return "a handle"

    def submit_all(self, task, calls):
        self.calls.append((task, calls))
        return ["a handle"] * len(calls)


@pytest.fixture
def app():
    return Taking()


def send(to, copy=False):
    """Send a letter."""
    return to, copy


class Shop:
    """Functions in a class, and a method."""

    def send():
        pass

    def sell(self):
        pass


def declared(app, func=send, **given):
    return Task(func, options(given), app)


# --- calling


def test_a_call_is_submitted_with_all_its_arguments(app):
    task = declared(app)
    assert task("me", copy=True) == "a handle"
    assert app.calls == [(task, ("me",), {"copy": True})]


def test_the_names_of_options_are_free_for_the_users_arguments(app):
    declared(app)("me", at=1, name="x", executor="y", func=2, priority=3)
    assert app.calls[0][2] == {"at": 1, "name": "x", "executor": "y", "func": 2, "priority": 3}


def test_the_plain_function_runs_here_and_now(app):
    assert (declared(app).func("me"), app.calls) == (("me", False), [])


def test_the_name_of_the_function_and_its_docstring_stay(app):
    task = declared(app)
    assert (task.__name__, task.__doc__, task.__wrapped__) == ("send", "Send a letter.", send)


def test_map_calls_once_for_each_item(app):
    task = declared(app)
    assert task.map(["a", "b"]) == ["a handle", "a handle"]
    assert app.calls == [(task, [("a",), ("b",)])]


def test_map_zips_several_iterables_as_the_built_in_does(app):
    declared(app).map(iter("abc"), [1, 2])
    assert app.calls[0][1] == [("a", 1), ("b", 2)]


def test_map_of_nothing_submits_nothing(app):
    assert (declared(app).map([]), app.calls) == ([], [])


def test_a_task_shows_its_name(app):
    assert repr(declared(app, name="shop.send")) == "<Task shop.send>"


def test_every_task_is_checked_when_it_is_declared(app):
    assert declared(app) is app.checked


@pytest.mark.parametrize("func", ["send", None, 5])
def test_what_is_no_function_cannot_be_a_task(app, func):
    with pytest.raises(InvalidTask, match="@task decorates a function"):
        Task(func, Options(), app)


# --- using


def test_a_changed_copy_has_the_change_and_the_rest(app):
    copy = declared(app, name="shop.send", retry_count=3).using(priority=5)
    assert (copy.name, copy.options.retry_count, copy.options.priority) == ("shop.send", 3, 5)


def test_the_task_itself_stays_as_it_is(app):
    task = declared(app)
    task.using(priority=5)
    assert task.options.priority is None


def test_what_is_derived_of_an_option_changes_with_it(app):
    copy = declared(app).using(retry_count=3, retry_timeout=5)
    assert (copy.options.obeys_codes, copy.options.waits) == (True, True)


def test_a_changed_copy_is_checked_too(app):
    copy = declared(app).using(priority=5)
    assert app.checked is copy


def test_a_change_that_is_no_option_is_refused(app):
    with pytest.raises(InvalidTask, match="no option prio: choose from executor, "):
        declared(app).using(prio=5)


# --- options


@pytest.mark.parametrize(
    "given",
    [
        {"executor": 2},
        {"executor": None},
        {"name": ""},
        {"name": 5},
        {"working_dir": "relative"},
        {"working_dir": 5},
        {"working_dir": b"/srv"},
        {"at": "tomorrow"},
        {"at": -1},
        {"at": timedelta(seconds=-1)},
        {"priority": "high"},
        {"priority": -1},
        {"priority": "-1"},
        {"priority": 1.5},
        {"priority": True},
        {"spooler": 5},
        {"mule": -1},
        {"mule": True},
        {"mule": 1.5},
        {"spooler_return": 1},
        {"retry_count": 0},
        {"retry_count": "many"},
        {"retry_timeout": -1},
        {"retry_timeout": "5"},
        {"retry": 3},
        {"dead_letter": None},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": timedelta(days=366)},
        {"queue": ""},
        {"queue": "a b"},
        {"queue": "a:b"},
        {"queue": "a,b"},
        {"queue": "a=1"},
        {"queue": "{a}"},
        {"queue": "q" * 101},
        {"queue": 5},
        {"lease": 0},
        {"lease": -1},
        {"lease": "5"},
        {"lease": True},
        {"lease": float("inf")},
        {"lease": timedelta(days=366)},
        {"serializer": "yaml"},
        {"serializer": ""},
        {"serializer": 5},
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_name(given):
    (name,) = given
    with pytest.raises(InvalidTask, match=name):
        options(given)


def test_several_unknown_options_are_all_named():
    with pytest.raises(InvalidTask, match="no option count, prio: choose from"):
        options({"prio": 1, "count": 2})


def test_the_default_of_working_dir_says_what_it_is():
    assert repr(options({}).working_dir) == "the caller's directory"


@pytest.mark.parametrize("name", ["obeys_codes", "waits"])
def test_what_is_derived_is_no_option(name):
    with pytest.raises(InvalidTask, match=f"no option {name}"):
        options({name: True})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"priority": "10"}, 10),  # 0.7 took texts
        ({"priority": 0}, 0),
        ({"retry_timeout": timedelta(days=1)}, 86400.0),
        ({"retry_timeout": 5}, 5.0),
        ({"working_dir": Path("/srv")}, "/srv"),
        ({"working_dir": None}, None),
        ({"spooler": Path("/spool")}, "/spool"),
        ({"mule": "farm1"}, "farm1"),
        ({"mule": 0}, 0),
        ({"executor": "spooler"}, TaskExecutor.SPOOLER),
        ({"queue": "shop.mail-1"}, "shop.mail-1"),
        ({"queue": "bälle"}, "bälle"),
        ({"queue": None}, None),
        ({"lease": timedelta(minutes=5)}, 300.0),
        ({"lease": 0.5}, 0.5),
        ({"lease": None}, None),
        ({"serializer": "json"}, "json"),
        ({"serializer": "pickle"}, "pickle"),
        ({"serializer": None}, None),
    ],
)
def test_an_option_is_taken_as_it_is_meant(given, expected):
    (name,) = given
    assert getattr(options(given), name) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, False), ({"spooler_return": True}, True), ({"retry_count": 2}, True)],
)
def test_a_number_of_runs_implies_that_codes_are_obeyed(given, expected):
    assert options(given).obeys_codes is expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"retry_count": 2}, False),
        ({"retry_timeout": 2}, True),
        ({"retry": Retry()}, False),
        ({"retry": Retry(delay=1)}, True),
    ],
)
def test_a_task_whose_retries_wait_is_known(given, expected):
    assert options(given).waits is expected


# --- the job of a call


def test_a_job_holds_what_the_task_says(app):
    task = declared(
        *(app, send),
        name="shop.send",
        priority=3,
        retry_count=2,
        retry_timeout=5,
        spooler="/a",
        mule=2,
        working_dir="/srv",
        result_ttl=60,
        unique=lambda who, **_: who,
        durable=True,
        queue="mail",
        lease=5,
        serializer="json",
    )
    job = task.job("1", ("me",), {"copy": True})
    assert job._replace(submitted_at=0)._asdict() == {
        "id": "1",
        "task": "shop.send",
        "args": ("me",),
        "kwargs": {"copy": True},
        "attempt": 1,
        "submitted_at": 0,
        "at": None,
        "delay": None,
        "working_dir": "/srv",
        "priority": 3,
        "retry_count": 2,
        "retry_timeout": 5.0,
        "spooler": "/a",
        "mule": 2,
        "buffer": None,
        "expires_at": None,
        "result_ttl": 60.0,
        "unique": "me",
        "durable": True,
        "began_at": None,
        "headers": None,
        "queue": "mail",
        "lease": 5.0,
        "serializer": "json",
    }


def test_without_a_word_a_job_has_the_usual_queue_lease_and_serializer(app):
    job = declared(app).job("1", (), {})
    assert (job.queue, job.lease, job.serializer) == (None, None, None)


@pytest.mark.parametrize(("given", "lease"), [(30, None), (5, 5.0), (None, 0.0)])
def test_a_job_says_its_lease_if_that_is_not_the_usual_one(app, given, lease):
    assert declared(app, lease=given).job("1", (), {}).lease == lease


def test_queue_lease_and_serializer_may_change_from_call_to_call(app):
    job = declared(app).using(queue="mail", lease=None, serializer="json").job("1", (), {})
    assert (job.queue, job.lease, job.serializer) == ("mail", 0.0, "json")


def test_a_job_remembers_when_it_was_submitted(app, clock):
    before = clock()
    assert before <= declared(app).job("1", (), {}).submitted_at <= clock()


def test_a_job_goes_to_the_directory_of_its_caller(app, home):
    assert declared(app).job("1", (), {}).working_dir == str(home)


def test_a_caller_whose_directory_is_gone_leaves_it_alone(app, home):
    home.rmdir()
    assert declared(app).job("1", (), {}).working_dir is None


def test_working_dir_none_leaves_it_alone(app):
    assert declared(app, working_dir=None).job("1", (), {}).working_dir is None


def test_a_delay_counts_from_each_call(app, clock):
    task = declared(app, at=timedelta(seconds=10))
    clock.advance(1000)
    job = task.job("1", (), {})
    assert (job.at - job.submitted_at, job.delay) == (pytest.approx(10), 10.0)


def test_a_time_is_the_same_at_each_call(app):
    at = datetime(2030, 1, 1, tzinfo=UTC)
    job = declared(app, at=at).job("1", (), {})
    assert (job.at, job.delay) == (at.timestamp(), None)


# --- names


def test_a_task_is_called_after_its_module_and_function():
    assert task_name(send) == f"{__name__}.send"


def test_a_method_is_called_after_its_class_too():
    assert task_name(Taking.check) == f"{__name__}.Taking.check"


def test_a_function_that_was_wrapped_has_the_name_of_the_inner_one():
    @wraps(send)
    def outer(*args):
        return send(*args)

    assert task_name(outer) == f"{__name__}.send"


def test_a_function_without_a_name_is_refused_with_the_remedy():
    with pytest.raises(InvalidTask, match="give it one with name="):
        task_name(partial(send, "me"))


def test_a_name_that_is_given_is_taken(app):
    assert declared(app, partial(send, "me"), name="shop.send").name == "shop.send"


@pytest.mark.parametrize(
    ("func", "importable"),
    [(send, True), (lambda: 0, False), (Shop.send, True), (asyncio.sleep, True)],
)
def test_only_what_stands_at_the_top_of_a_module_can_be_imported(app, func, importable):
    assert declared(app, func).is_importable is importable


def test_a_local_function_cannot_be_imported(app):
    def local():
        pass

    assert not declared(app, local).is_importable


def test_a_local_function_with_a_name_counts_on_its_user(app):
    assert declared(app, lambda: 0, name="shop.send").is_importable


def test_a_function_that_is_not_of_python_can_be_a_task(app):
    assert declared(app, os.sync).place == ("", 0)


def loaded(monkeypatch, path, module, source="def send():\n    pass\n"):
    """The function in a file that was loaded under another name than it would be imported by."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    found = ModuleType(module)
    found.__file__ = str(path)
    exec(compile(source, str(path), "exec"), vars(found))
    monkeypatch.setitem(sys.modules, module, found)
    return found.send


@pytest.mark.parametrize("module", ["uwsgi_file__srv_shop_wsgi_py", "__main__"])
def test_a_file_that_uwsgi_or_python_was_given_has_the_name_to_import_it_by(
    tmp_path, monkeypatch, module
):
    func = loaded(monkeypatch, tmp_path / "shopwsgi.py", module)
    monkeypatch.syspath_prepend(tmp_path)
    assert task_name(func) == "shopwsgi.send"


def test_a_file_in_a_package_has_the_name_of_the_package_too(tmp_path, monkeypatch):
    func = loaded(monkeypatch, tmp_path / "shopsite" / "wsgi.py", "uwsgi_file_wsgi")
    (tmp_path / "shopsite" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert task_name(func) == "shopsite.wsgi.send"


def test_a_file_that_was_named_relative_to_the_path_is_found(home, monkeypatch):
    func = loaded(monkeypatch, home / "relatively.py", "uwsgi_file_relatively")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert task_name(func) == "relatively.send"


def test_a_module_run_by_its_name_keeps_it(monkeypatch):
    func = loaded(monkeypatch, Path(os.devnull).parent / "shm" / "run_by_name.py", "__main__")
    main = ModuleType("__main__")
    main.__spec__ = type("Spec", (), {"name": "shop.work.__main__"})
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert task_name(func) == "shop.work.send"


@pytest.mark.parametrize("name", ["not-a-name.py", "noextension", "hidden.py"])
def test_a_file_that_nobody_can_import_keeps_a_name_that_says_so(tmp_path, monkeypatch, app, name):
    func = loaded(monkeypatch, tmp_path / name, "uwsgi_file_x")
    if name != "hidden.py":
        monkeypatch.syspath_prepend(tmp_path)
    assert not declared(app, func).is_importable


def test_a_file_that_another_module_of_its_name_hides_cannot_be_imported(
    tmp_path, monkeypatch, app
):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "twice.py").touch()
    func = loaded(monkeypatch, tmp_path / "second" / "twice.py", "uwsgi_file_twice")
    monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.syspath_prepend(tmp_path / "first")
    assert not declared(app, func).is_importable


def test_a_package_that_cannot_be_imported_is_no_fault(tmp_path, monkeypatch, app):
    func = loaded(monkeypatch, tmp_path / "broken" / "wsgi.py", "uwsgi_file_wsgi")
    (tmp_path / "broken" / "__init__.py").write_text("raise ImportError('no')")
    monkeypatch.syspath_prepend(tmp_path)
    assert not declared(app, func).is_importable


def test_a_package_that_fails_is_no_fault(tmp_path, monkeypatch, app):
    func = loaded(monkeypatch, tmp_path / "failing" / "wsgi.py", "uwsgi_file_wsgi")
    (tmp_path / "failing" / "__init__.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    assert not declared(app, func).is_importable


# --- what would do nothing, or fail each time


def test_a_method_is_refused_with_the_remedy(app):
    with pytest.raises(InvalidTask, match=r"Shop\.sell is a method, .* make it a function"):
        declared(app, Shop.sell)


def test_a_method_that_is_wrapped_is_a_method(app):
    @wraps(Shop.sell)
    def outer(*args):
        return Shop.sell(*args)

    with pytest.raises(InvalidTask, match="is a method"):
        declared(app, outer)


@pytest.mark.parametrize("func", [Shop.send, staticmethod(send).__func__], ids=["class", "static"])
def test_a_function_in_a_class_can_be_a_task(app, func):
    assert declared(app, func).func is func


def test_a_function_whose_argument_is_called_self_can_be_a_task(app):
    def local(self):
        return self

    assert declared(app, local, name="shop.send").func is local


def generates():
    yield 1


async def generates_later():
    yield 1


@pytest.mark.parametrize("func", [generates, generates_later, wraps(generates)(lambda: 0)])
def test_a_generator_is_refused(app, func):
    with pytest.raises(InvalidTask, match="is a generator, of which a call would run nothing"):
        declared(app, func)


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"retry": Retry()}, {"spooler_return": True}, {"dead_letter": False}],
)
def test_what_the_worker_goes_by_cannot_change_from_call_to_call(app, change):
    (name,) = change
    with pytest.raises(InvalidTask, match=f"send: {name} cannot change from call to call"):
        declared(app).using(**change)


def test_all_that_cannot_change_is_named(app):
    with pytest.raises(InvalidTask, match="dead_letter, name cannot change"):
        declared(app).using(name="x", dead_letter=False, priority=3)


def test_an_argument_may_be_called_self(app):
    declared(app)(self=1)
    assert app.calls[0][1:] == ((), {"self": 1})


@pytest.mark.parametrize("at", [253_402_300_800, 1e18, 1e300])
def test_a_time_after_the_year_9999_is_refused(app, at):
    with pytest.raises(InvalidTask, match="at="):
        declared(app, at=at)


def test_what_no_module_of_its_name_can_be_imported_for_keeps_its_name(monkeypatch, app):
    func = loaded(monkeypatch, Path(os.devnull).parent / "shm" / "nowhere.py", "uwsgi_file_x")
    monkeypatch.setattr(sys, "path", [])
    assert not declared(app, func).is_importable


def test_a_method_of_a_built_in_type_needs_a_name(app):
    with pytest.raises(InvalidTask, match="give it one with name="):
        declared(app, [].append)
    assert declared(app, [].append, name="keep").name == "keep"
