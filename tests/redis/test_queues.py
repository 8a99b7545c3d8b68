"""What queues of jobs promise, step by step, on each kind of Redis; no worker has a part in it."""

import re
import time
from itertools import count

import pytest

from tests.conformance.places import until
from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.model import Stop
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.redis.queues import LEASE, Claim, End, Queues

HOUR = 3600.0
_numbers = count(1)


class Hand(Queues):
    """Queues, and what a worker does with them, by hand."""

    def put(self, *ids, queue="default", **options):
        """Submit jobs of these ids, in one step."""
        words = [word for id_ in ids for word in (id_, f"payload of {id_}")]
        self.submit(queue, words, **options)

    def claim(self, most=1, *names, **options):
        return self.stepped(most, *names, **options).claims

    def take(self, most=1, *names):
        """Claim; return the ids."""
        return [one.id for one in self.claim(most, *names)]

    def stepped(self, most=1, *names, ends=(), mark=""):
        return self.step(names or ("default",), ends, most, f"worker:{next(_numbers)}{mark}")

    def end(self, *claims, **next_):
        """Say that these have ended; return the ids of those that were not ours any more."""
        ends = [End(claim.queue, claim.id, claim.token, **next_) for claim in claims]
        return self.stepped(0, *{claim.queue for claim in claims}, ends=ends).lost

    def drain(self, most=100, *names):
        """Claim and end until nothing comes; return the ids."""
        ids = []
        while claims := self.claim(most, *names):
            ids += [claim.id for claim in claims]
            self.end(*claims)
        return ids

    def key(self, suffix, queue="default"):
        return f"{self.root(queue)}:{suffix}"

    def expire(self, *claims):
        """Let the leases of these be over."""
        for claim in claims:
            self.client.call("ZADD", self.key("run", claim.queue), 1, claim.id)

    def crash(self, *claims):
        """Let the worker of these die, and somebody notice it; nobody claims them."""
        self.expire(*claims)
        most = len(claims)
        found = self.claim(most, *{claim.queue for claim in claims})
        for claim in found:
            self.client.call("ZREM", self.key("run", claim.queue), claim.id)
            self.client.call("HDEL", self.key("own", claim.queue), claim.id)
            self.client.call("LPUSH", self.key("suspects", claim.queue), claim.id)

    def pass_time(self, *ids):
        """Let what waits for a time be due."""
        for id_ in ids:
            self.client.call("ZADD", self.key("due"), 1, id_)

    def wakes(self, queue="default"):
        """How many tokens there are for those that sleep."""
        return self.client.call("LLEN", self.key("wake", queue))

    def calm(self, queue="default"):
        self.client.call("DEL", self.key("wake", queue))


def connected(url, namespace=""):
    return Hand(Client(url), namespace)


@pytest.fixture
def queues(server):
    queues = connected(server.url)
    yield queues
    queues.client.close()


@pytest.fixture
def one(one_server):
    queues = connected(one_server.url)
    yield queues
    queues.client.close()


def keys(server):
    """The names of all that is kept, on all servers."""
    members = getattr(server, "members", [server])
    return sorted(key for one in members for key in one.cli("KEYS", "*").split("\n") if key)


# --- submitting


def test_what_was_submitted_is_claimed_with_its_payload(queues):
    queues.submit("default", ["a", b"\0\xff{}"])
    (claim,) = queues.claim()
    assert (claim.queue, claim.id, claim.payload) == ("default", "a", b"\0\xff{}")


def test_thousands_are_submitted_in_one_step_and_in_their_order(queues):
    ids = [f"job {number}" for number in range(10_001)]
    queues.put(*ids, priority=3, lease=5)
    assert queues.sizes("default") == (10_001, 0, 0)
    assert queues.drain() == ids


def test_thousands_of_a_later_time_are_submitted_in_one_step(queues):
    queues.put(*map(str, range(5_000)), at=time.time() + HOUR)
    assert queues.sizes("default") == (0, 5_000, 0)


def test_an_id_may_be_of_any_bytes(queues):
    id_ = b"\xff\0 {}:".decode("utf-8", "surrogateescape")
    queues.put(id_)
    assert queues.find(id_).id == id_
    assert queues.drain() == [id_]


def test_queues_are_known_by_their_names(queues):
    queues.put("a", queue="mail")
    queues.put("b", queue="bälle")
    assert queues.names() == ["bälle", "mail"]


def test_namespaces_keep_queues_of_one_name_apart(server):
    shop, blog = connected(server.url, "shop"), connected(server.url, "blog")
    shop.put("a")
    assert (blog.take(), blog.names(), blog.find("a"), blog.cancel("a", Stop.ASKED)) == (
        [],
        [],
        None,
        None,
    )
    assert shop.take() == ["a"]


# --- the order


def test_the_first_one_comes_first(queues):
    for id_ in "abc":
        queues.put(id_)
    assert [queues.take(), queues.take(), queues.take()] == [["a"], ["b"], ["c"]]


def test_a_more_important_one_comes_before_all_that_are_less(queues):
    for priority in (9, 0, 5, None, 1):
        for which in (1, 2):
            queues.put(f"{priority} {which}", priority=priority)
    assert queues.take(20) == [
        *("0 1", "0 2", "1 1", "1 2", "5 1", "5 2"),
        *("9 1", "9 2", "None 1", "None 2"),
    ]


def test_a_priority_beyond_the_last_is_the_last(queues):
    queues.put("a", priority=70)
    queues.put("b")
    assert queues.take(2) == ["a", "b"]


