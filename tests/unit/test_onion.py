"""What surrounds the tasks of an app."""

import asyncio
import functools
import importlib
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest

from tests.fakes import FakeUwsgi
from tests.uwsgi_coverage import environment
from uwsgi_tasks import (
    App,
    FixtureFailed,
    InvalidTask,
    Retry,
    RetryTaskException,
    SubmitError,
    TaskTimeout,
    get_current_task,
)
from uwsgi_tasks.errors import Unpicklable
from uwsgi_tasks.model import State
from uwsgi_tasks.onion import Onion
from uwsgi_tasks.server import Server
from uwsgi_tasks.testing import capture_tasks, queue_tasks

pytestmark = pytest.mark.usefixtures("wakes", "home")


@pytest.fixture
def app():
    return App(Server(None), executor="runtime")


@pytest.fixture
def onion():
    made = Onion()
    yield made
    made.close()


@pytest.fixture
def seen():
    return []


# --- middlewares: what they may do


def around(seen, name):
    def note(_task, call):
        seen.append(f"{name} in")
        try:
            return call()
        finally:
            seen.append(f"{name} out")

    return note


def test_the_first_middleware_is_outermost_and_the_way_out_is_the_way_in_reversed(app, seen):
    app.middleware(around(seen, "first"))
    app.middleware(around(seen, "second"))

    app.task(lambda: seen.append("task"))()

    assert seen == ["first in", "second in", "task", "second out", "first out"]


def test_a_middleware_sees_the_job_and_the_value_that_the_task_returns(app, seen):
    @app.middleware
    def look(task, call):
        value = call()
        seen.append((task.name, task.args, task.kwargs, task.attempt, value))
        return value

    @app.task(name="shop.add")
    def add(a, b):
        return a + b

    assert add(2, b=3).result() == 5
    assert seen == [("shop.add", (2,), {"b": 3}, 1, 5)]


def test_a_middleware_sees_the_final_value_of_a_coroutine(app, seen):
    @app.middleware
    def look(_task, call):
        seen.append(call())
        return seen[-1]

    @app.task
    async def add(a, b):
        await asyncio.sleep(0)
        return a + b

    assert add(2, 3).result() == 5
    assert seen == [5]


def test_what_a_middleware_returns_is_the_value_of_the_attempt(app):
    app.middleware(lambda _task, call: call() * 10)

    assert app.task(lambda: 4)().result() == 40


def test_a_middleware_that_swallows_turns_a_failure_into_a_success(app):
    @app.middleware
    def swallow(_task, call):
        try:
            return call()
        except LookupError:
            return "nobody"

    @app.task
    def find():
        raise LookupError("no such user")

    assert find().result() == "nobody"


def test_an_outer_middleware_sees_the_success_that_an_inner_one_has_made(app, seen):
    @app.middleware
    def outer(_task, call):
        seen.append(call())

    @app.middleware
    def inner(_task, call):
        try:
            call()
        except OSError:
            return "mended"

    @app.task
    def fail():
        raise OSError("no such host")

    fail()
    assert seen == ["mended"]


def test_what_a_middleware_raises_is_how_the_attempt_ended(app):
    @app.middleware
    def refuse(_task, _call):
        raise PermissionError("not today")

    ran = []
    with pytest.raises(PermissionError, match="not today"):
        app.task(lambda: ran.append(1))()
    assert ran == []


def test_a_middleware_surrounds_each_attempt(app, seen):
    app.middleware(lambda task, call: (seen.append(task.attempt), call()))

    @app.task(retry=Retry(attempts=3))
    def fail():
        raise OSError("no such host")

    with pytest.raises(OSError, match="no such host"):
        fail()
    assert seen == [1, 2, 3]


def test_a_middleware_may_ask_for_another_attempt(app, seen):
    @app.middleware
    def again(task, call):
        seen.append(task.attempt)
        try:
            return call()
        except ConnectionError:
            raise RetryTaskException(count=2 if task.attempt == 1 else None) from None

    @app.task
    def flaky():
        if get_current_task().attempt == 1:
            raise ConnectionError
        return "done"

    assert flaky().result() == "done"
    assert seen == [1, 2]


