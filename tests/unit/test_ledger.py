"""What is kept of jobs beside their run."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from uwsgi_tasks.codec import decode_value, encode_value
from uwsgi_tasks.errors import ResultNotKept, StoreError
from uwsgi_tasks.ledger import Ledger, read_outcome
from uwsgi_tasks.meter import unsaved
from uwsgi_tasks.model import Job, Record, Result, State, Stop
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.signing import Signer
from uwsgi_tasks.stores.memory import MemoryStore

JOB = Job("3f-1", "shop.send", (1,), attempt=2, submitted_at=1000.0, result_ttl=60.0)
UNIQUE = Job("3f-2", "shop.send", unique="me")
OK = Result(state=State.SUCCEEDED, attempt=2, value=42)
OURS, THEIRS = "our secret", "their secret"
NOW = 1_700_000_000.0


class Store(MemoryStore):
    """A store that can be away, and counts how often it was asked."""

    away = False

    def __init__(self):
        super().__init__("memory://", "")
        self.asked = []

    def __getattribute__(self, name):
        if name in {"save", "get", "start", "advance", "acquire", "extend", "release_all", "purge"}:
            self.asked.append(name)
            if self.away:
                raise StoreError("nobody is at home")
        return super().__getattribute__(name)


class Place:
    """Where runs are counted."""

    is_near = False
    folder = None

    def counts_folder(self):
        return self.folder


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def place():
    return Place()


@pytest.fixture
def ledger_of(store, place):
    def ledger_of(role="spooler", **settings):
        chosen = Settings(**settings)
        return Ledger(lambda: store, lambda: chosen, place, lambda: role)

    return ledger_of


@pytest.fixture
def ledger(ledger_of):
    return ledger_of()


@pytest.fixture
def clock(monkeypatch):
    """A time that the test puts forward, and those who sleep."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


# --- the way of a job


def test_a_job_that_is_submitted_waits(ledger, store):
    ledger.queued(JOB, "mule")
    assert store.get("3f-1") == Record(
        id="3f-1",
        task="shop.send",
        executor="mule",
        state=State.QUEUED,
        attempt=2,
        submitted_at=1000.0,
    )


def test_an_attempt_that_begins_is_noted_with_its_process(ledger, store):
    ledger.queued(JOB, "mule")
    assert ledger.starts(JOB) is True
    found = store.get("3f-1")
    assert (found.state, found.worker) == (State.RUNNING, ledger.worker)


def test_a_job_of_which_nothing_is_known_may_begin(ledger):
    assert ledger.starts(JOB) is True


def test_a_job_that_was_cancelled_must_not_begin(ledger, store, place, tmp_path, caplog):
    place.folder = tmp_path
    ledger.queued(JOB, "mule")
    store.cancel("3f-1", Stop.ASKED)
    caplog.set_level("INFO")
    assert ledger.starts(JOB) is False
    (record,) = caplog.records
    assert record.getMessage() == "shop.send[3f-1] was cancelled, and does not run"
    assert (record.levelname, record.job_id, record.attempt) == ("INFO", "3f-1", JOB.attempt)
    assert [count.outcome for count in unsaved(tmp_path)] == ["cancelled"]


@pytest.mark.parametrize(
    ("later", "known"), [(3600.0, True), (86_400.0 - 5, True), (86_400.0 + 5, False)]
)
def test_until_it_has_ended_a_job_is_remembered_for_a_day(ledger, store, monkeypatch, later, known):
    ledger.queued(JOB, "mule")
    now = time.time() + later
    monkeypatch.setattr(time, "time", lambda: now)
    assert (store.get("3f-1") is not None) is known


def test_a_job_of_the_future_is_remembered_until_its_time_and_a_day_longer(
    ledger, store, monkeypatch
):
    ledger.queued(JOB._replace(at=time.time() + 1e6), "mule")
    now = time.time() + 1e6 + 3600
    monkeypatch.setattr(time, "time", lambda: now)
    assert store.get("3f-1").state is State.QUEUED


