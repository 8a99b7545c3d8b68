"""Counts of runs and their times."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from uwsgi_tasks import meter as module
from uwsgi_tasks.errors import StoreError
from uwsgi_tasks.meter import Meter, added_up, take_over, unsaved
from uwsgi_tasks.model import Count

NOW = 1_700_000_015.0
MINUTE = 1_699_999_980
MANY = 300
"""More than fit into a file."""


class Store:
    """Takes counts, or is away."""

    away = False

    def __init__(self):
        self.counts = []

    def __call__(self, counts):
        if self.away:
            raise StoreError
        self.counts += counts


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "running"


@pytest.fixture
def near():
    """Is the store at hand? The test changes what is in the list."""
    return [True]


@pytest.fixture
def meter(folder, store, near):
    return Meter(folder, store, lambda: near[0])


def count(task="f", outcome="succeeded", runs=1, seconds=1.0, slowest=1.0, minute=MINUTE):
    return Count(
        minute=minute, task=task, outcome=outcome, runs=runs, seconds=seconds, slowest=slowest
    )


def in_a_child(action):
    """Do something in another process, which dies then."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


# --- counting


def test_what_was_counted_is_seen_at_once(meter, folder):
    meter.add("f", "succeeded", 1.0, NOW)
    assert unsaved(folder) == [count()]


def test_runs_of_a_minute_are_added_up(meter, folder):
    for seconds in (1.0, 3.0, 2.0):
        meter.add("f", "succeeded", seconds, NOW)
    assert unsaved(folder) == [count(runs=3, seconds=6.0, slowest=3.0)]


def test_each_task_and_outcome_is_counted_by_itself(meter, folder):
    for task, outcome in [("f", "succeeded"), ("f", "failed"), ("g", "succeeded")]:
        meter.add(task, outcome, 1.0, NOW)
    assert unsaved(folder) == [count(), count(outcome="failed"), count(task="g")]


@pytest.mark.parametrize("near_by", [True, False])
def test_each_minute_is_counted_by_itself(meter, folder, store, near, near_by):
    near[0] = near_by
    meter.add("f", "succeeded", 1.0, NOW)
    meter.add("f", "succeeded", 1.0, NOW + 60)
    later = count(minute=MINUTE + 60)
    assert (store.counts, unsaved(folder)) == (
        ([count()], [later]) if near_by else ([], [count(), later])
    )


def test_a_task_without_a_name_is_counted_too(meter, folder):
    meter.add("", "failed", 0.0, NOW)
    assert unsaved(folder) == [count(task="", outcome="failed", seconds=0.0, slowest=0.0)]


@pytest.mark.parametrize("name", ["shöp.send", "x" * 1000, "half: \ud83d", "a b c"])
def test_any_name_can_be_counted(meter, folder, name):
    meter.add(name, "succeeded", 1.0, NOW)
    (found,) = unsaved(folder)
    assert found.task == name.encode("utf-8", "replace")[: len(found.task.encode())].decode()
    assert len(found.task.encode()) >= min(len(name), 190)


def test_a_name_is_not_cut_inside_of_a_letter(meter, folder):
    meter.add("ä" * 1000, "succeeded", 1.0, NOW)
    (found,) = unsaved(folder)
    assert set(found.task) == {"ä"}


# --- handing over


def test_what_was_handed_over_is_not_counted_twice(meter, folder, store):
    meter.add("f", "succeeded", 1.0, NOW)
    meter.flush()
    meter.add("f", "succeeded", 1.0, NOW)
    assert (store.counts, unsaved(folder)) == ([count()], [count()])


def test_before_anything_was_counted_there_is_nothing_to_hand_over(meter, store):
    meter.flush()
    assert store.counts == []


def test_while_the_store_is_away_the_counts_stay(meter, folder, store, caplog):
    store.away = True
    meter.add("f", "succeeded", 1.0, NOW)
    meter.flush()
    meter.add("f", "succeeded", 1.0, NOW)
    assert unsaved(folder) == [count(runs=2, seconds=2.0)]
    assert f"what was counted stays in {folder}" in caplog.text


def test_a_file_that_is_full_is_handed_over(meter, folder, store, near):
    near[0] = False
    for number in range(MANY):
        meter.add(f"task{number}", "succeeded", 1.0, NOW)
    names = {one.task for one in [*store.counts, *unsaved(folder)]}
    assert names == {f"task{number}" for number in range(MANY)}


def test_a_file_that_is_full_while_the_store_is_away_takes_no_more_room(meter, folder, store):
    store.away = True
    for number in range(MANY):
        meter.add(f"task{number}", "succeeded", 1.0, NOW)
    (file,) = folder.iterdir()
    assert len(unsaved(folder)) == file.stat().st_size // 256 == 256


