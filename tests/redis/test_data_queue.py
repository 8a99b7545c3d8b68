"""What a data queue promises, on each kind of Redis."""

import gc
import json
import logging
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import servers
from tests.conformance.places import in_processes, in_threads, until
from uwsgi_tasks import data_queue
from uwsgi_tasks.data_queue import DataQueue, PutInterrupted
from uwsgi_tasks.errors import InvalidTask, NotJson, RedisAway
from uwsgi_tasks.redis.client import Client


@pytest.fixture
def durable():
    with servers.serve(servers.Redis, durable=True) as server:
        yield server


def maker(url):
    """What declares queues in the Redis at *url*."""
    client = Client(url)

    def make(name="items", namespace="", **options):
        return DataQueue(name, client=lambda: client, namespace=lambda: namespace, **options)

    make.client = client
    return make


@pytest.fixture
def make(server):
    make = maker(server.url)
    yield make
    make.client.close()


@pytest.fixture
def make_one(one_server):
    """As `make`, but for one kind of Redis: of what is the same in all."""
    make = maker(one_server.url)
    yield make
    make.client.close()


@pytest.fixture
def queue(make):
    """Items come back for ever."""
    return make(attempts=0, lease=60)


def end_lease(queue, items):
    """Let the lease of *items* end now, and not when it would."""
    assert queue.give_back(items, failed=True) == set(items)


def numbers(found):
    return list(found.values())


def shown(queue, state=None):
    return [entry.item for entry in queue.look(state)]


def states(queue):
    return Counter(entry.state for entry in queue)


# --- putting and getting


def test_items_are_read_once_and_in_the_order_in_which_they_were_put(make):
    queue = make()
    queue.put(["a", "b"])
    queue.put(["c"])
    assert [numbers(queue.get(2)), numbers(queue.get(2)), queue.get(2)] == [["a", "b"], ["c"], {}]


def test_the_ids_that_put_returns_are_those_that_get_returns(queue):
    ids = queue.put(["a", "b"])
    assert queue.get(2) == dict(zip(ids, ["a", "b"], strict=True))


def test_more_items_than_one_step_takes_are_all_there_in_their_order(queue):
    ids = queue.put(range(2500))
    found = [*queue.get(1000).items(), *queue.get(1000).items(), *queue.get(1000).items()]
    assert found == list(zip(ids, range(2500), strict=True))


def test_nothing_may_be_put(queue):
    assert (queue.put([]), len(queue)) == ([], 0)


def test_without_a_lease_nothing_is_held(make):
    queue = make()
    queue.put(["a"])
    found = queue.get()
    assert (queue.done(found), queue.sizes()) == (set(), (0, 0, 0, 0))


def test_namespaces_keep_queues_of_one_name_apart(make):
    make(namespace="shop").put(["a"])
    assert (make().get(), make(namespace="blog").get()) == ({}, {})
    assert numbers(make(namespace="shop").get()) == ["a"]


def test_queues_are_apart(make):
    make("a").put([1])
    make("b").put([2])
    assert (numbers(make("a").get(5)), numbers(make("b").get(5))) == ([1], [2])


def test_all_that_was_put_may_be_finished_without_a_trace(make_one, one_server):
    queue = make_one(attempts=2, lease=60, dead_letter=True)
    queue.put(range(300))
    end_lease(queue, queue.get(100))
    queue.give_back(queue.get(10))
    queue.put(["later"], delay=0.01)
    until(lambda: queue.sizes().delayed == 0)
    while found := queue.get(7):
        queue.done(found)
    assert one_server.cli("KEYS", "*") == ""


# --- items are JSON

VALUES = [
    [],
    {},
    [[], {}],
    {"a": []},
    12345678901234567,
    -(2**200),
    0.1 + 0.2,
    1e308,
    -5e-324,
    "",
    'é\u2028 \x00 \n\t" \\ ] , [',
    "half of a pair: \ud83d",
    None,
    True,
    {"1": {"": [0, -1, None, False]}},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_an_item_is_the_same_when_it_is_given_out_again(make, value):
    queue = make(attempts=2, lease=60, dead_letter=True)
    queue.put([value])
    first = queue.get()
    queue.give_back(first)
    again = queue.get()
    end_lease(queue, again)
    last = queue.get()
    end_lease(queue, last)
    dead = queue.dead.get(lease=0)
    assert [repr(found) for found in (first, again, last, dead)] == [repr(dict(first))] * 4
    assert repr(numbers(first)) == repr([value])


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(ANY_JSON, min_size=1, max_size=5))
def test_whatever_json_can_say_comes_back_as_it_was(make_one, values):
    queue = make_one(attempts=0, lease=60)
    queue.put(values)
    queue.give_back(queue.get(5))
    found = queue.get(5)
    queue.done(found)
    assert repr(numbers(found)) == repr(values)


class Text(str):
    """As an enum's, or one that is safe for HTML."""

    __slots__ = ()


def test_kinds_of_texts_and_numbers_come_out_as_plain_ones_and_tuples_as_lists(queue):
    queue.put([Text("a"), (1, (2,)), {Text("b"): Text("c")}])
    found = numbers(queue.get(3))
    assert found == ["a", [1, [2]], {"b": "c"}]
    assert {type(one) for one in (found[0], *found[2], *found[2].values())} == {str}