def test_while_the_store_is_away_a_job_begins(ledger, store, caplog):
    store.away = True
    assert ledger.starts(JOB) is True
    assert "that it begins could not be kept: nobody is at home" in caplog.text


def test_how_a_job_ended_is_kept(ledger, store):
    ledger.ends(JOB, "spooler", OK, started_at=2000.0)
    found = store.get("3f-1")
    assert (found.state, found.executor, found.attempt) == (State.SUCCEEDED, "spooler", 2)
    assert (found.submitted_at, found.started_at) == (1000.0, 2000.0)
    assert time.time() - 60 < found.ended_at <= time.time()
    assert (found.worker, found.error, found.traceback) == (ledger.worker, None, None)
    assert decode_value(found.outcome) == 42


def test_how_a_job_ended_is_not_kept_unless_it_asks_for_that(ledger, store):
    ledger.ends(JOB._replace(result_ttl=None), "spooler", OK)
    ledger.ends(JOB._replace(result_ttl=0.0), "spooler", OK)
    assert (store.get("3f-1"), store.asked) == (None, ["get"])


def test_a_failure_is_kept_with_its_error_and_its_traceback(ledger, store):
    error = OSError("no such host")
    result = Result(state=State.FAILED, attempt=2, error=error)
    ledger.ends(JOB, "spooler", result, trace="Traceback")
    found = store.get("3f-1")
    assert (found.state, found.error, found.traceback) == (
        State.FAILED,
        "OSError: no such host",
        "Traceback",
    )
    assert str(read_outcome(found, Settings())) == "no such host"


def test_an_attempt_that_is_tried_again_has_no_outcome_yet(ledger, store):
    result = Result(state=State.RETRYING, attempt=2, error=OSError("no such host"))
    ledger.ends(JOB, "spooler", result)
    found = store.get("3f-1")
    assert (found.state, found.error, found.outcome, found.ended_at) == (
        *(State.RETRYING, "OSError: no such host"),
        *(None, None),
    )


def test_a_value_that_cannot_be_kept_is_an_error_in_the_result_and_no_lost_job(ledger, store):
    ledger.ends(JOB, "spooler", Result(state=State.SUCCEEDED, attempt=2, value=threading.Lock()))
    found = store.get("3f-1")
    assert found.state is State.SUCCEEDED
    with pytest.raises(ResultNotKept, match=r"it returned a _thread\.lock, which cannot be kept"):
        read_outcome(found, Settings())


class Loud(Exception):
    """Can be pickled, and not be read again."""

    def __init__(self, text, more):
        super().__init__(text)
        self.more = more


@pytest.mark.parametrize(
    "error", [Loud("no", 1), OSError(threading.Lock())], ids=["unreadable", "unpicklable"]
)
def test_an_exception_that_cannot_travel_is_kept_as_its_text(ledger, store, error):
    ledger.ends(JOB, "spooler", Result(state=State.FAILED, attempt=2, error=error))
    found = store.get("3f-1")
    assert (found.state, found.outcome) == (State.FAILED, None)
    assert found.error.startswith(type(error).__name__)


def test_while_the_store_is_away_a_job_ends(ledger, store, caplog):
    store.away = True
    ledger.ends(JOB, "spooler", OK)
    assert "that it is succeeded could not be kept: nobody is at home" in caplog.text


@pytest.mark.parametrize("refusals", [1, 2])
def test_what_the_store_has_missed_is_written_when_it_is_back(ledger, store, refusals):
    store.away = True
    ledger.ends(JOB, "spooler", OK)
    store.away = False
    left = [None] * refusals

    def save(*given):
        if left:
            # As over a connection that has broken, of which nobody has heard.
            left.pop()
            raise StoreError("it is gone")
        MemoryStore.save(store, *given)

    store.save = save
    ledger.catch_up()
    assert (store.get(JOB.id) is not None) is (refusals == 1)
    ledger.catch_up()
    assert store.get(JOB.id).state is State.SUCCEEDED


