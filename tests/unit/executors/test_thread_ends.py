"""What becomes of a process's jobs when it ends, in processes that do."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.uwsgi_coverage import environment
from uwsgi_tasks import App
from uwsgi_tasks.server import Server

HEAD = """
import os, signal, sys, threading, time
from datetime import timedelta
from uwsgi_tasks import App
from uwsgi_tasks.server import Server

def print(word):
    # In one go: several do so at a time.
    os.write(1, f"{word}\\n".encode())

app = App(Server(None), **SETTINGS)
LATER = timedelta(hours=1)

@app.task(executor="thread", name="say")
def say(word, seconds=0):
    time.sleep(seconds)
    print(word)

# It is said to run before it has said so itself.
HAS_BEGUN = threading.Event()

@app.task(executor="thread", name="begin")
def begin(seconds):
    print("begun")
    HAS_BEGUN.set()
    time.sleep(seconds)
    print("ended")

"""


@pytest.fixture
def settings(tmp_path):
    return {"store": "memory://", "dead_dir": str(tmp_path / "dead"), "thread_grace": 30}


@pytest.fixture
def script(tmp_path, settings):
    """Start a script with these settings beside those of all."""
    started = []

    def script(text, **more):
        head = HEAD.replace("SETTINGS", repr({**settings, **more}))
        process = subprocess.Popen(
            [sys.executable, "-c", head + textwrap.dedent(text)],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield script
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def run(script):
    """Run a script to its end; return its exit code, and the words that it has said."""

    def run(text, **more):
        process = script(text, **more)
        out, err = process.communicate(timeout=60)
        run.errors = err
        return process.returncode, out.split()

    return run


@pytest.fixture
def dead(settings):
    """Return what the next process finds: the dead letters, by their first arguments."""

    def dead(**more):
        found = App(Server(None), **{**settings, **more}).dead
        return {found.job(letter).args[0]: letter.error for letter in found.list()}

    return dead


ENDS = {
    "its last line": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise ValueError", 1),
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT),
    "SIGTERM with a handler": (
        (
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); "
            "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
        ),
        3,
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_is_due_is_finished_and_what_is_not_is_a_dead_letter(run, dead, end):
    line, code = ENDS[end]
    ended = run(
        f"""
        for number in range(9):
            say(number, 0.02)
        say.using(at=LATER)("late")
        {line}
        """
    )
    assert (ended[0], sorted(ended[1])) == (code, [str(number) for number in range(9)])
    assert list(dead()) == ["late"]


def test_the_next_process_can_requeue_what_it_finds(run, dead, script):
    run("say.using(at=LATER)('late')")
    ended = run("app.dead.requeue(app.dead.list()[0].id, at=timedelta(seconds=0.1)).wait(30)")
    assert (ended, dead()) == ((0, ["late"]), {})


def test_a_store_on_the_disk_takes_the_dead_letters(run, dead, tmp_path):
    pytest.importorskip("sqlalchemy")
    store = f"sqlite:///{tmp_path}/store.sqlite3"
    run("say.using(at=LATER)('late')", store=store)
    assert list((tmp_path / "dead").glob("*")) == []
    assert list(dead(store=store)) == ["late"]


def test_what_runs_beyond_the_grace_is_a_dead_letter(run, dead):
    began = time.monotonic()
    code, words = run("begin(60); HAS_BEGUN.wait(30)", thread_grace=0.2)
    assert (code, words) == (0, ["begun"])
    assert time.monotonic() - began < 50
    assert "while it ran" in dead()[60]


def test_what_nobody_has_got_to_is_a_dead_letter(run, dead):
    run("begin(60); HAS_BEGUN.wait(30); say('never')", thread_grace=0.2, threads=1)
    assert "before it could run" in dead()["never"]


HANDLERS = {
    "Ctrl-C": (signal.SIGINT, "", -signal.SIGINT),
    "SIGTERM": (signal.SIGTERM, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))", 0),
}


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("signal_", HANDLERS)
def test_a_second_interrupt_cuts_the_grace_short_and_loses_nothing(run, dead, signal_, times):
    number, handler, code = HANDLERS[signal_]
    began = time.monotonic()
    ended = run(
        f"""
        {handler}
        begin(60)
        HAS_BEGUN.wait(30)
        say("due")
        say.using(at=LATER)("late")
        pool, waits = app._thread._pool, threading.Event()
        drain = pool.drain
        pool.drain = lambda end: (waits.set(), drain(end))

        def interrupt():
            for _ in range({times}):
                os.kill(os.getpid(), {int(number)})
                # The second one comes while it waits for its jobs.
                waits.wait(30)
                time.sleep(0.3)

        threading.Thread(target=interrupt, daemon=True).start()
        time.sleep(60)
        """,
        thread_grace=60,
        threads=1,
    )
    assert (ended, sorted(map(str, dead()))) == ((code, ["begun"]), ["60", "due", "late"])
    assert time.monotonic() - began < 50
    # The first one may be told by its traceback, no other.
    assert run.errors.count("Traceback") == (number == signal.SIGINT), run.errors
    assert run.errors.count("interrupted: ") == 1


def test_interrupts_while_the_dead_letters_are_written_lose_none(run, tmp_path):
    ended = run(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        for number in range(300):
            say.using(at=LATER)(number)

        def interrupt():
            while True:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)

        begin(60)
        HAS_BEGUN.wait(30)
        threading.Thread(target=interrupt, daemon=True).start()
        time.sleep(60)
        """
    )
    # The list shows the first 50.
    assert (ended[1], len(list(tmp_path.glob("dead/*")))) == (["begun"], 301)


