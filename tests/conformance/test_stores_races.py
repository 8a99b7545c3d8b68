"""What every store promises where several processes, or threads, do something at once."""

import ctypes
import multiprocessing
import os
import threading

import pytest

from tests.conformance.places import counted, in_processes, in_threads, letter, racing, record
from uwsgi_tasks.model import Lease, State, Stop

ROUNDS = 40
"""How often a race is run."""


@pytest.mark.parametrize("due", [False, True], ids=["free", "due"])
def test_of_processes_that_want_a_lease_one_gets_it(shared, due):
    if due:
        store = shared.connect()
        for turn in range(ROUNDS):
            store.acquire(f"report-{turn}", "before", 0)

    def work(store, index):
        return [store.acquire(f"report-{turn}", f"{index}", 60).owner for turn in range(ROUNDS)]

    owners = racing(shared, 4, work)
    assert all(len(set(seen)) == 1 for seen in zip(*owners, strict=True))


@pytest.mark.parametrize("act", ["release", "exhume", "forget"])
def test_of_processes_that_take_something_away_one_has_done_it(shared, act):
    store = shared.connect()
    for turn in range(ROUNDS):
        store.acquire(f"{turn}", "a", 60)
        store.bury(letter(f"{turn}"))
        store.save(record(f"{turn}"), 60)

    def work(store, _):
        lease = [Lease(name=f"{turn}", owner="a", due=0.0) for turn in range(ROUNDS)]
        what = lease if act == "release" else range(ROUNDS)
        return [getattr(store, act)(one if act == "release" else f"{one}") for one in what]

    taken = racing(shared, 3, work)
    assert [sum(seen) for seen in zip(*taken, strict=True)] == [1] * ROUNDS


def test_what_processes_count_at_once_adds_up(shared):
    def work(store, index):
        tasks = ["a", "b", "c"] if index % 2 else ["c", "b", "a"]
        for _ in range(ROUNDS):
            store.count([counted(0, task, seconds=0.5) for task in tasks])

    racing(shared, 4, work)
    found = shared.connect().counts(0)
    assert [(one.runs, one.seconds) for one in found] == [(4 * ROUNDS, 2.0 * ROUNDS)] * 3


def test_processes_that_find_no_tables_make_them_at_once(shared):
    for turn in range(3):

        def work(index, name=f"shop_{turn}"):
            store = shared.connect(name)
            store.save(record(f"{index}"), 60)
            return store.purge(0)

        in_processes(5, work)
        store = shared.connect(f"shop_{turn}")
        assert all(store.get(f"{index}") for index in range(5))


def test_of_cancel_and_start_exactly_one_wins(shared):
    store, barrier = shared.connect(), multiprocessing.get_context("fork").Barrier(2)
    for turn in range(ROUNDS):
        store.save(record(f"{turn}"), 60)

    def work(store, index):
        answers = []
        for turn in range(ROUNDS):
            barrier.wait(30)
            if index:
                answers.append(store.cancel(f"{turn}", Stop.ASKED) is State.CANCELLED)
            else:
                answers.append(store.start(f"{turn}", 1, "w"))
        return answers

    started, cancelled = racing(shared, 2, work)
    assert all(one != other for one, other in zip(started, cancelled, strict=True))
    ends = [store.get(f"{turn}") for turn in range(ROUNDS)]
    assert [one.state is State.CANCELLED for one in ends] == cancelled
    assert [one.stop is Stop.ASKED for one in ends] == started


def test_an_end_wins_against_what_is_saved_at_the_same_time(shared):
    barrier = multiprocessing.get_context("fork").Barrier(3)

    def work(store, index):
        state = [State.SUCCEEDED, State.QUEUED, State.RETRYING][index]
        for turn in range(ROUNDS):
            barrier.wait(30)
            store.save(record(f"{turn}", state), 60)

    racing(shared, 3, work)
    store = shared.connect()
    assert {store.get(f"{turn}").state for turn in range(ROUNDS)} == {State.SUCCEEDED}


