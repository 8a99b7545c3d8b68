"""What `executor="redis"` promises, with a worker in this process, on a real Redis."""

import json
import logging
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta

import pytest

from tests.conformance.conftest import Restless
from tests.conformance.places import until
from tests.servers import Redis, free_port, serve
from uwsgi_tasks import (
    App,
    ConfigurationError,
    InvalidTask,
    LeaseLost,
    ResultNotKept,
    Retry,
    RetryTaskException,
    State,
    SubmitError,
    TaskCancelled,
    TaskFailed,
    get_current_task,
)
from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.executors import Consuming
from uwsgi_tasks.redis import consumer as consumer_module
from uwsgi_tasks.redis import supply as supply_module
from uwsgi_tasks.redis.queues import End
from uwsgi_tasks.server import Server

SECRET = "of the tests"  # noqa: S105  it keeps nothing secret
HOUR = timedelta(hours=1)
TTL = 60


@pytest.fixture(autouse=True)
def unheard():
    """A worker of one thread listens to a signal, for life."""
    before = signal.getsignal(signal.SIGURG)
    yield
    signal.signal(signal.SIGURG, before)


@pytest.fixture
def server(redis_server):
    redis_server.flush()
    yield redis_server
    redis_server.flush()


@contextmanager
def beside(consumer):
    """Have a worker run beside the test."""
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        yield
    finally:
        consumer.stop()
        thread.join()


class Shop(App):
    """An app, and what a test does with it."""

    def __init__(self, **settings):
        super().__init__(Server(None), **{"stats": False, **settings})

    def declare(self, func=None, /, **options):
        """Declare a function of the test as a task; it has a name, as one of a module has."""

        def declare(func):
            name = f"shop.{func.__name__}"
            return self.task(**{"executor": "redis", "name": name, **options})(func)

        return declare if func is None else declare(func)

    @property
    def queues(self):
        return self.executor("redis").queues

    def worker(self, *names, **consuming):
        queues = [(name, None) for name in names or self.queues.names() or ["default"]]
        return self.consume(Consuming(**{"queues": queues, **consuming}))

    def work(self, *names, **consuming):
        """Run all that is due; return who has."""
        consumer = Restless.within(self.worker(*names, **consuming))
        consumer.run()
        return consumer

    @contextmanager
    def working(self, *names, **consuming):
        """Have a worker beside the test."""
        consumer = self.worker(*names, **consuming)
        with beside(consumer):
            yield consumer

    def key(self, suffix, queue="default"):
        return f"{self.queues.root(queue)}:{suffix}"

    def pass_time(self, *handles, queue="default"):
        """Let what waits for its time be due."""
        for handle in handles:
            self.queues.client.call("ZADD", self.key("due", queue), 1, handle.id)

    def claim(self, most=1, queue="default"):
        """Claim as another worker, which does nothing."""
        return self.queues.step([queue], [], most, f"other:{time.monotonic_ns()}").claims

    def expire(self, *ids, queue="default"):
        """Let the leases of these be over."""
        for id_ in ids:
            self.queues.client.call("ZADD", self.key("run", queue), 1, id_)

    def steal(self, id_):
        """Have the lease of a job be over, and another worker claim it."""
        self.expire(id_)
        (claim,) = self.claim()
        assert claim.id == id_
        return claim

    def letters(self):
        """The dead letters: id and error, by id."""
        return {letter.id: letter.error for letter in self.dead.list()}


@pytest.fixture
def app(server, tmp_path):
    return Shop(redis=server.url, dead_dir=str(tmp_path / "dead"))


@pytest.fixture
def signed(server, tmp_path):
    """An app with a secret."""
    return Shop(redis=server.url, dead_dir=str(tmp_path / "dead"), secret=SECRET)


def noting(app, value=None, **options):
    """A task that notes the arguments of its runs, and returns or raises *value*."""
    runs = []

    @app.declare(**options)
    def send(*args):
        runs.append(args[0] if args else None)
        if isinstance(value, BaseException):
            raise value
        return value

    return send, runs


def keys(server):
    return sorted(key for key in server.cli("KEYS", "*").split("\n") if key)


# --- declaring


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"priority": 10}, "from 0, the most important, to 9"),
        ({"lease": 0.5}, r"lease=0\.5: on redis it is one second at least"),
        ({"lease": timedelta(milliseconds=10)}, "one second at least"),
        ({"serializer": "pickle"}, "set 'secret', or use JSON"),
        ({"working_dir": "/srv"}, "a worker stays where it is"),
        ({"durable": True}, "use the spooler"),
        ({"spooler": "/spool"}, "spooler= is for the spooler"),
        ({"mule": 1}, "mule= is for the mule"),
    ],
)
@pytest.mark.parametrize("executor", ["redis", "auto"])
def test_what_no_worker_could_do_is_refused_when_it_is_declared(options, remedy, executor):
    app = Shop(executor="redis", redis="redis://localhost:1")
    if executor == "auto" and {"spooler", "mule", "working_dir"} & set(options):
        return
    with pytest.raises(InvalidTask, match=f"^shop.send: .*{remedy}"):
        app.declare(**options, executor=executor, name="shop.send")(len)


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 0},
        {"priority": 9},
        {"lease": 1},
        {"lease": None},
        {"lease": HOUR},
        {"serializer": "json"},
        {"working_dir": None},
        {"queue": "mail"},
        {"at": 5},
    ],
)
def test_what_a_worker_can_do_is_taken(options):
    app = Shop(redis="redis://localhost:1")
    assert app.declare(**options, name="shop.send")(len).options.executor == "redis"


def test_with_a_secret_a_task_may_be_pickled():
    app = Shop(redis="redis://localhost:1", secret=SECRET)
    assert app.declare(serializer="pickle", name="shop.send")(len).options.serializer == "pickle"


@pytest.mark.parametrize("options", [{"result_ttl": TTL}, {"unique": "a"}])
@pytest.mark.parametrize("executor", ["redis", "auto"])
def test_what_must_be_kept_where_no_store_is_named_is_refused(options, executor):
    app = Shop(executor="redis")
    with pytest.raises(InvalidTask, match=r"a store that all processes see.*: set 'redis'"):
        app.declare(**options, executor=executor, name="shop.send")(len)


def test_a_url_that_cannot_be_is_refused_by_the_first_call():
    send, _ = noting(Shop(redis="mysql://localhost"))
    with pytest.raises(ConfigurationError, match="no Redis is at a URL that begins with mysql"):
        send()


# --- submitting


def test_a_call_waits_for_a_worker(app):
    send, runs = noting(app)
    handle = send(1)
    assert (runs, handle.state) == ([], State.QUEUED)
    app.work()
    assert runs == [1]


def test_under_auto_a_setting_sends_all_calls_there(server):
    app = Shop(redis=server.url, executor="redis")
    send, runs = noting(app, executor="auto", queue="mail")
    send(1)
    assert [one.place for one in app.jobs()] == ["mail"]
    app.work("mail")
    assert runs == [1]


def test_thousands_of_calls_of_a_map_are_one_step(app):
    send, runs = noting(app)
    asked = []
    run = app.queues.client.run
    app.queues.client.run = lambda *words: asked.append(1) or run(*words)
    handles = send.map(range(3_000))
    assert (len(handles), len(asked)) == (3_000, 1)
    app.work()
    assert runs == list(range(3_000))


def test_a_map_with_an_argument_that_cannot_travel_takes_none(app):
    send, _ = noting(app)
    with pytest.raises(SubmitError, match=r"shop\.send: argument 1.*serializer='pickle'"):
        send.map([1, 2, {3}])
    assert app.jobs() == []


def test_each_call_of_a_map_has_a_handle_and_a_result(app):
    @app.declare(result_ttl=TTL)
    def double(number):
        return 2 * number

    handles = double.map(range(5))
    app.work()
    assert [handle.result(5) for handle in handles] == [0, 2, 4, 6, 8]


def test_calls_run_by_priority_and_then_by_their_order(app):
    send, runs = noting(app)
    for priority in (None, 9, 3, 0, 3):
        send.using(priority=priority)(priority)
    app.work()
    assert runs == [0, 3, 3, None, 9]


def test_a_call_of_the_future_waits_for_its_time(app):
    send, runs = noting(app, at=HOUR)
    handle = send(1)
    app.work()
    assert (runs, app.standing(handle.id).at) == ([], pytest.approx(time.time() + 3600, abs=10))
    app.pass_time(handle)
    app.work()
    assert runs == [1]


def test_a_time_that_is_over_is_now(app):
    send, runs = noting(app, at=1.0)
    send(1)
    app.work()
    assert runs == [1]


def test_a_queue_is_served_by_those_who_name_it(app):
    send, runs = noting(app, queue="mail")
    send(1)
    app.work("default")
    assert runs == []
    app.work("mail")
    assert runs == [1]