@pytest.mark.parametrize("is_ours", [True, False])
def test_what_the_store_has_missed_is_not_written_of_what_is_anothers_by_then(
    ledger, store, is_ours
):
    job = UNIQUE._replace(result_ttl=60.0)
    ledger.claim(job)
    ledger.confirm(job)
    store.away = True
    ledger.ends(job, "redis", OK, is_ours=lambda one: one == job and is_ours)
    store.away = False
    assert ledger.owes
    ledger.catch_up()
    assert (store.get(job.id) is not None, ledger.owes) == (is_ours, False)
    assert (ledger.claim(UNIQUE._replace(id="3f-3")) is None) is is_ours


def test_what_the_store_never_takes_does_not_hold_up_what_it_has_missed_else(ledger, store):
    large = {"3f-a", "3f-b", "3f-c"}
    ids = [*sorted(large), "3f-d", "3f-e"]
    store.away = True
    for id_ in ids:
        ledger.ends(JOB._replace(id=id_), "spooler", OK)
    store.away = False

    def save(record, ttl):
        if record.id in large:
            raise StoreError("it is too large")
        MemoryStore.save(store, record, ttl)

    store.save = save
    # Two at a time may be refused, before it is taken to be away.
    ledger.catch_up()
    ledger.catch_up()
    assert [store.get(id_) is not None for id_ in ids] == [False] * 3 + [True] * 2
    large.clear()
    ledger.catch_up()
    assert all(store.get(id_) for id_ in ids)


def test_what_is_owed_to_one_job_is_written_in_its_order(ledger, store):
    store.away = True
    for state in (State.FAILED, State.SUCCEEDED):
        ledger.ends(JOB, "spooler", Result(state=state, attempt=2))
        ledger.ends(JOB._replace(id="3f-a"), "spooler", OK)
    # Each failure puts one of them behind the other.
    for _ in range(5):
        ledger.catch_up()
    store.away = False
    ledger.catch_up()
    assert store.get(JOB.id).state is State.SUCCEEDED


def test_what_a_handler_writes_in_the_midst_of_a_write_costs_no_other(ledger, store):
    store.away = True
    ids = ["3f-a", "3f-b"]
    for id_ in ids:
        ledger.ends(JOB._replace(id=id_), "spooler", OK)
    store.away = False

    def save(record, ttl):
        MemoryStore.save(store, record, ttl)
        store.save = once
        ledger.catch_up()

    def once(record, ttl):
        MemoryStore.save(store, record, ttl)
        store.away = True

    store.save = save
    ledger.catch_up()
    store.away = False
    del store.save
    ledger.catch_up()
    assert all(store.get(id_) for id_ in ids)


def test_what_is_kept_is_signed(ledger_of, store):
    ledger_of(secret=OURS).ends(JOB, "spooler", OK)
    found = store.get("3f-1")
    assert decode_value(found.outcome, Signer([OURS])) == 42
    with pytest.raises(ResultNotKept, match="its result cannot be read: signed with another"):
        read_outcome(found, Settings(secret=THEIRS))


def test_what_was_not_signed_is_not_read_where_a_secret_is_known():
    record = Record(
        id="1", task="f", executor="mule", state=State.SUCCEEDED, outcome=encode_value(42)
    )
    assert read_outcome(record, Settings()) == 42
    with pytest.raises(ResultNotKept, match="not signed"):
        read_outcome(record, Settings(secret=OURS))


def test_a_result_without_a_word_was_not_kept():
    record = Record(id="1", task="f", executor="mule", state=State.SUCCEEDED)
    with pytest.raises(ResultNotKept, match="job 1: its value was not kept"):
        read_outcome(record, Settings())


