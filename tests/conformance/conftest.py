"""Every executor, with a uWSGI that carries its bytes inside the test, and every store."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import ClassVar

import pytest

import uwsgi_tasks.executors
from tests import fakes
from tests.conformance.places import database, place, shared, store  # noqa: F401  fixtures
from tests.fakes import FakeUwsgi
from tests.servers import (  # noqa: F401  fixtures
    mariadb,
    postgresql,
    redis_62,
    redis_cluster,
    redis_server,
)
from uwsgi_tasks import App
from uwsgi_tasks.codec import decode
from uwsgi_tasks.executors import Consuming, runtime
from uwsgi_tasks.executors import _pool as pools
from uwsgi_tasks.limits import alarm
from uwsgi_tasks.redis.queues import Queues
from uwsgi_tasks.server import Server

FOLDER = Path(uwsgi_tasks.executors.__file__).parent
clock, home, wakes = fakes.clock, fakes.home, fakes.wakes
EXECUTORS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


class Carrier:
    """An app, and whatever runs the jobs that its executor takes."""

    executor: str
    """What the tasks are declared with."""
    travels = True
    """Is a failure a dead letter, not an exception at the call?"""
    alone = False
    """Does the process run one job at a time?"""
    moves = True
    """Does a job run in its working directory?"""
    waits = True
    """Can a job wait between two attempts?"""
    counts = True
    """Are the runs counted?"""
    fixture: ClassVar[str | None] = None
    """The server that it needs, whose ``url`` it gets."""
    url: ClassVar[str]
    lacks: ClassVar[dict[str, str]] = {}
    """The tests of what it does not promise, and why not."""
    unit = 100.0
    """Seconds that stand for one in a retry's times; many where the clock is the test's own."""

    def __init__(self, folder, clock, wakes):
        self.folder, self.clock, self.wakes = folder, clock, wakes
        self.spool = folder / "spool"
        self.spool.mkdir(mode=0o750)
        self.uwsgi = self.server()
        self.app = App(Server(self.uwsgi), dead_dir=str(folder / "spool" / "dead"))
        self.inside = self.app
        """The app of the processes that run the jobs."""
        self.start(self.app)

    def server(self):
        """The uWSGI, if there is one."""
        return

    def start(self, app):
        """Let *app* be loaded by the master, and its processes be forked."""
        if self.uwsgi is not None:
            with self.uwsgi.being("master"):
                app.set_uwsgi_callbacks()
            for number in range(1, self.uwsgi.mules + 1):
                self.uwsgi.fork(app.server, "mule", number)

    def stop(self):
        """End what has been started."""

    def task(self, func=None, /, **options):
        """Declare a function of the test as a task; it has a name, as one of a module has."""

        def declare(func):
            name = f"conformance.{func.__name__}"
            return self.app.task(**{"executor": self.executor, "name": name, **options})(func)

        return declare if func is None else declare(func)

    def configure(self, **settings):
        """Change the settings of all processes."""
        self.app.configure(**settings)

    def work(self):
        """Run all that is due."""
        if self.uwsgi is None:
            return
        busy = True
        while busy:
            self.wakes.clear()
            ended = self.uwsgi.look() if hasattr(self.uwsgi, "spoolers") else 0
            busy = bool(ended or self.wakes or self.uwsgi.messages)
            self.uwsgi.deliver()

    def wait(self, seconds):
        """Let time pass, and run all that is due then."""
        self.clock.advance(seconds)
        self.work()

    def failures(self, call):
        """Make *call* and run it to its end; return the failures, each as "Type: text"."""
        try:
            call()
        except Exception as error:  # noqa: BLE001  how the attempt ended
            return [f"{type(error).__name__}: {error}"]
        self.wait(60)
        return [letter.error for letter, _ in self.dead()]

    def dead(self):
        """The dead letters, the newest first: what is known of each, and its job."""
        signer = self.app.settings.signer
        return [(letter, decode(letter.payload, signer)[0]) for letter in self.app.dead.list()]

    def left(self):
        """How many files still wait."""
        return len(self.uwsgi.spool_files()) if hasattr(self.uwsgi, "spoolers") else 0


class Runtime(Carrier):
    """In the process of the caller."""

    executor = "runtime"
    travels = False
    moves = False
    waits = False
    counts = False


class Spooler(Carrier):
    """Inside uWSGI, into its spooler."""

    executor = "spooler"
    alone = True

    def server(self):
        return FakeUwsgi(spoolers=(str(self.spool),), ordered=True)


class SpoolerFromOutside(Spooler):
    """From a process without uWSGI, into the spooler of one."""

    def start(self, app):
        super().start(app)
        self.app = App(Server(None), spooler_dir=str(self.spool))
        # The other process would import the module, and find the same tasks.
        self.app.tasks = app.tasks

    def configure(self, **settings):
        super().configure(**settings)
        self.inside.configure(**settings)


class Mule(Carrier):
    """To a mule, beside a spooler that takes what must wait."""

    executor = "mule"
    alone = True

    def server(self):
        return FakeUwsgi(mules=1, spoolers=(str(self.spool),))


class LonelyMule(Carrier):
    """To a mule, in a server without a spooler."""

    executor = "mule"
    alone = True
    waits = False
    counts = False

    def server(self):
        return FakeUwsgi(mules=1)


class Gated(SimpleQueue):
    """What the threads of a pool wait for: it comes through while the gate is open."""

    gate = threading.Event()

    def get(self):
        found = super().get()
        self.gate.wait()
        return found


class Thread(Carrier):
    """On a thread of this process; with one alone, jobs have an order."""

    executor = "thread"
    lacks: ClassVar[dict[str, str]] = {
        test: reason
        for reason, tests in {
            "its handle knows the value at once": [
                "test_the_value_is_known_only_where_the_call_has_run",
            ],
            "arguments are themselves, and no copies": [
                "test_what_cannot_be_pickled_is_refused_at_the_call_by_its_name",
                "test_a_map_with_an_argument_that_cannot_be_pickled_runs_nothing",
                "test_what_a_task_submits_of_itself_must_be_picklable_too",
                "test_a_task_that_changes_its_arguments_is_tried_again_with_those_of_the_call",
                "test_of_a_map_each_call_is_tried_again_with_its_own_arguments",
                "test_arguments_that_can_no_longer_be_pickled_do_not_keep_a_job_from_its_next_attempt",
                "test_a_dead_letter_has_the_arguments_of_the_call",
                "test_a_task_does_not_change_the_arguments_of_its_caller",
                "test_a_task_that_changes_its_arguments_is_tried_again_also_where_a_queue_is_full",
            ],
            "nothing leaves the process": [
                "test_a_task_that_is_gone_is_a_dead_letter",
                "test_a_job_runs_in_the_directory_of_its_caller",
                "test_a_job_is_submitted_whole_or_not_at_all",
                "test_a_key_is_free_when_its_job_could_not_be_submitted",
                "test_a_job_that_looks_at_what_runs_stays_locked",
                "test_what_strangers_wrote_is_a_dead_letter_that_was_never_unpickled",
                "test_what_strangers_wrote_is_shown_and_still_not_unpickled",
                "test_who_waits_for_what_strangers_wrote_is_told",
            ],
            "nobody can end a thread": [
                "test_a_job_that_runs_can_be_killed",
                "test_a_job_may_kill_itself",
                "test_an_attempt_that_takes_too_long_is_a_failure",
                "test_an_attempt_that_took_too_long_is_tried_again_by_the_rules",
                "test_a_task_may_tidy_up_when_its_time_is_over",
                "test_who_is_in_time_is_left_alone",
                "test_each_call_of_a_map_has_its_own_time",
            ],
        }.items()
        for test in tests
    }
    moves = False
    counts = False

    def start(self, app):
        # For the other processes, which see nothing of its memory.
        url = f"sqlite:///{self.folder}/store.sqlite3"
        app.configure(threads=1, thread_grace=0, store=url)
        Gated.gate.clear()
        pools.SimpleQueue = Gated

    def work(self):
        pool = self.app._thread._here()
        if pool is None or Gated.gate.is_set():
            return
        Gated.gate.set()
        while self._is_busy(pool):
            time.sleep(0.001)
        Gated.gate.clear()

    def _is_busy(self, pool):
        # It looks at the clock once a minute, or when there is something new.
        with pool._delays._changed:
            pool._delays._changed.notify()
        now = self.clock()
        # Those that wait: on its way from the delays to the threads, one is nowhere else.
        waiting = [entry.job.at for entry in list(pool._waiting.values())]
        return any(at is None or at <= now for at in waiting) or not pool._is_idle()

    def stop(self):
        self.app._thread.stop()
        Gated.gate.set()
        pools.SimpleQueue = SimpleQueue


SECRET = "of the tests"  # noqa: S105  it keeps nothing secret


class Moved(Queues):
    """Queues on a Redis, whose clock nobody can set: all times are moved to where it is."""

    def __init__(self, client, namespace, clock):
        super().__init__(client, namespace)
        self._clock = clock

    @property
    def _ahead(self):
        """Seconds by which Redis is ahead of the test's clock."""
        seconds, rest = self.client.call("TIME")
        return int(seconds) + int(rest) / 1e6 - self._clock()

    def submit(self, queue, jobs, *, at=None, **more):
        super().submit(queue, jobs, at=None if at is None else at + self._ahead, **more)

    def step(self, queues, ends, most, token):
        moved = [end if end.at is None else end._replace(at=end.at + self._ahead) for end in ends]
        return super().step(queues, moved, most, token)

    def _standings(self, queue, ids):
        for found in super()._standings(queue, ids):
            yield found if found.at is None else found._replace(at=found.at - self._ahead)

    def pass_time(self, seconds):
        """Let what is due in *seconds* be due now."""
        for queue in self.names():
            key = f"{self.root(queue)}:due"
            for id_ in self.client.call("ZRANGE", key, 0, -1):
                self.client.call("ZINCRBY", key, -seconds * 1000, id_)
        for key in self.client.call("KEYS", "uwsgi_tasks:result:*"):
            left = self.client.call("PTTL", key)
            self.client.call("PEXPIRE", key, round(left - seconds * 1000))


