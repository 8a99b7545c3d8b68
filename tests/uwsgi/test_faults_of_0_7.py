"""The fifteen faults that uwsgi_tasks 0.7.3 had on a real uWSGI; each test fails on it."""

import os
import signal
import time

import pytest

from tests.uwsgi.serving import CallError, write_spool_file

IMPORTS = """
    from datetime import UTC, datetime, timedelta, timezone
    from functools import wraps
    from uwsgi_tasks import (
        SPOOL_RETRY, RetryTaskException, TaskExecutor, cron, cron_lazy, get_current_task, task,
        timer, timer_lazy,
    )
"""
NOTE = (
    IMPORTS
    + """
    @task(executor=TaskExecutor.SPOOLER)
    def note(name):
        record(name)
"""
)


def test_fault_01_a_task_whose_module_the_spooler_has_not_imported_is_run_and_not_spooled_again(
    serve,
):
    server = serve(
        NOTE,
        files={
            "late.py": """
            from datetime import timedelta
            from stage import record
            from uwsgi_tasks import TaskExecutor, task

            @task(executor=TaskExecutor.SPOOLER, at=timedelta(seconds=5))
            def late():
                record("late")
            """
        },
        options=["--spooler-frequency", "1"],
    )
    start = time.time()
    server.call("import late; late.late()")

    (event,) = server.wait_for_events("late")
    assert event["time"] - start < 9.9


@pytest.mark.parametrize("kind", ["exception", "pickle", "function"])
def test_fault_02_what_fails_is_kept_and_not_deleted(serve, kind):
    server = serve(
        IMPORTS
        + """
    @task(executor=TaskExecutor.SPOOLER, retry_count=3)
    def fails():
        raise LookupError("no such order")

    def explode():
        raise RuntimeError("no pickle")

    class Bad:
        def __reduce__(self):
            return explode, ()

    @task(executor=TaskExecutor.SPOOLER)
    def takes(value):
        record("takes")
    """
    )
    if kind == "function":
        pickled = (b"\x80\x04).", b"\x80\x04}.")
        keys = dict(zip((b"args", b"kwargs", b"setup"), (*pickled, pickled[1]), strict=True))
        write_spool_file(server.spool, {b"function_name": b"app.nowhere", **keys})
        server.call("takes(1)")
    else:
        server.call({"exception": "fails()", "pickle": "takes(Bad())"}[kind])

    server.wait_for(server.dead, 10)


def test_fault_03_a_call_that_a_full_mule_does_not_take_is_not_lost_in_silence(serve):
    server = serve(
        IMPORTS
        + """
    @task(executor=TaskExecutor.MULE)
    def note():
        record("note")

    def flood():
        taken = 0
        for _ in range(1000):
            try:
                note()
            except Exception:
                continue
            taken += 1
        return taken
    """,
        spoolers=0,
        mules=1,
    )
    server.call("note()")
    server.wait_for_events("note")
    os.kill(server.mule_pids()[0], signal.SIGSTOP)
    taken = server.call("flood()")
    os.kill(server.mule_pids()[0], signal.SIGCONT)

    server.wait_for_events("note", 1 + taken, 10)


def test_fault_04_without_a_master_the_package_can_be_imported(serve):
    server = serve("import uwsgi_tasks", master=False, spoolers=0)

    assert server.call("uwsgi_tasks.SPOOL_OK") == -2


def test_fault_05_a_spool_file_of_others_is_not_run_for_ever(serve):
    server = serve(NOTE, options=["--spooler-frequency", "1"])
    path = write_spool_file(server.spool, {b"name": b"stranger"})
    server.call("note('ours')")

    server.wait_for_events("ours")
    server.wait_for(lambda: not path.exists(), 10)


def test_fault_06_a_buffer_of_any_size_arrives_at_the_next_attempt(serve):
    server = serve(
        IMPORTS
        + """
    @task(executor=TaskExecutor.SPOOLER, retry_count=2, retry_timeout=1)
    def fills():
        buffer = get_current_task().buffer
        record("fills", found=len(buffer.get("filling", "")))
        buffer["filling"] = "x" * 100000
        return SPOOL_RETRY
    """,
        options=["--spooler-frequency", "1"],
    )
    server.call("fills()")

    assert [event["found"] for event in server.wait_for_events("fills", 2, 10)] == [0, 100000]


def test_fault_07_a_priority_may_be_a_number(serve):
    server = serve(
        IMPORTS
        + """
    @task(executor=TaskExecutor.SPOOLER, priority=10)
    def note():
        record("note")
    """,
        options=["--spooler-ordered"],
    )
    server.call("note()")

    server.wait_for_events("note", 1, 10)


def test_fault_08_a_timer_or_cron_leaves_the_name_that_it_decorates(serve):
    server = serve(
        IMPORTS
        + """
    @timer(seconds=100)
    def ticks(number):
        pass

    @cron(minute=-2)
    def clock(number):
        pass
    """
    )

    assert server.call("ticks is not None and clock is not None")


