import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from tests.fakes import FakeUwsgi
from uwsgi_tasks import probe
from uwsgi_tasks.errors import SubmitError, TaskNotFound
from uwsgi_tasks.marks import Mark
from uwsgi_tasks.probe import Facts, Silence, ask
from uwsgi_tasks.server import Server
from uwsgi_tasks.settings import Settings
from uwsgi_tasks.spool_file import locked, unpack

WORDS = "correct horse battery"
DEADLINE = 20.0
TOKEN, OTHER = "ab" * 16, "cd" * 16
OUTSIDE = "../../../../tmp/evil"


@pytest.fixture
def spool(tmp_path):
    path = tmp_path / "spool"
    path.mkdir(mode=0o700)
    return path


def uwsgi(spool, **options):
    module = FakeUwsgi(spoolers=[spool], role="spooler", **options)
    module.version, module.has_threads = b"2.0.30", 1
    return module


def find(name):
    if name.startswith("lost"):
        raise TaskNotFound(f"{name}: importing lost failed: no such thing")


def answer(spool, env, *, module=None, settings=None, find=find):
    probe.answer(
        env,
        spool,
        server=Server(module or uwsgi(spool)),
        settings=settings or Settings(),
        find=find,
        declared={"known.one": None},
    )


def as_env(question):
    variables, body = unpack(question.read_bytes())
    return {key.encode(): value.encode() for key, value in variables.items()} | {"body": body}


# --- a process that serves a directory, well or badly


def answers(spool, question, settings):
    answer(spool, as_env(question), settings=settings)
    question.unlink()


def takes(spool, question, settings):
    question.unlink()


def leaves(spool, question, settings):
    pass


def holds(spool, question, settings):
    with locked(question):
        while True:
            time.sleep(1)


def serve_for_ever(spool, act, settings, ready):
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    mark = Mark(spool / "running", b"1.1", ordered=True)
    os.close(ready)
    assert mark
    while True:
        for question in spool.glob("uwsgi_spoolfile_on_probe_*"):
            with contextlib.suppress(FileNotFoundError):
                act(spool, question, settings)
        time.sleep(0.002)


@pytest.fixture
def serve(spool):
    """Start a process that serves the directory."""
    pids = []

    def serve(act, settings=None):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                serve_for_ever(spool, act, settings or Settings(), writer)
            finally:
                os._exit(1)
        pids.append(pid)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            pipe.read()

    yield serve
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def left_in(spool):
    return [
        path.name
        for path in spool.rglob("*")
        if "probe" in path.name and not path.name.endswith(".lock")
    ]


# --- asking


def test_a_spooler_says_what_it_is(spool, serve):
    serve(answers)

    facts = ask(spool, ["known.one", "lost.two"], DEADLINE, Settings())

    assert isinstance(facts, Facts)
    assert facts.role == "spooler"
    assert facts.uwsgi == "2.0.30"
    assert facts.declared == 1
    assert facts.imports["known.one"] == ""
    assert "no such thing" in facts.imports["lost.two"]
    assert facts.accepts
    assert facts.same_store
    assert not facts.has_secret


def test_nothing_is_left_of_a_question_that_was_answered(spool, serve):
    serve(answers)
    ask(spool, [], DEADLINE, Settings())

    assert not left_in(spool)


def test_where_nobody_lives_nothing_is_written(spool, monkeypatch):
    monkeypatch.setattr(probe, "write_whole", lambda *args: pytest.fail("it was written"))

    assert ask(spool, [], 0.05, Settings()) is Silence.NOBODY


def test_a_question_that_is_taken_and_not_answered_is_found_out_at_once(spool, serve):
    serve(takes)
    begun = time.monotonic()

    assert ask(spool, [], DEADLINE, Settings()) is Silence.TAKEN
    assert time.monotonic() - begun < DEADLINE / 2


@pytest.mark.parametrize(("act", "silence"), [(leaves, Silence.LEFT), (holds, Silence.HELD)])
def test_a_question_without_an_answer_ends_in_time(spool, serve, act, silence):
    serve(act)

    assert ask(spool, [], 3, Settings()) is silence


def test_a_question_that_nobody_takes_is_taken_back(spool, serve):
    serve(leaves)
    ask(spool, [], 0.3, Settings())

    assert not left_in(spool)


def test_a_question_that_is_interrupted_is_taken_back(spool, serve, monkeypatch):
    serve(leaves)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "_await", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(spool, [], DEADLINE, Settings())

    assert not left_in(spool)


@pytest.mark.parametrize(
    ("here", "there", "accepts"),
    [
        (None, None, True),
        (WORDS, None, True),
        (WORDS, WORDS, True),
        (WORDS, ["a newer secret", WORDS], True),
        (None, WORDS, False),
        (WORDS, "another secret", False),
    ],
)
def test_the_spooler_says_whether_it_accepts_what_we_sign(spool, serve, here, there, accepts):
    serve(answers, Settings(secret=there))

    facts = ask(spool, ["known.one"], DEADLINE, Settings(secret=here))

    assert facts.accepts is accepts
    assert facts.has_secret is (there is not None)


