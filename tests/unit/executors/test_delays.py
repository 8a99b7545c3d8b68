"""What waits for a time in this process."""

import threading
import time
from contextlib import suppress
from queue import SimpleQueue

import pytest

from uwsgi_tasks.executors._delays import Delays

SOON = 0.05


@pytest.fixture
def handed():
    return SimpleQueue()


@pytest.fixture
def delays(handed):
    made = Delays(lambda thing: handed.put((thing, time.time())), "delays of a test")
    yield made
    made.end()


def test_a_thing_is_handed_over_when_it_is_due_and_not_before(delays, handed):
    at = time.time() + SOON
    delays.add(at, "a")
    thing, then = handed.get(timeout=30)
    assert (thing, then >= at) == ("a", True)


def test_what_was_due_in_the_past_is_handed_over_at_once(delays, handed):
    delays.add(0.0, "a")
    assert handed.get(timeout=30)[0] == "a"


def test_things_are_handed_over_in_the_order_of_their_times(delays, handed):
    # All of them are there before the first is due.
    now = time.time() + 1
    for number in (3, 1, 4, 2):
        delays.add(now + SOON * number, number)
    assert [handed.get(timeout=30)[0] for _ in range(4)] == [1, 2, 3, 4]


def test_of_one_time_the_first_comes_first(delays, handed):
    at = time.time() + SOON
    for number in range(9):
        delays.add(at, number)
    assert [handed.get(timeout=30)[0] for _ in range(9)] == list(range(9))


def test_one_that_comes_later_and_is_due_earlier_is_not_late(delays, handed):
    delays.add(time.time() + 3600, "far")
    delays.add(time.time() + SOON, "near")
    assert handed.get(timeout=30)[0] == "near"


def test_things_need_not_be_comparable(delays, handed):
    at = time.time()
    delays.add(at, {})
    delays.add(at, {})
    assert [handed.get(timeout=30)[0] for _ in range(2)] == [{}, {}]


def test_the_clock_may_be_put_forward(delays, handed, clock):
    delays.add(clock() + 3600, "a")
    clock.advance(3601)
    # Whoever comes wakes the thread; it looks by itself once a minute.
    delays.add(clock() - 1, "b")
    assert {handed.get(timeout=30)[0] for _ in range(2)} == {"a", "b"}


def test_all_that_wait_can_be_taken_away_in_order(delays, handed):
    now = time.time() + 3600
    for number in (2, 1, 3):
        delays.add(now + number, number)
    assert (delays.take_all(), len(delays), handed.empty()) == ([1, 2, 3], 0, True)


def test_after_all_were_taken_others_may_come(delays, handed):
    delays.add(time.time() + 3600, "a")
    delays.take_all()
    delays.add(time.time(), "b")
    assert handed.get(timeout=30)[0] == "b"


@pytest.fixture
def unwanted():
    return set()


@pytest.fixture
def choosy(handed, unwanted):
    made = Delays(handed.put, "delays of a test", lambda thing: thing not in unwanted)
    yield made
    made.end()


def drop(choosy, unwanted, thing):
    unwanted.add(thing)
    choosy.note_unwanted()


def test_what_nobody_wants_any_more_is_not_handed_over(choosy, unwanted, handed):
    at = time.time() + SOON
    choosy.add(at, "a")
    choosy.add(at, "b")
    drop(choosy, unwanted, "a")
    assert handed.get(timeout=30) == "b"


def test_what_nobody_wants_any_more_is_not_kept(choosy, unwanted):
    choosy.add(time.time() + 3600, "kept")
    for number in range(10_000):
        choosy.add(time.time() + 3600, number)
        drop(choosy, unwanted, number)
    assert len(choosy) < 100
    assert choosy.take_all() == ["kept"]


def test_to_drop_many_of_very_many_looks_at_each_a_few_times(handed):
    looks, unwanted = [], set()

    def is_wanted(thing):
        looks.append(thing)
        return thing not in unwanted

    delays = Delays(handed.put, "delays of a test", is_wanted)
    for number in range(10_000):
        delays.add(time.time() + 3600 + number, number)
    for number in range(10_000):
        drop(delays, unwanted, number)
    assert len(looks) < 30_000
    delays.end()


def test_those_that_were_handed_over_already_may_be_dropped_too(choosy, unwanted, handed):
    for number in range(200):
        choosy.add(0.0, number)
        handed.get(timeout=30)
        drop(choosy, unwanted, number)
    choosy.add(time.time() + SOON, "a")
    assert handed.get(timeout=30) == "a"


@pytest.mark.parametrize("interrupts", [False, True])
def test_a_signal_in_the_middle_of_cleaning_loses_nothing(handed, interrupts):
    at = time.time() + 3600
    dropped = set(range(3, 200))

    def is_wanted(thing):
        if thing == 2 and not signalled:
            signalled.append(True)
            delays.add(at, "from the handler")
            if interrupts:
                raise KeyboardInterrupt
        return thing not in dropped

    signalled = []
    delays = Delays(handed.put, "delays of a test", is_wanted)
    for number in range(200):
        delays.add(at, number)
    with suppress(KeyboardInterrupt):
        for _ in dropped:
            delays.note_unwanted()
    assert (signalled, delays.take_all()) == ([True], [0, 1, 2, "from the handler"])
    delays.end()


def test_after_cleaning_what_was_added_meanwhile_is_not_late(handed):
    def is_wanted(thing):
        if thing == "far" and not added:
            added.append(True)
            delays.add(time.time() + SOON, "near")
        return thing != "dropped"

    added = []
    delays = Delays(handed.put, "delays of a test", is_wanted)
    delays.add(time.time() + 3600, "far")
    for _ in range(100):
        delays.add(time.time() + 3600, "dropped")
        delays.note_unwanted()
    assert handed.get(timeout=30) == "near"
    delays.end()


def test_one_that_cannot_be_handed_over_does_not_hold_up_the_next(handed, caplog):
    def hand_over(thing):
        if thing == "bad":
            raise ValueError(thing)
        handed.put(thing)

    delays = Delays(hand_over, "delays of a test")
    delays.add(0.0, "bad")
    delays.add(1.0, "good")
    assert handed.get(timeout=30) == "good"
    assert "could not be handed over" in caplog.text
    delays.end()


def test_a_thing_may_be_added_by_what_takes_one(handed):
    def hand_over(thing):
        handed.put(thing)
        if thing < 3:
            delays.add(0.0, thing + 1)

    delays = Delays(hand_over, "delays of a test")
    delays.add(0.0, 1)
    assert [handed.get(timeout=30) for _ in range(3)] == [1, 2, 3]
    delays.end()


def test_there_is_no_thread_before_there_is_a_thing_nor_after_the_end(handed):
    name = "delays of this test"
    alive = lambda: [one for one in threading.enumerate() if one.name == name]  # noqa: E731
    delays = Delays(handed.put, name)
    assert alive() == []
    delays.add(time.time() + 3600, "a")
    (thread,) = alive()
    delays.end()
    thread.join(30)
    assert alive() == []


def test_while_nothing_is_due_nothing_is_done(delays):
    for number in range(1000):
        delays.add(time.time() + 3600 + number, number)
    began = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - began < 0.2
