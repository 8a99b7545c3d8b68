"""Redis cannot be reached, or is away for a while: leases decide, and workers go on."""

import select
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.redis.crew import Crew
from tests.redis.shop import stat
from tests.servers import Redis, serve
from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.redis.client import Client

SOURCE = Path(__file__).parent / "under_fire.py"
IMPATIENT = "socket_timeout=1"


def readable(sockets, seconds):
    """Wait until one of *sockets* can be read; return all that can."""
    poll, by_number = select.poll(), {one.fileno(): one for one in sockets}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(seconds * 1000)]


class Proxy:
    """A way to a Redis that can be cut: connections stay open, and nothing comes through."""

    def __init__(self, port):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.carries_questions = self.carries_answers = True
        self._rounds = 0
        """How often it has looked at what it is to carry."""
        self._ways = {}
        """Where to send what comes from a connection, and whether that is a question."""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def cut(self, *, answers_alone=False):
        """Carry nothing from now on, or only what clients say."""
        self.carries_answers = False
        self.carries_questions = answers_alone
        # What it has looked at before that, it carries still.
        rounds = self._rounds
        while self._rounds == rounds:
            time.sleep(0.001)

    def heal(self):
        """Carry all of it again: also what was held meanwhile, as a network does."""
        self.carries_questions = self.carries_answers = True

    def close(self):
        self._is_over.set()
        self._thread.join()
        for one in (self._listener, *self._ways):
            one.close()

    def _carry(self):
        while not self._is_over.is_set():
            self._rounds += 1
            sources = [
                one
                for one, (_, is_question) in self._ways.items()
                if (self.carries_questions if is_question else self.carries_answers)
            ]
            # Nobody is let in meanwhile: the system alone says yes to them.
            doors = [self._listener] if self.carries_questions else []
            for one in readable([*sources, *doors], 0.01):
                if one is self._listener:
                    self._let_in()
                elif one in self._ways:
                    self._pass_on(one)

    def _let_in(self):
        client, _ = self._listener.accept()
        server = socket.create_connection(("127.0.0.1", self._target))
        self._ways[client], self._ways[server] = (server, True), (client, False)

    def _pass_on(self, source):
        target, _ = self._ways[source]
        try:
            if data := source.recv(65536):
                target.sendall(data)
                return
        except OSError:
            pass
        for one in (source, target):
            self._ways.pop(one, None)
            with suppress(OSError):
                one.close()


@pytest.fixture(scope="module")
def redis():
    with serve(Redis, port=True) as server:
        yield server


@pytest.fixture
def crew(tmp_path, redis):
    redis.flush()
    made = Crew(tmp_path, redis.url, SOURCE)
    yield made
    made.end()


@pytest.fixture
def proxy(redis):
    made = Proxy(redis.port)
    yield made
    made.close()


def behind(proxy):
    """Return what a worker's environment says that reaches Redis through *proxy*."""
    return {"UWSGI_TASKS_REDIS": f"redis://127.0.0.1:{proxy.port}/0?{IMPATIENT}"}


def begun(crew, *ids):
    return [event["pid"] for event in crew.events("begin") if event["id"] in ids]


# ---- a partition


def test_a_job_whose_lease_is_over_in_a_partition_runs_again_and_its_first_end_is_refused(
    crew, proxy
):
    first, second, job = twice_begun(crew, proxy)

    proxy.heal()
    crew.open_gate(f"gate {first.pid}")
    crew.wait_for(lambda: "ended after its lease was over" in first.log)
    # It runs, and is still the second one's.
    assert crew.sizes() == (0, 0, 1)
    crew.open_gate(f"gate {second.pid}")
    crew.wait_until_empty()
    assert begun(crew, job) == [first.pid, second.pid]
    assert "ended after its lease was over" not in second.log
    assert crew.call("letters()") == []


def twice_begun(crew, proxy, name="gated"):
    """Have a job begin behind the proxy, and again elsewhere; return both workers, and its id."""
    first = crew.start(**behind(proxy))
    # Not so short that it is over where it was extended late.
    job = crew.call(f"{name}.using(lease=4)('gate').id")
    crew.wait_for_events("begin")
    proxy.cut()
    second = crew.start()
    crew.wait_for_events("begin", 2)
    return first, second, job


def test_the_result_that_counts_is_that_of_the_second_worker(crew, proxy):
    first, second, job = twice_begun(crew, proxy)
    crew.open_gate(f"gate {second.pid}")
    crew.wait_until_empty()
    assert crew.call(f"outcomes([{job!r}])") == {job: second.pid}

    proxy.heal()
    crew.open_gate(f"gate {first.pid}")
    crew.wait_for(lambda: "ended after its lease was over" in first.log)
    assert crew.call(f"outcomes([{job!r}])") == {job: second.pid}


