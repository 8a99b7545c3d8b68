"""The program `uwsgi-tasks worker` on a real Redis: how it begins, works and ends."""

import json
import os
import random
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import suppress
from itertools import product

import pytest

from tests.redis.shop import Shop, stat
from tests.servers import Redis, free_port, serve

ALONE, SEVERAL = (), ("--processes", "2")


@pytest.fixture
def shop(tmp_path, redis_server):
    redis_server.flush()
    made = Shop(tmp_path, redis_server.url)
    yield made
    made.end()


@pytest.fixture
def own_redis():
    """A Redis that a test may end and start."""
    with serve(Redis, durable=True) as server:
        yield server


# ---- how it begins


def test_it_says_what_it_serves(shop):
    port = str(free_port())
    worker = shop.work("-q", "high,default", "-c", "3", "-p", "2", "--health", port)
    shop.wait_until_ready(2)

    lines = [line.strip() for line in worker.log.splitlines()[:6]]
    assert lines[0].startswith("uwsgi_tasks ")
    assert lines[1:] == [
        f"redis      {shop.url.removesuffix('?db=0')}",
        "queues     high, default (in this order)",
        f"at a time  2 x 3  (pid {worker.pid})",
        "tasks      shop.grow, shop.hold, shop.nap, shop.note, shop.swim",
        f"health     http://127.0.0.1:{port}/",
    ]


