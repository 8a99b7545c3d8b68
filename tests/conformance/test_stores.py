"""What every store promises to whoever remembers something in it."""

import random
import time
from dataclasses import replace

import pytest

from tests.conformance.places import FILES, PLACES, counted, letter, record, until
from uwsgi_tasks.errors import ConfigurationError
from uwsgi_tasks.model import DeadLetter, Lease, Record, State, Stop
from uwsgi_tasks.stores import Store


@pytest.mark.parametrize("file", FILES)
def test_the_contract_is_checked_for_every_store(file):
    assert file in PLACES, (
        f"uwsgi_tasks/stores/{file}.py is a new store: give it a place in "
        "tests/conformance/test_stores.py, so that this contract is checked for it"
    )


def test_a_store_says_whether_other_processes_see_the_same(place, store):
    assert (isinstance(store, Store), store.shared) == (True, place.shared)


def test_its_clock_shows_the_time_in_microseconds(store):
    times = {store.now() for _ in range(50)}
    assert abs(store.now() - time.time()) < 5
    assert any(moment * 1000 % 1 for moment in times)


def test_its_clock_goes_on(store):
    before = store.now()
    until(lambda: store.now() > before + 0.001)


# --- results


def test_what_was_saved_comes_back(store):
    whole = Record(
        id="a",
        task="billing.send",
        executor="spooler",
        state=State.FAILED,
        attempt=3,
        submitted_at=1_700_000_000.123456,
        started_at=1_700_000_001.234567,
        ended_at=1_700_000_002.345678,
        worker="web1:spooler:2",
        outcome=bytes(range(256)),
        error="OSError: no such host",
        traceback="Traceback (most recent call last): ...",
        done=0.1,
        total=100.0,
        stop=Stop.KILL,
    )
    store.save(whole, 60)
    assert store.get("a") == whole


def test_what_is_not_known_comes_back_as_none(store):
    store.save(record(), 60)
    found = store.get("a")
    assert (found.started_at, found.ended_at, found.worker, found.outcome) == (None,) * 4
    assert (found.error, found.traceback, found.done, found.total) == (None,) * 4


def test_empty_is_not_none(store):
    store.save(record(outcome=b"", error="", traceback="", worker="", done=0.0), 60)
    found = store.get("a")
    assert (found.outcome, found.error, found.traceback, found.worker) == (b"", "", "", "")
    assert found.done == 0.0


def test_nothing_is_known_of_a_job_that_was_not_saved(store):
    store.save(record("a"), 60)
    assert store.get("b") is None


def test_a_later_record_replaces_an_earlier_one(store):
    store.save(record(error="no such host", done=1.0), 60)
    store.save(record(state=State.RETRYING, attempt=2), 60)
    assert store.get("a") == record(state=State.RETRYING, attempt=2)


@pytest.mark.parametrize("end", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
@pytest.mark.parametrize("late", [State.QUEUED, State.RUNNING, State.RETRYING])
def test_an_end_is_not_replaced_by_what_was_before_it(store, end, late):
    store.save(record(state=end, attempt=2, error="x"), 60)
    store.save(record(state=late), 60)
    assert store.get("a") == record(state=end, attempt=2, error="x")


def test_what_comes_too_late_does_not_let_an_end_be_remembered_longer(store):
    store.save(record(state=State.SUCCEEDED), 1)
    store.save(record(), 3600)
    until(lambda: store.get("a") is None)


def test_an_end_is_replaced_by_another_end(store):
    store.save(record(state=State.CANCELLED), 60)
    store.save(record(state=State.SUCCEEDED, outcome=b"42"), 60)
    assert store.get("a") == record(state=State.SUCCEEDED, outcome=b"42")


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.RETRYING])
def test_what_a_job_was_asked_for_is_not_taken_back_before_its_end(store, state):
    store.save(record(state=State.RUNNING), 60)
    store.cancel("a", Stop.KILL)
    store.save(record(state=state, stop=Stop.ASKED), 60)
    assert store.get("a") == record(state=state, stop=Stop.KILL)


def test_an_end_takes_back_what_the_job_was_asked_for(store):
    store.save(record(state=State.RUNNING, stop=Stop.KILL), 60)
    store.save(record(state=State.SUCCEEDED), 60)
    assert store.get("a").stop is Stop.NOT


