"""What the store in Redis promises beside the contract of all stores."""

import subprocess
import sys
import traceback

import pytest

from tests import servers
from tests.conformance.places import counted, letter, record, until
from uwsgi_tasks.errors import ConfigurationError, StoreError
from uwsgi_tasks.model import State, Stop
from uwsgi_tasks.stores import connect
from uwsgi_tasks.stores.redis import RedisStore


@pytest.fixture
def store(redis_server):
    store = connect(redis_server.url)
    yield store
    store.close()
    redis_server.flush()


def everything(store):
    """Call each method; return what there is to see of them."""
    store.save(record(), 60)
    store.start("a", 1, "w")
    store.advance("a", 1, 2)
    store.cancel("a", Stop.ASKED)
    store.bury(letter(failed_at=1.0))
    store.bury(letter("b", 2.0))
    store.exhume("b")
    lease = store.acquire("report", "a", 60)
    store.extend(lease, 60)
    store.acquire("other", "a", 60)
    store.release(lease)
    store.count([counted(), counted(60)])
    seen = store.get("a").stop, store.dead(before=letter("b", 2.0)), store.find_dead("a")
    seen += store.count_dead(), store.release_all("a"), store.purge(60), store.counts(0)
    return *seen, store.forget("a"), store.now() > 0


SEEN = (
    Stop.ASKED,
    [letter(failed_at=1.0)],
    letter(failed_at=1.0),
    1,
    1,
    1,
    [counted(60)],
    True,
    True,
)


# --- finding it


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost/0",
        "rediss://localhost/0",
        "unix:///run/redis/socket?db=0",
        "valkey://localhost/0",
        "valkeys://localhost/0",
        "redis+cluster://one:7000,two:7000",
        "rediss+cluster://one:7000,two:7000",
        "valkey+sentinel://one,two/tasks/0",
    ],
)
def test_a_redis_is_found_by_its_url_and_not_reached(url):
    store = connect(url, "shop")
    assert (type(store), store.url, store.namespace) == (RedisStore, url, "shop")


def test_a_redis_that_cannot_be_is_refused():
    with pytest.raises(ConfigurationError, match="which master"):
        connect("redis+sentinel://one,two")


def test_where_the_client_is_missing_the_error_says_what_to_install():
    source = """
import sys
sys.modules["redis"] = None
from uwsgi_tasks.stores import connect
try:
    connect("redis+cluster://host")
except Exception as error:
    print(type(error).__name__, error)
"""
    said = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("ConfigurationError ")
    assert "pip install 'uwsgi_tasks[redis]'" in said


# --- what it takes up


def test_all_keys_begin_with_the_name_and_the_namespace(redis_server):
    for namespace, start in (("", "uwsgi_tasks:"), ("shop", "uwsgi_tasks:shop:")):
        store = connect(redis_server.url, namespace)
        redis_server.flush()
        store.save(record(), 60)
        store.bury(letter())
        store.acquire("report", "a", 60)
        store.count([counted()])
        keys = redis_server.cli("KEYS", "*").splitlines()
        assert len(keys) == 8
        assert [key for key in keys if not key.lstrip("{").startswith(start)] == []
    redis_server.flush()


def test_nothing_is_left_of_what_is_over(redis_server, store):
    store.save(record(), 0.2)
    store.acquire("one", "a", 0.2)
    store.extend(store.acquire("two", "a", 60), 0.2)
    store.release(store.acquire("three", "b", 60))
    store.bury(letter())
    store.exhume("a")
    store.count([counted()])
    store.purge(60)
    until(lambda: redis_server.cli("DBSIZE") == "0")


def test_an_owner_who_takes_many_leases_is_not_remembered_for_those_that_are_due(
    redis_server, store
):
    for number in range(20):
        store.acquire(f"{number}", "a", 0)
    store.acquire("last", "a", 60)
    assert redis_server.cli("ZRANGE", "{uwsgi_tasks:lease}:owner:a", 0, -1) == "last"


