"""What the client promises, whatever kind of Redis it speaks to."""

import signal
import threading
import time
import traceback
from contextlib import contextmanager

import pytest

from tests import servers
from tests.conformance.places import in_processes, in_threads, until
from uwsgi_tasks.errors import ConfigurationError, RedisAway
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.redis.script import Script
from uwsgi_tasks.redis.waiter import Behind

SERVERS = ["redis_server", "redis_62", "redis_tls", "redis_cluster", "redis_sentinel"]
KEY, LIST = "{uwsgi_tasks:test}:a", "{uwsgi_tasks:test}:list"
SET = Script("return redis.call('SET', KEYS[1], ARGV[1])")


@pytest.fixture(params=SERVERS)
def server(request):
    server = request.getfixturevalue(request.param)
    yield server
    server.flush()


@pytest.fixture
def client(server):
    client = Client(server.url)
    yield client
    client.close()


@pytest.fixture
def waiter(client):
    waiter = client.waiter([LIST, "{uwsgi_tasks:other}:b"])
    yield waiter
    waiter.close()


def with_option(url, option):
    return f"{url}{'&' if '?' in url else '?'}{option}"


@contextmanager
def frozen(server):
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


def works_again(client):
    """Is *client* answered? All that it raises until then is RedisAway."""
    try:
        client.call("SET", KEY, "again")
        return client.call("GET", KEY) == b"again"
    except RedisAway:
        return False


# --- one step


def test_a_reply_is_of_bytes_numbers_and_lists(client):
    client.call("HSET", KEY, "field", b"\0\xff", "number", 1.5)
    assert client.call("HGET", KEY, "field") == b"\0\xff"
    assert sorted(client.call("HGETALL", KEY)) == [b"\0\xff", b"1.5", b"field", b"number"]
    assert client.call("HLEN", KEY) == 2
    assert client.call("HGET", KEY, "none") is None


def test_many_commands_have_their_replies_in_order(client):
    keys = [f"{{uwsgi_tasks:test-{number}}}" for number in range(50)]
    assert client.calls([("SET", key, key) for key in keys]) == [b"OK"] * 50
    assert client.calls([("GET", key) for key in keys]) == [key.encode() for key in keys]


def test_no_commands_have_no_replies(client):
    assert client.calls([]) == []


def test_after_a_refusal_the_next_replies_are_those_of_the_next_commands(client):
    client.call("SET", KEY, "text")
    with pytest.raises(RedisAway, match="WRONGTYPE"):
        client.calls([("GET", KEY), ("LPUSH", KEY, "x"), ("GET", KEY)])
    with pytest.raises(RedisAway, match="WRONGTYPE"):
        client.call("LPUSH", KEY, "x")
    assert client.calls([("STRLEN", KEY), ("GET", KEY)]) == [4, b"text"]


def test_a_script_gets_keys_and_arguments(client):
    script = Script("return {KEYS[1], ARGV[1], #ARGV[2], 7, false}")
    assert client.run(script, [KEY], [1, b"\0\xff"]) == [KEY.encode(), b"1", 2, 7, None]


def test_a_script_that_was_forgotten_is_sent_again(server, client):
    members = getattr(server, "servers", None) or getattr(server, "members", [server])
    assert client.run(SET, [KEY], ["1"]) == b"OK"
    for one in members:
        one.cli("SCRIPT", "FLUSH")
    assert client.run(SET, [KEY], ["2"]) == b"OK"
    assert client.call("GET", KEY) == b"2"


def test_the_error_of_a_script_says_what_it_was(client):
    with pytest.raises(RedisAway, match="the reason"):
        client.run(Script("return redis.error_reply('ERR the reason')"), [KEY])


# --- waiting


def test_a_wait_ends_when_something_is_pushed(client, waiter):
    def push():
        client.call("RPUSH", LIST, "x")

    pusher = threading.Timer(0.1, push)
    pusher.start()
    began = time.monotonic()
    assert waiter.wait(20)
    assert time.monotonic() - began < 10
    pusher.join()
    assert client.call("LLEN", LIST) == 0


def test_a_wait_ends_when_something_was_pushed_before(client, waiter):
    client.call("RPUSH", "{uwsgi_tasks:other}:b", "x")
    assert waiter.wait(20)


def test_each_push_ends_one_wait(client, waiter):
    for _ in range(10):
        client.call("RPUSH", LIST, "x")
        assert waiter.wait(20)
    assert not waiter.wait(0.05)


def test_a_wait_ends_in_time(waiter):
    waiter.wait(0)
    began = time.monotonic()
    assert not waiter.wait(0.1)
    assert 0.1 <= time.monotonic() - began < 5