def test_a_middleware_may_make_the_call_more_than_once(app, seen):
    @app.middleware
    def thrice(_task, call):
        for _ in range(3):
            call()

    app.task(lambda: seen.append(1))()
    assert seen == [1, 1, 1]


def test_the_attempts_that_are_made_by_hand_go_through_the_middlewares(app, seen):
    app.middleware(around(seen, "it"))

    assert [attempt.state for attempt in app.task(lambda: None).attempts()] == [State.SUCCEEDED]
    assert seen == ["it in", "it out"]


def test_the_time_limit_covers_the_middlewares(app):
    @app.middleware
    def slow(_task, call):
        time.sleep(30)
        return call()

    with pytest.raises(TaskTimeout):
        app.task(timeout=0.05)(lambda: None)()


def test_a_coroutine_has_the_time_that_the_middlewares_have_left(app):
    @app.middleware
    def slow(_task, call):
        time.sleep(0.2)
        return call()

    @app.task(timeout=0.4)
    async def sleep():
        await asyncio.sleep(30)

    raised = []

    def call():
        # In another thread no alarm rings: the coroutine is ended by its own limit.
        try:
            sleep()
        except TaskTimeout as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    began = time.monotonic()
    thread.start()
    thread.join()
    assert "0.4 s" in str(raised[0])
    assert time.monotonic() - began < 20


def test_the_traceback_of_a_failure_begins_in_the_middleware(app, caplog):
    app.middleware(around([], "it"))

    @app.task
    def fail():
        raise OSError("no such host")

    with queue_tasks(app) as queued:
        fail()
        queued.run(check=False)
    assert "_surrounded" not in caplog.text
    assert "in fail" in caplog.text


def test_an_app_without_middlewares_and_fixtures_wraps_nothing(onion):
    assert not onion.wraps


# --- declaring


def test_the_decorators_return_the_function_unchanged(onion):
    def middle(task, call): ...
    def values():
        yield

    def hook(job): ...

    assert onion.middleware(middle) is middle
    assert onion.fixture(values) is values
    assert onion.fixture(name="other")(values) is values
    assert onion.on_submit(hook) is hook


async def coroutine(task, call): ...


def generator(task, call):
    yield


@pytest.mark.parametrize(
    ("func", "message"),
    [
        ("not a function", "decorates a function"),
        (functools.partial(print), "write one that calls it"),
        (coroutine, "make it a plain one"),
        (generator, "instead of yielding"),
        (lambda: None, r"must take \(task, call\)"),
        (lambda _task: None, r"must take \(task, call\)"),
        (lambda _task, _call, _more: None, r"must take \(task, call\)"),
        (lambda *, task, call: None, r"must take \(task, call\)"),
    ],
)
def test_what_cannot_be_a_middleware_is_refused_when_it_is_declared(onion, func, message):
    with pytest.raises(InvalidTask, match=message):
        onion.middleware(func)
    assert not onion.wraps


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (3, "decorates a function"),
        (coroutine, "make it a plain one"),
        (lambda: None, r"must take \(job\)"),
    ],
)
def test_what_cannot_be_a_hook_is_refused_when_it_is_declared(onion, func, message):
    with pytest.raises(InvalidTask, match=message):
        onion.on_submit(func)


@contextmanager
def managed():
    yield


async def awaited():
    return 1


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (3, "generator function"),
        (lambda: None, "generator function"),
        (managed, "no @contextmanager"),
        (awaited, "generator function"),
        (generator, "no parameters"),
    ],
)
def test_what_cannot_be_a_fixture_is_refused_when_it_is_declared(onion, func, message):
    with pytest.raises(InvalidTask, match=message):
        onion.fixture(func)


