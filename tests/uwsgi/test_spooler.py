"""Jobs that go through the spooler: they arrive whole, in time, and once."""

import time
from collections import Counter

import pytest

SOURCE = """
    import asyncio, os, threading, time, zlib
    from datetime import UTC, datetime, timedelta, timezone
    from functools import wraps
    from uwsgi_tasks import TaskExecutor, get_current_task, task
    import uwsgi

    spooler = task(executor=TaskExecutor.SPOOLER)

    @task
    def bare(*args, **kwargs):
        record("bare", args=args, kwargs=kwargs)

    @spooler
    def weigh(name, payload):
        record(name, size=len(payload), sum=zlib.crc32(payload))

    @spooler
    def note(name):
        record(name, cwd=os.getcwd())

    @spooler
    async def wait_a_little():
        before = get_current_task().id
        await asyncio.gather(asyncio.sleep(0.01), asyncio.sleep(0.01))
        record("coroutine", found=get_current_task().id == before)

    def helper():
        return deeper()

    def deeper():
        return get_current_task()

    @spooler
    def look_around():
        found = []
        thread = threading.Thread(target=lambda: found.append(deeper()))
        thread.start()
        thread.join()
        current = get_current_task()
        record("around", helper=helper() is current, thread=found[0] is current,
               executor=current.executor, attempt=current.attempt, name=current.name,
               args=current.args)

    def wrapper(func):
        @wraps(func)
        def inner(*args):
            record("before")
            return func(*args)
        return inner

    @spooler
    @wrapper
    def wrapped():
        record("inside")

    @spooler
    def count(number):
        record("count", number=number)

    @spooler
    def submits_another(depth):
        record("chain", depth=depth)
        if depth:
            submits_another(depth - 1)

    @spooler
    def crashes_if_called_with(error):
        raise error

    def in_a_thread(function, *args):
        thread = threading.Thread(target=function, args=args)
        thread.start()
        thread.join()
"""


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE, spoolers=4, workers=2, files={"late.py": LATE})


LATE = """
    from stage import record
    from uwsgi_tasks import task

    @task(executor="spooler")
    def never_imported_by_the_master():
        record("late")
"""


def test_a_bare_task_runs_in_the_spooler_with_its_arguments(server):
    server.call("bare(1, 'two', priority='high', at=None)")

    (event,) = server.wait_for_events("bare")
    assert event["where"] == "spooler"
    assert event["args"] == [1, "two"]
    assert event["kwargs"] == {"priority": "high", "at": None}


def test_a_call_says_that_it_is_queued_and_that_nobody_keeps_its_result(server):
    later = "note.using(at=timedelta(hours=1))('never')"
    assert server.call(f"(lambda job: (str(job.state), job.cancel()))({later})") == ("queued", True)
    assert server.call("isinstance(bare().id, str)")
    with pytest.raises(AssertionError, match="ResultNotKept"):
        server.call("bare().result()")


@pytest.mark.parametrize("size", [0, 70_000, 300_000, 5_000_000])
def test_a_payload_of_any_size_arrives_whole(server, size):
    sum_ = server.call(
        f"(payload := os.urandom({size}), weigh('weighed-{size}', payload), zlib.crc32(payload))[2]"
    )

    (event,) = server.wait_for_events(f"weighed-{size}")
    assert (event["size"], event["sum"]) == (size, sum_)


def test_a_coroutine_function_runs_and_knows_its_task(server):
    server.call("wait_a_little()")

    assert server.wait_for_events("coroutine")[0]["found"]


def test_the_current_task_is_found_from_helpers_and_threads(server):
    server.call("look_around()")

    (event,) = server.wait_for_events("around")
    assert event["helper"]
    assert event["thread"]
    assert (event["executor"], event["attempt"]) == ("spooler", 1)
    assert (event["name"], event["args"]) == ("app.look_around", [])


def test_there_is_no_current_task_outside_of_one(server):
    assert server.call("get_current_task() is None")


def test_a_function_that_further_decorators_wrap_runs_with_them(server):
    server.call("wrapped()")

    server.wait_for_events("inside")
    assert len(server.events("before")) == 1


def test_a_task_runs_where_its_caller_was(server, tmp_path):
    server.call(f"(os.chdir({str(tmp_path)!r}), note('there'), os.chdir({str(server.folder)!r}))")
    server.call("note('here')")

    assert server.wait_for_events("there")[0]["cwd"] == str(tmp_path)
    assert server.wait_for_events("here")[0]["cwd"] == str(server.folder)