def test_a_wait_ends_when_somebody_wakes_it(waiter):
    caller = threading.Timer(0.1, waiter.wake)
    caller.start()
    began = time.monotonic()
    assert not waiter.wait(20)
    assert time.monotonic() - began < 10
    caller.join()


def test_who_is_woken_before_the_wait_does_not_wait(waiter):
    waiter.wake()
    waiter.wake()
    began = time.monotonic()
    assert not waiter.wait(20)
    assert time.monotonic() - began < 10
    # Both calls were for that one.
    assert not waiter.wait(0.05)
    assert time.monotonic() - began >= 0.05


def test_a_signal_ends_a_wait(waiter):
    before = signal.signal(signal.SIGALRM, lambda *_: waiter.wake())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        began = time.monotonic()
        assert not waiter.wait(20)
        assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGALRM, before)


# --- failures


def test_nothing_is_reached_before_it_is_used():
    Client("redis://nowhere.invalid:1/0").close()


def test_a_server_that_was_restarted_is_found_again(server, client, waiter):
    client.call("SET", KEY, "x")
    waiter.wait(0)
    server.restart()
    until(lambda: works_again(client))
    try:
        waiter.wait(0)
    except RedisAway:
        waiter.wait(0)
    client.call("RPUSH", LIST, "x")
    assert waiter.wait(20)


def test_a_server_that_is_away_is_said_to_be(server):
    client = Client(server.url)
    client.call("SET", KEY, "x")
    waiter = client.waiter([LIST])
    waiter.wait(0)
    server.stop()
    try:
        with pytest.raises(RedisAway):
            client.call("GET", KEY)
        with pytest.raises(RedisAway):
            client.calls([("GET", KEY)])
        with pytest.raises(RedisAway):
            client.run(SET, [KEY], ["x"])
        with pytest.raises(RedisAway):
            waiter.wait(20)
    finally:
        server.start()
    until(lambda: works_again(client))
    waiter.close()


def test_a_server_that_does_not_answer_is_given_up_in_time(server):
    client = Client(with_option(server.url, "socket_timeout=0.3"))
    until(lambda: works_again(client))
    with frozen(server):
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(RedisAway):
                client.call("GET", KEY)
            assert time.monotonic() - began < 6
    until(lambda: works_again(client))


def test_an_alarm_in_the_midst_of_a_call_leaves_no_reply_behind(server):
    class Alarm(Exception):
        pass

    def ring(*_):
        raise Alarm

    client = Client(server.url)
    client.call("SET", KEY, "text")
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with frozen(server):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Alarm):
                client.call("GET", KEY)
    finally:
        signal.signal(signal.SIGALRM, before)
    until(lambda: works_again(client))
    assert client.call("STRLEN", KEY) == 5


@contextmanager
def interrupting(server, handler):
    """Freeze *server*, and run *handler* in a tenth of a second, behind its thaw."""

    def thaw_and_handle(*_):
        server.thaw()
        handler()

    before = signal.signal(signal.SIGALRM, thaw_and_handle)
    try:
        with frozen(server):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_calls_in_the_midst_of_a_call_has_its_own_reply(server, client):
    keys = [f"{{uwsgi_tasks:test}}:{number}" for number in range(4)]
    client.calls([("SET", key, key) for key in keys])
    heard = []

    def ask():
        heard.extend([client.call("GET", keys[0]), *client.calls([("GET", keys[1])])])

    asking = [
        lambda: [client.call("GET", keys[2]), client.call("GET", keys[3])],
        lambda: client.calls([("GET", key) for key in keys[2:]]),
    ]
    for ask_meanwhile in asking:
        heard.clear()
        with interrupting(server, ask):
            replies = ask_meanwhile()
        assert replies == [key.encode() for key in keys[2:]]
        assert heard == [key.encode() for key in keys[:2]]


def test_a_handler_whose_call_is_refused_does_no_harm_to_the_one_in_whose_midst_it_is(
    server, client
):
    client.call("SET", KEY, "text")
    raised = []

    def push():
        try:
            client.call("LPUSH", KEY, "x")
        except RedisAway as error:
            raised.append(error)

    with interrupting(server, push):
        assert client.call("GET", KEY) == b"text"
    assert "WRONGTYPE" in str(*raised)
    assert client.call("STRLEN", KEY) == 4


def test_what_a_handler_has_opened_is_used_again_and_closed_with_the_rest(redis_server):
    client, other = Client(redis_server.url), Client(redis_server.url)
    client.call("SET", KEY, "text")
    seen = set()

    def ask():
        seen.add(client.call("CLIENT", "ID"))

    ask()
    for _ in range(3):
        with interrupting(redis_server, ask):
            client.call("GET", KEY)
    assert len(seen) == 2
    client.close()
    until(lambda: not seen & ids(other.call("CLIENT", "LIST")))
    other.close()
    redis_server.flush()


