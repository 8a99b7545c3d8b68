"""The doctor on a real Redis: what it is told there, what it is refused, and who is there."""

import json
import time

import pytest

from tests.redis.shop import Shop
from tests.servers import Redis, serve
from uwsgi_tasks import App, doctor
from uwsgi_tasks.doctor import asking
from uwsgi_tasks.executors import Consuming
from uwsgi_tasks.server import Server

WORDS = "correct horse battery"
ALONE = {"no-tasks", "no-worker", "redis-forgets"}
"""What is found on a Redis of ours without disk, by somebody who has declared nothing."""


def app_on(url, **settings):
    return App(Server(None), **{"redis": url, "secret": WORDS, **settings})


def examined(app):
    """Return the findings that are not ok, by code; of two of a kind the first."""
    found = [one for one in doctor.examine(None, None, app) if one.level != "ok"]
    return {finding.code: finding for finding in reversed(found)}


@pytest.fixture(params=["redis_server", "redis_62"])
def server(request):
    """Each Redis, empty."""
    found = request.getfixturevalue(request.param)
    found.flush()
    yield found
    found.flush()


@pytest.fixture
def own():
    """A Redis that a test may change."""
    with serve(Redis, port=True) as server:
        yield server


@pytest.fixture(scope="module")
def shared(redis_server):
    redis_server.flush()
    yield redis_server
    redis_server.flush()


@pytest.fixture
def configured(server):
    """Let Redis be configured so, for the time of a test."""
    before = {}

    def configured(**changes):
        for key, value in changes.items():
            name = key.replace("_", "-")
            before.setdefault(name, server.cli("CONFIG", "GET", name).partition("\n")[2])
            server.cli("CONFIG", "SET", name, value)

    yield configured
    for name, value in before.items():
        server.cli("CONFIG", "SET", name, value)


@pytest.fixture
def user(server):
    """A user who has all rights on our keys but these; gives the URL."""

    def user(*rules, keys=("~uwsgi_tasks*", "~{uwsgi_tasks*")):
        server.cli("ACL", "SETUSER", "clerk", "reset", "on", ">word", "+@all", *keys, *rules)
        return f"unix://clerk:word@{server.folder}/socket?db=0"

    yield user
    server.cli("ACL", "DELUSER", "clerk")


# ---- Redis


def test_a_redis_that_is_not_there_is_one_error(tmp_path):
    app = app_on(f"unix://{tmp_path}/socket")
    (found,) = [one for one in doctor.examine(None, None, app) if one.level != "ok"]

    assert (found.level, found.code) == ("error", "redis-unreachable")
    assert f"unix://{tmp_path}/socket" in found.what


def test_a_url_that_cannot_be_is_told():
    found = examined(app_on("file:///nowhere", store="memory://"))

    assert "begins with file" in found["redis-unreachable"].what


def test_of_a_password_nothing_is_shown(shared):
    app = app_on(shared.url.replace("unix://", "unix://clerk:battery@"))

    assert "battery" not in str(doctor.examine(None, None, app))


def test_nothing_is_wrong_with_a_redis_but_that_it_is_empty(server):
    assert set(examined(app_on(server.url))) == ALONE


def test_it_leaves_no_key(server):
    doctor.examine(None, None, app_on(server.url))

    assert server.cli("DBSIZE") == "0"


def test_the_servers_of_a_cluster_are_asked(redis_cluster):
    redis_cluster.members[1].cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        found = examined(app_on(redis_cluster.url))
    finally:
        redis_cluster.members[1].cli("CONFIG", "SET", "maxmemory-policy", "noeviction")
        redis_cluster.flush()

    assert set(found) == ALONE | {"redis-evicts"}
    assert found["redis-evicts"].what.startswith(f"127.0.0.1:{redis_cluster.members[1].port} ")


def test_a_redis_that_sentinels_watch_is_no_replica(redis_sentinel):
    assert set(examined(app_on(redis_sentinel.url))) == ALONE


def test_an_account_without_dangerous_commands_is_enough(redis_tls):
    redis_tls.flush()
    found = examined(app_on(redis_tls.url))

    assert set(found) == {"no-tasks", "no-worker", "redis-hides"}
    assert "INFO" in found["redis-hides"].what


@pytest.mark.parametrize(
    ("changes", "code", "level"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "redis-evicts", "warning"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "1gb"}, "redis-evicts", "error"),
        ({"maxmemory": "1"}, "redis-full", "error"),
        ({"min_replicas_to_write": "1"}, "redis-unwritable", "error"),
    ],
)
def test_a_setting_of_redis_is_found_wrong(server, configured, changes, code, level):
    configured(**changes)
    found = examined(app_on(server.url))

    assert found[code].level == level
    assert set(found) == ALONE | {code}