def test_the_first_queue_is_served_first(app):
    send, runs = noting(app)
    for queue in ("low", "high", "low", "high"):
        send.using(queue=queue)(queue)
    app.work("high", "low")
    assert runs == ["high", "high", "low", "low"]


def test_queues_are_served_by_their_weights(app):
    """Of 60 jobs of each, about three of four that run first are of the one with three."""

    @app.declare
    def send(queue):
        # Long enough for a worker not to take several at a time.
        time.sleep(0.02)
        runs.append(queue)

    runs = []
    for queue in ("high", "low"):
        send.using(queue=queue).map([queue] * 60)
    app.work(queues=[("high", 3), ("low", 1)], max_jobs=60)
    assert 30 <= Counter(runs)["high"] <= 58


def test_namespaces_keep_applications_apart(server):
    shop, blog = (Shop(redis=server.url, namespace=name) for name in ("shop", "blog"))
    (send, runs), (_, others) = noting(shop), noting(blog)
    handle = send(1)
    blog.work()
    assert (others, blog.jobs(), blog.standing(handle.id)) == ([], [], None)
    shop.work()
    assert runs == [1]


# --- Redis is away, or full


def test_a_call_that_redis_does_not_take_names_where_it_is_and_not_the_password():
    port = free_port()
    app = Shop(redis=f"redis://shop:hunter2@localhost:{port}/0")
    send, _ = noting(app)
    with pytest.raises(
        SubmitError, match=rf"^shop\.send: Redis at redis://localhost:{port}/0:"
    ) as e:
        send()
    assert "hunter2" not in f"{e.value!r} {e.value.__cause__!r}"


def test_a_call_that_redis_does_not_take_is_not_there_when_it_is_back():
    with serve(Redis, durable=True) as server:
        app = Shop(redis=server.url)
        send, _ = noting(app)
        send(1)
        server.stop()
        for call in (lambda: send(2), lambda: send.map([3, 4])):
            with pytest.raises(SubmitError):
                call()
        server.start()
        assert [app.read(one.id).args for one in app.jobs()] == [(1,)]


def test_a_call_tries_again_for_as_long_as_a_setting_says():
    with serve(Redis) as server:
        app = Shop(redis=server.url, redis_retry=30)
        send, _ = noting(app)
        server.stop()
        with ThreadPoolExecutor() as pool:
            # The server belongs to the thread that starts it.
            handle = pool.submit(send, 1)
            time.sleep(0.3)
            server.start()
            assert app.job(handle.result().id).state is State.QUEUED


def test_a_call_does_not_try_for_longer_than_that():
    app = Shop(redis=f"redis://localhost:{free_port()}", redis_retry=0.3)
    send, _ = noting(app)
    began = time.monotonic()
    with pytest.raises(SubmitError):
        send()
    assert 0.3 <= time.monotonic() - began < 10


class Full:
    """A Redis that takes no more, while a test is in it."""

    def __init__(self, server):
        self._server = server

    def __enter__(self):
        self._server.cli("CONFIG", "SET", "maxmemory", 1)

    def __exit__(self, *_raised):
        self._server.cli("CONFIG", "SET", "maxmemory", 0)


def test_a_redis_that_is_full_takes_nothing_and_is_worked_off():
    with serve(Redis, maxmemory="5mb") as server:
        app = Shop(redis=server.url)
        send, runs = noting(app)

        def submit(calls):
            first = app.waiting()
            for start in range(first, first + calls, 100):
                send.map([f"{start + number} {'x' * 1000}" for number in range(100)])

        with pytest.raises(SubmitError, match="maxmemory"):
            submit(20_000)
        taken = app.waiting()
        app.work()
        assert taken >= 100
        assert taken % 100 == 0
        assert [int(text.split()[0]) for text in runs] == list(range(taken))
        send(1)


def test_what_runs_while_redis_is_full_keeps_its_lease(app, server):
    @app.declare(lease=1)
    def send():
        with Full(server):
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                time.sleep(0.05)
        return app.claim()

    handle = send.using(result_ttl=TTL)()
    app.work()
    assert handle.result(5) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_a_worker_at_a_redis_that_is_full_is_well_and_works_it_off(app, server, threads, caplog):
    caplog.set_level("INFO")
    send, runs = noting(app)

    @app.declare
    def hold():
        # Longer than until the next sign of life.
        time.sleep(2.5)

    hold()
    send.map(range(50))
    with Full(server), app.working("default", threads=threads) as consumer:
        until(lambda: "maxmemory" in caplog.text)
        until(lambda: len(runs) == 50)
        until(lambda: not any(app.queues.sizes("default")))
        assert consumer.is_healthy
        assert "waits for it" not in caplog.text
        assert caplog.text.count("others may not learn of it") == 1


# --- results


def test_a_result_is_kept_in_the_same_redis(app, server):
    send, _ = noting(app, {"to": ["ä", None, 1.5]}, result_ttl=TTL)
    handle = send()
    app.work()
    assert handle.result(5) == {"to": ["ä", None, 1.5]}
    assert f"uwsgi_tasks:result:{{{handle.id}}}" in keys(server)


def test_without_a_secret_an_exception_is_told_in_words(app):
    send, _ = noting(app, KeyError("no such host"), result_ttl=TTL)
    handle = send()
    app.work()
    with pytest.raises(TaskFailed) as raised:
        handle.result(5)
    assert raised.value.args[0] == "KeyError: 'no such host'"
    assert "in send" in raised.value.args[1]


def test_without_a_secret_nothing_is_pickled(app, server):
    send, _ = noting(app, OSError("no"), result_ttl=TTL, retry=Retry(attempts=2))
    value, _ = noting(app, [1], result_ttl=TTL, name="shop.value")
    send(1)
    value(2)
    call = app.queues.client.call
    seen = call("HVALS", app.key("jobs"))
    app.work()
    hashes = [key for key in keys(server) if server.cli("TYPE", key) == "hash"]
    seen += [value for key in hashes for value in call("HVALS", key)]
    assert len(seen) > 10
    assert not [value for value in seen if b"\x80\x05" in value]


def test_without_a_secret_a_value_that_json_has_not_is_a_clear_error_in_the_result(app):
    send, runs = noting(app, {1, 2}, result_ttl=TTL)
    handle = send(1)
    app.work()
    assert (handle.state, runs) == (State.SUCCEEDED, [1])
    with pytest.raises(ResultNotKept, match="set, which cannot be kept"):
        handle.result(5)


def test_with_a_secret_a_result_may_be_anything_that_can_be_pickled(signed):
    send, _ = noting(signed, {1, (2, b"\0")}, result_ttl=TTL)
    handle = send()
    signed.work()
    assert handle.result(5) == {1, (2, b"\0")}


def test_with_a_secret_an_exception_is_raised_as_it_was(signed):
    send, _ = noting(signed, KeyError("no such host"), result_ttl=TTL)
    handle = send()
    signed.work()
    with pytest.raises(KeyError, match="no such host"):
        handle.result(5)


def test_with_a_secret_arguments_may_be_pickled(signed):
    send, runs = noting(signed, serializer="pickle")
    send({1, (2, b"\0")})
    signed.work()
    assert runs == [{1, (2, b"\0")}]


# --- unique keys


def test_while_a_job_waits_or_runs_a_call_with_its_key_is_the_same_job(app):
    seen = []

    @app.declare(unique=True)
    def send(_number):
        seen.append(send(1).id)

    first, second, other = send(1), send(1), send(2)
    assert first.id == second.id != other.id
    other.cancel()
    app.work()
    assert seen == [first.id]


def test_a_key_is_free_when_its_job_has_ended(app):
    send, runs = noting(app, unique=True)
    first = send(1)
    app.work()
    second = send(1)
    app.work()
    assert (first.id != second.id, runs) == (True, [1, 1])


@pytest.mark.parametrize("how", ["cancelled", "purged", "failed"])
def test_a_key_is_free_when_its_job_was(app, how):
    send, _ = noting(app, OSError() if how == "failed" else None, unique=True)
    first = send(1)
    if how == "cancelled":
        first.cancel()
    elif how == "purged":
        app.executor("redis").purge("default")
    app.work()
    assert send(1).id != first.id


def test_a_key_is_free_when_its_job_was_not_taken(app, server):
    send, runs = noting(app, unique=True)
    send(0)
    with Full(server), pytest.raises(SubmitError):
        send(1)
    send(1)
    app.work()
    assert runs == [0, 1]


# --- attempts


def test_an_attempt_that_fails_is_followed_by_the_next_in_its_place(app):
    seen = []

    @app.declare(retry=Retry(attempts=3, delay=1000), result_ttl=TTL, queue="mail", priority=2)
    def send():
        task = get_current_task()
        found = app.queues.find(task.id)
        seen.append((task.id, task.attempt, found.queue, found.priority))
        if task.attempt < 3:
            raise OSError
        return "at last"

    handle = send()
    for _ in range(3):
        app.work("mail")
        states = [one.state for one in app.jobs()]
        assert states in ([], [State.RETRYING])
        if states:
            app.pass_time(handle, queue="mail")
    assert seen == [(handle.id, attempt, "mail", 2) for attempt in (1, 2, 3)]
    assert handle.result(5) == "at last"