def test_fault_09_a_lazy_timer_called_several_times_is_one_timer(serve):
    server = serve(
        IMPORTS
        + """
    @timer(seconds=1, target="worker")
    def reference(number):
        record("reference")

    @timer_lazy(seconds=1, target="worker")
    def lazy(number):
        record("lazy")
    """
    )
    server.call("lazy(), lazy(), lazy()")
    server.wait_for_events("lazy")
    before = len(server.events("lazy")), len(server.events("reference"))
    server.wait_for_events("reference", before[1] + 3)

    # Some of both may still be on their way.
    assert len(server.events("lazy")) - before[0] <= 5


def test_fault_10_a_lazy_cron_called_in_a_worker_fires_in_the_mule(serve):
    server = serve(
        IMPORTS
        + """
    @cron_lazy(target="mule")
    def clock(number):
        record("clock")
    """,
        workers=2,
        mules=1,
    )
    server.call("clock()")

    # uWSGI looks once a second whether this minute is meant, and every one is.
    assert server.wait_for_events("clock", 1, 65)[0]["where"] == "mule1"


def test_fault_11_a_time_with_a_zone_is_that_time(serve):
    server = serve(NOTE, options=["--spooler-frequency", "1"])
    start = time.time()
    server.call(
        """
        for hours in (-3, 0, 3):
            at = datetime.now(timezone(timedelta(hours=hours))) + timedelta(seconds=2)
            task(executor=TaskExecutor.SPOOLER, at=at)(getattr(note, 'func', None)
                or note.function)(f'zone {hours}')
        task(executor=TaskExecutor.SPOOLER, at=timedelta(0))(getattr(note, 'func', None)
            or note.function)('now')
        """
    )

    for hours in (-3, 0, 3):
        (event,) = server.wait_for_events(f"zone {hours}", 1, 10)
        # 0.7 left the fraction of the second away, and so may have been early by one.
        assert event["time"] - start > 1.99
    server.wait_for_events("now")


def test_fault_12_a_retry_timeout_of_a_day_is_a_day(serve):
    server = serve(
        NOTE
        + """
    @task(executor=TaskExecutor.SPOOLER, retry_count=2, retry_timeout=timedelta(days=1, seconds=1))
    def tomorrow():
        record("tomorrow", timeout=get_current_task().retry_timeout)
        return SPOOL_RETRY
    """,
        options=["--spooler-frequency", "1"],
    )
    server.call("tomorrow()")

    assert server.wait_for_events("tomorrow")[0]["timeout"] == 24 * 3600 + 1


def test_fault_13_a_spooler_task_without_a_spooler_does_not_run_in_the_request(serve):
    server = serve(IMPORTS + "\n    def plain():\n        record('ran')\n", spoolers=0)
    with pytest.raises(CallError, match="spooler = "):
        server.call("task(executor=TaskExecutor.SPOOLER)(plain)()")

    assert not server.events("ran")


def test_fault_13_auto_prefers_the_spooler_as_its_documentation_says(serve):
    server = serve(
        IMPORTS
        + """
    @task
    def note():
        record("note")
    """,
        mules=1,
    )
    server.call("note()")

    assert server.wait_for_events("note")[0]["where"] == "spooler"


def test_fault_14_the_current_task_is_known_inside_a_decorator(serve):
    server = serve(
        IMPORTS
        + """
    def wrapper(func):
        @wraps(func)
        def inner():
            current = get_current_task()
            record("inner", known=current is not None and current.buffer == {})
            return func()
        return inner

    @task(executor=TaskExecutor.SPOOLER)
    @wrapper
    def note():
        record("note")
    """
    )
    server.call("note()")

    assert server.wait_for_events("inner")[0]["known"]


def test_fault_14_a_runtime_task_gives_back_its_value(serve):
    server = serve(
        IMPORTS
        + """
    @task(executor=TaskExecutor.RUNTIME)
    def double(number):
        return 2 * number
    """
    )

    assert server.call("double(21).result()") == 42


def test_fault_14_with_lazy_apps_a_mule_task_is_run_or_refused_but_not_lost(serve):
    server = serve(
        "import jobs",
        lazy=True,
        mules=1,
        files={
            "jobs.py": """
            from stage import record
            from uwsgi_tasks import TaskExecutor, task

            @task(executor=TaskExecutor.MULE)
            def note():
                record("note")
            """
        },
        options=["--spooler-import", "jobs"],
    )
    refusal = ""
    try:
        server.call("jobs.note()")
    except CallError as error:
        refusal = str(error)

    # A mule there has loaded nothing; the refusal says what would make it.
    assert "shared-import" in refusal or server.wait_for_events("note", 1, 10)


def test_fault_15_a_retry_is_not_forgotten_until_the_spooler_looks_again(serve):
    server = serve(
        IMPORTS
        + """
    @task(executor=TaskExecutor.SPOOLER, retry_count=3, retry_timeout=1)
    def note():
        record("note")
        return SPOOL_RETRY
    """,
        options=["--spooler-frequency", "30"],
    )
    server.call("note()")

    server.wait_for_events("note", 3, 25)