def test_the_first_queue_is_served_before_all_others(one):
    one.put("low", queue="low", priority=0)
    one.put("high 1", "high 2", queue="high")
    assert one.take(3, "high", "low") == ["high 1", "high 2", "low"]


def test_in_a_cluster_the_first_queue_that_has_any_is_served(redis_cluster):
    queues = connected(redis_cluster.url)
    queues.put("a", queue="one")
    queues.put("b", "c", queue="two")
    assert queues.drain(3, "empty", "one", "two") == ["a", "b", "c"]
    assert queues.stepped(3, "empty", "one", "two").wait is None
    redis_cluster.flush()


def test_queues_that_nobody_asked_for_are_left_alone(queues):
    queues.put("a", queue="mail")
    assert queues.take(1, "default") == []
    assert queues.take(1, "mail") == ["a"]


# --- delays


def test_what_is_of_the_future_is_not_claimed(queues):
    queues.put("a", at=time.time() + HOUR)
    assert (queues.take(), queues.sizes("default")) == ([], (0, 1, 0))


def test_what_is_due_is_claimed_and_not_a_moment_before(queues):
    at = time.time() + 0.25
    queues.put("a", at=at)
    until(lambda: queues.take() == ["a"])
    assert time.time() >= at


def test_what_is_due_comes_by_its_time_and_behind_what_waits(queues):
    at = time.time() + HOUR
    queues.put("later", at=at + 1)
    queues.put("sooner", at=at)
    queues.put("at once")
    queues.client.call("ZADD", queues.key("due"), 1, "sooner", 2, "later")
    assert queues.take(3) == ["at once", "sooner", "later"]


def test_what_is_due_keeps_its_priority(queues):
    queues.put("plain")
    queues.put("important", at=time.time() + HOUR, priority=2)
    queues.pass_time("important")
    assert queues.take(2) == ["important", "plain"]


def test_of_thousands_that_are_due_none_is_forgotten(queues):
    ids = [f"{number:04}" for number in range(1_000)]
    queues.put(*ids, at=time.time() + HOUR)
    queues.client.call("DEL", queues.key("due"))
    for start in range(0, 1_000, 100):
        words = [word for id_ in ids[start : start + 100] for word in (1, id_)]
        queues.client.call("ZADD", queues.key("due"), *words)
    assert queues.drain() == ids


# --- how long to wait


def test_without_jobs_nobody_knows_how_long_to_wait(queues):
    assert queues.stepped(1, "default", "mail").wait is None


def test_one_waits_until_the_first_is_due(queues):
    queues.put("later", at=time.time() + 2 * HOUR)
    queues.put("sooner", at=time.time() + HOUR)
    assert queues.stepped().wait == pytest.approx(HOUR, abs=5)


def test_one_waits_until_the_first_lease_is_over(queues):
    queues.put("a", lease=500)
    queues.claim()
    assert 495 < queues.stepped().wait <= 500


def test_of_several_queues_the_first_one_to_have_something_counts(queues):
    queues.put("later", at=time.time() + 2 * HOUR)
    queues.put("sooner", at=time.time() + HOUR, queue="mail")
    assert queues.stepped(1, "default", "mail").wait == pytest.approx(HOUR, abs=5)


# --- leases, and the fence


def test_what_was_claimed_is_nobody_elses(queues):
    queues.put("a")
    assert (queues.take(), queues.take(), queues.sizes("default")) == (["a"], [], (0, 0, 1))


def test_a_lease_is_that_of_the_job(queues):
    queues.put("usual")
    queues.put("long", lease=300)
    usual, long = queues.claim(2)
    assert (usual.lease, long.lease) == (LEASE, 300)
    scores = [
        float(queues.client.call("ZSCORE", queues.key("run"), one)) for one in ("usual", "long")
    ]
    assert 268 < (scores[1] - scores[0]) / 1000 < 272


def test_what_has_ended_is_gone(queues):
    queues.put("a")
    (claim,) = queues.claim()
    assert (queues.end(claim), queues.find("a"), queues.take()) == ([], None, [])


def test_ends_and_claims_are_one_step(queues):
    queues.put("a", "b")
    (claim,) = queues.claim()
    step = queues.stepped(1, ends=[End("default", "a", claim.token)])
    assert (step.lost, [one.id for one in step.claims]) == ([], ["b"])
    assert queues.sizes("default") == (0, 0, 1)


def test_what_ends_twice_is_said_to_be_lost(queues):
    queues.put("a")
    (claim,) = queues.claim()
    queues.end(claim)
    assert queues.end(claim) == ["a"]


def test_who_has_another_token_cannot_end_it(queues):
    queues.put("a")
    (claim,) = queues.claim()
    assert queues.end(claim._replace(token=b"worker:0")) == ["a"]
    assert queues.end(claim) == []


def test_who_has_another_token_cannot_put_anything_in_its_place(queues):
    queues.put("a")
    (claim,) = queues.claim()
    assert queues.end(claim._replace(token=b"worker:0"), following=b"mine") == ["a"]
    assert queues.find("a").payload == b"payload of a"


def test_who_has_another_token_cannot_extend_its_lease(queues):
    queues.put("a")
    (claim,) = queues.claim()
    before = queues.client.call("ZSCORE", queues.key("run"), "a")
    assert queues.touch([claim._replace(token=b"worker:0", lease=HOUR)]) == [-1]
    assert queues.client.call("ZSCORE", queues.key("run"), "a") == before