def test_the_next_attempt_waits_for_as_long_as_was_said(app):
    send, runs = noting(app, OSError(), retry=Retry(attempts=2, delay=100))
    handle = send(1)
    app.work()
    app.work()
    assert (runs, app.standing(handle.id).at) == ([1], pytest.approx(time.time() + 100, abs=10))


def test_a_job_that_fails_for_good_is_a_dead_letter_and_no_job_any_more(app):
    send, _ = noting(app, OSError("no such host"))
    handle = send(1)
    app.work()
    assert (app.letters(), app.jobs()) == ({handle.id: "OSError: no such host"}, [])


def test_a_dead_letter_is_submitted_again_under_its_id_and_into_its_queue(app):
    send, runs = noting(app, OSError("no"), queue="mail", priority=3, lease=300)
    handle = send(1)
    app.work("mail")
    app.dead.requeue(handle.id)
    (claim,) = app.claim(1, "mail")
    assert (claim.id, claim.lease) == (handle.id, 300)
    assert app.queues.find(handle.id).priority == 3
    app.queues.release([claim])
    app.work("mail")
    assert runs == [1, 1]


def test_a_task_that_submits_itself_stays_in_its_queue(app):
    seen = []

    @app.declare
    def send(number):
        id_ = get_current_task().id
        found = app.queues.find(id_)
        option = app.queues.client.call("HGET", app.key("more", "mail"), f"o:{id_}")
        seen.append((number, found.queue, found.priority, option))
        if number < 3:
            get_current_task()(number + 1)

    send.using(queue="mail", priority=4, lease=5)(1)
    app.work("mail")
    assert seen == [(number, "mail", 4, b"5000|4") for number in (1, 2, 3)]


def test_a_task_that_takes_too_long_is_interrupted(app):
    @app.declare(timeout=0.1, result_ttl=TTL)
    def send():
        time.sleep(20)

    handle = send()
    began = time.monotonic()
    app.work()
    assert time.monotonic() - began < 10
    assert app.letters()[handle.id].startswith(
        "TaskTimeout: it took longer than its timeout of 0.1"
    )


def test_a_task_that_takes_too_long_on_one_of_several_threads_is_interrupted(app):
    @app.declare(timeout=1, retry=Retry(attempts=2), result_ttl=TTL)
    def send():
        if get_current_task().attempt == 2:
            return "in time"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            time.sleep(0.01)
        return "late"

    with app.working("default", threads=2):
        assert send().result(15) == "in time"


# --- cancelling


@pytest.mark.parametrize("at", [None, HOUR])
def test_what_waits_and_is_cancelled_never_runs(app, at):
    send, runs = noting(app, result_ttl=TTL, at=at)
    handle = send(1)
    assert handle.cancel()
    assert handle.state is State.CANCELLED
    app.pass_time(handle)
    app.work()
    assert (runs, app.jobs()) == ([], [])
    with pytest.raises(TaskCancelled):
        handle.result(5)


def test_what_runs_sees_that_it_is_not_wanted_any_more(app):
    seen = []

    @app.declare
    def send():
        task = get_current_task()
        seen.append((task.cancelled, app.job(task.id).cancel()))
        until(lambda: task.cancelled)
        seen.append(task.cancelled)

    send()
    app.work()
    assert seen == [(False, False), True]


@pytest.mark.parametrize("how", ["fails", "asks", "loses its worker"])
def test_what_was_cancelled_while_it_ran_does_not_run_again(app, how):
    runs = []

    @app.declare(retry=Retry(attempts=5, delay=1000), result_ttl=TTL)
    def send():
        runs.append(1)
        app.job(get_current_task().id).cancel()
        if how == "loses its worker":
            found = app.queues.find(get_current_task().id)
            app.queues.client.call("HSET", app.key("own"), found.id, "other:1")
            app.expire(found.id)
        elif how == "asks":
            raise RetryTaskException(timeout=1000)
        raise OSError

    handle = send()
    app.work()
    app.work()
    assert (len(runs), handle.state, app.jobs()) == (1, State.CANCELLED, [])


@pytest.fixture
def patience(monkeypatch):
    """What lies ahead stays there while what runs takes its time."""
    monkeypatch.setattr(consumer_module, "_STUCK", 5)


patiently = pytest.mark.usefixtures("patience")


def eager(app, *names, **consuming):
    """A worker that takes many at a time from the start, as one does whose jobs are quick."""
    consumer = Restless.within(app.worker(*names, **consuming))
    consumer._supply._mean, consumer._supply._batch = 1e-6, 50
    return consumer


@patiently
def test_what_was_claimed_ahead_and_is_cancelled_is_asked_to_stop(app):
    """It is another's already; the answer does not promise that it will not run."""
    seen = []

    @app.declare
    def send(name):
        seen.append(
            (name, handles[1].cancel() if name == "first" else get_current_task().cancelled)
        )

    handles = send.map(["first", "second"])
    eager(app).run()
    assert seen == [("first", False), ("second", True)]


@patiently
def test_what_was_claimed_ahead_cancelled_and_given_back_never_runs(app):
    seen = []

    @app.declare(result_ttl=TTL)
    def send(name):
        seen.append(name)
        handles[1].cancel()
        consumer.stop()

    handles = send.map(["first", "second"])
    consumer = eager(app)
    consumer.run()
    app.work()
    assert (seen, handles[1].state) == (["first"], State.CANCELLED)