class Restless:
    """Stands for the wait of a consumer: where there is nothing to do, it ends."""

    def __init__(self, consumer):
        self._consumer = consumer

    @classmethod
    def within(cls, consumer):
        """Have *consumer* end when there is nothing to do; return it."""
        consumer._supply._waiter.close()
        consumer._supply._waiter = cls(consumer)
        return consumer

    def wait(self, _seconds):
        self._consumer.stop()

    def withdraw(self, *_seconds):
        pass

    def reset(self):
        pass

    def wake(self):
        pass

    def close(self):
        pass


class Redis(Carrier):
    """Through a real Redis, to a consumer in this process."""

    executor = "redis"
    fixture = "redis_server"
    moves = False
    serializer = "pickle"
    lacks: ClassVar[dict[str, str]] = {
        "test_a_job_runs_in_the_directory_of_its_caller": "several jobs run at a time, in one",
        "test_a_job_is_submitted_whole_or_not_at_all": "tests/redis takes Redis away instead",
        "test_a_dead_letter_that_could_not_be_submitted_stays": "it has a secret from the start",
        "test_a_job_that_looks_at_what_runs_stays_locked": "it has no files",
        "test_a_task_that_is_gone_is_a_dead_letter": "it waits for a worker that has it",
    }

    def start(self, app):
        app.configure(redis=self.url, secret=SECRET)

    def _queues(self, app):
        executor = app.executor("redis")
        if not isinstance(executor.queues, Moved):
            settings, found = executor._found
            moved = Moved(found.client, settings.namespace, self.clock)
            executor._found = settings, moved
        return executor.queues

    def task(self, func=None, /, **options):
        self._queues(self.app)
        return super().task(func, **{"serializer": self.serializer, **options})

    def configure(self, **settings):
        super().configure(**settings)
        self._queues(self.app)

    def work(self):
        queues = self._queues(self.app)
        served = [(name, None) for name in queues.names()] or [("default", None)]
        consumer = self.app.consume(Consuming(queues=served))
        Restless.within(consumer).run()

    def wait(self, seconds):
        self.clock.advance(seconds)
        self._queues(self.app).pass_time(seconds)
        self.work()

    def left(self):
        return self.app.executor("redis").count()

    def stop(self):
        shutil.rmtree(self.app._keeping.counts_folder())