ENDLESS = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (b"bytes", "it holds a bytes"),
        ({"a": [b"bytes"]}, "it holds a bytes"),
        ({1: "a"}, "it holds the key 1, which is no text"),
        ([{None: "a"}], "it holds the key None, which is no text"),
        (float("nan"), "it holds a number"),
        ([float("inf")], "it holds a number"),
        ({1, 2}, "it holds a set"),
        (datetime(2030, 1, 1, tzinfo=UTC), "it holds a datetime.datetime"),
        (time.gmtime(0), "it holds a time.struct_time"),
        (10**5000, "it holds a number"),
        (ENDLESS, "it holds itself"),
    ],
    # Not by the items: one of them is a number that Python does not write down.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_json_would_change_or_refuse_is_refused_and_nothing_is_put(make_one, item, words):
    queue = make_one()
    with pytest.raises(NotJson, match=f"data queue items: item 1002 .*{words}.*; put what"):
        queue.put([*range(1001), item, "another"])
    assert len(queue) == 0


@pytest.mark.parametrize("items", ["abc", b"abc", {"a": 1}])
def test_what_is_no_list_of_items_is_refused(make_one, items):
    with pytest.raises(InvalidTask, match="takes a list of items"):
        make_one().put(items)


# --- what other programs put


def push(server, *entries, key="{uwsgi_tasks:data:items}:waiting"):
    server.cli("RPUSH", key, *entries)


def test_another_program_puts_json_with_an_id_or_without(server, queue):
    push(server, 'mine1 {"a": 1.5}', '{"b": 2}', "[3]")
    found = queue.get(3)
    assert numbers(found) == [{"a": 1.5}, {"b": 2}, [3]]
    assert next(iter(found)) == "mine1"
    assert len(set(found)) == 3
    end_lease(queue, found)
    again = queue.get(3)
    assert (again, queue.done(again)) == (found, set(found))


def test_what_is_not_json_comes_as_bytes_and_hides_nothing(server, queue):
    push(server, 'a {"a": 1}', "b {", "c [1,2", "d 3]", 'e "e"', "f nothing like it")
    found = queue.get(6)
    assert numbers(found) == [{"a": 1}, b"{", b"[1,2", b"3]", "e", b"nothing like it"]
    assert shown(queue) == [found[one] for one in sorted(found)]


@pytest.mark.parametrize(
    "texts",
    [
        ["1,2", "[3", "4]"],
        ["[1", "2]", "3,4"],
        ["1", "2,3,[4", "5]", "6"],
        ['{"a": [1', '2], "b": 3}', "4,5,6"],
        ['"a', 'b"', "1,2,3"],
        ["1", "", "2"],
    ],
)
def test_what_is_json_only_with_its_neighbours_does_not_come_as_theirs(server, queue, texts):
    push(server, *(f"id{number} {text}" for number, text in enumerate(texts)))
    found = queue.get(len(texts))
    wanted = [int(text) if text.isdigit() else text.encode() for text in texts]
    assert found == {f"id{number}": item for number, item in enumerate(wanted)}


def test_looking_shows_what_has_no_id_yet(server, queue):
    push(server, '{"a": 1}')
    assert [(entry.id, entry.item) for entry in queue] == [("", {"a": 1})]


# --- leases


def test_an_item_is_invisible_until_its_lease_ends(make):
    queue = make(attempts=0, lease=0.5)
    start = time.monotonic()
    queue.put(["a"])
    first = queue.get()
    assert queue.get() == {}
    until(lambda: queue.sizes().waiting)
    assert time.monotonic() - start >= 0.5
    assert queue.get() == first


def test_a_lease_may_be_a_timedelta(make):
    queue = make(lease=timedelta(minutes=5))
    queue.put(["a"])
    queue.get()
    assert 290 < seconds_left(queue) <= 300


def seconds_left(queue):
    (entry,) = queue.look("held")
    return (entry.due - datetime.now(UTC)).total_seconds()


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_an_item_is_given_out_as_often_as_its_attempts_say_and_no_oftener(make, attempts, caplog):
    queue = make(attempts=attempts, lease=60)
    ids = queue.put(["a", "b"])
    times = 0
    with caplog.at_level(logging.WARNING):
        while found := queue.get(2):
            times += 1
            assert [*found] == ids
            assert caplog.messages == []
            end_lease(queue, found)
    assert (times, len(queue)) == (attempts, 0)
    assert caplog.messages == [
        f"data queue items: 2 items are dropped, their attempts are used up: {', '.join(ids)}"
    ]


def test_a_hundred_dropped_items_are_one_line_that_counts_them(make_one, caplog):
    queue = make_one(attempts=1, lease=60)
    ids = queue.put(range(100))
    end_lease(queue, queue.get(100))
    assert queue.sizes() == (0, 0, 0, 0)
    (line,) = caplog.messages
    assert line.startswith("data queue items: 100 items are dropped")
    assert line.endswith(f"{ids[9]} ...")


def test_without_a_limit_an_item_comes_back_each_time(queue):
    queue.put(["a"])
    for _ in range(20):
        end_lease(queue, queue.get())
    (entry,) = queue
    assert (entry.item, entry.attempts) == ("a", 20)


def test_what_comes_back_goes_behind_the_others(queue):
    queue.put(["bad", "good", "fine"])
    end_lease(queue, queue.get())
    assert numbers(queue.get(3)) == ["good", "fine", "bad"]


def test_who_declares_other_attempts_changes_nothing_for_what_is_held(make, caplog):
    careful, careless = make(attempts=5, lease=60), make()
    careful.put(["a"])
    end_lease(careful, careful.get())
    assert (len(careless), careless.sizes(), shown(careless)) == (1, (1, 0, 0, 0), ["a"])
    assert caplog.messages == []


def test_a_read_may_have_a_lease_of_its_own(make):
    queue = make(attempts=0)
    queue.put(["a", "b"])
    queue.get(lease=500)
    assert 490 < seconds_left(queue) <= 500
    assert numbers(queue.get(lease=None)) == ["b"]
    assert queue.sizes() == (0, 1, 0, 0)