def test_who_has_another_token_cannot_give_it_back(queues):
    queues.put("a")
    (claim,) = queues.claim()
    assert queues.release([claim._replace(token=b"worker:0")]) == [-0.001]
    assert queues.take() == []


def test_a_lease_that_is_over_may_be_extended_while_nobody_else_has_the_job(queues):
    queues.put("a")
    (claim,) = queues.claim()
    queues.expire(claim)
    assert (queues.touch([claim]), queues.take()) == ([0], [])


def test_what_ends_after_its_lease_has_ended_while_nobody_else_has_it(queues):
    queues.put("a")
    (claim,) = queues.claim()
    queues.expire(claim)
    assert (queues.end(claim), queues.find("a")) == ([], None)


def test_a_lease_counts_from_when_it_is_extended(queues):
    queues.put("a")
    (claim,) = queues.claim()
    assert queues.touch([claim._replace(lease=HOUR)]) == [0]
    assert queues.stepped().wait == pytest.approx(HOUR, abs=5)


def test_each_of_many_leases_is_answered(queues):
    queues.put("a", "b", "c")
    a, b, c = queues.claim(3)
    queues.end(b)
    queues.cancel("c", Stop.KILL)
    assert queues.touch([a, b, c]) == [Stop.NOT, -1, Stop.KILL]


def test_when_its_lease_is_over_somebody_else_gets_it_and_the_first_end_is_refused(queues):
    queues.put("a")
    (first,) = queues.claim()
    queues.expire(first)
    (second,) = queues.claim()
    assert second.id == "a"
    assert queues.end(first) == ["a"]
    assert queues.end(first, following=b"mine") == ["a"]
    assert queues.touch([first]) == [-1]
    assert queues.release([first]) == [-0.001]
    assert (queues.end(second), queues.find("a")) == ([], None)


def test_a_lease_that_holds_is_not_taken_away(queues):
    queues.put("a", lease=60)
    queues.claim()
    assert queues.take() == []


# --- those whose worker has died


def test_what_has_lost_its_worker_comes_before_all_others(queues):
    queues.put("a")
    claims = queues.claim()
    queues.put("important", priority=0)
    queues.expire(*claims)
    assert [queues.take(), queues.take()] == [["a"], ["important"]]


def test_what_has_lost_its_worker_is_claimed_alone(queues):
    queues.put("a", "b", "c")
    queues.expire(*queues.claim(2))
    assert [queues.take(10) for _ in range(4)] == [["a"], ["b"], ["c"], []]


def test_what_has_lost_its_worker_is_not_claimed_beside_what_another_queue_has(one):
    one.put("suspect", queue="low")
    one.expire(*one.claim(1, "low"))
    one.put("high", queue="high")
    one.put("also low", queue="low")
    assert one.take(10, "high", "low") == ["high"]
    assert one.take(10, "high", "low") == ["suspect"]
    assert one.take(10, "high", "low") == ["also low"]


def test_a_crash_of_what_was_claimed_alone_is_counted(queues):
    queues.put("a", lease=300)
    seen = []
    for _ in range(3):
        (claim,) = queues.claim()
        seen.append((claim.crashes, claim.lease))
        queues.expire(claim)
    assert seen == [(0, 300), (1, 300), (2, 300)]


def test_a_crash_of_many_counts_for_none_of_them(queues):
    queues.put("a", "b", "c")
    queues.expire(*queues.claim(3))
    assert [queues.claim(3)[0].crashes for _ in range(3)] == [0, 0, 0]


def test_a_crash_of_many_out_of_several_queues_counts_for_none_of_them(one):
    one.put("a", queue="high")
    one.put("b", queue="low")
    one.expire(*one.claim(2, "high", "low"))
    claims = [one.claim(2, "high", "low")[0] for _ in range(2)]
    assert [(claim.id, claim.crashes) for claim in claims] == [("a", 0), ("b", 0)]


def test_a_crash_of_many_out_of_several_queues_of_a_cluster_counts_for_none(redis_cluster):
    queues = connected(redis_cluster.url)
    queues.put("a", queue="high")
    queues.put("b", "c", queue="low")
    names = ("high", "low")
    queues.expire(*queues.claim(3, *names), *queues.claim(3, *names))
    found = [queues.claim(3, *names) for _ in range(3)]
    assert all(len(claims) == 1 for claims in found)
    assert {claim.id: claim.crashes for (claim,) in found} == {"a": 0, "b": 0, "c": 0}
    redis_cluster.flush()


def crashes(queues, times, mark):
    """How many crashes each worker is told of that claims the job, and dies."""
    seen = []
    for _ in range(times):
        (claim,) = queues.claim(1, mark=mark)
        seen.append(claim.crashes)
        queues.expire(claim)
    return seen


def test_crashes_of_a_worker_that_may_run_others_beside_it_are_counted_twice_at_most(queues):
    queues.put("a")
    assert crashes(queues, 5, mark="+") == [0, 1, 2, 2, 2]
    assert crashes(queues, 3, mark="") == [2, 3, 4]


def test_a_crash_counts_of_who_has_said_that_it_runs_nothing_else(queues):
    queues.put("a")
    crashes(queues, 3, mark="+")
    (claim,) = queues.claim(1, mark="+")
    assert queues.runs_alone(claim)
    queues.expire(claim)
    assert queues.claim(1, mark="+")[0].crashes == 3