def test_memory_that_is_nearly_full_is_found(server, configured):
    # So much that a connection more or less does not count.
    server.cli("SETRANGE", "much", 40_000_000, "x")
    used = int(server.info("memory")["used_memory"])
    configured(maxmemory=str(int(used * 1.05)))

    assert examined(app_on(server.url))["redis-full"].level == "warning"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"save": "3600 1"}, "redis-snapshots"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "redis-fsync"),
        ({"appendonly": "yes", "appendfsync": "always"}, None),
    ],
)
def test_what_redis_keeps_on_disk_is_told(own, changes, code):
    for name, value in changes.items():
        own.cli("CONFIG", "SET", name, value)

    assert set(examined(app_on(own.url))) == {"no-tasks", "no-worker"} | ({code} if code else set())


def test_a_replica_is_an_error(own):
    with serve(Redis, replicaof=f"127.0.0.1 {own.port}") as replica:
        found = examined(app_on(replica.url))

    assert found["redis-replica"].level == "error"


def test_a_replica_that_hides_its_role_is_an_error(own):
    with serve(Redis, replicaof=f"127.0.0.1 {own.port}") as replica:
        replica.cli("ACL", "SETUSER", "default", "-info")
        found = examined(app_on(replica.url))

    assert found["redis-replica"].level == "error"


# ---- rights


@pytest.mark.parametrize("command", ["hset", "zadd", "rpush", "time", "del", "blpop", "evalsha"])
def test_a_command_that_is_refused_is_named(server, user, command):
    found = examined(app_on(user(f"-{command}")))["redis-refuses"]

    assert found.level == "error"
    assert found.what.endswith(f": {command.upper()}")
    assert found.remedy == f"ACL SETUSER NAME +{command}"


def test_all_commands_that_are_refused_are_named(server, user):
    found = examined(app_on(user("-@sortedset")))["redis-refuses"].what

    tried = {name for names in asking.COMMANDS for name in names}
    assert set(found.partition(": ")[2].split(", ")) == {
        name for name in tried if name.startswith("Z")
    }


@pytest.mark.parametrize(
    ("granted", "missing"),
    [("~uwsgi_tasks*", "{uwsgi_tasks:queue:*}"), ("~{uwsgi*", "uwsgi_tasks:*")],
)
def test_keys_that_are_refused_are_named(server, user, granted, missing):
    found = examined(app_on(user(keys=[granted])))["redis-refuses"]

    assert missing in found.what


def test_what_is_refused_leaves_no_key(server, user):
    for rule in ("-del", "-hset", "-blpop", "-evalsha"):
        doctor.examine(None, None, app_on(user(rule)))

    assert server.cli("DBSIZE") == "0"


def test_what_redis_does_not_let_us_ask_is_a_note(server, user):
    found = examined(app_on(user("-config")))

    assert set(found) == {"no-tasks", "no-worker", "redis-hides"}
    assert found["redis-hides"].level == "note"


# ---- who takes the jobs


def declared(app, name="one", **options):
    def function():
        pass

    function.__module__, function.__qualname__ = "mysite.tasks", name
    return app.task(executor="redis", **options)(function)


def test_jobs_that_wait_without_any_worker_are_an_error(server):
    app = app_on(server.url)
    declared(app)()
    found = examined(app)

    assert found["no-worker"].level == "error"
    assert "1 jobs" in found["no-worker"].what
    assert found["no-worker"].remedy == "uwsgi-tasks worker -m mysite.tasks -q default"


@pytest.fixture
def at_work(server):
    """An app whose task `one` a worker of this process serves, in the queue `default`."""
    app = app_on(server.url)
    declared(app)
    consumer = app.consume(Consuming(queues=[("default", None)], threads=1))
    consumer._presence.keep(0)
    yield app
    consumer._presence.leave()


def test_where_a_worker_serves_the_tasks_nothing_is_wrong(at_work):
    assert set(examined(at_work)) == {"redis-forgets"}


def test_a_queue_that_no_worker_serves_is_named(at_work):
    declared(at_work, "two", queue="mail").using(at=time.time() + 3600)()
    found = examined(at_work)

    assert found["queue-unserved"].level == "error"
    assert "mail (1)" in found["queue-unserved"].what


def test_a_task_that_no_worker_knows_is_named(at_work):
    declared(at_work, "two")
    found = examined(at_work)

    assert "mysite.tasks.two:" in found["task-unknown"].what


# ---- as it is typed


@pytest.fixture
def shop(tmp_path, server):
    made = Shop(tmp_path, server.url)
    yield made
    made.end()


def test_the_command_says_it_in_json(shop):
    shop.submit("note", "a", queue="mail")
    shop.work()
    shop.wait_until_ready()
    found = shop.ask("-m", "shop", "doctor", code=1)

    first = found["findings"][0]
    assert (first["level"], first["code"]) == ("error", "queue-unserved")
    assert found["errors"] == 1


def test_the_command_ends_with_0_where_workers_serve_all(shop):
    shop.work()
    shop.wait_until_ready()
    text = shop.type("-m", "shop", "doctor").stdout

    assert "workers serve the queues, and know the tasks that are declared here" in text


def test_the_command_leaves_redis_alone_if_told_so(shop):
    found = shop.ask("-m", "shop", "doctor", "--no-probe")

    assert "Redis was not asked" in json.dumps(found)