@pytest.mark.parametrize("lease", [0, None, 0.0, timedelta(0)])
def test_a_read_without_a_lease_removes_from_a_queue_that_has_one(make_one, lease):
    queue = make_one(attempts=0, lease=60)
    queue.put(["a"])
    assert numbers(queue.get(lease=lease)) == ["a"]
    assert len(queue) == 0


# --- finishing


@pytest.mark.parametrize(
    "kind", [dict, list, tuple, set, iter, lambda found: (one for one in found), dict.keys]
)
def test_whatever_gives_the_ids_is_done(queue, kind):
    ids = queue.put(["a", "b"])
    assert queue.done(kind(queue.get(2))) == set(ids)
    assert len(queue) == 0


def test_a_thousand_and_more_are_done_at_once(queue):
    queue.put(range(1500))
    found = {**queue.get(1000), **queue.get(1000)}
    assert (queue.done(found), len(queue)) == (set(found), 0)


def test_done_says_what_was_still_held(queue):
    queue.put(["a", "b", "c"])
    first, second = queue.get(1), queue.get(2)
    end_lease(queue, second)
    assert queue.done({**first, **second}) == set(first)
    assert queue.done(first) == set()
    assert numbers(queue.get(5)) == ["b", "c"]


def test_a_refreshed_lease_ends_so_much_later_than_now(queue):
    queue.put(["a"])
    found = queue.get(lease=1)
    assert queue.refresh(found, 300) == set(found)
    assert 290 < seconds_left(queue) <= 300
    queue.refresh(found)
    assert 50 < seconds_left(queue) <= 60


def test_a_refreshed_item_does_not_come_back_before(make):
    queue = make(attempts=0, lease=0.5)
    queue.put(["a", "b"])
    found = queue.get(1)
    queue.get(1)
    queue.refresh(found, 60)
    until(lambda: queue.sizes().waiting)
    assert numbers(queue.get(2)) == ["b"]


def test_refresh_says_what_is_still_held(queue):
    queue.put(["a", "b", "c"])
    found = queue.get(3)
    first, *others = found
    queue.done([first])
    assert queue.refresh(found) == set(others)
    assert queue.refresh([]) == set()


def test_a_queue_without_a_lease_refreshes_for_as_long_as_it_is_told(make):
    queue = make()
    queue.put(["a"])
    found = queue.get(lease=5)
    with pytest.raises(InvalidTask, match="needs a lease"):
        queue.refresh(found)
    assert queue.refresh(found, 7) == set(found)


# --- the fence


def test_an_item_that_another_reader_has_is_no_more_the_first_ones(queue):
    queue.put(["a"])
    late = queue.get(lease=0.05)
    current = queue.get(wait=30)
    ids = list(late)
    assert [late == current, queue.refresh(late), queue.done(ids), queue.give_back(ids)] == [
        True, set(), set(), set(),
    ]  # fmt: skip
    assert queue.sizes() == (0, 1, 0, 0)
    assert queue.done(current) == set(current)


def test_an_item_that_waits_again_is_no_more_its_readers(queue):
    queue.put(["a"])
    late = queue.get(lease=0.05)
    until(lambda: queue.sizes().waiting)
    assert (queue.done(late), len(queue)) == (set(), 1)


def test_who_is_late_may_finish_what_nobody_has_looked_for(make):
    # A microsecond: it is over before anybody can do anything.
    queue = make(attempts=1, lease=0.000001)
    queue.put(["a"])
    found = queue.get()
    assert queue.done(found) == set(found)


@pytest.mark.parametrize("failed", [True, False])
@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("delay", [0, 60])
def test_what_was_given_back_is_no_more_its_readers(make, failed, attempts, delay):
    queue = make(attempts=attempts, lease=60, dead_letter=True)
    queue.put(["a"])
    found = queue.get()
    queue.give_back(found, delay=delay, failed=failed)
    assert (queue.done(found), queue.give_back(found), queue.refresh(found)) == (set(),) * 3
    assert len(queue) + len(queue.dead) == 1


def test_the_same_reader_cannot_finish_what_it_gave_back_and_got_again_by_its_first_ids(queue):
    queue.put(["a"])
    first = queue.get()
    queue.give_back(first)
    second = queue.get()
    assert (queue.done(first), queue.done(second)) == (set(), set(second))


def test_an_item_that_lives_again_is_nobodys_from_its_first_life(make):
    queue = make(attempts=1, lease=60, dead_letter=True)
    queue.put(["a"])
    first = queue.get()
    end_lease(queue, first)
    queue.requeue()
    second = queue.get()
    assert (queue.done(first), queue.done(second)) == (set(), set(second))


def test_an_id_is_a_text_whose_receipt_may_travel(queue):
    queue.put(["a", "b", "c"])
    first, second, third = queue.get(3)
    assert json.loads(json.dumps(first)) == first
    assert queue.done([json.loads(json.dumps(first.receipt))]) == {first}
    assert queue.done(pickle.loads(pickle.dumps([second, third]))) == {second, third}


def test_an_id_without_a_receipt_is_refused_as_it_does_not_say_who_holds_the_item(queue):
    (id_,) = queue.put(["a"])
    queue.get()
    for work in (queue.done, queue.refresh, queue.give_back):
        with pytest.raises(InvalidTask, match="does not say who holds the item"):
            work([id_])
    with pytest.raises(InvalidTask, match="list of ids"):
        queue.done(id_)


# --- giving back