def test_who_has_said_that_it_runs_nothing_else_still_has_its_job(queues):
    queues.put("a")
    (claim,) = queues.claim(1, mark="+")
    queues.runs_alone(claim)
    assert (queues.touch([claim]), queues.end(claim)) == ([0], [])


def test_who_has_lost_its_job_is_told_so_when_it_wants_to_run_it_alone(queues):
    queues.put("a")
    (claim,) = queues.claim(1, mark="+")
    queues.expire(claim)
    queues.claim(1, mark="+")
    assert not queues.runs_alone(claim)


def test_the_next_attempt_begins_with_no_crashes(queues):
    queues.put("a")
    queues.expire(*queues.claim())
    (claim,) = queues.claim()
    queues.end(claim, following=b"attempt 2")
    assert queues.claim()[0].crashes == 0


def test_who_has_lost_its_worker_and_was_given_back_keeps_its_crashes(queues):
    queues.put("a")
    queues.expire(*queues.claim())
    queues.release(queues.claim())
    assert queues.claim()[0].crashes == 1


def test_of_hundreds_that_have_lost_their_worker_none_is_forgotten(queues):
    ids = [f"{number:03}" for number in range(250)]
    queues.put(*ids)
    claims = [claim for _ in range(3) for claim in queues.claim(100)]
    queues.expire(*claims)
    assert sorted(queues.drain()) == ids


# --- going on


def test_the_next_attempt_takes_the_place_of_the_first(queues):
    queues.put("a", priority=2, lease=300)
    queues.put("b", priority=2)
    (claim,) = queues.claim()
    queues.put("least")
    assert queues.end(claim, following=b"attempt 2") == []
    claims = queues.claim(3)
    assert [one.id for one in claims] == ["b", "a", "least"]
    assert (claims[1].payload, claims[1].lease) == (b"attempt 2", 300)


def test_the_next_attempt_may_wait_for_its_time(queues):
    queues.put("a")
    queues.end(*queues.claim(), following=b"attempt 2", at=time.time() + HOUR)
    assert (queues.take(), queues.sizes("default")) == ([], (0, 1, 0))
    queues.pass_time("a")
    assert queues.claim()[0].payload == b"attempt 2"


def test_ends_and_next_attempts_come_in_any_order(queues):
    queues.put(*"abcd")
    claims = queues.claim(4)
    followings = [None, b"again", None, b"again"]
    ends = [
        End("default", claim.id, claim.token, following)
        for claim, following in zip(claims, followings, strict=True)
    ]
    assert queues.stepped(0, ends=ends).lost == []
    assert [(one.id, one.payload) for one in queues.claim(4)] == [("b", b"again"), ("d", b"again")]


# --- giving back


def test_what_is_given_back_is_first_again_and_in_its_order(queues):
    queues.put(*"abcd")
    queues.put("important", priority=1)
    important, a, b = queues.claim(3)
    assert queues.release([important, a, b]) == [0, 0, 0]
    assert queues.take(10) == ["important", "a", "b", "c", "d"]


def test_what_is_given_back_with_a_delay_waits(queues):
    queues.put("a")
    queues.release(queues.claim(), HOUR)
    assert (queues.take(), queues.sizes("default")) == ([], (0, 1, 0))
    assert queues.stepped().wait == pytest.approx(HOUR, abs=5)


def test_what_was_given_back_is_not_its_workers_any_more(queues):
    queues.put("a")
    claims = queues.claim()
    queues.release(claims)
    assert (queues.end(*claims), queues.touch(claims)) == (["a"], [-1])


def test_of_several_that_are_given_back_those_that_are_lost_are_named(queues):
    queues.put(*"abc")
    claims = queues.claim(3)
    queues.end(claims[1])
    assert queues.release(claims) == [0, -0.001, 0]
    assert queues.take(3) == ["a", "c"]


def test_how_long_a_task_has_been_unknown_is_told(queues):
    queues.put("a")
    assert queues.release(queues.claim(), unknown=True) == [0]
    queues.client.call("HINCRBY", queues.key("more"), "u:a", -60_000)
    (found,) = queues.release(queues.claim(), unknown=True)
    assert 60 <= found < 70


def test_a_task_is_unknown_from_the_first_time_until_it_is_run(queues):
    queues.put("a")
    queues.release(queues.claim(), unknown=True)
    queues.client.call("HINCRBY", queues.key("more"), "u:a", -60_000)
    queues.end(*queues.claim(), following=b"attempt 2")
    assert queues.release(queues.claim(), unknown=True) == [0]


# --- what runs once at most


def test_what_runs_once_at_most_says_so(queues):
    queues.put("a", lease=0)
    (claim,) = queues.claim()
    assert (claim.is_once, claim.lease) == (True, LEASE)


def test_what_runs_once_at_most_and_was_not_taken_off_is_given_to_others(queues):
    queues.put("a", lease=0)
    queues.expire(*queues.claim())
    (claim,) = queues.claim()
    assert (claim.id, claim.is_once) == ("a", True)


def test_what_was_taken_off_is_gone_whatever_becomes_of_its_worker(queues):
    queues.put("a", lease=0)
    queues.end(*queues.claim())
    assert (queues.sizes("default"), queues.take()) == ((0, 0, 0), [])


# --- cancelling


def test_what_waits_and_is_cancelled_never_runs(queues):
    queues.put("a", "b", "c")
    runs, found = queues.cancel("b", Stop.ASKED)
    assert (runs, found.id, found.queue, found.payload) == (False, "b", "default", b"payload of b")
    assert queues.drain() == ["a", "c"]