def busy(seconds=20):
    """Run Python code until somebody ends it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_runs_can_be_killed(app, threads):
    ended = []

    @app.declare(result_ttl=TTL, retry=Retry(attempts=3))
    def send():
        try:
            busy()
        finally:
            ended.append(1)

    with app.working("default", threads=threads):
        handle = send()
        assert handle.wait(15, until=State.RUNNING)
        assert handle.cancel(kill=True)
        assert (ended, handle.state) == ([1], State.CANCELLED)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_killed_has_the_time_to_clean_up(app, threads):
    cleaned = []

    @app.declare(result_ttl=TTL)
    def send():
        try:
            busy()
        finally:
            # For longer than it takes to ask once more what is to be killed.
            busy(2.5)
            cleaned.append(1)

    with app.working("default", threads=threads):
        handle = send()
        assert handle.wait(15, until=State.RUNNING)
        handle.cancel(kill=True)
        until(lambda: handle.state is State.CANCELLED)
    assert cleaned == [1]


def test_a_task_that_turns_its_end_into_another_error_is_cancelled_all_the_same(app):
    @app.declare(result_ttl=TTL, retry=Retry(attempts=3))
    def send():
        try:
            busy()
        except TaskCancelled:
            raise OSError from None

    with app.working("default", threads=2):
        handle = send()
        assert handle.wait(15, until=State.RUNNING)
        assert handle.cancel(kill=True)
    assert (handle.state, app.letters()) == (State.CANCELLED, {})


# --- leases


def test_a_lease_is_extended_while_the_job_runs(app):
    def ends_at():
        return float(app.queues.client.call("ZSCORE", app.key("run"), get_current_task().id))

    @app.declare(lease=1, result_ttl=TTL)
    def send():
        first = ends_at()
        until(lambda: ends_at() > first)
        return "extended"

    handle = send()
    app.work()
    assert handle.result(5) == "extended"


def test_what_was_claimed_ahead_behind_a_long_job_is_given_to_others(app):
    seen = []

    @app.declare
    def send(name):
        if name == "long":
            running_of(app, 1)
            seen.extend((claim.id, claim.crashes) for claim in app.claim(5))

    handles = send.map(["long", "second", "third"])
    eager(app).run()
    assert seen == [(handles[1].id, 0), (handles[2].id, 0)]


def far_ahead(app, count, first):
    """Submit *count* jobs to a worker that takes 20 and then 80; have the *first* one do that.

    Return the worker, and where the arguments of the runs are noted.
    """
    runs = []

    @app.declare
    def send(number):
        runs.append(number)
        if number == 0:
            first()

    send.map(range(count))
    consumer = eager(app)
    consumer._supply._batch = 5
    return consumer, runs


def running_of(app, count):
    """Wait until so many are claimed."""
    until(lambda: app.queues.sizes("default").running == count)


@patiently
def test_what_comes_next_is_claimed_while_a_full_batch_runs(app):
    consumer, runs = far_ahead(app, 150, lambda: running_of(app, 100))
    consumer.run()
    assert (runs, app.jobs(), app.letters()) == (list(range(150)), [], {})


def test_what_was_claimed_while_others_ran_does_not_wait_for_a_long_one(app):
    def others_take_it():
        running_of(app, 1)
        taken.extend(app.claim(1000))

    taken = []
    consumer, runs = far_ahead(app, 100, others_take_it)
    consumer.run()
    assert (runs, len(taken), {claim.crashes for claim in taken}) == ([0], 99, {0})
    assert app.letters() == {}


@patiently
def test_a_worker_that_stops_gives_back_what_it_never_heard_of(app):
    def stop():
        running_of(app, 100)
        consumer.stop()

    consumer, runs = far_ahead(app, 100, stop)
    consumer.run()
    assert (runs, app.queues.sizes("default")) == ([0], (99, 0, 0))


@patiently
@pytest.mark.parametrize("is_done", [True, False])
def test_what_the_step_ahead_was_to_do_is_done_though_its_answer_was_lost(app, is_done):
    consumer, runs = far_ahead(app, 300, lambda: None)
    step, left = consumer._supply._later, [1, 2]
    ask, hear = step.ask, step.hear

    def lossy_ask(words):
        if left == [2] and not is_done:
            left.clear()
            raise RedisAway("it was never sent")
        ask(words)

    def lossy_hear():
        reply = hear()
        if len(left) == 1 and is_done:
            left.clear()
            raise RedisAway("the answer was lost")
        del left[:1]
        return reply

    step.ask, step.hear = lossy_ask, lossy_hear
    with beside(consumer):
        until(lambda: not any(app.queues.sizes("default")))
    assert (sorted(runs), app.jobs(), left) == (list(range(300)), [], [])


@patiently
def test_a_redis_that_has_forgotten_the_scripts_is_told_the_step_ahead_once_more(app):
    consumer, runs = far_ahead(app, 300, lambda: None)
    ask, asked = consumer._supply._later.ask, []

    def forgetful(words):
        if len(asked) < 2:
            app.queues.client.call("SCRIPT", "FLUSH")
        asked.append(words)
        ask(words)

    consumer._supply._later.ask = forgetful
    with beside(consumer):
        until(lambda: not any(app.queues.sizes("default")))
    assert (sorted(runs), app.jobs()) == (list(range(300)), [])
    assert len(asked) > 2


@patiently
def test_what_was_heard_of_too_late_is_left_to_who_has_it(app):
    """As after a process has stood still: the lease began when Redis took the step."""
    runs = []

    @app.declare(lease=1)
    def send(number):
        runs.append(number)

    send.map(range(30))
    consumer = eager(app)
    consumer._supply._batch = 5
    hear, stolen = consumer._supply._later.hear, []

    def hear_late():
        if not stolen:
            running_of(app, 30)
            time.sleep(1.1)
            stolen.extend(app.claim(1000) or app.claim(1000))
        return hear()

    consumer._supply._later.hear = hear_late
    consumer.run()
    assert len(stolen) >= 1
    assert len(runs) == len(set(runs)) == 30 - len(stolen)


def test_several_threads_run_what_was_claimed_while_others_ran(app):
    runs = []

    @app.declare
    def send(number):
        runs.append(number)
        if number == 0:
            until(lambda: len(runs) == 500)

    send.map(range(500))
    consumer = app.worker(threads=3)
    consumer._supply._mean, consumer._supply._batch = 1e-6, 5
    with beside(consumer):
        until(lambda: not any(app.queues.sizes("default")))
    assert (sorted(runs), app.jobs(), app.letters()) == (list(range(500)), [], {})


def test_one_job_that_is_claimed_while_others_run_does_not_count_as_alone(app):
    """Else the death of what runs would be taken for its own."""
    send, _ = noting(app)
    send.map(range(3))
    for most in (1, 2):
        app.queues.client.call(
            *app.queues.question(["default"], most, f"own:{most}", is_ahead=True)
        )
    assert {one.token for one in app.queues.running("default")} == {b"own:1", b"own:2"}
    marks = {token[-1:] for token in app.queues.client.call("HVALS", app.key("own"))}
    assert marks == {b"1", b"2"}


def test_leases_are_extended_while_the_answer_to_the_step_ahead_does_not_come(app):
    taken = []

    @app.declare(lease=3)
    def send(number):
        if number == 0:
            end = time.monotonic() + 4
            while time.monotonic() < end:
                taken.extend(claim.id for claim in app.claim())
                time.sleep(0.05)
            taken.append("over")

    first = send.map(range(100))[0]
    consumer = eager(app)
    consumer._supply._batch = 5

    is_over = threading.Event()

    def wait_in_vain():
        # Longer than the lease.
        is_over.wait(20)
        raise RedisAway("it does not answer")

    # As where packets are dropped.
    consumer._supply._later.comes = lambda seconds=0.0: time.sleep(seconds)
    consumer._supply._later.hear = wait_in_vain
    with beside(consumer):
        until(lambda: "over" in taken)
        is_over.set()
    assert len(taken) > 1
    assert first.id not in taken


@pytest.mark.parametrize("fault", ["forgotten", "broken"])
def test_a_worker_that_ends_tells_what_a_step_has_not_told_of_which_it_never_hears(
    app, fault, caplog
):
    send, _ = noting(app)
    send.map(range(400))
    consumer = eager(app)
    supply, later = consumer._supply, consumer._supply._later
    supply._batch = 5
    supply.step()
    supply.ends.extend(
        End("default", held.claim.id, held.claim.token) for held in tuple(supply.ahead)
    )
    supply.ahead.clear()
    ask, hear = later.ask, later.hear

    def hear_nothing():
        hear()
        later.drop()
        raise RedisAway("its connection is gone")

    if fault == "forgotten":
        later.ask = lambda words: ask(("EVALSHA", "0" * 40, *words[2:]))
    supply.step()
    if fault == "broken":
        later.hear = hear_nothing
    consumer.stop()
    consumer._over.set()
    consumer._keep()
    supply.close()
    assert app.queues.sizes("default") == (380, 0, 0)
    assert "lease was over" not in caplog.text


def test_what_redis_claims_of_a_step_ahead_after_it_was_given_up_is_given_back(app):
    """As packets do that were under way when the connection broke."""
    send, _ = noting(app)
    send.map(range(400))
    supply = eager(app)._supply
    supply._batch, sent = 5, []

    def lose(words):
        sent.append(words)
        raise RedisAway("nothing comes back")

    supply._later.ask = lose
    supply.step()
    supply.give_back_unheard(always=True)
    app.queues.client.call(*sent[0])
    assert app.queues.sizes("default") == (300, 0, 100)
    supply.give_back_unheard(always=True)
    supply.close()
    assert app.queues.sizes("default") == (380, 0, 20)


def test_however_long_redis_is_away_what_it_claimed_when_it_went_and_came_back_is_given_back(app):
    send, _ = noting(app)
    send.map(range(3))
    supply, step, sent = app.worker("default")._supply, app.queues.step, []

    def lossy(queues, ends, most, token):
        sent.append(token)
        if len(sent) in (1, 2000):
            step(queues, ends, most, token)
        raise RedisAway("nothing comes back")

    app.queues.step = lossy
    for _ in range(2000):
        with pytest.raises(RedisAway):
            supply.step(1)
    kept = len(supply._unheard)
    assert app.queues.sizes("default") == (1, 0, 2)
    supply.give_back_all()
    supply.close()
    assert (app.queues.sizes("default"), kept) == ((3, 0, 0), 400)


def test_a_step_that_claims_nothing_has_nothing_to_be_given_back(app):
    supply = app.worker("default")._supply
    supply.ends.append(End("default", "a", b"other:1"))

    def lose(*_):
        raise RedisAway("nothing comes back")

    app.queues.step = lose
    with pytest.raises(RedisAway):
        supply.step(0)
    supply.close()
    assert (len(supply.ends), len(supply._unheard)) == (1, 0)


def test_while_redis_is_away_it_is_told_of_ends_with_patience_and_all_of_them_when_it_is_back():
    with serve(Redis, durable=True) as server:
        app = Shop(redis=server.url)
        gone, gate, began, told = threading.Event(), threading.Event(), [], []

        @app.declare
        def hold(name):
            began.append(name)
            (gone if name == "short" else gate).wait(60)

        hold.map(["short", "long"])
        with app.working("default", threads=2) as consumer:
            try:
                step = consumer._step

                def counted(most=None):
                    told.append(most)
                    return step(most)

                until(lambda: len(began) == 2)
                server.stop()
                gone.set()
                until(lambda: consumer._supply.ends and not consumer.is_healthy)
                consumer._step = counted
                since = time.monotonic()
                time.sleep(5)
                asked, seconds = told.count(0), time.monotonic() - since
                server.start()
                until(lambda: app.queues.sizes("default") == (0, 0, 1))
            finally:
                gone.set()
                gate.set()
        assert 1 <= asked <= seconds + 1


@patiently
def test_what_is_told_twice_because_nobody_heard_of_it_is_no_lost_lease(app, caplog):
    caplog.set_level("INFO")
    consumer, runs = far_ahead(app, 300, lambda: None)
    hear, heard = consumer._supply._later.hear, []

    def lossy():
        reply = hear()
        heard.append(reply)
        if len(heard) == 2:
            raise RedisAway("the answer was lost")
        return reply

    consumer._supply._later.hear = lossy
    with beside(consumer):
        until(lambda: "Redis is back" in caplog.text)
        until(lambda: not any(app.queues.sizes("default")))
    assert sorted(runs) == list(range(300))
    assert "lease was over" not in caplog.text


def test_what_has_lost_its_worker_is_not_claimed_while_others_run(app):
    """Whatever kills this process while they run would count against it."""
    send, _ = noting(app)
    send.map(range(10))
    (lost,) = app.claim(1)
    app.expire(lost.id)
    words = app.queues.question(["default"], 5, "own:1", is_ahead=True)
    assert app.queues.client.call(*words)[1] == []
    (alone,) = app.queues.step(["default"], [], 5, "own:2").claims
    assert alone.id == lost.id
    assert len(app.queues.client.call(*words)[1]) == 5 * 5


def test_who_sleeps_gets_the_job_with_the_news(app, server):
    counts = []

    def count():
        said = server.info("commandstats").get("cmdstat_evalsha", "calls=0,")
        counts.append(int(said.partition("=")[2].partition(",")[0]))

    @app.declare
    def send():
        count()

    with app.working("default"):
        for _ in range(2):
            send()
            until(lambda: not any(app.queues.sizes("default")))
            until(lambda: server.info("clients")["blocked_clients"] == "1")
        counts.clear()
        count()
        send()
        until(lambda: len(counts) == 2)
    # Submitting, and claiming.
    assert counts[1] - counts[0] == 2


def unheard_of(consumer, then):
    """Have the first claim behind a wait be one of which the worker never hears."""
    waiter, lines = consumer._supply._waiter, []
    wait = waiter.wait

    def lose(seconds):
        waiter.wait = wait
        # It is called away as soon as it has asked.
        waiter.wake()
        wait(30)
        # As for a network that tells our end alone: Redis takes us for one that waits still.
        lines.extend(line for line, _, _ in waiter._asked.values())
        for number in waiter._asked:
            waiter._poll.unregister(number)
        waiter._asked.clear()
        then()
        raise RedisAway("its connection is gone")

    waiter.wait = lose
    return lines


def test_what_was_claimed_for_who_stops_in_that_moment_is_given_back(app):
    send, runs = noting(app)
    consumer = app.worker("default")
    waiter = consumer._supply._waiter
    wait = waiter.wait

    def stop_meanwhile(seconds):
        # It is called away as soon as it has asked.
        waiter.wake()
        wait(30)
        send(1)
        until(lambda: app.queues.sizes("default").running)
        consumer.stop()
        return False

    waiter.wait = stop_meanwhile
    consumer.run()
    assert (runs, app.queues.sizes("default")) == ([], (1, 0, 0))


def test_what_redis_claims_later_for_a_connection_that_is_gone_is_given_back(app):
    send, runs = noting(app)
    consumer = app.worker("default")
    lines = unheard_of(consumer, lambda: None)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    until(lambda: lines)
    # Its token was given back once, before anything was claimed with it.
    until(lambda: consumer._supply._unheard and consumer._supply._reclaim_at)
    send(1)
    until(lambda: runs == [1])
    consumer.stop()
    thread.join()
    lines[0].close()


def test_a_worker_that_stops_while_redis_seems_to_be_away_gives_back_what_it_can(app):
    send, runs = noting(app)
    consumer = app.worker("default")

    def stop_meanwhile():
        send(1)
        until(lambda: app.queues.sizes("default").running)
        consumer.stop()

    lines = unheard_of(consumer, stop_meanwhile)
    consumer.run()
    assert (runs, app.queues.sizes("default")) == ([], (1, 0, 0))
    lines[0].close()


def test_who_sleeps_is_on_time_for_what_is_due(app):
    send, runs = noting(app)
    with app.working("default"):
        handle = send.using(at=timedelta(seconds=0.3), result_ttl=TTL)(1)
        handle.wait(15)
    assert runs == [1]


def test_a_heartbeat_extends_the_lease(app):
    left = []

    def time_left():
        score = app.queues.client.call("ZSCORE", app.key("run"), get_current_task().id)
        return float(score) / 1000 - time.time()

    @app.declare(lease=500)
    def send():
        app.queues.client.call("ZINCRBY", app.key("run"), -400_000, get_current_task().id)
        left.append(time_left())
        get_current_task().heartbeat()
        left.append(time_left())

    send()
    app.work()
    assert left == [pytest.approx(100, abs=10), pytest.approx(500, abs=10)]


def test_a_heartbeat_tells_who_has_lost_its_lease(app):
    raised = []

    @app.declare
    def send():
        app.steal(get_current_task().id)
        for _ in range(2):
            with pytest.raises(LeaseLost, match="another worker may have it") as error:
                get_current_task().heartbeat()
            raised.append(error.value)

    send()
    app.work()
    assert len(raised) == 2


def test_a_job_whose_task_says_without_reason_that_its_lease_is_lost_runs_again(app, caplog):
    runs = []

    @app.declare(lease=2)
    def send():
        runs.append(get_current_task().id)
        if len(runs) == 1:
            raise LeaseLost("some other thing's")

    handle = send()
    app.work()
    assert handle.state is State.RUNNING
    (said,) = [line for line in caplog.messages if "after its lease was over" in line]
    assert said.startswith(f"shop.send[{handle.id}] has ended")
    app.expire(handle.id)
    app.work()
    assert (runs, app.queues.find(handle.id), app.letters()) == ([handle.id] * 2, None, {})


def test_a_heartbeat_while_redis_is_away_ends_no_job():
    with serve(Redis, durable=True) as server:
        app = Shop(redis=server.url)
        runs = []

        @app.declare
        def send():
            server.stop()
            get_current_task().heartbeat()
            runs.append(1)
            server.start()
            get_current_task().heartbeat()

        send()
        app.work()
        assert (runs, app.waiting(), app.letters()) == ([1], 0, {})


@pytest.mark.parametrize("how", ["returns", "fails", "asks for more", "raises what it was told"])
def test_who_has_lost_its_lease_leaves_no_trace(app, how, caplog):
    claims = []

    @app.declare(result_ttl=TTL, retry=Retry(attempts=3), unique="a")
    def send():
        claims.append(app.steal(get_current_task().id))
        try:
            get_current_task().heartbeat()
        except LeaseLost:
            if how == "raises what it was told":
                raise
        if how == "fails":
            raise OSError
        if how == "asks for more":
            raise RetryTaskException
        return "of the first"

    handle = send()
    app.work()
    (other,) = claims
    assert (handle.record, app.letters(), handle.state) == (None, {}, State.RUNNING)
    assert send().id == handle.id
    assert "ended after its lease was over" in caplog.text
    # It is still the other one's to end.
    found = app.queues.step(["default"], [End("default", other.id, other.token)], 0, "other:0")
    assert found.lost == []


def test_the_end_of_who_has_lost_its_lease_without_noticing_is_refused(app, caplog):
    claims = []

    @app.declare
    def send():
        claims.append(app.steal(get_current_task().id))

    handle = send()
    app.work()
    assert app.standing(handle.id).worker.startswith("other")
    assert f"job {handle.id} has ended after its lease was over" in caplog.text


def test_what_fails_after_its_lease_was_over_is_no_dead_letter_where_others_have_it(app):
    @app.declare(lease=1)
    def send():
        app.steal(get_current_task().id)
        # Until its worker has asked, at a third of it.
        until(lambda: app.executor("redis")._holdings.running[0].is_lost)
        raise OSError

    send()
    app.work()
    assert app.letters() == {}


# --- at most once


def test_what_runs_once_at_most_is_taken_off_before_it_runs(app):
    seen = []

    @app.declare(lease=None)
    def send():
        seen.append((app.jobs(), app.queues.find(get_current_task().id)))

    send()
    app.work()
    assert seen == [([], None)]


def test_what_runs_once_at_most_may_have_a_result(app):
    send, _ = noting(app, 42, lease=None, result_ttl=TTL)
    handle = send()
    app.work()
    assert handle.result(5) == 42


def test_of_what_runs_once_at_most_and_has_a_result_the_store_knows_where_it_stands(app):
    seen = []

    @app.declare(lease=None, result_ttl=TTL)
    def send():
        current = get_current_task()
        seen.append((handle.state, handle.wait(0), handle.wait(0, until=State.RUNNING)))
        current.progress(1, 2)
        seen.append((handle.progress, current.cancelled, handle.cancel()))
        # The store is asked five times a second.
        until(lambda: current.cancelled)
        return "ended by itself"

    handle = send()
    assert handle.state is State.QUEUED
    assert not handle.wait(0)
    app.work()
    assert seen == [(State.RUNNING, False, True), ((1, 2), False, False)]
    assert (handle.result(5), handle.state) == ("ended by itself", State.SUCCEEDED)


def test_what_runs_once_at_most_is_known_from_its_call_to_its_end(app):
    """Also in the moment in which it is in Redis no more, and has not begun."""
    states = set()

    @app.declare(lease=None, result_ttl=TTL)
    def send():
        time.sleep(0.002)

    with app.working("default"):
        for _ in range(30):
            handle = send()
            while not (state := handle.state).is_final:
                states.add(state)
            assert state is State.SUCCEEDED
    assert states <= {State.QUEUED, State.RUNNING}


def test_what_runs_once_at_most_is_cancelled_before_it_runs(app):
    send, runs = noting(app, lease=None, result_ttl=TTL)
    handle = send(1)
    assert handle.cancel()
    app.work()
    assert (runs, handle.state, app.jobs()) == ([], State.CANCELLED, [])


@patiently
def test_what_runs_once_at_most_and_is_cancelled_when_it_was_claimed_does_not_run(app):
    seen = []

    @app.declare(lease=None, result_ttl=TTL)
    def send(name):
        seen.append(name)
        if name == "first":
            # It is claimed already.
            seen.append(handles[1].cancel())

    handles = send.map(["first", "second"])
    eager(app).run()
    assert (seen, handles[1].state, app.jobs()) == (["first", True], State.CANCELLED, [])


def test_what_runs_once_at_most_may_ask_for_more(app):
    seen = []

    @app.declare(lease=None, retry=Retry(attempts=3, delay=1000), queue="mail", priority=2)
    def send():
        seen.append((get_current_task().attempt, app.jobs()))
        raise OSError

    handle = send()
    for _ in range(3):
        app.work("mail")
        if len(seen) < 3:
            found = app.queues.find(handle.id)
            assert (found.queue, found.priority) == ("mail", 2)
            app.pass_time(handle, queue="mail")
    assert seen == [(1, []), (2, []), (3, [])]
    assert app.letters() == {handle.id: "OSError: "}


@patiently
def test_what_runs_once_at_most_and_was_claimed_ahead_is_given_back(app):
    runs = []

    @app.declare(lease=None)
    def send(name):
        runs.append(name)
        if name == "first":
            consumer.stop()

    send.map(["first", "second", "third"])
    consumer = eager(app)
    consumer.run()
    assert (runs, app.executor("redis").sizes()["default"]) == (["first"], (2, 0, 0))
    app.work()
    assert runs == ["first", "second", "third"]


def test_what_runs_once_at_most_needs_no_heartbeat(app):
    runs = []

    @app.declare(lease=None)
    def send():
        get_current_task().heartbeat()
        runs.append(1)

    send()
    app.work()
    assert runs == [1]


@patiently
def test_what_runs_once_at_most_does_not_run_if_it_was_taken_away_meanwhile(app):
    runs = []

    @app.declare(lease=None)
    def send(name):
        runs.append(name)
        if name == "first":
            app.steal(handles[1].id)

    handles = send.map(["first", "second"])
    eager(app).run()
    assert runs == ["first"]


def test_what_runs_once_at_most_is_not_submitted_twice(app):
    send, runs = noting(app, lease=None)
    app.configure(redis_retry=5)
    with losing(app, "queue_submit"), pytest.raises(SubmitError):
        send(1)
    app.work()
    assert runs == [1]


def test_what_runs_once_at_most_does_not_run_again_because_its_end_could_not_be_kept(
    tmp_path, server
):
    app = Shop(
        redis=server.url, store="sqlite:////nowhere/x", dead_dir=str(tmp_path / "file" / "x")
    )
    (tmp_path / "file").touch()
    send, runs = noting(app, OSError("no"), lease=None)
    handle = send(1)
    app.work()
    app.pass_time(handle)
    app.work()
    assert runs == [1]


# --- answers that were lost


@contextmanager
def losing(app, script):
    """Have the answer to the next step of this name be lost, and the connection seem broken."""
    client = app.queues.client
    run, left = client.run, [1]

    def lossy(step, keys, args=()):
        reply = run(step, keys, args)
        if step._file.startswith(script) and left and _has_effect(reply):
            left.clear()
            raise RedisAway("the answer was lost")
        return reply

    client.run = lossy
    try:
        yield
    finally:
        del client.run
    assert not left


def _has_effect(reply):
    return reply[1] if isinstance(reply, list) else reply


def test_what_was_claimed_by_a_step_whose_answer_was_lost_runs_once_and_is_no_crash(app):
    send, runs = noting(app)
    send.map(range(20))
    with losing(app, "queue_step"), app.working("default"):
        until(lambda: app.waiting() == 0)
    assert sorted(runs) == list(range(20))


def test_a_call_whose_answer_was_lost_and_that_tries_again_runs_once(app):
    send, runs = noting(app)
    app.configure(redis_retry=5)
    with losing(app, "queue_submit"):
        send.map(range(3))
    app.work()
    assert runs == [0, 1, 2]


# --- a server of a cluster that is away


class Parted:
    """An app on a cluster, and two queues: one of its servers has the first one of them."""

    def __init__(self, cluster):
        self.app = Shop(redis=f"{cluster.url}?socket_timeout=0.5&socket_connect_timeout=0.5")
        owners = {cluster.owner(f"uwsgi_tasks:{name}") for name in ("queues", "workers")}
        self.server = next(one for one in cluster.members if one not in owners)
        root, numbers = self.app.queues.root, range(100)
        self.away = next(
            name for name in map("a{}".format, numbers) if cluster.owner(root(name)) is self.server
        )
        self.there = next(
            name
            for name in map("b{}".format, numbers)
            if cluster.owner(root(name)) is not self.server
        )

    @contextmanager
    def working(self, gate, **consuming):
        """Have a worker of both queues beside the test."""
        with self.app.working(self.away, self.there, **consuming) as consumer:
            try:
                yield consumer
            finally:
                self.server.thaw()
                gate.set()


@pytest.fixture
def parted(redis_cluster):
    def cover(word):
        for one in redis_cluster.members:
            one.cli("CONFIG", "SET", "cluster-require-full-coverage", word)

    redis_cluster.flush()
    cover("no")
    made = Parted(redis_cluster)
    yield made
    made.server.thaw()
    cover("yes")
    redis_cluster.join()
    redis_cluster.flush()


@pytest.mark.slow
def test_while_a_server_of_a_cluster_is_away_the_work_of_the_others_goes_on(parted, caplog):
    caplog.set_level("INFO")
    app, gate, began, taken = parted.app, threading.Event(), [], []

    @app.declare
    def hold(name):
        began.append(name)
        gate.wait(60)

    send, runs = noting(app)
    hold.using(queue=parted.away, lease=60)("away")
    hold.using(queue=parted.there, lease=6)("there")
    with parted.working(gate, threads=3) as consumer:
        until(lambda: len(began) == 2)
        parted.server.freeze()
        # Longer than the lease.
        end = time.monotonic() + 8
        while time.monotonic() < end:
            taken += app.claim(1, parted.there)
            time.sleep(0.2)
        send.using(queue=parted.there).map(range(5))
        until(lambda: len(runs) == 5)
        until(lambda: app.queues.sizes(parted.there) == (0, 0, 1))
        assert not consumer.is_healthy
        parted.server.thaw()
        until(lambda: consumer.is_healthy)
        gate.set()
        until(lambda: not any(app.queues.sizes(parted.away)))
    assert (sorted(began), taken) == (["away", "there"], [])
    assert caplog.text.count("waits for it") == 1


def test_what_ends_while_its_server_of_a_cluster_is_away_is_told_later_and_all_else_at_once(
    parted, caplog
):
    app, gate, first, began = parted.app, threading.Event(), threading.Event(), []

    @app.declare(lease=60)
    def hold(name):
        began.append(name)
        (first if name == "away" else gate).wait(60)

    hold.using(queue=parted.away)("away")
    hold.using(queue=parted.there)("there")
    with parted.working(gate, threads=2) as consumer:
        until(lambda: len(began) == 2)
        parted.server.freeze()
        first.set()
        until(lambda: consumer.ran == 1 and not consumer.is_healthy)
        gate.set()
        until(lambda: not any(app.queues.sizes(parted.there)))
        parted.server.thaw()
        until(lambda: not any(app.queues.sizes(parted.away)))
        until(lambda: consumer.is_healthy)
    assert sorted(began) == ["away", "there"]
    assert "lease was over" not in caplog.text


def test_what_was_claimed_on_one_server_of_a_cluster_is_kept_though_another_one_did_not_answer(
    parted, monkeypatch
):
    monkeypatch.setattr(supply_module, "_LATE", 2.0)
    app = parted.app
    send, _ = noting(app)
    for name in (parted.away, parted.there):
        send.using(queue=name).map(range(3))
    supply = app.worker(parted.away, parted.there)._supply
    supply.ends.append(End(parted.away, "a", b"other:1"))
    parted.server.freeze()
    step = supply.step(2)
    assert ([claim.queue for claim in step.claims], len(supply.ends)) == ([parted.there] * 2, 1)
    assert (step.missed, [one.places for one in supply._unheard]) == (
        [parted.away],
        [[parted.away]],
    )
    with pytest.raises(RedisAway):
        supply.give_back_unheard(always=True)
    parted.server.thaw()

    def is_given_back():
        with suppress(RedisAway):
            supply.give_back_unheard(always=True)
        return not supply._unheard

    until(is_given_back)
    supply.close()
    assert app.queues.sizes(parted.away) == (3, 0, 0)
    assert app.queues.sizes(parted.there) == (1, 0, 2)


def test_what_is_given_back_to_a_cluster_comes_to_those_servers_that_are_there(parted):
    app = parted.app
    send, _ = noting(app)
    for name in (parted.away, parted.there):
        send.using(queue=name)(1)
    supply = app.worker(parted.away, parted.there)._supply
    for _ in range(2):
        supply.step(1)
    parted.server.freeze()
    with pytest.raises(RedisAway):
        supply.give_back_ahead()
    assert app.queues.sizes(parted.there) == (1, 0, 0)
    parted.server.thaw()

    def is_given_back():
        with suppress(RedisAway):
            supply.give_back_all()
        return app.queues.sizes(parted.away) == (1, 0, 0)

    until(is_given_back)
    supply.close()


# --- workers that die


def crash(app, times, queue="default"):
    """Have workers die of the next job, which they run alone."""
    for _ in range(times):
        (claim,) = app.claim(1, queue)
        app.expire(claim.id, queue=queue)


def test_a_job_whose_worker_has_died_runs_again(app):
    send, runs = noting(app)
    send(1)
    crash(app, 2)
    app.work()
    assert (runs, app.letters()) == ([1], {})


def test_a_job_whose_workers_always_die_becomes_a_dead_letter(app):
    send, runs = noting(app, result_ttl=TTL, unique="a")
    handle = send(1)
    crash(app, 3)
    app.work()
    assert (runs, app.letters()) == (
        [],
        {handle.id: "TasksError: its worker died too often while it ran (3)"},
    )
    assert (handle.state, app.jobs()) == (State.FAILED, [])
    assert send(2).id != handle.id


def test_a_setting_says_how_often_a_worker_may_die(app):
    app.configure(crash_limit=1)
    send, runs = noting(app)
    handle = send(1)
    crash(app, 1)
    app.work()
    assert (runs, list(app.letters())) == ([], [handle.id])


def test_what_was_claimed_beside_others_is_no_dead_letter_however_often_workers_die(app):
    send, runs = noting(app)
    send.map(range(5))
    app.expire(*(claim.id for claim in app.claim(5)))
    app.work()
    assert (sorted(runs), app.letters()) == ([0, 1, 2, 3, 4], {})


def test_with_a_secret_what_has_killed_its_workers_is_not_unpickled_again(signed):
    send, _ = noting(signed, serializer="pickle")
    handle = send({1})
    crash(signed, 3)
    signed.work()
    assert signed.letters() == {handle.id: "its worker died too often while it ran (3)"}


def test_what_cannot_be_run_here_is_put_off_and_nothing_is_counted(app):
    opened = []

    @app.fixture
    def database():
        opened.append(1)
        if len(opened) < 4:
            raise OSError("not yet")
        yield "open"

    send, runs = noting(app, lease=1)
    handle = send(1)
    for _ in range(3):
        app.work()
        assert app.standing(handle.id).at == pytest.approx(time.time() + 5, abs=3)
        app.pass_time(handle)
    app.work()
    assert (runs, app.letters()) == ([1], {})


def test_what_runs_once_at_most_and_cannot_be_run_here_is_put_off_too(app):
    opened = []

    @app.fixture
    def database():
        opened.append(1)
        if len(opened) < 2:
            raise OSError("not yet")
        yield "open"

    send, runs = noting(app, lease=None)
    handle = send(1)
    app.work()
    assert app.standing(handle.id).at == pytest.approx(time.time() + 5, abs=3)
    app.pass_time(handle)
    app.work()
    assert runs == [1]


# --- tasks that nobody knows


def stranger(server, tmp_path, **settings):
    """A worker without tasks."""
    return Shop(redis=server.url, dead_dir=str(tmp_path / "dead"), **settings)


def test_a_job_whose_task_is_unknown_waits_for_a_worker_that_has_it(app, server, tmp_path):
    send, runs = noting(app)
    handle = send(1)
    other = stranger(server, tmp_path)
    other.work()
    assert app.standing(handle.id).at == pytest.approx(time.time() + 5, abs=3)
    app.pass_time(handle)
    app.work()
    assert (runs, app.letters()) == ([1], {})


def test_a_job_whose_task_stays_unknown_becomes_a_dead_letter_that_says_why(app, server, tmp_path):
    send, _ = noting(app, result_ttl=TTL)
    handle = send(1)
    other = stranger(server, tmp_path)
    other.work()
    app.queues.client.call("HINCRBY", app.key("more"), f"u:{handle.id}", -301_000)
    app.pass_time(handle)
    other.work()
    (error,) = app.letters().values()
    assert "no task shop.send is declared: was it renamed or removed?" in error
    assert (handle.state, app.jobs()) == (State.FAILED, [])


def test_a_setting_says_for_how_long_an_unknown_task_waits(app, server, tmp_path):
    send, _ = noting(app)
    handle = send(1)
    stranger(server, tmp_path, unknown_task_grace=0).work()
    assert (list(app.letters()), app.jobs()) == ([handle.id], [])


def test_json_does_not_choose_what_a_worker_imports(app, server, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    payload = json.dumps({"task": "trap.spring"})
    app.queues.submit("default", ["a", payload])
    app.work()
    assert app.standing("a").state is State.QUEUED


# --- the end of a worker


@patiently
def test_a_worker_that_has_run_as_much_as_it_may_gives_the_rest_back(app):
    send, runs = noting(app)
    send.map(range(10))
    consumer = eager(app, max_jobs=3)
    consumer.run()
    assert (consumer.is_recycled, consumer.ran, runs) == (True, 3, [0, 1, 2])
    assert app.executor("redis").sizes()["default"] == (7, 0, 0)
    app.work()
    assert runs == list(range(10))


def test_a_worker_that_says_that_it_is_replaced_begins_nothing_more(app, monkeypatch):
    send, _ = noting(app)
    send(1)
    consumer, stops = app.worker("default", max_jobs=1), []
    info = consumer_module.log.info

    def look_first(text, *args):
        stops.append(consumer._stopping)
        info(text, *args)

    monkeypatch.setattr(consumer_module.log, "info", look_first)
    consumer.run()
    assert stops == [True]


def test_a_worker_that_has_had_too_much_memory_ends(app):
    send, _ = noting(app)
    consumer = app.worker("default", max_memory=1)
    consumer._presence.announce()
    send(1)
    consumer.run()
    assert consumer.is_recycled


def test_what_runs_when_a_worker_is_to_end_does_so_to_its_end(app):
    @app.declare(result_ttl=TTL)
    def send():
        consumer.stop()
        time.sleep(0.2)
        return "at its end"

    consumer = app.worker("default")
    handle = send()
    consumer.run()
    assert (handle.result(5), app.jobs()) == ("at its end", [])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_does_not_end_within_the_grace_is_given_back_and_runs_again(app):
    codes = []

    def abandon(code):
        codes.append(code)
        # As close to the end of the process as a test may come: the end of this thread.
        raise SystemExit

    @app.declare
    def send():
        consumer.stop(0.1)
        until(lambda: codes)

    consumer = app.worker("default", abandon=abandon)
    handle = send()
    consumer.run()
    (claim,) = app.claim()
    assert (codes, claim.id, claim.crashes) == ([0], handle.id, 0)


@pytest.mark.parametrize("is_late", [False, True])
def test_what_was_taken_off_and_nobody_heard_of_it_is_not_lost_in_silence(app, caplog, is_late):
    ran, lost, step = [], [], app.queues.step

    @app.declare(lease=None, result_ttl=TTL)
    def send():
        ran.append(1)

    def lossy(queues, ends, most, token):
        found = step(queues, ends, most, token)
        if ends and not lost:
            lost.append(1)
            for held in consumer.holdings.running:
                held.renewed_at -= 60 * is_late
            raise RedisAway("nothing comes back")
        return found

    app.queues.step = lossy
    handle = send()
    consumer = Restless.within(app.worker("default"))
    consumer.run()
    assert (ran, app.waiting()) == ([], 0)
    if is_late:
        assert f"job {handle.id} was to run once at most, and is gone" in caplog.text
    else:
        (error,) = app.letters().values()
        assert (error.endswith("it has not run"), handle.state) == (True, State.FAILED)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_runs_once_at_most_and_does_not_end_within_the_grace_is_a_dead_letter(app):
    codes = []

    def abandon(code):
        codes.append(code)
        raise SystemExit

    @app.declare(lease=None, result_ttl=TTL)
    def send():
        consumer.stop(0.1)
        until(lambda: codes)

    consumer = app.worker("default", abandon=abandon)
    handle = send()
    consumer.run()
    assert (codes, app.waiting()) == ([0], 0)
    assert app.letters() == {handle.id: "TasksError: its worker had to end before it did"}


# --- threads


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["step", "sleep"])
def test_a_thread_goes_on_whatever_goes_wrong_where_it_fetches(
    app, monkeypatch, caplog, name, threads
):
    barrier = threading.Barrier(threads)

    @app.declare(result_ttl=TTL)
    def send():
        barrier.wait(15)
        return "sent"

    consumer = app.worker("default", threads=threads)
    fetch, broken = getattr(consumer._supply, name), set()

    def fetch_or_fail(*words):
        if threading.get_ident() not in broken and words != (0,):
            broken.add(threading.get_ident())
            raise TypeError("it is broken")
        return fetch(*words)

    monkeypatch.setattr(consumer._supply, name, fetch_or_fail)
    with beside(consumer):
        until(lambda: len(broken) == threads)
        handles = [send() for _ in range(threads)]
        assert [handle.result(30) for handle in handles] == ["sent"] * threads
    failures = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert failures == ["it is broken"] * threads


def test_several_threads_run_as_many_jobs_at_a_time(app):
    barrier = threading.Barrier(3)

    @app.declare(result_ttl=TTL)
    def send():
        return barrier.wait(15)

    with app.working("default", threads=3):
        handles = [send() for _ in range(3)]
        assert sorted(handle.result(15) for handle in handles) == [0, 1, 2]


def test_who_may_have_killed_two_workers_runs_while_nothing_else_does(app):
    inside, seen = [], []

    @app.declare
    def send(name):
        inside.append(name)
        if name == "doubtful":
            time.sleep(0.3)
            seen.append(list(inside))
        time.sleep(0.02)
        inside.remove(name)

    send("doubtful")
    crash(app, 2)
    send.map(["other"] * 10)
    with app.working("default", threads=3):
        until(lambda: app.waiting() == 0)
    assert seen == [["doubtful"]]


def test_behind_a_long_job_nobody_waits_for_what_is_to_run_alone(app, monkeypatch):
    monkeypatch.setattr(consumer_module, "_ALONE", (0.2, 0.4))
    gate, inside, seen = threading.Event(), [], []

    @app.declare
    def send(name):
        inside.append(name)
        if name == "long":
            gate.wait(30)
        seen.append((name, list(inside)))
        inside.remove(name)

    with app.working("default", threads=2):
        send("long")
        until(lambda: inside == ["long"])
        doubtful = send.using(at=timedelta(seconds=1))("doubtful")
        app.queues.client.call("HSET", app.key("more"), f"c:{doubtful.id}", 2)
        # Once it was due, it is put off.
        until(lambda: (app.standing(doubtful.id).at or 0) > time.time() + 1)
        send("short")
        until(lambda: seen == [("short", ["long", "short"])])
        gate.set()
        until(lambda: app.waiting() == 0)
    assert seen[1:] == [("long", ["long"]), ("doubtful", ["doubtful"])]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_job_of_the_future_runs_at_its_time_also_where_several_wait(app, threads):
    late = []

    @app.declare
    def send(due):
        late.append(time.time() - due)

    with app.working("default", threads=threads):
        for number in range(4):
            send.using(at=timedelta(seconds=0.3))(time.time() + 0.3)
            until(lambda number=number: len(late) > number)
    assert all(-0.01 < one < 5 for one in late), late


def test_who_was_woken_by_its_clock_and_is_at_work_takes_nobodys_token(app):
    """A job of the future keeps the first worker busy; the second one is asleep meanwhile."""
    gate, began = threading.Event(), []

    @app.declare
    def send(name):
        began.append(name)
        if name == "long":
            gate.wait(15)

    with app.working("default"):
        time.sleep(0.1)
        send.using(at=timedelta(seconds=0.3))("long")
        until(lambda: began)
        with app.working("default"):
            time.sleep(0.5)
            submitted_at = time.monotonic()
            send("short")
            until(lambda: len(began) == 2)
            woken_in = time.monotonic() - submitted_at
            gate.set()
    assert woken_in < 5


def test_a_next_attempt_is_soon_made_by_others_when_its_own_worker_ends(app):
    gate, seen = threading.Event(), []

    @app.declare(retry=Retry(attempts=2, delay=0.2))
    def send():
        seen.append(time.monotonic())
        if len(seen) == 1:
            gate.wait(15)
            first.stop()
            raise OSError

    with app.working("default") as first:
        send()
        until(lambda: seen)
        with app.working("default"):
            # It falls asleep.
            time.sleep(0.5)
            gate.set()
            until(lambda: len(seen) == 2)
    assert seen[1] - seen[0] < 5


# --- looking, and taking away


def test_all_that_runs_and_waits_is_shown(app):
    seen = []

    @app.declare
    def send(name):
        if name == "first":
            seen.extend((one.task, one.state, one.place, one.priority) for one in app.jobs())
            seen.append([one.id for one in app.jobs(running=True)] == [get_current_task().id])
            seen.append([one.id for one in app.jobs(where=lambda one: one.place == "mail")])
            seen.append([one.state for one in app.jobs(2)])
            consumer.stop()

    send.using(priority=0)("first")
    send("plain")
    send.using(priority=1)("important")
    send.using(at=HOUR)("later")
    mail = send.using(queue="mail")("mail")
    consumer = app.worker("default")
    consumer.run()
    assert seen == [
        ("shop.send", State.RUNNING, "default", 0),
        ("shop.send", State.QUEUED, "default", 1),
        ("shop.send", State.QUEUED, "default", None),
        ("shop.send", State.QUEUED, "default", None),
        ("shop.send", State.QUEUED, "mail", None),
        True,
        [mail.id],
        [State.RUNNING, State.QUEUED],
    ]


def test_it_is_known_who_runs_a_job(app):
    seen = []

    @app.declare
    def send():
        seen.append(app.standing(get_current_task().id).worker)

    send()
    consumer = app.work()
    assert seen == [consumer.name]


def test_how_far_a_job_has_come_is_seen_while_it_runs(app):
    seen = []

    @app.declare
    def send():
        task = get_current_task()
        task.progress(1, 5)
        seen.append(app.job(task.id).progress)
        task.progress(5, 5)
        seen.append(app.job(task.id).progress)

    send()
    app.work()
    assert seen == [(1, 5), (5, 5)]


def test_a_job_can_be_read(app):
    send, _ = noting(app, queue="mail")
    handle = send("a", 2)
    job = app.read(handle.id)
    assert (job.id, job.task, job.args, job.queue) == (handle.id, "shop.send", ("a", 2), "mail")


def test_what_cannot_be_read_is_shown_all_the_same(app):
    app.queues.submit("default", ["a", b"\xff"])
    assert [(one.id, one.task) for one in app.jobs()] == [("a", "")]
    assert (app.read("a"), app.standing("a").state) == (None, State.QUEUED)
    assert app.job("a").cancel()
    assert app.jobs() == []


def test_the_stand_of_all_queues_is_known(app):
    send, _ = noting(app)
    send(1)
    send.using(at=HOUR)(2)
    send.using(queue="mail")(3)
    app.claim(1, "mail")
    executor = app.executor("redis")
    assert executor.sizes() == {"default": (1, 1, 0), "mail": (0, 0, 1)}
    assert (executor.count(), app.waiting()) == (3, 3)


def test_what_is_purged_is_cancelled(app):
    send, runs = noting(app, result_ttl=TTL)
    handles = [send(1), send.using(at=HOUR)(2)]
    assert app.executor("redis").purge("default") == 2
    app.work()
    assert (runs, [handle.state for handle in handles]) == ([], [State.CANCELLED] * 2)


def test_where_it_is_is_said_without_the_password():
    app = Shop(redis="redis://shop:hunter2@cache:6379/0")
    assert app.executor("redis").place == "redis://cache:6379/0"


def test_without_a_worker_it_is_ready_all_the_same():
    assert Shop(redis="redis://localhost:1").executor("redis").ready()


# --- what is left behind


def test_what_has_ended_leaves_nothing_but_the_names_of_queues(app, server):
    send, _ = noting(app)
    fail, _ = noting(app, OSError(), name="shop.fail", dead_letter=False)
    once, _ = noting(app, name="shop.once", lease=None)
    key, _ = noting(app, name="shop.key", unique=True)
    send.map(range(500))
    send.using(priority=1, lease=300)(0)
    send.using(at=1.0)(0)
    send.using(at=HOUR)(0).cancel()
    fail(0)
    once(0)
    key(0)
    app.work()
    assert set(keys(server)) <= {"uwsgi_tasks:queues", app.key("wake")}


def test_a_log_line_says_which_job_and_never_what_was_in_it(app, caplog):
    caplog.set_level(logging.DEBUG)
    send, _ = noting(app, OSError("no"), retry=Retry(attempts=2))
    handle = send("the argument")
    app.work()
    assert handle.id in caplog.text
    assert "the argument" not in caplog.text
