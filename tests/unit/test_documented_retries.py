"""Each example of docs/retry.md does what the page says of it."""

import email.message
import io
import sys
import time
from types import SimpleNamespace
from urllib.error import HTTPError

import pytest

from tests.test_docs import ROOT, module_of
from uwsgi_tasks import PredicateFailed, Retry, State, get_current_task
from uwsgi_tasks.testing import queue_tasks

START = 1_700_000_000.0
"""A whole number, so that sums of seconds are exact."""
DOUBLING = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]


@pytest.fixture(scope="module")
def page():
    """The names of the page."""
    names = {"__name__": "page_retry"}
    exec(compile(module_of(ROOT / "docs" / "retry.md"), "retry.md", "exec"), names)
    return SimpleNamespace(names=names, **names)


@pytest.fixture
def queue(monkeypatch):
    """What was submitted; time stands still but for this queue."""
    monkeypatch.setattr(time, "time", lambda: START)
    monkeypatch.setattr(sys.modules["uwsgi_tasks.task"], "time", lambda: START)
    with queue_tasks() as queued:
        yield queued


class Carrier:
    """The server that the examples ask: what it answers, and when it was asked."""

    def __init__(self, queue, *answers):
        self.queue, self.asked, self.answers = queue, [], answers
        """What it returns, or raises, in turn; the last of them from then on."""

    def __call__(self, _parcel):
        self.asked.append(self.queue.now.timestamp() - START)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def ask(page, queue, monkeypatch):
    carrier = Carrier(queue, ConnectionError("no answer"))
    monkeypatch.setitem(page.names, "ask", carrier)
    return carrier


def states(queue):
    return [attempt.state for attempt in queue.attempts]


def ended(queue):
    """How the job ended, after all its attempts."""
    queue.run_all(check=False)
    queue.assert_nothing_waits()
    assert all(state is State.RETRYING for state in states(queue)[:-1])
    return states(queue)[-1]


@pytest.mark.parametrize(
    ("name", "offsets"),
    [
        ("track", [0, 0, 0]),
        ("track_ten_times", [0] * 10),
        ("track_slowly", list(range(10))),
        ("track_patiently", DOUBLING),
        ("track_for_a_minute", list(range(61))),
        ("track_later", list(range(60, 91))),
        ("look_five_times", [0, 10, 20, 30, 40]),
        ("poll", [0]),
    ],
)
def test_a_task_that_goes_on_failing_runs_at(page, queue, ask, name, offsets):
    getattr(page, name)("parcel")
    assert (ended(queue), ask.asked) == (State.FAILED, offsets)


@pytest.mark.parametrize(
    "name", ["track", "track_ten_times", "track_slowly", "track_patiently", "track_for_a_minute"]
)
def test_a_task_that_succeeds_in_the_second_run_has_no_third(page, queue, ask, name):
    ask.answers = [ConnectionError(), "in the van"]
    getattr(page, name)("parcel")
    assert (ended(queue), len(ask.asked)) == (State.SUCCEEDED, 2)


def test_a_later_start_may_be_given_for_one_call(page, queue, ask):
    page.track_in_an_hour("parcel")
    ended(queue)
    assert ask.asked == list(range(3600, 3631))


def test_a_wait_begins_when_the_run_has_ended(page, queue, ask, monkeypatch):
    def slow(parcel):
        try:
            ask(parcel)
        finally:
            queue.advance(5)

    monkeypatch.setitem(page.names, "ask", slow)
    page.track_slowly("parcel")
    assert (ended(queue), ask.asked) == (State.FAILED, [6 * number for number in range(10)])


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("wait_for_delivery", [None, ConnectionError(), "in the van", "delivered"]),
        ("wait_for_the_van", [None, ConnectionError(), "at the depot", "in the van"]),
        ("wait_until_it_is_lost", [None, ConnectionError(), "delivered", "lost"]),
    ],
)
def test_success_is_what_the_page_says_it_is(page, queue, ask, name, answers):
    ask.answers = answers
    getattr(page, name)("parcel")
    assert (ended(queue), ask.asked) == (State.SUCCEEDED, [0, 1, 2, 3])


def test_a_second_declaration_leaves_the_first_as_it_was(page, queue, ask):
    ask.answers = ["lost", "delivered"]
    page.wait_for_delivery("parcel")
    assert (ended(queue), len(ask.asked)) == (State.SUCCEEDED, 2)
    assert page.wait_until_it_is_lost.name == "parcels.wait_until_it_is_lost"