def test_what_is_of_the_future_and_is_cancelled_never_runs(queues):
    queues.put("a", at=time.time() + HOUR)
    assert queues.cancel("a", Stop.ASKED)[0] is False
    assert (queues.stepped().wait, queues.sizes("default")) == (None, (0, 0, 0))


def test_what_has_lost_its_worker_and_is_cancelled_never_runs(queues):
    queues.put("a", "b")
    queues.crash(*queues.claim(1))
    assert queues.cancel("a", Stop.ASKED)[0] is False
    assert queues.take(2) == ["b"]


def test_what_runs_is_asked_to_stop(queues):
    queues.put("a")
    claims = queues.claim()
    assert queues.cancel("a", Stop.ASKED)[0] is True
    assert (queues.touch(claims), queues.progress("default", "a")) == ([Stop.ASKED], Stop.ASKED)


def test_who_asks_for_less_takes_nothing_back(queues):
    queues.put("a")
    claims = queues.claim()
    queues.cancel("a", Stop.KILL)
    queues.cancel("a", Stop.ASKED)
    assert queues.touch(claims) == [Stop.KILL]


@pytest.mark.parametrize("how", ["goes on", "goes on later", "is given back", "loses its worker"])
def test_what_was_cancelled_while_it_ran_must_not_run_again(queues, how):
    queues.put("a")
    claims = queues.claim()
    queues.cancel("a", Stop.ASKED)
    if how == "is given back":
        queues.release(claims)
    elif how == "loses its worker":
        queues.expire(*claims)
    else:
        queues.end(*claims, following=b"again", at=time.time() + HOUR if "later" in how else None)
    (claim,) = queues.claim()
    assert claim.crashes == -1
    assert (queues.end(claim), queues.find("a")) == ([], None)


def test_what_nobody_has_cannot_be_cancelled(queues):
    queues.put("a")
    queues.end(*queues.claim())
    assert (queues.cancel("a", Stop.ASKED), queues.cancel("b", Stop.ASKED)) == (None, None)


def test_a_job_is_cancelled_in_whatever_queue_it_is(queues):
    queues.put("a", queue="mail")
    queues.put("b")
    assert queues.cancel("a", Stop.ASKED)[1].queue == "mail"
    assert queues.drain(9, "default", "mail") == ["b"]


def test_a_job_is_found_among_thousands_of_queues_in_a_few_trips(one, monkeypatch):
    names = [f"tenant-{number:04}" for number in range(2500)]
    one.client.call("SADD", "uwsgi_tasks:queues", *names)
    one.put("first", queue=names[3])
    one.put("last", queue=names[-3])
    trips, take = [], Client._take

    def count_and_take(client):
        trips.append(client)
        return take(client)

    monkeypatch.setattr(Client, "_take", count_and_take)

    def asked(question, *words):
        trips.clear()
        found = question(*words)
        # One for the names, one for each thousand of them; and one where the job is, or two, if
        # Redis does not know that script yet.
        assert len(trips) <= 6
        return found

    assert asked(one.find, "first").queue == names[3]
    assert asked(one.find, "last").queue == names[-3]
    assert asked(one.find, "none") is None
    assert asked(one.cancel, "first", Stop.ASKED)[1].queue == names[3]
    assert asked(one.cancel, "first", Stop.ASKED) is None
    asked(one.forget, "last")
    assert asked(one.find, "last") is None


def test_who_uses_more_and_more_queues_does_not_remember_them_all(one, monkeypatch):
    for number in range(600):
        one.note(f"old-{number}")
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 31)
    for number in range(1000):
        one.note(f"new-{number}")
    assert len(one._noted) == 1000
    assert len(one.names()) == 1600


def test_what_is_left_of_many_that_were_cancelled_is_skipped(queues):
    queues.put(*map(str, range(300)))
    for number in range(299):
        queues.cancel(str(number), Stop.ASKED)
    assert queues.take(5) == ["299"]


# --- the same id again


def test_an_id_that_is_in_a_list_twice_is_claimed_once_in_one_step(queues):
    queues.put("a", "b", "a")
    assert (queues.take(5), queues.take(5)) == (["a", "b"], [])


def test_an_id_that_is_in_a_list_twice_is_claimed_once_in_several_steps(queues):
    queues.put("a")
    queues.put("a")
    (claim,) = queues.claim()
    assert (queues.take(), queues.end(claim), queues.take()) == ([], [], [])


def test_an_id_that_is_in_a_list_twice_does_not_run_before_its_next_attempt_is_due(queues):
    queues.put("a")
    queues.put("a")
    queues.end(*queues.claim(), following=b"attempt 2", at=time.time() + HOUR)
    assert (queues.take(), queues.sizes("default")) == ([], (0, 1, 0))


def test_what_is_submitted_again_for_later_waits(queues):
    queues.put("a")
    queues.put("a", at=time.time() + HOUR)
    assert (queues.take(), queues.sizes("default")) == ([], (0, 1, 0))


def test_what_was_forgotten_is_its_workers_no_more_and_may_be_submitted_again(queues):
    queues.put("a", priority=1)
    (first,) = queues.claim()
    queues.cancel("a", Stop.KILL)
    queues.forget("a")
    queues.submit("default", ["a", "anew"])
    assert queues.end(first) == ["a"]
    (second,) = queues.claim()
    assert (second.payload, second.crashes) == (b"anew", 0)


# --- purging