def test_a_record_is_forgotten_when_its_time_has_come(store):
    store.save(record(), 60)
    assert store.get("a") == record()
    store.save(record(), 0.2)
    until(lambda: store.get("a") is None)


def test_a_record_lives_from_its_last_save(store):
    store.save(record(), 0.05)
    store.save(record(), 60)
    end = store.now() + 0.1
    until(lambda: store.now() > end)
    assert store.get("a") == record()


def test_a_forgotten_job_is_as_if_it_had_never_been(store):
    store.save(record(), 60)
    assert store.forget("a")
    assert store.get("a") is None
    assert not store.forget("a")


# --- what has expired is as if it were not there


def test_an_expired_record_is_not_returned(store):
    store.save(record(), 0)
    assert store.get("a") is None


def test_an_expired_end_is_replaced_by_what_waits(store):
    store.save(record(state=State.SUCCEEDED, error="x", outcome=b"1"), 0)
    store.save(record(), 60)
    assert store.get("a") == record()


def test_what_an_expired_record_was_asked_for_is_forgotten(store):
    store.save(record(state=State.RUNNING, stop=Stop.KILL), 0)
    store.save(record(state=State.RUNNING), 60)
    assert store.get("a").stop is Stop.NOT


def test_an_expired_cancellation_does_not_stop_a_job(store):
    store.save(record(state=State.CANCELLED), 0)
    assert store.start("a", 1, "w")


def test_an_expired_job_cannot_be_cancelled(store):
    store.save(record(), 0)
    assert store.cancel("a", Stop.ASKED) is None


def test_an_expired_job_was_asked_for_nothing(store):
    store.save(record(state=State.RUNNING, stop=Stop.KILL), 0)
    assert store.advance("a", 1, 2) is Stop.NOT


def test_an_expired_record_cannot_be_forgotten_again(store):
    store.save(record(), 0)
    assert not store.forget("a")


# --- start


@pytest.mark.parametrize("state", [State.QUEUED, State.RETRYING, State.RUNNING])
def test_a_job_that_starts_runs(store, state):
    store.save(record(state=state, submitted_at=5.0), 60)
    before = store.now()
    assert store.start("a", 2, "web1:mule:1")
    found = store.get("a")
    assert (found.state, found.attempt, found.worker) == (State.RUNNING, 2, "web1:mule:1")
    assert before <= found.started_at <= store.now()
    assert found.submitted_at == 5.0


def test_an_attempt_begins_with_no_progress(store):
    store.save(record(state=State.RETRYING, done=3.0, total=4.0), 60)
    store.start("a", 2, "w")
    assert (store.get("a").done, store.get("a").total) == (None, None)


def test_a_job_of_which_nothing_is_known_may_run(store):
    assert store.start("a", 1, "w")
    assert store.get("a") is None


def test_a_cancelled_job_does_not_start(store):
    store.save(record(), 60)
    store.cancel("a", Stop.ASKED)
    assert not store.start("a", 1, "w")
    assert store.get("a").state is State.CANCELLED


@pytest.mark.parametrize("end", [State.SUCCEEDED, State.FAILED])
def test_a_job_that_runs_once_more_keeps_its_end_until_the_next_one(store, end):
    store.save(record(state=end, outcome=b"42"), 60)
    assert store.start("a", 2, "w")
    assert store.get("a") == record(state=end, outcome=b"42")


# --- advance


def test_how_far_a_job_has_come_is_kept(store):
    store.save(record(), 60)
    store.start("a", 1, "w")
    store.advance("a", 2.5, 10.0)
    assert (store.get("a").done, store.get("a").total) == (2.5, 10.0)


def test_a_job_may_not_know_how_far_it_goes(store):
    store.save(record(state=State.RUNNING, total=10.0), 60)
    store.advance("a", 2.5, None)
    assert (store.get("a").done, store.get("a").total) == (2.5, None)


@pytest.mark.parametrize("stop", Stop)
def test_a_job_that_advances_hears_what_it_was_asked_for(store, stop):
    store.save(record(state=State.RUNNING), 60)
    store.cancel("a", stop)
    assert store.advance("a", 1, 2) is stop


