"""Spool files that uwsgi_tasks 0.7 left behind are run.

Those in `legacy/` were written by 0.7.3 itself: `arguments` by `old(1, 'two', three=[3])`, `body`
by `old('x' * 70000, three=3)`, and `buffer` when `old_again('a', b=1)`, with retry_count=3 and
retry_timeout=3600, asked for its second run.
"""

import os
import pickle
import shutil
import time
from pathlib import Path

import pytest

from tests.uwsgi.serving import read_variables, write_spool_file

LEGACY = Path(__file__).parent / "legacy"

SOURCE = """
    import os
    from uwsgi_tasks import SPOOL_RETRY, get_current_task, task

    @task(executor="spooler")
    def old(*args, **kwargs):
        record("old", args=args, kwargs=kwargs, cwd=os.getcwd())

    @task(executor="spooler", retry_count=3, retry_timeout=3600)
    def old_again(*args, **kwargs):
        current = get_current_task()
        record("again", args=args, kwargs=kwargs, left=current.retry_count,
               timeout=current.retry_timeout, buffer=dict(current.buffer))
        current.buffer["runs"] += 1
        current.retry_timeout = 1
        return SPOOL_RETRY

    @task(executor="spooler")
    def old_failing():
        raise LookupError("no such order")
"""


@pytest.fixture(scope="module")
def server(serve_module):
    return serve_module(SOURCE)


def deliver(server, name, seconds=0.0):
    """Leave a file as an older version would, due *seconds* from now."""
    draft = server.spool / f".draft-{name}"
    shutil.copy(LEGACY / f"{name}.spool", draft)
    due = time.time() + seconds
    os.utime(draft, (due, due))
    return draft.rename(server.spool / f"uwsgi_spoolfile_on_host_1_1_{time.time_ns()}_1_1")


def write(server, function, setup, args=(), kwargs=None):
    keys = {
        b"function_name": function,
        b"setup": pickle.dumps(setup),
        b"args": pickle.dumps(args),
        b"kwargs": pickle.dumps(kwargs or {}),
    }
    return write_spool_file(server.spool, keys, name=str(time.time_ns()))


def test_a_call_with_arguments_runs_once(server):
    path = deliver(server, "arguments")

    server.wait_for(lambda: not path.exists())
    (event,) = [e for e in server.events("old") if e["args"] == [1, "two"]]
    assert event["kwargs"] == {"three": [3]}


def test_a_call_whose_arguments_were_in_the_body_runs(server):
    path = deliver(server, "body")

    server.wait_for(lambda: not path.exists())
    (event,) = [e for e in server.events("old") if e["args"] == ["x" * 70000]]
    assert event["kwargs"] == {"three": 3}


def test_a_retry_goes_on_with_its_buffer_and_the_runs_that_are_left(server):
    path = deliver(server, "buffer")
    server.wait_for(lambda: not path.exists())

    first, second = server.wait_for_events("again", 2)
    assert (first["args"], first["kwargs"]) == (["a"], {"b": 1})
    assert (first["left"], first["timeout"]) == (2, 3600)
    assert first["buffer"] == {"runs": 1, "seen": ["first"]}
    assert (second["left"], second["timeout"]) == (1, 1)
    assert second["buffer"] == {"runs": 2, "seen": ["first"]}


def test_one_of_the_future_waits_for_its_time(server):
    before = len(server.events("old"))
    due = time.time() + 2
    path = deliver(server, "arguments", 2.0)

    server.wait_for(lambda: not path.exists())
    events = server.events("old")[before:]
    assert len(events) == 1
    # uWSGI itself keeps its time, in whole seconds.
    assert events[0]["time"] >= int(due)


def test_its_working_directory_is_obeyed(server, tmp_path):
    write(server, b"app.old", {"working_dir": str(tmp_path)}, args=("there",))

    (event,) = server.wait_for(lambda: [e for e in server.events("old") if e["args"] == ["there"]])
    assert event["cwd"] == str(tmp_path)


def test_one_that_fails_is_kept(server):
    path = write(server, b"app.old_failing", {"working_dir": None})

    server.wait_for(lambda: not path.exists())
    assert kept(server, "LookupError: no such order")


def test_one_whose_task_is_gone_is_kept(server):
    path = write(server, b"app.nowhere", {"working_dir": None})

    server.wait_for(lambda: not path.exists())
    assert kept(server, "app.nowhere")


def test_one_that_does_not_unpickle_is_kept(server):
    path = write_spool_file(
        server.spool,
        {b"function_name": b"app.old", b"setup": b"no pickle", b"args": b"", b"kwargs": b""},
        name="broken",
    )

    server.wait_for(lambda: not path.exists())
    (letter,) = kept(server, "0.7")
    assert read_variables(letter.variables)["function_name"] == b"app.old"


def kept(server, error):
    return [letter for letter in server.dead() if error in letter.error]


def test_a_setting_refuses_them_and_keeps_what_they_held(serve):
    server = serve(SOURCE, env={"UWSGI_TASKS_ACCEPT_LEGACY": "false"})
    path = deliver(server, "arguments")

    server.wait_for(lambda: not path.exists())
    (letter,) = kept(server, "accept_legacy")
    assert read_variables(letter.variables)["function_name"] == b"app.old"
    assert not server.events("old")