@pytest.mark.parametrize("name", ["", "log file", "class", "_hidden", 3])
def test_a_fixture_needs_a_name_by_which_a_task_can_ask_for_it(onion, name):
    with pytest.raises(InvalidTask, match="identifier"):

        @onion.fixture(name=name)
        def values():
            yield


def test_two_fixtures_need_two_names(onion):
    def make():
        @onion.fixture(name="database")
        def values():
            yield

    make()
    with pytest.raises(InvalidTask, match="two fixtures are called database"):
        make()


MODULE = """
    from tests.unit.test_onion import declared

    @declared.middleware
    def middle(task, call):
        return call()

    @declared.fixture
    def database():
        yield

    @declared.on_submit
    def hook(job):
        pass
"""
declared = Onion()


def test_a_module_that_is_read_again_or_under_a_second_name_declares_nothing_twice(
    tmp_path, monkeypatch
):
    global declared  # noqa: PLW0603  the module of the test finds it there
    declared = sys.modules["tests.unit.test_onion"].declared = Onion()
    (tmp_path / "middles.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "same.py").symlink_to("middles.py")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("middles", "same"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    module = importlib.import_module("middles")
    importlib.reload(module)
    second = importlib.import_module("same")

    assert declared.middlewares == (second.middle,)
    assert declared.hooks == (second.hook,)


def test_two_middlewares_of_one_function_that_makes_them_are_two(onion):
    onion.middleware(around([], "one"))
    onion.middleware(around([], "two"))

    assert len(onion.middlewares) == 2


# --- fixtures


def numbered(seen, name):
    def values():
        seen.append(f"open {name}")
        yield f"value of {name}"
        seen.append(f"close {name}")

    return values


def test_fixtures_are_opened_in_order_once_and_closed_in_reverse(app, seen):
    app.fixture(name="one")(numbered(seen, "one"))
    app.fixture(name="two")(numbered(seen, "two"))
    assert seen == []

    @app.task
    def use():
        fixtures = get_current_task().fixtures
        seen.append((fixtures.one, fixtures.two))

    use()
    use()
    app._onion.close()

    used = ("value of one", "value of two")
    assert seen == ["open one", "open two", used, used, "close two", "close one"]


def test_an_async_fixture_lives_on_the_loop_of_the_async_tasks_in_one_task_of_its_own(app, seen):
    @app.fixture
    async def session():
        owner = asyncio.current_task()
        yield asyncio.get_running_loop()
        seen.append(asyncio.current_task() is owner)

    @app.task
    async def use():
        return asyncio.get_running_loop() is get_current_task().fixtures.session

    assert use().result() is True
    app._onion.close()
    assert seen == [True]


def test_an_async_fixture_is_opened_for_a_task_that_is_called_on_another_loop(app):
    @app.fixture
    async def session():
        yield asyncio.get_running_loop()

    @app.task
    def use():
        return get_current_task().fixtures.session.is_running()

    async def main():
        return use().result()

    assert asyncio.run(main()) is True
    app._onion.close()


def test_a_middleware_has_the_fixtures_too(app, seen):
    app.fixture(name="one")(numbered([], "one"))
    app.middleware(lambda task, _call: seen.append(task.fixtures.one))

    app.task(lambda: None)()
    assert seen == ["value of one"]
    app._onion.close()


def test_a_fixture_that_is_not_declared_is_an_error_that_names_those_that_are(app):
    app.fixture(name="database")(numbered([], "database"))
    app.fixture(name="log_file")(numbered([], "log_file"))

    with pytest.raises(AttributeError, match=r"no fixture 'databse'.*: database, log_file"):
        app.task(lambda: get_current_task().fixtures.databse)()
    app._onion.close()


def test_an_app_without_fixtures_says_so(app):
    with pytest.raises(AttributeError, match="there is: none"):
        app.task(lambda: get_current_task().fixtures.database)()


def test_a_fixture_that_is_declared_later_is_opened_before_the_next_attempt(app, seen):
    app.fixture(name="one")(numbered(seen, "one"))
    app.task(lambda: None)()
    app.fixture(name="two")(numbered(seen, "two"))
    app.task(lambda: None)()

    assert seen == ["open one", "open two"]
    app._onion.close()


def test_of_several_threads_one_opens_and_the_others_wait(onion, seen):
    @onion.fixture
    def slow():
        seen.append("open")
        time.sleep(0.05)
        yield 1

    got = []
    threads = [threading.Thread(target=lambda: got.append(onion.open().slow)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (seen, got) == (["open"], [1] * 8)


def broken():
    raise ConnectionError("no database")
    yield


def test_a_fixture_that_cannot_be_opened_is_told_before_anything_has_run(app, seen):
    app.fixture(name="one")(numbered(seen, "one"))
    app.fixture(broken)
    app.fixture(name="three")(numbered(seen, "three"))
    app.middleware(around(seen, "middleware"))

    with pytest.raises(
        FixtureFailed, match=r"fixture broken .*ConnectionError: no database"
    ) as got:
        app.task(lambda: seen.append("task"))()
    assert isinstance(got.value.__cause__, ConnectionError)
    assert seen == ["open one", "close one"]


def test_the_attempts_that_are_made_by_hand_raise_it_too(app):
    app.fixture(broken)

    with pytest.raises(FixtureFailed):
        next(app.task(lambda: None).attempts())


def test_the_next_attempt_tries_to_open_it_again(app, seen):
    @app.fixture
    def flaky():
        seen.append("try")
        if len(seen) == 1:
            raise ConnectionError("not yet")
        yield "open"

    task = app.task(lambda: get_current_task().fixtures.flaky)
    with pytest.raises(FixtureFailed):
        task()
    assert task().result() == "open"
    app._onion.close()


def test_an_async_fixture_that_cannot_be_opened_is_told_as_well(onion):
    @onion.fixture
    async def session():
        await asyncio.sleep(0)
        raise OSError("no such host")
        yield

    with pytest.raises(FixtureFailed, match="session"):
        onion.open()


def test_a_fixture_that_would_end_the_process_cannot_be_opened_either(onion):
    @onion.fixture
    def session():
        raise SystemExit(2)
        yield

    with pytest.raises(FixtureFailed, match="session"):
        onion.open()


def test_a_fixture_that_yields_nothing_cannot_be_opened(onion):
    @onion.fixture
    def empty():
        if False:
            yield

    with pytest.raises(FixtureFailed, match="didn't yield"):
        onion.open()


def test_ctrl_c_while_a_fixture_opens_is_ctrl_c(onion, seen):
    onion.fixture(name="one")(numbered(seen, "one"))

    @onion.fixture
    def slow():
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        onion.open()
    assert seen == ["open one", "close one"]


def test_a_fixture_that_runs_a_task_while_it_is_opened_is_told_so(app):
    task = app.task(lambda: None)

    @app.fixture
    def impatient():
        task()
        yield

    with pytest.raises(FixtureFailed, match="impatient runs a task while it is opened"):
        task()


def test_a_fixture_that_fails_while_it_is_closed_keeps_no_other_from_being_closed(
    onion, seen, caplog
):
    onion.fixture(name="one")(numbered(seen, "one"))

    @onion.fixture
    def bad():
        yield
        raise OSError("already gone")

    onion.fixture(name="three")(numbered(seen, "three"))
    onion.open()
    onion.close()

    assert seen == ["open one", "open three", "close three", "close one"]
    assert "fixture bad could not be closed" in caplog.text
    assert "already gone" in caplog.text


def test_fixtures_are_closed_after_the_attempts_that_run_in_other_threads(app, seen):
    app.fixture(name="one")(numbered(seen, "one"))
    begun, go = threading.Event(), threading.Event()

    @app.task
    def work():
        begun.set()
        go.wait(30)
        seen.append("task ends")

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(30)
    closing = threading.Thread(target=app._onion.close)
    closing.start()
    go.set()
    thread.join()
    closing.join()
    assert seen == ["open one", "task ends", "close one"]


def test_attempts_that_were_given_up_are_not_waited_for(app, seen, caplog):
    app.fixture(name="one")(numbered(seen, "one"))
    begun, go = threading.Event(), threading.Event()

    @app.task
    def work():
        begun.set()
        go.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(30)
    closing = threading.Thread(target=app._onion.close)
    closing.start()
    app._onion.give_up([thread.ident])
    closing.join(5)
    was_closed = list(seen)
    go.set()
    thread.join()
    assert was_closed == ["open one", "close one"]
    assert "fixtures are closed while attempts run" in caplog.text


def test_an_attempt_in_whose_midst_the_process_ends_is_not_waited_for(app, seen):
    app.fixture(name="one")(numbered(seen, "one"))

    app.task(lambda: app._onion.close())()  # noqa: PLW0108  a method is no task

    assert seen == ["open one", "close one"]


SCRIPT = """
    import os, sys
    from uwsgi_tasks import fixture, get_current_task, task

    @fixture
    def opened():
        print("open in", "child" if os.getpid() != PARENT else "parent", flush=True)
        try:
            yield os.getpid()
        finally:
            print("close in", "child" if os.getpid() != PARENT else "parent", flush=True)

    @task
    def use():
        assert get_current_task().fixtures.opened == os.getpid()

    PARENT = os.getpid()
    use()
    if os.fork():
        os.wait()
    elif {uses}:
        use()
"""


@pytest.mark.parametrize(
    ("uses", "child"), [(True, ["open in child", "close in child"]), (False, [])]
)
def test_a_fork_opens_its_own_and_never_closes_those_of_its_parent(uses, child):
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT.format(uses=uses))],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=True,
    )
    assert ran.stdout.splitlines() == ["open in parent", *child, "close in parent"]


