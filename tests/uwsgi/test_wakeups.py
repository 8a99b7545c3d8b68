"""A job starts as soon as a spooler is free, though uWSGI itself looks twice a minute only."""

import time

import pytest

from tests.uwsgi.serving import EVENTS, run_outside

# Ours would look each second, which is no proof that anybody was woken.
ASLEEP = {
    "options": ["--spooler-frequency", "30"],
    "env": {"UWSGI_TASKS_SPOOLER_FREQUENCY": "none"},
}
SOON = 10.0
# A signal between uWSGI's look at its flag and its sleep is lost: it wakes after 30 seconds then.
LATE = 45.0

SOURCE = """
    import time
    from datetime import timedelta
    from uwsgi_tasks import get_current_task, task

    @task(executor="spooler")
    def hold(name):
        record("held", name=name)
        gate(name)

    @task(executor="spooler")
    def note(name):
        record(name)

    @task(executor="spooler")
    def chain(depth):
        record("chain")
        if depth:
            chain(depth - 1)

    @task(executor="spooler")
    def again():
        record("again")
        current = get_current_task()
        current.buffer["runs"] = current.buffer.get("runs", 0) + 1
        if current.buffer["runs"] < 5:
            current()
"""
WITH_MULE = """
    @task(executor="mule")
    def from_mule(name):
        note(name)
"""


def hold_all(server, count):
    for number in range(count):
        server.call(f"hold('{number}')")
        server.wait_for_events("held", number + 1, LATE)


@pytest.mark.parametrize("spoolers", [1, 2])
def test_a_job_submitted_while_every_spooler_is_busy_starts_as_soon_as_one_is_free(serve, spoolers):
    server = serve(SOURCE, spoolers=spoolers, **ASLEEP)
    hold_all(server, spoolers)
    server.call("note('waited')")
    server.open_gate("0")

    server.wait_for_events("waited", 1, SOON)
    # Several of them, and one more burst while the first is at work.
    server.call("hold('again')")
    server.wait_for_events("held", spoolers + 1, SOON)
    server.call("for number in range(20): note('burst')")
    server.open_gate("again")
    server.wait_for_events("burst", 20, SOON)


@pytest.mark.parametrize("spoolers", [1, 2])
def test_a_job_that_submits_its_follow_up_need_not_wait_for_it(serve, spoolers):
    server = serve(SOURCE, spoolers=spoolers, **ASLEEP)
    server.call("chain(5)")
    server.wait_for_events("chain", 6, SOON)

    server.call("again()")
    server.wait_for_events("again", 5, SOON)


def test_a_job_from_a_mule_wakes_the_spooler(serve):
    server = serve(SOURCE + WITH_MULE, mules=1, **ASLEEP)
    late = []
    for number in range(20):
        start = time.monotonic()
        server.call(f"from_mule('{number}')")

        server.wait_for_events(str(number), 1, LATE)
        late += [number] if time.monotonic() > start + SOON else []
        assert len(late) <= 1


@pytest.mark.parametrize("busy", [0, 1, 2])
def test_a_job_from_outside_wakes_whoever_is_free(serve, busy):
    server = serve(SOURCE, spoolers=2, **ASLEEP)
    # Both have been woken before, and one of them found nothing to do.
    for number in range(5):
        server.call(f"note('before-{number}')")
        server.wait_for_events(f"before-{number}", 1, LATE)
    hold_all(server, busy)
    for number in range(5):
        done = run_outside(
            server.folder,
            f"import app; app.note('outside-{number}')",
            env={"UWSGI_TASKS_SPOOLER_DIR": str(server.spool)},
        )
        assert done.returncode == 0, done.stderr
        if busy == 2:
            server.open_gate("0")
        server.wait_for_events(f"outside-{number}", 1, SOON)


def test_one_process_outside_may_submit_one_job_after_another(serve):
    server = serve(SOURCE, spoolers=2, **ASLEEP)
    done = run_outside(
        server.folder,
        f"""
        import time, app
        from pathlib import Path
        events = Path({str(server.folder / EVENTS)!r})
        late = []
        for number in range(30):
            start = time.monotonic()
            app.note(f"outside-{{number}}")
            while f"outside-{{number}}" not in (events.read_text() if events.exists() else ""):
                assert time.monotonic() < start + {LATE}, number
                time.sleep(0.001)
            late += [number] if time.monotonic() > start + {SOON} else []
            assert len(late) <= 1, late
        """,
        env={"UWSGI_TASKS_SPOOLER_DIR": str(server.spool)},
    )

    assert done.returncode == 0, done.stderr


def test_by_default_a_delayed_job_is_in_time_whatever_the_frequency_of_the_server(serve):
    server = serve(SOURCE, options=["--spooler-frequency", "30"])
    server.call("note.using(at=timedelta(seconds=1))('delayed')")

    server.wait_for_events("delayed", 1, SOON)


def test_delayed_jobs_do_not_lie_where_each_pass_would_read_them(serve):
    server = serve(SOURCE)
    server.call("for number in range(3000): note.using(at=timedelta(days=1))('never')")
    server.call("for number in range(100): note('live')")

    server.wait_for_events("live", 100)
    server.wait_for(lambda: not server.waiting())
    assert len(server.delayed()) == 3000
    # Nor in one folder that each of them makes larger.
    assert len(list(server.spool.iterdir())) < 20
    assert not server.events("never")