class RedisInJson(Redis):
    """The same, in JSON, as it is without being asked for."""

    serializer = None
    lacks: ClassVar[dict[str, str]] = (
        Redis.lacks
        | dict.fromkeys(
            [
                "test_arguments_arrive",
                "test_arguments_may_have_the_names_of_options",
                "test_60_kilobytes_arrive",
                "test_what_is_too_large_is_refused_or_arrives_whole",
                "test_a_buffer_lives_from_attempt_to_attempt",
            ],
            "JSON has no bytes, and no keys that are numbers",
        )
        | dict.fromkeys(
            [
                "test_the_arguments_of_a_dead_letter_are_shown_without_building_them",
                "test_what_strangers_wrote_is_a_dead_letter_that_was_never_unpickled",
                "test_what_strangers_wrote_is_shown_and_still_not_unpickled",
                "test_who_waits_for_what_strangers_wrote_is_told",
            ],
            "JSON is anybody's: it is not signed, and nothing in it is built",
        )
    )


CARRIERS = {
    "mule": [Mule, LonelyMule],
    "redis": [Redis, RedisInJson],
    "runtime": [Runtime],
    "spooler": [Spooler, SpoolerFromOutside],
    "thread": [Thread],
}
"""The contract is checked for each of these. A new executor needs an entry."""


def carried(*kinds):
    """A fixture: a carrier, of each of these kinds."""

    @pytest.fixture(params=kinds, ids=lambda kind: kind.__name__)
    def carrier(request, tmp_path, home, clock, wakes, monkeypatch):
        missing = request.param.lacks.get(request.function.__name__)
        if missing:
            pytest.skip(f"not promised by {request.param.executor}: {missing}")
        # Its waits pass at once; a task that sleeps goes on to sleep.
        if request.param.fixture is not None:
            server = request.getfixturevalue(request.param.fixture)
            server.flush()
            request.param.url = server.url
        passing = SimpleNamespace(time=clock, sleep=clock.advance)
        monkeypatch.setattr(runtime, "time", passing)
        made = request.param(tmp_path, clock, wakes)
        alarmed = signal.getsignal(signal.SIGALRM)
        yield made
        made.stop()
        # Spoolers and mules listen to it for life.
        alarm.watch(lambda: False)
        signal.signal(signal.SIGALRM, alarmed)
        os.chdir("/")

    return carrier


ALL = [one for all_ in CARRIERS.values() for one in all_]
carrier = carried(*ALL)