def test_a_purge_takes_all_that_waits_and_says_what_that_was(queues):
    queues.put(*map(str, range(450)))
    queues.put("important", priority=1)
    queues.put("later", at=time.time() + HOUR)
    queues.put("suspect", queue="default", priority=0)
    queues.crash(*queues.claim(1))
    found = dict(queues.purge("default"))
    assert set(found) == {*map(str, range(450)), "important", "later", "suspect"}
    assert found["later"] == b"payload of later"
    assert (queues.sizes("default"), queues.take()) == ((0, 0, 0), [])


def test_a_purge_leaves_what_runs(queues):
    queues.put("a", "b", "c", lease=300, priority=3)
    claims = queues.claim(2)
    queues.progress("default", "a", "1 2")
    assert [id_ for id_, _ in queues.purge("default")] == ["c"]
    assert (queues.sizes("default"), queues.touch(claims)) == ((0, 0, 2), [0, 0])
    assert (queues.find("a").progress, queues.find("a").priority) == ("1 2", 3)
    queues.release(claims)
    assert [claim.lease for claim in queues.claim(2)] == [300, 300]


def test_a_purge_does_not_count_what_was_cancelled(queues):
    queues.put("a", "b")
    queues.cancel("a", Stop.ASKED)
    assert [id_ for id_, _ in queues.purge("default")] == ["b"]


def test_a_purge_of_one_queue_leaves_the_others(queues):
    queues.put("a")
    queues.put("b", queue="mail")
    list(queues.purge("mail"))
    assert queues.take(2, "default", "mail") == ["a"]


# --- looking


def test_it_is_known_how_many_wait_are_delayed_and_run(queues):
    queues.put(*"abcd")
    queues.put("e", at=time.time() + HOUR)
    queues.claim(3)
    queues.cancel("d", Stop.ASKED)
    assert queues.sizes("default") == (0, 1, 3)
    assert queues.sizes("empty") == (0, 0, 0)


def test_it_is_known_where_a_job_stands(queues):
    at = time.time() + HOUR
    queues.put("a", at=at, priority=4, queue="mail")
    found = queues.find("a")
    assert (found.queue, found.id, found.payload) == ("mail", "a", b"payload of a")
    assert (found.priority, found.token, found.worker, found.stop) == (4, b"", "", Stop.NOT)
    assert found.at == pytest.approx(at, abs=0.01)


def test_it_is_known_who_runs_a_job(queues):
    queues.put("a")
    (claim,) = queues.claim()
    queues.cancel("a", Stop.ASKED)
    found = queues.find("a")
    assert (found.token, found.worker, found.stop, found.at) == (
        claim.token,
        "worker",
        Stop.ASKED,
        None,
    )


def test_it_is_known_how_far_a_job_has_come_while_it_runs(queues):
    queues.put("a")
    queues.progress("default", "a", "1 5")
    assert queues.find("a").progress == ""
    (claim,) = queues.claim()
    queues.progress("default", "a", "2 5")
    assert queues.find("a").progress == "2 5"
    queues.end(claim, following=b"again")
    assert queues.find("a").progress == ""


def test_what_waits_is_shown_in_the_order_in_which_it_would_be_taken_page_by_page(queues):
    at = time.time() + HOUR
    later = [f"later {number:03}" for number in range(250)]
    for number, id_ in enumerate(later):
        queues.put(id_, at=at + number)
    plain, important = [f"{number:03}" for number in range(450)], ["x", "y"]
    queues.put(*plain)
    queues.put(*important, priority=0)
    assert [found.id for found in queues.waiting("default")] == [*important, *plain, *later]


def test_what_runs_and_what_was_cancelled_is_not_shown_among_what_waits(queues):
    queues.put(*"abc")
    queues.claim()
    queues.cancel("b", Stop.ASKED)
    assert [found.id for found in queues.waiting("default")] == ["c"]
    assert [found.id for found in queues.running("default")] == ["a"]


def test_all_that_runs_is_shown(queues):
    ids = [f"{number:03}" for number in range(450)]
    queues.put(*ids)
    for _ in range(5):
        queues.claim(100)
    assert sorted(found.id for found in queues.running("default")) == ids


def test_looking_changes_nothing(one, one_server):
    one.put(*"abc")
    one.claim()
    before = {key: one_server.cli("DUMP", key) for key in keys(one_server)}
    assert list(one.running("default")) + list(one.waiting("default"))
    assert (one.find("a"), one.sizes("default")) != (None, None)
    assert {key: one_server.cli("DUMP", key) for key in keys(one_server)} == before


# --- answers that were lost


class Losing(Client):
    """A client that does not get the answer to its next step."""

    loses = False

    def run(self, script, keys, args=()):
        reply = super().run(script, keys, args)
        if self.loses:
            self.loses = False
            raise RedisAway("the answer was lost")
        return reply


@pytest.fixture
def losing(server):
    queues = Hand(Losing(server.url), "")
    yield queues
    queues.client.close()


def test_what_was_claimed_by_a_step_whose_answer_was_lost_can_be_given_back(losing):
    losing.put(*"abc", lease=300)
    losing.put("d", priority=2)
    losing.client.loses = True
    with pytest.raises(RedisAway):
        losing.step(["default"], [], 3, "worker:lost")
    assert losing.take(9) == ["c"]
    assert losing.reclaim("default", ["worker:other", "worker:lost"]) == 3
    claims = losing.claim(9)
    assert claims[0].id == "d"
    assert {(claim.id, claim.crashes, claim.lease) for claim in claims[1:]} == {
        ("a", 0, 300),
        ("b", 0, 300),
    }


