"""Timers and crons fire, where they should and as often as they should."""

import pytest

from tests.uwsgi.serving import CallError

TARGETS = {
    "": {"worker1", "worker2"},
    "worker": {"worker1", "worker2"},
    "worker2": {"worker2"},
    "workers": {"worker1", "worker2"},
    "active-workers": {"worker1", "worker2"},
    "mule": {"mule1", "mule2"},
    "mule2": {"mule2"},
    "mules": {"mule1", "mule2"},
    "spooler": {"spooler"},
    "farm_pair": {"mule1", "mule2"},
}
TO_ALL = {"workers", "active-workers", "mules"}

SOURCE = """
    import uwsgi
    from datetime import timedelta
    from uwsgi_tasks import cron, cron_lazy, get_current_task, task, timer, timer_lazy

    def declare(target):
        @timer(seconds=1, target=target)
        def ticks(number):
            record(f"timer {target}", number=number)

        @cron(target=target)
        def clock(number):
            record(f"cron {target}", number=number)

    for target in TARGETS:
        declare(target)

    @timer(seconds=1)
    def reference(number):
        record("reference", number=number)

    @timer(seconds=timedelta(seconds=1), iterations=2, target="mule1")
    def twice(number):
        record("twice")

    @timer_lazy(seconds=1, target="mule1")
    def lazy(number):
        record("lazy")

    @timer_lazy(target="mule1")
    def learns_later(number):
        record("later")

    @timer_lazy(target="mule1")
    def never_learns(number):
        record("never")

    @timer_lazy(seconds=1, iterations=2, target="mule1")
    def lazy_twice(number):
        record("lazy twice")

    @cron_lazy(target="mule2")
    def lazy_clock(number):
        record("lazy clock")

    @cron_lazy(minute=-2, target="worker")
    def never_called(number):
        record("never")

    @timer(seconds=1, target="mule1")
    def fails(number):
        record("fails")
        raise LookupError("each second")

    @timer(seconds=1, target="spooler")
    def submits(number):
        noted()

    @task(executor="spooler")
    def noted():
        record("noted")

    def plain(number):
        record("plain", number=number)
""".replace("in TARGETS", f"in {list(TARGETS)}")


@pytest.fixture(scope="module")
def server(serve_module):
    server = serve_module(SOURCE, mules=2, workers=2, options=["--farm", "pair:1,2"])
    for _ in range(6):
        # From whichever worker takes the request.
        server.call("lazy(), lazy_twice(), lazy_clock()")
    server.call("learns_later.add_setup(seconds=1, iterations=2), learns_later()")
    return server


def let_pass(server, seconds):
    """Wait until the timer that is known to work has fired so many times since the start."""
    server.wait_for_events("reference", seconds)


def let_more_pass(server, seconds=3):
    """Wait until that timer has fired so many times from now on."""
    let_pass(server, len(server.events("reference")) + seconds)


@pytest.mark.parametrize("target", TARGETS)
def test_a_timer_fires_at_its_target(server, target):
    events = server.wait_for_events(f"timer {target}", 3)

    assert {event["where"] for event in events} <= TARGETS[target]
    if target in TO_ALL:
        server.wait_for(
            lambda: {e["where"] for e in server.events(f"timer {target}")} == TARGETS[target]
        )
    assert len({event["number"] for event in events}) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_a_cron_fires_at_its_target(server, target):
    events = server.wait_for_events(f"cron {target}")

    assert {event["where"] for event in events} <= TARGETS[target]


def test_without_a_target_a_timer_fires_in_a_mule_if_there_is_one(server):
    events = server.wait_for_events("reference", 10)

    assert {event["where"] for event in events} <= {"mule1", "mule2"}
    # A mule that was held up has several at once, but no more than there were seconds.
    assert len(events) <= events[-1]["time"] - events[0]["time"] + 4


def test_a_timer_with_iterations_fires_so_many_times(server):
    server.wait_for_events("twice", 2)
    let_more_pass(server)

    assert len(server.events("twice")) == 2


def test_a_lazy_timer_called_again_and_again_is_one_timer(server):
    before = len(server.wait_for_events("lazy"))
    let_more_pass(server)

    # Six timers would have fired 18 times; some may still be on their way.
    assert len(server.events("lazy")) - before <= 8
    server.wait_for_events("lazy", before + 3)


def test_a_lazy_timer_may_learn_its_setup_before_it_is_called(server):
    server.wait_for_events("later", 2)
    let_more_pass(server)

    assert len(server.events("later")) == 2


def test_a_lazy_timer_that_has_not_learnt_its_setup_is_refused(server):
    with pytest.raises(CallError, match="seconds="):
        server.call("never_learns()")


def test_a_lazy_timer_with_iterations_may_be_started_again_when_it_has_ended(server):
    server.wait_for_events("lazy twice", 2)
    let_more_pass(server)
    assert len(server.events("lazy twice")) == 2
    # Both before the first of them can have ended.
    assert server.call("[lazy_twice(), lazy_twice()]") == [True, False]

    server.wait_for_events("lazy twice", 4)


def test_a_lazy_cron_called_in_a_worker_fires_at_its_target(server):
    events = server.wait_for_events("lazy clock")

    assert {event["where"] for event in events} == {"mule2"}


def test_what_is_lazy_and_not_called_does_not_fire(server):
    let_pass(server, 6)

    assert not server.events("never")


def test_a_timer_that_fails_is_logged_and_fires_again(server):
    server.wait_for_events("fails", 3)

    assert server.log.count("LookupError: each second") >= 2


def test_a_timer_may_submit_tasks(server):
    assert server.wait_for_events("noted", 2)[0]["where"] == "spooler"


def test_the_decorated_name_stays_the_task_and_its_function(server):
    assert "reference" in server.call("reference.name")
    server.call("reference.func(123)")

    assert any(event["number"] == 123 for event in server.events("reference"))


@pytest.mark.parametrize(
    ("declaration", "remedy"),
    [
        ("timer(seconds=1)(plain)", "shared-import"),
        ("timer(seconds=0)(plain)", "whole seconds"),
        ("timer(seconds=1.5)(plain)", "whole seconds"),
        ("timer(seconds=1, iterations=0)(plain)", "iterations"),
        ("timer(seconds=1, target='moon')(plain)", "moon"),
        ("timer(seconds=1, target='worker9')(plain)", "2 workers"),
        ("timer(seconds=1, signal=256)(plain)", "256|shared-import"),
        ("cron(minute=60)(plain)", "minute"),
        ("cron(minute='*')(plain)", "minute"),
        ("cron(second=1)(plain)", "second"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_with_the_remedy(server, declaration, remedy):
    with pytest.raises(CallError, match=remedy):
        server.call(declaration)


def test_one_timer_too_many_is_a_clear_error(serve):
    server = serve(
        """
        from uwsgi_tasks import InvalidTask, timer

        failed = []
        for number in range(80):
            try:
                timer(seconds=100)(lambda signal: None)
            except InvalidTask as error:
                failed.append(str(error))
        """
    )

    assert server.call("len(failed)") == 16
    assert "64 timers" in server.call("failed[0]")


def test_a_timer_that_a_reload_declares_again_fires_once_a_second(serve):
    server = serve(
        """
        from uwsgi_tasks import timer

        @timer(seconds=1)
        def ticks(number):
            record("ticks")
        """
    )
    server.wait_for_events("ticks")
    server.reload()
    known = len(server.events("ticks"))
    events = server.wait_for_events("ticks", known + 8)

    # Twice a second they would take half of that.
    assert events[known + 7]["time"] - events[known]["time"] > 4