def test_after_the_store_came_back_a_full_file_counts_as_before(meter, folder, store):
    store.away = True
    for number in range(MANY):
        meter.add(f"task{number}", "succeeded", 1.0, NOW)
    store.away = False
    meter.add("f", "succeeded", 1.0, NOW + 60)
    assert unsaved(folder) == [count(minute=MINUTE + 60)]
    assert len(store.counts) == 256


# --- the end of a process, and others


def test_what_a_process_has_counted_survives_it(meter, folder):
    in_a_child(lambda: meter.add("f", "succeeded", 1.0, NOW))
    assert unsaved(folder) == [count()]


def test_a_fork_counts_for_itself(meter, folder, near):
    near[0] = False
    meter.add("f", "succeeded", 1.0, NOW)
    in_a_child(lambda: meter.add("f", "succeeded", 5.0, NOW))
    meter.add("f", "succeeded", 1.0, NOW)
    assert sorted(unsaved(folder), key=lambda one: one.runs) == [
        count(seconds=5.0, slowest=5.0),
        count(runs=2, seconds=2.0),
    ]


def test_what_the_dead_have_counted_is_handed_over(meter, folder, store):
    in_a_child(lambda: meter.add("f", "succeeded", 1.0, NOW))
    take_over(folder, store)
    assert (store.counts, unsaved(folder), list(folder.iterdir())) == ([count()], [], [])


def test_what_the_living_have_counted_stays_with_them(meter, folder, store):
    meter.add("f", "succeeded", 1.0, NOW)
    take_over(folder, store)
    assert (store.counts, unsaved(folder)) == ([], [count()])


def test_while_the_store_is_away_the_counts_of_the_dead_stay(meter, folder, store):
    in_a_child(lambda: meter.add("f", "succeeded", 1.0, NOW))
    store.away = True
    take_over(folder, store)
    assert unsaved(folder) == [count()]


def test_what_was_taken_over_by_another_in_this_moment_is_not_counted_twice(
    meter, folder, store, monkeypatch
):
    in_a_child(lambda: meter.add("f", "succeeded", 1.0, NOW))
    (file,) = folder.iterdir()
    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *args: file.unlink() or flock(*args))
    take_over(folder, store)
    assert store.counts == []


def test_a_process_that_begins_to_count_takes_over_from_the_dead(meter, folder, store):
    in_a_child(lambda: meter.add("f", "succeeded", 1.0, NOW))
    meter.add("g", "succeeded", 1.0, NOW)
    assert (store.counts, unsaved(folder)) == ([count()], [count(task="g")])


@pytest.mark.parametrize(("dead", "taken"), [(20, 0), (21, 21)])
def test_without_a_store_at_hand_the_dead_are_left_until_they_are_many(
    meter, folder, store, near, dead, taken
):
    near[0] = False
    for _ in range(dead):
        in_a_child(lambda: meter.add("f", "succeeded", 1.0, NOW))
    meter.add("g", "succeeded", 1.0, NOW)
    assert len(store.counts) == taken


def test_a_file_that_another_takes_for_a_dead_ones_is_made_anew(meter, folder, store, monkeypatch):
    lock, turns = fcntl.flock, []

    def flock(file, how):
        if not turns:
            turns.append(file)
            # One that begins to count between the creation of ours and its lock.
            take_over(folder, store)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    meter.add("f", "succeeded", 1.0, NOW)
    monkeypatch.undo()
    assert unsaved(folder) == [count()]
    take_over(folder, store)
    assert unsaved(folder) == [count()]


def test_its_file_is_none_of_the_standard_streams(meter, folder):
    # uWSGI opens /dev/null over them after its fork, and the lock would be dropped.
    for number in range(3):
        os.close(number)
    try:
        meter.add("f", "succeeded", 1.0, NOW)
    finally:
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            if number != null:
                os.dup2(null, number)
    assert meter._file > 2


def test_on_a_full_disk_it_counts_in_memory_and_says_so(meter, monkeypatch, caplog):
    def full(*_args):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    meter.add("f", "succeeded", 1.0, NOW)
    meter.add("f", "succeeded", 1.0, NOW)
    assert "what this process counts is lost with it: No space left" in caplog.text
    assert meter._numbers[module._RUNS] == 2


# --- reading


def test_without_a_folder_nothing_was_counted(tmp_path, store):
    take_over(tmp_path / "missing", store)
    assert (unsaved(tmp_path / "missing"), store.counts) == ([], [])


def test_a_file_that_goes_between_the_listing_and_the_look_is_no_fault(folder, monkeypatch):
    monkeypatch.setattr(module, "_files", lambda _folder: [Path("/no/such/file.counts")])
    assert unsaved(folder) == []


@pytest.mark.parametrize("content", [b"", b"x" * 10, bytes(1000)])
def test_a_file_of_a_process_that_died_before_it_counted_holds_nothing(folder, content):
    folder.mkdir()
    (folder / "1-0f.counts").write_bytes(content)
    assert unsaved(folder) == []