def test_however_deep_handlers_call_within_one_another_few_connections_are_kept(redis_server):
    client, other = Client(redis_server.url), Client(redis_server.url)
    seen = set()

    def ask(depth):
        with client._lent() as line:
            seen.add(line.ask(("CLIENT", "ID")))
            if depth:
                ask(depth - 1)

    ask(9)
    assert len(seen) == 10
    until(lambda: len(seen & ids(other.call("CLIENT", "LIST"))) == 3)
    client.close()
    other.close()


def ids(listed):
    """The connections of which Redis knows."""
    return {int(line.split()[0].removeprefix(b"id=")) for line in listed.splitlines()}


@pytest.mark.parametrize("form", ["user:hunter2@", ":hunter2@"])
@pytest.mark.parametrize("fixture", SERVERS)
def test_an_error_does_not_tell_the_password(request, fixture, form):
    url = request.getfixturevalue(fixture).url
    scheme, _, rest = url.partition("://")
    client = Client(f"{scheme}://{form}{rest.rpartition('@')[2]}")
    with pytest.raises(RedisAway) as caught:
        client.call("GET", KEY)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2#x@localhost/0",
        "redis://:hunter2/x@localhost:6379/0",
        "redis://user:hunter2?@localhost/0",
        "redis://:hunter2@localhost:port/0",
        "redis://:hunter2@[::1/0",
        "redis://:hunter2@localhost/0?socket_timeout=soon",
        "redis+cluster://:hunter2@localhost:x/0",
        "redis+cluster://:hunter2@localhost/1",
        "redis+cluster://:hunter2#x@localhost/0",
        "redis+sentinel://:hunter2@localhost:x/tasks",
        "redis+sentinel://:hunter2@localhost:26379",
        "redis+sentinel://:hunter2@localhost/tasks/0?sentinel_password=hunter2&socket_timeout=x",
        "redis+more://:hunter2@localhost/0",
        "redis://:hunter2@localhost/0?nonsense=1",
        "http://:hunter2@localhost/0",
    ],
)
def test_a_url_that_cannot_be_is_refused_and_its_password_not_told(url):
    with pytest.raises(ConfigurationError) as caught:
        Client(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_the_password_is_not_shown(redis_tls):
    assert Client(redis_tls.url).shown == f"rediss://localhost:{redis_tls.tls_port}/0"


def test_an_account_that_may_not_reach_a_key_is_refused(redis_tls):
    with pytest.raises(RedisAway, match=r"(?i)permission"):
        Client(redis_tls.url).call("GET", "other")


def test_a_certificate_that_nobody_vouches_for_is_refused(redis_tls):
    with pytest.raises(RedisAway, match="certificate"):
        Client(redis_tls.url.partition("?")[0]).call("GET", KEY)


# --- processes and threads


def test_a_forked_child_and_its_parent_both_go_on(client):
    client.call("SET", KEY, "0")

    def work(index):
        for _ in range(50):
            client.call("INCR", KEY)
        return client.call("SET", f"{{uwsgi_tasks:{index}}}", index)

    assert in_processes(3, work) == [b"OK"] * 3
    assert client.call("INCR", KEY) == 151


def test_a_child_that_closes_does_not_close_its_parents(client):
    client.call("SET", KEY, "x")
    in_processes(2, lambda _: client.close())
    assert client.call("GET", KEY) == b"x"


def test_threads_do_not_get_each_others_replies(client):
    def work(index):
        keys = [f"{{uwsgi_tasks:{index}-{number}}}" for number in range(100)]
        client.calls([("SET", key, key) for key in keys])
        return all(client.call("GET", key) == key.encode() for key in keys)

    assert in_threads(4, work) == [True] * 4


def test_a_closed_client_opens_itself_again(client):
    client.call("SET", KEY, "x")
    client.close()
    client.close()
    assert client.call("GET", KEY) == b"x"


# --- a command behind a wait


SINGLE = [name for name in SERVERS if name != "redis_cluster"]


@pytest.fixture(params=SINGLE)
def single(request):
    server = request.getfixturevalue(request.param)
    server.flush()
    yield Client(server.url)
    server.flush()


@contextmanager
def waiting(client, *words):
    """What waits, and has *words* follow; and the replies to those."""
    heard = []
    waiter = client.waiter([LIST], Behind(lambda: words, heard.append))
    try:
        yield waiter, heard
    finally:
        waiter.close()


def asks(waiter):
    """Is it called away when it has put its question? That stays open."""
    waiter.wake()
    return not waiter.wait(30)


def test_what_is_behind_a_wait_is_done_when_it_ends_and_not_before(single):
    with waiting(single, "INCR", KEY) as (waiter, heard):
        for number in (1, 2):
            timer = threading.Timer(0.2, single.calls, [[("GET", KEY), ("RPUSH", LIST, "x")]])
            timer.start()
            assert waiter.wait(20)
            timer.join()
            assert heard == list(range(1, number + 1))
    assert single.call("EXISTS", LIST) == 0


def test_what_is_withdrawn_is_done_at_once_and_leaves_nothing(single):
    with waiting(single, "INCR", KEY) as (waiter, heard):
        assert asks(waiter)
        assert (heard, single.call("EXISTS", KEY)) == ([], 0)
        waiter.withdraw()
        assert heard == [1]
        waiter.withdraw()
        assert asks(waiter)
        single.call("RPUSH", LIST, "x")
        waiter.withdraw()
        assert heard == [1, 2]
        assert single.call("EXISTS", waiter._own) == 0


def test_who_dies_while_it_withdraws_leaves_nothing_for_ever(single, monkeypatch):
    ask = single.call_within

    def die(seconds, *words):
        if words[0] == "DEL":
            raise SystemExit
        return ask(seconds, *words)

    with waiting(single, "INCR", KEY) as (waiter, _):
        assert asks(waiter)
        # Faster than what it pushes itself, which nobody takes then.
        single.call("RPUSH", LIST, "x")
        until(lambda: single.call("EXISTS", KEY))
        monkeypatch.setattr(single, "call_within", die)
        with pytest.raises(SystemExit):
            waiter.withdraw()
        assert 0 < single.call("PTTL", waiter._own) <= 30_000


def test_who_is_woken_by_another_thread_withdraws(single):
    with waiting(single, "INCR", KEY) as (waiter, heard):
        threading.Timer(0.1, waiter.wake).start()
        assert not waiter.wait(20)
        waiter.withdraw()
        assert heard == [1]


def test_a_script_that_is_not_known_behind_a_wait_is_no_failure(single):
    with waiting(single, "EVALSHA", "0" * 40, 0) as (waiter, heard):
        single.call("RPUSH", LIST, "x")
        assert waiter.wait(20)
        assert heard == [None]


def test_an_error_behind_a_wait_is_one_of_the_wait(single):
    single.call("SET", KEY, "no number")
    with waiting(single, "INCR", KEY) as (waiter, heard):
        single.call("RPUSH", LIST, "x")
        with pytest.raises(RedisAway, match="not an integer"):
            waiter.wait(20)
        single.call("SET", KEY, "5")
        single.call("RPUSH", LIST, "x")
        assert waiter.wait(20)
        assert heard == [6]


def test_what_is_forgotten_is_never_heard(single):
    with waiting(single, "INCR", KEY) as (waiter, heard):
        assert asks(waiter)
        single.call("RPUSH", LIST, "x")
        until(lambda: single.call("EXISTS", KEY))
        waiter.reset()
        waiter.withdraw()
        assert not waiter.wait(0.01)
        assert heard == []


def test_who_cannot_withdraw_is_told(single, request):
    server = request.getfixturevalue(request.node.callspec.params["single"])
    with waiting(single, "INCR", KEY) as (waiter, heard):
        assert asks(waiter)
        server.stop()
        try:
            with pytest.raises(RedisAway):
                waiter.withdraw()
        finally:
            server.start()
        until(lambda: works_again(single))
        single.call("SET", KEY, "7")
        single.call("RPUSH", LIST, "x")
        assert waiter.wait(20)
        assert heard == [8]


@pytest.mark.parametrize("single", ["redis_server", "redis_62"], indirect=True)
def test_who_cannot_be_pushed_to_waits_until_redis_ends_the_wait(single):
    with waiting(single, "GET", KEY) as (waiter, heard):
        assert not waiter.wait(0.01)
        single.call("CONFIG", "SET", "maxmemory", "1")
        try:
            waiter.withdraw()
        finally:
            single.call("CONFIG", "SET", "maxmemory", "0")
        assert heard == [None]


@pytest.mark.slow
def test_who_cannot_be_pushed_to_waits_for_as_long_as_a_worker_does(redis_server):
    client = Client(redis_server.url)
    with waiting(client, "GET", KEY) as (waiter, heard):
        waiter.wake()
        assert not waiter.wait(5)
        client.call("CONFIG", "SET", "maxmemory", "1")
        try:
            waiter.withdraw()
        finally:
            client.call("CONFIG", "SET", "maxmemory", "0")
        assert heard == [None]


def test_what_goes_wrong_is_not_its_own_cause(single, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("uwsgi_tasks.redis.line.Line.read", interrupt)
    with pytest.raises(KeyboardInterrupt) as error:
        single.call("GET", KEY)
    assert error.value.__cause__ is None


def test_in_a_cluster_nothing_is_behind(redis_cluster):
    client = Client(redis_cluster.url)
    with waiting(client, "INCR", KEY) as (waiter, heard):
        client.call("RPUSH", LIST, "x")
        assert waiter.wait(20)
        waiter.withdraw()
        assert heard == []
    redis_cluster.flush()


# --- several servers


def test_the_next_master_is_found_after_the_first_gave_way(redis_sentinel):
    client = Client(redis_sentinel.url)
    client.call("SET", KEY, "x")
    waiter = client.waiter([LIST])
    waiter.wait(0)
    redis_sentinel.fail_over()
    until(lambda: works_again(client), 60)
    assert redis_sentinel.cli("GET", KEY) == "again"
    redis_sentinel.flush()
    client.call("RPUSH", LIST, "x")
    try:
        is_pushed = waiter.wait(0)
    except RedisAway:
        is_pushed = False
    assert is_pushed or waiter.wait(20)
    waiter.close()


@pytest.mark.slow
@pytest.mark.parametrize("is_script", [False, True])
@pytest.mark.parametrize("kind", [servers.Redis, servers.Redis62])
def test_the_connection_to_a_master_that_became_a_replica_is_let_go(kind, is_script):
    with servers.serve(kind, port=True) as first:
        client = Client(first.url)
        before = client.call("CLIENT", "ID")
        first.cli("REPLICAOF", "127.0.0.1", servers.free_port())
        with pytest.raises(RedisAway, match="read only replica"):
            client.run(SET, [KEY], ["1"]) if is_script else client.call("SET", KEY, "1")

        assert client.call("CLIENT", "ID") != before


def test_the_next_master_is_found_after_the_first_has_died(redis_sentinel):
    client = Client(redis_sentinel.url)
    client.call("SET", KEY, "x")
    redis_sentinel.fail_over(kill=True)
    try:
        until(lambda: works_again(client), 60)
        assert redis_sentinel.cli("GET", KEY) == "again"
    finally:
        redis_sentinel.start()


def test_each_key_lives_where_the_cluster_says(redis_cluster):
    client = Client(redis_cluster.url)
    keys = [f"{{uwsgi_tasks:{number}}}" for number in range(30)]
    for key in keys:
        client.call("SET", key, key)
    owners = [redis_cluster.owner(key) for key in keys]
    assert len({one.port for one in owners}) == 3
    assert [one.cli("GET", key) for one, key in zip(owners, keys, strict=True)] == keys


def test_one_wait_is_for_keys_of_all_members(redis_cluster):
    client = Client(redis_cluster.url)
    keys = [f"{{uwsgi_tasks:{number}}}:list" for number in range(10)]
    waiter = client.waiter(keys)
    for key in keys:
        client.call("RPUSH", key, "x")
        assert waiter.wait(20)
    assert not waiter.wait(0.05)
    waiter.close()


def test_a_member_that_is_away_is_found_when_it_is_back(redis_cluster):
    client = Client(with_option(redis_cluster.url, "socket_timeout=0.5"))
    until(lambda: works_again(client))
    redis_cluster.owner(KEY).kill()
    try:
        with pytest.raises(RedisAway):
            client.call("GET", KEY)
    finally:
        redis_cluster.start()
    until(lambda: works_again(client))


def test_each_member_is_asked(redis_cluster):
    replies = Client(redis_cluster.url).everywhere("CONFIG", "GET", "port")

    ports = {f"127.0.0.1:{one.port}": [b"port", b"%d" % one.port] for one in redis_cluster.members}
    assert replies == ports


def test_keys_of_two_slots_are_refused(redis_cluster):
    with pytest.raises(RedisAway):
        Client(redis_cluster.url).run(SET, ["{uwsgi_tasks:1}", "{uwsgi_tasks:2}"], ["x"])


@pytest.mark.parametrize("name", ["redis", "valkey"], ids=["redis", "valkey"])
def test_a_valkey_is_a_redis(name):
    with servers.serve(servers.Redis, port=True) as server:
        client = Client(f"{name}://127.0.0.1:{server.port}/3")
        client.call("SET", KEY, "x")
        assert server.cli("-n", 3, "GET", KEY) == "x"
        assert server.cli("EXISTS", KEY) == "0"