# --- in a spooler and in a mule


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o750)
    return folder


def serving(path, **options):
    uwsgi = FakeUwsgi(spoolers=[path], **options)
    uwsgi.has_threads = True
    app = App(Server(uwsgi))
    with uwsgi.being("master"):
        app.set_uwsgi_callbacks()
    for number in range(1, uwsgi.mules + 1):
        uwsgi.fork(app.server, "mule", number)
    return uwsgi, app


def test_in_a_spooler_the_job_stays_and_the_process_ends(path, caplog):
    uwsgi, app = serving(path)
    hooked = []
    uwsgi.atexit = lambda: hooked.append(1)
    app.fixture(broken)
    ran = []
    app.task(name="shop.send", executor="spooler")(ran.append)(1)

    with pytest.raises(SystemExit):
        uwsgi.look()

    assert len(uwsgi.spool_files()) == 1
    assert (ran, hooked) == ([], [1])
    (record,) = [one for one in caplog.records if one.levelname == "CRITICAL"]
    assert "fixture broken could not be opened: ConnectionError" in record.getMessage()
    assert app._spooler._mark.running() is None


def test_the_rest_of_a_batch_runs_where_the_first_ones_have_run(path):
    uwsgi, app = serving(path)
    ran = []

    def send(number):
        ran.append(number)
        if number == 1:
            app.fixture(broken)

    app.task(name="shop.send", executor="spooler")(send).map([0, 1, 2])
    with pytest.raises(SystemExit):
        uwsgi.look()
    app._onion._fixtures.clear()
    uwsgi.look()

    assert ran == [0, 1, 2]
    assert list(path.glob("uwsgi_spoolfile_on_*")) == []