def test_it_does_not_show_a_password_even_if_that_is_wrong(tmp_path, redis_tls):
    shop = Shop(tmp_path, redis_tls.url.replace("s3cret", "wr0ng"))
    worker = shop.work()
    shop.wait_for(lambda: "this worker waits for it" in worker.log)
    shop.end()

    assert f"redis      rediss://localhost:{redis_tls.tls_port}/0\n" in worker.log
    assert "wr0ng" not in worker.log


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-m", "shop", "-q", "high,,low"], "queues are written as high,default"),
        (["-m", "shop", "-q", "high=2,low"], "either all of them have a weight or none"),
        (["-m", "shop", "-c", "0"], "0 is not in the range"),
        (["-m", "shop", "--grace", "soon"], "no length of time"),
        (["-m", "shop", "--health", "here"], "'here' is no port"),
        (["-m", "shop", "--nothing"], "--nothing"),
        (["-m", "no.such.module"], "importing no.such.module failed"),
        ([], "no task is declared: name the modules that declare them with -m MODULE"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(shop, words, complaint):
    (line,) = shop.type("worker", *words, code=2).stderr.splitlines()

    assert line.startswith("uwsgi-tasks: ")
    assert complaint in line


@pytest.mark.parametrize(
    ("package", "extra", "words"),
    [("redis", "redis", []), ("watchfiles", "reload", ["--reload"])],
)
def test_without_a_package_that_it_needs_it_names_the_remedy(shop, package, extra, words):
    shop.write(f"{package}.py", f"raise ModuleNotFoundError(name={package!r})")
    shop.write("plain.py", "from uwsgi_tasks import task\n@task\ndef plain(): pass\n")

    ended = shop.type("worker", "-m", "plain", *words, code=4)

    assert f"needs a package: pip install 'uwsgi_tasks[{extra}]'" in ended.stderr.splitlines()[-1]


def test_an_address_that_is_taken_is_one_line(shop):
    with serve(Redis, port=True) as other:
        ended = shop.type("worker", "-m", "shop", "--health", str(other.port), code=4)

    assert f"--health 127.0.0.1:{other.port}: Address already in use" in ended.stderr


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_while_redis_is_away_at_the_start_it_says_so_and_waits(tmp_path, own_redis, processes):
    own_redis.stop()
    shop = Shop(tmp_path, own_redis.url)
    worker = shop.work(*processes)
    shop.wait_for(lambda: "this worker waits for it" in worker.log)
    own_redis.start()
    shop.submit("note", "at last")

    shop.wait_for_events("at last")
    shop.wait_for(lambda: "Redis is back" in worker.log)
    worker.tell()
    assert worker.wait() == 0


# ---- how it works


def test_functions_and_coroutine_functions_run(shop):
    shop.work()
    shop.submit("note", "walked")
    shop.submit("swim", "swum")

    shop.wait_for_events("walked")
    shop.wait_for_events("swum")


def test_so_many_jobs_run_at_a_time_as_was_said(shop):
    shop.work("-c", "8")
    ids = shop.submit_all("hold", [["gate"]] * 9)
    shop.wait_for_events("gate begins", 8)
    running = shop.queues.sizes("default").running
    shop.open_gate("gate")

    ended = shop.wait_for_events("gate ends", 9)
    assert running == 8
    assert {event["id"] for event in ended} == set(ids)


def test_the_first_queue_is_served_before_the_second(shop):
    shop.submit_all("note", [["low"]] * 300, queue="low")
    shop.submit_all("note", [["high"]] * 300, queue="high")
    shop.work("-q", "high,low")
    shop.wait_for_events("low", 300)

    assert shop.names() == ["high"] * 300 + ["low"] * 300


def test_queues_with_weights_are_served_in_proportion_and_none_waits_for_an_empty_one(shop):
    shop.submit_all("nap", [["high", 0.005]] * 1200, queue="high")
    shop.submit_all("nap", [["low", 0.005]] * 1200, queue="low")
    shop.work("-q", "high=3,low=1,empty=60", "-c", "4")
    shop.wait_for(lambda: len(shop.events("high is over")) == 1200)
    so_far = Counter(shop.names()[:1600])
    shop.wait_until_empty()

    # Of 800 runs three quarters are 600. What is claimed at once, up to four jobs, has one queue:
    # by chance there are 150 more or fewer in one case of a billion.
    assert 450 < so_far["high"] < 750
    assert len(shop.events("low is over")) == 1200


# ---- how it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_told_to_end_it_finishes_what_runs_and_exits_with_0(shop, processes, number):
    worker = shop.work("-c", "2", *processes)
    shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")
    worker.tell(number)
    shop.open_gate("gate")

    assert worker.wait() == 0
    assert shop.names() == ["gate begins", "gate ends"]
    assert sum(shop.queues.sizes("default")) == 0
    assert shop.ask("workers")["workers"] == []


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_what_was_claimed_ahead_is_at_the_front_again_and_runs_elsewhere(shop, processes):
    jobs = shop.submit_all("nap", [["one", 0.002]] * 700)
    worker = shop.work(*processes)
    shop.wait_for_events("one", 200)
    worker.tell()
    assert worker.wait() == 0
    ran, waiting = len(shop.events("one")), [one.id for one in shop.queues.waiting("default")]
    shop.work()
    shop.wait_until_empty()

    # What has not run is there, of one process in its order, and whatever ran has run once.
    assert len(waiting) == 700 - ran > 0
    assert processes == SEVERAL or waiting == jobs[ran:]
    assert len(shop.events("one is over")) == 700


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_what_does_not_end_within_the_grace_is_given_back_without_a_crash(shop, processes, threads):
    worker = shop.work("-c", threads, "--grace", "200ms", *processes)
    job = shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")
    worker.tell()
    assert worker.wait() == 0
    begun = time.monotonic()
    shop.work(env={"UWSGI_TASKS_CRASH_LIMIT": "1"})
    shop.wait_for_events("gate begins", 2)
    shop.open_gate("gate")

    # Long before its lease is over.
    assert time.monotonic() < begun + 15
    assert [event["id"] for event in shop.wait_for_events("gate ends")] == [job]
    shop.wait_until_empty()


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_told_a_second_time_it_ends_at_once(shop, processes, threads):
    worker = shop.work("-c", threads, *processes)
    shop.submit("hold", "gate")
    (event,) = shop.wait_for_events("gate begins")
    worker.tell()
    told = time.monotonic()
    shop.wait_for(lambda: time.monotonic() > told + 2)

    def has_ended():
        # Less than half a second behind the first it is the same one, told by several; and that
        # may be heard of late. A third one might meet what has ended all but for Python.
        worker.tell(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(8)
        return worker.process.poll() is not None

    # Long before its grace is over.
    shop.wait_for(has_ended, 20)
    assert worker.wait() == 1
    shop.wait_for(lambda: not stat(event["pid"]) or stat(event["pid"])[0] == "Z")
    assert not shop.events("gate ends")


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_told_twice_in_the_same_moment_it_still_finishes_what_runs(shop, processes):
    worker = shop.work(*processes)
    shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")
    # As a service manager does: to all processes, of which one passes it on. Two of one number
    # might arrive as one.
    for pid, number in product([worker.pid, *worker.children], [signal.SIGTERM, signal.SIGINT]):
        # One with nothing to do may have ended.
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    shop.open_gate("gate")

    assert worker.wait() == 0
    assert len(shop.events("gate ends")) == 1


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_ctrl_c_to_its_group_is_no_mishap(shop, processes):
    worker = shop.work("-c", "2", *processes, process_group=0)
    shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")
    os.killpg(worker.pid, signal.SIGINT)
    shop.open_gate("gate")

    assert worker.wait() == 0
    assert len(shop.events("gate ends")) == 1
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_told_to_end_where_python_swallows_that_it_exits_with_0(shop, processes):
    shop.write(
        "deaf.py",
        """
        import os, signal
        class Last:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
        Last()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            pass
    """,
    )
    worker = shop.work("-m", "deaf", *processes)
    assert worker.wait() == 0


def test_told_to_end_while_it_imports_it_exits_with_0(shop):
    shop.write(
        "slow.py",
        """
        import time
        from stage import record
        record("imports")
        time.sleep(600)
    """,
    )
    worker = shop.work("-m", "slow")
    shop.wait_for_events("imports")
    worker.tell()

    assert worker.wait() == 0


def test_nohup_keeps_sighup_from_it(shop):
    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    worker = shop.work(preexec_fn=ignore)
    shop.wait_until_ready()
    worker.tell(signal.SIGHUP)
    shop.submit("note", "still here")

    shop.wait_for_events("still here")


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_what_a_job_forks_ends_as_that_of_any_program(shop, processes, threads):
    shop.write(
        "forking.py",
        """
        import multiprocessing, signal, sys, time
        from stage import record
        from uwsgi_tasks import task
        def doze():
            # Not in one: a signal just before it would be heard behind it.
            for _ in range(6000):
                time.sleep(0.1)
        def listen(listens):
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
            listens.send("now")
            doze()
        @task(executor="redis")
        def fork():
            codes = []
            here, there = multiprocessing.Pipe()
            for do, args in ((doze, ()), (listen, (there,))):
                child = multiprocessing.get_context("fork").Process(target=do, args=args)
                child.start()
                # The first one at once, before it could do anything.
                args and here.recv()
                child.terminate()
                child.join(12)
                codes.append(child.exitcode)
                child.kill()
            record("forked", codes=codes)
    """,
    )
    worker = shop.work("-m", "forking", "-c", threads, *processes)
    shop.queues.submit("default", ["fork-1", '{"task": "forking.fork"}'])
    (event,) = shop.wait_for_events("forked")
    # Nobody has taken that for its own end.
    shop.submit("note", "still here")
    shop.wait_for_events("still here")
    worker.tell()

    assert event["codes"] == [-signal.SIGTERM, 3]
    assert worker.wait() == 0


STUCK = """
    import ctypes, signal, threading
    from stage import gate, record
    from uwsgi_tasks import task

    def stick(name):
        # No signal ends it, and nothing but that gate.
        libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(lock)
        def free():
            gate(name)
            libc.pthread_mutex_unlock(lock)
        threading.Thread(target=free, daemon=True).start()
        record("stuck")
        libc.pthread_mutex_lock(lock)
        record("free")

    @task(executor="redis")
    def stay(name):
        stick(name)

    @task(executor="redis", timeout=1)
    def overstay(name):
        stick(name)

    @task(executor="redis")
    def deafen(name):
        signal.set_wakeup_fd(-1)
        gate(name)
"""


def stuck(shop, *options, task="stay"):
    """Return a worker whose main thread is in C code, until the gate "out" is open."""
    shop.write("stuck.py", STUCK)
    # Python 3.11 lets no other thread go on that is traced until the one that is stuck does.
    worker = shop.work("-m", "stuck", *options, env={"MEASURE_WITH": ""})
    shop.queues.submit("default", ["job-1", f'{{"task": "stuck.{task}", "args": ["out"]}}'])
    shop.wait_for_events("stuck")
    return worker


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_told_to_end_while_c_code_runs_it_gives_that_back_after_its_grace(shop, processes):
    worker = stuck(shop, "--grace", "200ms", *processes)
    worker.tell()

    assert worker.wait() == 0
    assert shop.names() == ["stuck"]
    assert shop.queues.sizes("default").waiting == 1


def test_told_to_end_while_c_code_runs_it_waits_for_that_within_its_grace(shop):
    worker = stuck(shop)
    worker.tell()
    told = time.monotonic()
    # Long enough for a second signal, which the handler of the first one is not.
    shop.wait_for(lambda: time.monotonic() > told + 2)
    shop.open_gate("out")

    assert worker.wait() == 0
    assert shop.names() == ["stuck", "free"]
    shop.wait_until_empty()


def insist(worker):
    """Tell it to end again and again: it may hear of the first time late."""
    while worker.process.poll() is None:
        worker.tell()
        time.sleep(1)


def test_told_a_second_time_while_c_code_runs_it_ends_at_once(shop):
    worker = stuck(shop)
    insist(worker)

    assert worker.wait() == 1
    assert shop.names() == ["stuck"]


@pytest.mark.slow
def test_told_to_end_while_what_cannot_be_ended_runs_it_is_not_begun_anew(shop):
    worker = stuck(shop, task="overstay")
    worker.tell()

    assert worker.wait() == 0
    assert starts(worker) == 1
    assert [letter["id"] for letter in shop.ask("dead", "ls")["dead"]] == ["job-1"]


def test_where_a_job_has_python_tell_nobody_of_signals_it_hears_them_all_the_same(shop):
    shop.write("stuck.py", STUCK)
    worker = shop.work("-m", "stuck")
    shop.queues.submit("default", ["job-1", '{"task": "stuck.deafen", "args": ["open"]}'])
    shop.open_gate("open")
    shop.wait_until_empty()
    shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")
    insist(worker)

    assert worker.wait() == 1


@pytest.mark.slow
@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_while_redis_does_not_answer_it_ends_soon_after_its_grace(tmp_path, own_redis, processes):
    shop = Shop(tmp_path, own_redis.url)
    worker = shop.work("-c", "2", "--grace", "500ms", *processes)
    shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")
    own_redis.freeze()
    worker.tell()
    told = time.monotonic()
    worker.wait()
    shop.end()

    # Its grace, and five seconds to say what it gives back; not the fifteen of an answer.
    assert time.monotonic() < told + 13


# ---- how it goes on: recycled, changed, killed


def starts(worker):
    """Return how often a program has begun, under the same number."""
    return worker.log.count(" worker\n  redis ")


def test_alone_it_becomes_a_new_process_after_so_many_jobs_and_loses_none(shop):
    shop.submit_all("note", [["one"]] * 50)
    worker = shop.work("--max-jobs", "10", "-c", "4")
    shop.wait_for_events("one", 50)

    assert {event["pid"] for event in shop.events()} == {worker.pid}
    assert len(shop.events("one")) == 50
    shop.wait_for(lambda: 3 <= starts(worker) <= 6)
    worker.tell()
    shop.wait_for(lambda: worker.process.poll() is not None)
    assert sum(shop.queues.sizes("default")) == 0


def test_of_several_each_is_replaced_after_so_many_jobs(shop):
    shop.submit_all("note", [["one"]] * 60)
    worker = shop.work("--max-jobs", "10", "--processes", "2")
    shop.wait_for_events("one", 60)
    pids = Counter(event["pid"] for event in shop.events())
    worker.tell()

    assert worker.wait() == 0
    assert len(pids) >= 5
    assert worker.pid not in pids
    assert starts(worker) == 1


def test_one_that_is_to_be_replaced_waits_for_what_runs_and_can_be_told_to_end(shop):
    worker = shop.work("--max-jobs", "1", "-c", "2", "--grace", "300ms")
    shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")
    shop.submit("note", "second")
    shop.wait_for(lambda: "another one takes its place" in worker.log)
    began = time.monotonic()
    # Longer than its grace, which is for an end.
    shop.wait_for(lambda: time.monotonic() > began + 1)
    # And that the other one has ended, it may say late.
    shop.wait_for(lambda: shop.queues.sizes("default").running == 1)
    worker.tell()

    assert worker.wait() == 0
    assert shop.queues.sizes("default").waiting == 1
    assert starts(worker) == 1


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_one_that_has_grown_too_large_is_replaced(shop, processes):
    worker = shop.work("--max-memory", "120", *processes)
    shop.submit("grow", 10)
    (small,) = shop.wait_for_events("grown")
    shop.submit("grow", 150)
    large = shop.wait_for_events("grown", 2)[1]
    shop.wait_for(lambda: "another one takes its place" in worker.log)
    shop.submit("note", "after")
    (after,) = shop.wait_for_events("after")

    assert worker.log.count(" MB: another one") == 1
    if processes:
        assert after["pid"] != large["pid"]
    else:
        assert (small["pid"], after["pid"]) == (worker.pid, worker.pid)
        assert starts(worker) == 2


def test_where_any_process_is_too_large_each_runs_a_job_before_it_is_replaced(shop):
    worker = shop.work("--max-memory", "1")
    shop.wait_until_ready()
    began = time.monotonic()
    # So long that it would be replaced again and again.
    shop.wait_for(lambda: time.monotonic() > began + 1)
    so_far = starts(worker)
    shop.submit("note", "one")
    shop.wait_for(lambda: starts(worker) == 2)

    assert so_far == 1
    assert len(shop.events("one")) == 1


def test_begun_anew_it_is_in_the_folder_where_it_began(shop):
    shop.write(
        "mover.py",
        """
        import os
        from uwsgi_tasks import task
        @task
        def move(): os.chdir("/")
    """,
    )
    shop.queues.submit("default", ["m-1", '{"task": "mover.move"}'])
    worker = shop.work("-m", "mover", "--max-jobs", "1")
    shop.wait_for(lambda: starts(worker) == 2)
    shop.submit("note", "home")

    assert shop.wait_for_events("home")[0]["home"] == str(shop.folder)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_a_job_that_cannot_be_ended_costs_its_process_and_no_other_job(shop, processes):
    shop.write(
        "stuck.py",
        """
        import ctypes
        from stage import record
        from uwsgi_tasks import task
        @task(executor="redis", timeout=0.2)
        def stick():
            record("stuck")
            ctypes.CDLL(None).sleep(600)
    """,
    )
    # Python 3.11 lets no other thread go on that is traced until the one that is stuck does.
    worker = shop.work("-m", "stuck", "-c", "2", *processes, env={"MEASURE_WITH": ""})
    shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")
    shop.queues.submit("default", ["stuck-1", '{"task": "stuck.stick"}'])
    shop.wait_for_events("stuck")
    shop.wait_for(lambda: "they are given back, and run again" in worker.log)
    shop.open_gate("gate")
    shop.wait_until_empty()

    assert [letter["id"] for letter in shop.ask("dead", "ls")["dead"]] == ["stuck-1"]
    assert len(shop.events("stuck")) == 1
    assert worker.process.poll() is None


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_with_reload_it_runs_what_was_changed(shop, processes):
    shop.write("fresh.py", "from stage import record\n")
    source = """
        from stage import record
        from uwsgi_tasks import task
        @task
        def change(): record("{}")
    """
    shop.write("fresh.py", source.format("before"))
    worker = shop.work("-m", "fresh", "--reload", *processes)
    shop.queues.submit("default", ["c-1", '{"task": "fresh.change"}'])
    shop.wait_for_events("before")
    shop.write("fresh.py", "this is no Python\n")
    shop.wait_for(lambda: "it starts anew when a file changes" in worker.log)
    shop.write("fresh.py", source.format("after"))
    shop.queues.submit("default", ["c-2", '{"task": "fresh.change"}'])
    (event,) = shop.wait_for_events("after")
    worker.tell()

    assert worker.wait() == 0
    assert event["pid"] != worker.pid
    assert "importing fresh failed: SyntaxError" in worker.log


def test_a_child_that_is_killed_is_replaced_and_its_job_runs_again(shop):
    worker = shop.work("-p", "2")
    job = shop.submit("hold", "gate", lease=1)
    (event,) = shop.wait_for_events("gate begins")
    os.kill(event["pid"], signal.SIGKILL)
    shop.wait_for_events("gate begins", 2)
    shop.open_gate("gate")

    assert [one["id"] for one in shop.wait_for_events("gate ends")] == [job]
    shop.wait_for(lambda: len(worker.children) == 2)
    assert f"worker process {event['pid']} has ended (by signal 9)" in worker.log


def test_when_the_parent_is_killed_its_children_finish_what_they_run_and_end(shop):
    worker = shop.work("-p", "2")
    shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")
    shop.wait_for(lambda: len(worker.children) == 2)
    children = worker.children
    worker.tell(signal.SIGKILL)
    worker.wait()
    shop.open_gate("gate")

    shop.wait_for(lambda: not any(map(stat, children)))
    assert len(shop.events("gate ends")) == 1
    shop.wait_until_empty()


def test_sigusr2_shows_what_all_threads_do(shop):
    worker = shop.work("-c", "2", "-p", "2")
    shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")

    shown = re.compile(r'stage\.py", line \d+ in gate$', re.MULTILINE)

    def is_shown():
        worker.tell(signal.SIGUSR2)
        # One that is slow may write among the words of the next: then again.
        with suppress(AssertionError):
            shop.wait_for(lambda: shown.search(worker.log), 2)
        return shown.search(worker.log)

    shop.wait_for(is_shown)
    assert worker.process.poll() is None


@pytest.mark.slow
def test_workers_that_come_and_go_lose_no_job_and_run_none_twice(shop):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kinds = [
        ["-c", "4", "--max-jobs", "50"],
        ["-c", "2", "-p", "2", "--max-jobs", "100"],
        ["--max-jobs", "20"],
    ]
    working, left, codes = [shop.work(*words) for words in kinds], 1500, set()
    while left or sum(shop.queues.sizes("default")):
        number = min(left, rng.randrange(80))
        if number:
            shop.submit_all("nap", [["one", rng.choice([0, 0.001, 0.02])]] * number)
        left -= number
        if rng.random() < 0.2:
            index = rng.randrange(len(kinds))
            # Until it is there, it is like any other program.
            shop.wait_for(lambda leaver=working[index]: starts(leaver))
            working[index].tell(rng.choice([signal.SIGTERM, signal.SIGINT]))
            codes.add(working[index].wait())
            working[index] = shop.work(*kinds[index])

    assert shop.names().count("one is over") == 1500
    assert shop.names().count("one") == 1500
    assert codes <= {0}


# ---- what it costs, and how it is


def health(port):
    """Return the code and the words of the answer to a probe; no code if there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return None, {}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_a_probe_learns_whether_it_is_well(tmp_path, own_redis, processes):
    shop = Shop(tmp_path, own_redis.url)
    port = free_port()
    worker = shop.work("--health", str(port), *processes)
    found = shop.wait_for(lambda: (one := health(port))[0] == 200 and one[1])
    own_redis.stop()
    shop.wait_for(lambda: health(port)[0] == 503)
    own_redis.start()
    shop.wait_for(lambda: health(port)[0] == 200)
    worker.tell()

    assert worker.wait() == 0
    assert found == {"healthy": True, "processes": len(processes) or 1, "pid": worker.pid}
    assert health(port)[0] is None


def test_where_all_threads_are_at_work_it_is_well_again_when_redis_is_back(tmp_path, own_redis):
    shop = Shop(tmp_path, own_redis.url)
    port = free_port()
    shop.work("--health", str(port))
    shop.submit("hold", "gate", lease=1)
    shop.wait_for_events("gate begins")
    own_redis.stop()
    shop.wait_for(lambda: health(port)[0] == 503)
    own_redis.start()

    shop.wait_for(lambda: health(port)[0] == 200)
    assert not shop.events("gate ends")
    shop.end()


def test_children_that_outlive_their_parent_leave_the_address_of_its_probes(shop):
    port = str(free_port())
    worker = shop.work("-p", "2", "--health", port)
    shop.submit("hold", "gate")
    shop.wait_for_events("gate begins")
    worker.tell(signal.SIGKILL)
    worker.wait()
    shop.work("-p", "2", "--health", port)

    shop.wait_for(lambda: health(port)[0] == 200)
    shop.open_gate("gate")
    shop.wait_for_events("gate ends")


def ticks(pid):
    """Return the hundredths of a second that a process has computed."""
    found = stat(pid)
    return int(found[11]) + int(found[12])


@pytest.mark.parametrize("processes", [ALONE, SEVERAL])
def test_at_rest_it_costs_nothing_to_speak_of(shop, processes):
    worker = shop.work("-q", "high,default", "-c", "8", *processes)
    shop.submit("note", "warm")
    shop.wait_for_events("warm")
    shop.wait_until_empty()
    pids = [worker.pid, *worker.children]
    before, began = sum(map(ticks, pids)), time.monotonic()
    # A measurement: it takes this long.
    shop.wait_for(lambda: time.monotonic() > began + 4)

    assert sum(map(ticks, pids)) - before <= 4 * len(pids)