@pytest.mark.parametrize("answer", [ConnectionError(), None, "delivered"])
def test_what_never_succeeds_runs_every_ten_seconds_for_ever(page, queue, ask, answer):
    ask.answers = [answer]
    page.keep_looking("parcel")
    with pytest.raises(AssertionError, match="500 attempts were made"):
        queue.run_all(limit=500, check=False)
    assert ask.asked == [10 * number for number in range(500)]
    assert set(states(queue)) == {State.RETRYING}


@pytest.mark.parametrize("answer", [ConnectionError(), None, "delivered"])
def test_what_never_succeeds_runs_five_times_and_is_no_dead_letter(page, queue, ask, answer):
    ask.answers = [answer]
    page.look_five_times("parcel")
    assert (ended(queue), ask.asked) == (State.FAILED, [0, 10, 20, 30, 40])
    assert page.look_five_times.options.dead_letter is False


# --- by failing in the right way


def failure(code):
    return HTTPError("http://localhost/parcel", code, str(code), email.message.Message(), None)


@pytest.fixture
def web(page, queue, monkeypatch):
    """The server that answers with codes, or with a page."""
    carrier = Carrier(queue)

    def urlopen(url):
        return io.BytesIO(carrier(url))

    monkeypatch.setitem(page.names, "urlopen", urlopen)
    return carrier


@pytest.mark.parametrize(
    ("name", "answers", "state"),
    [
        ("fetch", [failure(404), failure(404), b"here"], State.SUCCEEDED),
        ("fetch", [failure(404), failure(404), failure(401)], State.SUCCEEDED),
        ("fetch", [failure(404), failure(404), OSError()], State.SUCCEEDED),
        ("fetch_or_fail", [failure(404), failure(404), b"here"], State.SUCCEEDED),
        ("fetch_or_fail", [failure(404), failure(404), failure(401)], State.FAILED),
    ],
)
def test_a_404_is_tried_again_and_a_401_is_not(page, queue, web, name, answers, state):
    web.answers = answers
    getattr(page, name)("http://localhost/parcel")
    assert (ended(queue), web.asked) == (state, [0, 5, 10])


def test_a_predicate_that_raises_fails_as_the_page_shows(page, queue, ask):
    ask.answers = ["code"]
    retry = Retry(attempts=0, until=lambda outcome: {}[outcome.value])
    page.task(executor="spooler", name="parcels.judged", retry=retry)(page.track.func)("parcel")
    assert ended(queue) is State.FAILED
    (attempt,) = queue.failed
    assert type(attempt.error) is PredicateFailed
    shown = f"PredicateFailed: {attempt.error}"
    assert shown == "PredicateFailed: Retry(until=) raised KeyError: 'code'"
    assert shown in (ROOT / "docs" / "retry.md").read_text()


# --- by hand


@pytest.fixture
def slept(sleeping_here):
    got = []
    sleeping_here(got.append)
    return got


def test_attempts_by_hand_are_made_here_with_the_waits_of_the_policy(page, ask, slept):
    assert page.track_now("parcel") is None
    assert (len(ask.asked), slept) == (10, [1.0] * 9)


def test_attempts_by_hand_end_with_the_value(page, ask, slept, capsys):
    ask.answers = [ConnectionError(), ConnectionError(), "in the van"]
    assert page.track_now("parcel") == "in the van"
    assert (len(ask.asked), slept) == (3, [1.0, 1.0])
    assert capsys.readouterr().out == (
        "attempt 1: retrying\nattempt 2: retrying\nattempt 3: succeeded\n"
    )


# --- when the task itself asks


@pytest.mark.parametrize(
    ("name", "offsets"),
    [
        ("poll", [0, 30, 60, 90, 120]),
        ("poll_less_often", [0, 60, 180, 360, 600]),
        ("poll_as_before", [0, 30, 60, 90, 120]),
    ],
)
def test_a_task_that_asks_runs_at(page, queue, ask, name, offsets):
    ask.answers = [None]
    getattr(page, name)("parcel")
    assert (ended(queue), ask.asked) == (State.FAILED, offsets)


@pytest.mark.parametrize("name", ["poll", "poll_less_often", "poll_as_before"])
def test_a_task_that_asks_no_more_has_succeeded(page, queue, ask, name):
    ask.answers = [None, "delivered"]
    getattr(page, name)("parcel")
    assert (ended(queue), len(ask.asked)) == (State.SUCCEEDED, 2)
    assert get_current_task() is None