def test_what_is_given_back_is_first_again_in_its_order_and_no_attempt_is_used_up(make):
    queue = make(attempts=1, lease=60)
    queue.put(["a", "b", "c"])
    for _ in range(5):
        found = queue.get(2)
        assert numbers(found) == ["a", "b"]
        assert queue.give_back(found) == set(found)
    assert [entry.attempts for entry in queue] == [0, 0, 0]


def test_what_is_given_back_later_waits_until_then(queue):
    queue.put(["a"])
    found = queue.get()
    queue.give_back(found, delay=0.5)
    assert queue.sizes() == (0, 0, 1, 0)
    assert queue.get(wait=30) == found


def test_what_failed_for_the_last_time_is_dead_at_once(make):
    queue = make(attempts=2, lease=60, dead_letter=True)
    queue.put(["a", "b"])
    end_lease(queue, queue.get(2))
    queue.give_back(queue.get(2), delay=60, failed=True)
    assert queue.sizes() == (0, 0, 0, 2)
    assert {entry.attempts for entry in queue.dead} == {2}


def test_what_failed_comes_back_later_and_an_attempt_is_used_up(make):
    queue = make(attempts=2, lease=60)
    queue.put(["a"])
    queue.give_back(queue.get(), delay=0.5, failed=True)
    assert queue.get() == {}
    assert numbers(queue.get(wait=30)) == ["a"]
    (entry,) = queue
    assert entry.attempts == 2


def test_only_what_is_still_held_is_given_back(queue):
    queue.put(["a", "b"])
    first, second = queue.get(1), queue.get(1)
    queue.done(first)
    assert queue.give_back({**first, **second}) == set(second)
    assert queue.give_back(first) == set()
    assert shown(queue) == ["b"]


# --- delays


def test_delayed_items_come_in_the_order_in_which_they_are_due(queue):
    queue.put(["late"], delay=1.6)
    queue.put(["early"], delay=0.6)
    queue.put(["now"])
    assert queue.sizes() == (1, 0, 2, 0)
    assert numbers(queue.get(3)) == ["now"]
    assert numbers(queue.get(1, wait=30)) == ["early"]
    assert numbers(queue.get(3, wait=30)) == ["late"]


def test_a_delayed_item_is_not_there_before_and_counts_until_then(make):
    queue = make()
    start = time.monotonic()
    queue.put(["a"], delay=timedelta(seconds=0.5))
    assert (queue.get(), len(queue)) == ({}, 1)
    until(queue.get)
    assert time.monotonic() - start >= 0.5


def test_of_many_that_are_due_at_once_none_is_missed(make):
    queue = make()
    queue.put(range(3500), delay=0.01)
    until(lambda: queue.sizes().waiting == 3500)
    found = [*(numbers(queue.get(1000)) for _ in range(4))]
    assert list(chain(*found)) == list(range(3500))


def test_thousands_that_have_used_up_their_attempts_hide_nothing(make, caplog):
    queue, endless = make(attempts=1, lease=60), make(attempts=0, lease=60)
    queue.put(range(2500))
    found = {**queue.get(1000), **queue.get(1000), **queue.get(1000)}
    queue.put(["a"])
    last = endless.get()
    queue.refresh(found, 0.000001)
    queue.refresh(last, 0.000001)
    assert queue.get() == last
    assert queue.sizes() == (0, 1, 0, 0)
    counts = [int(line.split()[3]) for line in caplog.messages]
    assert sum(counts) == 2500


# --- dead items


@pytest.fixture
def mortal(make):
    """One attempt, and then they are dead."""
    return make(attempts=1, lease=60, dead_letter=True)


def kill(queue, items):
    """Put *items*, and let them die."""
    queue.put(items)
    found = queue.get(1000)
    end_lease(queue, found)
    return found


def test_dead_items_are_read_like_any_others(mortal):
    dead = kill(mortal, ["a", "b", "c"])
    assert mortal.get(5) == {}
    found = mortal.dead.get(2)
    assert numbers(found) == ["a", "b"]
    assert set(found) < set(dead)
    assert (len(mortal), len(mortal.dead), mortal.dead.sizes()) == (0, 3, (1, 2, 0, 0))
    assert mortal.dead.done(found) == set(found)
    assert numbers(mortal.dead.get(2)) == ["c"]


def test_items_are_among_the_dead_when_their_last_lease_ends_though_nobody_reads(make):
    queue = make(attempts=1, lease=0.05, dead_letter=True)
    queue.put(["a"])
    queue.get()
    until(queue.dead.get)


def test_a_dead_item_says_when_and_where_it_died_and_how_often_it_was_given_out(make):
    queue = make(attempts=3, lease=60, dead_letter=True)
    before = datetime.now(UTC) - timedelta(seconds=1)
    queue.put(["a"])
    while found := queue.get():
        end_lease(queue, found)
    (entry,) = queue.dead
    assert (entry.item, entry.queue, entry.attempts) == ("a", "items", 3)
    assert before < entry.died_at < datetime.now(UTC) + timedelta(seconds=1)
    queue.dead.get()
    assert list(queue.dead) == [entry._replace(state="held", due=next(iter(queue.dead)).due)]


def test_the_living_have_no_death(queue):
    queue.put(["a"])
    (entry,) = queue
    assert (entry.died_at, entry.queue, entry.due) == (None, "", None)


def test_no_dead_item_is_ever_dropped(mortal):
    kill(mortal, ["a"])
    for _ in range(10):
        end_lease(mortal.dead, mortal.dead.get())
    assert shown(mortal.dead) == ["a"]