def test_what_is_submitted_again_is_forgotten(ledger, store):
    ledger.ends(JOB, "spooler", OK)
    ledger.forget("3f-1")
    assert store.get("3f-1") is None


@pytest.mark.parametrize(("role", "shown"), [("spooler", " spooler"), ("", "")])
def test_a_process_is_named_by_its_machine_its_number_and_its_kind(ledger_of, role, shown):
    assert ledger_of(role).worker == f"{socket.gethostname()}:{os.getpid()}{shown}"


# --- now and then


def test_what_has_expired_is_deleted_once_a_minute(ledger, store, clock):
    for _ in range(3):
        ledger.ends(JOB, "spooler", OK)
    before = store.asked.count("purge")
    clock[0] += 61
    ledger.ends(JOB, "spooler", OK)
    assert (before, store.asked.count("purge")) == (1, 2)


def test_what_cannot_be_deleted_just_now_is_no_fault(ledger, store, monkeypatch, caplog):
    def away(*_args):
        raise StoreError("nobody is at home")

    monkeypatch.setattr(MemoryStore, "purge", away)
    ledger.ends(JOB, "spooler", OK)
    assert "what has expired could not be deleted: nobody is at home" in caplog.text
    assert store.get("3f-1").state is State.SUCCEEDED


# --- unique keys


def test_the_first_has_the_key(ledger):
    assert ledger.claim(UNIQUE) is None


def test_who_comes_second_is_told_who_has_it(ledger):
    ledger.claim(UNIQUE)
    ledger.confirm(UNIQUE)
    assert ledger.claim(UNIQUE._replace(id="3f-3")) == "3f-2"


@pytest.mark.parametrize("other", [{"unique": "you"}, {"task": "shop.other"}])
def test_another_key_is_free(ledger, other):
    ledger.claim(UNIQUE)
    ledger.confirm(UNIQUE)
    assert ledger.claim(UNIQUE._replace(id="3f-3", **other)) is None


def test_who_comes_second_waits_until_the_first_is_submitted(ledger, sleeping_here):
    ledger.claim(UNIQUE)
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            ledger.confirm(UNIQUE)

    sleeping_here(sleep)
    assert ledger.claim(UNIQUE._replace(id="3f-3")) == "3f-2"
    assert len(pauses) == 3


def test_who_comes_second_has_the_key_if_the_first_was_not_submitted(ledger, sleeping_here):
    ledger.claim(UNIQUE)
    sleeping_here(lambda _: ledger.release("3f-2"))
    assert ledger.claim(UNIQUE._replace(id="3f-3")) is None


@pytest.mark.parametrize(("retry", "held"), [(0, 10), (20, 30)])
def test_the_key_is_claimed_for_as_long_as_it_may_take_to_submit_its_job(
    ledger_of, store, retry, held
):
    ledger_of(redis_retry=retry).claim(UNIQUE)
    lease = store.acquire("unique shop.send me", "3f-3", 1)
    assert lease.owner == "3f-2"
    assert held - 5 < lease.due - store.now() <= held


@pytest.mark.parametrize(("took", "warns"), [(0.0, False), (29.0, False), (31.0, True)])
def test_who_loses_the_key_before_its_job_is_submitted_is_told(ledger_of, caplog, took, warns):
    ledger = ledger_of(redis_retry=20)
    ledger.claim(UNIQUE)
    # It has run already, or the claim is over.
    ledger.release("3f-2")
    ledger.claim(UNIQUE._replace(id="3f-3"))
    ledger.confirm(UNIQUE, took)
    assert ("shop.send[3f-2]: its unique key was free" in caplog.text) is warns


def test_who_took_long_to_submit_its_job_and_has_the_key_still_is_not_told(ledger, caplog):
    ledger.claim(UNIQUE)
    ledger.confirm(UNIQUE, 1e6)
    assert not caplog.text