def test_in_a_mule_the_jobs_are_dead_letters_and_the_process_ends(path, caplog):
    uwsgi, app = serving(path, mules=1)
    app.fixture(broken)
    ran = []
    app.task(name="shop.send", executor="mule")(ran.append).map([1, 2])

    with pytest.raises(SystemExit):
        uwsgi.deliver()

    assert ran == []
    letters = app.dead.list()
    assert [letter.task for letter in letters] == ["shop.send"] * 2
    assert "no database" in letters[0].error
    assert "2 jobs do not run" in caplog.text


def test_in_a_thread_the_job_is_a_dead_letter(path):
    _uwsgi, app = serving(path)
    app.fixture(broken)

    handle = app.task(name="shop.send", executor="thread")(print)(1)
    with pytest.raises(FixtureFailed):
        handle.result(30)
    assert [letter.task for letter in app.dead.list()] == ["shop.send"]


# --- hooks of those who submit


def test_hooks_are_called_in_order_with_the_job_and_their_headers_travel(app, seen):
    @app.on_submit
    def first(job):
        seen.append((job.task, job.args, job.headers))
        return {"tenant": "acme", "user": 1}

    @app.on_submit
    def second(job):
        seen.append(job.headers)
        return {"user": 2}

    @app.on_submit
    def third(_job):
        return None

    task = app.task(name="shop.send")(lambda _text: dict(get_current_task().headers))

    assert task("hello").result() == {"tenant": "acme", "user": 2}
    assert seen == [("shop.send", ("hello",), None), {"tenant": "acme", "user": 1}]