def test_without_a_lease_dead_items_are_removed_as_they_are_read(mortal):
    kill(mortal, ["a"])
    assert numbers(mortal.dead.get(lease=0)) == ["a"]
    assert len(mortal.dead) == 0


def test_all_dead_items_live_again_with_all_their_attempts(make):
    queue = make(attempts=2, lease=60, dead_letter=True)
    ids = queue.put(range(1500))
    while found := queue.get(1000):
        end_lease(queue, found)
    assert queue.sizes() == (0, 0, 0, 1500)
    assert queue.requeue() == set(ids)
    assert queue.sizes() == (1500, 0, 0, 0)
    assert queue.requeue() == set()
    times = 0
    while found := queue.get(1000):
        times += len(found)
        end_lease(queue, found)
    assert times == 3000


def test_dead_items_that_were_read_live_again(mortal):
    kill(mortal, ["a", "b", "c"])
    found = mortal.dead.get(2)
    first, second = found
    mortal.dead.done([first])
    assert mortal.requeue(found) == {second}
    assert mortal.sizes() == (1, 0, 0, 1)
    assert mortal.get() == {second: "b"}


def test_a_dead_item_that_somebody_holds_stays_with_him(mortal):
    kill(mortal, ["a", "b"])
    mortal.dead.get()
    mortal.requeue()
    assert (shown(mortal), shown(mortal.dead)) == (["b"], ["a"])


def test_what_was_put_among_the_dead_lives_as_well(mortal):
    (id_,) = mortal.dead.put(["a"])
    assert mortal.requeue() == {id_}
    assert mortal.get() == {id_: "a"}


def test_dead_items_are_asked_about_at_their_queue(mortal):
    with pytest.raises(InvalidTask, match="ask the queue itself"):
        _ = mortal.dead.dead
    with pytest.raises(InvalidTask, match="the queue itself that they go back to"):
        mortal.dead.requeue()


@pytest.fixture
def hospital(make):
    """Two queues whose dead items go to one."""
    options = {"attempts": 1, "lease": 60, "dead_letter": "hospital"}
    return make("a", **options), make("b", **options), make("hospital")


def test_dead_items_go_to_the_queue_of_that_name(hospital):
    a, b, third = hospital
    kill(a, range(700))
    kill(a, range(700))
    kill(b, ["b"])
    assert (a.sizes().dead, b.sizes().dead, len(a.dead), len(third)) == (1400, 1401, 1401, 1401)
    assert Counter(entry.queue for entry in third) == {"a": 1400, "b": 1}
    assert {entry.attempts for entry in third} == {1}


def test_from_the_queue_of_another_name_those_live_again_that_were_read(hospital):
    a, b, third = hospital
    kill(a, ["a", "gone"])
    kill(b, ["b"])
    assert len(a.dead) + len(b.dead) == 5
    found = third.get(3, lease=60)
    mine = [one for one, item in found.items() if item != "b"]
    third.done(mine[1:])
    assert a.requeue(mine) == set(mine[:1])
    assert (shown(a), shown(b), shown(third)) == (["a"], [], ["b"])
    (entry,) = a
    assert (entry.attempts, entry.died_at) == (0, None)


def test_the_queue_of_another_name_does_not_say_whose_items_shall_live_again(hospital):
    with pytest.raises(InvalidTask, match="hospital may have dead items of others"):
        hospital[0].requeue()


def test_dead_items_that_were_left_on_the_way_are_carried_by_the_next_one(make):
    kill(make(attempts=1, lease=60, dead_letter=True), ["a"])
    there = make(dead_letter="hospital")
    assert there.get() == {}
    assert (shown(make("hospital")), make().sizes()) == (["a"], (0, 0, 0, 0))


def test_a_reader_has_its_items_though_dead_ones_cannot_be_carried(make_one, one_server, caplog):
    rights = "on >secret resetkeys ~{uwsgi_tasks:data:items}* +@all"
    one_server.cli("ACL", "SETUSER", "narrow", *rights.split())
    path = f"{one_server.folder}/socket"
    queue = maker(f"unix://narrow:secret@{path}")(attempts=1, lease=60, dead_letter="hospital")
    kill(queue, ["dead"])
    queue.put(["a"])
    assert numbers(queue.get()) == ["a"]
    (line,) = caplog.messages
    assert line.startswith("data queue items: dead items stay here for now: Redis at")
    one_server.cli("ACL", "DELUSER", "narrow")
    assert (make_one().sizes().dead, len(make_one("hospital"))) == (1, 0)


# --- looking


def test_looking_takes_nothing(queue):
    queue.put(["a", "b"])
    queue.put(["c"], delay=60)
    held = queue.get()
    for _ in range(3):
        assert shown(queue) == ["b", "a", "c"]
        assert queue.sizes() == (1, 1, 1, 0)
    assert (numbers(queue.get(5)), queue.done(held)) == (["b"], set(held))


def test_every_page_is_shown(queue):
    queue.put(range(350))
    queue.get(150)
    queue.put(range(350, 600), delay=60)
    assert Counter(shown(queue)) == Counter(range(600))
    assert states(queue) == {"waiting": 200, "held": 150, "delayed": 250}


def test_those_that_wait_are_shown_in_their_order_though_others_are_taken_meanwhile(queue):
    queue.put(range(1000))
    entries = queue.look("waiting")
    first = [entry.item for entry in islice(entries, 100)]
    queue.get(250)
    queue.put(range(1000, 1100))
    assert first == list(range(100))
    assert [entry.item for entry in entries] == list(range(250, 1100))