def test_counts_are_forgotten_after_thirty_days_though_nobody_purges(redis_server, store):
    store.count([counted(0), counted(60)])
    lives = int(redis_server.cli("TTL", "{uwsgi_tasks:counts}:0"))
    assert 30 * 86_400 - 60 < lives <= 30 * 86_400
    # As if it were over.
    redis_server.cli("DEL", "{uwsgi_tasks:counts}:0")
    store.count([counted(120)])
    assert redis_server.cli("ZRANGE", "{uwsgi_tasks:counts}:minutes", 0, -1) == "60\n120"


def test_counts_of_more_minutes_than_one_step_reads_come_back(store):
    counts = [counted(60 * number) for number in range(1201)]
    store.count(counts)
    assert store.counts(0) == counts


def test_a_page_of_dead_letters_costs_the_same_however_many_are_kept(redis_server, store):
    def cost(call):
        redis_server.cli("CONFIG", "RESETSTAT")
        call()
        lines = redis_server.info("commandstats").values()
        return sum(int(line.split(",")[0].removeprefix("calls=")) for line in lines)

    for number in range(3000):
        # All of one moment: the worst that there is.
        store.bury(letter(f"{number:04}", 1.0))
    middle = store.find_dead("1500")
    assert [one.id for one in store.dead(2, before=middle)] == ["1499", "1498"]
    assert cost(lambda: store.dead(2)) <= 10
    # Twelve steps of a search among them.
    assert cost(lambda: store.dead(2, before=middle)) <= 30
    assert cost(lambda: store.count_dead("billing.send")) <= 5


# --- failures


def test_a_store_that_is_away_says_so_and_comes_back_by_itself(redis_server, store):
    store.save(record(), 60)
    redis_server.stop()
    try:
        for call in (
            lambda: store.get("a"),
            lambda: store.save(record(), 60),
            store.dead,
            lambda: store.acquire("report", "a", 60),
            lambda: store.count([counted()]),
            store.now,
        ):
            with pytest.raises(StoreError):
                call()
    finally:
        redis_server.start()
    assert everything(store) == SEEN


@pytest.mark.parametrize("kind", [servers.Redis, servers.Redis62], ids=lambda one: one.__name__)
def test_what_was_saved_outlives_a_server_that_is_killed(kind):
    with servers.serve(kind, durable=True) as server:
        store = connect(server.url)
        for number in range(20):
            store.save(record(f"{number}"), 60)
        server.kill()
        server.start()
        store.close()
        assert store.get("19") == record("19")


@pytest.mark.parametrize(
    "fill",
    [
        lambda store, id_, text: store.save(record(id_, State.FAILED, error=text), 60),
        lambda store, id_, text: store.bury(letter(id_, error=text)),
        lambda store, id_, text: store.count([counted(task=f"{id_} {text}")]),
        lambda store, id_, text: store.acquire(f"{id_} {text}", "a", 60),
    ],
    ids=["save", "bury", "count", "acquire"],
)
def test_a_server_that_is_full_takes_nothing_and_keeps_what_it_has(fill):
    with servers.serve(servers.Redis, maxmemory="4mb") as server:
        store = connect(server.url)
        store.save(record(), 60)
        secret = "the secret " * 1000
        with pytest.raises(StoreError, match="maxmemory") as caught:  # noqa: PT012  one of them
            for number in range(1000):
                fill(store, f"{number}", secret)
        assert "the secret" not in "".join(traceback.format_exception(caught.value))
        assert store.get("a") == record()
        store.close()


def test_an_account_that_reaches_our_keys_alone_is_enough(redis_tls):
    store = connect(redis_tls.url)
    assert everything(store) == SEEN
    assert everything(connect(redis_tls.url, "shop")) == SEEN
    redis_tls.flush()


def test_a_store_goes_on_after_its_server_gave_way(redis_sentinel):
    store = connect(redis_sentinel.url)
    store.save(record(), 60)
    redis_sentinel.fail_over()

    def is_there():
        try:
            return store.get("a") == record()
        except StoreError:
            return False

    until(is_there)
    assert everything(store) == SEEN
    redis_sentinel.flush()