def test_a_job_of_which_nothing_is_known_was_asked_for_nothing(store):
    assert store.advance("a", 1, 2) is Stop.NOT
    assert store.get("a") is None


def test_a_job_that_has_ended_does_not_advance(store):
    store.save(record(state=State.FAILED, done=1.0), 60)
    store.advance("a", 2.0, 3.0)
    assert store.get("a") == record(state=State.FAILED, done=1.0)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1e300])
def test_a_progress_that_means_nothing_does_not_fail(store, odd):
    store.save(record(state=State.RUNNING), 60)
    assert store.advance("a", odd, odd) is Stop.NOT
    assert store.get("a").state is State.RUNNING


# --- cancel


@pytest.mark.parametrize("state", [State.QUEUED, State.RETRYING])
def test_a_job_that_waits_is_cancelled(store, state):
    store.save(record(state=state), 60)
    before = store.now()
    assert store.cancel("a", Stop.KILL) is State.CANCELLED
    found = store.get("a")
    assert before <= found.ended_at <= store.now()
    assert found == record(state=State.CANCELLED, ended_at=found.ended_at)


def test_a_job_that_runs_is_asked(store):
    store.save(record(state=State.RUNNING), 60)
    assert store.cancel("a", Stop.ASKED) is State.RUNNING
    assert store.get("a") == record(state=State.RUNNING, stop=Stop.ASKED)


def test_a_job_that_was_asked_to_kill_stays_so(store):
    store.save(record(state=State.RUNNING), 60)
    for stop in (Stop.ASKED, Stop.KILL, Stop.ASKED, Stop.NOT):
        store.cancel("a", stop)
    assert store.get("a").stop is Stop.KILL