def test_none_is_skipped_when_some_are_given_back_meanwhile(queue):
    queue.put(range(300))
    found = queue.get(50)
    entries = queue.look("waiting")
    first = [entry.item for entry in islice(entries, 100)]
    queue.give_back(found)
    assert [*first, *(entry.item for entry in entries)] == list(range(50, 300))


def test_one_state_is_shown_alone(queue):
    queue.put(["a", "b"])
    queue.get()
    assert (shown(queue, "waiting"), shown(queue, "held"), shown(queue, "delayed")) == (
        ["b"], ["a"], [],
    )  # fmt: skip
    with pytest.raises(InvalidTask, match="waiting, held, delayed"):
        next(queue.look("dead"))


def test_an_entry_says_when_it_is_due(queue):
    queue.put(["a"], delay=100)
    (entry,) = queue
    assert (entry.state, entry.attempts) == ("delayed", 0)
    assert 90 < (entry.due - datetime.now(UTC)).total_seconds() <= 100


def test_the_length_counts_all_but_the_dead(mortal):
    kill(mortal, ["dead"])
    mortal.put(["a", "b"])
    mortal.put(["c"], delay=60)
    mortal.get()
    assert (len(mortal), mortal.sizes()) == (3, (1, 1, 1, 1))


def test_clear_takes_all_but_the_dead_and_says_how_many(mortal):
    kill(mortal, ["dead"])
    mortal.put(["a", "b"])
    mortal.put(["c"], delay=60)
    held = mortal.get()
    assert mortal.clear() == 3
    assert (mortal.sizes(), mortal.done(held)) == ((0, 0, 0, 1), set())
    assert (mortal.dead.clear(), mortal.sizes().dead) == (1, 0)


# --- waiting


@pytest.fixture
def told(monkeypatch):
    """Who waits looks again only if somebody tells them."""
    monkeypatch.setattr(data_queue, "_LOOK", 60.0)


def test_who_waits_gets_what_is_put_meanwhile(queue, server, told):
    def work(index):
        if index:
            until(lambda: waiting_at(server))
            return queue.put(["a"])
        start = time.monotonic()
        return list(queue.get(wait=30)), time.monotonic() - start

    (found, took), ids = in_threads(2, work)
    assert found == ids
    assert took < 20


def waiting_at(server):
    """How many wait for items, in Redis itself?"""
    members = getattr(server, "members", [server])
    return sum(int(one.info("clients")["blocked_clients"]) for one in members)


def test_who_waits_in_vain_gets_nothing(queue):
    start = time.monotonic()
    assert queue.get(wait=timedelta(seconds=0.3)) == {}
    assert 0.3 <= time.monotonic() - start < 10


def test_who_does_not_wait_has_the_answer_at_once(queue):
    start = time.monotonic()
    assert queue.get() == {}
    assert time.monotonic() - start < 10


def test_who_waits_gets_an_item_as_soon_as_it_is_due(queue, told):
    start = time.monotonic()
    queue.put(["a"], delay=0.3)
    assert numbers(queue.get(wait=30)) == ["a"]
    assert 0.29 <= time.monotonic() - start < 20


def test_who_waits_hears_of_what_is_due_before_all_others(queue, server, told):
    queue.put(["late"], delay=60)

    def work(index):
        if index:
            until(lambda: waiting_at(server))
            queue.put(["early"], delay=0.1)
            return None
        start = time.monotonic()
        return numbers(queue.get(wait=30)), time.monotonic() - start

    (found, took), _ = in_threads(2, work)
    assert found == ["early"]
    assert took < 20


def test_who_waits_gets_what_another_reader_has_left(make):
    queue = make(attempts=2, lease=0.3)
    queue.put(["a"])
    first = queue.get()
    assert queue.get(wait=30) == first


def test_all_who_wait_are_served_by_what_is_put_in_one_step(make_one, one_server, told):
    queue = make_one(attempts=0, lease=60)

    def work(index):
        if index == 4:
            until(lambda: waiting_at(one_server) == 4)
            queue.put(range(4))
            return None
        start = time.monotonic()
        return numbers(queue.get(wait=30)), time.monotonic() - start

    *found, _ = in_threads(5, work)
    assert sorted(chain(*(items for items, _ in found))) == [0, 1, 2, 3]
    assert max(took for _, took in found) < 20


def test_who_waits_does_not_ask_again_and_again(make_one, one_server):
    queue = make_one()
    queue.get()
    one_server.cli("CONFIG", "RESETSTAT")
    queue.get(wait=2.5)
    assert "calls=" in one_server.info("commandstats")["cmdstat_evalsha"]
    calls = int(one_server.info("commandstats")["cmdstat_evalsha"].split("calls=")[1].split(",")[0])
    assert calls <= 5


def open_files():
    return set(os.listdir("/proc/self/fd"))


def test_who_waits_in_vain_may_do_so_for_ever(make_one):
    queue = make_one()
    queue.get(wait=0.01)
    before = open_files()
    for _ in range(150):
        queue.get(wait=0.001)
    assert open_files() == before


def told_once(queue, server):
    """Wait for an item, and let another thread put it meanwhile."""

    def put():
        until(lambda: waiting_at(server))
        queue.put(["a"])

    other = threading.Thread(target=put, daemon=True)
    other.start()
    assert numbers(queue.get(wait=30)) == ["a"]
    other.join()
    gc.collect()


def test_who_was_told_is_told_again_by_the_same_connection(make_one, one_server):
    queue = make_one()
    told_once(queue, one_server)
    waiter, before = queue._waiter(), open_files()
    told_once(queue, one_server)
    assert queue._waiter() is waiter
    assert open_files() == before