def test_a_daemon_that_submits_first_has_its_jobs_finished_and_fixtures_closed_after_them(run):
    ended = run(
        """
        @app.fixture
        def opened():
            print("open")
            yield
            print("close")

        def first():
            say("one", 0.3)

        def work():
            threading.main_thread().join()
            time.sleep(0.6)
            say("two", 0.3)

        thread = threading.Thread(target=first, daemon=True)
        thread.start()
        thread.join()
        threading.Thread(target=work).start()
        """
    )
    assert ended == (0, ["open", "one", "two", "close"])


def test_fixtures_are_closed_last_and_once_when_an_interrupt_ends_the_wait_for_threads(run, dead):
    ended = run(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

        @app.fixture
        def opened():
            print("open")
            yield
            print("close")

        def work():
            threading.main_thread().join()
            begin(60)
            HAS_BEGUN.wait(30)
            say("due")
            # Python drops what a handler raises where a destructor runs: then once more.
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(15)

        say("one").wait(10)
        threading.Thread(target=work).start()
        """,
        threads=1,
    )
    assert (ended[1], sorted(map(str, dead()))) == (
        ["open", "one", "begun", "close"],
        ["60", "due"],
    )


def test_fixtures_do_not_wait_for_a_job_that_was_given_up(run):
    began = time.monotonic()
    ended = run(
        """
        from uwsgi_tasks import onion

        onion._PATIENCE = 50

        @app.fixture
        def opened():
            yield
            print("close")

        begin(60)
        HAS_BEGUN.wait(30)
        """,
        thread_grace=0.2,
    )
    assert ended == (0, ["begun", "close"])
    assert time.monotonic() - began < 40
    assert "fixtures are closed while attempts run" in run.errors


def test_the_log_names_the_folder_in_which_the_dead_letters_are(run, settings):
    run("say.using(at=LATER)('late'); say.using(at=LATER)('later')")
    *letters, last = run.errors.splitlines()
    assert ["before it could run" in line for line in letters] == [True, True]
    assert "failed in attempt" not in run.errors
    assert last.endswith(f"its dead letters are in files, 2 in {settings['dead_dir']}")


def test_a_job_may_use_threads_pools_and_loops_while_its_process_ends(run):
    ended = run(
        """
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        @app.task(executor="thread")
        def threads():
            time.sleep(0.3)
            thread = threading.Thread(target=print, args=["thread"])
            thread.start()
            thread.join()

        @app.task(executor="thread")
        def pools():
            time.sleep(0.3)
            with ThreadPoolExecutor(1) as pool:
                print(pool.submit(lambda: "pool").result(10))

        @app.task(executor="thread")
        async def loops():
            await asyncio.sleep(0.3)
            print(await asyncio.to_thread(lambda: "loop"))

        threads(), pools(), loops()
        """
    )
    assert (ended[0], sorted(ended[1])) == (0, ["loop", "pool", "thread"])


def test_a_thread_that_python_waits_for_may_go_on_submitting(run, dead):
    ended = run(
        """
        def work():
            threading.main_thread().join()
            for number in range(3):
                say(number).wait(10)
            say.using(at=timedelta(seconds=0.2))("soon").wait(10)
            say("last")

        say("first").wait(10)
        threading.Thread(target=work).start()
        """
    )
    assert (ended, dead()) == ((0, ["first", "0", "1", "2", "soon", "last"]), {})


def test_several_apps_end_side_by_side(run):
    ended = run(
        """
        other = App(Server(None), **SETTINGS)
        say("one", 0.1)
        other.task(executor="thread", name="tell")(lambda: print("two"))()
        """.replace("SETTINGS", "app._overrides")
    )
    assert (ended[0], sorted(ended[1])) == (0, ["one", "two"])


def test_a_job_that_submits_another_while_its_process_ends_has_it_run(run):
    ended = run(
        """
        @app.task(executor="thread", name="chain")
        def chain(number):
            time.sleep(0.1)
            say(number)
            if number:
                chain(number - 1)

        chain(3)
        """
    )
    assert (ended[0], sorted(ended[1])) == (0, ["0", "1", "2", "3"])


def test_a_forked_child_ends_with_its_own_jobs_alone(run, dead):
    ended = run(
        """
        say.using(at=LATER)("parent's")
        child = os.fork()
        if child == 0:
            say("child's", 0.1)
            sys.exit(0)
        os.waitpid(child, 0)
        """
    )
    assert (ended, list(dead())) == ((0, ["child's"]), ["parent's"])


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_is_killed_says_nothing_of_its_jobs(run, dead, end):
    _, words = run(f"begin(60); HAS_BEGUN.wait(30); say.using(at=LATER)('late'); {end}")
    assert (words, dead()) == (["begun"], {})


def test_a_process_without_jobs_ends_at_once(run):
    began = time.monotonic()
    assert run("say('one').wait(10)", thread_grace=60) == (0, ["one"])
    assert time.monotonic() - began < 50


def test_no_job_is_taken_when_all_has_ended(run):
    run("import atexit; atexit.register(lambda: say('late')); say('one').wait(10)")
    assert "about to end" in run.errors


def test_the_first_job_may_not_come_at_the_end(run):
    run("import atexit; atexit.register(lambda: say('late'))")
    assert "SubmitError" in run.errors


def test_a_child_of_multiprocessing_finishes_its_jobs(run):
    ended = run(
        """
        import multiprocessing

        def work():
            say("one", 0.1)

        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        """
    )
    assert ended == (0, ["one"])