@pytest.mark.parametrize("end", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_a_job_that_has_ended_cannot_be_cancelled(store, end):
    store.save(record(state=end, ended_at=5.0), 60)
    assert store.cancel("a", Stop.KILL) is end
    assert store.get("a") == record(state=end, ended_at=5.0)


def test_a_job_of_which_nothing_is_known_cannot_be_cancelled(store):
    assert store.cancel("a", Stop.KILL) is None


# --- dead letters


def test_a_dead_letter_comes_back(store):
    whole = DeadLetter(
        id="a",
        task="billing.send",
        executor="spooler",
        attempt=3,
        failed_at=1_700_000_000.123456,
        error="OSError: no such host",
        traceback="Traceback ...",
        worker="web1:spooler:2",
        payload=bytes(range(256)),
        variables=b"\x11\0",
    )
    store.bury(whole)
    assert (store.find_dead("a"), store.dead()) == (whole, [whole])


def test_a_dead_letter_of_which_little_is_known_comes_back(store):
    store.bury(letter(task="", error=""))
    assert store.find_dead("a") == letter(task="", error="")


def test_a_dead_letter_that_was_never_buried_is_not_found(store):
    assert store.find_dead("a") is None


def test_a_dead_letter_replaces_an_older_one_of_the_same_id(store):
    store.bury(letter(failed_at=1.0, task="old"))
    store.bury(letter(failed_at=2.0, task="new"))
    assert store.dead() == [letter(failed_at=2.0, task="new")]
    assert (store.dead(task="old"), store.count_dead("old"), store.count_dead()) == ([], 0, 1)


def test_the_newest_dead_letters_come_first(store):
    for at in (2.0, 3.0, 1.0):
        store.bury(letter(f"at-{at}", at))
    assert [one.failed_at for one in store.dead()] == [3.0, 2.0, 1.0]


def test_of_dead_letters_of_one_moment_the_id_decides(store):
    for id_ in ("b", "B", "a", "ä"):
        store.bury(letter(id_, 1.0))
    assert [one.id for one in store.dead()] == ["ä", "b", "a", "B"]


@pytest.mark.parametrize("task", [None, "billing.send"])
def test_the_last_dead_letter_of_a_page_leads_to_the_next_page(store, task):
    expected = []
    for number in range(25):
        # Four share each moment, so that pages end in the middle of one.
        store.bury(letter(f"{number:02}", float(number // 4)))
        store.bury(letter(f"other-{number:02}", float(number // 4), task="other"))
        expected[:0] = [f"{number:02}"]
    found, page = [], store.dead(3, task=task)
    while page:
        found += [one.id for one in page if one.task == "billing.send"]
        page = store.dead(3, before=page[-1], task=task)
    assert found == expected


def test_a_page_goes_on_where_its_last_letter_was_though_that_is_gone(store):
    for number in range(4):
        store.bury(letter(str(number), float(number)))
    page = store.dead(2)
    store.exhume(page[-1].id)
    assert [one.id for one in store.dead(2, before=page[-1])] == ["1", "0"]


def test_dead_letters_are_found_by_their_task(store):
    for number, task in enumerate(["a", "A", "a", ""]):
        store.bury(letter(str(number), float(number), task=task))
    assert [one.id for one in store.dead(task="a")] == ["2", "0"]
    assert [one.id for one in store.dead(task="")] == ["3"]
    assert store.dead(task="none") == []


def test_dead_letters_are_counted(store):
    for number, task in enumerate(["a", "A", "a"]):
        store.bury(letter(str(number), task=task))
    counted = [store.count_dead(task) for task in (None, "a", "A", "none")]
    assert counted == [3, 2, 1, 0]


def test_a_dead_letter_is_exhumed_once(store):
    store.bury(letter())
    assert (store.exhume("a"), store.exhume("a")) == (True, False)
    assert (store.find_dead("a"), store.dead(), store.count_dead()) == (None, [], 0)


def test_a_dead_letter_that_came_later_is_not_exhumed(store):
    store.bury(replace(letter(), failed_at=1000.5))
    assert store.exhume("a", until=1000.25) is False
    assert store.count_dead() == 1
    assert store.exhume("a", until=1000.5) is True


def test_dead_letters_do_not_expire(store):
    store.bury(letter())
    store.purge(counts_before=1e12)
    assert store.find_dead("a") == letter()


# --- leases


def test_a_lease_is_taken(store):
    before = store.now()
    lease = store.acquire("report", "a", 60)
    assert (lease.name, lease.owner, lease.extended) == ("report", "a", False)
    assert before + 60 <= lease.due <= store.now() + 60


def test_a_lease_has_one_owner(store):
    mine = store.acquire("report", "a", 60)
    assert store.acquire("report", "b", 3600) == mine


def test_leases_of_different_names_have_nothing_to_do_with_each_other(store):
    assert store.acquire("report", "a", 60).owner == "a"
    assert store.acquire("Report", "b", 60).owner == "b"


def test_a_lease_that_its_owner_acquires_again_stays_as_it_is(store):
    mine = store.acquire("report", "a", 60)
    store.extend(mine, 120)
    extended = store.acquire("report", "b", 1)
    assert store.acquire("report", "a", 3600) == extended


def test_a_lease_that_is_due_can_be_taken(store):
    store.acquire("report", "a", 0.2)
    until(lambda: store.acquire("report", "b", 60).owner == "b")


def test_a_lease_that_was_due_is_not_extended_for_its_next_owner(store):
    store.extend(store.acquire("report", "a", 60), 0)
    assert not store.acquire("report", "b", 60).extended


def test_the_former_owner_may_take_a_lease_that_is_due(store):
    store.acquire("report", "a", 0)
    assert store.acquire("report", "a", 60).due > store.now() + 50


def test_a_lease_is_extended_from_now(store):
    lease = store.acquire("report", "a", 3600)
    assert store.extend(lease, 60)
    found = store.acquire("report", "b", 60)
    assert (found.owner, found.extended) == ("a", True)
    assert found.due <= store.now() + 60


def test_a_lease_that_is_due_cannot_be_extended(store):
    lease = store.acquire("report", "a", 0)
    assert not store.extend(lease, 60)
    assert store.acquire("report", "b", 60).owner == "b"


def test_a_lost_lease_cannot_be_extended(store):
    lease = store.acquire("report", "a", 0)
    store.acquire("report", "b", 60)
    assert not store.extend(lease, 60)


def test_a_lease_that_was_never_taken_cannot_be_extended(store):
    assert not store.extend(Lease(name="report", owner="a", due=0.0), 60)


def test_a_released_lease_can_be_taken(store):
    lease = store.acquire("report", "a", 60)
    assert store.release(lease)
    assert store.acquire("report", "b", 60).owner == "b"


def test_a_lease_is_released_once(store):
    lease = store.acquire("report", "a", 60)
    assert (store.release(lease), store.release(lease)) == (True, False)


def test_a_lost_lease_cannot_be_released(store):
    lease = store.acquire("report", "a", 0)
    mine = store.acquire("report", "b", 60)
    assert not store.release(lease)
    assert store.acquire("report", "c", 60) == mine


def test_a_lease_that_is_due_cannot_be_released(store):
    assert not store.release(store.acquire("report", "a", 0))


def test_an_extended_lease_can_be_released_by_what_was_acquired(store):
    lease = store.acquire("report", "a", 60)
    store.extend(lease, 120)
    assert store.release(lease)


def test_all_leases_of_an_owner_are_released(store):
    for name, owner in (("1", "a"), ("2", "a"), ("3", "A")):
        store.acquire(name, owner, 60)
    store.acquire("4", "a", 0)
    assert (store.release_all("a"), store.release_all("a")) == (2, 0)
    assert [store.acquire(name, "c", 60).owner for name in "1234"] == ["c", "c", "A", "c"]


# --- counts


def test_counts_come_back_by_minute_task_and_outcome(store):
    counts = [
        counted(minute, task, outcome)
        for minute in (0, 60)
        for task in ("B", "a")
        for outcome in ("failed", "succeeded")
    ]
    store.count(random.Random(1).sample(counts, len(counts)))
    assert store.counts(0) == counts


def test_counts_add_up(store):
    store.count([counted(runs=2, seconds=0.5, slowest=0.3)])
    store.count([counted(runs=3, seconds=0.25, slowest=0.2)])
    store.count([counted(runs=1, seconds=0.25, slowest=0.9)])
    assert store.counts(0) == [counted(runs=6, seconds=1.0, slowest=0.9)]


def test_counts_of_one_call_add_up(store):
    store.count([counted(runs=2, slowest=1.0), counted(runs=3, slowest=2.0)])
    assert store.counts(0) == [counted(runs=5, seconds=2.0, slowest=2.0)]


def test_nothing_can_be_counted(store):
    store.count([])
    assert store.counts(0) == []


@pytest.mark.parametrize(
    ("since", "end", "minutes"),
    [
        (0, None, [0, 60, 120]),
        (0, 120, [0, 60]),
        (60, 120, [60]),
        (0.5, 60.5, [60]),
        (60, 60, []),
        (121, None, []),
        (float("-inf"), float("inf"), [0, 60, 120]),
    ],
)
def test_counts_are_of_minutes_that_begin_in_a_time(store, since, end, minutes):
    store.count([counted(minute) for minute in (0, 60, 120)])
    assert [one.minute for one in store.counts(since, end)] == minutes


def test_counts_are_found_by_their_task(store):
    store.count([counted(minute, task) for minute in (0, 60) for task in ("a", "A", "b")])
    assert store.counts(0, task="a") == [counted(0, "a"), counted(60, "a")]
    assert store.counts(60, task="A") == [counted(60, "A")]
    assert store.counts(0, 60, task="none") == []


# --- housekeeping


def test_a_purge_deletes_what_has_expired_only(place, store):
    store.save(record("old"), 0)
    store.save(record("new"), 60)
    store.acquire("old", "a", 0)
    mine = store.acquire("new", "a", 60)
    store.count([counted(0), counted(60), counted(120)])
    deleted = 2 if place.expires else 4
    assert (store.purge(counts_before=120), store.purge(counts_before=120)) == (deleted, 0)
    assert store.get("new") == record("new")
    assert store.acquire("new", "b", 60) == mine
    assert store.counts(0) == [counted(120)]


def test_a_purge_deletes_so_many_of_each_kind_at_most(place, store):
    for number in range(5):
        store.save(record(str(number)), 0)
        store.acquire(str(number), "a", 0)
    # All of one minute, so that nothing but the limit divides them.
    store.count([counted(0, str(number)) for number in range(5)])
    deleted = [2, 2, 1, 0] if place.expires else [6, 6, 3, 0]
    assert [store.purge(60, limit=2) for _ in range(4)] == deleted


def test_a_purge_leaves_what_lives_again(store):
    store.save(record(state=State.SUCCEEDED), 0)
    store.save(record(state=State.RETRYING), 60)
    store.acquire("report", "a", 0)
    mine = store.acquire("report", "b", 60)
    assert store.purge(0) == 0
    assert store.get("a") == record(state=State.RETRYING)
    assert store.acquire("report", "c", 60) == mine


# --- texts and sizes

LONG = "x" * 300
TEXTS = {
    "NUL": "a\0b",
    "half of a pair": "half \ud83d of a pair, \udc00",
    "an escape": "\x1a\x1a0000\x1ad83d",
    "emoji": "🦆 and 日本語",
    "quotes": '\'; DROP TABLE "uwsgi_tasks_results"; -- %s %(a)s ? :a {0} \\ `',
    "a space at the end": "a ",
    "newline": "a\r\n\tb\x7f\x85\u2028",
    "long": LONG,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_comes_back_in_a_record(store, text):
    whole = replace(record(text), task=text, executor=text, worker=text, error=text, traceback=text)
    store.save(whole, 60)
    assert store.get(text) == whole


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_comes_back_in_a_dead_letter(store, text):
    whole = letter(text, executor=text, worker=text, error=text, traceback=text)
    store.bury(whole)
    (found,) = store.dead()
    # A long id may come back shortened, and then serves as well.
    assert replace(found, id=text) == whole
    assert store.find_dead(found.id) == found == store.find_dead(text)
    assert store.exhume(found.id)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_can_be_looked_for(store, text):
    store.bury(letter(task=text))
    assert store.count_dead(text) == 1
    (found,) = store.dead(task=text)
    assert store.dead(task=found.task) == [found]
    store.count([counted(task=text)])
    assert len(store.counts(0, task=text)) == 1
    assert store.forget(text) is store.start(text, 1, text) is False or store.get(text) is None


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_names_a_lease_and_its_owner(store, text):
    lease = store.acquire(text, text, 60)
    assert (lease.name, lease.owner) == (text, text)
    assert store.acquire(text, "b", 60) != store.acquire("other", "b", 60)
    assert store.acquire(text, text, 60) == lease
    assert store.extend(lease, 60)
    assert (store.release(lease), store.release_all(text)) == (True, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "A"),
        ("a", "a "),
        ("a ", "a  "),
        ("a", "á"),
        ("ss", "ß"),
        ("\0", "\x1a0000"),
        ("\ud83d", "\ud83e"),
        (LONG + "a", LONG + "b"),
        ("é", "e\u0301"),
        ("1", "01"),
    ],
)
def test_ids_that_differ_are_different(store, one, other):
    store.save(record(one), 60)
    assert store.get(other) is None
    store.bury(letter(one))
    assert store.find_dead(other) is None
    store.acquire(one, "a", 60)
    assert store.acquire(other, "b", 60).owner == "b"


def test_ten_megabytes_come_back(store):
    # What must be escaped on the way becomes twice as large.
    content = random.Random(1).randbytes(5_000_000) + b"'" * 5_000_000
    store.save(record(state=State.SUCCEEDED, outcome=content), 60)
    store.bury(letter(payload=content))
    assert store.get("a").outcome == content
    assert store.find_dead("a").payload == content


def test_a_long_traceback_comes_back(store):
    text = "ä" * 200_000
    store.save(record(state=State.FAILED, traceback=text), 60)
    assert store.get("a").traceback == text


# --- namespaces


def test_namespaces_are_kept_apart(shared):
    stores = [shared.connect(name) for name in ("", "shop", "shop_2")]
    for number, store in enumerate(stores):
        store.save(record(worker=str(number)), 60)
    assert [store.get("a").worker for store in stores] == ["0", "1", "2"]
    assert stores[0].forget("a")
    assert stores[1].get("a") is not None


def test_a_store_of_the_same_place_and_namespace_sees_the_same(shared):
    shared.connect("shop").save(record(), 60)
    assert shared.connect("shop").get("a") == record()


@pytest.mark.parametrize("name", ["Shop", "a-b", "x" * 31, "a;", "ä", " "])
def test_a_namespace_is_a_short_word(place, name):
    with pytest.raises(ConfigurationError, match="namespace"):
        place.connect(name)