def test_what_tells_a_reader_is_closed_with_its_thread_or_its_queue(make_one, one_server):
    queue = make_one()
    queue.get()
    before = open_files()
    told_once(queue, one_server)
    assert len(open_files()) > len(before)
    del queue
    assert open_files() == before
    queue = make_one()
    in_threads(1, lambda _: told_once(queue, one_server))
    assert open_files() == before


def test_after_a_fork_both_wait_by_themselves(make):
    queue = make(attempts=0, lease=60)
    queue.put(["a"], delay=0.05)
    queue.put(["b"], delay=0.1)
    assert queue.get(wait=30)

    def work(_):
        return numbers(queue.get(wait=30))

    queue.put(["c"], delay=0.2)
    assert sorted(chain(*in_processes(2, work))) == ["b", "c"]
    queue.put(["d"], delay=0.1)
    assert numbers(queue.get(wait=30)) == ["d"]


def test_who_was_told_waits_again_after_redis_was_restarted(durable):
    queue = maker(durable.url)()

    def work(index):
        if index:
            until(lambda: waiting_at(durable))
            queue.put(["a"])
            return None
        assert queue.get(wait=30)
        durable.restart()
        until(lambda: not is_away(queue))
        queue.put(["b"], delay=0.05)
        return numbers(queue.get(wait=30))

    assert in_threads(2, work) == [["b"], None]


def is_away(queue):
    try:
        queue.sizes()
    except RedisAway:
        return True
    return False


def test_who_waits_is_told_of_what_is_given_back(queue, server, told):
    queue.put(["a"])
    held = queue.get()

    def work(index):
        if index:
            until(lambda: waiting_at(server))
            queue.give_back(held)
            return None
        start = time.monotonic()
        return queue.get(wait=30), time.monotonic() - start

    (found, took), _ = in_threads(2, work)
    assert found == held
    assert took < 20


def test_who_waits_is_told_of_what_lives_again(mortal, server, told):
    dead = kill(mortal, ["a"])
    assert len(mortal.dead) == 1

    def work(index):
        if index:
            until(lambda: waiting_at(server))
            mortal.requeue()
            return None
        start = time.monotonic()
        return mortal.get(wait=30), time.monotonic() - start

    (found, took), _ = in_threads(2, work)
    assert found == dead
    assert took < 20


# --- many at once


def test_each_item_goes_to_one_of_racing_readers(make):
    queue = make(attempts=0, lease=60)
    queue.put(range(3000))

    def read(index):
        seen = []
        while found := queue.get(1 + 7 * index):
            seen += found.values()
            assert queue.done(found) == set(found)
        return seen

    seen = in_processes(3, read)
    assert sorted(chain(*seen)) == list(range(3000))
    assert len(queue) == 0


def test_readers_and_writers_race_and_nothing_is_lost_or_doubled(make_one):
    queue = make_one(attempts=0, lease=60)
    writers = multiprocessing.get_context("fork").Value("i", 2)

    def write(first):
        for start in range(first, first + 1000, 10):
            queue.put(range(start, start + 10))

    def read():
        while True:
            # Asked first: what a writer has put is there when it has ended.
            is_over = not writers.value
            found = queue.get(20, wait=0.2)
            if is_over and not found:
                return
            yield from found.values()
            queue.done(found)

    def work(index):
        if index >= 2:
            return list(read())
        try:
            write(1000 * index)
        finally:
            with writers.get_lock():
                writers.value -= 1
        return []

    seen = in_processes(4, work)
    assert sorted(chain(*seen)) == list(range(2000))


def test_only_one_of_racing_readers_brings_a_dead_item_back(mortal):
    kill(mortal, range(500))

    def revive(_):
        return len(mortal.requeue())

    assert sum(in_processes(3, revive)) == 500
    assert sorted(shown(mortal)) == list(range(500))


def test_what_a_killed_reader_held_comes_back_to_another(make):
    queue = make(attempts=2, lease=0.5)
    queue.put(range(10))
    pid = os.fork()
    if not pid:
        queue.get(10)
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    until(lambda: queue.sizes().waiting == 10)
    assert {one.attempts for one in queue} == {1}
    found = queue.get(10, wait=30)
    assert numbers(found) == list(range(10))
    assert queue.done(found) == set(found)
    assert len(queue) == 0


READERS = 3


def read_for_ever(url, path):
    """Take items, write them down, finish them; until it is killed."""
    queue = maker(url)(attempts=0, lease=0.3)
    # Of its own: what one that is killed has half written is not continued by another.
    with Path(f"{path}.{os.getpid()}").open("a") as seen:
        while True:
            try:
                found = queue.get(50, wait=1)
                seen.write("".join(f"{item}\n" for item in found.values()))
                seen.flush()
                queue.done(found)
            except RedisAway:
                time.sleep(0.02)