def test_what_was_claimed_alone_and_whose_answer_was_lost_has_no_crash(losing):
    losing.put("a")
    losing.client.loses = True
    with pytest.raises(RedisAway):
        losing.step(["default"], [], 1, "worker:lost")
    assert losing.reclaim("default", ["worker:lost"]) == 1
    assert losing.claim()[0].crashes == 0


def test_what_is_said_again_because_the_answer_was_lost_ends_nothing_else(losing):
    losing.put("a")
    (claim,) = losing.claim()
    losing.client.loses = True
    with pytest.raises(RedisAway):
        losing.end(claim, following=b"attempt 2")
    (second,) = losing.claim()
    assert losing.end(claim, following=b"attempt 2") == ["a"]
    assert (losing.end(second), losing.find("a")) == ([], None)


def test_who_reclaims_leaves_the_jobs_of_others(queues):
    queues.put("a", "b")
    queues.claim(2)
    assert queues.reclaim("default", ["worker:0", "worker"]) == 0
    assert queues.sizes("default") == (0, 0, 2)


# --- waking those who sleep


def test_a_token_is_left_for_each_job_and_eight_at_most(queues):
    queues.put("a", "b", "c")
    assert queues.wakes() == 3
    queues.put(*map(str, range(20)))
    assert queues.wakes() == 8
    queues.put("d")
    assert queues.wakes() == 8


def test_a_job_of_the_future_wakes_if_it_is_earlier_than_all_others(queues):
    at = time.time() + HOUR
    queues.put("a", at=at)
    assert queues.wakes() == 1
    queues.put("b", at=at + 1)
    assert queues.wakes() == 1
    queues.put("c", at=at - 1)
    assert queues.wakes() == 2


def test_who_takes_all_that_it_may_leaves_a_token_for_others(queues):
    queues.put(*"abc")
    queues.calm()
    queues.claim(2)
    assert queues.wakes() == 1
    queues.claim(2)
    assert queues.wakes() == 1


def test_who_takes_the_last_ones_leaves_none(queues):
    queues.put(*"abc")
    queues.calm()
    queues.claim(3)
    assert queues.wakes() == 0


def test_who_claims_a_suspect_leaves_a_token_for_what_it_did_not_take(queues):
    queues.put("a")
    queues.expire(*queues.claim())
    queues.put("b")
    queues.calm()
    assert queues.take(9) == ["a"]
    assert queues.wakes() == 1


def test_who_takes_all_that_it_may_leaves_a_token_in_each_queue(one):
    for queue in ("high", "low", "empty"):
        one.put("a", "b", queue=queue)
    one.drain(9, "empty")
    for queue in ("high", "low", "empty"):
        one.calm(queue)
    one.claim(1, "high", "low", "empty")
    assert [one.wakes(queue) for queue in ("high", "low", "empty")] == [1, 1, 0]


def test_a_next_attempt_wakes_others_if_its_own_worker_takes_no_more(queues):
    queues.put("a")
    claims = queues.claim()
    queues.calm()
    queues.end(*claims, following=b"again")
    assert queues.wakes() == 1


def test_a_next_attempt_of_the_future_wakes_if_it_is_earlier_than_all_others(queues):
    at = time.time() + HOUR
    queues.put("a", "b")
    queues.put("later", at=at)
    a, b = queues.claim(2)
    queues.calm()
    queues.end(a, following=b"again", at=at + 1)
    assert queues.wakes() == 0
    queues.end(b, following=b"again", at=at - 1)
    assert queues.wakes() == 1


def test_what_is_given_back_wakes(queues):
    queues.put("a", "b")
    queues.claim(1)
    claims = queues.claim(1)
    queues.calm()
    queues.release(claims)
    assert queues.wakes() == 1


def test_what_is_reclaimed_wakes(queues):
    queues.put("a")
    queues.step(["default"], [], 1, "worker:lost")
    queues.calm()
    queues.reclaim("default", ["worker:lost"])
    assert queues.wakes() == 1


def test_who_sleeps_is_woken_by_what_comes_to_any_of_its_queues(queues):
    waiter = queues.waiter(["high", "low"])
    assert not waiter.wait(0.01)
    queues.put("a", queue="low")
    assert waiter.wait(10)
    waiter.close()


# --- what is left behind


def lived(queues):
    """Let one job be of each kind, and come to its end."""
    at = time.time() + HOUR
    queues.put("plain")
    queues.put("important", priority=0)
    queues.put("long", lease=300)
    queues.put("once", lease=0)
    queues.put("crashed", "unknown", "again", "progressed", "stopped", "due")
    queues.put("later", at=at)
    queues.put("cancelled", "cancelled later", priority=3)
    queues.cancel("cancelled", Stop.ASKED)
    queues.put("cancelled later", at=at)
    queues.cancel("cancelled later", Stop.ASKED)
    claims = {claim.id: claim for claim in queues.claim(50)}
    queues.expire(claims.pop("crashed"))
    queues.release([claims.pop("unknown")], unknown=True)
    queues.end(claims.pop("again"), following=b"again")
    queues.end(claims.pop("due"), following=b"again", at=at)
    queues.progress("default", "progressed", "1 2")
    queues.cancel("stopped", Stop.KILL)
    queues.end(*claims.values())
    queues.pass_time("later", "due")