@pytest.mark.parametrize("fails", [False, True])
def test_what_ends_in_a_partition_waits_until_it_is_known_whose_it_is(crew, proxy, fails):
    first, second, job = twice_begun(crew, proxy, "frail")
    if fails:
        crew.open_gate(f"fail {first.pid}")
    crew.open_gate(f"gate {second.pid}")
    crew.wait_until_empty()
    crew.open_gate(f"gate {first.pid}")
    crew.wait_for_events("end", 2)
    crew.wait_for(lambda: "this worker waits for it" in first.log)
    # Two times as long as it waits for an answer: it must not have come to an end of its own.
    time.sleep(2.5)

    proxy.heal()
    crew.wait_for(lambda: "ended after its lease was over" in first.log)
    assert crew.call(f"outcomes([{job!r}])") == {job: second.pid}
    assert crew.call("letters()") == []


def test_a_heartbeat_behind_a_partition_that_has_cost_the_lease_raises_lease_lost(crew, proxy):
    first, second, job = twice_begun(crew, proxy, "beating")
    # Else its question might be one whose answer does not come.
    crew.wait_for(lambda: "this worker waits for it" in first.log)
    proxy.heal()
    crew.wait_for(lambda: "Redis is back" in first.log)
    crew.open_gate("gate")

    crew.wait_for_events("lost")
    crew.wait_until_empty()
    assert [(event["id"], event["pid"]) for event in crew.events("lost")] == [(job, first.pid)]
    assert [event["pid"] for event in crew.events("end")] == [second.pid]
    assert crew.call("letters()") == []


def test_a_worker_goes_on_by_itself_after_a_partition(crew, proxy):
    worker = crew.start("-c", "2", **behind(proxy))
    crew.call("single.using(lease=30)(1).id")
    crew.wait_for_events("end")
    crew.call("[slow.using(lease=30)(0.5).id, slow.using(lease=30)(0.5).id]")
    crew.wait_for_events("begin", 3)
    proxy.cut()
    jobs = crew.call("len(single.using(lease=30).map(range(20)))")
    crew.wait_for(lambda: "this worker waits for it" in worker.log)
    assert len(crew.events("begin")) == 3

    proxy.heal()
    crew.wait_for_events("end", jobs + 3)
    crew.wait_until_empty()
    assert len(crew.events("begin")) == jobs + 3
    assert "Redis is back" in worker.log
    assert worker.stop() == 0


def test_what_is_claimed_by_a_question_whose_answer_is_lost_is_given_back_at_once(crew, proxy):
    worker = crew.start(**behind(proxy))
    crew.wait_until_ready(worker)
    proxy.cut(answers_alone=True)
    crew.call("len(single.using(lease=60).map(range(20)))")
    crew.wait_for(lambda: "this worker waits for it" in worker.log, 60)
    proxy.heal()

    crew.wait_until_empty(30)
    assert len(crew.events("begin")) == len(crew.events("end")) == 20


# ---- a submit whose answer is lost


def test_what_runs_at_most_once_is_not_submitted_again_when_the_answer_is_lost(
    tmp_path, redis, proxy
):
    redis.flush()
    url = behind(proxy)["UWSGI_TASKS_REDIS"]
    crew = Crew(tmp_path, url, SOURCE, UWSGI_TASKS_REDIS_RETRY="5")
    try:
        crew.call("single.using(lease=30)(1).id")
        crew.start(UWSGI_TASKS_REDIS=redis.url)
        crew.wait_for_events("end")
        proxy.cut(answers_alone=True)
        healing = threading.Timer(1.5, proxy.heal)
        healing.start()
        crew.call("submitted('app.once', 1, lambda: [once(1)])")
        healing.join()

        # What runs once at most is off before it says that it begins.
        crew.wait_for_events("begin", 2)
        crew.wait_until_empty()
        assert len(crew.events("begin")) == 2
    finally:
        crew.end()


def test_a_cluster_whose_answer_is_late_is_told_nothing_twice(redis_cluster):
    client = Client(f"{redis_cluster.url}?{IMPATIENT}")
    client.call("RPUSH", "{uwsgi_tasks:told}", "first")
    owner = redis_cluster.owner("{uwsgi_tasks:told}")
    owner.freeze()
    thawing = threading.Timer(1.5, owner.thaw)
    thawing.start()
    with pytest.raises(RedisAway):
        client.call("RPUSH", "{uwsgi_tasks:told}", "second")
    thawing.join()

    told = client.call("LRANGE", "{uwsgi_tasks:told}", 0, -1)
    assert [word for word in told if word != b"first"] in ([], [b"second"])
    redis_cluster.flush()