def test_nothing_is_lost_when_readers_and_redis_are_killed_at_random(durable, tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    context = multiprocessing.get_context("fork")
    path = tmp_path / "seen"

    def start():
        reader = context.Process(target=read_for_ever, args=(durable.url, path), daemon=True)
        reader.start()
        return reader

    readers = [start() for _ in range(READERS)]
    queue = maker(durable.url)(attempts=0, lease=0.3)
    todo = list(range(6000))
    try:
        while todo:
            count = dice.randrange(1, 300)
            try:
                queue.put(todo[:count])
            except PutInterrupted:
                durable.start()
                continue
            todo = todo[count:]
            what = dice.randrange(READERS * 2)
            if what < READERS:
                readers[what].kill()
                readers[what].join()
                readers[what] = start()
            elif what == READERS:
                durable.kill()
            time.sleep(dice.random() * 0.02)
        if not durable.is_running:
            durable.start()
        until(lambda: not is_away(queue) and len(queue) == 0)
    finally:
        for reader in readers:
            reader.kill()
            reader.join()
    # What is half written is not finished: it has come back, and is whole elsewhere.
    lines = chain(*(one.read_text().split("\n")[:-1] for one in tmp_path.glob("seen.*")))
    assert set(map(int, lines)) == set(range(6000))
    assert queue.sizes() == (0, 0, 0, 0)


# --- Redis away


def test_nothing_is_lost_when_redis_is_killed_that_writes_a_log(durable):
    queue = maker(durable.url)(attempts=1, lease=60, dead_letter=True)
    kill(queue, ["dead"])
    queue.put(["a", "b"])
    queue.put(["later"], delay=60)
    held = queue.get()
    durable.kill()
    with pytest.raises(RedisAway):
        queue.get()
    durable.start()
    assert queue.sizes() == (1, 1, 1, 1)
    assert queue.done(held) == set(held)
    assert (numbers(queue.get()), numbers(queue.dead.get())) == (["b"], ["dead"])


def test_nothing_that_was_put_is_uncertain_when_redis_is_away(durable):
    queue = maker(durable.url)()
    durable.kill()
    with pytest.raises(PutInterrupted, match="of 3 items 0 are in data queue items") as raised:
        queue.put([1, 2, 3])
    assert raised.value.ids == []
    durable.start()
    assert len(queue) == 0


def test_who_is_interrupted_knows_which_items_are_in():
    with servers.serve(servers.Redis, maxmemory="3mb") as server:
        queue = maker(server.url)()
        items = [f"{number} {'x' * 100}" for number in range(50_000)]
        with pytest.raises(PutInterrupted, match="maxmemory") as raised:
            queue.put(items)
        ids = raised.value.ids
        assert 0 < len(ids) == len(queue)
        assert [entry.id for entry in queue] == ids
        assert f"of 50000 items {len(ids)} are in" in str(raised.value)


def test_a_reader_goes_on_when_redis_has_forgotten_its_scripts(make, server):
    queue = make(attempts=0, lease=60)
    queue.put(["a"])
    queue.get()
    server.cli("SCRIPT", "FLUSH")
    queue.put(["b"])
    assert numbers(queue.get()) == ["b"]


def test_who_waits_says_that_redis_went_away(durable):
    queue = maker(durable.url)()

    def work(index):
        if index:
            until(lambda: waiting_at(durable))
            durable.kill()
            return None
        with pytest.raises(RedisAway):
            queue.get(wait=30)
        return "told"

    assert in_threads(2, work) == ["told", None]


def test_a_user_who_may_touch_our_keys_alone_may_do_all_of_it(redis_tls):
    queue = maker(redis_tls.url)(attempts=1, lease=60, dead_letter=True)
    kill(queue, ["a", "b"])
    queue.requeue(queue.dead.get())
    queue.put(["c"], delay=0.01)
    assert queue.get(wait=5)
    held = queue.get(wait=5)
    assert queue.refresh(held) == queue.done(held) == set(held)
    assert (shown(queue), shown(queue.dead)) == (["a"], ["b"])
    assert (queue.clear(), queue.dead.clear()) == (1, 1)


# --- declaring


def nowhere():
    raise AssertionError("nothing is opened when a queue is declared")


def test_a_queue_is_declared_before_there_is_a_redis_or_a_setting():
    queue = DataQueue("items", client=nowhere, namespace=nowhere, attempts=3, lease=5)
    assert (repr(queue), queue.name) == ("DataQueue('items')", "items")
    assert repr(queue.dead) == "DataQueue('items').dead"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("", {}, "name"),
        ("a b", {}, "without spaces"),
        ("a{b", {}, "without spaces or braces"),
        ("a\n", {}, "without spaces"),
        ("x" * 201, {}, "up to 200"),
        (b"items", {}, "b'items'"),
        ("items", {"attempts": -1}, "attempts must be"),
        ("items", {"attempts": 1.5}, "attempts must be"),
        ("items", {"attempts": True}, "attempts must be"),
        ("items", {"lease": -1}, "lease must not be negative"),
        ("items", {"lease": "5"}, "lease must be seconds"),
        ("items", {"lease": float("inf")}, "must end"),
        ("items", {"lease": 1e12}, "lease must not be longer"),
        ("items", {"dead_letter": 1}, "dead_letter="),
        ("items", {"dead_letter": "a b"}, "without spaces"),
        ("items", {"dead_letter": "items"}, "another queue"),
    ],
)
def test_what_cannot_be_declared_is_refused(name, options, words):
    with pytest.raises(InvalidTask, match=words):
        DataQueue(name, client=nowhere, namespace=nowhere, **options)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda queue: queue.get(0), "from 1 to 1000: 0"),
        (lambda queue: queue.get(1001), "from 1 to 1000"),
        (lambda queue: queue.get("2"), "from 1 to 1000"),
        (lambda queue: queue.get(True), "from 1 to 1000"),
        (lambda queue: queue.get(lease=-1), "lease must not be negative"),
        (lambda queue: queue.get(wait=-1), "wait must not be negative"),
        (lambda queue: queue.put([1], delay=-1), "delay must not be negative"),
        (lambda queue: queue.refresh([], 0), "needs a lease"),
        (lambda queue: queue.give_back([], delay="1"), "delay must be seconds"),
        (lambda queue: queue.done([1]), "does not say who holds"),
    ],
)
def test_what_cannot_be_asked_is_refused(call, words):
    with pytest.raises(InvalidTask, match=words):
        call(DataQueue("items", client=nowhere, namespace=nowhere, lease=5))
