"""Which server of a cluster is asked, and which one is left alone."""

from types import SimpleNamespace

import pytest

from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.redis import shards as module
from uwsgi_tasks.redis.shards import Shards

SERVERS = {"mail": "first", "bulk": "first", "other": "second"}


class Cluster:
    """Servers that fail when they are told to, after so many seconds."""

    def __init__(self):
        self.now = 1000.0
        self.fails = {}
        self.asked = []
        self.shards = Shards(SERVERS.__getitem__)

    def ask(self, queue):
        """Ask the server of a queue; return whether it has answered."""
        try:
            with self.shards.asking(queue):
                self._answer(queue)
        except RedisAway:
            return False
        return True

    def _answer(self, queue):
        self.asked.append(queue)
        if SERVERS[queue] in self.fails:
            self.now += self.fails[SERVERS[queue]]
            raise RedisAway("it is away")

    def is_asked(self, queue):
        """Ask the server of a queue; return whether that has come to it."""
        before = len(self.asked)
        self.ask(queue)
        return len(self.asked) > before


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_who_answers_is_asked_each_time(cluster):
    assert [cluster.ask(queue) for queue in [*SERVERS, *SERVERS]] == [True] * 6


def test_one_quick_failure_costs_nothing(cluster):
    cluster.fails = {"first": 0.01}
    assert not cluster.ask("mail")
    cluster.fails = {}
    assert cluster.ask("mail")


def test_who_has_failed_twice_is_left_alone_for_a_while(cluster):
    cluster.fails = {"first": 0.01}
    assert [cluster.is_asked("mail") for _ in range(4)] == [True, True, False, False]
    cluster.now += 1.1
    assert cluster.is_asked("mail")


@pytest.mark.parametrize(("took", "rest"), [(5, 10), (15, 15)])
def test_who_has_failed_slowly_is_left_alone_for_longer_and_not_for_ever(cluster, took, rest):
    cluster.fails = {"first": took}
    cluster.ask("mail")
    cluster.now += rest - 0.1
    assert not cluster.is_asked("mail")
    cluster.now += 0.2
    assert cluster.is_asked("mail")


def test_other_queues_of_a_server_that_has_failed_are_left_alone_and_those_of_others_are_not(
    cluster,
):
    cluster.fails = {"first": 5}
    cluster.ask("mail")
    assert [cluster.is_asked(queue) for queue in SERVERS] == [False, False, True]


def test_while_one_asks_whether_it_is_back_others_do_not(cluster):
    cluster.fails = {"first": 5}
    cluster.ask("mail")
    cluster.now += 11
    with cluster.shards.asking("mail"):
        assert not cluster.is_asked("bulk")
    cluster.fails = {}
    assert cluster.ask("bulk")


def test_why_it_is_not_asked_is_said(cluster):
    cluster.fails = {"first": 5}
    cluster.ask("mail")
    with pytest.raises(RedisAway, match="it is away"), cluster.shards.asking("bulk"):
        pass
