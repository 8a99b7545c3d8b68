"""Who is there, on each kind of Redis."""

import json
import os
import time

import pytest

from tests.conformance.places import until
from tests.servers import Redis, serve
from uwsgi_tasks.errors import RedisAway
from uwsgi_tasks.redis import presence as module
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.redis.presence import Presence, workers
from uwsgi_tasks.redis.queues import Queues


@pytest.fixture
def queues(server):
    queues = Queues(Client(server.url), "")
    yield queues
    queues.client.close()


def present(queues, *names, threads=1, tasks=(), ran=0):
    """A worker that has said that it is there."""
    made = Presence(queues, names or ["default"], threads, tasks)
    made.keep(ran)
    return made


def key(made):
    return f"uwsgi_tasks:worker:{made.name}"


# --- coming and going


def test_without_workers_there_are_none(queues):
    assert workers(queues) == []


def test_a_worker_says_what_it_is(queues):
    before = time.time()
    made = present(queues, "high", "default", threads=8, tasks=["shop.send"], ran=5)
    (found,) = workers(queues)
    assert (found.name, found.host, found.pid) == (made.name, os.uname().nodename, os.getpid())
    assert (found.queues, found.threads, found.tasks) == (["high", "default"], 8, ["shop.send"])
    assert (found.ran, found.memory > 1e6) == (5, True)
    assert before <= found.started_at <= time.time()


def test_each_worker_has_a_name_of_its_own(queues):
    names = {present(queues).name for _ in range(20)}
    assert {one.name for one in workers(queues)} == names
    assert len(names) == 20


def test_workers_are_shown_by_their_names(queues):
    names = [present(queues).name for _ in range(5)]
    assert [one.name for one in workers(queues)] == sorted(names)


def test_a_worker_that_leaves_is_gone_and_leaves_nothing(queues, server):
    made, other = present(queues), present(queues)
    made.leave()
    assert [one.name for one in workers(queues)] == [other.name]
    other.leave()
    assert queues.client.call("EXISTS", "uwsgi_tasks:workers") == 0
    assert queues.client.call("EXISTS", key(made)) == 0


def test_the_queues_of_a_worker_are_known(queues):
    present(queues, "mail", "default")
    assert queues.names() == ["default", "mail"]


def test_the_queues_of_a_worker_are_known_before_it_is_seen(queues, monkeypatch):
    note, seen = queues.note, []

    def look_first(name):
        seen.append(workers(queues))
        note(name)

    monkeypatch.setattr(queues, "note", look_first)
    present(queues, "mail", "default")
    assert seen == [[], []]


def test_namespaces_keep_workers_apart(server):
    shop, blog = (Queues(Client(server.url), name) for name in ("shop", "blog"))
    made = present(shop)
    assert (workers(blog), [one.name for one in workers(shop)]) == ([], [made.name])


# --- signs of life


def test_a_worker_without_a_sign_of_life_is_forgotten_after_a_minute(queues):
    made = present(queues)
    assert 55 < queues.client.call("TTL", key(made)) <= 60
    queues.client.call("PEXPIRE", key(made), 20)
    until(lambda: workers(queues) == [])
    assert queues.client.call("EXISTS", "uwsgi_tasks:workers") == 0


def test_a_worker_that_was_forgotten_is_known_again_after_its_next_sign(queues):
    made = present(queues)
    queues.client.call("DEL", key(made))
    workers(queues)
    made.announce()
    made.keep(0)
    assert [one.name for one in workers(queues)] == [made.name]


def test_a_worker_speaks_when_it_is_time_and_not_each_time(queues, monkeypatch):
    made = Presence(queues, ["default"], 1, [])
    said = [made.keep(0), made.keep(1)]
    monkeypatch.setattr(module, "_EVERY", 0.05)
    made.announce()
    said.append(made.keep(2))
    until(lambda: made.keep(3))
    assert said == [True, False, True]
    assert workers(queues)[0].ran == 3


def test_a_sign_of_life_that_does_not_arrive_is_given_again_soon(monkeypatch):
    monkeypatch.setattr(module, "_AGAIN", 0.05)
    with serve(Redis) as server:
        queues = Queues(Client(server.url), "")
        made = Presence(queues, ["default"], 1, [])
        server.stop()
        with pytest.raises(RedisAway):
            made.keep(0)
        server.start()
        until(lambda: made.keep(0))
        assert [one.name for one in workers(queues)] == [made.name]


@pytest.fixture
def full(server):
    """Have the server be full, or not, as it is told."""
    members = getattr(server, "members", [server])

    def set_full(is_full):
        for one in members:
            one.cli("CONFIG", "SET", "maxmemory", int(is_full))

    yield set_full
    set_full(False)


def test_a_redis_that_is_full_is_not_away_and_that_is_said_once(queues, full, caplog):
    made = Presence(queues, ["default"], 1, [])

    def keep():
        made.announce()
        return made.keep(0)

    said = []
    for _ in range(2):
        full(True)
        said += [keep() for _ in range(3)]
        full(False)
        said.append(keep())
    assert said == [True] * 8
    assert caplog.text.count("maxmemory") == 2
    assert [one.name for one in workers(queues)] == [made.name]


def test_a_worker_that_was_there_before_redis_was_full_stays_known(queues, full):
    made = present(queues)
    full(True)
    queues.client.call("EXPIRE", key(made), 20)
    made.announce()
    made.keep(0)
    assert queues.client.call("TTL", key(made)) > 50


def test_a_redis_that_takes_nothing_at_all_is_not_said_to_be_there(caplog):
    with serve(Redis) as server:
        queues = Queues(Client(server.url), "")
        made = Presence(queues, ["default"], 1, [])
        # As while it loads its data, or cannot write to its disk.
        server.cli("CONFIG", "SET", "min-replicas-to-write", 1)
        assert not made.keep(0)
    assert "NOREPLICAS" in caplog.text


def test_after_a_failure_a_sign_of_life_is_soon_to_be_given_though_not_at_once(queues, monkeypatch):
    made = present(queues)
    monkeypatch.setattr(module, "_AGAIN", 10.0)
    made.announce_again()
    assert not made.keep(0)
    monkeypatch.setattr(module, "_AGAIN", 0.1)
    made.announce_again()
    until(lambda: made.keep(0))


# --- others


def test_a_worker_of_another_version_may_say_more(queues):
    made = present(queues)
    said = json.loads(queues.client.call("GET", key(made)))
    queues.client.call("SET", key(made), json.dumps({**said, "colour": "green"}))
    assert [one.name for one in workers(queues)] == [made.name]


def test_a_worker_knows_how_much_memory_it_has():
    assert 1e6 < Presence.memory() < 1e12
