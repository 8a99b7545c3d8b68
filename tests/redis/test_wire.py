"""Other programs submit, look, and take jobs, as docs/wire.md tells them."""

import json
import pickle
import re
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.redis.crew import ROOT, Crew
from tests.test_docs import blocks_of, module_of
from uwsgi_tasks import App, State, TasksError, codec, wire
from uwsgi_tasks.model import Job
from uwsgi_tasks.redis.client import Client
from uwsgi_tasks.server import Server
from uwsgi_tasks.signing import Signer

PAGE = ROOT / "docs" / "wire.md"
SOURCE = Path(__file__).parent / "on_the_wire.py"
SCRIPTS = ROOT / "uwsgi_tasks" / "redis"
TEXT = PAGE.read_text()
BLOCKS = list(blocks_of(PAGE))
TYPED = [block for block in BLOCKS if block.language == "redis"]
CALLED = [block for block in BLOCKS if block.language == "bash"]
FAR = "4102444800000"
"""When the delayed job of the page is due: in the year 2100."""


def typed(word):
    """Return what the page has one type in which *word* is."""
    (found,) = (block.text for block in TYPED if word in block.text)
    return found


def called(name):
    """Return the words with which the page calls the script of this name."""
    (found,) = (shlex.split(block.text) for block in CALLED if f"queue_{name}.lua" in block.text)
    assert found.pop(0) == "redis-cli"
    return [str(ROOT / word) if word.endswith(".lua") else word for word in found]


def root(queue="default"):
    return f"{{uwsgi_tasks:queue:{queue}}}"


@pytest.fixture(scope="module")
def server(redis_server):
    yield redis_server
    redis_server.flush()


@pytest.fixture(scope="module")
def crew(server, tmp_path_factory):
    """Workers that have one thread each, and serve two queues."""
    server.flush()
    crew = Crew(tmp_path_factory.mktemp("wire"), server.url, SOURCE)
    yield crew
    crew.end()


@pytest.fixture
def worker(crew, server):
    """One worker, idle."""
    if not crew.workers:
        crew.start("--grace", "5", queues="default,mail")
    crew.wait_for(lambda: server.cli("KEYS", "uwsgi_tasks:worker:*"))
    return crew.workers[0]


@pytest.fixture
def app(server):
    """The application of somebody who looks, and who has declared nothing."""
    return App(Server(None), redis=server.url)


def sent(crew, id_):
    """Wait for the job of this id, and return what it has noted."""
    crew.wait_for(lambda: any(event["id"] == id_ for event in crew.events("sent")))
    return next(event for event in crew.events("sent") if event["id"] == id_)


def submit(server, id_, payload, queue="default"):
    """Submit as the page says, but any bytes, under any id."""
    client = Client(server.url)
    client.calls(
        [
            ("HSET", f"{root(queue)}:jobs", id_, payload),
            ("RPUSH", f"{root(queue)}:ready:9", id_),
            ("LPUSH", f"{root(queue)}:wake", 1),
        ]
    )
    client.close()


def job(name="myapp.tasks.send", args=("x",), **more):
    return json.dumps({"task": name, "args": args, **more})


def dead(crew, app, id_):
    """Wait for the dead letter of this id."""
    crew.wait_for(lambda: app.dead.get(id_))
    return app.dead.get(id_)


# --- the page