def test_a_kill_is_not_lost_in_what_a_job_says_of_itself(shared):
    barrier = multiprocessing.get_context("fork").Barrier(3)
    store = shared.connect()
    for turn in range(ROUNDS):
        store.save(record(f"{turn}", State.RUNNING), 60)

    def work(store, index):
        for turn in range(ROUNDS):
            barrier.wait(30)
            if index == 0:
                store.cancel(f"{turn}", Stop.KILL)
            elif index == 1:
                store.cancel(f"{turn}", Stop.ASKED)
            else:
                store.save(record(f"{turn}", State.RUNNING, done=1.0), 60)

    racing(shared, 3, work)
    assert {store.get(f"{turn}").stop for turn in range(ROUNDS)} == {Stop.KILL}


def test_processes_purge_at_once_while_others_save(shared):
    def work(store, index):
        deleted = 0
        for turn in range(ROUNDS):
            store.save(record(f"{index}-{turn}"), 0)
            store.acquire(f"{turn}", f"{index}", 0)
            deleted += store.purge(0, limit=7)
        return deleted

    racing(shared, 4, work)
    store = shared.connect()
    while store.purge(0):
        pass
    assert all(store.acquire(f"{turn}", "z", 60).owner == "z" for turn in range(ROUNDS))


def test_of_threads_that_want_a_lease_one_gets_it(store):
    def work(index):
        return [store.acquire(f"report-{turn}", f"{index}", 60).owner for turn in range(ROUNDS)]

    owners = in_threads(4, work)
    assert all(len(set(seen)) == 1 for seen in zip(*owners, strict=True))


def test_what_threads_count_at_once_adds_up(store):
    in_threads(4, lambda _: [store.count([counted()]) for _ in range(ROUNDS)])
    assert store.counts(0)[0].runs == 4 * ROUNDS


def test_threads_do_everything_at_once(store):
    def work(index):
        for turn in range(ROUNDS):
            id_ = f"{index}-{turn}"
            store.save(record(id_), 60)
            assert store.start(id_, 1, "w")
            store.save(record(id_, State.SUCCEEDED, outcome=id_.encode()), 60)
            assert store.get(id_).outcome == id_.encode()
            store.bury(letter(id_, float(turn)))
            store.dead(5)
            assert store.exhume(id_)
            store.purge(0)

    in_threads(4, work)
    assert store.dead() == []


# --- forks


def test_a_forked_child_and_its_parent_both_go_on(place, store):
    store.save(record("before"), 60)

    def work(index):
        known = store.get("before") is not None
        for turn in range(10):
            store.save(record(f"{index}-{turn}"), 60)
        assert store.get(f"{index}-9") is not None
        return known

    assert in_processes(3, work) == [True] * 3
    store.save(record("after"), 60)
    assert all((store.get(f"{index}-9") is not None) == place.shared for index in range(3))
    assert store.get("after") is not None


def test_a_forked_child_that_closes_its_store_does_not_close_its_parents(store):
    store.save(record(), 60)
    in_processes(2, lambda _: (store.get("a"), store.close()))
    in_processes(2, lambda _: (store.close(), store.get("a")))
    assert store.get("a") == record()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_thread_that_it_does_not_have(store):
    store.save(record("x"), 60)
    # Whatever the store locks, it is locked now and then.
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            store.save(record("x"), 60)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            in_processes(2, lambda index: store.save(record(f"{index}"), 60))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def forked_in_secret(place):
    """Fork as uWSGI does: its workers inherit what the application opened while it was loaded."""
    store = place.connect()
    store.count([counted(0, "parent")])
    children = []
    for index in range(3):
        child = ctypes.PyDLL(None).fork()
        if not child:
            failed = True
            try:
                for _ in range(20):
                    store.count([counted(0, f"{index}")])
                failed = store.counts(0, task=f"{index}")[0].runs != 20
            finally:
                os._exit(failed)
        children.append(child)
    for _ in range(10):
        store.count([counted(0, "parent")])
    store.close()
    for _ in range(10):
        store.count([counted(0, "parent")])
    ends = [os.waitpid(child, 0)[1] for child in children]
    return ends, [(one.task, one.runs) for one in store.counts(0)]


def test_a_fork_of_which_python_is_not_told_disturbs_nobody(place):
    # In a process without other threads: one that waits for the interpreter keeps it from a fork.
    ((ends, counts),) = in_processes(1, lambda _: forked_in_secret(place))
    assert ends == [0, 0, 0]
    others = [("0", 20), ("1", 20), ("2", 20)] if place.shared else []
    assert counts == [*others, ("parent", 21)]