def test_nothing_is_imported_for_who_does_not_know_the_secret(spool, serve):
    serve(answers, Settings(secret=WORDS))

    assert ask(spool, ["lost.one"], DEADLINE, Settings()).imports == {}


def test_another_store_is_noticed(spool, serve):
    serve(answers, Settings(store="sqlite:////srv/a"))

    assert not ask(spool, [], DEADLINE, Settings(store="sqlite:////srv/b")).same_store


# --- answering


def question(**changes):
    request = {"token": TOKEN, "tasks": [], **changes}
    return {b"uwsgi_tasks": b"probe", b"signature": b"", "body": json.dumps(request).encode()}


@pytest.fixture
def running(spool):
    path = spool / "running"
    path.mkdir()
    with (path / f"{TOKEN}.probe").open("w") as file:
        # As somebody does who waits.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path


def replies(running):
    return [json.loads(path.read_bytes()) for path in running.iterdir() if path.stat().st_size]


def test_an_answer_is_a_file_named_for_the_question(spool, running):
    answer(spool, question())

    assert [path.name for path in running.iterdir()] == ["ab" * 16 + ".probe"]


def test_nobody_is_answered_who_has_stopped_waiting(spool, running):
    (running / f"{TOKEN}.probe").unlink()
    answer(spool, question(), find=pytest.fail)

    assert not list(running.iterdir())


def test_what_somebody_left_who_was_killed_is_taken_away(spool, running):
    left = running / f"{OTHER}.probe"
    left.touch()
    answer(spool, question(token=OTHER))

    assert not left.exists()
    assert not replies(running)


def test_nobody_is_answered_who_has_left_while_the_tasks_were_imported(spool, running):
    def slow(name):
        (running / f"{TOKEN}.probe").unlink()

    answer(spool, question(tasks=["slow.one"]), find=slow)

    assert not list(running.iterdir())


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"body": b"\xff"},
        {"body": b"[]"},
        {"body": b"null"},
        question(tasks=3),
        question(token=OUTSIDE),
        {**question(), b"signature": b"no hex"},
    ],
)
def test_nonsense_is_not_answered(spool, running, env):
    answer(spool, env)

    assert not replies(running)
    assert len(list(spool.parent.rglob("*.probe"))) == 1


def test_an_answer_that_cannot_be_written_does_not_end_the_spooler(spool, running, monkeypatch):
    def full(*args):
        raise SubmitError

    monkeypatch.setattr(probe, "write_whole", full)
    answer(spool, question())

    assert not replies(running)


def test_of_the_options_only_harmless_ones_are_told(spool, running):
    module = uwsgi(spool, lazy_apps=True, subscription_key=b"secret", spooler_freq=b"9")
    answer(spool, question(), module=module)

    (told,) = replies(running)
    assert told["options"] == {
        "lazy-apps": "true",
        "spooler": str(spool),
        "spooler-freq": "9",
    }


def test_the_answer_names_who_is_behind_our_callbacks(spool, running):
    module = uwsgi(spool)
    module.spooler = lambda env: -2
    server = Server(module)
    server.install(lambda env, theirs: -2, lambda message, theirs: None, lambda: None)
    probe.answer(question(), spool, server=server, settings=Settings(), find=find, declared=())

    (told,) = replies(running)
    ours, behind = told["callbacks"]["spooler"]
    assert ours == "uwsgi_tasks"
    assert "lambda" in behind


def test_the_answer_names_who_has_replaced_our_callbacks(spool, running):
    module = uwsgi(spool)
    server = Server(module)
    server.install(lambda env, theirs: -2, lambda message, theirs: None, lambda: None)
    module.mule_msg_hook = SimpleNamespace
    probe.answer(question(), spool, server=server, settings=Settings(), find=find, declared=())

    (told,) = replies(running)
    assert told["callbacks"]["mule_msg_hook"] == ["types.SimpleNamespace"]


def test_a_spooler_that_forked_says_who_loaded_us(spool, running, monkeypatch):
    monkeypatch.setattr(probe, "_LOADED_BY", os.getpid() + 1)
    answer(spool, question())

    assert replies(running)[0]["loaded_in"] == "master"


def test_outside_a_server_there_is_nothing_to_tell():
    server = Server(None)

    assert (server.version, server.has_threads, server.options(probe.OPTIONS)) == ("", False, {})
    assert set(map(tuple, server.callbacks().values())) == {()}


def test_the_niceness_and_the_interpreter_are_told(spool, running):
    answer(spool, question(), settings=Settings(renice=False, spooler_frequency=None))

    (told,) = replies(running)
    assert told["nice"] == os.getpriority(os.PRIO_PROCESS, 0)
    assert told["renice"] is False
    assert told["frequency"] == 30
    assert told["python"].startswith(".".join(map(str, sys.version_info[:2])))