# ---- Redis is away


@pytest.fixture(scope="module")
def durable():
    with serve(Redis, durable=True) as server:
        yield server


@pytest.fixture
def enduring(tmp_path, durable):
    """Workers at a Redis that forgets nothing when it ends."""
    durable.flush()
    made = Crew(tmp_path, durable.url, SOURCE)
    yield made
    made.end()


def outage(crew, durable, *names):
    """Have these jobs end while Redis is away; return the worker that has run them."""
    worker = crew.start("-c", "2")
    ids = [crew.call(f"{name}('gate').id") for name in names]
    crew.wait_for_events("begin", len(names))
    durable.stop()
    crew.open_gate("gate")
    crew.wait_for(lambda: "this worker waits for it" in worker.log)
    time.sleep(1)
    durable.start()
    return worker, ids


def test_what_ends_while_redis_is_away_is_told_when_it_is_back_and_does_not_run_again(
    enduring, durable
):
    worker, ids = outage(enduring, durable, "gated.using(lease=60)", "gated.using(lease=60)")
    enduring.call("single.using(lease=30)(1).id")
    enduring.wait_until_empty(30)
    assert sorted(event["id"] for event in enduring.events("begin"))[:2] == sorted(ids)
    assert len(enduring.events("begin")) == 3
    assert worker.stop() == 0


def test_the_result_of_what_ends_while_redis_is_away_is_kept(enduring, durable):
    worker, (job,) = outage(enduring, durable, "gated.using(lease=60)")
    enduring.wait_until_empty(30)
    assert enduring.call(f"outcomes([{job!r}])") == {job: worker.pid}


def test_who_is_told_to_end_while_redis_is_away_tells_it_how_jobs_have_ended_when_it_is_back(
    enduring, durable
):
    worker = enduring.start("--grace", "60")
    job = enduring.call("gated.using(lease=60)('gate').id")
    enduring.wait_for_events("begin")
    durable.stop()
    worker.signal(signal.SIGTERM)
    enduring.open_gate("gate")
    enduring.wait_for_events("end")
    enduring.wait_for(lambda: "this worker waits for it" in worker.log)
    durable.start()

    assert worker.wait() == 0
    assert enduring.sizes() == (0, 0, 0)
    enduring.wait_for(lambda: enduring.call(f"outcomes([{job!r}])") == {job: worker.pid})


def test_who_has_had_enough_while_redis_is_away_first_tells_it_how_jobs_have_ended(
    enduring, durable
):
    worker = enduring.start("--max-jobs", "1", "--grace", "60")
    job = enduring.call("gated.using(lease=60)('gate').id")
    enduring.wait_for_events("begin")
    durable.stop()
    enduring.open_gate("gate")
    enduring.wait_for_events("end")
    enduring.wait_for(lambda: "this worker waits for it" in worker.log)
    durable.start()

    enduring.wait_until_empty()
    enduring.wait_for(lambda: enduring.call(f"outcomes([{job!r}])") == {job: worker.pid})
    assert len(enduring.events("begin")) == 1
    assert worker.stop() == 0


def test_the_unique_key_of_what_ends_while_redis_is_away_is_free_again(enduring, durable):
    _, (job,) = outage(enduring, durable, "unique_gated")
    enduring.wait_until_empty(30)
    assert enduring.call("unique_gated('gate').id") != job
    enduring.wait_for_events("begin", 2)


def test_a_dead_letter_of_what_fails_while_redis_is_away_is_found(enduring, durable):
    _, (job,) = outage(enduring, durable, "failing_gated")
    enduring.wait_until_empty(30)
    assert [id_ for id_, _, _ in enduring.call("letters()")] == [job]


@pytest.mark.parametrize("seconds", [0, 1], ids=["at once", "when it was given back"])
def test_what_was_claimed_ahead_when_redis_goes_away_runs_and_only_once_what_may_only_once(
    enduring, durable, seconds
):
    enduring.call("len(quick.map(range(300)))")
    pid = durable._process.pid
    enduring.call(
        f"[hit({pid}, 9, {seconds}), quick_once.map(range(5)), quick.map(range(5))][0].id"
    )
    worker = enduring.start()
    enduring.wait_for(lambda: "this worker waits for it" in worker.log)
    durable.kill()
    durable.start()

    def begun_ids():
        return [event["id"] for event in enduring.events("begin")]

    enduring.wait_until_empty(15)
    # What runs once at most is off before it says that it begins.
    enduring.wait_for(lambda: len(set(begun_ids())) + len(enduring.call("letters()")) == 311)
    ids = begun_ids()
    assert len(ids) == len(set(ids))