def rows(heading):
    """Return the cells of the table whose first column is headed so."""
    lines = TEXT[TEXT.index(f"| {heading} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_has_the_fields_that_there_are():
    told = {cells[0].strip("`"): cells[1] for cells in rows("field")}
    assert told == {name: words for name, (_, words) in wire._KINDS.items()}


def test_the_page_has_the_defaults_of_the_fields():
    def default(name):
        found = Job._field_defaults.get(name)
        return "" if found is None else f"`{json.dumps(found)}`"

    told = {cells[0].strip("`"): cells[2] for cells in rows("field")}
    assert told == {name: default(name).replace("`0.0`", "`0`") for name in told}


def test_the_page_has_each_key_that_the_scripts_of_a_queue_touch():
    touched = {
        key
        for script in SCRIPTS.glob("queue_*.lua")
        for key in re.findall(r"^-- (root:\w+)", script.read_text(), re.MULTILINE)
    }
    told = {key for cells in rows("key") for key in re.findall(r"root:[a-z]+", cells[0])}
    assert told == touched


@pytest.mark.parametrize("kind", ["o:", "c:", "s:", "p:", "u:"])
def test_the_page_says_what_few_jobs_have(kind):
    (cells,) = (cells for cells in rows("key") if "root:more" in cells[0])
    assert f"`{kind}ID`" in cells[2]


def test_a_job_of_the_page_is_a_job():
    job, _ = (block.text for block in BLOCKS if block.language == "json")
    assert wire.decode(job.encode()) == Job(
        "", "myapp.tasks.send", ("ada@example.com",), {"subject": "Welcome"}
    )


# --- submitting


def test_a_job_that_was_typed_runs(crew, worker, server):
    server.cli(input=typed("order-1 "))
    assert sent(crew, "order-1")["to"] == "ada@example.com"


def test_what_has_run_leaves_nothing_behind(crew, worker, server):
    server.cli(input=typed("order-1 ").replace("order-1", "order-1-again"))
    sent(crew, "order-1-again")
    crew.wait_until_empty()
    assert server.cli("KEYS", f"{root()}:*").split() in ([], [f"{root()}:wake"])


def test_arguments_arrive_as_they_were_sent(crew, worker, server):
    said = [2**63 + 1, -0.5, 1e300, [], {}, [[1, [2]]], "\u00e9\u0000\U0001f600", None, True]
    submit(server, "as-sent", job(args=[said]))
    assert sent(crew, "as-sent")["to"] == said


def test_one_that_is_delayed_runs_at_its_time(crew, worker, server):
    seconds, micros = server.cli("TIME").split()
    due = int(seconds) * 1000 + int(micros) // 1000 + 1200
    server.cli(input=typed("order-2 ").replace(FAR, str(due)))
    assert due <= sent(crew, "order-2")["time"] * 1000 < due + 10_000


def test_one_with_a_priority_goes_before_those_without(crew, worker, server):
    submit(server, "holding", job("myapp.tasks.hold", ["priority"]))
    crew.wait_for(lambda: any(event["id"] == "holding" for event in crew.events("begun")))
    submit(server, "usual", job())
    server.cli(input=typed("order-3 "))
    crew.open_gate("priority")
    sent(crew, "usual")
    ids = [event["id"] for event in crew.events("sent")]
    assert ids.index("order-3") < ids.index("usual")


def held(crew, server, text, id_):
    """Submit what the page submits, but something that goes on until `release`."""
    text = re.sub(
        r'"myapp.tasks.send","args":\[.*?\]', f'"myapp.tasks.hold","args":["{id_}"]', text
    )
    server.cli(input=text)
    crew.wait_for(lambda: any(event["id"] == id_ for event in crew.events("begun")))


def test_one_with_a_lease_has_that_lease(crew, worker, server):
    held(crew, server, typed("order-4 "), "order-4")
    until = float(server.cli("ZSCORE", f"{root()}:run", "order-4")) / 1000
    crew.open_gate("order-4")
    crew.wait_until_empty()
    assert 280 < until - time.time() <= 300


def test_one_that_runs_once_at_most_is_off_before_it_runs(crew, worker, server):
    held(crew, server, typed("order-5 "), "order-5")
    is_there = server.cli("HEXISTS", f"{root()}:jobs", "order-5")
    crew.open_gate("order-5")
    crew.wait_until_empty()
    assert is_there == "0"


def test_one_for_another_queue_runs_and_its_result_can_be_read(crew, worker, server):
    server.cli(input=typed("order-6 "))
    sent(crew, "order-6")
    crew.wait_until_empty()
    state, error, outcome = server.ask(given=typed("HMGET")).stdout.split(b"\n", 2)
    assert (state, error) == (b"succeeded", b"")
    assert outcome[3:4] == b"j"
    assert json.loads(outcome[16:]) == "sent to fay@example.com"


def test_many_may_be_submitted_by_the_script(crew, worker, server):
    assert server.cli(*called("submit")) == "2"
    assert sent(crew, "order-7")["to"] == "guy@example.com"
    assert sent(crew, "order-8")["to"] == "hal@example.com"


def test_queues_are_known_by_their_names(server, app):
    server.cli(input=typed("SADD"))
    assert {"default", "mail"} <= app.executor("redis").sizes().keys()


def test_knocks_do_not_pile_up(server):
    one = typed("order-1 ").replace("default", "unserved")
    for number in range(20):
        server.cli(input=one.replace("order-1", f"unserved-{number}"))
    assert server.cli("LLEN", f"{root('unserved')}:wake") == "8"
    server.cli("DEL", *server.cli("KEYS", f"{root('unserved')}:*").split())


# --- looking, and taking away


def test_what_waits_can_be_looked_at(crew, server):
    # What an earlier test has submitted may not have ended yet.
    crew.wait_until_empty()
    server.cli(input=typed("order-2 "))
    numbers = server.cli(input=typed("HLEN")).split("\n")
    assert numbers[:3] == ["1", "1", "0"]
    assert json.loads(numbers[-1])["args"] == ["ben@example.com"]
    server.cli(*called("cancel"))


def test_a_job_is_cancelled_by_the_script(crew, worker, server):
    server.cli(input=typed("order-2 "))
    shown = server.cli(*called("cancel")).split("\n")
    assert shown[0] == "0"
    assert json.loads(shown[1])["args"] == ["ben@example.com"]
    assert server.cli(*called("cancel")) == ""
    assert server.cli("KEYS", f"{root()}:due") == ""


def test_a_handle_finds_what_another_program_has_submitted(server, app):
    server.cli(input=typed("order-2 "))
    server.cli("SADD", "uwsgi_tasks:queues", "default")
    handle = app.job("order-2")
    assert handle.state is State.QUEUED
    assert app.read("order-2").args == ("ben@example.com",)
    assert handle.cancel()


def patterns():
    """Return what each key of the page looks like, and its type."""
    for heading in ("key", "other keys"):
        for cells in rows(heading):
            name = re.escape(re.search("`(.*?)`", cells[0])[1])
            name = name.replace("root", r"\{uwsgi_tasks:queue:\w+\}").replace(":0", r":\d")
            yield re.sub("NAME|ID", ".+", name), {"sorted set": "zset"}.get(cells[1], cells[1])


def test_the_keys_are_those_of_the_page_and_of_its_types(crew, worker, server, app):
    submit(server, "typed", job("myapp.tasks.fail", [], result_ttl=600))
    dead(crew, app, "typed")
    held(crew, server, typed("order-4 ").replace("order-4", "order-9"), "order-9")
    server.cli(input=typed("order-2 ") + typed("order-3 ") + typed("SADD"))
    server.cli("RPUSH", f"{root()}:suspects", "nobody")
    keys = server.cli("KEYS", "*").split("\n")
    types = {key: server.cli("TYPE", key) for key in keys if "mail" not in key}
    crew.open_gate("order-9")
    server.cli(*called("cancel"))
    crew.wait_until_empty()
    told = dict(patterns())
    for pattern, kind in told.items():
        assert {types[key] for key in types if re.fullmatch(pattern, key)} == {kind}, pattern
    for key in types:
        if key.startswith(("{uwsgi_tasks:queue:", "uwsgi_tasks:")):
            assert any(re.fullmatch(pattern, key) for pattern in told), key


# --- what is no job


WRONG = {
    "breaks-off": ('{"task": "myapp.tasks.send", "args": [1', "not JSON"),
    "no-json": ("hello", "not JSON, which begins with {"),
    "nothing": ("", "not JSON, which begins with {"),
    "a-list": ('{"task": "myapp.tasks.send"}]', "not JSON"),
    "no-task": ('{"args": [1]}', "the field 'task' is missing"),
    "unknown-field": ('{"task": "myapp.tasks.send", "argz": [1]}', "no field 'argz'"),
    "wrong-type": ('{"task": "myapp.tasks.send", "args": "x"}', "'args' takes a list, not 'x'"),
    "null": ('{"task": "myapp.tasks.send", "at": null}', "'at' takes seconds since 1970, not None"),
    "nan": ('{"task": "myapp.tasks.send", "args": [NaN]}', "not JSON"),
    "endless": ('{"task": "myapp.tasks.send", "result_ttl": 1e999}', "'result_ttl' takes seconds"),
    "far-off": ('{"task": "myapp.tasks.send", "at": 1e15}', "'at' takes seconds since 1970"),
    "attempt-0": ('{"task": "myapp.tasks.send", "attempt": 0}', "a whole number from 1"),
    "deep": ('{"task": "myapp.tasks.send", "args": ' + "[" * 100_000, "not JSON"),
    "digits": ('{"task": "myapp.tasks.send", "args": [' + "9" * 5000 + "]}", "not JSON"),
    "latin": (b'{"task": "myapp.tasks.send", "args": ["\xe9"]}', "not JSON"),
    "utf-16": ('{"task": "myapp.tasks.send"}'.encode("utf-16"), "not JSON, which begins with {"),
}


@pytest.mark.parametrize("id_", WRONG)
def test_what_is_no_job_becomes_a_dead_letter_that_says_why(crew, worker, server, app, id_):
    payload, reason = WRONG[id_]
    submit(server, id_, payload)
    letter = dead(crew, app, id_)
    assert reason in letter.error
    assert letter.payload == (payload if isinstance(payload, bytes) else payload.encode())


def test_a_job_that_has_killed_its_workers_becomes_a_dead_letter_under_its_name(
    crew, worker, server, app
):
    server.cli("HSET", f"{root()}:more", "c:killer", 3)
    submit(server, "killer", job())
    letter = dead(crew, app, "killer")
    assert (letter.task, letter.error[:16]) == ("myapp.tasks.send", "TasksError: its ")


def test_a_dead_letter_is_requeued_under_its_id_and_to_its_queue(crew, worker, server, app):
    submit(server, "fails", job("myapp.tasks.fail", []), "mail")
    dead(crew, app, "fails")
    crew.wait_until_empty()
    worker.signal(signal.SIGSTOP)
    try:
        handle = app.dead.requeue("fails")
        standing = app.executor("redis").find("fails")
    finally:
        worker.signal(signal.SIGCONT)
    assert (handle.id, standing.place) == ("fails", "mail")
    dead(crew, app, "fails")


def test_an_id_may_be_of_any_bytes(crew, worker, server):
    submit(server, b"\xff\x00:|!", job(args=["any bytes"]))
    crew.wait_for(lambda: any(event["to"] == "any bytes" for event in crew.events("sent")))
    crew.wait_until_empty()
    assert worker.is_alive


def test_a_priority_beyond_the_last_one_is_the_last_one(crew, worker, server, app):
    queues = app.executor("redis").queues
    queues.submit("default", ["beyond", job()], priority=200)
    assert sent(crew, "beyond")


# --- what nobody has signed


class Trap:
    """Makes a file of itself where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    path = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(path)))
    assert path.exists()
    path.unlink()
    return Trap(path)


def pickled(trap):
    return codec.encode([Job("", "myapp.tasks.send", (trap,))])


def test_a_pickle_that_is_not_ours_is_not_unpickled(crew, worker, server, app, trap):
    submit(server, "pickle", pickle.dumps(trap))
    assert "not written by this version" in dead(crew, app, "pickle").error
    assert not trap.path.exists()


def test_without_a_secret_nothing_is_unpickled(crew, worker, server, app, trap):
    submit(server, "unsigned", pickled(trap))
    assert "no secret is known here" in dead(crew, app, "unsigned").error
    assert not trap.path.exists()


@pytest.fixture(scope="module")
def sqlite(crew):
    """Settings of a worker whose store is no Redis."""
    settings = {"UWSGI_TASKS_STORE": f"sqlite:///{crew.folder}/store.sqlite3"}
    crew.start(queues="sqlite", **settings)
    return settings["UWSGI_TASKS_STORE"]


def test_a_store_elsewhere_makes_nobody_trust_what_is_in_redis(crew, server, sqlite, trap):
    app = App(Server(None), redis=server.url, store=sqlite)
    submit(server, "elsewhere", pickled(trap), "sqlite")
    assert "no secret is known here" in dead(crew, app, "elsewhere").error
    with pytest.raises(TasksError, match="no secret is known here"):
        app.dead.requeue("elsewhere")
    assert not trap.path.exists()


def test_what_fails_under_a_store_elsewhere_can_be_requeued(crew, server, sqlite):
    app = App(Server(None), redis=server.url, store=sqlite)
    submit(server, "fails elsewhere", job("myapp.tasks.fail", []), "sqlite")
    before = dead(crew, app, "fails elsewhere")
    app.dead.requeue("fails elsewhere")
    assert dead(crew, app, "fails elsewhere").failed_at > before.failed_at


SECRET = "of the tests and of nobody else"  # noqa: S105  it is


@pytest.fixture(scope="module")
def secretive(crew):
    """A worker that knows a secret, and is patient with tasks for a second."""
    return crew.start(
        queues="secret", UWSGI_TASKS_SECRET=SECRET, UWSGI_TASKS_UNKNOWN_TASK_GRACE="1"
    )


def test_with_a_secret_what_has_another_one_is_not_unpickled(crew, server, secretive, app, trap):
    theirs = codec.encode([Job("", "myapp.tasks.send", (trap,))], Signer(["another secret"]))
    submit(server, "theirs", theirs, "secret")
    assert "signed with another secret" in dead(crew, app, "theirs").error
    assert not trap.path.exists()


def test_with_a_secret_what_has_none_is_not_unpickled(crew, server, secretive, app, trap):
    submit(server, "none", pickled(trap), "secret")
    assert "not signed" in dead(crew, app, "none").error
    assert not trap.path.exists()


def test_with_a_secret_json_is_taken_as_well(crew, server, secretive):
    submit(server, "in json", job(), "secret")
    assert sent(crew, "in json")


def test_json_cannot_have_a_module_imported(crew, server, secretive, app):
    sprung = crew.folder / "sprung"
    (crew.folder / "trap.py").write_text(f"open({str(sprung)!r}, 'x')\ndef send(to): pass\n")
    submit(server, "imports", job("trap.send"), "secret")
    assert "no task trap.send is declared" in dead(crew, app, "imports").error
    assert not sprung.exists()


# --- taking jobs


@pytest.fixture
def page():
    found = {"__name__": "page_wire"}
    exec(compile(module_of(PAGE), str(PAGE), "exec"), found)
    return found


@pytest.fixture
def foreign(page, server):
    """The worker of the page, at a queue that nobody else serves."""
    calls = []
    tasks = {"myapp.tasks.send": lambda *args, **kwargs: calls.append((args, kwargs))}
    made = page["Worker"](server.url, SCRIPTS, ["foreign"], tasks)
    made.calls = calls
    yield made
    made.redis.close()


def keys(server, queue="foreign"):
    return set(server.cli("KEYS", f"{root(queue)}:*").split()) - {f"{root(queue)}:wake"}


def test_the_worker_of_the_page_runs_a_job(foreign, server):
    submit(server, "foreign-1", job(args=["ann"], kwargs={"subject": "Hello"}), "foreign")
    foreign.round()
    assert foreign.calls == [(("ann",), {"subject": "Hello"})]
    assert keys(server) == set()


def test_it_wakes_when_something_comes(foreign, server):
    submit(server, "foreign-2", job(), "foreign")
    due = int(time.time() * 1000) + 300
    server.cli("ZADD", f"{root('foreign')}:due", due, "foreign-2")
    server.cli("DEL", f"{root('foreign')}:ready:9", f"{root('foreign')}:wake")
    while not foreign.round():
        assert time.time() * 1000 < due + 10_000
    assert time.time() * 1000 >= due


def test_it_leaves_what_it_does_not_know_to_others(foreign, server):
    submit(server, "foreign-3", job("myapp.tasks.other"), "foreign")
    foreign.round()
    delay = float(server.cli("ZSCORE", f"{root('foreign')}:due", "foreign-3")) - time.time() * 1000
    server.cli("DEL", *keys(server))
    assert 1000 < delay <= 5000


def test_it_does_not_run_what_was_cancelled_as_it_was_taken(foreign, server):
    submit(server, "foreign-4", job(), "foreign")
    server.cli("HSET", f"{root('foreign')}:more", "s:foreign-4", 1)
    foreign.round()
    assert foreign.calls == []
    assert keys(server) == set()


def test_what_runs_once_at_most_is_gone_when_it_has_it(foreign, server):
    server.cli("HSET", f"{root('foreign')}:more", "o:foreign-5", "0|9")
    submit(server, "foreign-5", job(), "foreign")
    foreign.tasks["myapp.tasks.send"] = lambda _: foreign.calls.append(keys(server))
    foreign.round()
    assert foreign.calls == [set()]


def test_its_next_attempt_takes_the_place_of_the_first(foreign, server):
    submit(server, "foreign-6", job(), "foreign")
    ((_, id_, text, _, _),), _ = foreign.claim()
    assert foreign.go_on(root("foreign"), id_, json.loads(text), time.time() - 1)
    ((_, _, again, _, _),), _ = foreign.claim()
    assert wire.decode(again).attempt == 2
    assert foreign.end(root("foreign"), id_)


def test_whoever_comes_too_late_is_told_so(foreign, server):
    submit(server, "foreign-7", job(), "foreign")
    server.cli("HSET", f"{root('foreign')}:more", "o:foreign-7", "1000|9")
    ((_, id_, _, _, lease),), _ = foreign.claim()
    assert lease == 1000
    assert foreign.is_ours_still(root("foreign"), id_, lease)
    stale, deadline = foreign.token, time.monotonic() + 20
    while not (again := foreign.claim()[0]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ((_, _, _, crashes, _),) = again
    fresh, foreign.token = foreign.token, stale
    assert crashes == 1
    assert not foreign.is_ours_still(root("foreign"), id_, lease)
    assert not foreign.end(root("foreign"), id_)
    foreign.token = fresh
    assert foreign.end(root("foreign"), id_)


def test_it_is_seen_as_the_page_has_it(server, app):
    _, said = (block.text for block in BLOCKS if block.language == "json")
    name = json.loads(said)["name"]
    server.cli("SET", f"uwsgi_tasks:worker:{name}", said.strip(), "EX", 60)
    server.cli("SADD", "uwsgi_tasks:workers", name)
    found = [one for one in app.executor("redis").workers() if one.name == name]
    server.cli("SREM", "uwsgi_tasks:workers", name)
    assert [(one.ran, one.queues, one.tasks) for one in found] == [
        (17, ["default"], ["myapp.tasks.send"])
    ]