def test_what_is_no_file_of_counts_is_left_alone(folder, store):
    folder.mkdir()
    (folder / "4711.402").write_bytes(b"x")
    take_over(folder, store)
    assert (unsaved(folder), (folder / "4711.402").exists()) == ([], True)


def test_a_slot_that_was_begun_and_not_counted_in_is_passed_over(meter, folder):
    meter.add("f", "succeeded", 1.0, NOW)
    meter.add("g", "succeeded", 1.0, NOW)
    meter._numbers[module._RUNS] = 0
    assert unsaved(folder) == [count(task="g")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([count(), count()], [count(runs=2, seconds=2.0)]),
        ([count(slowest=5.0), count(slowest=3.0)], [count(runs=2, seconds=2.0, slowest=5.0)]),
        ([count(task="g"), count(task="f")], [count(task="f"), count(task="g")]),
        (
            [count(minute=MINUTE + 60), count(outcome="failed"), count()],
            [count(outcome="failed"), count(), count(minute=MINUTE + 60)],
        ),
    ],
)
def test_counts_of_the_same_are_made_one(given, expected):
    assert added_up(given) == expected


def test_threads_that_count_at_once_lose_nothing(meter, folder):
    def count():
        for number in range(2000):
            meter.add_from_any_thread(f"task {number % 50}", "succeeded", 0.5, NOW)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.runs for one in unsaved(folder)) == 8000


@pytest.fixture(params=["add", "add_from_any_thread"])
def add(request, meter):
    return getattr(meter, request.param)


def in_threads(action, threads=4):
    """Do something in several threads, which all begin at the same time."""
    gate = threading.Barrier(threads)
    runs = [threading.Thread(target=lambda: (gate.wait(30), action())) for _ in range(threads)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()


def test_a_fork_does_not_wait_for_a_lock_of_its_parent(meter, add):
    add("shop.send", "succeeded", 0.5, NOW)
    with meter._lock(os.getpid()):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            add("shop.send", "succeeded", 0.5, NOW)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_the_first_threads_of_a_fork_begin_to_count_one_after_the_other(
    meter, add, folder, monkeypatch
):
    add("f", "succeeded", 1.0, NOW)
    opening, asking = os.posix_fallocate, os.getpid

    def slow_opening(*args):
        time.sleep(0.05)
        opening(*args)

    def slow_asking():
        time.sleep(0.01)
        return asking()

    def child():
        monkeypatch.setattr(os, "posix_fallocate", slow_opening)
        monkeypatch.setattr(os, "getpid", slow_asking)
        in_threads(lambda: add("g", "succeeded", 1.0, NOW))

    in_a_child(child)
    assert sum(one.runs for one in unsaved(folder) if one.task == "g") == 4
    assert len(list(folder.iterdir())) <= 3


def test_where_one_thread_counts_nearly_all_others_lose_nothing(meter, folder, store):
    # A new minute at each turn, which hands over: the longest way.
    def count():
        for number in range(300):
            meter.add(f"task {number % 50}", "succeeded", 0.5, NOW + 60 * number)

    meter.add("first", "succeeded", 0.5, NOW)
    in_threads(count)
    count()
    assert sum(one.runs for one in [*store.counts, *unsaved(folder)]) == 1501


def test_the_first_thread_waits_for_no_other(meter, folder):
    meter.add("f", "succeeded", 1.0, NOW)
    in_threads(lambda: meter.add("f", "succeeded", 1.0, NOW))
    holds, ends = threading.Event(), threading.Event()

    def hold():
        with meter._lock(os.getpid()), meter._others._lock(os.getpid()):
            holds.set()
            ends.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holds.wait(30)
    meter.add("f", "succeeded", 1.0, NOW)
    is_held = not ends.is_set() and holder.is_alive()
    ends.set()
    holder.join()
    assert is_held
    assert sum(one.runs for one in unsaved(folder)) == 6


def test_a_signal_in_the_middle_of_a_count_may_count(meter, folder):
    meter.add_from_any_thread("f", "succeeded", 1.0, NOW)
    before = signal.signal(
        signal.SIGUSR1, lambda *_: meter.add_from_any_thread("g", "succeeded", 1.0, NOW)
    )
    try:
        with meter._lock(os.getpid()):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert count(task="g") in unsaved(folder)


def test_a_signal_while_the_file_is_opened_may_count(meter, add, folder, monkeypatch):
    opening = os.posix_fallocate

    def interrupted(*args):
        monkeypatch.undo()
        add("g", "succeeded", 1.0, NOW)
        opening(*args)

    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    add("f", "succeeded", 1.0, NOW)
    assert sorted(one.task for one in unsaved(folder)) == ["f", "g"]