@pytest.mark.parametrize(
    ("state", "free"),
    [
        *[(state, True) for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)],
        (State.RETRYING, False),
    ],
)
def test_the_key_is_given_back_when_its_job_has_ended(ledger, state, free):
    ledger.claim(UNIQUE)
    ledger.confirm(UNIQUE)
    ledger.ends(UNIQUE, "spooler", Result(state=state, attempt=1))
    assert ledger.claim(UNIQUE._replace(id="3f-3")) == (None if free else "3f-2")


def test_the_key_of_a_job_of_the_future_is_kept_for_longer(ledger, store):
    job = UNIQUE._replace(at=time.time() + 1_000_000)
    ledger.claim(job)
    ledger.confirm(job)
    (lease,) = [store.acquire("unique shop.send me", "3f-3", 1)]
    assert lease.due > store.now() + 1_000_000


def test_while_the_store_is_away_no_key_can_be_had(ledger, store):
    store.away = True
    with pytest.raises(StoreError):
        ledger.claim(UNIQUE)


def test_while_the_store_is_away_a_key_is_neither_kept_nor_given_back(ledger, store, caplog):
    ledger.claim(UNIQUE)
    store.away = True
    ledger.confirm(UNIQUE)
    ledger.release("3f-2")
    assert "its unique key could not be kept" in caplog.text
    assert "its unique key is held for up to a day" in caplog.text


# --- while it runs


def test_how_far_a_job_has_come_is_kept(ledger, store):
    ledger.queued(JOB, "mule")
    ledger.starts(JOB)
    ledger.show_progress(JOB, 1, 3)
    found = store.get("3f-1")
    assert (found.done, found.total) == (1, 3)


@pytest.mark.parametrize(("done", "told"), [(2, 1), (3, 2)])
def test_the_store_is_told_a_few_times_a_second_and_of_the_end(ledger, store, clock, done, told):
    ledger.show_progress(JOB, 1, 3)
    ledger.show_progress(JOB, done, 3)
    assert store.asked.count("advance") == told


def test_a_moment_later_the_store_is_told_again(ledger, store, clock):
    ledger.show_progress(JOB, 1, 3)
    clock[0] += 0.25
    ledger.show_progress(JOB, 2, 3)
    assert store.asked.count("advance") == 2


def test_each_job_is_told_of_at_once(ledger, store, clock):
    ledger.show_progress(JOB, 1, 3)
    ledger.show_progress(JOB._replace(id="3f-9"), 1, 3)
    assert store.asked.count("advance") == 2


def test_a_job_that_asks_for_nothing_is_not_told_of(ledger, store):
    job = JOB._replace(result_ttl=None)
    ledger.show_progress(job, 1, 3)
    assert (ledger.asked(job), store.asked) == (Stop.NOT, [])


@pytest.mark.parametrize("stop", [Stop.ASKED, Stop.KILL])
def test_a_job_sees_that_it_was_asked_to_stop(ledger, store, clock, stop):
    ledger.queued(JOB, "mule")
    ledger.starts(JOB)
    before = ledger.asked(JOB)
    store.cancel("3f-1", stop)
    at_once = ledger.asked(JOB)
    clock[0] += 0.25
    assert (before, at_once, ledger.asked(JOB)) == (Stop.NOT, Stop.NOT, stop)


def test_a_job_that_tells_of_itself_learns_what_it_was_asked_for(ledger, store, clock):
    ledger.queued(JOB, "mule")
    ledger.starts(JOB)
    store.cancel("3f-1", Stop.ASKED)
    ledger.show_progress(JOB, 1, 3)
    before = store.asked.count("get")
    assert (ledger.asked(JOB), store.asked.count("get")) == (Stop.ASKED, before)