def test_what_has_ended_leaves_nothing_but_the_names_of_queues_and_tokens(queues, server):
    lived(queues)
    ended = queues.drain()
    assert set(ended) == {"crashed", "unknown", "again", "later", "due"}
    assert keys(server) == ["uwsgi_tasks:queues", queues.key("wake")]


def test_what_is_forgotten_or_purged_leaves_nothing_either(queues, server):
    queues.put("a", "b", priority=1, lease=300)
    queues.expire(*queues.claim())
    queues.claim()
    queues.progress("default", "a", "1 2")
    queues.forget("a")
    list(queues.purge("default"))
    assert keys(server) == ["uwsgi_tasks:queues", queues.key("wake")]


# --- what it costs


WALKS = {"hgetall", "hkeys", "hvals", "hscan", "lrange", "lrem", "lpos", "keys", "scan", "sort"}


class Cost:
    """Counts the commands that a Redis has run, those of scripts included."""

    def __init__(self, server):
        self._server = server

    def _calls(self):
        lines = self._server.cli("INFO", "commandstats")
        found = re.findall(r"cmdstat_(\S+?):calls=(\d+)", lines)
        return {name: int(calls) for name, calls in found if name not in {"info", "command|docs"}}

    def of(self, action):
        """What *action* costs: how often each command was run."""
        before = self._calls()
        action()
        after = self._calls()
        return {
            name: calls - before.get(name, 0)
            for name, calls in after.items()
            if calls != before.get(name, 0)
        }


def life(queues, mark):
    """What becomes of a few jobs, from the first step to the last."""
    queues.put(*(f"{mark} {number}" for number in range(10)), priority=5)
    queues.put(f"{mark} later", at=time.time() + HOUR)
    claims = queues.claim(10)
    assert len(claims) == 10
    queues.touch(claims)
    queues.release(claims[8:])
    queues.end(*queues.claim(2))
    queues.end(claims[7], following=b"again", at=time.time() + HOUR)
    queues.end(*claims[:6])
    queues.find(f"{mark} 6")
    queues.progress("default", f"{mark} 6", "1 2")
    queues.cancel(f"{mark} later", Stop.ASKED)
    queues.sizes("default")
    queues.expire(claims[6])
    assert queues.take(10) == [f"{mark} 6"]
    queues.forget(f"{mark} 6")


@pytest.mark.parametrize("options", [{}, {"at": 4e9}], ids=["that wait", "of the future"])
def test_what_a_job_costs_does_not_grow_with_those(one, one_server, options):
    def fill(*numbers):
        for start in range(*numbers, 5_000):
            one.put(*map(str, range(start, start + 5_000)), **options)

    life(one, "warm")
    fill(0, 5_000)
    few = Cost(one_server).of(lambda: life(one, "few"))
    fill(5_000, 100_000)
    assert sum(one.sizes("default")) > 100_000
    many = Cost(one_server).of(lambda: life(one, "many"))
    assert many == few
    assert not WALKS & set(many)


def test_what_a_job_costs_does_not_grow_with_those_that_run(one, one_server):
    life(one, "warm")
    few = Cost(one_server).of(lambda: life(one, "few"))
    one.put(*map(str, range(5_000)))
    for _ in range(50):
        one.claim(100)
    many = Cost(one_server).of(lambda: life(one, "many"))
    assert many == few


# --- a Redis that is full


@pytest.fixture(params=["redis_server", "redis_62"])
def full(request):
    """Queues on a Redis that has no memory left, and claims of some jobs in them."""
    server = request.getfixturevalue(request.param)
    server.flush()
    queues = connected(server.url)
    queues.put(*map(str, range(20)))
    queues.claims = queues.claim(4)
    server.cli("CONFIG", "SET", "maxmemory", 1)
    yield queues
    server.cli("CONFIG", "SET", "maxmemory", 0)
    queues.client.close()
    server.flush()


def test_a_redis_that_is_full_takes_nothing_or_all(full):
    with pytest.raises(RedisAway, match="maxmemory"):
        full.put("a", "b")
    assert (full.find("a"), full.find("b")) == (None, None)


def test_what_a_redis_has_that_is_full_can_be_worked_off(full):
    assert full.end(*full.claims) == []
    assert full.drain(5) == [str(number) for number in range(4, 20)]


def test_what_runs_on_a_redis_that_is_full_keeps_its_lease(full):
    assert full.touch(full.claims) == [0] * 4
    assert full.runs_alone(full.claims[0])


def test_what_runs_on_a_redis_that_is_full_can_be_cancelled(full):
    assert full.cancel("0", Stop.ASKED)[0] is True
    assert full.touch(full.claims[:1]) == [Stop.ASKED]


def test_what_runs_on_a_redis_that_is_full_tells_how_far_it_has_come(full):
    full.progress("default", "0", "1 2")
    assert full.find("0").progress == "1 2"


def test_what_runs_on_a_redis_that_is_full_can_be_given_back_and_go_on(full):
    assert full.release(full.claims[:1]) == [0]
    assert full.release(full.claims[1:2], HOUR) == [0]
    assert full.end(full.claims[2], following=b"again") == []
    assert full.end(full.claims[3], following=b"again", at=time.time() + HOUR) == []
    assert full.take(100) == ["0", *map(str, range(4, 20)), "2"]


# --- values


def test_a_claim_that_is_nobodys_can_be_made_by_hand(one):
    one.put("a")
    claim = Claim("default", "a", b"worker:0", b"", 0, LEASE, is_once=False)
    assert (one.touch([claim]), one.end(claim), one.take()) == ([-1], ["a"], ["a"])