def test_working_dir_is_obeyed_and_none_leaves_it_alone(server, tmp_path):
    server.call(f"note.using(working_dir={str(tmp_path)!r})('chosen')")
    server.call("note.using(working_dir=None)('alone')")

    assert server.wait_for_events("chosen")[0]["cwd"] == str(tmp_path)
    assert server.wait_for_events("alone")[0]["cwd"] == str(server.spool)


def test_a_directory_that_is_gone_does_not_keep_a_task_from_running(server):
    server.call("note.using(working_dir='/nowhere/at/all')('gone')")

    assert server.wait_for_events("gone")


TIMES = {
    "timestamp": "time.time() + 1.5",
    "timedelta": "timedelta(seconds=1.5)",
    "datetime": "datetime.now(UTC) + timedelta(seconds=1.5)",
    "zone": "datetime.now(timezone(timedelta(hours=3))) + timedelta(seconds=1.5)",
}


def test_a_task_with_a_time_runs_then_and_not_before(server):
    called_at = {}
    for name, at in TIMES.items():
        called_at[name] = time.time()
        server.call(f"note.using(at={at})('at-{name}')")

    for name, start in called_at.items():
        (event,) = server.wait_for_events(f"at-{name}")
        # A datetime is cut to microseconds.
        assert 1.499 < event["time"] - start < 1.5 + 5, name


def test_a_time_that_has_passed_is_now(server):
    server.call("note.using(at=time.time() - 3600)('passed')")

    assert server.wait_for_events("passed")


def test_four_spoolers_run_thousands_of_jobs_from_two_workers_once_each(server):
    for start in range(0, 4000, 500):
        server.call(f"for number in range({start}, {start + 500}): count(number)")

    server.wait_for_events("count", 4000)
    ran = Counter(each["number"] for each in server.events("count") if each["number"] < 4000)
    assert ran == dict.fromkeys(range(4000), 1)
    assert len({event["pid"] for event in server.events("count")}) > 1
    server.wait_for(lambda: not server.waiting())


def test_a_job_may_submit_the_next_one(server):
    server.call("submits_another(5)")

    server.wait_for_events("chain", 6)
    assert [event["depth"] for event in server.events("chain")] == [5, 4, 3, 2, 1, 0]


def test_a_thread_of_a_worker_may_submit(server):
    server.call("in_a_thread(note, 'thread')")

    assert server.wait_for_events("thread")


def test_a_module_that_only_a_worker_has_imported_is_found(server):
    server.call("import late; late.never_imported_by_the_master()")

    assert server.wait_for_events("late")[0]["where"] == "spooler"


def test_map_submits_a_call_for_each_element(server):
    ids = server.call("[handle.id for handle in count.map(range(9000, 9100))]")

    assert len(set(ids)) == 100
    server.wait_for(lambda: {9000, 9099} <= {each["number"] for each in server.events("count")})
    ran = [each["number"] for each in server.events("count") if each["number"] >= 9000]
    assert ran == list(range(9000, 9100))


def test_map_zips_several_iterables(server):
    server.call("weigh.map(['zip-1', 'zip-2'], [b'a', b'bc'])")

    assert server.wait_for_events("zip-1")[0]["size"] == 1
    assert server.wait_for_events("zip-2")[0]["size"] == 2


def test_map_of_nothing_submits_nothing(server):
    assert server.call("note.map([])") == []


def test_what_cannot_be_pickled_is_refused_at_the_call_and_named(server):
    with pytest.raises(AssertionError, match=r"argument 'lock'.*lock"):
        server.call("bare(lock=threading.Lock())")
    with pytest.raises(AssertionError, match=r"argument 2"):
        server.call("bare(1, threading.Lock())")


def test_an_exception_that_does_not_survive_pickling_harms_nobody(server):
    # Its class wants an argument more than it hands on: it can be dumped, and not loaded.
    server.call(
        """
        import sys

        class Odd(Exception):
            def __init__(self, first, second):
                super().__init__(first)

        Odd.__module__, Odd.__qualname__ = __name__, 'Odd'
        crashes_if_called_with(Odd(1, 2))
        """
    )

    server.wait_for(server.dead)
    server.wait_for(lambda: not server.waiting())


def test_a_spooler_no_longer_starves_at_nice_19(server):
    server.call("note('reniced')")
    (event,) = server.wait_for_events("reniced")

    assert server.call(f"os.getpriority(os.PRIO_PROCESS, {event['pid']})") < 19