def test_jobs_of_several_threads_ask_no_more_often_than_one_each(ledger, store, clock):
    others = JOB._replace(id="3f-9")

    def ask(job):
        return lambda: [ledger.asked(job) for _ in range(5)]

    for _ in range(2):
        ask(JOB)()
        thread = threading.Thread(target=ask(others))
        thread.start()
        thread.join()
    # Once here, and once in each thread.
    assert store.asked.count("get") == 3


def test_what_one_job_was_asked_for_is_not_asked_of_the_next(ledger, store, clock, caplog):
    ledger.queued(JOB, "mule")
    ledger.starts(JOB)
    store.cancel("3f-1", Stop.KILL)
    assert ledger.asked(JOB) is Stop.KILL
    store.away = True
    assert ledger.asked(JOB._replace(id="3f-9")) is Stop.NOT
    assert "the store could not be asked" in caplog.text


def test_while_the_store_is_away_a_job_is_asked_for_what_it_was(ledger, store, clock):
    ledger.queued(JOB, "mule")
    ledger.starts(JOB)
    store.cancel("3f-1", Stop.KILL)
    ledger.asked(JOB)
    store.away = True
    clock[0] += 1
    assert ledger.asked(JOB) is Stop.KILL


def test_of_a_job_that_was_forgotten_nothing_is_asked(ledger):
    assert ledger.asked(JOB) is Stop.NOT


# --- counts


def test_runs_are_counted_where_somebody_would_look(ledger, place, tmp_path):
    place.folder = tmp_path
    ledger.count("f", "succeeded", 1.0, NOW)
    ledger.count("f", "succeeded", 1.0, NOW)
    assert [(count.task, count.runs) for count in unsaved(tmp_path)] == [("f", 2)]


@pytest.mark.parametrize("role", ["spooler", "worker"])
def test_a_fork_does_not_wait_for_what_its_parent_began_to_count(ledger_of, place, tmp_path, role):
    place.folder, ledger = tmp_path, ledger_of(role)
    begun, ends = threading.Event(), threading.Event()

    def slow_folder():
        begun.set()
        ends.wait(30)
        return tmp_path

    place.counts_folder = slow_folder
    thread = threading.Thread(target=ledger.count, args=("f", "succeeded", 1.0, NOW))
    thread.start()
    assert begun.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        ends.set()
        ledger.count("g", "succeeded", 1.0, NOW)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    ends.set()
    thread.join()
    assert status == 0
    assert sorted(count.task for count in unsaved(tmp_path)) == ["f", "g"]


@pytest.mark.parametrize("role", ["spooler", "mule", "worker"])
def test_in_any_process_threads_may_count_at_a_time(ledger_of, place, tmp_path, role):
    place.folder, ledger = tmp_path, ledger_of(role)

    def count():
        for number in range(500):
            ledger.count(f"task {number % 50}", "succeeded", 1.0, NOW)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    count()
    for thread in threads:
        thread.join()
    assert sum(count.runs for count in unsaved(tmp_path)) == 2000


def test_where_nobody_would_look_nothing_is_counted(ledger):
    assert ledger.count("f", "succeeded", 1.0, NOW) is None


def test_runs_are_not_counted_where_the_settings_say_so(ledger_of, place, tmp_path):
    place.folder = tmp_path
    ledger_of(stats=False).count("f", "succeeded", 1.0, NOW)
    assert list(tmp_path.iterdir()) == []


def test_counts_go_to_the_store_if_it_is_at_hand(ledger, store, place, tmp_path):
    place.folder, place.is_near = tmp_path, True
    ledger.count("f", "succeeded", 1.0, NOW)
    ledger.count("f", "succeeded", 1.0, NOW + 60)
    assert [count.runs for count in store.counts(NOW - 60)] == [1]


def test_a_run_that_cannot_be_counted_is_no_fault_of_the_job(ledger, place, caplog):
    place.folder = Path("/no/such/place")
    ledger.count("f", "succeeded", 1.0, NOW)
    assert "what this process counts is lost with it" in caplog.text