def test_a_redis_that_stands_still_for_longer_than_its_clients_wait_loses_nothing(
    tmp_path, durable
):
    durable.flush()
    crew = Crew(tmp_path, f"{durable.url}&{IMPATIENT}", SOURCE)
    try:
        workers = [crew.start("-c", "2") for _ in range(2)]
        for worker in workers:
            crew.wait_until_ready(worker)
        jobs = crew.call("len(slow.using(lease=30).map([0.02] * 200))")
        crew.wait_for_events("end", 10)
        durable.freeze()
        crew.wait_for(lambda: all("this worker waits for it" in one.log for one in workers))
        time.sleep(1)
        durable.thaw()

        # Sooner than the leases of what was claimed for nobody.
        crew.wait_until_empty(20)
        assert len(crew.events("begin")) == len(crew.events("end")) == jobs
        assert [worker.stop() for worker in workers] == [0, 0]
    finally:
        crew.end()


def test_a_client_may_lose_its_connection_however_often(redis):
    client = Client(redis.url)
    for _ in range(110):
        assert client.call("PING") == b"PONG"
        redis.cli("CLIENT", "KILL", "TYPE", "normal")
        with suppress(RedisAway):
            client.call("PING")


# ---- Redis forgets


def test_a_redis_that_has_forgotten_its_scripts_is_told_them_again(crew, redis):
    worker = crew.start("-c", "2")
    jobs = crew.call("len(slow.using(lease=30).map([0.02] * 100))")
    crew.wait_for_events("end", 10)
    redis.cli("SCRIPT", "FLUSH")

    crew.wait_until_empty()
    assert len(crew.events("end")) == len(crew.events("begin")) == jobs
    assert worker.stop() == 0


def test_workers_go_on_when_redis_has_forgotten_everything(crew, redis):
    worker = crew.start("-c", "2")
    crew.call("gated('gate').id")
    crew.wait_for_events("begin")
    redis.flush()
    crew.open_gate("gate")
    crew.wait_for(lambda: "ended after its lease was over" in worker.log)

    crew.call("len(single.map(range(20)))")
    crew.wait_for_events("end", 21)
    crew.wait_until_empty()
    assert worker.stop() == 0


@pytest.mark.slow
def test_queues_are_known_again_to_a_redis_that_has_forgotten_everything(crew, redis):
    crew.start()
    crew.call("single(1).id")
    crew.wait_for_events("end")
    redis.flush()

    crew.wait_for(lambda: crew.queues.names() == ["default", "high", "low"], 60)


# ---- a worker that stands still


def test_what_a_worker_had_claimed_ahead_when_it_stood_still_does_not_run_twice(crew):
    # Quick ones at first, for the worker to claim many at a time.
    crew.call("len(quick.map(range(300)))")
    stopping, *ahead = crew.call(
        f"[one.id for one in [hit.using(lease=1)(0, {int(signal.SIGSTOP)}, 0), "
        "*quick.map(range(10))]]"
    )
    first = crew.start()
    crew.wait_for(lambda: begun(crew, stopping))
    assert begun(crew, *ahead) == []
    second = crew.start()
    # The job stops that one, too.
    crew.wait_for(lambda: len(begun(crew, stopping)) == 2)
    crew.wait_for(lambda: [stat(one.pid)[:1] for one in (first, second)] == [["T"], ["T"]])
    second.signal(signal.SIGCONT)
    crew.wait_until_empty()
    first.signal(signal.SIGCONT)

    crew.wait_for(lambda: "ended after its lease was over" in first.log)
    crew.call("single(1).id")
    crew.wait_for_events("end", 3)
    assert begun(crew, *ahead) == [second.pid] * 10
    assert crew.call("letters()") == []


# ---- a master that fails


@pytest.mark.parametrize("kill", [False, True], ids=["in peace", "killed"])
def test_workers_follow_the_master(tmp_path, redis_sentinel, kill):
    redis_sentinel.start()
    redis_sentinel.flush()
    crew = Crew(tmp_path, redis_sentinel.url, SOURCE)
    try:
        workers = [crew.start("-c", "2") for _ in range(2)]
        jobs = crew.call("len(slow.map([0.02] * 200))")
        crew.wait_for_events("end", 10)
        redis_sentinel.fail_over(kill=kill)
        crew.wait_for(lambda: crew.call("submitted('app.single', 1, lambda: [single(1)])"), 60)

        crew.wait_until_empty(60)
        ended = {event["id"] for event in crew.events("end")}
        assert len(ended) == jobs + 1
        assert [worker.stop() for worker in workers] == [0, 0]
    finally:
        crew.end()
        # The one that was killed is there again, for other tests.
        redis_sentinel.start()