def test_what_a_hook_raises_reaches_the_caller_and_nothing_is_submitted(app):
    @app.on_submit
    def refuse(_job):
        raise PermissionError("read-only today")

    with capture_tasks(app) as submitted:
        with pytest.raises(PermissionError, match="read-only today"):
            app.task(name="shop.send")(print)()
        assert len(submitted) == 0


@pytest.mark.parametrize("returned", ["text", 3, [("a", 1)], {1: "one"}])
def test_a_hook_returns_a_mapping_with_texts_for_keys_or_nothing(app, returned):
    app.on_submit(lambda _job: returned)

    with pytest.raises(SubmitError, match="headers are a mapping"):
        app.task(print)()


def test_a_header_that_cannot_be_pickled_is_named(app):
    app.on_submit(lambda _job: {"fine": 1, "lock": threading.Lock()})

    with pytest.raises(Unpicklable, match="header 'lock'"):
        app.task(print)()


def test_for_a_map_the_hooks_are_called_once_and_all_jobs_have_the_headers(app, seen):
    @app.on_submit
    def hook(job):
        seen.append(job.args)
        return {"tenant": "acme"}

    task = app.task(lambda number: (number, get_current_task().headers["tenant"]))

    assert [handle.result() for handle in task.map([1, 2])] == [(1, "acme"), (2, "acme")]
    assert seen == [(1,)]


def test_a_job_that_submits_itself_keeps_its_headers_and_gets_those_of_the_hooks(app, seen):
    @app.on_submit
    def hook(job):
        return {"calls": (job.headers or {}).get("calls", 0) + 1, "from": "hook"}

    @app.task
    def again():
        seen.append(dict(get_current_task().headers))
        if len(seen) < 3:
            get_current_task()()

    again()
    assert [headers["calls"] for headers in seen] == [1, 2, 3]


def test_a_retry_keeps_the_headers_and_calls_no_hook(app, seen):
    app.on_submit(lambda _job: seen.append("hook") or {"tenant": "acme"})

    @app.task(retry=Retry(attempts=2))
    def fail():
        seen.append(get_current_task().headers["tenant"])
        raise OSError("no such host")

    with pytest.raises(OSError, match="no such host"):
        fail()
    assert seen == ["hook", "acme", "acme"]


def test_a_dead_letter_that_is_put_back_keeps_the_headers_and_calls_no_hook(path, seen):
    uwsgi, app = serving(path)
    app.on_submit(lambda _job: seen.append("hook") or {"tenant": "acme"})

    @app.task(name="shop.fail", executor="spooler")
    def fail():
        seen.append(get_current_task().headers["tenant"])
        raise OSError("no such host")

    fail()
    uwsgi.look()
    app.dead.requeue(app.dead.list()[0].id, at=timedelta(0))
    uwsgi.look()

    assert seen == ["hook", "acme", "acme"]
